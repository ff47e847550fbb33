//! Chains: a hop that fails is followed by the next, and the client does not notice.

mod support;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use support::origin::Listening;
use support::web::Ca;
use support::{Proxy, check, tls, wire};

/// A proxy with a chain of two: `direct`, to a server whose every word is the test's, and an upstream that is as much so.
struct Scene {
    proxy: Proxy,
    blocked: Listening,
    relay: Listening,
}

/// What a chain is, its timeouts, and the rest of the defaults.
struct Chain<'a> {
    chain: &'a str,
    defaults: &'a str,
}

const PIPE: Chain<'_> = Chain {
    chain: "{hops: [direct, relay]}",
    defaults: "",
};

impl Scene {
    fn new() -> Self {
        Self::under(&PIPE)
    }

    fn of(chain: &str) -> Self {
        Self::under(&Chain { chain, ..PIPE })
    }

    fn under(chain: &Chain<'_>) -> Self {
        let (blocked, relay) = (Listening::new(), Listening::new());
        let Chain { chain, defaults } = chain;
        let proxy = Proxy::start(&format!(
            "version: 1\nupstreams: {{relay: {{url: \"http://{}\"}}}}\nchains: {{heal: {chain}}}\n\
             defaults: {{{defaults}}}\nrules: []\ndefault: {{via: heal}}\n",
            relay.address
        ));
        Self {
            proxy,
            blocked,
            relay,
        }
    }

    /// A tunnel: the client's end, and the first hop's.
    fn open(&self) -> (TcpStream, TcpStream) {
        let client = self.ask();
        let first = self.blocked.accept();
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        (client, first)
    }

    fn ask(&self) -> TcpStream {
        let client = self.proxy.connect();
        let target = self.blocked.address;
        wire::send(&client, format!("CONNECT {target} HTTP/1.1\r\n\r\n"));
        client
    }

    /// The second hop's end, behind a CONNECT of its own.
    fn relayed(&self) -> TcpStream {
        let (second, head) = self.relay.hear();
        let target = self.blocked.address;
        assert!(head.starts_with(&format!("CONNECT {target} ")), "{head}");
        wire::send(&second, "HTTP/1.1 200 OK\r\n\r\n");
        second
    }

    /// A tunnel whose first hop resets what it hears; the client's end, and the second hop's.
    fn heal(&self, hello: &[u8]) -> (TcpStream, TcpStream) {
        let (client, first) = self.open();
        wire::send(&client, hello);
        assert_eq!(wire::read_exact(&first, hello.len()), hello);
        wire::reset(first);
        let second = self.relayed();
        assert_eq!(wire::read_exact(&second, hello.len()), hello);
        (client, second)
    }

    /// The record; the cause of each attempt, by its hop.
    #[track_caller]
    fn attempts(&self) -> (Value, Vec<(String, Value)>) {
        let record = self.proxy.record();
        let attempts = record["egress.attempts"].as_array().unwrap().iter();
        let told = |attempt: &Value| {
            let hop = attempt["hop"].as_str().unwrap().to_owned();
            (hop, attempt["cause"].clone())
        };
        let attempts = attempts.map(told).collect();
        (record, attempts)
    }
}

/// What a client of TLS says first.
fn hello() -> Vec<u8> {
    tls::Client {
        name: "a.example",
        trusts: &Ca::new(),
        versions: tls::BOTH,
    }
    .hello()
}

/// The beginning of a ServerHello.
const ANSWER: [u8; 6] = [22, 3, 3, 0, 1, 2];

fn attempts(expected: &[(&str, Option<&str>)]) -> Vec<(String, Value)> {
    let own = |(hop, cause): &(&str, Option<&str>)| ((*hop).to_owned(), json!(cause));
    expected.iter().map(own).collect()
}

/// Lets an answer through to the client, and ends the tunnel in order.
#[track_caller]
fn answer(client: TcpStream, server: TcpStream) {
    wire::send(&server, ANSWER);
    assert_eq!(wire::read_exact(&client, ANSWER.len()), ANSWER);
    drop((server, client));
}

