//! What holds for every policy and every request, over generated ones.

mod generate;

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};
use proptest::prelude::*;

use super::clients::LabelPatterns;
use super::explain::{Does, explain};
use super::flight::{Flight, Proto, SniMismatch};
use super::guard::Guards;
use super::matcher::{Hosts, Nets, Resolve, Set, Truth};
use super::modules::{Modules, Pattern};
use super::no_proxy::{Dialect, NoProxy};
use super::upstream::{Credential, Source, Upstream};
use super::*;
use crate::client::{Claim, Client};
use crate::config;
use crate::secret::Secret;
use crate::target::{Host, Target};

use generate::{Asked, asked, matcher, policy};

/// What a decision comes to, in a form that compares.
fn summary(decision: &Decision<'_>) -> String {
    format!(
        "{:?} {:?} {:?} {:?}",
        decision.rule.map(|rule| &rule.name),
        decision.verdict,
        decision.would.map(|would| would.name().to_owned()),
        decision.timeouts
    )
}

/// Walks as the proxy does: the fact is fetched when it is asked for, and the same walk goes on.
fn walk(policy: &Policy, asked: &Asked) -> (String, bool) {
    let mut walk = Walk::default();
    let mut looked_up = false;
    let mut looked_in = false;
    loop {
        let mut query = asked.query(looked_up.then(|| asked.lookup()));
        query.first_flight = looked_in.then_some(&asked.flight);
        match policy.step(&mut walk, &query) {
            Step::Decided(decision) => return (summary(&decision), looked_up),
            Step::Needs(Needs::Machine) => panic!("nothing listens"),
            Step::Needs(Needs::FirstFlight) => {
                assert!(!looked_in, "a fact is asked for once");
                assert!(asked.is_connect, "a plain request has no first flight");
                looked_in = true;
            }
            Step::Needs(Needs::Addresses) => {
                assert!(!looked_up, "a fact is asked for once");
                looked_up = true;
            }
        }
    }
}

/// A matcher with the parts of each list turned round.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others have no parts")]
fn reversed(matcher: &Matcher) -> Matcher {
    match matcher {
        Matcher::All(parts) => Matcher::All(parts.iter().rev().map(reversed).collect()),
        Matcher::Any(parts) => Matcher::Any(parts.iter().rev().map(reversed).collect()),
        Matcher::Not(inner) => Matcher::Not(Box::new(reversed(inner))),
        other => other.clone(),
    }
}

fn secret(text: &str) -> Credential {
    Credential {
        value: Secret::new(text),
        source: Source::Fixed,
    }
}

