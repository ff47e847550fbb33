//! Through an upstream proxy: what it is asked, and what is made of its answers.

mod support;

use std::net::SocketAddr;

use serde_json::{Value, json};

use support::origin::{self, Listening, Origin};
use support::{Proxy, check, wire};

/// The user and password of the tests, and what a client says of its own.
const OURS: &str = "Basic dXNlcjpodW50ZXIy";
const THEIRS: &str = "Basic Y2xpZW50OnNlY3JldA==";

/// Everything through the upstream at `address`; with credentials where `auth` says so.
fn through(address: SocketAddr, auth: bool, timeouts: &str) -> Proxy {
    let auth = if auth {
        ", auth: {preemptive: true, username: {file: user}, password: {file: password}}"
    } else {
        ""
    };
    let policy = format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{address}\"{auth}}}}}\n\
         defaults: {{timeouts: {{connect: 10s, {timeouts}}}}}\nrules: []\ndefault: {{via: corp}}\n"
    );
    let starting = Proxy::under(&policy);
    if auth.is_empty() {
        return starting.start();
    }
    starting
        .file("user", "user\n")
        .file("password", "hunter2\n")
        .start()
}

/// A CONNECT with credentials of the client's own.
fn connect(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: {THEIRS}\r\n\r\n")
}

/// A GET with credentials of the client's own.
fn get(authority: &str) -> String {
    format!(
        "GET http://{authority}/x?y HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: {THEIRS}\r\n\r\n"
    )
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn a_plain_request_goes_there_by_absolute_url() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, false, "");
    let client = proxy.connect();
    wire::send(&client, get("a.example"));
    let (server, head) = upstream.hear();
    assert!(
        head.starts_with("GET http://a.example/x?y HTTP/1.1\r\n"),
        "{head}"
    );
    assert_eq!(wire::fields(&head, "host"), ["a.example"]);
    assert!(
        wire::field(&head, "via")
            .unwrap()
            .starts_with("1.1 routecause-"),
        "{head}"
    );
    assert_eq!(wire::field(&head, "proxy-authorization"), None, "{head}");
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record(),
        "event.outcome": "success", "event.action": "forward", "egress.route": "corp", "egress.hop": "corp",
        "server.address": "a.example", "server.port": 80, "network.peer.address": "127.0.0.1",
        "network.peer.port": (upstream.address.port()), "dns.question.name": null);
    // The next one for the same target takes the same connection.
    wire::send(&client, get("a.example"));
    assert!(wire::read_head(&server).starts_with("GET http://a.example/x?y "));
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record()["egress.attempts"][0], "hop": "corp", "reused": true, "cause": null);
}

#[test]
fn a_tunnel_goes_there_by_connect() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, false, "");
    let client = proxy.connect();
    wire::send(&client, connect("A.example.:443") + "hello");
    let (server, head) = upstream.hear();
    assert!(
        head.starts_with("CONNECT a.example:443 HTTP/1.1\r\n"),
        "{head}"
    );
    assert_eq!(wire::fields(&head, "host"), ["a.example:443"]);
    assert!(
        wire::field(&head, "via")
            .unwrap()
            .starts_with("1.1 routecause-"),
        "{head}"
    );
    assert_eq!(wire::field(&head, "proxy-authorization"), None, "{head}");
    wire::send(
        &server,
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Upstream: 1\r\n\r\nearly",
    );
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 200);
    for gone in ["content-length", "transfer-encoding", "x-upstream"] {
        assert_eq!(wire::field(&head, gone), None, "{head}");
    }
    // What came behind the upstream's 200 is the server's, whatever the upstream's head says of it.
    assert_eq!(wire::read_exact(&client, 5), b"early");
    assert_eq!(wire::read_exact(&server, 5), b"hello");
    wire::finish(&client);
    assert!(wire::is_fin(&server));
    wire::send(&server, "bye");
    drop(server);
    assert_eq!(wire::read_text(&client), "bye");
    check!(&proxy.record(),
        "event.outcome": "success", "event.action": "connect", "egress.route": "corp", "egress.hop": "corp",
        "server.address": "a.example", "server.port": 443, "network.peer.port": (upstream.address.port()),
        "egress.upstream.name": "corp", "dns.question.name": null, "source.bytes": 5, "destination.bytes": 8);
}

