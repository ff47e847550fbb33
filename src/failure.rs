//! Everything that can end a request badly, and the one place that names its cause.
//!
//! Failures are born typed where the wait is and travel by `?`. [`classify`] is an exhaustive `match`: a new
//! failure does not compile until someone has named its cause.

pub mod handshake;
pub mod tunnel;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::cause::{Cause, Kind, Phase};
use crate::memory::Earlier;
use crate::net::connect::{ConnectError, Icmp, Outcome};
use crate::net::resolve::{Doubt, Extended, ResolveError, Unresolved};
use crate::net::socket::Departure;
use crate::net::upstream::{Reported, UpstreamError};
use crate::policy::guard::Guard;
use crate::target::TargetError;
use crate::timeouts::Brief;
use handshake::Handshake;
use tunnel::Ending;

/// What ended a request, or kept a connection from carrying one.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection did not become a request.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The request asks for nothing that can be forwarded.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Policy or a guard refuses.
    #[error(transparent)]
    Denied(Box<Denied>),
    /// The request came back to us.
    #[error("{0}")]
    Loop(LoopSign),
    /// The target failed too often lately.
    #[error("{target} failed too often lately, the last time with {earlier}")]
    CircuitOpen {
        /// The target.
        target: String,
        /// The last failure.
        earlier: Earlier,
    },
    /// More connections are open than the limit allows.
    #[error("{limit} connections are open, as many as the limit allows")]
    Connections {
        /// The limit.
        limit: usize,
    },
    /// The target's name.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A TLS handshake of our own.
    #[error("{}", .0.message())]
    Handshake(Box<Handshake>),
    /// The addresses that name servers gave, which cannot be right.
    #[error("{name}: {doubt}: {}", chain(failure.as_ref()))]
    Answer {
        /// The name.
        name: Arc<str>,
        /// What speaks against them.
        doubt: Doubt,
        /// What became of them.
        failure: Box<Self>,
    },
    /// The way to an upstream, before it was asked for anything.
    #[error("upstream {upstream}: {}", chain(failure.as_ref()))]
    Reach {
        /// The upstream's name.
        upstream: Arc<str>,
        /// What went wrong on that way.
        failure: Box<Self>,
    },
    /// An upstream's answer to CONNECT, or to a plain request.
    #[error("upstream {upstream}: {}", chain(error))]
    Upstream {
        /// The upstream's name.
        upstream: Arc<str>,
        /// Whether we sent credentials.
        with_credentials: bool,
        /// Whether the same host passed lately at port 443, where this is another port.
        passes_443: bool,
        /// What it answered.
        error: UpstreamError,
    },
    /// The answer to a plain request.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The client left first.
    #[error("the client {} in phase {}", match how { Departure::Fin => "left", Departure::Rst => "reset its connection" }, phase.as_str())]
    ClientGone {
        /// What was under way.
        phase: Phase,
        /// How it left.
        how: Departure,
    },
    /// The client stopped reading.
    #[error("the client did not read for {}", Brief(*after))]
    ClientStalled {
        /// How long it was waited for.
        after: Duration,
    },
    /// The client's request body stopped arriving.
    #[error("the request's body stopped arriving for {}", Brief(*after))]
    RequestBodyStalled {
        /// How long it was waited for.
        after: Duration,
    },
    /// The end of a tunnel.
    #[error(transparent)]
    Tunnel(Box<Ending>),
    /// The process ends.
    #[error("the proxy is shutting down")]
    Shutdown {
        /// What was under way.
        phase: Phase,
    },
    /// A defect of ours.
    #[error("a panic while serving the request")]
    Panic,
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
    /// A SOCKS greeting.
    #[error("a SOCKS greeting arrived on an HTTP listener")]
    Socks,
    /// An HTTP/2 preface.
    #[error("an HTTP/2 preface arrived on an HTTP/1.1 listener")]
    Http2,
    /// The head is over the limits.
    #[error("the request's head is over 64 KiB or 100 fields")]
    TooLarge,
}

/// The first bytes of what a stranger sent, escaped. Of what looks like a request line only the method is told: its target
/// may hold a password or a token.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FirstBytes(pub Vec<u8>);

