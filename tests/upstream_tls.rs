//! Upstreams behind TLS and over HTTP/2, the PROXY protocol in front of them, and their limits.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use support::origin::{Listening, Origin};
use support::tls::{self, BOTH, Leaf, ONLY_12, ONLY_13};
use support::web::Ca;
use support::{Proxy, SOON, check, wire};

const CONNECT: &str = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
const GET: &str = "GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// Everything through the upstream at `address`, with `more` keys.
fn policy(address: SocketAddr, more: &str) -> String {
    format!(
        "version: 1\nupstreams: {{corp: {{url: 'https://{address}'{more}}}}}\nrules: []\ndefault: {{via: corp}}\n"
    )
}

fn through(ca: &Ca, address: SocketAddr, more: &str) -> Proxy {
    let tls = ", tls: {ca: ca.pem, server_name: proxy.example}";
    Proxy::under(&policy(address, &format!("{tls}{more}")))
        .file("ca.pem", &ca.pem())
        .start()
}

#[test]
fn tunnels_and_plain_requests_go_through_tls() {
    let ca = Ca::new();
    for versions in [ONLY_12, ONLY_13] {
        let config = tls::server(&ca.identity(Leaf::Good, "proxy.example"), versions);
        let upstream = tls::upstream(config, |head, tls| {
            if head.starts_with("CONNECT") {
                tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nearly").unwrap();
                let mut ping = [0; 4];
                tls.read_exact(&mut ping).unwrap();
                tls.write_all(&ping).unwrap();
            } else {
                tls.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                )
                .unwrap();
            }
        });
        let proxy = through(&ca, upstream.address, "");
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        assert_eq!(wire::read_exact(&client, 5), b"early");
        wire::send(&client, "ping");
        assert_eq!(wire::read_text(&client), "ping");
        drop(client);
        let head = upstream.heard();
        assert!(
            head.starts_with("proxy.example CONNECT a.example:443 HTTP/1.1\r\n"),
            "{head}"
        );
        check!(&proxy.record(), "event.outcome": "success", "egress.hop": "corp");

        let client = proxy.connect();
        wire::send(&client, GET);
        assert_eq!(wire::read_answer(&client).1, "ok");
        let head = upstream.heard();
        assert!(
            head.starts_with("proxy.example GET http://a.example/x HTTP/1.1\r\n"),
            "{head}"
        );
        check!(&proxy.record(), "event.outcome": "success");
    }
}

#[test]
fn much_passes_both_ways_through_tls() {
    let ca = Ca::new();
    let config = tls::server(&ca.identity(Leaf::Good, "proxy.example"), BOTH);
    let upstream = tls::upstream(config, |_, tls| {
        tls.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut all = vec![0; 3_000_000];
        tls.read_exact(&mut all).unwrap();
        tls.write_all(&all).unwrap();
    });
    let proxy = through(&ca, upstream.address, "");
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    wire::read_head(&client);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (writer, copy) = (client.try_clone().unwrap(), sent.clone());
    let writing = std::thread::spawn(move || wire::send(&writer, copy));
    assert!(wire::read_exact(&client, sent.len()) == sent);
    writing.join().unwrap();
}

#[test]
fn an_upstream_that_ends_without_an_answer_leads_on_behind_tls_as_well() {
    let ca = Ca::new();
    let config = tls::server(&ca.identity(Leaf::Good, "proxy.example"), BOTH);
    // What ends TLS in order is a record, and no byte of an answer.
    let upstream = tls::upstream(config, |_, _| {});
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let policy = policy(
        upstream.address,
        ", tls: {ca: ca.pem, server_name: proxy.example}",
    );
    let policy = policy.replace("via: corp", "via: \"corp|direct\"");
    let proxy = Proxy::under(&format!(
        "{policy}dns: {{hosts: {{a.example: [127.0.0.1]}}}}\n"
    ))
    .file("ca.pem", &ca.pem())
    .start();
    let client = proxy.connect();
    let host = format!("a.example:{}", origin.address.port());
    wire::send(
        &client,
        format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    );
    let (head, body) = wire::read_answer(&client);
    assert_eq!((wire::status(&head), body.as_str()), (200, "ok"), "{head}");
    let record = proxy.record();
    check!(&record, "event.outcome": "success", "egress.hop": "direct");
    check!(&record["egress.attempts"][0], "hop": "corp", "cause": "upstream.closed");
}

