//! Who we are, told to an upstream that asks for it behind a plain request.

use std::sync::Arc;

use http::{Response, request};
use hyper::body::Incoming;

use super::errand::{Errand, by_upstream};
use super::forward::reply_of;
use super::headers;
use super::pool::Lease;
use super::replay::Copy;
use super::upload::Outgoing;
use crate::exchange::Exchange;
use crate::failure::{Failure, classify};
use crate::net::upstream::auth::{AuthError, Talk};
use crate::net::upstream::{Reply, UpstreamError};
use crate::route::Form;
use crate::secret::Secret;

/// So much of a body is kept to be sent again behind a 407, in bytes.
pub(super) const KEPT: usize = 64 * 1024;

/// A plain request's talk with the upstream that it goes to.
pub(super) struct Introduction {
    /// The upstream.
    pub(super) upstream: Arc<str>,
    talk: Talk,
    /// What is to be said, once something was said.
    answer: Option<Secret>,
}

impl Introduction {
    /// For a request that is written as it will be sent; `None` where it goes to no upstream.
    pub(super) fn new(lease: &Lease, parts: &request::Parts) -> Option<Box<Self>> {
        let Form::Absolute {
            upstream,
            authenticator,
        } = &lease.form
        else {
            return None;
        };
        let uri = match authenticator {
            Some(_) => parts.uri.to_string(),
            None => String::new(),
        };
        Some(Box::new(Self {
            upstream: upstream.clone(),
            talk: Talk::new(authenticator.clone(), parts.method.clone(), uri),
            answer: None,
        }))
    }

    /// Whether there is anything to be said, so that the request may have to be sent again.
    pub(super) fn can_answer(&self) -> bool {
        self.talk.can_answer()
    }

    /// Writes into the request what the upstream is to be told.
    pub(super) async fn introduce(&mut self, lease: &Lease, parts: &mut request::Parts) {
        if !self.talk.can_answer() {
            return;
        }
        let said = match self.answer.take() {
            Some(answer) => Some(answer),
            None if lease.knows_us => None,
            None => self.talk.first().await,
        };
        headers::authorize(parts, said.as_ref());
    }

    /// Notes that the upstream let the request pass.
    pub(super) fn accepted(&self, lease: &mut Lease) {
        self.talk.accepted();
        lease.knows_us |= self.talk.is_of_connection();
    }

    /// What is to be sent behind a 407, and whether on the same connection. `copy` is the request.
    ///
    /// # Errors
    /// Where there is nothing to say, and then the copy is left, or where the request is gone.
    pub(super) async fn answer(
        &mut self,
        response: Response<Incoming>,
        lease: &mut Lease,
        copy: &mut Option<Box<Copy>>,
        errand: &Errand<'_>,
        exchange: &Exchange,
    ) -> Result<(bool, (request::Parts, Outgoing)), Failure> {
        let (reply, is_whole) = reply_of(response).await;
        lease.knows_us = false;
        let said = match self.talk.answer(&reply).await {
            Ok(said) => said,
            Err(why) => return Err(self.refused(reply, why, exchange)),
        };
        exchange.trail().note(Talk::NOTE);
        let is_sent = errand.upload.is_done();
        if !is_sent {
            lease.task.abort();
        }
        let back = match copy.take() {
            Some(copy) => copy.take_back(errand, exchange).await,
            None => None,
        };
        let Some((parts, body)) = back else {
            self.talk.accepted();
            return Err(self.refused(reply, AuthError::BodyGone, exchange));
        };
        let is_kept = is_whole && is_sent && lease.sender.ready().await.is_ok();
        lease.reused = true;
        self.answer = if !is_kept && self.talk.is_bound() {
            match self.talk.again().await {
                Ok(said) => said,
                Err(why) => return Err(self.refused(reply, why, exchange)),
            }
        } else {
            Some(said)
        };
        Ok((is_kept, (parts, body)))
    }

    fn refused(&self, reply: Reply, why: AuthError, exchange: &Exchange) -> Failure {
        exchange.trail().replied(&reply);
        let reply = Box::new(reply);
        let failure = by_upstream(&self.upstream, UpstreamError::Unauthorized { reply, why });
        exchange.trail().last_try_failed(classify(&failure));
        failure
    }
}
