//! One direction of a connection with a fault on it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until};

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// What is to pass next.
    pub(super) queue: BytesMut,
    pub(super) flow: Flow,
    /// How many bytes have passed.
    pub(super) passed: u64,
    /// When the last of them did.
    pub(super) moved_at: Option<Instant>,
    /// Nothing passes before that.
    pub(super) held_until: Option<Instant>,
    pub(super) pace: Option<Pace>,
    /// How many more bytes pass, where that is limited.
    pub(super) left: Option<u64>,
    corruption: Option<Corruption>,
    /// The end of a delay, or of the pause between two pieces.
    timer: Timer,
}

/// Comes back to a task when something is due.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    pub(super) fn wake_at(&mut self, at: Instant, cx: &mut Context<'_>) {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

/// What becomes of a direction once its queue is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Flow {
    /// It goes on.
    #[default]
    Passing,
    /// Its end is to be told.
    Ending,
    /// It has ended.
    Ended,
    /// Its bytes are lost, and nobody is told.
    Swallowing,
    /// None of its bytes comes.
    Silent,
    /// It was reset.
    Broken,
}

/// Bytes a second.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    /// When the next piece may pass.
    next: Option<Instant>,
}

impl Pace {
    pub(super) fn new(rate: u64) -> Self {
        Self { rate, next: None }
    }

    /// A twentieth of a second's bytes, so that it looks like a slow line and not like a dripping one.
    fn piece(&self) -> usize {
        usize::try_from((self.rate / 20).max(1)).unwrap_or(usize::MAX)
    }

    fn took(&mut self, bytes: usize, now: Instant) {
        #[expect(clippy::cast_precision_loss, reason = "a rate is no exact thing")]
        let took = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.next = Some(self.next.map_or(now, |next| next.max(now)) + took);
    }
}

/// Which bytes are changed.
#[derive(Debug)]
struct Corruption {
    /// How many bytes pass before the next one that is changed; `None` where there is none any more.
    until: Option<u64>,
    every: Option<u64>,
}

impl Lane {
    /// Lets bytes pass, behind those before.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.flow == Flow::Passing || self.flow == Flow::Ending {
            self.queue.extend_from_slice(bytes);
        }
    }

    /// Says something else than what would have come, at the end.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        self.queue.extend_from_slice(bytes);
    }

    /// Ends it so, behind what is under way.
    pub(super) fn end(&mut self, flow: Flow) {
        self.flow = flow;
    }

    /// Loses what comes from now on, once its end was told.
    pub(super) fn swallow_rest(&mut self) {
        if self.flow == Flow::Passing {
            self.flow = Flow::Swallowing;
        }
    }

    /// Takes back what has not passed.
    pub(super) fn take_back(&mut self) -> Bytes {
        self.queue.split().freeze()
    }

    /// Whether it may pass no more.
    pub(super) fn is_used_up(&self) -> bool {
        self.left == Some(0) && matches!(self.flow, Flow::Passing)
    }

    /// From now on changes the byte behind `from` others, and then every so many.
    pub(super) fn corrupt(&mut self, from: u64, every: Option<u64>) {
        self.corruption = Some(Corruption {
            until: Some(from),
            every,
        });
    }

    /// Waits until something may pass.
    pub(super) fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let paced = self.pace.as_ref().and_then(|pace| pace.next);
        match self.held_until.max(paced) {
            Some(at) if at > Instant::now() => {
                self.timer.wake_at(at, cx);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// The next bytes to pass, at most so many, as they pass. They stay until [`Lane::took`].
    pub(super) fn piece(&self, most: usize) -> Bytes {
        let mut most = most.min(self.queue.len());
        if let Some(left) = self.left {
            most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if let Some(pace) = &self.pace {
            most = most.min(pace.piece());
        }
        let mut piece = BytesMut::from(self.queue.get(..most).unwrap_or_default());
        if let Some(Corruption { until, every }) = &self.corruption {
            let mut at = *until;
            while let Some(byte) = at
                .and_then(|at| usize::try_from(at).ok())
                .and_then(|at| piece.get_mut(at))
            {
                *byte = !*byte;
                at = at.zip(*every).map(|(at, every)| at + every);
            }
        }
        piece.freeze()
    }

    /// Notes that so many of them have passed.
    pub(super) fn took(&mut self, count: usize, now: Instant) {
        drop(self.queue.split_to(count));
        let bytes = count as u64;
        self.passed += bytes;
        self.moved_at = Some(now);
        if let Some(left) = &mut self.left {
            *left -= bytes;
        }
        if let Some(pace) = &mut self.pace {
            pace.took(count, now);
        }
        if let Some(Corruption { until, every }) = &mut self.corruption {
            while let Some(at) = *until {
                if at >= bytes {
                    *until = Some(at - bytes);
                    break;
                }
                *until = every.map(|every| at + every);
            }
        }
    }
}