#[test]
fn a_certificate_that_is_not_trusted_has_its_cause() {
    let ca = Ca::new();
    for (leaf, cause) in [
        (Leaf::Expired, "upstream.tls.cert.expired"),
        (Leaf::NotYetValid, "upstream.tls.cert.not_yet_valid"),
        (Leaf::WrongName, "upstream.tls.cert.name_mismatch"),
        (Leaf::SelfSigned, "upstream.tls.cert.self_signed"),
        (
            Leaf::MissingIntermediate,
            "upstream.tls.cert.unknown_issuer",
        ),
    ] {
        for request in [CONNECT, GET] {
            let config = tls::server(&ca.identity(leaf, "proxy.example"), BOTH);
            let upstream = tls::upstream(config, |_, _| {});
            let proxy = through(&ca, upstream.address, "");
            let client = proxy.connect();
            wire::send(&client, request);
            let head = wire::read_head(&client);
            assert!(
                head.starts_with(&format!("HTTP/1.1 502 {cause}: ")),
                "{head}"
            );
            let record = proxy.record();
            check!(&record, "error.type": cause, "egress.side": "upstream", "egress.phase": "upstream",);
            check!(&record, "tls.client.server_name": "proxy.example");
            assert!(record["tls.server.issuer"].is_string(), "{record:#}");
            check!(&record["egress.attempts"][0], "cause": cause);
        }
    }
    // The system's roots do not know the authority, and its own are not those of the policy.
    let config = tls::server(&ca.identity(Leaf::Good, "proxy.example"), BOTH);
    let upstream = tls::upstream(config, |_, _| {});
    let proxy = through(&Ca::named("another"), upstream.address, "");
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let head = wire::read_head(&client);
    assert!(
        head.starts_with("HTTP/1.1 502 upstream.tls.cert."),
        "{head}"
    );
}

#[test]
fn what_is_no_tls_is_told_as_that() {
    for (says, cause) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "upstream.tls.not_tls_reply",
        ),
        (b"", "upstream.tls.closed_after_client_hello"),
    ] {
        let upstream = Origin::serving(move |stream| {
            tls::read_record(&stream);
            wire::send(&stream, says);
            wire::finish(&stream);
            tls::listen(&stream);
            String::new()
        });
        let proxy = Proxy::start(&policy(upstream.address, ""));
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let head = wire::read_head(&client);
        assert!(head.contains(&format!(" {cause}: ")), "{head}");
        check!(&proxy.record(), "error.type": cause, "egress.side": "upstream");
    }
}

#[test]
fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let ca = Ca::new();
    let me = ca.identity(Leaf::Good, "me.example");
    for versions in [ONLY_12, ONLY_13] {
        let identity = ca.identity(Leaf::Good, "proxy.example");
        let config = tls::server_for_members(&identity, &ca, versions);
        let upstream = tls::upstream(config, |_, tls| {
            tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nhi").unwrap();
        });
        let keys = "ca: ca.pem, server_name: proxy.example";
        let with = format!(", tls: {{{keys}, cert: me.pem, key: me.key}}");
        let proxy = Proxy::under(&policy(upstream.address, &with))
            .file("ca.pem", &ca.pem())
            .file("me.pem", &me.chain_pem())
            .file("me.key", &me.key_pem())
            .start();
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        assert_eq!(wire::read_text(&client), "hi");

        let proxy = through(&ca, upstream.address, "");
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let head = wire::read_head(&client);
        assert!(head.contains(" upstream.tls.alert_from_server."), "{head}");
    }
}

#[test]
fn a_certificate_without_its_key_is_no_policy() {
    let ca = Ca::new();
    let (me, other) = (
        ca.identity(Leaf::Good, "me.example"),
        ca.identity(Leaf::Good, "x.example"),
    );
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).unwrap();
    };
    for (key, mode, expected) in [
        (other.key_pem(), 0o600, "the certificate cannot be used"),
        (me.key_pem(), 0o644, "is open to others (mode 644)"),
        ("nonsense".to_owned(), 0o600, "holds no private key"),
    ] {
        file("me.pem", &me.chain_pem(), 0o644);
        file("me.key", &key, mode);
        let more = ", tls: {cert: me.pem, key: me.key}";
        file(
            "policy.yaml",
            &policy("127.0.0.1:1".parse().unwrap(), more),
            0o644,
        );
        let mut command = support::routecause();
        command
            .arg("--policy")
            .arg(folder.path().join("policy.yaml"));
        let (status, _, stderr) = support::run(&mut command);
        assert_eq!(status.code(), Some(78), "{stderr}");
        assert!(
            stderr.contains(expected) && stderr.contains("policy.yaml:2:"),
            "{stderr}"
        );
        assert!(!stderr.contains("BEGIN"), "{stderr}");
    }
}

