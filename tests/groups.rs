//! Groups: one of several upstreams serves, another where it is down, and which is down is remembered.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::SockRef;

use support::origin::{self, Listening, Origin};
use support::{Proxy, SOON, check, wire};

/// Upstreams `m1`, `m2` and so on as members of one group, and what else its lines say.
fn policy(members: &[SocketAddr], health: &str, group: &str) -> String {
    let upstream = |(at, address)| format!("  m{at}: {{url: \"http://{address}\"{health}}}\n");
    let upstreams: String = (1..).zip(members).map(upstream).collect();
    let names: Vec<_> = (1..=members.len()).map(|at| format!("m{at}")).collect();
    let names = names.join(", ");
    format!(
        "version: 1\nupstreams:\n{upstreams}groups: {{mirrors: {{members: [{names}]{group}}}}}\n\
         rules: []\ndefault: {{via: mirrors}}\n"
    )
}

/// An upstream that answers every CONNECT the same way, for as long as it runs; it can be stopped and started again.
struct Upstream {
    address: SocketAddr,
    answer: &'static str,
    running: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    heard: Arc<AtomicUsize>,
}

const GRANTED: &str = "HTTP/1.1 200 OK\r\n\r\n";

impl Upstream {
    fn new(answer: &'static str) -> Self {
        let mut this = Self::stopped(answer);
        this.start();
        this
    }

    /// One that does not listen yet.
    fn stopped(answer: &'static str) -> Self {
        Self {
            address: Origin::free(),
            answer,
            running: None,
            heard: Arc::default(),
        }
    }

    fn start(&mut self) {
        let listener = origin::bind(self.address);
        let (end, answer, heard) = (
            Arc::<AtomicBool>::default(),
            self.answer,
            self.heard.clone(),
        );
        let is_over = end.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                heard.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(&stream, answer));
            }
        });
        self.running = Some((end, thread));
    }

    /// Stops it: what connects is refused, what is open ends.
    fn stop(&mut self) {
        let Some((end, thread)) = self.running.take() else {
            return;
        };
        end.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        thread.join().unwrap();
    }

    fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Answers one CONNECT and waits for its end. A listener that is gone must not keep the port.
fn serve(stream: &TcpStream, answer: &str) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match std::io::Read::read(&mut &*stream, &mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let _ = std::io::Write::write_all(&mut &*stream, answer.as_bytes());
    let _ = std::io::Read::read(&mut &*stream, &mut byte);
}

/// Asks for a tunnel: the answer's head, and the connection.
fn connect(proxy: &Proxy, target: &str) -> (String, TcpStream) {
    let client = proxy.connect();
    wire::send(&client, format!("CONNECT {target} HTTP/1.1\r\n\r\n"));
    (wire::read_head(&client), client)
}

/// The status of a tunnel that is given up at once, and its record.
fn ask(proxy: &Proxy, target: &str) -> (u16, Value) {
    let (head, client) = connect(proxy, target);
    drop(client);
    (wire::status(&head), proxy.record())
}

fn attempts(record: &Value) -> Vec<(String, String)> {
    let attempts = record["egress.attempts"].as_array().unwrap();
    let told = |attempt: &Value| {
        let text = |key: &str| attempt[key].as_str().unwrap_or_default().to_owned();
        (text("hop"), text("cause"))
    };
    attempts.iter().map(told).collect()
}

fn pair(hop: &str, cause: &str) -> (String, String) {
    (hop.to_owned(), cause.to_owned())
}

#[test]
fn where_one_member_refuses_another_serves() {
    let well = Upstream::new(GRANTED);
    let proxy = Proxy::start(&policy(&[Origin::nowhere(), well.address], "", ""));
    let (status, record) = ask(&proxy, "a.example:443");
    assert_eq!(status, 200);
    check!(&record, "egress.route": "mirrors", "egress.hop": "m2", "egress.upstream.name": "m2");
    assert_eq!(
        attempts(&record),
        [pair("m1", "upstream.connect.refused"), pair("m2", "")]
    );
}

#[test]
fn what_a_member_says_of_a_target_is_not_asked_of_another() {
    for (answer, status, cause) in [
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            403,
            "upstream.denied",
        ),
        (
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
            502,
            "upstream.reported.unavailable",
        ),
    ] {
        let (first, second) = (Upstream::new(answer), Upstream::new(GRANTED));
        let proxy = Proxy::start(&policy(&[first.address, second.address], "", ""));
        let (told, record) = ask(&proxy, "a.example:443");
        assert_eq!(told, status);
        check!(&record, "error.type": cause, "egress.hop": "m1");
        assert_eq!(second.heard(), 0);
    }
}