impl fmt::Debug for FirstBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = self
            .0
            .split(|byte| *byte == b' ')
            .next()
            .unwrap_or_default();
        let is_line = method.len() < self.0.len() && method.iter().all(u8::is_ascii_alphabetic);
        if is_line {
            write!(f, "\"{} ...\"", method.escape_ascii())
        } else {
            write!(f, "\"{}\"", self.0.escape_ascii())
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

/// A refusal by policy, with what a person needs to change it.
#[derive(Debug)]
pub struct Denied {
    /// Which of the five endings of `policy.denied.` it is.
    pub by: DeniedBy,
    /// The target; the client's address where that is what is refused.
    pub target: String,
    /// The rule or guard.
    pub rule: Arc<str>,
    /// Where it stands.
    pub source: Option<Arc<str>>,
    /// The reason written there.
    pub reason: Option<Arc<str>>,
    /// The status written there.
    pub status: Option<u16>,
    /// The word written there for reports.
    pub code: Option<Arc<str>>,
}

/// What refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeniedBy {
    /// The default.
    Default,
    /// A rule, or `server.allow_from`.
    Rule,
    /// A rule by address.
    RuleIp,
    /// A guard of addresses.
    GuardIp,
    /// `guards.connect_ports`.
    GuardPort,
    /// The never-list of ports.
    NeverPort,
    /// `server.allow_from`.
    Client,
}

impl std::error::Error for Denied {}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, rule, .. } = self;
        match self.by {
            DeniedBy::Default => write!(f, "no rule allows {target}; the default blocks")?,
            DeniedBy::Rule => write!(f, "rule {rule} blocks {target}")?,
            DeniedBy::RuleIp => write!(f, "rule {rule} blocks {target} by its address")?,
            DeniedBy::GuardIp => write!(f, "{rule} refuses the address of {target}")?,
            DeniedBy::GuardPort => write!(f, "{rule} refuses the port of {target}")?,
            DeniedBy::NeverPort => write!(
                f,
                "the port of {target} is refused unless a rule names it; {rule} does not"
            )?,
            DeniedBy::Client => write!(f, "client {target} is not in {rule}")?,
        }
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

impl Denied {
    /// What to change to let it pass.
    fn remedy(&self) -> String {
        let above = match &self.source {
            Some(source) => format!("add a rule above {source}"),
            None => "add a rule".to_owned(),
        };
        match self.by {
            DeniedBy::Default | DeniedBy::Rule | DeniedBy::RuleIp => {
                format!("to allow it, {above}")
            }
            DeniedBy::GuardIp => "if it is meant, add the address to guards.except".to_owned(),
            DeniedBy::GuardPort => {
                "if it is meant, add the port to guards.connect_ports".to_owned()
            }
            DeniedBy::NeverPort => "to allow it, name the port in a rule's match.port".to_owned(),
            DeniedBy::Client => {
                "to allow it, add its address to --allow-from or server.allow_from".to_owned()
            }
        }
    }
}

