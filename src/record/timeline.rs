//! The phases of a request one behind the other.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Outcome, Record};

/// A phase of a request.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Span {
    /// `dns`, `connect`, `upstream`, `tls`, `first_byte` or `rest`; where a request failed, the phase that was under way.
    pub phase: Cow<'static, str>,
    /// When it began, in milliseconds from the beginning.
    pub from_ms: f64,
    /// When it ended.
    pub to_ms: f64,
    /// Whether it is where the request failed.
    pub is_cut: bool,
}

/// The part of a record that says how long what took, from the record itself or from a line of a log.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Timings {
    #[serde(rename = "event.outcome")]
    outcome: Outcome,
    #[serde(rename = "egress.phase")]
    phase: Cow<'static, str>,
    #[serde(rename = "egress.timing.dns_ms")]
    dns: Option<f64>,
    #[serde(rename = "egress.timing.connect_ms")]
    connect: Option<f64>,
    #[serde(rename = "egress.timing.upstream_ms")]
    upstream: Option<f64>,
    #[serde(rename = "egress.timing.tls_ms")]
    tls: Option<f64>,
    #[serde(rename = "egress.timing.first_byte_ms")]
    first_byte: Option<f64>,
    #[serde(rename = "egress.timing.total_ms")]
    total: f64,
}

impl From<&Record> for Timings {
    fn from(record: &Record) -> Self {
        Self {
            outcome: record.outcome,
            phase: record.phase.into(),
            dns: record.dns_ms,
            connect: record.connect_ms,
            upstream: record.upstream_ms,
            tls: record.tls_ms,
            first_byte: record.first_byte_ms,
            total: record.total_ms,
        }
    }
}

impl Timings {
    /// The phases one behind the other, as far as they were timed.
    pub fn timeline(&self) -> Vec<Span> {
        let phases = [
            ("dns", self.dns),
            ("connect", self.connect),
            ("upstream", self.upstream),
            ("tls", self.tls),
            // From the connection on, so that it holds a handshake.
            (
                "first_byte",
                (self.first_byte).map(|ms| (ms - self.tls.unwrap_or(0.0)).max(0.0)),
            ),
        ];
        let mut from = 0.0;
        let mut spans = Vec::new();
        for (phase, ms) in phases {
            let Some(ms) = ms else { continue };
            let to = (from + ms).min(self.total);
            spans.push(Span {
                phase: phase.into(),
                from_ms: from,
                to_ms: to,
                is_cut: false,
            });
            from = to;
        }
        if self.total > from {
            spans.push(Span {
                phase: "rest".into(),
                from_ms: from,
                to_ms: self.total,
                is_cut: false,
            });
        }
        if self.outcome == Outcome::Failure
            && let Some(last) = spans.last_mut()
        {
            last.is_cut = true;
            // What was under way when it failed has no time of its own.
            if last.phase == "rest" {
                last.phase.clone_from(&self.phase);
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn record() -> Record {
        let from: IpAddr = Ipv4Addr::LOCALHOST.into();
        let start = jiff::Timestamp::UNIX_EPOCH;
        let mut record = Record::begun(start, uuid::Uuid::nil(), from, 1);
        record.dns_ms = Some(2.0);
        record.connect_ms = Some(3.0);
        record.total_ms = 10.0;
        record.phase = "tls";
        record
    }

    #[test]
    fn phases_stand_one_behind_the_other_and_the_last_is_where_it_failed() {
        let mut record = record();
        record.outcome = Outcome::Failure;
        let told = |record: &Record| {
            let spans = Timings::from(record).timeline().into_iter();
            spans
                .map(|s| (s.phase.into_owned(), s.from_ms, s.to_ms, s.is_cut))
                .collect::<Vec<_>>()
        };
        let span = |phase: &str, from, to, is_cut| (phase.to_owned(), from, to, is_cut);
        let ways = [
            span("dns", 0.0, 2.0, false),
            span("connect", 2.0, 5.0, false),
        ];
        assert_eq!(
            told(&record),
            [&ways[..], &[span("tls", 5.0, 10.0, true)]].concat()
        );
        record.outcome = Outcome::Success;
        assert_eq!(
            told(&record),
            [&ways[..], &[span("rest", 5.0, 10.0, false)]].concat()
        );
    }

    #[test]
    fn a_line_of_a_log_gives_the_same_timeline() {
        let mut record = record();
        record.outcome = Outcome::Failure;
        record.tls_ms = Some(1.5);
        record.first_byte_ms = Some(2.5);
        let line = serde_json::to_string(&record).unwrap();
        let read: Timings = serde_json::from_str(&line).unwrap();
        assert_eq!(read, Timings::from(&record));
        assert_eq!(read.timeline().len(), 5);
    }
}
