//! A plain request's way to its answer: on a kept connection or a fresh one, and once more where that may be.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response, StatusCode, request};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::ext::on_informational;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::Proxy;
use super::forward::reply_of;
use super::headers::Wishes;
use super::introduce::KEPT;
use super::patience::Alarm;
use super::pool::{Lease, Pool};
use super::replay::Copy;
use super::upload::{Outgoing, Upload};
use crate::cause::Phase;
use crate::exchange::{Exchange, Trail};
use crate::failure::{Failure, MalformedAnswer, OriginError, classify};
use crate::net::here::is_here;
use crate::net::socket::reset_behind;
use crate::net::upstream::{UpstreamError, is_refusal};
use crate::policy::RouteId;
use crate::route::chain::{Link, Rest};
use crate::route::health::Health;
use crate::route::{Conn, Form, Plan};
use crate::snapshot::Snapshot;

/// So many interim answers (1xx) are taken before one request's answer.
const MAX_INTERIM: u32 = 32;

/// One request's way to its answer.
pub(super) struct Errand<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) snapshot: &'a Snapshot,
    pub(super) id: RouteId,
    pub(super) plan: &'a Plan,
    pub(super) wishes: &'a Wishes,
    pub(super) upload: &'a Arc<Upload>,
}

/// Why a request got no answer.
pub(super) enum Unanswered {
    /// It did not go out: it may be sent again whatever it is.
    NotSent(Box<Request<Outgoing>>, OriginError),
    /// It went out.
    Failed(Failure),
}

