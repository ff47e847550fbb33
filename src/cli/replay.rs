//! `routecause check --against RECORDS`: what a policy would decide otherwise of requests that were recorded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use http::Method;
use jiff::Timestamp;
use serde::Serialize;

use super::{exit, learn, print};
use crate::client::{Claim, Client};
use crate::config::{DEFAULT_LISTEN, ServerSettings, listener_name};
use crate::policy::explain::{Does, explain};
use crate::policy::flight::Flight;
use crate::policy::{Lookup, Needs, Policy, Query, Scheme};
use crate::record::seen::Seen;
use crate::target::Target;

/// What `--json` prints.
#[derive(Serialize)]
struct Replayed {
    schema: &'static str,
    policy: String,
    requests: u64,
    /// Records that do not hold enough to decide again: of connections without a request, or of guards that saw addresses.
    untold: u64,
    changed: u64,
    changes: Vec<Change>,
}

/// Requests that would go otherwise.
#[derive(Serialize)]
struct Change {
    target: String,
    before: String,
    after: String,
    /// The block that refused it says that this is expected, or the one that would.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expected: bool,
    /// The rule or guard that would decide.
    rule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    count: u64,
    /// The first of them.
    record: String,
}

/// Decides recorded requests again, and prints only what changes.
pub(super) fn run(
    records: &[PathBuf],
    policy: &Policy,
    server: &ServerSettings,
    name: String,
    is_json: bool,
) -> u8 {
    let seen = match learn::read(records) {
        Ok(seen) => seen,
        Err(error) => {
            say!("error: {error:#}");
            return exit::FAILED;
        }
    };
    let listener = server.listen.iter().flatten().next();
    let (listener, address) = match listener {
        Some(listener) => (listener.name.clone(), listener.address.socket()),
        None => (listener_name(0), DEFAULT_LISTEN),
    };
    let mut replayed = Replayed {
        schema: "routecause.replay/1",
        policy: name,
        requests: 0,
        untold: 0,
        changed: 0,
        changes: Vec::new(),
    };
    let mut places = BTreeMap::new();
    for seen in &seen {
        let client = Client {
            peer: SocketAddr::new(seen.client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 0),
            local: address,
            listener: listener.clone(),
        };
        let (Some(before), Some(after)) = (before(seen), decide(policy, seen, &client)) else {
            replayed.untold += 1;
            continue;
        };
        replayed.requests += 1;
        if before == after.word {
            continue;
        }
        replayed.changed += 1;
        let target = seen.target().unwrap_or_default();
        let expected = seen.is_denied() && seen.is_expected() || after.is_expected;
        let key = (
            target.clone(),
            expected,
            before.clone(),
            after.word.clone(),
            after.rule.clone(),
        );
        let changes = &mut replayed.changes;
        let at = *places.entry(key).or_insert_with(|| {
            changes.push(Change {
                target,
                before,
                after: after.word,
                expected,
                rule: after.rule,
                source: after.source,
                count: 0,
                record: seen.id.clone(),
            });
            changes.len() - 1
        });
        if let Some(change) = changes.get_mut(at) {
            change.count += 1;
        }
    }
    if is_json {
        match serde_json::to_string_pretty(&replayed) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
    } else {
        print(&tell(&replayed));
    }
    0
}

fn tell(replayed: &Replayed) -> String {
    let Replayed {
        policy,
        requests,
        untold,
        changed,
        changes,
        ..
    } = replayed;
    let mut text =
        format!("{policy}: {changed} of {requests} recorded requests would go otherwise\n");
    let width = changes
        .iter()
        .map(|change| change.target.len())
        .max()
        .unwrap_or(0)
        .min(44);
    for change in changes {
        let source = change.source.as_ref().map(|source| format!(" ({source})"));
        let _ = writeln!(
            text,
            "  {:<width$}  {} → {}  {}×{}  by {}{}",
            change.target,
            change.before,
            change.after,
            change.count,
            if change.expected { ", expected" } else { "" },
            change.rule,
            source.unwrap_or_default()
        );
    }
    if *untold > 0 {
        let _ = writeln!(
            text,
            "  {untold} records do not tell enough to decide again"
        );
    }
    text
}

/// What was decided; `None` where a record does not tell.
fn before(seen: &Seen) -> Option<String> {
    seen.target()?;
    let rule = seen.rule.as_deref().unwrap_or_default();
    if seen.is_denied() {
        // What a guard refuses hangs on the addresses.
        return (!rule.starts_with("guards.")).then(|| "denied".to_owned());
    }
    seen.route.clone()
}

struct After {
    word: String,
    /// The block that would refuse it says that this is expected.
    is_expected: bool,
    rule: String,
    source: Option<String>,
}

fn decide(policy: &Policy, seen: &Seen, client: &Client) -> Option<After> {
    let target = Target::from_authority(&seen.target()?).ok()?;
    let is_connect = seen.action.as_deref() == Some("connect");
    let method = match &seen.method {
        _ if is_connect => Method::CONNECT,
        Some(method) => method.parse().ok()?,
        None => Method::GET,
    };
    let claim = Claim {
        user: seen.user.as_deref().map(Into::into),
        label: seen.label.as_deref().map(Into::into),
        is_proven: policy.proves_users && seen.user.is_some(),
        is_given: seen.user.is_some() || seen.label.is_some(),
    };
    let flight = match &seen.sni {
        Some(name) => Flight::tls(Some(name), []),
        None => Flight::usual(&target),
    };
    let addresses = match &*seen.addresses {
        [] => Lookup::Failed,
        addresses => Lookup::Found(addresses),
    };
    let mut query = Query {
        client,
        claim: &claim,
        scheme: if is_connect {
            Scheme::Connect
        } else {
            Scheme::Http
        },
        method: &method,
        target: &target,
        path: None,
        headers: None,
        is_here: None,
        addresses: None,
        first_flight: None,
        now: Timestamp::now(),
    };
    let outcome = loop {
        match explain(policy, &query) {
            Ok(explanation) => break explanation.decision,
            Err(Needs::Machine) => query.is_here = Some(false),
            Err(Needs::Addresses) => query.addresses = Some(addresses),
            Err(Needs::FirstFlight) => query.first_flight = Some(&flight),
        }
    };
    let word = match outcome.action {
        Does::Block => "denied".to_owned(),
        Does::Direct | Does::Via => outcome.route?,
    };
    Some(After {
        word,
        is_expected: outcome.code.as_deref() == Some("expected"),
        rule: outcome.rule,
        source: outcome.source,
    })
}
