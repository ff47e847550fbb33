//! The lab: its hosts, its faults, and what real clients make of them.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::{StreamExt as _, stream};
use nix::sys::signal::Signal;
use routecause::lab::Lab;
use routecause::policy::fault::{Point, Verb};
use serde_json::Value;
use support::netns::Net;
use support::web::{self, Ca, Web};
use support::{Proxy, SOON, check, needs, routecause, run};
use tempfile::TempDir;

/// A lab by its command, and a home for its clients.
struct Scene {
    lab: Proxy,
    greeting: Value,
    home: TempDir,
}

impl Scene {
    fn with(faults: &[&str]) -> Self {
        let mut lab = Proxy::lab();
        for fault in faults {
            lab = lab.arg("--fault").arg(fault);
        }
        Self::of(lab.start())
    }

    fn of(lab: Proxy) -> Self {
        let greeting = lab.record();
        Self {
            lab,
            greeting,
            home: tempfile::tempdir().unwrap(),
        }
    }

    /// A program in the environment that the lab gives.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, value) in self.greeting["environment"].as_object().unwrap() {
            command.env(name, value.as_str().unwrap());
        }
        command
            .env_remove("ALL_PROXY")
            .env_remove("all_proxy")
            .env("HOME", self.home.path())
            .current_dir(self.home.path());
        command
    }

    fn curl(&self, args: &[&str]) -> (bool, String, String) {
        let mut curl = self.command("curl");
        let (status, out, err) = run(curl.args(["-sS", "--max-time", "20"]).args(args));
        (status.success(), out, err)
    }

    /// What curl gets.
    #[track_caller]
    fn get(&self, args: &[&str]) -> String {
        let (is_fine, out, err) = self.curl(args);
        assert!(is_fine, "{args:?}: {err}");
        out
    }
}

/// What the proxy itself makes of each of [`WRONG`], where it looks first.
const JUDGED: [(&str, &str); 5] = [
    ("self_signed", "tls.cert.self_signed"),
    ("expired", "tls.cert.expired"),
    ("wrong_name", "tls.cert.name_mismatch"),
    ("unknown_issuer", "tls.cert.unknown_issuer"),
    // An intermediate that was never seen is an issuer that nobody knows.
    ("missing_intermediate", "tls.cert.unknown_issuer"),
];

/// A client of a lab that trusts it.
fn client(lab: &Lab) -> reqwest::Client {
    client_of(lab, lab)
}

/// A client of a lab that trusts the authority of another one alone.
fn client_of(lab: &Lab, trusted: &Lab) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(trusted.ca_pem().as_bytes()).unwrap();
    reqwest::Client::builder()
        .proxy(reqwest::Proxy::all(lab.proxy_url()).unwrap())
        .tls_certs_only([ca])
        .build()
        .unwrap()
}

#[test]
fn the_first_line_says_where_everything_is() {
    let scene = Scene::with(&[]);
    let greeting = &scene.greeting;
    check!(greeting, "schema": "routecause.lab/1");
    assert_eq!(greeting["proxy_url"], scene.lab.url());
    let ca = greeting["ca_file"].as_str().unwrap().to_owned();
    let pem = std::fs::read_to_string(&ca).unwrap();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    let bundle = greeting["bundle_file"].as_str().unwrap();
    assert!(std::fs::read_to_string(bundle).unwrap().starts_with(&pem));
    check!(&greeting["environment"], "NODE_EXTRA_CA_CERTS": ca, "SSL_CERT_FILE": bundle, "NO_PROXY": "");
    let (status, rest) = scene.lab.stop();
    assert!(status.success() && rest.is_empty(), "{status} {rest:?}");
    assert!(!Path::new(&ca).exists(), "it leaves nothing behind");
}

#[test]
fn a_terminal_that_is_gone_ends_it() {
    let mut scene = Scene::with(&[]);
    scene.lab.signal(Signal::SIGHUP);
    assert!(scene.lab.ended().0.success());
}

#[test]
fn faults_come_and_go_while_it_runs_and_tell_what_they_struck() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::with(&[]);
    let admin = scene.greeting["admin_url"].as_str().unwrap();
    // The status, and what was said.
    let ask = |args: &[&str], path: &str| -> (String, Value) {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "-w", "\n%{http_code}"]);
        let (status, out, err) = run(curl.args(args).arg(format!("{admin}/v1/{path}")));
        assert!(status.success(), "{err}");
        let (said, code) = out.rsplit_once('\n').unwrap();
        let said = serde_json::from_str(said).unwrap_or_default();
        (code.to_owned(), said)
    };
    assert_eq!(ask(&[], "faults").1, serde_json::json!({"faults": []}));
    let body = r#"{"fault": "api.lab.test: reset at request first 2"}"#;
    let (code, added) = ask(&["-d", body], "faults");
    assert_eq!(
        (code.as_str(), &added["hits"]),
        ("201", &0.into()),
        "{added}"
    );
    let (_, code, _) = run(Command::new("curl")
        .args([
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--noproxy",
            "",
        ])
        .args(["-x", scene.greeting["proxy_url"].as_str().unwrap()])
        .arg(format!("{admin}/v1/faults")));
    assert_eq!(code, "508", "no client comes to it through the proxy");
    let one = format!("faults/{}", added["id"]);
    let results = [(); 3].map(|()| scene.curl(&["http://api.lab.test/"]).0);
    assert_eq!(results, [false, false, true]);
    let (_, told) = ask(&[], &one);
    assert_eq!(
        (&told["met"], &told["hits"]),
        (&3.into(), &2.into()),
        "{told}"
    );
    // A record comes behind the last byte that the client sees.
    let records = || ask(&[], "records").1["records"].as_array().map(Vec::len);
    let begun = std::time::Instant::now();
    while records() < Some(3) {
        assert!(begun.elapsed() < SOON, "{:?}", records());
    }
    // They are asked for as of any proxy: the newest first.
    let failed = ask(&[], "records?outcome=failure&limit=1").1;
    let failed = failed["records"].as_array().unwrap();
    assert_eq!(failed.len(), 1, "{failed:?}");
    let all = &ask(&[], "records").1["records"];
    assert_eq!(failed[0], all[1], "{all}");
    // What is wrong with a fault is told with its place.
    let (code, told) = ask(
        &["-d", r#"{"fault": "api.lab.test: rest at request"}"#],
        "faults",
    );
    assert_eq!(code, "400");
    assert!(told["error"].as_str().unwrap().contains("rest"), "{told}");
    assert_eq!(ask(&["-d", "{}"], "faults").0, "400");
    // A page of another site gets nothing.
    let cross = ["-H", "Sec-Fetch-Site: cross-site"];
    assert_eq!(ask(&cross, "faults").0, "403");
    assert_eq!(ask(&["-X", "DELETE"], &one).0, "204");
    assert_eq!(ask(&["-X", "DELETE"], &one).0, "404");
    assert_eq!(ask(&["-d", body], "faults").0, "201");
    assert_eq!(ask(&["-X", "DELETE"], "faults").0, "204");
    assert_eq!(ask(&[], "faults").1, serde_json::json!({"faults": []}));
}

