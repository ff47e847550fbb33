//! What is tried before a tunnel is granted. Where it fails, the answer to the CONNECT tells, which clients print; a failure
//! behind the 200 they would only tell as a connection that ended.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, join, split};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::cause::Phase;
use crate::exchange::Trail;
use crate::failure::handshake::Handshake;
use crate::failure::{Failure, classify};
use crate::route::{Conn, Dial, Plan};
use crate::tls::handshake::handshake;
use crate::tls::trust::Roots;

/// The word in the record's notes.
const NOTE: &str = "preflight";

/// Shakes hands with the target over a connection of its own, opened as the tunnel's will be; where that fails on one hop of
/// a chain, over the next. That connection ends in order; nothing waits for its end.
///
/// # Errors
/// Whatever keeps the way from being opened, and [`Failure::Handshake`].
pub(super) async fn tls(
    route: &Arc<dyn Dial>,
    plan: &Plan,
    roots: &Arc<Roots>,
    trail: &Trail,
    tracker: &TaskTracker,
) -> Result<(), Failure> {
    trail.note(NOTE);
    let mut conn = route.dial(plan, trail).await?;
    loop {
        let rest = conn.rest.take();
        let limit = (rest.as_ref()).map_or(plan.timeouts.hello, |rest| rest.hello_limit());
        trail.enter(Phase::Tls);
        let Err(failure) = shake(conn, plan, roots, limit, trail, tracker).await else {
            if let Some(rest) = rest {
                rest.served();
            }
            return Ok(());
        };
        trail.last_try_failed(classify(&failure));
        match rest {
            Some(rest) => conn = rest.go_on(failure, trail).await?,
            None => return Err(failure),
        }
    }
}

/// Shakes hands over a connection, within `limit`.
async fn shake(
    conn: Conn,
    plan: &Plan,
    roots: &Arc<Roots>,
    limit: Duration,
    trail: &Trail,
    tracker: &TaskTracker,
) -> Result<(), Failure> {
    let connected = Instant::now();
    let host = &plan.target.host;
    let carrier = conn.wire.carrier().clone();
    let (reading, writing) = split(conn.wire);
    let io = join(Cursor::new(conn.early).chain(reading), writing);
    match handshake(io, host, roots, limit).await {
        Ok(established) => {
            trail.shook_hands(&established.judgement);
            tracker.spawn(established.close());
            Ok(())
        }
        Err(error) => Err(Failure::Handshake(Box::new(Handshake {
            server: plan.target.to_string(),
            server_name: host.name().map(str::to_owned),
            error,
            tcp: carrier.tcp_info().ok(),
            since_connect: connected.elapsed(),
            is_end_to_end: conn.is_end_to_end,
        }))),
    }
}
