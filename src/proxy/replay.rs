//! A plain request over a chain: when the next hop is asked, and what may be sent to it again.
//!
//! What did not go out goes on whatever it is. What did is sent again only where its method may be, while no byte of an
//! answer has come and all that was sent of its body is kept; behind an answer's head only where the chain lists its
//! status, or the upstream signs it as its own. Nothing is sent again once a byte of an answer was passed on.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode, request};
use hyper::body::Incoming;
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, sleep_until, timeout};

use super::errand::{Errand, Unanswered, failed, refusal};
use super::headers;
use super::introduce::{Introduction, KEPT};
use super::pool::Lease;
use super::upload::{Outgoing, Rewound};
use crate::cause::{Class, Phase};
use crate::exchange::Exchange;
use crate::failure::{Failure, OriginError, classify};
use crate::route::Form;
use crate::route::chain::Rest;

/// How long a connection that was ended may take to give back a request's body.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// A request that may have to be sent again.
pub(super) struct Copy {
    parts: request::Parts,
    body: Body,
}

/// Its body.
enum Body {
    Absent,
    /// It comes back once its connection lets go of it; not where too much of it has passed.
    Out(Receiver<Rewound>),
    Back(Rewound),
}

impl Copy {
    /// Keeps a request, of its body up to `room` bytes.
    pub(super) fn of(parts: &request::Parts, body: &mut Outgoing, room: usize) -> Box<Self> {
        Box::new(Self {
            parts: parts.clone(),
            body: body.keep(room).map_or(Body::Absent, Body::Out),
        })
    }

    /// Whether it cannot be sent again any more.
    fn is_lost(&mut self) -> bool {
        let Body::Out(receiver) = &mut self.body else {
            return false;
        };
        match receiver.try_recv() {
            Ok(rewound) => {
                self.body = Body::Back(rewound);
                false
            }
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Closed) => true,
        }
    }

    /// The request as it was, once the connection that carried it has ended.
    pub(super) async fn take_back(
        self,
        errand: &Errand<'_>,
        exchange: &Exchange,
    ) -> Option<(request::Parts, Outgoing)> {
        let rewound = match self.body {
            Body::Absent => None,
            Body::Back(rewound) => Some(rewound),
            Body::Out(receiver) => Some(timeout(GIVE_BACK, receiver).await.ok()?.ok()?),
        };
        let body = match rewound {
            None => Outgoing::empty(),
            Some(rewound) => {
                let (meter, upload) = (exchange.meter().clone(), Arc::clone(errand.upload));
                let limit = errand.plan.timeouts.body_idle;
                Outgoing::again(rewound, meter, upload, limit)
            }
        };
        Some((self.parts, body))
    }
}

