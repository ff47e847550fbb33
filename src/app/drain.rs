//! The end: no new connections, time for the old ones, then none.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// After the cut, the records of what was cut are waited for this long.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// The tasks of the process and the two signals that end them.
#[derive(Debug)]
pub struct Drain {
    tracker: TaskTracker,
    closing: CancellationToken,
    cut: CancellationToken,
    limit: Duration,
}

impl Drain {
    /// Watches over the tasks on `tracker`; open tunnels have `limit` when it comes to an end.
    pub fn new(tracker: TaskTracker, limit: Duration) -> Self {
        Self {
            tracker,
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
            limit,
        }
    }

    /// Cancelled when nothing new may begin.
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Cancelled when what is open ends by force.
    pub fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Starts a task that the end waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Ends everything: at once when `hurry` is ready, else when the limit is over or nothing is left. `connections` counts
    /// those that clients have open.
    pub async fn finish(
        &self,
        hurry: impl Future<Output = ()>,
        connections: impl FnOnce() -> usize,
    ) {
        self.closing.cancel();
        self.tracker.close();
        tracing::info!(limit = ?self.limit, "draining; a second signal ends it now");
        tokio::select! {
            biased;
            () = self.tracker.wait() => return,
            () = tokio::time::sleep(self.limit) => {}
            () = hurry => {}
        }
        let connections = connections();
        if connections > 0 {
            tracing::warn!(connections, "cutting what is still open");
        }
        self.cut.cancel();
        if timeout(LAST_RECORDS, self.tracker.wait()).await.is_err() {
            tracing::error!(tasks = self.tracker.len(), "some tasks did not end");
        }
    }
}