#[test]
fn its_hosts_answer_over_every_protocol() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::with(&[]);
    let get = |args: &[&str]| scene.get(args);
    assert_eq!(
        get(&["http://api.lab.test/a?b"]),
        "GET /a of api.lab.test by http\n"
    );
    assert_eq!(
        get(&["--http1.1", "https://api.lab.test/a"]),
        "GET /a of api.lab.test by https\n"
    );
    assert_eq!(
        get(&["--http2", "https://deep.er.lab.test:8443/"]),
        "GET / of deep.er.lab.test:8443 by h2\n"
    );
    assert_eq!(get(&["-d", "again", "https://api.lab.test/echo"]), "again");
    assert_eq!(
        get(&[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://a.lab.test/status/503"
        ]),
        "503"
    );
    let big = get(&["https://a.lab.test/bytes/1000001"]);
    assert!(
        big.len() == 1_000_001 && big.ends_with("90"),
        "{}",
        big.len()
    );
    assert!(get(&["http://a.lab.test/slow/50ms"]).starts_with("GET /slow/50ms"));
    assert!(get(&["-H", "X-Mine: 1", "http://a.lab.test/headers"]).contains("x-mine: 1\n"));
    let records = scene.lab.records(8);
    for record in &records {
        check!(record, "egress.route": "direct", "egress.fault": null);
    }
    // A tunnel's record comes behind both its ends: not always before the next request's.
    let of = |key: &str, value: Value| records.iter().find(|record| record[key] == value).unwrap();
    check!(of("http.response.status_code", 503.into()), "error.type": "http.status.503", "egress.side": "origin");
    check!(of("server.port", 8443.into()), "server.address": "deep.er.lab.test");
}

#[test]
fn a_mistake_in_a_fault_is_told_with_its_place() {
    let mut command = routecause();
    let (status, out, err) =
        run(command.args(["lab", "--fault", "api.lab.test: resett at connect"]));
    assert_eq!((status.code(), out.as_str()), (Some(2), ""));
    assert!(
        err.contains("--fault:1:15: error: `resett` is not one of"),
        "{err}"
    );
    assert!(err.contains("did you mean `reset`?"), "{err}");
}

