//! The PROXY protocol's header: tells an upstream the client's address, as the first bytes of a connection.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ppp::v2::{Builder, Command, Protocol, Version};

use crate::policy::upstream::ProxyProtocol;

/// The header for a client at `client` that reached us at `local`.
///
/// # Errors
/// None that can happen: a header of two addresses always fits.
pub fn header(
    version: ProxyProtocol,
    client: SocketAddr,
    local: SocketAddr,
) -> io::Result<Vec<u8>> {
    let (client, local) = same_family(client, local);
    match version {
        ProxyProtocol::V1 => Ok(ppp::v1::Addresses::from((client, local)).to_string().into()),
        ProxyProtocol::V2 => Builder::with_addresses(
            Version::Two | Command::Proxy,
            Protocol::Stream,
            (client, local),
        )
        .build(),
    }
}

/// Both in one family, as the header needs them: IPv4 is mapped where they differ.
fn same_family(one: SocketAddr, other: SocketAddr) -> (SocketAddr, SocketAddr) {
    if one.is_ipv4() == other.is_ipv4() {
        return (one, other);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(ip) => SocketAddr::new(Ipv6Addr::into(ip), address.port()),
    };
    (mapped(one), mapped(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_specification_has_them() {
        let of = |version, client: &str, local: &str| {
            header(version, client.parse().unwrap(), local.parse().unwrap()).unwrap()
        };
        assert_eq!(
            of(ProxyProtocol::V1, "192.0.2.1:4000", "192.0.2.2:3128"),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 3128\r\n"
        );
        assert_eq!(
            of(
                ProxyProtocol::V1,
                "[2001:db8::1]:4000",
                "[2001:db8::2]:3128"
            ),
            b"PROXY TCP6 2001:db8::1 2001:db8::2 4000 3128\r\n"
        );
        assert_eq!(
            of(ProxyProtocol::V2, "192.0.2.1:4000", "192.0.2.2:3128"),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x0f\xa0\x0c\x38"
        );
        let mixed = of(ProxyProtocol::V2, "192.0.2.1:4000", "[2001:db8::2]:3128");
        assert_eq!(mixed[12..16], *b"\x21\x21\x00\x24");
        assert_eq!(mixed.len(), 16 + 36);
    }
}
