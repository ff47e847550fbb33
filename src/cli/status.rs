//! `routecause status` and `routecause healthcheck`

use std::fmt::Write as _;

use clap::Args;
use http::StatusCode;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use super::ask::{AskError, complain, prepare};
use super::{AdminArgs, exit, print};
use crate::config::env::Environment;

#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    #[command(flatten)]
    pub(in crate::cli) admin: AdminArgs,
    /// Print JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    #[command(flatten)]
    pub(in crate::cli) admin: AdminArgs,
    /// Ask whether it lives, as whoever would start it again wants to know: full or ending, it does.
    #[arg(long)]
    pub(in crate::cli) live: bool,
    /// Print JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    #[serde(flatten)]
    status: &'a Value,
}

/// What `healthcheck --json` prints.
#[derive(Serialize)]
struct Checked {
    schema: &'static str,
    /// `ready` or `not_ready`; of `--live`, `live` or `not_live`.
    status: &'static str,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    hindrance: Option<String>,
}

/// The rates are of so many seconds.
pub(super) const LATELY: i64 = 60;

/// What became of the requests of the last seconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Rates {
    /// So many seconds.
    pub(super) seconds: i64,
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) denied: u64,
}

impl Rates {
    /// Those before `now`, by a status.
    pub(super) fn of(status: &Value, now: Timestamp) -> Self {
        let from = now.as_second() - LATELY;
        let lately = list(status, "pulse").iter().filter(|beat| {
            let second = beat.get("second").and_then(Value::as_i64);
            second.is_some_and(|second| second > from)
        });
        let none = Self {
            seconds: LATELY,
            ..Self::default()
        };
        lately.fold(none, |sum, beat| Self {
            requests: sum.requests + count(beat, "requests"),
            failures: sum.failures + count(beat, "failures"),
            denied: sum.denied + count(beat, "denied"),
            ..sum
        })
    }
}

pub(super) fn run(args: &StatusArgs, env: &Environment) -> u8 {
    let asked = prepare(&args.admin, env);
    let status = asked.and_then(|(runtime, proxy)| {
        runtime.block_on(async {
            let status = proxy.json("/v1/status").await?;
            Ok((status, proxy.json("/v1/upstreams").await?))
        })
    });
    match status {
        Ok((status, _)) if args.json => {
            let told = Told {
                schema: "routecause.status/1",
                status: &status,
            };
            give(&told)
        }
        Ok((status, upstreams)) => {
            print(&told(&status, &upstreams, Timestamp::now()));
            0
        }
        Err(error) => complain(&error),
    }
}

/// Prints a form of JSON.
pub(super) fn give(told: &impl Serialize) -> u8 {
    match serde_json::to_string_pretty(told) {
        Ok(text) => {
            print(&(text + "\n"));
            0
        }
        Err(error) => {
            say!("error: {error}");
            exit::FAILED
        }
    }
}

pub(super) fn check(args: &CheckArgs, env: &Environment) -> u8 {
    let (path, well, ill, not) = if args.live {
        ("/healthz", "live", "not_live", "not alive")
    } else {
        ("/readyz", "ready", "not_ready", "not ready")
    };
    let checked = |hindrance: Option<String>| Checked {
        schema: "routecause.healthcheck/1",
        status: if hindrance.is_none() { well } else { ill },
        hindrance,
    };
    let prepared = prepare(&args.admin, env);
    let told = prepared.and_then(|(runtime, proxy)| runtime.block_on(proxy.get(path)).map(|_| ()));
    match told {
        Ok(()) if args.json => give(&checked(None)),
        Ok(()) => 0,
        Err(AskError::Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            detail,
            ..
        }) => {
            say!("{not}: {detail}");
            if args.json {
                give(&checked(Some(detail)));
            }
            exit::FAILED
        }
        Err(error) => complain(&error),
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or("-")
}

