//! Who looks on while a tunnel is carried.

use tokio::time::Instant;

use crate::failure::tunnel::Ending;
use crate::net::socket::Socket;
use crate::net::tcp_info::TcpInfo;
use crate::relay::{End, Reason, Watch};
use crate::tls::ledger::{Facts, Ledger};

/// Looks on while a tunnel is carried: follows the handshake, and asks the kernel at the first event.
#[derive(Debug)]
pub(super) struct Witness {
    handshake: Handshake,
    client: Socket,
    server: Socket,
    first: Option<Box<Moment>>,
}

/// A handshake that is followed, or what was seen of one that is over: a tunnel keeps no more than it tells.
#[derive(Debug)]
enum Handshake {
    Followed(Box<Ledger>),
    Over(Box<Facts>),
}

impl Handshake {
    fn see(&mut self, look: impl FnOnce(&mut Ledger)) {
        if let Self::Followed(ledger) = self {
            look(ledger);
            if ledger.is_over() {
                *self = Self::Over(Box::new(ledger.facts()));
            }
        }
    }

    fn facts(self) -> Facts {
        match self {
            Self::Followed(ledger) => ledger.facts(),
            Self::Over(facts) => *facts,
        }
    }
}

/// The two connections at the first event.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    client: Option<TcpInfo>,
    server: Option<TcpInfo>,
}

impl Witness {
    /// Looks on from now on.
    pub(super) fn new(client: &Socket, server: &Socket) -> Self {
        Self {
            handshake: Handshake::Followed(Box::default()),
            client: client.clone(),
            server: server.clone(),
            first: None,
        }
    }

    fn moment(&self, at: Instant) -> Moment {
        let ask = |socket: &Socket| {
            let asked = socket.tcp_info();
            asked
                .inspect_err(|error| tracing::debug!(%error, "ask for TCP_INFO"))
                .ok()
        };
        Moment {
            at,
            client: ask(&self.client),
            server: ask(&self.server),
        }
    }

    /// What was seen of a tunnel that ended so.
    pub(super) fn ending(self, end: End, is_end_to_end: bool) -> Ending {
        let moment = match &self.first {
            Some(first) => **first,
            None => self.moment(Instant::now()),
        };
        Ending {
            tls: self.handshake.facts(),
            client: moment.client,
            server: moment.server,
            since_write: end.client_spoke.map(|last| moment.at - last),
            since_connect: moment.at - self.server.since(),
            end,
            is_end_to_end,
            certificate: None,
        }
    }
}

impl Watch for Witness {
    fn is_satisfied(&self) -> bool {
        matches!(self.handshake, Handshake::Over(_))
    }

    fn client(&mut self, bytes: &[u8], now: Instant) {
        self.handshake.see(|ledger| ledger.client(bytes, now));
    }

    fn server(&mut self, bytes: &[u8], now: Instant) {
        self.handshake.see(|ledger| ledger.server(bytes, now));
    }

    fn event(&mut self, reason: &Reason, now: Instant) {
        // Our own limit may pass long behind a FIN: who was waited for is told by the moment of the limit.
        if self.first.is_none() || matches!(reason, Reason::Idle { .. } | Reason::Expired { .. }) {
            self.first = Some(Box::new(self.moment(now)));
        }
    }

    fn is_final(&self, reason: &Reason) -> bool {
        matches!((reason, &self.handshake), (Reason::ClientFin, Handshake::Followed(ledger)) if ledger.is_unfinished())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::net::socket::tests::pair;
    use crate::relay::{Close, Waiting};

    #[tokio::test]
    async fn who_is_waited_for_is_told_by_the_moment_of_the_limit() {
        let ((client, _near), (mut server, _far)) = (pair().await, pair().await);
        let mut witness = Witness::new(&client, &server);
        witness.event(&Reason::ClientFin, Instant::now());
        server.write_all(b"the rest of a request").await.unwrap();
        witness.event(&Reason::ServerFin, Instant::now());
        let sent = |witness: &Witness| witness.first.as_ref().unwrap().server.unwrap().bytes_sent;
        assert_eq!(sent(&witness), 0, "the first event counts");
        let after = Duration::from_mins(1);
        witness.event(&Reason::Idle { after }, Instant::now());
        let end = End {
            reason: Reason::Idle { after },
            client: Close::Fin,
            server: Close::Local,
            idle: after,
            idle_before: Duration::ZERO,
            idle_survived: Duration::ZERO,
            waiting: Waiting::default(),
            client_spoke: None,
        };
        let ending = witness.ending(end, true);
        assert_eq!(ending.server.unwrap().bytes_sent, 21);
    }
}
