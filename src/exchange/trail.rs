//! The facts noted while a request is under way.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{evidence, millis};
use crate::cause::{Cause, Phase};
use crate::net::connect::{Outcome, Try};
use crate::net::resolve::{Facts, ResolveError, Resolved, Transport};
use crate::net::socket::Socket;
use crate::net::upstream::Reply;
use crate::record::{self, Attempt, Dns, Record, Tls, quote};
use crate::tls::ledger::State;
use crate::tls::trust::Judgement;

/// The facts noted while a request is under way. The wait that learns a fact notes it at once, so that
/// it is there whatever happens next.
#[derive(Debug)]
pub struct Trail(Mutex<Story>);

#[derive(Debug)]
pub(super) struct Story {
    pub(super) phase: Phase,
    hop: Option<Arc<str>>,
    resend_count: u32,
    attempts: Vec<Attempt>,
    dns: Option<(String, Duration)>,
    resolved: Vec<IpAddr>,
    dns_source: Option<&'static str>,
    response_code: Option<&'static str>,
    facts: Option<Box<Facts>>,
    connect: Option<Duration>,
    pub(super) connected: Option<Instant>,
    upstream: Option<(Arc<str>, Option<Duration>)>,
    /// The attempts that were under way when their dial was dropped.
    abandoned: Vec<usize>,
    reply: Option<Box<ReplyFacts>>,
    socks_reply: Option<u8>,
    pub(super) first_byte: Option<Duration>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    would: Option<Arc<str>>,
    notes: Vec<&'static str>,
    faults: Vec<Arc<Mark>>,
    /// What a handshake of our own showed.
    tls: Option<Box<Tls>>,
}

/// A fault of the policy that may strike a request as long as it lasts.
#[derive(Debug)]
pub struct Mark {
    name: Arc<str>,
    has_struck: AtomicBool,
}

impl Mark {
    /// Notes that it strikes; says whether that is new.
    pub fn strike(&self) -> bool {
        !self.has_struck.swap(true, Ordering::Relaxed)
    }

    fn has_struck(&self) -> bool {
        self.has_struck.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct ReplyFacts {
    status: u16,
    reason: Option<String>,
    proxy_status: Option<String>,
    squid_error: Option<String>,
    auth_schemes: Vec<String>,
    body: Option<String>,
}

impl Default for Trail {
    fn default() -> Self {
        Self(Mutex::new(Story {
            phase: Phase::Client,
            hop: None,
            resend_count: 0,
            attempts: Vec::new(),
            dns: None,
            resolved: Vec::new(),
            dns_source: None,
            response_code: None,
            facts: None,
            connect: None,
            connected: None,
            upstream: None,
            abandoned: Vec::new(),
            reply: None,
            socks_reply: None,
            first_byte: None,
            peer: None,
            local: None,
            would: None,
            notes: Vec::new(),
            faults: Vec::new(),
            tls: None,
        }))
    }
}

/// A trail of a dial that runs beside others; what is noted on it joins the request's own when it is dropped.
#[derive(Debug)]
pub struct Branch<'t> {
    own: Trail,
    main: &'t Trail,
}

impl std::ops::Deref for Branch<'_> {
    type Target = Trail;

    fn deref(&self) -> &Trail {
        &self.own
    }
}

impl Drop for Branch<'_> {
    fn drop(&mut self) {
        let own = std::mem::take(&mut self.own);
        self.main.absorb(own);
    }
}

