//! The one line that a request leaves: names and shape of `routecause.record/1`.
//!
//! Keys are the dotted names of OpenTelemetry and ECS first; what they lack stands under `egress.`.
//! A key without a value is left out.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

/// The name and version of the record's form.
pub const SCHEMA: &str = "routecause.record/1";

/// What became of one request, or of one connection that never carried one.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(title = "routecause.record/1")]
pub struct Record {
    /// Name and version of this form.
    pub schema: &'static str,
    /// When the request began (RFC 3339, UTC).
    #[serde(rename = "@timestamp")]
    #[schemars(with = "String")]
    pub timestamp: Timestamp,
    /// The record's id; the client gets it as `x-routecause-record`.
    #[serde(rename = "event.id")]
    #[schemars(with = "String")]
    pub id: uuid::Uuid,
    /// Always `event`.
    #[serde(rename = "event.kind")]
    pub event_kind: &'static str,
    /// Always `network`.
    #[serde(rename = "event.category")]
    pub event_category: [&'static str; 1],
    /// `connect` for a tunnel, `forward` for a plain request.
    #[serde(rename = "event.action", skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// How it ended.
    #[serde(rename = "event.outcome")]
    pub outcome: Outcome,
    /// What the cause means and what to do, on failure.
    #[serde(rename = "event.reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// When the request began (RFC 3339, UTC).
    #[serde(rename = "event.start")]
    #[schemars(with = "String")]
    pub start: Timestamp,
    /// When it ended.
    #[serde(rename = "event.end")]
    #[schemars(with = "String")]
    pub end: Timestamp,
    /// From start to end, in nanoseconds.
    #[serde(rename = "event.duration")]
    pub duration_ns: u64,
    /// The cause's id; absent on success.
    #[serde(rename = "error.type", skip_serializing_if = "Option::is_none")]
    pub error_type: Option<Cow<'static, str>>,
    /// The failure in words and numbers.
    #[serde(rename = "error.message", skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,

    /// The client's address.
    #[serde(rename = "client.address")]
    pub client_address: IpAddr,
    /// The client's port.
    #[serde(rename = "client.port")]
    pub client_port: u16,
    /// The User-Agent field.
    #[serde(
        rename = "user_agent.original",
        skip_serializing_if = "Option::is_none"
    )]
    pub user_agent: Option<String>,
    /// The request's method.
    #[serde(
        rename = "http.request.method",
        skip_serializing_if = "Option::is_none"
    )]
    pub method: Option<Cow<'static, str>>,
    /// How often the request was sent again.
    #[serde(rename = "http.request.resend_count", skip_serializing_if = "is_zero")]
    pub resend_count: u32,
    /// The status that the client got; 499 where it left first.
    #[serde(
        rename = "http.response.status_code",
        skip_serializing_if = "Option::is_none"
    )]
    pub status: Option<u16>,
    /// `http` for a plain request.
    #[serde(rename = "url.scheme", skip_serializing_if = "Option::is_none")]
    pub url_scheme: Option<&'static str>,
    /// The target's host, for a plain request.
    #[serde(rename = "url.domain", skip_serializing_if = "Option::is_none")]
    pub url_domain: Option<Arc<str>>,
    /// The target's port, for a plain request.
    #[serde(rename = "url.port", skip_serializing_if = "Option::is_none")]
    pub url_port: Option<u16>,
    /// The target's host.
    #[serde(rename = "server.address", skip_serializing_if = "Option::is_none")]
    pub server_address: Option<Arc<str>>,
    /// The target's port.
    #[serde(rename = "server.port", skip_serializing_if = "Option::is_none")]
    pub server_port: Option<u16>,

    /// The address that was connected to: the origin's or the upstream's.
    #[serde(
        rename = "network.peer.address",
        skip_serializing_if = "Option::is_none"
    )]
    pub peer_address: Option<IpAddr>,
    /// The port that was connected to.
    #[serde(rename = "network.peer.port", skip_serializing_if = "Option::is_none")]
    pub peer_port: Option<u16>,
    /// Our address of that connection.
    #[serde(
        rename = "network.local.address",
        skip_serializing_if = "Option::is_none"
    )]
    pub local_address: Option<IpAddr>,
    /// Our port of that connection.
    #[serde(rename = "network.local.port", skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// Always `tcp`.
    #[serde(rename = "network.transport")]
    pub transport: &'static str,
    /// `ipv4` or `ipv6`, of the peer's address.
    #[serde(rename = "network.type", skip_serializing_if = "Option::is_none")]
    pub network_type: Option<&'static str>,
    /// `http`.
    #[serde(
        rename = "network.protocol.name",
        skip_serializing_if = "Option::is_none"
    )]
    pub protocol_name: Option<&'static str>,
    /// `1.0` or `1.1`: what the client spoke to us.
    #[serde(
        rename = "network.protocol.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub protocol_version: Option<&'static str>,

    /// Payload bytes from the client towards the server.
    #[serde(rename = "source.bytes")]
    pub source_bytes: u64,
    /// Payload bytes from the server towards the client.
    #[serde(rename = "destination.bytes")]
    pub destination_bytes: u64,

    /// The name that was looked up.
    #[serde(rename = "dns.question.name", skip_serializing_if = "Option::is_none")]
    pub dns_question: Option<String>,
    /// The addresses that were found.
    #[serde(rename = "dns.resolved_ip", skip_serializing_if = "Vec::is_empty")]
    pub dns_resolved: Vec<IpAddr>,
    /// The response code, as in `NXDOMAIN`.
    #[serde(rename = "dns.response_code", skip_serializing_if = "Option::is_none")]
    pub dns_response_code: Option<String>,

    /// The phase in which it ended.
    #[serde(rename = "egress.phase")]
    pub phase: &'static str,
    /// Who is behind the failure; absent on success.
    #[serde(rename = "egress.side", skip_serializing_if = "Option::is_none")]
    pub side: Option<&'static str>,
    /// How sure the cause is: `certain`, `strong` or `weak`; absent on success.
    #[serde(rename = "egress.confidence", skip_serializing_if = "Option::is_none")]
    pub confidence: Option<&'static str>,
    /// The rule or guard that decided.
    #[serde(rename = "egress.rule", skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// Where that rule stands: `file:line`.
    #[serde(rename = "egress.rule_source", skip_serializing_if = "Option::is_none")]
    pub rule_source: Option<Arc<str>>,
    /// What a rule or guard in report mode would have done: its name.
    #[serde(rename = "egress.would", skip_serializing_if = "Option::is_none")]
    pub would: Option<Arc<str>>,
    /// The word that a block carries for reports, as in `expected`.
    #[serde(rename = "egress.code", skip_serializing_if = "Option::is_none")]
    pub code: Option<Arc<str>>,
    /// What the rule leads to: `direct` or an upstream's name.
    #[serde(rename = "egress.route", skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
    /// The hop that was used last.
    #[serde(rename = "egress.hop", skip_serializing_if = "Option::is_none")]
    pub hop: Option<Arc<str>>,
    /// Every try of an address, the good one with `cause: null`.
    #[serde(rename = "egress.attempts", skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// What is worth a look and no failure, as in `connect.slow` or `tls.no_sni`.
    #[serde(rename = "egress.notes", skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<&'static str>,
    /// What the observations lead to suspect, the surest first.
    #[serde(rename = "egress.suspects", skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<Suspect>,
    /// An orderly end: `close.client_fin`, `close.server_fin`, `close.both`.
    #[serde(rename = "egress.end", skip_serializing_if = "Option::is_none")]
    pub ending: Option<Cow<'static, str>>,
    /// The policy that decided: the first 12 hex digits of its SHA-256.
    #[serde(rename = "egress.policy", skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,

    /// Looking the name up, in milliseconds.
    #[serde(
        rename = "egress.timing.dns_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub dns_ms: Option<f64>,
    /// Opening the TCP connection.
    #[serde(
        rename = "egress.timing.connect_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub connect_ms: Option<f64>,
    /// The upstream's answer to CONNECT.
    #[serde(
        rename = "egress.timing.upstream_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_ms: Option<f64>,
    /// From the ClientHello to the client's first bytes behind the server's handshake.
    #[serde(
        rename = "egress.timing.tls_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub tls_ms: Option<f64>,
    /// From the connection to the first byte of the server.
    #[serde(
        rename = "egress.timing.first_byte_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_byte_ms: Option<f64>,
    /// From start to end.
    #[serde(rename = "egress.timing.total_ms")]
    pub total_ms: f64,

    /// Where the addresses came from: `hosts`, `pin`, or `dns`.
    #[serde(rename = "egress.dns.source", skip_serializing_if = "Option::is_none")]
    pub dns_source: Option<&'static str>,
    /// What the name server said of the name that was looked up.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Box<Dns>>,
    /// The upstream's name.
    #[serde(
        rename = "egress.upstream.name",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_name: Option<Arc<str>>,
    /// The upstream's status.
    #[serde(
        rename = "egress.upstream.status",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_status: Option<u16>,
    /// The upstream's reason phrase.
    #[serde(
        rename = "egress.upstream.reason_phrase",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_reason: Option<String>,
    /// The upstream's Proxy-Status field.
    #[serde(
        rename = "egress.upstream.proxy_status",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_proxy_status: Option<String>,
    /// The upstream's X-Squid-Error field.
    #[serde(
        rename = "egress.upstream.squid_error",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_squid_error: Option<String>,
    /// The authentication schemes that the upstream offers.
    #[serde(
        rename = "egress.upstream.auth_schemes",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub upstream_auth_schemes: Vec<String>,
    /// The beginning of the upstream's error page.
    #[serde(
        rename = "egress.upstream.body",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_body: Option<String>,
    /// What the handshake of a tunnel showed.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<Tls>>,
    /// What the client's TCP connection showed at the first event of a tunnel's end.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub client_tcp: Option<Box<ClientTcp>>,
    /// The same of the server's.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub server_tcp: Option<Box<ServerTcp>>,
    /// What is known of a reset by the server's side.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Box<Reset>>,
    /// The ICMP message that the connection failed of.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpKeys>,
    /// The silence before the end, in milliseconds.
    #[serde(rename = "egress.idle_ms", skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<f64>,
    /// The silence before those last bytes of the client that no byte of the server followed, in milliseconds.
    #[serde(
        rename = "egress.idle_before_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_before_ms: Option<f64>,
    /// What the cause means and what to do, on failure.
    #[serde(rename = "egress.hint", skip_serializing_if = "Option::is_none")]
    pub hint: Option<Cow<'static, str>>,
}

