//! Plain requests by absolute URL: what leaves, what comes back, and what is recorded.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use support::origin::{Listening, Origin};
use support::{DIRECT, Proxy, check, wire};

/// A GET as a client of a proxy sends it.
fn get(origin: SocketAddr, path: &str) -> String {
    ask("GET", origin, path, "")
}

/// A request's head; `fields` are whole lines.
fn ask(method: &str, origin: SocketAddr, path: &str, fields: &str) -> String {
    format!("{method} http://{origin}{path} HTTP/1.1\r\nHost: {origin}\r\n{fields}\r\n")
}

/// The policy of most tests, with some waits of its own.
fn waiting(timeouts: &str) -> String {
    format!(
        "version: 1\ndefaults: {{timeouts: {{{timeouts}}}}}\nrules: []\ndefault: {{direct: true}}\n"
    )
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Sends a request and reads its answer on a connection that goes on.
fn exchange(client: &TcpStream, request: impl AsRef<[u8]>) -> (String, String) {
    wire::send(client, request);
    wire::read_answer(client)
}

#[test]
fn a_get_leaves_in_origin_form_and_its_answer_comes_back() {
    let origin =
        Origin::answering("HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nETag: \"e\"\r\n\r\nhello");
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let (head, body) = exchange(
        &client,
        ask(
            "GET",
            origin.address,
            "/a%7Eb/../c?d=%20",
            "User-Agent: t/1\r\nAccept: */*\r\n",
        ),
    );
    assert!(head.starts_with("HTTP/1.1 200 Fine\r\n"), "{head}");
    assert_eq!(wire::field(&head, "etag"), Some("\"e\""));
    assert_eq!(body, "hello");
    let heard = origin.heard();
    assert!(
        heard.starts_with("GET /a%7Eb/../c?d=%20 HTTP/1.1\r\n"),
        "{heard}"
    );
    assert_eq!(wire::fields(&heard, "host"), [origin.address.to_string()]);
    assert_eq!(wire::field(&heard, "user-agent"), Some("t/1"));
    assert_eq!(wire::field(&heard, "content-length"), None);
    assert_eq!(wire::field(&heard, "transfer-encoding"), None);
    check!(&proxy.record(),
        "event.action": "forward", "event.outcome": "success", "error.type": null, "egress.phase": "close",
        "http.request.method": "GET", "http.response.status_code": 200, "url.scheme": "http",
        "url.domain": "127.0.0.1", "url.port": (origin.address.port()), "user_agent.original": "t/1",
        "egress.route": "direct", "egress.rule": "default", "source.bytes": 0, "destination.bytes": 5);
}

#[test]
fn a_post_carries_its_body() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask("POST", origin.address, "/", "Content-Length: 7\r\n") + "payload",
    );
    let (server, head) = origin.hear();
    assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
    assert_eq!(wire::fields(&head, "content-length"), ["7"]);
    assert_eq!(wire::field(&head, "transfer-encoding"), None);
    assert_eq!(wire::read_exact(&server, 7), b"payload");
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record(), "http.request.method": "POST", "source.bytes": 7, "destination.bytes": 2);
}

#[test]
fn answers_without_a_body_have_none_whatever_their_head_says() {
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    for (method, answer, status) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            200,
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            200,
        ),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: \"e\"\r\n\r\n",
            304,
        ),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\nContent-Length: 1234\r\n\r\n",
            204,
        ),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            204,
        ),
    ] {
        let origin = Listening::new();
        wire::send(&client, ask(method, origin.address, "/", ""));
        // It stays open: nothing but the head says that the answer is whole.
        let (server, _) = origin.hear();
        wire::send(&server, answer);
        let head = wire::read_head(&client);
        assert_eq!(wire::status(&head), status);
        if method == "HEAD" && answer.contains("1234") {
            assert_eq!(wire::field(&head, "content-length"), Some("1234"), "{head}");
        }
        let record = proxy.record();
        check!(&record, "http.response.status_code": status, "event.outcome": "success", "destination.bytes": 0);
    }
    // The client's connection is where it should be: at the head of an answer.
    let origin = Origin::answering(OK);
    assert_eq!(exchange(&client, get(origin.address, "/")).1, "ok");
}

#[test]
fn fields_of_one_hop_do_not_cross() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Back\r\nX-Back: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Authenticate: Basic\r\nProxy-Connection: close\r\nX-End: 2\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let (head, body) = exchange(
        &client,
        ask(
            "GET",
            origin.address,
            "/",
            "Connection: X-There, keep-alive\r\nConnection: x-other,Host, Authorization ,Cookie\r\nX-There: 1\r\n\
             X-Other: 1\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\nTE: gzip\r\nUpgrade: websocket\r\n\
             Proxy-Authorization: Basic c2VjcmV0\r\nAuthorization: Basic eA==\r\nCookie: c=1\r\nX-End: 1\r\n",
        ),
    );
    let heard = origin.heard();
    for gone in [
        "connection",
        "x-there",
        "x-other",
        "proxy-connection",
        "keep-alive",
        "te",
        "upgrade",
        "proxy-authorization",
    ] {
        assert_eq!(wire::field(&heard, gone), None, "{gone} in {heard}");
    }
    for (kept, value) in [
        ("x-end", "1"),
        ("authorization", "Basic eA=="),
        ("cookie", "c=1"),
    ] {
        assert_eq!(wire::fields(&heard, kept), [value]);
    }
    for gone in [
        "x-back",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
    ] {
        assert_eq!(wire::field(&head, gone), None, "{gone} in {head}");
    }
    assert_eq!(wire::field(&head, "x-end"), Some("2"));
    // The origin's `close` is not the client's.
    assert_eq!(wire::field(&head, "connection"), None, "{head}");
    assert_eq!(body, "ok");
}

#[test]
fn via_grows_by_one_entry_in_each_direction() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nVia: 1.1 cdn\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::start(DIRECT);
    let (head, _) = exchange(
        &proxy.connect(),
        ask("GET", origin.address, "/", "Via: 1.0 before\r\n"),
    );
    let (there, back) = (origin.heard(), head);
    for (head, before) in [(&there, "1.0 before"), (&back, "1.1 cdn")] {
        let via = wire::fields(head, "via").join(", ");
        let (old, own) = via.rsplit_once(", ").unwrap();
        assert_eq!(old, before);
        let digits = own.strip_prefix("1.1 routecause-").unwrap();
        assert!(
            digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()),
            "{own}"
        );
    }
    assert_eq!(
        wire::fields(&there, "via").last(),
        wire::fields(&back, "via").last()
    );
}

