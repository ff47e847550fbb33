//! Sets of host patterns.

use std::collections::HashSet;
use std::sync::Arc;

use globset::GlobSet;
use ipnet::IpNet;

use crate::policy::index::{MANY_HOSTS, Reach};
use crate::target::Host;

/// A set of host patterns.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Exact hosts.
    exact: HashSet<Host>,
    /// Names that match with all below (`domain`).
    domains: HashSet<Arc<str>>,
    /// Names of which all below match (`*.name`).
    below: HashSet<Arc<str>>,
    /// Other patterns, with dots as slashes.
    globs: Option<GlobSet>,
    /// The patterns as written, for lint.
    written: Vec<String>,
}

/// Why a host pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The part without wildcards is no host.
    #[error("{0}")]
    Host(#[from] crate::target::TargetError),
    /// A wildcard pattern that cannot be compiled.
    #[error("{0}")]
    Glob(String),
    /// A pattern with a port, a scheme or a path.
    #[error("a host pattern is a name or an address only: leave out scheme, port and path")]
    NotAHost,
}

impl Hosts {
    /// Compiles `host` patterns (exact names, addresses and globs) and `domain` names.
    ///
    /// In a glob a leading `*.` spans one or more labels, any other `*` and `?` stay inside a label,
    /// and `**` crosses labels.
    ///
    /// # Errors
    /// The index of the first bad pattern, hosts counted before domains, and what is wrong with it.
    pub fn new(hosts: &[&str], domains: &[&str]) -> Result<Self, (usize, PatternError)> {
        let mut this = Self::default();
        let mut globs = globset::GlobSetBuilder::new();
        let mut has_globs = false;
        for (at, pattern) in hosts.iter().enumerate() {
            if let Some(glob) = this.add_host(pattern).map_err(|error| (at, error))? {
                globs.add(glob);
                has_globs = true;
            }
        }
        for (at, domain) in domains.iter().enumerate() {
            this.add_domain(domain)
                .map_err(|error| (hosts.len() + at, error))?;
        }
        if has_globs {
            let set = globs
                .build()
                .map_err(|error| (0, PatternError::Glob(error.to_string())))?;
            this.globs = Some(set);
        }
        Ok(this)
    }

    fn add_host(&mut self, pattern: &str) -> Result<Option<globset::Glob>, PatternError> {
        self.written.push(pattern.to_lowercase());
        if pattern.contains('/') || pattern.contains("://") {
            return Err(PatternError::NotAHost);
        }
        if !pattern.contains(['*', '?', '[', '{']) || pattern.starts_with('[') {
            self.exact.insert(Host::parse(pattern)?);
            return Ok(None);
        }
        if let Some(rest) = pattern.strip_prefix("*.")
            && !rest.contains(['*', '?', '[', '{'])
        {
            let Host::Name(name) = Host::parse(rest)? else {
                return Err(PatternError::NotAHost);
            };
            self.below.insert(name);
            return Ok(None);
        }
        let lower = pattern.to_lowercase();
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        can_match(lower)?;
        let spread = match lower.strip_prefix("*.") {
            Some(rest) => format!("**/*/{}", rest.replace('.', "/")),
            None => lower.replace('.', "/"),
        };
        let glob = globset::GlobBuilder::new(&spread)
            .literal_separator(true)
            .build();
        glob.map(Some)
            .map_err(|error| PatternError::Glob(error.to_string()))
    }

    fn add_domain(&mut self, domain: &str) -> Result<(), PatternError> {
        if domain.contains(['*', '?', '/']) {
            return Err(PatternError::NotAHost);
        }
        let name = domain.strip_prefix('.').unwrap_or(domain);
        match Host::parse(name)? {
            Host::Name(name) => {
                self.written.push(format!("**.{name}"));
                self.domains.insert(name);
                Ok(())
            }
            Host::Ip(_) => Err(PatternError::NotAHost),
        }
    }

    /// Whether a host is one of them.
    pub fn contain(&self, host: &Host) -> bool {
        if self.exact.contains(host) {
            return true;
        }
        let Host::Name(name) = host else { return false };
        let mut is_whole = true;
        let mut rest: &str = name;
        loop {
            if self.domains.contains(rest) || !is_whole && self.below.contains(rest) {
                return true;
            }
            match rest.split_once('.') {
                Some((_, parent)) => rest = parent,
                None => break,
            }
            is_whole = false;
        }
        self.globs
            .as_ref()
            .is_some_and(|globs| globs.is_match(name.replace('.', "/")))
    }

    /// The hosts that it may hold.
    pub(super) fn reach(&self) -> Reach {
        let exact = self.exact.iter().filter_map(|host| match host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        });
        let names = exact.chain(&self.domains).chain(&self.below).cloned();
        let nets = self.exact.iter().filter_map(Host::ip).map(IpNet::from);
        let is_small = self.exact.len() + self.domains.len() + self.below.len() <= MANY_HOSTS;
        Reach {
            names: (is_small && self.globs.is_none()).then(|| names.collect()),
            nets: is_small.then(|| nets.collect()),
        }
    }

    /// Whether every host of another set of patterns is surely one of them, for lint.
    pub(crate) fn cover(&self, narrow: &Self) -> bool {
        let is_below = |name: &str| {
            let mut parents = name.split_once('.');
            while let Some((_, parent)) = parents {
                if self.below.contains(parent) || self.domains.contains(parent) {
                    return true;
                }
                parents = parent.split_once('.');
            }
            false
        };
        narrow.exact.iter().all(|host| self.contain(host))
            && narrow
                .domains
                .iter()
                .all(|name| self.domains.contains(name) || is_below(name))
            && narrow.below.iter().all(|name| {
                self.below.contains(name) || self.domains.contains(name) || is_below(name)
            })
            && (narrow.globs.is_none() || narrow.written.iter().all(|n| self.written.contains(n)))
    }

    /// The patterns as written; a domain as `**.name`.
    pub fn written(&self) -> &[String] {
        &self.written
    }

    /// Whether there is no pattern in it.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }
}