#[test]
fn an_explanation_reads_well_and_keeps_its_form() {
    let rule = |name: &str, line: usize, matcher, action, mode| Rule {
        mode,
        ..Rule::new(
            name.into(),
            format!("p.yaml:{line}").into(),
            matcher,
            action,
        )
    };
    let direct = || {
        Action::Route(ByScheme {
            http: RouteId(0),
            connect: RouteId(0),
        })
    };
    let hosts =
        |hosts: &[&str], domains: &[&str]| Matcher::Host(Hosts::new(hosts, domains).unwrap());
    let all = |parts| Matcher::All(parts);
    let block = Action::Block(Block {
        reason: Some("not here".into()),
        ..Block::default()
    });
    let mut policy = Policy {
        hash: "0123456789ab".into(),
        report: false,
        index: None,
        guards: Guards::default(),
        rules: vec![
            rule(
                "no_proxy",
                2,
                Matcher::NoProxy(Arc::new(NoProxy::parse("b.example", Dialect::Go))),
                direct(),
                Mode::Enforce,
            ),
            rule(
                "web",
                4,
                all(vec![Matcher::Port(Ports::from_iter([
                    80..=80,
                    8000..=8999,
                ]))]),
                direct(),
                Mode::Enforce,
            ),
            rule(
                "inside",
                5,
                all(vec![hosts(&["git.example"], &["corp.example"])]),
                direct(),
                Mode::Enforce,
            ),
            rule(
                "near",
                6,
                all(vec![Matcher::Ip(
                    Nets::from_iter(["10.0.0.0/8".parse().unwrap()]),
                    Resolve::All,
                )]),
                direct(),
                Mode::Enforce,
            ),
            rule(
                "robots",
                7,
                all(vec![Matcher::Path(globset::GlobSet::empty())]),
                block.clone(),
                Mode::Enforce,
            ),
            rule("off", 8, all(vec![]), direct(), Mode::Off),
            rule("trial", 9, all(vec![]), direct(), Mode::Report),
            rule(
                "upstream",
                10,
                all(vec![]),
                Action::Route(ByScheme {
                    http: RouteId(0),
                    connect: RouteId(1),
                }),
                Mode::Enforce,
            ),
        ],
        default: rule("default", 11, Matcher::everything(), block, Mode::Enforce),
        routes: vec![
            Route {
                name: "direct".into(),
                spec: RouteSpec::Direct,
            },
            Route {
                name: "corp".into(),
                spec: RouteSpec::Upstream(Arc::new(Upstream {
                    auth: Some(upstream::Auth {
                        schemes: vec![upstream::Scheme::Basic],
                        login: Some(upstream::Login {
                            username: secret("me"),
                            password: secret("s3cret"),
                        }),
                        spn: None,
                        preemptive: true,
                    }),
                    ..Upstream::http(Target::from_authority("proxy.example:8080").unwrap())
                })),
            },
        ],
        timeouts: Arc::default(),
        errors_in_json: false,
        commit: Commit::default(),
        retry: Retry::default(),
        circuit: None,
        triage: None,
        sniff: Sniff::Auto,
        on_reload: OnReload::default(),
        roles: Vec::new(),
        labels: Labels::None,
        proves_users: false,
        pins: Vec::new(),
        dns: Dns::default(),
    };
    let asked = Asked {
        client: Client {
            peer: "127.0.0.1:9".parse().unwrap(),
            local: "127.0.0.1:3128".parse().unwrap(),
            listener: "proxy".into(),
        },
        target: Target::from_authority("a.example:443").unwrap(),
        is_connect: true,
        headers: HeaderMap::new(),
        addresses: Some(vec![
            "10.0.0.1".parse().unwrap(),
            "192.0.2.1".parse().unwrap(),
        ]),
        claim: Claim::NONE,
        flight: Flight::Silent,
    };
    assert_eq!(explain(&policy, &asked.query(None)), Err(Needs::Addresses));
    let explanation = explain(&policy, &asked.query(Some(asked.lookup()))).unwrap();
    assert_eq!(
        explanation.to_string(),
        "\
CONNECT a.example:443 from 127.0.0.1
  goes through upstream corp (proxy.example:8080), by upstream (p.yaml:10)
  in report mode: trial would have decided otherwise
  looked up: 10.0.0.1, 192.0.2.1
rules before it:
  no_proxy  no NO_PROXY entry exempts a.example:443  (p.yaml:2)
  web       port 443 is not 80 or 8000-8999  (p.yaml:4)
  inside    host a.example is not in git.example, domain corp.example  (p.yaml:5)
  near      every address of a.example (10.0.0.1, 192.0.2.1) is not in 10.0.0.0/8  (p.yaml:6)
  robots    a tunnel does not show what it asks for  (p.yaml:7)
  off       it is off  (p.yaml:8)
  trial     it would decide, and is in report mode  (p.yaml:9)
"
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["schema"], "routecause.explain/1");
    assert_eq!(
        json["decision"],
        serde_json::json!({
            "action": "via", "rule": "upstream", "source": "p.yaml:10", "route": "corp",
            "upstream": "proxy.example:8080", "would": "trial",
        })
    );
    assert_eq!(
        json["passed"][1],
        serde_json::json!({"rule": "web", "source": "p.yaml:4", "why": "port 443 is not 80 or 8000-8999"})
    );
    assert_eq!(json["timeouts"]["connect_stagger"], "250ms");
    assert_eq!(json["timeouts"]["first_byte"], "5m");
    assert!(json.get("no_proxy").is_none() && !json.to_string().contains("s3cret"));

    policy.rules.truncate(1);
    let refused = explain(&policy, &asked.query(None)).unwrap();
    assert!(
        refused
            .to_string()
            .contains("is refused with 403, by default (p.yaml:11): not here"),
        "{refused}"
    );

    policy.report = true;
    let noted = explain(&policy, &asked.query(None)).unwrap().to_string();
    assert!(
        noted.contains("goes direct, by default (p.yaml:11)")
            && noted.contains("in report mode: default would have decided otherwise")
            && !noted.contains("it would block"),
        "{noted}"
    );

    policy.report = false;
    policy.guards.connect_ports = Some([22..=22, 8000..=8999].into_iter().collect());
    let refused = explain(&policy, &asked.query(None)).unwrap();
    assert!(
        refused
            .to_string()
            .contains("by guards.connect_ports: CONNECT may name port 22 or 8000-8999, not 443"),
        "{refused}"
    );
}

