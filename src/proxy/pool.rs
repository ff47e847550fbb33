//! Kept connections for plain requests, by route and target.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::patience::Alarm;
use super::upload::Outgoing;
use crate::net::places::Held;
use crate::net::socket::Socket;
use crate::net::wire::Heard;
use crate::policy::RouteId;
use crate::policy::dns::AskId;
use crate::route::Form;
use crate::route::chain::Link;
use crate::target::Target;

/// How long an unused connection is kept: less than the 60 s after which common servers close theirs.
const KEPT: Duration = Duration::from_secs(50);

/// Unused connections kept for one route and target.
const KEPT_EACH: usize = 512;

/// A route, and who was asked for the target's name where a rule says so: others may know it elsewhere.
pub type Way = (RouteId, Option<AskId>);

/// The connections that wait for their next request.
#[derive(Debug)]
pub struct Pool {
    most: usize,
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    idle: HashMap<(Way, Target), Vec<Idle>>,
    /// How many wait in all.
    count: usize,
    /// Nothing is kept any more.
    is_closed: bool,
}

/// A connection to send one request on. Dropped, it closes; [`Pool::give_back`] keeps it. In a box: it changes hands a dozen
/// times for each request.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub struct Lease {
    /// Where requests are written.
    pub sender: SendRequest<Outgoing>,
    /// The connection.
    pub socket: Socket,
    /// How much its far side has said.
    pub heard: Heard,
    /// How a request's target is written on it.
    pub form: Form,
    /// Whether its far end is the target itself, rather than an upstream.
    pub is_end_to_end: bool,
    /// The one client whose requests it may carry, where there is one.
    pub only_for: Option<SocketAddr>,
    /// The address of the target that an upstream was told, where it was told one.
    pub told: Option<Box<SocketAddr>>,
    /// What it occupies.
    pub held: Held,
    /// The task that runs it: ended, the connection closes at once.
    pub task: AbortHandle,
    /// Whether the upstream needs not be told any more who we are.
    pub knows_us: bool,
    /// The hop that it leads by.
    pub hop: Arc<str>,
    /// Its hop, where that is one of a chain.
    pub link: Option<Box<Link>>,
    /// Whether it carried a request before.
    pub reused: bool,
    /// Whether it may serve later requests.
    pub is_lasting: bool,
    /// For the wait for an answer.
    pub alarm: Alarm,
    /// The worker that opened it, and keeps it.
    pub worker: usize,
    /// The way that it was opened by.
    pub way: Way,
    /// The target that it was opened for.
    pub target: Target,
}

#[derive(Debug)]
struct Idle {
    lease: Box<Lease>,
    since: Instant,
}

impl Pool {
    /// One for each worker, of a process that keeps so many connections in all.
    pub fn of_workers(workers: usize, kept: usize) -> Vec<Arc<Self>> {
        let most = (kept / workers.max(1)).max(1);
        let pool = || {
            Arc::new(Self {
                most,
                shelf: Mutex::default(),
            })
        };
        (0..workers).map(|_| pool()).collect()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection that was used last and that `admits` lets through.
    pub fn take(
        &self,
        way: Way,
        target: &Target,
        now: Instant,
        admits: impl Fn(&Lease) -> bool,
    ) -> Option<Box<Lease>> {
        if target.zone.is_some() {
            return None;
        }
        let Shelf { idle, count, .. } = &mut *self.shelf();
        // What stays empty, and what lies below the one that is taken, is left to the sweep.
        let waiting = idle.get_mut(&(way, target.clone()))?;
        let mut at = waiting.len();
        while let Some(idle) = at.checked_sub(1).and_then(|below| waiting.get(below)) {
            at -= 1;
            if idle.lease.sender.is_closed() || now - idle.since >= KEPT {
                waiting.remove(at);
                *count -= 1;
            } else if admits(&idle.lease) {
                let idle = waiting.remove(at);
                *count -= 1;
                // It may have had to give way.
                if idle.lease.held.wake() {
                    return Some(idle.lease);
                }
            }
        }
        None
    }

    /// Whether a connection was kept for this lately: it may be in use.
    pub fn knows(&self, way: Way, target: &Target) -> bool {
        self.shelf().idle.contains_key(&(way, target.clone()))
    }

    /// Keeps a connection whose answer was read whole.
    pub fn give_back(&self, mut lease: Box<Lease>) {
        // Targets compare without their zone; a scoped address is too rare to be kept for.
        if lease.sender.is_closed() || lease.target.zone.is_some() || !lease.is_lasting {
            return;
        }
        lease.reused = true;
        let mut shelf = self.shelf();
        if shelf.is_closed {
            return;
        }
        if shelf.count >= self.most {
            shelf.close_older_half();
        }
        let waiting = shelf
            .idle
            .entry((lease.way, lease.target.clone()))
            .or_default();
        if waiting.len() < KEPT_EACH {
            lease.held.rest(&lease.socket);
            waiting.push(Idle {
                lease,
                since: Instant::now(),
            });
            shelf.count += 1;
        }
    }

    /// Closes all that wait, and keeps nothing from now on.
    pub fn close(&self) {
        let mut shelf = self.shelf();
        shelf.is_closed = true;
        shelf.idle.clear();
        shelf.count = 0;
    }

    /// Closes what has waited too long or was closed by its server.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.shelf()
            .retain(|idle| !idle.lease.sender.is_closed() && now - idle.since < KEPT);
    }
}

impl Shelf {
    fn retain(&mut self, stays: impl Fn(&Idle) -> bool) {
        self.count = 0;
        self.idle.retain(|_, waiting| {
            waiting.retain(&stays);
            self.count += waiting.len();
            !waiting.is_empty()
        });
    }

    /// Half at a time, so that a full shelf is not looked through for each connection.
    fn close_older_half(&mut self) {
        let mut moments: Vec<_> = self
            .idle
            .values()
            .flatten()
            .map(|idle| idle.since)
            .collect();
        if moments.is_empty() {
            return;
        }
        let middle = (moments.len() - 1) / 2;
        let (_, middle, _) = moments.select_nth_unstable(middle);
        let middle = *middle;
        self.retain(|idle| idle.since > middle);
    }
}
