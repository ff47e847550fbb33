//! Real clients that do not trust a server behind the proxy: how each refuses, and what is recorded of it.

mod support;

use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use support::goods::succeed;
use support::origin::Origin;
use support::tls::{self, Leaf, ONLY_12, ONLY_13, Versions};
use support::web::Ca;
use support::{Proxy, needs, run};

/// Tools do not proxy loopback addresses, so the server has a name that only the proxy knows.
const POLICY: &str = "\
version: 1
dns: {hosts: {files.test: [127.0.0.1]}}
rules: []
default: {direct: true}
";

/// Lets a client fetch a page of a server that shows `leaf`; what is recorded of it, and what the client complained of.
fn refused(
    leaf: Leaf,
    versions: Versions,
    client: impl Fn(&Ca, &str) -> Command,
) -> (Value, String) {
    let ca = Ca::new();
    let config = tls::server(&ca.identity(leaf, "files.test"), versions);
    let origin = Origin::serving(move |stream| {
        tls::echo(&config, stream);
        String::new()
    });
    let proxy = Proxy::start(POLICY);
    let url = format!("https://files.test:{}/", origin.address.port());
    let mut command = client(&ca, &url);
    for (name, _) in std::env::vars() {
        let lower = name.to_lowercase();
        let is_setting = ["ssl_", "curl_", "node_"]
            .iter()
            .any(|prefix| lower.starts_with(prefix));
        if is_setting || lower.ends_with("_proxy") {
            command.env_remove(&name);
        }
    }
    command.env("https_proxy", proxy.url());
    let (status, stdout, stderr) = run(&mut command);
    assert!(!status.success(), "{stdout}{stderr}");
    (proxy.record(), stdout + &stderr)
}

/// The same, for a server whose authority the client does not know, over both versions; what the client complains of,
/// and the causes.
#[track_caller]
fn strangers(
    client: impl Fn(&Ca, &str) -> Command,
    complaint: &str,
    cause_12: &str,
    cause_13: &str,
) {
    for (versions, version, cause) in [(ONLY_12, "1.2", cause_12), (ONLY_13, "1.3", cause_13)] {
        let (record, said) = refused(Leaf::Good, versions, &client);
        assert!(said.contains(complaint), "{said}");
        told(&record, version, cause);
    }
}

/// A tunnel that stood, and whose client would not go on.
#[track_caller]
fn told(record: &Value, version: &str, cause: &str) {
    support::compare(
        record,
        &[
            ("error.type", json!(cause)),
            ("egress.phase", json!("tls")),
            ("egress.side", json!("client")),
            ("http.response.status_code", json!(200)),
            ("tls.client.server_name", json!("files.test")),
            ("tls.protocol.version", json!(version)),
            ("egress.suspects", Value::Null),
        ],
    );
}

fn curl(url: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", url]);
    command
}

#[test]
fn curl_says_why_in_an_alert() {
    if !needs::has("curl") {
        return;
    }
    strangers(
        |_, url| curl(url),
        "SSL certificate problem",
        "tls.client_rejected_certificate.unknown_ca",
        "tls.client_rejected_certificate.unknown_ca",
    );
}

#[test]
fn curl_looks_at_the_name_behind_the_handshake() {
    if !needs::has("curl") {
        return;
    }
    for (versions, version) in [(ONLY_12, "1.2"), (ONLY_13, "1.3")] {
        let (record, said) = refused(Leaf::WrongName, versions, |ca, url| {
            let mut command = curl(url);
            command.arg("--cacert").arg(ca.file());
            command
        });
        assert!(
            said.contains("no alternative certificate subject name"),
            "{said}"
        );
        told(&record, version, "tls.client_closed_before_request");
    }
}

#[test]
fn python_says_why_in_an_alert() {
    if !needs::has("python3") {
        return;
    }
    let script = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])";
    strangers(
        |_, url| {
            let mut command = Command::new("python3");
            command.args(["-c", script, url]);
            command
        },
        "CERTIFICATE_VERIFY_FAILED",
        "tls.client_rejected_certificate.unknown_ca",
        "tls.client_rejected_certificate.unknown_ca",
    );
}

#[test]
fn node_leaves_without_a_word() {
    if !needs::has("node") {
        return;
    }
    let script = "
        const [proxy, target] = [new URL(process.env.https_proxy), new URL(process.argv[1])];
        const fail = (error) => { console.error(error.message); process.exit(1); };
        require('http')
            .request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: target.host })
            .on('connect', (_, socket) => require('https').get(target, { socket, agent: false }).on('error', fail))
            .on('error', fail)
            .end();
    ";
    strangers(
        |_, url| {
            let mut command = Command::new("node");
            command.args(["-e", script, url]);
            command
        },
        "certificate in certificate chain",
        "tls.client_closed_before_request",
        "tls.client_closed_after_server_flight",
    );
}

#[test]
fn go_says_why_in_an_alert_which_1_3_hides() {
    if !needs::has("go") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = "
        package main

        import (
            \"fmt\"
            \"net/http\"
            \"os\"
        )

        func main() {
            _, err := http.Get(os.Args[1])
            fmt.Fprintln(os.Stderr, err)
            os.Exit(1)
        }
    ";
    std::fs::write(folder.path().join("get.go"), program).unwrap();
    let mut build = Command::new("go");
    build.args(["build", "get.go"]).current_dir(folder.path());
    // No module, no network, and nothing of the user's own.
    for (name, value) in [("GO111MODULE", "off"), ("GOPROXY", "off"), ("GOFLAGS", "")] {
        build.env(name, value);
    }
    build.env("GOCACHE", folder.path().join("cache"));
    succeed(&mut build);
    let get = Arc::new(folder.path().join("get"));
    strangers(
        |_, url| {
            let mut command = Command::new(get.as_path());
            command.arg(url);
            command
        },
        "certificate signed by unknown authority",
        "tls.client_rejected_certificate.bad_certificate",
        "tls.client_rejected_certificate.inferred",
    );
}
