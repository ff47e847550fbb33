//! What the policy says, over the wire: who is let through, by which way, and what a refusal tells.

mod support;

use std::net::SocketAddr;

use serde_json::Value;

use support::origin::{self, Listening, Origin};
use support::{DIRECT, Proxy, check, needs, wire};

fn connect(target: impl std::fmt::Display) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

fn get(authority: impl std::fmt::Display, path: &str) -> String {
    format!("GET http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

/// Asks on a connection of its own: the answer's head and body, and the record.
fn ask(proxy: &Proxy, request: impl AsRef<[u8]>) -> (String, String, Value) {
    let client = proxy.connect();
    wire::send(&client, request);
    let (head, body) = wire::read_answer(&client);
    drop(client);
    (head, body, proxy.record())
}

/// Asks for a tunnel to `origin`, by the name of `target`, and ends it: the record.
fn tunnel(proxy: &Proxy, origin: &Listening, target: impl std::fmt::Display) -> Value {
    let client = proxy.connect();
    wire::send(&client, connect(target));
    let head = wire::read_head(&client);
    assert_eq!(wire::status(&head), 200, "{head}");
    drop((client, origin.accept()));
    proxy.record()
}

/// Asks for a tunnel and for a page, and expects the same refusal of both: the last answer's body.
fn refused(proxy: &Proxy, target: &str, status: u16, cause: &str, rule: &str) -> String {
    let mut last = String::new();
    for request in [connect(target), get(target, "/")] {
        let (head, body, record) = ask(proxy, request);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} {cause}: ")),
            "{target}: {head}"
        );
        assert!(body.contains(cause) && body.contains("hint: "), "{body}");
        check!(&record,
            "event.outcome": "failure", "error.type": cause, "egress.side": "proxy",
            "http.response.status_code": status, "egress.rule": rule, "egress.route": null, "egress.attempts": null,
            "egress.phase": "policy", "source.bytes": 0, "destination.bytes": 0);
        last = body;
    }
    last
}

#[test]
fn a_block_names_its_rule_its_reason_and_what_to_add() {
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - name: no-telemetry\n    match: {domain: telemetry.example}\n    \
         block: {reason: \"it phones home\"}\ndefault: {direct: true}\n",
    );
    let body = refused(
        &proxy,
        "eu.telemetry.example:443",
        403,
        "policy.denied.rule",
        "no-telemetry",
    );
    let source = format!("{}:3", proxy.policy.display());
    for told in [
        "no-telemetry",
        "it phones home",
        &format!("add a rule above {source}"),
    ] {
        assert!(body.contains(told), "{told:?} in {body}");
    }
    let (head, _, record) = ask(&proxy, connect("telemetry.example:443"));
    assert!(
        head.lines()
            .next()
            .unwrap()
            .contains("rule no-telemetry blocks telemetry.example:443"),
        "{head}"
    );
    assert!(
        wire::field(&head, "proxy-status")
            .unwrap()
            .contains("; error=http_request_denied;"),
        "{head}"
    );
    check!(&record, "egress.rule_source": source);
}

#[test]
fn a_block_may_choose_its_status() {
    let proxy = Proxy::start(
        "version: 1\nrules: [{name: legal, match: {host: a.example}, block: {status: 451}}]\ndefault: {direct: true}\n",
    );
    refused(&proxy, "a.example:80", 451, "policy.denied.rule", "legal");
}

#[test]
fn a_blocking_default_says_what_to_add() {
    let proxy = Proxy::start("version: 1\nrules: []\ndefault: {block: {reason: \"ask first\"}}\n");
    let body = refused(
        &proxy,
        "a.example:443",
        403,
        "policy.denied.default",
        "default",
    );
    let add = format!("add a rule above {}:3", proxy.policy.display());
    assert!(body.contains(&add) && body.contains("ask first"), "{body}");
}

#[test]
fn the_first_rule_that_matches_decides() {
    let origin = Listening::new();
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: first, match: {ip: 127.0.0.1}, direct: true}\n  \
         - {name: second, match: {ip: 127.0.0.0/8}, block: true}\ndefault: {block: true}\n",
    );
    check!(&tunnel(&proxy, &origin, origin.address), "egress.rule": "first", "event.outcome": "success");
    refused(&proxy, "127.0.0.2:80", 403, "policy.denied.ip", "second");
}

