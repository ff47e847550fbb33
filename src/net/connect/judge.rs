//! From what the kernel shows of a failed attempt to its error: a pure judgement.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::error::{ConnectError, Icmp};

/// What the kernel shows of an attempt, beside its error number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The message in the socket's error queue, and whether this host itself sent it.
    pub(super) icmp: Option<(Icmp, Sender)>,
    /// Segments sent: all of them SYNs. `None` where the kernel does not tell.
    pub(super) syns: Option<u32>,
    /// `connect` itself failed: not even a SYN was made.
    pub(super) at_once: bool,
    /// This host has a route to the address, and an address of its own to send from. Only asked where it decides.
    pub(super) has_route: bool,
}

/// Who sent an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// This host itself.
    Own,
    /// The host that was asked for.
    Target,
    /// Something between.
    Device,
}

/// What an ICMP message says.
enum Word {
    Net,
    Host,
    Proto,
    Port,
    Prohibited,
    TtlExceeded,
}

/// Whether the error number alone leaves open what [`Evidence::has_route`] answers.
pub(super) fn asks_for_route(source: &io::Error) -> bool {
    matches!(
        source.raw_os_error(),
        Some(libc::EADDRNOTAVAIL | libc::EINVAL)
    )
}

/// Names the error of an attempt that took so long.
pub(super) fn judge(
    address: SocketAddr,
    took: Duration,
    source: io::Error,
    seen: &Evidence,
) -> ConnectError {
    seen.icmp
        .and_then(|(icmp, sender)| judge_icmp(address, icmp, sender))
        .unwrap_or_else(|| judge_number(address, took, source, seen))
}

/// The attempt that nobody answered in time.
pub(super) fn timed_out(address: SocketAddr, after: Duration, seen: &Evidence) -> ConnectError {
    ConnectError::TimedOut {
        address,
        after,
        syns: seen.syns,
    }
}

fn judge_icmp(address: SocketAddr, icmp: Icmp, sender: Sender) -> Option<ConnectError> {
    let (some, source) = (Some(icmp), None);
    Some(match (word(icmp)?, sender) {
        // The kernel says this of a neighbour that it has probed in vain, after about 3 s. A local rule that rejects with
        // the same words cannot be told from it.
        (Word::Host, Sender::Own) => ConnectError::NeighbourDead { address, icmp },
        // It says nothing else of its own: that leaves a rule.
        (_, Sender::Own) => ConnectError::DeniedByFirewall { address, icmp },
        (Word::Port, Sender::Target) => ConnectError::Refused {
            address,
            icmp: some,
            source,
        },
        (Word::Port, Sender::Device) => ConnectError::RefusedByDevice { address, icmp },
        (Word::Prohibited, _) => ConnectError::Prohibited {
            address,
            icmp: some,
            source,
        },
        (Word::Net, _) => ConnectError::NetUnreachable {
            address,
            icmp: some,
            source,
        },
        (Word::Host, _) => ConnectError::HostUnreachable {
            address,
            icmp: some,
            source,
        },
        (Word::Proto, _) => ConnectError::ProtoUnreachable {
            address,
            icmp: some,
            source,
        },
        (Word::TtlExceeded, _) => ConnectError::TtlExceeded { address, icmp },
    })
}

/// What a message says: RFC 792 and RFC 1812 (section 5.2.7.1); RFC 4443, section 3. `None` for what says nothing of the
/// way, where the error number speaks.
fn word(icmp: Icmp) -> Option<Word> {
    match (icmp.offender, icmp.r#type, icmp.code) {
        (IpAddr::V4(_), 3, 0 | 6 | 11) => Some(Word::Net),
        (IpAddr::V4(_), 3, 1 | 5 | 7 | 8 | 12) => Some(Word::Host),
        (IpAddr::V4(_), 3, 2) => Some(Word::Proto),
        (IpAddr::V4(_), 3, 3) => Some(Word::Port),
        (IpAddr::V4(_), 3, 9 | 10 | 13..=15) => Some(Word::Prohibited),
        (IpAddr::V4(_), 11, 0) => Some(Word::TtlExceeded),
        (IpAddr::V6(_), 1, 0) => Some(Word::Net),
        (IpAddr::V6(_), 1, 1 | 5 | 6) => Some(Word::Prohibited),
        (IpAddr::V6(_), 1, 2 | 3) => Some(Word::Host),
        (IpAddr::V6(_), 1, 4) => Some(Word::Port),
        (IpAddr::V6(_), 3, 0) => Some(Word::TtlExceeded),
        (IpAddr::V6(_), 4, 1) => Some(Word::Proto),
        _ => None,
    }
}

