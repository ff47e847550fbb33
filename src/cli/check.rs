//! `routecause check`

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::{exit, print, replay, wants_colour};
use crate::config::env::Environment;
use crate::config::{self, Diagnostic, Loaded, Options, Outcome, Told};
use crate::policy::explain::Explanation;

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    /// The policy file; without it, the one that `serve` would run.
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: Option<PathBuf>,
    /// The same, as `serve` takes it.
    #[arg(
        long = "policy",
        value_name = "FILE",
        env = "ROUTECAUSE_POLICY",
        conflicts_with = "file",
        hide = true
    )]
    pub(in crate::cli) policy: Option<PathBuf>,
    /// Decide the requests of these record logs again, and print only what changes; - for standard input.
    #[arg(long, value_name = "RECORDS", num_args = 1..)]
    pub(in crate::cli) against: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Checked<'a> {
    schema: &'static str,
    policy: String,
    is_usable: bool,
    diagnostics: Vec<Told>,
    /// The faults that are at work.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    faults: &'a [String],
    tests: Vec<Tested<'a>>,
}

#[derive(Serialize)]
struct Tested<'a> {
    test: &'a str,
    passed: bool,
    got: &'a Explanation,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Told>,
}

pub(super) fn run(args: &CheckArgs, env: &Environment) -> u8 {
    let file = args.file.as_deref().or(args.policy.as_deref());
    let source = config::locate(file, env);
    let now = Timestamp::now();
    let loaded = config::load(&source, env, &Options::check(now));
    if let (false, Ok(loaded)) = (args.against.is_empty(), &loaded) {
        let name = source.to_string();
        return replay::run(
            &args.against,
            &loaded.policy,
            &loaded.server,
            name,
            args.json,
        );
    }
    let (diagnostics, outcomes, faults, is_usable) = match loaded {
        Ok(Loaded {
            policy,
            trials,
            warnings,
            ..
        }) => {
            let outcomes: Vec<Outcome> = trials.iter().map(|trial| trial.run(now)).collect();
            let faults: Vec<String> = policy.faults().into_iter().map(str::to_owned).collect();
            (warnings, outcomes, faults, true)
        }
        Err(report) => (report.diagnostics, Vec::new(), Vec::new(), false),
    };
    let policy = source.to_string();
    if args.json {
        print_json(policy, &diagnostics, &faults, &outcomes, is_usable);
    } else {
        print_text(&policy, &diagnostics, &faults, &outcomes, env);
    }
    match is_usable {
        false => exit::BAD_POLICY,
        true if outcomes.iter().any(|outcome| !outcome.passed()) => exit::FAILED,
        true => 0,
    }
}

fn print_json(
    policy: String,
    diagnostics: &[Diagnostic],
    faults: &[String],
    outcomes: &[Outcome],
    is_usable: bool,
) {
    let diagnostics = diagnostics.iter().map(Diagnostic::told).collect();
    let tests = outcomes.iter().map(|outcome| Tested {
        test: &outcome.name,
        passed: outcome.passed(),
        got: &outcome.explanation,
        failure: outcome.failure.as_ref().map(Diagnostic::told),
    });
    let checked = Checked {
        schema: "routecause.check/1",
        policy,
        is_usable,
        diagnostics,
        faults,
        tests: tests.collect(),
    };
    match serde_json::to_string_pretty(&checked) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => say!("error: {error}"),
    }
}

fn print_text(
    policy: &str,
    diagnostics: &[Diagnostic],
    faults: &[String],
    outcomes: &[Outcome],
    env: &Environment,
) {
    let is_coloured = io::stderr().is_terminal() && wants_colour(env);
    let failures = outcomes
        .iter()
        .filter_map(|outcome| outcome.failure.as_ref());
    for diagnostic in diagnostics.iter().chain(failures) {
        say!("{}", diagnostic.render(is_coloured));
    }
    let count = |is_error: bool| {
        diagnostics
            .iter()
            .filter(|d| d.is_error() == is_error)
            .count()
    };
    let passed = outcomes.iter().filter(|outcome| outcome.passed()).count();
    let tell =
        |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let mistakes = match (count(true), count(false)) {
        (0, 0) => "no mistakes".to_owned(),
        (0, warnings) => tell(warnings, "warning"),
        (errors, 0) => tell(errors, "mistake"),
        (errors, warnings) => format!("{}, {}", tell(errors, "mistake"), tell(warnings, "warning")),
    };
    let tests = match outcomes.len() {
        _ if count(true) > 0 => "tests not run".to_owned(),
        0 => "no tests".to_owned(),
        all if all == passed => format!("{} passed", tell(all, "test")),
        all => format!("{} of {} failed", all - passed, tell(all, "test")),
    };
    let faults = match faults {
        [] => String::new(),
        faults => format!("; it injects faults: {}", faults.join(", ")),
    };
    print(&format!("{policy}: {mistakes}, {tests}{faults}\n"));
}
