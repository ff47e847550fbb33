//! Opens a TCP connection to the first of several addresses that answers: happy eyeballs.
//!
//! Source: RFC 8305, sections 4 and 5. Sorting by RFC 6724 is left to whoever ordered the addresses.

mod error;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until};

pub use self::error::ConnectError;
use crate::net::socket::Socket;
use crate::policy::guard::Admitted;

/// A name with more addresses than these has the rest ignored: whoever owns the name chooses how
/// many there are.
const MAX_ADDRESSES: usize = 32;

/// How long [`connect`] may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All addresses together.
    pub total: Duration,
    /// One address while another is under way or left; the last one has what remains of `total`.
    pub per_address: Duration,
    /// How long one address is tried alone before the next joins in.
    pub stagger: Duration,
}

/// One address that was tried.
#[derive(Clone, Debug)]
pub struct Try {
    /// The address.
    pub address: SocketAddr,
    /// From the SYN to the outcome.
    pub took: Duration,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of one address.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The connection that is used.
    Connected,
    /// No connection.
    Failed(ConnectError),
    /// Whoever asked left while no answer had come.
    Abandoned,
    /// Another address answered first.
    Overtaken,
}

/// Connects to the first of `addresses` that answers.
///
/// Families take turns, beginning with that of the first address. The next address joins in after
/// `limits.stagger`, or at once when one has failed. `zone` is the interface (name or index) of
/// scoped IPv6 addresses.
///
/// Every attempt that has come to an end is told to `note` when it does. Dropping the future closes
/// what is under way and tells it as [`Outcome::Abandoned`]; attempts that merely lost the race are
/// told as [`Outcome::Overtaken`] just before the one that won.
///
/// # Errors
/// That of the address that got furthest: an answer before an unreachable network, before silence,
/// before what never left this host.
pub async fn connect(
    addresses: &[Admitted],
    zone: Option<&str>,
    limits: &Limits,
    note: &(dyn Fn(Try) + Sync),
) -> Result<Socket, ConnectError> {
    let addresses: Vec<_> = addresses.iter().map(|a| a.address()).collect();
    let dial = |address| async move { Socket::new(dial(scoped(address, zone)?).await?) };
    race(interleave(&addresses), limits, note, dial).await
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.connect(address).await
}

/// Puts the zone's interface index into an IPv6 address.
fn scoped(address: SocketAddr, zone: Option<&str>) -> io::Result<SocketAddr> {
    let (SocketAddr::V6(mut v6), Some(zone)) = (address, zone) else {
        return Ok(address);
    };
    let index = match zone.parse() {
        Ok(index) => index,
        Err(_) if zone.contains(['/', '.']) => return Err(io::ErrorKind::InvalidInput.into()),
        // A file of sysfs: it never blocks. `if_nametoindex` would cost a dependency.
        Err(_) => std::fs::read_to_string(format!("/sys/class/net/{zone}/ifindex"))?
            .trim()
            .parse()
            .map_err(|_| io::ErrorKind::InvalidData)?,
    };
    v6.set_scope_id(index);
    Ok(v6.into())
}

/// Lets the families take turns, each in its own order, the first address staying first.
fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let leads_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut lead, mut other): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses
        .iter()
        .copied()
        .rev()
        .partition(|address| address.is_ipv6() == leads_v6);
    let mut order = Vec::with_capacity(addresses.len());
    while order.len() < addresses.len().min(MAX_ADDRESSES) {
        order.extend(lead.pop().or_else(|| other.pop()));
        std::mem::swap(&mut lead, &mut other);
    }
    order
}

/// An address under way.
struct Flight<F> {
    address: SocketAddr,
    started: Instant,
    is_polled: bool,
    dial: Pin<Box<F>>,
}

/// The addresses under way, oldest first. What is left in it when it is dropped was abandoned.
struct Flights<'a, F> {
    list: Vec<Flight<F>>,
    note: &'a (dyn Fn(Try) + Sync),
}

/// An attempt that has its answer.
struct Landed<T> {
    address: SocketAddr,
    took: Duration,
    /// The kernel answered without a wait: nothing of it can have come from the network.
    at_once: bool,
    result: io::Result<T>,
}

/// The failure that got furthest so far.
#[derive(Default)]
struct Furthest(Option<(u8, ConnectError)>);

