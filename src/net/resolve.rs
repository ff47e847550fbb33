//! Names to addresses, by the hosts file and by name servers: those of the system, and those that a policy names.
//!
//! The system's files are looked at before each lookup, so that a VPN that comes or goes needs no restart.

mod aside;
mod ask;
mod doubt;
mod error;
mod facts;
mod files;
mod journal;
mod provider;
mod servers;
mod tap;
mod told;
mod way;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::RecordType;
use tokio::time::Instant;

use ask::{Asker, Missed};
use files::{Hosts, Watched, read_hosts};
use servers::{Maker, Servers};

use crate::policy::dns::{Ask, AskId, Dns, Prefer};
use crate::policy::guard::is_localhost;
use crate::policy::{Policy, RouteId};
use crate::tls::trust::Roots;

pub use doubt::{Doubt, is_teredo};
pub use error::{ResolveError, SecureError, Unresolved};
pub use facts::{Asked, Extended, Facts, Transport};
pub use provider::Boxed;
pub use way::Tunnel;

/// Looks up names. What it remembers, and its connections, are shared with those made [`Resolver::under`] another policy.
#[derive(Debug)]
pub struct Resolver {
    hosts: Arc<Watched<Hosts>>,
    /// By [`AskId`].
    servers: Vec<Servers>,
    dns: Dns,
    /// Whose `dns` that is.
    policy: Option<Arc<Policy>>,
    maker: Maker,
}

/// The addresses of a name.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// At least one; IPv6 first, each once.
    pub addresses: Vec<IpAddr>,
    /// Where they come from.
    pub source: Source,
    /// What else is known of the lookup.
    pub facts: Facts,
}

/// Who knew a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The hosts file, or the rule that localhost is this machine (RFC 6761, section 6.3).
    Hosts,
    /// A name server, or the memory of what one said.
    Dns,
}

impl Source {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Dns => "dns",
        }
    }
}

impl Resolver {
    /// The system's: `/etc/hosts` and `/etc/resolv.conf`.
    pub fn from_system() -> Self {
        let maker = Maker::default();
        let dns = Dns::default();
        Self {
            hosts: Arc::new(Watched::new("/etc/hosts", read_hosts)),
            servers: vec![maker.system(dns.cache)],
            dns,
            policy: None,
            maker,
        }
    }

    /// The hosts file and, as if they were the system's, these name servers, asked by UDP, and by TCP where that does not
    /// suffice.
    pub fn with_servers(servers: &[SocketAddr]) -> Self {
        let maker = Maker::default();
        let dns = Dns::default();
        Self {
            hosts: Arc::new(Watched::new("/etc/hosts", read_hosts)),
            servers: vec![maker.plain(servers, dns.cache)],
            dns,
            policy: None,
            maker,
        }
    }

    /// The same under another policy. A server that is named as before, and reached by the same route, keeps its connections
    /// and what it remembers.
    #[must_use]
    pub fn under(&self, policy: &Arc<Policy>) -> Self {
        let dns = &policy.dns;
        let known = || self.dns.asks.iter().zip(&self.servers);
        let keeps = self.dns.cache == dns.cache;
        let is_same = |known: &Ask, ask: &Ask| {
            let by = match (known.via, ask.via, &self.policy) {
                (None, None, _) => true,
                (Some(old), Some(new), Some(before)) => before.is_same_route(old, policy, new),
                (_, _, _) => false,
            };
            by && known.server == ask.server
        };
        let servers = dns.asks.iter().map(|ask| {
            let kept = known().find(|(known, _)| keeps && is_same(known, ask));
            match (kept, &ask.server) {
                (Some((_, kept)), _) => kept.clone(),
                (None, Some(server)) => self.maker.named(server, ask.via.is_some(), dns.cache),
                (None, None) => self.maker.system(dns.cache),
            }
        });
        Self {
            hosts: self.hosts.clone(),
            servers: servers.collect(),
            dns: dns.clone(),
            policy: Some(policy.clone()),
            maker: self.maker.clone(),
        }
    }

