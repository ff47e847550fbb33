//! From the end of a tunnel to the keys of its record.

use std::borrow::Cow;

use nix::errno::Errno;

use super::millis;
use crate::failure::handshake::Handshake;
use crate::failure::tunnel::{Ending, Forensics, IDLE};
use crate::net::tcp_info::TcpInfo;
use crate::record::{ClientTcp, Record, Reset, ServerTcp, Tls, quote};
use crate::relay::{End, Reason};
use crate::tls::handshake::{HandshakeError, Reached};
use crate::tls::hello::{cipher_name, group_name, version_name};
use crate::tls::ledger::{Facts, Reply, Speech, State};
use crate::tls::trust::Judgement;

/// A ClientHello over this does not fit one segment on most paths.
const LARGE_HELLO: usize = 1400;

/// Fills in what the end of a tunnel showed.
pub(super) fn tell(ending: &Ending, record: &mut Record) {
    let Ending { end, tls, .. } = ending;
    record.idle_ms = Some(millis(end.idle));
    record.idle_before_ms = Some(millis(end.idle_before)).filter(|ms| *ms > 0.0);
    record.idle_survived_ms = Some(end.idle_survived)
        .filter(|silence| *silence >= IDLE)
        .map(millis);
    record.client_tcp = Some(Box::new(client_tcp(end, ending.client)));
    record.server_tcp = Some(Box::new(server_tcp(end, ending.server)));
    if let Reason::ServerReset(_) = end.reason {
        record.reset = Some(Box::new(reset(ending)));
    }
    if matches!(tls.speech, Speech::Tls | Speech::Answered(_)) {
        record.tls_ms = tls.took.map(millis);
        let mut told = self::tls(tls, record.server_address.as_deref());
        if let Some(judgement) = &ending.certificate {
            tell_certificate(judgement, &mut told);
        }
        record.notes.extend(notes(tls, &told));
        record.tls = Some(Box::new(told));
    }
}

/// Fills in what a handshake of our own that failed showed.
pub(super) fn tell_handshake(handshake: &Handshake, record: &mut Record) {
    let error = &handshake.error;
    let mut tls = Tls {
        server_name: handshake.server_name.clone(),
        // What is not told by how far it came was said in the server's flight.
        state: error.reached().map_or(State::T4, Reached::state).as_str(),
        ..Tls::default()
    };
    match error {
        HandshakeError::Certificate(judgement) => tell_certificate(judgement, &mut tls),
        HandshakeError::Alert { alert, .. } => {
            (tls.alert, tls.alert_from) = (Some(alert.0), Some("server"));
        }
        HandshakeError::NotTls { first } => tls.reply_status = status_of(first),
        HandshakeError::Reset { source, .. } => {
            let tcp = ServerTcp {
                close: Some("rst"),
                errno: errno(source),
                ..server_tcp_of(handshake.tcp)
            };
            record.server_tcp = Some(Box::new(tcp));
            record.reset = handshake.reset().map(|facts| {
                Box::new(Reset {
                    after_ms: handshake.since_write().map(millis),
                    after_connect_ms: Some(millis(handshake.since_connect)),
                    ..of_forensics(Some(facts))
                })
            });
        }
        HandshakeError::TimedOut { .. } => {
            record.server_tcp = Some(Box::new(server_tcp_of(handshake.tcp)));
        }
        HandshakeError::Name(_)
        | HandshakeError::Closed { .. }
        | HandshakeError::Broken { .. }
        | HandshakeError::Version
        | HandshakeError::Cipher
        | HandshakeError::Alpn
        | HandshakeError::Downgrade
        | HandshakeError::Ech
        | HandshakeError::Protocol(_)
        | HandshakeError::Own(_) => {}
    }
    tls.downgrade_sentinel = matches!(error, HandshakeError::Downgrade);
    record.tls = Some(Box::new(tls));
}

/// Fills in a certificate and what it is worth.
pub(super) fn tell_certificate(judgement: &Judgement, tls: &mut Tls) {
    tls.subject = Some(judgement.subject.clone());
    tls.issuer = Some(judgement.issuer.clone());
    tls.not_before = judgement.not_before.map(|moment| moment.to_string());
    tls.not_after = judgement.not_after.map(|moment| moment.to_string());
    tls.sha256 = Some(judgement.sha256.clone());
    tls.certificate = Some(judgement.verdict.as_str());
}

