//! What a person types, what is printed for it, and how the program ends.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::origin::Origin;
use support::schema::Schema;
use support::{DIRECT, Proxy, SOON, check, routecause, run, wire};

/// Runs a command line: exit code, standard output, standard error.
#[track_caller]
fn type_in(args: &[&str]) -> (i32, String, String) {
    let (status, stdout, stderr) = run(routecause().args(args));
    (status.code().unwrap(), stdout, stderr)
}

/// A policy file of its own folder.
struct File(tempfile::TempDir);

impl File {
    fn new(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("policy.yaml"), policy).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("policy.yaml")
    }

    fn name(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }
}

/// Runs `serve` under a policy that it must refuse: exit code and standard error.
#[track_caller]
fn serve_refuses(policy: &str, args: &[&str]) -> (i32, String) {
    let file = File::new(policy);
    let name = file.name();
    let listen = ["serve", "--policy", &name, "--listen", "127.0.0.1:0"];
    let (code, stdout, stderr) = type_in(&[&listen, args].concat());
    assert_eq!(stdout, "");
    (code, stderr)
}

#[test]
fn help_names_what_matters() {
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["--help"],
            &[
                "serve",
                "explain",
                "check",
                "schema",
                "127.0.0.1:3128",
                "HTTPS_PROXY",
                "NO_PROXY",
                "Exit codes:",
                "3 denied, 4 egress failed",
                "69 cannot bind",
                "78 bad policy",
            ],
        ),
        (
            &["serve", "--help"],
            &[
                "--policy",
                "--listen",
                "--allow-from",
                "--admin",
                "--log-format",
                "--log-file",
                "--drain-timeout",
                "ROUTECAUSE_POLICY",
                "/etc/routecause/policy.yaml",
                "172.17.0.0/16",
            ],
        ),
        (
            &["explain", "--help"],
            &[
                "--json",
                "--client",
                "--no-proxy",
                "without connecting",
                "Examples:",
            ],
        ),
        (
            &["check", "--help"],
            &["--json", "78 the policy has mistakes", "Examples:"],
        ),
        (&["schema", "--help"], &["policy", "record"]),
        (&["--version"], &[env!("CARGO_PKG_VERSION")]),
    ];
    for (args, words) in cases {
        let (code, stdout, stderr) = type_in(args);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        for word in words {
            assert!(
                stdout.contains(word),
                "{args:?} does not say {word}:\n{stdout}"
            );
        }
    }
}

