//! Looks at targets that keep failing, without being asked (`defaults.triage`): one at a time, by the ways that their requests
//! take, and held against what passed lately. What is found stands in the records that follow.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::drain::Drain;
use crate::client::Client;
use crate::doctor::facts::Spoken;
use crate::doctor::verdict::NO_CONTROL;
use crate::doctor::{Bounds, Control, Granted, Plan, Verdict, examine, judge};
use crate::memory::{self, Diagnosis, Due, Memory};
use crate::net::resolve::Resolver;
use crate::policy::upstream::Send;
use crate::policy::{Policy, RouteId, RouteSpec};
use crate::proxy::Proxy;
use crate::record::quote;
use crate::target::{Host, Target};

/// No look takes longer.
const LONGEST: Duration = Duration::from_mins(1);

/// Between one look and the next, of another target.
const REST: Duration = Duration::from_secs(5);

/// Starts what looks. It ends when nothing new may begin.
pub(super) fn begin(proxy: &Arc<Proxy>, drain: &Drain) {
    drain.spawn(run(proxy.clone(), drain.closing()));
}

async fn run(proxy: Arc<Proxy>, closing: CancellationToken) {
    while let Some(due) = closing.run_until_cancelled(proxy.memory.due()).await {
        let (policy, resolver) = {
            let snapshot = proxy.snapshot.load();
            (snapshot.policy.clone(), snapshot.names.resolver().clone())
        };
        let via = proxy.identity.via.entry(Version::HTTP_11);
        let via = String::from_utf8_lossy(via.as_bytes());
        let Some(plan) = plan(&due, &policy, &via) else {
            continue;
        };
        let (memory, token) = (proxy.memory.clone(), closing.clone());
        // It is for one thread, and its connections are this runtime's.
        let runtime = Handle::current();
        let work = move || {
            let look = look(&memory, &due, &policy, &resolver, &plan);
            runtime.block_on(token.run_until_cancelled(look))
        };
        if spawn_blocking(work).await.is_err() {
            tracing::error!("a look at a target that keeps failing broke off");
        }
        let _ = closing.run_until_cancelled(sleep(REST)).await;
    }
}

/// Looks at a target, and keeps what is found.
async fn look(memory: &Memory, due: &Due, policy: &Arc<Policy>, resolver: &Resolver, plan: &Plan) {
    let target = &plan.target;
    tracing::debug!("{target} keeps failing, {}: it is looked at", due.cause);
    let examined = examine(policy, resolver, plan, &|_| {});
    let Ok(facts) = timeout(LONGEST, examined).await else {
        tracing::warn!("the look at {target}, which keeps failing, took too long");
        return;
    };
    let diagnosis = diagnosis(judge(&facts));
    let told = format!(
        "{target} keeps failing, {}: {} ({}): {}",
        due.cause,
        diagnosis.verdict,
        diagnosis.certainty,
        quote(&diagnosis.sentence)
    );
    memory.keep(due, diagnosis);
    tracing::info!("{told}");
}

fn diagnosis(verdict: Verdict) -> Diagnosis {
    let nearer = |counter: String| {
        if counter == NO_CONTROL {
            "no control was tried: nothing else passed by the same way lately".to_owned()
        } else {
            quote(&counter)
        }
    };
    Diagnosis {
        verdict: verdict.id,
        certainty: verdict.certainty.as_str(),
        sentence: verdict.sentence.into(),
        counter: verdict.counter.into_iter().map(nearer).collect(),
        fix: verdict.fix.map(Into::into),
    }
}

