//! `routecause doctor` beside the one verdict: mirrors side by side, and connections that are left alone.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use support::netns::Net;
use support::origin::Origin;
use support::web::{self, Ca, Web};
use support::{Proxy, routecause, run, run_within, user, wire};

/// Longer than any silence here.
const LONG: Duration = Duration::from_mins(1);

fn said(command: &mut Command, schema: &str) -> Value {
    let (status, stdout, stderr) = run_within(command.env("TERM", "dumb"), LONG);
    let said: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    assert_eq!(said["schema"], schema);
    assert_eq!(
        status.success(),
        said["verdict"]["id"] == "fine",
        "{said:#}"
    );
    said
}

/// A mirror with this content.
fn mirror(content: &'static str) -> Web {
    Web::plain(move |_| {
        let mut answer = web::answer(200, content);
        answer
            .headers_mut()
            .insert("etag", "\"e\"".parse().unwrap());
        answer
    })
}

fn compare(urls: &[&str]) -> Value {
    let mut command = routecause();
    command.args(["doctor", "--compare", "--json"]).args(urls);
    said(&mut command, "routecause.doctor.compare/1")
}

#[test]
fn mirrors_are_held_against_each_other() {
    let (one, two, other) = (mirror("same"), mirror("same"), mirror("else"));
    let [one, two, other] =
        [&one, &two, &other].map(|web| format!("http://127.0.0.1:{}/f?x=1", web.port()));
    let told = compare(&[&one, &two]);
    assert_eq!(told["verdict"]["id"], "fine", "{told:#}");
    let first = &told["mirrors"][0];
    // SHA-256 of "same".
    assert!(
        first["sha256"]
            .as_str()
            .unwrap()
            .starts_with("0967115f2813a3541eaef77de9d9d577"),
        "{told:#}"
    );
    assert_eq!(
        (&first["length"], &first["etag"]),
        (&4.into(), &"\"e\"".into()),
        "{told:#}"
    );
    let told = compare(&[&one, &two, &other]);
    assert_eq!(told["verdict"]["id"], "mirrors_differ", "{told:#}");
    assert!(
        told["verdict"]["fix"].as_str().unwrap().contains("2 agree"),
        "{told:#}"
    );
    let gone = format!("http://{}/f", Origin::nowhere());
    let told = compare(&[&one, &gone]);
    assert_eq!(told["verdict"]["id"], "some_mirrors_fail", "{told:#}");
    assert!(
        told["mirrors"][1]["failure"]
            .as_str()
            .unwrap()
            .starts_with("connect.refused: "),
        "{told:#}"
    );
}

#[test]
fn mirrors_are_asked_for_by_their_path_and_in_tls() {
    let ca = Ca::new();
    let web = Web::tls(&ca, &["localhost"], |request| {
        web::answer(200, request.uri().to_string())
    });
    let url = |path: &str| format!("https://localhost:{}{path}", web.port());
    let mut command = routecause();
    command.args([
        "doctor",
        "--compare",
        "--json",
        &url("/a?b=c"),
        &url("/a?b=c#d"),
    ]);
    let told = said(
        command.env("SSL_CERT_FILE", ca.file()),
        "routecause.doctor.compare/1",
    );
    assert_eq!(told["verdict"]["id"], "fine", "{told:#}");
    assert_eq!(told["mirrors"][0]["length"], 6, "{told:#}");
    let (status, _, stderr) = run(routecause().args(["doctor", "--compare", "https://a.test/"]));
    assert_eq!(status.code(), Some(2), "{stderr}");
}

