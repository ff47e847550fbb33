//! The checks in front of the rules: which addresses may be dialled at all.
//!
//! An [`Admitted`] address is the only thing that `net` connects to, and only a [`Guards`] makes one.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Ports;
use super::flight::SniMismatch;
use crate::client::Client;
use crate::target::{Host, Target, canonical_ip, leads_to};

/// The guards of a policy. Unspecified, multicast and reserved addresses, and our own listeners,
/// are refused whatever stands here, in report mode too.
#[derive(Clone, Debug)]
pub struct Guards {
    /// Whether refusals are only noted (`mode: report`), but for those that nothing opens.
    pub report: bool,
    /// Loopback addresses.
    pub loopback: Loopback,
    /// Whether link-local and cloud-metadata addresses and names are refused.
    pub block_link_local: bool,
    /// Whether private, carrier-grade NAT and unique-local addresses are refused.
    pub block_private: bool,
    /// The ports that CONNECT may name; `None` for any.
    pub connect_ports: Option<Ports>,
    /// Tunnels whose SNI is another name than their target. Not asked with the others: it hangs on the first flight.
    pub sni_mismatch: SniMismatch,
    /// What is let through all the same.
    pub except: Vec<Exception>,
    /// The addresses that we listen on.
    pub own: Vec<SocketAddr>,
}

/// What to do with loopback targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    /// Allowed for clients on this machine.
    Auto,
    /// Allowed for all.
    Allow,
    /// Refused for all.
    Block,
}

/// An entry of `guards.except`.
#[derive(Clone, Debug)]
pub struct Exception {
    /// The addresses.
    pub net: IpNet,
    /// The ports; `None` for any.
    pub ports: Option<Ports>,
}

/// An address that the guards let through, and a guard in report mode that would not have.
#[derive(Clone, Copy, Debug)]
pub struct Admitted {
    address: SocketAddr,
    would: Option<Guard>,
}

/// The name of a guard, as in a record's `egress.rule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// `guards.loopback`
    Loopback,
    /// `guards.link_local`
    LinkLocal,
    /// `guards.private`
    Private,
    /// `guards.connect_ports`
    ConnectPorts,
    /// `guards.special`: unspecified, multicast, broadcast and reserved addresses.
    Special,
    /// `guards.own`: our own listeners.
    Own,
    /// `guards.sni_mismatch`
    SniMismatch,
}

impl Guard {
    /// The name in records and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "guards.loopback",
            Self::LinkLocal => "guards.link_local",
            Self::Private => "guards.private",
            Self::ConnectPorts => "guards.connect_ports",
            Self::Special => "guards.special",
            Self::Own => "guards.own",
            Self::SniMismatch => "guards.sni_mismatch",
        }
    }

    /// Whether no exception opens it, and report mode does not either.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Own | Self::Special)
    }
}

impl Admitted {
    /// The address.
    pub fn address(self) -> SocketAddr {
        self.address
    }

    /// The guard in report mode that would have refused it.
    pub fn would(self) -> Option<Guard> {
        self.would
    }
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            report: false,
            loopback: Loopback::Auto,
            block_link_local: true,
            block_private: false,
            connect_ports: None,
            sni_mismatch: SniMismatch::Allow,
            except: Vec::new(),
            own: Vec::new(),
        }
    }
}

/// Cloud-metadata addresses outside link-local ranges.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Names that cloud providers resolve to their metadata service.
const METADATA_NAMES: [&str; 3] = [
    "metadata.google.internal",
    "metadata.goog",
    "instance-data.ec2.internal",
];