impl Record {
    /// A record of which nothing is known but who and when.
    pub fn begun(
        start: Timestamp,
        id: uuid::Uuid,
        client_address: IpAddr,
        client_port: u16,
    ) -> Self {
        Self {
            schema: SCHEMA,
            timestamp: start,
            id,
            event_kind: "event",
            event_category: ["network"],
            action: None,
            outcome: Outcome::Unknown,
            reason: None,
            start,
            end: start,
            duration_ns: 0,
            error_type: None,
            error_message: None,
            client_address,
            client_port,
            user_agent: None,
            method: None,
            resend_count: 0,
            status: None,
            url_scheme: None,
            url_domain: None,
            url_port: None,
            server_address: None,
            server_port: None,
            peer_address: None,
            peer_port: None,
            local_address: None,
            local_port: None,
            transport: "tcp",
            network_type: None,
            protocol_name: None,
            protocol_version: None,
            source_bytes: 0,
            destination_bytes: 0,
            dns_question: None,
            dns_resolved: Vec::new(),
            dns_response_code: None,
            phase: "client",
            side: None,
            confidence: None,
            rule: None,
            rule_source: None,
            would: None,
            code: None,
            route: None,
            hop: None,
            attempts: Vec::new(),
            notes: Vec::new(),
            suspects: Vec::new(),
            ending: None,
            policy: None,
            dns_ms: None,
            connect_ms: None,
            upstream_ms: None,
            tls_ms: None,
            first_byte_ms: None,
            total_ms: 0.0,
            dns_source: None,
            dns: None,
            upstream_name: None,
            upstream_status: None,
            upstream_reason: None,
            upstream_proxy_status: None,
            upstream_squid_error: None,
            upstream_auth_schemes: Vec::new(),
            upstream_body: None,
            tls: None,
            client_tcp: None,
            server_tcp: None,
            reset: None,
            icmp: None,
            idle_ms: None,
            idle_before_ms: None,
            hint: None,
        }
    }
}

