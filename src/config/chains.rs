//! Chains: from text and hops to what the policy keeps of them.

use std::time::Duration;

use super::decode::{At, Count, OneOrMany, clip, nearest};
use super::diag::{Findings, Place};
use super::raw::chains as raw;
use super::raw::faults::Uses;
use super::upstreams::Routes;
use crate::cause::{Class, Classes};
use crate::policy::chain::{Chain, Commit, Hop, HopMemory, Methods, OnExhausted, Retry};
use crate::policy::{ByScheme, RouteId};

/// More hops than anyone waits for.
const MOST_HOPS: usize = 10;

/// The longest body that is kept to be sent again, in bytes.
const LARGEST_REPLAY: u64 = 16 * 1024 * 1024;

/// The longest time for which a failure is held against a hop.
const LONGEST_MEMORY: Duration = Duration::from_hours(24);

/// A chain of which the hops are names still.
pub(super) struct Draft<'r> {
    /// As records name it.
    name: String,
    hops: Vec<Element<'r>>,
    is_closed: bool,
    long: Option<&'r raw::LongChain>,
}

/// A hop that is a name still.
struct Element<'r> {
    name: At<String>,
    next_on: Classes,
    faults: Option<&'r Uses>,
}

/// Whether a text of `via` is a chain rather than a name.
pub(super) fn is_chain(text: &str) -> bool {
    text.contains(['|', ',']) || text.trim() == "off"
}

impl<'r> Draft<'r> {
    /// Reads the short form, as in `corp,backup|direct`.
    pub(super) fn of_text(text: &At<String>, findings: &mut Findings<'_>) -> Option<Self> {
        let mut hops = Vec::new();
        for piece in text.split_inclusive(['|', ',']) {
            let (name, next_on) = match piece.strip_suffix('|') {
                Some(name) => (name, Classes::PIPE),
                None => (piece.strip_suffix(',').unwrap_or(piece), Classes::COMMA),
            };
            let name = At {
                value: name.trim().to_owned(),
                place: text.place,
            };
            hops.push(Element {
                name,
                next_on,
                faults: None,
            });
        }
        if text.ends_with(['|', ',']) || hops.iter().any(|hop| hop.name.is_empty()) {
            let message = format!("`{}` has a hop without a name", clip(text));
            findings
                .error(text.place, message)
                .with_help("write `corp|direct`, or `corp,direct`");
            return None;
        }
        let name: String = text.split_whitespace().collect();
        Self::closed(name, hops, text.place, findings)
    }

    /// Reads the long form.
    pub(super) fn of_long(
        name: &At<String>,
        long: &'r raw::LongChain,
        findings: &mut Findings<'_>,
    ) -> Option<Self> {
        let raw = long.hops.as_ref()?;
        if raw.is_empty() {
            findings.error(raw.place, "a chain needs a hop");
            return None;
        }
        let hops = raw.iter().filter_map(|hop| {
            let next_on = hop
                .0
                .next_on
                .as_ref()
                .map_or(Classes::PIPE, |on| classes(on));
            Some(Element {
                name: hop.0.r#use.clone()?,
                next_on,
                faults: hop.0.fault.as_deref(),
            })
        });
        let hops = hops.collect();
        let mut draft = Self::closed(name.value.clone(), hops, raw.place, findings)?;
        draft.long = Some(long);
        Some(draft)
    }

    /// The same under a name of its own.
    pub(super) fn named(self, name: &str) -> Self {
        let name = name.to_owned();
        Self { name, ..self }
    }

    /// Takes `off` off the end.
    fn closed(
        name: String,
        mut hops: Vec<Element<'r>>,
        place: Place,
        findings: &mut Findings<'_>,
    ) -> Option<Self> {
        let is_closed = hops.last().is_some_and(|hop| hop.name.as_str() == "off");
        if is_closed
            && let Some(faults) = hops.pop().and_then(|off| off.faults)
            && let Some(fault) = faults.first()
        {
            findings.error(fault.place, "`off` is no hop that a fault could strike");
        }
        if let Some(off) = hops.iter().find(|hop| hop.name.as_str() == "off") {
            findings
                .error(
                    off.name.place,
                    "`off` ends a chain: what stands behind it is never tried",
                )
                .with_help("move `off` to the end, or take it out");
            return None;
        }
        if hops.is_empty() {
            findings
                .error(place, "a chain of `off` alone lets nothing out")
                .with_help("write `block` instead");
            return None;
        }
        if hops.len() > MOST_HOPS {
            let message = format!("{} hops are too many: {MOST_HOPS} may be", hops.len());
            findings.error(place, message);
            return None;
        }
        Some(Self {
            name,
            hops,
            is_closed,
            long: None,
        })
    }

