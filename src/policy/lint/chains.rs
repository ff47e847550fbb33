//! Chains that let out more than they seem to, and settings of theirs that have no effect.

use std::time::Duration;

use ipnet::IpNet;

use crate::cause::Class;
use crate::policy::chain::{Chain, Commit, Hop, Methods};
use crate::policy::matcher::{Hosts, Matcher};
use crate::policy::{Action, Policy, RouteId, RouteSpec, Rule};

/// What is likely not meant of the chains that a rule leads to: each with what may be.
pub(super) fn lint(policy: &Policy, rule: &Rule) -> Vec<(String, &'static str)> {
    let Action::Route(routes) = &rule.action else {
        return Vec::new();
    };
    let of = |id: RouteId| match &policy.without_faults(id).spec {
        RouteSpec::Chain(chain) => Some(chain),
        RouteSpec::Direct
        | RouteSpec::Upstream(_)
        | RouteSpec::Group(_)
        | RouteSpec::Pac(_)
        | RouteSpec::Faulty { .. } => None,
    };
    let (plain, tunnel) = (of(routes.http), of(routes.connect));
    let mut found = Vec::new();
    let name = &rule.name;
    if speaks_of_private(&rule.matcher)
        && let Some(hop) = [tunnel, plain].into_iter().flatten().find_map(leads_out)
    {
        let next = &policy.route(hop).name;
        found.push((
            format!("rule `{name}` speaks of what is private, and an outage sends it on to `{next}`"),
            "`,` goes on only where the name is not found, and `off` at the end lets nothing else out",
        ));
    }
    let retry = rule.retry.unwrap_or(policy.retry);
    if let Some(chain) = tunnel {
        let commit = rule.commit.unwrap_or(policy.commit);
        let takes_over = [
            Class::Reset,
            Class::HelloTimeout,
            Class::NotTls,
            Class::TlsAlert,
        ];
        if commit == Commit::Connect && names_one_of(chain, &takes_over) {
            found.push((
                format!(
                    "the chain of `{name}` names failures of a handshake, and `commit: connect` keeps a tunnel on its hop"
                ),
                "leave out `commit: connect`, or the classes",
            ));
        }
        let timeouts = rule.timeouts.as_ref().unwrap_or(&policy.timeouts);
        let hops = attempts(chain, retry.attempts);
        let budget = chain.budget.unwrap_or(retry.budget);
        if commit == Commit::FirstByte && hops > 1 && timeouts.hello.saturating_mul(hops) > budget {
            found.push((
                format!(
                    "{hops} hops of `{name}` with a `hello` of {} each do not fit into the budget of {}",
                    seconds(timeouts.hello),
                    seconds(budget)
                ),
                "each hop gets its share; clients give a handshake up after 10s or so, so shorten `timeouts.hello`",
            ));
        }
    }
    if let Some(chain) = plain
        && retry.methods == Methods::None
        && names_one_of(chain, &[Class::FirstByte])
    {
        found.push((
            format!("the chain of `{name}` names `first_byte`, and `retry.methods: none` sends nothing again"),
            "write `methods: safe`, or leave the class out",
        ));
    }
    if let Some(chain) = plain
        && !chain.on_status.is_empty()
        && !leads_on_by_status(chain)
    {
        found.push((
            format!("`on_status` has no effect in the chain of `{name}`: no hop has `status` in its `next_on`"),
            "write `next_on: [any_but_denied, status]` for the hop that may be left",
        ));
    }
    if let Some(chain) = plain
        && chain.hedge.is_some()
        && chain.hops.len() > 1
        && !has_company(chain)
    {
        found.push((
            format!(
                "`hedge` has no effect in the chain of `{name}`: no hop leads on after any failure"
            ),
            "write `next_on: any_but_denied` for the hop that may get company, or take it out",
        ));
    }
    let is_single = |chain: Option<&Chain>| chain.is_some_and(|chain| chain.hops.len() == 1);
    if let (true, Some(chain)) = (is_single(plain) && is_single(tunnel), tunnel) {
        let unused = [
            ("memory", chain.memory.is_some()),
            ("hedge", chain.hedge.is_some()),
        ];
        for (key, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
            found.push((
                format!("`{key}` has no effect in the chain of `{name}`: it has one hop"),
                "add a hop, or take it out",
            ));
        }
    }
    found
}

