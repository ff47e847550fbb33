//! git and its proxies: which of the places that it reads applies to a URL, and what became of asking it. Pure.

use serde::Serialize;

use super::Verdict;
use super::verdict::Certainty::{Certain, Strong};
use crate::config::env::{proxy_target, proxy_without_credentials};
use crate::policy::no_proxy::clients::{Program, Url, Variables, Way, Why};
use crate::secret::Secret;

/// What git speaks to a remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// `http://` or `https://`.
    Http,
    /// `ssh://`, or `user@host:path`.
    Ssh,
    /// `git://`.
    Git,
}

/// A remote, as its URL names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remote {
    /// What is spoken.
    pub transport: Transport,
    /// Whether inside TLS.
    pub is_tls: bool,
    /// The host.
    pub host: String,
    /// The port, where it is written.
    pub port: Option<u16>,
}

impl Remote {
    /// Reads a URL as git does; nothing where it is a path on this machine.
    pub fn parse(url: &str) -> Option<Self> {
        let (transport, is_tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (Transport::Http, true, rest),
            Some(("http", rest)) => (Transport::Http, false, rest),
            Some(("ssh" | "git+ssh" | "ssh+git", rest)) => (Transport::Ssh, false, rest),
            Some(("git", rest)) => (Transport::Git, false, rest),
            Some(_) => return None,
            // `host:path`; a slash before the colon makes it a path.
            None => {
                let (host, _) = url
                    .split_once(':')
                    .filter(|(host, _)| !host.contains('/'))?;
                let host = host.rsplit('@').next().unwrap_or(host);
                return Some(Self {
                    transport: Transport::Ssh,
                    is_tls: false,
                    host: host.trim_matches(['[', ']']).to_lowercase(),
                    port: None,
                });
            }
        };
        let authority = rest.split('/').next().unwrap_or(rest);
        let authority = authority.rsplit('@').next().unwrap_or(authority);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
            _ => (authority, None),
        };
        Some(Self {
            transport,
            is_tls,
            host: host.trim_matches(['[', ']']).to_lowercase(),
            port,
        })
    }

    /// The port, written or not.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.transport {
            Transport::Http if self.is_tls => 443,
            Transport::Http => 80,
            Transport::Ssh => 22,
            Transport::Git => 9418,
        })
    }
}

/// A line of git's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file, or what else it comes of.
    pub source: String,
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Secret,
}

/// Reads `git config --list -z --show-origin`.
pub fn entries(text: &str) -> Vec<Entry> {
    let mut parts = text.split('\0');
    let mut entries = Vec::new();
    while let (Some(source), Some(line)) = (parts.next(), parts.next()) {
        let (key, value) = line.split_once('\n').unwrap_or((line, ""));
        entries.push(Entry {
            source: source.trim_start_matches("file:").to_owned(),
            key: key.to_owned(),
            value: Secret::new(value),
        });
    }
    entries
}

/// A place that names a proxy, or a program in its stead.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// The file, or `environment`.
    pub source: String,
    /// The key or variable.
    pub name: String,
    /// What it says, without user name and password; nothing for "no proxy".
    pub value: String,
    /// The same as it is.
    #[serde(skip)]
    pub secret: Secret,
}

impl Place {
    fn new(source: &str, name: &str, value: &str) -> Self {
        Self {
            source: source.to_owned(),
            name: name.to_owned(),
            value: proxy_without_credentials(value),
            secret: Secret::new(value),
        }
    }

    /// For people.
    pub fn told(&self) -> String {
        let value = if self.value.is_empty() {
            "(nothing: no proxy)"
        } else {
            &self.value
        };
        format!("{}={value} ({})", self.name, self.source)
    }
}

/// The places that speak of a remote by HTTP, the one that applies first. `matched` is what `git config --get-urlmatch
/// http.proxy URL` says: git itself finds the most specific `http.<url>.proxy`.
///
/// Source: git's `http.c`, `get_curl_handle`: `remote.<name>.proxy`, then `http.proxy`, then the variables, of which those
/// in lower case come first, and `HTTP_PROXY` is not read.
pub fn places(
    entries: &[Entry],
    matched: Option<&str>,
    name: Option<&str>,
    remote: &Remote,
    variables: Variables<'_>,
) -> Vec<Place> {
    let mut places = Vec::new();
    let last = |key: &str| {
        entries
            .iter()
            .rev()
            .find(|entry| entry.key.eq_ignore_ascii_case(key))
    };
    if let Some(entry) = name.and_then(|name| last(&format!("remote.{name}.proxy"))) {
        places.push(Place::new(&entry.source, &entry.key, entry.value.reveal()));
    }
    if let Some(matched) = matched {
        let is_it = |entry: &&Entry| {
            let key = entry.key.to_lowercase();
            // `http.<url>.proxy` has dots of its own in the middle.
            let is_one =
                key.split('.').next() == Some("http") && key.rsplit('.').next() == Some("proxy");
            is_one && entry.value.reveal() == matched
        };
        let found = entries.iter().rev().find(is_it);
        let (source, key) = found.map_or(("git config", "http.proxy"), |entry| {
            (&*entry.source, &*entry.key)
        });
        places.push(Place::new(source, key, matched));
    }
    let names: &[&str] = if remote.is_tls {
        &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        &["http_proxy", "all_proxy", "ALL_PROXY"]
    };
    let set = names
        .iter()
        .filter_map(|name| Some((*name, variables(name)?)));
    places.extend(
        set.filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| Place::new("environment", name, value)),
    );
    places
}

