mod triage;

use std::borrow::Cow;
use std::sync::Mutex;

use futures_util::FutureExt as _;
use tokio::time::advance;

use super::*;
use crate::client::Client;
use crate::exchange::{Exchange, Presence};
use crate::record::{Action, Attempt, Reset, ServerTcp, Suspect, Tls};

/// Keeps what it is told.
#[derive(Debug, Default)]
struct Kept(Mutex<Vec<Record>>);

impl Observe for Kept {
    fn record(&self, record: Box<Record>) {
        self.0.lock().unwrap().push(*record);
    }
}

/// A memory, and what comes out of it.
struct Bench {
    memory: Memory,
    kept: Arc<Kept>,
}

impl Bench {
    fn new() -> Self {
        let kept = Arc::new(Kept::default());
        Self {
            memory: Memory::new(kept.clone()),
            kept,
        }
    }

    /// Takes a record, and tells what it came out as.
    fn take(&self, record: Record) -> Record {
        self.memory.record(Box::new(record));
        self.kept.0.lock().unwrap().pop().unwrap()
    }

    /// What the answer to a further failure mentions.
    fn earlier(&self, host: &str) -> Option<Earlier> {
        self.memory
            .earlier(host, 443, Some("direct"), "connect.timeout")
    }

    fn suspects(&self, record: Record) -> Vec<&'static str> {
        names(&self.take(record).suspects)
    }
}

fn names(suspects: &[Suspect]) -> Vec<&'static str> {
    suspects.iter().map(|suspect| suspect.name).collect()
}

/// A record as the exchange makes it, of a tunnel to `host` that ended well.
fn fine(host: &str) -> Record {
    let kept = Arc::new(Kept::default());
    let address = "127.0.0.1:1".parse().unwrap();
    let presence = Presence {
        client: Client {
            peer: address,
            local: address,
            listener: "proxy".into(),
        },
        worker: 0,
        stalled: false.into(),
        ended: false.into(),
        cut: tokio_util::sync::CancellationToken::new(),
        write_limit: 0.into(),
        asks_who: false,
        proven: None,
    };
    Exchange::open(kept.clone(), Arc::new(presence)).finish();
    let mut record = kept.0.lock().unwrap().pop().unwrap();
    record.outcome = Outcome::Success;
    record.server_address = Some(host.into());
    record.server_port = Some(443);
    record.hop = Some("direct".into());
    record.peer_address = Some("203.0.113.7".parse().unwrap());
    record.peer_port = Some(443);
    record.tls = Some(Box::new(Tls {
        server_name: Some(host.to_owned()),
        server_flight_bytes: Some(3000),
        ..Tls::default()
    }));
    record
}

/// The same, failed.
fn failed(host: &str, cause: &'static str) -> Record {
    let mut record = fine(host);
    record.outcome = Outcome::Failure;
    record.error_type = Some(cause.into());
    record.hint = Some("look".into());
    record.reason = Some("look".into());
    if let Some(tls) = &mut record.tls {
        tls.server_flight_bytes = None;
    }
    record
}

/// A reset behind a ClientHello.
fn reset(host: &str, bytes_acked: u64, accept_race: bool) -> Record {
    let mut record = failed(host, "tls.reset_after_client_hello");
    record.server_tcp = Some(Box::new(ServerTcp {
        bytes_acked: Some(bytes_acked),
        retransmissions: Some(0),
        min_rtt_ms: Some(50.0),
        ..ServerTcp::default()
    }));
    record.reset = Some(Box::new(Reset {
        last_write_acked: Some(bytes_acked > 1),
        rtt_ratio: Some(if bytes_acked > 1 { 1.02 } else { 0.2 }),
        accept_race: Some(accept_race),
        ..Reset::default()
    }));
    record
}

#[tokio::test(start_paused = true)]
async fn a_name_is_filtered_only_where_another_is_fine_at_the_same_address() {
    let bench = Bench::new();
    assert!(bench.suspects(reset("bad.example", 1, false)).is_empty());
    bench.take(fine("good.example"));
    advance(Duration::from_secs(41)).await;
    let record = bench.take(reset("bad.example", 1, false));
    let [suspect] = &record.suspects[..] else {
        panic!("{:?}", record.suspects)
    };
    assert_eq!(suspect.name, "sni_filtering");
    assert!((suspect.score - 0.8).abs() < 1e-9);
    assert_eq!(
        suspect.evidence,
        [
            "client_hello_unacked",
            "rst_faster_than_rtt",
            "lost_2_times_in_a_row",
            "other_sni_ok_same_ip_41s_ago"
        ]
    );
    advance(Duration::from_mins(20)).await;
    assert!(bench.suspects(reset("bad.example", 1, false)).is_empty());
}

