//! A report as a person reads it in a terminal.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr as _;

use super::super::text::bytes;
use super::{Report, Row, Verdict};
use crate::record::quote;

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

/// Rows that went well, beyond which only their number is told.
const MOST_REACHED: usize = 12;

/// Where what stands under a row begins.
const INDENT: usize = 8;

/// The report for a terminal of `width` columns, in colour or not.
pub fn table(report: &Report, width: usize, colour: bool) -> String {
    let width = width.clamp(40, 120);
    let paint = |code: &'static str| if colour { code } else { "" };
    let mut text = String::new();
    for line in wrapped(&format!("routecause: {}", report.summary()), width) {
        let _ = writeln!(text, "{}{line}{}", paint(BOLD), paint(RESET));
    }
    let policy = &report.policy;
    let told = format!("policy {}, mode {}", policy.source, policy.mode);
    for line in wrapped(&told, width) {
        let _ = writeln!(text, "{}{line}{}", paint(DIM), paint(RESET));
    }
    let reached = |row: &&Row| row.verdict == Verdict::Reached;
    let untold = report.rows.iter().filter(reached).count();
    let untold = untold.saturating_sub(MOST_REACHED);
    let told = report.rows.len() - untold;
    let rows: Vec<_> = report.rows.iter().take(told).collect();
    let words = rows.iter().map(|row| row.verdict.as_str().len());
    let words = words.max().unwrap_or(0).max(INDENT - 2);
    let of = |row: &Row| row.target.width();
    // Room is left for route, count and size.
    let targets = rows.iter().map(|row| of(row)).max().unwrap_or(0);
    let targets = targets.min(width.saturating_sub(words + 36)).max(20);
    let via = |row: &Row| row.route.clone().unwrap_or_else(|| "-".to_owned());
    let routes = rows.iter().map(|row| via(row).width()).max().unwrap_or(0);
    let routes = routes.clamp(6, 14);
    for row in rows {
        let tone = match row.verdict {
            Verdict::Denied | Verdict::WouldBeDenied => YELLOW,
            Verdict::Failed => RED,
            Verdict::Expected | Verdict::Answered | Verdict::Left => DIM,
            Verdict::Reached => GREEN,
        };
        let mut line = format!(
            "{}{:<words$}{}  {}  {}",
            paint(tone),
            row.verdict.as_str(),
            paint(RESET),
            padded(&row.target, targets),
            padded(&via(row), routes),
        );
        let _ = write!(line, "  {:>5}", format!("{}×", row.count));
        if row.bytes_down > 0 {
            let _ = write!(line, "  {:>9}", bytes(row.bytes_down));
        }
        let _ = writeln!(text, "{}", line.trim_end());
        for (tone, detail) in details(row) {
            for line in wrapped(&detail, width - INDENT) {
                let _ = writeln!(
                    text,
                    "{:INDENT$}{}{line}{}",
                    "",
                    paint(tone),
                    if tone.is_empty() { "" } else { paint(RESET) }
                );
            }
        }
    }
    if untold > 0 {
        let _ = writeln!(
            text,
            "{}{:<words$}  and {untold} more{}",
            paint(DIM),
            Verdict::Reached.as_str(),
            paint(RESET)
        );
    }
    for tie in &report.ties {
        let _ = writeln!(text, "{}{}{}", paint(BOLD), quote(&tie.what), paint(RESET));
        let behind = if tie.causes.is_empty() {
            "no request to that host failed here: see what the command says".to_owned()
        } else {
            format!("failed by {}", tie.causes.join(" and "))
        };
        for line in wrapped(&behind, width - INDENT) {
            let _ = writeln!(text, "{:INDENT$}{line}", "");
        }
    }
    text
}

/// What stands under a row, each with its colour.
fn details(row: &Row) -> Vec<(&'static str, String)> {
    let mut details = Vec::new();
    match (&row.cause, &row.message) {
        (Some(cause), Some(message)) => details.push(("", format!("{cause}: {message}"))),
        (Some(cause), None) => details.push(("", cause.clone())),
        (None, _) => {}
    }
    if let Some(rule) = row.would() {
        let tone = if row.verdict == Verdict::Expected {
            DIM
        } else {
            YELLOW
        };
        details.push((tone, format!("enforced, {rule} would refuse it")));
    }
    for healed in &row.healed {
        details.push((YELLOW, format!("after {healed}")));
    }
    for fault in &row.faults {
        details.push((YELLOW, format!("the policy's fault {fault} struck")));
    }
    // An origin's own answer needs no advice of ours, nor does a client that has enough.
    if matches!(row.verdict, Verdict::Denied | Verdict::Failed) {
        if let Some(hint) = &row.hint {
            details.push((BOLD, format!("→ {hint}")));
        }
        for suspect in &row.suspects {
            details.push((YELLOW, format!("suspected: {suspect}")));
        }
        if let (Verdict::Denied, Some(rule), Some(source)) =
            (row.verdict, &row.rule, &row.rule_source)
        {
            details.push((DIM, format!("rule {rule} ({source})")));
        }
        if let Some(id) = row.records.first() {
            details.push((DIM, format!("record {id}")));
        }
    }
    details
}

/// Padded to a width; what is longer goes on.
fn padded(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.width());
    format!("{text}{:missing$}", "")
}

/// The lines of a text, at most so wide where its words allow it.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let room = width.saturating_sub(line.width());
        if !line.is_empty() && word.width() + 1 > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}
