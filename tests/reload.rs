//! A policy that changes while the proxy runs: what decides the next request, and what goes on undisturbed.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::admin::{address, ask, get, send, until, until_metric, with_admin};
use support::origin::{Listening, Origin};
use support::web::Ca;
use support::{DIRECT, Proxy, SOON, check, routecause, run, tls, user, wire};

const BLOCK: &str = "version: 1\nrules: []\ndefault: {block: {reason: 'closed'}}\n";

/// The status that a plain request to `origin` gets.
fn status(proxy: &Proxy, origin: &Origin) -> u16 {
    let client = proxy.connect();
    let address = origin.address;
    wire::send(
        &client,
        format!("GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    );
    wire::read_text(&client)[9..12].parse().unwrap()
}

fn origin() -> Origin {
    Origin::answering("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
}

#[test]
fn a_signal_brings_the_new_policy() {
    // What lies behind a link to a link to a folder far away is not all watched: the signal is for such cases.
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    assert_eq!(status(&proxy, &origin), 204);
    fs::write(&proxy.policy, BLOCK).unwrap();
    proxy.signal(Signal::SIGHUP);
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 403);
}

#[test]
fn a_file_that_is_written_anew_brings_the_new_policy() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    assert_eq!(status(&proxy, &origin), 204);
    fs::write(&proxy.policy, BLOCK).unwrap();
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 403);
    let hashes: Vec<_> = proxy
        .records(2)
        .iter()
        .map(|record| record["egress.policy"].clone())
        .collect();
    assert_ne!(hashes[0], hashes[1]);
}

#[test]
fn a_file_that_is_renamed_into_place_brings_the_new_policy() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    let new = proxy.policy.with_file_name("policy.yaml.new");
    fs::write(&new, BLOCK).unwrap();
    fs::rename(&new, &proxy.policy).unwrap();
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 403);
    // The watch is on the folder: it outlives the file.
    fs::write(&new, DIRECT).unwrap();
    fs::rename(&new, &proxy.policy).unwrap();
    proxy.diaries("reloaded", 2);
    assert_eq!(status(&proxy, &origin), 204);
}

#[test]
fn a_link_that_is_swapped_brings_the_new_policy() {
    // As Kubernetes mounts a ConfigMap: policy.yaml -> ..data/policy.yaml, ..data -> ..1.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (version, policy) in [("..1", DIRECT), ("..2", BLOCK), ("..3", DIRECT)] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("policy.yaml"), policy).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/policy.yaml", path("policy.yaml")).unwrap();
    let origin = origin();
    let proxy = Proxy::at(&path("policy.yaml")).start();
    assert_eq!(status(&proxy, &origin), 204);
    for (count, (version, expected)) in [("..2", 403), ("..3", 204)].into_iter().enumerate() {
        symlink(version, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        proxy.diaries("reloaded", count + 1);
        assert_eq!(status(&proxy, &origin), expected, "{version}");
    }
}

/// A policy with rules and a set in files of their own.
const OF_FILES: &str = "\
version: 1
include: sets.yaml
rules:
  - include: rules.yaml
default: {direct: true}
";

#[test]
fn the_files_of_a_policy_are_watched_as_it_is() {
    let origin = origin();
    let proxy = Proxy::under(OF_FILES)
        .file(
            "sets.yaml",
            "sets: {closed: {file: closed.txt, kind: ips}}\n",
        )
        .file(
            "rules.yaml",
            "- {name: closed, match: {set: closed}, block: true}\n",
        )
        .file("closed.txt", "192.0.2.0/24\n")
        .start();
    let file = |name: &str| proxy.policy.with_file_name(name);
    assert_eq!(status(&proxy, &origin), 204);
    fs::write(file("closed.txt"), "192.0.2.0/24\n127.0.0.0/8 # and us\n").unwrap();
    proxy.diaries("reloaded", 1);
    assert_eq!(status(&proxy, &origin), 403);
    fs::write(file("rules.yaml"), "[]\n").unwrap();
    proxy.diaries("reloaded", 2);
    assert_eq!(status(&proxy, &origin), 204);
    // A file that is named only now is watched from now on.
    fs::write(file("more.yaml"), "- {name: all, block: true}\n").unwrap();
    fs::write(file("rules.yaml"), "- include: more.yaml\n").unwrap();
    proxy.diaries("reloaded", 3);
    assert_eq!(status(&proxy, &origin), 403);
    fs::write(file("more.yaml"), "- {name: none, direct: true}\n").unwrap();
    proxy.diaries("reloaded", 4);
    assert_eq!(status(&proxy, &origin), 204);
}

#[test]
fn files_that_are_swapped_by_a_link_bring_the_new_policy() {
    // As Kubernetes mounts a ConfigMap: sets.yaml -> ..data/sets.yaml, ..data -> ..1; the policy itself stands elsewhere.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (version, nets) in [
        ("..1", "192.0.2.0/24"),
        ("..2", "127.0.0.0/8"),
        ("..3", "10.0.0.0/8"),
    ] {
        fs::create_dir(path(version)).unwrap();
        fs::write(
            path(version).join("sets.yaml"),
            "sets: {closed: {file: closed.txt, kind: ips}}\n",
        )
        .unwrap();
        fs::write(path(version).join("closed.txt"), nets).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    for name in ["sets.yaml", "closed.txt"] {
        symlink(format!("..data/{name}"), path(name)).unwrap();
    }
    let sets = path("sets.yaml").display().to_string();
    let origin = origin();
    let proxy = Proxy::start(&format!(
        "version: 1\ninclude: '{sets}'\nrules:\n  - {{name: closed, match: {{set: closed}}, block: true}}\ndefault: {{direct: true}}\n"
    ));
    assert_eq!(status(&proxy, &origin), 204);
    for (count, (version, expected)) in [("..2", 403), ("..3", 204)].into_iter().enumerate() {
        symlink(version, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        proxy.diaries("reloaded", count + 1);
        assert_eq!(status(&proxy, &origin), expected, "{version}");
    }
}

#[test]
fn a_file_that_goes_missing_changes_nothing_until_it_is_back() {
    let origin = origin();
    let proxy = Proxy::under(OF_FILES)
        .file("sets.yaml", "sets: {closed: {ips: 192.0.2.0/24}}\n")
        .file(
            "rules.yaml",
            "- {name: closed, match: {set: closed}, block: true}\n",
        )
        .start();
    let sets = proxy.policy.with_file_name("sets.yaml");
    fs::remove_file(&sets).unwrap();
    proxy.diary("reload failed");
    assert_eq!(status(&proxy, &origin), 204);
    fs::write(&sets, "sets: {closed: {ips: 127.0.0.0/8}}\n").unwrap();
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 403);
}

#[test]
fn what_changes_beside_the_policy_does_not_hold_it_up() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    let log = proxy.policy.with_file_name("some.log");
    let (stop, is_over) = channel::<()>();
    let writer = std::thread::spawn(move || {
        let pause = Duration::from_millis(20);
        while is_over.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            fs::write(&log, "a line\n").unwrap();
        }
    });
    fs::write(&proxy.policy, BLOCK).unwrap();
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 403);
    drop(stop);
    writer.join().unwrap();
}

