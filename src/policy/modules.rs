//! Go modules by the patterns of GOPRIVATE (`match.go_module`).
//!
//! Source: `go help private` and `path.Match`; the paths of the module proxy protocol are those of
//! <https://go.dev/ref/mod#goproxy-protocol>.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::matcher::{Truth, Unknown};
use super::{Query, Scheme};

/// Patterns of module paths.
#[derive(Clone, Debug, Default)]
pub struct Modules(Vec<Pattern>);

/// A pattern for the first elements of a module path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    written: String,
    elements: Vec<Vec<Token>>,
}

/// A part of an element, as in `path.Match`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `*`
    Star,
    /// `?`
    Any,
    /// A character.
    One(char),
    /// `[a-z]`, or `[^a-z]`.
    Class {
        is_negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Why a pattern is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// It has no elements.
    #[error("a module pattern begins with a host, as in git.corp.example/team/*")]
    NoHost,
    /// A class that does not end, or is empty.
    #[error("a class [...] does not end, or is empty")]
    Class,
    /// A backslash at the end.
    #[error("a backslash at the end escapes nothing")]
    Escape,
}

impl Pattern {
    /// Parses a pattern; a slash at its end is ignored, and the host is taken in lower case, as module paths have it.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let text = text.trim();
        let bare = text.strip_suffix('/').unwrap_or(text);
        let mut elements = Vec::new();
        for (at, element) in bare.split('/').enumerate() {
            let element: Cow<'_, str> = match at {
                0 => element.to_lowercase().into(),
                _ => element.into(),
            };
            if element.is_empty() || element.contains("://") || element.ends_with(':') {
                return Err(BadPattern::NoHost);
            }
            elements.push(tokens(&element)?);
        }
        Ok(Self {
            written: text.to_owned(),
            elements,
        })
    }

    /// Whether it is a host alone, which a tunnel shows as well.
    pub fn is_host(&self) -> bool {
        self.elements.len() == 1
    }

    /// Whether the first elements of a module path match.
    fn matches(&self, module: &str) -> bool {
        let mut parts = module.split('/');
        self.elements.iter().all(|element| {
            let part = parts.next();
            part.is_some_and(|part| element_matches(element, &part.chars().collect::<Vec<_>>()))
        })
    }
}

impl FromIterator<Pattern> for Modules {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl Modules {
    /// Whether there is no pattern in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The patterns as written.
    pub fn written(&self) -> impl ExactSizeIterator<Item = String> {
        self.0.iter().map(|pattern| pattern.written.clone())
    }

    /// The patterns that a tunnel cannot show.
    pub(super) fn hidden_in_tunnels(&self) -> impl Iterator<Item = &str> {
        let long = self.0.iter().filter(|pattern| !pattern.is_host());
        long.map(|pattern| &*pattern.written)
    }

    /// Whether the module that a request asks for is one of them. A tunnel shows its host only: patterns that are more
    /// than a host are unknown there.
    pub(super) fn judge(&self, query: &Query<'_>) -> Truth {
        let host = query.target.host.to_string();
        let path = match (query.scheme, query.path) {
            (Scheme::Http, Some(path)) => path,
            (Scheme::Http, None) | (Scheme::Connect, _) => {
                let mut short = self.0.iter().filter(|pattern| pattern.is_host());
                return match short.any(|pattern| pattern.matches(&host)) {
                    true => Truth::True,
                    false if self.0.iter().all(Pattern::is_host) => Truth::False,
                    false => Truth::Unknown(Unknown::Opaque),
                };
            }
        };
        let path = path
            .split('?')
            .next()
            .unwrap_or(path)
            .trim_start_matches('/');
        let path = percent_decode_str(path).decode_utf8_lossy();
        let module = match asked_of_proxy(&path) {
            Some(module) => module,
            None => format!("{host}/{path}"),
        };
        self.0.iter().any(|p| p.matches(&module)).into()
    }
}

/// The module path in a path of the module proxy protocol: what stands before `/@v/` or `/@latest`, where a capital `X` is
/// written `!x`.
fn asked_of_proxy(path: &str) -> Option<String> {
    let escaped = match path.split_once("/@v/") {
        Some((module, _)) => module,
        None => path.strip_suffix("/@latest")?,
    };
    let mut module = String::with_capacity(escaped.len());
    let mut is_capital = false;
    for c in escaped.chars() {
        match c {
            '!' if !is_capital => is_capital = true,
            c if is_capital => {
                module.push(c.to_ascii_uppercase());
                is_capital = false;
            }
            c => module.push(c),
        }
    }
    Some(module)
}

fn tokens(element: &str) -> Result<Vec<Token>, BadPattern> {
    let mut tokens = Vec::new();
    let mut chars = element.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::One(chars.next().ok_or(BadPattern::Escape)?),
            '[' => {
                let is_negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                let one = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next()
                {
                    Some('\\') => chars.next().ok_or(BadPattern::Escape),
                    Some(c) if c != '-' && c != ']' => Ok(c),
                    Some(_) | None => Err(BadPattern::Class),
                };
                while ranges.is_empty() || chars.peek() != Some(&']') {
                    let first = one(&mut chars)?;
                    let last = match chars.next_if_eq(&'-') {
                        Some(_) => one(&mut chars)?,
                        None => first,
                    };
                    ranges.push((first, last));
                }
                chars.next();
                Token::Class { is_negated, ranges }
            }
            c => Token::One(c),
        });
    }
    Ok(tokens)
}

