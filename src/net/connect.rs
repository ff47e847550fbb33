//! Opens a TCP connection to the first of several addresses that answers: happy eyeballs.
//!
//! Source: RFC 8305, sections 4 and 5. Sorting by RFC 6724 is left to whoever ordered the addresses.

mod attempt;
mod error;
mod judge;

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::attempt::{Attempt, Broken, Syn};
pub use self::error::{ConnectError, Icmp};
use self::judge::{judge, timed_out};
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
    /// What its packets are like.
    pub shape: Shape,
}

/// What the packets of a connection are like; as the system has them where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The largest segment (TCP MSS), in bytes.
    pub mss: Option<u32>,
    /// So many routers may pass them on, and one receive them (IP TTL, hop limit).
    pub hops: Option<u32>,
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
    Connected {
        /// SYNs beyond the first: those before were lost, or their answers were.
        retransmissions: u32,
    },
    /// No connection.
    Failed(ConnectError),
    /// Whoever asked left while no answer had come.
    Abandoned,
    /// Another address answered first.
    Overtaken,
}

impl Outcome {
    /// The ICMP message that it failed of.
    pub fn icmp(&self) -> Option<Icmp> {
        match self {
            Self::Failed(error) => error.icmp(),
            Self::Connected { .. } | Self::Abandoned | Self::Overtaken => None,
        }
    }
}

/// Finds further addresses; asked once at most.
pub type More<'a> =
    &'a (dyn Fn() -> Pin<Box<dyn Future<Output = Vec<Admitted>> + Send + 'a>> + Sync);

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
/// Where all of them have failed, or the last one is silent for `limits.per_address`, `more` is asked for others, which are
/// tried within the same limits.
///
/// # Errors
/// That of the address that got furthest: an answer of the host before one from the way, before silence, before what never
/// left this host; of equals the one that says more.
pub async fn connect(
    addresses: &[Admitted],
    zone: Option<&str>,
    limits: &Limits,
    note: &(dyn Fn(Try) + Sync),
    more: Option<More<'_>>,
) -> Result<Socket, ConnectError> {
    let send = |address| Syn::send(address, zone, limits.shape);
    race(in_turn(addresses), limits, note, send, more).await
}

fn in_turn(admitted: &[Admitted]) -> Vec<SocketAddr> {
    let addresses: Vec<_> = admitted.iter().map(|a| a.address()).collect();
    interleave(&addresses)
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
    if let [_] = addresses {
        return addresses.to_vec();
    }
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
struct Flight<A> {
    address: SocketAddr,
    started: Instant,
    attempt: A,
}

/// The addresses under way, oldest first. What is left in it when it is dropped was abandoned.
struct Flights<'a, A> {
    list: Vec<Flight<A>>,
    note: &'a (dyn Fn(Try) + Sync),
}

/// The failure that got furthest so far.
#[derive(Default)]
struct Furthest(Option<ConnectError>);

