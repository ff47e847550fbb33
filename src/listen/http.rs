//! One client's connection: HTTP/1.1 as long as it lasts, then perhaps a tunnel.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::socks;
use super::stream::{ClientStream, FIRST_BYTES, Learned, Shared};
use crate::cause::Phase;
use crate::exchange::{Exchange, Presence};
use crate::failure::{Failure, HeadError, RequestError};
use crate::net::wire::Wire;
use crate::proxy::tunnel::{Standing, Tunnel};
use crate::proxy::{Caller, Proxy, respond};
use crate::target::MAX_TARGET;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// How long, and for how much, a connection is read on after its last answer: closed with unread bytes, it would be
/// reset, and the answer with it.
pub(super) const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// How HTTP ended on a connection.
enum Ended {
    /// By its own rules, for better or worse.
    Http(hyper::Result<()>),
    /// The client left: it reset the connection, or ended it before the answer that it asked for.
    Left,
    /// The process takes no new requests, and there was none yet.
    Closing,
    /// The process cuts what is left.
    Cut,
}

/// What is to be done with a connection when HTTP on it is over.
enum Next {
    /// Nothing: it is cut.
    Drop,
    /// It is a tunnel; these bytes came behind its request.
    Tunnel(Tunnel, Bytes),
    /// It speaks SOCKS5, and this is how it began.
    Socks(Vec<u8>),
    /// What came on it did not become a request.
    Refuse(Failure),
    /// Its last answer is to arrive.
    Linger,
}

/// What a connection becomes when its first protocol is over.
enum Becomes {
    /// A tunnel.
    Tunnel(Box<Standing>),
    /// Nothing more: its last answer is to arrive.
    Linger,
    /// Nothing: it is cut.
    Nothing,
}

/// Serves a connection to its end.
#[expect(
    clippy::manual_async_fn,
    reason = "it would keep its arguments a second time, and an idle tunnel costs what this future does"
)]
pub(super) fn serve(
    proxy: Arc<Proxy>,
    wire: Wire,
    presence: Arc<Presence>,
    closing: CancellationToken,
) -> impl Future<Output = ()> + Send {
    async move {
        // In a box, so that a tunnel, which may stay for hours, does not keep the room that it took to open it.
        let (becomes, wire) = Box::pin(begin(&proxy, wire, &presence, closing)).await;
        drop((proxy, presence));
        match becomes {
            Becomes::Tunnel(tunnel) => tunnel.run(wire).await,
            Becomes::Linger => Box::pin(linger(wire)).await,
            Becomes::Nothing => {}
        }
    }
}

/// Speaks the protocol in which the client asks, until the connection is a tunnel or over.
async fn begin(
    proxy: &Arc<Proxy>,
    wire: Wire,
    presence: &Arc<Presence>,
    closing: CancellationToken,
) -> (Becomes, Wire) {
    let (next, mut wire) = speak(proxy, wire, presence, closing).await;
    let becomes = match next {
        Next::Tunnel(tunnel, behind) => settle(proxy, &mut wire, tunnel, behind).await,
        Next::Socks(begun) => match socks::speak(proxy, &mut wire, presence, &begun).await {
            socks::Next::Tunnel(tunnel, behind) => settle(proxy, &mut wire, *tunnel, behind).await,
            socks::Next::Linger => Becomes::Linger,
            socks::Next::Drop => Becomes::Nothing,
        },
        Next::Refuse(failure) => refuse(proxy, presence, &mut wire, failure).await,
        Next::Linger => Becomes::Linger,
        Next::Drop => Becomes::Nothing,
    };
    (becomes, wire)
}

async fn settle(proxy: &Arc<Proxy>, wire: &mut Wire, tunnel: Tunnel, behind: Bytes) -> Becomes {
    let standing = tunnel.settle(proxy, wire, behind).await;
    standing.map_or(Becomes::Nothing, |tunnel| Becomes::Tunnel(Box::new(tunnel)))
}

/// Speaks HTTP for as long as it lasts.
async fn speak(
    proxy: &Arc<Proxy>,
    wire: Wire,
    presence: &Arc<Presence>,
    closing: CancellationToken,
) -> (Next, Wire) {
    let socket = wire.carrier().clone();
    let caller = Arc::new(Caller::new(presence.clone(), socket.clone()));
    let shared = Arc::new(Shared::default());
    let timeouts = proxy.snapshot.load().policy.timeouts.clone();
    let stream = ClientStream::new(
        wire,
        presence.clone(),
        timeouts,
        shared.clone(),
        caller.requests.clone(),
    );
    let service = {
        let (proxy, caller, shared) = (proxy.clone(), caller.clone(), shared.clone());
        service_fn(move |request: Request<Incoming>| {
            shared.begin();
            Box::pin(proxy.clone().handle(request, caller.clone()))
        })
    };
    let mut connection = http1::Builder::new()
        .half_close(true)
        .preserve_header_case(true)
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut is_closing = false;
    let mut closed = pin!(closing.cancelled());
    let mut cut = pin!(presence.cut.cancelled());
    let mut reset = pin!(socket.reset());
    let ended = poll_fn(|cx| {
        if !is_closing && closed.as_mut().poll(cx).is_ready() {
            is_closing = true;
            Pin::new(&mut connection).graceful_shutdown();
            // What has not begun to ask is not waited for; a head that has begun may still come whole.
            if shared.learned().is_untouched() {
                return Poll::Ready(Ended::Closing);
            }
        }
        if let Poll::Ready(result) = connection.poll_without_shutdown(cx) {
            return Poll::Ready(Ended::Http(result));
        }
        if caller.has_left() || reset.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ended::Left);
        }
        cut.as_mut().poll(cx).map(|()| Ended::Cut)
    })
    .await;
    // A client that ends its direction may still read: whether it left is asked when its request is to be cut.
    let is_cut = matches!(ended, Ended::Cut);
    if is_cut && socket.departure().now_or_never().is_some() {
        presence.ended.store(true, Ordering::Relaxed);
    }
    // What is left of a request is dropped here, and says so in its record.
    let parts = connection.into_parts();
    let (wire, behind) = (parts.io.into_inner().into_wire(), parts.read_buf);
    (next(ended, is_closing, &caller, &shared, behind), wire)
}

