//! The one line that a request leaves: names and shape of `routecause.record/1`.
//!
//! Keys are the dotted names of OpenTelemetry and ECS first; what they lack stands under `egress.`.
//! A key without a value is left out.

mod evidence;
pub mod seen;
pub mod timeline;
pub mod trace;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use evidence::{ClientTcp, DiagnosisKeys, Dns, Icmp, IcmpKeys, Reset, ServerTcp, Tls};
use trace::Trace;

/// The name and version of the record's form.
pub const SCHEMA: &str = "routecause.record/1";

/// The field of an answer that names its record.
pub const FIELD: &str = "x-routecause-record";

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
    /// The user name that the client gave; proved where `server.auth`, a certificate or a socket proves users.
    #[serde(rename = "user.name", skip_serializing_if = "Option::is_none")]
    pub user: Option<Arc<str>>,
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
    /// `http`, or `socks`: what the client spoke to us.
    #[serde(
        rename = "network.protocol.name",
        skip_serializing_if = "Option::is_none"
    )]
    pub protocol_name: Option<&'static str>,
    /// `1.0`, `1.1` or `2` of HTTP, `5` of SOCKS.
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
    /// The request's label, from its user name.
    #[serde(
        rename = "egress.client.label",
        skip_serializing_if = "Option::is_none"
    )]
    pub label: Option<Arc<str>>,
    /// The roles of the client.
    #[serde(rename = "egress.client.role", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Arc<str>>,
    /// The rule or guard that decided.
    #[serde(rename = "egress.rule", skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// Where that rule stands: `file:line`.
    #[serde(rename = "egress.rule_source", skip_serializing_if = "Option::is_none")]
    pub rule_source: Option<Arc<str>>,
    /// What a rule or guard in report mode would have done: its name.
    #[serde(rename = "egress.would", skip_serializing_if = "Option::is_none")]
    pub would: Option<Arc<str>>,
    /// The word of the block that refused it, or would have in report mode. Reports tell `expected` apart.
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
    /// The faults of the policy that struck: what happened is staged, and says nothing of the network.
    #[serde(rename = "egress.fault", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Arc<str>>,
    /// What is worth a look and no failure, as in `connect.slow` or `tls.no_sni`.
    #[serde(rename = "egress.notes", skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<&'static str>,
    /// What the observations lead to suspect, the surest first.
    #[serde(rename = "egress.suspects", skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<Suspect>,
    /// What a look at the target found, where it kept failing.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Box<DiagnosisKeys>>,
    /// An orderly end: `close.client_fin`, `close.server_fin`, `close.both`.
    #[serde(rename = "egress.end", skip_serializing_if = "Option::is_none")]
    pub ending: Option<Cow<'static, str>>,
    /// The policy that decided: the first 12 hex digits of its SHA-256.
    #[serde(rename = "egress.policy", skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
    /// The trace that it belongs to, where there is one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<Trace>>,

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

    /// Where the addresses came from: `hosts`, `pin`, `dns`, or a `fault` of the policy.
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
    /// The code of a SOCKS upstream's refusal.
    #[serde(
        rename = "egress.upstream.socks_reply",
        skip_serializing_if = "Option::is_none"
    )]
    pub upstream_socks_reply: Option<u16>,
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
    /// The longest silence of 30 s and more after which the server still spoke, in milliseconds.
    #[serde(
        rename = "egress.idle_survived_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_survived_ms: Option<f64>,
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
            user: None,
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
            label: None,
            roles: Vec::new(),
            rule: None,
            rule_source: None,
            would: None,
            code: None,
            route: None,
            hop: None,
            attempts: Vec::new(),
            faults: Vec::new(),
            notes: Vec::new(),
            suspects: Vec::new(),
            diagnosis: None,
            ending: None,
            policy: None,
            trace: None,
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
            upstream_socks_reply: None,
            upstream_auth_schemes: Vec::new(),
            upstream_body: None,
            tls: None,
            client_tcp: None,
            server_tcp: None,
            reset: None,
            icmp: None,
            idle_ms: None,
            idle_before_ms: None,
            idle_survived_ms: None,
            hint: None,
        }
    }
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
    /// Who is behind a failure that came once the connection stood: a hop of a chain that the next took over from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<&'static str>,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// The ICMP message that it failed of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// A kept connection was used again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reused: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As asked.
    Success,
    /// With a cause.
    Failure,
    /// The connection never carried a request.
    Unknown,
}

impl Outcome {
    /// Its word in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        }
    }
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
    // Nearly all is like this.
    if text.len() <= 1024 && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
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
