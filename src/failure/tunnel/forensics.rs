//! What the packets of a connection say of its reset.

use std::time::Duration;

use crate::cause::Side;
use crate::net::tcp_info::TcpInfo;

/// A ClientHello that was sent again so often, and never acknowledged, is dropped on the way.
const RESENT: u32 = 2;

/// A reset sooner than this part of the smallest round trip cannot have come from the far end.
const TOO_SOON: f64 = 0.7;

/// From [`TOO_SOON`] to this many round trips behind the connection a reset may be an answer to the connection itself.
const TOO_LATE: f64 = 1.3;

/// What the kernel's coarse clock may be off by, over two of its marks.
const TICKS: Duration = Duration::from_millis(10);

/// How late we may hear of a reset without thinking anything of it.
const LATENESS: Duration = Duration::from_millis(1);

/// What is known of a reset by the server's side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forensics {
    /// Whether all that was sent was acknowledged.
    pub is_acked: bool,
    /// Whether nothing of it was.
    pub is_unacked: bool,
    /// From our last write to the reset, in smallest round trips.
    pub rtt_ratio: Option<f64>,
    /// From the connection to the reset, likewise.
    pub connect_rtt_ratio: Option<f64>,
    /// The reset may be an answer to the connection, sent before anything else arrived.
    pub accept_race: bool,
}

impl Forensics {
    /// What a connection shows at its reset, so long behind our last write and behind the connection.
    pub fn of(info: TcpInfo, since_write: Option<Duration>, since_connect: Duration) -> Self {
        let ratio = |after: Duration| Some(after.as_secs_f64() / info.min_rtt?.as_secs_f64());
        // Where we learned late of the connection, the kernel knows how old it was when we wrote.
        let by_kernel = info.connected_before_sent().zip(since_write);
        let by_kernel = by_kernel.map(|(before, since)| before + since);
        let (since_connect, slack) = match by_kernel {
            Some(age) if age > since_connect + TICKS => (age, TICKS),
            _ => (since_connect, Duration::ZERO),
        };
        let is_acked = info.bytes_sent > 0 && info.is_all_acked();
        let may_race = info.min_rtt.is_none_or(|rtt| {
            let soonest = rtt.mul_f64(TOO_SOON).saturating_sub(slack);
            let latest = rtt.mul_f64(TOO_LATE) + slack;
            // Later than anything on the way would answer to what we sent: we heard of it late, and measured nothing.
            let is_late = since_write.is_some_and(|since| since > rtt.mul_f64(TOO_LATE) + LATENESS);
            is_late || (soonest..=latest).contains(&since_connect)
        });
        let accept_race = !is_acked && may_race;
        Self {
            is_acked,
            is_unacked: info.bytes_sent > 0 && info.is_none_acked(),
            rtt_ratio: since_write.and_then(ratio),
            connect_rtt_ratio: ratio(since_connect),
            accept_race,
        }
    }
}

/// Who is behind a reset: whoever read what was sent, or something on the way.
pub(in crate::failure) fn side_of_reset(reset: Option<Forensics>, is_end_to_end: bool) -> Side {
    match reset {
        Some(reset) if is_end_to_end && reset.is_acked => Side::Origin,
        Some(reset) if is_end_to_end && reset.is_unacked && !reset.accept_race => Side::Network,
        Some(_) | None => Side::Unknown,
    }
}

/// Whether what we sent was sent again and again and nobody acknowledged it.
pub(in crate::failure) fn is_blackholed(info: TcpInfo) -> bool {
    info.is_none_acked() && info.unacked > 0 && info.retransmissions >= RESENT
}