fn count(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    let list = value.get(key).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

/// How a proxy is, in a few lines.
fn told(status: &Value, upstreams: &Value, now: Timestamp) -> String {
    let mut out = String::new();
    let started = text(status, "started").parse::<Timestamp>();
    let since = started.map_or("-".to_owned(), |at| {
        let at = at.to_zoned(TimeZone::system());
        at.strftime("%F %H:%M:%S").to_string()
    });
    let is_ready = status.get("is_ready").and_then(Value::as_bool);
    let state = if is_ready == Some(true) {
        "takes requests"
    } else {
        "is not ready"
    };
    let _ = writeln!(
        out,
        "routecause {} {state}, since {since}",
        text(status, "version")
    );
    if let Some(hindrance) = status.get("hindrance").and_then(Value::as_str) {
        let _ = writeln!(out, "  not ready  {hindrance}");
    }
    for listener in list(status, "listeners") {
        let (name, address) = (text(listener, "name"), text(listener, "address"));
        let _ = writeln!(out, "  listens    {address} ({name})");
    }
    let (source, hash) = (text(status, "source"), text(status, "policy"));
    let _ = writeln!(out, "  policy     {source} ({hash})");
    if let Some(refused) = status.get("refused") {
        let at = text(refused, "at");
        let _ = writeln!(out, "  refused    what stands there now, read at {at}:");
        for mistake in list(refused, "diagnostics") {
            let number = |key| Some(format!(":{}", mistake.get(key)?));
            let place = [number("line"), number("column")].into_iter().flatten();
            let place: String = place.collect();
            let (file, message) = (text(mistake, "file"), text(mistake, "message"));
            let _ = writeln!(out, "             {file}{place}: {message}");
        }
    }
    let Rates {
        requests,
        failures,
        denied,
        ..
    } = Rates::of(status, now);
    let _ = writeln!(
        out,
        "  last {LATELY} s  {requests} {}, {failures} failed, {denied} denied; {} tunnels open",
        if requests == 1 { "request" } else { "requests" },
        count(status, "tunnels")
    );
    for upstream in list(upstreams, "upstreams") {
        let state = text(upstream, "state");
        let _ = write!(out, "  upstream   {} is {state}", text(upstream, "name"));
        if let Some(last) = upstream.get("last_failure").and_then(Value::as_str) {
            let _ = write!(out, ", last failure {last}");
        }
        out.push('\n');
    }
    for lost in list(status, "dropped") {
        let lost_records = count(lost, "count");
        if lost_records > 0 {
            let _ = writeln!(
                out,
                "  lost       {lost_records} records by the {}",
                text(lost, "sink")
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_told_in_a_few_lines() {
        let status = json!({
            "version": "0.1.0", "started": "2026-01-02T03:04:05Z", "is_ready": true,
            "listeners": [{"name": "proxy", "address": "127.0.0.1:3128"}],
            "policy": "0123456789ab", "source": "p.yaml", "tunnels": 3,
            "dropped": [{"sink": "log", "count": 0}, {"sink": "stream", "count": 7}],
            "pulse": [
                {"second": 10, "requests": 9, "failures": 9, "denied": 0},
                {"second": 95, "requests": 5, "failures": 1, "denied": 2},
                {"second": 99, "requests": 1, "failures": 0, "denied": 0},
            ],
        });
        let upstreams = json!({"upstreams": [{"name": "corp", "state": "down", "last_failure": "connect.timeout"}]});
        let told = told(&status, &upstreams, Timestamp::from_second(100).unwrap());
        let lines: Vec<_> = told.lines().collect();
        assert!(
            lines[0].starts_with("routecause 0.1.0 takes requests, since 2026-01-0"),
            "{told}"
        );
        assert_eq!(
            lines[1..],
            [
                "  listens    127.0.0.1:3128 (proxy)",
                "  policy     p.yaml (0123456789ab)",
                "  last 60 s  6 requests, 1 failed, 2 denied; 3 tunnels open",
                "  upstream   corp is down, last failure connect.timeout",
                "  lost       7 records by the stream",
            ]
        );
    }
}
