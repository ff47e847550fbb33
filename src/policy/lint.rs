//! What loads and is likely not meant: rules that can never decide, and matchers that say less than they seem to.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not known of a matcher gives no finding"
)]

mod chains;

use jiff::Timestamp;

use super::flight::Sniff;
use super::matcher::{Matcher, Resolve};
use super::{Action, Mode, Policy, Rule, Scheme};

/// Something that is likely not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule, by its place in [`Policy::rules`].
    pub rule: usize,
    /// What is odd.
    pub message: String,
    /// What may be meant.
    pub help: Option<String>,
}

/// Every pair of so many rules is compared. Who has more wrote them by machine: only pairs that speak of one host are
/// compared, and only with the first of them.
const MANY_RULES: usize = 1000;

/// Looks through the rules of a policy.
pub fn lint(policy: &Policy, now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let index = policy.index.as_ref();
    let index = index.filter(|_| policy.rules.len() > MANY_RULES);
    for (at, rule) in policy.rules.iter().enumerate() {
        let mut find = |message: String, help: Option<&str>| {
            findings.push(Finding {
                rule: at,
                message,
                help: help.map(str::to_owned),
            });
        };
        if rule.mode == Mode::Off {
            continue;
        }
        if rule.expires.is_some_and(|expires| now >= expires) {
            find(
                format!("rule `{}` has expired and is off", rule.name),
                Some("take it out, or move its `expires` on"),
            );
            continue;
        }
        let earlier = policy.rules.get(..at.min(MANY_RULES)).unwrap_or_default();
        let shadow = match index {
            Some(index) => index
                .candidates_over(&rule.matcher)
                .map_while(|by| earlier.get(by))
                .find(|by| shadows(by, rule, policy)),
            None => earlier.iter().find(|by| shadows(by, rule, policy)),
        };
        if let Some(by) = shadow {
            find(
                format!(
                    "rule `{}` can never decide: `{}` ({}) takes all it speaks of",
                    rule.name, by.name, by.source
                ),
                Some("move it up, or take it out"),
            );
        }
        let sets_timeouts =
            |by: &&Rule| matches!(by.action, Action::Continue) && by.timeouts.is_some();
        if rule.timeouts.is_some()
            && let Some(by) = earlier.iter().find(sets_timeouts)
        {
            find(
                format!(
                    "the timeouts of `{}` replace those that `{}` sets, not only the ones it names",
                    rule.name, by.name
                ),
                Some("name all that it needs here"),
            );
        }
        for (message, help) in chains::lint(policy, rule) {
            find(message, Some(help));
        }
        if asks_for_plain_request_in_tunnel(&rule.matcher) {
            find(
                format!(
                    "rule `{}` never matches: a tunnel does not show paths and headers",
                    rule.name
                ),
                Some("leave out `scheme: connect`, or `path` and `header`"),
            );
        }
        if rule.dns.is_some() && !asks(rule, policy) {
            find(
                "this rule looks no name up: its `dns` has no effect".to_owned(),
                Some("an upstream is told the name; `resolve` looks it up"),
            );
        }
        match &rule.action {
            Action::Route(_) if resolves(&rule.matcher, Resolve::Any) => find(
                format!(
                    "rule `{}` lets a name through if only some of its addresses lie inside",
                    rule.name
                ),
                Some("`resolve: all` asks for every address"),
            ),
            Action::Block(_) if resolves(&rule.matcher, Resolve::All) => find(
                format!(
                    "rule `{}` blocks a name only if all of its addresses lie inside",
                    rule.name
                ),
                Some("`resolve: any` blocks if some do"),
            ),
            Action::Route(_) | Action::Block(_) | Action::Continue => {}
        }
        if let [first, ..] = *modules_of_tunnels(&rule.matcher) {
            find(
                format!(
                    "rule `{}`: a tunnel shows its host only, so `{first}` is unknown there and does not match",
                    rule.name
                ),
                Some("a pattern that is a host alone works in tunnels too"),
            );
        }
        if rule.matcher.sees_flight()
            && let Some(by) = blinds(rule, earlier, policy)
        {
            find(
                format!(
                    "rule `{}` never matches a tunnel: {by} leaves `sni`, `alpn` and `proto` unknown",
                    rule.name
                ),
                Some("`sniff: auto` reads the first flight where a rule asks for it"),
            );
        }
        for line in no_proxy_lint(&rule.matcher) {
            find(format!("NO_PROXY entry {line}"), None);
        }
    }
    findings
}

