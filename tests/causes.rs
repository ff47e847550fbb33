//! Why a tunnel fails: each cause brought about in a network of the test's own, and told exactly.
//!
//! The pairs matter most: what a server does for its own reasons, and what a box on the way does in its name. Those are
//! repeated 10 times, and 200 times with `ROUTECAUSE_TEST_LONG=1` (`cargo nextest run --profile long --test causes`).

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use routecause::net::tcp_info::TcpInfo;
use rustls::ServerConfig;
use serde_json::{Value, json};
use support::netns::{self, Net, Router};
use support::tls::{self, BOTH, Client, Leaf, ONLY_12, ONLY_13, Versions};
use support::web::Ca;
use support::{Proxy, check, wire};

/// One way, in milliseconds, in the network that is slowed. Boxes stand so far from the client as well.
const ONE_WAY: u64 = 100;

const NEAR_CLIENT: u64 = 20;
const NEAR_SERVER: u64 = 80;

/// A reset that a firewall sent at once, and that was heard of so many milliseconds and round trips later, was heard of late.
const LATE_MS: f64 = 1.0;
const LATE_RTT: f64 = 1.3;

/// A row's clients at one time.
const SIDE_BY_SIDE: usize = 4;

/// A client waits so long for a server that says nothing: longer than the three seconds after which silence is a cause.
const PATIENCE: Duration = Duration::from_millis(3500);

/// The tunnels' end, where it is our own timer that ends them.
const IDLE: &str = "2s";

/// How often the pairs are repeated.
fn often() -> usize {
    if is_long() { 200 } else { 10 }
}

fn is_long() -> bool {
    std::env::var_os("ROUTECAUSE_TEST_LONG").is_some()
}

type Serve = Arc<dyn Fn(TcpStream) + Send + Sync>;
type Visit = Arc<dyn Fn(&Place<'_>, TcpStream) + Send + Sync>;

/// A way to fail, and what is recorded of it.
struct Row {
    name: &'static str,
    serve: Serve,
    visit: Visit,
    /// Another name at the same address is known to be fine, and so known to the proxy.
    is_known: bool,
    is_ipv6: bool,
    /// The server is a proxy, and what it does happens in a tunnel through it.
    is_upstream: bool,
    times: usize,
    /// From when to when behind the CONNECT the proxy gets no time, in milliseconds. The ClientHello goes out with the CONNECT.
    stalled: Option<[u64; 2]>,
    /// What the router's firewall does; `ADDRESS`, `NAME` and its `LENGTH` in hex stand for the row's.
    firewall: Vec<&'static str>,
    /// What a box on the way does to packets of this address.
    box_on_the_way: Option<Value>,
    /// Any of these; none is success.
    causes: &'static [&'static str],
    side: Option<&'static str>,
    suspects: Suspects,
    /// Further keys of the record.
    also: Value,
}

#[derive(Clone, Copy)]
enum Suspects {
    /// These and no others.
    Are(&'static [&'static str]),
    /// This is not among them.
    Spare(&'static str),
}

/// Where a client stands when its tunnel does.
struct Place<'a> {
    scene: &'a Scene,
    name: String,
    address: SocketAddr,
}

impl Place<'_> {
    fn client(&self, versions: Versions) -> Client<'_> {
        Client {
            name: &self.name,
            trusts: &self.scene.ca,
            versions,
        }
    }

    /// A client to whom the server's authority is a stranger.
    fn stranger<'a>(&'a self, stranger: &'a Ca, versions: Versions) -> Client<'a> {
        Client {
            trusts: stranger,
            ..self.client(versions)
        }
    }
}

/// A server that behaves as told, and a client that greets it and listens.
fn row(name: &'static str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Row {
    Row {
        name,
        serve: Arc::new(serve),
        visit: Arc::new(|place, stream| place.client(BOTH).greet(&stream)),
        is_known: false,
        is_ipv6: false,
        is_upstream: false,
        times: 1,
        stalled: None,
        firewall: Vec::new(),
        box_on_the_way: None,
        causes: &[],
        side: None,
        suspects: Suspects::Are(&[]),
        also: json!({}),
    }
}

impl Row {
    fn visit(self, visit: impl Fn(&Place<'_>, TcpStream) + Send + Sync + 'static) -> Self {
        Self {
            visit: Arc::new(visit),
            ..self
        }
    }

    /// The client waits before it greets.
    fn late(self, millis: u64) -> Self {
        self.visit(move |place, stream| {
            // What the row is about: the time between connection and ClientHello.
            thread::sleep(Duration::from_millis(millis));
            place.client(BOTH).greet(&stream);
        })
    }

    /// The client leaves when it has heard nothing for so long.
    fn leave_after(self, patience: Duration) -> Self {
        self.visit(move |place, stream| {
            wire::send(&stream, place.client(BOTH).hello());
            tls::leave_after(&stream, patience);
        })
    }

    fn known(self) -> Self {
        Self {
            is_known: true,
            ..self
        }
    }

    fn ipv6(self) -> Self {
        Self {
            is_ipv6: true,
            ..self
        }
    }

    fn upstream(self) -> Self {
        Self {
            is_upstream: true,
            ..self
        }
    }

    fn stalled(self, from: u64, until: u64) -> Self {
        Self {
            stalled: Some([from, until]),
            ..self
        }
    }

    fn often(self) -> Self {
        Self {
            times: often(),
            ..self
        }
    }

    fn firewall(mut self, rule: &'static str) -> Self {
        self.firewall.push(rule);
        self
    }

    /// A box, so many milliseconds from the client, and what it does to packets with the row's name.
    fn filtered(self, at: u64, action: &Value) -> Self {
        let mut rule = json!({"from": "client", "at": at, "contains": format!("{}.", self.name)});
        merge(&mut rule, action);
        self.on_the_way(rule)
    }

    fn on_the_way(self, rule: Value) -> Self {
        Self {
            box_on_the_way: Some(rule),
            ..self
        }
    }

    fn gives(self, cause: &'static [&'static str], side: &'static str) -> Self {
        Self {
            causes: cause,
            side: Some(side),
            ..self
        }
    }

    fn whoever_it_was(self) -> Self {
        Self { side: None, ..self }
    }

    fn suspects(self, names: &'static [&'static str]) -> Self {
        Self {
            suspects: Suspects::Are(names),
            ..self
        }
    }

    fn spares(self, name: &'static str) -> Self {
        Self {
            suspects: Suspects::Spare(name),
            ..self
        }
    }

    fn also(self, also: Value) -> Self {
        Self { also, ..self }
    }

    fn host(&self) -> String {
        format!("{}.site.test", self.name)
    }
}

