//! From what a policy says of its routes to the running ones. The only place that builds them.

use std::sync::Arc;

use super::direct::Direct;
use super::upstream::Upstream;
use super::{Dial, Names};
use crate::policy::{Policy, RouteSpec};

/// Builds the ways out of a policy, by [`crate::policy::RouteId`].
pub fn assemble(policy: &Arc<Policy>, names: &Names) -> Vec<Arc<dyn Dial>> {
    let build = |route: &crate::policy::Route| -> Arc<dyn Dial> {
        let name = route.name.clone();
        match &route.spec {
            RouteSpec::Direct => Arc::new(Direct::new(name, policy.clone(), names.clone())),
            RouteSpec::Upstream { proxy, credentials } => {
                let (proxy, credentials) = (proxy.clone(), credentials.clone());
                let (policy, names) = (policy.clone(), names.clone());
                Arc::new(Upstream {
                    name,
                    proxy,
                    credentials,
                    policy,
                    names,
                })
            }
        }
    };
    policy.routes.iter().map(build).collect()
}