/// Why a plain request got no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// No answer in time.
    #[error("no answer within {}", Brief(*after))]
    NoAnswer {
        /// The limit.
        after: Duration,
    },
    /// The connection ended before an answer.
    #[error("the connection ended before an answer")]
    Empty,
    /// The connection was reset before an answer.
    #[error("the connection was reset before an answer")]
    Reset(#[source] io::Error),
    /// The answer is no HTTP, or nothing that may be passed on.
    #[error("the answer is no HTTP/1.1: {0}")]
    Malformed(MalformedAnswer),
    /// The answer's head is over the limit.
    #[error("the answer's head is over the limit")]
    HeadTooLarge,
    /// The body ended early.
    #[error("the answer ended before its stated length")]
    BodyCut,
    /// The body was cut by a reset.
    #[error("the connection was reset in the middle of the answer")]
    BodyReset(#[source] io::Error),
    /// The body stopped.
    #[error("no byte of the answer for {}", Brief(*after))]
    BodyStalled {
        /// The limit.
        after: Duration,
    },
    /// A kept connection turned out to be closed; the request goes out once more.
    #[error("the kept connection was closed")]
    Stale,
    /// The origin's own answer, 400 and above.
    #[error("the origin answered {0}")]
    Status(u16),
    /// An origin asked for proxy credentials.
    #[error("the origin answered 407")]
    AskedForProxyCredentials,
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum MalformedAnswer {
    /// The parser's word.
    #[error(transparent)]
    Parse(hyper::Error),
    /// Nobody asked for an upgrade.
    #[error("101 without a request to upgrade")]
    UnaskedUpgrade,
    /// Interim answers without end.
    #[error("too many interim answers (1xx)")]
    Interim,
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self::Denied(Box::new(denied))
    }
}

impl Failure {
    /// The guard that refused every address of a target.
    pub fn of_guard(guard: Guard, target: String) -> Self {
        let by = match guard {
            Guard::Own => return Self::Loop(LoopSign::Listener),
            Guard::ConnectPorts => DeniedBy::GuardPort,
            Guard::Loopback | Guard::LinkLocal | Guard::Private | Guard::Special => {
                DeniedBy::GuardIp
            }
        };
        Denied {
            by,
            target,
            rule: guard.name().into(),
            source: None,
            reason: None,
            status: None,
            code: None,
        }
        .into()
    }

    /// The status to answer with; `None` where no answer is possible.
    pub fn status(&self) -> Option<StatusCode> {
        let status = self.own_status().or_else(|| classify(self).status())?;
        StatusCode::from_u16(status).ok()
    }

    /// The status where it is not the cause's.
    fn own_status(&self) -> Option<u16> {
        if let Self::Denied(denied) = self {
            denied.status
        } else if let Self::Request(RequestError::TargetTooLong { .. }) = self {
            Some(414)
        } else if let Self::Request(RequestError::TransferCoding(_)) = self {
            Some(501)
        } else if let Self::Upstream {
            error: UpstreamError::Refused(reply),
            ..
        } = self
        {
            let status = reply.status.as_u16();
            let is_reported = classify(self).id().starts_with("upstream.reported.");
            (is_reported && matches!(status, 502..=504)).then_some(status)
        } else {
            None
        }
    }

    /// The response code and the extended error of the reply that it comes of (RFC 9209, section 2.3.2).
    pub fn dns_codes(&self) -> (Option<&'static str>, Option<u16>) {
        let info = |ede: Option<&Extended>| ede.map(|ede| ede.code);
        if let Self::Resolve(error) = self {
            (error.response_code(), info(error.facts.ede.as_ref()))
        } else if let Self::Answer { doubt, .. } = self {
            let ede = if let Doubt::Blocked(ede) = doubt {
                Some(ede)
            } else {
                None
            };
            (Some("NOERROR"), info(ede))
        } else if let Self::Reach { failure, .. } = self {
            failure.dns_codes()
        } else {
            (None, None)
        }
    }

    /// The ICMP message behind it.
    pub fn icmp(&self) -> Option<Icmp> {
        if let Self::Connect(error) = self {
            error.icmp()
        } else if let Self::Reach { failure, .. } | Self::Answer { failure, .. } = self {
            failure.icmp()
        } else {
            None
        }
    }

    /// What it means and what to do.
    pub fn hint(&self) -> Cow<'static, str> {
        if let Self::Denied(denied) = self {
            denied.remedy().into()
        } else {
            classify(self).hint()
        }
    }
}

