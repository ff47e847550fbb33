//! The mistakes of a policy's files as they are found, each with its line as it may be shown.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unicode_width::UnicodeWidthChar;

use super::{Diagnostic, Excerpt, Place, Severity};

/// Collects the mistakes of a policy's files.
#[derive(Debug)]
pub(in crate::config) struct Findings<'t> {
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

impl<'t> Findings<'t> {
    /// Begins the list for a policy.
    pub(in crate::config) fn new(file: Arc<str>, path: Option<PathBuf>, text: &'t str) -> Self {
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
    pub(in crate::config) fn aside(&self) -> Findings<'static> {
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
    pub(in crate::config) fn include(
        &mut self,
        name: Arc<str>,
        path: PathBuf,
        text: String,
    ) -> usize {
        self.files.push(File::new(name, Some(path), text.into()));
        self.files.len() - 1
    }

    /// Notes a file that could not be read.
    pub(in crate::config) fn miss(&mut self, path: PathBuf) {
        self.absent.push(path);
    }

    /// The name of the file of a place.
    pub(in crate::config) fn file(&self, place: Place) -> &Arc<str> {
        self.files
            .get(place.file)
            .map_or(&self.spare.file, |file| &file.name)
    }

    /// The folder of the file of a place, which paths in it start from.
    pub(in crate::config) fn folder(&self, place: Place) -> &Path {
        let path = self
            .files
            .get(place.file)
            .and_then(|file| file.path.as_deref());
        path.and_then(Path::parent).unwrap_or(Path::new(""))
    }

    /// Where something else stands, seen from a place: `line 7`, or `sets.yaml:7`.
    pub(in crate::config) fn whereabouts(&self, of: Place, from: Place) -> String {
        if of.file == from.file {
            return format!("line {}", of.line);
        }
        format!("{}:{}", self.file(of), of.line)
    }

    /// The texts of all files, the policy's own first.
    pub(in crate::config) fn texts(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| &*file.text)
    }

    /// The paths of all files, those that could not be read behind the others.
    pub(in crate::config) fn paths(&self) -> Vec<PathBuf> {
        let read = self.files.iter().filter_map(|file| file.path.clone());
        read.chain(self.absent.iter().cloned()).collect()
    }

    /// Keeps what stands at a place out of every excerpt.
    pub(in crate::config) fn conceal(&mut self, place: Place) {
        self.secrets.push(place);
    }

    /// Notes what keeps the policy from being used.
    pub(in crate::config) fn error(
        &mut self,
        place: Place,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.push(Severity::Error, place, message.into())
    }

    /// Notes what is likely not meant.
    pub(in crate::config) fn warn(
        &mut self,
        place: Place,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        self.push(Severity::Warning, place, message.into())
    }

    /// Notes one that was made elsewhere.
    pub(in crate::config) fn add(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// An error at a place, to be worded later.
    pub(in crate::config) fn draft(&self, place: Place) -> Diagnostic {
        Diagnostic {
            excerpt: self.excerpt(place),
            ..Diagnostic::new(self.file(place), Some(place), String::new())
        }
    }

    /// Whether something in it keeps the policy from being used.
    pub(in crate::config) fn has_errors(&self) -> bool {
        self.list.iter().any(Diagnostic::is_error)
    }

    /// The list, in the order of places.
    pub(in crate::config) fn finish(mut self) -> Vec<Diagnostic> {
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

/// Source lines are shown at most this wide, so that one endless line cannot flood a terminal.
const WIDEST: usize = 120;

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
