//! Java's `ProxySelector`.

use super::{Url, Variables, Way, Why, by};

/// Hosts that Java goes to directly whatever its list says, unless that is set to nothing.
const OF_JAVA: &str = "localhost|127.*|[::1]|0.0.0.0|[::0]";

pub(super) fn way(variables: Variables<'_>, url: &Url) -> Way {
    let host = if url.is_tls {
        "https.proxyHost"
    } else {
        "http.proxyHost"
    };
    // The last one wins.
    let mut found = None;
    let mut list = None;
    for variable in ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"] {
        let options = variables(variable).unwrap_or_default();
        for option in options.split_ascii_whitespace() {
            let Some(option) = option.strip_prefix("-D") else {
                continue;
            };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if name == host {
                found = (!value.is_empty()).then_some(variable);
            } else if name == "http.nonProxyHosts" {
                list = Some(value);
            }
        }
    }
    let Some(variable) = found else {
        return Way::Direct(Why::Deaf(
            "it reads system properties: -Dhttps.proxyHost and the like, as in JAVA_TOOL_OPTIONS",
        ));
    };
    let list = match list {
        None => OF_JAVA.to_owned(),
        Some("") => String::new(),
        Some(list) => format!("{list}|{OF_JAVA}"),
    };
    let host = url.bracketed();
    let exempts = |entry: &&str| {
        let entry = entry.to_lowercase();
        match (entry.strip_prefix('*'), entry.strip_suffix('*')) {
            _ if entry.is_empty() => false,
            _ if entry == "*" => true,
            (Some(rest), Some(_)) => host.contains(rest.strip_suffix('*').unwrap_or(rest)),
            (Some(rest), None) => host.ends_with(rest),
            (None, Some(rest)) => host.starts_with(rest),
            (None, None) => host == entry,
        }
    };
    match list.split('|').find(exempts) {
        Some(entry) => by(entry),
        None => Way::Proxy(variable),
    }
}
