//! Counters of what records say, in the text form of OpenMetrics 1.0.
//!
//! Labels are names of the policy and ids of the causes table, so there are few; what a policy that changes often would add
//! without end is counted as `other`. A host name is never a label, but for the few of [`Now::hosts`].

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use jiff::Timestamp;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::record::{Outcome, Record};

/// The type of what [`Metrics::text`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Sets of labels that one counter may have: rules times routes times outcomes of a large policy.
const MOST: usize = 1000;

/// Bounds of durations, in seconds: from a hit on this machine to the idle limit.
const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// A name of the policy, or a word of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Ours(&'static str),
    Policy(Arc<str>),
}

impl Name {
    const NONE: Self = Self::Ours("none");
    const OTHER: Self = Self::Ours("other");

    fn of(name: Option<&Arc<str>>) -> Self {
        name.map_or(Self::NONE, |name| Self::Policy(name.clone()))
    }
}

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Ours(name) => EncodeLabelValue::encode(name, encoder),
            Self::Policy(name) => EncodeLabelValue::encode(&&**name, encoder),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    route: Name,
    rule: Name,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFailure {
    cause: String,
    phase: &'static str,
    side: &'static str,
    route: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBytes {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLookup {
    source: &'static str,
    rcode: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReload {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLook {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSink {
    sink: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUpstream {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHost {
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBuild {
    version: &'static str,
}

trait Labels: Clone + Hash + Eq + fmt::Debug {}

impl<L: Clone + Hash + Eq + fmt::Debug> Labels for L {}

/// A counter that may have only so many sets of labels.
#[derive(Debug)]
struct Bounded<L: Labels> {
    family: Family<L, Counter>,
    known: AtomicUsize,
}

impl<L: Labels> Default for Bounded<L> {
    fn default() -> Self {
        Self {
            family: Family::default(),
            known: AtomicUsize::new(0),
        }
    }
}

type Seconds = Family<OfPhase, Histogram, fn() -> Histogram>;

/// The parts of a request that are timed. Their series are found once, and not again for each request.
const PHASES: [&str; 6] = ["dns", "connect", "upstream", "tls", "first_byte", "total"];

const DIRECTIONS: [&str; 2] = ["up", "down"];

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Bounded<OfRequest>,
    failures: Bounded<OfFailure>,
    /// By [`PHASES`].
    seconds: [Histogram; 6],
    /// By [`DIRECTIONS`].
    bytes: [Counter; 2],
    lookups: Bounded<OfLookup>,
    faulted: Counter,
    reloads: Family<OfReload, Counter>,
}

/// What is so at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// Tunnels that are open.
    pub tunnels: usize,
    /// Connections that clients have open, and may have.
    pub connections: (usize, usize),
    /// Each upstream, and whether it is used.
    pub upstreams: Vec<(String, bool)>,
    /// Looks at targets that kept failing, by verdict.
    pub looks: Vec<(&'static str, u64)>,
    /// Records that were lost, by what lost them.
    pub dropped: Vec<(&'static str, u64)>,
    /// The policy at work.
    pub policy: String,
    /// What stands where it comes from is another, and was refused.
    pub is_policy_refused: bool,
    /// The hosts that failed most of late, where that was asked for.
    pub hosts: Vec<(String, usize)>,
    /// When the process began.
    pub started: Option<Timestamp>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("routecause");
        let seconds = Seconds::new_with_constructor(|| Histogram::new(BOUNDS));
        let bytes = Family::<OfBytes, Counter>::default();
        let metrics = Self {
            requests: Bounded::default(),
            failures: Bounded::default(),
            seconds: PHASES.map(|phase| seconds.get_or_create_owned(&OfPhase { phase })),
            bytes: DIRECTIONS.map(|direction| bytes.get_or_create_owned(&OfBytes { direction })),
            lookups: Bounded::default(),
            faulted: Counter::default(),
            reloads: Family::default(),
            registry: Registry::default(),
        };
        registry.register(
            "requests",
            "Requests, and connections that never carried one, by what became of them",
            metrics.requests.family.clone(),
        );
        registry.register(
            "failures",
            "Requests that failed, by cause",
            metrics.failures.family.clone(),
        );
        registry.register_with_unit(
            "phase_duration",
            "How long the phases of requests took",
            Unit::Seconds,
            seconds,
        );
        registry.register_with_unit(
            "transferred",
            "Payload of requests that have ended: up from clients, down to them",
            Unit::Bytes,
            bytes,
        );
        registry.register(
            "dns_lookups",
            "Names that were looked up, by where the answer came from",
            metrics.lookups.family.clone(),
        );
        registry.register(
            "faulted_requests",
            "Requests that a fault of the policy struck",
            metrics.faulted.clone(),
        );
        registry.register(
            "reloads",
            "Times that the policy was read again or applied",
            metrics.reloads.clone(),
        );
        for result in ["good", "bad"] {
            drop(metrics.reloads.get_or_create(&OfReload { result }));
        }
        Self {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    /// Counts a request.
    pub fn count(&self, record: &Record) {
        let route = Name::of(record.route.as_ref());
        let cause = record.error_type.as_deref();
        let outcome = match (record.outcome, cause) {
            (Outcome::Success, _) => "success",
            (Outcome::Failure, Some(id)) if id.starts_with("policy.denied.") => "denied",
            (Outcome::Failure, _) => "failure",
            (Outcome::Unknown, _) => "unknown",
        };
        let of_request = OfRequest {
            route: route.clone(),
            rule: Name::of(record.rule.as_ref()),
            outcome,
        };
        let other = OfRequest {
            route: Name::OTHER,
            rule: Name::OTHER,
            outcome,
        };
        self.requests.bump(of_request, other);
        if let Some(cause) = cause {
            let of_failure = OfFailure {
                cause: cause.to_owned(),
                phase: record.phase,
                side: record.side.unwrap_or("unknown"),
                route,
            };
            let other = OfFailure {
                cause: "other".to_owned(),
                route: Name::OTHER,
                ..of_failure.clone()
            };
            self.failures.bump(of_failure, other);
        }
        let took = [
            record.dns_ms,
            record.connect_ms,
            record.upstream_ms,
            record.tls_ms,
            record.first_byte_ms,
            record.action.map(|_| record.total_ms),
        ];
        for (seconds, ms) in self.seconds.iter().zip(took) {
            if let Some(ms) = ms {
                seconds.observe(ms / 1000.0);
            }
        }
        for (counter, bytes) in self
            .bytes
            .iter()
            .zip([record.source_bytes, record.destination_bytes])
        {
            counter.inc_by(bytes);
        }
        if let Some(source) = record.dns_source {
            let rcode = record.dns_response_code.clone();
            let of_lookup = OfLookup {
                source,
                rcode: rcode.unwrap_or_else(|| "none".to_owned()),
            };
            let other = OfLookup {
                source,
                rcode: "other".to_owned(),
            };
            self.lookups.bump(of_lookup, other);
        }
        if !record.faults.is_empty() {
            self.faulted.inc();
        }
    }

    /// Counts that a policy was to be set to work.
    pub fn reloaded(&self, is_good: bool) {
        let result = if is_good { "good" } else { "bad" };
        self.reloads.get_or_create(&OfReload { result }).inc();
    }

    /// All of it, and what is so now.
    ///
    /// # Errors
    /// None in practice: text is written into memory.
    pub fn text(&self, now: &Now) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &now.registry())?;
        encode_registry(&mut text, &process(now.started))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

impl Now {
    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("routecause");
        let (open, limit) = self.connections;
        for (name, help, value) in [
            ("tunnels_open", "Tunnels that are open", self.tunnels),
            (
                "connections_open",
                "Connections of clients that are open; each request inside one of HTTP/2 counts as well",
                open,
            ),
            (
                "connections_limit",
                "How many of them may be open: more are turned away",
                limit,
            ),
        ] {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        }
        let up = Family::<OfUpstream, Gauge>::default();
        for (upstream, is_up) in &self.upstreams {
            let upstream = upstream.clone();
            let up = up.get_or_create(&OfUpstream { upstream });
            up.set(i64::from(*is_up));
        }
        registry.register(
            "upstream_up",
            "Whether an upstream is used: 0 while its circuit is open or it is drained",
            up,
        );
        let dropped = Family::<OfSink, Counter>::default();
        for (sink, count) in &self.dropped {
            dropped.get_or_create(&OfSink { sink }).inc_by(*count);
        }
        registry.register(
            "records_dropped",
            "Records that were lost because their reader or the disk was slow",
            dropped,
        );
        let looks = Family::<OfLook, Counter>::default();
        for (verdict, count) in &self.looks {
            looks.get_or_create(&OfLook { verdict }).inc_by(*count);
        }
        registry.register(
            "triage_looks",
            "Looks that were taken unasked at targets that kept failing, by verdict",
            looks,
        );
        let policy = OfPolicy {
            hash: self.policy.clone(),
        };
        registry.register("policy", "The policy at work", Info::new(policy));
        let refused = Gauge::<i64>::default();
        refused.set(i64::from(self.is_policy_refused));
        registry.register(
            "policy_refused",
            "Whether what stands where the policy comes from was refused, and an older one is at work",
            refused,
        );
        let version = env!("CARGO_PKG_VERSION");
        registry.register("build", "This program", Info::new(OfBuild { version }));
        if !self.hosts.is_empty() {
            let hosts = Family::<OfHost, Gauge>::default();
            for (host, count) in &self.hosts {
                let host = host.clone();
                let hosts = hosts.get_or_create(&OfHost { host });
                hosts.set(i64::try_from(*count).unwrap_or(i64::MAX));
            }
            registry.register(
                "host_recent_failures",
                "Failures among the records in memory, of the hosts that have most",
                hosts,
            );
        }
        registry
    }
}

impl<L: Labels> Bounded<L> {
    fn bump(&self, labels: L, other: L) {
        if let Some(counter) = self.family.get(&labels) {
            counter.inc();
            return;
        }
        let is_full = self.known.fetch_add(1, Ordering::Relaxed) >= MOST;
        let labels = if is_full { other } else { labels };
        self.family.get_or_create(&labels).inc();
    }
}

/// How many descriptors the process has open.
pub fn open_files() -> Option<u64> {
    let folder = "/proc/self/fd";
    // Linux 6.2 and later says it at once.
    match std::fs::metadata(folder).ok()?.len() {
        0 => match std::fs::read_dir(folder) {
            Ok(files) => u64::try_from(files.count()).ok(),
            // Not even this one can be opened.
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                Some(getrlimit(Resource::RLIMIT_NOFILE).ok()?.0)
            }
            Err(_) => None,
        },
        count => Some(count),
    }
}

/// What the kernel says of the process. What it does not say is left out.
fn process(started: Option<Timestamp>) -> Registry {
    let mut registry = Registry::with_prefix("process");
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let seconds = |time: nix::sys::time::TimeVal| {
            #[expect(clippy::cast_precision_loss, reason = "microseconds of CPU")]
            let micros = time.tv_usec() as f64;
            #[expect(clippy::cast_precision_loss, reason = "seconds of CPU")]
            let whole = time.tv_sec() as f64;
            whole + micros / 1e6
        };
        let cpu = Counter::<f64, AtomicU64>::default();
        cpu.inc_by(seconds(usage.user_time()) + seconds(usage.system_time()));
        registry.register_with_unit("cpu", "CPU time", Unit::Seconds, cpu);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let figure = |key: &str| -> Option<i64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: Option<i64>| {
        let Some(value) = value else { return };
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, gauge),
            None => registry.register(name, help, gauge),
        }
    };
    let resident = figure("VmRSS:").map(|kib| kib * 1024);
    gauge(
        "resident_memory",
        "Resident memory",
        Some(Unit::Bytes),
        resident,
    );
    gauge("threads", "Threads", None, figure("Threads:"));
    let files = open_files().map(u64::cast_signed);
    gauge("open_fds", "Open file descriptors", None, files);
    let limit = getrlimit(Resource::RLIMIT_NOFILE).ok();
    let limit = limit.and_then(|(soft, _)| i64::try_from(soft).ok());
    gauge("max_fds", "File descriptors that may be open", None, limit);
    let started = started.map(Timestamp::as_second);
    gauge(
        "start_time",
        "When the process began, since 1970",
        Some(Unit::Seconds),
        started,
    );
    registry
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use uuid::Uuid;

    use super::*;
    use crate::record::Action;

    fn record(rule: &str, cause: Option<&'static str>) -> Record {
        let from = Ipv4Addr::LOCALHOST.into();
        let mut record = Record::begun(Timestamp::UNIX_EPOCH, Uuid::nil(), from, 1);
        record.action = Some(Action::Connect);
        record.rule = Some(rule.into());
        record.route = Some("direct".into());
        record.server_address = Some("secret.example".into());
        record.outcome = match cause {
            Some(_) => Outcome::Failure,
            None => Outcome::Success,
        };
        record.error_type = cause.map(Into::into);
        record.phase = "connect";
        record.side = Some("network");
        record.connect_ms = Some(3.0);
        record.total_ms = 40.0;
        record.source_bytes = 7;
        record
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }

    #[test]
    fn records_are_counted_by_rule_cause_and_phase_and_no_host_is_named() {
        let metrics = Metrics::default();
        metrics.count(&record("inside", None));
        metrics.count(&record("inside", Some("connect.timeout")));
        metrics.count(&record("none-of-it", Some("policy.denied.rule")));
        metrics.reloaded(false);
        let now = Now {
            tunnels: 2,
            connections: (3, 100),
            upstreams: vec![("corp".into(), true), ("backup".into(), false)],
            dropped: vec![("log", 5)],
            policy: "0123456789ab".into(),
            ..Now::default()
        };
        let text = metrics.text(&now).unwrap();
        for line in [
            r#"routecause_requests_total{route="direct",rule="inside",outcome="success"} 1"#,
            r#"routecause_requests_total{route="direct",rule="inside",outcome="failure"} 1"#,
            r#"routecause_requests_total{route="direct",rule="none-of-it",outcome="denied"} 1"#,
            r#"routecause_failures_total{cause="connect.timeout",phase="connect",side="network",route="direct"} 1"#,
            r#"routecause_phase_duration_seconds_bucket{le="0.0025",phase="connect"} 0"#,
            r#"routecause_phase_duration_seconds_bucket{le="0.005",phase="connect"} 3"#,
            r#"routecause_phase_duration_seconds_count{phase="total"} 3"#,
            r#"routecause_transferred_bytes_total{direction="up"} 21"#,
            r#"routecause_reloads_total{result="bad"} 1"#,
            r#"routecause_reloads_total{result="good"} 0"#,
            "routecause_tunnels_open 2",
            "routecause_connections_open 3",
            "routecause_connections_limit 100",
            r#"routecause_upstream_up{upstream="corp"} 1"#,
            r#"routecause_upstream_up{upstream="backup"} 0"#,
            r#"routecause_records_dropped_total{sink="log"} 5"#,
            r#"routecause_policy_info{hash="0123456789ab"} 1"#,
        ] {
            has(&text, line);
        }
        for name in ["resident_memory_bytes", "open_fds", "max_fds"] {
            assert!(text.contains(&format!("process_{name} ")), "{text}");
        }
        assert!(
            text.ends_with("# EOF\n") && !text.contains("secret"),
            "{text}"
        );
    }

    #[test]
    fn labels_stay_bounded_whatever_policies_come() {
        let metrics = Metrics::default();
        for at in 0..2 * MOST {
            metrics.count(&record(&format!("rule-{at}"), None));
        }
        let text = metrics.text(&Now::default()).unwrap();
        assert!(text.lines().count() < MOST + 200);
        has(
            &text,
            &format!(
                r#"routecause_requests_total{{route="other",rule="other",outcome="success"}} {MOST}"#
            ),
        );
    }
}
