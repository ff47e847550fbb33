//! By what a script says of each request: one way, or several in turn.
//!
//! A script evaluates on a thread of its own, one request after another. What it names is dialled like everything else, under
//! the guards. A proxy that the policy knows by its URL is that upstream; to any other nobody says who we are.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::chain::{Chain, Leg};
use super::health::{Health, Watched};
use super::upstream::Upstream;
use super::{BoxFuture, Conn, Dial, Names, Plan, Purpose};
use crate::cause::Class;
use crate::exchange::Trail;
use crate::failure::{Failure, classify};
use crate::pac::{self, LIMIT, PacError, Script, Way};
use crate::policy::chain as written;
use crate::policy::health::Health as HealthSpec;
use crate::policy::upstream::{Forward, Protocol, Upstream as Spec};
use crate::policy::{Policy, RouteSpec};

/// So many proxies that only the script knows are kept in mind.
const MOST_PROXIES: usize = 256;

/// A script that names ways out.
pub struct Pac {
    name: Arc<str>,
    script: Script,
    policy: Arc<Policy>,
    names: Names,
    direct: Arc<dyn Dial>,
    /// The policy's own upstreams.
    known: Vec<(Way, Hop)>,
    /// Others that were named.
    found: Mutex<HashMap<Way, Hop>>,
    asked: Mutex<Option<worker::Asked>>,
}

/// A way out with its name.
type Hop = (Arc<str>, Arc<dyn Dial>);

impl fmt::Debug for Pac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pac({}, {:?})", self.name, self.script)
    }
}

impl Pac {
    /// A script under a policy, whose ways out are `routes`: at least direct, and all upstreams.
    pub fn new(
        name: Arc<str>,
        script: Script,
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
        Self {
            name,
            script,
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
        let ways = match self.ask(plan).await.and_then(|answer| pac::ways(&answer)) {
            Ok(ways) => ways,
            Err(error) => {
                trail.hop(&self.name);
                let failure = Failure::Pac {
                    upstream: self.name.clone(),
                    file: self.script.file.clone(),
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
        let target = plan.target.to_string();
        let place = match target.strip_suffix(&format!(":{usual}")) {
            Some(host) if plan.target.port == usual => host,
            _ => &target,
        };
        let (url, host) = (format!("{scheme}://{place}/"), plan.target.host.to_string());
        let asked = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked
                .get_or_insert_with(|| worker::start(self.script.clone(), self.names.clone()))
                .clone()
        };
        worker::ask(&asked, url, host, plan.within(LIMIT)).await
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
            Way::Https(proxy) => Spec {
                protocol: Protocol::Https(Box::default()),
                ..Spec::http(proxy.clone())
            },
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

#[cfg(feature = "pac")]
mod worker {
    //! The thread that a script has to itself.

    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread;
    use std::time::Duration;

    use tokio::runtime::Handle;
    use tokio::sync::oneshot;
    use tokio::time::{Instant, timeout_at};

    use crate::exchange::Trail;
    use crate::pac::{Engine, LIMIT, PacError, Script, THREAD_STACK};
    use crate::route::Names;
    use crate::target::Host;

    /// So many requests wait for their turn.
    const QUEUE: usize = 1024;

    /// One lookup of a script's takes no longer.
    const LOOKUP: Duration = Duration::from_secs(2);

    pub(super) type Asked = SyncSender<Question>;

    /// One request.
    pub(super) struct Question {
        url: String,
        host: String,
        limit: Duration,
        until: Instant,
        answer: oneshot::Sender<Result<String, PacError>>,
    }

    /// Starts the thread. It ends with the last of those who may ask.
    pub(super) fn start(script: Script, names: Names) -> Asked {
        let (asked, questions) = sync_channel(QUEUE);
        let runtime = Handle::current();
        let thread = thread::Builder::new()
            .name("pac".to_owned())
            .stack_size(THREAD_STACK);
        let started = thread.spawn(move || serve(&script, &names, &runtime, &questions));
        if let Err(error) = started {
            tracing::error!(%error, "start a thread for a PAC file");
        }
        asked
    }

    fn serve(script: &Script, names: &Names, runtime: &Handle, questions: &Receiver<Question>) {
        let mut engine = None;
        while let Ok(question) = questions.recv() {
            let left = question.until.saturating_duration_since(Instant::now());
            if left.is_zero() || question.answer.is_closed() {
                continue;
            }
            let ready = if let Some(ready) = engine.take() {
                Ok(ready)
            } else {
                let (names, runtime) = (names.clone(), runtime.clone());
                let lookup = move |name: &str| lookup(name, &names, &runtime);
                Engine::new(&script.text, Box::new(lookup))
            };
            let said = ready.and_then(|ready: Engine| {
                let said = ready.find(&question.url, &question.host, left);
                match said {
                    // What was broken off may have left anything behind. It had waited as well.
                    Err(PacError::Slow(_)) => Err(PacError::Slow(question.limit)),
                    Err(PacError::Memory(_)) => said,
                    Ok(_) | Err(_) => {
                        engine = Some(ready);
                        said
                    }
                }
            });
            // The client may have left.
            let _ = question.answer.send(said);
        }
    }

    fn lookup(name: &str, names: &Names, runtime: &Handle) -> Option<Ipv4Addr> {
        let host = Host::parse(name).ok()?;
        let trail = Trail::default();
        let found = runtime.block_on(names.of_target(&host, None).lookup(&host, LOOKUP, &trail));
        found.ok()?.into_iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
    }

    pub(super) async fn ask(
        asked: &Asked,
        url: String,
        host: String,
        limit: Duration,
    ) -> Result<String, PacError> {
        let until = Instant::now() + limit;
        let (answer, answered) = oneshot::channel();
        let question = Question {
            url,
            host,
            limit,
            until,
            answer,
        };
        asked.try_send(question).map_err(|_| PacError::Busy)?;
        // The script ends by itself; this is for those that wait behind another.
        let grace = LIMIT / 10;
        match timeout_at(until + grace, answered).await {
            Ok(Ok(said)) => said,
            Ok(Err(_)) | Err(_) => Err(PacError::Slow(limit)),
        }
    }
}

#[cfg(not(feature = "pac"))]
mod worker {
    //! No script is evaluated in this build; a policy that names one is refused before.

    use std::time::Duration;

    use crate::pac::{PacError, Script};
    use crate::route::Names;

    #[derive(Clone, Debug)]
    pub(super) struct Asked;

    pub(super) fn start(_: Script, _: Names) -> Asked {
        Asked
    }

    #[expect(clippy::unused_async, reason = "a script is waited for")]
    pub(super) async fn ask(
        _: &Asked,
        _: String,
        _: String,
        _: Duration,
    ) -> Result<String, PacError> {
        Err(PacError::NotBuilt)
    }
}
