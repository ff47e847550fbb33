//! What is looked at unasked, and who is told what was found.

use super::*;
use crate::policy::Triage;

/// Three like failures within five minutes make a look, once in ten minutes.
const TRIAGE: Triage = Triage {
    fails: 3,
    within: Duration::from_mins(5),
    every: Duration::from_mins(10),
};

/// A record under the policy at work.
fn served(record: Record) -> Record {
    Record {
        action: Some(Action::Connect),
        route: Some("direct".into()),
        policy: Some("p1".into()),
        ..record
    }
}

impl Bench {
    /// One that watches targets.
    fn watching() -> Self {
        let bench = Self::new();
        bench.memory.watch(Some(TRIAGE), "p1".into());
        bench
    }

    /// The target that is to be looked at.
    fn due(&self) -> Option<Due> {
        self.memory.due().now_or_never()
    }

    /// Lets a target fail, as often as a look needs.
    fn fail(&self, host: &str) {
        for _ in 0..TRIAGE.fails {
            self.take(served(failed(host, "connect.timeout")));
        }
    }

    /// The verdict that a further failure of the target is told.
    fn told(&self, host: &str, cause: &'static str) -> Option<&'static str> {
        let record = self.take(served(failed(host, cause)));
        Some(record.diagnosis?.verdict)
    }
}

fn diagnosis() -> Diagnosis {
    Diagnosis {
        verdict: "ip_blocking",
        certainty: "strong",
        sentence: "it is reached via corp alone".into(),
        counter: Vec::new(),
        fix: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_is_due_after_like_failures_and_nothing_else() {
    let timeout = || served(failed("a.example", "connect.timeout"));
    let of = |cause: &'static str| served(failed("a.example", cause));
    let other_policy = || Record {
        policy: Some("p0".into()),
        ..timeout()
    };
    let other_route = || Record {
        route: Some("corp".into()),
        ..timeout()
    };
    let staged = || Record {
        faults: vec!["cut".into()],
        ..timeout()
    };
    let success = || served(fine("a.example"));
    for (what, records, is_due) in [
        (
            "three like ones",
            vec![timeout(), timeout(), timeout()],
            true,
        ),
        ("too few", vec![timeout(), timeout()], false),
        (
            "another cause between",
            vec![timeout(), of("connect.refused"), timeout(), timeout()],
            false,
        ),
        (
            "another route between",
            vec![timeout(), other_route(), timeout(), timeout()],
            false,
        ),
        (
            "a success between",
            vec![timeout(), timeout(), success(), timeout()],
            false,
        ),
        (
            "an older policy's",
            vec![timeout(), timeout(), other_policy()],
            false,
        ),
        ("a fault's", vec![staged(), staged(), staged()], false),
        (
            "what says nothing between",
            vec![
                timeout(),
                of("client.gave_up.connect"),
                timeout(),
                of("policy.denied.rule"),
                timeout(),
            ],
            true,
        ),
    ] {
        let bench = Bench::watching();
        for record in records {
            bench.take(record);
        }
        assert_eq!(bench.due().is_some(), is_due, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_is_due_of_causes_that_it_can_say_something_of() {
    for (cause, is_due) in [
        ("dns.nxdomain", true),
        ("connect.timeout", true),
        ("connect.family_unsupported", false),
        ("tls.reset_after_client_hello", true),
        ("tls.client_hello_blackholed", true),
        ("tls.client_rejected_certificate.unknown_ca", true),
        ("tls.client_silent", false),
        ("upstream.reported.connect", true),
        ("upstream.no_reply", true),
        ("upstream.auth_rejected", false),
        ("upstream.denied", false),
        ("upstream.circuit_open", false),
        ("http.empty_reply", true),
        ("http.status.503", false),
        ("tunnel.reset_by_server", true),
        ("tunnel.idle_timeout", false),
        ("policy.denied.default", false),
        ("client.gave_up.connect", false),
        ("proxy.circuit_open", false),
    ] {
        let bench = Bench::watching();
        for _ in 0..TRIAGE.fails {
            bench.take(served(failed("a.example", cause)));
        }
        let due = bench.due();
        assert_eq!(due.is_some(), is_due, "{cause}");
        if let Some(due) = due {
            assert_eq!(
                (&*due.host, due.port, &*due.cause),
                ("a.example", 443, cause)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failures_count_for_a_while_and_a_target_is_looked_at_once_in_a_while() {
    let bench = Bench::watching();
    for _ in 0..4 {
        bench.take(served(failed("a.example", "connect.timeout")));
        advance(Duration::from_mins(3)).await;
    }
    assert!(bench.due().is_none());
    bench.fail("a.example");
    assert!(bench.due().is_some());
    bench.fail("a.example");
    assert!(bench.due().is_none());
    // Not after a success either.
    bench.take(served(fine("a.example")));
    bench.fail("a.example");
    assert!(bench.due().is_none());
    advance(Duration::from_mins(10)).await;
    bench.fail("a.example");
    assert!(bench.due().is_some());
}

#[tokio::test(start_paused = true)]
async fn few_wait_and_who_is_fine_meanwhile_is_not_looked_at() {
    let bench = Bench::watching();
    for at in 0..10 {
        bench.fail(&format!("{at}.example"));
    }
    bench.take(served(fine("1.example")));
    let hosts: Vec<_> = std::iter::from_fn(|| bench.due())
        .map(|due| due.host.to_string())
        .collect();
    assert_eq!(hosts, ["0.example", "2.example", "3.example"]);
    // For who found no room there is some now, and nobody else was looked at.
    bench.fail("9.example");
    bench.fail("1.example");
    assert_eq!(&*bench.due().unwrap().host, "9.example");
    assert_eq!(&*bench.due().unwrap().host, "1.example");
}

#[tokio::test(start_paused = true)]
async fn who_passed_by_the_same_hop_is_held_against_the_target() {
    let bench = Bench::watching();
    let by = |host: &str, hop: &str, upstream: Option<&str>| Record {
        hop: Some(hop.into()),
        upstream_name: upstream.map(Into::into),
        ..served(fine(host))
    };
    bench.take(by("old.example", "direct", None));
    advance(Duration::from_mins(11)).await;
    for host in ["first.example", "second.example", "third.example"] {
        bench.take(by(host, "direct", None));
        advance(Duration::from_secs(1)).await;
    }
    bench.take(by("far.example", "corp", Some("corp")));
    // Nobody knows what was spoken there.
    bench.take(Record {
        tls: None,
        ..by("ssh.example", "direct", None)
    });
    bench.take(Record {
        policy: Some("p0".into()),
        ..by("denied.example", "direct", None)
    });
    // What others are let to is not to be tried for this one.
    bench.take(Record {
        client_address: "192.0.2.8".parse().unwrap(),
        ..by("theirs.example", "direct", None)
    });
    bench.take(Record {
        user: Some("somebody".into()),
        ..by("somebodys.example", "direct", None)
    });
    bench.take(Record {
        client_address: "192.0.2.8".parse().unwrap(),
        ..by("third.example", "direct", None)
    });
    bench.take(by("a.example", "direct", None));
    bench.fail("a.example");
    let due = bench.due().unwrap();
    let control = |host: &str, address: Option<&str>| Control {
        host: host.into(),
        port: 443,
        address: address.map(|ip| ip.parse().unwrap()),
    };
    assert_eq!(
        due.controls("direct"),
        [
            control("third.example", Some("203.0.113.7")),
            control("second.example", Some("203.0.113.7"))
        ]
    );
    assert_eq!(due.controls("corp"), [control("far.example", None)]);
    assert_eq!(due.controls("other"), []);
    assert_eq!(
        due.addresses,
        ["203.0.113.7".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_told_until_a_success_or_for_a_while() {
    let bench = Bench::watching();
    bench.fail("a.example");
    let due = bench.due().unwrap();
    bench.memory.keep(&due, diagnosis());
    advance(Duration::from_secs(41)).await;
    let record = bench.take(served(failed("a.example", "connect.timeout")));
    assert_eq!(
        record.hint.as_deref(),
        Some(
            "look; before: connect.timeout 41s ago via direct; doctor 41s ago: ip_blocking (strong)"
        )
    );
    let told = record.diagnosis.unwrap();
    assert_eq!(
        (told.ago_s, &*told.sentence),
        (41, "it is reached via corp alone")
    );
    let earlier = bench.earlier("a.example").unwrap();
    assert!(reminded("look", &earlier).ends_with("; doctor 41s ago: ip_blocking (strong)"));
    for (cause, is_told) in [
        ("connect.refused", true),
        ("client.gave_up.connect", true),
        ("proxy.circuit_open", true),
        ("client.reset", false),
        ("policy.denied.rule", false),
        ("tunnel.reset_by_server", true),
        ("tunnel.policy_changed", false),
        ("tunnel.killed", false),
        ("tunnel.shutdown", false),
        ("tunnel.idle_timeout", false),
        ("tunnel.max_duration", false),
        ("upstream.no_reply", true),
        ("upstream.auth_rejected", false),
        ("upstream.denied", false),
    ] {
        assert_eq!(bench.told("a.example", cause).is_some(), is_told, "{cause}");
    }
    assert_eq!(bench.told("b.example", "connect.timeout"), None);
    advance(Duration::from_mins(10)).await;
    assert_eq!(bench.told("a.example", "connect.timeout"), None);
    bench.fail("a.example");
    let due = bench.due().unwrap();
    bench.memory.keep(&due, diagnosis());
    bench.take(served(fine("a.example")));
    assert_eq!(bench.told("a.example", "connect.timeout"), None);
    assert_eq!(bench.memory.looks(), [("ip_blocking", 2)]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_or_was_found_under_another_policy_is_not_told() {
    let bench = Bench::watching();
    bench.fail("a.example");
    let due = bench.due().unwrap();
    bench.take(served(fine("a.example")));
    bench.memory.keep(&due, diagnosis());
    assert_eq!(bench.told("a.example", "connect.timeout"), None);

    let bench = Bench::watching();
    bench.fail("a.example");
    bench.fail("b.example");
    let due = bench.due().unwrap();
    bench.memory.watch(Some(TRIAGE), "p2".into());
    bench.memory.keep(&due, diagnosis());
    assert!(bench.due().is_none());
    assert_eq!(bench.told("a.example", "connect.timeout"), None);
    // Where nothing is watched nothing is kept.
    bench.memory.watch(None, "p1".into());
    bench.fail("a.example");
    assert!(bench.due().is_none());
}

#[tokio::test(start_paused = true)]
async fn hops_that_were_tried_may_be_tried_again_unless_they_refuse_who_we_are() {
    let tried = |hops: &[(&str, &'static str)]| Record {
        attempts: hops
            .iter()
            .map(|(hop, cause)| Attempt {
                hop: (*hop).into(),
                cause: Some((*cause).into()),
                address: None,
                family: None,
                side: None,
                ms: 1.0,
                icmp: None,
                reused: false,
            })
            .collect(),
        hop: None,
        ..served(failed("a.example", "connect.timeout"))
    };
    let refusal = Record {
        hop: Some("corp".into()),
        ..served(failed("a.example", "upstream.auth_rejected"))
    };
    let direct = ("direct", "connect.timeout");
    for (first, last, hops) in [
        (tried(&[direct]), tried(&[direct]), &["direct"][..]),
        (
            tried(&[direct]),
            tried(&[("corp", "upstream.no_reply"), direct]),
            &["corp", "direct"],
        ),
        (
            tried(&[direct]),
            tried(&[("corp", "upstream.auth_rejected"), direct]),
            &["direct"],
        ),
        (
            tried(&[("corp", "upstream.auth_rejected"), direct]),
            tried(&[("corp", "upstream.no_reply"), direct]),
            &["direct"],
        ),
        (
            refusal,
            tried(&[("corp", "upstream.no_reply"), direct]),
            &["direct"],
        ),
    ] {
        let bench = Bench::watching();
        bench.take(tried(&[direct]));
        bench.take(first);
        bench.take(tried(&[direct]));
        bench.take(last);
        let due = bench.due().unwrap();
        let hops: Vec<Arc<str>> = hops.iter().map(|hop| (*hop).into()).collect();
        assert_eq!(due.hops, hops);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_found_by_one_route_is_not_told_by_another() {
    let bench = Bench::watching();
    bench.fail("a.example");
    bench.memory.keep(&bench.due().unwrap(), diagnosis());
    let record = bench.take(Record {
        route: Some("corp".into()),
        ..served(failed("a.example", "connect.timeout"))
    });
    assert!(record.diagnosis.is_none());
    assert!(bench.earlier("a.example").unwrap().found.is_some());
    for (route, cause) in [
        (Some("corp"), "connect.timeout"),
        (None, "connect.timeout"),
        (Some("direct"), "policy.denied.rule"),
    ] {
        let earlier = bench.memory.earlier("a.example", 443, route, cause);
        assert_eq!(earlier.unwrap().found, None, "{route:?} {cause}");
    }
    assert!(bench.told("a.example", "connect.timeout").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_a_success_has_overtaken_is_not_kept_though_it_fails_again() {
    for (between, is_kept) in [
        (served(fine("a.example")), false),
        // It is the same trouble in another shape.
        (served(failed("a.example", "connect.refused")), true),
    ] {
        let bench = Bench::watching();
        bench.fail("a.example");
        let due = bench.due().unwrap();
        bench.take(between);
        advance(Duration::from_secs(1)).await;
        bench.fail("a.example");
        bench.memory.keep(&due, diagnosis());
        assert_eq!(
            bench.told("a.example", "connect.timeout").is_some(),
            is_kept
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_latest_addresses_are_those_that_are_dialled_again() {
    let bench = Bench::watching();
    let at = |last: u8| Record {
        peer_address: Some([203, 0, 113, last].into()),
        ..served(failed("a.example", "connect.timeout"))
    };
    for last in 0..40 {
        bench.take(at(last));
    }
    let due = bench.due().unwrap();
    let latest: Vec<std::net::IpAddr> = (24..40).map(|last| [203, 0, 113, last].into()).collect();
    assert_eq!(due.addresses, latest);
}
