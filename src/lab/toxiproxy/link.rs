//! A connection with toxics on it, which may come and go while it is open.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::toxic::{Harm, Stream, Toxic};

/// The toxics of a proxy.
pub(super) type Toxics = Arc<Vec<Arc<Toxic>>>;

/// One read.
const CHUNK: usize = 16 * 1024;

/// So many reads are held while they are late.
const HELD: usize = 256;

/// What passes slowly passes in pieces of so many milliseconds.
const PIECE_MS: u64 = 100;

/// A day: nobody waits longer.
const LONGEST_MS: u64 = 24 * 60 * 60 * 1000;

/// How a direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By itself.
    Told,
    /// The whole connection is closed.
    Cut,
    /// The whole connection is reset.
    Reset,
}

/// Carries bytes both ways until both have ended, or a toxic ends it. `strikes` is called when one has an effect.
pub(super) async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    toxics: watch::Receiver<Toxics>,
    strikes: &(dyn Fn() + Sync),
) -> io::Result<()> {
    let end = both_ways(&mut client, &mut server, toxics, strikes).await?;
    if end == End::Reset {
        for stream in [&client, &server] {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
        }
    }
    Ok(())
}

/// Carries bytes both ways; how that ended.
async fn both_ways(
    client: &mut TcpStream,
    server: &mut TcpStream,
    toxics: watch::Receiver<Toxics>,
    strikes: &(dyn Fn() + Sync),
) -> io::Result<End> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let lane = |stream| Lane {
        stream,
        toxics: toxics.clone(),
        known: HashMap::new(),
        strikes,
    };
    let mut up = pin!(lane(Stream::Upstream).run(from_client, to_server));
    let mut down = pin!(lane(Stream::Downstream).run(from_server, to_client));
    let (mut up_end, mut down_end) = (None, None);
    loop {
        tokio::select! {
            end = &mut up, if up_end.is_none() => up_end = Some(end?),
            end = &mut down, if down_end.is_none() => down_end = Some(end?),
        }
        match (up_end, down_end) {
            (Some(End::Reset), _) | (_, Some(End::Reset)) => return Ok(End::Reset),
            (Some(End::Cut), _) | (_, Some(End::Cut)) => return Ok(End::Cut),
            (Some(End::Told), Some(End::Told)) => return Ok(End::Told),
            (Some(End::Told) | None, _) => {}
        }
    }
}

/// One direction.
struct Lane<'s> {
    stream: Stream,
    toxics: watch::Receiver<Toxics>,
    known: HashMap<String, Known>,
    strikes: &'s (dyn Fn() + Sync),
}

/// A toxic as this direction has met it.
struct Known {
    toxic: Arc<Toxic>,
    since: Instant,
    /// Whether it is one that has it.
    is_struck: bool,
    /// How many bytes have passed since.
    passed: u64,
}

/// When something came, and what.
type Read = (Instant, Bytes);

