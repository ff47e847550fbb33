//! What an HTTP proxy is asked for tunnels on: a connection of its own, or one of HTTP/2 that others share.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use tokio_util::task::TaskTracker;

use super::{Link, Opened};
use crate::net::places::Held;
use crate::net::upstream::http2::{Session, Turn};
use crate::net::upstream::{self, UpstreamError};
use crate::net::wire::Wire;
use crate::secret::Secret;
use crate::target::Target;

/// What is asked for.
pub(super) struct Ask<'a> {
    pub(super) target: &'a Target,
    pub(super) authorization: Option<&'a Secret>,
    pub(super) via: Option<&'a str>,
    pub(super) limit: Duration,
}

/// Where it is asked.
pub(super) enum Line {
    /// HTTP/1.1: the connection becomes the tunnel.
    One(Link),
    /// HTTP/2: a stream of it does.
    Two {
        session: Session,
        /// The leave to ask for a tunnel, until there is one.
        turn: Option<Turn>,
        /// It stood before.
        is_shared: bool,
    },
}

impl Line {
    pub(super) async fn ask(&mut self, ask: Ask<'_>) -> Result<Opened, UpstreamError> {
        let Ask {
            target,
            authorization,
            via,
            limit,
        } = ask;
        match self {
            Self::One(link) => {
                let wire = &mut link.wire;
                let opened = upstream::open(wire, target, authorization, via, limit).await?;
                let carrier = link.wire.carrier().clone();
                // The line is of no more use to whoever holds it.
                let wire = std::mem::replace(&mut link.wire, Wire::Tcp(carrier));
                Ok((wire, opened.early, std::mem::take(&mut link.held)))
            }
            Self::Two { session, turn, .. } => {
                let opened = session.open(target, authorization, via, limit).await?;
                let wire = Wire::inside(opened.counted(turn.take()), session.socket().clone());
                // The connection has its place, not each of its tunnels.
                Ok((wire, Bytes::new(), Held::default()))
            }
        }
    }

    /// Whether it stood before it was asked.
    pub(super) fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::Two {
                is_shared: true,
                ..
            }
        )
    }

    /// Whether nothing can be asked on it behind this error, and nothing was done of what was asked.
    pub(super) fn is_spent_by(&self, error: &UpstreamError) -> bool {
        match (self, error) {
            (
                _,
                UpstreamError::Closed | UpstreamError::Reset { .. } | UpstreamError::GoAway { .. },
            ) => true,
            (Self::Two { .. }, UpstreamError::Stream { reason }) => reason == "REFUSED_STREAM",
            // A connection that died in silence.
            (Self::Two { .. }, UpstreamError::NoReply { .. } | UpstreamError::Io { .. }) => true,
            _ => false,
        }
    }
}

/// Connections of HTTP/2 to one upstream, by the worker that runs them.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_worker: Mutex<HashMap<ThreadId, Vec<Session>>>,
    tracker: TaskTracker,
}

impl Sessions {
    fn list(&self) -> MutexGuard<'_, HashMap<ThreadId, Vec<Session>>> {
        self.by_worker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One of this worker's that takes another tunnel, and the leave to ask for it.
    pub(super) fn find(&self) -> Option<(Session, Turn)> {
        let list = self.list();
        let own = list.get(&thread::current().id())?;
        own.iter()
            .find_map(|session| Some((session.clone(), session.turn()?)))
    }

    /// Runs a connection on this worker, until it has carried nothing for `idle`.
    pub(super) fn run(
        self: &Arc<Self>,
        session: &Session,
        connection: Connection<Wire, Bytes>,
        idle: Duration,
    ) {
        // It holds neither the session nor the list: with the last tunnel of a policy that is no more it ends.
        let list = Arc::downgrade(self);
        let load = session.load().clone();
        self.tracker.spawn(async move {
            let forget = || {
                load.end();
                if let Some(list) = list.upgrade() {
                    list.forget(|session| load.is_of(session));
                }
            };
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = load.idle(idle) => {
                    // Nobody has it any more, so that it takes its leave by itself.
                    forget();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an HTTP/2 connection to an upstream ended");
            }
            forget();
        });
    }

    /// Offers a connection of this worker to others: only once the upstream has answered on it, and so has said how many
    /// tunnels it takes.
    pub(super) fn offer(&self, session: &Session) {
        let mut list = self.list();
        let own = list.entry(thread::current().id()).or_default();
        let is_known = own.iter().any(|known| session.load().is_of(known));
        if !is_known && !session.load().is_over() {
            own.push(session.clone());
        }
    }

    /// Offers a connection no more.
    pub(super) fn remove(&self, session: &Session) {
        self.forget(|known| session.load().is_of(known));
    }

    fn forget(&self, is_meant: impl Fn(&Session) -> bool) {
        self.list().retain(|_, own| {
            own.retain(|session| !is_meant(session));
            !own.is_empty()
        });
    }
}
