//! Asks a SOCKS 5 server for a connection (RFC 1928), with user name and password where it wants them (RFC 1929).
//!
//! Written here because the reply's code is what names the cause, and the crates at hand do not keep all of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use super::{UpstreamError, lost};
use crate::secret::Secret;
use crate::target::{Host, Target};
use crate::timeouts::Brief;

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// How a SOCKS server refused.
#[derive(Debug, thiserror::Error)]
pub enum SocksError {
    /// Its reply to CONNECT.
    #[error("SOCKS reply {code}: {}", meaning(*code))]
    Refused {
        /// The code, not 0.
        code: u8,
    },
    /// It takes none of the ways to log in that we offered.
    #[error("the SOCKS server wants {}", if *.with_login { "another way to log in than none or a password" } else { "a login, and there are none for it" })]
    NoMethod {
        /// Whether a user name and password were among them.
        with_login: bool,
    },
    /// It refuses user name and password.
    #[error("the SOCKS server refuses our user name and password (status {status})")]
    LoginRefused {
        /// The status, not 0.
        status: u8,
    },
    /// It refused user name and password a moment ago: it is not asked yet, since that could lock the account.
    #[error(
        "the SOCKS server refused our user name and password; unless they change, they are sent again in {}",
        Brief(*left)
    )]
    HeldBack {
        /// Until they are sent again.
        left: Duration,
    },
    /// It breaks the protocol.
    #[error("the answer is no SOCKS 5: {what}")]
    Malformed {
        /// Where and how.
        what: String,
    },
}

/// The words of RFC 1928, section 6.
fn meaning(code: u8) -> &'static str {
    match code {
        1 => "general SOCKS server failure",
        2 => "connection not allowed by ruleset",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "a code that means nothing",
    }
}

/// Whom a SOCKS server is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The target by name, or by the address that it is.
    Name(Target),
    /// An address of it.
    Address(SocketAddr),
}

/// Opens a connection through the SOCKS server at the other end of `socket`, within `limit`. Behind it the socket carries the
/// target's bytes: nothing of them is read.
///
/// # Errors
/// [`UpstreamError::Socks`] for what the server says; the others where it says nothing whole.
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    wanted: &Wanted,
    login: Option<&(Secret, Secret)>,
    limit: Duration,
) -> Result<(), UpstreamError> {
    let begun = Instant::now();
    let opened = timeout_at(begun + limit, ask(socket, wanted, login)).await;
    opened.unwrap_or_else(|_| {
        Err(UpstreamError::NoReply {
            after: begun.elapsed(),
        })
    })
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    wanted: &Wanted,
    login: Option<&(Secret, Secret)>,
) -> Result<(), UpstreamError> {
    let greeting: &[u8] = match login {
        None => &[VERSION, 1, NO_LOGIN],
        Some(_) => &[VERSION, 2, NO_LOGIN, LOGIN],
    };
    let [version, method] = exchange(socket, greeting).await?;
    if version != VERSION {
        return Err(malformed(format!(
            "version {version} in the answer to our greeting"
        )));
    }
    match (method, login) {
        (NO_LOGIN, _) => {}
        (LOGIN, Some((username, password))) => log_in(socket, username, password).await?,
        (LOGIN | NO_METHOD, None) => return Err(SocksError::NoMethod { with_login: false }.into()),
        (NO_METHOD, Some(_)) => return Err(SocksError::NoMethod { with_login: true }.into()),
        (method, _) => return Err(malformed(format!("method {method}, which was not offered"))),
    }
    let [version, code, _reserved, kind] = exchange(socket, &request(wanted)).await?;
    if version != VERSION {
        return Err(malformed(format!("version {version} in the reply")));
    }
    if code != 0 {
        return Err(SocksError::Refused { code }.into());
    }
    // The address that it connected from: of no use, and to be read away.
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(read::<1, _>(socket).await?[0]),
        kind => return Err(malformed(format!("address type {kind} in the reply"))),
    };
    let mut rest = vec![0; length + 2];
    socket.read_exact(&mut rest).await.map_err(ended)?;
    Ok(())
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    username: &Secret,
    password: &Secret,
) -> Result<(), UpstreamError> {
    let mut message = vec![LOGIN_VERSION];
    for part in [username, password] {
        let part = part.reveal().as_bytes();
        // The policy was checked for it; what a file holds now may be longer.
        let length = u8::try_from(part.len())
            .map_err(|_| malformed("a login of more than 255 bytes was to be sent".to_owned()))?;
        message.push(length);
        message.extend_from_slice(part);
    }
    let [version, status] = exchange(socket, &message).await?;
    if version != LOGIN_VERSION {
        return Err(malformed(format!(
            "version {version} in the answer to our login"
        )));
    }
    if status != 0 {
        return Err(SocksError::LoginRefused { status }.into());
    }
    Ok(())
}

