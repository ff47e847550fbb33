//! Faults: what a policy injects on purpose reaches the client as the real thing would, is named so in the record, and is
//! evidence of nothing.

mod support;

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::origin::{Listening, Origin};
use support::tls::{self, Leaf};
use support::web::{self, Ca, Web};
use support::{Proxy, check, needs, routecause, run, wire};

/// A policy whose `f.test` is here and meets the fault `f`; `more` are further keys.
fn policy(fault: &str, way: &str, more: &str) -> String {
    format!(
        "version: 1\n\
         dns: {{hosts: {{f.test: [127.0.0.1]}}}}\n\
         faults: {{f: {{{fault}}}}}\n\
         rules:\n  - {{name: struck, match: {{host: f.test}}, fault: f, {way}}}\n\
         default: {{direct: true}}\n{more}"
    )
}

fn direct(fault: &str) -> Proxy {
    Proxy::start(&policy(fault, "direct: true", ""))
}

/// Asks for a tunnel.
fn ask(proxy: &Proxy, port: u16) -> TcpStream {
    let client = proxy.connect();
    wire::send(&client, format!("CONNECT f.test:{port} HTTP/1.1\r\n\r\n"));
    client
}

/// A tunnel that stands.
fn tunnel(proxy: &Proxy, port: u16) -> TcpStream {
    let client = ask(proxy, port);
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    client
}

/// Reads until there is no more: what came, and whether the end was a reset.
fn hear(mut stream: &TcpStream) -> (Vec<u8>, bool) {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (heard, false),
            Ok(n) => heard.extend(&buffer[..n]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                return (heard, true);
            }
        }
    }
}

/// A TLS server that says everything again, and its authority.
struct Echo {
    ca: Ca,
    origin: Origin,
}

impl Echo {
    fn new() -> Self {
        let ca = Ca::new();
        let config = tls::server(&ca.identity(Leaf::Good, "f.test"), tls::BOTH);
        let origin = Origin::serving(move |stream| {
            tls::echo(&config, stream);
            String::new()
        });
        Self { ca, origin }
    }

    fn port(&self) -> u16 {
        self.origin.address.port()
    }

    fn client(&self) -> tls::Client<'_> {
        tls::Client {
            name: "f.test",
            trusts: &self.ca,
            versions: tls::ONLY_13,
        }
    }
}

#[test]
fn an_answer_before_anything_is_done_is_given_word_for_word() {
    let proxy = direct(
        "at: accept, do: status, with: {status: 407, reason: Who are you, \
         headers: {proxy-authenticate: Negotiate, server: gate}, body: no}",
    );
    let client = ask(&proxy, 443);
    let (head, body) = wire::read_answer(&client);
    assert!(head.starts_with("HTTP/1.1 407 Who are you\r\n"), "{head}");
    assert_eq!(wire::field(&head, "proxy-authenticate"), Some("Negotiate"));
    assert_eq!(wire::field(&head, "server"), Some("gate"));
    assert_eq!(body, "no");
    // Nothing of ours but the way to the record.
    assert_eq!(wire::field(&head, "proxy-status"), None);
    assert_eq!(wire::field(&head, "via"), None);
    let record = proxy.record();
    assert_eq!(
        wire::field(&head, "x-routecause-record"),
        record["event.id"].as_str()
    );
    check!(&record, "error.type": "upstream.auth_required", "http.response.status_code": 407,
        "egress.fault": ["f"], "egress.rule": "struck", "egress.route": "direct");
}

#[test]
fn a_connection_ends_without_an_answer() {
    let proxy = direct("at: accept, do: reset");
    assert!(wire::is_reset(&ask(&proxy, 443)));
    check!(&proxy.record(), "error.type": "upstream.reset", "egress.fault": ["f"], "http.response.status_code": null);
    let proxy = direct("at: accept, do: close");
    assert!(wire::is_fin(&ask(&proxy, 443)));
    check!(&proxy.record(), "error.type": "upstream.closed", "egress.fault": ["f"]);
    let proxy = direct("at: accept, do: hang");
    let client = ask(&proxy, 443);
    client
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!((&client).read(&mut [0]).is_err());
    drop(client);
    check!(&proxy.record(), "http.response.status_code": 499, "egress.fault": ["f"]);
}

