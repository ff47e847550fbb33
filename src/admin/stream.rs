//! Records as they come, as server-sent events. Who reads too slowly misses records, and is told how many.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{sleep, timeout};

use crate::observe::board::{BEHIND, Board, Followed};
use crate::observe::json;
use crate::observe::kept::Filter;
use crate::record::Record;

/// A silent stream says so often that it is there.
const BREATH: Duration = Duration::from_secs(15);

/// After records that were told, others gather for so long: to tell each by itself would cost a busy proxy more than to serve it.
const GATHER: Duration = Duration::from_millis(100);

struct Follower {
    records: Receiver<Arc<Followed>>,
    board: Arc<Board>,
    filter: Filter,
    /// Something was told just now.
    has_told: bool,
}

impl Follower {
    /// The events that have come, once there are some; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        if std::mem::take(&mut self.has_told) {
            sleep(GATHER).await;
        }
        let mut events = String::new();
        while events.is_empty() {
            match timeout(BREATH, self.records.recv()).await {
                Err(_) => return Some(":\n\n".to_owned()),
                Ok(Ok(record)) => self.tell(&record, &mut events),
                Ok(Err(RecvError::Lagged(count))) => self.miss(count, &mut events),
                Ok(Err(RecvError::Closed)) => return None,
            }
            // Others may come meanwhile without end.
            for _ in 0..BEHIND {
                match self.records.try_recv() {
                    Ok(record) => self.tell(&record, &mut events),
                    Err(TryRecvError::Lagged(count)) => self.miss(count, &mut events),
                    // The end is met by the next look.
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
        }
        self.has_told = true;
        Some(events)
    }

    fn tell(&self, followed: &Followed, events: &mut String) {
        if self.filter.admits(&followed.record) {
            events.push_str(followed.text_by(event));
        }
    }

    fn miss(&self, count: u64, events: &mut String) {
        self.board.missed(count);
        let _ = write!(events, "event: dropped\ndata: {{\"dropped\":{count}}}\n\n");
    }
}

/// An event of the stream; a line of JSON has no end inside.
fn event(record: &Record) -> String {
    line(record).map_or_else(String::new, |line| {
        format!("event: record\nid: {}\ndata: {line}\n\n", record.id)
    })
}

/// A record as JSON.
pub(super) fn line(record: &Record) -> Option<String> {
    let mut line = Vec::with_capacity(1024);
    let written = json::write(record, &mut line);
    if let Err(error) = &written {
        tracing::error!(%error, "a record could not be written as JSON");
    }
    written.ok()?;
    String::from_utf8(line).ok()
}

/// The stream of those that a filter admits.
pub(super) fn follow(board: &Arc<Board>, filter: Filter) -> Response {
    let follower = Follower {
        records: board.follow(),
        board: board.clone(),
        filter,
        has_told: false,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        let events = follower.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(events)), follower))
    });
    let fields = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (fields, Body::from_stream(events)).into_response()
}
