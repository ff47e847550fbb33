//! Upstreams that ask who we are: what is said to them, when, and what is told where nothing helps.

mod support;

use std::net::SocketAddr;

use support::origin::{Listening, Origin};
use support::{Proxy, check, needs, wire};

const BASIC: &str = "Basic dXNlcjpodW50ZXIy";
const CONNECT: &str = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
const GET: &str = "GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const OPEN: &str = "HTTP/1.1 200 OK\r\n\r\n";

/// Everything through the HTTP proxy at `address`, with `auth` beside user name and password.
fn through(address: SocketAddr, auth: &str) -> Proxy {
    Proxy::under(&format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{address}\", auth: {{{auth}username: {{file: user}}, password: {{file: password}}}}}}}}\n\
         rules: []\ndefault: {{via: corp}}\n"
    ))
    .file("user", "user\n")
    .file("password", "hunter2\n")
    .start()
}

/// A 407 with these lines and, behind its head, `body`.
fn asks(lines: &[&str], framing: &str, body: &str) -> String {
    let lines = lines.iter().fold(String::new(), |lines, line| {
        lines + "Proxy-Authenticate: " + line + "\r\n"
    });
    format!("HTTP/1.1 407 Who\r\n{lines}{framing}\r\n{body}")
}

const EMPTY: &str = "Content-Length: 0\r\n";

#[test]
fn a_tunnel_is_asked_for_again_behind_a_407_on_the_same_connection_where_that_stays_open() {
    for (framing, body, is_kept) in [
        (EMPTY, "", true),
        ("Content-Length: 5\r\n", "hello", true),
        ("Content-Length: 5\r\nX: keep\r\n", "hello", true),
        (
            "Transfer-Encoding: chunked\r\n",
            "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
            true,
        ),
        ("Content-Length: 5\r\nConnection: close\r\n", "hello", false),
        (
            "Content-Length: 5\r\nProxy-Connection: Close\r\n",
            "hello",
            false,
        ),
        // More than it said, and no end that could be waited for.
        ("Content-Length: 2\r\n", "hello", false),
        ("", "hello", false),
    ] {
        let upstream = Listening::new();
        let proxy = through(upstream.address, "");
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let (first, head) = upstream.hear();
        assert_eq!(wire::field(&head, "proxy-authorization"), None, "{head}");
        wire::send(&first, asks(&["Basic realm=\"corp\""], framing, body));
        let second;
        let (server, head) = if is_kept {
            (&first, wire::read_head(&first))
        } else {
            second = upstream.hear();
            (&second.0, second.1.clone())
        };
        assert!(
            head.starts_with("CONNECT a.example:443 HTTP/1.1\r\n"),
            "{head}"
        );
        assert_eq!(
            wire::fields(&head, "proxy-authorization"),
            [BASIC],
            "{framing}{body}"
        );
        wire::send(server, OPEN);
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        wire::send(server, "hello");
        assert_eq!(wire::read_exact(&client, 5), b"hello");
        wire::finish(server);
        drop(client);
        let record = proxy.record();
        check!(&record, "event.outcome": "success", "egress.notes": ["upstream.asked_who"]);
        let tries = record["egress.attempts"].as_array().unwrap().len();
        assert_eq!(tries, if is_kept { 1 } else { 2 }, "{framing}{body}");

        // What worked goes first from now on, for tunnels and plain requests alike.
        for (request, answer) in [(CONNECT, OPEN), (GET, OK)] {
            let client = proxy.connect();
            wire::send(&client, request);
            let (server, head) = upstream.hear();
            assert_eq!(
                wire::fields(&head, "proxy-authorization"),
                [BASIC],
                "{head}"
            );
            wire::send(&server, answer);
            assert_eq!(wire::status(&wire::read_head(&client)), 200);
        }
    }
}

