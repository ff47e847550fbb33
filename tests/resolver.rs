//! Who is asked for a name under a policy's `dns`, and what is made of the answers: name servers on loopback, by UDP, TCP,
//! TLS and HTTP.

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::nameserver::{A, AAAA, NameServer, SecureServer};
use support::origin::Origin;
use support::web::Ca;
use support::{Proxy, admin, check, routecause, run, wire};

/// An origin that greets whoever connects, on 127.0.0.1.
fn origin() -> Origin {
    Origin::serving(|stream| {
        wire::send(&stream, "hello");
        String::new()
    })
}

/// Opens a tunnel to a name and ends it; the answer's first line, and the record.
fn connect(proxy: &Proxy, name: &str, origin: &Origin) -> (String, Value) {
    let target = format!("{name}:{}", origin.address.port());
    let client = proxy.connect();
    wire::send(
        &client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    let head = wire::read_head(&client);
    if wire::status(&head) == 200 {
        assert_eq!(wire::read_exact(&client, 5), b"hello");
        wire::finish(&client);
    }
    let line = head.lines().next().unwrap().to_owned();
    (line, proxy.record())
}

#[track_caller]
fn succeed(proxy: &Proxy, name: &str, origin: &Origin) -> Value {
    let (line, record) = connect(proxy, name, origin);
    assert!(line.starts_with("HTTP/1.1 200"), "{line}\n{record:#}");
    record
}

/// A policy with this `dns` section, and these rules.
fn policy(dns: &str, rules: &str) -> String {
    format!(
        "version: 1\ndefaults: {{timeouts: {{dns: 3s}}}}\ndns: {dns}\nrules: [{rules}]\ndefault: {{direct: true}}\n"
    )
}

/// A name server whose answer for every name is the address that is set last; it is silent where none is.
fn moving(first: &str) -> (NameServer, Arc<Mutex<String>>) {
    let place = Arc::new(Mutex::new(first.to_owned()));
    let now = place.clone();
    let server = NameServer::answering(move |query| {
        let place = now.lock().unwrap();
        (!place.is_empty()).then(|| query.address(&place))
    });
    (server, place)
}

/// Waits until an answer that came before is not of just now any more.
fn outlast_just_now() {
    std::thread::sleep(Duration::from_millis(1100));
}

fn asked(server: &NameServer, name: &str) -> usize {
    let seen = server.seen();
    seen.iter()
        .filter(|(asked, kind)| asked == name && *kind == A)
        .count()
}

#[test]
fn a_name_is_asked_of_the_server_whose_domain_it_is_in() {
    let (inner, lab, outer) = (
        NameServer::giving("127.0.0.1"),
        NameServer::giving("127.0.0.1"),
        NameServer::giving("127.0.0.1"),
    );
    let origin = origin();
    let dns = format!(
        "{{default: outer, servers: {{\
           inner: {{udp: '{}', domains: [corp.example]}}, \
           lab: {{tcp: '{}', domains: lab.corp.example}}, \
           outer: {{udp: '{}'}}}}}}",
        inner.address, lab.address, outer.address
    );
    let proxy = Proxy::start(&policy(&dns, ""));
    for (name, server, transport) in [
        ("git.corp.example", &inner, "udp"),
        ("corp.example", &inner, "udp"),
        ("a.lab.corp.example", &lab, "tcp"),
        ("notcorp.example", &outer, "udp"),
    ] {
        let record = succeed(&proxy, name, &origin);
        check!(
            &record,
            "dns.question.name": name,
            "egress.dns.source": "dns",
            "egress.dns.server": (server.address),
            "egress.dns.transport": transport,
        );
        assert_eq!(asked(server, name), 1, "{name}");
    }
    assert_eq!(asked(&outer, "git.corp.example"), 0);
    // And it is told beforehand.
    let explain = |name: &str| -> String {
        let target = format!("{name}:443");
        let mut command = routecause();
        command.args(["explain", "--policy"]).arg(&proxy.policy);
        run(command.arg(target)).1
    };
    let told = explain("a.lab.corp.example");
    assert!(
        told.contains("  its name is asked of lab by tcp (lab.corp.example)\n"),
        "{told}"
    );
    let told = explain("other.example");
    assert!(
        told.contains("  its name is asked of outer by udp (default)\n"),
        "{told}"
    );
}

#[test]
fn an_answer_that_is_truncated_is_asked_for_by_tcp() {
    let server = NameServer::answering(|query| Some(query.address("127.0.0.1").truncated()));
    let origin = origin();
    let dns = format!(
        "{{default: s, servers: {{s: {{udp: '{}'}}}}}}",
        server.address
    );
    let proxy = Proxy::start(&policy(&dns, ""));
    check!(
        &succeed(&proxy, "large.example", &origin),
        "egress.dns.server": (server.address),
        "egress.dns.transport": "tcp",
    );
}

#[test]
fn a_remembered_address_that_is_of_no_use_is_asked_for_anew() {
    let (server, place) = moving("127.0.0.2");
    let origin = origin();
    let dns = format!(
        "{{default: s, servers: {{s: {{udp: '{}'}}}}}}",
        server.address
    );
    let rules =
        "{name: judged, match: {host: judged.test, ip: 127.0.0.0/8, resolve: all}, direct: true}";
    let proxy = Proxy::start(&policy(&dns, rules));
    let refused = |name: &str| {
        let (line, record) = connect(&proxy, name, &origin);
        assert!(line.contains("connect.refused"), "{line}");
        assert_eq!(record["egress.attempts"].as_array().unwrap().len(), 1);
        check!(&record, "egress.notes": null, "dns.resolved_ip": ["127.0.0.2"]);
        record
    };
    let count = |name: &str| asked(&server, name);
    for name in ["a.test", "judged.test"] {
        check!(&refused(name), "egress.dns.cached": false);
    }
    // What was said just now stands.
    check!(&refused("a.test"), "egress.dns.cached": true);
    assert_eq!(count("a.test"), 1);

    outlast_just_now();
    // The answer is the same, and then one that the guards refuse.
    check!(&refused("a.test"), "egress.dns.cached": true);
    assert_eq!(count("a.test"), 2);
    "169.254.169.254".clone_into(&mut place.lock().unwrap());
    check!(&refused("a.test"), "egress.dns.cached": true);
    outlast_just_now();
    let (_, record) = connect(&proxy, "a.test", &origin);
    check!(&record, "error.type": "connect.refused", "egress.notes": null);
    assert_eq!(count("a.test"), 3);

    // Another request may have asked for it: its answer is taken.
    let (server, place) = moving("127.0.0.2");
    let dns = format!(
        "{{default: s, servers: {{s: {{udp: '{}'}}}}}}",
        server.address
    );
    let proxy = Proxy::start(&policy(&dns, rules));
    for name in ["a.test", "judged.test"] {
        let (line, _) = connect(&proxy, name, &origin);
        assert!(line.contains("connect.refused"), "{line}");
    }
    "127.0.0.1".clone_into(&mut place.lock().unwrap());
    outlast_just_now();
    let record = succeed(&proxy, "a.test", &origin);
    check!(
        &record,
        "egress.notes": ["dns.stale_cache"],
        "dns.resolved_ip": ["127.0.0.1"],
        "network.peer.address": "127.0.0.1",
        "egress.dns.cached": false,
        "event.outcome": "success",
    );
    let attempts = record["egress.attempts"].as_array().unwrap();
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt["address"].as_str().unwrap(), &attempt["cause"]))
        .collect();
    let port = origin.address.port();
    let (old, new) = (format!("127.0.0.2:{port}"), format!("127.0.0.1:{port}"));
    let refused = Value::from("connect.refused");
    assert_eq!(told, [(&*old, &refused), (&*new, &Value::Null)]);
    assert_eq!(asked(&server, "a.test"), 2);
    // From then on it is known.
    check!(
        &succeed(&proxy, "a.test", &origin),
        "egress.notes": null,
        "egress.dns.cached": true,
    );
    // What a rule was judged by stays what is dialled.
    let (line, record) = connect(&proxy, "judged.test", &origin);
    assert!(line.contains("connect.refused"), "{line}");
    check!(&record, "egress.rule": "judged", "egress.dns.cached": true);
    assert_eq!(asked(&server, "judged.test"), 1);
}

