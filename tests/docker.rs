//! The first use: `docker build` behind the proxy, for real. What apt, pip and curl fetch in it is recorded by name.

mod support;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use support::goods;
use support::needs;
use support::web::{self, Ca, Web};
use support::{Proxy, run, run_within};

/// The base image is made once for a build folder; a machine that cannot make it within this cannot run the test.
const BOOTSTRAP: Duration = Duration::from_mins(10);

/// Importing it, and a build of it.
const BUILD: Duration = Duration::from_mins(5);

/// The servers of the test stand on loopback, which only loopback clients may reach unless the policy says so.
const POLICY: &str = "\
version: 1
guards: {loopback: allow}
dns: {hosts: {apt.test: [127.0.0.1], pip.test: [127.0.0.1], files.test: [127.0.0.1]}}
rules:
  - {name: packages, match: {host: [apt.test, pip.test]}, direct: true}
  - {name: files, match: {host: files.test}, direct: true}
default: {block: {reason: 'not on the list of this build'}}
";

#[test]
fn a_build_fetches_through_the_proxy_and_each_step_is_recorded() {
    if !is_ready() {
        return;
    }
    let (gateway, subnet) = bridge();
    let images = Images::import(&base());

    let files = tempfile::tempdir().unwrap();
    goods::apt_repository(files.path());
    goods::python_index(files.path());
    fs::write(files.path().join("answer"), "42").unwrap();
    let ca = Ca::new();
    let serve = || web::folder(files.path());
    let apt = Web::plain(serve());
    let pip = Web::tls(&ca, &["pip.test"], serve());
    let http = Web::plain(serve());
    let https = Web::tls(&ca, &["files.test"], serve());
    let proxy = Proxy::under(POLICY)
        .arg("--listen")
        .arg(&format!("{gateway}:0"))
        .arg("--allow-from")
        .arg(&subnet.to_string())
        .start();

    let context = tempfile::tempdir().unwrap();
    fs::copy(ca.file(), context.path().join("test.crt")).unwrap();
    let sources = format!("deb [trusted=yes] http://apt.test:{}/apt ./\n", apt.port());
    fs::write(context.path().join("sources.list"), sources).unwrap();
    let dockerfile = format!(
        "FROM {base}\n\
         LABEL {label}\n\
         COPY test.crt /usr/local/share/ca-certificates/\n\
         RUN update-ca-certificates\n\
         COPY sources.list /etc/apt/sources.list\n\
         RUN apt-get -q update && apt-get -q install -y probe && test \"$(cat /usr/share/doc/probe/answer)\" = 42\n\
         RUN pip download -q --no-deps --no-cache-dir --disable-pip-version-check --dest /tmp \
             --cert /usr/local/share/ca-certificates/test.crt --index-url https://pip.test:{pip}/simple/ probe\n\
         RUN test \"$(curl -fsS http://files.test:{http}/answer)\" = 42\n\
         RUN test \"$(curl -fsS https://files.test:{https}/answer)\" = 42\n\
         RUN ! curl -fsS https://telemetry.test/ 2> /told && grep -q 403 /told\n",
        base = images.base,
        label = images.label,
        pip = pip.port(),
        http = http.port(),
        https = https.port(),
    );
    fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
    let mut build = docker(&["build", "--no-cache", "--force-rm", "-t", &images.built]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        build.args(["--build-arg", &format!("{name}={}", proxy.url())]);
    }
    let (status, stdout, stderr) = run_within(build.arg(context.path()), BUILD);
    assert!(status.success(), "{stdout}{stderr}");

    let (status, records) = proxy.stop();
    assert!(status.success());
    let of = |host: &str| -> Vec<&Value> {
        let is_of = |record: &&Value| record["server.address"] == host;
        records.iter().filter(is_of).collect()
    };
    for record in &records {
        let client: IpAddr = record["client.address"].as_str().unwrap().parse().unwrap();
        assert!(subnet.contains(&client) && client != gateway, "{record:#}");
    }
    let expect = |host: &str, port: u16, action: &str, rule: &str| {
        let passed = json!({
            "server.port": port,
            "event.action": action,
            "event.outcome": "success",
            "egress.rule": rule,
            "egress.route": "direct",
        });
        // Among what apt asks for is also what is not there.
        let is_it = |record: &&Value| {
            let mut expected = passed.as_object().unwrap().iter();
            expected.all(|(key, value)| &record[key] == value)
        };
        let found = of(host).into_iter().find(is_it);
        let record = found.unwrap_or_else(|| panic!("no {passed} of {host} in {records:#?}"));
        assert!(
            record["destination.bytes"].as_u64().unwrap() > 0,
            "{record:#}"
        );
    };
    expect("apt.test", apt.port(), "forward", "packages");
    expect("pip.test", pip.port(), "connect", "packages");
    for (port, action) in [(http.port(), "forward"), (https.port(), "connect")] {
        expect("files.test", port, action, "files");
    }
    let by_apt = of("apt.test").into_iter().any(|record| {
        let agent = record["user_agent.original"].as_str().unwrap_or_default();
        agent.contains("APT") && record["http.response.status_code"] == 200
    });
    assert!(by_apt, "{records:#?}");
    let denied = of("telemetry.test");
    assert_eq!(denied.len(), 1, "{denied:#?}");
    assert_eq!(denied[0]["error.type"], "policy.denied.default");
    assert_eq!(denied[0]["http.response.status_code"], 403);
}

