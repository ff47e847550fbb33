//! Addresses that no request may reach, whatever names and proxies lie between.

mod support;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use support::nameserver::NameServer;
use support::netns::{self, Net};
use support::origin::{Listening, Origin};
use support::{Proxy, admin, check, routecause, run, wire};

/// A kind of address records.
const A: u16 = 1;

fn connect(proxy: &Proxy, target: &str) -> String {
    let client = proxy.connect();
    wire::send(
        &client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    wire::read_text(&client)
}

fn policy(server: &NameServer, rules: &str) -> String {
    format!(
        "version: 1\nguards: {{loopback: block}}\n\
         dns: {{default: mine, servers: {{mine: {{udp: ['{}']}}}}}}\n\
         defaults: {{timeouts: {{connect: {{total: 500ms, address: 300ms}}}}}}\n{rules}",
        server.address
    )
}

const DIRECT: &str = "rules: []\ndefault: {direct: true}\n";

#[test]
fn a_name_that_changes_between_check_and_dial_leads_nowhere_else() {
    let inside = Listening::on("127.0.0.66:0".parse().unwrap());
    // Each name is somewhere harmless the first time, and here from then on.
    let asked = Arc::<Mutex<HashMap<String, usize>>>::default();
    let counts = asked.clone();
    let server = NameServer::answering(move |query| {
        if query.kind != A {
            return Some(query.code(0).soa());
        }
        let mut counts = counts.lock().unwrap();
        let count = counts.entry(query.name.clone()).or_default();
        *count += 1;
        Some(query.address(if *count == 1 {
            "203.0.113.9"
        } else {
            "127.0.0.66"
        }))
    });
    let rules = "rules: [{name: known, match: {ip: [203.0.113.0/24], resolve: all}, direct: true}]\ndefault: {block: true}\n";
    for rules in [rules, DIRECT] {
        let proxy = Proxy::start(&policy(&server, rules));
        let name = if rules == DIRECT {
            "plain.test"
        } else {
            "judged.test"
        };
        let answer = connect(&proxy, &format!("{name}:{}", inside.address.port()));
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        let record = proxy.record();
        let tried = record["egress.attempts"].as_array().unwrap();
        assert!(
            tried
                .iter()
                .all(|attempt| !attempt.to_string().contains("127.0.0.66")),
            "{record:#}"
        );
        assert_eq!(asked.lock().unwrap()[name], 1, "one lookup for one dial");
        assert!(inside.is_untouched());
    }
}

#[test]
fn of_mixed_answers_only_what_is_allowed_is_dialled() {
    let inside = Listening::on("127.0.0.66:0".parse().unwrap());
    let server = NameServer::answering(|query| {
        let addresses: &[IpAddr] = match (&*query.name, query.kind) {
            ("mixed.test", A) => &[
                "127.0.0.66".parse().unwrap(),
                "203.0.113.9".parse().unwrap(),
            ],
            ("mapped.test", A) => &["203.0.113.9".parse().unwrap()],
            ("mapped.test", _) => &["::ffff:127.0.0.66".parse().unwrap()],
            ("nat64.test", 28) => &["64:ff9b::7f00:42".parse().unwrap()],
            ("local64.test", 28) => &["64:ff9b:1::7f00:42".parse().unwrap()],
            ("six.test", 28) => &["2002:7f00:42::1".parse().unwrap()],
            ("isatap.test", 28) => &["2001:db8::5efe:7f00:42".parse().unwrap()],
            ("meta.test", A) => &["169.254.169.254".parse().unwrap()],
            _ => return Some(query.code(0).soa()),
        };
        Some(query.addresses(addresses))
    });
    let proxy = Proxy::start(&policy(&server, DIRECT));
    for name in ["mixed.test", "mapped.test"] {
        let answer = connect(&proxy, &format!("{name}:{}", inside.address.port()));
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            !proxy.record().to_string().contains("127.0.0.66:"),
            "{name}"
        );
    }
    for name in [
        "nat64.test",
        "local64.test",
        "six.test",
        "isatap.test",
        "meta.test",
    ] {
        let answer = connect(&proxy, &format!("{name}:{}", inside.address.port()));
        assert!(
            answer.starts_with("HTTP/1.1 403 policy.denied.ip: "),
            "{name}: {answer}"
        );
        check!(&proxy.record(), "error.type": "policy.denied.ip");
    }
    assert!(inside.is_untouched());
}

#[test]
fn a_hop_that_goes_direct_is_guarded_again() {
    let inside = Listening::on("127.0.0.66:0".parse().unwrap());
    let server = NameServer::giving("127.0.0.66");
    let rules = format!(
        "upstreams: {{corp: {{url: 'http://{}'}}}}\nrules: []\ndefault: {{via: 'corp|direct'}}\n",
        Origin::nowhere()
    );
    let proxy = Proxy::start(&policy(&server, &rules));
    let answer = connect(&proxy, &format!("inside.test:{}", inside.address.port()));
    assert!(
        answer.starts_with("HTTP/1.1 403 policy.denied.ip: "),
        "{answer}"
    );
    let record = proxy.record();
    assert_eq!(record["egress.attempts"][0]["hop"], "corp", "{record:#}");
    assert!(inside.is_untouched());
}