#[test]
fn a_remembered_address_serves_on_where_the_name_server_falls_silent() {
    let (server, place) = moving("127.0.0.2");
    let origin = origin();
    let port = origin.address.port();
    let text = format!(
        "version: 1\ndefaults: {{timeouts: {{dns: 1s}}}}\n\
         dns: {{default: s, servers: {{s: {{udp: '{}'}}}}}}\nrules: []\ndefault: {{direct: true}}\n",
        server.address
    );
    let proxy = Proxy::start(&text);
    let refused = |is_cached: bool| {
        let (line, record) = connect(&proxy, "a.test", &origin);
        assert!(line.contains("connect.refused"), "{line}");
        check!(&record, "egress.dns.cached": is_cached);
    };
    refused(false);
    place.lock().unwrap().clear();
    outlast_just_now();
    refused(true);
    // Nobody answered: what was remembered is, still, and leads there once the host is back.
    refused(true);
    let back = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let serving = std::thread::spawn(move || {
        let (stream, _) = back.accept().unwrap();
        wire::send(&stream, "hello");
        wire::read_to_end(&stream);
    });
    let record = succeed(&proxy, "a.test", &origin);
    check!(
        &record,
        "egress.dns.cached": true,
        "dns.resolved_ip": ["127.0.0.2"],
        "egress.notes": null,
    );
    serving.join().unwrap();
    // What the name server says then takes its place.
    "127.0.0.1".clone_into(&mut place.lock().unwrap());
    outlast_just_now();
    let record = succeed(&proxy, "a.test", &origin);
    check!(&record, "egress.notes": ["dns.stale_cache"], "dns.resolved_ip": ["127.0.0.1"]);
    let record = succeed(&proxy, "a.test", &origin);
    check!(&record, "egress.notes": null, "dns.resolved_ip": ["127.0.0.1"]);
}