#[test]
fn wrong_use_is_2() {
    let cases: [(&[&str], &str); 9] = [
        (
            &["explain", "a.example:443", "--cause", "connect.timeout"],
            "--cause",
        ),
        (&["serv"], "unrecognized subcommand 'serv'"),
        (&["--lisen", "127.0.0.1:0"], "--lisen"),
        (&["--listen", "localhost"], "write an address and a port"),
        (&["--allow-from", "everyone"], "write a range of addresses"),
        (&["--drain-timeout", "soon"], "write a duration"),
        (&["explain"], "<URL|HOST:PORT|RECORD>"),
        (&["explain", "ftp://a.example/"], "\"ftp\""),
        (&["explain", "https://0x7f.1/"], "0x7f.1"),
    ];
    for (args, word) in cases {
        let (code, stdout, stderr) = type_in(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
}

#[test]
fn an_admin_address_has_a_port() {
    let (code, _, stderr) = type_in(&["--admin", "3129"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("an address and a port"), "{stderr}");
}

#[test]
fn an_admin_listener_that_is_off_is_fine() {
    let proxy = Proxy::under(DIRECT).arg("--admin").arg("off").start();
    assert!(proxy.stop().0.success());
}

#[test]
fn a_port_in_use_is_69_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stdout, stderr) = type_in(&["--listen", &address]);
    assert_eq!((code, stdout.as_str()), (69, ""));
    assert!(
        stderr.contains(&format!("error: listen on {address}: ")),
        "{stderr}"
    );
    assert!(stderr.contains("in use"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    // The workers of one proxy share theirs, two proxies do not.
    let proxy = Proxy::start(DIRECT);
    let (code, _, stderr) = type_in(&["--listen", &proxy.address.to_string()]);
    assert!(code == 69 && stderr.contains("in use"), "{code}: {stderr}");
}

#[test]
fn an_open_listener_needs_to_know_for_whom() {
    for address in ["0.0.0.0:0", "[::]:0", ":0", "[::ffff:0.0.0.0]:0"] {
        let (code, stdout, stderr) = type_in(&["--listen", address]);
        assert_eq!((code, stdout.as_str()), (78, ""), "{address}: {stderr}");
        assert!(stderr.contains("--allow-from"), "{stderr}");
    }
    let open = "version: 1\nserver: {listen: [{address: '0.0.0.0:0'}]}\ndefault: {direct: true}\n";
    let file = File::new(open);
    let (code, _, stderr) = type_in(&["--policy", &file.name()]);
    assert_eq!(code, 78, "{stderr}");
    let proxy = Proxy::under(DIRECT)
        .arg("--listen")
        .arg("0.0.0.0:0")
        .arg("--allow-from")
        .arg("192.0.2.0/24")
        .start();
    assert!(proxy.stop().0.success());
}

#[test]
fn a_bad_policy_is_78_and_nothing_starts() {
    let (code, stderr) = serve_refuses("version: 1\ndefualt: {direct: true}\n", &[]);
    assert_eq!(code, 78);
    assert!(stderr.contains("policy.yaml:2:1: error: "), "{stderr}");
    assert!(stderr.contains("did you mean `default`?"), "{stderr}");
    assert!(!stderr.contains("listens on"), "{stderr}");
    let (code, _, stderr) = type_in(&["check", "/nonexistent/policy.yaml"]);
    assert_eq!(code, 78);
    assert!(
        stderr.contains("/nonexistent/policy.yaml: error: "),
        "{stderr}"
    );
    let (code, _, stderr) = type_in(&[
        "explain",
        "--policy",
        "/nonexistent/policy.yaml",
        "a.example:443",
    ]);
    assert_eq!(code, 78, "{stderr}");
}

#[test]
fn a_failed_test_of_a_policy_is_1_for_check_and_78_for_serve() {
    let policy = "version: 1\ndefault: {direct: true}\ntests:\n  - {connect: 'a.example:443', expect: {action: block}}\n";
    let told =
        "policy.yaml:4:15: error: test CONNECT a.example:443: action is direct, expected block";
    let file = File::new(policy);
    let (code, stdout, stderr) = type_in(&["check", &file.name()]);
    assert_eq!(code, 1);
    assert!(stderr.contains(told), "{stderr}");
    assert!(stdout.contains("1 of 1 test failed"), "{stdout}");
    let (code, stderr) = serve_refuses(policy, &[]);
    assert_eq!(code, 78);
    assert!(stderr.contains(told), "{stderr}");
}

#[test]
fn a_secret_that_cannot_be_read_warns_in_check_and_refuses_in_serve() {
    let policy = "version: 1\nupstreams:\n  corp:\n    url: http://127.0.0.1:9\n    auth: {username: {env: CORP_USER}, password: {file: pass}}\ndefault: {via: corp}\n";
    let places = ["policy.yaml:5:22: ", "policy.yaml:5:50: "];
    let file = File::new(policy);
    let (code, stdout, stderr) = type_in(&["check", &file.name()]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("2 warnings"), "{stdout}");
    for place in places {
        assert!(stderr.contains(&format!("{place}warning: ")), "{stderr}");
    }
    assert!(stderr.contains("CORP_USER is not set"), "{stderr}");
    let (code, stderr) = serve_refuses(policy, &[]);
    assert_eq!(code, 78);
    for place in places {
        assert!(stderr.contains(&format!("{place}error: ")), "{stderr}");
    }

    // A file that others can read is none for a secret.
    fs::write(file.path().with_file_name("pass"), "hunter2\n").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.path().with_file_name("pass"), open).unwrap();
    let (status, _, stderr) = run(routecause().env("CORP_USER", "alice").args([
        "--listen",
        "127.0.0.1:0",
        "--policy",
        &file.name(),
    ]));
    assert_eq!(status.code(), Some(78));
    assert!(
        stderr.contains("chmod 600") && !stderr.contains("hunter2"),
        "{stderr}"
    );
}

#[test]
fn ten_mistakes_are_told_at_once_each_with_its_place() {
    let policy = "\
version: 1
server:
  listen: [{address: 'localhost'}]
  colour: blue
upstreams:
  corp: {url: 'http://user:hunter2@proxy.corp.example:8080'}
defaults: {timeouts: {connect: soon}}
rules:
  - name: one
    match: {hosts: a.example}
    direct: true
  - name: two
    match: {host: b.example}
  - name: three
    match: {set: outside}
    via: crop
  - name: four
    match: {port: 70000}
    block: {status: 407}
default: {via: corp}
";
    let expected = [
        ("3:22", "`localhost`", None),
        ("4:3", "`colour`", Some("its keys are listen, allow_from")),
        (
            "6:15",
            "credentials do not stand in a policy",
            Some("auth: {username: {env: NAME}"),
        ),
        ("7:32", "`soon`", None),
        ("10:13", "`hosts`", Some("did you mean `host`?")),
        ("12:11", "what happens", None),
        ("15:18", "no set `outside`", None),
        ("16:10", "no route `crop`", Some("did you mean `corp`?")),
        ("18:19", "`70000`", None),
        ("19:21", "407", None),
    ];
    let file = File::new(policy);
    let name = file.name();
    let (code, stdout, stderr) = type_in(&["check", &name]);
    assert_eq!(code, 78);
    assert!(
        stdout.contains("10 mistakes, tests not run"),
        "{stdout}{stderr}"
    );
    let blocks: Vec<&str> = stderr.trim_end().split("\n\n").collect();
    assert_eq!(blocks.len(), expected.len(), "{stderr}");
    for (block, (place, words, help)) in blocks.iter().zip(expected) {
        assert!(
            block.starts_with(&format!("{name}:{place}: error: ")),
            "{place} in {block}"
        );
        assert!(block.contains(words), "{words} in {block}");
        assert!(
            help.is_none_or(|help| block.contains(help)),
            "{help:?} in {block}"
        );
        let line = place.split(':').next().unwrap();
        assert!(
            block.contains(&format!("\n {line} | ")),
            "the source line of {block}"
        );
        assert!(block.contains('^'), "{block}");
    }
    assert!(!stderr.contains("hunter2"), "{stderr}");

    let (code, stdout, _) = type_in(&["check", "--json", &name]);
    assert_eq!(code, 78);
    let checked: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&checked["schema"], &checked["is_usable"]),
        (&"routecause.check/1".into(), &false.into())
    );
    let told = checked["diagnostics"].as_array().unwrap().iter();
    let places = told.map(|told| format!("{}:{}", told["line"], told["column"]));
    assert!(
        places.eq(expected.iter().map(|(place, ..)| *place)),
        "{stdout}"
    );
    assert!(!stdout.contains("hunter2"), "{stdout}");
    let (code, stderr) = serve_refuses(policy, &[]);
    assert_eq!(
        (code, stderr.matches(": error: ").count()),
        (78, 10),
        "{stderr}"
    );
}

