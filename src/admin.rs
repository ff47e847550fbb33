//! What the proxy tells of itself while it runs: metrics, an API, a stream of records and a dashboard.
//!
//! It has a listener, a thread and a runtime of its own, so that nobody who reads slowly holds up a request. What it looks
//! at, requests leave behind without waiting: the [`Board`], the list of open tunnels, the policy's snapshot.

mod api;
mod document;
mod guard;
mod listen;
mod pages;
mod problem;
mod stream;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::middleware::from_fn_with_state;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::app::condition::Condition;
use crate::app::reload::{Standing, Wish};
use crate::config::env::Environment;
use crate::config::{Listener, Source};
use crate::observe::board::Board;
use crate::observe::metrics::Now;
use crate::policy::lint::{Finding, lint};
use crate::proxy::Proxy;
use crate::route::fault::Tally;

pub use document::document;
pub use guard::{Gate, check};
pub use listen::{Admin, BindError, Bound, bind};

/// What everything that is told comes from.
#[derive(Debug)]
pub struct Station {
    /// What serves.
    pub proxy: Arc<Proxy>,
    /// What recent records say.
    pub board: Arc<Board>,
    /// The listeners of the proxy.
    pub listeners: Vec<Listener>,
    /// Where the policy comes from.
    pub source: Source,
    /// Whether what stands there is at work.
    pub standing: Arc<Standing>,
    /// What policies are read with.
    pub environment: Environment,
    /// Whoever keeps the policy.
    pub keeper: mpsc::Sender<Wish>,
    /// What the diary says.
    pub diary: Arc<dyn Diary>,
    /// How the process is.
    pub condition: Condition,
    /// When the process began.
    pub started: Timestamp,
    /// How many hosts the metrics name.
    pub metrics_hosts: usize,
    /// The policy's lint, with the hash it was made for: it may take a while.
    pub lint: Linted,
    /// The lab that the proxy stands in; nothing for one that serves.
    pub lab: Option<Arc<dyn Bench>>,
}

/// Interference that comes and goes while a lab runs.
pub trait Bench: Debug + Send + Sync {
    /// What is at work, in the order of its coming, each with its number. `POST /v1/faults` brings more, `DELETE
    /// /v1/faults/{number}` takes it away.
    fn at_work(&self) -> Vec<(u64, Arc<Tally>)>;
}

/// How much the diary of the process says.
pub trait Diary: Debug + Send + Sync {
    /// The filter at work.
    fn filter(&self) -> String;

    /// Sets another.
    ///
    /// # Errors
    /// What is wrong with it.
    fn set_filter(&self, filter: &str) -> Result<(), String>;
}

/// What was found in the policy at work, found once.
#[derive(Debug, Default)]
pub struct Linted(Mutex<Option<(Arc<str>, Findings)>>);

type Findings = Arc<[Finding]>;

impl Station {
    /// What was found in the policy at work.
    fn findings(&self) -> Findings {
        let policy = self.proxy.snapshot.load().policy.clone();
        let mut linted = self.lint.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*linted {
            Some((hash, findings)) if *hash == policy.hash => findings.clone(),
            Some(_) | None => {
                let findings: Findings = lint(&policy, Timestamp::now()).into();
                *linted = Some((policy.hash.clone(), findings.clone()));
                findings
            }
        }
    }

    /// What is so at this moment.
    fn now(&self) -> Now {
        let snapshot = self.proxy.snapshot.load();
        let upstreams = snapshot.upstreams.iter().map(|upstream| {
            let health = upstream.health();
            (health.name.to_string(), !health.is_down())
        });
        let hosts = match self.metrics_hosts {
            0 => Vec::new(),
            count => self.board.kept().worst_hosts(count),
        };
        Now {
            tunnels: self.proxy.live.count(),
            connections: self.condition.connections(),
            upstreams: upstreams.collect(),
            looks: self.proxy.memory.looks(),
            dropped: self.board.dropped(),
            policy: snapshot.policy.hash.to_string(),
            is_policy_refused: self.standing.refusal().is_some(),
            hosts,
            started: Some(self.started),
        }
    }
}

/// Everything that is served, behind the gate; what stands in `first` comes before what we have there.
fn router(station: Arc<Station>, gate: Arc<Gate>, first: Router) -> Router {
    let ours = api::router()
        .merge(pages::router())
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::not_allowed)
        .with_state(station);
    first
        .fallback_service(ours)
        .layer(from_fn_with_state(gate, check))
}
