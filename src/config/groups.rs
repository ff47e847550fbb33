//! Groups, and the health of upstreams: from what is written to what the policy keeps of it.

use std::time::Duration;

use super::decode::{At, Count, clip};
use super::diag::{Findings, Place};
use super::raw::groups as raw;
use super::upstreams::Routes;
use crate::policy::group::{AllDown, Balance, Group, Member};
use crate::policy::health::{Health, Probe};
use crate::policy::{ByScheme, RouteId};
use crate::target::Target;

/// More members than anyone runs for one purpose.
const MOST_MEMBERS: usize = 100;

/// The longest time for which an upstream is passed over: a person who waits for more thinks that it is down for good.
const LONGEST_FAIL_TIMEOUT: Duration = Duration::from_hours(1);

/// How far apart probes may be. Users mind one that comes more often.
const PROBES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

/// How long one may take where nothing is said.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How many must go well where nothing is said.
const RISE: u32 = 2;

/// Finds the members of a group; where one of them differs by the kind of request, so does the group.
pub(super) fn group(
    name: &At<String>,
    raw: &raw::Group,
    routes: &Routes,
    findings: &mut Findings<'_>,
) -> Option<(Group, Group)> {
    let list = raw.members.as_ref()?;
    if list.is_empty() {
        findings.error(list.place, "a group needs a member");
        return None;
    }
    if list.len() > MOST_MEMBERS {
        let message = format!("{} members are too many: {MOST_MEMBERS} may be", list.len());
        findings.error(list.place, message);
        return None;
    }
    let balance = match raw.balance.as_ref().map(|at| at.value) {
        None | Some(raw::Balance::First) => Balance::First,
        Some(raw::Balance::RoundRobin) => Balance::RoundRobin,
        Some(raw::Balance::LeastConn) => Balance::LeastConn,
        Some(raw::Balance::HashHost) => Balance::HashHost,
        Some(raw::Balance::HashClient) => Balance::HashClient,
        Some(raw::Balance::Fastest) => Balance::Fastest,
    };
    let all_down = match raw.all_down.as_ref().map(|at| at.value) {
        None | Some(raw::AllDown::TryFirst) => AllDown::TryFirst,
        Some(raw::AllDown::Fail) => AllDown::Fail,
    };
    let mut found: Vec<(&At<String>, ByScheme, u32)> = Vec::new();
    let mut is_whole = true;
    for member in list.iter() {
        let raw::Member(member) = &member.value;
        let weight = weight(member.weight.as_ref(), balance, findings);
        let known = member.r#use.as_ref().and_then(|r#use| {
            if found
                .iter()
                .any(|(earlier, ..)| earlier.as_str() == r#use.as_str())
            {
                let message = format!("`{}` is a member of the group twice", clip(r#use));
                let help = "a member that is to serve more often has a `weight`";
                findings.error(r#use.place, message).with_help(help);
                return None;
            }
            Some((r#use, routes.member(r#use, findings)?))
        });
        match known {
            Some((r#use, routes)) => found.push((r#use, routes, weight)),
            None => is_whole = false,
        }
    }
    if !is_whole {
        return None;
    }
    // A group of one that fails at once is how a single upstream is given up for a while.
    if let ([(only, ..)], AllDown::TryFirst) = (&*found, all_down) {
        let message = format!("the group `{}` has one member", clip(name));
        let help = format!("`via: {}` does the same", only.as_str());
        findings.warn(name.place, message).with_help(help);
    }
    let group = |of: fn(ByScheme) -> RouteId| {
        let mut members: Vec<Member> = Vec::new();
        for (_, routes, weight) in &found {
            let route = of(*routes);
            // An upstream of the environment that is not there is `direct`, which may be a member already.
            if members.iter().all(|member| member.route != route) {
                let weight = *weight;
                members.push(Member { route, weight });
            }
        }
        Group {
            members,
            balance,
            all_down,
        }
    };
    Some((group(|routes| routes.http), group(|routes| routes.connect)))
}

fn weight(raw: Option<&At<Count>>, balance: Balance, findings: &mut Findings<'_>) -> u32 {
    let Some(raw) = raw else { return 1 };
    match u32::try_from(raw.0) {
        Ok(weight @ 1..=1000) => {
            if !balance.weighs() {
                let message = format!("`balance: {}` knows no weights", balance.as_str());
                let help = "`round_robin`, `least_conn`, `hash_host` and `hash_client` do";
                findings.warn(raw.place, message).with_help(help);
            }
            weight
        }
        Ok(0) => {
            let help = "take the member out, or give it a weight of 1 to 1000";
            findings
                .error(raw.place, "a member of weight 0 never serves")
                .with_help(help);
            1
        }
        _ => {
            let message = format!("{} is no weight", raw.0);
            findings.error(raw.place, message).with_help("1 to 1000");
            1
        }
    }
}

/// What `health` says of an upstream.
pub(super) fn health(raw: Option<&At<raw::Health>>, findings: &mut Findings<'_>) -> Health {
    let mut health = Health::default();
    let Some(raw) = raw else { return health };
    if let Some(fails) = &raw.max_fails
        && let Some(number) = number(fails, 1000, "failures that open a circuit", findings)
    {
        health.max_fails = number;
    }
    if let Some(wait) = &raw.fail_timeout {
        health.fail_timeout = wait.0;
        if wait.0 > LONGEST_FAIL_TIMEOUT {
            let message = "an upstream is passed over for an hour at most";
            findings
                .error(wait.place, message)
                .with_help("write `1h` or less");
        }
    }
    health.probe = raw
        .probe
        .as_ref()
        .and_then(|probe| self::probe(probe, findings));
    health
}

fn probe(raw: &raw::Probe, findings: &mut Findings<'_>) -> Option<Probe> {
    let connect = raw
        .connect
        .as_ref()
        .map(|connect| match Target::from_authority(connect) {
            Ok(target) => Some(target),
            Err(error) => {
                let message = format!("`{}` is no target: {error}", clip(connect));
                findings
                    .error(connect.place, message)
                    .with_help("write `host:port`");
                None
            }
        });
    let rise = match &raw.rise {
        None => Some(RISE),
        Some(rise) => number(rise, 100, "probes that close a circuit", findings),
    };
    let every = raw.every.as_ref()?;
    if !PROBES.contains(&every.0) {
        findings
            .error(every.place, "probes are 1s to 1h apart")
            .with_help("30s is often enough");
    }
    let timeout = match &raw.timeout {
        Some(timeout) if timeout.0 > every.0 => {
            within_every(timeout.place, findings);
            return None;
        }
        Some(timeout) => timeout.0,
        None => PROBE_TIMEOUT.min(every.0),
    };
    Some(Probe {
        connect: match connect {
            None => None,
            Some(target) => Some(target?),
        },
        every: every.0,
        timeout,
        rise: rise?,
    })
}

fn within_every(place: Place, findings: &mut Findings<'_>) {
    findings
        .error(place, "a probe takes no longer than from one to the next")
        .with_help("write a `timeout` of `every` or less");
}

fn number(raw: &At<Count>, most: u32, what: &str, findings: &mut Findings<'_>) -> Option<u32> {
    let number = u32::try_from(raw.0).ok();
    let number = number.filter(|number| (1..=most).contains(number));
    if number.is_none() {
        let message = format!("{} is no number of {what}", raw.0);
        findings
            .error(raw.place, message)
            .with_help(format!("1 to {most}"));
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Loaded, Options, Report, Source, load};
    use crate::policy::RouteSpec;

    fn try_load(policy: &str, environment: &Environment) -> Result<Loaded, Report> {
        let source = Source::Text {
            name: "p.yaml".to_owned(),
            text: policy.to_owned(),
        };
        load(
            &source,
            environment,
            &Options::check(jiff::Timestamp::UNIX_EPOCH),
        )
    }

    /// A policy of two upstreams, with these lines more.
    fn with(more: &str) -> String {
        format!(
            "version: 1\nrules: []\ndefault: {{direct: true}}\n\
             upstreams: {{m1: {{url: 'http://a:1'}}, m2: {{url: 'http://b:1'}}}}\n{more}\n"
        )
    }

    /// What is wrong with a policy and what is odd, one line each: `line:column message`.
    fn told(policy: &str) -> Vec<String> {
        let diagnostics = match try_load(policy, &Environment::default()) {
            Ok(loaded) => loaded.warnings,
            Err(report) => report.diagnostics,
        };
        let line = |d: &crate::config::Diagnostic| {
            let place = d.place.unwrap();
            let word = if d.is_error() { "" } else { "warning: " };
            let help = d.help.as_deref().map(|help| format!(" ({help})"));
            let (line, column) = (place.line, place.column);
            format!(
                "{line}:{column} {word}{}{}",
                d.message,
                help.unwrap_or_default()
            )
        };
        diagnostics.iter().map(line).collect()
    }

    #[test]
    fn every_mistake_in_a_group_is_told_with_its_place() {
        for (group, expected) in [
            ("{members: [m1, m2]}", ""),
            (
                "{members: [m1, direct], balance: hash_host, all_down: fail}",
                "",
            ),
            (
                "{members: [{use: m1, weight: 3}, m2], balance: least_conn, all_down: try_first}",
                "",
            ),
            ("{members: []}", "5:23 a group needs a member"),
            (
                "{}",
                "5:13 a group needs `members` (write `members: [m1, m2]`)",
            ),
            (
                "{members: [m1, m3]}",
                "5:28 there is no upstream `m3` (did you mean `m1`?)",
            ),
            (
                "{members: [m1, m1]}",
                "5:28 `m1` is a member of the group twice (a member that is to serve more often has a `weight`)",
            ),
            (
                "{members: [m1, g]}",
                "5:28 `g` is a group: a member is none (write its upstreams here)",
            ),
            (
                "{members: [m1, {weight: 2}], balance: round_robin}",
                "5:29 a member needs `use` (write `use: m1`)",
            ),
            (
                "{members: [m2, {use: m1, weight: 0}], balance: round_robin}",
                "5:46 a member of weight 0 never serves (take the member out, or give it a weight of 1 to 1000)",
            ),
            (
                "{members: [m2, {use: m1, weight: 1001}], balance: round_robin}",
                "5:46 1001 is no weight (1 to 1000)",
            ),
            (
                "{members: [m2, {use: m1, weight: 2}]}",
                "5:46 warning: `balance: first` knows no weights (`round_robin`, `least_conn`, `hash_host` and `hash_client` do)",
            ),
            (
                "{members: [m1]}",
                "5:10 warning: the group `g` has one member (`via: m1` does the same)",
            ),
            ("{members: [m1], all_down: fail}", ""),
            (
                "{members: [m1, m2], balance: leastconn}",
                "5:42 `leastconn` is not one of first, round_robin, least_conn, hash_host, hash_client, fastest",
            ),
            (
                "{members: [m1, m2], balanc: first}",
                "5:33 `balanc` is no key of a group",
            ),
        ] {
            let told = told(&with(&format!("groups: {{g: {group}}}"))).join("\n");
            assert!(
                told == expected
                    || !expected.is_empty() && told.starts_with(expected) && !told.contains('\n'),
                "{group}: {told}"
            );
        }
    }

    #[test]
    fn a_name_is_one_thing_only() {
        let groups = "groups: {m1: {members: [m1, m2]}}";
        assert_eq!(told(&with(groups)), ["5:10 `m1` is an upstream already"]);
        let chain = "groups: {g: {members: [m1, m2]}}\nchains: {g: m1|m2}";
        assert_eq!(
            told(&with(chain)),
            ["6:10 `g` is an upstream or a group already"]
        );
        let member = "groups: {g: {members: [m1, c]}}\nchains: {c: m1|m2}";
        assert_eq!(
            told(&with(member)),
            ["5:28 `c` is a chain: a member is none (write its upstreams here)"]
        );
    }

    #[test]
    fn a_group_is_a_hop_of_a_chain_and_what_via_names() {
        let policy = with("groups: {g: {members: [m1, m2]}}\nchains: {c: g|direct}")
            .replace(
                "rules: []",
                "rules: [{name: r, match: {host: a.example}, via: g}]",
            )
            .replace("{direct: true}", "{via: 'g,m1|direct'}");
        assert_eq!(told(&policy), <[String; 0]>::default());
        let policy = try_load(&policy, &Environment::default()).unwrap().policy;
        let names: Vec<_> = policy.routes.iter().map(|route| &*route.name).collect();
        assert_eq!(names, ["direct", "m1", "m2", "g", "c", "g,m1|direct"]);
    }

    #[test]
    fn a_member_of_the_environment_may_differ_by_the_kind_of_request() {
        let policy = "version: 1\nrules: []\ndefault: {via: g}\n\
                      upstreams: {env: {url: env}, m1: {url: 'http://a:1'}}\n\
                      groups: {g: {members: [env, m1, direct]}}\n";
        let environment = Environment::from_iter([("HTTPS_PROXY", "http://e:1")]);
        let policy = try_load(policy, &environment).unwrap().policy;
        let members: Vec<Vec<&str>> = policy
            .routes
            .iter()
            .filter_map(|route| match &route.spec {
                RouteSpec::Group(group) => Some(group),
                RouteSpec::Direct
                | RouteSpec::Chain(_)
                | RouteSpec::Pac(_)
                | RouteSpec::Upstream(_)
                | RouteSpec::Faulty { .. } => None,
            })
            .map(|group| {
                let names = group.members.iter().map(|m| &*policy.route(m.route).name);
                names.collect()
            })
            .collect();
        assert_eq!(members, [vec!["direct", "m1"], vec!["env", "m1", "direct"]]);
    }

    #[test]
    fn every_mistake_in_health_is_told_with_its_place() {
        for (health, expected) in [
            ("{}", ""),
            ("{max_fails: 1, fail_timeout: 1h}", ""),
            ("{probe: {every: 30s}}", ""),
            (
                "{probe: {connect: 'p.example:443', every: 30s, timeout: 30s, rise: 100}}",
                "",
            ),
            (
                "{max_fails: 0}",
                "6:30 0 is no number of failures that open a circuit (1 to 1000)",
            ),
            (
                "{fail_timeout: 2h}",
                "6:33 an upstream is passed over for an hour at most (write `1h` or less)",
            ),
            (
                "{probe: {}}",
                "6:26 `probe` needs `every` (write `every: 30s`)",
            ),
            (
                "{probe: {every: 10ms}}",
                "6:34 probes are 1s to 1h apart (30s is often enough)",
            ),
            (
                "{probe: {every: 5s, timeout: 6s}}",
                "6:47 a probe takes no longer than from one to the next (write a `timeout` of `every` or less)",
            ),
            (
                "{probe: {every: 5s, rise: 0}}",
                "6:44 0 is no number of probes that close a circuit (1 to 100)",
            ),
            (
                "{probe: {every: 5s, connect: p.example}}",
                "6:47 `p.example` is no target: ",
            ),
            (
                "{max_fail: 3}",
                "6:19 `max_fail` is no key of `health` (did you mean `max_fails`?)",
            ),
        ] {
            let policy = format!(
                "version: 1\nrules: []\ndefault: {{direct: true}}\nupstreams:\n  u: {{url: 'http://a:1',\n         health: {health}}}\n"
            );
            let told = told(&policy).join("\n");
            assert!(
                told == expected
                    || !expected.is_empty() && told.starts_with(expected) && !told.contains('\n'),
                "{health}: {told}"
            );
        }
    }

    #[test]
    fn health_has_defaults() {
        let loaded = try_load(&with(""), &Environment::default()).unwrap();
        let RouteSpec::Upstream(upstream) = &loaded.policy.routes[1].spec else {
            panic!("no upstream");
        };
        let health = &upstream.health;
        assert_eq!(*health, Health::default());
        assert_eq!(
            (health.max_fails, health.fail_timeout),
            (3, Duration::from_secs(30))
        );
    }
}
