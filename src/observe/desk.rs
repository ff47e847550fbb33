//! Where things wait for the one thread that works on them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Things in wait, beside those that the thread has in hand: about 10 MiB of records when it is full.
pub(super) const QUEUE: usize = 8192;

/// A thread rests so long, as a rule, before it looks for more: to be woken for each thing would cost more than to work on it.
pub(super) const REST: Duration = Duration::from_millis(5);

/// A bounded queue that is emptied at once. Nobody waits to put something on it: what it has no room for is dropped and
/// counted.
#[derive(Debug)]
pub(super) struct Desk<T> {
    pile: Mutex<Pile<T>>,
    bell: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Pile<T> {
    things: Vec<T>,
    /// The thread waits for the bell; else it looks by itself.
    is_waited_for: bool,
    /// No more comes.
    is_closed: bool,
    /// The thread is to look up, though there may be nothing for it.
    is_nudged: bool,
}

/// What became of something that was put on a desk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It waits.
    Taken,
    /// It was dropped: the first for which there was no room.
    FirstDropped,
    /// It was dropped.
    Dropped,
}

impl<T> Default for Desk<T> {
    fn default() -> Self {
        Self {
            pile: Mutex::new(Pile {
                things: Vec::new(),
                is_waited_for: false,
                is_closed: false,
                is_nudged: false,
            }),
            bell: Condvar::new(),
            dropped: AtomicU64::new(0),
        }
    }
}

impl<T> Desk<T> {
    fn pile(&self) -> MutexGuard<'_, Pile<T>> {
        self.pile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something on it, if there is room.
    pub(super) fn put(&self, thing: T) -> Put {
        let mut pile = self.pile();
        let is_full = pile.things.len() >= QUEUE;
        if is_full || pile.is_closed {
            drop(pile);
            let before = self.dropped.fetch_add(1, Ordering::Relaxed);
            return if before == 0 && is_full {
                Put::FirstDropped
            } else {
                Put::Dropped
            };
        }
        pile.things.push(thing);
        let is_waited_for = std::mem::take(&mut pile.is_waited_for);
        drop(pile);
        if is_waited_for {
            self.bell.notify_one();
        }
        Put::Taken
    }

    /// Takes all in place of `taken`, which is empty, and waits for something or a nudge; `false` where no more comes.
    pub(super) fn take(&self, taken: &mut Vec<T>) -> bool {
        let mut pile = self.pile();
        while pile.things.is_empty() && !pile.is_closed && !pile.is_nudged {
            pile.is_waited_for = true;
            pile = self.bell.wait(pile).unwrap_or_else(PoisonError::into_inner);
        }
        pile.is_waited_for = false;
        std::mem::swap(&mut pile.things, taken);
        std::mem::take(&mut pile.is_nudged) || !taken.is_empty()
    }

    /// Rests for a while, unless the end has come.
    pub(super) fn rest(&self, limit: Duration) {
        let pile = self.pile();
        let rested = self
            .bell
            .wait_timeout_while(pile, limit, |pile| !pile.is_closed);
        drop(rested);
    }

    /// Makes the thread look up.
    pub(super) fn nudge(&self) {
        self.pile().is_nudged = true;
        self.bell.notify_one();
    }

    /// Lets nothing more in, and lets the thread end once it is empty.
    fn close(&self) {
        self.pile().is_closed = true;
        self.bell.notify_one();
    }

    /// Whether no more comes.
    #[cfg(feature = "otlp")]
    pub(super) fn is_closed(&self) -> bool {
        self.pile().is_closed
    }

    /// Counts things that were lost behind it.
    pub(super) fn lose(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// How many were lost.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A desk and the thread that works at it.
#[derive(Debug)]
pub(super) struct Office<T> {
    pub(super) desk: Arc<Desk<T>>,
    /// Hears that the thread has ended.
    ended: Mutex<Receiver<()>>,
}

impl<T: Send + 'static> Office<T> {
    /// Starts a thread of this name that does `work` until no more comes.
    pub(super) fn open(name: &str, work: impl FnOnce(&Desk<T>) + Send + 'static) -> Self {
        let (ending, ended) = sync_channel(1);
        let desk = Arc::<Desk<T>>::default();
        let of_worker = desk.clone();
        let worker = move || {
            work(&of_worker);
            // Nobody may be waiting for it any more.
            let _ = ending.send(());
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        if let Err(error) = thread.spawn(worker) {
            tracing::error!(%error, "no thread for {name}");
        }
        Self {
            desk,
            ended: Mutex::new(ended),
        }
    }

    /// Lets the thread work off what waits, for `limit` at most: whether it has ended.
    pub(super) fn close(&self, limit: Duration) -> bool {
        self.desk.close();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
    }
}