#[test]
fn the_policies_that_are_shipped_pass_their_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let schema = Schema::new(&type_in(&["schema", "policy"]).1);
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // What they include is no policy by itself.
        if path.is_dir() {
            continue;
        }
        let name = path.to_str().unwrap();
        let (code, stdout, stderr) = type_in(&["check", name]);
        assert_eq!(code, 0, "{stdout}{stderr}");
        assert!(stdout.contains(" tests passed"), "{stdout}");
        assert!(!stderr.contains(": error: "), "{stderr}");
        let policy: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(schema.mistakes(&policy), [""; 0], "{name}");
        count += 1;
    }
    assert!(count >= 5);
    let (code, stdout, stderr) = type_in(&["check"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(
        stdout.starts_with("default.yaml (embedded): no mistakes"),
        "{stdout}"
    );
}

#[test]
fn explain_tells_the_decision_and_the_rules_before_it() {
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/corporate-split.yaml");
    let policy = policy.to_str().unwrap();
    let (code, stdout, stderr) =
        type_in(&["explain", "--policy", policy, "https://git.corp.example/"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], "CONNECT git.corp.example:443 from 127.0.0.1");
    assert!(
        lines[1].starts_with("  goes direct, by inside (")
            && lines[1].contains("corporate-split.yaml:"),
        "{stdout}"
    );
    assert_eq!(
        lines[2],
        "  its name is asked of inner by udp (corp.example)"
    );
    assert_eq!(lines[3], "rules before it:");
    assert!(
        lines[4].starts_with("  no_proxy     no NO_PROXY entry exempts git.corp.example:443  (")
            && lines[5].starts_with("  short-names  host git.corp.example has a dot  ("),
        "{stdout}"
    );

    // A refusal is a decision like any other.
    let file = File::new("version: 1\ndefault: {block: {reason: 'not today'}}\n");
    let (code, stdout, _) = type_in(&["explain", "--policy", &file.name(), "a.example:443"]);
    assert_eq!(code, 0);
    assert!(
        stdout.contains("not today") && stdout.contains("default"),
        "{stdout}"
    );
}

#[test]
fn explain_tells_it_in_json_with_the_verdict_of_a_list() {
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/corporate-split.yaml");
    let explain = |no_proxy: &str, url: &str| -> Value {
        let args = [
            "explain",
            "--json",
            "--policy",
            policy.to_str().unwrap(),
            "--no-proxy",
            no_proxy,
            url,
        ];
        let (code, stdout, _) = type_in(&args);
        assert_eq!(code, 0);
        serde_json::from_str(&stdout).unwrap()
    };
    let told = explain("a.example, 10.0.0.0/8", "http://10.1.2.3/");
    assert_eq!(told["schema"], "routecause.explain/1");
    assert_eq!(told["request"]["target"], "10.1.2.3:80");
    assert_eq!(told["decision"]["action"], "direct");
    assert_eq!(told["decision"]["rule"], "inside");
    assert_eq!(told["passed"][0]["rule"], "no_proxy");
    assert_eq!(told["passed"][1]["rule"], "short-names");
    assert_eq!(
        told["no_proxy"],
        serde_json::json!({"bypass": true, "entry": "10.0.0.0/8", "reason": "cidr"})
    );
    let told = explain("sub.a.example", "https://a.example/");
    assert_eq!(
        told["no_proxy"],
        serde_json::json!({"bypass": false, "entry": null, "reason": null})
    );
}

#[test]
fn explain_does_not_connect() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    origin.set_nonblocking(true).unwrap();
    let file = File::new(DIRECT);
    let target = origin.local_addr().unwrap().to_string();
    assert_eq!(
        type_in(&["explain", "--policy", &file.name(), &target]).0,
        0
    );
    assert_eq!(
        origin.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[test]
fn every_record_is_as_its_schema_says() {
    let schema = Schema::new(&type_in(&["schema", "record"]).1);
    let good = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42");
    let missing = Origin::answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let squid = Origin::answering(
        "HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\nProxy-Authenticate: Basic\r\nContent-Length: 4\r\n\r\nsick",
    );
    let proxy = Proxy::start(&format!(
        "version: 1\n\
         upstreams: {{corp: {{url: 'http://{}'}}}}\n\
         dns: {{hosts: {{pinned.test: [127.0.0.1]}}}}\n\
         rules:\n\
         - {{name: trial, match: {{host: '127.0.0.1'}}, block: true, mode: report}}\n\
         - {{name: denied, match: {{host: denied.test}}, block: {{reason: no}}}}\n\
         - {{name: corp, match: {{host: corp.test}}, via: corp}}\n\
         default: {{direct: true}}\n",
        squid.address
    ));
    let dead = Origin::nowhere();
    let asked = [
        format!(
            "GET http://{}/ HTTP/1.1\r\nHost: {0}\r\nUser-Agent: test\r\nConnection: close\r\n\r\n",
            good.address
        ),
        format!(
            "GET http://pinned.test:{0}/ HTTP/1.1\r\nHost: pinned.test:{0}\r\nConnection: close\r\n\r\n",
            missing.address.port()
        ),
        format!("CONNECT {dead} HTTP/1.1\r\nHost: {dead}\r\n\r\n"),
        "CONNECT denied.test:443 HTTP/1.1\r\nHost: denied.test:443\r\n\r\n".to_owned(),
        "CONNECT corp.test:443 HTTP/1.1\r\nHost: corp.test:443\r\n\r\n".to_owned(),
        "CONNECT nothing HTTP/1.1\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\x00\x01".to_owned(),
        "garbage\r\n\r\n".to_owned(),
    ];
    let mut seen = Vec::new();
    for request in &asked {
        let client = proxy.connect();
        wire::send(&client, request);
        let _ = std::io::Read::read_to_end(&mut &client, &mut Vec::new());
        drop(client);
        let record = proxy.record();
        assert_eq!(schema.mistakes(&record), [""; 0], "{record:#}");
        seen.push(record);
    }
    let tunnelled = Origin::serving(|stream| {
        wire::send(&stream, "hello");
        String::new()
    });
    let client = proxy.connect();
    wire::send(
        &client,
        format!(
            "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n",
            tunnelled.address
        ),
    );
    wire::read_head(&client);
    wire::read_to_end(&client);
    drop(client);
    seen.push(proxy.record());
    // A connection without a request.
    drop(proxy.connect());
    seen.push(proxy.record());
    let names = schema.names();
    for record in &seen {
        assert_eq!(schema.mistakes(record), [""; 0], "{record:#}");
        for key in record.as_object().unwrap().keys() {
            assert!(names.contains(&key.as_str()), "{key} is not in the schema");
        }
    }
    let outcomes: std::collections::BTreeSet<_> = seen
        .iter()
        .map(|record| record["event.outcome"].as_str().unwrap())
        .collect();
    assert_eq!(
        outcomes.into_iter().collect::<Vec<_>>(),
        ["failure", "success", "unknown"]
    );
    // The schema can tell: it would be worth nothing otherwise.
    let mut wrong = seen[0].clone();
    wrong["source.bytes"] = "many".into();
    wrong["event.outcome"] = "maybe".into();
    assert_eq!(schema.mistakes(&wrong).len(), 2);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut command = routecause();
    command
        .args(["schema", "policy"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap().as_str()
        ),
        (Some(0), "")
    );
}

#[test]
fn what_cannot_be_printed_is_a_failure() {
    for args in [&["schema", "policy"][..], &["explain", "http://a.test/"]] {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut child = routecause()
            .args(args)
            .stdout(full)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{args:?}");
    }
}

#[test]
fn the_line_to_paste_is_on_stderr_and_stdout_has_records_only() {
    let origin = Origin::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let proxy = Proxy::start(DIRECT);
    let url = proxy.url();
    let line = proxy.diary("export ");
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        assert!(line.contains(&format!(" {name}={url}")), "{line}");
    }
    get(&proxy, origin.address);
    let (status, records) = proxy.stop();
    assert!(status.success());
    assert_eq!(records.len(), 1);
    // A line that is no JSON would be a string here.
    assert_eq!(records[0]["schema"], "routecause.record/1");
}

#[test]
fn records_go_to_a_file_that_is_appended_to() {
    let origin = Origin::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records.log");
    fs::write(&file, "{\"before\":true}\n").unwrap();
    for _ in 0..2 {
        let proxy = Proxy::under(DIRECT)
            .arg("--log-file")
            .arg(file.to_str().unwrap())
            .start();
        get(&proxy, origin.address);
        let (status, records) = proxy.stop();
        assert!(status.success() && records.is_empty(), "{records:?}");
    }
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["before"], true);
    assert_eq!(lines[2]["http.response.status_code"], 204);
    let (code, stderr) = serve_refuses(DIRECT, &["--log-file", "/nonexistent/records.log"]);
    assert_ne!(code, 0);
    assert!(stderr.contains("/nonexistent/records.log"), "{stderr}");
}