/// Whether a rule may have a name looked up, by itself or by what it leads to.
fn asks(rule: &Rule, policy: &Policy) -> bool {
    rule.matcher.looks_up()
        || match &rule.action {
            Action::Route(routes) => [routes.http, routes.connect]
                .into_iter()
                .any(|route| policy.may_dial_target(route)),
            Action::Block(_) => false,
            Action::Continue => true,
        }
}

/// Who says `sniff: never` wherever a rule is asked, if anyone.
fn blinds(rule: &Rule, earlier: &[Rule], policy: &Policy) -> Option<String> {
    match rule.sniff {
        Some(Sniff::Never) => return Some("its own `sniff: never`".to_owned()),
        Some(Sniff::Auto | Sniff::Always) => return None,
        None => {}
    }
    let sets = |by: &&Rule| {
        by.sniff.is_some() && matches!(by.action, Action::Continue) && by.mode != Mode::Off
    };
    // The last one wins; one that does not speak of all of it may leave some of it alone.
    match earlier.iter().rev().find(sets) {
        Some(by) if by.sniff != Some(Sniff::Never) || !covers(&by.matcher, &rule.matcher) => None,
        Some(by) => Some(format!("the `sniff: never` of `{}`", by.name)),
        None if policy.sniff == Sniff::Never => Some("`defaults.sniff: never`".to_owned()),
        None => None,
    }
}

/// Whether every request that `rule` speaks of was decided by `by` before.
fn shadows(by: &Rule, rule: &Rule, policy: &Policy) -> bool {
    let decides = match &by.action {
        Action::Route(_) => true,
        Action::Block(_) => !policy.report,
        Action::Continue => false,
    };
    // One that expires gives way some day, unless the other ends no later.
    let lasts = match (by.expires, rule.expires) {
        (None, _) => true,
        (Some(by), Some(rule)) => by >= rule,
        (Some(_), None) => false,
    };
    // Where a lookup fails, a block by address still holds, and what goes in front of it may not.
    let is_block = matches!(rule.action, Action::Block(_));
    let may_slip_past = is_block && by.matcher.looks_up();
    // Where first flights are not read, it does not hold, and the other one may.
    let is_blinded = policy.sniff == Sniff::Never
        || policy
            .rules
            .iter()
            .any(|rule| rule.sniff == Some(Sniff::Never));
    let may_be_blind = is_blinded && by.matcher.sees_flight();
    decides
        && lasts
        && by.mode == Mode::Enforce
        && !may_slip_past
        && !may_be_blind
        && covers(&by.matcher, &rule.matcher)
}