#[test]
fn max_forwards_counts_down_and_ends_here_at_zero() {
    for method in ["OPTIONS", "TRACE"] {
        let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let proxy = Proxy::start(DIRECT);
        let (head, _) = exchange(
            &proxy.connect(),
            ask(method, origin.address, "/", "Max-Forwards: 3\r\n"),
        );
        assert_eq!(wire::status(&head), 200);
        assert_eq!(
            wire::fields(&origin.heard(), "max-forwards"),
            ["2"],
            "{method}"
        );
    }
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let secrets = "Max-Forwards: 0\r\nAuthorization: Basic c2VjcmV0\r\nCookie: secret\r\n\
                   Proxy-Authorization: Basic c2VjcmV0\r\nX-Shown: 1\r\n";
    let client = proxy.connect();
    let (head, body) = exchange(&client, ask("TRACE", origin.address, "/", secrets));
    assert_eq!(wire::status(&head), 200);
    assert_eq!(wire::field(&head, "content-type"), Some("message/http"));
    assert!(
        body.starts_with(&format!("TRACE http://{}/ HTTP/1.1\r\n", origin.address)),
        "{body}"
    );
    assert!(body.to_lowercase().contains("x-shown: 1"), "{body}");
    assert!(
        !body.contains("secret") && !body.contains("c2VjcmV0"),
        "{body}"
    );
    let (head, _) = exchange(
        &client,
        ask("OPTIONS", origin.address, "/", "Max-Forwards: 0\r\n"),
    );
    assert_eq!(wire::status(&head), 200);
    assert!(
        wire::field(&head, "allow").unwrap().contains("GET"),
        "{head}"
    );
    assert!(origin.is_untouched());
    for record in proxy.records(2) {
        check!(&record, "event.outcome": "success", "egress.attempts": null);
    }
}

#[test]
fn max_forwards_of_other_methods_is_left_alone() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::start(DIRECT);
    let _ = exchange(
        &proxy.connect(),
        ask("GET", origin.address, "/", "Max-Forwards: 0\r\n"),
    );
    assert_eq!(wire::fields(&origin.heard(), "max-forwards"), ["0"]);
}

#[test]
fn host_and_url_must_agree() {
    let origin = Listening::new();
    let address = origin.address;
    let port = address.port();
    let proxy = Proxy::start(DIRECT);
    for fields in [
        "Host: other.example\r\n".to_owned(),
        "Host: 127.0.0.1\r\n".to_owned(),
        format!("Host: 127.0.0.2:{port}\r\n"),
        format!("Host: x@127.0.0.1:{port}\r\n"),
        format!("Host: {address}\r\nHost: {address}\r\n"),
        format!("Host: {address}\r\nHost: other.example\r\n"),
        format!("Host: {address}, other.example\r\n"),
        "Host:\r\n".to_owned(),
        String::new(),
    ] {
        let client = proxy.connect();
        let (head, _) = exchange(
            &client,
            format!("GET http://{address}/ HTTP/1.1\r\n{fields}\r\n"),
        );
        assert_eq!(wire::status(&head), 400, "{fields:?}");
        check!(&proxy.record(),
            "error.type": "client.bad_target", "egress.side": "client", "egress.phase": "client",
            "http.response.status_code": 400, "egress.attempts": null);
    }
    assert!(origin.is_untouched());
    // Another spelling of the same host agrees.
    let client = proxy.connect();
    wire::send(
        &client,
        format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1.:{port}\r\n\r\n"),
    );
    let (server, head) = origin.hear();
    assert_eq!(wire::fields(&head, "host"), [address.to_string()]);
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
}

#[test]
fn only_http_by_absolute_url_is_forwarded() {
    let origin = Listening::new();
    let address = origin.address;
    let proxy = Proxy::start(DIRECT);
    for target in [
        "/".to_owned(),
        "*".to_owned(),
        address.to_string(),
        format!("https://{address}/"),
        format!("ftp://{address}/"),
        format!("http://user:secret@{address}/"),
        format!("http://0x7f.1:{}/", address.port()),
    ] {
        let client = proxy.connect();
        let (head, body) = exchange(
            &client,
            format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
        );
        assert_eq!(wire::status(&head), 400, "{target}");
        assert!(
            !head.contains("secret") && !body.contains("secret"),
            "{head}{body}"
        );
        let record = proxy.record();
        check!(&record, "error.type": "client.bad_target", "egress.attempts": null);
        assert!(!record.to_string().contains("secret"), "{record:#}");
    }
    assert!(origin.is_untouched());
}

#[test]
fn chunked_bodies_and_their_trailers_go_both_ways() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask(
            "POST",
            origin.address,
            "/",
            "Transfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: X-Sum\r\n",
        ),
    );
    let (server, head) = origin.hear();
    assert_eq!(wire::fields(&head, "transfer-encoding"), ["chunked"]);
    assert_eq!(wire::field(&head, "content-length"), None);
    assert_eq!(wire::field(&head, "te"), Some("trailers"));
    assert_eq!(wire::field(&head, "trailer"), Some("X-Sum"));
    wire::send(&client, "4;ext=\"quoted\"\r\nWiki\r\n");
    assert_eq!(wire::read_chunk(&server), b"Wiki");
    wire::send(&client, "005\r\npedia\r\n0\r\nX-Sum: 7\r\n\r\n");
    let (rest, trailers) = wire::read_chunked(&server);
    assert_eq!(
        (rest.as_str(), trailers.join("|").to_lowercase().as_str()),
        ("pedia", "x-sum: 7")
    );

    wire::send(
        &server,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n3\r\nabc\r\n",
    );
    let head = wire::read_head(&client);
    assert_eq!(wire::fields(&head, "transfer-encoding"), ["chunked"]);
    // The first chunk is there before the last one was sent.
    assert_eq!(wire::read_chunk(&client), b"abc");
    wire::send(&server, "2\r\nde\r\n0\r\nX-Back: 9\r\n\r\n");
    let (rest, trailers) = wire::read_chunked(&client);
    assert_eq!(
        (rest.as_str(), trailers.join("|").to_lowercase().as_str()),
        ("de", "x-back: 9")
    );
    check!(&proxy.record(), "event.outcome": "success", "source.bytes": 9, "destination.bytes": 5);
}

