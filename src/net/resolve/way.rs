//! The way to name servers: straight, or through a tunnel that somebody else opens.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::provider::Boxed;
use crate::net::places::Held;
use crate::net::wire::Wire;

/// Opens connections to name servers through a route.
pub trait Tunnel: fmt::Debug + Send + Sync {
    /// Opens one, within limits of its own; with what it occupies.
    fn open(&self, server: SocketAddr) -> Boxed<io::Result<(Wire, Held)>>;
}

/// The way to a name server. It may change; a connection belongs to the way that it took.
pub(super) struct Way {
    is_led: bool,
    tunnel: Mutex<Option<Arc<dyn Tunnel>>>,
    turns: AtomicU64,
}

impl Way {
    pub(super) fn new(is_led: bool) -> Self {
        Self {
            is_led,
            tunnel: Mutex::default(),
            turns: AtomicU64::new(0),
        }
    }

    /// Takes another tunnel from now on.
    pub(super) fn lead(&self, tunnel: Arc<dyn Tunnel>) {
        *self.lock() = Some(tunnel);
        self.turns.fetch_add(1, Ordering::AcqRel);
    }

    /// How often it has changed.
    pub(super) fn turn(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }

    /// What to go through, if anything.
    pub(super) fn tunnel(&self) -> io::Result<Option<Arc<dyn Tunnel>>> {
        match (&*self.lock(), self.is_led) {
            (Some(tunnel), _) => Ok(Some(tunnel.clone())),
            (None, false) => Ok(None),
            // Straight is not what the policy says.
            (None, true) => Err(io::Error::other(
                "the route to the name server is not there",
            )),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Tunnel>>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way")
            .field("is_led", &self.is_led)
            .finish_non_exhaustive()
    }
}

/// A connection to a name server.
#[derive(Debug)]
pub(super) enum Line {
    /// Straight.
    Plain(TcpStream),
    /// Through a tunnel. The library wants what threads may share; the lock is never waited for.
    Inside(Mutex<(Wire, Held)>),
}

impl Line {
    pub(super) fn inside(wire: (Wire, Held)) -> Self {
        Self::Inside(Mutex::new(wire))
    }
}

/// Lets either kind of connection do the same.
macro_rules! either {
    ($line:expr, $io:ident => $do:expr) => {
        match $line.get_mut() {
            Line::Plain(stream) => {
                let $io = Pin::new(stream);
                $do
            }
            Line::Inside(wire) => {
                let (wire, _) = wire.get_mut().unwrap_or_else(PoisonError::into_inner);
                let $io = Pin::new(wire);
                $do
            }
        }
    };
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }
}
