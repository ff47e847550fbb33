//! A tunnel: from the 200 to its one record.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::Proxy;
use super::anew::Ear;
use super::decide::Walked;
use super::settle::{Settled, Unsettled, abort, first_flight, settle};
use super::witness::{Witness, first_of};
use crate::cause::Phase;
use crate::client::Claim;
use crate::exchange::Exchange;
use crate::exchange::live::Enlisted;
use crate::failure::Failure;
use crate::net::places::Held;
use crate::net::wire::Wire;
use crate::policy;
use crate::policy::chain::OnExhausted;
use crate::policy::flight::{self, Proto};
use crate::relay::{self, Close, End, Reason, relay};
use crate::route::Conn;
use crate::snapshot::Snapshot;
use crate::target::{Host, Target};
use crate::timeouts::{HALF_CLOSED_IDLE, Timeouts};
use crate::tls::flight::{Flight, Stage};
use crate::tls::hello::ClientHello;
use crate::tls::ledger::{Facts, is_alert};
use crate::tls::trust::{Judgement, Roots};

/// How long the end of a server is waited for whose client has reset.
const GRACE: Duration = Duration::from_millis(200);

/// More bytes than a `close_notify` of TLS takes.
const LAST_WORD: usize = 64;

/// Fatal alerts (RFC 8446, section 6.2): policy refuses; no hop served.
const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;

/// A tunnel that was granted, and waits for the client's end of the connection.
#[derive(Debug)]
pub struct Tunnel {
    opened: Opened,
    exchange: Exchange,
    roots: Arc<Roots>,
    tracker: TaskTracker,
}

/// The server's side of a tunnel.
#[derive(Debug)]
pub struct Ends {
    /// The connection.
    pub conn: Conn,
    /// How long each wait may take.
    pub timeouts: Arc<Timeouts>,
}

/// How far a tunnel's way has come when it is granted.
#[derive(Debug)]
pub enum Opened {
    /// It stands.
    Stands(Ends),
    /// A rule wants to see what the client says first.
    Undecided(Box<Undecided>),
}

/// A tunnel whose walk waits for the client's first flight.
#[derive(Debug)]
pub struct Undecided {
    /// The policy that it keeps.
    pub(super) snapshot: Arc<Snapshot>,
    /// Where to.
    pub(super) target: Target,
    /// Whom the client said that it comes from.
    pub(super) claim: Claim,
    /// The Via that a CONNECT to an upstream bears.
    pub(super) via: String,
    /// How far the walk came.
    pub(super) walked: Walked,
}

/// A tunnel whose hop is not to change any more.
#[derive(Debug)]
pub struct Standing {
    settled: Settled,
    limits: relay::Limits,
    exchange: Exchange,
    enlisted: Enlisted,
    roots: Arc<Roots>,
    tracker: TaskTracker,
}

impl Tunnel {
    /// A tunnel that `exchange` tells of.
    pub fn new(
        opened: Opened,
        exchange: Exchange,
        roots: Arc<Roots>,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            opened,
            exchange,
            roots,
            tracker,
        }
    }

    /// Waits until the hop is not to change any more: not at all where there is none to change to. `behind` is what the
    /// client sent behind its request. Nothing where the tunnel has ended before that.
    pub async fn settle(
        self,
        proxy: &Arc<Proxy>,
        client: &mut Wire,
        behind: Bytes,
    ) -> Option<Standing> {
        let Self {
            opened,
            exchange,
            roots,
            tracker,
        } = self;
        let (settled, timeouts, exchange, enlisted) = match opened {
            Opened::Stands(Ends { conn, timeouts }) if conn.is_settled() => {
                exchange.trail().enter(Phase::Tunnel);
                let mut settled = Settled::at_once(client, behind, conn);
                let enlisted = proxy.enlist(&exchange, settled.address(), None);
                settled.witness.tells(Ear::new(proxy, &exchange, &enlisted));
                (settled, timeouts, exchange, enlisted)
            }
            // On the heap, so that it leaves nothing behind.
            opened @ (Opened::Stands(_) | Opened::Undecided(_)) => {
                let provisional = Provisional {
                    client,
                    flight: Flight::default(),
                    exchange,
                };
                Box::pin(provisional.settle(proxy, opened, &behind)).await?
            }
        };
        let limits = relay::Limits {
            idle: timeouts.idle,
            half_closed_idle: HALF_CLOSED_IDLE,
            max_duration: timeouts.max_duration,
        };
        Some(Standing {
            settled,
            limits,
            exchange,
            enlisted,
            roots,
            tracker,
        })
    }
}

