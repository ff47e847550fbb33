//! A tunnel by a chain, from its 200 to the first byte of a server: until then another hop may take over.
//!
//! What the client says first is kept. Where it is one whole ClientHello and nothing else, and the hop fails before the
//! server's first byte, the next hop gets it; nothing else is ever sent twice.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite as _, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::witness::{Witness, first_of};
use crate::cause::{Class, Phase};
use crate::exchange::Exchange;
use crate::exchange::live::Enlisted;
use crate::failure::{Failure, classify};
use crate::net::places::Held;
use crate::net::socket::Departure;
use crate::net::wire::Wire;
use crate::policy::chain::OnExhausted;
use crate::policy::flight as policy;
use crate::relay::{Close, Early, End, Reason, Waiting, Watch as _, with_scratch};
use crate::route::Conn;
use crate::route::chain::Rest;
use crate::target::canonical_ip;
use crate::timeouts::TCP_KEEPALIVE;
use crate::tls::flight::{Flight, Stage};

/// How long a client that has begun to speak may take to finish its first flight; then it is taken for what it is so far.
const FLIGHT: Duration = Duration::from_millis(300);

/// A server that ends so long behind the connection, and was told nothing, tired of waiting for the client.
const PATIENCE: Duration = Duration::from_secs(3);

/// A tunnel whose hop is not to change any more.
#[derive(Debug)]
pub(super) struct Settled {
    /// The server's side.
    pub(super) wire: Wire,
    /// What the relay begins with.
    pub(super) early: Box<Early>,
    /// What was seen so far.
    pub(super) witness: Witness,
    /// Whether the far end of the wire is the target itself.
    pub(super) is_end_to_end: bool,
    /// What it occupies.
    pub(super) held: Held,
}

impl Settled {
    /// A tunnel by a hop that none takes over from; `from_client` is what the client said so far.
    pub(super) fn at_once(client: &Wire, from_client: Bytes, conn: Conn) -> Self {
        keep_alive(&conn.wire);
        if let Some(rest) = &conn.rest {
            rest.served();
        }
        let witness = Witness::new(client.carrier(), conn.wire.carrier());
        let early = Early {
            from_client,
            from_server: conn.early,
            ..Early::default()
        };
        Self {
            wire: conn.wire,
            early: Box::new(early),
            witness,
            is_end_to_end: conn.is_end_to_end,
            held: conn.held,
        }
    }

    /// The target's address, where the wire goes straight to it.
    pub(super) fn address(&self) -> Option<IpAddr> {
        let peer = || canonical_ip(self.wire.carrier().peer().ip());
        self.is_end_to_end.then(peer)
    }
}

/// Why a tunnel has no hop.
pub(super) struct Unsettled {
    /// What it failed of.
    pub(super) failure: Failure,
    /// How the client is told.
    pub(super) how: OnExhausted,
}

impl Unsettled {
    /// The client left, or the tunnel was cut.
    pub(super) fn left(failure: Failure) -> Self {
        let how = OnExhausted::Rst;
        Self { failure, how }
    }
}

/// Reads what a client says first: until it can be told what it is, or it says nothing for `silence`, or takes longer than that
/// behind its first byte, and longer than it may in any case.
///
/// # Errors
/// The client's departure, where it left before that.
pub(super) async fn first_flight(
    client: &mut Wire,
    flight: &mut Flight,
    silence: Duration,
) -> Result<(), Departure> {
    let mut deadline = Instant::now() + silence;
    while matches!(flight.stage(), Stage::Silence | Stage::Partial)
        || policy::Flight::is_open(flight.bytes())
    {
        let was_silent = flight.stage() == Stage::Silence;
        let read = poll_fn(|cx| with_scratch(|scratch| poll_read(client, cx, scratch)));
        tokio::select! {
            biased;
            read = read => match read {
                Ok(words) if words.is_empty() => return Err(Departure::Fin),
                Ok(words) => flight.take(&words, Instant::now()),
                Err(_) => return Err(Departure::Rst),
            },
            () = sleep_until(deadline) => return Ok(()),
        }
        if was_silent {
            deadline = Instant::now() + silence.max(FLIGHT);
        }
    }
    Ok(())
}