#[test]
fn a_connection_that_closes_all_the_same_is_opened_again() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, "");
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let (first, _) = upstream.hear();
    wire::send(&first, asks(&["Basic"], EMPTY, ""));
    drop(first);
    let (server, head) = upstream.hear();
    assert_eq!(wire::fields(&head, "proxy-authorization"), [BASIC]);
    wire::send(&server, OPEN);
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
}

#[test]
fn the_scheme_is_the_first_of_ours_that_is_offered() {
    let digest = "Digest realm=\"r\", nonce=\"n\", qop=\"auth\", algorithm=SHA-256";
    for (ours, offered, expected) in [
        (
            "",
            &["Basic realm=\"x\"", digest][..],
            "Digest username=\"user\", realm=\"r\", uri=\"a.example:443\"",
        ),
        (
            "schemes: [basic, digest], ",
            &["Basic realm=\"x\"", digest],
            BASIC,
        ),
        (
            "",
            &["Negotiate, NTLM, Basic realm=\"a, b\", Digest realm=\"r\""],
            BASIC,
        ),
        ("schemes: [basic], ", &["Negotiate", "Basic"], BASIC),
    ] {
        let upstream = Listening::new();
        let proxy = through(upstream.address, ours);
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let (server, _) = upstream.hear();
        wire::send(&server, asks(offered, EMPTY, ""));
        let head = wire::read_head(&server);
        let said = wire::field(&head, "proxy-authorization").unwrap();
        assert!(said.starts_with(expected), "{offered:?}: {said}");
    }
}

#[test]
fn a_407_that_cannot_be_answered_ends_it_and_says_why() {
    let basic = &["Basic"][..];
    for (ours, offered, heads, cause, told) in [
        (
            "",
            &[][..],
            1,
            "upstream.auth_scheme_unsupported",
            "it offers no scheme",
        ),
        (
            "",
            &["=\",,", "realm=x"],
            1,
            "upstream.auth_scheme_unsupported",
            "it offers",
        ),
        (
            "",
            &["Negotiate, NTLM", "Bearer"],
            1,
            "upstream.auth_scheme_unsupported",
            "it offers Negotiate, NTLM, Bearer; of use here: Digest, Basic",
        ),
        (
            "schemes: [digest], ",
            basic,
            1,
            "upstream.auth_scheme_unsupported",
            "it offers Basic; of use here: Digest",
        ),
        (
            "",
            basic,
            2,
            "upstream.auth_rejected",
            "it refuses our Basic credentials",
        ),
        (
            "preemptive: true, ",
            basic,
            1,
            "upstream.auth_rejected",
            "it refuses our Basic credentials",
        ),
        (
            "",
            &["Digest realm=\"r\", nonce=\"n\", qop=\"auth\", stale=true"],
            4,
            "upstream.auth_rejected",
            "it refuses our Digest credentials",
        ),
    ] {
        for request in [CONNECT, GET] {
            let answer = asks(offered, EMPTY, "");
            let upstream = Origin::serving(move |stream| {
                let mut count = 0;
                loop {
                    let mut byte = [0];
                    if !matches!(stream.peek(&mut byte), Ok(1)) {
                        return count.to_string();
                    }
                    wire::read_head(&stream);
                    count += 1;
                    wire::send(&stream, &answer);
                }
            });
            let proxy = through(upstream.address, ours);
            let client = proxy.connect();
            wire::send(&client, request);
            let (head, _) = wire::read_answer(&client);
            assert!(
                head.starts_with(&format!("HTTP/1.1 502 {cause}: ")),
                "{head}"
            );
            assert!(head.contains(told), "{offered:?}: {head}");
            assert_eq!(wire::field(&head, "proxy-authenticate"), None, "{head}");
            let record = proxy.record();
            check!(&record, "error.type": cause, "egress.side": "upstream", "egress.upstream.status": 407);
            check!(&record["egress.attempts"][0], "cause": cause);
            drop(client);
            drop(proxy);
            assert_eq!(
                upstream.heard(),
                heads.to_string(),
                "{request} {ours}{offered:?}"
            );
        }
    }
}

