//! One request: decide, then open a tunnel or pass a plain request on, and answer.

mod anew;
pub mod answer;
pub mod auth;
mod decide;
mod errand;
mod forward;
pub mod headers;
mod introduce;
mod patience;
pub mod pool;
mod preflight;
pub mod quota;
mod replay;
pub mod respond;
mod settle;
pub mod tunnel;
pub mod upload;
mod witness;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::header::PROXY_AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method, Request, Response, request};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::cause::Phase;
use crate::client::{Claim, Given};
use crate::exchange::live::Live;
use crate::exchange::{Exchange, Presence, Trail};
use crate::failure::staged::Staged;
use crate::failure::{Denied, DeniedBy, Failure, RequestError, classify};
use crate::memory::Memory;
use crate::net::socket::Socket;
use crate::observe::Observe;
use crate::policy::flight::Flight;
use crate::policy::{Close, Preflight, Scheme};
use crate::record::trace::Sampler;
use crate::route::{Conn, Dial, Plan};
use crate::snapshot::Snapshot;
use crate::target::{MAX_TARGET, Target};
use crate::tls::trust::Roots;

use answer::{Answer, Open, Requests};
use decide::{Ask, Verdict, Walked, decide};
use forward::Answered;
use quota::Quotas;
use respond::{Identity, Whole};
use tunnel::{Ends, Opened, Tunnel, Undecided};

/// The proxy: what every request needs.
#[derive(Debug)]
pub struct Proxy {
    /// The policy at work.
    pub snapshot: ArcSwap<Snapshot>,
    /// Where records go.
    pub observer: Arc<dyn Observe>,
    /// What they showed.
    pub memory: Arc<Memory>,
    /// The tunnels that are open.
    pub live: Arc<Live>,
    /// Our names.
    pub identity: Identity,
    /// The certificates that are trusted here.
    pub roots: Arc<Roots>,
    /// Every task that a request starts.
    pub tracker: TaskTracker,
    /// How much clients may ask for, and targets be asked.
    pub quotas: Arc<Quotas>,
    /// Of which requests a span is made; nothing where nobody takes spans.
    pub sampler: Option<Sampler>,
}

/// The connection that requests come by.
#[derive(Debug)]
pub struct Caller {
    /// What is known of it.
    pub presence: Arc<Presence>,
    /// Its TCP.
    pub socket: Socket,
    /// Whether other requests are under way on it: then it is not ours to reset.
    pub is_shared: bool,
    /// Its requests.
    pub requests: Arc<Requests>,
    /// The tunnel that it turns into when HTTP is over.
    tunnel: Mutex<Option<Tunnel>>,
    has_left: AtomicBool,
}

impl Caller {
    /// A connection that was just taken.
    pub fn new(presence: Arc<Presence>, socket: Socket) -> Self {
        Self {
            presence,
            socket,
            is_shared: false,
            requests: Arc::default(),
            tunnel: Mutex::new(None),
            has_left: AtomicBool::new(false),
        }
    }

    /// A request of several on one connection.
    pub fn of_stream(presence: Arc<Presence>, socket: Socket) -> Self {
        Self {
            is_shared: true,
            ..Self::new(presence, socket)
        }
    }

    /// Makes the connection one that ends with a reset.
    fn reset(&self) {
        if !self.is_shared
            && let Err(error) = self.socket.reset_on_close()
        {
            tracing::debug!(%error, "set a client to end with a reset");
        }
    }

    /// Whether the client left before the answer: the connection is to be dropped.
    pub fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    /// The tunnel to run, once HTTP is over.
    pub fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Gives the connection up without an answer.
    async fn leave<T>(&self) -> T {
        self.has_left.store(true, Ordering::Relaxed);
        std::future::pending().await
    }

    fn becomes(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }
}

