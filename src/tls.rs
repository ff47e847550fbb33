//! What TLS shows of itself in the clear, and what it shows us where we shake hands ourselves. Nothing here decrypts, alters
//! or delays a client's bytes.

pub mod flight;
pub mod handshake;
pub mod hello;
pub mod ledger;
pub mod trust;