#[test]
fn a_policy_of_ones_own_has_its_faults_and_the_hosts_of_the_lab() {
    if !needs::has("curl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let policy = "\
version: 1
faults:
  old: {at: client_hello, do: wrong_cert, with: {certificate: expired}, when: {first: 1}}
rules:
  - {name: inside, match: {ip: 127.0.0.0/8, resolve: any, host: in.lab.test}, block: {reason: inside}}
  - {name: old, match: {host: old.lab.test}, fault: old, direct: true}
default: {direct: true}
tests:
  - {connect: \"old.lab.test:443\", expect: {rule: old, fault: old}}
";
    std::fs::write(&file, policy).unwrap();
    let scene = Scene::of(
        Proxy::lab()
            .arg("--policy")
            .arg(file.to_str().unwrap())
            .start(),
    );
    let (is_fine, _, err) = scene.curl(&["https://old.lab.test/"]);
    assert!(!is_fine && err.contains("certificate has expired"), "{err}");
    check!(&scene.lab.record(), "error.type": "tls.client_rejected_certificate.certificate_expired",
        "egress.fault": ["old"], "egress.rule": "old");
    scene.get(&["https://old.lab.test/"]);
    check!(&scene.lab.record(), "event.outcome": "success", "egress.fault": null);
    // Its names are known to rules that look them up, too.
    let (is_fine, ..) = scene.curl(&["https://in.lab.test/"]);
    assert!(!is_fine);
    check!(&scene.lab.record(), "error.type": "policy.denied.ip", "egress.rule": "inside");
}

#[test]
fn a_policy_of_a_proxy_that_stays_speaks_of_the_labs_own_listener() {
    if !needs::has("curl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let policy = "version: 1\nserver: {listen: [{name: build, address: '192.0.2.1:3128'}], allow_from: 192.0.2.0/24}\n\
        clients: {roles: {build: {listener: build}}}\n\
        rules: [{name: list, match: {client: {role: build}}, direct: true}]\ndefault: {block: true}\n";
    std::fs::write(&file, policy).unwrap();
    let path = file.to_str().unwrap();
    let scene = Scene::of(Proxy::lab().arg("--policy").arg(path).start());
    scene.get(&["https://api.lab.test/"]);
    check!(&scene.lab.record(), "egress.rule": "list", "egress.client.role": ["build"]);
}

#[test]
fn a_wrong_certificate_is_for_hosts_of_a_lab_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let policy = "version: 1\nfaults: {old: {at: client_hello, do: wrong_cert, with: {certificate: expired}}}\n\
        rules: [{name: old, match: {domain: example.com}, fault: old, direct: true}]\ndefault: {direct: true}\n";
    std::fs::write(&file, policy).unwrap();
    let (status, out, err) = run(routecause().arg("check").arg(&file));
    assert_eq!(status.code(), Some(78));
    let said = out + &err;
    assert!(
        said.contains("`old` strikes hosts of a lab alone"),
        "{said}"
    );
}

/// A wrong certificate, with what clients say of it: curl, Python, Go, Node; and the end of its cause.
const WRONG: [(&str, &str, &str, &str, &str, &str); 5] = [
    (
        "self_signed",
        "self-signed certificate",
        "self-signed certificate",
        "certificate signed by unknown authority",
        "DEPTH_ZERO_SELF_SIGNED_CERT",
        "unknown_ca",
    ),
    (
        "expired",
        "certificate has expired",
        "certificate has expired",
        "certificate has expired",
        "CERT_HAS_EXPIRED",
        "certificate_expired",
    ),
    (
        "wrong_name",
        "no alternative certificate subject name matches",
        "Hostname mismatch",
        "certificate is valid for other.invalid, not c.lab.test",
        "ERR_TLS_CERT_ALTNAME_INVALID",
        "",
    ),
    (
        "unknown_issuer",
        "unable to get local issuer certificate",
        "unable to get local issuer certificate",
        "certificate signed by unknown authority",
        "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
        "unknown_ca",
    ),
    (
        "missing_intermediate",
        "unable to get local issuer certificate",
        "unable to get local issuer certificate",
        "certificate signed by unknown authority",
        "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
        "unknown_ca",
    ),
];

impl Scene {
    fn wrong(certificate: &str) -> Self {
        Self::with(&[&format!(
            "c.lab.test: wrong_cert {certificate} at server_hello"
        )])
    }

    /// What a program says of the certificate, once its record says that it was struck.
    #[track_caller]
    fn said(&self, command: &mut Command) -> (String, Value) {
        let (_, out, err) = run(command);
        let record = self.lab.record();
        let fault = record["egress.fault"][0].as_str().unwrap_or_default();
        assert!(fault.starts_with("wrong_cert"), "{out}{err}\n{record:#}");
        (out + &err, record)
    }
}

#[test]
fn what_curl_says_of_a_wrong_certificate() {
    if !needs::has("curl") {
        return;
    }
    for (certificate, expected, .., alert) in WRONG {
        let scene = Scene::wrong(certificate);
        let mut curl = scene.command("curl");
        let (said, record) = scene.said(curl.args(["-sS", "https://c.lab.test/"]));
        assert!(said.contains(expected), "{certificate}: {said}");
        let cause = record["error.type"].as_str().unwrap_or_default();
        assert!(cause.ends_with(alert), "{certificate}: {record:#}");
        // Any other host shows its own.
        scene.get(&["https://d.lab.test/"]);
    }
}

#[test]
fn what_python_says_of_a_wrong_certificate() {
    const SCRIPT: &str = "
import urllib.request
try:
    urllib.request.urlopen('https://c.lab.test/')
except Exception as error:
    print(repr(error))
";
    if !needs::has("python3") {
        return;
    }
    for (certificate, _, expected, ..) in WRONG {
        let scene = Scene::wrong(certificate);
        let (said, _) = scene.said(scene.command("python3").args(["-c", SCRIPT]));
        assert!(said.contains(expected), "{certificate}: {said}");
    }
}

#[test]
fn what_go_says_of_a_wrong_certificate() {
    if !needs::has("go") {
        return;
    }
    let getter = Getter::build();
    for (certificate, _, _, expected, ..) in WRONG {
        let scene = Scene::wrong(certificate);
        let (said, _) = scene.said(scene.command(getter.path()).arg("https://c.lab.test/"));
        assert!(said.contains(expected), "{certificate}: {said}");
    }
}

#[test]
fn what_node_says_of_a_wrong_certificate() {
    if !needs::has("node") {
        return;
    }
    for (certificate, _, _, _, expected, _) in WRONG {
        let scene = Scene::wrong(certificate);
        let (said, _) = scene.said(scene.command("node").args(["-e", NODE, "c.lab.test"]));
        assert!(said.contains(expected), "{certificate}: {said}");
    }
}

/// Asks a host by a tunnel, as an agent would.
const NODE: &str = "
const http = require('http'), tls = require('tls');
const proxy = new URL(process.env.https_proxy), host = process.argv[1];
const request = http.request({host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: host + ':443'});
request.on('connect', (_, socket) => {
    const session = tls.connect({socket, servername: host}, () => {
        session.write('GET / HTTP/1.1\\r\\nhost: ' + host + '\\r\\nconnection: close\\r\\n\\r\\n');
    });
    session.on('data', data => console.log(String(data)));
    session.on('error', error => { console.log(error.code, error.message); process.exit(); });
});
request.end();
";

/// A program in Go that fetches a URL.
struct Getter(TempDir);

impl Getter {
    fn build() -> Self {
        const PROGRAM: &str = r#"package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil {
		fmt.Println(err)
		return
	}
	body, err := io.ReadAll(answer.Body)
	fmt.Println(string(body), err)
}
"#;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("main.go"), PROGRAM).unwrap();
        let mut build = Command::new("go");
        build.args(["build", "-o", "get", "main.go"]);
        build.current_dir(folder.path()).env("HOME", folder.path());
        let (status, _, err) = run(&mut build);
        assert!(status.success(), "{err}");
        Self(folder)
    }

    fn path(&self) -> &str {
        let path: &'static PathBuf = Box::leak(Box::new(self.0.path().join("get")));
        path.to_str().unwrap()
    }
}

