//! What a record tells of DNS, TLS, TCP and ICMP: the keys that only some requests have.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

/// A name server's reply, beside what was found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Dns {
    /// The name server.
    #[serde(rename = "egress.dns.server")]
    pub server: SocketAddr,
    /// How it is asked: `udp`, `tcp`, `tls` (DNS over TLS) or `https` (DNS over HTTPS).
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

/// What a look at a target that kept failing found, some time before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DiagnosisKeys {
    /// What the doctor said of the target when it was last looked at unasked (`defaults.triage`), as in `sni_filtering`.
    #[serde(rename = "egress.diagnosis.verdict")]
    pub verdict: &'static str,
    /// How sure that is: `certain`, `strong` or `medium`.
    #[serde(rename = "egress.diagnosis.certainty")]
    pub certainty: &'static str,
    /// The same in a sentence.
    #[serde(rename = "egress.diagnosis.sentence")]
    pub sentence: Arc<str>,
    /// What speaks against it, or was not looked at.
    #[serde(
        rename = "egress.diagnosis.counter",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub counter: Vec<String>,
    /// What to do about it, as a part of a policy or in words.
    #[serde(
        rename = "egress.diagnosis.fix",
        skip_serializing_if = "Option::is_none"
    )]
    pub fix: Option<Arc<str>>,
    /// How long ago it was looked at, in seconds.
    #[serde(rename = "egress.diagnosis.ago_s")]
    pub ago_s: u64,
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