#[test]
fn a_member_that_ends_before_its_answer_is_down() {
    let (first, second) = (Listening::new(), Upstream::new(GRANTED));
    let proxy = Proxy::start(&policy(&[first.address, second.address], "", ""));
    let client = proxy.connect();
    wire::send(&client, "CONNECT a.example:443 HTTP/1.1\r\n\r\n");
    drop(first.hear());
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    drop(client);
    assert_eq!(
        attempts(&proxy.record()),
        [pair("m1", "upstream.closed"), pair("m2", "")]
    );
}

#[test]
fn a_member_that_keeps_failing_is_passed_over_and_tried_again() {
    let mut first = Upstream::stopped(GRANTED);
    let second = Upstream::new(GRANTED);
    let health = ", health: {max_fails: 2, fail_timeout: 3s}";
    let proxy = Proxy::start(&policy(&[first.address, second.address], health, ""));
    let hops = |count: usize| -> Vec<usize> {
        let attempts = (0..count).map(|_| attempts(&ask(&proxy, "a.example:443").1).len());
        attempts.collect()
    };
    assert_eq!(hops(4), [2, 2, 1, 1]);
    let told = proxy.diary("upstream m1 is down: upstream.connect.refused, 2 times in ");
    assert!(told.ends_with("; next try in 3s"), "{told}");
    first.start();
    let deadline = Instant::now() + SOON;
    while first.heard() == 0 {
        assert!(Instant::now() < deadline, "it is never tried again");
        ask(&proxy, "a.example:443");
    }
    proxy.diary("upstream m1 is up again");
    let (_, record) = ask(&proxy, "a.example:443");
    check!(&record, "egress.hop": "m1");
}

#[test]
fn where_all_members_are_down_the_first_is_tried_anyway() {
    let mut first = Upstream::stopped(GRANTED);
    let members = [first.address, Origin::nowhere()];
    let proxy = Proxy::start(&policy(&members, ", health: {max_fails: 1}", ""));
    let (status, record) = ask(&proxy, "a.example:443");
    assert_eq!(status, 503);
    check!(&record, "error.type": "upstream.all_down", "egress.side": "upstream",
        "egress.route": "mirrors", "egress.hop": "m2");
    let refused = [
        pair("m1", "upstream.connect.refused"),
        pair("m2", "upstream.connect.refused"),
    ];
    assert_eq!(attempts(&record), refused);
    assert_eq!(attempts(&ask(&proxy, "a.example:443").1), refused);
    first.start();
    let (status, record) = ask(&proxy, "a.example:443");
    assert_eq!(status, 200);
    assert_eq!(attempts(&record), [pair("m1", "")]);
}

#[test]
fn where_all_members_are_down_a_request_fails_at_once_if_the_policy_says_so() {
    let members = [Origin::nowhere(), Origin::nowhere()];
    let proxy = Proxy::start(&policy(
        &members,
        ", health: {max_fails: 1}",
        ", all_down: fail",
    ));
    ask(&proxy, "a.example:443");
    let (head, client) = connect(&proxy, "a.example:443");
    assert!(
        head.starts_with(
            "HTTP/1.1 503 upstream.all_down: no member of mirrors serves: m1: upstream.circuit_open; \
             m2: upstream.circuit_open"
        ),
        "{head}"
    );
    assert_eq!(
        wire::field(&head, "proxy-status").and_then(|status| status.split("; ").nth(1)),
        Some("error=destination_unavailable")
    );
    drop(client);
    let open = [
        pair("m1", "upstream.circuit_open"),
        pair("m2", "upstream.circuit_open"),
    ];
    assert_eq!(attempts(&proxy.record()), open);
}

