//! Ruby: `uri`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{Url, Variables, Way, Why, by, set};

pub(super) fn way(variables: Variables<'_>, url: &Url) -> Way {
    let found = if url.is_tls {
        set(variables, &["https_proxy", "HTTPS_PROXY"])
    } else if variables("REQUEST_METHOD").is_some() {
        set(variables, &["http_proxy", "CGI_HTTP_PROXY"])
    } else {
        set(variables, &["http_proxy", "HTTP_PROXY"])
    };
    let Some((variable, _)) = found.filter(|(_, value)| !value.is_empty()) else {
        return Way::Direct(Why::Unset);
    };
    // It looks names up; of those only localhost is known here.
    let is_localhost = url.host == "localhost";
    let address = url
        .ip()
        .or(is_localhost.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let is_here = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if address.is_some_and(is_here) {
        return Way::Direct(Why::Loopback);
    }
    let list = set(variables, &["no_proxy", "NO_PROXY"]).map_or("", |(_, list)| list);
    match ruby_entries(list).find(|(host, port)| ruby_exempts(host, *port, address, url)) {
        Some((host, Some(port))) => by(&format!("{host}:{port}")),
        Some((host, None)) => by(host),
        None => Way::Proxy(variable),
    }
}

/// Everything between commas, blanks and colons is a host, and digits behind a colon are its port.
fn ruby_entries(list: &str) -> impl Iterator<Item = (&str, Option<u64>)> {
    list.split(|c: char| c == ',' || c.is_ascii_whitespace())
        .flat_map(|word| {
            let mut entries = Vec::new();
            let mut parts = word.split(':').peekable();
            while let Some(host) = parts.next() {
                if host.is_empty() {
                    continue;
                }
                let digits = |part: &str| {
                    let end = part
                        .find(|c: char| !c.is_ascii_digit())
                        .unwrap_or(part.len());
                    part.get(..end).unwrap_or_default().parse::<u64>().ok()
                };
                let port = parts.peek().and_then(|part| digits(part));
                entries.push((host, port));
                // What stands behind the digits is a host again; digits alone are used up.
                let is_used_up =
                    |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
                if parts.peek().is_some_and(|part| is_used_up(part)) {
                    parts.next();
                }
            }
            entries
        })
}

fn ruby_exempts(host: &str, port: Option<u64>, address: Option<IpAddr>, url: &Url) -> bool {
    if port.is_some_and(|port| port != u64::from(url.port_or_default())) {
        return false;
    }
    let entry = host.to_lowercase();
    let fits = if entry.starts_with('.') {
        url.host.ends_with(&entry)
    } else {
        format!(".{}", url.host).ends_with(&format!(".{entry}"))
    };
    let holds = |address: IpAddr| match entry.parse::<IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => entry.parse::<IpAddr>() == Ok(address),
    };
    fits || address.is_some_and(holds)
}
