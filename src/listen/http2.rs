//! HTTP/2 with a client: many requests and tunnels on one connection (RFC 9113).
//!
//! Floods are bounded: 100 streams at once, 64 KiB for a head, 20 streams reset before they were looked at; each stream
//! takes a place among the connections.
//!
//! A tunnel that breaks ends its stream with a reset (CANCEL). A client that cancels its stream is taken for one that ended its
//! direction in order: hyper tells no difference.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::room::Room;
use crate::exchange::{Exchange, Presence};
use crate::failure::{Failure, HeadError};
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
#[derive(Debug, Default)]
struct Streams {
    open: AtomicUsize,
    begun: AtomicUsize,
}

/// A stream that is open.
#[derive(Debug)]
struct Open(Arc<Streams>);

impl Open {
    fn begin(streams: &Arc<Streams>) -> Self {
        streams.open.fetch_add(1, Ordering::Relaxed);
        streams.begun.fetch_add(1, Ordering::Relaxed);
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
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
    let streams = Arc::<Streams>::default();
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
    let keepalive = proxy.snapshot.load().policy.timeouts.keepalive;
    let mut idle = pin!(sleep(keepalive));
    let mut closed = pin!(closing.cancelled());
    let mut cut = pin!(presence.cut.cancelled());
    let mut is_closing = false;
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        if cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if !is_closing && closed.as_mut().poll(cx).is_ready() {
            is_closing = true;
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        while idle.as_mut().poll(cx).is_ready() {
            let is_idle = streams.open.load(Ordering::Relaxed) == 0;
            if is_idle && is_closing {
                return Poll::Ready(None);
            }
            if is_idle {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            idle.as_mut().reset(Instant::now() + keepalive);
        }
        Poll::Pending
    })
    .await;
    if streams.begun.load(Ordering::Relaxed) == 0 {
        let failure = match ended {
            Some(Err(error)) => HeadError::Broken(error),
            Some(Ok(())) | None => HeadError::Empty,
        };
        Exchange::open(proxy.observer.clone(), presence.clone()).fail(&failure.into());
    }
}

/// One request of several.
struct Stream {
    proxy: Arc<Proxy>,
    room: Arc<Room>,
    caller: Arc<Caller>,
    open: Open,
}

impl Stream {
    async fn serve(self, mut request: Request<Incoming>) -> Result<Response<Answer>, Unanswered> {
        let Self {
            proxy,
            room,
            caller,
            open,
        } = self;
        let place = match room.enter() {
            Ok(place) => place,
            Err(failure) => return Ok(proxy.refuse(&caller, &failure)),
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
        if let (Some(tunnel), Some(upgrade)) = (caller.take_tunnel(), upgrade) {
            let tracker = proxy.tracker.clone();
            tracker.spawn(async move {
                run(tunnel, upgrade, &proxy, &caller.socket, sending).await;
                drop((open, place));
            });
        }
        Ok(response)
    }
}

/// Runs a tunnel inside a stream.
async fn run(
    tunnel: Tunnel,
    upgrade: OnUpgrade,
    proxy: &Proxy,
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
