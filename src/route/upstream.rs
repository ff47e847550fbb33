//! Through another proxy.

mod line;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use self::line::{Ask, Line, Sessions};
use super::{BoxFuture, Conn, Dial, Form, Names, Plan, Purpose, admit, connect};
use crate::cause::{Cause, Phase};
use crate::exchange::Trail;
use crate::failure::handshake::Handshake;
use crate::failure::{Failure, OriginError, classify};
use crate::net::here::is_here;
use crate::net::places::{Held, Places};
use crate::net::socket::Socket;
use crate::net::upstream::auth::{AuthError, Authenticator, Current, Talk};
use crate::net::upstream::http2::Session;
use crate::net::upstream::socks::{self, SocksError, Wanted};
use crate::net::upstream::tls::{self, Use};
use crate::net::upstream::{Reply, Reported, UpstreamError, proxy_protocol};
use crate::net::wire::Wire;
use crate::policy::Policy;
use crate::policy::guard::Admitted;
use crate::policy::upstream::{Forward, Protocol, Send, Upstream as Spec};
use crate::target::{Host, Target};
use crate::tls::handshake::refused_late;

/// An upstream proxy.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    spec: Arc<Spec>,
    authenticator: Option<Arc<Authenticator>>,
    tls: Option<tls::Client>,
    /// Connections of HTTP/2 that take tunnels.
    sessions: Arc<Sessions>,
    /// Room for its connections; unlimited where `None`.
    places: Option<Arc<Places>>,
    policy: Arc<Policy>,
    names: Names,
    /// Whether a script named it, and not the policy.
    is_stranger: bool,
}

/// A connection to an upstream.
struct Link {
    wire: Wire,
    is_http_2: bool,
    held: Held,
}

/// A tunnel: its connection, what came on it already, and what it occupies.
pub(super) type Opened = (Wire, Bytes, Held);

impl Upstream {
    /// The upstream of that name under a policy's guards.
    pub fn new(name: Arc<str>, spec: Arc<Spec>, policy: Arc<Policy>, names: Names) -> Self {
        let host = spec.proxy.host.to_string();
        let authenticator = spec
            .auth
            .clone()
            .map(|auth| Arc::new(Authenticator::new(auth, &host)));
        let tls = match &spec.protocol {
            Protocol::Https(tls) => Some(tls::Client::new(tls, &spec.proxy.host)),
            Protocol::Http | Protocol::Socks5 => None,
        };
        let places = spec.connections.map(|limit| Arc::new(Places::new(limit)));
        Self {
            name,
            spec,
            authenticator,
            tls,
            sessions: Arc::default(),
            places,
            policy,
            names,
            is_stranger: false,
        }
    }

    /// The same, which a script named: its addresses are judged as a target's are.
    #[must_use]
    pub fn named_by_script(self) -> Self {
        Self {
            is_stranger: true,
            ..self
        }
    }

    async fn open(&self, plan: &Plan, trail: &Trail) -> Result<Conn, Failure> {
        trail.hop(&self.name);
        let only_for = self.spec.proxy_protocol.map(|_| plan.client.peer);
        let is_asked_plainly = match plan.purpose {
            Purpose::Tunnel => false,
            Purpose::Forward => self.spec.forward == Forward::Absolute,
            Purpose::Reach => true,
        };
        if is_asked_plainly {
            let link = self.connect(plan, trail, Use::Requests).await?;
            return Ok(Conn {
                wire: link.wire,
                early: Bytes::new(),
                form: Form::Absolute {
                    upstream: self.name.clone(),
                    authenticator: self.authenticator.clone(),
                },
                is_end_to_end: false,
                only_for,
                told: None,
                held: link.held,
                hop: self.name.clone(),
                rest: None,
            });
        }
        let (opened, told) = match self.spec.send {
            Send::Host => (self.tunnel(plan, None, trail).await?, None),
            Send::Ip => {
                let addresses = self.admitted(plan, trail).await?;
                let (opened, told) = self.tunnel_to_one(plan, addresses, trail).await?;
                (opened, Some(Box::new(told)))
            }
        };
        let (wire, early, held) = opened;
        Ok(Conn {
            wire,
            early,
            form: Form::Origin,
            is_end_to_end: false,
            only_for,
            told,
            held,
            hop: self.name.clone(),
            rest: None,
        })
    }

    /// A tunnel to the target, by its name or by the address that the upstream is told instead.
    async fn tunnel(
        &self,
        plan: &Plan,
        told: Option<SocketAddr>,
        trail: &Trail,
    ) -> Result<Opened, Failure> {
        match self.spec.protocol {
            Protocol::Http | Protocol::Https(_) => {
                Box::pin(self.by_connect(plan, told, trail)).await
            }
            Protocol::Socks5 => self.by_socks(plan, told, trail).await,
        }
    }

