//! Names to addresses, by the hosts file and the name servers of the system.
//!
//! Both files are looked at before each lookup, so that a VPN that comes or goes needs no restart.

mod ask;
mod doubt;
mod error;
mod facts;
mod journal;
mod provider;
mod tap;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::RecordType;
use tokio::time::Instant;

use ask::{Asker, Missed};

use crate::policy::guard::is_localhost;
use crate::target::Host;

pub use doubt::{Doubt, is_teredo};
pub use error::{ResolveError, Unresolved};
pub use facts::{Asked, Extended, Facts, Transport};

/// One try of one server. With two tries it stays below the 5 s that a lookup may take.
const TRY: Duration = Duration::from_secs(2);
const TRIES: usize = 2;

/// Answers that are remembered, for as long as they say, a day at most.
const CACHE: u64 = 4096;
const LONGEST_TTL: Duration = Duration::from_hours(24);

/// What the hosts file says.
type Hosts = HashMap<Arc<str>, Vec<IpAddr>>;

/// Looks up names.
#[derive(Debug)]
pub struct Resolver {
    hosts: Watched<Hosts>,
    servers: Servers,
}

enum Servers {
    /// Those of resolv.conf(5).
    System(Watched<Option<Arc<Asker>>>),
    /// These.
    Given(Arc<Asker>),
}

/// What a file says, read again when the file changes.
struct Watched<T> {
    path: PathBuf,
    read: fn(&Path) -> T,
    last: Mutex<(Option<SystemTime>, Arc<T>)>,
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
        let servers = Servers::System(Watched::new("/etc/resolv.conf", system_servers));
        Self {
            hosts: Watched::new("/etc/hosts", read_hosts),
            servers,
        }
    }

    /// The hosts file and these name servers, asked by UDP, and by TCP where that does not suffice.
    pub fn with_servers(servers: &[SocketAddr]) -> Self {
        let config = |server: &SocketAddr| {
            let with_port = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            let connections = vec![
                with_port(ConnectionConfig::udp()),
                with_port(ConnectionConfig::tcp()),
            ];
            NameServerConfig::new(server.ip(), true, connections)
        };
        let config =
            ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(config).collect());
        let servers = match build(config, ResolverOpts::default()) {
            Some(resolver) => Servers::Given(resolver),
            None => Servers::System(Watched::new("/etc/resolv.conf", |_| None)),
        };
        Self {
            hosts: Watched::new("/etc/hosts", read_hosts),
            servers,
        }
    }

    /// Looks up both families of a name, within `limit`. A name of the hosts file is not asked for elsewhere.
    ///
    /// A denial that lacks its SOA record costs one more question: for a name beside it that cannot exist, within the
    /// limit and a second, and once in some minutes for its zone.
    pub async fn resolve(&self, name: &str, limit: Duration) -> Result<Resolved, ResolveError> {
        if let Some(addresses) = self.without_asking(name) {
            return Ok(Resolved {
                addresses,
                source: Source::Hosts,
                facts: Facts::default(),
            });
        }
        let Some(asker) = self.asker() else {
            let why = Unresolved::ServerUnreachable {
                source: None,
                asked: Vec::new(),
            };
            return Err(ResolveError::new(name, why));
        };
        let begun = Instant::now();
        let Missed {
            error,
            facts,
            unsigned,
        } = match asker.ask(name, limit).await {
            Ok(found) => {
                return Ok(Resolved {
                    addresses: in_order(found.addresses.into_iter()),
                    source: Source::Dns,
                    facts: found.facts,
                });
            }
            Err(missed) => missed,
        };
        let mut why = Unresolved::new(error, limit, &facts, |server| {
            asker.journal.peer(server).tcp
        });
        let left = limit.saturating_sub(begun.elapsed());
        if let (Unresolved::NxDomain, Some(denied)) = (&why, unsigned)
            && asker.denies_with_soa(&denied, left).await
        {
            why = Unresolved::NxDomainUnsigned;
        }
        Err(ResolveError {
            name: name.to_owned(),
            why,
            facts: Box::new(facts),
        })
    }

    /// Whether two different answers came to one question for a name, in the last minutes.
    pub fn is_contested(&self, name: &str) -> bool {
        self.asker().is_some_and(|asker| {
            ask::name_of(name).is_ok_and(|name| asker.journal.is_contested(&name))
        })
    }

    /// What speaks against the addresses that name servers gave for a name, now that they turn out to be of no use.
    pub fn doubt(&self, name: &str, addresses: &[IpAddr]) -> Option<Doubt> {
        if self.without_asking(name).is_some() {
            return None;
        }
        let asker = self.asker()?;
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
    fn asker(&self) -> Option<Arc<Asker>> {
        match &self.servers {
            Servers::Given(asker) => Some(asker.clone()),
            Servers::System(watched) => (*watched.get()).clone(),
        }
    }
}

impl<T> Watched<T> {
    fn new(path: &str, read: fn(&Path) -> T) -> Self {
        let path = PathBuf::from(path);
        let last = Mutex::new((changed(&path), Arc::new(read(&path))));
        Self { path, read, last }
    }

    fn get(&self) -> Arc<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = changed(&self.path);
        if changed != last.0 {
            *last = (changed, Arc::new((self.read)(&self.path)));
        }
        last.1.clone()
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::System(_) => "System",
            Self::Given(_) => "Given",
        })
    }
}

impl<T> std::fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

/// hosts(5): an address and its names a line; `#` begins a comment. Names are canonical, as targets are.
fn read_hosts(path: &Path) -> Hosts {
    let text = std::fs::read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "the hosts file is not read");
        Vec::new()
    });
    let mut hosts = Hosts::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let mut words = line.split('#').next().unwrap_or(line).split_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        for name in words {
            if let Ok(Host::Name(name)) = Host::parse(name) {
                hosts.entry(name).or_default().push(ip);
            }
        }
    }
    hosts
}

fn system_servers(path: &Path) -> Option<Arc<Asker>> {
    let text = std::fs::read(path).map_err(NetError::from);
    let parsed = text.and_then(hickory_resolver::system_conf::parse_resolv_conf);
    match parsed {
        Ok((config, options)) => build(config, options),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "no name server is known: only names of the hosts file resolve");
            None
        }
    }
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Option<Arc<Asker>> {
    options.timeout = options.timeout.min(TRY);
    // The library counts those after the first.
    options.attempts = options.attempts.clamp(1, TRIES) - 1;
    // Without an OPT record in the question no server says why it fails (RFC 8914, section 3).
    options.edns0 = true;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE;
    options.positive_max_ttl = Some(LONGEST_TTL);
    options.negative_max_ttl = Some(LONGEST_TTL);
    Asker::new(config, options)
        .inspect_err(|error| tracing::error!(%error, "the resolver cannot be built"))
        .ok()
        .map(Arc::new)
}

fn in_hosts(hosts: &Hosts, name: &str) -> Option<Vec<IpAddr>> {
    hosts
        .get(name)
        .map(|addresses| in_order(addresses.iter().copied()))
}

/// IPv6 first (RFC 8305, section 4), each address once.
fn in_order(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut ordered: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !ordered.contains(&address) {
            ordered.push(address);
        }
    }
    ordered.sort_by_key(IpAddr::is_ipv4);
    ordered
}

#[cfg(test)]
mod tests;
