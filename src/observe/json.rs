//! A record as one line of JSON, the same to the byte as serde writes it.
//!
//! Serde looks at every character of every key, and writes each of the record's some forty as if it were a stranger's. Here
//! keys are copied; what is rare is left to serde. A field that is added to the record does not compile until it is told here.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::Serialize;
use uuid::Uuid;

use crate::record::{Action, Attempt, ClientTcp, Outcome, Record, ServerTcp};

type Result = std::result::Result<(), serde_json::Error>;

/// A value of the record.
trait Value {
    /// Whether its key is left out.
    fn is_absent(&self) -> bool {
        false
    }

    fn write(&self, out: &mut Vec<u8>) -> Result;
}

/// Writes each member whose value is there, with the comma before it. What all keys begin with may stand before them.
macro_rules! members {
    ($out:expr, $($key:literal: $value:expr,)*) => { members!($out, "" + $($key: $value,)*) };
    ($out:expr, $start:literal + $($key:literal: $value:expr,)*) => {
        $(member($out, concat!(",\"", $start, $key, "\":"), $value)?;)*
    };
}

/// The members of either end of a tunnel.
macro_rules! tcp_members {
    ($out:expr, $start:literal + $type:ident = $tcp:expr) => {
        let $type {
            close,
            errno,
            rtt_ms,
            min_rtt_ms,
            retransmissions,
            bytes_sent,
            bytes_acked,
            bytes_received,
            unacked,
            pmtu,
            rcv_mss,
            segs_in,
            segs_out,
        } = $tcp;
        members!($out, $start +
            "close": close,
            "errno": errno,
            "rtt_ms": rtt_ms,
            "min_rtt_ms": min_rtt_ms,
            "retrans": retransmissions,
            "bytes_sent": bytes_sent,
            "bytes_acked": bytes_acked,
            "bytes_received": bytes_received,
            "unacked": unacked,
            "pmtu": pmtu,
            "rcv_mss": rcv_mss,
            "segs_in": segs_in,
            "segs_out": segs_out,
        );
    };
}

fn member(out: &mut Vec<u8>, key: &'static str, value: &impl Value) -> Result {
    if !value.is_absent() {
        out.extend_from_slice(key.as_bytes());
        value.write(out)?;
    }
    Ok(())
}