    /// A tunnel to the first of these addresses that the upstream can reach: it is told one after another, within the time of
    /// one answer.
    async fn tunnel_to_one(
        &self,
        plan: &Plan,
        addresses: Vec<SocketAddr>,
        trail: &Trail,
    ) -> Result<(Opened, SocketAddr), Failure> {
        let deadline = Instant::now() + plan.timeouts.proxy_reply;
        let deadline = plan.deadline.map_or(deadline, |whole| whole.min(deadline));
        let mut left = addresses.into_iter().peekable();
        let mut bounded: Option<Plan> = None;
        loop {
            let Some(address) = left.next() else {
                // Never: a lookup without addresses, and guards that refuse all, are failures.
                return Err(self.failure(UpstreamError::Closed));
            };
            let tried = bounded.as_ref().unwrap_or(plan);
            match self.tunnel(tried, Some(address), trail).await {
                Ok(opened) => return Ok((opened, address)),
                Err(failure)
                    if left.peek().is_none()
                        || !is_of_address(&failure)
                        || Instant::now() >= deadline =>
                {
                    return Err(failure);
                }
                Err(_) => {}
            }
            bounded.get_or_insert_with(|| Plan {
                deadline: Some(deadline),
                ..plan.clone()
            });
        }
    }

    /// The addresses, one of which the upstream is told instead of the target's name: found and admitted here, the family first
    /// that is preferred.
    async fn admitted(&self, plan: &Plan, trail: &Trail) -> Result<Vec<SocketAddr>, Failure> {
        let started = Instant::now();
        let failed = |failure: &Failure| trail.failed(classify(failure), started.elapsed());
        let limit = plan.within(plan.timeouts.dns);
        let host = &plan.target.host;
        let names = self.names.of_target(host, plan.dns);
        let found = match &plan.addresses {
            Some(found) => found.clone(),
            None => names.lookup(host, limit, trail).await,
        };
        let found = found.map_err(Failure::from).inspect_err(failed)?;
        let judge = |address| self.policy.guards.admit(address, &plan.client, is_here);
        let admitted = admit(&plan.target, &found, names, &judge, trail).inspect_err(failed)?;
        Ok(admitted.into_iter().map(Admitted::address).collect())
    }

    /// Asks an HTTP proxy for a tunnel, and once more for each 407 that can be answered.
    async fn by_connect(
        &self,
        plan: &Plan,
        told: Option<SocketAddr>,
        trail: &Trail,
    ) -> Result<Opened, Failure> {
        let target = told.map_or_else(
            || plan.target.clone(),
            |address| Target::new(Host::Ip(address.ip()), address.port()),
        );
        let mut talk = Talk::new(
            self.authenticator.clone(),
            Method::CONNECT,
            target.to_string(),
        );
        let mut authorization = talk.first().await;
        let mut line = match self.shared(trail) {
            Some(line) => line,
            None => self.line(plan, trail).await?,
        };
        let mut was_asked = false;
        trail.enter(Phase::Upstream);
        let started = Instant::now();
        let mut asked_since = started;
        loop {
            let ask = Ask {
                target: &target,
                authorization: authorization.as_ref(),
                via: Some(plan.via.as_str()).filter(|via| !via.is_empty()),
                limit: reply_limit(plan, asked_since, &line),
            };
            let asked = line.ask(ask).await;
            if let (Line::Two { session, .. }, Ok(_) | Err(UpstreamError::Refused(_))) =
                (&line, &asked)
                && self.spec.proxy_protocol.is_none()
            {
                self.sessions.offer(session);
            }
            let error = match asked {
                Ok(opened) => {
                    talk.accepted();
                    trail.upstream(&self.name, started.elapsed());
                    return Ok(opened);
                }
                Err(error) => error,
            };
            if let UpstreamError::Refused(reply) = &error {
                // Some take a second CONNECT for none, on the connection of the first (nghttpx over HTTP/1.1).
                let is_confused = was_asked && reply.status == StatusCode::BAD_REQUEST;
                // To a CONNECT nobody but the upstream says 401.
                let is_refusal = reply.status == StatusCode::UNAUTHORIZED && talk.has_said();
                if !asks(reply) && !is_refusal && !is_confused {
                    talk.accepted();
                    return Err(self.refused(error, started.elapsed(), trail));
                }
                if !is_confused {
                    match talk.answer(reply).await {
                        Ok(answer) => authorization = Some(answer),
                        Err(why) => {
                            let reply = reply.clone();
                            let error = UpstreamError::Unauthorized { reply, why };
                            return Err(self.refused(error, started.elapsed(), trail));
                        }
                    }
                    trail.note(Talk::NOTE);
                    was_asked = reply.is_reusable;
                    if was_asked {
                        continue;
                    }
                }
            } else {
                // It had said that it would take another request, and did not.
                was_asked |= line.is_shared();
                if !was_asked || !line.is_spent_by(&error) {
                    return Err(self.refused(error, started.elapsed(), trail));
                }
                if let Line::Two { session, .. } = &line {
                    self.sessions.remove(session);
                }
                trail.last_try_failed(classify(&OriginError::Stale.into()));
            }
            let stood_before = line.is_shared();
            // Its place among those that the limit allows is the new one's.
            drop(line);
            line = self.line(plan, trail).await?;
            trail.enter(Phase::Upstream);
            if stood_before {
                // Another's silence is not the new one's.
                asked_since = Instant::now();
            }
            if was_asked || talk.is_bound() {
                authorization = talk.again().await.map_err(|why| {
                    self.refused(again_failed(error, why), started.elapsed(), trail)
                })?;
            }
            was_asked = false;
        }
    }

