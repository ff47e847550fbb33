//! Records as OTLP's messages: names of attributes are those of the record, which are OpenTelemetry's where it has one.

use std::sync::Arc;

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;
use serde_json::{Map, Value};

use crate::observe::text;
use crate::record::timeline::{self, Timings};
use crate::record::trace::{Hex, Trace};
use crate::record::{Outcome, Record};

/// The methods that semantic conventions know.
const METHODS: [&str; 10] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE",
];

/// Bit 0 of the flags: sampled. Bits 8 and 9: it is known whether the parent is another process's, and it is.
const SAMPLED: u32 = 1;
const PARENT_IS_KNOWN: u32 = 0x100;
const PARENT_IS_REMOTE: u32 = 0x200;

/// Keys of the record that a span does not repeat: it has a place of its own for them, or they say the same of every request.
const TOLD: [&str; 12] = [
    "schema",
    "@timestamp",
    "event.kind",
    "event.category",
    "event.reason",
    "event.start",
    "event.end",
    "event.duration",
    "trace.id",
    "span.id",
    "egress.client.span_id",
    "http.request.method",
];

/// Who tells.
pub(super) struct Scene {
    resource: Resource,
    scope: InstrumentationScope,
}

impl Scene {
    pub(super) fn new(attributes: &[(String, String)]) -> Self {
        let attributes = attributes.iter();
        let attributes =
            attributes.map(|(name, value)| pair(name.clone(), Any::StringValue(value.clone())));
        Self {
            resource: Resource {
                attributes: attributes.collect(),
                ..Resource::default()
            },
            scope: InstrumentationScope {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            },
        }
    }

    /// The spans of those of which one is made; `None` where none is.
    pub(super) fn traces(&self, records: &[Arc<Record>]) -> Option<Vec<u8>> {
        let spans: Vec<_> = records.iter().flat_map(|record| spans(record)).collect();
        if spans.is_empty() {
            return None;
        }
        let message = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(self.scope.clone()),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        Some(message.encode_to_vec())
    }

    pub(super) fn logs(&self, records: &[Arc<Record>]) -> Vec<u8> {
        let message = ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(self.resource.clone()),
                scope_logs: vec![ScopeLogs {
                    scope: Some(self.scope.clone()),
                    log_records: records.iter().map(|record| log(record)).collect(),
                    ..ScopeLogs::default()
                }],
                ..ResourceLogs::default()
            }],
        };
        message.encode_to_vec()
    }
}

/// The span of a request, and under it one for each of its phases.
fn spans(record: &Record) -> Vec<Span> {
    let Some(trace) = record.trace.as_deref() else {
        return Vec::new();
    };
    let Some(own) = trace.span else {
        return Vec::new();
    };
    let all = members(record);
    let start = nanoseconds(record.start);
    let method = record.method.as_deref();
    let is_known = method.is_none_or(|method| METHODS.contains(&method));
    let mut attributes: Vec<_> = all
        .iter()
        .filter(|(key, _)| !TOLD.contains(&key.as_str()))
        .map(|(key, value)| pair(key.clone(), any(value)))
        .collect();
    if let Some(method) = method {
        let known = if is_known { method } else { "_OTHER" };
        attributes.push(text_pair("http.request.method", known));
        if !is_known {
            attributes.push(text_pair("http.request.method_original", method));
        }
    }
    let name = match method {
        Some(method) if is_known => method,
        Some(_) => "HTTP",
        None => "SOCKS",
    };
    let parent = trace.parent;
    let remote = parent.map_or(0, |_| PARENT_IS_REMOTE);
    let mut spans = vec![Span {
        trace_id: trace.id.0.to_vec(),
        span_id: own.0.to_vec(),
        parent_span_id: parent.map_or_else(Vec::new, |parent| parent.0.to_vec()),
        flags: SAMPLED | PARENT_IS_KNOWN | remote,
        name: name.to_owned(),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(record.duration_ns),
        attributes,
        status: status(record),
        ..Span::default()
    }];
    let phases = Timings::from(record).timeline();
    for (phase, at) in phases.iter().zip(1..) {
        spans.push(of_phase(phase, at, record, (trace, own), &all));
    }
    spans
}

