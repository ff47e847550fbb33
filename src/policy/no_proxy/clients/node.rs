//! Node: undici.

use std::net::IpAddr;

use super::{Url, Variables, Way, Why, by, is_at_or_below, set};

pub(super) fn way(variables: Variables<'_>, url: &Url) -> Way {
    if variables("NODE_USE_ENV_PROXY") != Some("1") {
        return Way::Direct(Why::Deaf("it reads them only with NODE_USE_ENV_PROXY=1"));
    }
    let own = |names| set(variables, names).filter(|(_, value)| !value.is_empty());
    let http = own(&["http_proxy", "HTTP_PROXY"]);
    let found = if url.is_tls {
        own(&["https_proxy", "HTTPS_PROXY"]).or(http)
    } else {
        http
    };
    let Some((variable, _)) = found else {
        return Way::Direct(Why::Unset);
    };
    let list = set(variables, &["no_proxy", "NO_PROXY"]).map_or("", |(_, list)| list);
    if list == "*" {
        return by(list);
    }
    let host = match url.ip() {
        Some(IpAddr::V6(ip)) => format!("[{ip}]"),
        Some(IpAddr::V4(_)) | None => url.host.clone(),
    };
    let exempts = |entry: &&str| {
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port))
                if !name.is_empty()
                    && !port.is_empty()
                    && port.bytes().all(|b| b.is_ascii_digit()) =>
            {
                (name, port.parse().unwrap_or(u64::MAX))
            }
            Some(_) | None => (*entry, 0),
        };
        if port != 0 && port != u64::from(url.port_or_default()) {
            return false;
        }
        let name = name
            .strip_prefix('*')
            .filter(|n| n.starts_with('.'))
            .unwrap_or(name);
        let name = name.strip_prefix('.').unwrap_or(name).to_lowercase();
        is_at_or_below(&host, &name)
    };
    let mut entries = list
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|entry| !entry.is_empty());
    match entries.find(exempts) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}