impl Errand<'_> {
    /// Sends the request until it is answered: again only where a kept connection turned out to be stale, and where an
    /// upstream asks who we are.
    pub(super) async fn run(
        &self,
        mut parts: request::Parts,
        mut body: Outgoing,
        exchange: &Exchange,
    ) -> Result<(Response<Incoming>, Box<Lease>), Failure> {
        let trail = exchange.trail();
        let mut started = Instant::now();
        let (mut lease, rest) = if let Some(lease) = self.kept(exchange, started) {
            let rest = lease.link.as_ref().map(|link| link.resume(self.plan));
            (lease, rest)
        } else {
            // On the heap, as is all that few requests need: every request carries room for what is not.
            let fresh = Box::pin(self.fresh(exchange)).await?;
            started = Instant::now();
            fresh
        };
        if let Some(rest) = rest {
            return Box::pin(self.run_over_chain((parts, body), lease, rest, exchange)).await;
        }
        let mut talk = self.address(&lease, &mut parts);
        loop {
            trail.enter(Phase::Http);
            if let Some(talk) = &mut talk {
                trail.asks(&talk.upstream);
                Box::pin(talk.introduce(&lease, &mut parts)).await;
            }
            let may_be_asked = talk.as_ref().is_some_and(|talk| talk.can_answer());
            let mut copy = may_be_asked.then(|| Copy::of(&parts, &mut body, KEPT));
            // Only a kept connection can be stale, and only a safe request without a body may go out twice
            // (RFC 9110, section 9.2.2).
            let again =
                (lease.reused && body.is_empty() && parts.method.is_safe()).then(|| parts.clone());
            let request = self.informed(Request::from_parts(parts, body));
            let unanswered = match (self.send(&mut lease, request, started).await, &mut talk) {
                (Ok(response), Some(asked))
                    if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED =>
                {
                    let answered = asked.answer(response, &mut lease, &mut copy, self, exchange);
                    let answered = Box::pin(answered).await;
                    let (kept, request) =
                        answered.inspect_err(|failure| self.watch(&lease, Some(failure)))?;
                    (parts, body) = request;
                    if !kept {
                        drop(lease);
                        (lease, _) = Box::pin(self.fresh(exchange)).await?;
                        talk = self.readdress(talk, &lease, &mut parts);
                    }
                    started = Instant::now();
                    continue;
                }
                (Ok(response), asked) => {
                    if let Some(asked) = asked {
                        asked.accepted(&mut lease);
                    }
                    trail.first_byte(started.elapsed());
                    let judged = match refusal(&response, &lease.form) {
                        None => Ok(response),
                        Some(by) => Err(Box::pin(by.read(response, trail)).await),
                    };
                    if let Err(failure) = &judged {
                        trail.last_try_failed(classify(failure));
                    }
                    self.watch(&lease, judged.as_ref().err());
                    return Ok((judged?, lease));
                }
                (Err(unanswered), _) => unanswered,
            };
            (parts, body) = match (unanswered, again) {
                (Unanswered::NotSent(request, _), _) if lease.reused => request.into_parts(),
                (
                    Unanswered::Failed(Failure::Origin(OriginError::Empty | OriginError::Reset(_))),
                    Some(parts),
                ) => {
                    trail.resend();
                    (parts, Outgoing::empty())
                }
                (Unanswered::NotSent(_, error), _) => {
                    let failure = failed(error.into(), &lease.form, trail);
                    self.watch(&lease, Some(&failure));
                    return Err(failure);
                }
                (Unanswered::Failed(failure), _) => {
                    let failure = failed(failure, &lease.form, trail);
                    self.watch(&lease, Some(&failure));
                    return Err(failure);
                }
            };
            trail.last_try_failed(classify(&OriginError::Stale.into()));
            drop(lease);
            (lease, _) = Box::pin(self.fresh(exchange)).await?;
            talk = self.readdress(talk, &lease, &mut parts);
            started = Instant::now();
        }
    }

    /// Tells an upstream's health what became of a request. A kept connection may have been closed before it was used: that it
    /// ended says nothing.
    pub(super) fn watch(&self, lease: &Lease, failure: Option<&Failure>) {
        let Form::Absolute { .. } = &lease.form else {
            return;
        };
        let Some(health) = self.snapshot.health(self.id, &lease.hop) else {
            return;
        };
        match failure {
            None => health.served(),
            Some(Failure::Upstream {
                error: UpstreamError::Closed | UpstreamError::Reset { .. },
                ..
            }) if lease.reused => {}
            Some(failure) => health.failed(failure, &self.plan.target.host.to_string()),
        }
    }

    /// A kept connection to an address that this client may still reach.
    fn kept(&self, exchange: &Exchange, now: Instant) -> Option<Box<Lease>> {
        let plan = self.plan;
        let policy = &self.snapshot.policy;
        let admits = |lease: &Lease| {
            let peer = lease.socket.peer();
            if let Some(link) = &lease.link
                && !link.is_due(&plan.target.host)
            {
                return false;
            }
            // Who dials knows whether anything else may serve.
            let health = self.snapshot.health(self.id, &lease.hop);
            if health.is_some_and(Health::is_drained) {
                return false;
            }
            if !policy.may_share(self.id, &lease.hop, plan.client.ip()) {
                return false;
            }
            // Of the target, where we know an address of it.
            let far = if lease.is_end_to_end {
                Some(peer)
            } else {
                lease.told.as_deref().copied()
            };
            let admits_far =
                far.is_none_or(|far| policy.guards.admit(far, &plan.client, is_here).is_ok());
            let admits_peer = lease.is_end_to_end
                || policy
                    .guards
                    .admit_upstream(peer, &plan.client, is_here)
                    .is_ok();
            let is_pinned = match (&plan.addresses, &lease.form) {
                (None, _) | (_, Form::Absolute { .. }) => true,
                (Some(found), Form::Origin) => found
                    .as_ref()
                    .is_ok_and(|found| far.is_some_and(|far| found.contains(&far.ip()))),
            };
            let is_ours = lease
                .only_for
                .is_none_or(|client| client == plan.client.peer);
            admits_far && admits_peer && is_pinned && is_ours
        };
        let way = (self.id, plan.dns);
        let take = |pool: &Arc<Pool>| pool.take(way, &plan.target, now, admits);
        let own = self.snapshot.pool(exchange.presence().worker);
        // A worker with connections of its own stays with them: another's cost a change of cores for each request.
        let lease = take(own).or_else(|| {
            let is_new_here = !own.knows(way, &plan.target);
            is_new_here.then(|| self.snapshot.pools.iter().find_map(take))?
        })?;
        exchange.trail().reused(&lease.hop, &lease.socket);
        if !lease.is_end_to_end {
            exchange.trail().asks(&lease.hop);
        }
        Some(lease)
    }

    /// A connection of this request's own, and the hops that are left where it is one of a chain.
    pub(super) async fn fresh(
        &self,
        exchange: &Exchange,
    ) -> Result<(Box<Lease>, Option<Box<Rest>>), Failure> {
        let way = self.snapshot.route(self.id);
        let mut conn = way.dial(self.plan, exchange.trail()).await?;
        let rest = conn.rest.take();
        let link = rest.as_deref().map(Rest::link);
        Ok((self.begin(conn, link, exchange).await?, rest))
    }

    /// HTTP on a connection that stands.
    pub(super) async fn begin(
        &self,
        conn: Conn,
        link: Option<Box<Link>>,
        exchange: &Exchange,
    ) -> Result<Box<Lease>, Failure> {
        if !conn.early.is_empty() {
            let unasked = OriginError::Malformed(MalformedAnswer::Unasked);
            return Err(failed(unasked.into(), &conn.form, exchange.trail()));
        }
        let socket = conn.wire.carrier().clone();
        let heard = conn.wire.heard();
        let handshake = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(conn.wire))
            .await;
        let (sender, connection) =
            handshake.map_err(|error| Failure::Origin(origin_error(error)))?;
        let task = self.proxy.tracker.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an origin ended");
            }
        });
        Ok(Box::new(Lease {
            sender,
            socket,
            heard,
            form: conn.form,
            is_end_to_end: conn.is_end_to_end,
            hop: conn.hop,
            only_for: conn.only_for,
            told: conn.told,
            held: conn.held,
            task: task.abort_handle(),
            knows_us: false,
            link,
            alarm: Alarm::default(),
            reused: false,
            is_lasting: self.snapshot.route(self.id).is_lasting(),
            worker: exchange.presence().worker,
            way: (self.id, self.plan.dns),
            target: self.plan.target.clone(),
        }))
    }

    /// Counts interim answers; holds back the body of a request that waits for a 100, and lets it go when one comes.
    pub(super) fn informed(&self, mut request: Request<Outgoing>) -> Request<Outgoing> {
        let waits = self.wishes.waits_for_continue;
        let open = waits.then(|| request.body_mut().hold());
        let open = Mutex::new(open.flatten());
        let (count, upload) = (AtomicU32::new(0), self.upload.clone());
        on_informational(&mut request, move |response| {
            if count.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
                upload.ramble();
            }
            if response.status() == StatusCode::CONTINUE
                && let Some(open) = open.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                // Nobody waits any more where the body was let go already.
                let _ = open.send(());
            }
        });
        request
    }

    /// Sends the request and waits for the head of its answer: as long as the client's body makes progress, and
    /// `first_byte` beyond.
    pub(super) async fn send(
        &self,
        lease: &mut Lease,
        request: Request<Outgoing>,
        started: Instant,
    ) -> Result<Response<Incoming>, Unanswered> {
        if let Err(error) = lease.sender.ready().await {
            return Err(Unanswered::NotSent(Box::new(request), origin_error(error)));
        }
        let limit = self.plan.timeouts.first_byte;
        let Lease { sender, alarm, .. } = lease;
        let mut answer = std::pin::pin!(sender.try_send_request(request));
        loop {
            let deadline = started.max(self.upload.last_progress()) + limit;
            tokio::select! {
                biased;
                () = self.upload.rambling() => {
                    let error = OriginError::Malformed(MalformedAnswer::Interim);
                    return Err(Unanswered::Failed(error.into()));
                }
                answer = &mut answer => {
                    return answer.map_err(|mut error| match error.take_message() {
                        Some(request) => Unanswered::NotSent(Box::new(request), origin_error(error.into_error())),
                        None => Unanswered::Failed(self.failure(error.into_error())),
                    });
                }
                () = poll_fn(|cx| alarm.poll(cx, deadline)) => {
                    if self.upload.last_progress() + limit <= Instant::now() {
                        return Err(Unanswered::Failed(OriginError::NoAnswer { after: limit }.into()));
                    }
                }
            }
        }
    }

    /// What an error of hyper's means: the client's own body may be to blame.
    fn failure(&self, error: hyper::Error) -> Failure {
        match self.upload.end() {
            Some(end) => end.failure(),
            None => origin_error(error).into(),
        }
    }
}