async fn race<A: Attempt>(
    addresses: Vec<SocketAddr>,
    limits: &Limits,
    note: &(dyn Fn(Try) + Sync),
    begin: impl Fn(SocketAddr) -> Result<A, Broken>,
    mut more: Option<More<'_>>,
) -> Result<A::Connection, ConnectError> {
    let deadline = Instant::now() + limits.total;
    let mut next_start = Instant::now();
    let mut waiting = VecDeque::from(addresses);
    let mut asking = None;
    let list = Vec::new();
    let mut flights = Flights { list, note };
    let mut furthest = Furthest::default();
    loop {
        let now = Instant::now();
        if now >= deadline {
            while let Some(error) = flights.time_out_oldest() {
                furthest.see(error);
            }
            break;
        }
        if now >= next_start
            && let Some(address) = waiting.pop_front()
        {
            match begin(address) {
                Ok(attempt) => flights.list.push(Flight {
                    address,
                    started: now,
                    attempt,
                }),
                Err(broken) => {
                    furthest.see(flights.tell_failed(address, now.elapsed(), broken));
                    continue;
                }
            }
            next_start = now + limits.stagger;
        }
        let mut wake = deadline;
        if !waiting.is_empty() {
            wake = wake.min(next_start);
        } else if let Some(find) = more.filter(|_| furthest.is_worth_asking_anew()) {
            let newest = flights.list.last();
            let late = newest.map_or(now, |newest| newest.started + limits.per_address);
            if now >= late {
                asking = Some(find());
                more = None;
            } else {
                wake = wake.min(late);
            }
        }
        let oldest = flights.list.first();
        if oldest.is_none() && waiting.is_empty() && asking.is_none() {
            break;
        }
        if let Some(oldest) = oldest
            && (!waiting.is_empty() || flights.list.len() > 1)
        {
            let late = oldest.started + limits.per_address;
            if now >= late {
                if let Some(error) = flights.time_out_oldest() {
                    furthest.see(error);
                }
                next_start = now;
                continue;
            }
            wake = wake.min(late);
        }
        let (landed, result) = tokio::select! {
            biased;
            landed = flights.landed() => landed,
            found = found(&mut asking) => {
                waiting.extend(in_turn(&found));
                asking = None;
                next_start = Instant::now();
                continue;
            }
            () = sleep_until(wake) => continue,
        };
        let (address, took) = (landed.address, landed.started.elapsed());
        let finished = result.and_then(|()| {
            landed.attempt.finish().map_err(|source| Broken {
                source,
                seen: judge::Evidence::default(),
            })
        });
        match finished {
            Ok((connection, retransmissions)) => {
                // Told first, so that the last one told is the one that is used.
                flights.tell(&Outcome::Overtaken);
                note(Try {
                    address,
                    took,
                    outcome: Outcome::Connected { retransmissions },
                });
                return Ok(connection);
            }
            Err(broken) => furthest.see(flights.tell_failed(address, took, broken)),
        }
        next_start = Instant::now();
    }
    Err(furthest.0.unwrap_or(ConnectError::NoAddresses))
}

/// What is found, once it is asked for.
async fn found<F: Future<Output = Vec<Admitted>> + Unpin>(asking: &mut Option<F>) -> Vec<Admitted> {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}

impl<A: Attempt> Flights<'_, A> {
    /// Waits for any attempt's answer and takes it out.
    async fn landed(&mut self) -> (Flight<A>, Result<(), Broken>) {
        poll_fn(|cx| {
            for (index, flight) in self.list.iter_mut().enumerate() {
                if let Poll::Ready(result) = flight.attempt.poll(cx) {
                    return Poll::Ready((self.list.remove(index), result));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn time_out_oldest(&mut self) -> Option<ConnectError> {
        if self.list.is_empty() {
            return None;
        }
        let flight = self.list.remove(0);
        let after = flight.started.elapsed();
        // Asked while the socket is still open.
        let error = timed_out(flight.address, after, &flight.attempt.seen());
        self.tell_error(flight.address, after, &error);
        Some(error)
    }

    fn tell_failed(&self, address: SocketAddr, took: Duration, broken: Broken) -> ConnectError {
        let error = judge(address, took, broken.source, &broken.seen);
        self.tell_error(address, took, &error);
        error
    }
}

impl<A> Flights<'_, A> {
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

    fn tell_error(&self, address: SocketAddr, took: Duration, error: &ConnectError) {
        (self.note)(Try {
            address,
            took,
            outcome: Outcome::Failed(error.clone()),
        });
    }
}

impl<A> Drop for Flights<'_, A> {
    fn drop(&mut self) {
        self.tell(&Outcome::Abandoned);
    }
}

impl Furthest {
    /// Whether others than those that have failed are worth being asked for.
    fn is_worth_asking_anew(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(ConnectError::is_worth_asking_anew)
    }

    fn see(&mut self, error: ConnectError) {
        if self
            .0
            .as_ref()
            .is_none_or(|best| error.rank() > best.rank())
        {
            self.0 = Some(error);
        }
    }
}

#[cfg(test)]
mod tests;
