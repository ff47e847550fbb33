//! Where the scripts of PAC files come from.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::config::decode::{At, Named, clip};
use crate::config::diag::{Findings, Place};
use crate::config::{include, raw, web};
use crate::pac::{self, Location, Script, Source};

/// From one time that a web server is asked for a script to the next.
const EVERY: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(24);

/// The same, where the policy does not say.
const USUAL: Duration = Duration::from_hours(1);

/// Reads the scripts that are files, and finds out where the others are; by where they are named.
pub(in crate::config) fn sources(
    raw: Option<&At<Named<raw::upstreams::AnyUpstream>>>,
    findings: &mut Findings<'_>,
) -> Vec<(Place, Source)> {
    let mut sources = Vec::new();
    for (_, upstream) in raw.iter().flat_map(|raw| raw.iter()) {
        let raw::upstreams::AnyUpstream::Pac(written) = upstream else {
            continue;
        };
        let Some(at) = &written.pac else { continue };
        if !pac::is_built_in() {
            let message = "this build evaluates no PAC files";
            let help = "build routecause with `--features pac`";
            findings.error(at.place, message).with_help(help);
            continue;
        }
        let source = if at.contains("://") {
            location(written, at, findings)
        } else {
            if let Some(every) = &written.every {
                let message = "a PAC file that is a file is read again when it changes";
                let help = "leave `every` out";
                findings.error(every.place, message).with_help(help);
            }
            file(at, findings).map(Source::File)
        };
        sources.extend(source.map(|source| (at.place, source)));
    }
    sources
}

fn file(at: &At<String>, findings: &mut Findings<'_>) -> Option<Script> {
    let (_, text) = include::script(at, findings)?;
    if let Err(error) = pac::check(&text) {
        findings.error(at.place, format!("`{}`: {error}", clip(at)));
        return None;
    }
    Some(Script {
        place: at.value.as_str().into(),
        text: text.into(),
    })
}

fn location(
    written: &raw::upstreams::PacFile,
    at: &At<String>,
    findings: &mut Findings<'_>,
) -> Option<Source> {
    let found = web::url(at, true);
    let web = found.map_err(|message| {
        let help = "write `pac: http://wpad.corp.example/proxy.pac`";
        findings.error(at.place, message).with_help(help);
    });
    let every = written.every.as_ref().map_or(USUAL, |every| every.0);
    if let Some(written) = &written.every
        && !EVERY.contains(&every)
    {
        let message = "a PAC file is fetched again after 10s to 24h";
        let help = "`every: 1h` is often enough";
        findings.error(written.place, message).with_help(help);
    }
    let web = web.ok()?;
    let url = at.split('?').next().unwrap_or_default();
    let (shown, path) = match web.query {
        Some(query) => (format!("{url}?…"), format!("{}?{query}", web.path).into()),
        None => (url.to_owned(), web.path),
    };
    Some(Source::Url {
        location: Arc::new(Location {
            shown: shown.into(),
            is_https: web.is_https,
            server: web.server,
            path,
        }),
        every,
    })
}
