//! From an accepted socket to requests, and from the end of HTTP to the tunnel.

pub mod accept;
pub mod door;
mod http;
mod http2;
pub mod proxy_header;
pub mod room;
mod socks;
mod stream;
pub mod tls;
