//! Name servers: from the `dns` section and the rules' `dns` to who is asked, and how.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::check::Context;
use super::decode::{At, clip, nearest};
use super::diag::{Findings, Place};
use super::raw;
use super::upstreams::{Routes, tls::certificates};
use super::web;
use crate::policy::RouteId;
use crate::policy::dns::{Ask, AskId, Cache, Dns, Prefer, Secure, Server, Transport};
use crate::target::{Host, Target, TargetError};

/// A lookup asks several at a time, and no more often than twice: more servers would not all be asked in time.
const MOST_ADDRESSES: usize = 8;
/// Each answer takes some hundred bytes.
const MOST_ENTRIES: u64 = 1_000_000;

const TLS_PORT: u16 = 853;

/// The name servers of a policy, by the names that rules know.
#[derive(Debug, Default)]
pub(super) struct NameServers {
    pub(super) dns: Dns,
    /// Nothing behind the name of a server with a mistake.
    names: Vec<(Arc<str>, Option<AskId>)>,
}

impl NameServers {
    /// Compiles the `dns` section but for its pins.
    pub(super) fn compile(
        raw: Option<&raw::dns::Dns>,
        routes: &mut Routes,
        context: &Context<'_>,
        findings: &mut Findings<'_>,
    ) -> Self {
        let mut this = Self::default();
        this.names.push(("system".into(), Some(AskId::SYSTEM)));
        let Some(raw) = raw else { return this };
        for (name, server) in raw.servers.iter().flat_map(|servers| servers.iter()) {
            check_name(name, findings);
            let ask = ask(name, server, routes, context, findings);
            let id = ask.map(|ask| this.intern(ask));
            this.names.push((name.value.as_str().into(), id));
            this.add_domains(server, id, findings);
        }
        if let Some(default) = &raw.default {
            this.dns.default = this.find(default, findings).unwrap_or(AskId::SYSTEM);
        }
        let bogus = raw.bogus.iter().flat_map(|nets| nets.iter());
        this.dns.bogus = bogus.map(|net| net.0).collect();
        this.dns.prefer = match raw.prefer.as_ref().map(|prefer| prefer.value) {
            None | Some(raw::dns::Prefer::Happy) => Prefer::Happy,
            Some(raw::dns::Prefer::V4) => Prefer::V4,
            Some(raw::dns::Prefer::V6) => Prefer::V6,
            Some(raw::dns::Prefer::V4Only) => Prefer::V4Only,
            Some(raw::dns::Prefer::V6Only) => Prefer::V6Only,
        };
        if let Some(raw) = &raw.cache {
            this.dns.cache = cache(raw, findings);
        }
        this
    }

    /// Whom a rule's `dns` means.
    pub(super) fn ask(
        &mut self,
        raw: &At<raw::dns::RuleDns>,
        routes: &mut Routes,
        findings: &mut Findings<'_>,
    ) -> Option<AskId> {
        if raw.has.is_empty() {
            let message = "`dns` says who is asked: `server`, `via`, or both";
            findings.error(raw.place, message);
        }
        let id = match &raw.server {
            Some(server) => self.find(server, findings)?,
            None => self.dns.default,
        };
        let Some(via) = &raw.via else { return Some(id) };
        let route = routes.find(via, findings)?.connect;
        let Some(server) = &self.dns.ask(id).server else {
            if route == RouteId::DIRECT {
                return Some(id);
            }
            let message = "the system's name servers are not asked through an upstream";
            let help = "name one of `dns.servers` as `server` here, or as `dns.default`";
            findings.error(via.place, message).with_help(help);
            return None;
        };
        let mut server = server.clone();
        let via = (route != RouteId::DIRECT).then_some(route);
        if via.is_some() && server.transport == Transport::Udp {
            server = Arc::new(Server {
                transport: Transport::Tcp,
                ..(*server).clone()
            });
        }
        Some(self.intern(Ask {
            server: Some(server),
            via,
        }))
    }

    /// What is asked in the same way is asked by the same resolver, and remembered once.
    fn intern(&mut self, ask: Ask) -> AskId {
        let asks = &mut self.dns.asks;
        let same = asks.iter().position(|known| *known == ask);
        AskId(same.unwrap_or_else(|| {
            asks.push(ask);
            asks.len() - 1
        }))
    }