fn merge(into: &mut Value, from: &Value) {
    let from = from.as_object().unwrap().clone();
    into.as_object_mut().unwrap().extend(from);
}

/// Held by the one scene that plays: times are what these tests are about.
static STAGE: Mutex<()> = Mutex::new(());

/// The network and what its servers show.
struct Scene {
    _stage: MutexGuard<'static, ()>,
    net: Net,
    ca: Ca,
    good: Arc<ServerConfig>,
}

impl Scene {
    fn new() -> Option<Self> {
        let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        let net = Net::new()?;
        let ca = Ca::new();
        let good = tls::server(&ca.identity(Leaf::Good, "*.site.test"), BOTH);
        netns::be_punctual();
        Some(Self {
            _stage: stage,
            net,
            ca,
            good,
        })
    }

    /// A server for `name`s of the scene with something wrong, that says everything again.
    fn shows(&self, leaf: Leaf, versions: Versions) -> impl Fn(TcpStream) + Send + Sync + 'static {
        shows(&self.ca, leaf, versions)
    }

    fn good(&self) -> impl Fn(TcpStream) + Send + Sync + 'static {
        let good = self.good.clone();
        move |stream| tls::echo(&good, stream)
    }

    /// Brings all rows about side by side, under one proxy, and compares what it recorded.
    fn play(&self, timeouts: &Value, router: Option<&Router<'_>>, rows: &[Row]) {
        let addresses: Vec<_> = rows.iter().map(|row| self.stage(router, row)).collect();
        let (mut hosts, mut upstreams, mut rules) = (json!({}), json!({}), Vec::new());
        for (index, (row, address)) in rows.iter().zip(&addresses).enumerate() {
            let names = [row.host(), known_host(index)];
            if row.is_upstream {
                upstreams[row.name] = json!({"url": format!("http://{address}")});
                rules.push(json!({"name": row.name, "match": {"host": names}, "via": row.name}));
            } else {
                for name in names {
                    hosts[name] = json!([address.ip()]);
                }
            }
        }
        // JSON is YAML.
        let policy = json!({
            "version": 1, "defaults": {"timeouts": timeouts}, "dns": {"hosts": hosts}, "upstreams": upstreams,
            "rules": rules, "default": {"direct": true},
        });
        let proxy = Proxy::under(&policy.to_string())
            .env("SSL_CERT_FILE", self.ca.file().to_str().unwrap())
            .inside(&self.net.client)
            .start();

        let known = rows.iter().zip(&addresses).enumerate();
        let known: Vec<_> = known.filter(|(_, (row, _))| row.is_known).collect();
        self.net.client.within(|| {
            thread::scope(|scope| {
                for (index, (_, address)) in &known {
                    let proxy = &proxy;
                    scope.spawn(move || {
                        let place = self.place(known_host(*index), **address);
                        let stream = tunnel(proxy, &place).expect("a tunnel");
                        place.client(BOTH).talk(stream).unwrap();
                    });
                }
            });
        });
        for record in proxy.records(known.len()) {
            check!(&record, "event.outcome": "success", "error.type": null);
        }

        self.net.client.within(|| {
            thread::scope(|scope| {
                for (row, address) in rows.iter().zip(&addresses) {
                    let proxy = &proxy;
                    scope.spawn(move || {
                        let place = self.place(row.host(), *address);
                        let visit = |times| {
                            for _ in 0..times {
                                if let Some(stalled) = row.stalled {
                                    visit_stalled(proxy, &place, stalled);
                                } else if let Some(stream) = tunnel(proxy, &place) {
                                    (row.visit)(&place, stream);
                                }
                            }
                        };
                        thread::scope(|scope| {
                            for part in 0..SIDE_BY_SIDE.min(row.times) {
                                let more = usize::from(part < row.times % SIDE_BY_SIDE);
                                scope.spawn(move || visit(row.times / SIDE_BY_SIDE + more));
                            }
                        });
                    });
                }
            });
        });
        let count = rows.iter().map(|row| row.times).sum();
        compare(rows, proxy.records_up_to(count));
    }

    /// The row's server at an address of its own, and what is on the way to it.
    fn stage(&self, router: Option<&Router<'_>>, row: &Row) -> SocketAddr {
        let ip = if row.is_ipv6 {
            self.net.address6()
        } else {
            self.net.address()
        };
        let listener = self
            .net
            .server
            .within(|| TcpListener::bind((ip, 443)).unwrap());
        let mut serve = row.serve.clone();
        let mut good: Serve = Arc::new(self.good());
        if row.is_upstream {
            (serve, good) = (in_a_tunnel(serve), in_a_tunnel(good));
        }
        // Who asks for the known name comes first.
        let first = row.is_known.then_some(good);
        thread::spawn(move || {
            let mut first = first;
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = first.take().unwrap_or_else(|| serve.clone());
                thread::spawn(move || serve(stream));
            }
        });
        for rule in &row.firewall {
            let rule = rule
                .replace("ADDRESS", &ip.to_string())
                .replace("NAME", &row.host())
                .replace("LENGTH", &format!("{:02x}", row.host().len()));
            match ip {
                IpAddr::V4(_) => self.net.router.iptables(&rule),
                IpAddr::V6(_) => self.net.router.ip6tables(&rule),
            }
        }
        if let Some(rule) = &row.box_on_the_way {
            let mut rule = rule.clone();
            merge(&mut rule, &json!({"server": ip.to_string()}));
            router.expect("a router in user space").rule(&rule);
        }
        (ip, 443).into()
    }

    fn place(&self, name: String, address: SocketAddr) -> Place<'_> {
        Place {
            scene: self,
            name,
            address,
        }
    }
}

/// Another name at the address of a row.
fn known_host(index: usize) -> String {
    format!("known-{index}.site.test")
}

/// A proxy that lets everybody through to the one server it has.
fn in_a_tunnel(serve: Serve) -> Serve {
    Arc::new(move |stream| {
        wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\n\r\n");
        serve(stream);
    })
}

/// A server with something wrong with its certificate.
fn shows(
    ca: &Ca,
    leaf: Leaf,
    versions: Versions,
) -> impl Fn(TcpStream) + Send + Sync + 'static + use<> {
    let config = tls::server(&ca.identity(leaf, "*.site.test"), versions);
    move |stream| tls::echo(&config, stream)
}

