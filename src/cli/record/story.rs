//! A record for a person: what was asked for, what became of it and why, then how long what took, and all that is known.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

use super::super::doctor::page::{Page, Tone};
use super::super::quoted;
use super::log::{Found, Tally};
use crate::cause::Cause;
use crate::observe::text::{bytes, milliseconds};
use crate::record::quote;
use crate::record::seen::Seen;
use crate::record::timeline::Span;
use crate::target::Target;

/// Keys that are told in sentences, or that say nothing of this request.
const TOLD: &[&str] = &[
    "schema",
    "@timestamp",
    "client.address",
    "client.port",
    "egress.attempts",
    "egress.client.label",
    "egress.client.role",
    "egress.confidence",
    "egress.diagnosis.ago_s",
    "egress.diagnosis.certainty",
    "egress.diagnosis.sentence",
    "egress.diagnosis.verdict",
    "egress.end",
    "egress.fault",
    "egress.hint",
    "egress.hop",
    "egress.notes",
    "egress.phase",
    "egress.route",
    "egress.rule",
    "egress.rule_source",
    "egress.side",
    "egress.suspects",
    "egress.would",
    "error.message",
    "error.type",
    "destination.bytes",
    "http.request.method",
    "http.response.status_code",
    "network.local.address",
    "network.local.port",
    "network.peer.address",
    "network.peer.port",
    "network.transport",
    "network.type",
    "server.address",
    "server.port",
    "source.bytes",
    "user.name",
    "user_agent.original",
];

/// Beginnings of keys of which as much is so.
const TOLD_ALL: &[&str] = &["event.", "url.", "egress.timing.", "network.protocol."];

/// What is known, in groups: the head, what stands before, and how the keys begin.
const GROUPS: &[(&str, &str, &[&str])] = &[
    ("dns", "", &["dns.", "egress.dns."]),
    ("upstream", "", &["egress.upstream."]),
    ("tls", "", &["egress.tls.", "tls."]),
    ("tcp", "to the server: ", &["egress.tcp.server."]),
    ("tcp", "to the client: ", &["egress.tcp.client."]),
    ("reset", "", &["egress.reset."]),
    ("icmp", "", &["egress.icmp."]),
    ("doctor", "", &["egress.diagnosis."]),
    ("also", "", &["egress.", ""]),
];

/// What comes first in a group; the rest follows by name.
const FIRST: &[&str] = &[
    "question.name",
    "resolved_ip",
    "response_code",
    "name",
    "status",
    "state",
    "client.server_name",
    "protocol.version",
    "close",
    "errno",
    "rtt_ms",
    "min_rtt_ms",
    "retrans",
    "unacked",
];

/// The longest bar.
const LONGEST: usize = 40;

pub(super) fn tell(found: &Found, timeline: &[Span], page: &mut Page) {
    let mut story = Story {
        record: &found.record,
        seen: &found.seen,
        page,
    };
    story.request();
    story.outcome();
    story.decision();
    story.timeline(timeline);
    story.attempts();
    story.facts();
    if let Some(tally) = &found.target {
        story.target(tally);
    }
    story.next();
}

struct Story<'r> {
    record: &'r Value,
    seen: &'r Seen,
    page: &'r mut Page,
}

