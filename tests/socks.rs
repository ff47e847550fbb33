//! Clients that speak SOCKS5 on the port of HTTP: what they hear, and what is recorded.

mod support;

use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::origin::{Listening, Origin};
use support::web::{self, Ca, Web};
use support::{DIRECT, Proxy, check, needs, run, wire};

/// Asks for a tunnel without authentication; what is heard.
fn ask(client: &TcpStream, kind: u8, address: &[u8], port: u16) -> Vec<u8> {
    wire::send(client, [5, 1, 0]);
    assert_eq!(wire::read_exact(client, 2), [5, 0]);
    wire::send(client, request(1, kind, address, port));
    wire::read_exact(client, 10)
}

fn request(command: u8, kind: u8, address: &[u8], port: u16) -> Vec<u8> {
    [&[5, command, 0, kind], address, &port.to_be_bytes()].concat()
}

/// A name with its length.
fn named(name: &str) -> Vec<u8> {
    [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
}

const SUCCEEDED: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

fn v4(address: SocketAddr) -> [u8; 4] {
    match address {
        SocketAddr::V4(address) => address.ip().octets(),
        SocketAddr::V6(_) => unreachable!("the tests listen on IPv4"),
    }
}

fn echo() -> Origin {
    Origin::serving(|stream| {
        let said = wire::read_exact(&stream, 4);
        wire::send(&stream, b"pong");
        String::from_utf8(said).unwrap()
    })
}

#[test]
fn a_tunnel_opens_for_every_kind_of_address() {
    let origin = echo();
    let proxy = Proxy::start(
        "version: 1\ndns: {hosts: {files.test: [127.0.0.1]}}\nrules: []\ndefault: {direct: true}\n",
    );
    let (ip, port) = (v4(origin.address), origin.address.port());
    let mapped = std::net::Ipv4Addr::from(ip).to_ipv6_mapped().octets();
    for (kind, address, host) in [
        (1, ip.to_vec(), "127.0.0.1"),
        (3, named("Files.TEST."), "files.test"),
        (3, named("127.0.0.1"), "127.0.0.1"),
        // A v4-mapped address is the IPv4 address, as everywhere.
        (4, mapped.to_vec(), "127.0.0.1"),
    ] {
        let client = proxy.connect();
        assert_eq!(ask(&client, kind, &address, port), SUCCEEDED);
        wire::send(&client, b"ping");
        assert_eq!(wire::read_exact(&client, 4), b"pong");
        wire::finish(&client);
        assert_eq!(origin.heard(), "ping");
        drop(client);
        check!(&proxy.record(),
            "event.action": "connect", "event.outcome": "success", "network.protocol.name": "socks",
            "network.protocol.version": "5", "http.request.method": null, "http.response.status_code": null,
            "server.address": host, "server.port": port, "egress.rule": "default", "egress.route": "direct",
            "source.bytes": 4, "destination.bytes": 4);
    }
}

#[test]
fn what_comes_in_one_write_is_not_lost() {
    let origin = echo();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let ask = request(1, 1, &v4(origin.address), origin.address.port());
    wire::send(&client, [&[5, 1, 0], &*ask, b"ping"].concat());
    let heard = wire::read_exact(&client, 2 + 10 + 4);
    assert_eq!(heard, [&[5, 0], &SUCCEEDED[..], b"pong"].concat());
    assert_eq!(origin.heard(), "ping");
}

#[test]
fn a_byte_at_a_time_is_a_handshake_too() {
    let origin = echo();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    client.set_nodelay(true).unwrap();
    let ask = request(1, 1, &v4(origin.address), origin.address.port());
    for byte in [&[5, 2, 0, 1], &*ask].concat() {
        wire::send(&client, [byte]);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(wire::read_exact(&client, 12)[2..], SUCCEEDED);
}

#[test]
fn a_user_name_gives_user_and_label_and_the_password_is_shown_nowhere() {
    let origin = echo();
    let proxy = Proxy::start(
        "version: 1
clients: {labels: username_suffix, roles: {unit: {label: 'unit-*'}, near: {cidr: 127.0.0.0/8}}}
rules:
  - {name: units, match: {client: {role: unit, user: alice}}, direct: true}
default: {block: true}
",
    );
    for (name, reply, rule, user, label) in [
        (
            "alice+unit-7",
            0,
            "units",
            Value::from("alice"),
            Value::from("unit-7"),
        ),
        ("bob+unit-7", 2, "default", "bob".into(), "unit-7".into()),
        ("alice", 2, "default", "alice".into(), "alice".into()),
        ("", 2, "default", Value::Null, Value::Null),
    ] {
        let client = proxy.connect();
        wire::send(&client, [5, 2, 0, 2]);
        assert_eq!(wire::read_exact(&client, 2), [5, 2]);
        wire::send(&client, [&[1], &*named(name), &named("s3cret")].concat());
        assert_eq!(wire::read_exact(&client, 2), [1, 0]);
        wire::send(
            &client,
            request(1, 1, &v4(origin.address), origin.address.port()),
        );
        assert_eq!(wire::read_exact(&client, 10)[1], reply, "{name}");
        drop(client);
        let record = proxy.record();
        check!(&record, "egress.rule": rule, "user.name": user, "egress.client.label": label);
        let is_unit = name.ends_with("unit-7");
        let roles = if is_unit {
            vec!["unit", "near"]
        } else {
            vec!["near"]
        };
        assert_eq!(record["egress.client.role"], Value::from(roles));
        assert!(!record.to_string().contains("s3cret"));
    }
    let (diary, _) = proxy.finish();
    assert!(!diary.contains("s3cret"), "{diary}");
}

#[test]
fn the_same_name_counts_in_http() {
    let proxy = Proxy::start(
        "version: 1
clients: {labels: username_suffix, roles: {unit: {label: 'unit-*'}}}
rules:
  - {name: units, match: {client: {role: unit}}, block: {reason: 'units stay here'}}
default: {block: true}
",
    );
    for (request, credentials, rule) in [
        (
            "CONNECT a.test:443",
            "YWxpY2UrdW5pdC03OnMzY3JldA==",
            "units",
        ),
        (
            "GET http://a.test/",
            "YWxpY2UrdW5pdC03OnMzY3JldA==",
            "units",
        ),
        ("CONNECT a.test:443", "Ym9iOnMzY3JldA==", "default"),
        ("CONNECT a.test:443", "no base64", "default"),
    ] {
        let client = proxy.connect();
        wire::send(
            &client,
            format!(
                "{request} HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: Basic {credentials}\r\nConnection: close\r\n\r\n"
            ),
        );
        let answer = wire::read_text(&client);
        assert!(
            !answer.contains("s3cret") && !answer.contains(credentials),
            "{answer}"
        );
        let record = proxy.record();
        check!(&record, "egress.rule": rule);
        assert!(!record.to_string().contains("s3cret"));
    }
}

#[test]
fn a_failure_is_told_by_its_reply_and_recorded() {
    let proxy = Proxy::start(
        "version: 1
rules:
  - {name: closed, match: {host: closed.test}, block: true}
default: {direct: true}
",
    );
    let nowhere = Origin::nowhere();
    for (kind, address, port, reply, cause) in [
        (3, named("closed.test"), 443, 2, "policy.denied.rule"),
        (1, vec![169, 254, 169, 254], 80, 2, "policy.denied.ip"),
        (
            1,
            v4(nowhere).to_vec(),
            nowhere.port(),
            5,
            "connect.refused",
        ),
        (3, named("a b.test"), 80, 1, "client.bad_target"),
        (3, named("127.1"), 80, 1, "client.bad_target"),
        (3, named(""), 80, 1, "client.bad_target"),
        (1, v4(nowhere).to_vec(), 0, 1, "client.bad_target"),
        (
            4,
            Ipv6Addr::UNSPECIFIED.octets().to_vec(),
            80,
            2,
            "policy.denied.ip",
        ),
    ] {
        let client = proxy.connect();
        let heard = ask(&client, kind, &address, port);
        assert_eq!(heard, [5, reply, 0, 1, 0, 0, 0, 0, 0, 0], "{cause}");
        assert_eq!(wire::read_to_end(&client), b"", "{cause}");
        check!(&proxy.record(),
            "event.action": "connect", "event.outcome": "failure", "error.type": cause,
            "network.protocol.name": "socks", "http.response.status_code": null);
    }
}

#[test]
fn our_own_listener_is_no_target() {
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let own = client.peer_addr().unwrap();
    assert_eq!(ask(&client, 1, &v4(own), own.port())[1], 1);
    check!(&proxy.record(), "error.type": "proxy.loop");
}

#[test]
fn commands_and_addresses_that_are_not_served_are_refused() {
    let proxy = Proxy::start(DIRECT);
    for (bytes, reply, cause) in [
        (
            request(2, 1, &[127, 0, 0, 1], 80),
            7,
            "client.malformed_request",
        ),
        (
            request(3, 1, &[127, 0, 0, 1], 80),
            7,
            "client.malformed_request",
        ),
        (request(1, 9, &[127, 0, 0, 1], 80), 8, "client.bad_target"),
    ] {
        let client = proxy.connect();
        wire::send(&client, [5, 1, 0]);
        assert_eq!(wire::read_exact(&client, 2), [5, 0]);
        wire::send(&client, bytes);
        assert_eq!(wire::read_exact(&client, 10)[1], reply);
        assert_eq!(wire::read_to_end(&client), b"");
        check!(&proxy.record(), "event.outcome": "failure", "error.type": cause, "event.action": "connect");
    }
}

#[test]
fn a_handshake_that_makes_no_sense_ends_and_is_recorded() {
    let proxy = Proxy::start(DIRECT);
    for (bytes, heard, cause) in [
        // GSSAPI alone; no method at all.
        (&[5, 1, 1][..], &[5, 0xff][..], "client.malformed_request"),
        (&[5, 0], &[5, 0xff], "client.malformed_request"),
        // A request of SOCKS4 behind a greeting of SOCKS5.
        (&[5, 1, 0, 4, 1, 0, 80], &[5, 0], "client.malformed_request"),
        // Another version of the user name.
        (
            &[5, 1, 2, 9, 1, b'a', 0],
            &[5, 2],
            "client.malformed_request",
        ),
    ] {
        let client = proxy.connect();
        wire::send(&client, bytes);
        assert_eq!(wire::read_to_end(&client), heard);
        check!(&proxy.record(), "event.outcome": "unknown", "error.type": cause,
            "event.action": null, "server.address": null);
    }
    for bytes in [
        &[5][..],
        &[5, 3, 0],
        &[5, 1, 0, 5, 1],
        &[5, 1, 2, 1, 9, b's', b'3'],
    ] {
        let client = proxy.connect();
        wire::send(&client, bytes);
        wire::finish(&client);
        wire::read_to_end(&client);
        let record = proxy.record();
        check!(&record, "error.type": "client.malformed_request");
        assert!(!record.to_string().contains("s3"), "{record}");
    }
}

#[test]
fn the_limit_of_a_head_holds_for_a_handshake() {
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {head: 300ms}}\nrules: []\ndefault: {direct: true}\n",
    );
    for bytes in [&[5][..], &[5, 1, 0], &[5, 1, 2, 1, 30, b's']] {
        let begun = Instant::now();
        let client = proxy.connect();
        wire::send(&client, bytes);
        wire::read_to_end(&client);
        assert!(begun.elapsed() < Duration::from_secs(5));
        check!(&proxy.record(), "error.type": "client.request_timeout", "event.outcome": "unknown");
    }
}

