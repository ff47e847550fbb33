//! What recent requests showed, and what that leads to say of the next ones: suspects, reminders, an open circuit.
//!
//! It sees records and nothing else, on their way to where they are written. Bounded: old entries make room for new ones,
//! and none counts for longer than its window. Windows are counted from when a record arrives here, not by the times that it
//! tells: a wall clock that is set back must not hold a circuit open.

mod recent;
mod suspects;
mod triage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::observe::Observe;
use crate::policy::Circuit;
use crate::record::{Outcome, Record};
use crate::timeouts::Brief;
use recent::{Failed, Recent};

pub use triage::{Control, Diagnosis, Due, Found, Request};

/// How long a failure is mentioned to the next request for the same target.
const REMINDER: Duration = Duration::from_mins(10);

/// Remembers records, adds to them what it knows, and passes them on.
#[derive(Debug)]
pub struct Memory {
    recent: Mutex<Recent>,
    /// Told when a target waits for a look.
    some_wait: Notify,
    /// Looks that were taken, by verdict.
    taken: Mutex<BTreeMap<&'static str, u64>>,
    then: Arc<dyn Observe>,
}

/// An earlier failure of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Its cause.
    pub cause: String,
    /// The hop it was seen on.
    pub hop: Option<Arc<str>>,
    /// How long ago.
    pub ago: Duration,
    /// What a look at the target has found since it fails.
    pub found: Option<Found>,
}

impl std::fmt::Display for Earlier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ago", self.cause, Brief(self.ago))?;
        match &self.hop {
            Some(hop) => write!(f, " via {hop}"),
            None => Ok(()),
        }
    }
}

impl Memory {
    /// A memory of nothing, in front of where records go.
    pub fn new(then: Arc<dyn Observe>) -> Self {
        Self {
            recent: Mutex::default(),
            some_wait: Notify::new(),
            taken: Mutex::default(),
            then,
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets how hops with these names went: they mean others now.
    pub fn forget_hops(&self, names: &[Arc<str>]) {
        if !names.is_empty() {
            let is_meant = |name: &str| names.iter().any(|meant| **meant == *name);
            self.recent().forget_hops(is_meant);
        }
    }

    /// The last failure of a target, if it is not long ago and no success followed; with what a look found, for who fails of
    /// `cause` by `route`.
    pub fn earlier(
        &self,
        host: &str,
        port: u16,
        route: Option<&str>,
        cause: &str,
    ) -> Option<Earlier> {
        let mut recent = self.recent();
        let found = recent.found((host, port), route, cause);
        let failed = recent.target(host, port)?.last_failure()?;
        let ago = failed.at.elapsed();
        let earlier = Earlier {
            found,
            ..earlier(failed, ago)
        };
        (ago <= REMINDER).then_some(earlier)
    }

    /// Whether a target passed lately by a hop.
    pub fn passes(&self, host: &str, port: u16, hop: &str) -> bool {
        let mut recent = self.recent();
        let target = recent.target(host, port);
        target.is_some_and(|target| target.is_fine_by(hop))
    }

    /// Whether a target failed as often as a circuit allows, with no success between, and lately: that last failure.
    pub fn is_open(&self, host: &str, port: u16, circuit: &Circuit) -> Option<Earlier> {
        let mut recent = self.recent();
        let target = recent.target(host, port)?;
        let last = target.last_failure()?;
        let ago = last.at.elapsed();
        let counted = target.failures_within(last.at, circuit.within);
        (ago <= circuit.open && counted >= circuit.fails as usize).then(|| earlier(last, ago))
    }
}

impl Observe for Memory {
    fn record(&self, mut record: Box<Record>) {
        // What a fault of the policy struck is no evidence of anything.
        if record.outcome != Outcome::Unknown && record.faults.is_empty() {
            let mut recent = self.recent();
            if record.outcome == Outcome::Failure
                && let (Some(host), Some(port)) =
                    (record.server_address.clone(), record.server_port)
            {
                if let Some(target) = recent.target(&host, port)
                    && let Some(failed) = target.last_failure()
                {
                    let ago = failed.at.elapsed();
                    if ago <= REMINDER {
                        remind(&mut record, &earlier(failed, ago));
                    }
                }
                let cause = record.error_type.as_deref().unwrap_or_default();
                let found = recent.found((&host, port), record.route.as_deref(), cause);
                if let Some(found) = found {
                    triage::tell(&mut record, &found);
                }
            }
            recent.note(&record);
            record.suspects = suspects::judge(&record, &mut recent);
            if recent.some_wait() {
                self.some_wait.notify_one();
            }
        }
        self.then.record(record);
    }
}

/// A hint with what happened before.
pub fn reminded(hint: &str, earlier: &Earlier) -> String {
    match &earlier.found {
        Some(found) => format!("{hint}; before: {earlier}; {found}"),
        None => format!("{hint}; before: {earlier}"),
    }
}

fn remind(record: &mut Record, earlier: &Earlier) {
    for hint in [&mut record.hint, &mut record.reason].into_iter().flatten() {
        *hint = reminded(hint, earlier).into();
    }
}

fn earlier(failed: &Failed, ago: Duration) -> Earlier {
    Earlier {
        cause: failed.cause.to_string(),
        hop: failed.hop.clone(),
        ago,
        found: None,
    }
}

#[cfg(test)]
mod tests;
