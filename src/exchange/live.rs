//! The tunnels that are open, what is known of each, and how it is cut.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::Timestamp;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use uuid::Uuid;

use super::{Exchange, Identity, Presence};
use crate::cause::Phase;
use crate::client::{Claim, Labels};
use crate::failure::Failure;
use crate::record::Action;
use crate::relay::Meter;
use crate::tls::hello::ClientHello;

/// The open tunnels, by the worker that serves them: workers do not wait for each other.
#[derive(Debug)]
pub struct Live(Vec<Mutex<Tunnels>>);

#[derive(Debug, Default)]
struct Tunnels {
    open: HashMap<Uuid, Arc<Tunnel>>,
    /// Why a policy refuses some of them, until they have heard it: seldom any, so it takes no room in a tunnel.
    refused: HashMap<Uuid, Box<Failure>>,
}

/// What is known of an open tunnel. Of an idle one little is kept: what others have as well is shared with them.
#[derive(Debug)]
pub struct Tunnel {
    /// Its record's id.
    pub id: Uuid,
    /// When it was asked for.
    pub start: Timestamp,
    /// The connection that it was asked for by.
    pub presence: Arc<Presence>,
    /// For what.
    pub target: Option<(Arc<str>, u16)>,
    /// The rule that decided.
    pub rule: Option<Arc<str>>,
    /// What the rule leads to.
    pub route: Option<Arc<str>>,
    /// What has passed.
    pub meter: Arc<Meter>,
    /// Whether it was a plain request that asked for an upgrade.
    pub is_plain: bool,
    /// The target's address, where the tunnel goes straight to it.
    pub address: Option<IpAddr>,
    identity: Option<Arc<Identity>>,
    first: OnceLock<First>,
    cut: CancellationToken,
}

/// What a client was seen to say first in its tunnel.
#[derive(Clone, Debug)]
pub enum First {
    /// This.
    Hello(Arc<ClientHello>),
    /// A request of HTTP.
    Http,
    /// The greeting of SSH.
    Ssh,
    /// Something else, and no TLS.
    Other,
}

/// A tunnel's place in the list, until this is dropped.
#[derive(Debug)]
pub struct Enlisted {
    live: Arc<Live>,
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
        (0..self.0.len())
            .map(|worker| self.of(worker).open.len())
            .sum()
    }

    /// Those that are open, the oldest first.
    pub fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        let mut tunnels = Vec::new();
        for worker in 0..self.0.len() {
            tunnels.extend(self.of(worker).open.values().cloned());
        }
        tunnels.sort_by_key(|tunnel| (tunnel.start, tunnel.id));
        tunnels
    }

    /// Cuts one, if it is open.
    pub fn cut(&self, id: Uuid) -> bool {
        let found = (0..self.0.len()).find_map(|worker| self.of(worker).open.get(&id).cloned());
        if let Some(tunnel) = &found {
            tunnel.cut.cancel();
        }
        found.is_some()
    }

    /// Cuts one that the policy at work refuses, if it is still open and was not cut before.
    pub fn refuse(&self, tunnel: &Tunnel, why: Failure) -> bool {
        let mut tunnels = self.of(tunnel.presence.worker);
        if tunnel.cut.is_cancelled() || !tunnels.open.contains_key(&tunnel.id) {
            return false;
        }
        tunnels.refused.insert(tunnel.id, Box::new(why));
        drop(tunnels);
        tunnel.cut.cancel();
        true
    }
}

impl Tunnel {
    /// Whom its client said that it comes from, and where the policy of that time took labels from; nothing where it said
    /// nothing.
    pub fn claim(&self) -> Option<(&Claim, Labels)> {
        let identity = self.identity.as_deref()?;
        Some((&identity.claim, identity.labels))
    }

    /// What its client said first, where that was seen.
    pub fn first(&self) -> Option<&First> {
        self.first.get()
    }

    /// Notes what its client said first; once.
    pub fn said(&self, first: First) {
        // What it said first it said first.
        let _ = self.first.set(first);
    }
}

impl Exchange {
    /// Puts an open tunnel on the list; `address` is the target's, where the tunnel goes straight to it, and `first` what its
    /// client said first, where that was seen.
    pub fn enlist(
        &self,
        live: &Arc<Live>,
        address: Option<IpAddr>,
        first: Option<First>,
    ) -> Enlisted {
        let cut = self.presence().cut.child_token();
        let first = first.map(OnceLock::from).unwrap_or_default();
        let tunnel = Arc::new(self.tunnel(cut, address, first));
        let mut tunnels = live.of(tunnel.presence.worker);
        tunnels.open.insert(tunnel.id, tunnel.clone());
        drop(tunnels);
        Enlisted {
            live: live.clone(),
            tunnel,
        }
    }

    fn tunnel(
        &self,
        cut: CancellationToken,
        address: Option<IpAddr>,
        first: OnceLock<First>,
    ) -> Tunnel {
        let open = self.open_ref();
        let request = &open.request;
        Tunnel {
            id: request.id,
            start: request.start,
            presence: open.presence.clone(),
            target: request.target.clone(),
            rule: request.rule.clone(),
            route: request.route.clone(),
            meter: open.meter.clone(),
            is_plain: request.action == Some(Action::Forward),
            address,
            identity: request.identity.clone(),
            first,
            cut,
        }
    }
}

impl Enlisted {
    /// The tunnel.
    pub fn tunnel(&self) -> &Arc<Tunnel> {
        &self.tunnel
    }

    /// Tells of the hop that the tunnel keeps, in place of what was told before.
    pub fn keep(&mut self, exchange: &Exchange, address: Option<IpAddr>) {
        let (cut, first) = (self.tunnel.cut.clone(), self.tunnel.first.clone());
        let tunnel = Arc::new(exchange.tunnel(cut, address, first));
        let mut tunnels = self.live.of(tunnel.presence.worker);
        tunnels.open.insert(tunnel.id, tunnel.clone());
        drop(tunnels);
        self.tunnel = tunnel;
    }

    /// Waits until somebody cuts the tunnel, or the process ends.
    pub fn cut(&self) -> WaitForCancellationFuture<'_> {
        self.tunnel.cut.cancelled()
    }

    /// Why it was cut.
    pub fn why(&self) -> Failure {
        let presence = &self.tunnel.presence;
        let refusal = self
            .live
            .of(presence.worker)
            .refused
            .remove(&self.tunnel.id);
        if let Some(refusal) = refusal {
            return Failure::PolicyChanged(refusal);
        }
        if presence.cut.is_cancelled() {
            let phase = Phase::Tunnel;
            return Failure::Shutdown { phase };
        }
        Failure::Killed
    }
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        let mut tunnels = self.live.of(self.tunnel.presence.worker);
        tunnels.open.remove(&self.tunnel.id);
        tunnels.refused.remove(&self.tunnel.id);
    }
}