/// Holds a tunnel open to change until a server has spoken.
///
/// `flight` is what the client said so far.
pub(super) async fn settle(
    client: &mut Wire,
    flight: Flight,
    conn: Conn,
    exchange: &Exchange,
    enlisted: &Enlisted,
) -> Result<Settled, Unsettled> {
    let mut provisional = Provisional {
        client,
        flight,
        exchange,
        enlisted,
        is_sent: false,
    };
    let settled = provisional.settle(conn).await;
    if let Some(first) = first_of(&provisional.flight) {
        enlisted.tunnel().said(first);
    }
    if settled.is_err() && provisional.is_sent {
        // Once, over however many hops they went.
        let sent = provisional.flight.bytes().len() as u64;
        exchange.meter().moved(sent, 0);
    }
    settled
}

/// A tunnel whose hop may change.
struct Provisional<'a> {
    client: &'a mut Wire,
    flight: Flight,
    exchange: &'a Exchange,
    enlisted: &'a Enlisted,
    /// Whether a hop was sent some of the flight.
    is_sent: bool,
}

impl Provisional<'_> {
    async fn settle(&mut self, mut conn: Conn) -> Result<Settled, Unsettled> {
        let trail = self.exchange.trail();
        loop {
            let mut rest = match conn.rest.take() {
                Some(rest) if conn.early.is_empty() => rest,
                rest => return Ok(self.at_once(Conn { rest, ..conn })),
            };
            let (failure, how) = match self.try_out(&mut conn, &mut rest).await {
                Tried::Kept(early, witness) => {
                    return Ok(Settled {
                        wire: conn.wire,
                        early: Box::new(early),
                        witness,
                        is_end_to_end: conn.is_end_to_end,
                        held: conn.held,
                    });
                }
                Tried::Over(failure, how) => {
                    if how == OnExhausted::Rst {
                        abort(&mut conn.wire);
                    }
                    return Err(Unsettled { failure, how });
                }
                Tried::Failed(failure, how) => (failure, how),
            };
            trail.last_try_failed(classify(&failure));
            abort(&mut conn.wire);
            drop(conn);
            conn = self.go_on(rest, failure, how).await?;
            trail.enter(Phase::Tunnel);
        }
    }

    /// Commits to a hop whose server spoke before the client's flight was sent.
    fn at_once(&mut self, conn: Conn) -> Settled {
        if self.is_sent {
            self.exchange.trail().resend();
        }
        let flight = std::mem::take(&mut self.flight);
        Settled::at_once(self.client, flight.into_bytes(), conn)
    }

    /// Opens the next hop; `how` the client is told where there is none.
    async fn go_on(
        &mut self,
        rest: Box<Rest>,
        failure: Failure,
        how: OnExhausted,
    ) -> Result<Conn, Unsettled> {
        let trail = self.exchange.trail();
        tokio::select! {
            biased;
            departure = self.client.carrier().departure() => Err(Unsettled::left(Failure::ClientGone {
                phase: trail.phase(),
                how: departure,
            })),
            () = self.enlisted.cut() => Err(Unsettled::left(self.enlisted.why())),
            // On the heap: most tunnels that are on trial never come here.
            next = Box::pin(rest.go_on(failure, trail)) => next.map_err(|failure| Unsettled { failure, how }),
        }
    }

    /// Tries a hop, and says what came of it.
    async fn try_out(&mut self, conn: &mut Conn, rest: &mut Rest) -> Tried {
        keep_alive(&conn.wire);
        let is_end_to_end = conn.is_end_to_end;
        let mut witness = Witness::new(self.client.carrier(), conn.wire.carrier());
        let trial = Trial {
            client: self.client,
            server: &mut conn.wire,
            flight: &mut self.flight,
            rest,
            enlisted: self.enlisted,
            begun: self.exchange.meter().begun(),
            course: Course::begun(),
        };
        let (outcome, course) = trial.run().await;
        if course.written > 0 {
            if self.is_sent {
                self.exchange.trail().resend();
            }
            self.is_sent = true;
        }
        let said = self.flight.bytes();
        let sent = said.get(..course.written).unwrap_or(said);
        match outcome {
            Outcome::Kept(early) => {
                witness.client(sent, course.moved);
                self.exchange.meter().moved(sent.len() as u64, 0);
                Tried::Kept(early, witness)
            }
            Outcome::Failed(reason, words) => {
                witness.event(&reason, Instant::now());
                witness.client(sent, course.moved);
                witness.server(&words, Instant::now());
                let mut end = course.end(reason);
                if !words.is_empty() {
                    // For what it says, and by us.
                    end.server = Close::Local;
                }
                let as_it_came = match end.server {
                    Close::Fin => OnExhausted::Fin,
                    Close::Rst | Close::Timeout | Close::Local => OnExhausted::Rst,
                };
                let failure = Failure::Tunnel(Box::new(witness.ending(end, is_end_to_end)));
                let how = if rest.stops_at(Class::of(classify(&failure))) {
                    as_it_came
                } else {
                    rest.on_exhausted()
                };
                Tried::Failed(failure, how)
            }
            Outcome::Over(reason) => {
                witness.event(&reason, Instant::now());
                let (said, how) = match reason {
                    // What it said tells how far it had come when it left.
                    Reason::ClientReset(_) | Reason::ClientError(_) => (said, OnExhausted::Rst),
                    Reason::Idle { .. } => (sent, OnExhausted::Fin),
                    Reason::Expired { .. }
                    | Reason::ServerReset(_)
                    | Reason::ServerError(_)
                    | Reason::ServerFin
                    | Reason::ClientFin
                    | Reason::BothFin => (sent, OnExhausted::Rst),
                };
                witness.client(said, course.moved);
                let ending = witness.ending(course.end(reason), is_end_to_end);
                Tried::Over(Failure::Tunnel(Box::new(ending)), how)
            }
            Outcome::Cut => {
                let Unsettled { failure, how } = Unsettled::left(self.enlisted.why());
                Tried::Over(failure, how)
            }
        }
    }
}