/// Writes a record behind what `out` holds.
pub fn write(record: &Record, out: &mut Vec<u8>) -> Result {
    let Record {
        schema,
        timestamp,
        id,
        event_kind,
        event_category,
        action,
        outcome,
        reason,
        start,
        end,
        duration_ns,
        error_type,
        error_message,
        client_address,
        client_port,
        user,
        user_agent,
        method,
        resend_count,
        status,
        url_scheme,
        url_domain,
        url_port,
        server_address,
        server_port,
        peer_address,
        peer_port,
        local_address,
        local_port,
        transport,
        network_type,
        protocol_name,
        protocol_version,
        source_bytes,
        destination_bytes,
        dns_question,
        dns_resolved,
        dns_response_code,
        phase,
        side,
        confidence,
        label,
        roles,
        rule,
        rule_source,
        would,
        code,
        route,
        hop,
        attempts,
        faults,
        notes,
        suspects,
        diagnosis,
        ending,
        policy,
        trace,
        dns_ms,
        connect_ms,
        upstream_ms,
        tls_ms,
        first_byte_ms,
        total_ms,
        dns_source,
        dns,
        upstream_name,
        upstream_status,
        upstream_reason,
        upstream_proxy_status,
        upstream_squid_error,
        upstream_socks_reply,
        upstream_auth_schemes,
        upstream_body,
        tls,
        client_tcp,
        server_tcp,
        reset,
        icmp,
        idle_ms,
        idle_before_ms,
        idle_survived_ms,
        hint,
    } = record;
    let resend_count = (*resend_count > 0).then_some(u64::from(*resend_count));
    out.extend_from_slice(b"{\"schema\":");
    schema.write(out)?;
    out.extend_from_slice(b",\"@timestamp\":");
    let printed = out.len();
    timestamp.write(out)?;
    let printed = printed..out.len();
    members!(out,
        "event.id": id,
        "event.kind": event_kind,
        "event.category": event_category,
        "event.action": action,
        "event.outcome": outcome,
        "event.reason": reason,
    );
    out.extend_from_slice(b",\"event.start\":");
    // Nearly always the same moment.
    if start == timestamp {
        out.extend_from_within(printed);
    } else {
        start.write(out)?;
    }
    members!(out,
        "event.end": end,
        "event.duration": duration_ns,
        "error.type": error_type,
        "error.message": error_message,
        "client.address": client_address,
        "client.port": client_port,
        "user.name": user,
        "user_agent.original": user_agent,
        "http.request.method": method,
        "http.request.resend_count": &resend_count,
        "http.response.status_code": status,
        "url.scheme": url_scheme,
        "url.domain": url_domain,
        "url.port": url_port,
        "server.address": server_address,
        "server.port": server_port,
        "network.peer.address": peer_address,
        "network.peer.port": peer_port,
        "network.local.address": local_address,
        "network.local.port": local_port,
        "network.transport": transport,
        "network.type": network_type,
        "network.protocol.name": protocol_name,
        "network.protocol.version": protocol_version,
        "source.bytes": source_bytes,
        "destination.bytes": destination_bytes,
        "dns.question.name": dns_question,
        "dns.resolved_ip": dns_resolved,
        "dns.response_code": dns_response_code,
        "egress.phase": phase,
        "egress.side": side,
        "egress.confidence": confidence,
        "egress.client.label": label,
        "egress.client.role": roles,
        "egress.rule": rule,
        "egress.rule_source": rule_source,
        "egress.would": would,
        "egress.code": code,
        "egress.route": route,
        "egress.hop": hop,
        "egress.attempts": attempts,
    );
    serde_members(out, "egress.fault", faults)?;
    serde_members(out, "egress.notes", notes)?;
    serde_members(out, "egress.suspects", suspects)?;
    flat(out, diagnosis.as_deref())?;
    members!(out,
        "egress.end": ending,
        "egress.policy": policy,
    );
    flat(out, trace.as_deref())?;
    members!(out,
        "egress.timing.dns_ms": dns_ms,
        "egress.timing.connect_ms": connect_ms,
        "egress.timing.upstream_ms": upstream_ms,
        "egress.timing.tls_ms": tls_ms,
        "egress.timing.first_byte_ms": first_byte_ms,
        "egress.timing.total_ms": total_ms,
        "egress.dns.source": dns_source,
    );
    flat(out, dns.as_deref())?;
    members!(out,
        "egress.upstream.name": upstream_name,
        "egress.upstream.status": upstream_status,
        "egress.upstream.reason_phrase": upstream_reason,
        "egress.upstream.proxy_status": upstream_proxy_status,
        "egress.upstream.squid_error": upstream_squid_error,
        "egress.upstream.socks_reply": upstream_socks_reply,
    );
    serde_members(out, "egress.upstream.auth_schemes", upstream_auth_schemes)?;
    members!(out, "egress.upstream.body": upstream_body,);
    flat(out, tls.as_deref())?;
    if let Some(tcp) = client_tcp.as_deref() {
        tcp_members!(out, "egress.tcp.client." + ClientTcp = tcp);
    }
    if let Some(tcp) = server_tcp.as_deref() {
        tcp_members!(out, "egress.tcp.server." + ServerTcp = tcp);
    }
    flat(out, reset.as_deref())?;
    flat(out, icmp.as_ref())?;
    members!(out,
        "egress.idle_ms": idle_ms,
        "egress.idle_before_ms": idle_before_ms,
        "egress.idle_survived_ms": idle_survived_ms,
        "egress.hint": hint,
    );
    out.push(b'}');
    Ok(())
}

/// A list that is seldom there.
fn serde_members(out: &mut Vec<u8>, key: &str, list: &[impl Serialize]) -> Result {
    if list.is_empty() {
        return Ok(());
    }
    out.push(b',');
    text(out, key)?;
    out.push(b':');
    serde_json::to_writer(out, list)
}

/// The members of an object, among ours.
fn flat(out: &mut Vec<u8>, part: Option<&impl Serialize>) -> Result {
    let Some(part) = part else { return Ok(()) };
    let start = out.len();
    serde_json::to_writer(&mut *out, part)?;
    out.pop();
    if out.len() == start + 1 {
        out.pop();
    } else if let Some(brace) = out.get_mut(start) {
        *brace = b',';
    }
    Ok(())
}

