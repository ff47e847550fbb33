//! A walk told: which rules were passed over and why, and what was decided by which rule.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;

use super::matcher::{Hosts, Matcher, Resolve, Truth, Unknown};
use super::no_proxy::{Bypass, NoProxy};
use super::{
    Action, Decision, Denial, Lookup, Mode, Needs, Note, Policy, Preflight, Query, RouteSpec, Rule,
    Step, Verdict, Walk,
};
use crate::target::Target;
use crate::timeouts::Timeouts;

/// The name and version of the explanation's form.
pub const SCHEMA: &str = "routecause.explain/1";

/// What a policy decides for one request, and why.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(title = "routecause.explain/1")]
pub struct Explanation {
    /// Name and version of this form.
    pub schema: &'static str,
    /// The policy's hash.
    pub policy: String,
    /// What was asked.
    pub request: Request,
    /// What comes of it.
    pub decision: Outcome,
    /// The rules in front of the one that decided, in order, and why none of them did.
    pub passed: Vec<Passed>,
    /// How long each wait may take.
    pub timeouts: Waits,
    /// What a `NO_PROXY` list alone says, where one was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_proxy: Option<NoProxyVerdict>,
}

/// A request in its canonical form.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Request {
    /// `connect` or `http`.
    pub scheme: &'static str,
    /// The method.
    pub method: String,
    /// Host and port.
    pub target: String,
    /// The client's address.
    pub client: IpAddr,
    /// What the target's name resolves to, where a rule asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<IpAddr>>,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Outcome {
    /// What happens.
    pub action: Does,
    /// The rule's name, `default`, or the guard's name.
    pub rule: String,
    /// Where the rule stands, as `file:line`; a guard stands nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The route: `direct`, or the upstream's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Host and port of the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Why it is refused, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The status of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The refusal's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What is tried before the tunnel is granted: `tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preflight: Option<&'static str>,
    /// The rule or guard in report mode that would have decided otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Does {
    /// It goes straight to the target.
    Direct,
    /// It goes through an upstream.
    Via,
    /// It is refused.
    Block,
}

/// A rule that did not decide.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Passed {
    /// Its name.
    pub rule: String,
    /// Where it stands, as `file:line`.
    pub source: String,
    /// Why it did not decide.
    pub why: String,
}

/// How long each wait may take, as written in a policy.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the names and words of `timeouts`")]
pub struct Waits {
    pub dns: String,
    pub connect: String,
    pub connect_address: String,
    pub connect_stagger: String,
    pub proxy_reply: String,
    pub hello: String,
    pub first_byte: String,
    pub body_idle: String,
    pub idle: String,
    pub head: String,
    pub keepalive: String,
}

/// What a `NO_PROXY` list alone says of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NoProxyVerdict {
    /// Whether the target is reached without a proxy.
    pub bypass: bool,
    /// The entry that says so.
    pub entry: Option<String>,
    /// Its kind: `everything`, `address`, `cidr`, `domain`; `loopback` where no entry is needed.
    pub reason: Option<String>,
}

/// Walks through a policy and tells it.
///
/// # Errors
/// The fact that the walk asks for: put it into the query and explain again.
pub fn explain(policy: &Policy, query: &Query<'_>) -> Result<Explanation, Needs> {
    let mut passed = Vec::new();
    let mut tell = |rule: &Rule, note: Note| {
        if let Some(why) = why_not(rule, note, query) {
            passed.push(Passed {
                rule: rule.name.to_string(),
                source: rule.source.to_string(),
                why,
            });
        }
    };
    let decision = match policy.step_noting(&mut Walk::default(), query, &mut tell) {
        Step::Decided(decision) => decision,
        Step::Needs(needs) => return Err(needs),
    };
    Ok(Explanation {
        schema: SCHEMA,
        policy: policy.hash.to_string(),
        request: Request {
            scheme: query.scheme.as_str(),
            method: query.method.to_string(),
            target: query.target.to_string(),
            client: query.client.ip(),
            addresses: match query.addresses {
                Some(Lookup::Found(addresses)) => Some(addresses.to_vec()),
                Some(Lookup::Failed) | None => None,
            },
        },
        decision: Outcome::of(policy, &decision, query),
        passed,
        timeouts: Waits::of(decision.timeouts),
        no_proxy: None,
    })
}

impl Outcome {
    /// Puts a decision into words.
    pub fn of(policy: &Policy, decision: &Decision<'_>, query: &Query<'_>) -> Self {
        let mut this = Self {
            action: Does::Block,
            rule: decision
                .rule
                .map(|rule| rule.name.to_string())
                .unwrap_or_default(),
            source: decision.rule.map(|rule| rule.source.to_string()),
            route: None,
            upstream: None,
            reason: None,
            status: None,
            code: None,
            preflight: None,
            would: decision.would.map(|would| would.name().to_owned()),
        };
        match &decision.verdict {
            Verdict::Route(id) => {
                let route = policy.route(*id);
                this.route = Some(route.name.to_string());
                this.preflight = decision.preflight.map(Preflight::as_str);
                this.action = match &route.spec {
                    RouteSpec::Direct => Does::Direct,
                    RouteSpec::Upstream { proxy, .. } => {
                        this.upstream = Some(proxy.to_string());
                        Does::Via
                    }
                };
            }
            Verdict::Deny(denial) => {
                this.status = Some(403);
                match denial {
                    Denial::Default(block) | Denial::Rule { block, .. } => {
                        this.status = block.status.or(this.status);
                        this.reason = block.reason.as_deref().map(str::to_owned);
                        this.code = block.code.as_deref().map(str::to_owned);
                    }
                    Denial::Guard(guard) => guard.name().clone_into(&mut this.rule),
                    Denial::Port => {
                        this.reason = Some(format!(
                            "port {} is open only to a rule whose match.port names it",
                            query.target.port
                        ));
                    }
                }
            }
        }
        this
    }
}