/// A tunnel to the place; none where the proxy has something else to say.
fn tunnel(proxy: &Proxy, place: &Place<'_>) -> Option<TcpStream> {
    let stream = proxy.connect();
    let target = format!("{}:443", place.name);
    wire::send(
        &stream,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    let head = wire::read_head(&stream);
    (wire::status(&head) == 200).then_some(stream)
}

/// A visit to a proxy that a busy machine lets wait.
fn visit_stalled(proxy: &Proxy, place: &Place<'_>, [from, until]: [u64; 2]) {
    let stream = proxy.connect();
    let target = format!("{}:443", place.name);
    let mut first = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").into_bytes();
    first.extend(place.client(BOTH).hello());
    wire::send(&stream, first);
    thread::sleep(Duration::from_millis(from));
    proxy.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_millis(until - from));
    proxy.signal(Signal::SIGCONT);
    tls::listen(&stream);
}

/// All rows are looked at before any of them fails the test.
fn compare(rows: &[Row], records: Vec<Value>) {
    let mut by_host: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for record in records {
        let host = record["server.address"].as_str().unwrap().to_owned();
        by_host.entry(host).or_default().push(record);
    }
    let mut wrong = String::new();
    for row in rows {
        let records = by_host.remove(&row.host()).unwrap_or_default();
        if records.len() != row.times {
            let (count, all) = (records.len(), row.times);
            let _ = writeln!(wrong, "{}: {count} records of {all}", row.name);
        }
        let faults: Vec<_> = records
            .iter()
            .map(|record| (record, row.faults(record)))
            .filter(|(_, faults)| !faults.is_empty())
            .collect();
        if let Some((record, first)) = faults.first() {
            let (count, all) = (faults.len(), row.times);
            let _ = writeln!(wrong, "{} ({count} of {all}): {first}", row.name);
            let _ = writeln!(wrong, "  {record}");
        }
    }
    assert!(by_host.is_empty(), "{by_host:#?}");
    assert!(wrong.is_empty(), "\n{wrong}");
}

impl Row {
    /// What of the record is not as it should be.
    fn faults(&self, record: &Value) -> String {
        let mut faults = String::new();
        let mut expect = |key: &str, expected: Value| {
            if record[key] != expected {
                let _ = write!(faults, "{key} is {}, not {expected}; ", record[key]);
            }
        };
        let cause = record["error.type"].as_str();
        if let Some(cause) = cause.filter(|cause| self.causes.contains(cause)) {
            expect("egress.phase", json!(phase(cause)));
            expect("event.outcome", json!("failure"));
        } else if self.causes.is_empty() {
            expect("error.type", Value::Null);
            expect("event.outcome", json!("success"));
        } else {
            expect("error.type", json!(self.causes.join(" or ")));
        }
        // Where the way takes no time, a reset that is heard of late says nothing of who sent it.
        let after = record["egress.reset.after_ms"].as_f64();
        let rtt = record["egress.tcp.server.min_rtt_ms"].as_f64();
        let late = LATE_MS + LATE_RTT * rtt.unwrap_or_default();
        let is_heard_late = !self.firewall.is_empty() && after.is_some_and(|after| after > late);
        if is_heard_late {
            expect("egress.side", json!("unknown"));
        } else if let Some(side) = self.side {
            expect("egress.side", json!(side));
        }
        let is_before_200 = cause == Some("connect.reset");
        let status = if is_before_200 { 502 } else { 200 };
        expect("http.response.status_code", json!(status));
        for (key, expected) in self.also.as_object().unwrap() {
            if !is_heard_late {
                expect(key, expected.clone());
            }
        }
        let names = suspects(record);
        let expected = if is_heard_late {
            Suspects::Are(&[])
        } else {
            self.suspects
        };
        match expected {
            Suspects::Are(expected) if names != expected => {
                let _ = write!(faults, "suspects are {names:?}, not {expected:?}; ");
            }
            Suspects::Spare(spared) if names.contains(&spared) => {
                let _ = write!(faults, "{spared} is suspected; ");
            }
            Suspects::Are(_) | Suspects::Spare(_) => {}
        }
        faults
    }
}

/// The phase that a cause's id names.
fn phase(cause: &str) -> &str {
    let cause = cause.strip_prefix("client.gave_up.").unwrap_or(cause);
    cause.split('.').next().unwrap()
}

/// The names of the suspects, each of which has a score and something that it rests on.
fn suspects(record: &Value) -> Vec<&str> {
    let suspects = record.get("egress.suspects").map(|suspects| {
        let suspects = suspects.as_array().unwrap();
        assert!(!suspects.is_empty(), "the key is absent instead: {record}");
        suspects.iter().map(|suspect| {
            let score = suspect["score"].as_f64().unwrap();
            // The log alone is never sure of a filter.
            let most = if suspect["name"] == "sni_filtering" {
                0.8
            } else {
                1.0
            };
            assert!(score > 0.0 && score <= most, "{suspect}");
            let evidence = suspect["evidence"].as_array().unwrap();
            assert!(!evidence.is_empty(), "{suspect}");
            if suspect["name"] == "sni_filtering" {
                let is_known = |one: &Value| one.as_str().unwrap().starts_with("other_sni_ok");
                assert!(evidence.iter().any(is_known), "{suspect}");
            }
            suspect["name"].as_str().unwrap()
        })
    });
    suspects.into_iter().flatten().collect()
}

