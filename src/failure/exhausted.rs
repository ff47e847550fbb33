//! Several ways that all failed.

use std::fmt;
use std::sync::Arc;

use super::{Failure, chain, classify};
use crate::cause::{Cause, Class};
use crate::policy::chain::OnExhausted;

/// A group of which no member served.
#[derive(Debug)]
pub struct AllDown {
    /// The group's name.
    pub group: Arc<str>,
    /// The members that were tried or passed over, in order, and what became of them.
    pub tried: Vec<(Arc<str>, Failure)>,
    /// How many there was no time for, or no attempt left.
    pub untried: usize,
}

impl std::error::Error for AllDown {}

impl fmt::Display for AllDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no member of {} serves", self.group)?;
        for (at, (member, failure)) in self.tried.iter().enumerate() {
            let mark = if at == 0 { ": " } else { "; " };
            write!(f, "{mark}{member}: {}", classify(failure).id())?;
        }
        match self.untried {
            0 => Ok(()),
            more => write!(f, "; {more} more not tried"),
        }
    }
}

/// A chain of which no hop served.
#[derive(Debug)]
pub struct Exhausted {
    /// The hops that were tried, in order; at least one.
    tried: Vec<(Arc<str>, Failure)>,
    /// The one that is told.
    told: usize,
    /// How a client behind a 200 is told.
    pub on_exhausted: OnExhausted,
    /// Whether the chain ends in `off`, and came to it.
    pub(super) is_refused: bool,
}

impl Exhausted {
    /// Of the hops, in order: `direct` is told where it was tried, else the last that is more than a name not found.
    pub fn new(
        tried: Vec<(Arc<str>, Failure)>,
        is_refused: bool,
        on_exhausted: OnExhausted,
    ) -> Self {
        let is_found = |failure: &Failure| Class::of(classify(failure)) != Some(Class::NotFound);
        let told = tried
            .iter()
            .position(|(hop, _)| **hop == *"direct")
            .or_else(|| tried.iter().rposition(|(_, failure)| is_found(failure)))
            .unwrap_or(tried.len().saturating_sub(1));
        Self {
            tried,
            told,
            on_exhausted,
            is_refused,
        }
    }

    /// The hops that were tried, in order, and what each failed of.
    pub fn hops(&self) -> impl Iterator<Item = (&Arc<str>, Cause)> {
        let hops = self.tried.iter();
        hops.map(|(hop, failure)| (hop, classify(failure)))
    }

    /// What is told of it.
    pub(super) fn told(&self) -> Option<&Failure> {
        self.tried.get(self.told).map(|(_, failure)| failure)
    }
}

impl std::error::Error for Exhausted {}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_refused {
            f.write_str("the chain ends in off, and no hop before it served")?;
        } else if let Some(told) = self.told() {
            f.write_str(&chain(told))?;
        }
        let others = self
            .tried
            .iter()
            .enumerate()
            .filter(|(at, _)| self.is_refused || *at != self.told);
        for (_, (hop, failure)) in others {
            write!(f, "; {hop}: {}", classify(failure).id())?;
        }
        Ok(())
    }
}