#[test]
fn only_one_framing_ever_leaves() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let both = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n";
    wire::send(
        &client,
        ask("POST", origin.address, "/", both) + "5\r\nhello\r\n0\r\n\r\n",
    );
    let (server, head) = origin.hear();
    assert_eq!(wire::fields(&head, "transfer-encoding"), ["chunked"]);
    assert_eq!(wire::field(&head, "content-length"), None, "{head}");
    assert_eq!(wire::read_chunked(&server).0, "hello");
    wire::send(
        &server,
        format!("HTTP/1.1 200 OK\r\n{both}\r\n2\r\nok\r\n0\r\n\r\n"),
    );
    let (head, body) = wire::read_answer(&client);
    let framings = wire::fields(&head, "content-length").len()
        + wire::fields(&head, "transfer-encoding").len();
    assert_eq!((framings, body.as_str()), (1, "ok"), "{head}");
    // What stands behind such a request is not trusted (RFC 9112, section 6.1).
    assert!(wire::is_fin(&client));
    assert_eq!(proxy.record()["event.outcome"], "success");
}

#[test]
fn other_codings_than_chunked_are_not_implemented() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    for fields in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
    ] {
        let client = proxy.connect();
        wire::send(
            &client,
            ask("POST", origin.address, "/", fields) + "0\r\n\r\n",
        );
        let answer = wire::read_text(&client);
        assert!(answer.starts_with("HTTP/1.1 501 "), "{fields}: {answer}");
        assert_eq!(
            wire::field(&answer, "connection"),
            Some("close"),
            "{fields}: {answer}"
        );
        check!(&proxy.record(),
            "error.type": "client.malformed_request", "http.response.status_code": 501, "egress.side": "client",
            "egress.attempts": null);
    }
    assert!(origin.is_untouched());
}

#[test]
fn a_body_waits_for_the_origins_100() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask(
            "PUT",
            origin.address,
            "/",
            "Expect: 100-continue\r\nContent-Length: 4\r\n",
        ),
    );
    let (server, head) = origin.hear();
    assert_eq!(wire::field(&head, "expect"), Some("100-continue"));
    wire::send(&server, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(wire::read_head(&client), "HTTP/1.1 100 Continue\r\n\r\n");
    wire::send(&client, "body");
    assert_eq!(wire::read_exact(&server, 4), b"body");
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record(), "event.outcome": "success", "source.bytes": 4);
}

#[test]
fn a_refused_expectation_comes_without_a_100() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask(
            "PUT",
            origin.address,
            "/",
            "Expect: 100-continue\r\nContent-Length: 4\r\n",
        ),
    );
    let (server, _) = origin.hear();
    wire::send(
        &server,
        "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n",
    );
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 417, "{head}");
    check!(&proxy.record(), "error.type": "http.status.417", "source.bytes": 0, "http.response.status_code": 417);
    // The body that was never sent leaves the connection to the origin useless for another request.
    assert!(wire::is_fin(&server));
}

#[test]
fn a_body_is_sent_to_an_origin_that_ignores_the_expectation() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask(
            "PUT",
            origin.address,
            "/",
            "Expect: 100-continue\r\nContent-Length: 4\r\n",
        ),
    );
    let (server, _) = origin.hear();
    assert_eq!(wire::read_head(&client), "HTTP/1.1 100 Continue\r\n\r\n");
    wire::send(&client, "body");
    assert_eq!(wire::read_exact(&server, 4), b"body");
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    assert_eq!(proxy.record()["event.outcome"], "success");
}

#[test]
fn interim_answers_nobody_asked_for_are_swallowed() {
    let proxy = Proxy::start(DIRECT);
    let answer =
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n{OK}");
    let origin = Origin::answering(answer);
    let (head, body) = exchange(&proxy.connect(), get(origin.address, "/"));
    assert_eq!((wire::status(&head), body.as_str()), (200, "ok"));
    let record = proxy.record();
    check!(&record, "event.outcome": "success", "http.response.status_code": 200);
}

#[test]
fn a_client_of_http_1_0_gets_what_it_understands() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        format!("GET http://{0}/ HTTP/1.0\r\n\r\n", origin.address),
    );
    let answer = wire::read_text(&client);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(wire::status(head), 200);
    assert_eq!(wire::field(head, "transfer-encoding"), None, "{head}");
    assert_eq!(body, "abcde");
    let heard = origin.heard();
    assert!(heard.starts_with("GET / HTTP/1.1\r\n"), "{heard}");
    assert_eq!(wire::fields(&heard, "host"), [origin.address.to_string()]);
    assert!(
        wire::field(&heard, "via").unwrap().starts_with("1.0 "),
        "{heard}"
    );
    check!(&proxy.record(),
        "event.outcome": "success", "network.protocol.version": "1.0", "destination.bytes": 5);
}

#[test]
fn no_interim_answer_goes_to_a_client_of_http_1_0() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let address = origin.address;
    wire::send(
        &client,
        format!(
            "POST http://{address}/ HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody"
        ),
    );
    let (server, _) = origin.hear();
    wire::send(&server, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(wire::read_exact(&server, 4), b"body");
    wire::send(&server, OK);
    assert!(wire::read_text(&client).contains(" 200 OK\r\n"));
}

#[test]
fn an_origin_of_http_1_0_ends_its_body_by_closing() {
    let origin = Origin::answering("HTTP/1.0 200 OK\r\n\r\nall of it");
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let (head, body) = exchange(&client, get(origin.address, "/"));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        wire::field(&head, "via").unwrap().starts_with("1.0 "),
        "{head}"
    );
    assert_eq!(body, "all of it");
    check!(&proxy.record(), "event.outcome": "success", "destination.bytes": 9);
    // The client's connection goes on.
    let next = Origin::answering(OK);
    assert_eq!(exchange(&client, get(next.address, "/")).1, "ok");
}

/// More than all buffers on the way can hold.
const ENDLESS: usize = 256 << 20;

/// Writes until the peer does not take any more for a while, or all is sent: how much was.
fn write_until_stuck(mut stream: &TcpStream) -> usize {
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let block = vec![b'x'; 1 << 16];
    let mut sent = 0;
    while sent < ENDLESS {
        match stream.write(&block) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    sent
}

#[test]
fn an_origin_is_held_back_by_a_client_that_does_not_read() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    wire::send(
        &server,
        format!("HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS}\r\n\r\n"),
    );
    let sent = write_until_stuck(&server);
    assert!(sent < ENDLESS / 4, "{sent}");
    // Nothing of it was lost: it comes once it is asked for.
    wire::read_head(&client);
    let got = wire::read_exact(&client, sent);
    assert!(got.iter().all(|byte| *byte == b'x'));
    wire::reset(server);
    assert!(wire::is_reset(&client));
    let record = proxy.record();
    check!(&record, "error.type": "http.reset_in_body", "destination.bytes": sent);
}

