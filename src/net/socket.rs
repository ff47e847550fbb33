//! One TCP connection that several parts may hold at once.
//!
//! Whoever moves the bytes holds it, and so does whoever watches for the peer's leaving or ends it
//! with a reset. The descriptor closes with the last handle.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::pipe::Pipe;
use super::tcp_info::TcpInfo;

/// Connections that wait in the kernel to be accepted.
pub const BACKLOG: i32 = 1024;

/// Between two keepalive probes that go unanswered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// So many unanswered probes end the connection with `ETIMEDOUT`.
const KEEPALIVE_PROBES: u32 = 4;

/// A handle of one TCP connection.
///
/// Tokio keeps one waker per direction: of all handles, one task at a time may read and one may write.
/// Any number may wait for [`Socket::departure`] or [`Socket::reset`].
#[derive(Clone, Debug)]
pub struct Socket(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    since: Instant,
}

/// How a peer was seen to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It ended its direction and may still read.
    Fin,
    /// The connection is gone: a reset, or the kernel gave it up (keepalive, ICMP).
    Rst,
}

impl Socket {
    /// Takes over a connected stream and turns Nagle's algorithm off: a relay must not hold back
    /// small writes.
    ///
    /// # Errors
    /// `ENOTCONN` where the peer was gone before we looked.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        Ok(Self::between(stream, peer, local))
    }

    /// Takes over a connected stream whose ends are known, with Nagle's algorithm off already.
    pub fn between(stream: TcpStream, peer: SocketAddr, local: SocketAddr) -> Self {
        Self(Arc::new(Shared {
            peer,
            local,
            stream,
            since: Instant::now(),
        }))
    }

    /// The other end, as it was when the connection began.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Our end.
    pub fn local(&self) -> SocketAddr {
        self.0.local
    }

    /// Probes the peer as [`probes`] says.
    pub fn keepalive(&self, idle: Duration) -> io::Result<()> {
        SockRef::from(&self.0.stream).set_tcp_keepalive(&probes(idle))
    }

    /// The first bytes that wait to be read, as many as there is room for; they stay where they are. Waits for one; zero is
    /// the end.
    pub async fn peek(&self, room: &mut [u8]) -> io::Result<usize> {
        self.0.stream.peek(room).await
    }

    /// When the connection was there.
    pub fn since(&self) -> Instant {
        self.0.since
    }

    /// What the kernel knows of it now.
    pub fn tcp_info(&self) -> io::Result<TcpInfo> {
        TcpInfo::of(&self.0.stream)
    }

    /// Makes the close send RST instead of FIN; what was written and not yet sent is dropped.
    ///
    /// It happens when the last handle is dropped. A later `shutdown` still sends a FIN.
    pub fn reset_on_close(&self) -> io::Result<()> {
        SockRef::from(&self.0.stream).set_linger(Some(Duration::ZERO))
    }

    /// Ends both directions now, whoever holds it: each of them sees the end.
    pub fn end(&self) -> io::Result<()> {
        SockRef::from(&self.0.stream).shutdown(Shutdown::Both)
    }

    /// Lets so many routers pass on what is sent from now on (IP TTL, hop limit), and one receive it.
    pub fn limit_hops(&self, hops: u32) -> io::Result<()> {
        limit_hops(&SockRef::from(&self.0.stream), self.0.peer, hops)
    }

    /// Whether [`Socket::reset_on_close`] was called.
    pub fn resets_on_close(&self) -> bool {
        matches!(
            SockRef::from(&self.0.stream).linger(),
            Ok(Some(Duration::ZERO))
        )
    }

    /// Waits until the peer's FIN or RST is there, reading nothing.
    ///
    /// Data that arrives, read or not, neither ends the wait nor wakes it: the kernel reports the end
    /// of the peer's direction as a state of its own (`EPOLLRDHUP`), behind however much is unread.
    ///
    /// Limits: a peer that vanishes without a packet is seen by keepalive only; an RST is reported as
    /// [`Departure::Fin`] where a reader took its error before the event was delivered. Cancel safe.
    pub async fn departure(&self) -> Departure {
        // The mask of PRIORITY holds "read closed" without "readable".
        self.event(Interest::PRIORITY | Interest::ERROR, |ready| {
            if ready.is_error() {
                Some(Departure::Rst)
            } else if ready.is_read_closed() {
                Some(Departure::Fin)
            } else {
                None
            }
        })
        .await
    }

    /// Waits until the connection is broken: a reset, or the kernel gave it up. A FIN does not end
    /// the wait, before it or behind it.
    ///
    /// Limits: it may wait for ever where a read or a write took the error before the event was
    /// delivered; that read or write has then told its caller. Cancel safe.
    pub async fn reset(&self) {
        self.event(Interest::ERROR, |ready| ready.is_error().then_some(()))
            .await;
    }

    async fn event<T>(
        &self,
        interest: Interest,
        seen: impl Fn(tokio::io::Ready) -> Option<T>,
    ) -> T {
        loop {
            match self.0.stream.ready(interest).await {
                Ok(ready) => {
                    if let Some(found) = seen(ready) {
                        return found;
                    }
                }
                // The runtime is shutting down: nothing will be seen any more.
                Err(_) => std::future::pending().await,
            }
            // Some other event of this interest (urgent data): it must be cleared, or the next wait
            // returns at once. "Would block" does that, but not to what is final.
            let clear: io::Result<()> = self
                .0
                .stream
                .try_io(interest, || Err(io::ErrorKind::WouldBlock.into()));
            drop(clear);
        }
    }

    /// Takes what has come into an empty `pipe`; zero is the end of the peer's direction.
    pub fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            let fill = || pipe.fill(&self.0.stream);
            match self.0.stream.try_io(Interest::READABLE, fill) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    /// Sends bytes of `pipe`, as many as there is room for.
    pub fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            let drain = || pipe.drain(&self.0.stream);
            match self.0.stream.try_io(Interest::WRITABLE, drain) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    /// One write, by `write`; `len` is what it was offered.
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        len: usize,
        mut write: impl FnMut(&mut &socket2::Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            let mut written = None;
            let outcome = self.0.stream.try_io(Interest::WRITABLE, || {
                let socket = SockRef::from(&self.0.stream);
                let n = write(&mut &*socket)?;
                written = Some(n);
                would_block_if(n < len)
            });
            match (written, outcome) {
                (Some(n), _) => return Poll::Ready(Ok(n)),
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, Err(error)) => return Poll::Ready(Err(error)),
                (None, Ok(())) => {}
            }
        }
    }
}

