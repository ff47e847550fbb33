//! A stream inside TLS, over a socket that can still be reset.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flushing::Flushing;
use super::socket::Socket;
use super::wire::Inside;

/// A stream inside TLS.
#[derive(Debug)]
pub struct Stream<T> {
    tls: Flushing<T>,
    socket: Socket,
    takes_cut: bool,
}

impl<T> Stream<T> {
    /// The inside of `tls`, which runs over `socket`. Where `takes_cut`, the end of TCP is an end, too; else it is an error
    /// without a last word of TLS (RFC 8446 section 6.1).
    pub fn new(tls: T, socket: Socket, takes_cut: bool) -> Self {
        Self {
            tls: Flushing::new(tls),
            socket,
            takes_cut,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Inside for Stream<T> {
    fn abort(&mut self) -> io::Result<()> {
        self.socket.reset_on_close()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.tls).poll_read(cx, buf));
        Poll::Ready(match read {
            Err(error) if self.takes_cut && error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            read => read,
        })
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
