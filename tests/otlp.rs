//! What a collector of OpenTelemetry gets, and that one which fails takes nothing from anybody.

#![cfg(feature = "otlp")]

mod support;

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use support::admin::{self, ask};
use support::origin::{Listening, Origin};
use support::{Proxy, SOON, check, routecause, run, wire};

const POLICY: &str = "version: 1
dns: {hosts: {a.test: [127.0.0.1]}}
rules: [{name: closed, match: {host: closed.test}, block: true}]
default: {direct: true}
";

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A message that arrived: the head of its request, and its body.
type Post = (String, Vec<u8>);

/// A collector: what it gets, and where it is.
struct Collector {
    address: SocketAddr,
    posts: Receiver<Post>,
}

impl Collector {
    /// Answers the posts one after the other, each with what `answer` says of its place among them.
    fn answering(answer: impl Fn(usize) -> (u16, Vec<u8>) + Send + Sync + 'static) -> Self {
        let listening = Listening::new();
        let address = listening.address;
        let (told, posts) = channel();
        thread::spawn(move || {
            let answer = std::sync::Arc::new(answer);
            let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
            loop {
                let stream = listening.accept();
                let (told, answer, count) = (told.clone(), answer.clone(), count.clone());
                thread::spawn(move || {
                    loop {
                        let head = wire::read_head(&stream);
                        let length = wire::field(&head, "content-length").unwrap();
                        let body = wire::read_exact(&stream, length.parse().unwrap());
                        let at = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let (status, answer) = answer(at);
                        let length = answer.len();
                        wire::send(
                            &stream,
                            format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n"),
                        );
                        wire::send(&stream, answer);
                        if told.send((head, body)).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, posts }
    }

    fn good() -> Self {
        Self::answering(|_| (200, Vec::new()))
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes messages until there are so many spans and logs.
    #[track_caller]
    fn until(&self, spans: usize, logs: usize) -> Told {
        let mut told = Told::default();
        while told.spans.len() < spans || told.logs.len() < logs {
            let (head, body) = self.posts.recv_timeout(SOON).unwrap();
            if head.starts_with("POST /v1/traces ") {
                let message = ExportTraceServiceRequest::decode(&*body).unwrap();
                for of in message.resource_spans {
                    told.resource = of.resource;
                    let scopes = of.scope_spans.into_iter();
                    told.spans.extend(scopes.flat_map(|scope| scope.spans));
                }
            } else if head.starts_with("POST /v1/logs ") {
                let message = ExportLogsServiceRequest::decode(&*body).unwrap();
                for of in message.resource_logs {
                    told.resource = of.resource;
                    let scopes = of.scope_logs.into_iter();
                    told.logs.extend(scopes.flat_map(|scope| scope.log_records));
                }
            } else {
                panic!("{head}");
            }
            told.head = head;
        }
        assert_eq!((told.spans.len(), told.logs.len()), (spans, logs));
        told
    }
}

#[derive(Default)]
struct Told {
    head: String,
    resource: Option<Resource>,
    spans: Vec<Span>,
    logs: Vec<LogRecord>,
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The value of an attribute, as text.
fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|pair| pair.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        Any::BoolValue(_)
        | Any::DoubleValue(_)
        | Any::ArrayValue(_)
        | Any::KvlistValue(_)
        | Any::BytesValue(_)
        | Any::StringValueStrindex(_) => None,
    }
}

fn start(flags: &[&str], variables: &[(&str, &str)]) -> Proxy {
    let starting = admin::with_admin(Proxy::under(POLICY)).args(flags);
    let with =
        |starting: support::Starting, (name, value): &(&str, &str)| starting.env(name, value);
    variables.iter().fold(starting, with).start()
}

/// Asks for a URL with more lines for the head; the status.
fn fetch(proxy: &Proxy, url: &str, fields: &str) -> u16 {
    let client = proxy.connect();
    let host = url.trim_start_matches("http://").split('/').next().unwrap();
    wire::send(
        &client,
        format!("GET {url} HTTP/1.1\r\nhost: {host}\r\n{fields}connection: close\r\n\r\n"),
    );
    wire::status(&wire::read_answer(&client).0)
}

fn origin() -> Origin {
    Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
}

#[test]
fn a_request_is_a_span_under_its_clients_with_one_for_each_phase_and_a_log() {
    let collector = Collector::good();
    let url = collector.url();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=planted%20key"),
        ("OTEL_SERVICE_NAME", "egress-of-ci"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=ci"),
    ];
    let proxy = start(&[], &variables);
    let origin = origin();
    let port = origin.address.port();
    let traceparent = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=b\r\n");
    assert_eq!(
        fetch(&proxy, &format!("http://a.test:{port}/x"), &traceparent),
        200
    );
    let record = proxy.record();
    check!(&record, "trace.id": TRACE, "egress.client.span_id": PARENT);
    let own = record["span.id"].as_str().unwrap();
    assert!(
        record["event.id"]
            .as_str()
            .unwrap()
            .replace('-', "")
            .ends_with(own)
    );

    // The origin is told of our span, under which its own belong.
    let heard = origin.heard();
    let passed = format!("00-{TRACE}-{own}-01");
    assert_eq!(wire::fields(&heard, "traceparent"), [&*passed]);
    assert_eq!(wire::field(&heard, "tracestate"), Some("a=b"));

    let told = collector.until(4, 1);
    assert_eq!(wire::field(&told.head, "api-key"), Some("planted key"));
    assert_eq!(
        wire::field(&told.head, "content-type"),
        Some("application/x-protobuf")
    );
    let resource = told.resource.unwrap().attributes;
    assert_eq!(value(&resource, "service.name").unwrap(), "egress-of-ci");
    assert_eq!(
        value(&resource, "deployment.environment.name").unwrap(),
        "ci"
    );

    let [request, phases @ ..] = &told.spans[..] else {
        unreachable!()
    };
    assert_eq!(request.name, "GET");
    assert_eq!(
        (hex(&request.trace_id), hex(&request.span_id)),
        (TRACE.to_owned(), own.to_owned())
    );
    assert_eq!(hex(&request.parent_span_id), PARENT);
    assert_eq!(request.status, None);
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("server.address", "a.test"),
        ("server.port", &*port.to_string()),
        ("client.address", "127.0.0.1"),
        ("network.peer.address", "127.0.0.1"),
        ("egress.route", "direct"),
    ] {
        assert_eq!(
            value(&request.attributes, key).as_deref(),
            Some(expected),
            "{key}"
        );
    }
    let names: Vec<_> = phases.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["connect", "first_byte", "rest"]);
    for span in phases {
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.to_owned(), own.to_owned())
        );
        assert!(request.start_time_unix_nano <= span.start_time_unix_nano);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        // Milliseconds with three digits.
        assert!(span.end_time_unix_nano <= request.end_time_unix_nano + 1000);
    }
    let ids: std::collections::HashSet<_> = told.spans.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), 4);

    let log = &told.logs[0];
    assert_eq!(
        (hex(&log.trace_id), hex(&log.span_id)),
        (TRACE.to_owned(), own.to_owned())
    );
    assert_eq!(
        (&*log.severity_text, &*log.event_name),
        ("INFO", "egress.request")
    );
    assert_eq!(
        value(&log.attributes, "event.id").as_deref(),
        record["event.id"].as_str()
    );

    let (diary, _) = proxy.finish();
    assert!(!diary.contains("planted key"), "{diary}");
}