#[test]
fn rules_see_method_path_and_fields_of_plain_requests() {
    let origin = Listening::new();
    let address = origin.address;
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: writes, match: {method: [POST, PUT]}, block: true}\n  \
         - {name: secret, match: {path: \"/secret/**\"}, block: true}\n  \
         - {name: marked, match: {header: {x-mark: \"no*\"}}, block: true}\n  \
         - {name: tunnels, match: {scheme: connect}, block: true}\ndefault: {direct: true}\n",
    );
    let post =
        format!("POST http://{address}/ HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n");
    let marked =
        format!("GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\nX-Mark: nope\r\n\r\n");
    for (request, rule) in [
        (post, "writes"),
        (get(address, "/secret/a/b"), "secret"),
        (marked, "marked"),
        (connect(address), "tunnels"),
    ] {
        let (head, _, record) = ask(&proxy, request);
        assert_eq!(wire::status(&head), 403, "{rule}");
        check!(&record, "egress.rule": rule, "error.type": "policy.denied.rule");
    }
    assert!(origin.is_untouched());
    let client = proxy.connect();
    wire::send(&client, get(address, "/public"));
    wire::send(&origin.hear().0, "HTTP/1.1 204 X\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 204);
}

#[test]
fn a_port_of_the_never_list_is_refused_unless_a_rule_names_it() {
    let proxy = Proxy::start(DIRECT);
    for port in [1, 25, 6667, 6379, 11211] {
        let body = refused(
            &proxy,
            &format!("127.0.0.1:{port}"),
            403,
            "policy.denied.port",
            "default",
        );
        assert!(
            body.contains("name the port in a rule's match.port"),
            "{body}"
        );
    }
    // Port 22 is no bad port here, and a rule that names one opens it: both are tried.
    let opened = Proxy::start(
        "version: 1\nrules: [{name: cache, match: {port: 11211}, direct: true}]\ndefault: {direct: true}\n",
    );
    for (proxy, port, rule) in [(&proxy, 22, "default"), (&opened, 11211, "cache")] {
        let client = proxy.connect();
        wire::send(&client, connect(format!("127.8.9.1:{port}")));
        wire::read_head(&client);
        drop(client);
        let record = proxy.record();
        check!(&record, "egress.rule": rule, "egress.route": "direct");
        check!(&record["egress.attempts"][0], "address": (format!("127.8.9.1:{port}")));
    }
}

#[test]
fn no_spelling_reaches_link_local_and_metadata_addresses() {
    let proxy = Proxy::start(DIRECT);
    for host in [
        "169.254.169.254",
        "169.254.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "metadata.google.internal",
        "METADATA.google.internal.",
    ] {
        let body = refused(
            &proxy,
            &format!("{host}:80"),
            403,
            "policy.denied.ip",
            "guards.link_local",
        );
        assert!(body.contains("guards.except"), "{body}");
    }
    for host in [
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "[ff02::1]",
        "[::ffff:0.0.0.0]",
    ] {
        refused(
            &proxy,
            &format!("{host}:80"),
            403,
            "policy.denied.ip",
            "guards.special",
        );
    }
    let (head, _, _) = ask(&proxy, connect("169.254.169.254:80"));
    assert!(
        wire::field(&head, "proxy-status")
            .unwrap()
            .contains("; error=destination_ip_prohibited;"),
        "{head}"
    );
}

#[test]
fn no_rule_overrides_a_guard_and_an_exception_does() {
    let origin = Listening::new();
    let rules =
        "rules: [{name: all, match: {ip: 127.0.0.0/8}, direct: true}]\ndefault: {block: true}\n";
    let proxy = Proxy::start(&format!("version: 1\nguards: {{loopback: block}}\n{rules}"));
    refused(
        &proxy,
        &origin.address.to_string(),
        403,
        "policy.denied.ip",
        "guards.loopback",
    );
    assert!(origin.is_untouched());
    let proxy = Proxy::start(&format!(
        "version: 1\nguards: {{loopback: block, except: [{{ip: 127.0.0.1, port: {}}}]}}\n{rules}",
        origin.address.port()
    ));
    check!(&tunnel(&proxy, &origin, origin.address), "event.outcome": "success", "egress.rule": "all");
    refused(
        &proxy,
        "127.0.0.1:1234",
        403,
        "policy.denied.ip",
        "guards.loopback",
    );
}

#[test]
fn private_addresses_are_refused_where_the_policy_says_so() {
    let proxy =
        Proxy::start("version: 1\nguards: {private: block}\nrules: []\ndefault: {direct: true}\n");
    for host in [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "[fd12::1]",
        "[::ffff:10.0.0.1]",
    ] {
        refused(
            &proxy,
            &format!("{host}:443"),
            403,
            "policy.denied.ip",
            "guards.private",
        );
    }
}

#[test]
fn a_guard_judges_what_a_name_resolves_to() {
    let origin = Listening::new();
    let port = origin.address.port();
    let proxy = Proxy::start(
        "version: 1\nguards: {loopback: block}\ndns: {hosts: {in.example: [127.0.0.1], meta.example: [169.254.169.254]}}\n\
         rules: []\ndefault: {direct: true}\n",
    );
    for (name, guard) in [
        ("in.example", "guards.loopback"),
        ("meta.example", "guards.link_local"),
    ] {
        for request in [
            connect(format!("{name}:{port}")),
            get(format!("{name}:{port}"), "/"),
        ] {
            let (head, _, record) = ask(&proxy, request);
            assert!(
                head.starts_with("HTTP/1.1 403 policy.denied.ip: "),
                "{head}"
            );
            check!(&record, "error.type": "policy.denied.ip", "egress.phase": "policy", "egress.side": "proxy");
            // The default let it through.
            check!(&record, "egress.rule": guard);
            assert!(record.get("egress.rule_source").is_none(), "{record}");
        }
    }
    assert!(origin.is_untouched());
}

#[test]
fn tunnels_keep_to_the_ports_that_the_guard_names() {
    let origin = Listening::new();
    let port = origin.address.port();
    let proxy = Proxy::start(&format!(
        "version: 1\nguards: {{connect_ports: [443, {port}]}}\nrules: []\ndefault: {{direct: true}}\n"
    ));
    check!(&tunnel(&proxy, &origin, origin.address), "event.outcome": "success");
    let (head, _, record) = ask(&proxy, connect("127.0.0.1:444"));
    assert!(
        head.starts_with("HTTP/1.1 403 policy.denied.port: "),
        "{head}"
    );
    check!(&record, "error.type": "policy.denied.port", "egress.rule": "guards.connect_ports", "egress.phase": "policy");
    // Plain requests are not tunnels.
    let plain = Origin::answering("HTTP/1.1 204 X\r\n\r\n");
    assert_eq!(wire::status(&ask(&proxy, get(plain.address, "/")).0), 204);
}

#[test]
fn a_request_for_the_proxy_itself_is_a_loop() {
    let proxy = Proxy::start(DIRECT);
    let port = proxy.address.port();
    for target in [
        format!("127.0.0.1:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
    ] {
        for request in [connect(&target), get(&target, "/")] {
            let (head, body, record) = ask(&proxy, request);
            assert!(head.starts_with("HTTP/1.1 508 proxy.loop: "), "{head}");
            assert!(
                wire::field(&head, "proxy-status")
                    .unwrap()
                    .contains("; error=proxy_loop_detected;")
            );
            assert!(body.contains("this proxy itself"), "{body}");
            check!(&record,
                "event.outcome": "failure", "error.type": "proxy.loop", "egress.side": "proxy",
                "http.response.status_code": 508);
        }
    }
    assert_eq!(proxy.stop().1, Vec::<Value>::new());
}

#[test]
fn a_name_that_leads_back_to_the_proxy_is_a_loop() {
    let proxy = Proxy::start(
        "version: 1\ndns: {hosts: {me.example: 127.0.0.1}}\nrules: []\ndefault: {direct: true}\n",
    );
    let target = format!("me.example:{}", proxy.address.port());
    for request in [connect(&target), get(&target, "/")] {
        let (head, _, record) = ask(&proxy, request);
        assert!(head.starts_with("HTTP/1.1 508 proxy.loop: "), "{head}");
        check!(&record, "error.type": "proxy.loop", "egress.side": "proxy");
    }
}

#[test]
fn our_own_name_in_via_is_a_loop() {
    let proxy = Proxy::start(DIRECT);
    let origin = Origin::answering("HTTP/1.1 204 X\r\n\r\n");
    let (head, _, _) = ask(&proxy, get(origin.address, "/"));
    let own = wire::field(&head, "via").unwrap().to_owned();
    let untouched = Listening::new();
    let address = untouched.address;
    for via in [
        format!("Via: {own}"),
        format!("Via: 1.0 a, {own} (x), 1.1 b"),
        format!("Via: 1.1 a\r\nVia: {own}"),
    ] {
        for line in [
            format!("GET http://{address}/"),
            format!("CONNECT {address}"),
        ] {
            let (head, _, record) = ask(
                &proxy,
                format!("{line} HTTP/1.1\r\nHost: {address}\r\n{via}\r\n\r\n"),
            );
            assert!(head.starts_with("HTTP/1.1 508 proxy.loop: "), "{head}");
            check!(&record, "error.type": "proxy.loop", "egress.phase": "policy", "egress.attempts": null);
        }
    }
    assert!(untouched.is_untouched());
}

#[test]
fn a_rule_in_report_mode_only_says_what_it_would_do() {
    let origin = Listening::new();
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: trial, match: {ip: 127.0.0.1}, block: true, mode: report}\n  \
         - {name: off, match: {ip: 127.0.0.1}, block: true, mode: off}\ndefault: {direct: true}\n",
    );
    check!(&tunnel(&proxy, &origin, origin.address),
        "event.outcome": "success", "egress.would": "trial", "egress.rule": "default");
    // One that would only set its options sets none: what it would try finds no TLS there.
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: try, match: {ip: 127.0.0.1}, continue: true, preflight: tls, mode: report}\n\
         default: {direct: true}\n",
    );
    check!(&tunnel(&proxy, &origin, origin.address),
        "event.outcome": "success", "egress.would": "try", "egress.rule": "default");
}

