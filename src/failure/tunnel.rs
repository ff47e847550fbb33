//! How a tunnel ended, and what its handshake and its packets say of that.
//!
//! One rule after another, the first that holds decides: what was said in the clear before what merely happened, and the
//! first event before what followed from it.

mod forensics;

use std::fmt;
use std::io;
use std::time::Duration;

use crate::cause::{Alert, Cause, Kind, Side};
use crate::net::tcp_info::TcpInfo;
use crate::relay::{Close, End, Reason};
use crate::timeouts::Brief;
use crate::tls::ledger::{Facts, Reply, Speech, State};
use crate::tls::trust::Judgement;

pub use forensics::Forensics;
pub(super) use forensics::{is_blackholed, side_of_reset};

/// A silence after which a broken tunnel is told from one that broke in mid-flow.
pub(crate) const IDLE: Duration = Duration::from_secs(30);

/// A client that waited so long for the server's part of a handshake did not just change its mind.
const PATIENCE: Duration = Duration::from_secs(3);

/// The end of a tunnel with all that was seen of it.
#[derive(Debug)]
pub struct Ending {
    /// How the relay ended.
    pub end: End,
    /// What the handshake showed.
    pub tls: Facts,
    /// The client's connection at the first event; `None` where the kernel does not tell.
    pub client: Option<TcpInfo>,
    /// The server's.
    pub server: Option<TcpInfo>,
    /// From our last write to the server to the first event; `None` where there was none.
    pub since_write: Option<Duration>,
    /// From the server's connection to the first event.
    pub since_connect: Duration,
    /// Whether the far end of the server's connection is the target itself. Where it is an upstream, packets tell of the way
    /// to that one only.
    pub is_end_to_end: bool,
    /// What the server's certificate is worth, where the client did not go on with it and it was in the clear.
    pub certificate: Option<Judgement>,
}

impl Ending {
    /// What is known of the reset; `None` where there was none, or the kernel does not tell.
    pub fn reset(&self) -> Option<Forensics> {
        let (Reason::ServerReset(_), Some(info)) = (&self.end.reason, self.server) else {
            return None;
        };
        Some(Forensics::of(info, self.since_write, self.since_connect))
    }

    fn side_of_reset(&self) -> Side {
        side_of_reset(self.reset(), self.is_end_to_end)
    }

    /// Whether the ClientHello was sent again and again and nobody acknowledged it.
    fn is_blackholed(&self) -> bool {
        self.server.is_some_and(is_blackholed)
    }

    fn has_left_nothing(&self) -> bool {
        self.server.is_some_and(|info| info.bytes_sent == 0)
    }
}

/// Names the cause of a tunnel's end.
pub(super) fn classify(ending: &Ending) -> Cause {
    let in_handshake = match ending.tls.speech {
        Speech::Answered(_) => Some(Kind::TlsNotTlsReply.into()),
        Speech::Tls if ending.tls.state < State::T7 => of_handshake(ending),
        Speech::Silence => of_silence(ending),
        Speech::Tls | Speech::Other => None,
    };
    in_handshake.unwrap_or_else(|| of_data(ending))
}

/// The end of a tunnel in which nobody spoke.
fn of_silence(ending: &Ending) -> Option<Cause> {
    match ending.end.reason {
        // It tired of waiting for the client, as of a connection opened ahead of need.
        Reason::ServerFin | Reason::ServerReset(_) if ending.end.idle >= PATIENCE => {
            Some(Kind::TlsClientSilent.into())
        }
        Reason::ServerFin | Reason::ServerReset(_) => Some(Kind::TlsResetBeforeClientHello.into()),
        Reason::Idle { .. } => Some(Kind::TlsClientSilent.into()),
        Reason::Expired { .. } => Some(Kind::TunnelMaxDuration.into()),
        Reason::ClientFin
        | Reason::BothFin
        | Reason::ClientReset(_)
        | Reason::ClientError(_)
        | Reason::ServerError(_) => None,
    }
}

