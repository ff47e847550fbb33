//! The walk through the guards and rules, from a query to a decision.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};
use jiff::Timestamp;

use super::chain::{Commit, Retry};
use super::dns::AskId;
use super::flight::{Flight, SniMismatch, Sniff};
use super::guard::Guard;
use super::matcher::{Truth, Unknown};
use super::ports::is_never_port;
use super::routes::{ByScheme, RouteId};
use super::{Action, Block, Mode, Policy, Preflight, Rule};
use crate::client::{Claim, Client};
use crate::target::Target;
use crate::timeouts::Timeouts;

/// What was asked, and what was found out about it so far.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// Who asks.
    pub client: &'a Client,
    /// Whom it says it comes from.
    pub claim: &'a Claim,
    /// How.
    pub scheme: Scheme,
    /// The method; CONNECT for a tunnel.
    pub method: &'a Method,
    /// For what.
    pub target: &'a Target,
    /// The path and query of a plain request; unknown in a tunnel.
    pub path: Option<&'a str>,
    /// The fields of a plain request; unknown in a tunnel.
    pub headers: Option<&'a HeaderMap>,
    /// Whether the target is an address of this machine, once [`Needs::Machine`] was asked for.
    pub is_here: Option<bool>,
    /// What a lookup of the target gave, once [`Needs::Addresses`] was asked for.
    pub addresses: Option<Lookup<'a>>,
    /// What the client sent first in its tunnel, once [`Needs::FirstFlight`] was asked for.
    pub first_flight: Option<&'a Flight>,
    /// The time, for rules that expire.
    pub now: Timestamp,
}

/// The two ways to ask a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A tunnel.
    Connect,
    /// A plain request by absolute URL.
    Http,
}

impl Scheme {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Http => "http",
        }
    }
}

/// The result of looking up the target's name.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// Its addresses.
    Found(&'a [IpAddr]),
    /// One of them. Which others there are is not known.
    Among(IpAddr),
    /// None could be had.
    Failed,
}

/// The next step of a walk.
#[derive(Debug)]
pub enum Step<'p> {
    /// The walk is over.
    Decided(Decision<'p>),
    /// A fact is missing: put it into the query and step again.
    Needs(Needs),
}

/// A fact that a walk asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Whether the target's address is one of this machine's. Asked for first.
    Machine,
    /// The addresses of the target's name.
    Addresses,
    /// What the client sends first in its tunnel. Asked for after the addresses, since it comes only behind a 200.
    FirstFlight,
}

/// What a policy says of a request.
#[derive(Debug)]
pub struct Decision<'p> {
    /// The rule that decided; absent where a guard did.
    pub rule: Option<&'p Rule>,
    /// What is to be done.
    pub verdict: Verdict<'p>,
    /// The first rule or guard in report mode that would have decided otherwise.
    pub would: Option<Would<'p>>,
    /// The waits.
    pub timeouts: &'p Arc<Timeouts>,
    /// What is tried before a tunnel is granted; nothing for a plain request.
    pub preflight: Option<Preflight>,
    /// Who is asked for the target's name, where a rule says so.
    pub dns: Option<AskId>,
    /// From when on a tunnel keeps its hop.
    pub commit: Commit,
    /// What may be sent again.
    pub retry: Retry,
    /// Whether the tunnel's first flight is to be read though nothing here asked for it.
    pub sniff: Sniff,
}

/// A decision's core.
#[derive(Debug)]
pub enum Verdict<'p> {
    /// Out by this route.
    Route(RouteId),
    /// Refused.
    Deny(Denial<'p>),
}

/// Why a request is refused.
#[derive(Debug)]
pub enum Denial<'p> {
    /// The default blocks.
    Default(&'p Block),
    /// A rule blocks.
    Rule {
        /// What the rule says.
        block: &'p Block,
        /// What of the request it rests on.
        by: By,
    },
    /// A guard refuses.
    Guard(Guard),
    /// The port is on the never-list and the rule does not name it.
    Port,
}

/// What of a request a rule that blocks rests on, in the order in which it is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// What was asked for, and by whom.
    Request,
    /// An address (`match.ip`).
    Address,
    /// The first flight (`match.sni`, `alpn`, `proto`).
    Sni,
}

/// What would have decided, were it not in report mode.
#[derive(Clone, Copy, Debug)]
pub enum Would<'p> {
    /// A rule.
    Rule(&'p Rule),
    /// A guard.
    Guard(Guard),
    /// The never-list of ports.
    Port,
}

impl Would<'_> {
    /// The name in records.
    pub fn name(&self) -> &str {
        match self {
            Self::Rule(rule) => &rule.name,
            Self::Guard(guard) => guard.name(),
            Self::Port => "never_ports",
        }
    }

    /// The code of its block.
    pub fn code(&self) -> Option<&Arc<str>> {
        match self {
            Self::Rule(Rule {
                action: Action::Block(block),
                ..
            }) => block.code.as_ref(),
            Self::Rule(_) | Self::Guard(_) | Self::Port => None,
        }
    }
}

