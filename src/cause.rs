//! The one observation that ended a request: a stable dotted id and what follows from it.
//!
//! A cause never claims intent. Its table is the only list: status, phase, side, `Proxy-Status` token, meaning and hint
//! are read from it, and only [`crate::failure::classify`] picks a row.

mod class;
mod table;

use std::borrow::Cow;
use std::fmt;

pub use class::{Class, Classes};
pub use table::Kind;

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
    /// Other things look like this as well.
    Weak,
}

impl Confidence {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Strong => "strong",
            Self::Weak => "weak",
        }
    }
}

/// A cause: an observation, and what was known of where it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What was observed.
    pub kind: Kind,
    /// The observation concerns reaching the upstream itself: the id is prefixed `upstream.`.
    pub reaching_upstream: bool,
    /// Who is behind it, where evidence tells more than the id does.
    pub evident: Option<Side>,
}

/// A row of the table: what is known of a [`Kind`] without its request.
struct Row {
    id: &'static str,
    side: Side,
    status: Option<u16>,
    confidence: Confidence,
    /// The error token of RFC 9209, section 2.3.
    proxy_status: Option<&'static str>,
    /// How it is told.
    means: &'static str,
    /// What to do.
    hint: &'static str,
}

macro_rules! causes {
    ($($kind:ident: $id:literal, $side:ident, $status:expr, $confidence:ident, $proxy_status:expr, $means:literal, $hint:literal;)*) => {
        /// What can be observed. One variant per id, but for those that carry a number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = concat!("`", $id, "`: ", $means)] $kind,)*
            /// `http.status.<code>`: the origin's own answer, 400 and above.
            HttpStatus(u16),
            /// `tls.alert_from_server.<name>`: a plaintext alert of the server.
            TlsAlertFromServer($crate::cause::Alert),
            /// `tls.client_rejected_certificate.<name>`: a plaintext alert of the client, about the certificate.
            TlsClientRejected($crate::cause::Alert),
        }

        impl Kind {
            /// Every kind but those with a number, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            pub(super) fn row(self) -> $crate::cause::Row {
                match self {
                    $(Self::$kind => $crate::cause::Row {
                        id: $id,
                        side: $crate::cause::Side::$side,
                        status: $status,
                        confidence: $crate::cause::Confidence::$confidence,
                        proxy_status: $proxy_status,
                        means: $means,
                        hint: $hint,
                    },)*
                    Self::HttpStatus(status) => $crate::cause::http_status(status),
                    Self::TlsAlertFromServer(alert) => $crate::cause::alert_from_server(alert),
                    Self::TlsClientRejected(alert) => $crate::cause::client_rejected(alert),
                }
            }
        }
    };
}
use causes;

impl From<Kind> for Cause {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            reaching_upstream: false,
            evident: None,
        }
    }
}

impl Cause {
    /// The same observation, made on the way to an upstream proxy. Only `dns.*`, `connect.*` and `tls.*` change.
    pub fn of_upstream(kind: Kind) -> Self {
        let reaching_upstream = matches!(
            phase_of(kind.row().id),
            Phase::Dns | Phase::Connect | Phase::Tls
        );
        Self {
            reaching_upstream,
            ..kind.into()
        }
    }

    /// The same, with the side that the evidence shows.
    #[must_use]
    pub fn by(self, side: Side) -> Self {
        Self {
            evident: Some(side),
            ..self
        }
    }

    /// The cause with an id, as [`Cause::id`] writes it.
    pub fn parse(id: &str) -> Option<Self> {
        if let Some(kind) = Kind::parse(id) {
            return Some(kind.into());
        }
        let cause = Self::of_upstream(Kind::parse(id.strip_prefix("upstream.")?)?);
        cause.reaching_upstream.then_some(cause)
    }

    /// The stable id, as in `connect.timeout` or `upstream.connect.timeout`.
    pub fn id(self) -> Cow<'static, str> {
        let id = self.kind.row().id;
        let id = if let Kind::HttpStatus(status) = self.kind {
            Cow::Owned(format!("{id}.{status}"))
        } else if let Kind::TlsAlertFromServer(alert) | Kind::TlsClientRejected(alert) = self.kind {
            Cow::Owned(format!("{id}.{alert}"))
        } else {
            Cow::Borrowed(id)
        };
        if self.reaching_upstream {
            Cow::Owned(format!("upstream.{id}"))
        } else {
            id
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

    /// How it is told from others, in a sentence.
    pub fn means(self) -> &'static str {
        self.kind.row().means
    }

