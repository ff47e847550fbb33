//! What is tried, in order: names, addresses, each way with its controls, and where a handshake fails what differs.

mod fetch;
mod http;
mod idle;
mod locate;
mod matrix;
mod names;

use std::io::Cursor;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::Method;
use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, join, split};
use tokio::time::{Instant, sleep};

use super::compare::Mirror;
use super::facts::{Certificate, Facts, Http, Probe, Spoken, Tcp, Way};
use super::idle::Silence;
use super::plan::{Control, DIRECT, Plan};
use crate::client::Client;
use crate::exchange::Trail;
use crate::failure::handshake::Handshake;
use crate::failure::{Failure, chain, classify};
use crate::net::connect::{self, Limits, Shape};
use crate::net::here::is_here;
use crate::net::resolve::Resolver;
use crate::net::wire::Wire;
use crate::policy::{Policy, Route, RouteSpec};
use crate::route::assemble::assemble;
use crate::route::{self, Conn, Dial, Names, Purpose, health};
use crate::target::{Host, Target};
use crate::timeouts::Timeouts;
use crate::tls::handshake::{Established, HandshakeError, Hello, Offer, handshake_as};
use crate::tls::trust::{Judgement, Roots};

/// So many addresses are tried.
const MOST_ADDRESSES: usize = 8;

/// So many upstreams are tried.
const MOST_UPSTREAMS: usize = 4;

/// A handshake that is silent for so long has failed.
const HELLO: Duration = Duration::from_millis(2500);

/// An address that does not answer within this has failed.
const CONNECT: Duration = Duration::from_secs(3);

/// An upstream that does not answer within this has failed.
const REPLY: Duration = Duration::from_secs(8);

/// Between one try and the next, so that a limit of somebody's is not what is seen.
const PAUSE: Duration = Duration::from_millis(150);

/// Tells how far it is.
pub type Progress<'p> = &'p (dyn Fn(&str) + Sync);

struct Doctor<'a> {
    policy: &'a Arc<Policy>,
    names: Names,
    roots: Arc<Roots>,
    plan: &'a Plan,
    timeouts: Arc<Timeouts>,
    client: Client,
    progress: Progress<'a>,
}

/// What a mirror gives for `path`, by the way that the policy chooses.
pub async fn compare(
    policy: &Arc<Policy>,
    resolver: &Resolver,
    plan: &Plan,
    (url, path): (&str, &str),
    progress: Progress<'_>,
) -> Mirror {
    let (doctor, built) = Doctor::new(policy, resolver, plan, progress);
    let mut mirror = Mirror {
        url: url.to_owned(),
        ..Mirror::default()
    };
    if let Some((name, dial)) = doctor.chosen(&built) {
        name.clone_into(&mut mirror.route);
        doctor.fetch(dial, path, &mut mirror).await;
    } else {
        "refused".clone_into(&mut mirror.route);
        mirror.failure = Some("the policy refuses it".to_owned());
    }
    mirror
}

/// Leaves connections alone for up to `longest`, by the way that the policy chooses. Nothing where it refuses.
pub async fn idle(
    policy: &Arc<Policy>,
    resolver: &Resolver,
    plan: &Plan,
    longest: Duration,
    progress: Progress<'_>,
) -> Vec<Silence> {
    let (doctor, built) = Doctor::new(policy, resolver, plan, progress);
    match doctor.chosen(&built) {
        Some((_, dial)) => doctor.leave_alone(dial, longest).await,
        None => Vec::new(),
    }
}

