//! A stream whose writes need no flush.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that tells of a write once it has left. Whoever is told that it cannot be made now makes the same again.
#[derive(Debug)]
pub struct Flushing<S> {
    stream: S,
    /// So many bytes of a write are taken and not yet out.
    unflushed: Option<usize>,
}

impl<S> Flushing<S> {
    /// Around a stream that was flushed.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            unflushed: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = if let Some(taken) = self.unflushed {
            taken
        } else {
            let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
            self.unflushed = Some(taken);
            taken
        };
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unflushed = None;
        Poll::Ready(Ok(taken.min(buf.len())))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