#[test]
fn a_policy_in_report_mode_lets_pass_and_says_what_would_have_stopped_it() {
    let origin = Listening::new();
    let target = origin.address;
    for (policy, would) in [
        (
            "rules: [{name: no, match: {ip: 127.0.0.1}, block: true}]\ndefault: {direct: true}",
            "no",
        ),
        ("rules: []\ndefault: {block: true}", "default"),
        (
            "guards: {loopback: block}\nrules: []\ndefault: {direct: true}",
            "guards.loopback",
        ),
        (
            "guards: {connect_ports: [443]}\nrules: []\ndefault: {direct: true}",
            "guards.connect_ports",
        ),
    ] {
        let proxy = Proxy::start(&format!("version: 1\nmode: report\n{policy}\n"));
        check!(&tunnel(&proxy, &origin, target),
            "event.outcome": "success", "egress.would": would, "egress.route": "direct");
    }
    // A guard that speaks up only once the name is resolved.
    let proxy = Proxy::start(
        "version: 1\nmode: report\nguards: {loopback: block}\ndns: {hosts: {in.example: 127.0.0.1}}\n\
         rules: []\ndefault: {direct: true}\n",
    );
    check!(&tunnel(&proxy, &origin, format!("in.example:{}", target.port())), "egress.would": "guards.loopback");
    // A loop is refused all the same.
    let (head, _, _) = ask(&proxy, connect(proxy.address));
    assert_eq!(wire::status(&head), 508);
}

