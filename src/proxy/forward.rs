//! A plain request: out on a kept or a fresh connection, and its answer back.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, VIA};
use http::{Method, Response, StatusCode, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::answer::{Answer, Open, Passing, Requests};
use super::decide::{Ask, Verdict, Walked, decide};
use super::errand::Errand;
use super::headers::{self, Wishes};
use super::pool::{Lease, Pool};
use super::respond::Whole;
use super::tunnel::{Ends, Opened};
use super::upload::{Outgoing, Uploading};
use super::{Agreed, Caller, Proxy, Served, given};
use crate::exchange::Exchange;
use crate::failure::{Failure, MalformedAnswer, OriginError, RequestError};
use crate::net::places::Held;
use crate::net::upstream::{self, Reply};
use crate::net::wire::Wire;
use crate::record::trace::{TRACEPARENT, Trace};
use crate::route::{Conn, Form};
use crate::target::Target;
use crate::timeouts::Timeouts;

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
        requests: &Arc<Requests>,
        exchange: &mut Exchange,
        route: &mut Option<Arc<str>>,
    ) -> Result<Served, Failure> {
        let target = Target::from_absolute(&parts.uri).map_err(RequestError::from)?;
        exchange.targets(&target);
        headers::check_host(&parts, &target, 80).map_err(RequestError::from)?;
        self.enter(exchange.presence())?;
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
        let (meter, limit) = (exchange.meter().clone(), plan.timeouts.body_idle);
        let (body, upload) = Outgoing::new(body, requests, meter, limit);
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

/// An upstream's own answer to a plain request, as its answer to CONNECT would be; and whether all of it was read.
pub(super) async fn reply_of(response: Response<Incoming>) -> (Reply, bool) {
    let (head, body) = response.into_parts();
    let reply = Reply::of_head(&head);
    let (body, is_whole) = upstream::read_body(body).await;
    (reply.with_body(&body), is_whole)
}
