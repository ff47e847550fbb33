//! An answer's body on its way to the client: counted, watched for progress, never gathered.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::Caller;
use super::patience::Patience;
use super::pool::{Lease, Pool};
use super::upload::{Uploading, is_malformed};
use crate::exchange::Exchange;
use crate::failure::{Failure, MalformedAnswer, OriginError, chain};
use crate::net::socket::reset_behind;
use crate::relay::Meter;

/// The body of an answer to the client.
#[derive(Debug)]
pub enum Answer {
    /// One of ours.
    Whole(Option<Bytes>, Open),
    /// The origin's.
    Passing(Box<Passing>, Open),
}

/// An origin's body on its way to the client. It owns the exchange and ends it.
#[derive(Debug)]
pub struct Passing {
    body: Incoming,
    exchange: Option<Exchange>,
    lease: Option<(Box<Lease>, Arc<Pool>)>,
    upload: Uploading,
    meter: Arc<Meter>,
    caller: Arc<Caller>,
    patience: Patience,
    /// The end of the connection is the end of the body, so only a reset can say that it was cut.
    ends_by_close: bool,
}

impl Passing {
    /// An answer's body; with its last byte `lease` goes back to `pool` and `exchange` ends.
    pub fn new(
        body: Incoming,
        exchange: Exchange,
        lease: (Box<Lease>, Arc<Pool>),
        upload: Uploading,
        caller: Arc<Caller>,
        limit: Duration,
        ends_by_close: bool,
    ) -> Self {
        let meter = exchange.meter().clone();
        let patience = Patience::new(limit);
        Self {
            body,
            exchange: Some(exchange),
            lease: Some(lease),
            upload,
            meter,
            caller,
            patience,
            ends_by_close,
        }
    }

    /// Ends an exchange whose answer has no body.
    pub fn finish(mut self) {
        self.complete();
    }

    /// Whether there is no body.
    pub fn is_empty(&self) -> bool {
        self.body.is_end_stream()
    }

    fn complete(&mut self) {
        if let Some((lease, pool)) = self.lease.take()
            && self.upload.is_done()
        {
            pool.give_back(lease);
        }
        if let Some(exchange) = self.exchange.take() {
            exchange.finish_answered();
        }
    }

    fn fail(&mut self, failure: &Failure) -> io::Error {
        let is_reset = matches!(failure, Failure::Origin(OriginError::BodyReset(_)));
        if self.ends_by_close || is_reset {
            self.caller.reset();
        }
        self.lease = None;
        if let Some(exchange) = self.exchange.take() {
            exchange.fail(failure);
        }
        io::Error::other(chain(failure))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                if let Some(data) = frame.data_ref() {
                    self.meter.moved(0, data.len() as u64);
                }
                // Behind trailers nothing is asked for any more.
                if self.body.is_end_stream() || frame.is_trailers() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                // A client's body that ends early takes the origin's connection with it.
                let failure = match self.upload.end() {
                    Some(end) => end.failure(),
                    None => body_error(error).into(),
                };
                Poll::Ready(Some(Err(self.fail(&failure))))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let after = self.patience.limit;
                ready!(self.patience.poll(cx));
                let failure = OriginError::BodyStalled { after }.into();
                Poll::Ready(Some(Err(self.fail(&failure))))
            }
        }
    }
}

/// Why an answer's body could not be read on.
fn body_error(error: hyper::Error) -> OriginError {
    if let Some(reset) = reset_behind(&error) {
        OriginError::BodyReset(reset)
    } else if is_malformed(&error) {
        OriginError::Malformed(MalformedAnswer::Parse(error))
    } else {
        OriginError::BodyCut
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(bytes, _) => Poll::Ready(
                bytes
                    .take()
                    .filter(|b| !b.is_empty())
                    .map(|bytes| Ok(Frame::data(bytes))),
            ),
            Self::Passing(passing, _) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Passing(passing, _) => passing.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Passing(passing, _) => passing.body.size_hint(),
        }
    }
}

/// The requests on one client's connection.
#[derive(Debug, Default)]
pub struct Requests {
    unanswered: AtomicU64,
    unread: AtomicU64,
    begun: AtomicU64,
    is_answering: AtomicBool,
    /// Who waits until no body is read any more.
    waits: AtomicWaker,
}

impl Requests {
    /// Whether one is open: its answer is not out, or its body not read to its end.
    pub fn is_open(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) > 0 || self.unread.load(Ordering::Relaxed) > 0
    }

    /// The same, for whoever waits for the next one: where only a body is read on, in another task, its end wakes.
    pub fn stays_open(&self, cx: &Context<'_>) -> bool {
        if self.unanswered.load(Ordering::Relaxed) > 0 {
            return true;
        }
        if self.unread.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.waits.register(cx.waker());
        self.unread.load(Ordering::Acquire) > 0
    }

    /// How many there were.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether bytes of an answer may still be written.
    pub fn is_answering(&self) -> bool {
        self.is_answering.load(Ordering::Relaxed)
    }

    /// Notes that all that was to be written is written.
    pub fn flushed(&self) {
        if self.unanswered.load(Ordering::Relaxed) == 0 {
            self.is_answering.store(false, Ordering::Relaxed);
        }
    }
}

/// Held while a request waits for its answer; once it is dropped, nothing more will be written for it.
#[derive(Debug)]
pub struct Open(Arc<Requests>);

impl Open {
    /// Counts one more request.
    pub fn new(requests: &Arc<Requests>) -> Self {
        requests.unanswered.fetch_add(1, Ordering::Relaxed);
        requests.begun.fetch_add(1, Ordering::Relaxed);
        requests.is_answering.store(true, Ordering::Relaxed);
        Self(requests.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Held while a request's body is read, which may go on behind its answer.
#[derive(Debug)]
pub struct Reading(Arc<Requests>);

impl Reading {
    /// Counts one more body.
    pub fn new(requests: &Arc<Requests>) -> Self {
        requests.unread.fetch_add(1, Ordering::Relaxed);
        Self(requests.clone())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.unread.fetch_sub(1, Ordering::Release);
        self.0.waits.wake();
    }
}
