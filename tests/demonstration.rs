//! What this proxy is for, in one story: a firewall on the direct way resets every TLS connection to one name, and the
//! company's own proxy is not so filtered. `direct|corp` gets through, without a setting of any client, and says why.
//!
//! The firewall is the kernel's, by the rule that people use; the proxy beyond it is squid; the clients are curl, git and
//! go, as they are. With `--no-capture` the test prints what README quotes.

mod support;

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use support::goods::{self, succeed};
use support::netns::{Net, be_punctual};
use support::web::{self, Ca, Web};
use support::{DIRECT, Proxy, SOON, check, needs, run};
use tempfile::TempDir;

/// The name that the firewall does not like.
const NAME: &str = "code.test";

/// Another, at the same address.
const OTHER: &str = "other.test";

/// Where squid is: beyond the firewall, which leaves its port alone.
const SQUID: &str = "10.2.0.2:3128";

/// As people write it.
const HEALING: &str = "\
version: 1
upstreams:
  corp: {url: http://10.2.0.2:3128}
rules: []
default: {via: direct|corp}
";

struct Scene {
    net: Net,
    ca: Ca,
    home: TempDir,
    origin: SocketAddr,
    _web: Web,
    _squid: Squid,
}

impl Scene {
    /// None where the machine cannot.
    fn new() -> Option<Self> {
        let needed = ["curl", "git", "go", "squid", "python3"];
        if !needed.into_iter().all(needs::has) {
            return None;
        }
        let net = Net::new()?;
        be_punctual();
        let origin = SocketAddr::new(net.address(), 443);
        let ca = Ca::new();
        let files = tempfile::tempdir().unwrap();
        let web = net
            .server
            .within(|| Web::tls_on(origin, &ca, &[NAME, OTHER], shop(files)));
        let squid = Squid::start(&net, origin);
        net.router.iptables(&format!(
            "-A FORWARD -p tcp --dport 443 -m string --algo kmp --string {NAME} -j REJECT --reject-with tcp-reset"
        ));
        Some(Self {
            net,
            ca,
            home: tempfile::tempdir().unwrap(),
            origin,
            _web: web,
            _squid: squid,
        })
    }

    /// A proxy beside the clients, which knows the address that DNS would give.
    fn proxy(&self, policy: &str) -> Proxy {
        let ip = self.origin.ip();
        let hosts = format!("dns: {{hosts: {{{NAME}: [{ip}], {OTHER}: [{ip}]}}}}\n");
        let policy = format!("{policy}{hosts}");
        Proxy::under(&policy).inside(&self.net.client).start()
    }

    /// Runs a line of a shell as somebody with nothing but `HTTPS_PROXY` and the authority's certificate; whether it went
    /// well, and what it said.
    fn shell(&self, proxy: &Proxy, line: &str) -> (bool, String) {
        let mut sh = self.net.client.command("sh");
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            let is_setting = ["ssl_", "curl_", "go", "git_"]
                .iter()
                .any(|prefix| lower.starts_with(prefix));
            if is_setting || lower.ends_with("_proxy") {
                sh.env_remove(&name);
            }
        }
        let home = tempfile::tempdir_in(self.home.path()).unwrap();
        sh.args(["-c", line])
            .current_dir(home.path())
            .env("HOME", home.path())
            .env("HTTPS_PROXY", proxy.url())
            .envs(
                ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"]
                    .map(|name| (name, self.ca.file())),
            )
            .envs([
                ("GIT_CONFIG_GLOBAL", "/dev/null"),
                ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ])
            .envs([("GOSUMDB", "off"), ("GOFLAGS", "-modcacherw")]);
        let (status, stdout, stderr) = run(&mut sh);
        let said = format!("{stdout}{stderr}");
        println!("$ {line}\n{}", said.trim_end());
        (status.success(), said)
    }
}

/// What people do all day.
const CURL: &str = "curl -sS https://code.test/answer";
const CLONE: &str = "git clone -q https://code.test/probe.git && cat probe/answer";
const DOWNLOAD: &str =
    "GOPROXY=https://code.test/go go mod download -json probe.test/answer@v1.0.0";

/// A page, a repository and a module proxy under one name.
fn shop(files: TempDir) -> impl Fn(&web::Request) -> web::Response + Send + Sync + 'static {
    fs::write(files.path().join("answer"), "42\n").unwrap();
    goods::git_repository(files.path(), "probe.git");
    goods::go_module(files.path());
    let programs = PathBuf::from(succeed(Command::new("git").arg("--exec-path")).trim());
    let git = web::git(&programs.join("git-http-backend"), files.path());
    let pages = web::folder(files.path());
    move |request| {
        let _kept = &files;
        if request.uri().path().starts_with("/probe.git") {
            git(request)
        } else {
            pages(request)
        }
    }
}

/// Squid, as a company runs it. Dropped, it is ended.
struct Squid {
    child: Child,
    folder: TempDir,
}