    fn find(&self, name: &At<String>, findings: &mut Findings<'_>) -> Option<AskId> {
        let found = self.names.iter().find(|(known, _)| **known == *name.value);
        if let Some((_, id)) = found {
            return *id;
        }
        let names = || self.names.iter().map(|(name, _)| &**name);
        let message = format!("there is no name server `{}`", clip(name));
        let help = match nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
        };
        findings.error(name.place, message).with_help(help);
        None
    }

    fn add_domains(
        &mut self,
        server: &raw::dns::NameServer,
        id: Option<AskId>,
        findings: &mut Findings<'_>,
    ) {
        for written in server.domains.iter().flat_map(|domains| domains.iter()) {
            let domain = match Host::parse(written.trim_start_matches('.')) {
                Ok(Host::Name(domain)) => domain,
                Ok(Host::Ip(_)) => {
                    let message = "an address is not looked up; a domain belongs here";
                    findings.error(written.place, message);
                    continue;
                }
                Err(error) => {
                    findings.error(written.place, error.to_string());
                    continue;
                }
            };
            let mut domains = self.dns.domains.iter();
            if domains.any(|(known, _)| *known == domain) {
                let message = format!("`{domain}` has its name server already");
                findings.error(written.place, message);
            }
            let id = id.unwrap_or(AskId::SYSTEM);
            self.dns.domains.push((domain, id));
        }
    }
}

fn check_name(name: &At<String>, findings: &mut Findings<'_>) {
    let is_word = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
    if name.as_str() == "system" {
        let message = "`system` is the name of the system's name servers";
        findings.error(name.place, message);
    } else if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
        let message = "a name server's name is made of a-z, 0-9, _ and -";
        findings.error(name.place, message);
    }
}

