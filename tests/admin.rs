//! What the proxy tells of itself while it runs, and what can be changed then.

mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::admin::{self, ask, get, send, until, until_metric};
use support::origin::{Listening, Origin};
use support::{DIRECT, Proxy, check, needs, routecause, run, run_within, wire};

const POLICY: &str = "version: 1
dns: {hosts: {a.test: [127.0.0.1], b.test: [127.0.0.1]}}
rules:
  - {name: closed, match: {host: closed.test}, block: true}
  - {name: shadowed, match: {host: closed.test}, direct: true}
default: {direct: true}
";

fn start(policy: &str) -> (Proxy, SocketAddr) {
    let proxy = admin::with_admin(Proxy::under(policy)).start();
    let at = admin::address(&proxy);
    (proxy, at)
}

/// Asks for a URL; the status.
fn fetch(proxy: &Proxy, url: &str) -> u16 {
    let client = proxy.connect();
    let host = url.trim_start_matches("http://").split('/').next().unwrap();
    wire::send(
        &client,
        format!("GET {url} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
    );
    wire::status(&wire::read_answer(&client).0)
}

/// A tunnel to `host`, with both its ends.
fn tunnel(proxy: &Proxy, host: &str) -> (TcpStream, TcpStream) {
    let origin = Listening::new();
    let client = proxy.connect();
    let port = origin.address.port();
    wire::send(&client, format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n"));
    assert_eq!(wire::status(&wire::read_head(&client)), 200);
    (client, origin.accept())
}

fn good() -> Origin {
    Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
}

#[test]
fn metrics_count_requests_failures_and_tunnels() {
    let (proxy, at) = start(POLICY);
    let port = good().address.port();
    assert_eq!(fetch(&proxy, &format!("http://a.test:{port}/")), 200);
    assert_eq!(fetch(&proxy, "http://closed.test/"), 403);
    let nowhere = Origin::nowhere().port();
    assert_eq!(fetch(&proxy, &format!("http://b.test:{nowhere}/")), 502);
    let ends = tunnel(&proxy, "a.test");
    for line in [
        r#"routecause_requests_total{route="direct",rule="default",outcome="success"} 1"#,
        r#"routecause_requests_total{route="direct",rule="default",outcome="failure"} 1"#,
        r#"routecause_requests_total{route="none",rule="closed",outcome="denied"} 1"#,
        r#"routecause_failures_total{cause="connect.refused",phase="connect",side="origin",route="direct"} 1"#,
        "routecause_tunnels_open 1",
        "routecause_connections_open 1",
    ] {
        until_metric(at, line);
    }
    wire::send(&ends.0, "twelve bytes");
    wire::read_exact(&ends.1, 12);
    drop(ends);
    until_metric(at, "routecause_tunnels_open 0");
    let text = until_metric(
        at,
        r#"routecause_transferred_bytes_total{direction="up"} 12"#,
    );
    assert!(!text.contains(".test"), "a host is named:\n{text}");
    let (_, head, _) = ask(at, "GET", "/metrics", "", "");
    let kind = wire::field(&head, "content-type").unwrap();
    assert!(
        kind.starts_with("application/openmetrics-text; version=1.0.0"),
        "{kind}"
    );
}

#[test]
fn the_hosts_that_fail_most_are_named_only_on_demand() {
    let proxy = admin::with_admin(Proxy::under(POLICY))
        .arg("--metrics-hosts")
        .arg("1")
        .start();
    let at = admin::address(&proxy);
    for host in ["closed.test", "closed.test", "a.test"] {
        let port = Origin::nowhere().port();
        fetch(&proxy, &format!("http://{host}:{port}/"));
    }
    let text = until_metric(
        at,
        r#"routecause_host_recent_failures{host="closed.test"} 2"#,
    );
    assert!(!text.contains("a.test"), "{text}");
}

#[test]
fn records_are_found_and_each_has_its_timeline() {
    let (proxy, at) = start(POLICY);
    let port = good().address.port();
    fetch(&proxy, &format!("http://a.test:{port}/"));
    fetch(&proxy, "http://closed.test/");
    let nowhere = Origin::nowhere().port();
    fetch(&proxy, &format!("http://b.test:{nowhere}/"));
    let count = |value: &Value| value["records"].as_array().unwrap().len();
    until(at, "/v1/records", |all| count(all) == 3);
    for (query, hosts) in [
        ("", &["b.test", "closed.test", "a.test"][..]),
        ("?limit=1", &["b.test"]),
        ("?outcome=success", &["a.test"]),
        ("?outcome=failure", &["b.test", "closed.test"]),
        ("?outcome=denied", &["closed.test"]),
        ("?cause=connect", &["b.test"]),
        (
            "?cause=connect.refused&host=*.test&client=127.0.0.0/8",
            &["b.test"],
        ),
        ("?host=A.TEST", &["a.test"]),
        ("?client=192.0.2.1", &[]),
        ("?since=2100-01-01T00:00:00Z", &[]),
        (
            "?until=2100-01-01T00:00:00Z&limit=2",
            &["b.test", "closed.test"],
        ),
    ] {
        let found = get(at, &format!("/v1/records{query}"));
        let found: Vec<_> = found["records"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["server.address"].as_str().unwrap())
            .collect();
        assert_eq!(found, hosts, "{query}");
    }
    for query in [
        "?limit=0",
        "?limit=many",
        "?outcome=odd",
        "?since=yesterday",
        "?client=x",
        "?host=[",
        "?nonsense=1",
        "?history=true",
    ] {
        let (status, head, body) = ask(at, "GET", &format!("/v1/records{query}"), "", "");
        assert!(matches!(status, 400 | 409), "{query}: {status} {body}");
        assert_eq!(
            wire::field(&head, "content-type"),
            Some("application/problem+json")
        );
    }
    let record = proxy.records(3).remove(2);
    let id = record["event.id"].as_str().unwrap();
    let told = get(at, &format!("/v1/records/{id}"));
    assert_eq!(told["record"], record);
    let timeline = told["timeline"].as_array().unwrap();
    check!(timeline.last().unwrap(), "phase": "connect", "is_cut": true);
    for id in ["nonsense", "01a1fee3-45a3-7398-82cb-c88b00e3b995"] {
        assert_eq!(ask(at, "GET", &format!("/v1/records/{id}"), "", "").0, 404);
    }
    let troubles = get(at, "/v1/troubles");
    check!(&troubles["troubles"][0], "host": "b.test", "cause": "connect.refused", "count": 1, "record": (json!(id)));
    assert_eq!(get(at, "/v1/suspects?host=b.test"), json!({"suspects": []}));
}

/// An event of a stream: its name and its data.
fn event(stream: &mut impl std::io::BufRead) -> (String, Value) {
    let (mut name, mut data) = (String::new(), Value::Null);
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended");
        let line = line.trim_end();
        if let Some(text) = line.strip_prefix("event: ") {
            text.clone_into(&mut name);
        } else if let Some(text) = line.strip_prefix("data: ") {
            data = serde_json::from_str(text).unwrap();
        } else if line.is_empty() && !name.is_empty() {
            return (name, data);
        }
    }
}

/// Follows the stream.
fn follow(at: SocketAddr, query: &str) -> TcpStream {
    let stream = wire::connect(at);
    wire::send(
        &stream,
        format!("GET /v1/stream{query} HTTP/1.1\r\nhost: {at}\r\n\r\n"),
    );
    assert_eq!(wire::status(&wire::read_head(&stream)), 200);
    stream
}

#[test]
fn records_are_told_as_they_come_to_whom_they_concern() {
    let (proxy, at) = start(POLICY);
    let mut all = BufReader::new(follow(at, ""));
    let mut denied = BufReader::new(follow(at, "?outcome=denied"));
    let port = good().address.port();
    fetch(&proxy, &format!("http://a.test:{port}/"));
    fetch(&proxy, "http://closed.test/");
    let records = proxy.records(2);
    assert_eq!(event(&mut all), ("record".to_owned(), records[0].clone()));
    assert_eq!(event(&mut all), ("record".to_owned(), records[1].clone()));
    assert_eq!(
        event(&mut denied),
        ("record".to_owned(), records[1].clone())
    );
}

#[test]
fn a_slow_reader_of_the_stream_holds_up_nobody_and_is_told_what_it_missed() {
    let (proxy, at) = start(POLICY);
    let slow = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    slow.set_recv_buffer_size(4096).unwrap();
    slow.connect(&at.into()).unwrap();
    let slow = TcpStream::from(slow);
    slow.set_read_timeout(Some(support::SOON)).unwrap();
    wire::send(
        &slow,
        format!("GET /v1/stream HTTP/1.1\r\nhost: {at}\r\n\r\n"),
    );
    wire::read_head(&slow);
    let client = proxy.connect();
    // More than the buffers of the connection and of the follower hold.
    let count = 6000;
    for _ in 0..count {
        wire::send(
            &client,
            "GET http://closed.test/ HTTP/1.1\r\nhost: closed.test\r\n\r\n",
        );
        assert_eq!(wire::status(&wire::read_answer(&client).0), 403);
    }
    until_metric(
        at,
        &format!(
            r#"routecause_requests_total{{route="none",rule="closed",outcome="denied"}} {count}"#
        ),
    );
    let mut slow = BufReader::new(slow);
    let missed = loop {
        if let (name, data) = event(&mut slow)
            && name == "dropped"
        {
            break data["dropped"].as_u64().unwrap();
        }
    };
    assert!((1..count).contains(&missed), "{missed}");
    until_metric(
        at,
        &format!(r#"routecause_records_dropped_total{{sink="stream"}} {missed}"#),
    );
    assert_eq!(proxy.records(6000).len(), 6000);
}

#[test]
fn an_open_tunnel_is_listed_and_can_be_cut() {
    let (proxy, at) = start(POLICY);
    let (client, server) = tunnel(&proxy, "a.test");
    let (spared, _other) = tunnel(&proxy, "b.test");
    wire::send(&client, "hello");
    wire::read_exact(&server, 5);
    let listed = until(at, "/v1/tunnels", |all| {
        let tunnels = all["tunnels"].as_array().unwrap();
        tunnels.len() == 2 && tunnels[0]["up"] == 5
    });
    let first = &listed["tunnels"][0];
    check!(first, "rule": "default", "route": "direct", "up": 5, "down": 0);
    assert_eq!(first["client"], client.local_addr().unwrap().to_string());
    assert!(
        first["target"].as_str().unwrap().starts_with("a.test:"),
        "{first}"
    );
    let id = first["id"].as_str().unwrap();
    let path = format!("/v1/tunnels/{id}");
    assert_eq!(ask(at, "DELETE", &path, "", "").0, 204);
    assert!(wire::is_reset(&client) && wire::is_reset(&server));
    let record = proxy.record();
    check!(&record, "event.id": (json!(id)), "error.type": "tunnel.killed", "egress.side": "proxy", "source.bytes": 5);
    assert_eq!(ask(at, "DELETE", &path, "", "").0, 404);
    assert_eq!(
        get(at, "/v1/tunnels")["tunnels"].as_array().unwrap().len(),
        1
    );
    drop(spared);
}

#[test]
fn a_policy_is_applied_whole_or_not_at_all() {
    let (proxy, at) = start(POLICY);
    let (_, head, body) = ask(at, "GET", "/v1/policy", "", "");
    let tag = wire::field(&head, "etag").unwrap().to_owned();
    let policy: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(tag, format!("\"{}\"", policy["hash"].as_str().unwrap()));
    let names: Vec<_> = policy["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["closed", "shadowed", "default"]);
    check!(&policy["rules"][0], "action": "block", "mode": "enforce", "hits": 0);
    let finding = policy["rules"][1]["findings"][0].as_str().unwrap();
    assert!(finding.contains("can never decide"), "{finding}");
    let other = "version: 1\nrules: []\ndefault: {block: true}\n";
    let body = json!({"policy": other});
    let put = |fields: &str, body: &Value| send(at, "PUT", "/v1/policy", fields, body);
    assert_eq!(put("", &body).0, 428);
    assert_eq!(put("if-match: \"000000000000\"\r\n", &body).0, 412);
    let matching = format!("if-match: {tag}\r\n");
    let (status, told) = put(
        &matching,
        &json!({"policy": "version: 1\nrulez: []\ndefault: {block: true}\n"}),
    );
    assert_eq!(status, 422);
    check!(&told["diagnostics"][0], "line": 2, "column": 1, "help": "did you mean `rules`?");
    let (status, told) = put(
        &matching,
        &json!({"policy": "version: 1\nserver: {name: other}\ndefault: {block: true}\n"}),
    );
    assert_eq!(status, 409, "{told}");
    assert_eq!(get(at, "/v1/policy")["hash"], policy["hash"]);
    let (status, told) = put(&matching, &body);
    assert_eq!(status, 200, "{told}");
    assert_ne!(told["hash"], policy["hash"]);
    let port = good().address.port();
    assert_eq!(fetch(&proxy, &format!("http://a.test:{port}/")), 403);
    let hits = |policy: &Value| policy["rules"][0]["hits"] == 1;
    until(at, "/v1/policy", hits);
    assert_eq!(put("if-match: *\r\n", &body).0, 200);
    // The file is as it was.
    let (status, told) = send(at, "POST", "/v1/policy/reload", "", &json!(null));
    assert_eq!((status, &told["hash"]), (200, &policy["hash"]));
    let port = good().address.port();
    assert_eq!(fetch(&proxy, &format!("http://a.test:{port}/")), 200);
    until_metric(at, r#"routecause_reloads_total{result="good"} 3"#);
    until_metric(at, r#"routecause_reloads_total{result="bad"} 2"#);
    let check = |policy: &str| {
        send(
            at,
            "POST",
            "/v1/policy/check",
            "",
            &json!({"policy": policy}),
        )
    };
    check!(&check(other).1, "is_usable": true, "diagnostics": [], "tests": []);
    let tested =
        format!("{other}tests: [{{connect: \"x.test:443\", expect: {{action: direct}}}}]\n");
    let (_, told) = check(&tested);
    check!(&told, "is_usable": false);
    check!(&told["tests"][0], "passed": false);
}

#[test]
fn a_policy_that_comes_without_a_token_names_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let naming = |place: &str| {
        json!({"policy": format!(
            "version: 1\nupstreams: {{corp: {{url: 'http://127.0.0.1:9', auth: {{username: {{env: HOME}}, \
             password: {place}}}}}}}\nrules: []\ndefault: {{via: corp}}\n"
        )})
    };
    let command = format!("{{command: [touch, {}]}}", mark.display());
    let file = format!("{{file: {}}}", secret.display());
    let put = |at: SocketAddr, fields: &str, place: &str| {
        let fields = format!("if-match: *\r\n{fields}");
        send(at, "PUT", "/v1/policy", &fields, &naming(place))
    };
    let (proxy, at) = start(POLICY);
    for place in [&command, &file, "{env: PATH}"] {
        let (status, told) = put(at, "", place);
        assert_eq!(status, 422, "{place}: {told}");
        assert_eq!(told["diagnostics"].as_array().unwrap().len(), 2, "{told}");
        let help = told["diagnostics"][1]["help"].as_str().unwrap();
        assert!(help.contains("--admin-token-file"), "{help}");
    }
    assert!(!mark.exists());
    drop(proxy);
    let proxy = admin::with_admin(Proxy::under(POLICY))
        .env("ROUTECAUSE_ADMIN_TOKEN", "open-sesame")
        .start();
    let (status, told) = put(
        admin::address(&proxy),
        "authorization: Bearer open-sesame\r\n",
        &file,
    );
    assert_eq!(status, 200, "{told}");
}

#[test]
fn the_policy_at_work_explains_itself() {
    let (_proxy, at) = start(POLICY);
    let told = get(at, "/v1/explain?target=http://closed.test/");
    check!(&told["decision"], "action": "block", "rule": "closed");
    let told = get(
        at,
        "/v1/explain?target=a.test:443&client=127.0.0.2&sni=b.test",
    );
    check!(&told["decision"], "action": "direct", "rule": "default");
    for query in [
        "",
        "?target=",
        "?target=ftp://x/",
        "?target=a.test:443&client=x",
        "?target=a.test:443&listener=x",
    ] {
        assert_eq!(
            ask(at, "GET", &format!("/v1/explain{query}"), "", "").0,
            400,
            "{query}"
        );
    }
}

#[test]
fn a_drained_upstream_is_passed_over_until_it_is_enabled() {
    // Its connections are kept.
    let corp = Origin::serving(|mut stream| {
        let head = wire::read_head(&stream);
        wire::send(&stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.read(&mut [0]);
        head
    });
    let policy = format!(
        "version: 1\nupstreams: {{corp: {{url: \"http://{}\"}}}}\n\
         rules: [{{name: all, match: {{domain: test}}, via: \"corp|direct\"}}]\n\
         dns: {{hosts: {{a.test: [127.0.0.1]}}}}\ndefault: {{direct: true}}\n",
        corp.address
    );
    let (proxy, at) = start(&policy);
    let origin = good().address.port();
    let url = format!("http://a.test:{origin}/");
    let hop = || proxy.record()["egress.hop"].clone();
    assert_eq!((fetch(&proxy, &url), hop()), (200, json!("corp")));
    let (status, told) = send(at, "POST", "/v1/upstreams/corp/drain", "", &json!(null));
    assert_eq!((status, &told["state"]), (200, &json!("drained")));
    until_metric(at, r#"routecause_upstream_up{upstream="corp"} 0"#);
    assert_eq!(fetch(&proxy, &url), 200);
    let record = proxy.record();
    check!(&record, "egress.hop": "direct");
    check!(&record["egress.attempts"][0], "hop": "corp", "cause": "upstream.drained");
    send(at, "POST", "/v1/upstreams/corp/enable", "", &json!(null));
    assert_eq!((fetch(&proxy, &url), hop()), (200, json!("corp")));
    let told = get(at, "/v1/upstreams");
    let turns: Vec<_> = told["upstreams"][0]["turns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|turn| turn["to"].as_str().unwrap())
        .collect();
    assert_eq!(turns, ["drained", "up"]);
    assert_eq!(
        send(at, "POST", "/v1/upstreams/none/drain", "", &json!(null)).0,
        404
    );
}

#[test]
fn faults_are_listed_with_their_hits() {
    let (proxy, at) = start(
        "version: 1\ndns: {hosts: {f.test: [127.0.0.1]}}\nfaults: {f: {at: connect, do: refuse, when: {first: 1}}}\n\
         rules: [{name: struck, match: {host: f.test}, fault: f, direct: true}]\ndefault: {direct: true}\n",
    );
    let status = || fetch(&proxy, &format!("http://f.test:{}/", good().address.port()));
    assert_eq!((status(), status()), (502, 200));
    check!(&get(at, "/v1/faults")["faults"][0], "name": "f", "met": 2, "hits": 1);
    let (_, told) = send(at, "POST", "/v1/faults/reset", "", &json!(null));
    check!(&told["faults"][0], "met": 0, "hits": 0);
    assert_eq!((status(), status()), (502, 200));
}

#[test]
fn the_diary_says_as_much_as_is_wanted() {
    let (proxy, at) = start(DIRECT);
    assert_eq!(get(at, "/v1/log-level"), json!({"filter": "info"}));
    let set = |filter: &str| send(at, "PUT", "/v1/log-level", "", &json!({"filter": filter})).0;
    assert_eq!(
        (set("off"), set("info,routecause=nonsense"), set("warn")),
        (200, 400, 200)
    );
    assert_eq!(get(at, "/v1/log-level"), json!({"filter": "warn"}));
    assert_eq!(
        send(at, "PUT", "/v1/log-level", "", &json!({"level": "warn"})).0,
        400
    );
    assert_eq!(
        ask(at, "PUT", "/v1/log-level", "", "{\"filter\": \"warn\"}").0,
        415
    );
    assert!(proxy.stop().0.success());
}

#[test]
fn it_is_ready_until_its_end_begins() {
    let (mut proxy, at) = start(POLICY);
    let (client, server) = tunnel(&proxy, "a.test");
    assert_eq!(ask(at, "GET", "/healthz", "", "").0, 200);
    assert_eq!(ask(at, "GET", "/readyz", "", "").0, 200);
    proxy.signal(Signal::SIGTERM);
    proxy.diary("draining");
    assert_eq!(ask(at, "GET", "/readyz", "", "").0, 503);
    assert_eq!(ask(at, "GET", "/healthz", "", "").0, 200);
    drop((client, server));
    let (status, records) = proxy.ended();
    assert!(status.success() && records.len() == 1, "{records:#?}");
    assert!(TcpStream::connect(at).is_err());
}

#[test]
fn a_page_of_another_site_is_turned_away() {
    let (_proxy, at) = start(POLICY);
    let stream = wire::connect(at);
    wire::send(
        &stream,
        "GET /v1/records HTTP/1.1\r\nhost: rebound.example\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(wire::status(&wire::read_answer(&stream).0), 421);
    let (status, head, _) = ask(
        at,
        "POST",
        "/v1/faults/reset",
        "origin: http://other.example\r\n",
        "",
    );
    assert_eq!(status, 403);
    assert_eq!(wire::field(&head, "access-control-allow-origin"), None);
    let csp = wire::field(&head, "content-security-policy").unwrap();
    assert!(
        csp.starts_with("default-src 'none'") && csp.contains("frame-ancestors 'none'"),
        "{csp}"
    );
}

#[test]
fn without_a_token_only_who_runs_it_and_root_may_change_it() {
    let is_root = nix::unistd::geteuid().is_root() || needs::lacks("root");
    if !is_root || !needs::has("curl") {
        return;
    }
    let (proxy, at) = start(POLICY);
    let ask = |user: u32, method: &str, path: &str| {
        let mut curl = Command::new("curl");
        curl.uid(user)
            .args(["--noproxy", "*", "-s", "-w", "\n%{http_code}", "-X", method]);
        let (_, out, _) = run(curl.arg(format!("http://{at}{path}")));
        out
    };
    assert!(ask(65534, "GET", "/v1/status").ends_with("\n200"));
    for (method, path) in [
        ("POST", "/v1/faults/reset"),
        ("POST", "/v1/policy/check"),
        ("PUT", "/v1/policy"),
    ] {
        let told = ask(65534, method, path);
        assert!(
            told.ends_with("\n403") && told.contains("--admin-token-file"),
            "{told}"
        );
    }
    assert!(ask(0, "POST", "/v1/faults/reset").ends_with("\n200"));
    // Through the proxy nobody comes to it as if the proxy itself had asked.
    assert_eq!(fetch(&proxy, &format!("http://{at}/v1/status")), 508);
}

#[test]
fn whose_a_connection_is_is_known_where_proc_shows_processes_alone() {
    if !needs::has("proc-subset") {
        return;
    }
    // As a unit's `ProcSubset=pid` has it.
    let script = "mount -t proc -o subset=pid proc /proc && exec \"$@\"";
    let proxy = admin::with_admin(Proxy::under(POLICY))
        .through("unshare", &["--mount", "sh", "-c", script, "sh"])
        .start();
    let at = admin::address(&proxy);
    assert_eq!(ask(at, "POST", "/v1/faults/reset", "", "").0, 200);
}

#[test]
fn other_machines_need_a_token() {
    let mut bare = routecause();
    bare.args(["--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0"]);
    let (status, _, stderr) = run(&mut bare);
    assert_eq!(status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("--admin-token-file"), "{stderr}");
    let proxy = Proxy::under(DIRECT)
        .args(&["--admin", "0.0.0.0:0"])
        .env("ROUTECAUSE_ADMIN_TOKEN", "open-sesame")
        .start();
    let at = SocketAddr::from(([127, 0, 0, 1], admin::address(&proxy).port()));
    let status = |fields: &str, path: &str| ask(at, "GET", path, fields, "").0;
    assert_eq!(status("", "/v1/status"), 401);
    assert_eq!(status("", "/readyz"), 200);
    assert_eq!(
        status("authorization: Bearer open-sesam\r\n", "/v1/status"),
        401
    );
    assert_eq!(
        status("authorization: Bearer open-sesame\r\n", "/v1/status"),
        200
    );
    let (diary, _) = proxy.finish();
    assert!(!diary.contains("sesame"), "{diary}");
}

#[test]
fn a_unix_socket_is_its_owners_alone_and_goes_with_the_process() {
    if !needs::has("curl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let address = format!("unix:{}", path.display());
    // What a process that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let proxy = Proxy::under(DIRECT).args(&["--admin", &address]).start();
    proxy.diary("API and metrics: unix:");
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (status, out, _) = run(Command::new("curl")
        .args(["-sf", "--unix-socket"])
        .arg(&path)
        .arg("http://any/v1/status"));
    assert!(
        status.success() && out.contains("\"is_ready\":true"),
        "{out}"
    );
    let mut second = routecause();
    second.args(["--listen", "127.0.0.1:0", "--admin", &address]);
    assert_eq!(run(&mut second).0.code(), Some(69));
    assert!(proxy.stop().0.success());
    assert!(!path.exists());
}

#[test]
fn a_second_proxy_runs_without_the_default_address_but_not_without_one_that_was_asked_for() {
    // Somebody has it already, or we have it now.
    let _taken = TcpListener::bind("127.0.0.1:3129");
    let proxy = Proxy::under(DIRECT).env("ROUTECAUSE_ADMIN", "").start();
    proxy.diary("127.0.0.1:3129 is taken");
    assert!(proxy.stop().0.success());
    let mut asked = routecause();
    asked.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:3129"]);
    let (status, _, stderr) = run(&mut asked);
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("admin listener 127.0.0.1:3129"), "{stderr}");
}

#[test]
fn many_connections_to_it_leave_the_proxy_alone() {
    let (proxy, at) = start(POLICY);
    let held: Vec<_> = (0..100).map(|_| wire::connect(at)).collect();
    let port = good().address.port();
    assert_eq!(fetch(&proxy, &format!("http://a.test:{port}/")), 200);
    drop(held);
    assert_eq!(ask(at, "GET", "/healthz", "", "").0, 200);
}

#[test]
fn the_description_holds_whatever_is_asked() {
    if !needs::has("schemathesis") {
        return;
    }
    let (proxy, at) = start(POLICY);
    fetch(&proxy, "http://closed.test/");
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(needs::find("schemathesis").unwrap());
    command.current_dir(folder.path()).args([
        "run",
        &format!("http://{at}/v1/openapi.json"),
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--exclude-path",
        "/v1/stream",
        "--exclude-path",
        "/readyz",
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "20",
        "--seed",
        "1",
        "--no-color",
        "--request-timeout",
        "10",
        // How fast it makes its inputs is this machine's affair.
        "--suppress-health-check",
        "too_slow",
    ]);
    let (status, out, err) = run_within(&mut command, Duration::from_mins(5));
    assert!(status.success(), "{out}\n{err}");
    assert_eq!(ask(at, "GET", "/healthz", "", "").0, 200);
}

#[test]
fn a_stream_ends_with_the_process() {
    let (proxy, at) = start(POLICY);
    let mut stream = follow(at, "");
    assert!(proxy.stop().0.success());
    let mut rest = Vec::new();
    // By FIN or by reset.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{}", rest.escape_ascii());
}

/// The command for a client of the proxy, which asks there.
fn command(at: SocketAddr, args: &[&str]) -> Command {
    let mut command = routecause();
    command.args(args).args(["--admin", &at.to_string()]);
    command
}

#[test]
fn tail_prints_the_records_that_were_asked_for() {
    let (proxy, at) = start(POLICY);
    let tail = |args: &[&str]| {
        let mut command = command(at, &[&["tail"], args].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (child, out)
    };
    let mut people = tail(&["--denied"]);
    let mut machine = tail(&[
        "--json",
        "--cause",
        "policy",
        "--host",
        "*.test",
        "--client",
        "127.0.0.1",
    ]);
    until(at, "/v1/status", |status| status["followers"] == 2);
    let port = good().address.port();
    fetch(&proxy, &format!("http://a.test:{port}/"));
    fetch(&proxy, "http://closed.test/");
    let record = proxy.records(2).remove(1);
    let mut line = String::new();
    people.1.read_line(&mut line).unwrap();
    assert!(
        line.contains(" deny GET     closed.test:80 ") && line.contains("policy.denied.rule"),
        "{line}"
    );
    assert!(!line.contains('\x1b'), "coloured on a pipe: {line}");
    line.clear();
    machine.1.read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), record);
    // Who comes late begins with what was, and hears nothing of it twice.
    let mut late = tail(&["-n", "1", "--json"]);
    line.clear();
    late.1.read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), record);
    fetch(&proxy, "http://closed.test/again");
    let again = proxy.record();
    line.clear();
    late.1.read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), again);
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut stuck = command(at, &["tail", "-n", "1"]);
    stuck.stdout(full.unwrap()).stderr(Stdio::null());
    assert_eq!(stuck.status().unwrap().code(), Some(1));
    // Two are told to end; the other sees the proxy's end.
    for child in [&mut people.0, &mut late.0] {
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    assert!(proxy.stop().0.success());
    assert_eq!(machine.0.wait().unwrap().code(), Some(5));
}

#[test]
fn status_and_healthcheck_tell_how_it_is() {
    let (mut proxy, at) = start(POLICY);
    let code = |args: &[&str]| run(&mut command(at, args)).0.code();
    let (_, out, _) = run(&mut command(at, &["status"]));
    assert!(
        out.contains("takes requests") && out.contains(&proxy.address.to_string()),
        "{out}"
    );
    let (_, out, _) = run(&mut command(at, &["status", "--json"]));
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&told["schema"], &told["is_ready"]),
        (&"routecause.status/1".into(), &true.into())
    );
    assert_eq!(code(&["healthcheck"]), Some(0));
    let checked = |args: &[&str]| -> (Option<i32>, Value) {
        let (status, out, _) = run(command(at, &["healthcheck", "--json"]).args(args));
        (status.code(), serde_json::from_str(&out).unwrap())
    };
    let well = |status: &str| json!({"schema": "routecause.healthcheck/1", "status": status});
    assert_eq!(checked(&[]), (Some(0), well("ready")));
    assert_eq!(checked(&["--live"]), (Some(0), well("live")));
    let (status, _, stderr) = run(&mut command(at, &["top"]));
    assert_eq!(status.code(), Some(2), "{stderr}");
    let (status, out, _) = run(&mut command(at, &["top", "--json"]));
    let told: Value = serde_json::from_str(&out).unwrap();
    check!(&told, "schema": "routecause.top/1", "records": 0, "tunnels": 0);
    assert_eq!(
        (status.code(), &told["lately"]["seconds"]),
        (Some(0), &60.into())
    );
    let ends = tunnel(&proxy, "a.test");
    proxy.signal(Signal::SIGTERM);
    proxy.diary("draining");
    assert_eq!(code(&["healthcheck"]), Some(1));
    let (code, told) = checked(&[]);
    check!(&told, "status": "not_ready");
    assert!(code == Some(1) && told["hindrance"].is_string(), "{told}");
    drop(ends);
    proxy.ended();
    let json = ["healthcheck", "--json"];
    for args in [
        &json[..1],
        &json,
        &["status"],
        &["top", "--json"],
        &["tail"],
    ] {
        let (status, out, stderr) = run(&mut command(at, args));
        assert_eq!((status.code(), out.as_str()), (Some(5), ""), "{args:?}");
        assert!(
            stderr.contains(&format!("no routecause answers at {at}")),
            "{stderr}"
        );
    }
}

#[test]
fn commands_send_the_token() {
    let proxy = Proxy::under(DIRECT)
        .file("token", "open-sesame\n")
        .args(&["--admin", "127.0.0.1:0"])
        .env("ROUTECAUSE_ADMIN_TOKEN", "open-sesame")
        .start();
    let at = admin::address(&proxy);
    let (status, _, stderr) = run(&mut command(at, &["status"]));
    assert_eq!(status.code(), Some(5));
    assert!(
        stderr.contains("401") && stderr.contains("token"),
        "{stderr}"
    );
    let mut with_file = command(at, &["status"]);
    with_file
        .arg("--admin-token-file")
        .arg(proxy.policy.with_file_name("token"));
    assert_eq!(run(&mut with_file).0.code(), Some(0));
    let mut with_variable = command(at, &["status"]);
    with_variable.env("ROUTECAUSE_ADMIN_TOKEN", "open-sesame");
    assert_eq!(run(&mut with_variable).0.code(), Some(0));
}

#[test]
fn the_description_in_the_repository_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let told = serde_json::to_string_pretty(&routecause::admin::document()).unwrap() + "\n";
    if std::env::var_os("ROUTECAUSE_TEST_REWRITE").is_some_and(|wish| !wish.is_empty()) {
        std::fs::write(&path, &told).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == told,
        "docs/openapi.json is another; ROUTECAUSE_TEST_REWRITE=1 writes it"
    );
}
