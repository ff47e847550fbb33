//! The checks in front of the rules: which addresses may be dialled at all.
//!
//! An [`Admitted`] address is the only thing that `net` connects to, and only a [`Guards`] makes one.

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
    /// Judges an address that is about to be dialled for `client`.
    pub fn admit(&self, address: SocketAddr, client: &Client) -> Result<Admitted, Guard> {
        let ip = canonical_ip(address.ip());
        let address = match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
            IpAddr::V6(_) => address,
        };
        match self.objection(ip, address.port(), client) {
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
    pub fn admit_upstream(&self, address: SocketAddr, client: &Client) -> Result<Admitted, Guard> {
        let ip = canonical_ip(address.ip());
        if self.is_own(ip, address.port(), client) {
            return Err(Guard::Own);
        }
        if is_special(ip) {
            return Err(Guard::Special);
        }
        Ok(Admitted {
            address: SocketAddr::new(ip, address.port()),
            would: None,
        })
    }

    /// Judges what can be judged of a target before any lookup: literals and metadata names.
    pub(crate) fn object_to(
        &self,
        target: &Target,
        is_connect: bool,
        client: &Client,
    ) -> Option<Guard> {
        let objection = match &target.host {
            Host::Ip(ip) => self.objection(*ip, target.port, client),
            Host::Name(name) if self.block_link_local && METADATA_NAMES.contains(&&**name) => {
                Some(Guard::LinkLocal)
            }
            // Such a name is this machine, whoever is asked (RFC 6761, section 6.3).
            Host::Name(name) if is_localhost(name) => {
                self.objection(IpAddr::V4(Ipv4Addr::LOCALHOST), target.port, client)
            }
            Host::Name(_) => None,
        };
        objection.or_else(|| match &self.connect_ports {
            Some(ports) if is_connect && !ports.contains(target.port) => Some(Guard::ConnectPorts),
            _ => None,
        })
    }

    fn objection(&self, ip: IpAddr, port: u16, client: &Client) -> Option<Guard> {
        if self.is_own(ip, port, client) {
            return Some(Guard::Own);
        }
        // An IPv6 address that carries an IPv4 one reaches that one: it is judged as both.
        let carried = embedded_ipv4(ip).map(IpAddr::V4);
        let judged = || [Some(ip), carried].into_iter().flatten();
        if judged().any(is_special) {
            return Some(Guard::Special);
        }
        let excepted = |e: &Exception| {
            e.net.contains(&ip) && e.ports.as_ref().is_none_or(|ports| ports.contains(port))
        };
        if self.except.iter().any(excepted) {
            return None;
        }
        judged().find_map(|ip| self.classify(ip, client))
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

    /// Whether a dial would reach one of our own listeners. A wildcard listener is reached also at the address this client
    /// came in by.
    fn is_own(&self, ip: IpAddr, port: u16, client: &Client) -> bool {
        self.own.iter().filter(|own| own.port() == port).any(|own| {
            let came_in = || ip == canonical_ip(client.local.ip());
            leads_to(ip, own.ip()) || own.ip().is_unspecified() && came_in()
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, local: &str) -> Client {
        Client {
            peer: peer.parse().unwrap(),
            local: local.parse().unwrap(),
            listener: "proxy".into(),
        }
    }

    #[track_caller]
    fn check(guards: &Guards, client: &Client, ip: &str, expected: Option<Guard>) {
        let address = SocketAddr::new(ip.parse().unwrap(), 443);
        assert_eq!(guards.admit(address, client).err(), expected, "{ip}");
    }

    #[test]
    fn every_block_is_judged_at_both_edges() {
        let far = client("192.0.2.9:999", "192.0.2.1:3128");
        let guards = Guards {
            block_private: true,
            ..Guards::default()
        };
        for (ip, guard) in [
            ("0.0.0.0", Some(Guard::Special)),
            ("0.255.255.255", Some(Guard::Special)),
            ("1.0.0.0", None),
            ("9.255.255.255", None),
            ("10.0.0.0", Some(Guard::Private)),
            ("10.255.255.255", Some(Guard::Private)),
            ("11.0.0.0", None),
            ("100.63.255.255", None),
            ("100.64.0.0", Some(Guard::Private)),
            ("100.127.255.255", Some(Guard::Private)),
            ("100.128.0.0", None),
            ("100.100.100.200", Some(Guard::LinkLocal)),
            ("126.255.255.255", None),
            ("127.0.0.0", Some(Guard::Loopback)),
            ("127.255.255.255", Some(Guard::Loopback)),
            ("128.0.0.0", None),
            ("168.63.129.16", Some(Guard::LinkLocal)),
            ("169.253.255.255", None),
            ("169.254.0.0", Some(Guard::LinkLocal)),
            ("169.254.255.255", Some(Guard::LinkLocal)),
            ("169.255.0.0", None),
            ("172.15.255.255", None),
            ("172.16.0.0", Some(Guard::Private)),
            ("172.31.255.255", Some(Guard::Private)),
            ("172.32.0.0", None),
            ("192.0.0.0", Some(Guard::Private)),
            ("192.0.2.1", None),
            ("192.168.0.0", Some(Guard::Private)),
            ("192.169.0.0", None),
            ("198.18.0.0", Some(Guard::Private)),
            ("198.20.0.0", None),
            ("223.255.255.255", None),
            ("224.0.0.0", Some(Guard::Special)),
            ("255.255.255.255", Some(Guard::Special)),
            ("::", Some(Guard::Special)),
            ("::1", Some(Guard::Loopback)),
            ("fe80::1", Some(Guard::LinkLocal)),
            ("febf::1", Some(Guard::LinkLocal)),
            ("fec0::1", Some(Guard::LinkLocal)),
            ("fc00::1", Some(Guard::Private)),
            ("fdff::1", Some(Guard::Private)),
            ("fd00:ec2::254", Some(Guard::LinkLocal)),
            ("ff02::1", Some(Guard::Special)),
            ("2001:db8::1", None),
        ] {
            check(&guards, &far, ip, guard);
        }
    }

    #[test]
    fn an_embedded_ipv4_address_is_judged_as_itself() {
        let far = client("192.0.2.9:999", "192.0.2.1:3128");
        let guards = Guards::default();
        for ip in [
            "::ffff:127.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::1",
            "2001:0:1:2:3:4:80ff:fffe",
            "2001:db8::5efe:7f00:1",
        ] {
            check(&guards, &far, ip, Some(Guard::Loopback));
        }
        check(&guards, &far, "64:ff9b::a9fe:a9fe", Some(Guard::LinkLocal));
        check(&guards, &far, "64:ff9b::c000:201", None);
    }

    #[test]
    fn loopback_is_for_clients_on_this_machine() {
        let near = client("127.0.0.1:999", "127.0.0.1:3128");
        let mapped = client("[::ffff:127.0.0.1]:999", "[::ffff:127.0.0.1]:3128");
        let through_bridge = client("172.17.0.2:999", "172.17.0.1:3128");
        let guards = Guards::default();
        check(&guards, &near, "127.0.0.1", None);
        check(&guards, &mapped, "::1", None);
        check(&guards, &through_bridge, "127.0.0.1", Some(Guard::Loopback));
        check(
            &Guards {
                loopback: Loopback::Allow,
                ..Guards::default()
            },
            &through_bridge,
            "127.0.0.1",
            None,
        );
        check(
            &Guards {
                loopback: Loopback::Block,
                ..Guards::default()
            },
            &near,
            "127.0.0.1",
            Some(Guard::Loopback),
        );
    }

    #[test]
    fn our_own_listeners_are_a_loop_even_in_report_mode() {
        let near = client("127.0.0.1:999", "127.0.0.1:3128");
        let own = |own: &str| Guards {
            own: vec![own.parse().unwrap()],
            report: true,
            ..Guards::default()
        };
        let address = "127.0.0.1:3128".parse().unwrap();
        assert_eq!(
            own("127.0.0.1:3128").admit(address, &near).err(),
            Some(Guard::Own)
        );
        assert_eq!(
            own("0.0.0.0:3128").admit(address, &near).err(),
            Some(Guard::Own)
        );
        assert_eq!(
            own("[::]:3128").admit_upstream(address, &near).err(),
            Some(Guard::Own)
        );
        assert!(own("127.0.0.1:3129").admit(address, &near).is_ok());
        // The unspecified address is loopback.
        for (dialled, listener, is_own) in [
            ("0.0.0.0:3128", "127.0.0.1:3128", true),
            ("0.0.0.0:3128", "0.0.0.0:3128", true),
            ("[::]:3128", "[::1]:3128", true),
            ("[::]:3128", "0.0.0.0:3128", true),
            ("0.0.0.0:3128", "192.0.2.1:3128", false),
        ] {
            let guard = if is_own { Guard::Own } else { Guard::Special };
            let refused = own(listener).admit(dialled.parse().unwrap(), &near);
            assert_eq!(refused.err(), Some(guard), "{dialled} {listener}");
        }
    }

    #[test]
    fn what_is_no_hosts_address_is_refused_whatever_the_policy_says() {
        let near = client("127.0.0.1:999", "127.0.0.1:3128");
        let guards = Guards {
            report: true,
            except: ["0.0.0.0/0", "::/0"]
                .map(|net| Exception {
                    net: net.parse().unwrap(),
                    ports: None,
                })
                .into(),
            ..Guards::default()
        };
        for ip in [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
            "64:ff9b::",
        ] {
            check(&guards, &near, ip, Some(Guard::Special));
        }
        check(&guards, &near, "169.254.169.254", None);
    }

    #[test]
    fn report_mode_admits_and_says_who_would_not() {
        let near = client("127.0.0.1:999", "127.0.0.1:3128");
        let guards = Guards {
            report: true,
            ..Guards::default()
        };
        let admitted = guards
            .admit("169.254.169.254:80".parse().unwrap(), &near)
            .unwrap();
        assert_eq!(admitted.would(), Some(Guard::LinkLocal));
    }

    #[test]
    fn an_exception_opens_an_address_for_its_ports() {
        let near = client("127.0.0.1:999", "127.0.0.1:3128");
        let net = "169.254.1.9/32".parse().unwrap();
        let guards = Guards {
            except: vec![Exception {
                net,
                ports: Some(Ports::from_iter([80..=80])),
            }],
            ..Guards::default()
        };
        assert!(
            guards
                .admit("169.254.1.9:80".parse().unwrap(), &near)
                .is_ok()
        );
        assert_eq!(
            guards.admit("169.254.1.9:81".parse().unwrap(), &near).err(),
            Some(Guard::LinkLocal)
        );
    }

    #[test]
    fn metadata_names_are_known_before_any_lookup() {
        let near = client("127.0.0.1:999", "127.0.0.1:3128");
        let target = Target::from_authority("Metadata.Google.Internal.:80").unwrap();
        assert_eq!(
            Guards::default().object_to(&target, true, &near),
            Some(Guard::LinkLocal)
        );
        let far = client("192.0.2.9:999", "192.0.2.1:3128");
        let target = Target::from_authority("App.Localhost:80").unwrap();
        assert_eq!(Guards::default().object_to(&target, true, &near), None);
        assert_eq!(
            Guards::default().object_to(&target, true, &far),
            Some(Guard::Loopback)
        );
    }
}
