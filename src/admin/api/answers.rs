//! What the API answers.

use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::config;
use crate::observe::kept::{Beat, Suspected, Trouble};
use crate::record::Record;
use crate::record::timeline::Span;

/// A list of records.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Records {
    /// The newest first.
    #[schemars(with = "Vec<Record>")]
    pub(in crate::admin) records: Vec<Box<RawValue>>,
}

/// One record.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RecordWithTimeline")]
pub(in crate::admin) struct Told {
    /// The record.
    #[schemars(with = "Record")]
    pub(in crate::admin) record: Box<RawValue>,
    /// Its phases, in their order.
    pub(in crate::admin) timeline: Vec<Span>,
}

/// What failed.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Troubles {
    /// The most frequent first.
    pub(in crate::admin) troubles: Vec<Trouble>,
}

/// What is suspected.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Suspects {
    /// The surest first.
    pub(in crate::admin) suspects: Vec<Suspected>,
}

/// The catalogue of causes.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Causes {
    /// In the order of the phases.
    pub(in crate::admin) causes: Vec<Known>,
}

/// A cause.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Cause")]
pub(in crate::admin) struct Known {
    /// Its id; one that carries a number or a name shows its place, as `http.status.<code>`.
    pub(in crate::admin) id: String,
    /// The phase that the id names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) phase: Option<&'static str>,
    /// Who is behind it.
    pub(in crate::admin) side: &'static str,
    /// The status that a client gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) status: Option<u16>,
    /// How sure it is.
    pub(in crate::admin) confidence: &'static str,
    /// How it is told.
    pub(in crate::admin) means: &'static str,
    /// What to do.
    pub(in crate::admin) hint: String,
}

/// How the proxy is.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Status {
    /// The program's version.
    pub(in crate::admin) version: &'static str,
    /// When it began (RFC 3339, UTC).
    #[schemars(with = "String")]
    pub(in crate::admin) started: Timestamp,
    /// Whether more requests may come.
    pub(in crate::admin) is_ready: bool,
    /// Why they had better go elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) hindrance: Option<String>,
    /// Where it listens.
    pub(in crate::admin) listeners: Vec<Listening>,
    /// The hash of the policy at work.
    pub(in crate::admin) policy: Arc<str>,
    /// Where that comes from.
    pub(in crate::admin) source: String,
    /// What stands there now is not at work; left out where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) refused: Option<RefusedPolicy>,
    /// Tunnels that are open.
    pub(in crate::admin) tunnels: usize,
    /// Followers of the stream.
    pub(in crate::admin) followers: usize,
    /// Records that were lost, by what lost them.
    pub(in crate::admin) dropped: Vec<Lost>,
    /// The seconds of the last five minutes in which a request ended.
    pub(in crate::admin) pulse: Vec<Beat>,
}

/// A policy that was read and refused: the one before it stays at work.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct RefusedPolicy {
    /// When it was read (RFC 3339, UTC).
    #[schemars(with = "String")]
    pub(in crate::admin) at: Timestamp,
    /// What is wrong with it.
    pub(in crate::admin) diagnostics: Vec<config::Told>,
}

/// A listener of the proxy.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Listener")]
pub(in crate::admin) struct Listening {
    /// Its name.
    pub(in crate::admin) name: Arc<str>,
    /// Where it listens.
    pub(in crate::admin) address: String,
}

/// Records that were lost.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Lost {
    /// By what: `board`, `log`, `stream`, `history` or `otlp`.
    pub(in crate::admin) sink: &'static str,
    /// How many.
    pub(in crate::admin) count: u64,
}

/// The open tunnels.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Tunnels {
    /// The oldest first.
    pub(in crate::admin) tunnels: Vec<Tunnel>,
}

