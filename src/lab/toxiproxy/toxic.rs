//! Toxics as Toxiproxy's clients write them.
//!
//! Source: the README of Shopify/toxiproxy, "Toxics" and "Toxic fields".

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A toxic on a direction of a proxy's connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Toxic {
    pub(super) name: String,
    /// Which direction.
    pub(super) stream: Stream,
    /// The probability that a connection has it.
    pub(super) toxicity: f64,
    #[serde(flatten)]
    pub(super) harm: Harm,
}

/// A direction, as seen from Toxiproxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stream {
    /// From the client to the server.
    Upstream,
    /// From the server to the client.
    Downstream,
}

/// What a toxic does. Times are milliseconds, but for the slicer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "attributes", rename_all = "snake_case")]
pub(super) enum Harm {
    /// What passes is late by `latency`, give or take `jitter`.
    Latency {
        #[serde(default)]
        latency: u64,
        #[serde(default)]
        jitter: u64,
    },
    /// So many kilobytes a second pass.
    Bandwidth {
        #[serde(default)]
        rate: u64,
    },
    /// The end is told late.
    SlowClose {
        #[serde(default)]
        delay: u64,
    },
    /// Nothing passes, and the connection is closed behind `timeout`; never where that is 0.
    Timeout {
        #[serde(default)]
        timeout: u64,
    },
    /// The connection is reset behind `timeout`.
    ResetPeer {
        #[serde(default)]
        timeout: u64,
    },
    /// What passes is cut into pieces of about `average_size`, with `delay` microseconds between them.
    Slicer {
        #[serde(default)]
        average_size: u64,
        #[serde(default)]
        size_variation: u64,
        #[serde(default)]
        delay: u64,
    },
    /// The connection is closed once so many bytes have passed.
    LimitData {
        #[serde(default)]
        bytes: u64,
    },
}

/// What a client sends of one. All that it leaves out is as usual, or as before.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Sent {
    name: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    stream: Option<String>,
    toxicity: Option<f64>,
    attributes: Option<serde_json::Map<String, Value>>,
}

impl Sent {
    /// A new toxic.
    ///
    /// # Errors
    /// What a client is told.
    pub(super) fn begin(self) -> Result<Toxic, String> {
        let kind = self.kind.unwrap_or_default();
        let stream = match self.stream.as_deref() {
            None | Some("" | "downstream") => Stream::Downstream,
            Some("upstream") => Stream::Upstream,
            Some(_) => {
                return Err("stream was invalid, can be either upstream or downstream".to_owned());
            }
        };
        let harm = harm(&kind, &self.attributes.unwrap_or_default())?;
        let usual = || match stream {
            Stream::Upstream => format!("{kind}_upstream"),
            Stream::Downstream => format!("{kind}_downstream"),
        };
        Ok(Toxic {
            name: self
                .name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(usual),
            stream,
            toxicity: self.toxicity.unwrap_or(1.0),
            harm,
        })
    }

    /// Another toxic in the place of one.
    ///
    /// # Errors
    /// What a client is told.
    pub(super) fn change(self, toxic: &Toxic) -> Result<Toxic, String> {
        let written = serde_json::to_value(toxic.harm).map_err(|error| error.to_string())?;
        let kind = written
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let mut attributes = match written.get("attributes") {
            Some(Value::Object(attributes)) => attributes.clone(),
            Some(_) | None => serde_json::Map::new(),
        };
        attributes.extend(self.attributes.unwrap_or_default());
        Ok(Toxic {
            toxicity: self.toxicity.unwrap_or(toxic.toxicity),
            harm: harm(kind, &attributes)?,
            ..toxic.clone()
        })
    }
}

fn harm(kind: &str, attributes: &serde_json::Map<String, Value>) -> Result<Harm, String> {
    const KINDS: [&str; 7] = [
        "latency",
        "bandwidth",
        "slow_close",
        "timeout",
        "reset_peer",
        "slicer",
        "limit_data",
    ];
    if !KINDS.contains(&kind) {
        return Err(format!("invalid toxic type: {kind:?}"));
    }
    let written = serde_json::json!({"type": kind, "attributes": attributes});
    serde_json::from_value(written).map_err(|error| format!("bad request body: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn begin(sent: Value) -> Result<Toxic, String> {
        serde_json::from_value::<Sent>(sent).unwrap().begin()
    }

    #[test]
    fn what_is_left_out_is_as_usual() {
        let toxic =
            begin(json!({"type": "latency", "attributes": {"latency": 20, "more": 1}})).unwrap();
        assert_eq!(
            serde_json::to_value(&toxic).unwrap(),
            json!({"name": "latency_downstream", "type": "latency", "stream": "downstream", "toxicity": 1.0,
                "attributes": {"latency": 20, "jitter": 0}})
        );
        let toxic = begin(json!({"type": "timeout", "stream": "upstream"})).unwrap();
        assert_eq!(toxic.name, "timeout_upstream");
    }

    #[test]
    fn a_change_keeps_the_rest() {
        let toxic = begin(
            json!({"type": "slicer", "name": "s", "attributes": {"average_size": 5, "delay": 7}}),
        )
        .unwrap();
        let sent: Sent =
            serde_json::from_value(json!({"toxicity": 0.5, "attributes": {"delay": 9}})).unwrap();
        let changed = sent.change(&toxic).unwrap();
        let harm = Harm::Slicer {
            average_size: 5,
            size_variation: 0,
            delay: 9,
        };
        assert_eq!(
            (changed.harm, changed.toxicity, &*changed.name),
            (harm, 0.5, "s")
        );
    }

    #[test]
    fn what_is_no_toxic_is_told() {
        for (sent, said) in [
            (json!({"type": "poison"}), "invalid toxic type: \"poison\""),
            (json!({}), "invalid toxic type: \"\""),
            (
                json!({"type": "latency", "stream": "both"}),
                "stream was invalid",
            ),
            (
                json!({"type": "latency", "attributes": {"latency": "long"}}),
                "bad request body",
            ),
        ] {
            let error = begin(sent.clone()).unwrap_err();
            assert!(error.starts_with(said), "{sent}: {error}");
        }
    }
}
