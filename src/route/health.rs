//! The health of upstreams: a circuit that opens when an upstream keeps failing, and what closes it again.
//!
//! An open circuit passes an upstream over only where something else may serve; what is the last way out is tried anyway. Only
//! what speaks of the upstream itself counts: that it cannot be reached, or ends before it answers. An answer that says
//! the target cannot be reached counts where it is given for several hosts, or where it says that the upstream
//! itself failed.

mod circuit;
mod watched;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cause::Class;
use crate::failure::{Failure, classify};
use crate::net::places::Slot;
use crate::net::socket::Socket;
use crate::net::upstream::UpstreamError;
use crate::policy::health::Health as Spec;
use crate::policy::{Policy, Route, RouteSpec};
use crate::timeouts::Brief;

use circuit::{Change, Circuit, Leave};

pub use watched::Watched;

/// So many turns of a hop are remembered.
const MOST_TURNS: usize = 50;

/// How much a new measurement counts in the average of a hop's pace.
const WEIGHT_OF_NEW: f64 = 0.25;

/// What is known of a hop: shared by all routes that use it, by all workers, and by the policies before and after.
#[derive(Debug)]
pub struct Health {
    /// The hop's name.
    pub name: Arc<str>,
    /// When its circuit opens and closes.
    pub spec: Spec,
    /// Where it listens; nothing where it is no upstream.
    url: Option<String>,
    known: Arc<Known>,
}

#[derive(Debug, Default)]
struct Known {
    circuit: Mutex<Circuit>,
    /// Whether anything at all speaks against it.
    is_troubled: AtomicBool,
    /// Connections that a group has in use by it.
    open: AtomicUsize,
    pace: Mutex<Option<Pace>>,
    /// Nothing new goes through it where something else may serve.
    is_drained: AtomicBool,
    /// When it went up and down, the latest last.
    turns: Mutex<VecDeque<Turn>>,
}

/// A change of what is thought of a hop.
#[derive(Clone, Debug)]
pub struct Turn {
    /// When.
    pub at: Timestamp,
    /// To what.
    pub to: State,
    /// The id of what it failed of, where it went down.
    pub cause: Option<Cow<'static, str>>,
}

/// What is thought of a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is used.
    Up,
    /// It is passed over: it keeps failing.
    Down,
    /// It is passed over: somebody wants that.
    Drained,
}

impl State {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Drained => "drained",
        }
    }
}

/// How fast connections by a hop were opened.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The moving average, in seconds.
    pub average: f64,
    /// When it was measured last.
    pub at: Instant,
}

/// What a failure says of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// It is down.
    Down,
    /// It could not reach the target.
    Gateway,
    /// It refuses our credentials.
    Unauthorized,
    /// It is there.
    Answered,
    /// Nothing: the failure is ours, or the client's.
    Nothing,
}

impl Evidence {
    fn of(failure: &Failure) -> Self {
        if let Failure::Upstream {
            error: UpstreamError::Full { .. },
            ..
        } = failure
        {
            // A limit of ours.
            return Self::Nothing;
        }
        let class = Class::of(classify(failure));
        if class == Some(Class::ProxyDown) {
            return Self::Down;
        }
        let Failure::Upstream { error, .. } = failure else {
            return Self::Nothing;
        };
        if let UpstreamError::Refused(reply) = error
            && matches!(reply.status.as_u16(), 502..=504)
            && reply.is_of_itself()
        {
            return Self::Down;
        }
        if class == Some(Class::Gateway) {
            Self::Gateway
        } else if class == Some(Class::ProxyAuth) {
            Self::Unauthorized
        } else {
            Self::Answered
        }
    }
}

/// Leave to dial an upstream. Dropped without a word, as when the client leaves, it changes nothing.
#[derive(Debug)]
pub struct Pass<'h> {
    health: &'h Health,
    is_trial: bool,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.health.circuit().give_up_trial();
        }
    }
}

/// One connection of a hop that counts while it is in use.
#[derive(Debug)]
pub struct Counted {
    known: Arc<Known>,
    is_resting: AtomicBool,
}

