//! `routecause run`: a proxy for one command, and what it reports.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::origin::Origin;
use support::web::{self, Ca, Web};
use support::{check, needs, routecause, run};

/// Everything that ends in `.test` is on loopback.
const HOSTS: &str =
    "version: 1\ndns: {hosts: {files.test: [127.0.0.1], other.test: [127.0.0.1]}}\n";

struct Scene {
    folder: tempfile::TempDir,
    web: Web,
}

impl Scene {
    /// A policy on top of the names.
    fn new(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("policy.yaml"),
            format!("{HOSTS}{policy}"),
        )
        .unwrap();
        fs::write(folder.path().join("answer"), "42").unwrap();
        Self {
            web: Web::plain(web::folder(folder.path())),
            folder,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/answer", self.web.port())
    }

    /// `routecause run`, with the policy and more flags, before `--`.
    fn run(&self, flags: &[&str]) -> Command {
        let mut command = routecause();
        command.args(["run", "--policy", &self.path("policy.yaml")]);
        command.args(flags).arg("--");
        command
    }
}

const ALLOW: &str = "rules:\n  - {name: files, match: {host: files.test}, direct: true}\ndefault: {block: {reason: 'not listed'}}\n";

#[test]
fn a_command_is_run_behind_its_own_proxy_and_its_requests_are_told() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::new(ALLOW);
    let out = scene.path("out");
    let script = format!(
        "curl -sS {} && curl -sS -o /dev/null {}",
        scene.url("files.test"),
        scene.url("other.test")
    );
    let flags = ["--report", &out, "--fail-on", "denied,failed"];
    let summary = scene.path("summary.md");
    let mut command = scene.run(&flags);
    command
        .args(["sh", "-c", &script])
        .env("GITHUB_STEP_SUMMARY", &summary);
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!(stdout, "42", "{stderr}");
    assert_eq!(status.code(), Some(3), "{stderr}");
    for part in [
        "routecause: 2 requests to 2 hosts, 2B down, 0B up; 1 denied",
        "mode enforce",
        "DENIED  other.test:",
        "policy.denied.default",
        "ok      files.test:",
    ] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    let read = |name: &str| fs::read_to_string(format!("{out}/{name}")).unwrap();
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    check!(&report, "schema": "routecause.report/1", "requests": 2, "denied": 1, "failed": 0, "exit_code": 0);
    check!(&report["rows"][0], "verdict": "denied", "cause": "policy.denied.default", "count": 1);
    check!(&report["rows"][1], "verdict": "reached", "route": "direct", "rule": "files");
    let records: Vec<Value> = read("records.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 2);
    assert!(
        records
            .iter()
            .any(|record| record["event.id"] == report["rows"][0]["records"][0])
    );
    assert!(read("report.md").contains("| DENIED | other.test:"));
    assert_eq!(read("report.md"), fs::read_to_string(summary).unwrap());
    assert!(read("junit.xml").contains("tests=\"2\" failures=\"1\""));
}

#[test]
fn what_is_only_noted_passes_and_is_told() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::new(ALLOW);
    let mut command = scene.run(&["--mode", "report", "--fail-on", "denied"]);
    let (status, stdout, stderr) = run(command.args(["curl", "-sS", &scene.url("other.test")]));
    assert_eq!((status.code(), &*stdout), (Some(0), "42"), "{stderr}");
    assert!(stderr.contains("1 would be denied"), "{stderr}");
    assert!(stderr.contains("mode report"), "{stderr}");
    assert!(
        stderr.contains("enforced, default would refuse it"),
        "{stderr}"
    );
}