/// A name server's reply, beside what was found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Dns {
    /// The name server.
    #[serde(rename = "egress.dns.server")]
    pub server: SocketAddr,
    /// How its reply came: `udp` or `tcp`.
    #[serde(
        rename = "egress.dns.transport",
        skip_serializing_if = "Option::is_none"
    )]
    pub transport: Option<&'static str>,
    /// Whether the reply was remembered from an earlier lookup.
    #[serde(rename = "egress.dns.cached")]
    pub cached: bool,
    /// For how many seconds the answer holds.
    #[serde(rename = "egress.dns.ttl_s", skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
    /// The code of the extended error (RFC 8914).
    #[serde(rename = "egress.dns.ede", skip_serializing_if = "Option::is_none")]
    pub ede: Option<u16>,
    /// Its text, by the server.
    #[serde(
        rename = "egress.dns.ede_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub ede_text: Option<String>,
    /// How many different replies came to one question: 2 where answers are injected.
    #[serde(rename = "egress.dns.replies", skip_serializing_if = "Option::is_none")]
    pub replies: Option<u32>,
    /// The records in the answers, of both families.
    #[serde(
        rename = "egress.dns.rr_count",
        skip_serializing_if = "Option::is_none"
    )]
    pub rr_count: Option<u32>,
}

