//! The ways out, behind one seam: whatever a rule leads to is a [`Dial`].

pub mod assemble;
pub mod chain;
pub mod direct;
pub mod fault;
pub mod group;
pub mod health;
pub mod pac;
#[cfg(test)]
mod testing;
pub mod tunnel;
pub mod upstream;
pub mod world;

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::cause::{Cause, Kind, Phase};
use crate::client::Client;
use crate::exchange::Trail;
use crate::failure::{Failure, classify, classify_try};
use crate::net::connect::{self, Outcome, Try};
use crate::net::places::Held;
use crate::net::resolve::{ResolveError, Resolved, Resolver, is_teredo};
use crate::net::socket::Socket;
use crate::net::upstream::auth::Authenticator;
use crate::net::wire::Wire;
use crate::policy::Policy;
use crate::policy::chain::{Commit, Retry};
use crate::policy::dns::AskId;
use crate::policy::fault::WrongCert;
use crate::policy::guard::{Admitted, Guard};
use crate::target::{Host, Target};
use crate::timeouts::Timeouts;

/// A future on the heap.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way out.
pub trait Dial: Debug + Send + Sync {
    /// Opens a connection for `plan`, noting each step on `trail`.
    fn dial<'a>(&'a self, plan: &'a Plan, trail: &'a Trail)
    -> BoxFuture<'a, Result<Conn, Failure>>;

    /// Whether a connection may serve later requests as well: not where each is to be dialled.
    fn is_lasting(&self) -> bool {
        true
    }
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
    /// When the way must stand, where less than all of [`Plan::timeouts`] is left.
    pub deadline: Option<Instant>,
    /// Whether an upstream whose circuit is open fails at once, since something else may serve. What is the last way is tried.
    pub passes_over: bool,
    /// From when on a tunnel keeps its hop.
    pub commit: Commit,
    /// What may be sent again over another hop.
    pub retry: Retry,
    /// What the next proxy gets as Via with a CONNECT: the client's entries and ours; empty for none.
    pub via: String,
    /// Who is asked for the target's name, where a rule says so.
    pub dns: Option<AskId>,
    /// What is wrong with the certificate that a host of a lab is to show.
    pub certificate: Option<WrongCert>,
}

impl Plan {
    /// One of which no more is known, by a policy's own limits.
    pub fn new(policy: &Policy, client: Client, target: Target, purpose: Purpose) -> Self {
        Self {
            client,
            target,
            purpose,
            addresses: None,
            timeouts: policy.timeouts.clone(),
            deadline: None,
            passes_over: false,
            commit: policy.commit,
            retry: policy.retry,
            via: String::new(),
            dns: None,
            certificate: None,
        }
    }

    /// The part of a wait that is left.
    pub fn within(&self, wait: Duration) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline
            .map_or(wait, |deadline| wait.min(left(deadline)))
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Opaque bytes for the target.
    Tunnel,
    /// Plain HTTP requests for the target.
    Forward,
    /// Nothing: the hop is only to be reached.
    Reach,
}

/// An open connection.
#[derive(Debug)]
pub struct Conn {
    /// The connection itself.
    pub wire: Wire,
    /// What the far side sent before it was asked.
    pub early: Bytes,
    /// How a plain request is written on it.
    pub form: Form,
    /// Whether its far end is the target itself, rather than an upstream.
    pub is_end_to_end: bool,
    /// The client that the upstream was told of on it: no other may use it.
    pub only_for: Option<SocketAddr>,
    /// The address of the target that an upstream was told, where it was told one: what the guards admitted.
    pub told: Option<Box<SocketAddr>>,
    /// What it occupies.
    pub held: Held,
    /// The name of the hop.
    pub hop: Arc<str>,
    /// The hops that are left, where it is one of a chain.
    pub rest: Option<Box<chain::Rest>>,
}

impl Conn {
    /// A connection straight to a target.
    pub fn straight(socket: Socket, hop: Arc<str>) -> Self {
        Self {
            wire: Wire::Tcp(socket),
            early: Bytes::new(),
            form: Form::Origin,
            is_end_to_end: true,
            only_for: None,
            told: None,
            held: Held::default(),
            hop,
            rest: None,
        }
    }

