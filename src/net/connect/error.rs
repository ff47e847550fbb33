//! Why a connection did not come about: the kernel's error number, and the ICMP message behind it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::timeouts::Brief;

/// An ICMP or `ICMPv6` message that ended an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Its type: 3 is "destination unreachable", 11 "time exceeded"; 1 and 3 in `ICMPv6`.
    pub r#type: u8,
    /// Its code.
    pub code: u8,
    /// Who sent it.
    pub offender: IpAddr,
}

impl fmt::Display for Icmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.offender.is_ipv4() {
            "ICMP"
        } else {
            "ICMPv6"
        };
        write!(f, "{name} {}/{}", self.r#type, self.code)
    }
}

/// Why there is no connection to an address. `source` is missing where an ICMP message says more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// A reset answered the SYN, or the host itself says that the port is closed.
    #[error("connect to {address}{}", by(*icmp, "the host", "says that the port is closed"))]
    Refused {
        /// The address.
        address: SocketAddr,
        /// The host's message, where it sent no reset.
        icmp: Option<Icmp>,
        /// The kernel's error.
        source: Option<Arc<io::Error>>,
    },
    /// "Port unreachable", and not from the host that the port is of.
    #[error("connect to {address}{}", by(Some(*icmp), "the device", "refuses it"))]
    RefusedByDevice {
        /// The address.
        address: SocketAddr,
        /// The device's message.
        icmp: Icmp,
    },
    /// A firewall on the way says that it forbids the connection.
    #[error("connect to {address}{}", by(*icmp, "the firewall", "forbids it"))]
    Prohibited {
        /// The address.
        address: SocketAddr,
        /// The firewall's message.
        icmp: Option<Icmp>,
        /// The kernel's error.
        source: Option<Arc<io::Error>>,
    },
    /// `ECONNRESET`, or gone again before it could be used.
    #[error("connect to {address}")]
    Reset {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// No answer within the limit (or within the kernel's own, `ETIMEDOUT`). A firewall of this host that drops silently
    /// looks the same: the kernel counts a segment as sent before any firewall sees it.
    #[error("no SYN-ACK from {address} in {}{}", Brief(*after), counted(*syns))]
    TimedOut {
        /// The address.
        address: SocketAddr,
        /// Since its SYN.
        after: Duration,
        /// How many SYNs were sent, where the kernel tells.
        syns: Option<u32>,
    },
    /// A router says that it has no route to the network.
    #[error("connect to {address}{}", by(*icmp, "the router", "has no route to that network"))]
    NetUnreachable {
        /// The address.
        address: SocketAddr,
        /// The router's message.
        icmp: Option<Icmp>,
        /// The kernel's error.
        source: Option<Arc<io::Error>>,
    },
    /// A router says that it cannot reach the host.
    #[error("connect to {address}{}", by(*icmp, "the router", "cannot reach that host"))]
    HostUnreachable {
        /// The address.
        address: SocketAddr,
        /// The router's message.
        icmp: Option<Icmp>,
        /// The kernel's error.
        source: Option<Arc<io::Error>>,
    },
    /// Somebody says that the host does not take TCP.
    #[error("connect to {address}{}", by(*icmp, "the device", "says that TCP is not taken"))]
    ProtoUnreachable {
        /// The address.
        address: SocketAddr,
        /// That message.
        icmp: Option<Icmp>,
        /// The kernel's error.
        source: Option<Arc<io::Error>>,
    },
    /// The packet went through more routers than it may: a loop.
    #[error("connect to {address}{}", by(Some(*icmp), "the router", "found the hop limit used up"))]
    TtlExceeded {
        /// The address.
        address: SocketAddr,
        /// The message of the router at which the limit was used up.
        icmp: Icmp,
    },
    /// Our own kernel says "host unreachable": the next hop, a gateway or the host itself, does not answer ARP, or neighbour
    /// discovery in IPv6.
    #[error("connect to {address}: the next hop does not answer {} ({icmp} from {}, our own address)", if address.is_ipv4() { "ARP" } else { "neighbour discovery" }, icmp.offender)]
    NeighbourDead {
        /// The address.
        address: SocketAddr,
        /// The kernel's message.
        icmp: Icmp,
    },
    /// A firewall of this host rejects it.
    #[error("connect to {address}: this host's own firewall forbids it ({icmp} from {}, our own address)", icmp.offender)]
    DeniedByFirewall {
        /// The address.
        address: SocketAddr,
        /// The firewall's message.
        icmp: Icmp,
    },
    /// `EACCES`, `EPERM`, and nothing left this host: its kernel forbids it, by a security module, a cgroup's program, or a
    /// route of type `prohibit`.
    #[error("connect to {address}: this host forbids it")]
    Denied {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// Unreachable, and nothing left this host: it has no route, or one of type `unreachable` or `blackhole`.
    #[error("connect to {address}: no route from this host")]
    NoRoute {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: Arc<io::Error>,
    },
    /// An address that no connection can be made to, or a zone that is no interface here.
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

/// How far an attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Nothing could be tried.
    Nowhere,
    /// Nothing left this host (as for IPv6 on a host without it): that says less than silence does.
    Host,
    /// No packet left the link.
    Link,
    /// It left, and nobody answered.
    Silence,
    /// Something on the way answered.
    Way,
    /// We lack what every further attempt needs: no attempt got further than that.
    Means,
    /// The host itself answered.
    Origin,
}

impl ConnectError {
    /// The address it is about.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Refused { address, .. }
            | Self::RefusedByDevice { address, .. }
            | Self::Prohibited { address, .. }
            | Self::Reset { address, .. }
            | Self::TimedOut { address, .. }
            | Self::NetUnreachable { address, .. }
            | Self::HostUnreachable { address, .. }
            | Self::ProtoUnreachable { address, .. }
            | Self::TtlExceeded { address, .. }
            | Self::NeighbourDead { address, .. }
            | Self::DeniedByFirewall { address, .. }
            | Self::Denied { address, .. }
            | Self::NoRoute { address, .. }
            | Self::AddressInvalid { address, .. }
            | Self::FamilyUnsupported { address, .. }
            | Self::NoPorts { address, .. }
            | Self::NoFds { address, .. }
            | Self::NoMemory { address, .. }
            | Self::Other { address, .. } => Some(*address),
            Self::NoAddresses => None,
        }
    }

    /// The ICMP message behind it.
    pub fn icmp(&self) -> Option<Icmp> {
        match self {
            Self::Refused { icmp, .. }
            | Self::Prohibited { icmp, .. }
            | Self::NetUnreachable { icmp, .. }
            | Self::HostUnreachable { icmp, .. }
            | Self::ProtoUnreachable { icmp, .. } => *icmp,
            Self::RefusedByDevice { icmp, .. }
            | Self::TtlExceeded { icmp, .. }
            | Self::NeighbourDead { icmp, .. }
            | Self::DeniedByFirewall { icmp, .. } => Some(*icmp),
            Self::Reset { .. }
            | Self::TimedOut { .. }
            | Self::Denied { .. }
            | Self::NoRoute { .. }
            | Self::AddressInvalid { .. }
            | Self::FamilyUnsupported { .. }
            | Self::NoPorts { .. }
            | Self::NoFds { .. }
            | Self::NoMemory { .. }
            | Self::Other { .. }
            | Self::NoAddresses => None,
        }
    }

    /// What is told of several attempts, by the greatest: how far it got, then how much it says.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        match self {
            Self::Reset { .. } => (Reach::Origin, 1),
            Self::Refused { .. } | Self::ProtoUnreachable { .. } => (Reach::Origin, 0),
            Self::NoPorts { .. } | Self::NoFds { .. } | Self::NoMemory { .. } => (Reach::Means, 0),
            Self::Prohibited { .. } | Self::RefusedByDevice { .. } => (Reach::Way, 3),
            Self::TtlExceeded { .. } => (Reach::Way, 2),
            Self::HostUnreachable { .. } => (Reach::Way, 1),
            Self::NetUnreachable { .. } => (Reach::Way, 0),
            Self::TimedOut { .. } => (Reach::Silence, 1),
            Self::Other { .. } => (Reach::Silence, 0),
            Self::NeighbourDead { .. } => (Reach::Link, 0),
            Self::DeniedByFirewall { .. } => (Reach::Host, 2),
            Self::Denied { .. } => (Reach::Host, 1),
            Self::NoRoute { .. } => (Reach::Host, 0),
            Self::AddressInvalid { .. } => (Reach::Nowhere, 2),
            Self::FamilyUnsupported { .. } => (Reach::Nowhere, 1),
            Self::NoAddresses => (Reach::Nowhere, 0),
        }
    }

    /// Whether a name whose addresses got no further is worth being asked for anew: not where this host forbids the
    /// connection, or lacks what any other address needs as well.
    pub(super) fn is_worth_asking_anew(&self) -> bool {
        !matches!(
            self,
            Self::DeniedByFirewall { .. }
                | Self::Denied { .. }
                | Self::NoPorts { .. }
                | Self::NoFds { .. }
                | Self::NoMemory { .. }
        )
    }
}

fn by(icmp: Option<Icmp>, who: &str, does: &str) -> String {
    icmp.map_or_else(String::new, |icmp| {
        format!(": {who} at {} {does} ({icmp})", icmp.offender)
    })
}

fn counted(syns: Option<u32>) -> String {
    match syns {
        None => String::new(),
        Some(1) => " (1 SYN)".to_owned(),
        Some(syns) => format!(" ({syns} SYNs)"),
    }
}
