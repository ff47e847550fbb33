//! An incident: what a record tells of a failure, as faults that bring the same one about without the network.
//!
//! Nothing of what was said is in it. What came within a round trip comes so here as well, where round trips are short:
//! what is told from such a reset stays the same. Longer waits are kept as they were.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cause::Cause;
use crate::policy::fault::like;
use crate::target::Target;

/// Name and version of the file's form.
const SCHEMA: &str = "routecause.incident/1";

/// Shorter waits are those of any network.
const NOTABLE_MS: f64 = 20.0;

/// What came later than so many round trips was waited for.
const PROMPT: f64 = 3.0;

/// A TLS server's flight is longer than that, whatever its certificate.
const IN_FLIGHT: u64 = 200;

/// A failure that can be brought about again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    schema: String,
    /// The record that it comes of.
    pub record: String,
    /// Its cause.
    pub cause: String,
    /// The phase of that.
    pub phase: String,
    /// Who was behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// What was asked for, as `host:port`.
    pub target: String,
    /// Whether it was a tunnel or a plain request.
    pub action: String,
    /// What was seen, and when.
    #[serde(default)]
    pub timeline: Vec<Moment>,
    /// Whether the far end acknowledges what the client says first. Where it does not, nothing in it arrives.
    #[serde(default = "yes")]
    pub acknowledges: bool,
    /// The answers are at least so long, so that they can be cut where they were.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub answer_bytes: u64,
    /// The faults, without their host: what dies first stands first.
    pub faults: Vec<String>,
}

/// Something that was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moment {
    /// When, in milliseconds since the request came.
    pub ms: f64,
    /// What.
    pub event: String,
}

/// Why a failure cannot be brought about again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncidentError {
    /// The text is no record.
    #[error("this is no record of a request: {0}")]
    NoRecord(String),
    /// The request went well.
    #[error("the request of record {0} did not fail")]
    Fine(String),
    /// Nothing is known that does the same.
    #[error(
        "{0} cannot be brought about by a fault: what can is a failure of dns, connect, tls, http, tunnel, or an upstream's answer"
    )]
    Beyond(String),
    /// The text is no incident.
    #[error("this is no incident: {0}")]
    Bad(String),
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_nothing(count: &u64) -> bool {
    *count == 0
}

/// What brings a cause about.
struct Death {
    fault: String,
    acknowledges: bool,
    answer_bytes: u64,
}

impl Death {
    fn by(fault: impl Into<String>) -> Self {
        Self {
            fault: fault.into(),
            acknowledges: true,
            answer_bytes: 0,
        }
    }
}

impl Incident {
    /// What a line of the log tells.
    ///
    /// # Errors
    /// As [`IncidentError`] says.
    pub fn of_record(line: &str) -> Result<Self, IncidentError> {
        let no_record = |why: String| IncidentError::NoRecord(why);
        let record: Value =
            serde_json::from_str(line).map_err(|error| no_record(error.to_string()))?;
        let told = Told(&record);
        if told.text("schema") != crate::record::SCHEMA {
            return Err(no_record(format!(
                "its schema is not {}",
                crate::record::SCHEMA
            )));
        }
        let id = told.text("event.id").to_owned();
        let cause = told.text("error.type").to_owned();
        if cause.is_empty() {
            return Err(IncidentError::Fine(id));
        }
        let host = told.text("server.address");
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let target = format!("{host}:{}", told.count("server.port"));
        let target =
            Target::from_authority(&target).map_err(|error| no_record(error.to_string()))?;
        let death = told
            .death(&cause)
            .ok_or(IncidentError::Beyond(cause.clone()))?;
        let mut faults = vec![death.fault];
        faults.extend(told.delays());
        Ok(Self {
            schema: SCHEMA.to_owned(),
            phase: told.text("egress.phase").to_owned(),
            side: told.get("egress.side").map(str::to_owned),
            target: target.to_string(),
            action: told.text("event.action").to_owned(),
            timeline: told.timeline(&cause),
            acknowledges: death.acknowledges,
            answer_bytes: death.answer_bytes,
            faults,
            record: id,
            cause,
        })
    }

