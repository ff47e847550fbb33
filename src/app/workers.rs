//! The threads that serve: each has a runtime, listeners and connections of its own, so that what belongs to a request
//! stays on its core.
//!
//! A worker's runtime lives until the last task of all workers has ended: what one of them began, a connection to a name
//! server perhaps, the others may use.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// As many as this process has CPUs.
pub fn count() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A worker that was not seen at work for longer than this hangs.
pub(super) const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// When a worker was last seen at work.
#[derive(Debug)]
pub(super) struct Beat {
    start: Instant,
    /// In milliseconds from the start.
    last: AtomicU64,
}

impl Beat {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn beat(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// How long ago that was.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }
}

impl Default for Beat {
    fn default() -> Self {
        Self::new()
    }
}

/// What ends the workers, and who of them has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Workers {
    end: CancellationToken,
    alive: TaskTracker,
}

impl Workers {
    /// Starts a worker; `begin` is called inside its runtime, and spawns its first tasks.
    pub(super) fn start(
        &self,
        name: String,
        begin: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        begin()?;
        drop(inside);
        let (end, alive) = (self.end.clone(), self.alive.token());
        let run = move || {
            runtime.block_on(end.cancelled());
            // What still blocks, as the judgement of a certificate may, is not waited for.
            runtime.shutdown_background();
            drop(alive);
        };
        thread::Builder::new().name(name).spawn(run)?;
        Ok(())
    }

    /// Ends all of them, with what they still do.
    pub(super) async fn finish(&self) {
        self.end.cancel();
        self.alive.close();
        self.alive.wait().await;
    }
}
