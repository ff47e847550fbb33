//! Rules that want to see what a client says first: the tunnel is granted, the client speaks, and then it is decided.

mod support;

use std::time::{Duration, Instant};

use support::origin::Listening;
use support::web::Ca;
use support::{Proxy, check, tls, wire};

fn hello(name: &str) -> Vec<u8> {
    let client = tls::Client {
        name,
        trusts: &Ca::new(),
        versions: tls::BOTH,
    };
    client.hello()
}

/// Asks for a tunnel, and gets it.
fn tunnel(proxy: &Proxy, target: &str) -> std::net::TcpStream {
    let client = proxy.connect();
    wire::send(&client, format!("CONNECT {target} HTTP/1.1\r\n\r\n"));
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    client
}

#[test]
fn a_tunnel_is_refused_by_the_name_in_its_client_hello_and_nobody_is_dialled() {
    let origin = Listening::new();
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {sniff: 5s}}\nrules:\n  - {name: filter, match: {sni: [\"*.blocked.example\"]}, block: {reason: \"not that one\"}}\ndefault: {direct: true}\n",
    );
    let target = origin.address.to_string();
    let client = tunnel(&proxy, &target);
    wire::send(&client, hello("www.blocked.example"));
    assert_eq!(wire::read_to_end(&client), [21, 3, 3, 0, 2, 2, 49]);
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "policy.denied.sni", "egress.rule": "filter",
        "egress.side": "proxy", "http.response.status_code": 200);
    assert!(origin.is_untouched());
    // Another name passes, whole.
    let client = tunnel(&proxy, &target);
    let said = hello("www.allowed.example");
    let (head, tail) = said.split_at(40);
    wire::send(&client, head);
    wire::send(&client, tail);
    let server = origin.accept();
    assert_eq!(wire::read_exact(&server, said.len()), said);
    drop((server, client));
    check!(&proxy.record(), "egress.rule": "default", "tls.client.server_name": "www.allowed.example");
}

#[test]
fn what_speaks_first_is_told_apart_and_routed() {
    let (relay, origin) = (Listening::new(), Listening::new());
    let proxy = Proxy::start(&format!(
        "version: 1\ndefaults: {{timeouts: {{sniff: 5s}}}}\nupstreams: {{relay: {{url: \"http://{}\"}}}}\nrules:\n  - {{name: web, match: {{proto: tls, alpn: h2}}, via: relay}}\n  - {{name: shell, match: {{proto: ssh}}, direct: true}}\ndefault: {{block: true}}\n",
        relay.address
    ));
    let target = origin.address.to_string();
    let client = tunnel(&proxy, &target);
    wire::send(&client, "SSH-2.0-test\r\n");
    let server = origin.accept();
    assert_eq!(wire::read_exact(&server, 14), b"SSH-2.0-test\r\n");
    drop((server, client));
    check!(&proxy.record(), "egress.rule": "shell", "egress.route": "direct", "event.outcome": "success");
    // Without ALPN the first rule does not hold.
    let client = tunnel(&proxy, &target);
    wire::send(&client, hello("a.example"));
    assert_eq!(wire::read_to_end(&client), [21, 3, 3, 0, 2, 2, 49]);
    check!(&proxy.record(), "egress.rule": "default", "error.type": "policy.denied.default");
    // What is no TLS cannot be told, so it is reset.
    let client = tunnel(&proxy, &target);
    wire::send(&client, "anything else");
    assert!(wire::is_reset(&client));
    check!(&proxy.record(), "egress.rule": "default", "error.type": "policy.denied.default");
}

#[test]
fn a_client_that_waits_for_the_server_is_not_waited_for_long() {
    let origin = Listening::new();
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: filter, match: {sni: blocked.example}, block: true}\ndefault: {direct: true}\n",
    );
    let began = Instant::now();
    let client = tunnel(&proxy, &origin.address.to_string());
    let server = origin.accept();
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "timeouts.sniff"
    );
    wire::send(&server, "220 mail\r\n");
    assert_eq!(wire::read_exact(&client, 10), b"220 mail\r\n");
    drop((server, client));
    check!(&proxy.record(), "event.outcome": "success", "egress.rule": "default");
}