#[test]
fn a_client_is_held_back_by_an_origin_that_does_not_read() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask(
            "POST",
            origin.address,
            "/",
            &format!("Content-Length: {ENDLESS}\r\n"),
        ),
    );
    let (server, _) = origin.hear();
    let sent = write_until_stuck(&client);
    assert!(sent < ENDLESS / 4, "{sent}");
    assert_eq!(wire::read_exact(&server, sent).len(), sent);
}

#[test]
fn an_upgrade_turns_into_a_tunnel() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask(
            "GET",
            origin.address,
            "/chat",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n",
        ),
    );
    let (server, head) = origin.hear();
    assert_eq!(wire::field(&head, "upgrade"), Some("websocket"));
    assert!(
        wire::field(&head, "connection")
            .unwrap()
            .eq_ignore_ascii_case("upgrade")
    );
    assert_eq!(wire::field(&head, "sec-websocket-key"), Some("k"));
    wire::send(
        &server,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: a\r\n\r\nearly",
    );
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 101);
    assert_eq!(wire::field(&head, "upgrade"), Some("websocket"));
    assert!(
        wire::field(&head, "connection")
            .unwrap()
            .eq_ignore_ascii_case("upgrade")
    );
    assert_eq!(wire::field(&head, "sec-websocket-accept"), Some("a"));
    assert_eq!(wire::read_exact(&client, 5), b"early");
    wire::send(&client, "up");
    assert_eq!(wire::read_exact(&server, 2), b"up");
    wire::send(&server, "down");
    assert_eq!(wire::read_exact(&client, 4), b"down");
    wire::finish(&client);
    assert!(wire::is_fin(&server));
    wire::send(&server, "last");
    drop(server);
    assert_eq!(wire::read_text(&client), "last");
    check!(&proxy.record(),
        "event.action": "forward", "event.outcome": "success", "http.response.status_code": 101,
        "source.bytes": 2, "destination.bytes": 13);
}

#[test]
fn an_upgrade_that_the_origin_declines_stays_a_request() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(
        exchange(&client, ask("GET", origin.address, "/", upgrade)).1,
        "ok"
    );
    assert_eq!(exchange(&client, get(origin.address, "/")).1, "ok");
}

#[test]
fn an_upgrade_nobody_asked_for_is_an_error() {
    for fields in [
        "",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let origin = Origin::answering(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        );
        let proxy = Proxy::start(DIRECT);
        let (head, body) = exchange(&proxy.connect(), ask("GET", origin.address, "/", fields));
        assert!(head.starts_with("HTTP/1.1 502 http.malformed: "), "{head}");
        assert!(!body.contains("200 OK"), "{body}");
        assert_eq!(wire::field(&origin.heard(), "upgrade"), None);
        check!(&proxy.record(),
            "error.type": "http.malformed", "egress.phase": "http", "egress.side": "origin",
            "http.response.status_code": 502);
    }
}

/// A connection to the origin that has carried one request for some client and is kept.
fn kept(proxy: &Proxy, origin: &Listening) -> TcpStream {
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/first"));
    let (server, _) = origin.hear();
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record()["egress.attempts"][0], "cause": null, "reused": null);
    server
}

#[test]
fn a_kept_connection_serves_the_next_client() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let server = kept(&proxy, &origin);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/second"));
    assert!(wire::read_head(&server).starts_with("GET /second "));
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
    assert!(origin.is_untouched());
    let record = proxy.record();
    check!(&record, "event.outcome": "success", "network.peer.port": (origin.address.port()));
    assert_eq!(record["egress.attempts"].as_array().unwrap().len(), 1);
    check!(&record["egress.attempts"][0], "cause": null, "reused": true);
}

#[test]
fn a_kept_connection_is_for_its_own_target_only() {
    let (origin, other) = (Listening::new(), Listening::new());
    let proxy = Proxy::start(DIRECT);
    let _server = kept(&proxy, &origin);
    let client = proxy.connect();
    wire::send(&client, get(other.address, "/"));
    let (server, _) = other.hear();
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
}

#[test]
fn a_get_is_sent_once_more_where_its_kept_connection_was_closed() {
    for is_reset in [false, true] {
        let origin = Listening::new();
        let proxy = Proxy::start(DIRECT);
        let server = kept(&proxy, &origin);
        let client = proxy.connect();
        wire::send(&client, get(origin.address, "/again"));
        assert!(wire::read_head(&server).starts_with("GET /again "));
        if is_reset {
            wire::reset(server);
        } else {
            drop(server);
        }
        let (server, head) = origin.hear();
        assert!(head.starts_with("GET /again "), "{head}");
        wire::send(&server, OK);
        assert_eq!(wire::read_answer(&client).1, "ok");
        let record = proxy.record();
        check!(&record, "event.outcome": "success", "error.type": null, "http.request.resend_count": 1);
        check!(&record["egress.attempts"][0], "cause": "http.reused_connection_closed", "reused": true);
        check!(&record["egress.attempts"][1], "cause": null, "reused": null);
    }
}

#[test]
fn a_post_is_not_sent_twice() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let server = kept(&proxy, &origin);
    let client = proxy.connect();
    wire::send(
        &client,
        ask("POST", origin.address, "/pay", "Content-Length: 4\r\n") + "once",
    );
    wire::read_head(&server);
    assert_eq!(wire::read_exact(&server, 4), b"once");
    drop(server);
    let (head, _) = wire::read_answer(&client);
    assert_eq!(wire::status(&head), 502, "{head}");
    let record = proxy.record();
    check!(&record,
        "event.outcome": "failure", "error.type": "http.empty_reply", "egress.side": "origin",
        "http.request.resend_count": null);
    assert!(origin.is_untouched());
}

#[test]
fn a_get_on_a_fresh_connection_is_not_sent_twice() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    drop(origin.hear());
    assert_eq!(wire::status(&wire::read_answer(&client).0), 502);
    assert!(origin.is_untouched());
    check!(&proxy.record(), "error.type": "http.empty_reply");
}

#[test]
fn surplus_bytes_behind_an_answer_reach_nobody() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/1"));
    let (server, _) = origin.hear();
    wire::send(
        &server,
        format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"),
    );
    assert_eq!(wire::read_answer(&client).1, "ok");
    wire::send(&client, get(origin.address, "/2"));
    let (server, head) = origin.hear();
    assert!(head.starts_with("GET /2 "), "{head}");
    wire::send(&server, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue");
    assert_eq!(wire::read_answer(&client).1, "true");
}