impl Slot for Counted {
    fn rest(&self, _: &Socket) {
        if !self.is_resting.swap(true, Ordering::Relaxed) {
            self.known.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn wake(&self) -> bool {
        if self.is_resting.swap(false, Ordering::Relaxed) {
            self.known.open.fetch_add(1, Ordering::Relaxed);
        }
        true
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !*self.is_resting.get_mut() {
            self.known.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The health of every hop of a policy, by [`crate::policy::RouteId`]: none of groups and chains. What had the same name and
/// URL before keeps what is known of it.
pub fn of_policy(policy: &Policy, before: &[Option<Arc<Health>>]) -> Vec<Option<Arc<Health>>> {
    let of = |route: &Route| {
        let spec = match &route.spec {
            // What a fault strikes says nothing of the hop behind it.
            RouteSpec::Chain(_)
            | RouteSpec::Group(_)
            | RouteSpec::Pac(_)
            | RouteSpec::Faulty { .. } => return None,
            RouteSpec::Direct => Spec::default(),
            RouteSpec::Upstream(upstream) => upstream.health.clone(),
        };
        let mut health = Health::new(route.name.clone(), spec, route.spec.url());
        let same = |old: &&Arc<Health>| old.name == health.name && old.url == health.url;
        if let Some(old) = before.iter().flatten().find(same) {
            health.known = old.known.clone();
        }
        Some(Arc::new(health))
    };
    policy.routes.iter().map(of).collect()
}

impl Health {
    /// Of a hop of which nothing is known yet.
    pub fn new(name: Arc<str>, spec: Spec, url: Option<String>) -> Self {
        Self {
            name,
            spec,
            url,
            known: Arc::default(),
        }
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        let circuit = self.known.circuit.lock();
        circuit.unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, about to note something against it.
    fn troubled(&self) -> MutexGuard<'_, Circuit> {
        let circuit = self.circuit();
        self.known.is_troubled.store(true, Ordering::Relaxed);
        circuit
    }

    /// Where it listens; nothing where it is no upstream.
    pub fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// What is thought of it, and what it failed of last.
    pub fn state(&self) -> (State, Option<Cow<'static, str>>) {
        let circuit = self.circuit();
        let state = if self.is_drained() {
            State::Drained
        } else if circuit.is_open() {
            State::Down
        } else {
            State::Up
        };
        (state, circuit.last().cloned())
    }

    /// When it went up and down, the latest last.
    pub fn turns(&self) -> Vec<Turn> {
        self.known_turns().iter().cloned().collect()
    }

    fn known_turns(&self) -> MutexGuard<'_, VecDeque<Turn>> {
        let turns = self.known.turns.lock();
        turns.unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, to: State, cause: Option<Cow<'static, str>>) {
        let mut turns = self.known_turns();
        if turns.len() >= MOST_TURNS {
            turns.pop_front();
        }
        let at = Timestamp::now();
        turns.push_back(Turn { at, to, cause });
    }

    /// Passes it over from now on where something else may serve, or no longer. What is under way stays.
    pub fn drain(&self, is_drained: bool) {
        if self.known.is_drained.swap(is_drained, Ordering::Relaxed) == is_drained {
            return;
        }
        let (to, word) = if is_drained {
            (State::Drained, "drained")
        } else {
            (State::Up, "enabled")
        };
        self.turn(to, None);
        tracing::info!("upstream {} is {word}", self.name);
    }

    /// Whether somebody wants it passed over.
    pub fn is_drained(&self) -> bool {
        self.known.is_drained.load(Ordering::Relaxed)
    }

    /// Whether it is drained, or its circuit is open and nobody may try it yet.
    pub fn is_down(&self) -> bool {
        if self.is_drained() {
            return true;
        }
        if !self.known.is_troubled.load(Ordering::Relaxed) {
            return false;
        }
        self.circuit().is_shut(Instant::now())
    }

    /// Asks for leave to dial. It is denied where it is drained or the circuit is open, and `passes_over` says that something else may serve;
    /// when its time is over, one request gets it.
    ///
    /// # Errors
    /// [`Failure::UpstreamDrained`], [`Failure::UpstreamCircuitOpen`].
    pub fn admit(&self, passes_over: bool) -> Result<Pass<'_>, Failure> {
        if passes_over && self.is_drained() {
            return Err(Failure::UpstreamDrained {
                upstream: self.name.clone(),
            });
        }
        let mut is_trial = false;
        if self.known.is_troubled.load(Ordering::Relaxed) {
            match self.circuit().admit(Instant::now()) {
                Leave::Free => {}
                Leave::Trial => is_trial = true,
                Leave::Shut { last, retry } if passes_over => {
                    return Err(Failure::UpstreamCircuitOpen {
                        upstream: self.name.clone(),
                        last,
                        retry,
                    });
                }
                Leave::Shut { .. } => {}
            }
        }
        Ok(Pass {
            health: self,
            is_trial,
        })
    }

    /// Notes that the upstream served a request.
    pub fn served(&self) {
        if !self.known.is_troubled.load(Ordering::Relaxed) {
            return;
        }
        let mut circuit = self.circuit();
        let change = circuit.forget();
        self.known.is_troubled.store(false, Ordering::Relaxed);
        drop(circuit);
        self.tell(change);
    }

    /// Notes that a connection to the upstream stands, on which nothing was asked yet.
    fn reached(&self) {
        if self.known.is_troubled.load(Ordering::Relaxed) {
            let change = self.circuit().reached();
            self.tell(change);
        }
    }

    /// Notes what a request for `host` by the upstream failed of.
    pub fn failed(&self, failure: &Failure, host: &str) {
        let cause = classify(failure).id();
        match Evidence::of(failure) {
            Evidence::Down => self.count(cause, None),
            Evidence::Gateway => self.count(cause, Some(host)),
            Evidence::Unauthorized => {
                self.answered();
                if self.troubled().refuses_us() {
                    tracing::info!(
                        "upstream {} does not take our credentials: {cause}",
                        self.name
                    );
                }
            }
            Evidence::Answered => self.answered(),
            Evidence::Nothing => {}
        }
    }

    /// Notes that the upstream is there, whatever it said.
    fn answered(&self) {
        if self.known.is_troubled.load(Ordering::Relaxed) {
            let change = self.circuit().answered();
            self.tell(change);
        }
    }

    /// Counts a failure; of one that speaks of a target only where it is one of several.
    fn count(&self, cause: Cow<'static, str>, host: Option<&str>) {
        let change = self
            .troubled()
            .failed(Instant::now(), &self.spec, cause, host);
        self.tell(change);
    }

    /// Notes how a probe went.
    pub fn probed(&self, outcome: Result<(), &Failure>) {
        let Some(probe) = &self.spec.probe else {
            return;
        };
        let mut circuit = self.circuit();
        let change = match outcome {
            Ok(()) => circuit.probe_went_well(probe.rise),
            Err(failure) => match Evidence::of(failure) {
                Evidence::Down | Evidence::Gateway => {
                    self.known.is_troubled.store(true, Ordering::Relaxed);
                    let cause = classify(failure).id();
                    circuit.probe_failed(Instant::now(), &self.spec, probe.every, cause)
                }
                // What it refuses us, or we ourselves lack, is not its health.
                Evidence::Unauthorized | Evidence::Answered | Evidence::Nothing => None,
            },
        };
        if let Some(Change::Up) = change {
            self.known.is_troubled.store(false, Ordering::Relaxed);
        }
        drop(circuit);
        self.tell(change);
    }

    fn tell(&self, change: Option<Change>) {
        match change {
            None => {}
            Some(Change::Up) => {
                self.turn(State::Up, None);
                tracing::info!("upstream {} is up again", self.name);
            }
            Some(Change::Down { cause, count, span }) => {
                let often = match count {
                    0 | 1 => String::new(),
                    count => format!(", {count} times in {}", Brief(span)),
                };
                let wait = Brief(self.spec.fail_timeout);
                tracing::info!(
                    "upstream {} is down: {cause}{often}; next try in {wait}",
                    self.name
                );
                self.turn(State::Down, Some(cause));
            }
        }
    }

    /// Counts one more connection in use.
    pub fn occupy(&self) -> Counted {
        self.known.open.fetch_add(1, Ordering::Relaxed);
        Counted {
            known: self.known.clone(),
            is_resting: AtomicBool::new(false),
        }
    }

    /// How many connections groups have in use by it.
    pub fn open(&self) -> usize {
        self.known.open.load(Ordering::Relaxed)
    }

    /// Notes how long a connection took.
    pub fn measured(&self, took: Duration) {
        let mut pace = self
            .known
            .pace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let took = took.as_secs_f64();
        let average = pace.map_or(took, |pace| {
            pace.average + (took - pace.average) * WEIGHT_OF_NEW
        });
        *pace = Some(Pace {
            average,
            at: Instant::now(),
        });
    }

    /// How long connections took of late, where one was opened.
    pub fn pace(&self) -> Option<Pace> {
        *self
            .known
            .pace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The request was served by the upstream.
    fn served(self) {
        self.health.served();
    }

    /// A connection to the upstream stands.
    fn reached(self) {
        self.health.reached();
    }

    /// It failed.
    fn failed(self, failure: &Failure, host: &str) {
        self.health.failed(failure, host);
    }
}

#[cfg(test)]
mod tests;
