//! Straight to the target.

use std::sync::Arc;

use tokio::time::Instant;

use super::{BoxFuture, Conn, Dial, Found, Names, Plan, connect};
use crate::cause::Cause;
use crate::exchange::Trail;
use crate::failure::{Failure, classify};
use crate::net::here::is_here;
use crate::policy::Policy;

/// The way out that needs nobody: resolve, ask the guards for each address, connect.
#[derive(Debug)]
pub struct Direct {
    name: Arc<str>,
    policy: Arc<Policy>,
    names: Names,
}

impl Direct {
    /// The direct way under a policy's guards.
    pub fn new(name: Arc<str>, policy: Arc<Policy>, names: Names) -> Self {
        Self {
            name,
            policy,
            names,
        }
    }

    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        trail.hop(&self.name);
        let started = Instant::now();
        let host = &plan.target.host;
        let names = self.names.of_target(host, plan.dns);
        let found = match &plan.addresses {
            // What a rule was judged by is what is dialled.
            Some(found) => found.clone().map(Found::from),
            None => {
                names
                    .find(host, plan.within(plan.timeouts.dns), trail)
                    .await
            }
        };
        let found = found.map_err(Failure::from);
        let found =
            found.inspect_err(|failure| trail.failed(classify(failure), started.elapsed()))?;
        let judge = |address| self.policy.guards.admit(address, &plan.client, is_here);
        let socket = connect(&plan.target, found, names, &judge, Cause::from, plan, trail).await?;
        Ok(Conn::straight(socket, self.name.clone()))
    }
}

impl Dial for Direct {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::config::{self, Environment, Options, Source};
    use crate::net::resolve::{ResolveError, Resolver, Unresolved};
    use crate::route::Purpose;
    use crate::target::Target;

    #[tokio::test]
    async fn a_name_that_the_policy_could_not_find_is_not_looked_up_again() {
        let text = "version: 1\nrules: []\ndefault: {direct: true}\ndns: {hosts: {a.example: [127.0.0.1]}}\n";
        let source = Source::Text {
            name: "policy.yaml".to_owned(),
            text: text.to_owned(),
        };
        let options = Options::check(jiff::Timestamp::UNIX_EPOCH);
        let loaded = config::load(&source, &Environment::default(), &options).unwrap();
        let policy = Arc::new(loaded.policy);
        let names = Names::new(policy.clone(), Arc::new(Resolver::with_servers(&[])));
        let direct = Direct::new("direct".into(), policy.clone(), names);
        // The pin would answer now, had it to be asked again.
        let target = Target::from_authority("a.example:1").unwrap();
        let plan = Plan {
            addresses: Some(Err(ResolveError::new(
                "a.example",
                Unresolved::ServFail { ede: None },
            ))),
            ..Plan::new(&policy, Client::ourselves("proxy"), target, Purpose::Tunnel)
        };
        let failure = direct.dial(&plan, &Trail::default()).await.unwrap_err();
        assert!(
            matches!(
                &failure,
                Failure::Resolve(error) if matches!(error.why, Unresolved::ServFail { .. })
            ),
            "{failure:?}"
        );
    }
}
