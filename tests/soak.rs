//! A mixed load with faults, for a chosen time: nothing is lost, nothing leaks, every request leaves one record.
//!
//! Five seconds, or as many as `ROUTECAUSE_TEST_SOAK` says: `ROUTECAUSE_TEST_SOAK=600 cargo test --release --test soak`. It
//! prints its figures.

#![expect(
    clippy::semicolon_if_nothing_returned,
    reason = "an act is one expression"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::origin::Origin;
use support::process::Peer;
use support::{Proxy, SOON, wire};

/// Clients that ask at once.
const CLIENTS: usize = 4;

/// What the load asks through.
#[derive(Clone)]
struct World {
    proxy: SocketAddr,
    origin: SocketAddr,
    nowhere: SocketAddr,
}

/// An origin that does to each connection what its client asks for: by the path of a request, or by the first letter in a
/// tunnel.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream
                .set_read_timeout(Some(Duration::from_mins(1)))
                .unwrap();
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut first = [0];
    loop {
        if !matches!(stream.read(&mut first), Ok(1)) {
            return;
        }
        match first[0] {
            b'r' => return wire::reset(stream),
            b'f' => return,
            b'e' => {
                let mut room = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut room) {
                    if stream.write_all(&room[..count]).is_err() {
                        return;
                    }
                }
                return;
            }
            0x16 => return wire::reset(stream),
            _ => {}
        }
        let Some((line, length)) = request(&mut stream) else {
            return;
        };
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer: Vec<u8> = match path.as_str() {
            "/reset" => return wire::reset(stream),
            "/close" => return,
            "/cut" => b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc".to_vec(),
            "/chunk" => {
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n".to_vec()
            }
            "/garbage" => b"\x16\x03\x01 this is no HTTP\r\n\r\n".to_vec(),
            "/101" => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nx".to_vec(),
            "/head" => [
                &b"HTTP/1.1 200 OK\r\nX: "[..],
                &vec![b'x'; 600_000],
                b"\r\n\r\n",
            ]
            .concat(),
            "/407" => b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "/500" => b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "/big" => [
                &b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"[..],
                &vec![b'x'; 1_000_000],
            ]
            .concat(),
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
        };
        if stream.write_all(&answer).is_err()
            || ["/cut", "/chunk", "/garbage", "/101", "/head"].contains(&&*path)
        {
            return;
        }
    }
}

/// Reads a request's head, but for its first byte, and how long its body is.
fn request(stream: &mut TcpStream) -> Option<(String, usize)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = wire::field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    Some((head, length))
}

/// Sends something and waits for the end, whichever it is.
fn talk(world: &World, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut stream = wire::connect(world.proxy);
    stream.set_read_timeout(Some(SOON * 6)).unwrap();
    let mut heard = Vec::new();
    let _ = stream.write_all(bytes.as_ref());
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut heard);
    heard
}

fn get(host: impl std::fmt::Display, path: &str, more: &str) -> String {
    format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")
}

fn connect(host: impl std::fmt::Display) -> String {
    format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// A tunnel through which this was said; nothing where it was not granted.
fn tunnel(world: &World, host: impl std::fmt::Display, words: &[u8]) -> Option<TcpStream> {
    let mut stream = wire::connect(world.proxy);
    stream.write_all(connect(host).as_bytes()).ok()?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return None;
        }
        head.push(byte[0]);
    }
    let is_granted = head.starts_with(b"HTTP/1.1 200");
    let _ = stream.write_all(words);
    is_granted.then_some(stream)
}

/// Waits for the end of a tunnel that was granted.
fn listen_to(stream: Option<TcpStream>) {
    if let Some(stream) = stream {
        wire::read_or_reset(&stream);
    }
}

/// Leaves with a reset, after so much was sent.
fn leave(world: &World, bytes: &[u8]) {
    let mut stream = wire::connect(world.proxy);
    let _ = stream.write_all(bytes);
    wire::reset(stream);
}

