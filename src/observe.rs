//! Where records go.

pub mod board;
mod desk;
pub mod json;
pub mod kept;
pub mod log;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod report;
#[cfg(feature = "history")]
pub mod sqlite;
pub mod text;

use std::fmt::Debug;

use crate::record::Record;

/// Takes the one record of each request. Must not block.
pub trait Observe: Debug + Send + Sync {
    /// Takes a record.
    fn record(&self, record: Box<Record>);
}
