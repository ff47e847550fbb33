//! What is tried before a tunnel is granted. Where it fails, the answer to the CONNECT tells, which clients print; a failure
//! behind the 200 they would only tell as a connection that ended.

use std::io::Cursor;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, join};
use tokio_util::task::TaskTracker;

use crate::cause::Phase;
use crate::exchange::Trail;
use crate::failure::{Failure, classify};
use crate::net::socket::Socket;
use crate::route::{Dial, Plan};
use crate::tls::handshake::{HandshakeError, Reached, handshake};
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
    let conn = route.dial(plan, trail).await?;
    trail.enter(Phase::Tls);
    let socket = conn.socket;
    let io = join(
        Cursor::new(conn.early).chain(socket.clone()),
        socket.clone(),
    );
    match handshake(io, &plan.target.host, roots, plan.timeouts.hello).await {
        Ok(established) => {
            trail.certificate(&established.judgement);
            trail.shook_hands();
            tracker.spawn(established.close());
            Ok(())
        }
        Err(mut error) => {
            trail.handshake_failed(&error);
            // An upstream's acknowledgement says nothing of the target.
            let is_acknowledged = if conn.is_end_to_end {
                look(&socket, &mut error)
            } else {
                None
            };
            let failure = Failure::Handshake {
                server: plan.target.to_string(),
                error,
                is_acknowledged,
            };
            trail.last_try_failed(classify(&failure));
            Err(failure)
        }
    }
}

/// So many retransmissions make a loss by chance unlikely.
const AGAIN_AND_AGAIN: u32 = 2;

/// Asks the kernel what became of our ClientHello: whether it was acknowledged, where that can be told.
fn look(socket: &Socket, error: &mut HandshakeError) -> Option<bool> {
    let info = socket.tcp_info().ok()?;
    if let HandshakeError::TimedOut {
        reached: Reached::ClientHello,
        is_unacknowledged,
        ..
    } = error
    {
        *is_unacknowledged = info.unacked > 0 && info.retransmissions >= AGAIN_AND_AGAIN;
    }
    // The SYN counts as one. What was sent again counts as sent, and would have to be told apart.
    (info.retransmissions == 0).then_some(info.bytes_acked > info.bytes_sent)
}