/// Who refuses in an answer that is not passed on.
pub(super) enum Refusal {
    /// The upstream.
    Upstream(Arc<str>),
    /// The origin asks for a proxy's credentials: the client would send us, or whoever asks, the wrong ones.
    Origin,
}

/// Whether an answer is no origin's to pass on. An upstream's 407 was answered before, or was the end.
pub(super) fn refusal(response: &Response<Incoming>, form: &Form) -> Option<Refusal> {
    let (status, headers) = (response.status(), response.headers());
    match form {
        Form::Origin => {
            (status == StatusCode::PROXY_AUTHENTICATION_REQUIRED).then_some(Refusal::Origin)
        }
        Form::Absolute { upstream, .. } => {
            let is_own = is_refusal(status, |name| headers.contains_key(name));
            is_own.then(|| Refusal::Upstream(upstream.clone()))
        }
    }
}

impl Refusal {
    /// The failure that it is.
    pub(super) async fn read(self, response: Response<Incoming>, trail: &Trail) -> Failure {
        match self {
            Self::Origin => OriginError::AskedForProxyCredentials.into(),
            Self::Upstream(upstream) => {
                let (reply, _) = reply_of(response).await;
                trail.replied(&reply);
                by_upstream(&upstream, UpstreamError::Refused(Box::new(reply)))
            }
        }
    }
}

