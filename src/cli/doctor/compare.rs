//! `routecause doctor --compare URL…`: mirrors side by side.

use serde::Serialize;

use super::super::exit;
use super::DoctorArgs;
use super::page::{Page, Tone};
use super::plan::{path_of, plan};
use super::{load, look, recheck};
use crate::config::env::{Environment, without_credentials};
use crate::doctor::Verdict;
use crate::doctor::compare::{Mirror, judge};
use crate::doctor::probe::compare;

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    verdict: &'a Verdict,
    mirrors: &'a [Mirror],
    recheck: &'a str,
}

pub(super) fn run(args: &DoctorArgs, env: &Environment) -> u8 {
    let urls: Vec<&str> = [&args.subject]
        .into_iter()
        .chain(&args.more)
        .map(String::as_str)
        .collect();
    if urls.len() < 2 {
        say!("error: --compare wants two URLs or more");
        return exit::USAGE;
    }
    let (policy, _) = match load(args, env) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let mut mirrors = Vec::new();
    for url in urls {
        let shown = without_credentials(url);
        // One after the other: they would share the line.
        let found = plan(url, args, &policy, env).and_then(|(plan, _)| {
            anyhow::ensure!(url.contains("://"), "write it with http:// or https://");
            let path = path_of(url);
            look(env, async |resolver, progress| {
                compare(&policy, resolver, &plan, (&shown, &path), progress).await
            })
        });
        match found {
            Ok(mirror) => mirrors.push(mirror),
            Err(error) => {
                say!("error: {shown}: {error:#}");
                return exit::USAGE;
            }
        }
    }
    let verdict = judge(&mirrors);
    let recheck = recheck(args);
    let mut page = Page::new(env);
    page.verdict(&verdict);
    for mirror in &mirrors {
        page.put("mirror", Tone::Plain, &mirror.url);
        page.put("", Tone::Dim, &mirror.told());
    }
    page.put("again", Tone::Plain, &recheck);
    let told = Told {
        schema: "routecause.doctor.compare/1",
        verdict: &verdict,
        mirrors: &mirrors,
        recheck: &recheck,
    };
    page.give(args.json.then_some(&told));
    if verdict.is_fine() { 0 } else { exit::FAILED }
}