#[test]
fn what_strikes_on_the_way_fails_as_the_real_thing() {
    let timeouts = "defaults: {timeouts: {dns: 200ms, connect: 300ms}}\n";
    for (fault, status, cause, side) in [
        ("at: dns, do: nxdomain", 502, "dns.nxdomain", "network"),
        ("at: dns, do: servfail", 502, "dns.servfail", "network"),
        ("at: dns, do: refuse", 502, "dns.refused", "network"),
        ("at: dns, do: hang", 504, "dns.timeout", "network"),
        (
            "at: dns, do: delay, with: {delay: 1s}",
            504,
            "dns.timeout",
            "network",
        ),
        ("at: connect, do: refuse", 502, "connect.refused", "origin"),
        ("at: connect, do: reset", 502, "connect.reset", "network"),
        ("at: connect, do: hang", 504, "connect.timeout", "network"),
        (
            "at: connect, do: delay, with: {delay: 1s}",
            504,
            "connect.timeout",
            "network",
        ),
    ] {
        let proxy = Proxy::start(&policy(fault, "direct: true", timeouts));
        let head = wire::read_head(&ask(&proxy, 443));
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} {cause}: ")),
            "{fault}: {head}"
        );
        assert!(!head.contains("fault"), "{head}");
        let record = proxy.record();
        check!(&record, "error.type": cause, "egress.side": side, "egress.fault": ["f"], "egress.hop": "direct");
        check!(&record["egress.attempts"][0], "hop": "direct", "cause": cause);
    }
}

#[test]
fn a_wrong_address_is_dialled_and_the_guards_judge_it() {
    let echo = Echo::new();
    let proxy = direct("at: dns, do: answer, with: {ip: 127.0.0.9}");
    let head = wire::read_head(&ask(&proxy, echo.port()));
    assert!(head.starts_with("HTTP/1.1 502 connect.refused: "), "{head}");
    check!(&proxy.record(), "dns.resolved_ip": ["127.0.0.9"], "egress.dns.source": "fault", "egress.fault": ["f"]);
    let proxy = direct("at: dns, do: answer, with: {ip: 169.254.169.254}");
    let head = wire::read_head(&ask(&proxy, 443));
    assert!(
        head.starts_with("HTTP/1.1 403 policy.denied.ip: "),
        "{head}"
    );
}

#[test]
fn a_delay_is_late_and_nothing_else() {
    let echo = Echo::new();
    for fault in [
        "at: accept, do: delay, with: {delay: 300ms, jitter: 50ms}",
        "at: dns, do: delay, with: {delay: 300ms}",
        "at: connect, do: delay, with: {delay: 300ms}",
        "at: client_hello, do: delay, with: {delay: 300ms}",
        "at: server_hello, do: delay, with: {delay: 300ms}",
        "at: {bytes: 100}, do: delay, with: {delay: 300ms}",
    ] {
        let proxy = direct(fault);
        let begun = Instant::now();
        echo.client().talk(tunnel(&proxy, echo.port())).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(240), "{fault}");
        check!(&proxy.record(), "event.outcome": "success", "egress.fault": ["f"]);
    }
}