fn of_phase(
    phase: &timeline::Span,
    at: u64,
    record: &Record,
    (trace, own): (&Trace, Hex<8>),
    all: &Map<String, Value>,
) -> Span {
    // What of the record belongs to a phase, by what its keys begin with.
    let of_phase: &[&str] = match &*phase.phase {
        "dns" => &["dns.", "egress.dns."],
        "connect" => &["network.peer.", "network.local.", "network.type"],
        "upstream" => &["egress.upstream."],
        "tls" => &["tls.", "egress.tls."],
        _ => &[],
    };
    let belongs = |key: &&String| of_phase.iter().any(|start| key.starts_with(start));
    let mut attributes: Vec<_> = all
        .iter()
        .filter(|(key, _)| belongs(key))
        .map(|(key, value)| pair(key.clone(), any(value)))
        .collect();
    let failed = record.error_type.as_deref().filter(|_| phase.is_cut);
    attributes.extend(failed.map(|cause| text_pair("error.type", cause)));
    let start = nanoseconds(record.start);
    let after = |ms: f64| {
        let after = std::time::Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default();
        start.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
    };
    Span {
        trace_id: trace.id.0.to_vec(),
        // Beside the request's own, which is drawn.
        span_id: u64::from_be_bytes(own.0)
            .wrapping_add(at)
            .to_be_bytes()
            .to_vec(),
        parent_span_id: own.0.to_vec(),
        flags: SAMPLED | PARENT_IS_KNOWN,
        name: phase.phase.clone().into_owned(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: after(phase.from_ms),
        end_time_unix_nano: after(phase.to_ms),
        attributes,
        status: failed.and_then(|_| status(record)),
        ..Span::default()
    }
}

/// A failure, unless the client itself was behind it: that is no error of the server's side.
fn status(record: &Record) -> Option<Status> {
    let is_error = record.outcome == Outcome::Failure && record.side != Some("client");
    is_error.then(|| Status {
        message: record.error_message.clone().unwrap_or_default(),
        code: StatusCode::Error.into(),
    })
}

fn log(record: &Record) -> LogRecord {
    let severity = match record.outcome {
        Outcome::Failure => SeverityNumber::Error,
        Outcome::Unknown => SeverityNumber::Warn,
        Outcome::Success => SeverityNumber::Info,
    };
    let word = match record.outcome {
        Outcome::Failure => "ERROR",
        Outcome::Unknown => "WARN",
        Outcome::Success => "INFO",
    };
    let trace = record.trace.as_deref();
    let span = trace.and_then(|trace| trace.span);
    let line = text::line(record, false);
    let attributes = members(record).into_iter();
    LogRecord {
        time_unix_nano: nanoseconds(record.end),
        observed_time_unix_nano: nanoseconds(record.end),
        severity_number: severity.into(),
        severity_text: word.to_owned(),
        body: Some(AnyValue {
            value: Some(Any::StringValue(line.trim_end().to_owned())),
        }),
        attributes: attributes
            .map(|(key, value)| pair(key, any(&value)))
            .collect(),
        flags: span.map_or(0, |_| SAMPLED),
        trace_id: trace.map_or_else(Vec::new, |trace| trace.id.0.to_vec()),
        span_id: span.map_or_else(Vec::new, |span| span.0.to_vec()),
        event_name: "egress.request".to_owned(),
        ..LogRecord::default()
    }
}

/// The members of the record's one line.
fn members(record: &Record) -> Map<String, Value> {
    match serde_json::to_value(record) {
        Ok(Value::Object(members)) => members,
        Ok(_) | Err(_) => Map::new(),
    }
}

fn nanoseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or(0)
}

fn pair(key: String, value: Any) -> KeyValue {
    KeyValue {
        key,
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn text_pair(key: &str, value: &str) -> KeyValue {
    pair(key.to_owned(), Any::StringValue(value.to_owned()))
}

fn any(value: &Value) -> Any {
    let inner = |value: &Value| AnyValue {
        // What is null has no value.
        value: (!value.is_null()).then(|| any(value)),
    };
    match value {
        Value::Null => Any::StringValue(String::new()),
        Value::Bool(is_so) => Any::BoolValue(*is_so),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Any::IntValue(whole),
            (None, number) => Any::DoubleValue(number.unwrap_or_default()),
        },
        Value::String(text) => Any::StringValue(text.clone()),
        Value::Array(values) => Any::ArrayValue(ArrayValue {
            values: values.iter().map(inner).collect(),
        }),
        Value::Object(members) => Any::KvlistValue(KeyValueList {
            values: members
                .iter()
                .map(|(key, value)| KeyValue {
                    key: key.clone(),
                    value: Some(inner(value)),
                    ..KeyValue::default()
                })
                .collect(),
        }),
    }
}
