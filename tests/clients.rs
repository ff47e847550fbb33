//! The programs that people run behind the proxy, as they run them: what they fetch, and what is recorded of it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::goods::{self, succeed};
use support::needs;
use support::web::{self, Ca, Web};
use support::{Proxy, run};
use tempfile::TempDir;

/// Tools do not proxy loopback addresses, so the servers have a name that only the proxy knows.
const POLICY: &str = "\
version: 1
dns: {hosts: {files.test: [127.0.0.1]}}
rules:
  - {name: files, match: {host: files.test}, direct: true}
default: {block: {reason: 'a test asks for nothing else'}}
";

/// A proxy, and a folder that is served behind it over http and https.
struct Scene {
    proxy: Proxy,
    ca: Ca,
    http: Web,
    https: Web,
    files: TempDir,
    /// For what a client writes.
    home: TempDir,
}

impl Scene {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        Self {
            proxy: Proxy::start(POLICY),
            http: Web::plain(web::folder(files.path())),
            https: Web::tls(&ca, &["files.test"], web::folder(files.path())),
            ca,
            files,
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn http(&self) -> String {
        format!("http://files.test:{}", self.http.port())
    }

    fn https(&self) -> String {
        format!("https://files.test:{}", self.https.port())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.files.path().join(name), content).unwrap();
    }

    fn ca_file(&self) -> PathBuf {
        self.ca.file()
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    /// A program in a home of its own, told of the proxy by nothing but the usual variables.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            let is_setting = ["pip_", "npm_", "git_", "ssl_", "requests_", "curl_"]
                .iter()
                .any(|prefix| lower.starts_with(prefix));
            if is_setting || lower.ends_with("_proxy") {
                command.env_remove(&name);
            }
        }
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env(name, self.proxy.url());
        }
        command.current_dir(self.home()).env("HOME", self.home());
        command
    }

    /// Ends the proxy. There must be records, all of requests that went well, straight to the served ports, with bytes;
    /// action and port of each.
    #[track_caller]
    fn passed(self) -> Vec<(String, u64)> {
        let (http, https) = (self.http.port(), self.https.port());
        let (status, records) = self.proxy.stop();
        assert!(status.success());
        assert!(!records.is_empty());
        let passed = records.iter().map(|record| {
            let text = |key: &str| record[key].as_str().unwrap_or_default();
            let number = |key: &str| record[key].as_u64().unwrap_or_default();
            assert_eq!(text("event.outcome"), "success", "{record:#}");
            assert_eq!(text("server.address"), "files.test", "{record:#}");
            assert_eq!(text("egress.rule"), "files", "{record:#}");
            assert_eq!(text("egress.route"), "direct", "{record:#}");
            assert_eq!(text("egress.hop"), "direct", "{record:#}");
            // A kept connection needs no look-up.
            if record["egress.attempts"][0]["reused"] != true {
                assert_eq!(text("egress.dns.source"), "pin", "{record:#}");
            }
            let bytes = (number("source.bytes"), number("destination.bytes"));
            assert_ne!(bytes, (0, 0), "{record:#}");
            let action = text("event.action").to_owned();
            let port = number("server.port");
            if action == "connect" {
                assert_eq!(port, u64::from(https), "{record:#}");
                assert!(bytes.0 > 0 && bytes.1 > 0, "{record:#}");
            } else {
                assert_eq!(port, u64::from(http), "{record:#}");
                assert_eq!(record["http.response.status_code"], 200, "{record:#}");
            }
            (action, port)
        });
        passed.collect()
    }

    /// The same, for a client that used only one of the two ways.
    #[track_caller]
    fn passed_only_by(self, action: &str) -> usize {
        let passed = self.passed();
        let others = passed.iter().filter(|(other, _)| other != action).count();
        assert_eq!(others, 0, "{passed:?}");
        passed.len()
    }
}

#[test]
fn curl_by_flag_and_by_variable() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::new();
    scene.file("answer", "42");
    for base in [scene.http(), scene.https()] {
        let url = format!("{base}/answer");
        let curl = || {
            let mut curl = scene.client("curl");
            curl.args(["-sS", "--max-time", "20", "--cacert"])
                .arg(scene.ca_file());
            curl
        };
        assert_eq!(succeed(curl().arg(&url)), "42");
        let mut by_flag = curl();
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            by_flag.env_remove(name);
        }
        assert_eq!(
            succeed(by_flag.args(["-x", &scene.proxy.url(), &url])),
            "42"
        );
    }
    assert_eq!(scene.passed().len(), 4);
}

