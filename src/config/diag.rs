//! What is wrong with a policy, where, and what to do: written for people.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use unicode_width::UnicodeWidthChar;

/// Where a value stands in a file: lines and columns from 1, columns in characters; the end is
/// behind the last character.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file, as its place among those of a policy: 0 is the policy itself.
    pub file: usize,
    /// The line it begins on.
    pub line: usize,
    /// The column it begins at.
    pub column: usize,
    /// The line it ends on.
    pub end_line: usize,
    /// The column it ends before.
    pub end_column: usize,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing starts with it.
    Error,
    /// It loads, and is likely not meant.
    Warning,
}

/// One mistake.
///
/// `Display` prints it on one line; [`Diagnostic::render`] shows the line of the file too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as named by whoever asked.
    pub file: Arc<str>,
    /// Where in the file; absent where the file as a whole is meant.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The line of the file, or the piece of it around the place.
    excerpt: Option<Excerpt>,
}

/// A piece of a line that may be shown, and what of it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    text: String,
    /// How wide what stands before the place is on a terminal.
    before: usize,
    /// How wide the place is.
    width: usize,
}

/// All mistakes of one policy that keep it from being used, with its warnings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The mistakes, in the order of their places.
    pub diagnostics: Vec<Diagnostic>,
    /// The files that it was read from, or would have been.
    pub files: Vec<PathBuf>,
}

/// Collects the mistakes of a policy's files.
#[derive(Debug)]
pub(super) struct Findings<'t> {
    /// The policy itself, and what it includes.
    files: Vec<File<'t>>,
    /// Files that could not be read.
    absent: Vec<PathBuf>,
    /// Where secrets stand that were written into the file by mistake.
    secrets: Vec<Place>,
    list: Vec<Diagnostic>,
    /// Where those are worded that are too many to be told.
    spare: Diagnostic,
    untold: usize,
}

/// A file of a policy.
#[derive(Debug)]
struct File<'t> {
    name: Arc<str>,
    /// Where it is, if it is one.
    path: Option<PathBuf>,
    text: Cow<'t, str>,
    lines: Vec<Range<usize>>,
}

impl<'t> File<'t> {
    fn new(name: Arc<str>, path: Option<PathBuf>, text: Cow<'t, str>) -> Self {
        let mut lines = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let bare = line.strip_suffix('\n').unwrap_or(line);
            let bare = bare.strip_suffix('\r').unwrap_or(bare);
            lines.push(start..start + bare.len());
            start += line.len();
        }
        Self {
            name,
            path,
            text,
            lines,
        }
    }
}

/// The most that is told of one file. Whoever has more mistakes has one that makes the others.
const MOST: usize = 100;

impl Place {
    /// The first character of a file.
    pub(super) const START: Self = Self {
        file: 0,
        line: 1,
        column: 1,
        end_line: 1,
        end_column: 2,
    };
}

impl Severity {
    /// The word in front of the message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(place) = self.place {
            write!(f, "{}:{}:", place.line, place.column)?;
        }
        write!(f, " {}: {}", self.severity.as_str(), self.message)
    }
}

/// Source lines are shown at most this wide, so that one endless line cannot flood a terminal.
const WIDEST: usize = 120;

/// A mistake as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Told {
    /// `error` or `warning`.
    pub severity: &'static str,
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Told {
    /// What is wrong with a file as a whole.
    pub fn of_file(file: Arc<str>, message: String) -> Self {
        Self {
            severity: Severity::Error.as_str(),
            file,
            line: None,
            column: None,
            message,
            help: None,
        }
    }
}

impl Diagnostic {
    /// The same as JSON has it.
    pub fn told(&self) -> Told {
        Told {
            severity: self.severity.as_str(),
            file: self.file.clone(),
            line: self.place.map(|place| place.line),
            column: self.place.map(|place| place.column),
            message: self.message.clone(),
            help: self.help.clone(),
        }
    }