#[test]
fn what_a_rule_does_where_a_lookup_fails_is_told() {
    let explained = |rule: &str| {
        let text = format!(
            "version: 1\nrules: [{{name: inside, match: {{ip: 10.0.0.0/8, resolve: any}}, {rule}}}]\ndefault: {{direct: true}}\n"
        );
        let source = config::Source::Text {
            name: "p.yaml".to_owned(),
            text,
        };
        let options = config::Options::check(Timestamp::UNIX_EPOCH);
        let loaded = config::load(&source, &config::Environment::default(), &options).unwrap();
        let asked = Asked {
            client: Client {
                peer: "127.0.0.1:9".parse().unwrap(),
                local: "127.0.0.1:3128".parse().unwrap(),
                listener: "proxy".into(),
            },
            target: Target::from_authority("a.example:443").unwrap(),
            is_connect: true,
            headers: HeaderMap::new(),
            addresses: None,
            claim: Claim::NONE,
            flight: Flight::Silent,
        };
        explain(&loaded.policy, &asked.known()).unwrap()
    };
    for rule in ["block: true", "block: true, on_dns_error: block"] {
        let blocked = explained(rule);
        assert_eq!(blocked.decision.action, Does::Block, "{rule}");
        assert_eq!(blocked.decision.on_dns_error, Some("block"));
        let told = blocked.to_string();
        assert!(
            told.contains("is refused with 403, by inside (p.yaml:2)\n  its name could not be looked up (on_dns_error: block)\n"),
            "{told}"
        );
    }
    let skipped = explained("block: true, on_dns_error: skip");
    assert_eq!(skipped.decision.action, Does::Direct);
    assert_eq!(skipped.decision.on_dns_error, None);
    assert_eq!(
        skipped.passed[0].why,
        "the name could not be looked up (on_dns_error: skip)"
    );
    let other = explained("direct: true");
    assert_eq!(other.passed[0].why, "the name could not be looked up");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn explain_decides_what_the_walk_decides(policy in policy(), asked in asked()) {
        let (walked, looked_up) = walk(&policy, &asked);
        let mut query = asked.query(looked_up.then(|| asked.lookup()));
        query.first_flight = Some(&asked.flight);
        let explanation = explain(&policy, &query).expect("every fact is there");
        let Step::Decided(decision) = policy.step(&mut Walk::default(), &query) else {
            panic!("every fact is there");
        };
        prop_assert_eq!(&summary(&decision), &walked);
        let action = match decision.verdict {
            Verdict::Deny(_) => Does::Block,
            Verdict::Route(RouteId::DIRECT) => Does::Direct,
            Verdict::Route(_) => Does::Via,
        };
        prop_assert_eq!(explanation.decision.action, action);
        if let Some(rule) = decision.rule {
            prop_assert_eq!(&explanation.decision.rule, &*rule.name);
        }
        prop_assert_eq!(explanation.decision.would.as_deref(), decision.would.as_ref().map(Would::name));
        // A rule is told of once, and the one that decided is not among those passed over.
        let decided = &explanation.decision.rule;
        prop_assert!(explanation.passed.iter().all(|passed| passed.rule != *decided));
        let mut names: Vec<_> = explanation.passed.iter().map(|passed| &passed.rule).collect();
        names.sort();
        names.dedup();
        prop_assert_eq!(names.len(), explanation.passed.len());
        prop_assert!(explanation.passed.iter().all(|passed| !passed.why.is_empty()));
    }

    #[test]
    fn facts_that_are_known_beforehand_change_nothing(policy in policy(), asked in asked()) {
        let (walked, _) = walk(&policy, &asked);
        let Step::Decided(decision) = policy.step(&mut Walk::default(), &asked.known()) else {
            panic!("every fact is there");
        };
        prop_assert_eq!(summary(&decision), walked);
    }

    #[test]
    fn what_little_is_known_refuses_is_refused_whatever_else_there_is(
        policy in policy(),
        asked in asked(),
        knows_flight in any::<bool>(),
        at in prop::option::of(0..3_usize),
    ) {
        let (walked, _) = walk(&policy, &asked);
        let all = policy.decide_by_what_is_known(&asked.known());
        prop_assert_eq!(all.as_ref().map(summary), Some(walked.clone()));
        let one = at.and_then(|at| asked.addresses.as_ref()?.get(at));
        let mut query = asked.query(one.map(|ip| Lookup::Among(*ip)));
        query.first_flight = knows_flight.then_some(&asked.flight);
        if let Some(Decision { verdict: Verdict::Deny(_), .. }) = policy.decide_by_what_is_known(&query) {
            prop_assert!(matches!(all, Some(Decision { verdict: Verdict::Deny(_), .. })), "{}", walked);
        }
    }

    #[test]
    fn the_first_flight_is_asked_for_only_where_it_can_decide(policy in policy(), asked in asked()) {
        let mut walk = Walk::default();
        let query = asked.query(Some(asked.lookup()));
        if let Step::Needs(Needs::FirstFlight) = policy.step(&mut walk, &query) {
            let at = policy.rules.get(walk.at.unwrap());
            let guard = policy.guards.sni_mismatch != SniMismatch::Allow;
            prop_assert!(guard || at.is_some_and(|rule| rule.matcher.sees_flight()));
        }
    }

    #[test]
    fn no_rule_switches_the_guard_of_sni_off(mut policy in policy(), asked in asked()) {
        policy.guards.sni_mismatch = SniMismatch::Block;
        policy.report = false;
        let query = asked.known();
        let differs = query.first_flight.is_some_and(|flight| flight.differs_from(&query.target.host));
        if query.scheme == Scheme::Connect && differs {
            let Step::Decided(decision) = policy.step(&mut Walk::default(), &query) else {
                panic!("every fact is there");
            };
            prop_assert!(matches!(decision.verdict, Verdict::Deny(_)), "{:?}", decision);
        }
    }

    #[test]
    fn an_indexed_walk_is_the_plain_walk(mut policy in policy(), asked in prop::collection::vec(asked(), 4)) {
        let plain: Vec<_> = asked.iter().map(|asked| walk(&policy, asked)).collect();
        policy.index = Some(Index::of(&policy.rules));
        let indexed: Vec<_> = asked.iter().map(|asked| walk(&policy, asked)).collect();
        prop_assert_eq!(indexed, plain);
    }

    #[test]
    fn many_networks_hold_what_each_of_them_holds(nets in prop::collection::vec((any::<u8>(), 0..=8_u8, any::<bool>()), 0..40)) {
        // All of a small block, so that networks lie inside, beside and on top of each other.
        let address = |last: u8, is_v6| -> IpAddr {
            if is_v6 {
                std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
            } else {
                std::net::Ipv4Addr::new(192, 0, 2, last).into()
            }
        };
        let nets: Vec<_> = nets
            .into_iter()
            .map(|(last, wide, is_v6)| {
                let length = if is_v6 { 128 } else { 32 } - wide;
                ipnet::IpNet::new(address(last, is_v6), length).unwrap()
            })
            .collect();
        let joined: Nets = nets.iter().copied().collect();
        for ip in (0..=255).flat_map(|last| [address(last, false), address(last, true)]) {
            prop_assert_eq!(joined.contain(ip), nets.iter().any(|net| net.contains(&ip)), "{}", ip);
        }
    }

    #[test]
    fn the_order_of_conditions_does_not_matter(matcher in matcher(), asked in asked(), knows in any::<bool>()) {
        let query = asked.query(knows.then(|| asked.lookup()));
        prop_assert_eq!(matcher.judge(&query), reversed(&matcher).judge(&query));
    }

    #[test]
    fn a_fact_that_comes_later_changes_nothing_that_was_known(matcher in matcher(), asked in asked()) {
        let before = matcher.judge(&asked.query(None));
        let after = matcher.judge(&asked.known());
        if !matches!(before, Truth::Unknown(_)) {
            prop_assert_eq!(before, after);
        }
    }

    #[test]
    fn a_rule_that_lint_calls_shadowed_never_decides(policy in policy(), asked in prop::collection::vec(asked(), 20)) {
        let now = Timestamp::UNIX_EPOCH + Duration::from_secs(1);
        let shadowed: Vec<_> = lint::lint(&policy, now)
            .into_iter()
            .filter(|finding| finding.message.contains("can never decide"))
            .map(|finding| format!("Some(\"r{}\") ", finding.rule))
            .collect();
        for asked in &asked {
            let (decided, _) = walk(&policy, asked);
            prop_assert!(!shadowed.iter().any(|rule| decided.starts_with(rule)), "{} {:?}", decided, asked);
        }
    }
}
