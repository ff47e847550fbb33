//! Which name server is asked for a name, and what its answers are worth.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;

use super::{Policy, RouteId, RouteSpec};

/// The `dns` section of a policy, but for its pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// The ways of asking by [`AskId`]; the first is the system's.
    pub asks: Vec<Ask>,
    /// Who is asked where nobody else is.
    pub default: AskId,
    /// Who is asked for a name and all below it.
    pub domains: Vec<(Arc<str>, AskId)>,
    /// Answers with an address in here are forged.
    pub bogus: Vec<IpNet>,
    /// Which families are asked for, and which comes first.
    pub prefer: Prefer,
    /// For how long answers are remembered.
    pub cache: Cache,
}

/// The place of a way of asking in [`Dns::asks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AskId(pub usize);

impl AskId {
    /// The name servers of the system, which are always there.
    pub const SYSTEM: Self = Self(0);
}

/// A way of asking: whom, and through which route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whom; the system's name servers where missing.
    pub server: Option<Arc<Server>>,
    /// The route that connections to it take; straight where missing.
    pub via: Option<RouteId>,
}

/// A name server, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name in the policy.
    pub name: Arc<str>,
    /// Where it is: at least one address. They are asked by how well they answered lately.
    pub addresses: Vec<SocketAddr>,
    /// How it is spoken to.
    pub transport: Transport,
}

/// How a name server is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By UDP, and by TCP where an answer is truncated (RFC 7766, section 5).
    Udp,
    /// By TCP alone.
    Tcp,
    /// By TLS (RFC 7858).
    Tls(Secure),
    /// By HTTP/2 over TLS (RFC 8484).
    Https {
        /// Its name and trust.
        secure: Secure,
        /// The path of its URL.
        path: Arc<str>,
    },
}

/// Who a name server must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secure {
    /// The name, or address, that its certificate must stand for.
    pub name: Arc<str>,
    /// The certificates that its chain must end at; those that the system trusts where missing.
    pub roots: Option<Arc<[CertificateDer<'static>]>>,
}

/// Which families of addresses are asked for, and which is tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// Both, IPv6 first (RFC 8305, section 4).
    #[default]
    Happy,
    /// Both, IPv4 first.
    V4,
    /// Both, IPv6 first.
    V6,
    /// IPv4 alone.
    V4Only,
    /// IPv6 alone.
    V6Only,
}

impl Prefer {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Happy => "happy",
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::V4Only => "v4_only",
            Self::V6Only => "v6_only",
        }
    }

    /// Whether addresses of a family are of any use.
    pub fn wants(self, ip: IpAddr) -> bool {
        match self {
            Self::Happy | Self::V4 | Self::V6 => true,
            Self::V4Only => ip.is_ipv4(),
            Self::V6Only => ip.is_ipv6(),
        }
    }

    /// Whether IPv4 comes first.
    pub fn is_v4_first(self) -> bool {
        matches!(self, Self::V4 | Self::V4Only)
    }
}

/// For how long answers are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// At least so long, whatever an answer says.
    pub min_ttl: Duration,
    /// At most so long, whatever an answer says.
    pub max_ttl: Duration,
    /// That a name, or its addresses, do not exist: at most so long. A denial that does not say how long it holds is
    /// not remembered (RFC 2308, section 5).
    pub negative_ttl: Duration,
    /// How many answers of one server; 0 remembers none.
    pub entries: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_hours(1),
            negative_ttl: Duration::from_mins(5),
            entries: 4096,
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            asks: vec![Ask {
                server: None,
                via: None,
            }],
            default: AskId::SYSTEM,
            domains: Vec::new(),
            bogus: Vec::new(),
            prefer: Prefer::default(),
            cache: Cache::default(),
        }
    }
}

/// Why a name server is asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why<'d> {
    /// A rule says so.
    Rule,
    /// The name is this one, or below it.
    Domain(&'d str),
    /// Nothing else is said.
    Default,
}