/// The handshake of a tunnel, as far as it is in the clear.
#[allow(clippy::struct_excessive_bools, reason = "they are keys of the record")]
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Tls {
    /// The name in the ClientHello (SNI).
    #[serde(
        rename = "tls.client.server_name",
        skip_serializing_if = "Option::is_none"
    )]
    pub server_name: Option<String>,
    /// The version that the server chose, as in `1.3`.
    #[serde(
        rename = "tls.protocol.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub version: Option<Cow<'static, str>>,
    /// The cipher suite that the server chose, by its name in the registry.
    #[serde(rename = "tls.cipher", skip_serializing_if = "Option::is_none")]
    pub cipher: Option<Cow<'static, str>>,
    /// The protocol that the server chose (ALPN; TLS 1.2 only, where it is readable).
    #[serde(rename = "tls.next_protocol", skip_serializing_if = "Option::is_none")]
    pub next_protocol: Option<String>,
    /// Whether an earlier session was resumed (TLS 1.2 only).
    #[serde(rename = "tls.resumed", skip_serializing_if = "Option::is_none")]
    pub resumed: Option<bool>,
    /// Whether the handshake was finished.
    #[serde(rename = "tls.established", skip_serializing_if = "Option::is_none")]
    pub established: Option<bool>,
    /// The certificate's subject (TLS 1.2, or our own handshake).
    #[serde(rename = "tls.server.subject", skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its issuer.
    #[serde(rename = "tls.server.issuer", skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Its first moment (RFC 3339).
    #[serde(
        rename = "tls.server.not_before",
        skip_serializing_if = "Option::is_none"
    )]
    pub not_before: Option<String>,
    /// Its last moment (RFC 3339).
    #[serde(
        rename = "tls.server.not_after",
        skip_serializing_if = "Option::is_none"
    )]
    pub not_after: Option<String>,
    /// The SHA-256 of the certificate, in hex.
    #[serde(
        rename = "tls.server.hash.sha256",
        skip_serializing_if = "Option::is_none"
    )]
    pub sha256: Option<String>,
    /// What our own judgement of the chain is: `valid`, or the ending of the `tls.cert.` id it would be.
    #[serde(
        rename = "egress.tls.certificate",
        skip_serializing_if = "Option::is_none"
    )]
    pub certificate: Option<&'static str>,
    /// How far the handshake came: `T0` (nothing sent) to `T7` (data both ways).
    #[serde(rename = "egress.tls.state")]
    pub state: &'static str,
    /// The length of the ClientHello with its record headers.
    #[serde(
        rename = "egress.tls.client_hello_bytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub client_hello_bytes: Option<usize>,
    /// How many records it came in.
    #[serde(
        rename = "egress.tls.client_hello_records",
        skip_serializing_if = "Option::is_none"
    )]
    pub client_hello_records: Option<u32>,
    /// The protocols that the client offered (ALPN).
    #[serde(
        rename = "egress.tls.alpn_offered",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub alpn_offered: Vec<String>,
    /// The versions that the client offered.
    #[serde(
        rename = "egress.tls.versions_offered",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub versions_offered: Vec<Cow<'static, str>>,
    /// The groups that the client offered, by their names in the registry.
    #[serde(
        rename = "egress.tls.groups_offered",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub groups_offered: Vec<Cow<'static, str>>,
    /// Whether the ClientHello has an ECH extension, real or grease: the name is then the outer one.
    #[serde(rename = "egress.tls.ech", skip_serializing_if = "std::ops::Not::not")]
    pub ech: bool,
    /// Whether the client sent data ahead of the handshake.
    #[serde(
        rename = "egress.tls.early_data",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub early_data: bool,
    /// Whether the name in the ClientHello is not the one in the CONNECT.
    #[serde(
        rename = "egress.tls.sni_differs",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub sni_differs: bool,
    /// The number of the alert that was seen.
    #[serde(rename = "egress.tls.alert", skip_serializing_if = "Option::is_none")]
    pub alert: Option<u8>,
    /// Who sent it: `client` or `server`.
    #[serde(
        rename = "egress.tls.alert_from",
        skip_serializing_if = "Option::is_none"
    )]
    pub alert_from: Option<&'static str>,
    /// Whether an alert was told by the length of its record only.
    #[serde(
        rename = "egress.tls.alert_encrypted",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub alert_encrypted: bool,
    /// Whether the server's random carries the mark of a server that can do better (RFC 8446, section 4.1.3).
    #[serde(
        rename = "egress.tls.downgrade_sentinel",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub downgrade_sentinel: bool,
    /// The status where the server answered the ClientHello in HTTP.
    #[serde(
        rename = "egress.tls.reply_status",
        skip_serializing_if = "Option::is_none"
    )]
    pub reply_status: Option<u16>,
    /// How many bytes of the server came before the client's next ones.
    #[serde(
        rename = "egress.tls.server_flight_bytes",
        skip_serializing_if = "Option::is_none"
    )]
    pub server_flight_bytes: Option<u64>,
}