#[test]
fn people_get_a_line_of_text_for_the_asking() {
    let origin = Origin::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let by_flag = Proxy::under(DIRECT).arg("--log-format").arg("text").start();
    let by_variable = Proxy::under(DIRECT)
        .env("ROUTECAUSE_LOG_FORMAT", "text")
        .start();
    let by_policy = Proxy::start(&format!("{DIRECT}server: {{log_format: text}}\n"));
    for proxy in [by_flag, by_variable, by_policy] {
        get(&proxy, origin.address);
        let line = proxy.record();
        let line = line.as_str().unwrap_or_else(|| panic!("{line}"));
        assert!(
            line.contains(" ok   GET ") && line.contains(&origin.address.to_string()),
            "{line}"
        );
        assert!(
            line.contains(" 204 ") && line.contains(" direct "),
            "{line}"
        );
        assert!(!line.contains('\x1b'), "{line}");
    }
    // A flag is stronger than the policy.
    let proxy = Proxy::under(&format!("{DIRECT}server: {{log_format: text}}\n"))
        .arg("--log-format")
        .arg("json")
        .start();
    get(&proxy, origin.address);
    assert!(proxy.record().is_object());
}

#[test]
fn credentials_are_nowhere_to_be_read() {
    let secrets = ["hunter2", "c2VjcmV0", "s3cr3t", "aHVudGVyMg"];
    let upstream = Origin::answering(
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
    );
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("records.log");
    let policy = format!(
        "version: 1\nupstreams: {{corp: {{url: 'http://{}', auth: {{username: {{env: CORP_USER}}, password: {{file: pass}}}}}}}}\ndefault: {{via: corp}}\n",
        upstream.address
    );
    let proxy = Proxy::under(&policy)
        .env("CORP_USER", "s3cr3t")
        .env("RUST_LOG", "trace")
        .file("pass", "hunter2\n")
        .arg("--log-file")
        .arg(log.to_str().unwrap())
        .start();
    let mut told = String::new();
    for request in [
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n",
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: Basic c2VjcmV0\r\nAuthorization: Basic c2VjcmV0\r\nConnection: close\r\n\r\n",
        "GET http://s3cr3t:hunter2@a.test/ HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        "CONNECT s3cr3t:hunter2@a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
    ] {
        let client = proxy.connect();
        wire::send(&client, request);
        told += &wire::read_text(&client);
    }
    // Told once, behind a 407; what was refused is not told again.
    let heard = [(); 3].map(|()| upstream.heard());
    let is_told = |heard: &&String| heard.contains(": Basic czNjcjN0Omh1bnRlcjI=\r\n");
    assert_eq!(heard.iter().filter(is_told).count(), 1, "{heard:?}");
    let (diary, _) = proxy.finish();
    told += &diary;
    told += &fs::read_to_string(&log).unwrap();
    for secret in secrets.iter().chain(&["czNjcjN0"]) {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 4);

    // Nor in what the environment's own proxy variables lead to.
    let (status, stdout, stderr) = run(routecause()
        .env("HTTPS_PROXY", "http://s3cr3t:hunter2@127.0.0.1:9")
        .args(["explain", "--json", "https://a.test/"]));
    assert!(status.success());
    for secret in secrets {
        assert!(
            !stdout.contains(secret) && !stderr.contains(secret),
            "{stdout}{stderr}"
        );
    }
}

