//! What is secret is told to nobody: every sink is read for what was planted, after every kind of request.

mod support;

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use support::origin::{Listening, Origin};
use support::{Proxy, wire};

/// What is planted; each stands for one kind of secret.
const PLANTED: [&str; 9] = [
    "pw-of-client",
    "pw-of-upstream",
    "pw-in-url",
    "token-in-query",
    "token-of-bearer",
    "cookie-of-origin",
    "body-of-upload",
    "pw-of-socks",
    "token-of-origin",
];

/// How a secret may stand somewhere: as it is, and as Basic credentials hold it, at each of three places of its letters.
fn forms(secret: &str) -> Vec<String> {
    let inner = |pad: usize| {
        let text = BASE64.encode(format!("{}{secret}", "x".repeat(pad)));
        // The ends hang on what stands beside it.
        text[4..text.len() - 4].to_owned()
    };
    [vec![secret.to_owned()], (0..3).map(inner).collect()].concat()
}

#[test]
fn what_is_secret_reaches_no_sink() {
    let hash = {
        use argon2::password_hash::PasswordHasher as _;
        let params = argon2::Params::new(64, 1, 1, None).unwrap();
        let argon2 =
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        argon2
            .hash_password_with_salt(b"pw-of-client", b"saltsaltsalt")
            .unwrap()
            .to_string()
    };
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nSet-Cookie: token-of-origin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let upstream = Origin::answering(
        "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
    );
    let tunnels = Listening::new();
    let policy = format!(
        "version: 1
server: {{auth: {{users: users.txt}}}}
upstreams: {{corp: {{url: 'http://{}', auth: {{username: {{env: CORP_USER}}, password: {{file: pass}}, preemptive: true}}}}}}
rules:
  - {{name: corp, match: {{host: corp.test}}, via: corp}}
  - {{name: path, match: {{path: '/blocked*'}}, block: {{reason: no}}}}
default: {{direct: true}}
",
        upstream.address
    );
    for format in ["json", "text"] {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let proxy = Proxy::under(&policy)
            .file("users.txt", &format!("alice:{hash}\n"))
            .file("pass", "pw-of-upstream\n")
            .env("CORP_USER", "routecause")
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "1")
            .arg("--log-format")
            .arg(format)
            .arg("--log-file")
            .arg(log.to_str().unwrap())
            .start();
        let alice = format!(
            "Proxy-Authorization: Basic {}\r\n",
            BASE64.encode("alice:pw-of-client")
        );
        let all = "Authorization: Bearer token-of-bearer\r\nCookie: cookie-of-origin\r\n";
        let (to, tunnel) = (origin.address, tunnels.address);
        let mut told = String::new();
        let requests = [
            format!("GET http://{to}/?key=token-in-query HTTP/1.1\r\nHost: {to}\r\n{alice}{all}"),
            format!(
                "GET http://{to}/blocked?key=token-in-query HTTP/1.1\r\nHost: {to}\r\n{alice}{all}"
            ),
            format!("GET http://alice:pw-in-url@{to}/ HTTP/1.1\r\nHost: {to}\r\n{alice}{all}"),
            format!("GET http://{to}/ HTTP/1.1\r\nHost: alice:pw-in-url@{to}\r\n{alice}{all}"),
            format!("CONNECT alice:pw-in-url@{tunnel} HTTP/1.1\r\nHost: x\r\n{alice}{all}"),
            format!(
                "CONNECT {} HTTP/1.1\r\nHost: x\r\n{alice}{all}",
                Origin::nowhere()
            ),
            format!(
                "CONNECT {tunnel} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {}\r\n{all}",
                BASE64.encode("bob:pw-of-client")
            ),
            format!(
                "CONNECT {tunnel} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: pw-of-client\r\n{all}"
            ),
            format!(
                "CONNECT {tunnel} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer pw-of-client\r\n{all}"
            ),
            format!("CONNECT corp.test:443 HTTP/1.1\r\nHost: x\r\n{alice}{all}"),
            format!(
                "GET http://corp.test/?key=token-in-query HTTP/1.1\r\nHost: corp.test\r\n{alice}{all}"
            ),
            format!("TRACE http://{to}/ HTTP/1.1\r\nHost: {to}\r\nMax-Forwards: 0\r\n{alice}{all}"),
            format!(
                "POST http://{to}/blocked HTTP/1.1\r\nHost: {to}\r\nContent-Length: 14\r\n{alice}{all}Connection: close\r\n\r\nbody-of-upload"
            ),
            format!("GET /?key=token-in-query HTTP/1.1\r\nHost: {to}\r\n{alice}{all}"),
            format!("GET http://{to}/?key=token-in-query HTTP/9.9\r\nHost: {to}\r\n{alice}{all}"),
            format!(
                "POST http://{to}/?key=token-in-query HTTP/1.1\r\nHost: {to}\r\nTransfer-Encoding: gzip\r\n{all}"
            ),
        ];
        for request in &requests {
            let client = proxy.connect();
            wire::send(&client, format!("{request}Connection: close\r\n\r\n"));
            wire::finish(&client);
            told += &wire::read_text(&client);
        }
        let client = proxy.connect();
        wire::send(
            &client,
            [&[5, 1, 2, 1, 5][..], b"alice", &[11], b"pw-of-socks"].concat(),
        );
        wire::finish(&client);
        told += &String::from_utf8_lossy(&wire::read_to_end(&client));
        // What the origin itself sends back is the client's own.
        told = told.replace("token-of-origin", "");
        let (diary, _) = proxy.finish();
        let log = fs::read_to_string(&log).unwrap();
        assert_eq!(log.lines().count(), requests.len() + 1, "{log}");
        for (sink, text) in [
            ("an answer", &told),
            ("the diary", &diary),
            ("the log", &log),
        ] {
            for planted in PLANTED {
                for form in forms(planted) {
                    assert!(
                        !text.contains(&form),
                        "{planted} in {sink} ({format}): {text}"
                    );
                }
            }
            assert!(!text.contains("argon2"), "{sink}: {text}");
        }
        assert!(!log.contains('\u{1b}'), "{log}");
    }
}
