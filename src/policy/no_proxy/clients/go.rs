//! Go: `golang.org/x/net/http/httpproxy`.

use std::net::IpAddr;

use super::{Url, Variables, Way, Why, by, filled, is_at_or_below};
use crate::policy::no_proxy::{Pattern, parse_net};
use crate::target::canonical_ip;

pub(super) fn way(variables: Variables<'_>, url: &Url) -> Way {
    let names: &[_] = if url.is_tls {
        &["HTTPS_PROXY", "https_proxy"]
    } else {
        &["HTTP_PROXY", "http_proxy"]
    };
    let Some((variable, _)) = filled(variables, names) else {
        return Way::Direct(Why::Unset);
    };
    if !url.is_tls && filled(variables, &["REQUEST_METHOD"]).is_some() {
        return Way::Fails("HTTP_PROXY is refused where REQUEST_METHOD is set");
    }
    let ip = url.ip().map(canonical_ip);
    if url.host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return Way::Direct(Why::Loopback);
    }
    let list = filled(variables, &["NO_PROXY", "no_proxy"]).map_or("", |(_, list)| list);
    let entries = list
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let exempts = |entry: &str| {
        let text = entry.to_lowercase();
        if text == "*" {
            return true;
        }
        if let Some(Pattern::Net(net)) = parse_net(&text) {
            return ip.is_some_and(|ip| net.contains(&ip));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, port),
            Some((host, port)) if host.starts_with('[') && host.ends_with(']') => {
                (host.trim_start_matches('[').trim_end_matches(']'), port)
            }
            Some(_) | None => (&*text, ""),
        };
        if !port.is_empty() && port != url.port_or_default().to_string() {
            return false;
        }
        if let Ok(entry) = host.parse::<IpAddr>() {
            return ip == Some(canonical_ip(entry));
        }
        // Before 1.24 the end of an address could match a name.
        if ip.is_some() {
            return false;
        }
        let host = host
            .strip_prefix('*')
            .filter(|h| h.starts_with('.'))
            .unwrap_or(host);
        if host.is_empty() {
            return false;
        }
        let host = idna::domain_to_ascii(host).unwrap_or_else(|_| host.to_owned());
        match host.strip_prefix('.') {
            Some(_) => url.host.ends_with(&host),
            None => is_at_or_below(&url.host, &host),
        }
    };
    match entries.into_iter().find(|entry| exempts(entry)) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}