/// An upstream that opens no tunnels and wants to know who asks, and a policy that goes by it.
fn behind_an_upstream() -> (Proxy, tempfile::TempDir) {
    let rules = "rules: [{name: tunnels, match: {scheme: connect}, block: true}]";
    let upstream = Proxy::under(&format!(
        "version: 1\nserver: {{auth: {{users: users.txt}}}}\n{rules}\ndefault: {{direct: true}}\n"
    ));
    let upstream = upstream.file("users.txt", &user("me", "pa55w0rd")).start();
    let folder = tempfile::tempdir().unwrap();
    let auth = "{username: {env: CORP_USER}, password: {env: CORP_PASSWORD}}";
    fs::write(
        folder.path().join("policy.yaml"),
        format!(
            "version: 1\nupstreams: {{corp: {{url: '{}', auth: {auth}}}}}\nrules: []\ndefault: {{via: corp}}\n",
            upstream.url()
        ),
    )
    .unwrap();
    (upstream, folder)
}

fn look_behind(folder: &tempfile::TempDir, args: &[&str], password: &str) -> Value {
    let mut command = routecause();
    command
        .args(["doctor", "--json"])
        .args(args)
        .arg("--policy")
        .arg(folder.path().join("policy.yaml"))
        .env("CORP_USER", "me")
        .env("CORP_PASSWORD", password);
    let flag = args.first().unwrap().trim_start_matches("--");
    said(&mut command, &format!("routecause.doctor.{flag}/1"))
}

#[test]
fn an_upstream_is_asked_for_mirrors_of_plain_http_as_the_proxy_asks_it() {
    let (one, two) = (mirror("same"), mirror("same"));
    let [one, two] = [&one, &two].map(|web| format!("http://127.0.0.1:{}/f?x=1", web.port()));
    let (upstream, folder) = behind_an_upstream();
    let told = look_behind(&folder, &["--compare", &one, &two], "pa55w0rd");
    assert_eq!(told["verdict"]["id"], "fine", "{told:#}");
    assert_eq!(told["mirrors"][1]["route"], "corp", "{told:#}");
    assert_eq!(told["mirrors"][1]["length"], 4, "{told:#}");
    let told = look_behind(&folder, &["--compare", &one, &two], "wrong");
    assert_eq!(told["verdict"]["id"], "no_mirror_works", "{told:#}");
    let failure = told["mirrors"][0]["failure"].as_str().unwrap();
    assert!(failure.starts_with("upstream.auth_rejected: "), "{told:#}");
    drop(upstream);
    let told = look_behind(&folder, &["--compare", &one, &two], "pa55w0rd");
    let failure = told["mirrors"][0]["failure"].as_str().unwrap();
    assert!(
        failure.starts_with("upstream.connect.refused: "),
        "{told:#}"
    );
}

#[test]
fn an_upstream_that_plain_requests_go_to_is_what_is_left_alone() {
    let web = mirror("");
    let url = format!("http://127.0.0.1:{}/", web.port());
    let (_upstream, folder) = behind_an_upstream();
    let told = look_behind(&folder, &["--idle", "1s", &url], "pa55w0rd");
    assert_eq!(told["verdict"]["id"], "fine", "{told:#}");
    let sentence = told["verdict"]["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("connections to corp "), "{told:#}");
    assert_eq!(told["silences"][0]["upstream"], "corp", "{told:#}");
}

#[test]
fn what_one_upstream_of_a_group_is_told_is_not_told_another() {
    let one = Origin::answering(
        "HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let two = Origin::serving(|mut stream| {
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        heard
    });
    let folder = tempfile::tempdir().unwrap();
    let auth = "auth: {username: {env: CORP_USER}, password: {env: CORP_PASSWORD}}";
    fs::write(
        folder.path().join("policy.yaml"),
        format!(
            "version: 1\nupstreams:\n  one: {{url: 'http://{}', {auth}}}\n  two: {{url: 'http://{}'}}\n\
             groups: {{corp: {{members: [one, two], balance: round_robin}}}}\nrules: []\ndefault: {{via: corp}}\n",
            one.address, two.address
        ),
    )
    .unwrap();
    let urls = ["http://a.test/f", "http://b.test/f"];
    let told = look_behind(&folder, &["--compare", urls[0], urls[1]], "pa55w0rd");
    assert_eq!(told["verdict"]["id"], "no_mirror_works", "{told:#}");
    // Each look begins anew with the first.
    for _ in urls {
        assert!(one.heard().starts_with("GET http://"));
        assert_eq!(two.heard(), "");
    }
}

#[test]
fn who_does_not_answer_at_once_is_not_called_tired_of_silence() {
    let origin = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        std::thread::sleep(LONG);
        head
    });
    let mut command = routecause();
    let url = format!("http://{}/", origin.address);
    command.args(["doctor", "--json", "--idle", "2s", &url]);
    let told = said(&mut command, "routecause.doctor.idle/1");
    assert_eq!(told["verdict"]["id"], "never_stood", "{told:#}");
}

