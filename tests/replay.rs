//! Plain requests over a chain: what is sent again to the next hop, and what never is.

mod support;

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::Value;

use support::origin::{self, Listening};
use support::{Proxy, SOON, check, wire};

/// Everything through the chain of the upstreams `a` and `b`, which listen there; `more` is what the policy says beside, and
/// `settings` what the chain does.
fn chain(a: SocketAddr, b: SocketAddr, settings: &str, more: &str) -> Proxy {
    over("[a, b]", a, b, settings, more)
}

fn over(hops: &str, a: SocketAddr, b: SocketAddr, settings: &str, more: &str) -> Proxy {
    Proxy::start(&format!(
        "version: 1\nupstreams: {{a: {{url: \"http://{a}\"}}, b: {{url: \"http://{b}\"}}}}\n\
         chains: {{out: {{hops: {hops}{settings}}}}}\nrules: []\ndefault: {{via: out}}\n{more}"
    ))
}

/// What lets PUT be sent again as well.
const IDEMPOTENT: &str = "defaults: {retry: {methods: idempotent, replay_body: 1KiB}}\n";

const TARGET: &str = "a.example";

fn request(method: &str, fields: &str, body: &str) -> String {
    format!("{method} http://{TARGET}/x HTTP/1.1\r\nHost: {TARGET}\r\n{fields}\r\n{body}")
}

fn with_body(method: &str, body: &str) -> String {
    request(method, &format!("Content-Length: {}\r\n", body.len()), body)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The hops of a record, each with its cause.
fn attempts(record: &Value) -> Vec<(String, Option<String>)> {
    let attempts = record["egress.attempts"].as_array().unwrap().iter();
    attempts
        .map(|attempt| {
            let cause = attempt["cause"].as_str().map(str::to_owned);
            (attempt["hop"].as_str().unwrap().to_owned(), cause)
        })
        .collect()
}

#[track_caller]
fn check_attempts(record: &Value, expected: &[(&str, Option<&str>)]) {
    let got = attempts(record);
    let got: Vec<_> = got
        .iter()
        .map(|(hop, cause)| (hop.as_str(), cause.as_deref()))
        .collect();
    assert_eq!(got, expected, "{record:#}");
}

/// Resets the first hop behind the request's head and body; says whether the second got it.
#[track_caller]
fn resets(policy: &str, sent: &str, body: &str, is_replayed: bool) -> Value {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, "", policy);
    let client = proxy.connect();
    wire::send(&client, sent);
    let (first, head) = a.hear();
    assert_eq!(wire::read_exact(&first, body.len()), body.as_bytes());
    wire::reset(first);
    if is_replayed {
        let (second, again) = b.hear();
        assert_eq!(again, head, "the same request");
        assert_eq!(wire::read_exact(&second, body.len()), body.as_bytes());
        wire::send(&second, OK);
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        let record = proxy.record();
        check_attempts(&record, &[("a", Some("upstream.reset")), ("b", None)]);
        check!(&record, "egress.hop": "b", "http.request.resend_count": 1);
        return record;
    }
    assert_eq!(wire::status(&wire::read_head(&client)), 502, "{sent}");
    assert!(b.is_untouched(), "{sent}");
    let record = proxy.record();
    check_attempts(&record, &[("a", Some("upstream.reset"))]);
    check!(&record, "error.type": "upstream.reset");
    record
}

#[test]
fn what_did_not_go_out_goes_on_whatever_it_is() {
    let b = Listening::new();
    let proxy = chain(origin::Origin::nowhere(), b.address, "", "");
    let client = proxy.connect();
    wire::send(&client, with_body("POST", "once"));
    let (second, head) = b.hear();
    assert!(head.starts_with("POST http://a.example/x "), "{head}");
    assert_eq!(wire::read_exact(&second, 4), b"once");
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    let record = proxy.record();
    check_attempts(
        &record,
        &[("a", Some("upstream.connect.refused")), ("b", None)],
    );
    check!(&record, "egress.route": "out", "egress.hop": "b", "event.outcome": "success",
        "http.request.resend_count": null);
}

