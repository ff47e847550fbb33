//! What the kernel knows of a TCP connection: `getsockopt(TCP_INFO)`, tcp(7).
//!
//! It still answers after a reset, with all counters kept.

use std::io;
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::Duration;

use nix::sys::socket::getsockopt;

mod option {
    use nix::sys::socket::sockopt::GetStruct;

    /// The beginning of the kernel's `struct tcp_info` (`linux/tcp.h`) as Linux 5.4 has it; later kernels only add to its
    /// end. Names are the kernel's, without their prefix.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct Raw {
        pub(super) state: u8,
        pub(super) ca_state: u8,
        pub(super) retransmits: u8,
        pub(super) probes: u8,
        pub(super) backoff: u8,
        pub(super) options: u8,
        pub(super) window_scales: u8,
        pub(super) flags: u8,
        pub(super) rto: u32,
        pub(super) ato: u32,
        pub(super) snd_mss: u32,
        pub(super) rcv_mss: u32,
        pub(super) unacked: u32,
        pub(super) sacked: u32,
        pub(super) lost: u32,
        pub(super) retrans: u32,
        pub(super) fackets: u32,
        pub(super) last_data_sent: u32,
        pub(super) last_ack_sent: u32,
        pub(super) last_data_recv: u32,
        pub(super) last_ack_recv: u32,
        pub(super) pmtu: u32,
        pub(super) rcv_ssthresh: u32,
        pub(super) rtt: u32,
        pub(super) rttvar: u32,
        pub(super) snd_ssthresh: u32,
        pub(super) snd_cwnd: u32,
        pub(super) advmss: u32,
        pub(super) reordering: u32,
        pub(super) rcv_rtt: u32,
        pub(super) rcv_space: u32,
        pub(super) total_retrans: u32,
        pub(super) pacing_rate: u64,
        pub(super) max_pacing_rate: u64,
        pub(super) bytes_acked: u64,
        pub(super) bytes_received: u64,
        pub(super) segs_out: u32,
        pub(super) segs_in: u32,
        pub(super) notsent_bytes: u32,
        pub(super) min_rtt: u32,
        pub(super) data_segs_in: u32,
        pub(super) data_segs_out: u32,
        pub(super) delivery_rate: u64,
        pub(super) busy_time: u64,
        pub(super) rwnd_limited: u64,
        pub(super) sndbuf_limited: u64,
        pub(super) delivered: u32,
        pub(super) delivered_ce: u32,
        pub(super) bytes_sent: u64,
        pub(super) bytes_retrans: u64,
        pub(super) dsack_dups: u32,
        pub(super) reord_seen: u32,
        pub(super) rcv_ooopack: u32,
        pub(super) snd_wnd: u32,
    }

    /// `TCP_INFO`.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct TcpInfo;

    nix::getsockopt_impl!(
        TcpInfo,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        Raw,
        GetStruct<Raw>
    );
}

/// The first kernel whose answer is as long as [`option::Raw`]; of a shorter one nix would panic.
const SINCE: (u32, u32) = (5, 4);

/// A connection as its kernel saw it at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// The state, by its number in `tcp_states.h`: 1 is established, 2 is SYN sent, 7 is closed.
    pub state: u8,
    /// Retransmissions of all its life.
    pub retransmissions: u32,
    /// Zero-window probes that are unanswered.
    pub probes: u8,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Payload bytes sent, with those sent again.
    pub bytes_sent: u64,
    /// Payload bytes among them that were sent again.
    pub bytes_resent: u64,
    /// Bytes acknowledged; the SYN counts as one.
    pub bytes_acked: u64,
    /// Bytes received in order; a FIN counts as one.
    pub bytes_received: u64,
    /// Payload bytes that the kernel holds and has not sent yet.
    pub unsent: u32,
    /// Segments sent.
    pub segs_out: u32,
    /// Segments received.
    pub segs_in: u32,
    /// The smoothed round trip; `None` before the connection stands.
    pub rtt: Option<Duration>,
    /// The smallest round trip; `None` before the connection stands.
    pub min_rtt: Option<Duration>,
    /// The path's MTU, in bytes.
    pub pmtu: u32,
    /// The largest segment received, in bytes.
    pub rcv_mss: u32,
    /// The window that the peer offers, in bytes.
    pub peer_window: u32,
    /// Since the last data was sent, to the tick of the kernel's clock (1 to 10 ms).
    pub since_sent: Duration,
    /// Since the last acknowledgement came, likewise; that of the SYN is one, a reset is none.
    pub since_acked: Duration,
}