#[test]
fn interim_answers_to_a_connect_are_skipped() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, false, "");
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443"));
    let (server, _) = upstream.hear();
    wire::send(
        &server,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx",
    );
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    assert_eq!(wire::read_exact(&client, 1), b"x");
}

#[test]
fn credentials_go_to_the_upstream_alone_and_no_clients_ever_pass() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, true, "");
    let client = proxy.connect();
    wire::send(&client, get("a.example"));
    let (server, head) = upstream.hear();
    assert_eq!(wire::fields(&head, "proxy-authorization"), [OURS]);
    wire::send(&server, OK);
    let (head, _) = wire::read_answer(&client);
    assert!(!head.contains("dXNlcjpodW50ZXIy"), "{head}");

    wire::send(&client, connect("a.example:443"));
    let (server, head) = upstream.hear();
    assert_eq!(wire::fields(&head, "proxy-authorization"), [OURS]);
    wire::send(&server, "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    // Inside the tunnel they are nobody's business.
    wire::send(&client, "GET / HTTP/1.1\r\n\r\n");
    assert_eq!(wire::read_head(&server), "GET / HTTP/1.1\r\n\r\n");
    drop((client, server));
    for record in proxy.records(2) {
        let text = record.to_string();
        assert!(
            !text.contains("hunter2") && !text.contains("dXNl") && !text.contains("Y2xp"),
            "{text}"
        );
    }
}

#[test]
fn an_origin_beside_the_upstream_gets_no_credentials() {
    let (upstream, origin) = (Listening::new(), Listening::new());
    let proxy = Proxy::under(&format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{}\", auth: {{username: {{file: user}}, password: {{file: password}}}}}}}}\n\
         rules: [{{name: near, match: {{ip: 127.0.0.1}}, direct: true}}]\ndefault: {{via: corp}}\n",
        upstream.address
    ))
    .file("user", "user")
    .file("password", "hunter2")
    .start();
    let client = proxy.connect();
    wire::send(&client, get(&origin.address.to_string()));
    let (server, head) = origin.hear();
    assert!(head.starts_with("GET /x?y HTTP/1.1\r\n"), "{head}");
    assert_eq!(wire::field(&head, "proxy-authorization"), None);
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    assert!(upstream.is_untouched());
}

