//! By what a script says of each request: one way, or several in turn.
//!
//! A script evaluates on a thread of its own, one request after another. What it names is dialled like everything else, under
//! the guards. A proxy that the policy knows by its URL is that upstream; to any other nobody says who we are.

mod fetch;
#[cfg(not(feature = "pac"))]
mod no_worker;
#[cfg(feature = "pac")]
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

pub use self::fetch::Fetched;
use self::fetch::Fetcher;
#[cfg(not(feature = "pac"))]
use self::no_worker as worker;
use super::chain::{Chain, Leg};
use super::health::{Health, Watched};
use super::upstream::Upstream;
use super::{BoxFuture, Conn, Dial, Names, Plan, Purpose};
use crate::cause::{Class, Phase};
use crate::exchange::Trail;
use crate::failure::{Failure, classify};
use crate::pac::{self, LIMIT, PacError, Script, Source, Way};
use crate::policy::chain as written;
use crate::policy::health::Health as HealthSpec;
use crate::policy::upstream::{Forward, Protocol, Upstream as Spec};
use crate::policy::{Policy, RouteSpec};

/// So many proxies that only the script knows are kept in mind.
const MOST_PROXIES: usize = 256;

/// A script that names ways out.
pub struct Pac {
    name: Arc<str>,
    origin: Origin,
    policy: Arc<Policy>,
    names: Names,
    direct: Arc<dyn Dial>,
    /// The policy's own upstreams.
    known: Vec<(Way, Hop)>,
    /// Others that were named.
    found: Mutex<HashMap<Way, Hop>>,
    /// The script that evaluates, and where it is asked.
    asked: Mutex<Option<(Script, worker::Asked)>>,
}

/// Where the script comes from.
enum Origin {
    Read(Script),
    Fetched(Arc<Fetcher>),
}

/// A way out with its name.
type Hop = (Arc<str>, Arc<dyn Dial>);

impl fmt::Debug for Pac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pac({}, {})", self.name, self.origin.place())
    }
}