/// Most texts need no escaping; serde escapes the others.
fn text(out: &mut Vec<u8>, text: &str) -> Result {
    if !is_plain(text) {
        return serde_json::to_writer(out, text);
    }
    quoted(out, text);
    Ok(())
}

/// A word of our own, which needs none.
fn word(out: &mut Vec<u8>, word: &'static str) {
    debug_assert!(is_plain(word), "{word:?} needs escaping");
    quoted(out, word);
}

fn is_plain(text: &str) -> bool {
    let is_odd = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    // All bytes are looked at, so that many are at once.
    !text.bytes().fold(false, |odd, byte| odd | is_odd(byte))
}

fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// An address without quotes.
fn address(out: &mut Vec<u8>, ip: IpAddr) -> Result {
    let IpAddr::V4(ip) = ip else {
        return write!(out, "{ip}").map_err(serde_json::Error::io);
    };
    for (at, octet) in ip.octets().into_iter().enumerate() {
        if at > 0 {
            out.push(b'.');
        }
        serde_json::to_writer(&mut *out, &octet)?;
    }
    Ok(())
}

fn moment(out: &mut Vec<u8>, moment: &Timestamp) -> Result {
    const PRINTER: DateTimePrinter = DateTimePrinter::new();
    out.push(b'"');
    let printed = PRINTER.print_timestamp(moment, &mut *out);
    out.push(b'"');
    printed.map_err(|error| serde_json::Error::io(std::io::Error::other(error)))
}

/// How values are written.
macro_rules! values {
    ($($type:ty => |$value:ident, $out:ident| $write:expr;)*) => {
        $(impl Value for $type {
            fn write(&self, $out: &mut Vec<u8>) -> Result {
                let $value = self;
                $write
            }
        })*
    };
}

values! {
    &'static str => |value, out| {
        word(out, value);
        Ok(())
    };
    String => |value, out| text(out, value);
    Arc<str> => |value, out| text(out, value);
    Cow<'static, str> => |value, out| text(out, value);
    [&'static str; 1] => |value, out| {
        out.push(b'[');
        word(out, value[0]);
        out.push(b']');
        Ok(())
    };
    u16 => |value, out| serde_json::to_writer(out, value);
    u32 => |value, out| serde_json::to_writer(out, value);
    u64 => |value, out| serde_json::to_writer(out, value);
    f64 => |value, out| serde_json::to_writer(out, value);
    IpAddr => |value, out| {
        out.push(b'"');
        address(out, *value)?;
        out.push(b'"');
        Ok(())
    };
    SocketAddr => |value, out| {
        let SocketAddr::V4(place) = value else {
            return serde_json::to_writer(out, value);
        };
        out.push(b'"');
        address(out, IpAddr::V4(*place.ip()))?;
        out.push(b':');
        serde_json::to_writer(&mut *out, &place.port())?;
        out.push(b'"');
        Ok(())
    };
    Timestamp => |value, out| moment(out, value);
    Uuid => |value, out| text(out, value.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()));
    Action => |value, out| serde_json::to_writer(out, value);
    Outcome => |value, out| serde_json::to_writer(out, value);
}

impl<T: Value> Value for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result {
        match self {
            Some(value) => value.write(out),
            None => Ok(()),
        }
    }
}

impl<T: Value> Value for Vec<T> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn write(&self, out: &mut Vec<u8>) -> Result {
        for (at, value) in self.iter().enumerate() {
            out.push(if at == 0 { b'[' } else { b',' });
            value.write(out)?;
        }
        out.push(b']');
        Ok(())
    }
}

impl Value for Attempt {
    fn write(&self, out: &mut Vec<u8>) -> Result {
        let Self {
            hop,
            address,
            family,
            cause,
            side,
            ms,
            icmp,
            reused,
        } = self;
        out.extend_from_slice(b"{\"hop\":");
        hop.write(out)?;
        members!(out, "address": address, "family": family,);
        out.extend_from_slice(b",\"cause\":");
        match cause {
            Some(cause) => cause.write(out)?,
            None => out.extend_from_slice(b"null"),
        }
        members!(out, "side": side, "ms": ms,);
        if let Some(icmp) = icmp {
            out.extend_from_slice(b",\"icmp\":");
            serde_json::to_writer(&mut *out, icmp)?;
        }
        out.extend_from_slice(if *reused { b",\"reused\":true}" } else { b"}" });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
