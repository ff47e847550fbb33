//! Opens a tunnel through an upstream proxy that speaks HTTP/1.1, and keeps what it says if it refuses.

pub mod auth;
mod head;
pub mod http2;
pub mod proxy_protocol;
mod reply;
pub mod socks;
pub mod tls;

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use self::auth::AuthError;
pub use self::head::ask;
use self::head::{exchange, lost, read_some};
pub use self::reply::{Reply, Reported, is_refusal};
use self::socks::SocksError;
use crate::secret::Secret;
use crate::target::Target;
use crate::timeouts::Brief;

/// The longest head of a reply to CONNECT, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// So much of a refusal's body is read, in bytes: behind the styles of an error page stands its text.
const MAX_BODY: usize = 8 * 1024;

/// So much of the body of a 407 is read to ask again on the same connection, in bytes.
const MAX_DRAINED: usize = 64 * 1024;

/// How long a refusal's body is waited for. The status is known by then; the body only explains it.
const BODY_LIMIT: Duration = Duration::from_secs(1);

/// An open tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// The upstream's status: 200, or another 2xx.
    pub status: StatusCode,
    /// Bytes behind the head: they come from the target and belong to the client.
    pub early: Bytes,
}

/// Why an upstream opened no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It answered with another status than 2xx.
    #[error("answered {}{}", .0.line(), .0.redirect())]
    Refused(Box<Reply>),
    /// It answered 407, and there is nothing to answer to that.
    #[error("answered {}: {why}", .reply.line())]
    Unauthorized {
        /// What it said.
        reply: Box<Reply>,
        /// Why it is final.
        why: AuthError,
    },
    /// It ended the stream of HTTP/2 before an answer.
    #[error("ended the stream: {reason}")]
    Stream {
        /// The name of the error code.
        reason: String,
    },
    /// It ended the connection of HTTP/2 before an answer.
    #[error("closes the HTTP/2 connection: {reason}")]
    GoAway {
        /// The name of the error code.
        reason: String,
    },
    /// As many connections to it are open as the policy allows.
    #[error("{limit} connections to it are open, as many as limits.connections allows")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// Its SOCKS protocol ended without a connection.
    #[error(transparent)]
    Socks(#[from] SocksError),
    /// No whole head came within the limit.
    #[error("no answer in {}", Brief(*after))]
    NoReply {
        /// Since the request was sent.
        after: Duration,
    },
    /// It closed before a whole head.
    #[error("closed without an answer")]
    Closed,
    /// It reset the connection before a whole head.
    #[error("reset the connection before an answer")]
    Reset {
        /// The kernel's error.
        source: io::Error,
    },
    /// What came is no HTTP/1.x reply: TLS, another protocol, or garbage.
    #[error("the answer is no HTTP: {first}")]
    MalformedReply {
        /// How it begins, escaped.
        first: String,
    },
    /// The head is over 16 KiB or 100 fields, or behind more than 32 interim replies.
    #[error("the head of its answer is too large")]
    HeadTooLarge,
    /// The connection failed in another way.
    #[error("the connection failed")]
    Io {
        /// The kernel's error.
        source: io::Error,
    },
}

