//! `routecause check`

use std::io::{self, IsTerminal as _};

use jiff::Timestamp;
use serde::Serialize;

use super::{CheckArgs, exit, print, wants_colour};
use crate::config::env::Environment;
use crate::config::{self, Diagnostic, Loaded, Options, Outcome};
use crate::policy::explain::Explanation;

/// What `--json` prints.
#[derive(Serialize)]
struct Checked<'a> {
    schema: &'static str,
    policy: String,
    is_usable: bool,
    diagnostics: Vec<Told<'a>>,
    tests: Vec<Tested<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    severity: &'static str,
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'a str>,
}

#[derive(Serialize)]
struct Tested<'a> {
    test: &'a str,
    passed: bool,
    got: &'a Explanation,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Told<'a>>,
}

pub(super) fn run(args: &CheckArgs, env: &Environment) -> u8 {
    let file = args.file.as_deref().or(args.policy.as_deref());
    let source = config::locate(file, env);
    let now = Timestamp::now();
    let (diagnostics, outcomes, is_usable) = match config::load(&source, env, &Options::check(now))
    {
        Ok(Loaded {
            trials, warnings, ..
        }) => {
            let outcomes: Vec<Outcome> = trials.iter().map(|trial| trial.run(now)).collect();
            (warnings, outcomes, true)
        }
        Err(report) => (report.diagnostics, Vec::new(), false),
    };
    let policy = source.to_string();
    if args.json {
        print_json(policy, &diagnostics, &outcomes, is_usable);
    } else {
        print_text(&policy, &diagnostics, &outcomes, env);
    }
    match is_usable {
        false => exit::BAD_POLICY,
        true if outcomes.iter().any(|outcome| !outcome.passed()) => exit::FAILED,
        true => 0,
    }
}

fn print_json(policy: String, diagnostics: &[Diagnostic], outcomes: &[Outcome], is_usable: bool) {
    let diagnostics = diagnostics.iter().map(told).collect();
    let tests = outcomes.iter().map(|outcome| Tested {
        test: &outcome.name,
        passed: outcome.passed(),
        got: &outcome.explanation,
        failure: outcome.failure.as_ref().map(told),
    });
    let checked = Checked {
        schema: "routecause.check/1",
        policy,
        is_usable,
        diagnostics,
        tests: tests.collect(),
    };
    match serde_json::to_string_pretty(&checked) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => say!("error: {error}"),
    }
}

fn told(diagnostic: &Diagnostic) -> Told<'_> {
    Told {
        severity: diagnostic.severity.as_str(),
        file: &diagnostic.file,
        line: diagnostic.place.map(|place| place.line),
        column: diagnostic.place.map(|place| place.column),
        message: &diagnostic.message,
        help: diagnostic.help.as_deref(),
    }
}

fn print_text(policy: &str, diagnostics: &[Diagnostic], outcomes: &[Outcome], env: &Environment) {
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
    print(&format!("{policy}: {mistakes}, {tests}\n"));
}
