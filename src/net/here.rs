//! Which addresses are this machine's.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;

use socket2::{Domain, Protocol, Socket, Type};

use crate::target::canonical_ip;

/// Whether a connection to an address stays on this machine. Asked anew each time: addresses come and go.
pub fn is_here(ip: IpAddr) -> bool {
    let ip = canonical_ip(ip);
    is_routed_here(ip).unwrap_or_else(|error| {
        tracing::debug!(%error, "ask the kernel for a route");
        // Of several addresses in one network that one knows only the first.
        local_towards((ip, PORT).into()) == Some(ip)
    })
}

/// The address that this host would reach `address` from: an address of its own it mostly reaches from that address itself.
pub(super) fn local_towards(address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(address).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// For an address whose port does not matter: a UDP socket that is connected sends nothing.
pub(super) const PORT: u16 = 9;

/// The parts of a question (rtnetlink(7)), in bytes: a head, a route, and the head of its one attribute, the address.
const HEAD: u8 = 16;
const ROUTE: u8 = 12;
const ATTRIBUTE: u8 = 4;

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;

/// Where an answer says what it is, and of what type the route is.
const KIND: Range<usize> = 4..6;
const ROUTE_TYPE: usize = HEAD as usize + 7;

/// Asks the kernel for the route to an address. It knows those of all interfaces, and ranges that are routed to the machine.
fn is_routed_here(ip: IpAddr) -> io::Result<bool> {
    let (family, bits, octets) = match &ip {
        IpAddr::V4(v4) => (libc::AF_INET, 32, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, 128, v6.octets().to_vec()),
    };
    let attribute = ATTRIBUTE + bits / 8;
    let mut question = Vec::new();
    question.extend(u32::from(HEAD + ROUTE + attribute).to_ne_bytes());
    question.extend(libc::RTM_GETROUTE.to_ne_bytes());
    question.extend(REQUEST.to_ne_bytes());
    question.resize(HEAD.into(), 0);
    question.extend([u8::try_from(family).map_err(io::Error::other)?, bits]);
    question.resize((HEAD + ROUTE).into(), 0);
    question.extend(u16::from(attribute).to_ne_bytes());
    question.extend(libc::RTA_DST.to_ne_bytes());
    question.extend(octets);
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.nonblocking(),
        Some(Protocol::from(libc::NETLINK_ROUTE)),
    )?;
    socket.write_all(&question)?;
    // The answer is there as soon as the question is taken. Where there is no route, it is an error.
    let mut answer = [0; (HEAD + ROUTE) as usize];
    socket.read_exact(&mut answer)?;
    let is_route = answer.get(KIND) == Some(&libc::RTM_NEWROUTE.to_ne_bytes());
    Ok(is_route && answer.get(ROUTE_TYPE) == Some(&libc::RTN_LOCAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_told_from_others() {
        for (ip, is_ours) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::ffff:127.0.0.1", true),
            ("203.0.113.9", false),
            ("2001:db8::9", false),
        ] {
            let ip = ip.parse().unwrap();
            assert_eq!(is_here(ip), is_ours, "{ip}");
            assert_eq!(is_routed_here(canonical_ip(ip)).unwrap(), is_ours, "{ip}");
        }
    }
}
