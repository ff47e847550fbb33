//! The tunnels that are open, and how each is cut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use uuid::Uuid;

use super::Exchange;
use crate::relay::Meter;

/// The open tunnels, by the worker that serves them: workers do not wait for each other.
#[derive(Debug)]
pub struct Live(Vec<Mutex<Tunnels>>);

type Tunnels = HashMap<Uuid, Arc<Tunnel>>;

/// What is known of an open tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// Its record's id.
    pub id: Uuid,
    /// When it was asked for.
    pub start: Timestamp,
    /// Who asked.
    pub client: SocketAddr,
    /// For what.
    pub target: Option<(Arc<str>, u16)>,
    /// The rule that decided.
    pub rule: Option<Arc<str>>,
    /// What the rule leads to.
    pub route: Option<Arc<str>>,
    /// What has passed.
    pub meter: Arc<Meter>,
    cut: CancellationToken,
}

/// A tunnel's place in the list, until this is dropped.
#[derive(Debug)]
pub struct Enlisted {
    live: Arc<Live>,
    worker: usize,
    tunnel: Arc<Tunnel>,
}

impl Live {
    /// No tunnels, for so many workers.
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Mutex::default()).collect())
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is at least one, and the remainder is below their number"
    )]
    fn of(&self, worker: usize) -> MutexGuard<'_, Tunnels> {
        let tunnels = self.0[worker % self.0.len()].lock();
        tunnels.unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        (0..self.0.len()).map(|worker| self.of(worker).len()).sum()
    }

    /// Those that are open, the oldest first.
    pub fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        let mut tunnels = Vec::new();
        for worker in 0..self.0.len() {
            tunnels.extend(self.of(worker).values().cloned());
        }
        tunnels.sort_by_key(|tunnel| (tunnel.start, tunnel.id));
        tunnels
    }

    /// Cuts one, if it is open.
    pub fn cut(&self, id: Uuid) -> bool {
        let found = (0..self.0.len()).find_map(|worker| self.of(worker).get(&id).cloned());
        if let Some(tunnel) = &found {
            tunnel.cut.cancel();
        }
        found.is_some()
    }
}

impl Exchange {
    /// Puts an open tunnel on the list.
    pub fn enlist(&self, live: &Arc<Live>) -> Enlisted {
        let open = self.open_ref();
        let (request, presence) = (&open.request, &open.presence);
        let tunnel = Arc::new(Tunnel {
            id: request.id,
            start: request.start,
            client: presence.client.peer,
            target: request.target.clone(),
            rule: request.rule.clone(),
            route: request.route.clone(),
            meter: open.meter.clone(),
            cut: presence.cut.child_token(),
        });
        let worker = presence.worker;
        live.of(worker).insert(tunnel.id, tunnel.clone());
        Enlisted {
            live: live.clone(),
            worker,
            tunnel,
        }
    }
}

impl Enlisted {
    /// Waits until somebody cuts the tunnel, or the process ends.
    pub fn cut(&self) -> WaitForCancellationFuture<'_> {
        self.tunnel.cut.cancelled()
    }
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        self.live.of(self.worker).remove(&self.tunnel.id);
    }
}
