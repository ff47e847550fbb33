//! A client's connection as HTTP reads and writes it, with what HTTP does not tell us.
//!
//! It keeps the limits on a request's head and on a client that does not read, it knows what on this port is no HTTP
//! at all, and it holds back what hyper would answer by itself, so that every refusal is ours: with a cause, and
//! with a record.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::exchange::Presence;
use crate::failure::{FirstBytes, HeadError};
use crate::net::wire::Wire;
use crate::proxy::answer::Requests;
use crate::timeouts::Timeouts;

/// So much of a head is kept to say how it began.
pub(super) const FIRST_BYTES: usize = 32;

/// A client's connection under HTTP.
#[derive(Debug)]
pub(super) struct ClientStream {
    wire: Wire,
    presence: Arc<Presence>,
    timeouts: Arc<Timeouts>,
    shared: Arc<Shared>,
    requests: Arc<Requests>,
    /// How many requests had begun when `wait` was set.
    begun: u64,
    wait: Wait,
    timer: Option<Pin<Box<Sleep>>>,
    write_wait: Option<Pin<Box<Sleep>>>,
}

/// What is waited for while no request is open.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// The rest of a head, or the first one.
    Head { until: Instant },
    /// The next request.
    Next { until: Instant },
}

/// What the connection's owner learns beside HTTP's own result.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Learned>);

/// What was learned of a connection.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// How the head that is being read began; empty between requests.
    pub(super) first: FirstBytes,
    /// Why it cannot become a request.
    pub(super) error: Option<HeadError>,
    /// What was read where it is SOCKS5: the beginning of a handshake that is no matter of HTTP.
    pub(super) socks: Option<Vec<u8>>,
    /// The status that hyper wanted to answer by itself.
    pub(super) held_back: Option<u16>,
    /// Whether any request was served.
    pub(super) served: bool,
}

impl Learned {
    /// Whether not a byte of a request was seen yet.
    pub(super) fn is_untouched(&self) -> bool {
        !self.served && self.first.0.is_empty()
    }
}

impl Shared {
    /// Notes that a head became a request.
    pub(super) fn begin(&self) {
        let mut learned = self.learned();
        learned.served = true;
        learned.first.0.clear();
    }

    pub(super) fn learned(&self) -> MutexGuard<'_, Learned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientStream {
    pub(super) fn new(
        wire: Wire,
        presence: Arc<Presence>,
        timeouts: Arc<Timeouts>,
        shared: Arc<Shared>,
        requests: Arc<Requests>,
    ) -> Self {
        let wait = Wait::Head {
            until: Instant::now() + timeouts.head,
        };
        Self {
            wire,
            presence,
            timeouts,
            shared,
            requests,
            begun: 0,
            wait,
            timer: None,
            write_wait: None,
        }
    }

    /// The connection, when HTTP on it is over.
    pub(super) fn into_wire(self) -> Wire {
        self.wire
    }

    /// Begins to wait for the next request, once another one was served since the last look.
    fn renew(&mut self) {
        let begun = self.requests.begun();
        if begun != self.begun {
            self.begun = begun;
            self.wait = Wait::Next {
                until: Instant::now() + self.timeouts.keepalive,
            };
        }
    }

    /// Takes note of what was read outside a request.
    fn saw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let shared = self.shared.clone();
        let mut learned = shared.learned();
        let is_first_ever = !learned.served && learned.first.0.is_empty();
        if let Wait::Next { .. } = self.wait {
            self.wait = Wait::Head {
                until: Instant::now() + self.timeouts.head,
            };
        }
        let room = FIRST_BYTES.saturating_sub(learned.first.0.len());
        let begun = bytes.get(..room).unwrap_or(bytes);
        learned.first.0.extend_from_slice(begun);
        let alien = match bytes {
            [0x16, 0x03, ..] | [0x16] => Some(HeadError::Tls),
            [0x04, ..] => Some(HeadError::Socks4),
            [0x05, ..] if is_first_ever => {
                learned.socks = Some(bytes.to_vec());
                return Err(io::ErrorKind::InvalidData.into());
            }
            _ => None,
        };
        match alien {
            Some(alien) if is_first_ever => {
                learned.error = Some(alien);
                Err(io::ErrorKind::InvalidData.into())
            }
            _ => Ok(()),
        }
    }

    /// Fails where the head, or the next request, has been waited for too long.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (Wait::Head { until } | Wait::Next { until }) = self.wait;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= until {
                break;
            }
            timer.as_mut().reset(until);
        }
        let mut learned = self.shared.learned();
        if let Wait::Head { .. } = self.wait {
            let first = learned.first.clone();
            learned.error = Some(HeadError::TimedOut {
                after: self.timeouts.head,
                first,
            });
        }
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    /// What hyper writes while no request is open is its own refusal: ours takes its place.
    fn hold_back(&mut self, bytes: &[u8]) {
        let status = bytes
            .get(9..12)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let mut learned = self.shared.learned();
        learned.held_back = learned.held_back.or(status);
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<io::Error> {
        let wait = self
            .write_wait
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(wait.as_mut().poll(cx));
        self.presence.stalled.store(true, Ordering::Relaxed);
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.wire).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if this.requests.is_open() => Poll::Ready(Ok(())),
            Poll::Ready(Ok(())) => {
                this.renew();
                let read = buf.filled().get(before..).unwrap_or_default();
                Poll::Ready(if read.is_empty() {
                    Ok(())
                } else {
                    this.saw(read)
                })
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if this.requests.stays_open(cx) => Poll::Pending,
            Poll::Pending => {
                this.renew();
                this.poll_wait(cx).map(Err)
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.requests.is_answering() {
            let bytes = bufs
                .iter()
                .flat_map(|buf| buf.iter().copied())
                .collect::<Vec<_>>();
            this.hold_back(&bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        match Pin::new(&mut this.wire).poll_write_vectored(cx, bufs) {
            Poll::Ready(written) => {
                this.write_wait = None;
                Poll::Ready(written)
            }
            Poll::Pending => {
                let limit = this.presence.write_limit();
                this.poll_stalled(cx, limit).map(Err)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.wire).poll_flush(cx))?;
        // hyper flushes when it has written all that it had: with no request open, the answer is out.
        this.requests.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(cx)
    }
}