#[test]
fn a_handshake_that_is_reset_on_one_hop_goes_on_over_the_next() {
    let scene = Scene::new();
    let hello = hello();
    let (client, second) = scene.heal(&hello);
    answer(client, second);
    let (record, tried) = scene.attempts();
    check!(&record,
        "egress.route": "heal", "egress.hop": "relay", "egress.upstream.name": "relay", "http.request.resend_count": 1,
        "source.bytes": (hello.len()), "destination.bytes": 6, "network.peer.port": (scene.relay.address.port()),
        "tls.client.server_name": "a.example", "http.response.status_code": 200);
    let expected = [
        ("direct", Some("tls.reset_after_client_hello")),
        ("relay", None),
    ];
    assert_eq!(tried, attempts(&expected));
}

#[test]
fn an_end_in_order_and_a_silence_lead_to_the_next_hop_as_a_reset_does() {
    let hello = hello();
    for (defaults, cause) in [
        ("", "tls.closed_after_client_hello"),
        ("timeouts: {hello: 200ms}", "tls.no_server_hello"),
    ] {
        let is_silent = !defaults.is_empty();
        let scene = Scene::under(&Chain { defaults, ..PIPE });
        let (client, first) = scene.open();
        let since = Instant::now();
        wire::send(&client, &hello);
        assert_eq!(wire::read_exact(&first, hello.len()), hello);
        let first = if is_silent {
            Some(first)
        } else {
            drop(first);
            None
        };
        let second = scene.relayed();
        assert!(!is_silent || since.elapsed() >= Duration::from_millis(200));
        assert_eq!(wire::read_exact(&second, hello.len()), hello);
        drop(first);
        answer(client, second);
        let (_, tried) = scene.attempts();
        let expected = [("direct", Some(cause)), ("relay", None)];
        assert_eq!(tried, attempts(&expected));
    }
}

/// A ClientHello with `early_data` (RFC 8446, section 4.2.10), and early data behind it.
fn early_data() -> (Vec<u8>, Vec<u8>) {
    let mut hello = tls::long_hello("a.example", 400);
    // The padding, which is the last extension, becomes another with a body as long: then its type says what it is.
    let padding = hello.len() - (hello.len() - tls::long_hello("a.example", 0).len()) - 4;
    hello[padding..padding + 2].copy_from_slice(&42_u16.to_be_bytes());
    (hello, vec![23, 3, 3, 0, 3, 1, 2, 3])
}

#[test]
fn early_data_is_never_sent_twice() {
    let (hello, data) = early_data();
    for behind in [&data[..], &[]] {
        let scene = Scene::new();
        let (client, first) = scene.open();
        let flight = [&hello, behind].concat();
        wire::send(&client, &flight);
        assert_eq!(wire::read_exact(&first, flight.len()), flight);
        wire::reset(first);
        assert!(wire::is_reset(&client));
        let (record, tried) = scene.attempts();
        assert!(scene.relay.is_untouched());
        check!(&record, "egress.tls.early_data": true, "error.type": "tls.reset_after_client_hello", "egress.hop": "direct");
        assert_eq!(tried.len(), 1);
    }
}

#[test]
fn a_client_hello_in_many_segments_and_records_is_put_together_first() {
    let scene = Scene::new();
    let whole = tls::long_hello("a.example", 1800);
    // The same message in three records (RFC 8446, section 5.1).
    let message = &whole[5..];
    let hello: Vec<u8> = message
        .chunks(700)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1][..], &length, part].concat()
        })
        .collect();
    let (client, first) = scene.open();
    for segment in hello.chunks(113) {
        wire::send(&client, segment);
        std::thread::yield_now();
    }
    assert_eq!(wire::read_exact(&first, hello.len()), hello);
    wire::reset(first);
    let second = scene.relayed();
    assert_eq!(wire::read_exact(&second, hello.len()), hello);
    answer(client, second);
    let record = scene.proxy.record();
    check!(&record, "egress.tls.client_hello_records": 3, "egress.tls.client_hello_bytes": (hello.len()));
}