#[test]
fn on_a_short_way_one_loss_says_nothing() {
    let bench = Bench::new();
    let short = |bytes_acked, after_connect_ms| {
        let mut record = reset("bad.example", bytes_acked, false);
        record.server_tcp.as_mut().unwrap().min_rtt_ms = Some(0.05);
        let reset = record.reset.as_mut().unwrap();
        (reset.after_connect_ms, reset.after_ms) = (Some(after_connect_ms), Some(0.1));
        record
    };
    bench.take(fine("good.example"));
    assert!(bench.suspects(short(1, 3.0)).is_empty());
    assert_eq!(bench.suspects(short(1, 3.0)), ["sni_filtering"]);
    assert!(bench.suspects(short(518, 3.0)).is_empty());
    assert!(bench.suspects(short(1, 3.0)).is_empty());
    assert!(bench.suspects(short(518, 3.0)).is_empty());
    assert_eq!(bench.suspects(short(1, 30.0)), ["sni_filtering"]);
}

#[test]
fn a_servers_own_reset_raises_no_suspect() {
    let bench = Bench::new();
    bench.take(fine("good.example"));
    let mut slow_to_ack = reset("bad.example", 1, false);
    slow_to_ack.reset.as_mut().unwrap().rtt_ratio = Some(1.01);
    let mut half_acked = reset("bad.example", 300, false);
    let told = half_acked.reset.as_mut().unwrap();
    (told.last_write_acked, told.rtt_ratio) = (Some(false), Some(0.5));
    for record in [
        reset("bad.example", 518, false),
        reset("bad.example", 1, true),
        // One round trip behind it: a far end that had not come to acknowledge it does so each time.
        slow_to_ack.clone(),
        slow_to_ack,
        // Half of it was acknowledged, and the other half had just left.
        half_acked,
        failed("bad.example", "tls.closed_after_client_hello"),
        failed("bad.example", "tls.alert_from_server.internal_error"),
        failed("bad.example", "connect.timeout"),
        failed("bad.example", "connect.refused"),
        failed("bad.example", "tunnel.reset_by_server"),
        failed("bad.example", "http.status.503"),
    ] {
        let cause = record.error_type.clone();
        assert_eq!(bench.suspects(record), [""; 0], "{cause:?}");
    }
}

#[test]
fn through_an_upstream_packets_tell_nothing_of_the_target() {
    let bench = Bench::new();
    let through = |mut record: Record| {
        record.upstream_name = Some("corp".into());
        record
    };
    bench.take(through(fine("good.example")));
    assert!(
        bench
            .suspects(through(reset("bad.example", 1, false)))
            .is_empty()
    );
}

#[test]
fn a_port_is_blocked_where_every_name_is_lost() {
    let bench = Bench::new();
    assert!(bench.suspects(reset("a.example", 1, false)).is_empty());
    assert_eq!(
        bench.suspects(reset("b.example", 1, false)),
        ["port_or_ip_blocking"]
    );
}

#[test]
fn what_fails_by_every_route_is_down() {
    let bench = Bench::new();
    bench.take(failed("a.example", "connect.timeout"));
    let mut second = failed("a.example", "connect.timeout");
    second.hop = Some("corp".into());
    assert_eq!(bench.suspects(second.clone()), ["server_down"]);
    bench.take(fine("a.example"));
    assert!(bench.suspects(second).is_empty());
}