#[test]
fn two_proxies_that_send_requests_to_each_other_find_out_at_once() {
    let (one, other) = (Origin::free(), Origin::free());
    let start = |own: SocketAddr, upstream: SocketAddr| {
        let policy = format!(
            "version: 1\nupstreams: {{next: {{url: 'http://{upstream}'}}}}\nrules: []\ndefault: {{via: next}}\n"
        );
        Proxy::under(&policy)
            .arg("--listen")
            .arg(&own.to_string())
            .start()
    };
    let (first, second) = (start(one, other), start(other, one));
    for request in [
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
    ] {
        let client = first.connect();
        wire::send(&client, request);
        let answer = wire::read_text(&client);
        assert!(answer.starts_with("HTTP/1.1 508 "), "{answer}");
        // The client's request, and the one that came back.
        let records = first.records(2);
        assert_eq!(records.len(), 2, "{records:#?}");
        check!(&records[0], "error.type": "proxy.loop");
        second.record();
    }
}

/// Of the client's machine, beside the one that everybody knows: of the same network, of another interface, of a range that is
/// routed to it, of IPv6, and of IPv4 by way of a NAT64.
const OWN: [&str; 7] = [
    "10.1.0.3",
    "10.7.0.1",
    "10.8.0.9",
    "[::ffff:10.1.0.3]",
    "[2001:db8:1::3]",
    "[2001:db8:8::9]",
    "[64:ff9b::10.1.0.3]",
];

const ADDRESSES: [&str; 5] = [
    "address add 10.1.0.3/24 dev router",
    "address add 10.7.0.1/32 dev lo",
    "route add local 10.8.0.0/24 dev lo",
    "address add 2001:db8:1::3/64 dev router nodad",
    "route add local 2001:db8:8::/64 dev lo",
];

const WILDCARD: &str = "version: 1
server: {listen: [{address: 'ANY:3128'}], allow_from: [10.1.0.0/24, '2001:db8:1::/64']}
dns: {hosts: {own.test: [10.1.0.3], six.test: ['2001:db8:1::3'], nat64.test: ['64:ff9b::10.1.0.3'], up.test: [10.2.0.2]}}
upstreams: {self: {url: 'http://10.1.0.3:3128'}}
defaults: {timeouts: {connect: {total: 500ms, address: 300ms}}}
rules: [{name: up, match: {host: up.test}, via: self}]
default: {direct: true}
";

#[test]
fn a_wildcard_listener_is_known_at_every_address_of_the_machine() {
    let Some(net) = Net::new() else { return };
    for any in ["0.0.0.0", "[::]"] {
        let proxy = Proxy::under(&WILDCARD.replace("ANY", any))
            .env("ROUTECAUSE_ADMIN_TOKEN", "open-sesame")
            .env("ROUTECAUSE_ADMIN", &format!("{any}:3129"))
            .listening_as_written()
            .inside(&net.client)
            .start();
        // What came while it ran is known as well.
        for line in ADDRESSES {
            net.client.run(&format!("ip {line}"));
        }
        let client = || -> TcpStream {
            let at = SocketAddr::new(netns::CLIENT.into(), 3128);
            net.router.within(|| wire::connect(at))
        };
        let ask = |request: String| {
            let client = client();
            wire::send(&client, request);
            let answer = wire::read_text(&client);
            (answer, proxy.records(1).remove(0))
        };
        let requests = |target: &str| {
            [
                format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
                format!(
                    "GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
                ),
            ]
        };
        for host in OWN
            .into_iter()
            .chain(["own.test", "six.test", "nat64.test"])
        {
            for port in [3128, 3129] {
                for request in requests(&format!("{host}:{port}")) {
                    let (answer, record) = ask(request);
                    assert!(
                        answer.starts_with("HTTP/1.1 508 proxy.loop: "),
                        "{host}:{port} {any}: {answer}"
                    );
                    check!(&record, "error.type": "proxy.loop");
                }
            }
        }
        for request in requests("up.test:80") {
            let (answer, record) = ask(request);
            assert!(answer.starts_with("HTTP/1.1 508 "), "{answer}");
            check!(&record, "error.type": "proxy.loop");
        }
        // The same port of somebody else's is no matter.
        let other = SocketAddr::new(net.address(), 3128);
        let listening = net.server.within(|| Listening::on(other));
        let far = client();
        let [connect, _] = requests(&other.to_string());
        wire::send(&far, connect);
        assert!(wire::read_head(&far).starts_with("HTTP/1.1 200 "));
        drop((far, listening));
        proxy.record();
        for host in OWN {
            let mut explain = net
                .client
                .command(routecause().get_program().to_str().unwrap());
            explain.args(["explain", "--json", "--policy"]);
            let (_, told, _) = run(explain.arg(&proxy.policy).arg(format!("{host}:3128")));
            let told: Value = serde_json::from_str(&told).unwrap();
            assert_eq!(told["decision"]["rule"], "guards.own", "{host}: {told:#}");
            assert_eq!(told["decision"]["status"], 508, "{host}: {told:#}");
            let at = SocketAddr::new(netns::CLIENT.into(), 3129);
            let path = format!("/v1/explain?target={host}:3129");
            let token = "authorization: Bearer open-sesame\r\n";
            let (_, _, told) = net
                .client
                .within(|| admin::ask(at, "GET", &path, token, ""));
            assert!(told.contains("guards.own"), "{host}: {told}");
        }
        for line in ADDRESSES {
            net.client
                .run(&format!("ip {}", line.replace(" add ", " delete ")));
        }
        let (answer, _) = ask(requests("10.1.0.3:3128")[0].clone());
        assert!(!answer.starts_with("HTTP/1.1 508 "), "{answer}");
    }
}
