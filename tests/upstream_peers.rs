//! Real proxies as upstreams: squid with its helpers, nghttpx before it over HTTP/2, tinyproxy, a SOCKS server.

mod support;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::origin::Origin;
use support::squid::{PASSWORD, Squid};
use support::tls::Leaf;
use support::web::{Ca, Web, answer};
use support::{Proxy, SOON, check, needs, run};

/// What curl prints for URLs through the proxy, over one connection where it can: bodies and statuses.
fn curl(proxy: &Proxy, args: &[&str]) -> String {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--max-time", "20", "-w", " %{http_code} "])
        .args(["-x", &proxy.url()])
        .args(args);
    let (_, stdout, stderr) = run(&mut command);
    stdout + &stderr
}

/// A program that listens. Dropped, it is ended.
struct Peer {
    child: Child,
    address: SocketAddr,
}

impl Peer {
    fn start(program: &str, args: impl Fn(SocketAddr) -> Vec<String>) -> Self {
        let address = Origin::free();
        let child = Command::new(needs::find(program).unwrap())
            .args(args(address))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut peer = Self { child, address };
        let deadline = tokio::time::Instant::now() + SOON;
        while TcpStream::connect(address).is_err() {
            let is_running = peer.child.try_wait().unwrap().is_none();
            assert!(
                is_running && tokio::time::Instant::now() < deadline,
                "{program} does not listen"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A helper of squid's.
fn helper(name: &str) -> String {
    let places = ["/usr/lib/squid/", "/usr/libexec/squid/"];
    let mut paths = places.iter().map(|place| format!("{place}{name}"));
    paths.find(|path| Path::new(path).exists()).unwrap()
}

const LOGIN: &str = "username: {file: user}, password: {file: pass}";

fn with_login(policy: &str) -> Proxy {
    Proxy::under(policy)
        .file("user", "alice\n")
        .file("pass", &format!("{PASSWORD}\n"))
        .start()
}

#[test]
fn squid_is_answered_by_digest_and_its_nonces_are_used_up() {
    if !["squid", "curl", "openssl"].into_iter().all(needs::has) {
        return;
    }
    let squid = Squid::start(&format!(
        "auth_param digest program {} {{folder}}/digest\n\
         auth_param digest children 1 startup=1 idle=1\n\
         auth_param digest realm test\n\
         auth_param digest nonce_max_count 3\n\
         auth_param digest check_nonce_count on\n\
         acl known proxy_auth REQUIRED\n\
         http_access deny !known\n",
        helper("digest_file_auth")
    ));
    let ca = Ca::new();
    let http = Web::plain(|_| answer(200, "plain"));
    let https = Web::tls(&ca, &["web.test"], |_| answer(200, "secret"));
    let proxy = with_login(&squid.policy(&format!(", auth: {{{LOGIN}}}")));
    let url = format!("http://web.test:{}/page", http.port());
    for _ in 0..8 {
        assert_eq!(curl(&proxy, &[&url]), "plain 200 ");
    }
    let posted = curl(&proxy, &["--data", "some text", &url]);
    assert_eq!(posted, "plain 200 ");
    let url = format!("https://web.test:{}/page", https.port());
    let trusting = ca.file();
    for _ in 0..4 {
        let args = ["--cacert", trusting.to_str().unwrap(), &url];
        assert_eq!(curl(&proxy, &args), "secret 200 ");
    }
    for record in proxy.records(13) {
        check!(&record, "event.outcome": "success", "egress.hop": "squid");
    }
    for seen in http.seen().into_iter().chain(https.seen()) {
        assert!(
            !seen.headers.contains_key("proxy-authorization"),
            "{seen:?}"
        );
    }
    let log = squid.log();
    let served = |line: &&str| line.contains("/200 ") && line.contains(" alice ");
    assert_eq!(log.lines().filter(served).count(), 13, "{log}");
    // Each nonce serves more than one request.
    assert!(log.matches("TCP_DENIED/407").count() < 9, "{log}");

    let wrong = Proxy::under(&squid.policy(&format!(", auth: {{{LOGIN}}}")))
        .file("user", "alice\n")
        .file("pass", "guess\n")
        .start();
    let url = format!("http://web.test:{}/page", http.port());
    assert!(curl(&wrong, &[&url]).ends_with(" 502 "));
    check!(&wrong.record(), "error.type": "upstream.auth_rejected", "egress.upstream.auth_schemes": ["Digest"]);
}

#[test]
fn nghttpx_carries_tunnels_over_http_2_to_squid() {
    if !["squid", "curl", "openssl", "nghttpx"]
        .into_iter()
        .all(needs::has)
    {
        return;
    }
    let squid = Squid::guarded();
    let ca = Ca::new();
    let identity = ca.identity(Leaf::Good, "proxy.example");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("cert"), identity.chain_pem()).unwrap();
    fs::write(at("key"), identity.key_pem()).unwrap();
    let nghttpx = Peer::start("nghttpx", |address| {
        vec![
            "--http2-proxy".to_owned(),
            "--workers=1".to_owned(),
            "--conf=/dev/null".to_owned(),
            format!("--frontend={},{}", address.ip(), address.port()),
            format!("--backend={},{}", squid.address.ip(), squid.address.port()),
            at("key"),
            at("cert"),
        ]
    });
    let https = Web::tls(&ca, &["web.test"], |_| answer(200, "s".repeat(300_000)));
    let http = Web::plain(|_| answer(200, "plain"));
    let policy = |http: &str| {
        format!(
            "version: 1\nupstreams: {{corp: {{url: 'https://{}', http: {http}, \
             tls: {{ca: ca.pem, server_name: proxy.example}}, auth: {{{LOGIN}}}}}}}\ndefault: {{via: corp}}\n",
            nghttpx.address
        )
    };
    let url = format!("https://web.test:{}/page", https.port());
    let trusting = ca.file();
    for version in ["2", "auto", "1"] {
        let proxy = Proxy::under(&policy(version))
            .file("ca.pem", &ca.pem())
            .file("user", "alice\n")
            .file("pass", &format!("{PASSWORD}\n"))
            .through("taskset", &["-c", "0"])
            .start();
        for _ in 0..3 {
            let args = [
                "--cacert",
                trusting.to_str().unwrap(),
                "-o",
                "/dev/null",
                &url,
            ];
            let told = curl(&proxy, &args);
            assert_eq!(told, " 200 ", "{version}: {:#?}", proxy.records_up_to(4));
        }
        let records = proxy.records(3);
        for record in &records {
            check!(record, "event.outcome": "success", "egress.hop": "corp");
        }
        let reused = |record: &&serde_json::Value| record["egress.attempts"][0]["reused"] == true;
        let expected = if version == "1" { 0 } else { 2 };
        assert_eq!(
            records.iter().filter(reused).count(),
            expected,
            "{version}: {records:#?}"
        );
        if version != "2" {
            let url = format!("http://web.test:{}/page", http.port());
            assert_eq!(curl(&proxy, &[&url]), "plain 200 ", "{version}");
        }
    }
}

#[test]
fn a_socks_server_carries_both_kinds_of_request() {
    if !["microsocks", "curl"].into_iter().all(needs::has) {
        return;
    }
    let socks = Peer::start("microsocks", |address| {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        ["-i", &ip, "-p", &port, "-u", "alice", "-P", PASSWORD]
            .map(str::to_owned)
            .to_vec()
    });
    let ca = Ca::new();
    let http = Web::plain(|_| answer(200, "plain"));
    let https = Web::tls(&ca, &["127.0.0.1"], |_| answer(200, "secret"));
    for scheme in ["socks5", "socks5h"] {
        let policy = format!(
            "version: 1\nguards: {{loopback: allow}}\nupstreams: {{socks: {{url: '{scheme}://{}', auth: {{{LOGIN}}}}}}}\ndefault: {{via: socks}}\n",
            socks.address
        );
        let proxy = with_login(&policy);
        let url = format!("http://127.0.0.1:{}/page", http.port());
        assert_eq!(curl(&proxy, &[&url, &url]), "plain 200 plain 200 ");
        let url = format!("https://127.0.0.1:{}/page", https.port());
        let trusting = ca.file();
        let args = ["--cacert", trusting.to_str().unwrap(), &url];
        assert_eq!(curl(&proxy, &args), "secret 200 ");
        for record in proxy.records(3) {
            check!(&record, "event.outcome": "success", "egress.hop": "socks", "egress.upstream.name": "socks");
        }
        let nowhere = format!("http://127.0.0.1:{}/", Origin::nowhere().port());
        assert!(curl(&proxy, &[&nowhere]).ends_with(" 502 "));
        check!(&proxy.record(), "error.type": "upstream.reported.connect", "egress.upstream.socks_reply": 5);
        let wrong = Proxy::under(&policy)
            .file("user", "alice\n")
            .file("pass", "guess\n")
            .start();
        assert!(curl(&wrong, &[&nowhere]).ends_with(" 502 "));
        check!(&wrong.record(), "error.type": "upstream.auth_rejected");
    }
}

#[test]
fn tinyproxy_carries_both_kinds_of_request_and_asks_who_we_are() {
    if !["tinyproxy", "curl"].into_iter().all(needs::has) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tinyproxy.conf");
    let path = file.display().to_string();
    let tinyproxy = Peer::start("tinyproxy", |address| {
        let config = format!(
            "Listen {}\nPort {}\nTimeout 60\nMaxClients 20\nLogLevel Critical\nAllow 127.0.0.1\nBasicAuth alice opensesame\n",
            address.ip(),
            address.port()
        );
        fs::write(&path, config).unwrap();
        ["-d", "-c", &path].map(str::to_owned).to_vec()
    });
    let ca = Ca::new();
    let http = Web::plain(|_| answer(200, "plain"));
    let https = Web::tls(&ca, &["127.0.0.1"], |_| answer(200, "secret"));
    let policy = |auth: &str| {
        format!(
            "version: 1\nguards: {{loopback: allow}}\nupstreams: {{corp: {{url: 'http://{}'{auth}}}}}\ndefault: {{via: corp}}\n",
            tinyproxy.address
        )
    };
    let plain = format!("http://127.0.0.1:{}/page", http.port());
    let secret = format!("https://127.0.0.1:{}/page", https.port());
    let trusting = ca.file();
    let trusting = ["--cacert", trusting.to_str().unwrap(), &secret];

    let known = Proxy::under(&policy(&format!(", auth: {{{LOGIN}}}")))
        .file("user", "alice\n")
        .file("pass", "opensesame\n")
        .start();
    for _ in 0..2 {
        assert_eq!(curl(&known, &[&plain]), "plain 200 ");
        assert_eq!(curl(&known, &["--data", "some text", &plain]), "plain 200 ");
        assert_eq!(curl(&known, &trusting), "secret 200 ");
    }
    for record in known.records(6) {
        check!(&record, "event.outcome": "success", "egress.hop": "corp");
    }
    let nowhere = format!("http://127.0.0.1:{}/", Origin::nowhere().port());
    assert!(curl(&known, &["-p", &nowhere]).contains("CONNECT tunnel failed"));
    check!(&known.record(), "egress.side": "upstream", "event.outcome": "failure");
    for seen in http.seen().into_iter().chain(https.seen()) {
        assert!(
            !seen.headers.contains_key("proxy-authorization"),
            "{seen:?}"
        );
    }

    let wrong = Proxy::under(&policy(&format!(", auth: {{{LOGIN}}}")))
        .file("user", "alice\n")
        .file("pass", "guess\n")
        .start();
    let unknown = Proxy::start(&policy(""));
    assert!(curl(&unknown, &[&plain]).ends_with(" 502 "));
    check!(&unknown.record(), "error.type": "upstream.auth_required", "egress.upstream.status": 407);
    for (proxy, status, cause) in [
        (&unknown, 407, "upstream.auth_required"),
        // It refuses by 401, and is told the password no more.
        (&wrong, 401, "upstream.auth_rejected"),
        (&wrong, 407, "upstream.auth_rejected"),
    ] {
        assert!(curl(proxy, &trusting).contains("CONNECT tunnel failed"));
        check!(&proxy.record(), "error.type": cause, "egress.upstream.status": status);
    }
    assert!(curl(&wrong, &[&plain]).ends_with(" 502 "));
    check!(&wrong.record(), "error.type": "upstream.auth_rejected", "egress.upstream.auth_schemes": ["Basic"]);
}