/// The first hop that an outage of the one before leads to.
fn leads_out(chain: &Chain) -> Option<RouteId> {
    let pairs = chain.hops.iter().zip(chain.hops.iter().skip(1));
    let mut out = pairs.filter(|(hop, _)| goes_on_after_more(hop));
    out.next().map(|(_, next)| next.route)
}

/// Whether more than a name that is not found leads on.
fn goes_on_after_more(hop: &Hop) -> bool {
    let mut classes = Class::ALL.iter();
    classes.any(|class| *class != Class::NotFound && hop.next_on.contains(*class))
}

fn leads_on_by_status(chain: &Chain) -> bool {
    let before_last = chain.hops.len().saturating_sub(1);
    let mut hops = chain.hops.iter().take(before_last);
    hops.any(|hop| hop.next_on.contains(Class::Status))
}

/// Whether the next hop may be dialled while one that is not the last is still silent.
fn has_company(chain: &Chain) -> bool {
    let before_last = chain.hops.len().saturating_sub(1);
    let mut hops = chain.hops.iter().take(before_last);
    hops.any(|hop| hop.next_on.is_wide())
}

/// Whether a hop that is not the last names one of these, rather than all there is.
fn names_one_of(chain: &Chain, classes: &[Class]) -> bool {
    let before_last = chain.hops.len().saturating_sub(1);
    chain.hops.iter().take(before_last).any(|hop| {
        !hop.next_on.is_wide() && classes.iter().any(|class| hop.next_on.contains(*class))
    })
}

fn attempts(chain: &Chain, usual: u32) -> u32 {
    let hops = u32::try_from(chain.hops.len()).unwrap_or(u32::MAX);
    hops.min(chain.attempts.unwrap_or(usual))
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// Labels that names inside a house or a company end in, and that sets of them are called by.
const INSIDE: &[&str] = &[
    "internal",
    "intranet",
    "local",
    "localdomain",
    "lan",
    "corp",
    "private",
];

/// Whether all that a matcher lets through looks like the inside of a house.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not known of a matcher gives no finding"
)]
fn speaks_of_private(matcher: &Matcher) -> bool {
    match matcher {
        Matcher::All(parts) => parts.iter().any(speaks_of_private),
        Matcher::Any(parts) => !parts.is_empty() && parts.iter().all(speaks_of_private),
        Matcher::PlainHost(is_plain) => *is_plain,
        Matcher::Host(hosts) => are_inside(hosts),
        Matcher::Ip(nets, _) => !nets.is_empty() && nets.iter().all(is_private),
        Matcher::Sets(sets) => sets.iter().all(|set| {
            let is_called_so = set
                .name
                .split(['_', '-'])
                .any(|word| INSIDE.contains(&word));
            let hosts = set.hosts.is_empty() || are_inside(&set.hosts);
            let is_empty = set.hosts.is_empty() && set.nets.is_empty();
            is_called_so || !is_empty && hosts && set.nets.iter().all(is_private)
        }),
        _ => false,
    }
}

fn are_inside(hosts: &Hosts) -> bool {
    let is_inside = |name: &String| {
        let name = name.trim_end_matches('.');
        let last = name.rsplit('.').next().unwrap_or(name);
        name == "home.arpa" || name.ends_with(".home.arpa") || INSIDE.contains(&last)
    };
    !hosts.is_empty() && hosts.written().iter().all(is_inside)
}

/// Source: RFC 1918; RFC 4193 (`fc00::/7`); RFC 6598 (100.64.0.0/10); RFC 3927 and RFC 4291 (link-local).
fn is_private(net: &IpNet) -> bool {
    const PRIVATE: [&str; 8] = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
    ];
    let mut nets = PRIVATE.iter().filter_map(|net| net.parse::<IpNet>().ok());
    nets.any(|private| private.contains(net))
}
