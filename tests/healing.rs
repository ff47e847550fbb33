//! The TLS of the programs that people run, over a chain whose first hop interferes: none of them notices.
//!
//! Each is asked to fetch a page while the direct way answers its ClientHello with a reset, with an end, or with silence.
//! The route behind it is a plain proxy, and the page comes over TLS that nobody but the two ends can read.

mod support;

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::goods::{self, succeed};
use support::origin::{Listening, Origin};
use support::web::{self, Ca, Web};
use support::{Proxy, check, needs, run, tls, wire};
use tempfile::TempDir;

/// What the direct way does with a ClientHello, and what it is called.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Resets,
    Ends,
    IsSilent,
}

impl Deed {
    const ALL: [Self; 3] = [Self::Resets, Self::Ends, Self::IsSilent];

    fn cause(self) -> &'static str {
        match self {
            Self::Resets => "tls.reset_after_client_hello",
            Self::Ends => "tls.closed_after_client_hello",
            Self::IsSilent => "tls.no_server_hello",
        }
    }
}

/// How long the direct way may be silent.
const HELLO: Duration = Duration::from_secs(1);

/// A page behind two ways.
struct Scene {
    proxy: Proxy,
    ca: Ca,
    files: TempDir,
    home: TempDir,
    port: u16,
    healed: Arc<Mutex<Healed>>,
    _blocked: Origin,
    _relay: Origin,
    _web: Web,
}

/// When the direct way failed, and how much later each request went on over the other.
#[derive(Default)]
struct Healed {
    failed: Option<Instant>,
    gaps: Vec<Duration>,
}

impl Scene {
    fn new(deed: Deed) -> Self {
        let healed = Arc::new(Mutex::new(Healed::default()));
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("answer"), "42").unwrap();
        let ca = Ca::new();
        let web = Web::tls(&ca, &["files.test"], web::folder(files.path()));
        let noted = healed.clone();
        let blocked = Origin::serving(move |stream| {
            let _ = tls::read_record(&stream);
            noted.lock().unwrap().failed = Some(Instant::now());
            match deed {
                Deed::Resets => wire::reset(stream),
                Deed::Ends => drop(stream),
                Deed::IsSilent => tls::listen(&stream),
            }
            String::new()
        });
        let (noted, origin) = (healed.clone(), web.address);
        let relay = Origin::serving(move |client| {
            let mut healed = noted.lock().unwrap();
            let gap = healed.failed.take().map(|failed| failed.elapsed());
            healed.gaps.extend(gap);
            drop(healed);
            let head = wire::read_head(&client);
            let server = wire::connect(origin);
            wire::send(&client, "HTTP/1.1 200 OK\r\n\r\n");
            carry(&client, &server);
            head
        });
        // The port is that of the direct way; the plain proxy leads every name to the page.
        let proxy = Proxy::start(&format!(
            "version: 1\ndns: {{hosts: {{files.test: [127.0.0.1]}}}}\nupstreams: {{relay: {{url: 'http://{}'}}}}\n\
             defaults: {{timeouts: {{hello: 1s}}}}\nrules: []\ndefault: {{via: 'direct|relay'}}\n",
            relay.address
        ));
        Self {
            proxy,
            ca,
            files,
            home: tempfile::tempdir().unwrap(),
            port: blocked.address.port(),
            healed,
            _blocked: blocked,
            _relay: relay,
            _web: web,
        }
    }

    fn url(&self) -> String {
        format!("https://files.test:{}", self.port)
    }

    fn ca(&self) -> PathBuf {
        self.ca.file()
    }

    /// A program in a home of its own, told of the proxy by nothing but the usual variables.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            let is_setting = ["ssl_", "curl_", "go", "node_", "java_", "_java", "jdk_"]
                .iter()
                .any(|prefix| lower.starts_with(prefix));
            if is_setting || lower.ends_with("_proxy") {
                command.env_remove(&name);
            }
        }
        for name in ["https_proxy", "HTTPS_PROXY"] {
            command.env(name, self.proxy.url());
        }
        command
            .current_dir(self.home.path())
            .env("HOME", self.home.path());
        command
    }
}

