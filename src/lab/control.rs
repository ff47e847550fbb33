//! What a test asks of a lab while it runs, over HTTP: which faults are at work and what they struck, another one, none.
//!
//! | | |
//! | --- | --- |
//! | `GET /v1/faults` | `{"faults": [{"id", "fault", "met", "hits"}]}`, in the order of their coming |
//! | `POST /v1/faults` | `{"fault": "HOST: DO at AT …"}`, as behind `--fault`: 201 and the one that was added |
//! | `DELETE /v1/faults` | ends all of them |
//! | `GET`, `DELETE /v1/faults/{id}` | one of them |
//!
//! Behind that stand the dashboard, the API and the metrics of any proxy: `GET /v1/records` is theirs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::StartError;
use super::toxiproxy::{Answer, Refusal, answer, read};
use super::world::{ADDRESS, World};
use crate::admin::{self, Admin, Bench, Bound, Diary, Linted, Station};
use crate::app::{AdminSettings, App};
use crate::config::{self, AdminAddress, Environment, Listener, Source};
use crate::observe::board::Board;
use crate::route::fault::Tally;

/// What a test sends of a fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    fault: String,
}

/// What it is told of one.
#[derive(Serialize)]
struct Shown {
    id: u64,
    /// Whom it strikes.
    host: String,
    /// What it does.
    fault: String,
    /// The connections that came its way.
    met: u64,
    /// Those that it struck.
    hits: u64,
}

impl Shown {
    fn of((id, tally): &(u64, Arc<Tally>)) -> Self {
        Self {
            id: *id,
            host: tally.fault().by.to_string(),
            fault: tally.fault().name.to_string(),
            met: tally.met(),
            hits: tally.hits(),
        }
    }
}

/// What the control serves beside the dashboard and the API that every proxy has.
fn router(world: Arc<World>) -> Router {
    Router::new()
        .route("/v1/faults", get(list).post(add).delete(clear))
        .route("/v1/faults/{id}", get(show).delete(remove))
        .with_state(world)
}

impl Bench for World {
    fn at_work(&self) -> Vec<(u64, Arc<Tally>)> {
        self.list()
    }
}

/// A lab's diary is that of whoever runs it.
#[derive(Debug)]
struct NoDiary;

impl Diary for NoDiary {
    fn filter(&self) -> String {
        "off".to_owned()
    }

    fn set_filter(&self, _: &str) -> Result<(), String> {
        Err("a lab has no diary of its own".to_owned())
    }
}

/// What the control shows.
pub(super) struct Scene {
    pub(super) listeners: Vec<Listener>,
    pub(super) world: Arc<World>,
    pub(super) board: Arc<Board>,
    pub(super) source: Source,
    pub(super) environment: Environment,
}

/// Listens where a test will ask, before there is a proxy: that is to know the place, and to lead nobody there.
pub(super) fn bind(environment: &Environment) -> Result<(Bound, SocketAddr), StartError> {
    let settings = AdminSettings {
        address: AdminAddress::Tcp(SocketAddr::new(ADDRESS, 0)),
        ..AdminSettings::off()
    };
    let bound = admin::bind(&settings, environment).map_err(io::Error::other)?;
    let at = bound.and_then(|bound| {
        let address = bound.address().socket()?;
        Some((bound, address))
    });
    at.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable).into())
}

/// Serves in front of a proxy until what it gives is dropped.
pub(super) fn serve(bound: Bound, app: &App, scene: Scene) -> Result<Admin, StartError> {
    // Nobody hears: a lab's policy stays as it is.
    let (keeper, _) = mpsc::channel(1);
    let station = Station {
        proxy: app.proxy().clone(),
        board: scene.board,
        listeners: scene.listeners,
        source: scene.source,
        environment: scene.environment,
        keeper,
        standing: Arc::default(),
        diary: Arc::new(NoDiary),
        condition: app.condition().clone(),
        started: Timestamp::now(),
        metrics_hosts: 0,
        lint: Linted::default(),
        lab: Some(scene.world.clone()),
    };
    Ok(bound.serve(station, router(scene.world))?)
}

async fn list(State(world): State<Arc<World>>) -> Response {
    let faults: Vec<_> = world.list().iter().map(Shown::of).collect();
    answer(StatusCode::OK, &serde_json::json!({"faults": faults}))
}

async fn add(State(world): State<Arc<World>>, body: Bytes) -> Answer {
    let Sent { fault } = read(&body)?;
    let struck = config::fault(&fault)
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.render(false)))?;
    let added = world.add(struck);
    Ok(answer(StatusCode::CREATED, &Shown::of(&added)))
}

async fn clear(State(world): State<Arc<World>>) -> Response {
    world.clear();
    StatusCode::NO_CONTENT.into_response()
}

async fn show(State(world): State<Arc<World>>, Path(id): Path<u64>) -> Answer {
    let at_work = world.list();
    let found = at_work.iter().find(|(number, _)| *number == id);
    let found = found.ok_or_else(no_fault)?;
    Ok(answer(StatusCode::OK, &Shown::of(found)))
}

async fn remove(State(world): State<Arc<World>>, Path(id): Path<u64>) -> Answer {
    if world.list().iter().all(|(number, _)| *number != id) {
        return Err(no_fault());
    }
    world.remove(id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn no_fault() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "fault not found".to_owned())
}
