//! `explain RECORD`: what became of a request is told from its record alone, by the proxy or from a log.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::origin::Origin;
use support::{Proxy, admin, check, routecause, run, wire};
use tempfile::TempDir;

/// A proxy that made three records: a success behind a hop that failed, a connection refused, and a request denied.
struct Scene {
    proxy: Proxy,
    admin: SocketAddr,
    records: Vec<Value>,
    /// The ids that the client got of the last two.
    ids: Vec<String>,
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        let (at, relay, dead) = (origin.address, Origin::free(), Origin::free());
        let starting = Proxy::under(&format!(
            "version: 1\nupstreams: {{relay: {{url: \"http://{relay}\"}}}}\n\
             chains: {{heal: {{hops: [relay, direct]}}}}\nrules:\n\
             - {{name: secret, match: {{host: no.test}}, block: {{reason: not for us}}}}\n\
             - {{name: dead, match: {{port: {}}}, direct: true}}\n\
             default: {{via: heal}}\n",
            dead.port()
        ));
        let proxy = admin::with_admin(starting).start();
        let admin = admin::address(&proxy);
        let (mut records, mut ids) = (Vec::new(), Vec::new());
        for request in [
            format!("GET http://{at}/a?token=hush HTTP/1.1\r\nhost: {at}\r\n\r\n"),
            format!("CONNECT {dead} HTTP/1.1\r\nuser-agent: pip/1\r\n\r\n"),
            "GET http://no.test/ HTTP/1.1\r\nhost: no.test\r\n\r\n".to_owned(),
        ] {
            let client = proxy.connect();
            wire::send(&client, request);
            let (head, _) = wire::read_answer(&client);
            ids.extend(wire::field(&head, "x-routecause-record").map(str::to_owned));
            records.extend(proxy.records(1));
        }
        let of_all = |told: &Value| told["records"].as_array().is_some_and(|all| all.len() == 3);
        admin::until(admin, "/v1/records", of_all);
        let scene = Self {
            proxy,
            admin,
            records,
            ids,
            folder: tempfile::tempdir().unwrap(),
        };
        let lines = scene.records.iter().map(|record| format!("{record}\n"));
        fs::write(scene.log(), lines.collect::<String>()).unwrap();
        scene
    }

    fn log(&self) -> String {
        self.folder
            .path()
            .join("records.jsonl")
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn id(&self, number: usize) -> &str {
        self.records[number]["event.id"].as_str().unwrap()
    }
}

/// Runs `explain`: exit code, standard output, standard error.
#[track_caller]
fn explain(args: &[&str]) -> (i32, String, String) {
    let (status, stdout, stderr) = run(routecause().arg("explain").args(args));
    (status.code().unwrap(), stdout, stderr)
}

/// What is told without a complaint.
#[track_caller]
fn told(args: &[&str]) -> String {
    let (code, stdout, stderr) = explain(args);
    assert_eq!((code, &*stderr), (0, ""), "{args:?}");
    stdout
}

/// Whether a page has these lines, in their order; each is given by words of it.
#[track_caller]
fn has(page: &str, lines: &[&[&str]]) {
    let mut rest = page.lines();
    for words in lines {
        let found = rest.any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "{words:?} in\n{page}");
    }
}

#[test]
fn a_record_is_explained_from_a_log() {
    let scene = Scene::new();
    let log = scene.log();
    let of = |number| told(&[scene.id(number), "--log", &log]);
    let success = of(0);
    let target = scene.records[0]["server.port"].to_string();
    has(
        &success,
        &[
            &["request ", "GET 127.0.0.1:", &target],
            &["from 127.0.0.1:"],
            &["success ", "the client got 200"],
            &["rule ", "default (", "to heal, by direct at the end"],
            &["timeline ", "connect ", "ms", "█"],
            &["first byte "],
            &["attempts ", "relay ", "upstream.connect.refused"],
            &["direct ", "ok", "ms"],
            &["bytes ", "0B up, 2B down"],
            &["peer ", "127.0.0.1:", ", from 127.0.0.1:"],
            &["record ", scene.id(0)],
        ],
    );
    assert!(!success.contains("hush"), "{success}");
    has(
        &of(1),
        &[
            &["request ", "CONNECT 127.0.0.1:"],
            &["from 127.0.0.1:", "pip/1"],
            &["failed ", "Connection refused"],
            &[
                "cause ",
                "connect.refused, certain, phase connect, side origin",
                "got 502",
            ],
            &["means ", "ECONNREFUSED"],
            &["fix ", "nothing listens there"],
            &["rule ", "dead (", "to direct"],
            &["timeline ", "connect ", "█ failed"],
            &["attempts ", "direct ", "connect.refused"],
            &["next ", "routecause doctor https://127.0.0.1:"],
        ],
    );
    has(
        &of(2),
        &[
            &["request ", "GET no.test:80"],
            &["denied ", "not for us"],
            &["cause ", "policy.denied.rule"],
            &["rule ", "secret ("],
            &["next ", "routecause explain http://no.test/"],
        ],
    );
}