async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    limits: &Limits,
    note: &(dyn Fn(Try) + Sync),
    dial: impl Fn(SocketAddr) -> F,
) -> Result<T, ConnectError> {
    let deadline = Instant::now() + limits.total;
    let mut next_start = Instant::now();
    let mut waiting = addresses.into_iter().peekable();
    let list = Vec::new();
    let mut flights = Flights { list, note };
    let mut furthest = Furthest::default();
    loop {
        let now = Instant::now();
        if now >= deadline {
            while let Some(error) = flights.time_out_oldest() {
                furthest.see(error, false);
            }
            break;
        }
        if now >= next_start
            && let Some(address) = waiting.next()
        {
            flights.start(address, dial(address));
            next_start = now + limits.stagger;
        }
        let Some(oldest) = flights.list.first() else {
            break;
        };
        let mut wake = deadline;
        if waiting.peek().is_some() {
            wake = wake.min(next_start);
        }
        if waiting.peek().is_some() || flights.list.len() > 1 {
            let late = oldest.started + limits.per_address;
            if now >= late {
                if let Some(error) = flights.time_out_oldest() {
                    furthest.see(error, false);
                }
                next_start = now;
                continue;
            }
            wake = wake.min(late);
        }
        let landed = tokio::select! {
            biased;
            landed = flights.landed() => landed,
            () = sleep_until(wake) => continue,
        };
        let (address, took) = (landed.address, landed.took);
        let (outcome, connection) = match landed.result {
            Ok(connection) => (Outcome::Connected, Some(connection)),
            Err(source) => {
                let error = ConnectError::new(address, took, source);
                let error = if landed.at_once {
                    error.of_this_host()
                } else {
                    error
                };
                furthest.see(error.clone(), landed.at_once);
                (Outcome::Failed(error), None)
            }
        };
        if let Some(connection) = connection {
            // Told first, so that the last one told is the one that is used.
            flights.tell(&Outcome::Overtaken);
            note(Try {
                address,
                took,
                outcome,
            });
            return Ok(connection);
        }
        note(Try {
            address,
            took,
            outcome,
        });
        next_start = Instant::now();
    }
    Err(furthest
        .0
        .map_or(ConnectError::NoAddresses, |(_, error)| error))
}

impl<F> Flights<'_, F> {
    fn start(&mut self, address: SocketAddr, dial: F) {
        self.list.push(Flight {
            address,
            started: Instant::now(),
            is_polled: false,
            dial: Box::pin(dial),
        });
    }

    /// Waits for any attempt's answer and takes it out.
    async fn landed<T>(&mut self) -> Landed<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        poll_fn(|cx| {
            for (index, flight) in self.list.iter_mut().enumerate() {
                let at_once = !std::mem::replace(&mut flight.is_polled, true);
                if let Poll::Ready(result) = flight.dial.as_mut().poll(cx) {
                    let landed = Landed {
                        address: flight.address,
                        took: flight.started.elapsed(),
                        at_once,
                        result,
                    };
                    self.list.remove(index);
                    return Poll::Ready(landed);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Closes what is under way and tells what became of it.
    fn tell(&mut self, outcome: &Outcome) {
        for flight in self.list.drain(..) {
            (self.note)(Try {
                address: flight.address,
                took: flight.started.elapsed(),
                outcome: outcome.clone(),
            });
        }
    }

    fn time_out_oldest(&mut self) -> Option<ConnectError> {
        if self.list.is_empty() {
            return None;
        }
        let Flight {
            address, started, ..
        } = self.list.remove(0);
        let after = started.elapsed();
        let error = ConnectError::TimedOut { address, after };
        (self.note)(Try {
            address,
            took: after,
            outcome: Outcome::Failed(error.clone()),
        });
        Some(error)
    }
}

impl<F> Drop for Flights<'_, F> {
    fn drop(&mut self) {
        self.tell(&Outcome::Abandoned);
    }
}

impl Furthest {
    fn see(&mut self, error: ConnectError, at_once: bool) {
        let rank = error.rank(at_once);
        if self.0.as_ref().is_none_or(|(best, _)| rank > *best) {
            self.0 = Some((rank, error));
        }
    }
}

#[cfg(test)]
mod tests;