/// Lets so many routers pass on what a socket sends to `peer`, and one receive it.
pub(super) fn limit_hops(socket: &SockRef<'_>, peer: SocketAddr, hops: u32) -> io::Result<()> {
    match peer {
        SocketAddr::V4(_) => socket.set_ttl_v4(hops),
        SocketAddr::V6(_) => socket.set_unicast_hops_v6(hops),
    }
}

/// Probes of the peer after `idle` of silence, then every 15 s; four without an answer end the connection. `idle` is taken
/// in whole seconds, at least one.
pub fn probes(idle: Duration) -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(idle.max(Duration::from_secs(1)))
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// A short read has emptied the kernel's buffer and a short write has filled it. Saying so at once
/// spares the call that would only find that out; tokio's own streams do the same.
fn would_block_if(short: bool) -> io::Result<()> {
    if short {
        Err(io::ErrorKind::WouldBlock.into())
    } else {
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            let outcome = if buf.initialized().len() == buf.capacity() {
                let room = buf.initialize_unfilled();
                let mut filled = None;
                let outcome = self.0.stream.try_io(Interest::READABLE, || {
                    let n = (&*SockRef::from(&self.0.stream)).read(room)?;
                    filled = Some(n);
                    would_block_if(n > 0 && n < room.len())
                });
                match filled {
                    Some(n) => {
                        buf.advance(n);
                        Ok(())
                    }
                    None => outcome,
                }
            } else {
                // Not all of it was ever written to: this way needs no zeroing. Whether it was a short read is told from
                // around it.
                let room = buf.remaining();
                let mut filled = false;
                let outcome = self.0.stream.try_io(Interest::READABLE, || {
                    let n = self.0.stream.try_read_buf(buf)?;
                    filled = true;
                    would_block_if(n > 0 && n < room)
                });
                if filled { Ok(()) } else { outcome }
            };
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, buf.len(), |socket| socket.write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        self.poll_write_with(cx, len, |socket| socket.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A connection that is gone has nothing left to end.
        Poll::Ready(
            match SockRef::from(&self.0.stream).shutdown(Shutdown::Write) {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                outcome => outcome,
            },
        )
    }
}

/// The reset behind an error, if there is one: the first among its sources, by its number.
pub fn reset_behind(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            )
        {
            let kind = || error.kind().into();
            return Some(
                error
                    .raw_os_error()
                    .map_or_else(kind, io::Error::from_raw_os_error),
            );
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::Future;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::task::JoinSet;

    use super::*;

    /// Two ends of one loopback connection.
    pub(crate) async fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = TcpSocket::new_v4().unwrap();
        let (dialled, accepted) = tokio::join!(
            dial.connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (
            Socket::new(dialled.unwrap()).unwrap(),
            Socket::new(accepted.unwrap().0).unwrap(),
        )
    }

    fn reset(socket: Socket) {
        socket.reset_on_close().unwrap();
        drop(socket);
    }

    /// Runs `wait` as a task of its own and counts how often it is polled.
    fn counted<T: Send + 'static>(
        tasks: &mut JoinSet<T>,
        wait: impl Future<Output = T> + Send + 'static,
    ) -> Arc<AtomicUsize> {
        let polls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&polls);
        tasks.spawn(async move {
            let mut wait = std::pin::pin!(wait);
            std::future::poll_fn(|cx| {
                counter.fetch_add(1, Ordering::Relaxed);
                wait.as_mut().poll(cx)
            })
            .await
        });
        polls
    }

    #[tokio::test]
    async fn data_neither_ends_nor_wakes_the_wait_for_a_departure() {
        let (mut peer, mut ours) = pair().await;
        let watched = ours.clone();
        let mut tasks = JoinSet::new();
        let polls = counted(&mut tasks, async move { watched.departure().await });
        tokio::task::yield_now().await;
        for _ in 0..100 {
            peer.write_all(b"hello").await.unwrap();
            let mut five = [0; 5];
            ours.read_exact(&mut five).await.unwrap();
        }
        peer.write_all(b"unread").await.unwrap();
        ours.0.stream.readable().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        peer.shutdown().await.unwrap();
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), Departure::Fin);
        let mut rest = String::new();
        ours.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "unread");
    }

    #[tokio::test]
    async fn a_reset_is_told_from_a_fin_with_and_without_unread_data() {
        for data in ["", "unread"] {
            let (mut peer, mut ours) = pair().await;
            peer.write_all(data.as_bytes()).await.unwrap();
            if !data.is_empty() {
                ours.0.stream.readable().await.unwrap();
            }
            reset(peer);
            assert_eq!(ours.departure().await, Departure::Rst, "{data:?}");
            ours.reset().await;
            let mut rest = Vec::new();
            let error = ours.read_to_end(&mut rest).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(rest, data.as_bytes());
        }
    }

    #[tokio::test]
    async fn a_reset_behind_a_fin_is_seen_and_the_wait_does_not_spin() {
        let (mut peer, ours) = pair().await;
        peer.shutdown().await.unwrap();
        assert_eq!(ours.departure().await, Departure::Fin);
        let watched = ours.clone();
        let mut tasks = JoinSet::new();
        let polls = counted(&mut tasks, async move { watched.reset().await });
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        reset(peer);
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(ours.departure().await, Departure::Rst);
    }

    #[tokio::test]
    async fn urgent_data_is_no_departure() {
        let (mut peer, mut ours) = pair().await;
        let watched = ours.clone();
        let mut tasks = JoinSet::new();
        let polls = counted(&mut tasks, async move { watched.departure().await });
        tokio::task::yield_now().await;
        SockRef::from(&peer.0.stream)
            .send_out_of_band(b"!")
            .unwrap();
        peer.write_all(b"x").await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'x');
        assert!(polls.load(Ordering::Relaxed) < 4);
        assert!(tasks.try_join_next().is_none());
        drop(peer);
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), Departure::Fin);
    }

    #[tokio::test]
    async fn bytes_pass_whole_in_both_kinds_of_buffer() {
        let (mut peer, mut ours) = pair().await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
        let write = async {
            let (head, tail) = sent.split_at(1_000_000);
            let mut slices = [
                IoSlice::new(&head[..400_000]),
                IoSlice::new(&head[400_000..]),
            ];
            let mut left = &mut slices[..];
            while !left.is_empty() {
                let n = peer.write_vectored(left).await.unwrap();
                IoSlice::advance_slices(&mut left, n);
            }
            peer.write_all(tail).await.unwrap();
            peer.shutdown().await.unwrap();
        };
        let read = async {
            let mut got = vec![0; 1_500_000];
            ours.read_exact(&mut got).await.unwrap();
            ours.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(write, read);
        assert!(got == sent);
    }

    #[tokio::test]
    async fn options_are_set() {
        let (peer, ours) = pair().await;
        assert_eq!((peer.peer(), peer.local()), (ours.local(), ours.peer()));
        ours.keepalive(Duration::from_mins(1)).unwrap();
        let socket = SockRef::from(&ours.0.stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 60);
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 15);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
    }
}
