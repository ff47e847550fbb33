//! What name servers say and do not say, and the cause that the client and the record are told: each brought about by a
//! name server of the test's own.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use support::nameserver::{Query, Reply};
use support::netns::Net;
use support::origin::Listening;
use support::{DIRECT, Proxy, SOON, check, wire};

/// Short, so that silence does not last.
const HASTY: &str = "version: 1\n\
    defaults: {timeouts: {dns: 1s, connect: 500ms}}\n\
    rules: []\n\
    default: {direct: true}\n";

/// What a name server does with a query: any number of replies.
type Answer = fn(&Query<'_>) -> Vec<Reply>;

/// A name server in the server's namespace, on UDP.
fn serve(net: &Net, answer: impl Fn(&Query<'_>) -> Vec<Reply> + Send + 'static) -> IpAddr {
    let address = net.address();
    let socket = net
        .server
        .within(|| UdpSocket::bind((address, 53)).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            for reply in answer(&Query::read(&buffer[..length])) {
                let _ = socket.send_to(&reply.0, from);
            }
        }
    });
    address
}

/// The same server on TCP.
fn serve_tcp(
    net: &Net,
    address: IpAddr,
    answer: impl Fn(&Query<'_>) -> Reply + Clone + Send + 'static,
) {
    let listener = net
        .server
        .within(|| TcpListener::bind((address, 53)).unwrap());
    thread::spawn(move || {
        // Each family has a connection of its own.
        for mut stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || {
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut query).unwrap();
                    let reply = answer(&Query::read(&query)).0;
                    let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&length[..], &reply].concat()).unwrap();
                }
            });
        }
    });
}

/// A proxy in the client's namespace that asks these servers.
fn proxy(net: &Net, policy: &str, servers: &[IpAddr]) -> Proxy {
    let lines = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    net.client.resolv_conf(&lines.collect::<String>());
    Proxy::under(policy).inside(&net.client).start()
}

/// What the client and the record are told.
struct Told {
    cause: &'static str,
    /// What the status line begins with, behind the protocol's version.
    status: &'static str,
    /// In Proxy-Status: `error` and what follows it, before `details`.
    error: &'static str,
    record: Value,
}

