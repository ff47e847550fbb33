//! One attempt: its SYN, its answer, and what the kernel shows of it.
//!
//! Source: tcp(7), ip(7) `IP_RECVERR`, recvmsg(2) `MSG_ERRQUEUE`.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, SockRef, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::error::Icmp;
use super::judge::{Evidence, Sender, asks_for_route};
use super::{Shape, scoped};
use crate::net::here::{PORT, local_towards};
use crate::net::socket::{Socket, limit_hops};
use crate::net::tcp_info::TcpInfo;

/// A connection that is being opened.
pub(super) trait Attempt {
    /// What it opens.
    type Connection;

    /// Waits for the answer; not polled again after it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;

    /// Hands on the connection that stands, and how many SYNs were sent beyond the first.
    fn finish(self) -> io::Result<(Self::Connection, u32)>;

    /// What is to be seen of it so far.
    fn seen(&self) -> Evidence;
}

/// How an attempt failed.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) source: io::Error,
    pub(super) seen: Evidence,
}

/// A SYN under way.
#[derive(Debug)]
pub(super) struct Syn {
    stream: TcpStream,
    address: SocketAddr,
    /// Where it was sent from: the kernel may forget that when the attempt fails.
    local: Option<SocketAddr>,
    sent: Instant,
}

/// A SYN that was answered sooner was not sent again: the kernel waits for one second (RFC 6298, section 2), and nobody
/// has it wait for less than this.
const SOONEST_RETRANSMISSION: Duration = Duration::from_millis(100);

impl Syn {
    /// Sends it. `zone` is the interface of a scoped IPv6 address.
    pub(super) fn send(
        address: SocketAddr,
        zone: Option<&str>,
        shape: Shape,
    ) -> Result<Self, Broken> {
        let sent = Instant::now();
        let sending = scoped(address, zone).and_then(|scoped| Ok((send(scoped, shape)?, scoped)));
        let (stream, address) = sending.map_err(|source| Broken {
            seen: Evidence {
                at_once: true,
                has_route: asks_for_route(&source) && local_towards(address).is_ok(),
                ..Evidence::default()
            },
            source,
        })?;
        Ok(Self {
            local: stream.local_addr().ok(),
            stream,
            address,
            sent,
        })
    }

    fn sender(&self, offender: SocketAddr) -> Sender {
        let ip = offender.ip();
        if ip == self.address.ip() {
            Sender::Target
        } else if Some(ip) == self.local.map(|local| local.ip())
            || local_towards(offender).is_ok_and(|local| local == ip)
        {
            Sender::Own
        } else {
            Sender::Device
        }
    }
}

impl Attempt for Syn {
    type Connection = Socket;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let outcome = loop {
            if let Err(error) = ready!(self.stream.poll_write_ready(cx)) {
                break Err((error, None));
            }
            let told = self.stream.try_io(Interest::WRITABLE, || {
                answer(&self.stream).ok_or_else(|| io::ErrorKind::WouldBlock.into())
            });
            if let Ok(outcome) = told {
                break outcome;
            }
        };
        Poll::Ready(outcome.map_err(|(source, message)| {
            let mut seen = self.seen();
            seen.icmp = message.map(|message| (message.icmp, self.sender(message.offender)));
            Broken { source, seen }
        }))
    }

    fn finish(self) -> io::Result<(Socket, u32)> {
        let retransmissions = if self.sent.elapsed() < SOONEST_RETRANSMISSION {
            0
        } else {
            TcpInfo::of(&self.stream).map_or(0, |info| info.retransmissions)
        };
        // With the queue on, any ICMP message would end the connection, those included that must not (RFC 1122, section
        // 4.2.3.9).
        let _ = keep_errors(&self.stream, self.address, false);
        let socket = match self.local {
            Some(local) => {
                self.stream.set_nodelay(true)?;
                Socket::between(self.stream, self.address, local)
            }
            None => Socket::new(self.stream)?,
        };
        Ok((socket, retransmissions))
    }

    fn seen(&self) -> Evidence {
        Evidence {
            syns: TcpInfo::of(&self.stream).ok().map(|info| info.segs_out),
            ..Evidence::default()
        }
    }
}

fn send(address: SocketAddr, shape: Shape) -> io::Result<TcpStream> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    if let Some(mss) = shape.mss {
        socket.set_tcp_mss(mss)?;
    }
    if let Some(hops) = shape.hops {
        limit_hops(&SockRef::from(&socket), address, hops)?;
    }
    // Where the kernel keeps no queue, error numbers must do.
    let _ = keep_errors(&socket, address, true);
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        Ok(()) | Err(_) => TcpStream::from_std(socket.into()),
    }
}

/// Has the kernel queue the ICMP messages that concern a socket, or drop them.
fn keep_errors(socket: &impl AsFd, address: SocketAddr, is_on: bool) -> nix::Result<()> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &is_on),
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &is_on),
    }
}

/// How an attempt ended: its error, and the message behind it.
type Answer = Result<(), (io::Error, Option<Message>)>;

/// The answer to a SYN; `None` while there is none.
fn answer(stream: &TcpStream) -> Option<Answer> {
    match SockRef::from(stream).take_error() {
        Ok(None) => {}
        Ok(Some(error)) => return Some(Err((error, queued(stream)))),
        Err(error) => return Some(Err((error, None))),
    }
    match stream.peer_addr() {
        Ok(_) => Some(Ok(())),
        // The message is queued, and we are woken, a moment before the kernel sets the error.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => {
            let message = queued(stream)?;
            let error = io::Error::from_raw_os_error(message.number);
            Some(Err((error, Some(message))))
        }
        Err(error) => Some(Err((error, None))),
    }
}

/// An entry of a socket's error queue.
struct Message {
    icmp: Icmp,
    /// The error number that the kernel made of it.
    number: i32,
    /// Who sent it, with the zone of an IPv6 address.
    offender: SocketAddr,
}

/// Takes the first ICMP message out of a socket's error queue.
fn queued(stream: &TcpStream) -> Option<Message> {
    loop {
        // The packet that was complained of: its beginning is more than we need.
        let mut packet = [0; 64];
        let mut control = nix::cmsg_space!((libc::sock_extended_err, libc::sockaddr_in6));
        let mut packet = [IoSliceMut::new(&mut packet)];
        let received = recvmsg::<SockaddrStorage>(
            stream.as_raw_fd(),
            &mut packet,
            Some(&mut control),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        );
        for message in received.ok()?.cmsgs().ok()? {
            let (error, offender) =
                if let ControlMessageOwned::Ipv4RecvErr(error, Some(of)) = message {
                    let ip = Ipv4Addr::from(u32::from_be(of.sin_addr.s_addr));
                    (error, SocketAddr::from((ip, PORT)))
                } else if let ControlMessageOwned::Ipv6RecvErr(error, Some(of)) = message {
                    let ip = Ipv6Addr::from(of.sin6_addr.s6_addr);
                    (
                        error,
                        SocketAddrV6::new(ip, PORT, 0, of.sin6_scope_id).into(),
                    )
                } else {
                    continue;
                };
            if matches!(
                error.ee_origin,
                libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6
            ) {
                return Some(Message {
                    icmp: Icmp {
                        r#type: error.ee_type,
                        code: error.ee_code,
                        offender: offender.ip(),
                    },
                    number: error.ee_errno.cast_signed(),
                    offender,
                });
            }
        }
    }
}