#[test]
fn a_hop_that_is_known_to_be_down_costs_no_try() {
    let (down, also_down) = (Origin::nowhere(), Origin::nowhere());
    let origin = Origin::answering("hello");
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams:\n  corp: {{url: \"http://{down}\", health: {{max_fails: 1}}}}\n  \
         spare: {{url: \"http://{also_down}\", health: {{max_fails: 1}}}}\nchains: {{out: {{hops: [corp, spare, direct], \
         retry: {{attempts: 2}}}}}}\nrules: []\ndefault: {{via: out}}\n"
    ));
    let target = origin.address.to_string();
    assert_eq!(ask(&proxy, &target).0, 502);
    let (status, record) = ask(&proxy, &target);
    assert_eq!(status, 200);
    assert_eq!(
        attempts(&record),
        [
            pair("corp", "upstream.circuit_open"),
            pair("spare", "upstream.circuit_open"),
            pair("direct", "")
        ]
    );
}

#[test]
fn an_open_circuit_leads_a_chain_on_and_the_last_hop_is_tried_anyway() {
    let (down, also_down) = (Origin::nowhere(), Origin::nowhere());
    let origin = Origin::answering("hello");
    let start = |chain: &str| {
        Proxy::start(&format!(
            "version: 1\nupstreams:\n  corp: {{url: \"http://{down}\", health: {{max_fails: 1}}}}\n  \
             spare: {{url: \"http://{also_down}\", health: {{max_fails: 1}}}}\nrules: []\n\
             default: {{via: \"{chain}\"}}\n"
        ))
    };
    let target = origin.address.to_string();
    let proxy = start("corp|direct");
    ask(&proxy, &target);
    let (status, record) = ask(&proxy, &target);
    assert_eq!(status, 200);
    assert_eq!(
        attempts(&record),
        [pair("corp", "upstream.circuit_open"), pair("direct", "")]
    );
    // Behind a comma nothing else serves where an upstream is down, nor behind the last hop.
    for (chain, expected) in [
        (
            "corp,direct",
            vec![pair("corp", "upstream.connect.refused")],
        ),
        (
            "corp|spare",
            vec![
                pair("corp", "upstream.circuit_open"),
                pair("spare", "upstream.connect.refused"),
            ],
        ),
        ("corp", vec![pair("corp", "upstream.connect.refused")]),
    ] {
        let proxy = start(chain);
        ask(&proxy, &target);
        assert_eq!(attempts(&ask(&proxy, &target).1), expected, "{chain}");
    }
}

#[test]
fn a_chain_goes_on_behind_a_group_and_may_hold_its_members_alone() {
    let well = Upstream::new(GRANTED);
    let spare = well.address;
    let members = [Origin::nowhere(), Origin::nowhere()];
    let text = policy(&members, "", "")
        .replace(
            "groups:",
            &format!("  spare: {{url: \"http://{spare}\"}}\ngroups:"),
        )
        .replace("via: mirrors", "via: \"mirrors|spare\"");
    let proxy = Proxy::start(&text);
    let (status, record) = ask(&proxy, "a.example:443");
    assert_eq!(status, 200);
    check!(&record, "egress.route": "mirrors|spare", "egress.hop": "spare");
    assert_eq!(attempts(&record).len(), 3);
}

#[test]
fn held_tunnels_send_the_next_one_elsewhere() {
    let (first, second) = (Upstream::new(GRANTED), Upstream::new(GRANTED));
    let group = ", balance: least_conn";
    let proxy = Proxy::start(&policy(&[first.address, second.address], "", group));
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..6 {
        held.push(connect(&proxy, "a.example:443").1);
    }
    assert_eq!((first.heard(), second.heard()), (3, 3));
    // Which member each went by is told by its record: all of one are ended.
    drop(held);
    let records = proxy.records(6);
    let hops: BTreeMap<&str, usize> = records.iter().fold(BTreeMap::new(), |mut hops, record| {
        *hops
            .entry(record["egress.hop"].as_str().unwrap())
            .or_default() += 1;
        hops
    });
    assert_eq!(hops, BTreeMap::from([("m1", 3), ("m2", 3)]));
    let (held, mut others) = (connect(&proxy, "a.example:443").1, Vec::new());
    // One is held: the next goes to the other member, and so does each that follows an end.
    for _ in 0..3 {
        others.push(ask(&proxy, "a.example:443").1["egress.hop"].clone());
    }
    drop(held);
    let first = proxy.record()["egress.hop"].clone();
    assert!(others.iter().all(|hop| *hop != first), "{first} {others:?}");
}