#[test]
fn a_bad_policy_changes_nothing_and_is_told() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    fs::write(&proxy.policy, "version: 1\ndefualt: {block: true}\n").unwrap();
    proxy.diary("the old one stays at work");
    let told = proxy.diary("policy.yaml:2:1: error: ");
    assert!(told.contains("`defualt`"), "{told}");
    assert_eq!(status(&proxy, &origin), 204);
    // So does one that fails its own tests, and one that is not there.
    let failing =
        format!("{BLOCK}tests: [{{connect: 'a.example:443', expect: {{action: direct}}}}]\n");
    fs::write(&proxy.policy, failing).unwrap();
    proxy.diaries("the old one stays at work", 2);
    assert_eq!(status(&proxy, &origin), 204);
    fs::remove_file(&proxy.policy).unwrap();
    proxy.diaries("the old one stays at work", 3);
    assert_eq!(status(&proxy, &origin), 204);
    fs::write(&proxy.policy, BLOCK).unwrap();
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 403);
}

#[test]
fn a_refused_policy_is_told_by_log_metrics_and_api_until_it_is_good() {
    let proxy = with_admin(Proxy::under(DIRECT)).start();
    let at = address(&proxy);
    until_metric(at, "routecause_policy_refused 0");
    assert_eq!(get(at, "/v1/status")["refused"], Value::Null);
    let first = get(at, "/v1/status")["policy"].clone();
    let refused = |expected: &'static str| {
        move |status: &Value| {
            let message = &status["refused"]["diagnostics"][0]["message"];
            message
                .as_str()
                .is_some_and(|message| message.contains(expected))
        }
    };
    // One with a mistake, and one that needs a restart.
    fs::write(&proxy.policy, "version: 1\ndefualt: {block: true}\n").unwrap();
    let status = until(at, "/v1/status", refused("`defualt`"));
    check!(&status["refused"]["diagnostics"][0], "severity": "error", "line": 2, "column": 1);
    assert_eq!(status["policy"], first, "the old one is at work");
    proxy.diary("reload failed: the policy is bad, the old one stays at work");
    until_metric(at, "routecause_policy_refused 1");
    until_metric(at, r#"routecause_reloads_total{result="bad"} 1"#);
    let (_, told, _) = run(routecause().args(["status", "--admin", &at.to_string()]));
    assert!(told.contains("refused    what stands there now"), "{told}");
    assert!(told.contains("policy.yaml:2:1: "), "{told}");
    let is_told_on = |page| {
        let (_, _, text) = ask(at, "GET", page, "", "");
        text.contains("is refused; the one before it is at work") && text.contains("`defualt`")
    };
    assert!(is_told_on("/") && is_told_on("/policy"));
    let (code, problem) = send(at, "POST", "/v1/policy/reload", "", &Value::Null);
    assert_eq!(code, 422);
    check!(&problem["diagnostics"][0], "line": 2);
    fs::write(&proxy.policy, format!("{BLOCK}server: {{name: other}}\n")).unwrap();
    let status = until(at, "/v1/status", refused("restart"));
    assert_eq!(status["policy"], first);
    until_metric(at, "routecause_policy_refused 1");
    fs::write(&proxy.policy, BLOCK).unwrap();
    // It is at work a moment before the refusal is forgotten.
    until(at, "/v1/status", |status| {
        status["policy"] != first && status["refused"].is_null()
    });
    until_metric(at, "routecause_policy_refused 0");
    assert!(!is_told_on("/"));
    until_metric(at, r#"routecause_reloads_total{result="good"} 1"#);
    // As it was is good as well.
    fs::write(&proxy.policy, "rules").unwrap();
    until_metric(at, "routecause_policy_refused 1");
    fs::write(&proxy.policy, BLOCK).unwrap();
    until_metric(at, "routecause_policy_refused 0");
}

#[test]
fn what_cannot_change_in_a_running_proxy_refuses_the_whole_policy() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    fs::write(&proxy.policy, format!("{BLOCK}server: {{name: other}}\n")).unwrap();
    let told = proxy.diary("reload refused");
    assert!(told.contains("restart"), "{told}");
    assert_eq!(status(&proxy, &origin), 204);
}