/// What is to be done when HTTP has ended so, while the process takes no new requests or not; `behind` was read and is no
/// part of a request.
fn next(ended: Ended, is_closing: bool, caller: &Caller, shared: &Shared, behind: Bytes) -> Next {
    let has_begun = !shared.learned().first.0.is_empty();
    let shutdown = Failure::Shutdown {
        phase: Phase::Client,
    };
    let failure = match ended {
        // A request that was open has its record.
        Ended::Cut if !has_begun => return Next::Drop,
        Ended::Cut | Ended::Closing => Some(shutdown),
        Ended::Left | Ended::Http(_) if shared.learned().socks.is_some() => {
            let begun = shared.learned().socks.take();
            return Next::Socks(begun.unwrap_or_default());
        }
        Ended::Left => head_error(&mut shared.learned(), None, &behind),
        Ended::Http(result) => {
            if let Some(tunnel) = caller.take_tunnel() {
                return Next::Tunnel(tunnel, behind);
            }
            // Behind an answer HTTP waits for no head that has only begun.
            if is_closing && has_begun && result.is_ok() {
                return Next::Refuse(shutdown);
            }
            head_error(&mut shared.learned(), Some(result), &behind)
        }
    };
    failure.map_or(Next::Linger, Next::Refuse)
}

/// Answers what is not even to become a request, and ends it.
pub(super) async fn turn_away(
    proxy: &Proxy,
    presence: &Arc<Presence>,
    mut wire: Wire,
    failure: Failure,
) {
    if let Becomes::Linger = refuse(proxy, presence, &mut wire, failure).await {
        linger(wire).await;
    }
}

/// Answers what did not become a request, as far as it can be answered, and leaves its record.
async fn refuse(
    proxy: &Proxy,
    presence: &Arc<Presence>,
    wire: &mut Wire,
    failure: Failure,
) -> Becomes {
    let mut exchange = Exchange::open(proxy.observer.clone(), presence.clone());
    if failure.status().is_none() {
        exchange.fail(&failure);
        return Becomes::Linger;
    }
    let response = respond::failure(&failure, exchange.id(), None, false, None, &proxy.identity);
    exchange.answered(response.status());
    exchange.fail(&failure);
    let answered = timeout(LINGER, wire.write_all(&respond::raw(&response))).await;
    if matches!(answered, Ok(Ok(()))) {
        Becomes::Linger
    } else {
        Becomes::Nothing
    }
}

/// Ends our direction and reads on for a while, so that the last answer arrives.
///
/// Where an answer was cut so that only a reset can tell, the reset comes at once.
async fn linger(mut wire: Wire) {
    if wire.carrier().resets_on_close() {
        return;
    }
    let drain = async {
        wire.shutdown().await?;
        let mut rest = (&mut wire).take(LINGER_BYTES as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    if let Ok(Err(error)) = timeout(LINGER, drain).await {
        tracing::debug!(%error, "a client's connection ended before it was read to its end");
    }
}

/// Why a connection's last head did not become a request; `None` where there was no head to read any more.
///
/// `unread` is what HTTP left: a head that it could not read, where it says so. Behind the last answer, or behind a
/// request whose client left, it is nothing that anyone will read.
fn head_error(
    learned: &mut Learned,
    result: Option<hyper::Result<()>>,
    unread: &[u8],
) -> Option<Failure> {
    if let Some(error) = learned.error.take() {
        return Some(error.into());
    }
    let mut first = learned.first.clone();
    let is_unreadable = |error: &hyper::Error| error.is_parse() || error.is_incomplete_message();
    if first.0.is_empty() && matches!(&result, Some(Err(error)) if is_unreadable(error)) {
        first.0.extend(unread.iter().take(FIRST_BYTES));
    }
    let has_begun = !first.0.is_empty();
    let error = match (result, learned.held_back) {
        (Some(Err(error)), _) if error.is_parse_version_h2() => HeadError::Http2,
        // Not the head itself: what it says of its body.
        (Some(Err(source)), Some(431)) if !unread.starts_with(&first.0) => {
            HeadError::Malformed { first, source }
        }
        (_, Some(431)) if !has_short_line(unread) => {
            return Some(
                RequestError::TargetTooLong {
                    length: unread.len(),
                }
                .into(),
            );
        }
        (_, Some(431)) => HeadError::TooLarge,
        (_, Some(414)) => return Some(RequestError::TargetTooLong { length: MAX_HEAD }.into()),
        (Some(Err(source)), held_back) if held_back.is_some() || source.is_parse() => {
            HeadError::Malformed { first, source }
        }
        // HTTP ended it, behind an answer whose request was not read to its end.
        (Some(Ok(())), None) if learned.served => return None,
        _ if has_begun => HeadError::Cut(first),
        _ if !learned.served => HeadError::Empty,
        _ => return None,
    };
    Some(error.into())
}

/// Whether a head's first line ends within the limit of its target.
fn has_short_line(head: &[u8]) -> bool {
    head.iter().take(MAX_TARGET).any(|byte| *byte == b'\n')
}
