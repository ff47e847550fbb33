//! A real squid as the upstream: what passes through it, and what is told when it does not.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::nameserver::{NameServer, SecureServer};
use support::needs;
use support::origin::Origin;
use support::squid::{PASSWORD, Squid};
use support::web::{Ca, Web, answer};
use support::{Proxy, SOON, run, wire};

/// Whether the tests of this file can run here.
fn is_ready() -> bool {
    ["squid", "curl", "openssl"].into_iter().all(needs::has)
}

/// What curl prints for a URL through the proxy: the body, then the status.
fn curl(proxy: &Proxy, args: &[&str]) -> String {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--max-time", "20", "-w", " %{http_code}"])
        .args(["-x", &proxy.url()])
        .args(args);
    let (_, stdout, stderr) = run(&mut command);
    stdout + &stderr
}

#[track_caller]
fn assert_holds(record: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&record[key], value, "{key} in {record:#}");
    }
}

/// One good attempt at squid.
fn attempted(squid: &Squid) -> Value {
    json!({"hop": "squid", "address": squid.address.to_string(), "family": "ipv4", "cause": null})
}

/// The attempts of a record without their times.
fn attempts(record: &Value) -> Vec<Value> {
    let attempts = record["egress.attempts"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let timeless = |mut attempt: Value| {
        attempt.as_object_mut().unwrap().remove("ms");
        attempt
    };
    attempts.into_iter().map(timeless).collect()
}

#[test]
fn a_plain_request_and_a_tunnel_pass_through_squid() {
    if !is_ready() {
        return;
    }
    let squid = Squid::open();
    let ca = Ca::new();
    let http = Web::plain(|_| answer(200, "plain"));
    let https = Web::tls(&ca, &["web.test"], |_| answer(200, "secret"));
    let proxy = Proxy::start(&squid.policy(""));

    let url = format!("http://web.test:{}/page", http.port());
    assert_eq!(curl(&proxy, &[&url]), "plain 200");
    let record = proxy.record();
    assert_holds(
        &record,
        &json!({
            "event.action": "forward",
            "event.outcome": "success",
            "http.response.status_code": 200,
            "server.address": "web.test",
            "egress.rule": "default",
            "egress.route": "squid",
            "egress.hop": "squid",
            "destination.bytes": 5,
            "network.peer.port": squid.address.port(),
        }),
    );
    assert_eq!(attempts(&record), [attempted(&squid)]);
    let via = http.seen()[0].headers["via"].to_str().unwrap().to_owned();
    assert!(
        via.starts_with("1.1 routecause-") && via.contains("squid"),
        "{via}"
    );

    let url = format!("https://web.test:{}/page", https.port());
    let trusting = ca.file();
    let trusting = ["--cacert", trusting.to_str().unwrap(), &url];
    assert_eq!(curl(&proxy, &trusting), "secret 200");
    let record = proxy.record();
    assert_holds(
        &record,
        &json!({
            "event.action": "connect",
            "event.outcome": "success",
            "server.address": "web.test",
            "server.port": https.port(),
            "egress.route": "squid",
            "egress.hop": "squid",
            "egress.upstream.name": "squid",
        }),
    );
    assert_eq!(attempts(&record), [attempted(&squid)]);
    assert!(
        record["destination.bytes"].as_u64().unwrap() > 1000,
        "{record:#}"
    );
    assert!(
        squid
            .log()
            .contains(&format!("CONNECT web.test:{}", https.port()))
    );
}

#[test]
fn credentials_go_to_squid_and_no_further() {
    if !is_ready() {
        return;
    }
    let squid = Squid::guarded();
    let ca = Ca::new();
    let http = Web::plain(|_| answer(200, "plain"));
    let https = Web::tls(&ca, &["web.test"], |_| answer(200, "secret"));
    let by_variable = Proxy::under(
        &squid.policy(", auth: {username: {env: CORP_USER}, password: {env: CORP_PASS}}"),
    )
    .env("CORP_USER", "alice")
    .env("CORP_PASS", PASSWORD)
    .start();
    let by_file =
        Proxy::under(&squid.policy(", auth: {username: {file: user}, password: {file: pass}}"))
            .file("user", "alice\n")
            .file("pass", &format!("{PASSWORD}\n"))
            .start();
    let trusting = ca.file();
    let http_url = format!("http://web.test:{}/", http.port());
    let https_url = format!("https://web.test:{}/", https.port());
    for proxy in [by_variable, by_file] {
        assert_eq!(curl(&proxy, &[&http_url]), "plain 200");
        let trusting = ["--cacert", trusting.to_str().unwrap(), &https_url];
        assert_eq!(curl(&proxy, &trusting), "secret 200");
        for record in proxy.records(2) {
            assert_holds(
                &record,
                &json!({"event.outcome": "success", "egress.hop": "squid"}),
            );
        }
    }
    for seen in http.seen().into_iter().chain(https.seen()) {
        let names: Vec<_> = seen
            .headers
            .keys()
            .filter(|name| name.as_str().contains("auth"))
            .collect();
        assert!(names.is_empty(), "{seen:?}");
    }
    let log = squid.log();
    assert_eq!(log.matches(" alice ").count(), 4, "{log}");
}

#[test]
fn squids_407_is_told_as_missing_or_refused_credentials() {
    if !is_ready() {
        return;
    }
    let squid = Squid::guarded();
    let http = Web::plain(|_| answer(200, "plain"));
    let wrong = Proxy::under(
        &squid.policy(", auth: {username: {env: CORP_USER}, password: {env: CORP_PASS}}"),
    )
    .env("CORP_USER", "alice")
    .env("CORP_PASS", "battery staple")
    .start();
    let none = Proxy::start(&squid.policy(""));
    for (proxy, cause) in [
        (wrong, "upstream.auth_rejected"),
        (none, "upstream.auth_required"),
    ] {
        // The client's own credentials are for us: they must not reach squid.
        let url = format!("http://web.test:{}/", http.port());
        let plain = curl(&proxy, &["-v", "-U", &format!("alice:{PASSWORD}"), &url]);
        assert!(plain.contains(&format!("502 {cause}")), "{plain}");
        let tunnel = curl(&proxy, &["-v", "https://web.test/"]);
        assert!(tunnel.contains(&format!("502 {cause}")), "{tunnel}");
        assert!(
            !tunnel.to_lowercase().contains("proxy-authenticate"),
            "{tunnel}"
        );
        for record in proxy.records(2) {
            assert_holds(
                &record,
                &json!({
                    "event.outcome": "failure",
                    "error.type": cause,
                    "http.response.status_code": 502,
                    "egress.side": "upstream",
                    "egress.phase": "upstream",
                    "egress.upstream.status": 407,
                    "egress.upstream.auth_schemes": ["Basic"],
                }),
            );
            let text = record.to_string();
            assert!(
                !text.contains("battery") && !text.contains(PASSWORD),
                "{text}"
            );
        }
    }
    assert!(http.seen().is_empty());
}

#[test]
fn what_squid_denies_is_the_upstreams_denial() {
    if !is_ready() {
        return;
    }
    let squid = Squid::open();
    let proxy = Proxy::start(&squid.policy(""));
    for url in ["https://denied.test/", "http://denied.test/"] {
        let told = curl(&proxy, &["-v", url]);
        assert!(told.contains("403 upstream.denied"), "{told}");
        let record = proxy.record();
        let page = record["egress.upstream.body"].as_str().unwrap();
        assert!(page.contains("Access Denied"), "{page}");
        assert_holds(
            &record,
            &json!({
                "error.type": "upstream.denied",
                "http.response.status_code": 403,
                "egress.side": "upstream",
                "egress.upstream.status": 403,
                "egress.upstream.squid_error": "ERR_ACCESS_DENIED 0",
                "egress.route": "squid",
                "egress.hop": "squid",
            }),
        );
    }
}

#[test]
fn what_squid_cannot_reach_is_told_as_it_tells_it() {
    if !is_ready() {
        return;
    }
    let squid = Squid::open();
    let proxy = Proxy::start(&squid.policy(""));
    let dead = Origin::nowhere().port();
    let refused = vec![("upstream.reported.connect", "ERR_CONNECT_FAIL 111")];
    // Of a name that it cannot resolve squid 5 says one thing or another, squid 6 what is so.
    let unknown = vec![
        ("upstream.reported.dns", "ERR_DNS_FAIL"),
        ("upstream.reported.unavailable", "ERR_CANNOT_FORWARD"),
        ("upstream.reported.connect", "ERR_READ_ERROR"),
    ];
    let cases = [
        (format!("https://web.test:{dead}"), &refused),
        (format!("http://web.test:{dead}"), &refused),
        ("https://unknown.test".to_owned(), &unknown),
        ("http://unknown.test".to_owned(), &unknown),
    ];
    for (url, expected) in &cases {
        let told = curl(&proxy, &["-v", url]);
        let record = proxy.record();
        let squid_error = record["egress.upstream.squid_error"].as_str().unwrap();
        let (cause, _) = expected
            .iter()
            .find(|(_, name)| squid_error.starts_with(name))
            .unwrap_or_else(|| panic!("{record:#}"));
        let status = &record["http.response.status_code"];
        assert!(status == 502 || status == 503, "{record:#}");
        assert!(told.contains(&format!("{status} {cause}")), "{told}");
        assert_holds(
            &record,
            &json!({
                "error.type": cause,
                "egress.side": "upstream",
                "egress.route": "squid",
            }),
        );
        let page = record["egress.upstream.body"].as_str().unwrap();
        assert!(page.contains("could not be retrieved"), "{page}");
    }
}

#[test]
fn an_origins_own_error_behind_squid_is_the_origins() {
    if !is_ready() {
        return;
    }
    let squid = Squid::open();
    let http = Web::plain(|_| answer(503, "closed for lunch"));
    let proxy = Proxy::start(&squid.policy(""));
    let url = format!("http://web.test:{}/", http.port());
    assert_eq!(curl(&proxy, &[&url]), "closed for lunch 503");
    assert_holds(
        &proxy.record(),
        &json!({"error.type": "http.status.503", "egress.side": "origin", "egress.hop": "squid"}),
    );
}

#[test]
fn plain_requests_share_a_kept_connection_to_squid() {
    if !is_ready() {
        return;
    }
    let squid = Squid::open();
    let http = Web::plain(|_| answer(200, "plain"));
    let proxy = Proxy::start(&squid.policy(""));
    let url = format!("http://web.test:{}/", http.port());
    for _ in 0..3 {
        assert_eq!(curl(&proxy, &[&url]), "plain 200");
    }
    let records = proxy.records(3);
    let reused = |record: &Value| attempts(record)[0]["reused"] == true;
    assert_eq!(
        records.iter().map(reused).collect::<Vec<_>>(),
        [false, true, true]
    );
    let ports = records.iter().map(|record| &record["network.local.port"]);
    assert!(
        ports
            .clone()
            .all(|port| port == &records[0]["network.local.port"])
    );
    // Squid writes a line when the answer has gone.
    let deadline = Instant::now() + SOON;
    while squid.log().matches("GET http://web.test").count() < 3 {
        assert!(Instant::now() < deadline, "{}", squid.log());
    }
}

#[test]
fn the_policy_splits_between_direct_and_squid() {
    if !is_ready() {
        return;
    }
    let squid = Squid::open();
    let ca = Ca::new();
    let http = Web::plain(|_| answer(200, "plain"));
    let https = Web::tls(&ca, &["web.test", "git.corp.test"], |_| {
        answer(200, "secret")
    });
    let proxy = Proxy::start(&format!(
        "version: 1\n\
         upstreams: {{squid: {{url: 'http://{}'}}}}\n\
         dns: {{hosts: {{git.corp.test: [127.0.0.1]}}}}\n\
         rules:\n\
         - {{name: inside, match: {{domain: corp.test}}, direct: true}}\n\
         default: {{via: squid}}\n",
        squid.address
    ));
    let trusting = ca.file();
    let trusting = trusting.to_str().unwrap();
    let cases = [
        (
            "git.corp.test",
            "inside",
            "direct",
            http.address,
            https.address,
        ),
        ("web.test", "default", "squid", squid.address, squid.address),
    ];
    for (host, rule, route, plain_peer, tunnel_peer) in cases {
        let url = format!("http://{host}:{}/", http.port());
        assert_eq!(curl(&proxy, &[&url]), "plain 200");
        let url = format!("https://{host}:{}/", https.port());
        assert_eq!(curl(&proxy, &["--cacert", trusting, &url]), "secret 200");
        for (record, peer) in proxy.records(2).into_iter().zip([plain_peer, tunnel_peer]) {
            assert_holds(
                &record,
                &json!({
                    "event.outcome": "success",
                    "server.address": host,
                    "egress.rule": rule,
                    "egress.route": route,
                    "egress.hop": route,
                }),
            );
            let attempt = json!({
                "hop": route, "address": peer.to_string(), "family": "ipv4", "cause": null,
            });
            assert_eq!(attempts(&record), [attempt]);
        }
    }
    assert!(!squid.log().contains("corp.test"), "{}", squid.log());
}

#[test]
fn a_squid_that_is_down_is_the_upstreams_failure_and_nothing_goes_direct() {
    if !is_ready() {
        return;
    }
    let mut squid = Squid::open();
    let http = Web::plain(|_| answer(200, "plain"));
    let proxy = Proxy::start(&squid.policy(""));
    let url = format!("http://127.0.0.1:{}/", http.port());
    assert_eq!(curl(&proxy, &[&url]), "plain 200");
    proxy.record();
    squid.end();
    let tunnel = format!("https://127.0.0.1:{}/", http.port());
    for url in [&url, &tunnel] {
        let told = curl(&proxy, &["-v", url]);
        assert!(told.contains("502 upstream.connect.refused"), "{told}");
        let record = proxy.record();
        assert_holds(
            &record,
            &json!({
                "event.outcome": "failure",
                "error.type": "upstream.connect.refused",
                "http.response.status_code": 502,
                "egress.side": "upstream",
                "egress.route": "squid",
            }),
        );
        let last = attempts(&record).pop().unwrap();
        assert_eq!(last["cause"], "upstream.connect.refused", "{record:#}");
    }
    assert_eq!(http.seen().len(), 1);
}

#[test]
fn a_tunnel_through_squid_carries_both_directions_to_their_ends() {
    if !is_ready() {
        return;
    }
    let squid = Squid::open();
    let origin = Origin::serving(|stream| {
        let heard = wire::read_exact(&stream, 5);
        wire::send(&stream, "world");
        String::from_utf8(heard).unwrap()
    });
    let proxy = Proxy::start(&squid.policy(""));
    let client = proxy.connect();
    let head = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nhello",
        origin.address
    );
    wire::send(&client, head);
    assert!(wire::read_head(&client).starts_with("HTTP/1.1 200 "));
    assert_eq!(wire::read_text(&client), "world");
    assert_eq!(origin.heard(), "hello");
    drop(client);
    let record = proxy.record();
    assert_holds(
        &record,
        &json!({"event.outcome": "success", "source.bytes": 5, "destination.bytes": 5}),
    );
}