impl Pac {
    /// A script under a policy, whose ways out are `routes`: at least direct, and all upstreams. What was `fetched` before goes
    /// on until the server has given it again.
    pub fn new(
        name: Arc<str>,
        source: &Source,
        fetched: Option<&Arc<Fetched>>,
        policy: Arc<Policy>,
        names: Names,
        direct: Arc<dyn Dial>,
        routes: &[Arc<dyn Dial>],
    ) -> Self {
        let known = policy
            .routes
            .iter()
            .zip(routes)
            .filter_map(|(route, dial)| {
                let RouteSpec::Upstream(spec) = &route.spec else {
                    return None;
                };
                let proxy = spec.proxy.clone();
                let way = match spec.protocol {
                    Protocol::Http => Way::Http(proxy),
                    Protocol::Https(_) => Way::Https(proxy),
                    Protocol::Socks5 => Way::Socks(proxy),
                };
                Some((way, (route.name.clone(), dial.clone())))
            });
        let origin = match source {
            Source::File(script) => Origin::Read(script.clone()),
            Source::Url { location, every } => {
                let fetched = match fetched {
                    Some(fetched) => {
                        fetched.expire();
                        fetched.clone()
                    }
                    None => Arc::new(Fetched::new(location.clone())),
                };
                let server = Fetcher::server(&name, location, &policy, &names);
                Origin::Fetched(Arc::new(Fetcher::new(
                    fetched,
                    *every,
                    server,
                    policy.clone(),
                )))
            }
        };
        Self {
            name,
            origin,
            known: known.collect(),
            policy,
            names,
            direct,
            found: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        let started = Instant::now();
        trail.hop(&self.name);
        trail.enter(Phase::Upstream);
        let ways = match self.ask(plan).await.and_then(|answer| pac::ways(&answer)) {
            Ok(ways) => ways,
            Err(error) => {
                let failure = Failure::Pac {
                    upstream: self.name.clone(),
                    place: self.origin.place().clone(),
                    error,
                };
                trail.failed(classify(&failure), started.elapsed());
                return Err(failure);
            }
        };
        let mut hops: Vec<Hop> = ways.iter().map(|way| self.hop(way)).collect();
        if hops.len() == 1
            && let Some((_, dial)) = hops.pop()
        {
            return dial.dial(plan, trail).await;
        }
        let legs = hops.into_iter().map(|(name, dial)| Leg {
            name,
            dial,
            // As browsers do: what a proxy says of a target is the answer.
            next_on: Class::ProxyDown.into(),
        });
        let spec = written::Chain {
            hops: Vec::new(),
            is_closed: false,
            attempts: None,
            budget: None,
            hedge: None,
            memory: None,
            on_exhausted: written::OnExhausted::default(),
            on_status: Vec::new(),
        };
        Chain::new(legs.collect(), spec).dial(plan, trail).await
    }

    /// What the script says of a request. It is told no path and no query.
    async fn ask(&self, plan: &Plan) -> Result<String, PacError> {
        let (scheme, usual) = match plan.purpose {
            Purpose::Tunnel | Purpose::Reach => ("https", 443),
            Purpose::Forward => ("http", 80),
        };
        let place = plan.target.authority(usual);
        let (url, host) = (format!("{scheme}://{place}/"), plan.target.host.to_string());
        let script = match &self.origin {
            Origin::Read(script) => script.clone(),
            Origin::Fetched(fetcher) => fetcher.script(plan.within(LIMIT)).await?,
        };
        let asked = self.asked(script);
        worker::ask(&asked, url, host, plan.within(LIMIT)).await
    }

    /// Where the script is asked. Another than before gets another thread.
    fn asked(&self, script: Script) -> worker::Asked {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match &*asked {
            Some((at_work, asked)) if Arc::ptr_eq(&at_work.text, &script.text) => asked.clone(),
            Some(_) | None => {
                let started = worker::start(script.clone(), self.names.clone());
                *asked = Some((script, started.clone()));
                started
            }
        }
    }

    /// What was fetched, where the script comes from a web server.
    pub(super) fn fetched(&self) -> Option<&Arc<Fetched>> {
        match &self.origin {
            Origin::Read(_) => None,
            Origin::Fetched(fetcher) => Some(fetcher.fetched()),
        }
    }

    fn hop(&self, way: &Way) -> Hop {
        if let Way::Direct = way {
            return ("direct".into(), self.direct.clone());
        }
        if let Some((_, hop)) = self.known.iter().find(|(known, _)| known == way) {
            return hop.clone();
        }
        let mut found = self.found();
        if let Some(hop) = found.get(way) {
            return hop.clone();
        }
        if found.len() >= MOST_PROXIES {
            found.clear();
        }
        let hop = self.stranger(way);
        found.insert(way.clone(), hop.clone());
        hop
    }

    fn found(&self) -> MutexGuard<'_, HashMap<Way, Hop>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A proxy that the policy does not know.
    fn stranger(&self, way: &Way) -> Hop {
        let name: Arc<str> = way.to_string().into();
        let spec = match way {
            Way::Direct => return (name, self.direct.clone()),
            Way::Http(proxy) => Spec::http(proxy.clone()),
            Way::Https(proxy) => Spec::https(proxy.clone()),
            Way::Socks(proxy) => Spec {
                protocol: Protocol::Socks5,
                forward: Forward::Tunnel,
                ..Spec::http(proxy.clone())
            },
        };
        let (policy, names) = (self.policy.clone(), self.names.clone());
        let upstream = Upstream::new(name.clone(), Arc::new(spec), policy, names).named_by_script();
        let health = Health::new(name.clone(), HealthSpec::default(), Some(name.to_string()));
        let watched = Watched::new(Box::new(upstream), Arc::new(health));
        (name, Arc::new(watched))
    }
}

impl Origin {
    fn place(&self) -> &Arc<str> {
        match self {
            Self::Read(script) => &script.place,
            Self::Fetched(fetcher) => &fetcher.fetched().location().shown,
        }
    }
}

impl Dial for Pac {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }

    /// What it says may hang on the time.
    fn is_lasting(&self) -> bool {
        false
    }
}