impl Squid {
    fn start(net: &Net, origin: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Started as root, squid goes on as a user of its own.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let path = folder.path().display();
        fs::write(
            folder.path().join("hosts"),
            format!("{} {NAME}\n", origin.ip()),
        )
        .unwrap();
        let config = format!(
            "http_port {SQUID}\nvisible_hostname squid.test\nhosts_file {path}/hosts\ndns_nameservers 127.0.0.1\n\
             pid_filename {path}/squid.pid\naccess_log none\ncache_log {path}/cache.log\ncoredump_dir {path}\n\
             shutdown_lifetime 0 seconds\nmax_filedescriptors 1024\nmemory_cache_shared off\npinger_enable off\n\
             cache deny all\nhttp_access allow all\n"
        );
        fs::write(folder.path().join("squid.conf"), config).unwrap();
        let program = needs::find("squid").unwrap();
        let child = (net.server)
            .command(program.to_str().unwrap())
            .args(["-N", "-f"])
            .arg(folder.path().join("squid.conf"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let squid = Self { child, folder };
        let deadline = Instant::now() + SOON;
        while !squid.diary().contains("Accepting HTTP Socket connections") {
            assert!(Instant::now() < deadline, "{}", squid.diary());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        squid
    }

    fn diary(&self) -> String {
        fs::read_to_string(self.folder.path().join("cache.log")).unwrap_or_default()
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The record in few words, as README quotes it.
fn tell(record: &Value) {
    let keys = [
        "event.outcome",
        "egress.route",
        "egress.hop",
        "error.type",
        "egress.side",
        "error.message",
        "egress.suspects",
        "http.request.resend_count",
    ];
    for key in keys {
        if !record[key].is_null() {
            println!("  {key}: {}", record[key]);
        }
    }
    for attempt in record["egress.attempts"].as_array().unwrap() {
        let [hop, address, cause, side] =
            ["hop", "address", "cause", "side"].map(|key| &attempt[key]);
        println!("  attempt: {hop} {address} {cause} {side}");
    }
}

#[test]
fn what_a_firewall_resets_by_name_gets_through_by_the_next_hop() {
    let Some(scene) = Scene::new() else { return };
    println!("# default: {{direct: true}}");
    let direct = scene.proxy(DIRECT);
    direct_is_filtered(&scene, &direct);
    let (is_well, said) = scene.shell(&direct, "curl -sS https://other.test/answer");
    assert!(is_well && said == "42\n", "{said}");
    check!(&direct.record(), "event.outcome": "success");
    // Once may be an accident.
    let record = direct_is_filtered(&scene, &direct);
    check!(&record["egress.suspects"][0], "name": "sni_filtering");
    tell(&record);
    assert!(!scene.shell(&direct, CLONE).0);
    assert!(!scene.shell(&direct, DOWNLOAD).0);
    for record in direct.stop().1 {
        check!(&record, "event.outcome": "failure", "error.type": "tls.reset_after_client_hello");
    }

    println!("# default: {{via: direct|corp}}");
    let healing = scene.proxy(HEALING);
    for (line, answer) in [(CURL, "42\n"), (CLONE, "42\n"), (DOWNLOAD, "v1.0.0.zip")] {
        let (is_well, said) = scene.shell(&healing, line);
        assert!(is_well && said.contains(answer), "{line}: {said}");
    }
    let (status, records) = healing.stop();
    assert!(status.success() && records.len() >= 3);
    tell(&records[0]);
    for record in &records {
        check!(record,
            "event.outcome": "success", "server.address": NAME, "egress.route": "direct|corp", "egress.hop": "corp",
            "network.peer.address": "10.2.0.2", "http.request.resend_count": 1, "tls.established": true);
        let attempts = record["egress.attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 2, "{record:#}");
        check!(&attempts[0],
            "hop": "direct", "address": (scene.origin.to_string()), "cause": "tls.reset_after_client_hello", "side": "network");
        check!(&attempts[1], "hop": "corp", "address": SQUID, "cause": null);
    }
}

/// Asks for what the firewall does not like; the record, which tells what happened and who it was.
#[track_caller]
fn direct_is_filtered(scene: &Scene, direct: &Proxy) -> Value {
    let (is_well, said) = scene.shell(direct, CURL);
    assert!(!is_well && said.contains("reset by peer"), "{said}");
    let record = direct.record();
    check!(&record,
        "error.type": "tls.reset_after_client_hello", "egress.side": "network", "egress.hop": "direct",
        "tls.client.server_name": NAME, "egress.reset.last_write_acked": false);
    record
}

/// README tells the same story.
#[test]
fn readme_quotes_the_policy_and_the_commands() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    assert!(readme.contains(HEALING), "{HEALING}");
    for line in [CURL, CLONE, DOWNLOAD] {
        assert!(readme.contains(&format!("\n$ {line}\n")), "{line}");
    }
}