/// Asks for `/` of an origin and reads the answer.
fn get(proxy: &Proxy, origin: std::net::SocketAddr) {
    let client = proxy.connect();
    wire::send(
        &client,
        format!("GET http://{origin}/ HTTP/1.1\r\nHost: {origin}\r\nConnection: close\r\n\r\n"),
    );
    assert!(wire::read_text(&client).starts_with("HTTP/1.1 204 "));
}

#[test]
fn what_readme_shows_of_explain_and_check_is_what_they_print() {
    let readme = include_str!("../README.md");
    let root = env!("CARGO_MANIFEST_DIR");
    let said = |args: &[&str]| {
        let (status, stdout, _) = run(routecause().args(args).current_dir(root));
        assert!(status.success());
        stdout
    };
    let policy = "policies/corporate-split.yaml";
    let explained = said(&["explain", "--policy", policy, "https://git.corp.example/"]);
    assert!(readme.contains(&explained), "{explained}");
    let checked = said(&["check", policy]);
    assert!(readme.contains(&checked), "{checked}");
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let proxy = Proxy::under(DIRECT)
        .env("ROUTECAUSE_ALLOW_FROM", "")
        .env("ROUTECAUSE_LOG_FILE", "")
        .env("ROUTECAUSE_LOG_FORMAT", "")
        .env("ROUTECAUSE_LIMITS", "")
        .env("ROUTECAUSE_NAME", "")
        .env("ROUTECAUSE_ADMIN", "")
        .start();
    drop(proxy.connect());
    check!(&proxy.record(), "error.type": "client.closed_before_request");
}

