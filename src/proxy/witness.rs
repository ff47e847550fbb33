//! Who looks on while a tunnel is carried.

use tokio::time::Instant;

use super::anew::Ear;
use crate::exchange::live::First;
use crate::failure::tunnel::Ending;
use crate::net::socket::Socket;
use crate::net::tcp_info::TcpInfo;
use crate::policy::flight::{Flight, Proto};
use crate::relay::{End, Reason, Watch};
use crate::tls::flight;
use crate::tls::ledger::{Facts, Ledger, Speech};

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
    Followed(Box<Followed>),
    Over(Box<Facts>),
}

#[derive(Debug, Default)]
struct Followed {
    ledger: Ledger,
    /// Hears what the client says first.
    ear: Option<Ear>,
}

impl Handshake {
    fn see(&mut self, look: impl FnOnce(&mut Followed)) {
        if let Self::Followed(followed) = self {
            look(followed);
            if followed.ledger.is_over() {
                *self = Self::Over(Box::new(followed.ledger.facts()));
            }
        }
    }

    fn facts(self) -> Facts {
        match self {
            Self::Followed(followed) => followed.ledger.facts(),
            Self::Over(facts) => *facts,
        }
    }
}

impl Followed {
    fn client(&mut self, bytes: &[u8], now: Instant) {
        let is_first = self.ledger.facts_now().speech == Speech::Silence;
        self.ledger.client(bytes, now);
        self.tell(bytes, is_first);
    }

    /// Tells what the client says first: its ClientHello once it is whole, or by its first bytes what it is instead.
    fn tell(&mut self, bytes: &[u8], is_first: bool) {
        let facts = self.ledger.facts_now();
        let first = match (&facts.client_hello, facts.speech == Speech::Other) {
            (Some(hello), _) => Some(First::Hello(hello.clone())),
            (None, true) if is_first => begins(bytes),
            (None, _) => None,
        };
        if let Some(first) = first
            && let Some(ear) = self.ear.take()
        {
            ear.hear(first);
        }
    }
}

/// What a client has said first, as far as that can be told.
pub(super) fn first_of(said: &flight::Flight) -> Option<First> {
    match said.hello() {
        Some(hello) => Some(First::Hello(hello.clone())),
        None => begins(said.bytes()),
    }
}

/// What begins so, where it is no TLS.
fn begins(bytes: &[u8]) -> Option<First> {
    if bytes.is_empty() || Flight::is_open(bytes) {
        return None;
    }
    match Flight::of_bytes(bytes).proto()? {
        Proto::Tls => None,
        Proto::Http => Some(First::Http),
        Proto::Ssh => Some(First::Ssh),
        Proto::Other => Some(First::Other),
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

    /// Tells what the client says first.
    pub(super) fn tells(&mut self, ear: Ear) {
        self.handshake.see(|followed| {
            followed.ear = Some(ear);
            followed.tell(&[], false);
        });
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
        self.handshake.see(|followed| followed.client(bytes, now));
    }

    fn server(&mut self, bytes: &[u8], now: Instant) {
        self.handshake
            .see(|followed| followed.ledger.server(bytes, now));
    }

    fn event(&mut self, reason: &Reason, now: Instant) {
        // Our own limit may pass long behind a FIN: who was waited for is told by the moment of the limit.
        if self.first.is_none() || matches!(reason, Reason::Idle { .. } | Reason::Expired { .. }) {
            self.first = Some(Box::new(self.moment(now)));
        }
    }

    fn is_final(&self, reason: &Reason) -> bool {
        matches!((reason, &self.handshake), (Reason::ClientFin, Handshake::Followed(followed)) if followed.ledger.is_unfinished())
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
