//! *Policy* and *Upstreams*: what decides, and what is used.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::super::Station;
use super::super::api::answers::{Policy, Rule};
use super::super::api::policy::{Asks, explained, shown};
use super::super::api::running::upstreams_of;
use super::super::problem::{Params, Problem};
use super::frame::{self, moment, nothing, state};

/// What the box says.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AskBox {
    #[serde(default)]
    target: String,
    #[serde(default)]
    client: String,
}

pub(super) async fn policy(
    State(station): State<Arc<Station>>,
    asked: Result<Params<AskBox>, Problem>,
) -> Response {
    let asked = asked.map_or_else(|_| AskBox::default(), |Params(asked)| asked);
    let told = match asked.target.trim() {
        "" => None,
        target => {
            let asks = Asks {
                target: target.to_owned(),
                client: Some(asked.client.trim().to_owned()).filter(|client| !client.is_empty()),
                user: None,
                label: None,
                listener: None,
                sni: None,
            };
            Some(explained(station.clone(), asks).await)
        }
    };
    let policy = shown(&station);
    let body = html! {
        h1 { "Policy" }
        (frame::refused(&station))
        p.lead { (policy.source) " " code { (policy.hash) } }
        section aria-labelledby="explain" {
            h2 #explain { "What would happen to …" }
            form.filter method="get" action="/policy" {
                label { "URL, or host and port"
                    input name="target" value=(asked.target) placeholder="https://files.example/" required autocapitalize="off" spellcheck="false"; }
                label { "Client" input name="client" value=(asked.client) placeholder="127.0.0.1" spellcheck="false"; }
                button { "Explain" }
            }
            @match told {
                None => {}
                Some(Ok(explanation)) => pre.explanation role="status" tabindex="0" { (explanation) },
                Some(Err(problem)) => p.wrong role="alert" { (problem.detail()) },
            }
        }
        section aria-labelledby="rules" {
            h2 #rules { "Rules, the first that matches decides" }
            div data-live="rules" { (rules(&policy)) }
        }
    };
    frame::page("/policy", "Policy", &body)
}

fn rules(policy: &Policy) -> Markup {
    let most = policy
        .rules
        .iter()
        .map(|rule| rule.hits)
        .max()
        .unwrap_or(0)
        .max(1);
    html! {
        div.scroll tabindex="0" role="region" aria-label="Rules" {
            table {
                thead { tr {
                    th scope="col" { "Rule" } th scope="col" { "Leads to" } th.number scope="col" { "Hits" }
                    th.share scope="col" { span.visually-hidden { "Share of the hits" } } th scope="col" { "Stands at" } th scope="col" { "Notes" }
                } }
                tbody {
                    @for rule in &policy.rules {
                        tr data-mode=(rule.mode) {
                            th scope="row" { (rule.name) }
                            td { code { (rule.action) } }
                            td.number { (rule.hits) }
                            td.share { svg.bar role="presentation" width="100%" height="6" {
                                rect width="100%" height="6" rx="3" {}
                                rect.part width=(format!("{}%", rule.hits * 100 / most)) height="6" rx="3" {}
                            } }
                            td { (rule.source) }
                            td { (notes(rule)) }
                        }
                    }
                }
            }
        }
    }
}

fn notes(rule: &Rule) -> Markup {
    html! {
        @if rule.mode != "enforce" { span.state data-tone="warn" { (rule.mode) } " " }
        @if rule.hits == 0 && rule.name.as_ref() != "default" { span.note.muted { "never hit" } " " }
        @if let Some(expires) = rule.expires { span.note.muted { "until " (expires) } " " }
        @for finding in &rule.findings { span.note data-tone="warn" { (finding) } " " }
    }
}

pub(super) async fn upstreams(State(station): State<Arc<Station>>) -> Response {
    let upstreams = upstreams_of(&station).upstreams;
    let body = html! {
        h1 { "Upstreams" }
        div data-live="upstreams" {
            @if upstreams.is_empty() { (nothing("The policy names none: requests go direct.")) }
            @for upstream in &upstreams {
                section.card aria-label=(upstream.name) {
                    h2 { (upstream.name) " " (state(upstream.state)) }
                    dl.pairs {
                        @if let Some(url) = &upstream.url { dt { "listens at" } dd { code { (url) } } }
                        @if let Some(cause) = &upstream.last_failure { dt { "last failure" } dd { code { (cause) } } }
                    }
                    @let (path, words) = if upstream.state == "drained" { ("enable", "Use it again") } else { ("drain", "Take it out of use") };
                    button type="button" data-post=(format!("/v1/upstreams/{}/{path}", encoded(&upstream.name))) { (words) }
                    h3 { "History" }
                    @if upstream.turns.is_empty() { (nothing("Up since the proxy began.")) }
                    ol.turns reversed {
                        @for turn in upstream.turns.iter().rev() {
                            li { (moment(turn.at)) " " (state(turn.to)) @if let Some(cause) = &turn.cause { " " code { (cause) } } }
                        }
                    }
                }
            }
        }
    };
    frame::page("/upstreams", "Upstreams", &body)
}

/// A name as a part of a path.
fn encoded(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}