/// What is looked at, by whose leave; nothing where the policy at work is another one, or says of no way that may be gone.
fn plan(due: &Due, policy: &Policy, via: &str) -> Option<Plan> {
    if policy.hash != due.policy {
        return None;
    }
    let request = &due.request;
    let target = target(&due.host, due.port)?;
    let mut routes = policy.routes.iter();
    let route = routes.position(|route| route.name == request.route)?;
    // Rules may hang on addresses: where those are unknown that they let through, none is dialled.
    let may_dial = !due.addresses.is_empty() || target.host.ip().is_some() || !policy.looks_up();
    let granted = ways(policy, RouteId(route), may_dial);
    // What was tried may be tried again, and nothing else: a chain does not move on after each failure.
    let granted = granted.into_iter().filter(|hop| due.hops.contains(hop));
    let granted = granted.map(|route| Granted {
        controls: due.controls(&route).iter().filter_map(control).collect(),
        route,
    });
    let ways: Vec<_> = granted.collect();
    let chosen = ways.first()?.route.to_string();
    let spoken = match due.port {
        _ if request.is_plain => Spoken::Http,
        _ if request.is_tls => Spoken::Tls,
        // Where it failed before anything of the target's was seen.
        443 if is_early(&due.cause) => Spoken::Tls,
        _ => Spoken::Other,
    };
    let rule = policy
        .rules
        .iter()
        .find(|rule| Some(&rule.name) == request.rule.as_ref());
    Some(Plan {
        target,
        spoken,
        path: "/".to_owned(),
        // What was wanted is not known here.
        wants_more: true,
        is_located: false,
        chosen: Some(chosen),
        controls: Vec::new(),
        portal: None,
        servers: Vec::new(),
        bounds: Some(Bounds {
            ways,
            client: client(request.client, !due.addresses.is_empty()),
            addresses: due.addresses.clone(),
            dns: rule.and_then(|rule| rule.dns),
            via: via.to_owned(),
        }),
    })
}

/// Whether a cause ends a request before it shows what is spoken, or in TLS.
fn is_early(cause: &str) -> bool {
    ["dns.", "connect.", "upstream.", "tls."]
        .iter()
        .any(|family| cause.starts_with(family))
}

/// The hops of a route, each once, in their order; without those that dial the target themselves where it must not be dialled.
fn ways(policy: &Policy, id: RouteId, may_dial: bool) -> Vec<Arc<str>> {
    let route = policy.route(id);
    let mut hops = Vec::new();
    let mut add = |hop: RouteId| {
        for name in ways(policy, hop, may_dial) {
            if !hops.contains(&name) {
                hops.push(name);
            }
        }
    };
    match &route.spec {
        RouteSpec::Direct if may_dial => hops.push(route.name.clone()),
        RouteSpec::Upstream(upstream) if may_dial || upstream.send == Send::Host => {
            hops.push(route.name.clone());
        }
        RouteSpec::Chain(chain) => chain.hops.iter().for_each(|hop| add(hop.route)),
        RouteSpec::Group(group) => group.members.iter().for_each(|member| add(member.route)),
        RouteSpec::Faulty { inner, .. } => add(*inner),
        // What a script says of a request it says of no other.
        RouteSpec::Direct | RouteSpec::Upstream(_) | RouteSpec::Pac(_) => {}
    }
    hops
}

