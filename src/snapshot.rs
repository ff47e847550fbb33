//! Everything that a reload replaces, in one piece.

use std::sync::Arc;

use ipnet::IpNet;

use crate::config::Users;
use crate::net::resolve::Resolver;
use crate::policy::{Policy, RouteId};
use crate::proxy::auth::Gate;
use crate::proxy::pool::Pool;
use crate::route::assemble::{Assembled, assemble};
use crate::route::fault::Tally;
use crate::route::health::{self, Health, Watched};
use crate::route::pac::Fetched;
use crate::route::world::World;
use crate::route::{Dial, Names};

/// A policy at work. Immutable; a request keeps the one that it began with.
#[derive(Debug)]
pub struct Snapshot {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Who may use the proxy beside clients on this machine.
    pub allow_from: Vec<IpNet>,
    /// Who may use it, where that is asked.
    pub gate: Option<Arc<Gate>>,
    /// Names to addresses under this policy.
    pub names: Names,
    /// Kept connections, of each worker: they end with their policy, so none serves what a newer one denies.
    pub pools: Vec<Arc<Pool>>,
    /// Its upstreams.
    pub upstreams: Vec<Arc<Watched>>,
    faults: Vec<Arc<Tally>>,
    scripts: Vec<Arc<Fetched>>,
    routes: Vec<Arc<dyn Dial>>,
    health: Vec<Option<Arc<Health>>>,
}

impl Snapshot {
    /// Sets a policy to work, in the place of the one `before`: what is known of its upstreams still holds, and what was fetched
    /// of its scripts. What `resolver` remembers is taken over, as far as the policy names the same servers. `pools`, one for
    /// each worker, keep nothing yet. Its hops lead into `world` where there is one.
    pub fn new(
        policy: Policy,
        allow_from: Vec<IpNet>,
        users: Option<&Arc<Users>>,
        resolver: &Resolver,
        pools: Vec<Arc<Pool>>,
        before: Option<&Self>,
        world: Option<&Arc<dyn World>>,
    ) -> Self {
        let kept = before.and_then(|before| before.gate.as_ref());
        let gate = users.map(|users| match kept {
            // It remembers who has proven it.
            Some(gate) if gate.is_of(users) => gate.clone(),
            Some(_) | None => Arc::new(Gate::new(users.clone())),
        });
        let policy = Arc::new(policy);
        let health = health::of_policy(&policy, before.map_or(&[], |before| &before.health));
        let scripts = before.map_or(&[][..], |before| &before.scripts);
        let (names, assembled) = assemble(&policy, resolver, &health, scripts, world);
        let Assembled {
            routes,
            upstreams,
            faults,
            scripts,
        } = assembled;
        Self {
            policy,
            allow_from,
            gate,
            names,
            pools,
            upstreams,
            faults,
            scripts,
            routes,
            health,
        }
    }

    /// What is known of a hop of a route.
    pub fn health(&self, route: RouteId, hop: &str) -> Option<&Health> {
        let id = self.policy.hop(route, hop)?;
        self.health.get(id.0)?.as_deref()
    }

    /// The way out behind an id.
    #[expect(
        clippy::indexing_slicing,
        reason = "ids are places in the policy that the routes were built from"
    )]
    pub fn route(&self, id: RouteId) -> &Arc<dyn Dial> {
        &self.routes[id.0]
    }

    /// The policy's faults, one for each use, with how often each struck.
    pub fn faults(&self) -> &[Arc<Tally>] {
        &self.faults
    }

    /// The kept connections of a worker.
    #[expect(clippy::indexing_slicing, reason = "each worker has its own")]
    pub fn pool(&self, worker: usize) -> &Arc<Pool> {
        &self.pools[worker]
    }
}