#[test]
fn an_upstream_fails_as_one_does() {
    let upstream = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\n\r\n");
        tls::listen(&stream);
        head
    });
    let more = |at: SocketAddr, timeouts: &str| {
        format!(
            "upstreams: {{relay: {{url: \"http://{at}\"}}}}\ndefaults: {{timeouts: {{{timeouts}}}}}\n"
        )
    };
    let nowhere = Origin::nowhere();
    for (fault, at, status, cause) in [
        // It is not even asked.
        (
            "at: connect, do: status, with: {status: 504}",
            nowhere,
            504,
            "upstream.reported.timeout",
        ),
        (
            "at: connect, do: refuse",
            upstream.address,
            502,
            "upstream.connect.refused",
        ),
        (
            "at: upstream_reply, do: status, with: {status: 403}",
            upstream.address,
            403,
            "upstream.denied",
        ),
        (
            "at: upstream_reply, do: reset",
            upstream.address,
            502,
            "upstream.reset",
        ),
        (
            "at: upstream_reply, do: close",
            upstream.address,
            502,
            "upstream.closed",
        ),
        (
            "at: upstream_reply, do: hang",
            upstream.address,
            504,
            "upstream.no_reply",
        ),
        (
            "at: upstream_reply, do: status, with: {status: 403}",
            nowhere,
            502,
            "upstream.connect.refused",
        ),
    ] {
        let is_silent = fault.ends_with("hang");
        let timeouts = if is_silent { "proxy_reply: 300ms" } else { "" };
        let proxy = Proxy::start(&policy(fault, "via: relay", &more(at, timeouts)));
        let head = wire::read_head(&ask(&proxy, 443));
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} {cause}: ")),
            "{fault}: {head}"
        );
        let record = proxy.record();
        check!(&record, "error.type": cause, "egress.route": "relay", "egress.hop": "relay");
        // A fault that was not come to has not struck.
        let is_struck = at != nowhere || fault.starts_with("at: connect");
        assert_eq!(record["egress.fault"].is_array(), is_struck, "{fault}");
    }
}

/// Whether a client hears a reset, or the end behind these bytes.
#[derive(Debug, PartialEq)]
enum Heard {
    Reset,
    End(Vec<u8>),
}

#[test]
fn what_strikes_a_handshake_reaches_the_client_so() {
    let echo = Echo::new();
    for (fault, heard, cause) in [
        (
            "at: client_hello, do: reset",
            Heard::Reset,
            "tls.reset_after_client_hello",
        ),
        (
            "at: client_hello, do: reset, side: client",
            Heard::Reset,
            "tls.reset_after_client_hello",
        ),
        (
            "at: client_hello, do: close",
            Heard::End(vec![]),
            "tls.closed_after_client_hello",
        ),
        (
            "at: client_hello, do: alert, with: {alert: unrecognized_name}",
            Heard::End(tls::alert(112)),
            "tls.alert_from_server.unrecognized_name",
        ),
        (
            "at: client_hello, do: not_tls, with: {body: SSH-2.0-x}",
            Heard::End(b"SSH-2.0-x".to_vec()),
            "tls.not_tls_reply",
        ),
        (
            "at: server_hello, do: reset",
            Heard::Reset,
            "tls.reset_after_client_hello",
        ),
        (
            "at: server_hello, do: close",
            Heard::End(vec![]),
            "tls.closed_after_client_hello",
        ),
        (
            "at: server_hello, do: alert, with: {alert: 40}",
            Heard::End(tls::alert(40)),
            "tls.alert_from_server.handshake_failure",
        ),
        (
            "at: server_hello, do: truncate",
            Heard::End(vec![22]),
            "tunnel.truncated",
        ),
        (
            "at: {bytes: 40}, do: truncate, with: {bytes: 0}",
            Heard::End(vec![]),
            "tunnel.truncated",
        ),
    ] {
        let proxy = direct(fault);
        let client = tunnel(&proxy, echo.port());
        wire::send(&client, echo.client().hello());
        let (bytes, is_reset) = hear(&client);
        drop(client);
        match heard {
            Heard::Reset => assert!(is_reset, "{fault}"),
            Heard::End(_) if fault.contains("bytes: 40") => {
                assert_eq!((bytes.len(), is_reset), (40, false));
            }
            Heard::End(said) => assert_eq!((bytes, is_reset), (said, false), "{fault}"),
        }
        check!(&proxy.record(), "error.type": cause, "egress.fault": ["f"], "egress.suspects": null);
    }
}

#[test]
fn a_client_hello_that_is_lost_is_answered_by_nobody() {
    let echo = Echo::new();
    let proxy = direct("at: client_hello, do: hang");
    let client = tunnel(&proxy, echo.port());
    wire::send(&client, echo.client().hello());
    client
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert!((&client).read(&mut [0]).is_err());
    drop(client);
    check!(&proxy.record(), "error.type": "client.gave_up.tls", "egress.fault": ["f"]);
}