#[test]
fn an_upstream_that_moved_is_found_again() {
    let (server, place) = moving("127.0.0.2");
    let origin = origin();
    let upstream = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\n\r\nhello");
        head
    });
    let text = format!(
        "version: 1\ndns: {{default: s, servers: {{s: {{udp: '{}'}}}}}}\n\
         upstreams: {{corp: {{url: 'http://proxy.test:{}'}}}}\nrules: []\ndefault: {{via: corp}}\n",
        server.address,
        upstream.address.port()
    );
    let proxy = Proxy::start(&text);
    let (line, _) = connect(&proxy, "a.test", &origin);
    assert!(line.contains("upstream.connect.refused"), "{line}");
    "127.0.0.1".clone_into(&mut place.lock().unwrap());
    outlast_just_now();
    let record = succeed(&proxy, "a.test", &origin);
    check!(&record, "egress.notes": ["dns.stale_cache"], "network.peer.address": "127.0.0.1");
}

#[test]
fn a_rule_says_who_is_asked() {
    let (mine, other) = (
        NameServer::giving("127.0.0.1"),
        NameServer::giving("127.0.0.1"),
    );
    let origin = origin();
    let dns = format!(
        "{{default: other, servers: {{mine: {{udp: '{}'}}, other: {{udp: '{}'}}}}}}",
        mine.address, other.address
    );
    let rules = "\
        {name: set, match: {domain: set.example}, continue: true, dns: {server: mine}}, \
        {name: straight, match: {host: rule.example}, direct: true, dns: {server: mine}}, \
        {name: inside, match: {domain: inside.example, ip: 127.0.0.0/8, resolve: all}, direct: true, dns: {server: mine}}, \
        {name: by-tcp, match: {host: direct.example}, direct: true, dns: {server: mine, via: direct}}";
    let proxy = Proxy::start(&policy(&dns, rules));
    for (name, rule, server) in [
        ("a.set.example", "default", &mine),
        ("rule.example", "straight", &mine),
        ("a.inside.example", "inside", &mine),
        ("direct.example", "by-tcp", &mine),
        ("else.example", "default", &other),
    ] {
        let record = succeed(&proxy, name, &origin);
        check!(
            &record,
            "egress.rule": rule,
            "egress.dns.server": (server.address),
        );
        // What a rule by address has looked up is what is dialled.
        assert_eq!(asked(server, name), 1, "{name}");
    }
}

