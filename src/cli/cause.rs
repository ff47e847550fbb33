//! `routecause explain --cause`

use serde::Serialize;

use super::{exit, print};
use crate::cause::{Cause, Kind, PATTERNS, Phase};

/// What `--json` prints.
#[derive(Serialize)]
struct Causes<'a> {
    schema: &'static str,
    causes: &'a [Told],
}

/// The name and version of that form.
const SCHEMA: &str = "routecause.cause/1";

/// A cause as a person reads of it.
#[derive(Serialize)]
struct Told {
    id: String,
    /// `None` where it may happen in any.
    phase: Option<&'static str>,
    side: &'static str,
    /// `None` where no answer is possible any more; 499 stands in the record only.
    status: Option<u16>,
    confidence: &'static str,
    proxy_status: Option<&'static str>,
    means: &'static str,
    hint: String,
}

impl Told {
    fn of(id: String, cause: Cause) -> Self {
        Self {
            id,
            phase: cause.phase().map(Phase::as_str),
            side: cause.side().as_str(),
            status: cause.status(),
            confidence: cause.confidence().as_str(),
            proxy_status: cause.proxy_status(),
            means: cause.means(),
            hint: cause.hint().into_owned(),
        }
    }

    /// What is told of every id with a pattern: the status of `http.status.<code>` is its code.
    fn of_pattern(pattern: &str, kind: Kind) -> Self {
        let is_own = matches!(kind, Kind::HttpStatus(_));
        let told = Self::of(pattern.to_owned(), kind.into());
        Self {
            status: told.status.filter(|_| !is_own),
            ..told
        }
    }
}

/// Tells of one cause, of all whose ids begin alike, or of `all`.
pub(super) fn run(asked: &str, is_json: bool) -> u8 {
    let found = find(asked);
    if found.is_empty() {
        say!("error: there is no cause {asked:?}");
        let near = nearest(asked);
        if !near.is_empty() {
            say!("help: did you mean {}?", near.join(" or "));
        }
        say!("help: `routecause explain --cause all` lists them");
        return exit::USAGE;
    }
    if is_json {
        let causes = Causes {
            schema: SCHEMA,
            causes: &found,
        };
        match serde_json::to_string_pretty(&causes) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
    } else if let ([one], Some(_)) = (&*found, Cause::parse(asked)) {
        print(&tell(one));
    } else {
        print(&list(&found));
    }
    0
}

fn find(asked: &str) -> Vec<Told> {
    if let Some(cause) = Cause::parse(asked) {
        return vec![Told::of(asked.to_owned(), cause)];
    }
    if asked == "all" {
        return every();
    }
    let family = asked.trim_end_matches('*').trim_end_matches('.');
    let is_in = |told: &Told| {
        let rest = told.id.strip_prefix(family);
        !family.is_empty() && rest.is_some_and(|rest| rest.starts_with('.'))
    };
    let found: Vec<_> = every().into_iter().filter(is_in).collect();
    if found.is_empty() {
        return on_the_way().into_iter().filter(is_in).collect();
    }
    found
}

/// The whole table; patterns behind the rows of their family.
fn every() -> Vec<Told> {
    let rows = Kind::ALL.iter().map(|kind| Cause::from(*kind));
    let mut all: Vec<_> = rows
        .map(|cause| Told::of(cause.id().into_owned(), cause))
        .collect();
    for (pattern, kind) in PATTERNS {
        let family = pattern.split('.').next();
        let last = all
            .iter()
            .rposition(|told| told.id.split('.').next() == family);
        all.insert(
            last.map_or(all.len(), |at| at + 1),
            Told::of_pattern(pattern, *kind),
        );
    }
    all
}

/// What may happen on the way to an upstream.
fn on_the_way() -> Vec<Told> {
    let rows = Kind::ALL.iter().map(|kind| Cause::of_upstream(*kind));
    let rows = rows.filter(|cause| cause.reaching_upstream);
    let rows = rows.map(|cause| Told::of(cause.id().into_owned(), cause));
    rows.collect()
}

fn tell(told: &Told) -> String {
    let status = match told.status {
        None => "none: no answer is possible any more".to_owned(),
        Some(499) => "499, in the record only".to_owned(),
        Some(status) => status.to_string(),
    };
    format!(
        "{}\n  how it is told  {}\n  what to do      {}\n  phase           {}\n  side            {}\n  \
         confidence      {}\n  status          {status}\n  Proxy-Status    {}\n",
        told.id,
        told.means,
        told.hint,
        told.phase.unwrap_or("any"),
        told.side,
        told.confidence,
        told.proxy_status.unwrap_or("none"),
    )
}

fn list(found: &[Told]) -> String {
    let width = found
        .iter()
        .map(|told| told.id.len())
        .max()
        .unwrap_or(0)
        .min(45);
    let line = |told: &Told| format!("{:width$}  {}\n", told.id, told.means);
    found.iter().map(line).collect()
}

/// At most three ids that were likely meant, the likeliest first.
fn nearest(asked: &str) -> Vec<String> {
    let ids = every().into_iter().chain(on_the_way());
    let mut scored: Vec<_> = ids
        .map(|told| (strsim::damerau_levenshtein(asked, &told.id), told.id))
        .filter(|(distance, _)| *distance <= asked.chars().count().max(6) / 3)
        .collect();
    scored.sort();
    scored.into_iter().map(|(_, id)| id).take(3).collect()
}
