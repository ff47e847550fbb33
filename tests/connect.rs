//! Tunnels: what goes in, what comes out, and what is recorded.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use support::origin::{self, Listening, Origin};
use support::process::Holdings;
use support::{DIRECT, Proxy, SOON, check, wire};

/// Sooner than the try of an address is given up.
const BEFORE_THE_LIMIT: Duration = Duration::from_millis(2500);

/// What asks for a tunnel.
fn connect(target: impl std::fmt::Display) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

/// A tunnel that stands.
fn tunnel(proxy: &Proxy, target: SocketAddr) -> TcpStream {
    let client = proxy.connect();
    wire::send(&client, connect(target));
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 200, "{head}");
    client
}

/// Both ends of a tunnel that stands: the client's and the server's.
fn ends(proxy: &Proxy) -> (TcpStream, TcpStream) {
    let origin = Listening::new();
    let client = tunnel(proxy, origin.address);
    (client, origin.accept())
}

/// Bytes that no part of looks like another.
fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| step()).collect()
}

#[test]
fn bytes_behind_a_connect_are_not_lost() {
    let origin = Origin::serving(|stream| {
        let heard = wire::read_exact(&stream, 5);
        wire::send(&stream, "world");
        String::from_utf8(heard).unwrap()
    });
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, connect(origin.address) + "hello");
    assert!(wire::read_head(&client).starts_with("HTTP/1.1 200 Connection established\r\n"));
    assert_eq!(wire::read_text(&client), "world");
    assert_eq!(origin.heard(), "hello");
    drop(client);
    check!(&proxy.record(), "event.outcome": "success", "source.bytes": 5, "destination.bytes": 5);
}

#[test]
fn a_head_that_arrives_byte_by_byte_loses_nothing_behind_it() {
    let proxy = Proxy::start(DIRECT);
    let origin = Listening::new();
    let client = proxy.connect();
    for byte in (connect(origin.address) + "abc").bytes() {
        wire::send(&client, [byte]);
    }
    assert_eq!(wire::read_exact(&origin.accept(), 3), b"abc");
}

#[test]
fn the_answer_to_a_connect_has_no_body_and_no_framing() {
    let proxy = Proxy::start(DIRECT);
    let origin = Listening::new();
    let client = proxy.connect();
    wire::send(&client, connect(origin.address));
    let head = wire::read_head(&client);
    assert_eq!(wire::field(&head, "content-length"), None, "{head}");
    assert_eq!(wire::field(&head, "transfer-encoding"), None, "{head}");
    wire::send(&origin.accept(), "!");
    assert_eq!(wire::read_exact(&client, 1), b"!");
}

#[test]
fn a_server_may_speak_first() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::send(&server, "220 ready\r\n");
    assert_eq!(wire::read_line(&client), "220 ready");
    wire::send(&client, "QUIT\r\n");
    assert_eq!(wire::read_line(&server), "QUIT");
}

#[test]
fn a_server_answers_at_length_behind_the_clients_fin() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::send(&client, "everything?");
    wire::finish(&client);
    assert_eq!(wire::read_text(&server), "everything?");
    let answer = noise(1, 3 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            wire::send(&server, &answer);
            wire::finish(&server);
        });
        assert!(wire::read_to_end(&client) == answer);
    });
    check!(&proxy.record(),
        "event.outcome": "success", "error.type": null, "egress.end": "close.client_fin", "egress.phase": "close",
        "egress.tcp.client.close": "fin", "egress.tcp.server.close": "fin",
        "source.bytes": 11, "destination.bytes": (3 << 20));
}

#[test]
fn a_client_uploads_at_length_behind_the_servers_fin() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::send(&server, "go on");
    wire::finish(&server);
    assert_eq!(wire::read_text(&client), "go on");
    let upload = noise(2, 3 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            wire::send(&client, &upload);
            wire::finish(&client);
        });
        assert!(wire::read_to_end(&server) == upload);
    });
    check!(&proxy.record(),
        "event.outcome": "success", "error.type": null, "egress.end": "close.server_fin",
        "egress.tcp.client.close": "fin", "egress.tcp.server.close": "fin",
        "source.bytes": (3 << 20), "destination.bytes": 5);
}