#[test]
fn dot_and_doh_are_asked_by_address_and_shown_a_certificate_for_their_name() {
    let ca = Ca::new();
    let (dot, doh) = (
        SecureServer::dot(&ca, "dot.test"),
        SecureServer::doh(&ca, "doh.test"),
    );
    let origin = origin();
    let dns = format!(
        "{{default: doh, servers: {{\
           dot: {{dot: 'dot.test:{}', ip: 127.0.0.1, ca: ca.pem, domains: dot.example}}, \
           doh: {{doh: 'https://doh.test:{}/dns-query', ip: 127.0.0.1, ca: ca.pem}}}}}}",
        dot.port(),
        doh.port()
    );
    let rules = "{name: by-dot, match: {host: b.example}, direct: true, dns: {server: dot}}";
    let proxy = Proxy::under(&policy(&dns, rules))
        .file("ca.pem", &ca.pem())
        .start();
    for (name, address, transport, is_cached) in [
        ("a.example", doh.address, "https", false),
        ("b.example", dot.address, "tls", false),
        ("a.example", doh.address, "https", true),
        ("c.example", doh.address, "https", false),
    ] {
        check!(
            &succeed(&proxy, name, &origin),
            "dns.resolved_ip": ["127.0.0.1"],
            "dns.response_code": "NOERROR",
            "egress.dns.server": address,
            "egress.dns.transport": transport,
            "egress.dns.cached": is_cached,
        );
    }
    let (line, record) = connect(&proxy, "a.elsewhere.test", &origin);
    assert!(line.contains("dns.refused"), "{line}");
    check!(&record, "error.type": "dns.refused", "egress.dns.transport": "https");
}

#[test]
fn what_keeps_a_secure_server_from_being_asked_is_told() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (dot, doh) = (
        SecureServer::dot(&ca, "dns.test"),
        SecureServer::doh(&ca, "dns.test"),
    );
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, closed) = (
        silent.local_addr().unwrap().port(),
        Origin::nowhere().port(),
    );
    let origin = origin();
    let (dot, doh) = (dot.port(), doh.port());
    let servers = [
        (
            "stranger",
            format!("doh: 'https://dns.test:{doh}/dns-query', ca: other.pem"),
            "TLS: invalid peer certificate: ",
        ),
        (
            "untrusted",
            format!("dot: 'dns.test:{dot}'"),
            "TLS: invalid peer certificate: UnknownIssuer",
        ),
        (
            "misnamed",
            format!("dot: 'else.test:{dot}', ca: ca.pem"),
            "TLS: invalid peer certificate: certificate not valid for name",
        ),
        (
            "misplaced",
            format!("doh: 'https://dns.test:{doh}/elsewhere', ca: ca.pem"),
            "HTTP",
        ),
        (
            "plain",
            format!("doh: 'https://dns.test:{dot}/dns-query', ca: ca.pem"),
            "TLS: received fatal alert: NoApplicationProtocol",
        ),
        (
            "closed",
            format!("dot: 'dns.test:{closed}', ca: ca.pem"),
            "Connection refused (os error 111)",
        ),
        (
            "silent",
            format!("doh: 'https://dns.test:{silent}/dns-query', ca: ca.pem"),
            "",
        ),
    ];
    let written = servers.iter().map(|(name, server, _)| {
        format!("{name}: {{{server}, ip: 127.0.0.1, domains: {name}.example}}")
    });
    let dns = format!(
        "{{servers: {{{}}}}}",
        written.collect::<Vec<_>>().join(", ")
    );
    let proxy = Proxy::under(&policy(&dns, ""))
        .file("ca.pem", &ca.pem())
        .file("other.pem", &other.pem())
        .start();
    for (name, _, why) in &servers {
        let begun = Instant::now();
        let (line, record) = connect(&proxy, &format!("a.{name}.example"), &origin);
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{name}: {record:#}"
        );
        assert!(
            line.starts_with(&format!(
                "HTTP/1.1 502 dns.doh_blocked: look up a.{name}.example: name server {name} cannot be asked (127.0.0.1:"
            )),
            "{line}\n{record:#}"
        );
        let message = record["error.message"].as_str().unwrap();
        assert!(message.contains(why), "{name}: {message}");
        check!(
            &record,
            "error.type": "dns.doh_blocked",
            "egress.phase": "dns",
            "egress.side": "network",
            "dns.response_code": null,
        );
        assert!(record["egress.dns.server"].is_string(), "{record:#}");
        assert!(record["egress.dns.transport"].is_string(), "{record:#}");
    }
}

