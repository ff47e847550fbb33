//! A request's body on its way to the origin, and what becomes of it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

use super::answer::{Reading, Requests};
use super::patience::Patience;
use crate::cause::Phase;
use crate::failure::{Failure, RequestError};
use crate::net::socket::Departure;
use crate::relay::Meter;

/// How long a body is held back for the origin's 100 before it is sent all the same (RFC 9110, section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A client's body on its way to the origin; nothing where there is none, as with most requests.
#[derive(Debug)]
pub struct Outgoing(Option<Box<Sending>>);

#[derive(Debug)]
struct Sending {
    /// Until it is given up.
    body: Option<Inbound>,
    gate: Option<Gate>,
    meter: Arc<Meter>,
    upload: Arc<Upload>,
    patience: Patience,
    /// What was read before, to be sent again.
    rewound: VecDeque<Bytes>,
    kept: Option<Box<Kept>>,
}

/// A client's body as it comes: its bytes are no head, even where the answer is out already.
#[derive(Debug)]
struct Inbound {
    body: Incoming,
    _reading: Reading,
}

impl Inbound {
    fn is_read(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// What has passed of a body that may have to be sent again.
#[derive(Debug)]
struct Kept {
    data: VecDeque<Bytes>,
    /// Nothing too much has passed; what is kept is all.
    room: usize,
    back: oneshot::Sender<Rewound>,
}

/// A body that was given up, as it was before its first byte.
#[derive(Debug)]
pub struct Rewound {
    data: VecDeque<Bytes>,
    body: Inbound,
}

/// What became of a client's body, for whoever waits for the answer.
#[derive(Debug)]
pub struct Upload {
    started: Instant,
    /// Milliseconds from the start to the last byte.
    last: AtomicU64,
    end: Mutex<Option<UploadEnd>>,
    is_done: AtomicBool,
    /// Nobody passes the answer on any more.
    is_over: Sign,
    /// The origin sends interim answers without end.
    rambles: Sign,
}

/// Something that comes to be so once, and one task that waits for it. A token that can be cancelled would do, and costs
/// each request its making.
#[derive(Debug, Default)]
struct Sign {
    is_set: AtomicBool,
    waits: AtomicWaker,
}

impl Sign {
    fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        self.waits.wake();
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        self.waits.register(cx.waker());
        if self.is_set.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Held while the answer is waited for or passed on: a body that is still withheld then is given up.
#[derive(Debug)]
pub struct Uploading(Arc<Upload>);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.is_over.set();
    }
}

impl std::ops::Deref for Uploading {
    type Target = Arc<Upload>;

    fn deref(&self) -> &Arc<Upload> {
        &self.0
    }
}

/// Why a client's body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadEnd {
    /// The client left.
    Gone,
    /// Nothing came for the limit.
    Stalled(Duration),
    /// It is no body.
    Malformed,
}

impl UploadEnd {
    /// What that means for the request.
    pub fn failure(self) -> Failure {
        match self {
            Self::Gone => Failure::ClientGone {
                phase: Phase::Http,
                how: Departure::Fin,
            },
            Self::Stalled(after) => Failure::RequestBodyStalled { after },
            Self::Malformed => RequestError::Chunks.into(),
        }
    }
}

impl Upload {
    fn since(started: Instant) -> Arc<Self> {
        Arc::new(Self {
            started,
            last: AtomicU64::new(0),
            end: Mutex::new(None),
            is_done: AtomicBool::new(false),
            is_over: Sign::default(),
            rambles: Sign::default(),
        })
    }

    /// When the last byte passed; the start where none did.
    pub fn last_progress(&self) -> Instant {
        self.started + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Why it ended early, if it did.
    pub fn end(&self) -> Option<UploadEnd> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was sent whole.
    pub fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Relaxed)
    }

    /// Notes that the origin sends interim answers without end.
    pub fn ramble(&self) {
        self.rambles.set();
    }

    /// Waits until the origin does so.
    pub async fn rambling(&self) {
        poll_fn(|cx| self.rambles.poll(cx)).await;
    }

    fn progress(&self) {
        let passed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(passed, Ordering::Relaxed);
    }

    fn done(&self) {
        self.is_done.store(true, Ordering::Relaxed);
    }

    fn ended(&self, end: UploadEnd) {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(end);
    }
}

/// Holds a body back until the origin says 100, or does not say so for a while.
#[derive(Debug)]
enum Gate {
    Waiting {
        opened: oneshot::Receiver<()>,
        patience: Pin<Box<Sleep>>,
    },
    /// The answer came without a 100: the body is not asked for, and the connection of no more use behind the answer.
    Withheld,
}

impl Outgoing {
    /// A client's body, one of `requests`; at most `limit` may pass without a byte of it.
    pub fn new(
        body: Incoming,
        requests: &Arc<Requests>,
        meter: Arc<Meter>,
        limit: Duration,
    ) -> (Self, Uploading) {
        let upload = Upload::since(meter.begun());
        if body.is_end_stream() {
            upload.done();
            return (Self::empty(), Uploading(upload));
        }
        let body = Inbound {
            body,
            _reading: Reading::new(requests),
        };
        let sending = Sending::new(body, VecDeque::new(), meter, upload.clone(), limit);
        (Self(Some(Box::new(sending))), Uploading(upload))
    }