#[test]
fn a_fin_arrives_as_a_fin_on_either_side() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::finish(&client);
    assert!(wire::is_fin(&server));
    drop(server);
    assert!(wire::is_fin(&client));
    check!(&proxy.record(), "event.outcome": "success", "egress.tcp.server.close": "fin");

    let (client, server) = ends(&proxy);
    wire::send(&server, "bye");
    wire::finish(&server);
    assert_eq!(wire::read_text(&client), "bye");
    drop(client);
    assert!(wire::is_fin(&server));
    check!(&proxy.record(), "event.outcome": "success", "egress.tcp.client.close": "fin");
}

#[test]
fn a_clients_reset_reaches_the_server_as_a_reset() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::send(&client, "hi");
    assert_eq!(wire::read_exact(&server, 2), b"hi");
    wire::reset(client);
    assert!(wire::is_reset(&server));
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "client.reset", "egress.phase": "client", "egress.side": "client",
        "http.response.status_code": 200, "egress.tcp.client.close": "rst", "egress.tcp.server.close": "local",
        "source.bytes": 2, "destination.bytes": 0);
}

#[test]
fn a_client_that_resets_as_the_server_ends_was_served() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::send(&client, "hi");
    assert_eq!(wire::read_exact(&server, 2), b"hi");
    wire::send(&server, "bye");
    assert_eq!(wire::read_exact(&client, 3), b"bye");
    wire::reset(client);
    wire::finish(&server);
    check!(&proxy.record(),
        "event.outcome": "success", "egress.end": "close.server_fin", "egress.tcp.client.close": "rst",
        "egress.tcp.server.close": "fin");
}

#[test]
fn a_servers_reset_reaches_the_client_as_a_reset() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::send(&server, "hi");
    assert_eq!(wire::read_exact(&client, 2), b"hi");
    wire::reset(server);
    assert!(wire::is_reset(&client));
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "tunnel.reset_by_server", "egress.phase": "tunnel",
        "egress.side": "origin", "http.response.status_code": 200,
        "egress.tcp.client.close": "local", "egress.tcp.server.close": "rst",
        "egress.tcp.server.errno": "ECONNRESET", "destination.bytes": 2);
}

#[test]
fn a_reset_behind_a_fin_is_still_passed_on() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    wire::finish(&client);
    assert!(wire::is_fin(&server));
    wire::reset(server);
    assert!(wire::is_reset(&client));
    // The client's FIN was first, but the tunnel did not end well.
    check!(&proxy.record(), "egress.tcp.server.close": "rst");
}

#[test]
fn both_directions_at_once_arrive_whole() {
    let proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    let (up, down) = (noise(3, 4 << 20), noise(4, 5 << 20));
    thread::scope(|scope| {
        for (end, bytes) in [(&client, &up), (&server, &down)] {
            scope.spawn(move || {
                wire::send(end, bytes);
                wire::finish(end);
            });
        }
        let heard = scope.spawn(|| wire::read_to_end(&server));
        assert!(wire::read_to_end(&client) == down);
        assert!(heard.join().unwrap() == up);
    });
    check!(&proxy.record(),
        "event.outcome": "success", "source.bytes": (4 << 20), "destination.bytes": (5 << 20));
}

#[test]
fn a_refused_connection_is_told_in_every_place_that_a_client_prints() {
    let proxy = Proxy::start(DIRECT);
    let nowhere = Origin::nowhere();
    let client = proxy.connect();
    wire::send(&client, connect(nowhere));
    let (head, body) = wire::read_answer(&client);
    let record = proxy.record();
    let line = head.lines().next().unwrap();
    assert!(line.starts_with("HTTP/1.1 502 connect.refused: "), "{line}");
    assert!(line.contains(&nowhere.to_string()), "{line}");
    assert!(line.ends_with(" via direct"), "{line}");
    let status = wire::field(&head, "proxy-status").unwrap();
    assert!(
        status.starts_with("routecause; error=connection_refused; details=\"connect.refused: "),
        "{status}"
    );
    let id = record["event.id"].as_str().unwrap();
    assert_eq!(wire::field(&head, "x-routecause-record"), Some(id));
    assert_eq!(
        wire::field(&head, "content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(
        wire::field(&head, "x-content-type-options"),
        Some("nosniff")
    );
    assert!(
        body.contains("connect.refused") && body.contains(id),
        "{body}"
    );
    check!(&record,
        "event.outcome": "failure", "error.type": "connect.refused", "egress.phase": "connect", "egress.side": "origin",
        "http.response.status_code": 502, "egress.route": "direct", "egress.hop": "direct", "egress.rule": "default",
        "server.address": "127.0.0.1", "server.port": (nowhere.port()));
    check!(&record["egress.attempts"][0], "hop": "direct", "cause": "connect.refused", "address": (nowhere.to_string()));
}

#[test]
fn a_failure_is_json_where_the_client_takes_it() {
    let proxy = Proxy::start(DIRECT);
    let nowhere = Origin::nowhere();
    let client = proxy.connect();
    wire::send(
        &client,
        format!(
            "CONNECT {nowhere} HTTP/1.1\r\nHost: {nowhere}\r\nAccept: application/problem+json\r\n\r\n"
        ),
    );
    let (head, body) = wire::read_answer(&client);
    assert_eq!(
        wire::field(&head, "content-type"),
        Some("application/problem+json")
    );
    let problem: Value = serde_json::from_str(&body).unwrap();
    let record = proxy.record();
    check!(&problem, "title": "connect.refused", "status": 502, "type": "about:blank");
    assert_eq!(problem["record"], record["event.id"]);
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains(&nowhere.to_string()),
        "{problem:#}"
    );
}