/// Whose requests failed. Which of our addresses it reached is not known: it is held to be on this machine only where that
/// opens nothing that was not open to it before.
fn client(ip: IpAddr, has_dialled: bool) -> Client {
    let local = if ip.is_loopback() && has_dialled {
        ip
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    Client {
        peer: SocketAddr::new(ip, 0),
        local: SocketAddr::new(local, 0),
        listener: "triage".into(),
    }
}

fn control(control: &memory::Control) -> Option<Control> {
    Some(Control {
        target: target(&control.host, control.port)?,
        address: control.address,
    })
}

/// A target as a record names it.
fn target(host: &str, port: u16) -> Option<Target> {
    match host.parse() {
        Ok(ip) => Some(Target::new(Host::Ip(ip), port)),
        Err(_) => Target::from_authority(&format!("{host}:{port}")).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{self, Environment, Options, Source};
    use crate::memory::Request;

    const VIA: &str = "1.1 here";
    const UPSTREAMS: &str =
        "upstreams: {corp: {url: 'http://192.0.2.1:3128'}, spare: {url: 'socks5://192.0.2.2:1080'}}
groups: {both: {members: [corp, spare]}}";

    fn policy(rest: &str) -> Policy {
        let source = Source::Text {
            name: "policy.yaml".to_owned(),
            text: format!("version: 1\n{UPSTREAMS}\n{rest}\n"),
        };
        let options = Options::check(jiff::Timestamp::UNIX_EPOCH);
        let loaded = config::load(&source, &Environment::default(), &options);
        loaded
            .map_err(|report| report.render(false))
            .unwrap()
            .policy
    }

    fn due(policy: &Policy, route: &str) -> Due {
        Due {
            host: "a.example".into(),
            port: 443,
            cause: "connect.timeout".into(),
            request: Request {
                client: "192.0.2.9".parse().unwrap(),
                user: None,
                rule: Some("default".into()),
                route: route.into(),
                is_plain: false,
                is_tls: false,
            },
            since: tokio::time::Instant::now(),
            hops: ["direct", "corp", "spare"].map(Into::into).to_vec(),
            addresses: Vec::new(),
            policy: policy.hash.clone(),
            controls: BTreeMap::new(),
        }
    }

    fn ways_of(plan: Option<&Plan>) -> Vec<&str> {
        let bounds = plan.and_then(|plan| plan.bounds.as_ref());
        let ways = bounds.into_iter().flat_map(|bounds| &bounds.ways);
        ways.map(|way| &*way.route).collect()
    }

    #[test]
    fn only_ways_of_the_route_are_gone() {
        let by_address =
            "rules: [{name: inside, match: {ip: 10.0.0.0/8, resolve: any}, block: true}]";
        let dialled: &[IpAddr] = &["203.0.113.7".parse().unwrap()];
        for (rules, route, addresses, expected) in [
            (
                "rules: []\ndefault: {direct: true}",
                "direct",
                &[][..],
                &["direct"][..],
            ),
            ("rules: []\ndefault: {via: corp}", "corp", &[], &["corp"]),
            (
                "rules: []\ndefault: {via: 'direct|corp'}",
                "direct|corp",
                &[],
                &["direct", "corp"],
            ),
            (
                "rules: []\ndefault: {via: both}",
                "both",
                &[],
                &["corp", "spare"],
            ),
            ("rules: []\ndefault: {via: corp}", "elsewhere", &[], &[]),
            // A rule may refuse what the name leads to now.
            (by_address, "direct", &[], &[]),
            (by_address, "direct", dialled, &["direct"]),
            (by_address, "direct|corp", &[], &["corp"]),
            (by_address, "both", &[], &["corp"]),
        ] {
            let policy = if rules.contains("default") {
                policy(rules)
            } else {
                policy(&format!("{rules}\ndefault: {{via: '{route}'}}"))
            };
            let due = Due {
                addresses: addresses.to_vec(),
                ..due(&policy, route)
            };
            let plan = plan(&due, &policy, VIA);
            assert_eq!(ways_of(plan.as_ref()), expected, "{rules} {route}");
            let chosen = plan.as_ref().and_then(|plan| plan.chosen.as_deref());
            assert_eq!(chosen, expected.first().copied());
        }
        let policy = policy("rules: []\ndefault: {direct: true}");
        let policy_of_chain = self::policy("rules: []\ndefault: {via: 'direct|corp'}");
        for (tried, expected) in [
            (&["direct"][..], &["direct"][..]),
            (&["corp"], &["corp"]),
            (&[], &[]),
        ] {
            let due = Due {
                hops: tried.iter().map(|hop| (*hop).into()).collect(),
                ..due(&policy_of_chain, "direct|corp")
            };
            assert_eq!(
                ways_of(plan(&due, &policy_of_chain, VIA).as_ref()),
                expected
            );
        }
        let of_another = Due {
            policy: "0".into(),
            ..due(&policy, "direct")
        };
        assert!(plan(&of_another, &policy, VIA).is_none());
    }

    #[test]
    fn what_was_spoken_is_looked_at_and_nothing_more_than_the_root_is_asked_for() {
        let policy = policy("rules: []\ndefault: {direct: true}");
        for (port, cause, is_plain, is_tls, expected) in [
            (443, "connect.timeout", false, false, Spoken::Tls),
            (443, "upstream.no_reply", false, false, Spoken::Tls),
            (443, "tunnel.reset_by_server", false, true, Spoken::Tls),
            (443, "tunnel.reset_by_server", false, false, Spoken::Other),
            (8443, "connect.timeout", false, true, Spoken::Tls),
            (8443, "connect.timeout", false, false, Spoken::Other),
            (80, "connect.timeout", false, false, Spoken::Other),
            (8080, "connect.timeout", true, false, Spoken::Http),
        ] {
            let mut due = due(&policy, "direct");
            (due.port, due.cause) = (port, cause.into());
            (due.request.is_plain, due.request.is_tls) = (is_plain, is_tls);
            let plan = plan(&due, &policy, VIA).unwrap();
            assert_eq!(
                (plan.spoken, &*plan.path),
                (expected, "/"),
                "{port} {cause}"
            );
        }
    }

    #[test]
    fn a_client_is_on_this_machine_only_where_it_was_let_to_an_address() {
        let client = |ip: &str, has_dialled| client(ip.parse().unwrap(), has_dialled);
        assert!(client("127.0.0.1", true).is_loopback());
        assert!(client("::1", true).is_loopback());
        assert!(!client("127.0.0.1", false).is_loopback());
        assert!(!client("192.0.2.9", true).is_loopback());
    }
}