    async fn by_socks(
        &self,
        plan: &Plan,
        told: Option<SocketAddr>,
        trail: &Trail,
    ) -> Result<Opened, Failure> {
        let wanted = told.map_or_else(|| Wanted::Name(plan.target.clone()), Wanted::Address);
        let with = self.authenticator.as_deref();
        if let Some(with) = with
            && let Some(left) = with.held_back().await
        {
            let failure = self.failure(SocksError::HeldBack { left }.into());
            trail.failed(classify(&failure), Duration::ZERO);
            return Err(failure);
        }
        let mut is_fresh = false;
        loop {
            let mut link = self.connect(plan, trail, Use::Tunnels).await?;
            trail.enter(Phase::Upstream);
            let started = Instant::now();
            let login = with.and_then(Authenticator::login);
            let said = login.as_deref().map(Current::pair);
            let limit = plan.within(plan.timeouts.proxy_reply);
            let error = match socks::open(&mut link.wire, &wanted, said.as_ref(), limit).await {
                Ok(()) => {
                    trail.upstream(&self.name, started.elapsed());
                    return Ok((link.wire, Bytes::new(), link.held));
                }
                Err(error) => error,
            };
            if let (
                UpstreamError::Socks(SocksError::LoginRefused { .. }),
                Some(with),
                Some(login),
            ) = (&error, with, login)
            {
                with.refuse(&login);
                if !std::mem::replace(&mut is_fresh, true)
                    && with.refresh(&login).await.unwrap_or(false)
                {
                    continue;
                }
            }
            return Err(self.refused(error, started.elapsed(), trail));
        }
    }

    /// A connection of HTTP/2 that stands and takes another tunnel.
    fn shared(&self, trail: &Trail) -> Option<Line> {
        // What was said of one client in front of it holds for no other.
        if self.spec.proxy_protocol.is_some() {
            return None;
        }
        let (session, turn) = self.sessions.find()?;
        trail.reused(&self.name, session.socket());
        Some(Line::Two {
            session,
            turn: Some(turn),
            is_shared: true,
        })
    }

    /// A new connection, in the version of HTTP that was agreed.
    async fn line(&self, plan: &Plan, trail: &Trail) -> Result<Line, Failure> {
        let link = self.connect(plan, trail, Use::Tunnels).await?;
        if !link.is_http_2 {
            return Ok(Line::One(link));
        }
        let started = Instant::now();
        let Link { wire, held, .. } = link;
        let socket = wire.carrier().clone();
        let begun = Session::begin(wire, socket, held).await;
        let (session, connection) =
            begun.map_err(|error| self.refused(error, started.elapsed(), trail))?;
        self.sessions
            .run(&session, connection, plan.timeouts.keepalive);
        Ok(Line::Two {
            turn: session.turn(),
            session,
            is_shared: false,
        })
    }

    /// A connection to the proxy on which it can be asked.
    async fn connect(&self, plan: &Plan, trail: &Trail, used: Use) -> Result<Link, Failure> {
        let started = Instant::now();
        let mut held = Held::default();
        if let Some(places) = &self.places {
            let place = places.take().ok_or_else(|| {
                let limit = self.spec.connections.unwrap_or_default();
                let failure = self.failure(UpstreamError::Full { limit });
                trail.failed(classify(&failure), started.elapsed());
                failure
            })?;
            held.add(place);
        }
        let socket = self
            .reach(plan, trail)
            .await
            .map_err(|failure| self.reaching(failure))?;
        let connected = Instant::now();
        if let Some(version) = self.spec.proxy_protocol {
            let sent = async {
                let header = proxy_protocol::header(version, plan.client.peer, plan.client.local)?;
                socket.clone().write_all(&header).await
            };
            if let Err(source) = sent.await {
                let error = UpstreamError::Io { source };
                return Err(self.refused(error, connected.elapsed(), trail));
            }
        }
        let Some(tls) = &self.tls else {
            return Ok(Link {
                wire: Wire::Tcp(socket),
                is_http_2: false,
                held,
            });
        };
        trail.enter(Phase::Upstream);
        let shaken = tls.handshake(socket.clone(), used, plan.within(plan.timeouts.hello));
        match shaken.await {
            Ok((stream, is_http_2)) => Ok(Link {
                wire: Wire::inside(stream, socket),
                is_http_2,
                held,
            }),
            Err(error) => {
                let failure = self.reaching(Failure::Handshake(Box::new(Handshake {
                    server: self.spec.proxy.to_string(),
                    server_name: tls.server_name().name().map(str::to_owned),
                    error,
                    tcp: socket.tcp_info().ok(),
                    since_connect: connected.elapsed(),
                    is_end_to_end: true,
                })));
                trail.last_try_failed(classify(&failure));
                Err(failure)
            }
        }
    }

