//! A chain told: its hops, what leads from one to the next, and what is sent again.

use std::fmt::{self, Write as _};

use schemars::JsonSchema;
use serde::Serialize;

use super::spell;
use crate::cause::{Class, Classes};
use crate::policy::chain::{Chain, Commit, Methods};
use crate::policy::{Decision, Policy, Scheme};

/// A hop of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Hop {
    /// The upstream's name, `direct`, or `off`.
    pub hop: String,
    /// The failures behind which the next hop is tried, as `next_on` names them; none where there is no next.
    pub next_on: Vec<&'static str>,
    /// The same in words.
    #[serde(skip)]
    after: String,
}

/// How far a chain goes for one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Retrying {
    /// How many hops are tried.
    pub attempts: u32,
    /// How long all of them may take together.
    pub budget: String,
    /// Plain requests by these methods are sent again: `none`, `safe` or `idempotent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<&'static str>,
    /// The longest body that is sent again, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_body: Option<usize>,
}

/// The hops of a chain, in order.
pub(super) fn hops(policy: &Policy, chain: &Chain) -> Vec<Hop> {
    let mut told: Vec<Hop> = chain
        .hops
        .iter()
        .map(|hop| Hop {
            hop: policy.route(hop.route).name.to_string(),
            next_on: words(hop.next_on, chain),
            after: after(hop.next_on, chain),
        })
        .collect();
    if chain.is_closed {
        told.push(Hop {
            hop: "off".to_owned(),
            next_on: Vec::new(),
            after: String::new(),
        });
    } else if let Some(last) = told.last_mut() {
        last.next_on.clear();
    }
    told
}

/// From when on a tunnel keeps its hop, where it may change.
pub(super) fn commit(
    decision: &Decision<'_>,
    scheme: Scheme,
    chain: &Chain,
) -> Option<&'static str> {
    let may_change = scheme == Scheme::Connect && chain.hops.len() > 1;
    may_change.then(|| decision.commit.as_str())
}

/// What is tried, where there is more than one hop.
pub(super) fn retry(decision: &Decision<'_>, scheme: Scheme, chain: &Chain) -> Option<Retrying> {
    let hops = u32::try_from(chain.hops.len()).unwrap_or(u32::MAX);
    let is_plain = scheme == Scheme::Http;
    let retry = decision.retry;
    (hops > 1).then(|| Retrying {
        attempts: hops.min(chain.attempts.unwrap_or(retry.attempts)),
        budget: spell(chain.budget.unwrap_or(retry.budget)),
        methods: is_plain.then(|| retry.methods.as_str()),
        replay_body: (is_plain && retry.methods != Methods::None).then_some(retry.replay_body),
    })
}

/// The classes that lead on: `status` only where the chain lists one.
fn words(classes: Classes, chain: &Chain) -> Vec<&'static str> {
    let leads_on = |class: &&Class| {
        classes.contains(**class) && (**class != Class::Status || !chain.on_status.is_empty())
    };
    let all = Class::ALL.iter();
    all.filter(leads_on).map(|class| class.as_str()).collect()
}

fn after(classes: Classes, chain: &Chain) -> String {
    if classes == Classes::ANY {
        "after any failure".to_owned()
    } else if classes == Classes::PIPE {
        "after any failure but a refusal".to_owned()
    } else if classes == Classes::COMMA {
        "where the name is not found".to_owned()
    } else {
        match words(classes, chain).as_slice() {
            [] => "never".to_owned(),
            words => format!("after {}", words.join(", ")),
        }
    }
}

/// The hops as one line, as in `direct, then corp (after any failure but a refusal)`.
pub(super) fn line(hops: &[Hop]) -> String {
    let mut line = String::new();
    let mut before: Option<&Hop> = None;
    for hop in hops {
        let name = match hop.hop.as_str() {
            "off" => "refused",
            name => name,
        };
        let _ = match before {
            None => write!(line, "{name}"),
            Some(before) => write!(line, ", then {name} ({})", before.after),
        };
        before = Some(hop);
    }
    line
}

/// What is tried again, for people.
pub(super) fn tell(
    commit: Option<&'static str>,
    retry: Option<&Retrying>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let Some(retry) = retry else {
        return Ok(());
    };
    writeln!(f, "  up to {} hops within {}", retry.attempts, retry.budget)?;
    if let Some(commit) = commit {
        let until = if commit == Commit::Connect.as_str() {
            "the 200 on"
        } else {
            "the server's first byte on"
        };
        writeln!(
            f,
            "  a tunnel keeps its hop from {until} (commit: {commit})"
        )?;
    }
    match (retry.methods, retry.replay_body) {
        (Some(methods), Some(body)) => writeln!(
            f,
            "  once sent, sent again: {methods} methods, with a body of {body} bytes at most"
        ),
        (Some(_), None) => writeln!(f, "  once sent, never sent again (retry.methods: none)"),
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_on_is_told_in_words() {
        let hop = |hop: &str, after: &str| Hop {
            hop: hop.to_owned(),
            next_on: Vec::new(),
            after: after.to_owned(),
        };
        assert_eq!(line(&[hop("direct", "")]), "direct");
        assert_eq!(
            line(&[
                hop("direct", "after any failure but a refusal"),
                hop("corp", "where the name is not found"),
                hop("off", "")
            ]),
            "direct, then corp (after any failure but a refusal), then refused (where the name is not found)"
        );
    }
}