impl Proxy {
    /// Serves one request. Whatever happens, an answer comes and one record is left: it fails only in form, as hyper wants
    /// it.
    pub async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        caller: Arc<Caller>,
    ) -> Result<Response<Answer>, Infallible> {
        let open = Open::new(&caller.requests);
        let mut exchange = Exchange::open(self.observer.clone(), caller.presence.clone());
        let (parts, body) = request.into_parts();
        exchange.asked(&parts);
        exchange.traces(&parts.headers, self.sampler);
        let wants_json = respond::wants_json(&parts.headers);
        let is_connect = parts.method == Method::CONNECT;
        let mut route = None;
        let served = match check(&parts, &body) {
            Err(error) => Err(error.into()),
            Ok(()) if is_connect => {
                Box::pin(self.connect(&parts, &caller, &mut exchange, &mut route)).await
            }
            Ok(()) => {
                let requests = &caller.requests;
                self.forward(parts, body, requests, &mut exchange, &mut route)
                    .await
            }
        };
        Ok(match served {
            Ok(Served::Tunnel(agreed)) => {
                exchange.answered(agreed.response.status());
                let roots = self.roots.clone();
                let tunnel = Tunnel::new(agreed.opened, exchange, roots, self.tracker.clone());
                caller.becomes(tunnel);
                agreed.response.map(|()| Answer::Whole(None, open))
            }
            Ok(Served::Answer(answered)) => answered.into_response(exchange, &caller, open),
            Ok(Served::Here(response)) => {
                exchange.answered(response.status());
                exchange.finish();
                response.map(|body| Answer::Whole(Some(body), open))
            }
            Err(failure @ Failure::ClientGone { .. }) => {
                exchange.fail(&failure);
                caller.leave().await
            }
            Err(Failure::Denied(denied)) if denied.close == Close::Rst => {
                exchange.fail(&Failure::Denied(denied));
                caller.reset();
                caller.leave().await
            }
            Err(failure) => {
                let wants_json = match wants_json {
                    None => self.snapshot.load().policy.errors_in_json,
                    Some(wants_json) => wants_json,
                };
                let answer = if let Some(staged) = failure.staged() {
                    respond::staged(staged, exchange.id())
                } else {
                    let cause = classify(&failure).id();
                    let earlier = exchange.target().and_then(|(host, port)| {
                        self.memory.earlier(host, port, route.as_deref(), &cause)
                    });
                    Some(respond::failure(
                        &failure,
                        exchange.id(),
                        route.as_deref(),
                        wants_json,
                        earlier.as_ref(),
                        &self.identity,
                    ))
                };
                let Some(mut response) = answer else {
                    if failure.staged().is_some_and(Staged::is_reset) {
                        caller.reset();
                    }
                    exchange.fail(&failure);
                    return caller.leave().await;
                };
                if is_connect {
                    respond::close_after(&mut response);
                }
                exchange.answered(response.status());
                exchange.fail(&failure);
                response.map(|body| Answer::Whole(Some(body), open))
            }
        })
    }

    /// Serves a CONNECT: 200 once the way stands.
    async fn connect(
        &self,
        parts: &request::Parts,
        caller: &Caller,
        exchange: &mut Exchange,
        route: &mut Option<Arc<str>>,
    ) -> Result<Served, Failure> {
        let target = Target::from_connect(&parts.uri).map_err(RequestError::from)?;
        exchange.targets(&target);
        self.enter(exchange.presence())?;
        let wish = Wish {
            target,
            headers: Some(&parts.headers),
            given: given(&parts.headers),
            via: headers::via_of(parts, &self.identity.via),
        };
        let opened = self
            .open_tunnel(wish, &caller.socket, exchange, route)
            .await?;
        let response = respond::established(&self.identity).map(|_| ());
        Ok(Served::Tunnel(Box::new(Agreed { response, opened })))
    }

    /// Opens the way of a tunnel, whatever the client asked for it in; or leaves it open until the client has spoken, where
    /// a rule wants to see that.
    ///
    /// The client has entered. One that leaves before it stands, by FIN or RST, ends the dial.
    pub(crate) async fn open_tunnel(
        &self,
        wish: Wish<'_>,
        client: &Socket,
        exchange: &mut Exchange,
        route: &mut Option<Arc<str>>,
    ) -> Result<Opened, Failure> {
        let dial = async {
            let Wish {
                target,
                headers,
                given,
                via,
            } = wish;
            exchange.targets(&target);
            let (snapshot, claim) = self.admit(headers, given, exchange).await?;
            let undecided = Undecided {
                snapshot,
                target,
                claim,
                via,
                walked: Walked::default(),
            };
            self.go_on(undecided, None, exchange, route).await
        };
        tokio::select! {
            biased;
            opened = dial => opened,
            how = client.departure() => {
                Err(Failure::ClientGone { phase: exchange.trail().phase(), how })
            }
        }
    }

    /// Goes on with a tunnel whose client has spoken.
    async fn resume(
        &self,
        undecided: Undecided,
        flight: &Flight,
        client: &Socket,
        exchange: &mut Exchange,
    ) -> Result<Opened, Failure> {
        exchange.trail().enter(Phase::Policy);
        let mut route = None;
        tokio::select! {
            biased;
            opened = self.go_on(undecided, Some(flight), exchange, &mut route) => opened,
            how = client.departure() => {
                Err(Failure::ClientGone { phase: exchange.trail().phase(), how })
            }
        }
    }

    /// Walks on, and dials what the walk leads to.
    async fn go_on(
        &self,
        undecided: Undecided,
        flight: Option<&Flight>,
        exchange: &mut Exchange,
        route: &mut Option<Arc<str>>,
    ) -> Result<Opened, Failure> {
        let Undecided {
            snapshot,
            target,
            claim,
            via,
            walked,
        } = undecided;
        let ask = Ask {
            target: &target,
            method: &Method::CONNECT,
            scheme: Scheme::Connect,
            path: None,
            headers: None,
            claim: &claim,
            flight,
        };
        let (decided, plan) = match decide(&snapshot, ask, walked, exchange, route).await? {
            Verdict::Decided(decided, plan) => (decided, Plan { via, ..plan }),
            Verdict::NeedsFlight(walked) => {
                return Ok(Opened::Undecided(Box::new(Undecided {
                    snapshot,
                    target,
                    claim,
                    via,
                    walked,
                })));
            }
        };
        self.check_circuit(&snapshot, &target)?;
        let way = snapshot.route(decided.route);
        let conn = self
            .open(way, &plan, decided.preflight, exchange.trail())
            .await
            .map_err(|failure| self.compare(failure, &target, exchange.trail()))?;
        let timeouts = plan.timeouts;
        Ok(Opened::Stands(Ends { conn, timeouts }))
    }

    /// Opens a tunnel's way, once what its rule wants tried went well.
    async fn open(
        &self,
        way: &Arc<dyn Dial>,
        plan: &Plan,
        preflight: Option<Preflight>,
        trail: &Trail,
    ) -> Result<Conn, Failure> {
        match preflight {
            None => {}
            Some(Preflight::Tls) => {
                // Long, and seldom wanted.
                Box::pin(preflight::tls(way, plan, &self.roots, trail, &self.tracker)).await?;
            }
        }
        way.dial(plan, trail).await
    }

    /// Refuses a target that failed too often lately, where the policy wants that.
    fn check_circuit(&self, snapshot: &Snapshot, target: &Target) -> Result<(), Failure> {
        let Some(circuit) = &snapshot.policy.circuit else {
            return Ok(());
        };
        let host = target.host.to_string();
        match self.memory.is_open(&host, target.port, circuit) {
            None => Ok(()),
            Some(earlier) => Err(Failure::CircuitOpen {
                target: target.to_string(),
                earlier,
            }),
        }
    }

    /// Holds an upstream's refusal against what it let pass lately: a host at 443 only.
    fn compare(&self, mut failure: Failure, target: &Target, trail: &Trail) -> Failure {
        if let Failure::Upstream {
            upstream,
            passes_443,
            ..
        } = &mut failure
            && target.port != 443
        {
            let host = target.host.to_string();
            *passes_443 = self.memory.passes(&host, 443, upstream);
            trail.last_try_failed(classify(&failure));
        }
        failure
    }

    /// Lets in whom the proxy is open to, as often as they may ask: before it is looked at who they are.
    pub(crate) fn enter(&self, presence: &Presence) -> Result<(), Failure> {
        is_for(&self.snapshot.load(), presence)?;
        let client = presence.client.ip();
        self.quotas.begin(client).map_err(Failure::from)
    }

    /// Finds out who has entered, and takes the policy that the request keeps.
    async fn admit(
        &self,
        headers: Option<&HeaderMap>,
        given: Given,
        exchange: &mut Exchange,
    ) -> Result<(Arc<Snapshot>, Claim), Failure> {
        let snapshot = self.snapshot.load_full();
        let claim = auth::identify(&snapshot, given, &self.tracker, exchange).await?;
        if let Some(headers) = headers {
            headers::check_loop(headers, &self.identity.via)?;
        }
        if let Some((host, port)) = exchange.target()
            && let Some(place) = self.quotas.take(host, port)?
        {
            exchange.hold(place);
        }
        Ok((snapshot, claim))
    }
}

