//! *Record*: the whole story of one request.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::super::Station;
use super::super::api::{internal, records};
use super::super::problem::Name;
use super::chart;
use super::frame::{self, moment, nothing, state};
use crate::cause::Cause;
use crate::observe::text::{bytes, milliseconds};
use crate::policy::fault::like;
use crate::record::seen::{NotSeen, Seen, Try};
use crate::record::timeline::Span;

/// Keys of the record that stand elsewhere on the page, or say nothing of this request.
const TOLD: &[&str] = &[
    "schema",
    "@timestamp",
    "event.kind",
    "event.category",
    "event.reason",
    "event.duration",
    "event.start",
    "event.end",
    "error.type",
    "error.message",
    "egress.hint",
    "egress.attempts",
    "egress.suspects",
    "egress.diagnosis.ago_s",
    "egress.diagnosis.certainty",
    "egress.diagnosis.sentence",
    "egress.diagnosis.verdict",
    "url.scheme",
    "url.domain",
    "url.port",
    "network.transport",
];

pub(super) async fn page(State(station): State<Arc<Station>>, Name(id): Name) -> Response {
    let told = records::told(&station, &id).await;
    let told = told.and_then(|told| {
        let line = told.record.get();
        let read = || -> Result<_, NotSeen> {
            Ok((
                Seen::read(line.as_bytes())?,
                serde_json::from_str::<Times>(line)?,
            ))
        };
        let (seen, times) = read().map_err(|error| internal(format!("record {id}: {error}")))?;
        let title = seen.target().unwrap_or_else(|| from(&seen));
        let body = body(&title, &seen, &times, &told.timeline, facts(line));
        Ok(frame::page("/failures", &title, &body))
    });
    told.unwrap_or_else(|problem| {
        let body = html! {
            h1 { "No such record" }
            (nothing(problem.detail()))
            p { a href="/failures" { "Latest failures" } }
        };
        let page = frame::page("/failures", "No such record", &body);
        (problem.status(), page).into_response()
    })
}

/// When it ended, and how long it took.
#[derive(Deserialize)]
struct Times {
    #[serde(rename = "event.end")]
    end: Timestamp,
    #[serde(rename = "egress.timing.total_ms")]
    total: f64,
}

/// What stands for the target of a connection that carried no request.
fn from(seen: &Seen) -> String {
    let client = seen.client.map(|client| client.to_string());
    format!("from {}", client.unwrap_or_default())
}

fn body(
    title: &str,
    seen: &Seen,
    times: &Times,
    timeline: &[Span],
    facts: Vec<(String, String)>,
) -> Markup {
    html! {
        p.crumbs { a href="/failures" { "Failures" } " / record" }
        h1 { (title) " " (state(seen.outcome.as_str())) @if !seen.faults.is_empty() { " " (state("staged")) } }
        @if let Some(cause) = &seen.cause {
            p.cause { code { (cause) } }
            @if let Some(message) = &seen.message { p.message { (message) } }
            @if let Some(hint) = &seen.hint { p.hint { (hint) } }
        }
        section aria-labelledby="phases" {
            h2 #phases { "Phases" }
            (chart::timeline(timeline))
        }
        @if !seen.attempts.is_empty() {
            section aria-labelledby="attempts" { h2 #attempts { "Attempts" } (attempts(&seen.attempts)) }
        }
        @if !seen.suspects.is_empty() {
            section aria-labelledby="suspects" {
                h2 #suspects { "Suspects" }
                ul.suspects { @for suspect in &seen.suspects {
                    li {
                        strong { (suspect.name.replace('_', " ")) } " "
                        span.muted { (format!("{:.0} %", suspect.score * 100.0)) }
                        p { (suspect.evidence.join(", ").replace('_', " ")) }
                    }
                } }
            }
        }
        @if let Some(diagnosis) = seen.diagnosis() {
            section aria-labelledby="diagnosis" {
                h2 #diagnosis { "What the doctor found" }
                p { (diagnosis) }
            }
        }
        (copies(seen, title))
        section aria-labelledby="facts" {
            h2 #facts { "All that is known" }
            dl.pairs.wide {
                dt { "ended" } dd { (moment(times.end)) " UTC" }
                dt { "took" } dd { (milliseconds(times.total)) }
                dt { "bytes" } dd { "up " (bytes(seen.up)) ", down " (bytes(seen.down)) }
                @for (key, value) in facts { dt { code { (key) } } dd { (value) } }
            }
        }
    }
}

fn attempts(attempts: &[Try]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Attempts" {
            table {
                thead { tr {
                    th scope="col" { "Hop" } th scope="col" { "Address" } th scope="col" { "Result" } th.number scope="col" { "Took" }
                } }
                tbody { @for attempt in attempts { tr {
                    th scope="row" { (attempt.hop) }
                    td { @if let Some(address) = attempt.address { (address) } @else { "-" } }
                    td { @if let Some(cause) = &attempt.cause { code { (cause) } } @else { (state("good")) } }
                    td.number { (milliseconds(attempt.ms)) }
                } } }
            }
        }
    }
}

/// What can be taken elsewhere.
fn copies(seen: &Seen, host: &str) -> Markup {
    let is_tunnel = seen.action.as_deref() != Some("forward");
    let url = if is_tunnel {
        format!("https://{host}/")
    } else {
        format!("http://{host}/")
    };
    let copy = |text: String, words: &str| {
        html! { div.copy { code { (text) } button type="button" data-copy=(text) { "Copy " (words) } } }
    };
    html! {
        section aria-labelledby="take" {
            h2 #take { "Look closer" }
            (copy(format!("routecause explain {}", seen.id), "as record"))
            @if seen.host.is_some() {
                (copy(format!("routecause explain {url}"), "as explain"))
                (copy(format!("routecause doctor {url}"), "as doctor"))
            }
            @if let Some(fault) = seen.cause.as_deref().and_then(fault) {
                (copy(format!("faults: {{like-this: {{{fault}}}}}"), "as a fault"))
            }
        }
    }
}

/// The fault of a policy that fails in the same way; nothing where there is none.
fn fault(cause: &str) -> Option<String> {
    let (what, at) = like(Cause::parse(cause)?)?;
    Some(format!("at: {at}, do: {what}"))
}

/// What else the record says.
fn facts(line: &str) -> Vec<(String, String)> {
    let Ok(Value::Object(whole)) = serde_json::from_str(line) else {
        return Vec::new();
    };
    let facts = whole
        .into_iter()
        .filter(|(key, _)| !TOLD.contains(&key.as_str()));
    let facts = facts.map(|(key, value)| {
        let value = match value {
            Value::String(text) => text,
            Value::Array(values) => {
                let texts = values.iter().map(|value| {
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                });
                texts.collect::<Vec<_>>().join(", ")
            }
            value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                value.to_string()
            }
        };
        (key, value)
    });
    facts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Environment, Options, Source};

    #[test]
    fn a_fault_that_is_offered_loads() {
        let fault = fault("http.response_timeout").unwrap();
        let text = format!(
            "version: 1\nfaults: {{f: {{{fault}}}}}\nrules: [{{name: r, match: {{host: a.test}}, fault: f, direct: true}}]\n\
             default: {{direct: true}}\n"
        );
        let source = Source::Text {
            name: "p.yaml".to_owned(),
            text,
        };
        let loaded = config::load(
            &source,
            &Environment::default(),
            &Options::check(Timestamp::UNIX_EPOCH),
        );
        loaded.unwrap_or_else(|report| panic!("{report}"));
    }
}
