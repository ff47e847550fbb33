//! A wall clock that is set forwards and backwards: it dates records and judges certificates, and moves nothing else.

mod support;

use std::cell::RefCell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use support::origin::{Listening, Origin};
use support::tls::{self, BOTH, Leaf};
use support::web::Ca;
use support::{Proxy, SOON, Starting, check, needs, wire};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// The wall clock of one process, by libfaketime; its monotonic clock stays the machine's.
struct Clock {
    library: PathBuf,
    folder: tempfile::TempDir,
    /// Those that live by it.
    proxies: RefCell<Vec<i32>>,
}

/// What libfaketime shares with children stays behind where its process is killed.
impl Drop for Clock {
    fn drop(&mut self) {
        for pid in self.proxies.borrow().iter() {
            for name in ["faketime_shm", "sem.faketime_sem"] {
                // It may have ended in order.
                let _ = fs::remove_file(format!("/dev/shm/{name}_{pid}"));
            }
        }
    }
}

impl Clock {
    /// A clock that goes right; nothing where there is no libfaketime.
    fn new() -> Option<Self> {
        let library = needs::find("faketime").and_then(|program| {
            let lib = program.parent()?.parent()?.join("lib");
            let folders = fs::read_dir(lib).ok()?.map_while(Result::ok);
            let mut libraries =
                folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
            libraries.find(|library| library.is_file())
        });
        let Some(library) = library else {
            let _ = needs::lacks("faketime");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let clock = Self {
            library,
            folder,
            proxies: RefCell::default(),
        };
        clock.set(SignedDuration::ZERO);
        Some(clock)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// Sets it so far from the machine's.
    fn set(&self, offset: SignedDuration) {
        let new = self.folder.path().join("new");
        fs::write(&new, format!("{:+}", offset.as_secs())).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// Starts a proxy that lives by it.
    fn start(&self, proxy: Starting) -> Proxy {
        let proxy = proxy
            .env("LD_PRELOAD", self.library.to_str().unwrap())
            .env("FAKETIME_TIMESTAMP_FILE", self.file().to_str().unwrap())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
            .start();
        self.proxies.borrow_mut().push(proxy.pid());
        proxy
    }
}

fn moment(record: &Value, key: &str) -> Timestamp {
    record[key].as_str().unwrap().parse().unwrap()
}

/// A record that began so far from the machine's clock, and lasted no longer than the test.
#[track_caller]
fn is_dated(record: &Value, offset: SignedDuration, begun: Instant) {
    let start = moment(record, "event.start");
    let off = start.duration_since(Timestamp::now() + offset);
    let lasted = SignedDuration::try_from(begun.elapsed()).unwrap();
    assert!(off <= SignedDuration::from_secs(1), "{record:#}");
    assert!(off >= -lasted - SignedDuration::from_secs(1), "{record:#}");
    let took = moment(record, "event.end").duration_since(start);
    assert_eq!(
        took.as_nanos(),
        i128::from(record["event.duration"].as_u64().unwrap())
    );
    assert!(
        (SignedDuration::ZERO..=lasted).contains(&took),
        "{record:#}"
    );
}

fn ask(proxy: &Proxy, address: SocketAddr) -> String {
    let client = proxy.connect();
    wire::send(
        &client,
        format!("GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    );
    wire::read_text(&client)
}

#[test]
fn durations_and_time_limits_stay_what_they_are() {
    let Some(clock) = Clock::new() else { return };
    let begun = Instant::now();
    let policy = "version: 1\nrules: []\ndefault: {direct: true}\n\
                  defaults: {timeouts: {idle: 10m, first_byte: 2s}}\n";
    let proxy = clock.start(Proxy::under(policy));
    let origin = Listening::new();
    let target = origin.address;
    let client = proxy.connect();
    wire::send(
        &client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    let server = origin.accept();
    // A tunnel that lives through all of it.
    let carries = || {
        wire::send(&client, b"ping");
        assert_eq!(wire::read_exact(&server, 4), b"ping");
    };
    carries();
    for offset in [DAY, -DAY, DAY * 400, SignedDuration::ZERO] {
        // One request is under way while the clock is set, and one comes behind it; a limit ends both.
        let silent = proxy.connect();
        wire::send(
            &silent,
            format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"),
        );
        let (_unanswered, _) = origin.hear();
        clock.set(offset);
        carries();
        let answer = wire::read_text(&silent);
        assert!(answer.contains(" http.response_timeout: "), "{answer}");
        let record = proxy.record();
        check!(&record, "error.type": "http.response_timeout");
        let took = record["event.duration"].as_u64().unwrap();
        assert!(took >= Duration::from_secs(2).as_nanos().try_into().unwrap());
        let answer = ask(&proxy, Origin::nowhere());
        assert!(answer.contains(" connect.refused: "), "{answer}");
        is_dated(&proxy.record(), offset, begun);
        carries();
    }
    wire::finish(&client);
    wire::finish(&server);
    let record = proxy.record();
    check!(&record, "event.outcome": "success");
    is_dated(&record, SignedDuration::ZERO, begun);
}

/// A proxy whose circuit for this target has just opened.
fn opened(clock: &Clock, target: SocketAddr, open: &str) -> Proxy {
    let proxy = clock.start(Proxy::under(&format!(
        "version: 1\nrules: []\ndefault: {{direct: true}}\n\
         defaults: {{circuit: {{fails: 2, within: 1h, open: {open}}}}}\n"
    )));
    for _ in 0..2 {
        let answer = ask(&proxy, target);
        assert!(answer.contains(" connect.refused: "), "{answer}");
    }
    // Its records are on their way to the memory before their answers are.
    proxy.records(2);
    proxy
}

#[test]
fn a_circuit_is_open_as_long_as_it_is_to_be() {
    let Some(clock) = Clock::new() else { return };
    let target = Origin::nowhere();
    let proxy = opened(&clock, target, "1h");
    clock.set(DAY);
    let answer = ask(&proxy, target);
    assert!(answer.contains(" proxy.circuit_open: "), "{answer}");

    let proxy = opened(&clock, target, "1s");
    clock.set(-DAY);
    let deadline = Instant::now() + SOON;
    while !ask(&proxy, target).contains(" connect.refused: ") {
        assert!(Instant::now() < deadline, "the circuit waits for the clock");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn certificates_are_judged_by_the_clock_of_the_moment() {
    let Some(clock) = Clock::new() else { return };
    let ca = Ca::new();
    // It holds for the year 2020.
    let config = tls::server(&ca.identity(Leaf::Expired, "proxy.example"), BOTH);
    let upstream = tls::upstream(config, |_, session| {
        session.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut word = [0; 4];
        session.read_exact(&mut word).unwrap();
        session.write_all(&word).unwrap();
    });
    let policy = format!(
        "version: 1\nupstreams: {{corp: {{url: 'https://{}', tls: {{ca: ca.pem, server_name: proxy.example}}}}}}\n\
         rules: []\ndefault: {{via: corp}}\n",
        upstream.address
    );
    let at = |date: &str| {
        let moment: Timestamp = format!("{date}T12:00:00Z").parse().unwrap();
        clock.set(moment.duration_since(Timestamp::now()));
    };
    at("2020-06-15");
    let proxy = clock.start(Proxy::under(&policy).file("ca.pem", &ca.pem()));
    for (date, cause) in [
        ("2020-06-15", None),
        ("2021-06-15", Some("upstream.tls.cert.expired")),
        ("2020-07-15", None),
        ("2019-06-15", Some("upstream.tls.cert.not_yet_valid")),
    ] {
        at(date);
        let client = proxy.connect();
        wire::send(
            &client,
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
        );
        let head = wire::read_head(&client);
        match cause {
            None => {
                assert_eq!(wire::status(&head), 200, "{date}: {head}");
                wire::send(&client, b"ping");
                assert_eq!(wire::read_exact(&client, 4), b"ping");
                wire::finish(&client);
            }
            Some(cause) => assert!(head.contains(&format!(" {cause}: ")), "{date}: {head}"),
        }
        let record = proxy.record();
        assert_eq!(record["error.type"].as_str(), cause, "{record:#}");
        assert!(record["event.start"].as_str().unwrap().starts_with(date));
    }
}