/// A server and its route, or a note of what is wrong with it.
fn ask(
    name: &At<String>,
    raw: &raw::dns::NameServer,
    routes: &mut Routes,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Ask> {
    const KINDS: [&str; 4] = ["udp", "tcp", "dot", "doh"];
    let kinds: Vec<_> = raw.has.iter().filter(|key| KINDS.contains(key)).collect();
    match *kinds {
        [_] => {}
        [] => {
            let message = format!("name server `{}` has no address", clip(name));
            let help = "give it one of `udp`, `tcp`, `dot` and `doh`";
            findings.error(name.place, message).with_help(help);
            return None;
        }
        [first, second, ..] => {
            let message = format!(
                "name server `{}` is asked in one way, and this has `{first}` and `{second}`",
                clip(name)
            );
            let help = "`udp` goes on by TCP where it must; for another way write another server";
            findings.error(name.place, message).with_help(help);
            return None;
        }
    }
    let is_plain = raw.dot.is_none() && raw.doh.is_none();
    let misplaced = [
        ("ip", raw.ip.as_ref().map(|at| at.place)),
        ("ca", raw.ca.as_ref().map(|at| at.place)),
    ];
    for (key, place) in misplaced {
        if let (true, Some(place)) = (is_plain, place) {
            let message = format!("`{key}` is for `dot` and `doh` servers");
            findings.error(place, message);
        }
    }
    let roots = match &raw.ca {
        Some(file) if !is_plain => {
            let roots = certificates(file, context.secrets, findings);
            roots.map(|roots| roots.into_iter().map(Into::into).collect())
        }
        Some(_) | None => None,
    };
    let via = match &raw.via {
        Some(via) => routes.find(via, findings).map(|routes| routes.connect),
        None => None,
    };
    let via = via.filter(|route| *route != RouteId::DIRECT);
    if let (Some(via), Some(_)) = (&raw.via, &raw.udp) {
        let message = "UDP does not pass through an upstream";
        let help = "write `tcp` instead of `udp`";
        findings.error(via.place, message).with_help(help);
    }
    let (addresses, place, transport) = if let Some(udp) = &raw.udp {
        let addresses: Vec<_> = udp.iter().map(|address| address.0).collect();
        (addresses, udp.place, Transport::Udp)
    } else if let Some(tcp) = &raw.tcp {
        let addresses: Vec<_> = tcp.iter().map(|address| address.0).collect();
        (addresses, tcp.place, Transport::Tcp)
    } else if let Some(dot) = &raw.dot {
        let target = named_server(dot, TLS_PORT, findings)?;
        let addresses = addresses_of(raw, &target, dot.place, findings)?;
        let name = target.host.to_string().into();
        (addresses, dot.place, Transport::Tls(Secure { name, roots }))
    } else {
        let doh = raw.doh.as_ref()?;
        let (target, path) = url(doh, findings)?;
        let addresses = addresses_of(raw, &target, doh.place, findings)?;
        let name = target.host.to_string().into();
        let secure = Secure { name, roots };
        (addresses, doh.place, Transport::Https { secure, path })
    };
    if addresses.len() > MOST_ADDRESSES {
        let message = format!(
            "{} addresses are too many: {MOST_ADDRESSES} may be",
            addresses.len()
        );
        findings.error(place, message);
    }
    let server = Server {
        name: name.value.as_str().into(),
        addresses,
        transport,
    };
    Some(Ask {
        server: Some(Arc::new(server)),
        via,
    })
}

/// `dns.example:853`
fn named_server(text: &At<String>, port: u16, findings: &mut Findings<'_>) -> Option<Target> {
    let target = match Target::from_authority(text) {
        Err(TargetError::MissingPort(_)) => Target::from_authority(&format!("{}:{port}", **text)),
        other => other,
    };
    target
        .map_err(|error| {
            let help = "write `dot: \"dns.example:853\"`";
            findings
                .error(text.place, error.to_string())
                .with_help(help);
        })
        .ok()
}

/// `https://dns.example/dns-query`; the template's variable at its end (RFC 8484, section 4.1) is for GET, and we POST.
fn url(text: &At<String>, findings: &mut Findings<'_>) -> Option<(Target, Arc<str>)> {
    let mut refuse = |message: String| {
        let help = "write `doh: \"https://dns.example/dns-query\"`";
        findings.error(text.place, message).with_help(help);
    };
    let written = text.strip_suffix("{?dns}").unwrap_or(text);
    match web::url(written, false) {
        Ok(web) if web.query.is_some() || &*web.path == "/" => {
            refuse("the URL is a host and a path, without a query".to_owned());
            None
        }
        Ok(web) => Some((web.server, web.path)),
        Err(message) => {
            refuse(message);
            None
        }
    }
}

/// Where a server that has a name is: no other server is asked for it.
fn addresses_of(
    raw: &raw::dns::NameServer,
    target: &Target,
    place: Place,
    findings: &mut Findings<'_>,
) -> Option<Vec<SocketAddr>> {
    let at = |ip: IpAddr| SocketAddr::new(ip, target.port);
    match (&raw.ip, &target.host) {
        (Some(ips), _) => Some(ips.iter().map(|ip| at(ip.0)).collect()),
        (None, Host::Ip(ip)) => Some(vec![at(*ip)]),
        (None, Host::Name(name)) if !raw.has.contains(&"ip") => {
            let message = format!("the address of `{name}` is not looked up");
            let help = "add its addresses, as in `ip: [192.0.2.53]`";
            findings.error(place, message).with_help(help);
            None
        }
        (None, Host::Name(_)) => None, // and what is wrong with `ip` was told
    }
}

fn cache(raw: &raw::dns::DnsCache, findings: &mut Findings<'_>) -> Cache {
    let default = Cache::default();
    let min_ttl = raw.min_ttl.as_ref().map_or(default.min_ttl, |at| at.0);
    let max_ttl = match &raw.max_ttl {
        Some(at) => at.0,
        // Who wants more than the default maximum says so by the minimum alone.
        None => default.max_ttl.max(min_ttl),
    };
    if let (true, Some(at)) = (min_ttl > max_ttl, &raw.min_ttl) {
        let message = "`min_ttl` may not be longer than `max_ttl`";
        findings.error(at.place, message);
    }
    let entries = raw.entries.as_ref();
    if let Some(at) = entries
        && at.0 > MOST_ENTRIES
    {
        let message = format!("{} answers are too many to remember", at.0);
        let help = format!("write {MOST_ENTRIES} or less");
        findings.error(at.place, message).with_help(help);
    }
    Cache {
        min_ttl,
        max_ttl,
        negative_ttl: raw
            .negative_ttl
            .as_ref()
            .map_or(default.negative_ttl, |at| at.0),
        entries: entries.map_or(default.entries, |at| at.0),
    }
}

/// Compiles `dns.hosts`.
pub(super) fn pins(
    raw: Option<&raw::dns::Dns>,
    findings: &mut Findings<'_>,
) -> Vec<(Arc<str>, Vec<IpAddr>)> {
    let mut pins: Vec<(Arc<str>, Vec<IpAddr>)> = Vec::new();
    let hosts = raw.and_then(|raw| raw.hosts.as_ref());
    for (name, addresses) in hosts.iter().flat_map(|hosts| hosts.iter()) {
        let (below, parent) = match name.strip_prefix("*.") {
            Some(parent) => ("*.", parent),
            None => ("", name.as_str()),
        };
        match Host::parse(parent) {
            Ok(Host::Name(host)) => {
                let host: Arc<str> = format!("{below}{host}").into();
                if pins.iter().any(|(pinned, _)| *pinned == host) {
                    findings.error(name.place, format!("`{host}` has its addresses already"));
                }
                pins.push((host, addresses.iter().map(|address| address.0).collect()));
            }
            Ok(Host::Ip(_)) => {
                findings.error(name.place, "an address needs no other; a name belongs here");
            }
            Err(error) => {
                findings.error(name.place, error.to_string());
            }
        }
    }
    pins.sort();
    pins
}
