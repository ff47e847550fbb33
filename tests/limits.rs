//! What is over a limit is told so at once, with a cause, and disturbs nothing that is within it.

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use support::origin::{Listening, Origin};
use support::process::Holdings;
use support::{DIRECT, Proxy, admin, check, needs, wire};

fn connect_to(client: &TcpStream, address: SocketAddr) -> String {
    wire::send(
        client,
        format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
    );
    wire::read_head(client)
}

/// A tunnel that carries bytes.
fn tunnel(proxy: &Proxy, origin: &Listening) -> (TcpStream, TcpStream) {
    let client = proxy.connect();
    let head = connect_to(&client, origin.address);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    (client, origin.accept())
}

#[track_caller]
fn carries((client, server): &(TcpStream, TcpStream)) {
    wire::send(client, b"ping");
    assert_eq!(wire::read_exact(server, 4), b"ping");
    wire::send(server, b"pong");
    assert_eq!(wire::read_exact(client, 4), b"pong");
}

#[test]
fn a_client_has_so_many_connections() {
    let proxy = Proxy::under(DIRECT)
        .arg("--limits")
        .arg("per_client=2")
        .start();
    let origin = Listening::new();
    let tunnels = [tunnel(&proxy, &origin), tunnel(&proxy, &origin)];
    let answer = wire::read_text(&proxy.connect());
    assert!(
        answer.starts_with("HTTP/1.1 429 proxy.limit.client: "),
        "{answer}"
    );
    assert_eq!(wire::field(&answer, "retry-after"), Some("1"));
    check!(&proxy.record(), "error.type": "proxy.limit.client", "egress.side": "proxy", "event.outcome": "unknown");
    let [first, second] = tunnels;
    carries(&second);
    drop(first);
    check!(&proxy.record(), "event.outcome": "success");
    // The place is free with the record.
    let deadline = Instant::now() + support::SOON;
    loop {
        let client = proxy.connect();
        if connect_to(&client, origin.address).starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < deadline);
    }
}