/// A tunnel whose hop may still change, or is not known yet.
struct Provisional<'c> {
    client: &'c mut Wire,
    flight: Flight,
    exchange: Exchange,
}

impl Provisional<'_> {
    /// Finds the hop that it keeps, or ends it.
    async fn settle(
        mut self,
        proxy: &Arc<Proxy>,
        opened: Opened,
        behind: &[u8],
    ) -> Option<(Settled, Arc<Timeouts>, Exchange, Enlisted)> {
        self.flight.take(behind, Instant::now());
        let cut = self.exchange.presence().cut.clone();
        let found = tokio::select! {
            biased;
            found = self.find(proxy, opened) => found,
            () = cut.cancelled() => {
                let phase = Phase::Tunnel;
                Err(Unsettled::left(Failure::Shutdown { phase }))
            }
        };
        let Unsettled { failure, how } = match found {
            Ok((settled, timeouts, enlisted)) => {
                return Some((settled, timeouts, self.exchange, enlisted));
            }
            Err(unsettled) => unsettled,
        };
        let is_denied = matches!(failure, Failure::Denied(_));
        let alert = if is_denied {
            ACCESS_DENIED
        } else {
            INTERNAL_ERROR
        };
        if let Failure::Tunnel(ending) = failure {
            self.exchange.end(ending, Instant::now());
        } else {
            self.exchange.fail(&failure);
        }
        end(self.client, how, alert).await;
        None
    }

    async fn find(
        &mut self,
        proxy: &Arc<Proxy>,
        opened: Opened,
    ) -> Result<(Settled, Arc<Timeouts>, Enlisted), Unsettled> {
        let Ends { conn, timeouts } = match opened {
            Opened::Stands(ends) => ends,
            Opened::Undecided(undecided) => Box::pin(self.decide(proxy, *undecided)).await?,
        };
        self.exchange.trail().enter(Phase::Tunnel);
        let flight = std::mem::take(&mut self.flight);
        let mut enlisted = proxy.enlist(&self.exchange, None, first_of(&flight));
        let mut settled = settle(self.client, flight, conn, &self.exchange, &enlisted).await?;
        enlisted.keep(&self.exchange, settled.address());
        settled
            .witness
            .tells(Ear::new(proxy, &self.exchange, &enlisted));
        proxy.look_again(&self.exchange, &enlisted);
        Ok((settled, timeouts, enlisted))
    }

    /// Reads what the client says first, and goes on with the walk.
    async fn decide(
        &mut self,
        proxy: &Arc<Proxy>,
        undecided: Undecided,
    ) -> Result<Ends, Unsettled> {
        self.exchange.trail().enter(Phase::Tunnel);
        let limit = undecided.snapshot.policy.timeouts.sniff;
        let left = first_flight(self.client, &mut self.flight, limit).await;
        if let Err(how) = left {
            let phase = self.exchange.trail().phase();
            return Err(Unsettled::left(Failure::ClientGone { phase, how }));
        }
        let seen = seen_of(&self.flight);
        let resumed = proxy
            .resume(undecided, &seen, self.client.carrier(), &mut self.exchange)
            .await;
        match resumed {
            Ok(Opened::Stands(ends)) => Ok(ends),
            // A walk that has seen the flight asks for it no more.
            Ok(Opened::Undecided(_)) => unreachable!("the flight is there"),
            Err(failure @ Failure::ClientGone { .. }) => Err(Unsettled::left(failure)),
            Err(failure) => {
                let how = if let Failure::Exhausted(exhausted) = &failure {
                    Some(exhausted.on_exhausted)
                } else {
                    is_told(&failure).then_some(OnExhausted::Alert)
                };
                // A client of TLS prints an alert; any other sees a reset.
                let is_tls = seen.proto() == Some(Proto::Tls);
                let how = how.filter(|how| is_tls || *how != OnExhausted::Alert);
                let how = how.unwrap_or(OnExhausted::Rst);
                Err(Unsettled { failure, how })
            }
        }
    }
}

/// Whether a refusal is to be told, where its tunnel can still be told anything.
fn is_told(failure: &Failure) -> bool {
    matches!(failure, Failure::Denied(denied) if denied.close != policy::Close::Rst)
}

/// What a rule sees of a first flight.
fn seen_of(flight: &Flight) -> flight::Flight {
    if let Some(hello) = flight.hello() {
        return of_hello(hello);
    }
    match flight.stage() {
        Stage::Partial => flight::Flight::Unfinished,
        Stage::Silence | Stage::Hello | Stage::Opaque => flight::Flight::of_bytes(flight.bytes()),
    }
}