    /// What to do, in a sentence.
    pub fn hint(self) -> Cow<'static, str> {
        let hint = match (self.kind, self.evident) {
            (Kind::TlsResetAfterClientHello, Some(Side::Origin)) => {
                "the far end had acknowledged the ClientHello: the server itself refuses it"
            }
            (Kind::TlsResetAfterClientHello, Some(Side::Network)) => {
                "nobody had acknowledged the ClientHello: something on the way resets; route it via an upstream"
            }
            (kind, _) => kind.row().hint,
        };
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
            Some("tls") => Some(Phase::Tls),
            Some(_) => Some(Phase::Http),
            None if id.starts_with("proxy.") => None,
            None => Some(phase_of(id)),
        }
    }

    /// Who is behind it.
    pub fn side(self) -> Side {
        if self.reaching_upstream {
            Side::Upstream
        } else {
            self.evident.unwrap_or(self.kind.row().side)
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

/// The ids with a number, as patterns, each with a kind of that pattern about which nothing special is known.
pub const PATTERNS: &[(&str, Kind)] = &[
    ("http.status.<code>", Kind::HttpStatus(400)),
    (
        "tls.alert_from_server.<name>",
        Kind::TlsAlertFromServer(Alert(80)),
    ),
    (
        "tls.client_rejected_certificate.<name>",
        Kind::TlsClientRejected(Alert(48)),
    ),
];

impl Kind {
    fn parse(id: &str) -> Option<Self> {
        let row = Self::ALL.iter().find(|kind| kind.row().id == id);
        if let Some(kind) = row {
            return Some(*kind);
        }
        let (pattern, end) = id.rsplit_once('.')?;
        let alert = || {
            (0..=u8::MAX)
                .map(Alert)
                .find(|alert| alert.to_string() == end)
        };
        let kind = match pattern {
            "http.status" => {
                Self::HttpStatus(end.parse().ok().filter(|n| (400..1000).contains(n))?)
            }
            "tls.alert_from_server" => Self::TlsAlertFromServer(alert()?),
            "tls.client_rejected_certificate" => Self::TlsClientRejected(alert()?),
            _ => return None,
        };
        // Not `+503`: one id, one spelling.
        (*Cause::from(kind).id() == *id).then_some(kind)
    }
}

fn phase_of(id: &str) -> Phase {
    match id.split('.').next() {
        Some("client") => Phase::Client,
        Some("dns") => Phase::Dns,
        Some("connect") => Phase::Connect,
        Some("upstream") => Phase::Upstream,
        Some("tls") => Phase::Tls,
        Some("http") => Phase::Http,
        Some("tunnel") => Phase::Tunnel,
        Some("close") => Phase::Close,
        _ => Phase::Policy,
    }
}

fn http_status(status: u16) -> Row {
    Row {
        id: "http.status",
        side: Side::Origin,
        status: Some(if status == 407 { 502 } else { status }),
        confidence: Confidence::Certain,
        proxy_status: None,
        means: "the origin's own answer has this status",
        hint: status_hint(status),
    }
}

fn alert_from_server(alert: Alert) -> Row {
    Row {
        id: "tls.alert_from_server",
        side: Side::Origin,
        status: Some(502),
        confidence: Confidence::Certain,
        proxy_status: Some("tls_alert_received"),
        means: "a plaintext alert record of the server with this name",
        hint: match alert.0 {
            112 => "the server does not host this name: is its address right?",
            40 | 70 | 71 => "server and client have no TLS version or cipher suite in common",
            86 => {
                "the client offered an older TLS version than it can: something broke its first try"
            }
            116 => "the server wants a client certificate",
            120 => "the server speaks none of the protocols that the client offered (ALPN)",
            121 => "the ECH keys in DNS are out of date",
            _ => "the server ended the handshake with a reason: look there",
        },
    }
}

fn client_rejected(alert: Alert) -> Row {
    Row {
        id: "tls.client_rejected_certificate",
        side: Side::Client,
        status: None,
        confidence: Confidence::Certain,
        proxy_status: Some("tls_certificate_error"),
        means: "a plaintext alert of the client with this name, behind the server's certificate",
        hint: match alert.0 {
            44 => "the client knows the certificate as revoked: its owner must replace it",
            45 => {
                "the certificate is expired, or not yet valid, by the client's clock: look at both"
            }
            _ => {
                "the client does not trust the certificate: install the CA in the client (ca-certificates in its image); if it fails only via one route, that route intercepts TLS"
            }
        },
    }
}

/// A TLS alert by its number (RFC 8446, section 6; the IANA registry of TLS alerts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alert(pub u8);

impl fmt::Display for Alert {
    /// Its name in the registry; `alert_<n>` for a number without one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            21 => "decryption_failed",
            22 => "record_overflow",
            30 => "decompression_failure",
            40 => "handshake_failure",
            41 => "no_certificate",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            60 => "export_restriction",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            111 => "certificate_unobtainable",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            114 => "bad_certificate_hash_value",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            121 => "ech_required",
            number => return write!(f, "alert_{number}"),
        })
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
    fn every_id_parses_back_and_nothing_else_does() {
        let numbered = [
            Kind::HttpStatus(400),
            Kind::HttpStatus(407),
            Kind::HttpStatus(599),
        ];
        let alerts = (0..=u8::MAX).map(Alert);
        let alerts = alerts.flat_map(|a| [Kind::TlsAlertFromServer(a), Kind::TlsClientRejected(a)]);
        for kind in Kind::ALL.iter().copied().chain(numbered).chain(alerts) {
            for cause in [Cause::from(kind), Cause::of_upstream(kind)] {
                assert_eq!(Cause::parse(&cause.id()), Some(cause), "{cause}");
            }
        }
        for id in [
            "",
            "tls",
            "connect.",
            "connect.refused.",
            "http.status",
            "http.status.399",
            "http.status.+503",
            "http.status.0503",
            "tls.alert_from_server.alert_112",
            "tls.alert_from_server.nothing",
            "upstream.http.status.503",
            "upstream.policy.denied.rule",
            "upstream.upstream.connect.refused",
        ] {
            assert_eq!(Cause::parse(id), None, "{id:?}");
        }
        for (pattern, kind) in PATTERNS {
            let id = Cause::from(*kind).id();
            assert_eq!(
                pattern.rsplit_once('.').map(|p| p.0),
                id.rsplit_once('.').map(|p| p.0)
            );
        }
    }

    #[test]
    fn no_answer_of_ours_can_send_a_module_list_on_or_fish_for_credentials() {
        for kind in Kind::ALL {
            // The only credentials that are asked for are those for this proxy.
            let asks = matches!(kind, Kind::ClientAuthRequired | Kind::ClientAuthFailed);
            assert!(!matches!(kind.row().status, Some(404 | 410)), "{kind:?}");
            assert_eq!(kind.row().status == Some(407), asks, "{kind:?}");
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
