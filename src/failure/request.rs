//! What is wrong with what a client sends.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::target::TargetError;
use crate::timeouts::Brief;

/// Why it is not known who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// It does not say.
    #[error("this proxy serves users that it knows, and the request names none")]
    Nameless,
    /// It says so in a scheme that is not spoken.
    #[error("credentials come by another scheme than Basic")]
    OtherScheme,
    /// The name or the password is wrong.
    #[error("there is no such user, or the password is wrong")]
    Refused,
    /// It was proven, and the user has been taken out since.
    #[error("the user is none of server.auth any more")]
    Gone,
}

/// A limit that is reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// Connections of one client.
    #[error("{limit} connections of this client's address are open, as many as the limit allows")]
    Client {
        /// The limit.
        limit: usize,
    },
    /// Requests to one target.
    #[error("{limit} requests to {target} are under way, as many as the limit allows")]
    Target {
        /// The target.
        target: String,
        /// The limit.
        limit: usize,
    },
    /// Requests of one client in a second.
    #[error(
        "this client's address began {limit} requests in a second, as many as the limit allows"
    )]
    Rate {
        /// The limit.
        limit: usize,
    },
}

/// Why a connection did not become a request.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// It ended without a byte.
    #[error("the connection ended before a request")]
    Empty,
    /// It ended inside a request's head.
    #[error("the connection ended inside a request's head, after {0:?}")]
    Cut(FirstBytes),
    /// The head did not arrive in time.
    #[error("no whole request head within {}; it began with {first:?}", Brief(*after))]
    TimedOut {
        /// The limit.
        after: Duration,
        /// How it began.
        first: FirstBytes,
    },
    /// It is no HTTP/1.1.
    #[error("no HTTP/1.1 request that can be read: it begins with {first:?}")]
    Malformed {
        /// How it begins.
        first: FirstBytes,
        /// What is wrong with it.
        source: hyper::Error,
    },
    /// A TLS handshake.
    #[error("a TLS handshake arrived on a listener that speaks plain HTTP")]
    Tls,
    /// Something else on a listener that speaks TLS.
    #[error("what arrived on a listener that speaks TLS is no TLS handshake: it begins with {0:?}")]
    PlainToTls(FirstBytes),
    /// A TLS handshake with us.
    #[error("the TLS handshake with this listener failed")]
    Handshake(#[source] io::Error),
    /// A TLS handshake with us whose client shows no certificate.
    #[error("the client shows no certificate, and this listener wants one")]
    NoCertificate,
    /// A TLS handshake with us whose client shows a certificate that is not good here.
    #[error("the client's certificate is not good here")]
    Certificate(#[source] io::Error),
    /// The header of the PROXY protocol that a balancer owes.
    #[error("the header of the PROXY protocol {0}")]
    ProxyHeader(&'static str),
    /// What HTTP/2 makes of what arrived.
    #[error("HTTP/2 ended the connection")]
    Broken(#[source] hyper::Error),
    /// A SOCKS4 greeting.
    #[error("a SOCKS4 greeting arrived: of SOCKS, version 5 is spoken")]
    Socks4,
    /// A SOCKS5 handshake that makes no sense, or asks for nothing that we speak.
    #[error("SOCKS5: {0}")]
    Socks5(&'static str),
    /// An HTTP/2 preface.
    #[error("an HTTP/2 preface arrived on an HTTP/1.1 listener")]
    Http2,
    /// The head is over the limits.
    #[error("the request's head is over 64 KiB or 100 fields")]
    TooLarge,
}

/// The first bytes of what a stranger sent, escaped. Where it goes on behind its first word, only that is told: what follows
/// may hold a password or a token, whether or not it is a request line.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FirstBytes(pub Vec<u8>);

impl fmt::Debug for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Blank lines may stand before it (RFC 9112, section 2.2).
        let blank = self.0.iter().take_while(|byte| b"\r\n".contains(byte));
        let line = self.0.get(blank.count()..).unwrap_or_default();
        let end = line.iter().position(|byte| b" \t\r\n:/@,".contains(byte));
        let (word, rest) = line.split_at(end.unwrap_or(line.len()));
        if rest.trim_ascii().is_empty() {
            write!(f, "\"{}\"", self.0.escape_ascii())
        } else {
            write!(f, "\"{} ...\"", word.escape_ascii())
        }
    }
}

/// Why a request is not forwarded.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Its target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Its target's length.
    #[error(
        "the request target has {length} bytes; {} is the limit",
        crate::target::MAX_TARGET
    )]
    TargetTooLong {
        /// Its length.
        length: usize,
    },
    /// A CONNECT with a body, which has no meaning (RFC 9110, section 9.3.6).
    #[error("a CONNECT request has no body")]
    ConnectBody,
    /// A SOCKS5 command that is not served.
    #[error("SOCKS5 command {0} is not served; 1 (CONNECT) is")]
    SocksCommand(u8),
    /// A SOCKS5 address of no known kind.
    #[error("SOCKS5 address type {0} is none of 1 (IPv4), 3 (name), 4 (IPv6)")]
    SocksAddress(u8),
    /// How its body is framed.
    #[error("transfer coding {0:?} is not forwarded; only chunked is")]
    TransferCoding(String),
    /// What stands where a chunk of its body should.
    #[error("the request's body is not chunked as its head says")]
    Chunks,
}

/// How a loop was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopSign {
    /// Our own name stands in Via.
    Via,
    /// The target is one of our listeners.
    Listener,
}

impl fmt::Display for LoopSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Via => "the request has passed this proxy already: our own name stands in Via",
            Self::Listener => "the target is this proxy itself",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_escaped_and_hold_no_password() {
        let told = |bytes: &[u8]| format!("{:?}", FirstBytes(bytes.to_vec()));
        assert_eq!(told(b"\x16\x03\x01"), r#""\x16\x03\x01""#);
        assert_eq!(told(b"GARBAGE\r\n"), r#""GARBAGE\r\n""#);
        assert_eq!(told(b"GET http://user:secret@a.example"), r#""GET ...""#);
        assert_eq!(told(b"CONNECT user:secret@a.example:1"), r#""CONNECT ...""#);
        for (bytes, method) in [
            (&b"\r\nCONNECT user:secret@a.example:1"[..], "CONNECT"),
            (b"\n\nGET\thttp://user:secret@a.example", "GET"),
            (
                b"VERSION-CONTROL http://u:secret@a.example",
                "VERSION-CONTROL",
            ),
            (b"M-SEARCH\thttp://u:secret@a.example", "M-SEARCH"),
            (b" http://u:secret@a.example", ""),
            (b"GET\r\nCookie: secret", "GET"),
            (b"http://u:secret@a.example/", "http"),
            (b"u:secret@a.example:443 HTTP/1.1", "u"),
            (b"\xef\xbb\xbfGET http://u:secret@a", r"\xef\xbb\xbfGET"),
            (b"\"GET\" http://u:secret@a.example", r#"\"GET\""#),
            (b"GET,http://u:secret@a.example", "GET"),
            (b"\0GET http://u:secret@a.example", r"\x00GET"),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian", "SSH-2.0-OpenSSH_9.2p1"),
        ] {
            assert_eq!(told(bytes), format!("\"{method} ...\""));
        }
    }
}
