//! What the origin answers.

use super::Certainty::{Certain, Strong};
use super::{Verdict, by, route_via};
use crate::doctor::facts::Facts;

pub(super) fn http2(facts: &Facts) -> Option<Verdict> {
    facts.ways.iter().find_map(|way| {
        let (one, two) = (way.http1.as_ref()?, way.http2.as_ref()?);
        let failure = two.failure.as_ref().filter(|_| one.status.is_some())?;
        Some(
            Verdict::new(
                "h2_breakage",
                Strong,
                format!("HTTP/2 fails {} where HTTP/1.1 works", by(way)),
            )
            .because([
                format!("HTTP/2: {failure}"),
                format!("HTTP/1.1: status {}", one.status.unwrap_or_default()),
            ])
            .mend("let the client speak HTTP/1.1: curl --http1.1, GODEBUG=http2client=0"),
        )
    })
}

pub(super) fn origin(facts: &Facts) -> Option<Verdict> {
    let statuses: Vec<_> = facts
        .ways
        .iter()
        .filter_map(|way| Some((way, way.http1.as_ref()?.status?)))
        .collect();
    let (way, status) = statuses.iter().find(|(_, status)| *status >= 400)?;
    let told = || {
        statuses
            .iter()
            .map(|(way, status)| format!("{}: status {status}", by(way)))
    };
    if let Some((fine, _)) = statuses.iter().find(|(_, status)| *status < 400) {
        return matches!(status, 403 | 429 | 503).then(|| {
            Verdict::new(
                "ip_reputation_or_waf",
                Strong,
                format!("the origin answers {status} {} and serves others", by(way)),
            )
            .because(told())
            .mend(route_via(facts, fine))
        });
    }
    let what = match status {
        401 => "it wants credentials",
        403 => "it forbids this",
        410 => "there is no such page",
        429 => "it was asked too often",
        451 => "it may not serve this for legal reasons",
        500.. => "it is broken",
        _ => "it refuses",
    };
    // HEAD / was asked, of a server that may serve other paths only.
    if matches!(status, 404 | 405) || facts.wants_path && *status < 500 {
        return None;
    }
    Some(
        Verdict::new(
            "origin_answers",
            Certain,
            format!("the way is fine, and the origin itself answers {status}: {what}"),
        )
        .because(told()),
    )
}
