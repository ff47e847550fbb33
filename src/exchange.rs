//! One request from its first byte to its one record.
//!
//! An [`Exchange`] is a guard: whatever ends it (an answer, a failure, a drop, a panic, the end of the
//! process) emits exactly one [`Record`]. What is learned on the way is noted on its [`Trail`].

mod evidence;
mod id;
mod trail;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cause::{Cause, Phase};
use crate::client::Client;
use crate::failure::tunnel::Ending;
use crate::failure::{Failure, OriginError, chain, classify};
use crate::net::socket::Departure;
use crate::observe::Observe;
use crate::policy::{Decision, Policy};
use crate::record::{self, Action, Outcome, Record, quote};

use crate::relay::Meter;
use crate::target::Target;

pub use trail::Trail;

/// A request under way.
#[derive(Debug)]
pub struct Exchange(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    observer: Arc<dyn Observe>,
    presence: Arc<Presence>,
    started: Instant,
    trail: Trail,
    meter: Arc<Meter>,
    record: Box<Record>,
}

/// What is known of a client's connection beside its bytes.
#[derive(Debug)]
pub struct Presence {
    /// Who it is.
    pub client: Client,
    /// That it stopped reading for too long.
    pub stalled: AtomicBool,
    /// That the process cuts what is still open.
    pub cut: CancellationToken,
    /// How long it may go without reading, in milliseconds: `body_idle` of the request that is open.
    pub write_limit: AtomicU64,
}

impl Presence {
    /// How long the client may go without reading.
    pub fn write_limit(&self) -> Duration {
        Duration::from_millis(self.write_limit.load(Ordering::Relaxed))
    }

    /// Sets how long the client may go without reading.
    pub fn limit_writes(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.write_limit.store(limit, Ordering::Relaxed);
    }
}

impl Exchange {
    /// Opens the story of a request that begins now.
    pub fn open(observer: Arc<dyn Observe>, presence: Arc<Presence>) -> Self {
        let now = Timestamp::now();
        let client = &presence.client;
        let record = Box::new(Record {
            schema: record::SCHEMA,
            timestamp: now,
            id: id::draw(now),
            event_kind: "event",
            event_category: ["network"],
            action: None,
            outcome: Outcome::Unknown,
            reason: None,
            start: now,
            end: now,
            duration_ns: 0,
            error_type: None,
            error_message: None,
            client_address: client.ip(),
            client_port: client.peer.port(),
            user_agent: None,
            method: None,
            resend_count: 0,
            status: None,
            url_scheme: None,
            url_domain: None,
            url_port: None,
            server_address: None,
            server_port: None,
            peer_address: None,
            peer_port: None,
            local_address: None,
            local_port: None,
            transport: "tcp",
            network_type: None,
            protocol_name: None,
            protocol_version: None,
            source_bytes: 0,
            destination_bytes: 0,
            dns_question: None,
            dns_resolved: Vec::new(),
            dns_response_code: None,
            phase: Phase::Client.as_str(),
            side: None,
            confidence: None,
            rule: None,
            rule_source: None,
            would: None,
            code: None,
            route: None,
            hop: None,
            attempts: Vec::new(),
            notes: Vec::new(),
            suspects: Vec::new(),
            ending: None,
            policy: None,
            dns_ms: None,
            connect_ms: None,
            upstream_ms: None,
            tls_ms: None,
            first_byte_ms: None,
            total_ms: 0.0,
            dns_source: None,
            dns: None,
            upstream_name: None,
            upstream_status: None,
            upstream_reason: None,
            upstream_proxy_status: None,
            upstream_squid_error: None,
            upstream_auth_schemes: Vec::new(),
            upstream_body: None,
            tls: None,
            client_tcp: None,
            server_tcp: None,
            reset: None,
            icmp: None,
            idle_ms: None,
            idle_before_ms: None,
            hint: None,
        });
        let meter = Arc::new(Meter::default());
        let trail = Trail::default();
        let started = Instant::now();
        Self(Some(Box::new(Open {
            observer,
            presence,
            started,
            trail,
            meter,
            record,
        })))
    }

