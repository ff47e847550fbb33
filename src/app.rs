//! The running program: listeners bound, a policy at work, and its end.

pub mod bound;
pub mod condition;
pub mod drain;
pub mod explain;
mod probes;
pub mod reload;
pub mod systemd;
mod triage;
pub mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config::otlp::Otlp;
use crate::config::{
    AdminAddress, Limits, ListenAt, Listener, LogFormat, ServerSettings, TokenSource, Users,
};
use crate::exchange::live::Live;
use crate::listen::accept::Acceptor;
use crate::listen::door::Door;
use crate::listen::room::Room;
use crate::listen::tls;
use crate::memory::Memory;
use crate::net::pipe::MOST as MOST_PIPES;
use crate::net::resolve::Resolver;
use crate::observe::Observe;
use crate::policy::{Policy, Triage};
use crate::proxy::Proxy;
use crate::proxy::headers::Via;
use crate::proxy::pool::Pool;
use crate::proxy::quota::Quotas;
use crate::proxy::respond::Identity;
use crate::route::world::World;
use crate::snapshot::Snapshot;

use bound::{Bound, exposed};
use condition::Condition;
use drain::Drain;
use workers::{Beat, Workers};

/// Connections that may be open when nobody says otherwise; fewer where the descriptors do not suffice.
const DEFAULT_CONNECTIONS: u64 = 10_000;

/// Of the connections that clients may have open, one in so many may be kept unused beside them, for all targets together:
/// whoever asks many hosts once must not use up the descriptors. Where these are few, one in `LEAST_KEPT_SHARE`.
const KEPT_SHARE: u64 = 4;
const LEAST_KEPT_SHARE: u64 = 16;

/// Descriptors for what is no connection: listeners, logs, runtimes, and the pipes of tunnels.
const SPARE_DESCRIPTORS: u64 = 128 + 2 * MOST_PIPES as u64;
const SPARE_DESCRIPTORS_OF_WORKER: u64 = 8;

/// Workers end at once; one that hangs is not waited for longer.
const LAST_WORKER: Duration = Duration::from_secs(1);

/// Everything about the process that a policy's rules do not say: from flags, environment and the `server` key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The listeners.
    pub listen: Vec<Listener>,
    /// Who may use the proxy beside clients on this machine.
    pub allow_from: Vec<IpNet>,
    /// Who may use it by name; `None` where nobody is asked.
    pub users: Option<Arc<Users>>,
    /// The name in `Proxy-Status`.
    pub name: String,
    /// How long open tunnels have when the process is told to end.
    pub drain_timeout: Duration,
    /// How much may be open, and asked for.
    pub limits: Limits,
    /// How the policy wants records written.
    pub log_format: Option<LogFormat>,
    /// Where records are written; standard output where there is none.
    pub log_file: Option<PathBuf>,
    /// What tells of the proxy while it runs.
    pub admin: AdminSettings,
    /// Where records and spans are exported to.
    pub otlp: Option<Otlp>,
}

/// What tells of the proxy while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where.
    pub address: AdminAddress,
    /// Whether nobody asked for that address: where it is taken, the proxy runs without.
    pub is_default: bool,
    /// Where its token is found.
    pub token: Option<TokenSource>,
    /// The file that records are kept in as well.
    pub history: Option<PathBuf>,
    /// How long that keeps them.
    pub history_retention: Option<Duration>,
    /// How many of the hosts that failed most of late the metrics name.
    pub metrics_hosts: usize,
}

impl Settings {
    /// For these listeners, with room for so many connections: for clients on this machine, which nobody asks who they are, and
    /// told to nobody.
    pub fn of(listen: Vec<Listener>, connections: usize) -> Self {
        Self {
            listen,
            allow_from: Vec::new(),
            users: None,
            name: "routecause".to_owned(),
            drain_timeout: Duration::ZERO,
            limits: Limits {
                connections: Some(connections),
                ..Limits::default()
            },
            log_format: None,
            log_file: None,
            admin: AdminSettings::off(),
            otlp: None,
        }
    }

    /// The same of a command's own listeners, which stand in for those of a policy: with the name and the limits of its `server`.
    pub fn of_stand_ins(server: ServerSettings, connections: usize) -> Self {
        let mut settings = Self::of(server.listen.unwrap_or_default(), connections);
        settings.limits = server.limits.or(settings.limits);
        if let Some(name) = &server.name {
            settings.name = name.to_string();
        }
        settings
    }
}

impl AdminSettings {
    /// Whether whoever asks is known for sure: by a token, or by a socket that its owner alone may open. Who holds a
    /// connection to an address may have been lent it, by anything that relays for its user.
    pub fn knows_its_users(&self) -> bool {
        self.token.is_some() || matches!(self.address, AdminAddress::Unix(_))
    }

    /// Nothing tells.
    pub fn off() -> Self {
        Self {
            address: AdminAddress::Off,
            is_default: false,
            token: None,
            history: None,
            history_retention: None,
            metrics_hosts: 0,
        }
    }
}

