//! Scripts that web servers have: fetched when the first request needs one, used for a while, and fetched again beside the
//! requests. The last one goes on where the server does not give it any more.

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
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::worker;
use crate::client::Client;
use crate::config::env::without_credentials;
use crate::exchange::Trail;
use crate::failure::{Failure, chain};
use crate::pac::{LARGEST, Location, PacError, Script, Source};
use crate::policy::Policy;
use crate::policy::upstream::Upstream as Spec;
use crate::route::upstream::Upstream;
use crate::route::{Dial as _, Names, Plan, Purpose};
use crate::target::Target;
use crate::timeouts::Brief;

/// A server that did not give the script is not asked again for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// A server has so long to give it, whoever waits.
const SERVER: Duration = Duration::from_secs(10);

/// What a web server gave. It outlives a reload that leaves its place alone.
pub struct Fetched {
    location: Arc<Location>,
    last: Mutex<Last>,
    /// Whoever fetches holds it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// What is known of it.
#[derive(Default)]
struct Last {
    script: Option<Script>,
    /// When the server was asked, and what came of it.
    asked: Option<(Instant, Result<(), PacError>)>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetched({})", self.location.shown)
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
        matches!(source, Source::Url { location, .. } if *location == self.location)
    }

    /// Has the server asked again, whatever came of the last time. A script goes on until then.
    pub fn expire(&self) {
        self.last().asked = None;
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at_hand(&self, every: Duration) -> AtHand {
        let last = self.last();
        let (holds, failed) = match &last.asked {
            None => (false, None),
            Some((at, Ok(()))) => (at.elapsed() < every, None),
            Some((at, Err(error))) => (at.elapsed() < PAUSE, Some(error)),
        };
        match (&last.script, failed) {
            (Some(script), _) if holds => AtHand::Fresh(script.clone()),
            (Some(script), _) => AtHand::Old(script.clone()),
            (None, Some(error)) if holds => AtHand::Failed(error.clone()),
            (None, _) => AtHand::Nothing,
        }
    }

    /// Notes what came of a question, and tells of it where it is not what came the last time.
    fn keep(&self, got: Result<Script, PacError>) {
        let url = &self.location.shown;
        let mut last = self.last();
        let went = got.as_ref().map(drop).map_err(Clone::clone);
        let is_news = last
            .asked
            .as_ref()
            .is_none_or(|(_, before)| *before != went);
        match (got, &last.script) {
            (Ok(script), Some(before)) if script.text == before.text => {}
            (Ok(script), _) => {
                tracing::info!(%url, bytes = script.text.len(), "PAC file fetched");
                last.script = Some(script);
            }
            (Err(error), Some(_)) if is_news => {
                tracing::warn!(%url, %error, "PAC file not fetched again: the last one goes on");
            }
            (Err(error), None) if is_news => tracing::warn!(%url, %error, "PAC file not fetched"),
            (Err(_), _) => {}
        }
        last.asked = Some((Instant::now(), went));
    }
}

/// Fetches a script under a policy.
pub(super) struct Fetcher {
    fetched: Arc<Fetched>,
    every: Duration,
    server: Upstream,
    policy: Arc<Policy>,
    tasks: TaskTracker,
}

impl Fetcher {
    /// Asks `server` where a script is older than `every`.
    pub(super) fn new(
        fetched: Arc<Fetched>,
        every: Duration,
        server: Upstream,
        policy: Arc<Policy>,
    ) -> Self {
        Self {
            fetched,
            every,
            server,
            policy,
            tasks: TaskTracker::new(),
        }
    }

    /// The server of a script: it is reached as the policy's upstreams are, and asked for nothing but the script.
    pub(super) fn server(
        name: &Arc<str>,
        location: &Location,
        policy: &Arc<Policy>,
        names: &Names,
    ) -> Upstream {
        let spec = if location.is_https {
            Spec::https(location.server.clone())
        } else {
            Spec::http(location.server.clone())
        };
        Upstream::new(name.clone(), Arc::new(spec), policy.clone(), names.clone())
    }

