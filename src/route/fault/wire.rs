//! A connection on which a fault strikes.
//!
//! Everything passes as it is until the point is reached, and what the fault does not speak of does so behind it.

mod lane;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use self::lane::{Flow, Lane, Pace, Timer};
use super::errno;
use crate::net::wire::{Inside, Wire};
use crate::policy::fault::{Act, At, Direction, Fault, Side};
use crate::tls::flight::{Flight, LONGEST, Stage};

/// One read of the inner connection.
const CHUNK: usize = 16 * 1024;

/// A connection with a fault on it.
pub(super) struct Meddler {
    inner: Wire,
    fault: Arc<Fault>,
    /// How long a delay is.
    delay: Duration,
    strikes: Box<dyn Fn() + Send>,
    watch: Watch,
    /// From the client to the server.
    up: Lane,
    /// From the server to the client.
    down: Lane,
    /// Who is to be left alone when the connection is cut off.
    spares_server: bool,
    /// The end of a silence.
    timer: Timer,
    reader: Option<Waker>,
}

/// What the point is looked for with.
#[derive(Debug)]
enum Watch {
    /// The client's first flight, held back until it is told what it is.
    Hello(Box<Flight>),
    /// The server's first bytes, likewise.
    ServerHello(BytesMut),
    /// The head of a request.
    Request(BytesMut),
    /// The head of an answer.
    Response(BytesMut),
    /// So many bytes.
    Bytes(u64),
    /// A silence.
    Idle(Duration, Instant),
    /// It was reached, or will not be.
    Over,
}

/// What bytes that are held back turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It is too early to say.
    Partial,
    /// The point is here, and the head behind which its measure counts has so many of them.
    Point(usize),
    /// Nothing that leads to the point.
    Other,
}

impl std::fmt::Debug for Meddler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meddler")
            .field("inner", &self.inner)
            .field("fault", &self.fault)
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

impl Meddler {
    /// Puts `fault` on a connection, of which `early` was read already.
    pub(super) fn new(
        inner: Wire,
        early: &[u8],
        fault: Arc<Fault>,
        delay: Duration,
        strikes: Box<dyn Fn() + Send>,
    ) -> Self {
        let watch = match fault.at {
            At::ClientHello => Watch::Hello(Box::default()),
            At::ServerHello => Watch::ServerHello(BytesMut::new()),
            At::Request => Watch::Request(BytesMut::new()),
            At::Response => Watch::Response(BytesMut::new()),
            At::Bytes(count) => Watch::Bytes(count),
            At::Idle(wait) => Watch::Idle(wait, Instant::now()),
            // None of a connection.
            At::Accept | At::Dns | At::Connect | At::UpstreamReply => Watch::Over,
        };
        let mut this = Self {
            inner,
            fault,
            delay,
            strikes,
            watch,
            up: Lane::default(),
            down: Lane::default(),
            spares_server: false,
            timer: Timer::default(),
            reader: None,
        };
        if !early.is_empty() {
            this.heard(early);
        }
        this
    }

    /// Takes bytes of the server.
    fn heard(&mut self, bytes: &[u8]) {
        let (held, seen) = match &mut self.watch {
            Watch::ServerHello(held) => {
                held.extend_from_slice(bytes);
                (held, server_hello as fn(&[u8]) -> Seen)
            }
            Watch::Response(held) => {
                held.extend_from_slice(bytes);
                // Who waits for a 100 sends nothing before.
                while let Some(len) = interim(held) {
                    let passes = held.split_to(len);
                    self.down.push(&passes);
                }
                (held, answer as fn(&[u8]) -> Seen)
            }
            _ => return self.down.push(bytes),
        };
        match seen(held) {
            Seen::Partial => {}
            Seen::Other => {
                let held = held.split();
                self.watch = Watch::Over;
                self.down.push(&held);
            }
            Seen::Point(at) => {
                let held = held.split();
                self.watch = Watch::Over;
                self.strike(&[], &held, at as u64);
            }
        }
    }

