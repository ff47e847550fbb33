//! How the process is, for those who keep it running or send it work: told without waiting for a worker.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio_util::sync::CancellationToken;

use super::workers::{Beat, LONGEST_SILENCE};
use crate::listen::room::Room;
use crate::observe::metrics::open_files;

/// From this part of the descriptors on, in hundredths, others should be sent the work.
const MOST_DESCRIPTORS: u64 = 90;

/// What the process shows of itself.
#[derive(Clone, Debug)]
pub struct Condition {
    pub(super) beats: Vec<Arc<Beat>>,
    pub(super) room: Arc<Room>,
    pub(super) closing: CancellationToken,
}

/// A worker that is not at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} was not seen at work for {} s", silence.as_secs())]
pub struct Hanging {
    worker: usize,
    silence: Duration,
}

/// Why requests had better go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hindrance {
    /// The end has begun.
    #[error("the proxy is ending")]
    Ending,
    /// Some are not served.
    #[error(transparent)]
    Hanging(#[from] Hanging),
    /// The next connection is turned away.
    #[error("all {limit} connections are taken")]
    Full {
        /// How many there may be.
        limit: usize,
    },
    /// Few more can be opened.
    #[error("{open} of {limit} file descriptors are open")]
    Descriptors {
        /// How many are.
        open: u64,
        /// How many may be.
        limit: u64,
    },
}

impl Condition {
    /// Whether every worker was seen at work lately. None is while the process ends, which has a time limit of its own.
    ///
    /// # Errors
    /// The first that was not.
    pub fn alive(&self) -> Result<(), Hanging> {
        let silences = self.beats.iter().map(|beat| beat.silence()).enumerate();
        let mut hanging = silences.filter(|(_, silence)| *silence > LONGEST_SILENCE);
        match hanging.next() {
            Some((worker, silence)) if !self.closing.is_cancelled() => {
                Err(Hanging { worker, silence })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether more requests may come.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<(), Hindrance> {
        if self.closing.is_cancelled() {
            return Err(Hindrance::Ending);
        }
        self.alive()?;
        let (open, limit) = self.connections();
        if open >= limit {
            return Err(Hindrance::Full { limit });
        }
        match (open_files(), getrlimit(Resource::RLIMIT_NOFILE)) {
            (Some(open), Ok((limit, _)))
                if open.saturating_mul(100) >= limit.saturating_mul(MOST_DESCRIPTORS) =>
            {
                Err(Hindrance::Descriptors { open, limit })
            }
            _ => Ok(()),
        }
    }

    /// How many connections clients have open, and may have.
    pub fn connections(&self) -> (usize, usize) {
        (self.room.taken(), self.room.limit())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_silent_for_too_long_hangs_unless_the_end_has_begun() {
        let condition = Condition {
            beats: vec![Arc::default(), Arc::default()],
            room: Room::new(1, None),
            closing: CancellationToken::new(),
        };
        advance(LONGEST_SILENCE).await;
        assert_eq!(condition.ready(), Ok(()));
        advance(Duration::from_secs(2)).await;
        condition.beats[0].beat();
        let told = condition.ready().unwrap_err().to_string();
        assert_eq!(told, "worker 1 was not seen at work for 7 s");
        condition.closing.cancel();
        assert_eq!(condition.alive(), Ok(()));
        assert_eq!(condition.ready(), Err(Hindrance::Ending));
    }
}