impl NoProxyVerdict {
    /// What a list says of a target.
    pub fn of(list: &NoProxy, target: &Target) -> Self {
        let (entry, reason) = match list.judge(target) {
            None => (None, None),
            Some(Bypass::Loopback) => (None, Some("loopback".to_owned())),
            Some(Bypass::Entry { entry, reason }) => {
                (Some(entry.to_owned()), Some(reason.to_string()))
            }
        };
        Self {
            bypass: reason.is_some(),
            entry,
            reason,
        }
    }
}

impl Waits {
    fn of(timeouts: &Timeouts) -> Self {
        Self {
            dns: spell(timeouts.dns),
            connect: spell(timeouts.connect),
            connect_address: spell(timeouts.connect_address),
            connect_stagger: spell(timeouts.connect_stagger),
            proxy_reply: spell(timeouts.proxy_reply),
            hello: spell(timeouts.hello),
            first_byte: spell(timeouts.first_byte),
            body_idle: spell(timeouts.body_idle),
            idle: spell(timeouts.idle),
            head: spell(timeouts.head),
            keepalive: spell(timeouts.keepalive),
        }
    }
}

/// A duration as a policy writes it: `1m30s`.
fn spell(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= length {
            let _ = write!(text, "{}{unit}", rest / length);
            rest %= length;
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

impl fmt::Display for Explanation {
    /// For people: the decision first, then the rules on the way to it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request {
            method,
            target,
            client,
            ..
        } = &self.request;
        writeln!(f, "{method} {target} from {client}")?;
        let decision = &self.decision;
        let does = match (&decision.upstream, &decision.route) {
            (Some(upstream), Some(route)) => format!("goes through upstream {route} ({upstream})"),
            (None, Some(_)) => "goes direct".to_owned(),
            (_, None) => format!("is refused with {}", decision.status.unwrap_or(403)),
        };
        write!(f, "  {does}, by {}", decision.rule)?;
        if let Some(source) = &decision.source {
            write!(f, " ({source})")?;
        }
        if let Some(reason) = &decision.reason {
            write!(f, ": {reason}")?;
        }
        writeln!(f)?;
        if let Some(preflight) = decision.preflight {
            writeln!(
                f,
                "  after a preflight: {preflight}, within {}",
                self.timeouts.hello
            )?;
        }
        if let Some(would) = &decision.would {
            writeln!(f, "  in report mode: {would} would have decided otherwise")?;
        }
        if let Some(addresses) = &self.request.addresses {
            let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            writeln!(f, "  looked up: {}", addresses.join(", "))?;
        }
        if let Some(list) = &self.no_proxy {
            let verdict = match (&list.entry, &list.reason) {
                (Some(entry), Some(reason)) => format!("bypass, by {entry:?} ({reason})"),
                (None, Some(reason)) => format!("bypass ({reason})"),
                (_, None) => "no entry, so through a proxy".to_owned(),
            };
            writeln!(f, "  NO_PROXY: {verdict}")?;
        }
        if !self.passed.is_empty() {
            writeln!(f, "rules before it:")?;
        }
        let width = self.passed.iter().map(|p| p.rule.chars().count()).max();
        for passed in &self.passed {
            writeln!(
                f,
                "  {:width$}  {}  ({})",
                passed.rule,
                passed.why,
                passed.source,
                width = width.unwrap_or(0).min(30)
            )?;
        }
        Ok(())
    }
}

/// Why a rule did not decide; `None` where it did.
fn why_not(rule: &Rule, note: Note, query: &Query<'_>) -> Option<String> {
    Some(match note {
        Note::Decided => return None,
        Note::Passed => describe(&rule.matcher, query),
        Note::Unknown => {
            let truth = rule.matcher.judge(query);
            if truth == Truth::Unknown(Unknown::LookupFailed) {
                "the name could not be looked up".to_owned()
            } else {
                "a tunnel does not show what it asks for".to_owned()
            }
        }
        Note::Off => "it is off".to_owned(),
        Note::Expired => "it has expired".to_owned(),
        Note::Would => {
            let does = match &rule.action {
                Action::Block(_) => "it would block",
                Action::Route(_) => "it would decide",
                Action::Continue => "it would set its options",
            };
            let by = if rule.mode == Mode::Report {
                ""
            } else {
                " (mode: report)"
            };
            format!("{does}, and is in report mode{by}")
        }
        Note::Continued => "it matched, set its options and went on".to_owned(),
    })
}

