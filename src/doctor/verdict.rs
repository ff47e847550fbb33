//! The decision table: what the facts amount to. The first row that holds is the verdict.
//!
//! Nothing is called blocking without a control of the same kind that went well.

mod certificate;
mod dns;
mod http;
mod tcp;
mod tls;
mod way;

use std::net::IpAddr;

use serde::Serialize;

use super::facts::{Facts, Way};

/// What is the matter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// A stable id.
    pub id: &'static str,
    /// How sure it is.
    pub certainty: Certainty,
    /// What is the matter, in a sentence.
    pub sentence: String,
    /// What speaks for it, the strongest first; at most three.
    pub evidence: Vec<String>,
    /// What speaks against it, or was not looked at.
    pub counter: Vec<String>,
    /// What to do, as a part of a policy or in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// A fact of kernel or protocol.
    Certain,
    /// Little else looks like this.
    Strong,
    /// Other things look like this as well.
    Medium,
}

impl Certainty {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Strong => "strong",
            Self::Medium => "medium",
        }
    }
}

use Certainty::Medium;

/// A rule's name is no longer.
const LONGEST_NAME: usize = 64;

impl Verdict {
    pub(super) fn new(id: &'static str, certainty: Certainty, sentence: impl Into<String>) -> Self {
        Self {
            id,
            certainty,
            sentence: sentence.into(),
            evidence: Vec::new(),
            counter: Vec::new(),
            fix: None,
        }
    }

    pub(super) fn because(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(evidence);
        self.evidence.truncate(3);
        self
    }

    pub(super) fn but(mut self, counter: impl Into<String>) -> Self {
        self.counter.push(counter.into());
        self
    }

    pub(super) fn mend(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    pub(super) fn mend_if(self, is_so: bool, fix: &str) -> Self {
        if is_so { self.mend(fix) } else { self }
    }

    /// Whether nothing is the matter.
    pub fn is_fine(&self) -> bool {
        self.id == "fine"
    }
}

/// Where there is nothing to hold against the target.
pub const NO_CONTROL: &str = "no control was tried: name one with --control HOST";

/// Says what the facts amount to.
pub fn judge(facts: &Facts) -> Verdict {
    let rows: [fn(&Facts) -> Option<Verdict>; 15] = [
        certificate::clock,
        way::route_down,
        way::captive_portal,
        way::upstream,
        way::behind_upstream,
        dns::answers,
        way::everywhere,
        tcp::addresses,
        tls::handshakes,
        certificate::certificates,
        tls::block_page,
        http::versions,
        http::unanswered,
        http::origin,
        way::intermittent,
    ];
    // What the policy leads round is no fault.
    let of_chosen = facts.of_chosen();
    let looked_at = of_chosen.as_ref().unwrap_or(facts);
    let verdict = rows.iter().find_map(|row| row(looked_at));
    let verdict = verdict.or_else(|| way::fine(facts));
    let mut verdict = verdict.unwrap_or_else(|| unknown(facts));
    if let Some(place) = way::place(facts) {
        // What was asked for on purpose is not crowded out.
        verdict.evidence.insert(0, place);
        verdict.evidence.truncate(3);
    }
    let has_controls = facts.ways.iter().any(|way| !way.controls.is_empty());
    if !has_controls && !verdict.is_fine() {
        verdict.counter.push(NO_CONTROL.to_owned());
    }
    verdict
}

/// `direct: connect.timeout: …` of each way that fails, the one first that the policy chooses.
fn failures(facts: &Facts) -> Vec<String> {
    let told = |way: &Way| {
        let failure = way.failure()?;
        Some(format!(
            "{} {}: {}",
            by(way),
            failure.cause.as_deref().unwrap_or_default(),
            failure.message.as_deref().unwrap_or_default()
        ))
    };
    let mut ways: Vec<_> = facts.ways.iter().collect();
    ways.sort_by_key(|way| facts.chosen.as_deref() != Some(&way.route));
    ways.into_iter().filter_map(told).collect()
}

fn by(way: &Way) -> String {
    if way.is_direct() {
        "direct".to_owned()
    } else {
        format!("via {}", way.route)
    }
}

/// Controls that answered by a way.
fn controls(way: &Way) -> Option<String> {
    let answered = way.controls.iter().filter(|probe| probe.is_answered());
    let names: Vec<_> = answered.map(|probe| &*probe.with).collect();
    (!names.is_empty()).then(|| format!("{} works {}", names.join(" and "), by(way)))
}

/// Another way than direct by which the target works.
fn other(facts: &Facts) -> Option<&Way> {
    facts
        .ways
        .iter()
        .find(|way| !way.is_direct() && facts.reaches(way))
}

fn route_via(facts: &Facts, way: &Way) -> String {
    let action = if way.is_direct() {
        "direct: true".to_owned()
    } else {
        format!("via: {}", way.route)
    };
    rule(&facts.host, None, &action)
}

/// What to do where an upstream refuses what it is told.
fn of_credentials(upstream: &str) -> String {
    format!(
        "look at user name and password of {upstream}, in upstreams.{upstream}.auth or in the variable that names it: one of them is wrong, or past its time"
    )
}

/// A rule for a host, at a port alone where one is named.
pub fn rule(host: &str, port: Option<u16>, action: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = host.chars().map(|c| if is_word(c) { c } else { '-' });
    let name: String = name.take(LONGEST_NAME).collect();
    let written = yaml(host);
    let matcher = match port {
        Some(port) => format!("host: {written}, port: {port}"),
        None if host.parse::<IpAddr>().is_ok() => format!("host: {written}"),
        None => format!("domain: {written}"),
    };
    format!("- {{name: {name}, match: {{{matcher}}}, {action}}}")
}

/// A host or an address as a scalar.
fn yaml(host: &str) -> String {
    if host.contains(':') {
        format!("\"{host}\"")
    } else {
        host.to_owned()
    }
}

fn unknown(facts: &Facts) -> Verdict {
    Verdict::new(
        "unexplained",
        Medium,
        format!(
            "{} fails, and what was seen does not tell why for sure",
            facts.target
        ),
    )
    .because(failures(facts))
    .mend("try it with --control HOST of something near that works, or by an upstream")
}

#[cfg(test)]
mod tests;
