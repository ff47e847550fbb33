//! Asks an upstream for tunnels over HTTP/2 (RFC 9113, section 8.5): many on one connection.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::{Connection, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::header::PROXY_AUTHORIZATION;
use http::{HeaderValue, Method, Request, Uri, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, timeout_at};

use super::{BODY_LIMIT, MAX_BODY, Reply, UpstreamError};
use crate::net::places::Held;
use crate::net::socket::Socket;
use crate::net::wire::Inside;
use crate::secret::Secret;
use crate::target::Target;

/// How much may be under way to us in one tunnel, in bytes: a tunnel that nobody reads costs as much.
const WINDOW: u32 = 256 * 1024;

/// The same for all tunnels of a connection: one that is not read must not stop the others.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// The longest head of a reply, in bytes.
const MAX_HEAD: u32 = 16 * 1024;

/// The most of one write that is copied at once, in bytes.
const CHUNK: usize = 16 * 1024;

/// A connection that tunnels can be asked for on.
#[derive(Clone, Debug)]
pub struct Session {
    sender: SendRequest<Bytes>,
    load: Arc<Load>,
}

/// What a connection carries, known to those who do not keep it open as well.
#[derive(Debug)]
pub struct Load {
    socket: Socket,
    tunnels: Mutex<Tunnels>,
    /// What it occupies.
    held: Held,
}

#[derive(Debug)]
struct Tunnels {
    /// How many are open or asked for.
    open: usize,
    /// Since when none is.
    idle_since: Instant,
    /// It takes no more.
    is_over: bool,
}

/// A tunnel of a connection that is open, or asked for.
#[derive(Debug)]
pub struct Turn(Arc<Load>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut tunnels = self.0.tunnels();
        tunnels.open = tunnels.open.saturating_sub(1);
        if tunnels.open == 0 {
            tunnels.idle_since = Instant::now();
            self.0.held.rest(&self.0.socket);
        }
    }
}

impl Load {
    fn tunnels(&self) -> MutexGuard<'_, Tunnels> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is that of this connection.
    pub fn is_of(&self, session: &Session) -> bool {
        std::ptr::eq(self, &raw const *session.load)
    }

    /// Takes no more tunnels.
    pub fn end(&self) {
        self.tunnels().is_over = true;
    }

    /// Whether it takes no more tunnels.
    pub fn is_over(&self) -> bool {
        self.tunnels().is_over
    }

    /// Waits until no tunnel was open for so long. It takes none from then on.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let wait = {
                let mut tunnels = self.tunnels();
                let end = tunnels.idle_since + limit;
                let left = end.saturating_duration_since(Instant::now());
                if tunnels.open > 0 {
                    limit
                } else if left.is_zero() {
                    tunnels.is_over = true;
                    return;
                } else {
                    left
                }
            };
            sleep(wait).await;
        }
    }
}

