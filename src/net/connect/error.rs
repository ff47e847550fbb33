//! Why a connection did not come about, by the kernel's word.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::timeouts::Brief;

/// Why there is no connection to an address, by the kernel's error number.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// `ECONNREFUSED`: a reset answered the SYN.
    #[error("connect to {address}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `ECONNRESET`, or gone again before it could be used.
    #[error("connect to {address}")]
    Reset {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// No answer within the limit (or within the kernel's own, `ETIMEDOUT`).
    #[error("no SYN-ACK from {address} in {}", Brief(*after))]
    TimedOut {
        /// The address.
        address: SocketAddr,
        /// Since its SYN.
        after: Duration,
    },
    /// `ENETUNREACH`, `ENETDOWN`.
    #[error("connect to {address}")]
    NetUnreachable {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// The same, or `EHOSTUNREACH`, without a wait: nothing left this host.
    #[error("connect to {address}")]
    NoRoute {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `EHOSTUNREACH`, `EHOSTDOWN`.
    #[error("connect to {address}")]
    HostUnreachable {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `ENOPROTOOPT`: ICMP says that the host does not take TCP.
    #[error("connect to {address}")]
    ProtoUnreachable {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `EINVAL`, or a zone that is no interface here.
    #[error("connect to {address}")]
    AddressInvalid {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `EAFNOSUPPORT`, or `EADDRNOTAVAIL` where this host has no address of that family.
    #[error("connect to {address}")]
    FamilyUnsupported {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `EACCES`, `EPERM`: this host's kernel forbids it. On IPv6 `EACCES` may also be an ICMP
    /// message from the way.
    #[error("connect to {address}")]
    Denied {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `EADDRNOTAVAIL`: no local port is left.
    #[error("connect to {address}: no local port")]
    NoPorts {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `EMFILE`, `ENFILE`: no descriptor is left.
    #[error("connect to {address}: no file descriptor")]
    NoFds {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// `ENOBUFS`, `ENOMEM`.
    #[error("connect to {address}: no memory")]
    NoMemory {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// Any other error number.
    #[error("connect to {address}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// There was nothing to connect to.
    #[error("no address to connect to")]
    NoAddresses,
}

impl ConnectError {
    /// The address it is about.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Refused { address, .. }
            | Self::Reset { address, .. }
            | Self::TimedOut { address, .. }
            | Self::NoRoute { address, .. }
            | Self::NetUnreachable { address, .. }
            | Self::HostUnreachable { address, .. }
            | Self::ProtoUnreachable { address, .. }
            | Self::AddressInvalid { address, .. }
            | Self::FamilyUnsupported { address, .. }
            | Self::Denied { address, .. }
            | Self::NoPorts { address, .. }
            | Self::NoFds { address, .. }
            | Self::NoMemory { address, .. }
            | Self::Other { address, .. } => Some(*address),
            Self::NoAddresses => None,
        }
    }

    pub(super) fn new(address: SocketAddr, took: Duration, source: io::Error) -> Self {
        let number = source.raw_os_error();
        let kind = source.kind();
        let source = Arc::new(source);
        match number {
            Some(libc::ECONNREFUSED) => Self::Refused { address, source },
            Some(libc::ECONNRESET | libc::ENOTCONN) => Self::Reset { address, source },
            Some(libc::ETIMEDOUT) => Self::TimedOut {
                address,
                after: took,
            },
            Some(libc::ENETUNREACH | libc::ENETDOWN) => Self::NetUnreachable { address, source },
            Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => Self::HostUnreachable { address, source },
            Some(libc::ENOPROTOOPT) => Self::ProtoUnreachable { address, source },
            Some(libc::EAFNOSUPPORT) => Self::FamilyUnsupported { address, source },
            Some(libc::EADDRNOTAVAIL) if !has_source_address(address) => {
                Self::FamilyUnsupported { address, source }
            }
            Some(libc::EADDRNOTAVAIL) => Self::NoPorts { address, source },
            Some(libc::EACCES | libc::EPERM) => Self::Denied { address, source },
            Some(libc::EMFILE | libc::ENFILE) => Self::NoFds { address, source },
            Some(libc::ENOBUFS | libc::ENOMEM) => Self::NoMemory { address, source },
            Some(libc::EINVAL | libc::ENOENT) => Self::AddressInvalid { address, source },
            None if kind == io::ErrorKind::InvalidInput => Self::AddressInvalid { address, source },
            Some(_) | None => Self::Other { address, source },
        }
    }

    /// The same where the kernel answered without a wait: what is unreachable then has no route.
    pub(super) fn of_this_host(self) -> Self {
        if let Self::NetUnreachable { address, source }
        | Self::HostUnreachable { address, source } = self
        {
            Self::NoRoute { address, source }
        } else {
            self
        }
    }

    /// How far the attempt got, for choosing among several addresses. `at_once`: the kernel answered
    /// without a wait, so an unreachable network is only this host's missing route (as for IPv6 on
    /// a host without it) and says less than silence does.
    pub(super) fn rank(&self, at_once: bool) -> u8 {
        match self {
            Self::Refused { .. } | Self::Reset { .. } | Self::ProtoUnreachable { .. } => 5,
            Self::NoPorts { .. } | Self::NoFds { .. } | Self::NoMemory { .. } => 4,
            Self::NetUnreachable { .. } | Self::HostUnreachable { .. } | Self::Denied { .. } => {
                if at_once {
                    1
                } else {
                    3
                }
            }
            Self::TimedOut { .. } | Self::Other { .. } => 2,
            Self::NoRoute { .. } => 1,
            Self::AddressInvalid { .. } | Self::FamilyUnsupported { .. } | Self::NoAddresses => 0,
        }
    }
}

/// Whether this host has an address to reach `address` from. The kernel says `EADDRNOTAVAIL` both
/// where it has none (IPv6 switched off, as in many containers) and where all ports are in use; a
/// UDP socket, which sends nothing by connecting, tells the two apart.
fn has_source_address(address: SocketAddr) -> bool {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(any).is_ok_and(|socket| socket.connect(address).is_ok())
}
