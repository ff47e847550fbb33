//! A client that speaks SOCKS5 (RFC 1928) on the port of HTTP: one CONNECT, then a tunnel.
//!
//! Without authentication, or with a user name and password (RFC 1929) that count as they do in HTTP. BIND and UDP are
//! refused. The limit on a request's head holds for the whole handshake.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{timeout, timeout_at};

use super::http::LINGER;
use crate::cause::Cause;
use crate::client::{Credentials, Given};
use crate::exchange::{Exchange, Presence};
use crate::failure::staged::Staged;
use crate::failure::{Failure, FirstBytes, HeadError, RequestError, Stranger, classify};
use crate::net::wire::Wire;
use crate::policy::Close;
use crate::proxy::tunnel::Tunnel;
use crate::proxy::{Proxy, Wish};
use crate::secret::Secret;
use crate::target::{Host, Target, TargetError};

const VERSION: u8 = 5;
/// The version of the exchange of a user name (RFC 1929, section 2).
const USER_VERSION: u8 = 1;

const NO_AUTHENTICATION: u8 = 0;
const USER_NAME: u8 = 2;
const NO_METHOD: u8 = 0xff;

const CONNECT: u8 = 1;

/// The replies (RFC 1928, section 6).
mod reply {
    pub(super) const SUCCEEDED: u8 = 0;
    pub(super) const FAILURE: u8 = 1;
    pub(super) const NOT_ALLOWED: u8 = 2;
    pub(super) const NETWORK_UNREACHABLE: u8 = 3;
    pub(super) const HOST_UNREACHABLE: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
    pub(super) const TTL_EXPIRED: u8 = 6;
    pub(super) const COMMAND: u8 = 7;
    pub(super) const ADDRESS_TYPE: u8 = 8;
}

/// What is to be done with the connection.
pub(super) enum Next {
    /// Nothing: it is over.
    Drop,
    /// It is a tunnel; these bytes came behind its request.
    Tunnel(Box<Tunnel>, Bytes),
    /// Its last answer is to arrive.
    Linger,
}

/// Serves a connection that began with these bytes. Whatever happens, one record is left.
pub(super) async fn speak(
    proxy: &Proxy,
    wire: &mut Wire,
    presence: &Arc<Presence>,
    begun: &[u8],
) -> Next {
    let mut exchange = Exchange::open(proxy.observer.clone(), presence.clone());
    exchange.traces(&HeaderMap::new(), proxy.sampler);
    let limit = proxy.snapshot.load().policy.timeouts.head;
    let until = wire.carrier().since() + limit;
    let mut talk = Talk {
        proxy,
        wire,
        unread: BytesMut::from(begun),
        is_turned_away: false,
    };
    let asked = tokio::select! {
        asked = timeout_at(until, talk.handshake(&mut exchange)) => asked,
        // The exchange says so when it is dropped.
        () = presence.cut.cancelled() => return Next::Drop,
    };
    let asked = asked.unwrap_or_else(|_| {
        let first = FirstBytes(vec![VERSION]);
        Err(HeadError::TimedOut {
            after: limit,
            first,
        }
        .into())
    });
    let Talk {
        wire,
        unread,
        is_turned_away,
        ..
    } = talk;
    let behind = unread.freeze();
    let opened = match asked {
        Err(failure) => Err(failure),
        Ok(Asked { target, given }) => {
            let wish = Wish {
                target,
                headers: None,
                given,
                via: proxy.identity.via.foreign("SOCKS/5"),
            };
            // An answer in HTTP names the route; there is none here.
            let mut route = None;
            tokio::select! {
                opened = proxy.open_tunnel(wish, wire.carrier(), &mut exchange, &mut route) => opened,
                () = presence.cut.cancelled() => return Next::Drop,
            }
        }
    };
    match opened {
        Ok(ends) => {
            let told = answer(wire, &message(reply::SUCCEEDED)).await;
            if !told {
                // It left before it heard of the tunnel: the exchange says so when it is dropped.
                return Next::Drop;
            }
            let (roots, tracker) = (proxy.roots.clone(), proxy.tracker.clone());
            Next::Tunnel(
                Box::new(Tunnel::new(ends, exchange, roots, tracker)),
                behind,
            )
        }
        Err(failure) => {
            let last = last_word(&failure).filter(|_| !is_turned_away);
            let has_left = matches!(failure, Failure::ClientGone { .. });
            if is_reset(&failure)
                && let Err(error) = wire.abort_on_close()
            {
                tracing::debug!(%error, "set a client to end with a reset");
            }
            exchange.fail(&failure);
            match last {
                _ if has_left => Next::Drop,
                Some(bytes) if !answer(wire, &bytes).await => Next::Drop,
                Some(_) | None => Next::Linger,
            }
        }
    }
}