impl Guards {
    /// Judges an address that is about to be dialled for `client`. `is_here` says whether one is this machine's, and is asked
    /// only where that matters.
    pub fn admit(
        &self,
        address: SocketAddr,
        client: &Client,
        is_here: fn(IpAddr) -> bool,
    ) -> Result<Admitted, Guard> {
        let ip = canonical_ip(address.ip());
        let address = match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
            IpAddr::V6(_) => address,
        };
        match self.objection(ip, address.port(), client, is_here) {
            None => Ok(Admitted {
                address,
                would: None,
            }),
            Some(guard) if self.report && !guard.is_final() => Ok(Admitted {
                address,
                would: Some(guard),
            }),
            Some(guard) => Err(guard),
        }
    }

    /// Judges the address of an upstream: whoever wrote the policy named it, so only our own
    /// listeners and what is no host's address are refused.
    pub fn admit_upstream(
        &self,
        address: SocketAddr,
        client: &Client,
        is_here: fn(IpAddr) -> bool,
    ) -> Result<Admitted, Guard> {
        let ip = canonical_ip(address.ip());
        if reached(ip).any(|ip| self.is_own(ip, address.port(), client, is_here)) {
            return Err(Guard::Own);
        }
        if reached(ip).any(is_special) {
            return Err(Guard::Special);
        }
        Ok(Admitted {
            address: SocketAddr::new(ip, address.port()),
            would: None,
        })
    }

    /// Whether a target is an address that leads to us if it is this machine's.
    pub fn asks_whether_here(&self, target: &Target) -> bool {
        target.host.name().is_none() && self.hears_all(target.port)
    }

    /// Judges what can be judged of a target before any lookup: literals, which may be this machine's, and metadata names.
    pub(crate) fn object_to(
        &self,
        target: &Target,
        is_connect: bool,
        client: &Client,
        is_here: bool,
    ) -> Option<Guard> {
        let is_here = |_| is_here;
        let objection = match &target.host {
            Host::Ip(ip) => self.objection(*ip, target.port, client, is_here),
            Host::Name(name) if self.block_link_local && METADATA_NAMES.contains(&&**name) => {
                Some(Guard::LinkLocal)
            }
            // Such a name is this machine, whoever is asked (RFC 6761, section 6.3).
            Host::Name(name) if is_localhost(name) => self.objection(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                target.port,
                client,
                is_here,
            ),
            Host::Name(_) => None,
        };
        objection.or_else(|| match &self.connect_ports {
            Some(ports) if is_connect && !ports.contains(target.port) => Some(Guard::ConnectPorts),
            _ => None,
        })
    }

    fn objection(
        &self,
        ip: IpAddr,
        port: u16,
        client: &Client,
        is_here: impl Fn(IpAddr) -> bool,
    ) -> Option<Guard> {
        if reached(ip).any(|ip| self.is_own(ip, port, client, &is_here)) {
            return Some(Guard::Own);
        }
        if reached(ip).any(is_special) {
            return Some(Guard::Special);
        }
        let excepted = |e: &Exception| {
            e.net.contains(&ip) && e.ports.as_ref().is_none_or(|ports| ports.contains(port))
        };
        if self.except.iter().any(excepted) {
            return None;
        }
        reached(ip).find_map(|ip| self.classify(ip, client))
    }

    fn classify(&self, ip: IpAddr, client: &Client) -> Option<Guard> {
        if ip.is_loopback() {
            let allowed = match self.loopback {
                Loopback::Auto => client.is_loopback(),
                Loopback::Allow => true,
                Loopback::Block => false,
            };
            return (!allowed).then_some(Guard::Loopback);
        }
        if is_link_local(ip) || METADATA.contains(&ip) {
            return self.block_link_local.then_some(Guard::LinkLocal);
        }
        (self.block_private && is_private(ip)).then_some(Guard::Private)
    }

    /// Whether a dial would reach one of our own listeners. A wildcard listener is reached at every address of this machine,
    /// and at the one that this client came in by, which another may have passed on.
    fn is_own(
        &self,
        ip: IpAddr,
        port: u16,
        client: &Client,
        is_here: impl Fn(IpAddr) -> bool,
    ) -> bool {
        let mut own = self.own.iter().filter(|own| own.port() == port);
        own.any(|own| leads_to(ip, own.ip()))
            || self.hears_all(port) && (ip == canonical_ip(client.local.ip()) || is_here(ip))
    }

    /// Whether a listener of ours on that port hears what comes to any address.
    fn hears_all(&self, port: u16) -> bool {
        let is_wildcard = |own: &SocketAddr| canonical_ip(own.ip()).is_unspecified();
        self.own
            .iter()
            .any(|own| own.port() == port && is_wildcard(own))
    }
}

/// Whether a name is this machine by its form (RFC 6761, section 6.3).
pub fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// Unspecified, multicast, broadcast and reserved addresses.
const SPECIAL: [IpNet; 4] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        8,
    )),
];

fn is_special(ip: IpAddr) -> bool {
    SPECIAL.iter().any(|net| net.contains(&ip))
}

/// Whether all of a network is refused, whatever a policy says.
pub fn is_never_admitted(net: IpNet) -> bool {
    SPECIAL.iter().any(|special| special.contains(&net))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        // fe80::/10, and the site-local fec0::/10 that it replaced.
        IpAddr::V6(v6) => v6.segments()[0] & 0xff80 == 0xfe80,
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            v4.is_private()
                || a == 100 && (b & 0xc0) == 64        // carrier-grade NAT (RFC 6598)
                || a == 198 && (b & 0xfe) == 18        // benchmarking (RFC 2544)
                || (a, b, c) == (192, 0, 0) // protocol assignments (RFC 6890)
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// The addresses that a connection to one may reach: itself, and an IPv4 one that it carries. It is judged as both.
pub fn reached(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let carried = embedded_ipv4(ip).map(IpAddr::V4);
    [Some(ip), carried].into_iter().flatten()
}

/// The IPv4 address inside a NAT64, 6to4, Teredo, IPv4-compatible or ISATAP address.
fn embedded_ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return None };
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(v4(high, low)), // ::a.b.c.d
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),      // RFC 6052
        [0x64, 0xff9b, 1, _, _, _, high, low] => Some(v4(high, low)),      // RFC 8215
        [0x2002, high, low, ..] => Some(v4(high, low)),                    // 6to4
        [0x2001, 0, _, _, _, _, high, low] => Some(v4(!high, !low)),       // Teredo: inverted
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(v4(high, low)), // ISATAP
        _ => None,
    }
}
