//! One request: decide, then open a tunnel or pass a plain request on, and answer.

pub mod answer;
mod forward;
pub mod headers;
mod patience;
pub mod pool;
mod preflight;
pub mod respond;
pub mod tunnel;
pub mod upload;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, request};
use http_body::Body as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use crate::cause::Phase;
use crate::exchange::{Exchange, Presence, Trail};
use crate::failure::{Denied, DeniedBy, Failure, RequestError, classify};
use crate::memory::Memory;
use crate::net::resolve::ResolveError;
use crate::net::socket::Socket;
use crate::observe::Observe;
use crate::policy::{
    Decision, Denial, Lookup, Needs, Policy, Preflight, Query, RouteId, Scheme, Step, Verdict, Walk,
};
use crate::route::{Conn, Dial, Plan, Purpose};
use crate::snapshot::Snapshot;
use crate::target::{MAX_TARGET, Target};
use crate::tls::trust::Roots;

use answer::{Answer, Open, Requests};
use forward::Answered;
use headers::Via;
use respond::{Identity, Whole};
use tunnel::{Ends, Tunnel};

/// The proxy: what every request needs.
#[derive(Debug)]
pub struct Proxy {
    /// The policy at work.
    pub snapshot: ArcSwap<Snapshot>,
    /// Where records go.
    pub observer: Arc<dyn Observe>,
    /// What they showed.
    pub memory: Arc<Memory>,
    /// Our names.
    pub identity: Identity,
    /// The certificates that are trusted here.
    pub roots: Arc<Roots>,
    /// Every task that a request starts.
    pub tracker: TaskTracker,
}