    /// Lets connections to the servers behind a route take the tunnels that `tunnel` gives, from now on. Those that are
    /// open are asked nothing more.
    pub fn lead(&self, tunnel: impl Fn(RouteId) -> Arc<dyn Tunnel>) {
        for (ask, servers) in self.dns.asks.iter().zip(&self.servers) {
            if let (Some(route), Servers::Given(Some(asker))) = (ask.via, servers) {
                asker.way.lead(tunnel(route));
            }
        }
    }

    /// Forgets every answer of its servers, so that each name is asked for anew.
    pub fn forget(&self) {
        for asker in self.servers.iter().filter_map(Servers::asker) {
            asker.forget();
        }
    }

    /// The same, which trusts these instead of what the system does.
    #[must_use]
    pub fn trusting(mut self, roots: Roots) -> Self {
        self.maker.roots = Arc::new(roots);
        self
    }

    /// The certificates that are trusted: those of the system, where nobody says otherwise.
    pub fn roots(&self) -> &Arc<Roots> {
        &self.maker.roots
    }

    /// Looks up a name, within `limit`. A name of the hosts file is not asked for elsewhere.
    ///
    /// A denial that lacks its SOA record costs one more question: for a name beside it that cannot exist, within the
    /// limit and a second, and once in some minutes for its zone.
    pub async fn resolve(
        &self,
        name: &str,
        ask: AskId,
        limit: Duration,
    ) -> Result<Resolved, ResolveError> {
        let prefer = self.dns.prefer;
        if let Some(addresses) = self.without_asking(name) {
            return Ok(Resolved {
                addresses: usable(name, addresses, prefer)?,
                source: Source::Hosts,
                facts: Facts::default(),
            });
        }
        let Some(asker) = self.asker(ask) else {
            let why = Unresolved::ServerUnreachable {
                source: None,
                asked: Vec::new(),
            };
            return Err(ResolveError::new(name, why));
        };
        if let Some(found) = asker.aside.get(name, prefer) {
            return Ok(found);
        }
        self.look_up(&asker, name, limit).await
    }

    /// Asks for a name. What was put aside of it serves on where nobody says anything of its addresses.
    async fn look_up(
        &self,
        asker: &Asker,
        name: &str,
        limit: Duration,
    ) -> Result<Resolved, ResolveError> {
        let prefer = self.dns.prefer;
        let begun = Instant::now();
        let asked = asker.ask(name, prefer, limit).await;
        if asked.as_ref().err().is_none_or(Missed::is_denial) {
            asker.aside.drop_of(name);
        }
        let Missed {
            error,
            mut facts,
            unsigned,
        } = match asked {
            Ok(found) => {
                if let Some((ip, net)) = self.dns.forged(&found.addresses) {
                    let why = Unresolved::Forged { ip, net };
                    return Err(ResolveError {
                        name: name.to_owned(),
                        why,
                        facts: Box::new(found.facts),
                    });
                }
                return Ok(Resolved {
                    addresses: in_order(found.addresses.into_iter(), prefer),
                    source: Source::Dns,
                    facts: found.facts,
                });
            }
            Err(missed) => missed,
        };
        asker.tell(&error, &mut facts);
        let mut why = Unresolved::new(error, limit, &facts, asker);
        let left = limit.saturating_sub(begun.elapsed());
        if let (Unresolved::NxDomain, Some(denied)) = (&why, unsigned)
            && asker.denies_with_soa(&denied, left).await
        {
            why = Unresolved::NxDomainUnsigned;
        }
        if let (Unresolved::NoAddress, Some(record)) = (&why, only(prefer)) {
            let prefer = prefer.as_str();
            why = Unresolved::NoneOfFamily { record, prefer };
        }
        Err(ResolveError {
            name: name.to_owned(),
            why,
            facts: Box::new(facts),
        })
    }