/// Carries bytes both ways until both have ended.
fn carry(client: &TcpStream, server: &TcpStream) {
    let one_way = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| one_way(client, server));
        one_way(server, client);
    });
}

/// Lets a program fetch the page once by each kind of interference: it must get it, and the records must tell how.
#[track_caller]
fn heals(program: &str, needed: &[&str], fetch: impl Fn(&Scene) -> String) {
    if !needed.iter().all(|need| needs::has(need)) {
        return;
    }
    for deed in Deed::ALL {
        let scene = Scene::new(deed);
        let body = fetch(&scene);
        assert_eq!(body.trim(), "42", "{program} {deed:?}");
        let gaps = std::mem::take(&mut scene.healed.lock().unwrap().gaps);
        let (status, records) = scene.proxy.stop();
        assert!(
            status.success() && !records.is_empty(),
            "{program} {deed:?}"
        );
        for record in &records {
            healed(record, deed);
        }
        // What is added to the interference itself.
        let own = gaps.iter().map(|gap| match deed {
            Deed::Resets | Deed::Ends => *gap,
            // Of requests at once each has its own.
            Deed::IsSilent => gap.saturating_sub(HELLO),
        });
        let longest = own.max().unwrap();
        println!("{program}, {deed:?}: {longest:?} behind it");
    }
}

#[track_caller]
fn healed(record: &Value, deed: Deed) {
    check!(record,
        "event.outcome": "success", "egress.route": "direct|relay", "egress.hop": "relay", "error.type": null,
        "http.request.resend_count": 1, "tls.established": true);
    let attempts = record["egress.attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{record:#}");
    check!(&attempts[0], "hop": "direct", "cause": (deed.cause()));
    check!(&attempts[1], "hop": "relay", "cause": null);
}

#[test]
fn curl() {
    heals("curl", &["curl"], |scene| {
        let mut curl = scene.client("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert"])
            .arg(scene.ca())
            .arg(scene.url() + "/answer");
        succeed(&mut curl)
    });
}

#[test]
fn wget() {
    heals("wget", &["wget"], |scene| {
        let mut wget = scene.client("wget");
        wget.args(["-q", "-O", "-", "--tries=1", "--timeout=20"])
            .arg(format!("--ca-certificate={}", scene.ca().display()))
            .arg(scene.url() + "/answer");
        succeed(&mut wget)
    });
}

#[test]
fn pythons_urllib() {
    heals("python3", &["python3"], |scene| {
        let script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())";
        let mut python = scene.client("python3");
        python
            .env("SSL_CERT_FILE", scene.ca())
            .args(["-c", script, &(scene.url() + "/answer")]);
        succeed(&mut python)
    });
}

#[test]
fn node_by_a_connect_of_its_own() {
    const SCRIPT: &str = "\
const http = require('http'), https = require('https'), tls = require('tls');
const url = new URL(process.argv[1]), proxy = new URL(process.env.HTTPS_PROXY);
const connect = http.request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: url.host });
connect.on('connect', (answer, socket) => {
    if (answer.statusCode !== 200) throw new Error(`${answer.statusCode} ${answer.statusMessage}`);
    const createConnection = () => tls.connect({ socket, servername: url.hostname });
    const get = https.get(url, { createConnection }, page => page.pipe(process.stdout));
    get.on('error', error => { throw error; });
});
connect.end();
";
    heals("node", &["node"], |scene| {
        let mut node = scene.client("node");
        node.env("NODE_EXTRA_CA_CERTS", scene.ca()).args([
            "-e",
            SCRIPT,
            &(scene.url() + "/answer"),
        ]);
        succeed(&mut node)
    });
}

