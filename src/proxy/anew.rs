//! Open tunnels, held against a policy that took effect after they were decided.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};

use http::Method;
use jiff::Timestamp;

use super::decide::denied;
use super::tunnel::of_hello;
use super::{Proxy, is_for};
use crate::client::Claim;
use crate::exchange::Exchange;
use crate::exchange::live::{Enlisted, First, Tunnel};
use crate::failure::{Failure, Stranger};
use crate::net::here::is_here;
use crate::policy::flight::Flight;
use crate::policy::guard::reached;
use crate::policy::{Lookup, OnReload, Policy, Query, Scheme, Verdict};
use crate::snapshot::Snapshot;
use crate::target::{Host, Target};

static NOBODY: Claim = Claim::NONE;

/// Hears what the client of an open tunnel says first, and holds the tunnel once more against the policy at work: it may be
/// another than the one that has let it out.
#[derive(Debug)]
pub(super) struct Ear {
    proxy: Weak<Proxy>,
    tunnel: Arc<Tunnel>,
    decided_by: Option<Arc<str>>,
}

impl Ear {
    /// For a tunnel that is on the list.
    pub(super) fn new(proxy: &Arc<Proxy>, exchange: &Exchange, enlisted: &Enlisted) -> Self {
        Self {
            proxy: Arc::downgrade(proxy),
            tunnel: enlisted.tunnel().clone(),
            decided_by: exchange.policy().cloned(),
        }
    }

    /// Hears it; a tunnel that is refused for it is cut.
    pub(super) fn hear(self, first: First) {
        self.tunnel.said(first);
        // A policy that takes effect behind this sees what was said, and one before it is seen here.
        fence(Ordering::SeqCst);
        if let Some(proxy) = self.proxy.upgrade() {
            proxy.hold(&self.tunnel, self.decided_by.as_ref());
        }
    }
}

impl Proxy {
    /// Cuts the open tunnels that the policy at work refuses, where it wants that, and says how many those are.
    ///
    /// It is called behind the change of policies. A tunnel that is enlisted before that is found here; one that is enlisted
    /// later finds the new policy itself ([`Self::look_again`]).
    pub fn close_blocked(&self) -> Option<usize> {
        let snapshot = self.snapshot.load_full();
        if snapshot.policy.on_reload == OnReload::Keep {
            return None;
        }
        // What clients said before this is seen below; who speaks behind it finds the new policy there ([`Ear`]).
        fence(Ordering::SeqCst);
        let now = Timestamp::now();
        let cut = self.live.tunnels().into_iter().filter(|tunnel| {
            let refusal = refusal(&snapshot, tunnel, now);
            refusal.is_some_and(|why| self.live.refuse(tunnel, why))
        });
        Some(cut.count())
    }

    /// Puts a tunnel that was granted on the list of the open ones.
    pub(super) fn enlist(
        &self,
        exchange: &Exchange,
        address: Option<IpAddr>,
        first: Option<First>,
    ) -> Enlisted {
        let enlisted = exchange.enlist(&self.live, address, first);
        self.look_again(exchange, &enlisted);
        enlisted
    }

    /// Cuts an enlisted tunnel that another policy than the one at work has let out, where that refuses it and wants it cut.
    pub(super) fn look_again(&self, exchange: &Exchange, enlisted: &Enlisted) {
        // Behind the entry in the list: a policy that takes effect after this look finds the tunnel there.
        self.hold(enlisted.tunnel(), exchange.policy());
    }

    fn hold(&self, tunnel: &Tunnel, decided_by: Option<&Arc<str>>) {
        let snapshot = self.snapshot.load();
        let policy = &snapshot.policy;
        let is_own = decided_by.is_some_and(|hash| Arc::ptr_eq(hash, &policy.hash));
        if policy.on_reload == OnReload::Keep || is_own {
            return;
        }
        if let Some(why) = refusal(&snapshot, tunnel, Timestamp::now()) {
            self.live.refuse(tunnel, why);
        }
    }
}

/// Why a tunnel would surely be refused, were it asked for now. Whatever is not known of it speaks for it.
fn refusal(snapshot: &Snapshot, tunnel: &Tunnel, now: Timestamp) -> Option<Failure> {
    if let Err(failure) = is_for(snapshot, &tunnel.presence) {
        return Some(failure);
    }
    let policy = &snapshot.policy;
    let claim = match tunnel.claim() {
        None => &NOBODY,
        // What was a label then may be part of a name now.
        Some((claim, labels)) if labels != policy.labels && claim.is_given => return None,
        Some((claim, _)) => claim,
    };
    if let Some(stranger) = stranger(snapshot, tunnel, claim) {
        return Some(stranger.into());
    }
    let (host, port) = tunnel.target.as_ref()?;
    let target = Target::new(Host::parse(host).ok()?, *port);
    // The head that it began with is gone.
    if tunnel.is_plain && policy.looks_at_heads() {
        return None;
    }
    let flight = tunnel.first().map(flight_of);
    let asks_where = policy.guards.asks_whether_here(&target);
    let ip = target.host.ip().filter(|_| asks_where);
    let query = Query {
        client: &tunnel.presence.client,
        claim,
        scheme: if tunnel.is_plain {
            Scheme::Http
        } else {
            Scheme::Connect
        },
        method: if tunnel.is_plain {
            &Method::GET
        } else {
            &Method::CONNECT
        },
        target: &target,
        path: None,
        headers: None,
        is_here: ip.map(|ip| reached(ip).any(is_here)),
        addresses: tunnel.address.map(Lookup::Among),
        first_flight: flight.as_ref(),
        now,
    };
    let decision = policy.decide_by_what_is_known(&query)?;
    match &decision.verdict {
        Verdict::Deny(denial) => Some(denied(policy, &decision, denial, &target)),
        Verdict::Route(route) if policy.is_straight(*route) => {
            refused_by_guard(policy, tunnel, &target)
        }
        Verdict::Route(_) => None,
    }
}

/// Whether the client proved by a password to be a user who is there no more. The password is gone; and whether a listener
/// asks at all does not change while the process runs.
fn stranger(snapshot: &Snapshot, tunnel: &Tunnel, claim: &Claim) -> Option<Stranger> {
    let presence = &tunnel.presence;
    let is_by_password = presence.asks_who && presence.proven.is_none() && claim.is_proven;
    let gate = snapshot.gate.as_ref().filter(|_| is_by_password)?;
    let name = claim.user.as_deref().unwrap_or_default();
    (!gate.has(name)).then_some(Stranger::Gone)
}

/// Asks the guards for the address that a tunnel goes to, which would be dialled again.
fn refused_by_guard(policy: &Policy, tunnel: &Tunnel, target: &Target) -> Option<Failure> {
    let address = SocketAddr::new(tunnel.address?, target.port);
    let client = &tunnel.presence.client;
    let guard = policy.guards.admit(address, client, is_here).err()?;
    Some(Failure::of_guard(guard, target.to_string()))
}

fn flight_of(first: &First) -> Flight {
    match first {
        First::Hello(hello) => of_hello(hello),
        First::Http => Flight::Http,
        First::Ssh => Flight::Ssh,
        First::Other => Flight::Other,
    }
}