    fn open_mut(&mut self) -> &mut Open {
        #[expect(
            clippy::expect_used,
            reason = "only the methods that take self empty it"
        )]
        self.0.as_mut().expect("the exchange is open")
    }

    fn open_ref(&self) -> &Open {
        #[expect(
            clippy::expect_used,
            reason = "only the methods that take self empty it"
        )]
        self.0.as_ref().expect("the exchange is open")
    }

    /// The record's id.
    pub fn id(&self) -> Uuid {
        self.open_ref().record.id
    }

    /// The host and port that were asked for, once they are known.
    pub fn target(&self) -> Option<(&str, u16)> {
        let record = &self.open_ref().record;
        Some((record.server_address.as_deref()?, record.server_port?))
    }

    /// Where facts are noted.
    pub fn trail(&self) -> &Trail {
        &self.open_ref().trail
    }

    /// Where bytes are counted.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.open_ref().meter
    }

    /// The client's connection.
    pub fn presence(&self) -> &Arc<Presence> {
        &self.open_ref().presence
    }

    /// Notes that a request arrived, before it is known whether it makes sense.
    pub fn asked(&mut self, parts: &http::request::Parts) {
        let record = &mut self.open_mut().record;
        let is_connect = parts.method == http::Method::CONNECT;
        record.action = Some(if is_connect {
            Action::Connect
        } else {
            Action::Forward
        });
        record.method = Some(quote(parts.method.as_str()));
        let agent = parts.headers.get(http::header::USER_AGENT);
        record.user_agent = agent.map(|agent| quote(&String::from_utf8_lossy(agent.as_bytes())));
        record.protocol_name = Some("http");
        record.protocol_version = Some(if parts.version == http::Version::HTTP_10 {
            "1.0"
        } else {
            "1.1"
        });
    }

    /// Notes for what it asked.
    pub fn targets(&mut self, target: &Target) {
        let record = &mut self.open_mut().record;
        let host = target.host.to_string();
        if record.action == Some(Action::Forward) {
            record.url_scheme = Some("http");
            record.url_domain = Some(host.clone());
            record.url_port = Some(target.port);
        }
        record.server_address = Some(host);
        record.server_port = Some(target.port);
        self.trail().enter(Phase::Policy);
    }

    /// Notes what the policy says.
    pub fn decided(&mut self, policy: &Policy, decision: &Decision<'_>, route: Option<&Arc<str>>) {
        let record = &mut self.open_mut().record;
        record.policy = Some(policy.hash.clone());
        if let Some(rule) = decision.rule {
            record.rule = Some(rule.name.clone());
            record.rule_source = Some(rule.source.clone());
        }
        record.would = decision.would.map(|would| would.name().into());
        record.route = route.cloned();
    }

    /// Notes the status that the client gets.
    pub fn answered(&mut self, status: StatusCode) {
        self.open_mut().record.status = Some(status.as_u16());
    }

    /// Ends well.
    pub fn finish(mut self) {
        self.close(None, None);
    }

    /// Ends with the origin's own answer, which is a failure from 400 on.
    pub fn finish_answered(mut self) {
        match self.open_ref().record.status {
            Some(status @ 400..) => self.close_failed(&OriginError::Status(status).into()),
            _ => self.close(None, None),
        }
    }

    /// Ends badly.
    pub fn fail(mut self, failure: &Failure) {
        self.close_failed(failure);
    }

    /// Ends as a tunnel ended.
    pub fn end(mut self, ending: Ending) {
        evidence::tell(&ending, &mut self.open_mut().record);
        let failure = Failure::Tunnel(Box::new(ending));
        let cause = classify(&failure);
        if cause.is_success() {
            self.close(Some(cause), None);
        } else {
            self.close_failed(&failure);
        }
    }

    fn close_failed(&mut self, failure: &Failure) {
        if let Failure::Denied(denied) = failure {
            let record = &mut self.open_mut().record;
            record.rule.get_or_insert_with(|| denied.rule.clone());
            record.code.clone_from(&denied.code);
            if record.rule_source.is_none() {
                record.rule_source.clone_from(&denied.source);
            }
        }
        if let Failure::Handshake(handshake) = failure {
            evidence::tell_handshake(handshake, &mut self.open_mut().record);
        }
        self.open_mut().record.icmp = failure.icmp().map(|icmp| record::IcmpKeys {
            r#type: icmp.r#type,
            code: icmp.code,
            offender: icmp.offender,
        });
        let told = (chain(failure), Some(failure.hint()));
        self.close(Some(classify(failure)), Some(told));
    }

    /// Emits the record; `told` is the message and the hint where they are not the cause's own.
    fn close(&mut self, cause: Option<Cause>, told: Option<(String, Option<Cow<'static, str>>)>) {
        let Some(open) = self.0.take() else { return };
        let Open {
            observer,
            started,
            trail,
            meter,
            mut record,
            ..
        } = *open;
        let story = trail.into_story();
        let took = started.elapsed();
        record.end = record.start + jiff::SignedDuration::try_from(took).unwrap_or_default();
        record.duration_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        record.total_ms = millis(took);
        record.source_bytes = meter.up();
        record.destination_bytes = meter.down();
        let spoke = || {
            Some(
                meter
                    .first_server_byte()?
                    .saturating_duration_since(story.connected?),
            )
        };
        record.first_byte_ms = story.first_byte.or_else(spoke).map(millis);
        story.tell(&mut record, cause.filter(|cause| !cause.is_success()));
        match cause {
            _ if record.action.is_none() => record.outcome = Outcome::Unknown,
            None => record.outcome = Outcome::Success,
            Some(cause) if cause.is_success() => {
                record.outcome = Outcome::Success;
                record.ending = Some(cause.id());
            }
            Some(_) => record.outcome = Outcome::Failure,
        }
        match cause {
            Some(cause) if !cause.is_success() => {
                let (message, hint) = told.unwrap_or_default();
                let hint = hint.unwrap_or_else(|| cause.hint());
                record.phase = cause.phase().unwrap_or(story.phase).as_str();
                record.side = Some(cause.side().as_str());
                record.confidence = Some(cause.confidence().as_str());
                record.error_type = Some(cause.id());
                record.error_message = Some(quote(&message));
                record.reason = Some(hint.clone());
                record.hint = Some(hint);
                // Where no answer was given, only "the client closed the request" is one.
                if record.action.is_some() && record.status.is_none() {
                    record.status = cause.status().filter(|status| *status == 499);
                }
            }
            _ => record.phase = Phase::Close.as_str(),
        }
        observer.record(record);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(open) = &self.0 else { return };
        let phase = open.trail.phase();
        let failure = if std::thread::panicking() {
            Failure::Panic
        } else if open.presence.stalled.load(Ordering::Relaxed) {
            Failure::ClientStalled {
                after: open.presence.write_limit(),
            }
        } else if open.presence.cut.is_cancelled() {
            Failure::Shutdown { phase }
        } else {
            Failure::ClientGone {
                phase,
                how: Departure::Rst,
            }
        };
        self.close_failed(&failure);
    }
}

fn millis(duration: Duration) -> f64 {
    // A microsecond is fine enough for people, and keeps the numbers short.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