    async fn reach(&self, plan: &Plan, trail: &Trail) -> Result<Socket, Failure> {
        let started = Instant::now();
        let proxy = &self.spec.proxy;
        let names = self.names.of_upstream(&proxy.host);
        let found = names
            .find(&proxy.host, plan.within(plan.timeouts.dns), trail)
            .await
            .map_err(Failure::from);
        let found = found.inspect_err(|failure| {
            trail.failed(
                Cause::of_upstream(classify(failure).kind),
                started.elapsed(),
            );
        })?;
        let guards = &self.policy.guards;
        let judge = |address| {
            if self.is_stranger {
                guards.admit(address, &plan.client, is_here)
            } else {
                guards.admit_upstream(address, &plan.client, is_here)
            }
        };
        connect(proxy, found, names, &judge, Cause::of_upstream, plan, trail).await
    }

    /// What the upstream itself made of the request, noted.
    fn refused(&self, error: UpstreamError, took: Duration, trail: &Trail) -> Failure {
        trail.upstream(&self.name, took);
        if let (UpstreamError::Io { source }, Some(tls)) = (&error, &self.tls)
            && let Some(error) = refused_late(source)
        {
            let failure = self.reaching(Failure::Handshake(Box::new(Handshake {
                server: self.spec.proxy.to_string(),
                server_name: tls.server_name().name().map(str::to_owned),
                error,
                tcp: None,
                since_connect: took,
                is_end_to_end: true,
            })));
            trail.last_try_failed(classify(&failure));
            return failure;
        }
        if let UpstreamError::Refused(reply) | UpstreamError::Unauthorized { reply, .. } = &error {
            trail.replied(reply);
        } else if let UpstreamError::Socks(SocksError::Refused { code }) = &error {
            trail.socks_replied(*code);
        }
        let failure = self.failure(error);
        trail.last_try_failed(classify(&failure));
        failure
    }

    fn failure(&self, error: UpstreamError) -> Failure {
        Failure::Upstream {
            upstream: self.name.clone(),
            passes_443: false,
            error,
        }
    }

    /// A failure on the way to the upstream, named so; a loop is a loop on any way.
    fn reaching(&self, failure: Failure) -> Failure {
        if let Failure::Loop(_) = failure {
            return failure;
        }
        Failure::Reach {
            upstream: self.name.clone(),
            failure: Box::new(failure),
        }
    }
}

/// How long the answer on a line may take. One that stood before may be dead: where the time is short, what replaces it is left
/// as much.
fn reply_limit(plan: &Plan, since: Instant, line: &Line) -> Duration {
    let own = plan.timeouts.proxy_reply.saturating_sub(since.elapsed());
    let left = plan.within(own);
    if line.is_shared() && left < own {
        left / 2
    } else {
        left
    }
}

/// Whether the upstream speaks of the address that it was told: another may be reached.
fn is_of_address(failure: &Failure) -> bool {
    let Failure::Upstream { error, .. } = failure else {
        return false;
    };
    if let UpstreamError::Socks(SocksError::Refused { code }) = error {
        // Unreachable as a net or a host, refused, and a family that it does not speak (RFC 1928, section 6).
        matches!(code, 3 | 4 | 5 | 8)
    } else if let UpstreamError::Refused(reply) = error {
        reply.reported() == Some(Reported::Connect)
    } else {
        false
    }
}

fn asks(reply: &Reply) -> bool {
    reply.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
}

/// What is told where nothing more can be said on a new connection.
fn again_failed(last: UpstreamError, why: AuthError) -> UpstreamError {
    if let UpstreamError::Refused(reply) = last {
        UpstreamError::Unauthorized { reply, why }
    } else {
        last
    }
}

impl Dial for Upstream {
    fn dial<'a>(
        &'a self,
        plan: &'a Plan,
        trail: &'a Trail,
    ) -> BoxFuture<'a, Result<Conn, Failure>> {
        Box::pin(self.open(plan, trail))
    }
}
