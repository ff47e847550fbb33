//! What is allowed, and by which route: the compiled policy and the walk through it.
//!
//! Pure: no clock, no socket, no lock, nothing async. What the walk needs from outside it asks for
//! with [`Step::Needs`]; the caller fetches the fact, puts it into the [`Query`] and takes the next step of the
//! same [`Walk`].

pub mod chain;
pub mod clients;
pub mod dns;
pub mod explain;
pub mod fault;
pub mod flight;
pub mod group;
pub mod guard;
pub mod health;
pub mod index;
pub mod lint;
pub mod matcher;
pub mod modules;
pub mod no_proxy;
mod ports;
mod routes;
mod same;
mod standing;
pub mod upstream;
mod walk;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::client::Labels;
use crate::timeouts::Timeouts;

use chain::{Commit, Retry};
use clients::Role;
use dns::{AskId, Dns};
use flight::Sniff;
use guard::Guards;
use index::Index;
use matcher::Matcher;

pub use ports::Ports;
pub use routes::{ByScheme, Route, RouteId, RouteSpec};
pub use walk::{
    By, Decision, Denial, Lookup, Needs, Note, Query, Scheme, Step, Verdict, Walk, Would,
};

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
    /// From when on a tunnel keeps its hop, where no rule says otherwise.
    pub commit: Commit,
    /// What may be sent again, where no rule says otherwise.
    pub retry: Retry,
    /// Whether our own answers are JSON (RFC 9457) where the client does not say what it accepts.
    pub errors_in_json: bool,
    /// When a target that keeps failing is refused without a try; never where `None`.
    pub circuit: Option<Circuit>,
    /// When a target that keeps failing is looked at without being asked; never where `None`.
    pub triage: Option<Triage>,
    /// Whether first flights are read, where no rule says otherwise.
    pub sniff: Sniff,
    /// What becomes of open tunnels when it takes effect.
    pub on_reload: OnReload,
    /// The kinds of clients that rules speak of.
    pub roles: Vec<Arc<Role>>,
    /// Where a request's label comes from.
    pub labels: Labels,
    /// Whether a user that a request names must be proven (`server.auth`).
    pub proves_users: bool,
    /// Addresses of names that are not looked up (`dns.hosts`), sorted by name.
    pub pins: Vec<(Arc<str>, Vec<IpAddr>)>,
    /// Who is asked for all other names.
    pub dns: Dns,
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
    /// Who is asked for the names that it speaks of.
    pub dns: Option<AskId>,
    /// From when on a tunnel keeps its hop.
    pub commit: Option<Commit>,
    /// What may be sent again.
    pub retry: Option<Retry>,
    /// Whether first flights are read.
    pub sniff: Option<Sniff>,
    /// What it does, where it blocks, if the lookup that it asks for fails.
    pub on_dns_error: OnDnsError,
}

impl Rule {
    /// A rule that acts and sets no option.
    pub fn new(name: Arc<str>, source: Arc<str>, matcher: Matcher, action: Action) -> Self {
        Self {
            name,
            source,
            matcher,
            action,
            mode: Mode::Enforce,
            expires: None,
            timeouts: None,
            preflight: None,
            dns: None,
            commit: None,
            retry: None,
            sniff: None,
            on_dns_error: OnDnsError::default(),
        }
    }

    /// Whether it holds where the lookup that would tell has failed.
    fn holds_unresolved(&self) -> bool {
        matches!(self.action, Action::Block(_)) && self.on_dns_error == OnDnsError::Block
    }
}

/// What becomes of the tunnels that are open when a policy takes effect in the place of another (`on_reload`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReload {
    /// They go on.
    #[default]
    Keep,
    /// Those that it refuses are cut.
    CloseBlocked,
}

/// What a rule that blocks does where the lookup that it asks for fails (`on_dns_error`). Any other rule does not match then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDnsError {
    /// It blocks: a name that cannot be looked up must not slip past it.
    #[default]
    Block,
    /// It does not match.
    Skip,
}

impl OnDnsError {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Skip => "skip",
        }
    }
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

/// When a target that keeps failing is looked at without being asked (`defaults.triage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Triage {
    /// How many failures of a target with the same cause in a row are needed: 1 to 100.
    pub fails: u32,
    /// The time in which they must fall, at most an hour.
    pub within: Duration,
    /// How long the same target is not looked at again: a minute to a day.
    pub every: Duration,
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

/// A refusal, as written.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Why, for people.
    pub reason: Option<Arc<str>>,
    /// The status instead of 403.
    pub status: Option<u16>,
    /// A word for reports, as in `expected`.
    pub code: Option<Arc<str>>,
    /// How the client is told.
    pub close: Close,
}

/// How a client is told that it is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Close {
    /// By an answer; in a tunnel that was granted, where there is none, by an alert to TLS and a reset to all else.
    #[default]
    Http,
    /// By a reset.
    Rst,
    /// In a tunnel that was granted by a TLS alert (`access_denied`), else by an answer.
    Alert,
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

impl Policy {
    /// Whether a rule may hang on the addresses of a target.
    pub fn looks_up(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.mode != Mode::Off && rule.matcher.looks_up())
    }

    /// Lets rules and guards only note what they would block, or act, whatever the policy's own `mode` says.
    pub fn only_note(&mut self, report: bool) {
        self.report = report;
        self.guards.report = report;
    }
}

#[cfg(test)]
mod tests;
