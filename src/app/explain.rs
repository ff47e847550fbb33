//! What the policy says of a request that nobody made.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method, Uri};
use jiff::Timestamp;

use crate::client::{Claim, Client};
use crate::config::Listener;
use crate::net::here::is_here;
use crate::net::resolve::ResolveError;
use crate::policy::dns::AskId;
use crate::policy::explain::{Explanation, explain};
use crate::policy::flight::Flight;
use crate::policy::guard::reached;
use crate::policy::{Lookup, Needs, Policy, Query, Scheme, Walk};
use crate::target::{Target, TargetError};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// As a tunnel or as a plain request.
    pub scheme: Scheme,
    /// By which method.
    pub method: Method,
    /// The host and port.
    pub target: Target,
    /// The path of a plain request.
    pub path: Option<String>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker<'a> {
    /// From where.
    pub address: IpAddr,
    /// The user name that is given, with its label where the policy's `labels` says so.
    pub user: Option<&'a str>,
    /// The label.
    pub label: Option<&'a str>,
    /// The listener that is asked.
    pub listener: &'a Listener,
}

/// What a lookup gives.
pub type Found = Result<Vec<IpAddr>, ResolveError>;

/// Why nothing can be said of a request.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No proxy is asked for it.
    #[error("scheme {0:?} is not asked of a proxy; write http://…, https://… or host:port")]
    Scheme(String),
    /// The target cannot be read.
    #[error(transparent)]
    Target(#[from] TargetError),
}

impl Asked {
    /// `http://…` is a plain request; `https://…` and `host:port` are a CONNECT.
    pub fn parse(text: &str) -> Result<Self, AskError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let target = Target::from_authority(text)?;
            return Ok(Self {
                scheme: Scheme::Connect,
                method: Method::CONNECT,
                target,
                path: None,
            });
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {
                let target = with_port(authority, 80)?;
                let uri: Option<Uri> = rest
                    .get(authority.len()..)
                    .and_then(|path| path.parse().ok());
                let path = uri.and_then(|uri| Some(uri.path_and_query()?.as_str().to_owned()));
                let path = Some(path.unwrap_or_else(|| "/".to_owned()));
                Ok(Self {
                    scheme: Scheme::Http,
                    method: Method::GET,
                    target,
                    path,
                })
            }
            "https" => {
                let target = with_port(authority, 443)?;
                Ok(Self {
                    scheme: Scheme::Connect,
                    method: Method::CONNECT,
                    target,
                    path: None,
                })
            }
            other => Err(AskError::Scheme(other.to_owned())),
        }
    }
}

impl Asked {
    /// Whether it is a plain request.
    pub fn is_plain(&self) -> bool {
        self.scheme == Scheme::Http
    }
}

fn with_port(authority: &str, default: u16) -> Result<Target, TargetError> {
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let spelled = if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:{default}")
    };
    Target::from_authority(&spelled)
}

/// Walks as the proxy would. `flight` comes first in the tunnel; `look_up` asks for the addresses where a rule does.
///
/// # Errors
/// What `look_up` says.
pub fn walk<E>(
    policy: &Policy,
    asked: &Asked,
    asker: &Asker<'_>,
    flight: &Flight,
    mut look_up: impl FnMut(Option<AskId>) -> Result<Found, E>,
) -> Result<Explanation, E> {
    let client = Client {
        peer: SocketAddr::new(asker.address, 0),
        local: asker.listener.address.socket(),
        listener: asker.listener.name.clone(),
    };
    let mut claim = Claim::of(asker.user.unwrap_or_default(), policy.labels);
    if let Some(label) = asker.label {
        claim.label = Some(label.into());
    }
    let is_plain = asked.scheme == Scheme::Http;
    let headers = HeaderMap::new();
    let mut asked_of = Query {
        client: &client,
        claim: &claim,
        scheme: asked.scheme,
        method: &asked.method,
        target: &asked.target,
        path: asked.path.as_deref(),
        headers: is_plain.then_some(&headers),
        is_here: None,
        addresses: None,
        first_flight: None,
        now: Timestamp::now(),
    };
    let mut found = None;
    let mut seen = None;
    loop {
        let addresses = found.as_ref().map(|found: &Result<Vec<_>, _>| match found {
            Ok(addresses) => Lookup::Found(addresses),
            Err(_) => Lookup::Failed,
        });
        let query = Query {
            addresses,
            first_flight: seen,
            ..asked_of.clone()
        };
        match explain(policy, &query) {
            Ok(explanation) => return Ok(explanation),
            Err(Needs::Machine) => {
                asked_of.is_here = asked.target.host.ip().map(|ip| reached(ip).any(is_here));
            }
            Err(Needs::FirstFlight) => seen = Some(flight),
            Err(Needs::Addresses) => {
                let mut walk = Walk::default();
                policy.step(&mut walk, &query);
                found = Some(look_up(policy.asks(&walk))?);
            }
        }
    }
}
