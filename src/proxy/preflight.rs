//! What is tried before a tunnel is granted. Where it fails, the answer to the CONNECT tells, which clients print; a failure
//! behind the 200 they would only tell as a connection that ended.

use std::io::Cursor;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, join};
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

/// Shakes hands with the target over a connection of its own, opened as the tunnel's will be. That connection ends in order;
/// nothing waits for its end.
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
    let Conn {
        socket,
        early,
        is_end_to_end,
        ..
    } = route.dial(plan, trail).await?;
    trail.enter(Phase::Tls);
    let connected = Instant::now();
    let host = &plan.target.host;
    let io = join(Cursor::new(early).chain(socket.clone()), socket.clone());
    match handshake(io, host, roots, plan.timeouts.hello).await {
        Ok(established) => {
            trail.shook_hands(&established.judgement);
            tracker.spawn(established.close());
            Ok(())
        }
        Err(error) => {
            let failure = Failure::Handshake(Box::new(Handshake {
                server: plan.target.to_string(),
                server_name: host.name().map(str::to_owned),
                error,
                tcp: socket.tcp_info().ok(),
                since_connect: connected.elapsed(),
                is_end_to_end,
            }));
            trail.last_try_failed(classify(&failure));
            Err(failure)
        }
    }
}