#[test]
fn a_byte_that_is_changed_breaks_the_handshake_and_no_other_is_changed() {
    let echo = Echo::new();
    for fault in [
        "at: server_hello, do: corrupt, with: {bytes: 60}",
        "at: client_hello, do: corrupt, with: {bytes: 2}",
        "at: {bytes: 300}, do: corrupt, with: {every: 50}",
    ] {
        let proxy = direct(fault);
        let talked = echo.client().talk(tunnel(&proxy, echo.port()));
        assert!(talked.is_err() || fault.contains("client_hello"), "{fault}");
        check!(&proxy.record(), "egress.fault": ["f"]);
    }
}

#[test]
fn a_tunnel_of_anything_else_passes_untouched_and_its_record_says_nothing() {
    let origin = Listening::new();
    let proxy = direct("at: client_hello, do: reset");
    let client = tunnel(&proxy, origin.address.port());
    let server = origin.accept();
    wire::send(&client, "SSH-2.0-client\r\n");
    assert_eq!(wire::read_exact(&server, 16), b"SSH-2.0-client\r\n");
    wire::send(&server, "SSH-2.0-server\r\n");
    assert_eq!(wire::read_exact(&client, 16), b"SSH-2.0-server\r\n");
    drop((client, server));
    check!(&proxy.record(), "event.outcome": "success", "egress.fault": null);
}