/// The entry of `NO_PROXY` that takes a remote away from the proxy, wherever that is set: git hands both to curl.
pub fn exempted(remote: &Remote, variables: Variables<'_>) -> Option<String> {
    let url = Url {
        is_tls: remote.is_tls,
        host: remote.host.clone(),
        port: remote.port,
    };
    let with = |name: &str| match name {
        "http_proxy" | "https_proxy" => Some("http://proxy.invalid:1"),
        "NO_PROXY" | "no_proxy" => variables(name),
        _ => None,
    };
    match Program::Curl.way(&with, &url) {
        Way::Direct(Why::Entry(entry)) => Some(entry),
        Way::Direct(_) | Way::Proxy(_) | Way::Fails(_) => None,
    }
}

/// The places that speak of a remote by ssh or by git's own protocol, the one that applies first.
pub fn commands(
    entries: &[Entry],
    remote: &Remote,
    ssh: Option<&str>,
    variables: Variables<'_>,
) -> Vec<Place> {
    let mut places = Vec::new();
    match remote.transport {
        Transport::Ssh => {
            let lines = ssh.into_iter().flat_map(str::lines);
            for (name, value) in lines.filter_map(|line| line.split_once(' ')) {
                if matches!(name, "proxycommand" | "proxyjump") && value != "none" {
                    places.push(Place::new("ssh -G", name, value));
                }
            }
        }
        Transport::Git => {
            if let Some(value) = variables("GIT_PROXY_COMMAND").filter(|value| !value.is_empty()) {
                places.push(Place::new("environment", "GIT_PROXY_COMMAND", value));
            }
            // `command for domain`; the first that fits counts.
            let fits = |entry: &&Entry| {
                let value = entry.value.reveal();
                let domain = value.split_once(" for ").map(|(_, domain)| domain);
                entry.key.eq_ignore_ascii_case("core.gitproxy")
                    && domain.is_none_or(|domain| {
                        remote.host == domain || remote.host.ends_with(&format!(".{domain}"))
                    })
            };
            places.extend(
                entries
                    .iter()
                    .filter(fits)
                    .map(|entry| Place::new(&entry.source, &entry.key, entry.value.reveal())),
            );
        }
        Transport::Http => {}
    }
    places
}

/// Everything that was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// The URL that git asks, without user name and password.
    pub url: String,
    /// The same, taken apart.
    pub remote: Remote,
    /// The places that speak of it, the one that applies first.
    pub places: Vec<Place>,
    /// The entry of `NO_PROXY` that takes it away from them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exempted: Option<String>,
    /// A proxy for HTTPS that is there where ssh or git's protocol do without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused: Option<Place>,
    /// What git said when it was asked for the remote's branches; nothing where all went well.
    pub said: Option<String>,
}

impl Seen {
    /// How git goes, for people.
    pub fn way(&self) -> String {
        match (&self.exempted, self.places.first()) {
            (Some(entry), Some(_)) => format!("git goes straight: NO_PROXY holds {entry}"),
            (_, None) => "git goes straight: no place names a proxy for it".to_owned(),
            (None, Some(place)) if place.value.is_empty() => {
                format!("git goes straight: {}", place.told())
            }
            (None, Some(place)) => format!("git goes by {}", place.told()),
        }
    }
}