/// Whether `broad` holds wherever `narrow` does; `false` where that cannot be told.
fn covers(broad: &Matcher, narrow: &Matcher) -> bool {
    match (broad, narrow) {
        (Matcher::All(parts), _) => parts.iter().all(|part| covers(part, narrow)),
        (_, Matcher::Any(parts)) => parts.iter().all(|part| covers(broad, part)),
        (_, Matcher::Sets(sets)) => sets.iter().all(|set| {
            // What is in none matches nothing, and that is told elsewhere.
            !(set.hosts.is_empty() && set.nets.is_empty())
                && set.modules.is_empty()
                && (set.hosts.is_empty() || covers(broad, &Matcher::Host(set.hosts.clone())))
                && (set.nets.is_empty()
                    || covers(broad, &Matcher::Ip(set.nets.clone(), Resolve::Never)))
        }),
        (Matcher::Any(parts), _) if parts.iter().any(|part| covers(part, narrow)) => true,
        (_, Matcher::All(parts)) => parts.iter().any(|part| covers(broad, part)),
        (Matcher::Any(_), _) => false,
        (Matcher::Sets(sets), Matcher::Host(narrow)) => {
            sets.iter().any(|set| set.hosts.cover(narrow))
        }
        (Matcher::Sets(sets), Matcher::Ip(narrow, Resolve::Never)) => {
            sets.iter().any(|set| all_inside(narrow, &set.nets))
        }
        (Matcher::Host(broad), Matcher::Host(narrow)) => broad.cover(narrow),
        (Matcher::HostRegex(broad), Matcher::HostRegex(narrow)) => {
            broad.as_str() == narrow.as_str()
        }
        (Matcher::PlainHost(broad), Matcher::PlainHost(narrow)) => broad == narrow,
        (Matcher::Ip(broad, by), Matcher::Ip(narrow, of)) => {
            let reaches = match (by, of) {
                (_, Resolve::Never) => true,
                (Resolve::Any, _) => true,
                (Resolve::All, Resolve::All) => true,
                (Resolve::Never, _) | (Resolve::All, Resolve::Any) => false,
            };
            reaches && all_inside(narrow, broad)
        }
        (Matcher::Port(broad), Matcher::Port(narrow)) => narrow.ranges().iter().all(|n| {
            let inside =
                |b: &std::ops::RangeInclusive<u16>| b.start() <= n.start() && n.end() <= b.end();
            broad.ranges().iter().any(inside)
        }),
        (Matcher::Scheme(broad), Matcher::Scheme(narrow)) => broad == narrow,
        (Matcher::Method(broad), Matcher::Method(narrow)) => {
            narrow.iter().all(|m| broad.contains(m))
        }
        (Matcher::Client(broad), Matcher::Client(narrow)) => all_inside(narrow, broad),
        (Matcher::User(broad), Matcher::User(narrow))
        | (Matcher::Listener(broad), Matcher::Listener(narrow))
        | (Matcher::Alpn(broad), Matcher::Alpn(narrow)) => {
            narrow.iter().all(|name| broad.contains(name))
        }
        (Matcher::Role(broad), Matcher::Role(narrow)) => narrow
            .iter()
            .all(|role| broad.iter().any(|b| covers(&b.matcher, &role.matcher))),
        (Matcher::Label(broad), Matcher::Label(narrow)) => {
            let broad = broad.written();
            narrow.written().iter().all(|n| broad.contains(n))
        }
        (Matcher::Sni(broad), Matcher::Sni(narrow)) => broad.cover(narrow),
        (Matcher::Proto(broad), Matcher::Proto(narrow)) => {
            narrow.iter().all(|proto| broad.contains(proto))
        }
        (Matcher::Not(broad), Matcher::Not(narrow)) => covers(narrow, broad),
        _ => false,
    }
}

fn all_inside(narrow: &[ipnet::IpNet], broad: &[ipnet::IpNet]) -> bool {
    narrow
        .iter()
        .all(|net| broad.iter().any(|b| b.contains(net)))
}

fn asks_for_plain_request_in_tunnel(matcher: &Matcher) -> bool {
    let Matcher::All(parts) = matcher else {
        return false;
    };
    let has = |test: fn(&Matcher) -> bool| parts.iter().any(test);
    let is_tunnel = |part: &Matcher| match part {
        Matcher::Scheme(scheme) => *scheme == Scheme::Connect,
        Matcher::Method(methods) => methods.iter().all(|method| method == http::Method::CONNECT),
        _ => false,
    };
    has(is_tunnel) && has(|part| matches!(part, Matcher::Path(_) | Matcher::Header(..)))
}

fn resolves(matcher: &Matcher, how: Resolve) -> bool {
    match matcher {
        Matcher::Ip(_, resolve) => *resolve == how,
        Matcher::All(parts) | Matcher::Any(parts) => parts.iter().any(|part| resolves(part, how)),
        _ => false,
    }
}

/// The module patterns in it that are more than a host; none where it speaks of plain requests only.
fn modules_of_tunnels(matcher: &Matcher) -> Vec<&str> {
    match matcher {
        Matcher::GoModule(modules) => modules.hidden_in_tunnels().collect(),
        Matcher::Sets(sets) => {
            let modules = sets.iter().flat_map(|set| set.modules.hidden_in_tunnels());
            modules.collect()
        }
        Matcher::All(parts) if parts.iter().any(is_plain) => Vec::new(),
        Matcher::All(parts) | Matcher::Any(parts) => {
            parts.iter().flat_map(modules_of_tunnels).collect()
        }
        Matcher::Not(inner) => modules_of_tunnels(inner),
        _ => Vec::new(),
    }
}

fn is_plain(matcher: &Matcher) -> bool {
    matches!(matcher, Matcher::Scheme(Scheme::Http))
}

fn no_proxy_lint(matcher: &Matcher) -> Vec<String> {
    match matcher {
        Matcher::NoProxy(list) => list.lint().to_vec(),
        Matcher::All(parts) | Matcher::Any(parts) => parts.iter().flat_map(no_proxy_lint).collect(),
        Matcher::Not(inner) => no_proxy_lint(inner),
        _ => Vec::new(),
    }
}
