//! What the tests of ways out share: a plan, and an upstream that does what it is told.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::sleep;

use super::{BoxFuture, Conn, Dial, Form, Plan, Purpose};
use crate::client::Client;
use crate::exchange::Trail;
use crate::failure::Failure;
use crate::net::connect::ConnectError;
use crate::net::places::Held;
use crate::net::socket::Socket;
use crate::net::upstream::{Reply, UpstreamError};
use crate::net::wire::Wire;
use crate::policy::chain::{Commit, Retry};
use crate::target::Target;
use crate::timeouts::Timeouts;

/// A tunnel to `target` for a client on `ip`.
pub(super) fn plan(ip: &str, target: &str) -> Plan {
    let local: SocketAddr = "127.0.0.1:3128".parse().unwrap();
    Plan {
        client: Client {
            peer: SocketAddr::new(ip.parse().unwrap(), 1),
            local,
            listener: "proxy".into(),
        },
        target: Target::from_authority(target).unwrap(),
        purpose: Purpose::Tunnel,
        addresses: None,
        timeouts: Arc::new(Timeouts::default()),
        deadline: None,
        passes_over: false,
        commit: Commit::default(),
        retry: Retry::default(),
        via: String::new(),
        dns: None,
        certificate: None,
    }
}

/// What an upstream does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Does {
    /// It grants a tunnel, so long after it was asked.
    Serve(Duration),
    /// It takes a plain request's connection.
    Accept,
    /// It refuses connections.
    Refuse,
    /// It does not answer a SYN.
    Drop,
    /// It answers CONNECT with a status, and with a `Proxy-Status`.
    Answer(u16, &'static str),
    /// This host has no descriptor left for it.
    NoFds,
    /// The policy allows no more connections to it.
    Full,
}

/// An upstream that does what it is told.
#[derive(Debug)]
pub(super) struct Scripted {
    pub(super) name: Arc<str>,
    pub(super) does: Mutex<Does>,
    pub(super) dials: AtomicUsize,
}

impl Scripted {
    pub(super) fn new(name: &str, does: Does) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            does: Mutex::new(does),
            dials: AtomicUsize::new(0),
        })
    }

    pub(super) fn now(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    /// How often it was dialled since the last time this was asked.
    pub(super) fn dials(&self) -> usize {
        self.dials.swap(0, Ordering::Relaxed)
    }

    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        trail.hop(&self.name);
        self.dials.fetch_add(1, Ordering::Relaxed);
        let does = *self.does.lock().unwrap();
        let form = match does {
            Does::Serve(after) => {
                sleep(after).await;
                Form::Origin
            }
            Does::Accept => Form::Absolute {
                upstream: self.name.clone(),
                authenticator: None,
            },
            Does::Drop => {
                let after = plan.within(plan.timeouts.connect);
                sleep(after).await;
                return Err(timed_out(&self.name, after));
            }
            Does::Refuse => return Err(refused(&self.name)),
            Does::Answer(status, proxy_status) => {
                return Err(answer(&self.name, status, proxy_status));
            }
            Does::Full => {
                return Err(Failure::Upstream {
                    upstream: self.name.clone(),
                    passes_443: false,
                    error: UpstreamError::Full { limit: 1 },
                });
            }
            Does::NoFds => {
                let source = Arc::new(io::Error::other("EMFILE"));
                return Err(reach(
                    &self.name,
                    ConnectError::NoFds {
                        address: address(),
                        source,
                    },
                ));
            }
        };
        Ok(Conn {
            wire: Wire::Tcp(socket()),
            early: Bytes::new(),
            form,
            is_end_to_end: false,
            only_for: None,
            told: None,
            held: Held::default(),
            hop: self.name.clone(),
            rest: None,
        })
    }
}

impl Dial for Scripted {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }
}

/// The same, for who wants a box.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Scripted>);

impl Dial for Shared {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        self.0.dial(plan, trail)
    }
}

fn socket() -> Socket {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_nonblocking(true).unwrap();
    Socket::new(tokio::net::TcpStream::from_std(stream).unwrap()).unwrap()
}

fn address() -> SocketAddr {
    "192.0.2.1:3128".parse().unwrap()
}

fn reach(upstream: &Arc<str>, error: ConnectError) -> Failure {
    Failure::Reach {
        upstream: upstream.clone(),
        failure: Box::new(error.into()),
    }
}

pub(super) fn refused(upstream: &Arc<str>) -> Failure {
    reach(
        upstream,
        ConnectError::Refused {
            address: address(),
            icmp: None,
            source: None,
        },
    )
}

fn timed_out(upstream: &Arc<str>, after: Duration) -> Failure {
    reach(
        upstream,
        ConnectError::TimedOut {
            address: address(),
            after,
            syns: None,
        },
    )
}

pub(super) fn answer(upstream: &Arc<str>, status: u16, proxy_status: &str) -> Failure {
    let fields = [("proxy-status", proxy_status.as_bytes())];
    let fields = if proxy_status.is_empty() {
        &[]
    } else {
        &fields[..]
    };
    let reply = Reply::of(StatusCode::from_u16(status).unwrap(), b"", fields);
    Failure::Upstream {
        upstream: upstream.clone(),
        passes_443: false,
        error: UpstreamError::Refused(Box::new(reply)),
    }
}