/// Opens a tunnel to `target` through the upstream at the other end of `socket`.
///
/// `credentials` is the value of `Proxy-Authorization`, `via` that of `Via`. Waits at most `limit`
/// for the whole head, and a second more for the text of a refusal. Not cancel safe: a socket whose
/// handshake was dropped is of no more use.
///
/// # Errors
/// [`UpstreamError::Refused`] for any status but 2xx, 407 included; the other variants where there
/// was no whole head.
///
/// Source: RFC 9110, section 9.3.6; a 2xx with `Content-Length` or `Transfer-Encoding` is read as if
/// it had neither.
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    target: &Target,
    credentials: Option<&Secret>,
    via: Option<&str>,
    limit: Duration,
) -> Result<Tunnel, UpstreamError> {
    let request =
        request(target, credentials, via).map_err(|source| UpstreamError::Io { source })?;
    let mut buffer = BytesMut::new();
    let mut reply = exchange(socket, &request, &mut buffer, MAX_HEAD, limit).await?;
    if reply.status.is_success() {
        return Ok(Tunnel {
            status: reply.status,
            early: buffer.freeze(),
        });
    }
    // A 407 is answered on the same connection, for which all of its body must be gone.
    let is_asking = reply.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    let most = if is_asking { MAX_DRAINED } else { MAX_BODY };
    let mut end = reply.body_len(&buffer);
    // Whatever ends it, what came until then is used.
    let _ = timeout_at(Instant::now() + BODY_LIMIT, async {
        let want = |end: Option<usize>| end.unwrap_or(usize::MAX).min(most);
        while buffer.len() < want(end) && read_some(socket, &mut buffer, want(end)).await? > 0 {
            end = reply.body_len(&buffer);
        }
        io::Result::Ok(())
    })
    .await;
    reply.is_reusable = reply.is_kept() && end == Some(buffer.len());
    buffer.truncate(end.unwrap_or(MAX_BODY).min(MAX_BODY));
    Err(UpstreamError::Refused(Box::new(reply.with_body(&buffer))))
}

/// Reads of the body of a refusal that came by way of hyper as much as [`open`] would of one that asks who we are: its
/// beginning, and whether that is all and its end was read.
pub async fn read_body<B: Body<Data = Bytes> + Unpin>(mut body: B) -> (BytesMut, bool) {
    let mut text = BytesMut::new();
    let mut is_whole = false;
    let _ = timeout_at(Instant::now() + BODY_LIMIT, async {
        while text.len() < MAX_DRAINED {
            let Some(frame) = body.frame().await else {
                is_whole = true;
                break;
            };
            let Ok(frame) = frame else { break };
            if let Some(data) = frame.data_ref() {
                text.extend_from_slice(data);
            }
        }
    })
    .await;
    text.truncate(MAX_BODY);
    (text, is_whole)
}