/// Looks at a target by every way that a policy knows.
pub async fn examine(
    policy: &Arc<Policy>,
    resolver: &Resolver,
    plan: &Plan,
    progress: Progress<'_>,
) -> Facts {
    let (doctor, built) = Doctor::new(policy, resolver, plan, progress);
    let mut facts = Facts {
        target: plan.target.to_string(),
        host: plan.target.host.to_string(),
        is_name: plan.target.host.name().is_some(),
        spoken: plan.spoken,
        path: plan.path.clone(),
        wants_more: plan.wants_more,
        chosen: plan.chosen.clone(),
        ..Facts::default()
    };
    let addresses = if plan.grants(DIRECT) {
        facts.dns = doctor.ask_all().await;
        doctor.addresses(&facts)
    } else {
        Vec::new()
    };
    (doctor.progress)("connecting to each address");
    let tries = addresses.into_iter().map(|ip| {
        let address = SocketAddr::new(ip, plan.target.port);
        let doctor = &doctor;
        async move {
            let begun = Instant::now();
            let outcome = doctor.connect(address, Shape::default()).await.map(drop);
            Tcp {
                address,
                outcome: probe(address.to_string(), begun, outcome),
            }
        }
    });
    facts.tcp = join_all(tries).await;
    // That was the first try.
    let is_deaf = !facts.tcp.is_empty() && facts.tcp.iter().all(|tcp| !tcp.outcome.is_fine());
    let mut upstreams = 0;
    let mut ways = Vec::new();
    for (route, dial) in policy.routes.iter().zip(&built) {
        let tries = match route.spec {
            RouteSpec::Direct if !plan.grants(&route.name) => continue,
            RouteSpec::Direct if is_deaf => 1,
            RouteSpec::Direct => 2,
            RouteSpec::Upstream(_) if upstreams < MOST_UPSTREAMS && plan.grants(&route.name) => {
                upstreams += 1;
                2
            }
            RouteSpec::Upstream(_)
            | RouteSpec::Chain(_)
            | RouteSpec::Group(_)
            | RouteSpec::Pac(_)
            | RouteSpec::Faulty { .. } => continue,
        };
        ways.push(doctor.way(route, dial, tries));
    }
    facts.ways = join_all(ways).await;
    let direct = facts.direct();
    let has_failed = direct.is_some_and(|way| {
        !way.works()
            && way
                .failure()
                .is_some_and(|failure| failure.failed_of("tls."))
    });
    let is_certificate = direct.is_some_and(|way| way.certificate.is_some());
    let address = facts.tcp.iter().find(|tcp| tcp.outcome.is_fine());
    if let (Spoken::Tls, true, false, Some(address)) =
        (plan.spoken, has_failed, is_certificate, address)
    {
        facts.cells = doctor.matrix(address.address).await;
        if plan.is_located {
            facts.hops = doctor.walk(address.address).await;
        }
    }
    facts
}

/// Whether a handshake or a request failed without a word of the server: it may have been bad luck.
fn says_nothing(failure: &Probe) -> bool {
    [
        "tls.reset_",
        "tls.closed_",
        "tls.client_hello_blackholed",
        "tls.no_server_hello",
        "tls.server_flight_stalled",
        "tls.handshake_timeout",
        "http.reset_before_response",
        "http.empty_reply",
    ]
    .iter()
    .any(|cause| failure.failed_of(cause))
}

/// What a failed or finished try amounts to.
fn probe(with: String, begun: Instant, outcome: Result<(), Failure>) -> Probe {
    let failure = outcome.err();
    Probe {
        with,
        cause: failure
            .as_ref()
            .map(|failure| classify(failure).id().into_owned()),
        message: failure.as_ref().map(|failure| chain(failure)),
        ms: begun.elapsed().as_secs_f64() * 1000.0,
    }
}

impl<'a> Doctor<'a> {
    /// It, and the policy's ways out in their order.
    fn new(
        policy: &'a Arc<Policy>,
        resolver: &Resolver,
        plan: &'a Plan,
        progress: Progress<'a>,
    ) -> (Self, Vec<Arc<dyn Dial>>) {
        let health = health::of_policy(policy, &[]);
        let (names, built) = assemble(policy, resolver, &health, &[], None);
        let of_bounds = plan.bounds.as_ref().map(|bounds| bounds.client.clone());
        let doctor = Self {
            policy,
            names,
            roots: resolver.roots().clone(),
            plan,
            timeouts: Arc::new(Timeouts {
                connect: CONNECT,
                proxy_reply: REPLY,
                ..(*policy.timeouts).clone()
            }),
            client: of_bounds.unwrap_or_else(|| Client::ourselves("doctor")),
            progress,
        };
        (doctor, built.routes.clone())
    }

    /// The way that the policy chooses, with its name.
    fn chosen<'b>(&self, built: &'b [Arc<dyn Dial>]) -> Option<(&'a str, &'b Arc<dyn Dial>)> {
        let chosen = self.plan.chosen.as_deref()?;
        let mut ways = self.policy.routes.iter().zip(built);
        let (route, dial) = ways.find(|(route, _)| &*route.name == chosen)?;
        Some((&route.name, dial))
    }
}