/// Says what it amounts to; `network` is the doctor's own verdict about the way that git goes.
pub fn judge(seen: &Seen, network: Option<&Verdict>) -> Verdict {
    let url = &seen.url;
    let Some(said) = &seen.said else {
        return Verdict::new("fine", Certain, format!("git reaches {url}"))
            .because([seen.way(), "git ls-remote went well".to_owned()]);
    };
    let told = format!("git says: {}", reason(said));
    let has = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    let bad = seen.places.first().filter(|place| {
        seen.remote.transport == Transport::Http
            && !place.value.is_empty()
            && seen.exempted.is_none()
    });
    if let Some(place) = bad
        && let Err(problem) = proxy_target(place.secret.reveal())
        // Others that curl knows.
        && !place.value.starts_with("socks4")
    {
        return Verdict::new(
            "proxy_unusable",
            Certain,
            format!("{} names no proxy that can be used", place.name),
        )
        .because([format!("{}: {problem}", place.told()), told])
        .mend(format!("write http://HOST:PORT there: {}", place.source));
    }
    if has(&["Host key verification failed"]) {
        return Verdict::new("ssh_host_key", Certain, format!("ssh does not know the key of {}", seen.remote.host))
            .because([told, seen.way()])
            .mend("the way is fine: compare the key with what the host publishes, and connect once by hand");
    }
    if has(&[
        "could not read Username",
        "could not read Password",
        "Authentication failed",
        "Permission denied (",
        "error: 403",
    ]) {
        return Verdict::new(
            "git_credentials",
            Certain,
            format!(
                "the way is fine: {} wants other credentials",
                seen.remote.host
            ),
        )
        .because([told, seen.way()])
        .mend("look at git's credential.helper, the token's rights, or ssh-add -l");
    }
    if said.lines().any(is_missing) && network.is_none_or(Verdict::is_fine) {
        return Verdict::new(
            "repository_missing",
            Certain,
            format!(
                "the way is fine: {} has no such repository, or hides it",
                seen.remote.host
            ),
        )
        .because([told, seen.way()])
        .mend("look at the path of the URL; hosts also say this to who has no rights there");
    }
    if let (Some(unused), Some(network)) = (&seen.unused, network)
        && seen.places.is_empty()
        && !network.is_fine()
    {
        let port = seen.remote.port();
        return Verdict::new("goes_around_proxy", Strong, format!("git goes straight to port {port} of {}, around the proxy that HTTPS has", seen.remote.host))
            .because([format!("straight: {} ({})", network.sentence, network.id), format!("for HTTPS there is {}", unused.told()), told])
            .mend(match seen.remote.transport {
                Transport::Ssh => format!("in ~/.ssh/config: Host {}, ProxyCommand routecause connect {}; or git config --global url.https://{0}/.insteadOf ssh://git@{0}/", seen.remote.host, by(unused)),
                Transport::Http | Transport::Git => format!("git config --global url.https://{0}/.insteadOf git://{0}/", seen.remote.host),
            });
    }
    if let Some(network) = network.filter(|network| !network.is_fine()) {
        let mut verdict = network.clone();
        verdict.evidence.insert(0, seen.way());
        verdict.evidence.truncate(3);
        return verdict.but(told);
    }
    let way = if network.is_some() {
        "the way that it goes works"
    } else {
        "the way that it goes was not looked at"
    };
    Verdict::new(
        "unexplained",
        Strong,
        format!("git fails at {url}, and {way}"),
    )
    .because([told, seen.way()])
    .mend("GIT_CURL_VERBOSE=1 git ls-remote, or GIT_TRACE=1, shows what it does")
}

/// What `routecause connect` is told of a proxy. Credentials are not for a file.
fn by(proxy: &Place) -> String {
    if proxy.secret.reveal() == proxy.value {
        format!("--proxy {} %h %p", proxy.value)
    } else {
        let from = &proxy.name;
        format!("%h %p, with what {from} says in the variable ROUTECAUSE_PROXY")
    }
}

/// The line that tells most: what comes behind git's "Could not read" are wishes.
fn reason(said: &str) -> &str {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_end = |line: &&str| line.starts_with("fatal: Could not read from remote repository");
    let is_one = |line: &&str| {
        ["fatal: ", "ssh: ", "ERROR: "]
            .iter()
            .any(|from| line.starts_with(from))
    };
    let before = lines.clone().take_while(|line| !is_end(line));
    let first = before.clone().find(is_one);
    let told = first
        .or_else(|| before.last())
        .or_else(|| lines.next_back());
    told.unwrap_or_default()
}

/// Whether a host says so that it has no such repository, or git that it was told 404.
fn is_missing(line: &str) -> bool {
    let line = line.trim();
    line.starts_with("fatal: repository '") && line.ends_with("' not found")
        || [
            "Repository not found",
            "repository does not exist",
            "does not appear to be a git repository",
            "access denied or repository not exported",
            "The project you were looking for could not be found",
        ]
        .iter()
        .any(|part| line.contains(part))
}

#[cfg(test)]
mod tests;
