//! The running program: listeners bound, a policy at work, and its end.

pub mod drain;
pub mod reload;
pub mod workers;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Type};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config::LogFormat;
use crate::listen::accept::{Acceptor, Room};
use crate::memory::Memory;
use crate::net::pipe::MOST as MOST_PIPES;
use crate::net::resolve::Resolver;
use crate::net::socket::probes;
use crate::observe::Observe;
use crate::policy::Policy;
use crate::proxy::Proxy;
use crate::proxy::headers::Via;
use crate::proxy::respond::Identity;
use crate::snapshot::Snapshot;
use crate::target::canonical_ip;
use crate::timeouts::TCP_KEEPALIVE;
use crate::tls::trust::Roots;

use drain::Drain;
use workers::Workers;

/// Connections that may be open when nobody says otherwise; fewer where the descriptors do not suffice.
const DEFAULT_CONNECTIONS: u64 = 10_000;

/// Descriptors for what is no connection: listeners, logs, runtimes, and the pipes of tunnels.
const SPARE_DESCRIPTORS: u64 = 128 + 2 * MOST_PIPES as u64;
const SPARE_DESCRIPTORS_OF_WORKER: u64 = 8;

/// Workers end at once; one that hangs is not waited for longer.
const LAST_WORKER: Duration = Duration::from_secs(1);

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 1024;

/// Everything about the process that a policy's rules do not say: from flags, environment and the `server` key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The listeners, by name.
    pub listen: Vec<(Arc<str>, SocketAddr)>,
    /// Who may use the proxy beside clients on this machine.
    pub allow_from: Vec<IpNet>,
    /// The name in `Proxy-Status`.
    pub name: String,
    /// How long open tunnels have when the process is told to end.
    pub drain_timeout: Duration,
    /// How many connections may be open.
    pub connections: usize,
    /// How the policy wants records written.
    pub log_format: Option<LogFormat>,
    /// Where records are written; standard output where there is none.
    pub log_file: Option<PathBuf>,
}

/// Why the program does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The proxy would be open to the network.
    #[error(
        "listener {address} can be reached from other machines and nobody says who may use it: add --allow-from CIDR, \
         or server.allow_from in the policy"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
}

/// Listeners that are bound and not served yet: connections to them wait.
#[derive(Debug)]
pub struct Bound(Vec<Shared>);

/// One address that every worker listens on.
#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    address: SocketAddr,
    /// One for each worker.
    listeners: Vec<TcpListener>,
}

impl Bound {
    /// Binds every listener of the settings, for so many workers.
    pub fn bind(settings: &Settings, workers: NonZeroUsize) -> Result<Self, StartError> {
        if let Some(address) = exposed(
            settings.listen.iter().map(|(_, address)| *address),
            settings,
        ) {
            return Err(StartError::Open { address });
        }
        let mut bound = Vec::with_capacity(settings.listen.len());
        for (name, address) in &settings.listen {
            let shared = Shared::listen(name.clone(), *address, workers);
            bound.push(shared.map_err(|source| StartError::Bind {
                address: *address,
                source,
            })?);
        }
        Ok(Self(bound))
    }

    /// The addresses, with the ports that the kernel chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|shared| shared.address).collect()
    }

    /// For how many workers.
    fn workers(&self) -> usize {
        self.0
            .iter()
            .map(|shared| shared.listeners.len())
            .max()
            .unwrap_or(0)
    }

    /// What each worker listens with.
    fn by_worker(self) -> Vec<Vec<(Arc<str>, SocketAddr, TcpListener)>> {
        let mut workers: Vec<Vec<_>> = (0..self.workers()).map(|_| Vec::new()).collect();
        for shared in self.0 {
            for (worker, listener) in workers.iter_mut().zip(shared.listeners) {
                worker.push((shared.name.clone(), shared.address, listener));
            }
        }
        workers
    }
}

impl Shared {
    /// The kernel shares connections out among the listeners. It would do so among processes as well, ours of the day
    /// before included: the first socket is bound and listens as one that shares nothing, and an address in use is an error.
    fn listen(name: Arc<str>, address: SocketAddr, workers: NonZeroUsize) -> io::Result<Self> {
        let first = listen(address, false)?;
        first.set_reuse_port(true)?;
        let first = TcpListener::from(first);
        let mut shared = Self {
            name,
            // The kernel may have chosen the port.
            address: first.local_addr()?,
            listeners: vec![first],
        };
        for _ in 1..workers.get() {
            let another = listen(shared.address, true)?;
            shared.listeners.push(another.into());
        }
        Ok(shared)
    }
}

/// A listener that anyone in the network could use under these settings.
fn exposed(
    mut listeners: impl Iterator<Item = SocketAddr>,
    settings: &Settings,
) -> Option<SocketAddr> {
    listeners
        .find(|address| !canonical_ip(address.ip()).is_loopback() && settings.allow_from.is_empty())
}

