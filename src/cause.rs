//! The one observation that ended a request: a stable dotted id and what follows from it.
//!
//! A cause never claims intent. The table below is the only list: status, phase, side, `Proxy-Status`
//! token and hint are read from it, and only [`crate::failure::classify`] picks a row.

use std::borrow::Cow;
use std::fmt;

/// Where on its way a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading the request.
    Client,
    /// Deciding.
    Policy,
    /// Resolving the name.
    Dns,
    /// Opening the TCP connection.
    Connect,
    /// Talking to an upstream proxy.
    Upstream,
    /// Shaking hands.
    Tls,
    /// Waiting for or passing on an HTTP answer.
    Http,
    /// Relaying opaque bytes.
    Tunnel,
    /// An orderly end.
    Close,
}

impl Phase {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Upstream => "upstream",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Tunnel => "tunnel",
            Self::Close => "close",
        }
    }
}

/// Who is behind a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to us.
    Client,
    /// This process, its policy and its timers.
    Proxy,
    /// A proxy that requests are sent through.
    Upstream,
    /// The server at the end of the way.
    Origin,
    /// What lies between.
    Network,
    /// Not to be told from what was seen.
    Unknown,
}

impl Side {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Proxy => "proxy",
            Self::Upstream => "upstream",
            Self::Origin => "origin",
            Self::Network => "network",
            Self::Unknown => "unknown",
        }
    }
}

/// How sure an observation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    /// A fact of kernel or protocol.
    Certain,
    /// Little else looks like this.
    Strong,
}

impl Confidence {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Strong => "strong",
        }
    }
}

/// A cause: an observation, and whether it was made on the way to an upstream proxy rather than to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What was observed.
    pub kind: Kind,
    /// The observation concerns reaching the upstream itself: the id is prefixed `upstream.`.
    pub reaching_upstream: bool,
}

/// A row of the table: what is known of a [`Kind`] without its request.
struct Row {
    id: &'static str,
    status: Option<u16>,
    confidence: Confidence,
    /// The error token of RFC 9209, section 2.3.
    proxy_status: Option<&'static str>,
    hint: &'static str,
}

macro_rules! causes {
    ($($kind:ident: $id:literal, $status:expr, $confidence:ident, $proxy_status:expr, $hint:literal;)*) => {
        /// What can be observed. One variant per id.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = concat!("`", $id, "`")] $kind,)*
            /// `http.status.<code>`: the origin's own answer, 400 and above.
            HttpStatus(u16),
        }

        impl Kind {
            /// Every kind but `http.status.*`, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            fn row(self) -> Row {
                match self {
                    $(Self::$kind => Row {
                        id: $id,
                        status: $status,
                        confidence: Confidence::$confidence,
                        proxy_status: $proxy_status,
                        hint: $hint,
                    },)*
                    Self::HttpStatus(status) => Row {
                        id: "http.status",
                        status: Some(if status == 407 { 502 } else { status }),
                        confidence: Confidence::Certain,
                        proxy_status: None,
                        hint: status_hint(status),
                    },
                }
            }
        }
    };
}

