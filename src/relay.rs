//! Carries bytes both ways between a client and a server until both have ended, and says who ended it.
//!
//! A tunnel in which nothing moves holds no buffer: bytes are read into a scratch of the thread and
//! written on at once; only what the other side did not take is kept, and nothing more is read
//! until that is gone. Bulk between two sockets, once nobody watches, goes through a borrowed pipe
//! and never comes here.

mod meter;
mod way;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

pub use self::meter::Meter;
pub(crate) use self::way::with_scratch;
use self::way::{Broken, Way};
use crate::net::socket::Socket;
use crate::net::wire::Wire;

/// An end of a relay. What is written to it needs no flush.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// The socket that it is, where it is one: between two sockets the kernel carries what nobody watches.
    fn socket(&self) -> Option<&Socket>;
}

impl Stream for Socket {
    fn socket(&self) -> Option<&Socket> {
        Some(self)
    }
}

impl Stream for Wire {
    fn socket(&self) -> Option<&Socket> {
        self.bare()
    }
}

/// Who looks on while bytes are carried.
pub trait Watch {
    /// Whether it has seen enough: from now on bytes may pass without being told.
    fn is_satisfied(&self) -> bool;

    /// Bytes of the client, as they were read.
    fn client(&mut self, bytes: &[u8], now: Instant);

    /// Bytes of the server, as they were read.
    fn server(&mut self, bytes: &[u8], now: Instant);

    /// The first event that leads to the end; behind it once more where a limit of ours becomes the reason.
    fn event(&mut self, reason: &Reason, now: Instant);

    /// Whether there is nothing to be carried any more behind this event: a client that ends its side of an unfinished
    /// handshake waits for nothing.
    fn is_final(&self, reason: &Reason) -> bool;
}

/// How long a relay may be silent, and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// No byte in either direction.
    pub idle: Duration,
    /// The same once one side has ended its direction; never more than `idle`.
    pub half_closed_idle: Duration,
    /// From the beginning of its meter, whatever moves.
    pub max_duration: Option<Duration>,
}

/// Bytes that were read before the relay began; each side gets its part first.
#[derive(Clone, Debug, Default)]
pub struct Early {
    /// What the client sent behind its CONNECT.
    pub from_client: Bytes,
    /// What came behind the upstream's reply.
    pub from_server: Bytes,
    /// When bytes of the client went out that the server owes an answer to; whoever sent them has told the watch.
    pub sent: Option<Instant>,
    /// Since when nothing has moved, where that is before now and there are no bytes here.
    pub silent_since: Option<Instant>,
}

/// How a relay ended.
#[derive(Debug)]
pub struct End {
    /// The first event that led to the end.
    pub reason: Reason,
    /// How the client's connection ended.
    pub client: Close,
    /// How the server's connection ended.
    pub server: Close,
    /// From the last byte, either way, to the event of `reason`.
    pub idle: Duration,
    /// The silence before the first of those bytes of the client that no byte of the server
    /// followed; zero if there are none. A device that forgot an idle connection shows here.
    pub idle_before: Duration,
    /// The longest silence, in whole seconds, after which the server still spoke: nothing on the way had forgotten the
    /// connection by then.
    pub idle_survived: Duration,
    /// Who was waited for at the end.
    pub waiting: Waiting,
    /// When the last bytes of the client were read.
    pub client_spoke: Option<Instant>,
}

/// Who was waited for when a relay ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The client, to take bytes.
    pub client_to_read: bool,
    /// The server, to take bytes.
    pub server_to_read: bool,
    /// The server, to answer: the last byte was the client's.
    pub server_to_answer: bool,
}

/// The first event that led to a relay's end. What follows from it (a reset behind a FIN, a broken
/// pipe behind a reset) does not change it.
#[derive(Debug)]
pub enum Reason {
    /// The client ended first, in order.
    ClientFin,
    /// The server ended first, in order.
    ServerFin,
    /// Both ended, in order, and which was first cannot be told.
    BothFin,
    /// The client's connection was reset.
    ClientReset(io::Error),
    /// The server's connection was reset.
    ServerReset(io::Error),
    /// The client's connection failed in another way.
    ClientError(io::Error),
    /// The server's connection failed in another way: `ETIMEDOUT`, `EHOSTUNREACH`.
    ServerError(io::Error),
    /// Nothing moved for so long.
    Idle {
        /// The limit that held.
        after: Duration,
    },
    /// It lasted as long as it may.
    Expired {
        /// The limit that held.
        after: Duration,
    },
}

/// How one connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The peer ended its direction.
    Fin,
    /// The peer reset it, before or behind its FIN.
    Rst,
    /// The kernel gave it up.
    Timeout,
    /// We end it.
    Local,
}

impl Reason {
    /// The client's connection failed so.
    pub fn of_client(error: io::Error) -> Self {
        match Close::of(&error) {
            Close::Rst => Self::ClientReset(error),
            Close::Fin | Close::Timeout | Close::Local => Self::ClientError(error),
        }
    }

