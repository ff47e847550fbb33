//! Scripts that web servers have: fetched when the first request needs one, used for a while, and fetched again beside the
//! requests. One that was had once goes on where the server does not give it any more.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::worker;
use crate::client::Client;
use crate::exchange::Trail;
use crate::failure::{Failure, chain};
use crate::pac::{LARGEST, LIMIT, Location, PacError, Script, Source};
use crate::policy::Policy;
use crate::policy::upstream::{Protocol, Upstream as Spec};
use crate::route::upstream::Upstream;
use crate::route::{Dial as _, Names, Plan, Purpose};

/// A server that did not give the script is not asked again for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// What a web server gave. It outlives a reload that leaves its place alone.
pub struct Fetched {
    location: Arc<Location>,
    last: Mutex<Last>,
    /// Whoever fetches holds it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// How it went the last time.
#[derive(Default)]
struct Last {
    script: Option<Script>,
    asked: Option<(Instant, Result<(), PacError>)>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetched({})", self.location.url)
    }
}

/// What is at hand without a question.
enum AtHand {
    /// A script that need not be fetched.
    Fresh(Script),
    /// One that is to be fetched again.
    Old(Script),
    /// None, and it is too early to ask again.
    Failed(PacError),
    Nothing,
}

impl Fetched {
    /// Nothing yet.
    pub(super) fn new(location: Arc<Location>) -> Self {
        Self {
            location,
            last: Mutex::default(),
            turn: Arc::default(),
        }
    }