/// The end of a handshake that was not over; nothing where the rules of data hold as well.
fn of_handshake(ending: &Ending) -> Option<Cause> {
    if let Some(kind) = of_words(&ending.tls) {
        return Some(kind.into());
    }
    let facts = &ending.tls;
    if facts.has_goodbye && !facts.has_client_data {
        return Some(Kind::TlsClientClosedBeforeRequest.into());
    }
    if facts.server_ends_alert_sized
        && !facts.server_accepts
        && matches!(
            ending.end.reason,
            Reason::ServerFin | Reason::ServerReset(_)
        )
    {
        return Some(Kind::TlsEncryptedAlertFromServer.into());
    }
    if facts.has_client_data || facts.reply == Some(Reply::Unclear) {
        return None;
    }
    match &ending.end.reason {
        Reason::ClientFin | Reason::BothFin | Reason::ClientReset(_) | Reason::ClientError(_) => {
            Some(of_leaving(ending).into())
        }
        Reason::ServerFin => of_server_fin(ending).map(Cause::from),
        Reason::ServerReset(_) => of_server_reset(ending),
        Reason::ServerError(error) => of_server_error(ending, error).map(Cause::from),
        Reason::Idle { .. } => of_idling(ending).map(Cause::from),
        Reason::Expired { .. } => Some(Kind::TunnelMaxDuration.into()),
    }
}

/// What was said in the clear, or by the length of a record.
fn of_words(facts: &Facts) -> Option<Kind> {
    let is_downgraded = facts
        .server_hello
        .as_ref()
        .is_some_and(|hello| hello.has_sentinel && !hello.is_1_3())
        && facts
            .client_hello
            .as_ref()
            .is_some_and(|hello| hello.offers_1_3());
    if is_downgraded && facts.reply.is_none() {
        return Some(Kind::TlsDowngradeSentinel);
    }
    match facts.client_alert {
        Some(Alert(121)) => return Some(Kind::TlsEchRejected),
        Some(alert @ Alert(42..=48 | 51 | 113)) if facts.server_hello.is_some() => {
            return Some(Kind::TlsClientRejected(alert));
        }
        Some(Alert(70)) => return Some(Kind::TlsVersionMismatch),
        Some(Alert(40 | 71)) => return Some(Kind::TlsCipherMismatch),
        Some(_) | None => {}
    }
    match facts.server_alert {
        Some(Alert(121)) => return Some(Kind::TlsEchRejected),
        Some(alert) => return Some(Kind::TlsAlertFromServer(alert)),
        None => {}
    }
    if facts.reply == Some(Reply::AlertSized) {
        return Some(Kind::TlsClientRejectedInferred);
    }
    None
}

/// The client left, by FIN or reset.
fn of_leaving(ending: &Ending) -> Kind {
    let facts = &ending.tls;
    let is_patient = ending.end.idle >= PATIENCE;
    match facts.state {
        State::T0 | State::T1 => Kind::TlsClientHelloIncomplete,
        State::T2 if ending.is_blackholed() => Kind::TlsClientHelloBlackholed,
        State::T2 if is_patient => Kind::TlsNoServerHello,
        State::T3 | State::T4 if is_patient => Kind::TlsServerFlightStalled,
        State::T2 | State::T3 | State::T4 => Kind::ClientGaveUpTls,
        State::T5 if facts.client_alert.is_none() => Kind::TlsClientClosedAfterServerFlight,
        State::T5 => Kind::ClientGaveUpTls,
        State::T6 | State::T7 => Kind::TlsClientClosedBeforeRequest,
    }
}

fn of_server_fin(ending: &Ending) -> Option<Kind> {
    match ending.tls.state {
        State::T0 | State::T1 => Some(Kind::TlsResetBeforeClientHello),
        State::T2 => Some(Kind::TlsClosedAfterClientHello),
        State::T3 | State::T4 | State::T5 if ending.tls.server_is_cut => {
            Some(Kind::TunnelTruncated)
        }
        // It tired of waiting for the client.
        State::T5 if ending.end.idle >= PATIENCE => Some(Kind::TlsHandshakeTimeout),
        State::T3 | State::T4 | State::T5 => Some(Kind::TlsResetDuringServerFlight),
        State::T6 | State::T7 => None,
    }
}

