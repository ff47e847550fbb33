//! Whether proxies can be reached from this machine.

use futures_util::future::join_all;

use super::{STRAIGHT, look, of_text};
use crate::config::env::Environment;
use crate::doctor::facts::{Probe, Spoken};
use crate::doctor::{Plan, examine};
use crate::target::Target;

/// Connects to each, straight and at once, and asks nothing. What a proxy says is not looked at.
pub(in crate::cli) fn reach(proxies: &[Target], env: &Environment) -> anyhow::Result<Vec<Probe>> {
    let policy = of_text(STRAIGHT, &Environment::default())?;
    look(env, async |resolver, progress| {
        let tries = proxies.iter().map(async |proxy| {
            let plan = Plan {
                target: proxy.clone(),
                spoken: Spoken::Other,
                path: "/".to_owned(),
                wants_more: false,
                is_located: false,
                chosen: Some("direct".to_owned()),
                controls: Vec::new(),
                portal: None,
                servers: Vec::new(),
                bounds: None,
            };
            let facts = examine(&policy, resolver, &plan, progress).await;
            let direct = facts.direct().and_then(|way| way.target.last());
            direct.cloned().unwrap_or_default()
        });
        join_all(tries).await
    })
}
