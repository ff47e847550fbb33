//! The ways out, behind one seam: whatever a rule leads to is a [`Dial`].

pub mod assemble;
pub mod direct;
pub mod upstream;

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::cause::{Cause, Kind, Phase};
use crate::client::Client;
use crate::exchange::Trail;
use crate::failure::{Failure, classify, classify_try};
use crate::net::connect::{self, Outcome, Try};
use crate::net::resolve::{ResolveError, Resolver, is_teredo};
use crate::net::socket::Socket;
use crate::policy::Policy;
use crate::policy::guard::{Admitted, Guard};
use crate::secret::Secret;
use crate::target::{Host, Target};
use crate::timeouts::Timeouts;

/// A future on the heap.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way out.
pub trait Dial: Debug + Send + Sync {
    /// Opens a connection for `plan`, noting each step on `trail`.
    fn dial<'a>(&'a self, plan: &'a Plan, trail: &'a Trail)
    -> BoxFuture<'a, Result<Conn, Failure>>;
}

/// Everything that a dial needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who asks.
    pub client: Client,
    /// For what.
    pub target: Target,
    /// What the connection is for.
    pub purpose: Purpose,
    /// What the policy's own lookup of the target gave, where it made one: nothing else is dialled, and a name that it could
    /// not find is not looked up again.
    pub addresses: Option<Result<Vec<IpAddr>, ResolveError>>,
    /// How long each wait may take.
    pub timeouts: Arc<Timeouts>,
    /// What the next proxy gets as Via with a CONNECT: the client's entries and ours.
    pub via: String,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Opaque bytes for the target.
    Tunnel,
    /// Plain HTTP requests for the target.
    Forward,
}

/// An open connection.
#[derive(Debug)]
pub struct Conn {
    /// The connection itself.
    pub socket: Socket,
    /// What the far side sent before it was asked.
    pub early: Bytes,
    /// How a plain request is written on it.
    pub form: Form,
    /// Whether its far end is the target itself, rather than an upstream.
    pub is_end_to_end: bool,
}

/// The form of a plain request's target (RFC 9112, section 3.2).
#[derive(Clone, Debug)]
pub enum Form {
    /// To an origin: the path alone.
    Origin,
    /// To a proxy: the whole URL.
    Absolute {
        /// The proxy's name in the policy.
        upstream: Arc<str>,
        /// The `Proxy-Authorization` to add.
        credentials: Option<Secret>,
    },
}

/// Names to addresses: the policy's pins first, then the system's resolver.
#[derive(Clone, Debug)]
pub struct Names {
    policy: Arc<Policy>,
    resolver: Arc<Resolver>,
}

impl Names {
    /// Joins a policy's pins with a resolver.
    pub fn new(policy: Arc<Policy>, resolver: Arc<Resolver>) -> Self {
        Self { policy, resolver }
    }

    /// Finds a host's addresses.
    pub async fn lookup(
        &self,
        host: &Host,
        limit: Duration,
        trail: &Trail,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let name = match host {
            Host::Ip(ip) => return Ok(vec![*ip]),
            Host::Name(name) => name,
        };
        if let Some(pinned) = self.policy.pinned(name) {
            trail.pinned(pinned);
            return Ok(pinned.to_vec());
        }
        trail.enter(Phase::Dns);
        let started = Instant::now();
        let found = self.resolver.resolve(name, limit).await;
        match &found {
            Ok(found) => trail.resolved(name, started.elapsed(), found),
            Err(error) => trail.unresolved(name, started.elapsed(), error),
        }
        Ok(found?.addresses)
    }

    /// Names a failure to use a target's addresses after what is wrong with the addresses themselves, where that is known.
    fn doubted(&self, target: &Target, addresses: &[IpAddr], failure: Failure) -> Failure {
        let Host::Name(name) = &target.host else {
            return failure;
        };
        if self.policy.pinned(name).is_some() || !may_be_of_address(&failure) {
            return failure;
        }
        match self.resolver.doubt(name, addresses) {
            Some(doubt) => Failure::Answer {
                name: name.clone(),
                doubt,
                failure: Box::new(failure),
            },
            None => failure,
        }
    }
}

/// Whether another address might have gone better: not where this host has run out of something or forbids it.
fn may_be_of_address(failure: &Failure) -> bool {
    let cause = classify(failure);
    matches!(cause.phase(), Some(Phase::Connect | Phase::Policy))
        || cause.kind == Kind::ProxyNoRoute
}

/// Judges one address.
type Judge<'a> = &'a (dyn Fn(SocketAddr) -> Result<Admitted, Guard> + Sync);

/// Judges addresses and connects to the first that answers. `name` makes a cause of what each try showed: of the
/// target, or of the upstream.
async fn connect(
    target: &Target,
    addresses: Vec<IpAddr>,
    names: &Names,
    judge: Judge<'_>,
    name: fn(Kind) -> Cause,
    timeouts: &Timeouts,
    trail: &Trail,
) -> Result<Socket, Failure> {
    trail.enter(Phase::Connect);
    let started = Instant::now();
    let judged = addresses
        .iter()
        .map(|ip| judge(SocketAddr::new(*ip, target.port)));
    let (admitted, refused): (Vec<_>, Vec<_>) = judged.partition(Result::is_ok);
    let admitted: Vec<Admitted> = admitted.into_iter().flatten().collect();
    if let (true, Some(guard)) = (
        admitted.is_empty(),
        refused
            .into_iter()
            .filter_map(Result::err)
            .min_by_key(|guard| rank(*guard)),
    ) {
        let mut failure = Failure::of_guard(guard, target.to_string());
        // What another guard refuses stays denied, whatever the answer looks like: it may be there to reach inwards.
        let is_forged = guard != Guard::Own && addresses.iter().all(|ip| is_teredo(*ip));
        if guard == Guard::Special || is_forged {
            failure = names.doubted(target, &addresses, failure);
        }
        trail.failed(name(classify(&failure).kind), started.elapsed());
        return Err(failure);
    }
    if let Some(guard) = admitted.iter().find_map(|admitted| admitted.would()) {
        trail.would(guard.name());
    }
    let limits = connect::Limits {
        total: timeouts.connect,
        per_address: timeouts.connect_address,
        stagger: timeouts.connect_stagger,
    };
    let note = |attempt: Try| {
        if let Outcome::Abandoned = attempt.outcome {
            trail.abandoned(&attempt);
        } else {
            trail.tried(&attempt, classify_try(&attempt.outcome).map(name));
        }
    };
    let connecting = connect::connect(&admitted, target.zone.as_deref(), &limits, &note);
    let socket = connecting
        .await
        .map_err(|error| names.doubted(target, &addresses, error.into()))?;
    trail.connected(&socket, started.elapsed());
    Ok(socket)
}

/// Of the guards that refuse all addresses of a target the one that is told: the plainest offence last.
fn rank(guard: Guard) -> u8 {
    match guard {
        Guard::Own => 0,
        Guard::Loopback | Guard::LinkLocal | Guard::Private | Guard::ConnectPorts => 1,
        Guard::Special => 2,
    }
}
