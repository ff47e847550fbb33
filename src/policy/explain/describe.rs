//! Why a rule did not decide, in words.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::flight::Flight;
use crate::policy::matcher::{Hosts, Matcher, Resolve, Truth, Unknown};
use crate::policy::no_proxy::Bypass;
use crate::policy::{Action, Lookup, Mode, Note, Query, Rule};

/// Why a rule did not decide; `None` where it did.
pub(super) fn why_not(rule: &Rule, note: Note, query: &Query<'_>) -> Option<String> {
    Some(match note {
        Note::Decided => return None,
        Note::Passed => describe(&rule.matcher, query),
        Note::Unknown => {
            let truth = rule.matcher.judge(query);
            if truth == Truth::Unknown(Unknown::LookupFailed) {
                let skips = matches!(rule.action, Action::Block(_));
                let by = if skips { " (on_dns_error: skip)" } else { "" };
                format!("the name could not be looked up{by}")
            } else if rule.matcher.sees_flight() {
                "what it asks for is not shown, or not looked at (sniff: never)".to_owned()
            } else {
                "a tunnel does not show what it asks for".to_owned()
            }
        }
        Note::Off => "it is off".to_owned(),
        Note::Expired => "it has expired".to_owned(),
        Note::Would => {
            let does = match &rule.action {
                Action::Block(_) => "it would block",
                Action::Route(_) => "it would decide",
                Action::Continue => "it would set its options",
            };
            let by = if rule.mode == Mode::Report {
                ""
            } else {
                " (mode: report)"
            };
            format!("{does}, and is in report mode{by}")
        }
        Note::Continued => "it matched, set its options and went on".to_owned(),
    })
}