#[test]
fn a_client_that_leaves_while_we_dial_is_recorded_once() {
    let silent = support::origin::silent();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, [5, 1, 0]);
    wire::read_exact(&client, 2);
    wire::send(
        &client,
        request(1, 1, &v4(silent.address), silent.address.port()),
    );
    silent.wait_for_dials(1);
    drop(client);
    check!(&proxy.record(), "error.type": "client.gave_up.connect", "egress.phase": "connect",
        "http.response.status_code": null);
    assert!(proxy.stop().1.is_empty());
}

#[test]
fn a_tunnel_goes_through_an_upstream_like_any_other() {
    let upstream = Listening::new();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{corp: {{url: 'http://{}'}}}}\nrules: []\ndefault: {{via: corp}}\n",
        upstream.address
    ));
    let client = proxy.connect();
    wire::send(&client, [5, 1, 0]);
    wire::read_exact(&client, 2);
    wire::send(&client, request(1, 3, &named("a.test"), 443));
    let (corp, head) = upstream.hear();
    assert!(
        head.starts_with("CONNECT a.test:443 HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(
        wire::field(&head, "via")
            .unwrap()
            .starts_with("SOCKS/5 routecause-"),
        "{head}"
    );
    wire::send(&corp, b"HTTP/1.1 200 OK\r\n\r\nhello");
    assert_eq!(wire::read_exact(&client, 15)[10..], *b"hello");
    drop((client, corp));
    check!(&proxy.record(), "egress.route": "corp", "network.protocol.name": "socks");
}