fn of_server_reset(ending: &Ending) -> Option<Cause> {
    let kind = match ending.tls.state {
        State::T0 | State::T1 => Kind::TlsResetBeforeClientHello,
        State::T2 if ending.has_left_nothing() => Kind::TlsResetBeforeClientHello,
        State::T2 => Kind::TlsResetAfterClientHello,
        State::T3 | State::T4 | State::T5 => Kind::TlsResetDuringServerFlight,
        State::T6 | State::T7 => return None,
    };
    Some(Cause::from(kind).by(ending.side_of_reset()))
}

fn of_server_error(ending: &Ending, error: &io::Error) -> Option<Kind> {
    let is_unheard = ending.tls.state == State::T2 && error.kind() == io::ErrorKind::TimedOut;
    // The kernel gives up on a ClientHello, or on a keepalive behind one that was acknowledged.
    let is_acked = ending.server.is_some_and(|info| info.is_all_acked());
    is_unheard.then_some(if is_acked {
        Kind::TlsNoServerHello
    } else {
        Kind::TlsClientHelloBlackholed
    })
}

fn of_idling(ending: &Ending) -> Option<Kind> {
    match ending.tls.state {
        State::T0 => Some(Kind::TlsClientSilent),
        State::T1 => Some(Kind::TlsClientHelloIncomplete),
        State::T2 if ending.is_blackholed() => Some(Kind::TlsClientHelloBlackholed),
        State::T2 => Some(Kind::TlsNoServerHello),
        State::T3 | State::T4 => Some(Kind::TlsServerFlightStalled),
        State::T5 => Some(Kind::TlsHandshakeTimeout),
        // The server did not end its side.
        State::T6 | State::T7 if ending.end.client == Close::Fin => {
            Some(Kind::TlsClientClosedBeforeRequest)
        }
        State::T6 | State::T7 => None,
    }
}

/// The end of a tunnel that carried data, or what is not followed.
fn of_data(ending: &Ending) -> Cause {
    let end = &ending.end;
    let kind = match &end.reason {
        Reason::ClientFin => Kind::CloseClientFin,
        Reason::ServerFin => Kind::CloseServerFin,
        Reason::BothFin => Kind::CloseBoth,
        // The server had said all, and the client got it: one that closes without reading the last of it resets.
        Reason::ClientReset(_) if has_all(ending) => Kind::CloseServerFin,
        Reason::ClientReset(_) | Reason::ClientError(_) => Kind::ClientReset,
        Reason::ServerReset(_) => {
            let is_forgotten = ending.server.is_some_and(|info| !info.is_all_acked());
            if end.idle_before >= IDLE && is_forgotten {
                Kind::TunnelResetAfterIdle
            } else {
                Kind::TunnelResetByServer
            }
        }
        Reason::ServerError(error) => of_error(error.kind(), end.idle_before),
        Reason::Idle { .. } => of_idle(ending),
        Reason::Expired { .. } => Kind::TunnelMaxDuration,
    };
    kind.into()
}

/// Whether the server ended in order, and the client got all that it sent, as far as can be seen: an acknowledgement of less
/// than two full segments may be held back (RFC 9293, section 3.8.6.3), and a reset acknowledges nothing.
fn has_all(ending: &Ending) -> bool {
    let end = &ending.end;
    let is_out = ending
        .client
        .is_some_and(|info| info.unsent == 0 && info.unacked_bytes() < 2 * u64::from(info.pmtu));
    end.server == Close::Fin && !end.waiting.client_to_read && is_out
}

fn of_error(error: io::ErrorKind, idle: Duration) -> Kind {
    if error == io::ErrorKind::TimedOut && idle >= IDLE {
        Kind::TunnelBlackholedAfterIdle
    } else if error == io::ErrorKind::TimedOut {
        Kind::TunnelNoAck
    } else if matches!(
        error,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    ) {
        Kind::TunnelIcmp
    } else {
        Kind::TunnelResetByServer
    }
}