#[test]
fn a_reset_is_named_by_every_client_and_the_next_try_goes_well() {
    let scene = Scene::with(&["*.lab.test: reset at client_hello every 2"]);
    let go = needs::has("go").then(Getter::build);
    let python = "import urllib.request as u\n\
        try: print(u.urlopen('https://api.lab.test/').read())\n\
        except Exception as error: print(repr(error))";
    let mut clients: Vec<(&str, Command)> = Vec::new();
    if needs::has("curl") {
        let mut curl = scene.command("curl");
        curl.args(["-sS", "https://api.lab.test/"]);
        clients.push(("curl: (35) Recv failure: Connection reset by peer", curl));
    }
    if needs::has("python3") {
        let mut command = scene.command("python3");
        command.args(["-c", python]);
        clients.push((
            "ConnectionResetError(104, 'Connection reset by peer')",
            command,
        ));
    }
    if let Some(go) = &go {
        let mut command = scene.command(go.path());
        command.arg("https://api.lab.test/");
        clients.push(("read: connection reset by peer", command));
    }
    if needs::has("node") {
        let mut node = scene.command("node");
        node.args(["-e", NODE, "api.lab.test"]);
        clients.push(("ECONNRESET", node));
    }
    for (expected, client) in &mut clients {
        let (_, out, err) = run(client);
        assert!(
            (out.clone() + &err).contains("of api.lab.test by"),
            "{out}{err}"
        );
        let (_, out, err) = run(client);
        let said = out + &err;
        assert!(said.contains(*expected), "{expected}: {said}");
        let mut records = scene.lab.records(2);
        records.sort_by_key(|record| !record["egress.fault"].is_null());
        check!(&records[0], "egress.fault": null);
        // Who ends without having read the server's last word of TLS resets; it was served all the same.
        check!(&records[0], "error.type": null, "event.outcome": "success");
        check!(&records[1], "error.type": "tls.reset_after_client_hello", "egress.phase": "tls",
            "egress.fault": ["reset at client_hello"]);
    }
}

#[tokio::test]
async fn faults_come_and_go_while_it_runs() {
    let lab = Lab::start().await.unwrap();
    let client = client(&lab);
    let get = async |host: &str| {
        let answer = client.get(format!("https://{host}.lab.test/")).send().await;
        answer.is_ok()
    };
    assert!(get("a").await);
    let reset = lab.fault("a.lab.test: reset at client_hello").unwrap();
    let refuse = lab.fault("b.lab.test: refuse at connect first 1").unwrap();
    // A connection that is kept is none that is made.
    assert!(!get("x.a").await || get("x.a").await);
    assert!(!get("b").await);
    assert!(get("b").await);
    assert_eq!((refuse.met(), refuse.hits()), (2, 1));
    let fresh = self::client(&lab);
    assert!(fresh.get("https://a.lab.test/").send().await.is_err());
    assert_eq!(reset.hits(), 1);
    assert_eq!(&*reset.fault().name, "reset at client_hello");
    reset.remove();
    assert!(fresh.get("https://a.lab.test/").send().await.is_ok());
    lab.fault("*.lab.test: close at accept").unwrap();
    let at_work: Vec<_> = lab
        .faults()
        .iter()
        .map(|one| one.fault().name.to_string())
        .collect();
    assert_eq!(at_work, ["refuse at connect", "close at accept"]);
    lab.clear_faults();
    assert!(lab.faults().is_empty());
    assert!(fresh.get("https://c.lab.test/").send().await.is_ok());
    let error = lab
        .fault("c.lab.test: close at noon")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--fault:1:22: error: `noon` is not one of"),
        "{error}"
    );
}

#[tokio::test]
async fn a_handshake_of_the_proxys_own_judges_its_hosts() {
    let rule = "{name: first, match: {host: '*.lab.test'}, preflight: tls, direct: true}";
    let lab = lab_under(&format!(
        "version: 1\nrules: [{rule}]\ndefault: {{direct: true}}\n"
    ))
    .await;
    assert!(
        client(&lab)
            .get("https://fine.lab.test/")
            .send()
            .await
            .is_ok()
    );
    for (certificate, _) in JUDGED {
        let host = format!("{}.lab.test", certificate.replace('_', "-"));
        lab.fault(&format!("{host}: wrong_cert {certificate} at server_hello"))
            .unwrap();
        assert!(
            client(&lab)
                .get(format!("https://{host}/"))
                .send()
                .await
                .is_err()
        );
    }
    let records = lab.records_when(1 + JUDGED.len()).await;
    for (certificate, cause) in JUDGED {
        let host = format!("{}.lab.test", certificate.replace('_', "-"));
        let of_host =
            |record: &&routecause::record::Record| record.server_address.as_deref() == Some(&host);
        let record = records.iter().find(of_host).unwrap();
        assert_eq!(record.error_type.as_deref(), Some(cause), "{record:#?}");
        assert_eq!(record.faults.len(), 1, "{record:#?}");
    }
}

#[tokio::test]
async fn labs_run_beside_each_other_and_leave_nothing() {
    let (one, other) = tokio::join!(Lab::start(), Lab::start());
    let (one, other) = (one.unwrap(), other.unwrap());
    let faults = one.fault("a.lab.test: close at client_hello").unwrap();
    assert!(
        client(&one)
            .get("https://a.lab.test/")
            .send()
            .await
            .is_err()
    );
    assert!(
        client(&other)
            .get("https://a.lab.test/")
            .send()
            .await
            .is_ok()
    );
    // Each has an authority of its own.
    let stranger = client_of(&other, &one);
    assert!(stranger.get("https://a.lab.test/").send().await.is_err());
    assert_eq!(faults.hits(), 1);
    let (file, address) = (one.ca_file(), one.proxy_address());
    drop(one);
    assert!(!file.exists());
    // A program that another test starts holds a listener until it is that program.
    let deadline = std::time::Instant::now() + SOON;
    while std::net::TcpStream::connect(address).is_ok() {
        assert!(std::time::Instant::now() < deadline, "{address} is taken");
    }
    assert_eq!(other.records_when(2).await.len(), 2);
}