#[test]
fn a_refusal_that_is_expected_fails_no_run() {
    if !needs::has("curl") {
        return;
    }
    let noise = "rules:\n  - {name: noise, match: {host: other.test}, block: {reason: 'phone-home', code: expected}}\n";
    let scene = Scene::new(&format!("{noise}default: {{direct: true}}\n"));
    let (other, out) = (scene.url("other.test"), scene.path("out"));
    let script = format!("curl -sS -o /dev/null -w '%{{http_code}}' {other}");
    let flags = ["--report", &*out, "--fail-on", "denied"];
    let (status, stdout, stderr) = run(scene.run(&flags).args(["sh", "-c", &script]));
    assert_eq!((status.code(), &*stdout), (Some(0), "403"), "{stderr}");
    assert!(stderr.contains("; 1 expected\n"), "{stderr}");
    assert!(stderr.contains("\nexpected  other.test:"), "{stderr}");
    let read = |name: &str| fs::read_to_string(format!("{out}/{name}")).unwrap();
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    check!(&report, "denied": 0, "expected": 1);
    check!(&report["rows"][0], "verdict": "expected", "cause": "policy.denied.rule", "rule": "noise");
    assert!(read("junit.xml").contains("failures=\"0\""));
    // It is nothing to speak of.
    let (_, _, stderr) = run(scene.run(&["--quiet"]).args(["sh", "-c", &script]));
    assert_eq!(stderr, "");
    // Where it is only noted the record has the word as well.
    let flags = ["--report", &*out, "--mode", "report"];
    let (_, stdout, stderr) = run(scene.run(&flags).args(["sh", "-c", &script]));
    assert_eq!(stdout, "200", "{stderr}");
    assert!(stderr.contains("; 1 expected\n"), "{stderr}");
    let record: Value = serde_json::from_str(&read("records.jsonl")).unwrap();
    check!(&record, "egress.would": "noise", "egress.code": "expected", "event.outcome": "success");
}

#[test]
fn a_failure_on_the_way_is_told_with_its_cause_and_what_to_do() {
    if !needs::has("curl") {
        return;
    }
    let gone = Origin::nowhere().port();
    let scene = Scene::new("rules: []\ndefault: {direct: true}\n");
    let url = format!("https://files.test:{gone}/");
    let mut command = scene.run(&["--fail-on", "failed"]);
    let script = format!("curl -sS {url} || true");
    let (status, _, stderr) = run(command.args(["sh", "-c", &script]));
    assert_eq!(status.code(), Some(4), "{stderr}");
    for part in ["FAILED  files.test:", "connect.refused: ", "→ ", "record "] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    // Without the flag nothing changes, and the command's own code wins.
    let (status, _, _) = run(scene.run(&[]).args(["sh", "-c", &script]));
    assert_eq!(status.code(), Some(0));
    let mut command = scene.run(&["--fail-on", "failed"]);
    let (status, _, _) = run(command.args(["curl", "-sS", &url]));
    assert_eq!(status.code(), Some(56));
}

#[test]
fn a_policy_of_a_proxy_that_stays_speaks_of_the_commands_own_listener() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::new(
        "server:\n  listen: [{name: host, address: '127.0.0.1:3128', tls: {cert: none.pem, key: none.pem}}, \
         {name: build, address: '192.0.2.1:3128'}]\n  \
         auth: {users: none}\n  allow_from: 192.0.2.0/24\n  name: ours\nclients: {roles: {build: {listener: build}}}\nrules:\n  \
         - {name: files, match: {host: files.test, client: {role: build}}, direct: true}\ndefault: {block: true}\n",
    );
    let mut command = scene.run(&[]);
    command.args(["curl", "-sS", "-D", "-"]);
    let (_, stdout, stderr) = run(command.args([scene.url("files.test"), scene.url("other.test")]));
    assert!(stdout.contains("\r\n\r\n42HTTP/1.1 403 "), "{stdout}");
    assert!(
        stdout.to_lowercase().contains("\nproxy-status: ours; "),
        "{stdout}"
    );
    let told = "warning: `run` and `lab` have a proxy of their own: server.listen, server.auth, server.allow_from are not used\n";
    assert!(
        stderr.starts_with(&format!("{}: {told}", scene.path("policy.yaml"))),
        "{stderr}"
    );
    assert_eq!(stderr.matches("warning").count(), 1, "{stderr}");
}

#[test]
fn exit_codes_are_those_of_the_command_or_of_env() {
    let scene = Scene::new(ALLOW);
    let code = |args: &[&str]| run(scene.run(&["--quiet"]).args(args)).0.code();
    assert_eq!(code(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["/nonexistent/program"]), Some(127));
    assert_eq!(code(&[&scene.path("answer")]), Some(126));
    let mut bad = routecause();
    bad.args(["run", "--policy", "/nonexistent.yaml", "--", "true"]);
    assert_eq!(run(&mut bad).0.code(), Some(78));
    let (status, _, stderr) = run(routecause().arg("run"));
    assert_eq!(status.code(), Some(2), "{stderr}");
}