/// One thing that a client does; each leaves one record, and its name is what is wrong with it.
type Act = (&'static str, fn(&World));

const ACTS: &[Act] = &[
    ("nothing: a request", |w| {
        assert!(talk(w, get(w.origin, "/", "")).ends_with(b"ok"))
    }),
    ("nothing: an upload", |w| {
        let head = format!(
            "POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: 70000\r\n\r\n",
            w.origin
        );
        assert!(talk(w, [head.as_bytes(), &vec![b'x'; 70_000]].concat()).ends_with(b"ok"));
    }),
    ("nothing: a download", |w| {
        assert!(talk(w, get(w.origin, "/big", "")).len() > 1_000_000)
    }),
    ("nothing: a tunnel", |w| {
        let mut stream = tunnel(w, w.origin, b"echo").unwrap();
        assert_eq!(wire::read_exact(&stream, 3), b"cho");
        let sent = vec![7; 50_000];
        stream.write_all(&sent).unwrap();
        assert_eq!(wire::read_exact(&stream, 50_000), sent);
    }),
    ("nothing: SOCKS5", |w| {
        let stream = wire::connect(w.proxy);
        wire::send(&stream, [5, 1, 0]);
        wire::read_exact(&stream, 2);
        wire::send(
            &stream,
            [
                &[5, 1, 0, 1, 127, 0, 0, 1][..],
                &w.origin.port().to_be_bytes(),
            ]
            .concat(),
        );
        assert_eq!(wire::read_exact(&stream, 10)[1], 0);
        wire::send(&stream, b"eping");
        assert_eq!(wire::read_exact(&stream, 4), b"ping");
    }),
    ("an upstream that comes and goes, asked for a page", |w| {
        drop(talk(w, get("far.test", "/", "")))
    }),
    ("an upstream that comes and goes, asked for a tunnel", |w| {
        drop(tunnel(w, "far.test:443", b"eping"))
    }),
    ("nobody listens", |w| drop(talk(w, get(w.nowhere, "/", "")))),
    ("nobody listens behind a tunnel", |w| {
        drop(talk(w, connect(w.nowhere)))
    }),
    ("a name server that is down", |w| {
        drop(talk(w, get("lost.test", "/", "Connection: close\r\n")))
    }),
    ("a rule that blocks", |w| {
        drop(talk(w, get("blocked.test", "/", "")))
    }),
    ("a guard that refuses", |w| {
        drop(talk(w, connect("169.254.169.254:80")))
    }),
    ("a port of the never-list", |w| {
        drop(talk(w, connect("127.0.0.1:25")))
    }),
    ("no HTTP", |w| drop(talk(w, "nonsense\r\n\r\n"))),
    ("two lengths", |w| {
        drop(talk(
            w,
            get(w.origin, "/", "Content-Length: 1\r\nContent-Length: 2\r\n"),
        ))
    }),
    ("another Host", |w| {
        drop(talk(
            w,
            format!("GET http://{}/ HTTP/1.1\r\nHost: b\r\n\r\n", w.origin),
        ))
    }),
    ("a head over its limit", |w| {
        drop(talk(
            w,
            get(w.origin, "/", &format!("X: {}\r\n", "x".repeat(70_000))),
        ))
    }),
    ("TLS on the port of HTTP", |w| {
        drop(talk(w, [0x16, 3, 1, 0, 9]))
    }),
    ("SOCKS4", |w| drop(talk(w, [4, 1, 0, 80, 127, 0, 0, 1, 0]))),
    ("HTTP/2 without TLS", |w| {
        drop(talk(w, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
    }),
    ("a client that leaves without a word", |w| {
        drop(wire::connect(w.proxy))
    }),
    ("a client that resets without a word", |w| leave(w, b"")),
    ("a client that leaves in mid head", |w| {
        drop(talk(w, "GET http://"))
    }),
    ("a client that resets in mid head", |w| {
        leave(w, b"GET http://a")
    }),
    ("a client that resets behind its request", |w| {
        leave(w, get(w.origin, "/big", "").as_bytes())
    }),
    ("a client that resets in mid upload", |w| {
        leave(
            w,
            format!(
                "POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: 9\r\n\r\nabc",
                w.origin
            )
            .as_bytes(),
        );
    }),
    ("a client that leaves in mid upload", |w| {
        drop(talk(
            w,
            format!(
                "POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
                w.origin
            ),
        ));
    }),
    ("a client that stops reading and leaves", |w| {
        let mut stream = wire::connect(w.proxy);
        stream
            .write_all(get(w.origin, "/big", "").as_bytes())
            .unwrap();
        let _ = stream.read(&mut [0; 100]);
    }),
    ("a client that resets its tunnel", |w| {
        if let Some(stream) = tunnel(w, w.origin, b"eping") {
            wire::reset(stream);
        }
    }),
    ("a client that resets before its tunnel stands", |w| {
        leave(w, connect(w.origin).as_bytes())
    }),
    ("a broken chunk", |w| {
        drop(talk(
            w,
            format!(
                "POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                w.origin
            ),
        ));
    }),
    ("a server that resets its tunnel", |w| {
        listen_to(tunnel(w, w.origin, b"r"))
    }),
    ("a server that ends its tunnel", |w| {
        listen_to(tunnel(w, w.origin, b"f"))
    }),
    ("a server that resets behind the ClientHello", |w| {
        listen_to(tunnel(w, w.origin, &[0x16, 3, 1, 0, 50, 1, 0, 0, 46]));
    }),
    ("an origin that resets", |w| {
        drop(talk(w, get(w.origin, "/reset", "")))
    }),
    ("an origin that closes", |w| {
        drop(talk(w, get(w.origin, "/close", "")))
    }),
    ("an origin that is cut", |w| {
        drop(talk(w, get(w.origin, "/cut", "")))
    }),
    ("an origin's broken chunk", |w| {
        drop(talk(w, get(w.origin, "/chunk", "")))
    }),
    ("an origin that speaks no HTTP", |w| {
        drop(talk(w, get(w.origin, "/garbage", "")))
    }),
    ("an origin that upgrades unasked", |w| {
        drop(talk(w, get(w.origin, "/101", "")))
    }),
    ("an origin's endless head", |w| {
        drop(talk(w, get(w.origin, "/head", "")))
    }),
    ("an origin that asks for proxy credentials", |w| {
        drop(talk(w, get(w.origin, "/407", "")))
    }),
    ("an origin that fails", |w| {
        drop(talk(w, get(w.origin, "/500", "")))
    }),
];

fn policy(upstream: SocketAddr, mark: &str) -> String {
    format!(
        "version: 1
# {mark}
upstreams: {{far: {{url: 'http://{upstream}'}}}}
dns:
  default: down
  servers: {{down: {{udp: ['127.0.0.1:9']}}}}
rules:
  - {{name: blocked, match: {{host: blocked.test}}, block: {{reason: soak}}}}
  - {{name: far, match: {{host: far.test}}, via: far}}
default: {{direct: true}}
defaults: {{timeouts: {{dns: 1s, connect: 2s, proxy_reply: 5s, first_byte: 5s}}}}
"
    )
}

/// Runs the load for so long; how often each act was done.
fn load(world: &World, time: Duration) -> Vec<u64> {
    let counts: Vec<AtomicU64> = ACTS.iter().map(|_| AtomicU64::new(0)).collect();
    let until = Instant::now() + time;
    std::thread::scope(|scope| {
        for first in 0..CLIENTS {
            let (counts, world) = (&counts, world);
            scope.spawn(move || {
                // Each begins elsewhere, and steps by a number that has no divisor in common with theirs.
                let mut at = first * ACTS.len() / CLIENTS;
                let mut round = 0;
                while Instant::now() < until || round < ACTS.len() {
                    let (_, act) = ACTS[at % ACTS.len()];
                    act(world);
                    counts[at % ACTS.len()].fetch_add(1, Ordering::Relaxed);
                    at += 1;
                    round += 1;
                }
            });
        }
    });
    counts.into_iter().map(AtomicU64::into_inner).collect()
}

/// Hands on the text of every file of a log.
fn each_file(folder: &Path, mut read: impl FnMut(&str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("log")
        {
            read(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Waits until there are so many records; how many there are then.
fn wait_for(folder: &Path, count: usize) -> usize {
    let deadline = Instant::now() + SOON * 2;
    loop {
        let mut there = 0;
        each_file(folder, |text| there += text.lines().count());
        if there >= count || Instant::now() > deadline {
            return there;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The causes in every record, each of which must be whole.
fn causes(folder: &Path) -> BTreeSet<String> {
    let mut causes = BTreeSet::new();
    each_file(folder, |text| {
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_ne!(record["error.type"], "proxy.internal", "{record:#}");
            causes.extend(record["error.type"].as_str().map(str::to_owned));
        }
    });
    causes
}

#[test]
fn nothing_is_lost_and_nothing_leaks() {
    let seconds =
        std::env::var("ROUTECAUSE_TEST_SOAK").map_or(5, |seconds| seconds.parse().unwrap());
    let time = Duration::from_secs(seconds);
    let folder = tempfile::tempdir().unwrap();
    let address = origin();
    let far = folder.path().join("far.yaml");
    let text = format!(
        "version: 1\ndns: {{hosts: {{far.test: [{}]}}}}\nrules: []\ndefault: {{direct: true}}\n",
        address.ip()
    );
    fs::write(&far, text).unwrap();
    let mut far = Peer::proxy(&far);
    let upstream = far.address;
    let log = folder.path().join("log");
    let proxy = Proxy::under(&policy(upstream, "first"))
        .arg("--log-file")
        .arg(log.to_str().unwrap())
        .start();
    let world = World {
        proxy: proxy.address,
        origin: address,
        nowhere: Origin::nowhere(),
    };
    let settle = |expected: u64| {
        let expected = usize::try_from(expected).unwrap();
        let records = wait_for(folder.path(), expected);
        assert_eq!(records, expected, "one record for each request");
        proxy.at_rest(&policy(upstream, &format!("settled {expected}")))
    };
    // A first round, so that what is built once is there.
    let mut done: u64 = load(&world, time / 5).iter().sum();
    let before = settle(done);
    let is_over = Arc::new(AtomicBool::new(false));
    let trouble = {
        let (is_over, file, log, pid) = (
            is_over.clone(),
            proxy.policy.clone(),
            log.clone(),
            proxy.pid(),
        );
        std::thread::spawn(move || {
            let mut rounds = 0_u32;
            let signal = |signal| kill(Pid::from_raw(pid), signal).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(300));
                rounds += 1;
                match rounds % 6 {
                    0 => {
                        far.stop();
                        std::thread::sleep(Duration::from_millis(200));
                        far.resume();
                    }
                    1 => fs::write(&file, policy(upstream, &format!("round {rounds}"))).unwrap(),
                    2 => {
                        far.kill();
                        far.restart();
                    }
                    3 => fs::write(&file, "version: 1\nrules: [\n").unwrap(),
                    4 => {
                        fs::rename(&log, log.with_extension(rounds.to_string())).unwrap();
                        signal(Signal::SIGUSR1);
                        // Until it is there, it cannot be moved away again.
                        while !log.exists() {
                            std::thread::sleep(Duration::from_millis(10));
                        }
                    }
                    _ => signal(Signal::SIGHUP),
                }
            }
            rounds
        })
    };
    let counts = load(&world, time);
    is_over.store(true, Ordering::Relaxed);
    let rounds = trouble.join().unwrap();
    done += counts.iter().sum::<u64>();
    let after = settle(done);
    let causes = causes(folder.path());
    println!(
        "{seconds} s, {} kinds of acts, {done} requests and records, {rounds} rounds of trouble, {} causes\n{before:?}\n{after:?}",
        ACTS.len(),
        causes.len()
    );
    assert!(causes.len() >= 15, "{causes:?}");
    assert!(
        after.descriptors <= before.descriptors + 2,
        "{before:?} {after:?}"
    );
    assert!(after.threads <= before.threads + 1, "{before:?} {after:?}");
    assert!(
        after.resident_kib <= before.resident_kib + 16 * 1024,
        "{before:?} {after:?}"
    );
    let (status, rest) = proxy.stop();
    assert!(status.success() && rest.is_empty());
}