#[test]
fn a_plain_request_is_sent_again_with_its_body() {
    let long = "x".repeat(20_000);
    for (request, body) in [
        (GET.to_owned(), String::new()),
        (
            "DELETE http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
            String::new(),
        ),
        (
            "POST http://a.example/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello"
                .to_owned(),
            "hello".to_owned(),
        ),
        (
            format!(
                "PUT http://a.example/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 20000\r\n\r\n{long}"
            ),
            long.clone(),
        ),
    ] {
        for framing in [
            "Content-Length: 2\r\n",
            "Content-Length: 2\r\nConnection: close\r\n",
        ] {
            let upstream = Listening::new();
            let proxy = through(upstream.address, "");
            let client = proxy.connect();
            wire::send(&client, &request);
            let (first, head) = upstream.hear();
            assert_eq!(wire::field(&head, "proxy-authorization"), None, "{head}");
            assert_eq!(wire::read_exact(&first, body.len()), body.as_bytes());
            wire::send(&first, asks(&["Basic"], framing, "no"));
            let second;
            let (server, head) = if framing.contains("close") {
                second = upstream.hear();
                (&second.0, second.1.clone())
            } else {
                (&first, wire::read_head(&first))
            };
            assert_eq!(wire::fields(&head, "proxy-authorization"), [BASIC]);
            assert_eq!(wire::read_exact(server, body.len()), body.as_bytes());
            wire::send(server, OK);
            assert_eq!(wire::read_answer(&client).1, "ok");
            check!(&proxy.record(), "event.outcome": "success", "source.bytes": (body.len()),
                "egress.notes": ["upstream.asked_who"]);
        }
    }
}

#[test]
fn what_one_upstream_is_told_of_us_goes_to_nobody_who_takes_over_from_it() {
    let auth = ", auth: {username: {file: user}, password: {file: password}}";
    for (stands_in, via) in [
        ("", "\"corp|direct\""),
        (", other: {url: \"http://OTHER\"}", "either"),
    ] {
        let (corp, other) = (Listening::new(), Listening::new());
        let stands_in = stands_in.replace("OTHER", &other.address.to_string());
        let groups = if via == "either" {
            "groups: {either: {members: [corp, other]}}\n"
        } else {
            ""
        };
        let proxy = Proxy::under(&format!(
            "version: 1\nupstreams: {{corp: {{url: \"http://{}\"{auth}}}{stands_in}}}\n{groups}\
             dns: {{hosts: {{a.example: [127.0.0.1]}}}}\nrules: []\ndefault: {{via: {via}}}\n",
            corp.address
        ))
        .file("user", "user\n")
        .file("password", "hunter2\n")
        .start();
        let client = proxy.connect();
        let host = format!("a.example:{}", other.address.port());
        wire::send(
            &client,
            format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        );
        let (server, _) = corp.hear();
        // Nobody listens any more when the answer to the 407 is to be sent.
        drop(corp);
        let framing = "Content-Length: 0\r\nConnection: close\r\n";
        wire::send(&server, asks(&["Basic"], framing, ""));
        drop(server);
        let (server, head) = other.hear();
        assert_eq!(
            wire::field(&head, "proxy-authorization"),
            None,
            "{via}: {head}"
        );
        wire::send(&server, OK);
        assert_eq!(wire::read_answer(&client).1, "ok");
        let record = proxy.record();
        let last = if via == "either" { "other" } else { "direct" };
        check!(&record, "event.outcome": "success", "egress.hop": last);
    }
}

#[test]
fn a_body_that_was_not_sent_whole_is_sent_again_from_its_beginning() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, "");
    let client = proxy.connect();
    wire::send(
        &client,
        "POST http://a.example/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nhello",
    );
    let (first, _) = upstream.hear();
    assert_eq!(wire::read_exact(&first, 5), b"hello");
    wire::send(&first, asks(&["Basic"], EMPTY, ""));
    let (server, head) = upstream.hear();
    assert_eq!(wire::fields(&head, "proxy-authorization"), [BASIC]);
    wire::send(&client, "world");
    assert_eq!(wire::read_exact(&server, 10), b"helloworld");
    wire::send(&server, OK);
    assert_eq!(wire::read_answer(&client).1, "ok");
}