#[test]
fn a_policy_that_is_a_pipe_or_a_dangling_link_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("policy.yaml");
    let (status, _, _) = run(std::process::Command::new("mkfifo").arg(&pipe));
    assert!(status.success());
    let (status, _, stderr) = run(routecause().arg("check").arg(&pipe));
    assert_eq!(status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("it is a pipe"), "{stderr}");

    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("routecause")).unwrap();
    let link = home.path().join("routecause/policy.yaml");
    std::os::unix::fs::symlink("/nonexistent/policy.yaml", link).unwrap();
    let (status, _, stderr) = run(routecause()
        .arg("check")
        .env("XDG_CONFIG_HOME", home.path()));
    assert_eq!(status.code(), Some(78), "{stderr}");
}

#[test]
fn a_standard_error_that_is_broken_does_not_end_the_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    fs::write(&policy, "version: 1\nrules: []\ndefault: {direct: true}\n").unwrap();
    let address = Origin::free();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = routecause();
    command
        .arg("--policy")
        .arg(&policy)
        .args(["--listen", &address.to_string(), "--admin", "off"]);
    let mut proxy = command.stdout(full()).stderr(full()).spawn().unwrap();
    let deadline = std::time::Instant::now() + SOON;
    while std::net::TcpStream::connect(address).is_err() {
        assert!(proxy.try_wait().unwrap().is_none(), "it ended");
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    proxy.kill().unwrap();
    proxy.wait().unwrap();
}

