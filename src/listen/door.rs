//! A listener as its clients meet it, and the way of a connection through it: the PROXY header, the limits of its client,
//! TLS; then it is known who it is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::accept::Accepted;
use super::room::{Place, Room};
use super::{http, http2, proxy_header, tls};
use crate::cause::Phase;
use crate::client::Client;
use crate::exchange::{Exchange, Presence};
use crate::failure::{Failure, FirstBytes, HeadError};
use crate::net::socket::Socket;
use crate::net::wire::Wire;
use crate::proxy::Proxy;
use crate::target::canonical_ip;

/// What a listener wants of its clients.
pub struct Door {
    /// Its name in the policy.
    pub name: Arc<str>,
    /// TLS with its clients; another certificate may come with a reload.
    pub tls: Option<ArcSwap<ServerConfig>>,
    /// Whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<IpNet>,
    /// Whether requests must say who they come from.
    pub asks_who: bool,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("name", &self.name)
            .field("has_tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// What a connection takes with it through the door.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) door: Arc<Door>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) room: Arc<Room>,
    pub(super) worker: usize,
    pub(super) closing: CancellationToken,
    pub(super) cut: CancellationToken,
}

/// A connection behind the door.
struct Inside {
    wire: Wire,
    presence: Arc<Presence>,
    is_http2: bool,
    /// Its place among those of its client.
    place: Option<Place>,
    proxy: Arc<Proxy>,
    room: Arc<Room>,
    closing: CancellationToken,
}

impl Guest {
    /// Serves a connection to its end; it keeps its place until then.
    pub(super) fn serve(
        self,
        accepted: Accepted,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send {
        // In a box that is made before: what comes first leaves nothing behind in a tunnel, which may stay for hours.
        let entering = Box::pin(self.enter(accepted));
        async move {
            let Some(Inside {
                wire,
                presence,
                is_http2,
                place: of_client,
                proxy,
                room,
                closing,
            }) = entering.await
            else {
                return;
            };
            if is_http2 {
                Box::pin(http2::serve(proxy, room, wire, presence, closing)).await;
            } else {
                http::serve(proxy, wire, presence, closing).await;
            }
            drop((of_client, place));
        }
    }

    /// Leads a connection through the door. Where that fails, it has left its record.
    async fn enter(self, accepted: Accepted) -> Option<Inside> {
        let (socket, presence) = self.receive(accepted).await?;
        let place = match self.room.enter_as(presence.client.ip()) {
            Ok(place) => place,
            Err(failure) => {
                self.turn_away(socket, presence, failure).await;
                return None;
            }
        };
        let (wire, presence, is_http2) = self.shake(socket, presence).await?;
        Some(Inside {
            wire,
            presence,
            is_http2,
            place,
            proxy: self.proxy,
            room: self.room,
            closing: self.closing,
        })
    }

    /// Answers a connection that there is no room for, where it can be told.
    pub(super) async fn refuse(self, accepted: Accepted, failure: Failure) {
        let presence = self.presence(accepted.peer, &accepted, None);
        if let Some(socket) = accepted.socket {
            self.turn_away(socket, presence, failure).await;
        } else {
            Exchange::open(self.proxy.observer.clone(), presence).fail(&failure);
        }
    }

    /// Leaves a record, and an answer where there is leave to give one and the client could read it.
    async fn turn_away(&self, socket: Socket, presence: Arc<Presence>, failure: Failure) {
        let turn = self.room.refuse();
        if turn.is_none() || self.door.tls.is_some() {
            return Exchange::open(self.proxy.observer.clone(), presence).fail(&failure);
        }
        http::turn_away(&self.proxy, &presence, Wire::Tcp(socket), failure).await;
    }

    /// Leaves the record of a connection that the process cuts before it asked anything.
    fn cut_off(&self, presence: Arc<Presence>) {
        let phase = Phase::Client;
        Exchange::open(self.proxy.observer.clone(), presence).fail(&Failure::Shutdown { phase });
    }

    fn presence(
        &self,
        peer: SocketAddr,
        accepted: &Accepted,
        proven: Option<Arc<str>>,
    ) -> Arc<Presence> {
        let presence = Presence {
            client: Client {
                peer,
                local: accepted.local,
                listener: self.door.name.clone(),
            },
            worker: self.worker,
            stalled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            cut: self.cut.clone(),
            write_limit: AtomicU64::default(),
            asks_who: self.door.asks_who,
            proven,
        };
        presence.limit_writes(self.proxy.snapshot.load().policy.timeouts.body_idle);
        Arc::new(presence)
    }

    /// Finds out whom the connection is from. Where that fails, it has left its record.
    async fn receive(&self, accepted: Accepted) -> Option<(Socket, Arc<Presence>)> {
        let uid = accepted.uid.map(|uid| format!("uid:{uid}").into());
        let Some(mut socket) = accepted.socket.clone() else {
            // It was reset before it could be looked at.
            let presence = self.presence(accepted.peer, &accepted, uid);
            Exchange::open(self.proxy.observer.clone(), presence).fail(&HeadError::Empty.into());
            return None;
        };
        let from = canonical_ip(accepted.peer.ip());
        if !self
            .door
            .proxy_protocol
            .iter()
            .any(|net| net.contains(&from))
        {
            return Some((socket, self.presence(accepted.peer, &accepted, uid)));
        }
        let limit = self.proxy.snapshot.load().policy.timeouts.head;
        let read = tokio::select! {
            read = timeout(limit, proxy_header::read(&mut socket)) => read,
            () = self.cut.cancelled() => {
                self.cut_off(self.presence(accepted.peer, &accepted, uid));
                return None;
            }
        };
        let read = read.unwrap_or(Err(HeadError::TimedOut {
            after: limit,
            first: FirstBytes::default(),
        }));
        match read {
            Ok(source) => {
                let peer = source.unwrap_or(accepted.peer);
                Some((socket, self.presence(peer, &accepted, uid)))
            }
            Err(error) => {
                let presence = self.presence(accepted.peer, &accepted, uid);
                http::turn_away(&self.proxy, &presence, Wire::Tcp(socket), error.into()).await;
                None
            }
        }
    }

    /// Shakes hands where the listener speaks TLS. Where that fails, it has left its record.
    ///
    /// Gives the connection, whom it is from, and whether HTTP/2 was agreed on.
    async fn shake(
        &self,
        socket: Socket,
        presence: Arc<Presence>,
    ) -> Option<(Wire, Arc<Presence>, bool)> {
        let Some(config) = &self.door.tls else {
            return Some((Wire::Tcp(socket), presence, false));
        };
        let limit = self.proxy.snapshot.load().policy.timeouts.head;
        let shaken = tokio::select! {
            shaken = timeout(limit, tls::accept(config.load_full(), socket.clone())) => shaken,
            () = self.cut.cancelled() => {
                self.cut_off(presence);
                return None;
            }
        };
        let shaken = shaken.unwrap_or(Err(HeadError::TimedOut {
            after: limit,
            first: FirstBytes::default(),
        }));
        match shaken {
            Ok(shaken) => {
                let presence = match shaken.name {
                    None => presence,
                    Some(name) => Arc::new(presence.of(name)),
                };
                Some((shaken.wire, presence, shaken.is_http2))
            }
            Err(error @ HeadError::PlainToTls(_)) => {
                // Whoever speaks plain HTTP reads a plain answer.
                http::turn_away(&self.proxy, &presence, Wire::Tcp(socket), error.into()).await;
                None
            }
            Err(error) => {
                Exchange::open(self.proxy.observer.clone(), presence).fail(&error.into());
                None
            }
        }
    }
}

/// The address that stands for a client on a Unix socket: it is on this machine.
pub(super) const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