    /// As records name it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Finds the hops; where one of them differs by the kind of request, so does the chain.
    pub(super) fn compile(
        self,
        routes: &mut Routes,
        findings: &mut Findings<'_>,
    ) -> Option<(Chain, Chain)> {
        let mut found: Vec<(ByScheme, Classes)> = Vec::new();
        for (at, hop) in self.hops.iter().enumerate() {
            let name = &hop.name;
            let twice = |earlier: &Element<'_>| earlier.name.as_str() == name.as_str();
            if self.hops.iter().take(at).any(twice) {
                let message = format!("`{}` stands in the chain twice", clip(name));
                findings
                    .error(name.place, message)
                    .with_help("a hop that failed is not tried again for the same request");
                return None;
            }
            let mut route = routes.hop(name, findings)?;
            if let Some(faults) = hop.faults {
                let by = format!("chain {}, hop {}", self.name, name.value);
                route = routes.with_faults(route, faults, &by, false, findings);
            }
            found.push((route, hop.next_on));
        }
        let settings = self.settings(findings);
        let chain = |of: fn(ByScheme) -> RouteId| {
            let mut hops: Vec<Hop> = Vec::new();
            for (routes, next_on) in &found {
                let route = of(*routes);
                // An upstream of the environment that is not there is `direct`, which may be a hop already.
                if hops.iter().all(|hop| hop.route != route) {
                    let next_on = *next_on;
                    hops.push(Hop { route, next_on });
                }
            }
            Chain {
                hops,
                is_closed: self.is_closed,
                ..settings.clone()
            }
        };
        Some((chain(|routes| routes.http), chain(|routes| routes.connect)))
    }

    /// What the long form says beside its hops.
    fn settings(&self, findings: &mut Findings<'_>) -> Chain {
        let long = self.long;
        let retry = long.and_then(|long| long.retry.as_ref());
        let memory = long.and_then(|long| long.memory.as_ref());
        let on_exhausted = long.and_then(|long| long.on_exhausted.as_ref());
        Chain {
            hops: Vec::new(),
            is_closed: false,
            attempts: retry
                .and_then(|retry| retry.attempts.as_ref())
                .and_then(|count| attempts(count, findings)),
            budget: retry
                .and_then(|retry| retry.budget.as_ref())
                .map(|budget| budget.0),
            hedge: long
                .and_then(|long| long.hedge.as_ref())
                .map(|hedge| hedge.0),
            memory: memory.map(|raw| memory_of(raw, findings)),
            on_exhausted: match on_exhausted.map(|at| at.value) {
                None | Some(raw::OnExhausted::Rst) => OnExhausted::Rst,
                Some(raw::OnExhausted::Alert) => OnExhausted::Alert,
                Some(raw::OnExhausted::Fin) => OnExhausted::Fin,
            },
            on_status: long
                .and_then(|long| long.on_status.as_ref())
                .map(|list| statuses(list, findings))
                .unwrap_or_default(),
        }
    }
}

fn classes(list: &OneOrMany<raw::NextOn>) -> Classes {
    let one = |next_on: raw::NextOn| {
        let class = match next_on {
            raw::NextOn::Any => return Classes::ANY,
            raw::NextOn::AnyButDenied => return Classes::PIPE,
            raw::NextOn::NotFound => Class::NotFound,
            raw::NextOn::Dns => Class::Dns,
            raw::NextOn::Connect => Class::Connect,
            raw::NextOn::ProxyDown => Class::ProxyDown,
            raw::NextOn::ProxyAuth => Class::ProxyAuth,
            raw::NextOn::Gateway => Class::Gateway,
            raw::NextOn::ProxyError => Class::ProxyError,
            raw::NextOn::Denied => Class::Denied,
            raw::NextOn::Reset => Class::Reset,
            raw::NextOn::HelloTimeout => Class::HelloTimeout,
            raw::NextOn::NotTls => Class::NotTls,
            raw::NextOn::TlsAlert => Class::TlsAlert,
            raw::NextOn::FirstByte => Class::FirstByte,
            raw::NextOn::Status => Class::Status,
        };
        class.into()
    };
    list.iter().fold(Classes::default(), |all, next_on| {
        all.and(one(next_on.value))
    })
}

