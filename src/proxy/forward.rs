//! A plain request: out on a kept or a fresh connection, and its answer back.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, VIA};
use http::{Method, Request, Response, StatusCode, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::ext::{ReasonPhrase, on_informational};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::answer::{Answer, Open, Passing};
use super::decide::{Ask, Verdict, Walked, decide};
use super::headers::{self, Wishes};
use super::introduce::{Introduction, KEPT};
use super::patience::Alarm;
use super::pool::{Lease, Pool};
use super::replay::Copy;
use super::respond::{RECORD, Whole};
use super::tunnel::{Ends, Opened};
use super::upload::{Outgoing, Upload, Uploading};
use super::{Agreed, Caller, Proxy, Served, given};
use crate::cause::Phase;
use crate::exchange::{Exchange, Trail};
use crate::failure::{Failure, MalformedAnswer, OriginError, RequestError, classify};
use crate::net::places::Held;
use crate::net::socket::reset_behind;
use crate::net::upstream::{self, Reply, UpstreamError};
use crate::net::wire::Wire;
use crate::policy::RouteId;
use crate::record::trace::{TRACEPARENT, Trace};
use crate::route::chain::{Link, Rest};
use crate::route::{Conn, Form, Plan};
use crate::snapshot::Snapshot;
use crate::target::Target;
use crate::timeouts::Timeouts;

/// So many interim answers (1xx) are taken before one request's answer.
const MAX_INTERIM: u32 = 32;

/// An origin's answer, and what its body needs.
pub(super) struct Answered {
    response: Response<Incoming>,
    lease: Box<Lease>,
    pool: Arc<Pool>,
    upload: Uploading,
    timeouts: Arc<Timeouts>,
    asked_in: Version,
}

impl Proxy {
    /// Serves a request by absolute URL.
    pub(super) async fn forward(
        &self,
        mut parts: request::Parts,
        body: Incoming,
        exchange: &mut Exchange,
        route: &mut Option<Arc<str>>,
    ) -> Result<Served, Failure> {
        let target = Target::from_absolute(&parts.uri).map_err(RequestError::from)?;
        exchange.targets(&target);
        headers::check_host(&parts, &target, 80).map_err(RequestError::from)?;
        let given = given(&parts.headers);
        let (snapshot, claim) = self.admit(Some(&parts.headers), given, exchange).await?;
        let ask = Ask::plain(&parts, &target, &claim);
        let Verdict::Decided(decided, plan) =
            decide(&snapshot, ask, Walked::default(), exchange, route).await?
        else {
            unreachable!("a plain request has no first flight");
        };
        self.check_circuit(&snapshot, &target)?;
        let asked_in = parts.version;
        // HTTP/2 says by its frames where a body ends.
        let is_framed = parts.version != Version::HTTP_2 || body.is_end_stream();
        if !is_framed && !parts.headers.contains_key(CONTENT_LENGTH) {
            let chunked = HeaderValue::from_static("chunked");
            parts.headers.insert(TRANSFER_ENCODING, chunked);
        }
        let wishes = headers::prepare(&mut parts, &self.identity.via)?;
        if let Some(traceparent) = exchange.trace().and_then(Trace::traceparent) {
            parts.headers.insert(TRACEPARENT, traceparent);
        }
        if wishes.ends_here {
            return Ok(Served::Here(self.answer_here(&parts)));
        }
        let (body, upload) = Outgoing::new(body, exchange.meter().clone(), plan.timeouts.body_idle);
        let errand = Errand {
            proxy: self,
            snapshot: &snapshot,
            id: decided.route,
            plan: &plan,
            wishes: &wishes,
            upload: &upload,
        };
        let (response, lease) = errand.run(parts, body, exchange).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let is_end_to_end = lease.is_end_to_end;
            let hop = (lease.hop.clone(), lease.held);
            let upgrade = self.upgrade(response, &wishes, is_end_to_end, hop, plan.timeouts);
            return Box::pin(upgrade).await;
        }
        // A 407 is never passed on: the client would send us, or whoever asks, the wrong credentials. An upstream's was
        // answered, or was the end.
        if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(OriginError::AskedForProxyCredentials.into());
        }
        if let Form::Absolute { upstream, .. } = &lease.form
            && is_of_upstream(&response)
        {
            let (reply, _) = Box::pin(reply_of(response)).await;
            exchange.trail().replied(&reply);
            return Err(by_upstream(
                upstream,
                UpstreamError::Refused(Box::new(reply)),
            ));
        }
        let (mut head, body) = response.into_parts();
        headers::pass_back(&mut head, &self.identity.via);
        let response = Response::from_parts(head, body);
        let pool = snapshot.pool(lease.worker).clone();
        let timeouts = plan.timeouts;
        Ok(Served::Answer(Box::new(Answered {
            response,
            lease,
            pool,
            upload,
            timeouts,
            asked_in,
        })))
    }

    /// Answers TRACE and OPTIONS whose Max-Forwards ended here (RFC 9110, section 7.6.2).
    fn answer_here(&self, parts: &request::Parts) -> Whole {
        let mut response = Response::new(Bytes::new());
        let via = self.identity.via.entry(Version::HTTP_11).clone();
        response.headers_mut().insert(VIA, via);
        if parts.method == Method::TRACE {
            let mut trace =
                format!("{} {} {:?}\r\n", parts.method, parts.uri, parts.version).into_bytes();
            for (name, value) in parts
                .headers
                .iter()
                .filter(|(name, _)| !headers::is_secret(name))
            {
                trace.extend_from_slice(name.as_str().as_bytes());
                trace.extend_from_slice(b": ");
                trace.extend_from_slice(value.as_bytes());
                trace.extend_from_slice(b"\r\n");
            }
            trace.extend_from_slice(b"\r\n");
            *response.body_mut() = Bytes::from(trace);
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("message/http"));
        } else {
            let methods = "CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE";
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(methods));
        }
        response
    }

    /// Agrees to an upgrade that was asked for: what follows is a tunnel.
    async fn upgrade(
        &self,
        mut response: Response<Incoming>,
        wishes: &Wishes,
        is_end_to_end: bool,
        (hop, held): (Arc<str>, Held),
        timeouts: Arc<Timeouts>,
    ) -> Result<Served, Failure> {
        if wishes.upgrade.is_none() {
            return Err(OriginError::Malformed(MalformedAnswer::UnaskedUpgrade).into());
        }
        let upgraded = hyper::upgrade::on(&mut response).await;
        let upgraded =
            upgraded.map_err(|error| OriginError::Malformed(MalformedAnswer::Parse(error)))?;
        let Ok(ends) = upgraded.downcast::<TokioIo<Wire>>() else {
            return Err(OriginError::Empty.into());
        };
        let conn = Conn {
            wire: ends.io.into_inner(),
            early: ends.read_buf,
            form: Form::Origin,
            is_end_to_end,
            hop,
            rest: None,
            only_for: None,
            told: None,
            held,
        };
        let ends = Ends { conn, timeouts };
        let (mut parts, _) = response.into_parts();
        headers::pass_back(&mut parts, &self.identity.via);
        Ok(Served::Tunnel(Box::new(Agreed {
            response: Response::from_parts(parts, ()),
            opened: Opened::Stands(ends),
        })))
    }
}