#[test]
fn a_body_too_long_to_be_kept_fails_once_and_passes_the_next_time() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, "");
    let client = proxy.connect();
    let long = vec![b'x'; 200_000];
    let request =
        "POST http://a.example/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 200000\r\n\r\n";
    wire::send(&client, request);
    wire::send(&client, &long);
    let (server, _) = upstream.hear();
    wire::read_exact(&server, 200_000);
    wire::send(&server, asks(&["Basic"], EMPTY, ""));
    let (head, _) = wire::read_answer(&client);
    assert!(
        head.starts_with("HTTP/1.1 502 upstream.auth_required: "),
        "{head}"
    );
    let client = proxy.connect();
    wire::send(&client, request);
    let (_, head) = upstream.hear();
    assert_eq!(wire::fields(&head, "proxy-authorization"), [BASIC]);
}

#[test]
fn a_password_that_changed_is_read_again_once() {
    let upstream = Listening::new();
    let proxy = through(upstream.address, "preemptive: true, ");
    let password = proxy.policy.parent().unwrap().join("password");
    std::fs::write(&password, "newer\n").unwrap();
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let (server, head) = upstream.hear();
    assert_eq!(wire::fields(&head, "proxy-authorization"), [BASIC]);
    wire::send(&server, asks(&["Basic"], EMPTY, ""));
    let head = wire::read_head(&server);
    assert_eq!(
        wire::fields(&head, "proxy-authorization"),
        ["Basic dXNlcjpuZXdlcg=="]
    );
    wire::send(&server, asks(&["Basic"], EMPTY, ""));
    let answer = wire::read_head(&client);
    assert!(
        answer.starts_with("HTTP/1.1 502 upstream.auth_rejected: "),
        "{answer}"
    );
}

#[test]
fn a_password_that_was_refused_is_not_sent_again_until_it_changes() {
    for (request, answer) in [(CONNECT, OPEN), (GET, OK)] {
        let upstream = Listening::new();
        let proxy = through(upstream.address, "preemptive: true, ");
        let ask = || {
            let client = proxy.connect();
            wire::send(&client, request);
            let (server, head) = upstream.hear();
            let said = wire::field(&head, "proxy-authorization").map(str::to_owned);
            (client, server, said)
        };
        let refuse = |client, server| {
            wire::send(&server, asks(&["Basic"], EMPTY, ""));
            let (head, _) = wire::read_answer(&client);
            assert!(
                head.starts_with("HTTP/1.1 502 upstream.auth_rejected: "),
                "{head}"
            );
            check!(&proxy.record(), "error.type": "upstream.auth_rejected");
        };
        let (client, server, said) = ask();
        assert_eq!(said.as_deref(), Some(BASIC));
        refuse(client, server);
        for _ in 0..3 {
            let (client, server, said) = ask();
            assert_eq!(said, None);
            refuse(client, server);
        }
        proxy.replace("password", "newer\n");
        // It is looked at every second; until then nobody is asked who they are.
        let mut said = None;
        while said.is_none() {
            let (client, server, newest) = ask();
            wire::send(&server, answer);
            assert_eq!(wire::status(&wire::read_head(&client)), 200);
            said = newest;
        }
        assert_eq!(said.as_deref(), Some("Basic dXNlcjpuZXdlcg=="));
    }
}

#[test]
fn a_socks_login_that_was_refused_is_not_sent_again() {
    let upstream = Listening::new();
    let auth = ", auth: {username: {file: user}, password: {file: password}}";
    let proxy = through_socks("socks5h", upstream.address, auth);
    for is_first in [true, false] {
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        if is_first {
            let server = upstream.accept();
            wire::read_exact(&server, 4);
            wire::send(&server, b"\x05\x02");
            wire::read_exact(&server, 14);
            wire::send(&server, b"\x01\x01");
        }
        let head = wire::read_head(&client);
        assert!(head.contains(" upstream.auth_rejected: "), "{head}");
        assert_eq!(head.contains("unless they change"), !is_first, "{head}");
        let record = proxy.record();
        check!(&record, "error.type": "upstream.auth_rejected");
        check!(&record["egress.attempts"][0], "cause": "upstream.auth_rejected", "hop": "corp");
    }
    assert!(upstream.is_untouched());
}