    /// Takes bytes of the client that are held back until it is told what they are; whether they are.
    fn said(&mut self, bytes: &[u8]) -> bool {
        let (held, at) = match &mut self.watch {
            Watch::Hello(flight) => {
                flight.take(bytes, Instant::now());
                let is_whole = flight.hello().is_some();
                match flight.stage() {
                    Stage::Silence | Stage::Partial => return true,
                    Stage::Hello | Stage::Opaque => {}
                }
                let held = BytesMut::from(flight.bytes());
                (held, is_whole.then_some(0))
            }
            Watch::Request(held) => {
                held.extend_from_slice(bytes);
                match request(held) {
                    Seen::Partial => return true,
                    Seen::Other => (held.split(), None),
                    // It does not go out before it is known what becomes of it.
                    Seen::Point(_) => (held.split(), Some(0)),
                }
            }
            _ => return false,
        };
        self.watch = Watch::Over;
        match at {
            None => self.up.push(&held),
            Some(_) => self.strike(&held, &[], 0),
        }
        true
    }

    /// Lets what was held back go: nothing more is coming.
    fn let_go(&mut self) {
        match std::mem::replace(&mut self.watch, Watch::Over) {
            Watch::Hello(flight) => self.up.push(flight.bytes()),
            Watch::Request(held) => self.up.push(&held),
            Watch::ServerHello(held) | Watch::Response(held) => self.down.push(&held),
            watch @ (Watch::Bytes(_) | Watch::Idle(..) | Watch::Over) => self.watch = watch,
        }
    }

