//! What `serve` tells of requests, and to whom.

use std::sync::Arc;

use super::super::wants_colour;
use super::Refusal;
use super::args::{LogFormat, ServeArgs};
use crate::app::{AdminSettings, Settings};
use crate::config::env::Environment;
#[cfg(not(feature = "otlp"))]
use crate::config::otlp;
use crate::config::otlp::{Otlp, OtlpError};
use crate::config::{self, ServerSettings};
use crate::observe::board::{Board, History, Keep};
use crate::observe::log::{Form, Log, form_of_stdout};

/// The log that is asked for.
pub(super) fn log(
    args: &ServeArgs,
    server: &ServerSettings,
    settings: &Settings,
    env: &Environment,
) -> Result<Arc<Log>, Refusal> {
    let form = form(args, server, settings.log_file.is_some(), env);
    let log = match &settings.log_file {
        Some(path) => Log::to_file(path, form).map_err(|error| Refusal::Other(error.into()))?,
        None => Log::to_stdout(form),
    };
    Ok(Arc::new(log))
}

/// The board in front of it, where anybody looks at it or takes from it.
pub(super) fn board(
    log: &Arc<Log>,
    settings: &Settings,
    is_looked_at: bool,
    env: &Environment,
) -> Result<Option<Arc<Board>>, Refusal> {
    let exporter = exporter(settings, env)?;
    let history = history(&settings.admin)?;
    if !is_looked_at && exporter.is_none() && history.is_none() {
        return Ok(None);
    }
    let mut keepers: Vec<Arc<dyn Keep>> = vec![log.clone()];
    keepers.extend(exporter);
    Ok(Some(Arc::new(Board::new(keepers, history))))
}

/// Records that outlast the process, where they are wanted.
#[cfg(feature = "history")]
fn history(settings: &AdminSettings) -> Result<Option<Arc<dyn History>>, Refusal> {
    use crate::observe::sqlite::{RETENTION, Sqlite};

    let Some(path) = &settings.history else {
        return Ok(None);
    };
    let retention = settings.history_retention.unwrap_or(RETENTION);
    let history = Sqlite::open(path, retention);
    let history = history.map_err(|error| Refusal::Other(error.into()))?;
    Ok(Some(Arc::new(history)))
}

#[cfg(not(feature = "history"))]
#[expect(clippy::unnecessary_wraps, reason = "other builds can fail here")]
fn history(_: &AdminSettings) -> Result<Option<Arc<dyn History>>, Refusal> {
    Ok(None)
}

/// The export by OTLP, where it is wanted.
#[cfg(feature = "otlp")]
fn exporter(settings: &Settings, env: &Environment) -> Result<Option<Arc<dyn Keep>>, Refusal> {
    use crate::observe::otlp::Exporter;

    let Some(otlp) = &settings.otlp else {
        return Ok(None);
    };
    let exporter = Exporter::start(otlp, env).map_err(|error| Refusal::Otlp(error.to_string()))?;
    Ok(Some(Arc::new(exporter)))
}

#[cfg(not(feature = "otlp"))]
#[expect(clippy::unnecessary_wraps, reason = "other builds can fail here")]
fn exporter(_: &Settings, env: &Environment) -> Result<Option<Arc<dyn Keep>>, Refusal> {
    if otlp::VARIABLES.iter().any(|name| env.get(name).is_some()) {
        tracing::warn!(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and this build exports nothing: build it with --features otlp"
        );
    }
    Ok(None)
}

/// What is to be exported by OTLP.
pub(super) fn otlp(
    args: &ServeArgs,
    server: &ServerSettings,
    env: &Environment,
) -> Result<Option<Otlp>, OtlpError> {
    // That the environment names a collector for all programs is no wish that a build must meet.
    if !cfg!(feature = "otlp") {
        return Ok(None);
    }
    Otlp::settle(args.otlp.as_ref(), &server.otlp, env)
}

fn form(args: &ServeArgs, server: &ServerSettings, is_file: bool, env: &Environment) -> Form {
    let written = server.log_format.map(|format| match format {
        config::LogFormat::Json => LogFormat::Json,
        config::LogFormat::Text => LogFormat::Text,
    });
    let on_stdout = form_of_stdout(!wants_colour(env));
    match (args.log_format.or(written), on_stdout) {
        (Some(LogFormat::Json), _) => Form::Json,
        (Some(LogFormat::Text), Form::Text { colour }) if !is_file => Form::Text { colour },
        (Some(LogFormat::Text), _) => Form::Text { colour: false },
        (None, _) if is_file => Form::Json,
        (None, on_stdout) => on_stdout,
    }
}
