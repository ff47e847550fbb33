//! One client's connection: HTTP/1.1 as long as it lasts, then perhaps a tunnel.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::stream::{ClientStream, FIRST_BYTES, Learned, Shared};
use crate::cause::Phase;
use crate::exchange::{Exchange, Presence};
use crate::failure::{Failure, HeadError, RequestError};
use crate::net::socket::Socket;
use crate::proxy::tunnel::Tunnel;
use crate::proxy::{Caller, Proxy, respond};
use crate::target::MAX_TARGET;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// How long, and for how much, a connection is read on after its last answer: closed with unread bytes, it would be
/// reset, and the answer with it.
const LINGER: Duration = Duration::from_secs(1);
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
    /// What came on it did not become a request.
    Refuse(Failure),
    /// Its last answer is to arrive.
    Linger,
}

/// Serves a connection to its end.
pub(super) async fn serve(
    proxy: Arc<Proxy>,
    socket: Socket,
    presence: Arc<Presence>,
    closing: CancellationToken,
) {
    // In a box, so that a tunnel, which may stay for hours, does not keep the room that HTTP needed.
    let http = Box::pin(speak(&proxy, &socket, &presence, closing));
    let tunnel = match http.await {
        Next::Tunnel(tunnel, behind) => tunnel.run(socket, behind),
        Next::Refuse(failure) => return refuse(&proxy, &presence, socket, failure).await,
        Next::Linger => return linger(socket).await,
        Next::Drop => return,
    };
    drop((proxy, presence));
    tunnel.await;
}

/// Speaks HTTP for as long as it lasts.
async fn speak(
    proxy: &Arc<Proxy>,
    socket: &Socket,
    presence: &Arc<Presence>,
    closing: CancellationToken,
) -> Next {
    let caller = Arc::new(Caller::new(presence.clone(), socket.clone()));
    let shared = Arc::new(Shared::default());
    let timeouts = proxy.snapshot.load().policy.timeouts.clone();
    let stream = ClientStream::new(
        socket.clone(),
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
    let watched = socket.clone();
    let mut reset = pin!(watched.reset());
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
    // What is left of a request is dropped here, and says so in its record.
    let behind = connection.into_parts().read_buf;
    let failure = match ended {
        Ended::Cut => return Next::Drop,
        Ended::Closing => Some(Failure::Shutdown {
            phase: Phase::Client,
        }),
        Ended::Left => head_error(&mut shared.learned(), None, &behind),
        Ended::Http(result) => {
            if let Some(tunnel) = caller.take_tunnel() {
                return Next::Tunnel(tunnel, behind);
            }
            head_error(&mut shared.learned(), Some(result), &behind)
        }
    };
    failure.map_or(Next::Linger, Next::Refuse)
}

/// Answers what did not become a request, as far as it can be answered, and leaves its record.
pub(super) async fn refuse(
    proxy: &Proxy,
    presence: &Arc<Presence>,
    mut socket: Socket,
    failure: Failure,
) {
    let mut exchange = Exchange::open(proxy.observer.clone(), presence.clone());
    if failure.status().is_none() {
        exchange.fail(&failure);
        return linger(socket).await;
    }
    let response = respond::failure(&failure, exchange.id(), None, false, None, &proxy.identity);
    exchange.answered(response.status());
    exchange.fail(&failure);
    let answered = timeout(LINGER, socket.write_all(&respond::raw(&response))).await;
    if matches!(answered, Ok(Ok(()))) {
        linger(socket).await;
    }
}

/// Ends our direction and reads on for a while, so that the last answer arrives.
///
/// Where an answer was cut so that only a reset can tell, the reset comes at once.
async fn linger(mut socket: Socket) {
    if socket.resets_on_close() {
        return;
    }
    let drain = async {
        socket.shutdown().await?;
        let mut rest = (&mut socket).take(LINGER_BYTES as u64);
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