#[test]
fn curl_uploads_and_gets_it_all_back() {
    if !needs::has("curl") {
        return;
    }
    let echo = Web::plain(|request| web::answer(200, request.body().clone()));
    let scene = Scene::new();
    let big = vec![b'x'; 3 << 20];
    fs::write(scene.home().join("big"), &big).unwrap();
    let url = format!("http://files.test:{}/", echo.port());
    let mut curl = scene.client("curl");
    // Behind 1 MiB curl says `Expect: 100-continue`.
    curl.args(["-sS", "-T", "big", "-o", "back", &url]);
    succeed(&mut curl);
    assert!(fs::read(scene.home().join("back")).unwrap() == big);
    let record = scene.proxy.record();
    assert_eq!(record["source.bytes"], big.len());
    assert_eq!(record["destination.bytes"], big.len());
}

#[test]
fn curl_names_the_cause_of_a_refusal() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::new();
    for url in ["http://other.test/", "https://other.test/"] {
        let mut curl = scene.client("curl");
        let (_, _, stderr) = run(curl.args(["-sSv", "--max-time", "20", url]));
        assert!(
            stderr.contains("HTTP/1.1 403 policy.denied.default: "),
            "{stderr}"
        );
        let record = scene.proxy.record();
        assert_eq!(record["error.type"], "policy.denied.default");
        assert!(
            stderr.contains(record["event.id"].as_str().unwrap()),
            "{stderr}"
        );
    }
}

#[test]
fn git_clones_from_files_over_http_and_https() {
    if !needs::has("git") {
        return;
    }
    let scene = Scene::new();
    goods::git_repository(scene.files.path(), "probe.git");
    for (base, to) in [(scene.http(), "plain"), (scene.https(), "tunnel")] {
        succeed(&mut git(
            &scene,
            &["clone", "-q", &format!("{base}/probe.git"), to],
        ));
        let answer = fs::read_to_string(scene.home().join(to).join("answer")).unwrap();
        assert_eq!(answer, "42\n");
    }
    let (_, records) = scene.proxy.stop();
    // It asks for a `packed-refs` or alternates that may not be there.
    let is_well = |record: &Value| {
        record["event.outcome"] == "success" || record["error.type"] == "http.status.404"
    };
    assert!(records.iter().all(is_well), "{records:#?}");
    let of = |action: &str| {
        records
            .iter()
            .filter(|record| record["event.action"] == action)
            .count()
    };
    assert!(of("forward") > 3 && of("connect") > 0, "{records:#?}");
}

#[test]
fn git_clones_and_pushes_by_its_smart_protocol() {
    if !needs::has("git") {
        return;
    }
    let folder = PathBuf::from(succeed(Command::new("git").arg("--exec-path")).trim());
    let program = folder.join("git-http-backend");
    if !program.is_file() {
        println!("skipped: needs git-http-backend");
        return;
    }
    let mut scene = Scene::new();
    goods::git_repository(scene.files.path(), "probe.git");
    scene.http = Web::plain(web::git(&program, scene.files.path()));
    scene.https = Web::tls(
        &scene.ca,
        &["files.test"],
        web::git(&program, scene.files.path()),
    );
    for (base, to) in [(scene.http(), "plain"), (scene.https(), "tunnel")] {
        succeed(&mut git(
            &scene,
            &["clone", "-q", &format!("{base}/probe.git"), to],
        ));
        let work = scene.home().join(to);
        // Over `http.postBuffer` the pack goes out in chunks; it must not compress away.
        let noise: Vec<u8> = (0..300_000_u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        fs::write(work.join(to), noise).unwrap();
        goods::git(&work, &["add", "."]);
        goods::git(&work, &["commit", "-qm", "noise"]);
        let args = [
            "-C",
            to,
            "-c",
            "http.postBuffer=65536",
            "push",
            "-q",
            "origin",
            "main",
        ];
        succeed(&mut git(&scene, &args));
    }
    let sent: Vec<String> = scene
        .http
        .seen()
        .into_iter()
        .map(|seen| seen.line)
        .collect();
    assert!(
        sent.contains(&"POST /probe.git/git-receive-pack".to_owned()),
        "{sent:?}"
    );
    let passed = scene.passed();
    assert!(
        passed.iter().any(|(action, _)| action == "forward"),
        "{passed:?}"
    );
    assert!(
        passed.iter().any(|(action, _)| action == "connect"),
        "{passed:?}"
    );
}

fn git(scene: &Scene, args: &[&str]) -> Command {
    let mut git = scene.client("git");
    git.env("GIT_SSL_CAINFO", scene.ca_file())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .args(args);
    git
}

#[test]
fn pip_downloads_from_an_index_over_https() {
    if !needs::has_python("pip", "pip") {
        return;
    }
    let scene = Scene::new();
    goods::python_index(scene.files.path());
    let mut pip = scene.client("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "-q",
        "--isolated",
        "--no-deps",
        "--no-cache-dir",
    ])
    .args(["--disable-pip-version-check", "--retries", "0", "--cert"])
    .arg(scene.ca_file())
    .args([
        "--index-url",
        &format!("{}/simple/", scene.https()),
        "probe",
    ]);
    // `--isolated` ignores PIP_*, not the proxy variables.
    succeed(&mut pip);
    assert!(scene.home().join("probe-1.0.0-py3-none-any.whl").is_file());
    let lines: Vec<_> = scene
        .https
        .seen()
        .into_iter()
        .map(|seen| seen.line)
        .collect();
    assert_eq!(
        lines,
        [
            "GET /simple/probe/",
            "GET /simple/probe/probe-1.0.0-py3-none-any.whl"
        ]
    );
    scene.passed_only_by("connect");
}

