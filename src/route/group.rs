//! One of several upstreams that are as good as each other.
//!
//! Another member is tried where one turns out to be down, and for no other failure: what an upstream says of a target, its
//! sibling would say as well. Members whose circuits are open come last, and are tried only where nothing else may
//! serve.

mod balance;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::health::Health;
use super::{BoxFuture, Conn, Dial, Plan};
use crate::cause::Class;
use crate::exchange::Trail;
use crate::failure::{AllDown, Failure, classify};
use crate::policy::group::{self as written, Balance};
use crate::timeouts::Timeouts;
use balance::Balancer;

/// A group of ways out.
#[derive(Debug)]
pub struct Group {
    name: Arc<str>,
    members: Vec<Member>,
    spec: written::Group,
    balancer: Balancer,
}

/// A member that can be dialled.
#[derive(Debug)]
pub struct Member {
    /// The way out.
    pub dial: Arc<dyn Dial>,
    /// What is known of it.
    pub health: Arc<Health>,
    /// Its share beside the others'.
    pub weight: u32,
}

/// A member whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    /// Its place in the group.
    at: usize,
    /// Whether it is tried even if its circuit is open.
    insists: bool,
}

impl Group {
    /// A group of these members, as it is written in a policy.
    pub fn new(name: Arc<str>, members: Vec<Member>, spec: written::Group) -> Self {
        let balancer = Balancer::new(spec.balance, members.len());
        Self {
            name,
            members,
            spec,
            balancer,
        }
    }

    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        let budget = Instant::now() + plan.retry.budget;
        let deadline = plan.deadline.map_or(budget, |whole| whole.min(budget));
        let turns = self.turns(plan);
        let mut tries = plan.retry.attempts;
        let mut tried = Vec::new();
        for (place, turn) in turns.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            if tries == 0 || place > 0 && left.is_zero() {
                break;
            }
            #[expect(clippy::indexing_slicing, reason = "turns are places in the list")]
            let member = &self.members[turn.at];
            let hops = u32::try_from(turns.len() - place).unwrap_or(u32::MAX);
            let plan = Plan {
                timeouts: within(&plan.timeouts, left / hops.min(tries)),
                passes_over: !turn.insists,
                ..plan.clone()
            };
            let failure = match self.dial_member(member, &plan, trail).await {
                Ok(conn) => return Ok(conn),
                Err(failure) => failure,
            };
            if Class::of(classify(&failure)) != Some(Class::ProxyDown) {
                return Err(failure);
            }
            if !matches!(failure, Failure::UpstreamCircuitOpen { .. }) {
                tries -= 1;
            }
            tried.push((member.health.name.clone(), failure));
        }
        Err(self.all_down(tried))
    }

    async fn dial_member(
        &self,
        member: &Member,
        plan: &Plan,
        trail: &Trail,
    ) -> Result<Conn, Failure> {
        // From the beginning of the dial on, so that dials at once are shared out as well.
        let counted = (self.spec.balance == Balance::LeastConn).then(|| member.health.occupy());
        let started = Instant::now();
        let mut conn = member.dial.dial(plan, trail).await?;
        if self.spec.balance == Balance::Fastest {
            member.health.measured(started.elapsed());
        }
        if let Some(counted) = counted {
            conn.held.add(counted);
        }
        Ok(conn)
    }

    /// The members in the order in which they are tried: those that are down last.
    fn turns(&self, plan: &Plan) -> Vec<Turn> {
        let may_insist = self.spec.all_down == written::AllDown::TryFirst && !plan.passes_over;
        let is_down: Vec<bool> = self
            .members
            .iter()
            .map(|member| member.health.is_down())
            .collect();
        let is_up = |at: &usize| !is_down.get(*at).is_some_and(|is_down| *is_down);
        let up: Vec<usize> = (0..self.members.len()).filter(is_up).collect();
        let mut turns: Vec<Turn> = self
            .balancer
            .order(&self.members, &up, plan)
            .into_iter()
            .map(|at| Turn { at, insists: false })
            .collect();
        let down = (0..self.members.len()).filter(|at| !is_up(at));
        turns.extend(down.map(|at| Turn {
            at,
            insists: may_insist,
        }));
        if let Some(last) = turns.last_mut() {
            last.insists = may_insist;
        }
        turns
    }

    /// What is told where no member serves: of a single one, what it failed of.
    fn all_down(&self, mut tried: Vec<(Arc<str>, Failure)>) -> Failure {
        if tried.len() == 1
            && let Some((_, failure)) = tried.pop()
        {
            return failure;
        }
        Failure::AllDown(Box::new(AllDown {
            group: self.name.clone(),
            untried: self.members.len().saturating_sub(tried.len()),
            tried,
        }))
    }
}

impl Dial for Group {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }

    fn is_lasting(&self) -> bool {
        self.members.iter().all(|member| member.dial.is_lasting())
    }
}

/// The same waits, but to reach a hop takes no longer than `share`. What it answers then is waited for as ever: a slow answer
/// is the target's, and no other member is asked after it.
fn within(timeouts: &Arc<Timeouts>, share: Duration) -> Arc<Timeouts> {
    if timeouts.dns <= share && timeouts.connect <= share {
        return timeouts.clone();
    }
    Arc::new(Timeouts {
        dns: timeouts.dns.min(share),
        connect: timeouts.connect.min(share),
        connect_address: timeouts.connect_address.min(share),
        ..(**timeouts).clone()
    })
}

#[cfg(test)]
mod tests;