fn request(wanted: &Wanted) -> Vec<u8> {
    let mut message = vec![VERSION, CONNECT, 0];
    let address = |message: &mut Vec<u8>, ip: IpAddr| match ip {
        IpAddr::V4(ip) => {
            message.push(1);
            message.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            message.push(4);
            message.extend_from_slice(&ip.octets());
        }
    };
    let port = match wanted {
        Wanted::Address(to) => {
            address(&mut message, to.ip());
            to.port()
        }
        Wanted::Name(target) => {
            match &target.host {
                Host::Ip(ip) => address(&mut message, *ip),
                Host::Name(name) => {
                    // A canonical name has at most 253 characters.
                    let name = name.as_bytes().chunks(255).next().unwrap_or_default();
                    message.push(3);
                    message.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
                    message.extend_from_slice(name);
                }
            }
            target.port
        }
    };
    message.extend_from_slice(&port.to_be_bytes());
    message
}

async fn exchange<const N: usize, S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    message: &[u8],
) -> Result<[u8; N], UpstreamError> {
    socket.write_all(message).await.map_err(lost)?;
    read(socket).await
}

async fn read<const N: usize, S: AsyncRead + Unpin>(
    socket: &mut S,
) -> Result<[u8; N], UpstreamError> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).await.map_err(ended)?;
    Ok(bytes)
}

fn ended(error: io::Error) -> UpstreamError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        UpstreamError::Closed
    } else {
        lost(error)
    }
}

