//! A record as one line for people.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::record::Record;

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// What a line tells of a record.
#[derive(Clone, Debug)]
pub struct Line<'r> {
    /// How it ended: `success`, `failure` or `unknown`.
    pub outcome: &'r str,
    /// The cause's id.
    pub cause: Option<&'r str>,
    /// When it ended.
    pub end: Timestamp,
    /// The request's method.
    pub method: Option<&'r str>,
    /// What the client spoke.
    pub protocol: Option<&'r str>,
    /// The target's host and port.
    pub target: Option<(&'r str, u16)>,
    /// Where the client is.
    pub client: Cow<'r, str>,
    /// The status that the client got.
    pub status: Option<u16>,
    /// What the rule led to.
    pub route: Option<&'r str>,
    /// From start to end, in milliseconds.
    pub total_ms: f64,
    /// Bytes from the client, and to it.
    pub bytes: (u64, u64),
    /// The failure in words and numbers.
    pub message: Option<&'r str>,
    /// What to do.
    pub hint: Option<&'r str>,
    /// What is suspected.
    pub suspects: Vec<String>,
    /// The record's id.
    pub id: Cow<'r, str>,
    /// The faults that struck.
    pub faults: Vec<&'r str>,
    /// What is worth a look.
    pub notes: Vec<&'r str>,
    /// What a rule in report mode would have done.
    pub would: Option<&'r str>,
}

impl<'r> From<&'r Record> for Line<'r> {
    fn from(record: &'r Record) -> Self {
        Self {
            outcome: record.outcome.as_str(),
            cause: record.error_type.as_deref(),
            end: record.end,
            method: record.method.as_deref(),
            protocol: record.protocol_name,
            target: record.server_address.as_deref().zip(record.server_port),
            client: record.client_address.to_string().into(),
            status: record.status,
            route: record.route.as_deref(),
            total_ms: record.total_ms,
            bytes: (record.source_bytes, record.destination_bytes),
            message: record.error_message.as_deref(),
            hint: record.hint.as_deref(),
            suspects: record.suspects.iter().map(ToString::to_string).collect(),
            id: record.id.to_string().into(),
            faults: record.faults.iter().map(|fault| &**fault).collect(),
            notes: record.notes.clone(),
            would: record.would.as_deref(),
        }
    }
}

/// The line of a record, without its end.
pub fn line(record: &Record, colour: bool) -> String {
    Line::from(record).print(colour)
}

impl Line<'_> {
    /// The line, without its end.
    pub fn print(&self, colour: bool) -> String {
        let paint = |code: &'static str| if colour { code } else { "" };
        let (word, tone) = match (self.outcome, self.cause) {
            ("success", _) => ("ok  ", GREEN),
            (_, Some(id)) if id.starts_with("policy.denied.") => ("deny", YELLOW),
            ("failure", _) => ("fail", RED),
            _ => ("none", DIM),
        };
        let mut line = String::with_capacity(160);
        // When it ended, since that is when the line appears; in the reader's own time.
        let time = self.end.to_zoned(TimeZone::system());
        let time = time.strftime("%H:%M:%S");
        let _ = write!(
            line,
            "{}{time}{} {}{word}{}",
            paint(DIM),
            paint(RESET),
            paint(tone),
            paint(RESET)
        );
        let method = match (self.method, self.protocol) {
            (Some(method), _) => method,
            (None, Some("socks")) => "SOCKS5",
            (None, _) => "-",
        };
        let target = match self.target {
            Some((host, port)) if host.contains(':') => format!("[{host}]:{port}"),
            Some((host, port)) => format!("{host}:{port}"),
            None => format!("from {}", self.client),
        };
        let _ = write!(line, " {method:<7} {target:<28}");
        let status = self
            .status
            .map_or("-".to_owned(), |status| status.to_string());
        let route = self.route.unwrap_or("-");
        let _ = write!(
            line,
            " {status:>3} {route:<6} {:>6}",
            milliseconds(self.total_ms)
        );
        let (up, down) = self.bytes;
        if up > 0 {
            let _ = write!(line, " up {}", bytes(up));
        }
        if down > 0 {
            let _ = write!(line, " down {}", bytes(down));
        }
        if let Some(cause) = self.cause {
            let _ = write!(line, "  {}{cause}{}", paint(tone), paint(RESET));
            if let Some(message) = self.message {
                let _ = write!(line, ": {message}");
            }
            if let Some(hint) = self.hint {
                let _ = write!(line, " {}({hint}){}", paint(DIM), paint(RESET));
            }
            for suspect in &self.suspects {
                let _ = write!(line, " {}{suspect}{}", paint(YELLOW), paint(RESET));
            }
            let _ = write!(line, " {}record {}{}", paint(DIM), self.id, paint(RESET));
        }
        for fault in &self.faults {
            let _ = write!(line, "  {}fault {fault}{}", paint(YELLOW), paint(RESET));
        }
        for note in &self.notes {
            let _ = write!(line, "  {}{note}{}", paint(DIM), paint(RESET));
        }
        if let Some(would) = self.would {
            let _ = write!(
                line,
                "  {}would be decided by {would}{}",
                paint(YELLOW),
                paint(RESET)
            );
        }
        line
    }
}

/// A duration, short.
pub fn milliseconds(ms: f64) -> String {
    if ms < 1000.0 {
        format!("{ms:.1}ms")
    } else {
        format!("{:.1}s", ms / 1000.0)
    }
}

/// A size, short: `1.5KiB`.
pub fn bytes(count: u64) -> String {
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
