//! Why one URL does not work: probes on every way, controls beside them, and one verdict.
//!
//! [`plan`] says what is wanted, [`probe`] sees, [`facts`] is what was seen, and [`verdict`], which is pure, says what that amounts to.

pub mod compare;
pub mod docker;
pub mod facts;
pub mod git;
pub mod idle;
pub mod looks;
pub mod plan;
pub mod probe;
pub mod verdict;

pub use facts::Facts;
pub use plan::{Bounds, Control, Granted, Plan};
pub use probe::examine;
pub use verdict::{Verdict, judge};
