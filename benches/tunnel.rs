//! What following the handshake costs a tunnel: set-up rate and CPU time with the ledger and without, pair by pair.
//!
//! `cargo bench --bench tunnel [pairs]`. Each run carries 2,000 tunnels one after another over loopback: accept, connect to
//! the server, a TLS 1.3 handshake with a request and its answer as recorded bytes (no cryptography, so that the difference
//! is not hidden behind it), and the end with both TCP_INFO calls. Prints medians and the ratio of each pair.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench"
)]

use std::sync::Arc;
use std::time::{Duration, Instant as Wall};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use routecause::net::socket::Socket;
use routecause::relay::{Early, Limits, Meter, Reason, Watch, relay};
use routecause::tls::ledger::Ledger;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;

const TUNNELS: usize = 2000;

/// One side's turns, in the order of a talk.
type Talk = Vec<(bool, Vec<u8>)>;

/// Follows, or does not.
struct Follow {
    ledger: Option<Ledger>,
    sockets: [Socket; 2],
}

impl Watch for Follow {
    fn is_satisfied(&self) -> bool {
        self.ledger.as_ref().is_none_or(Ledger::is_over)
    }

    fn client(&mut self, bytes: &[u8], now: Instant) {
        if let Some(ledger) = &mut self.ledger {
            ledger.client(bytes, now);
        }
    }

    fn server(&mut self, bytes: &[u8], now: Instant) {
        if let Some(ledger) = &mut self.ledger {
            ledger.server(bytes, now);
        }
    }

    fn event(&mut self, _: &Reason, _: Instant) {
        if self.ledger.is_some() {
            for socket in &self.sockets {
                std::hint::black_box(socket.tcp_info().unwrap());
            }
        }
    }

    fn is_final(&self, _: &Reason) -> bool {
        false
    }
}

/// A handshake of rustls with a request and its answer, as bytes.
fn talk() -> Talk {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let certificate = CertificateDer::from(cert.der().to_vec());
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
    let mut talk = Talk::new();
    for round in 0..3 {
        let mut bytes = Vec::new();
        if round == 1 {
            std::io::Write::write_all(&mut client.writer(), &[7; 200]).unwrap();
        }
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets().unwrap();
        talk.push((true, bytes));
        if round == 1 {
            std::io::Write::write_all(&mut server.writer(), &[7; 1000]).unwrap();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        client.read_tls(&mut &bytes[..]).unwrap();
        client.process_new_packets().unwrap();
        talk.push((false, bytes));
    }
    talk.retain(|(_, bytes)| !bytes.is_empty());
    talk
}

async fn pair(listener: &TcpListener) -> (Socket, Socket) {
    let dial = TcpSocket::new_v4().unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(dial.connect(address), listener.accept());
    (
        Socket::new(near.unwrap()).unwrap(),
        Socket::new(far.unwrap().0).unwrap(),
    )
}

async fn tunnel(listener: &TcpListener, talk: &Talk, is_followed: bool) {
    let (mut client, mut near) = pair(listener).await;
    let (mut far, mut server) = pair(listener).await;
    let limits = Limits {
        idle: Duration::from_hours(1),
        half_closed_idle: Duration::from_mins(1),
        max_duration: None,
    };
    let meter = Meter::default();
    let mut follow = Follow {
        ledger: is_followed.then(Ledger::default),
        sockets: [near.clone(), far.clone()],
    };
    let carried = relay(
        &mut near,
        &mut far,
        Early::default(),
        &limits,
        &meter,
        &mut follow,
    );
    let spoken = async {
        let mut buffer = vec![0; 16 * 1024];
        for (is_client, bytes) in talk {
            let (from, to) = if *is_client {
                (&mut client, &mut server)
            } else {
                (&mut server, &mut client)
            };
            from.write_all(bytes).await.unwrap();
            let (part, _) = buffer.split_at_mut(bytes.len());
            to.read_exact(part).await.unwrap();
        }
        client.shutdown().await.unwrap();
        server.read_to_end(&mut buffer).await.unwrap();
        server.shutdown().await.unwrap();
    };
    tokio::join!(carried, spoken);
}

/// Tunnels a second, and CPU time of one in microseconds.
fn run(runtime: &tokio::runtime::Runtime, talk: &Talk, is_followed: bool) -> (f64, f64) {
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        (usage.user_time() + usage.system_time()).num_microseconds()
    };
    let (began, spent) = (Wall::now(), cpu());
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..TUNNELS {
            tunnel(&listener, talk, is_followed).await;
        }
    });
    let count = TUNNELS as f64;
    (
        count / began.elapsed().as_secs_f64(),
        (cpu() - spent) as f64 / count,
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
        .unwrap_or(15);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let talk = talk();
    run(&runtime, &talk, true);
    let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..pairs {
        // Each goes first in turn.
        let first = run(&runtime, &talk, turn % 2 == 0);
        let second = run(&runtime, &talk, turn % 2 != 0);
        let (on, off) = if turn % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        };
        ratios.push((on.0 / off.0, on.1 / off.1));
        with.push(on);
        without.push(off);
    }
    let rate = |runs: &[(f64, f64)]| median(runs.iter().map(|run| run.0).collect());
    let cpu = |runs: &[(f64, f64)]| median(runs.iter().map(|run| run.1).collect());
    println!("{pairs} pairs of {TUNNELS} tunnels, medians");
    println!("            tunnels/s   CPU µs each");
    println!("ledger      {:>9.0}   {:>11.1}", rate(&with), cpu(&with));
    println!(
        "none        {:>9.0}   {:>11.1}",
        rate(&without),
        cpu(&without)
    );
    println!(
        "ratio       {:>9.3}   {:>11.3}",
        rate(&ratios),
        cpu(&ratios)
    );
}