/// Says something within the time that a last answer has.
async fn answer(wire: &mut Wire, bytes: &[u8]) -> bool {
    matches!(timeout(LINGER, wire.write_all(bytes)).await, Ok(Ok(())))
}

/// What a client asked for.
struct Asked {
    target: Target,
    given: Given,
}

/// A handshake under way.
struct Talk<'s> {
    proxy: &'s Proxy,
    wire: &'s mut Wire,
    /// What was read and not looked at. It may hold a password, and is shown nowhere.
    unread: BytesMut,
    /// The client heard that its name is not taken: nothing may follow (RFC 1929, section 2).
    is_turned_away: bool,
}

impl Talk<'_> {
    async fn handshake(&mut self, exchange: &mut Exchange) -> Result<Asked, Failure> {
        let greeting = self.take(2).await?;
        let [_, count] = *greeting else {
            return Err(HeadError::Socks5("a greeting has two bytes").into());
        };
        let methods = self.take(count.into()).await?;
        // A client that has a name to give is asked for it.
        let asks_who = exchange.presence().asks_who && exchange.presence().proven.is_none();
        let method = [USER_NAME, NO_AUTHENTICATION]
            .into_iter()
            .find(|method| methods.contains(method) && !(asks_who && *method == NO_AUTHENTICATION));
        let given = match method {
            None if asks_who => return Err(Stranger::Nameless.into()),
            None => return Err(HeadError::Socks5(NO_COMMON_METHOD).into()),
            Some(method) => {
                self.say(&[VERSION, method]).await?;
                match method {
                    USER_NAME => Given::Basic(self.credentials(exchange).await?),
                    _ => Given::Nothing,
                }
            }
        };
        let head = self.take(4).await?;
        let [version, command, _, kind] = *head else {
            return Err(HeadError::Socks5("a request has four bytes").into());
        };
        if version != VERSION {
            return Err(HeadError::Socks5("the request is of another version").into());
        }
        exchange.asked_by_socks();
        if command != CONNECT {
            return Err(RequestError::SocksCommand(command).into());
        }
        let target = self.target(kind).await?;
        // Whoever gave a name entered with it.
        if matches!(given, Given::Nothing) {
            exchange.targets(&target);
            self.proxy.enter(exchange.presence())?;
        }
        Ok(Asked { target, given })
    }

    /// Takes a user name and its password, and says whether they are right: all are where nobody is asked.
    async fn credentials(&mut self, exchange: &mut Exchange) -> Result<Credentials, Failure> {
        let head = self.take(2).await?;
        let [version, length] = *head else {
            return Err(HeadError::Socks5("a user name has a length").into());
        };
        if version != USER_VERSION {
            return Err(HeadError::Socks5("the user name is of another version").into());
        }
        let name = self.take(length.into()).await?;
        let length = self.take(1).await?.first().copied().unwrap_or_default();
        let password = self.take(length.into()).await?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap_or_default();
        let credentials = Credentials {
            name: text(&name),
            password: Secret::new(text(&password)),
        };
        let checked = match self.proxy.enter(exchange.presence()) {
            Ok(()) => self.proxy.check(&credentials, exchange).await,
            Err(refused) => Err(refused),
        };
        self.is_turned_away = checked.is_err();
        self.say(&[USER_VERSION, u8::from(checked.is_err())])
            .await?;
        checked.map(|()| credentials)
    }

    /// Takes the address and port of a request.
    async fn target(&mut self, kind: u8) -> Result<Target, Failure> {
        let host = match kind {
            1 => {
                let bytes = self.take(4).await?;
                let ip = <[u8; 4]>::try_from(&*bytes).map(Ipv4Addr::from);
                ip.map(|ip| ip.to_string()).unwrap_or_default()
            }
            3 => {
                let length = self.take(1).await?.first().copied().unwrap_or_default();
                let name = self.take(length.into()).await?;
                String::from_utf8_lossy(&name).into_owned()
            }
            4 => {
                let bytes = self.take(16).await?;
                let ip = <[u8; 16]>::try_from(&*bytes).map(Ipv6Addr::from);
                ip.map(|ip| ip.to_string()).unwrap_or_default()
            }
            other => return Err(RequestError::SocksAddress(other).into()),
        };
        let port = self.take(2).await?.get_u16();
        // One way to a canonical form for whatever a client speaks.
        let host = Host::parse(&host).map_err(RequestError::from)?;
        if port == 0 {
            return Err(RequestError::from(TargetError::BadPort("0".to_owned())).into());
        }
        Ok(Target::new(host, port))
    }

    /// Takes so many bytes, waiting for them.
    async fn take(&mut self, count: usize) -> Result<Bytes, HeadError> {
        while self.unread.len() < count {
            let read = self.wire.read_buf(&mut self.unread).await;
            if !matches!(read, Ok(1..)) {
                return Err(HeadError::Cut(FirstBytes(vec![VERSION])));
            }
        }
        Ok(self.unread.split_to(count).freeze())
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), HeadError> {
        let cut = |_| HeadError::Cut(FirstBytes(vec![VERSION]));
        self.wire.write_all(bytes).await.map_err(cut)
    }
}

