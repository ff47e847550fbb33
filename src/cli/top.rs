//! `routecause top`

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers, poll, read};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Row, Sparkline, Table};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::ask::{AskError, Asked, complain, prepare};
use super::status::{LATELY, Rates, give};
use super::{AdminArgs, exit};
use crate::config::env::Environment;

#[derive(Debug, Args)]
pub(in crate::cli) struct TopArgs {
    #[command(flatten)]
    pub(in crate::cli) admin: AdminArgs,
    /// Print what is shown first as JSON, and end.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// What is shown is asked for so often.
const PAUSE: Duration = Duration::from_secs(1);

/// By what the table sums up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Host,
    Cause,
    Upstream,
}

impl By {
    const ALL: [Self; 3] = [Self::Host, Self::Cause, Self::Upstream];

    fn title(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cause => "cause",
            Self::Upstream => "upstream",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Host => Self::Cause,
            Self::Cause => Self::Upstream,
            Self::Upstream => Self::Host,
        }
    }

    /// What a key makes of it.
    fn pressed(self, key: KeyCode) -> Self {
        let is = |letter: char| key == KeyCode::Char(letter);
        if key == KeyCode::Tab {
            self.next()
        } else if is('h') {
            Self::Host
        } else if is('c') {
            Self::Cause
        } else if is('u') {
            Self::Upstream
        } else {
            self
        }
    }

    fn key(self, record: &Value) -> Option<&str> {
        let key = match self {
            Self::Host => "server.address",
            Self::Cause => "error.type",
            Self::Upstream => "egress.hop",
        };
        record.get(key)?.as_str()
    }
}

