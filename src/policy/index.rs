//! Which rules may hold for a host, so that a walk over many rules looks at few of them.
//!
//! It only leaves out rules whose matcher is false for the host whatever else the request shows; all others are judged as
//! ever, in their order.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Rule;
use super::matcher::Matcher;
use crate::target::Host;

/// So many rules are walked faster than they are looked up.
const FEW_RULES: usize = 32;

/// A test that speaks of more hosts than these may hold for any: what it looks in is hashed as well, and many rules may
/// share it.
pub(super) const MANY_HOSTS: usize = 1024;

/// The hosts that a matcher may hold for: one side for names, one for addresses; `None` where it may be any.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    /// At these names, or below.
    pub(super) names: Option<Vec<Arc<str>>>,
    /// In these networks.
    pub(super) nets: Option<Vec<IpNet>>,
}

impl Reach {
    /// Where both hold.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            names: narrower(self.names, other.names),
            nets: narrower(self.nets, other.nets),
        }
    }

    /// Where either holds.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            names: joined(self.names, other.names),
            nets: joined(self.nets, other.nets),
        }
    }

    /// Nowhere.
    pub(super) fn nowhere() -> Self {
        Self {
            names: Some(Vec::new()),
            nets: Some(Vec::new()),
        }
    }
}

/// Either bounds what both hold for.
fn narrower<T>(a: Option<Vec<T>>, b: Option<Vec<T>>) -> Option<Vec<T>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.len() < a.len() { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn joined<T>(a: Option<Vec<T>>, b: Option<Vec<T>>) -> Option<Vec<T>> {
    let (mut a, b) = (a?, b?);
    a.extend(b);
    Some(a)
}

/// The rules by the hosts that they may hold for.
#[derive(Debug, Default)]
pub struct Index {
    names: HashMap<Arc<str>, Vec<usize>>,
    nets: HashMap<IpNet, Vec<usize>>,
    /// The lengths of the networks' prefixes, of each family.
    v4_lengths: Vec<u8>,
    v6_lengths: Vec<u8>,
    /// Rules that may hold for any name, and for any address.
    any_name: Vec<usize>,
    any_address: Vec<usize>,
}

impl Index {
    /// Indexes rules where that pays.
    pub fn for_many(rules: &[Rule]) -> Option<Self> {
        (rules.len() > FEW_RULES).then(|| Self::of(rules))
    }

    /// Indexes rules by their places.
    pub fn of(rules: &[Rule]) -> Self {
        let mut this = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            let Reach { names, nets } = rule.matcher.reach();
            match names {
                Some(names) => {
                    for name in names {
                        this.names.entry(name).or_default().push(at);
                    }
                }
                None => this.any_name.push(at),
            }
            match nets {
                Some(nets) => {
                    for net in nets {
                        this.nets.entry(net.trunc()).or_default().push(at);
                    }
                }
                None => this.any_address.push(at),
            }
        }
        for net in this.nets.keys() {
            let lengths = match net {
                IpNet::V4(_) => &mut this.v4_lengths,
                IpNet::V6(_) => &mut this.v6_lengths,
            };
            if !lengths.contains(&net.prefix_len()) {
                lengths.push(net.prefix_len());
            }
        }
        this
    }

    /// The rules that may hold wherever `matcher` does, in their order: those that may hold for one host of its.
    pub(super) fn candidates_over(&self, matcher: &Matcher) -> Candidates<'_> {
        let Reach { names, nets } = matcher.reach();
        let name = names.as_deref().map(<[_]>::first);
        let net = nets.as_deref().map(<[_]>::first);
        let any = match (name, net) {
            (Some(Some(name)), _) => return self.candidates(&Host::Name(name.clone()), 0),
            (Some(None), Some(Some(net))) => return self.candidates(&Host::Ip(net.network()), 0),
            (None, _) => &self.any_name[..],
            (Some(None), None) => &self.any_address[..],
            (Some(None), Some(None)) => &[],
        };
        Candidates {
            any,
            found: Vec::new(),
        }
    }

    /// The rules from `from` on that may hold for a host, in their order.
    pub(super) fn candidates(&self, host: &Host, from: usize) -> Candidates<'_> {
        let mut found: Vec<usize> = Vec::new();
        let any = match host {
            Host::Name(name) => {
                let mut rest: Option<&str> = Some(name);
                while let Some(name) = rest {
                    found.extend(self.names.get(name).into_iter().flatten());
                    rest = name.split_once('.').map(|(_, parent)| parent);
                }
                &self.any_name
            }
            Host::Ip(ip) => {
                let lengths = match ip {
                    IpAddr::V4(_) => &self.v4_lengths,
                    IpAddr::V6(_) => &self.v6_lengths,
                };
                for length in lengths {
                    let net = IpNet::new(*ip, *length).ok();
                    let rules = net.and_then(|net| self.nets.get(&net.trunc()));
                    found.extend(rules.into_iter().flatten());
                }
                &self.any_address
            }
        };
        found.retain(|at| *at >= from);
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        let behind = any.partition_point(|at| *at < from);
        Candidates {
            any: any.get(behind..).unwrap_or_default(),
            found,
        }
    }
}

/// Places of rules, in order.
pub(super) struct Candidates<'a> {
    any: &'a [usize],
    /// The last one first.
    found: Vec<usize>,
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        match (self.any.split_first(), self.found.last()) {
            (Some((any, rest)), found) if found.is_none_or(|found| any <= found) => {
                if found == Some(any) {
                    self.found.pop();
                }
                self.any = rest;
                Some(*any)
            }
            _ => self.found.pop(),
        }
    }
}
