//! The one line that a request leaves: names and shape of `routecause.record/1`.
//!
//! Keys are the dotted names of OpenTelemetry and ECS first; what they lack stands under `egress.`.
//! A key without a value is left out.

use std::borrow::Cow;
use std::net::IpAddr;
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
    pub method: Option<String>,
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
    pub url_domain: Option<String>,
    /// The target's port, for a plain request.
    #[serde(rename = "url.port", skip_serializing_if = "Option::is_none")]
    pub url_port: Option<u16>,
    /// The target's host.
    #[serde(rename = "server.address", skip_serializing_if = "Option::is_none")]
    pub server_address: Option<String>,
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
    /// How sure the cause is: `certain` or `strong`; absent on success.
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
    /// How the client's side of a tunnel ended: `fin`, `rst`, `timeout`, or `local`.
    #[serde(
        rename = "egress.tcp.client.close",
        skip_serializing_if = "Option::is_none"
    )]
    pub client_close: Option<&'static str>,
    /// How the server's side of a tunnel ended.
    #[serde(
        rename = "egress.tcp.server.close",
        skip_serializing_if = "Option::is_none"
    )]
    pub server_close: Option<&'static str>,
    /// The error number of the server's side, as in `ECONNRESET`.
    #[serde(
        rename = "egress.tcp.server.errno",
        skip_serializing_if = "Option::is_none"
    )]
    pub server_errno: Option<Cow<'static, str>>,
    /// The silence before the end, in milliseconds.
    #[serde(rename = "egress.idle_ms", skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<f64>,
    /// What the cause means and what to do, on failure.
    #[serde(rename = "egress.hint", skip_serializing_if = "Option::is_none")]
    pub hint: Option<Cow<'static, str>>,
}

/// One try of one address of one hop.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Attempt {
    /// The hop: `direct` or an upstream's name.
    pub hop: Arc<str>,
    /// The address and port; absent where no address was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::SocketAddr>,
    /// `ipv4` or `ipv6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<&'static str>,
    /// The cause of its failure; `null` where it went well.
    pub cause: Option<Cow<'static, str>>,
    /// How long it took, in milliseconds.
    pub ms: f64,
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
