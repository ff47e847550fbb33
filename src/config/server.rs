//! The `server` section: how the proxy runs. Flags and variables are layered over it by whoever starts it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::decode::{At, Count};
use super::diag::Findings;
use super::env::Environment;
use super::raw::{self, secrets::SecretRef};
use super::secrets::{self, SecretError};
use super::upstreams::tls::{certificates, identity};
use super::users::{self, Users};
use super::{DEFAULT_LISTEN, Options, Secrets, otlp};
use crate::policy::upstream::Identity;
use crate::secret::Secret;

/// The `server` section of a policy; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings {
    /// The listeners.
    pub listen: Option<Vec<Listener>>,
    /// The networks whose clients may use a listener that is not on loopback.
    pub allow_from: Option<Vec<IpNet>>,
    /// Where the admin listener is.
    pub admin: Option<AdminAddress>,
    /// Where its token is found.
    pub admin_token: Option<TokenSource>,
    /// The file of the history.
    pub history: Option<PathBuf>,
    /// How long the history keeps records.
    pub history_retention: Option<Duration>,
    /// How many hosts the metrics name.
    pub metrics_hosts: Option<usize>,
    /// Where records and spans are exported to.
    pub otlp: otlp::Written,
    /// The form of records.
    pub log_format: Option<LogFormat>,
    /// The file that records go to.
    pub log_file: Option<PathBuf>,
    /// The name in Proxy-Status.
    pub name: Option<Arc<str>>,
    /// How long open tunnels may finish when the proxy stops.
    pub drain_timeout: Option<Duration>,
    /// Who may use the proxy; `None` where nobody is asked.
    pub users: Option<Arc<Users>>,
    /// Limits of the whole proxy.
    pub limits: Limits,
}

/// Limits of the whole proxy; `None` where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How many client connections may be open.
    pub connections: Option<usize>,
    /// How many of them may come from one address.
    pub per_client: Option<usize>,
    /// How many requests to one target may be under way.
    pub per_target: Option<usize>,
    /// How many requests one client address may begin in a second.
    pub rate: Option<usize>,
}

impl Limits {
    /// These, and the others where they say nothing.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            connections: self.connections.or(others.connections),
            per_client: self.per_client.or(others.per_client),
            per_target: self.per_target.or(others.per_target),
            rate: self.rate.or(others.rate),
        }
    }
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name, as in records.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: ListenAt,
    /// TLS with its clients.
    pub tls: Option<Tls>,
    /// Whose connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<IpNet>,
    /// Whether its clients must say who they are, where that is written.
    pub auth: Option<bool>,
}

impl Listener {
    /// The URL by which clients name a proxy that listens so: without TLS where it can be had so. Nothing where no listener
    /// has an address that stays.
    pub fn url<'l>(listeners: impl IntoIterator<Item = &'l Self>) -> Option<String> {
        let named = listeners.into_iter().filter_map(|listener| {
            let ListenAt::Tcp(mut address) = listener.address else {
                return None;
            };
            if address.ip().is_unspecified() {
                address.set_ip(DEFAULT_LISTEN.ip());
            }
            (address.port() != 0).then_some((listener.tls.is_some(), address))
        });
        let (is_tls, address) = named.min_by_key(|(is_tls, _)| *is_tls)?;
        let scheme = if is_tls { "https" } else { "http" };
        Some(format!("{scheme}://{address}"))
    }

    /// One of which only the place is said.
    pub fn plain(at: usize, address: ListenAt) -> Self {
        Self {
            name: listener_name(at),
            address,
            tls: None,
            proxy_protocol: Vec::new(),
            auth: None,
        }
    }
}

impl Default for Listener {
    /// The one that is there where none is written.
    fn default() -> Self {
        Self::plain(0, ListenAt::Tcp(DEFAULT_LISTEN))
    }
}

/// What a listener shows its clients, and what it wants to see of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Its certificate and key.
    pub identity: Identity,
    /// The authorities one of which must have signed a client's certificate, as DER.
    pub client_ca: Option<Vec<Vec<u8>>>,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
    /// The next of the sockets that systemd passes.
    Passed,
}

impl ListenAt {
    /// Reads `127.0.0.1:3128`, `unix:/run/routecause.sock` or `systemd`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        if text == "systemd" {
            return Some(Self::Passed);
        }
        text.parse().ok().map(Self::Tcp)
    }

    /// The address; one on loopback that is no target's stands for what has none.
    pub fn socket(&self) -> SocketAddr {
        match self {
            Self::Tcp(address) => *address,
            Self::Unix(_) | Self::Passed => SocketAddr::new(DEFAULT_LISTEN.ip(), 0),
        }
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Passed => f.write_str("systemd"),
        }
    }
}

/// Where the admin listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// Nowhere.
    Off,
    /// At an address and a port.
    Tcp(SocketAddr),
    /// At a Unix socket.
    Unix(PathBuf),
}