impl Dns {
    /// The way of asking behind an id.
    pub fn ask(&self, id: AskId) -> &Ask {
        #[expect(
            clippy::indexing_slicing,
            reason = "ids are made together with the list"
        )]
        &self.asks[id.0]
    }

    /// Who is asked for a target's name, and why: what a rule says comes first, then the longest domain that fits.
    pub fn choose(&self, name: &str, rule: Option<AskId>) -> (AskId, Why<'_>) {
        if let Some(id) = rule {
            return (id, Why::Rule);
        }
        let fits = self.domains.iter().filter(|(domain, _)| {
            name.strip_suffix(&**domain)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        match fits.max_by_key(|(domain, _)| domain.len()) {
            Some((domain, id)) => (*id, Why::Domain(domain)),
            None => (self.default, Why::Default),
        }
    }

    /// Who is asked for an upstream's name. Nobody who is reached by a route: it might lead through that upstream.
    pub fn choose_for_upstream(&self, name: &str) -> AskId {
        let (id, _) = self.choose(name, None);
        if self.ask(id).via.is_some() {
            return AskId::SYSTEM;
        }
        id
    }

    /// The first address that is forged, with the range that says so.
    pub fn forged(&self, addresses: &[IpAddr]) -> Option<(IpAddr, IpNet)> {
        addresses.iter().find_map(|ip| {
            let net = self.bogus.iter().find(|net| net.contains(ip))?;
            Some((*ip, *net))
        })
    }
}

impl Policy {
    /// The pinned addresses of a name (`dns.hosts`): its own, or else those of the nearest `*.` above it.
    pub fn pinned(&self, name: &str) -> Option<&[IpAddr]> {
        let of = |name: &str| {
            let found = self.pins.binary_search_by(|(pin, _)| (**pin).cmp(name));
            Some(&*self.pins.get(found.ok()?)?.1)
        };
        // A star comes before all that a name may begin with.
        let has_wide = self
            .pins
            .first()
            .is_some_and(|(pin, _)| pin.starts_with('*'));
        let mut rest = name;
        of(name).or_else(|| {
            while has_wide && let Some((_, parent)) = rest.split_once('.') {
                if let Some(pinned) = of(&format!("*.{parent}")) {
                    return Some(pinned);
                }
                rest = parent;
            }
            None
        })
    }

    /// Gives a name addresses; `*.name` stands for all names below.
    pub fn pin(&mut self, name: Arc<str>, addresses: Vec<IpAddr>) {
        self.pins.push((name, addresses));
        self.pins.sort();
    }
}

impl Policy {
    /// Whether a route may dial the target itself, and so needs its addresses.
    pub fn may_dial_target(&self, id: RouteId) -> bool {
        match &self.route(id).spec {
            // A script may say DIRECT.
            RouteSpec::Direct | RouteSpec::Pac(_) => true,
            RouteSpec::Upstream { .. } => false,
            RouteSpec::Chain(chain) => {
                let mut hops = chain.hops.iter();
                hops.any(|hop| self.may_dial_target(hop.route))
            }
            RouteSpec::Faulty { inner, .. } => self.may_dial_target(*inner),
            RouteSpec::Group(group) => {
                let mut members = group.members.iter();
                members.any(|member| self.may_dial_target(member.route))
            }
        }
    }
}

impl Transport {
    /// The word in records.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
            Self::Https { .. } => "https",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_domain_that_fits_says_who_is_asked() {
        let dns = Dns {
            domains: vec![
                ("corp.example".into(), AskId(1)),
                ("lab.corp.example".into(), AskId(2)),
            ],
            default: AskId(3),
            ..Dns::default()
        };
        for (name, rule, expected) in [
            ("corp.example", None, (1, Why::Domain("corp.example"))),
            ("git.corp.example", None, (1, Why::Domain("corp.example"))),
            (
                "lab.corp.example",
                None,
                (2, Why::Domain("lab.corp.example")),
            ),
            (
                "a.lab.corp.example",
                None,
                (2, Why::Domain("lab.corp.example")),
            ),
            ("notcorp.example", None, (3, Why::Default)),
            ("example", None, (3, Why::Default)),
            ("git.corp.example", Some(AskId(0)), (0, Why::Rule)),
        ] {
            let (id, why) = dns.choose(name, rule);
            assert_eq!((id.0, why), expected, "{name}");
        }
    }

    #[test]
    fn a_server_behind_a_route_is_not_asked_for_the_way_to_it() {
        let server = |via| Ask { server: None, via };
        let mut dns = Dns::default();
        dns.asks.extend([server(None), server(Some(RouteId(1)))]);
        dns.domains = vec![("corp.example".into(), AskId(1))];
        dns.default = AskId(2);
        assert_eq!(dns.choose_for_upstream("proxy.corp.example"), AskId(1));
        assert_eq!(dns.choose_for_upstream("proxy.example"), AskId::SYSTEM);
    }
}