#[test]
fn a_request_without_an_answer_is_sent_again_by_its_method() {
    let none = "defaults: {retry: {methods: none}}\n";
    for (policy, method, is_replayed) in [
        ("", "GET", true),
        ("", "HEAD", true),
        ("", "OPTIONS", true),
        ("", "PUT", false),
        ("", "DELETE", false),
        ("", "POST", false),
        (none, "GET", false),
        (IDEMPOTENT, "GET", true),
        (IDEMPOTENT, "PUT", true),
        (IDEMPOTENT, "DELETE", true),
        (IDEMPOTENT, "POST", false),
        (IDEMPOTENT, "PATCH", false),
    ] {
        resets(policy, &request(method, "", ""), "", is_replayed);
    }
}

#[test]
fn a_body_is_sent_again_as_long_as_all_of_it_is_kept() {
    let small = "x".repeat(1024);
    let record = resets(IDEMPOTENT, &with_body("PUT", &small), &small, true);
    check!(&record, "source.bytes": 1024);
    let large = "x".repeat(1025);
    resets(IDEMPOTENT, &with_body("PUT", &large), &large, false);
    let none = "defaults: {retry: {methods: idempotent, replay_body: 0}}\n";
    resets(none, &with_body("PUT", "x"), "x", false);
    resets("", &with_body("GET", "query"), "query", true);
    resets(IDEMPOTENT, &with_body("POST", "once"), "once", false);
}

#[test]
fn a_body_that_is_still_on_its_way_goes_on_to_the_next_hop_from_its_beginning() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, "", IDEMPOTENT);
    let client = proxy.connect();
    wire::send(
        &client,
        request("PUT", "Transfer-Encoding: chunked\r\n", "3\r\none\r\n"),
    );
    let (first, _) = a.hear();
    assert_eq!(wire::read_chunk(&first), b"one");
    wire::reset(first);
    let (second, head) = b.hear();
    assert_eq!(wire::field(&head, "transfer-encoding"), Some("chunked"));
    assert_eq!(wire::read_chunk(&second), b"one");
    wire::send(&client, "3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(wire::read_chunked(&second).0, "two");
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check_attempts(
        &proxy.record(),
        &[("a", Some("upstream.reset")), ("b", None)],
    );
    // Both connections are of use for the next request.
    wire::send(&client, request("GET", "", ""));
    assert!(wire::read_head(&second).starts_with("GET "));
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
}

#[test]
fn a_wish_to_upgrade_is_not_repeated() {
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    resets("", &request("GET", fields, ""), "", false);
}

#[test]
fn a_body_that_waits_for_a_100_waits_at_the_next_hop_again() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, "", IDEMPOTENT);
    let client = proxy.connect();
    let fields = "Expect: 100-continue\r\nContent-Length: 4\r\n";
    wire::send(&client, request("PUT", fields, ""));
    let (first, _) = a.hear();
    wire::reset(first);
    let (second, head) = b.hear();
    assert_eq!(wire::field(&head, "expect"), Some("100-continue"));
    wire::send(&second, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 100);
    wire::send(&client, "body");
    assert_eq!(wire::read_exact(&second, 4), b"body");
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
}

#[test]
fn a_hop_that_began_to_answer_is_not_left() {
    for began in ["HTTP/1.1 2", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
        let (a, b) = (Listening::new(), Listening::new());
        let proxy = chain(a.address, b.address, "", "");
        let client = proxy.connect();
        wire::send(&client, request("GET", "", ""));
        let (first, _) = a.hear();
        wire::send(&first, began);
        // Whether it was read before the reset or not: the kernel has it.
        std::thread::sleep(std::time::Duration::from_millis(50));
        wire::reset(first);
        assert_eq!(wire::status(&wire::read_head(&client)), 502);
        assert!(b.is_untouched(), "{began:?}");
        check_attempts(&proxy.record(), &[("a", Some("upstream.reset"))]);
    }
}

