//! Stands between the library's choice of a server and its connection to it: hears every reply, and lets the next server
//! be asked where one cannot help.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use hickory_resolver::config::{ConnectionConfig, ProtocolConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::xfer::{DnsExchange, DnsHandle, FirstAnswer as _};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse, ResponseCode};
use hickory_resolver::{ConnectionProvider, PoolContext};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::SecureError;
use super::facts::Transport;
use super::journal::{Journal, Reply, Story, is_unhelpful};
use super::provider::{Boxed, Sockets};

/// Makes connections that are listened to.
#[derive(Clone)]
pub(super) struct Tap {
    pub(super) sockets: Sockets,
    pub(super) journal: Arc<Journal>,
    /// There is no other server to ask.
    pub(super) is_alone: bool,
    /// The room for questions.
    pub(super) room: Arc<Semaphore>,
}

/// A connection that is listened to.
#[derive(Clone)]
pub(super) struct Tapped {
    exchange: DnsExchange<Sockets>,
    server: SocketAddr,
    transport: Transport,
    /// The turn of the way that it took.
    turn: u64,
    tap: Tap,
}

/// That a server cannot help: an error of its connection to the library, which goes on to the next server then.
#[derive(Debug)]
pub(super) struct Unhelpful(pub(super) ResponseCode);

impl fmt::Display for Unhelpful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Unhelpful {}

impl ConnectionProvider for Tap {
    type Conn = Tapped;
    type FutureConn = Boxed<Result<Tapped, NetError>>;
    type RuntimeProvider = Sockets;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        context: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let opening = self.sockets.new_connection(ip, config, context)?;
        let tap = self.clone();
        let server = SocketAddr::new(ip, config.port);
        let transport = match config.protocol {
            ProtocolConfig::Udp => Transport::Udp,
            ProtocolConfig::Tcp => Transport::Tcp,
            ProtocolConfig::Tls { .. } => Transport::Tls,
            ProtocolConfig::Https { .. } => Transport::Https,
        };
        let turn = tap.sockets.way.turn();
        let after = context.options.timeout;
        Ok(Box::pin(async move {
            tap.journal.note(server, |peer| peer.is_reached = false);
            let opened = timeout(after, opening).await;
            let opened = opened.unwrap_or_else(|_| {
                let error = SecureError::TimedOut { after };
                let error = io::Error::new(io::ErrorKind::TimedOut, error);
                Err(NetError::Io(Arc::new(error)))
            });
            let opened = opened.map_err(SecureError::read);
            if let Err(NetError::Io(error)) = &opened {
                let trouble = Some(error.clone());
                tap.journal.note(server, |peer| peer.trouble = trouble);
            }
            let exchange = opened?;
            tap.journal.note(server, |peer| {
                (peer.is_reached, peer.trouble) = (true, None);
            });
            Ok(Tapped {
                exchange,
                server,
                transport,
                turn,
                tap,
            })
        }))
    }

    fn runtime_provider(&self) -> &Sockets {
        &self.sockets
    }
}

impl DnsHandle for Tapped {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = Sockets;

    fn send(&self, request: DnsRequest) -> Self::Response {
        Box::pin(stream::once(self.clone().ask(request)))
    }
}

impl Tapped {
    async fn wait_for_room(&self, story: Option<&Story>) -> Option<OwnedSemaphorePermit> {
        let room = &self.tap.room;
        if let Ok(room) = room.clone().try_acquire_owned() {
            return Some(room);
        }
        if let Some(story) = story {
            story.queues(true);
        }
        let found = room.clone().acquire_owned().await.ok();
        if let Some(story) = story {
            story.queues(false);
        }
        found
    }

    async fn ask(self, mut request: DnsRequest) -> Result<DnsResponse, NetError> {
        let journal = &self.tap.journal;
        let story = request.queries.first().map(|query| journal.story(query));
        if self.turn != self.tap.sockets.way.turn() {
            // The library opens another one then.
            let error = io::Error::from(io::ErrorKind::ConnectionAborted);
            return Err(NetError::Io(Arc::new(error)));
        }
        let _room = self.wait_for_room(story.as_deref()).await;
        // What goes by UDP is told by its socket.
        if let (Some(story), true) = (&story, self.transport != Transport::Udp) {
            story.asks(self.server, self.transport);
        }
        // Extended errors come only to those who send an OPT record; a server that cannot take one is asked without
        // (RFC 6891, section 7).
        if journal.peer(self.server).is_plain() {
            request.edns = None;
        }
        let has_edns = request.edns.is_some();
        let mut heard = self.exchange.send(request.clone()).first_answer().await;
        match &heard {
            Ok(response) if has_edns && is_about_edns(response.metadata.response_code) => {
                journal.note(self.server, |peer| peer.set_plain(true));
                request.edns = None;
                heard = self.exchange.send(request).first_answer().await;
            }
            Ok(_) if has_edns => journal.note(self.server, |peer| peer.takes_edns = true),
            // It may be the OPT record that it is silent at: the next try goes without.
            Err(NetError::Timeout) => journal.note(self.server, |peer| {
                peer.set_plain(has_edns && !peer.takes_edns);
            }),
            Ok(_) | Err(_) => {}
        }
        if self.transport.is_secure() {
            heard = heard.map_err(SecureError::read);
        }
        match (&story, &heard) {
            (Some(story), Ok(response)) => {
                story.hears(Reply::of(self.server, self.transport, response));
            }
            (Some(story), Err(NetError::Io(error))) => story.fails(error),
            (Some(_), Err(_)) | (None, _) => {}
        }
        let response = heard?;
        let code = response.metadata.response_code;
        if is_unhelpful(code) && !self.tap.is_alone {
            return Err(NetError::Io(Arc::new(io::Error::other(Unhelpful(code)))));
        }
        Ok(response)
    }
}

/// The codes by which servers say that they do not know OPT records.
fn is_about_edns(code: ResponseCode) -> bool {
    matches!(
        code,
        ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS
    )
}