impl Trail {
    /// A trail for a dial that runs beside others.
    pub fn branch(&self) -> Branch<'_> {
        Branch {
            own: Self::default(),
            main: self,
        }
    }

    /// Takes over what was noted elsewhere: the attempts in any case, the rest where a connection stands there, or none here.
    fn absorb(&self, other: Self) {
        let other = other.into_story();
        let mut story = self.story();
        let before = story.attempts.len();
        story
            .abandoned
            .extend(other.abandoned.iter().map(|at| at + before));
        story.attempts.extend(other.attempts);
        story.faults.extend(other.faults);
        for note in other.notes {
            if !story.notes.contains(&note) {
                story.notes.push(note);
            }
        }
        if other.connected.is_some() || story.connected.is_none() {
            *story = Story {
                attempts: std::mem::take(&mut story.attempts),
                abandoned: std::mem::take(&mut story.abandoned),
                notes: std::mem::take(&mut story.notes),
                faults: std::mem::take(&mut story.faults),
                resend_count: story.resend_count,
                would: story.would.take().or(other.would),
                // What was looked up in front of the dials, none of them looks up again.
                dns: other.dns.or(story.dns.take()),
                resolved: if other.resolved.is_empty() {
                    std::mem::take(&mut story.resolved)
                } else {
                    other.resolved
                },
                dns_source: other.dns_source.or(story.dns_source),
                response_code: other.response_code.or(story.response_code.take()),
                facts: other.facts.or(story.facts.take()),
                tls: other.tls.or(story.tls.take()),
                ..Story {
                    attempts: Vec::new(),
                    abandoned: Vec::new(),
                    notes: Vec::new(),
                    faults: Vec::new(),
                    would: None,
                    dns: None,
                    resolved: Vec::new(),
                    facts: None,
                    response_code: None,
                    tls: None,
                    ..other
                }
            };
        }
    }

    fn story(&self) -> MutexGuard<'_, Story> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted.
    pub(super) fn into_story(self) -> Story {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The phase that is under way.
    pub fn phase(&self) -> Phase {
        self.story().phase
    }

    /// Notes that a phase begins.
    pub fn enter(&self, phase: Phase) {
        self.story().phase = phase;
    }

    /// Notes the hop that is tried.
    pub fn hop(&self, hop: &Arc<str>) {
        self.story().hop = Some(hop.clone());
    }

    /// Notes that the request is sent once more.
    pub fn resend(&self) {
        self.story().resend_count += 1;
    }

    /// Notes a lookup and what it gave.
    pub fn resolved(&self, name: &str, took: Duration, found: &Resolved) {
        let mut story = self.story();
        story.dns = Some((name.to_owned(), took));
        story.found(found);
        drop(story);
        if found.facts.is_suffixed {
            self.note("dns.search_suffix");
        }
    }

    /// Notes that the name was looked up again, for other addresses.
    pub fn renewed(&self, took: Duration, found: &Resolved) {
        let mut story = self.story();
        if let Some((_, before)) = &mut story.dns {
            *before += took;
        }
        story.found(found);
    }

    /// Notes a lookup that failed.
    pub fn unresolved(&self, name: &str, took: Duration, error: &ResolveError) {
        let mut story = self.story();
        story.dns = Some((name.to_owned(), took));
        story.response_code = error.response_code();
        story.facts = Some(Box::new((*error.facts).clone()));
    }

    /// Notes addresses that needed no lookup.
    pub fn pinned(&self, addresses: &[IpAddr]) {
        self.given(addresses, "pin");
    }

    /// Notes addresses that a fault of the policy gave.
    pub fn staged(&self, addresses: &[IpAddr]) {
        self.given(addresses, "fault");
    }

    fn given(&self, addresses: &[IpAddr], source: &'static str) {
        let mut story = self.story();
        story.resolved = addresses.to_vec();
        story.dns_source = Some(source);
    }

    /// Lets a fault of the policy note that it strikes, now or later.
    pub fn fault(&self, name: &Arc<str>) -> Arc<Mark> {
        let mark = Arc::new(Mark {
            name: name.clone(),
            has_struck: AtomicBool::new(false),
        });
        self.story().faults.push(mark.clone());
        mark
    }

    /// How many faults of the policy have struck.
    pub fn strikes(&self) -> usize {
        let story = self.story();
        story.faults.iter().filter(|mark| mark.has_struck()).count()
    }

    /// Notes a guard in report mode that would have refused.
    pub fn would(&self, guard: &str) {
        self.story().would.get_or_insert_with(|| guard.into());
    }

    /// Notes what is worth a look and no failure, as in `connect.slow`; once.
    pub fn note(&self, note: &'static str) {
        let mut story = self.story();
        if !story.notes.contains(&note) {
            story.notes.push(note);
        }
    }

    /// Notes one try of one address; `cause` is `None` where it went well.
    pub fn tried(&self, attempt: &Try, cause: Option<Cause>) {
        if let Outcome::Connected {
            retransmissions: 1..,
        } = attempt.outcome
        {
            self.note("connect.slow");
        }
        let mut story = self.story();
        let hop = story.hop.clone().unwrap_or_default();
        story.attempts.reserve_exact(1);
        story.attempts.push(Attempt {
            hop,
            address: Some(attempt.address),
            family: Some(record::family(attempt.address.ip())),
            cause: cause.map(Cause::id),
            side: None,
            ms: millis(attempt.took),
            icmp: attempt.outcome.icmp().map(|icmp| record::Icmp {
                r#type: icmp.r#type,
                code: icmp.code,
                offender: icmp.offender,
            }),
            reused: false,
        });
    }

    /// Notes a try that was under way when its dial was dropped: what ended the request ended it.
    pub fn abandoned(&self, attempt: &Try) {
        self.tried(attempt, None);
        let mut story = self.story();
        let at = story.attempts.len() - 1;
        story.abandoned.push(at);
    }

    /// Notes that a kept connection is used again.
    pub fn reused(&self, hop: &Arc<str>, socket: &Socket) {
        let mut story = self.story();
        story.hop = Some(hop.clone());
        story.attempts.reserve_exact(1);
        story.attempts.push(Attempt {
            hop: hop.clone(),
            address: Some(socket.peer()),
            family: Some(record::family(socket.peer().ip())),
            cause: None,
            side: None,
            ms: 0.0,
            icmp: None,
            reused: true,
        });
        story.peer = Some(socket.peer());
        story.local = Some(socket.local());
    }

    /// Notes the cause of the try whose connection stood, found out later.
    pub fn last_try_failed(&self, cause: Cause) {
        let mut story = self.story();
        let peer = story.peer;
        let stood = |attempt: &&mut Attempt| attempt.address == peer;
        if let Some(attempt) = story.attempts.iter_mut().rev().find(stood) {
            attempt.cause = Some(cause.id());
            attempt.side = Some(cause.side().as_str());
        }
    }

    /// Notes that another hop is tried: what is told of the connection and of the upstream is told of the hop used last.
    pub fn next_hop(&self) {
        let mut story = self.story();
        (story.connect, story.connected, story.first_byte) = (None, None, None);
        (story.peer, story.local) = (None, None);
        (story.upstream, story.reply, story.socks_reply) = (None, None, None);
    }

    /// Notes a try that had no address to go to.
    pub fn failed(&self, cause: Cause, took: Duration) {
        let mut story = self.story();
        let hop = story.hop.clone().unwrap_or_default();
        let cause = Some(cause.id());
        story.attempts.reserve_exact(1);
        story.attempts.push(Attempt {
            hop,
            address: None,
            family: None,
            cause,
            side: None,
            ms: millis(took),
            icmp: None,
            reused: false,
        });
    }

    /// Notes the connection that stands.
    pub fn connected(&self, socket: &Socket, took: Duration) {
        let mut story = self.story();
        story.connect = Some(took);
        story.connected = Some(Instant::now());
        story.peer = Some(socket.peer());
        story.local = Some(socket.local());
    }

    /// Notes the upstream that is asked, and how long it took to answer.
    pub fn upstream(&self, name: &Arc<str>, took: Duration) {
        self.story().upstream = Some((name.clone(), Some(took)));
    }

    /// Notes the upstream that a plain request goes to.
    pub fn asks(&self, name: &Arc<str>) {
        self.story().upstream = Some((name.clone(), None));
    }

    /// Notes what an upstream answered beside a 200.
    pub fn replied(&self, reply: &Reply) {
        self.story().reply = Some(Box::new(ReplyFacts {
            status: reply.status.as_u16(),
            reason: (!reply.reason.is_empty()).then(|| quote(&reply.reason)),
            proxy_status: reply.proxy_status.as_deref().map(quote),
            squid_error: reply.squid_error.as_deref().map(quote),
            auth_schemes: reply
                .auth_schemes
                .iter()
                .map(|scheme| quote(scheme))
                .collect(),
            body: (!reply.body.is_empty()).then(|| quote(&reply.body)),
        }));
    }

    /// Notes the code of a SOCKS server's refusal.
    pub fn socks_replied(&self, code: u8) {
        self.story().socks_reply = Some(code);
    }

    /// Notes the certificate of a handshake of our own that was finished.
    pub fn shook_hands(&self, judgement: &Judgement) {
        let mut tls = Tls {
            state: State::T6.as_str(),
            ..Tls::default()
        };
        evidence::tell_certificate(judgement, &mut tls);
        self.story().tls = Some(Box::new(tls));
    }

    /// Notes the first byte of the server, counted from the connection.
    pub fn first_byte(&self, after: Duration) {
        self.story().first_byte.get_or_insert(after);
    }
}