#[test]
fn a_program_gives_the_password() {
    let upstream = Listening::new();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{}\", auth: {{preemptive: true, username: {{command: [echo, user]}}, password: {{command: [printf, 'hunter2\\nmore']}}}}}}}}\n\
         rules: []\ndefault: {{via: corp}}\n",
        upstream.address
    ));
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let (_, head) = upstream.hear();
    assert_eq!(wire::fields(&head, "proxy-authorization"), [BASIC]);
}

/// Everything through a SOCKS server that speaks the bytes of a test.
fn through_socks(scheme: &str, address: SocketAddr, auth: &str) -> Proxy {
    Proxy::under(&format!(
        "version: 1\nupstreams: {{corp: {{url: \"{scheme}://{address}\"{auth}}}}}\n\
         dns: {{hosts: {{a.example: [192.0.2.7], near.example: [127.0.0.1]}}}}\n\
         guards: {{loopback: block}}\nrules: []\ndefault: {{via: corp}}\n"
    ))
    .file("user", "user\n")
    .file("password", "hunter2\n")
    .start()
}

const BOUND: &[u8] = b"\x05\x00\x00\x01\0\0\0\0\0\0";

#[test]
fn socks_is_told_a_name_or_an_address_and_carries_tunnels_and_plain_requests() {
    for (scheme, asked) in [
        ("socks5h", &b"\x05\x01\x00\x03\x09a.example"[..]),
        ("socks5", b"\x05\x01\x00\x01\xc0\x00\x02\x07"),
    ] {
        for (request, port) in [(CONNECT, 443_u16), (GET, 80)] {
            let upstream = Listening::new();
            let proxy = through_socks(scheme, upstream.address, "");
            let client = proxy.connect();
            wire::send(&client, request);
            let server = upstream.accept();
            assert_eq!(wire::read_exact(&server, 3), b"\x05\x01\x00");
            wire::send(&server, b"\x05\x00");
            assert_eq!(wire::read_exact(&server, asked.len()), asked);
            assert_eq!(wire::read_exact(&server, 2), port.to_be_bytes());
            wire::send(&server, BOUND);
            if port == 443 {
                assert_eq!(wire::status(&wire::read_head(&client)), 200);
                wire::send(&client, "ping");
                assert_eq!(wire::read_exact(&server, 4), b"ping");
                wire::finish(&server);
            } else {
                let head = wire::read_head(&server);
                assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
                wire::send(&server, OK);
                assert_eq!(wire::read_answer(&client).1, "ok");
            }
            drop((client, server));
            check!(&proxy.record(), "event.outcome": "success", "egress.hop": "corp", "egress.upstream.name": "corp");
        }
    }
}

#[test]
fn an_address_for_socks_is_found_and_admitted_here() {
    let upstream = Listening::new();
    let proxy = through_socks("socks5", upstream.address, "");
    let client = proxy.connect();
    wire::send(
        &client,
        "CONNECT near.example:443 HTTP/1.1\r\nHost: near.example:443\r\n\r\n",
    );
    let answer = wire::read_head(&client);
    assert!(
        answer.starts_with("HTTP/1.1 403 policy.denied.ip: "),
        "{answer}"
    );
    assert!(upstream.is_untouched());
}

