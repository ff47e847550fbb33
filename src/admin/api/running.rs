//! How the proxy is, and what can be changed while it runs.

use std::fmt::Display;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use uuid::Uuid;

use super::super::Station;
use super::super::problem::{Body, Name, Problem};
use super::answers::{
    Fault, Faults, Listening, LogLevel, Lost, RefusedPolicy, Status, Tunnel, Tunnels, Turn,
    Upstream, Upstreams,
};
use super::internal;
use crate::app::reload::Refusal;
use crate::observe::metrics::CONTENT_TYPE as OPENMETRICS;
use crate::route::health::Health;
use crate::target::{Host, Target};

pub(super) async fn healthz(State(station): State<Arc<Station>>) -> Result<&'static str, Problem> {
    station.condition.alive().map_err(|why| unavailable(&why))?;
    Ok("fine\n")
}

pub(super) async fn readyz(State(station): State<Arc<Station>>) -> Result<&'static str, Problem> {
    station.condition.ready().map_err(|why| unavailable(&why))?;
    Ok("ready\n")
}

fn unavailable(why: &dyn Display) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string())
}

pub(super) async fn metrics(State(station): State<Arc<Station>>) -> Result<Response, Problem> {
    let text = station.board.metrics().text(&station.now());
    let text = text.map_err(|error| internal(format!("the metrics: {error}")))?;
    Ok(([(CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

pub(super) async fn status(State(station): State<Arc<Station>>) -> Json<Status> {
    Json(status_of(&station))
}

pub(in crate::admin) fn status_of(station: &Station) -> Status {
    let listeners = station.listeners.iter().map(|listener| Listening {
        name: listener.name.clone(),
        address: listener.address.to_string(),
    });
    let dropped = station.board.dropped().into_iter();
    let refused = station.standing.refusal();
    let hindrance = station.condition.ready().err();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        started: station.started,
        is_ready: hindrance.is_none(),
        hindrance: hindrance.map(|hindrance| hindrance.to_string()),
        listeners: listeners.collect(),
        policy: station.proxy.snapshot.load().policy.hash.clone(),
        source: station.source.to_string(),
        refused: refused.map(|Refusal { at, why }| RefusedPolicy {
            at,
            diagnostics: why,
        }),
        tunnels: station.proxy.live.count(),
        followers: station.board.followers(),
        dropped: dropped.map(|(sink, count)| Lost { sink, count }).collect(),
        pulse: station.board.kept().pulse(Timestamp::now()),
    }
}

pub(super) async fn tunnels(State(station): State<Arc<Station>>) -> Json<Tunnels> {
    let tunnels = station.proxy.live.tunnels();
    let tunnels = tunnels.iter().map(|tunnel| Tunnel {
        id: tunnel.id,
        start: tunnel.start,
        client: tunnel.presence.client.peer.to_string(),
        target: tunnel.target.as_ref().map(|(host, port)| {
            let host = Host::parse(host);
            host.map_or_else(
                |_| format!("-:{port}"),
                |host| Target::new(host, *port).to_string(),
            )
        }),
        rule: tunnel.rule.clone(),
        route: tunnel.route.clone(),
        up: tunnel.meter.up(),
        down: tunnel.meter.down(),
    });
    Json(Tunnels {
        tunnels: tunnels.collect(),
    })
}

pub(super) async fn cut(
    State(station): State<Arc<Station>>,
    Name(id): Name,
) -> Result<StatusCode, Problem> {
    let was_open = id
        .parse::<Uuid>()
        .is_ok_and(|id| station.proxy.live.cut(id));
    if was_open {
        tracing::info!("tunnel {id} is cut");
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(
        StatusCode::NOT_FOUND,
        format!("no tunnel {id:?} is open"),
    ))
}

pub(super) async fn forget_names(State(station): State<Arc<Station>>) -> StatusCode {
    station.proxy.snapshot.load().names.resolver().forget();
    tracing::info!("what name servers said is forgotten");
    StatusCode::NO_CONTENT
}

pub(super) async fn upstreams(State(station): State<Arc<Station>>) -> Json<Upstreams> {
    Json(upstreams_of(&station))
}

pub(in crate::admin) fn upstreams_of(station: &Station) -> Upstreams {
    let snapshot = station.proxy.snapshot.load();
    let upstreams = snapshot
        .upstreams
        .iter()
        .map(|watched| upstream(watched.health()));
    Upstreams {
        upstreams: upstreams.collect(),
    }
}

fn upstream(health: &Health) -> Upstream {
    let (state, last) = health.state();
    let turns = health.turns().into_iter().map(|turn| Turn {
        at: turn.at,
        to: turn.to.as_str(),
        cause: turn.cause.map(Into::into),
    });
    Upstream {
        name: health.name.clone(),
        url: health.url().map(str::to_owned),
        state: state.as_str(),
        last_failure: last.map(Into::into),
        turns: turns.collect(),
    }
}

fn set_drained(station: &Station, name: &str, is_drained: bool) -> Result<Json<Upstream>, Problem> {
    let snapshot = station.proxy.snapshot.load();
    let mut known = snapshot.upstreams.iter().map(|watched| watched.health());
    let Some(health) = known.find(|health| &*health.name == name) else {
        let detail = format!("no upstream of the policy is named {name:?}");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    health.drain(is_drained);
    Ok(Json(upstream(health)))
}

pub(super) async fn drain(
    State(station): State<Arc<Station>>,
    Name(name): Name,
) -> Result<Json<Upstream>, Problem> {
    set_drained(&station, &name, true)
}

pub(super) async fn enable(
    State(station): State<Arc<Station>>,
    Name(name): Name,
) -> Result<Json<Upstream>, Problem> {
    set_drained(&station, &name, false)
}

pub(super) async fn faults(State(station): State<Arc<Station>>) -> Json<Faults> {
    Json(faults_of(&station))
}

pub(in crate::admin) fn faults_of(station: &Station) -> Faults {
    let snapshot = station.proxy.snapshot.load();
    let faults = snapshot.faults().iter().map(|tally| Fault {
        name: tally.fault().name.clone(),
        by: tally.fault().by.clone(),
        does: tally.fault().to_string(),
        met: tally.met(),
        hits: tally.hits(),
    });
    Faults {
        faults: faults.collect(),
    }
}

pub(super) async fn reset(State(station): State<Arc<Station>>) -> Json<Faults> {
    for tally in station.proxy.snapshot.load().faults() {
        tally.reset();
    }
    Json(faults_of(&station))
}

pub(super) async fn log_level(State(station): State<Arc<Station>>) -> Json<LogLevel> {
    let filter = station.diary.filter();
    Json(LogLevel { filter })
}

pub(super) async fn set_log_level(
    State(station): State<Arc<Station>>,
    Body(level): Body<LogLevel>,
) -> Result<Json<LogLevel>, Problem> {
    let set = station.diary.set_filter(&level.filter);
    set.map_err(|error| Problem::bad(format!("filter: {error}")))?;
    Ok(log_level(State(station)).await)
}
