//! From an accepted socket to requests, and from the end of HTTP to the tunnel.

pub mod accept;
mod http;
mod stream;
