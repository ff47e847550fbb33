//! Everything that can end a request badly, and the one place that names its cause.
//!
//! Failures are born typed where the wait is and travel by `?`. [`classify`] is an exhaustive `match`: a new
//! failure does not compile until someone has named its cause.

mod classify;
mod denied;
mod exhausted;
pub mod handshake;
mod request;
pub mod staged;
pub mod tunnel;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::cause::Phase;
use crate::memory::Earlier;
use crate::net::connect::{ConnectError, Icmp};
use crate::net::resolve::{Doubt, Extended, ResolveError};
use crate::net::socket::Departure;
use crate::net::upstream::UpstreamError;
use crate::pac::PacError;
use crate::policy::Close;
use crate::policy::guard::Guard;
use crate::timeouts::Brief;
use handshake::Handshake;
use staged::Staged;
use tunnel::Ending;

pub use classify::{classify, classify_try};
pub use denied::{Denied, DeniedBy};
pub use exhausted::{AllDown, Exhausted};
pub use request::{Excess, FirstBytes, HeadError, LoopSign, RequestError, Stranger};

/// What ended a request, or kept a connection from carrying one.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection did not become a request.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The request asks for nothing that can be forwarded.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Policy or a guard refuses.
    #[error(transparent)]
    Denied(Box<Denied>),
    /// The request came back to us.
    #[error("{0}")]
    Loop(LoopSign),
    /// The target failed too often lately.
    #[error("{target} failed too often lately, the last time with {earlier}")]
    CircuitOpen {
        /// The target.
        target: String,
        /// The last failure.
        earlier: Earlier,
    },
    /// More connections are open than the limit allows.
    #[error("{limit} connections are open, as many as the limit allows")]
    Connections {
        /// The limit.
        limit: usize,
    },
    /// More is asked for at once than a limit allows.
    #[error(transparent)]
    Excess(#[from] Excess),
    /// Who asks is not known, where that must be.
    #[error(transparent)]
    Stranger(#[from] Stranger),
    /// The target's name.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A TLS handshake of our own.
    #[error("{}", .0.message())]
    Handshake(Box<Handshake>),
    /// The addresses that name servers gave, which cannot be right.
    #[error("{name}: {doubt}: {}", chain(failure.as_ref()))]
    Answer {
        /// The name.
        name: Arc<str>,
        /// What speaks against them.
        doubt: Doubt,
        /// What became of them.
        failure: Box<Self>,
    },
    /// The way to an upstream, before it was asked for anything.
    #[error("upstream {upstream}: {}", chain(failure.as_ref()))]
    Reach {
        /// The upstream's name.
        upstream: Arc<str>,
        /// What went wrong on that way.
        failure: Box<Self>,
    },
    /// An upstream's answer to CONNECT, or to a plain request.
    #[error("upstream {upstream}: {}", chain(error))]
    Upstream {
        /// The upstream's name.
        upstream: Arc<str>,
        /// Whether the same host passed lately at port 443, where this is another port.
        passes_443: bool,
        /// What it answered.
        error: UpstreamError,
    },
    /// An upstream that failed too often lately.
    #[error("upstream {upstream} failed too often lately, the last time with {last}; {}", when(*retry))]
    UpstreamCircuitOpen {
        /// The upstream's name.
        upstream: Arc<str>,
        /// The id of what it failed of last.
        last: Cow<'static, str>,
        /// When it is tried again; nothing where that is under way.
        retry: Option<Duration>,
    },
    /// An upstream that was taken out of use.
    #[error("upstream {upstream} is drained")]
    UpstreamDrained {
        /// The upstream's name.
        upstream: Arc<str>,
    },
    /// A script that names no way out.
    #[error("PAC file {place} of {upstream}: {error}")]
    Pac {
        /// The name in the policy.
        upstream: Arc<str>,
        /// The file, or its URL.
        place: Arc<str>,
        /// Why it does not.
        error: PacError,
    },
    /// Every member of a group, or as many as there was time for.
    #[error(transparent)]
    AllDown(Box<AllDown>),
    /// Every hop of a chain, or as many as there was time for.
    #[error(transparent)]
    Exhausted(Box<Exhausted>),
    /// The answer to a plain request.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The client left first.
    #[error("the client {} in phase {}", match how { Departure::Fin => "left", Departure::Rst => "reset its connection" }, phase.as_str())]
    ClientGone {
        /// What was under way.
        phase: Phase,
        /// How it left.
        how: Departure,
    },
    /// The client stopped reading.
    #[error("the client did not read for {}", Brief(*after))]
    ClientStalled {
        /// How long it was waited for.
        after: Duration,
    },
    /// The client's request body stopped arriving.
    #[error("the request's body stopped arriving for {}", Brief(*after))]
    RequestBodyStalled {
        /// How long it was waited for.
        after: Duration,
    },
    /// The end of a tunnel.
    #[error(transparent)]
    Tunnel(Box<Ending>),
    /// What a fault of the policy gives the client in place of an answer of ours.
    #[error(transparent)]
    Staged(Box<Staged>),
    /// The process ends.
    #[error("the proxy is shutting down")]
    Shutdown {
        /// What was under way.
        phase: Phase,
    },
    /// Somebody cut the tunnel.
    #[error("the tunnel was cut by who runs the proxy")]
    Killed,
    /// A new policy refuses what an older one had let out.
    #[error("a new policy cut the tunnel: {}", chain(.0.as_ref()))]
    PolicyChanged(Box<Self>),
    /// A defect of ours.
    #[error("a panic while serving the request")]
    Panic,
}

/// When an upstream is tried again.
fn when(retry: Option<Duration>) -> String {
    match retry {
        Some(wait) => format!("it is tried again in {}", Brief(wait)),
        None => "another request is trying it now".to_owned(),
    }
}

/// Why a plain request got no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// No answer in time.
    #[error("no answer within {}", Brief(*after))]
    NoAnswer {
        /// The limit.
        after: Duration,
    },
    /// The connection ended before an answer.
    #[error("the connection ended before an answer")]
    Empty,
    /// The connection failed in another way before an answer.
    #[error("the connection failed before an answer")]
    Broken(#[source] io::Error),
    /// The connection was reset before an answer.
    #[error("the connection was reset before an answer")]
    Reset(#[source] io::Error),
    /// The answer is no HTTP, or nothing that may be passed on.
    #[error("the answer is no HTTP/1.1: {0}")]
    Malformed(MalformedAnswer),
    /// The answer's head is over the limit.
    #[error("the answer's head is over the limit")]
    HeadTooLarge,
    /// The body ended early.
    #[error("the answer ended before its stated length")]
    BodyCut,
    /// The body was cut by a reset.
    #[error("the connection was reset in the middle of the answer")]
    BodyReset(#[source] io::Error),
    /// The body stopped.
    #[error("no byte of the answer for {}", Brief(*after))]
    BodyStalled {
        /// The limit.
        after: Duration,
    },
    /// A kept connection turned out to be closed; the request goes out once more.
    #[error("the kept connection was closed")]
    Stale,
    /// The origin's own answer, 400 and above.
    #[error("the origin answered {0}")]
    Status(u16),
    /// An origin asked for proxy credentials.
    #[error("the origin answered 407")]
    AskedForProxyCredentials,
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum MalformedAnswer {
    /// The parser's word.
    #[error(transparent)]
    Parse(hyper::Error),
    /// How it begins, escaped.
    #[error("it begins {0}")]
    Begins(String),
    /// Nobody had asked for anything yet.
    #[error("bytes came before the request was sent")]
    Unasked,
    /// Nobody asked for an upgrade.
    #[error("101 without a request to upgrade")]
    UnaskedUpgrade,
    /// Interim answers without end.
    #[error("too many interim answers (1xx)")]
    Interim,
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self::Denied(Box::new(denied))
    }
}

impl Failure {
    /// What is told of it: of a chain, one of its hops.
    pub fn told(&self) -> &Self {
        if let Self::Exhausted(exhausted) = self
            && !exhausted.is_refused
            && let Some(told) = exhausted.told()
        {
            told.told()
        } else {
            self
        }
    }

    /// The hops of a chain that failed, where more than one was tried or the chain ends in `off`.
    pub fn hops(&self) -> Option<&Exhausted> {
        if let Self::Exhausted(exhausted) = self {
            Some(exhausted)
        } else {
            None
        }
    }

    /// What a fault of the policy gives the client, where that is told.
    pub fn staged(&self) -> Option<&Staged> {
        if let Self::Staged(staged) = self.told() {
            Some(staged)
        } else {
            None
        }
    }

    /// The guard that refused every address of a target.
    pub fn of_guard(guard: Guard, target: String) -> Self {
        let by = match guard {
            Guard::Own => return Self::Loop(LoopSign::Listener),
            Guard::ConnectPorts => DeniedBy::GuardPort,
            Guard::SniMismatch => DeniedBy::GuardSni,
            Guard::Loopback | Guard::LinkLocal | Guard::Private | Guard::Special => {
                DeniedBy::GuardIp
            }
        };
        Denied {
            by,
            target,
            rule: guard.name().into(),
            source: None,
            reason: None,
            status: None,
            code: None,
            close: Close::default(),
        }
        .into()
    }

    /// The status to answer with; `None` where no answer is possible.
    pub fn status(&self) -> Option<StatusCode> {
        let told = self.told();
        let status = told.own_status().or_else(|| classify(told).status())?;
        StatusCode::from_u16(status).ok()
    }

    /// The status where it is not the cause's.
    fn own_status(&self) -> Option<u16> {
        if let Self::Denied(denied) = self {
            denied.status
        } else if let Self::Staged(staged) = self {
            staged.status()
        } else if let Self::Request(RequestError::TargetTooLong { .. }) = self {
            Some(414)
        } else if let Self::Request(RequestError::TransferCoding(_)) = self {
            Some(501)
        } else if let Self::Origin(OriginError::Status(404 | 410)) = self {
            // It led on to a hop that failed. A client that takes us for the origin would believe that nothing is there.
            Some(502)
        } else if let Self::Upstream {
            error: UpstreamError::Refused(reply),
            ..
        } = self
        {
            let status = reply.status.as_u16();
            let is_reported = classify(self).id().starts_with("upstream.reported.");
            (is_reported && matches!(status, 502..=504)).then_some(status)
        } else {
            None
        }
    }

    /// The response code and the extended error of the reply that it comes of (RFC 9209, section 2.3.2).
    pub fn dns_codes(&self) -> (Option<&'static str>, Option<u16>) {
        let info = |ede: Option<&Extended>| ede.map(|ede| ede.code);
        let this = self.told();
        if let Self::Resolve(error) = this {
            (error.response_code(), info(error.facts.ede.as_ref()))
        } else if let Self::Answer { doubt, .. } = this {
            let ede = if let Doubt::Blocked(ede) = doubt {
                Some(ede)
            } else {
                None
            };
            (Some("NOERROR"), info(ede))
        } else if let Self::Reach { failure, .. } = this {
            failure.dns_codes()
        } else {
            (None, None)
        }
    }

    /// The ICMP message behind it.
    pub fn icmp(&self) -> Option<Icmp> {
        let this = self.told();
        if let Self::Connect(error) = this {
            error.icmp()
        } else if let Self::Reach { failure, .. } | Self::Answer { failure, .. } = this {
            failure.icmp()
        } else {
            None
        }
    }

    /// What it means and what to do.
    pub fn hint(&self) -> Cow<'static, str> {
        let told = self.told();
        if let Self::Denied(denied) = told {
            denied.remedy().into()
        } else if let Self::PolicyChanged(refusal) = told {
            refusal.hint()
        } else if let Self::UpstreamCircuitOpen {
            upstream, retry, ..
        } = told
        {
            let when = when(*retry);
            format!("{when}: see what is wrong with {upstream}, or its health in the policy").into()
        } else {
            classify(told).hint()
        }
    }
}

/// An error with its sources, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_says_something_else_than_the_message() {
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let after = Duration::from_secs(5);
        for failure in [
            Failure::from(OriginError::NoAnswer { after }),
            OriginError::Empty.into(),
            OriginError::Broken(reset()).into(),
            OriginError::Reset(reset()).into(),
            OriginError::Malformed(MalformedAnswer::Interim).into(),
            OriginError::HeadTooLarge.into(),
            OriginError::BodyCut.into(),
            OriginError::BodyReset(reset()).into(),
            OriginError::BodyStalled { after }.into(),
            Failure::ClientStalled { after },
            Failure::Shutdown { phase: Phase::Http },
            Failure::Killed,
            Failure::PolicyChanged(Box::new(Failure::of_guard(
                Guard::Private,
                "a.example:443".to_owned(),
            ))),
        ] {
            let (message, hint) = (failure.to_string(), failure.hint());
            let said: Vec<_> = message.split_whitespace().collect();
            let words: Vec<_> = hint.split_whitespace().collect();
            let new = words.iter().filter(|word| !said.contains(*word)).count();
            assert!(new * 2 > words.len(), "{message}: {hint}");
        }
    }
}