#[test]
fn half_a_client_hello_is_passed_on_in_the_end_and_sent_once() {
    let scene = Scene::new();
    let hello = hello();
    let (begin, rest) = hello.split_at(hello.len() / 2);
    let (client, first) = scene.open();
    let since = Instant::now();
    wire::send(&client, begin);
    assert_eq!(wire::read_exact(&first, begin.len()), begin);
    assert!(
        since.elapsed() >= Duration::from_millis(290),
        "{:?}",
        since.elapsed()
    );
    wire::send(&client, rest);
    assert_eq!(wire::read_exact(&first, rest.len()), rest);
    wire::reset(first);
    assert!(wire::is_reset(&client));
    let (_, tried) = scene.attempts();
    assert_eq!(tried.len(), 1);
    assert!(scene.relay.is_untouched());
}

/// The random of a ServerHello that asks for another ClientHello (RFC 8446, section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

#[test]
fn a_server_that_asks_for_another_hello_has_spoken() {
    let mut retry = vec![22, 3, 3, 0, 56, 2, 0, 0, 52, 3, 3];
    retry.extend(RETRY);
    // No session, TLS_AES_128_GCM_SHA256, no compression; TLS 1.3 and secp256r1.
    retry.extend([0, 0x13, 1, 0, 0, 12, 0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0, 23]);
    let length = u8::try_from(retry.len() - 5).unwrap();
    (retry[4], retry[8]) = (length, length - 4);
    for outruns in [&retry[..], &ANSWER] {
        // A ServerHello that outruns the reset is as final.
        let scene = Scene::new();
        let (client, first) = scene.open();
        let hello = hello();
        wire::send(&client, &hello);
        wire::read_exact(&first, hello.len());
        wire::send(&first, outruns);
        assert_eq!(wire::read_exact(&client, outruns.len()), outruns);
        wire::reset(first);
        assert!(wire::is_reset(&client));
        let (record, tried) = scene.attempts();
        check!(&record, "egress.hop": "direct", "error.type": "tls.reset_during_server_flight");
        assert_eq!(tried.len(), 1);
        assert!(scene.relay.is_untouched());
    }
}

#[test]
fn a_client_that_leaves_is_no_failure_of_the_hop() {
    let scene = Scene::of("{hops: [direct, relay], memory: {ttl: 1h}}");
    let hello = hello();
    // In silence, inside its hello, and behind it; by its FIN and by a reset.
    for (said, fin, rst) in [
        (0, Value::Null, "client.reset"),
        (
            100,
            json!("tls.client_hello_incomplete"),
            "tls.client_hello_incomplete",
        ),
        (
            hello.len(),
            json!("client.gave_up.tls"),
            "client.gave_up.tls",
        ),
    ] {
        for is_fin in [true, false] {
            let (client, first) = scene.open();
            wire::send(&client, &hello[..said]);
            if said == hello.len() {
                wire::read_exact(&first, said);
            }
            if is_fin {
                wire::finish(&client);
                let heard = wire::read_to_end(&first);
                assert!(said == hello.len() || heard == hello[..said]);
                drop(first);
                wire::read_to_end(&client);
            } else {
                wire::reset(client);
                assert!(wire::is_reset(&first) || said == 100);
            }
            let (record, tried) = scene.attempts();
            let cause = if is_fin { fin.clone() } else { json!(rst) };
            assert_eq!(record["error.type"], cause, "{said} {is_fin} {record:#}");
            assert_eq!(tried, attempts(&[("direct", None)]), "{said} {is_fin}");
        }
    }
    assert!(scene.relay.is_untouched());
    // And the hop that it left is the first again.
    let (client, first) = scene.open();
    drop((first, client));
}

#[test]
fn a_client_that_leaves_while_the_next_hop_is_dialled_ends_it() {
    let scene = Scene::new();
    let hello = hello();
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    wire::reset(first);
    let (second, _) = scene.relay.hear();
    drop(client);
    assert_eq!(wire::read_to_end(&second), b"");
    let (record, tried) = scene.attempts();
    check!(&record,
        "error.type": "client.gave_up.upstream", "egress.side": "client", "source.bytes": (hello.len()),
        "http.request.resend_count": null);
    assert_eq!(tried.len(), 2);
    assert_eq!(tried[0].1, "tls.reset_after_client_hello");
}

