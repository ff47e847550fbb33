//! What a client sends first in its tunnel, as rules see it.

use std::sync::Arc;

use super::matcher::Unknown;
use super::{Query, Scheme};
use crate::target::{Host, Target};

/// How a request of HTTP begins.
const METHODS: [&[u8]; 10] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"PRI * ",
];

/// How SSH does (RFC 4253, section 4.2).
const SSH: &[u8] = b"SSH-";

/// What was seen of a tunnel's first flight, once [`Needs::FirstFlight`](super::Needs) was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flight {
    /// A whole ClientHello.
    Tls(Hello),
    /// A request of HTTP.
    Http,
    /// The greeting of SSH.
    Ssh,
    /// Anything else.
    Other,
    /// The beginning of a ClientHello whose rest did not come in time or cannot be read: which name it asks for is not known.
    Unfinished,
    /// Nothing came within `timeouts.sniff`: the server speaks first, or the client hesitates. It counts as `other`, and as
    /// a flight without SNI and ALPN.
    Silent,
    /// It is not looked at, so nothing of it is known.
    Hidden,
}

/// What a ClientHello says in the clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The name in SNI; the outer one where there is ECH.
    pub server_name: Option<Host>,
    /// The protocols of ALPN.
    pub alpn: Vec<Arc<str>>,
}

/// The protocols that rules tell apart (`match.proto`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// TLS.
    Tls,
    /// HTTP without TLS.
    Http,
    /// SSH.
    Ssh,
    /// Anything else.
    Other,
}

/// Whether the first flight of a tunnel is read (`sniff`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sniff {
    /// Where a rule that is reached, or a guard, asks for it.
    #[default]
    Auto,
    /// Of every tunnel.
    Always,
    /// Not for rules: what they say of it is unknown. A guard reads it all the same.
    Never,
}

/// What becomes of a tunnel whose SNI is another name than its target (`guards.sni_mismatch`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SniMismatch {
    /// It passes.
    #[default]
    Allow,
    /// It passes, and the record says so.
    Report,
    /// It is refused.
    Block,
}

impl Proto {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Other => "other",
        }
    }
}

impl Flight {
    /// A ClientHello, by the name as it came and the protocols that it offers.
    pub fn tls<'a>(server_name: Option<&str>, alpn: impl IntoIterator<Item = &'a str>) -> Self {
        // What is no name stays what it is: it is in no pattern, and differs from every target.
        let host = |name: &str| match Host::parse(name) {
            Ok(host) => host,
            Err(_) => Host::Name(name.to_lowercase().into()),
        };
        Self::Tls(Hello {
            server_name: server_name.map(host),
            alpn: alpn.into_iter().map(Arc::from).collect(),
        })
    }

    /// What is no ClientHello that can be read, by how it begins. What may still become a greeting counts as that one: who
    /// waits with the rest of it shall not get past a rule by that.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        match bytes {
            [] => Self::Silent,
            [0x16, 0x03, ..] => Self::Unfinished,
            _ if is_alike(bytes, SSH) => Self::Ssh,
            _ if METHODS.iter().any(|method| is_alike(bytes, method)) => Self::Http,
            _ => Self::Other,
        }
    }

    /// Whether more bytes would tell what a flight without TLS is that begins so.
    pub fn is_open(bytes: &[u8]) -> bool {
        let mut greetings = METHODS.iter().chain([&SSH]);
        greetings.any(|greeting| bytes.len() < greeting.len() && greeting.starts_with(bytes))
    }

    /// What usually comes first in a tunnel to a target: TLS at 443, SSH at 22, HTTP at 80, else nothing.
    pub fn usual(target: &Target) -> Self {
        match target.port {
            443 => Self::tls(target.host.name(), []),
            80 => Self::Http,
            22 => Self::Ssh,
            _ => Self::Silent,
        }
    }

    /// The protocol; `None` where it is not looked at.
    pub fn proto(&self) -> Option<Proto> {
        match self {
            Self::Tls(_) | Self::Unfinished => Some(Proto::Tls),
            Self::Http => Some(Proto::Http),
            Self::Ssh => Some(Proto::Ssh),
            Self::Other | Self::Silent => Some(Proto::Other),
            Self::Hidden => None,
        }
    }

    /// The ClientHello, if it is one.
    pub fn hello(&self) -> Option<&Hello> {
        match self {
            Self::Tls(hello) => Some(hello),
            Self::Http
            | Self::Ssh
            | Self::Other
            | Self::Unfinished
            | Self::Silent
            | Self::Hidden => None,
        }
    }

    /// The name in SNI.
    pub fn server_name(&self) -> Option<&Host> {
        self.hello()?.server_name.as_ref()
    }

    /// Whether SNI names another host than the tunnel's target. Only names are compared: a target that is an address
    /// names nobody, and a flight without SNI does not differ. One that keeps its name back does.
    pub fn differs_from(&self, target: &Host) -> bool {
        match (self, target) {
            (_, Host::Ip(_)) => false,
            (Self::Unfinished, Host::Name(_)) => true,
            (_, Host::Name(_)) => self.server_name().is_some_and(|name| name != target),
        }
    }
}