/// Why the program does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Bind {
        /// The address.
        address: ListenAt,
        /// The kernel's error.
        source: io::Error,
    },
    /// The proxy would be open to the network.
    #[error(
        "listener {address} can be reached from other machines and nobody says who may use it: add --allow-from CIDR, \
         or server.allow_from or server.auth in the policy"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// No TLS can be spoken.
    #[error("speak TLS on listener {name}")]
    Tls {
        /// The listener.
        name: Arc<str>,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// Raises the limit of open files as far as it goes, and says how many connections it allows: a tunnel takes two, and some are
/// kept for later requests.
pub fn default_connections() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "raise the limit of open files");
            soft
        }
    };
    let connections = connections_of(limit);
    if connections < DEFAULT_CONNECTIONS / 10 {
        tracing::warn!(
            connections,
            open_files = limit,
            "few connections can be open at once: raise ulimit -n"
        );
    }
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// How many connections the limit of open files allows, which stays as it is: a command that is started inherits it.
pub fn connections_as_they_are() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    usize::try_from(connections_of(soft)).unwrap_or(usize::MAX)
}

fn connections_of(limit: u64) -> u64 {
    // Two for each, and its share of those that are kept.
    let share = LEAST_KEPT_SHARE;
    (descriptors_of(limit) * share / (2 * share + 1)).clamp(1, DEFAULT_CONNECTIONS)
}

/// How many descriptors a limit of open files leaves for connections.
fn descriptors_of(limit: u64) -> u64 {
    let workers = workers::count().get() as u64;
    let spare = (SPARE_DESCRIPTORS + SPARE_DESCRIPTORS_OF_WORKER * workers).min(limit / 4);
    limit.saturating_sub(spare)
}

/// How many connections may be kept for later requests where clients may have so many open.
fn kept_beside(connections: u64) -> u64 {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let left = descriptors_of(limit).saturating_sub(connections.saturating_mul(2));
    left.clamp(connections / LEAST_KEPT_SHARE, connections / KEPT_SHARE)
}

/// The program, serving.
#[derive(Debug)]
pub struct App {
    proxy: Arc<Proxy>,
    own: Vec<SocketAddr>,
    /// What tells of the proxy: a client of ours must not come to it as if we had asked.
    admin: Option<SocketAddr>,
    places: Vec<ListenAt>,
    doors: Vec<Arc<Door>>,
    condition: Condition,
    workers: Workers,
    drain: Drain,
    /// Ends the probes of the policy at work.
    probes: Mutex<CancellationToken>,
    world: Option<Arc<dyn World>>,
}

