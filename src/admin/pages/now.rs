//! *Now*: what passes, what fails, and of what.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};

use super::super::Station;
use super::super::api::running::{status_of, upstreams_of};
use super::chart;
use super::frame::{self, moment, nothing, state};
use crate::observe::kept::{Filter, Wanted, is_denied};
use crate::record::Record;

/// The rates are of so many seconds.
const LATELY: i64 = 60;

/// Failures that are listed.
const LATEST: usize = 20;

/// Causes that are listed.
const CAUSES: usize = 8;

pub(super) async fn page(State(station): State<Arc<Station>>) -> Response {
    frame::page("/", "Now", &body(&station))
}

fn body(station: &Station) -> Markup {
    let status = status_of(station);
    let now = Timestamp::now().as_second();
    let failed = Filter {
        outcome: Some(Wanted::Failure),
        ..Filter::default()
    };
    let failed = station.board.kept().find(&failed, usize::MAX);
    let lately = status
        .pulse
        .iter()
        .filter(|beat| beat.second > now - LATELY);
    let (requests, failures, denied) = lately.fold((0, 0, 0), |sum, beat| {
        (
            sum.0 + beat.requests,
            sum.1 + beat.failures,
            sum.2 + beat.denied,
        )
    });
    let figure = |value: String, words: &str, tone: &str| {
        html! { div.figure data-tone=(tone) { dt { (words) } dd { (value) } } }
    };
    let rate = f64::from(requests) / 60.0;
    let tone = if failures > 0 { "bad" } else { "" };
    html! {
        h1 { "Now" }
        div data-live="refused" { (frame::refused(station)) }
        dl.figures data-live="figures" {
            (figure(format!("{rate:.1}"), "requests a second", ""))
            (figure(failures.to_string(), "failed in the last minute", tone))
            (figure(denied.to_string(), "denied in the last minute", ""))
            (figure(status.tunnels.to_string(), "tunnels open", ""))
        }
        div data-live="pulse" { (chart::pulse(&status.pulse, now)) }
        div.columns {
            section aria-labelledby="latest" {
                h2 #latest { "Latest failures" }
                div data-live="latest" { (latest(&failed)) }
            }
            div {
                section aria-labelledby="causes" {
                    h2 #causes { "Why" }
                    div data-live="causes" { (causes(&failed)) }
                }
                section aria-labelledby="upstreams" {
                    h2 #upstreams { "Upstreams" }
                    div data-live="upstreams" {
                        @let upstreams = upstreams_of(station).upstreams;
                        @if upstreams.is_empty() { (nothing("The policy names none.")) }
                        ul.plain {
                            @for upstream in upstreams {
                                li { span { (upstream.name) } (state(upstream.state)) }
                            }
                        }
                    }
                }
                section aria-labelledby="about" {
                    h2 #about { "This proxy" }
                    dl.pairs {
                        dt { "version" } dd { (status.version) }
                        dt { "policy" } dd { (status.source) " " code { (status.policy) } }
                        @for listener in &status.listeners {
                            dt { (listener.name) } dd { code { (listener.address) } }
                        }
                        dt { "since" } dd { time datetime=(status.started) { (status.started.strftime("%F %H:%M:%S UTC").to_string()) } }
                        @for lost in status.dropped.iter().filter(|lost| lost.count > 0) {
                            dt { "lost by " (lost.sink) } dd data-tone="warn" { (lost.count) " records" }
                        }
                    }
                }
            }
        }
    }
}

/// The share of each cause.
fn causes(failed: &[Arc<Record>]) -> Markup {
    let mut counts: HashMap<&str, (usize, &Record)> = HashMap::new();
    for record in failed {
        if let Some(cause) = record.error_type.as_deref() {
            counts.entry(cause).or_insert((0, record)).0 += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| (b.1.0, a.0).cmp(&(a.1.0, b.0)));
    let all = failed.len().max(1);
    html! {
        @if counts.is_empty() { (nothing("Nothing failed.")) }
        ul.shares {
            @for (cause, (count, record)) in counts.into_iter().take(CAUSES) {
                @let share = count * 100 / all;
                li {
                    a href=(format!("/failures?cause={cause}")) { code { (cause) } }
                    span.count { (count) }
                    svg.bar role="presentation" width="100%" height="6" {
                        rect width="100%" height="6" rx="3" {}
                        rect.part data-tone=(if is_denied(record) { "warn" } else { "bad" }) width=(format!("{share}%")) height="6" rx="3" {}
                    }
                }
            }
        }
    }
}

/// The failures that came last, each with what to do.
fn latest(failed: &[Arc<Record>]) -> Markup {
    html! {
        @if failed.is_empty() {
            (nothing("Nothing failed since the proxy began, or since its last 1000 records."))
        }
        ul.failures {
            @for record in failed.iter().take(LATEST) {
                li data-tone=(if is_denied(record) { "warn" } else { "bad" }) {
                    a.failure href=(format!("/records/{}", record.id)) {
                        span.when { (moment(record.end)) }
                        strong { (target(record)) }
                        code { (record.error_type.as_deref().unwrap_or("-")) }
                        @if !record.faults.is_empty() { (state("staged")) }
                    }
                    @if let Some(hint) = &record.hint { p { (hint) } }
                }
            }
        }
    }
}

/// What was asked for, or who asked.
pub(super) fn target(record: &Record) -> String {
    match (&record.server_address, record.server_port) {
        (Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
        (Some(host), Some(port)) => format!("{host}:{port}"),
        _ => format!("from {}", record.client_address),
    }
}