#[test]
fn a_failure_is_an_error_where_it_happened_with_its_cause_in_a_trace_of_its_own() {
    let collector = Collector::good();
    let proxy = start(&["--otlp", &collector.url()], &[]);
    let at = Origin::nowhere();
    assert_eq!(fetch(&proxy, &format!("http://{at}/"), ""), 502);
    let record = proxy.record();
    // The record's id is the trace's: who has one has the other.
    let id = record["event.id"].as_str().unwrap().replace('-', "");
    check!(&record, "trace.id": (serde_json::json!(id)), "error.type": "connect.refused");
    let told = collector.until(2, 1);
    let [request, connect] = &told.spans[..] else {
        unreachable!()
    };
    assert_eq!(hex(&request.trace_id), id);
    assert!(request.parent_span_id.is_empty());
    assert_eq!(connect.name, "connect");
    for span in [request, connect] {
        assert_eq!(span.status.as_ref().unwrap().code, 2, "{span:?}");
        assert_eq!(
            value(&span.attributes, "error.type").unwrap(),
            "connect.refused"
        );
    }
    assert_eq!(told.logs[0].severity_text, "ERROR");
    assert!(value(&told.logs[0].attributes, "egress.hint").is_some());
}

#[test]
fn a_client_that_keeps_no_trace_gets_no_span_and_the_origin_its_own_word() {
    let collector = Collector::good();
    let proxy = start(&["--otlp", &collector.url()], &[]);
    let origin = origin();
    let said = format!("00-{TRACE}-{PARENT}-00");
    let fields = format!("traceparent: {said}\r\n");
    assert_eq!(
        fetch(&proxy, &format!("http://{}/", origin.address), &fields),
        200
    );
    assert_eq!(wire::fields(&origin.heard(), "traceparent"), [&*said]);
    let record = proxy.record();
    check!(&record, "trace.id": TRACE);
    assert!(record.get("span.id").is_none());
    // The next request's spans are the first that come.
    assert_eq!(fetch(&proxy, "http://closed.test/", ""), 403);
    let told = collector.until(2, 2);
    assert_eq!(
        value(&told.spans[0].attributes, "server.address").unwrap(),
        "closed.test"
    );
    assert_eq!(hex(&told.logs[0].trace_id), TRACE);
    assert!(told.logs[0].span_id.is_empty());
}

