//! Mechanisms of the network: each does one thing, keeps the facts, and has one error enum.
//!
//! Nothing here knows a policy, a route or a record.

pub mod connect;
pub mod flushing;
pub mod here;
pub mod inside_tls;
pub mod local;
pub mod pipe;
pub mod places;
pub mod resolve;
pub mod socket;
pub mod tcp_info;
pub mod upstream;
pub mod wire;
