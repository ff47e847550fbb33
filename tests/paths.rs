//! Why a connection does not come about, and who says so, in a network of the test's own.
//!
//! Each row is something that a path does to a SYN; it must show as its cause, in the answer and in the record.

mod support;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::netns::{CLIENT, CLIENT6, NOBODY, NOBODY_BEHIND, Net, ROUTER, ROUTER6};
use support::origin::Origin;
use support::{DIRECT, Proxy, SOON, check, needs, run, wire};

/// What a target's failure must look like.
struct Row {
    target: SocketAddr,
    error_type: &'static str,
    side: &'static str,
    status: u16,
    /// Type, code and sender.
    icmp: Option<(u8, u8, IpAddr)>,
    /// How the message goes on behind the target.
    message: &'static str,
}

/// A row of the network's: 502, and an ICMP message.
fn row(
    target: impl Into<SocketAddr>,
    error_type: &'static str,
    icmp: (u8, u8, impl Into<IpAddr>),
    message: &'static str,
) -> Row {
    Row {
        target: target.into(),
        error_type,
        side: "network",
        status: 502,
        icmp: Some((icmp.0, icmp.1, icmp.2.into())),
        message,
    }
}

/// A row of another side's, without an ICMP message.
fn silent(
    target: impl Into<SocketAddr>,
    error_type: &'static str,
    side: &'static str,
    status: u16,
    message: &'static str,
) -> Row {
    Row {
        target: target.into(),
        error_type,
        side,
        status,
        icmp: None,
        message,
    }
}

/// Asks for every row's target at once, and looks at answer and record.
#[track_caller]
fn hold(net: &Net, proxy: &Proxy, rows: &[Row]) {
    let clients: Vec<_> = rows.iter().map(|row| ask(net, proxy, row.target)).collect();
    let heads: Vec<_> = clients.iter().map(wire::read_head).collect();
    let records = proxy.records(rows.len());
    for (row, head) in rows.iter().zip(&heads) {
        let id = wire::field(head, "x-routecause-record").unwrap();
        let of_row = |record: &&Value| record["event.id"] == id;
        judge(row, head, records.iter().find(of_row).unwrap());
    }
}

