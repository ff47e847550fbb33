//! Upstreams that are asked from time to time, without a request, whether they work.

use std::net::Ipv4Addr;
use std::sync::Arc;

use http::Version;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::drain::Drain;
use crate::client::Client;
use crate::policy::health::Probe;
use crate::proxy::Proxy;
use crate::route::health::Watched;
use crate::route::{Plan, Purpose};
use crate::target::{Host, Target};

/// Starts a task for each upstream of the policy at work that is to be probed. They end with the process, or when what is
/// returned is cancelled.
pub(super) fn begin(proxy: &Arc<Proxy>, drain: &Drain) -> CancellationToken {
    let end = drain.closing().child_token();
    let snapshot = proxy.snapshot.load_full();
    for upstream in &snapshot.upstreams {
        let Some(probe) = upstream.health().spec.probe.clone() else {
            continue;
        };
        let plan = plan(&probe, proxy, &snapshot.policy);
        let (upstream, end) = (upstream.clone(), end.clone());
        drain.spawn(async move {
            let _ = end.run_until_cancelled(run(upstream, probe, plan)).await;
        });
    }
    end
}

async fn run(upstream: Arc<Watched>, probe: Probe, plan: Plan) {
    let mut turns = interval(probe.every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let plan = Plan {
            deadline: Some(Instant::now() + probe.timeout),
            ..plan.clone()
        };
        upstream.probe(&plan).await;
    }
}

/// What a probe asks for: in our own name, from this machine.
fn plan(probe: &Probe, proxy: &Proxy, policy: &crate::policy::Policy) -> Plan {
    let (purpose, target) = match &probe.connect {
        Some(target) => (Purpose::Tunnel, target.clone()),
        // Nobody is told of it.
        None => (
            Purpose::Reach,
            Target::new(Host::Ip(Ipv4Addr::LOCALHOST.into()), 0),
        ),
    };
    let via = proxy.identity.via.entry(Version::HTTP_11);
    Plan {
        via: String::from_utf8_lossy(via.as_bytes()).into_owned(),
        ..Plan::new(policy, Client::ourselves("probe"), target, purpose)
    }
}