#[test]
fn flags_before_the_command_are_ours_and_those_behind_it_are_its_own() {
    let scene = Scene::new(ALLOW);
    let policy = scene.path("policy.yaml");
    let (status, _, stderr) = run(routecause().args(["run", "--polcy", &policy, "--", "true"]));
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("unexpected argument '--polcy' found") && stderr.contains("'--policy'"),
        "{stderr}"
    );
    // With `--` and without.
    let flags = ["run", "--quiet", "--policy", &policy];
    for between in [&["--"][..], &[]] {
        let mut command = routecause();
        command.args(flags).args(between);
        command.args(["echo", "--policy", "x", "-q", "--", "-n"]);
        let (status, stdout, stderr) = run(&mut command);
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert_eq!(stdout, "--policy x -q -- -n\n");
    }
}

#[test]
fn the_command_is_told_of_the_proxy_by_every_name() {
    let scene = Scene::new(ALLOW);
    let mut command = scene.run(&["--quiet"]);
    command
        .env("NO_PROXY", "corp.example")
        .env("JAVA_TOOL_OPTIONS", "-Xmx1g");
    let (_, stdout, stderr) = run(command.arg("env"));
    assert_eq!(stderr, "");
    let value = |name: &str| {
        let start = format!("{name}=");
        let line = stdout.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {name} in {stdout}"))
            .to_owned()
    };
    let url = value("http_proxy");
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    for name in [
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "npm_config_proxy",
    ] {
        assert_eq!(value(name), url);
    }
    // The user's own list is the policy's to judge.
    assert_eq!(value("NO_PROXY"), "localhost,127.0.0.1,::1");
    assert!(value("JAVA_TOOL_OPTIONS").starts_with("-Xmx1g -Dhttp.proxyHost=127.0.0.1 "));
}

#[test]
fn signals_reach_the_command() {
    let scene = Scene::new(ALLOW);
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGUSR1,
    ] {
        let mut command = scene.run(&["--quiet"]);
        let script = "for s in TERM HUP INT USR1; do trap \"echo got $s; exit 7\" $s; done; echo ready; while :; do sleep 0.05; done";
        command
            .args(["sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        assert_eq!(
            rest,
            format!("got {}\n", signal.as_str().trim_start_matches("SIG"))
        );
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }
}

#[test]
fn a_private_authority_is_trusted_by_the_tools_that_are_told() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::new(ALLOW);
    let ca = Ca::new();
    let https = Web::tls(&ca, &["files.test"], web::folder(scene.folder.path()));
    let url = format!("https://files.test:{}/answer", https.port());
    let (status, _, stderr) = run(scene.run(&[]).args(["curl", "-sS", &url]));
    assert_eq!(status.code(), Some(60), "{stderr}");
    let file = ca.file().display().to_string();
    let (status, stdout, stderr) = run(scene.run(&["--ca", &file]).args(["curl", "-sS", &url]));
    assert_eq!((status.code(), &*stdout), (Some(0), "42"), "{stderr}");
    let (status, _, stderr) = run(scene.run(&["--ca", &scene.path("answer")]).arg("true"));
    assert_eq!(status.code(), Some(125));
    assert!(stderr.contains("holds no certificate in PEM"), "{stderr}");
}

#[test]
fn what_was_seen_becomes_a_policy_that_lets_it_through_and_nothing_else() {
    if !needs::has("curl") {
        return;
    }
    let scene = Scene::new(ALLOW);
    let learned = scene.path("learned.yaml");
    let (status, stdout, stderr) = run(scene.run(&["--learn", &learned]).args([
        "curl",
        "-sS",
        &scene.url("files.test"),
        &scene.url("other.test"),
    ]));
    assert_eq!((status.code(), &*stdout), (Some(0), "4242"), "{stderr}");
    let text = fs::read_to_string(&learned).unwrap();
    assert!(text.contains("refused so far by default"), "{text}");
    let (status, _, stderr) = run(routecause().args(["check", &learned]));
    assert!(status.success(), "{stderr}");
    let explain = |host: &str| {
        let (_, stdout, _) =
            run(routecause().args(["explain", "--policy", &learned, &scene.url(host)]));
        stdout
    };
    assert!(
        explain("other.test").contains("goes direct"),
        "{}",
        explain("other.test")
    );
    assert!(
        explain("third.test").contains("not on the list"),
        "{}",
        explain("third.test")
    );
    // A file that is there is not written over.
    let (status, _, stderr) = run(scene.run(&["--learn", &learned]).arg("true"));
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert_eq!(fs::read_to_string(&learned).unwrap(), text);
}