#[test]
fn without_an_export_a_trace_is_noted_and_passed_on_as_it_is() {
    let proxy = start(
        &["--otlp", "off"],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")],
    );
    let origin = origin();
    let said = format!("00-{TRACE}-{PARENT}-01");
    let fields = format!("traceparent: {said}\r\n");
    assert_eq!(
        fetch(&proxy, &format!("http://{}/", origin.address), &fields),
        200
    );
    assert_eq!(wire::fields(&origin.heard(), "traceparent"), [&*said]);
    check!(&proxy.record(), "trace.id": TRACE, "egress.client.span_id": PARENT);
    assert_eq!(fetch(&proxy, "http://closed.test/", ""), 403);
    assert!(proxy.record().get("trace.id").is_none());
}

/// What was lost on the way to the collector.
fn dropped(at: SocketAddr) -> u64 {
    let (_, _, text) = ask(at, "GET", "/metrics", "", "");
    let start = "routecause_records_dropped_total{sink=\"otlp\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(start));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn a_collector_that_hangs_takes_nothing_from_a_request_and_what_it_misses_is_counted() {
    // Its kernel takes the connection, and nobody reads.
    let collector = Listening::new();
    let url = format!("http://{}", collector.address);
    let proxy = start(
        &["--otlp", &url],
        &[("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")],
    );
    let at = admin::address(&proxy);
    let client = proxy.connect();
    let mut asked = 0;
    while dropped(at) == 0 {
        // Two queues, and what is in hand.
        assert!(asked < 20_000, "nothing is dropped");
        for _ in 0..500 {
            wire::send(
                &client,
                "GET http://closed.test/ HTTP/1.1\r\nhost: closed.test\r\n\r\n",
            );
            assert_eq!(wire::status(&wire::read_answer(&client).0), 403);
        }
        asked += 500;
    }
    // The log has them all, and the end is not held up for long.
    let asked_at = Instant::now();
    let (_, records) = proxy.stop();
    assert_eq!(records.len(), asked);
    assert!(asked_at.elapsed() < SOON * 3);
}

#[test]
fn a_collector_that_is_away_or_busy_is_asked_again_and_one_that_rejects_is_counted() {
    let part = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 1,
            error_message: "too old".to_owned(),
        }),
    };
    // The first message comes twice.
    let collector = Collector::answering(move |at| match at {
        0 => (503, Vec::new()),
        1 => (200, part.encode_to_vec()),
        _ => (200, Vec::new()),
    });
    let proxy = start(
        &["--otlp", &collector.url()],
        &[("OTEL_TRACES_EXPORTER", "none")],
    );
    assert_eq!(fetch(&proxy, "http://closed.test/", ""), 403);
    let [first, second] = [(); 2].map(|()| collector.posts.recv_timeout(SOON).unwrap());
    assert_eq!(first.1, second.1);
    assert!(first.0.starts_with("POST /v1/logs "));
    proxy.diary("the OTLP collector rejects records");
    let at = admin::address(&proxy);
    let deadline = Instant::now() + SOON;
    while dropped(at) != 1 {
        assert!(Instant::now() < deadline, "{}", dropped(at));
        thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_busy_collector_is_given_time_on_a_kept_connection_too() {
    let collector = Collector::answering(|at| (if at == 1 { 503 } else { 200 }, Vec::new()));
    let proxy = start(
        &["--otlp", &collector.url()],
        &[("OTEL_TRACES_EXPORTER", "none")],
    );
    let post = || collector.posts.recv_timeout(SOON).unwrap();
    assert_eq!(fetch(&proxy, "http://closed.test/", ""), 403);
    post();
    assert_eq!(fetch(&proxy, "http://closed.test/", ""), 403);
    let refused = post();
    let asked_at = Instant::now();
    assert_eq!(post().1, refused.1);
    // Of the second that it is given, some may be gone when we look at the clock.
    assert!(asked_at.elapsed() > std::time::Duration::from_millis(500));
}

#[test]
fn what_cannot_be_exported_is_told_at_the_start() {
    let policy = tempfile::tempdir().unwrap();
    let path = policy.path().join("p.yaml");
    let text = format!(
        "{POLICY}server: {{otlp: {{endpoint: 'http://127.0.0.1:9', headers: {{api-key: {{env: KEY_THAT_IS_NOT_SET}}}}}}}}\n"
    );
    std::fs::write(&path, text).unwrap();
    let serve = |variables: &[(&str, &str)]| {
        let mut command = routecause();
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "off"]);
        command.envs(variables.iter().copied());
        command
    };
    let mut written = serve(&[]);
    written.arg("--policy").arg(&path);
    let (status, _, told) = run(&mut written);
    assert_eq!(status.code(), Some(78));
    assert!(
        told.contains("api-key: the variable KEY_THAT_IS_NOT_SET is not set"),
        "{told}"
    );
    let (status, _, told) = run(&mut serve(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ]));
    assert_eq!(status.code(), Some(78));
    assert!(
        told.contains("OTEL_EXPORTER_OTLP_PROTOCOL: grpc is not spoken here"),
        "{told}"
    );
}
