//! `preflight: tls`: what a client is told in the answer to its CONNECT, and what a tunnel behind a good one is like.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use serde_json::Value;

use support::origin::{Listening, Origin};
use support::{Proxy, check, needs, run, wire};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn authority(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    Ca::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn names(host: &str) -> CertificateParams {
    CertificateParams::new(vec![host.to_owned()]).unwrap()
}

fn config(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<ServerConfig> {
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

fn signed(params: &CertificateParams, ca: &Ca) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    config(
        vec![params.signed_by(&key, ca).unwrap().der().clone()],
        &key,
    )
}

/// Serves TLS; hears what comes until the peer ends in order, and says it back.
fn tls(config: Arc<ServerConfig>) -> Origin {
    Origin::serving(move |stream| {
        let server = ServerConnection::new(config.clone()).unwrap();
        let mut stream = StreamOwned::new(server, stream);
        let mut text = String::new();
        match stream.read_to_string(&mut text) {
            Ok(_) => {
                // A peer that has closed does not listen any more.
                let _ = stream.write_all(text.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
                text
            }
            Err(error) => format!("error: {error}"),
        }
    })
}

/// A proxy that looks before it grants a tunnel to `a.example`, and trusts one authority.
struct Careful {
    proxy: Proxy,
    _folder: tempfile::TempDir,
}

impl Careful {
    fn trusting(ca: &Ca) -> Self {
        Self::waiting(ca, "")
    }

    fn waiting(ca: &Ca, timeouts: &str) -> Self {
        Self::under(
            ca,
            &format!(
                "version: 1\n\
             defaults: {{timeouts: {{{timeouts}}}}}\n\
             dns: {{hosts: {{a.example: [127.0.0.1]}}}}\n\
             rules: [{{name: careful, match: {{host: a.example}}, direct: true, preflight: tls}}]\n\
             default: {{direct: true}}\n"
            ),
        )
    }

    fn under(ca: &Ca, policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, ca.pem()).unwrap();
        let proxy = Proxy::under(policy)
            .env("SSL_CERT_FILE", file.to_str().unwrap())
            .env("SSL_CERT_DIR", "")
            .start();
        Self {
            proxy,
            _folder: folder,
        }
    }

    fn ask(&self, port: u16) -> (TcpStream, String) {
        let client = self.proxy.connect();
        let target = format!("a.example:{port}");
        wire::send(
            &client,
            format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
        );
        let head = wire::read_head(&client);
        (client, head)
    }

    /// Asks for a tunnel that must be refused for `cause`, and gives the record.
    #[track_caller]
    fn refuses(&self, port: u16, status: u16, cause: &str, token: &str, side: &str) -> Value {
        let (_client, head) = self.ask(port);
        let line = format!("HTTP/1.1 {status} {cause}: handshake with a.example:{port}: ");
        assert!(head.starts_with(&line), "{head}");
        let field = wire::field(&head, "proxy-status").unwrap();
        assert!(field.contains(&format!("; error={token}; ")), "{field}");
        assert!(field.contains(&format!("details=\"{cause}: ")), "{field}");
        let record = self.proxy.record();
        check!(
            &record,
            "error.type": cause,
            "event.outcome": "failure",
            "http.response.status_code": status,
            "egress.phase": "tls",
            "egress.side": side,
            "egress.notes": ["preflight"],
        );
        let attempts = record["egress.attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 1, "{record:#}");
        check!(&attempts[0], "hop": "direct", "cause": cause);
        record
    }
}

#[test]
fn a_bad_certificate_is_the_answer_to_the_connect() {
    let ca = authority("routecause test authority");
    let careful = Careful::trusting(&ca);
    let key = KeyPair::generate().unwrap();
    let own = names("a.example").self_signed(&key).unwrap();
    let mut expired = names("a.example");
    expired.not_after = rcgen::date_time_ymd(2020, 2, 1);
    let mut early = names("a.example");
    early.not_before = rcgen::date_time_ymd(3000, 1, 1);
    let cases = [
        (signed(&expired, &ca), "expired", "origin"),
        (signed(&early, &ca), "not_yet_valid", "origin"),
        (signed(&names("b.example"), &ca), "name_mismatch", "origin"),
        (
            signed(&names("a.example"), &authority("nobody")),
            "unknown_issuer",
            "origin",
        ),
        (
            signed(&names("a.example"), &authority("Zscaler Root CA")),
            "known_interceptor",
            "network",
        ),
        (
            config(vec![own.der().clone()], &key),
            "self_signed",
            "origin",
        ),
    ];
    for (config, verdict, side) in cases {
        let server = tls(config);
        let cause = format!("tls.cert.{verdict}");
        let token = "tls_certificate_error";
        let record = careful.refuses(server.address.port(), 502, &cause, token, side);
        check!(&record, "egress.tls.certificate": verdict, "egress.tls.state": "T4");
        let hash = record["tls.server.hash.sha256"].as_str().unwrap();
        assert_eq!(hash.len(), 64, "{record:#}");
    }
}

#[test]
fn the_certificates_facts_are_in_the_record_and_its_fault_in_the_message() {
    let ca = authority("routecause test authority");
    let careful = Careful::trusting(&ca);
    let mut params = names("b.example");
    params
        .distinguished_name
        .push(DnType::CommonName, "the server");
    let server = tls(signed(&params, &ca));
    let port = server.address.port();
    let record = careful.refuses(
        port,
        502,
        "tls.cert.name_mismatch",
        "tls_certificate_error",
        "origin",
    );
    check!(
        &record,
        "tls.server.subject": "CN=the server",
        "tls.server.issuer": "CN=routecause test authority",
        "tls.server.not_before": "1975-01-01T00:00:00Z",
        "error.message": (format!("handshake with a.example:{port}: the certificate is for b.example")),
    );
}

#[test]
fn python_and_curl_print_the_cause() {
    let ca = authority("routecause test authority");
    let careful = Careful::trusting(&ca);
    let server = tls(signed(&names("b.example"), &ca));
    let url = format!("https://a.example:{}/", server.address.port());
    let expected = "502 tls.cert.name_mismatch: handshake with a.example:";
    if needs::has("python3") {
        let script = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])";
        let mut python = Command::new("python3");
        python.args(["-c", script, &url]);
        let (_, _, stderr) = run(python.env("https_proxy", careful.proxy.url()));
        assert!(stderr.contains(expected), "{stderr}");
    }
    if needs::has("curl") {
        let mut curl = Command::new("curl");
        let (_, _, stderr) = run(curl.args(["-sv", "-x", &careful.proxy.url(), &url]));
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn a_reset_behind_the_client_hello_is_told() {
    let careful = Careful::trusting(&authority("a"));
    let origin = Listening::new();
    let port = origin.address.port();
    let served = std::thread::spawn(move || {
        // Its acknowledgement shall be there first: on another CPU's queue the reset may overtake it.
        support::tls::resets_after_the_hello(origin.accept(), Duration::from_millis(50));
    });
    let record = careful.refuses(
        port,
        502,
        "tls.reset_after_client_hello",
        "connection_terminated",
        "origin",
    );
    check!(&record,
        "egress.tls.state": "T2", "tls.client.server_name": "a.example", "egress.tcp.server.close": "rst",
        "egress.tcp.server.errno": "ECONNRESET", "egress.reset.last_write_acked": true, "egress.reset.accept_race": false,
    );
    served.join().unwrap();
}

#[test]
fn an_end_behind_the_client_hello_is_told() {
    let careful = Careful::trusting(&authority("a"));
    let origin = Origin::serving(|stream| {
        let head = wire::read_exact(&stream, 5);
        wire::read_exact(&stream, usize::from(u16::from_be_bytes([head[3], head[4]])));
        String::new()
    });
    let port = origin.address.port();
    let cause = "tls.closed_after_client_hello";
    careful.refuses(port, 502, cause, "connection_terminated", "unknown");
}

#[test]
fn plain_http_on_the_port_is_quoted() {
    let careful = Careful::trusting(&authority("a"));
    let origin = Origin::serving(|stream| {
        wire::read_exact(&stream, 1);
        wire::send(&stream, "HTTP/1.1 400 Bad Request\r\n\r\n");
        String::new()
    });
    let port = origin.address.port();
    let cause = "tls.not_tls_reply";
    let record = careful.refuses(port, 502, cause, "tls_protocol_error", "unknown");
    check!(&record, "egress.tls.reply_status": 400);
    let message = record["error.message"].as_str().unwrap();
    assert!(
        message.contains("it says \"HTTP/1.1 400 Bad Request\""),
        "{message}"
    );
}

#[test]
fn an_alert_is_told_by_its_name_and_number() {
    let careful = Careful::trusting(&authority("a"));
    let origin = Origin::serving(|stream| {
        wire::read_exact(&stream, 1);
        wire::send(&stream, [21, 3, 3, 0, 2, 2, 112]);
        String::new()
    });
    let port = origin.address.port();
    let cause = "tls.alert_from_server.unrecognized_name";
    let record = careful.refuses(port, 502, cause, "tls_alert_received", "origin");
    check!(&record, "egress.tls.alert": 112, "egress.tls.alert_from": "server");
    let (_client, head) = careful.ask(port);
    let field = wire::field(&head, "proxy-status").unwrap();
    let told = "; alert-id=112; alert-message=\"unrecognized_name\"";
    assert!(field.contains(told), "{field}");
}

#[test]
fn a_server_that_falls_silent_is_waited_for_no_longer_than_hello() {
    let careful = Careful::waiting(&authority("a"), "hello: 300ms");
    let origin = Listening::new();
    let port = origin.address.port();
    let cause = "tls.no_server_hello";
    let record = careful.refuses(port, 504, cause, "connection_read_timeout", "unknown");
    let message = record["error.message"].as_str().unwrap();
    assert!(message.ends_with("for 300ms"), "{message}");
}

#[test]
fn a_tunnel_behind_a_good_handshake_has_a_connection_of_its_own() {
    let ca = authority("routecause test authority");
    let careful = Careful::trusting(&ca);
    let server = tls(signed(&names("a.example"), &ca));
    let (client, head) = careful.ask(server.address.port());
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(
        server.heard(),
        "",
        "the first connection ends with close_notify"
    );
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "a.example".try_into().unwrap();
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(tls, client);
    stream.write_all(b"hello").unwrap();
    stream.conn.send_close_notify();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
    drop(stream);
    assert_eq!(server.heard(), "hello");
    let record = careful.proxy.record();
    check!(
        &record,
        "event.outcome": "success",
        "egress.notes": ["preflight"],
        "egress.tls.certificate": "valid",
        "tls.server.issuer": "CN=routecause test authority",
    );
    let attempts = record["egress.attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{record:#}");
    assert!(
        attempts.iter().all(|attempt| attempt["cause"].is_null()),
        "{record:#}"
    );
}

#[test]
fn the_way_through_an_upstream_is_tried_through_it() {
    let ca = authority("routecause test authority");
    let server = tls(signed(&names("b.example"), &ca));
    let upstream = Proxy::start(
        "version: 1\ndns: {hosts: {a.example: [127.0.0.1]}}\nrules: []\ndefault: {direct: true}\n",
    );
    let policy = format!(
        "version: 1\nupstreams: {{corp: {{url: \"{}\"}}}}\n\
         rules: [{{name: careful, via: corp, preflight: tls}}]\ndefault: {{direct: true}}\n",
        upstream.url()
    );
    let careful = Careful::under(&ca, &policy);
    let (_client, head) = careful.ask(server.address.port());
    assert!(
        head.starts_with("HTTP/1.1 502 tls.cert.name_mismatch: "),
        "{head}"
    );
    let record = careful.proxy.record();
    check!(&record, "error.type": "tls.cert.name_mismatch", "egress.hop": "corp", "egress.side": "origin");
    check!(&record["egress.attempts"][0], "hop": "corp", "cause": "tls.cert.name_mismatch");
}

#[test]
fn a_chain_goes_on_where_the_first_hop_cannot_shake_hands() {
    let ca = authority("routecause test authority");
    let server = tls(signed(&names("a.example"), &ca));
    let (interfered, port) = (Listening::new(), server.address.port());
    let upstream = Proxy::start(
        "version: 1\ndns: {hosts: {a.example: [127.0.0.1]}}\nrules: []\ndefault: {direct: true}\n",
    );
    let policy = format!(
        "version: 1\nupstreams: {{bad: {{url: \"http://{}\"}}, corp: {{url: \"{}\"}}}}\nchains: {{heal: {{hops: [bad, corp], memory: {{ttl: 1h}}}}}}\n\
         rules: [{{name: careful, via: heal, preflight: tls}}]\ndefault: {{direct: true}}\n",
        interfered.address,
        upstream.url()
    );
    let careful = Careful::under(&ca, &policy);
    let resets = std::thread::spawn(move || {
        let (stream, _) = interfered.hear();
        wire::send(&stream, "HTTP/1.1 200 OK\r\n\r\n");
        support::tls::resets_after_the_hello(stream, Duration::ZERO);
    });
    let (client, head) = careful.ask(port);
    assert_eq!(wire::status(&head), 200, "{head}");
    resets.join().unwrap();
    drop(client);
    let record = careful.proxy.record();
    check!(&record, "egress.route": "heal", "egress.hop": "corp");
    check!(&record["egress.attempts"][0], "hop": "bad", "cause": "tls.reset_after_client_hello");
    check!(&record["egress.attempts"][1], "hop": "corp", "cause": null);
}

#[test]
fn a_target_that_cannot_be_reached_is_told_as_ever() {
    let careful = Careful::trusting(&authority("a"));
    let (_client, head) = careful.ask(Origin::nowhere().port());
    assert!(head.starts_with("HTTP/1.1 502 connect.refused: "), "{head}");
    check!(&careful.proxy.record(), "egress.phase": "connect", "egress.notes": ["preflight"]);
}

#[test]
fn a_client_that_leaves_meanwhile_is_told_so() {
    let careful = Careful::under(
        &authority("a"),
        "version: 1\ndns: {hosts: {a.example: [127.0.0.1]}}\n\
         rules: [{name: careful, direct: true, preflight: tls, timeouts: {hello: 1m}}]\ndefault: {direct: true}\n",
    );
    let origin = Listening::new();
    let client = careful.proxy.connect();
    let target = format!("a.example:{}", origin.address.port());
    wire::send(
        &client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    let server = origin.accept();
    assert_eq!(wire::read_exact(&server, 1), [22]);
    drop(client);
    check!(&careful.proxy.record(), "error.type": "client.gave_up.tls", "egress.phase": "tls");
}

#[test]
fn where_the_system_has_no_roots_those_of_the_crate_are_taken_and_named() {
    let ca = authority("nobody");
    let proxy = Proxy::under(
        "version: 1\ndns: {hosts: {a.example: [127.0.0.1]}}\n\
         rules: [{name: careful, direct: true, preflight: tls}]\ndefault: {direct: true}\n",
    );
    let careful = Careful {
        proxy: proxy
            .env("SSL_CERT_FILE", "/dev/null")
            .env("SSL_CERT_DIR", "")
            .start(),
        _folder: tempfile::tempdir().unwrap(),
    };
    let server = tls(signed(&names("a.example"), &ca));
    let token = "tls_certificate_error";
    careful.refuses(
        server.address.port(),
        502,
        "tls.cert.unknown_issuer",
        token,
        "origin",
    );
    careful.proxy.diary("webpki-roots");
}

#[test]
fn other_rules_grant_their_tunnels_untried() {
    let careful = Careful::trusting(&authority("a"));
    let origin = Listening::new();
    let client = careful.proxy.connect();
    wire::send(
        &client,
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address),
    );
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    drop((client, origin));
    let record = careful.proxy.record();
    assert_eq!(record["egress.notes"], Value::Null, "{record:#}");
}