fn request(
    target: &Target,
    credentials: Option<&Secret>,
    via: Option<&str>,
) -> io::Result<Vec<u8>> {
    let mut text = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    let credentials = credentials.map(Secret::reveal);
    for (name, value) in [("Proxy-Authorization", credentials), ("Via", via)] {
        let Some(value) = value else { continue };
        if value.bytes().any(|byte| byte.is_ascii_control()) {
            // A line end here would make a second request of the rest.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        text.extend([name, ": ", value, "\r\n"]);
    }
    text.push_str("\r\n");
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::runtime::Builder;

    use super::head::{MAX_FIELDS, MAX_INTERIM};
    use super::*;
    use crate::net::socket::tests::pair;

    const LIMIT: Duration = Duration::from_secs(30);

    fn target() -> Target {
        Target::from_authority("a.example:443").unwrap()
    }

    async fn open_plain<S: AsyncRead + AsyncWrite + Unpin>(
        socket: &mut S,
    ) -> Result<Tunnel, UpstreamError> {
        open(socket, &target(), None, None, LIMIT).await
    }

    /// What the handshake makes of `answer`, sent whole and then closed.
    async fn against(answer: &[u8]) -> Result<Tunnel, UpstreamError> {
        let (mut near, mut far) = duplex(1 << 20);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        open_plain(&mut near).await
    }

    async fn refusal(answer: &str) -> Reply {
        match against(answer.as_bytes()).await {
            Err(UpstreamError::Refused(reply)) => *reply,
            other => panic!("{other:?}"),
        }
    }

    async fn read_request(far: &mut DuplexStream) -> String {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(far.read_u8().await.unwrap());
        }
        String::from_utf8(request).unwrap()
    }

    #[tokio::test]
    async fn the_request_names_the_target_and_carries_what_it_was_given() {
        let (mut near, mut far) = duplex(4096);
        let secret = Secret::new("Basic dTpw");
        let target = Target::from_authority("[2001:db8::1]:443").unwrap();
        let upstream = async {
            let request = read_request(&mut far).await;
            far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            request
        };
        let opened = open(&mut near, &target, Some(&secret), Some("1.1 us"), LIMIT);
        let (tunnel, request) = tokio::join!(opened, upstream);
        assert_eq!(tunnel.unwrap().status, StatusCode::OK);
        assert_eq!(
            request,
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\
             Proxy-Authorization: Basic dTpw\r\nVia: 1.1 us\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn a_line_end_in_a_value_is_not_sent() {
        let (mut near, mut far) = duplex(4096);
        let secret = Secret::new("Basic x\r\nX: y");
        let error = open(&mut near, &target(), Some(&secret), None, LIMIT).await;
        assert!(matches!(error, Err(UpstreamError::Io { .. })));
        drop(near);
        assert_eq!(far.read(&mut [0; 9]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn bytes_behind_the_head_are_kept_whatever_the_framing_says() {
        for head in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 299 \r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: y\r\n\r\nHTTP/1.1 200 OK\n\n",
        ] {
            let tunnel = against(format!("{head}SSH-2.0-x\r\n").as_bytes()).await;
            assert_eq!(tunnel.unwrap().early, "SSH-2.0-x\r\n", "{head}");
        }
    }

    #[tokio::test]
    async fn a_refusal_keeps_what_the_upstream_said() {
        let reply = refusal(
            "HTTP/1.1 407 Proxy Auth Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\
             Via: 1.1 a\r\nVia: 1.1 b\r\nRetry-After: 5\r\nLocation: http://portal/\r\n\
             X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0\r\nContent-Length: 25\r\n\r\n\
             <title>Log in</title> nowSURPLUS",
        )
        .await;
        assert_eq!(reply.status, 407);
        assert_eq!(reply.reason, "Proxy Auth Required");
        assert_eq!(reply.auth_schemes, ["Basic"]);
        assert_eq!(reply.location.as_deref(), Some("http://portal/"));
        assert_eq!(reply.reported(), Some(Reported::Denied));
        assert_eq!(reply.body, "Log in now");
        assert_eq!(refusal("HTTP/1.1 101 Switching\r\n\r\n").await.status, 101);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_waited_for_a_second() {
        let (mut near, mut far) = duplex(4096);
        far.write_all(b"HTTP/1.1 403 No\r\n\r\nso far")
            .await
            .unwrap();
        let begun = Instant::now();
        let Err(UpstreamError::Refused(reply)) = open_plain(&mut near).await else {
            panic!("not refused");
        };
        assert_eq!(
            (reply.body.as_str(), begun.elapsed().as_secs()),
            ("so far", 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_reply_after_the_limit() {
        let (mut near, mut far) = duplex(4096);
        far.write_all(b"HTTP/1.1 200 O").await.unwrap();
        let error = open_plain(&mut near).await.unwrap_err();
        assert!(matches!(error, UpstreamError::NoReply { after } if after == LIMIT));
    }

    #[tokio::test]
    async fn an_end_before_the_head_is_closed_or_reset() {
        assert!(matches!(against(b"").await, Err(UpstreamError::Closed)));
        assert!(matches!(
            against(b"HTTP/1.1 2").await,
            Err(UpstreamError::Closed)
        ));
        for is_reset in [false, true] {
            let (mut near, mut far) = pair().await;
            let upstream = async {
                far.read_u8().await.unwrap();
                // Left unread, the rest of the request makes the close a reset.
                if !is_reset {
                    let mut rest = [0; 999];
                    let _ = far.read(&mut rest).await.unwrap();
                }
                drop(far);
            };
            let (outcome, ()) = tokio::join!(open_plain(&mut near), upstream);
            assert!(
                matches!(
                    (outcome.unwrap_err(), is_reset),
                    (UpstreamError::Reset { .. }, true) | (UpstreamError::Closed, false)
                ),
                "{is_reset}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_http_is_malformed() {
        for (answer, first) in [
            (
                &b"\x15\x03\x01\x00\x02\x02\x46"[..],
                r"\x15\x03\x01\x00\x02\x02F",
            ),
            (b"SSH-2.0-OpenSSH\r\n", r"SSH-2.0-OpenSSH\r\n"),
            (b"HTTP/2 200 OK\r\n\r\n", r"HTTP/2 200 OK\r\n\r\n"),
            (b"HTTP/1.1 099 x\r\n\r\n", r"HTTP/1.1 099 x\r\n\r\n"),
        ] {
            match against(answer).await {
                Err(UpstreamError::MalformedReply { first: got }) => assert_eq!(got, first),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn heads_have_limits() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(MAX_HEAD));
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "X: y\r\n".repeat(MAX_FIELDS + 1)
        );
        let interim = "HTTP/1.1 102 x\r\n\r\n".repeat(MAX_INTERIM + 1);
        for answer in [long, many, interim] {
            let error = against(answer.as_bytes()).await.unwrap_err();
            assert!(matches!(error, UpstreamError::HeadTooLarge), "{error:?}");
        }
    }

    /// Feeds `answer` in pieces cut at `cuts` and says what came out, and what is left unread.
    fn in_pieces(answer: &[u8], cuts: &[usize]) -> (String, usize) {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut near, mut far) = duplex(1 << 20);
            let outcome = {
                let mut opened = pin!(open_plain(&mut near));
                let mut outcome = None;
                let mut at = 0;
                for &cut in cuts.iter().chain([&answer.len()]) {
                    let cut = cut.clamp(at, answer.len());
                    far.write_all(&answer[at..cut]).await.unwrap();
                    at = cut;
                    if outcome.is_none() {
                        outcome = std::future::poll_fn(|cx| match opened.as_mut().poll(cx) {
                            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                            Poll::Pending => Poll::Ready(None),
                        })
                        .await;
                    }
                }
                far.shutdown().await.unwrap();
                match outcome {
                    Some(outcome) => outcome,
                    None => opened.await,
                }
            };
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
            match outcome {
                Ok(mut tunnel) => {
                    // What was not early is still in the socket: together they are all there is.
                    tunnel.early = [tunnel.early, rest.into()].concat().into();
                    (format!("{tunnel:?}"), 0)
                }
                Err(error) => (format!("{error:?}"), rest.len()),
            }
        })
    }

    #[test]
    fn a_reply_split_at_any_byte_is_the_same_reply() {
        for answer in [
            &b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nVia: 1.1 x\r\n\r\nearly"[..],
            b"HTTP/1.1 403 No\r\nContent-Length: 4\r\nProxy-Status: x; error=dns_error\r\n\r\ntext",
        ] {
            let whole = in_pieces(answer, &[]);
            for cut in 0..answer.len() {
                assert_eq!(in_pieces(answer, &[cut]), whole, "{cut}");
            }
            let every: Vec<_> = (0..answer.len()).collect();
            assert_eq!(in_pieces(answer, &every), whole);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_is_read_within_limits(
            head in prop_oneof![
                Just(String::new()),
                Just("HTTP/1.1 200 OK\r\n".into()),
                Just("HTTP/1.1 403 No\r\n".into()),
                Just("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n".into()),
            ],
            tail in prop::collection::vec(any::<u8>(), 0..300),
            filler in 0..40_000_usize,
            cuts in prop::collection::vec(0..400_usize, 0..4),
        ) {
            let mut answer = head.into_bytes();
            answer.extend(&tail);
            answer.resize(answer.len() + filler, b'a');
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (outcome, unread) = in_pieces(&answer, &cuts);
            if outcome.starts_with("HeadTooLarge") || outcome.starts_with("Malformed") {
                prop_assert!(answer.len() - unread <= MAX_HEAD);
            } else if outcome.starts_with("Refused") {
                prop_assert!(answer.len() - unread <= MAX_HEAD + MAX_BODY);
            }
        }
    }
}
