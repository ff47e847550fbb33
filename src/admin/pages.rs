//! The dashboard: pages made here, live by a small script that fetches them again when a record comes.
//!
//! Everything that strangers wrote goes through the template's escaping; nothing is loaded from elsewhere.

mod chart;
mod failures;
mod frame;
mod lab;
mod now;
mod record;
mod running;

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};

use super::Station;

const STYLE: &str = include_str!("pages/style.css");
const SCRIPT: &str = include_str!("pages/live.js");
const ICON: &str = include_str!("pages/icon.svg");

/// The router of the pages.
pub(super) fn router() -> Router<Arc<Station>> {
    Router::new()
        .route("/", get(now::page))
        .route("/failures", get(failures::page))
        .route("/records/{id}", get(record::page))
        .route("/policy", get(running::policy))
        .route("/upstreams", get(running::upstreams))
        .route("/lab", get(lab::page))
        .route(
            "/style.css",
            get(async || asset("text/css; charset=utf-8", STYLE)),
        )
        .route(
            "/live.js",
            get(async || asset("text/javascript; charset=utf-8", SCRIPT)),
        )
        .route("/favicon.ico", get(async || asset("image/svg+xml", ICON)))
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    // Another version may serve here in a minute.
    let fields = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")];
    (fields, text).into_response()
}
