//! Hops in turn, until one serves.
//!
//! What a hop failed of decides whether the next is tried. A connection that a chain yields may still turn out to lead
//! nowhere: it brings the hops that are left along, and whoever sees it fail asks them to go on.

mod memory;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::{BoxFuture, Conn, Dial, Plan, Purpose};
use crate::cause::{Class, Classes, Phase};
use crate::exchange::Trail;
use crate::failure::{Exhausted, Failure, OriginError, classify};
use crate::policy::chain::{self as written, Commit, OnExhausted};
use crate::target::Host;
use memory::Memory;

/// The note of a request that did not begin at its chain's first hop.
const REMEMBERED: &str = "chain.remembered";

/// A chain of ways out.
#[derive(Debug)]
pub struct Chain(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    legs: Vec<Leg>,
    spec: written::Chain,
    memory: Option<Memory>,
}

/// A hop that can be dialled.
#[derive(Debug)]
pub struct Leg {
    /// Its name.
    pub name: Arc<str>,
    /// The way out.
    pub dial: Arc<dyn Dial>,
    /// The failures behind which the next is tried.
    pub next_on: Classes,
}

impl Chain {
    /// A chain of these legs, in order, as it is written in a policy.
    pub fn new(legs: Vec<Leg>, spec: written::Chain) -> Self {
        let memory = spec.memory.map(Memory::new);
        Self(Arc::new(Inner { legs, spec, memory }))
    }
}

impl Dial for Chain {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        let rest = Rest::begin(self.0.clone(), plan, trail);
        Box::pin(async {
            let (conn, rest) = rest.dial(trail).await?;
            Ok(rest.joined(conn))
        })
    }

    fn is_lasting(&self) -> bool {
        self.0.legs.iter().all(|leg| leg.dial.is_lasting())
    }
}

/// For so long a hop that took over is asked first, over a connection that was kept: those before it get their turn again
/// soon, and do not cost every request a try.
const STANDS_IN: Duration = Duration::from_secs(50);

/// The hop of a chain that a kept connection leads by.
#[derive(Debug)]
pub struct Link {
    chain: Arc<Inner>,
    at: usize,
    since: Instant,
}

impl Link {
    /// Whether a request for `host` may begin at this hop: it is the first, or those before it are passed over, or it took
    /// over a moment ago. Where an answer's status leads on, each request begins at the first.
    pub fn is_due(&self, host: &Host) -> bool {
        if self.at == 0 {
            return true;
        }
        let chain = &self.chain;
        if chain.spec.on_status.is_empty() && self.since.elapsed() < STANDS_IN {
            return true;
        }
        chain.memory.as_ref().is_some_and(|memory| {
            let host = host.to_string();
            !(0..self.at).any(|at| memory.admits(at, &host))
        })
    }

    /// The hops behind it, for one more request.
    pub fn resume(&self, plan: &Plan) -> Box<Rest> {
        let mut rest = Rest::of(self.chain.clone(), plan);
        let memory = self.chain.memory.as_ref();
        let admits = |at: &usize| memory.is_none_or(|memory| memory.admits(*at, &rest.host));
        rest.left = (self.at + 1..self.chain.legs.len())
            .filter(admits)
            .collect();
        rest.tries = rest.tries.saturating_sub(1);
        rest.at = self.at;
        rest
    }
}

/// The hops that are left to a request, and what became of those before.
#[derive(Debug)]
pub struct Rest {
    chain: Arc<Inner>,
    plan: Plan,
    host: String,
    /// The hops still to be tried, by their place.
    left: VecDeque<usize>,
    /// So many of them may be.
    tries: usize,
    /// The hop whose connection is in use.
    at: usize,
    /// How many faults of the policy had struck before it was dialled.
    strikes: usize,
    tried: Vec<(Arc<str>, Failure)>,
    deadline: Instant,
}

