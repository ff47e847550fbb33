//! What bulk costs a relay: throughput and CPU time of the relay's thread alone, copied and spliced, pair by pair.
//!
//! `cargo bench --bench relay [pairs]`. Each run carries 512 MiB over loopback, in one stream or in eight; a thread sends
//! and another one reads, beside the one that relays. Prints medians and the ratio of each pair.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench"
)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant as Wall};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use routecause::net::socket::Socket;
use routecause::relay::{Early, Limits, Meter, Reason, Watch, relay};
use tokio::time::Instant;

const BYTES: usize = 512 << 20;
const PIECE: usize = 128 << 10;

/// Wants to see everything, or nothing.
struct Eyes {
    are_shut: bool,
}

impl Watch for Eyes {
    fn is_satisfied(&self) -> bool {
        self.are_shut
    }

    fn client(&mut self, _: &[u8], _: Instant) {}

    fn server(&mut self, _: &[u8], _: Instant) {}

    fn event(&mut self, _: &Reason, _: Instant) {}

    fn is_final(&self, _: &Reason) -> bool {
        false
    }
}

/// Two ends of a connection; the second one for the relay.
fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let near = listener.accept().unwrap().0;
    near.set_nonblocking(true).unwrap();
    (far, near)
}

async fn carry(client: TcpStream, server: TcpStream, is_spliced: bool) {
    let socket = |stream| Socket::new(tokio::net::TcpStream::from_std(stream).unwrap()).unwrap();
    let (mut client, mut server) = (socket(client), socket(server));
    let limits = Limits {
        idle: Duration::from_mins(1),
        half_closed_idle: Duration::from_mins(1),
        max_duration: None,
    };
    let mut eyes = Eyes {
        are_shut: is_spliced,
    };
    let meter = Meter::default();
    relay(
        &mut client,
        &mut server,
        Early::default(),
        &limits,
        &meter,
        &mut eyes,
    )
    .await;
}

/// GiB a second, and CPU seconds of the relay's thread a GiB.
fn run(streams: usize, is_spliced: bool) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut peers, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..streams {
        let (client, near) = pair(&listener);
        let (server, far) = pair(&listener);
        peers.push((client, server));
        ours.push((near, far));
    }
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        (usage.user_time() + usage.system_time()).num_microseconds()
    };
    let (began, spent) = (Wall::now(), cpu());
    thread::scope(|scope| {
        for (mut client, mut server) in peers {
            scope.spawn(move || {
                let piece = vec![7; PIECE];
                for _ in 0..BYTES / streams / PIECE {
                    server.write_all(&piece).unwrap();
                }
            });
            scope.spawn(move || {
                let mut piece = vec![0; PIECE];
                while client.read(&mut piece).unwrap() > 0 {}
            });
        }
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for (client, server) in ours {
                tasks.spawn(carry(client, server, is_spliced));
            }
            tasks.join_all().await;
        });
    });
    let gib = BYTES as f64 / f64::from(1 << 30);
    (
        gib / began.elapsed().as_secs_f64(),
        (cpu() - spent) as f64 / 1e6 / gib,
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let pairs = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(5);
    println!("{pairs} pairs of 512 MiB, medians");
    println!("streams              GiB/s   CPU s/GiB");
    for streams in [1, 8] {
        run(streams, true);
        let (mut spliced, mut copied) = (Vec::new(), Vec::new());
        for turn in 0..pairs {
            // Each goes first in turn.
            let first = run(streams, turn % 2 == 0);
            let second = run(streams, turn % 2 != 0);
            let (splice, copy) = if turn % 2 == 0 {
                (first, second)
            } else {
                (second, first)
            };
            spliced.push(splice);
            copied.push(copy);
        }
        let ratios = spliced.iter().zip(&copied);
        let ratios: Vec<_> = ratios
            .map(|(splice, copy)| (splice.0 / copy.0, splice.1 / copy.1))
            .collect();
        for (name, runs) in [
            ("spliced", &spliced),
            ("copied", &copied),
            ("ratio", &ratios),
        ] {
            let rate = median(runs.iter().map(|run| run.0).collect());
            let cpu = median(runs.iter().map(|run| run.1).collect());
            println!("{streams:>7} {name:<9} {rate:>8.2}   {cpu:>9.3}");
        }
    }
}