/// What happened to one rule in a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It did not match.
    Passed,
    /// It could not be judged inside a tunnel, or without addresses or the first flight, and counts as not matching.
    Unknown,
    /// It is off.
    Off,
    /// It is over.
    Expired,
    /// It matched, and is in report mode.
    Would,
    /// It matched, set its options, and the walk went on.
    Continued,
    /// It decided.
    Decided,
}

/// How far a walk through the rules has come, from the guards to a decision. It borrows nothing, so that it can wait for a
/// fact as long as that takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// The rule to judge next; `None` before the guards were asked.
    pub(super) at: Option<usize>,
    would: Option<WouldAt>,
    /// The rule whose waits hold so far.
    timeouts: Option<usize>,
    /// What rules so far want tried.
    preflight: Option<Preflight>,
    /// Whom rules so far want asked.
    dns: Option<AskId>,
    commit: Option<Commit>,
    retry: Option<Retry>,
    /// What rules so far say of first flights.
    sniff: Option<Sniff>,
}

/// [`Would`] by place; behind the last rule stands the default.
#[derive(Clone, Copy, Debug)]
enum WouldAt {
    Rule(usize),
    Guard(Guard),
    Port,
}

impl Policy {
    /// Walks on until a decision, or until a fact is missing: put it into the query and step again. A walk belongs to one
    /// policy and one request.
    pub fn step<'p>(&'p self, walk: &mut Walk, query: &Query<'_>) -> Step<'p> {
        let note = &mut |_: &'p Rule, _| {};
        let from = walk.at.unwrap_or_default();
        match &self.index {
            Some(index) => {
                let candidates = index.candidates(&query.target.host, from);
                self.step_over(candidates, walk, query, note)
            }
            None => self.step_over(from..self.rules.len(), walk, query, note),
        }
    }

