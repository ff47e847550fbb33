//! Connections to name servers, by the same ways out as those to targets.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::{Conn, Dial, Plan, Purpose};
use crate::client::Client;
use crate::exchange::Trail;
use crate::net::places::Held;
use crate::net::resolve::{Boxed, Tunnel};
use crate::net::wire::Wire;
use crate::policy::chain::{Commit, Retry};
use crate::target::{Host, Target};
use crate::timeouts::Timeouts;

/// Leads connections to name servers through a route. It holds on to nothing: a resolver outlives the policy that it was
/// made for.
#[derive(Clone, Debug)]
pub struct Through {
    route: Weak<dyn Dial>,
    timeouts: Arc<Timeouts>,
}

impl Through {
    /// Through this route.
    pub fn new(route: &Arc<dyn Dial>, timeouts: Arc<Timeouts>) -> Self {
        Self {
            route: Arc::downgrade(route),
            timeouts,
        }
    }

    async fn connect(self, server: SocketAddr) -> io::Result<(Wire, Held)> {
        let Some(route) = self.route.upgrade() else {
            return Err(io::Error::other("the policy was replaced"));
        };
        let plan = Plan {
            // We ask, and nobody else.
            client: Client::ourselves("dns"),
            target: Target::new(Host::Ip(server.ip()), server.port()),
            purpose: Purpose::Tunnel,
            addresses: None,
            timeouts: self.timeouts,
            deadline: None,
            passes_over: false,
            commit: Commit::Connect,
            retry: Retry::default(),
            via: String::new(),
            dns: None,
            certificate: None,
        };
        let conn = route.dial(&plan, &Trail::default()).await;
        let conn = conn.map_err(io::Error::other)?;
        let Conn {
            wire, early, held, ..
        } = conn;
        if !early.is_empty() {
            let message = "bytes came before a question was asked";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok((wire, held))
    }
}

impl Tunnel for Through {
    fn open(&self, server: SocketAddr) -> Boxed<io::Result<(Wire, Held)>> {
        Box::pin(self.clone().connect(server))
    }
}