/// What the proxy said last.
#[derive(Clone, Debug, Default)]
struct Seen {
    status: Value,
    records: Vec<Value>,
    upstreams: Value,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Sum {
    key: String,
    requests: usize,
    failures: usize,
    /// The most frequent cause; by cause, the most frequent host.
    #[serde(skip_serializing_if = "String::is_empty")]
    with: String,
    /// The mean time, in milliseconds.
    mean_ms: f64,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    schema: &'static str,
    version: Option<&'a Value>,
    source: Option<&'a Value>,
    tunnels: Option<&'a Value>,
    lately: Rates,
    upstreams: Option<&'a Value>,
    /// So many of the latest records are summed up.
    records: usize,
    by_host: Vec<Sum>,
    by_cause: Vec<Sum>,
    by_upstream: Vec<Sum>,
}

impl<'a> Told<'a> {
    fn of(seen: &'a Seen, now: Timestamp) -> Self {
        let by = |by| sums(&seen.records, by);
        Self {
            schema: "routecause.top/1",
            version: seen.status.get("version"),
            source: seen.status.get("source"),
            tunnels: seen.status.get("tunnels"),
            lately: Rates::of(&seen.status, now),
            upstreams: seen.upstreams.get("upstreams"),
            records: seen.records.len(),
            by_host: by(By::Host),
            by_cause: by(By::Cause),
            by_upstream: by(By::Upstream),
        }
    }
}

pub(super) fn run(args: &TopArgs, env: &Environment) -> u8 {
    if !args.json && !io::stdout().is_terminal() {
        say!("error: top needs a terminal; top --json, status and tail do not");
        return exit::USAGE;
    }
    let (runtime, proxy) = match prepare(&args.admin, env) {
        Ok(prepared) => prepared,
        Err(error) => return complain(&error),
    };
    let first = match runtime.block_on(look(&proxy)) {
        Ok(seen) => seen,
        Err(error) => return complain(&error),
    };
    if args.json {
        return give(&Told::of(&first, Timestamp::now()));
    }
    let ended = ratatui::run(|terminal| {
        let (mut seen, mut by) = (first, By::Host);
        loop {
            terminal.draw(|frame| draw(frame, &seen, by, Timestamp::now()))?;
            let until = Instant::now() + PAUSE;
            while poll(until.saturating_duration_since(Instant::now()))? {
                if let Event::Key(key) = read()? {
                    if is_end(key) {
                        return io::Result::Ok(None);
                    }
                    by = by.pressed(key.code);
                }
                terminal.draw(|frame| draw(frame, &seen, by, Timestamp::now()))?;
            }
            match runtime.block_on(look(&proxy)) {
                Ok(now) => seen = now,
                Err(error) => return Ok(Some(error)),
            }
        }
    });
    match ended {
        Ok(None) => 0,
        Ok(Some(error)) => complain(&error),
        Err(error) => {
            say!("error: the terminal: {error}");
            exit::FAILED
        }
    }
}

fn is_end(key: KeyEvent) -> bool {
    let is_interrupt =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

async fn look(proxy: &Asked) -> Result<Seen, AskError> {
    let mut records = proxy.json("/v1/records?limit=1000").await?;
    let records = match records.get_mut("records").map(Value::take) {
        Some(Value::Array(records)) => records,
        Some(_) | None => Vec::new(),
    };
    Ok(Seen {
        status: proxy.json("/v1/status").await?,
        records,
        upstreams: proxy.json("/v1/upstreams").await?,
    })
}

/// The records summed up, those with most failures first.
fn sums(records: &[Value], by: By) -> Vec<Sum> {
    let mut sums: HashMap<&str, (Sum, HashMap<&str, usize>)> = HashMap::new();
    let with = if by == By::Cause { By::Host } else { By::Cause };
    for record in records {
        let Some(key) = by.key(record) else { continue };
        let (sum, withs) = sums.entry(key).or_insert_with(|| {
            let sum = Sum {
                key: key.to_owned(),
                requests: 0,
                failures: 0,
                with: String::new(),
                mean_ms: 0.0,
            };
            (sum, HashMap::new())
        });
        sum.requests += 1;
        let outcome = record.get("event.outcome").and_then(Value::as_str);
        sum.failures += usize::from(outcome == Some("failure"));
        let ms = record.get("egress.timing.total_ms").and_then(Value::as_f64);
        sum.mean_ms += ms.unwrap_or(0.0);
        if let Some(with) = with.key(record) {
            *withs.entry(with).or_default() += 1;
        }
    }
    let mut sums: Vec<Sum> = sums
        .into_values()
        .map(|(mut sum, withs)| {
            let most = withs
                .into_iter()
                .max_by_key(|(with, count)| (*count, *with));
            sum.with = most.map_or(String::new(), |(with, _)| with.to_owned());
            #[expect(clippy::cast_precision_loss, reason = "at most 1000")]
            let requests = sum.requests as f64;
            sum.mean_ms /= requests;
            sum
        })
        .collect();
    sums.sort_by(|a, b| {
        (b.failures, b.requests)
            .cmp(&(a.failures, a.requests))
            .then_with(|| a.key.cmp(&b.key))
    });
    sums
}

fn draw(frame: &mut Frame<'_>, seen: &Seen, by: By, now: Timestamp) {
    let [head, pulse, upstreams, tabs, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, seen, head);
    draw_pulse(frame, seen, pulse, now);
    frame.render_widget(told_upstreams(&seen.upstreams), upstreams);
    let tab = |one: By| {
        let style = if one == by {
            Style::new().reversed()
        } else {
            Style::new().dim()
        };
        [
            Span::styled(format!(" by {} ", one.title()), style),
            Span::raw(" "),
        ]
    };
    let titles: Vec<_> = By::ALL.into_iter().flat_map(tab).collect();
    frame.render_widget(Line::from(titles), tabs);
    draw_sums(frame, &sums(&seen.records, by), by, table);
    let keys = "h host   c cause   u upstream   tab next   q quit";
    frame.render_widget(Line::from(keys).dim(), foot);
}

fn draw_head(frame: &mut Frame<'_>, seen: &Seen, area: Rect) {
    let status = |key: &str| seen.status.get(key);
    let version = status("version").and_then(Value::as_str).unwrap_or("-");
    let source = status("source").and_then(Value::as_str).unwrap_or("-");
    let tunnels = status("tunnels").and_then(Value::as_u64).unwrap_or(0);
    let line = Line::from(vec![
        Span::raw(format!("routecause {version}")).bold(),
        Span::raw(format!("   policy {source}   {tunnels} tunnels open")),
    ]);
    frame.render_widget(line, area);
}

/// Requests of each second, and what became of them.
fn draw_pulse(frame: &mut Frame<'_>, seen: &Seen, area: Rect, now: Timestamp) {
    let beats = seen.status.get("pulse").and_then(Value::as_array);
    let mut seconds = vec![0_u64; usize::try_from(LATELY).unwrap_or(0)];
    for beat in beats.into_iter().flatten() {
        let requests = beat.get("requests").and_then(Value::as_u64);
        let second = beat.get("second").and_then(Value::as_i64).unwrap_or(0);
        let ago = now.as_second() - second;
        let place = usize::try_from(LATELY - 1 - ago).ok();
        if let Some(place) = place.and_then(|place| seconds.get_mut(place)) {
            *place += requests.unwrap_or(0);
        }
    }
    let Rates {
        requests,
        failures,
        denied,
        ..
    } = Rates::of(&seen.status, now);
    let [words, chart] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
    let tone = if failures > 0 {
        Color::Red
    } else {
        Color::Reset
    };
    let line = Line::from(vec![
        Span::raw(format!("last {LATELY} s: {requests} requests, ")),
        Span::styled(format!("{failures} failed"), Style::new().fg(tone)),
        Span::raw(format!(", {denied} denied")),
    ]);
    frame.render_widget(line, words);
    frame.render_widget(Sparkline::default().data(&seconds).cyan(), chart);
}

fn told_upstreams(upstreams: &Value) -> Line<'static> {
    let list = upstreams.get("upstreams").and_then(Value::as_array);
    let mut spans = Vec::new();
    for upstream in list.into_iter().flatten() {
        let text = |key: &str| upstream.get(key).and_then(Value::as_str).unwrap_or("-");
        let tone = match text("state") {
            "up" => Color::Green,
            "down" => Color::Red,
            _ => Color::Yellow,
        };
        spans.push(Span::raw(format!("{} ", text("name"))));
        spans.push(Span::styled(
            format!("{}   ", text("state")),
            Style::new().fg(tone),
        ));
    }
    if spans.is_empty() {
        spans.push(Span::raw("no upstreams").dim());
    }
    Line::from(spans)
}

/// Between two columns.
const GAP: u16 = 2;

fn draw_sums(frame: &mut Frame<'_>, sums: &[Sum], by: By, area: Rect) {
    let with = if by == By::Cause { "host" } else { "cause" };
    let right = |text: &str| Cell::from(Text::from(text.to_owned()).right_aligned());
    let head = Row::new(vec![
        by.title().into(),
        right("requests"),
        right("failed"),
        right("mean"),
        with.into(),
    ])
    .bold();
    let rest = area.width.saturating_sub(8 + 6 + 8 + 4 * GAP);
    let second = (rest / 2).min(36);
    let first = rest.saturating_sub(second);
    let rows = sums.iter().map(|sum| {
        let tone = if sum.failures > 0 {
            Style::new().fg(Color::Red)
        } else {
            Style::new()
        };
        Row::new(vec![
            clipped(&sum.key, first).into(),
            right(&sum.requests.to_string()),
            right(&sum.failures.to_string()).style(tone),
            right(&crate::observe::text::milliseconds(sum.mean_ms)),
            clipped(&sum.with, second).into(),
        ])
    });
    let widths = [
        Constraint::Length(first),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(8),
        Constraint::Length(second),
    ];
    let table = Table::new(rows, widths).header(head).column_spacing(GAP);
    frame.render_widget(table, area);
}

/// A name in so many columns; what is cut says so.
fn clipped(name: &str, width: u16) -> String {
    let width = usize::from(width);
    if name.width() <= width {
        return name.to_owned();
    }
    let kept = name.chars().scan(0, |column, c| {
        *column += c.width().unwrap_or(0);
        (*column < width).then_some(c)
    });
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn seen() -> Seen {
        let record = |host: &str, cause: Value, hop: &str, ms: f64| {
            let outcome = if cause.is_null() {
                "success"
            } else {
                "failure"
            };
            json!({"server.address": host, "error.type": cause, "egress.hop": hop,
                "event.outcome": outcome, "egress.timing.total_ms": ms})
        };
        Seen {
            status: json!({"version": "0.1.0", "source": "p.yaml", "tunnels": 2,
                "pulse": [{"second": 99, "requests": 4, "failures": 2, "denied": 1}]}),
            records: vec![
                record("a.example", json!(null), "direct", 10.0),
                record("b.example", json!("connect.timeout"), "corp", 20.0),
                record("b.example", json!("connect.timeout"), "corp", 40.0),
                record("c.example", json!("dns.nxdomain"), "direct", 5.0),
            ],
            upstreams: json!({"upstreams": [{"name": "corp", "state": "down"}]}),
        }
    }

    fn screen(by: By) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 14)).unwrap();
        let now = Timestamp::from_second(100).unwrap();
        terminal
            .draw(|frame| draw(frame, &seen(), by, now))
            .unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_worst_stands_first_whatever_it_is_summed_up_by() {
        for (by, first) in [
            (By::Host, "b.example 2 2 30.0ms connect.timeout"),
            (By::Cause, "connect.timeout 2 2 30.0ms b.example"),
            (By::Upstream, "corp 2 2 30.0ms connect.timeout"),
        ] {
            let screen = screen(by);
            let row = screen.lines().nth(7).unwrap();
            let words: Vec<_> = row.trim_matches('"').split_whitespace().collect();
            assert_eq!(words.join(" "), first, "\n{screen}");
        }
        let screen = screen(By::Host);
        for words in [
            "last 60 s: 4 requests, 2 failed, 1 denied",
            "corp down",
            "2 tunnels open",
        ] {
            assert!(screen.contains(words), "{words} in\n{screen}");
        }
    }

    #[test]
    fn what_is_shown_is_told_as_json() {
        let now = Timestamp::from_second(100).unwrap();
        let told = serde_json::to_value(Told::of(&seen(), now)).unwrap();
        let sum = |key: &str, count: u64, failures: u64, mean: f64| json!({"key": key, "requests": count, "failures": failures, "mean_ms": mean});
        let with = |mut sum: Value, with: &str| {
            sum["with"] = with.into();
            sum
        };
        let expected = json!({
            "schema": "routecause.top/1", "version": "0.1.0", "source": "p.yaml", "tunnels": 2,
            "lately": {"seconds": 60, "requests": 4, "failures": 2, "denied": 1},
            "upstreams": [{"name": "corp", "state": "down"}],
            "records": 4,
            "by_host": [
                with(sum("b.example", 2, 2, 30.0), "connect.timeout"),
                with(sum("c.example", 1, 1, 5.0), "dns.nxdomain"),
                sum("a.example", 1, 0, 10.0),
            ],
            "by_cause": [
                with(sum("connect.timeout", 2, 2, 30.0), "b.example"),
                with(sum("dns.nxdomain", 1, 1, 5.0), "c.example"),
            ],
            "by_upstream": [
                with(sum("corp", 2, 2, 30.0), "connect.timeout"),
                with(sum("direct", 2, 1, 7.5), "dns.nxdomain"),
            ],
        });
        assert_eq!(told, expected, "{told:#}");
    }

    #[test]
    fn numbers_stand_below_each_other_and_what_is_cut_says_so() {
        let mut seen = seen();
        let host = "a-name-that-is-far-too-long-for-the-column-that-it-stands-in.example";
        seen.records.push(
            json!({"server.address": host, "error.type": "tls.reset_after_client_hello",
            "event.outcome": "failure", "egress.timing.total_ms": 1234.5}),
        );
        for (width, cause) in [
            (80, "tls.reset_after_client_h…"),
            (120, "tls.reset_after_client_hello"),
        ] {
            let mut terminal = Terminal::new(TestBackend::new(width, 14)).unwrap();
            let now = Timestamp::from_second(100).unwrap();
            terminal
                .draw(|frame| draw(frame, &seen, By::Host, now))
                .unwrap();
            let screen = terminal.backend().to_string();
            let row = screen.lines().find(|row| row.contains("a-name"));
            let row = row.unwrap().trim_matches('"').trim_end();
            assert!(row.ends_with(cause), "{screen}");
            assert!(row.contains('…'), "{screen}");
            // The ends of what is counted, and of its head.
            let ends = |word: &str| {
                let row = screen.lines().find(|row| row.contains(word)).unwrap();
                let at = row.find(word).unwrap();
                row[..at].chars().count() + word.len()
            };
            assert_eq!(ends("mean"), ends("30.0ms"), "{screen}");
            assert_eq!(ends("mean"), ends("1.2s"), "{screen}");
        }
    }
}
