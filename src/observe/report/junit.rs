//! A report as `JUnit` XML, as CI systems read it: a test for each target and route.

use std::fmt::Write as _;

use super::{Report, Verdict};

/// The report as `JUnit` XML.
pub fn junit(report: &Report) -> String {
    let is_failure = |verdict| matches!(verdict, Verdict::Denied | Verdict::Failed);
    let failures = report.rows.iter().filter(|row| is_failure(row.verdict));
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    let _ = writeln!(
        text,
        "<testsuite name=\"routecause\" tests=\"{}\" failures=\"{}\">",
        report.rows.len(),
        failures.count()
    );
    for row in &report.rows {
        let route = row.route.as_deref().unwrap_or("none");
        let _ = write!(
            text,
            "<testcase classname=\"egress.{}\" name=\"{}\"",
            escaped(route),
            escaped(&row.target)
        );
        if !is_failure(row.verdict) {
            text.push_str("/>\n");
            continue;
        }
        let cause = row.cause.as_deref().unwrap_or_default();
        let message = row.message.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "><failure type=\"{}\" message=\"{}\">{}× {}{}</failure></testcase>",
            escaped(cause),
            escaped(message),
            row.count,
            escaped(row.hint.as_deref().unwrap_or_default()),
            escaped(&format!("\nrecords: {}", row.records.join(" "))),
        );
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

/// Text that is none of XML's, without what XML 1.0 cannot hold.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' => safe.push('\n'),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('?'),
            c => safe.push(c),
        }
    }
    safe
}