impl Errand<'_> {
    /// Sends the request over one hop after another, until it is answered.
    ///
    /// `lease` leads by the hop that `rest` has in use.
    pub(super) async fn run_over_chain(
        &self,
        (mut parts, mut body): (request::Parts, Outgoing),
        mut lease: Box<Lease>,
        mut rest: Box<Rest>,
        exchange: &Exchange,
    ) -> Result<(Response<Incoming>, Box<Lease>), Failure> {
        let trail = exchange.trail();
        let mut talk = self.address(&lease, &mut parts);
        loop {
            trail.enter(Phase::Http);
            if let Some(talk) = &mut talk {
                trail.asks(&talk.upstream);
                Box::pin(talk.introduce(&lease, &mut parts)).await;
            }
            let may_be_asked = talk.as_ref().is_some_and(|talk| talk.can_answer());
            let replays = self.may_replay(&rest, &parts);
            // As on the only hop: a kept connection may be stale, and what is safe and has no body is not asked for twice.
            let may_be_stale = lease.reused && body.is_empty() && parts.method.is_safe();
            let room = match (replays, may_be_asked) {
                (true, false) => rest.retry().replay_body,
                (true, true) => rest.retry().replay_body.max(KEPT),
                (false, _) => KEPT,
            };
            let mut copy = (replays || may_be_stale || may_be_asked)
                .then(|| Copy::of(&parts, &mut body, room));
            let heard = lease.heard.bytes();
            let request = self.informed(Request::from_parts(parts, body));
            let started = Instant::now();
            let limit =
                (replays && rest.goes_on_after(Class::FirstByte)).then(|| rest.answer_limit());
            let sent = match (&mut copy, limit) {
                (Some(copy), Some(limit)) => {
                    self.send_within(limit, &mut lease, request, heard, copy)
                        .await
                }
                _ => self.send(&mut lease, request, started).await,
            };
            let took = started.elapsed();
            // The client's time is not the hops'.
            let uploaded = self.upload.last_progress();
            rest.wait(uploaded.saturating_duration_since(started));
            let failure = match (sent, &mut talk) {
                (Ok(response), Some(asked))
                    if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED =>
                {
                    let answered = asked.answer(response, &mut lease, &mut copy, self, exchange);
                    match Box::pin(answered).await {
                        Ok((is_kept, request)) => {
                            (parts, body) = request;
                            if !is_kept {
                                lease = self.renew(lease, &mut rest, exchange).await?;
                                talk = self.readdress(talk, &lease, &mut parts);
                            }
                            continue;
                        }
                        Err(failure) => failure,
                    }
                }
                (Ok(response), asked) => {
                    if let Some(asked) = asked {
                        asked.accepted(&mut lease);
                    }
                    let leads_on = replays && copy.as_mut().is_some_and(|copy| !copy.is_lost());
                    match judge(response, &lease, &rest, leads_on, exchange).await {
                        Ok(response) => {
                            trail.first_byte(took);
                            rest.served();
                            self.watch(&lease, None);
                            return Ok((response, lease));
                        }
                        Err(failure) => {
                            trail.last_try_failed(classify(&failure));
                            failure
                        }
                    }
                }
                (Err(Unanswered::NotSent(request, error)), _) => {
                    (parts, body) = request.into_parts();
                    if lease.reused {
                        trail.last_try_failed(classify(&OriginError::Stale.into()));
                        lease = self.renew(lease, &mut rest, exchange).await?;
                    } else {
                        let failure = failed(error.into(), &lease.form, trail);
                        self.watch(&lease, Some(&failure));
                        drop(lease);
                        (lease, rest) = self.next(rest, failure, exchange).await?;
                    }
                    talk = self.address(&lease, &mut parts);
                    continue;
                }
                (
                    Err(Unanswered::Failed(
                        failure @ Failure::Origin(OriginError::Empty | OriginError::Reset(_)),
                    )),
                    _,
                ) if may_be_stale => {
                    let Some(copy) = copy else {
                        return Err(rest.give_up(failure, trail));
                    };
                    (parts, body) = (copy.parts, Outgoing::empty());
                    trail.resend();
                    trail.last_try_failed(classify(&OriginError::Stale.into()));
                    lease = self.renew(lease, &mut rest, exchange).await?;
                    talk = self.address(&lease, &mut parts);
                    continue;
                }
                (Err(Unanswered::Failed(failure)), _) => {
                    let is_fin = matches!(failure, Failure::Origin(OriginError::Empty));
                    let silent = match heard {
                        Some(heard) if is_fin => Some(lease.heard.behind_fin(heard)),
                        heard => heard,
                    };
                    let failure = failed(failure, &lease.form, trail);
                    if lease.heard.bytes() != silent {
                        self.watch(&lease, Some(&failure));
                        return Err(rest.give_up(failure, trail));
                    }
                    failure
                }
            };
            self.watch(&lease, Some(&failure));
            let Some(copy) = copy.filter(|_| replays && rest.leads_on(&failure)) else {
                return Err(rest.give_up(failure, trail));
            };
            lease.task.abort();
            let Some(again) = copy.take_back(self, exchange).await else {
                return Err(rest.give_up(failure, trail));
            };
            (parts, body) = again;
            drop(lease);
            (lease, rest) = self.next(rest, failure, exchange).await?;
            talk = self.address(&lease, &mut parts);
            trail.resend();
        }
    }

    /// Writes the request as this hop is to get it, without what another was told of us.
    pub(super) fn address(
        &self,
        lease: &Lease,
        parts: &mut request::Parts,
    ) -> Option<Box<Introduction>> {
        headers::authorize(parts, None);
        headers::address(parts, &self.plan.target, &lease.form);
        Introduction::new(lease, parts)
    }

    /// The same for a new connection, which may lead by another hop: a talk goes on with the upstream that it was begun
    /// with alone.
    pub(super) fn readdress(
        &self,
        talk: Option<Box<Introduction>>,
        lease: &Lease,
        parts: &mut request::Parts,
    ) -> Option<Box<Introduction>> {
        match (talk, &lease.form) {
            (Some(talk), Form::Absolute { upstream, .. }) if talk.upstream == *upstream => {
                Some(talk)
            }
            _ => self.address(lease, parts),
        }
    }

    /// Whether a request that went out may go out once more, by its method and what it asks for.
    fn may_replay(&self, rest: &Rest, parts: &request::Parts) -> bool {
        let is_upgrade = self.wishes.upgrade.is_some();
        rest.has_next() && !is_upgrade && rest.retry().methods.contains(&parts.method)
    }

    /// The next hop, where `failure` of the one in use leads to it.
    async fn next(
        &self,
        rest: Box<Rest>,
        failure: Failure,
        exchange: &Exchange,
    ) -> Result<(Box<Lease>, Box<Rest>), Failure> {
        let (conn, rest) = rest.next(failure, exchange.trail()).await?;
        let lease = self.begin(conn, Some(rest.link()), exchange).await?;
        Ok((lease, rest))
    }

    /// The chain from its beginning, in place of a connection that is of no more use: it closes first, so that its place is
    /// the new one's.
    async fn renew(
        &self,
        lease: Box<Lease>,
        rest: &mut Box<Rest>,
        exchange: &Exchange,
    ) -> Result<Box<Lease>, Failure> {
        drop(lease);
        let (fresh, hops) = self.fresh(exchange).await?;
        if let Some(hops) = hops {
            *rest = hops;
        }
        Ok(fresh)
    }

    /// Sends the request, and gives its answer `limit` to begin, counted from the last byte of its body. One that has
    /// begun, or that could not be asked for again, has all the time that the policy gives it.
    async fn send_within(
        &self,
        limit: Duration,
        lease: &mut Lease,
        request: Request<Outgoing>,
        heard: Option<u64>,
        copy: &mut Copy,
    ) -> Result<Response<Incoming>, Unanswered> {
        let hears = lease.heard.clone();
        let sent = Instant::now();
        let impatience = async {
            let mut deadline = sent + limit;
            loop {
                sleep_until(deadline).await;
                let now = Instant::now();
                let since = sent.max(self.upload.last_progress());
                deadline = if self.upload.is_done() { since } else { now } + limit;
                if deadline > now {
                    continue;
                }
                if copy.is_lost() || hears.bytes() != heard {
                    return pending().await;
                }
                return OriginError::NoAnswer { after: limit };
            }
        };
        tokio::select! {
            biased;
            answer = self.send(lease, request, sent) => answer,
            late = impatience => Err(Unanswered::Failed(late.into())),
        }
    }
}

/// Whether an answer is one to pass on, or a failure: the upstream's own, or, where the request may be sent again, of a
/// status that the chain lists.
async fn judge(
    response: Response<Incoming>,
    lease: &Lease,
    rest: &Rest,
    leads_on: bool,
    exchange: &Exchange,
) -> Result<Response<Incoming>, Failure> {
    let status = response.status();
    let is_listed = leads_on && rest.goes_on_after_status(status.as_u16());
    let own = match refusal(&response, &lease.form) {
        Some(by) => Some(by.read(response, exchange.trail()).await),
        None if is_listed => None,
        None => return Ok(response),
    };
    Err(match own {
        Some(failure) if !is_listed || rest.leads_on(&failure) => failure,
        Some(_) | None => OriginError::Status(status.as_u16()).into(),
    })
}
