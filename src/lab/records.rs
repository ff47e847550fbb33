//! What the lab remembers: the records of its requests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::observe::Observe;
use crate::record::Record;

/// As many are kept: more than a test makes.
const MOST: usize = 10_000;

/// Keeps records, and passes them on.
#[derive(Debug)]
pub(super) struct Records {
    kept: Mutex<Kept>,
    bell: Notify,
    then: Vec<Arc<dyn Observe>>,
}

#[derive(Debug, Default)]
struct Kept {
    records: VecDeque<Record>,
    /// How many came.
    count: usize,
}

impl Records {
    pub(super) fn new(then: Vec<Arc<dyn Observe>>) -> Self {
        Self {
            kept: Mutex::default(),
            bell: Notify::new(),
            then,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those so far.
    pub(super) fn records(&self) -> Vec<Record> {
        self.kept().records.iter().cloned().collect()
    }

    /// Waits until so many have come, at most so long; those that have.
    pub(super) async fn wait(&self, count: usize, limit: Duration) -> Vec<Record> {
        let come = async {
            loop {
                let heard = self.bell.notified();
                tokio::pin!(heard);
                // One that comes between the look and the wait is heard.
                heard.as_mut().enable();
                if self.kept().count >= count {
                    return;
                }
                heard.await;
            }
        };
        let _ = timeout(limit, come).await;
        self.records()
    }
}

impl Observe for Records {
    fn record(&self, record: Box<Record>) {
        let mut kept = self.kept();
        kept.count += 1;
        if kept.records.len() == MOST {
            kept.records.pop_front();
        }
        kept.records.push_back((*record).clone());
        drop(kept);
        self.bell.notify_waiters();
        for then in &self.then {
            then.record(record.clone());
        }
    }
}
