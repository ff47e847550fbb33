//! What a rule speaks of: tests on a request, joined by `any`, `all` and `not`, in three-valued logic.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use globset::GlobSet;
use http::{HeaderName, Method};
use ipnet::IpNet;
use regex::Regex;

use super::index::{MANY_HOSTS, Reach};
use super::no_proxy::NoProxy;
use super::{Lookup, Ports, Query, Scheme};
use crate::target::Host;

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
}

/// Networks, as written.
#[derive(Clone, Debug, Default)]
pub struct Nets {
    written: Vec<IpNet>,
    /// What they span, apart from each other and in order, where there are many.
    ranges: Vec<(IpAddr, IpAddr)>,
}

/// A set of host patterns.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Exact hosts.
    exact: HashSet<Host>,
    /// Names that match with all below (`domain`).
    domains: HashSet<Arc<str>>,
    /// Names of which all below match (`*.name`).
    below: HashSet<Arc<str>>,
    /// Other patterns, with dots as slashes.
    globs: Option<GlobSet>,
    /// The patterns as written, for lint.
    written: Vec<String>,
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
            Self::Sets(sets) => sets.iter().any(|set| set.contains(&target.host)).into(),
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
        }
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
            | Self::Client(_) => Reach::default(),
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

    /// Whether it holds for a request because of an address (`ip`).
    pub(crate) fn holds_by_address(&self, query: &Query<'_>) -> bool {
        let holds = |matcher: &&Self| matcher.judge(query) != Truth::False;
        if let Self::Ip(..) = self {
            holds(&self)
        } else if let Self::All(inner) = self {
            inner.iter().any(|matcher| matcher.holds_by_address(query))
        } else if let Self::Any(inner) = self {
            inner
                .iter()
                .find(holds)
                .is_some_and(|matcher| matcher.holds_by_address(query))
        } else {
            false
        }
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
    /// Whether a host is in it.
    pub fn contains(&self, host: &Host) -> bool {
        self.hosts.contain(host) || host.ip().is_some_and(|ip| self.nets.contain(ip))
    }
}

/// Why a host pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The part without wildcards is no host.
    #[error("{0}")]
    Host(#[from] crate::target::TargetError),
    /// A wildcard pattern that cannot be compiled.
    #[error("{0}")]
    Glob(String),
    /// A pattern with a port, a scheme or a path.
    #[error("a host pattern is a name or an address only: leave out scheme, port and path")]
    NotAHost,
}

impl Hosts {
    /// Compiles `host` patterns (exact names, addresses and globs) and `domain` names.
    ///
    /// In a glob a leading `*.` spans one or more labels, any other `*` and `?` stay inside a label,
    /// and `**` crosses labels.
    ///
    /// # Errors
    /// The index of the first bad pattern, hosts counted before domains, and what is wrong with it.
    pub fn new(hosts: &[&str], domains: &[&str]) -> Result<Self, (usize, PatternError)> {
        let mut this = Self::default();
        let mut globs = globset::GlobSetBuilder::new();
        let mut has_globs = false;
        for (at, pattern) in hosts.iter().enumerate() {
            if let Some(glob) = this.add_host(pattern).map_err(|error| (at, error))? {
                globs.add(glob);
                has_globs = true;
            }
        }
        for (at, domain) in domains.iter().enumerate() {
            this.add_domain(domain)
                .map_err(|error| (hosts.len() + at, error))?;
        }
        if has_globs {
            let set = globs
                .build()
                .map_err(|error| (0, PatternError::Glob(error.to_string())))?;
            this.globs = Some(set);
        }
        Ok(this)
    }

    fn add_host(&mut self, pattern: &str) -> Result<Option<globset::Glob>, PatternError> {
        self.written.push(pattern.to_lowercase());
        if pattern.contains('/') || pattern.contains("://") {
            return Err(PatternError::NotAHost);
        }
        if !pattern.contains(['*', '?', '[', '{']) || pattern.starts_with('[') {
            self.exact.insert(Host::parse(pattern)?);
            return Ok(None);
        }
        if let Some(rest) = pattern.strip_prefix("*.")
            && !rest.contains(['*', '?', '[', '{'])
        {
            let Host::Name(name) = Host::parse(rest)? else {
                return Err(PatternError::NotAHost);
            };
            self.below.insert(name);
            return Ok(None);
        }
        let lower = pattern.to_lowercase();
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        let spread = match lower.strip_prefix("*.") {
            Some(rest) => format!("**/*/{}", rest.replace('.', "/")),
            None => lower.replace('.', "/"),
        };
        let glob = globset::GlobBuilder::new(&spread)
            .literal_separator(true)
            .build();
        glob.map(Some)
            .map_err(|error| PatternError::Glob(error.to_string()))
    }

    fn add_domain(&mut self, domain: &str) -> Result<(), PatternError> {
        if domain.contains(['*', '?', '/']) {
            return Err(PatternError::NotAHost);
        }
        let name = domain.strip_prefix('.').unwrap_or(domain);
        match Host::parse(name)? {
            Host::Name(name) => {
                self.written.push(format!("**.{name}"));
                self.domains.insert(name);
                Ok(())
            }
            Host::Ip(_) => Err(PatternError::NotAHost),
        }
    }

