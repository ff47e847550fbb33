//! Why a name has no address, by the name servers' words and silences.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use ipnet::IpNet;

use super::ask::Asker;
use super::facts::{Asked, Extended, Facts};
use super::servers::QUESTIONS;
use super::tap::Unhelpful;
use crate::record::quote;
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
    /// The question had to wait for others most of the time.
    #[error("{limit} names are being looked up, and no answer came within {}", Brief(*after))]
    Busy {
        /// How many may be.
        limit: usize,
        /// The limit of time.
        after: Duration,
    },
    /// A server that is asked by TLS or HTTP cannot be asked.
    #[error("name server {server} cannot be asked{}", Servers(asked))]
    Secure {
        /// Its name in the policy.
        server: Arc<str>,
        /// What is wrong; nothing where no connection came about in time.
        source: Option<Arc<io::Error>>,
        /// Whom we asked.
        asked: Vec<Asked>,
    },
    /// An address of the answer is among those of forged ones (`dns.bogus`).
    #[error("{ip} by DNS is forged: it is in {net} of dns.bogus")]
    Forged {
        /// The address.
        ip: IpAddr,
        /// The range that says so.
        net: IpNet,
    },
    /// The name may have addresses, but of the family that is not asked for.
    #[error("no {record} record, and dns.prefer is {prefer}")]
    NoneOfFamily {
        /// The type of record that is asked for.
        record: &'static str,
        /// The word in the policy.
        prefer: &'static str,
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

/// What is wrong with a server that is asked over a connection, by TLS or HTTP in particular.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SecureError {
    /// No connection, TLS handshake and all, within the time of one try.
    #[error("no connection within {}", Brief(*after))]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The handshake failed: another certificate than it should have, perhaps.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// It answers with another status than 2xx.
    #[error("HTTP status {0}")]
    Status(String),
    /// What it speaks is no DNS over HTTP.
    #[error("HTTP: {0}")]
    Http(String),
}

impl SecureError {
    /// What the library says of a connection to such a server, as an error at which it goes on to the next one. A server's
    /// words about a name stay as they are.
    pub(super) fn read(error: NetError) -> NetError {
        let kind = if error.is_connection_closed() {
            // The library opens another connection then, if this one has served before.
            io::ErrorKind::ConnectionAborted
        } else {
            io::ErrorKind::Other
        };
        let this = if let NetError::Io(io) = &error {
            let tls = io.get_ref().and_then(|inner| inner.downcast_ref());
            let Some(tls) = tls else { return error };
            Self::Tls(rustls::Error::clone(tls))
        } else if let NetError::RustlsError(tls) = error {
            Self::Tls(tls)
        } else if let NetError::Msg(text) = &error {
            match text.strip_prefix("http unsuccessful code: ") {
                // What follows is the body.
                Some(rest) => Self::Status(quote(rest.split(',').next().unwrap_or_default())),
                None => Self::Http(quote(text)),
            }
        } else if let NetError::H2(_) | NetError::Message(_) | NetError::Decode(_) = &error {
            Self::Http(quote(&error.to_string()))
        } else {
            return error;
        };
        NetError::Io(Arc::new(io::Error::new(kind, this)))
    }
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
            Unresolved::Timeout { .. }
            | Unresolved::Busy { .. }
            | Unresolved::Secure { .. }
            | Unresolved::ServerUnreachable { .. } => None,
            Unresolved::NxDomain | Unresolved::NxDomainUnsigned => Some("NXDOMAIN"),
            Unresolved::NoAddress => Some("NOERROR"),
            Unresolved::Forged { .. } | Unresolved::NoneOfFamily { .. } => {
                self.facts.response_code()
            }
            Unresolved::ServFail { .. } | Unresolved::DnssecBogus { .. } => Some("SERVFAIL"),
            Unresolved::Refused { .. } => Some("REFUSED"),
            Unresolved::Blocked { .. }
            | Unresolved::TruncatedTcpFailed { .. }
            | Unresolved::Misbehaving(_) => self.facts.response_code(),
        }
    }
}

impl Unresolved {
    /// Reads the library's error, with what was seen beside it.
    pub(super) fn new(error: NetError, limit: Duration, facts: &Facts, asker: &Asker) -> Self {
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
        if let Some(who) = asker.who.as_ref().filter(|who| who.transport.is_secure())
            && asker.is_unasked(&error)
        {
            let source = if let NetError::Io(source) = error {
                Some(source)
            } else {
                asker.trouble()
            };
            return Self::Secure {
                server: who.name.clone(),
                source,
                asked: asked(),
            };
        }
        if let (NetError::Timeout, true) = (&error, facts.waited > limit / 2) {
            Self::Busy {
                limit: QUESTIONS / 2,
                after: limit,
            }
        } else if let NetError::Timeout = error {
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
                source: asker.trouble(),
                asked: asked(),
            }
        } else if let NetError::Truncated = error {
            Self::TruncatedTcpFailed {
                server: facts.server,
                source: facts
                    .server
                    .and_then(|server| asker.journal.peer(server).tcp),
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
