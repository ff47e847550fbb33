//! Limits on waits, for which no timer is set but once in a while.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer for waits of which nearly all end before their deadlines: it is made at the first wait, and moved when it fires
/// too early.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready once `deadline` has passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

/// How long nothing may happen.
#[derive(Debug)]
pub(super) struct Patience {
    pub(super) limit: Duration,
    since: Option<Instant>,
    alarm: Alarm,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            alarm: Alarm::default(),
        }
    }

    pub(super) fn renew(&mut self) {
        self.since = None;
    }

    /// Ready once the limit has passed since the first wait after the last progress.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.limit == Duration::MAX {
            return Poll::Pending;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        self.alarm.poll(cx, since + self.limit)
    }
}
