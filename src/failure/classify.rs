//! The one place that names the cause of a failure.

use http::StatusCode;

use super::{
    DeniedBy, Excess, Failure, HeadError, OriginError, RequestError, Stranger, handshake, staged,
    tunnel,
};
use crate::cause::{Cause, Kind, Phase};
use crate::net::connect::{ConnectError, Outcome};
use crate::net::resolve::{Doubt, ResolveError, Unresolved};
use crate::net::upstream::auth::AuthError;
use crate::net::upstream::socks::SocksError;
use crate::net::upstream::{Reported, UpstreamError};

/// Names the cause of a failure. The only maker of causes.
pub fn classify(failure: &Failure) -> Cause {
    let kind = match failure {
        Failure::Head(error) => match error {
            HeadError::Empty => Kind::ClientClosedBeforeRequest,
            HeadError::TimedOut { .. } => Kind::ClientRequestTimeout,
            HeadError::Cut(_) | HeadError::Malformed { .. } | HeadError::Socks5(_) => {
                Kind::ClientMalformedRequest
            }
            HeadError::ProxyHeader(_) | HeadError::Broken(_) => Kind::ClientMalformedRequest,
            HeadError::PlainToTls(_) => Kind::ClientPlainToTlsPort,
            HeadError::Handshake(_) => Kind::ClientTlsFailed,
            HeadError::NoCertificate => Kind::ClientAuthRequired,
            HeadError::Certificate(_) => Kind::ClientAuthFailed,
            HeadError::Tls => Kind::ClientTlsToPlainPort,
            HeadError::Socks4 => Kind::ClientSocksToHttpPort,
            HeadError::Http2 => Kind::ClientH2Preface,
            HeadError::TooLarge => Kind::ClientHeaderTooLarge,
        },
        Failure::Request(error) => match error {
            RequestError::Target(_)
            | RequestError::TargetTooLong { .. }
            | RequestError::SocksAddress(_) => Kind::ClientBadTarget,
            RequestError::ConnectBody
            | RequestError::SocksCommand(_)
            | RequestError::TransferCoding(_)
            | RequestError::Chunks => Kind::ClientMalformedRequest,
        },
        Failure::Denied(denied) => match denied.by {
            DeniedBy::Default => Kind::PolicyDeniedDefault,
            DeniedBy::Rule | DeniedBy::Client => Kind::PolicyDeniedRule,
            DeniedBy::RuleIp | DeniedBy::GuardIp => Kind::PolicyDeniedIp,
            DeniedBy::GuardPort | DeniedBy::NeverPort => Kind::PolicyDeniedPort,
            DeniedBy::RuleSni | DeniedBy::GuardSni => Kind::PolicyDeniedSni,
        },
        Failure::Loop(_) => Kind::ProxyLoop,
        Failure::CircuitOpen { .. } => Kind::ProxyCircuitOpen,
        Failure::UpstreamCircuitOpen { .. } => Kind::UpstreamCircuitOpen,
        Failure::UpstreamDrained { .. } => Kind::UpstreamDrained,
        Failure::Pac { .. } => Kind::UpstreamPacFailed,
        Failure::AllDown(_) => Kind::UpstreamAllDown,
        Failure::Connections { .. } => Kind::ProxyLimitConnections,
        Failure::Excess(excess) => match excess {
            Excess::Client { .. } => Kind::ProxyLimitClient,
            Excess::Target { .. } => Kind::ProxyLimitTarget,
            Excess::Rate { .. } => Kind::ProxyLimitRate,
        },
        Failure::Stranger(stranger) => match stranger {
            Stranger::Nameless | Stranger::OtherScheme => Kind::ClientAuthRequired,
            Stranger::Refused | Stranger::Gone => Kind::ClientAuthFailed,
        },
        Failure::Resolve(error) => classify_resolve(error),
        Failure::Connect(error) => classify_connect(error),
        Failure::Handshake(handshake) => return handshake::classify(handshake),
        Failure::Answer { doubt, .. } => match doubt {
            Doubt::Blocked(_) => Kind::DnsBlockedByResolver,
            Doubt::Contested => Kind::DnsDoubleReply,
            Doubt::Forged(_) => Kind::DnsKnownForged,
            Doubt::Bogon(_) => Kind::DnsBogon,
        },
        Failure::Exhausted(exhausted) if exhausted.is_refused => Kind::PolicyNoRoute,
        Failure::Exhausted(exhausted) => match exhausted.told() {
            Some(told) => return classify(told),
            None => Kind::ProxyInternal,
        },
        Failure::Reach { failure, .. } => return Cause::of_upstream(classify(failure).kind),
        Failure::Upstream {
            error: UpstreamError::Refused(reply),
            passes_443: true,
            ..
        } if reply.status == StatusCode::FORBIDDEN => Kind::UpstreamPortDenied,
        Failure::Upstream { error, .. } => classify_upstream(error),
        Failure::Origin(error) => match error {
            OriginError::NoAnswer { .. } => Kind::HttpResponseTimeout,
            OriginError::Empty | OriginError::Broken(_) => Kind::HttpEmptyReply,
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
        Failure::Staged(staged) => staged::classify(staged),
        Failure::Shutdown {
            phase: Phase::Tunnel,
        } => Kind::TunnelShutdown,
        Failure::Shutdown { .. } => Kind::ProxyShutdown,
        Failure::Killed => Kind::TunnelKilled,
        Failure::PolicyChanged(_) => Kind::TunnelPolicyChanged,
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
        Unresolved::Busy { .. } => Kind::ProxyLimitLookups,
        Unresolved::Secure { .. } => Kind::DnsDohBlocked,
        Unresolved::Forged { .. } => Kind::DnsKnownForged,
        Unresolved::NoneOfFamily { .. } => Kind::DnsNoAddress,
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

pub(super) fn classify_upstream(error: &UpstreamError) -> Kind {
    let reply = match error {
        UpstreamError::Refused(reply) => reply,
        UpstreamError::Unauthorized { why, .. } => return classify_auth(why),
        UpstreamError::Socks(error) => return classify_socks(error),
        UpstreamError::NoReply { .. } => return Kind::UpstreamNoReply,
        UpstreamError::Closed | UpstreamError::GoAway { .. } => return Kind::UpstreamClosed,
        UpstreamError::Reset { .. } | UpstreamError::Stream { .. } | UpstreamError::Io { .. } => {
            return Kind::UpstreamReset;
        }
        UpstreamError::Full { .. } => return Kind::ProxyLimitUpstream,
        UpstreamError::MalformedReply { .. } | UpstreamError::HeadTooLarge => {
            return Kind::UpstreamMalformedReply;
        }
    };
    match reply.status.as_u16() {
        407 => Kind::UpstreamAuthRequired,
        508 => Kind::UpstreamLoop,
        403 | 451 => Kind::UpstreamDenied,
        429 => Kind::UpstreamRateLimited,
        300..=399 => Kind::UpstreamRedirected,
        400 | 405 | 501 => Kind::UpstreamConnectUnsupported,
        404 | 410 => Kind::UpstreamReportedNotFound,
        status => match (reply.reported(), status) {
            (Some(Reported::Denied), _) => Kind::UpstreamDenied,
            (Some(Reported::Loop), _) => Kind::UpstreamLoop,
            (Some(Reported::Dns), _) => Kind::UpstreamReportedDns,
            (Some(Reported::Connect), _) => Kind::UpstreamReportedConnect,
            (Some(Reported::Timeout), _) => Kind::UpstreamReportedTimeout,
            (Some(Reported::Tls), _) => Kind::UpstreamReportedTls,
            (Some(Reported::NotFound), _) => Kind::UpstreamReportedNotFound,
            (Some(Reported::Unavailable), _) => Kind::UpstreamReportedUnavailable,
            (Some(Reported::Other), _) => Kind::UpstreamReportedOther,
            (None, 502 | 503) => Kind::UpstreamReportedUnavailable,
            (None, 504) => Kind::UpstreamReportedTimeout,
            (None, _) => Kind::UpstreamReportedOther,
        },
    }
}

fn classify_auth(error: &AuthError) -> Kind {
    match error {
        AuthError::NoCredentials { .. } | AuthError::BodyGone => Kind::UpstreamAuthRequired,
        AuthError::NoScheme { .. } => Kind::UpstreamAuthSchemeUnsupported,
        AuthError::Rejected { .. } | AuthError::HeldBack { .. } => Kind::UpstreamAuthRejected,
        AuthError::Secret(_) | AuthError::Mechanism { .. } => Kind::UpstreamAuthUnavailable,
    }
}

/// By the codes of RFC 1928, section 6.
fn classify_socks(error: &SocksError) -> Kind {
    match error {
        SocksError::Refused { code } => match code {
            2 => Kind::UpstreamDenied,
            3..=5 => Kind::UpstreamReportedConnect,
            6 => Kind::UpstreamReportedTimeout,
            7 => Kind::UpstreamConnectUnsupported,
            _ => Kind::UpstreamReportedOther,
        },
        SocksError::NoMethod { with_login: false } => Kind::UpstreamAuthRequired,
        SocksError::NoMethod { with_login: true } => Kind::UpstreamAuthSchemeUnsupported,
        SocksError::LoginRefused { .. } | SocksError::HeldBack { .. } => Kind::UpstreamAuthRejected,
        SocksError::Malformed { .. } => Kind::UpstreamMalformedReply,
    }
}
