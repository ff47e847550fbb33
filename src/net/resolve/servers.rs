//! Name servers by the library's settings: those of resolv.conf(5), and those that a policy names.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;

use super::ask::{Asker, Who};
use super::files::Watched;
use crate::policy::dns::{Cache, Secure, Server, Transport};
use crate::tls::trust::{Roots, provider};

/// One try of one server. With two tries it stays below the 5 s that a lookup may take.
pub(super) const TRY: Duration = Duration::from_secs(2);
/// The same, where first a connection is opened, maybe through an upstream, and all servers are asked at once.
const TRY_CONNECTED: Duration = Duration::from_secs(4);
const TRIES: usize = 2;

/// So many servers are asked at once, the library's default.
const AT_ONCE: usize = 2;

/// Questions that wait for an answer, at a time: a name has one for each family.
pub(super) const QUESTIONS: usize = 512;

/// Who knows names.
#[derive(Clone)]
pub(super) enum Servers {
    /// Those of resolv.conf(5).
    System(Arc<Watched<Option<Arc<Asker>>>>),
    /// These.
    Given(Option<Arc<Asker>>),
}

/// What name servers share.
#[derive(Clone, Debug)]
pub(super) struct Maker {
    /// The room for questions.
    room: Arc<Semaphore>,
    pub(super) roots: Arc<Roots>,
}

impl Default for Maker {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(QUESTIONS)),
            roots: Arc::new(Roots::of_system()),
        }
    }
}

impl Servers {
    pub(super) fn asker(&self) -> Option<Arc<Asker>> {
        match self {
            Self::Given(asker) => asker.clone(),
            Self::System(watched) => (*watched.get()).clone(),
        }
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

impl Maker {
    /// Those of resolv.conf(5).
    pub(super) fn system(&self, cache: Cache) -> Servers {
        let maker = self.clone();
        let read = move |path: &Path| maker.read(path, cache);
        Servers::System(Arc::new(Watched::new("/etc/resolv.conf", read)))
    }

    /// These, by UDP and TCP.
    pub(super) fn plain(&self, servers: &[SocketAddr], cache: Cache) -> Servers {
        let connections = || vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        let config = config_of(servers, connections);
        Servers::Given(self.build(config, ResolverOpts::default(), cache, None, None))
    }

    /// One that a policy names; `is_led` where connections to it take a route.
    pub(super) fn named(&self, server: &Server, is_led: bool, cache: Cache) -> Servers {
        let (connections, secure): (Vec<_>, _) = match &server.transport {
            Transport::Udp => (vec![ConnectionConfig::udp(), ConnectionConfig::tcp()], None),
            Transport::Tcp => (vec![ConnectionConfig::tcp()], None),
            Transport::Tls(secure) => (
                vec![ConnectionConfig::tls(secure.name.clone())],
                Some(secure),
            ),
            Transport::Https { secure, path } => {
                let connection = ConnectionConfig::https(secure.name.clone(), Some(path.clone()));
                (vec![connection], Some(secure))
            }
        };
        let tls = match secure.map(|secure| self.tls(secure)).transpose() {
            Ok(tls) => tls,
            Err(error) => {
                tracing::error!(%error, server = &*server.name, "the name server cannot be used");
                return Servers::Given(None);
            }
        };
        let config = config_of(&server.addresses, || connections.clone());
        let mut options = ResolverOpts::default();
        let count = server.addresses.len();
        let connects = is_led || server.transport != Transport::Udp;
        options.timeout = if connects && count <= AT_ONCE {
            TRY_CONNECTED
        } else {
            TRY
        };
        let who = Who {
            name: server.name.clone(),
            transport: (&server.transport).into(),
            addresses: server.addresses.clone(),
            is_led,
        };
        Servers::Given(self.build(config, options, cache, Some(who), tls))
    }

    fn read(&self, path: &Path, cache: Cache) -> Option<Arc<Asker>> {
        let text = std::fs::read(path).map_err(NetError::from);
        let parsed = text.and_then(hickory_resolver::system_conf::parse_resolv_conf);
        match parsed {
            Ok((config, mut options)) => {
                options.timeout = options.timeout.min(TRY);
                self.build(config, options, cache, None, None)
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "no name server is known: only names of the hosts file resolve");
                None
            }
        }
    }

    pub(super) fn build(
        &self,
        config: ResolverConfig,
        mut options: ResolverOpts,
        cache: Cache,
        who: Option<Who>,
        tls: Option<ClientConfig>,
    ) -> Option<Arc<Asker>> {
        options.timeout = match &who {
            Some(_) => options.timeout,
            None => options.timeout.min(TRY),
        };
        // The library counts those after the first.
        options.attempts = options.attempts.clamp(1, TRIES) - 1;
        // All have their turn within two tries: the second begins with those that did not fail in the first.
        let count = config.name_servers().len();
        options.num_concurrent_reqs = count.div_ceil(TRIES).max(AT_ONCE);
        // Without an OPT record in the question no server says why it fails (RFC 8914, section 3).
        options.edns0 = true;
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = cache.entries;
        options.positive_min_ttl = Some(cache.min_ttl);
        options.positive_max_ttl = Some(cache.max_ttl);
        options.negative_max_ttl = Some(cache.negative_ttl);
        Asker::new(config, options, who, tls, self.room.clone())
            .inspect_err(|error| tracing::error!(%error, "the resolver cannot be built"))
            .ok()
            .map(Arc::new)
    }

    fn tls(&self, secure: &Secure) -> Result<ClientConfig, rustls::Error> {
        let store = match &secure.roots {
            None => self.roots.store(),
            Some(roots) => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(roots.iter().cloned());
                Arc::new(store)
            }
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(config)
    }
}

fn config_of(
    servers: &[SocketAddr],
    connections: impl Fn() -> Vec<ConnectionConfig>,
) -> ResolverConfig {
    let server = |server: &SocketAddr| {
        let mut connections = connections();
        for connection in &mut connections {
            connection.port = server.port();
        }
        NameServerConfig::new(server.ip(), true, connections)
    };
    ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect())
}