fn tls(facts: &Facts, target: Option<&str>) -> Tls {
    let mut tls = Tls {
        state: facts.state.as_str(),
        established: Some(facts.has_client_data || facts.reply == Some(Reply::Finished)),
        resumed: facts.is_resumed.then_some(true),
        server_flight_bytes: Some(facts.server_flight_bytes).filter(|bytes| *bytes > 0),
        alert_encrypted: facts.reply == Some(Reply::AlertSized) || facts.server_ends_alert_sized,
        ..Tls::default()
    };
    if let Speech::Answered(bytes) = &facts.speech {
        tls.reply_status = status_of(bytes);
    }
    if let Some(hello) = &facts.client_hello {
        tls.client_hello_bytes = Some(facts.client_hello_bytes);
        tls.client_hello_records = Some(facts.client_hello_records);
        tls.server_name = hello.server_name.as_deref().map(quote);
        tls.alpn_offered = hello.alpn.iter().map(|name| quote(name)).collect();
        tls.versions_offered = hello.versions.iter().map(|v| version_name(*v)).collect();
        tls.groups_offered = hello.groups.iter().map(|g| group_name(*g)).collect();
        tls.ech = hello.ech;
        tls.early_data = hello.early_data;
        tls.sni_differs = match (&hello.server_name, target) {
            (Some(name), Some(target)) => !name.trim_end_matches('.').eq_ignore_ascii_case(target),
            _ => false,
        };
    }
    if let Some(hello) = &facts.server_hello {
        tls.version = Some(version_name(hello.version));
        tls.cipher = Some(cipher_name(hello.cipher));
        tls.next_protocol = hello.alpn.as_deref().map(quote);
        tls.downgrade_sentinel = hello.has_sentinel && !hello.is_1_3();
    }
    if let Some(alert) = facts.client_alert {
        (tls.alert, tls.alert_from) = (Some(alert.0), Some("client"));
    } else if let Some(alert) = facts.server_alert {
        (tls.alert, tls.alert_from) = (Some(alert.0), Some("server"));
    } else if tls.alert_encrypted {
        let is_clients = facts.reply == Some(Reply::AlertSized);
        tls.alert_from = Some(if is_clients { "client" } else { "server" });
    }
    tls
}

/// The status of an HTTP answer that begins so.
fn status_of(bytes: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(bytes.get(..12)?).ok()?;
    text.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()
}

/// What is worth a look and no failure.
fn notes(facts: &Facts, tls: &Tls) -> Vec<&'static str> {
    let Some(hello) = &facts.client_hello else {
        return Vec::new();
    };
    let is_downgraded = tls.downgrade_sentinel && hello.offers_1_3();
    [
        (tls.server_name.is_none(), "tls.no_sni"),
        (tls.sni_differs, "tls.sni_differs_from_connect"),
        (tls.ech, "tls.ech_present"),
        (
            facts.client_hello_bytes > LARGE_HELLO,
            "tls.large_client_hello",
        ),
        (
            is_downgraded && facts.state >= State::T6,
            "tls.downgrade_sentinel",
        ),
    ]
    .into_iter()
    .filter_map(|(is_so, note)| is_so.then_some(note))
    .collect()
}

fn reset(ending: &Ending) -> Reset {
    Reset {
        after_ms: ending.since_write.map(millis),
        after_connect_ms: Some(millis(ending.since_connect)),
        ..of_forensics(ending.reset())
    }
}

fn of_forensics(facts: Option<Forensics>) -> Reset {
    Reset {
        last_write_acked: facts.map(|facts| facts.is_acked),
        rtt_ratio: facts.and_then(|facts| facts.rtt_ratio).map(two_digits),
        connect_rtt_ratio: facts
            .and_then(|facts| facts.connect_rtt_ratio)
            .map(two_digits),
        accept_race: facts.map(|facts| facts.accept_race),
        ..Reset::default()
    }
}

fn two_digits(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}

macro_rules! tcp {
    ($name:ident, $of_info:ident, $form:ident, $close:expr, $errno:expr) => {
        fn $name(end: &End, info: Option<TcpInfo>) -> $form {
            let close: fn(&End) -> &'static str = $close;
            let errno: fn(&Reason) -> Option<Cow<'static, str>> = $errno;
            $form {
                close: Some(close(end)),
                errno: errno(&end.reason),
                ..$of_info(info)
            }
        }

        fn $of_info(info: Option<TcpInfo>) -> $form {
            $form {
                close: None,
                errno: None,
                rtt_ms: info.and_then(|info| info.rtt).map(millis),
                min_rtt_ms: info.and_then(|info| info.min_rtt).map(millis),
                retransmissions: info.map(|info| info.retransmissions),
                bytes_sent: info.map(|info| info.bytes_sent),
                bytes_acked: info.map(|info| info.bytes_acked),
                bytes_received: info.map(|info| info.bytes_received),
                unacked: info.map(|info| info.unacked),
                pmtu: info.map(|info| info.pmtu),
                rcv_mss: info.map(|info| info.rcv_mss),
                segs_in: info.map(|info| info.segs_in),
                segs_out: info.map(|info| info.segs_out),
            }
        }
    };
}

tcp!(
    client_tcp,
    client_tcp_of,
    ClientTcp,
    |end| end.client.as_str(),
    |reason| {
        match reason {
            Reason::ClientReset(error) | Reason::ClientError(error) => errno(error),
            Reason::ClientFin
            | Reason::ServerFin
            | Reason::BothFin
            | Reason::ServerReset(_)
            | Reason::ServerError(_)
            | Reason::Idle { .. }
            | Reason::Expired { .. } => None,
        }
    }
);
tcp!(
    server_tcp,
    server_tcp_of,
    ServerTcp,
    |end| end.server.as_str(),
    |reason| {
        match reason {
            Reason::ServerReset(error) | Reason::ServerError(error) => errno(error),
            Reason::ClientFin
            | Reason::ServerFin
            | Reason::BothFin
            | Reason::ClientReset(_)
            | Reason::ClientError(_)
            | Reason::Idle { .. }
            | Reason::Expired { .. } => None,
        }
    }
);

/// An error number's name.
fn errno(error: &std::io::Error) -> Option<Cow<'static, str>> {
    let number = error.raw_os_error()?;
    Some(format!("{:?}", Errno::from_raw(number)).into())
}
