//! What Go's commands say of their failures.

use std::collections::VecDeque;

/// A failure that Go told of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The module, as in `example.com/mod@v1.2.3`.
    pub(super) what: String,
    /// The line.
    pub(super) said: String,
    /// Host and port of the URL that it was about.
    pub(super) target: String,
}

/// The failures in what `go` wrote on standard error: lines that name a module, and a URL in quotes.
pub(super) fn failures(said: &VecDeque<String>) -> Vec<Failure> {
    let mut module: Option<String> = None;
    let mut failures: Vec<Failure> = Vec::new();
    for line in said {
        let named = line
            .split_whitespace()
            .map(|word| word.trim_end_matches(':'));
        let named = named.into_iter().find(|word| is_module(word));
        let is_indented = line.starts_with(char::is_whitespace);
        if named.is_some() || !is_indented {
            module = named.map(str::to_owned);
        }
        let (Some(what), Some(target)) = (&module, target(line)) else {
            continue;
        };
        let failure = Failure {
            what: what.clone(),
            said: line.trim().to_owned(),
            target,
        };
        if !failures.contains(&failure) {
            failures.push(failure);
        }
    }
    failures
}

/// `path@version`, the path with a dot in its first element; or a path alone, as Go writes it of a module without a version.
fn is_module(word: &str) -> bool {
    let path = word.split('@').next().unwrap_or(word);
    let first = path.split('/').next().unwrap_or(path);
    let has_form = word.contains('@') || path.contains('/');
    let is_plain = path
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-._~/!".contains(c));
    has_form && is_plain && first.contains('.') && !first.starts_with('.')
}

/// Host and port of the first URL of a line.
fn target(line: &str) -> Option<String> {
    let (scheme, rest, default) = ["https://", "http://"].iter().find_map(|scheme| {
        let (_, rest) = line.split_once(scheme)?;
        Some((*scheme, rest, if *scheme == "https://" { 443 } else { 80 }))
    })?;
    let authority = rest
        .split(['/', '"', '\'', '?', '#'])
        .next()
        .map(|text| text.split_whitespace().next().unwrap_or(text))?;
    let authority = authority.rsplit('@').next().unwrap_or(authority);
    let authority = authority.trim_end_matches(':');
    let text = format!("{scheme}{authority}");
    let uri: http::Uri = text.parse().ok()?;
    let host = uri.host()?.to_ascii_lowercase();
    Some(format!("{host}:{}", uri.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(said: &str, expected: &[(&str, &str)]) {
        let said = said.lines().map(str::to_owned).collect();
        let found = failures(&said);
        let found: Vec<_> = found
            .iter()
            .map(|failure| (&*failure.what, &*failure.target))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn modules_and_the_hosts_they_failed_at_are_found() {
        check(
            "go: example.com/mod@v1.2.3: Get \"https://proxy.example/example.com/mod/@v/v1.2.3.zip\": Bad Gateway",
            &[("example.com/mod@v1.2.3", "proxy.example:443")],
        );
        check(
            "go: downloading a.example/b v1.0.0\n\
             go: a.example/b@v1.0.0: verifying module: a.example/b@v1.0.0: Get \"http://sum.example:8080/lookup\": x",
            &[("a.example/b@v1.0.0", "sum.example:8080")],
        );
        check(
            "go: git.example/team/x@v0.1.0: invalid version: git ls-remote -q origin in /go/pkg: exit status 128:\n\
             \tfatal: unable to access 'https://git.example/team/x/': CONNECT tunnel failed, response 403",
            &[("git.example/team/x@v0.1.0", "git.example:443")],
        );
        check("go: cannot find main module", &[]);
        check("main.go:3:2: no required module provides package", &[]);
    }
}
