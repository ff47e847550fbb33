//! Origins, upstreams and name servers stop and die under a load: each request ends in one record that names what happened to it,
//! nobody else notices, and behind it everything is served again.
//!
//! Each outage once, or again and again for as many seconds as `ROUTECAUSE_TEST_SOAK` says. It prints its figures.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::process::Peer;
use support::{Proxy, SOON, needs, wire};

/// Clients that do each act at once.
const CLIENTS: usize = 2;

/// From one act of a client to its next: the load is to be there, not to fill the machine.
const PAUSE: Duration = Duration::from_millis(10);

/// An outage shows, and is over, within this.
const PATIENCE: Duration = SOON.saturating_mul(3);

/// How long the proxy waits for anything: longer than a busy machine takes.
const LIMIT: &str = "3s";

/// What an outage may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Origin,
    Upstream,
    Names,
}

/// How it comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// `SIGSTOP`, and `SIGCONT` behind it.
    Stop,
    /// `SIGKILL`, and a new process behind it.
    Kill,
}

/// An outage, the cause that tells it, and the causes and sides that requests may end with which it met on their way.
struct Outage {
    victim: Victim,
    blow: Blow,
    told: &'static str,
    also: &'static [(&'static str, &'static str)],
}

/// What a connection that dies ends a request with, wherever that stood.
const CUT: &[(&str, &str)] = &[
    ("connect.reset", "network"),
    ("http.empty_reply", "origin"),
    ("http.reset_before_response", "origin"),
    ("http.reset_in_body", "origin"),
    ("http.incomplete_body", "origin"),
    ("http.reused_connection_closed", "origin"),
    ("tunnel.reset_by_server", "origin"),
    ("tls.reset_before_client_hello", "unknown"),
    ("connect.refused", "origin"),
    ("upstream.connect.refused", "upstream"),
    ("upstream.connect.reset", "upstream"),
    ("upstream.closed", "upstream"),
    ("upstream.reset", "upstream"),
    ("upstream.circuit_open", "upstream"),
];

/// What a server that stands still ends a request with.
const STILL: &[(&str, &str)] = &[
    ("http.response_timeout", "origin"),
    ("http.body_stalled", "origin"),
    ("tunnel.server_silent", "unknown"),
    // Of one that has said its last word, and stands still before its FIN.
    ("tunnel.idle_timeout", "proxy"),
    ("upstream.no_reply", "upstream"),
    ("upstream.circuit_open", "upstream"),
];

const UNNAMED: &[(&str, &str)] = &[
    ("dns.timeout", "network"),
    ("dns.server_unreachable", "network"),
];

const OUTAGES: &[Outage] = &[
    Outage {
        victim: Victim::Origin,
        blow: Blow::Stop,
        told: "http.response_timeout",
        also: STILL,
    },
    Outage {
        victim: Victim::Origin,
        blow: Blow::Kill,
        told: "connect.refused",
        also: CUT,
    },
    Outage {
        victim: Victim::Upstream,
        blow: Blow::Stop,
        told: "upstream.no_reply",
        also: STILL,
    },
    Outage {
        victim: Victim::Upstream,
        blow: Blow::Kill,
        told: "upstream.connect.refused",
        also: CUT,
    },
    Outage {
        victim: Victim::Names,
        blow: Blow::Stop,
        told: "dns.timeout",
        also: UNNAMED,
    },
    Outage {
        victim: Victim::Names,
        blow: Blow::Kill,
        told: "dns.server_unreachable",
        also: UNNAMED,
    },
];

/// What the load asks through, and for.
struct World {
    proxy: SocketAddr,
    /// Is struck.
    origin: SocketAddr,
    /// Is never struck: behind the upstream, and behind the names.
    steady: SocketAddr,
}

