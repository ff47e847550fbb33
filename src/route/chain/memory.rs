//! Which hop failed which host lately.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::policy::chain::HopMemory;

/// So many pairs of hop and host are remembered.
const MOST: usize = 16 * 1024;

/// The failures of one chain's hops, by host. Bounded; what is oldest goes first.
#[derive(Debug)]
pub(super) struct Memory {
    spec: HopMemory,
    failures: Mutex<HashMap<(usize, Box<str>), Failures>>,
}

#[derive(Debug)]
struct Failures {
    count: u32,
    /// The first of them.
    since: Instant,
}

impl Memory {
    pub(super) fn new(spec: HopMemory) -> Self {
        let failures = Mutex::default();
        Self { spec, failures }
    }

    /// Whether a hop may be tried for a host. Once the time is over the next failure counts anew.
    pub(super) fn admits(&self, hop: usize, host: &str) -> bool {
        let now = Instant::now();
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .get(&(hop, host.into()))
            .is_none_or(|failed| failed.count < self.spec.fails || self.is_over(failed, now))
    }

    /// Notes that a hop failed a host.
    pub(super) fn failed(&self, hop: usize, host: &str) {
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MOST {
            failures.retain(|_, failed| !self.is_over(failed, now));
        }
        if failures.len() >= MOST {
            let oldest = failures.iter().min_by_key(|(_, failed)| failed.since);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                failures.remove(&key);
            }
        }
        let failed = failures.entry((hop, host.into())).or_insert(Failures {
            count: 0,
            since: now,
        });
        if self.is_over(failed, now) {
            *failed = Failures {
                count: 0,
                since: now,
            };
        }
        failed.count += 1;
    }

    /// Notes that a hop served a host.
    pub(super) fn served(&self, hop: usize, host: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.is_empty() {
            failures.remove(&(hop, host.into()));
        }
    }

    fn is_over(&self, failed: &Failures, now: Instant) -> bool {
        now.duration_since(failed.since) >= self.spec.ttl
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn memory(fails: u32) -> Memory {
        Memory::new(HopMemory {
            ttl: Duration::from_mins(10),
            fails,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_hop_is_passed_over_for_the_host_that_it_failed_until_the_time_is_over() {
        let memory = memory(1);
        memory.failed(0, "a.example");
        assert!(!memory.admits(0, "a.example"));
        assert!(memory.admits(0, "b.example") && memory.admits(1, "a.example"));
        advance(Duration::from_mins(10)).await;
        assert!(memory.admits(0, "a.example"), "it is tried once more");
        memory.failed(0, "a.example");
        assert!(!memory.admits(0, "a.example"), "and failed again");
        memory.served(0, "a.example");
        assert!(memory.admits(0, "a.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_failures_as_are_asked_for_are_needed_within_the_time() {
        let memory = memory(2);
        memory.failed(0, "a.example");
        assert!(memory.admits(0, "a.example"));
        advance(Duration::from_mins(11)).await;
        memory.failed(0, "a.example");
        assert!(memory.admits(0, "a.example"), "the first is forgotten");
        memory.failed(0, "a.example");
        assert!(!memory.admits(0, "a.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_within_its_bound() {
        let memory = memory(1);
        for host in 0..MOST + 10 {
            memory.failed(0, &format!("h{host}.example"));
            if host == 0 {
                advance(Duration::from_secs(1)).await;
            }
        }
        let kept = memory.failures.lock().unwrap().len();
        assert_eq!(kept, MOST);
        assert!(memory.admits(0, "h0.example"), "the oldest went first");
        assert!(!memory.admits(0, &format!("h{}.example", MOST + 9)));
    }
}