/// How a pair is written, behind the verb and behind the point.
fn written(point: Point, verb: Verb) -> String {
    let with = match verb {
        Verb::Answer => " 127.0.0.2",
        Verb::Status => " 503",
        Verb::Alert => " handshake_failure",
        Verb::Delay => " 30ms jitter 10ms",
        Verb::Throttle => " 20KiB",
        Verb::Truncate => " 5",
        Verb::WrongCert => " unknown_issuer",
        Verb::Corrupt if point == Point::Bytes => " every 7",
        Verb::Corrupt if matches!(point, Point::Request | Point::Response) => " 9",
        Verb::Reset
        | Verb::Close
        | Verb::Hang
        | Verb::NxDomain
        | Verb::ServFail
        | Verb::Refuse
        | Verb::NotTls
        | Verb::Corrupt => "",
    };
    let measure = match point {
        Point::Bytes => " 200",
        Point::Idle => " 700ms",
        Point::Accept
        | Point::Dns
        | Point::Connect
        | Point::UpstreamReply
        | Point::ClientHello
        | Point::ServerHello
        | Point::Request
        | Point::Response => "",
    };
    format!("{}{with} at {}{measure}", verb.as_str(), point.as_str())
}

/// What every pair comes to: the cause of its record, or `fine`, and whether the client had an answer, be it one of ours.
const PAIRS: &str = "\
alert handshake_failure at client_hello: tls.alert_from_server.handshake_failure, failed
alert handshake_failure at server_hello: tls.alert_from_server.handshake_failure, failed
answer 127.0.0.2 at dns: connect.refused, failed
close at accept: upstream.closed, failed
close at bytes 200: tunnel.truncated, failed
close at client_hello: tls.closed_after_client_hello, failed
close at idle 700ms: fine, failed
close at request: http.empty_reply, failed
close at response: http.empty_reply, answered
close at server_hello: tls.closed_after_client_hello, failed
close at upstream_reply: upstream.closed, failed
corrupt 9 at request: http.status.400, answered
corrupt 9 at response: fine, answered
corrupt at client_hello: tls.not_tls_reply, failed
corrupt at server_hello: tls.not_tls_reply, failed
corrupt every 7 at bytes 200: tls.client_rejected_certificate.inferred, failed
delay 30ms jitter 10ms at accept: fine, answered
delay 30ms jitter 10ms at bytes 200: fine, answered
delay 30ms jitter 10ms at client_hello: fine, answered
delay 30ms jitter 10ms at connect: fine, answered
delay 30ms jitter 10ms at dns: fine, answered
delay 30ms jitter 10ms at request: fine, answered
delay 30ms jitter 10ms at response: fine, answered
delay 30ms jitter 10ms at server_hello: fine, answered
delay 30ms jitter 10ms at upstream_reply: fine, answered
hang at accept: upstream.closed, failed
hang at bytes 200: tls.server_flight_stalled, failed
hang at client_hello: tls.no_server_hello, failed
hang at connect: connect.timeout, failed
hang at dns: dns.timeout, failed
hang at idle 700ms: silence in a tunnel, failed
hang at request: http.response_timeout, answered
hang at response: http.response_timeout, answered
hang at server_hello: tls.no_server_hello, failed
hang at upstream_reply: upstream.no_reply, failed
not_tls at client_hello: tls.not_tls_reply, failed
not_tls at server_hello: tls.not_tls_reply, failed
nxdomain at dns: dns.nxdomain, failed
refuse at connect: connect.refused, failed
refuse at dns: dns.refused, failed
reset at accept: upstream.reset, failed
reset at bytes 200: tls.reset_during_server_flight, failed
reset at client_hello: tls.reset_after_client_hello, failed
reset at connect: connect.reset, failed
reset at idle 700ms: tunnel.reset_by_server, failed
reset at request: http.reset_before_response, failed
reset at response: http.reset_before_response, answered
reset at server_hello: tls.reset_after_client_hello, failed
reset at upstream_reply: upstream.reset, failed
servfail at dns: dns.servfail, failed
status 503 at accept: upstream.reported.unavailable, failed
status 503 at connect: upstream.reported.unavailable, failed
status 503 at request: http.status.503, answered
status 503 at response: http.status.503, answered
status 503 at upstream_reply: upstream.reported.unavailable, failed
throttle 20KiB at bytes 200: fine, answered
throttle 20KiB at client_hello: fine, answered
throttle 20KiB at request: fine, answered
throttle 20KiB at response: fine, answered
throttle 20KiB at server_hello: fine, answered
truncate 5 at bytes 200: tunnel.truncated, failed
truncate 5 at response: http.incomplete_body, failed
truncate 5 at server_hello: tunnel.truncated, failed
wrong_cert unknown_issuer at client_hello: tls.client_rejected_certificate.inferred, failed
wrong_cert unknown_issuer at server_hello: tls.client_rejected_certificate.inferred, failed
";

