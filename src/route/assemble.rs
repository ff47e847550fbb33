//! From what a policy says of its routes to the running ones. The only place that builds them.

use std::sync::Arc;

use super::chain::{Chain, Leg};
use super::direct::Direct;
use super::fault::{Faulty, Tally};
use super::group::{Group, Member};
use super::health::{Health, Watched};
use super::pac::{Fetched, Pac};
use super::tunnel::Through;
use super::upstream::Upstream;
use super::world::{Hop, World};
use super::{Dial, Names};
use crate::net::resolve::Resolver;
use crate::policy::{Policy, Route, RouteId, RouteSpec, chain, group};

/// The ways out of a policy.
#[derive(Debug, Default)]
pub struct Assembled {
    /// By [`RouteId`]. Chains, groups and scripts stand behind what they are made of, faults behind what they strike.
    pub routes: Vec<Arc<dyn Dial>>,
    /// The upstreams among them.
    pub upstreams: Vec<Arc<Watched>>,
    /// The faults among them, one for each use.
    pub faults: Vec<Arc<Tally>>,
    /// What their scripts are, where web servers have them.
    pub scripts: Vec<Arc<Fetched>>,
}

/// Builds the resolver of a policy, and its ways out, whose hops are known by `health` and lead into `world`. What `resolver`
/// remembers is taken over, and what was fetched of `scripts`, until it is fetched anew.
#[expect(
    clippy::indexing_slicing,
    reason = "ids are places in the policy that the routes are built from"
)]
pub fn assemble(
    policy: &Arc<Policy>,
    resolver: &Resolver,
    health: &[Option<Arc<Health>>],
    scripts: &[Arc<Fetched>],
    world: Option<&Arc<dyn World>>,
) -> (Names, Assembled) {
    let resolver = Arc::new(resolver.under(policy));
    let names = Names::new(policy.clone(), resolver.clone());
    let built = ways(policy, &names, health, scripts, world);
    let routes = &built.routes;
    resolver.lead(|RouteId(at)| Arc::new(Through::new(&routes[at], policy.timeouts.clone())));
    (names, built)
}

fn ways(
    policy: &Arc<Policy>,
    names: &Names,
    health: &[Option<Arc<Health>>],
    scripts: &[Arc<Fetched>],
    world: Option<&Arc<dyn World>>,
) -> Assembled {
    let mut built = Assembled::default();
    let into_world = |dial: Arc<dyn Dial>, route: &Route| match world {
        None => dial,
        Some(world) => world.clone().lead(Hop {
            dial,
            route: route.clone(),
            policy: policy.clone(),
            names: names.clone(),
        }),
    };
    for (route, health_of_it) in policy.routes.iter().zip(health) {
        let name = route.name.clone();
        let dial: Arc<dyn Dial> = match &route.spec {
            RouteSpec::Direct => {
                let direct = Direct::new(name, policy.clone(), names.clone());
                into_world(Arc::new(direct), route)
            }
            RouteSpec::Chain(chain) => Arc::new(Chain::new(
                legs(policy, chain, &built.routes),
                chain.clone(),
            )),
            RouteSpec::Pac(source) => {
                let direct = Direct::new("direct".into(), policy.clone(), names.clone());
                let pac = Pac::new(
                    name,
                    source,
                    scripts.iter().find(|script| script.is_of(source)),
                    policy.clone(),
                    names.clone(),
                    Arc::new(direct),
                    &built.routes,
                );
                built.scripts.extend(pac.fetched().cloned());
                Arc::new(pac)
            }
            RouteSpec::Faulty { inner, fault } => {
                // The hops that one use strikes are counted together.
                let known = built.faults.iter().find(|tally| *tally.fault() == **fault);
                let tally = known.cloned().unwrap_or_else(|| {
                    let tally = Arc::new(Tally::new(fault.clone()));
                    built.faults.push(tally.clone());
                    tally
                });
                #[expect(
                    clippy::indexing_slicing,
                    reason = "a fault stands behind what it strikes"
                )]
                let way = built.routes[inner.0].clone();
                let hop = policy.without_faults(*inner);
                Arc::new(Faulty::new(way, hop, tally, policy, names.clone()))
            }
            RouteSpec::Group(group) => {
                let members = members(policy, group, health, &built.routes);
                Arc::new(Group::new(name, members, group.clone()))
            }
            RouteSpec::Upstream(spec) => {
                let upstream = Upstream::new(name, spec.clone(), policy.clone(), names.clone());
                let upstream: Arc<dyn Dial> = match health_of_it {
                    Some(health) => {
                        let watched = Watched::new(Box::new(upstream), health.clone());
                        let watched = Arc::new(watched);
                        built.upstreams.push(watched.clone());
                        watched
                    }
                    None => Arc::new(upstream),
                };
                into_world(upstream, route)
            }
        };
        built.routes.push(dial);
    }
    built
}

fn legs(policy: &Policy, chain: &chain::Chain, built: &[Arc<dyn Dial>]) -> Vec<Leg> {
    let legs = chain.hops.iter().filter_map(|hop| {
        Some(Leg {
            name: policy.route(hop.route).name.clone(),
            dial: built.get(hop.route.0)?.clone(),
            next_on: hop.next_on,
        })
    });
    legs.collect()
}

fn members(
    policy: &Policy,
    group: &group::Group,
    health: &[Option<Arc<Health>>],
    built: &[Arc<dyn Dial>],
) -> Vec<Member> {
    let members = group.members.iter().filter_map(|member| {
        Some(Member {
            dial: built.get(member.route.0)?.clone(),
            health: health
                .get(policy.id_without_faults(member.route).0)?
                .clone()?,
            weight: member.weight,
        })
    });
    members.collect()
}