/// Sends a GET whose answer is `answer` and then an end of the connection: what the client gets until its own end or
/// reset, whether that was a reset, and the record.
fn answered(answer: &str, is_reset: bool, request: &str) -> (String, bool, Value) {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        request.replace("ORIGIN", &origin.address.to_string()),
    );
    let (server, _) = origin.hear();
    wire::send(&server, answer);
    if answer.contains("\r\n\r\n") {
        // A reset would overtake what is still on its way.
        let mut got = wire::read_head(&client);
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        if !body.is_empty() {
            got.push_str(&String::from_utf8_lossy(&wire::read_exact(
                &client,
                body.len(),
            )));
        }
        end(server, is_reset);
        let (rest, was_reset) = rest(&client);
        return (got + &rest, was_reset, proxy.record());
    }
    end(server, is_reset);
    let (head, body) = wire::read_answer(&client);
    (head + &body, false, proxy.record())
}

fn end(server: TcpStream, is_reset: bool) {
    if is_reset {
        wire::reset(server);
    } else {
        drop(server);
    }
}

/// What comes until the end, and whether that is a reset.
fn rest(mut client: &TcpStream) -> (String, bool) {
    let mut bytes = Vec::new();
    let result = client.read_to_end(&mut bytes);
    (
        String::from_utf8_lossy(&bytes).into_owned(),
        result.is_err(),
    )
}

const GET: &str = "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n";
const GET_1_0: &str = "GET http://ORIGIN/ HTTP/1.0\r\nHost: ORIGIN\r\n\r\n";

#[test]
fn a_body_that_is_cut_stays_cut() {
    let (got, _, record) = answered(
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        false,
        GET,
    );
    assert_eq!(wire::fields(&got, "content-length"), ["10"]);
    assert!(got.ends_with("\r\n\r\n12345"), "{got}");
    check!(&record,
        "event.outcome": "failure", "error.type": "http.incomplete_body", "egress.phase": "http",
        "egress.side": "origin", "http.response.status_code": 200, "destination.bytes": 5);

    let (got, _, record) = answered(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        false,
        GET,
    );
    assert!(got.ends_with("\r\n\r\n3\r\nabc\r\n"), "{got}");
    check!(&record, "error.type": "http.incomplete_body", "destination.bytes": 3);
}

#[test]
fn a_cut_body_that_ends_by_closing_ends_by_a_reset() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        GET_1_0.replace("ORIGIN", &origin.address.to_string()),
    );
    let (server, _) = origin.hear();
    wire::send(
        &server,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    );
    wire::read_head(&client);
    assert_eq!(wire::read_exact(&client, 3), b"abc");
    drop(server);
    assert!(wire::is_reset(&client));
    check!(&proxy.record(), "error.type": "http.incomplete_body");
}

#[test]
fn a_reset_in_the_body_is_passed_on() {
    let (got, was_reset, record) = answered(
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        true,
        GET,
    );
    assert!(got.ends_with("\r\n\r\n12345"), "{got}");
    assert!(was_reset);
    check!(&record,
        "event.outcome": "failure", "error.type": "http.reset_in_body", "egress.phase": "http",
        "egress.side": "origin", "http.response.status_code": 200, "destination.bytes": 5);
}

#[test]
fn an_origin_that_does_not_answer_in_http_is_named() {
    for (answer, is_reset, cause) in [
        ("", false, "http.empty_reply"),
        ("", true, "http.reset_before_response"),
        ("SSH-2.0-OpenSSH\r\n", false, "http.malformed"),
        ("HTTP/9.9 200 OK\r\n", false, "http.malformed"),
        ("HTTP/1.1 2x0 OK\r\n", false, "http.malformed"),
        (
            "HTTP/1.1 200 OK\r\nBad Name: x\r\n",
            false,
            "http.malformed",
        ),
    ] {
        let (got, _, record) = answered(answer, is_reset, GET);
        assert!(
            got.starts_with(&format!("HTTP/1.1 502 {cause}: ")),
            "{answer:?}: {got}"
        );
        check!(&record,
            "event.outcome": "failure", "error.type": cause, "egress.phase": "http", "egress.side": "origin",
            "http.response.status_code": 502, "destination.bytes": 0);
    }
}

#[test]
fn an_answer_with_two_lengths_is_not_passed_on() {
    for lengths in [
        "2\r\nContent-Length: 3",
        "2, 3",
        "-1",
        "+2",
        "18446744073709551616",
    ] {
        let origin = Origin::answering(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {lengths}\r\n\r\nok!"
        ));
        let proxy = Proxy::start(DIRECT);
        let (head, _) = exchange(&proxy.connect(), get(origin.address, "/"));
        assert_eq!(wire::status(&head), 502, "{lengths}: {head}");
        check!(&proxy.record(), "error.type": "http.malformed", "egress.side": "origin");
    }
}

#[test]
fn the_head_of_an_answer_has_a_limit() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (mut server, _) = origin.hear();
    // It may be refused while it is written.
    let _ = server
        .write_all(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    let head = wire::read_head(&client);
    assert!(
        head.starts_with("HTTP/1.1 502 http.header_too_large: "),
        "{head}"
    );
    check!(&proxy.record(), "error.type": "http.header_too_large", "egress.phase": "http", "egress.side": "origin");
}

#[test]
fn an_origin_has_until_first_byte_to_answer() {
    let origin = Listening::new();
    let proxy = Proxy::start(&waiting("first_byte: 300ms"));
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    let (head, _) = wire::read_answer(&client);
    assert!(
        head.starts_with("HTTP/1.1 504 http.response_timeout: "),
        "{head}"
    );
    assert!(wire::is_fin(&server));
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "http.response_timeout", "egress.phase": "http",
        "egress.side": "origin", "http.response.status_code": 504);
}

#[test]
fn a_body_that_stops_arriving_is_cut() {
    let origin = Listening::new();
    let proxy = Proxy::start(&waiting("body_idle: 300ms"));
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    wire::send(
        &server,
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
    );
    wire::read_head(&client);
    assert_eq!(rest(&client).0, "12345");
    assert!(wire::is_fin(&server));
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "http.body_stalled", "egress.phase": "http",
        "http.response.status_code": 200, "destination.bytes": 5);
}

#[test]
fn a_request_body_that_stops_arriving_is_the_clients_timeout() {
    let origin = Listening::new();
    let proxy = Proxy::start(&waiting("body_idle: 300ms"));
    let client = proxy.connect();
    wire::send(
        &client,
        ask("POST", origin.address, "/", "Content-Length: 10\r\n") + "12345",
    );
    let (server, _) = origin.hear();
    assert_eq!(wire::read_to_end(&server), b"12345");
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 408, "{head}");
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "client.request_timeout", "egress.side": "client",
        "http.response.status_code": 408, "source.bytes": 5);
}

