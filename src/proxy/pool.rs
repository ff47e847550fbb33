//! Kept connections for plain requests, by route and target.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use super::upload::Outgoing;
use crate::net::socket::Socket;
use crate::policy::RouteId;
use crate::route::Form;
use crate::target::Target;

/// How long an unused connection is kept: less than the 60 s after which common servers close theirs.
const KEPT: Duration = Duration::from_secs(50);

/// Unused connections kept for one route and target.
const KEPT_EACH: usize = 512;

/// The connections that wait for their next request.
#[derive(Debug, Default)]
pub struct Pool {
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    idle: HashMap<(RouteId, Target), Vec<Idle>>,
    /// Nothing is kept any more.
    is_closed: bool,
}

/// A connection to send one request on. Dropped, it closes; [`Pool::give_back`] keeps it.
#[derive(Debug)]
pub struct Lease {
    /// Where requests are written.
    pub sender: SendRequest<Outgoing>,
    /// The connection.
    pub socket: Socket,
    /// How a request's target is written on it.
    pub form: Form,
    /// Whether it carried a request before.
    pub reused: bool,
    /// The worker that opened it, and keeps it.
    pub worker: usize,
    route: RouteId,
    target: Target,
}

#[derive(Debug)]
struct Idle {
    lease: Lease,
    since: Instant,
}

impl Lease {
    /// A connection that was just opened.
    pub fn fresh(
        sender: SendRequest<Outgoing>,
        socket: Socket,
        form: Form,
        worker: usize,
        route: RouteId,
        target: Target,
    ) -> Self {
        Self {
            sender,
            socket,
            form,
            reused: false,
            worker,
            route,
            target,
        }
    }
}

impl Pool {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection that was used last and that `admits` lets through.
    pub fn take(
        &self,
        route: RouteId,
        target: &Target,
        admits: impl Fn(&Form, &Socket) -> bool,
    ) -> Option<Lease> {
        if target.zone.is_some() {
            return None;
        }
        let shelf = &mut self.shelf();
        // What stays empty, and what lies below the one that is taken, is left to the sweep.
        let waiting = shelf.idle.get_mut(&(route, target.clone()))?;
        let now = Instant::now();
        let mut at = waiting.len();
        while let Some(idle) = at.checked_sub(1).and_then(|below| waiting.get(below)) {
            at -= 1;
            if idle.lease.sender.is_closed() || now - idle.since >= KEPT {
                waiting.remove(at);
            } else if admits(&idle.lease.form, &idle.lease.socket) {
                return Some(waiting.remove(at).lease);
            }
        }
        None
    }

    /// Whether a connection was kept for this lately: it may be in use.
    pub fn knows(&self, route: RouteId, target: &Target) -> bool {
        self.shelf().idle.contains_key(&(route, target.clone()))
    }

    /// Keeps a connection whose answer was read whole.
    pub fn give_back(&self, mut lease: Lease) {
        // Targets compare without their zone; a scoped address is too rare to be kept for.
        if lease.sender.is_closed() || lease.target.zone.is_some() {
            return;
        }
        lease.reused = true;
        let mut shelf = self.shelf();
        if shelf.is_closed {
            return;
        }
        let waiting = shelf
            .idle
            .entry((lease.route, lease.target.clone()))
            .or_default();
        if waiting.len() < KEPT_EACH {
            waiting.push(Idle {
                lease,
                since: Instant::now(),
            });
        }
    }

    /// Closes all that wait, and keeps nothing from now on.
    pub fn close(&self) {
        let mut shelf = self.shelf();
        shelf.is_closed = true;
        shelf.idle.clear();
    }

    /// Closes what has waited too long or was closed by its server.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.shelf().idle.retain(|_, waiting| {
            waiting.retain(|idle| !idle.lease.sender.is_closed() && now - idle.since < KEPT);
            !waiting.is_empty()
        });
    }
}
