//! Listeners of a command's own, which stand in for those of a policy.

use std::collections::BTreeSet;

use super::diag::{Diagnostic, Findings, Place, Severity};
use super::raw::{self, matchers::Match};
use super::server::{ListenAt, Listener, ServerSettings, listener_name};

/// Why a policy's listeners are not there.
pub(super) const WHY: &str = "`run` and `lab` have a proxy of their own";

/// What of `server` holds for any listener.
const USED: [&str; 2] = ["name", "limits"];

/// What holds for listeners at these places. Each has the name of one that roles and rules ask for, so that these hold: of one
/// that is on loopback too, where there is such a one. One that is not has the name of one that is not either, asked for or
/// not: what only this machine's clients may do is nothing for others.
pub(super) fn of(
    places: &[ListenAt],
    server: ServerSettings,
    raw: &raw::Policy,
    findings: &mut Findings<'_>,
) -> ServerSettings {
    let has = raw.server.iter().flat_map(|server| &server.has);
    let unused: Vec<_> = has
        .filter(|key| !USED.contains(*key))
        .map(|key| format!("server.{key}"))
        .collect();
    if !unused.is_empty() {
        let verb = if unused.len() == 1 { "is" } else { "are" };
        let message = format!("{WHY}: {} {verb} not used", unused.join(", "));
        let mut warning = Diagnostic::new(findings.file(Place::START), None, message);
        warning.severity = Severity::Warning;
        findings.add(warning);
    }
    let asked = asked(raw);
    let written = server.listen.unwrap_or_else(|| vec![Listener::default()]);
    let is_asked = |l: &&Listener| asked.contains(&*l.name);
    let ip = |place: &ListenAt| place.socket().ip();
    let stand_in = |(at, place): (usize, &ListenAt)| {
        let is_local = ip(place).is_loopback();
        let mut alike = written
            .iter()
            .filter(|l| ip(&l.address).is_loopback() == is_local);
        let alike = if is_local {
            alike.find(is_asked)
        } else {
            alike.min_by_key(|l| (ip(&l.address) != ip(place), !is_asked(l)))
        };
        let model = alike.or_else(|| written.iter().find(is_asked));
        Listener {
            name: model.map_or_else(|| listener_name(at), |l| l.name.clone()),
            ..Listener::plain(at, place.clone())
        }
    };
    ServerSettings {
        listen: Some(places.iter().enumerate().map(stand_in).collect()),
        ..server
    }
}

/// The listeners that roles and rules ask for.
fn asked(raw: &raw::Policy) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let roles = raw
        .clients
        .iter()
        .filter_map(|clients| clients.roles.as_ref());
    for (_, role) in roles.flat_map(|roles| roles.iter()) {
        names.extend(
            role.listener
                .iter()
                .flat_map(|l| l.iter())
                .map(|l| l.as_str()),
        );
    }
    for rule in raw.rules.iter().flat_map(|rules| rules.0.iter()) {
        if let Some(matching) = &rule.r#match {
            ask(matching, &mut names);
        }
    }
    names
}

fn ask<'r>(matching: &'r Match, names: &mut BTreeSet<&'r str>) {
    let client = matching.client.as_ref();
    let listeners = client.and_then(|client| client.listener.as_ref());
    names.extend(listeners.iter().flat_map(|l| l.iter()).map(|l| l.as_str()));
    let lists = [&matching.any, &matching.all].into_iter().flatten();
    for inner in lists.flat_map(|list| list.iter()) {
        ask(inner, names);
    }
    if let Some(inner) = &matching.not {
        ask(inner, names);
    }
}
