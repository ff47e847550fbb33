//! What stands in `deploy/` fits what the proxy tells.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::admin::{self, ask};
use support::origin::Origin;
use support::{Proxy, needs, run, wire};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// The metrics of ours that a text names, without what stands for a sample of one.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("routecause_") || word.starts_with("process_"));
    ours.map(family).collect()
}

fn family(name: &str) -> String {
    let parts = ["_total", "_bucket", "_count", "_sum", "_info"];
    let part = parts.iter().find_map(|part| name.strip_suffix(part));
    part.unwrap_or(name).to_owned()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let policy = "version: 1\ndns: {hosts: {a.test: [127.0.0.1]}}\nupstreams: {corp: {url: \"http://127.0.0.1:9\"}}\ndefault: {via: \"corp|direct\"}\n";
    let proxy = admin::with_admin(Proxy::under(policy)).start();
    let at = admin::address(&proxy);
    // What was never counted is not told.
    let client = proxy.connect();
    let port = Origin::nowhere().port();
    wire::send(&client, format!("CONNECT a.test:{port} HTTP/1.1\r\n\r\n"));
    wire::read_answer(&client);
    let seen = r#"routecause_phase_duration_seconds_count{phase="total"} 1"#;
    let text = admin::until_metric(at, seen);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let known: BTreeSet<String> = types
        .map(|line| family(line.split(' ').next().unwrap()))
        .collect();
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    for text in [dashboard.to_string(), read("alerts.yaml")] {
        let named = named(&text);
        assert!(named.len() > 3, "{named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{unknown:?} of {known:?}");
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn prometheus_takes_the_alerts_and_the_metrics() {
    if !needs::has("promtool") {
        return;
    }
    let (status, out, err) = run(Command::new("promtool")
        .args(["check", "rules"])
        .arg(file("alerts.yaml")));
    assert!(status.success() && out.contains("SUCCESS"), "{out}{err}");
    let (status, out, err) = run(Command::new("promtool")
        .args(["test", "rules"])
        .arg(file("alerts.test.yaml")));
    assert!(status.success(), "{out}{err}");
    // What it would ask is a query as well.
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules: Vec<String> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .map(|expr| {
            expr.replace("$__rate_interval", "5m")
                .replace("$instance", ".*")
        })
        .enumerate()
        .map(|(at, expr)| format!("      - {{record: \"q{at}\", expr: '{expr}'}}\n"))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queries.yaml");
    std::fs::write(
        &path,
        format!("groups:\n  - name: queries\n    rules:\n{}", rules.concat()),
    )
    .unwrap();
    let (status, out, err) = run(Command::new("promtool").args(["check", "rules"]).arg(&path));
    assert!(status.success(), "{out}{err}");
    let proxy = admin::with_admin(Proxy::under(support::DIRECT)).start();
    let (_, _, text) = ask(admin::address(&proxy), "GET", "/metrics", "", "");
    let path = folder.path().join("metrics");
    // promtool reads the older form, which ends without a mark and knows no info.
    let older = text
        .trim_end_matches("# EOF\n")
        .replace(" info\n", " gauge\n");
    std::fs::write(&path, older).unwrap();
    let lint = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&path).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&lint.stderr).into_owned();
    // In OpenMetrics the family of a counter has no `_total` and that of an info no `_info`, which the older form cannot tell.
    let known = [
        "counter metrics should have",
        "use histogram",
        "no help text",
        "non-histogram",
    ];
    let complaints: Vec<_> = told
        .lines()
        .filter(|line| !known.iter().any(|known| line.contains(known)))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}