/// What an HTTP/2 upstream does with a stream, by its number on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Echo,
    Asks,
    Refuses,
    ResetsLater,
    Denies,
    GoesAway,
    SaysNothing,
}

/// An HTTP/2 upstream behind TLS. It tells of each stream its connection and what it was asked, and which connections have
/// ended.
struct Two {
    address: SocketAddr,
    heard: Receiver<(usize, String, Option<String>)>,
    ended: Receiver<usize>,
}

impl Two {
    fn new(ca: &Ca, does: impl Fn(usize, usize, bool) -> Does + Send + Sync + 'static) -> Self {
        Self::taking(ca, 1000, does)
    }

    /// The same, which takes so many tunnels on a connection at a time.
    fn taking(
        ca: &Ca,
        most: u32,
        does: impl Fn(usize, usize, bool) -> Does + Send + Sync + 'static,
    ) -> Self {
        let mut config = tls::server(&ca.identity(Leaf::Good, "proxy.example"), BOTH);
        Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, heard) = channel();
        let (sender, does) = (Mutex::new(sender), Arc::new(does));
        let sender = Arc::new(sender);
        let (end, ended) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let count = Arc::new(AtomicUsize::new(0));
                while let Ok((stream, _)) = listener.accept().await {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let (config, sender, does) = (config.clone(), sender.clone(), does.clone());
                    let end = end.clone();
                    tokio::task::spawn_local(async move {
                        let acceptor = tokio_rustls::TlsAcceptor::from(config);
                        let Ok(stream) = acceptor.accept(stream).await else {
                            return;
                        };
                        // A stream that is stuck here leaves room for the others.
                        let mut connection = h2::server::Builder::new()
                            .initial_connection_window_size(1024 * 1024)
                            .max_concurrent_streams(most)
                            .handshake(stream)
                            .await
                            .unwrap();
                        let mut streams = 0;
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            let said = request.headers().get("proxy-authorization");
                            let said = said.map(|said| said.to_str().unwrap().to_owned());
                            let does = does(number, streams, said.is_some());
                            streams += 1;
                            let what = format!("{} {}", request.method(), request.uri());
                            sender.lock().unwrap().send((number, what, said)).unwrap();
                            if does == Does::GoesAway {
                                connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                                continue;
                            }
                            tokio::task::spawn_local(serve_stream(does, request, respond));
                        }
                        // Nobody may be waiting for it any more.
                        let _ = end.send(number);
                    });
                }
            });
        });
        Self {
            address,
            heard,
            ended,
        }
    }

    fn heard(&self) -> (usize, String, Option<String>) {
        self.heard.recv_timeout(SOON).unwrap()
    }
}

async fn serve_stream(
    does: Does,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let answer = |status: u16| {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        answer
    };
    match does {
        Does::Refuses => respond.send_reset(h2::Reason::REFUSED_STREAM),
        Does::Asks => {
            let mut answer = answer(407);
            let basic = "Basic realm=\"x\"".parse().unwrap();
            answer.headers_mut().insert("proxy-authenticate", basic);
            let mut body = respond.send_response(answer, false).unwrap();
            body.send_data(Bytes::from_static(b"who?"), true).unwrap();
        }
        Does::Denies => {
            respond.send_response(answer(403), true).unwrap();
        }
        Does::Echo | Does::ResetsLater => {
            let mut send = respond.send_response(answer(200), false).unwrap();
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                if does == Does::ResetsLater {
                    send.send_reset(h2::Reason::INTERNAL_ERROR);
                    return;
                }
                let _ = body.flow_control().release_capacity(data.len());
                let mut data = data;
                while !data.is_empty() {
                    send.reserve_capacity(data.len());
                    let Some(Ok(room)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await
                    else {
                        return;
                    };
                    let part = data.split_to(room.min(data.len()));
                    if send.send_data(part, false).is_err() {
                        return;
                    }
                }
            }
            let _ = send.send_data(Bytes::new(), true);
        }
        Does::GoesAway => {}
        Does::SaysNothing => std::future::pending().await,
    }
}