    /// Whether its hop is not to change any more: it is none of a chain, or the server has spoken.
    pub fn is_settled(&self) -> bool {
        !self.early.is_empty() || self.rest.is_none()
    }
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
        /// Who we are to it.
        authenticator: Option<Arc<Authenticator>>,
    },
}

/// Names to addresses: the policy's pins first, then its resolver.
#[derive(Clone, Debug)]
pub struct Names {
    policy: Arc<Policy>,
    resolver: Arc<Resolver>,
}

/// The lookup of one host, by those who are to be asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Inquiry<'n> {
    names: &'n Names,
    ask: AskId,
}

impl Names {
    /// Joins a policy's pins with a resolver.
    pub fn new(policy: Arc<Policy>, resolver: Arc<Resolver>) -> Self {
        Self { policy, resolver }
    }

    /// The resolver.
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    /// For a target; a rule may say who is asked.
    pub fn of_target(&self, host: &Host, rule: Option<AskId>) -> Inquiry<'_> {
        let dns = &self.policy.dns;
        let ask = host
            .name()
            .map_or(dns.default, |name| dns.choose(name, rule).0);
        Inquiry { names: self, ask }
    }

    /// By those, whoever the policy says.
    pub fn of_ask(&self, ask: AskId) -> Inquiry<'_> {
        Inquiry { names: self, ask }
    }

    /// For an upstream.
    pub fn of_upstream(&self, host: &Host) -> Inquiry<'_> {
        let dns = &self.policy.dns;
        let ask = host.name().map(|name| dns.choose_for_upstream(name));
        Inquiry {
            names: self,
            ask: ask.unwrap_or(AskId::SYSTEM),
        }
    }
}

/// The addresses of one host.
#[derive(Clone, Debug)]
struct Found {
    addresses: Vec<IpAddr>,
    /// Whether a name server gave them to an earlier lookup: they may have changed since.
    is_remembered: bool,
}

impl From<Vec<IpAddr>> for Found {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self {
            addresses,
            is_remembered: false,
        }
    }
}