#[test]
fn who_may_use_it_can_change() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    fs::write(
        &proxy.policy,
        format!("{BLOCK}server: {{allow_from: [192.0.2.0/24]}}\n"),
    )
    .unwrap();
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 403);
}

#[test]
fn a_tunnel_goes_on_under_the_policy_that_it_began_with() {
    let origin = Origin::serving(|stream| {
        let heard = wire::read_exact(&stream, 5);
        wire::send(&stream, "world");
        String::from_utf8(heard).unwrap()
    });
    let proxy = Proxy::start(DIRECT);
    let client = proxy.connect();
    wire::send(
        &client,
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address),
    );
    assert!(wire::read_head(&client).starts_with("HTTP/1.1 200 "));
    fs::write(&proxy.policy, BLOCK).unwrap();
    proxy.diary("reloaded");
    wire::send(&client, "hello");
    assert_eq!(wire::read_text(&client), "world");
    assert_eq!(origin.heard(), "hello");
    drop(client);
    let record = proxy.record();
    assert_eq!(
        (&record["event.outcome"], &record["egress.route"]),
        (&"success".into(), &"direct".into())
    );
}

/// A tunnel to a name, over which something was said: the client's end, and the server's.
fn tunnel(proxy: &Proxy, host: &str, words: &[u8]) -> (TcpStream, TcpStream) {
    let origin = Listening::new();
    let client = proxy.connect();
    let port = origin.address.port();
    wire::send(
        &client,
        format!("CONNECT {host}:{port} HTTP/1.1\r\nProxy-Authorization: Basic YWxpY2U6\r\n\r\n"),
    );
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    let server = origin.accept();
    // What comes in two pieces is told as well.
    let (head, tail) = words.split_at(words.len() / 2);
    wire::send(&client, head);
    assert_eq!(wire::read_exact(&server, head.len()), head);
    wire::send(&client, tail);
    assert_eq!(wire::read_exact(&server, tail.len()), tail);
    (client, server)
}

/// Sees that a tunnel still carries bytes both ways.
fn is_open((client, server): &(TcpStream, TcpStream)) -> bool {
    wire::send(client, "ping");
    wire::send(server, "pong");
    wire::read_exact(server, 4) == b"ping" && wire::read_exact(client, 4) == b"pong"
}

const PINS: &str = "dns: {hosts: {a.test: 127.0.0.1, b.test: 127.0.0.1}}";