    /// Looks up a name again, past these addresses, where they are what is remembered of it. What was asked for just now, for
    /// another request, stands; and where no server says anything of the name's addresses, these are remembered for as long
    /// as they hold.
    pub async fn resolve_anew(
        &self,
        name: &str,
        ask: AskId,
        known: &[IpAddr],
        limit: Duration,
    ) -> Result<Resolved, ResolveError> {
        let remembered = self.resolve(name, ask, limit).await?;
        let Some(asker) = self.asker(ask) else {
            return Ok(remembered);
        };
        // Another request may have asked for it meanwhile.
        if !remembered.facts.is_cached || remembered.addresses != known {
            return Ok(remembered);
        }
        if asker.set_aside(name, self.dns.prefer, remembered.clone()) {
            self.look_up(&asker, name, limit).await
        } else {
            Ok(remembered)
        }
    }

    /// What speaks against the addresses that name servers gave for a name, now that they turn out to be of no use.
    pub fn doubt(&self, name: &str, ask: AskId, addresses: &[IpAddr]) -> Option<Doubt> {
        if self.without_asking(name).is_some() {
            return None;
        }
        let asker = self.asker(ask)?;
        let question = ask::name_of(name).ok()?;
        let last = |kind| Some(asker.journal.last(&question, kind)?.0.read());
        let seen = [RecordType::A, RecordType::AAAA].map(last);
        let mut replies = seen.iter().flatten().filter_map(|seen| seen.reply.as_ref());
        // A name that was found under a suffix only is no public one.
        if !replies.clone().any(|reply| reply.records > 0) {
            return None;
        }
        let ede = replies.find_map(|reply| reply.ede.clone().filter(Extended::is_of_policy));
        if let Some(ede) = ede {
            Some(Doubt::Blocked(ede))
        } else if asker.journal.is_contested(&question) {
            Some(Doubt::Contested)
        } else {
            Doubt::of_addresses(name, addresses)
        }
    }

    /// The addresses of a name that no name server is asked for.
    fn without_asking(&self, name: &str) -> Option<Vec<IpAddr>> {
        if is_localhost(name) {
            return Some(vec![
                IpAddr::V6(Ipv6Addr::LOCALHOST),
                IpAddr::V4(Ipv4Addr::LOCALHOST),
            ]);
        }
        in_hosts(&self.hosts.get(), name)
    }

    /// Who asks, where any name server is known.
    fn asker(&self, ask: AskId) -> Option<Arc<Asker>> {
        self.servers.get(ask.0)?.asker()
    }
}

fn in_hosts(hosts: &Hosts, name: &str) -> Option<Vec<IpAddr>> {
    hosts
        .get(name)
        .map(|addresses| in_order(addresses.iter().copied(), Prefer::Happy))
}

/// Those of the families that are wanted: at least one.
fn usable(name: &str, addresses: Vec<IpAddr>, prefer: Prefer) -> Result<Vec<IpAddr>, ResolveError> {
    let wanted = addresses.into_iter().filter(|ip| prefer.wants(*ip));
    let wanted = in_order(wanted, prefer);
    match only(prefer) {
        Some(record) if wanted.is_empty() => {
            let prefer = prefer.as_str();
            let why = Unresolved::NoneOfFamily { record, prefer };
            Err(ResolveError::new(name, why))
        }
        Some(_) | None => Ok(wanted),
    }
}

/// The record that alone is asked for.
fn only(prefer: Prefer) -> Option<&'static str> {
    match prefer {
        Prefer::Happy | Prefer::V4 | Prefer::V6 => None,
        Prefer::V4Only => Some("A"),
        Prefer::V6Only => Some("AAAA"),
    }
}

/// IPv6 first where nothing else is preferred (RFC 8305, section 4), each address once.
fn in_order(addresses: impl Iterator<Item = IpAddr>, prefer: Prefer) -> Vec<IpAddr> {
    let mut ordered: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !ordered.contains(&address) {
            ordered.push(address);
        }
    }
    ordered.sort_by_key(|ip| ip.is_ipv4() != prefer.is_v4_first());
    ordered
}

#[cfg(test)]
mod tests;
