//! The export by OTLP, as it is written.

use super::faults::Probability;
use super::secrets::SecretRef;
use crate::config::decode::{At, Named, OneOrMany, Wait};
use crate::config::written::{words, written};

written! {
    /// Where records and spans are exported to by OTLP (feature `otlp`). What is not said here, OpenTelemetry's variables say.
    Otlp is "`otlp`", later [] {
        /// The collector's URL, as in `http://127.0.0.1:4318`, or `off`. It is asked over HTTP, straight, at `/v1/traces` and `/v1/logs`.
        endpoint: String,
        /// Header fields that it is sent, such as a key.
        headers: Named<At<SecretRef>>,
        /// The name that the process goes by (routecause).
        service_name: String,
        /// How long it may take to answer (10s).
        timeout: Wait,
        /// What is exported (both).
        signals: OneOrMany<Signal>,
        /// The share of requests that a span is made of, unless their clients have decided (1).
        sample: Probability,
    }
}

words! {
    /// What is exported.
    Signal {
        /// A span for each request, and one for each of its phases.
        Traces = "traces",
        /// Records.
        Logs = "logs",
    }
}