impl Rest {
    fn begin(chain: Arc<Inner>, plan: &Plan, trail: &Trail) -> Box<Self> {
        let mut rest = Self::of(chain, plan);
        let (chain, host) = (&rest.chain, &rest.host);
        let all = 0..chain.legs.len();
        let mut left: VecDeque<usize> = match &chain.memory {
            Some(memory) => all.clone().filter(|at| memory.admits(*at, host)).collect(),
            None => all.clone().collect(),
        };
        if left.is_empty() {
            // All of them failed lately, and one may have recovered.
            left.extend(all.clone());
        } else if left.len() < all.len() {
            trail.note(REMEMBERED);
        }
        rest.left = left;
        rest
    }

    /// No hop yet.
    fn of(chain: Arc<Inner>, plan: &Plan) -> Box<Self> {
        let tries = chain.spec.attempts.unwrap_or(plan.retry.attempts);
        Box::new(Self {
            deadline: Instant::now() + chain.spec.budget.unwrap_or(plan.retry.budget),
            chain,
            plan: plan.clone(),
            host: plan.target.host.to_string(),
            left: VecDeque::new(),
            tries: usize::try_from(tries).unwrap_or(usize::MAX),
            at: 0,
            strikes: 0,
            tried: Vec::new(),
        })
    }

    /// How many hops may still be tried.
    fn hops_left(&self) -> usize {
        self.left.len().min(self.tries)
    }

    /// `wait` at most, and no more of the time that is left than each of the hops behind gets as well.
    fn share(&self, wait: Duration) -> Duration {
        let hops = u32::try_from(self.hops_left()).unwrap_or(u32::MAX);
        let left = self.deadline.saturating_duration_since(Instant::now());
        wait.min(left / hops.saturating_add(1))
    }

    /// The hop in use, for a connection that is kept.
    pub fn link(&self) -> Box<Link> {
        Box::new(Link {
            chain: self.chain.clone(),
            at: self.at,
            since: Instant::now(),
        })
    }

    /// Whether there is another hop, and time for it.
    pub fn has_next(&self) -> bool {
        self.hops_left() > 0 && Instant::now() < self.deadline
    }

    /// Whether a failure of this class of the hop in use leads to the next.
    pub fn goes_on_after(&self, class: Class) -> bool {
        self.has_next() && self.next_on().contains(class)
    }

    /// Whether there are hops that this failure of the one in use does not lead to.
    pub fn stops_at(&self, class: Option<Class>) -> bool {
        self.has_next() && class.is_none_or(|class| !self.next_on().contains(class))
    }

    /// Whether an answer of this status leads to the next hop.
    pub fn goes_on_after_status(&self, status: u16) -> bool {
        self.chain.spec.on_status.contains(&status) && self.goes_on_after(Class::Status)
    }

    /// Whether `failure` of the hop in use, whose connection stood, leads to the next.
    pub fn leads_on(&self, failure: &Failure) -> bool {
        let class = self.class_in_use(failure);
        class.is_some_and(|class| self.goes_on_after(class))
    }

    /// How long the hop in use may take to begin its answer to a plain request, so that each hop behind it has as much time.
    pub fn answer_limit(&self) -> Duration {
        self.share(self.plan.timeouts.first_byte)
    }

    /// How long a hop may go without a byte of the server behind the client's first flight: each of those behind it is left
    /// as much time.
    pub fn hello_limit(&self) -> Duration {
        self.share(self.plan.timeouts.hello)
    }

    /// How long a tunnel may be silent.
    pub fn idle_limit(&self) -> Duration {
        self.plan.timeouts.idle
    }

    /// How long it may last.
    pub fn max_duration(&self) -> Option<Duration> {
        self.plan.timeouts.max_duration
    }

    /// Gives the hops back the time that the client took.
    pub fn wait(&mut self, took: Duration) {
        self.deadline += took;
    }

    /// How a tunnel ends where no hop is left.
    pub fn on_exhausted(&self) -> OnExhausted {
        self.chain.spec.on_exhausted
    }

    /// What may be sent again.
    pub fn retry(&self) -> written::Retry {
        self.plan.retry
    }

    /// Notes that the hop in use served.
    pub fn served(&self) {
        if let Some(memory) = &self.chain.memory {
            memory.served(self.at, &self.host);
        }
    }