    /// Strikes. `up` and `down` are the bytes at the point, which have not passed; the head among them is so long.
    fn strike(&mut self, up: &[u8], down: &[u8], head: u64) {
        (self.strikes)();
        let fault = self.fault.clone();
        let (side, strikes) = (fault.side, fault.strikes());
        match &fault.act {
            Act::Reset => {
                self.overheard(up);
                self.up.end(if side == Some(Side::Server) {
                    Flow::Swallowing
                } else {
                    Flow::Broken
                });
                self.down.end(if side == Some(Side::Server) {
                    Flow::Ended
                } else {
                    Flow::Broken
                });
                self.spares_server = side == Some(Side::Client);
                if !self.spares_server {
                    self.cut_off();
                }
            }
            Act::Close => {
                self.overheard(up);
                if side != Some(Side::Client) {
                    self.up.end(Flow::Ending);
                }
                if side == Some(Side::Server) {
                    self.down.push(down);
                } else {
                    self.down.end(Flow::Ended);
                    self.up.swallow_rest();
                }
            }
            Act::Hang => {
                if strikes.is_up() {
                    self.up.end(Flow::Swallowing);
                } else {
                    self.up.push(up);
                }
                if strikes.is_down() {
                    self.down.end(Flow::Silent);
                } else {
                    self.down.push(down);
                }
            }
            Act::Delay { .. } => {
                let until = Instant::now() + self.delay;
                if strikes.is_up() {
                    self.up.held_until = Some(until);
                }
                if strikes.is_down() {
                    self.down.held_until = Some(until);
                }
                self.pass(up, down);
            }
            Act::Alert(alert) => self.instead(&[21, 3, 3, 0, 2, 2, alert.0]),
            Act::NotTls(bytes) => self.instead(bytes),
            Act::Status(page) => self.instead(&page.bytes()),
            Act::Throttle(rate) => {
                if strikes.is_up() {
                    self.up.pace = Some(Pace::new(*rate));
                }
                if strikes.is_down() {
                    self.down.pace = Some(Pace::new(*rate));
                }
                self.pass(up, down);
            }
            Act::Truncate(bytes) => {
                if strikes.is_up() {
                    self.up.left = Some(*bytes);
                }
                if strikes.is_down() {
                    self.down.left = Some(head + bytes);
                }
                self.pass(up, down);
            }
            Act::Corrupt { from, every } => {
                if strikes.is_up() {
                    self.up.corrupt(*from, *every);
                }
                if strikes.is_down() {
                    self.down.corrupt(head + from, *every);
                }
                self.pass(up, down);
            }
            // It is another server that was dialled.
            Act::WrongCert(_) => self.pass(up, down),
            // None of a connection.
            Act::NxDomain | Act::ServFail | Act::Answer(_) | Act::Refuse => self.pass(up, down),
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Lets through what is told by what it says: who only listens on the way does not hold it back.
    fn overheard(&mut self, up: &[u8]) {
        if matches!(self.fault.at, At::ClientHello | At::Request) {
            self.up.push(up);
        }
    }

    fn pass(&mut self, up: &[u8], down: &[u8]) {
        self.up.push(up);
        self.down.push(down);
    }

    /// Speaks in the server's place, and ends.
    fn instead(&mut self, bytes: &[u8]) {
        self.up.end(Flow::Ending);
        self.down.end(Flow::Ended);
        self.down.say(bytes);
    }

    fn cut_off(&mut self) {
        if let Err(error) = self.inner.abort_on_close() {
            tracing::debug!(%error, "cut a connection off");
        }
    }

    /// Looks whether so many bytes have passed, or so long a silence.
    fn look(&mut self, cx: &mut Context<'_>) {
        match self.watch {
            Watch::Bytes(count) if self.passed() >= count => {
                self.watch = Watch::Over;
                // What lies behind the point, and was read already.
                let (up, down) = (self.up.take_back(), self.down.take_back());
                self.strike(&up, &down, 0);
            }
            Watch::Idle(wait, since) => {
                let last = self.up.moved_at.max(self.down.moved_at);
                let due = last.unwrap_or(since) + wait;
                if Instant::now() >= due {
                    self.watch = Watch::Over;
                    self.strike(&[], &[], 0);
                } else {
                    self.timer.wake_at(due, cx);
                }
            }
            _ => {}
        }
    }

    /// The bytes that lead to the point.
    fn passed(&self) -> u64 {
        match self.fault.counts() {
            Direction::Up => self.up.passed,
            Direction::Down => self.down.passed,
            Direction::Both => self.up.passed + self.down.passed,
        }
    }

    /// How many bytes a direction may take before the point.
    fn room(&self, is_up: bool) -> usize {
        let counts = self.fault.counts();
        match self.watch {
            Watch::Bytes(count) if counts.is_up() && is_up || counts.is_down() && !is_up => {
                usize::try_from(count.saturating_sub(self.passed())).unwrap_or(usize::MAX)
            }
            _ => usize::MAX,
        }
    }

    /// Writes what is to go to the server, as far as that goes now.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.look(cx);
            let most = self.room(true);
            let piece = self.up.piece(most);
            if piece.is_empty() {
                break;
            }
            if self.up.poll_pause(cx).is_pending() {
                return Poll::Pending;
            }
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &piece))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.up.took(sent, Instant::now());
        }
        if self.up.flow == Flow::Ending || self.up.is_used_up() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            self.up.flow = Flow::Swallowing;
        }
        Poll::Ready(Ok(()))
    }
}

impl Inside for Meddler {
    fn abort(&mut self) -> io::Result<()> {
        if self.spares_server {
            return Ok(());
        }
        self.inner.abort_on_close()
    }
}

impl AsyncRead for Meddler {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            this.look(cx);
            // Who reads moves what is still to be written as well.
            let sent = this.poll_send(cx);
            if let Poll::Ready(Err(error)) = sent
                && this.down.flow == Flow::Passing
            {
                tracing::debug!(%error, "write behind a fault");
            }
            if !this.down.queue.is_empty() {
                if this.down.poll_pause(cx).is_pending() {
                    this.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                let most = this.room(false).min(buf.remaining());
                let piece = this.down.piece(most);
                if !piece.is_empty() {
                    buf.put_slice(&piece);
                    this.down.took(piece.len(), Instant::now());
                    return Poll::Ready(Ok(()));
                }
            }
            if this.down.is_used_up() {
                this.down.end(Flow::Ended);
            }
            match this.down.flow {
                Flow::Broken => return Poll::Ready(Err(errno(libc::ECONNRESET))),
                Flow::Ended | Flow::Ending => return Poll::Ready(Ok(())),
                Flow::Silent | Flow::Swallowing => {
                    this.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Flow::Passing => {}
            }
            let mut room = vec![0; CHUNK];
            let mut read = ReadBuf::new(&mut room);
            match Pin::new(&mut this.inner).poll_read(cx, &mut read) {
                Poll::Pending => {
                    this.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => {
                    this.let_go();
                    if this.down.queue.is_empty() {
                        return Poll::Ready(Err(error));
                    }
                    this.down.flow = Flow::Broken;
                }
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    if matches!(this.watch, Watch::ServerHello(_) | Watch::Response(_)) {
                        this.let_go();
                    }
                    this.down.flow = Flow::Ended;
                }
                Poll::Ready(Ok(())) => this.heard(read.filled()),
            }
        }
    }
}

