//! `routecause doctor --idle DURATION URL`: what cuts connections that are silent, and when.

use serde::Serialize;

use super::super::exit;
use super::DoctorArgs;
use super::page::{Page, Tone};
use super::plan::plan;
use super::{load, look, recheck};
use crate::config::env::{Environment, without_credentials};
use crate::doctor::Verdict;
use crate::doctor::facts::Spoken;
use crate::doctor::idle::{Silence, judge};
use crate::doctor::probe::idle;

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    verdict: &'a Verdict,
    silences: &'a [Silence],
    recheck: &'a str,
}

pub(super) fn run(args: &DoctorArgs, env: &Environment) -> u8 {
    let Some(longest) = args.idle else {
        return exit::USAGE;
    };
    let (policy, _) = match load(args, env) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let planned = plan(&args.subject, args, &policy, env);
    let plan = match planned {
        Ok((plan, rule)) if plan.chosen.is_none() => {
            say!(
                "error: the policy refuses {}, by {}",
                plan.target,
                rule.map(|rule| rule.to_string()).unwrap_or_default()
            );
            return exit::DENIED;
        }
        Ok((plan, _)) if plan.spoken == Spoken::Other => {
            say!(
                "error: {}: --idle asks a server of HTTP whether it is still there: write http:// or https://",
                without_credentials(&args.subject)
            );
            return exit::USAGE;
        }
        Ok((plan, _)) => plan,
        Err(error) => {
            say!("error: {}: {error:#}", without_credentials(&args.subject));
            return exit::USAGE;
        }
    };
    let silences = look(env, async |resolver, progress| {
        idle(&policy, resolver, &plan, longest, progress).await
    });
    let silences = match silences {
        Ok(silences) => silences,
        Err(error) => {
            say!("error: {error:#}");
            return exit::FAILED;
        }
    };
    let verdict = judge(&plan.target.to_string(), &silences);
    let recheck = recheck(args);
    let mut page = Page::new(env);
    page.verdict(&verdict);
    let way = plan.chosen.as_deref().unwrap_or_default();
    page.put(
        "seen",
        Tone::Plain,
        &format!(
            "{} connections by {way}, left alone at once",
            silences.len()
        ),
    );
    page.put("again", Tone::Plain, &recheck);
    let told = Told {
        schema: "routecause.doctor.idle/1",
        verdict: &verdict,
        silences: &silences,
        recheck: &recheck,
    };
    page.give(args.json.then_some(&told));
    if verdict.is_fine() { 0 } else { exit::FAILED }
}