#[test]
fn every_hop_has_its_part_of_the_budget_and_the_last_no_limit() {
    let scene = Scene::under(&Chain {
        chain: "{hops: [direct, relay], retry: {budget: 800ms}}",
        defaults: "timeouts: {hello: 10s}",
    });
    let hello = hello();
    // The budget begins before the connection stands.
    let since = Instant::now();
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    // Long before `hello` is over.
    let second = scene.relayed();
    let took = since.elapsed();
    let (soon, late) = (Duration::from_millis(400), Duration::from_secs(9));
    assert!((soon..late).contains(&took), "{took:?}");
    wire::read_exact(&second, hello.len());
    std::thread::sleep(Duration::from_secs(1));
    answer(client, second);
    let (record, _) = scene.attempts();
    check!(&record, "event.outcome": "failure", "egress.hop": "relay");
    drop(first);
}

#[test]
fn a_comma_does_not_go_on_after_a_reset_nor_remember_it() {
    let chain = "{hops: [{use: direct, next_on: not_found}, relay], memory: {ttl: 1h}, on_exhausted: alert}";
    let scene = Scene::of(chain);
    let hello = hello();
    for is_reset in [true, false, true] {
        let (client, first) = scene.open();
        wire::send(&client, &hello);
        wire::read_exact(&first, hello.len());
        // It is told in the way that it came: there is a hop left that was not asked.
        if is_reset {
            wire::reset(first);
            assert!(wire::is_reset(&client));
        } else {
            drop(first);
            assert!(wire::is_fin(&client));
        }
        let (record, tried) = scene.attempts();
        let cause = if is_reset {
            "tls.reset_after_client_hello"
        } else {
            "tls.closed_after_client_hello"
        };
        check!(&record, "error.type": cause, "egress.hop": "direct");
        assert_eq!(tried, attempts(&[("direct", Some(cause))]));
        assert!(scene.relay.is_untouched());
    }
}

#[test]
fn what_all_hops_failed_of_is_told_and_the_client_as_the_policy_says() {
    for (word, told) in [
        ("rst", None),
        ("fin", Some(Vec::new())),
        ("alert", Some(tls::alert(80))),
    ] {
        let scene = Scene::of(&format!("{{hops: [direct, relay], on_exhausted: {word}}}"));
        let hello = hello();
        let (client, second) = scene.heal(&hello);
        drop(second);
        match &told {
            None => assert!(wire::is_reset(&client)),
            Some(bytes) => assert_eq!(wire::read_to_end(&client), *bytes),
        }
        let (record, tried) = scene.attempts();
        check!(&record,
            "error.type": "tls.reset_after_client_hello", "egress.hop": "relay", "source.bytes": (hello.len()),
            "http.request.resend_count": 1, "destination.bytes": 0, "tls.client.server_name": "a.example");
        let message = record["error.message"].as_str().unwrap();
        assert!(
            message.ends_with("; relay: tls.closed_after_client_hello"),
            "{message}"
        );
        let expected = [
            ("direct", Some("tls.reset_after_client_hello")),
            ("relay", Some("tls.closed_after_client_hello")),
        ];
        assert_eq!(tried, attempts(&expected));
    }
}

#[test]
fn a_server_that_speaks_first_is_kept() {
    let scene = Scene::new();
    let (client, first) = scene.open();
    let banner = b"SSH-2.0-probe\r\n";
    wire::send(&first, banner);
    assert_eq!(wire::read_exact(&client, banner.len()), banner);
    wire::send(&client, "SSH-2.0-client\r\n");
    assert_eq!(wire::read_exact(&first, 16), b"SSH-2.0-client\r\n");
    wire::reset(first);
    assert!(wire::is_reset(&client));
    let record = scene.proxy.record();
    check!(&record,
        "error.type": "tunnel.reset_by_server", "egress.hop": "direct", "source.bytes": 16,
        "destination.bytes": (banner.len()));
    assert!(scene.relay.is_untouched());
}

