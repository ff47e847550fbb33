//! Who asks, as rules see it.

use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::Query;
use super::matcher::{Matcher, Truth};

/// A named kind of client (`clients.roles`).
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name.
    pub name: Arc<str>,
    /// Who has it.
    pub matcher: Matcher,
}

/// Patterns of labels (`client.label`).
#[derive(Clone, Debug)]
pub struct LabelPatterns {
    globs: GlobSet,
    written: Vec<String>,
}

impl LabelPatterns {
    /// Compiles globs.
    ///
    /// # Errors
    /// The index of the first bad one, and what is wrong with it.
    pub fn new(patterns: &[&str]) -> Result<Self, (usize, String)> {
        let mut globs = GlobSetBuilder::new();
        for (at, pattern) in patterns.iter().enumerate() {
            globs.add(Glob::new(pattern).map_err(|error| (at, error.kind().to_string()))?);
        }
        Ok(Self {
            globs: globs.build().map_err(|error| (0, error.to_string()))?,
            written: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
        })
    }

    /// Whether a label is one of them.
    pub fn contain(&self, label: &str) -> bool {
        self.globs.is_match(label)
    }

    /// The patterns as written.
    pub fn written(&self) -> &[String] {
        &self.written
    }
}

impl Query<'_> {
    /// The user name that rules may go by.
    ///
    /// One that was proven counts from anywhere; any other only where whoever gives it could as well be its bearer: on this
    /// machine.
    pub fn user(&self) -> Option<&str> {
        let claimed = self.claim.user.as_deref();
        claimed.filter(|_| self.claim.is_proven || self.client.is_loopback())
    }
}

impl super::Policy {
    /// The names of the roles that the client of a request has.
    pub fn roles_of<'p>(&'p self, query: &Query<'_>) -> impl Iterator<Item = &'p Arc<str>> {
        let roles = self.roles.iter();
        roles
            .filter(|role| role.matcher.judge(query) == Truth::True)
            .map(|role| &role.name)
    }
}
