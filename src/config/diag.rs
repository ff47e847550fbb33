//! What is wrong with a policy, where, and what to do: written for people.

mod findings;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

pub(super) use findings::Findings;

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