#[test]
fn what_is_no_tls_goes_out_at_once_and_once() {
    let scene = Scene::new();
    let mut least = Duration::MAX;
    // One byte is enough to tell.
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x05", b"EHLO"] {
        let (client, first) = scene.open();
        let since = Instant::now();
        wire::send(&client, said);
        assert_eq!(wire::read_exact(&first, said.len()), said);
        least = least.min(since.elapsed());
        wire::reset(first);
        assert!(wire::is_reset(&client));
        let record = scene.proxy.record();
        check!(&record, "error.type": "tunnel.reset_by_server", "source.bytes": (said.len()));
        assert!(scene.relay.is_untouched());
    }
    // What might be TLS would be waited for each time.
    assert!(least < Duration::from_millis(250), "{least:?}");
}

#[test]
fn bytes_behind_the_hello_make_it_final() {
    for is_together in [true, false] {
        let scene = Scene::new();
        let hello = hello();
        let behind = [22, 3, 3, 0, 1, 9];
        let (client, first) = scene.open();
        if is_together {
            wire::send(&client, [&hello[..], &behind].concat());
        } else {
            wire::send(&client, &hello);
            wire::read_exact(&first, 1);
            wire::send(&client, behind);
        }
        let rest = hello.len() + behind.len() - usize::from(!is_together);
        assert_eq!(wire::read_exact(&first, rest)[rest - 6..], behind);
        wire::reset(first);
        assert!(wire::is_reset(&client));
        let (record, tried) = scene.attempts();
        check!(&record, "source.bytes": (hello.len() + behind.len()), "error.type": "tls.reset_after_client_hello");
        assert_eq!(tried.len(), 1);
        assert!(scene.relay.is_untouched());
    }
}

/// What a filter writes into a handshake.
const PAGE: &[u8] = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\nblocked";

#[test]
fn a_page_in_place_of_a_handshake_leads_to_the_next_hop_and_is_shown_by_the_last() {
    let scene = Scene::new();
    let hello = hello();
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    wire::send(&first, PAGE);
    let second = scene.relayed();
    assert_eq!(wire::read_exact(&second, hello.len()), hello);
    wire::send(&second, PAGE);
    assert_eq!(wire::read_exact(&client, PAGE.len()), PAGE);
    drop(second);
    drop(client);
    let (record, tried) = scene.attempts();
    check!(&record, "error.type": "tls.not_tls_reply", "egress.hop": "relay", "egress.tls.reply_status": 403);
    let expected = [("direct", Some("tls.not_tls_reply")), ("relay", None)];
    assert_eq!(tried, attempts(&expected));
}

#[test]
fn an_alert_is_the_servers_word_unless_the_policy_asks_for_another() {
    let hello = hello();
    let unknown = tls::alert(112);
    let scene = Scene::new();
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    wire::send(&first, &unknown);
    assert_eq!(wire::read_exact(&client, unknown.len()), unknown);
    drop((first, client));
    let (record, tried) = scene.attempts();
    check!(&record, "error.type": "tls.alert_from_server.unrecognized_name", "egress.hop": "direct");
    assert_eq!(tried.len(), 1);

    let scene = Scene::of("{hops: [{use: direct, next_on: [any_but_denied, tls_alert]}, relay]}");
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    wire::send(&first, &unknown);
    let second = scene.relayed();
    assert_eq!(wire::read_exact(&second, hello.len()), hello);
    answer(client, second);
    let (_, tried) = scene.attempts();
    let expected = [
        ("direct", Some("tls.alert_from_server.unrecognized_name")),
        ("relay", None),
    ];
    assert_eq!(tried, attempts(&expected));
    // A warning is none: a ServerHello comes behind it.
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    let warning = [21, 3, 3, 0, 2, 1, 112];
    wire::send(&first, warning);
    assert_eq!(wire::read_exact(&client, 7), warning);
    assert!(scene.relay.is_untouched());
}