/// Names the cause of a failure. The only maker of causes.
pub fn classify(failure: &Failure) -> Cause {
    let kind = match failure {
        Failure::Head(error) => match error {
            HeadError::Empty => Kind::ClientClosedBeforeRequest,
            HeadError::TimedOut { .. } => Kind::ClientRequestTimeout,
            HeadError::Cut(_) | HeadError::Malformed { .. } => Kind::ClientMalformedRequest,
            HeadError::Tls => Kind::ClientTlsToPlainPort,
            HeadError::Socks => Kind::ClientSocksToHttpPort,
            HeadError::Http2 => Kind::ClientH2Preface,
            HeadError::TooLarge => Kind::ClientHeaderTooLarge,
        },
        Failure::Request(error) => match error {
            RequestError::Target(_) | RequestError::TargetTooLong { .. } => Kind::ClientBadTarget,
            RequestError::ConnectBody | RequestError::TransferCoding(_) | RequestError::Chunks => {
                Kind::ClientMalformedRequest
            }
        },
        Failure::Denied(denied) => match denied.by {
            DeniedBy::Default => Kind::PolicyDeniedDefault,
            DeniedBy::Rule | DeniedBy::Client => Kind::PolicyDeniedRule,
            DeniedBy::RuleIp | DeniedBy::GuardIp => Kind::PolicyDeniedIp,
            DeniedBy::GuardPort | DeniedBy::NeverPort => Kind::PolicyDeniedPort,
        },
        Failure::Loop(_) => Kind::ProxyLoop,
        Failure::CircuitOpen { .. } => Kind::ProxyCircuitOpen,
        Failure::Connections { .. } => Kind::ProxyLimitConnections,
        Failure::Resolve(error) => classify_resolve(error),
        Failure::Connect(error) => classify_connect(error),
        Failure::Handshake(handshake) => return handshake::classify(handshake),
        Failure::Answer { doubt, .. } => match doubt {
            Doubt::Blocked(_) => Kind::DnsBlockedByResolver,
            Doubt::Contested => Kind::DnsDoubleReply,
            Doubt::Forged(_) => Kind::DnsKnownForged,
            Doubt::Bogon(_) => Kind::DnsBogon,
        },
        Failure::Reach { failure, .. } => return Cause::of_upstream(classify(failure).kind),
        Failure::Upstream {
            error: UpstreamError::Refused(reply),
            passes_443: true,
            ..
        } if reply.status == StatusCode::FORBIDDEN => Kind::UpstreamPortDenied,
        Failure::Upstream {
            with_credentials,
            error,
            ..
        } => classify_upstream(error, *with_credentials),
        Failure::Origin(error) => match error {
            OriginError::NoAnswer { .. } => Kind::HttpResponseTimeout,
            OriginError::Empty => Kind::HttpEmptyReply,
            OriginError::Reset(_) => Kind::HttpResetBeforeResponse,
            OriginError::Malformed(_) => Kind::HttpMalformed,
            OriginError::HeadTooLarge => Kind::HttpHeaderTooLarge,
            OriginError::BodyCut => Kind::HttpIncompleteBody,
            OriginError::BodyReset(_) => Kind::HttpResetInBody,
            OriginError::BodyStalled { .. } => Kind::HttpBodyStalled,
            OriginError::Stale => Kind::HttpReusedConnectionClosed,
            OriginError::Status(511) => Kind::HttpCaptivePortal,
            OriginError::Status(status) => Kind::HttpStatus(*status),
            OriginError::AskedForProxyCredentials => Kind::HttpStatus(407),
        },
        Failure::ClientGone { phase, .. } => match phase {
            Phase::Dns | Phase::Policy | Phase::Client => Kind::ClientGaveUpDns,
            Phase::Connect => Kind::ClientGaveUpConnect,
            Phase::Upstream => Kind::ClientGaveUpUpstream,
            Phase::Tls => Kind::ClientGaveUpTls,
            Phase::Tunnel | Phase::Close => Kind::ClientReset,
            Phase::Http => Kind::ClientGaveUpResponse,
        },
        Failure::ClientStalled { .. } => Kind::ClientWriteTimeout,
        Failure::RequestBodyStalled { .. } => Kind::ClientRequestTimeout,
        Failure::Tunnel(ending) => return tunnel::classify(ending),
        Failure::Shutdown {
            phase: Phase::Tunnel,
        } => Kind::TunnelShutdown,
        Failure::Shutdown { .. } => Kind::ProxyShutdown,
        Failure::Panic => Kind::ProxyInternal,
    };
    kind.into()
}

/// Names what became of one address; nothing where it is used, or where what ended the request ended it.
pub fn classify_try(outcome: &Outcome) -> Option<Kind> {
    match outcome {
        Outcome::Connected { .. } | Outcome::Abandoned => None,
        Outcome::Failed(error) => Some(classify_connect(error)),
        Outcome::Overtaken => Some(Kind::ConnectOvertaken),
    }
}