/// Our own idle limit, and who was waited for when it passed.
fn of_idle(ending: &Ending) -> Kind {
    let waiting = ending.end.waiting;
    let (unsent, unacked) = ending.server.map_or((false, false), |info| {
        (info.unsent > 0 || info.probes > 0, info.unacked > 0)
    });
    if waiting.client_to_read {
        Kind::TunnelClientNotReading
    } else if unacked && !unsent && ending.end.idle_before >= IDLE {
        Kind::TunnelBlackholedAfterIdle
    } else if unacked && !unsent {
        Kind::TunnelNoAck
    } else if waiting.server_to_read || unsent {
        Kind::TunnelPeerWindowZero
    } else if waiting.server_to_answer {
        Kind::TunnelServerSilent
    } else {
        Kind::TunnelIdleTimeout
    }
}

impl std::error::Error for Ending {}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tls.client_alert, self.tls.server_alert) {
            // What was said, rather than what followed from it.
            (Some(alert), _) => write!(f, "the client sent the alert {alert}")?,
            (None, Some(alert)) => write!(f, "the server sent the alert {alert}")?,
            (None, None) => self.tell_end(f)?,
        }
        if let Some(judgement) = &self.certificate {
            write!(
                f,
                "; the certificate of {} by {} is {} here",
                judgement.subject,
                judgement.issuer,
                judgement.verdict.as_str()
            )?;
        }
        Ok(())
    }
}

impl Ending {
    fn tell_end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end.reason {
            Reason::ClientFin => write!(f, "the client ended the tunnel")?,
            Reason::ServerFin => write!(f, "the server ended the tunnel")?,
            Reason::BothFin => write!(f, "both sides ended the tunnel")?,
            Reason::ClientReset(error) => write!(f, "the client reset the tunnel: {error}")?,
            Reason::ServerReset(error) => {
                write!(f, "the server's side reset the tunnel: {error}")?;
            }
            Reason::ClientError(error) => write!(f, "the client's connection failed: {error}")?,
            Reason::ServerError(error) => write!(f, "the server's connection failed: {error}")?,
            Reason::Idle { after } => {
                write!(f, "no byte passed in the tunnel for {}", Brief(*after))?;
            }
            Reason::Expired { after } => {
                write!(f, "the tunnel was open for {}", Brief(*after))?;
            }
        }
        if let Speech::Answered(bytes) = &self.tls.speech {
            write!(
                f,
                "; the server answered the ClientHello with \"{}\"",
                bytes.escape_ascii()
            )?;
        }
        if self.tls.speech == Speech::Tls && self.tls.state < State::T7 {
            write!(f, "; {}", self.handshake())?;
        }
        Ok(())
    }
}