#[test]
fn a_tunnel_that_is_committed_at_its_connection_is_never_replayed() {
    let scene = Scene::under(&Chain {
        defaults: "commit: connect",
        ..PIPE
    });
    let hello = hello();
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    wire::reset(first);
    assert!(wire::is_reset(&client));
    let (record, tried) = scene.attempts();
    check!(&record, "error.type": "tls.reset_after_client_hello", "egress.hop": "direct");
    assert_eq!(tried.len(), 1);
    assert!(scene.relay.is_untouched());
}

#[test]
fn a_hop_that_failed_a_host_is_passed_over_for_a_while() {
    let scene = Scene::of("{hops: [direct, relay], memory: {ttl: 3s}}");
    let hello = hello();
    let (client, second) = scene.heal(&hello);
    let failed = Instant::now();
    answer(client, second);
    scene.proxy.record();
    let client = scene.ask();
    let second = scene.relayed();
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    wire::send(&client, &hello);
    assert_eq!(wire::read_exact(&second, hello.len()), hello);
    answer(client, second);
    let (record, tried) = scene.attempts();
    assert_eq!(tried, attempts(&[("relay", None)]));
    check!(&record, "egress.notes": ["tls.sni_differs_from_connect", "chain.remembered"], "http.request.resend_count": null);
    std::thread::sleep(Duration::from_millis(3100).saturating_sub(failed.elapsed()));
    let (client, first) = scene.open();
    drop((first, client));
}

#[test]
fn the_addresses_of_direct_are_tried_among_themselves_first() {
    let (first, relay) = (Listening::new(), Listening::new());
    let port = first.address.port();
    let proxy = Proxy::start(&format!(
        "version: 1\ndns: {{hosts: {{two.test: [127.0.0.9, 127.0.0.1]}}}}\n\
         upstreams: {{relay: {{url: \"http://{}\"}}}}\nrules: []\ndefault: {{via: \"direct|relay\"}}\n",
        relay.address
    ));
    let client = proxy.connect();
    wire::send(&client, format!("CONNECT two.test:{port} HTTP/1.1\r\n\r\n"));
    let first = first.accept();
    let hello = hello();
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    assert!(relay.is_untouched());
    wire::reset(first);
    let (second, _) = relay.hear();
    wire::send(&second, "HTTP/1.1 200 OK\r\n\r\n");
    wire::read_exact(&second, hello.len());
    answer(client, second);
    let record = proxy.record();
    let tried = &record["egress.attempts"];
    check!(&tried[0], "hop": "direct", "cause": "connect.refused", "address": (format!("127.0.0.9:{port}")));
    check!(&tried[1], "hop": "direct", "cause": "tls.reset_after_client_hello");
    check!(&tried[2], "hop": "relay", "cause": null);
}