    /// None.
    pub fn empty() -> Self {
        Self(None)
    }

    /// A body that was given up, from its beginning.
    pub fn again(
        rewound: Rewound,
        meter: Arc<Meter>,
        upload: Arc<Upload>,
        limit: Duration,
    ) -> Self {
        upload.is_done.store(false, Ordering::Relaxed);
        let sending = Sending::new(rewound.body, rewound.data, meter, upload, limit);
        Self(Some(Box::new(sending)))
    }

    /// Keeps what passes, so that the body can be sent again: it comes back by the receiver when it is given up, unless more
    /// than `room` bytes have passed or it has failed. Nothing where there is no body.
    pub fn keep(&mut self, room: usize) -> Option<oneshot::Receiver<Rewound>> {
        let sending = self.0.as_mut()?;
        let (back, receiver) = oneshot::channel();
        sending.kept = Some(Box::new(Kept {
            data: VecDeque::new(),
            room,
            back,
        }));
        Some(receiver)
    }

    /// Holds the body back until the sender that is returned is used; where it is dropped first, for good. Nothing where
    /// there is no body.
    pub fn hold(&mut self) -> Option<oneshot::Sender<()>> {
        let sending = self.0.as_mut()?;
        let (open, opened) = oneshot::channel();
        sending.gate = Some(Gate::Waiting {
            opened,
            patience: Box::pin(sleep(CONTINUE_WAIT)),
        });
        Some(open)
    }

    /// Whether there is no body.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Sending {
    fn new(
        body: Inbound,
        rewound: VecDeque<Bytes>,
        meter: Arc<Meter>,
        upload: Arc<Upload>,
        limit: Duration,
    ) -> Self {
        Self {
            body: Some(body),
            gate: None,
            meter,
            upload,
            patience: Patience::new(limit),
            rewound,
            kept: None,
        }
    }

    fn is_read(&self) -> bool {
        self.rewound.is_empty() && self.body.as_ref().is_none_or(Inbound::is_read)
    }

    fn pass(&mut self, data: &Bytes) {
        let Some(kept) = &mut self.kept else { return };
        if kept.back.is_closed() {
            // Nobody wants it any more.
            self.kept = None;
            return;
        }
        match kept.room.checked_sub(data.len()) {
            Some(room) => {
                kept.room = room;
                kept.data.push_back(data.clone());
            }
            None => self.kept = None,
        }
    }

    /// What was read before, part by part.
    fn pass_again(&mut self) -> Option<Bytes> {
        let data = self.rewound.pop_front()?;
        self.pass(&data);
        if self.is_read() {
            self.upload.done();
        }
        Some(data)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(Gate::Waiting { opened, patience }) = &mut self.gate {
            self.gate = match Pin::new(opened).poll(cx) {
                Poll::Ready(Ok(())) => None,
                Poll::Ready(Err(_)) => Some(Gate::Withheld),
                Poll::Pending => {
                    ready!(patience.as_mut().poll(cx));
                    None
                }
            };
        }
        if let Some(Gate::Withheld) = &self.gate {
            ready!(self.upload.is_over.poll(cx));
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
        }
        if let Some(data) = self.pass_again() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(inbound) = &mut self.body else {
            return Poll::Ready(None);
        };
        match Pin::new(&mut inbound.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.pass(data);
                } else {
                    self.kept = None;
                }
                self.patience.renew();
                self.upload.progress();
                if let Some(data) = frame.data_ref() {
                    self.meter.moved(data.len() as u64, 0);
                }
                if self.body.as_ref().is_some_and(Inbound::is_read) || frame.is_trailers() {
                    self.upload.done();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.kept = None;
                self.upload.ended(upload_end(&error));
                Poll::Ready(Some(Err(io::Error::other(error))))
            }
            Poll::Ready(None) => {
                self.upload.done();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.patience.poll(cx));
                self.kept = None;
                self.upload.ended(UploadEnd::Stalled(self.patience.limit));
                Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.body.as_ref();
        let hint = body.map_or(SizeHint::with_exact(0), |inbound| inbound.body.size_hint());
        if self.rewound.is_empty() {
            return hint;
        }
        let before: usize = self.rewound.iter().map(Bytes::len).sum();
        match hint.exact() {
            Some(exact) => SizeHint::with_exact(exact + before as u64),
            None => hint,
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else {
            return;
        };
        if let Some(body) = self.body.take() {
            let mut data = kept.data;
            data.append(&mut self.rewound);
            // Nobody may want it.
            let _ = kept.back.send(Rewound { data, body });
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().0 {
            None => Poll::Ready(None),
            Some(sending) => sending.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|sending| sending.is_read())
    }

    fn size_hint(&self) -> SizeHint {
        let none = SizeHint::with_exact(0);
        self.0.as_ref().map_or(none, |sending| sending.size_hint())
    }
}

/// Why a client's body could not be read on.
fn upload_end(error: &hyper::Error) -> UploadEnd {
    if is_malformed(error) {
        UploadEnd::Malformed
    } else {
        UploadEnd::Gone
    }
}

/// Whether a body is wrong in itself: only what hyper finds so is invalid, whatever else happens to its connection is not.
pub(super) fn is_malformed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    matches!(
        source.map(io::Error::kind),
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
    )
}