causes! {
    ClientClosedBeforeRequest: "client.closed_before_request", None, Certain, None,
        "a health check or a connection opened ahead of need";
    ClientRequestTimeout: "client.request_timeout", Some(408), Certain, Some("http_request_error"),
        "the request did not arrive whole in time: mend the client or raise defaults.timeouts.head";
    ClientMalformedRequest: "client.malformed_request", Some(400), Certain, Some("http_request_error"),
        "the first bytes tell what the client speaks: this listener speaks HTTP/1.1";
    ClientTlsToPlainPort: "client.tls_to_plain_port", None, Certain, Some("http_request_error"),
        "the proxy variable must start with http://, since this listener does not speak TLS";
    ClientSocksToHttpPort: "client.socks_to_http_port", None, Certain, Some("http_request_error"),
        "the proxy variable says socks; this listener speaks HTTP: write http://";
    ClientH2Preface: "client.h2_preface", Some(505), Certain, Some("http_request_error"),
        "this listener speaks HTTP/1.1 only";
    ClientBadTarget: "client.bad_target", Some(400), Certain, Some("http_request_error"),
        "no policy can let this pass: the client must ask in another way";
    ClientHeaderTooLarge: "client.header_too_large", Some(431), Certain, Some("http_request_error"),
        "the request's head is over the limit of 64 KiB or 100 fields";
    ClientGaveUpDns: "client.gave_up.dns", Some(499), Certain, None,
        "the client left while the name was looked up: its timer is shorter than defaults.timeouts.dns";
    ClientGaveUpConnect: "client.gave_up.connect", Some(499), Certain, None,
        "the client left while the connection was opened: its timer is shorter than defaults.timeouts.connect";
    ClientGaveUpUpstream: "client.gave_up.upstream", Some(499), Certain, None,
        "the client left while the upstream proxy had not answered: the upstream is slow or the client's timer short";
    ClientGaveUpResponse: "client.gave_up.response", Some(499), Certain, None,
        "the client left before the answer was whole: the origin is slow or the client's timer short";
    ClientReset: "client.reset", None, Certain, None,
        "the client reset the tunnel";
    ClientWriteTimeout: "client.write_timeout", None, Certain, None,
        "the client did not read for defaults.timeouts.body_idle: it is paused, or its disk is full";

    PolicyDeniedDefault: "policy.denied.default", Some(403), Certain, Some("http_request_denied"),
        "no rule allows this target: add a rule above the default";
    PolicyDeniedRule: "policy.denied.rule", Some(403), Certain, Some("http_request_denied"),
        "a rule blocks this target: change that rule or put one above it";
    PolicyDeniedIp: "policy.denied.ip", Some(403), Certain, Some("destination_ip_prohibited"),
        "the address is in a range that is refused: add it to guards.except if it is meant";
    PolicyDeniedPort: "policy.denied.port", Some(403), Certain, Some("http_request_denied"),
        "the port is refused: a rule whose match names the port opens it";

    ProxyLoop: "proxy.loop", Some(508), Certain, Some("proxy_loop_detected"),
        "the request came back to this proxy: a proxy variable, NO_PROXY or a rule points at ourselves";
    ProxyLimitConnections: "proxy.limit.connections", Some(503), Certain, Some("connection_limit_reached"),
        "raise server.limits.connections or --limits, and ulimit -n with it";
    ProxyResourceFd: "proxy.resource.fd", Some(503), Certain, Some("proxy_internal_error"),
        "no file descriptor is left: raise ulimit -n";
    ProxyResourcePorts: "proxy.resource.ports", Some(503), Certain, Some("proxy_internal_error"),
        "no local port is left: widen net.ipv4.ip_local_port_range";
    ProxyResourceMemory: "proxy.resource.memory", Some(503), Certain, Some("proxy_internal_error"),
        "the kernel has no memory for another socket";
    ProxyEgressDenied: "proxy.egress_denied.lsm", Some(502), Strong, Some("destination_ip_unroutable"),
        "this host's kernel forbids the connection: look for SELinux, Landlock, cgroup or firewall rules";
    ProxyNoRoute: "proxy.no_route_to_network", Some(502), Certain, Some("destination_ip_unroutable"),
        "this host, or its network namespace, has no route to that network";
    ProxyInternal: "proxy.internal", Some(500), Certain, Some("proxy_internal_error"),
        "a defect in the proxy: please report it with this record";
    ProxyShutdown: "proxy.shutdown", Some(503), Certain, Some("proxy_internal_response"),
        "the proxy is shutting down";

    DnsTimeout: "dns.timeout", Some(504), Certain, Some("dns_timeout"),
        "no name server answered: it is down, or port 53 is filtered";
    DnsServerUnreachable: "dns.server_unreachable", Some(502), Certain, Some("dns_error"),
        "no name server can be reached: look at /etc/resolv.conf";
    DnsNxdomain: "dns.nxdomain", Some(502), Certain, Some("dns_error"),
        "the name does not exist: check its spelling; an internal name needs the internal resolver";
    DnsNoAddress: "dns.no_address", Some(502), Certain, Some("dns_error"),
        "the name exists and has no address";
    DnsServfail: "dns.servfail", Some(502), Certain, Some("dns_error"),
        "the name server failed: try another one";
    DnsRefused: "dns.refused", Some(502), Certain, Some("dns_error"),
        "the name server refused to answer us";
    DnsServerMisbehaving: "dns.server_misbehaving", Some(502), Certain, Some("dns_error"),
        "the name server's reply makes no sense";

    ConnectTimeout: "connect.timeout", Some(504), Certain, Some("connection_timeout"),
        "the address is filtered or down: try it via an upstream";
    ConnectRefused: "connect.refused", Some(502), Certain, Some("connection_refused"),
        "nothing listens there, or a firewall answers with a reset";
    ConnectReset: "connect.reset", Some(502), Certain, Some("connection_terminated"),
        "the connection was reset while it was opened";
    ConnectUnreachableNet: "connect.unreachable.net", Some(502), Certain, Some("destination_ip_unroutable"),
        "there is no route to that network";
    ConnectUnreachableHost: "connect.unreachable.host", Some(502), Certain, Some("destination_ip_unroutable"),
        "there is no route to that host";
    ConnectUnreachableProto: "connect.unreachable.proto", Some(502), Certain, Some("destination_ip_unroutable"),
        "the host does not take TCP";
    ConnectOvertaken: "connect.overtaken", None, Certain, None,
        "another address of the name answered first: this one was slower, or silent";
    ConnectAddressInvalid: "connect.address_invalid", Some(502), Certain, Some("destination_ip_prohibited"),
        "the address is none to connect to";
    ConnectFamilyUnsupported: "connect.family_unsupported", Some(502), Certain, Some("destination_ip_unroutable"),
        "this host does not speak that address family";

    UpstreamAuthRequired: "upstream.auth_required", Some(502), Certain, Some("http_request_error"),
        "the upstream proxy wants credentials: set auth for it in the policy";
    UpstreamAuthRejected: "upstream.auth_rejected", Some(502), Certain, Some("http_request_error"),
        "the upstream proxy refused our credentials: wrong or expired password";
    UpstreamAuthSchemeUnsupported: "upstream.auth_scheme_unsupported", Some(502), Certain, Some("http_request_error"),
        "the upstream proxy offers only authentication schemes that this version does not speak";
    UpstreamDenied: "upstream.denied", Some(403), Certain, Some("http_request_denied"),
        "the upstream proxy's policy forbids it: ask its owner for the host, or route it another way";
    UpstreamConnectUnsupported: "upstream.connect_unsupported", Some(502), Certain, Some("http_upgrade_failed"),
        "the upstream does not know CONNECT: is it a mirror or a reverse proxy?";
    UpstreamReportedDns: "upstream.reported.dns", Some(502), Strong, Some("dns_error"),
        "the upstream proxy could not resolve the target";
    UpstreamReportedConnect: "upstream.reported.connect", Some(502), Strong, Some("connection_refused"),
        "the upstream proxy could not connect to the target";
    UpstreamReportedTimeout: "upstream.reported.timeout", Some(504), Strong, Some("connection_timeout"),
        "the upstream proxy waited in vain for the target";
    UpstreamReportedTls: "upstream.reported.tls", Some(502), Strong, Some("tls_protocol_error"),
        "the upstream proxy failed to shake hands with the target";
    UpstreamReportedUnavailable: "upstream.reported.unavailable", Some(503), Strong, Some("destination_unavailable"),
        "the upstream proxy says that the target, or itself, is unavailable";
    UpstreamReportedOther: "upstream.reported.other", Some(502), Strong, Some("proxy_internal_error"),
        "the upstream proxy answered CONNECT with an error of its own";
    UpstreamRateLimited: "upstream.rate_limited", Some(503), Certain, Some("http_request_error"),
        "the upstream proxy limits our rate";
    UpstreamRedirected: "upstream.redirected", Some(502), Certain, Some("http_protocol_error"),
        "the upstream proxy redirects: a login portal stands in front of it";
    UpstreamNoReply: "upstream.no_reply", Some(504), Certain, Some("http_response_timeout"),
        "the upstream proxy took the request and did not answer: its own timeouts are longer than ours";
    UpstreamClosed: "upstream.closed", Some(502), Certain, Some("connection_terminated"),
        "the upstream proxy closed without an answer: a TLS-only port, or our address is not allowed";
    UpstreamReset: "upstream.reset", Some(502), Certain, Some("connection_terminated"),
        "the upstream proxy reset the connection: a TLS-only port, or our address is not allowed";
    UpstreamMalformedReply: "upstream.malformed_reply", Some(502), Certain, Some("http_protocol_error"),
        "the upstream does not answer in HTTP: its scheme or port is wrong";
    UpstreamLoop: "upstream.loop", Some(508), Certain, Some("proxy_loop_detected"),
        "the upstream proxy found a loop: it sends requests back to us";

    HttpResponseTimeout: "http.response_timeout", Some(504), Certain, Some("http_response_timeout"),
        "the origin took the request and did not answer in time";
    HttpEmptyReply: "http.empty_reply", Some(502), Certain, Some("http_response_incomplete"),
        "the origin closed without an answer";
    HttpResetBeforeResponse: "http.reset_before_response", Some(502), Certain, Some("connection_terminated"),
        "the connection was reset before the answer: if it depends on the URL, something filters by it";
    HttpResetInBody: "http.reset_in_body", None, Certain, Some("connection_terminated"),
        "the connection was reset in the middle of the answer";
    HttpIncompleteBody: "http.incomplete_body", None, Certain, Some("http_response_incomplete"),
        "the answer ended before its stated length";
    HttpBodyStalled: "http.body_stalled", None, Certain, Some("connection_read_timeout"),
        "the answer stopped arriving";
    HttpMalformed: "http.malformed", Some(502), Certain, Some("http_protocol_error"),
        "the origin's answer is no HTTP";
    HttpHeaderTooLarge: "http.header_too_large", Some(502), Certain, Some("http_response_header_section_size"),
        "the head of the origin's answer is over the limit";

    HttpReusedConnectionClosed: "http.reused_connection_closed", Some(502), Certain, Some("connection_terminated"),
        "a kept connection was closed by its server: the request was sent again";

    TunnelResetByServer: "tunnel.reset_by_server", None, Certain, Some("connection_terminated"),
        "the server's side reset the tunnel";
    TunnelBlackholedAfterIdle: "tunnel.blackholed_after_idle", None, Strong, Some("connection_write_timeout"),
        "after a silence nothing was acknowledged any more: a device forgot the connection";
    TunnelNoAck: "tunnel.no_ack", None, Certain, Some("connection_write_timeout"),
        "what was sent was never acknowledged: the path broke";
    TunnelIcmp: "tunnel.icmp", None, Certain, Some("destination_ip_unroutable"),
        "the network reported the server unreachable in the middle of the tunnel";
    TunnelIdleTimeout: "tunnel.idle_timeout", None, Certain, None,
        "no byte passed for defaults.timeouts.idle, or for a minute once one side had ended: raise timeouts.idle for this rule";
    TunnelShutdown: "tunnel.shutdown", None, Certain, None,
        "the proxy ended while the tunnel was open";

    CloseClientFin: "close.client_fin", None, Certain, None, "the client ended the tunnel";
    CloseServerFin: "close.server_fin", None, Certain, None, "the server ended the tunnel";
    CloseBoth: "close.both", None, Certain, None, "both sides ended the tunnel";
}