#[test]
fn socks4_is_named() {
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00");
    assert_eq!(wire::read_to_end(&client), b"");
    check!(&proxy.record(), "error.type": "client.socks_to_http_port", "event.outcome": "unknown");
}

/// A site behind a name that only the proxy knows.
fn site(ca: &Ca) -> (Web, tempfile::TempDir, Proxy) {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("probe"), "by socks\n").unwrap();
    let web = Web::tls(ca, &["files.test"], web::folder(files.path()));
    let proxy = Proxy::start(
        "version: 1\nclients: {labels: username_suffix}\ndns: {hosts: {files.test: [127.0.0.1]}}\nrules: []\ndefault: {direct: true}\n",
    );
    (web, files, proxy)
}

#[test]
fn curl_fetches_by_socks5_hostname() {
    if !needs::has("curl") {
        return;
    }
    let ca = Ca::new();
    let (web, _files, proxy) = site(&ca);
    let at = proxy.url().replace("http://", "");
    for (user, name) in [("", Value::Null), ("ci+job42:s3cret@", Value::from("ci"))] {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--noproxy",
            "",
            "--proxy",
            &format!("socks5h://{user}{at}"),
        ])
        .arg("--cacert")
        .arg(ca.file())
        .arg(format!("https://files.test:{}/probe", web.port()));
        let (status, out, err) = run(&mut curl);
        assert!(status.success(), "{err}");
        assert_eq!(out, "by socks\n");
        check!(&proxy.record(), "event.outcome": "success", "network.protocol.name": "socks",
            "server.address": "files.test", "user.name": name, "tls.client.server_name": "files.test");
    }
}

#[test]
fn pysocks_fetches_with_a_user_name() {
    if !needs::has("python3") {
        return;
    }
    if !run(Command::new("python3").args(["-c", "import socks"]))
        .0
        .success()
    {
        let _ = needs::lacks("python3-socks");
        return;
    }
    let origin = echo();
    let proxy = Proxy::start(DIRECT);
    let address = proxy.url().replace("http://", "");
    let (host, port) = address.split_once(':').unwrap();
    let script = format!(
        "import socks
s = socks.socksocket()
s.set_proxy(socks.SOCKS5, '{host}', {port}, True, 'alice', 's3cret')
s.connect(('127.0.0.1', {}))
s.sendall(b'ping')
print(s.recv(4).decode())
",
        origin.address.port()
    );
    let (status, out, err) = run(Command::new("python3").args(["-c", &script]));
    assert!(status.success(), "{err}");
    assert_eq!(out, "pong\n");
    check!(&proxy.record(), "user.name": "alice", "network.protocol.name": "socks");
}