#[test]
fn a_kept_connection_is_for_those_who_may_reach_the_address_that_socks_was_told() {
    if !needs::has("network") {
        return;
    }
    let Some(own) = needs::own_address() else {
        return;
    };
    let upstream = Listening::new();
    let proxy = Proxy::under(&format!(
        "version: 1\nupstreams: {{corp: {{url: \"socks5://{}\"}}}}\n\
         dns: {{hosts: {{near.example: [127.0.0.1]}}}}\nrules: []\ndefault: {{via: corp}}\n",
        upstream.address
    ))
    .arg("--listen")
    .arg("0.0.0.0:0")
    .arg("--allow-from")
    .arg("0.0.0.0/0")
    .start();
    let port = proxy.address.port();
    let get = "GET http://near.example/x HTTP/1.1\r\nHost: near.example\r\n\r\n";
    // Loopback is for clients on loopback.
    let client = wire::connect(([127, 0, 0, 1], port).into());
    wire::send(&client, get);
    let server = upstream.accept();
    wire::read_exact(&server, 3);
    wire::send(&server, b"\x05\x00");
    wire::read_exact(&server, 10);
    wire::send(&server, BOUND);
    for _ in 0..2 {
        wire::read_head(&server);
        wire::send(&server, OK);
        assert_eq!(wire::read_answer(&client).1, "ok");
        check!(&proxy.record(), "event.outcome": "success");
        let other = wire::connect((own, port).into());
        wire::send(&other, get);
        let (head, _) = wire::read_answer(&other);
        assert!(
            head.starts_with("HTTP/1.1 403 policy.denied.ip: "),
            "{head}"
        );
        proxy.record();
        // Its own is still there.
        wire::send(&client, get);
    }
}

#[test]
fn socks_is_told_one_address_after_another_until_it_reaches_one() {
    let policy = |address| {
        format!(
            "version: 1\nupstreams: {{corp: {{url: \"socks5://{address}\"}}}}\n\
             dns: {{hosts: {{a.example: [\"2001:db8::1\", 192.0.2.7, 192.0.2.8]}}}}\nrules: []\ndefault: {{via: corp}}\n"
        )
    };
    // The codes of its replies, and how many it is asked for.
    for (codes, asked, cause) in [
        (&[3, 4, 0][..], 3, None),
        (&[8, 0], 2, None),
        (&[5, 5, 5], 3, Some("upstream.reported.connect")),
        // It speaks of itself, or of the target whatever its address.
        (&[1], 1, Some("upstream.reported.other")),
        (&[2], 1, Some("upstream.denied")),
    ] {
        let upstream = Listening::new();
        let proxy = Proxy::start(&policy(upstream.address));
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let mut told = Vec::new();
        for code in codes {
            let server = upstream.accept();
            wire::read_exact(&server, 3);
            wire::send(&server, b"\x05\x00");
            let kind = wire::read_exact(&server, 4)[3];
            let address = wire::read_exact(&server, if kind == 4 { 16 } else { 4 });
            wire::read_exact(&server, 2);
            told.push((kind, address[address.len() - 1]));
            wire::send(&server, [5, *code, 0, 1, 0, 0, 0, 0, 0, 0]);
            if *code == 0 {
                assert_eq!(wire::status(&wire::read_head(&client)), 200);
                wire::send(&server, "hello");
                assert_eq!(wire::read_exact(&client, 5), b"hello");
                wire::finish(&server);
            }
        }
        assert_eq!(told, [(4, 1), (1, 7), (1, 8)][..asked], "{codes:?}");
        if let Some(cause) = cause {
            let head = wire::read_head(&client);
            assert!(head.contains(&format!(" {cause}: ")), "{head}");
        }
        drop(client);
        let record = proxy.record();
        assert_eq!(
            record["egress.attempts"].as_array().unwrap().len(),
            asked,
            "{record:#}"
        );
        check!(&record, "error.type": cause);
        assert!(upstream.is_untouched());
    }
}