    /// Goes on to the next hop, where `failure` of the one in use allows it.
    ///
    /// # Errors
    /// The failure itself where it does not, or where no hop served.
    pub async fn go_on(self: Box<Self>, failure: Failure, trail: &Trail) -> Result<Conn, Failure> {
        let (conn, rest) = self.next(failure, trail).await?;
        Ok(rest.joined(conn))
    }

    /// The same, for a request that keeps the hops apart from its connection.
    ///
    /// # Errors
    /// As [`Rest::go_on`].
    pub async fn next(
        mut self: Box<Self>,
        failure: Failure,
        trail: &Trail,
    ) -> Result<(Conn, Box<Self>), Failure> {
        let class = self.class_in_use(&failure);
        let is_staged = trail.strikes() > self.strikes;
        self.failed(self.at, failure, class, is_staged)?;
        self.dial(trail).await
    }

    /// Ends with a failure of the hop in use, which leads to no other hop.
    pub fn give_up(mut self: Box<Self>, failure: Failure, trail: &Trail) -> Failure {
        let class = self.class_in_use(&failure);
        let class = class.filter(|class| self.next_on().contains(*class));
        if let Some(class) = class
            && trail.strikes() == self.strikes
        {
            self.counts(self.at, class);
        }
        let is_refused = class.is_some() && self.hops_left() == 0 && self.chain.spec.is_closed;
        let name = self.leg(self.at).name.clone();
        self.ended(name, failure, is_refused)
    }

    /// What the hop in use failed of.
    fn class_in_use(&self, failure: &Failure) -> Option<Class> {
        if let Failure::Origin(OriginError::Status(status)) = failure {
            let is_listed = self.chain.spec.on_status.contains(status);
            return is_listed.then_some(Class::Status);
        }
        match self.plan.purpose {
            Purpose::Forward => Class::of_answer(classify(failure)),
            Purpose::Tunnel | Purpose::Reach => Class::of(classify(failure)),
        }
    }

    fn next_on(&self) -> Classes {
        self.leg(self.at).next_on
    }

    fn leg(&self, at: usize) -> &Leg {
        #[expect(clippy::indexing_slicing, reason = "places are made from the list")]
        &self.chain.legs[at]
    }

    /// Notes what a hop failed of; an error where nothing else is to be tried. What is staged is held against nobody.
    fn failed(
        &mut self,
        at: usize,
        failure: Failure,
        class: Option<Class>,
        is_staged: bool,
    ) -> Result<(), Failure> {
        let leg = self.leg(at);
        let (name, next_on) = (leg.name.clone(), leg.next_on);
        let Some(class) = class.filter(|class| next_on.contains(*class)) else {
            return Err(self.ended(name, failure, false));
        };
        if !is_staged {
            self.counts(at, class);
        }
        self.passed_over(&failure);
        if self.has_next() {
            self.tried.push((name, failure));
            return Ok(());
        }
        let is_refused = self.hops_left() == 0 && self.chain.spec.is_closed;
        Err(self.ended(name, failure, is_refused))
    }

    /// A hop that was not dialled, since it is known to be down, costs no try.
    fn passed_over(&mut self, failure: &Failure) {
        let is_undialled = matches!(
            failure,
            Failure::UpstreamCircuitOpen { .. } | Failure::UpstreamDrained { .. }
        );
        if is_undialled {
            self.tries += 1;
        }
    }

    /// Holds a failure that leads on against the hop, where it speaks of the host. What does not lead to the next hop now must
    /// not let a later request pass this one over, either.
    fn counts(&self, at: usize, class: Class) {
        if let (true, Some(memory)) = (class.counts_against_host(), &self.chain.memory) {
            memory.failed(at, &self.host);
        }
    }

    /// What is told in the end.
    fn ended(&mut self, name: Arc<str>, failure: Failure, is_refused: bool) -> Failure {
        let mut tried = std::mem::take(&mut self.tried);
        if tried.is_empty() && !is_refused {
            return failure;
        }
        tried.push((name, failure));
        let how = self.on_exhausted();
        Failure::Exhausted(Box::new(Exhausted::new(tried, is_refused, how)))
    }