/// The record of a tunnel to a name that servers of these tests give as 127.0.0.1.
fn tunnel(proxy: &Proxy, name: &str) -> Value {
    let origin = Origin::serving(|stream| {
        wire::send(&stream, "hello");
        String::new()
    });
    let target = format!("{name}:{}", origin.address.port());
    let client = proxy.connect();
    wire::send(
        &client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    if wire::status(&wire::read_head(&client)) == 200 {
        assert_eq!(wire::read_exact(&client, 5), b"hello");
        wire::finish(&client);
    }
    proxy.record()
}

#[test]
fn name_servers_are_asked_through_it() {
    if !is_ready() {
        return;
    }
    let (open, guarded) = (Squid::open(), Squid::guarded());
    let ca = Ca::new();
    let (doh, plain) = (
        SecureServer::doh(&ca, "doh.test"),
        NameServer::giving("127.0.0.1"),
    );
    let secure = format!(
        "doh: 'https://doh.test:{}/dns-query', ip: 127.0.0.1, ca: ca.pem",
        doh.port()
    );
    let policy = format!(
        "version: 1\n\
         upstreams: {{open: {{url: 'http://{}'}}, guarded: {{url: 'http://{}'}}}}\n\
         dns:\n  default: plain\n  servers:\n    \
         clean: {{{secure}, via: open, domains: [clean.example, also.example]}}\n    \
         kept: {{{secure}, via: guarded, domains: kept.example}}\n    \
         plain: {{udp: '{}'}}\n\
         rules: [{{name: by-tcp, match: {{host: a.example}}, direct: true, dns: {{via: open}}}}]\n\
         default: {{direct: true}}\n",
        open.address, guarded.address, plain.address
    );
    let proxy = Proxy::under(&policy).file("ca.pem", &ca.pem()).start();
    assert_holds(
        &tunnel(&proxy, "clean.example"),
        &json!({
            "event.outcome": "success",
            "egress.hop": "direct",
            "dns.resolved_ip": ["127.0.0.1"],
            "egress.dns.server": doh.address,
            "egress.dns.transport": "https",
        }),
    );
    assert_holds(
        &tunnel(&proxy, "a.example"),
        &json!({
            "event.outcome": "success",
            "egress.dns.server": plain.address,
            "egress.dns.transport": "tcp",
        }),
    );
    let record = tunnel(&proxy, "kept.example");
    assert_holds(
        &record,
        &json!({"error.type": "dns.doh_blocked", "egress.dns.server": doh.address}),
    );
    let message = record["error.message"].as_str().unwrap();
    assert!(
        message.contains("name server kept cannot be asked")
            && message.contains("upstream guarded: ")
            && message.contains("407"),
        "{message}"
    );
    // A reload leads new connections another way, and what is known stays known.
    fs::write(
        &proxy.policy,
        policy.replace("via: guarded, domains", "via: open, domains"),
    )
    .unwrap();
    proxy.diary("reloaded");
    for (name, is_cached) in [
        ("clean.example", true),
        ("also.example", false),
        ("kept.example", false),
    ] {
        assert_holds(
            &tunnel(&proxy, name),
            &json!({"event.outcome": "success", "egress.dns.transport": "https", "egress.dns.cached": is_cached}),
        );
    }
    // Squid writes a line when the tunnel has ended.
    drop(proxy);
    let deadline = Instant::now() + SOON;
    loop {
        let log = open.log();
        let has = |address: SocketAddr| log.contains(&format!("CONNECT {address}"));
        if has(doh.address) && has(plain.address) {
            break;
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