#[test]
fn an_http_upstream_is_told_the_next_address_where_it_cannot_reach_one() {
    let upstream = Listening::new();
    let proxy = Proxy::start(&format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{}\", send: ip}}}}\n\
         dns: {{hosts: {{a.example: [\"2001:db8::1\", 192.0.2.7]}}}}\nrules: []\ndefault: {{via: corp}}\n",
        upstream.address
    ));
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let (server, head) = upstream.hear();
    assert!(head.starts_with("CONNECT [2001:db8::1]:443 "), "{head}");
    wire::send(
        &server,
        "HTTP/1.1 502 No\r\nProxy-Status: corp; error=destination_ip_unroutable\r\nContent-Length: 0\r\n\r\n",
    );
    let (server, head) = upstream.hear();
    assert!(head.starts_with("CONNECT 192.0.2.7:443 "), "{head}");
    wire::send(&server, OPEN);
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
}

#[test]
fn every_refusal_of_a_socks_server_has_its_cause() {
    for (code, cause, status) in [
        (1_u8, "upstream.reported.other", 502),
        (2, "upstream.denied", 403),
        (3, "upstream.reported.connect", 502),
        (4, "upstream.reported.connect", 502),
        (5, "upstream.reported.connect", 502),
        (6, "upstream.reported.timeout", 504),
        (7, "upstream.connect_unsupported", 502),
        (8, "upstream.reported.other", 502),
        (200, "upstream.reported.other", 502),
    ] {
        let upstream = Origin::serving(move |stream| {
            wire::read_exact(&stream, 3);
            wire::send(&stream, b"\x05\x00");
            wire::read_exact(&stream, 16);
            wire::send(&stream, [5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
            String::new()
        });
        let proxy = through_socks("socks5h", upstream.address, "");
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let head = wire::read_head(&client);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} {cause}: ")),
            "{code}: {head}"
        );
        check!(&proxy.record(), "error.type": cause, "egress.side": "upstream", "egress.phase": "upstream",
            "egress.upstream.socks_reply": code);
    }
    for (answer, auth, cause) in [
        (&b""[..], false, "upstream.closed"),
        (b"\x05", false, "upstream.closed"),
        (b"\x04\x00", false, "upstream.malformed_reply"),
        (b"HTTP/1.1 400 Bad\r\n", false, "upstream.malformed_reply"),
        (b"\x05\xff", false, "upstream.auth_required"),
        (b"\x05\xff", true, "upstream.auth_scheme_unsupported"),
        (b"\x05\x02\x01\x01", true, "upstream.auth_rejected"),
        (
            b"\x05\x00\x05\x00\x00\x07",
            false,
            "upstream.malformed_reply",
        ),
    ] {
        let upstream = Origin::serving(move |stream| {
            wire::read_exact(&stream, if auth { 4 } else { 3 });
            wire::send(&stream, answer);
            wire::finish(&stream);
            wire::read_to_end(&stream);
            String::new()
        });
        let auth = if auth {
            ", auth: {username: {file: user}, password: {file: password}}"
        } else {
            ""
        };
        let proxy = through_socks("socks5h", upstream.address, auth);
        let client = proxy.connect();
        wire::send(&client, CONNECT);
        let head = wire::read_head(&client);
        assert!(head.contains(&format!(" {cause}: ")), "{answer:?}: {head}");
        check!(&proxy.record(), "error.type": cause);
    }
}

#[test]
fn a_socks_login_is_sent_where_it_is_chosen() {
    let upstream = Listening::new();
    let auth = ", auth: {username: {file: user}, password: {file: password}}";
    let proxy = through_socks("socks5h", upstream.address, auth);
    let client = proxy.connect();
    wire::send(&client, CONNECT);
    let server = upstream.accept();
    assert_eq!(wire::read_exact(&server, 4), b"\x05\x02\x00\x02");
    wire::send(&server, b"\x05\x02");
    assert_eq!(wire::read_exact(&server, 14), b"\x01\x04user\x07hunter2");
    wire::send(&server, b"\x01\x00");
    assert_eq!(
        wire::read_exact(&server, 16),
        b"\x05\x01\x00\x03\x09a.example\x01\xbb"
    );
    wire::send(&server, [BOUND, b"SSH"].concat());
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    assert_eq!(wire::read_exact(&client, 3), b"SSH");
}
