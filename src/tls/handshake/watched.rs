//! A connection whose handshake is watched.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::{FIRST_BYTES, Facts};

/// A connection whose handshake is watched; behind it the connection itself and nothing more.
#[derive(Debug)]
pub struct Watched<S> {
    io: S,
    facts: Option<Arc<Mutex<Facts>>>,
}

impl<S> Watched<S> {
    pub(super) fn new(io: S, facts: Arc<Mutex<Facts>>) -> Self {
        let facts = Some(facts);
        Self { io, facts }
    }

    /// The handshake is over: what follows is not watched.
    pub(super) fn forget(&mut self) {
        self.facts = None;
    }

    fn note(&self, note: impl FnOnce(&mut Facts)) {
        if let Some(facts) = &self.facts {
            note(&mut facts.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        self.note(|facts| {
            facts.received += new.len();
            let room = FIRST_BYTES - facts.first.len();
            facts.first.extend(new.iter().take(room));
        });
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.note(|facts| {
            facts.wrote = Some(Instant::now());
            // A lone "change cipher spec" is for middleboxes only (RFC 8446, appendix D.4).
            facts.answered |= facts.received > 0 && buf.first() != Some(&20);
        });
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