    /// Whether a host is one of them.
    pub fn contain(&self, host: &Host) -> bool {
        if self.exact.contains(host) {
            return true;
        }
        let Host::Name(name) = host else { return false };
        let mut is_whole = true;
        let mut rest: &str = name;
        loop {
            if self.domains.contains(rest) || !is_whole && self.below.contains(rest) {
                return true;
            }
            match rest.split_once('.') {
                Some((_, parent)) => rest = parent,
                None => break,
            }
            is_whole = false;
        }
        self.globs
            .as_ref()
            .is_some_and(|globs| globs.is_match(name.replace('.', "/")))
    }

    /// The hosts that it may hold.
    fn reach(&self) -> Reach {
        let exact = self.exact.iter().filter_map(|host| match host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        });
        let names = exact.chain(&self.domains).chain(&self.below).cloned();
        let nets = self.exact.iter().filter_map(Host::ip).map(IpNet::from);
        let is_small = self.exact.len() + self.domains.len() + self.below.len() <= MANY_HOSTS;
        Reach {
            names: (is_small && self.globs.is_none()).then(|| names.collect()),
            nets: is_small.then(|| nets.collect()),
        }
    }

    /// Whether every host of another set of patterns is surely one of them, for lint.
    pub(crate) fn cover(&self, narrow: &Self) -> bool {
        let is_below = |name: &str| {
            let mut parents = name.split_once('.');
            while let Some((_, parent)) = parents {
                if self.below.contains(parent) || self.domains.contains(parent) {
                    return true;
                }
                parents = parent.split_once('.');
            }
            false
        };
        narrow.exact.iter().all(|host| self.contain(host))
            && narrow
                .domains
                .iter()
                .all(|name| self.domains.contains(name) || is_below(name))
            && narrow.below.iter().all(|name| {
                self.below.contains(name) || self.domains.contains(name) || is_below(name)
            })
            && (narrow.globs.is_none() || narrow.written.iter().all(|n| self.written.contains(n)))
    }

    /// The patterns as written; a domain as `**.name`.
    pub fn written(&self) -> &[String] {
        &self.written
    }

    /// Whether there is no pattern in it.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, host: &str, expected: bool) {
        let hosts = match pattern.strip_prefix("domain ") {
            Some(domain) => Hosts::new(&[], &[domain]),
            None => Hosts::new(&[pattern], &[]),
        };
        assert_eq!(
            hosts.unwrap().contain(&Host::parse(host).unwrap()),
            expected,
            "{pattern} ∋ {host}"
        );
    }

    #[test]
    fn a_leading_star_spans_labels_and_leaves_the_apex_out() {
        check("*.corp.example", "a.corp.example", true);
        check("*.corp.example", "a.b.corp.example", true);
        check("*.corp.example", "corp.example", false);
        check("*.corp.example", "notcorp.example", false);
        check("*.Corp.example.", "a.corp.example", true);
    }

    #[test]
    fn an_inner_star_stays_inside_a_label() {
        check("git-*.example", "git-eu.example", true);
        check("git-*.example", "git-eu.west.example", false);
        check("git-?.example", "git-1.example", true);
        check("*.git-*.example", "a.b.git-1.example", true);
        check("*.git-*.example", "git-1.example", false);
        check("**.git-*.example", "git-1.example", true);
        check("a.**.example", "a.b.c.example", true);
    }

    #[test]
    fn a_domain_is_the_name_and_all_below() {
        check("domain corp.example", "corp.example", true);
        check("domain corp.example", "a.b.corp.example", true);
        check("domain corp.example", "notcorp.example", false);
        check("domain .corp.example", "corp.example", true);
        check("domain bücher.example", "a.xn--bcher-kva.example", true);
    }

    #[test]
    fn addresses_match_in_every_spelling() {
        check("[2001:db8::1]", "2001:DB8:0::1", true);
        check("192.0.2.1", "::ffff:192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
    }

    #[test]
    fn what_is_no_pattern_is_told_by_its_place() {
        assert_eq!(
            Hosts::new(&["a.example", "http://b.example"], &[])
                .unwrap_err()
                .0,
            1
        );
        assert_eq!(Hosts::new(&["a.example"], &["127.1"]).unwrap_err().0, 1);
        assert_eq!(
            Hosts::new(&["a.example"], &["*.b"]).unwrap_err(),
            (1, PatternError::NotAHost)
        );
    }

    #[test]
    fn three_values_follow_kleene() {
        let unknown = Truth::Unknown(Unknown::Opaque);
        assert_eq!(Truth::False.and(unknown), Truth::False);
        assert_eq!(Truth::True.and(unknown), unknown);
        assert_eq!(Truth::True.or(unknown), Truth::True);
        assert_eq!(Truth::False.or(unknown), unknown);
        assert_eq!(unknown.not(), unknown);
        assert_eq!(
            unknown.and(Truth::Unknown(Unknown::Addresses)),
            Truth::Unknown(Unknown::Addresses)
        );
    }
}