    /// The whole of it: what and where, the source line, carets under the value, and help.
    pub fn render(&self, is_coloured: bool) -> String {
        let paint = |code: &'static str, text: &str| {
            if is_coloured {
                format!("\x1b[{code}m{text}\x1b[0m")
            } else {
                text.to_owned()
            }
        };
        let colour = match self.severity {
            Severity::Error => "1;31",
            Severity::Warning => "1;33",
        };
        let mut at = self.file.to_string();
        if let Some(place) = self.place {
            at = format!("{at}:{}:{}", place.line, place.column);
        }
        let word = paint(colour, self.severity.as_str());
        let mut lines = vec![format!("{at}: {word}: {}", paint("1", &self.message))];
        let mut margin = 1;
        if let (Some(place), Some(excerpt)) = (self.place, &self.excerpt) {
            let number = place.line.to_string();
            margin = number.len();
            let Excerpt {
                text,
                before,
                width,
            } = excerpt;
            lines.push(format!(" {} {text}", paint("34", &format!("{number} |"))));
            lines.push(format!(
                " {} {:before$}{}",
                paint("34", &format!("{:margin$} |", "")),
                "",
                paint(colour, &"^".repeat(*width))
            ));
        }
        for (at, line) in self.help.iter().flat_map(|help| help.lines()).enumerate() {
            let lead = if at == 0 { "help: " } else { "      " };
            lines.push(format!(" {:margin$} {}{line}", "", paint("36", lead)));
        }
        lines.push(String::new());
        lines.join("\n")
    }

    /// One that stands alone, without a line of the file.
    pub(super) fn new(file: &Arc<str>, place: Option<Place>, message: String) -> Self {
        Self {
            severity: Severity::Error,
            file: Arc::clone(file),
            place,
            message,
            help: None,
            excerpt: None,
        }
    }

    /// Whether it keeps the policy from being used.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Adds what to do.
    pub(super) fn with_help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }
}

