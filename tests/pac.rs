//! Routes by PAC files: what their scripts name is done, and where they name nothing, nothing is.

#![cfg(feature = "pac")]

mod support;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::nameserver::NameServer;
use support::origin::{Listening, Origin};
use support::{Proxy, check, wire};

/// As an office has it.
const OFFICE: &str = r#"
// Direct inside, by the proxies outside.
function FindProxyForURL(url, host) {
    var proxies = "PROXY ONE; PROXY TWO";
    if (isPlainHostName(host) || dnsDomainIs(host, ".corp.example")) {
        return "DIRECT";
    }
    if (isInNet(dnsResolve(host), "10.0.0.0", "255.0.0.0")) {
        return "SOCKS5 SOCKS";
    }
    if (shExpMatch(url, "http:*")) {
        return proxies + "; DIRECT";
    }
    return proxies;
}
"#;

const PINS: &str = "dns: {hosts: {git.corp.example: [127.0.0.1], lab.example: [10.1.2.3], web.example: [127.0.0.1]}}\n";

/// Everything by the script, with `more` of the policy.
fn by(script: &str, more: &str) -> Proxy {
    Proxy::under(&format!(
        "version: 1\nupstreams: {{office: {{pac: proxy.pac}}{more}}}\n{PINS}rules: []\ndefault: {{via: office}}\n"
    ))
    .file("proxy.pac", script)
    .file("user", "user\n")
    .file("password", "hunter2\n")
    .start()
}

