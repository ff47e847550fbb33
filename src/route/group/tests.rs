//! Which member serves, and what lets another one.

use std::collections::BTreeMap;

use tokio::time::advance;

use super::super::health::Watched;
use super::super::testing::{Does, Scripted, Shared, plan};
use super::*;
use crate::policy::RouteId;
use crate::policy::group::AllDown as WrittenDown;
use crate::policy::health::Health as Spec;

const UP: Does = Does::Serve(Duration::ZERO);

struct Mirrors {
    upstreams: Vec<Arc<Scripted>>,
    group: Group,
}

/// A group of `m1`, `m2` and so on by their weights.
fn group_of(balance: Balance, all_down: WrittenDown, weights: &[u32]) -> Mirrors {
    let names: Vec<String> = (1..=weights.len()).map(|at| format!("m{at}")).collect();
    let upstreams: Vec<_> = names.iter().map(|name| Scripted::new(name, UP)).collect();
    let members = upstreams.iter().zip(weights).map(|(upstream, weight)| {
        let health = Health::new(upstream.name.clone(), Spec::default(), None);
        let health = Arc::new(health);
        let watched = Watched::new(Box::new(Shared(upstream.clone())), health.clone());
        Member {
            dial: Arc::new(watched),
            health,
            weight: *weight,
        }
    });
    let spec = written::Group {
        members: vec![
            written::Member {
                route: RouteId::DIRECT,
                weight: 1
            };
            weights.len()
        ],
        balance,
        all_down,
    };
    let group = Group::new("mirrors".into(), members.collect(), spec);
    Mirrors { upstreams, group }
}

impl Mirrors {
    async fn dial(&self, plan: &Plan) -> Result<Conn, Failure> {
        self.group.dial(plan, &Trail::default()).await
    }

    /// The hop of a request, or the id of what it failed of.
    async fn ask(&self, plan: &Plan) -> String {
        match self.dial(plan).await {
            Ok(conn) => conn.hop.to_string(),
            Err(failure) => classify(&failure).id().into_owned(),
        }
    }

    async fn ask_all(&self, plan: &Plan, count: usize) -> Vec<String> {
        let mut hops = Vec::new();
        for _ in 0..count {
            hops.push(self.ask(plan).await);
        }
        hops
    }

    fn dials(&self) -> Vec<usize> {
        self.upstreams
            .iter()
            .map(|upstream| upstream.dials())
            .collect()
    }
}

fn any() -> Plan {
    plan("127.0.0.1", "a.example:443")
}

