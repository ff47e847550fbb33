//! What is allowed, and by which route: the compiled policy and the walk through it.
//!
//! Pure: no clock, no socket, no lock, nothing async. What the walk needs from outside it asks for
//! with [`Step::Needs`]; the caller fetches the fact, puts it into the [`Query`] and takes the next step of the
//! same [`Walk`].

pub mod explain;
pub mod guard;
pub mod index;
pub mod lint;
pub mod matcher;
pub mod no_proxy;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use jiff::Timestamp;

use crate::client::Client;
use crate::secret::Secret;
use crate::target::Target;
use crate::timeouts::Timeouts;

use guard::{Guard, Guards};
use index::Index;
use matcher::{Matcher, Truth, Unknown};

/// A policy, ready to decide.
#[derive(Debug)]
pub struct Policy {
    /// The first 12 hex digits of the SHA-256 of what it was made from.
    pub hash: Arc<str>,
    /// Whether blocks are only noted.
    pub report: bool,
    /// The checks in front of the rules.
    pub guards: Guards,
    /// The rules, in order. The `no_proxy` key is the first of them.
    pub rules: Vec<Rule>,
    /// The rules by host, where there are many.
    pub index: Option<Index>,
    /// What happens where no rule decides.
    pub default: Rule,
    /// The ways out by [`RouteId`]; the first is `direct`.
    pub routes: Vec<Route>,
    /// The waits, where no rule sets others.
    pub timeouts: Arc<Timeouts>,
    /// When a target that keeps failing is refused without a try; never where `None`.
    pub circuit: Option<Circuit>,
    /// Addresses of names that are not looked up (`dns.hosts`), sorted by name.
    pub pins: Vec<(Arc<str>, Vec<IpAddr>)>,
}

/// An entry of the ordered list.
#[derive(Debug)]
pub struct Rule {
    /// Its name, as in records and answers.
    pub name: Arc<str>,
    /// Where it stands: `file:line`.
    pub source: Arc<str>,
    /// What it speaks of.
    pub matcher: Matcher,
    /// What it does.
    pub action: Action,
    /// Whether it acts, only notes, or sleeps.
    pub mode: Mode,
    /// From when on it is off.
    pub expires: Option<Timestamp>,
    /// The waits it sets.
    pub timeouts: Option<Arc<Timeouts>>,
    /// What it has tried before a tunnel is granted.
    pub preflight: Option<Preflight>,
}

/// What is tried before a tunnel is granted, over a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preflight {
    /// A TLS handshake.
    Tls,
}

impl Preflight {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
        }
    }
}

/// When a target that keeps failing is refused without a try (`defaults.circuit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// How many failures of a target in a row open it: 1 to 1000.
    pub fails: u32,
    /// The time in which they must fall, at most an hour.
    pub within: Duration,
    /// How long the target is refused then, at most an hour.
    pub open: Duration,
}

/// What a rule does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Sends the request out.
    Route(ByScheme),
    /// Refuses it.
    Block(Block),
    /// Sets its options and goes on with the next rule.
    Continue,
}

/// A route for each of the two kinds of request: they differ where an upstream comes from the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByScheme {
    /// For plain requests.
    pub http: RouteId,
    /// For tunnels.
    pub connect: RouteId,
}

impl ByScheme {
    /// Straight out, whatever it is.
    pub const DIRECT: Self = Self {
        http: RouteId::DIRECT,
        connect: RouteId::DIRECT,
    };
}

/// The place of a route in [`Policy::routes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteId(pub usize);

impl RouteId {
    /// The route that is always there.
    pub const DIRECT: Self = Self(0);
}

/// A way out, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name: `direct`, or the upstream's.
    pub name: Arc<str>,
    /// What it is.
    pub spec: RouteSpec,
}

/// What a way out is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteSpec {
    /// Straight to the target.
    Direct,
    /// Through a proxy that speaks HTTP/1.1.
    Upstream {
        /// Where it listens.
        proxy: Target,
        /// The whole `Proxy-Authorization` value, as in `Basic …`.
        credentials: Option<Secret>,
    },
}

/// A refusal, as written.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Why, for people.
    pub reason: Option<Arc<str>>,
    /// The status instead of 403.
    pub status: Option<u16>,
    /// A word for reports, as in `expected`.
    pub code: Option<Arc<str>>,
}

/// Whether a rule acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It acts.
    Enforce,
    /// What it would do is noted.
    Report,
    /// It is passed over.
    Off,
}

