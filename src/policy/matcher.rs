//! What a rule speaks of: tests on a request, joined by `any`, `all` and `not`, in three-valued logic.

mod hosts;

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use globset::GlobSet;
use http::{HeaderName, Method};
use ipnet::IpNet;
use regex::Regex;

use super::clients::{LabelPatterns, Role};
use super::fault::LAB;
use super::flight::{Flight, Proto};
use super::index::{MANY_HOSTS, Reach};
use super::modules::Modules;
use super::no_proxy::NoProxy;
use super::{By, Lookup, Ports, Query, Scheme};
use crate::target::Host;

pub use hosts::{Hosts, PatternError};

/// A test on a request.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// Every one of them holds; true where there are none.
    All(Vec<Self>),
    /// Some of them holds.
    Any(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// The host is one of these (`host`, `domain`).
    Host(Hosts),
    /// The name matches as a whole (`host_regex`).
    HostRegex(Regex),
    /// The host is a name without a dot, or is not (`plain_host`).
    PlainHost(bool),
    /// The address lies in one of these (`ip`).
    Ip(Nets, Resolve),
    /// The host is in one of these named sets (`set`).
    Sets(Vec<Arc<Set>>),
    /// The list says to bypass (`no_proxy`).
    NoProxy(Arc<NoProxy>),
    /// The port is one of these (`port`).
    Port(Ports),
    /// How it was asked (`scheme`).
    Scheme(Scheme),
    /// The method is one of these (`method`).
    Method(Vec<Method>),
    /// The path matches one of these (`path`); unknown in a tunnel.
    Path(GlobSet),
    /// The field has a value that matches (`header`); unknown in a tunnel.
    Header(HeaderName, GlobSet),
    /// The client's address lies in one of these (`client.cidr`).
    Client(Nets),
    /// The client's user name is one of these (`client.user`), where a name counts.
    User(Vec<Arc<str>>),
    /// The client has one of these roles (`client.role`).
    Role(Vec<Arc<Role>>),
    /// The request's label is one of these (`client.label`).
    Label(LabelPatterns),
    /// It came by one of these listeners (`client.listener`).
    Listener(Vec<Arc<str>>),
    /// The first flight's name is one of these (`sni`).
    Sni(Hosts),
    /// The first flight offers one of these protocols (`alpn`).
    Alpn(Vec<Arc<str>>),
    /// The first flight is of one of these (`proto`).
    Proto(Vec<Proto>),
    /// The Go module is one of these (`go_module`).
    GoModule(Modules),
}

/// Whether `ip` looks up names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// Literals only.
    Never,
    /// Some address of the name lies inside.
    Any,
    /// Every address of the name lies inside.
    All,
}

/// A named set of hosts and addresses.
#[derive(Clone, Debug, Default)]
pub struct Set {
    /// Its name.
    pub name: Arc<str>,
    /// Its names.
    pub hosts: Hosts,
    /// Its addresses; literals only.
    pub nets: Nets,
    /// Its Go modules.
    pub modules: Modules,
}

/// Networks, as written.
#[derive(Clone, Debug, Default)]
pub struct Nets {
    written: Vec<IpNet>,
    /// What they span, apart from each other and in order, where there are many.
    ranges: Vec<(IpAddr, IpAddr)>,
}

/// Yes, no, or not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It cannot be said.
    Unknown(Unknown),
}

/// Why a test cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unknown {
    /// A tunnel does not show it.
    Opaque,
    /// The lookup failed.
    LookupFailed,
    /// What the client sends first in its tunnel would tell.
    FirstFlight,
    /// A lookup would tell.
    Addresses,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl Truth {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::True, truth) | (truth, Self::True) => truth,
            (Self::Unknown(a), Self::Unknown(b)) => Self::Unknown(a.max(b)),
        }
    }

    fn or(self, other: Self) -> Self {
        self.not().and(other.not()).not()
    }

    fn not(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::Unknown(why) => Self::Unknown(why),
        }
    }
}

