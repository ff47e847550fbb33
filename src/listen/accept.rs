//! Takes connections, as many as the limit allows, until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::door::{Door, Guest, HERE};
use super::room::Room;
use crate::net::socket::Socket;
use crate::proxy::Proxy;

/// How long the loop rests where the process is out of descriptors or memory; doubled up to the second one.
const REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_millis(500);

/// A listener and what it hands its connections to.
#[derive(Debug)]
pub struct Acceptor {
    /// The bound socket.
    pub listener: Listener,
    /// What it wants of its clients.
    pub door: Arc<Door>,
    /// The worker that it belongs to, as its place among them.
    pub worker: usize,
    /// Who serves the requests.
    pub proxy: Arc<Proxy>,
    /// How many connections may be open, of all listeners.
    pub room: Arc<Room>,
    /// No new connections, and no new requests on old ones.
    pub closing: CancellationToken,
    /// No connections at all.
    pub cut: CancellationToken,
}

/// A socket that connections come by.
#[derive(Debug)]
pub enum Listener {
    /// TCP, and its address.
    Tcp(TcpListener, SocketAddr),
    /// A socket in the file system.
    Unix(UnixListener),
}

/// A connection that was taken.
#[derive(Debug)]
pub(super) struct Accepted {
    /// Nothing where it was reset before it could be looked at.
    pub(super) socket: Option<Socket>,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    /// The user that runs the client, where the kernel says so.
    pub(super) uid: Option<u32>,
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener, address) => {
                let (stream, peer) = listener.accept().await?;
                let local = if address.ip().is_unspecified() {
                    stream.local_addr().ok()
                } else {
                    Some(*address)
                };
                Ok(Accepted {
                    socket: local.map(|local| Socket::between(stream, peer, local)),
                    peer,
                    local: local.unwrap_or(*address),
                    uid: None,
                })
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                // What is done with a stream's descriptor is the same for both kinds.
                let descriptor = OwnedFd::from(stream.into_std()?);
                let stream = TcpStream::from_std(std::net::TcpStream::from(descriptor))?;
                Ok(Accepted {
                    socket: Some(Socket::between(stream, HERE, HERE)),
                    peer: HERE,
                    local: HERE,
                    uid: Some(uid),
                })
            }
        }
    }
}

impl Acceptor {
    /// Accepts until `closing`. Never ends for an error: what one connection or a shortage causes passes.
    pub async fn run(self) {
        let mut rest = REST;
        let mut complained: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    rest = REST;
                    self.take(accepted);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    if complained.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                        tracing::error!(%error, listener = &*self.door.name, "accept failed; raise ulimit -n if it persists");
                        complained = Some(Instant::now());
                    }
                    sleep(rest).await;
                    rest = LONGEST_REST.min(rest * 2);
                }
            }
        }
    }

    fn take(&self, accepted: Accepted) {
        let guest = Guest {
            door: self.door.clone(),
            proxy: self.proxy.clone(),
            room: self.room.clone(),
            worker: self.worker,
            closing: self.closing.clone(),
            cut: self.cut.clone(),
        };
        let tracker = &self.proxy.tracker;
        match self.room.enter() {
            Ok(place) => drop(tracker.spawn(guest.serve(accepted, place))),
            Err(failure) => drop(tracker.spawn(guest.refuse(accepted, failure))),
        }
    }
}

/// Whether an error of `accept` concerns one connection only (accept(2)).
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