impl Lane<'_> {
    async fn run(mut self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> io::Result<End> {
        let (sender, held) = mpsc::channel(HELD);
        let mut writes = pin!(self.write(held, to));
        let mut reads = pin!(read(from, sender));
        tokio::select! {
            end = &mut writes => return end,
            ended = &mut reads => ended?,
        }
        writes.await
    }

    /// Passes on what is read, as the toxics of the moment let it.
    async fn write(
        &mut self,
        mut held: mpsc::Receiver<Read>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<End> {
        loop {
            self.meet();
            let (end, deadline) = match self.deadline() {
                Some((end, at)) if at <= Instant::now() => {
                    (self.strikes)();
                    return Ok(end);
                }
                Some((_, at)) => (true, at),
                None => (false, Instant::now()),
            };
            tokio::select! {
                changed = self.toxics.changed() => if changed.is_err() {
                    // The proxy is gone, and its connections with it.
                    return Ok(End::Cut);
                },
                () = sleep_until(deadline), if end => {}
                read = held.recv() => {
                    let Some((at, bytes)) = read else {
                        self.wait_for_the_end().await;
                        to.shutdown().await?;
                        return Ok(End::Told);
                    };
                    if let Some(end) = self.pass(at, bytes, &mut to).await? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// Takes up the toxics of the moment.
    fn meet(&mut self) {
        let toxics = self.toxics.borrow_and_update().clone();
        let of_stream = |toxic: &&Arc<Toxic>| toxic.stream == self.stream;
        let mut known = std::mem::take(&mut self.known);
        for toxic in toxics.iter().filter(of_stream) {
            let before = known
                .remove(&toxic.name)
                .filter(|known| known.toxic == *toxic);
            let met = before.unwrap_or_else(|| Known {
                toxic: toxic.clone(),
                since: Instant::now(),
                is_struck: fastrand::f64() < toxic.toxicity,
                passed: 0,
            });
            self.known.insert(toxic.name.clone(), met);
        }
    }

    fn struck(&self) -> impl Iterator<Item = (Harm, Instant)> {
        let struck = self.known.values().filter(|known| known.is_struck);
        struck.map(|known| (known.toxic.harm, known.since))
    }

    /// When a toxic ends the connection, and how.
    fn deadline(&self) -> Option<(End, Instant)> {
        let ends = self.struck().filter_map(|(harm, since)| match harm {
            Harm::Timeout { timeout: 0 } => None,
            Harm::Timeout { timeout } => Some((End::Cut, since + wait(timeout))),
            Harm::ResetPeer { timeout } => Some((End::Reset, since + wait(timeout))),
            Harm::Latency { .. }
            | Harm::Bandwidth { .. }
            | Harm::SlowClose { .. }
            | Harm::Slicer { .. }
            | Harm::LimitData { .. } => None,
        });
        ends.min_by_key(|(_, at)| *at)
    }

    /// Passes on what came at some moment, unless that ends the connection.
    async fn pass(
        &mut self,
        at: Instant,
        mut bytes: Bytes,
        to: &mut WriteHalf<'_>,
    ) -> io::Result<Option<End>> {
        let (mut late, mut rate, mut slices) = (Duration::ZERO, None, None);
        for (harm, _) in self.struck() {
            match harm {
                // Nothing passes.
                Harm::Timeout { .. } | Harm::ResetPeer { .. } => return Ok(None),
                Harm::Latency { latency, jitter } => {
                    let more = fastrand::u64(0..=jitter.saturating_mul(2));
                    let ms = latency.saturating_add(more).saturating_sub(jitter);
                    late = late.saturating_add(wait(ms));
                }
                Harm::Bandwidth { rate: 0 } => {}
                Harm::Bandwidth { rate: of_it } => {
                    rate = Some(rate.map_or(of_it, |rate: u64| rate.min(of_it)));
                }
                Harm::Slicer {
                    average_size,
                    size_variation,
                    delay,
                } => slices = Some((average_size.max(1), size_variation, delay)),
                Harm::LimitData { .. } | Harm::SlowClose { .. } => {}
            }
        }
        if late > Duration::ZERO {
            (self.strikes)();
            sleep_until(at + late.min(wait(LONGEST_MS))).await;
        }
        let is_over = self.limit(&mut bytes);
        if slices.is_some() || rate.is_some() || is_over {
            (self.strikes)();
        }
        while !bytes.is_empty() {
            let slice = match slices {
                Some((average, variation, _)) => {
                    let size =
                        average.saturating_add(fastrand::u64(0..=variation.saturating_mul(2)));
                    size.saturating_sub(variation).max(1)
                }
                None => bytes.len() as u64,
            };
            let most = rate.map_or(slice, |rate| slice.min(rate.saturating_mul(PIECE_MS)));
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
            let piece = bytes.split_to(most);
            to.write_all(&piece).await?;
            if let Some(rate) = rate {
                // Kilobytes a second are bytes a millisecond.
                sleep(Duration::from_micros(piece.len() as u64 * 1000 / rate)).await;
            }
            if let Some((.., delay)) = slices {
                sleep(Duration::from_micros(delay).min(wait(LONGEST_MS))).await;
            }
        }
        Ok(is_over.then_some(End::Cut))
    }

    /// Cuts off what is more than may pass; whether that is the end.
    fn limit(&mut self, bytes: &mut Bytes) -> bool {
        let mut is_over = false;
        for known in self.known.values_mut().filter(|known| known.is_struck) {
            if let Harm::LimitData { bytes: most } = known.toxic.harm {
                let left = most.saturating_sub(known.passed);
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                known.passed += bytes.len() as u64;
                is_over |= known.passed >= most;
            }
        }
        is_over
    }

    async fn wait_for_the_end(&self) {
        let delays = self.struck().filter_map(|(harm, _)| match harm {
            Harm::SlowClose { delay } => Some(delay),
            Harm::Latency { .. }
            | Harm::Bandwidth { .. }
            | Harm::Timeout { .. }
            | Harm::ResetPeer { .. }
            | Harm::Slicer { .. }
            | Harm::LimitData { .. } => None,
        });
        if let Some(delay) = delays.max() {
            (self.strikes)();
            sleep(wait(delay)).await;
        }
    }
}

/// Milliseconds as a wait.
fn wait(ms: u64) -> Duration {
    Duration::from_millis(ms.min(LONGEST_MS))
}

/// Reads to the end, no faster than what is read is taken.
async fn read(mut from: ReadHalf<'_>, to: mpsc::Sender<Read>) -> io::Result<()> {
    loop {
        let mut bytes = BytesMut::with_capacity(CHUNK);
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        if to.send((Instant::now(), bytes.freeze())).await.is_err() {
            return Ok(());
        }
    }
}