/// The client's TCP connection at the first event of a tunnel's end.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct ClientTcp {
    /// How it ended: `fin`, `rst`, `timeout`, or `local`.
    #[serde(
        rename = "egress.tcp.client.close",
        skip_serializing_if = "Option::is_none"
    )]
    pub close: Option<&'static str>,
    /// Its error number, as in `ECONNRESET`.
    #[serde(
        rename = "egress.tcp.client.errno",
        skip_serializing_if = "Option::is_none"
    )]
    pub errno: Option<Cow<'static, str>>,
    /// The smoothed round trip, in milliseconds.
    #[serde(
        rename = "egress.tcp.client.rtt_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub rtt_ms: Option<f64>,
    /// The smallest round trip, in milliseconds.
    #[serde(
        rename = "egress.tcp.client.min_rtt_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub min_rtt_ms: Option<f64>,
    /// Segments sent again.
    #[serde(
        rename = "egress.tcp.client.retrans",
        skip_serializing_if = "Option::is_none"
    )]
    pub retransmissions: Option<u32>,
    /// Payload bytes sent, with those sent again.
    #[serde(
        rename = "egress.tcp.client.bytes_sent",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_sent: Option<u64>,
    /// Bytes acknowledged; the SYN counts as one.
    #[serde(
        rename = "egress.tcp.client.bytes_acked",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_acked: Option<u64>,
    /// Bytes received; a FIN counts as one.
    #[serde(
        rename = "egress.tcp.client.bytes_received",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_received: Option<u64>,
    /// Segments without an acknowledgement.
    #[serde(
        rename = "egress.tcp.client.unacked",
        skip_serializing_if = "Option::is_none"
    )]
    pub unacked: Option<u32>,
    /// The path's MTU.
    #[serde(
        rename = "egress.tcp.client.pmtu",
        skip_serializing_if = "Option::is_none"
    )]
    pub pmtu: Option<u32>,
    /// The largest segment received.
    #[serde(
        rename = "egress.tcp.client.rcv_mss",
        skip_serializing_if = "Option::is_none"
    )]
    pub rcv_mss: Option<u32>,
    /// Segments received.
    #[serde(
        rename = "egress.tcp.client.segs_in",
        skip_serializing_if = "Option::is_none"
    )]
    pub segs_in: Option<u32>,
    /// Segments sent.
    #[serde(
        rename = "egress.tcp.client.segs_out",
        skip_serializing_if = "Option::is_none"
    )]
    pub segs_out: Option<u32>,
}