/// Whether the test can run here: a Docker Engine, and root to make a base image with.
fn is_ready() -> bool {
    let programs = ["docker", "debootstrap", "dpkg-deb", "python3", "tar"];
    let is_root = || nix::unistd::geteuid().is_root() || needs::lacks("root");
    programs.into_iter().all(needs::has) && is_root()
}

/// Docker's command, with its classic builder: the newer one is a part that not every engine has.
fn docker(args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.env("DOCKER_BUILDKIT", "0").args(args);
    command
}

/// The host's address on Docker's default bridge, and the network of its containers.
fn bridge() -> (IpAddr, IpNet) {
    let (status, stdout, stderr) = run(&mut docker(&["network", "inspect", "bridge"]));
    assert!(status.success(), "{stderr}");
    let networks: Value = serde_json::from_str(&stdout).unwrap();
    let config = &networks[0]["IPAM"]["Config"][0];
    let subnet: IpNet = config["Subnet"].as_str().unwrap().parse().unwrap();
    // Where no container ever ran the gateway may be left out: it is the first address.
    let gateway = config["Gateway"]
        .as_str()
        .map(|gateway| gateway.parse().unwrap());
    (
        gateway.unwrap_or_else(|| subnet.hosts().next().unwrap()),
        subnet,
    )
}

/// Images of a test's own. Dropped, they are removed, and what the build left of its steps.
struct Images {
    base: String,
    built: String,
    label: String,
}

impl Images {
    fn import(archive: &Path) -> Self {
        let id = std::process::id();
        let images = Self {
            base: format!("routecause-test-base:{id}"),
            built: format!("routecause-test-built:{id}"),
            label: format!("routecause.test={id}"),
        };
        let mut import = docker(&["import"]);
        let (status, _, stderr) = run_within(import.arg(archive).arg(&images.base), BUILD);
        assert!(status.success(), "{stderr}");
        images
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let label = format!("label={}", self.label);
        run(&mut docker(&["image", "rm", "-f", &self.built]));
        run(&mut docker(&[
            "container",
            "prune",
            "-f",
            "--filter",
            &label,
        ]));
        run(&mut docker(&["image", "prune", "-f", "--filter", &label]));
        run(&mut docker(&["image", "rm", "-f", &self.base]));
    }
}

/// A small system with apt, python3-pip and curl, from where this machine gets its own packages; made once.
fn base() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (mirror, suite) = mirror();
    let archive = cache.join(format!("base-{suite}.tar"));
    if archive.exists() {
        return archive;
    }
    let root = tempfile::tempdir_in(cache).unwrap();
    let mut bootstrap = Command::new("debootstrap");
    bootstrap
        .args([
            "--variant=minbase",
            "--include=ca-certificates,curl,python3-pip",
            &suite,
        ])
        .arg(root.path())
        .arg(&mirror);
    let (status, stdout, stderr) = run_within(&mut bootstrap, BOOTSTRAP);
    assert!(status.success(), "{stdout}{stderr}");
    let unfinished = archive.with_extension("unfinished");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&unfinished).arg("-C").arg(root.path());
    let left_out = [
        "./var/cache/apt/archives/*.deb",
        "./var/lib/apt/lists/*",
        "./usr/share/doc/*",
        "./usr/share/locale/*",
    ];
    tar.args(left_out.map(|pattern| format!("--exclude={pattern}")))
        .arg(".");
    let (status, _, stderr) = run_within(&mut tar, BUILD);
    assert!(status.success(), "{stderr}");
    fs::rename(unfinished, &archive).unwrap();
    archive
}

/// The mirror and suite of this machine's own system, as its apt is configured.
fn mirror() -> (String, String) {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite
        .expect("the system has a code name")
        .trim_matches('"')
        .to_owned();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten();
    files.extend(parts.map_while(Result::ok).map(|entry| entry.path()));
    for file in files {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mirror = if text.contains("URIs:") {
            of_stanzas(&text, &suite)
        } else {
            of_lines(&text, &suite)
        };
        if let Some(mirror) = mirror {
            return (mirror, suite);
        }
    }
    panic!("no source of {suite} in /etc/apt");
}

/// From `Types: deb`, `URIs: …`, `Suites: …`.
fn of_stanzas(text: &str, suite: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let words = |key: &str| {
            let line = stanza.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let is_it = words("Suites:").iter().any(|word| word == suite);
        if is_it {
            words("URIs:").into_iter().next()
        } else {
            None
        }
    })
}

/// From `deb [options] URI suite components`.
fn of_lines(text: &str, suite: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let words = line.strip_prefix("deb ")?;
        let words = words
            .rsplit(']')
            .next()?
            .split_whitespace()
            .collect::<Vec<_>>();
        (words.get(1) == Some(&suite)).then(|| words[0].to_owned())
    })
}
