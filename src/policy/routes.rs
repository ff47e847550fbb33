//! Routes, and what is asked of them.

use std::net::IpAddr;
use std::sync::Arc;

use super::Policy;
use super::chain::Chain;
use super::fault::{Fault, Point};
use super::group::{Balance, Group, rank};
use super::upstream::Upstream;
use crate::pac::Source;

/// A route for each of the two kinds of request: they differ where an upstream comes from the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByScheme {
    /// For plain requests.
    pub http: RouteId,
    /// For tunnels.
    pub connect: RouteId,
}

impl ByScheme {
    /// Straight out, whatever it is.
    pub const DIRECT: Self = Self {
        http: RouteId::DIRECT,
        connect: RouteId::DIRECT,
    };
}

/// The place of a route in [`Policy::routes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteId(pub usize);

impl RouteId {
    /// The route that is always there.
    pub const DIRECT: Self = Self(0);
}

/// A way out, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name: `direct`, or that of the upstream, group or chain.
    pub name: Arc<str>,
    /// What it is.
    pub spec: RouteSpec,
}

/// What a way out is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteSpec {
    /// Straight to the target.
    Direct,
    /// One hop after another.
    Chain(Chain),
    /// One of several.
    Group(Group),
    /// Through another proxy.
    Upstream(Arc<Upstream>),
    /// By what a script says of each request.
    Pac(Source),
    /// Another route, with interference.
    Faulty {
        /// That route, which it is named after.
        inner: RouteId,
        /// The interference.
        fault: Arc<Fault>,
    },
}

impl RouteSpec {
    /// Where an upstream listens, as a URL.
    pub fn url(&self) -> Option<String> {
        match self {
            Self::Upstream(upstream) => Some(format!("{}://{}", upstream.scheme(), upstream.proxy)),
            Self::Direct | Self::Chain(_) | Self::Group(_) | Self::Pac(_) | Self::Faulty { .. } => {
                None
            }
        }
    }
}

impl Policy {
    /// The route behind an id.
    pub fn route(&self, id: RouteId) -> &Route {
        #[expect(
            clippy::indexing_slicing,
            reason = "ids are made together with the list"
        )]
        &self.routes[id.0]
    }

    /// The route behind the faults of a route.
    pub fn without_faults(&self, id: RouteId) -> &Route {
        let route = self.route(id);
        match &route.spec {
            RouteSpec::Faulty { inner, .. } => self.without_faults(*inner),
            RouteSpec::Direct
            | RouteSpec::Chain(_)
            | RouteSpec::Group(_)
            | RouteSpec::Pac(_)
            | RouteSpec::Upstream(_) => route,
        }
    }

    /// Its place.
    pub fn id_without_faults(&self, id: RouteId) -> RouteId {
        match &self.route(id).spec {
            RouteSpec::Faulty { inner, .. } => self.id_without_faults(*inner),
            RouteSpec::Direct
            | RouteSpec::Chain(_)
            | RouteSpec::Group(_)
            | RouteSpec::Pac(_)
            | RouteSpec::Upstream(_) => id,
        }
    }

    /// The faults of a route, each with the name of the hop that it strikes: `None` where it strikes before any hop.
    pub fn faults_of(&self, id: RouteId) -> Vec<(Option<&str>, &Fault)> {
        let route = self.route(id);
        match &route.spec {
            RouteSpec::Faulty { inner, fault } => {
                let hop = fault.at.point() != Point::Accept;
                let hop = hop.then_some(&*self.without_faults(*inner).name);
                let mut faults = vec![(hop, &**fault)];
                faults.extend(self.faults_of(*inner));
                faults
            }
            RouteSpec::Chain(chain) => {
                let of_hops = chain.hops.iter().map(|hop| self.faults_of(hop.route));
                of_hops.flatten().collect()
            }
            RouteSpec::Group(group) => {
                let of_members = group
                    .members
                    .iter()
                    .map(|member| self.faults_of(member.route));
                of_members.flatten().collect()
            }
            RouteSpec::Direct | RouteSpec::Upstream(_) | RouteSpec::Pac(_) => Vec::new(),
        }
    }

    /// The names of all faults that are used, each once.
    pub fn faults(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for route in &self.routes {
            if let RouteSpec::Faulty { fault, .. } = &route.spec
                && !names.contains(&&*fault.name)
            {
                names.push(&fault.name);
            }
        }
        names
    }

    /// The way out that a route goes by where its hop has this name.
    pub fn hop(&self, route: RouteId, name: &str) -> Option<RouteId> {
        let of = |id: &RouteId| self.hop(*id, name);
        let Route { name: own, spec } = self.route(route);
        match spec {
            RouteSpec::Direct | RouteSpec::Upstream(_) => (**own == *name).then_some(route),
            // Its hops have no places.
            RouteSpec::Pac(_) => None,
            RouteSpec::Chain(chain) => chain.hops.iter().find_map(|hop| of(&hop.route)),
            RouteSpec::Group(group) => group.members.iter().find_map(|member| of(&member.route)),
            RouteSpec::Faulty { inner, .. } => of(inner).map(|_| route),
        }
    }

    /// Whether a connection that a route opened by this hop may serve that client: not where a group sends the client to
    /// another member.
    pub fn may_share(&self, route: RouteId, hop: &str, client: IpAddr) -> bool {
        match &self.route(route).spec {
            RouteSpec::Direct | RouteSpec::Upstream(_) | RouteSpec::Pac(_) => true,
            RouteSpec::Chain(chain) => chain
                .hops
                .iter()
                .all(|link| self.may_share(link.route, hop, client)),
            RouteSpec::Group(group) if group.balance == Balance::HashClient => {
                let names = || {
                    group
                        .members
                        .iter()
                        .map(|m| (&*self.route(m.route).name, m.weight))
                };
                let ranked = rank(&client.to_string(), names());
                let first = ranked.first().and_then(|at| names().nth(*at));
                names().all(|(name, _)| name != hop) || first.is_some_and(|(name, _)| name == hop)
            }
            RouteSpec::Group(_) => true,
            RouteSpec::Faulty { inner, .. } => self.may_share(*inner, hop, client),
        }
    }
}