const NO_COMMON_METHOD: &str =
    "the client takes neither no authentication nor a user name (RFC 1928, section 3)";

/// A reply. The address that we are bound to says nothing to anyone: zeros are usual.
fn message(code: u8) -> Vec<u8> {
    vec![VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// What a client hears last; nothing where it left, or would not understand.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no word of its own is told by its cause"
)]
fn last_word(failure: &Failure) -> Option<Vec<u8>> {
    match failure {
        Failure::Head(HeadError::Socks5(NO_COMMON_METHOD)) => Some(vec![VERSION, NO_METHOD]),
        Failure::Stranger(Stranger::Nameless) => Some(vec![VERSION, NO_METHOD]),
        Failure::Stranger(_) | Failure::Head(_) | Failure::ClientGone { .. } => None,
        failure if is_reset(failure) => None,
        // An answer of HTTP means nothing here, and is told by its cause.
        failure if failure.staged().is_some_and(Staged::is_silent) => None,
        Failure::Request(RequestError::SocksCommand(_)) => Some(message(reply::COMMAND)),
        Failure::Request(RequestError::SocksAddress(_)) => Some(message(reply::ADDRESS_TYPE)),
        other => Some(message(reply_to(classify(other)))),
    }
}

/// Whether the client is to see a reset, and no word.
fn is_reset(failure: &Failure) -> bool {
    let is_denied = matches!(failure, Failure::Denied(denied) if denied.close == Close::Rst);
    is_denied || failure.staged().is_some_and(Staged::is_reset)
}

/// The reply that comes nearest to a cause, by its class in RFC 9209.
fn reply_to(cause: Cause) -> u8 {
    if matches!(
        &*cause.id(),
        "connect.unreachable.host" | "connect.neighbour_dead"
    ) {
        return reply::HOST_UNREACHABLE;
    }
    match cause.proxy_status() {
        Some("http_request_denied" | "destination_ip_prohibited") => reply::NOT_ALLOWED,
        Some("destination_ip_unroutable") => reply::NETWORK_UNREACHABLE,
        Some("dns_error" | "dns_timeout" | "destination_not_found" | "destination_unavailable") => {
            reply::HOST_UNREACHABLE
        }
        Some("connection_refused") => reply::REFUSED,
        Some("connection_timeout" | "http_response_timeout") => reply::TTL_EXPIRED,
        _ => reply::FAILURE,
    }
}