/// What an upstream does once it has read the request.
#[derive(Clone, Copy, Debug)]
enum Reply {
    /// It answers, and closes.
    Says(&'static str),
    /// It resets the connection.
    Resets,
    /// It says nothing.
    IsSilent,
}

/// Asks a tunnel of an upstream that replies so: the client's answer, and the record.
fn refused(reply: Reply, auth: bool) -> (String, Value) {
    let upstream = Listening::new();
    let proxy = through(upstream.address, auth, "proxy_reply: 500ms");
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443") + "smuggled");
    let (server, _) = upstream.hear();
    let mut kept = None;
    match reply {
        Reply::Says(answer) => {
            wire::send(&server, answer);
            drop(server);
        }
        Reply::Resets => wire::reset(server),
        Reply::IsSilent => kept = Some(server),
    }
    let answer = wire::read_text(&client);
    drop(kept);
    (answer, proxy.record())
}

#[test]
fn every_refusal_of_an_upstream_has_its_cause() {
    use Reply::{IsSilent, Resets, Says};
    let basic = "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm=\"corp\"\r\nContent-Length: 0\r\n\r\n";
    let both = "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=\"x, y\"\r\n\r\n";
    // No build speaks these.
    let other =
        "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Bearer\r\nProxy-Authenticate: Hawk\r\n\r\n";
    for (reply, auth, cause, status) in [
        (Says(basic), false, "upstream.auth_required", 502),
        (Says(basic), true, "upstream.auth_rejected", 502),
        (Says(both), false, "upstream.auth_required", 502),
        (Says(both), true, "upstream.auth_rejected", 502),
        (Says(other), false, "upstream.auth_scheme_unsupported", 502),
        (Says(other), true, "upstream.auth_scheme_unsupported", 502),
        (
            Says("HTTP/1.1 403 Forbidden\r\n\r\n"),
            false,
            "upstream.denied",
            403,
        ),
        (
            Says("HTTP/1.1 451 Legal\r\n\r\n"),
            false,
            "upstream.denied",
            403,
        ),
        (
            Says("HTTP/1.1 503 X\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n"),
            false,
            "upstream.denied",
            403,
        ),
        (
            Says("HTTP/1.1 400 Bad Request\r\n\r\n"),
            false,
            "upstream.connect_unsupported",
            502,
        ),
        (
            Says("HTTP/1.1 405 Method Not Allowed\r\n\r\n"),
            false,
            "upstream.connect_unsupported",
            502,
        ),
        (
            Says("HTTP/1.1 501 Not Implemented\r\n\r\n"),
            false,
            "upstream.connect_unsupported",
            502,
        ),
        (
            Says("HTTP/1.1 429 Slow down\r\nRetry-After: 3\r\n\r\n"),
            false,
            "upstream.rate_limited",
            503,
        ),
        (
            Says("HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n"),
            false,
            "upstream.redirected",
            502,
        ),
        (
            Says("HTTP/1.1 508 Loop\r\n\r\n"),
            false,
            "upstream.loop",
            508,
        ),
        (
            Says("HTTP/1.1 502 X\r\nProxy-Status: corp; error=proxy_loop_detected\r\n\r\n"),
            false,
            "upstream.loop",
            508,
        ),
        (
            Says("HTTP/1.1 503 X\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\n\r\n"),
            false,
            "upstream.reported.dns",
            503,
        ),
        (
            Says("HTTP/1.1 502 X\r\nProxy-Status: corp; error=dns_error\r\n\r\n"),
            false,
            "upstream.reported.dns",
            502,
        ),
        (
            Says("HTTP/1.1 503 X\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n"),
            false,
            "upstream.reported.connect",
            503,
        ),
        (
            Says("HTTP/1.1 502 X\r\nProxy-Status: corp; error=connection_refused\r\n\r\n"),
            false,
            "upstream.reported.connect",
            502,
        ),
        (
            Says("HTTP/1.1 503 X\r\nX-Squid-Error: ERR_CONNECT_FAIL 110\r\n\r\n"),
            false,
            "upstream.reported.timeout",
            503,
        ),
        (
            Says("HTTP/1.1 504 X\r\nProxy-Status: corp; error=connection_timeout\r\n\r\n"),
            false,
            "upstream.reported.timeout",
            504,
        ),
        (
            Says("HTTP/1.1 504 X\r\n\r\n"),
            false,
            "upstream.reported.timeout",
            504,
        ),
        (
            Says("HTTP/1.1 502 X\r\nProxy-Status: corp; error=tls_protocol_error\r\n\r\n"),
            false,
            "upstream.reported.tls",
            502,
        ),
        (
            Says("HTTP/1.1 503 X\r\nX-Squid-Error: ERR_CANNOT_FORWARD 0\r\n\r\n"),
            false,
            "upstream.reported.unavailable",
            503,
        ),
        (
            Says("HTTP/1.1 503 X\r\n\r\n"),
            false,
            "upstream.reported.unavailable",
            503,
        ),
        (
            Says("HTTP/1.1 502 X\r\n\r\n"),
            false,
            "upstream.reported.unavailable",
            502,
        ),
        (
            Says("HTTP/1.1 500 X\r\n\r\n"),
            false,
            "upstream.reported.other",
            502,
        ),
        (
            Says("HTTP/1.1 404 X\r\n\r\n"),
            false,
            "upstream.reported.not_found",
            502,
        ),
        (
            Says("HTTP/1.1 101 X\r\n\r\n"),
            false,
            "upstream.reported.other",
            502,
        ),
        (Says(""), false, "upstream.closed", 502),
        (Says("HTTP/1.1 200 O"), false, "upstream.closed", 502),
        (Resets, false, "upstream.reset", 502),
        (
            Says("SSH-2.0-OpenSSH_9.9\r\n"),
            false,
            "upstream.malformed_reply",
            502,
        ),
        (
            Says("\u{15}\u{3}\u{1}\0\u{2}\u{2}\u{46}"),
            false,
            "upstream.malformed_reply",
            502,
        ),
        (IsSilent, false, "upstream.no_reply", 504),
    ] {
        let (answer, record) = refused(reply, auth);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} {cause}: ")),
            "{reply:?}: {answer}"
        );
        assert_eq!(wire::field(&answer, "proxy-authenticate"), None, "{answer}");
        assert!(!answer.contains("smuggled"), "{answer}");
        check!(&record,
            "event.outcome": "failure", "error.type": cause, "egress.phase": "upstream", "egress.side": "upstream",
            "http.response.status_code": status, "egress.route": "corp", "egress.hop": "corp",
            "egress.upstream.name": "corp", "source.bytes": 0, "destination.bytes": 0);
        check!(&record["egress.attempts"][0], "hop": "corp", "cause": cause);
        // What the upstream said stands in the record, and in Proxy-Status where it is a status.
        let said = match reply {
            Says(text) => text
                .strip_prefix("HTTP/1.1 ")
                .and_then(|text| text.get(..4)),
            Resets | IsSilent => None,
        };
        let said = said
            .filter(|_| cause != "upstream.closed")
            .map(|status| status.trim().parse::<u16>().unwrap());
        assert_eq!(record["egress.upstream.status"], json!(said), "{reply:?}");
        let received = said.map(|status| format!("; received-status={status};"));
        let proxy_status = wire::field(&answer, "proxy-status").unwrap();
        assert!(
            received.is_none_or(|received| proxy_status.contains(&received)),
            "{proxy_status}"
        );
    }
}