/// What a socket sees without the proxy, which all rows rest on.
#[test]
fn the_slowed_network_finds_a_text_that_segments_share_also_when_they_come_again() {
    let Some(net) = Net::new() else { return };
    let router = net.slowed(Duration::from_millis(1));
    router.rule(&json!({"from": "client", "contains": "blocked.example", "drop": true}));
    let address = net.address();
    let listener = net
        .server
        .within(|| TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let client = net.client.within(|| wire::connect(target));
    let (server, _) = listener.accept().unwrap();
    wire::send(&client, "to blocked.");
    assert_eq!(wire::read_exact(&server, 11), b"to blocked.");
    wire::send(&client, "example");
    // Longer than the kernel waits before it sends again, twice.
    let again = Duration::from_secs(1);
    server.set_read_timeout(Some(again)).unwrap();
    let error = (&server).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(TcpInfo::of(&client).unwrap().retransmissions > 0);
}

#[test]
fn the_slowed_network_does_what_it_is_told() {
    let Some(scene) = Scene::new() else { return };
    let router = scene.net.slowed(Duration::from_millis(ONE_WAY));
    let injected = json!({"reset": 3, "ttl": 44});
    let in_path = json!({"reset": 1, "drop": true});
    let good = || scene.good();
    // Whether the ClientHello was acknowledged, and when the reset came behind it, in milliseconds.
    let cases = [
        (row("server", tls::resets_after_a_byte), true, 2 * ONE_WAY),
        (
            row("server-6", tls::resets_after_a_byte).ipv6(),
            true,
            2 * ONE_WAY,
        ),
        (
            row("near-client", good()).filtered(NEAR_CLIENT, &injected),
            false,
            20,
        ),
        (
            row("near-client-6", good())
                .ipv6()
                .filtered(NEAR_CLIENT, &injected),
            false,
            20,
        ),
        (
            row("near-server", good()).filtered(NEAR_SERVER, &injected),
            false,
            80,
        ),
        (
            row("in-path", good()).filtered(NEAR_CLIENT, &in_path),
            false,
            2 * NEAR_CLIENT,
        ),
    ];
    let addresses = cases
        .each_ref()
        .map(|(row, ..)| scene.stage(Some(&router), row));
    scene.net.client.within(|| {
        thread::scope(|scope| {
            for ((row, is_acked, after), address) in cases.iter().zip(addresses) {
                let scene = &scene;
                scope.spawn(move || {
                    let place = scene.place(row.host(), address);
                    let hello = place.client(BOTH).hello();
                    let begun = Instant::now();
                    let stream = wire::connect(address);
                    let took = begun.elapsed().as_millis();
                    assert!((2 * u128::from(ONE_WAY)..1000).contains(&took), "{took} ms");
                    let said = Instant::now();
                    wire::send(&stream, &hello);
                    assert!(wire::is_reset(&stream), "{}", row.name);
                    let came = u64::try_from(said.elapsed().as_millis()).unwrap();
                    // A machine under load is late, never early.
                    assert!(
                        (*after..after + 1000).contains(&came),
                        "{}: {came} ms",
                        row.name
                    );
                    let seen = TcpInfo::of(&stream).unwrap();
                    let acked = if *is_acked { hello.len() } else { 0 };
                    assert_eq!(seen.bytes_acked, 1 + acked as u64, "{}: {seen:?}", row.name);
                });
            }
        });
    });
}

#[test]
fn servers_that_misbehave_and_clients_that_refuse() {
    let Some(scene) = Scene::new() else { return };
    let good = &scene.good;
    let half = {
        let good = good.clone();
        move |stream, part| tls::says_part(&good, stream, part)
    };
    let members_only = {
        let identity = scene.ca.identity(Leaf::Good, "*.site.test");
        let config = tls::server_for_members(&identity, &scene.ca, ONLY_13);
        move |stream| tls::echo(&config, stream)
    };
    let mut rows = vec![
        row("fine-12", shows(&scene.ca, Leaf::Good, ONLY_12))
            .visit(|place, stream| place.client(ONLY_12).talk(stream).unwrap())
            .also(json!({"tls.protocol.version": "1.2", "egress.tls.state": "T7"})),
        row("fine-13", scene.good())
            .visit(|place, stream| place.client(ONLY_13).talk(stream).unwrap())
            .also(json!({"tls.protocol.version": "1.3", "egress.tls.state": "T7"})),
        row("fine-ipv6", scene.good())
            .ipv6()
            .visit(|place, stream| place.client(BOTH).talk(stream).unwrap())
            .also(json!({"network.type": "ipv6"})),
        // Resets that are the server's own.
        row("a-byte-then-reset", tls::resets_after_a_byte)
            .known()
            .often()
            .gives(&["tls.reset_after_client_hello"], "origin")
            .also(json!({"egress.reset.last_write_acked": true})),
        row("a-byte-then-reset-6", tls::resets_after_a_byte)
            .ipv6()
            .known()
            .gives(&["tls.reset_after_client_hello"], "origin"),
        row("hello-then-reset", |stream| {
            tls::resets_after_the_hello(stream, Duration::ZERO);
        })
        .known()
        .often()
        .gives(&["tls.reset_after_client_hello"], "origin"),
        row("hello-then-late-reset", |stream| {
            tls::resets_after_the_hello(stream, Duration::from_millis(300));
        })
        .known()
        .gives(&["tls.reset_after_client_hello"], "origin"),
        row("unread-close", tls::closes_without_reading)
            .known()
            .often()
            .gives(&["tls.reset_after_client_hello"], "origin"),
        // Without a way worth speaking of it may come before the 200.
        row("reset-on-accept", wire::reset)
            .known()
            .often()
            .gives(
                &[
                    "connect.reset",
                    "tls.reset_before_client_hello",
                    "tls.reset_after_client_hello",
                ],
                "",
            )
            .whoever_it_was(),
        row("reset-on-accept-late", wire::reset)
            .known()
            .late(50)
            .gives(
                &[
                    "connect.reset",
                    "tls.reset_before_client_hello",
                    "tls.reset_after_client_hello",
                ],
                "",
            )
            .whoever_it_was(),
        // Ends and silences.
        row("hello-then-fin", tls::closes_after_the_hello)
            .known()
            .gives(&["tls.closed_after_client_hello"], "unknown"),
        row("silent", is_silent)
            .known()
            .leave_after(PATIENCE)
            .gives(&["tls.no_server_hello"], "unknown"),
        row("silent-to-the-impatient", is_silent)
            .leave_after(Duration::from_secs(1))
            .gives(&["client.gave_up.tls"], "client"),
        row("half-a-record", {
            let half = half.clone();
            move |stream| tls::listen(&half(stream, 0.05))
        })
        .leave_after(PATIENCE)
        .gives(&["tls.server_flight_stalled"], "unknown"),
        row("half-a-flight-then-reset", {
            let half = half.clone();
            move |stream| {
                let stream = half(stream, 0.5);
                // The client has heard it: it answers with a change of cipher spec, or waits.
                thread::sleep(Duration::from_millis(50));
                wire::reset(stream);
            }
        })
        .known()
        .gives(&["tls.reset_during_server_flight"], "origin"),
        row("half-a-flight-then-fin", {
            let half = half.clone();
            move |stream| {
                let stream = half(stream, 0.5);
                let _ = stream.shutdown(Shutdown::Write);
                tls::listen(&stream);
            }
        })
        .gives(&["tunnel.truncated"], "origin"),
        row("impatient-and-rude", is_silent)
            .visit(|place, stream| {
                wire::send(&stream, place.client(BOTH).hello());
                stream
                    .set_read_timeout(Some(Duration::from_millis(300)))
                    .unwrap();
                tls::listen(&stream);
                wire::reset(stream);
            })
            .gives(&["client.gave_up.tls"], "client"),
        row("half-a-hello", is_silent)
            .visit(|place, stream| wire::send(&stream, &place.client(BOTH).hello()[..60]))
            .gives(&["tls.client_hello_incomplete"], "client"),
        // What the server says instead.
        row("http", |stream| {
            tls::says(&stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        })
        .gives(&["tls.not_tls_reply"], "unknown"),
        row("http-page", |stream| {
            tls::says(&stream, b"HTTP/1.1 302 Found\r\nLocation: http://blocked.test/\r\n\r\n");
        })
        .gives(&["tls.not_tls_reply"], "unknown")
        .suspects(&["block_page"]),
        row("http-portal", |stream| {
            tls::says(&stream, b"HTTP/1.1 511 Network Authentication Required\r\n\r\n");
        })
        .gives(&["tls.not_tls_reply"], "unknown")
        .suspects(&["captive_portal"]),
        row("ssh", |stream| tls::says(&stream, b"SSH-2.0-OpenSSH_9.2\r\n"))
            .gives(&["tls.not_tls_reply"], "unknown"),
        row("downgraded", |stream| {
            tls::says(&stream, &tls::downgraded_hello());
        })
        .gives(&["tls.downgrade_sentinel"], "unknown")
        .suspects(&["tls_interception"]),
        row("alert-then-reset", |stream| {
            let _ = tls::read_record(&stream);
            wire::send(&stream, tls::alert(80));
            wire::reset(stream);
        })
        .gives(&["tls.alert_from_server.internal_error"], "origin"),
        // Clients that refuse.
        row("wrong-authority-12", scene.shows(Leaf::Good, ONLY_12))
            .visit(refuses(ONLY_12))
            .gives(&["tls.client_rejected_certificate.unknown_ca"], "client"),
        row("wrong-authority-13", scene.shows(Leaf::Good, ONLY_13))
            .visit(refuses(ONLY_13))
            .gives(&["tls.client_rejected_certificate.inferred"], "client"),
        row("wrong-authority-13-in-clear", scene.good())
            .visit(|place, stream| {
                place.client(ONLY_13).hear_flight(&stream);
                wire::send(&stream, tls::alert(48));
                wire::finish(&stream);
                tls::listen(&stream);
            })
            .gives(&["tls.client_rejected_certificate.unknown_ca"], "client"),
        row("leaves-without-a-word-13", scene.good())
            .visit(|place, stream| place.client(ONLY_13).hear_flight(&stream))
            .gives(&["tls.client_closed_after_server_flight"], "client"),
        row("leaves-without-a-word-12", scene.good())
            .visit(|place, stream| place.client(ONLY_12).hear_flight(&stream))
            .gives(&["tls.client_closed_after_server_flight"], "client"),
        row("leaves-before-a-request-13", scene.good())
            .visit(|place, stream| place.client(ONLY_13).only_shake_hands(stream))
            .gives(&["tls.client_closed_before_request"], "client"),
        row("leaves-before-a-request-12", scene.good())
            .visit(|place, stream| place.client(ONLY_12).only_shake_hands(stream))
            .gives(&["tls.client_closed_before_request"], "client"),
        // The server may be the first to end the connection, once the client has said that it is over.
        row("takes-its-leave-13", scene.good())
            .visit(|place, stream| place.client(ONLY_13).only_take_leave(stream))
            .gives(&["tls.client_closed_before_request"], "client"),
        row("takes-its-leave-12", scene.good())
            .visit(|place, stream| place.client(ONLY_12).only_take_leave(stream))
            .gives(&["tls.client_closed_before_request"], "client"),
        row("members-only", members_only.clone())
            .visit(|place, stream| place.client(ONLY_13).knock(stream))
            .gives(&["tls.encrypted_alert_from_server"], "origin"),
        // As HTTP clients do: the request goes out behind the handshake, whoever reads it.
        row("members-only-asked-at-once", members_only)
            .visit(|place, stream| {
                place.client(ONLY_13).talk(stream).unwrap_err();
            })
            .gives(&["tls.encrypted_alert_from_server"], "origin"),
        // Behind the handshake.
        row("reset-in-the-middle", {
            let good = good.clone();
            move |stream| {
                let stream = tls::answer_once(&good, stream).sock;
                tls::read_record(&stream);
                wire::reset(stream);
            }
        })
        .visit(|place, stream| {
            let session = place.client(BOTH).stay(stream).unwrap();
            wire::send(&session.sock, [0x17, 3, 3, 0, 3, 1, 2, 3]);
            tls::listen(&session.sock);
        })
        .gives(&["tunnel.reset_by_server"], "origin"),
        row("client-resets", scene.good())
            .visit(|place, stream| {
                let session = place.client(BOTH).stay(stream).unwrap();
                wire::reset(session.sock);
            })
            .gives(&["client.reset"], "client"),
        // Behind an upstream packets tell of the way to that one only.
        row("upstream-then-reset", tls::resets_after_a_byte)
            .upstream()
            .known()
            .gives(&["tls.reset_after_client_hello"], "unknown"),
        // The length is the ClientHello's, before the name: the CONNECT has none.
        row("filtered-before-the-upstream", scene.good())
            .upstream()
            .known()
            .late(30)
            .firewall(
                "-A FORWARD -d ADDRESS -p tcp -m string --hex-string |00LENGTH|NAME --algo kmp -j REJECT --reject-with tcp-reset",
            )
            .gives(&["tls.reset_after_client_hello"], "unknown"),
        // Boxes on the way. The pause takes the handshake's own reset out of the question.
        row("filtered", scene.good())
            .known()
            .often()
            .late(30)
            .firewall(
                "-A FORWARD -d ADDRESS -p tcp -m string --string NAME --algo kmp -j REJECT --reject-with tcp-reset",
            )
            .gives(&["tls.reset_after_client_hello"], "network")
            .suspects(&["sni_filtering"])
            .also(json!({"egress.reset.last_write_acked": false, "egress.reset.accept_race": false})),
        row("filtered-6", scene.good())
            .ipv6()
            .known()
            .late(30)
            .firewall(
                "-A FORWARD -d ADDRESS -p tcp -m string --string NAME --algo kmp -j REJECT --reject-with tcp-reset",
            )
            .gives(&["tls.reset_after_client_hello"], "network")
            .suspects(&["sni_filtering"]),
        row("filtered-and-nothing-known", scene.good())
            .late(30)
            .firewall(
                "-A FORWARD -d ADDRESS -p tcp -m string --string NAME --algo kmp -j REJECT --reject-with tcp-reset",
            )
            .gives(&["tls.reset_after_client_hello"], "network"),
        row("whatever-is-sent-is-reset", scene.good())
            .often()
            .late(30)
            .firewall(
                "-A FORWARD -d ADDRESS -p tcp --tcp-flags PSH PSH -j REJECT --reject-with tcp-reset",
            )
            .gives(&["tls.reset_after_client_hello"], "network")
            .spares("sni_filtering"),
        row("blackholed", scene.good())
            .known()
            .leave_after(PATIENCE)
            .firewall("-A FORWARD -d ADDRESS -p tcp -m string --string NAME --algo kmp -j DROP")
            .gives(&["tls.client_hello_blackholed"], "network")
            .suspects(&["sni_filtering"]),
        row("blackholed-and-nothing-known", scene.good())
            .leave_after(PATIENCE)
            .firewall("-A FORWARD -d ADDRESS -p tcp -m string --string NAME --algo kmp -j DROP")
            .gives(&["tls.client_hello_blackholed"], "network"),
        row("long-hello-lost", scene.good())
            .visit(|place, stream| {
                wire::send(&stream, tls::long_hello(&place.name, 1600));
                tls::leave_after(&stream, PATIENCE);
            })
            .firewall("-A FORWARD -d ADDRESS -p tcp -m length --length 500: -j DROP")
            .gives(&["tls.client_hello_blackholed"], "network"),
        // The flight is longer than the hole is small, so its first segment is lost.
        row("hole-behind-the-server", scene.good())
            .leave_after(PATIENCE)
            .firewall("-A FORWARD -s ADDRESS -p tcp -m length --length 600: -j DROP")
            .gives(&["tls.no_server_hello"], "unknown"),
    ];
    for (name, number, cause) in ALERTS {
        rows.push(
            row(name, move |stream| tls::says(&stream, &tls::alert(*number)))
                .gives(std::slice::from_ref(cause), "origin")
                .also(json!({"egress.tls.alert": number, "egress.tls.alert_from": "server"})),
        );
    }
    scene.play(&json!({}), None, &rows);
}

/// What is wrong with a certificate, with names for its rows; how the client says so where that can be read, and what we see ourselves.
const LEAVES: &[(Leaf, &str, &str, &str, &str)] = &[
    (
        Leaf::SelfSigned,
        "self-signed",
        "self-signed-hidden",
        "tls.client_rejected_certificate.unknown_ca",
        "self_signed",
    ),
    (
        Leaf::Expired,
        "expired",
        "expired-hidden",
        "tls.client_rejected_certificate.certificate_expired",
        "expired",
    ),
    (
        Leaf::NotYetValid,
        "not-yet-valid",
        "not-yet-valid-hidden",
        "tls.client_rejected_certificate.certificate_expired",
        "not_yet_valid",
    ),
    (
        Leaf::WrongName,
        "wrong-name",
        "wrong-name-hidden",
        "tls.client_rejected_certificate.bad_certificate",
        "name_mismatch",
    ),
    (
        Leaf::MissingIntermediate,
        "no-intermediate",
        "no-intermediate-hidden",
        "tls.client_rejected_certificate.unknown_ca",
        "unknown_issuer",
    ),
    (
        Leaf::Authority,
        "authority",
        "authority-hidden",
        "tls.client_rejected_certificate.certificate_unknown",
        "self_signed",
    ),
];

/// Reads, and says nothing, until the client leaves.
#[expect(clippy::needless_pass_by_value, reason = "a server has its connection")]
fn is_silent(stream: TcpStream) {
    tls::listen(&stream);
}

/// What a server may say instead of a handshake.
const ALERTS: &[(&str, u8, &str)] = &[
    ("alert-40", 40, "tls.alert_from_server.handshake_failure"),
    ("alert-47", 47, "tls.alert_from_server.illegal_parameter"),
    ("alert-50", 50, "tls.alert_from_server.decode_error"),
    ("alert-70", 70, "tls.alert_from_server.protocol_version"),
    (
        "alert-71",
        71,
        "tls.alert_from_server.insufficient_security",
    ),
    ("alert-80", 80, "tls.alert_from_server.internal_error"),
    (
        "alert-86",
        86,
        "tls.alert_from_server.inappropriate_fallback",
    ),
    ("alert-109", 109, "tls.alert_from_server.missing_extension"),
    ("alert-112", 112, "tls.alert_from_server.unrecognized_name"),
    (
        "alert-116",
        116,
        "tls.alert_from_server.certificate_required",
    ),
    (
        "alert-120",
        120,
        "tls.alert_from_server.no_application_protocol",
    ),
    ("alert-121", 121, "tls.ech_rejected"),
];

/// A client that trusts another authority.
fn refuses(versions: Versions) -> impl Fn(&Place<'_>, TcpStream) + Send + Sync + 'static {
    let stranger = Ca::named("routecause stranger");
    move |place, stream| {
        let refusal = place.stranger(&stranger, versions).talk(stream);
        let refusal = refusal.unwrap_err().to_string();
        assert!(refusal.contains("UnknownIssuer"), "{refusal}");
    }
}

#[test]
fn what_clients_find_wrong_with_a_certificate() {
    let Some(scene) = Scene::new() else { return };
    let inspection = Ca::named("Zscaler Root CA");
    let mut rows = Vec::new();
    for (leaf, name, _, alert, verdict) in LEAVES {
        let refuse = |versions| {
            move |place: &Place<'_>, stream| {
                place.client(versions).talk(stream).unwrap_err();
            }
        };
        rows.push(
            row(name, scene.shows(*leaf, ONLY_12))
                .visit(refuse(ONLY_12))
                .gives(std::slice::from_ref(alert), "client")
                .also(json!({"tls.protocol.version": "1.2", "egress.tls.certificate": verdict})),
        );
    }
    for (leaf, _, hidden, ..) in LEAVES {
        rows.push(
            row(hidden, scene.shows(*leaf, ONLY_13))
                .visit(|place, stream| {
                    place.client(ONLY_13).talk(stream).unwrap_err();
                })
                .gives(&["tls.client_rejected_certificate.inferred"], "client")
                // TLS 1.3 shows the certificate to the client alone.
                .also(json!({"tls.protocol.version": "1.3", "egress.tls.certificate": null})),
        );
    }
    rows.push(
        row("inspected", shows(&inspection, Leaf::Good, ONLY_12))
            .visit(|place, stream| {
                place.client(ONLY_12).talk(stream).unwrap_err();
            })
            .gives(&["tls.client_rejected_certificate.unknown_ca"], "client")
            .suspects(&["tls_interception"])
            .also(json!({"egress.tls.certificate": "known_interceptor"})),
    );
    scene.play(&json!({}), None, &rows);
}

#[test]
fn whose_reset_it_was_on_a_long_way() {
    let Some(scene) = Scene::new() else { return };
    let router = scene.net.slowed(Duration::from_millis(ONE_WAY));
    // Three in a burst, as injectors do, from nearer than the server.
    let injected = json!({"reset": 3, "ttl": 44});
    let in_path = json!({"reset": 1, "drop": true});
    let rows = [
        row("fine", scene.good()).visit(|place, stream| place.client(BOTH).talk(stream).unwrap()),
        // The server's own.
        row("a-byte-then-reset", tls::resets_after_a_byte)
            .known()
            .often()
            .gives(&["tls.reset_after_client_hello"], "origin")
            .also(json!({"egress.reset.last_write_acked": true})),
        row("hello-then-reset", |stream| {
            tls::resets_after_the_hello(stream, Duration::from_millis(20));
        })
        .known()
        .often()
        .gives(&["tls.reset_after_client_hello"], "origin"),
        row("unread-close", tls::closes_without_reading)
            .known()
            .often()
            .gives(&["tls.reset_after_client_hello"], "origin"),
        row("unread-close-late", tls::closes_without_reading)
            .known()
            .often()
            .late(300)
            .gives(&["tls.reset_after_client_hello"], "origin"),
        row("a-byte-then-reset-late", tls::resets_after_a_byte)
            .known()
            .often()
            .late(300)
            .gives(&["tls.reset_after_client_hello"], "origin"),
        // A server that is slow to acknowledge, and resets before it has: whose reset it was cannot be told by that.
        row("hello-then-reset-unacknowledged", |stream| {
            let socket = socket2::SockRef::from(&stream);
            socket.set_tcp_quickack(false).unwrap();
            tls::resets_after_the_hello(stream, Duration::ZERO);
        })
        .known()
        .often()
        .late(300)
        .gives(&["tls.reset_after_client_hello"], "")
        .whoever_it_was()
        .also(json!({"egress.reset.last_write_acked": false})),
        // The one of the server's own that looks forged: its ClientHello is on the way. Close behind the connection it
        // may as well be there in time.
        row("reset-on-accept", wire::reset)
            .known()
            .often()
            .gives(&["tls.reset_after_client_hello"], "")
            .whoever_it_was(),
        row("reset-on-accept-hello-soon", wire::reset)
            .known()
            .often()
            .late(50)
            .gives(&["tls.reset_after_client_hello"], "unknown")
            .also(
                json!({"egress.reset.last_write_acked": false, "egress.reset.accept_race": true}),
            ),
        row("reset-on-accept-hello-on-the-way", wire::reset)
            .known()
            .often()
            .late(100)
            .gives(&["tls.reset_after_client_hello"], "unknown")
            .also(json!({"egress.reset.accept_race": true})),
        row("reset-on-accept-late", wire::reset)
            .known()
            .often()
            .late(300)
            .gives(&["tls.reset_before_client_hello"], "unknown"),
        // Forged ones.
        row("injected-near-the-client", scene.good())
            .known()
            .often()
            .filtered(NEAR_CLIENT, &injected)
            .gives(&["tls.reset_after_client_hello"], "network")
            .suspects(&["sni_filtering"])
            .also(
                json!({"egress.reset.last_write_acked": false, "egress.reset.accept_race": false}),
            ),
        row("injected-and-nothing-known", scene.good())
            .filtered(NEAR_CLIENT, &injected)
            .gives(&["tls.reset_after_client_hello"], "network"),
        row("injected-near-the-server", scene.good())
            .known()
            .often()
            .late(300)
            .filtered(NEAR_SERVER, &injected)
            .gives(&["tls.reset_after_client_hello"], "network")
            .suspects(&["sni_filtering"]),
        // As soon as this it may as well be a reset on accept.
        row("injected-near-the-server-early", scene.good())
            .known()
            .often()
            .late(10)
            .filtered(NEAR_SERVER, &injected)
            .gives(&["tls.reset_after_client_hello"], "unknown"),
        row("in-path-near-the-client", scene.good())
            .known()
            .often()
            .filtered(NEAR_CLIENT, &in_path)
            .gives(&["tls.reset_after_client_hello"], "network")
            .suspects(&["sni_filtering"]),
        row("in-path-near-the-server", scene.good())
            .known()
            .often()
            .late(300)
            .filtered(NEAR_SERVER, &in_path)
            .gives(&["tls.reset_after_client_hello"], "network")
            .suspects(&["sni_filtering"]),
        // The address is blocked, whatever the name.
        row("reset-on-the-handshake", scene.good())
            .often()
            .on_the_way(
                json!({"from": "client", "on": "ack", "at": NEAR_CLIENT, "reset": 3, "ttl": 44}),
            )
            .gives(&["tls.reset_after_client_hello"], "network"),
        row("reset-on-the-handshake-late", scene.good())
            .late(120)
            .on_the_way(
                json!({"from": "client", "on": "ack", "at": NEAR_CLIENT, "reset": 3, "ttl": 44}),
            )
            .gives(&["tls.reset_before_client_hello"], "unknown")
            .whoever_it_was(),
        row("blackholed", scene.good())
            .known()
            .leave_after(PATIENCE)
            .filtered(NEAR_CLIENT, &json!({"drop": true}))
            .gives(&["tls.client_hello_blackholed"], "network")
            .suspects(&["sni_filtering"]),
        row("hole-behind-the-server", scene.good())
            .leave_after(PATIENCE)
            .on_the_way(json!({"from": "server", "longer": 600, "drop": true}))
            .gives(&["tls.no_server_hello"], "unknown"),
        // The name stands in the certificate, which TLS 1.2 shows to everybody.
        row("reset-on-the-certificate", scene.shows(Leaf::Good, ONLY_12))
            .on_the_way(json!({"from": "server", "contains": "site.test", "reset": 3}))
            .gives(&["tls.reset_during_server_flight"], "")
            .whoever_it_was(),
    ];
    scene.play(&json!({}), Some(&router), &rows);
}

#[test]
fn a_proxy_that_hears_late_of_a_reset_suspects_nobody() {
    // The connection stands at 200 ms, the server resets it at 300 ms, and the reset is here at 400 ms.
    reset_on_accept_while_stalled(250, 600);
}

#[test]
fn a_proxy_that_hears_late_of_its_connection_suspects_nobody() {
    reset_on_accept_while_stalled(100, 370);
}

/// The proxy's own lateness must not make a server's reset look forged.
#[track_caller]
fn reset_on_accept_while_stalled(from: u64, until: u64) {
    let Some(scene) = Scene::new() else { return };
    let router = scene.net.slowed(Duration::from_millis(ONE_WAY));
    let causes = &[
        "tls.reset_after_client_hello",
        "tls.reset_before_client_hello",
    ];
    let row = row("reset-on-accept", wire::reset)
        .known()
        .stalled(from, until)
        // A server that is late itself acknowledges the ClientHello first.
        .gives(causes, "")
        .whoever_it_was();
    scene.play(&json!({}), Some(&router), &[row]);
}

#[test]
fn tunnels_that_end_by_our_own_timer() {
    let Some(scene) = Scene::new() else { return };
    let good = &scene.good;
    let once = {
        let good = good.clone();
        move |stream| tls::answer_once(&good, stream).sock
    };
    let mut big = vec![0x17, 3, 3, 0x40, 0];
    big.resize(5 + 0x4000, 7);
    let big = Arc::new(big.repeat(1024));
    let rows = [
        row("client-silent", is_silent)
            .visit(|_, stream| tls::listen(&stream))
            .gives(&["tls.client_silent"], "client"),
        row("half-a-hello", is_silent)
            .visit(|place, stream| {
                wire::send(&stream, &place.client(BOTH).hello()[..60]);
                tls::listen(&stream);
            })
            .gives(&["tls.client_hello_incomplete"], "client"),
        row("both-silent", scene.good())
            .visit(|place, stream| {
                let session = place.client(BOTH).stay(stream).unwrap();
                tls::listen(&session.sock);
            })
            .gives(&["tunnel.idle_timeout"], "proxy"),
        row("server-silent", {
            let once = once.clone();
            move |stream| tls::listen(&once(stream))
        })
        .visit(|place, stream| {
            let session = place.client(BOTH).stay(stream).unwrap();
            wire::send(&session.sock, [0x17, 3, 3, 0, 3, 1, 2, 3]);
            tls::listen(&session.sock);
        })
        .gives(&["tunnel.server_silent"], "unknown"),
        row("server-does-not-read", {
            let once = once.clone();
            move |stream| {
                let _stream = once(stream);
                // Longer than the limit.
                thread::sleep(PATIENCE);
            }
        })
        .visit({
            let big = big.clone();
            move |place, stream| {
                let session = place.client(BOTH).stay(stream).unwrap();
                let _ = std::io::Write::write_all(&mut &session.sock, &big);
                tls::listen(&session.sock);
            }
        })
        .gives(&["tunnel.peer_window_zero"], "origin"),
        row("client-does-not-read", {
            let once = once.clone();
            move |stream| {
                let stream = once(stream);
                let _ = std::io::Write::write_all(&mut &stream, &big);
                tls::listen(&stream);
            }
        })
        .visit(|place, stream| {
            let _session = place.client(BOTH).stay(stream).unwrap();
            // Longer than the limit.
            thread::sleep(PATIENCE);
        })
        .gives(&["tunnel.client_not_reading"], "client"),
        row("way-lost", scene.good())
            .visit(|place, stream| {
                let session = place.client(BOTH).stay(stream).unwrap();
                let ip = place.address.ip();
                let router = &place.scene.net.router;
                router.iptables(&format!("-A FORWARD -d {ip} -j DROP"));
                wire::send(&session.sock, [0x17, 3, 3, 0, 3, 1, 2, 3]);
                tls::listen(&session.sock);
            })
            .gives(&["tunnel.no_ack"], "unknown"),
    ];
    scene.play(&json!({"idle": IDLE}), None, &rows);
}

/// What the network says, or does not say, in the middle of a tunnel, where the kernel gives up sooner than usual.
#[test]
fn tunnels_that_the_network_ends() {
    let Some(scene) = Scene::new() else { return };
    scene.net.client.sysctl("net.ipv4.tcp_retries2", "2");
    let cut = |answer: &'static str| {
        move |place: &Place<'_>, stream| {
            let session = place.client(BOTH).stay(stream).unwrap();
            let ip = place.address.ip();
            let router = &place.scene.net.router;
            router.iptables(&format!("-A FORWARD -d {ip} -p tcp -j {answer}"));
            wire::send(&session.sock, [0x17, 3, 3, 0, 3, 1, 2, 3]);
            tls::listen(&session.sock);
        }
    };
    let rows = [
        row("unreachable", scene.good())
            .visit(cut("REJECT --reject-with icmp-host-unreachable"))
            .gives(&["tunnel.icmp"], "unknown"),
        row("silent", scene.good())
            .visit(cut("DROP"))
            .gives(&["tunnel.no_ack"], "unknown"),
    ];
    scene.play(&json!({}), None, &rows);
}

/// A session of at least half a minute, and what a firewall makes of it that has forgotten it.
#[test]
fn tunnels_that_were_forgotten_meanwhile() {
    if !is_long() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let forgotten = |answer: &'static str| {
        move |place: &Place<'_>, stream| {
            let session = place.client(BOTH).stay(stream).unwrap();
            // Longer than the silence that counts as idle.
            thread::sleep(Duration::from_secs(32));
            let ip = place.address.ip();
            let router = &place.scene.net.router;
            router.iptables(&format!("-A FORWARD -d {ip} -p tcp -j {answer}"));
            wire::send(&session.sock, [0x17, 3, 3, 0, 3, 1, 2, 3]);
            session
                .sock
                .set_read_timeout(Some(Duration::from_mins(1)))
                .unwrap();
            tls::listen(&session.sock);
        }
    };
    let rows = [
        row("reset", scene.good())
            .visit(forgotten("REJECT --reject-with tcp-reset"))
            .gives(&["tunnel.reset_after_idle"], "unknown"),
        row("dropped", scene.good())
            .visit(forgotten("DROP"))
            .gives(&["tunnel.blackholed_after_idle"], "network"),
    ];
    scene.play(&json!({"idle": "35s"}), None, &rows);
}
