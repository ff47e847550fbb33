//! A walk told: which rules were passed over and why, and what was decided by which rule.

mod describe;
mod hops;
mod print;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::dns::Why;
use super::flight::Flight;
use super::guard::Guard;
use super::matcher::{Truth, Unknown};
use super::no_proxy::{Bypass, NoProxy};
use super::{
    Decision, Denial, Lookup, Needs, Note, Policy, Preflight, Query, RouteSpec, Rule, Step,
    Verdict, Walk,
};
use crate::target::Target;
use crate::timeouts::Timeouts;
use describe::why_not;
pub use hops::{Hop, Retrying};

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
    /// Who is asked for the target's name, where it is looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Asked>,
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
    /// The user name that it gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its roles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// What the target's name resolves to, where a rule asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<IpAddr>>,
    /// What comes first in the tunnel, where a rule or a guard asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_flight: Option<FirstFlight>,
}

/// What comes first in a tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct FirstFlight {
    /// `tls`, `http`, `ssh` or `other`.
    pub proto: &'static str,
    /// The name in SNI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// The protocols of ALPN.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
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
    /// The hops of the route, where it is a chain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<Hop>,
    /// From when on a tunnel keeps its hop, where it has more than one: `connect` or `first_byte`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<&'static str>,
    /// What is tried again, where there is more than one hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retrying>,
    /// Why it is refused, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The status of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The refusal's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// `block` where the rule blocks because the name could not be looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_dns_error: Option<&'static str>,
    /// What is tried before the tunnel is granted: `tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preflight: Option<&'static str>,
    /// The interference that the policy injects on that way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Injected>,
    /// The rule or guard in report mode that would have decided otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would: Option<String>,
}

/// Interference that a policy injects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Injected {
    /// The fault's name.
    pub name: String,
    /// The hop that it strikes; `accept` comes before any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hop: Option<String>,
    /// What it does, as in `reset at client_hello`.
    pub does: String,
}

/// Who is asked for a name.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Asked {
    /// The name server's name in the policy; `system` for those of resolv.conf, `pin` for addresses of `dns.hosts`.
    pub server: String,
    /// How it is asked: `udp`, `tcp`, `tls`, `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<&'static str>,
    /// The route that the connection to it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Why it: `rule`, the entry of its `domains`, or `default`.
    pub by: String,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<String>,
    pub sniff: String,
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
        // A default that only would block decides all the same: there is nothing behind it.
        let is_default = std::ptr::eq(rule, &raw const policy.default);
        if let (false, Some(why)) = (is_default, why_not(rule, note, query)) {
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
            user: query.claim.user.as_deref().map(str::to_owned),
            label: query.claim.label.as_deref().map(str::to_owned),
            roles: policy.roles_of(query).map(ToString::to_string).collect(),
            addresses: match query.addresses {
                Some(Lookup::Found(addresses)) => Some(addresses.to_vec()),
                Some(Lookup::Among(_) | Lookup::Failed) | None => None,
            },
            first_flight: query.first_flight.and_then(FirstFlight::of),
        },
        decision: Outcome::of(policy, &decision, query),
        passed,
        dns: Asked::of(policy, &decision, query),
        timeouts: Waits::of(decision.timeouts),
        no_proxy: None,
    })
}

impl FirstFlight {
    fn of(flight: &Flight) -> Option<Self> {
        let alpn = flight.hello().map(|hello| hello.alpn.iter());
        Some(Self {
            proto: flight.proto()?.as_str(),
            sni: flight.server_name().map(ToString::to_string),
            alpn: alpn
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect(),
        })
    }
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
            hops: Vec::new(),
            commit: None,
            retry: None,
            reason: None,
            status: None,
            code: None,
            on_dns_error: None,
            preflight: None,
            faults: Vec::new(),
            would: decision.would.map(|would| would.name().to_owned()),
        };
        match &decision.verdict {
            Verdict::Route(id) => {
                let route = policy.route(*id);
                this.route = Some(route.name.to_string());
                this.preflight = decision.preflight.map(Preflight::as_str);
                let faults = policy.faults_of(*id).into_iter();
                let injected = faults.map(|(hop, fault)| Injected {
                    name: fault.name.to_string(),
                    hop: hop.map(str::to_owned),
                    does: fault.to_string(),
                });
                this.faults = injected.collect();
                this.action = match &policy.without_faults(*id).spec {
                    RouteSpec::Direct => Does::Direct,
                    RouteSpec::Chain(chain) => {
                        this.hops = hops::hops(policy, chain);
                        this.commit = hops::commit(decision, query.scheme, chain);
                        this.retry = hops::retry(decision, query.scheme, chain);
                        Does::Via
                    }
                    RouteSpec::Group(_) | RouteSpec::Pac(_) | RouteSpec::Faulty { .. } => Does::Via,
                    RouteSpec::Upstream(upstream) => {
                        this.upstream = Some(upstream.proxy.to_string());
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
                        let unresolved = Truth::Unknown(Unknown::LookupFailed);
                        let rule = decision.rule;
                        let rule = rule.filter(|rule| rule.matcher.judge(query) == unresolved);
                        this.on_dns_error = rule.map(|rule| rule.on_dns_error.as_str());
                    }
                    Denial::Guard(guard) => {
                        guard.name().clone_into(&mut this.rule);
                        if *guard == Guard::Own {
                            // A loop, which no policy forbids.
                            this.status = Some(508);
                        }
                        let ports = policy.guards.connect_ports.as_ref();
                        this.reason =
                            ports
                                .filter(|_| *guard == Guard::ConnectPorts)
                                .map(|ports| {
                                    format!(
                                        "CONNECT may name port {ports}, not {}",
                                        query.target.port
                                    )
                                });
                    }
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

impl Asked {
    /// Nothing where the name is not looked up, or where it was asked for by a rule before.
    fn of(policy: &Policy, decision: &Decision<'_>, query: &Query<'_>) -> Option<Self> {
        let name = query.target.host.name()?;
        let Verdict::Route(route) = decision.verdict else {
            return None;
        };
        if !policy.may_dial_target(route) {
            return None;
        }
        if policy.pinned(name).is_some() {
            return Some(Self {
                server: "pin".to_owned(),
                transport: None,
                via: None,
                by: "dns.hosts".to_owned(),
            });
        }
        let (id, why) = policy.dns.choose(name, decision.dns);
        let ask = policy.dns.ask(id);
        let server = ask.server.as_ref();
        Some(Self {
            server: server.map_or("system", |server| &server.name).to_owned(),
            transport: server.map(|server| server.transport.as_str()),
            via: ask.via.map(|via| policy.route(via).name.to_string()),
            by: match why {
                Why::Rule => "rule".to_owned(),
                Why::Domain(domain) => domain.to_owned(),
                Why::Default => "default".to_owned(),
            },
        })
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
            max_duration: timeouts.max_duration.map(spell),
            sniff: spell(timeouts.sniff),
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
