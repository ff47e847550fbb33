//! Why a name has no address, by the name servers' words and silences.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;

use super::facts::{Asked, Extended, Facts};
use super::tap::Unhelpful;
use crate::timeouts::Brief;

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("look up {name}")]
pub struct ResolveError {
    /// The name.
    pub name: String,
    /// What went wrong.
    #[source]
    pub why: Unresolved,
    /// What else is known.
    pub facts: Box<Facts>,
}

/// What kept a name from having an address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unresolved {
    /// No server answered in time.
    #[error("no name server answered within {}{}", Brief(*after), Servers(asked))]
    Timeout {
        /// The limit, or what the servers took to fail.
        after: Duration,
        /// Whom we asked.
        asked: Vec<Asked>,
    },
    /// No server can be reached, or none is configured.
    #[error("no name server can be reached{}", Servers(asked))]
    ServerUnreachable {
        /// The last server's error, where there was one.
        source: Option<Arc<io::Error>>,
        /// Whom we asked.
        asked: Vec<Asked>,
    },
    /// The name does not exist (NXDOMAIN).
    #[error("NXDOMAIN")]
    NxDomain,
    /// The same without the SOA record that the zone's denials have.
    #[error("NXDOMAIN without the SOA record that a random name beside it gets")]
    NxDomainUnsigned,
    /// The name exists and has neither an A nor an AAAA record.
    #[error("no A or AAAA record")]
    NoAddress,
    /// The server failed (SERVFAIL).
    #[error("SERVFAIL{}", Because(ede.as_ref()))]
    ServFail {
        /// What it says of it.
        ede: Option<Extended>,
    },
    /// The server failed since signatures do not hold (SERVFAIL).
    #[error("SERVFAIL, {ede}")]
    DnssecBogus {
        /// What it says of it.
        ede: Extended,
    },
    /// The server's policy keeps the name from us.
    #[error("blocked by the name server, {ede}")]
    Blocked {
        /// What it says of it.
        ede: Extended,
    },
    /// The server refused (REFUSED).
    #[error("REFUSED{}", Because(ede.as_ref()))]
    Refused {
        /// What it says of it.
        ede: Option<Extended>,
    },
    /// The server's reply by UDP was truncated, and it could not be asked by TCP.
    #[error("truncated by UDP, and {} does not answer by TCP", Server(*server))]
    TruncatedTcpFailed {
        /// The server.
        server: Option<SocketAddr>,
        /// Why there is no TCP connection to it, where there is none.
        source: Option<Arc<io::Error>>,
    },
    /// The server's reply is malformed, or of a code that makes no sense here.
    #[error(transparent)]
    Misbehaving(NetError),
}

impl ResolveError {
    /// An error of which nothing more is known.
    pub fn new(name: impl Into<String>, why: Unresolved) -> Self {
        Self {
            name: name.into(),
            why,
            facts: Box::default(),
        }
    }

    /// The response code, where a server gave one.
    pub fn response_code(&self) -> Option<&'static str> {
        match &self.why {
            Unresolved::Timeout { .. } | Unresolved::ServerUnreachable { .. } => None,
            Unresolved::NxDomain | Unresolved::NxDomainUnsigned => Some("NXDOMAIN"),
            Unresolved::NoAddress => Some("NOERROR"),
            Unresolved::ServFail { .. } | Unresolved::DnssecBogus { .. } => Some("SERVFAIL"),
            Unresolved::Refused { .. } => Some("REFUSED"),
            Unresolved::Blocked { .. }
            | Unresolved::TruncatedTcpFailed { .. }
            | Unresolved::Misbehaving(_) => self.facts.response_code(),
        }
    }
}

impl Unresolved {
    /// Reads the library's error, with what was seen beside it. `tcp` tells why a server could not be reached by TCP.
    pub(super) fn new(
        error: NetError,
        limit: Duration,
        facts: &Facts,
        tcp: impl FnOnce(SocketAddr) -> Option<Arc<io::Error>>,
    ) -> Self {
        let asked = || facts.asked.clone();
        let ede = facts.ede.clone();
        let code = code_of(&error);
        if let (Some(_), Some(ede)) = (code, ede.clone().filter(Extended::is_of_policy)) {
            return Self::Blocked { ede };
        }
        match code {
            Some(ResponseCode::NXDomain) => return Self::NxDomain,
            Some(ResponseCode::NoError) => return Self::NoAddress,
            Some(ResponseCode::ServFail) => {
                return match ede {
                    Some(ede) if ede.is_of_dnssec() => Self::DnssecBogus { ede },
                    ede => Self::ServFail { ede },
                };
            }
            Some(ResponseCode::Refused) => return Self::Refused { ede },
            Some(_) => return Self::Misbehaving(error),
            None => {}
        }
        if let NetError::Timeout = error {
            Self::Timeout {
                after: limit,
                asked: asked(),
            }
        } else if let NetError::Io(source) = error {
            Self::ServerUnreachable {
                source: Some(source),
                asked: asked(),
            }
        } else if let NetError::NoConnections = error {
            Self::ServerUnreachable {
                source: None,
                asked: asked(),
            }
        } else if let NetError::Truncated = error {
            Self::TruncatedTcpFailed {
                server: facts.server,
                source: facts.server.and_then(tcp),
            }
        } else {
            Self::Misbehaving(error)
        }
    }
}

/// The response code in an error. NXDOMAIN and an empty answer are both "no records": only the code tells them apart.
pub(super) fn code_of(error: &NetError) -> Option<ResponseCode> {
    if let NetError::Dns(DnsError::NoRecordsFound(none)) = error {
        Some(none.response_code)
    } else if let NetError::Dns(DnsError::ResponseCode(code)) = error {
        Some(*code)
    } else if let NetError::Io(error) = error {
        let unhelpful = error.get_ref()?.downcast_ref::<Unhelpful>()?;
        Some(unhelpful.0)
    } else {
        None
    }
}

/// `: 192.0.2.1:53 by udp, 3 times`, or nothing.
struct Servers<'a>(&'a [Asked]);

impl std::fmt::Display for Servers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, asked) in self.0.iter().enumerate() {
            write!(f, "{}{asked}", if at == 0 { " (" } else { "; " })?;
        }
        f.write_str(if self.0.is_empty() { "" } else { ")" })
    }
}

struct Server(Option<SocketAddr>);

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(server) => server.fmt(f),
            None => f.write_str("the server"),
        }
    }
}

struct Because<'a>(Option<&'a Extended>);

impl std::fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(ede) => write!(f, ", {ede}"),
            None => Ok(()),
        }
    }
}
