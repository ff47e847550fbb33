//! An upstream whose health is watched.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Health;
use crate::cause::Kind;
use crate::exchange::Trail;
use crate::failure::{Failure, classify};
use crate::route::{BoxFuture, Conn, Dial, Form, Plan};

/// A wait that was cut shorter than this says nothing of the upstream.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// An upstream whose health is watched.
pub struct Watched {
    inner: Box<dyn Dial>,
    health: Arc<Health>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Watched {
    /// Watches over `inner`.
    pub fn new(inner: Box<dyn Dial>, health: Arc<Health>) -> Self {
        Self { inner, health }
    }

    /// What is known of it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Opens a connection only to see whether that works, and drops it.
    pub async fn probe(&self, plan: &Plan) {
        let outcome = self.inner.dial(plan, &Trail::default()).await;
        if let Err(failure) = &outcome {
            tracing::debug!("a probe of upstream {} failed: {failure}", self.health.name);
        }
        self.health.probed(outcome.as_ref().map(|_| ()));
    }

    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        let pass = self.health.admit(plan.passes_over).inspect_err(|failure| {
            trail.hop(&self.health.name);
            trail.failed(classify(failure), Duration::ZERO);
        })?;
        let wait = plan.within(plan.timeouts.connect);
        let conn = self.inner.dial(plan, trail).await;
        match &conn {
            Ok(Conn {
                form: Form::Absolute { .. },
                ..
            }) => pass.reached(),
            Ok(_) => pass.served(),
            Err(failure) if wait < SHORTEST_WAIT && is_timeout(failure) => {}
            Err(failure) => pass.failed(failure, &plan.target.host.to_string()),
        }
        conn
    }
}

/// Whether the upstream could not be reached in time.
fn is_timeout(failure: &Failure) -> bool {
    matches!(
        classify(failure).kind,
        Kind::ConnectTimeout | Kind::DnsTimeout
    )
}

impl Dial for Watched {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }
}