#[test]
fn pythons_urllib_asks_over_http_and_https() {
    if !needs::has("python3") {
        return;
    }
    let scene = Scene::new();
    scene.file("answer", "42");
    let script = "\
import sys, urllib.request
for url in sys.argv[1:]:
    print(urllib.request.urlopen(url, timeout=20).read().decode())
";
    let urls = [scene.http() + "/answer", scene.https() + "/answer"];
    let mut python = scene.client("python3");
    python
        .env("SSL_CERT_FILE", scene.ca_file())
        .args(["-c", script])
        .args(urls);
    assert_eq!(succeed(&mut python), "42\n42\n");
    assert_eq!(scene.passed().len(), 2);
}

#[test]
fn pythons_urllib_prints_the_cause() {
    if !needs::has("python3") {
        return;
    }
    let scene = Scene::new();
    for (url, told) in [
        (
            "http://other.test/",
            "HTTP Error 403: policy.denied.default: ",
        ),
        (
            "https://other.test/",
            "Tunnel connection failed: 403 policy.denied.default: ",
        ),
    ] {
        let script = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=20)";
        let (_, _, stderr) = run(scene.client("python3").args(["-c", script, url]));
        assert!(stderr.contains(told), "{stderr}");
        scene.proxy.record();
    }
}

#[test]
fn pythons_requests_shares_a_session() {
    if !needs::has_python("requests", "python3-requests") {
        return;
    }
    let scene = Scene::new();
    scene.file("answer", "42");
    let script = "\
import sys, requests
with requests.Session() as session:
    for url in sys.argv[1:] * 2:
        print(session.get(url, timeout=20).text)
";
    let urls = [scene.http() + "/answer", scene.https() + "/answer"];
    let mut python = scene.client("python3");
    python
        .env("REQUESTS_CA_BUNDLE", scene.ca_file())
        .args(["-c", script])
        .args(urls);
    assert_eq!(succeed(&mut python), "42\n42\n42\n42\n");
    // Two plain requests, and one tunnel for the other two.
    let passed = scene.passed();
    let tunnels = passed
        .iter()
        .filter(|(action, _)| action == "connect")
        .count();
    assert_eq!((passed.len(), tunnels), (3, 1), "{passed:?}");
}