#[test]
fn what_a_refusing_upstream_says_stands_in_the_record() {
    let (_, record) = refused(
        Reply::Says(
            "HTTP/1.1 407 Log in first\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=\"x, y\"\r\n\
             Proxy-Status: corp; error=http_request_denied; details=\"no\"\r\n\
             X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0\r\nContent-Length: 58\r\n\r\n\
             <html><style>b{}</style><b>Please</b> log in\x1b[2J &amp; wait",
        ),
        false,
    );
    check!(&record,
        "egress.upstream.status": 407, "egress.upstream.reason_phrase": "Log in first",
        "egress.upstream.proxy_status": "corp; error=http_request_denied; details=\"no\"",
        "egress.upstream.squid_error": "ERR_CACHE_ACCESS_DENIED 0",
        "egress.upstream.auth_schemes": ["Negotiate", "Basic"]);
    let body = record["egress.upstream.body"].as_str().unwrap();
    assert!(
        body.starts_with("Please log in") && !body.contains('\x1b') && !body.contains("b{}"),
        "{body}"
    );
}

#[test]
fn a_plain_request_that_an_upstream_does_not_answer_has_the_same_causes() {
    for (answer, is_reset, cause, status) in [
        ("", false, "upstream.closed", 502),
        ("", true, "upstream.reset", 502),
        (
            "SSH-2.0-OpenSSH_9.9\r\n",
            false,
            "upstream.malformed_reply",
            502,
        ),
        (
            "HTTP/1.1 503 X\r\nX-Squid-Error: ERR_CANNOT_FORWARD 0\r\nContent-Length: 0\r\n\r\n",
            false,
            "upstream.reported.unavailable",
            503,
        ),
        (
            "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
            false,
            "upstream.auth_required",
            502,
        ),
    ] {
        let upstream = Listening::new();
        let proxy = through(upstream.address, false, "");
        let client = proxy.connect();
        wire::send(&client, get("a.example"));
        let (server, _) = upstream.hear();
        wire::send(&server, answer);
        if is_reset {
            wire::reset(server);
        } else {
            drop(server);
        }
        let (head, _) = wire::read_answer(&client);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} {cause}: ")),
            "{head}"
        );
        assert_eq!(wire::field(&head, "proxy-authenticate"), None, "{head}");
        let record = proxy.record();
        check!(&record,
            "event.outcome": "failure", "error.type": cause, "egress.phase": "upstream", "egress.side": "upstream",
            "egress.hop": "corp");
        check!(&record["egress.attempts"][0], "hop": "corp", "cause": cause);
    }
}

