//! What a server answers to a request, by HTTP/1.1 and HTTP/2.

use std::fmt::Write as _;
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
    /// Asks a server of plain HTTP by a way for an answer's head.
    pub(super) async fn ask(
        &self,
        dial: &Arc<dyn Dial>,
        target: &Target,
        method: Method,
        path: &str,
    ) -> Result<StatusCode, Failure> {
        // Behind another method's answer stands a body.
        let has_body = method != Method::HEAD;
        let send = async |mut io: Box<dyn Io>, wanted: &Wanted| {
            let reply = ask(&mut io, wanted.written().as_bytes(), wanted.limit).await?;
            let is_kept = reply.is_reusable && !has_body;
            Ok((reply, (), is_kept.then_some(io)))
        };
        let (reply, ()) = self.converse(dial, target, method, path, send).await?;
        status(&reply)
    }

    /// Asks a server of plain HTTP by a way, as the proxy would: an upstream is asked for the whole URL, and told who we are
    /// where it wants to know. `send` gives the answer to one request, and the connection where that bears another one.
    pub(super) async fn converse<T>(
        &self,
        dial: &Arc<dyn Dial>,
        target: &Target,
        method: Method,
        path: &str,
        send: impl AsyncFn(
            Box<dyn Io>,
            &Wanted,
        ) -> Result<(Reply, T, Option<Box<dyn Io>>), UpstreamError>,
    ) -> Result<(Reply, T), Failure> {
        let (io, form) = self.open_plainly(dial, target).await?;
        let mut wanted = Wanted::new(target, Spoken::Http, method, path);
        let Form::Absolute {
            upstream,
            authenticator,
        } = form
        else {
            let answered = send(io, &wanted).await.map_err(of_origin)?;
            return Ok((answered.0, answered.1));
        };
        let failed = |error: UpstreamError| Failure::Upstream {
            upstream: upstream.clone(),
            passes_443: false,
            error,
        };
        wanted.by_upstream();
        self.plan.via().clone_into(&mut wanted.via);
        let mut talk = Talk::new(authenticator, wanted.method.clone(), wanted.target.clone());
        wanted.said = talk.first().await;
        let mut next = Some(io);
        loop {
            let is_kept = wanted.is_again;
            let io = match next.take() {
                Some(io) => io,
                None => match self.open_plainly(dial, target).await? {
                    (io, Form::Absolute { upstream: now, .. }) if now == upstream => io,
                    // A group may lead elsewhere meanwhile, and what one is told is not for another.
                    _ => return Err(failed(UpstreamError::Closed)),
                },
            };
            match send(io, &wanted).await {
                // It had said that it would take another request.
                Err(_) if is_kept => wanted.said = talk.again().await.ok().flatten(),
                Err(error) => return Err(failed(error)),
                Ok((reply, _, kept))
                    if reply.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED =>
                {
                    wanted.said = match talk.answer(&reply).await {
                        Ok(answer) => Some(answer),
                        Err(why) => {
                            let reply = Box::new(reply);
                            return Err(failed(UpstreamError::Unauthorized { reply, why }));
                        }
                    };
                    if kept.is_none() && talk.is_bound() {
                        wanted.said = talk.again().await.ok().flatten();
                    }
                    next = kept;
                }
                Ok((reply, rest, _)) => {
                    talk.accepted();
                    return if reply.is_refusal {
                        Err(failed(UpstreamError::Refused(Box::new(reply))))
                    } else {
                        Ok((reply, rest))
                    };
                }
            }
            wanted.is_again = next.is_some();
        }
    }

    /// A connection for plain requests, and how they are written on it.
    pub(super) async fn open_plainly(
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
        let begun = Instant::now();
        let wanted = Wanted::new(target, Spoken::Tls, Method::HEAD, &self.plan.path);
        let error = match ask(&mut io, wanted.written().as_bytes(), wanted.limit).await {
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
pub(super) fn of_origin(error: UpstreamError) -> Failure {
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
fn authority(target: &Target, spoken: Spoken) -> String {
    match spoken {
        Spoken::Tls => target.authority(443),
        Spoken::Http => target.authority(80),
        Spoken::Other => target.to_string(),
    }
}

/// A request as it is to be written.
pub(super) struct Wanted {
    pub(super) method: Method,
    /// The path; of an upstream the whole URL.
    pub(super) target: String,
    pub(super) host: String,
    /// Who we are, where an upstream is told.
    pub(super) said: Option<Secret>,
    /// By whom it has come; empty where nobody is told.
    via: String,
    /// For so long the answer is waited for.
    pub(super) limit: Duration,
    /// It goes out behind another one.
    is_again: bool,
    is_last: bool,
}

impl Wanted {
    /// One to an origin, behind which the connection ends.
    pub(super) fn new(target: &Target, spoken: Spoken, method: Method, path: &str) -> Self {
        Self {
            method,
            target: path.to_owned(),
            host: authority(target, spoken),
            said: None,
            via: String::new(),
            limit: ANSWER,
            is_again: false,
            is_last: true,
        }
    }

    /// Goes to an upstream instead.
    pub(super) fn by_upstream(&mut self) {
        self.target = format!("http://{}{}", self.host, self.target);
        self.limit = REPLY;
        self.is_last = false;
    }

    /// Its fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        // A line end there would make a second request of the rest.
        let is_safe = |said: &&str| !said.bytes().any(|byte| byte.is_ascii_control());
        let said = self.said.as_ref().map(Secret::reveal).filter(is_safe);
        [
            ("Host", Some(&*self.host)),
            ("User-Agent", Some("routecause-doctor")),
            ("Accept", Some("*/*")),
            ("Via", (!self.via.is_empty()).then_some(&*self.via)),
            ("Connection", self.is_last.then_some("close")),
            ("Proxy-Authorization", said),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// Its head.
    pub(super) fn written(&self) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in self.fields() {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        head
    }
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