#[test]
fn an_answer_that_was_cut_is_not_asked_for_again() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, ", on_status: [503]", "");
    let client = proxy.connect();
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome");
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    assert_eq!(wire::read_exact(&client, 4), b"some");
    wire::reset(first);
    check!(&proxy.record(), "error.type": "http.reset_in_body");
    assert!(b.is_untouched());
}

#[test]
fn silence_of_a_hop_leads_on_within_its_share_of_the_budget() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, ", retry: {budget: 4s}", "");
    let client = proxy.connect();
    let started = Instant::now();
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    let (second, _) = b.hear();
    let took = started.elapsed();
    assert!(took.as_millis() >= 1900, "{took:?}");
    assert!(wire::is_fin(&first), "the first is given up");
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    let record = proxy.record();
    check_attempts(&record, &[("a", Some("upstream.no_reply")), ("b", None)]);
    check!(&record, "http.request.resend_count": 1);
}

#[test]
fn silence_leads_nowhere_where_the_request_may_not_be_repeated() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, ", retry: {budget: 300ms}", "");
    let client = proxy.connect();
    wire::send(&client, with_body("POST", "once"));
    let (first, _) = a.hear();
    std::thread::sleep(std::time::Duration::from_millis(600));
    wire::send(&first, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    assert!(b.is_untouched());
    check_attempts(&proxy.record(), &[("a", None)]);
}

#[test]
fn a_status_that_the_chain_lists_leads_on_and_the_last_hop_is_believed() {
    const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
    let hops = "[{use: a, next_on: [any]}, b]";
    let status = ", on_status: [502, 503]";
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = over(hops, a.address, b.address, status, "");
    let client = proxy.connect();
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, BUSY);
    let (second, _) = b.hear();
    wire::send(&second, BUSY);
    let (head, body) = wire::read_answer(&client);
    assert_eq!((wire::status(&head), body.as_str()), (503, "busy"));
    let record = proxy.record();
    check_attempts(&record, &[("a", Some("http.status.503")), ("b", None)]);
    check!(&record, "error.type": "http.status.503", "egress.hop": "b", "http.request.resend_count": 1);
    // What may not be repeated keeps the answer that it got.
    wire::send(&client, with_body("POST", "once"));
    let (first, _) = a.hear();
    assert_eq!(wire::read_exact(&first, 4), b"once");
    wire::send(&first, BUSY);
    assert_eq!(wire::read_answer(&client).1, "busy");
    check_attempts(&proxy.record(), &[("a", None)]);
    // So does a status that is not listed.
    wire::send(&client, request("GET", "", ""));
    assert!(wire::read_head(&first).starts_with("GET "));
    wire::send(&first, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 500);
    assert!(b.is_untouched());
}

#[test]
fn a_status_leads_on_only_where_the_hop_says_so() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, ", on_status: 503", "");
    let client = proxy.connect();
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 503);
    assert!(b.is_untouched());
}

#[test]
fn an_error_that_an_upstream_signs_leads_on_and_its_refusal_does_not() {
    let signed = |status: u16| {
        format!(
            "HTTP/1.1 {status} X\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, "", "");
    let client = proxy.connect();
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, signed(503));
    let (second, _) = b.hear();
    wire::send(&second, signed(504));
    let (head, body) = wire::read_answer(&client);
    assert_eq!(wire::status(&head), 504);
    assert!(
        body.contains("\na: upstream.reported.connect\nb: upstream.reported.connect\n"),
        "{body}"
    );
    let record = proxy.record();
    let causes = [
        ("a", Some("upstream.reported.connect")),
        ("b", Some("upstream.reported.connect")),
    ];
    check_attempts(&record, &causes);
    check!(&record, "error.type": "upstream.reported.connect");
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, signed(403));
    assert_eq!(wire::status(&wire::read_answer(&client).0), 403);
    assert!(b.is_untouched());
    check!(&proxy.record(), "error.type": "upstream.denied");
    // An origin's own is passed on as it is.
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy");
    assert_eq!(wire::read_answer(&client).1, "busy");
    assert!(b.is_untouched());
}