#[test]
fn what_follows_a_refused_connect_is_never_read_as_a_request() {
    let proxy = Proxy::start(DIRECT);
    let origin = Listening::new();
    let client = proxy.connect();
    let smuggled = format!(
        "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n",
        origin.address
    );
    wire::send(&client, connect(Origin::nowhere()) + &smuggled);
    let all = wire::read_text(&client);
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
    assert_eq!(wire::field(&all, "connection"), Some("close"), "{all}");
    drop(client);
    check!(&proxy.record(), "error.type": "connect.refused");
    assert!(origin.is_untouched());
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn an_address_that_does_not_answer_is_a_connect_timeout() {
    let silent = origin::silent();
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {connect: 300ms}}\nrules: []\ndefault: {direct: true}\n",
    );
    let client = proxy.connect();
    wire::send(&client, connect(silent.address));
    let head = wire::read_head(&client);
    let line = head.lines().next().unwrap();
    assert!(line.starts_with("HTTP/1.1 504 connect.timeout: "), "{line}");
    assert!(line.contains(&silent.address.to_string()), "{line}");
    assert!(
        wire::field(&head, "proxy-status")
            .unwrap()
            .contains("error=connection_timeout")
    );
    let record = proxy.record();
    check!(&record,
        "event.outcome": "failure", "error.type": "connect.timeout", "egress.phase": "connect",
        "egress.side": "network", "http.response.status_code": 504);
    check!(&record["egress.attempts"][0], "cause": "connect.timeout");
    assert!(
        record["event.duration"].as_u64().unwrap() >= 300_000_000,
        "{record:#}"
    );
    silent.wait_for_dials(0);
}

#[test]
fn a_fin_before_the_answer_cancels_the_dial() {
    leaving_cancels_the_dial(|client| {
        wire::finish(&client);
        Some(client)
    });
}

#[test]
fn a_reset_before_the_answer_cancels_the_dial() {
    leaving_cancels_the_dial(|client| {
        wire::reset(client);
        None
    });
}

#[test]
fn a_fin_behind_early_bytes_cancels_the_dial_as_well() {
    leaving_cancels_the_dial(|client| {
        wire::send(&client, "a ClientHello, say");
        wire::finish(&client);
        Some(client)
    });
}

/// `leave` keeps what must stay open until the record is there.
fn leaving_cancels_the_dial(leave: impl FnOnce(TcpStream) -> Option<TcpStream>) {
    let silent = origin::silent();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, connect(silent.address));
    silent.wait_for_dials(1);
    let left = Instant::now();
    let _kept = leave(client);
    let record = proxy.record();
    assert!(left.elapsed() < BEFORE_THE_LIMIT, "{:?}", left.elapsed());
    silent.wait_for_dials(0);
    assert!(left.elapsed() < BEFORE_THE_LIMIT, "{:?}", left.elapsed());
    check!(&record,
        "event.outcome": "failure", "error.type": "client.gave_up.connect", "egress.phase": "connect",
        "egress.side": "client", "http.response.status_code": 499, "egress.rule": "default");
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn a_silent_tunnel_ends_at_its_idle_limit() {
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {idle: 1s}}\nrules: []\ndefault: {direct: true}\n",
    );
    let (client, server) = ends(&proxy);
    wire::send(&client, "x");
    assert_eq!(wire::read_exact(&server, 1), b"x");
    wire::send(&server, "y");
    assert_eq!(wire::read_exact(&client, 1), b"y");
    assert!(wire::is_fin(&client));
    assert!(wire::is_fin(&server));
    let record = proxy.record();
    check!(&record,
        "event.outcome": "failure", "error.type": "tunnel.idle_timeout", "egress.phase": "tunnel",
        "egress.side": "proxy", "http.response.status_code": 200, "source.bytes": 1,
        "egress.tcp.client.close": "local", "egress.tcp.server.close": "local");
    assert!(
        record["egress.idle_ms"].as_f64().unwrap() >= 1000.0,
        "{record:#}"
    );
}