#[test]
fn a_client_that_leaves_while_it_waits_gives_up_the_response() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    wire::reset(client);
    let record = proxy.record();
    check!(&record,
        "event.outcome": "failure", "error.type": "client.gave_up.response", "egress.phase": "http",
        "egress.side": "client", "http.response.status_code": 499);
    assert!(wire::is_fin(&server));
}

#[test]
fn a_client_that_leaves_in_mid_body_gives_up_the_response() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    wire::send(
        &server,
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
    );
    wire::read_head(&client);
    assert_eq!(wire::read_exact(&client, 5), b"12345");
    wire::reset(client);
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "client.gave_up.response", "egress.phase": "http",
        "egress.side": "client", "http.response.status_code": 200, "destination.bytes": 5);
    assert!(wire::is_fin(&server));
}

#[test]
fn a_client_that_leaves_in_mid_upload_does_not_complete_it() {
    for fields in [
        "Content-Length: 10\r\n\r\n12345",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    ] {
        let origin = Listening::new();
        let proxy = Proxy::start(DIRECT);
        let client = proxy.connect();
        let request = ask("POST", origin.address, "/", fields);
        wire::send(&client, request.strip_suffix("\r\n").unwrap());
        let (server, _) = origin.hear();
        wire::finish(&client);
        let got = String::from_utf8(wire::read_to_end(&server)).unwrap();
        assert!(
            got.contains("12345") && !got.contains("0\r\n\r\n"),
            "{got:?}"
        );
        let record = proxy.record();
        check!(&record,
            "event.outcome": "failure", "error.type": "client.gave_up.response", "egress.side": "client",
            "http.response.status_code": 499, "source.bytes": 5);
    }
}

#[test]
fn an_upload_that_goes_on_behind_its_answer_is_no_head() {
    let origin = Listening::new();
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {head: 200ms}}\nrules: []\ndefault: {direct: true}\n",
    );
    let client = proxy.connect();
    wire::send(
        &client,
        ask("PUT", origin.address, "/", "Content-Length: 10\r\n") + "12345",
    );
    let (server, _) = origin.hear();
    wire::send(
        &server,
        "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno",
    );
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 413, "{head}");
    assert_eq!(wire::read_exact(&client, 2), b"no");
    check!(&proxy.record(), "error.type": "http.status.413");
    for byte in ["6", "7", "8", "9", "0"] {
        std::thread::sleep(Duration::from_millis(100));
        wire::send(&client, byte);
    }
    assert_eq!(wire::read_to_end(&server), b"1234567890");
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    wire::send(&server, "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 204);
    check!(&proxy.record(), "event.outcome": "success");
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn a_connection_is_not_kept_for_ever_behind_an_upload_that_outlives_its_answer() {
    let origin = Listening::new();
    let proxy = Proxy::start(
        "version: 1\ndefaults: {timeouts: {keepalive: 200ms}}\nrules: []\ndefault: {direct: true}\n",
    );
    let client = proxy.connect();
    wire::send(
        &client,
        ask("PUT", origin.address, "/", "Content-Length: 10\r\n") + "12345",
    );
    let (server, _) = origin.hear();
    wire::send(
        &server,
        "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!(wire::status(&wire::read_head(&client)), 413);
    check!(&proxy.record(), "error.type": "http.status.413");
    wire::send(&client, "67890");
    assert_eq!(wire::read_to_end(&server), b"1234567890");
    assert!(wire::is_fin(&client));
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn a_fin_behind_a_whole_request_is_not_leaving() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    wire::finish(&client);
    let (server, _) = origin.hear();
    wire::send(
        &server,
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
    );
    wire::read_head(&client);
    assert_eq!(wire::read_exact(&client, 5), b"12345");
    wire::send(&server, "67890");
    assert_eq!(wire::read_exact(&client, 5), b"67890");
    assert!(wire::is_fin(&client));
    check!(&proxy.record(), "event.outcome": "success", "destination.bytes": 10);
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn a_client_behind_its_fin_has_left_when_the_process_cuts_its_request() {
    for (is_over, cause, side) in [
        (true, "client.gave_up.response", "client"),
        (false, "proxy.shutdown", "proxy"),
    ] {
        let origin = Listening::new();
        let proxy = Proxy::start(
            "version: 1\nserver: {drain_timeout: 200ms}\nrules: []\ndefault: {direct: true}\n",
        );
        let client = proxy.connect();
        wire::send(&client, get(origin.address, "/"));
        if is_over {
            wire::finish(&client);
        }
        let (_server, _) = origin.hear();
        let (_, records) = proxy.stop();
        assert_eq!(records.len(), 1, "{records:?}");
        check!(&records[0],
            "event.outcome": "failure", "error.type": cause, "egress.phase": "http", "egress.side": side);
    }
}

#[test]
fn a_407_of_an_origin_is_never_relayed() {
    let origin = Origin::answering(
        "HTTP/1.1 407 Nope\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 2\r\n\r\nno",
    );
    let proxy = Proxy::start(DIRECT);
    let (head, _) = exchange(&proxy.connect(), get(origin.address, "/"));
    assert!(head.starts_with("HTTP/1.1 502 http.status.407: "), "{head}");
    assert_eq!(wire::field(&head, "proxy-authenticate"), None, "{head}");
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "http.status.407", "egress.phase": "http", "egress.side": "origin",
        "http.response.status_code": 502);
}

#[test]
fn an_origins_own_errors_pass_as_they_are() {
    for status in [400_u16, 401, 404, 410, 429, 500, 502, 503, 511] {
        let origin = Origin::answering(format!(
            "HTTP/1.1 {status} Their Words\r\nContent-Length: 4\r\nX-Theirs: 1\r\nWWW-Authenticate: Basic\r\n\r\nbody"
        ));
        let proxy = Proxy::start(DIRECT);
        let (head, body) = exchange(&proxy.connect(), get(origin.address, "/"));
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} Their Words\r\n")),
            "{head}"
        );
        assert_eq!(wire::field(&head, "x-theirs"), Some("1"));
        assert_eq!(wire::field(&head, "www-authenticate"), Some("Basic"));
        assert_eq!(wire::field(&head, "x-routecause-record"), None);
        assert_eq!(body, "body");
        let (cause, side) = match status {
            511 => ("http.captive_portal".to_owned(), "network"),
            _ => (format!("http.status.{status}"), "origin"),
        };
        check!(&proxy.record(),
            "event.outcome": "failure", "error.type": (cause), "egress.phase": "http",
            "egress.side": side, "http.response.status_code": status, "destination.bytes": 4);
    }
}

