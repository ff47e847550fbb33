//! A plain request: out on a kept or a fresh connection, and its answer back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, VIA};
use http::{Method, Request, Response, StatusCode, Version, request};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::ext::{ReasonPhrase, on_informational};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep_until};

use super::answer::{Answer, Open, Passing};
use super::headers::{self, Wishes};
use super::pool::{Lease, Pool};
use super::respond::{RECORD, Whole};
use super::tunnel::Ends;
use super::upload::{Outgoing, Upload, Uploading};
use super::{Agreed, Ask, Proxy, Served, decide};
use crate::cause::Phase;
use crate::exchange::{Exchange, Trail};
use crate::failure::{Failure, MalformedAnswer, OriginError, RequestError, classify};
use crate::net::socket::{Socket, reset_behind};
use crate::net::upstream::{self, Reply, UpstreamError};
use crate::policy::{RouteId, Scheme};
use crate::route::{Form, Plan};
use crate::snapshot::Snapshot;
use crate::target::Target;
use crate::timeouts::Timeouts;

/// So many interim answers (1xx) are taken before one request's answer.
const MAX_INTERIM: u32 = 32;

/// An origin's answer, and what its body needs.
pub(super) struct Answered {
    response: Response<Incoming>,
    lease: Lease,
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
        let snapshot = self.admit(&parts, exchange)?;
        let ask = Ask {
            parts: &parts,
            target: &target,
            scheme: Scheme::Http,
        };
        let (decided, plan) = decide(&snapshot, &self.identity.via, ask, exchange, route).await?;
        self.check_circuit(&snapshot, &target)?;
        let asked_in = parts.version;
        let wishes = headers::prepare(&mut parts, &self.identity.via)?;
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
            let is_end_to_end = matches!(lease.form, Form::Origin);
            let upgrade = self.upgrade(response, &wishes, is_end_to_end, plan.timeouts);
            return Box::pin(upgrade).await;
        }
        if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(Box::pin(asks_for_credentials(response, &lease.form, exchange)).await);
        }
        if let Form::Absolute {
            upstream,
            credentials,
        } = &lease.form
            && is_of_upstream(&response)
        {
            let refused = refused(response, upstream, credentials.is_some(), exchange);
            return Err(Box::pin(refused).await);
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
        timeouts: Arc<Timeouts>,
    ) -> Result<Served, Failure> {
        if wishes.upgrade.is_none() {
            return Err(OriginError::Malformed(MalformedAnswer::UnaskedUpgrade).into());
        }
        let upgraded = hyper::upgrade::on(&mut response).await;
        let upgraded =
            upgraded.map_err(|error| OriginError::Malformed(MalformedAnswer::Parse(error)))?;
        let Ok(ends) = upgraded.downcast::<TokioIo<Socket>>() else {
            return Err(OriginError::Empty.into());
        };
        let ends = Ends {
            server: ends.io.into_inner(),
            early: ends.read_buf,
            is_end_to_end,
            timeouts,
        };
        let (mut parts, _) = response.into_parts();
        headers::pass_back(&mut parts, &self.identity.via);
        Ok(Served::Tunnel(Box::new(Agreed {
            response: Response::from_parts(parts, ()),
            ends,
        })))
    }
}

/// One request's way to its answer.
struct Errand<'a> {
    proxy: &'a Proxy,
    snapshot: &'a Snapshot,
    id: RouteId,
    plan: &'a Plan,
    wishes: &'a Wishes,
    upload: &'a Arc<Upload>,
}

/// Why a request got no answer.
enum Unanswered {
    /// It did not go out: it may be sent again whatever it is.
    NotSent(Box<Request<Outgoing>>, OriginError),
    /// It went out.
    Failed(Failure),
}