impl Matcher {
    /// The matcher of a rule without `match`.
    pub fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// Says whether it holds for a request.
    pub fn judge(&self, query: &Query<'_>) -> Truth {
        let target = query.target;
        match self {
            Self::All(all) => join(all, Truth::True, Truth::False, Truth::and, query),
            Self::Any(any) => join(any, Truth::False, Truth::True, Truth::or, query),
            Self::Not(inner) => inner.judge(query).not(),
            Self::Host(hosts) => hosts.contain(&target.host).into(),
            Self::HostRegex(regex) => target
                .host
                .name()
                .is_some_and(|name| regex.is_match(name))
                .into(),
            Self::PlainHost(plain) => target
                .host
                .name()
                .is_some_and(|name| name.contains('.') != *plain)
                .into(),
            Self::Ip(nets, resolve) => judge_address(nets, *resolve, query),
            Self::Sets(sets) => {
                let truths = sets.iter().map(|set| set.judge(query));
                truths.fold(Truth::False, Truth::or)
            }
            Self::NoProxy(list) => list.judge(target).is_some().into(),
            Self::Port(ports) => ports.contains(target.port).into(),
            Self::Scheme(scheme) => (*scheme == query.scheme).into(),
            Self::Method(methods) => methods.contains(query.method).into(),
            Self::Path(globs) => match query.path {
                Some(path) => globs
                    .is_match(path.split('?').next().unwrap_or(path))
                    .into(),
                None => Truth::Unknown(Unknown::Opaque),
            },
            Self::Header(name, globs) => match query.headers {
                Some(headers) => {
                    let matches = |value: &http::HeaderValue| {
                        globs.is_match(&*String::from_utf8_lossy(value.as_bytes()))
                    };
                    headers.get_all(name).iter().any(matches).into()
                }
                None => Truth::Unknown(Unknown::Opaque),
            },
            Self::Client(nets) => nets.contain(query.client.ip()).into(),
            Self::User(users) => {
                let user = query.user();
                user.is_some_and(|user| users.iter().any(|u| **u == *user))
                    .into()
            }
            Self::Role(roles) => {
                let truths = roles.iter().map(|role| role.matcher.judge(query));
                truths.fold(Truth::False, Truth::or)
            }
            Self::Label(patterns) => {
                let label = query.claim.label.as_deref();
                label.is_some_and(|label| patterns.contain(label)).into()
            }
            Self::Listener(names) => names.contains(&query.client.listener).into(),
            Self::Sni(hosts) => match query.flight() {
                Ok(flight) => (flight.server_name())
                    .is_some_and(|name| hosts.contain(name))
                    .into(),
                Err(why) => Truth::Unknown(why),
            },
            Self::Alpn(protocols) => match query.flight() {
                Ok(flight) => (flight.hello())
                    .is_some_and(|hello| hello.alpn.iter().any(|p| protocols.contains(p)))
                    .into(),
                Err(why) => Truth::Unknown(why),
            },
            Self::Proto(protos) => match query.flight().map(Flight::proto) {
                Ok(Some(proto)) => protos.contains(&proto).into(),
                Ok(None) => Truth::Unknown(Unknown::Opaque),
                Err(why) => Truth::Unknown(why),
            },
            Self::GoModule(modules) => modules.judge(query),
        }
    }

    /// Whether facts that are still missing could make it hold. Where it could not, they need not be fetched.
    ///
    /// A rule that blocks may hold as well where a lookup fails: `unresolved`.
    pub(super) fn may_hold(&self, query: &Query<'_>, unresolved: bool) -> bool {
        let is_found = matches!(query.addresses, Some(Lookup::Found(_) | Lookup::Among(_)));
        self.prospects(query, unresolved && !is_found && self.looks_up())
            .0
    }

    /// Whether it may come out true, and whether it may come out false. What a tunnel never shows does neither, unless a
    /// failed lookup `excuses` it.
    fn prospects(&self, query: &Query<'_>, excuses: bool) -> (bool, bool) {
        let mut parts = [].iter();
        if let Self::All(inner) | Self::Any(inner) = self {
            parts = inner.iter();
        }
        let parts = parts.map(|part| part.prospects(query, excuses));
        if let Self::All(_) = self {
            return parts.fold((true, false), |(t, f), part| (t && part.0, f || part.1));
        }
        if let Self::Any(_) = self {
            return parts.fold((false, true), |(t, f), part| (t || part.0, f && part.1));
        }
        if let Self::Not(inner) = self {
            let (may_be_true, may_be_false) = inner.prospects(query, excuses);
            return (may_be_false, may_be_true);
        }
        match self.judge(query) {
            Truth::True => (true, false),
            Truth::False => (false, true),
            Truth::Unknown(Unknown::Addresses | Unknown::FirstFlight) => (true, true),
            Truth::Unknown(Unknown::Opaque | Unknown::LookupFailed) => (excuses, excuses),
        }
    }