/// An origin on every address of loopback that keeps its connections; its port.
fn keeping() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                while matches!(stream.peek(&mut [0]), Ok(1)) {
                    wire::read_head(&stream);
                    wire::send(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    port
}

#[test]
fn connections_to_many_targets_are_not_all_kept() {
    const TARGETS: u8 = 100;
    let proxy = Proxy::under(DIRECT)
        .arg("--limits")
        .arg("connections=64")
        .start();
    let port = keeping();
    let client = proxy.connect();
    let ask = |last: u8| {
        let host = format!("127.0.0.{last}:{port}");
        wire::send(
            &client,
            format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        );
        let (head, _) = wire::read_answer(&client);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        proxy.record()["egress.attempts"][0]["reused"] == true
    };
    let before = Holdings::of(proxy.pid()).descriptors;
    for last in 1..=TARGETS {
        assert!(!ask(last));
    }
    // A quarter of 64; what was closed may take a moment to go.
    let most = before + 16;
    let deadline = Instant::now() + support::SOON;
    while Holdings::of(proxy.pid()).descriptors > most {
        assert!(Instant::now() < deadline, "more than {most} descriptors");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(ask(TARGETS), "what was kept last is there");
}

#[test]
fn a_target_has_so_many_requests() {
    let policy =
        "version: 1\nserver: {limits: {per_target: 1}}\nrules: []\ndefault: {direct: true}\n";
    let proxy = Proxy::start(policy);
    let (origin, other) = (Listening::new(), Listening::new());
    let first = tunnel(&proxy, &origin);
    let client = proxy.connect();
    wire::send(
        &client,
        format!(
            "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
            origin.address
        ),
    );
    let answer = wire::read_text(&client);
    assert!(
        answer.starts_with("HTTP/1.1 503 proxy.limit.target: "),
        "{answer}"
    );
    check!(&proxy.record(), "error.type": "proxy.limit.target", "http.response.status_code": 503);
    carries(&tunnel(&proxy, &other));
    carries(&first);
    drop(first);
    proxy.records(2);
    carries(&tunnel(&proxy, &origin));
}

#[test]
fn a_client_begins_so_many_requests_in_a_second() {
    let proxy = Proxy::under(DIRECT)
        .arg("--limits")
        .arg("rate=2,connections=100")
        .start();
    let origin = Origin::answering("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    let ask = || {
        let client = proxy.connect();
        wire::send(
            &client,
            format!(
                "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
                origin.address
            ),
        );
        wire::read_text(&client)
    };
    let begun = Instant::now();
    let mut served = 0;
    let refused = loop {
        let answer = ask();
        if !answer.starts_with("HTTP/1.1 204") {
            break answer;
        }
        served += 1;
        assert!(served < 100, "{:?}", begun.elapsed());
    };
    assert!(
        refused.starts_with("HTTP/1.1 429 proxy.limit.rate: "),
        "{refused}"
    );
    assert!(served >= 2, "{served}");
    let last = proxy.records(served + 1).pop().unwrap();
    check!(&last, "error.type": "proxy.limit.rate", "egress.attempts": null);
}

#[test]
fn limits_that_mean_nothing_are_told() {
    for (written, expected) in [
        (
            "{connections: 0}",
            "with a limit of none nothing can be served",
        ),
        ("{per_host: 3}", "`per_host` is no key of `limits`"),
        ("{rate: 1.5}", "a whole number"),
    ] {
        let policy = format!(
            "version: 1\nserver: {{limits: {written}}}\nrules: []\ndefault: {{direct: true}}\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        std::fs::write(&path, policy).unwrap();
        let (status, told, more) = support::run(support::routecause().arg("check").arg(&path));
        let said = told + &more;
        assert_eq!(status.code(), Some(78), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn whoever_has_no_room_for_more_lives_and_is_not_ready() {
    if !needs::has("prlimit") {
        return;
    }
    let ready = |proxy: &Proxy, status: u16| {
        let at = admin::address(proxy);
        let deadline = Instant::now() + support::SOON;
        loop {
            let (is, _, body) = admin::ask(at, "GET", "/readyz", "", "");
            if is == status {
                assert_eq!(admin::ask(at, "GET", "/healthz", "", "").0, 200);
                return body;
            }
            assert!(Instant::now() < deadline, "{is}: {body}");
        }
    };
    let proxy = admin::with_admin(Proxy::under(DIRECT).arg("--limits").arg("connections=2"));
    let proxy = proxy.start();
    let clients = [proxy.connect(), proxy.connect()];
    let body = ready(&proxy, 503);
    assert!(body.contains("all 2 connections are taken"), "{body}");
    let told = admin::get(admin::address(&proxy), "/v1/status");
    assert_eq!(told["hindrance"], "all 2 connections are taken", "{told}");
    drop(clients);
    ready(&proxy, 200);
    let proxy = admin::with_admin(Proxy::under(DIRECT).arg("--limits").arg("connections=1000"))
        .through("prlimit", &["--nofile=128:128"])
        .start();
    let open = Holdings::of(proxy.pid()).descriptors;
    let clients: Vec<_> = (open..117).map(|_| proxy.connect()).collect();
    let body = ready(&proxy, 503);
    assert!(body.contains(" of 128 file descriptors are open"), "{body}");
    // One that it inherited may lie beyond.
    let is_full = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
        let number = |file: std::fs::DirEntry| file.file_name().to_str()?.parse().ok();
        let numbers = files.flatten().filter_map(number);
        numbers.filter(|number: &usize| *number < 128).count() == 128
    };
    let mut more = Vec::new();
    let deadline = Instant::now() + support::SOON;
    while !is_full() {
        assert!(Instant::now() < deadline, "{} more", more.len());
        more.push(proxy.connect());
        std::thread::sleep(Duration::from_millis(20));
    }
    // The admin listener has one in hand, for each in turn: whoever says nothing does not keep it.
    let silent = wire::connect(admin::address(&proxy));
    for _ in 0..3 {
        let body = ready(&proxy, 503);
        assert!(body.contains(" of 128 file descriptors are open"), "{body}");
        while !is_full() {
            assert!(Instant::now() < deadline, "it is not taken back");
        }
    }
    drop((silent, clients, more));
    ready(&proxy, 200);
}

#[test]
fn without_a_descriptor_left_tunnels_live_and_it_goes_on_when_there_are_some() {
    if !needs::has("prlimit") {
        return;
    }
    let proxy = Proxy::under(DIRECT)
        .arg("--limits")
        .arg("connections=1000")
        .through("prlimit", &["--nofile=128:128"])
        .start();
    let origin = Listening::new();
    let kept = tunnel(&proxy, &origin);
    let flood: Vec<_> = (0..300).map(|_| wire::connect(proxy.address)).collect();
    proxy.diary("accept failed");
    carries(&kept);
    let cpu = cpu_of(proxy.pid());
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        carries(&kept);
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = cpu_of(proxy.pid()).saturating_sub(cpu);
    assert!(used < Duration::from_millis(800), "it spins: {used:?}");
    drop(flood);
    let next = tunnel(&proxy, &origin);
    carries(&next);
    carries(&kept);
    drop((next, kept));
    proxy.records(302);
    let (diary, _) = proxy.finish();
    let complaints = diary.matches("accept failed").count();
    // At most one a second for each worker.
    let workers = std::thread::available_parallelism().unwrap().get();
    let most = workers * (usize::try_from(begun.elapsed().as_secs()).unwrap() + 2);
    assert!(complaints <= most, "{complaints} of {most}: {diary}");
}

/// The processor time that a process has used.
fn cpu_of(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // A hundred ticks a second, on every Linux of today.
    Duration::from_millis(ticks * 10)
}
