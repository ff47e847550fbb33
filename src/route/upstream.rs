//! Through a proxy that speaks HTTP/1.1.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{BoxFuture, Conn, Dial, Form, Names, Plan, Purpose, connect};
use crate::cause::{Cause, Phase};
use crate::exchange::Trail;
use crate::failure::{Failure, classify};
use crate::net::socket::Socket;
use crate::net::upstream::{self, UpstreamError};
use crate::policy::Policy;
use crate::secret::Secret;
use crate::target::Target;

/// An upstream proxy. Plain requests go to it in absolute form, all else by CONNECT.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in policy and record.
    pub name: Arc<str>,
    /// Where it listens.
    pub proxy: Target,
    /// The `Proxy-Authorization` for it.
    pub credentials: Option<Secret>,
    /// The guards.
    pub policy: Arc<Policy>,
    /// For its name.
    pub names: Names,
}

impl Upstream {
    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        trail.hop(&self.name);
        let socket = self
            .reach(plan, trail)
            .await
            .map_err(|failure| self.reaching(failure))?;
        let credentials = self.credentials.clone();
        if plan.purpose == Purpose::Forward {
            let form = Form::Absolute {
                upstream: self.name.clone(),
                credentials,
            };
            return Ok(Conn {
                socket,
                early: Bytes::new(),
                form,
                is_end_to_end: false,
            });
        }
        trail.enter(Phase::Upstream);
        let started = Instant::now();
        let mut stream = socket.clone();
        let (via, limit) = (Some(plan.via.as_str()), plan.timeouts.proxy_reply);
        let opened =
            upstream::open(&mut stream, &plan.target, credentials.as_ref(), via, limit).await;
        trail.upstream(&self.name, started.elapsed());
        match opened {
            Ok(tunnel) => Ok(Conn {
                socket,
                early: tunnel.early,
                form: Form::Origin,
                is_end_to_end: false,
            }),
            Err(error) => {
                if let UpstreamError::Refused(reply) = &error {
                    trail.replied(reply);
                }
                let with_credentials = credentials.is_some();
                let failure = Failure::Upstream {
                    upstream: self.name.clone(),
                    with_credentials,
                    passes_443: false,
                    error,
                };
                trail.last_try_failed(classify(&failure));
                Err(failure)
            }
        }
    }

    async fn reach(&self, plan: &Plan, trail: &Trail) -> Result<Socket, Failure> {
        let started = Instant::now();
        let found = self
            .names
            .lookup(&self.proxy.host, plan.timeouts.dns, trail)
            .await
            .map_err(Failure::from);
        let found = found.inspect_err(|failure| {
            trail.failed(
                Cause::of_upstream(classify(failure).kind),
                started.elapsed(),
            );
        })?;
        let judge = |address| self.policy.guards.admit_upstream(address, &plan.client);
        connect(
            &self.proxy,
            found,
            &self.names,
            &judge,
            Cause::of_upstream,
            &plan.timeouts,
            trail,
        )
        .await
    }

    /// A failure on the way to the upstream, named so; a loop is a loop on any way.
    fn reaching(&self, failure: Failure) -> Failure {
        if let Failure::Loop(_) = failure {
            return failure;
        }
        Failure::Reach {
            upstream: self.name.clone(),
            failure: Box::new(failure),
        }
    }
}

impl Dial for Upstream {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }
}
