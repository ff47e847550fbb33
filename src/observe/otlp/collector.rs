//! One address that messages are sent to.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Environment;
use crate::config::otlp::{HeaderSource, Otlp};
use crate::target::Host;
use crate::timeouts::Brief;
use crate::tls::handshake::{HandshakeError, Offer, handshake_as};
use crate::tls::trust::Roots;

/// What a collector answers is short.
const LONGEST_ANSWER: usize = 64 * 1024;

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// A header field whose value cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("server.otlp.headers: {name}: {problem}")]
pub struct HeaderError {
    name: HeaderName,
    problem: String,
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("{0} is no host")]
    Host(String),
    #[error("TLS: {0}")]
    Tls(#[from] HandshakeError),
    #[error("send: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answers more than {LONGEST_ANSWER} bytes")]
    Answer,
    #[error("no answer in {}", Brief(*.0))]
    TimedOut(Duration),
    #[error("it answers {0}")]
    Refused(StatusCode),
}

impl SendError {
    /// Whether it may go better later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Refused(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::Connect(_) | Self::Tls(_) | Self::Http(_) | Self::TimedOut(_) => true,
            Self::Host(_) | Self::Answer => false,
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Driver = Connection<TokioIo<Box<dyn Io>>, Full<Bytes>>;

/// A connection that stands; its driver makes progress only while something is sent.
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    driver: Pin<Box<Driver>>,
}

/// One address that messages are sent to.
pub(super) struct Collector {
    url: Uri,
    headers: HeaderMap,
    timeout: Duration,
    roots: Arc<Roots>,
    kept: Option<Kept>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Collector {
    pub(super) fn new(
        url: &Uri,
        otlp: &Otlp,
        environment: &Environment,
    ) -> Result<Self, HeaderError> {
        let mut headers = HeaderMap::new();
        for (name, source) in &otlp.headers {
            let wrong = |problem: String| HeaderError {
                name: name.clone(),
                problem,
            };
            let value = match source {
                HeaderSource::Given(secret) => secret.clone(),
                HeaderSource::Written(source) => source
                    .read(environment)
                    .map_err(|error| wrong(error.to_string()))?,
            };
            let value = HeaderValue::from_str(value.reveal());
            let mut value =
                value.map_err(|_| wrong("what stands there is no field's value".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        headers.insert(CONTENT_TYPE, PROTOBUF);
        let agent = concat!("routecause/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let authority = url.authority().map_or("", |authority| authority.as_str());
        headers.extend(HeaderValue::from_str(authority).map(|host| (HOST, host)));
        Ok(Self {
            url: url.clone(),
            headers,
            timeout: otlp.timeout,
            roots: Arc::new(Roots::of_system()),
            kept: None,
        })
    }

    pub(super) fn url(&self) -> &Uri {
        &self.url
    }

    /// Sends a message, and says how many of its records were rejected.
    pub(super) async fn send(&mut self, message: Bytes) -> Result<u64, SendError> {
        let limit = self.timeout;
        let sending = async {
            if let Some(mut kept) = self.kept.take() {
                match self.ask(&mut kept, message.clone()).await {
                    // It may have been closed meanwhile.
                    Err(SendError::Http(_) | SendError::Connect(_)) => {}
                    answered => {
                        self.kept = answered.is_ok().then_some(kept);
                        return answered;
                    }
                }
            }
            let mut fresh = self.connect().await?;
            let rejected = self.ask(&mut fresh, message).await?;
            self.kept = Some(fresh);
            Ok(rejected)
        };
        let sent = timeout(limit, sending).await;
        sent.unwrap_or(Err(SendError::TimedOut(limit)))
    }

    async fn connect(&self) -> Result<Kept, SendError> {
        let written = self.url.host().unwrap_or_default();
        let host = Host::parse(written.trim_matches(['[', ']']))
            .map_err(|_| SendError::Host(written.to_owned()))?;
        let is_tls = self.url.scheme_str() == Some("https");
        let port = self.url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        #[expect(
            clippy::disallowed_methods,
            reason = "a collector is no target: no rule and no guard speaks of it"
        )]
        let stream = TcpStream::connect((&*host.text(), port))
            .await
            .map_err(SendError::Connect)?;
        stream.set_nodelay(true).map_err(SendError::Connect)?;
        let io: Box<dyn Io> = if is_tls {
            let offer = Offer::of(&[b"http/1.1"]);
            let established =
                handshake_as(stream, &host, &self.roots, &offer, self.timeout).await?;
            Box::new(established.stream)
        } else {
            Box::new(stream)
        };
        let (sender, driver) = http1::handshake(TokioIo::new(io)).await?;
        Ok(Kept {
            sender,
            driver: Box::pin(driver),
        })
    }

    async fn ask(&self, kept: &mut Kept, message: Bytes) -> Result<u64, SendError> {
        let mut request = Request::post(self.url.path()).body(Full::new(message));
        if let Ok(request) = &mut request {
            request.headers_mut().clone_from(&self.headers);
        }
        let request = request.map_err(|_| SendError::Host(self.url.to_string()))?;
        let Kept { sender, driver } = kept;
        let asking = async {
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST_ANSWER)
                .collect()
                .await;
            let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
                Ok(_) => SendError::Answer,
                Err(error) => error
                    .downcast::<hyper::Error>()
                    .map_or(SendError::Answer, |error| SendError::Http(*error)),
            })?;
            if !status.is_success() {
                return Err(SendError::Refused(status));
            }
            Ok(rejected(&body.to_bytes()))
        };
        tokio::select! {
            biased;
            answered = asking => answered,
            // Where it ends first, the request hears of it.
            ended = driver => Err(ended.map_or_else(SendError::Http, |()| {
                SendError::Connect(io::ErrorKind::ConnectionAborted.into())
            })),
        }
    }
}

/// How many were rejected of those that a message held. Both signals tell it in the same form.
fn rejected(answer: &Bytes) -> u64 {
    let Ok(answer) = ExportTraceServiceResponse::decode(answer.clone()) else {
        return 0;
    };
    let Some(part) = answer.partial_success else {
        return 0;
    };
    if part.rejected_spans > 0 {
        tracing::warn!(
            rejected = part.rejected_spans,
            why = crate::record::quote(&part.error_message),
            "the OTLP collector rejects records"
        );
    }
    u64::try_from(part.rejected_spans).unwrap_or(0)
}