#[tokio::test]
async fn every_fault_at_every_point_does_what_it_says() {
    // Only what is never answered is waited for so briefly.
    const HURRIED: &str = "dns: 300ms, connect: 300ms, proxy_reply: 300ms, ";
    let lab = Lab::start().await.unwrap();
    let up = format!(
        "upstreams: {{up: {{url: '{}'}}}}\ndefault: {{via: up}}",
        lab.proxy_url()
    );
    let mut labs = Vec::new();
    for (waits, way) in [
        (HURRIED, up.as_str()),
        (HURRIED, "default: {direct: true}"),
        ("", up.as_str()),
        ("", "default: {direct: true}"),
    ] {
        let timeouts = format!("{waits}first_byte: 2s, idle: 2s");
        let policy =
            format!("version: 1\nrules: []\ndefaults: {{timeouts: {{{timeouts}}}}}\n{way}\n");
        labs.push(lab_under(&policy).await);
    }
    let is_behind = |fault: &str| fault.contains("upstream_reply");
    let lab_of = |fault: &str| match (fault.starts_with("hang"), is_behind(fault)) {
        (true, true) => &labs[0],
        (true, false) => &labs[1],
        (false, true) => &labs[2],
        (false, false) => &labs[3],
    };
    let mut asked = Vec::new();
    for point in Point::ALL {
        for verb in point.acts() {
            let fault = written(*point, *verb);
            let host = fault.replace([' ', '_'], "-").to_lowercase() + ".lab.test";
            let injected = lab_of(&fault).fault(&format!("{host}: {fault}")).unwrap();
            let url = match point {
                Point::Request | Point::Response => format!("http://{host}/echo"),
                Point::Idle => format!("https://{host}/slow/9s"),
                // Nobody listens there.
                Point::Dns => format!("https://{host}:47/"),
                Point::Accept
                | Point::Connect
                | Point::UpstreamReply
                | Point::ClientHello
                | Point::ServerHello
                | Point::Bytes => format!("https://{host}/"),
            };
            asked.push((fault, host, url, injected));
        }
    }
    // Who is kept waiting comes first, all together.
    asked.sort_by_key(|(fault, ..)| !fault.starts_with("hang"));
    let asks = asked.iter().map(|(fault, _, url, _)| {
        let own = lab_of(fault);
        let client = client_of(own, if is_behind(fault) { &lab } else { own });
        async move {
            let ask = client.post(url).body("some words to say again");
            match ask.timeout(SOON).send().await {
                Ok(answer) => answer.text().await.is_ok(),
                Err(_) => false,
            }
        }
    });
    let came: Vec<bool> = stream::iter(asks).buffered(12).collect().await;
    let mut records = Vec::new();
    for lab in &labs {
        let own = asked
            .iter()
            .filter(|(fault, ..)| std::ptr::eq(lab_of(fault), lab));
        records.extend(lab.records_when(own.count()).await);
    }
    assert_eq!(records.len(), asked.len());
    let of = |host: &str| {
        let mut records = records.iter();
        let record = records.find(|record| record.server_address.as_deref() == Some(host));
        record.unwrap_or_else(|| panic!("no record of {host}"))
    };
    let mut told: Vec<String> = Vec::new();
    for ((fault, host, _, injected), came) in asked.iter().zip(came) {
        assert_eq!((injected.met(), injected.hits()), (1, 1), "{fault}");
        let record = of(host);
        assert_eq!(record.faults, [fault.as_str().into()], "{fault}");
        let cause = match record.error_type.as_deref() {
            // The server's session tickets may come behind the request, and then nothing is owed.
            Some("tunnel.server_silent" | "tunnel.idle_timeout") => "silence in a tunnel",
            Some(cause) => cause,
            None => "fine",
        };
        let comes = if came { "answered" } else { "failed" };
        told.push(format!("{fault}: {cause}, {comes}"));
    }
    told.sort();
    let told = told.join("\n") + "\n";
    assert!(told == PAIRS, "{told}");
}

async fn lab_under(policy: &str) -> Lab {
    let source = routecause::config::Source::Text {
        name: "policy.yaml".to_owned(),
        text: policy.to_owned(),
    };
    Lab::setup().policy(source).start().await.unwrap()
}

#[test]
fn an_authority_of_the_folder_is_used() {
    if !needs::has("curl") || !needs::has("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs/make-ca.sh");
    let make = || run(Command::new(&script).arg(folder.path()));
    let (status, _, err) = make();
    assert!(status.success(), "{err}");
    let pem = std::fs::read_to_string(folder.path().join("ca.pem")).unwrap();
    let scene = Scene::of(
        Proxy::lab()
            .arg("--dir")
            .arg(folder.path().to_str().unwrap())
            .start(),
    );
    scene.get(&["https://api.lab.test/"]);
    let ca = scene.greeting["ca_file"].as_str().unwrap().to_owned();
    scene.lab.stop();
    assert_eq!(std::fs::read_to_string(&ca).unwrap(), pem);
    let (status, _, err) = make();
    assert!(
        !status.success() && err.contains("is there already"),
        "{err}"
    );
    // One without the other is a mistake, not a reason to write over it.
    let key = folder.path().join("ca.key");
    let aside = folder.path().join("aside");
    std::fs::rename(&key, &aside).unwrap();
    let (status, _, err) = run(routecause().args(["lab", "--dir"]).arg(folder.path()));
    assert_eq!(status.code(), Some(1), "{err}");
    assert!(err.contains("ca.key is missing"), "{err}");
    assert_eq!(std::fs::read_to_string(&ca).unwrap(), pem);
    std::fs::rename(&aside, &key).unwrap();
    std::fs::remove_file(&ca).unwrap();
    let (status, _, err) = run(routecause().args(["lab", "--dir"]).arg(folder.path()));
    assert_eq!(status.code(), Some(1));
    assert!(err.contains("ca.pem"), "{err}");
}

#[tokio::test]
async fn a_certificate_that_a_lab_left_behind_makes_room_for_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let lab = Lab::setup().folder(folder.path()).start().await.unwrap();
        seen.push(std::fs::read_to_string(folder.path().join("ca.pem")).unwrap());
        assert_eq!(seen.last().unwrap(), lab.ca_pem());
    }
    assert_ne!(seen[0], seen[1]);
}

/// A firewall that does something to connections that speak of a name, and a proxy that meets it.
struct Firewall {
    net: Net,
    proxy: Proxy,
    ca: Ca,
    home: TempDir,
    _web: Web,
}

impl Firewall {
    /// None where the machine cannot.
    fn new(verdict: &str) -> Option<Self> {
        let net = Net::new()?;
        let ca = Ca::new();
        let address = std::net::SocketAddr::new(net.address(), 443);
        let answer = |_: &web::Request| web::answer(200, bytes::Bytes::from_static(b"42"));
        let web = net
            .server
            .within(|| Web::tls_on(address, &ca, &["blocked.test"], answer));
        net.router.iptables(&format!(
            "-A FORWARD -p tcp --dport 443 -m string --algo kmp --string blocked.test -j {verdict}"
        ));
        let ip = address.ip();
        let policy = format!(
            "version: 1\nrules: []\ndefault: {{direct: true}}\ndns: {{hosts: {{blocked.test: [{ip}]}}}}\n"
        );
        let proxy = Proxy::under(&policy).inside(&net.client).start();
        Some(Self {
            net,
            proxy,
            ca,
            home: tempfile::tempdir().unwrap(),
            _web: web,
        })
    }