    /// The server's connection failed so.
    pub fn of_server(error: io::Error) -> Self {
        match Close::of(&error) {
            Close::Rst => Self::ServerReset(error),
            Close::Fin | Close::Timeout | Close::Local => Self::ServerError(error),
        }
    }
}

impl Close {
    /// What an error of a connection makes of it.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNRESET | libc::EPIPE) => Self::Rst,
            // What a retransmission that is given up ends with; an ICMP message on the way names it.
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => Self::Timeout,
            Some(_) => Self::Local,
            None if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
            {
                Self::Rst
            }
            None => Self::Local,
        }
    }

    /// Whether the connection was lost rather than ended.
    pub fn is_broken(self) -> bool {
        matches!(self, Self::Rst | Self::Timeout)
    }

    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::Rst => "rst",
            Self::Timeout => "timeout",
            Self::Local => "local",
        }
    }
}

/// Carries bytes between `client` and `server` until both directions have ended, a connection
/// fails, or nothing moves for too long.
///
/// The end of one direction is passed on as a shutdown of the other side's writing, and the other
/// direction goes on. After a failure of the server's connection what it had sent before is still
/// brought to the client. Neither connection is closed: where [`End`] says that one was reset, be it
/// behind a FIN, it is the caller's to reset the other.
///
/// Limits: of a side that is not read, because the other does not take what it sent, a reset is
/// seen only once its bytes are gone. Dropping the future ends nothing; `meter` keeps the counts.
pub fn relay<'a, A, B>(
    client: &'a mut A,
    server: &'a mut B,
    early: Early,
    limits: &'a Limits,
    meter: &'a Meter,
    watch: &'a mut (dyn Watch + Send),
) -> impl Future<Output = End> + use<'a, A, B>
where
    A: Stream,
    B: Stream,
{
    let now = Instant::now();
    if !early.from_server.is_empty() {
        meter.server_spoke(now);
    }
    let client_spoke = if early.from_client.is_empty() {
        early.sent
    } else {
        Some(now)
    };
    let last_byte = match early.silent_since {
        Some(since) if early.from_client.is_empty() && early.from_server.is_empty() => since,
        _ => now,
    };
    let has_unanswered = early.sent.is_some() && early.from_server.is_empty();
    if !early.from_client.is_empty() {
        watch.client(&early.from_client, now);
    }
    if !early.from_server.is_empty() {
        watch.server(&early.from_server, now);
    }
    let mut relay = Relay {
        up: Way::new(early.from_client),
        down: Way::new(early.from_server),
        limits,
        meter,
        watch,
        last_byte,
        clock: last_byte,
        has_unanswered,
        idle_before: Duration::ZERO,
        survived: 0,
        client_spoke,
        verdict: None,
        client: None,
        server: None,
    };
    // It is not an async fn, which would keep its arguments beside what is made of them.
    async move {
        let mut timer = pin!(sleep_until(relay.due().0));
        poll_fn(|cx| relay.poll(cx, client, server, timer.as_mut())).await
    }
}

struct Relay<'a> {
    /// From the client to the server.
    up: Way,
    /// From the server to the client.
    down: Way,
    limits: &'a Limits,
    meter: &'a Meter,
    watch: &'a mut (dyn Watch + Send),
    last_byte: Instant,
    /// What the idle limit counts from: the last byte or FIN.
    clock: Instant,
    has_unanswered: bool,
    /// The longest silence before a byte of the server, in seconds.
    survived: u32,
    idle_before: Duration,
    client_spoke: Option<Instant>,
    /// The first event, and the silence before it. In a box: an idle tunnel has no room for what comes once.
    verdict: Option<Box<(Reason, Duration)>>,
    client: Option<Close>,
    server: Option<Close>,
}