impl Story<'_> {
    /// A part; nothing in it moves a cursor.
    fn put(&mut self, head: &str, tone: Tone, body: &str) {
        self.page.put(head, tone, &quote(body));
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.record.get(key)?.as_str()
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let list = self.record.get(key).and_then(Value::as_array);
        let list = list.into_iter().flatten().filter_map(Value::as_str);
        list.map(str::to_owned).collect()
    }

    /// An address and a port of two keys.
    fn place(&self, of: &str) -> Option<String> {
        let address = self.text(&format!("{of}.address"))?;
        let port = self.record.get(format!("{of}.port"))?.as_u64()?;
        Some(if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        })
    }

    /// What was asked for, by whom and when.
    fn request(&mut self) {
        let seen = self.seen;
        let method = match (&seen.method, self.text("network.protocol.name")) {
            (Some(method), _) => method,
            (None, Some("socks")) => "SOCKS5",
            (None, _) => "",
        };
        let asked = match seen.target() {
            Some(target) => format!("{method} {target}"),
            None => "a connection that carried no request".to_owned(),
        };
        let mut who = vec![format!("from {}", self.place("client").unwrap_or_default())];
        who.extend(seen.user.as_ref().map(|user| format!("user {user}")));
        who.extend(seen.label.as_ref().map(|label| format!("label {label}")));
        let roles = self.texts("egress.client.role").into_iter();
        who.extend(roles.map(|role| format!("role {role}")));
        who.extend(seen.agent.clone());
        let when = self.text("event.start").unwrap_or_default();
        let when = match when.parse::<Timestamp>() {
            Ok(at) => at.strftime("%FT%H:%M:%S%.3fZ").to_string(),
            Err(_) => when.to_owned(),
        };
        let total = self.record.get("egress.timing.total_ms");
        let took = milliseconds(total.and_then(Value::as_f64).unwrap_or(0.0));
        self.put("request", Tone::Bold, &asked);
        self.put("", Tone::Plain, &who.join(", "));
        self.put("", Tone::Plain, &format!("{when}, took {took}"));
    }

    /// What became of it, why, and what to do.
    fn outcome(&mut self) {
        let seen = self.seen;
        let answer = seen.status.map(|status| match status {
            499 => "the client left before an answer".to_owned(),
            status => format!("the client got {status}"),
        });
        match &seen.cause {
            None => {
                let ending = self.text("egress.end").map(str::to_owned);
                let told: Vec<_> = answer.into_iter().chain(ending).collect();
                self.put(seen.outcome.as_str(), Tone::Good, &told.join("; "));
            }
            Some(cause) => {
                let head = if seen.is_denied() { "denied" } else { "failed" };
                let message = seen.message.as_deref().unwrap_or(cause);
                let mut told = vec![cause.clone()];
                told.extend(self.text("egress.confidence").map(str::to_owned));
                for (word, key) in [("phase", "egress.phase"), ("side", "egress.side")] {
                    told.extend(self.text(key).map(|value| format!("{word} {value}")));
                }
                told.extend(answer);
                self.put(head, Tone::Bad, message);
                self.put("cause", Tone::Plain, &told.join(", "));
                if let Some(cause) = Cause::parse(cause) {
                    self.put("means", Tone::Plain, cause.means());
                }
            }
        }
        for suspect in &seen.suspects {
            let evidence = suspect.evidence.join(", ");
            let told = format!("{} {:.1}: {evidence}", suspect.name, suspect.score);
            self.put("suspect", Tone::Plain, &told);
        }
        if let Some(diagnosis) = seen.diagnosis() {
            self.put("doctor", Tone::Plain, &diagnosis);
        }
        if let Some(hint) = &seen.hint {
            self.put("fix", Tone::Bold, hint);
        }
        for fault in &seen.faults {
            let told = format!("the policy's fault {fault} struck: this is staged");
            self.put("fault", Tone::Bold, &told);
        }
        for note in self.texts("egress.notes") {
            self.put("note", Tone::Plain, &note);
        }
    }

    /// Which rule decided, and for what.
    fn decision(&mut self) {
        let seen = self.seen;
        let place = |source: &String| format!(" ({source})");
        let place = seen.rule_source.as_ref().map(place).unwrap_or_default();
        let mut told: Vec<_> = (seen.rule.iter())
            .map(|rule| format!("{rule}{place}"))
            .collect();
        told.extend(seen.route.as_ref().map(|route| format!("to {route}")));
        let hop = seen
            .hop
            .as_ref()
            .filter(|hop| seen.route.as_ref() != Some(*hop));
        told.extend(hop.map(|hop| format!("by {hop} at the end")));
        self.put("rule", Tone::Plain, &told.join(", "));
        if let Some(would) = &seen.would {
            let told = format!("enforced, {would} would have decided");
            self.put("", Tone::Plain, &told);
        }
    }

    fn timeline(&mut self, timeline: &[Span]) {
        const FAILED: &str = " failed";
        let whole = timeline.last().map_or(0.0, |span| span.to_ms);
        // Behind the phase and its two times.
        let room = self.page.room().saturating_sub(33 + FAILED.len());
        let room = room.clamp(1, LONGEST);
        for (at, span) in timeline.iter().enumerate() {
            let phase = match &*span.phase {
                "first_byte" => "first byte",
                phase => phase,
            };
            let from = columns(span.from_ms, whole, room).min(room - 1);
            let long = columns(span.to_ms, whole, room).saturating_sub(from).max(1);
            let (tone, end) = if span.is_cut {
                (Tone::Bad, FAILED)
            } else {
                (Tone::Plain, "")
            };
            let line = format!(
                "{:<10}  {:>8} {:>8}   {:from$}{}{end}",
                quote(phase),
                milliseconds(span.from_ms),
                milliseconds(span.to_ms),
                "",
                "█".repeat(long),
            );
            let head = if at == 0 { "timeline" } else { "" };
            self.page.line(head, tone, &line);
        }
    }

    fn attempts(&mut self) {
        let attempts = self.record.get("egress.attempts").and_then(Value::as_array);
        let attempts = attempts.into_iter().flatten();
        let rows: Vec<_> = attempts.map(attempt).collect();
        let width = |column: usize| {
            let widths = rows.iter().filter_map(|(_, row)| row.get(column));
            widths.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..4).map(width).collect();
        for (at, (is_good, row)) in rows.iter().enumerate() {
            let head = if at == 0 { "attempts" } else { "" };
            let tone = if *is_good { Tone::Good } else { Tone::Bad };
            // What only some have stands behind the columns.
            let widths = widths.iter().copied().chain(std::iter::repeat(0));
            let padded = row.iter().zip(widths);
            let padded: Vec<_> = padded
                .map(|(text, width)| format!("{text:<width$}"))
                .collect();
            self.page.line(head, tone, padded.join("  ").trim_end());
        }
    }

    /// What is known of names, connections and handshakes.
    fn facts(&mut self) {
        let seen = self.seen;
        let moved = format!("{} up, {} down", bytes(seen.up), bytes(seen.down));
        self.put("bytes", Tone::Plain, &moved);
        if let Some(peer) = self.place("network.peer") {
            let local = self.place("network.local");
            let local = local.map_or(String::new(), |local| format!(", from {local}"));
            self.put("peer", Tone::Plain, &format!("{peer}{local}"));
        }
        let Some(record) = self.record.as_object() else {
            return;
        };
        let is_told =
            |key: &str| TOLD.contains(&key) || TOLD_ALL.iter().any(|start| key.starts_with(start));
        let mut rest: Vec<_> = record.iter().filter(|(key, _)| !is_told(key)).collect();
        for (head, before, starts) in GROUPS {
            let mut group = Vec::new();
            rest.retain(|(key, value)| {
                let name = starts.iter().find_map(|start| key.strip_prefix(start));
                group.extend(name.map(|name| (name, *value)));
                name.is_none()
            });
            let place = |name: &str| FIRST.iter().position(|first| *first == name);
            group.sort_by_key(|(name, _)| place(name).unwrap_or(FIRST.len()));
            let facts = group.iter().map(|(name, value)| quote(&fact(name, value)));
            let facts: Vec<_> = facts.collect();
            if !facts.is_empty() {
                let facts = format!("{before}{}", facts.join(", "));
                self.page.put(head, Tone::Plain, &facts);
            }
        }
        self.put("record", Tone::Dim, &seen.id);
    }

    /// How other requests to the target went.
    fn target(&mut self, tally: &Tally) {
        let failed: u64 = tally.failed.values().sum();
        let all = tally.passed + failed;
        if all < 2 {
            return;
        }
        let causes = tally.failed.iter();
        let causes: Vec<_> = causes
            .map(|(cause, count)| format!("{cause} {count}×"))
            .collect();
        let mut told = format!("{all} requests of the log: {} went well", tally.passed);
        if failed > 0 {
            let _ = write!(told, ", {failed} failed: {}", causes.join(", "));
        }
        self.put("target", Tone::Plain, &told);
    }

    /// What to run where it failed, and not by the client.
    fn next(&mut self) {
        let seen = self.seen;
        let cause = seen.cause.as_deref().unwrap_or("client.");
        let Some(target) = seen.target().filter(|_| !cause.starts_with("client.")) else {
            return;
        };
        if Target::from_authority(&target).is_err() {
            return;
        }
        let is_plain = seen.action.as_deref() == Some("forward");
        let (scheme, usual) = if is_plain {
            ("http", ":80")
        } else {
            ("https", ":443")
        };
        let target = target.strip_suffix(usual).unwrap_or(&target);
        let command = if seen.is_denied() {
            "explain"
        } else {
            "doctor"
        };
        let url = quoted(&format!("{scheme}://{target}/"));
        self.put("next", Tone::Plain, &format!("routecause {command} {url}"));
    }
}

