//! What a cause means for a chain: whether it is worth trying the next hop.

use super::{Cause, Kind};

/// What a failed hop failed of, as `next_on` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The name does not exist, says who should know.
    NotFound,
    /// The name could not be looked up, or its answer is not to be trusted.
    Dns,
    /// The target could not be connected to.
    Connect,
    /// The upstream itself could not be reached, or ended before it answered.
    ProxyDown,
    /// The upstream did not take our credentials.
    ProxyAuth,
    /// The upstream says that it could not reach the target.
    Gateway,
    /// The upstream answered with another error.
    ProxyError,
    /// The hop refuses by a policy, its own or ours.
    Denied,
    /// A reset or an end behind the client's first bytes, and no byte of the server.
    Reset,
    /// No byte of the server behind the ClientHello in `timeouts.hello`.
    HelloTimeout,
    /// The server's first byte is of no TLS record.
    NotTls,
    /// The server's first record is an alert.
    TlsAlert,
    /// A plain request without a first byte of its answer in time.
    FirstByte,
    /// The answer's status is one that the chain lists.
    Status,
}

impl Class {
    /// All of them, in the order of a request's way.
    pub const ALL: &'static [Self] = &[
        Self::NotFound,
        Self::Dns,
        Self::Connect,
        Self::ProxyDown,
        Self::ProxyAuth,
        Self::Gateway,
        Self::ProxyError,
        Self::Denied,
        Self::Reset,
        Self::HelloTimeout,
        Self::NotTls,
        Self::TlsAlert,
        Self::FirstByte,
        Self::Status,
    ];

    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::ProxyDown => "proxy_down",
            Self::ProxyAuth => "proxy_auth",
            Self::Gateway => "gateway",
            Self::ProxyError => "proxy_error",
            Self::Denied => "denied",
            Self::Reset => "reset",
            Self::HelloTimeout => "hello_timeout",
            Self::NotTls => "not_tls",
            Self::TlsAlert => "tls_alert",
            Self::FirstByte => "first_byte",
            Self::Status => "status",
        }
    }

    /// How it is seen, for people.
    pub fn means(self) -> &'static str {
        match self {
            Self::NotFound => {
                "the name does not exist, says the name server; an upstream answered 404 or 410 to CONNECT"
            }
            Self::Dns => "the name could not be looked up, or its answer looks forged",
            Self::Connect => "the target refused, could not be reached, or did not answer a SYN",
            Self::ProxyDown => {
                "the upstream could not be reached, or ended before it answered CONNECT"
            }
            Self::ProxyAuth => "the upstream did not take the credentials (407)",
            Self::Gateway => {
                "the upstream could not reach the target (502, 503, 504), or did not answer"
            }
            Self::ProxyError => "the upstream answered with another error",
            Self::Denied => "the upstream refused (403, 451), or a guard did",
            Self::Reset => "a reset or an end behind what was sent, and no byte of an answer",
            Self::HelloTimeout => "no byte behind the ClientHello within `timeouts.hello`",
            Self::NotTls => "what answered the ClientHello is no TLS",
            Self::TlsAlert => "the server answered the ClientHello with an alert",
            Self::FirstByte => {
                "a plain request got no byte of an answer in its share of the budget"
            }
            Self::Status => "the answer's status is one that the chain lists in `on_status`",
        }
    }

    /// Whether the next hop has to be sent again what this one was sent.
    pub fn needs_replay(self) -> bool {
        match self {
            Self::Reset
            | Self::HelloTimeout
            | Self::NotTls
            | Self::TlsAlert
            | Self::FirstByte
            | Self::Status => true,
            Self::NotFound
            | Self::Dns
            | Self::Connect
            | Self::ProxyDown
            | Self::ProxyAuth
            | Self::Gateway
            | Self::ProxyError
            | Self::Denied => false,
        }
    }

    /// Whether it speaks of this hop on the way to this host, so that another host may fare better by the same hop.
    pub fn counts_against_host(self) -> bool {
        match self {
            Self::Connect
            | Self::Gateway
            | Self::ProxyError
            | Self::Reset
            | Self::HelloTimeout
            | Self::NotTls
            | Self::FirstByte => true,
            Self::NotFound
            | Self::Dns
            | Self::ProxyDown
            | Self::ProxyAuth
            | Self::Denied
            | Self::TlsAlert
            | Self::Status => false,
        }
    }

    /// The class of what a plain request failed of behind its sending: what an upstream did not answer was passed on to it, and
    /// may have reached the target.
    pub fn of_answer(cause: Cause) -> Option<Self> {
        let class = Self::of(cause);
        if class == Some(Self::ProxyDown) && !cause.reaching_upstream {
            return Some(Self::Reset);
        }
        if cause.kind == Kind::UpstreamNoReply {
            return Some(Self::FirstByte);
        }
        class
    }

    /// The class of a cause; `None` where no other hop would have done better: the client's doing, ours, or what happens
    /// once the server has spoken.
    pub fn of(cause: Cause) -> Option<Self> {
        if cause.reaching_upstream {
            return Some(Self::ProxyDown);
        }
        match cause.kind {
            Kind::DnsNxdomain | Kind::DnsNoAddress | Kind::UpstreamReportedNotFound => {
                Some(Self::NotFound)
            }
            // A denial that looks forged is nobody's word.
            Kind::DnsNxdomainUnsigned
            | Kind::DnsTimeout
            | Kind::DnsServerUnreachable
            | Kind::DnsServfail
            | Kind::DnsDnssecBogus
            | Kind::DnsBlockedByResolver
            | Kind::DnsRefused
            | Kind::DnsServerMisbehaving
            | Kind::DnsTruncatedTcpFailed
            | Kind::DnsBogon
            | Kind::DnsDoubleReply
            | Kind::DnsKnownForged
            | Kind::DnsDohBlocked
            // An upstream that is told the name asks others.
            | Kind::ProxyLimitLookups => Some(Self::Dns),
            Kind::ConnectTimeout
            | Kind::ConnectRefused
            | Kind::ConnectRefusedByDevice
            | Kind::ConnectProhibited
            | Kind::ConnectReset
            | Kind::ConnectUnreachableNet
            | Kind::ConnectUnreachableHost
            | Kind::ConnectUnreachableProto
            | Kind::ConnectTtlExceeded
            | Kind::ConnectNeighbourDead
            | Kind::ConnectOvertaken
            | Kind::ConnectAddressInvalid
            | Kind::ConnectFamilyUnsupported
            | Kind::ProxyNoRoute
            | Kind::ProxyEgressDeniedFirewall
            | Kind::ProxyEgressDeniedLsm => Some(Self::Connect),
            Kind::UpstreamClosed
            | Kind::UpstreamReset
            | Kind::UpstreamMalformedReply
            | Kind::UpstreamCircuitOpen
            | Kind::UpstreamDrained
            | Kind::UpstreamAllDown
            | Kind::ProxyLimitUpstream => Some(Self::ProxyDown),
            Kind::UpstreamAuthRequired
            | Kind::UpstreamAuthRejected
            | Kind::UpstreamAuthSchemeUnsupported
            | Kind::UpstreamAuthUnavailable => Some(Self::ProxyAuth),
            // It may well wait for the target in its turn.
            Kind::UpstreamNoReply
            | Kind::UpstreamReportedDns
            | Kind::UpstreamReportedConnect
            | Kind::UpstreamReportedTimeout
            | Kind::UpstreamReportedTls
            | Kind::UpstreamReportedUnavailable => Some(Self::Gateway),
            Kind::UpstreamReportedOther
            | Kind::UpstreamConnectUnsupported
            | Kind::UpstreamRateLimited
            | Kind::UpstreamRedirected
            | Kind::UpstreamLoop => Some(Self::ProxyError),
            Kind::UpstreamDenied
            | Kind::UpstreamPortDenied
            | Kind::PolicyDeniedDefault
            | Kind::PolicyDeniedRule
            | Kind::PolicyDeniedIp
            | Kind::PolicyDeniedPort
            | Kind::PolicyDeniedSni
            | Kind::PolicyNoRoute => Some(Self::Denied),
            Kind::TlsResetBeforeClientHello
            | Kind::TlsResetAfterClientHello
            | Kind::TlsClosedAfterClientHello
            | Kind::HttpEmptyReply
            | Kind::HttpResetBeforeResponse => Some(Self::Reset),
            Kind::TlsClientHelloBlackholed | Kind::TlsNoServerHello => Some(Self::HelloTimeout),
            Kind::TlsNotTlsReply => Some(Self::NotTls),
            Kind::TlsAlertFromServer(_) => Some(Self::TlsAlert),
            Kind::HttpResponseTimeout => Some(Self::FirstByte),
            Kind::ClientClosedBeforeRequest
            | Kind::ClientRequestTimeout
            | Kind::ClientMalformedRequest
            | Kind::ClientTlsToPlainPort
            | Kind::ClientSocksToHttpPort
            | Kind::ClientH2Preface
            | Kind::ClientBadTarget
            | Kind::ClientHeaderTooLarge
            | Kind::ClientPlainToTlsPort
            | Kind::ClientTlsFailed
            | Kind::ClientAuthRequired
            | Kind::ClientAuthFailed
            | Kind::ClientGaveUpDns
            | Kind::ClientGaveUpConnect
            | Kind::ClientGaveUpUpstream
            | Kind::ClientGaveUpTls
            | Kind::ClientGaveUpResponse
            | Kind::ClientReset
            | Kind::ClientWriteTimeout
            | Kind::ProxyLoop
            | Kind::ProxyLimitConnections
            | Kind::ProxyLimitClient
            | Kind::ProxyLimitTarget
            | Kind::ProxyLimitRate
            | Kind::ProxyResourceFd
            | Kind::ProxyResourcePorts
            | Kind::ProxyResourceMemory
            | Kind::ProxyCircuitOpen
            // Another way is what the script was to say.
            | Kind::UpstreamPacFailed
            | Kind::ProxyInternal
            | Kind::ProxyShutdown
            | Kind::TlsClientSilent
            | Kind::TlsClientHelloIncomplete
            | Kind::TlsServerFlightStalled
            | Kind::TlsResetDuringServerFlight
            | Kind::TlsEncryptedAlertFromServer
            | Kind::TlsClientRejectedInferred
            | Kind::TlsClientClosedAfterServerFlight
            | Kind::TlsClientClosedBeforeRequest
            | Kind::TlsCertSelfSigned
            | Kind::TlsCertUnknownIssuer
            | Kind::TlsCertIncompleteChain
            | Kind::TlsCertExpired
            | Kind::TlsCertNotYetValid
            | Kind::TlsCertNameMismatch
            | Kind::TlsCertRevoked
            | Kind::TlsCertWrongPurpose
            | Kind::TlsCertCaAsLeaf
            | Kind::TlsCertWeak
            | Kind::TlsCertMalformed
            | Kind::TlsCertKnownInterceptor
            | Kind::TlsVersionMismatch
            | Kind::TlsCipherMismatch
            | Kind::TlsAlpnRefused
            | Kind::TlsDowngradeSentinel
            | Kind::TlsEchRejected
            | Kind::TlsHandshakeTimeout
            | Kind::TlsClientRejected(_)
            | Kind::HttpStatus(_)
            | Kind::HttpResetInBody
            | Kind::HttpIncompleteBody
            | Kind::HttpBodyStalled
            | Kind::HttpMalformed
            | Kind::HttpHeaderTooLarge
            | Kind::HttpCaptivePortal
            | Kind::HttpReusedConnectionClosed
            | Kind::TunnelResetByServer
            | Kind::TunnelResetAfterIdle
            | Kind::TunnelBlackholedAfterIdle
            | Kind::TunnelNoAck
            | Kind::TunnelPeerWindowZero
            | Kind::TunnelServerSilent
            | Kind::TunnelClientNotReading
            | Kind::TunnelTruncated
            | Kind::TunnelIcmp
            | Kind::TunnelIdleTimeout
            | Kind::TunnelMaxDuration
            | Kind::TunnelShutdown
            | Kind::TunnelKilled
            | Kind::TunnelPolicyChanged
            | Kind::CloseClientFin
            | Kind::CloseServerFin
            | Kind::CloseBoth => None,
        }
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes(u16);

impl Classes {
    /// Behind `,`: an authoritative not-found alone, so that an outage sends no private name elsewhere.
    pub const COMMA: Self = Self::just(Class::NotFound);
    /// Behind `|`: whatever failed but a refusal, which is somebody's decision, and what the server itself said.
    pub const PIPE: Self = Self(
        Self::ANY.0
            & !Self::just(Class::Denied).0
            & !Self::just(Class::TlsAlert).0
            & !Self::just(Class::Status).0,
    );
    /// Every class.
    pub const ANY: Self = Self((1 << Class::ALL.len()) - 1);

    const fn just(class: Class) -> Self {
        Self(1 << class as u16)
    }

    /// Whether a class is in it.
    pub fn contains(self, class: Class) -> bool {
        self.0 & Self::just(class).0 != 0
    }

    /// Whether any failure is in it but what `|` leaves out.
    pub fn is_wide(self) -> bool {
        self.0 & Self::PIPE.0 == Self::PIPE.0
    }

    /// Adds all of another set.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl From<Class> for Classes {
    fn from(class: Class) -> Self {
        Self::just(class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_classes_by_name_are_any() {
        let all = |classes: &[Class]| {
            let none = Classes::default();
            classes
                .iter()
                .fold(none, |set, class| set.and((*class).into()))
        };
        assert_eq!(all(Class::ALL), Classes::ANY);
        let is_wide = |class: &&Class| Classes::PIPE.contains(**class);
        let wide: Vec<_> = Class::ALL.iter().filter(is_wide).copied().collect();
        assert!(all(&wide).is_wide() && !all(&wide[1..]).is_wide());
    }

    /// The id of a cause, its class, and whether `,` and `|` go on behind it.
    const TABLE: &[(&str, Option<Class>, bool, bool)] = &[
        ("dns.nxdomain", Some(Class::NotFound), true, true),
        ("dns.no_address", Some(Class::NotFound), true, true),
        (
            "upstream.reported.not_found",
            Some(Class::NotFound),
            true,
            true,
        ),
        ("dns.nxdomain_unsigned", Some(Class::Dns), false, true),
        ("dns.servfail", Some(Class::Dns), false, true),
        ("dns.timeout", Some(Class::Dns), false, true),
        ("connect.refused", Some(Class::Connect), false, true),
        ("upstream.pac_failed", None, false, false),
        ("connect.timeout", Some(Class::Connect), false, true),
        (
            "proxy.no_route_to_network",
            Some(Class::Connect),
            false,
            true,
        ),
        (
            "upstream.connect.refused",
            Some(Class::ProxyDown),
            false,
            true,
        ),
        ("upstream.dns.nxdomain", Some(Class::ProxyDown), false, true),
        ("upstream.closed", Some(Class::ProxyDown), false, true),
        ("upstream.circuit_open", Some(Class::ProxyDown), false, true),
        ("upstream.all_down", Some(Class::ProxyDown), false, true),
        (
            "upstream.auth_rejected",
            Some(Class::ProxyAuth),
            false,
            true,
        ),
        (
            "upstream.reported.timeout",
            Some(Class::Gateway),
            false,
            true,
        ),
        (
            "upstream.rate_limited",
            Some(Class::ProxyError),
            false,
            true,
        ),
        ("upstream.denied", Some(Class::Denied), false, false),
        ("policy.denied.ip", Some(Class::Denied), false, false),
        (
            "tls.reset_after_client_hello",
            Some(Class::Reset),
            false,
            true,
        ),
        (
            "tls.closed_after_client_hello",
            Some(Class::Reset),
            false,
            true,
        ),
        (
            "tls.client_hello_blackholed",
            Some(Class::HelloTimeout),
            false,
            true,
        ),
        (
            "tls.no_server_hello",
            Some(Class::HelloTimeout),
            false,
            true,
        ),
        ("tls.not_tls_reply", Some(Class::NotTls), false, true),
        (
            "tls.alert_from_server.unrecognized_name",
            Some(Class::TlsAlert),
            false,
            false,
        ),
        ("http.empty_reply", Some(Class::Reset), false, true),
        ("http.response_timeout", Some(Class::FirstByte), false, true),
        ("http.status.503", None, false, false),
        ("client.gave_up.connect", None, false, false),
        ("proxy.resource.fd", None, false, false),
        ("tls.reset_during_server_flight", None, false, false),
        ("tunnel.reset_by_server", None, false, false),
    ];

    #[test]
    fn a_comma_goes_on_after_a_not_found_alone_and_a_pipe_after_all_but_a_refusal() {
        for (id, class, comma, pipe) in TABLE {
            let cause = Cause::parse(id).unwrap_or_else(|| panic!("{id}"));
            assert_eq!(Class::of(cause), *class, "{id}");
            let goes_on = |classes: Classes| class.is_some_and(|class| classes.contains(class));
            assert_eq!(goes_on(Classes::COMMA), *comma, "{id}");
            assert_eq!(goes_on(Classes::PIPE), *pipe, "{id}");
        }
    }

    #[test]
    fn what_an_upstream_does_not_answer_to_a_plain_request_may_have_reached_the_target() {
        for (id, class) in [
            ("upstream.closed", Some(Class::Reset)),
            ("upstream.reset", Some(Class::Reset)),
            ("upstream.no_reply", Some(Class::FirstByte)),
            ("upstream.connect.refused", Some(Class::ProxyDown)),
            ("upstream.denied", Some(Class::Denied)),
            ("http.empty_reply", Some(Class::Reset)),
            ("http.response_timeout", Some(Class::FirstByte)),
            ("client.gave_up.response", None),
        ] {
            let cause = Cause::parse(id).unwrap_or_else(|| panic!("{id}"));
            assert_eq!(Class::of_answer(cause), class, "{id}");
        }
    }

    #[test]
    fn only_a_not_found_lets_a_comma_go_on() {
        for class in Class::ALL {
            let is_it = *class == Class::NotFound;
            assert_eq!(Classes::COMMA.contains(*class), is_it, "{class:?}");
            assert!(Classes::ANY.contains(*class), "{class:?}");
        }
    }
}