#[test]
fn rejected_credentials_of_a_plain_request_are_told_apart() {
    let upstream = Origin::answering(
        "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
    );
    let proxy = through(upstream.address, true, "");
    let client = proxy.connect();
    wire::send(&client, get("a.example"));
    assert_eq!(wire::status(&wire::read_answer(&client).0), 502);
    check!(&proxy.record(),
        "error.type": "upstream.auth_rejected", "egress.upstream.status": 407,
        "egress.upstream.auth_schemes": ["Basic"]);
}

#[test]
fn a_plain_request_that_an_upstream_keeps_waiting_is_no_reply() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, false, "first_byte: 300ms");
    let client = proxy.connect();
    wire::send(&client, get("a.example"));
    let _kept = upstream.hear();
    let (head, _) = wire::read_answer(&client);
    assert!(
        head.starts_with("HTTP/1.1 504 upstream.no_reply: "),
        "{head}"
    );
    check!(&proxy.record(), "error.type": "upstream.no_reply", "egress.side": "upstream");
}

#[test]
fn an_upstream_that_is_not_there_is_told_from_a_target_that_is_not() {
    let nowhere = Origin::nowhere();
    let proxy = through(nowhere, false, "");
    for request in [connect("a.example:443"), get("a.example")] {
        let client = proxy.connect();
        wire::send(&client, request);
        let (head, body) = wire::read_answer(&client);
        assert!(
            head.starts_with("HTTP/1.1 502 upstream.connect.refused: "),
            "{head}"
        );
        assert!(
            body.contains("the upstream proxy itself cannot be reached"),
            "{body}"
        );
        let record = proxy.record();
        check!(&record,
            "event.outcome": "failure", "error.type": "upstream.connect.refused", "egress.phase": "upstream",
            "egress.side": "upstream", "http.response.status_code": 502, "egress.hop": "corp");
        check!(&record["egress.attempts"][0],
            "hop": "corp", "cause": "upstream.connect.refused", "address": (nowhere.to_string()));
    }
}

#[test]
fn an_upstream_that_does_not_answer_its_syn_is_a_timeout() {
    let silent = origin::silent();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{}\"}}}}\ndefaults: {{timeouts: {{connect: 300ms}}}}\n\
         rules: []\ndefault: {{via: corp}}\n",
        silent.address
    ));
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443"));
    let (head, _) = wire::read_answer(&client);
    assert!(
        head.starts_with("HTTP/1.1 504 upstream.connect.timeout: "),
        "{head}"
    );
    check!(&proxy.record(),
        "error.type": "upstream.connect.timeout", "egress.phase": "upstream", "egress.side": "upstream",
        "http.response.status_code": 504);
}

#[test]
fn a_client_that_leaves_while_the_upstream_thinks_gives_up_the_upstream() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, false, "");
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443"));
    let (server, _) = upstream.hear();
    wire::finish(&client);
    assert!(wire::is_fin(&server));
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "client.gave_up.upstream", "egress.phase": "upstream",
        "egress.side": "client", "http.response.status_code": 499);
}

