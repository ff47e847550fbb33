//! What a server answers to a request, by HTTP/1.1 and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::{Doctor, HELLO, Io, REPLY, whole};
use crate::doctor::facts::{Http, Spoken};
use crate::failure::handshake::Handshake;
use crate::failure::{Failure, MalformedAnswer, OriginError, chain};
use crate::net::upstream::auth::Talk;
use crate::net::upstream::{Reply, UpstreamError, ask};
use crate::route::{Dial, Form, Purpose};
use crate::secret::Secret;
use crate::target::Target;
use crate::tls::handshake::{Offer, handshake_as, refused_late};

/// An origin that does not answer within this has failed.
const ANSWER: Duration = Duration::from_secs(5);

impl Doctor<'_> {
    /// Asks a server of plain HTTP by a way, as the proxy would: an upstream is asked for the whole URL.
    pub(super) async fn ask(
        &self,
        dial: &Arc<dyn Dial>,
        target: &Target,
        method: Method,
        path: &str,
    ) -> Result<StatusCode, Failure> {
        let host = authority(target, Spoken::Http);
        let (mut io, form) = self.open_plainly(dial, target).await?;
        let Form::Absolute {
            upstream,
            authenticator,
        } = form
        else {
            let request = head(&host, &method, path);
            let asked = ask(&mut io, request.as_bytes(), ANSWER).await;
            return asked.map_err(of_origin).and_then(|reply| status(&reply));
        };
        let failed = |error: UpstreamError| Failure::Upstream {
            upstream: upstream.clone(),
            passes_443: false,
            error,
        };
        let url = format!("http://{host}{path}");
        let mut talk = Talk::new(authenticator, method.clone(), url.clone());
        let mut said = talk.first().await;
        let mut is_kept = false;
        loop {
            let request = told(&host, &method, &url, said.as_ref());
            match ask(&mut io, request.as_bytes(), REPLY).await {
                // It had said that it would take another request.
                Err(_) if is_kept => {}
                Err(error) => return Err(failed(error)),
                Ok(reply) if reply.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    said = match talk.answer(&reply).await {
                        Ok(answer) => Some(answer),
                        Err(why) => {
                            let reply = Box::new(reply);
                            return Err(failed(UpstreamError::Unauthorized { reply, why }));
                        }
                    };
                    // Behind another method's answer stands a body.
                    is_kept = reply.is_reusable && method == Method::HEAD;
                    if is_kept {
                        continue;
                    }
                }
                Ok(reply) => {
                    talk.accepted();
                    return if reply.is_refusal {
                        Err(failed(UpstreamError::Refused(Box::new(reply))))
                    } else {
                        status(&reply)
                    };
                }
            }
            (io, _) = self.open_plainly(dial, target).await?;
            if is_kept || talk.is_bound() {
                said = talk.again().await.ok().flatten();
            }
            is_kept = false;
        }
    }

    /// A connection for plain requests, and how they are written on it.
    async fn open_plainly(
        &self,
        dial: &Arc<dyn Dial>,
        target: &Target,
    ) -> Result<(Box<dyn Io>, Form), Failure> {
        let conn = self.dial(dial, target, Purpose::Forward).await?;
        Ok((whole(conn.wire, conn.early), conn.form))
    }

    /// Asks the target, behind a handshake.
    pub(super) async fn ask_inside(&self, mut io: Box<dyn Io>) -> Result<StatusCode, Failure> {
        let target = &self.plan.target;
        let host = authority(target, Spoken::Tls);
        let begun = Instant::now();
        let request = head(&host, &Method::HEAD, &self.plan.path);
        let error = match ask(&mut io, request.as_bytes(), ANSWER).await {
            Ok(reply) => return status(&reply),
            Err(error) => error,
        };
        // In TLS 1.3 a server says only now that it wants a certificate of ours.
        let UpstreamError::Io { source } = &error else {
            return Err(of_origin(error));
        };
        let Some(alert) = refused_late(source) else {
            return Err(of_origin(error));
        };
        Err(Failure::Handshake(Box::new(Handshake {
            server: target.to_string(),
            server_name: target.host.name().map(str::to_owned),
            error: alert,
            tcp: None,
            since_connect: begun.elapsed(),
            is_end_to_end: true,
        })))
    }

    /// Whether HTTP/2 works, where the server speaks it.
    pub(super) async fn ask_http2(&self, dial: &Arc<dyn Dial>) -> Option<Http> {
        let target = &self.plan.target;
        let conn = self.dial(dial, target, Purpose::Tunnel).await.ok()?;
        let offer = Offer::of(&[b"h2", b"http/1.1"]);
        let io = whole(conn.wire, conn.early);
        let shaken = match handshake_as(io, &target.host, &self.roots, &offer, HELLO).await {
            Ok(shaken) => shaken,
            Err(error) => return Some(Http::failed(chain(&error))),
        };
        if shaken.stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return None;
        }
        let asked = head_by_http2(shaken.stream, target, &self.plan.path);
        Some(match timeout(ANSWER, asked).await {
            Ok(Ok(status)) => Http::of(status),
            Ok(Err(error)) => Http::failed(chain(&error)),
            Err(_) => Http::failed("no answer".to_owned()),
        })
    }
}

/// The status of an answer that the proxy passes on.
fn status(reply: &Reply) -> Result<StatusCode, Failure> {
    if reply.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(OriginError::Malformed(MalformedAnswer::UnaskedUpgrade).into());
    }
    Ok(reply.status)
}

/// What it means that an origin gives no answer that can be read.
fn of_origin(error: UpstreamError) -> Failure {
    let error = match error {
        UpstreamError::NoReply { after } => OriginError::NoAnswer { after },
        UpstreamError::Reset { source } => OriginError::Reset(source),
        UpstreamError::MalformedReply { first } => {
            OriginError::Malformed(MalformedAnswer::Begins(first))
        }
        UpstreamError::HeadTooLarge => OriginError::HeadTooLarge,
        // An end of TLS without its farewell, as a rule.
        UpstreamError::Io { source } => OriginError::Broken(source),
        UpstreamError::Closed
        // Of upstreams alone.
        | UpstreamError::Refused(_)
        | UpstreamError::Unauthorized { .. }
        | UpstreamError::Stream { .. }
        | UpstreamError::GoAway { .. }
        | UpstreamError::Full { .. }
        | UpstreamError::Socks(_) => OriginError::Empty,
    };
    error.into()
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

/// A request behind which the connection ends.
pub(super) fn head(host: &str, method: &Method, path: &str) -> String {
    request(host, method, path, "Connection: close\r\n")
}

/// A request to an upstream, which says who we are where that is known.
fn told(host: &str, method: &Method, url: &str, said: Option<&Secret>) -> String {
    // A line end there would make a second request of the rest.
    let is_safe = |said: &&str| !said.bytes().any(|byte| byte.is_ascii_control());
    let said = said.map(Secret::reveal).filter(is_safe);
    let field = said.map(|said| format!("Proxy-Authorization: {said}\r\n"));
    request(host, method, url, &field.unwrap_or_default())
}

fn request(host: &str, method: &Method, target: &str, fields: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: routecause-doctor\r\nAccept: */*\r\n{fields}\r\n"
    )
}

async fn head_by_http2(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    target: &Target,
    path: &str,
) -> Result<u16, h2::Error> {
    let (mut sender, mut connection) = h2::client::handshake(io).await?;
    let request = http::Request::builder()
        .method("HEAD")
        .uri(format!("https://{}{path}", authority(target, Spoken::Tls)))
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
