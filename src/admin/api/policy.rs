//! The policy: what it decides, what it holds, and how it is replaced.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{ETAG, IF_MATCH};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::super::Station;
use super::super::problem::{Body, Params, Problem};
use super::answers::{Applied, Checked, Policy, Rule, Test};
use super::internal;
use crate::app::explain::{Asked, Asker, Found, walk};
use crate::app::reload::{Answer, Refused, Wish};
use crate::config::{self, Diagnostic, Loaded, Options, Source};
use crate::exchange::Trail;
use crate::policy::explain::Explanation;
use crate::policy::flight::Flight;
use crate::policy::{self, Action, Mode};

/// A policy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PolicyText")]
pub(in crate::admin) struct Text {
    /// Its YAML.
    policy: String,
}

/// What the policy is asked about.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(in crate::admin) struct Asks {
    /// What is asked for: `http://…` as a plain request, `https://…` or `host:port` as a CONNECT.
    pub(in crate::admin) target: String,
    /// The client's address; this machine when left out.
    #[schemars(with = "Option<String>")]
    pub(in crate::admin) client: Option<String>,
    /// The user name that it gives.
    pub(in crate::admin) user: Option<String>,
    /// The request's label.
    pub(in crate::admin) label: Option<String>,
    /// The listener that it comes by; the first when left out.
    pub(in crate::admin) listener: Option<String>,
    /// The name in the SNI of the tunnel; the target's when left out.
    pub(in crate::admin) sni: Option<String>,
}

pub(super) async fn explain(
    State(station): State<Arc<Station>>,
    Params(asks): Params<Asks>,
) -> Result<Json<Explanation>, Problem> {
    explained(station, asks).await.map(Json)
}

/// What the policy at work decides.
pub(in crate::admin) async fn explained(
    station: Arc<Station>,
    asks: Asks,
) -> Result<Explanation, Problem> {
    let asked = Asked::parse(&asks.target);
    let asked = asked.map_err(|error| Problem::bad(format!("target: {error}")))?;
    let address: IpAddr = match &asks.client {
        None => Ipv4Addr::LOCALHOST.into(),
        Some(text) => text
            .parse()
            .map_err(|_| Problem::bad("client: write an address"))?,
    };
    let wanted = asks.listener.as_deref();
    let mut listeners = station.listeners.iter();
    let listener = listeners.find(|l| wanted.is_none_or(|name| *name == *l.name));
    let listener = listener.ok_or_else(|| Problem::bad("listener: there is none of that name"))?;
    let listener = listener.clone();
    let here = Handle::current();
    let explained = tokio::task::spawn_blocking(move || {
        let snapshot = station.proxy.snapshot.load_full();
        let flight = match &asks.sni {
            Some(name) => Flight::tls(Some(name), []),
            None => Flight::usual(&asked.target),
        };
        let asker = Asker {
            address,
            user: asks.user.as_deref(),
            label: asks.label.as_deref(),
            listener: &listener,
        };
        let host = &asked.target.host;
        let within = snapshot.policy.timeouts.dns;
        walk(&snapshot.policy, &asked, &asker, &flight, |dns| {
            let names = snapshot.names.of_target(host, dns);
            let trail = Trail::default();
            let found: Found = here.block_on(names.lookup(host, within, &trail));
            Ok::<_, std::convert::Infallible>(found)
        })
    });
    match explained.await {
        Ok(Ok(explanation)) => Ok(explanation),
        Ok(Err(never)) => match never {},
        Err(error) => Err(internal(error.to_string())),
    }
}

pub(super) async fn show(State(station): State<Arc<Station>>) -> Response {
    let policy = shown(&station);
    ([(ETAG, etag(&policy.hash))], Json(policy)).into_response()
}

fn etag(hash: &str) -> String {
    format!("\"{hash}\"")
}

/// The policy at work, as far as it is to be seen: no secret stands in a rule.
pub(in crate::admin) fn shown(station: &Station) -> Policy {
    let findings = station.findings();
    let snapshot = station.proxy.snapshot.load();
    let at_work = &snapshot.policy;
    let hits = station.board.kept().hits(&at_work.hash);
    let rules = at_work.rules.iter().chain([&at_work.default]);
    let rules = rules.enumerate().map(|(at, rule)| Rule {
        name: rule.name.clone(),
        source: rule.source.clone(),
        action: action(at_work, &rule.action),
        mode: match rule.mode {
            Mode::Enforce => "enforce",
            Mode::Report => "report",
            Mode::Off => "off",
        },
        expires: rule.expires,
        hits: hits.get(&rule.name).copied().unwrap_or(0),
        findings: findings
            .iter()
            .filter(|finding| finding.rule == at)
            .map(|finding| finding.message.clone())
            .collect(),
    });
    Policy {
        hash: at_work.hash.clone(),
        source: station.source.to_string(),
        rules: rules.collect(),
    }
}