/// Opens a tunnel and has four bytes echoed.
fn ping(proxy: &Proxy) -> TcpStream {
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 200, "{head}");
    wire::send(&client, "ping");
    assert_eq!(wire::read_exact(&client, 4), b"ping");
    client
}

/// One worker, so that what workers do not share is not a matter of chance.
fn through_two(ca: &Ca, two: &Two, more: &str) -> Proxy {
    Proxy::under(&policy(
        two.address,
        &format!(", tls: {{ca: ca.pem, server_name: proxy.example}}{more}"),
    ))
    .file("ca.pem", &ca.pem())
    .file("user", "user\n")
    .file("password", "hunter2\n")
    .through("taskset", &["-c", "0"])
    .start()
}

#[test]
fn many_tunnels_share_one_connection_of_http_2() {
    let ca = Ca::new();
    for http in ["auto", "2"] {
        let two = Two::new(&ca, |_, _, _| Does::Echo);
        let proxy = through_two(&ca, &two, &format!(", http: {http}"));
        let clients: Vec<_> = (0..8).map(|_| ping(&proxy)).collect();
        for _ in &clients {
            let (connection, what, said) = two.heard();
            assert_eq!(
                (connection, what.as_str(), said),
                (0, "CONNECT a.example:443", None)
            );
        }
        for client in clients {
            wire::finish(&client);
            assert_eq!(wire::read_text(&client), "");
        }
        let records = proxy.records(8);
        for record in &records {
            check!(record, "event.outcome": "success", "source.bytes": 4, "destination.bytes": 4);
        }
        let reused = |record: &&serde_json::Value| record["egress.attempts"][0]["reused"] == true;
        assert_eq!(records.iter().filter(reused).count(), 7);
    }
}

#[test]
fn no_more_tunnels_are_asked_for_on_a_connection_than_its_upstream_takes() {
    let ca = Ca::new();
    let two = Two::taking(&ca, 1, |_, _, _| Does::Echo);
    let proxy = through_two(&ca, &two, "");
    let open = (ping(&proxy), ping(&proxy));
    assert_eq!((two.heard().0, two.heard().0), (0, 1));
    drop(open);
    proxy.records(2);
    drop(ping(&proxy));
    assert!(two.heard().0 < 2, "one of them takes another");
}

#[test]
fn a_connection_without_a_tunnel_ends_after_a_while() {
    let ca = Ca::new();
    let two = Two::new(&ca, |_, _, _| Does::Echo);
    let policy = policy(
        two.address,
        ", tls: {ca: ca.pem, server_name: proxy.example}",
    );
    let proxy = Proxy::under(&format!(
        "{policy}defaults: {{timeouts: {{keepalive: 1s}}}}\n"
    ))
    .file("ca.pem", &ca.pem())
    .start();
    let kept = ping(&proxy);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        wire::send(&kept, "ping");
        assert_eq!(wire::read_exact(&kept, 4), b"ping");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(two.ended.try_recv().is_err(), "a tunnel is open");
    drop(kept);
    assert_eq!(two.ended.recv_timeout(SOON).unwrap(), 0);
}

#[test]
fn a_connection_that_serves_nobody_gives_way_to_one_that_is_asked_for() {
    let upstream = Listening::new();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{corp: {{url: 'http://{}', limits: {{connections: 1}}}}}}\nrules: []\ndefault: {{via: corp}}\n",
        upstream.address
    ));
    let client = proxy.connect();
    wire::send(&client, GET);
    let (kept, _) = upstream.hear();
    wire::send(&kept, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record(), "event.outcome": "success");
    let other = proxy.connect();
    wire::send(&other, CONNECT);
    let (server, head) = upstream.hear();
    assert!(head.starts_with("CONNECT "), "{head}");
    assert_eq!(wire::read_to_end(&kept), b"", "it was closed");
    // Now there is nobody to give way.
    wire::send(&client, GET);
    let (head, _) = wire::read_answer(&client);
    assert!(
        head.starts_with("HTTP/1.1 503 proxy.limit.upstream: "),
        "{head}"
    );
    drop(server);

    let ca = Ca::new();
    let two = Two::new(&ca, |_, _, _| Does::Echo);
    let proxy = through_two(&ca, &two, ", limits: {connections: 1}");
    drop(ping(&proxy));
    proxy.record();
    // A plain request needs a connection of HTTP/1.1.
    wire::send(&proxy.connect(), GET);
    assert_eq!(two.ended.recv_timeout(SOON).unwrap(), 0);
}

