//! What readers of past records look at: a part of a [`Record`], from the record itself or from a line of a log.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::{Outcome, Record, SCHEMA};

/// The part of a record that reports, learning and replays go by.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Seen {
    /// The record's id.
    #[serde(rename = "event.id")]
    pub id: String,
    /// `connect` or `forward`; absent where the connection carried no request.
    #[serde(rename = "event.action")]
    pub action: Option<String>,
    /// How it ended.
    #[serde(rename = "event.outcome")]
    pub outcome: Outcome,
    /// The cause's id.
    #[serde(rename = "error.type")]
    pub cause: Option<String>,
    /// The failure in words and numbers.
    #[serde(rename = "error.message")]
    pub message: Option<String>,
    /// What to do.
    #[serde(rename = "egress.hint")]
    pub hint: Option<String>,
    /// The client's address.
    #[serde(rename = "client.address")]
    pub client: Option<IpAddr>,
    /// The user name that it gave.
    #[serde(rename = "user.name")]
    pub user: Option<String>,
    /// The request's label.
    #[serde(rename = "egress.client.label")]
    pub label: Option<String>,
    /// The program that asked, as it says.
    #[serde(rename = "user_agent.original")]
    pub agent: Option<String>,
    /// The method.
    #[serde(rename = "http.request.method")]
    pub method: Option<String>,
    /// The status that the client got.
    #[serde(rename = "http.response.status_code")]
    pub status: Option<u16>,
    /// The target's host.
    #[serde(rename = "server.address")]
    pub host: Option<String>,
    /// The target's port.
    #[serde(rename = "server.port")]
    pub port: Option<u16>,
    /// The address that was connected to.
    #[serde(rename = "network.peer.address")]
    pub peer: Option<IpAddr>,
    /// Its port.
    #[serde(rename = "network.peer.port")]
    pub peer_port: Option<u16>,
    /// The addresses that the name had.
    #[serde(rename = "dns.resolved_ip", default)]
    pub addresses: Vec<IpAddr>,
    /// The name in the ClientHello.
    #[serde(rename = "tls.client.server_name")]
    pub sni: Option<String>,
    /// Payload bytes towards the server.
    #[serde(rename = "source.bytes", default)]
    pub up: u64,
    /// Payload bytes towards the client.
    #[serde(rename = "destination.bytes", default)]
    pub down: u64,
    /// The rule or guard that decided.
    #[serde(rename = "egress.rule")]
    pub rule: Option<String>,
    /// Where it stands.
    #[serde(rename = "egress.rule_source")]
    pub rule_source: Option<String>,
    /// What a rule or guard in report mode would have done: its name.
    #[serde(rename = "egress.would")]
    pub would: Option<String>,
    /// The word of the block that refused it, or would have.
    #[serde(rename = "egress.code")]
    pub code: Option<String>,
    /// What the rule leads to.
    #[serde(rename = "egress.route")]
    pub route: Option<String>,
    /// The hop used last.
    #[serde(rename = "egress.hop")]
    pub hop: Option<String>,
    /// The tries.
    #[serde(rename = "egress.attempts", default)]
    pub attempts: Vec<Try>,
    /// The faults that struck.
    #[serde(rename = "egress.fault", default)]
    pub faults: Vec<String>,
    /// What is suspected.
    #[serde(rename = "egress.suspects", default)]
    pub suspects: Vec<Suspected>,
    /// What a look at the target found before.
    #[serde(rename = "egress.diagnosis.verdict")]
    pub diagnosis: Option<String>,
    /// How sure that is.
    #[serde(rename = "egress.diagnosis.certainty")]
    pub diagnosis_certainty: Option<String>,
    /// The same in a sentence.
    #[serde(rename = "egress.diagnosis.sentence")]
    pub diagnosis_sentence: Option<String>,
    /// How long before it was looked at, in seconds.
    #[serde(rename = "egress.diagnosis.ago_s")]
    pub diagnosis_ago: Option<u64>,
}

/// One try of a hop.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Try {
    /// The hop.
    pub hop: String,
    /// The address and port.
    pub address: Option<SocketAddr>,
    /// Why it failed; `None` where it went well.
    pub cause: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub ms: f64,
}

/// A suspicion.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Suspected {
    /// Of what.
    pub name: String,
    /// From 0 to 1.
    pub score: f64,
    /// What it rests on.
    #[serde(default)]
    pub evidence: Vec<String>,
}

/// Why a line is no record.
#[derive(Debug, thiserror::Error)]
pub enum NotSeen {
    /// It is no JSON, or lacks what every record has.
    #[error("this is no record")]
    Form(#[from] serde_json::Error),
    /// It is something else, or of another version.
    #[error("this is no {SCHEMA}")]
    Schema,
}

impl Seen {
    /// Reads a line of a log.
    pub fn read(line: &[u8]) -> Result<Self, NotSeen> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: Option<String>,
            #[serde(flatten)]
            rest: serde_json::Map<String, serde_json::Value>,
        }
        let line: Versioned = serde_json::from_slice(line)?;
        if line.schema.as_deref() != Some(SCHEMA) {
            return Err(NotSeen::Schema);
        }
        Ok(serde_json::from_value(line.rest.into())?)
    }

    /// The same of a record at hand.
    pub fn of(record: &Record) -> Result<Self, NotSeen> {
        Ok(serde_json::from_value(serde_json::to_value(record)?)?)
    }

    /// The target, as `host:port`; `None` where the connection carried no request.
    pub fn target(&self) -> Option<String> {
        let (host, port) = (self.host.as_deref()?, self.port?);
        Some(if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        })
    }

    /// What a look at the target found before, in a line.
    pub fn diagnosis(&self) -> Option<String> {
        let verdict = self.diagnosis.as_deref()?;
        let certainty = self.diagnosis_certainty.as_deref().unwrap_or("-");
        let sentence = self.diagnosis_sentence.as_deref().unwrap_or_default();
        let ago = self.diagnosis_ago.unwrap_or(0);
        Some(format!(
            "{verdict} ({certainty}), {ago}s before: {sentence}"
        ))
    }

    /// Whether a rule or guard refused it.
    pub fn is_denied(&self) -> bool {
        let cause = self.cause.as_deref().unwrap_or_default();
        cause.starts_with("policy.")
    }

    /// Whether the block that refused it, or would have, says that it is expected to.
    pub fn is_expected(&self) -> bool {
        self.code.as_deref() == Some("expected")
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_record_reads_the_same_from_its_line() {
        let start = jiff::Timestamp::UNIX_EPOCH;
        let mut record = Record::begun(start, uuid::Uuid::nil(), Ipv4Addr::LOCALHOST.into(), 1);
        record.outcome = Outcome::Failure;
        record.error_type = Some("connect.timeout".into());
        record.server_address = Some("2001:db8::1".into());
        record.server_port = Some(443);
        let line = serde_json::to_vec(&record).unwrap();
        let seen = Seen::read(&line).unwrap();
        assert_eq!(seen, Seen::of(&record).unwrap());
        assert_eq!(seen.target().as_deref(), Some("[2001:db8::1]:443"));
        assert!(!seen.is_denied());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for line in ["", "{}", "[1]", r#"{"schema": "routecause.record/2"}"#] {
            assert!(Seen::read(line.as_bytes()).is_err(), "{line}");
        }
    }
}