/// One request's way to its answer.
pub(super) struct Errand<'a> {
    proxy: &'a Proxy,
    snapshot: &'a Snapshot,
    id: RouteId,
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
    async fn run(
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
            let may_be_asked = talk.as_ref().is_some_and(Introduction::can_answer);
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
                    self.watch(&lease, None);
                    return Ok((response, lease));
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
                    (
                        parts,
                        Outgoing::empty(exchange.meter().clone(), self.upload.clone()),
                    )
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
    /// failed says nothing.
    pub(super) fn watch(&self, lease: &Lease, failure: Option<&Failure>) {
        let Form::Absolute { .. } = &lease.form else {
            return;
        };
        let Some(health) = self.snapshot.health(self.id, &lease.hop) else {
            return;
        };
        match failure {
            None => health.served(),
            Some(_) if lease.reused => {}
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
            if !policy.may_share(self.id, &lease.hop, plan.client.ip()) {
                return false;
            }
            // Of the target, where we know an address of it.
            let far = if lease.is_end_to_end {
                Some(peer)
            } else {
                lease.told.as_deref().copied()
            };
            let admits_far = far.is_none_or(|far| policy.guards.admit(far, &plan.client).is_ok());
            let admits_peer =
                lease.is_end_to_end || policy.guards.admit_upstream(peer, &plan.client).is_ok();
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
        let waits = self.wishes.waits_for_continue && !request.body().is_empty();
        let open = Mutex::new(waits.then(|| request.body_mut().hold()));
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

impl Answered {
    /// The answer to the client; the exchange ends with its body.
    pub(super) fn into_response(
        self,
        mut exchange: Exchange,
        caller: &Arc<Caller>,
        open: Open,
    ) -> Response<Answer> {
        let (parts, body) = self.response.into_parts();
        exchange.answered(parts.status);
        let limit = self.timeouts.body_idle;
        let ends_by_close = self.asked_in == Version::HTTP_10;
        let lease = (self.lease, self.pool);
        let passing = Passing::new(
            body,
            exchange,
            lease,
            self.upload,
            caller.clone(),
            limit,
            ends_by_close,
        );
        if passing.is_empty() {
            passing.finish();
            return Response::from_parts(parts, Answer::Whole(None, open));
        }
        Response::from_parts(parts, Answer::Passing(Box::new(passing), open))
    }
}

/// Whether an upstream answered in the origin's place: squid and we ourselves sign the refusals and errors that are our own.
/// `Proxy-Status` alone does not tell, since whoever stands before an origin sends it too.
pub(super) fn is_of_upstream(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let is_refusal = matches!(response.status().as_u16(), 403 | 429 | 451 | 500..);
    is_refusal && (headers.contains_key("x-squid-error") || headers.contains_key(RECORD))
}

/// An upstream's own answer to a plain request, as its answer to CONNECT would be; and whether all of it was read.
pub(super) async fn reply_of(response: Response<Incoming>) -> (Reply, bool) {
    let (head, body) = response.into_parts();
    let reason = head.extensions.get::<ReasonPhrase>();
    let reason = reason.map_or(&b""[..], ReasonPhrase::as_bytes);
    let fields = head
        .headers
        .iter()
        // hyper has taken the chunks apart.
        .filter(|(name, _)| *name != TRANSFER_ENCODING)
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    let reply = Reply::of(head.status, reason, &fields.collect::<Vec<_>>());
    let (body, is_whole) = upstream::read_body(body).await;
    (reply.with_body(&body), is_whole)
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
