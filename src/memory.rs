//! What recent requests showed, and what that leads to say of the next ones: suspects, reminders, an open circuit.
//!
//! It sees records and nothing else, on their way to where they are written. Bounded: old entries make room for new ones,
//! and none counts for longer than its window.

mod recent;
mod suspects;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::observe::Observe;
use crate::policy::Circuit;
use crate::record::{Outcome, Record};
use crate::timeouts::Brief;
use recent::{Failed, Recent};

/// How long a failure is mentioned to the next request for the same target.
const REMINDER: Duration = Duration::from_mins(10);

/// Remembers records, adds to them what it knows, and passes them on.
#[derive(Debug)]
pub struct Memory {
    recent: Mutex<Recent>,
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
            then,
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last failure of a target, if it is not long ago and no success followed.
    pub fn earlier(&self, host: &str, port: u16, now: Timestamp) -> Option<Earlier> {
        let mut recent = self.recent();
        let failed = recent.target(host, port)?.last_failure()?;
        let ago = since(failed.at, now);
        (ago <= REMINDER).then(|| earlier(failed, ago))
    }

    /// Whether a target passed lately by a hop.
    pub fn passes(&self, host: &str, port: u16, hop: &str, now: Timestamp) -> bool {
        let mut recent = self.recent();
        let target = recent.target(host, port);
        target.is_some_and(|target| target.is_fine_by(hop, now))
    }

    /// Whether a target failed as often as a circuit allows, with no success between, and lately: that last failure.
    pub fn is_open(
        &self,
        host: &str,
        port: u16,
        circuit: &Circuit,
        now: Timestamp,
    ) -> Option<Earlier> {
        let mut recent = self.recent();
        let target = recent.target(host, port)?;
        let last = target.last_failure()?;
        let ago = since(last.at, now);
        let counted = target.failures_within(last.at, circuit.within);
        (ago <= circuit.open && counted >= circuit.fails as usize).then(|| earlier(last, ago))
    }
}

impl Observe for Memory {
    fn record(&self, mut record: Box<Record>) {
        if record.outcome != Outcome::Unknown {
            let mut recent = self.recent();
            if record.outcome == Outcome::Failure
                && let (Some(host), Some(port)) = (&record.server_address, record.server_port)
                && let Some(target) = recent.target(host, port)
                && let Some(failed) = target.last_failure()
            {
                let ago = since(failed.at, record.end);
                if ago <= REMINDER {
                    remind(&mut record, &earlier(failed, ago));
                }
            }
            recent.note(&record);
            record.suspects = suspects::judge(&record, &mut recent);
        }
        self.then.record(record);
    }
}

/// A hint with what happened before.
pub fn reminded(hint: &str, earlier: &Earlier) -> String {
    format!("{hint}; before: {earlier}")
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
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
