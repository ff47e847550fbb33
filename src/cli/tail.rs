//! `routecause tail`

use std::collections::HashSet;
use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use unicode_width::UnicodeWidthStr;

use super::ask::{AskError, Asked, complain, prepare};
use super::{AdminArgs, exit, wants_colour};
use crate::config::env::Environment;
use crate::observe::text::Line;

#[derive(Debug, Args)]
pub(in crate::cli) struct TailArgs {
    #[command(flatten)]
    pub(in crate::cli) admin: AdminArgs,
    /// Only what failed or was denied.
    #[arg(long, conflicts_with = "denied")]
    pub(in crate::cli) failed: bool,
    /// Only what the policy denied.
    #[arg(long)]
    pub(in crate::cli) denied: bool,
    /// Only this cause, or those that begin with it, as `tls`.
    #[arg(long, value_name = "ID")]
    pub(in crate::cli) cause: Option<String>,
    /// Only this host; `*` stands for any part of it.
    #[arg(long, value_name = "GLOB")]
    pub(in crate::cli) host: Option<String>,
    /// Only clients at this address or in this network.
    #[arg(long, value_name = "CIDR")]
    pub(in crate::cli) client: Option<String>,
    /// Begin with the last so many that the proxy remembers.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub(in crate::cli) lines: u16,
    /// Print records as JSON, one a line.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(super) fn run(args: &TailArgs, env: &Environment) -> u8 {
    let is_coloured = io::stdout().is_terminal() && wants_colour(env);
    let width = terminal_size::terminal_size_of(io::stdout());
    let print = Print {
        is_json: args.json,
        is_coloured,
        width: width.map(|(width, _)| usize::from(width.0)),
    };
    let followed = prepare(&args.admin, env)
        .and_then(|(runtime, proxy)| runtime.block_on(follow(&proxy, args, &print)));
    match followed {
        Ok(code) => code,
        Err(error) => complain(&error),
    }
}

fn query(args: &TailArgs) -> String {
    let outcome = match (args.failed, args.denied) {
        (_, true) => Some("denied"),
        (true, false) => Some("failure"),
        (false, false) => None,
    };
    let wanted = [
        ("outcome", outcome),
        ("cause", args.cause.as_deref()),
        ("host", args.host.as_deref()),
        ("client", args.client.as_deref()),
    ];
    let mut query = String::new();
    for (key, value) in wanted {
        if let Some(value) = value {
            query.push_str(key);
            query.push('=');
            query.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
            query.push('&');
        }
    }
    query
}

/// Prints records until the reader has seen enough, somebody ends it, or the proxy ends.
async fn follow(proxy: &Asked, args: &TailArgs, print: &Print) -> Result<u8, AskError> {
    let query = query(args);
    // Before what was is asked for, so that nothing falls between.
    let mut body = proxy.get(&format!("/v1/stream?{query}")).await?.into_body();
    let mut before = HashSet::new();
    if args.lines > 0 {
        let mut told = proxy
            .json(&format!("/v1/records?{query}limit={}", args.lines))
            .await?;
        let records = told.get_mut("records").and_then(Value::as_array_mut);
        // The newest comes first.
        for record in records.into_iter().flatten().rev() {
            if let Err(error) = print.event("record", &record.to_string()) {
                return Ok(unprinted(&error));
            }
            before.extend(id(record));
        }
    }
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return Ok(exit::FAILED);
    };
    let mut events = Events::default();
    loop {
        let frame = tokio::select! {
            frame = next(&mut body) => frame,
            _ = tokio::signal::ctrl_c() => return Ok(0),
            _ = terminate.recv() => return Ok(0),
        };
        let Some(bytes) = frame else {
            say!("routecause at {} has ended", proxy.address());
            return Ok(exit::UNREACHABLE);
        };
        for (name, data) in events.feed(&bytes) {
            if !before.is_empty()
                && serde_json::from_str(&data)
                    .is_ok_and(|record| id(&record).is_some_and(|id| before.contains(&id)))
            {
                continue;
            }
            if let Err(error) = print.event(&name, &data) {
                return Ok(unprinted(&error));
            }
        }
    }
}

