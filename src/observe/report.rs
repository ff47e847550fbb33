//! What became of many requests, for a person: gathered by target, route and cause.

mod junit;
mod markdown;
mod table;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::Observe;
use super::log::Log;
use crate::record::seen::Seen;
use crate::record::{Outcome, Record};

pub use junit::junit;
pub use markdown::markdown;
pub use table::{table, wrapped};

/// The name and version of the report's form.
pub const SCHEMA: &str = "routecause.report/1";

/// So many records of one row are named.
const MOST_IDS: usize = 10;

/// What became of the requests of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name and version of this form.
    pub schema: &'static str,
    /// The policy, and whether it was enforced.
    pub policy: Policy,
    /// The command whose requests they are.
    pub command: Vec<String>,
    /// Its exit code.
    pub exit_code: u8,
    /// How many requests there were.
    pub requests: u64,
    /// To how many targets' hosts.
    pub hosts: usize,
    /// How many were refused by the policy, those that are expected aside.
    pub denied: u64,
    /// How many failed on their way.
    pub failed: u64,
    /// How many a policy that is enforced would refuse.
    pub would_be_denied: u64,
    /// How many were or would be refused by a block with the code `expected`.
    pub expected: u64,
    /// Payload bytes towards the servers.
    pub bytes_up: u64,
    /// Payload bytes towards the clients.
    pub bytes_down: u64,
    /// What became of them: what was refused and what failed first, then the most frequent.
    pub rows: Vec<Row>,
    /// What the command itself said of its failures, tied to the rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ties: Vec<Tie>,
}

/// Under which policy.
#[derive(Clone, Debug, Serialize)]
pub struct Policy {
    /// Where it comes from.
    pub source: String,
    /// The first 12 hex digits of its SHA-256.
    pub hash: String,
    /// `enforce` or `report`.
    pub mode: &'static str,
}

/// Requests that went alike.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// How they ended.
    pub verdict: Verdict,
    /// Host and port.
    pub target: String,
    /// The hop that was used last, or the route where none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The last failure, in words and numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The rule or guard that decided; of those that would be denied, that which would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where the rule stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_source: Option<String>,
    /// What is suspected.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub suspects: BTreeSet<String>,
    /// What failed before they went well: `hop: cause`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub healed: BTreeSet<String>,
    /// The faults of the policy that struck.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub faults: BTreeSet<String>,
    /// How many.
    pub count: u64,
    /// Payload bytes towards the server.
    pub bytes_up: u64,
    /// Payload bytes towards the client.
    pub bytes_down: u64,
    /// The first records.
    pub records: Vec<String>,
}

/// How requests ended. The order is that of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Refused by the policy.
    Denied,
    /// They failed on their way.
    Failed,
    /// They passed, and a policy that is enforced would refuse them.
    WouldBeDenied,
    /// Refused by a block that says this is expected, or passed where it is not enforced.
    Expected,
    /// The origin answered with a status of 400 or more.
    Answered,
    /// The client left first.
    Left,
    /// They went well.
    Reached,
}

impl Verdict {
    /// Of one request; `None` for a connection that carried none.
    fn of(seen: &Seen) -> Option<Self> {
        let cause = seen.cause.as_deref().unwrap_or_default();
        Some(match seen.outcome {
            Outcome::Unknown => return None,
            Outcome::Success if would_be_denied(seen) && seen.is_expected() => Self::Expected,
            Outcome::Success if would_be_denied(seen) => Self::WouldBeDenied,
            Outcome::Success => Self::Reached,
            Outcome::Failure if seen.is_denied() && seen.is_expected() => Self::Expected,
            Outcome::Failure if seen.is_denied() => Self::Denied,
            Outcome::Failure if cause.starts_with("http.status.") => Self::Answered,
            Outcome::Failure if cause.starts_with("client.") => Self::Left,
            Outcome::Failure => Self::Failed,
        })
    }

    /// The word in a table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "DENIED",
            Self::Failed => "FAILED",
            Self::WouldBeDenied => "would",
            Self::Expected => "expected",
            Self::Answered => "answer",
            Self::Left => "left",
            Self::Reached => "ok",
        }
    }
}

/// A failure that the command told of, and the requests behind it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tie {
    /// What failed, as in `example.com/mod@v1.2.3`.
    pub what: String,
    /// What the command said.
    pub said: String,
    /// The causes of requests to the same target.
    pub causes: Vec<String>,
    /// Their records.
    pub records: Vec<String>,
}

/// Gathers records of requests as they end, and passes them on to a log.
#[derive(Debug, Default)]
pub struct Gathering {
    seen: Mutex<Vec<Seen>>,
    log: Option<Arc<Log>>,
}

impl Gathering {
    /// Gathers, and writes to `log`.
    pub fn new(log: Option<Arc<Log>>) -> Self {
        Self {
            seen: Mutex::default(),
            log,
        }
    }

    /// What was gathered so far.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observe for Gathering {
    fn record(&self, record: Box<Record>) {
        match Seen::of(&record) {
            Ok(seen) => {
                let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(seen);
            }
            Err(error) => tracing::error!(%error, "a record could not be gathered"),
        }
        if let Some(log) = &self.log {
            log.record(record);
        }
    }
}

