//! One connection towards a target, whatever it is made of.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::Socket;

/// A connection that a way out yields.
#[derive(Debug)]
pub enum Wire {
    /// Bare TCP.
    Tcp(Socket),
    /// What runs inside a TCP connection.
    Inside(Box<Carried>),
}

/// What runs inside a TCP connection, and what carries it.
#[derive(Debug)]
pub struct Carried {
    stream: Box<dyn Inside>,
    carrier: Socket,
    /// How many bytes were read of it.
    heard: Arc<AtomicU64>,
}

/// How much the far side of a connection has said.
#[derive(Clone, Debug)]
pub enum Heard {
    /// What the kernel has received, read or not, its end included.
    Received(Socket),
    /// What was read of what runs inside: the carrier's bytes say nothing of it.
    Read(Arc<AtomicU64>),
}

impl Heard {
    /// How many bytes; `None` where the kernel does not say.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Received(socket) => Some(socket.tcp_info().ok()?.bytes_received),
            Self::Read(count) => Some(count.load(Ordering::Relaxed)),
        }
    }

    /// How many bytes there are behind `before` of them and an end in order.
    pub fn behind_fin(&self, before: u64) -> u64 {
        match self {
            // A FIN has a number of its own, as a byte has.
            Self::Received(_) => before + 1,
            Self::Read(_) => before,
        }
    }
}

/// What runs inside a TCP connection: TLS with an upstream, a stream of HTTP/2. What is written to it needs no flush.
pub trait Inside: AsyncRead + AsyncWrite + Debug + Send + Unpin {
    /// Makes its end one that the far side sees as cut off.
    fn abort(&mut self) -> io::Result<()>;
}

impl Wire {
    /// What runs inside the connection of `carrier`.
    pub fn inside(stream: impl Inside + 'static, carrier: Socket) -> Self {
        Self::Inside(Box::new(Carried {
            stream: Box::new(stream),
            carrier,
            heard: Arc::default(),
        }))
    }

    /// How much its far side has said, now and later.
    pub fn heard(&self) -> Heard {
        match self {
            Self::Tcp(socket) => Heard::Received(socket.clone()),
            Self::Inside(carried) => Heard::Read(carried.heard.clone()),
        }
    }

    /// The TCP connection below: what the kernel tells is told of it.
    pub fn carrier(&self) -> &Socket {
        match self {
            Self::Tcp(socket) => socket,
            Self::Inside(carried) => &carried.carrier,
        }
    }

    /// The socket that it is, where it is bare.
    pub fn bare(&self) -> Option<&Socket> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Inside(_) => None,
        }
    }

    /// Makes its close one that the far side sees as cut off: a reset, where it is bare.
    pub fn abort_on_close(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.reset_on_close(),
            Self::Inside(carried) => carried.stream.abort(),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Inside(carried) => {
                let before = buf.filled().len();
                let read = Pin::new(&mut carried.stream).poll_read(cx, buf);
                let count = buf.filled().len() - before;
                carried.heard.fetch_add(count as u64, Ordering::Relaxed);
                read
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Inside(carried) => Pin::new(&mut carried.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Inside(carried) => Pin::new(&mut carried.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.is_write_vectored(),
            Self::Inside(carried) => carried.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Inside(carried) => Pin::new(&mut carried.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Inside(carried) => Pin::new(&mut carried.stream).poll_shutdown(cx),
        }
    }
}