    /// Where it comes from.
    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Whether it is what a policy names.
    pub fn is_of(&self, source: &Source) -> bool {
        matches!(source, Source::Url(location) if *location == self.location)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at_hand(&self) -> AtHand {
        let last = self.last();
        let Some((at, went)) = &last.asked else {
            return AtHand::Nothing;
        };
        let holds = match went {
            Ok(()) => self.location.every,
            Err(_) => PAUSE.min(self.location.every),
        };
        match (&last.script, went) {
            (Some(script), _) if at.elapsed() < holds => AtHand::Fresh(script.clone()),
            (Some(script), _) => AtHand::Old(script.clone()),
            (None, Err(error)) if at.elapsed() < holds => AtHand::Failed(error.clone()),
            (None, _) => AtHand::Nothing,
        }
    }

    /// Notes what came of a question; another script than before is told of.
    fn keep(&self, got: Result<Script, PacError>) -> Result<Script, PacError> {
        let mut last = self.last();
        let url = &self.location.url;
        last.asked = Some((Instant::now(), got.as_ref().map(drop).map_err(Clone::clone)));
        match (got, &last.script) {
            (Ok(script), Some(before)) if script.text == before.text => Ok(before.clone()),
            (Ok(script), _) => {
                tracing::info!(%url, bytes = script.text.len(), "PAC file fetched");
                last.script = Some(script.clone());
                Ok(script)
            }
            (Err(error), Some(before)) => {
                tracing::warn!(%url, %error, "PAC file not fetched again: the last one goes on");
                Ok(before.clone())
            }
            (Err(error), None) => {
                tracing::warn!(%url, %error, "PAC file not fetched");
                Err(error)
            }
        }
    }
}

/// Fetches a script under a policy.
pub(super) struct Fetcher {
    fetched: Arc<Fetched>,
    server: Upstream,
    policy: Arc<Policy>,
    tasks: TaskTracker,
}

impl Fetcher {
    pub(super) fn new(
        name: Arc<str>,
        fetched: Arc<Fetched>,
        policy: Arc<Policy>,
        names: Names,
    ) -> Self {
        // It is reached as the policy's upstreams are, and asked for nothing but the script.
        let spec = Spec::http(fetched.location.server.clone());
        let spec = if fetched.location.is_https {
            Spec {
                protocol: Protocol::Https(Box::default()),
                ..spec
            }
        } else {
            spec
        };
        let server = Upstream::new(name, Arc::new(spec), policy.clone(), names);
        Self {
            fetched,
            server,
            policy,
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn fetched(&self) -> &Arc<Fetched> {
        &self.fetched
    }

    /// The script, within a time. Those who come first wait for one of them to fetch it; where there is one already, nobody
    /// waits.
    pub(super) async fn script(self: &Arc<Self>, within: Duration) -> Result<Script, PacError> {
        match self.fetched.at_hand() {
            AtHand::Fresh(script) => return Ok(script),
            AtHand::Old(script) => {
                if let Ok(turn) = self.fetched.turn.clone().try_lock_owned() {
                    self.tasks.spawn(self.clone().again(turn));
                }
                return Ok(script);
            }
            AtHand::Failed(error) => return Err(error),
            AtHand::Nothing => {}
        }
        let first = async {
            let _turn = self.fetched.turn.lock().await;
            match self.fetched.at_hand() {
                AtHand::Fresh(script) | AtHand::Old(script) => Ok(script),
                AtHand::Failed(error) => Err(error),
                AtHand::Nothing => self.fetched.keep(self.fetch().await),
            }
        };
        let slow = |_| Err(PacError::Fetch("it takes too long".to_owned()));
        timeout(within, first).await.unwrap_or_else(slow)
    }

    async fn again(self: Arc<Self>, _turn: OwnedMutexGuard<()>) {
        let got = self.fetch().await;
        // Whether it is another or the last one, those who ask later find it.
        let _ = self.fetched.keep(got);
    }

    async fn fetch(&self) -> Result<Script, PacError> {
        let failed = |why: String| PacError::Fetch(why);
        let got = timeout(LIMIT, self.get()).await;
        let got = got.unwrap_or_else(|_| Err("it takes too long".to_owned()));
        let text: Arc<str> = got.map_err(failed)?.into();
        worker::check(text.clone()).await?;
        Ok(Script {
            place: self.fetched.location.url.clone(),
            text,
        })
    }

    async fn get(&self) -> Result<String, String> {
        let Location {
            server,
            path,
            is_https,
            ..
        } = self.fetched.location();
        let client = Client::ourselves("pac");
        let plan = Plan {
            deadline: Some(Instant::now() + LIMIT),
            ..Plan::new(&self.policy, client, server.clone(), Purpose::Reach)
        };
        let conn = self.server.dial(&plan, &Trail::default()).await;
        let conn = conn.map_err(|failure| {
            // The message says whose it is.
            if let Failure::Reach { failure, .. } = &failure {
                chain(failure.as_ref())
            } else {
                chain(&failure)
            }
        })?;
        let told = |error: hyper::Error| chain(&error);
        let shaken = http1::handshake(TokioIo::new(conn.wire)).await;
        let (mut sender, mut connection) = shaken.map_err(told)?;
        let request = Request::get(&**path)
            .header(HOST, server.authority(if *is_https { 443 } else { 80 }))
            .header(
                USER_AGENT,
                concat!("routecause/", env!("CARGO_PKG_VERSION")),
            )
            .header(ACCEPT, "application/x-ns-proxy-autoconfig, */*;q=0.5")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new());
        let request = request.map_err(|error| chain(&error))?;
        let exchange = async {
            let (head, body) = sender
                .send_request(request)
                .await
                .map_err(told)?
                .into_parts();
            refused(head.status, &head.headers)?;
            let whole = Limited::new(body, LARGEST).collect().await;
            let whole = whole.map_err(|error| chain(&*error))?;
            Ok(text(&whole.to_bytes()))
        };
        let mut exchange = pin!(exchange);
        tokio::select! {
            biased;
            done = &mut exchange => done,
            // What came before the end is still to be read.
            _ = poll_fn(|cx| connection.poll_without_shutdown(cx)) => exchange.await,
        }
    }
}

/// Whether an answer brings no script.
fn refused(status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
    if status == StatusCode::OK {
        return Ok(());
    }
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok());
    Err(match to {
        Some(to) if status.is_redirection() => {
            let to: String = to.chars().take(200).collect();
            format!("the server answered {status} and leads to {to}: write that URL")
        }
        _ => format!("the server answered {status}"),
    })
}

/// Scripts are older than UTF-8: what is none is Latin-1.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text).to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    fn location() -> Arc<Location> {
        Arc::new(Location {
            url: "http://wpad/a".into(),
            is_https: false,
            server: Target::from_authority("wpad:80").unwrap(),
            path: "/a".into(),
            every: Duration::from_mins(1),
        })
    }

    fn script(text: &str) -> Script {
        Script {
            place: "http://wpad/a".into(),
            text: text.into(),
        }
    }

    fn told(fetched: &Fetched) -> String {
        match fetched.at_hand() {
            AtHand::Fresh(script) => format!("fresh {}", script.text),
            AtHand::Old(script) => format!("old {}", script.text),
            AtHand::Failed(error) => error.to_string(),
            AtHand::Nothing => "nothing".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_is_used_for_its_time_and_goes_on_where_no_other_comes() {
        let fetched = Fetched::new(location());
        let failed = || Err(PacError::Fetch("no".to_owned()));
        assert_eq!(told(&fetched), "nothing");
        fetched.keep(failed()).unwrap_err();
        assert_eq!(told(&fetched), "it cannot be fetched: no");
        tokio::time::advance(PAUSE).await;
        assert_eq!(told(&fetched), "nothing");
        let one = fetched.keep(Ok(script("one"))).unwrap();
        assert_eq!(told(&fetched), "fresh one");
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(told(&fetched), "old one");
        fetched.keep(failed()).unwrap();
        assert_eq!(told(&fetched), "fresh one");
        tokio::time::advance(PAUSE).await;
        assert_eq!(told(&fetched), "old one");
        // The thread that evaluates it goes on as well.
        let same = fetched.keep(Ok(script("one"))).unwrap();
        assert!(Arc::ptr_eq(&same.text, &one.text));
        fetched.keep(Ok(script("two"))).unwrap();
        assert_eq!(told(&fetched), "fresh two");
    }

    #[test]
    fn a_script_is_utf8_or_latin_1() {
        for (bytes, expected) in [
            (&b"// caf\xc3\xa9"[..], "// caf\u{e9}"),
            (b"// caf\xe9", "// caf\u{e9}"),
            (b"\xef\xbb\xbfvar a", "var a"),
        ] {
            assert_eq!(text(bytes), expected);
        }
    }
}
