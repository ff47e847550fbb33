//! A request's body on its way to the origin, and what becomes of it.

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

use super::patience::Patience;
use crate::cause::Phase;
use crate::failure::{Failure, RequestError};
use crate::net::socket::Departure;
use crate::relay::Meter;

/// How long a body is held back for the origin's 100 before it is sent all the same (RFC 9110, section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A client's body on its way to the origin.
#[derive(Debug)]
pub struct Outgoing {
    body: Option<Incoming>,
    gate: Option<Gate>,
    meter: Arc<Meter>,
    upload: Arc<Upload>,
    patience: Patience,
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
    fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
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
    /// A client's body; at most `limit` may pass without a byte of it.
    pub fn new(body: Incoming, meter: Arc<Meter>, limit: Duration) -> (Self, Uploading) {
        let upload = Upload::new();
        let body = if body.is_end_stream() {
            upload.done();
            None
        } else {
            Some(body)
        };
        (
            Self {
                body,
                gate: None,
                meter,
                upload: upload.clone(),
                patience: Patience::new(limit),
            },
            Uploading(upload),
        )
    }

    /// An empty one, for a request that is sent once more.
    pub fn empty(meter: Arc<Meter>, upload: Arc<Upload>) -> Self {
        Self {
            body: None,
            gate: None,
            meter,
            upload,
            patience: Patience::new(Duration::MAX),
        }
    }

    /// Holds the body back until the sender that is returned is used; where it is dropped first, for good.
    pub fn hold(&mut self) -> oneshot::Sender<()> {
        let (open, opened) = oneshot::channel();
        self.gate = Some(Gate::Waiting {
            opened,
            patience: Box::pin(sleep(CONTINUE_WAIT)),
        });
        open
    }

    /// Whether there is a body.
    pub fn is_empty(&self) -> bool {
        self.body.is_none()
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if let Some(Gate::Waiting { opened, patience }) = &mut this.gate {
            this.gate = match Pin::new(opened).poll(cx) {
                Poll::Ready(Ok(())) => None,
                Poll::Ready(Err(_)) => Some(Gate::Withheld),
                Poll::Pending => {
                    ready!(patience.as_mut().poll(cx));
                    None
                }
            };
        }
        if let Some(Gate::Withheld) = &this.gate {
            ready!(this.upload.is_over.poll(cx));
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
        }
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.patience.renew();
                this.upload.progress();
                if let Some(data) = frame.data_ref() {
                    this.meter.moved(data.len() as u64, 0);
                }
                if this.body.as_ref().is_some_and(Body::is_end_stream) || frame.is_trailers() {
                    this.upload.done();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.upload.ended(upload_end(&error));
                Poll::Ready(Some(Err(io::Error::other(error))))
            }
            Poll::Ready(None) => {
                this.upload.done();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(this.patience.poll(cx));
                this.upload.ended(UploadEnd::Stalled(this.patience.limit));
                Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
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