/// What of a matcher made it what it is for a request, as in `port 443 is not 80`.
fn describe(matcher: &Matcher, query: &Query<'_>) -> String {
    let truth = matcher.judge(query);
    let (is, has) = match truth {
        Truth::True => ("is", "has"),
        Truth::False => ("is not", "has no"),
        Truth::Unknown(_) => ("may be", "may have"),
    };
    let target = query.target;
    match matcher {
        // What decided it: the first part that is like the whole.
        Matcher::All(parts) | Matcher::Any(parts) => {
            let alike: Vec<_> = parts
                .iter()
                .filter(|part| part.judge(query) == truth)
                .collect();
            let one = matches!(matcher, Matcher::All(_)) == (truth == Truth::False);
            match (alike.first(), one) {
                (None, _) => "it speaks of everything".to_owned(),
                (Some(first), true) => describe(first, query),
                (Some(_), false) => {
                    let all: Vec<_> = alike.iter().map(|part| describe(part, query)).collect();
                    clip(all.join(" and "))
                }
            }
        }
        Matcher::Not(inner) => describe(inner, query),
        Matcher::Host(hosts) => format!("host {} {is} in {}", target.host, names(hosts)),
        Matcher::HostRegex(regex) => {
            let regex = regex.as_str();
            let written = regex
                .strip_prefix("^(?:")
                .and_then(|r| r.strip_suffix(")$"));
            format!(
                "host {} {is} matched by {}",
                target.host,
                written.unwrap_or(regex)
            )
        }
        Matcher::PlainHost(_) => match target.host.name() {
            Some(name) if name.contains('.') => format!("host {name} has a dot"),
            Some(name) => format!("host {name} has no dot"),
            None => format!("host {} is an address", target.host),
        },
        Matcher::Ip(nets, resolve) => match (target.host.ip(), resolve, query.addresses) {
            (Some(ip), ..) => format!("address {ip} {is} in {}", list(nets)),
            (None, Resolve::Never, _) => format!("host {} is a name, not an address", target.host),
            (None, _, Some(Lookup::Found(ips))) => {
                let which = if *resolve == Resolve::Any {
                    "some"
                } else {
                    "every"
                };
                let ips: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
                clip(format!(
                    "{which} address of {} ({}) {is} in {}",
                    target.host,
                    ips.join(", "),
                    list(nets)
                ))
            }
            (None, _, _) => format!("{} was not looked up", target.host),
        },
        Matcher::Sets(sets) => {
            let sets: Vec<_> = sets.iter().map(|set| &*set.name).collect();
            clip(format!(
                "host {} {is} in set {}",
                target.host,
                sets.join(" or ")
            ))
        }
        Matcher::NoProxy(no_proxy) => match no_proxy.judge(target) {
            Some(Bypass::Entry { entry, .. }) => {
                format!("NO_PROXY entry {entry:?} exempts {}", target.host)
            }
            Some(Bypass::Loopback) => format!("{} is loopback", target.host),
            None => format!("no NO_PROXY entry exempts {target}"),
        },
        Matcher::Port(ports) => clip(format!("port {} {is} {ports}", target.port)),
        Matcher::Scheme(scheme) => {
            format!("scheme {} {is} {}", query.scheme.as_str(), scheme.as_str())
        }
        Matcher::Method(methods) => {
            let methods: Vec<_> = methods.iter().map(http::Method::as_str).collect();
            clip(format!(
                "method {} {is} {}",
                query.method,
                methods.join(" or ")
            ))
        }
        Matcher::Path(_) => match query.path {
            Some(path) => clip(format!("path {path} {is} among its paths")),
            None => "a tunnel does not show the path".to_owned(),
        },
        Matcher::Header(name, _) => match query.headers {
            Some(_) => format!("the request {has} such a header {name}"),
            None => format!("a tunnel does not show the header {name}"),
        },
        Matcher::Client(nets) => format!("client {} {is} in {}", query.client.ip(), list(nets)),
        Matcher::User(users) => {
            let users = several(users.iter().map(ToString::to_string));
            match (query.user(), &query.claim.user) {
                (Some(user), _) => clip(format!("user {user} {is} {users}")),
                (None, Some(_)) => {
                    "a user name counts only from this machine: no password was checked".to_owned()
                }
                (None, None) => "the client gives no user name".to_owned(),
            }
        }
        Matcher::Role(roles) => {
            let roles = several(roles.iter().map(|role| role.name.to_string()));
            clip(format!("the client {has} role {roles}"))
        }
        Matcher::Label(patterns) => match &query.claim.label {
            Some(label) => clip(format!(
                "label {label} {is} in {}",
                several(patterns.written().iter().cloned())
            )),
            None => "the request has no label".to_owned(),
        },
        Matcher::Listener(names) => format!(
            "listener {} {is} {}",
            query.client.listener,
            several(names.iter().map(ToString::to_string))
        ),
        Matcher::Sni(hosts) => match query.flight() {
            Ok(flight) => match flight.server_name() {
                Some(name) => clip(format!("SNI {name} {is} in {}", names(hosts))),
                None => "the first flight has no SNI".to_owned(),
            },
            Err(_) => "SNI is not known".to_owned(),
        },
        Matcher::Alpn(protocols) => match query.flight() {
            Ok(_) => clip(format!(
                "ALPN {is} {}",
                several(protocols.iter().map(ToString::to_string))
            )),
            Err(_) => "ALPN is not known".to_owned(),
        },
        Matcher::Proto(protos) => match query.flight().map(Flight::proto) {
            Ok(Some(proto)) => format!(
                "the first flight is {}: it {is} {}",
                proto.as_str(),
                several(protos.iter().map(|proto| proto.as_str().to_owned()))
            ),
            Ok(None) | Err(_) => "the first flight is not known".to_owned(),
        },
        Matcher::GoModule(modules) => {
            clip(format!("the module {is} in {}", several(modules.written())))
        }
    }
}

fn names(hosts: &Hosts) -> String {
    let written = hosts
        .written()
        .iter()
        .map(|pattern| match pattern.strip_prefix("**.") {
            Some(domain) => format!("domain {domain}"),
            None => pattern.clone(),
        });
    several(written)
}

fn list(nets: &[IpNet]) -> String {
    several(nets.iter().map(|net| {
        if net.prefix_len() == net.max_prefix_len() {
            return net.addr().to_string();
        }
        net.to_string()
    }))
}

/// The first few of many.
fn several(items: impl ExactSizeIterator<Item = String>) -> String {
    const FEW: usize = 4;
    let more = items.len().saturating_sub(FEW);
    let shown: Vec<_> = items.take(FEW).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn clip(text: String) -> String {
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}