impl TcpInfo {
    /// Payload bytes sent, each counted once.
    pub fn payload_sent(&self) -> u64 {
        self.bytes_sent.saturating_sub(self.bytes_resent)
    }

    /// Whether the peer acknowledged all that was sent.
    pub fn is_all_acked(&self) -> bool {
        self.bytes_acked > self.payload_sent()
    }

    /// Payload bytes sent that the peer has not acknowledged, as far as it was heard.
    pub fn unacked_bytes(&self) -> u64 {
        (self.payload_sent() + 1).saturating_sub(self.bytes_acked)
    }

    /// From the connection to the data that was sent on it, by the kernel's own clock: exact to some ticks however late the
    /// process learned of the connection. `None` where the peer acknowledged more than the SYN, or data was sent again.
    pub fn connected_before_sent(&self) -> Option<Duration> {
        let is_simple = self.is_none_acked() && self.retransmissions == 0 && self.bytes_sent > 0;
        let waited = self.since_acked.checked_sub(self.since_sent)?;
        is_simple.then_some(waited)
    }

    /// Whether the peer acknowledged nothing behind the SYN.
    pub fn is_none_acked(&self) -> bool {
        self.bytes_acked <= 1
    }

    /// Asks the kernel.
    ///
    /// # Errors
    /// `Unsupported` before Linux 5.4; the kernel's own otherwise.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        static IS_SUPPORTED: LazyLock<bool> = LazyLock::new(is_supported);
        if !*IS_SUPPORTED {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let raw = getsockopt(socket, option::TcpInfo)?;
        Ok(Self {
            state: raw.state,
            retransmissions: raw.total_retrans,
            probes: raw.probes,
            unacked: raw.unacked,
            bytes_sent: raw.bytes_sent,
            bytes_resent: raw.bytes_retrans,
            bytes_acked: raw.bytes_acked,
            bytes_received: raw.bytes_received,
            unsent: raw.notsent_bytes,
            segs_out: raw.segs_out,
            segs_in: raw.segs_in,
            rtt: micros(raw.rtt),
            min_rtt: micros(raw.min_rtt),
            pmtu: raw.pmtu,
            rcv_mss: raw.rcv_mss,
            peer_window: raw.snd_wnd,
            since_sent: Duration::from_millis(raw.last_data_sent.into()),
            since_acked: Duration::from_millis(raw.last_ack_recv.into()),
        })
    }
}

/// The kernel writes all ones where it has measured nothing.
fn micros(value: u32) -> Option<Duration> {
    (value != 0 && value != u32::MAX).then(|| Duration::from_micros(value.into()))
}

fn is_supported() -> bool {
    let Ok(name) = nix::sys::utsname::uname() else {
        return false;
    };
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    let version = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    version >= SINCE
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use crate::net::socket::tests::pair;

    #[tokio::test]
    async fn what_was_sent_and_acknowledged_is_counted_even_after_a_reset() {
        let (mut ours, mut peer) = pair().await;
        let fresh = ours.tcp_info().unwrap();
        assert_eq!(
            (fresh.state, fresh.bytes_acked, fresh.bytes_sent),
            (1, 1, 0)
        );
        assert!(fresh.min_rtt.is_some_and(|rtt| rtt.as_millis() < 1000));
        ours.write_all(&[7; 517]).await.unwrap();
        peer.read_exact(&mut [0; 517]).await.unwrap();
        peer.reset_on_close().unwrap();
        drop(peer);
        ours.reset().await;
        let after = ours.tcp_info().unwrap();
        assert_eq!(
            (after.state, after.bytes_sent, after.bytes_acked),
            (7, 517, 518)
        );
        assert_eq!(after.unacked, 0);
    }
}
