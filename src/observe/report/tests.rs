use super::*;

/// A record: `outcome host:port hop cause would code`, each `-` where there is none.
fn seen(line: &str) -> Seen {
    let words: Vec<_> = line.split_whitespace().collect();
    let (host, port) = words[1].rsplit_once(':').unwrap();
    let word = |at: usize| words.get(at).filter(|word| **word != "-");
    let cause = word(3);
    let line = serde_json::json!({
        "schema": crate::record::SCHEMA,
        "event.id": format!("id-{}", words[1]),
        "event.outcome": words[0],
        "server.address": host,
        "server.port": port.parse::<u16>().unwrap(),
        "egress.hop": word(2),
        "error.type": cause,
        "error.message": cause.map(|cause| format!("it was <{cause}> | \"so\"")),
        "egress.hint": cause.map(|_| "look there"),
        "egress.would": word(4),
        "egress.code": word(5),
        "egress.rule": "r",
        "egress.rule_source": "p.yaml:3",
        "destination.bytes": 2048,
    });
    Seen::read(line.to_string().as_bytes()).unwrap()
}

fn report() -> Report {
    report_of(&[
        "success ok.example:443 direct -",
        "success ok.example:443 direct -",
        "success passed.example:443 direct - deny-all",
        "failure far.example:443 corp connect.timeout",
        "failure no.example:443 - policy.denied.default",
        "failure no.example:443 - policy.denied.default",
        "failure web.example:80 direct http.status.404",
        "failure gone.example:443 direct client.gave_up.tls",
        "unknown x.example:1 - client.bad_request",
    ])
}

fn report_of(lines: &[&str]) -> Report {
    let seen: Vec<_> = lines.iter().map(|line| seen(line)).collect();
    let policy = Policy {
        source: "p.yaml".into(),
        hash: "0".into(),
        mode: "enforce",
    };
    Report::of(&seen, policy, vec!["make".into(), "a|b".into()], 1)
}

#[test]
fn requests_are_gathered_and_the_bad_ones_come_first() {
    let report = report();
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| (row.verdict, &*row.target, row.count))
        .collect();
    assert_eq!(
        rows,
        [
            (Verdict::Denied, "no.example:443", 2),
            (Verdict::Failed, "far.example:443", 1),
            (Verdict::WouldBeDenied, "passed.example:443", 1),
            (Verdict::Answered, "web.example:80", 1),
            (Verdict::Left, "gone.example:443", 1),
            (Verdict::Reached, "ok.example:443", 2),
        ]
    );
    assert_eq!(
        report.summary(),
        "8 requests to 6 hosts, 16.0KiB down, 0B up; 2 denied, 1 failed, 1 would be denied"
    );
}

#[test]
fn refusals_that_are_expected_are_told_apart_and_are_no_failures() {
    let report = report_of(&[
        "failure no.example:443 - policy.denied.rule - other",
        "failure known.example:443 - policy.denied.rule - expected",
        "success noted.example:443 direct - noise expected",
        "failure far.example:443 direct connect.timeout noise expected",
    ]);
    let told = |row: &Row| format!("{} {}", row.verdict.as_str(), row.target);
    assert_eq!(
        report.rows.iter().map(told).collect::<Vec<_>>(),
        [
            "DENIED no.example:443",
            "FAILED far.example:443",
            "expected known.example:443",
            "expected noted.example:443",
        ]
    );
    let ends = "; 1 denied, 1 failed, 2 expected";
    assert!(report.summary().ends_with(ends), "{}", report.summary());
    let text = table(&report, 80, false);
    for part in [
        "DENIED    no.example:443 ",
        "expected  known.example:443 ",
        "enforced, noise would refuse it",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(text.matches("→ look there").count(), 2, "{text}");
    let text = junit(&report);
    assert!(text.contains("tests=\"4\" failures=\"2\""), "{text}");
    let text = markdown(&report);
    let line = "| expected | noted.example:443 | direct | 1 | 2.0KiB |  | enforced, noise would refuse it |";
    assert!(text.contains(line), "{text}");
}

#[test]
fn the_table_says_what_why_and_what_to_do_within_its_width() {
    for width in [80, 120] {
        let text = table(&report(), width, false);
        for line in text.lines() {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
        for part in [
            "DENIED  no.example:443",
            "FAILED  far.example:443",
            "connect.timeout: it was <connect.timeout>",
            "→ look there",
            "record id-far.example:443",
            "rule r (p.yaml:3)",
            "enforced, deny-all would refuse it",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains('\x1b'));
    }
    assert!(table(&report(), 80, true).contains('\x1b'));
}

#[test]
fn markup_of_strangers_stays_text() {
    let text = markdown(&report());
    assert!(text.contains("`make a¦b` ended with 1"), "{text}");
    assert!(
        text.contains("it was &lt;connect.timeout> \\| \"so\""),
        "{text}"
    );
    let rows = text.lines().filter(|line| line.starts_with("| ")).count();
    assert_eq!(rows, 2 + report().rows.len(), "{text}");
    let text = junit(&report());
    assert!(text.contains("tests=\"6\" failures=\"2\""), "{text}");
    assert!(text.contains("message=\"it was &lt;connect.timeout&gt; | &quot;so&quot;\""));
}

#[test]
fn what_a_command_said_is_tied_to_the_requests_behind_it() {
    let mut report = report();
    report.tie("m@v1".into(), "said".into(), "far.example:443");
    report.tie("m@v1".into(), "said".into(), "far.example:443");
    report.tie("n@v1".into(), "said".into(), "other.example:443");
    assert_eq!(report.ties.len(), 2);
    assert_eq!(report.ties[0].causes, ["connect.timeout"]);
    assert_eq!(report.ties[0].records, ["id-far.example:443"]);
    assert!(report.ties[1].causes.is_empty());
}

#[test]
fn long_words_stay_whole_and_lines_short() {
    assert_eq!(wrapped("aa bb  cc", 5), ["aa bb", "cc"]);
    assert_eq!(wrapped("aaaaaaaa b", 5), ["aaaaaaaa", "b"]);
    assert!(wrapped(" ", 5).is_empty());
}
