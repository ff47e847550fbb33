//! What a mirror gives.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ETAG, HeaderName, LAST_MODIFIED, LOCATION};
use http::{Method, response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use super::http::{Wanted, of_origin};
use super::{Doctor, Io, Plan, REPLY};
use crate::doctor::compare::Mirror;
use crate::doctor::facts::Spoken;
use crate::failure::{Failure, chain, classify};
use crate::net::socket::reset_behind;
use crate::net::upstream::{Reply, UpstreamError};
use crate::route::Dial;
use crate::tls::trust::hex;

/// So much of a mirror's content is read at most.
const MOST_CONTENT: usize = 1 << 20;

/// A mirror's answer, and then its content, must be there within this.
const LIMIT: Duration = REPLY.saturating_mul(2);

/// What came of one request.
struct Got {
    asked: Instant,
    answered: Instant,
    head: response::Parts,
    /// As announced.
    length: Option<u64>,
    content: Content,
}

/// A mirror's content.
enum Content {
    Whole {
        length: u64,
        sha256: String,
    },
    TooMuch,
    Broken(hyper::Error),
    /// It had not ended within the limit.
    Slow,
}

impl Doctor<'_> {
    /// Asks for a path by a way.
    pub(super) async fn fetch(&self, dial: &Arc<dyn Dial>, path: &str, mirror: &mut Mirror) {
        let begun = Instant::now();
        (self.progress)(&format!("asking {}", mirror.url));
        let got = self.get(dial, path).await;
        mirror.total_ms = ms(begun, Instant::now());
        let got = match got {
            Ok(got) => got,
            Err(failure) => {
                mirror.failure = Some(format!("{}: {}", classify(&failure).id(), chain(&failure)));
                return;
            }
        };
        mirror.connect_ms = ms(begun, got.asked);
        mirror.first_byte_ms = ms(got.asked, got.answered);
        let field = |name: HeaderName| Some(got.head.headers.get(name)?.to_str().ok()?.to_owned());
        mirror.status = Some(got.head.status.as_u16());
        mirror.etag = field(ETAG);
        mirror.modified = field(LAST_MODIFIED);
        mirror.location = field(LOCATION);
        mirror.length = got.length;
        match got.content {
            Content::Whole { length, sha256 } => {
                mirror.length = Some(length);
                mirror.sha256 = Some(sha256);
            }
            Content::TooMuch => {}
            Content::Broken(error) => mirror.failure = Some(chain(&error)),
            Content::Slow => {
                mirror.failure = Some(format!("it has not ended within {} s", LIMIT.as_secs()));
            }
        }
    }

    async fn get(&self, dial: &Arc<dyn Dial>, path: &str) -> Result<Got, Failure> {
        let Plan { target, spoken, .. } = self.plan;
        if *spoken != Spoken::Tls {
            let got = self.converse(dial, target, Method::GET, path, fetch);
            return got.await.map(|(_, got)| got);
        }
        let shaken = self.shake(dial, target).await;
        let shaken = shaken.map_err(|failed| failed.0)?;
        let wanted = Wanted::new(target, *spoken, Method::GET, path);
        let got = fetch(shaken.stream, &wanted).await;
        got.map(|(_, got, _)| got).map_err(of_origin)
    }
}

fn ms(from: Instant, to: Instant) -> f64 {
    (to - from).as_secs_f64() * 1000.0
}

/// Asks once, and reads the answer. The connection is left where it bears another request.
async fn fetch(
    io: Box<dyn Io>,
    wanted: &Wanted,
) -> Result<(Reply, Got, Option<Box<dyn Io>>), UpstreamError> {
    let (mut sender, mut connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| lost(&error))?;
    let mut request = http::Request::builder()
        .method(&wanted.method)
        .uri(&wanted.target);
    for (name, value) in wanted.fields() {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|error| UpstreamError::Io {
        source: io::Error::other(error),
    })?;
    let exchange = async {
        let asked = Instant::now();
        let response = timeout(LIMIT, sender.send_request(request)).await;
        let response = response.map_err(|_| UpstreamError::NoReply { after: LIMIT })?;
        let (head, mut body) = response.map_err(|error| lost(&error))?.into_parts();
        let answered = Instant::now();
        let length = body.size_hint().exact();
        let content = timeout(LIMIT, read(&mut body)).await;
        let content = content.unwrap_or(Content::Slow);
        let reply = Reply::of_head(&head);
        let got = Got {
            asked,
            answered,
            head,
            length,
            content,
        };
        Ok::<_, UpstreamError>((reply, got))
    };
    let mut ended = poll_fn(|cx| connection.poll_without_shutdown(cx));
    let (reply, got) = {
        let mut exchange = pin!(exchange);
        tokio::select! {
            biased;
            done = &mut exchange => done?,
            // What came before the end is still to be read.
            _ = &mut ended => {
                let (reply, got) = exchange.await?;
                return Ok((reply, got, None));
            }
        }
    };
    let is_whole = matches!(got.content, Content::Whole { .. });
    let is_kept = is_whole
        && tokio::select! {
            biased;
            _ = &mut ended => false,
            ready = sender.ready() => ready.is_ok(),
        };
    let parts = connection.into_parts();
    let is_kept = is_kept && parts.read_buf.is_empty();
    Ok((reply, got, is_kept.then(|| parts.io.into_inner())))
}

/// Reads up to the end, or as much as is read of a mirror.
async fn read(body: &mut Incoming) -> Content {
    let (mut digest, mut length) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Content::Broken(error),
        };
        if let Some(data) = frame.data_ref() {
            length += data.len();
            digest.update(data);
        }
        if length > MOST_CONTENT {
            return Content::TooMuch;
        }
    }
    Content::Whole {
        length: length as u64,
        sha256: hex(&digest.finalize()),
    }
}

/// What an error of hyper's says, before an answer's head.
fn lost(error: &hyper::Error) -> UpstreamError {
    if let Some(source) = reset_behind(error) {
        UpstreamError::Reset { source }
    } else if error.is_parse_too_large() {
        UpstreamError::HeadTooLarge
    } else if error.is_parse() {
        UpstreamError::MalformedReply {
            first: error.to_string(),
        }
    } else {
        UpstreamError::Closed
    }
}