impl App {
    /// Puts a policy to work behind bound listeners, and serves; what tells of it listens at `admin`. Its hops lead into `world`
    /// where there is one. The caller's runtime runs what no request asks for, such as probes.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(
        bound: Bound,
        settings: &Settings,
        admin: Option<SocketAddr>,
        mut policy: Policy,
        resolver: &Resolver,
        observer: Arc<dyn Observe>,
        world: Option<Arc<dyn World>>,
    ) -> io::Result<Self> {
        let (own, places, doors) = (bound.addresses(), bound.places(), bound.doors());
        let count = bound.workers();
        let identity = Identity {
            name: settings.name.clone(),
            via: Via::new(draw_pseudonym()),
        };
        policy.guards.own = own.iter().copied().chain(admin).collect();
        let snapshot = snapshot(policy, settings, resolver, count, None, world.as_ref());
        let tracker = TaskTracker::new();
        let snapshot = ArcSwap::from_pointee(snapshot);
        let memory = Arc::new(Memory::new(observer));
        let (looks, policy) = looks(&snapshot.load(), world.is_some());
        memory.watch(looks, policy);
        let proxy = Arc::new(Proxy {
            snapshot,
            observer: memory.clone(),
            memory,
            live: Arc::new(Live::new(count)),
            identity,
            roots: resolver.roots().clone(),
            tracker: tracker.clone(),
            quotas: Arc::new(Quotas::new(
                settings.limits.rate,
                settings.limits.per_target,
            )),
            sampler: settings.otlp.as_ref().and_then(Otlp::sampler),
        });
        let drain = Drain::new(tracker, settings.drain_timeout);
        let room = Room::new(connections(settings), settings.limits.per_client);
        let workers = Workers::default();
        let beats: Vec<_> = (0..count).map(|_| Arc::new(Beat::new())).collect();
        for (worker, listeners) in bound.by_worker().into_iter().enumerate() {
            workers.start(format!("worker-{worker}"), || {
                for (door, listener) in listeners {
                    let acceptor = Acceptor {
                        listener: listener.register()?,
                        door,
                        worker,
                        proxy: proxy.clone(),
                        room: room.clone(),
                        closing: drain.closing(),
                        cut: drain.cut(),
                    };
                    drain.spawn(acceptor.run());
                }
                let beat = beats.get(worker).cloned().unwrap_or_default();
                drain.spawn(sweep(proxy.clone(), worker, beat, drain.closing()));
                Ok(())
            })?;
        }
        let condition = Condition {
            beats,
            room,
            closing: drain.closing(),
        };
        let probes = Mutex::new(probes::begin(&proxy, &drain));
        triage::begin(&proxy, &drain);
        Ok(Self {
            proxy,
            own,
            admin,
            places,
            doors,
            condition,
            workers,
            drain,
            probes,
            world,
        })
    }

    /// What serves.
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// Where the proxy listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.own
    }

    /// The same, with those that have no address.
    pub fn places(&self) -> &[ListenAt] {
        &self.places
    }

    /// A listener that would be open to everyone under other settings.
    pub fn exposed(&self, settings: &Settings) -> Option<SocketAddr> {
        exposed(self.own.iter().copied().zip(&settings.listen), settings)
    }

    /// Puts another policy to work. Requests that are under way keep the one that they began with, but for open tunnels that
    /// the new one refuses and wants cut: how many were, where it does.
    pub fn replace(&self, mut policy: Policy, settings: &Settings) -> Option<usize> {
        policy.guards.own = self.own.iter().copied().chain(self.admin).collect();
        let before = self.proxy.snapshot.load_full();
        let (resolver, workers) = (before.names.resolver(), before.pools.len());
        let snapshot = snapshot(
            policy,
            settings,
            resolver,
            workers,
            Some(&before),
            self.world.as_ref(),
        );
        for (door, listener) in self.doors.iter().zip(&settings.listen) {
            let (Some(old), Some(new)) = (&door.tls, &listener.tls) else {
                continue;
            };
            match tls::config(new) {
                Ok(config) => old.store(config),
                Err(error) => {
                    tracing::error!(%error, listener = &*door.name, "the old certificate stays in use");
                }
            }
        }
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        probes.cancel();
        let changed = before.policy.changed_hops(&snapshot.policy);
        let (looks, policy) = looks(&snapshot, self.world.is_some());
        self.proxy.snapshot.store(Arc::new(snapshot));
        // Requests under way by what a name meant before may still add to it, and are few.
        self.proxy.memory.forget_hops(&changed);
        self.proxy.memory.watch(looks, policy);
        *probes = probes::begin(&self.proxy, &self.drain);
        self.proxy.close_blocked()
    }

    /// How the process is.
    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    /// The policy at work.
    pub fn policy(&self) -> Arc<Policy> {
        self.proxy.snapshot.load().policy.clone()
    }

    /// Ends the program: no new connections, then `drain_timeout` for the tunnels, or until `hurry`.
    pub async fn finish(&self, hurry: impl Future<Output = ()>) {
        let open = || self.condition.connections().0;
        self.drain.finish(hurry, open).await;
        if timeout(LAST_WORKER, self.workers.finish()).await.is_err() {
            tracing::error!("some workers did not end");
        }
        for place in &self.places {
            if let ListenAt::Unix(path) = place
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::debug!(%error, path = %path.display(), "remove a socket");
            }
        }
    }
}

fn snapshot(
    policy: Policy,
    settings: &Settings,
    resolver: &Resolver,
    workers: usize,
    before: Option<&Snapshot>,
    world: Option<&Arc<dyn World>>,
) -> Snapshot {
    let allow_from = settings.allow_from.clone();
    let users = settings.users.as_ref();
    let kept = kept_beside(u64::try_from(connections(settings)).unwrap_or(u64::MAX));
    let pools = Pool::of_workers(workers, usize::try_from(kept).unwrap_or(usize::MAX));
    Snapshot::new(policy, allow_from, users, resolver, pools, before, world)
}

/// When failing targets are looked at, under which policy. A world has nothing but its own hosts, and the doctor does not know
/// them.
fn looks(snapshot: &Snapshot, has_world: bool) -> (Option<Triage>, Arc<str>) {
    let policy = &snapshot.policy;
    (policy.triage.filter(|_| !has_world), policy.hash.clone())
}

/// How many connections clients may have open.
fn connections(settings: &Settings) -> usize {
    // The most that a semaphore counts is more than any system opens.
    settings
        .limits
        .connections
        .unwrap_or(Semaphore::MAX_PERMITS / 2)
}

/// A name for Via that tells this process from every other and says nothing else.
fn draw_pseudonym() -> String {
    format!("routecause-{:08x}", Uuid::now_v7().as_u128() & 0xffff_ffff)
}

/// Closes kept connections of a worker that nobody used for a while.
async fn sweep(proxy: Arc<Proxy>, worker: usize, beat: Arc<Beat>, closing: CancellationToken) {
    // Shorter than nearly all waits of requests: a runtime that is set a nearer timer than it has wakes itself for it, which
    // takes a call of the kernel.
    const PAUSE: Duration = Duration::from_secs(1);
    while closing.run_until_cancelled(sleep(PAUSE)).await.is_some() {
        proxy.snapshot.load().pool(worker).sweep();
        beat.beat();
    }
    proxy.snapshot.load().pool(worker).close();
}
