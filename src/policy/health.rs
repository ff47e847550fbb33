//! What makes an upstream count as down, and up again.

use std::time::Duration;

use crate::target::Target;

/// When the circuit of an upstream opens and closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// How many failures in a row open it: 1 to 1000.
    pub max_fails: u32,
    /// The time in which they must fall, and for which it stays open then: at most an hour.
    pub fail_timeout: Duration,
    /// How the upstream is asked without a request; not at all where `None`.
    pub probe: Option<Probe>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            max_fails: 3,
            fail_timeout: Duration::from_secs(30),
            probe: None,
        }
    }
}

/// A connection that is opened through an upstream only to see whether that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What a tunnel is asked for to; where `None`, the upstream is only connected to.
    pub connect: Option<Target>,
    /// From the beginning of one to that of the next.
    pub every: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// How many in a row must go well to close an open circuit: 1 to 100.
    pub rise: u32,
}
