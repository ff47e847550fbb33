//! Clients that speak HTTP/2 to the proxy: requests, tunnels, and floods that must not cost more than they bring.

mod support;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use support::origin::{Listening, Origin};
use support::process::Holdings;
use support::tls::Leaf;
use support::web::Ca;
use support::{DIRECT, Proxy, SOON, check, wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A proxy whose listener speaks TLS, and its authority.
fn start(more: &str) -> (Proxy, Ca) {
    start_under(DIRECT, more)
}

/// The same under another policy.
fn start_under(policy: &str, more: &str) -> (Proxy, Ca) {
    let ca = Ca::new();
    let identity = ca.identity(Leaf::Good, "localhost");
    let policy = format!(
        "{policy}server: {{listen: [{{address: '127.0.0.1:0', tls: {{cert: cert.pem, key: key.pem}}}}]{more}}}\n"
    );
    let proxy = Proxy::under(&policy)
        .file("cert.pem", &identity.chain_pem())
        .file("key.pem", &identity.key_pem())
        .listening_as_written()
        .start();
    (proxy, ca)
}

async fn secure(proxy: &Proxy, ca: &Ca) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(ca.client(&[b"h2"])));
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream
}

async fn begin(proxy: &Proxy, ca: &Ca) -> (SendRequest<Bytes>, Connection<TlsStream<TcpStream>>) {
    h2::client::handshake(secure(proxy, ca).await)
        .await
        .unwrap()
}

async fn client(proxy: &Proxy, ca: &Ca) -> SendRequest<Bytes> {
    let (sender, connection) = begin(proxy, ca).await;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender.ready().await.unwrap()
}

fn request(method: Method, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

async fn body(mut stream: RecvStream) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        body.extend(data);
    }
    body
}

/// Waits for the end of a stream: in order, or what ended it.
async fn end(stream: &mut RecvStream) -> Result<(), h2::Error> {
    loop {
        match timeout(SOON, stream.data()).await.unwrap() {
            None => return Ok(()),
            Some(Ok(data)) => assert!(data.is_empty(), "{data:?}"),
            Some(Err(error)) => return Err(error),
        }
    }
}