impl Report {
    /// Whether something in it keeps the policy from being used.
    pub fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|d| d.severity == Severity::Error)
    }

    /// Every mistake with its line, one under the other.
    pub fn render(&self, is_coloured: bool) -> String {
        let texts: Vec<_> = self
            .diagnostics
            .iter()
            .map(|d| d.render(is_coloured))
            .collect();
        texts.join("\n")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Report {}

impl<'t> Findings<'t> {
    /// Begins the list for a policy.
    pub(super) fn new(file: Arc<str>, path: Option<PathBuf>, text: &'t str) -> Self {
        Self {
            spare: Diagnostic::new(&file, None, String::new()),
            files: vec![File::new(file, path, text.into())],
            absent: Vec::new(),
            secrets: Vec::new(),
            list: Vec::new(),
            untold: 0,
        }
    }

    /// A list of its own for the same files, which shows no lines of them.
    pub(super) fn aside(&self) -> Findings<'static> {
        let file = |file: &File<'_>| File::new(file.name.clone(), None, "".into());
        Findings {
            spare: self.spare.clone(),
            files: self.files.iter().map(file).collect(),
            absent: Vec::new(),
            secrets: Vec::new(),
            list: Vec::new(),
            untold: 0,
        }
    }

    /// Takes in a file that the policy includes; gives its place among them.
    pub(super) fn include(&mut self, name: Arc<str>, path: PathBuf, text: String) -> usize {
        self.files.push(File::new(name, Some(path), text.into()));
        self.files.len() - 1
    }

    /// Notes a file that could not be read.
    pub(super) fn miss(&mut self, path: PathBuf) {
        self.absent.push(path);
    }

    /// The name of the file of a place.
    pub(super) fn file(&self, place: Place) -> &Arc<str> {
        self.files
            .get(place.file)
            .map_or(&self.spare.file, |file| &file.name)
    }

    /// The folder of the file of a place, which paths in it start from.
    pub(super) fn folder(&self, place: Place) -> &Path {
        let path = self
            .files
            .get(place.file)
            .and_then(|file| file.path.as_deref());
        path.and_then(Path::parent).unwrap_or(Path::new(""))
    }

    /// Where something else stands, seen from a place: `line 7`, or `sets.yaml:7`.
    pub(super) fn whereabouts(&self, of: Place, from: Place) -> String {
        if of.file == from.file {
            return format!("line {}", of.line);
        }
        format!("{}:{}", self.file(of), of.line)
    }

    /// The texts of all files, the policy's own first.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| &*file.text)
    }

    /// The paths of all files, those that could not be read behind the others.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let read = self.files.iter().filter_map(|file| file.path.clone());
        read.chain(self.absent.iter().cloned()).collect()
    }

    /// Keeps what stands at a place out of every excerpt.
    pub(super) fn conceal(&mut self, place: Place) {
        self.secrets.push(place);
    }

    /// Notes what keeps the policy from being used.
    pub(super) fn error(&mut self, place: Place, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Error, place, message.into())
    }

    /// Notes what is likely not meant.
    pub(super) fn warn(&mut self, place: Place, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Warning, place, message.into())
    }

    /// Notes one that was made elsewhere.
    pub(super) fn add(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// An error at a place, to be worded later.
    pub(super) fn draft(&self, place: Place) -> Diagnostic {
        Diagnostic {
            excerpt: self.excerpt(place),
            ..Diagnostic::new(self.file(place), Some(place), String::new())
        }
    }

    /// Whether something in it keeps the policy from being used.
    pub(super) fn has_errors(&self) -> bool {
        self.list.iter().any(Diagnostic::is_error)
    }

    /// The list, in the order of places.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        let order = |place: Place| (place.file, place.line, place.column);
        self.list.sort_by_key(|d| d.place.map(order));
        self.list.dedup();
        if self.untold > 0 {
            let message = format!("{} more are not told", self.untold);
            self.list
                .push(Diagnostic::new(&self.spare.file, None, message));
        }
        self.list
    }

    #[expect(clippy::indexing_slicing, reason = "a place that was just found in it")]
    fn push(&mut self, severity: Severity, place: Place, message: String) -> &mut Diagnostic {
        let is_full = self.list.len() >= MOST;
        // What keeps a policy from being used is told before what does not.
        let in_place_of = match severity {
            Severity::Error if is_full && self.untold == 0 => {
                self.list.iter().rposition(|d| !d.is_error())
            }
            Severity::Error | Severity::Warning => None,
        };
        if is_full && in_place_of.is_none() {
            if severity == Severity::Error {
                self.untold += 1;
            }
            return &mut self.spare;
        }
        let told = Diagnostic {
            severity,
            excerpt: self.excerpt(place),
            ..Diagnostic::new(self.file(place), Some(place), message)
        };
        let at = in_place_of.unwrap_or(self.list.len());
        if at == self.list.len() {
            self.list.push(told);
        } else {
            self.list[at] = told;
        }
        &mut self.list[at]
    }

    /// A line of the file as it may be shown: no secrets, no control characters, no endless width.
    fn excerpt(&self, place: Place) -> Option<Excerpt> {
        let file = self.files.get(place.file)?;
        let line = file.lines.get(place.line.checked_sub(1)?)?;
        let line = file.text.get(line.clone())?;
        let start = place.column.saturating_sub(1);
        let from = start.saturating_sub(LEAD);
        let mut chars: Vec<char> = line.chars().skip(from).take(LEAD + WIDEST + 1).collect();
        hide_userinfo(&mut chars);
        for secret in &self.secrets {
            let is_elsewhere = secret.file != place.file;
            if is_elsewhere || secret.line > place.line || secret.end_line < place.line {
                continue;
            }
            let first = if secret.line == place.line {
                secret.column - 1
            } else {
                0
            };
            let last = if secret.end_line == place.line {
                secret.end_column - 1
            } else {
                usize::MAX
            };
            let hidden = chars.iter_mut().take(last.saturating_sub(from));
            hidden
                .skip(first.saturating_sub(from))
                .for_each(|c| *c = '*');
        }
        for c in &mut chars {
            if c.is_control() || is_bidi(*c) {
                *c = ' ';
            }
        }
        let end = if place.end_line == place.line {
            place.end_column.saturating_sub(1)
        } else {
            usize::MAX
        };
        let skipped = if start > WIDEST * 2 / 3 {
            start - WIDEST / 3
        } else {
            0
        };
        let mut shown = chars.get(skipped - from.min(skipped)..).unwrap_or_default();
        let is_cut = shown.len() > WIDEST;
        shown = shown.get(..WIDEST).unwrap_or(shown);
        let width =
            |chars: &[char]| -> usize { chars.iter().map(|c| c.width().unwrap_or(0)).sum() };
        let (before, meant) = shown.split_at((start - skipped).min(shown.len()));
        let text: String = shown.iter().collect();
        let meant: String = meant.iter().take(end.saturating_sub(start)).collect();
        let meant: Vec<char> = meant.trim_end().chars().collect();
        let lead = if skipped > 0 { "…" } else { "" };
        let tail = if is_cut { "…" } else { "" };
        Some(Excerpt {
            before: width(before) + usize::from(skipped > 0),
            width: width(&meant).max(1),
            text: format!("{lead}{}{tail}", text.trim_end()),
        })
    }
}

