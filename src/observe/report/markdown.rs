//! A report as Markdown, as job summaries show it.

use std::fmt::Write as _;

use super::super::text::bytes;
use super::{Report, Verdict};

/// The report as Markdown.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("### routecause: {}\n\n", report.summary());
    let policy = &report.policy;
    let _ = writeln!(
        text,
        "`{}` ended with {}; policy {}, mode {}.\n",
        code(&report.command.join(" ")),
        report.exit_code,
        cell(&policy.source),
        policy.mode
    );
    if report.rows.is_empty() {
        return text;
    }
    text.push_str("| | target | route | requests | down | why | what to do |\n");
    text.push_str("| --- | --- | --- | ---: | ---: | --- | --- |\n");
    for row in &report.rows {
        let mut why = String::new();
        if let Some(cause) = &row.cause {
            let _ = write!(why, "`{}`", code(cause));
        }
        if let Some(message) = &row.message {
            let _ = write!(why, " {}", cell(message));
        }
        for healed in &row.healed {
            let _ = write!(why, " after {}", cell(healed));
        }
        for suspect in &row.suspects {
            let _ = write!(why, " (suspected: {})", cell(suspect));
        }
        for fault in &row.faults {
            let _ = write!(why, " (fault {} struck)", cell(fault));
        }
        let mut advice = String::new();
        if matches!(row.verdict, Verdict::Denied | Verdict::Failed) {
            advice = cell(row.hint.as_deref().unwrap_or_default());
        } else if let Some(rule) = row.would() {
            advice = format!("enforced, {} would refuse it", cell(rule));
        }
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.verdict.as_str(),
            cell(&row.target),
            cell(row.route.as_deref().unwrap_or("-")),
            row.count,
            bytes(row.bytes_down),
            why.trim(),
            advice,
        );
    }
    if !report.ties.is_empty() {
        text.push_str("\n| what failed | why |\n| --- | --- |\n");
        for tie in &report.ties {
            let why = if tie.causes.is_empty() {
                &tie.said
            } else {
                &tie.causes.join(", ")
            };
            let _ = writeln!(text, "| {} | {} |", cell(&tie.what), cell(why));
        }
    }
    text
}

/// Text that stays in its cell, and is no markup.
fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' => safe.extend(['\\', c]),
            '<' => safe.push_str("&lt;"),
            '&' => safe.push_str("&amp;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// Text that stays between its backticks, in a cell too.
fn code(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '`' => '\'',
            '|' => '¦',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect()
}