/// The server's TCP connection at the first event of a tunnel's end: the origin's, or the upstream's.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct ServerTcp {
    /// How it ended: `fin`, `rst`, `timeout`, or `local`.
    #[serde(
        rename = "egress.tcp.server.close",
        skip_serializing_if = "Option::is_none"
    )]
    pub close: Option<&'static str>,
    /// Its error number, as in `ECONNRESET`.
    #[serde(
        rename = "egress.tcp.server.errno",
        skip_serializing_if = "Option::is_none"
    )]
    pub errno: Option<Cow<'static, str>>,
    /// The smoothed round trip, in milliseconds.
    #[serde(
        rename = "egress.tcp.server.rtt_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub rtt_ms: Option<f64>,
    /// The smallest round trip, in milliseconds.
    #[serde(
        rename = "egress.tcp.server.min_rtt_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub min_rtt_ms: Option<f64>,
    /// Segments sent again.
    #[serde(
        rename = "egress.tcp.server.retrans",
        skip_serializing_if = "Option::is_none"
    )]
    pub retransmissions: Option<u32>,
    /// Payload bytes sent, with those sent again.
    #[serde(
        rename = "egress.tcp.server.bytes_sent",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_sent: Option<u64>,
    /// Bytes acknowledged; the SYN counts as one.
    #[serde(
        rename = "egress.tcp.server.bytes_acked",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_acked: Option<u64>,
    /// Bytes received; a FIN counts as one.
    #[serde(
        rename = "egress.tcp.server.bytes_received",
        skip_serializing_if = "Option::is_none"
    )]
    pub bytes_received: Option<u64>,
    /// Segments without an acknowledgement.
    #[serde(
        rename = "egress.tcp.server.unacked",
        skip_serializing_if = "Option::is_none"
    )]
    pub unacked: Option<u32>,
    /// The path's MTU.
    #[serde(
        rename = "egress.tcp.server.pmtu",
        skip_serializing_if = "Option::is_none"
    )]
    pub pmtu: Option<u32>,
    /// The largest segment received.
    #[serde(
        rename = "egress.tcp.server.rcv_mss",
        skip_serializing_if = "Option::is_none"
    )]
    pub rcv_mss: Option<u32>,
    /// Segments received.
    #[serde(
        rename = "egress.tcp.server.segs_in",
        skip_serializing_if = "Option::is_none"
    )]
    pub segs_in: Option<u32>,
    /// Segments sent.
    #[serde(
        rename = "egress.tcp.server.segs_out",
        skip_serializing_if = "Option::is_none"
    )]
    pub segs_out: Option<u32>,
}