impl Ending {
    /// How far the handshake came, in words and numbers.
    fn handshake(&self) -> String {
        let hello = self.tls.client_hello_bytes;
        match self.tls.state {
            State::T0 => "nothing was sent".to_owned(),
            State::T1 => "the ClientHello was not whole".to_owned(),
            State::T2 => {
                let acked = match (self.reset(), self.server) {
                    (Some(reset), _) if reset.is_acked => "acknowledged by the far end",
                    (_, Some(info)) if info.is_none_acked() => "acknowledged by nobody",
                    (_, Some(info)) if info.is_all_acked() => "acknowledged",
                    _ => "sent",
                };
                let after = self
                    .since_write
                    .map(|after| format!(", {} before", Brief(after)))
                    .unwrap_or_default();
                let rtt = self
                    .server
                    .and_then(|info| info.min_rtt)
                    .map(|rtt| format!(" (round trip {})", Brief(rtt)))
                    .unwrap_or_default();
                format!("a ClientHello of {hello} bytes was {acked}{after}{rtt}")
            }
            State::T3 => "the server had begun to answer the ClientHello".to_owned(),
            State::T4 => "the ServerHello was there, the rest of its flight was not".to_owned(),
            State::T5 => "the server's handshake was whole, the client had not answered".to_owned(),
            State::T6 | State::T7 => "the client had answered the server's handshake".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Waiting;

    /// A connection over which so many bytes went, and so many came back as acknowledged.
    fn info(bytes_sent: u64, bytes_acked: u64) -> TcpInfo {
        TcpInfo {
            state: 7,
            retransmissions: 0,
            probes: 0,
            unacked: 0,
            bytes_sent,
            bytes_resent: 0,
            bytes_acked,
            bytes_received: 0,
            unsent: 0,
            segs_out: 3,
            segs_in: 2,
            rtt: None,
            min_rtt: None,
            pmtu: 1500,
            rcv_mss: 536,
            peer_window: 65_535,
            since_sent: Duration::ZERO,
            since_acked: Duration::ZERO,
        }
    }

    /// A handshake that came so far and ended so, `seconds` behind the last byte.
    fn ending(state: State, reason: Reason, seconds: u64) -> Ending {
        Ending {
            end: End {
                client: if matches!(reason, Reason::ClientFin) {
                    Close::Fin
                } else {
                    Close::Local
                },
                server: Close::Local,
                reason,
                idle: Duration::from_secs(seconds),
                idle_before: Duration::ZERO,
                idle_survived: Duration::ZERO,
                waiting: Waiting::default(),
                client_spoke: None,
            },
            tls: Facts {
                state,
                speech: Speech::Tls,
                ..Facts::default()
            },
            client: None,
            server: Some(info(517, 518)),
            since_write: None,
            since_connect: Duration::from_secs(seconds),
            is_end_to_end: true,
            certificate: None,
        }
    }

    #[track_caller]
    fn check(ending: &Ending, expected: &str) {
        assert_eq!(classify(ending).id(), expected);
    }

    #[test]
    fn a_client_that_leaves_behind_a_whole_flight_may_have_thought_long() {
        for seconds in [0, 5] {
            check(
                &ending(State::T5, Reason::ClientFin, seconds),
                "tls.client_closed_after_server_flight",
            );
        }
        check(
            &ending(State::T4, Reason::ClientFin, 5),
            "tls.server_flight_stalled",
        );
    }

    #[test]
    fn a_server_that_tires_of_a_silent_client_blocks_no_port() {
        for (seconds, expected) in [
            (0, "tls.reset_before_client_hello"),
            (60, "tls.client_silent"),
        ] {
            for reason in [
                Reason::ServerFin,
                Reason::ServerReset(io::ErrorKind::ConnectionReset.into()),
            ] {
                let mut silent = ending(State::T0, reason, seconds);
                silent.tls.speech = Speech::Silence;
                check(&silent, expected);
            }
        }
    }

    #[test]
    fn a_fin_of_the_server_is_a_cut_only_inside_a_record() {
        let mut cut = ending(State::T4, Reason::ServerFin, 0);
        check(&cut, "tls.reset_during_server_flight");
        cut.tls.server_is_cut = true;
        check(&cut, "tunnel.truncated");
        check(
            &ending(State::T5, Reason::ServerFin, 60),
            "tls.handshake_timeout",
        );
    }

    #[test]
    fn a_client_that_resets_behind_the_servers_end_has_lost_nothing() {
        let reset = || Reason::ClientReset(io::ErrorKind::ConnectionReset.into());
        let mut left = ending(State::T7, reset(), 0);
        // Its last acknowledgement was held back.
        left.client = Some(info(5000, 4600));
        check(&left, "client.reset");
        left.end.server = Close::Fin;
        check(&left, "close.server_fin");
        left.client = Some(info(5000, 1000));
        check(&left, "client.reset");
        left.client = Some(info(5000, 5001));
        left.end.waiting.client_to_read = true;
        check(&left, "client.reset");
    }

    #[test]
    fn a_hello_that_was_acknowledged_is_in_no_black_hole() {
        let gone = || Reason::ServerError(io::ErrorKind::TimedOut.into());
        let mut ending = ending(State::T2, gone(), 600);
        check(&ending, "tls.no_server_hello");
        ending.server = Some(info(517, 1));
        check(&ending, "tls.client_hello_blackholed");
    }

    #[test]
    fn a_client_that_ended_behind_the_handshake_asked_nothing_of_the_server() {
        let after = Duration::from_mins(1);
        let mut left = ending(State::T6, Reason::Idle { after }, 60);
        left.tls.reply = Some(Reply::Finished);
        left.end.waiting.server_to_answer = true;
        check(&left, "tunnel.server_silent");
        left.end.client = Close::Fin;
        check(&left, "tls.client_closed_before_request");
    }
}