/// An open tunnel.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Tunnel {
    /// The id that its record will have.
    #[schemars(with = "String")]
    pub(in crate::admin) id: Uuid,
    /// When it was asked for (RFC 3339, UTC).
    #[schemars(with = "String")]
    pub(in crate::admin) start: Timestamp,
    /// Who asked.
    pub(in crate::admin) client: String,
    /// For what: host and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) target: Option<String>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) rule: Option<Arc<str>>,
    /// What the rule leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) route: Option<Arc<str>>,
    /// Bytes from the client so far.
    pub(in crate::admin) up: u64,
    /// Bytes to the client so far.
    pub(in crate::admin) down: u64,
}

/// The upstreams of the policy.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Upstreams {
    /// In the order of the policy.
    pub(in crate::admin) upstreams: Vec<Upstream>,
}

/// An upstream.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Upstream {
    /// Its name.
    pub(in crate::admin) name: Arc<str>,
    /// Where it listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) url: Option<String>,
    /// `up`, `down` or `drained`.
    pub(in crate::admin) state: &'static str,
    /// The cause that was counted against it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) last_failure: Option<String>,
    /// Its changes, the latest last.
    pub(in crate::admin) turns: Vec<Turn>,
}

/// A change of an upstream's state.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Turn {
    /// When (RFC 3339, UTC).
    #[schemars(with = "String")]
    pub(in crate::admin) at: Timestamp,
    /// To `up`, `down` or `drained`.
    pub(in crate::admin) to: &'static str,
    /// What it failed of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) cause: Option<String>,
}

/// The faults of the policy.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Faults {
    /// One for each use.
    pub(in crate::admin) faults: Vec<Fault>,
}

/// A use of a fault.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Fault {
    /// Its name.
    pub(in crate::admin) name: Arc<str>,
    /// Who uses it: a rule or an upstream.
    pub(in crate::admin) by: Arc<str>,
    /// What it does.
    pub(in crate::admin) does: String,
    /// Connections that came its way.
    pub(in crate::admin) met: u64,
    /// Those that it struck.
    pub(in crate::admin) hits: u64,
}

/// The policy at work.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Policy {
    /// The first 12 hex digits of the SHA-256 of its files.
    pub(in crate::admin) hash: Arc<str>,
    /// Where it comes from.
    pub(in crate::admin) source: String,
    /// Its rules in their order, the default last.
    pub(in crate::admin) rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Rule {
    /// Its name.
    pub(in crate::admin) name: Arc<str>,
    /// Where it stands: `file:line`.
    pub(in crate::admin) source: Arc<str>,
    /// What it leads to: `block`, `continue`, or a route.
    pub(in crate::admin) action: String,
    /// `enforce`, `report` or `off`.
    pub(in crate::admin) mode: &'static str,
    /// From when on it is off (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(in crate::admin) expires: Option<Timestamp>,
    /// How often it decided since the policy was set to work.
    pub(in crate::admin) hits: u64,
    /// What is odd about it, as that an earlier rule shadows it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::admin) findings: Vec<String>,
}

/// A policy was set to work.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Applied {
    /// Its hash.
    pub(in crate::admin) hash: Arc<str>,
    /// How many open tunnels were cut since it refuses them, where it says `on_reload: close_blocked`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) tunnels_cut: Option<usize>,
}

/// What was found in a policy.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Checked {
    /// Whether it can be set to work.
    pub(in crate::admin) is_usable: bool,
    /// Its mistakes and what is likely not meant.
    pub(in crate::admin) diagnostics: Vec<config::Told>,
    /// Its tests.
    pub(in crate::admin) tests: Vec<Test>,
}

/// A test of a policy.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::admin) struct Test {
    /// Its name.
    #[serde(rename = "test")]
    pub(in crate::admin) name: String,
    /// Whether the policy decides as it says.
    pub(in crate::admin) passed: bool,
    /// What the policy decides instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::admin) failure: Option<config::Told>,
}

/// How much the diary says.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct LogLevel {
    /// A filter, as `RUST_LOG` holds it.
    pub(in crate::admin) filter: String,
}