/// Refuses whom the proxy is not open to.
fn is_for(snapshot: &Snapshot, presence: &Presence) -> Result<(), Failure> {
    let client = &presence.client;
    let is_open = snapshot.allow_from.is_empty() && presence.is_known();
    let mut named = snapshot.allow_from.iter();
    if client.is_loopback() || is_open || named.any(|net| net.contains(&client.ip())) {
        return Ok(());
    }
    let denied = Denied {
        by: DeniedBy::Client,
        target: client.ip().to_string(),
        rule: "server.allow_from".into(),
        source: None,
        reason: None,
        status: None,
        code: None,
        close: Close::default(),
    };
    Err(denied.into())
}

/// Refuses what no target can make sense of.
fn check(parts: &request::Parts, body: &Incoming) -> Result<(), RequestError> {
    let (authority, path) = (parts.uri.authority(), parts.uri.path_and_query());
    let length = authority.map_or(0, |authority| authority.as_str().len())
        + path.map_or(0, |path| path.as_str().len());
    if length > MAX_TARGET {
        return Err(RequestError::TargetTooLong { length });
    }
    if parts.method == Method::CONNECT && !body.is_end_stream() {
        return Err(RequestError::ConnectBody);
    }
    Ok(())
}

/// What a request gives to say who it is.
fn given(headers: &HeaderMap) -> Given {
    Given::of_field(headers.get(PROXY_AUTHORIZATION).map(HeaderValue::as_bytes))
}

/// A tunnel that a client wants.
#[derive(Debug)]
pub(crate) struct Wish<'a> {
    /// Where to.
    pub(crate) target: Target,
    /// The fields of the request, where it has such.
    pub(crate) headers: Option<&'a HeaderMap>,
    /// What the client gives to say who it is.
    pub(crate) given: Given,
    /// The Via that a CONNECT to an upstream bears.
    pub(crate) via: String,
}

/// How a request was served.
enum Served {
    /// A tunnel stands, or an upgrade was agreed.
    Tunnel(Box<Agreed>),
    /// The origin answered.
    Answer(Box<Answered>),
    /// We answered ourselves.
    Here(Whole),
}

/// An answer after which the connection is a tunnel.
struct Agreed {
    response: Response<()>,
    opened: Opened,
}