impl Session {
    /// Begins HTTP/2 on a connection whose TCP is `socket` and which occupies `held`. The future that is returned runs it, and
    /// must be run.
    ///
    /// # Errors
    /// Where the preface cannot be sent.
    pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        stream: S,
        socket: Socket,
        held: Held,
    ) -> Result<(Self, Connection<S, Bytes>), UpstreamError> {
        let begun = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .handshake(stream)
            .await;
        let (sender, connection) = begun.map_err(|error| failed(&error))?;
        let load = Arc::new(Load {
            socket,
            tunnels: Mutex::new(Tunnels {
                open: 0,
                idle_since: Instant::now(),
                is_over: false,
            }),
            held,
        });
        Ok((Self { sender, load }, connection))
    }

    /// The TCP connection below.
    pub fn socket(&self) -> &Socket {
        &self.load.socket
    }

    /// What it carries.
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Leave to ask for one more tunnel: none where the upstream takes no more now, or the connection is about to end.
    pub fn turn(&self) -> Option<Turn> {
        let mut tunnels = self.load.tunnels();
        if tunnels.is_over || tunnels.open >= self.sender.current_max_send_streams() {
            return None;
        }
        if tunnels.open == 0 && !self.load.held.wake() {
            tunnels.is_over = true;
            return None;
        }
        tunnels.open += 1;
        Some(Turn(self.load.clone()))
    }

    /// Asks for a tunnel, within `limit`.
    ///
    /// # Errors
    /// As [`super::open`] has them; [`UpstreamError::Stream`] and [`UpstreamError::GoAway`] where HTTP/2 ends it.
    pub async fn open(
        &self,
        target: &Target,
        authorization: Option<&Secret>,
        via: Option<&str>,
        limit: Duration,
    ) -> Result<Stream, UpstreamError> {
        let request = request(target, authorization, via).map_err(|()| UpstreamError::Io {
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let begun = Instant::now();
        let asked = timeout_at(begun + limit, async {
            let mut sender = self.sender.clone();
            poll_fn(|cx| sender.poll_ready(cx))
                .await
                .map_err(|error| failed(&error))?;
            let (answer, send) = sender
                .send_request(request, false)
                .map_err(|error| failed(&error))?;
            let answer = answer.await.map_err(|error| failed(&error))?;
            Ok((answer, send))
        });
        let (answer, send) = asked.await.unwrap_or_else(|_| {
            Err(UpstreamError::NoReply {
                after: begun.elapsed(),
            })
        })?;
        let (head, mut receive) = answer.into_parts();
        if head.status.is_success() {
            return Ok(Stream {
                send,
                receive,
                rest: Bytes::new(),
                _turn: None,
            });
        }
        let fields: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let mut reply = Reply::of(head.status, b"", &fields);
        let mut body = BytesMut::new();
        let _ = timeout_at(Instant::now() + BODY_LIMIT, async {
            while body.len() < MAX_BODY
                && let Some(Ok(data)) = receive.data().await
            {
                let _ = receive.flow_control().release_capacity(data.len());
                body.extend_from_slice(&data);
            }
        })
        .await;
        body.truncate(MAX_BODY);
        // Another stream is as good as this one.
        reply.is_reusable = true;
        Err(UpstreamError::Refused(Box::new(reply.with_body(&body))))
    }
}

fn request(
    target: &Target,
    authorization: Option<&Secret>,
    via: Option<&str>,
) -> Result<Request<()>, ()> {
    let uri: Uri = target.to_string().parse().map_err(|_| ())?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    if let Some(authorization) = authorization {
        let mut value = HeaderValue::from_str(authorization.reveal()).map_err(|_| ())?;
        value.set_sensitive(true);
        request.headers_mut().insert(PROXY_AUTHORIZATION, value);
    }
    if let Some(via) = via {
        let value = HeaderValue::from_str(via).map_err(|_| ())?;
        request.headers_mut().insert(header::VIA, value);
    }
    Ok(request)
}

fn failed(error: &h2::Error) -> UpstreamError {
    if error.is_go_away() && error.is_remote() {
        let reason = error.reason().unwrap_or(Reason::NO_ERROR);
        return UpstreamError::GoAway {
            reason: word(reason),
        };
    }
    if let Some(source) = error.get_io() {
        return super::lost(io::Error::from(source.kind()));
    }
    match error.reason() {
        Some(reason) if error.is_reset() => UpstreamError::Stream {
            reason: word(reason),
        },
        _ if error.is_library() => UpstreamError::MalformedReply {
            first: error.to_string(),
        },
        _ => UpstreamError::Closed,
    }
}

/// The name of an error code, as in RFC 9113, section 7.
fn word(reason: Reason) -> String {
    format!("{reason:?}")
}

/// A tunnel: a stream of a connection that others share.
pub struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Came and was not read.
    rest: Bytes,
    /// It is one of the connection's.
    _turn: Option<Turn>,
}

impl Stream {
    /// The same, which counts among the tunnels of its connection until it is dropped.
    #[must_use]
    pub fn counted(self, turn: Option<Turn>) -> Self {
        Self {
            _turn: turn,
            ..self
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?})", self.send.stream_id())
    }
}

impl Inside for Stream {
    fn abort(&mut self) -> io::Result<()> {
        self.send.send_reset(Reason::CANCEL);
        Ok(())
    }
}

/// What an error of one stream is to whoever carries its bytes: never a TCP reset, which others would see as well.
fn told(error: h2::Error) -> io::Error {
    match error.get_io() {
        Some(source) => io::Error::new(source.kind(), error.to_string()),
        None => io::Error::new(io::ErrorKind::ConnectionAborted, error),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => return Poll::Ready(Err(told(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        // Only what was taken makes room for more.
        self.receive
            .flow_control()
            .release_capacity(count)
            .map_err(told)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = buf.len().min(CHUNK);
        self.send.reserve_capacity(wanted);
        let room = match ready!(self.send.poll_capacity(cx)) {
            Some(Ok(room)) => room.min(wanted),
            Some(Err(error)) => return Poll::Ready(Err(told(error))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let data = Bytes::copy_from_slice(buf.get(..room).unwrap_or_default());
        self.send.send_data(data, false).map_err(told)?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.send.send_data(Bytes::new(), true) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(told(error))),
        }
    }
}