impl Inquiry<'_> {
    /// Finds a host's addresses.
    pub async fn lookup(
        &self,
        host: &Host,
        limit: Duration,
        trail: &Trail,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        let found = self.find(host, limit, trail).await?;
        Ok(found.addresses)
    }

    /// The same, and whether they are remembered.
    async fn find(
        &self,
        host: &Host,
        limit: Duration,
        trail: &Trail,
    ) -> Result<Found, ResolveError> {
        let name = match host {
            Host::Ip(ip) => return Ok(vec![*ip].into()),
            Host::Name(name) => name,
        };
        if let Some(pinned) = self.names.policy.pinned(name) {
            trail.pinned(pinned);
            return Ok(pinned.to_vec().into());
        }
        trail.enter(Phase::Dns);
        let started = Instant::now();
        let found = self.names.resolver.resolve(name, self.ask, limit).await;
        match &found {
            Ok(found) => trail.resolved(name, started.elapsed(), found),
            Err(error) => trail.unresolved(name, started.elapsed(), error),
        }
        let found = found?;
        Ok(Found {
            is_remembered: found.facts.is_cached,
            addresses: found.addresses,
        })
    }

    /// Looks up a target's name anew, for addresses beside these that may be dialled; with how long that took.
    async fn find_others(
        &self,
        target: &Target,
        known: &[IpAddr],
        judge: Judge<'_>,
        limit: Duration,
    ) -> Option<(Resolved, Vec<Admitted>, Duration)> {
        let name = target.host.name()?;
        let started = Instant::now();
        let anew = self
            .names
            .resolver
            .resolve_anew(name, self.ask, known, limit);
        let found = anew.await.ok()?;
        let others = found.addresses.iter().filter(|ip| !known.contains(ip));
        let judged = others.map(|ip| judge(SocketAddr::new(*ip, target.port)));
        let admitted: Vec<Admitted> = judged.flatten().collect();
        (!admitted.is_empty()).then(|| (found, admitted, started.elapsed()))
    }

    /// Names a failure to use a target's addresses after what is wrong with the addresses themselves, where that is known.
    fn doubted(&self, target: &Target, addresses: &[IpAddr], failure: Failure) -> Failure {
        let Host::Name(name) = &target.host else {
            return failure;
        };
        if self.names.policy.pinned(name).is_some() || !may_be_of_address(&failure) {
            return failure;
        }
        match self.names.resolver.doubt(name, self.ask, addresses) {
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
///
/// Addresses that are remembered and of no use are asked for anew, once: whoever has the name may have moved.
async fn connect(
    target: &Target,
    found: Found,
    names: Inquiry<'_>,
    judge: Judge<'_>,
    name: fn(Kind) -> Cause,
    plan: &Plan,
    trail: &Trail,
) -> Result<Socket, Failure> {
    trail.enter(Phase::Connect);
    let started = Instant::now();
    let Found {
        addresses,
        is_remembered,
    } = found;
    let admitted = admit(target, &addresses, names, judge, trail)
        .inspect_err(|failure| trail.failed(name(classify(failure).kind), started.elapsed()))?;
    let limits = connect::Limits {
        total: plan.within(plan.timeouts.connect),
        per_address: plan.within(plan.timeouts.connect_address),
        stagger: plan.timeouts.connect_stagger,
        shape: connect::Shape::default(),
    };
    let note = |attempt: Try| {
        if let Outcome::Abandoned = attempt.outcome {
            trail.abandoned(&attempt);
        } else {
            trail.tried(&attempt, classify_try(&attempt.outcome).map(name));
        }
    };
    let fresh = OnceLock::new();
    let more = || -> BoxFuture<'_, Vec<Admitted>> {
        Box::pin(async {
            let limit = plan.timeouts.dns.min(limits.per_address);
            let found = names.find_others(target, &addresses, judge, limit).await;
            let Some((resolved, admitted, took)) = found else {
                return Vec::new();
            };
            trail.renewed(took, &resolved);
            tell_would(&admitted, trail);
            let dialled: Vec<_> = admitted.iter().map(|a| a.address()).collect();
            let _ = fresh.set((resolved.addresses, dialled, took));
            admitted
        })
    };
    let more: Option<connect::More<'_>> = is_remembered.then_some(&more);
    let connecting = connect::connect(&admitted, target.zone.as_deref(), &limits, &note, more);
    let socket = connecting.await.map_err(|error| {
        let addresses = fresh.get().map_or(&addresses, |(fresh, ..)| fresh);
        names.doubted(target, addresses, error.into())
    })?;
    let mut took = started.elapsed();
    if let Some((_, dialled, looked_up)) = fresh.get() {
        took = took.saturating_sub(*looked_up);
        if dialled.contains(&socket.peer()) {
            trail.note("dns.stale_cache");
        }
    }
    trail.connected(&socket, took);
    Ok(socket)
}

/// The addresses of a target that the guards let through.
///
/// # Errors
/// The plainest offence where there is none.
fn admit(
    target: &Target,
    addresses: &[IpAddr],
    names: Inquiry<'_>,
    judge: Judge<'_>,
    trail: &Trail,
) -> Result<Vec<Admitted>, Failure> {
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
            failure = names.doubted(target, addresses, failure);
        }
        return Err(failure);
    }
    tell_would(&admitted, trail);
    Ok(admitted)
}

/// Notes the guard in report mode that would have refused one of these.
fn tell_would(admitted: &[Admitted], trail: &Trail) {
    if let Some(guard) = admitted.iter().find_map(|admitted| admitted.would()) {
        trail.would(guard.name());
    }
}

/// Of the guards that refuse all addresses of a target the one that is told: the plainest offence last.
fn rank(guard: Guard) -> u8 {
    match guard {
        Guard::Own => 0,
        Guard::Loopback
        | Guard::LinkLocal
        | Guard::Private
        | Guard::ConnectPorts
        | Guard::SniMismatch => 1,
        Guard::Special => 2,
    }
}