#[test]
fn a_tunnel_that_the_new_policy_refuses_is_cut_where_that_says_so() {
    let proxy = Proxy::start(&format!("{DIRECT}{PINS}\n"));
    let (client, server) = tunnel(&proxy, "a.test", b"hello");
    let spared = tunnel(&proxy, "b.test", b"hello");
    let rules = "rules:\n  - {name: gone, match: {host: a.test}, block: {reason: no more}}\n  \
                 - {name: noted, match: {host: b.test}, block: true, mode: report}\n";
    let policy = |on_reload: &str| {
        format!("version: 1\n{on_reload}{PINS}\n{rules}default: {{direct: true}}\n")
    };
    // Nothing is cut where nothing is said.
    proxy.replace("policy.yaml", &policy(""));
    let told = proxy.diary("reloaded");
    assert!(!told.contains("tunnels_cut"), "{told}");
    let kept = (client, server);
    assert!(is_open(&kept));
    let (client, server) = kept;
    proxy.replace("policy.yaml", &policy("on_reload: close_blocked\n"));
    proxy.diary("tunnels_cut=1");
    assert!(wire::is_reset(&client) && wire::is_reset(&server));
    let record = proxy.record();
    check!(&record,
        "event.outcome": "failure", "error.type": "tunnel.policy_changed", "egress.phase": "tunnel", "egress.side": "proxy",
        "server.address": "a.test", "egress.rule": "default", "source.bytes": 9, "destination.bytes": 4);
    let message = record["error.message"].as_str().unwrap();
    assert!(
        message.starts_with("a new policy cut the tunnel: rule gone blocks a.test:")
            && message.ends_with("policy.yaml:5): no more"),
        "{message}"
    );
    let hint = record["egress.hint"].as_str().unwrap();
    assert!(hint.starts_with("to allow it, add a rule above "), "{hint}");
    // The other one goes on, and a signal cuts nothing that is let out.
    proxy.signal(Signal::SIGHUP);
    proxy.diary("tunnels_cut=0");
    assert!(is_open(&spared));
    drop(spared);
    check!(&proxy.record(), "event.outcome": "success", "server.address": "b.test");
}

/// What a client of TLS says first that asks for `name`.
fn hello(name: &str) -> Vec<u8> {
    let client = tls::Client {
        name,
        trusts: &Ca::new(),
        versions: tls::BOTH,
    };
    client.hello()
}

#[test]
fn what_is_known_of_a_tunnel_decides_anew_and_what_is_not_spares_it() {
    let blocked = hello("www.blocked.test");
    let cases: &[(&str, &[u8], Option<&str>)] = &[
        ("default: {block: true}", b"", Some("the default blocks")),
        ("mode: report\ndefault: {block: true}", b"", None),
        // Another way out, but let out.
        (
            "upstreams: {corp: {url: 'http://127.0.0.1:9'}}\ndefault: {via: corp}",
            b"",
            None,
        ),
        (
            "guards: {loopback: block}\ndefault: {direct: true}",
            b"",
            Some("guards.loopback refuses the address of a.test:"),
        ),
        (
            "guards: {loopback: block}\nmode: report\ndefault: {direct: true}",
            b"",
            None,
        ),
        // An upstream may reach it by another.
        (
            "guards: {loopback: block}\nupstreams: {corp: {url: 'http://127.0.0.1:9'}}\ndefault: {via: 'corp|direct'}",
            b"",
            None,
        ),
        (
            "guards: {connect_ports: [443]}\ndefault: {direct: true}",
            b"",
            Some("guards.connect_ports refuses the port"),
        ),
        (
            "rules: [{name: near, match: {ip: 127.0.0.0/8, resolve: any}, block: true}]\ndefault: {direct: true}",
            b"",
            Some("rule near blocks a.test:"),
        ),
        (
            "rules: [{name: far, match: {ip: 192.0.2.0/24, resolve: any}, block: true}]\ndefault: {direct: true}",
            b"",
            None,
        ),
        (
            "rules: [{name: far, match: {ip: 192.0.2.0/24, resolve: all}, direct: true}]\ndefault: {block: true}",
            b"",
            Some("the default blocks"),
        ),
        // Its other addresses may lie elsewhere.
        (
            "rules: [{name: near, match: {ip: 127.0.0.0/8, resolve: all}, direct: true}]\ndefault: {block: true}",
            b"",
            None,
        ),
        (
            "rules: [{name: name, match: {sni: '*.blocked.test'}, block: true}]\ndefault: {direct: true}",
            &blocked,
            Some("rule name blocks a.test:"),
        ),
        (
            "guards: {sni_mismatch: block}\ndefault: {direct: true}",
            &blocked,
            Some("guards.sni_mismatch refuses"),
        ),
        (
            "rules: [{name: name, match: {sni: '*.blocked.test'}, block: true}]\ndefault: {direct: true}",
            b"",
            None,
        ),
        (
            "rules: [{name: name, match: {sni: '*.blocked.test'}, direct: true}]\ndefault: {block: true}",
            b"",
            None,
        ),
        (
            "rules: [{name: shell, match: {proto: ssh}, block: true}]\ndefault: {direct: true}",
            b"SSH-2.0-test\r\n",
            Some("rule shell blocks"),
        ),
        (
            "rules: [{name: shell, match: {proto: ssh}, direct: true}]\ndefault: {block: true}",
            b"EHLO a\r\n",
            Some("the default blocks"),
        ),
        (
            "rules: [{name: alice, match: {client: {user: alice}}, block: true}]\ndefault: {direct: true}",
            b"",
            Some("rule alice blocks"),
        ),
        (
            "clients: {roles: {near: {cidr: 127.0.0.0/8}}}\nrules: [{name: near, match: {client: {role: near}}, block: true}]\ndefault: {direct: true}",
            b"",
            Some("rule near blocks"),
        ),
        // Whether it was a user's name or a label is another question then.
        (
            "clients: {labels: username_suffix}\nrules: [{name: alice, match: {client: {user: alice}}, block: true}]\ndefault: {direct: true}",
            b"",
            None,
        ),
    ];
    let decide = |(policy, words, expected): &(&str, &[u8], Option<&str>)| {
        let proxy = Proxy::start(&format!("{DIRECT}{PINS}\n"));
        let open = tunnel(&proxy, "a.test", words);
        let new = format!("version: 1\non_reload: close_blocked\n{PINS}\n{policy}\n");
        proxy.replace("policy.yaml", &new);
        let Some(expected) = expected else {
            proxy.diary("tunnels_cut=0");
            // A word of the client's would be held against it.
            wire::send(&open.1, "pong");
            assert_eq!(wire::read_exact(&open.0, 4), b"pong", "{policy}");
            return;
        };
        proxy.diary("tunnels_cut=1");
        assert!(
            wire::is_reset(&open.0) && wire::is_reset(&open.1),
            "{policy}"
        );
        let record = proxy.record();
        check!(&record, "error.type": "tunnel.policy_changed");
        let message = record["error.message"].as_str().unwrap();
        assert!(message.contains(expected), "{policy}: {message}");
    };
    // Each waits for a file to be quiet.
    std::thread::scope(|scope| {
        for some in cases.chunks(5) {
            scope.spawn(move || some.iter().for_each(decide));
        }
    });
}