#[test]
fn several_looks_tell_what_comes_and_goes() {
    let is_down = Arc::new(AtomicBool::new(false));
    let web = Web::plain({
        let is_down = is_down.clone();
        move |_| {
            web::answer(
                if is_down.load(Ordering::Relaxed) {
                    503
                } else {
                    200
                },
                "",
            )
        }
    });
    let mut child = routecause()
        .args(["doctor", "--thorough", "--json", "--no-control"])
        .arg(format!("http://127.0.0.1:{}/", web.port()))
        .env("TERM", "dumb")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        // The first look is over.
        is_down.fetch_or(line.unwrap().contains("look 2 of 3"), Ordering::Relaxed);
    }
    let output = child.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told:#}");
    let verdict = &told["verdict"];
    assert_eq!(verdict["id"], "intermittent", "{told:#}");
    assert_eq!(
        verdict["sentence"], "it comes and goes: fine 1 times of 3",
        "{told:#}"
    );
}

/// What is said of connections of the client's to the server that are silent for up to so long.
fn left_alone(net: &Net, longest: &str) -> Value {
    let address = net.address();
    let _web = net
        .server
        .within(|| Web::plain_on((address, 80).into(), |_| web::answer(200, "")));
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    fs::write(&policy, "version: 1\nrules: []\ndefault: {direct: true}\n").unwrap();
    let mut command = net.client.command(env!("CARGO_BIN_EXE_routecause"));
    command
        .args([
            "doctor",
            "--json",
            "--idle",
            longest,
            &format!("http://{address}/"),
            "--policy",
        ])
        .arg(policy);
    said(&mut command, "routecause.doctor.idle/1")
}

/// Looks through a box that forgets connections after some seconds, and does this with what it does not know.
fn is_found(action: &str, end: &str, how: &str) {
    let Some(net) = Net::new() else { return };
    // The kernel's own tracker of connections, which takes up none that it has not seen begin.
    net.router.iptables(&format!(
        "-A FORWARD -p tcp -m conntrack --ctstate INVALID -j {action}"
    ));
    net.router
        .sysctl("net.netfilter.nf_conntrack_tcp_loose", "0");
    let told = left_alone(&net, "1s");
    assert_eq!(told["verdict"]["id"], "fine", "{told:#}");
    net.router
        .sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "4");
    let told = left_alone(&net, "9s");
    assert_eq!(told["verdict"]["id"], "idle_timeout", "{told:#}");
    assert!(
        told["verdict"]["sentence"].as_str().unwrap().contains(how),
        "{told:#}"
    );
    let silences = told["silences"].as_array().unwrap();
    let ends = (&silences[0]["end"], &silences[7]["end"], silences.len());
    assert_eq!(ends, (&"alive".into(), &end.into(), 8), "{told:#}");
}

#[test]
fn a_box_that_forgets_silent_connections_is_found_with_its_timer() {
    is_found("DROP", "silent", "without a word");
}

#[test]
fn a_box_that_says_that_it_forgot_is_found_as_well() {
    is_found("REJECT --reject-with tcp-reset", "reset", "by a reset");
}