#[test]
fn cargo_fetches_from_a_sparse_registry() {
    // Where tests run, cargo is.
    let scene = Scene::new();
    goods::cargo_registry(scene.files.path(), &scene.https());
    let package = scene.home().join("user");
    fs::create_dir_all(package.join("src")).unwrap();
    fs::write(package.join("src/lib.rs"), "").unwrap();
    let manifest = "[package]\nname = \"user\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
                    [dependencies]\nprobe = { version = \"1\", registry = \"test\" }\n[workspace]\n";
    fs::write(package.join("Cargo.toml"), manifest).unwrap();
    let mut cargo = scene.client(env!("CARGO"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_")) {
        cargo.env_remove(name);
    }
    cargo
        .env("CARGO_HOME", scene.home().join("cargo"))
        .env("CARGO_HTTP_CAINFO", scene.ca_file())
        .env(
            "CARGO_REGISTRIES_TEST_INDEX",
            format!("sparse+{}/crates/", scene.https()),
        )
        .args(["fetch", "-q", "--manifest-path"])
        .arg(package.join("Cargo.toml"));
    succeed(&mut cargo);
    let lines: Vec<_> = scene
        .https
        .seen()
        .into_iter()
        .map(|seen| seen.line)
        .collect();
    assert_eq!(
        lines,
        [
            "GET /crates/config.json",
            "GET /crates/pr/ob/probe",
            "GET /crates/probe.crate"
        ]
    );
    scene.passed_only_by("connect");
}

#[test]
fn npm_packs_from_a_registry() {
    if !needs::has("npm") {
        return;
    }
    let scene = Scene::new();
    goods::npm_registry(scene.files.path(), &scene.https());
    let mut npm = scene.client("npm");
    npm.args([
        "pack",
        "probe",
        "--silent",
        "--no-update-notifier",
        "--fetch-retries=0",
    ])
    .args(["--registry", &format!("{}/npm/", scene.https()), "--cafile"])
    .arg(scene.ca_file());
    assert_eq!(succeed(&mut npm), "probe-1.0.0.tgz\n");
    scene.passed_only_by("connect");
}

#[test]
fn apt_updates_and_downloads_over_http_and_https() {
    if !needs::has("apt-get") || !needs::has("dpkg-deb") {
        return;
    }
    let scene = Scene::new();
    goods::apt_repository(scene.files.path());
    for base in [scene.http(), scene.https()] {
        let root = scene.home.path().join("apt");
        for folder in [
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/trusted.gpg.d",
            "state/lists/partial",
            "cache/archives/partial",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("status"), "").unwrap();
        fs::write(
            root.join("etc/apt/sources.list"),
            format!("deb [trusted=yes] {base}/apt ./\n"),
        )
        .unwrap();
        let config = format!(
            "Dir::Etc \"{0}/etc/apt\";\nDir::State \"{0}/state\";\nDir::State::status \"{0}/status\";\n\
             Dir::Cache \"{0}/cache\";\nDir::Log \"{0}\";\nAPT::Sandbox::User \"\";\nAcquire::Retries \"0\";\n\
             Acquire::Languages \"none\";\nAcquire::https::CaInfo \"{1}\";\n",
            root.display(),
            scene.ca_file().display()
        );
        fs::write(root.join("apt.conf"), config).unwrap();
        for args in [&["update"][..], &["download", "probe"]] {
            let mut apt = scene.client("apt-get");
            apt.env("APT_CONFIG", root.join("apt.conf"))
                .args(["-q", "-o", "APT::Update::Error-Mode=any"])
                .args(args);
            succeed(&mut apt);
        }
        let package = fs::read_dir(scene.home()).unwrap().map_while(Result::ok);
        let package = package
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "deb"));
        fs::remove_file(package.expect("apt downloaded the package")).unwrap();
        fs::remove_dir_all(root).unwrap();
    }
    let lines: Vec<_> = scene
        .http
        .seen()
        .into_iter()
        .map(|seen| seen.line)
        .collect();
    assert!(
        lines.iter().any(|line| line.contains("probe.deb")),
        "{lines:?}"
    );
    let lines: Vec<_> = scene
        .https
        .seen()
        .into_iter()
        .map(|seen| seen.line)
        .collect();
    assert!(
        lines.iter().any(|line| line.contains("probe.deb")),
        "{lines:?}"
    );
    // It asks for signed indexes and compressed ones first.
    let (_, records) = scene.proxy.stop();
    let is_well = |record: &Value| {
        record["event.outcome"] == "success" || record["error.type"] == "http.status.404"
    };
    assert!(records.iter().all(is_well), "{records:#?}");
    let of = |action: &str| {
        records
            .iter()
            .filter(|record| record["event.action"] == action)
            .count()
    };
    assert!(of("forward") > 1 && of("connect") > 0, "{records:#?}");
}