/// Refuses a glob that no name matches, as canonical names are: ASCII labels, and nothing beside them.
fn can_match(glob: &str) -> Result<(), PatternError> {
    let says = |message: &str| Err(PatternError::Glob(message.to_owned()));
    if glob.contains(':') {
        return Err(PatternError::NotAHost);
    }
    if !glob.is_ascii() {
        return says(
            "names are matched as DNS has them: write a label with other letters than ASCII as `xn--...`, without wildcards in it",
        );
    }
    if let Some(odd) = glob
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || "-_.*?[]!^{},".contains(*c)))
    {
        return Err(PatternError::Glob(format!("no name holds {odd:?}")));
    }
    let mut labels = glob.split('.');
    if labels.clone().any(str::is_empty) {
        return says("no label of a name is empty: take a dot out");
    }
    if labels
        .clone()
        .any(|label| label.contains("**") && label != "**")
    {
        return says(
            "`**` stands for whole labels: write `*` inside a label, and `**` between dots, as in `api.**.example`",
        );
    }
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    if labels.clone().next().is_some_and(is_number) && labels.all(|l| l == "*" || is_number(l)) {
        return says("addresses have no wildcards: write a range, as in `ip: 192.0.2.0/24`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Truth, Unknown};
    use super::*;

    #[track_caller]
    fn check(pattern: &str, host: &str, expected: bool) {
        let hosts = match pattern.strip_prefix("domain ") {
            Some(domain) => Hosts::new(&[], &[domain]),
            None => Hosts::new(&[pattern], &[]),
        };
        assert_eq!(
            hosts.unwrap().contain(&Host::parse(host).unwrap()),
            expected,
            "{pattern} ∋ {host}"
        );
    }

    #[test]
    fn a_leading_star_spans_labels_and_leaves_the_apex_out() {
        check("*.corp.example", "a.corp.example", true);
        check("*.corp.example", "a.b.corp.example", true);
        check("*.corp.example", "corp.example", false);
        check("*.corp.example", "notcorp.example", false);
        check("*.Corp.example.", "a.corp.example", true);
    }

    #[test]
    fn an_inner_star_stays_inside_a_label() {
        check("git-*.example", "git-eu.example", true);
        check("git-*.example", "git-eu.west.example", false);
        check("git-?.example", "git-1.example", true);
        check("*.git-*.example", "a.b.git-1.example", true);
        check("*.git-*.example", "git-1.example", false);
        check("**.git-*.example", "git-1.example", true);
        check("a.**.example", "a.b.c.example", true);
    }

    #[test]
    fn a_domain_is_the_name_and_all_below() {
        check("domain corp.example", "corp.example", true);
        check("domain corp.example", "a.b.corp.example", true);
        check("domain corp.example", "notcorp.example", false);
        check("domain .corp.example", "corp.example", true);
        check("domain bücher.example", "a.xn--bcher-kva.example", true);
    }

    #[test]
    fn addresses_match_in_every_spelling() {
        check("[2001:db8::1]", "2001:DB8:0::1", true);
        check("192.0.2.1", "::ffff:192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
    }

    #[test]
    fn what_is_no_pattern_is_told_by_its_place() {
        assert_eq!(
            Hosts::new(&["a.example", "http://b.example"], &[])
                .unwrap_err()
                .0,
            1
        );
        assert_eq!(Hosts::new(&["a.example"], &["127.1"]).unwrap_err().0, 1);
        assert_eq!(
            Hosts::new(&["a.example"], &["*.b"]).unwrap_err(),
            (1, PatternError::NotAHost)
        );
    }

    #[test]
    fn a_glob_that_no_name_matches_is_refused() {
        for (glob, expected) in [
            ("*-bücher.example", "as `xn--...`"),
            ("git-*.bücher.example", "as `xn--...`"),
            ("git-*.corp.example:8443", "leave out scheme, port and path"),
            ("git-* .example", "no name holds ' '"),
            ("git-*@a.example", "no name holds '@'"),
            ("git-*..example", "no label of a name is empty"),
            (".git-*.example", "no label of a name is empty"),
            ("api**.example", "`**` stands for whole labels"),
            ("a.***.example", "`**` stands for whole labels"),
            ("{**,a}.example", "`**` stands for whole labels"),
            ("10.0.*", "as in `ip: 192.0.2.0/24`"),
        ] {
            let (_, error) = Hosts::new(&[glob], &[]).unwrap_err();
            assert!(error.to_string().contains(expected), "{glob}: {error}");
        }
        for fine in [
            "**",
            "**.a_b.example",
            "{a,b}-[!0-9]?.example",
            "*.xn--*.example.",
            "10*.example",
        ] {
            assert!(Hosts::new(&[fine], &[]).is_ok(), "{fine}");
        }
    }

    #[test]
    fn three_values_follow_kleene() {
        let unknown = Truth::Unknown(Unknown::Opaque);
        assert_eq!(Truth::False.and(unknown), Truth::False);
        assert_eq!(Truth::True.and(unknown), unknown);
        assert_eq!(Truth::True.or(unknown), Truth::True);
        assert_eq!(Truth::False.or(unknown), unknown);
        assert_eq!(unknown.not(), unknown);
        assert_eq!(
            unknown.and(Truth::Unknown(Unknown::Addresses)),
            Truth::Unknown(Unknown::Addresses)
        );
    }
}