/// What a client does again and again: its name, whom it needs, and how it is done under a tag; whether it got all it asked for.
type Act = (&'static str, Victim, fn(&World, &str) -> bool);

const ACTS: &[Act] = &[
    ("page", Victim::Origin, |w, tag| {
        ask(w, "GET", &w.origin.to_string(), "/", tag)
    }),
    ("slow page", Victim::Origin, |w, tag| {
        ask(w, "GET", &w.origin.to_string(), "/slow", tag)
    }),
    ("upload", Victim::Origin, |w, tag| {
        ask(w, "POST", &w.origin.to_string(), "/", tag)
    }),
    ("tunnel", Victim::Origin, |w, tag| {
        echo(w, &w.origin.to_string(), tag)
    }),
    ("page by the upstream", Victim::Upstream, |w, tag| {
        ask(w, "GET", &far(w), "/", tag)
    }),
    ("slow page by the upstream", Victim::Upstream, |w, tag| {
        ask(w, "GET", &far(w), "/slow", tag)
    }),
    ("tunnel by the upstream", Victim::Upstream, |w, tag| {
        echo(w, &far(w), tag)
    }),
    ("page by name", Victim::Names, |w, tag| {
        ask(w, "GET", &named(w, tag), "/", tag)
    }),
    ("tunnel by name", Victim::Names, |w, tag| {
        echo(w, &named(w, tag), tag)
    }),
];

fn far(world: &World) -> String {
    format!("far.test:{}", world.steady.port())
}

/// A name that nobody has asked for yet.
fn named(world: &World, tag: &str) -> String {
    format!("n{tag}.named.test:{}", world.steady.port())
}

fn client(world: &World) -> TcpStream {
    let stream = wire::connect(world.proxy);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks once; whether the whole answer came.
fn ask(world: &World, method: &str, host: &str, path: &str, tag: &str) -> bool {
    let body = if method == "POST" { "posted" } else { "" };
    let length = body.len();
    let request = format!(
        "{method} http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {tag}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = client(world);
    let mut answer = Vec::new();
    stream.write_all(request.as_bytes()).unwrap();
    let is_ended = stream.read_to_end(&mut answer).is_ok();
    let body: &[u8] = if path == "/slow" {
        b"\r\n\r\nxxxxxxxxxx"
    } else {
        b"\r\n\r\nok"
    };
    is_ended && answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(body)
}

/// Has some words echoed through a tunnel, one by one; whether all came back.
fn echo(world: &World, host: &str, tag: &str) -> bool {
    let mut stream = client(world);
    let request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {tag}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    if !wire::read_head(&stream).starts_with("HTTP/1.1 200 ") {
        return false;
    }
    let mut word = [0];
    let is_whole = stream.write_all(b"e").is_ok()
        && (0..10).all(|n| {
            std::thread::sleep(PAUSE);
            stream.write_all(&[n]).is_ok() && stream.read_exact(&mut word).is_ok() && word == [n]
        });
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
    is_whole
}

/// An act that was done: when it began and ended, in epochs, and whether it got all it asked for.
struct Done {
    act: usize,
    tag: String,
    from: usize,
    to: usize,
    is_whole: bool,
}

/// What happened so far. Epochs go by three: calm, an outage, the end of it.
#[derive(Default)]
struct Story {
    epoch: AtomicUsize,
    begun: AtomicUsize,
    done: Mutex<Vec<Done>>,
    changed: Condvar,
    is_over: AtomicBool,
}

fn outage_of(epoch: usize) -> Option<&'static Outage> {
    (!epoch.is_multiple_of(3)).then(|| &OUTAGES[epoch / 3 % OUTAGES.len()])
}

impl Story {
    /// Does an act again and again.
    fn act(&self, world: &World, act: usize) {
        let (.., does) = ACTS[act];
        while !self.is_over.load(SeqCst) {
            let tag = self.begun.fetch_add(1, SeqCst).to_string();
            let from = self.epoch.load(SeqCst);
            let is_whole = does(world, &tag);
            let to = self.epoch.load(SeqCst);
            self.done.lock().unwrap().push(Done {
                act,
                tag,
                from,
                to,
                is_whole,
            });
            self.changed.notify_all();
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until each of these acts has one that began in this epoch, or only ended in it, with this success.
    fn wait(&self, victims: &[Victim], is_whole: bool) {
        let epoch = self.epoch.load(SeqCst);
        let mut missing: BTreeSet<usize> = (0..ACTS.len())
            .filter(|act| victims.contains(&ACTS[*act].1))
            .collect();
        let mut seen = 0;
        let done = self.done.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(done, PATIENCE, |done| {
                for done in &done[seen..] {
                    let is_of = if is_whole { done.from } else { done.to } == epoch;
                    if is_of && done.is_whole == is_whole {
                        missing.remove(&done.act);
                    }
                }
                seen = done.len();
                !missing.is_empty()
            })
            .unwrap();
        let missing: Vec<_> = missing.into_iter().map(|act| ACTS[act].0).collect();
        assert!(
            !waited.1.timed_out(),
            "in epoch {epoch}, no {missing:?} with success {is_whole}"
        );
    }

    fn turn(&self) {
        self.epoch.fetch_add(1, SeqCst);
    }

    /// Runs the load while something is done.
    fn under_load(&self, world: &World, work: impl FnOnce()) {
        /// Ends the load, also where a wait was in vain.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }
        self.is_over.store(false, SeqCst);
        std::thread::scope(|scope| {
            for act in 0..ACTS.len() {
                for _ in 0..CLIENTS {
                    scope.spawn(move || self.act(world, act));
                }
            }
            let _over = Over(&self.is_over);
            work();
        });
    }

    /// Holds each act against its record; the causes by outage.
    fn judge(&self, records: Vec<Value>) -> BTreeMap<(Victim, Blow), BTreeMap<String, usize>> {
        let mut by_tag: HashMap<String, Value> = HashMap::new();
        for record in records {
            let tag = record["user_agent.original"].as_str();
            let tag = tag.unwrap_or_else(|| panic!("nobody asked for it: {record:#}"));
            let twice = by_tag.insert(tag.to_owned(), record.clone());
            assert!(twice.is_none(), "a second record: {record:#}");
        }
        let mut causes = BTreeMap::<_, BTreeMap<_, _>>::new();
        for done in self.done.lock().unwrap().iter() {
            let (name, victim, _) = ACTS[done.act];
            let record = by_tag.remove(&done.tag);
            let record = record.unwrap_or_else(|| panic!("no record of {name} {}", done.tag));
            let is_success = record["event.outcome"] == "success";
            let met: Vec<_> = (done.from..=done.to)
                .filter_map(outage_of)
                .filter(|outage| outage.victim == victim)
                .collect();
            if met.is_empty() {
                assert!(done.is_whole && is_success, "calm, {name}: {record:#}");
            }
            // A tunnel may end between its last word and its client's end.
            if !name.contains("tunnel") {
                assert_eq!(done.is_whole, is_success, "{name}: {record:#}");
            }
            let Some(cause) = record["error.type"].as_str().filter(|_| !is_success) else {
                continue;
            };
            let side = record["egress.side"].as_str().unwrap();
            let told = met
                .iter()
                .find(|outage| outage.also.contains(&(cause, side)));
            let told = told.unwrap_or_else(|| panic!("{name} by {side}: {record:#}"));
            let causes = causes.entry((told.victim, told.blow)).or_default();
            *causes.entry(cause.to_owned()).or_default() += 1;
        }
        assert!(by_tag.is_empty(), "nobody asked for {by_tag:#?}");
        causes
    }
}

fn policy(upstream: SocketAddr, names: SocketAddr, mark: &str) -> String {
    format!(
        "version: 1
# {mark}
upstreams: {{far: {{url: 'http://{upstream}'}}}}
dns: {{default: own, servers: {{own: {{udp: ['{names}']}}}}}}
rules:
  - {{name: far, match: {{host: far.test}}, via: far}}
default: {{direct: true}}
defaults: {{timeouts: {{dns: {LIMIT}, connect: {LIMIT}, proxy_reply: {LIMIT}, first_byte: {LIMIT}, body_idle: {LIMIT}, idle: {LIMIT}}}}}
"
    )
}

#[test]
fn an_outage_is_told_as_what_it_is_and_nobody_else_notices() {
    if !needs::has("python3") {
        return;
    }
    let time = std::env::var("ROUTECAUSE_TEST_SOAK").map_or(0, |seconds| seconds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let far = folder.path().join("far.yaml");
    let text =
        "version: 1\ndns: {hosts: {far.test: [127.0.0.1]}}\nrules: []\ndefault: {direct: true}\n";
    fs::write(&far, text).unwrap();
    let steady = Peer::origin();
    let mut peers = [Peer::origin(), Peer::proxy(&far), Peer::names()];
    let [origin, upstream, names] = peers.each_ref().map(|peer| peer.address);
    let proxy = Proxy::start(&policy(upstream, names, "first"));
    let world = World {
        proxy: proxy.address,
        origin,
        steady: steady.address,
    };
    let all = [Victim::Origin, Victim::Upstream, Victim::Names];
    let story = Story::default();
    story.under_load(&world, || story.wait(&all, true));
    let before = proxy.at_rest(&policy(upstream, names, "before"));
    let begun = Instant::now();
    let mut outages = 0;
    story.under_load(&world, || {
        while outages < OUTAGES.len() || begun.elapsed() < Duration::from_secs(time) {
            let Outage { victim, blow, .. } = OUTAGES[outages % OUTAGES.len()];
            let peer = &mut peers[victim as usize];
            story.turn();
            match blow {
                Blow::Stop => peer.stop(),
                Blow::Kill => peer.kill(),
            }
            story.wait(&[victim], false);
            story.turn();
            match blow {
                Blow::Stop => peer.resume(),
                Blow::Kill => peer.restart(),
            }
            story.wait(&[victim], true);
            story.turn();
            story.wait(&all, true);
            outages += 1;
        }
    });
    let count = story.done.lock().unwrap().len();
    let records = proxy.records(count);
    assert_eq!(records.len(), count, "one record for each request");
    let causes = story.judge(records);
    let after = proxy.at_rest(&policy(upstream, names, "after"));
    println!("{outages} outages, {count} requests and records\n{before:?}\n{after:?}\n{causes:#?}");
    for outage in OUTAGES {
        let causes = &causes[&(outage.victim, outage.blow)];
        assert!(causes.contains_key(outage.told), "{causes:?}");
    }
    assert!(
        after.descriptors <= before.descriptors + 2,
        "{before:?} {after:?}"
    );
    assert!(after.threads <= before.threads + 1, "{before:?} {after:?}");
    let (status, rest) = proxy.stop();
    assert!(status.success() && rest.is_empty());
}
