//! What a server answers to `HEAD /`, by HTTP/1.1 and HTTP/2.

use std::io::Cursor;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, join, split};
use tokio::time::timeout;

use super::{Doctor, HELLO};
use crate::doctor::facts::{Http, Spoken};
use crate::failure::chain;
use crate::route::Dial;
use crate::target::Target;
use crate::tls::handshake::{Offer, handshake_as};

impl Doctor<'_> {
    /// Whether HTTP/2 works, where the server speaks it.
    pub(super) async fn ask_http2(&self, dial: &Arc<dyn Dial>) -> Option<Http> {
        let target = &self.plan.target;
        let conn = self.dial(dial, target).await.ok()?;
        let offer = Offer::of(&[b"h2", b"http/1.1"]);
        let (reading, writing) = split(conn.wire);
        let io = join(Cursor::new(conn.early).chain(reading), writing);
        let shaken = match handshake_as(io, &target.host, &self.roots, &offer, HELLO).await {
            Ok(shaken) => shaken,
            Err(error) => {
                return Some(Http {
                    status: None,
                    failure: Some(chain(&error)),
                });
            }
        };
        if shaken.stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return None;
        }
        let asked = timeout(HELLO, head_by_http2(shaken.stream, target)).await;
        Some(match asked {
            Ok(Ok(status)) => Http {
                status: Some(status),
                failure: None,
            },
            Ok(Err(error)) => Http {
                status: None,
                failure: Some(chain(&error)),
            },
            Err(_) => Http {
                status: None,
                failure: Some("no answer".to_owned()),
            },
        })
    }
}

/// Asks a server by HTTP/1.1 and reads the head of its answer.
pub(super) async fn ask(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    method: &str,
    path: &str,
) -> Http {
    let failed = |failure: String| Http {
        status: None,
        failure: Some(failure),
    };
    let request = head(host, method, path);
    let talk = async {
        io.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        let mut buffer = vec![0; 4096];
        while head.len() < 64 * 1024 && !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = io.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            head.extend_from_slice(buffer.get(..read).unwrap_or_default());
        }
        Ok::<_, std::io::Error>(head)
    };
    let head = match timeout(HELLO * 2, talk).await {
        Ok(Ok(head)) => head,
        Ok(Err(error)) => return failed(error.to_string()),
        Err(_) => return failed("no answer".to_owned()),
    };
    let mut fields = vec![httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(&head) {
        Ok(_) if response.code.is_some() => Http {
            status: response.code,
            failure: None,
        },
        Ok(_) => failed("an empty answer".to_owned()),
        Err(error) => failed(error.to_string()),
    }
}

/// A target as a request names it: without the port that goes without saying.
pub(super) fn authority(target: &Target, spoken: Spoken) -> String {
    let usual = match spoken {
        Spoken::Tls => ":443",
        Spoken::Http => ":80",
        Spoken::Other => "",
    };
    let full = target.to_string();
    full.strip_suffix(usual).unwrap_or(&full).to_owned()
}

/// A request that nobody else's connection is kept for.
pub(super) fn head(host: &str, method: &str, path: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: routecause-doctor\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
}

async fn head_by_http2(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    target: &Target,
) -> Result<u16, h2::Error> {
    let (mut sender, mut connection) = h2::client::handshake(io).await?;
    let request = http::Request::builder()
        .method("HEAD")
        .uri(format!("https://{}/", authority(target, Spoken::Tls)))
        .header("user-agent", "routecause-doctor")
        .body(())
        .map_err(|_| h2::Error::from(h2::Reason::INTERNAL_ERROR))?;
    let exchange = async {
        std::future::poll_fn(|cx| sender.poll_ready(cx)).await?;
        let (response, _) = sender.send_request(request, true)?;
        Ok::<_, h2::Error>(response.await?.status().as_u16())
    };
    tokio::select! {
        answered = exchange => answered,
        ended = &mut connection => match ended {
            Ok(()) => Err(h2::Reason::CANCEL.into()),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_goes_without_saying_is_left_out() {
        for (target, spoken, expected) in [
            ("a.test:443", Spoken::Tls, "a.test"),
            ("a.test:80", Spoken::Tls, "a.test:80"),
            ("a.test:80", Spoken::Http, "a.test"),
            ("a.test:8443", Spoken::Tls, "a.test:8443"),
            ("[2001:db8::1]:443", Spoken::Tls, "[2001:db8::1]"),
            ("[2001:db8::1]:8443", Spoken::Tls, "[2001:db8::1]:8443"),
        ] {
            let target = Target::from_authority(target).unwrap();
            assert_eq!(authority(&target, spoken), expected);
        }
    }
}