#[test]
fn a_target_over_16_kib_is_too_long() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    for length in [16 * 1024 + 1, 60 * 1024, 70 * 1024] {
        let client = proxy.connect();
        let mut stream = &client;
        // It may be refused while it is written.
        let _ =
            stream.write_all(get(origin.address, &format!("/{}", "x".repeat(length))).as_bytes());
        let head = wire::read_head(&client);
        assert_eq!(wire::status(&head), 414, "{length}: {head}");
        check!(&proxy.record(),
            "error.type": "client.bad_target", "egress.phase": "client", "egress.side": "client",
            "http.response.status_code": 414, "egress.attempts": null);
    }
    assert!(origin.is_untouched());
}

#[test]
fn a_head_over_its_limits_is_too_large() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let many = [(); 101].map(|()| "X-Many: 1\r\n").concat();
    for fields in [format!("X-Long: {}\r\n", "x".repeat(70 * 1024)), many] {
        let client = proxy.connect();
        let mut stream = &client;
        let _ = stream.write_all(ask("GET", origin.address, "/", &fields).as_bytes());
        let head = wire::read_head(&client);
        assert!(
            head.starts_with("HTTP/1.1 431 client.header_too_large: "),
            "{head}"
        );
        check!(&proxy.record(),
            "event.outcome": "unknown", "error.type": "client.header_too_large", "egress.side": "client",
            "http.response.status_code": 431, "server.address": null, "egress.route": null);
    }
    assert!(origin.is_untouched());
}

#[test]
fn what_is_no_request_is_refused_and_nothing_is_forwarded() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    for garbled in [
        "HELO\r\n\r\n",
        "\0\x01\x02\x03\r\n\r\n",
        "GET http://ORIGIN/\r\n\r\n",
        "GET  http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.1 x\r\nHost: ORIGIN\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.2\r\nHost: ORIGIN\r\n\r\n",
        "GET http://ORIGIN/ HTTP/3.0\r\nHost: ORIGIN\r\n\r\n",
        "GET http://ORIGIN/\t HTTP/1.1\r\nHost: ORIGIN\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.1\r\nHost : ORIGIN\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n : x\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nX: a\r\n b\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nX: a\0b\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nX: a\rb\r\n\r\n",
        "GET http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nno colon\r\n\r\n",
        "POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 1, 2\r\n\r\nx",
        "POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: +1\r\n\r\nx",
        "POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: -1\r\n\r\nx",
        "POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 0x1\r\n\r\nx",
        "POST http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length:\r\n\r\nx",
        "POST http://ORIGIN/ HTTP/1.0\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let client = proxy.connect();
        wire::send(
            &client,
            garbled.replace("ORIGIN", &origin.address.to_string()),
        );
        let answer = wire::read_text(&client);
        assert!(
            answer.starts_with("HTTP/1.1 400 client.malformed_request: "),
            "{garbled:?}: {answer}"
        );
        assert!(!answer.contains("\nHTTP/1.1 "), "{garbled:?}: {answer}");
        let record = proxy.record();
        check!(&record,
            "error.type": "client.malformed_request", "egress.phase": "client", "egress.side": "client",
            "http.response.status_code": 400, "egress.attempts": null);
        assert_eq!(
            wire::field(&answer, "x-routecause-record"),
            record["event.id"].as_str()
        );
    }
    assert!(origin.is_untouched());
}

#[test]
fn other_protocols_on_the_port_are_named() {
    let proxy = Proxy::start(DIRECT);
    for (bytes, answer, cause) in [
        (
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            "",
            "client.tls_to_plain_port",
        ),
        (
            b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
            "",
            "client.socks_to_http_port",
        ),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "HTTP/1.1 505 client.h2_preface: ",
            "client.h2_preface",
        ),
    ] {
        let client = proxy.connect();
        wire::send(&client, bytes);
        let got = wire::read_text(&client);
        assert!(
            got.starts_with(answer) && got.is_empty() == answer.is_empty(),
            "{cause}: {got}"
        );
        check!(&proxy.record(),
            "event.outcome": "unknown", "error.type": cause, "egress.phase": "client", "egress.side": "client",
            "event.action": null, "server.address": null, "egress.route": null);
    }
}

#[test]
fn a_head_has_its_time() {
    let proxy = Proxy::start(&waiting("head: 300ms"));
    for begun in ["", "GET http://a.example/ HT"] {
        let client = proxy.connect();
        wire::send(&client, begun);
        let answer = wire::read_text(&client);
        assert!(
            answer.starts_with("HTTP/1.1 408 client.request_timeout: "),
            "{answer}"
        );
        check!(&proxy.record(),
            "event.outcome": "unknown", "error.type": "client.request_timeout", "egress.side": "client",
            "http.response.status_code": 408);
    }
}

#[test]
fn a_head_that_trickles_gains_no_time() {
    let proxy = Proxy::start(&waiting("head: 1s"));
    let client = proxy.connect();
    let started = std::time::Instant::now();
    client
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut first = [0; 12];
    loop {
        // Each wait for the answer is a pause between two bytes.
        let mut stream = &client;
        match stream.read(&mut first) {
            Ok(12) => break,
            Ok(count) => panic!("{count} bytes"),
            Err(_) => _ = stream.write(b"x"),
        }
        assert!(started.elapsed() < support::SOON);
    }
    assert_eq!(&first, b"HTTP/1.1 408");
    check!(&proxy.record(), "error.type": "client.request_timeout");
}

#[test]
fn a_connection_without_a_next_request_ends_quietly() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::start(&waiting("keepalive: 300ms"));
    let client = proxy.connect();
    assert_eq!(exchange(&client, get(origin.address, "/")).1, "ok");
    assert!(wire::is_fin(&client));
    drop(client);
    assert_eq!(proxy.record()["event.outcome"], "success");
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let (slow, fast) = (
        Listening::new(),
        Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"),
    );
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        ask("POST", slow.address, "/1", "Content-Length: 4\r\n")
            + "body"
            + &get(fast.address, "/2")
            + &get(fast.address, "/3"),
    );
    let (server, _) = slow.hear();
    assert_eq!(wire::read_exact(&server, 4), b"body");
    wire::send(&server, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst");
    let bodies = [(); 3].map(|()| wire::read_answer(&client).1);
    assert_eq!(bodies, ["first", "second", "second"]);
    let records = proxy.records(3);
    assert!(
        records
            .iter()
            .all(|record| record["event.outcome"] == "success"),
        "{records:#?}"
    );
}

