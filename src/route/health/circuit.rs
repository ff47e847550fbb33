//! An upstream's circuit: what is held against it, and when that opens and closes it. Whoever asks says what time it is.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::policy::health::Health as Spec;

/// From so many hosts on, what an upstream says of its targets is taken for something that it suffers from itself.
const SEVERAL_HOSTS: usize = 3;

/// So many of them are remembered.
const MOST_HOSTS: usize = 1000;

/// What is held against an upstream.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// The failures that count, each with the cause's id.
    fails: VecDeque<(Instant, Cow<'static, str>)>,
    /// The hosts that it could not reach, each once.
    hosts: VecDeque<(Instant, String)>,
    open: Option<Open>,
    /// It was closed by a connection alone: the next failure opens it again.
    is_on_parole: bool,
    /// It refuses our credentials, and that was told.
    is_unauthorized: bool,
    /// Probes in a row: that went well, and that did not.
    probes: (u32, u32),
}

#[derive(Debug)]
struct Open {
    until: Instant,
    last: Cow<'static, str>,
    /// Whether it was opened by what the upstream said of several hosts.
    by_hosts: bool,
    /// A request is trying it.
    is_tried: bool,
}

/// What is to be told.
#[derive(Debug)]
pub(super) enum Change {
    /// It closed.
    Up,
    /// It opened: behind so many failures in a row, within `span`, the last of which is `cause`.
    Down {
        cause: Cow<'static, str>,
        count: usize,
        span: Duration,
    },
}

/// Whether an upstream may be dialled.
#[derive(Debug)]
pub(super) enum Leave {
    /// Nothing speaks against it.
    Free,
    /// By this one request, to see whether it is up again.
    Trial,
    /// Not yet: for `retry`, or until the one that tries it is done.
    Shut {
        last: Cow<'static, str>,
        retry: Option<Duration>,
    },
}

impl Circuit {
    /// Whether it is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What the upstream failed of last.
    pub(super) fn last(&self) -> Option<&Cow<'static, str>> {
        match &self.open {
            Some(open) => Some(&open.last),
            None => self.fails.back().map(|(_, cause)| cause),
        }
    }

    /// Whether it is open and nobody may try the upstream yet.
    pub(super) fn is_shut(&self, now: Instant) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.is_tried || now < open.until)
    }

    /// Leave to dial: when an open one's time is over, one request gets it.
    pub(super) fn admit(&mut self, now: Instant) -> Leave {
        let Some(open) = &mut self.open else {
            return Leave::Free;
        };
        let left = open.until.saturating_duration_since(now);
        if left.is_zero() && !open.is_tried {
            open.is_tried = true;
            return Leave::Trial;
        }
        Leave::Shut {
            last: open.last.clone(),
            retry: (!open.is_tried).then_some(left),
        }
    }

    /// The request that tried it came to nothing.
    pub(super) fn give_up_trial(&mut self) {
        if let Some(open) = &mut self.open {
            open.is_tried = false;
        }
    }

    fn close(&mut self) -> Option<Change> {
        self.open.take().map(|_| Change::Up)
    }

    /// Holds nothing against it any more.
    pub(super) fn forget(&mut self) -> Option<Change> {
        std::mem::take(self).close()
    }

    /// A connection stands, on which nothing was asked yet.
    pub(super) fn reached(&mut self) -> Option<Change> {
        let change = self.close()?;
        self.fails.clear();
        self.is_on_parole = true;
        Some(change)
    }

    /// The upstream is there, whatever it said.
    pub(super) fn answered(&mut self) -> Option<Change> {
        self.fails.clear();
        self.is_on_parole = false;
        self.close()
    }

    /// It refuses our credentials; whether that is news.
    pub(super) fn refuses_us(&mut self) -> bool {
        !std::mem::replace(&mut self.is_unauthorized, true)
    }

    /// Counts a failure; of one that speaks of a target only where it is one of several.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        spec: &Spec,
        cause: Cow<'static, str>,
        host: Option<&str>,
    ) -> Option<Change> {
        let is_old = |since: Instant| now.duration_since(since) > spec.fail_timeout;
        self.fails.retain(|(at, _)| !is_old(*at));
        self.hosts.retain(|(at, _)| !is_old(*at));
        if let Some(host) = host {
            // It answered: what it was not reached by before is over.
            self.fails.clear();
            self.hosts.retain(|(_, known)| known != host);
            self.hosts.push_back((now, host.to_owned()));
            if self.hosts.len() > MOST_HOSTS {
                self.hosts.pop_front();
            }
            let was_by_hosts = self.open.as_ref().is_some_and(|open| open.by_hosts);
            if self.hosts.len() < SEVERAL_HOSTS && !was_by_hosts {
                // It speaks of its target alone: the upstream is up.
                self.is_on_parole = false;
                return self.close();
            }
        } else {
            self.fails.push_back((now, cause.clone()));
            if self.fails.len() > spec.max_fails as usize {
                self.fails.pop_front();
            }
        }
        let by_hosts = host.is_some();
        let until = now + spec.fail_timeout;
        if let Some(open) = &mut self.open {
            // What is tried while the circuit is open, for want of another way, says nothing new.
            if open.is_tried || now >= open.until {
                open.until = until;
                open.is_tried = false;
            }
            open.last = cause;
            open.by_hosts |= by_hosts;
            return None;
        }
        let (count, first) = if by_hosts {
            (self.hosts.len(), self.hosts.front().map(|(at, _)| *at))
        } else {
            (self.fails.len(), self.fails.front().map(|(at, _)| *at))
        };
        if count < spec.max_fails as usize && !self.is_on_parole {
            return None;
        }
        self.is_on_parole = false;
        let span = first.map_or(Duration::ZERO, |first| now.duration_since(first));
        Some(self.open(until, cause, by_hosts, (count, span)))
    }

    fn open(
        &mut self,
        until: Instant,
        cause: Cow<'static, str>,
        by_hosts: bool,
        (count, span): (usize, Duration),
    ) -> Change {
        self.open = Some(Open {
            until,
            last: cause.clone(),
            by_hosts,
            is_tried: false,
        });
        Change::Down { cause, count, span }
    }

    /// A probe went well: `rise` of them in a row close it.
    pub(super) fn probe_went_well(&mut self, rise: u32) -> Option<Change> {
        self.probes = (self.probes.0.saturating_add(1), 0);
        if self.probes.0 < rise {
            return None;
        }
        let change = self.close()?;
        *self = Self::default();
        Some(change)
    }

    /// One that is made `every` so often failed.
    pub(super) fn probe_failed(
        &mut self,
        now: Instant,
        spec: &Spec,
        every: Duration,
        cause: Cow<'static, str>,
    ) -> Option<Change> {
        self.probes = (0, self.probes.1.saturating_add(1));
        let until = now + spec.fail_timeout;
        if let Some(open) = &mut self.open {
            open.until = until;
            open.last = cause;
            return None;
        }
        let count = self.probes.1;
        if count < spec.max_fails {
            return None;
        }
        let span = every * count.saturating_sub(1);
        Some(self.open(until, cause, false, (count as usize, span)))
    }
}