#[test]
fn a_client_that_leaves_before_it_speaks_leaves_a_record() {
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {sniff: 5s}}\nrules:\n  - {name: filter, match: {sni: blocked.example}, block: true}\n\
         default: {direct: true}\n",
    );
    drop(tunnel(&proxy, "127.0.0.1:9"));
    check!(&proxy.record(), "event.outcome": "failure", "egress.side": "client", "egress.attempts": null);
}

#[test]
fn another_name_than_the_targets_is_refused_where_the_guard_says_so() {
    let origin = Listening::new();
    let port = origin.address.port();
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {sniff: 5s}}\nguards: {sni_mismatch: block}\ndns: {hosts: {a.example: 127.0.0.1}}\nrules: []\ndefault: {direct: true}\n",
    );
    let client = tunnel(&proxy, &format!("a.example:{port}"));
    wire::send(&client, hello("b.example"));
    assert_eq!(wire::read_to_end(&client), [21, 3, 3, 0, 2, 2, 49]);
    check!(&proxy.record(), "error.type": "policy.denied.sni");
    let client = tunnel(&proxy, &format!("a.example:{port}"));
    let said = hello("a.example");
    wire::send(&client, &said);
    assert_eq!(wire::read_exact(&origin.accept(), said.len()), said);
}

#[test]
fn a_client_that_keeps_its_name_back_is_refused_where_the_guard_says_so() {
    let origin = Listening::new();
    let port = origin.address.port();
    let proxy = Proxy::start(
        "version: 1\nguards: {sni_mismatch: block}\ndns: {hosts: {a.example: 127.0.0.1}}\nrules:\n  - {name: deaf, match: {host: a.example}, direct: true, sniff: never}\ndefault: {block: true}\n",
    );
    let said = hello("b.example");
    // In two halves, the second behind the wait; and no rule lets it by.
    for said in [&said[..40], &said[..]] {
        let client = tunnel(&proxy, &format!("a.example:{port}"));
        wire::send(&client, said);
        assert_eq!(wire::read_to_end(&client), [21, 3, 3, 0, 2, 2, 49]);
        check!(&proxy.record(), "error.type": "policy.denied.sni");
    }
    assert!(origin.is_untouched());
}

#[test]
fn a_tunnel_that_is_refused_anyway_is_not_granted_to_see_it_speak() {
    let proxy =
        Proxy::start("version: 1\ndefaults: {sniff: always}\nrules: []\ndefault: {block: true}\n");
    let client = proxy.connect();
    wire::send(&client, "CONNECT a.example:443 HTTP/1.1\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 403);
    check!(&proxy.record(), "error.type": "policy.denied.default");
    // A port says enough.
    let proxy = Proxy::start(
        "version: 1\nguards: {sni_mismatch: block}\nrules: []\ndefault: {direct: true}\n",
    );
    let client = proxy.connect();
    wire::send(&client, "CONNECT a.example:25 HTTP/1.1\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 403);
    check!(&proxy.record(), "error.type": "policy.denied.port");
}

#[test]
fn a_greeting_that_comes_in_pieces_is_the_same_greeting() {
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {sniff: 5s}}\nrules:\n  - {name: shell, match: {proto: [ssh, http]}, block: true}\ndefault: {direct: true}\n",
    );
    let origin = Listening::new();
    for greeting in ["SSH-2.0-test\r\n", "GET / HTTP/1.1\r\n\r\n"] {
        let client = tunnel(&proxy, &origin.address.to_string());
        for byte in greeting.chars().take(4) {
            wire::send(&client, byte.to_string());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(wire::is_reset(&client), "{greeting}");
        check!(&proxy.record(), "egress.rule": "shell", "error.type": "policy.denied.sni");
    }
    assert!(origin.is_untouched());
}

#[test]
fn a_rule_that_is_not_reached_costs_nothing() {
    let origin = Listening::new();
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: here, match: {ip: 127.0.0.1}, direct: true}\n  - {name: filter, match: {sni: blocked.example}, block: true}\ndefault: {direct: true}\n",
    );
    // A refused connection is told in the answer to CONNECT, as ever.
    let gone = support::origin::Origin::nowhere();
    let client = proxy.connect();
    wire::send(&client, format!("CONNECT {gone} HTTP/1.1\r\n\r\n"));
    assert_eq!(wire::status(&wire::read_head(&client)), 502);
    check!(&proxy.record(), "error.type": "connect.refused");
    drop(origin);
}