    /// The same step, telling what happened to each rule.
    pub fn step_noting<'p>(
        &'p self,
        walk: &mut Walk,
        query: &Query<'_>,
        note: &mut dyn FnMut(&'p Rule, Note),
    ) -> Step<'p> {
        let from = walk.at.unwrap_or_default();
        self.step_over(from..self.rules.len(), walk, query, note)
    }

    /// Who is asked for the addresses that a walk has come to need, where a rule says so: the one that needs them, or one
    /// that went on before it.
    pub fn asks(&self, walk: &Walk) -> Option<AskId> {
        let rule = self.rule(walk.at.unwrap_or_default());
        rule.dns.or(walk.dns)
    }

    /// The same step over those of the rules that are worth a look; all others do not hold.
    fn step_over<'p>(
        &'p self,
        places: impl Iterator<Item = usize>,
        walk: &mut Walk,
        query: &Query<'_>,
        note: &mut dyn FnMut(&'p Rule, Note),
    ) -> Step<'p> {
        if walk.at.is_none() {
            if query.is_here.is_none() && self.guards.asks_whether_here(query.target) {
                return Step::Needs(Needs::Machine);
            }
            let is_connect = query.scheme == Scheme::Connect;
            let is_here = query.is_here.unwrap_or_default();
            if let Some(guard) =
                self.guards
                    .object_to(query.target, is_connect, query.client, is_here)
            {
                if !self.report || guard.is_final() {
                    return self.decided(walk, None, Verdict::Deny(Denial::Guard(guard)));
                }
                walk.would(WouldAt::Guard(guard));
            }
        }
        for at in places {
            let Some(rule) = self.rules.get(at) else {
                break;
            };
            walk.at = Some(at);
            if rule.mode == Mode::Off {
                note(rule, Note::Off);
                continue;
            }
            if rule.expires.is_some_and(|expires| query.now >= expires) {
                note(rule, Note::Expired);
                continue;
            }
            let blocks = matches!(rule.action, Action::Block(_));
            // What rules may see; a guard sees all.
            let blind;
            let seen = if rule.sniff.or(walk.sniff).unwrap_or(self.sniff) == Sniff::Never {
                blind = Query {
                    first_flight: Some(&Flight::Hidden),
                    ..query.clone()
                };
                &blind
            } else {
                query
            };
            match rule.matcher.judge(seen) {
                Truth::False => {
                    note(rule, Note::Passed);
                    continue;
                }
                // A fact that can only keep it from holding is not worth its price.
                Truth::Unknown(Unknown::Addresses | Unknown::FirstFlight)
                    if !rule.matcher.may_hold(seen, rule.holds_unresolved()) =>
                {
                    note(rule, Note::Unknown);
                    continue;
                }
                Truth::Unknown(Unknown::Addresses) => return Step::Needs(Needs::Addresses),
                Truth::Unknown(Unknown::FirstFlight) => return Step::Needs(Needs::FirstFlight),
                // A name that cannot be looked up must not slip past a block by address.
                Truth::Unknown(Unknown::LookupFailed) if rule.holds_unresolved() => {}
                Truth::Unknown(Unknown::LookupFailed | Unknown::Opaque) => {
                    note(rule, Note::Unknown);
                    continue;
                }
                Truth::True => {}
            }
            if rule.mode == Mode::Report || blocks && self.report {
                note(rule, Note::Would);
                walk.would(WouldAt::Rule(at));
                continue;
            }
            match &rule.action {
                Action::Continue => {
                    note(rule, Note::Continued);
                    walk.take_options(at, rule);
                }
                Action::Block(block) => {
                    note(rule, Note::Decided);
                    let by = rule.matcher.holds_by(seen);
                    let denial = Denial::Rule { block, by };
                    return self.decided(walk, Some(rule), Verdict::Deny(denial));
                }
                Action::Route(routes) => {
                    note(rule, Note::Decided);
                    return self.routed(walk, query, at, *routes);
                }
            }
        }
        self.fall_to_default(walk, query, note)
    }

    fn fall_to_default<'p>(
        &'p self,
        walk: &mut Walk,
        query: &Query<'_>,
        note: &mut dyn FnMut(&'p Rule, Note),
    ) -> Step<'p> {
        let (at, rule) = (self.rules.len(), &self.default);
        walk.at = Some(at);
        match &rule.action {
            Action::Route(routes) => {
                note(rule, Note::Decided);
                self.routed(walk, query, at, *routes)
            }
            Action::Block(_) if self.report => {
                note(rule, Note::Would);
                walk.would(WouldAt::Rule(at));
                self.routed(walk, query, at, ByScheme::DIRECT)
            }
            Action::Block(block) => {
                note(rule, Note::Decided);
                self.decided(walk, Some(rule), Verdict::Deny(Denial::Default(block)))
            }
            Action::Continue => unreachable!("a default that goes on is refused at load"),
        }
    }

    fn routed(&self, walk: &mut Walk, query: &Query<'_>, at: usize, routes: ByScheme) -> Step<'_> {
        let rule = self.rule(at);
        walk.take_options(at, rule);
        // A plain request has no handshake.
        if query.scheme == Scheme::Http {
            walk.preflight = None;
        }
        let port = query.target.port;
        if is_never_port(port) && !rule.matcher.names_port(port) {
            if !self.report {
                return self.decided(walk, Some(rule), Verdict::Deny(Denial::Port));
            }
            walk.would(WouldAt::Port);
        }
        match self.check_sni(query) {
            Ok(()) => {}
            Err(None) => return Step::Needs(Needs::FirstFlight),
            Err(Some(SniMismatch::Block)) if !self.report => {
                return self.decided(walk, None, Verdict::Deny(Denial::Guard(Guard::SniMismatch)));
            }
            Err(Some(_)) => walk.would(WouldAt::Guard(Guard::SniMismatch)),
        }
        let route = match query.scheme {
            Scheme::Http => routes.http,
            Scheme::Connect => routes.connect,
        };
        self.decided(walk, Some(rule), Verdict::Route(route))
    }

    /// Asks the guard of SNI: `Err` with what becomes of another name than the target's, or with nothing where the first
    /// flight would tell.
    fn check_sni(&self, query: &Query<'_>) -> Result<(), Option<SniMismatch>> {
        let guard = self.guards.sni_mismatch;
        if guard == SniMismatch::Allow || query.scheme == Scheme::Http {
            return Ok(());
        }
        match query.first_flight {
            // An address names nobody: there is nothing to compare with.
            None if query.target.host.name().is_some() => Err(None),
            Some(flight) if flight.differs_from(&query.target.host) => Err(Some(guard)),
            Some(_) | None => Ok(()),
        }
    }

    fn decided<'p>(
        &'p self,
        walk: &Walk,
        rule: Option<&'p Rule>,
        verdict: Verdict<'p>,
    ) -> Step<'p> {
        let would = walk.would.map(|would| match would {
            WouldAt::Rule(at) => Would::Rule(self.rule(at)),
            WouldAt::Guard(guard) => Would::Guard(guard),
            WouldAt::Port => Would::Port,
        });
        let set = walk.timeouts.and_then(|at| self.rule(at).timeouts.as_ref());
        let timeouts = set.unwrap_or(&self.timeouts);
        Step::Decided(Decision {
            rule,
            verdict,
            would,
            timeouts,
            preflight: walk.preflight,
            dns: walk.dns,
            commit: walk.commit.unwrap_or(self.commit),
            retry: walk.retry.unwrap_or(self.retry),
            sniff: walk.sniff.unwrap_or(self.sniff),
        })
    }

    /// The rule at a place; the default stands behind the last.
    fn rule(&self, at: usize) -> &Rule {
        self.rules.get(at).unwrap_or(&self.default)
    }
}

impl Walk {
    fn would(&mut self, would: WouldAt) {
        self.would.get_or_insert(would);
    }

    /// Takes over what a rule sets beside its action. Every option of a rule is merged here and nowhere else: a later rule's
    /// replaces an earlier one's, and what it leaves out stays as it was.
    fn take_options(&mut self, at: usize, rule: &Rule) {
        if rule.timeouts.is_some() {
            self.timeouts = Some(at);
        }
        self.preflight = rule.preflight.or(self.preflight);
        self.dns = rule.dns.or(self.dns);
        self.commit = rule.commit.or(self.commit);
        self.retry = rule.retry.or(self.retry);
        self.sniff = rule.sniff.or(self.sniff);
    }
}