    /// Whether its answer may hang on a lookup.
    pub fn looks_up(&self) -> bool {
        self.has(&|part| matches!(part, Self::Ip(_, resolve) if *resolve != Resolve::Never))
    }

    /// Whether its answer may hang on a tunnel's first flight.
    pub(super) fn sees_flight(&self) -> bool {
        self.has(&|part| matches!(part, Self::Sni(_) | Self::Alpn(_) | Self::Proto(_)))
    }

    /// Whether its answer may hang on what a plain request says beside its target.
    pub(super) fn looks_at_heads(&self) -> bool {
        self.has(&|part| {
            if let Self::Sets(sets) = part {
                return sets.iter().any(|set| !set.modules.is_empty());
            }
            matches!(
                part,
                Self::Path(_) | Self::Header(..) | Self::Method(_) | Self::GoModule(_)
            )
        })
    }

    /// Whether it speaks of a role.
    pub fn names_role(&self, name: &str) -> bool {
        let is_it = |role: &Arc<Role>| *role.name == *name;
        self.has(&|part| matches!(part, Self::Role(roles) if roles.iter().any(is_it)))
    }

    /// Whether it holds for hosts of a lab alone.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the others speak of no host, or of any"
    )]
    pub fn is_of_lab(&self) -> bool {
        match self {
            Self::All(parts) => parts.iter().any(Self::is_of_lab),
            Self::Any(parts) => !parts.is_empty() && parts.iter().all(Self::is_of_lab),
            Self::Host(hosts) => {
                let lab = format!("*.{LAB}");
                Hosts::new(&[&lab], &[]).is_ok_and(|lab| lab.cover(hosts))
            }
            _ => false,
        }
    }

    /// Whether some part of it is such.
    fn has(&self, is_such: &dyn Fn(&Self) -> bool) -> bool {
        if let Self::All(inner) | Self::Any(inner) = self {
            return inner.iter().any(|part| part.has(is_such));
        }
        if let Self::Not(inner) = self {
            return inner.has(is_such);
        }
        is_such(self)
    }

    /// The hosts that it may hold for; for all others it is false.
    pub(super) fn reach(&self) -> Reach {
        match self {
            Self::All(all) => {
                let parts = all.iter().map(Self::reach);
                parts.fold(Reach::default(), Reach::and)
            }
            Self::Any(any) => {
                let parts = any.iter().map(Self::reach);
                parts.fold(Reach::nowhere(), Reach::or)
            }
            Self::Host(hosts) => hosts.reach(),
            Self::HostRegex(_) | Self::PlainHost(_) => Reach {
                names: None,
                nets: Some(Vec::new()),
            },
            Self::Ip(nets, resolve) => Reach {
                names: (*resolve == Resolve::Never).then(Vec::new),
                nets: (nets.len() <= MANY_HOSTS).then(|| nets.to_vec()),
            },
            Self::Sets(sets) => {
                let sets = sets.iter().map(|set| {
                    if !set.modules.is_empty() {
                        return Reach::default();
                    }
                    let nets = (set.nets.len() <= MANY_HOSTS).then(|| set.nets.to_vec());
                    let names = Some(Vec::new());
                    set.hosts.reach().or(Reach { names, nets })
                });
                sets.fold(Reach::nowhere(), Reach::or)
            }
            Self::Not(_)
            | Self::NoProxy(_)
            | Self::Port(_)
            | Self::Scheme(_)
            | Self::Method(_)
            | Self::Path(_)
            | Self::Header(..)
            | Self::Client(_)
            | Self::User(_)
            | Self::Role(_)
            | Self::Label(_)
            | Self::Listener(_)
            | Self::Sni(_)
            | Self::Alpn(_)
            | Self::Proto(_)
            | Self::GoModule(_) => Reach::default(),
        }
    }

    /// Whether it holds for a port because it names that port.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others name no port")]
    pub fn names_port(&self, port: u16) -> bool {
        match self {
            Self::Port(ports) => ports.contains(port),
            Self::All(inner) | Self::Any(inner) => {
                inner.iter().any(|matcher| matcher.names_port(port))
            }
            _ => false,
        }
    }

    /// What of a request makes it hold: of alternatives the one that needs least, of conditions the one that needs most.
    pub(crate) fn holds_by(&self, query: &Query<'_>) -> By {
        self.is_by(true, query).unwrap_or(By::Request)
    }

    /// What makes it true, or false, if it is.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all others are of the request itself"
    )]
    fn is_by(&self, truth: bool, query: &Query<'_>) -> Option<By> {
        if let Self::Not(inner) = self {
            return inner.is_by(!truth, query);
        }
        if let Self::All(inner) | Self::Any(inner) = self {
            let mut parts = inner.iter().map(|part| part.is_by(truth, query));
            // All of them are true, or all are false.
            if matches!(self, Self::All(_)) == truth {
                return parts.try_fold(By::Request, |most, by| Some(most.max(by?)));
            }
            return parts.flatten().min();
        }
        // Where a lookup failed, a rule by address that blocks may hold.
        let such = [truth.into(), Truth::Unknown(Unknown::LookupFailed)];
        such.contains(&self.judge(query)).then_some(match self {
            Self::Ip(..) => By::Address,
            // A plain request shows by itself that it is HTTP.
            Self::Sni(_) | Self::Alpn(_) | Self::Proto(_) if query.scheme == Scheme::Connect => {
                By::Sni
            }
            _ => By::Request,
        })
    }
}