impl AdminAddress {
    /// Its address and port, where it has them.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Off | Self::Unix(_) => None,
        }
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("write the path of the socket behind `unix:`".to_owned())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        // As it is printed for a browser.
        let plain = text.strip_prefix("http://").unwrap_or(text);
        let plain = plain.strip_suffix('/').unwrap_or(plain);
        plain.parse().map(Self::Tcp).map_err(|_| {
            format!(
                "`{text}` is not `off`, an address and a port such as 127.0.0.1:3129, or `unix:PATH`"
            )
        })
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where a secret is found that is read when the proxy starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// In a variable of the environment.
    Env(String),
    /// In a file, on its one line.
    File(PathBuf),
}

impl TokenSource {
    /// Reads it.
    ///
    /// # Errors
    /// What keeps it from being had.
    pub fn read(&self, environment: &Environment) -> Result<Secret, SecretError> {
        match self {
            Self::File(path) => secrets::of_file(path),
            Self::Env(name) => match environment.get(name) {
                Some(token) if !token.is_empty() => Ok(Secret::new(token)),
                Some(_) | None => Err(format!("the variable {name} is not set").into()),
            },
        }
    }
}

/// Where a secret stands that is read when the proxy starts.
pub(super) fn token_source(at: &At<SecretRef>, findings: &mut Findings<'_>) -> Option<TokenSource> {
    match &at.value {
        SecretRef::Env(name) => Some(TokenSource::Env(name.value.clone())),
        SecretRef::File(path) => {
            let folder = findings.folder(path.place);
            Some(TokenSource::File(folder.join(&path.value)))
        }
        SecretRef::Command(_) => {
            findings.error(at.place, "this secret comes of `env` or `file`");
            None
        }
    }
}

/// The form of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One line for people.
    Text,
}

/// Checks the section. Where listeners stand in, what is not used of it is not read, nor any file.
pub(super) fn check(
    raw: Option<&At<raw::server::Server>>,
    options: &Options,
    findings: &mut Findings<'_>,
) -> ServerSettings {
    let Some(raw) = raw else {
        return ServerSettings::default();
    };
    let secrets = (!options.stands_in).then_some(options.secrets);
    let listen = raw
        .listen
        .as_ref()
        .map(|list| listeners(list, secrets, findings));
    let name = raw.name.as_ref().map(|name| server_name(name, findings));
    let limits = (raw.limits.as_ref()).map(|limits| self::limits(limits, findings));
    let used = ServerSettings {
        listen,
        name,
        limits: limits.unwrap_or_default(),
        ..ServerSettings::default()
    };
    let Some(secrets) = secrets else {
        return used;
    };
    let users = (raw.auth.as_ref()).and_then(|auth| auth.users.as_ref());
    let users = users.map(|file| Arc::new(users::read(file, secrets, findings)));
    let is_open =
        |l: &&Listener| !l.address.socket().ip().is_loopback() && !l.knows_clients(users.is_some());
    if let (Some(list), Some(listeners), None) = (&raw.listen, &used.listen, &raw.allow_from)
        && options.listen.is_empty()
        && let Some(open) = listeners.iter().find(is_open)
    {
        let message = format!(
            "listener {} is not on loopback, and `allow_from` names nobody who may use it",
            open.address
        );
        let help = "without `allow_from`, --allow-from or `auth` the proxy refuses to start";
        findings.warn(list.place, message).with_help(help);
    }
    ServerSettings {
        allow_from: raw
            .allow_from
            .as_ref()
            .map(|nets| nets.iter().map(|net| net.0).collect()),
        admin: raw.admin.as_ref().map(|admin| match &admin.value.0 {
            AdminAddress::Unix(path) => AdminAddress::Unix(findings.folder(admin.place).join(path)),
            address @ (AdminAddress::Off | AdminAddress::Tcp(_)) => address.clone(),
        }),
        admin_token: (raw.admin_token.as_ref()).and_then(|token| token_source(token, findings)),
        history: (raw.history.as_ref()).and_then(|path| history(path, findings)),
        history_retention: raw.history_retention.as_ref().map(|wait| wait.0),
        metrics_hosts: (raw.metrics_hosts.as_ref())
            .map(|count| usize::try_from(count.0).unwrap_or(usize::MAX)),
        otlp: otlp::check(raw.otlp.as_ref(), findings),
        log_format: raw.log_format.as_ref().map(|format| match format.value {
            raw::server::LogFormat::Json => LogFormat::Json,
            raw::server::LogFormat::Text => LogFormat::Text,
        }),
        log_file: (raw.log_file.as_ref()).map(|path| findings.folder(path.place).join(&path.value)),
        drain_timeout: raw.drain_timeout.as_ref().map(|wait| wait.0),
        users,
        ..used
    }
}

fn server_name(name: &At<String>, findings: &mut Findings<'_>) -> Arc<str> {
    if !is_server_name(name) {
        let message = "the name stands in a header: letters, digits and -._ only, a letter first";
        findings.error(name.place, message);
    }
    name.value.as_str().into()
}

