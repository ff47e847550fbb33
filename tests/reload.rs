//! A policy that changes while the proxy runs: what decides the next request, and what goes on undisturbed.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::admin::{address, ask, get, send, until, until_metric, with_admin};
use support::origin::Origin;
use support::{DIRECT, Proxy, SOON, check, routecause, run, wire};

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
    let status = until(at, "/v1/status", |status| status["policy"] != first);
    assert_eq!(status["refused"], Value::Null);
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
