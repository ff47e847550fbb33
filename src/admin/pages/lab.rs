//! *Lab*: what is staged, and, in a lab, what comes and goes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::super::Station;
use super::super::api::answers::Fault;
use super::super::api::running::faults_of;
use super::frame::{self, nothing};
use crate::route::fault::Tally;

pub(super) async fn page(State(station): State<Arc<Station>>) -> Response {
    let faults = faults_of(&station).faults;
    let body = html! {
        h1 { "Lab" }
        p.lead { "Faults that are injected on purpose. What they strike says so in its record, and is evidence of nothing." }
        @if let Some(lab) = &station.lab { (bench(&lab.at_work())) }
        @if station.lab.is_none() || !faults.is_empty() {
            section aria-labelledby="written" {
                h2 #written { "Of the policy" }
                div data-live="faults" { (written(&faults)) }
            }
        }
    };
    frame::page("/lab", "Lab", &body)
}

/// What comes and goes while the lab runs.
fn bench(at_work: &[(u64, Arc<Tally>)]) -> Markup {
    html! {
        section aria-labelledby="bench" {
            h2 #bench { "At work" }
            form.filter data-add="/v1/faults" {
                label { "Add a fault: HOST: DO at AT"
                    input name="fault" placeholder="api.lab.test: reset at client_hello first 1" required
                        autocapitalize="off" autocomplete="off" spellcheck="false"; }
                button { "Add" }
                pre.wrong role="alert" hidden {}
            }
            div data-live="bench" {
                @if at_work.is_empty() { (nothing("None: every host of the lab answers.")) } @else {
                    div.scroll tabindex="0" role="region" aria-label="Faults at work" {
                        table {
                            thead { tr {
                                th scope="col" { "Hosts" } th scope="col" { "Fault" } th.number scope="col" { "Met" } th.number scope="col" { "Struck" }
                                th scope="col" { span.visually-hidden { "Remove" } }
                            } }
                            tbody { @for (number, tally) in at_work { tr {
                                th scope="row" { (tally.fault().by) } td { code { (tally.fault().name) } }
                                td.number { (tally.met()) } td.number { (tally.hits()) }
                                td { button type="button" data-delete=(format!("/v1/faults/{number}")) aria-label=(format!("Remove {}: {}", tally.fault().by, tally.fault().name)) { "Remove" } }
                            } } }
                        }
                    }
                    p { button type="button" data-delete="/v1/faults" { "Remove all" } }
                }
            }
        }
    }
}

/// What the policy names.
fn written(faults: &[Fault]) -> Markup {
    html! {
        @if faults.is_empty() { (nothing("The policy has none.")) } @else {
            div.scroll tabindex="0" role="region" aria-label="Faults" {
                table {
                    thead { tr {
                        th scope="col" { "Fault" } th scope="col" { "Does" } th scope="col" { "Used by" }
                        th.number scope="col" { "Met" } th.number scope="col" { "Struck" }
                    } }
                    tbody { @for fault in faults { tr {
                        th scope="row" { (fault.name) } td { (fault.does) } td { (fault.by) }
                        td.number { (fault.met) } td.number { (fault.hits) }
                    } } }
                }
            }
            p { button type="button" data-post="/v1/faults/reset" { "Count from the beginning" } }
        }
    }
}