#[test]
fn an_answer_among_the_bogus_is_a_failure() {
    let server = NameServer::giving("127.0.0.9");
    let origin = origin();
    let dns = format!(
        "{{default: s, bogus: [203.0.113.128/25, 127.0.0.9], servers: {{s: {{udp: '{}'}}}}}}",
        server.address
    );
    let rules = "{name: inside, match: {ip: 127.0.0.0/8, resolve: all}, block: true}";
    let proxy = Proxy::start(&policy(&dns, ""));
    let (line, record) = connect(&proxy, "poisoned.example", &origin);
    assert_eq!(
        line,
        "HTTP/1.1 502 dns.known_forged: look up poisoned.example: 127.0.0.9 by DNS is forged: it is in 127.0.0.9/32 of dns.bogus via direct"
    );
    check!(
        &record,
        "error.type": "dns.known_forged",
        "egress.phase": "dns",
        "dns.response_code": "NOERROR",
        "egress.dns.server": (server.address),
    );
    assert_eq!(
        record["egress.suspects"][0]["name"], "dns_poisoning",
        "{record:#}"
    );
    // A block by address holds where the address cannot be believed.
    let proxy = Proxy::start(&policy(&dns, rules));
    let (line, _) = connect(&proxy, "poisoned.example", &origin);
    assert!(line.starts_with("HTTP/1.1 403 policy.denied."), "{line}");
}