/// Asks for a tunnel, and says where the answer or the record is another than was told; the record as well.
fn compare(net: &Net, proxy: &Proxy, target: &str, told: &Told) -> (Vec<String>, Value) {
    let client = net.client.within(|| proxy.connect());
    wire::send(
        &client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    let head = wire::read_head(&client);
    let line = head.lines().next().unwrap();
    let field = wire::field(&head, "proxy-status").unwrap();
    let record = proxy.record();
    let is_denied = told.cause.starts_with("policy.");
    let mut expected = json!({
        "error.type": told.cause,
        "egress.phase": if is_denied { "policy" } else { "dns" },
        "egress.side": if is_denied { "proxy" } else { "network" },
        "event.outcome": "failure",
        "http.response.status_code": told.status.split(' ').next().unwrap().parse::<u16>().unwrap(),
    });
    let expected = expected.as_object_mut().unwrap();
    expected.extend(told.record.as_object().unwrap().clone());
    let mut differences = Vec::new();
    let mut differs = |what: &str, is: &str, expected: &str| {
        differences.push(format!("{target}: {what} is {is}\n  and not {expected}"));
    };
    if !line.starts_with(&format!("HTTP/1.1 {}", told.status)) {
        differs("the first line", line, told.status);
    }
    if !field.starts_with(&format!("routecause; error={}; details=", told.error)) {
        differs("Proxy-Status", field, told.error);
    }
    for (key, expected) in expected {
        if record[key.as_str()] != *expected {
            differs(
                key,
                &record[key.as_str()].to_string(),
                &expected.to_string(),
            );
        }
    }
    (differences, record)
}

/// The same, where it must be as told.
#[track_caller]
fn expect(net: &Net, proxy: &Proxy, target: &str, told: &Told) -> Value {
    let (differences, record) = compare(net, proxy, target, told);
    assert!(
        differences.is_empty(),
        "{}\n{record:#}",
        differences.join("\n")
    );
    record
}

#[test]
fn what_a_name_server_says_is_the_cause() {
    let Some(net) = Net::new() else { return };
    let rows: &[(&str, Answer, Told)] = &[
        (
            "a.missing.example",
            |query| query.code(3).soa().one(),
            Told {
                cause: "dns.nxdomain",
                status: "502 dns.nxdomain: look up a.missing.example: NXDOMAIN via direct",
                error: "dns_error; rcode=\"NXDOMAIN\"",
                record: json!({"dns.response_code": "NXDOMAIN", "dns.question.name": "a.missing.example"}),
            },
        ),
        (
            "a.denied.example",
            |query| query.code(3).one(),
            Told {
                cause: "dns.nxdomain_unsigned",
                status: "502 dns.nxdomain_unsigned: look up a.denied.example: NXDOMAIN without the SOA record that a random name beside it gets vi...",
                error: "dns_error; rcode=\"NXDOMAIN\"",
                record: json!({"dns.response_code": "NXDOMAIN", "egress.confidence": "strong"}),
            },
        ),
        (
            "a.bare.example",
            |query| query.code(3).one(),
            Told {
                cause: "dns.nxdomain",
                status: "502 dns.nxdomain: look up a.bare.example: NXDOMAIN via direct",
                error: "dns_error; rcode=\"NXDOMAIN\"",
                record: json!({}),
            },
        ),
        (
            "empty.example",
            |query| query.code(0).one(),
            Told {
                cause: "dns.no_address",
                status: "502 dns.no_address: look up empty.example: no A or AAAA record via direct",
                error: "dns_error; rcode=\"NOERROR\"",
                record: json!({"dns.response_code": "NOERROR", "egress.dns.rr_count": 0}),
            },
        ),
        (
            "fails.example",
            |query| query.code(2).one(),
            Told {
                cause: "dns.servfail",
                status: "502 dns.servfail: look up fails.example: SERVFAIL via direct",
                error: "dns_error; rcode=\"SERVFAIL\"",
                record: json!({"egress.dns.ede": null}),
            },
        ),
        (
            "alone.example",
            |query| query.code(2).ede(22, "no reply from\r\nanyone").one(),
            Told {
                cause: "dns.servfail",
                status: "502 dns.servfail: look up alone.example: SERVFAIL, EDE 22 (No Reachable Authority): no reply from\\r\\nanyone via direct",
                error: "dns_error; rcode=\"SERVFAIL\"; info-code=22",
                record: json!({"egress.dns.ede": 22, "egress.dns.ede_text": "no reply from\\r\\nanyone"}),
            },
        ),
        (
            "bogus.example",
            |query| query.code(2).ede(7, "").one(),
            Told {
                cause: "dns.dnssec_bogus",
                status: "502 dns.dnssec_bogus: look up bogus.example: SERVFAIL, EDE 7 (Signature Expired) via direct",
                error: "dns_error; rcode=\"SERVFAIL\"; info-code=7",
                record: json!({"egress.dns.ede": 7, "egress.dns.ede_text": null}),
            },
        ),
        (
            "blocked.example",
            |query| query.code(3).soa().ede(15, "malware").one(),
            Told {
                cause: "dns.blocked_by_resolver",
                status: "502 dns.blocked_by_resolver: look up blocked.example: blocked by the name server, EDE 15 (Blocked): malware via direct",
                error: "dns_error; rcode=\"NXDOMAIN\"; info-code=15",
                record: json!({"egress.dns.ede": 15, "egress.dns.ede_text": "malware"}),
            },
        ),
        (
            "prohibited.example",
            |query| query.code(5).ede(18, "").one(),
            Told {
                cause: "dns.blocked_by_resolver",
                status: "502 dns.blocked_by_resolver: look up prohibited.example: blocked by the name server, EDE 18 (Prohibited) via direct",
                error: "dns_error; rcode=\"REFUSED\"; info-code=18",
                record: json!({"egress.dns.ede": 18}),
            },
        ),
        (
            "sinkhole.example",
            |query| query.address("0.0.0.0").ede(4, "").one(),
            Told {
                cause: "dns.blocked_by_resolver",
                status: "502 dns.blocked_by_resolver: sinkhole.example: the name server made its answer up, EDE 4 (Forged Answer): guards.special ...",
                error: "dns_error; rcode=\"NOERROR\"; info-code=4",
                record: json!({"egress.dns.ede": 4, "dns.resolved_ip": ["0.0.0.0"]}),
            },
        ),
        (
            "refused.example",
            |query| query.code(5).one(),
            Told {
                cause: "dns.refused",
                status: "502 dns.refused: look up refused.example: REFUSED via direct",
                error: "dns_error; rcode=\"REFUSED\"",
                record: json!({}),
            },
        ),
        (
            "notimp.example",
            |query| query.code(4).one(),
            Told {
                cause: "dns.server_misbehaving",
                status: "502 dns.server_misbehaving: look up notimp.example: DNS error: error response: Not Implemented via direct",
                error: "dns_error; rcode=\"NOTIMP\"",
                record: json!({}),
            },
        ),
        (
            "wrong-id.example",
            |query| {
                let mut reply = query.address("192.0.2.1");
                reply.0[1] ^= 1;
                reply.one()
            },
            Told {
                cause: "dns.server_misbehaving",
                status: "502 dns.server_misbehaving: look up wrong-id.example: what came answers another question than ours via direct",
                error: "dns_error",
                record: json!({"dns.response_code": null}),
            },
        ),
        (
            "garbage.example",
            |query| {
                let mut reply = query.address("192.0.2.1");
                reply.0[7] = 9;
                reply.one()
            },
            Told {
                cause: "dns.server_misbehaving",
                status: "502 dns.server_misbehaving: look up garbage.example: protocol error: decoding error: unexpected end of input reached via ...",
                error: "dns_error",
                record: json!({"dns.response_code": null}),
            },
        ),
        (
            "silent.example",
            |_| Vec::new(),
            Told {
                cause: "dns.timeout",
                status: "504 dns.timeout: look up silent.example: no name server answered within 1s (10.3.0.1:53 by udp, 2 times) via direct",
                error: "dns_timeout",
                record: json!({"dns.response_code": null, "egress.dns.server": null}),
            },
        ),
        (
            "truncated.example",
            |query| query.code(0).truncated().one(),
            Told {
                cause: "dns.truncated_tcp_failed",
                status: "502 dns.truncated_tcp_failed: look up truncated.example: truncated by UDP, and 10.3.0.1:53 does not answer by TCP: Connec...",
                error: "dns_error; rcode=\"NOERROR\"",
                record: json!({"egress.dns.transport": "udp"}),
            },
        ),
        (
            "nowhere.example",
            |query| query.address("0.0.0.0").one(),
            Told {
                cause: "dns.bogon",
                status: "502 dns.bogon: nowhere.example: 0.0.0.0 by DNS is no public host: guards.special refuses the address of nowhere.example:4...",
                error: "destination_ip_prohibited",
                record: json!({"dns.resolved_ip": ["0.0.0.0"], "egress.confidence": "strong"}),
            },
        ),
        (
            "collision.example",
            |query| query.address("127.0.53.53").one(),
            Told {
                cause: "dns.bogon",
                status: "502 dns.bogon: collision.example: 127.0.53.53 by DNS is no public host: connect to 127.0.53.53:443: Connection refused (o...",
                error: "destination_ip_prohibited",
                record: json!({"dns.resolved_ip": ["127.0.53.53"]}),
            },
        ),
        (
            // The IPv4 address inside is one of multicast: a guard refuses it.
            "teredo.example",
            |query| query.address("2001::1f0d:5e20").one(),
            Told {
                cause: "dns.known_forged",
                status: "502 dns.known_forged: teredo.example: 2001::1f0d:5e20 by DNS is as forged answers are: guards.special refuses the address...",
                error: "dns_error; rcode=\"NOERROR\"",
                record: json!({"dns.resolved_ip": ["2001::1f0d:5e20"]}),
            },
        ),
        (
            // That one looks fine, and nobody is there.
            "teredo-too.example",
            |query| query.address("2001::c0ff:ee").one(),
            Told {
                cause: "dns.known_forged",
                status: "502 dns.known_forged: teredo-too.example: 2001::c0ff:ee by DNS is as forged answers are: ",
                error: "dns_error; rcode=\"NOERROR\"",
                record: json!({"dns.resolved_ip": ["2001::c0ff:ee"]}),
            },
        ),
    ];
    let answers: Vec<(&str, Answer)> = rows
        .iter()
        .map(|(name, answer, _)| (*name, *answer))
        .collect();
    let server = serve(&net, move |query| {
        let row = answers.iter().find(|(name, _)| *name == query.name);
        match row {
            Some((_, answer)) => answer(query),
            None if query.name.ends_with(".bare.example") => query.code(3).one(),
            None => query.code(3).soa().one(),
        }
    });
    let proxy = proxy(&net, HASTY, &[server]);
    let differences: Vec<String> = rows
        .iter()
        .flat_map(|(name, _, told)| compare(&net, &proxy, &format!("{name}:443"), told).0)
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn told(cause: &'static str, status: &'static str, error: &'static str, record: Value) -> Told {
    Told {
        cause,
        status,
        error,
        record,
    }
}

#[test]
fn an_answer_that_leads_inwards_stays_denied() {
    let Some(net) = Net::new() else { return };
    let server = serve(&net, |query| query.address("127.0.0.1").one());
    let policy = "version: 1\nguards: {loopback: block}\nrules: []\ndefault: {direct: true}\n";
    let proxy = proxy(&net, policy, &[server]);
    let denied = told(
        "policy.denied.ip",
        "403 policy.denied.ip: guards.loopback refuses the address of rebound.example:443 via direct",
        "destination_ip_prohibited",
        json!({"dns.resolved_ip": ["127.0.0.1"]}),
    );
    expect(&net, &proxy, "rebound.example:443", &denied);
}

#[test]
fn an_address_of_ones_own_network_that_refuses_is_no_matter_of_dns() {
    let Some(net) = Net::new() else { return };
    let origin = net.address();
    let server = serve(&net, move |query| {
        if query.name == "here.test" {
            return query.address("127.0.0.1").one();
        }
        query.addresses(&[origin]).one()
    });
    let proxy = proxy(&net, DIRECT, &[server]);
    for target in ["inside.example:9443", "here.test:9443"] {
        let client = net.client.within(|| proxy.connect());
        wire::send(
            &client,
            format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
        );
        assert_eq!(wire::status(&wire::read_head(&client)), 502);
        check!(&proxy.record(), "error.type": "connect.refused");
    }
}

#[test]
fn name_servers_that_cannot_be_reached() {
    let Some(net) = Net::new() else { return };
    let nobody = net.address();
    let proxy = proxy(&net, HASTY, &[nobody]);
    let closed = told(
        "dns.server_unreachable",
        "502 dns.server_unreachable: look up a.example: no name server can be reached (10.3.0.1:53 by udp, 2 times): Connection re...",
        "dns_error",
        json!({"dns.response_code": null, "egress.dns.server": null}),
    );
    let record = expect(&net, &proxy, "a.example:443", &closed);
    let message = record["error.message"].as_str().unwrap();
    assert!(message.ends_with("(os error 111)"), "{message}");
}

#[test]
fn of_two_answers_the_first_is_used_and_doubted() {
    let Some(net) = Net::new() else { return };
    let (forged, genuine, origin) = (net.address(), net.address(), net.address());
    let server = serve(&net, move |query| {
        let first = if query.name == "fine.example" {
            origin
        } else {
            forged
        };
        vec![query.addresses(&[first]), query.addresses(&[genuine])]
    });
    let listener = net
        .server
        .within(|| TcpListener::bind((origin, 0)).unwrap());
    net.router
        .iptables(&format!("-A FORWARD -d {forged} -j DROP"));
    let proxy = proxy(&net, HASTY, &[server]);
    let contested = told(
        "dns.double_reply",
        "502 dns.double_reply: twice.example: two different answers came by DNS: no SYN-ACK from 10.3.0.1:443 in ",
        "dns_error; rcode=\"NOERROR\"",
        json!({"egress.dns.replies": 2, "egress.confidence": "strong", "dns.resolved_ip": [forged]}),
    );
    let record = expect(&net, &proxy, "twice.example:443", &contested);
    let attempts = record["egress.attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    assert_eq!(attempts[0]["cause"], "connect.timeout");
    // What works is no failure, and told all the same: at once, or of the remembered answer where the tunnel was faster
    // than the second reply.
    let deadline = Instant::now() + SOON;
    loop {
        let record = succeed(&net, &proxy, "fine.example", &listener);
        check!(&record, "dns.resolved_ip": [origin]);
        if record["egress.dns.replies"] == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{record:#}");
    }
}

/// Opens a tunnel to a listener by name and ends it well: the record.
#[track_caller]
fn succeed(net: &Net, proxy: &Proxy, name: &str, listener: &TcpListener) -> Value {
    let target = format!("{name}:{}", listener.local_addr().unwrap().port());
    let client = net.client.within(|| proxy.connect());
    wire::send(
        &client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 200, "{head}");
    let (server, _) = listener.accept().unwrap();
    wire::send(&server, "hello");
    assert_eq!(wire::read_exact(&client, 5), b"hello");
    wire::finish(&client);
    assert!(wire::is_fin(&server));
    drop(server);
    let record = proxy.record();
    check!(&record, "event.outcome": "success", "egress.dns.source": "dns");
    record
}

#[test]
fn a_record_tells_who_answered_and_how() {
    let Some(net) = Net::new() else { return };
    let origin = net.address();
    let refusing = serve(&net, |query| query.code(5).one());
    let server = serve(&net, move |query| match &*query.name {
        "large.example" => query.code(0).truncated().one(),
        "git.corp.example" | "small.example" => query.addresses(&[origin, origin]).one(),
        _ => query.code(3).soa().one(),
    });
    serve_tcp(&net, server, move |query| query.addresses(&[origin]));
    let listener = net
        .server
        .within(|| TcpListener::bind((origin, 0)).unwrap());
    let servers = format!("nameserver {refusing}\nnameserver {server}\nsearch corp.example\n");
    net.client.resolv_conf(&servers);
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    let server = SocketAddr::new(server, 53);
    for is_cached in [false, true] {
        let record = succeed(&net, &proxy, "small.example", &listener);
        check!(
            &record,
            "dns.question.name": "small.example",
            "dns.response_code": "NOERROR",
            "dns.resolved_ip": [origin],
            "egress.dns.server": server,
            "egress.dns.transport": "udp",
            "egress.dns.cached": is_cached,
            "egress.dns.rr_count": 2,
            "egress.dns.replies": 1,
            "egress.notes": null,
        );
        assert!((50..=60).contains(&record["egress.dns.ttl_s"].as_u64().unwrap()));
    }
    check!(
        &succeed(&net, &proxy, "large.example", &listener),
        "egress.dns.server": server,
        "egress.dns.transport": "tcp",
        "egress.dns.rr_count": 1,
    );
    check!(
        &succeed(&net, &proxy, "git", &listener),
        "dns.question.name": "git.corp.example",
        "egress.notes": ["dns.search_suffix"],
    );
}

#[test]
fn a_comma_goes_on_where_the_name_is_not_found_and_nowhere_else() {
    let Some(net) = Net::new() else { return };
    let address = serve(&net, |query| {
        let is_missing = query.name.ends_with("missing.example");
        let reply = query.code(if is_missing { 3 } else { 2 });
        if is_missing { reply.soa() } else { reply }.one()
    });
    let upstream = net
        .server
        .within(|| Listening::on(SocketAddr::new(address, 0)));
    let policy = format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{}\"}}}}\n\
         defaults: {{timeouts: {{dns: 1s}}}}\nrules: []\ndefault: {{via: \"direct,corp\"}}\n",
        upstream.address
    );
    let proxy = proxy(&net, &policy, &[address]);
    let client = net.client.within(|| proxy.connect());
    let ask = |name: &str| {
        wire::send(
            &client,
            format!("GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n"),
        );
    };
    ask("fails.example");
    assert_eq!(wire::status(&wire::read_answer(&client).0), 502);
    let record = proxy.record();
    check!(&record, "error.type": "dns.servfail");
    assert_eq!(record["egress.attempts"].as_array().unwrap().len(), 1);
    ask("a.missing.example");
    let (server, head) = upstream.hear();
    assert!(head.starts_with("GET http://a.missing.example/ "), "{head}");
    wire::send(&server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(wire::read_answer(&client).1, "ok");
    let record = proxy.record();
    check!(&record, "egress.hop": "corp", "event.outcome": "success");
    check!(&record["egress.attempts"][0], "hop": "direct", "cause": "dns.nxdomain");
}