#[test]
fn a_hop_that_is_slow_gets_company_and_the_record_is_of_the_one_that_served() {
    let (slow, quick) = (Listening::new(), Listening::new());
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{slow: {{url: \"http://{}\"}}, quick: {{url: \"http://{}\"}}}}\n\
         chains: {{heal: {{hops: [slow, quick], hedge: 50ms}}}}\nrules: []\ndefault: {{via: heal}}\n",
        slow.address, quick.address
    ));
    let client = proxy.connect();
    wire::send(&client, "CONNECT a.example:443 HTTP/1.1\r\n\r\n");
    let (waiting, _) = slow.hear();
    let (second, _) = quick.hear();
    wire::send(&second, "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    assert_eq!(wire::read_to_end(&waiting), b"", "it is not waited for");
    answer_to(&client, &second);
    drop((second, client));
    let record = proxy.record();
    check!(&record,
        "egress.hop": "quick", "egress.upstream.name": "quick", "network.peer.port": (quick.address.port()));
    check!(&record["egress.attempts"][0], "hop": "slow");
    check!(&record["egress.attempts"][1], "hop": "quick", "cause": null);
}

/// A ClientHello there, and an answer back.
fn answer_to(client: &TcpStream, server: &TcpStream) {
    let hello = hello();
    wire::send(client, &hello);
    assert_eq!(wire::read_exact(server, hello.len()), hello);
    wire::send(server, ANSWER);
    assert_eq!(wire::read_exact(client, ANSWER.len()), ANSWER);
}

#[test]
fn a_certificate_that_the_client_does_not_take_is_no_failure_of_a_hop() {
    let scene = Scene::of("{hops: [direct, relay], memory: {ttl: 1h}}");
    let (ca, other) = (Ca::new(), Ca::named("another"));
    let client = tls::Client {
        name: "a.example",
        trusts: &ca,
        versions: tls::ONLY_12,
    };
    let wrong = tls::server(&other.identity(tls::Leaf::Good, "a.example"), tls::ONLY_12);
    let (stream, first) = scene.open();
    std::thread::scope(|scope| {
        scope.spawn(|| tls::echo(&wrong, first));
        client.knock(stream);
    });
    let (record, tried) = scene.attempts();
    check!(&record, "error.type": "tls.client_rejected_certificate.unknown_ca", "egress.hop": "direct");
    assert_eq!(tried, attempts(&[("direct", None)]));
    assert!(scene.relay.is_untouched());
    // The same behind a replay: what is judged is what the hop that served has shown.
    let (stream, first) = scene.open();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            tls::resets_after_the_hello(first, Duration::ZERO);
            tls::echo(&wrong, scene.relayed());
        });
        client.knock(stream);
    });
    let (record, tried) = scene.attempts();
    check!(&record,
        "error.type": "tls.client_rejected_certificate.unknown_ca", "egress.hop": "relay", "http.request.resend_count": 1);
    assert!(
        record["tls.server.issuer"]
            .as_str()
            .unwrap()
            .contains("another"),
        "{record:#}"
    );
    assert_eq!(tried[0].1, "tls.reset_after_client_hello");
}

#[test]
fn a_whole_session_passes_behind_a_replay_and_counts_each_byte_once() {
    let scene = Scene::new();
    let ca = Ca::new();
    let client = tls::Client {
        name: "a.example",
        trusts: &ca,
        versions: tls::BOTH,
    };
    let config = tls::server(&ca.identity(tls::Leaf::Good, "a.example"), tls::BOTH);
    let (stream, first) = scene.open();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            tls::closes_without_reading(first);
            tls::echo(&config, scene.relayed());
        });
        client.talk(stream).unwrap();
    });
    let (record, tried) = scene.attempts();
    check!(&record,
        "event.outcome": "success", "egress.hop": "relay", "tls.established": true, "error.type": null,
        "http.request.resend_count": 1);
    assert_eq!(tried[0].1, "tls.reset_after_client_hello");
}

#[test]
fn a_silent_client_is_not_waited_for_for_ever() {
    let scene = Scene::under(&Chain {
        defaults: "timeouts: {idle: 400ms}",
        ..PIPE
    });
    let (client, first) = scene.open();
    assert!(wire::is_fin(&client));
    assert_eq!(wire::read_to_end(&first), b"");
    let (record, tried) = scene.attempts();
    check!(&record, "error.type": "tls.client_silent", "egress.hop": "direct");
    assert_eq!(tried, attempts(&[("direct", None)]));
    assert!(scene.relay.is_untouched());
}

#[test]
fn a_last_hop_that_is_silent_is_ended_by_the_idle_limit_alone() {
    let scene = Scene::under(&Chain {
        defaults: "timeouts: {hello: 100ms, idle: 900ms}",
        ..PIPE
    });
    let hello = hello();
    let (client, first) = scene.open();
    wire::send(&client, &hello);
    wire::read_exact(&first, hello.len());
    let since = Instant::now();
    let second = scene.relayed();
    wire::read_exact(&second, hello.len());
    assert!(wire::is_fin(&client));
    assert!(since.elapsed() >= Duration::from_millis(900));
    let (record, tried) = scene.attempts();
    check!(&record, "error.type": "tls.no_server_hello", "egress.hop": "relay");
    assert_eq!(tried[0].1, "tls.no_server_hello");
}

