//! Where records go.

pub mod json;
pub mod log;
pub mod text;

use std::fmt::Debug;

use crate::record::Record;

/// Takes the one record of each request. Must not block.
pub trait Observe: Debug + Send + Sync {
    /// Takes a record.
    fn record(&self, record: Box<Record>);
}