#[test]
fn a_place_that_nothing_can_be_learned_into_is_told_before_the_command_runs() {
    let scene = Scene::new(ALLOW);
    let (nowhere, here) = (scene.path("nowhere/x.yaml"), scene.path("x.yaml"));
    let flags = ["--quiet", "--learn", &nowhere];
    let (status, stdout, stderr) = run(scene.run(&flags).args(["echo", "ran"]));
    assert_eq!((status.code(), &*stdout), (Some(125), ""), "{stderr}");
    assert!(
        stderr.contains("--learn: write") && stderr.contains("nowhere/x.yaml"),
        "{stderr}"
    );
    // Where the file comes up meanwhile, the command's own code is kept.
    let script = format!("echo mine > {here}; exit 7");
    let flags = ["--quiet", "--learn", &here];
    let (status, _, stderr) = run(scene.run(&flags).args(["sh", "-c", &script]));
    assert_eq!(status.code(), Some(7), "{stderr}");
    assert!(stderr.contains("x.yaml"), "{stderr}");
    assert_eq!(fs::read_to_string(&here).unwrap(), "mine\n");
}

#[test]
fn modules_that_go_could_not_fetch_are_tied_to_the_requests_behind_them() {
    if !needs::has("go") {
        return;
    }
    let scene = Scene::new(
        "rules:\n  - {name: no, match: {host: files.test}, block: {reason: 'not that one'}}\ndefault: {direct: true}\n",
    );
    let module = scene.folder.path().join("m");
    fs::create_dir(&module).unwrap();
    fs::write(
        module.join("go.mod"),
        "module a.example/m\n\ngo 1.19\n\nrequire b.example/n v1.2.3\n",
    )
    .unwrap();
    let mut command = scene.run(&[]);
    command
        .args(["go", "mod", "download"])
        .current_dir(&module)
        .env("HOME", scene.folder.path())
        .env("GOPROXY", "https://files.test")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "-mod=mod -modcacherw")
        .env("GONOSUMDB", "*");
    let (status, _, stderr) = run(&mut command);
    assert!(!status.success(), "{stderr}");
    // Go's own words pass through, and the module is named with what is behind it.
    assert!(stderr.contains("go: b.example/n@v1.2.3"), "{stderr}");
    assert!(
        stderr.contains("\nb.example/n@v1.2.3\n        failed by policy.denied.rule\n"),
        "{stderr}"
    );
}

#[test]
fn a_docker_build_gets_its_arguments_and_an_address_that_it_can_reach() {
    let scene = Scene::new(ALLOW);
    // What stands in for the engine's command tells its arguments; its bridge is an address that this machine has.
    let script = "#!/bin/sh\nif [ \"$1\" = network ]; then echo '[{\"IPAM\": {\"Config\": [{\"Subnet\": \"127.9.0.0/16\"}]}}]'\nelse printf '%s\\n' \"$@\"; fi\n";
    let docker = scene.folder.path().join("docker");
    fs::write(&docker, script).unwrap();
    fs::set_permissions(&docker, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        scene.folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let mut command = scene.run(&["--quiet"]);
    command
        .env("PATH", path)
        .args(["docker", "build", "-t", "a", "."]);
    let (status, stdout, stderr) = run(&mut command);
    assert!(status.success(), "{stderr}");
    let words: Vec<_> = stdout.lines().collect();
    assert_eq!(words[0..2], ["build", "--build-arg"]);
    assert!(
        words[2].starts_with("HTTP_PROXY=http://127.9.0.1:"),
        "{stdout}"
    );
    assert!(
        stdout.contains("\nno_proxy=localhost,127.0.0.1,::1\n"),
        "{stdout}"
    );
    assert_eq!(words[words.len() - 3..], ["-t", "a", "."]);
}