/// A record whose last hop is the last of these, tried in this order.
fn chained(mut record: Record, attempts: &[(&str, Option<&'static str>)]) -> Record {
    let attempt = |(hop, cause): &(&str, Option<&'static str>)| Attempt {
        hop: (*hop).into(),
        cause: cause.map(Into::into),
        ..Attempt::default()
    };
    record.attempts = attempts.iter().map(attempt).collect();
    record.hop = record.attempts.last().map(|last| last.hop.clone());
    record
}

#[test]
fn of_a_chain_each_hop_is_known_by_what_it_failed_of() {
    let bench = Bench::new();
    let exhausted = |direct, corp| {
        let record = failed("a.example", direct);
        chained(record, &[("direct", Some(direct)), ("corp", Some(corp))])
    };
    let record = bench.take(exhausted("connect.timeout", "upstream.connect.refused"));
    assert_eq!(names(&record.suspects), [""; 0]);
    let earlier = bench.earlier("a.example").unwrap();
    let told = (&*earlier.cause, earlier.hop.as_deref());
    assert_eq!(told, ("connect.timeout", Some("direct")));
    let record = bench.take(exhausted("connect.timeout", "upstream.reported.timeout"));
    assert_eq!(names(&record.suspects), ["server_down"]);
    assert_eq!(record.suspects[0].evidence, ["fails_via_corp"]);
    // The first hop failed, and the last one served.
    let attempts = [("direct", Some("connect.timeout")), ("corp", None)];
    bench.take(chained(fine("a.example"), &attempts));
    let passes = |hop| bench.memory.passes("a.example", 443, hop);
    assert!(passes("corp") && !passes("direct"));
}

#[test]
fn many_rejections_of_trusted_certificates_are_a_missing_ca() {
    let bench = Bench::new();
    let rejected = |host: &str| {
        let mut record = failed(host, "tls.client_rejected_certificate.unknown_ca");
        record.tls.as_mut().unwrap().certificate = Some("valid");
        record
    };
    assert!(bench.suspects(rejected("a.example")).is_empty());
    assert!(bench.suspects(rejected("a.example")).is_empty());
    assert!(bench.suspects(rejected("b.example")).is_empty());
    assert_eq!(
        bench.suspects(rejected("c.example")),
        ["missing_ca_in_client"]
    );
}

#[test]
fn one_unknown_issuer_for_several_sites_intercepts() {
    let bench = Bench::new();
    let signed = |host: &str| {
        let mut record = failed(host, "tls.client_rejected_certificate.unknown_ca");
        let tls = record.tls.as_mut().unwrap();
        tls.certificate = Some("unknown_issuer");
        tls.issuer = Some("CN=Corp Inspection".to_owned());
        record
    };
    assert!(bench.suspects(signed("git.corp.example")).is_empty());
    // A company's own authority.
    assert!(bench.suspects(signed("wiki.corp.example")).is_empty());
    assert!(bench.suspects(signed("corp.example")).is_empty());
    assert_eq!(bench.suspects(signed("b.test")), ["tls_interception"]);
}

#[test]
fn dates_that_fail_for_many_names_are_our_clock() {
    let bench = Bench::new();
    let dated = |host: &str| {
        let mut record = failed(host, "tls.client_rejected_certificate.certificate_expired");
        record.tls.as_mut().unwrap().certificate = Some("expired");
        record
    };
    bench.take(dated("a.example"));
    assert!(bench.suspects(dated("b.example")).is_empty());
    assert_eq!(bench.suspects(dated("c.example")), ["clock_skew"]);
}

#[tokio::test(start_paused = true)]
async fn tunnels_that_die_of_silence_show_a_timer() {
    let bench = Bench::new();
    let silent = |seconds: f64| {
        let mut record = failed("a.example", "tunnel.reset_after_idle");
        record.idle_before_ms = Some(seconds * 1000.0);
        record
    };
    bench.take(silent(30.0));
    advance(Duration::from_hours(2)).await;
    bench.take(silent(310.0));
    assert!(bench.suspects(silent(400.0)).is_empty());
    let record = bench.take(silent(305.0));
    assert_eq!(names(&record.suspects), ["idle_timeout_middlebox"]);
    assert_eq!(record.suspects[0].evidence[1], "shortest_silence_305s");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_outlives_its_silence_speaks_against_a_timer() {
    let bench = Bench::new();
    let on = |hop: &str, mut record: Record| {
        record.hop = Some(hop.into());
        record
    };
    let died = |seconds: f64| {
        let mut record = failed("a.example", "tunnel.reset_after_idle");
        record.idle_before_ms = Some(seconds * 1000.0);
        on("direct", record)
    };
    let lived = |hop: &str, seconds: f64| {
        let mut record = fine("a.example");
        record.idle_survived_ms = Some(seconds * 1000.0);
        on(hop, record)
    };
    bench.take(died(40.0));
    bench.take(died(305.0));
    bench.take(lived("direct", 100.0));
    bench.take(lived("direct", 50.0));
    bench.take(lived("corp", 9000.0));
    // Two of three are no pattern; those that died sooner than others live are none of it.
    assert!(bench.suspects(died(310.0)).is_empty());
    let record = bench.take(died(320.0));
    assert_eq!(
        record.suspects[0].evidence,
        [
            "3_tunnels_died_of_silence",
            "shortest_silence_305s",
            "longest_silence_survived_100s"
        ]
    );
    assert!(bench.suspects(died(60.0)).is_empty());
    bench.take(lived("direct", 400.0));
    assert!(bench.suspects(died(330.0)).is_empty());
    // Nor do they say anything of another hop, which has its own.
    let by_corp = |seconds| on("corp", died(seconds));
    assert!(bench.suspects(by_corp(310.0)).is_empty());
    bench.take(lived("backup", 400.0));
    for _ in 0..2 {
        assert!(bench.suspects(on("lab", died(500.0))).is_empty());
    }
    let record = bench.take(on("lab", died(520.0)));
    assert_eq!(
        record.suspects[0].evidence,
        ["3_tunnels_died_of_silence", "shortest_silence_500s"]
    );
    // It counts for as long as the deaths do.
    advance(Duration::from_mins(59)).await;
    assert!(bench.suspects(died(340.0)).is_empty());
    advance(Duration::from_mins(2)).await;
    bench.take(died(350.0));
    assert_eq!(bench.suspects(died(360.0)), ["idle_timeout_middlebox"]);
}

#[test]
fn a_family_that_always_fails_is_broken_even_on_success() {
    let bench = Bench::new();
    let attempt = |address: &str, cause: Option<&'static str>| Attempt {
        hop: "direct".into(),
        address: Some(address.parse().unwrap()),
        family: Some(if address.starts_with('[') {
            "ipv6"
        } else {
            "ipv4"
        }),
        cause: cause.map(Into::into),
        side: None,
        ms: 1.0,
        icmp: None,
        reused: false,
    };
    let mut record = fine("a.example");
    record.attempts = vec![
        attempt("[2001:db8::1]:443", Some("connect.timeout")),
        attempt("203.0.113.7:443", None),
    ];
    assert_eq!(bench.suspects(record.clone()), ["ipv6_broken"]);
    // The last two: a server that does not listen by IPv6, and a host without IPv6.
    for cause in [
        "connect.overtaken",
        "connect.refused",
        "connect.family_unsupported",
    ] {
        record.attempts[0].cause = Some(cause.into());
        assert!(bench.suspects(record.clone()).is_empty(), "{cause}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_family_that_fails_for_all_is_no_bad_address() {
    let bench = Bench::new();
    let attempt = |address: &str, cause| Attempt {
        hop: "direct".into(),
        address: Some(address.parse().unwrap()),
        family: Some("ipv6"),
        cause: Some(Cow::Borrowed(cause)),
        side: None,
        ms: 1.0,
        icmp: None,
        reused: false,
    };
    let tried = |client: &str, cause| {
        let mut record = fine("cdn.example");
        record.client_address = client.parse().unwrap();
        record.attempts = vec![
            attempt("[2001:db8::1]:443", cause),
            attempt("[2001:db8::2]:443", cause),
        ];
        record
    };
    for cause in ["connect.family_unsupported", "connect.timeout"] {
        assert!(bench.suspects(tried("10.0.0.1", cause)).is_empty());
        advance(Duration::from_secs(1)).await;
        assert!(
            bench.suspects(tried("10.0.0.2", cause)).is_empty(),
            "{cause}"
        );
    }
}

#[test]
fn what_says_nothing_of_a_target_leaves_what_is_known_of_it() {
    let bench = Bench::new();
    bench.take(fine("a.example"));
    for cause in [
        "client.gave_up.connect",
        "http.status.404",
        "tunnel.client_not_reading",
        "upstream.connect.refused",
        "upstream.circuit_open",
        "upstream.auth_rejected",
        "upstream.denied",
        "upstream.reported.unavailable",
    ] {
        bench.take(failed("a.example", cause));
    }
    let mut by_corp = failed("a.example", "connect.timeout");
    by_corp.hop = Some("corp".into());
    bench.take(by_corp.clone());
    by_corp.hop = Some("other".into());
    // It was fine directly: it is not down.
    assert!(bench.suspects(by_corp).is_empty());
}

#[test]
fn what_an_upstream_does_itself_is_no_failure_of_the_target() {
    let by_corp = |cause| chained(failed("a.example", cause), &[("corp", Some(cause))]);
    for (cause, is_targets) in [
        ("upstream.connect.refused", false),
        ("upstream.dns.nxdomain", false),
        ("upstream.drained", false),
        ("upstream.auth_rejected", false),
        ("upstream.denied", false),
        ("upstream.no_reply", false),
        ("upstream.reported.unavailable", false),
        ("upstream.reported.connect", true),
        ("upstream.reported.timeout", true),
        ("upstream.reported.dns", true),
    ] {
        let bench = Bench::new();
        bench.take(by_corp(cause));
        let is_known = bench.earlier("a.example").is_some();
        assert_eq!(is_known, is_targets, "{cause}");
        let suspects = bench.suspects(failed("a.example", "connect.timeout"));
        assert_eq!(suspects == ["server_down"], is_targets, "{cause}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_fails_for_two_clients_while_others_are_fine_is_bad() {
    let bench = Bench::new();
    bench.take(fine("cdn.example"));
    let bad = |client: &str| {
        let mut record = reset("cdn.example", 518, false);
        record.peer_address = Some("203.0.113.8".parse().unwrap());
        record.client_address = client.parse().unwrap();
        record
    };
    assert!(bench.suspects(bad("10.0.0.1")).is_empty());
    advance(Duration::from_mins(11)).await;
    bench.take(fine("cdn.example"));
    assert!(bench.suspects(bad("10.0.0.2")).is_empty());
    assert_eq!(bench.suspects(bad("10.0.0.3")), ["bad_cdn_node"]);
}

#[test]
fn refusals_of_an_upstream_are_its_policy() {
    let bench = Bench::new();
    assert_eq!(
        bench.suspects(failed("a.example", "upstream.denied")),
        ["upstream_policy"]
    );
    assert_eq!(
        bench.suspects(failed("a.example", "upstream.auth_rejected")),
        ["upstream_auth"]
    );
}

#[test]
fn a_hop_that_means_another_is_known_no_more() {
    let bench = Bench::new();
    let by = |hop: &str| Record {
        hop: Some(hop.into()),
        ..fine("a.example")
    };
    bench.take(by("corp"));
    bench.take(by("other"));
    let passes = |hop| bench.memory.passes("a.example", 443, hop);
    assert!(passes("corp") && passes("other"));
    bench.memory.forget_hops(&["corp".into()]);
    assert!(!passes("corp") && passes("other"));
}

#[test]
fn a_failure_of_a_hop_that_means_another_is_forgotten_with_it() {
    let bench = Bench::new();
    let cause = "upstream.reported.timeout";
    bench.take(chained(
        failed("a.example", cause),
        &[("corp", Some(cause))],
    ));
    bench.memory.forget_hops(&["other".into()]);
    assert!(bench.earlier("a.example").is_some());
    bench.memory.forget_hops(&["corp".into()]);
    assert_eq!(bench.earlier("a.example"), None);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_mentioned_to_the_next_one_until_a_success() {
    let bench = Bench::new();
    bench.take(failed("a.example", "connect.timeout"));
    advance(Duration::from_secs(41)).await;
    let earlier = bench.earlier("a.example").unwrap();
    assert_eq!(earlier.to_string(), "connect.timeout 41s ago via direct");
    let record = bench.take(failed("a.example", "tls.no_server_hello"));
    assert_eq!(
        record.hint.as_deref(),
        Some("look; before: connect.timeout 41s ago via direct")
    );
    bench.take(fine("a.example"));
    assert_eq!(bench.earlier("a.example"), None);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_opens_at_its_count_and_closes_with_time_or_success() {
    let bench = Bench::new();
    let rule = Circuit {
        fails: 2,
        within: Duration::from_mins(1),
        open: Duration::from_secs(30),
    };
    let is_open = |bench: &Bench| {
        let open = bench.memory.is_open("a.example", 443, &rule);
        open.map(|earlier| earlier.cause)
    };
    bench.take(failed("a.example", "connect.timeout"));
    assert_eq!(is_open(&bench), None);
    advance(Duration::from_secs(5)).await;
    bench.take(failed("a.example", "connect.timeout"));
    assert_eq!(is_open(&bench).as_deref(), Some("connect.timeout"));
    advance(Duration::from_secs(31)).await;
    assert_eq!(is_open(&bench), None);
    bench.take(failed("a.example", "connect.refused"));
    assert_eq!(is_open(&bench).as_deref(), Some("connect.refused"));
    bench.take(fine("a.example"));
    assert_eq!(is_open(&bench), None);
    for _ in 0..3 {
        bench.take(failed("a.example", "client.gave_up.connect"));
        bench.take(failed("a.example", "http.status.404"));
    }
    assert_eq!(is_open(&bench), None);
}
