//! What a client sends first in its tunnel, as rules see it.

use std::sync::Arc;

use super::matcher::Unknown;
use super::{Query, Scheme};
use crate::target::{Host, Target};

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
    /// The beginning of a ClientHello whose rest did not come in time: which name it would ask for is not known.
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

    /// What is no ClientHello, by how it begins.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        const METHODS: &[&str] = &[
            "GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "TRACE ", "PRI * ",
        ];
        let begins = |with: &str| bytes.starts_with(with.as_bytes());
        if bytes.is_empty() {
            Self::Silent
        } else if begins("SSH-") {
            Self::Ssh
        } else if METHODS.iter().any(|method| begins(method)) {
            Self::Http
        } else {
            Self::Other
        }
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
    fn the_usual_flight_follows_the_port() {
        let usual = |target| Flight::usual(&Target::from_authority(target).unwrap());
        assert_eq!(usual("a.example:443"), Flight::tls(Some("a.example"), []));
        assert_eq!(usual("192.0.2.1:443"), Flight::tls(None, []));
        assert_eq!(usual("a.example:22"), Flight::Ssh);
        assert_eq!(usual("a.example:25"), Flight::Silent);
    }
}
