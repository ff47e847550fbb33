//! *Failures*: what fails of what, and what is suspected.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};
use schemars::JsonSchema;
use serde::Deserialize;

use super::super::Station;
use super::super::problem::{Params, Problem};
use super::frame::{self, moment, nothing};
use super::now::target;
use crate::observe::kept::{Filter, Kept, Suspected, Trouble, Wanted, host_pattern};
use crate::record::Record;

/// Records that are listed.
const LISTED: usize = 100;

/// What the form says.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Form {
    #[serde(default)]
    cause: String,
    #[serde(default)]
    host: String,
}

pub(super) async fn page(
    State(station): State<Arc<Station>>,
    form: Result<Params<Form>, Problem>,
) -> Response {
    let form = form.map_or_else(|_| Form::default(), |Params(form)| form);
    let host = match form.host.trim() {
        "" => Ok(None),
        text => host_pattern(text).map(Some),
    };
    let (host, wrong) = match host {
        Ok(host) => (host, None),
        Err(wrong) => (None, Some(wrong)),
    };
    let cause = Some(form.cause.trim().to_owned()).filter(|cause| !cause.is_empty());
    let filter = Filter {
        cause,
        host,
        outcome: Some(Wanted::Failure),
        ..Filter::default()
    };
    let seen = Seen::of(&station.board.kept(), &filter);
    frame::page(
        "/failures",
        "Failures",
        &body(&form, wrong.as_deref(), &seen),
    )
    .into_response()
}

/// What is shown.
struct Seen {
    troubles: Vec<Trouble>,
    suspects: Vec<Suspected>,
    records: Vec<Arc<Record>>,
}

impl Seen {
    fn of(kept: &Kept, filter: &Filter) -> Self {
        let records = kept.find(filter, usize::MAX);
        let is_shown = |host: &str, cause: Option<&str>| {
            records.iter().any(|record| {
                record.server_address.as_deref() == Some(host)
                    && cause.is_none_or(|cause| record.error_type.as_deref() == Some(cause))
            })
        };
        let mut troubles = kept.troubles();
        troubles.retain(|trouble| is_shown(&trouble.host, Some(&trouble.cause)));
        let mut suspects = kept.suspects(None);
        suspects.retain(|suspected| is_shown(&suspected.host, None));
        Self {
            troubles,
            suspects,
            records,
        }
    }
}

fn body(form: &Form, wrong: Option<&str>, seen: &Seen) -> Markup {
    html! {
        h1 { "Failures" }
        p.lead { "Among the last 1000 records, which are in memory." }
        form.filter method="get" action="/failures" role="search" {
            label { "Host" input name="host" value=(form.host) placeholder="*.example" autocapitalize="off" spellcheck="false"; }
            label { "Cause" input name="cause" value=(form.cause) placeholder="tls" autocapitalize="off" spellcheck="false"; }
            button { "Filter" }
            @if !form.host.is_empty() || !form.cause.is_empty() { a href="/failures" { "All" } }
            @if let Some(wrong) = wrong { p.wrong role="alert" { "Host: " (wrong) } }
        }
        section aria-labelledby="by-host" {
            h2 #by-host { "By host and cause" }
            div data-live="troubles" { (troubles(&seen.troubles)) }
        }
        section aria-labelledby="suspects" {
            h2 #suspects { "Suspects" }
            div data-live="suspects" { (suspects(&seen.suspects)) }
        }
        section aria-labelledby="records" {
            h2 #records { "Records" }
            div data-live="records" { (records(&seen.records)) }
        }
    }
}

fn troubles(troubles: &[Trouble]) -> Markup {
    html! {
        @if troubles.is_empty() { (nothing("Nothing failed.")) } @else {
            div.scroll tabindex="0" role="region" aria-label="Failures by host and cause" {
                table {
                    thead { tr {
                        th scope="col" { "Host" } th scope="col" { "Cause" } th.number scope="col" { "Times" }
                        th scope="col" { "First" } th scope="col" { "Last" } th scope="col" { "Went well, by hop" }
                    } }
                    tbody {
                        @for trouble in troubles {
                            tr {
                                th scope="row" { (trouble.host) }
                                td { a href=(format!("/records/{}", trouble.record)) { code { (trouble.cause) } } }
                                td.number { (trouble.count) }
                                td { (moment(trouble.first)) }
                                td { (moment(trouble.last)) }
                                td {
                                    @if trouble.by_hop.is_empty() { span.muted { "never sent out" } }
                                    @for by in &trouble.by_hop {
                                        span.hop data-tone=(if by.good == by.all { "good" } else if by.good == 0 { "bad" } else { "warn" }) {
                                            (by.hop) " " (by.good) " of " (by.all)
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn suspects(suspects: &[Suspected]) -> Markup {
    html! {
        @if suspects.is_empty() { (nothing("Nothing is suspected.")) }
        ul.suspects {
            @for suspected in suspects {
                li {
                    strong { (suspected.name.replace('_', " ")) }
                    " at " (suspected.host) " "
                    span.muted { (format!("{:.0} %", suspected.score * 100.0)) ", " (suspected.count) " times" }
                    p { (suspected.evidence.join(", ").replace('_', " ")) }
                }
            }
        }
    }
}

fn records(records: &[Arc<Record>]) -> Markup {
    html! {
        @if records.is_empty() { (nothing("Nothing failed.")) } @else {
            div.scroll tabindex="0" role="region" aria-label="Records" {
                table {
                    thead { tr {
                        th scope="col" { "When" } th scope="col" { "Target" } th scope="col" { "Cause" }
                        th scope="col" { "Route" } th scope="col" { "Client" } th.number scope="col" { "Took" }
                    } }
                    tbody {
                        @for record in records.iter().take(LISTED) {
                            tr {
                                td { (moment(record.end)) }
                                th scope="row" { a href=(format!("/records/{}", record.id)) { (target(record)) } }
                                td { code { (record.error_type.as_deref().unwrap_or("-")) } }
                                td { (record.route.as_deref().unwrap_or("-")) }
                                td { (record.client_address) }
                                td.number { (crate::observe::text::milliseconds(record.total_ms)) }
                            }
                        }
                    }
                }
            }
        }
    }
}
