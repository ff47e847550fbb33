//! What the lab puts behind the hops: its own hosts, and the faults that are asked for while it runs.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::config::Struck;
use crate::exchange::{Mark, Trail};
use crate::failure::Failure;
use crate::policy::RouteSpec;
use crate::policy::fault::{WrongCert, is_of_lab};
use crate::policy::matcher::Hosts;
use crate::route::fault::{Faulty, Tally};
use crate::route::world::{self, Hop};
use crate::route::{BoxFuture, Conn, Dial, Plan};
use crate::target::{Host, Target};

/// Where the lab's hosts are, as far as anybody is told.
pub(super) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The lab's hosts and its faults.
#[derive(Debug)]
pub(super) struct World {
    /// Where the servers listen that show each kind of certificate.
    servers: Vec<(Option<WrongCert>, SocketAddr)>,
    guest: Option<Guest>,
    faults: Mutex<Faults>,
    /// The lab's own clients, by their addresses.
    legs: Mutex<HashMap<SocketAddr, Arc<Marked>>>,
}

/// What the record of a client's request is marked with, once something has struck it.
#[derive(Debug)]
struct Marked {
    name: Arc<str>,
    mark: OnceLock<Arc<Mark>>,
}

/// A connection of the lab itself to its proxy, whose far end is somebody's test.
#[derive(Debug)]
pub(super) struct Leg {
    world: Arc<World>,
    from: SocketAddr,
    marked: Arc<Marked>,
}

impl Leg {
    /// Notes that something struck it, on the way to the proxy.
    pub(super) fn strike(&self) {
        if let Some(mark) = self.marked.mark.get() {
            mark.strike();
        }
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        self.world.legs().remove(&self.from);
    }
}

/// A host that is served as if it were the lab's.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    /// It.
    pub(super) host: Host,
    /// The server that is it in place of the others.
    pub(super) server: Option<SocketAddr>,
}

#[derive(Debug, Default)]
struct Faults {
    next: u64,
    /// By the order of their coming.
    at_work: BTreeMap<u64, AtWork>,
}

#[derive(Clone, Debug)]
struct AtWork {
    hosts: Hosts,
    tally: Arc<Tally>,
}

impl World {
    pub(super) fn new(servers: Vec<(Option<WrongCert>, SocketAddr)>, guest: Option<Guest>) -> Self {
        Self {
            servers,
            guest,
            faults: Mutex::default(),
            legs: Mutex::default(),
        }
    }

    /// Puts a fault to work; its number, and what counts what it strikes.
    pub(super) fn add(&self, struck: Struck) -> (u64, Arc<Tally>) {
        let tally = Arc::new(Tally::new(Arc::new(struck.fault)));
        let mut faults = self.faults();
        let number = faults.next;
        faults.next += 1;
        let at_work = AtWork {
            hosts: struck.hosts,
            tally: tally.clone(),
        };
        faults.at_work.insert(number, at_work);
        (number, tally)
    }

    /// Those at work.
    pub(super) fn list(&self) -> Vec<(u64, Arc<Tally>)> {
        let faults = self.faults();
        let at_work = faults.at_work.iter();
        at_work
            .map(|(number, at_work)| (*number, at_work.tally.clone()))
            .collect()
    }

    /// Ends one; what it struck stays struck.
    pub(super) fn remove(&self, number: u64) {
        self.faults().at_work.remove(&number);
    }

    /// Ends all of them.
    pub(super) fn clear(&self) {
        self.faults().at_work.clear();
    }

    /// A connection that is about to be made from there. What strikes it is called `name`.
    pub(super) fn leg(self: &Arc<Self>, from: SocketAddr, name: Arc<str>) -> Leg {
        let marked = Arc::new(Marked {
            name,
            mark: OnceLock::new(),
        });
        self.legs().insert(from, marked.clone());
        Leg {
            world: self.clone(),
            from,
            marked,
        }
    }

    fn legs(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Marked>>> {
        self.legs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the lab's own client mark its record.
    fn know(&self, client: SocketAddr, trail: &Trail) {
        if let Some(marked) = self.legs().get(&client) {
            marked.mark.get_or_init(|| trail.fault(&marked.name));
        }
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The faults that may strike a host on a hop.
    fn on_the_way(&self, host: &Host, spec: &RouteSpec) -> Vec<Arc<Tally>> {
        let faults = self.faults();
        let of_host = faults
            .at_work
            .values()
            .filter(|at_work| at_work.hosts.contain(host) && at_work.tally.fault().fits(spec));
        of_host.map(|at_work| at_work.tally.clone()).collect()
    }

    /// Where the server of a target is, where that is the lab's.
    fn server(&self, plan: &Plan) -> Option<SocketAddr> {
        let guest = self
            .guest
            .as_ref()
            .filter(|guest| guest.host == plan.target.host);
        let is_ours = guest.is_some() || plan.target.host.name().is_some_and(is_of_lab);
        // A wrong answer leads elsewhere.
        let is_here = match &plan.addresses {
            None => true,
            Some(found) => found.as_ref().is_ok_and(|found| found == &[ADDRESS]),
        };
        let of_guest = guest.and_then(|guest| guest.server);
        let mut servers = self.servers.iter();
        let server = servers.find(|(certificate, _)| *certificate == plan.certificate);
        of_guest
            .or(server.map(|(_, address)| *address))
            .filter(|_| is_ours && is_here)
    }
}

impl world::World for World {
    fn lead(self: Arc<Self>, hop: Hop) -> Arc<dyn Dial> {
        let dial: Arc<dyn Dial> = match hop.route.spec {
            RouteSpec::Direct => Arc::new(Inside {
                world: self.clone(),
                dial: hop.dial.clone(),
            }),
            RouteSpec::Chain(_)
            | RouteSpec::Group(_)
            | RouteSpec::Upstream(_)
            | RouteSpec::Pac(_)
            | RouteSpec::Faulty { .. } => hop.dial.clone(),
        };
        Arc::new(Way {
            world: self,
            hop: Hop { dial, ..hop },
        })
    }
}

/// A hop with the faults of the moment.
#[derive(Debug)]
struct Way {
    world: Arc<World>,
    hop: Hop,
}

impl Way {
    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        let Hop {
            dial,
            route,
            policy,
            names,
        } = &self.hop;
        self.world.know(plan.client.peer, trail);
        let mut dial = dial.clone();
        for tally in self.world.on_the_way(&plan.target.host, &route.spec) {
            dial = Arc::new(Faulty::new(dial, route, tally, policy, names.clone()));
        }
        dial.dial(plan, trail).await
    }
}

impl Dial for Way {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }

    fn is_lasting(&self) -> bool {
        // A fault may come at any moment, and each request is to meet it.
        false
    }
}

/// The direct way, which finds the lab's hosts where their servers listen.
#[derive(Debug)]
struct Inside {
    world: Arc<World>,
    dial: Arc<dyn Dial>,
}

impl Inside {
    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        let Some(server) = self.world.server(plan) else {
            return self.dial.dial(plan, trail).await;
        };
        let plan = Plan {
            target: Target::new(plan.target.host.clone(), server.port()),
            // An address that is somebody else's leads here, too.
            addresses: match plan.target.host {
                Host::Ip(_) => Some(Ok(vec![ADDRESS])),
                Host::Name(_) => plan.addresses.clone(),
            },
            ..plan.clone()
        };
        self.dial.dial(&plan, trail).await
    }
}

impl Dial for Inside {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }
}