#[test]
fn a_chain_that_ends_in_off_refuses_and_names_each_hop() {
    let (a, b) = (origin::Origin::nowhere(), Listening::new());
    let proxy = over("[a, b, off]", a, b.address, "", "");
    let client = proxy.connect();
    let accept = "Accept: application/problem+json\r\n";
    wire::send(&client, request("GET", accept, ""));
    let (second, _) = b.hear();
    drop(second);
    let (head, body) = wire::read_answer(&client);
    assert_eq!(wire::status(&head), 403);
    let problem: Value = serde_json::from_str(&body).unwrap();
    check!(&problem, "title": "policy.no_route", "status": 403, "attempts": [
        {"hop": "a", "cause": "upstream.connect.refused"}, {"hop": "b", "cause": "upstream.closed"}]);
    let record = proxy.record();
    check!(&record, "error.type": "policy.no_route", "event.outcome": "failure");
    let message = record["error.message"].as_str().unwrap();
    assert!(
        message.ends_with("; a: upstream.connect.refused; b: upstream.closed"),
        "{message}"
    );
    // Nothing has to be sent again for that.
    wire::send(&client, with_body("POST", "once"));
    drop(b.hear());
    assert_eq!(wire::status(&wire::read_answer(&client).0), 403);
    check!(&proxy.record(), "error.type": "policy.no_route");
}

#[test]
fn where_every_hop_fails_the_direct_one_is_told() {
    let b = Listening::new();
    let target = origin::Origin::nowhere();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{b: {{url: \"http://{}\"}}}}\nrules: []\ndefault: {{via: \"direct|b\"}}\n",
        b.address
    ));
    let client = proxy.connect();
    wire::send(
        &client,
        format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    wire::reset(b.hear().0);
    let (head, body) = wire::read_answer(&client);
    assert_eq!(wire::status(&head), 502);
    assert!(head.starts_with("HTTP/1.1 502 connect.refused: "), "{head}");
    assert!(
        body.contains("\ndirect: connect.refused\nb: upstream.reset\n"),
        "{body}"
    );
    check!(&proxy.record(), "error.type": "connect.refused", "egress.route": "direct|b");
}

#[test]
fn a_budget_that_is_over_ends_the_chain_with_what_was_seen() {
    let (a, b) = (origin::silent(), origin::silent());
    let proxy = chain(a.address, b.address, ", retry: {budget: 600ms}", "");
    let client = proxy.connect();
    let started = Instant::now();
    wire::send(&client, request("GET", "", ""));
    assert_eq!(wire::status(&wire::read_head(&client)), 504);
    let took = started.elapsed();
    assert!(took.as_millis() >= 500 && took < SOON, "{took:?}");
    let record = proxy.record();
    let silent = Some("upstream.connect.timeout");
    check_attempts(&record, &[("a", silent), ("b", silent)]);
    check!(&record, "error.type": "upstream.connect.timeout");
}

#[test]
fn a_hop_that_is_silent_gets_company() {
    let (a, b) = (origin::silent(), Listening::new());
    let proxy = chain(a.address, b.address, ", hedge: 100ms", "");
    let client = proxy.connect();
    let started = Instant::now();
    wire::send(&client, request("GET", "", ""));
    let (second, _) = b.hear();
    // Long before the first would be given up.
    assert!(started.elapsed() < SOON / 4, "{:?}", started.elapsed());
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    let record = proxy.record();
    let hops: Vec<_> = attempts(&record).into_iter().map(|(hop, _)| hop).collect();
    assert_eq!(hops.len(), 2, "{record:#}");
    assert!(hops.contains(&"a".to_owned()), "{record:#}");
    check!(&record, "egress.hop": "b", "event.outcome": "success", "network.peer.port": (b.address.port()));
}

#[test]
fn a_hop_that_failed_a_host_is_passed_over_the_next_time() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, ", memory: {ttl: 1m}", "");
    let get = request("GET", "Connection: close\r\n", "");
    for is_remembered in [false, true] {
        let client = proxy.connect();
        wire::send(&client, &get);
        if !is_remembered {
            wire::reset(a.hear().0);
        }
        let (second, _) = b.hear();
        wire::send(
            &second,
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        );
        assert_eq!(wire::read_answer(&client).1, "ok");
        let record = proxy.record();
        let notes = record["egress.notes"].as_array();
        let is_noted = notes.is_some_and(|notes| notes.contains(&"chain.remembered".into()));
        assert_eq!(is_noted, is_remembered, "{record:#}");
    }
    assert!(a.is_untouched());
}

