//! A tunnel: from the 200 to its one record.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::cause::Phase;
use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::failure::tunnel::Ending;
use crate::net::socket::Socket;
use crate::net::tcp_info::TcpInfo;
use crate::relay::{self, Early, End, Reason, Watch, relay};
use crate::target::Host;
use crate::timeouts::{HALF_CLOSED_IDLE, TCP_KEEPALIVE, Timeouts};
use crate::tls::ledger::{Facts, Ledger};
use crate::tls::trust::{Judgement, Roots};

/// A way that stands, and waits for the client's end of the connection.
#[derive(Debug)]
pub struct Tunnel {
    ends: Ends,
    exchange: Exchange,
    roots: Arc<Roots>,
    tracker: TaskTracker,
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
    pub fn new(ends: Ends, exchange: Exchange, roots: Arc<Roots>, tracker: TaskTracker) -> Self {
        Self {
            ends,
            exchange,
            roots,
            tracker,
        }
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
            roots,
            tracker,
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
        let mut ending = witness.ending(end, is_end_to_end);
        // Nobody waits for a judgement.
        drop((client, server));
        if !ending.tls.has_client_data && !ending.tls.chain.is_empty() {
            ending.certificate = judge(&ending.tls, &exchange, roots, &tracker).await;
        }
        exchange.end(ending);
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
            certificate: None,
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

    fn server(&mut self, bytes: &[u8], now: Instant) {
        self.ledger.server(bytes, now);
    }

    fn event(&mut self, reason: &Reason, now: Instant) {
        // Our own limit may pass long behind a FIN: who was waited for is told by the moment of the limit.
        if self.first.is_none() || matches!(reason, Reason::Idle { .. }) {
            self.first = Some(self.moment(now));
        }
    }

    fn is_final(&self, reason: &Reason) -> bool {
        matches!(reason, Reason::ClientFin) && self.ledger.is_unfinished()
    }
}

/// Judges the certificates that a client did not go on with, by the name that it asked for. Beside the runtime: signatures
/// are checked, and the first time roots are read.
async fn judge(
    facts: &Facts,
    exchange: &Exchange,
    roots: Arc<Roots>,
    tracker: &TaskTracker,
) -> Option<Judgement> {
    let hello = facts.client_hello.as_ref();
    let asked = hello.and_then(|hello| hello.server_name.as_deref());
    let name = asked.or(exchange.target().map(|(host, _)| host))?;
    let name = Host::parse(name).ok()?;
    let chain: Vec<_> = facts
        .chain
        .iter()
        .map(|der| CertificateDer::from(der.clone()))
        .collect();
    let judged = tracker.spawn_blocking(move || roots.judge(&chain, &name, Timestamp::now()));
    judged.await.ok()
}

fn reset(socket: &Socket) {
    if let Err(error) = socket.reset_on_close() {
        tracing::debug!(%error, "set a socket to end with a reset");
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
        let sent = |witness: &Witness| witness.first.unwrap().server.unwrap().bytes_sent;
        assert_eq!(sent(&witness), 0, "the first event counts");
        let after = Duration::from_mins(1);
        witness.event(&Reason::Idle { after }, Instant::now());
        let end = End {
            reason: Reason::Idle { after },
            client: Close::Fin,
            server: Close::Local,
            idle: after,
            idle_before: Duration::ZERO,
            waiting: Waiting::default(),
        };
        let ending = witness.ending(end, true);
        assert_eq!(ending.server.unwrap().bytes_sent, 21);
    }
}
