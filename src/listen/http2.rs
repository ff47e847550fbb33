//! HTTP/2 with a client: many requests and tunnels on one connection (RFC 9113).
//!
//! Floods are bounded: 100 streams at once, 64 KiB for a head, 20 streams reset before they were looked at; each stream
//! takes a place among the connections until its answer is out.
//!
//! A tunnel that breaks ends its stream with a reset (CANCEL). A client that cancels its stream is taken for one that ended its
//! direction in order: hyper tells no difference.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::room::Room;
use crate::cause::Phase;
use crate::exchange::{Exchange, Presence};
use crate::failure::{Failure, FirstBytes, HeadError};
use crate::net::socket::Socket;
use crate::net::wire::{Inside, Wire};
use crate::proxy::answer::{self, Answer};
use crate::proxy::tunnel::Tunnel;
use crate::proxy::{Caller, Proxy, respond};

/// Streams that may be open at once.
const STREAMS: u32 = 100;

/// The longest head of a request, in bytes.
const MAX_HEAD: u32 = 64 * 1024;

/// Streams that may be reset before they were looked at.
const PENDING_RESETS: usize = 20;

/// How much may be under way to us in one stream, and in all, in bytes: what nobody reads costs as much.
const WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

tokio::task_local! {
    /// What a stream's own task knows of the one that sends for its tunnel.
    static SENDING: Arc<Sending>;
}

/// The task that sends a tunnel's bytes. Dropped, it ends the stream in order; aborted, with a reset.
#[derive(Debug, Default)]
struct Sending(Mutex<Option<AbortHandle>>);

impl Sending {
    fn task(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts what hyper starts where the end of the process waits for it.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, task: F) {
        // A stream's task starts no other than the one that sends for its tunnel.
        match SENDING.try_with(Arc::clone) {
            Ok(sending) => *sending.task() = Some(self.0.spawn(task).abort_handle()),
            Err(_) => drop(self.0.spawn(SENDING.scope(Arc::default(), task))),
        }
    }
}

/// The streams of a connection.
#[derive(Debug)]
struct Streams(Mutex<Count>);

#[derive(Debug)]
struct Count {
    open: usize,
    has_begun: bool,
    /// Since when none is open.
    idle: Instant,
}

impl Streams {
    fn none() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Count {
            open: 0,
            has_begun: false,
            idle: Instant::now(),
        })))
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was ever one.
    fn has_begun(&self) -> bool {
        self.count().has_begun
    }

    /// Since when none is open; nothing where one is.
    fn idle_since(&self) -> Option<Instant> {
        let count = self.count();
        (count.open == 0).then_some(count.idle)
    }
}

/// A stream that is open.
#[derive(Debug)]
struct Open(Arc<Streams>);

impl Open {
    fn begin(streams: &Arc<Streams>) -> Self {
        let mut count = streams.count();
        count.open += 1;
        count.has_begun = true;
        drop(count);
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut count = self.0.count();
        count.open -= 1;
        count.idle = Instant::now();
    }
}

/// An answer on its way in a stream, which is open until it is out.
struct Streamed {
    answer: Answer,
    /// Where the stream becomes a tunnel, that holds it.
    _held: Option<(Open, OwnedSemaphorePermit)>,
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.get_mut().answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

/// A request that is not answered: its stream is reset.
#[derive(Debug, thiserror::Error)]
#[error("the stream ends without an answer")]
struct Unanswered;

/// Serves a connection to its end.
pub(super) async fn serve(
    proxy: Arc<Proxy>,
    room: Arc<Room>,
    wire: Wire,
    presence: Arc<Presence>,
    closing: CancellationToken,
) {
    let socket = wire.carrier().clone();
    let streams = Streams::none();
    let tracker = proxy.tracker.clone();
    let service = {
        let (proxy, presence, streams) = (proxy.clone(), presence.clone(), streams.clone());
        service_fn(move |request: Request<Incoming>| {
            let open = Open::begin(&streams);
            let caller = Arc::new(Caller::of_stream(presence.clone(), socket.clone()));
            let stream = Stream {
                proxy: proxy.clone(),
                room: room.clone(),
                caller,
                open,
            };
            stream.serve(request)
        })
    };
    let mut builder = http2::Builder::new(Tracked(tracker));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEAD)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(wire), service));
    let timeouts = proxy.snapshot.load().policy.timeouts.clone();
    let (head, keepalive) = (timeouts.head, timeouts.keepalive);
    let mut idle = pin!(sleep(head));
    let mut closed = pin!(closing.cancelled());
    let mut cut = pin!(presence.cut.cancelled());
    let mut is_closing = false;
    let mut is_draining = false;
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Ended::Http(ended));
        }
        if cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ended::Cut);
        }
        if !is_draining && closed.as_mut().poll(cx).is_ready() {
            (is_closing, is_draining) = (true, true);
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        while idle.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let next = match streams.idle_since() {
                None => now + keepalive,
                Some(_) if !streams.has_begun() => return Poll::Ready(Ended::Idle),
                Some(since) if now < since + keepalive => since + keepalive,
                Some(_) if is_closing => return Poll::Ready(Ended::Idle),
                Some(_) => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                    cx.waker().wake_by_ref();
                    now + keepalive
                }
            };
            idle.as_mut().reset(next);
        }
        Poll::Pending
    })
    .await;
    if streams.has_begun() {
        return;
    }
    let failure = match ended {
        Ended::Http(Err(error)) => HeadError::Broken(error).into(),
        _ if is_draining || presence.cut.is_cancelled() => {
            let phase = Phase::Client;
            Failure::Shutdown { phase }
        }
        Ended::Http(Ok(())) | Ended::Cut => HeadError::Empty.into(),
        Ended::Idle => HeadError::TimedOut {
            after: head,
            first: FirstBytes::default(),
        }
        .into(),
    };
    Exchange::open(proxy.observer.clone(), presence.clone()).fail(&failure);
}

