//! What a mirror gives.

use std::sync::Arc;

use http::header::{ETAG, HeaderName, LAST_MODIFIED, LOCATION};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use super::http::authority;
use super::{Doctor, REPLY};
use crate::doctor::compare::Mirror;
use crate::failure::{chain, classify};
use crate::route::Dial;
use crate::tls::trust::hex;

/// So much of a mirror's content is read at most.
const MOST_CONTENT: usize = 1 << 20;

impl Doctor<'_> {
    /// Asks for a path by a way.
    pub(super) async fn fetch(&self, dial: &Arc<dyn Dial>, path: &str, mirror: &mut Mirror) {
        let begun = Instant::now();
        (self.progress)(&format!("asking {}", mirror.url));
        let io = match self.open(dial).await {
            Ok(io) => io,
            Err(failure) => {
                mirror.failure = Some(format!("{}: {}", classify(&failure).id(), chain(&failure)));
                return;
            }
        };
        let ms = |since: Instant| since.elapsed().as_secs_f64() * 1000.0;
        mirror.connect_ms = ms(begun);
        let read = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
            let request = http::Request::get(path)
                .header("host", authority(&self.plan.target, self.plan.spoken))
                .header("user-agent", "routecause-doctor")
                .header("accept", "*/*")
                .body(Empty::<bytes::Bytes>::new());
            let Ok(request) = request else { return Ok(()) };
            let exchange = async {
                let asked = Instant::now();
                let response = sender.send_request(request).await?;
                mirror.first_byte_ms = ms(asked);
                let field = |name: HeaderName| {
                    response
                        .headers()
                        .get(name)?
                        .to_str()
                        .ok()
                        .map(str::to_owned)
                };
                mirror.status = Some(response.status().as_u16());
                mirror.etag = field(ETAG);
                mirror.modified = field(LAST_MODIFIED);
                mirror.location = field(LOCATION);
                let mut body = response.into_body();
                mirror.length = hyper::body::Body::size_hint(&body).exact();
                let (mut content, mut length) = (Sha256::new(), 0);
                while let Some(frame) = body.frame().await.transpose()? {
                    if let Some(data) = frame.data_ref() {
                        length += data.len();
                        content.update(data);
                    }
                    if length > MOST_CONTENT {
                        return Ok(());
                    }
                }
                mirror.length = Some(length as u64);
                mirror.sha256 = Some(hex(&content.finalize()));
                Ok::<_, hyper::Error>(())
            };
            tokio::pin!(exchange);
            tokio::select! {
                biased;
                done = &mut exchange => done,
                // What came before the end is still to be read.
                _ = connection => exchange.await,
            }
        };
        let done = timeout(REPLY * 2, read).await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => mirror.failure = Some(chain(&error)),
            Err(_) => {
                mirror.failure = Some(format!(
                    "it has not ended within {} s",
                    (REPLY * 2).as_secs()
                ));
            }
        }
        mirror.total_ms = ms(begun);
    }
}