/// What of a matcher made it what it is for a request, as in `port 443 is not 80`.
fn describe(matcher: &Matcher, query: &Query<'_>) -> String {
    let truth = matcher.judge(query);
    let (is, has) = match truth {
        Truth::True => ("is", "has"),
        Truth::False => ("is not", "has no"),
        Truth::Unknown(_) => ("may be", "may have"),
    };
    let target = query.target;
    match matcher {
        // What decided it: the first part that is like the whole.
        Matcher::All(parts) | Matcher::Any(parts) => {
            let alike: Vec<_> = parts
                .iter()
                .filter(|part| part.judge(query) == truth)
                .collect();
            let one = matches!(matcher, Matcher::All(_)) == (truth == Truth::False);
            match (alike.first(), one) {
                (None, _) => "it speaks of everything".to_owned(),
                (Some(first), true) => describe(first, query),
                (Some(_), false) => {
                    let all: Vec<_> = alike.iter().map(|part| describe(part, query)).collect();
                    clip(all.join(" and "))
                }
            }
        }
        Matcher::Not(inner) => describe(inner, query),
        Matcher::Host(hosts) => format!("host {} {is} in {}", target.host, names(hosts)),
        Matcher::HostRegex(regex) => {
            let regex = regex.as_str();
            let written = regex
                .strip_prefix("^(?:")
                .and_then(|r| r.strip_suffix(")$"));
            format!(
                "host {} {is} matched by {}",
                target.host,
                written.unwrap_or(regex)
            )
        }
        Matcher::PlainHost(_) => match target.host.name() {
            Some(name) if name.contains('.') => format!("host {name} has a dot"),
            Some(name) => format!("host {name} has no dot"),
            None => format!("host {} is an address", target.host),
        },
        Matcher::Ip(nets, resolve) => match (target.host.ip(), resolve, query.addresses) {
            (Some(ip), ..) => format!("address {ip} {is} in {}", list(nets)),
            (None, Resolve::Never, _) => format!("host {} is a name, not an address", target.host),
            (None, _, Some(Lookup::Found(ips))) => {
                let which = if *resolve == Resolve::Any {
                    "some"
                } else {
                    "every"
                };
                let ips: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
                clip(format!(
                    "{which} address of {} ({}) {is} in {}",
                    target.host,
                    ips.join(", "),
                    list(nets)
                ))
            }
            (None, _, _) => format!("{} was not looked up", target.host),
        },
        Matcher::Sets(sets) => {
            let sets: Vec<_> = sets.iter().map(|set| &*set.name).collect();
            clip(format!(
                "host {} {is} in set {}",
                target.host,
                sets.join(" or ")
            ))
        }
        Matcher::NoProxy(no_proxy) => match no_proxy.judge(target) {
            Some(Bypass::Entry { entry, .. }) => {
                format!("NO_PROXY entry {entry:?} exempts {}", target.host)
            }
            Some(Bypass::Loopback) => format!("{} is loopback", target.host),
            None => format!("no NO_PROXY entry exempts {target}"),
        },
        Matcher::Port(ports) => {
            let ports: Vec<_> = ports
                .ranges()
                .iter()
                .map(|range| match (range.start(), range.end()) {
                    (from, to) if from == to => from.to_string(),
                    (from, to) => format!("{from}-{to}"),
                })
                .collect();
            clip(format!("port {} {is} {}", target.port, ports.join(" or ")))
        }
        Matcher::Scheme(scheme) => {
            format!("scheme {} {is} {}", query.scheme.as_str(), scheme.as_str())
        }
        Matcher::Method(methods) => {
            let methods: Vec<_> = methods.iter().map(http::Method::as_str).collect();
            clip(format!(
                "method {} {is} {}",
                query.method,
                methods.join(" or ")
            ))
        }
        Matcher::Path(_) => match query.path {
            Some(path) => clip(format!("path {path} {is} among its paths")),
            None => "a tunnel does not show the path".to_owned(),
        },
        Matcher::Header(name, _) => match query.headers {
            Some(_) => format!("the request {has} such a header {name}"),
            None => format!("a tunnel does not show the header {name}"),
        },
        Matcher::Client(nets) => format!("client {} {is} in {}", query.client.ip(), list(nets)),
    }
}

fn names(hosts: &Hosts) -> String {
    let written = hosts
        .written()
        .iter()
        .map(|pattern| match pattern.strip_prefix("**.") {
            Some(domain) => format!("domain {domain}"),
            None => pattern.clone(),
        });
    several(written)
}

fn list(nets: &[IpNet]) -> String {
    several(nets.iter().map(|net| {
        if net.prefix_len() == net.max_prefix_len() {
            return net.addr().to_string();
        }
        net.to_string()
    }))
}

/// The first few of many.
fn several(items: impl ExactSizeIterator<Item = String>) -> String {
    const FEW: usize = 4;
    let more = items.len().saturating_sub(FEW);
    let shown: Vec<_> = items.take(FEW).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn clip(text: String) -> String {
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}