/// What came of a hop, and what is told of it.
enum Tried {
    Kept(Early, Witness),
    /// Another hop may do better; how the client is told where none is tried.
    Failed(Failure, OnExhausted),
    /// No other hop would change that.
    Over(Failure, OnExhausted),
}

/// What came of a hop.
enum Outcome {
    /// It is kept: these bytes are still to be passed on, behind what was sent.
    Kept(Early),
    /// It failed before the server's first byte, or by these first bytes.
    Failed(Reason, Bytes),
    /// The tunnel is over, and not by a failure of the hop.
    Over(Reason),
    /// It was cut, or the process ends.
    Cut,
}

/// How far the trial of a hop has come.
#[derive(Clone, Copy)]
struct Course {
    begun: Instant,
    /// The last bytes of the client's, read or begun to be written.
    moved: Instant,
    /// The client's first bytes.
    spoke: Option<Instant>,
    /// When the ClientHello began to be written.
    sent: Option<Instant>,
    /// So many of its bytes are.
    written: usize,
    /// Until when the server's first byte may take, where another hop would be tried then.
    hello: Option<Instant>,
}

impl Course {
    fn begun() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            moved: now,
            spoke: None,
            sent: None,
            written: 0,
            hello: None,
        }
    }

    /// The end of a tunnel in which no server spoke.
    fn end(&self, reason: Reason) -> End {
        let (client, server) = match &reason {
            Reason::ClientReset(error) | Reason::ClientError(error) => {
                (Close::of(error), Close::Local)
            }
            Reason::ServerReset(error) | Reason::ServerError(error) => {
                (Close::Local, Close::of(error))
            }
            Reason::ServerFin => (Close::Local, Close::Fin),
            Reason::ClientFin | Reason::BothFin | Reason::Idle { .. } | Reason::Expired { .. } => {
                (Close::Local, Close::Local)
            }
        };
        let client_spoke = self.sent.filter(|_| self.written > 0);
        End {
            client,
            server,
            idle: self.moved.elapsed(),
            idle_before: Duration::ZERO,
            idle_survived: Duration::ZERO,
            waiting: Waiting {
                server_to_answer: client_spoke.is_some(),
                ..Waiting::default()
            },
            client_spoke,
            reason,
        }
    }
}

