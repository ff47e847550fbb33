//! A listener that takes connections and hears nothing on them: what is sent there is never acknowledged.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, SockFilter, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// Listens on a free port. Connections inherit its filter, a program of the classic Berkeley packet filter (bpf(4)), which
/// sees segments from their TCP header on and lets through those without data.
pub(super) fn listen(ip: IpAddr) -> io::Result<TcpListener> {
    let filter = [
        // A = the byte that holds the header's length in its upper half, in words of four bytes.
        SockFilter::new(0x30, 0, 0, 12),
        SockFilter::new(0x54, 0, 0, 0xf0),
        SockFilter::new(0x74, 0, 0, 2),
        // X = A, A = the segment's length.
        SockFilter::new(0x07, 0, 0, 0),
        SockFilter::new(0x80, 0, 0, 0),
        // The same: all of it; else nothing.
        SockFilter::new(0x1d, 0, 1, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ];
    let address = SocketAddr::new(ip, 0);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )?;
    socket.bind(&address.into())?;
    socket.attach_filter(&filter)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