#[test]
fn continue_sets_timeouts_for_whatever_decides_behind_it() {
    let proxy = Proxy::start(
        "version: 1\nrules:\n  - {name: short, match: {ip: 127.0.0.1}, continue: true, timeouts: {connect: 300ms}}\n  \
         - {name: out, match: {ip: 127.0.0.1}, direct: true}\ndefault: {block: true}\n",
    );
    let silent = origin::silent();
    let (head, _, record) = ask(&proxy, connect(silent.address));
    assert!(head.starts_with("HTTP/1.1 504 connect.timeout: "), "{head}");
    check!(&record, "egress.rule": "out", "error.type": "connect.timeout");
}

#[test]
fn a_preflight_is_set_by_a_rule_that_goes_on_and_explained_for_tunnels_only() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    let text = "version: 1\nrules:\n  - {name: careful, match: {domain: a.example}, continue: true, preflight: tls, timeouts: {hello: 2s}}\n\
                default: {direct: true}\n";
    std::fs::write(&policy, text).unwrap();
    let explain = |target: &str, json: &[&str]| {
        let mut command = support::routecause();
        command
            .args(["explain", "--policy"])
            .arg(&policy)
            .args(json);
        let (status, stdout, stderr) = support::run(command.arg(target));
        assert!(status.success(), "{stderr}");
        stdout
    };
    let text = explain("https://a.example/", &[]);
    assert!(
        text.contains("  after a preflight: tls, within 2s\n"),
        "{text}"
    );
    let json = |target| serde_json::from_str::<Value>(&explain(target, &["--json"])).unwrap();
    check!(&json("https://a.example/")["decision"], "preflight": "tls");
    check!(&json("http://a.example/")["decision"], "preflight": null);
    check!(&json("https://b.example/")["decision"], "preflight": null);
}

