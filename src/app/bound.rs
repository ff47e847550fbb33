//! Listeners that are bound and not served yet: connections to them wait.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use arc_swap::ArcSwap;
use listenfd::ListenFd;
use socket2::{Domain, Type};

use super::{Settings, StartError};
use crate::config::{ListenAt, Listener};
use crate::listen::accept;
use crate::listen::door::Door;
use crate::listen::tls;
use crate::net::local;
use crate::net::socket::{BACKLOG, probes};
use crate::target::canonical_ip;
use crate::timeouts::TCP_KEEPALIVE;

/// Sockets in the file system are for their owner and its group.
const FOR_GROUP: u32 = 0o660;

/// Every listener, bound.
#[derive(Debug)]
pub struct Bound(Vec<Shared>);

/// One address that every worker listens on.
#[derive(Debug)]
struct Shared {
    door: Arc<Door>,
    place: ListenAt,
    /// One for each worker.
    listeners: Vec<Socket>,
}

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener),
}

impl Socket {
    /// Makes it one of the runtime that this is called in.
    pub(super) fn register(self) -> io::Result<accept::Listener> {
        Ok(match self {
            Self::Tcp(listener, address) => accept::Listener::Tcp(listener.try_into()?, address),
            Self::Unix(listener) => accept::Listener::Unix(listener.try_into()?),
        })
    }
}

impl Bound {
    /// Binds every listener of the settings, for so many workers; those that systemd passes are in `passed`.
    pub fn bind(
        settings: &Settings,
        workers: NonZeroUsize,
        passed: &mut ListenFd,
    ) -> Result<Self, StartError> {
        let known = settings.listen.iter().map(|l| (l.address.socket(), l));
        if let Some(address) = exposed(known, settings) {
            return Err(StartError::Open { address });
        }
        let mut bound = Vec::with_capacity(settings.listen.len());
        let mut next = 0;
        for listener in &settings.listen {
            let failed = |source| StartError::Bind {
                address: listener.address.clone(),
                source,
            };
            let sockets = match &listener.address {
                ListenAt::Tcp(address) => share_address(*address, workers),
                ListenAt::Unix(path) => local::listen(path, FOR_GROUP)
                    .and_then(|listener| share(&Socket::Unix(listener), workers)),
                ListenAt::Passed => {
                    next += 1;
                    take(passed, next - 1).and_then(|socket| share(&socket, workers))
                }
            };
            let sockets = sockets.map_err(failed)?;
            let place = match sockets.first() {
                // The kernel may have chosen the port.
                Some(Socket::Tcp(_, address)) => ListenAt::Tcp(*address),
                Some(Socket::Unix(_)) | None => listener.address.clone(),
            };
            let config = listener.tls.as_ref().map(tls::config).transpose();
            let config = config.map_err(|source| StartError::Tls {
                name: listener.name.clone(),
                source,
            })?;
            let door = Door {
                name: listener.name.clone(),
                tls: config.map(ArcSwap::new),
                proxy_protocol: listener.proxy_protocol.clone(),
                asks_who: settings.users.is_some() && listener.auth != Some(false),
            };
            bound.push(Shared {
                door: Arc::new(door),
                place,
                listeners: sockets,
            });
        }
        let bound = Self(bound);
        // What systemd passes is known only now.
        let known = bound.addresses().into_iter().zip(&settings.listen);
        match exposed(known, settings) {
            Some(address) => Err(StartError::Open { address }),
            None => Ok(bound),
        }
    }

    /// The addresses, with the ports that the kernel chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|shared| shared.place.socket()).collect()
    }

    /// What each wants of its clients.
    pub(super) fn doors(&self) -> Vec<Arc<Door>> {
        self.0.iter().map(|shared| shared.door.clone()).collect()
    }

    /// The same, with those that have no address.
    pub fn places(&self) -> Vec<ListenAt> {
        self.0.iter().map(|shared| shared.place.clone()).collect()
    }

    /// For how many workers.
    pub(super) fn workers(&self) -> usize {
        let listeners = self.0.iter().map(|shared| shared.listeners.len());
        listeners.max().unwrap_or(0)
    }

    /// What each worker listens with.
    pub(super) fn by_worker(self) -> Vec<Vec<(Arc<Door>, Socket)>> {
        let mut workers: Vec<Vec<_>> = (0..self.workers()).map(|_| Vec::new()).collect();
        for shared in self.0 {
            for (worker, listener) in workers.iter_mut().zip(shared.listeners) {
                worker.push((shared.door.clone(), listener));
            }
        }
        workers
    }
}

/// A listener that anyone in the network could use under these settings.
pub(super) fn exposed<'l>(
    mut listeners: impl Iterator<Item = (SocketAddr, &'l Listener)>,
    settings: &Settings,
) -> Option<SocketAddr> {
    let is_open = |(address, listener): &(SocketAddr, &Listener)| {
        !canonical_ip(address.ip()).is_loopback()
            && settings.allow_from.is_empty()
            && !listener.knows_clients(settings.users.is_some())
    };
    listeners.find(is_open).map(|(address, _)| address)
}

/// The kernel shares connections out among the listeners. It would do so among processes as well, ours of the day
/// before included: the first socket is bound and listens as one that shares nothing, and an address in use is an error.
fn share_address(address: SocketAddr, workers: NonZeroUsize) -> io::Result<Vec<Socket>> {
    let first = listen(address, false)?;
    first.set_reuse_port(true)?;
    let first = TcpListener::from(first);
    // The kernel may have chosen the port.
    let address = first.local_addr()?;
    let mut listeners = vec![Socket::Tcp(first, address)];
    for _ in 1..workers.get() {
        listeners.push(Socket::Tcp(listen(address, true)?.into(), address));
    }
    Ok(listeners)
}

/// A socket that listens. What is set on it, each connection that it takes has from the beginning.
fn listen(address: SocketAddr, is_shared: bool) -> io::Result<socket2::Socket> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    // A restart must not wait for the connections of the process before.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    tune(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn tune(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&probes(TCP_KEEPALIVE))
}

/// A socket that systemd passes, by its place.
fn take(passed: &mut ListenFd, at: usize) -> io::Result<Socket> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "systemd passes no such socket");
    if let Ok(Some(listener)) = passed.take_unix_listener(at) {
        listener.set_nonblocking(true)?;
        return Ok(Socket::Unix(listener));
    }
    let listener = passed.take_tcp_listener(at)?.ok_or_else(none)?;
    let socket = socket2::Socket::from(listener);
    socket.set_nonblocking(true)?;
    tune(&socket)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok(Socket::Tcp(listener, address))
}

/// The same socket for every worker: whoever is free takes the next connection.
fn share(socket: &Socket, workers: NonZeroUsize) -> io::Result<Vec<Socket>> {
    let again = |_| {
        Ok(match socket {
            Socket::Tcp(listener, address) => Socket::Tcp(listener.try_clone()?, *address),
            Socket::Unix(listener) => Socket::Unix(listener.try_clone()?),
        })
    };
    (0..workers.get()).map(again).collect()
}