#[test]
fn a_kept_connection_that_fails_leads_on_as_a_fresh_one_does() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, "", IDEMPOTENT);
    let client = proxy.connect();
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    proxy.record();
    wire::send(&client, with_body("PUT", "body"));
    assert!(wire::read_head(&first).starts_with("PUT "));
    assert_eq!(wire::read_exact(&first, 4), b"body");
    wire::reset(first);
    let (second, _) = b.hear();
    assert_eq!(wire::read_exact(&second, 4), b"body");
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    let record = proxy.record();
    check_attempts(&record, &[("a", Some("upstream.reset")), ("b", None)]);
    check!(&record["egress.attempts"][0], "reused": true);
    // The hop that took over is asked first for a while, as its connection stands.
    wire::send(&client, request("GET", "", ""));
    assert!(wire::read_head(&second).starts_with("GET "));
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record()["egress.attempts"][0], "hop": "b", "reused": true);
    assert!(a.is_untouched());
}

#[test]
fn a_kept_connection_that_was_closed_leads_to_a_fresh_one_by_the_first_hop() {
    let (a, b) = (Listening::new(), Listening::new());
    let proxy = chain(a.address, b.address, "", "");
    let client = proxy.connect();
    wire::send(&client, request("GET", "", ""));
    let (first, _) = a.hear();
    wire::send(&first, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    proxy.record();
    wire::send(&client, request("GET", "", ""));
    wire::read_head(&first);
    drop(first);
    let (again, _) = a.hear();
    wire::send(&again, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    let record = proxy.record();
    let stale = Some("http.reused_connection_closed");
    check_attempts(&record, &[("a", stale), ("a", None)]);
    assert!(b.is_untouched());
}

#[test]
fn the_direct_hop_gives_way_behind_its_request_too() {
    let (target, relay) = (Listening::new(), Listening::new());
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{relay: {{url: \"http://{}\"}}}}\nrules: []\n\
         default: {{via: \"direct|relay\"}}\n",
        relay.address
    ));
    let client = proxy.connect();
    let to = target.address;
    wire::send(
        &client,
        format!("GET http://{to}/x HTTP/1.1\r\nHost: {to}\r\n\r\n"),
    );
    let (first, head) = target.hear();
    assert!(head.starts_with("GET /x "), "{head}");
    drop(first);
    let (second, head) = relay.hear();
    assert!(head.starts_with(&format!("GET http://{to}/x ")), "{head}");
    wire::send(&second, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check_attempts(
        &proxy.record(),
        &[("direct", Some("http.empty_reply")), ("relay", None)],
    );
}

#[test]
fn a_comma_stops_at_whatever_is_no_denial_of_the_name() {
    let b = Listening::new();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{b: {{url: \"http://{}\"}}}}\nrules: []\ndefault: {{via: \"direct,b\"}}\n",
        b.address
    ));
    let client = proxy.connect();
    let target = origin::Origin::nowhere();
    wire::send(
        &client,
        format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    assert_eq!(wire::status(&wire::read_answer(&client).0), 502);
    check_attempts(&proxy.record(), &[("direct", Some("connect.refused"))]);
    let target = Listening::new();
    let to = target.address;
    wire::send(
        &client,
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\n\r\n"),
    );
    wire::reset(target.hear().0);
    assert_eq!(wire::status(&wire::read_answer(&client).0), 502);
    check_attempts(
        &proxy.record(),
        &[("direct", Some("http.reset_before_response"))],
    );
    assert!(b.is_untouched());
}