/// What was asked, and what was found out about it so far.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// Who asks.
    pub client: &'a Client,
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
    /// What a lookup of the target gave, once [`Needs::Addresses`] was asked for.
    pub addresses: Option<Lookup<'a>>,
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
    /// The addresses of the target's name.
    Addresses,
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
    /// A rule blocks; `by_address` where it matched an address that was looked up.
    Rule {
        /// What the rule says.
        block: &'p Block,
        /// Whether it is one of `match.ip`.
        by_address: bool,
    },
    /// A guard refuses.
    Guard(Guard),
    /// The port is on the never-list and the rule does not name it.
    Port,
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
}

/// How far a walk through the rules has come, from the guards to a decision. It borrows nothing, so that it can wait for a
/// fact as long as that takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// The rule to judge next; `None` before the guards were asked.
    at: Option<usize>,
    would: Option<WouldAt>,
    /// The rule whose waits hold so far.
    timeouts: Option<usize>,
    /// What rules so far want tried.
    preflight: Option<Preflight>,
}

/// [`Would`] by place; behind the last rule stands the default.
#[derive(Clone, Copy, Debug)]
enum WouldAt {
    Rule(usize),
    Guard(Guard),
    Port,
}

/// What happened to one rule in a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It did not match.
    Passed,
    /// It could not be judged inside a tunnel, or without addresses, and counts as not matching.
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

impl Policy {
    /// The route behind an id.
    pub fn route(&self, id: RouteId) -> &Route {
        #[expect(
            clippy::indexing_slicing,
            reason = "ids are made together with the list"
        )]
        &self.routes[id.0]
    }

    /// The pinned addresses of a name (`dns.hosts`).
    pub fn pinned(&self, name: &str) -> Option<&[IpAddr]> {
        let at = self
            .pins
            .binary_search_by(|(pin, _)| (**pin).cmp(name))
            .ok()?;
        Some(&self.pins.get(at)?.1)
    }
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

    /// The same step over those of the rules that are worth a look; all others do not hold.
    fn step_over<'p>(
        &'p self,
        places: impl Iterator<Item = usize>,
        walk: &mut Walk,
        query: &Query<'_>,
        note: &mut dyn FnMut(&'p Rule, Note),
    ) -> Step<'p> {
        if walk.at.is_none() {
            let is_connect = query.scheme == Scheme::Connect;
            if let Some(guard) = self
                .guards
                .object_to(query.target, is_connect, query.client)
            {
                if !self.report || guard == Guard::Own {
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
            match rule.matcher.judge(query) {
                Truth::False => {
                    note(rule, Note::Passed);
                    continue;
                }
                Truth::Unknown(Unknown::Addresses) => return Step::Needs(Needs::Addresses),
                // A name that cannot be looked up must not slip past a block by address.
                Truth::Unknown(Unknown::LookupFailed) if blocks => {}
                Truth::Unknown(Unknown::LookupFailed | Unknown::Opaque) => {
                    note(rule, Note::Unknown);
                    continue;
                }
                Truth::True => {}
            }
            let reports = rule.mode == Mode::Report || blocks && self.report;
            if reports && !matches!(rule.action, Action::Continue) {
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
                    let by_address = rule.matcher.holds_by_address(query);
                    let denial = Denial::Rule { block, by_address };
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
        let route = match query.scheme {
            Scheme::Http => routes.http,
            Scheme::Connect => routes.connect,
        };
        self.decided(walk, Some(rule), Verdict::Route(route))
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

    fn take_options(&mut self, at: usize, rule: &Rule) {
        if rule.timeouts.is_some() {
            self.timeouts = Some(at);
        }
        self.preflight = rule.preflight.or(self.preflight);
    }
}

/// Ports that no rule opens by accident: the bad ports of the Fetch standard without 22, and the
/// services that the abuse of proxies aims at (SMB, RDP, Redis, memcached).
const NEVER_PORTS: &[u16] = &[
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102,
    103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 445,
    465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990,
    993, 995, 1719, 1720, 1723, 2049, 3389, 3659, 4045, 4190, 5060, 5061, 6000, 6379, 6566, 6665,
    6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211,
];

fn is_never_port(port: u16) -> bool {
    NEVER_PORTS.binary_search(&port).is_ok()
}

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl FromIterator<RangeInclusive<u16>> for Ports {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl Ports {
    /// Whether a port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// The ranges it was made of.
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

#[cfg(test)]
mod tests;