/// Where a moment stands among so many columns.
fn columns(ms: f64, whole: f64, room: usize) -> usize {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few columns, and what is none of them is cut off"
    )]
    let column = (ms / whole.max(0.001) * room as f64).round() as usize;
    column.min(room)
}

/// Whether an attempt went well; its hop, address, cause, time, and what else there is.
fn attempt(attempt: &Value) -> (bool, Vec<String>) {
    let text = |key: &str| attempt.get(key).and_then(Value::as_str);
    let cause = text("cause");
    let ms = attempt.get("ms").and_then(Value::as_f64).unwrap_or(0.0);
    let mut row = vec![
        quote(text("hop").unwrap_or("-")),
        quote(text("address").unwrap_or("-")),
        quote(cause.unwrap_or("ok")),
        milliseconds(ms),
    ];
    let more = ["side", "icmp", "reused"].into_iter().filter_map(|key| {
        let value = attempt.get(key)?;
        Some(quote(&fact(key, value)))
    });
    row.extend(more);
    (cause.is_none(), row)
}

/// `alpn offered h2 http/1.1`, `rtt 50.6ms`.
fn fact(name: &str, value: &Value) -> String {
    let (name, value) = match (name.strip_suffix("_ms"), value.as_f64()) {
        (Some(name), Some(ms)) if ms < 1.0 => (name, format!("{ms:.3}ms")),
        (Some(name), Some(ms)) => (name, milliseconds(ms)),
        _ => (name, words(value)),
    };
    let name = name.replace(['_', '.'], " ");
    if value == "true" {
        name
    } else {
        format!("{name} {value}")
    }
}

fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(words).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| fact(name, value));
            fields.collect::<Vec<_>>().join(" ")
        }
        value @ (Value::Null | Value::Bool(_) | Value::Number(_)) => value.to_string(),
    }
}
