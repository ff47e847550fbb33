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
use crate::net::resolve::{ResolveError, Resolver};
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
    /// What the next proxy gets as Via: the client's entries and ours.
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
            Err(error) => trail.unresolved(name, started.elapsed(), error.response_code()),
        }
        Ok(found?.addresses)
    }
}

/// Judges one address.
type Judge<'a> = &'a (dyn Fn(SocketAddr) -> Result<Admitted, Guard> + Sync);

/// Judges addresses and connects to the first that answers. `name` makes a cause of what each try showed: of the
/// target, or of the upstream.
async fn connect(
    target: &Target,
    addresses: Vec<IpAddr>,
    judge: Judge<'_>,
    name: fn(Kind) -> Cause,
    timeouts: &Timeouts,
    trail: &Trail,
) -> Result<Socket, Failure> {
    trail.enter(Phase::Connect);
    let started = Instant::now();
    let judged = addresses
        .into_iter()
        .map(|ip| judge(SocketAddr::new(ip, target.port)));
    let (admitted, refused): (Vec<_>, Vec<_>) = judged.partition(Result::is_ok);
    let admitted: Vec<Admitted> = admitted.into_iter().flatten().collect();
    if let (true, Some(guard)) = (
        admitted.is_empty(),
        refused.into_iter().find_map(Result::err),
    ) {
        let failure = Failure::of_guard(guard, target.to_string());
        trail.failed(classify(&failure), started.elapsed());
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
    let socket = connect::connect(&admitted, target.zone.as_deref(), &limits, &note).await?;
    trail.connected(&socket, started.elapsed());
    Ok(socket)
}
