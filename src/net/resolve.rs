//! Names to addresses, by the hosts file and the name servers of the system.
//!
//! Both files are looked at before each lookup, so that a VPN that comes or goes needs no restart.

mod ask;
mod provider;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use tokio::time::timeout;

use ask::Asker;

use crate::policy::guard::is_localhost;
use crate::target::Host;
use crate::timeouts::Brief;

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
    System(Watched<Option<Asker>>),
    /// These.
    Given(Box<Asker>),
}

/// What a file says, read again when the file changes.
struct Watched<T> {
    path: PathBuf,
    read: fn(&Path) -> T,
    last: Mutex<(Option<SystemTime>, Arc<T>)>,
}

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// At least one; IPv6 first, each once.
    pub addresses: Vec<IpAddr>,
    /// Where they come from.
    pub source: Source,
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

/// Why a name has no address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// No server answered in time.
    #[error("look up {name}: no name server answered within {}", Brief(*after))]
    Timeout {
        /// The name.
        name: String,
        /// The limit, or what the servers took to fail.
        after: Duration,
    },
    /// No server can be reached, or none is configured.
    #[error("look up {name}: no name server can be reached")]
    ServerUnreachable {
        /// The name.
        name: String,
        /// The last server's error, where there was one.
        source: Option<Arc<io::Error>>,
    },
    /// The name does not exist (NXDOMAIN).
    #[error("look up {name}: NXDOMAIN")]
    NxDomain {
        /// The name.
        name: String,
    },
    /// The name exists and has neither an A nor an AAAA record.
    #[error("look up {name}: no A or AAAA record")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// The server failed (SERVFAIL).
    #[error("look up {name}: SERVFAIL")]
    ServFail {
        /// The name.
        name: String,
    },
    /// The server refused (REFUSED).
    #[error("look up {name}: REFUSED")]
    Refused {
        /// The name.
        name: String,
    },
    /// The server's reply is malformed, or of a code that makes no sense here.
    #[error("look up {name}")]
    Misbehaving {
        /// The name.
        name: String,
        /// What is wrong with the reply.
        source: NetError,
    },
}

impl ResolveError {
    /// The response code, where a server gave one.
    pub fn response_code(&self) -> Option<String> {
        let code = match self {
            Self::Timeout { .. } | Self::ServerUnreachable { .. } => return None,
            Self::NxDomain { .. } => "NXDOMAIN",
            Self::NoAddress { .. } => "NOERROR",
            Self::ServFail { .. } => "SERVFAIL",
            Self::Refused { .. } => "REFUSED",
            Self::Misbehaving { source, .. } => {
                return code_of(source).map(|code| code.to_str().to_owned());
            }
        };
        Some(code.to_owned())
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
            Some(resolver) => Servers::Given(Box::new(resolver)),
            None => Servers::System(Watched::new("/etc/resolv.conf", |_| None)),
        };
        Self {
            hosts: Watched::new("/etc/hosts", read_hosts),
            servers,
        }
    }

    /// Looks up both families of a name, within `limit`. A name of the hosts file is not asked for elsewhere.
    pub async fn resolve(&self, name: &str, limit: Duration) -> Result<Resolved, ResolveError> {
        if is_localhost(name) {
            let addresses = vec![
                IpAddr::V6(Ipv6Addr::LOCALHOST),
                IpAddr::V4(Ipv4Addr::LOCALHOST),
            ];
            return Ok(Resolved {
                addresses,
                source: Source::Hosts,
            });
        }
        if let Some(addresses) = in_hosts(&self.hosts.get(), name) {
            return Ok(Resolved {
                addresses,
                source: Source::Hosts,
            });
        }
        let system;
        let resolver = match &self.servers {
            Servers::Given(resolver) => resolver,
            Servers::System(watched) => {
                system = watched.get();
                match &*system {
                    Some(resolver) => resolver,
                    None => {
                        return Err(ResolveError::ServerUnreachable {
                            name: name.to_owned(),
                            source: None,
                        });
                    }
                }
            }
        };
        let name = name.to_owned();
        match timeout(limit, resolver.ask(&name)).await {
            Err(_) => Err(ResolveError::Timeout { name, after: limit }),
            Ok(Err(error)) => Err(failure(name, error, limit)),
            Ok(Ok(found)) => match in_order(found.into_iter()) {
                addresses if addresses.is_empty() => Err(ResolveError::NoAddress { name }),
                addresses => Ok(Resolved {
                    addresses,
                    source: Source::Dns,
                }),
            },
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

fn system_servers(path: &Path) -> Option<Asker> {
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

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Option<Asker> {
    options.timeout = options.timeout.min(TRY);
    options.attempts = options.attempts.min(TRIES);
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE;
    options.positive_max_ttl = Some(LONGEST_TTL);
    options.negative_max_ttl = Some(LONGEST_TTL);
    Asker::new(config, options)
        .inspect_err(|error| tracing::error!(%error, "the resolver cannot be built"))
        .ok()
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

fn failure(name: String, error: NetError, limit: Duration) -> ResolveError {
    match code_of(&error) {
        Some(ResponseCode::NXDomain) => return ResolveError::NxDomain { name },
        Some(ResponseCode::NoError) => return ResolveError::NoAddress { name },
        Some(ResponseCode::ServFail) => return ResolveError::ServFail { name },
        Some(ResponseCode::Refused) => return ResolveError::Refused { name },
        Some(_) => {
            return ResolveError::Misbehaving {
                name,
                source: error,
            };
        }
        None => {}
    }
    if let NetError::Timeout = error {
        ResolveError::Timeout { name, after: limit }
    } else if let NetError::Io(source) = error {
        ResolveError::ServerUnreachable {
            name,
            source: Some(source),
        }
    } else if let NetError::NoConnections = error {
        ResolveError::ServerUnreachable { name, source: None }
    } else {
        ResolveError::Misbehaving {
            name,
            source: error,
        }
    }
}

/// The response code in an error. NXDOMAIN and an empty answer are both "no records": only the code tells them apart.
fn code_of(error: &NetError) -> Option<ResponseCode> {
    if let NetError::Dns(DnsError::NoRecordsFound(none)) = error {
        Some(none.response_code)
    } else if let NetError::Dns(DnsError::ResponseCode(code)) = error {
        Some(*code)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