impl From<Kind> for Cause {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            reaching_upstream: false,
        }
    }
}

impl Cause {
    /// The same observation, made on the way to an upstream proxy. Only `dns.*` and `connect.*` change.
    pub fn of_upstream(kind: Kind) -> Self {
        let reaching_upstream = matches!(phase_of(kind.row().id), Phase::Dns | Phase::Connect);
        Self {
            kind,
            reaching_upstream,
        }
    }

    /// The stable id, as in `connect.timeout` or `upstream.connect.timeout`.
    pub fn id(self) -> Cow<'static, str> {
        let id = self.kind.row().id;
        if let Kind::HttpStatus(status) = self.kind {
            Cow::Owned(format!("{id}.{status}"))
        } else if self.reaching_upstream {
            Cow::Owned(format!("upstream.{id}"))
        } else {
            Cow::Borrowed(id)
        }
    }

    /// The status that the client gets where nothing was sent yet; 499 stands in the record only.
    /// `None` where no answer is possible any more.
    pub fn status(self) -> Option<u16> {
        self.kind.row().status
    }

    /// How sure the observation is.
    pub fn confidence(self) -> Confidence {
        self.kind.row().confidence
    }

    /// The error type of a `Proxy-Status` field (RFC 9209, section 2.3).
    pub fn proxy_status(self) -> Option<&'static str> {
        self.kind.row().proxy_status
    }

    /// What it means and what to do, in a sentence.
    pub fn hint(self) -> Cow<'static, str> {
        let hint = self.kind.row().hint;
        if self.reaching_upstream {
            Cow::Owned(format!(
                "the upstream proxy itself cannot be reached: {hint}"
            ))
        } else {
            Cow::Borrowed(hint)
        }
    }

    /// The phase that the id names; `None` for `proxy.*`, which may happen in any.
    pub fn phase(self) -> Option<Phase> {
        let id = self.kind.row().id;
        if self.reaching_upstream {
            return Some(Phase::Upstream);
        }
        match id.strip_prefix("client.gave_up.") {
            Some("dns") => Some(Phase::Dns),
            Some("connect") => Some(Phase::Connect),
            Some("upstream") => Some(Phase::Upstream),
            Some(_) => Some(Phase::Http),
            None if id.starts_with("proxy.") => None,
            None => Some(phase_of(id)),
        }
    }

    /// Who is behind it.
    pub fn side(self) -> Side {
        if self.reaching_upstream {
            return Side::Upstream;
        }
        match self.kind.row().id {
            "connect.refused" | "tunnel.reset_by_server" | "close.server_fin" => Side::Origin,
            "tunnel.idle_timeout" | "tunnel.shutdown" => Side::Proxy,
            "close.client_fin" => Side::Client,
            id => match id.split('.').next() {
                Some("client") => Side::Client,
                Some("policy" | "proxy") => Side::Proxy,
                Some("upstream") => Side::Upstream,
                Some("http") => Side::Origin,
                Some("dns" | "connect") => Side::Network,
                Some("tunnel") if id == "tunnel.blackholed_after_idle" => Side::Network,
                _ => Side::Unknown,
            },
        }
    }

    /// Whether it is an orderly end rather than a failure.
    pub fn is_success(self) -> bool {
        matches!(
            self.kind,
            Kind::CloseClientFin | Kind::CloseServerFin | Kind::CloseBoth
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

fn phase_of(id: &str) -> Phase {
    match id.split('.').next() {
        Some("client") => Phase::Client,
        Some("dns") => Phase::Dns,
        Some("connect") => Phase::Connect,
        Some("upstream") => Phase::Upstream,
        Some("http") => Phase::Http,
        Some("tunnel") => Phase::Tunnel,
        Some("close") => Phase::Close,
        _ => Phase::Policy,
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "the origin wants other credentials: look at the client's login or .netrc",
        404 | 410 => {
            "the origin does not have it: a wrong version, or a private name asked in a public place"
        }
        407 => {
            "an origin does not ask for proxy credentials: another proxy stands in the way and takes the traffic"
        }
        429 => "the origin limits the rate",
        451 => "the origin may not serve it for legal reasons",
        503 => "the origin is overloaded, or guards itself against us",
        511 => "a captive portal wants a login first",
        500.. => "the origin failed",
        _ => "the origin refused the request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_dotted() {
        let mut ids: Vec<_> = Kind::ALL.iter().map(|kind| kind.row().id).collect();
        assert!(ids.iter().all(|id| id.contains('.')));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Kind::ALL.len());
    }

    #[test]
    fn no_answer_of_ours_can_send_a_module_list_on_or_fish_for_credentials() {
        for kind in Kind::ALL {
            assert!(
                !matches!(kind.row().status, Some(404 | 410 | 407)),
                "{kind:?}"
            );
        }
        assert_eq!(Cause::from(Kind::HttpStatus(407)).status(), Some(502));
        assert_eq!(Cause::from(Kind::HttpStatus(404)).status(), Some(404));
    }

    #[test]
    fn denials_are_403_and_loops_508() {
        for kind in Kind::ALL {
            let id = kind.row().id;
            if id.starts_with("policy.denied.") || id == "upstream.denied" {
                assert_eq!(kind.row().status, Some(403), "{id}");
            }
            if id.split('.').next_back() == Some("loop") {
                assert_eq!(kind.row().status, Some(508), "{id}");
            }
        }
    }

    #[test]
    fn the_way_to_an_upstream_prefixes_dns_and_connect() {
        let cause = Cause::of_upstream(Kind::ConnectRefused);
        assert_eq!(
            (&*cause.id(), cause.side()),
            ("upstream.connect.refused", Side::Upstream)
        );
        assert_eq!(cause.phase(), Some(Phase::Upstream));
        assert_eq!(
            &*Cause::of_upstream(Kind::UpstreamDenied).id(),
            "upstream.denied"
        );
    }

    #[test]
    fn phase_and_side_follow_the_id() {
        let of = |kind: Kind| {
            let cause = Cause::from(kind);
            (cause.phase().map(Phase::as_str), cause.side().as_str())
        };
        assert_eq!(of(Kind::ConnectTimeout), (Some("connect"), "network"));
        assert_eq!(of(Kind::ConnectRefused), (Some("connect"), "origin"));
        assert_eq!(of(Kind::DnsNxdomain), (Some("dns"), "network"));
        assert_eq!(of(Kind::ClientGaveUpConnect), (Some("connect"), "client"));
        assert_eq!(of(Kind::TunnelIdleTimeout), (Some("tunnel"), "proxy"));
        assert_eq!(of(Kind::TunnelResetByServer), (Some("tunnel"), "origin"));
        assert_eq!(of(Kind::HttpStatus(503)), (Some("http"), "origin"));
        assert_eq!(of(Kind::ProxyResourceFd), (None, "proxy"));
    }
}
