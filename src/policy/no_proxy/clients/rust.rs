//! Rust: hyper-util.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Url, Variables, Way, Why, by, is_at_or_below, set};

pub(super) fn way(variables: Variables<'_>, url: &Url) -> Way {
    if variables("REQUEST_METHOD").is_some() {
        return Way::Direct(Why::Deaf("it asks no proxy where REQUEST_METHOD is set"));
    }
    let own = |names| set(variables, names).filter(|(_, value)| !value.is_empty());
    let found = if url.is_tls {
        own(&["HTTPS_PROXY", "https_proxy"])
    } else {
        own(&["HTTP_PROXY", "http_proxy"])
    };
    let Some((variable, _)) = found.or_else(|| own(&["ALL_PROXY", "all_proxy"])) else {
        return Way::Direct(Why::Unset);
    };
    let list = set(variables, &["NO_PROXY", "no_proxy"]).map_or("", |(_, list)| list);
    let ip = url.ip();
    let exempts = |entry: &&str| {
        let net: Option<IpNet> = entry.parse().ok();
        let address: Option<IpAddr> = entry.parse().ok();
        match (ip, net, address) {
            (Some(ip), Some(net), _) => net.contains(&ip),
            (Some(ip), None, Some(address)) => ip == address,
            (Some(_), None, None) => false,
            (None, Some(_), _) | (None, None, Some(_)) => false,
            (None, None, None) if *entry == "*" => true,
            (None, None, None) => {
                let entry = entry.to_lowercase();
                let domain = entry.strip_prefix('.').unwrap_or(&entry);
                !domain.is_empty() && is_at_or_below(&url.host, domain)
            }
        }
    };
    match list.split(',').map(str::trim).find(exempts) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}