fn limits(raw: &raw::server::Limits, findings: &mut Findings<'_>) -> Limits {
    let mut limit = |count: &Option<At<Count>>| {
        let count = count.as_ref()?;
        if count.0 == 0 {
            findings.error(count.place, "with a limit of none nothing can be served");
        }
        Some(usize::try_from(count.0).unwrap_or(usize::MAX))
    };
    Limits {
        connections: limit(&raw.connections),
        per_client: limit(&raw.per_client),
        per_target: limit(&raw.per_target),
        rate: limit(&raw.rate),
    }
}

fn history(path: &At<String>, findings: &mut Findings<'_>) -> Option<PathBuf> {
    if !cfg!(feature = "history") {
        let help = "build routecause with `--features history`, or leave it out";
        let message = "this build keeps no history";
        findings.error(path.place, message).with_help(help);
        return None;
    }
    Some(findings.folder(path.place).join(&path.value))
}

impl Listener {
    /// Whether all its clients prove who they are.
    pub fn knows_clients(&self, has_users: bool) -> bool {
        let by_certificate = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        by_certificate || has_users && self.auth != Some(false)
    }
}

fn tls(
    raw: &raw::server::ListenerTls,
    secrets: Option<Secrets>,
    findings: &mut Findings<'_>,
) -> Option<Tls> {
    let client_ca = raw
        .client_ca
        .as_ref()
        .map(|file| certificates(file, secrets, findings).unwrap_or_default());
    let (cert, key) = raw.cert.as_ref().zip(raw.key.as_ref())?;
    let identity = identity(cert, key, secrets, findings)?;
    Some(Tls {
        identity,
        client_ca,
    })
}

fn listeners(
    list: &At<Vec<raw::server::Listener>>,
    secrets: Option<Secrets>,
    findings: &mut Findings<'_>,
) -> Vec<Listener> {
    // What is no listener is left out of it, and told of.
    if list.is_empty() && !findings.has_errors() {
        findings.error(
            list.place,
            "the list is empty; leave the key out or name a listener",
        );
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for (at, raw) in list.iter().enumerate() {
        let Some(address) = &raw.address else {
            continue;
        };
        let name: Arc<str> = match &raw.name {
            Some(name) => name.value.as_str().into(),
            None => listener_name(at),
        };
        if listeners.iter().any(|l| l.name == name) {
            let place = raw.name.as_ref().map_or(address.place, |name| name.place);
            findings.error(place, format!("a second listener is named `{name}`"));
        }
        let may_stand_twice = match &address.0 {
            ListenAt::Tcp(address) => address.port() == 0,
            ListenAt::Unix(_) => false,
            ListenAt::Passed => true,
        };
        if !may_stand_twice && listeners.iter().any(|l| l.address == address.0) {
            findings.error(
                address.place,
                format!("{} is listened on already", address.0),
            );
        }
        let tls = (raw.tls.as_ref()).and_then(|raw| tls(raw, secrets, findings));
        let nets = raw.proxy_protocol.iter().flat_map(|nets| nets.iter());
        listeners.push(Listener {
            name,
            address: address.0.clone(),
            tls,
            proxy_protocol: nets.map(|net| net.0).collect(),
            auth: raw.auth.as_ref().map(|auth| auth.value),
        });
    }
    listeners
}

/// The name of a listener that was given none, by its place.
pub fn listener_name(at: usize) -> Arc<str> {
    match at {
        0 => "proxy".into(),
        _ => format!("proxy-{}", at + 1).into(),
    }
}

/// A token that may name an intermediary (RFC 9209, section 2): kept to what every reader takes.
/// Whether a text can be `server.name`.
pub fn is_server_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The URL of listeners in words; `tls` in front of one with TLS.
    #[track_caller]
    fn named(listeners: &str, expected: Option<&str>) {
        let listeners = listeners.split_whitespace().map(|word| {
            let (is_tls, address) = match word.strip_prefix("tls:") {
                Some(address) => (true, address),
                None => (false, word),
            };
            let identity = Identity {
                chain: Vec::new(),
                key: Secret::new(""),
            };
            Listener {
                tls: is_tls.then_some(Tls {
                    identity,
                    client_ca: None,
                }),
                ..Listener::plain(0, ListenAt::parse(address).unwrap())
            }
        });
        let listeners: Vec<_> = listeners.collect();
        assert_eq!(Listener::url(&listeners).as_deref(), expected);
    }

    #[test]
    fn clients_are_told_of_a_listener_that_they_can_name() {
        named("192.0.2.1:80 127.0.0.1:81", Some("http://192.0.2.1:80"));
        named(
            "unix:/a.sock systemd 0.0.0.0:80",
            Some("http://127.0.0.1:80"),
        );
        named("tls:127.0.0.1:443 [::1]:80", Some("http://[::1]:80"));
        named(
            "unix:/a.sock tls:127.0.0.1:443",
            Some("https://127.0.0.1:443"),
        );
        named("127.0.0.1:0 unix:/a.sock systemd", None);
    }
}