/// Looks at one row's answer and record.
#[track_caller]
fn judge(row: &Row, head: &str, record: &Value) {
    let line = head.lines().next().unwrap();
    let &Row {
        target,
        error_type,
        side,
        status,
        message,
        ..
    } = row;
    let silence = if status == 504 {
        format!("no SYN-ACK from {target} in ")
    } else {
        format!("connect to {target}: ")
    };
    // What does not fit into the phrase stands in the record.
    let told = record["error.message"].as_str().unwrap_or_default();
    assert!(
        told.starts_with(&format!("{silence}{message}")),
        "{message} {record:#}"
    );
    let phrase: String = told.chars().take(60).collect();
    let phrase = format!("HTTP/1.1 {status} {error_type}: {phrase}");
    assert!(line.starts_with(&phrase), "{line}\n{phrase}");
    check!(record,
        "event.outcome": "failure", "error.type": error_type, "egress.phase": "connect", "egress.side": side,
        "http.response.status_code": status, "egress.hop": "direct");
    let [r#type, code, offender] = row
        .icmp
        .map_or([Value::Null, Value::Null, Value::Null], |icmp| {
            [json!(icmp.0), json!(icmp.1), json!(icmp.2)]
        });
    check!(record,
        "egress.icmp.type": r#type, "egress.icmp.code": code, "egress.icmp.offender": offender);
    let attempt = &record["egress.attempts"][0];
    check!(attempt, "cause": error_type, "address": (target.to_string()));
    let icmp = row
        .icmp
        .map(|_| json!({"type": r#type, "code": code, "offender": offender}));
    check!(attempt, "icmp": icmp);
}

/// A client that has asked for a tunnel to a target.
fn ask(net: &Net, proxy: &Proxy, target: SocketAddr) -> TcpStream {
    let client = net.client.within(|| proxy.connect());
    connect(&client, target);
    client
}

fn connect(client: &TcpStream, target: SocketAddr) {
    wire::send(
        client,
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    );
}

/// Rules of iptables or ip6tables, by the address that they are about.
fn ban(net: &Net, ip: IpAddr, verdict: &str) -> SocketAddr {
    let rule = format!("-A FORWARD -p tcp --syn -d {ip} -j {verdict}");
    if ip.is_ipv4() {
        net.router.iptables(&rule);
    } else {
        net.router.ip6tables(&rule);
    }
    (ip, 443).into()
}

#[test]
fn what_the_way_answers_is_told_with_who_answered() {
    let Some(net) = Net::new() else { return };
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    let reject = |kind: &str| ban(&net, net.address(), &format!("REJECT --reject-with {kind}"));
    let reject6 = |kind: &str| {
        ban(
            &net,
            net.address6(),
            &format!("REJECT --reject-with {kind}"),
        )
    };
    let at_router = "the router at 10.1.0.1 ";
    let firewall = "the firewall at 10.1.0.1 forbids it (ICMP ";
    let closed = SocketAddr::from((net.address(), 443));
    let closed6 = SocketAddr::from((net.address6(), 443));
    let host_filters = SocketAddr::from((net.address(), 443));
    net.server.iptables(&format!(
        "-A INPUT -p tcp -d {} -j REJECT",
        host_filters.ip()
    ));
    let host_forbids = SocketAddr::from((net.address(), 443));
    net.server.iptables(&format!(
        "-A INPUT -p tcp -d {} -j REJECT --reject-with icmp-admin-prohibited",
        host_forbids.ip()
    ));
    let last_hop = SocketAddr::from((net.address(), 443));
    net.router.iptables(&format!(
        "-t mangle -A PREROUTING -d {} -j TTL --ttl-set 1",
        last_hop.ip()
    ));
    let last_hop6 = SocketAddr::from((net.address6(), 443));
    net.router.ip6tables(&format!(
        "-t mangle -A PREROUTING -d {} -j HL --hl-set 1",
        last_hop6.ip()
    ));
    // Router and server send this network to each other.
    net.router.run("ip route add 10.4.0.0/24 via 10.2.0.2");
    net.server.sysctl("net.ipv4.ip_forward", "1");
    net.router.run("ip route add prohibit 10.5.0.1");
    net.router.run("ip route add unreachable 10.5.0.2");
    let to = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 443);
    let link = net
        .server
        .within(|| TcpListener::bind("10.2.0.2:443").unwrap());
    drop(link);
    hold(
        &net,
        &proxy,
        &[
            silent(
                closed,
                "connect.refused",
                "origin",
                502,
                "Connection refused (os error 111)",
            ),
            silent(
                closed6,
                "connect.refused",
                "origin",
                502,
                "Connection refused (os error 111)",
            ),
            silent(
                reject("tcp-reset"),
                "connect.refused",
                "origin",
                502,
                "Connection refused",
            ),
            Row {
                side: "origin",
                ..row(
                    host_filters,
                    "connect.refused",
                    (3, 3, host_filters.ip()),
                    "the host at 10.3.",
                )
            },
            row(
                host_forbids,
                "connect.prohibited",
                (3, 13, host_forbids.ip()),
                "the firewall at 10.3.",
            ),
            row(
                reject("icmp-port-unreachable"),
                "connect.refused_by_device",
                (3, 3, ROUTER),
                "the device at 10.1.0.1 refuses it (ICMP 3/3)",
            ),
            row(
                reject("icmp-net-prohibited"),
                "connect.prohibited",
                (3, 9, ROUTER),
                firewall,
            ),
            row(
                reject("icmp-host-prohibited"),
                "connect.prohibited",
                (3, 10, ROUTER),
                firewall,
            ),
            row(
                reject("icmp-admin-prohibited"),
                "connect.prohibited",
                (3, 13, ROUTER),
                firewall,
            ),
            row(
                reject("icmp-net-unreachable"),
                "connect.unreachable.net",
                (3, 0, ROUTER),
                at_router,
            ),
            row(
                reject("icmp-host-unreachable"),
                "connect.unreachable.host",
                (3, 1, ROUTER),
                at_router,
            ),
            row(
                reject("icmp-proto-unreachable"),
                "connect.unreachable.proto",
                (3, 2, ROUTER),
                "the device at 10.1.0.1 says that TCP is not taken (ICMP 3/2)",
            ),
            row(
                to("10.5.0.1"),
                "connect.prohibited",
                (3, 13, ROUTER),
                firewall,
            ),
            row(
                to("10.5.0.2"),
                "connect.unreachable.host",
                (3, 1, ROUTER),
                at_router,
            ),
            row(
                (NOBODY_BEHIND, 443),
                "connect.unreachable.host",
                (3, 1, ROUTER),
                at_router,
            ),
            row(
                reject6("icmp6-adm-prohibited"),
                "connect.prohibited",
                (1, 1, ROUTER6),
                "the firewall at 2001:db8:1::1 forbids it (ICMPv6 1/1)",
            ),
            row(
                reject6("icmp6-port-unreachable"),
                "connect.refused_by_device",
                (1, 4, ROUTER6),
                "the device at 2001:db8:1::1 refuses it (ICMPv6 1/4)",
            ),
            row(
                reject6("icmp6-no-route"),
                "connect.unreachable.net",
                (1, 0, ROUTER6),
                "the router at 2001:db8:1::1 has no route to that network (ICMPv6 1/0)",
            ),
            row(
                reject6("icmp6-addr-unreachable"),
                "connect.unreachable.host",
                (1, 3, ROUTER6),
                "the router at 2001:db8:1::1 cannot reach that host (ICMPv6 1/3)",
            ),
            row(
                last_hop,
                "connect.ttl_exceeded",
                (11, 0, ROUTER),
                "the router at 10.1.0.1 found the hop limit used up (ICMP 11/0)",
            ),
            row(
                last_hop6,
                "connect.ttl_exceeded",
                (3, 0, ROUTER6),
                "the router at 2001:db8:1::1 found the hop limit used up (ICMPv6 3/0)",
            ),
            row(
                to("10.4.0.1"),
                "connect.ttl_exceeded",
                (11, 0, "10.2.0.2".parse::<IpAddr>().unwrap()),
                "the router at 10.2.0.2 found the hop limit used up (ICMP 11/0)",
            ),
            row(
                (NOBODY, 443),
                "connect.neighbour_dead",
                (3, 1, CLIENT),
                "the next hop does not answer ARP (ICMP 3/1 from 10.1.0.2, our own address)",
            ),
            row(
                to("2001:db8:1::99"),
                "connect.neighbour_dead",
                (1, 3, CLIENT6),
                "the next hop does not answer neighbour discovery (ICMPv6 1/3 from 2001:db8:1::2, our own address)",
            ),
        ],
    );
}

#[test]
fn what_this_host_forbids_is_told_from_what_the_way_forbids() {
    let Some(net) = Net::new() else { return };
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    let own = |ip: IpAddr, kind: &str| {
        let rule = format!("-A OUTPUT -p tcp -d {ip} -j REJECT --reject-with {kind}");
        if ip.is_ipv4() {
            net.client.iptables(&rule);
        } else {
            net.client.ip6tables(&rule);
        }
        SocketAddr::new(ip, 443)
    };
    let routed = |ip: IpAddr, kind: &str| {
        net.client.run(&format!("ip route add {kind} {ip}"));
        SocketAddr::new(ip, 443)
    };
    let firewall = |target: SocketAddr, r#type: u8, code: u8| {
        let ip: IpAddr = if target.is_ipv4() {
            CLIENT.into()
        } else {
            CLIENT6.into()
        };
        Row {
            side: "proxy",
            ..row(
                target,
                "proxy.egress_denied.firewall",
                (r#type, code, ip),
                "this host's own firewall forbids it (ICMP",
            )
        }
    };
    let lsm = |target| {
        let message = "this host forbids it: Permission denied (os error 13)";
        silent(target, "proxy.egress_denied.lsm", "proxy", 502, message)
    };
    let no_route =
        |target, message| silent(target, "proxy.no_route_to_network", "proxy", 502, message);
    let unreachable_net = "no route from this host: Network is unreachable (os error 101)";
    let unreachable_host = "no route from this host: No route to host (os error 113)";
    let blackhole = "no route from this host: Invalid argument (os error 22)";
    hold(
        &net,
        &proxy,
        &[
            firewall(own(net.address(), "icmp-port-unreachable"), 3, 3),
            firewall(own(net.address(), "icmp-net-prohibited"), 3, 9),
            firewall(own(net.address(), "icmp-host-prohibited"), 3, 10),
            firewall(own(net.address(), "icmp-admin-prohibited"), 3, 13),
            firewall(own(net.address6(), "icmp6-port-unreachable"), 1, 4),
            firewall(own(net.address6(), "icmp6-adm-prohibited"), 1, 1),
            lsm(routed(net.address(), "prohibit")),
            lsm(routed(net.address6(), "prohibit")),
            no_route(routed(net.address(), "throw"), unreachable_net),
            no_route(routed(net.address(), "unreachable"), unreachable_host),
            no_route(routed(net.address6(), "unreachable"), unreachable_host),
            no_route(routed(net.address(), "blackhole"), blackhole),
            no_route(routed(net.address6(), "blackhole"), blackhole),
        ],
    );
}

/// Forbids TCP connections to the process and what it becomes: Landlock, see `linux/landlock.h`.
const LANDLOCK: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
CREATE_RULESET, RESTRICT_SELF, VERSION, NO_NEW_PRIVS, CONNECT_TCP = 444, 446, 1, 38, 2
if libc.syscall(CREATE_RULESET, None, 0, VERSION) < 4:
    sys.exit("no Landlock for TCP")
if sys.argv[1] == "try":
    sys.exit()
handled = (ctypes.c_uint64 * 2)(0, CONNECT_TCP)
rules = libc.syscall(CREATE_RULESET, handled, 16, 0)
assert rules >= 0 and libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(RESTRICT_SELF, rules, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_security_module_that_forbids_is_told() {
    if !needs::has("python3") {
        return;
    }
    let (status, ..) = run(Command::new("python3").args(["-c", LANDLOCK, "try"]));
    if !status.success() && !needs::lacks("landlock") {
        return;
    }
    let proxy = Proxy::under(DIRECT)
        .through("python3", &["-c", LANDLOCK])
        .start();
    let client = proxy.connect();
    let target = Origin::nowhere();
    connect(&client, target);
    let message = "this host forbids it: Permission denied (os error 13)";
    let row = silent(target, "proxy.egress_denied.lsm", "proxy", 502, message);
    judge(&row, &wire::read_head(&client), &proxy.record());
}

#[test]
fn silence_is_told_with_the_syns_that_nobody_answered() {
    let Some(net) = Net::new() else { return };
    let policy =
        "version: 1\ndefaults: {timeouts: {connect: 2500ms}}\nrules: []\ndefault: {direct: true}\n";
    let proxy = Proxy::under(policy).inside(&net.client).start();
    net.router.run("ip route add blackhole 10.5.0.3");
    let own_drop = SocketAddr::from((net.address(), 443));
    net.client
        .iptables(&format!("-A OUTPUT -p tcp -d {} -j DROP", own_drop.ip()));
    let rows = [
        ban(&net, net.address(), "DROP"),
        ban(&net, net.address6(), "DROP"),
        "10.5.0.3:443".parse().unwrap(),
        // Our own firewall drops it, which looks the same from here.
        own_drop,
    ];
    let rows = rows.map(|target| silent(target, "connect.timeout", "network", 504, "2.5s ("));
    let clients = rows.each_ref().map(|row| ask(&net, &proxy, row.target));
    let heads = clients.each_ref().map(wire::read_head);
    let records = proxy.records(rows.len());
    for (row, head) in rows.iter().zip(&heads) {
        let id = wire::field(head, "x-routecause-record").unwrap();
        let record = records.iter().find(|record| record["event.id"] == id);
        judge(row, head, record.unwrap());
        // At 0 s and 1 s, and in newer kernels at 2 s.
        let line = head.lines().next().unwrap();
        assert!(
            ["(2 SYNs) via direct", "(3 SYNs) via direct"]
                .iter()
                .any(|end| line.ends_with(end)),
            "{line}"
        );
    }
}

#[test]
fn a_connection_that_needed_a_second_syn_is_noted() {
    let Some(net) = Net::new() else { return };
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    let bind = |ip: IpAddr| net.server.within(|| TcpListener::bind((ip, 0)).unwrap());
    for (verdict, notes) in [
        (
            Some("-m statistic --mode nth --every 2 --packet 0 -j DROP"),
            json!(["connect.slow"]),
        ),
        (None, Value::Null),
    ] {
        let origin = bind(net.address());
        let target = origin.local_addr().unwrap();
        if let Some(verdict) = verdict {
            let ip = target.ip();
            net.router
                .iptables(&format!("-A FORWARD -p tcp --syn -d {ip} {verdict}"));
        }
        let client = ask(&net, &proxy, target);
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        let (server, _) = origin.accept().unwrap();
        // The client ends it, and the server hears of that.
        drop(client);
        assert!(wire::is_fin(&server));
        drop(server);
        check!(&proxy.record(), "event.outcome": "success", "egress.notes": notes);
    }
}

#[test]
fn a_message_of_the_way_does_not_end_a_connection_that_stands() {
    let Some(net) = Net::new() else { return };
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    for ip in [net.address(), net.address6()] {
        let origin = net.server.within(|| TcpListener::bind((ip, 0)).unwrap());
        let client = ask(&net, &proxy, origin.local_addr().unwrap());
        let (server, _) = origin.accept().unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        let router = |line: &str| {
            if ip.is_ipv4() {
                net.router.iptables(line);
            } else {
                net.router.ip6tables(line);
            }
        };
        // The next packet, and once more when it is sent again: the first message may come while the socket is in use, and
        // then it does no harm anyway.
        for _ in 0..2 {
            router(&format!(
                "-A FORWARD -p tcp -d {ip} -m statistic --mode nth --every 1000 --packet 0 -j REJECT"
            ));
        }
        wire::send(&client, "hello");
        assert_eq!(wire::read_exact(&server, 5), b"hello");
        wire::send(&client, "again");
        assert_eq!(wire::read_exact(&server, 5), b"again");
        wire::finish(&client);
        drop(server);
        check!(&proxy.record(), "event.outcome": "success");
        let table = if ip.is_ipv4() {
            "iptables"
        } else {
            "ip6tables"
        };
        let rules = net.router.run(&format!("{table} -w -nvxL FORWARD"));
        for rule in rules.lines().skip(2) {
            assert!(rule.trim().starts_with("1 "), "{rule}");
        }
    }
}

#[test]
fn a_reset_right_behind_the_handshake_is_a_reset() {
    let Some(net) = Net::new() else { return };
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    let origin = net
        .server
        .within(|| TcpListener::bind((net.address(), 443)).unwrap());
    let target = origin.local_addr().unwrap();
    let ip = target.ip();
    net.router.iptables(&format!(
        "-A FORWARD -p tcp -d {ip} --tcp-flags SYN,ACK ACK -j REJECT --reject-with tcp-reset"
    ));
    // The kernel may let us see the connection for a moment, if another processor wakes us.
    let since = Instant::now();
    loop {
        let client = ask(&net, &proxy, target);
        let head = wire::read_head(&client);
        drop(client);
        let record = proxy.record();
        if wire::status(&head) == 200 {
            assert!(since.elapsed() < SOON);
            continue;
        }
        let message = "Connection reset by peer (os error 104)";
        judge(
            &silent(target, "connect.reset", "network", 502, message),
            &head,
            &record,
        );
        break;
    }
}

#[test]
fn of_several_addresses_the_one_that_got_furthest_is_told_and_all_are_listed() {
    let Some(net) = Net::new() else { return };
    let reject =
        |kind: &str| ban(&net, net.address(), &format!("REJECT --reject-with {kind}")).ip();
    let (unreachable, prohibited) = (
        reject("icmp-net-unreachable"),
        reject("icmp-admin-prohibited"),
    );
    let dead = net.address6();
    net.client.run(&format!("ip route add unreachable {dead}"));
    let policy = format!(
        "version: 1\ndns: {{hosts: {{a.example: [\"{dead}\", {unreachable}, {prohibited}]}}}}\n\
         upstreams: {{corp: {{url: \"http://{prohibited}:3128\"}}}}\n\
         rules: [{{name: up, match: {{port: 8443}}, via: corp}}]\ndefault: {{direct: true}}\n"
    );
    let proxy = Proxy::under(&policy).inside(&net.client).start();
    let client = net.client.within(|| proxy.connect());
    wire::send(
        &client,
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
    );
    let head = wire::read_head(&client);
    let line = head.lines().next().unwrap();
    let phrase = format!(
        "HTTP/1.1 502 connect.prohibited: connect to {prohibited}:443: the firewall at 10.1.0.1"
    );
    assert!(line.starts_with(&phrase), "{line}");
    let record = proxy.record();
    check!(&record, "error.type": "connect.prohibited", "egress.icmp.code": 13);
    let attempts = &record["egress.attempts"];
    let [first, second, third] = [&attempts[0], &attempts[1], &attempts[2]];
    check!(first, "cause": "proxy.no_route_to_network", "icmp": null);
    check!(second, "cause": "connect.unreachable.net", "icmp": {"type": 3, "code": 0, "offender": ROUTER});
    check!(third, "cause": "connect.prohibited", "icmp": {"type": 3, "code": 13, "offender": ROUTER});

    let client = net.client.within(|| proxy.connect());
    wire::send(
        &client,
        "CONNECT b.example:8443 HTTP/1.1\r\nHost: b.example:8443\r\n\r\n",
    );
    let head = wire::read_head(&client);
    let line = head.lines().next().unwrap();
    let phrase = format!(
        "HTTP/1.1 502 upstream.connect.prohibited: upstream corp: connect to {prohibited}:3128: "
    );
    assert!(line.starts_with(&phrase), "{line}");
    check!(&proxy.record(),
        "error.type": "upstream.connect.prohibited", "egress.phase": "upstream", "egress.side": "upstream",
        "egress.icmp.type": 3, "egress.icmp.code": 13, "egress.icmp.offender": ROUTER);
}

#[test]
fn a_host_that_has_no_port_left_is_told_from_one_without_the_family() {
    let Some(net) = Net::new() else { return };
    let proxy = Proxy::under(DIRECT).inside(&net.client).start();
    let origin = net
        .server
        .within(|| TcpListener::bind((net.address(), 443)).unwrap());
    let target = origin.local_addr().unwrap();
    // Connections to the proxy take local ports as well.
    let clients: Vec<_> = (0..6)
        .map(|_| net.client.within(|| proxy.connect()))
        .collect();
    net.client
        .sysctl("net.ipv4.ip_local_port_range", "40000 40003");
    net.client.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
    let [no_port, no_family, tunnels @ ..] = clients.as_slice() else {
        unreachable!()
    };
    for client in tunnels {
        connect(client, target);
        assert_eq!(wire::status(&wire::read_head(client)), 200);
    }
    connect(no_port, target);
    let message = "no local port: Cannot assign requested address (os error 99)";
    let row = silent(target, "proxy.resource.ports", "proxy", 503, message);
    judge(&row, &wire::read_head(no_port), &proxy.record());

    let target = SocketAddr::new(net.address6(), 443);
    connect(no_family, target);
    let message = "Cannot assign requested address (os error 99)";
    let row = silent(
        target,
        "connect.family_unsupported",
        "network",
        502,
        message,
    );
    judge(&row, &wire::read_head(no_family), &proxy.record());
}

#[test]
fn a_proxy_without_a_descriptor_left_says_so() {
    if !needs::has("prlimit") {
        return;
    }
    let proxy = Proxy::start(DIRECT);
    let open = || -> Vec<u32> {
        let entries = fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(|name| name.parse().unwrap()).collect()
    };
    let before = open().len();
    let client = proxy.connect();
    let since = Instant::now();
    while open().len() == before {
        assert!(since.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    let open = open();
    let free = (0..1024).find(|number| !open.contains(number)).unwrap();
    let (status, _, stderr) = run(Command::new("prlimit")
        .arg(format!("--pid={}", proxy.pid()))
        .arg(format!("--nofile={free}:{free}")));
    assert!(status.success(), "{stderr}");
    let target = Origin::nowhere();
    connect(&client, target);
    let message = "no file descriptor: Too many open files (os error 24)";
    let row = silent(target, "proxy.resource.fd", "proxy", 503, message);
    judge(&row, &wire::read_head(&client), &proxy.record());
}