#[test]
fn the_start_tells_what_happens_by_default() {
    for (policy, expected) in [
        (
            "default: {block: true}",
            "by default requests are refused\n",
        ),
        (
            "mode: report\ndefault: {block: true}",
            "by default direct; mode report: refusals are only noted\n",
        ),
        ("default: {direct: true}", "by default direct\n"),
    ] {
        let file = File::new(&format!("version: 1\n{policy}\n"));
        let mut proxy = routecause()
            .args(["--policy", &file.name(), "--admin", "off"])
            .args(["--listen", "127.0.0.1:0"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = std::io::BufReader::new(proxy.stderr.take().unwrap());
        let line = std::io::BufRead::lines(stderr)
            .map_while(Result::ok)
            .find(|line| line.contains(" listens on "));
        proxy.kill().unwrap();
        proxy.wait().unwrap();
        let line = line.unwrap_or_default() + "\n";
        assert!(line.ends_with(expected), "{line}");
    }
}

#[test]
fn a_reader_of_records_that_is_stuck_does_not_hold_the_end_up() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    fs::write(&policy, DIRECT).unwrap();
    let address = Origin::free();
    let mut command = routecause();
    command
        .arg("--policy")
        .arg(&policy)
        .args(["--listen", &address.to_string(), "--admin", "off"]);
    let mut proxy = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = std::io::BufReader::new(proxy.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
    assert!(line.contains(" listens on "), "{line}");
    // More than a pipe holds: each record has some hundred bytes.
    for _ in 0..400 {
        let client = wire::connect(address);
        wire::send(
            &client,
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        );
        assert!(wire::read_text(&client).starts_with("HTTP/1.1 400 "));
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(proxy.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let deadline = std::time::Instant::now() + SOON;
    while proxy.try_wait().unwrap().is_none() {
        if std::time::Instant::now() >= deadline {
            proxy.kill().unwrap();
            panic!("it did not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_cause_is_explained() {
    let (code, stdout, stderr) = type_in(&["explain", "--cause", "upstream.connect.refused"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let expected = "\
upstream.connect.refused
  how it is told  ECONNREFUSED by a RST: no ICMP message in the error queue, or one of the target itself
  what to do      the upstream proxy itself cannot be reached: nothing listens there, or a firewall answers with a reset
  phase           upstream
  side            upstream
  confidence      certain
  status          502
  Proxy-Status    connection_refused
";
    assert_eq!(stdout, expected);
    for (id, lines) in [
        (
            "http.status.503",
            &["status          503", "Proxy-Status    none"][..],
        ),
        ("http.status.407", &["status          502"]),
        (
            "tls.alert_from_server.unrecognized_name",
            &[
                "the server does not host this name",
                "side            origin",
            ],
        ),
        (
            "tls.client_rejected_certificate.unknown_ca",
            &["status          none: ", "side            client"],
        ),
        (
            "client.gave_up.dns",
            &["499, in the record only", "phase           dns"],
        ),
        ("proxy.internal", &["phase           any"]),
    ] {
        let (code, stdout, _) = type_in(&["explain", "--cause", id]);
        assert_eq!(code, 0, "{id}");
        assert!(stdout.starts_with(&format!("{id}\n")), "{stdout}");
        for line in lines {
            assert!(stdout.contains(line), "{id} lacks {line}:\n{stdout}");
        }
    }
}

#[test]
fn a_variable_that_names_the_policy_does_not_stand_in_the_way_of_a_cause() {
    let mut command = routecause();
    command.args(["explain", "--cause", "dns.timeout"]);
    let (status, stdout, stderr) = run(command.env("ROUTECAUSE_POLICY", "/nowhere.yaml"));
    assert!(status.success(), "{stderr}");
    assert!(stdout.starts_with("dns.timeout\n"), "{stdout}");
}

#[test]
fn a_family_of_causes_is_listed() {
    let ids = |asked: &str| {
        let (code, stdout, stderr) = type_in(&["explain", "--cause", asked]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{asked}");
        let words = stdout
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned());
        words.collect::<Vec<_>>()
    };
    let expected = [
        "connect.unreachable.net",
        "connect.unreachable.host",
        "connect.unreachable.proto",
    ];
    for asked in [
        "connect.unreachable",
        "connect.unreachable.",
        "connect.unreachable.*",
    ] {
        assert_eq!(ids(asked), expected, "{asked}");
    }
    assert!(ids("tls").contains(&"tls.alert_from_server.<name>".to_owned()));
    assert_eq!(ids("http.status"), ["http.status.<code>"]);
    assert!(ids("upstream.tls").contains(&"upstream.tls.cert.expired".to_owned()));
    assert!(!ids("upstream").contains(&"upstream.tls.cert.expired".to_owned()));
    assert!(ids("all").len() > ids("tls").len() + ids("connect").len());
}

#[test]
fn a_cause_that_is_none_is_2_and_the_nearest_are_named() {
    for (id, near) in [
        ("conect.timeout", "connect.timeout"),
        ("upstream.connect.refsed", "upstream.connect.refused"),
        ("tls.cert.expiry", "tls.cert.expired"),
    ] {
        let (code, stdout, stderr) = type_in(&["explain", "--cause", id]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{id}");
        assert!(
            stderr.starts_with(&format!("error: there is no cause {id:?}\n")),
            "{stderr}"
        );
        assert!(stderr.contains(&format!("did you mean {near}")), "{stderr}");
    }
    let (code, _, stderr) = type_in(&["explain", "--cause", ""]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--cause all"), "{stderr}");
}

/// Every cause, as `explain --cause all --json` tells it.
fn causes() -> Vec<Value> {
    let (code, stdout, stderr) = type_in(&["explain", "--cause", "all", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let told: Value = serde_json::from_str(&stdout).unwrap();
    check!(&told, "schema": "routecause.cause/1");
    told["causes"].as_array().unwrap().clone()
}

#[test]
fn causes_as_json_keep_their_form() {
    let all = causes();
    let one = all
        .iter()
        .find(|cause| cause["id"] == "proxy.loop")
        .unwrap();
    check!(one,
        "phase": null, "side": "proxy", "status": 508, "confidence": "certain", "proxy_status": "proxy_loop_detected",
        "means": "our own name stands in Via, or the target is one of our listeners",
        "hint": "the request came back to this proxy: a proxy variable, NO_PROXY or a rule points at ourselves",
    );
}

#[test]
fn explain_tells_the_hops_of_a_chain_and_what_leads_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.yaml");
    fs::write(
        &path,
        "version: 1\nupstreams: {corp: {url: \"http://p.example:1\"}}\nrules: []\ndefault: {via: \"direct|corp,off\"}\n",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let told = |asked: &[&str]| {
        let (code, stdout, stderr) = type_in(&[&["explain", "--policy", path], asked].concat());
        assert_eq!((code, stderr.as_str()), (0, ""));
        stdout
    };
    let text = told(&["https://a.example/"]);
    assert!(
        text.contains(
            "\n  goes via direct|corp,off: direct, then corp (after any failure but a refusal), \
             then refused (where the name is not found), by default ("
        ),
        "{text}"
    );
    assert!(
        text.contains(
            "\n  up to 2 hops within 9s\n  a tunnel keeps its hop from the server's first byte on (commit: first_byte)\n"
        ),
        "{text}"
    );
    let text = told(&["http://a.example/"]);
    let again = "\n  once sent, sent again: safe methods, with a body of 65536 bytes at most\n";
    assert!(text.contains(again) && !text.contains("commit"), "{text}");
    let json: Value = serde_json::from_str(&told(&["--json", "http://a.example/"])).unwrap();
    let decision = &json["decision"];
    check!(decision, "action": "via", "route": "direct|corp,off", "upstream": null, "commit": null,
        "retry": {"attempts": 2, "budget": "9s", "methods": "safe", "replay_body": 65536});
    let hops = &decision["hops"];
    check!(&hops[0], "hop": "direct", "next_on": ["not_found", "dns", "connect", "proxy_down", "proxy_auth", "gateway",
        "proxy_error", "reset", "hello_timeout", "not_tls", "first_byte"]);
    check!(&hops[1], "hop": "corp", "next_on": ["not_found"]);
    check!(&hops[2], "hop": "off", "next_on": []);
}

/// The table of docs/routing.md: what makes a chain go on.
fn classes() -> String {
    use routecause::cause::{Class, Classes};

    let mut lines = vec![
        "| class | what happened | `,` | `\\|` | sends again |".to_owned(),
        "| --- | --- | --- | --- | --- |".to_owned(),
    ];
    let sign = |is_so: bool| if is_so { "yes" } else { "" };
    for class in Class::ALL {
        lines.push(format!(
            "| `{}` | {} | {} | {} | {} |",
            class.as_str(),
            class.means(),
            sign(Classes::COMMA.contains(*class)),
            sign(Classes::PIPE.contains(*class)),
            sign(class.needs_replay())
        ));
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_documents_tell_every_class_of_failure_as_the_program_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/routing.md");
    let routing = fs::read_to_string(&path).unwrap();
    let table = classes();
    assert!(
        routing.contains(&table),
        "docs/routing.md lacks this table:\n{table}"
    );
}

/// The tables of docs/causes.md: one for each first word of an id.
fn tables() -> String {
    let mut lines = Vec::new();
    let mut family = String::new();
    for cause in causes() {
        let id = cause["id"].as_str().unwrap();
        let first = id.split('.').next().unwrap();
        if family != first {
            lines.push(format!("\n## `{first}`\n"));
            lines.push("| id | side | status | how it is told | what to do |".to_owned());
            lines.push("| --- | --- | --- | --- | --- |".to_owned());
            first.clone_into(&mut family);
        }
        let status = match (id, &cause["status"]) {
            ("http.status.<code>", _) => "the code".to_owned(),
            (_, Value::Null) => String::new(),
            (_, status) => status.to_string(),
        };
        let cell = |key: &str| cause[key].as_str().unwrap().replace('|', "\\|");
        let (side, means, hint) = (cell("side"), cell("means"), cell("hint"));
        lines.push(format!("| `{id}` | {side} | {status} | {means} | {hint} |"));
    }
    lines.join("\n") + "\n\n"
}

#[test]
fn the_page_of_causes_tells_what_the_program_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/causes.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- causes: begin -->\n").unwrap();
    let (told, after) = rest.split_once("<!-- causes: end -->\n").unwrap();
    let tables = tables();
    if std::env::var_os("ROUTECAUSE_TEST_REWRITE").is_some() {
        let whole =
            format!("{before}<!-- causes: begin -->\n{tables}<!-- causes: end -->\n{after}");
        fs::write(&path, whole).unwrap();
        return;
    }
    assert!(
        told == tables,
        "docs/causes.md differs from the table of causes: ROUTECAUSE_TEST_REWRITE=1 cargo test --test cli causes writes it anew"
    );
}
