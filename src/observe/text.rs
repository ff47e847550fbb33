//! A record as one line for people.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use crate::record::{Outcome, Record};

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// The line, without its end.
pub fn line(record: &Record, colour: bool) -> String {
    let paint = |code: &'static str| if colour { code } else { "" };
    let (word, tone) = match (record.outcome, record.error_type.as_deref()) {
        (Outcome::Success, _) => ("ok  ", GREEN),
        (_, Some(id)) if id.starts_with("policy.denied.") => ("deny", YELLOW),
        (Outcome::Failure, _) => ("fail", RED),
        (Outcome::Unknown, _) => ("none", DIM),
    };
    let mut line = String::with_capacity(160);
    // When it ended, since that is when the line appears; in the reader's own time.
    let time = record.end.to_zoned(TimeZone::system());
    let time = time.strftime("%H:%M:%S");
    let _ = write!(
        line,
        "{}{time}{} {}{word}{}",
        paint(DIM),
        paint(RESET),
        paint(tone),
        paint(RESET)
    );
    let method = record.method.as_deref().unwrap_or("-");
    let target = match (&record.server_address, record.server_port) {
        (Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
        (Some(host), Some(port)) => format!("{host}:{port}"),
        _ => format!("from {}", record.client_address),
    };
    let _ = write!(line, " {method:<7} {target:<28}");
    let status = record
        .status
        .map_or("-".to_owned(), |status| status.to_string());
    let route = record.route.as_deref().unwrap_or("-");
    let _ = write!(
        line,
        " {status:>3} {route:<6} {:>6}",
        milliseconds(record.total_ms)
    );
    if record.source_bytes > 0 {
        let _ = write!(line, " up {}", bytes(record.source_bytes));
    }
    if record.destination_bytes > 0 {
        let _ = write!(line, " down {}", bytes(record.destination_bytes));
    }
    if let Some(cause) = &record.error_type {
        let _ = write!(line, "  {}{cause}{}", paint(tone), paint(RESET));
        if let Some(message) = &record.error_message {
            let _ = write!(line, ": {message}");
        }
        if let Some(hint) = &record.hint {
            let _ = write!(line, " {}({hint}){}", paint(DIM), paint(RESET));
        }
        for suspect in &record.suspects {
            let _ = write!(line, " {}{suspect}{}", paint(YELLOW), paint(RESET));
        }
        let _ = write!(line, " {}record {}{}", paint(DIM), record.id, paint(RESET));
    }
    for note in &record.notes {
        let _ = write!(line, "  {}{note}{}", paint(DIM), paint(RESET));
    }
    if let Some(would) = &record.would {
        let _ = write!(
            line,
            "  {}would be decided by {would}{}",
            paint(YELLOW),
            paint(RESET)
        );
    }
    line
}

fn milliseconds(ms: f64) -> String {
    if ms < 1000.0 {
        format!("{ms:.1}ms")
    } else {
        format!("{:.1}s", ms / 1000.0)
    }
}

fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let size = count as f64;
    match count {
        0..1024 => format!("{count}B"),
        1024..1_048_576 => format!("{:.1}KiB", size / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1}MiB", size / 1_048_576.0),
        _ => format!("{:.1}GiB", size / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(
            (bytes(12), bytes(1536), bytes(5 << 30)),
            ("12B".into(), "1.5KiB".into(), "5.0GiB".into())
        );
        assert_eq!(
            (milliseconds(1.26), milliseconds(2500.0)),
            ("1.3ms".into(), "2.5s".into())
        );
    }
}