#[test]
fn a_tunnel_that_is_not_read_does_not_stop_another_of_its_connection() {
    let ca = Ca::new();
    let two = Two::new(&ca, |_, _, _| Does::Echo);
    let proxy = through_two(&ca, &two, "");
    let stuck = ping(&proxy);
    // As much as all the buffers on the way hold, which is for the kernel to say.
    let full = Duration::from_millis(500);
    stuck.set_write_timeout(Some(full)).unwrap();
    let mut sent = 0;
    while let Ok(count) = (&stuck).write(&[7; 8 * 1024]) {
        sent += count;
        assert!(sent < 1 << 30, "somebody holds all of it");
    }
    for _ in 0..3 {
        drop(ping(&proxy));
    }
    assert!(wire::read_exact(&stuck, sent).iter().all(|byte| *byte == 7));
}

#[test]
fn a_407_over_http_2_is_answered_on_the_same_connection() {
    let ca = Ca::new();
    let two = Two::new(
        &ca,
        |_, _, is_known| if is_known { Does::Echo } else { Does::Asks },
    );
    let auth = ", auth: {username: {file: user}, password: {file: password}}";
    let proxy = through_two(&ca, &two, auth);
    drop(ping(&proxy));
    drop(ping(&proxy));
    let said: Vec<_> = (0..3)
        .map(|_| two.heard())
        .map(|(at, _, said)| (at, said))
        .collect();
    let basic = Some("Basic dXNlcjpodW50ZXIy".to_owned());
    assert_eq!(said, [(0, None), (0, basic.clone()), (0, basic)]);
}

#[test]
fn a_stream_that_is_refused_or_a_connection_that_goes_away_is_replaced_once() {
    let ca = Ca::new();
    for how in [Does::Refuses, Does::GoesAway] {
        let two = Two::new(&ca, move |connection, stream, _| {
            if connection == 0 && stream > 0 {
                how
            } else {
                Does::Echo
            }
        });
        let proxy = through_two(&ca, &two, "");
        drop(ping(&proxy));
        drop(ping(&proxy));
        let at: Vec<_> = (0..3).map(|_| two.heard().0).collect();
        assert_eq!(at, [0, 0, 1], "{how:?}");
    }
    for (how, cause, told) in [
        (Does::Refuses, "upstream.reset", "REFUSED_STREAM"),
        (Does::GoesAway, "upstream.closed", "close"),
        (Does::Denies, "upstream.denied", "403"),
    ] {
        let two = Two::new(&ca, move |_, _, _| how);
        let proxy = through_two(&ca, &two, "");
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let head = wire::read_head(&client);
        assert!(
            head.contains(&format!(" {cause}: ")) && head.contains(told),
            "{how:?}: {head}"
        );
        check!(&proxy.record(), "error.type": cause, "egress.side": "upstream");
        two.heard();
        assert!(two.heard.try_recv().is_err(), "{how:?}: asked again");
    }
}

#[test]
fn a_connection_that_fell_silent_is_replaced_within_the_time_of_its_hop() {
    let ca = Ca::new();
    let silent = |connection, stream, _| {
        if connection == 0 && stream > 0 {
            Does::SaysNothing
        } else {
            Does::Echo
        }
    };
    for more in [
        "defaults: {timeouts: {proxy_reply: 1s}}\n",
        // What bounds it is its share of the chain's time.
        "chains: {either: {hops: [corp, direct], retry: {budget: 6s}}}\n",
    ] {
        let two = Two::new(&ca, silent);
        let via = if more.starts_with("chains") {
            "either"
        } else {
            "corp"
        };
        let policy = policy(
            two.address,
            ", tls: {ca: ca.pem, server_name: proxy.example}",
        );
        let policy = policy.replace("via: corp", &format!("via: {via}"));
        let proxy = Proxy::under(&format!("{policy}{more}"))
            .file("ca.pem", &ca.pem())
            .through("taskset", &["-c", "0"])
            .start();
        drop(ping(&proxy));
        drop(ping(&proxy));
        let at: Vec<_> = (0..3).map(|_| two.heard().0).collect();
        assert_eq!(at, [0, 0, 1], "{more}");
        for record in proxy.records(2) {
            check!(&record, "event.outcome": "success", "egress.hop": "corp");
        }
    }
}

