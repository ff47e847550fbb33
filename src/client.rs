//! Who asked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::target::canonical_ip;

/// The client of one connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The address the connection came from.
    pub peer: SocketAddr,
    /// The address of ours that it reached.
    pub local: SocketAddr,
    /// The name of the listener that took it.
    pub listener: Arc<str>,
}

impl Client {
    /// The client's address, a v4-mapped one as IPv4.
    pub fn ip(&self) -> IpAddr {
        canonical_ip(self.peer.ip())
    }

    /// Whether the client is on this machine: a loopback client on a loopback listener.
    pub fn is_loopback(&self) -> bool {
        self.ip().is_loopback() && canonical_ip(self.local.ip()).is_loopback()
    }
}
