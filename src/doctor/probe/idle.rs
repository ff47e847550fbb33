//! Connections that are left alone for a while.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use super::http::{authority, head};
use super::{Doctor, HELLO, Io, PAUSE, whole};
use crate::doctor::facts::Spoken;
use crate::doctor::idle::{End, Silence};
use crate::failure::{Failure, chain};
use crate::route::{Dial, Purpose};

/// So many connections are left alone at once, each longer than the one before by the same.
const STEPS: u32 = 8;

impl Doctor<'_> {
    /// Leaves connections by a way alone for up to `longest`.
    pub(super) async fn leave_alone(
        &self,
        dial: &Arc<dyn Dial>,
        longest: Duration,
    ) -> Vec<Silence> {
        let target = &self.plan.target;
        (self.progress)(&format!(
            "{STEPS} connections to {target}, the last of them silent for {}s",
            longest.as_secs()
        ));
        let tries = (1..=STEPS).map(|step| async move {
            sleep(PAUSE * (step - 1)).await;
            self.leave_one_alone(dial, longest * step / STEPS).await
        });
        join_all(tries).await
    }

    async fn leave_one_alone(&self, dial: &Arc<dyn Dial>, long: Duration) -> Silence {
        let mut io = match self.open(dial).await {
            Ok(io) => io,
            Err(failure) => {
                return Silence {
                    seconds: long.as_secs_f64(),
                    end: End::Failed,
                    message: Some(chain(&failure)),
                };
            }
        };
        let of = |since: Instant, end: End| Silence {
            seconds: since.elapsed().as_secs_f64(),
            end,
            message: None,
        };
        let since = Instant::now();
        let mut byte = [0; 1];
        match timeout(long, io.read(&mut byte)).await {
            Err(_) => {}
            // A server that says something now says farewell.
            Ok(Ok(_)) => return of(since, End::Closed),
            Ok(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                return of(since, End::Closed);
            }
            Ok(Err(_)) => return of(since, End::Reset),
        }
        let silent = of(since, End::Alive);
        let talk = async {
            let host = authority(&self.plan.target, self.plan.spoken);
            io.write_all(head(&host, &Method::HEAD, "/").as_bytes())
                .await?;
            io.flush().await?;
            io.read(&mut byte).await
        };
        let end = match timeout(HELLO * 2, talk).await {
            Ok(Ok(1..)) => End::Alive,
            Ok(Ok(0)) => End::Closed,
            Ok(Err(_)) => End::Reset,
            Err(_) => End::Silent,
        };
        Silence { end, ..silent }
    }

    /// A connection to the target, ready for a request.
    pub(super) async fn open(&self, dial: &Arc<dyn Dial>) -> Result<Box<dyn Io>, Failure> {
        if self.plan.spoken == Spoken::Tls {
            let shaken = self.shake(dial, &self.plan.target).await;
            return shaken
                .map(|shaken| shaken.stream)
                .map_err(|failed| failed.0);
        }
        let conn = self.dial(dial, &self.plan.target, Purpose::Tunnel).await?;
        Ok(whole(conn.wire, conn.early))
    }
}