fn attempts(count: &At<Count>, findings: &mut Findings<'_>) -> Option<u32> {
    let attempts = u32::try_from(count.0).ok();
    let attempts = attempts.filter(|count| (1..=10).contains(count));
    if attempts.is_none() {
        let message = format!("{} is no number of hops to try", count.0);
        findings.error(count.place, message).with_help("1 to 10");
    }
    attempts
}

fn memory_of(raw: &raw::HopMemory, findings: &mut Findings<'_>) -> HopMemory {
    let mut memory = HopMemory {
        ttl: Duration::from_mins(10),
        fails: 1,
    };
    if let Some(ttl) = &raw.ttl {
        memory.ttl = ttl.0;
        if ttl.0 > LONGEST_MEMORY {
            let message = "a failure is held against a hop for a day at most";
            findings
                .error(ttl.place, message)
                .with_help("write `24h` or less");
        }
    }
    if let Some(fails) = &raw.fails {
        if let Ok(number @ 1..=100) = u32::try_from(fails.0) {
            memory.fails = number;
        } else {
            let message = format!("{} is no number of failures for a memory", fails.0);
            findings.error(fails.place, message).with_help("1 to 100");
        }
    }
    memory
}

fn statuses(list: &OneOrMany<Count>, findings: &mut Findings<'_>) -> Vec<u16> {
    let mut statuses = Vec::new();
    for status in list.iter() {
        if let Ok(number @ 400..=599) = u16::try_from(status.0) {
            statuses.push(number);
        } else {
            let message = format!("{} is no status of a failure", status.0);
            let told = findings.error(status.place, message);
            told.with_help("400 to 599");
        }
    }
    statuses
}

/// What `retry` says, over what held before.
pub(super) fn retry(base: Retry, raw: &raw::Retry, findings: &mut Findings<'_>) -> Retry {
    let replay_body = raw.replay_body.as_ref().and_then(|size| {
        if size.0 <= LARGEST_REPLAY {
            return usize::try_from(size.0).ok();
        }
        let message = "a body is kept in memory until it was answered: 16MiB at most";
        findings.error(size.place, message);
        None
    });
    Retry {
        methods: match raw.methods.as_ref().map(|at| at.value) {
            None => base.methods,
            Some(raw::Methods::None) => Methods::None,
            Some(raw::Methods::Safe) => Methods::Safe,
            Some(raw::Methods::Idempotent) => Methods::Idempotent,
        },
        replay_body: replay_body.unwrap_or(base.replay_body),
        attempts: raw
            .attempts
            .as_ref()
            .and_then(|count| attempts(count, findings))
            .unwrap_or(base.attempts),
        budget: raw.budget.as_ref().map_or(base.budget, |budget| budget.0),
    }
}

/// What `commit` says.
pub(super) fn commit(raw: raw::Commit) -> Commit {
    match raw {
        raw::Commit::Connect => Commit::Connect,
        raw::Commit::FirstByte => Commit::FirstByte,
    }
}

/// Notes that a hop or a route is not there, and what may be meant.
pub(super) fn unknown<'n>(
    at: &At<String>,
    what: &str,
    names: impl Iterator<Item = &'n str> + Clone,
    findings: &mut Findings<'_>,
) {
    let name = at.as_str();
    let diagnostic = findings.error(at.place, format!("there is no {what} `{}`", clip(name)));
    match nearest(name, names.clone()) {
        Some(near) => diagnostic.with_help(format!("did you mean `{near}`?")),
        None => diagnostic.with_help(format!(
            "it may be {}",
            names.collect::<Vec<_>>().join(", ")
        )),
    };
}
