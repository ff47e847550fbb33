//! One request from its first byte to its one record.
//!
//! An [`Exchange`] is a guard: whatever ends it (an answer, a failure, a drop, a panic, the end of the
//! process) emits exactly one [`Record`]. What is learned on the way is noted on its [`Trail`].

mod evidence;
mod id;
pub mod live;
mod trail;

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cause::{Cause, Phase};
use crate::client::{Claim, Client, Labels};
use crate::failure::tunnel::Ending;
use crate::failure::{Failure, OriginError, chain, classify};
use crate::net::socket::Departure;
use crate::observe::Observe;
use crate::policy::{Decision, Policy};
use crate::record::trace::{Sampler, Trace};
use crate::record::{self, Action, Outcome, Record, quote};

use crate::relay::Meter;
use crate::target::Target;

pub use trail::{Mark, Trail};

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
    request: Request,
    /// Made when the end has come: it is large, and a tunnel may stay for hours.
    record: Option<Box<Record>>,
    /// What it occupies until its end.
    held: Option<Box<dyn Debug + Send + Sync>>,
}

/// What the request itself says, and what was decided on it.
#[derive(Debug)]
struct Request {
    id: Uuid,
    start: Timestamp,
    action: Option<Action>,
    method: Option<Cow<'static, str>>,
    user_agent: Option<String>,
    /// What the client spoke to us, and its version.
    protocol: Option<(&'static str, &'static str)>,
    /// Whom it said it comes from.
    identity: Option<Arc<Identity>>,
    trace: Option<Box<Trace>>,
    target: Option<(Arc<str>, u16)>,
    policy: Option<Arc<str>>,
    rule: Option<Arc<str>>,
    rule_source: Option<Arc<str>>,
    would: Option<Arc<str>>,
    /// The code of what would have refused it.
    code: Option<Arc<str>>,
    route: Option<Arc<str>>,
    status: Option<u16>,
}

/// Whom a request said it comes from.
#[derive(Clone, Debug)]
struct Identity {
    claim: Claim,
    /// Where the policy that it was asked under takes labels from.
    labels: Labels,
    roles: Vec<Arc<str>>,
}

/// What is known of a client's connection beside its bytes.
#[derive(Debug)]
pub struct Presence {
    /// Who it is.
    pub client: Client,
    /// The worker that serves it, as its place among them.
    pub worker: usize,
    /// That it stopped reading for too long.
    pub stalled: AtomicBool,
    /// That it had ended its direction when the process cut it.
    pub ended: AtomicBool,
    /// That the process cuts what is still open.
    pub cut: CancellationToken,
    /// How long it may go without reading, in milliseconds: `body_idle` of the request that is open.
    pub write_limit: AtomicU64,
    /// Whether its requests must say who they come from.
    pub asks_who: bool,
    /// Who it is, where the connection itself proves that: by a certificate, or by the kernel's word.
    pub proven: Option<Arc<str>>,
}

impl Presence {
    /// The same connection, of somebody who proved who it is.
    #[must_use]
    pub fn of(&self, name: Arc<str>) -> Self {
        Self {
            client: self.client.clone(),
            worker: self.worker,
            stalled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            cut: self.cut.clone(),
            write_limit: AtomicU64::new(self.write_limit.load(Ordering::Relaxed)),
            asks_who: self.asks_who,
            proven: Some(name),
        }
    }