/// A reset by the server's side, and what tells whose it was.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Reset {
    /// Whether everything that was sent was acknowledged.
    #[serde(
        rename = "egress.reset.last_write_acked",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_write_acked: Option<bool>,
    /// From our last write to the reset, in milliseconds.
    #[serde(
        rename = "egress.reset.after_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub after_ms: Option<f64>,
    /// The same in smallest round trips.
    #[serde(
        rename = "egress.reset.rtt_ratio",
        skip_serializing_if = "Option::is_none"
    )]
    pub rtt_ratio: Option<f64>,
    /// From the connection to the reset, in milliseconds.
    #[serde(
        rename = "egress.reset.after_connect_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub after_connect_ms: Option<f64>,
    /// The same in smallest round trips.
    #[serde(
        rename = "egress.reset.connect_rtt_ratio",
        skip_serializing_if = "Option::is_none"
    )]
    pub connect_rtt_ratio: Option<f64>,
    /// Whether the reset may have been an answer to the connection rather than to what was sent.
    #[serde(
        rename = "egress.reset.accept_race",
        skip_serializing_if = "Option::is_none"
    )]
    pub accept_race: Option<bool>,
}

/// The ICMP or `ICMPv6` message that a connection failed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct IcmpKeys {
    /// The type of the ICMP message that the connection failed of: 3 is "destination unreachable", 1 in `ICMPv6`.
    #[serde(rename = "egress.icmp.type")]
    pub r#type: u8,
    /// Its code.
    #[serde(rename = "egress.icmp.code")]
    pub code: u8,
    /// Who sent it; our own address where this host did.
    #[serde(rename = "egress.icmp.offender")]
    pub offender: IpAddr,
}

/// An inference, with what it rests on. Never a cause.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Suspect {
    /// What is suspected, as in `sni_filtering`.
    pub name: &'static str,
    /// How sure it is, from 0 to 1.
    pub score: f64,
    /// What it rests on, as in `client_hello_unacked`.
    pub evidence: Vec<Cow<'static, str>>,
}

impl std::fmt::Display for Suspect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            score,
            evidence,
        } = self;
        write!(f, "suspect {name} {score:.1}: {}", evidence.join(", "))
    }
}

/// One try of one address of one hop.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Attempt {
    /// The hop: `direct` or an upstream's name.
    pub hop: Arc<str>,
    /// The address and port; absent where no address was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// `ipv4` or `ipv6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<&'static str>,
    /// The cause of its failure; `null` where it went well.
    pub cause: Option<Cow<'static, str>>,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// The ICMP message that it failed of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// A kept connection was used again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reused: bool,
}

/// An ICMP or `ICMPv6` message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Icmp {
    /// Its type: 3 is "destination unreachable", 1 in `ICMPv6`.
    pub r#type: u8,
    /// Its code.
    pub code: u8,
    /// Who sent it; our own address where this host did.
    pub offender: IpAddr,
}

/// What was asked of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A tunnel, by CONNECT.
    Connect,
    /// A plain request, by absolute URL.
    Forward,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As asked.
    Success,
    /// With a cause.
    Failure,
    /// The connection never carried a request.
    Unknown,
}

/// `ipv4` or `ipv6`.
pub fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ipv4" } else { "ipv6" }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Quotes what a stranger sent: at most 1024 characters, controls and bidirectional marks escaped, so that it
/// can neither forge a line nor move a cursor.
pub fn quote(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(1024));
    for c in text.chars().take(1024) {
        match c {
            '\u{2028}'
            | '\u{2029}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                safe.extend(c.escape_unicode());
            }
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_sent_cannot_move_the_cursor() {
        assert_eq!(
            quote("a\u{1b}[2Jb\r\n\u{202e}c\u{9b}"),
            "a\\u{1b}[2Jb\\r\\n\\u{202e}c\\u{9b}"
        );
        assert_eq!(quote("bücher"), "bücher");
        assert_eq!(quote(&"x".repeat(5000)).len(), 1024);
    }
}