impl Report {
    /// Gathers records into rows.
    pub fn of(seen: &[Seen], policy: Policy, command: Vec<String>, exit_code: u8) -> Self {
        let mut report = Self {
            schema: SCHEMA,
            policy,
            command,
            exit_code,
            requests: 0,
            hosts: 0,
            denied: 0,
            failed: 0,
            would_be_denied: 0,
            expected: 0,
            bytes_up: 0,
            bytes_down: 0,
            rows: Vec::new(),
            ties: Vec::new(),
        };
        let mut hosts = BTreeSet::new();
        let mut places = HashMap::new();
        for seen in seen {
            let (Some(verdict), Some(target)) = (Verdict::of(seen), seen.target()) else {
                continue;
            };
            hosts.extend(seen.host.as_deref());
            report.requests += 1;
            report.bytes_up += seen.up;
            report.bytes_down += seen.down;
            match verdict {
                Verdict::Denied => report.denied += 1,
                Verdict::Failed => report.failed += 1,
                Verdict::WouldBeDenied => report.would_be_denied += 1,
                Verdict::Expected => report.expected += 1,
                Verdict::Answered | Verdict::Left | Verdict::Reached => {}
            }
            let route = seen.hop.as_ref().or(seen.route.as_ref());
            let key = (verdict, target.clone(), route.cloned(), seen.cause.clone());
            let rows = &mut report.rows;
            let at = *places.entry(key).or_insert_with(|| {
                rows.push(Row::begun(verdict, target, seen));
                rows.len() - 1
            });
            if let Some(row) = rows.get_mut(at) {
                row.add(seen);
            }
        }
        report.hosts = hosts.len();
        report
            .rows
            .sort_by(|a, b| (a.verdict, b.count, &a.target).cmp(&(b.verdict, a.count, &b.target)));
        report
    }

    /// Ties what a command said of its failures to the requests behind them: `what` failed, as it said, at `target`.
    pub fn tie(&mut self, what: String, said: String, target: &str) {
        let failed = |row: &&Row| row.target == target && row.cause.is_some();
        let rows: Vec<_> = self.rows.iter().filter(failed).collect();
        let tie = Tie {
            what,
            said,
            causes: rows.iter().filter_map(|row| row.cause.clone()).collect(),
            records: rows.iter().flat_map(|row| row.records.clone()).collect(),
        };
        if !self.ties.contains(&tie) {
            self.ties.push(tie);
        }
    }
}

impl Row {
    fn begun(verdict: Verdict, target: String, seen: &Seen) -> Self {
        let is_would = would_be_denied(seen);
        let rule = if is_would { &seen.would } else { &seen.rule };
        Self {
            verdict,
            target,
            route: seen.hop.clone().or_else(|| seen.route.clone()),
            cause: seen.cause.clone(),
            message: None,
            hint: None,
            rule: rule.clone(),
            rule_source: seen.rule_source.clone().filter(|_| !is_would),
            suspects: BTreeSet::new(),
            healed: BTreeSet::new(),
            faults: BTreeSet::new(),
            count: 0,
            bytes_up: 0,
            bytes_down: 0,
            records: Vec::new(),
        }
    }

    /// The rule or guard that would refuse what has passed.
    fn would(&self) -> Option<&str> {
        let is_would = matches!(self.verdict, Verdict::WouldBeDenied | Verdict::Expected);
        self.rule
            .as_deref()
            .filter(|_| is_would && self.cause.is_none())
    }

    fn add(&mut self, seen: &Seen) {
        self.count += 1;
        self.bytes_up += seen.up;
        self.bytes_down += seen.down;
        if seen.message.is_some() {
            self.message.clone_from(&seen.message);
            self.hint.clone_from(&seen.hint);
        }
        self.suspects
            .extend(seen.suspects.iter().map(|suspect| suspect.name.clone()));
        self.faults.extend(seen.faults.iter().cloned());
        if seen.outcome == Outcome::Success {
            let failed = seen.attempts.iter().filter_map(|attempt| {
                Some(format!("{}: {}", attempt.hop, attempt.cause.as_ref()?))
            });
            self.healed.extend(failed);
        }
        if self.records.len() < MOST_IDS {
            self.records.push(seen.id.clone());
        }
    }
}

/// Whether it passed, and a policy that is enforced would refuse it.
fn would_be_denied(seen: &Seen) -> bool {
    seen.outcome == Outcome::Success && seen.would.is_some()
}

/// `1 request`, `2 requests`.
fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

impl Report {
    /// The whole in a sentence.
    pub fn summary(&self) -> String {
        if self.requests == 0 {
            return "no request came by the proxy (this machine is reached without it, and so is what NO_PROXY names)".to_owned();
        }
        let mut text = format!(
            "{} to {}, {} down, {} up",
            counted(self.requests, "request"),
            counted(self.hosts as u64, "host"),
            super::text::bytes(self.bytes_down),
            super::text::bytes(self.bytes_up),
        );
        let parts = [
            (self.denied, "denied"),
            (self.failed, "failed"),
            (self.would_be_denied, "would be denied"),
            (self.expected, "expected"),
        ];
        let told: Vec<_> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        if told.is_empty() {
            text.push_str("; nothing failed");
        } else {
            text.push_str("; ");
            text.push_str(&told.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests;
