//! Which addresses are this machine's.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::target::canonical_ip;

/// Whether a connection to an address stays on this machine. Asked anew each time: addresses come and go. Where nobody can
/// tell, it does.
pub fn is_here(ip: IpAddr) -> bool {
    let ip = canonical_ip(ip);
    let route = route_to(ip);
    if let Some(is_here) = said_by_route(&route) {
        return is_here;
    }
    let local = local_towards((ip, PORT).into());
    said_by_socket(ip, &local).unwrap_or_else(|| {
        tracing::warn!(%ip, ?route, socket = ?local, "whether this address is the machine's own could not be asked: taken as such");
        true
    })
}

/// The address that this host would reach `address` from: an address of its own it mostly reaches from that address itself.
pub(super) fn local_towards(address: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    Ok(socket.local_addr()?.ip())
}

/// For an address whose port does not matter: a UDP socket that is connected sends nothing.
pub(super) const PORT: u16 = 9;

/// The parts of a question (rtnetlink(7)), in bytes: a head, a route, and the head of its one attribute, the address.
const HEAD: u8 = 16;
const ROUTE: u8 = 12;
const ATTRIBUTE: u8 = 4;

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;

/// Where an answer says what it is, of what type the route is, and what an error is.
const KIND: usize = 4;
const ROUTE_TYPE: usize = HEAD as usize + 7;
const ERROR: usize = HEAD as usize;

/// Asks the kernel for the type of the route to an address. It knows those of all interfaces, and ranges that are routed to the
/// machine.
fn route_to(ip: IpAddr) -> io::Result<u8> {
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
    // The answer is there as soon as the question is taken.
    let mut answer = [0; (HEAD + ROUTE) as usize];
    socket.read_exact(&mut answer)?;
    route_of(&answer)
}

fn route_of(answer: &[u8]) -> io::Result<u8> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let of = |at: usize| answer.get(at..).ok_or_else(cut);
    let kind = u16::from_ne_bytes(*of(KIND)?.first_chunk().ok_or_else(cut)?);
    if i32::from(kind) == libc::NLMSG_ERROR {
        let code = i32::from_ne_bytes(*of(ERROR)?.first_chunk().ok_or_else(cut)?);
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    if kind != libc::RTM_NEWROUTE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    answer.get(ROUTE_TYPE).copied().ok_or_else(cut)
}

/// Whether an address is this machine's by its route. gVisor says of each that it leads to another machine.
fn said_by_route(route: &io::Result<u8>) -> Option<bool> {
    match route {
        Ok(libc::RTN_LOCAL) => Some(true),
        Ok(libc::RTN_BROADCAST | libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT) => Some(false),
        Err(error) if is_nowhere(error) => Some(false),
        Ok(_) | Err(_) => None,
    }
}

/// The same by the address that a socket got. Of several in one network that is the first.
fn said_by_socket(ip: IpAddr, local: &io::Result<IpAddr>) -> Option<bool> {
    match local {
        Ok(local) => Some(*local == ip),
        Err(error) => {
            // A black hole; a machine without IPv6.
            let is_none = matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
            );
            (is_none || is_nowhere(error)).then_some(false)
        }
    }
}

/// Whether an error says that no route leads to an address.
fn is_nowhere(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN)
    )
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
        }
        let loopback = route_to(Ipv4Addr::LOCALHOST.into());
        assert_eq!(loopback.unwrap(), libc::RTN_LOCAL);
    }

    #[test]
    fn only_an_answer_that_says_so_is_final() {
        let answer = |kind: u16, at: usize, rest: &[u8]| {
            let mut answer = [0; (HEAD + ROUTE) as usize];
            answer[KIND..][..2].copy_from_slice(&kind.to_ne_bytes());
            answer[at..][..rest.len()].copy_from_slice(rest);
            answer
        };
        let route = |kind| answer(libc::RTM_NEWROUTE, ROUTE_TYPE, &[kind]);
        let kind = u16::try_from(libc::NLMSG_ERROR).unwrap();
        let error = |code: i32| answer(kind, ERROR, &(-code).to_ne_bytes());
        for (answer, expected) in [
            (route(libc::RTN_LOCAL), Some(true)),
            (route(libc::RTN_UNICAST), None),
            (route(libc::RTN_BROADCAST), Some(false)),
            (route(libc::RTN_UNREACHABLE), Some(false)),
            (error(libc::ENETUNREACH), Some(false)),
            (error(libc::EHOSTUNREACH), Some(false)),
            (error(libc::EPERM), None),
            (error(libc::ENOBUFS), None),
            (error(i32::MAX), None),
            (error(0), None),
            (
                answer(libc::RTM_NEWADDR, ROUTE_TYPE, &[libc::RTN_LOCAL]),
                None,
            ),
        ] {
            assert_eq!(said_by_route(&route_of(&answer)), expected, "{answer:?}");
        }
        for length in 0..=ROUTE_TYPE {
            let cut = route_of(&route(libc::RTN_LOCAL)[..length]);
            assert_eq!(said_by_route(&cut), None, "{length}");
        }
    }

    #[test]
    fn a_socket_says_what_a_route_does_not() {
        let ip: IpAddr = [192, 0, 2, 5].into();
        let failed = |code| Err(io::Error::from_raw_os_error(code));
        for (local, expected) in [
            (Ok(ip), Some(true)),
            (Ok([192, 0, 2, 6].into()), Some(false)),
            (failed(libc::ENETUNREACH), Some(false)),
            (failed(libc::EINVAL), Some(false)),
            (failed(libc::EAFNOSUPPORT), Some(false)),
            (failed(libc::EMFILE), None),
            (failed(libc::ENFILE), None),
            (failed(libc::EPERM), None),
            (failed(libc::EACCES), None),
        ] {
            assert_eq!(said_by_socket(ip, &local), expected, "{local:?}");
        }
    }
}
