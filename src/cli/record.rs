//! `routecause explain RECORD`: what became of one request, from its record alone.

mod log;
mod story;

use std::fmt::Write as _;

use http::StatusCode;
use serde::{Deserialize as _, Serialize};
use serde_json::Value;
use uuid::Uuid;

use self::log::{Found, Tally};
use super::ask::{AskError, complain, prepare};
use super::doctor::page::Page;
use super::explain::ExplainArgs;
use super::{exit, print};
use crate::config::env::Environment;
use crate::record::quote;
use crate::record::seen::Seen;
use crate::record::timeline::{Span, Timings};

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    record: &'a Value,
    timeline: &'a [Span],
    /// Of the requests to the same target, where a log was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a Tally>,
}

/// The name and version of that form.
const SCHEMA: &str = "routecause.explain.record/1";

/// Whether a record is asked for, and not a decision.
pub(super) fn is_meant(args: &ExplainArgs) -> bool {
    args.log.is_some()
        || args
            .target
            .as_deref()
            .is_some_and(|text| id(text).is_some())
}

/// A record's id, as answers show it. A host of such a name is asked for with its port or scheme.
fn id(text: &str) -> Option<Uuid> {
    let id = text.parse().ok()?;
    (text.len() == uuid::fmt::Hyphenated::LENGTH).then_some(id)
}

/// Whether an id may begin so.
fn is_beginning(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

pub(super) fn run(args: &ExplainArgs, env: &Environment) -> u8 {
    let asked = args.target.as_deref();
    if let Some(asked) = asked.filter(|asked| !is_beginning(asked)) {
        say!("error: --log looks for a record's id, and {asked} is none");
        return exit::USAGE;
    }
    if args.asks_as_somebody() {
        say!("error: a record says itself who asked, and for what: that is for a URL or HOST:PORT");
        return exit::USAGE;
    }
    let found = match (&args.log, asked.and_then(id)) {
        (Some(log), _) => log::find(log, asked),
        (None, Some(id)) => match remembered(id, args, env) {
            Ok(found) => found,
            Err(code) => return code,
        },
        // The parser sees to it that there is one of them.
        (None, None) => return exit::USAGE,
    };
    let told = found.and_then(|found| Ok((Timings::deserialize(&found.record)?.timeline(), found)));
    let (timeline, found) = match told {
        Ok(told) => told,
        Err(error) => {
            say!("error: {}", quote(&format!("{error:#}")));
            return exit::FAILED;
        }
    };
    if !args.json {
        let mut page = Page::new(env);
        story::tell(&found, &timeline, &mut page);
        page.give(None::<&Told<'_>>);
        return 0;
    }
    let told = Told {
        schema: SCHEMA,
        record: &found.record,
        timeline: &timeline,
        target: found.target.as_ref(),
    };
    match serde_json::to_string_pretty(&told) {
        Ok(text) => {
            print(&(escaped(&text) + "\n"));
            0
        }
        Err(error) => {
            say!("error: {error}");
            exit::FAILED
        }
    }
}

/// What a running proxy remembers; else how the program ends.
fn remembered(
    id: Uuid,
    args: &ExplainArgs,
    env: &Environment,
) -> Result<anyhow::Result<Found>, u8> {
    let answer = prepare(&args.admin, env)
        .and_then(|(runtime, proxy)| runtime.block_on(proxy.json(&format!("/v1/records/{id}"))));
    let told = answer.map_err(|error| {
        let code = complain(&error);
        say!("help: with --log FILE it is looked for in a log, and no proxy is asked");
        match error {
            AskError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            } => exit::FAILED,
            AskError::Refused { .. } | AskError::Unreachable { .. } | AskError::Token(_) => code,
        }
    })?;
    let record = told.get("record").cloned().unwrap_or_default();
    Ok(Seen::read(record.to_string().as_bytes())
        .map(|seen| Found {
            record,
            seen,
            target: None,
        })
        .map_err(anyhow::Error::from))
}

/// JSON whose texts move no cursor.
fn escaped(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        let is_plain = c == '\n' || matches!(c, ' '..='~');
        if is_plain || quote(c.encode_utf8(&mut [0; 4])).starts_with(c) {
            safe.push(c);
        } else {
            // All of them have four digits.
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_none_of_a_host() {
        let written = "01a20291-f042-7db5-89d7-a93b85071c85";
        assert_eq!(id(written).unwrap().to_string(), written);
        assert!(id(&written.to_uppercase()).is_some());
        for other in [
            "01a20291f0427db589d7a93b85071c85",
            "01a20291-f042-7db5-89d7-a93b85071c85:443",
            "http://01a20291-f042-7db5-89d7-a93b85071c85/",
            "a.example:443",
        ] {
            assert_eq!(id(other), None, "{other}");
        }
    }

    #[test]
    fn json_reads_the_same_and_moves_no_cursor() {
        let value = serde_json::json!({"a": "\u{1b}[2J\u{9b}2J\u{202e}\u{7f}bücher", "b": [1]});
        let text = escaped(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.chars().any(|c| c != '\n' && c.is_control()), "{text}");
        assert!(
            text.contains("bücher") && !text.contains('\u{202e}'),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