fn join(
    parts: &[Matcher],
    start: Truth,
    end: Truth,
    with: fn(Truth, Truth) -> Truth,
    query: &Query<'_>,
) -> Truth {
    let mut truth = start;
    for part in parts {
        truth = with(truth, part.judge(query));
        if truth == end {
            break;
        }
    }
    truth
}

fn judge_address(nets: &Nets, resolve: Resolve, query: &Query<'_>) -> Truth {
    if let Host::Ip(ip) = query.target.host {
        return nets.contain(ip).into();
    }
    match (resolve, query.addresses) {
        (Resolve::Never, _) => Truth::False,
        (Resolve::Any | Resolve::All, None) => Truth::Unknown(Unknown::Addresses),
        (Resolve::Any | Resolve::All, Some(Lookup::Failed)) => {
            Truth::Unknown(Unknown::LookupFailed)
        }
        // The others may lie elsewhere.
        (Resolve::Any, Some(Lookup::Among(ip))) if !nets.contain(ip) => {
            Truth::Unknown(Unknown::Addresses)
        }
        (Resolve::All, Some(Lookup::Among(ip))) if nets.contain(ip) => {
            Truth::Unknown(Unknown::Addresses)
        }
        (Resolve::Any | Resolve::All, Some(Lookup::Among(_))) => (resolve == Resolve::Any).into(),
        (Resolve::Any, Some(Lookup::Found(ips))) => ips.iter().any(|ip| nets.contain(*ip)).into(),
        (Resolve::All, Some(Lookup::Found(ips))) => {
            (!ips.is_empty() && ips.iter().all(|ip| nets.contain(*ip))).into()
        }
    }
}

/// So many networks are compared faster than they are searched.
const FEW_NETS: usize = 8;

impl FromIterator<IpNet> for Nets {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let written = Vec::from_iter(nets);
        let mut ranges = Vec::new();
        if written.len() > FEW_NETS {
            let apart = IpNet::aggregate(&written);
            ranges.extend(apart.iter().map(|net| (net.network(), net.broadcast())));
            ranges.sort_unstable();
        }
        Self { written, ranges }
    }
}

impl Deref for Nets {
    type Target = [IpNet];

    fn deref(&self) -> &[IpNet] {
        &self.written
    }
}

impl Nets {
    /// Whether an address lies in one of them.
    pub fn contain(&self, ip: IpAddr) -> bool {
        if self.ranges.is_empty() {
            return self.written.iter().any(|net| net.contains(&ip));
        }
        let behind = self.ranges.partition_point(|(first, _)| *first <= ip);
        let below = behind.checked_sub(1).and_then(|at| self.ranges.get(at));
        below.is_some_and(|(_, last)| ip <= *last)
    }
}

impl Set {
    /// Whether what is asked for is in it.
    fn judge(&self, query: &Query<'_>) -> Truth {
        if self.contains(&query.target.host) {
            return Truth::True;
        }
        self.modules.judge(query)
    }

    /// Whether a host is in it.
    pub fn contains(&self, host: &Host) -> bool {
        self.hosts.contain(host) || host.ip().is_some_and(|ip| self.nets.contain(ip))
    }
}