#[test]
fn a_download_is_cut_at_its_byte_the_first_time_only() {
    let content: Vec<u8> = (0..100_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let served = content.clone();
    let origin = Origin::serving(move |stream| {
        // Cut off in the middle, it is reset.
        let _ = std::io::Write::write_all(&mut &stream, &served);
        String::new()
    });
    let proxy = direct("at: {bytes: 65536}, do: reset, when: {first: 1}");
    let (heard, is_reset) = hear(&tunnel(&proxy, origin.address.port()));
    assert!(is_reset && heard.len() <= 65536 && content.starts_with(&heard));
    let record = proxy.record();
    check!(&record, "destination.bytes": 65536, "egress.fault": ["f"]);
    let (heard, is_reset) = hear(&tunnel(&proxy, origin.address.port()));
    assert_eq!((heard, is_reset), (content, false));
    check!(&proxy.record(), "egress.fault": null);
}

#[test]
fn a_silent_tunnel_is_reset() {
    let origin = Listening::new();
    let proxy = direct("at: {idle: 1s}, do: reset");
    let client = tunnel(&proxy, origin.address.port());
    let server = origin.accept();
    wire::send(&client, "hello");
    assert_eq!(wire::read_exact(&server, 5), b"hello");
    assert!(wire::is_reset(&client) && wire::is_reset(&server));
    check!(&proxy.record(), "error.type": "tunnel.reset_by_server", "egress.fault": ["f"]);
}

#[test]
fn a_plain_request_is_struck() {
    let page = "status: 200, headers: {content-type: text/html}, body: <h1>Blocked</h1>";
    for (fault, status, cause) in [
        (
            format!("at: request, do: status, with: {{{page}}}"),
            Some(200),
            "http.captive_portal",
        ),
        (
            "at: request, do: status, with: {status: 407}".to_owned(),
            Some(407),
            "http.status.407",
        ),
        (
            "at: request, do: reset".to_owned(),
            None,
            "http.reset_before_response",
        ),
        (
            "at: request, do: close".to_owned(),
            None,
            "http.empty_reply",
        ),
        (
            "at: request, do: hang".to_owned(),
            Some(504),
            "http.response_timeout",
        ),
        (
            "at: request, do: reset, side: server".to_owned(),
            Some(502),
            "http.empty_reply",
        ),
        (
            "at: response, do: reset".to_owned(),
            Some(502),
            "http.reset_before_response",
        ),
        (
            "at: response, do: close".to_owned(),
            Some(502),
            "http.empty_reply",
        ),
        (
            "at: response, do: hang".to_owned(),
            Some(504),
            "http.response_timeout",
        ),
        (
            "at: response, do: status, with: {status: 503}".to_owned(),
            Some(503),
            "http.status.503",
        ),
    ] {
        let origin = Web::plain(|_| web::answer(200, "content"));
        let is_silent = fault.ends_with("hang");
        let timeouts = "defaults: {timeouts: {first_byte: 300ms}}\n";
        let timeouts = if is_silent { timeouts } else { "" };
        let proxy = Proxy::start(&policy(&fault, "direct: true", timeouts));
        let client = proxy.connect();
        let port = origin.port();
        wire::send(
            &client,
            format!("GET http://f.test:{port}/ HTTP/1.1\r\nhost: f.test:{port}\r\n\r\n"),
        );
        if let Some(status) = status {
            let (head, body) = wire::read_answer(&client);
            assert_eq!(wire::status(&head), status, "{fault}: {head}");
            assert_eq!(body == "<h1>Blocked</h1>", status == 200, "{fault}: {body}");
        } else {
            assert_eq!(wire::is_reset(&client), fault.contains("reset"), "{fault}");
        }
        check!(&proxy.record(), "error.type": cause, "egress.fault": ["f"]);
    }
}

#[test]
fn an_answer_is_cut_in_its_body() {
    let origin = Web::plain(|_| web::answer(200, "content"));
    let proxy = direct("at: response, do: truncate, with: {bytes: 3}");
    let client = proxy.connect();
    let port = origin.port();
    wire::send(
        &client,
        format!("GET http://f.test:{port}/ HTTP/1.1\r\nhost: f.test:{port}\r\n\r\n"),
    );
    let head = wire::read_head(&client);
    assert_eq!(wire::field(&head, "content-length"), Some("7"));
    assert_eq!(hear(&client).0, b"con");
    check!(&proxy.record(), "error.type": "http.incomplete_body", "egress.fault": ["f"]);
}

#[test]
fn each_plain_request_meets_the_fault() {
    let origin = Web::plain(|_| web::answer(200, "content"));
    let proxy = direct("at: request, do: status, with: {status: 503}, when: {every: 2}");
    let client = proxy.connect();
    let port = origin.port();
    let statuses: Vec<u16> = std::iter::repeat_with(|| {
        wire::send(
            &client,
            format!("GET http://f.test:{port}/ HTTP/1.1\r\nhost: f.test:{port}\r\n\r\n"),
        );
        wire::status(&wire::read_answer(&client).0)
    })
    .take(6)
    .collect();
    assert_eq!(statuses, [200, 503, 200, 503, 200, 503]);
}

/// What becomes of so many tunnels in turn: whether the fault struck each.
fn outcomes(proxy: &Proxy, count: usize) -> Vec<bool> {
    let one = |()| {
        let head = wire::read_head(&ask(proxy, 443));
        wire::status(&head) == 418
    };
    let outcomes: Vec<bool> = std::iter::repeat_n((), count).map(one).collect();
    let recorded: Vec<bool> = proxy
        .records(count)
        .iter()
        .map(|record| record["egress.fault"].is_array())
        .collect();
    assert_eq!(outcomes, recorded);
    outcomes
}

#[test]
fn when_says_which_connections_are_struck() {
    let numbers = |when: &str, count: usize| -> Vec<usize> {
        let fault = format!("at: accept, do: status, with: {{status: 418}}, when: {{{when}}}");
        let proxy =
            Proxy::start(&policy(&fault, "direct: true", "").replace("127.0.0.1]", "127.0.0.9]"));
        let struck = outcomes(&proxy, count);
        (1..=count).filter(|at| struck[at - 1]).collect()
    };
    assert_eq!(numbers("first: 2", 5), [1, 2]);
    assert_eq!(numbers("nth: 3", 5), [3]);
    assert_eq!(numbers("every: 2", 5), [2, 4]);
    assert_eq!(numbers("window: {start: 1h}", 3), [0; 0]);
    assert_eq!(numbers("window: {duration: 1h}", 3), [1, 2, 3]);
    let seventh = numbers("probability: 0.3, seed: 7", 20);
    assert_eq!(seventh, numbers("probability: 0.3, seed: 7", 20));
    assert_ne!(seventh, numbers("probability: 0.3, seed: 8", 20));
    assert!((1..=12).contains(&seventh.len()), "{seventh:?}");
}

#[test]
fn a_chain_heals_what_strikes_one_of_its_hops() {
    let echo = Echo::new();
    let relay = Proxy::start(
        "version: 1\ndns: {hosts: {f.test: [127.0.0.1]}}\nrules: []\ndefault: {direct: true}\n",
    );
    let upstream = format!("upstreams: {{relay: {{url: \"{}\"}}}}\n", relay.url());
    let rule = policy(
        "at: client_hello, do: reset",
        "via: \"direct|relay\"",
        &upstream,
    )
    .replace("fault: f,", "fault: {profile: f, hop: direct},");
    let hop = policy("at: client_hello, do: reset", "via: c", &upstream).replace("fault: f, ", "")
        + "chains: {c: {hops: [{use: direct, fault: f}, relay], memory: {ttl: 10m}}}\n";
    for policy in [rule, hop] {
        let proxy = Proxy::start(&policy);
        for _ in 0..3 {
            echo.client().talk(tunnel(&proxy, echo.port())).unwrap();
            let record = proxy.record();
            check!(&record, "event.outcome": "success", "egress.hop": "relay", "egress.fault": ["f"]);
            // What is staged is not remembered: it begins at the first hop again.
            let attempts = &record["egress.attempts"];
            check!(&attempts[0], "hop": "direct", "cause": "tls.reset_after_client_hello");
            check!(&attempts[1], "hop": "relay", "cause": null);
        }
    }
}

#[test]
fn a_fault_that_no_hop_is_named_for_strikes_them_all() {
    let echo = Echo::new();
    let relay = Proxy::start(
        "version: 1\ndns: {hosts: {f.test: [127.0.0.1]}}\nrules: []\ndefault: {direct: true}\n",
    );
    let upstream = format!("upstreams: {{relay: {{url: \"{}\"}}}}\n", relay.url());
    let proxy = Proxy::start(&policy(
        "at: client_hello, do: reset",
        "via: \"direct|relay\"",
        &upstream,
    ));
    let client = tunnel(&proxy, echo.port());
    wire::send(&client, echo.client().hello());
    assert!(wire::is_reset(&client));
    let record = proxy.record();
    let hops: Vec<_> = record["egress.attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["hop"])
        .collect();
    assert_eq!(hops, ["direct", "relay"]);
    check!(&record, "error.type": "tls.reset_after_client_hello", "egress.fault": ["f"]);
}

#[test]
fn it_is_evidence_of_nothing() {
    let more = "defaults: {circuit: {fails: 2, within: 30s, open: 1m}}\n";
    let proxy = Proxy::start(&policy("at: connect, do: refuse", "direct: true", more));
    for _ in 0..5 {
        let (head, body) = wire::read_answer(&ask(&proxy, 443));
        assert!(head.starts_with("HTTP/1.1 502 connect.refused: "), "{head}");
        assert!(!body.contains("before:"), "{body}");
        check!(&proxy.record(), "egress.suspects": null, "error.type": "connect.refused");
    }
}

#[test]
fn a_policy_with_faults_says_so() {
    let text = policy("at: client_hello, do: reset", "direct: true", "");
    let proxy = Proxy::start(&text);
    let line = proxy.diary("this policy injects faults");
    assert!(
        line.contains("WARN") && line.contains("faults=\"f\""),
        "{line}"
    );
    let (status, said, _) = run(routecause().arg("check").arg(&proxy.policy));
    assert!(
        status.success() && said.ends_with("no tests; it injects faults: f\n"),
        "{said}"
    );
    let (_, said, _) = run(routecause().arg("check").arg("--json").arg(&proxy.policy));
    check!(&serde_json::from_str::<Value>(&said).unwrap(), "faults": ["f"]);
    let explain = |arg: &str| {
        let mut command = routecause();
        command.arg("explain").arg("--policy").arg(&proxy.policy);
        if !arg.is_empty() {
            command.arg(arg);
        }
        run(command.arg("f.test:443")).1
    };
    let said = explain("");
    assert!(
        said.contains("  with the fault f on direct: reset at client_hello\n"),
        "{said}"
    );
    let said: Value = serde_json::from_str(&explain("--json")).unwrap();
    check!(&said["decision"], "action": "direct", "faults": [{"name": "f", "hop": "direct", "does": "reset at client_hello"}]);
    let plain = Proxy::start(support::DIRECT);
    let (diary, _) = plain.finish();
    assert!(!diary.contains("faults"), "{diary}");
}

/// What programs say of a name that is reset behind the ClientHello, and of one that answers with an alert.
struct Programs {
    proxy: Proxy,
    echo: Echo,
    home: tempfile::TempDir,
}

impl Programs {
    fn under(fault: &str) -> Self {
        Self {
            proxy: direct(fault),
            echo: Echo::new(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn url(&self) -> String {
        format!("https://f.test:{}/", self.echo.port())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for name in ["no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"] {
            command.env_remove(name);
        }
        for name in ["https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"] {
            command.env(name, self.proxy.url());
        }
        command
            .current_dir(self.home.path())
            .env("HOME", self.home.path());
        command
    }

    /// What a program says, and that its record has the fault.
    fn said(&self, command: &mut Command) -> String {
        let (_, out, err) = run(command);
        check!(&self.proxy.record(), "egress.fault": ["f"], "event.outcome": "failure");
        out + &err
    }
}

/// Faults, with what is looked for in the words of one program.
const SAID: [(&str, &str, &str, &str, &str); 3] = [
    // The fault, curl, Python, Go, Node.
    (
        "at: client_hello, do: reset",
        "reset by peer",
        "ConnectionResetError",
        "connection reset by peer",
        "ECONNRESET",
    ),
    (
        "at: client_hello, do: alert, with: {alert: handshake_failure}",
        "handshake fail",
        "HANDSHAKE_FAILURE",
        "handshake failure",
        "HANDSHAKE_FAILURE",
    ),
    (
        "at: client_hello, do: not_tls",
        "wrong version number",
        "WRONG_VERSION_NUMBER",
        "server gave HTTP response to HTTPS client",
        "WRONG_VERSION_NUMBER",
    ),
];

#[test]
fn what_curl_says() {
    if !needs::has("curl") {
        return;
    }
    for (fault, expected, ..) in SAID {
        let scene = Programs::under(fault);
        let said = scene.said(scene.command("curl").args(["-sSk", &scene.url()]));
        let said = said.to_lowercase();
        assert!(
            said.contains("curl: (35)") && said.contains(expected),
            "{fault}: {said}"
        );
    }
}

#[test]
fn what_python_says() {
    const SCRIPT: &str = "
import ssl, sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], context=ssl._create_unverified_context())
except Exception as error:
    print(repr(error))
";
    if !needs::has("python3") {
        return;
    }
    for (fault, _, expected, ..) in SAID {
        let scene = Programs::under(fault);
        let said = scene.said(scene.command("python3").args(["-c", SCRIPT, &scene.url()]));
        assert!(said.contains(expected), "{fault}: {said}");
    }
}

#[test]
fn what_go_says() {
    const PROGRAM: &str = r#"package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
)

func main() {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	_, err := (&http.Client{Transport: transport}).Get(os.Args[1])
	fmt.Println(err)
}
"#;
    if !needs::has("go") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("main.go"), PROGRAM).unwrap();
    let binary = folder.path().join("get");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&binary).arg("main.go");
    build
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .env("GOFLAGS", "-mod=mod");
    let (status, _, err) = run(&mut build);
    assert!(status.success(), "{err}");
    for (fault, _, _, expected, _) in SAID {
        let scene = Programs::under(fault);
        let said = scene.said(scene.command(binary.to_str().unwrap()).arg(scene.url()));
        assert!(said.contains(expected), "{fault}: {said}");
    }
}

#[test]
fn what_node_says() {
    const SCRIPT: &str = "
const http = require('http'), tls = require('tls');
const [proxy, target] = process.argv.slice(1);
const request = http.request({host: '127.0.0.1', port: proxy, method: 'CONNECT', path: target});
request.on('connect', (_, socket) => {
    const session = tls.connect({socket, servername: 'f.test', rejectUnauthorized: false});
    session.on('error', error => { console.log(error.code, error.message); process.exit(); });
});
request.end();
";
    if !needs::has("node") {
        return;
    }
    for (fault, _, _, _, expected) in SAID {
        let scene = Programs::under(fault);
        let port = scene.proxy.address.port().to_string();
        let target = format!("f.test:{}", scene.echo.port());
        let said = scene.said(scene.command("node").args(["-e", SCRIPT, &port, &target]));
        assert!(said.contains(expected), "{fault}: {said}");
    }
}