impl AsyncWrite for Meddler {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.look(cx);
        match this.up.flow {
            Flow::Broken => return Poll::Ready(Err(errno(libc::ECONNRESET))),
            Flow::Swallowing => return Poll::Ready(Ok(buf.len())),
            Flow::Passing | Flow::Ending | Flow::Ended | Flow::Silent => {}
        }
        if this.said(buf) {
            if let Poll::Ready(Err(error)) = this.poll_send(cx)
                && this.up.flow == Flow::Passing
            {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(this.poll_send(cx))?;
        match this.up.flow {
            Flow::Broken => return Poll::Ready(Err(errno(libc::ECONNRESET))),
            Flow::Swallowing | Flow::Ending => return Poll::Ready(Ok(buf.len())),
            Flow::Passing | Flow::Ended | Flow::Silent => {}
        }
        // No more is taken than can be passed on: who writes waits as for the server itself.
        let taken = buf.len().min(CHUNK);
        let taken = buf.get(..taken).unwrap_or(buf);
        this.up.push(taken);
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.up.flow != Flow::Passing {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.watch, Watch::Hello(_) | Watch::Request(_)) {
            this.let_go();
        }
        match this.up.flow {
            // What is lost on the way loses its end as well.
            Flow::Swallowing | Flow::Broken => return Poll::Ready(Ok(())),
            Flow::Passing | Flow::Ending | Flow::Ended | Flow::Silent => {}
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

/// Whether a server's first bytes begin a ServerHello.
fn server_hello(bytes: &[u8]) -> Seen {
    const HANDSHAKE: u8 = 22;
    const SERVER_HELLO: u8 = 2;
    match bytes {
        [HANDSHAKE, 3, _, _, _, SERVER_HELLO, ..] => Seen::Point(0),
        [HANDSHAKE, 3, _, _, _, ..] if bytes.len() > 5 => Seen::Other,
        [HANDSHAKE] | [HANDSHAKE, 3, ..] => Seen::Partial,
        _ => Seen::Other,
    }
}

/// Whether a client's first bytes are a whole head of a request: the place behind it.
fn request(bytes: &[u8]) -> Seen {
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
    let method = bytes.iter().take_while(|byte| is_method(byte)).count();
    match bytes.get(method) {
        Some(b' ') if method > 0 => head(bytes),
        None if method <= 32 => Seen::Partial,
        _ => Seen::Other,
    }
}

/// Whether a server's first bytes are a whole head of an answer: the place behind it.
fn answer(bytes: &[u8]) -> Seen {
    const BEGIN: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(BEGIN.len());
    if bytes.get(..known) != BEGIN.get(..known) {
        return Seen::Other;
    }
    head(bytes)
}

/// The length of an interim answer (1xx) that a server's first bytes begin with; 101 is the last one.
fn interim(bytes: &[u8]) -> Option<usize> {
    let is_interim = bytes.get(9) == Some(&b'1') && bytes.get(9..12) != Some(b"101");
    match (is_interim, answer(bytes)) {
        (true, Seen::Point(len)) => Some(len),
        _ => None,
    }
}

fn head(bytes: &[u8]) -> Seen {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    match end {
        Some(at) => Seen::Point(at + 4),
        None if bytes.len() > LONGEST => Seen::Other,
        None => Seen::Partial,
    }
}

#[cfg(test)]
mod tests;