/// By the error number, where no ICMP message says more: there was none, or the kernel keeps no error queue.
fn judge_number(
    address: SocketAddr,
    took: Duration,
    source: io::Error,
    seen: &Evidence,
) -> ConnectError {
    let has_left = seen.syns.map_or(!seen.at_once, |syns| syns > 0);
    let (number, kind) = (source.raw_os_error(), source.kind());
    let (icmp, source) = (None, Arc::new(source));
    let some = Some(source.clone());
    match number {
        Some(libc::ECONNREFUSED) => ConnectError::Refused {
            address,
            icmp,
            source: some,
        },
        // `EPIPE`: a FIN came before the reset.
        Some(libc::ECONNRESET | libc::ENOTCONN | libc::EPIPE) => {
            ConnectError::Reset { address, source }
        }
        Some(libc::ETIMEDOUT) => timed_out(address, took, seen),
        Some(libc::ENETUNREACH | libc::ENETDOWN) if has_left => ConnectError::NetUnreachable {
            address,
            icmp,
            source: some,
        },
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) if has_left => ConnectError::HostUnreachable {
            address,
            icmp,
            source: some,
        },
        Some(
            libc::ENETUNREACH
            | libc::ENETDOWN
            | libc::EHOSTUNREACH
            | libc::EHOSTDOWN
            | libc::EINVAL,
        ) if is_none_to_connect_to(address) => ConnectError::AddressInvalid { address, source },
        Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EHOSTUNREACH | libc::EHOSTDOWN) => {
            ConnectError::NoRoute { address, source }
        }
        // A route of type `blackhole`.
        Some(libc::EINVAL) if !has_left && !seen.has_route => {
            ConnectError::NoRoute { address, source }
        }
        Some(libc::EINVAL | libc::ENOENT | libc::ENODEV) => {
            ConnectError::AddressInvalid { address, source }
        }
        None if kind == io::ErrorKind::InvalidInput => {
            ConnectError::AddressInvalid { address, source }
        }
        Some(libc::ENOPROTOOPT) => ConnectError::ProtoUnreachable {
            address,
            icmp,
            source: some,
        },
        Some(libc::EAFNOSUPPORT) => ConnectError::FamilyUnsupported { address, source },
        // The kernel says so both where it has no address of the family (IPv6 switched off, as in many containers) and
        // where all ports are in use.
        Some(libc::EADDRNOTAVAIL) if !seen.has_route => {
            ConnectError::FamilyUnsupported { address, source }
        }
        Some(libc::EADDRNOTAVAIL) => ConnectError::NoPorts { address, source },
        // ICMPv6 "administratively prohibited".
        Some(libc::EACCES) if has_left => ConnectError::Prohibited {
            address,
            icmp,
            source: some,
        },
        Some(libc::EACCES | libc::EPERM) => ConnectError::Denied { address, source },
        Some(libc::EMFILE | libc::ENFILE) => ConnectError::NoFds { address, source },
        Some(libc::ENOBUFS | libc::ENOMEM) => ConnectError::NoMemory { address, source },
        Some(_) | None => ConnectError::Other { address, source },
    }
}

/// Whether no host can have the address, or it is link-local and its zone is not told.
fn is_none_to_connect_to(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V4(v4) => {
            v4.ip().is_unspecified() || v4.ip().is_multicast() || v4.ip().is_broadcast()
        }
        SocketAddr::V6(v6) => {
            v6.ip().is_unspecified()
                || v6.ip().is_multicast()
                || (v6.ip().is_unicast_link_local() && v6.scope_id() == 0)
        }
    }
}
