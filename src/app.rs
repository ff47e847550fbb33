//! The running program: listeners bound, a policy at work, and its end.

pub mod drain;
pub mod reload;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config::LogFormat;
use crate::listen::accept::{Acceptor, Room};
use crate::memory::Memory;
use crate::net::resolve::Resolver;
use crate::observe::Observe;
use crate::policy::Policy;
use crate::proxy::Proxy;
use crate::proxy::headers::Via;
use crate::proxy::respond::Identity;
use crate::snapshot::Snapshot;
use crate::target::canonical_ip;
use crate::tls::trust::Roots;

use drain::Drain;

/// Connections that may be open when nobody says otherwise; fewer where the descriptors do not suffice.
const DEFAULT_CONNECTIONS: u64 = 10_000;

/// Descriptors for what is no connection: listeners, logs, the runtime.
const SPARE_DESCRIPTORS: u64 = 128;

/// Connections that wait in the kernel to be accepted.
const BACKLOG: u32 = 1024;

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
pub struct Bound(Vec<(Arc<str>, TcpListener)>);

impl Bound {
    /// Binds every listener of the settings.
    pub fn bind(settings: &Settings) -> Result<Self, StartError> {
        if let Some(address) = exposed(
            settings.listen.iter().map(|(_, address)| *address),
            settings,
        ) {
            return Err(StartError::Open { address });
        }
        let mut bound = Vec::with_capacity(settings.listen.len());
        for (name, address) in &settings.listen {
            let listener = listen(*address).map_err(|source| StartError::Bind {
                address: *address,
                source,
            })?;
            bound.push((name.clone(), listener));
        }
        Ok(Self(bound))
    }

    /// The addresses, with the ports that the kernel chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0
            .iter()
            .filter_map(|(_, listener)| listener.local_addr().ok())
            .collect()
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
    let spare = SPARE_DESCRIPTORS.min(limit / 4);
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

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for the connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The program, serving.
#[derive(Debug)]
pub struct App {
    proxy: Arc<Proxy>,
    resolver: Arc<Resolver>,
    own: Vec<SocketAddr>,
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
    ) -> Self {
        let own = bound.addresses();
        let resolver = Arc::new(resolver);
        let identity = Identity {
            name: settings.name.clone(),
            via: Via::new(draw_pseudonym()),
        };
        let snapshot = snapshot(policy, settings, &own, &resolver);
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
        for ((name, listener), address) in bound.0.into_iter().zip(own.iter().copied()) {
            let (proxy, room) = (proxy.clone(), room.clone());
            let (closing, cut) = (drain.closing(), drain.cut());
            drain.spawn(
                Acceptor {
                    listener,
                    address,
                    name,
                    proxy,
                    room,
                    closing,
                    cut,
                }
                .run(),
            );
        }
        drain.spawn(sweep(proxy.clone(), drain.closing()));
        Self {
            proxy,
            resolver,
            own,
            drain,
        }
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
        let snapshot = snapshot(policy, settings, &self.own, &self.resolver);
        self.proxy.snapshot.store(Arc::new(snapshot));
    }

    /// The policy at work.
    pub fn policy(&self) -> Arc<Policy> {
        self.proxy.snapshot.load().policy.clone()
    }

    /// Ends the program: no new connections, then `drain_timeout` for the tunnels, or until `hurry`.
    pub async fn finish(&self, hurry: impl Future<Output = ()>) {
        self.drain.finish(hurry).await;
    }
}

fn snapshot(
    mut policy: Policy,
    settings: &Settings,
    own: &[SocketAddr],
    resolver: &Arc<Resolver>,
) -> Snapshot {
    policy.guards.own = own.to_vec();
    Snapshot::new(policy, settings.allow_from.clone(), resolver.clone())
}

/// A name for Via that tells this process from every other and says nothing else.
fn draw_pseudonym() -> String {
    format!("routecause-{:08x}", Uuid::now_v7().as_u128() & 0xffff_ffff)
}

/// Closes kept connections that nobody used for a while.
async fn sweep(proxy: Arc<Proxy>, closing: CancellationToken) {
    const PAUSE: Duration = Duration::from_secs(5);
    while closing.run_until_cancelled(sleep(PAUSE)).await.is_some() {
        proxy.snapshot.load().pool.sweep();
    }
    proxy.snapshot.load().pool.close();
}
