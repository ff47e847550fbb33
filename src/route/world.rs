//! Another world behind the hops: where a lab puts hosts of its own, and faults that come and go.

use std::fmt::Debug;
use std::sync::Arc;

use super::{Dial, Names};
use crate::policy::{Policy, Route};

/// Where the hops of a policy lead, in place of the network.
pub trait World: Debug + Send + Sync {
    /// Puts itself in front of a hop, of whatever policy is at work.
    fn lead(self: Arc<Self>, hop: Hop) -> Arc<dyn Dial>;
}

/// A hop as it leads to the network.
#[derive(Clone, Debug)]
pub struct Hop {
    /// It, running.
    pub dial: Arc<dyn Dial>,
    /// It, as written: `direct`, or an upstream.
    pub route: Route,
    /// The policy that it is of.
    pub policy: Arc<Policy>,
    /// Names to addresses under that policy.
    pub names: Names,
}