impl Relay<'_> {
    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut A,
        server: &mut B,
        timer: Pin<&mut Sleep>,
    ) -> Poll<End>
    where
        A: Stream,
        B: Stream,
    {
        let was_held = self.down.is_blocked();
        let watch = &mut *self.watch;
        let now = Instant::now();
        let is_watched = !watch.is_satisfied();
        let (up, down) = with_scratch(|scratch| {
            let mut seen = |bytes: &[u8]| watch.client(bytes, now);
            let up = self
                .up
                .poll(cx, client, server, scratch, is_watched, &mut seen);
            if let Poll::Ready(Err(Broken::Write(_))) = up {
                // The write took the connection's error with it: what the server's side reads as
                // its end now is none.
                self.down.keep_end();
            }
            let mut seen = |bytes: &[u8]| watch.server(bytes, now);
            let down = self
                .down
                .poll(cx, server, client, scratch, is_watched, &mut seen);
            (up, down)
        });
        let has_spoken = self.down.has_read();
        let (sent, received) = (self.up.take_moved(), self.down.take_moved());
        if sent.is_some() || received.is_some() {
            self.note_bytes(sent, received, now, has_spoken && !was_held);
        }
        let mut is_over = false;
        if let Poll::Ready(Err(broken)) = up {
            is_over |= self.note_broken(broken, Side::Client, Side::Server);
        }
        self.note_ends();
        if let Poll::Ready(Err(broken)) = down {
            is_over |= self.note_broken(broken, Side::Server, Side::Client);
        }
        let is_final = |(reason, _): &(Reason, Duration)| self.watch.is_final(reason);
        is_over |= self.up.is_done() && self.verdict.as_deref().is_some_and(is_final);
        if is_over || self.up.is_done() && self.down.is_done() {
            return Poll::Ready(self.end());
        }
        self.poll_limits(cx, timer)
    }

    /// Notes what has moved; `ends_silence` says that the server spoke, and what it says was not kept waiting by the client:
    /// else nobody knows when it spoke.
    fn note_bytes(
        &mut self,
        sent: Option<u64>,
        received: Option<u64>,
        now: Instant,
        ends_silence: bool,
    ) {
        if sent.is_some() && !self.has_unanswered {
            self.idle_before = now - self.last_byte;
            self.has_unanswered = true;
        }
        if sent.is_some() {
            self.client_spoke = Some(now);
        }
        if received.is_some() {
            let silence = self.idle_before.max(now - self.last_byte).as_secs();
            if ends_silence && silence > u64::from(self.survived) {
                self.survived = u32::try_from(silence).unwrap_or(u32::MAX);
            }
            self.idle_before = Duration::ZERO;
            self.has_unanswered = false;
            self.meter.server_spoke(now);
        }
        (self.last_byte, self.clock) = (now, now);
        self.meter
            .moved(sent.unwrap_or_default(), received.unwrap_or_default());
    }

    fn note_ends(&mut self) {
        let client_ends = self.up.has_ended() && self.client.is_none();
        let server_ends = self.down.has_ended() && self.server.is_none();
        let reason = match (client_ends, server_ends) {
            (false, false) => return,
            (true, false) => Reason::ClientFin,
            (false, true) => Reason::ServerFin,
            (true, true) => Reason::BothFin,
        };
        if client_ends {
            self.client = Some(Close::Fin);
        }
        if server_ends {
            self.server = Some(Close::Fin);
        }
        self.clock = Instant::now();
        self.settle(reason);
    }

    /// Notes a failure of a way that reads from `reader` and writes to `writer`; says whether the
    /// relay is over.
    fn note_broken(&mut self, broken: Broken, reader: Side, writer: Side) -> bool {
        let (side, error) = match broken {
            Broken::Read(error) => (reader, error),
            Broken::Write(error) => (writer, error),
        };
        let close = Close::of(&error);
        match side {
            Side::Client => {
                self.client = Some(close);
                self.settle(Reason::of_client(error));
                true
            }
            Side::Server => {
                self.server = Some(close);
                self.settle(Reason::of_server(error));
                // A write to the server has failed: what it said before that, such as a TLS alert,
                // may still be unread. A read has failed: there is no more.
                self.up.abandon();
                self.down.keep_end();
                self.clock = Instant::now();
                reader == Side::Server || self.down.is_done()
            }
        }
    }

    fn settle(&mut self, reason: Reason) {
        if self.verdict.is_none() {
            self.watch.event(&reason, Instant::now());
            self.verdict = Some(Box::new((reason, self.last_byte.elapsed())));
        }
    }

    /// When a limit of ours ends it, as things are, and what is the reason then.
    fn due(&self) -> (Instant, Reason) {
        let after = if self.client.is_none() && self.server.is_none() {
            self.limits.idle
        } else {
            self.limits.idle.min(self.limits.half_closed_idle)
        };
        let silent = (self.clock + after, Reason::Idle { after });
        match self.limits.max_duration {
            Some(after) if self.meter.begun() + after < silent.0 => {
                (self.meter.begun() + after, Reason::Expired { after })
            }
            Some(_) | None => silent,
        }
    }

    fn poll_limits(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<End> {
        let (due, reason) = self.due();
        // The timer is set again when it fires too early or the limit has become shorter, never for
        // a byte.
        if due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                // After a failure this only ends the bringing of what is left.
                if !matches!(
                    self.verdict.as_deref(),
                    Some((Reason::ServerReset(_) | Reason::ServerError(_), _))
                ) {
                    let idle = self.last_byte.elapsed();
                    self.watch.event(&reason, Instant::now());
                    self.verdict = Some(Box::new((reason, idle)));
                }
                return Poll::Ready(self.end());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    fn end(&mut self) -> End {
        let (reason, idle) = self
            .verdict
            .take()
            .map_or((Reason::BothFin, Duration::ZERO), |verdict| *verdict);
        End {
            reason,
            client: self.client.unwrap_or(Close::Local),
            server: self.server.unwrap_or(Close::Local),
            idle,
            idle_before: self.idle_before,
            idle_survived: Duration::from_secs(self.survived.into()),
            client_spoke: self.client_spoke,
            waiting: Waiting {
                client_to_read: self.down.is_blocked(),
                server_to_read: self.up.is_blocked(),
                server_to_answer: self.has_unanswered,
            },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

#[cfg(test)]
mod tests;