/// Goes back to the last star only: what an earlier one could take, a later one can take as well.
fn element_matches(tokens: &[Token], chars: &[char]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        match (tokens.get(token), chars.get(at)) {
            (None, None) => return true,
            (Some(Token::Star), _) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            (Some(this), Some(c)) if this.takes(*c) => {
                (token, at) = (token + 1, at + 1);
                continue;
            }
            _ => {}
        }
        match star {
            Some((behind, taken)) if taken < chars.len() => {
                star = Some((behind, taken + 1));
                (token, at) = (behind + 1, taken + 1);
            }
            _ => return false,
        }
    }
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Star => false,
            Self::Any => true,
            Self::One(one) => *one == c,
            Self::Class { is_negated, ranges } => {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&c))
                    != *is_negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, module: &str, expected: bool) {
        let pattern = Pattern::parse(pattern).unwrap();
        assert_eq!(pattern.matches(module), expected, "{pattern:?} {module}");
    }

    #[test]
    fn a_pattern_speaks_of_the_leading_elements() {
        check("git.corp.example", "git.corp.example", true);
        check("git.corp.example", "git.corp.example/team/lib", true);
        check("git.corp.example", "git.corp.example.org/lib", false);
        check("Git.Corp.example/", "git.corp.example/lib", true);
        check("code.example/team/*", "code.example/team/lib/v2", true);
        check("code.example/team/*", "code.example/team", false);
        check("code.example/team/*", "code.example/other/lib", false);
        check("*.corp.example", "git.corp.example/lib", true);
        check("*.corp.example", "corp.example/lib", false);
        check("*/team", "a.example/team/x", true);
        check("*/team", "a.example/b/team", false);
    }

    #[test]
    fn an_element_matches_as_path_match_has_it() {
        check("a*c*e", "abcde", true);
        check("a*c*e", "abcd", false);
        check("a?c", "abc", true);
        check("a?c", "ac", false);
        check("[a-c]x", "bx", true);
        check("[^a-c]x", "bx", false);
        check("[^a-c]x", "dx", true);
        check("a\\*", "a*", true);
        check("a\\*", "ab", false);
        check("*", "", true);
        check("**b", "aab", true);
        for (bad, why) in [
            ("", BadPattern::NoHost),
            ("/x", BadPattern::NoHost),
            ("https://a.example", BadPattern::NoHost),
            ("a[", BadPattern::Class),
            ("a[]", BadPattern::Class),
            ("a[b", BadPattern::Class),
            ("a\\", BadPattern::Escape),
        ] {
            assert_eq!(Pattern::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn the_path_of_a_module_proxy_names_the_module() {
        let asked = |path| asked_of_proxy(path);
        assert_eq!(
            asked("git.corp.example/team/lib/@v/list").as_deref(),
            Some("git.corp.example/team/lib")
        );
        assert_eq!(
            asked("code.example/!big!team/lib/@latest").as_deref(),
            Some("code.example/BigTeam/lib")
        );
        assert_eq!(asked("team/lib?go-get=1"), None);
        assert_eq!(asked("team/lib/@latest/x"), None);
    }
}
