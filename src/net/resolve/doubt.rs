//! Answers that no name server should give for a public name.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::facts::Extended;
use crate::target::canonical_ip;

/// Why an answer is not to be believed. It is told only where the answer's addresses could not be used: some are odd and
/// fine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The server said that its policy made the answer (RFC 8914).
    Blocked(Extended),
    /// Another answer, with other data, came to the same question.
    Contested,
    /// An address in `2001::/32` (Teredo): no public server has one, and forged answers do.
    Forged(IpAddr),
    /// Only addresses that no public host can have; this is the first.
    Bogon(IpAddr),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked(ede) => write!(f, "the name server made its answer up, {ede}"),
            Self::Contested => f.write_str("two different answers came by DNS"),
            Self::Forged(ip) => write!(f, "{ip} by DNS is as forged answers are"),
            Self::Bogon(ip) => write!(f, "{ip} by DNS is no public host"),
        }
    }
}

impl Doubt {
    /// What is odd in the addresses themselves.
    pub(super) fn of_addresses(name: &str, addresses: &[IpAddr]) -> Option<Self> {
        if let Some(forged) = addresses.iter().find(|ip| is_teredo(**ip)) {
            return Some(Self::Forged(*forged));
        }
        let first = *addresses.first()?;
        (is_public(name) && addresses.iter().all(|ip| is_bogon(*ip))).then_some(Self::Bogon(first))
    }
}

/// Whether an address is of the Teredo prefix (RFC 4380, section 2.6).
pub fn is_teredo(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.segments().starts_with(&[0x2001, 0]))
}

/// Whether no host of the public network can have an address. Private ranges are no sign of anything: companies have them.
fn is_bogon(ip: IpAddr) -> bool {
    match canonical_ip(ip) {
        // "This network", loopback (127.0.53.53, ICANN's sign of a name collision, with it), multicast, reserved.
        IpAddr::V4(v4) => matches!(v4.octets(), [0 | 127 | 224..=255, ..]),
        IpAddr::V6(v6) => v6.is_loopback() || v6 == Ipv6Addr::UNSPECIFIED || v6.is_multicast(),
    }
}

/// The top of names that never are public (RFC 6761, 6762, 8375, 9476; `internal` by ICANN), and those that networks use
/// as if it were so.
const NOT_PUBLIC: [&str; 13] = [
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "test",
    "invalid",
    "alt",
    "onion",
];

fn is_public(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let top = name.rsplit_once('.').map(|(_, top)| top);
    top.is_some_and(|top| !NOT_PUBLIC.contains(&top)) && !name.ends_with("home.arpa")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, addresses: &str, expected: Option<&str>) {
        let addresses: Vec<IpAddr> = addresses.split(' ').map(|ip| ip.parse().unwrap()).collect();
        let doubt = Doubt::of_addresses(name, &addresses).map(|doubt| match doubt {
            Doubt::Forged(ip) => format!("forged {ip}"),
            Doubt::Bogon(ip) => format!("bogon {ip}"),
            Doubt::Blocked(_) | Doubt::Contested => unreachable!("it is of no address"),
        });
        assert_eq!(doubt.as_deref(), expected, "{name} {addresses:?}");
    }

    #[test]
    fn an_answer_of_bogons_only_is_doubted() {
        for ip in [
            "0.0.0.0",
            "127.0.0.1",
            "127.0.53.53",
            "240.0.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "ff02::1",
            "::ffff:127.0.0.1",
        ] {
            check("a.example", ip, Some(&format!("bogon {ip}")));
        }
        for ip in [
            "10.0.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "fd00::1",
            "169.254.1.1",
            "192.0.2.1",
        ] {
            check("a.example", ip, None);
        }
        check("a.example", "0.0.0.0 127.0.0.1", Some("bogon 0.0.0.0"));
        check("a.example", "0.0.0.0 192.0.2.1", None);
    }

    #[test]
    fn a_name_of_ones_own_network_may_be_anywhere() {
        for name in [
            "printer",
            "a.test",
            "a.lan",
            "a.home.arpa",
            "a.internal",
            "git.corp",
        ] {
            check(name, "127.0.0.1", None);
        }
    }

    #[test]
    fn a_teredo_address_is_forged() {
        check(
            "a.example",
            "2001::1f0d:5e20",
            Some("forged 2001::1f0d:5e20"),
        );
        check("a.example", "2001::1 192.0.2.1", Some("forged 2001::1"));
        check("a.example", "2001:db8::1", None);
    }
}
