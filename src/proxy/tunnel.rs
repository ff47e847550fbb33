//! A tunnel: from the 200 to its one record.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::cause::Phase;
use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::failure::tunnel::Ending;
use crate::net::socket::Socket;
use crate::net::tcp_info::TcpInfo;
use crate::relay::{self, Early, End, Reason, Watch, relay};
use crate::timeouts::{HALF_CLOSED_IDLE, TCP_KEEPALIVE, Timeouts};
use crate::tls::ledger::Ledger;

/// A way that stands, and waits for the client's end of the connection.
#[derive(Debug)]
pub struct Tunnel {
    ends: Ends,
    exchange: Exchange,
}

/// The server's side of a tunnel.
#[derive(Debug)]
pub struct Ends {
    /// The connection.
    pub server: Socket,
    /// What came on it before the client was told that it stands.
    pub early: Bytes,
    /// Whether its far end is the target itself.
    pub is_end_to_end: bool,
    /// How long each wait may take.
    pub timeouts: Arc<Timeouts>,
}

impl Tunnel {
    /// A tunnel that `exchange` tells of.
    pub fn new(ends: Ends, exchange: Exchange) -> Self {
        Self { ends, exchange }
    }

    /// Relays until both directions have ended, or one cannot go on. `behind` is what the client sent behind its
    /// request.
    ///
    /// FIN stays FIN and RST stays RST.
    pub async fn run(self, mut client: Socket, behind: Bytes) {
        let Self {
            ends:
                Ends {
                    mut server,
                    early,
                    is_end_to_end,
                    timeouts,
                },
            exchange,
        } = self;
        let early = Early {
            from_client: behind,
            from_server: early,
        };
        exchange.trail().enter(Phase::Tunnel);
        for socket in [&client, &server] {
            if let Err(error) = socket.keepalive(TCP_KEEPALIVE) {
                tracing::debug!(%error, "set TCP keepalive");
            }
        }
        let limits = relay::Limits {
            idle: timeouts.idle,
            half_closed_idle: HALF_CLOSED_IDLE,
        };
        let meter = exchange.meter().clone();
        let cut = exchange.presence().cut.clone();
        let mut witness = Witness::new(&client, &server);
        let end = tokio::select! {
            end = relay(&mut client, &mut server, early, &limits, &meter, &mut witness) => end,
            () = cut.cancelled() => {
                reset(&client);
                reset(&server);
                return exchange.fail(&Failure::Shutdown { phase: Phase::Tunnel });
            }
        };
        // Also where a FIN came first: what the other side still waits for will not come whole.
        if matches!(end.reason, Reason::ClientError(_)) || end.client.is_broken() {
            reset(&server);
        }
        if matches!(end.reason, Reason::ServerError(_)) || end.server.is_broken() {
            reset(&client);
        }
        exchange.end(witness.ending(end, is_end_to_end));
    }
}

/// Looks on while a tunnel is carried: follows the handshake, and asks the kernel at the first event.
struct Witness {
    ledger: Ledger,
    client: Socket,
    server: Socket,
    last_write: Option<Instant>,
    first: Option<Moment>,
}

/// The two connections at the first event.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    client: Option<TcpInfo>,
    server: Option<TcpInfo>,
}

impl Witness {
    fn new(client: &Socket, server: &Socket) -> Self {
        Self {
            ledger: Ledger::default(),
            client: client.clone(),
            server: server.clone(),
            last_write: None,
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

    fn ending(self, end: End, is_end_to_end: bool) -> Ending {
        let moment = self.first.unwrap_or_else(|| self.moment(Instant::now()));
        Ending {
            end,
            tls: self.ledger.facts(),
            client: moment.client,
            server: moment.server,
            since_write: self.last_write.map(|last| moment.at - last),
            since_connect: moment.at - self.server.since(),
            is_end_to_end,
        }
    }
}

impl Watch for Witness {
    fn client(&mut self, bytes: &[u8], now: Instant) {
        if !bytes.is_empty() {
            self.last_write = Some(now);
            self.ledger.client(bytes, now);
        }
    }

    fn server(&mut self, bytes: &[u8], _: Instant) {
        self.ledger.server(bytes);
    }

    fn event(&mut self, _: &Reason, now: Instant) {
        if self.first.is_none() {
            self.first = Some(self.moment(now));
        }
    }

    fn is_final(&self, reason: &Reason) -> bool {
        matches!(reason, Reason::ClientFin) && self.ledger.is_unfinished()
    }
}

fn reset(socket: &Socket) {
    if let Err(error) = socket.reset_on_close() {
        tracing::debug!(%error, "set a socket to end with a reset");
    }
}
