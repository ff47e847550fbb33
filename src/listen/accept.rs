//! Takes connections, as many as the limit allows, until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::http;
use crate::client::Client;
use crate::exchange::{Exchange, Presence};
use crate::failure::{Failure, HeadError};
use crate::net::socket::Socket;
use crate::proxy::Proxy;

/// How long the loop rests where the process is out of descriptors or memory; doubled up to the second one.
const REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_millis(500);

/// A listener and what it hands its connections to.
#[derive(Debug)]
pub struct Acceptor {
    /// The bound socket.
    pub listener: TcpListener,
    /// Its address.
    pub address: SocketAddr,
    /// Its name in the policy.
    pub name: Arc<str>,
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

/// Connections over the limit that may be told so at once; more are closed without a word.
const REFUSALS: usize = 64;

/// The limit on open connections.
#[derive(Debug)]
pub struct Room {
    limit: usize,
    free: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl Room {
    /// Room for `limit` connections.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            free: Arc::new(Semaphore::new(limit)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
        })
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
                Ok((stream, peer)) => {
                    rest = REST;
                    self.take(stream, peer);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    if complained.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                        tracing::error!(%error, listener = &*self.name, "accept failed; raise ulimit -n if it persists");
                        complained = Some(Instant::now());
                    }
                    sleep(rest).await;
                    rest = LONGEST_REST.min(rest * 2);
                }
            }
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr) {
        let local = if self.address.ip().is_unspecified() {
            stream.local_addr()
        } else {
            Ok(self.address)
        };
        let socket = local.map(|local| Socket::between(stream, peer, local));
        let local = socket.as_ref().map_or(self.address, Socket::local);
        let client = Client {
            peer,
            local,
            listener: self.name.clone(),
        };
        let presence = Arc::new(Presence {
            client,
            worker: self.worker,
            stalled: AtomicBool::new(false),
            cut: self.cut.clone(),
            write_limit: AtomicU64::default(),
        });
        presence.limit_writes(self.proxy.snapshot.load().policy.timeouts.body_idle);
        let Ok(socket) = socket else {
            // It was reset before it could be looked at.
            let exchange = Exchange::open(self.proxy.observer.clone(), presence);
            return exchange.fail(&HeadError::Empty.into());
        };
        let (proxy, closing) = (self.proxy.clone(), self.closing.clone());
        let Ok(place) = self.room.free.clone().try_acquire_owned() else {
            let failure = Failure::Connections {
                limit: self.room.limit,
            };
            let Ok(turn) = self.room.refusals.clone().try_acquire_owned() else {
                return Exchange::open(proxy.observer.clone(), presence).fail(&failure);
            };
            self.proxy.tracker.spawn(async move {
                http::refuse(&proxy, &presence, socket, failure).await;
                drop(turn);
            });
            return;
        };
        self.proxy.tracker.spawn(async move {
            http::serve(proxy, socket, presence, closing).await;
            drop(place);
        });
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