/// What a trial waits for.
enum Event {
    /// The server spoke, ended its direction, or its connection failed.
    Server(io::Result<Bytes>),
    /// The client did.
    Client(io::Result<Bytes>),
    /// The time is over that what it waits for may take.
    Due,
    /// The tunnel was cut, or the process ends.
    Cut,
}

/// One hop on trial.
struct Trial<'a> {
    client: &'a mut Wire,
    server: &'a mut Wire,
    flight: &'a mut Flight,
    rest: &'a mut Rest,
    enlisted: &'a Enlisted,
    /// When the tunnel was asked for.
    begun: Instant,
    course: Course,
}

impl Trial<'_> {
    async fn run(mut self) -> (Outcome, Course) {
        let outcome = loop {
            if self.course.sent.is_none() {
                match self.flight.stage() {
                    Stage::Silence | Stage::Partial => {}
                    Stage::Hello => self.begin_to_send(),
                    // The relay passes it on, once.
                    Stage::Opaque => break self.kept(&[], Bytes::new()),
                }
            }
            if let Some(outcome) = self.step().await {
                break outcome;
            }
        };
        (outcome, self.course)
    }

    fn begin_to_send(&mut self) {
        let now = Instant::now();
        // The client's time is not the hops'.
        self.rest.wait(now - self.course.begun);
        let is_limited = self.rest.goes_on_after(Class::HelloTimeout);
        self.course = Course {
            moved: now,
            sent: Some(now),
            hello: is_limited.then(|| now + self.rest.hello_limit()),
            ..self.course
        };
    }

    /// Waits for the next event; the outcome, once it is there.
    async fn step(&mut self) -> Option<Outcome> {
        let is_sent = self.course.sent.is_some();
        match self.event().await {
            Event::Server(Ok(words)) if !words.is_empty() => Some(self.heard(words)),
            Event::Server(end) => Some(self.lost(end.err())),
            Event::Client(Ok(words)) if !words.is_empty() && !is_sent => {
                let now = Instant::now();
                self.course.moved = now;
                self.course.spoke.get_or_insert(now);
                self.flight.take(&words, now);
                None
            }
            // It leaves, which the relay sees as well and passes on; or it says more, which would have to be sent again, too.
            Event::Client(Ok(words)) => Some(self.kept(&words, Bytes::new())),
            Event::Client(Err(error)) => Some(Outcome::Over(Reason::of_client(error))),
            Event::Cut => Some(Outcome::Cut),
            Event::Due => self.due(),
        }
    }

    /// The server's first bytes.
    fn heard(&mut self, words: Bytes) -> Outcome {
        // Without it, it speaks first: no TLS server does.
        let is_answer = self.course.written == self.flight.bytes().len() && self.course.written > 0;
        let fault = is_answer.then(|| self.flight.fault_of(&words, Instant::now()));
        match fault.flatten() {
            Some(class) if self.rest.goes_on_after(class) => {
                Outcome::Failed(Reason::ServerFin, words)
            }
            Some(_) => self.kept(&[], words),
            None => {
                self.rest.served();
                self.kept(&[], words)
            }
        }
    }

    /// The server's side ended before its first byte.
    fn lost(&mut self, error: Option<io::Error>) -> Outcome {
        let is_silent = self.flight.stage() == Stage::Silence;
        let is_tired = is_silent && self.course.begun.elapsed() >= PATIENCE;
        match error.map(Reason::of_server) {
            Some(reason) if is_tired => Outcome::Over(reason),
            None if is_tired => self.kept(&[], Bytes::new()),
            reason => {
                if self.course.sent.is_none() {
                    self.rest.wait(self.course.begun.elapsed());
                }
                Outcome::Failed(reason.unwrap_or(Reason::ServerFin), Bytes::new())
            }
        }
    }

    /// What was waited for took too long.
    fn due(&mut self) -> Option<Outcome> {
        let idle = self.rest.idle_limit();
        if let Some(after) = self.rest.max_duration()
            && self.begun.elapsed() >= after
        {
            return Some(Outcome::Over(Reason::Expired { after }));
        }
        if self.course.sent.is_none() && self.flight.stage() == Stage::Partial {
            Some(self.kept(&[], Bytes::new()))
        } else if self.course.moved.elapsed() >= idle {
            Some(Outcome::Over(Reason::Idle { after: idle }))
        } else if self.rest.goes_on_after(Class::HelloTimeout) {
            let after = self.course.moved.elapsed();
            Some(Outcome::Failed(Reason::Idle { after }, Bytes::new()))
        } else {
            self.course.hello = None;
            None
        }
    }

    /// When what is waited for takes too long.
    fn deadline(&self) -> Instant {
        let idle = self.course.moved + self.rest.idle_limit();
        let due = match (self.course.sent, self.flight.stage()) {
            (None, Stage::Partial) => self.course.spoke.unwrap_or(self.course.begun) + FLIGHT,
            _ => self.course.hello.map_or(idle, |hello| hello.min(idle)),
        };
        let expiry = self.rest.max_duration().map(|after| self.begun + after);
        expiry.map_or(due, |expiry| expiry.min(due))
    }

    /// Keeps the hop; of the client these words are still to be sent, and what was not written of its flight.
    fn kept(&self, words: &[u8], from_server: Bytes) -> Outcome {
        let unsent = self.flight.bytes().get(self.course.written..);
        Outcome::Kept(Early {
            from_client: [unsent.unwrap_or_default(), words].concat().into(),
            from_server,
            sent: self.course.sent.filter(|_| self.course.written > 0),
            silent_since: Some(self.course.moved),
        })
    }

    async fn event(&mut self) -> Event {
        let mut due = pin!(sleep_until(self.deadline()));
        let mut cut = pin!(self.enlisted.cut());
        poll_fn(|cx| {
            if let Poll::Ready(event) = with_scratch(|scratch| self.poll_wires(cx, scratch)) {
                return Poll::Ready(event);
            }
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Cut);
            }
            due.as_mut().poll(cx).map(|()| Event::Due)
        })
        .await
    }

    /// Looks at both sides, the server's first: what it said counts before what became of the connection.
    fn poll_wires(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Event> {
        if let Poll::Ready(read) = poll_read(self.server, cx, scratch) {
            return Poll::Ready(Event::Server(read));
        }
        while let (Some(_), Some(unsent @ [_, ..])) = (
            self.course.sent,
            self.flight.bytes().get(self.course.written..),
        ) {
            match Pin::new(&mut *self.server).poll_write(cx, unsent) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Event::Server(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(count)) => self.course.written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Event::Server(Err(error))),
                Poll::Pending => break,
            }
        }
        poll_read(self.client, cx, scratch).map(Event::Client)
    }
}

/// Reads once; nothing is the end.
fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    scratch: &mut [u8],
) -> Poll<io::Result<Bytes>> {
    let mut buffer = ReadBuf::new(scratch);
    let read = Pin::new(stream).poll_read(cx, &mut buffer);
    read.map_ok(|()| Bytes::copy_from_slice(buffer.filled()))
}

/// Probes a server's connection while nothing moves; the client's has it from its listener.
fn keep_alive(wire: &Wire) {
    if let Err(error) = wire.carrier().keepalive(TCP_KEEPALIVE) {
        tracing::debug!(%error, "set TCP keepalive");
    }
}

/// Makes the end of a wire one that the far side sees as cut off.
pub(super) fn abort(wire: &mut Wire) {
    if let Err(error) = wire.abort_on_close() {
        tracing::debug!(%error, "cut a connection off");
    }
}
