//! Connections that are left alone for a while.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use super::http::Wanted;
use super::{Doctor, Io, PAUSE, Plan};
use crate::doctor::facts::Spoken;
use crate::doctor::idle::{End, Silence};
use crate::failure::{Failure, chain};
use crate::route::{Dial, Form};

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
        // Without a silence first: whoever does not answer then is not tired of it.
        let at_once = self.leave_one_alone(dial, Duration::ZERO).await;
        if at_once.end != End::Alive {
            let message = at_once
                .message
                .or(Some("it did not answer at once".to_owned()));
            return vec![Silence {
                end: End::Failed,
                message,
                ..at_once
            }];
        }
        let tries = (1..=STEPS).map(|step| async move {
            sleep(PAUSE * (step - 1)).await;
            self.leave_one_alone(dial, longest * step / STEPS).await
        });
        join_all(tries).await
    }

    async fn leave_one_alone(&self, dial: &Arc<dyn Dial>, long: Duration) -> Silence {
        let silence = |seconds: Duration, end: End| Silence {
            seconds: seconds.as_secs_f64(),
            end,
            upstream: None,
            message: None,
        };
        match self.open(dial).await {
            Ok((mut io, wanted, upstream)) => {
                let (seconds, end) = is_left(&mut *io, long, &wanted).await;
                Silence {
                    upstream,
                    ..silence(seconds, end)
                }
            }
            Err(failure) => Silence {
                message: Some(chain(&failure)),
                ..silence(long, End::Failed)
            },
        }
    }

    /// A connection that is ready for a request, the request, and the upstream where it ends at one.
    async fn open(
        &self,
        dial: &Arc<dyn Dial>,
    ) -> Result<(Box<dyn Io>, Wanted, Option<Arc<str>>), Failure> {
        let Plan { target, spoken, .. } = self.plan;
        let mut wanted = Wanted::new(target, *spoken, Method::HEAD, "/");
        if *spoken == Spoken::Tls {
            let shaken = self.shake(dial, target).await;
            let shaken = shaken.map_err(|failed| failed.0)?;
            return Ok((shaken.stream, wanted, None));
        }
        let (io, form) = self.open_plainly(dial, target).await?;
        let upstream = match form {
            Form::Origin => None,
            Form::Absolute { upstream, .. } => {
                wanted.by_upstream();
                Some(upstream)
            }
        };
        Ok((io, wanted, upstream))
    }
}

/// Leaves a connection alone for so long, then asks on it. For how long it was silent, and what became of it.
async fn is_left(io: &mut dyn Io, long: Duration, wanted: &Wanted) -> (Duration, End) {
    let since = Instant::now();
    let mut byte = [0; 1];
    let ended = match timeout(long, io.read(&mut byte)).await {
        Err(_) => None,
        // A server that says something now says farewell.
        Ok(Ok(_)) => Some(End::Closed),
        Ok(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => Some(End::Closed),
        Ok(Err(_)) => Some(End::Reset),
    };
    let silent = since.elapsed();
    if let Some(end) = ended {
        return (silent, end);
    }
    let talk = async {
        io.write_all(wanted.written().as_bytes()).await?;
        io.flush().await?;
        io.read(&mut byte).await
    };
    let end = match timeout(wanted.limit, talk).await {
        Ok(Ok(1..)) => End::Alive,
        Ok(Ok(0)) => End::Closed,
        Ok(Err(_)) => End::Reset,
        Err(_) => End::Silent,
    };
    (silent, end)
}
