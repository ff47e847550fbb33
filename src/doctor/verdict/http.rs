//! What the origin answers, and what it means that it does not.

use super::Certainty::{Certain, Medium, Strong};
use super::{Verdict, by, controls, failures, route_via};
use crate::doctor::facts::{Facts, Http, Probe, Spoken, Way};

/// One version of HTTP works, and the other does not.
pub(super) fn versions(facts: &Facts) -> Option<Verdict> {
    facts.ways.iter().find_map(|way| {
        let (one, two) = (way.http1.as_ref()?, way.http2.as_ref()?);
        let (id, fails, works, failure, status, fix) = match (one, two) {
            (
                Http {
                    status: Some(status),
                    ..
                },
                Http {
                    failure: Some(failure),
                    ..
                },
            ) => (
                "h2_breakage",
                "HTTP/2",
                "HTTP/1.1",
                failure,
                status,
                "let the client speak HTTP/1.1: curl --http1.1, GODEBUG=http2client=0",
            ),
            (
                Http {
                    failure: Some(failure),
                    ..
                },
                Http {
                    status: Some(status),
                    ..
                },
            ) => (
                "h1_breakage",
                "HTTP/1.1",
                "HTTP/2",
                failure,
                status,
                "let the client speak HTTP/2, as gRPC does",
            ),
            _ => return None,
        };
        Some(
            Verdict::new(
                id,
                Strong,
                format!("{fails} fails {} where {works} works", by(way)),
            )
            .because([
                format!("{fails}: {failure}"),
                format!("{works}: status {status}"),
            ])
            .mend(fix),
        )
    })
}

/// A connection stands, and the request on it gets no answer of HTTP.
pub(super) fn unanswered(facts: &Facts) -> Option<Verdict> {
    let chosen = facts.chosen.as_deref().unwrap_or("direct");
    let chosen = facts.ways.iter().find(|way| way.route == chosen);
    if chosen.is_some_and(Way::works) {
        return None;
    }
    let fails = |way: &&Way| {
        let is_of_http = |failure: &Probe| failure.failed_of("http.");
        !way.works() && way.failure().is_some_and(is_of_http)
    };
    let way = chosen
        .filter(fails)
        .or_else(|| facts.direct().filter(fails))?;
    let cause = way.failure()?.cause.as_deref()?;
    if let Some(works) = facts.ways.iter().find(|other| facts.reaches(other)) {
        let id = if way.is_direct() {
            "blocked_on_direct_way"
        } else {
            "fails_behind_upstream"
        };
        let sentence = format!("the request fails {} and works {}", by(way), by(works));
        return Some(
            Verdict::new(id, Medium, sentence)
                .because(failures(facts))
                .because(controls(way))
                .mend(route_via(facts, works)),
        );
    }
    let target = &facts.target;
    let (id, certainty, sentence) = match cause {
        "http.malformed" => (
            "not_http",
            Strong,
            format!("what listens at {target} does not answer in HTTP"),
        ),
        "http.header_too_large" => (
            "head_too_large",
            Certain,
            format!("{target} answers in HTTP, with a head over the limit"),
        ),
        "http.response_timeout" => (
            "origin_does_not_answer",
            Medium,
            format!("{target} takes the request and says nothing"),
        ),
        "http.empty_reply" => (
            "origin_does_not_answer",
            Strong,
            format!("{target} takes the request and ends the connection without an answer"),
        ),
        _ => (
            "origin_does_not_answer",
            Strong,
            format!("{target} takes the request and resets the connection"),
        ),
    };
    let verdict = Verdict::new(id, certainty, sentence)
        .because(failures(facts))
        .because(controls(way));
    let verdict = match (id, facts.spoken) {
        ("not_http", _) => {
            verdict.mend("look at the port and the scheme: is it https, or no HTTP at all?")
        }
        ("head_too_large", _) => {
            verdict.mend("let the server set fewer or smaller fields: cookies, as a rule")
        }
        (_, Spoken::Http) => verdict.mend(format!(
            "see what the server's own log says of it, and whether it wants https://{target}/"
        )),
        (_, Spoken::Tls | Spoken::Other) => {
            verdict.mend("see what the server's own log says of it")
        }
    };
    Some(match cause {
        "http.malformed" | "http.header_too_large" => verdict,
        "http.response_timeout" => {
            verdict.but("it may only be slow: what runs there may need longer than was waited")
        }
        // By another way it fails as well.
        _ if facts.ways.len() > 1 => verdict,
        _ => verdict.but("what reads requests on the way can do the same: try it via an upstream"),
    })
}

pub(super) fn origin(facts: &Facts) -> Option<Verdict> {
    let statuses: Vec<_> = facts
        .ways
        .iter()
        .filter_map(|way| Some((way, way.status()?)))
        .collect();
    let (way, status) = statuses.iter().find(|(_, status)| *status >= 400)?;
    let told = || {
        statuses
            .iter()
            .map(|(way, status)| format!("{}: status {status}", by(way)))
    };
    // What is not signed, and comes in the clear, may be the upstream's as well as the origin's.
    let is_behind = facts.spoken == Spoken::Http && !way.is_direct();
    let who = if is_behind {
        format!("{} or the origin behind it", way.route)
    } else {
        "the origin itself".to_owned()
    };
    let what = match status {
        401 => "it wants credentials",
        404 => "there is no such page",
        403 => "it forbids this",
        410 => "there is no such page",
        429 => "it was asked too often",
        451 => "it may not serve this for legal reasons",
        500.. => "it is broken",
        _ => "it refuses",
    };
    if let Some((works, _)) = statuses.iter().find(|(_, status)| *status < 400) {
        let (name, works_by) = (&way.route, by(works));
        let verdict = match status {
            401 if is_behind => Verdict::new(
                "upstream_auth",
                Medium,
                format!("{who} asks who you are (401), where it works {works_by}"),
            )
            .mend(format!(
                "ask those who run {name} whether they want to be told (upstreams.{name}.auth); where it is the origin that asks, go {works_by}"
            )),
            403 | 429 | 451 if is_behind => Verdict::new(
                "origin_answers",
                Medium,
                format!("the request is answered, and {who} says {status}: {what}"),
            )
            .mend(format!(
                "ask those who run {name} whether they refuse it; where it is the origin that refuses what comes from {name}, go {works_by}"
            )),
            500 | 502.. if is_behind => Verdict::new(
                "upstream_fails",
                Strong,
                format!("{name} answers {status} where the target works {works_by}"),
            )
            .but(format!("an origin may answer so to what comes from {name} alone"))
            .mend(route_via(facts, works)),
            403 | 429 | 503 => Verdict::new(
                "ip_reputation_or_waf",
                Strong,
                format!("the origin answers {status} {} and serves others", by(way)),
            )
            .mend(route_via(facts, works)),
            _ => return None,
        };
        return Some(verdict.because(told()));
    }
    if facts.is_through(*status) {
        return None;
    }
    let verdict = if is_behind {
        Verdict::new(
            "origin_answers",
            Medium,
            format!("the request is answered, and {who} says {status}: {what}"),
        )
    } else {
        Verdict::new(
            "origin_answers",
            Certain,
            format!("the way is fine, and {who} answers {status}: {what}"),
        )
    };
    let asked = format!("HEAD {} was asked, without credentials", facts.path);
    Some(verdict.because(told()).but(asked))
}
