//! Records, and what they sum up to.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::super::Station;
use super::super::problem::{Name, Params, Problem};
use super::super::stream::{self, line};
use super::answers::{Causes, Known, Records, Suspects, Told, Troubles};
use super::internal;
use crate::cause::{Cause, Kind, PATTERNS};
use crate::observe::board::History;
use crate::observe::kept::{self, Filter, client_pattern, host_pattern};
use crate::record::timeline::Timings;

/// Records in one answer, when nobody says how many.
const FEW: usize = 100;

/// Records in one answer, at most.
const MOST: usize = kept::MOST;

/// Which records are wanted.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(in crate::admin) struct Followed {
    /// A cause's id, or what some begin with, as `tls`.
    cause: Option<String>,
    /// The host; `*` stands for any part of it.
    host: Option<String>,
    /// The client's address, or a network.
    client: Option<String>,
    /// What became of it.
    #[schemars(with = "Option<String>", extend("enum" = ["success", "failure", "denied", "unknown"]))]
    outcome: Option<kept::Wanted>,
}

/// Which records are wanted, and how many.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(in crate::admin) struct Wanted {
    /// A cause's id, or what some begin with, as `tls`.
    cause: Option<String>,
    /// The host; `*` stands for any part of it.
    host: Option<String>,
    /// The client's address, or a network.
    client: Option<String>,
    /// What became of it.
    #[schemars(with = "Option<String>", extend("enum" = ["success", "failure", "denied", "unknown"]))]
    outcome: Option<kept::Wanted>,
    /// Ended at this moment or later (RFC 3339).
    since: Option<String>,
    /// Ended before this moment (RFC 3339).
    until: Option<String>,
    /// How many, at most 1000; 100 when left out.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// Whether to look into the history instead of memory, where one is kept.
    history: Option<bool>,
}

/// Which host is meant.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(in crate::admin) struct OfHost {
    /// The host; all when left out.
    host: Option<String>,
}

impl Followed {
    pub(in crate::admin) fn filter(&self) -> Result<Filter, Problem> {
        let wrong = |key: &str| {
            let key = key.to_owned();
            move |error: String| Problem::bad(format!("{key}: {error}"))
        };
        let host = self.host.as_deref().map(host_pattern).transpose();
        let client = self.client.as_deref().map(client_pattern).transpose();
        Ok(Filter {
            cause: self.cause.clone().filter(|cause| !cause.is_empty()),
            host: host.map_err(wrong("host"))?,
            client: client.map_err(wrong("client"))?,
            outcome: self.outcome,
            since: None,
            until: None,
        })
    }
}

impl Wanted {
    fn filter(&self) -> Result<Filter, Problem> {
        let followed = Followed {
            cause: self.cause.clone(),
            host: self.host.clone(),
            client: self.client.clone(),
            outcome: self.outcome,
        };
        let moment = |key: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => text.parse::<Timestamp>().map(Some).map_err(|_| {
                Problem::bad(format!("{key}: write a moment, as in 2026-01-02T03:04:05Z"))
            }),
        };
        Ok(Filter {
            since: moment("since", &self.since)?,
            until: moment("until", &self.until)?,
            ..followed.filter()?
        })
    }
}

fn raw(line: String) -> Option<Box<RawValue>> {
    RawValue::from_string(line).ok()
}

pub(super) async fn list(
    State(station): State<Arc<Station>>,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Records>, Problem> {
    let filter = wanted.filter()?;
    let limit = wanted.limit.unwrap_or(FEW);
    if !(1..=MOST).contains(&limit) {
        return Err(Problem::bad(format!(
            "limit: write a number from 1 to {MOST}"
        )));
    }
    let lines = if wanted.history == Some(true) {
        let history = history(&station)?;
        beside(move || history.find(&filter, limit)).await?
    } else {
        let found = station.board.kept().find(&filter, limit);
        found.iter().filter_map(|record| line(record)).collect()
    };
    let records = lines.into_iter().filter_map(raw).collect();
    Ok(Json(Records { records }))
}

fn history(station: &Station) -> Result<Arc<dyn History>, Problem> {
    let detail = "no history is kept: start the proxy with --history FILE";
    station
        .board
        .history()
        .ok_or_else(|| Problem::new(StatusCode::CONFLICT, detail))
}

/// Runs what waits for a disk beside the runtime.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| internal(error.to_string()))?
        .map_err(internal)
}

pub(super) async fn one(
    State(station): State<Arc<Station>>,
    Name(id): Name,
) -> Result<Json<Told>, Problem> {
    told(&station, &id).await.map(Json)
}

/// A record that is in memory or in the history, with its phases.
pub(in crate::admin) async fn told(station: &Station, id: &str) -> Result<Told, Problem> {
    let missing = || {
        let detail = format!(
            "no record {id:?} is in memory{}",
            match station.board.history() {
                Some(_) => " or in the history",
                None => ": it keeps the last 1000; --history FILE keeps more",
            }
        );
        Problem::new(StatusCode::NOT_FOUND, detail)
    };
    let known: Uuid = id.parse().map_err(|_| missing())?;
    let kept = station.board.kept().get(known);
    let found = match (kept, station.board.history()) {
        (Some(record), _) => line(&record),
        (None, Some(history)) => beside(move || history.get(known)).await?,
        (None, None) => None,
    };
    let found = found.ok_or_else(missing)?;
    let unreadable = |error: serde_json::Error| internal(format!("read record {id}: {error}"));
    let timings: Timings = serde_json::from_str(&found).map_err(unreadable)?;
    Ok(Told {
        record: RawValue::from_string(found).map_err(unreadable)?,
        timeline: timings.timeline(),
    })
}

pub(super) async fn follow(
    State(station): State<Arc<Station>>,
    Params(wanted): Params<Followed>,
) -> Result<Response, Problem> {
    Ok(stream::follow(&station.board, wanted.filter()?))
}

pub(super) async fn troubles(State(station): State<Arc<Station>>) -> Json<Troubles> {
    let troubles = station.board.kept().troubles();
    Json(Troubles { troubles })
}

pub(super) async fn suspects(
    State(station): State<Arc<Station>>,
    Params(of): Params<OfHost>,
) -> Json<Suspects> {
    let suspects = station.board.kept().suspects(of.host.as_deref());
    Json(Suspects { suspects })
}

pub(super) async fn causes() -> Json<Causes> {
    let known = |id: String, kind: Kind| {
        let cause = Cause::from(kind);
        Known {
            id,
            phase: cause.phase().map(crate::cause::Phase::as_str),
            side: cause.side().as_str(),
            status: cause.status(),
            confidence: cause.confidence().as_str(),
            means: cause.means(),
            hint: cause.hint().into_owned(),
        }
    };
    let all = Kind::ALL
        .iter()
        .map(|kind| (Cause::from(*kind).id().into_owned(), *kind));
    let patterns = PATTERNS.iter().map(|(id, kind)| ((*id).to_owned(), *kind));
    let causes = all.chain(patterns).map(|(id, kind)| known(id, kind));
    Json(Causes {
        causes: causes.collect(),
    })
}