impl Doctor<'_> {
    /// The target's addresses that are tried straight.
    fn addresses(&self, facts: &Facts) -> Vec<IpAddr> {
        let (only, _) = self.plan.way_to(&self.plan.target);
        let mut addresses: Vec<IpAddr> = self.plan.target.host.ip().into_iter().collect();
        for ip in facts.dns.iter().flat_map(|answer| &answer.addresses) {
            if !addresses.contains(ip) {
                addresses.push(*ip);
            }
        }
        if let Some(only) = only {
            addresses.retain(|ip| only.contains(ip));
        }
        addresses.truncate(MOST_ADDRESSES);
        addresses
    }

    /// Connects straight to one address, if the guards let it.
    async fn connect(&self, address: SocketAddr, shape: Shape) -> Result<Conn, Failure> {
        let admitted = self
            .policy
            .guards
            .admit(address, &self.client, is_here)
            .map_err(|guard| Failure::of_guard(guard, address.to_string()))?;
        let limits = Limits {
            total: CONNECT,
            per_address: CONNECT,
            stagger: CONNECT,
            shape,
        };
        let socket = connect::connect(&[admitted], None, &limits, &|_| {}, None).await?;
        Ok(Conn::straight(socket, "direct".into()))
    }

    /// Everything about one way.
    async fn way(&self, route: &Route, dial: &Arc<dyn Dial>, tries: usize) -> Way {
        let name = &route.name;
        let says_who_we_are =
            matches!(&route.spec, RouteSpec::Upstream(upstream) if upstream.auth.is_some());
        let mut way = Way {
            route: name.to_string(),
            is_proven: self.plan.bounds.is_some(),
            ..Way::default()
        };
        let told = if way.is_direct() {
            "direct".to_owned()
        } else {
            format!("via {name}")
        };
        let ask = async |control: &Control| {
            let control = &control.target;
            (self.progress)(&format!("{told}: control {}", control.host));
            let begun = Instant::now();
            let outcome = if self.plan.spoken == Spoken::Http {
                self.ask(dial, control, Method::HEAD, "/").await.map(drop)
            } else {
                let shaken = self.shake(dial, control).await;
                shaken.map(drop).map_err(|failed| failed.0)
            };
            probe(control.host.to_string(), begun, outcome)
        };
        // At once: each may be silent for as long as an upstream may be. Behind the first: a password that an upstream
        // refuses is not sent again and again, since that could lock the account.
        let controls = self.plan.controls_of(name);
        let (first, others) = match controls.split_first() {
            Some((first, others)) if says_who_we_are => (Some(first), others),
            _ => (None, &*controls),
        };
        if let Some(first) = first {
            way.controls.push(ask(first).await);
        }
        way.controls.extend(join_all(others.iter().map(ask)).await);
        // What our own guards refuse says nothing of the way.
        way.controls.retain(|probe| !probe.failed_of("policy."));
        if let Some((target, path)) = &self.plan.portal {
            (self.progress)(&format!("{told}: is there a portal?"));
            let asked = self.ask(dial, target, Method::GET, path).await;
            way.portal = asked.ok().map(|status| status.as_u16());
        }
        for _ in 0..tries {
            (self.progress)(&format!("{told}: {}", self.plan.target));
            let begun = Instant::now();
            let outcome = self.attempt(dial, &mut way).await;
            let probe = probe(self.plan.target.to_string(), begun, outcome);
            // What somebody said they will say again.
            let is_worth_another = says_nothing(&probe)
                || probe.failed_of("connect.timeout")
                || probe.failed_of("connect.reset");
            way.target.push(probe);
            if !is_worth_another {
                break;
            }
            sleep(PAUSE).await;
        }
        let is_shaken = way.works() || way.failure().is_some_and(|probe| probe.failed_of("http."));
        if is_shaken && self.plan.spoken == Spoken::Tls {
            (self.progress)(&format!("{told}: HTTP/2"));
            way.http2 = self.ask_http2(dial).await;
            let has_failed = |http: &Http| http.failure.is_some();
            if way.http2.as_ref().is_some_and(has_failed) {
                sleep(PAUSE).await;
                way.http2 = self.ask_http2(dial).await;
            }
        }
        way
    }

    /// One try of the target by a way.
    async fn attempt(&self, dial: &Arc<dyn Dial>, way: &mut Way) -> Result<(), Failure> {
        let Plan { target, path, .. } = self.plan;
        let asked = match self.plan.spoken {
            Spoken::Other => return self.dial(dial, target, Purpose::Tunnel).await.map(drop),
            Spoken::Http => self.ask(dial, target, Method::HEAD, path).await,
            Spoken::Tls => match self.shake(dial, target).await {
                Ok(shaken) => {
                    way.certificate = Some(certificate(&shaken.judgement));
                    self.ask_inside(shaken.stream).await
                }
                Err(Failed(failure, judgement)) => {
                    way.certificate = judgement.map(|judgement| certificate(&judgement));
                    return Err(failure);
                }
            },
        };
        way.http1 = match &asked {
            Ok(status) => Some(Http::of(status.as_u16())),
            Err(Failure::Origin(error)) => Some(Http::failed(chain(error))),
            Err(_) => None,
        };
        asked.map(drop)
    }

    async fn dial(
        &self,
        dial: &Arc<dyn Dial>,
        target: &Target,
        purpose: Purpose,
    ) -> Result<Conn, Failure> {
        let (addresses, dns) = self.plan.way_to(target);
        let plan = route::Plan {
            timeouts: self.timeouts.clone(),
            addresses: addresses.map(Ok),
            dns,
            via: self.plan.via().to_owned(),
            ..route::Plan::new(self.policy, self.client.clone(), target.clone(), purpose)
        };
        dial.dial(&plan, &Trail::default()).await
    }

    /// Opens a connection by a way and shakes hands, with HTTP/1.1 as what is to be spoken.
    async fn shake(&self, dial: &Arc<dyn Dial>, target: &Target) -> Result<Shaken, Failed> {
        let conn = self
            .dial(dial, target, Purpose::Tunnel)
            .await
            .map_err(|failure| Failed(failure, None))?;
        let offer = large(&[b"http/1.1"]);
        self.shake_on(conn, target, &target.host, &offer).await
    }

    /// The same on an open connection, for a name of choice.
    async fn shake_on(
        &self,
        conn: Conn,
        target: &Target,
        name: &Host,
        offer: &Offer<'_>,
    ) -> Result<Shaken, Failed> {
        let Conn {
            wire,
            early,
            is_end_to_end,
            ..
        } = conn;
        let connected = Instant::now();
        let carrier = wire.carrier().clone();
        let io = whole(wire, early);
        match handshake_as(io, name, &self.roots, offer, HELLO).await {
            Ok(Established { stream, judgement }) => Ok(Shaken {
                stream: Box::new(stream),
                judgement,
            }),
            Err(error) => {
                let judgement = if let HandshakeError::Certificate(judgement) = &error {
                    Some((**judgement).clone())
                } else {
                    None
                };
                let failure = Failure::Handshake(Box::new(Handshake {
                    server: target.to_string(),
                    server_name: name.name().map(str::to_owned),
                    error,
                    tcp: carrier.tcp_info().ok(),
                    since_connect: connected.elapsed(),
                    is_end_to_end,
                }));
                Err(Failed(failure, judgement))
            }
        }
    }
}

/// As browsers and newer tools shake hands.
fn large<'a>(alpn: &'a [&'a [u8]]) -> Offer<'a> {
    Offer {
        hello: Hello::Large,
        ..Offer::of(alpn)
    }
}

/// A connection, with what came on it already in front.
fn whole(wire: Wire, early: Bytes) -> Box<dyn Io> {
    let (reading, writing) = split(wire);
    Box::new(join(Cursor::new(early).chain(reading), writing))
}

/// A stream of any kind.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

struct Shaken {
    stream: Box<dyn Io>,
    judgement: Judgement,
}

/// A handshake that failed, and what the certificate was worth where one came.
struct Failed(Failure, Option<Judgement>);

fn certificate(judgement: &Judgement) -> Certificate {
    let day = |at: &Timestamp| at.strftime("%F").to_string();
    Certificate {
        verdict: judgement.verdict.as_str(),
        is_trusted: judgement.is_trusted,
        subject: judgement.subject.clone(),
        issuer: judgement.issuer.clone(),
        sha256: judgement.sha256.clone(),
        not_after: judgement.not_after.as_ref().map(day),
        interceptor: judgement.interceptor,
    }
}