/// Whether one begins as the other does, as far as both go.
fn is_alike(bytes: &[u8], greeting: &[u8]) -> bool {
    bytes
        .iter()
        .zip(greeting)
        .all(|(byte, other)| byte == other)
}

impl Query<'_> {
    /// The first flight, or why it is not known.
    pub(super) fn flight(&self) -> Result<&Flight, Unknown> {
        match (self.scheme, self.first_flight) {
            // A plain request is HTTP, whatever it asks for.
            (Scheme::Http, _) => Ok(&Flight::Http),
            (Scheme::Connect, None) => Err(Unknown::FirstFlight),
            (Scheme::Connect, Some(Flight::Hidden)) => Err(Unknown::Opaque),
            (Scheme::Connect, Some(flight)) => Ok(flight),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn differs(sni: Option<&str>, target: &str) -> bool {
        Flight::tls(sni, []).differs_from(&Host::parse(target).unwrap())
    }

    #[test]
    fn a_name_is_compared_in_its_canonical_form() {
        assert!(!differs(Some("A.Example."), "a.example"));
        assert!(!differs(Some("xn--bcher-kva.example"), "bücher.example"));
        assert!(differs(Some("b.example"), "a.example"));
        assert!(differs(Some("www.a.example"), "a.example"));
        // Who waits with the rest of it shall not get past a guard by that.
        let target = Host::parse("a.example").unwrap();
        assert!(Flight::Unfinished.differs_from(&target));
        // What is no name is none that was asked for.
        assert!(differs(Some("a..example"), "a.example"));
        assert!(differs(Some("192.0.2.1"), "a.example"));
    }

    #[test]
    fn what_cannot_be_compared_does_not_differ() {
        assert!(!differs(None, "a.example"));
        assert!(!differs(Some("a.example"), "192.0.2.1"));
        let host = Host::parse("a.example").unwrap();
        for flight in [Flight::Http, Flight::Ssh, Flight::Silent, Flight::Hidden] {
            assert!(!flight.differs_from(&host));
        }
    }

    #[test]
    fn a_flight_is_told_by_how_it_begins_however_it_is_cut() {
        for (greeting, told) in [
            (&b"SSH-2.0-OpenSSH_9.6\r\n"[..], Flight::Ssh),
            (b"GET / HTTP/1.1\r\n", Flight::Http),
            (b"CONNECT a.example:443 HTTP/1.1\r\n", Flight::Http),
            (b"PRI * HTTP/2.0\r\n", Flight::Http),
            // A ClientHello that is longer than any is.
            (&[22, 3, 1, 255, 255, 1, 2, 0, 0], Flight::Unfinished),
        ] {
            for cut in 1..=greeting.len() {
                let begun = &greeting[..cut];
                let is_partial_tls = begun == [22];
                assert!(
                    Flight::of_bytes(begun) == told || is_partial_tls,
                    "{begun:?}"
                );
            }
        }
        for other in [&b"EHLO a"[..], b"SSL", b"get /", b"\0"] {
            assert_eq!(Flight::of_bytes(other), Flight::Other, "{other:?}");
            assert!(!Flight::is_open(other), "{other:?}");
        }
        assert!(Flight::is_open(b"S") && Flight::is_open(b"P") && Flight::is_open(b"GET"));
        assert!(!Flight::is_open(b"SSH-") && !Flight::is_open(b"GET /"));
    }

    #[test]
    fn the_usual_flight_follows_the_port() {
        let usual = |target| Flight::usual(&Target::from_authority(target).unwrap());
        assert_eq!(usual("a.example:443"), Flight::tls(Some("a.example"), []));
        assert_eq!(usual("192.0.2.1:443"), Flight::tls(None, []));
        assert_eq!(usual("a.example:22"), Flight::Ssh);
        assert_eq!(usual("a.example:25"), Flight::Silent);
    }
}