    /// A program behind the proxy.
    fn command(&self, program: &str) -> Command {
        let mut command = self.net.client.command(program);
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env(name, self.proxy.url());
        }
        command
            .env("SSL_CERT_FILE", self.ca.file())
            .env("HOME", self.home.path())
            .current_dir(self.home.path());
        command
    }

    /// The file that a record makes, and what the lab makes of that.
    fn again(&self, record: &Value) -> (Value, Scene) {
        let folder = self.home.path();
        let (log, file) = (folder.join("egress.log"), folder.join("incident.json"));
        std::fs::write(&log, format!("{record}\n")).unwrap();
        let id = record["event.id"].as_str().unwrap();
        let mut command = routecause();
        command
            .args(["lab", "record", id, "--log"])
            .arg(&log)
            .arg("-o")
            .arg(&file);
        let (status, _, err) = run(&mut command);
        assert!(status.success(), "{err}");
        let incident = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let replay = ["lab", "replay", file.to_str().unwrap(), "--json"];
        (incident, Scene::of(Proxy::by(&replay).start()))
    }
}

/// What is told of a failure, and by what.
fn class(record: &Value) -> [&Value; 4] {
    [
        "error.type",
        "egress.phase",
        "egress.reset.last_write_acked",
        "egress.tls.state",
    ]
    .map(|key| &record[key])
}

#[test]
fn a_reset_of_a_firewall_is_brought_about_again_without_it() {
    const PYTHON: &str = "
import urllib.request
try:
    urllib.request.urlopen('https://blocked.test/')
except Exception as error:
    print(repr(error))
";
    if !["curl", "python3", "go"].into_iter().all(needs::has) {
        return;
    }
    let Some(scene) = Firewall::new("REJECT --reject-with tcp-reset") else {
        return;
    };
    let go = Getter::build();
    let clients: [(&str, &[&str], &str); 3] = [
        (
            "curl",
            &["-sS", "https://blocked.test/"],
            "curl: (35) Recv failure: Connection reset by peer",
        ),
        (
            "python3",
            &["-c", PYTHON],
            "ConnectionResetError(104, 'Connection reset by peer')",
        ),
        (
            go.path(),
            &["https://blocked.test/"],
            "read: connection reset by peer",
        ),
    ];
    for (program, args, expected) in clients {
        let (_, out, err) = run(scene.command(program).args(args));
        assert!(
            (out.clone() + &err).contains(expected),
            "{program}: {out}{err}"
        );
        let record = scene.proxy.record();
        check!(&record, "error.type": "tls.reset_after_client_hello", "egress.fault": null,
            "egress.reset.last_write_acked": false);
        let (incident, again) = scene.again(&record);
        check!(&incident, "schema": "routecause.incident/1", "target": "blocked.test:443", "acknowledges": false,
            "faults": ["reset at client_hello"]);
        let (_, out, err) = run(again.command(program).args(args));
        assert!(
            (out.clone() + &err).contains(expected),
            "{program}: {out}{err}"
        );
        let replayed = again.lab.record();
        assert_eq!(class(&replayed), class(&record), "{replayed:#}\n{record:#}");
        check!(&replayed, "egress.fault": ["reset at client_hello"], "server.address": "blocked.test");
        // What was heard of late tells less, there as here.
        let is_clear = |record: &Value| record["egress.reset.accept_race"] != true;
        if is_clear(&record) && is_clear(&replayed) {
            assert_eq!(
                replayed["egress.side"], record["egress.side"],
                "{replayed:#}"
            );
        }
    }
}

#[test]
fn silence_of_a_firewall_is_brought_about_again_without_it() {
    if !needs::has("curl") {
        return;
    }
    let Some(scene) = Firewall::new("DROP") else {
        return;
    };
    let args = ["-sS", "--max-time", "4", "https://blocked.test/"];
    run(scene.command("curl").args(args));
    let record = scene.proxy.record();
    check!(&record, "error.type": "tls.client_hello_blackholed");
    let (incident, again) = scene.again(&record);
    check!(&incident, "acknowledges": false);
    let (_, _, err) = run(again.command("curl").args(args));
    assert!(err.contains("timed out"), "{err}");
    let replayed = again.lab.record();
    assert_eq!(class(&replayed), class(&record), "{replayed:#}\n{record:#}");
    // The kernel sent it again and again, as it did there.
    assert!(
        replayed["egress.tcp.server.retrans"].as_u64() >= Some(2),
        "{replayed:#}"
    );
}

#[test]
fn what_is_no_incident_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    std::fs::write(&log, "{}\n").unwrap();
    let (status, out, err) = run(routecause()
        .args(["lab", "record", "01a1", "--log"])
        .arg(&log));
    assert_eq!((status.code(), out.as_str()), (Some(1), ""));
    assert!(err.contains("no line has the id 01a1"), "{err}");
    let (status, _, err) = run(routecause().args(["lab", "replay"]).arg(&log));
    assert_eq!(status.code(), Some(2));
    assert!(err.contains("this is no incident"), "{err}");
}

/// A folder of `tests/clients`, copied, since its programs write beside it.
fn example(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name);
    let (status, _, err) = run(Command::new("cp")
        .arg("-r")
        .arg(from.join("."))
        .arg(copy.path()));
    assert!(status.success(), "{err}");
    copy
}