#[test]
fn a_rule_by_address_looks_names_up_only_where_it_says_so() {
    let origin = Listening::new();
    let port = origin.address.port();
    let hosts = "dns: {hosts: {in.example: [127.0.0.1], mixed.example: [127.0.0.1, 192.0.2.1]}}\n";
    let policy = |rule: &str, default: &str| {
        format!(
            "version: 1\n{hosts}rules: [{{name: by-address, match: {{ip: 127.0.0.0/8{rule}}}]\ndefault: {default}\n"
        )
    };
    // Literals only.
    let proxy = Proxy::start(&policy("}, block: true", "{direct: true}"));
    check!(&tunnel(&proxy, &origin, format!("in.example:{port}")), "egress.rule": "default", "egress.dns.source": "pin");
    // Some address.
    let proxy = Proxy::start(&policy(", resolve: any}, block: true", "{direct: true}"));
    for name in ["in.example", "mixed.example"] {
        let (head, _, record) = ask(&proxy, connect(format!("{name}:{port}")));
        assert!(
            head.starts_with("HTTP/1.1 403 policy.denied.ip: "),
            "{head}"
        );
        check!(&record,
            "egress.rule": "by-address", "egress.phase": "policy", "egress.side": "proxy", "egress.attempts": null,
            "egress.dns.source": "pin");
    }
    // Every address: those that were judged are those that are dialled.
    let proxy = Proxy::start(&policy(", resolve: all}, direct: true", "{block: true}"));
    let record = tunnel(&proxy, &origin, format!("in.example:{port}"));
    check!(&record,
        "egress.rule": "by-address", "dns.resolved_ip": ["127.0.0.1"], "network.peer.address": "127.0.0.1",
        "server.address": "in.example");
    let (head, _, record) = ask(&proxy, connect(format!("mixed.example:{port}")));
    assert_eq!(wire::status(&head), 403);
    check!(&record, "egress.rule": "default", "error.type": "policy.denied.default");
}

#[test]
fn a_pinned_name_is_reached_at_its_pin() {
    let origin = Origin::answering("HTTP/1.1 204 X\r\n\r\n");
    let proxy = Proxy::start(
        "version: 1\ndns: {hosts: {wiki.example: 127.0.0.1}}\nrules: []\ndefault: {direct: true}\n",
    );
    let authority = format!("WIKI.example.:{}", origin.address.port());
    let (head, _, record) = ask(&proxy, get(&authority, "/"));
    assert_eq!(wire::status(&head), 204);
    let heard = origin.heard();
    assert_eq!(
        wire::fields(&heard, "host"),
        [format!("wiki.example:{}", origin.address.port())]
    );
    check!(&record,
        "url.domain": "wiki.example", "server.address": "wiki.example", "egress.dns.source": "pin",
        "dns.resolved_ip": ["127.0.0.1"], "network.peer.address": "127.0.0.1");
}

/// The embedded policy's way: what the environment says.
const ENVIRONMENT: &str =
    "version: 1\nno_proxy: env\nupstreams: {env: {url: env}}\nrules: []\ndefault: {via: env}\n";