#[test]
fn the_id_that_a_client_got_is_asked_of_the_proxy() {
    let scene = Scene::new();
    let at = scene.admin.to_string();
    assert_eq!(scene.ids, [scene.id(1), scene.id(2)]);
    for (id, word) in scene
        .ids
        .iter()
        .zip(["connect.refused", "policy.denied.rule"])
    {
        let page = told(&[id, "--admin", &at]);
        assert_eq!(page, told(&[id, "--log", &scene.log()]));
        has(&page, &[&["cause ", word]]);
    }
    let unknown = "01a1fa62-0136-755e-805d-de0e87a5c589";
    let (code, stdout, stderr) = explain(&[unknown, "--admin", &at]);
    assert_eq!((code, &*stdout), (1, ""), "{stderr}");
    has(
        &stderr,
        &[
            &["error: ", unknown, "in memory"],
            &["help: ", "--log FILE"],
        ],
    );
    let Scene { proxy, .. } = scene;
    proxy.stop();
    let (code, stdout, stderr) = explain(&[unknown, "--admin", &at]);
    assert_eq!((code, &*stdout), (5, ""), "{stderr}");
    has(
        &stderr,
        &[
            &["error: no routecause answers at"],
            &["help: ", "--log FILE"],
        ],
    );
}

#[test]
fn the_last_failure_is_told_where_no_id_is_given_and_the_log_may_come_from_a_pipe() {
    let scene = Scene::new();
    let log = scene.log();
    let last = told(&["--log", &log]);
    has(&last, &[&["denied "], &["record ", scene.id(2)]]);
    // As far as another would be meant.
    let begun = &scene.id(2)[..scene.id(2).len() - 1];
    assert_eq!(told(&[begun, "--log", &log]), last);
    // As a CI prints it.
    let script = "sed 's/^/12:00:01Z proxy-1 | /' \"$2\" | \"$1\" explain --log -";
    let program = routecause();
    let mut piped = Command::new("sh");
    piped
        .args(["-c", script, "sh"])
        .arg(program.get_program())
        .arg(&log);
    let (status, stdout, stderr) = run(&mut piped);
    assert!(status.success(), "{stderr}");
    assert_eq!(stdout, last);
}

#[test]
fn json_holds_the_record_its_timeline_and_how_others_went() {
    let scene = Scene::new();
    let twice = scene.folder.path().join("twice.jsonl");
    let mut other = scene.records[1].clone();
    other["event.id"] = "01a1fa62-0136-755e-805d-de0e87a5c589".into();
    fs::write(&twice, format!("{}\n\n{other}", scene.records[1])).unwrap();
    let twice = twice.to_str().unwrap();
    let json: Value = serde_json::from_str(&told(&["--log", twice, "--json"])).unwrap();
    check!(&json,
        "schema": "routecause.explain.record/1",
        "record": other,
        "target": {"passed": 0, "failed": {"connect.refused": 2}},
    );
    check!(&json["timeline"][0], "phase": "connect", "from_ms": 0.0, "is_cut": true);
    let page = told(&["--log", twice]);
    has(
        &page,
        &[&[
            "target ",
            "2 requests of the log: 0 went well, 2 failed: connect.refused 2×",
        ]],
    );
    let of_proxy = told(&[scene.id(0), "--admin", &scene.admin.to_string(), "--json"]);
    let json: Value = serde_json::from_str(&of_proxy).unwrap();
    assert_eq!(json["record"], scene.records[0]);
    assert_eq!(json.get("target"), None);
}