/// The end where nothing can be printed: well, where the reader has seen enough.
fn unprinted(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return 0;
    }
    say!("error: write to standard output: {error}");
    exit::FAILED
}

fn id(record: &Value) -> Option<String> {
    Some(record.get("event.id")?.as_str()?.to_owned())
}

async fn next(body: &mut Incoming) -> Option<bytes::Bytes> {
    loop {
        if let Ok(data) = body.frame().await?.ok()?.into_data() {
            return Some(data);
        }
    }
}

/// Server-sent events, out of bytes that are cut anywhere.
#[derive(Debug, Default)]
struct Events {
    rest: Vec<u8>,
    name: String,
    data: String,
}

impl Events {
    fn feed(&mut self, bytes: &[u8]) -> Vec<(String, String)> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                let name = std::mem::take(&mut self.name);
                let data = std::mem::take(&mut self.data);
                if !data.is_empty() {
                    events.push((name, data));
                }
            } else if let Some(name) = line.strip_prefix("event:") {
                name.trim_start().clone_into(&mut self.name);
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.trim_start());
            }
        }
        events
    }
}

struct Print {
    is_json: bool,
    is_coloured: bool,
    /// The terminal's, where it is one.
    width: Option<usize>,
}

impl Print {
    fn event(&self, name: &str, data: &str) -> io::Result<()> {
        if name == "dropped" {
            let told: Value = serde_json::from_str(data).unwrap_or_default();
            let count = told.get("dropped").and_then(Value::as_u64).unwrap_or(0);
            say!("{count} records were missed: they came faster than they were read");
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.is_json {
            writeln!(out, "{data}")?;
        } else if let Ok(record) = serde_json::from_str(data)
            && let Some(line) = line(&record)
        {
            let line = line.print(self.is_coloured);
            match self.width {
                Some(width) => writeln!(out, "{}", folded(&line, width))?,
                None => writeln!(out, "{line}")?,
            }
        }
        out.flush()
    }
}

/// What goes on stands behind the time and the outcome.
const INDENT: usize = "00:00:00 fail ".len();

/// A line in a terminal of this width, broken between words.
fn folded(line: &str, width: usize) -> String {
    let mut folded = String::with_capacity(line.len() + 32);
    let mut column = 0;
    for token in line.split_inclusive(' ') {
        let word = seen_width(token.trim_end());
        // What fits nowhere is broken by the terminal, wherever it begins.
        if column > INDENT && column + word > width && INDENT + word <= width {
            folded.truncate(folded.trim_end().len());
            folded.push('\n');
            folded.extend([' '; INDENT]);
            column = INDENT;
            // What sets it apart on one line.
            if token == " " {
                continue;
            }
        }
        folded.push_str(token);
        column += seen_width(token);
    }
    folded
}

/// How wide a text is on the screen: what sets colours takes no room.
fn seen_width(text: &str) -> usize {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default();
    let behind = parts.map(|part| part.split_once('m').map_or("", |(_, seen)| seen));
    first.width() + behind.map(UnicodeWidthStr::width).sum::<usize>()
}

/// The line of a record that came as JSON.
fn line(record: &Value) -> Option<Line<'_>> {
    let text = |key: &str| record.get(key).and_then(Value::as_str);
    let number = |key: &str| record.get(key).and_then(Value::as_u64);
    let small = |key: &str| number(key).and_then(|number| u16::try_from(number).ok());
    let texts = |key: &str| {
        let list = record.get(key).and_then(Value::as_array);
        let list = list.into_iter().flatten();
        list.filter_map(Value::as_str).collect::<Vec<_>>()
    };
    let suspects = record.get("egress.suspects").and_then(Value::as_array);
    Some(Line {
        outcome: text("event.outcome")?,
        cause: text("error.type"),
        end: text("event.end")?.parse::<Timestamp>().ok()?,
        method: text("http.request.method"),
        protocol: text("network.protocol.name"),
        target: text("server.address").zip(small("server.port")),
        client: text("client.address").unwrap_or("-").into(),
        status: small("http.response.status_code"),
        route: text("egress.route"),
        total_ms: record.get("egress.timing.total_ms")?.as_f64()?,
        bytes: (
            number("source.bytes").unwrap_or(0),
            number("destination.bytes").unwrap_or(0),
        ),
        message: text("error.message"),
        hint: text("egress.hint"),
        suspects: suspects.into_iter().flatten().map(suspect).collect(),
        id: text("event.id").unwrap_or("-").into(),
        faults: texts("egress.fault"),
        notes: texts("egress.notes"),
        would: text("egress.would"),
    })
}