    pub(super) fn fetched(&self) -> &Arc<Fetched> {
        &self.fetched
    }

    /// The script, within a time. Where there is one already nobody waits, however old it is; nobody who leaves takes it from
    /// those who wait.
    pub(super) async fn script(self: &Arc<Self>, within: Duration) -> Result<Script, PacError> {
        let first = async {
            loop {
                match self.fetched.at_hand(self.every) {
                    AtHand::Fresh(script) => return Ok(script),
                    AtHand::Old(script) => {
                        self.begin();
                        return Ok(script);
                    }
                    AtHand::Failed(error) => return Err(error),
                    AtHand::Nothing => {}
                }
                self.begin();
                // It is free once the server has answered.
                drop(self.fetched.turn.lock().await);
            }
        };
        let late = |_| Err(late(&self.fetched.location.server, within));
        timeout(within, first).await.unwrap_or_else(late)
    }

    /// Fetches it beside the requests, unless that is under way.
    fn begin(self: &Arc<Self>) {
        if let Ok(turn) = self.fetched.turn.clone().try_lock_owned() {
            let this = self.clone();
            self.tasks.spawn(async move {
                let got = this.fetch().await;
                this.fetched.keep(got);
                drop(turn);
            });
        }
    }

    async fn fetch(&self) -> Result<Script, PacError> {
        let location = self.fetched.location();
        let got = timeout(SERVER, self.get()).await;
        let got = got.map_err(|_| late(&location.server, SERVER))?;
        let text: Arc<str> = got.map_err(PacError::Fetch)?.into();
        worker::check(text.clone()).await?;
        Ok(Script {
            place: location.shown.clone(),
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
            deadline: Some(Instant::now() + SERVER),
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

fn late(server: &Target, within: Duration) -> PacError {
    PacError::Fetch(format!("{server} has not given it in {}", Brief(within)))
}

/// Whether an answer brings no script.
fn refused(status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
    if status == StatusCode::OK {
        return Ok(());
    }
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok());
    Err(match to {
        Some(to) if status.is_redirection() => {
            // What a portal puts behind it is nobody else's.
            let to = without_credentials(to.split(['?', '#']).next().unwrap_or_default());
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

    fn location() -> Arc<Location> {
        Arc::new(Location {
            shown: "http://wpad/a".into(),
            is_https: false,
            server: Target::from_authority("wpad:80").unwrap(),
            path: "/a".into(),
        })
    }

    fn script(text: &str) -> Script {
        Script {
            place: "http://wpad/a".into(),
            text: text.into(),
        }
    }

    const EVERY: Duration = Duration::from_mins(1);

    fn told(fetched: &Fetched) -> String {
        match fetched.at_hand(EVERY) {
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
        fetched.keep(failed());
        assert_eq!(told(&fetched), "it cannot be fetched: no");
        tokio::time::advance(PAUSE).await;
        assert_eq!(told(&fetched), "nothing");
        let one = script("one");
        fetched.keep(Ok(one.clone()));
        assert_eq!(told(&fetched), "fresh one");
        tokio::time::advance(EVERY).await;
        assert_eq!(told(&fetched), "old one");
        fetched.keep(failed());
        assert_eq!(told(&fetched), "fresh one");
        tokio::time::advance(PAUSE).await;
        assert_eq!(told(&fetched), "old one");
        fetched.keep(Ok(script("one")));
        let AtHand::Fresh(same) = fetched.at_hand(EVERY) else {
            panic!("it was fetched just now");
        };
        assert!(
            Arc::ptr_eq(&same.text, &one.text),
            "another thread would evaluate it"
        );
        fetched.expire();
        assert_eq!(told(&fetched), "old one");
        fetched.keep(Ok(script("two")));
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