fn connect(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

fn get(authority: &str) -> String {
    format!("GET http://{authority}/secret?token=x HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

const OPEN: &str = "HTTP/1.1 200 OK\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn office(one: SocketAddr, two: SocketAddr, socks: SocketAddr) -> String {
    OFFICE
        .replace("ONE", &one.to_string())
        .replace("TWO", &two.to_string())
        .replace("SOCKS5 SOCKS", &format!("SOCKS5 {socks}"))
}

/// Ends a tunnel in order.
fn end(client: &TcpStream, server: TcpStream) {
    wire::finish(client);
    assert_eq!(wire::read_text(&server), "");
    drop(server);
    assert_eq!(wire::read_text(client), "");
}

#[test]
fn what_a_script_names_is_where_requests_go() {
    let (one, two, socks) = (Listening::new(), Listening::new(), Listening::new());
    let proxy = by(&office(one.address, two.address, socks.address), "");
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443"));
    let (server, head) = one.hear();
    assert!(head.starts_with("CONNECT a.example:443 "), "{head}");
    assert_eq!(wire::field(&head, "proxy-authorization"), None, "{head}");
    wire::send(&server, OPEN);
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    end(&client, server);
    let hop = format!("http://{}", one.address);
    check!(&proxy.record(), "event.outcome": "success", "egress.route": "office", "egress.hop": hop,
        "egress.upstream.name": hop);

    let client = proxy.connect();
    wire::send(&client, connect("lab.example:22"));
    let server = socks.accept();
    assert_eq!(wire::read_exact(&server, 3), b"\x05\x01\x00");
    wire::send(&server, b"\x05\x00");
    assert_eq!(
        wire::read_exact(&server, 18),
        b"\x05\x01\x00\x03\x0blab.example\0\x16"
    );
    wire::send(&server, b"\x05\x00\x00\x01\0\0\0\0\0\0");
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    end(&client, server);
    check!(&proxy.record(), "event.outcome": "success", "egress.hop": (format!("socks5h://{}", socks.address)));

    let origin = Origin::answering(OK);
    let client = proxy.connect();
    wire::send(
        &client,
        get(&format!("git.corp.example:{}", origin.address.port())),
    );
    assert_eq!(wire::read_answer(&client).1, "ok");
    check!(&proxy.record(), "event.outcome": "success", "egress.route": "office", "egress.hop": "direct");

    // A proxy that is down is passed by; the last way of a plain request is direct.
    drop((one, two));
    let origin = Origin::answering(OK);
    let client = proxy.connect();
    wire::send(
        &client,
        get(&format!("web.example:{}", origin.address.port())),
    );
    assert_eq!(wire::read_answer(&client).1, "ok");
    let record = proxy.record();
    check!(&record, "event.outcome": "success", "egress.hop": "direct");
    assert_eq!(
        record["egress.attempts"].as_array().unwrap().len(),
        3,
        "{record:#}"
    );
    // Of a tunnel it is not.
    let client = proxy.connect();
    wire::send(&client, connect("web.example:443"));
    let head = wire::read_head(&client);
    assert!(
        head.starts_with("HTTP/1.1 502 upstream.connect.refused: "),
        "{head}"
    );
    proxy.record();
}

#[test]
fn only_an_upstream_of_the_policy_is_told_who_we_are() {
    let (ours, other) = (Listening::new(), Listening::new());
    let script = format!(
        "function FindProxyForURL(url, host) {{ return host == 'a.example' ? 'PROXY {}' : 'PROXY {}' }}",
        ours.address, other.address
    );
    let corp = format!(
        ", corp: {{url: 'http://{}', auth: {{preemptive: true, username: {{file: user}}, password: {{file: password}}}}}}",
        ours.address
    );
    let proxy = by(&script, &corp);
    for (host, upstream, said, hop) in [
        (
            "a.example",
            &ours,
            Some("Basic dXNlcjpodW50ZXIy"),
            "corp".to_owned(),
        ),
        (
            "b.example",
            &other,
            None,
            format!("http://{}", other.address),
        ),
    ] {
        for request in [connect(&format!("{host}:443")), get(host)] {
            let client = proxy.connect();
            wire::send(&client, &request);
            let (server, head) = upstream.hear();
            assert_eq!(wire::field(&head, "proxy-authorization"), said, "{head}");
            wire::send(&server, if request.starts_with('C') { OPEN } else { OK });
            assert_eq!(wire::status(&wire::read_head(&client)), 200);
            drop((client, server));
            check!(&proxy.record(), "egress.route": "office", "egress.hop": hop);
        }
    }
}

#[test]
fn a_script_is_told_the_host_and_no_path() {
    let script = "function FindProxyForURL(url, host) { throw url + ' ' + host }";
    let proxy = by(script, "");
    for (request, told) in [
        (connect("a.example:443"), "https://a.example/ a.example"),
        (
            connect("a.example:8443"),
            "https://a.example:8443/ a.example",
        ),
        (
            connect("[2001:db8::1]:443"),
            "https://[2001:db8::1]/ 2001:db8::1",
        ),
        (get("A.example"), "http://a.example/ a.example"),
        (get("a.example:8080"), "http://a.example:8080/ a.example"),
    ] {
        let client = proxy.connect();
        wire::send(&client, &request);
        let (head, body) = wire::read_answer(&client);
        assert!(
            head.starts_with("HTTP/1.1 502 upstream.pac_failed: "),
            "{head}"
        );
        assert!(body.contains(told), "{request}: {body}");
        assert!(!body.contains("token"), "{body}");
        proxy.record();
    }
}

#[test]
fn a_script_looks_names_up_by_the_policys_servers() {
    let server = NameServer::answering(|query| {
        let inside = query.name.ends_with("inside.example");
        Some(query.address(if inside { "10.1.2.3" } else { "192.0.2.3" }))
    });
    let upstream = Listening::new();
    let proxy = Proxy::under(&format!(
        "version: 1\nupstreams: {{office: {{pac: proxy.pac}}}}\n\
         dns: {{servers: {{own: {{udp: ['{}']}}}}, default: own}}\ndefault: {{via: office}}\n",
        server.address
    ))
    .file(
        "proxy.pac",
        &format!(
            "function FindProxyForURL(url, host) {{\n\
               return isInNet(host, '10.0.0.0', '255.0.0.0') ? 'PROXY {}' : 'nowhere'; }}",
            upstream.address
        ),
    )
    .start();
    let client = proxy.connect();
    wire::send(&client, connect("a.inside.example:443"));
    let (server_side, _) = upstream.hear();
    wire::send(&server_side, OPEN);
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    let client = proxy.connect();
    wire::send(&client, connect("a.outside.example:443"));
    let head = wire::read_head(&client);
    assert!(head.contains("the script answered \"nowhere\""), "{head}");
    let asked = server.seen();
    assert!(
        asked.iter().any(|(name, _)| name == "a.outside.example"),
        "{asked:?}"
    );
}

#[test]
fn where_a_script_names_no_way_nothing_goes_out() {
    let origin = Listening::new();
    for (body, told) in [
        ("return 'DIRECT; QUIC a:1'", "is not understood"),
        ("return null", "answered with null"),
        ("return", "answered with undefined"),
        ("return ''", "answered nothing"),
        ("return nothing.there", "nothing is not defined at 1:"),
        (
            "return FindProxyForURL(url, host) + 1",
            "Maximum call stack size exceeded",
        ),
        ("return 'x'.repeat(1e9)", "takes more memory than 32 MiB"),
    ] {
        let proxy = by(
            &format!("function FindProxyForURL(url, host) {{ {body} }}"),
            "",
        );
        // The script is asked again, and says the same.
        for _ in 0..2 {
            let client = proxy.connect();
            wire::send(
                &client,
                get(&format!("web.example:{}", origin.address.port())),
            );
            let (head, text) = wire::read_answer(&client);
            assert!(
                head.starts_with(
                    "HTTP/1.1 502 upstream.pac_failed: PAC file proxy.pac of office: "
                ),
                "{body}: {head}"
            );
            assert!(text.contains(told), "{body}: {text}");
            let record = proxy.record();
            check!(&record, "error.type": "upstream.pac_failed", "egress.side": "upstream", "egress.phase": "upstream",
                "egress.route": "office", "http.response.status_code": 502);
            check!(&record["egress.attempts"][0], "hop": "office", "cause": "upstream.pac_failed");
        }
    }
    assert!(origin.is_untouched());
}

#[test]
fn a_script_that_does_not_end_is_ended_and_others_are_served_behind_it() {
    let origin = Origin::answering(OK);
    let script = "function FindProxyForURL(url, host) {\n  while (host == 'a.example') {}\n  return 'DIRECT';\n}\n";
    let proxy = by(script, "");
    let stuck = proxy.connect();
    let begun = Instant::now();
    wire::send(&stuck, get("a.example"));
    let head = wire::read_head(&stuck);
    assert!(
        head.contains(" upstream.pac_failed: ") && head.contains("no answer in 5s"),
        "{head}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
    let client = proxy.connect();
    wire::send(
        &client,
        get(&format!("web.example:{}", origin.address.port())),
    );
    assert_eq!(wire::read_answer(&client).1, "ok");
}

#[test]
fn the_guards_judge_what_a_script_names() {
    let proxy = by(
        "function FindProxyForURL(url, host) { return host == 'a.example' ? 'PROXY 169.254.1.1:80' : 'DIRECT' }",
        "",
    );
    for target in ["a.example:443", "169.254.1.1:443"] {
        let client = proxy.connect();
        wire::send(&client, connect(target));
        let head = wire::read_head(&client);
        assert!(
            head.contains("policy.denied.ip: ") && head.contains("guards.link_local"),
            "{head}"
        );
        proxy.record();
    }
}

#[test]
fn a_change_of_the_file_is_a_reload_and_a_broken_one_changes_nothing() {
    let (one, two) = (Listening::new(), Listening::new());
    let script =
        |to: SocketAddr| format!("function FindProxyForURL(url, host) {{ return 'PROXY {to}' }}");
    let proxy = by(&script(one.address), "");
    let goes_to = |upstream: &Listening| {
        let client = proxy.connect();
        wire::send(&client, connect("a.example:443"));
        let (server, _) = upstream.hear();
        wire::send(&server, OPEN);
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
    };
    goes_to(&one);
    let file = proxy.policy.parent().unwrap().join("proxy.pac");
    fs::write(&file, "function FindProxyForURL(url, host) {").unwrap();
    proxy.diary("the script fails: ");
    goes_to(&one);
    fs::write(&file, script(two.address)).unwrap();
    proxy.diary("reloaded");
    goes_to(&two);
}

/// Everything by the script of a web server, with `more` of the policy.
fn fetched(url: &str, more: &str) -> String {
    format!("version: 1\nupstreams: {{office: {{pac: '{url}'}}}}\n{more}default: {{via: office}}\n")
}

fn answer(script: &str) -> String {
    let length = script.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{script}")
}

/// One that leads everything there.
fn leading(to: SocketAddr) -> String {
    format!("function FindProxyForURL(url, host) {{ return 'PROXY {to}' }}")
}

/// Lets a tunnel of the client's through.
fn passes(proxy: &Proxy, client: &TcpStream, upstream: &Listening) {
    let (behind, head) = upstream.hear();
    assert!(head.starts_with("CONNECT a.example:443 "), "{head}");
    wire::send(&behind, OPEN);
    assert_eq!(wire::status(&wire::read_head(client)), 200);
    end(client, behind);
    check!(&proxy.record(), "event.outcome": "success", "egress.route": "office",
        "egress.hop": (format!("http://{}", upstream.address)));
}

#[test]
fn a_script_of_a_web_server_is_fetched_once_and_again_after_a_reload() {
    let (one, two, server) = (Listening::new(), Listening::new(), Listening::new());
    let url = format!("http://{}/wpad/proxy.pac?site=1", server.address);
    let proxy = Proxy::start(&fetched(&url, ""));
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443"));
    let (web, head) = server.hear();
    assert!(
        head.starts_with("GET /wpad/proxy.pac?site=1 HTTP/1.1\r\n"),
        "{head}"
    );
    let host = server.address.to_string();
    assert_eq!(wire::field(&head, "host"), Some(&*host), "{head}");
    for secret in ["authorization", "proxy-authorization", "cookie"] {
        assert_eq!(wire::field(&head, secret), None, "{head}");
    }
    wire::send(&web, answer(&leading(one.address)));
    drop(web);
    passes(&proxy, &client, &one);
    let again = || {
        let client = proxy.connect();
        wire::send(&client, connect("a.example:443"));
        client
    };
    passes(&proxy, &again(), &one);
    assert!(server.is_untouched());

    proxy.replace("policy.yaml", &fetched(&url, "rules: []\n"));
    proxy.diary("reloaded");
    // Nobody waits for the server, and what it has is used from then on.
    passes(&proxy, &again(), &one);
    let (web, _) = server.hear();
    passes(&proxy, &again(), &one);
    wire::send(&web, answer(&leading(two.address)));
    drop(web);
    proxy.diaries("PAC file fetched", 2);
    passes(&proxy, &again(), &two);
    assert!(server.is_untouched());
}

#[test]
fn who_leaves_while_a_script_is_fetched_takes_it_from_nobody() {
    let (upstream, server) = (Listening::new(), Listening::new());
    let url = format!("http://{}/proxy.pac?hunter2", server.address);
    let proxy = Proxy::start(&fetched(&url, ""));
    let leaving = proxy.connect();
    wire::send(&leaving, connect("a.example:443"));
    let (web, _) = server.hear();
    drop(leaving);
    check!(&proxy.record(), "error.type": "client.gave_up.upstream", "egress.hop": "office");
    let client = proxy.connect();
    wire::send(&client, connect("a.example:443"));
    wire::send(&web, answer(&leading(upstream.address)));
    drop(web);
    passes(&proxy, &client, &upstream);
    assert!(server.is_untouched());
}

#[test]
fn a_script_that_a_web_server_does_not_give_lets_nothing_out() {
    for (said, told) in [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "the server answered 404 Not Found",
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://b/proxy.pac?key=hunter2\r\nContent-Length: 0\r\n\r\n"
                .to_owned(),
            "the server answered 302 Found and leads to http://b/proxy.pac: write that URL",
        ),
        (answer("<html>log in first</html>"), "the script fails: "),
        (
            answer("var a = 1"),
            "the script has no function FindProxyForURL",
        ),
        (String::new(), "it cannot be fetched: "),
    ] {
        let server = Listening::new();
        let url = format!("http://{}/a?key=hunter2", server.address);
        let proxy = Proxy::start(&fetched(&url, ""));
        let clients = [proxy.connect(), proxy.connect()];
        for client in &clients {
            wire::send(client, get("web.example:81"));
        }
        let (web, _) = server.hear();
        wire::send(&web, &said);
        drop(web);
        // Whoever waited, and who comes next, learns the same of one question.
        let late = proxy.connect();
        wire::send(&late, get("web.example:81"));
        for client in clients.iter().chain([&late]) {
            let (head, body) = wire::read_answer(client);
            assert!(
                head.starts_with("HTTP/1.1 502 upstream.pac_failed: "),
                "{head}"
            );
            assert!(body.contains(told), "{body}");
            assert!(!body.contains("hunter2"), "{body}");
        }
        for record in proxy.records(3) {
            assert!(!record.to_string().contains("hunter2"), "{record}");
            check!(&record, "error.type": "upstream.pac_failed", "egress.route": "office");
        }
        assert!(server.is_untouched(), "{told}");
    }
}

#[test]
fn a_web_server_that_cannot_be_reached_is_named() {
    let nowhere = Origin::nowhere();
    let proxy = Proxy::start(&fetched(&format!("http://{nowhere}/proxy.pac"), ""));
    let client = proxy.connect();
    wire::send(&client, get("web.example:81"));
    let (head, body) = wire::read_answer(&client);
    assert!(
        head.starts_with("HTTP/1.1 502 upstream.pac_failed: "),
        "{head}"
    );
    let told = format!(
        "PAC file http://{nowhere}/proxy.pac of office: it cannot be fetched: connect to {nowhere}: Connection refused"
    );
    assert!(body.contains(&told), "{body}");
}

#[test]
fn what_is_wrong_with_a_pac_file_is_told_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(
        at("good.pac"),
        "function FindProxyForURL(u, h) { return 'DIRECT' }",
    )
    .unwrap();
    fs::write(
        at("bad.pac"),
        "function FindProxyForURL(u, h) {\n  return 'DIRECT';\n",
    )
    .unwrap();
    fs::write(at("none.pac"), "var x = 1;\n").unwrap();
    for (upstreams, more, expected) in [
        ("{office: {pac: good.pac}}", "default: {via: office}", ""),
        (
            "{office: {pac: bad.pac}}",
            "default: {via: office}",
            "2:27: error: `bad.pac`: the script fails: ",
        ),
        (
            "{office: {pac: none.pac}}",
            "default: {via: office}",
            "2:27: error: `none.pac`: the script has no function FindProxyForURL",
        ),
        (
            "{office: {pac: missing.pac}}",
            "default: {via: office}",
            "2:27: error: ",
        ),
        (
            "{office: {pac: 'http://wpad/proxy.pac', every: 1h}}",
            "default: {via: office}",
            "",
        ),
        (
            "{office: {pac: 'ftp://wpad/proxy.pac'}}",
            "default: {via: office}",
            "2:27: error: `ftp://wpad/proxy.pac` does not begin with http:// or https://",
        ),
        (
            "{office: {pac: 'http://me:hunter2@wpad/proxy.pac'}}",
            "default: {via: office}",
            "2:27: error: credentials do not stand in a policy",
        ),
        (
            "{office: {pac: 'http://wpad/proxy.pac', every: 1s}}",
            "default: {via: office}",
            "2:59: error: a PAC file is fetched again after 10s to 24h",
        ),
        (
            "{office: {pac: good.pac, every: 1h}}",
            "default: {via: office}",
            "2:44: error: a PAC file that is a file is read again when it changes",
        ),
        (
            "{office: {pac: good.pac, url: 'http://a:1'}}",
            "default: {via: office}",
            "`url` is no key of an upstream by a PAC file",
        ),
        (
            "{office: {pac: good.pac}}",
            "default: {via: 'office|direct'}",
            "`office` is a PAC file: a hop is none",
        ),
        (
            "{office: {pac: good.pac}}",
            "groups: {g: {members: [office]}}\ndefault: {via: g}",
            "`office` is a PAC file: a member is none",
        ),
    ] {
        let policy = format!("version: 1\nupstreams: {upstreams}\n{more}\n");
        fs::write(at("policy.yaml"), policy).unwrap();
        let mut command = support::routecause();
        command.arg("check").arg(at("policy.yaml"));
        let (status, stdout, stderr) = support::run(&mut command);
        let told = stdout + &stderr;
        if expected.is_empty() {
            assert!(status.success(), "{told}");
        } else {
            assert_eq!(status.code(), Some(78), "{told}");
            assert!(told.contains(expected), "{upstreams}: {told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