#[test]
fn a_host_keeps_its_member_over_restarts() {
    let upstreams = [(); 3].map(|()| Upstream::new(GRANTED));
    let members = [0, 1, 2].map(|at: usize| upstreams[at].address);
    let chosen = || -> Vec<String> {
        let proxy = Proxy::start(&policy(&members, "", ", balance: hash_host"));
        let hop = |host: usize| {
            let (_, record) = ask(&proxy, &format!("host-{host}.example:443"));
            record["egress.hop"].as_str().unwrap().to_owned()
        };
        (0..20).map(hop).collect()
    };
    let before = chosen();
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(chosen(), before);
}

#[test]
fn a_member_that_is_restarted_in_mid_flow_takes_only_its_own_tunnels_along() {
    let (first, second) = (Listening::new(), Upstream::new(GRANTED));
    let proxy = Proxy::start(&policy(&[first.address, second.address], "", ""));
    let client = proxy.connect();
    wire::send(&client, "CONNECT a.example:443 HTTP/1.1\r\n\r\n");
    let (server, _) = first.hear();
    wire::send(&server, GRANTED);
    wire::read_head(&client);
    wire::send(&client, "ping");
    assert_eq!(wire::read_exact(&server, 4), b"ping");
    wire::send(&server, "pong");
    assert_eq!(wire::read_exact(&client, 4), b"pong");
    let address = first.address;
    drop(first);
    wire::reset(server);
    assert!(wire::is_reset(&client));
    drop(client);
    check!(&proxy.record(), "egress.hop": "m1", "event.outcome": "failure");
    // While it is away the other one serves; when it is back, it does.
    assert_eq!(ask(&proxy, "a.example:443").1["egress.hop"], "m2");
    let first = Listening::on(address);
    let client = proxy.connect();
    wire::send(&client, "CONNECT a.example:443 HTTP/1.1\r\n\r\n");
    let (server, _) = first.hear();
    wire::send(&server, GRANTED);
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
}