/// A value whose every text would clear a screen.
fn poisoned(value: &Value) -> Value {
    match value {
        Value::String(text) => format!("{text}\u{1b}[2J\u{9b}2J\r\u{202e}").into(),
        Value::Array(values) => values.iter().map(poisoned).collect(),
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(key, value)| (format!("{key}\u{1b}[2J"), poisoned(value)));
            Value::Object(fields.collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[test]
fn what_a_foreign_log_says_moves_no_cursor() {
    let scene = Scene::new();
    let mut record = scene.records[1].clone();
    let fields = record.as_object_mut().unwrap();
    fields["egress.attempts"][0]["hop"] = "a\u{1b}[2J".into();
    fields.insert(
        "egress.suspects".into(),
        serde_json::json!([
            {"name": "a\u{1b}[2J", "score": 0.5, "evidence": ["\u{9b}2J"]}
        ]),
    );
    for key in [
        "egress.tls.state",
        "egress.fault",
        "egress.notes",
        "egress.would",
        "user.name",
    ] {
        let text = Value::from("\u{1b}[2J");
        let is_list = ["egress.fault", "egress.notes"].contains(&key);
        let value = if is_list { vec![text].into() } else { text };
        fields.insert(key.into(), value);
    }
    fields.insert("of.a\u{1b}[2J.later".into(), poisoned(&scene.records[0]));
    let read = [
        "schema",
        "event.id",
        "event.outcome",
        "client.address",
        "egress.attempts",
    ];
    for (key, value) in fields.iter_mut() {
        if value.is_string() && !read.contains(&key.as_str()) && !key.starts_with("network.") {
            *value = poisoned(value);
        }
    }
    let log = scene.folder.path().join("foreign.jsonl");
    fs::write(
        &log,
        format!("\u{1b}[2J {{\"event.outcome\": \"\\u001b\"}}\n{record}\n"),
    )
    .unwrap();
    for json in [&[][..], &["--json"]] {
        let args = [&["--log", log.to_str().unwrap()], json].concat();
        let (code, stdout, stderr) = explain(&args);
        assert_eq!(code, 0, "{stderr}");
        assert!(
            stdout.contains("[2J") && stderr.contains("foreign.jsonl:1:"),
            "{stdout}{stderr}"
        );
        let is_bad = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
        for text in [stdout, stderr] {
            assert!(!text.contains(is_bad), "{}", text.escape_debug());
        }
    }
}

#[test]
fn what_cannot_be_explained_says_why() {
    let scene = Scene::new();
    let write = |name: &str, text: &str| {
        let path = scene.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = scene.records[1].to_string();
    let cut = write("cut.jsonl", whole.rsplit_once(',').unwrap().0);
    let later = write("later.jsonl", &whole.replace("record/1", "record/2"));
    let good = write("good.jsonl", &scene.records[0].to_string());
    let folder = scene.folder.path().to_str().unwrap();
    let nowhere = Path::new(folder).join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let (log, id, unknown) = (
        scene.log(),
        scene.id(1),
        "01a1fa62-0136-755e-805d-de0e87a5c589",
    );
    let unused = |flag, beside| [flag, "cannot be used with '", beside];
    let cases: [(&[&str], i32, &[&str]); 15] = [
        (
            &[unknown, "--log", &log],
            1,
            &["no record ", unknown, "among the 3 of ", &log],
        ),
        (
            &["--log", &good],
            1,
            &["none of the 1 records of ", "failed: give an id"],
        ),
        (
            &["--log", nowhere],
            1,
            &["read ", "nowhere", "No such file"],
        ),
        (&["--log", folder], 1, &["Is a directory"]),
        (
            &[id, "--log", &cut],
            1,
            &["cut.jsonl:1: this is no record: EOF while parsing"],
        ),
        (
            &["--log", &later],
            1,
            &["later.jsonl:1: this is no routecause.record/1"],
        ),
        (
            &["a.example:443", "--log", &log],
            2,
            &["a.example:443 is none"],
        ),
        (
            &[id, "--log", &log, "--user", "me"],
            2,
            &["a record says itself who asked"],
        ),
        (&["--cause", "dns.timeout", "--log", &log], 2, &["--log"]),
        // Nothing is taken that is not used.
        (
            &[id, "--policy", "p.yaml"],
            2,
            &unused("'--policy <FILE>'", "RECORD"),
        ),
        (
            &["--log", &log, "--policy", "p.yaml"],
            2,
            &unused("'--policy <FILE>'", "--log <FILE>"),
        ),
        (
            &["--log", &log, "--admin", "127.0.0.1:1"],
            2,
            &unused("'--admin <ADDRESS>'", "--log <FILE>"),
        ),
        (
            &["a.example:443", "--admin-token-file", "token"],
            2,
            &unused("'--admin-token-file <FILE>'", "URL|HOST:PORT"),
        ),
        (
            &["--as", "go", "--policy", "p.yaml", "https://a.example/"],
            2,
            &unused("'--policy <FILE>'", "--as <CLIENT>"),
        ),
        (
            &["--cause", "dns", "--user", "me"],
            2,
            &unused("'--cause <ID>'", "--user <NAME>"),
        ),
    ];
    for (args, expected, words) in cases {
        let (code, stdout, stderr) = explain(args);
        assert_eq!((code, &*stdout), (expected, ""), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word} in {stderr}");
        }
    }
    // What the environment says is for other commands, too.
    let mut command = routecause();
    command.args(["explain", "--log", &good, scene.id(0)]);
    command.env("ROUTECAUSE_POLICY", nowhere);
    let (status, _, stderr) = run(command.env("ROUTECAUSE_ADMIN", "127.0.0.1:1"));
    assert!(status.success(), "{stderr}");
}