#[test]
fn a_tunnel_lasts_no_longer_than_it_may() {
    // Straight; and where a hop on trial still waits for the client's first word.
    for (default, busy) in [("direct: true", true), ("via: out", false)] {
        let proxy = Proxy::start(&format!(
            "version: 1\nupstreams: {{spare: {{url: 'http://{}'}}}}\nchains: {{out: {{hops: [direct, spare]}}}}\n\
             rules: []\ndefault: {{{default}}}\ndefaults: {{timeouts: {{max_duration: 500ms}}}}\n",
            Origin::nowhere()
        ));
        let (client, server) = ends(&proxy);
        let mut from_server = server.try_clone().unwrap();
        let talking = thread::spawn(move || {
            while busy && from_server.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let end = (&client).read_to_end(&mut Vec::new());
        let kind = end.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::ConnectionReset), "it looks whole");
        wire::read_or_reset(&server);
        talking.join().unwrap();
        let record = proxy.record();
        check!(&record,
            "event.outcome": "failure", "error.type": "tunnel.max_duration", "egress.phase": "tunnel",
            "egress.side": "proxy");
        let message = record["error.message"].as_str().unwrap();
        assert!(
            message.starts_with("the tunnel was open for 500ms"),
            "{message}"
        );
        assert!(record["event.duration"].as_u64().unwrap() >= 500_000_000);
    }
}

#[test]
fn a_rule_may_set_the_idle_limit_for_what_it_decides() {
    let proxy = Proxy::start(
        "version: 1\nrules: [{name: short, match: {ip: 127.0.0.1}, direct: true, timeouts: {idle: 300ms}}]\n\
         default: {block: true}\n",
    );
    let (client, _server) = ends(&proxy);
    assert!(wire::is_fin(&client));
    check!(&proxy.record(), "error.type": "tls.client_silent", "egress.rule": "short");
}

/// Waits until nobody listens there any more.
fn wait_until_closed(address: SocketAddr) {
    let deadline = Instant::now() + SOON;
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < deadline, "{address} still listens");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The record of the one tunnel there was. What knocked while the listener closed may have left one too.
fn of_tunnel(records: Vec<Value>) -> Value {
    let mut tunnels = records
        .into_iter()
        .filter(|record| record["event.action"] == "connect");
    let tunnel = tunnels.next().unwrap();
    assert_eq!(tunnels.next(), None);
    tunnel
}

#[test]
fn a_tunnel_goes_on_to_its_end_while_the_proxy_drains() {
    let mut proxy = Proxy::start(DIRECT);
    let (client, server) = ends(&proxy);
    proxy.signal(Signal::SIGTERM);
    wait_until_closed(proxy.address);
    wire::send(&client, "still there?");
    assert_eq!(wire::read_exact(&server, 12), b"still there?");
    wire::send(&server, "yes");
    drop(server);
    assert_eq!(wire::read_text(&client), "yes");
    drop(client);
    let (status, records) = proxy.ended();
    assert_eq!(status.code(), Some(0));
    check!(&of_tunnel(records), "event.outcome": "success", "source.bytes": 12, "destination.bytes": 3);
}

#[test]
fn a_tunnel_is_reset_when_the_drain_timeout_is_over() {
    let mut proxy = Proxy::start(
        "version: 1\nserver: {drain_timeout: 300ms}\nrules: []\ndefault: {direct: true}\n",
    );
    let (client, server) = ends(&proxy);
    proxy.signal(Signal::SIGTERM);
    assert!(wire::is_reset(&client));
    assert!(wire::is_reset(&server));
    let (status, records) = proxy.ended();
    assert_eq!(status.code(), Some(0));
    check!(&of_tunnel(records),
        "event.outcome": "failure", "error.type": "tunnel.shutdown", "egress.phase": "tunnel", "egress.side": "proxy",
        "http.response.status_code": 200);
}