#[test]
fn the_environment_names_the_upstream_and_what_goes_round_it() {
    let (upstream, origin) = (Listening::new(), Listening::new());
    let url = format!("http://{}", upstream.address);
    let proxy = Proxy::under(ENVIRONMENT)
        .env("HTTP_PROXY", &url)
        .env("HTTPS_PROXY", &url)
        .env("NO_PROXY", "127.0.0.0/8,corp.example:8443")
        .start();
    check!(&tunnel(&proxy, &origin, origin.address),
        "egress.rule": "no_proxy", "egress.route": "direct", "network.peer.port": (origin.address.port()));
    for target in ["a.example:443", "corp.example:443"] {
        let client = proxy.connect();
        wire::send(&client, connect(target));
        let (server, head) = upstream.hear();
        assert!(head.starts_with(&format!("CONNECT {target} ")), "{head}");
        wire::send(&server, "HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        drop((client, server));
        check!(&proxy.record(), "egress.rule": "default", "egress.route": "env", "egress.hop": "env");
    }
}

#[test]
fn without_proxy_variables_the_upstream_of_the_environment_stands_for_direct() {
    let origin = Listening::new();
    let proxy = Proxy::start(ENVIRONMENT);
    check!(&tunnel(&proxy, &origin, origin.address), "egress.route": "direct", "event.outcome": "success");
}

/// The address that a client on this machine comes from is not always that of the listener.
const ANYONE: &str = "0.0.0.0/0";

/// A proxy on an address of this machine beside loopback, for the clients that `allow_from` names.
fn on_the_network(policy: &str, allow_from: &str) -> Option<Proxy> {
    if !needs::has("network") {
        return None;
    }
    let own = needs::own_address()?;
    let listen = SocketAddr::from((own, 0)).to_string();
    let starting = Proxy::under(policy).arg("--listen").arg(&listen);
    Some(starting.arg("--allow-from").arg(allow_from).start())
}

#[test]
fn loopback_targets_are_for_loopback_clients_only() {
    let Some(proxy) = on_the_network(DIRECT, ANYONE) else {
        return;
    };
    let origin = Listening::new();
    refused(
        &proxy,
        &origin.address.to_string(),
        403,
        "policy.denied.ip",
        "guards.loopback",
    );
    refused(
        &proxy,
        "[::1]:80",
        403,
        "policy.denied.ip",
        "guards.loopback",
    );
    assert!(origin.is_untouched());
    let allowing = "version: 1\nguards: {loopback: allow}\nrules: []\ndefault: {direct: true}\n";
    let proxy = on_the_network(allowing, ANYONE).unwrap();
    let record = tunnel(&proxy, &origin, origin.address);
    assert_ne!(record["client.address"], "127.0.0.1");
    check!(&record, "event.outcome": "success");
}

#[test]
fn who_is_not_named_may_not_use_a_listener_on_the_network() {
    let Some(proxy) = on_the_network(DIRECT, "198.51.100.0/24") else {
        return;
    };
    let origin = Listening::new();
    let body = refused_client(&proxy, &origin.address.to_string());
    assert!(
        body.contains("--allow-from") && body.contains("server.allow_from"),
        "{body}"
    );
    assert!(origin.is_untouched());
}

fn refused_client(proxy: &Proxy, target: &str) -> String {
    let mut last = String::new();
    for request in [connect(target), get(target, "/")] {
        let (head, body, record) = ask(proxy, request);
        assert!(
            head.starts_with("HTTP/1.1 403 policy.denied.rule: "),
            "{head}"
        );
        check!(&record,
            "error.type": "policy.denied.rule", "egress.rule": "server.allow_from", "egress.side": "proxy",
            "egress.phase": "policy", "egress.attempts": null);
        last = body;
    }
    last
}

#[test]
fn rules_see_who_asks() {
    let Some(proxy) = on_the_network(
        "version: 1\nguards: {loopback: allow}\nrules: [{name: here, match: {client: {cidr: 127.0.0.0/8}}, direct: true}]\n\
         default: {block: true}\n",
        ANYONE,
    ) else {
        return;
    };
    refused(
        &proxy,
        "127.0.0.1:80",
        403,
        "policy.denied.default",
        "default",
    );
}
