//! The servers behind `*.lab.test`: HTTP/1.1, and HTTP/2 over TLS, on one port; what is neither comes back as it went.

use std::fmt::Write as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncWrite, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::authority::Shown;
use crate::config::duration;
use crate::tls::trust::provider;

/// Who connects and says nothing is not waited for longer.
const SILENCE: Duration = Duration::from_mins(5);

/// The longest that `/slow` waits.
const LONGEST: Duration = Duration::from_hours(1);

/// A piece of a big body.
const PIECE: usize = 64 * 1024;

/// What `/` says to those who look around.
const GUIDE: &str = "\
This is a host of routecause lab. It answers anything; these paths do more:

/echo            what was sent
/slow/2s         the same as /, late
/bytes/1048576   so many bytes
/status/503      that status
/headers         the request's fields, as they came
";

/// What a server answers with.
type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// A listener of the lab and what it shows those who begin TLS.
pub(super) struct Origin {
    listener: TcpListener,
    tls: TlsAcceptor,
    /// Every answer is a body of so many bytes, where it is not 0.
    answer_bytes: u64,
    tasks: TaskTracker,
}

impl Origin {
    /// A server on a bound listener, whose connections run on `tasks`.
    pub(super) fn new(
        listener: TcpListener,
        shown: Shown,
        answer_bytes: u64,
        tasks: TaskTracker,
    ) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            listener,
            tls: TlsAcceptor::from(Arc::new(config)),
            answer_bytes,
            tasks,
        })
    }

    /// Serves until its runtime ends.
    pub(super) async fn run(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (tls, bytes) = (self.tls.clone(), self.answer_bytes);
                    self.tasks.spawn(async move {
                        if let Err(error) = converse(stream, tls, bytes).await {
                            tracing::debug!(%error, "a connection to a host of the lab");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely.
                    tracing::warn!(%error, "accept for a host of the lab");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn converse(stream: TcpStream, tls: TlsAcceptor, bytes: u64) -> io::Result<()> {
    const HANDSHAKE: u8 = 22;
    stream.set_nodelay(true)?;
    let mut first = [0];
    let peeked = timeout(SILENCE, stream.peek(&mut first)).await??;
    match (peeked, first) {
        (0, _) => Ok(()),
        (_, [HANDSHAKE]) => {
            let stream = tls.accept(stream).await?;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let service = service_fn(|request| answer(request, "h2", bytes));
                let builder = http2::Builder::new(TokioExecutor::new());
                let served = builder.serve_connection(TokioIo::new(stream), service);
                served.await.map_err(io::Error::other)
            } else {
                speak_http(stream, "https", bytes).await
            }
        }
        (_, [b'A'..=b'Z']) => speak_http(stream, "http", bytes).await,
        _ => {
            let (mut read, mut write) = split(stream);
            copy(&mut read, &mut write).await.map(drop)
        }
    }
}

async fn speak_http<S>(stream: S, how: &'static str, bytes: u64) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| answer(request, how, bytes));
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    served.await.map_err(io::Error::other)
}

async fn answer(
    request: Request<Incoming>,
    how: &'static str,
    bytes: u64,
) -> Result<Answer, hyper::Error> {
    if bytes > 0 {
        return Ok(many(bytes));
    }
    let path = request.uri().path().to_owned();
    let (first, rest) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path.trim_start_matches('/'), ""));
    Ok(match first {
        "echo" => {
            let kind = request.headers().get(CONTENT_TYPE).cloned();
            let mut answer = Response::new(request.into_body().boxed());
            if let Some(kind) = kind {
                answer.headers_mut().insert(CONTENT_TYPE, kind);
            }
            answer
        }
        "slow" => match duration(rest).filter(|wait| *wait <= LONGEST) {
            Some(wait) => {
                sleep(wait).await;
                told(&request, how)
            }
            None => text(StatusCode::BAD_REQUEST, "how slow? as in /slow/2s\n"),
        },
        "bytes" => match rest.parse() {
            Ok(count) => many(count),
            Err(_) => text(StatusCode::BAD_REQUEST, "how many? as in /bytes/1048576\n"),
        },
        "status" => match rest.parse().map(StatusCode::from_u16) {
            Ok(Ok(status)) if status.as_u16() >= 200 => {
                let said = format!("{status}\n");
                text(status, &said)
            }
            Ok(_) | Err(_) => text(StatusCode::BAD_REQUEST, "which one? as in /status/503\n"),
        },
        "headers" => {
            let mut said = String::new();
            for (name, value) in request.headers() {
                let _ = writeln!(said, "{name}: {}", value.as_bytes().escape_ascii());
            }
            text(StatusCode::OK, &said)
        }
        "guide" => text(StatusCode::OK, GUIDE),
        _ => told(&request, how),
    })
}

/// Says what was asked for, and how.
fn told(request: &Request<Incoming>, how: &str) -> Answer {
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or("?"),
    };
    let said = format!(
        "{} {} of {host} by {how}\n",
        request.method(),
        request.uri().path()
    );
    if request.method() == Method::HEAD {
        return Response::new(Empty::new().map_err(|never| match never {}).boxed());
    }
    text(StatusCode::OK, &said)
}

fn text(status: StatusCode, said: &str) -> Answer {
    let body = Full::new(Bytes::from(said.to_owned()));
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

fn many(bytes: u64) -> Answer {
    let mut answer = Response::new(Many(bytes).boxed());
    let kind = HeaderValue::from_static("application/octet-stream");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// So many bytes: the digits, over and over, so that one that is missing shows.
struct Many(u64);

impl Body for Many {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // So long that every piece begins with a 0.
        static DIGITS: &[u8; 10] = b"0123456789";
        const ROUND: usize = PIECE / 10 * 10;
        let left = &mut self.get_mut().0;
        if *left == 0 {
            return Poll::Ready(None);
        }
        let count = usize::try_from(*left).unwrap_or(usize::MAX).min(ROUND);
        *left -= count as u64;
        let piece: Bytes = DIGITS.iter().copied().cycle().take(count).collect();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}