fn suspect(suspect: &Value) -> String {
    let name = suspect.get("name").and_then(Value::as_str).unwrap_or("-");
    let score = suspect.get("score").and_then(Value::as_f64).unwrap_or(0.0);
    let evidence = suspect.get("evidence").and_then(Value::as_array);
    let evidence = evidence.into_iter().flatten().filter_map(Value::as_str);
    let evidence: Vec<_> = evidence.collect();
    format!("suspect {name} {score:.1}: {}", evidence.join(", "))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::observe::{json, text};
    use crate::record::{Outcome, Record, Suspect};

    #[test]
    fn a_record_reads_the_same_from_the_stream_as_from_the_log() {
        let from = Ipv4Addr::LOCALHOST.into();
        let start = "2026-01-02T03:04:05Z".parse().unwrap();
        let mut record = Record::begun(start, uuid::Uuid::nil(), from, 1);
        let mut both = |change: &dyn Fn(&mut Record)| {
            change(&mut record);
            let mut bytes = Vec::new();
            json::write(&record, &mut bytes).unwrap();
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(line(&value).unwrap().print(true), text::line(&record, true));
        };
        both(&|_| {});
        both(&|record| {
            record.outcome = Outcome::Failure;
            record.error_type = Some("connect.timeout".into());
            record.error_message = Some("no SYN-ACK".into());
            record.hint = Some("look".into());
            record.server_address = Some("2001:db8::1".into());
            record.server_port = Some(443);
            record.method = Some("CONNECT".into());
            record.status = Some(504);
            record.route = Some("direct".into());
            record.total_ms = 1234.5;
            record.source_bytes = 2000;
            record.faults = vec!["f".into()];
            record.notes = vec!["connect.slow"];
            record.would = Some("inside".into());
            record.suspects = vec![Suspect {
                name: "sni_filtering",
                score: 0.8,
                evidence: vec!["client_hello_unacked".into(), "other".into()],
            }];
        });
        both(&|record| {
            record.method = None;
            record.protocol_name = Some("socks");
        });
    }

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = ": a comment\n\nevent: record\nid: 1\ndata: {\"a\":1}\n\r\nevent: dropped\ndata: {}\n\n";
        for cut in 0..text.len() {
            let mut events = Events::default();
            let (first, second) = text.as_bytes().split_at(cut);
            let mut found = events.feed(first);
            found.extend(events.feed(second));
            let expected = [("record", "{\"a\":1}"), ("dropped", "{}")];
            assert_eq!(
                found,
                expected.map(|(n, d)| (n.to_owned(), d.to_owned())),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_line_that_is_too_long_for_the_terminal_goes_on_behind_its_outcome() {
        let line = "20:06:28 \u{1b}[31mfail\u{1b}[0m CONNECT api.test:443   502  \u{1b}[31mconnect.refused\u{1b}[0m: nobody listens";
        assert_eq!(folded(line, 200), line);
        let told = folded(line, 42);
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(
            lines,
            [
                "20:06:28 \u{1b}[31mfail\u{1b}[0m CONNECT api.test:443   502",
                "              \u{1b}[31mconnect.refused\u{1b}[0m: nobody",
                "              listens",
            ]
        );
        assert!(lines.iter().all(|line| seen_width(line) <= 42), "{told}");
        // A word that is longer than the terminal stays whole, to be taken with the mouse.
        assert_eq!(
            folded("20:06:28 ok   aaaaaaaaaaaaaaaaaaaa", 20),
            "20:06:28 ok   aaaaaaaaaaaaaaaaaaaa"
        );
    }
}