impl Errand<'_> {
    /// Sends the request until it is answered: a second time only where a kept connection turned out to be stale.
    async fn run(
        &self,
        mut parts: request::Parts,
        mut body: Outgoing,
        exchange: &Exchange,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let trail = exchange.trail();
        let mut lease = match self.kept(exchange) {
            Some(lease) => lease,
            // On the heap, as is all that few requests need: every request carries room for what is not.
            None => Box::pin(self.fresh(exchange)).await?,
        };
        loop {
            trail.enter(Phase::Http);
            headers::address(&mut parts, &self.plan.target, &lease.form);
            if let Form::Absolute { upstream, .. } = &lease.form {
                trail.asks(upstream);
            }
            // Only a kept connection can be stale, and only a safe request without a body may go out twice
            // (RFC 9110, section 9.2.2).
            let again =
                (lease.reused && body.is_empty() && parts.method.is_safe()).then(|| parts.clone());
            let request = self.informed(Request::from_parts(parts, body));
            let started = Instant::now();
            let unanswered = match self.send(&mut lease, request).await {
                Ok(response) => {
                    trail.first_byte(started.elapsed());
                    return Ok((response, lease));
                }
                Err(unanswered) => unanswered,
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
                    return Err(failed(error.into(), &lease.form, trail));
                }
                (Unanswered::Failed(failure), _) => {
                    return Err(failed(failure, &lease.form, trail));
                }
            };
            trail.last_try_failed(classify(&OriginError::Stale.into()));
            lease = Box::pin(self.fresh(exchange)).await?;
        }
    }

    /// A kept connection to an address that this client may still reach.
    fn kept(&self, exchange: &Exchange) -> Option<Lease> {
        let plan = self.plan;
        let policy = &self.snapshot.policy;
        let admits = |form: &Form, socket: &Socket| {
            let peer = socket.peer();
            let judged = match form {
                Form::Origin => policy.guards.admit(peer, &plan.client),
                Form::Absolute { .. } => policy.guards.admit_upstream(peer, &plan.client),
            };
            let is_pinned = plan
                .addresses
                .as_ref()
                .is_none_or(|found| found.as_ref().is_ok_and(|found| found.contains(&peer.ip())));
            judged.is_ok() && (is_pinned || matches!(form, Form::Absolute { .. }))
        };
        let take = |pool: &Arc<Pool>| pool.take(self.id, &plan.target, admits);
        let own = self.snapshot.pool(exchange.presence().worker);
        // A worker with connections of its own stays with them: another's cost a change of cores for each request.
        let lease = take(own).or_else(|| {
            let is_new_here = !own.knows(self.id, &plan.target);
            is_new_here.then(|| self.snapshot.pools.iter().find_map(take))?
        })?;
        exchange
            .trail()
            .reused(&policy.route(self.id).name, &lease.socket);
        Some(lease)
    }

    /// A connection of this request's own.
    async fn fresh(&self, exchange: &Exchange) -> Result<Lease, Failure> {
        let conn = self
            .snapshot
            .route(self.id)
            .dial(self.plan, exchange.trail())
            .await?;
        let handshake = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(conn.socket.clone()))
            .await;
        let (sender, connection) =
            handshake.map_err(|error| Failure::Origin(origin_error(error)))?;
        self.proxy.tracker.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an origin ended");
            }
        });
        Ok(Lease::fresh(
            sender,
            conn.socket,
            conn.form,
            exchange.presence().worker,
            self.id,
            self.plan.target.clone(),
        ))
    }

    /// Counts interim answers; holds back the body of a request that waits for a 100, and lets it go when one comes.
    fn informed(&self, mut request: Request<Outgoing>) -> Request<Outgoing> {
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
    async fn send(
        &self,
        lease: &mut Lease,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Unanswered> {
        if let Err(error) = lease.sender.ready().await {
            return Err(Unanswered::NotSent(Box::new(request), origin_error(error)));
        }
        let limit = self.plan.timeouts.first_byte;
        let sent = Instant::now();
        let mut answer = std::pin::pin!(lease.sender.try_send_request(request));
        loop {
            let deadline = sent.max(self.upload.last_progress()) + limit;
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
                () = sleep_until(deadline) => {
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
        client: &Socket,
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
            client.clone(),
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

/// A 407 is never passed on: the client would send us, or whoever asks, the wrong credentials.
async fn asks_for_credentials(
    response: Response<Incoming>,
    form: &Form,
    exchange: &Exchange,
) -> Failure {
    match form {
        Form::Origin => OriginError::AskedForProxyCredentials.into(),
        Form::Absolute {
            upstream,
            credentials,
        } => refused(response, upstream, credentials.is_some(), exchange).await,
    }
}

/// Whether an upstream answered in the origin's place: squid and we ourselves sign the refusals and errors that are our own.
/// `Proxy-Status` alone does not tell, since whoever stands before an origin sends it too.
fn is_of_upstream(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let is_refusal = matches!(response.status().as_u16(), 403 | 429 | 451 | 500..);
    is_refusal && (headers.contains_key("x-squid-error") || headers.contains_key(RECORD))
}

/// An upstream's own answer to a plain request, told as its answer to CONNECT would be.
async fn refused(
    response: Response<Incoming>,
    upstream: &Arc<str>,
    with_credentials: bool,
    exchange: &Exchange,
) -> Failure {
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
    let reply = reply.with_body(&upstream::read_body(body).await);
    exchange.trail().replied(&reply);
    Failure::Upstream {
        upstream: upstream.clone(),
        with_credentials,
        passes_443: false,
        error: UpstreamError::Refused(Box::new(reply)),
    }
}

/// A failure before the answer, which is that of the last try as well unless the client is to blame.
fn failed(failure: Failure, form: &Form, trail: &Trail) -> Failure {
    let failure = by_hop(failure, form);
    if let Failure::Origin(_) | Failure::Upstream { .. } = failure {
        trail.last_try_failed(classify(&failure));
    }
    failure
}

/// A failure before the answer is the upstream's where the request went to one.
fn by_hop(failure: Failure, form: &Form) -> Failure {
    let Form::Absolute {
        upstream,
        credentials,
    } = form
    else {
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
    Failure::Upstream {
        upstream: upstream.clone(),
        with_credentials: credentials.is_some(),
        passes_443: false,
        error,
    }
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