    /// Whether all its requests come from somebody who proved it.
    pub fn is_known(&self) -> bool {
        self.asks_who || self.proven.is_some()
    }

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

impl Request {
    /// The record of it; what it says moves there.
    fn record(&mut self, client: &Client) -> Box<Record> {
        let mut record = Record::begun(self.start, self.id, client.ip(), client.peer.port());
        record.action = self.action;
        record.user_agent = self.user_agent.take();
        record.method = self.method.take();
        record.status = self.status;
        (record.protocol_name, record.protocol_version) = self.protocol.unzip();
        if let Some(identity) = self.identity.take() {
            let identity = Arc::unwrap_or_clone(identity);
            let safe = |name: Arc<str>| quote(&name).into();
            record.user = identity.claim.user.map(safe);
            record.label = identity.claim.label.map(safe);
            record.roles = identity.roles;
        }
        if let Some((host, port)) = self.target.take() {
            if self.action == Some(Action::Forward) {
                record.url_scheme = Some("http");
                record.url_domain = Some(host.clone());
                record.url_port = Some(port);
            }
            record.server_address = Some(host);
            record.server_port = Some(port);
        }
        record.rule = self.rule.take();
        record.rule_source = self.rule_source.take();
        record.would = self.would.take();
        record.code = self.code.take();
        record.route = self.route.take();
        record.policy = self.policy.take();
        record.trace = self.trace.take();
        Box::new(record)
    }
}

impl Open {
    fn record(&mut self) -> &mut Record {
        let (request, client) = (&mut self.request, &self.presence.client);
        self.record.get_or_insert_with(|| request.record(client))
    }
}

impl Exchange {
    /// Opens the story of a request that begins now.
    pub fn open(observer: Arc<dyn Observe>, presence: Arc<Presence>) -> Self {
        let now = Timestamp::now();
        let request = Request {
            id: id::draw(now),
            start: now,
            action: None,
            method: None,
            user_agent: None,
            protocol: None,
            identity: None,
            trace: None,
            target: None,
            policy: None,
            rule: None,
            rule_source: None,
            would: None,
            code: None,
            route: None,
            status: None,
        };
        let started = Instant::now();
        let meter = Arc::new(Meter::since(started));
        let trail = Trail::default();
        Self(Some(Box::new(Open {
            observer,
            presence,
            started,
            trail,
            meter,
            request,
            record: None,
            held: None,
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

    /// Occupies something until the end.
    pub fn hold(&mut self, slot: impl Debug + Send + Sync + 'static) {
        self.open_mut().held = Some(Box::new(slot));
    }

    /// The record's id.
    pub fn id(&self) -> Uuid {
        self.open_ref().request.id
    }

    /// When it began.
    pub fn start(&self) -> Timestamp {
        self.open_ref().request.start
    }

    /// The host and port that were asked for, once they are known.
    pub fn target(&self) -> Option<(&str, u16)> {
        let (host, port) = self.open_ref().request.target.as_ref()?;
        Some((host, *port))
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
        let request = &mut self.open_mut().request;
        let is_connect = parts.method == http::Method::CONNECT;
        request.action = Some(if is_connect {
            Action::Connect
        } else {
            Action::Forward
        });
        request.method = Some(match parts.method {
            http::Method::CONNECT => "CONNECT".into(),
            http::Method::GET => "GET".into(),
            http::Method::HEAD => "HEAD".into(),
            http::Method::POST => "POST".into(),
            http::Method::PUT => "PUT".into(),
            _ => quote(parts.method.as_str()).into(),
        });
        let agent = parts.headers.get(http::header::USER_AGENT);
        request.user_agent = agent.map(|agent| match agent.to_str() {
            Ok(agent) => quote(agent),
            Err(_) => quote(&String::from_utf8_lossy(agent.as_bytes())),
        });
        let version = match parts.version {
            http::Version::HTTP_10 => "1.0",
            http::Version::HTTP_2 => "2",
            _ => "1.1",
        };
        request.protocol = Some(("http", version));
    }

    /// Notes the trace that it belongs to. A `sampler` says of which requests a span is made; there is none where no spans are.
    pub fn traces(&mut self, headers: &http::HeaderMap, sampler: Option<Sampler>) {
        let request = &mut self.open_mut().request;
        request.trace = Trace::of(headers, request.id, sampler).map(Box::new);
    }

    /// The trace that it belongs to, where there is one.
    pub fn trace(&self) -> Option<&Trace> {
        self.open_ref().request.trace.as_deref()
    }

    /// Notes that a tunnel was asked for by SOCKS5, before it is known whether that makes sense.
    pub fn asked_by_socks(&mut self) {
        let request = &mut self.open_mut().request;
        request.action = Some(Action::Connect);
        request.protocol = Some(("socks", "5"));
    }

    /// Notes whom it says it comes from, and as what that counts.
    pub fn claims<'r>(
        &mut self,
        claim: &Claim,
        labels: Labels,
        roles: impl Iterator<Item = &'r Arc<str>>,
    ) {
        let roles: Vec<_> = roles.cloned().collect();
        if *claim != Claim::NONE || !roles.is_empty() {
            self.open_mut().request.identity = Some(Arc::new(Identity {
                claim: claim.clone(),
                labels,
                roles,
            }));
        }
    }

    /// Notes for what it asked.
    pub fn targets(&mut self, target: &Target) {
        self.open_mut().request.target = Some((target.host.text(), target.port));
        self.trail().enter(Phase::Policy);
    }

    /// Notes what the policy says.
    pub fn decided(&mut self, policy: &Policy, decision: &Decision<'_>, route: Option<&Arc<str>>) {
        let request = &mut self.open_mut().request;
        request.policy = Some(policy.hash.clone());
        if let Some(rule) = decision.rule {
            request.rule = Some(rule.name.clone());
            request.rule_source = Some(rule.source.clone());
        }
        request.would = decision.would.map(|would| would.name().into());
        request.code = decision.would.and_then(|would| would.code().cloned());
        request.route = route.cloned();
    }

    /// The hash of the policy that it is decided by.
    pub fn policy(&self) -> Option<&Arc<str>> {
        self.open_ref().request.policy.as_ref()
    }

    /// Notes the status that the client gets.
    pub fn answered(&mut self, status: StatusCode) {
        self.open_mut().request.status = Some(status.as_u16());
    }

    /// Ends well.
    pub fn finish(mut self) {
        self.close(None, None, Instant::now());
    }

    /// Ends with the origin's own answer, which is a failure from 400 on.
    pub fn finish_answered(mut self) {
        match self.open_ref().request.status {
            Some(status @ 400..) => {
                self.close_failed(&OriginError::Status(status).into(), Instant::now());
            }
            _ => self.close(None, None, Instant::now()),
        }
    }

    /// Ends badly.
    pub fn fail(mut self, failure: &Failure) {
        self.close_failed(failure, Instant::now());
    }

    /// Ends as a tunnel ended, at that moment: what it was about may have been found out later.
    pub fn end(mut self, ending: Box<Ending>, at: Instant) {
        let failure = Failure::Tunnel(ending);
        let cause = classify(&failure);
        if let (true, Failure::Tunnel(ending)) = (cause.is_success(), &failure) {
            evidence::tell(ending, self.open_mut().record());
            self.close(Some(cause), None, at);
        } else {
            self.close_failed(&failure, at);
        }
    }

    fn close_failed(&mut self, failure: &Failure, at: Instant) {
        let told = failure.told();
        let cause = classify(failure);
        if let Failure::Denied(denied) = told {
            let record = self.open_mut().record();
            // A guard stands nowhere, and may refuse what a rule let through.
            if record.rule.is_none() || denied.source.is_none() {
                record.rule = Some(denied.rule.clone());
                record.rule_source.clone_from(&denied.source);
            }
            record.code.clone_from(&denied.code);
        } else if cause.phase() == Some(Phase::Policy) {
            // No block has refused it.
            self.open_mut().record().code = None;
        }
        // With the target, or on the way to an upstream.
        let shaken = if let Failure::Reach { failure, .. } = told {
            failure
        } else {
            told
        };
        if let Failure::Handshake(handshake) = shaken {
            evidence::tell_handshake(handshake, self.open_mut().record());
        }
        if let Failure::Tunnel(ending) = told {
            evidence::tell(ending, self.open_mut().record());
        }
        self.open_mut().record().icmp = failure.icmp().map(|icmp| record::IcmpKeys {
            r#type: icmp.r#type,
            code: icmp.code,
            offender: icmp.offender,
        });
        let told = (chain(failure), Some(failure.hint()));
        self.close(Some(cause), Some(told), at);
    }

    /// Emits the record; `told` is the message and the hint where they are not the cause's own.
    fn close(
        &mut self,
        cause: Option<Cause>,
        told: Option<(String, Option<Cow<'static, str>>)>,
        at: Instant,
    ) {
        let Some(mut open) = self.0.take() else {
            return;
        };
        let request = &mut open.request;
        let mut record =
            (open.record.take()).unwrap_or_else(|| request.record(&open.presence.client));
        let Open {
            observer,
            started,
            trail,
            meter,
            held,
            ..
        } = *open;
        // Whoever reads the record finds the place free.
        drop(held);
        let mut story = trail.into_story();
        let took = at - started;
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
                if record.method.is_some() && record.status.is_none() {
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
        } else if open.presence.ended.load(Ordering::Relaxed) {
            Failure::ClientGone {
                phase,
                how: Departure::Fin,
            }
        } else if open.presence.cut.is_cancelled() {
            Failure::Shutdown { phase }
        } else {
            Failure::ClientGone {
                phase,
                how: Departure::Rst,
            }
        };
        self.close_failed(&failure, Instant::now());
    }
}

fn millis(duration: Duration) -> f64 {
    // A microsecond is fine enough for people, and keeps the numbers short.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