/// `java` alone runs no source: that is the JDK's.
#[test]
fn javas_http_client() {
    const SOURCE: &str = r#"
import java.io.FileInputStream;
import java.net.*;
import java.net.http.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

class Get {
    public static void main(String[] args) throws Exception {
        var trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (var file = new FileInputStream(args[1])) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        var managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(trusted);
        var context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        var proxy = URI.create(args[2]);
        var client = HttpClient.newBuilder().sslContext(context)
            .proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort()))).build();
        var answer = client.send(HttpRequest.newBuilder(URI.create(args[0])).build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.body());
    }
}
"#;
    let compiled = tempfile::tempdir().unwrap();
    if needs::is_installed("javac") {
        let source = compiled.path().join("Get.java");
        fs::write(&source, SOURCE).unwrap();
        succeed(Command::new("javac").arg(&source));
    }
    heals("java", &["javac"], |scene| {
        let mut java = scene.client("java");
        java.args(["-XX:TieredStopAtLevel=1", "-cp"])
            .arg(compiled.path())
            .args(["Get", &(scene.url() + "/answer")])
            .arg(scene.ca())
            .arg(scene.proxy.url());
        succeed(&mut java)
    });
}

/// The go command speaks TLS by `net/http`, like what it builds.
#[test]
fn gos_net_http() {
    heals("go", &["go", "python3"], |scene| {
        goods::go_module(scene.files.path());
        let mut go = scene.client("go");
        go.env("SSL_CERT_FILE", scene.ca())
            .env("GOPROXY", scene.url() + "/go")
            .envs([("GOSUMDB", "off"), ("GOFLAGS", "-modcacherw")])
            .args(["mod", "download", "-json", "probe.test/answer@v1.0.0"]);
        let told: Value = serde_json::from_str(&succeed(&mut go)).unwrap();
        let folder = PathBuf::from(told["Dir"].as_str().unwrap());
        fs::read_to_string(folder.join("answer")).unwrap()
    });
}

#[test]
fn openssl_s_client() {
    heals("openssl", &["openssl"], |scene| {
        let proxy = scene.proxy.address;
        let line = format!(
            "printf 'GET /answer HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet -verify_return_error -CAfile {} \
             -proxy {proxy} -connect files.test:{} -servername files.test",
            scene.ca().display(),
            scene.port
        );
        // It calls an end without a TLS goodbye a failure, which it is none of ours.
        let (_, answer, _) = run(scene.client("sh").args(["-c", &line]));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
        body.to_owned()
    });
}

/// The connection that fails is left at once: so much later the next hop is asked.
#[test]
fn a_reset_costs_milliseconds() {
    let hello = tls::long_hello("files.test", 517);
    for deed in [Deed::Resets, Deed::Ends] {
        let (blocked, relay) = (Listening::new(), Listening::new());
        let proxy = Proxy::start(&format!(
            "version: 1\nupstreams: {{relay: {{url: 'http://{}'}}}}\nrules: []\ndefault: {{via: 'direct|relay'}}\n",
            relay.address
        ));
        let gaps = (0..25).map(|_| {
            let client = proxy.connect();
            wire::send(
                &client,
                format!("CONNECT {} HTTP/1.1\r\n\r\n", blocked.address),
            );
            let first = blocked.accept();
            wire::read_head(&client);
            wire::send(&client, &hello);
            wire::read_exact(&first, hello.len());
            let failed = Instant::now();
            if deed == Deed::Resets {
                wire::reset(first);
            } else {
                drop(first);
            }
            let (second, _) = relay.hear();
            wire::send(&second, "HTTP/1.1 200 OK\r\n\r\n");
            wire::read_exact(&second, hello.len());
            let gap = failed.elapsed();
            wire::reset(client);
            gap
        });
        let mut gaps: Vec<_> = gaps.collect();
        gaps.sort();
        let median = gaps[gaps.len() / 2];
        println!("{deed:?}: the ClientHello is with the next hop {median:?} behind it");
        assert!(median < Duration::from_millis(100), "{gaps:?}");
    }
}