/// Raises the limit of open files as far as it goes, and says how many connections it allows: a tunnel takes two.
pub fn default_connections() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "raise the limit of open files");
            soft
        }
    };
    let workers = workers::count().get() as u64;
    let spare = (SPARE_DESCRIPTORS + SPARE_DESCRIPTORS_OF_WORKER * workers).min(limit / 4);
    let connections = (limit.saturating_sub(spare) / 2).clamp(1, DEFAULT_CONNECTIONS);
    if connections < DEFAULT_CONNECTIONS / 10 {
        tracing::warn!(
            connections,
            open_files = limit,
            "few connections can be open at once: raise ulimit -n"
        );
    }
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// A socket that listens. What is set on it, each connection that it takes has from the beginning.
fn listen(address: SocketAddr, is_shared: bool) -> io::Result<socket2::Socket> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    // A restart must not wait for the connections of the process before.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&probes(TCP_KEEPALIVE))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// The program, serving.
#[derive(Debug)]
pub struct App {
    proxy: Arc<Proxy>,
    resolver: Arc<Resolver>,
    own: Vec<SocketAddr>,
    workers: Workers,
    drain: Drain,
}

impl App {
    /// Puts a policy to work behind bound listeners, and serves.
    pub fn start(
        bound: Bound,
        settings: &Settings,
        policy: Policy,
        resolver: Resolver,
        observer: Arc<dyn Observe>,
    ) -> io::Result<Self> {
        let own = bound.addresses();
        let count = bound.workers();
        let resolver = Arc::new(resolver);
        let identity = Identity {
            name: settings.name.clone(),
            via: Via::new(draw_pseudonym()),
        };
        let snapshot = snapshot(policy, settings, &own, &resolver, count);
        let tracker = TaskTracker::new();
        let snapshot = ArcSwap::from_pointee(snapshot);
        let memory = Arc::new(Memory::new(observer));
        let proxy = Arc::new(Proxy {
            snapshot,
            observer: memory.clone(),
            memory,
            identity,
            roots: Arc::new(Roots::of_system()),
            tracker: tracker.clone(),
        });
        let drain = Drain::new(tracker, settings.drain_timeout);
        let room = Room::new(settings.connections);
        let workers = Workers::default();
        for (worker, listeners) in bound.by_worker().into_iter().enumerate() {
            workers.start(format!("worker-{worker}"), || {
                for (name, address, listener) in listeners {
                    let acceptor = Acceptor {
                        listener: listener.try_into()?,
                        address,
                        name,
                        worker,
                        proxy: proxy.clone(),
                        room: room.clone(),
                        closing: drain.closing(),
                        cut: drain.cut(),
                    };
                    drain.spawn(acceptor.run());
                }
                Ok(())
            })?;
        }
        drain.spawn(sweep(proxy.clone(), drain.closing()));
        Ok(Self {
            proxy,
            resolver,
            own,
            workers,
            drain,
        })
    }

    /// Where the proxy listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.own
    }

    /// A listener that would be open to everyone under other settings.
    pub fn exposed(&self, settings: &Settings) -> Option<SocketAddr> {
        exposed(self.own.iter().copied(), settings)
    }

    /// Puts another policy to work. Requests that are under way keep the one that they began with.
    pub fn replace(&self, policy: Policy, settings: &Settings) {
        let workers = self.proxy.snapshot.load().pools.len();
        let snapshot = snapshot(policy, settings, &self.own, &self.resolver, workers);
        self.proxy.snapshot.store(Arc::new(snapshot));
    }

    /// The policy at work.
    pub fn policy(&self) -> Arc<Policy> {
        self.proxy.snapshot.load().policy.clone()
    }

    /// Ends the program: no new connections, then `drain_timeout` for the tunnels, or until `hurry`.
    pub async fn finish(&self, hurry: impl Future<Output = ()>) {
        self.drain.finish(hurry).await;
        if timeout(LAST_WORKER, self.workers.finish()).await.is_err() {
            tracing::error!("some workers did not end");
        }
    }
}

fn snapshot(
    mut policy: Policy,
    settings: &Settings,
    own: &[SocketAddr],
    resolver: &Arc<Resolver>,
    workers: usize,
) -> Snapshot {
    policy.guards.own = own.to_vec();
    let allow_from = settings.allow_from.clone();
    Snapshot::new(policy, allow_from, resolver.clone(), workers)
}

/// A name for Via that tells this process from every other and says nothing else.
fn draw_pseudonym() -> String {
    format!("routecause-{:08x}", Uuid::now_v7().as_u128() & 0xffff_ffff)
}

/// Closes kept connections that nobody used for a while.
async fn sweep(proxy: Arc<Proxy>, closing: CancellationToken) {
    const PAUSE: Duration = Duration::from_secs(5);
    while closing.run_until_cancelled(sleep(PAUSE)).await.is_some() {
        for pool in &proxy.snapshot.load().pools {
            pool.sweep();
        }
    }
    for pool in &proxy.snapshot.load().pools {
        pool.close();
    }
}
