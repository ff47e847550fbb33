//! What TLS shows of itself in the clear. Nothing here decrypts, alters or delays a client's bytes.

pub mod hello;
pub mod ledger;
