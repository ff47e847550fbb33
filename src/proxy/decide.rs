//! The walk of one request through the policy, with the lookups that it asks for on its way.

use std::net::IpAddr;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, request};

use crate::cause::Phase;
use crate::client::Claim;
use crate::exchange::Exchange;
use crate::failure::{Denied, DeniedBy, Failure};
use crate::net::here::is_here;
use crate::net::resolve::ResolveError;
use crate::policy::flight::{Flight, Sniff};
use crate::policy::guard::reached;
use crate::policy::{
    self, By, Decision, Denial, Lookup, Needs, Policy, Preflight, Query, RouteId, Scheme, Step,
    Walk,
};
use crate::route::{Plan, Purpose};
use crate::snapshot::Snapshot;
use crate::target::Target;

/// What is asked, for the walk.
pub(super) struct Ask<'a> {
    pub(super) target: &'a Target,
    pub(super) method: &'a Method,
    pub(super) scheme: Scheme,
    /// The path and query of a plain request.
    pub(super) path: Option<&'a str>,
    /// The fields of a plain request.
    pub(super) headers: Option<&'a HeaderMap>,
    /// Whom it says it comes from.
    pub(super) claim: &'a Claim,
    /// What a tunnel's client said first, once the walk has asked for it.
    pub(super) flight: Option<&'a Flight>,
}

impl<'a> Ask<'a> {
    /// A plain request.
    pub(super) fn plain(parts: &'a request::Parts, target: &'a Target, claim: &'a Claim) -> Self {
        Self {
            target,
            method: &parts.method,
            scheme: Scheme::Http,
            path: parts.uri.path_and_query().map(PathAndQuery::as_str),
            headers: Some(&parts.headers),
            claim,
            flight: None,
        }
    }
}

/// What the walk says of a request that may go out.
#[derive(Clone, Copy)]
pub(super) struct Decided {
    pub(super) route: RouteId,
    pub(super) preflight: Option<Preflight>,
}

/// A walk as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Walked {
    walk: Walk,
    found: Option<Result<Vec<IpAddr>, ResolveError>>,
}

/// What came of a walk.
pub(super) enum Verdict {
    /// The request may go out.
    Decided(Decided, Plan),
    /// A rule wants to see what the client says first.
    NeedsFlight(Walked),
}

/// Walks the policy, looking up what the walk asks for, and notes what it says. The plan has no Via yet.
pub(super) async fn decide(
    snapshot: &Snapshot,
    ask: Ask<'_>,
    walked: Walked,
    exchange: &mut Exchange,
    route: &mut Option<Arc<str>>,
) -> Result<Verdict, Failure> {
    let policy = &snapshot.policy;
    let presence = exchange.presence().clone();
    let mut asked = Query {
        client: &presence.client,
        claim: ask.claim,
        scheme: ask.scheme,
        method: ask.method,
        target: ask.target,
        path: ask.path,
        headers: ask.headers,
        is_here: None,
        addresses: None,
        first_flight: ask.flight,
        now: exchange.start(),
    };
    exchange.claims(ask.claim, policy.labels, policy.roles_of(&asked));
    let Walked {
        mut walk,
        mut found,
    } = walked;
    let decision = loop {
        let query = Query {
            addresses: found.as_ref().map(lookup_of),
            ..asked.clone()
        };
        match policy.step(&mut walk, &query) {
            Step::Decided(decision) => break decision,
            Step::Needs(Needs::Machine) => {
                asked.is_here = ask.target.host.ip().map(|ip| reached(ip).any(is_here));
            }
            Step::Needs(Needs::Addresses) => {
                let host = &ask.target.host;
                let names = snapshot.names.of_target(host, policy.asks(&walk));
                let lookup = names.lookup(host, policy.timeouts.dns, exchange.trail());
                found = Some(Box::pin(lookup).await);
                exchange.trail().enter(Phase::Policy);
            }
            Step::Needs(Needs::FirstFlight) => {
                return Ok(Verdict::NeedsFlight(Walked { walk, found }));
            }
        }
    };
    let is_unseen = ask.scheme == Scheme::Connect && ask.flight.is_none();
    let goes_out = matches!(decision.verdict, policy::Verdict::Route(_));
    if decision.sniff == Sniff::Always && is_unseen && goes_out {
        return Ok(Verdict::NeedsFlight(Walked { walk, found }));
    }
    let id = match decision.verdict {
        policy::Verdict::Route(id) => id,
        policy::Verdict::Deny(ref denial) => {
            exchange.decided(policy, &decision, None);
            return Err(denied(policy, &decision, denial, ask.target));
        }
    };
    let name = &policy.route(id).name;
    exchange.decided(policy, &decision, Some(name));
    *route = Some(name.clone());
    presence.limit_writes(decision.timeouts.body_idle);
    let plan = Plan {
        client: presence.client.clone(),
        target: ask.target.clone(),
        purpose: match ask.scheme {
            Scheme::Http => Purpose::Forward,
            Scheme::Connect => Purpose::Tunnel,
        },
        addresses: found,
        timeouts: decision.timeouts.clone(),
        deadline: None,
        passes_over: false,
        commit: decision.commit,
        retry: decision.retry,
        via: String::new(),
        dns: decision.dns,
        certificate: None,
    };
    let decided = Decided {
        route: id,
        preflight: decision.preflight,
    };
    Ok(Verdict::Decided(decided, plan))
}

fn lookup_of(found: &Result<Vec<IpAddr>, ResolveError>) -> Lookup<'_> {
    found
        .as_ref()
        .map_or(Lookup::Failed, |addresses| Lookup::Found(addresses))
}

/// The failure that a refusal is.
pub(super) fn denied(
    policy: &Policy,
    decision: &Decision<'_>,
    denial: &Denial<'_>,
    target: &Target,
) -> Failure {
    let (by, block) = match denial {
        Denial::Guard(guard) => return Failure::of_guard(*guard, target.to_string()),
        Denial::Default(block) => (DeniedBy::Default, Some(block)),
        Denial::Rule {
            block,
            by: By::Address,
        } => (DeniedBy::RuleIp, Some(block)),
        Denial::Rule { block, by: By::Sni } => (DeniedBy::RuleSni, Some(block)),
        Denial::Rule {
            block,
            by: By::Request,
        } => (DeniedBy::Rule, Some(block)),
        Denial::Port => (DeniedBy::NeverPort, None),
    };
    let rule = decision.rule.unwrap_or(&policy.default);
    Denied {
        by,
        target: target.to_string(),
        rule: rule.name.clone(),
        source: Some(rule.source.clone()),
        reason: block.and_then(|block| block.reason.clone()),
        status: block.and_then(|block| block.status),
        code: block.and_then(|block| block.code.clone()),
        close: block.map(|block| block.close).unwrap_or_default(),
    }
    .into()
}