impl Story {
    fn found(&mut self, found: &Resolved) {
        self.resolved.clone_from(&found.addresses);
        self.dns_source = Some(found.source.as_str());
        self.response_code = found.facts.response_code();
        self.facts = Some(Box::new(found.facts.clone()));
    }

    /// Moves what was noted into a record; `cause` is what the request failed of.
    pub(super) fn tell(&mut self, record: &mut Record, cause: Option<Cause>) {
        if let Some((name, took)) = self.dns.take() {
            let asked = self
                .facts
                .as_ref()
                .and_then(|facts| facts.question.as_ref());
            record.dns_question = Some(asked.cloned().unwrap_or(name));
            record.dns_ms = Some(millis(took));
        }
        record.dns = self.facts.as_deref().and_then(dns_of).map(Box::new);
        record.dns_resolved = std::mem::take(&mut self.resolved);
        record.dns_source = self.dns_source;
        record.dns_response_code = self.response_code.map(str::to_owned);
        record.connect_ms = self.connect.map(millis);
        record.hop = self.hop.take();
        record.attempts = std::mem::take(&mut self.attempts);
        for at in &self.abandoned {
            if let Some(attempt) = record.attempts.get_mut(*at) {
                attempt.cause = cause.map(Cause::id);
            }
        }
        record.resend_count = self.resend_count;
        if let Some(peer) = self.peer {
            record.peer_address = Some(peer.ip());
            record.peer_port = Some(peer.port());
            record.network_type = Some(record::family(peer.ip()));
        }
        if let Some(local) = self.local {
            record.local_address = Some(local.ip());
            record.local_port = Some(local.port());
        }
        if let Some((name, took)) = self.upstream.take() {
            record.upstream_name = Some(name);
            record.upstream_ms = took.map(millis);
        }
        if let Some(reply) = self.reply.take() {
            record.upstream_status = Some(reply.status);
            record.upstream_reason = reply.reason;
            record.upstream_proxy_status = reply.proxy_status;
            record.upstream_squid_error = reply.squid_error;
            record.upstream_auth_schemes = reply.auth_schemes;
            record.upstream_body = reply.body;
        }
        record.upstream_socks_reply = self.socks_reply.map(u16::from);
        if let Some(own) = &self.tls {
            tell_tls(own, record.tls.get_or_insert_default());
        }
        for mark in self.faults.iter().filter(|mark| mark.has_struck()) {
            if !record.faults.contains(&mark.name) {
                record.faults.push(mark.name.clone());
            }
        }
        record.notes.extend(&self.notes);
        if record.would.is_none() {
            record.would = self.would.take();
        }
    }
}

/// Adds the certificate that a handshake of our own showed, where the client's showed none.
fn tell_tls(own: &Tls, told: &mut Tls) {
    if told.state.is_empty() {
        told.state = own.state;
    }
    if told.sha256.is_none() {
        told.subject.clone_from(&own.subject);
        told.issuer.clone_from(&own.issuer);
        told.not_before.clone_from(&own.not_before);
        told.not_after.clone_from(&own.not_after);
        told.sha256.clone_from(&own.sha256);
        told.certificate = own.certificate;
    }
}

/// What name servers said, where one was asked.
fn dns_of(facts: &Facts) -> Option<Dns> {
    let ede = facts.ede.as_ref();
    let server = facts.server?;
    Some(Dns {
        server,
        transport: facts.transport.map(Transport::as_str),
        cached: facts.is_cached,
        ttl_s: facts.ttl,
        ede: ede.map(|ede| ede.code),
        ede_text: ede
            .filter(|ede| !ede.text.is_empty())
            .map(|ede| quote(&ede.text)),
        // Until now: one that comes late is told, too.
        replies: facts.replies(),
        rr_count: facts.records,
    })
}