#[test]
fn a_tunnel_whose_client_may_not_come_any_more_is_cut() {
    let policy = |from: &str, more: &str| {
        format!(
            "version: 1\n{more}server: {{listen: [{{address: '127.0.0.1:0', proxy_protocol: [127.0.0.1]}}], allow_from: [{from}]}}\nguards: {{loopback: allow}}\nrules: []\ndefault: {{direct: true}}\n"
        )
    };
    let proxy = Proxy::under(&policy("192.0.2.0/24, 198.51.100.0/24", ""))
        .listening_as_written()
        .start();
    let open = |address: &str| {
        let (origin, client) = (Listening::new(), proxy.connect());
        let target = origin.address;
        wire::send(
            &client,
            format!(
                "PROXY TCP4 {address} 192.0.2.1 1234 3128\r\nCONNECT {target} HTTP/1.1\r\n\r\n"
            ),
        );
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        (client, origin.accept())
    };
    let (gone, spared) = (open("192.0.2.7"), open("198.51.100.7"));
    let new = policy("198.51.100.0/24", "on_reload: close_blocked\n");
    proxy.replace("policy.yaml", &new);
    proxy.diary("tunnels_cut=1");
    assert!(wire::is_reset(&gone.0) && wire::is_reset(&gone.1));
    let message = proxy.record()["error.message"].clone();
    assert_eq!(
        message,
        "a new policy cut the tunnel: client 192.0.2.7 is not in server.allow_from"
    );
    assert!(is_open(&spared));
}

#[test]
fn a_tunnel_whose_user_is_taken_out_is_cut() {
    let policy = |more: &str| {
        format!(
            "version: 1\n{more}{PINS}\nserver: {{auth: {{users: users.txt}}}}\ndefault: {{direct: true}}\n"
        )
    };
    let (alice, bob) = (user("alice", ""), user("bob", "old"));
    let proxy = Proxy::under(&policy("on_reload: close_blocked\n"))
        .file("users.txt", &format!("{alice}{bob}"))
        .start();
    let gone = tunnel(&proxy, "a.test", b"hello");
    let origin = Listening::new();
    let client = proxy.connect();
    let port = origin.address.port();
    let ask = format!(
        "CONNECT b.test:{port} HTTP/1.1\r\nProxy-Authorization: Basic Ym9iOm9sZA==\r\n\r\n"
    );
    wire::send(&client, ask);
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    let spared = (client, origin.accept());
    // Passwords are not asked for again.
    proxy.replace("users.txt", &user("bob", "new"));
    proxy.diary("tunnels_cut=1");
    assert!(wire::is_reset(&gone.0) && wire::is_reset(&gone.1));
    let record = proxy.record();
    check!(&record, "error.type": "tunnel.policy_changed", "user.name": "alice", "server.address": "a.test",
        "error.message": "a new policy cut the tunnel: the user is none of server.auth any more");
    assert!(is_open(&spared));
}