/// How much of a line in front of a place is looked at for what must not be shown.
const LEAD: usize = 4096;

/// Characters that reorder what a terminal shows.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Blots out what stands before the `@` of a URL, also where the file is too broken to be parsed.
fn hide_userinfo(line: &mut [char]) {
    let mut from = None;
    for at in 0..line.len() {
        if line.get(at..at + 3) == Some(&[':', '/', '/']) {
            from = Some(at + 3);
        }
        match (line.get(at), from) {
            (Some('@'), Some(start)) => line.iter_mut().take(at).skip(start).for_each(|c| *c = '*'),
            (Some(c), Some(start)) if at >= start && (c.is_whitespace() || *c == '/') => {
                from = None;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, column: usize, end_column: usize, expected: &str) {
        let mut findings = Findings::new("p.yaml".into(), None, line);
        let place = Place {
            file: 0,
            line: 1,
            column,
            end_line: 1,
            end_column,
        };
        findings.error(place, "no").with_help("do this\nand that");
        assert_eq!(findings.finish()[0].render(false), expected);
    }

    #[test]
    fn carets_stand_under_the_value() {
        check(
            "a: bücher",
            4,
            10,
            "p.yaml:1:4: error: no\n 1 | a: bücher\n   |    ^^^^^^\n   help: do this\n         and that\n",
        );
        check(
            "名: x",
            4,
            5,
            "p.yaml:1:4: error: no\n 1 | 名: x\n   |     ^\n   help: do this\n         and that\n",
        );
    }

    #[test]
    fn an_endless_line_is_shown_around_the_place() {
        let line = format!("{}!{}", "x".repeat(5000), "y".repeat(5000));
        let mut findings = Findings::new("p.yaml".into(), None, &line);
        let place = Place {
            file: 0,
            line: 1,
            column: 5001,
            end_line: 1,
            end_column: 5002,
        };
        findings.error(place, "no");
        let text = findings.finish()[0].render(false);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].chars().count() < 140, "{text}");
        let caret = lines[2].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[1].chars().nth(caret), Some('!'), "{text}");
    }

    #[test]
    fn secrets_and_control_characters_are_not_shown() {
        let mut findings = Findings::new(
            "p.yaml".into(),
            None,
            "u: http://me:s3cret@h\x1b[31m p: s3cret",
        );
        findings.conceal(Place {
            file: 0,
            line: 1,
            column: 31,
            end_line: 1,
            end_column: 37,
        });
        findings.error(Place::START, "no");
        let text = findings.finish()[0].render(false);
        assert!(!text.contains("s3cret") && !text.contains('\x1b'), "{text}");
    }
}