fn action(policy: &policy::Policy, action: &Action) -> String {
    match action {
        Action::Block(_) => "block".to_owned(),
        Action::Continue => "continue".to_owned(),
        Action::Route(routes) => {
            let (http, connect) = (
                &policy.route(routes.http).name,
                &policy.route(routes.connect).name,
            );
            if http == connect {
                http.to_string()
            } else {
                format!("{http} for plain requests, {connect} for tunnels")
            }
        }
    }
}

pub(super) async fn check(
    State(station): State<Arc<Station>>,
    Body(text): Body<Text>,
) -> Result<Json<Checked>, Problem> {
    let checked = tokio::task::spawn_blocking(move || {
        let now = Timestamp::now();
        let source = Source::Text {
            name: "policy".to_owned(),
            text: text.policy,
        };
        let told = |diagnostics: &[Diagnostic]| diagnostics.iter().map(Diagnostic::told).collect();
        match config::load(&source, &station.environment, &Options::check(now)) {
            Err(report) => Checked {
                is_usable: false,
                diagnostics: told(&report.diagnostics),
                tests: Vec::new(),
            },
            Ok(Loaded {
                trials, warnings, ..
            }) => {
                let outcomes = trials.iter().map(|trial| trial.run(now));
                let tests: Vec<_> = outcomes
                    .map(|outcome| Test {
                        passed: outcome.passed(),
                        failure: outcome.failure.as_ref().map(Diagnostic::told),
                        name: outcome.name,
                    })
                    .collect();
                Checked {
                    is_usable: tests.iter().all(|test| test.passed),
                    diagnostics: told(&warnings),
                    tests,
                }
            }
        }
    });
    let checked = checked.await;
    checked
        .map(Json)
        .map_err(|error| internal(error.to_string()))
}

pub(super) async fn apply(
    State(station): State<Arc<Station>>,
    headers: HeaderMap,
    Body(text): Body<Text>,
) -> Result<Response, Problem> {
    let expected = headers.get(IF_MATCH).and_then(|value| value.to_str().ok());
    let Some(expected) = expected else {
        let detail = "say by If-Match which policy it replaces: the ETag of GET /v1/policy";
        return Err(Problem::new(StatusCode::PRECONDITION_REQUIRED, detail));
    };
    let instead_of = expected.trim().trim_matches('"').to_owned();
    let text = text.policy;
    let wish = |answer| Wish::Apply {
        text,
        instead_of,
        answer,
    };
    wished(&station, wish).await
}

pub(super) async fn reload(State(station): State<Arc<Station>>) -> Result<Response, Problem> {
    wished(&station, Wish::Reload).await
}

async fn wished(
    station: &Station,
    wish: impl FnOnce(oneshot::Sender<Answer>) -> Wish,
) -> Result<Response, Problem> {
    let (sender, answer) = oneshot::channel();
    let ending = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the proxy is ending");
    let sent = station.keeper.send(wish(sender)).await;
    sent.map_err(|_| ending())?;
    match answer.await {
        Ok(Ok(at_work)) => {
            let tag = etag(&at_work.hash);
            let applied = Applied {
                hash: at_work.hash,
                tunnels_cut: at_work.cut,
            };
            Ok(([(ETAG, tag)], Json(applied)).into_response())
        }
        Ok(Err(Refused::Bad(report))) => {
            let told = report.diagnostics.iter().map(Diagnostic::told);
            Err(Problem::of_policy(told.collect()))
        }
        Ok(Err(Refused::Stale)) => {
            let detail = "another policy is at work than the one that If-Match names";
            Err(Problem::new(StatusCode::PRECONDITION_FAILED, detail))
        }
        Ok(Err(Refused::Unfit(why))) => Err(Problem::new(StatusCode::CONFLICT, why)),
        Err(_) => Err(ending()),
    }
}