/// Names the cause of a connection that did not come about.
fn classify_connect(error: &ConnectError) -> Kind {
    match error {
        ConnectError::Refused { .. } => Kind::ConnectRefused,
        ConnectError::RefusedByDevice { .. } => Kind::ConnectRefusedByDevice,
        ConnectError::Prohibited { .. } => Kind::ConnectProhibited,
        ConnectError::Reset { .. } => Kind::ConnectReset,
        ConnectError::TimedOut { .. } => Kind::ConnectTimeout,
        ConnectError::NetUnreachable { .. } => Kind::ConnectUnreachableNet,
        ConnectError::HostUnreachable { .. } => Kind::ConnectUnreachableHost,
        ConnectError::ProtoUnreachable { .. } => Kind::ConnectUnreachableProto,
        ConnectError::TtlExceeded { .. } => Kind::ConnectTtlExceeded,
        ConnectError::NeighbourDead { .. } => Kind::ConnectNeighbourDead,
        ConnectError::DeniedByFirewall { .. } => Kind::ProxyEgressDeniedFirewall,
        ConnectError::Denied { .. } => Kind::ProxyEgressDeniedLsm,
        ConnectError::NoRoute { .. } => Kind::ProxyNoRoute,
        ConnectError::AddressInvalid { .. } | ConnectError::NoAddresses => {
            Kind::ConnectAddressInvalid
        }
        ConnectError::FamilyUnsupported { .. } => Kind::ConnectFamilyUnsupported,
        ConnectError::NoPorts { .. } => Kind::ProxyResourcePorts,
        ConnectError::NoFds { .. } => Kind::ProxyResourceFd,
        ConnectError::NoMemory { .. } => Kind::ProxyResourceMemory,
        ConnectError::Other { .. } => Kind::ProxyInternal,
    }
}

fn classify_resolve(error: &ResolveError) -> Kind {
    match &error.why {
        Unresolved::Timeout { .. } => Kind::DnsTimeout,
        Unresolved::ServerUnreachable { .. } => Kind::DnsServerUnreachable,
        Unresolved::NxDomain => Kind::DnsNxdomain,
        Unresolved::NxDomainUnsigned => Kind::DnsNxdomainUnsigned,
        Unresolved::NoAddress => Kind::DnsNoAddress,
        Unresolved::ServFail { .. } => Kind::DnsServfail,
        Unresolved::DnssecBogus { .. } => Kind::DnsDnssecBogus,
        Unresolved::Blocked { .. } => Kind::DnsBlockedByResolver,
        Unresolved::Refused { .. } => Kind::DnsRefused,
        Unresolved::TruncatedTcpFailed { .. } => Kind::DnsTruncatedTcpFailed,
        Unresolved::Misbehaving(_) => Kind::DnsServerMisbehaving,
    }
}

fn classify_upstream(error: &UpstreamError, with_credentials: bool) -> Kind {
    let reply = match error {
        UpstreamError::Refused(reply) => reply,
        UpstreamError::NoReply { .. } => return Kind::UpstreamNoReply,
        UpstreamError::Closed => return Kind::UpstreamClosed,
        UpstreamError::Reset { .. } | UpstreamError::Io { .. } => return Kind::UpstreamReset,
        UpstreamError::MalformedReply { .. } | UpstreamError::HeadTooLarge => {
            return Kind::UpstreamMalformedReply;
        }
    };
    match reply.status.as_u16() {
        407 if !reply
            .auth_schemes
            .iter()
            .any(|scheme| scheme.eq_ignore_ascii_case("basic")) =>
        {
            Kind::UpstreamAuthSchemeUnsupported
        }
        407 if with_credentials => Kind::UpstreamAuthRejected,
        407 => Kind::UpstreamAuthRequired,
        508 => Kind::UpstreamLoop,
        403 | 451 => Kind::UpstreamDenied,
        429 => Kind::UpstreamRateLimited,
        300..=399 => Kind::UpstreamRedirected,
        400 | 405 | 501 => Kind::UpstreamConnectUnsupported,
        status => match (reply.reported(), status) {
            (Some(Reported::Denied), _) => Kind::UpstreamDenied,
            (Some(Reported::Loop), _) => Kind::UpstreamLoop,
            (Some(Reported::Dns), _) => Kind::UpstreamReportedDns,
            (Some(Reported::Connect), _) => Kind::UpstreamReportedConnect,
            (Some(Reported::Timeout), _) => Kind::UpstreamReportedTimeout,
            (Some(Reported::Tls), _) => Kind::UpstreamReportedTls,
            (Some(Reported::Unavailable), _) => Kind::UpstreamReportedUnavailable,
            (Some(Reported::Other), _) => Kind::UpstreamReportedOther,
            (None, 503) => Kind::UpstreamReportedUnavailable,
            (None, 504) => Kind::UpstreamReportedTimeout,
            (None, _) => Kind::UpstreamReportedOther,
        },
    }
}

/// An error with its sources, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
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
    }
}