#[test]
fn whatever_members_come_and_go_every_request_ends_by_a_member_or_by_a_cause() {
    const REQUESTS: usize = 200;
    const CLIENTS: usize = 8;
    let mut upstreams = [(); 3].map(|()| Upstream::new(GRANTED));
    let members = [0, 1, 2].map(|at: usize| upstreams[at].address);
    let health = ", health: {max_fails: 2, fail_timeout: 100ms}";
    let proxy = Arc::new(Proxy::start(&policy(
        &members,
        health,
        ", balance: round_robin",
    )));
    let asked = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (proxy, asked) = (proxy.clone(), asked.clone());
            std::thread::spawn(move || {
                while asked.fetch_add(1, Ordering::SeqCst) < REQUESTS {
                    let started = Instant::now();
                    let (head, client) = connect(&proxy, "a.example:443");
                    // The budget of retries, by default.
                    assert!(started.elapsed() < Duration::from_secs(9), "{head}");
                    assert!(matches!(wire::status(&head), 200 | 503), "{head}");
                    drop(client);
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    let mut turn = 0;
    while asked.load(Ordering::SeqCst) < REQUESTS || turn < 2 {
        let at = turn % upstreams.len();
        upstreams[at].stop();
        if turn % 5 == 4 {
            // For a moment, none of them is there.
            upstreams.iter_mut().for_each(Upstream::stop);
        }
        std::thread::sleep(Duration::from_millis(10));
        for upstream in &mut upstreams {
            if upstream.running.is_none() {
                upstream.start();
            }
        }
        turn += 1;
    }
    for client in clients {
        client.join().unwrap();
    }
    let records = proxy.records(REQUESTS);
    assert_eq!(records.len(), REQUESTS);
    for record in &records {
        let cause = record["error.type"].as_str();
        let by_member = ["m1", "m2", "m3"].contains(&record["egress.hop"].as_str().unwrap());
        let is_served = record["http.response.status_code"] == 200;
        assert!(
            by_member && (is_served || cause == Some("upstream.all_down")),
            "{record:#}"
        );
    }
    assert!(turn > 1);
}

#[test]
fn probes_take_an_upstream_down_and_bring_it_back_without_a_request() {
    let mut first = Upstream::stopped(GRANTED);
    let second = Upstream::new(GRANTED);
    let health = ", health: {max_fails: 1, fail_timeout: 1h, \
                  probe: {connect: 'probe.example:443', every: 2s, timeout: 2s, rise: 2}}";
    let proxy = Proxy::start(&policy(&[first.address, second.address], health, ""));
    let told = proxy.diary("upstream m1 is down: upstream.connect.refused; next try in 60m");
    assert!(told.contains("INFO"), "{told}");
    // The first request is not the one that finds out.
    let (_, record) = ask(&proxy, "a.example:443");
    assert_eq!(attempts(&record), [pair("m2", "")]);
    first.start();
    proxy.diary("upstream m1 is up again");
    assert!(first.heard() >= 2);
    let (_, record) = ask(&proxy, "a.example:443");
    check!(&record, "egress.hop": "m1");
    // They leave no records.
    assert_eq!(proxy.stop().1, <[Value; 0]>::default());
}

#[test]
fn a_probe_asks_for_its_target_in_our_name_or_only_connects() {
    let (asked, reached) = (Listening::new(), Listening::new());
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams:\n  asked: {{url: \"http://{}\", health: {{probe: {{connect: 'p.example:443', every: 1s}}}}}}\n  \
         reached: {{url: \"http://{}\", health: {{probe: {{every: 1s}}}}}}\nrules: []\ndefault: {{direct: true}}\n",
        asked.address, reached.address
    ));
    let (server, head) = asked.hear();
    assert!(
        head.starts_with("CONNECT p.example:443 HTTP/1.1\r\n"),
        "{head}"
    );
    let via = wire::field(&head, "via").unwrap();
    assert!(via.starts_with("1.1 routecause-"), "{head}");
    wire::send(&server, GRANTED);
    assert!(wire::is_fin(&server));
    assert!(wire::is_fin(&reached.accept()));
    assert_eq!(proxy.stop().1, <[Value; 0]>::default());
}

#[test]
fn a_reload_keeps_what_is_known_and_ends_the_probes_of_before() {
    let (down, second) = (Origin::nowhere(), Upstream::new(GRANTED));
    let health = ", health: {max_fails: 1, fail_timeout: 1h}";
    let text = policy(&[down, second.address], health, "");
    let proxy = Proxy::start(&text);
    assert_eq!(attempts(&ask(&proxy, "a.example:443").1).len(), 2);
    std::fs::write(&proxy.policy, format!("{text}# the same\n")).unwrap();
    proxy.diaries("reloaded", 1);
    assert_eq!(attempts(&ask(&proxy, "a.example:443").1), [pair("m2", "")]);
    // Another URL is another upstream; and it is probed, as long as the policy says so.
    let third = Upstream::new(GRANTED);
    let probed = text
        .replace(&down.to_string(), &third.address.to_string())
        .replace("max_fails: 1,", "max_fails: 1, probe: {every: 1s},");
    std::fs::write(&proxy.policy, probed).unwrap();
    proxy.diaries("reloaded", 2);
    check!(&ask(&proxy, "a.example:443").1, "egress.hop": "m1");
    let deadline = Instant::now() + SOON;
    while third.heard() < 3 {
        assert!(Instant::now() < deadline, "{} probes", third.heard());
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::write(&proxy.policy, text).unwrap();
    proxy.diaries("reloaded", 3);
    // Once this one is answered, no probe that was under way is still to be taken.
    let own = wire::connect(third.address);
    wire::send(&own, "CONNECT a.example:443 HTTP/1.1\r\n\r\n");
    wire::read_head(&own);
    let before = third.heard();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(third.heard(), before);
}

#[test]
fn a_plain_request_counts_as_well_and_a_group_shares_its_connections() {
    let origin = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let first = Origin::serving(|stream| wire::read_head(&stream));
    let second = Origin::answering(origin);
    let health = ", health: {max_fails: 2}";
    let proxy = Proxy::start(&policy(&[first.address, second.address], health, ""));
    let get = || {
        let client = proxy.connect();
        let request = "POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n";
        wire::send(&client, format!("{request}Connection: close\r\n\r\n"));
        let status = wire::status(&wire::read_head(&client));
        (status, proxy.record())
    };
    for _ in 0..2 {
        let (status, record) = get();
        assert_eq!(status, 502);
        check!(&record, "error.type": "upstream.closed", "egress.hop": "m1");
    }
    proxy.diary("upstream m1 is down: upstream.closed, 2 times in ");
    let (status, record) = get();
    assert_eq!(status, 200);
    check!(&record, "egress.route": "mirrors", "egress.hop": "m2");
}