#[tokio::test(start_paused = true)]
async fn another_member_is_tried_where_one_is_down_and_for_nothing_else() {
    let mirrors = group_of(Balance::First, WrittenDown::TryFirst, &[1, 1]);
    assert_eq!(mirrors.ask(&any()).await, "m1");
    mirrors.upstreams[0].now(Does::Refuse);
    assert_eq!(mirrors.ask(&any()).await, "m2");
    mirrors.dials();
    for (status, told) in [
        (403, "upstream.denied"),
        (404, "upstream.reported.not_found"),
        (407, "upstream.auth_required"),
        (500, "upstream.reported.other"),
        (502, "upstream.reported.unavailable"),
    ] {
        mirrors.upstreams[0].now(Does::Answer(status, ""));
        assert_eq!(mirrors.ask(&any()).await, told);
        assert_eq!(mirrors.dials(), [1, 0], "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_down_is_passed_over_until_its_time_is_over() {
    let mirrors = group_of(Balance::First, WrittenDown::TryFirst, &[1, 1]);
    mirrors.upstreams[0].now(Does::Refuse);
    mirrors.ask_all(&any(), 10).await;
    assert_eq!(mirrors.dials(), [3, 10]);
    advance(Duration::from_secs(30)).await;
    mirrors.upstreams[0].now(UP);
    assert_eq!(mirrors.ask_all(&any(), 2).await, ["m1", "m1"]);
}

#[tokio::test(start_paused = true)]
async fn where_all_are_down_they_are_tried_anyway_or_the_request_fails_at_once() {
    let all = group_of(Balance::RoundRobin, WrittenDown::TryFirst, &[1, 1]);
    for upstream in &all.upstreams {
        upstream.now(Does::Refuse);
    }
    assert_eq!(all.ask_all(&any(), 3).await, ["upstream.all_down"; 3]);
    all.dials();
    assert_eq!(all.ask(&any()).await, "upstream.all_down");
    assert_eq!(all.dials(), [1, 1]);
    all.upstreams[0].now(UP);
    assert_eq!(all.ask(&any()).await, "m1");

    let none = group_of(Balance::RoundRobin, WrittenDown::Fail, &[1, 1]);
    for upstream in &none.upstreams {
        upstream.now(Does::Refuse);
    }
    none.ask_all(&any(), 3).await;
    none.dials();
    let failure = none.dial(&any()).await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        "no member of mirrors serves: m1: upstream.circuit_open; m2: upstream.circuit_open"
    );
    assert_eq!(none.dials(), [0, 0]);
    // Where something else may serve behind the group, that is as good.
    let passing = Plan {
        passes_over: true,
        ..any()
    };
    all.upstreams[0].now(Does::Refuse);
    all.ask_all(&any(), 3).await;
    all.dials();
    assert_eq!(all.ask(&passing).await, "upstream.all_down");
    assert_eq!(all.dials(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn no_more_members_are_tried_than_attempts_allow_nor_for_longer_than_the_budget() {
    let mirrors = group_of(Balance::First, WrittenDown::TryFirst, &[1; 5]);
    for upstream in &mirrors.upstreams {
        upstream.now(Does::Refuse);
    }
    let failure = mirrors.dial(&any()).await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        "no member of mirrors serves: m1: upstream.connect.refused; m2: upstream.connect.refused; \
         m3: upstream.connect.refused; 2 more not tried"
    );
    assert_eq!(mirrors.dials(), [1, 1, 1, 0, 0]);
    for upstream in &mirrors.upstreams {
        upstream.now(Does::Drop);
    }
    let started = Instant::now();
    assert_eq!(mirrors.ask(&any()).await, "upstream.all_down");
    assert_eq!(started.elapsed(), any().retry.budget);
    assert_eq!(mirrors.dials(), [1, 1, 1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_waited_for_beyond_the_budget() {
    let mirrors = group_of(Balance::First, WrittenDown::TryFirst, &[1, 1]);
    mirrors.upstreams[0].now(Does::Serve(Duration::from_secs(20)));
    assert_eq!(mirrors.ask(&any()).await, "m1");
}

#[tokio::test(start_paused = true)]
async fn turns_are_shared_out_by_weight_and_spread() {
    let mirrors = group_of(Balance::RoundRobin, WrittenDown::TryFirst, &[5, 1, 1]);
    let hops = mirrors.ask_all(&any(), 14).await;
    let expected = ["m1", "m1", "m2", "m1", "m3", "m1", "m1"];
    assert_eq!(hops[..7], expected);
    assert_eq!(hops[7..], expected);
}

#[tokio::test(start_paused = true)]
async fn the_one_with_the_fewest_open_connections_is_next() {
    let mirrors = group_of(Balance::LeastConn, WrittenDown::TryFirst, &[3, 1]);
    let mut held = BTreeMap::<_, Vec<Conn>>::new();
    for _ in 0..8 {
        let conn = mirrors.dial(&any()).await.unwrap();
        held.entry(conn.hop.to_string()).or_default().push(conn);
    }
    assert_eq!((held["m1"].len(), held["m2"].len()), (6, 2));
    held.remove("m1");
    assert_eq!(mirrors.group.members[0].health.open(), 0);
    assert_eq!(mirrors.ask_all(&any(), 3).await, ["m1", "m1", "m1"]);
    // One that failed is open no more.
    mirrors.upstreams[0].now(Does::Refuse);
    assert_eq!(mirrors.ask(&any()).await, "m2");
    assert_eq!(mirrors.group.members[0].health.open(), 0);
    // Equals take turns.
    let equals = group_of(Balance::LeastConn, WrittenDown::TryFirst, &[1, 1]);
    assert_eq!(equals.ask_all(&any(), 4).await, ["m1", "m2", "m1", "m2"]);
}

#[tokio::test(start_paused = true)]
async fn a_host_and_a_client_keep_their_member_and_only_those_of_one_that_is_down_move() {
    for (balance, by_host) in [(Balance::HashHost, true), (Balance::HashClient, false)] {
        let mirrors = group_of(balance, WrittenDown::TryFirst, &[1; 4]);
        let key = |at: usize| {
            if by_host {
                plan("127.0.0.1", &format!("host-{at}.example:443"))
            } else {
                plan(&format!("192.0.2.{at}"), &format!("host-{at}.example:443"))
            }
        };
        let mut before = Vec::new();
        for at in 0..100 {
            before.push(mirrors.ask(&key(at)).await);
            // The other part of the request has no say.
            let other = if by_host {
                Plan {
                    client: plan("192.0.2.9", "x.example:1").client,
                    ..key(at)
                }
            } else {
                Plan {
                    target: plan("192.0.2.9", "x.example:1").target,
                    ..key(at)
                }
            };
            assert_eq!(mirrors.ask(&other).await, before[at]);
        }
        mirrors.upstreams[1].now(Does::Refuse);
        for (at, before) in before.iter().enumerate() {
            let after = mirrors.ask(&key(at)).await;
            assert_eq!(after == *before, before != "m2", "{at}: {before}, {after}");
        }
        advance(Duration::from_secs(30)).await;
        mirrors.upstreams[1].now(UP);
        for (at, before) in before.iter().enumerate() {
            assert_eq!(mirrors.ask(&key(at)).await, *before);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_fastest_serves_and_the_others_are_looked_at_now_and_then() {
    let mirrors = group_of(Balance::Fastest, WrittenDown::TryFirst, &[1, 1, 1]);
    let slow = |ms: u64| Does::Serve(Duration::from_millis(ms));
    for (upstream, ms) in mirrors.upstreams.iter().zip([30, 10, 20]) {
        upstream.now(slow(ms));
    }
    // Each is measured once before any is preferred.
    assert_eq!(mirrors.ask_all(&any(), 3).await, ["m1", "m2", "m3"]);
    let hops = mirrors.ask_all(&any(), 61).await;
    let others = hops.iter().filter(|hop| *hop != "m2").count();
    assert_eq!(others, 4, "{hops:?}");
    // What has become faster is noticed.
    mirrors.upstreams[0].now(slow(1));
    let hops = mirrors.ask_all(&any(), 640).await;
    assert!(
        hops[600..].iter().filter(|hop| *hop == "m1").count() > 30,
        "{hops:?}"
    );
}