/// How a connection ended.
enum Ended {
    /// By the rules of HTTP, for better or worse.
    Http(hyper::Result<()>),
    /// Nothing was asked on it for too long.
    Idle,
    /// The process cuts what is left.
    Cut,
}

/// One request of several.
struct Stream {
    proxy: Arc<Proxy>,
    room: Arc<Room>,
    caller: Arc<Caller>,
    open: Open,
}

impl Stream {
    async fn serve(self, mut request: Request<Incoming>) -> Result<Response<Streamed>, Unanswered> {
        let Self {
            proxy,
            room,
            caller,
            open,
        } = self;
        let place = match room.enter() {
            Ok(place) => place,
            Err(failure) => {
                return Ok(proxy.refuse(&caller, &failure).map(|answer| Streamed {
                    answer,
                    _held: None,
                }));
            }
        };
        let upgrade =
            (request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
        let mut handled = Box::pin(proxy.clone().handle(request, caller.clone()));
        let response = poll_fn(|cx| match handled.as_mut().poll(cx) {
            Poll::Ready(Ok(response)) => Poll::Ready(Ok(response)),
            Poll::Pending if caller.has_left() => Poll::Ready(Err(Unanswered)),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let sending = SENDING.try_with(Arc::clone).unwrap_or_default();
        let mut held = Some((open, place));
        if let (Some(tunnel), Some(upgrade)) = (caller.take_tunnel(), upgrade) {
            let (tracker, held) = (proxy.tracker.clone(), held.take());
            tracker.spawn(async move {
                run(tunnel, upgrade, &proxy, &caller.socket, sending).await;
                drop(held);
            });
        }
        Ok(response.map(|answer| Streamed {
            answer,
            _held: held,
        }))
    }
}

/// Runs a tunnel inside a stream.
async fn run(
    tunnel: Tunnel,
    upgrade: OnUpgrade,
    proxy: &Arc<Proxy>,
    carrier: &Socket,
    sending: Arc<Sending>,
) {
    // Where that fails, the tunnel says so when it is dropped.
    let Ok(upgraded) = upgrade.await else { return };
    let stream = Bytestream {
        bytes: TokioIo::new(upgraded),
        sending,
    };
    let mut wire = Wire::inside(stream, carrier.clone());
    let settled = Box::pin(tunnel.settle(proxy, &mut wire, Bytes::new())).await;
    if let Some(standing) = settled {
        standing.run(wire).await;
    }
}

/// The bytes of a stream.
#[derive(Debug)]
struct Bytestream {
    bytes: TokioIo<Upgraded>,
    sending: Arc<Sending>,
}

impl Inside for Bytestream {
    fn abort(&mut self) -> io::Result<()> {
        if let Some(task) = self.sending.task().take() {
            task.abort();
        }
        Ok(())
    }
}

impl AsyncRead for Bytestream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bytestream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}

impl Proxy {
    /// Answers a request that is not looked at, and leaves its record.
    fn refuse(&self, caller: &Caller, failure: &Failure) -> Response<Answer> {
        let mut exchange = Exchange::open(self.observer.clone(), caller.presence.clone());
        let response = respond::failure(failure, exchange.id(), None, false, None, &self.identity);
        exchange.answered(response.status());
        exchange.fail(failure);
        let open = answer::Open::new(&caller.requests);
        response.map(|body| Answer::Whole(Some(body), open))
    }
}
