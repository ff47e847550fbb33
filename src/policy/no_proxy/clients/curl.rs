//! curl.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Url, Variables, Way, Why, by, filled, is_at_or_below};

pub(super) fn way(variables: Variables<'_>, url: &Url) -> Way {
    let names: &[_] = if url.is_tls {
        &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        // HTTP_PROXY in upper case may come from a client's header, under CGI.
        &["http_proxy", "all_proxy", "ALL_PROXY"]
    };
    let Some((variable, _)) = filled(variables, names) else {
        return Way::Direct(Why::Unset);
    };
    let list = filled(variables, &["no_proxy", "NO_PROXY"]).map_or("", |(_, list)| list);
    if list == "*" {
        return by(list);
    }
    // A blank that no comma follows ends the list. Before version 8 it separated.
    for entry in list.split(',') {
        let mut words = entry.split_ascii_whitespace();
        let word = words.next().unwrap_or_default();
        if !word.is_empty() && curl_exempts(word, url) {
            return by(word);
        }
        if words.next().is_some() {
            break;
        }
    }
    Way::Proxy(variable)
}

fn curl_exempts(entry: &str, url: &Url) -> bool {
    let Some(ip) = url.ip() else {
        let host = url.host.strip_suffix('.').unwrap_or(&url.host);
        let entry = entry.to_lowercase();
        let entry = entry.strip_suffix('.').unwrap_or(&entry);
        let entry = entry.strip_prefix('.').unwrap_or(entry);
        return !entry.is_empty() && is_at_or_below(host, entry);
    };
    let (address, bits) = entry.split_once('/').unwrap_or((entry, ""));
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    match bits.parse::<u8>() {
        Ok(bits @ 1..) => IpNet::new(address, bits).is_ok_and(|net| net.contains(&ip)),
        Ok(0) | Err(_) => address == ip,
    }
}
