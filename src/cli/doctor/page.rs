//! What the doctor and `explain RECORD` print: a word in the margin, and beside it what it is about.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use serde::Serialize;

use super::super::{print, wants_colour};
use crate::config::env::Environment;
use crate::doctor::Verdict;
use crate::observe::report::wrapped;

/// What stands in the margin, and the blanks behind it.
const MARGIN: usize = 10;

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Tone {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// A text that grows line by line and is never wider than the terminal.
#[derive(Debug)]
pub(in crate::cli) struct Page {
    text: String,
    width: usize,
    is_coloured: bool,
}

impl Page {
    /// For standard output as it is.
    pub(in crate::cli) fn new(env: &Environment) -> Self {
        let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0));
        Self {
            text: String::new(),
            width: width.clamp(40, 120),
            is_coloured: io::stdout().is_terminal() && wants_colour(env),
        }
    }

    /// How wide a line may be beside the margin.
    pub(in crate::cli) fn room(&self) -> usize {
        self.width - MARGIN
    }

    /// A part, wrapped; its head stands on the first line alone.
    pub(in crate::cli) fn put(&mut self, head: &str, tone: Tone, body: &str) {
        for (at, line) in wrapped(body, self.room()).iter().enumerate() {
            self.line(if at == 0 { head } else { "" }, tone, line);
        }
    }

    /// A line as it stands.
    pub(in crate::cli) fn line(&mut self, head: &str, tone: Tone, line: &str) {
        let paint = |tone: Tone| if self.is_coloured { tone.code() } else { "" };
        let end = if self.is_coloured { "\x1b[0m" } else { "" };
        let _ = writeln!(
            self.text,
            "{}{head:<MARGIN$}{end}{}{line}{end}",
            paint(Tone::Dim),
            paint(tone)
        );
    }

    /// A verdict: what is the matter first, why, and what to do.
    pub(in crate::cli) fn verdict(&mut self, verdict: &Verdict) {
        let tone = if verdict.is_fine() {
            Tone::Good
        } else {
            Tone::Bad
        };
        self.put("verdict", tone, &verdict.sentence);
        let id = format!("{} ({})", verdict.id, verdict.certainty.as_str());
        self.put("", Tone::Dim, &id);
        for evidence in &verdict.evidence {
            self.put("evidence", Tone::Plain, evidence);
        }
        for counter in &verdict.counter {
            self.put("but", Tone::Plain, counter);
        }
        if let Some(fix) = &verdict.fix {
            self.put("fix", Tone::Bold, fix);
        }
    }

    /// Prints it, or JSON in its place.
    pub(in crate::cli) fn give(self, json: Option<&impl Serialize>) {
        match json.map(serde_json::to_string_pretty) {
            None => print(&self.text),
            Some(Ok(text)) => print(&(text + "\n")),
            Some(Err(error)) => say!("error: {error}"),
        }
    }
}