#[test]
fn the_example_in_python_runs() {
    if !needs::has("python3") || !needs::has_python("pytest", "pytest") {
        return;
    }
    let folder = example("python");
    let mut pytest = Command::new("python3");
    pytest
        .args([
            "-m",
            "pytest",
            "-q",
            "-p",
            "routecause_lab",
            "-p",
            "no:cacheprovider",
        ])
        .env("PYTHONPATH", folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ROUTECAUSE", env!("CARGO_BIN_EXE_routecause"))
        .env("HOME", folder.path())
        .current_dir(folder.path());
    let (status, out, err) = run(&mut pytest);
    assert!(status.success() && out.contains("3 passed"), "{out}{err}");
}

#[test]
fn the_example_in_go_runs() {
    if !needs::has("go") {
        return;
    }
    let folder = example("go");
    let mut go = Command::new("go");
    go.args(["test", "-count=1", "./..."])
        .env("ROUTECAUSE", env!("CARGO_BIN_EXE_routecause"))
        .env("HOME", folder.path())
        .env("GOFLAGS", "-modcacherw")
        .current_dir(folder.path());
    let (status, out, err) = run(&mut go);
    assert!(status.success() && out.starts_with("ok"), "{out}{err}");
}

#[test]
fn what_the_readme_shows_is_what_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let readme = read("README.md");
    let lab = readme
        .split("\n## A lab\n")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    for (language, file) in [
        ("rust", "tests/retry.rs"),
        ("python", "tests/clients/python/test_retry.py"),
    ] {
        let block = lab.split(&format!("```{language}\n")).nth(1);
        let block = block.and_then(|rest| rest.split("```").next());
        let block = block.unwrap_or_else(|| panic!("no {language} in README"));
        assert!(
            read(file).contains(block),
            "{file} is not what README shows:\n{block}"
        );
        assert!(block.lines().count() <= 10, "{block}");
    }
}

#[test]
fn a_client_of_toxiproxy_drives_the_listeners_of_the_lab() {
    const SCRIPT: &str = r#"
import socket, sys, time
import requests, toxiproxy
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

server = toxiproxy.Toxiproxy()
server.update_api_consumer("127.0.0.1", int(sys.argv[1]))
assert b"2.9" in server.version()
api = server.create(upstream="api.lab.test:80", name="api")
assert api.enabled and not api.listen.endswith(":0"), api.listen
host, port = api.listen.split(":")

def get(path, limit=10):
    begun = time.monotonic()
    answer = requests.get(f"http://{api.listen}{path}", timeout=limit)
    return answer.text, time.monotonic() - begun

def fails(path, said):
    try:
        print("an answer came:", get(path))
    except requests.exceptions.RequestException as error:
        assert said in str(error), error
        return
    sys.exit(1)

def toxic(kind, **attributes):
    stream = attributes.pop("stream", "downstream")
    api.add_toxic(type=kind, stream=stream, attributes=attributes)
    return f"{kind}_{stream}"

text, _ = get("/bytes/1000")
assert text == "0123456789" * 100

name = toxic("latency", latency=300, jitter=10)
assert api.get_toxic(name).attributes == {"latency": 300, "jitter": 10}
assert get("/")[1] >= 0.29
api.destroy_toxic(name)
assert api.toxics() == {}

name = toxic("bandwidth", rate=10)
text, took = get("/bytes/4000")
assert len(text) == 4000 and took >= 0.35, took
api.destroy_toxic(name)

name = toxic("slicer", average_size=50, size_variation=20, delay=10)
assert get("/bytes/2000")[0] == "0123456789" * 200
api.destroy_toxic(name)

name = toxic("limit_data", bytes=600)
fails("/bytes/5000", "IncompleteRead")
api.destroy_toxic(name)

name = toxic("timeout", timeout=200)
fails("/", "Connection aborted")
api.destroy_toxic(name)

name = toxic("reset_peer", timeout=0, stream="upstream")
fails("/", "Connection reset by peer")
api.destroy_toxic(name)

name = toxic("slow_close", delay=300)
with socket.create_connection((host, int(port)), timeout=10) as stream:
    begun = time.monotonic()
    stream.sendall(b"GET / HTTP/1.1\r\nhost: api.lab.test\r\nconnection: close\r\n\r\n")
    while stream.recv(4096):
        pass
    assert time.monotonic() - begun >= 0.3
server.reset()
assert api.toxics() == {}

with api.down():
    fails("/", "Connection refused")
assert get("/")[0] == "GET / of %s by http\n" % api.listen

for complaint, wrong in [
    (ProxyExists, lambda: server.create(upstream="api.lab.test:80", name="api")),
    (InvalidToxic, lambda: toxic("poison")),
    (NotFound, lambda: toxiproxy.proxy.Proxy(name="none", upstream="", enabled=True, listen="").toxics()),
]:
    try:
        wrong()
    except complaint:
        continue
    sys.exit(f"no {complaint}")
assert requests.post(f"http://127.0.0.1:{sys.argv[1]}/proxies", json={"name": "open", "upstream": "a:1", "listen": "0.0.0.0:0"}).status_code == 400
# Pages of other sites, and names that were made to lead here.
for headers, status in [({"origin": "https://attacker.example"}, 403), ({"host": f"attacker.example:{sys.argv[1]}"}, 421)]:
    assert requests.get(f"http://127.0.0.1:{sys.argv[1]}/proxies", headers=headers).status_code == status
pair = [{"name": "a", "upstream": "a.lab.test:80", "listen": "127.0.0.1:0"}, {"name": "b", "upstream": "b.lab.test:80"}]
made = requests.post(f"http://127.0.0.1:{sys.argv[1]}/populate", json=pair)
assert made.status_code == 201 and [one["name"] for one in made.json()["proxies"]] == ["a", "b"]
assert sorted(server.proxies()) == ["a", "api", "b"]
server.destroy_all()
assert server.proxies() == {}
print("done")
"#;
    if !needs::has("python3") || !needs::has_python("toxiproxy", "toxiproxy-python") {
        return;
    }
    let scene = Scene::of(Proxy::lab().arg("--toxiproxy").arg("127.0.0.1:0").start());
    let url = scene.greeting["toxiproxy_url"].as_str().unwrap();
    let port = url.rsplit(':').next().unwrap();
    let mut python = Command::new("python3");
    let (status, out, err) = run(python.args(["-c", SCRIPT, port]).env("NO_PROXY", "*"));
    assert!(status.success() && out.ends_with("done\n"), "{out}{err}");
    let (_, records) = scene.lab.stop();
    // Each connection left a record, which says whether a toxic had an effect.
    let struck = records
        .iter()
        .filter(|record| record["egress.fault"][0] == "toxiproxy api");
    assert_eq!((records.len(), struck.count()), (9, 7), "{records:#?}");
    for record in &records {
        check!(record, "event.action": "connect", "server.address": "api.lab.test", "server.port": 80);
    }
}