/// A tunnel on a connection.
async fn tunnel(
    sender: &mut SendRequest<Bytes>,
    to: &str,
) -> (StatusCode, SendStream<Bytes>, RecvStream) {
    poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    let (answer, send) = sender
        .send_request(request(Method::CONNECT, to), false)
        .unwrap();
    let answer = timeout(SOON, answer).await.unwrap().unwrap();
    (answer.status(), send, answer.into_body())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_leave_as_http_1_and_their_answers_come_back() {
    let (proxy, ca) = start("");
    let origin = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        let body = match wire::field(&head, "transfer-encoding") {
            Some(_) => wire::read_chunked(&stream).0,
            None => String::new(),
        };
        wire::send(
            &stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        );
        head + &body
    });
    let mut sender = client(&proxy, &ca).await;
    let mut asked = request(Method::GET, &format!("http://{}/x?y", origin.address));
    asked.headers_mut().append("cookie", "a=1".parse().unwrap());
    asked.headers_mut().append("cookie", "b=2".parse().unwrap());
    let (answer, _) = sender.send_request(asked, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(
        (answer.status(), &*body(answer.into_body()).await),
        (StatusCode::OK, &b"ok"[..])
    );
    let heard = origin.heard();
    assert!(heard.starts_with("GET /x?y HTTP/1.1\r\n"), "{heard}");
    assert_eq!(
        wire::field(&heard, "host"),
        Some(&*origin.address.to_string())
    );
    assert_eq!(wire::field(&heard, "cookie"), Some("a=1; b=2"));
    assert!(
        wire::field(&heard, "via")
            .unwrap()
            .starts_with("2.0 routecause-"),
        "{heard}"
    );
    check!(&proxy.record(), "network.protocol.version": "2", "event.outcome": "success", "http.response.status_code": 200);
    let asked = request(Method::POST, &format!("http://{}/", origin.address));
    let (answer, mut send) = sender.send_request(asked, false).unwrap();
    send.send_data(Bytes::from_static(b"abc"), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    assert!(origin.heard().ends_with("abc"));
    check!(&proxy.record(), "event.outcome": "success");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_not_idle_while_an_answer_comes() {
    let policy = format!("{DIRECT}defaults: {{timeouts: {{keepalive: 100ms}}}}\n");
    let (proxy, ca) = start_under(&policy, "");
    let origin = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
        for byte in "overdone".chars() {
            std::thread::sleep(Duration::from_millis(100));
            wire::send(&stream, byte.to_string());
        }
        head
    });
    let mut sender = client(&proxy, &ca).await;
    let asked = request(Method::GET, &format!("http://{}/", origin.address));
    let (answer, _) = sender.send_request(asked, true).unwrap();
    assert_eq!(body(answer.await.unwrap().into_body()).await, b"overdone");
    check!(&proxy.record(), "event.outcome": "success");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_nothing_has_the_time_of_a_head() {
    let policy = format!("{DIRECT}defaults: {{timeouts: {{head: 300ms}}}}\n");
    let (proxy, ca) = start_under(&policy, "");
    let (_sender, connection) = begin(&proxy, &ca).await;
    let _ = timeout(SOON, connection).await.unwrap();
    check!(&proxy.record(), "error.type": "client.request_timeout", "event.outcome": "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tunnels_go_on_one_connection() {
    let (proxy, ca) = start("");
    let origin = Listening::new();
    let mut sender = client(&proxy, &ca).await;
    let mut tunnels = Vec::new();
    for at in 0..10_u8 {
        let (status, mut send, receive) = tunnel(&mut sender, &origin.address.to_string()).await;
        assert_eq!(status, StatusCode::OK);
        send.send_data(Bytes::copy_from_slice(&[at; 4]), false)
            .unwrap();
        tunnels.push((send, receive, origin.accept(), at));
    }
    for (send, receive, server, at) in &mut tunnels {
        assert_eq!(wire::read_exact(server, 4), [*at; 4]);
        wire::send(server, b"pong");
        wire::finish(server);
        let data = timeout(SOON, receive.data())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(&*data, b"pong");
        assert!(matches!(end(receive).await, Ok(())), "a FIN stays a FIN");
        send.send_data(Bytes::from_static(b"more"), true).unwrap();
        assert_eq!(wire::read_to_end(server), b"more");
    }
    for record in proxy.records(10) {
        check!(&record, "event.outcome": "success", "http.request.method": "CONNECT", "network.protocol.version": "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_disturbs_no_other() {
    let (proxy, ca) = start("");
    let origin = Listening::new();
    let mut sender = client(&proxy, &ca).await;
    let (_, mut send, _receive) = tunnel(&mut sender, &origin.address.to_string()).await;
    let server = origin.accept();
    for (to, status, cause) in [
        ("127.0.0.1:25", 403, "policy.denied.port"),
        ("169.254.169.254:80", 403, "policy.denied.ip"),
        (&*Origin::nowhere().to_string(), 502, "connect.refused"),
    ] {
        let (answered, _, receive) = tunnel(&mut sender, to).await;
        assert_eq!(answered.as_u16(), status, "{to}");
        let text = String::from_utf8(body(receive).await).unwrap();
        assert!(text.contains(cause), "{text}");
        check!(&proxy.record(), "error.type": cause);
    }
    // A reset of the server ends its stream alone; so does one of the client.
    let (_, _send, mut receive) = tunnel(&mut sender, &origin.address.to_string()).await;
    wire::reset(origin.accept());
    let ended = end(&mut receive).await;
    assert_eq!(ended.unwrap_err().reason(), Some(h2::Reason::CANCEL));
    check!(&proxy.record(), "http.request.method": "CONNECT");
    let (_, mut gone, _receive) = tunnel(&mut sender, &origin.address.to_string()).await;
    gone.send_reset(h2::Reason::CANCEL);
    let server_of_gone = origin.accept();
    wire::read_or_reset(&server_of_gone);
    drop(server_of_gone);
    check!(&proxy.record(), "http.request.method": "CONNECT");
    send.send_data(Bytes::from_static(b"ping"), false).unwrap();
    assert_eq!(wire::read_exact(&server, 4), b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_we_dial_is_recorded() {
    let (proxy, ca) = start("");
    let silent = support::origin::silent();
    let mut sender = client(&proxy, &ca).await;
    let (answer, mut send) = sender
        .send_request(request(Method::CONNECT, &silent.address.to_string()), false)
        .unwrap();
    let waiting = tokio::spawn(answer);
    silent.wait_for_dials(1);
    send.send_reset(h2::Reason::CANCEL);
    check!(&proxy.record(), "error.type": "client.gave_up.connect");
    silent.wait_for_dials(0);
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_asked_for_in_each_stream() {
    let users = format!("alice:{}\n", {
        use argon2::password_hash::PasswordHasher as _;
        let params = argon2::Params::new(64, 1, 1, None).unwrap();
        let argon2 =
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        argon2
            .hash_password_with_salt(b"s3cret", b"saltsaltsalt")
            .unwrap()
    });
    let ca = Ca::new();
    let identity = ca.identity(Leaf::Good, "localhost");
    let policy = format!(
        "{DIRECT}server: {{auth: {{users: users.txt}}, listen: [{{address: '127.0.0.1:0', tls: {{cert: cert.pem, key: key.pem}}}}]}}\n"
    );
    let proxy = Proxy::under(&policy)
        .file("cert.pem", &identity.chain_pem())
        .file("key.pem", &identity.key_pem())
        .file("users.txt", &users)
        .listening_as_written()
        .start();
    let origin = Listening::new();
    let mut sender = client(&proxy, &ca).await;
    let (status, _, _) = tunnel(&mut sender, &origin.address.to_string()).await;
    assert_eq!(status, StatusCode::PROXY_AUTHENTICATION_REQUIRED);
    check!(&proxy.record(), "error.type": "client.auth_required");
    let mut asked = request(Method::CONNECT, &origin.address.to_string());
    // alice:s3cret
    asked.headers_mut().insert(
        "proxy-authorization",
        "Basic YWxpY2U6czNjcmV0".parse().unwrap(),
    );
    let (answer, mut send) = sender.send_request(asked, false).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    drop(origin.accept());
    send.send_data(Bytes::new(), true).unwrap();
    check!(&proxy.record(), "user.name": "alice");
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends raw frames behind the preface until the proxy ends the connection, or for so many rounds; whether it did.
async fn flood(
    proxy: &Proxy,
    ca: &Ca,
    must_end: bool,
    rounds: u32,
    next: impl Fn(u32) -> Vec<u8>,
) -> bool {
    let (mut reader, mut writer) = tokio::io::split(secure(proxy, ca).await);
    let heard = tokio::spawn(async move {
        let mut room = vec![0; 64 * 1024];
        while matches!(reader.read(&mut room).await, Ok(1..)) {}
    });
    writer
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    writer.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    for round in 0..rounds {
        if writer.write_all(&next(round)).await.is_err() || heard.is_finished() {
            return true;
        }
    }
    must_end && timeout(SOON, heard).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_end_their_connection_and_cost_little() {
    let (proxy, ca) = start("");
    let origin = Listening::new();
    let mut canary = client(&proxy, &ca).await;
    let before = Holdings::of(proxy.pid()).resident_kib;
    // The head of a CONNECT: method and authority as literals without indexing.
    let authority = origin.address.to_string();
    let mut head = vec![0x02, 7];
    head.extend(b"CONNECT");
    head.extend([0x01, u8::try_from(authority.len()).unwrap()]);
    head.extend(authority.bytes());
    let open = |round: u32| frame(1, 4, 2 * round + 1, &head);
    // Streams that are reset as soon as they are opened.
    let reset = |round: u32| {
        [
            open(round),
            frame(3, 0, 2 * round + 1, &8_u32.to_be_bytes()),
        ]
        .concat()
    };
    assert!(flood(&proxy, &ca, true, 20_000, reset).await, "rapid reset");
    // A head that never ends.
    let endless = |round: u32| match round {
        0 => frame(1, 0, 1, &head),
        _ => frame(9, 0, 1, &[&[0, 1, b'x', 127, 0][..], &[b'y'; 127]].concat()),
    };
    assert!(
        flood(&proxy, &ca, true, 100_000, endless).await,
        "continuation"
    );
    // Names that take more room unpacked than sent.
    let empty = |round: u32| match round {
        0 => frame(1, 0, 1, &head),
        _ => frame(9, 0, 1, &[]),
    };
    assert!(
        flood(&proxy, &ca, true, 100_000, empty).await,
        "empty continuation"
    );
    let settings = |_| frame(4, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(100);
    flood(&proxy, &ca, false, 500, settings).await;
    let ping = |_| frame(6, 0, 0, &[0; 8]).repeat(100);
    flood(&proxy, &ca, false, 500, ping).await;
    let grown = Holdings::of(proxy.pid())
        .resident_kib
        .saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB");
    // What was there before is served as before.
    let serving = async {
        loop {
            let (status, _, _) = tunnel(&mut canary, &authority).await;
            if status == StatusCode::OK {
                return;
            }
        }
    };
    timeout(SOON, serving).await.unwrap();
}