#[test]
fn a_second_signal_cuts_at_once() {
    let mut proxy = Proxy::start(
        "version: 1\nserver: {drain_timeout: 1h}\nrules: []\ndefault: {direct: true}\n",
    );
    let (client, server) = ends(&proxy);
    proxy.signal(Signal::SIGTERM);
    proxy.diary("draining");
    proxy.signal(Signal::SIGTERM);
    proxy.diary("cutting what is still open connections=1");
    assert!(wire::is_reset(&client));
    assert!(wire::is_reset(&server));
    let (status, records) = proxy.ended();
    assert_eq!(status.code(), Some(0));
    check!(&of_tunnel(records), "error.type": "tunnel.shutdown");
}

#[test]
fn a_pending_dial_is_cut_with_a_record_as_well() {
    let silent = origin::silent();
    let mut proxy = Proxy::start(
        "version: 1\nserver: {drain_timeout: 1h}\nrules: []\ndefault: {direct: true}\n",
    );
    let client = proxy.connect();
    wire::send(&client, connect(silent.address));
    silent.wait_for_dials(1);
    proxy.signal(Signal::SIGTERM);
    proxy.diary("draining");
    proxy.signal(Signal::SIGTERM);
    let (status, records) = proxy.ended();
    assert_eq!(status.code(), Some(0));
    check!(&of_tunnel(records),
        "event.outcome": "failure", "error.type": "proxy.shutdown", "egress.phase": "connect", "egress.side": "proxy");
}

#[test]
fn only_canonical_targets_are_connected_to() {
    let proxy = Proxy::start(DIRECT);
    let origin = Listening::new();
    let port = origin.address.port();
    let bad = "client.bad_target";
    let malformed = "client.malformed_request";
    let mut wrong = Vec::new();
    for (target, cause) in [
        ("127.0.0.1".to_owned(), bad),
        ("127.0.0.1:".to_owned(), bad),
        ("127.0.0.1:0".to_owned(), bad),
        ("127.0.0.1:65536".to_owned(), bad),
        (format!("127.0.0.1:+{port}"), bad),
        (format!("127.0.0.1:0{port}"), bad),
        (format!("127.0.0.1:{}", u32::from(port) + 0x10000), bad),
        ("127.0.0.1:http".to_owned(), bad),
        (format!(":{port}"), bad),
        (format!("user@127.0.0.1:{port}"), bad),
        (format!("user:secret@127.0.0.1:{port}"), bad),
        (format!("2130706433:{port}"), bad),
        (format!("0x7f000001:{port}"), bad),
        (format!("0x7f.1:{port}"), bad),
        (format!("0177.0.0.1:{port}"), bad),
        (format!("127.1:{port}"), bad),
        (format!("127.0.0.1.x:1:{port}"), malformed),
        (format!("127.0.0.1%00:{port}"), malformed),
        (format!("%31%32%37.0.0.1:{port}"), malformed),
        (format!("::1:{port}"), malformed),
        (format!("[::ffff:127.0.0.1:{port}"), malformed),
        (format!("[127.0.0.1]:{port}"), bad),
        (format!("a..example:{port}"), bad),
        (format!("127.0.0.1:{port}/"), malformed),
        (format!("http://127.0.0.1:{port}/"), bad),
        (format!("http://127.0.0.1:{port}"), bad),
        ("/".to_owned(), bad),
        ("*".to_owned(), bad),
        (format!("127.0.0.1:{port}\u{7f}"), malformed),
        (format!("127.0.0.1 :{port}"), malformed),
        (format!("１２７.0.0.1:{port}"), malformed),
    ] {
        let client = proxy.connect();
        wire::send(
            &client,
            format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n"),
        );
        let answer = wire::read_text(&client);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
        let record = proxy.record();
        let told =
            ["error.type", "egress.side"].map(|key| record[key].as_str().unwrap_or_default());
        if told != [cause, "client"] || record["http.response.status_code"] != 400 {
            wrong.push(format!("{target}: {told:?}"));
        }
        assert_eq!(record["egress.attempts"], Value::Null, "{target}");
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(origin.is_untouched());
}

#[test]
fn a_connect_without_a_port_is_told_so() {
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, connect("a.example"));
    let head = wire::read_head(&client);
    let line = head.lines().next().unwrap();
    assert_eq!(
        line,
        "HTTP/1.1 400 client.bad_target: CONNECT to \"a.example\" names no port; write host:port"
    );
    check!(&proxy.record(), "event.outcome": "failure", "event.action": "connect", "egress.phase": "client");
}

