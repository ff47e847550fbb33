//! Sockets for the resolver that notice when there is no name server.
//!
//! The UDP ones are connected: only the server that was asked can answer, and the kernel tells that nobody listens there
//! (`ECONNREFUSED`, from the ICMP message), where an unconnected socket would wait for the whole limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioRuntimeProvider, TokioTime,
};
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::net::UdpSocket;

/// A future on the heap.
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Tokio's runtime with sockets of ours.
#[derive(Clone, Default)]
pub(super) struct Provider(TokioRuntimeProvider);

impl RuntimeProvider for Provider {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = TokioTime;
    type Udp = Connected;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Boxed<io::Result<Self::Tcp>> {
        self.0.connect_tcp(server, local, limit)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Boxed<io::Result<Self::Udp>> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            let socket = Arc::new(socket);
            let error = Mutex::new(error_on(socket.clone()));
            Ok(Connected { socket, error })
        })
    }
}

/// A connected UDP socket.
pub(super) struct Connected {
    socket: Arc<UdpSocket>,
    /// Tokio wakes a reader for data only: an error alone has to be waited for apart.
    error: Mutex<Boxed<io::Result<Ready>>>,
}

fn error_on(socket: Arc<UdpSocket>) -> Boxed<io::Result<Ready>> {
    Box::pin(async move { socket.ready(Interest::ERROR).await })
}

impl DnsUdpSocket for Connected {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buf = ReadBuf::new(buf);
        if let Poll::Ready(received) = self.socket.poll_recv_from(cx, &mut buf) {
            return Poll::Ready(received.map(|from| (buf.filled().len(), from)));
        }
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if error.as_mut().poll(cx).is_ready() {
            *error = error_on(self.socket.clone());
            if let Some(error) = self.socket.take_error()? {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Pending
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        _: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send(cx, buf)
    }
}
