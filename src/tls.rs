//! TLS as we judge it, and as we speak it ourselves. A client's own handshake is none of it: that stays opaque.

pub mod handshake;
pub mod trust;