pub(super) fn by_upstream(upstream: &Arc<str>, error: UpstreamError) -> Failure {
    Failure::Upstream {
        upstream: upstream.clone(),
        passes_443: false,
        error,
    }
}

/// A failure before the answer, which is that of the last try as well unless the client is to blame.
pub(super) fn failed(failure: Failure, form: &Form, trail: &Trail) -> Failure {
    let failure = by_hop(failure, form);
    if let Failure::Origin(_) | Failure::Upstream { .. } = failure {
        trail.last_try_failed(classify(&failure));
    }
    failure
}

/// A failure before the answer is the upstream's where the request went to one.
fn by_hop(failure: Failure, form: &Form) -> Failure {
    let Form::Absolute { upstream, .. } = form else {
        return failure;
    };
    let Failure::Origin(error) = failure else {
        return failure;
    };
    let error = match error {
        OriginError::NoAnswer { after } => UpstreamError::NoReply { after },
        OriginError::Empty => UpstreamError::Closed,
        OriginError::Broken(source) => UpstreamError::Io { source },
        OriginError::Reset(source) => UpstreamError::Reset { source },
        OriginError::HeadTooLarge => UpstreamError::HeadTooLarge,
        OriginError::Malformed(error) => UpstreamError::MalformedReply {
            first: error.to_string(),
        },
        OriginError::BodyCut
        | OriginError::BodyReset(_)
        | OriginError::BodyStalled { .. }
        | OriginError::Stale
        | OriginError::Status(_)
        | OriginError::AskedForProxyCredentials => return Failure::Origin(error),
    };
    by_upstream(upstream, error)
}

/// What an error of hyper's client says, before an answer's head.
fn origin_error(error: hyper::Error) -> OriginError {
    if let Some(reset) = reset_behind(&error) {
        OriginError::Reset(reset)
    } else if error.is_parse_too_large() {
        OriginError::HeadTooLarge
    } else if error.is_parse() {
        OriginError::Malformed(MalformedAnswer::Parse(error))
    } else {
        OriginError::Empty
    }
}