/// A tunnel over which nothing was said, by a request without credentials.
fn silent(proxy: &Proxy, host: &str) -> (TcpStream, TcpStream) {
    let (origin, client) = (Listening::new(), proxy.connect());
    let port = origin.address.port();
    wire::send(&client, format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n"));
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    (client, origin.accept())
}

#[test]
fn what_is_said_behind_the_change_is_held_against_it() {
    let proxy = Proxy::start(&format!("{DIRECT}{PINS}\n"));
    let (late, other) = (silent(&proxy, "a.test"), silent(&proxy, "b.test"));
    let policy = |more: &str| {
        format!(
            "version: 1\n{more}{PINS}\ndefaults: {{timeouts: {{sniff: 50ms}}}}\nrules: [{{name: name, match: {{sni: '*.blocked.test'}}, block: true}}]\ndefault: {{direct: true}}\n"
        )
    };
    proxy.replace("policy.yaml", &policy("on_reload: close_blocked\n"));
    proxy.diary("tunnels_cut=0");
    // One that was silent under the very policy is as it was let out.
    let own = silent(&proxy, "a.test");
    let blocked = hello("www.blocked.test");
    let (head, tail) = blocked.split_at(blocked.len() / 2);
    for (client, server) in [&late, &own] {
        wire::send(client, head);
        assert_eq!(wire::read_exact(server, head.len()), head);
        wire::send(client, tail);
    }
    assert!(wire::is_reset(&late.0));
    let record = proxy.record();
    check!(&record, "error.type": "tunnel.policy_changed", "server.address": "a.test");
    let message = record["error.message"].as_str().unwrap();
    assert!(message.contains("rule name blocks a.test:"), "{message}");
    assert_eq!(wire::read_exact(&own.1, tail.len()), tail);
    assert!(is_open(&own));
    let fine = hello("www.fine.test");
    wire::send(&other.0, &fine);
    assert_eq!(wire::read_exact(&other.1, fine.len()), fine);
    assert!(is_open(&other));
}

#[test]
fn what_is_said_behind_a_change_that_keeps_cuts_nothing() {
    let proxy = Proxy::start(&format!("{DIRECT}{PINS}\n"));
    let open = silent(&proxy, "a.test");
    let rules = "rules: [{name: shell, match: {proto: ssh}, block: true}]";
    proxy.replace(
        "policy.yaml",
        &format!("version: 1\n{PINS}\n{rules}\ndefault: {{direct: true}}\n"),
    );
    proxy.diary("reloaded");
    let words = b"SSH-2.0-test\r\n";
    wire::send(&open.0, words);
    assert_eq!(wire::read_exact(&open.1, words.len()), words);
    assert!(is_open(&open));
}

#[test]
fn what_is_said_while_a_hop_is_tried_is_held_against_the_change() {
    let policy = |more: &str| {
        format!(
            "version: 1\n{more}upstreams: {{corp: {{url: 'http://127.0.0.1:9'}}}}\n{PINS}\ndefault: {{via: 'direct|corp'}}\n"
        )
    };
    let proxy = Proxy::start(&policy(""));
    let (late, spared) = (silent(&proxy, "a.test"), silent(&proxy, "a.test"));
    let rules = "rules: [{name: shell, match: {proto: ssh}, block: true}]\n";
    proxy.replace(
        "policy.yaml",
        &policy(&format!("on_reload: close_blocked\n{rules}")),
    );
    proxy.diary("tunnels_cut=0");
    wire::send(&late.0, "SSH-2.0-test\r\n");
    assert!(wire::is_reset(&late.0));
    let words = b"EHLO a\r\n";
    wire::send(&spared.0, words);
    assert_eq!(wire::read_exact(&spared.1, words.len()), words);
    check!(&proxy.record(), "error.type": "tunnel.policy_changed");
    assert!(is_open(&spared));
}

#[test]
fn where_labels_come_from_matters_to_no_tunnel_whose_client_gave_no_name() {
    let roles = "roles: {near: {cidr: 127.0.0.0/8}}";
    let proxy = Proxy::start(&format!("{DIRECT}{PINS}\nclients: {{{roles}}}\n"));
    let open = silent(&proxy, "a.test");
    let named = tunnel(&proxy, "a.test", b"hello");
    let new = format!(
        "version: 1\non_reload: close_blocked\n{PINS}\nclients: {{labels: username_suffix, {roles}}}\n\
         rules: [{{name: near, match: {{client: {{role: near}}}}, block: true}}]\ndefault: {{direct: true}}\n"
    );
    proxy.replace("policy.yaml", &new);
    proxy.diary("tunnels_cut=1");
    assert!(wire::is_reset(&open.0) && wire::is_reset(&open.1));
    check!(&proxy.record(), "error.type": "tunnel.policy_changed", "egress.client.role": ["near"]);
    assert!(is_open(&named));
}

#[test]
fn a_tunnel_that_comes_to_stand_behind_the_change_does_not_slip_through() {
    let upstream = Listening::new();
    let through = |on_reload: &str, rules: &str| {
        format!(
            "version: 1\n{on_reload}upstreams: {{corp: {{url: 'http://{}'}}}}\nrules: [{rules}]\ndefault: {{via: corp}}\n",
            upstream.address
        )
    };
    let proxy = Proxy::start(&through("", ""));
    let ask = |host: &str| {
        let client = proxy.connect();
        wire::send(&client, format!("CONNECT {host}:443 HTTP/1.1\r\n\r\n"));
        let server = upstream.accept();
        wire::read_head(&server);
        (client, server)
    };
    let (late, spared) = (ask("a.test"), ask("b.test"));
    proxy.replace(
        "policy.yaml",
        &through(
            "on_reload: close_blocked\n",
            "{name: gone, match: {host: a.test}, block: true}",
        ),
    );
    // Neither is open yet: both keep the policy that they began with.
    proxy.diary("tunnels_cut=0");
    for (client, server) in [&late, &spared] {
        wire::send(server, "HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(wire::status(&wire::read_head(client)), 200);
    }
    assert!(wire::is_reset(&late.0) && wire::is_reset(&late.1));
    let record = proxy.record();
    check!(&record, "error.type": "tunnel.policy_changed", "server.address": "a.test", "source.bytes": 0);
    assert!(is_open(&spared));
}

#[test]
fn what_a_rule_had_seen_of_a_late_tunnel_is_known_to_the_new_policy() {
    let upstream = Listening::new();
    let through = |more: &str| {
        format!(
            "version: 1\ndefaults: {{timeouts: {{sniff: 5s}}}}\nupstreams: {{corp: {{url: 'http://{}'}}}}\n{more}default: {{via: corp}}\n",
            upstream.address
        )
    };
    let proxy = Proxy::start(&through(
        "rules: [{name: look, match: {proto: ssh}, via: corp}]\n",
    ));
    let client = proxy.connect();
    wire::send(&client, "CONNECT a.test:22 HTTP/1.1\r\n\r\n");
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    wire::send(&client, "SSH-2.0-test\r\n");
    let server = upstream.accept();
    wire::read_head(&server);
    proxy.replace(
        "policy.yaml",
        &through(
            "on_reload: close_blocked\nrules: [{name: shell, match: {proto: ssh}, block: true}]\n",
        ),
    );
    proxy.diary("tunnels_cut=0");
    wire::send(&server, "HTTP/1.1 200 OK\r\n\r\n");
    assert!(wire::is_reset(&client) && wire::is_reset(&server));
    let record = proxy.record();
    check!(&record, "error.type": "tunnel.policy_changed", "source.bytes": 0);
    let message = record["error.message"].as_str().unwrap();
    assert!(
        message.contains("rule shell blocks a.test:22 by its handshake"),
        "{message}"
    );
}

#[test]
fn a_tunnel_whose_hop_may_still_change_is_cut_before_it_speaks() {
    let origin = Listening::new();
    let policy = |more: &str, rules: &str| {
        format!(
            "version: 1\n{more}upstreams: {{corp: {{url: 'http://127.0.0.1:9'}}}}\n{PINS}\nrules: [{rules}]\ndefault: {{via: 'direct|corp'}}\n"
        )
    };
    let proxy = Proxy::start(&policy("", ""));
    let open = |host: &str| {
        let client = proxy.connect();
        let port = origin.address.port();
        wire::send(&client, format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n"));
        assert_eq!(wire::status(&wire::read_head(&client)), 200);
        (client, origin.accept())
    };
    let (silent, spared) = (open("a.test"), open("b.test"));
    proxy.replace(
        "policy.yaml",
        &policy(
            "on_reload: close_blocked\n",
            "{name: gone, match: {host: a.test}, block: true}",
        ),
    );
    proxy.diary("tunnels_cut=1");
    assert!(wire::is_reset(&silent.0) && wire::is_reset(&silent.1));
    check!(&proxy.record(), "error.type": "tunnel.policy_changed", "server.address": "a.test");
    assert!(is_open(&spared));
}

#[test]
fn what_an_upgrade_began_with_is_known_no_more() {
    let upgraded = |policy: &str| {
        let (origin, proxy) = (Listening::new(), Proxy::start(DIRECT));
        let client = proxy.connect();
        let target = origin.address;
        wire::send(
            &client,
            format!(
                "GET http://{target}/chat HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            ),
        );
        let server = origin.accept();
        wire::read_head(&server);
        let agreed =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        wire::send(&server, agreed);
        assert_eq!(wire::status(&wire::read_head(&client)), 101);
        let open = (client, server);
        assert!(is_open(&open));
        let new = format!("version: 1\non_reload: close_blocked\n{policy}\n");
        proxy.replace("policy.yaml", &new);
        (proxy, open)
    };
    let (proxy, open) = upgraded("default: {block: true}");
    proxy.diary("tunnels_cut=1");
    assert!(wire::is_reset(&open.0) && wire::is_reset(&open.1));
    let path = "rules: [{name: chat, match: {path: /chat}, direct: true}]";
    let (proxy, open) = upgraded(&format!("{path}\ndefault: {{block: true}}"));
    proxy.diary("tunnels_cut=0");
    assert!(is_open(&open));
}

#[test]
fn a_policy_that_is_applied_tells_how_many_tunnels_it_cut() {
    let proxy = with_admin(Proxy::under(&format!("{DIRECT}{PINS}\n"))).start();
    let at = address(&proxy);
    let (client, server) = tunnel(&proxy, "a.test", b"hello");
    let put = |policy: &str| {
        let body = serde_json::json!({ "policy": policy });
        send(at, "PUT", "/v1/policy", "if-match: *\r\n", &body)
    };
    let (status, applied) = put(BLOCK);
    assert_eq!((status, &applied["tunnels_cut"]), (200, &Value::Null));
    let (status, applied) = put(&format!("{BLOCK}on_reload: close_blocked\n"));
    assert_eq!(status, 200, "{applied}");
    check!(&applied, "tunnels_cut": 1);
    assert!(wire::is_reset(&client) && wire::is_reset(&server));
    check!(&proxy.record(), "error.type": "tunnel.policy_changed");
}

#[test]
fn a_kept_connection_serves_nothing_that_the_new_policy_denies() {
    let origin = Origin::serving(|stream| {
        let mut heard = String::new();
        loop {
            // Ended by the proxy, some time after the reload.
            let mut head = [0; 1024];
            match std::io::Read::read(&mut &stream, &mut head) {
                Ok(len) if len > 0 => heard += &String::from_utf8_lossy(&head[..len]),
                _ => return heard,
            }
            wire::send(&stream, "HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    let proxy = Proxy::start(DIRECT);
    // One client connection for all: it too is older than the policy.
    let client = proxy.connect();
    let ask = || {
        let address = origin.address;
        wire::send(
            &client,
            format!("GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\n\r\n"),
        );
        wire::read_head(&client)[9..12].to_owned()
    };
    assert_eq!(ask(), "204");
    assert_eq!(ask(), "204");
    fs::write(&proxy.policy, BLOCK).unwrap();
    proxy.diary("reloaded");
    assert_eq!(ask(), "403");
    let reused: Vec<_> = proxy
        .records(3)
        .iter()
        .map(|record| record["egress.attempts"][0]["reused"] == true)
        .collect();
    assert_eq!(reused, [false, true, false]);
    drop(proxy);
    assert_eq!(origin.heard().matches("GET ").count(), 2);
}

#[test]
fn no_request_is_dropped_while_policies_come_and_go() {
    const REQUESTS: usize = 400;
    const TURNS: usize = 10;
    let proxy = Arc::new(Proxy::start(DIRECT));
    let served = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (proxy, served) = (proxy.clone(), served.clone());
            std::thread::spawn(move || {
                let origin = origin();
                while served.fetch_add(1, Ordering::Relaxed) < REQUESTS {
                    assert_eq!(status(&proxy, &origin), 204);
                }
            })
        })
        .collect();
    let other = format!("{DIRECT}# the same in other words\n");
    for turn in 0..TURNS {
        while served.load(Ordering::Relaxed) < REQUESTS / TURNS * turn {
            std::thread::yield_now();
        }
        let policy = if turn % 2 == 0 { &other } else { DIRECT };
        let new = proxy.policy.with_file_name("new");
        fs::write(&new, policy).unwrap();
        fs::rename(&new, &proxy.policy).unwrap();
        proxy.signal(Signal::SIGHUP);
        proxy.diaries("reloaded", turn + 1);
    }
    for client in clients {
        client.join().unwrap();
    }
    let proxy = Arc::into_inner(proxy).unwrap();
    let (_, records) = proxy.stop();
    let well = records
        .iter()
        .filter(|record| record["event.outcome"] == "success");
    assert_eq!((well.count(), records.len()), (REQUESTS, REQUESTS));
    let hashes: BTreeSet<_> = records
        .iter()
        .map(|record| record["egress.policy"].as_str().unwrap())
        .collect();
    assert_eq!(hashes.len(), 2);
}

#[test]
fn an_embedded_policy_stays_on_a_signal() {
    let origin = origin();
    let proxy = Proxy::embedded().start();
    assert_eq!(status(&proxy, &origin), 204);
    proxy.signal(Signal::SIGHUP);
    proxy.diary("reloaded");
    assert_eq!(status(&proxy, &origin), 204);
}

#[test]
fn a_policy_that_is_written_slowly_is_taken_whole() {
    let origin = origin();
    let proxy = Proxy::start(DIRECT);
    // The first two lines would be a policy of their own, which is not meant.
    let lines = [
        "version: 1\n",
        "default: {block: {reason: 'half'}}\n",
        "rules:\n",
        "  - {name: here, match: {ip: 127.0.0.0/8}, direct: true}\n",
        "  - {name: there, match: {host: a.example}, direct: true}\n",
    ];
    fs::write(&proxy.policy, "").unwrap();
    for line in lines {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&proxy.policy)
            .unwrap();
        std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
        drop(file);
        // Shorter than a file must be quiet for.
        std::thread::sleep(Duration::from_millis(60));
    }
    // What it is read as on the way depends on how fast this machine is.
    let deadline = Instant::now() + SOON;
    loop {
        let status = status(&proxy, &origin);
        if proxy.record()["egress.rule"] == "here" {
            assert_eq!(status, 204);
            return;
        }
        assert!(Instant::now() < deadline);
    }
}
