//! Python: `urllib`, requests, httpx and aiohttp.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Url, Variables, Way, Why, by, filled, is_at_or_below};

/// A variable as Python reads it: in lower case first, where set to nothing it hides the other.
fn of_python<'v>(
    variables: Variables<'v>,
    lower: &'static str,
    upper: &'static str,
) -> Option<(&'static str, &'v str)> {
    match variables(lower) {
        Some("") => return None,
        Some(value) => return Some((lower, value)),
        None => {}
    }
    if upper == "HTTP_PROXY" && variables("REQUEST_METHOD").is_some() {
        return None;
    }
    filled(variables, &[upper])
}

fn of_python_scheme<'v>(variables: Variables<'v>, url: &Url) -> Option<(&'static str, &'v str)> {
    if url.is_tls {
        of_python(variables, "https_proxy", "HTTPS_PROXY")
    } else {
        of_python(variables, "http_proxy", "HTTP_PROXY")
    }
}

/// `urllib.request.proxy_bypass_environment`: the entry that exempts `host`, which may hold a port.
fn python_bypass<'v>(variables: Variables<'v>, host: &str) -> Option<&'v str> {
    let (_, list) = of_python(variables, "no_proxy", "NO_PROXY")?;
    if list == "*" {
        return Some(list);
    }
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    list.split(',').find(|entry| {
        let entry = entry.trim().trim_start_matches('.').to_lowercase();
        !entry.is_empty() && (is_at_or_below(without_port, &entry) || is_at_or_below(host, &entry))
    })
}

pub(super) fn urllib(variables: Variables<'_>, url: &Url) -> Way {
    let Some((variable, _)) = of_python_scheme(variables, url) else {
        return Way::Direct(Why::Unset);
    };
    let port = url.port.map(|port| format!(":{port}")).unwrap_or_default();
    match python_bypass(variables, &format!("{}{port}", url.bracketed())) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}

pub(super) fn requests(variables: Variables<'_>, url: &Url) -> Way {
    let all = || of_python(variables, "all_proxy", "ALL_PROXY");
    let Some((variable, _)) = of_python_scheme(variables, url).or_else(all) else {
        return Way::Direct(Why::Unset);
    };
    let list = filled(variables, &["no_proxy", "NO_PROXY"]).map_or("", |(_, list)| list);
    let list = list.replace(' ', "");
    let entries = list.split(',').filter(|entry| !entry.is_empty());
    let exempts = |entry: &&str| {
        if let Ok(ip) = url.host.parse::<Ipv4Addr>() {
            let Some((net, bits)) = entry.split_once('/') else {
                return *entry == url.host;
            };
            let net = net.parse().ok().zip(bits.parse().ok());
            return net
                .filter(|(_, bits)| (1..=32).contains(bits))
                .and_then(|(net, bits)| ipnet::Ipv4Net::new(net, bits).ok())
                .is_some_and(|net| net.contains(&ip));
        }
        let entry = entry.trim_start_matches('.');
        let with_port = url.port.map(|port| format!("{}:{port}", url.host));
        is_at_or_below(&url.host, entry)
            || with_port.is_some_and(|host| is_at_or_below(&host, entry))
    };
    if let Some(entry) = entries.into_iter().find(exempts) {
        return by(entry);
    }
    match python_bypass(variables, &url.host) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}

pub(super) fn httpx(variables: Variables<'_>, url: &Url) -> Way {
    let all = || of_python(variables, "all_proxy", "ALL_PROXY");
    let proxy = of_python_scheme(variables, url).or_else(all);
    let list = of_python(variables, "no_proxy", "NO_PROXY").map_or("", |(_, list)| list);
    let entries: Vec<_> = list.split(',').map(str::trim).collect();
    if let (Some(_), Some(star)) = (proxy, entries.iter().find(|entry| **entry == "*")) {
        return by(star);
    }
    let mut found = None;
    for entry in entries.into_iter().filter(|entry| !entry.is_empty()) {
        match httpx_exempts(entry, url) {
            // The client cannot be made, whatever it is to fetch.
            Err(why) => return Way::Fails(why),
            Ok(true) => found = found.or(Some(entry)),
            Ok(false) => {}
        }
    }
    match (proxy, found) {
        (None, _) => Way::Direct(Why::Unset),
        (Some(_), Some(entry)) => by(entry),
        (Some((variable, _)), None) => Way::Proxy(variable),
    }
}

/// Whether an entry, made a URL pattern, matches.
fn httpx_exempts(entry: &str, url: &Url) -> Result<bool, &'static str> {
    const IPV6: &str = "an IPv6 range, or an address in brackets, in NO_PROXY raises an error";
    let entry = entry.to_lowercase();
    let (scheme, pattern) = entry.split_once("://").unwrap_or(("", &entry));
    let is_url = entry.contains("://");
    let address = pattern.split('/').next().unwrap_or(pattern);
    if !is_url && address.parse::<Ipv6Addr>().is_ok() {
        if pattern.contains('/') {
            return Err(IPV6);
        }
        return Ok(url.host == address);
    }
    if !is_url && (address.parse::<Ipv4Addr>().is_ok() || pattern == "localhost") {
        return Ok(url.host == address);
    }
    if address.starts_with('[') && !is_url || address.matches(':').count() > 1 {
        return Err(IPV6);
    }
    if !address.is_ascii() {
        return Err("a name beyond ASCII in NO_PROXY raises an error");
    }
    let (name, port) = address.split_once(':').unwrap_or((address, ""));
    let port: Option<u16> = match port {
        "" => None,
        port => Some(
            port.parse()
                .map_err(|_| "a port that is none in NO_PROXY raises an error")?,
        ),
    };
    // A default port counts as none.
    let is_default = |port: u16| port == if url.is_tls { 443 } else { 80 };
    let own = url.port.filter(|port| !is_default(*port));
    let port_fits = port.is_none_or(|port| Some(port) == own);
    let scheme_fits = match scheme {
        "" | "all" => true,
        "http" => !url.is_tls,
        "https" => url.is_tls,
        _ => false,
    };
    let below = |domain: &str| {
        url.host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    };
    let name_fits = if is_url {
        match name.strip_prefix('*') {
            Some(rest) => match rest.strip_prefix('.') {
                Some(domain) => below(domain),
                None => is_at_or_below(&url.host, rest),
            },
            None => url.host == name,
        }
    } else {
        match name.strip_prefix('.') {
            Some(domain) => below(domain),
            None => is_at_or_below(&url.host, name),
        }
    };
    Ok(scheme_fits && name_fits && port_fits)
}

pub(super) fn aiohttp(variables: Variables<'_>, url: &Url) -> Way {
    let Some((variable, value)) = of_python_scheme(variables, url) else {
        return Way::Direct(Why::Unset);
    };
    if value.to_lowercase().starts_with("https://") {
        return Way::Direct(Why::Deaf("it knows no proxy behind TLS"));
    }
    match python_bypass(variables, &url.normal()) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}
