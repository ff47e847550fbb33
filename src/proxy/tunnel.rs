//! A tunnel: from the 200 to its one record.

use std::sync::Arc;

use bytes::Bytes;

use crate::cause::Phase;
use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::net::socket::Socket;
use crate::relay::{self, Early, Reason, relay};
use crate::timeouts::{HALF_CLOSED_IDLE, TCP_KEEPALIVE, Timeouts};

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
        let end = tokio::select! {
            end = relay(&mut client, &mut server, early, &limits, &meter) => end,
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
        exchange.end(end);
    }
}

fn reset(socket: &Socket) {
    if let Err(error) = socket.reset_on_close() {
        tracing::debug!(%error, "set a socket to end with a reset");
    }
}