#[test]
fn a_hop_that_ends_before_the_client_speaks_is_followed_by_the_next() {
    let scene = Scene::new();
    let (client, first) = scene.open();
    drop(first);
    let second = scene.relayed();
    let hello = hello();
    wire::send(&client, &hello);
    assert_eq!(wire::read_exact(&second, hello.len()), hello);
    answer(client, second);
    let (record, tried) = scene.attempts();
    // Nothing was sent twice.
    check!(&record, "http.request.resend_count": null, "source.bytes": (hello.len()));
    let expected = [
        ("direct", Some("tls.reset_before_client_hello")),
        ("relay", None),
    ];
    assert_eq!(tried, attempts(&expected));
}

#[test]
fn what_is_on_trial_when_the_process_ends_is_cut_and_recorded() {
    for is_spoken in [false, true] {
        let (blocked, relay) = (Listening::new(), Listening::new());
        let proxy = Proxy::under(&format!(
            "version: 1\nserver: {{drain_timeout: 200ms}}\nupstreams: {{relay: {{url: \"http://{}\"}}}}\nrules: []\n\
             default: {{via: \"direct|relay\"}}\n",
            relay.address
        ))
        .start();
        let client = proxy.connect();
        let target = blocked.address;
        wire::send(&client, format!("CONNECT {target} HTTP/1.1\r\n\r\n"));
        let first = blocked.accept();
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        let hello = hello();
        if is_spoken {
            wire::send(&client, &hello);
            wire::read_exact(&first, hello.len());
        }
        let (status, records) = proxy.stop();
        assert!(status.success(), "{status}");
        assert!(wire::is_reset(&client) && wire::is_reset(&first));
        assert_eq!(records.len(), 1);
        let sent = if is_spoken { hello.len() } else { 0 };
        check!(&records[0], "error.type": "tunnel.shutdown", "source.bytes": sent, "egress.hop": "direct");
    }
}

/// What the first hop does before its first byte.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Resets,
    Ends,
    IsSilent,
}

/// Reads until there is no more, however that ends: what came.
fn hear_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = std::io::Read::read(&mut stream, &mut buffer) {
        heard.extend(&buffer[..count]);
    }
    heard
}

/// Whatever way the client's flight is cut, and whatever the first hop does at whatever moment before its first byte: the
/// server behind the second hop hears exactly what the client said, once; the first has heard a beginning of it at most.
#[test]
fn however_a_flight_is_cut_the_origin_hears_it_once() {
    let scene = Scene::under(&Chain {
        defaults: "timeouts: {hello: 60ms}",
        ..PIPE
    });
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: 60,
            failure_persistence: None,
            ..Config::default()
        },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let cuts = proptest::collection::vec(1..600_usize, 0..6);
    let deeds = proptest::sample::select(vec![Deed::Resets, Deed::Ends, Deed::IsSilent]);
    let case = (400..2400_usize, cuts, deeds, 0..100_usize, any::<bool>());
    let held = runner.run(&case, |(length, cuts, deed, percent, reads)| {
        let hello = tls::long_hello("a.example", length);
        let (client, first) = scene.open();
        let (heard, second) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &hello[..];
                for cut in &cuts {
                    let (segment, behind) = rest.split_at((*cut).min(rest.len()));
                    wire::send(&client, segment);
                    std::thread::sleep(Duration::from_millis(1));
                    rest = behind;
                }
                wire::send(&client, rest);
            });
            // At its connection, somewhere inside the flight, or behind all of it.
            let wanted = hello.len() * percent / 99;
            let mut heard = Vec::new();
            if reads {
                heard = wire::read_exact(&first, wanted.min(hello.len()));
            }
            match deed {
                Deed::Resets => wire::reset(first),
                Deed::Ends => drop(first),
                Deed::IsSilent => {
                    let second = scene.relayed();
                    heard.extend(hear_all(&first));
                    return (heard, second);
                }
            }
            (heard, scene.relayed())
        });
        prop_assert!(hello.starts_with(&heard));
        prop_assert_eq!(&wire::read_exact(&second, hello.len()), &hello);
        wire::send(&client, b"behind it");
        wire::finish(&client);
        prop_assert_eq!(hear_all(&second), b"behind it".to_vec());
        drop((second, client));
        let record = scene.proxy.record();
        prop_assert_eq!(&record["source.bytes"], hello.len() + 9);
        Ok(())
    });
    held.unwrap();
}