/// What a rule sees of a ClientHello.
pub(super) fn of_hello(hello: &ClientHello) -> flight::Flight {
    let alpn = hello.alpn.iter().map(String::as_str);
    flight::Flight::tls(hello.server_name.as_deref(), alpn)
}

/// Ends the client's side of a tunnel that no hop serves.
async fn end(client: &mut Wire, how: OnExhausted, alert: u8) {
    let told = match how {
        OnExhausted::Rst => return abort(client),
        OnExhausted::Alert => client.write_all(&[21, 3, 3, 0, 2, 2, alert]).await,
        OnExhausted::Fin => Ok(()),
    };
    let ended = match told {
        Ok(()) => client.shutdown().await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "end a tunnel that no hop serves");
    }
}

impl Standing {
    /// Relays until both directions have ended, or one cannot go on.
    ///
    /// FIN stays FIN and RST stays RST.
    // An async block uses what it captures in place, where an async fn keeps its arguments a second time: this future is
    // the larger part of what an idle tunnel costs.
    pub fn run(self, client: Wire) -> impl Future<Output = ()> + Send {
        let Self {
            settled,
            limits,
            exchange,
            enlisted,
            roots,
            tracker,
        } = self;
        let early = settled.early;
        let mut carried = Carried {
            client,
            server: settled.wire,
            witness: settled.witness,
            is_end_to_end: settled.is_end_to_end,
            held: settled.held,
            exchange,
            roots,
            tracker,
        };
        async move {
            let Carried {
                client,
                server,
                witness,
                exchange,
                ..
            } = &mut carried;
            let meter = exchange.meter();
            let end = tokio::select! {
                biased;
                () = enlisted.cut() => Err(enlisted.why()),
                end = relay(client, server, *early, &limits, meter, witness) => Ok(end),
            };
            drop(enlisted);
            // In a box: an idle tunnel has no room for what comes once.
            Box::pin(carried.end(end)).await;
        }
    }
}

/// A tunnel as it is carried, and its end.
struct Carried {
    client: Wire,
    server: Wire,
    witness: Witness,
    is_end_to_end: bool,
    held: Held,
    exchange: Exchange,
    roots: Arc<Roots>,
    tracker: TaskTracker,
}

impl Carried {
    /// Ends both connections as the relay ended, and leaves the record; `Err` says why it was cut.
    async fn end(self, end: Result<End, Failure>) {
        let Self {
            mut client,
            mut server,
            witness,
            is_end_to_end,
            held,
            exchange,
            roots,
            tracker,
        } = self;
        let end = match end {
            Ok(end) => end,
            Err(failure) => {
                abort(&mut client);
                abort(&mut server);
                drop((client, server, held));
                return exchange.fail(&failure);
            }
        };
        let at = Instant::now();
        let is_served = end.server == Close::Local && !end.waiting.server_to_answer;
        let end = if matches!(end.reason, Reason::ClientReset(_)) && is_served {
            behind_reset(end, &mut server).await
        } else {
            end
        };
        // Also where a FIN came first: what the other side still waits for will not come whole.
        let is_cut = matches!(end.reason, Reason::Expired { .. });
        if is_cut || matches!(end.reason, Reason::ClientError(_)) || end.client.is_broken() {
            abort(&mut server);
        }
        if is_cut || matches!(end.reason, Reason::ServerError(_)) || end.server.is_broken() {
            abort(&mut client);
        }
        let mut ending = Box::new(witness.ending(end, is_end_to_end));
        // Nobody waits for a judgement, and whoever reads the record finds the place free.
        drop((client, server, held));
        if !ending.tls.has_client_data && !ending.tls.chain.is_empty() {
            ending.certificate = judge(&ending.tls, &exchange, roots, &tracker).await;
        }
        exchange.end(ending, at);
    }
}

/// The end of a tunnel whose client reset, once it is seen whether its server ends in order about now, behind a last word at
/// most. Where both close at once, as behind the answer to a request with `Connection: close`, the server's last word of TLS
/// meets a client that has closed, whose kernel resets.
async fn behind_reset(end: End, server: &mut Wire) -> End {
    let ends = async {
        let mut word = Vec::with_capacity(LAST_WORD + 1);
        loop {
            match server.read_buf(&mut word).await {
                Ok(0) if word.is_empty() || is_alert(&word) => return Close::Fin,
                Ok(1..) if word.len() <= LAST_WORD => {}
                Ok(_) | Err(_) => return end.server,
            }
        }
    };
    let server = timeout(GRACE, ends).await.unwrap_or(end.server);
    End { server, ..end }
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