    /// The record of that id, or of an id that begins so, in a log; the last failure where none is named.
    ///
    /// # Errors
    /// As [`IncidentError`] says.
    pub fn of_log(log: &str, id: Option<&str>) -> Result<Self, IncidentError> {
        let is_it = |line: &&str| {
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                return false;
            };
            let told = Told(&record);
            match id {
                Some(id) => told.text("event.id").starts_with(id),
                None => told.get("error.type").is_some() && told.get("server.address").is_some(),
            }
        };
        match log.lines().rfind(is_it) {
            Some(line) => Self::of_record(line),
            None => Err(IncidentError::NoRecord(match id {
                Some(id) => format!("no line has the id {id}"),
                None => "no line tells of a failure".to_owned(),
            })),
        }
    }

    /// Reads what [`Incident::text`] wrote.
    ///
    /// # Errors
    /// [`IncidentError::Bad`].
    pub fn parse(text: &str) -> Result<Self, IncidentError> {
        let incident: Self =
            serde_json::from_str(text).map_err(|error| IncidentError::Bad(error.to_string()))?;
        if incident.schema != SCHEMA {
            let why = format!("its schema is {:?}, not {SCHEMA}", incident.schema);
            return Err(IncidentError::Bad(why));
        }
        Ok(incident)
    }

    /// It as a file.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// A record, read by its keys.
#[derive(Clone, Copy)]
struct Told<'r>(&'r Value);