#[test]
fn every_spelling_of_an_address_that_is_taken_is_recorded_in_one_form() {
    let proxy = Proxy::start(DIRECT);
    let origin = Listening::new();
    let port = origin.address.port();
    for host in [
        "127.0.0.1",
        "127.0.0.1.",
        "[::ffff:127.0.0.1]",
        "[::FFFF:7f00:1]",
    ] {
        let client = proxy.connect();
        wire::send(&client, connect(format!("{host}:{port}")));
        assert_eq!(wire::status(&wire::read_head(&client)), 200, "{host}");
        drop((client, origin.accept()));
        check!(&proxy.record(), "server.address": "127.0.0.1", "server.port": port, "network.peer.address": "127.0.0.1");
    }
}

#[test]
fn a_head_that_is_cut_in_its_middle_leaves_a_record() {
    let mut proxy = Proxy::start(
        "version: 1\nserver: {drain_timeout: 200ms}\nrules: []\ndefault: {direct: true}\n",
    );
    let kept = Origin::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let (fresh, used) = (proxy.connect(), proxy.connect());
    wire::send(
        &used,
        format!(
            "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n",
            kept.address
        ),
    );
    assert_eq!(wire::status(&wire::read_head(&used)), 204);
    check!(&proxy.record(), "event.outcome": "success");
    for client in [&fresh, &used] {
        wire::send(client, "GET / HT");
    }
    // It is seen that they have begun.
    thread::sleep(Duration::from_millis(50));
    proxy.signal(Signal::SIGTERM);
    let (status, records) = proxy.ended();
    assert_eq!(status.code(), Some(0));
    assert_eq!(records.len(), 2, "{records:?}");
    for record in &records {
        check!(record, "event.outcome": "unknown", "error.type": "proxy.shutdown", "egress.phase": "client");
    }
}

#[test]
fn a_connection_that_has_not_asked_yet_is_not_waited_for() {
    let mut proxy = Proxy::start(DIRECT);
    let descriptors = || Holdings::of(proxy.pid()).descriptors;
    let before = descriptors();
    let client = proxy.connect();
    // What is not taken yet when the listener closes is reset by the kernel.
    let deadline = Instant::now() + SOON;
    while descriptors() == before {
        assert!(Instant::now() < deadline, "the connection is not taken");
    }
    proxy.signal(Signal::SIGTERM);
    assert!(wire::read_text(&client).starts_with("HTTP/1.1 503 proxy.shutdown: "));
    drop(client);
    let (status, records) = proxy.ended();
    assert_eq!(status.code(), Some(0));
    let record = records
        .iter()
        .find(|record| record["error.type"] == "proxy.shutdown");
    check!(record.unwrap(), "event.outcome": "unknown", "egress.phase": "client", "egress.side": "proxy",
        "http.response.status_code": 503);
}

#[test]
fn a_target_that_keeps_failing_is_refused_without_a_try_where_the_policy_says_so() {
    let address = Origin::nowhere();
    let proxy = Proxy::start(
        "version: 1\ndefaults: {circuit: {fails: 2, within: 1m, open: 1h}}\nrules: []\ndefault: {direct: true}\n",
    );
    let ask = || {
        let client = proxy.connect();
        wire::send(&client, connect(address));
        (wire::read_text(&client), proxy.record())
    };
    for reminder in ["", "; before: connect.refused "] {
        let (text, record) = ask();
        check!(&record, "error.type": "connect.refused", "http.response.status_code": 502);
        // What happened before stands in the hint, for the client as well as in the record.
        let hint = record["egress.hint"].as_str().unwrap();
        assert!(
            hint.contains(reminder) && text.contains(reminder),
            "{text}{record:#}"
        );
    }
    let (text, record) = ask();
    assert!(
        text.starts_with("HTTP/1.1 503 proxy.circuit_open: "),
        "{text}"
    );
    assert!(
        text.contains("the last time with connect.refused"),
        "{text}"
    );
    check!(&record, "error.type": "proxy.circuit_open", "egress.side": "proxy", "http.response.status_code": 503);
    assert!(record.get("egress.attempts").is_none(), "{record:#}");
}