    /// Dials one hop after another, until one stands.
    async fn dial(mut self: Box<Self>, trail: &Trail) -> Result<(Conn, Box<Self>), Failure> {
        if let Some(hedge) = self.chain.spec.hedge {
            return self.dial_hedged(hedge, trail).await;
        }
        loop {
            let (at, plan) = self.take_next();
            let dial = self.leg(at).dial.clone();
            let strikes = trail.strikes();
            trail.next_hop();
            match dial.dial(&plan, trail).await {
                Ok(conn) => {
                    self.at = at;
                    self.strikes = strikes;
                    return Ok((conn, self));
                }
                Err(failure) => {
                    let class = Class::of(classify(&failure));
                    let is_staged = trail.strikes() > strikes;
                    self.failed(at, failure, class, is_staged)?;
                }
            }
        }
    }

    /// The same, but a hop that is silent for `hedge` gets company, unless only some of its failures lead on: what it will
    /// fail of is not known yet.
    async fn dial_hedged(
        mut self: Box<Self>,
        hedge: Duration,
        trail: &Trail,
    ) -> Result<(Conn, Box<Self>), Failure> {
        trail.next_hop();
        trail.enter(Phase::Connect);
        let mut dials = FuturesUnordered::new();
        // The hop under way that must end before the next is dialled.
        let mut alone = None;
        loop {
            if dials.is_empty() || self.has_next() && alone.is_none() {
                let (at, plan) = self.take_next();
                let dial = self.leg(at).dial.clone();
                alone = (!self.leg(at).next_on.is_wide()).then_some(at);
                dials.push(async move {
                    let own = trail.branch();
                    let dialled = dial.dial(&plan, &own).await;
                    (at, dialled, own)
                });
            }
            let gets_company = self.has_next() && alone.is_none();
            let company = Instant::now() + hedge;
            let ended = tokio::select! {
                biased;
                Some(ended) = dials.next() => Some(ended),
                () = sleep_until(company), if gets_company => None,
            };
            if let Some((at, ..)) = &ended {
                alone = alone.filter(|alone| alone != at);
            }
            match ended {
                Some((at, Ok(conn), own)) => {
                    // What the others came to, and what struck them, is noted first: the record tells of this one.
                    drop(dials);
                    let strikes = own.strikes();
                    drop(own);
                    self.at = at;
                    self.strikes = trail.strikes().saturating_sub(strikes);
                    return Ok((conn, self));
                }
                Some((at, Err(failure), own)) if dials.is_empty() => {
                    let is_staged = own.strikes() > 0;
                    drop(own);
                    let class = Class::of(classify(&failure));
                    self.failed(at, failure, class, is_staged)?;
                }
                Some((at, Err(failure), own)) => {
                    let is_staged = own.strikes() > 0;
                    drop(own);
                    // The others are under way already: only what forbids them ends them.
                    let leg = self.leg(at);
                    let (name, next_on) = (leg.name.clone(), leg.next_on);
                    let class = Class::of(classify(&failure));
                    let Some(class) = class.filter(|class| next_on.contains(*class)) else {
                        return Err(self.ended(name, failure, false));
                    };
                    if !is_staged {
                        self.counts(at, class);
                    }
                    self.passed_over(&failure);
                    self.tried.push((name, failure));
                }
                None => {}
            }
        }
    }

    /// The next hop, and the plan for it: a hop that is not the last leaves each of those behind it as much time as it has
    /// itself.
    fn take_next(&mut self) -> (usize, Plan) {
        let now = Instant::now();
        let at = self.left.pop_front().unwrap_or(self.at);
        self.tries = self.tries.saturating_sub(1);
        let share = self.share(Duration::MAX);
        let goes_on = self.leg(at).next_on.contains(Class::ProxyDown);
        let plan = Plan {
            deadline: Some(now + share),
            passes_over: goes_on && !self.left.is_empty(),
            ..self.plan.clone()
        };
        (at, plan)
    }

    /// A connection with the hops that are left, unless it is to be kept whatever comes.
    fn joined(self: Box<Self>, conn: Conn) -> Conn {
        if self.plan.purpose == Purpose::Tunnel && self.plan.commit == Commit::Connect {
            self.served();
            return conn;
        }
        Conn {
            rest: Some(self),
            ..conn
        }
    }
}