/// The connection that requests come by.
#[derive(Debug)]
pub struct Caller {
    /// What is known of it.
    pub presence: Arc<Presence>,
    /// Its bytes.
    pub socket: Socket,
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
            requests: Arc::default(),
            tunnel: Mutex::new(None),
            has_left: AtomicBool::new(false),
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
        let wants_json = respond::wants_json(&parts.headers);
        let is_connect = parts.method == Method::CONNECT;
        let mut route = None;
        let served = match check(&parts, &body) {
            Err(error) => Err(error.into()),
            Ok(()) if is_connect => {
                Box::pin(self.connect(&parts, &caller, &mut exchange, &mut route)).await
            }
            Ok(()) => self.forward(parts, body, &mut exchange, &mut route).await,
        };
        Ok(match served {
            Ok(Served::Tunnel(agreed)) => {
                exchange.answered(agreed.response.status());
                let roots = self.roots.clone();
                let tunnel = Tunnel::new(agreed.ends, exchange, roots, self.tracker.clone());
                caller.becomes(tunnel);
                agreed.response.map(|()| Answer::Whole(None, open))
            }
            Ok(Served::Answer(answered)) => answered.into_response(exchange, &caller.socket, open),
            Ok(Served::Here(response)) => {
                exchange.answered(response.status());
                exchange.finish();
                response.map(|body| Answer::Whole(Some(body), open))
            }
            Err(failure @ Failure::ClientGone { .. }) => {
                exchange.fail(&failure);
                caller.has_left.store(true, Ordering::Relaxed);
                std::future::pending().await
            }
            Err(failure) => {
                let earlier = exchange
                    .target()
                    .and_then(|(host, port)| self.memory.earlier(host, port, Timestamp::now()));
                let mut response = respond::failure(
                    &failure,
                    exchange.id(),
                    route.as_deref(),
                    wants_json,
                    earlier.as_ref(),
                    &self.identity,
                );
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
    ///
    /// A client that leaves before that, by FIN or RST, ends the dial.
    async fn connect(
        &self,
        parts: &request::Parts,
        caller: &Caller,
        exchange: &mut Exchange,
        route: &mut Option<Arc<str>>,
    ) -> Result<Served, Failure> {
        let dial = async {
            let target = Target::from_connect(&parts.uri).map_err(RequestError::from)?;
            exchange.targets(&target);
            let snapshot = self.admit(parts, exchange)?;
            let ask = Ask {
                parts,
                target: &target,
                scheme: Scheme::Connect,
            };
            let (decided, plan) =
                decide(&snapshot, &self.identity.via, ask, exchange, route).await?;
            self.check_circuit(&snapshot, &target)?;
            let way = snapshot.route(decided.route);
            let conn = self
                .open(way, &plan, decided.preflight, exchange.trail())
                .await
                .map_err(|failure| self.compare(failure, &target, exchange.trail()))?;
            Ok::<_, Failure>(Ends {
                server: conn.socket,
                early: conn.early,
                is_end_to_end: conn.is_end_to_end,
                timeouts: plan.timeouts,
            })
        };
        let ends = tokio::select! {
            biased;
            ends = dial => ends?,
            how = caller.socket.departure() => {
                return Err(Failure::ClientGone { phase: exchange.trail().phase(), how });
            }
        };
        let response = respond::established(&self.identity).map(|_| ());
        Ok(Served::Tunnel(Box::new(Agreed { response, ends })))
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
        let now = Timestamp::now();
        match self.memory.is_open(&host, target.port, circuit, now) {
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
            *passes_443 = self.memory.passes(&host, 443, upstream, Timestamp::now());
            trail.last_try_failed(classify(&failure));
        }
        failure
    }

    /// Lets in who may use the proxy, and takes the policy that the request keeps.
    fn admit(&self, parts: &request::Parts, exchange: &Exchange) -> Result<Arc<Snapshot>, Failure> {
        let snapshot = self.snapshot.load_full();
        let client = &exchange.presence().client;
        if !client.is_loopback()
            && !snapshot
                .allow_from
                .iter()
                .any(|net| net.contains(&client.ip()))
        {
            let denied = Denied {
                by: DeniedBy::Client,
                target: client.ip().to_string(),
                rule: "server.allow_from".into(),
                source: None,
                reason: None,
                status: None,
                code: None,
            };
            return Err(denied.into());
        }
        headers::check_loop(&parts.headers, &self.identity.via)?;
        Ok(snapshot)
    }
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

/// What is asked, for the walk.
#[derive(Clone, Copy)]
struct Ask<'a> {
    parts: &'a request::Parts,
    target: &'a Target,
    scheme: Scheme,
}

/// What the walk says of a request that may go out.
#[derive(Clone, Copy)]
struct Decided {
    route: RouteId,
    preflight: Option<Preflight>,
}

/// Walks the policy, looking up what the walk asks for, and notes what it says.
async fn decide(
    snapshot: &Snapshot,
    via: &Via,
    ask: Ask<'_>,
    exchange: &mut Exchange,
    route: &mut Option<Arc<str>>,
) -> Result<(Decided, Plan), Failure> {
    let policy = &snapshot.policy;
    let presence = exchange.presence().clone();
    let is_plain = ask.scheme == Scheme::Http;
    let mut found = None;
    let mut walk = Walk::default();
    let decision = loop {
        let query = Query {
            client: &presence.client,
            scheme: ask.scheme,
            method: &ask.parts.method,
            target: ask.target,
            path: ask
                .parts
                .uri
                .path_and_query()
                .filter(|_| is_plain)
                .map(PathAndQuery::as_str),
            headers: is_plain.then_some(&ask.parts.headers),
            addresses: found.as_ref().map(lookup_of),
            now: Timestamp::now(),
        };
        match policy.step(&mut walk, &query) {
            Step::Decided(decision) => break decision,
            Step::Needs(Needs::Addresses) => {
                let host = &ask.target.host;
                let lookup = snapshot
                    .names
                    .lookup(host, policy.timeouts.dns, exchange.trail());
                found = Some(Box::pin(lookup).await);
                exchange.trail().enter(Phase::Policy);
            }
        }
    };
    let id = match decision.verdict {
        Verdict::Route(id) => id,
        Verdict::Deny(ref denial) => {
            exchange.decided(policy, &decision, None);
            return Err(denied(policy, &decision, denial, ask.target));
        }
    };
    let name = &policy.route(id).name;
    exchange.decided(policy, &decision, Some(name));
    *route = Some(name.clone());
    presence.limit_writes(decision.timeouts.body_idle);
    let plan = Plan {
        client: presence.client.clone(),
        target: ask.target.clone(),
        purpose: if is_plain {
            Purpose::Forward
        } else {
            Purpose::Tunnel
        },
        addresses: found,
        timeouts: decision.timeouts.clone(),
        via: if is_plain {
            String::new()
        } else {
            headers::via_of(ask.parts, via)
        },
    };
    let decided = Decided {
        route: id,
        preflight: decision.preflight,
    };
    Ok((decided, plan))
}

fn lookup_of(found: &Result<Vec<IpAddr>, ResolveError>) -> Lookup<'_> {
    found
        .as_ref()
        .map_or(Lookup::Failed, |addresses| Lookup::Found(addresses))
}

fn denied(
    policy: &Policy,
    decision: &Decision<'_>,
    denial: &Denial<'_>,
    target: &Target,
) -> Failure {
    let (by, block) = match denial {
        Denial::Guard(guard) => return Failure::of_guard(*guard, target.to_string()),
        Denial::Default(block) => (DeniedBy::Default, Some(block)),
        Denial::Rule {
            block,
            by_address: true,
        } => (DeniedBy::RuleIp, Some(block)),
        Denial::Rule {
            block,
            by_address: false,
        } => (DeniedBy::Rule, Some(block)),
        Denial::Port => (DeniedBy::NeverPort, None),
    };
    let rule = decision.rule.unwrap_or(&policy.default);
    Denied {
        by,
        target: target.to_string(),
        rule: rule.name.clone(),
        source: Some(rule.source.clone()),
        reason: block.and_then(|block| block.reason.clone()),
        status: block.and_then(|block| block.status),
        code: block.and_then(|block| block.code.clone()),
    }
    .into()
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
    ends: Ends,
}
