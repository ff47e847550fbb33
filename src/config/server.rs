//! The `server` section: how the proxy runs. Flags and variables are layered over it by whoever starts it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::decode::At;
use super::diag::Findings;
use super::raw;

/// The `server` section of a policy; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings {
    /// The listeners.
    pub listen: Option<Vec<Listener>>,
    /// The networks whose clients may use a listener that is not on loopback.
    pub allow_from: Option<Vec<IpNet>>,
    /// Whether `admin: off` is written; nothing else can be in this version.
    pub admin_off: bool,
    /// The form of records.
    pub log_format: Option<LogFormat>,
    /// The file that records go to.
    pub log_file: Option<PathBuf>,
    /// The name in Proxy-Status.
    pub name: Option<Arc<str>>,
    /// How long open tunnels may finish when the proxy stops.
    pub drain_timeout: Option<Duration>,
    /// How many client connections may be open.
    pub connections: Option<usize>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name, as in records.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// The form of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One line for people.
    Text,
}

/// Checks the section.
pub(super) fn check(
    raw: Option<&At<raw::Server>>,
    folder: &Path,
    findings: &mut Findings<'_>,
) -> ServerSettings {
    let Some(raw) = raw else {
        return ServerSettings::default();
    };
    let listen = raw.listen.as_ref().map(|list| listeners(list, findings));
    let is_open = |l: &&Listener| !l.address.ip().is_loopback();
    if let (Some(list), Some(listeners), None) = (&raw.listen, &listen, &raw.allow_from)
        && let Some(open) = listeners.iter().find(is_open)
    {
        let message = format!(
            "listener {} is not on loopback, and `allow_from` names nobody who may use it",
            open.address
        );
        let help = "without `allow_from` or --allow-from the proxy refuses to start";
        findings.warn(list.place, message).with_help(help);
    }
    if let Some(name) = &raw.name
        && !is_server_name(name)
    {
        let message = "the name stands in a header: letters, digits and -._ only, a letter first";
        findings.error(name.place, message);
    }
    let connections = raw
        .limits
        .as_ref()
        .and_then(|limits| limits.connections.as_ref());
    if let Some(count) = connections
        && count.0 == 0
    {
        findings.error(count.place, "with no connections nothing can be served");
    }
    ServerSettings {
        listen,
        allow_from: raw
            .allow_from
            .as_ref()
            .map(|nets| nets.iter().map(|net| net.0).collect()),
        admin_off: raw.admin.is_some(),
        log_format: raw.log_format.as_ref().map(|format| match format.value {
            raw::LogFormat::Json => LogFormat::Json,
            raw::LogFormat::Text => LogFormat::Text,
        }),
        log_file: raw.log_file.as_ref().map(|path| folder.join(&path.value)),
        name: raw.name.as_ref().map(|name| name.value.as_str().into()),
        drain_timeout: raw.drain_timeout.as_ref().map(|wait| wait.0),
        connections: connections.map(|count| usize::try_from(count.0).unwrap_or(usize::MAX)),
    }
}

fn listeners(list: &At<Vec<raw::Listener>>, findings: &mut Findings<'_>) -> Vec<Listener> {
    if list.is_empty() {
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
            None if at == 0 => "proxy".into(),
            None => format!("proxy{}", at + 1).into(),
        };
        if listeners.iter().any(|l| l.name == name) {
            let place = raw.name.as_ref().map_or(address.place, |name| name.place);
            findings.error(place, format!("a second listener is named `{name}`"));
        }
        if address.0.port() != 0 && listeners.iter().any(|l| l.address == address.0) {
            findings.error(
                address.place,
                format!("{} is listened on already", address.0),
            );
        }
        listeners.push(Listener {
            name,
            address: address.0,
        });
    }
    listeners
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