#[test]
fn families_are_asked_for_and_used_as_preferred() {
    let both = |query: &support::nameserver::Query<'_>| {
        Some(query.addresses(&["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]))
    };
    let origin = origin();
    for (prefer, resolved, kinds) in [
        ("happy", &["::1", "127.0.0.1"][..], &[A, AAAA][..]),
        ("v6", &["::1", "127.0.0.1"], &[A, AAAA]),
        ("v4", &["127.0.0.1", "::1"], &[A, AAAA]),
        ("v4_only", &["127.0.0.1"], &[A]),
    ] {
        let server = NameServer::answering(both);
        let dns = format!(
            "{{default: s, prefer: {prefer}, servers: {{s: {{udp: '{}'}}}}}}",
            server.address
        );
        let proxy = Proxy::start(&policy(&dns, ""));
        check!(&succeed(&proxy, "both.example", &origin), "dns.resolved_ip": resolved);
        let mut asked: Vec<u16> = server.seen().iter().map(|(_, kind)| *kind).collect();
        asked.sort_unstable();
        assert_eq!(asked, kinds, "{prefer}");
    }
    let server = NameServer::giving("127.0.0.1");
    let dns = format!(
        "{{default: s, prefer: v6_only, servers: {{s: {{udp: '{}'}}}}}}",
        server.address
    );
    let proxy = Proxy::start(&policy(&dns, ""));
    let (line, _) = connect(&proxy, "old.example", &origin);
    assert_eq!(
        line,
        "HTTP/1.1 502 dns.no_address: look up old.example: no AAAA record, and dns.prefer is v6_only via direct"
    );
}

#[test]
fn servers_that_die_make_room_for_the_next() {
    let mute = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = socket.local_addr().unwrap();
        (socket, address)
    };
    let mutes = [mute(), mute(), mute()];
    let (closed, alive) = (Origin::nowhere(), NameServer::giving("127.0.0.1"));
    let origin = origin();
    let list = format!(
        "'{}', '{}', '{closed}', '{}', '{}'",
        mutes[0].1, mutes[1].1, mutes[2].1, alive.address
    );
    let dns = format!(
        "{{default: dying, servers: {{dying: {{udp: [{list}]}}, dead: {{udp: ['{}', '{closed}'], domains: dead.example}}}}}}",
        mutes[0].1
    );
    let text = policy(&dns, "").replace("dns: 3s", "dns: 5s");
    let proxy = Proxy::start(&text);
    check!(
        &succeed(&proxy, "a.example", &origin),
        "egress.dns.server": (alive.address),
    );
    let begun = Instant::now();
    let (line, record) = connect(&proxy, "a.dead.example", &origin);
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    assert!(line.starts_with("HTTP/1.1 50"), "{line}");
    let cause = record["error.type"].as_str().unwrap();
    assert!(
        ["dns.timeout", "dns.server_unreachable"].contains(&cause),
        "{record:#}"
    );
    let message = record["error.message"].as_str().unwrap();
    assert!(message.contains(&mutes[0].1.to_string()), "{message}");
}

#[test]
fn answers_are_remembered_as_long_as_the_policy_says() {
    let origin = origin();
    // The server's records hold for a minute.
    for (cache, least, most, asked_again) in [
        ("{min_ttl: 10m}", 590, 600, false),
        ("{max_ttl: 20s}", 10, 20, false),
        ("{max_ttl: 0s}", 0, 0, true),
        ("{entries: 0}", 50, 60, true),
    ] {
        let server = NameServer::answering(|query| {
            Some(match &*query.name {
                "missing.example" => query.code(3).soa(),
                _ => query.address("127.0.0.1"),
            })
        });
        let dns = format!(
            "{{default: s, cache: {cache}, servers: {{s: {{udp: '{}'}}}}}}",
            server.address
        );
        let proxy = Proxy::start(&policy(&dns, ""));
        let record = succeed(&proxy, "a.example", &origin);
        let ttl = record["egress.dns.ttl_s"].as_u64().unwrap();
        assert!((least..=most).contains(&ttl), "{cache}: {ttl}");
        // A moment that holds for no time is over.
        std::thread::sleep(Duration::from_millis(20));
        let record = succeed(&proxy, "a.example", &origin);
        check!(&record, "egress.dns.cached": (!asked_again));
        assert_eq!(
            asked(&server, "a.example"),
            1 + usize::from(asked_again),
            "{cache}"
        );
    }
}

#[test]
fn what_servers_said_is_forgotten_on_request() {
    let origin = origin();
    let server = NameServer::answering(|query| Some(query.address("127.0.0.1")));
    let dns = format!(
        "{{default: s, servers: {{s: {{udp: '{}'}}}}}}",
        server.address
    );
    let proxy = admin::with_admin(Proxy::under(&policy(&dns, ""))).start();
    let at = admin::address(&proxy).to_string();
    for (times, is_cached) in [(1, false), (1, true)] {
        let record = succeed(&proxy, "a.example", &origin);
        check!(&record, "egress.dns.cached": is_cached);
        assert_eq!(asked(&server, "a.example"), times);
    }
    let (status, out, err) = run(routecause().args(["dns", "flush", "--admin", &at]));
    assert!(status.success() && out.is_empty(), "{out}{err}");
    let record = succeed(&proxy, "a.example", &origin);
    check!(&record, "egress.dns.cached": false);
    assert_eq!(asked(&server, "a.example"), 2);
}

#[test]
fn a_denial_is_remembered_as_long_as_the_policy_says() {
    let origin = origin();
    for (cache, asked_again) in [("{}", false), ("{negative_ttl: 0s}", true)] {
        let server = NameServer::answering(|query| {
            let mut reply = query.code(3);
            // MNAME and RNAME are the root; the last number is how long the denial holds: a minute.
            let mut soa = [0; 22];
            soa[21] = 60;
            reply.record(9, 6, &soa);
            Some(reply)
        });
        let cache = if cache == "{}" {
            String::new()
        } else {
            format!("cache: {cache}, ")
        };
        let dns = format!(
            "{{default: s, {cache}servers: {{s: {{udp: '{}'}}}}}}",
            server.address
        );
        let proxy = Proxy::start(&policy(&dns, ""));
        for _ in 0..2 {
            let (_, record) = connect(&proxy, "missing.example", &origin);
            check!(&record, "error.type": "dns.nxdomain");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(
            asked(&server, "missing.example"),
            1 + usize::from(asked_again),
            "{cache}"
        );
    }
}

#[test]
fn a_reload_keeps_what_servers_said_that_stay_the_same() {
    let (server, other) = (
        NameServer::giving("127.0.0.1"),
        NameServer::giving("127.0.0.1"),
    );
    let origin = origin();
    let under = |address: SocketAddr, rules: &str| {
        let dns = format!("{{default: s, servers: {{s: {{udp: '{address}'}}}}}}");
        policy(&dns, rules)
    };
    let proxy = Proxy::start(&under(server.address, ""));
    check!(&succeed(&proxy, "a.example", &origin), "egress.dns.cached": false);
    let another = "{name: other, match: {host: x.example}, block: true}";
    fs::write(&proxy.policy, under(server.address, another)).unwrap();
    proxy.diaries("reloaded", 1);
    check!(&succeed(&proxy, "a.example", &origin), "egress.dns.cached": true);
    assert_eq!(asked(&server, "a.example"), 1);
    fs::write(&proxy.policy, under(other.address, another)).unwrap();
    proxy.diaries("reloaded", 2);
    check!(
        &succeed(&proxy, "a.example", &origin),
        "egress.dns.cached": false,
        "egress.dns.server": (other.address),
    );
}

#[test]
fn pins_come_before_any_server() {
    let server = NameServer::giving("127.0.0.9");
    let origin = origin();
    let dns = format!(
        "{{default: s, hosts: {{pinned.example: 127.0.0.1}}, bogus: 127.0.0.1, prefer: v6_only, servers: {{s: {{udp: '{}'}}}}}}",
        server.address
    );
    let proxy = Proxy::start(&policy(&dns, ""));
    check!(
        &succeed(&proxy, "pinned.example", &origin),
        "egress.dns.source": "pin",
        "dns.resolved_ip": ["127.0.0.1"],
    );
    assert_eq!(server.seen(), []);
}

#[test]
fn a_poisoned_name_goes_on_to_the_next_hop() {
    let server = NameServer::giving("127.0.0.9");
    let origin = origin();
    let upstream = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\n\r\nhello");
        head
    });
    let text = format!(
        "version: 1\n\
         upstreams: {{corp: {{url: 'http://{}'}}}}\n\
         chains: {{heal: {{hops: [{{use: direct, next_on: [dns]}}, corp]}}}}\n\
         dns: {{default: s, bogus: 127.0.0.8/30, servers: {{s: {{udp: '{}'}}}}}}\n\
         rules: []\n\
         default: {{via: heal}}\n",
        upstream.address, server.address
    );
    let proxy = Proxy::start(&text);
    let record = succeed(&proxy, "poisoned.example", &origin);
    check!(&record, "event.outcome": "success", "egress.hop": "corp");
    let attempts = record["egress.attempts"].as_array().unwrap();
    check!(&attempts[0], "hop": "direct", "cause": "dns.known_forged");
    assert!(upstream.heard().starts_with("CONNECT poisoned.example:"));
}