fn malformed(what: String) -> UpstreamError {
    SocksError::Malformed { what }.into()
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn name() -> Wanted {
        Wanted::Name(Target::from_authority("a.example:443").unwrap())
    }

    fn login() -> (Secret, Secret) {
        (Secret::new("me"), Secret::new("pw"))
    }

    /// What comes of a server that says `answer` and closes, and what it heard.
    async fn against(
        answer: &[u8],
        wanted: &Wanted,
        login: Option<&(Secret, Secret)>,
    ) -> (Result<(), UpstreamError>, Vec<u8>) {
        let (mut near, mut far) = duplex(1 << 16);
        far.write_all(answer).await.unwrap();
        let ((), outcome) = tokio::join!(
            async { far.shutdown().await.unwrap() },
            open(&mut near, wanted, login, LIMIT)
        );
        drop(near);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        (outcome, heard)
    }

    #[tokio::test]
    async fn names_and_addresses_are_asked_for_as_the_rfc_says() {
        let address = |text: &str| Wanted::Address(text.parse().unwrap());
        for (wanted, expected) in [
            (
                name(),
                &b"\x05\x01\x00\x05\x01\x00\x03\x09a.example\x01\xbb"[..],
            ),
            (
                Wanted::Name(Target::from_authority("192.0.2.1:80").unwrap()),
                b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50",
            ),
            (
                address("192.0.2.1:80"),
                b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50",
            ),
            (
                address("[2001:db8::1]:80"),
                b"\x05\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50",
            ),
        ] {
            for bound in [
                &b"\x01\0\0\0\0\0\0"[..],
                b"\x03\x03abc\0\0",
                b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ] {
                let answer = [&b"\x05\x00\x05\x00\x00"[..], bound].concat();
                let (outcome, heard) = against(&answer, &wanted, None).await;
                outcome.unwrap();
                assert_eq!(heard, expected, "{wanted:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_login_is_sent_where_the_server_chooses_it() {
        let ours = login();
        let (outcome, heard) = against(
            b"\x05\x02\x01\x00\x05\0\0\x01\0\0\0\0\0\0",
            &name(),
            Some(&ours),
        )
        .await;
        outcome.unwrap();
        assert!(heard.starts_with(b"\x05\x02\x00\x02\x01\x02me\x02pw\x05\x01\x00\x03"));
        let (outcome, heard) =
            against(b"\x05\x00\x05\0\0\x01\0\0\0\0\0\0", &name(), Some(&ours)).await;
        outcome.unwrap();
        assert!(!heard.windows(2).any(|two| two == b"pw"));
    }

    #[tokio::test]
    async fn what_comes_behind_the_reply_is_left_unread() {
        let (mut near, mut far) = duplex(1 << 16);
        far.write_all(b"\x05\x00\x05\0\0\x01\0\0\0\0\0\0SSH-2.0")
            .await
            .unwrap();
        open(&mut near, &name(), None, LIMIT).await.unwrap();
        let mut early = [0; 7];
        near.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"SSH-2.0");
    }

    #[tokio::test]
    async fn every_refusal_is_told() {
        let ours = login();
        for (answer, with_login, expected) in [
            (
                &b"\x05\x00\x05\x01\0\x01\0\0\0\0\0\0"[..],
                false,
                "SOCKS reply 1: general SOCKS server failure",
            ),
            (
                b"\x05\x00\x05\x02\0\x01\0\0\0\0\0\0",
                false,
                "SOCKS reply 2: connection not allowed by ruleset",
            ),
            (
                b"\x05\x00\x05\x03\0\x01\0\0\0\0\0\0",
                false,
                "SOCKS reply 3: network unreachable",
            ),
            (
                b"\x05\x00\x05\x04\0\x01\0\0\0\0\0\0",
                false,
                "SOCKS reply 4: host unreachable",
            ),
            (
                b"\x05\x00\x05\x05\0\x01\0\0\0\0\0\0",
                false,
                "SOCKS reply 5: connection refused",
            ),
            (
                b"\x05\x00\x05\x06\0\x01\0\0\0\0\0\0",
                false,
                "SOCKS reply 6: TTL expired",
            ),
            (
                b"\x05\x00\x05\x07\0\x01\0\0\0\0\0\0",
                false,
                "SOCKS reply 7: command not supported",
            ),
            // Some close behind the code.
            (
                b"\x05\x00\x05\x08\0\x01",
                false,
                "SOCKS reply 8: address type not supported",
            ),
            (
                b"\x05\x00\x05\x5b\0\x01",
                false,
                "SOCKS reply 91: a code that means nothing",
            ),
            (
                b"\x05\xff",
                false,
                "the SOCKS server wants a login, and there are none for it",
            ),
            (
                b"\x05\x02",
                false,
                "the SOCKS server wants a login, and there are none for it",
            ),
            (
                b"\x05\xff",
                true,
                "the SOCKS server wants another way to log in than none or a password",
            ),
            (
                b"\x05\x02\x01\x01",
                true,
                "the SOCKS server refuses our user name and password (status 1)",
            ),
            (
                b"\x05\x02\x05\x00",
                true,
                "the answer is no SOCKS 5: version 5 in the answer to our login",
            ),
            (
                b"\x05\x01",
                false,
                "the answer is no SOCKS 5: method 1, which was not offered",
            ),
            (
                b"\x04\x5a",
                false,
                "the answer is no SOCKS 5: version 4 in the answer to our greeting",
            ),
            (
                b"HTTP/1.1 400",
                false,
                "the answer is no SOCKS 5: version 72 in the answer to our greeting",
            ),
            (
                b"\x05\x00\x04\0\0\x01",
                false,
                "the answer is no SOCKS 5: version 4 in the reply",
            ),
            (
                b"\x05\x00\x05\0\0\x09\0\0\0\0\0\0",
                false,
                "the answer is no SOCKS 5: address type 9 in the reply",
            ),
            (b"", false, "closed without an answer"),
            (b"\x05", false, "closed without an answer"),
            (b"\x05\x00\x05\x00", false, "closed without an answer"),
            (
                b"\x05\x00\x05\x00\0\x01\0\0",
                false,
                "closed without an answer",
            ),
            (
                b"\x05\x00\x05\x00\0\x03\xffab",
                false,
                "closed without an answer",
            ),
        ] {
            let ours = with_login.then_some(&ours);
            let (outcome, _) = against(answer, &name(), ours).await;
            assert_eq!(outcome.unwrap_err().to_string(), expected, "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_reply_after_the_limit() {
        let (mut near, _far) = duplex(4096);
        let error = open(&mut near, &name(), None, LIMIT).await.unwrap_err();
        assert!(matches!(error, UpstreamError::NoReply { after } if after == LIMIT));
    }
}