#[test]
fn a_reset_stream_ends_its_tunnel_and_no_other() {
    let ca = Ca::new();
    let two = Two::new(&ca, |_, stream, _| {
        if stream == 1 {
            Does::ResetsLater
        } else {
            Does::Echo
        }
    });
    let proxy = through_two(&ca, &two, "");
    let first = ping(&proxy);
    let second = proxy.connect();
    wire::send(&second, CONNECT);
    wire::read_head(&second);
    wire::send(&second, "ping");
    assert!(wire::is_reset(&second));
    let record = proxy.record();
    check!(&record, "error.type": "tunnel.reset_by_server", "event.outcome": "failure");
    assert_ne!(record["egress.tcp.server.close"], "rst", "{record:#}");
    wire::send(&first, "more");
    assert_eq!(wire::read_exact(&first, 4), b"more");
}

#[test]
fn an_upstream_without_http_2_is_told_where_the_policy_wants_it() {
    let ca = Ca::new();
    let config = tls::server(&ca.identity(Leaf::Good, "proxy.example"), BOTH);
    let upstream = tls::upstream(config, |_, _| {});
    let proxy = through(&ca, upstream.address, ", http: 2");
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let head = wire::read_head(&client);
    assert!(head.contains(" upstream.tls.alpn_refused: "), "{head}");
}

#[test]
fn the_proxy_header_comes_first_and_belongs_to_one_client() {
    for version in ["v1", "v2"] {
        let upstream = Listening::new();
        let proxy = Proxy::start(&format!(
            "version: 1\nupstreams: {{corp: {{url: 'http://{}', proxy_protocol: {version}}}}}\nrules: []\ndefault: {{via: corp}}\n",
            upstream.address
        ));
        let hear = |client: &TcpStream| {
            let server = upstream.accept();
            let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let expected = if version == "v1" {
                format!(
                    "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
                    from.port(),
                    to.port()
                )
                .into_bytes()
            } else {
                let mut header =
                    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
                header.extend(from.port().to_be_bytes());
                header.extend(to.port().to_be_bytes());
                header
            };
            assert_eq!(wire::read_exact(&server, expected.len()), expected);
            let head = wire::read_head(&server);
            (server, head)
        };
        let one = proxy.connect();
        wire::send(&one, GET);
        let (first, head) = hear(&one);
        assert!(head.starts_with("GET http://a.example/x "), "{head}");
        wire::send(&first, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        wire::read_answer(&one);
        // The same client's next request has the same connection, another's has not.
        wire::send(&one, GET);
        assert!(wire::read_head(&first).starts_with("GET "));
        wire::send(&first, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        wire::read_answer(&one);
        let other = proxy.connect();
        wire::send(&other, GET);
        let (_, head) = hear(&other);
        assert!(head.starts_with("GET http://a.example/x "), "{head}");
        let tunnel = proxy.connect();
        wire::send(&tunnel, CONNECT);
        let (_, head) = hear(&tunnel);
        assert!(head.starts_with("CONNECT a.example:443 "), "{head}");
    }
}

#[test]
fn the_proxy_header_stands_before_tls() {
    let ca = Ca::new();
    let upstream = Listening::new();
    let proxy = through(&ca, upstream.address, ", proxy_protocol: v1");
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let server = upstream.accept();
    assert!(wire::read_line(&server).starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "));
    assert_eq!(wire::read_exact(&server, 2), b"\x16\x03");
}

#[test]
fn no_more_connections_are_open_than_an_upstream_may_have() {
    let upstream = Listening::new();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{corp: {{url: 'http://{}', limits: {{connections: 2}}}}}}\nrules: []\ndefault: {{via: corp}}\n",
        upstream.address
    ));
    let open = || {
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let (server, _) = upstream.hear();
        wire::send(&server, "HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        (client, server)
    };
    let (one, two) = (open(), open());
    for request in [CONNECT, GET] {
        let client = proxy.connect();
        wire::send(&client, request);
        let head = wire::read_head(&client);
        assert!(
            head.starts_with("HTTP/1.1 503 proxy.limit.upstream: "),
            "{head}"
        );
        check!(&proxy.record(), "error.type": "proxy.limit.upstream", "egress.side": "proxy",
            "http.response.status_code": 503);
    }
    assert!(upstream.is_untouched());
    drop(one);
    proxy.record();
    let three = open();
    drop((two, three));
}
