//! Where records are shown: counted, kept for a while, told to whoever follows, and passed on to those that keep them.
//!
//! A thread of its own does it: a request only puts its record on a desk. What is slow behind it, a disk or a reader, has a
//! bounded queue of its own and loses records, which are counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use uuid::Uuid;

use super::Observe;
use super::desk::{Desk, Office, Put, REST};
use super::kept::{Filter, Kept};
use super::metrics::Metrics;
use crate::record::Record;

/// Records that a follower may be behind. One that is slower misses the oldest.
pub const BEHIND: usize = 512;

/// A record that is followed, and its text, which is made once for all who want it.
#[derive(Debug)]
pub struct Followed {
    /// The record.
    pub record: Arc<Record>,
    text: OnceLock<String>,
}

impl Followed {
    /// Its text, as whoever asks first makes it.
    pub fn text_by(&self, make: impl FnOnce(&Record) -> String) -> &str {
        self.text.get_or_init(|| make(&self.record))
    }
}

/// Takes every record: what it has no room for, it loses and counts.
pub trait Keep: std::fmt::Debug + Send + Sync {
    /// Its name, by which losses are told.
    fn name(&self) -> &'static str;

    /// Takes a record. Must not block.
    fn keep(&self, record: Arc<Record>);

    /// How many were lost.
    fn dropped(&self) -> u64;

    /// Works off what waits.
    fn close(&self, limit: Duration);
}

/// Records that outlast the process.
pub trait History: Keep {
    /// Those that a filter admits, as JSON, the newest first, at most `limit`. Blocks.
    ///
    /// # Errors
    /// What kept it from reading, in words.
    fn find(&self, filter: &Filter, limit: usize) -> Result<Vec<String>, String>;

    /// The one with this id, as JSON. Blocks.
    ///
    /// # Errors
    /// What kept it from reading, in words.
    fn get(&self, id: Uuid) -> Result<Option<String>, String>;
}

/// Counts, keeps and tells records, and passes them on.
#[derive(Debug)]
pub struct Board {
    office: Office<Box<Record>>,
    shown: Arc<Shown>,
}

#[derive(Debug)]
struct Shown {
    metrics: Metrics,
    kept: Mutex<Kept>,
    followers: broadcast::Sender<Arc<Followed>>,
    missed: AtomicU64,
    history: Option<Arc<dyn History>>,
    /// The history among them.
    keepers: Vec<Arc<dyn Keep>>,
}

impl Shown {
    fn show(&self, record: Box<Record>) {
        self.metrics.count(&record);
        let record: Arc<Record> = record.into();
        self.kept().push(record.clone());
        if self.followers.receiver_count() > 0 {
            let followed = Followed {
                record: record.clone(),
                text: OnceLock::new(),
            };
            // The last may leave at this moment.
            let _ = self.followers.send(Arc::new(followed));
        }
        for keeper in &self.keepers {
            keeper.keep(record.clone());
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    /// A board in front of those that take every record, and of a history.
    pub fn new(mut keepers: Vec<Arc<dyn Keep>>, history: Option<Arc<dyn History>>) -> Self {
        keepers.extend(history.clone().map(|history| history as Arc<dyn Keep>));
        let shown = Arc::new(Shown {
            metrics: Metrics::default(),
            kept: Mutex::default(),
            followers: broadcast::Sender::new(BEHIND),
            missed: AtomicU64::new(0),
            history,
            keepers,
        });
        let of_thread = shown.clone();
        let office = Office::open("board", move |desk: &Desk<Box<Record>>| {
            let mut taken = Vec::new();
            while desk.take(&mut taken) {
                taken.drain(..).for_each(|record| of_thread.show(record));
                desk.rest(REST);
            }
        });
        Self { office, shown }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shown.metrics
    }

    /// The last records. What holds it holds up the thread, but no request.
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shown.kept()
    }

    /// Every record from now on.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Followed>> {
        self.shown.followers.subscribe()
    }

    /// How many follow.
    pub fn followers(&self) -> usize {
        self.shown.followers.receiver_count()
    }

    /// Records that outlast the process, where they are kept.
    pub fn history(&self) -> Option<Arc<dyn History>> {
        self.shown.history.clone()
    }

    /// Counts records that a slow follower missed.
    pub fn missed(&self, count: u64) {
        self.shown.missed.fetch_add(count, Ordering::Relaxed);
    }

    /// Records that were lost, by what lost them.
    pub fn dropped(&self) -> Vec<(&'static str, u64)> {
        let mut dropped = vec![
            ("board", self.office.desk.dropped()),
            ("stream", self.shown.missed.load(Ordering::Relaxed)),
        ];
        let keepers = self.shown.keepers.iter();
        dropped.extend(keepers.map(|keeper| (keeper.name(), keeper.dropped())));
        dropped
    }

    /// Shows what waits, and ends, and so do those behind it.
    pub fn close(&self, limit: Duration) {
        if !self.office.close(limit) {
            tracing::error!("the last records were not shown");
        }
        for keeper in &self.shown.keepers {
            keeper.close(limit);
        }
    }
}

impl Observe for Board {
    fn record(&self, record: Box<Record>) {
        if self.office.desk.put(record) == Put::FirstDropped {
            tracing::warn!("records come faster than they are counted: some are dropped");
        }
    }
}