#[test]
fn a_reset_through_an_upstream_stays_a_reset() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, false, "");
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443"));
    let (server, _) = upstream.hear();
    wire::send(&server, "HTTP/1.1 200 OK\r\n\r\nx");
    wire::read_head(&client);
    assert_eq!(wire::read_exact(&client, 1), b"x");
    wire::reset(server);
    assert!(wire::is_reset(&client));
    check!(&proxy.record(), "error.type": "tunnel.reset_by_server", "egress.tcp.server.close": "rst");
}

#[test]
fn an_upstream_that_points_at_ourselves_is_a_loop() {
    // Its port is known only once it listens: the upstream comes by a reload.
    let proxy = Proxy::start(support::DIRECT);
    let policy = format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{}\"}}}}\nrules: []\ndefault: {{via: corp}}\n",
        proxy.address
    );
    std::fs::write(&proxy.policy, policy).unwrap();
    proxy.signal(nix::sys::signal::Signal::SIGHUP);
    proxy.diary("reloaded");
    for request in [connect("a.example:443"), get("a.example")] {
        let client = proxy.connect();
        wire::send(&client, request);
        let (head, _) = wire::read_answer(&client);
        assert!(head.starts_with("HTTP/1.1 508 proxy.loop: "), "{head}");
        check!(&proxy.record(), "error.type": "proxy.loop", "egress.side": "proxy");
    }
}

#[test]
fn a_loop_of_two_proxies_ends_at_the_first_turn() {
    let (one, two) = (Origin::free(), Origin::free());
    let through = |next: SocketAddr| {
        format!(
            "version: 1\nupstreams: {{next: {{url: \"http://{next}\"}}}}\nrules: []\ndefault: {{via: next}}\n"
        )
    };
    let first = Proxy::under(&through(two))
        .arg("--listen")
        .arg(&one.to_string())
        .start();
    let second = Proxy::under(&through(one))
        .arg("--listen")
        .arg(&two.to_string())
        .start();
    let client = first.connect();
    wire::send(
        &client,
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
    );
    assert!(wire::read_head(&client).starts_with("HTTP/1.1 508 upstream.loop: "));
    drop(client);
    let causes: Vec<_> = first
        .records(2)
        .iter()
        .map(|record| record["error.type"].clone())
        .collect();
    assert_eq!(causes, ["proxy.loop", "upstream.loop"]);
    check!(&second.record(), "error.type": "upstream.loop");
}

#[test]
fn a_port_that_alone_is_denied_is_told_from_a_host() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, false, "");
    let ask = |target: &str, answer: &str| {
        let client = proxy.connect();
        wire::send(&client, connect(target));
        let (server, _) = upstream.hear();
        wire::send(&server, answer);
        if answer.contains(" 200 ") {
            wire::read_head(&client);
            wire::send(&server, "hello");
            wire::finish(&server);
        }
        drop(server);
        let text = wire::read_text(&client);
        drop(client);
        (text, proxy.record())
    };
    let forbidden = "HTTP/1.1 403 Forbidden\r\n\r\n";
    let (_, record) = ask("a.example:8443", forbidden);
    check!(&record, "error.type": "upstream.denied", "http.response.status_code": 403);
    let (_, record) = ask("a.example:443", "HTTP/1.1 200 OK\r\n\r\n");
    check!(&record, "event.outcome": "success");
    let (text, record) = ask("a.example:8443", forbidden);
    assert!(
        text.starts_with("HTTP/1.1 403 upstream.port_denied: "),
        "{text}"
    );
    check!(&record, "error.type": "upstream.port_denied", "egress.side": "upstream",
        "egress.phase": "upstream", "http.response.status_code": 403);
    check!(&record["egress.attempts"][0], "cause": "upstream.port_denied");
    check!(&record["egress.suspects"][0], "name": "upstream_policy");
}
