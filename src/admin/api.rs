//! The API: one list of operations, from which both the router and the description are made.

pub(super) mod answers;
pub(super) mod policy;
pub(super) mod records;
pub(super) mod running;

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::Station;
use super::document::{Answers, Operation, document, of};
use super::problem::Problem;
use crate::observe::metrics::CONTENT_TYPE as OPENMETRICS;
use crate::policy::explain::Explanation;

const JSON: &str = "application/json";

macro_rules! operations {
    ($($method:ident $path:literal $handler:path, $summary:literal
       $(, query $query:ty)? $(, header $header:literal: $holds:literal)? $(, body $body:ty)? => $answers:expr;)*) => {
        /// Every operation of the API.
        pub(super) fn operations() -> Vec<Operation> {
            vec![$(Operation {
                method: stringify!($method),
                path: $path,
                summary: $summary,
                query: operations!(@some $($query)?),
                body: operations!(@some $($body)?),
                header: operations!(@header $($header, $holds)?),
                answers: $answers,
            },)*]
        }

        /// The router of all operations.
        pub(super) fn router() -> Router<Arc<Station>> {
            Router::new()$(.route($path, $method($handler)))*
        }
    };
    (@some) => { None };
    (@some $type:ty) => { Some(of::<$type>) };
    (@header) => { None };
    (@header $name:literal, $holds:literal) => { Some(($name, $holds)) };
}

operations! {
    get "/healthz" running::healthz, "Whether the process lives: 503 where a worker hangs." => Answers::Text("text/plain; charset=utf-8");
    get "/readyz" running::readyz, "Whether more requests may come: 503 once its end has begun, where a worker hangs, or where it has no room for more."
        => Answers::Text("text/plain; charset=utf-8");
    get "/metrics" running::metrics, "The metrics, in the text form of OpenMetrics." => Answers::Text(OPENMETRICS);
    get "/v1/openapi.json" openapi, "This description." => Answers::Json(of::<serde_json::Map<String, serde_json::Value>>);
    get "/v1/status" running::status, "How the proxy is." => Answers::Json(of::<answers::Status>);
    get "/v1/records" records::list, "The last records, the newest first.",
        query records::Wanted => Answers::Json(of::<answers::Records>);
    get "/v1/records/{id}" records::one, "One record with its timeline." => Answers::Json(of::<answers::Told>);
    get "/v1/stream" records::follow,
        "Records as they come, as server-sent events: `record` with a record, `dropped` with how many a slow reader missed.",
        query records::Followed => Answers::Text("text/event-stream");
    get "/v1/troubles" records::troubles, "What failed of late, by host and cause, the most frequent first."
        => Answers::Json(of::<answers::Troubles>);
    get "/v1/suspects" records::suspects, "What is suspected of late, by host, the surest first.",
        query records::OfHost => Answers::Json(of::<answers::Suspects>);
    get "/v1/causes" records::causes, "The catalogue of causes." => Answers::Json(of::<answers::Causes>);
    get "/v1/tunnels" running::tunnels, "The tunnels that are open, the oldest first." => Answers::Json(of::<answers::Tunnels>);
    delete "/v1/tunnels/{id}" running::cut, "Cut an open tunnel: its record says `tunnel.killed`." => Answers::Nothing;
    delete "/v1/dns/cache" running::forget_names, "Forget what name servers said: each name is asked for anew." => Answers::Nothing;
    get "/v1/upstreams" running::upstreams, "The upstreams and their health." => Answers::Json(of::<answers::Upstreams>);
    post "/v1/upstreams/{name}/drain" running::drain,
        "Pass an upstream over from now on, where something else may serve." => Answers::Json(of::<answers::Upstream>);
    post "/v1/upstreams/{name}/enable" running::enable, "Use a drained upstream again."
        => Answers::Json(of::<answers::Upstream>);
    get "/v1/faults" running::faults, "The faults of the policy, and how often each struck."
        => Answers::Json(of::<answers::Faults>);
    post "/v1/faults/reset" running::reset, "Count from the beginning, as if the policy had just been loaded."
        => Answers::Json(of::<answers::Faults>);
    get "/v1/explain" policy::explain, "What the policy decides for a request and why, without making it.",
        query policy::Asks => Answers::Json(of::<Explanation>);
    get "/v1/policy" policy::show, "The policy at work: its rules, and how often each decided. The ETag is its hash."
        => Answers::Json(of::<answers::Policy>);
    put "/v1/policy" policy::apply,
        "Check a policy and set it to work in the place of the one at work, until that is read again. Whole or not at all.",
        header "If-Match": "The ETag of the policy that it replaces; `*` for any.",
        body policy::Text => Answers::Json(of::<answers::Applied>);
    post "/v1/policy/check" policy::check, "Find the mistakes of a policy and run its tests; nothing changes.",
        body policy::Text => Answers::Json(of::<answers::Checked>);
    post "/v1/policy/reload" policy::reload, "Read the policy again where it comes from." => Answers::Json(of::<answers::Applied>);
    get "/v1/log-level" running::log_level, "How much the diary on stderr says." => Answers::Json(of::<answers::LogLevel>);
    put "/v1/log-level" running::set_log_level, "Set that, as in `info` or `routecause=debug`.",
        body answers::LogLevel => Answers::Json(of::<answers::LogLevel>);
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, JSON)], document().to_string()).into_response()
}

/// What ought not to happen.
pub(super) fn internal(detail: String) -> Problem {
    tracing::error!("admin: {detail}");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}
