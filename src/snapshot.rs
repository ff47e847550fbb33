//! Everything that a reload replaces, in one piece.

use std::sync::Arc;

use ipnet::IpNet;

use crate::net::resolve::Resolver;
use crate::policy::{Policy, RouteId};
use crate::proxy::pool::Pool;
use crate::route::{Dial, Names, assemble};

/// A policy at work. Immutable; a request keeps the one that it began with.
#[derive(Debug)]
pub struct Snapshot {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Who may use the proxy beside clients on this machine.
    pub allow_from: Vec<IpNet>,
    /// Names to addresses under this policy.
    pub names: Names,
    /// Kept connections, of each worker: they end with their policy, so none serves what a newer one denies.
    pub pools: Vec<Arc<Pool>>,
    routes: Vec<Arc<dyn Dial>>,
}

impl Snapshot {
    /// Sets a policy to work.
    pub fn new(
        policy: Policy,
        allow_from: Vec<IpNet>,
        resolver: Arc<Resolver>,
        workers: usize,
    ) -> Self {
        let policy = Arc::new(policy);
        let names = Names::new(policy.clone(), resolver);
        let routes = assemble::assemble(&policy, &names);
        Self {
            policy,
            allow_from,
            names,
            pools: (0..workers).map(|_| Arc::default()).collect(),
            routes,
        }
    }

    /// The way out behind an id.
    #[expect(
        clippy::indexing_slicing,
        reason = "ids are places in the policy that the routes were built from"
    )]
    pub fn route(&self, id: RouteId) -> &Arc<dyn Dial> {
        &self.routes[id.0]
    }

    /// The kept connections of a worker.
    #[expect(clippy::indexing_slicing, reason = "each worker has its own")]
    pub fn pool(&self, worker: usize) -> &Arc<Pool> {
        &self.pools[worker]
    }
}