impl<'r> Told<'r> {
    fn get(self, key: &str) -> Option<&'r str> {
        self.0.get(key)?.as_str()
    }

    fn text(self, key: &str) -> &'r str {
        self.get(key).unwrap_or_default()
    }

    fn ms(self, key: &str) -> Option<f64> {
        self.0.get(key)?.as_f64()
    }

    fn count(self, key: &str) -> u64 {
        self.0.get(key).and_then(Value::as_u64).unwrap_or_default()
    }

    /// What brings a cause about.
    fn death(self, cause: &str) -> Option<Death> {
        let bytes = self.count("destination.bytes");
        let at_bytes = |what: &str| Death {
            answer_bytes: bytes,
            ..Death::by(format!("{what} at bytes {}", bytes.max(1)))
        };
        let is_lost = self.0.get("egress.reset.last_write_acked") == Some(&Value::Bool(false));
        if let Some(alert) = cause.strip_prefix("tls.alert_from_server.") {
            return Some(Death::by(format!("alert {alert} at client_hello")));
        }
        if let Some(alert) = cause.strip_prefix("tls.client_rejected_certificate.") {
            let wrong = match alert {
                "certificate_expired" => "expired",
                _ => "unknown_issuer",
            };
            return Some(Death::by(format!("wrong_cert {wrong} at server_hello")));
        }
        if let Some(status) = cause.strip_prefix("http.status.") {
            return Some(Death::by(format!("status {status} at request")));
        }
        if cause.starts_with("upstream.") && self.0.get("egress.upstream.status").is_some() {
            let status = self.count("egress.upstream.status");
            return Some(Death::by(format!("status {status} at accept")));
        }
        Some(match cause {
            "upstream.reset" => Death::by("reset at accept"),
            "upstream.closed" => Death::by("close at accept"),
            "tls.reset_after_client_hello" => Death {
                acknowledges: !is_lost,
                ..Death::by("reset at client_hello")
            },
            // The fault only says that it is one: it is the server that hears nothing.
            "tls.client_hello_blackholed" => Death {
                acknowledges: false,
                ..Death::by("delay 1ms at client_hello")
            },
            "tls.server_flight_stalled" => Death::by(format!("hang at bytes {IN_FLIGHT}")),
            "tls.reset_during_server_flight" => Death::by(format!("reset at bytes {IN_FLIGHT}")),
            "http.incomplete_body" => Death {
                answer_bytes: bytes + 1,
                ..Death::by(format!("truncate {bytes} at response"))
            },
            "tunnel.reset_by_server" => at_bytes("reset"),
            "tunnel.truncated" => at_bytes("close"),
            "tunnel.server_silent" => at_bytes("hang"),
            "tunnel.reset_after_idle" => {
                let idle = self.ms("egress.idle_before_ms")?;
                Death::by(format!("reset at idle {idle:.0}ms"))
            }
            // A lab has no upstreams.
            _ if cause.starts_with("upstream.") => return None,
            _ => {
                let (what, at) = like(Cause::parse(cause)?)?;
                Death::by(format!("{what} at {at}"))
            }
        })
    }

    /// The waits on the way there, the one of the handshake outermost.
    fn delays(self) -> Vec<String> {
        let is_notable = |ms: &f64| *ms >= NOTABLE_MS;
        let mut delays = Vec::new();
        let mut add = |ms: Option<f64>, point: &str| {
            if let Some(ms) = ms.filter(is_notable) {
                delays.push(format!("delay {ms:.0}ms at {point}"));
            }
        };
        let phase = self.text("egress.phase");
        if phase != "dns" {
            add(self.ms("egress.timing.dns_ms"), "dns");
            if phase != "connect" && phase != "upstream" {
                add(self.ms("egress.timing.connect_ms"), "connect");
            }
        }
        let is_waited_for = self
            .ms("egress.reset.rtt_ratio")
            .is_some_and(|ratio| ratio > PROMPT);
        if phase == "tls" && is_waited_for {
            add(self.ms("egress.reset.after_ms"), "client_hello");
        }
        delays
    }

    fn timeline(self, cause: &str) -> Vec<Moment> {
        let mut timeline = Vec::new();
        let mut now = 0.0;
        let mut note = |ms: f64, event: String| {
            // Finer than that is noise.
            let ms = (ms * 1000.0).round() / 1000.0;
            timeline.push(Moment { ms, event });
        };
        if let Some(ms) = self.ms("egress.timing.dns_ms") {
            now += ms;
            note(now, "the name was looked up".to_owned());
        }
        if let Some(ms) = self.ms("egress.timing.connect_ms") {
            now += ms;
            note(now, "the connection stood".to_owned());
        }
        if let Some(ms) = self.ms("egress.timing.upstream_ms") {
            now += ms;
            note(now, "the upstream had answered".to_owned());
        }
        let total = self.ms("egress.timing.total_ms").unwrap_or(now);
        let hello = self.count("egress.tls.client_hello_bytes");
        if hello > 0 {
            let before = self.ms("egress.reset.after_ms").unwrap_or(0.0);
            let event = format!("a ClientHello of {hello} bytes had gone");
            note((total - before).max(now), event);
        }
        let bytes = self.count("destination.bytes");
        let behind = match bytes {
            0 => String::new(),
            bytes => format!(", behind {bytes} bytes of the server"),
        };
        note(total, format!("{cause}{behind}"));
        timeline
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(more: &Value) -> String {
        let mut record = json!({
            "schema": "routecause.record/1",
            "event.id": "01a1fee0-a5aa-7843-8a64-aff6383dce97",
            "event.action": "connect",
            "server.address": "blocked.example",
            "server.port": 443,
            "egress.phase": "tls",
            "egress.timing.total_ms": 61.5,
        });
        for (key, value) in more.as_object().unwrap() {
            record[key] = value.clone();
        }
        record.to_string()
    }

    #[track_caller]
    fn check(more: &Value, faults: &[&str]) -> Incident {
        let incident = Incident::of_record(&record(more)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(incident.faults, faults, "{more}");
        assert!(Cause::parse(&incident.cause).is_some(), "{more}");
        for fault in faults {
            let text = format!("a.lab.test: {fault}");
            crate::config::fault(&text).unwrap_or_else(|report| panic!("{report}"));
        }
        assert_eq!(Incident::parse(&incident.text()), Ok(incident.clone()));
        incident
    }

    #[test]
    fn a_reset_behind_the_client_hello_is_one_that_nobody_acknowledged() {
        let incident = check(
            &json!({
                "error.type": "tls.reset_after_client_hello", "egress.side": "network",
                "egress.timing.dns_ms": 30.2, "egress.timing.connect_ms": 12.0,
                "egress.tls.client_hello_bytes": 517,
                "egress.reset.last_write_acked": false, "egress.reset.after_ms": 12.1, "egress.reset.rtt_ratio": 0.9,
            }),
            &["reset at client_hello", "delay 30ms at dns"],
        );
        assert!(!incident.acknowledges);
        assert_eq!(incident.target, "blocked.example:443");
        let moment = |ms: f64, event: &str| Moment {
            ms,
            event: event.to_owned(),
        };
        assert_eq!(
            incident.timeline,
            [
                moment(30.2, "the name was looked up"),
                moment(42.2, "the connection stood"),
                moment(49.4, "a ClientHello of 517 bytes had gone"),
                moment(61.5, "tls.reset_after_client_hello"),
            ]
        );
    }

    #[test]
    fn a_wait_that_was_none_of_the_network_is_kept() {
        let incident = check(
            &json!({
                "error.type": "tls.reset_after_client_hello", "egress.reset.last_write_acked": true,
                "egress.reset.after_ms": 800.4, "egress.reset.rtt_ratio": 40.0,
            }),
            &["reset at client_hello", "delay 800ms at client_hello"],
        );
        assert!(incident.acknowledges);
    }

    #[test]
    fn every_kind_of_death_has_its_fault() {
        for (cause, more, fault) in [
            (
                "dns.nxdomain",
                json!({"egress.phase": "dns"}),
                "nxdomain at dns",
            ),
            (
                "connect.timeout",
                json!({"egress.phase": "connect"}),
                "hang at connect",
            ),
            (
                "upstream.auth_required",
                json!({"egress.phase": "upstream", "egress.upstream.status": 407}),
                "status 407 at accept",
            ),
            (
                "tls.alert_from_server.unrecognized_name",
                json!({}),
                "alert unrecognized_name at client_hello",
            ),
            (
                "tls.client_rejected_certificate.certificate_expired",
                json!({}),
                "wrong_cert expired at server_hello",
            ),
            (
                "tls.client_hello_blackholed",
                json!({}),
                "delay 1ms at client_hello",
            ),
            (
                "tunnel.reset_by_server",
                json!({"destination.bytes": 70000}),
                "reset at bytes 70000",
            ),
            (
                "tunnel.reset_after_idle",
                json!({"egress.idle_before_ms": 300_000.2}),
                "reset at idle 300000ms",
            ),
            (
                "http.status.503",
                json!({"egress.phase": "http"}),
                "status 503 at request",
            ),
            (
                "http.incomplete_body",
                json!({"destination.bytes": 12}),
                "truncate 12 at response",
            ),
        ] {
            let mut more = more;
            more["error.type"] = cause.into();
            check(&more, &[fault]);
        }
    }

    #[test]
    fn what_cannot_be_brought_about_is_named() {
        let of = |more: &Value| Incident::of_record(&record(more)).unwrap_err().to_string();
        assert!(
            of(&json!({"error.type": "client.gave_up.dns"}))
                .starts_with("client.gave_up.dns cannot be brought about")
        );
        assert!(of(&json!({})).contains("did not fail"));
        assert!(
            of(&json!({"schema": "x/1", "error.type": "dns.timeout"}))
                .starts_with("this is no record")
        );
        assert!(
            Incident::of_record("{")
                .unwrap_err()
                .to_string()
                .starts_with("this is no record")
        );
        assert!(
            Incident::parse("{}")
                .unwrap_err()
                .to_string()
                .starts_with("this is no incident")
        );
    }

    #[test]
    fn a_log_is_searched_by_the_beginning_of_an_id_or_for_the_last_failure() {
        let id = |id: &str, cause: &str| record(&json!({"event.id": id, "error.type": cause}));
        let log = [
            id("01a1-1", "dns.timeout"),
            "no record".to_owned(),
            id("01a1-2", "connect.refused"),
            record(&json!({"event.id": "01a1-3"})),
        ]
        .join("\n");
        let cause = |id| Incident::of_log(&log, id).map(|incident| incident.cause);
        assert_eq!(cause(Some("01a1-1")).unwrap(), "dns.timeout");
        assert_eq!(cause(None).unwrap(), "connect.refused");
        assert!(
            cause(Some("02"))
                .unwrap_err()
                .to_string()
                .contains("no line has the id 02")
        );
    }
}
