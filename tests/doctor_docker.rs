//! `routecause doctor docker`: the places where Docker takes proxies from, against the engine of this machine.

mod support;

use std::fs;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::{Value, json};
use support::docker::{BUILD, asked, bridge, told};
use support::origin::Origin;
use support::web::{self, Ca, Web};
use support::{Proxy, needs, routecause, run_within};

/// A client of Docker's with settings of its own.
struct Client {
    folder: tempfile::TempDir,
    ca: Ca,
}

impl Client {
    /// It gives this proxy to containers and builds.
    fn told(proxy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let proxies = json!({"proxies": {"default": {"httpProxy": proxy, "httpsProxy": proxy}}});
        fs::write(folder.path().join("config.json"), proxies.to_string()).unwrap();
        Self {
            folder,
            ca: Ca::new(),
        }
    }

    /// What the doctor says with `--json`, and whether it finds that all is well.
    fn doctor(&self, more: &[&str]) -> (Value, bool) {
        let mut command = routecause();
        command.args(["doctor", "docker", "--json"]).args(more);
        command.current_dir(self.folder.path());
        command
            .env("DOCKER_CONFIG", self.folder.path())
            .env("SSL_CERT_FILE", self.ca.file());
        let (status, stdout, stderr) = run_within(&mut command, BUILD);
        let said = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
        (said, status.success())
    }
}

#[track_caller]
fn is_about(said: &Value, id: &str) {
    assert_eq!(said["verdict"]["id"], id, "{said:#}");
    assert_eq!(said["schema"], "routecause.doctor.docker/1");
}

#[test]
fn containers_are_not_sent_to_their_own_loopback() {
    if !needs::has("docker") {
        return;
    }
    let client = Client::told("http://me:secret@127.0.0.1:3128");
    let (said, is_fine) = client.doctor(&[]);
    is_about(&said, "proxy_on_containers_loopback");
    assert!(!is_fine);
    let (gateway, subnet) = bridge();
    let fix = said["verdict"]["fix"].as_str().unwrap();
    assert!(fix.contains(&format!("http://{gateway}:3128")), "{fix}");
    assert!(fix.contains(&format!("--allow-from {subnet}")), "{fix}");
    assert!(!said.to_string().contains("secret"), "{said:#}");
}

#[test]
fn a_proxy_is_tried_from_inside_a_container_and_so_is_a_url() {
    if !needs::has("docker") {
        return;
    }
    let (gateway, subnet) = bridge();
    let proxy = on_the_bridge(gateway, subnet);
    let client = Client::told(&proxy.url());
    let target = Web::tls(&client.ca, &["files.test"], |_| web::answer(200, ""));
    let address = proxy.address.to_string();
    let url = format!("https://files.test:{}/", target.port());
    let (said, _) = client.doctor(&[&url]);
    // Nobody told the engine of it.
    is_about(&said, "places_disagree");
    let tried = &said["seen"]["proxies"];
    let of_proxy = |said: &&Value| said["proxy"] == address;
    let tried = tried.as_array().unwrap().iter().find(of_proxy).unwrap();
    assert_eq!(tried["outside"]["cause"], Value::Null, "{said:#}");
    assert_eq!(tried["inside"]["cause"], Value::Null, "{said:#}");
    assert_eq!(said["seen"]["inside"]["id"], "fine", "{said:#}");
    assert_eq!(target.seen().len(), 1, "by the proxy, from inside");

    // What the proxy refuses is told as it is.
    let (said, is_fine) = client.doctor(&["https://telemetry.test/"]);
    is_about(&said, "fails_inside_containers");
    assert!(!is_fine);
    assert_eq!(said["seen"]["inside"]["id"], "upstream_denies", "{said:#}");
    let (_, records) = proxy.stop();
    let client_of = |record: &Value| -> IpAddr {
        let address = record["client.address"].as_str().unwrap();
        address.parse().unwrap()
    };
    let from_inside = records.iter().filter(|record| {
        record["server.address"] == "telemetry.test" && subnet.contains(&client_of(record))
    });
    assert!(from_inside.count() > 0, "{records:#?}");
    let left = told(&["images", "-q", "routecause-doctor"]);
    assert_eq!(left, "", "an image of the doctor's is left");
}

#[test]
fn a_proxy_that_is_down_and_one_that_stays_in_an_image() {
    if !needs::has("docker") {
        return;
    }
    let (gateway, _) = bridge();
    let gone = SocketAddr::new(gateway, Origin::nowhere().port());
    let client = Client::told(&format!("http://{gone}"));
    let (said, _) = client.doctor(&[]);
    is_about(&said, "proxy_down");
    let evidence = said["verdict"]["evidence"].to_string();
    assert!(
        evidence.contains("inside a container: connect."),
        "{said:#}"
    );

    let client = Client::told("");
    fs::write(
        client.folder.path().join("Dockerfile"),
        "FROM scratch\nENV HTTPS_PROXY=http://p.test:1\n",
    )
    .unwrap();
    let (said, _) = client.doctor(&[]);
    let info = asked(&["info", "--format", "{{json .HTTPSProxy}}"]);
    if info == "" {
        is_about(&said, "proxy_baked_in");
    }
    assert_eq!(
        said["seen"]["baked"][0]["place"], "Dockerfile:2",
        "{said:#}"
    );
}

/// A proxy for containers, which knows one host.
fn on_the_bridge(gateway: IpAddr, subnet: IpNet) -> Proxy {
    let policy = "\
version: 1
guards: {loopback: allow}
dns: {hosts: {files.test: [127.0.0.1]}}
rules: [{name: files, match: {host: files.test}, direct: true}]
default: {block: true}
";
    Proxy::under(policy)
        .arg("--listen")
        .arg(&format!("{gateway}:0"))
        .arg("--allow-from")
        .arg(&subnet.to_string())
        .start()
}