#[test]
fn a_connection_that_ends_before_a_request_leaves_a_record() {
    let proxy = Proxy::start(DIRECT);
    drop(proxy.connect());
    check!(&proxy.record(),
        "event.outcome": "unknown", "error.type": "client.closed_before_request", "egress.phase": "client",
        "egress.side": "client", "event.action": null, "http.response.status_code": null, "server.address": null);
    let client = proxy.connect();
    wire::send(&client, "GET http://a.exam");
    wire::finish(&client);
    let answer = wire::read_text(&client);
    assert!(
        answer.starts_with("HTTP/1.1 400 client.malformed_request: "),
        "{answer}"
    );
    check!(&proxy.record(), "event.outcome": "unknown", "error.type": "client.malformed_request");
}

#[test]
fn the_unread_body_of_a_refused_request_is_never_the_next_request() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let smuggled = get(origin.address, "/smuggled");
    for body in [smuggled.clone(), smuggled.clone() + &"x".repeat(200 * 1024)] {
        let client = proxy.connect();
        let fields = format!("Content-Length: {}\r\n", body.len());
        let mut stream = &client;
        let _ = stream.write_all((ask("POST", Origin::nowhere(), "/", &fields) + &body).as_bytes());
        let (head, _) = wire::read_answer(&client);
        assert_eq!(wire::status(&head), 502, "{head}");
        // Of a long body not all is drained: the connection may be reset behind the answer.
        let _ = client.shutdown(std::net::Shutdown::Write);
        let (more, _) = rest(&client);
        assert_eq!(more, "");
        check!(&proxy.record(), "error.type": "connect.refused");
    }
    assert!(origin.is_untouched());
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn a_broken_chunk_never_completes_the_upload() {
    for broken in ["zz\r\n", "5\r\nhelloX", "-1\r\n", "ffffffffffffffffff\r\n"] {
        let origin = Listening::new();
        let proxy = Proxy::start(DIRECT);
        let client = proxy.connect();
        wire::send(
            &client,
            ask(
                "POST",
                origin.address,
                "/",
                "Transfer-Encoding: chunked\r\n",
            ) + "3\r\nabc\r\n",
        );
        let (server, _) = origin.hear();
        assert_eq!(wire::read_chunk(&server), b"abc");
        wire::send(&client, broken);
        let more = String::from_utf8(wire::read_to_end(&server)).unwrap();
        assert!(!more.contains("0\r\n\r\n"), "{broken:?}: {more:?}");
        let head = wire::read_head(&client);
        assert!(
            head.starts_with("HTTP/1.1 400 client.malformed_request: "),
            "{broken:?}: {head}"
        );
        check!(&proxy.record(),
            "event.outcome": "failure", "error.type": "client.malformed_request", "egress.side": "client",
            "http.response.status_code": 400);
    }
}

#[test]
fn a_refusal_of_a_head_request_has_no_body() {
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, ask("HEAD", Origin::nowhere(), "/", ""));
    let head = wire::read_head(&client);
    assert!(head.starts_with("HTTP/1.1 502 connect.refused: "), "{head}");
    let origin = Origin::answering(OK);
    assert_eq!(exchange(&client, get(origin.address, "/")).1, "ok");
}

#[test]
fn a_client_that_does_not_read_for_too_long_is_cut_off() {
    let origin = Listening::new();
    let proxy = Proxy::start(&waiting("body_idle: 500ms"));
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    wire::send(
        &server,
        format!("HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS}\r\n\r\n"),
    );
    // The origin is not to blame: it would have gone on for longer than the limit.
    let sent = write_until_stuck(&server);
    check!(&proxy.record(),
        "event.outcome": "failure", "error.type": "client.write_timeout", "egress.phase": "client",
        "egress.side": "client", "http.response.status_code": 200);
    assert!(sent < ENDLESS / 4, "{sent}");
    drop(client);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let proxy = Proxy::start(
        "version: 1\nserver: {limits: {connections: 1}}\nrules: []\ndefault: {direct: true}\n",
    );
    let origin = Origin::answering(OK);
    let first = proxy.connect();
    assert_eq!(exchange(&first, get(origin.address, "/")).1, "ok");
    check!(&proxy.record(), "event.outcome": "success");
    let answer = wire::read_text(&proxy.connect());
    assert!(
        answer.starts_with("HTTP/1.1 503 proxy.limit.connections: "),
        "{answer}"
    );
    check!(&proxy.record(),
        "event.outcome": "unknown", "error.type": "proxy.limit.connections", "egress.side": "proxy",
        "http.response.status_code": 503, "server.address": null);
    // The first one goes on.
    assert_eq!(exchange(&first, get(origin.address, "/")).1, "ok");
}

#[test]
fn an_origin_that_never_comes_to_its_answer_is_cut_off() {
    let origin = Listening::new();
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(&client, get(origin.address, "/"));
    let (server, _) = origin.hear();
    wire::send(&server, "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(33));
    let (head, _) = wire::read_answer(&client);
    assert!(head.starts_with("HTTP/1.1 502 http.malformed: "), "{head}");
    check!(&proxy.record(), "error.type": "http.malformed", "egress.side": "origin");
}

#[test]
fn no_password_and_no_token_of_a_request_is_told_to_anyone() {
    let proxy = Proxy::start(DIRECT);
    let requests = [
        "CONNECT http://h/p?token=S3CRET HTTP/1.1\r\nHost: h\r\n\r\n",
        "CONNECT user:S3CRET@h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET http://user:S3CRET@h/ HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET http://a.example/?token=S3CRET HTTP/1.1\r\nHost: user:S3CRET@a.example\r\n\r\n",
        "GET http://a.example:1/S3CRET?token=S3CRET HTTP/1.1\r\nHost: a.example:1\r\nAuthorization: S3CRET\r\n\r\n",
        "GET /?token=S3CRET HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET //u:S3CRET@h/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://h/?S3CRET S3CRET HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://h/ HTTP/1.1\r\nS3CRET\r\n\r\n",
        "GET /?S3CRET",
    ];
    for request in requests {
        let client = proxy.connect();
        wire::send(&client, request);
        wire::finish(&client);
        let answer = wire::read_text(&client);
        let record = proxy.record().to_string();
        assert!(!answer.contains("S3CRET"), "{request:?}: {answer}");
        assert!(!record.contains("S3CRET"), "{request:?}: {record}");
    }
}
