//! From `match` and `sets` as written to matchers.

use std::sync::Arc;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use http::{HeaderName, Method};
use regex::RegexBuilder;

use super::check::Context;
use super::clients;
use super::decode::{At, Named, Net, OneOrMany, PortRange, clip, nearest};
use super::diag::Findings;
use super::env;
use super::include;
use super::raw;
use crate::policy::flight::Proto;
use crate::policy::matcher::{Hosts, Matcher, Resolve, Set};
use crate::policy::modules::{Modules, Pattern};
use crate::policy::no_proxy::{Dialect, NoProxy};
use crate::policy::{Ports, Scheme};

/// The largest compiled form of one `host_regex`. The engine is linear, so only memory is at stake;
/// this holds several Unicode classes.
const LARGEST_REGEX: usize = 256 * 1024;

/// Compiles the `sets` section.
pub(super) fn sets(
    raw: Option<&At<Named<raw::matchers::Set>>>,
    findings: &mut Findings<'_>,
) -> Vec<Arc<Set>> {
    let entries = raw.iter().flat_map(|raw| raw.iter());
    let set = |(name, raw): &(At<String>, raw::matchers::Set)| set(name, raw, findings);
    entries.map(set).map(Arc::new).collect()
}

fn set(name: &At<String>, raw: &raw::matchers::Set, findings: &mut Findings<'_>) -> Set {
    if raw.has.is_empty() {
        let message = format!("set `{}` is empty", clip(name));
        let help = "give it `hosts`, `domains`, `ips`, `go_modules` or a `file`";
        findings.error(name.place, message).with_help(help);
    }
    let lines = match (&raw.file, &raw.kind) {
        (Some(file), Some(kind)) => {
            let lines = include::lines(file, false, findings);
            if lines.as_ref().is_some_and(Vec::is_empty) {
                let message = format!("nothing stands in `{}`", clip(file));
                findings.warn(file.place, message);
            }
            lines.map(|lines| (kind.value, lines))
        }
        (Some(file), None) => {
            let message = "`kind` says what the lines of the file are";
            let help = "one of hosts, domains, ips, go_modules";
            findings.error(file.place, message).with_help(help);
            None
        }
        (None, Some(kind)) => {
            let message = "`kind` speaks of the lines of a `file`, and there is none";
            findings.error(kind.place, message);
            None
        }
        (None, None) => None,
    };
    let listed = |kind: raw::matchers::SetKind| match &lines {
        Some((of, lines)) if *of == kind => &**lines,
        _ => &[],
    };
    let all = |list: &Option<At<OneOrMany<String>>>, kind| {
        let written = list.iter().flat_map(|list| list.iter());
        written.chain(listed(kind)).cloned().collect::<Vec<_>>()
    };
    let names = all(&raw.hosts, raw::matchers::SetKind::Hosts);
    let domains = all(&raw.domains, raw::matchers::SetKind::Domains);
    let modules = all(&raw.go_modules, raw::matchers::SetKind::GoModules);
    let mut nets: Vec<_> = raw
        .ips
        .iter()
        .flat_map(|nets| nets.iter())
        .map(|net| net.0)
        .collect();
    for line in listed(raw::matchers::SetKind::Ips) {
        if let Some(net) = super::decode::net(line) {
            nets.push(net);
        } else {
            let message = format!("`{}` is not an address or a range", clip(line));
            findings.error(line.place, message);
        }
    }
    Set {
        name: name.value.as_str().into(),
        hosts: hosts_of(&names, &domains, findings).unwrap_or_default(),
        nets: nets.into_iter().collect(),
        modules: modules_of(&modules, findings),
    }
}

/// Compiles patterns of Go modules; commas separate them too, as in GOPRIVATE.
fn modules_of(patterns: &[At<String>], findings: &mut Findings<'_>) -> Modules {
    let mut modules = Vec::new();
    for list in patterns {
        let parts = list.split(',').filter(|part| !part.trim().is_empty());
        for part in parts {
            match Pattern::parse(part) {
                Ok(pattern) => modules.push(pattern),
                Err(error) => {
                    let message = format!("`{}`: {error}", clip(part.trim()));
                    findings.error(list.place, message);
                }
            }
        }
    }
    modules.into_iter().collect()
}

/// Compiles a `match`.
pub(super) fn matcher(
    raw: &raw::matchers::Match,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Matcher {
    let mut parts = Vec::new();
    parts.extend(hosts(raw.host.as_ref(), None, findings).map(Matcher::Host));
    parts.extend(hosts(None, raw.domain.as_ref(), findings).map(Matcher::Host));
    if let Some(patterns) = &raw.host_regex {
        let regexes = patterns
            .iter()
            .filter_map(|pattern| host_regex(pattern, findings));
        parts.push(Matcher::Any(regexes.collect()));
    }
    parts.extend(
        raw.plain_host
            .as_ref()
            .map(|plain| Matcher::PlainHost(plain.value)),
    );
    match (&raw.ip, &raw.resolve) {
        (Some(nets), resolve) => {
            let resolve = match resolve.as_ref().map(|resolve| resolve.value) {
                None | Some(raw::matchers::Resolve::Never) => Resolve::Never,
                Some(raw::matchers::Resolve::Any) => Resolve::Any,
                Some(raw::matchers::Resolve::All) => Resolve::All,
            };
            parts.push(Matcher::Ip(
                nets.iter().map(|net: &At<Net>| net.0).collect(),
                resolve,
            ));
        }
        (None, Some(resolve)) => {
            let message = "`resolve` says how `ip` is matched, and there is no `ip` beside it";
            findings.error(resolve.place, message);
        }
        (None, None) => {}
    }
    if let Some(names) = &raw.set {
        let named = names
            .iter()
            .filter_map(|name| find_set(name, context.sets, findings));
        parts.push(Matcher::Sets(named.collect()));
    }
    if let Some(list) = &raw.no_proxy {
        parts.push(Matcher::NoProxy(no_proxy(list, context, findings)));
    }
    parts.extend(raw.port.as_ref().map(|p| Matcher::Port(ports(p))));
    parts.extend(raw.scheme.as_ref().map(|scheme| match scheme.value {
        raw::matchers::Scheme::Connect => Matcher::Scheme(Scheme::Connect),
        raw::matchers::Scheme::Http => Matcher::Scheme(Scheme::Http),
    }));
    if let Some(names) = &raw.method {
        let methods = names.iter().filter_map(|name| method(name, findings));
        parts.push(Matcher::Method(methods.collect()));
    }
    if let Some(patterns) = &raw.path {
        parts.push(Matcher::Path(globs(patterns, true, findings)));
    }
    for (name, patterns) in raw.header.iter().flat_map(|header| header.iter()) {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(header) => parts.push(Matcher::Header(header, globs(patterns, false, findings))),
            Err(_) => {
                findings.error(name.place, format!("`{}` is no header name", clip(name)));
            }
        }
    }
    if let Some(client) = &raw.client {
        parts.extend(clients::of_match(client, context, findings));
    }
    parts.extend(hosts(raw.sni.as_ref(), None, findings).map(Matcher::Sni));
    if let Some(names) = &raw.alpn {
        let names = names.iter().map(|name| name.as_str().into());
        parts.push(Matcher::Alpn(names.collect()));
    }
    if let Some(protos) = &raw.proto {
        let protos = protos.iter().map(|proto| proto_of(proto.value));
        parts.push(Matcher::Proto(protos.collect()));
    }
    if let Some(patterns) = &raw.go_module {
        parts.push(Matcher::GoModule(modules_of(patterns, findings)));
    }
    let mut inner = |list: &Vec<At<raw::matchers::Match>>| -> Vec<Matcher> {
        list.iter()
            .map(|raw| matcher(raw, context, findings))
            .collect()
    };
    let any = raw.any.as_ref().map(|any| (any.place, inner(any)));
    let all = raw.all.as_ref().map(|all| inner(all));
    parts.extend(
        raw.not
            .as_ref()
            .map(|not| Matcher::Not(Box::new(matcher(not, context, findings)))),
    );
    if let Some((place, any)) = any {
        if any.is_empty() {
            findings.error(place, "the list is empty: some of nothing never holds");
        }
        parts.push(Matcher::Any(any));
    }
    parts.extend(all.map(Matcher::All));
    Matcher::All(parts)
}

/// What is spoken in a tunnel, as rules know it.
pub(super) fn proto_of(raw: raw::matchers::Proto) -> Proto {
    match raw {
        raw::matchers::Proto::Tls => Proto::Tls,
        raw::matchers::Proto::Http => Proto::Http,
        raw::matchers::Proto::Ssh => Proto::Ssh,
        raw::matchers::Proto::Other => Proto::Other,
    }
}

/// Compiles a `no_proxy` list.
pub(super) fn no_proxy(
    raw: &At<raw::matchers::NoProxyList>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Arc<NoProxy> {
    let dialect = match raw.0.dialect.as_ref().map(|dialect| dialect.value) {
        None | Some(raw::matchers::Dialect::Go) => Dialect::Go,
        Some(raw::matchers::Dialect::Curl) => Dialect::Curl,
    };
    let list = match raw.0.list.as_ref().map(|list| list.as_str()) {
        Some("env") => {
            let (list, warning) = env::no_proxy(context.environment);
            if let Some(warning) = warning {
                findings.warn(raw.place, warning);
            }
            list
        }
        Some(list) => list,
        None => "",
    };
    Arc::new(NoProxy::parse(list, dialect))
}

/// Compiles ports.
pub(super) fn ports(raw: &OneOrMany<PortRange>) -> Ports {
    raw.iter().map(|range| range.0.clone()).collect()
}

fn hosts(
    hosts: Option<&At<OneOrMany<String>>>,
    domains: Option<&At<OneOrMany<String>>>,
    findings: &mut Findings<'_>,
) -> Option<Hosts> {
    if hosts.is_none() && domains.is_none() {
        return None;
    }
    let of = |list: Option<&At<OneOrMany<String>>>| -> Vec<At<String>> {
        list.iter().flat_map(|list| list.iter()).cloned().collect()
    };
    hosts_of(&of(hosts), &of(domains), findings)
}

/// Compiles host patterns and domains; `None` where some are none.
fn hosts_of(
    hosts: &[At<String>],
    domains: &[At<String>],
    findings: &mut Findings<'_>,
) -> Option<Hosts> {
    fn texts(list: &[At<String>]) -> Vec<&str> {
        list.iter().map(|pattern| pattern.as_str()).collect()
    }
    if let Ok(hosts) = Hosts::new(&texts(hosts), &texts(domains)) {
        return Some(hosts);
    }
    // It tells the first bad one only: ask for each alone.
    for pattern in hosts {
        if let Err((_, error)) = Hosts::new(&[pattern], &[]) {
            let diagnostic = findings.error(pattern.place, error.to_string());
            if pattern.contains('/') && super::decode::net(pattern).is_some() {
                diagnostic.with_help("ranges of addresses stand under `ip`");
            }
        }
    }
    for pattern in domains {
        if let Err((_, error)) = Hosts::new(&[], &[pattern]) {
            let diagnostic = findings.error(pattern.place, error.to_string());
            if let Some(name) = pattern.strip_prefix("*.") {
                let help = format!("all below a name is taken already: write `{}`", clip(name));
                diagnostic.with_help(help);
            }
        }
    }
    None
}

fn host_regex(pattern: &At<String>, findings: &mut Findings<'_>) -> Option<Matcher> {
    // Built as written first, so that parentheses cannot break out of the anchors.
    let build = |text: &str| {
        RegexBuilder::new(text)
            .case_insensitive(true)
            .size_limit(LARGEST_REGEX)
            .build()
    };
    match build(pattern).and_then(|_| build(&format!("^(?:{})$", pattern.value))) {
        Ok(regex) => Some(Matcher::HostRegex(regex)),
        Err(regex::Error::CompiledTooBig(_)) => {
            findings.error(pattern.place, "the expression is too large once compiled");
            None
        }
        Err(error) => {
            let text = error.to_string();
            // The crate draws the expression too; the last line says what is wrong with it.
            let reason = text.lines().last().unwrap_or_default();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            findings.error(
                pattern.place,
                format!("this is no regular expression: {reason}"),
            );
            None
        }
    }
}

fn find_set(name: &At<String>, sets: &[Arc<Set>], findings: &mut Findings<'_>) -> Option<Arc<Set>> {
    if let Some(set) = sets.iter().find(|set| *set.name == **name) {
        return Some(Arc::clone(set));
    }
    let names = || sets.iter().map(|set| &*set.name);
    let diagnostic = findings.error(name.place, format!("there is no set `{}`", clip(name)));
    if let Some(near) = nearest(name, names()) {
        diagnostic.with_help(format!("did you mean `{near}`?"));
    } else if sets.is_empty() {
        diagnostic.with_help("sets are named under `sets` at the top");
    } else {
        diagnostic.with_help(format!(
            "the sets are {}",
            names().collect::<Vec<_>>().join(", ")
        ));
    }
    None
}

/// A method: known ones in capitals only, since methods are case-sensitive and a `get` would never match.
pub(super) fn method(name: &At<String>, findings: &mut Findings<'_>) -> Option<Method> {
    match Method::from_bytes(name.as_bytes()) {
        Ok(method) if !name.contains(|c: char| c.is_ascii_lowercase()) => Some(method),
        Ok(_) => {
            let help = format!("write `{}`", clip(&name.to_uppercase()));
            findings
                .error(name.place, "methods are written in capitals")
                .with_help(help);
            None
        }
        Err(_) => {
            findings.error(name.place, format!("`{}` is no method", clip(name)));
            None
        }
    }
}

fn globs(patterns: &OneOrMany<String>, is_path: bool, findings: &mut Findings<'_>) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns.iter() {
        if is_path && !pattern.starts_with(['/', '*']) {
            let message = "a path begins with `/`, so this never matches";
            let help = format!("write `/{0}`, or `**/{0}` for any folder", clip(pattern));
            findings.error(pattern.place, message).with_help(help);
            continue;
        }
        let glob: Result<Glob, _> = GlobBuilder::new(pattern).literal_separator(is_path).build();
        match glob {
            Ok(glob) => {
                set.add(glob);
            }
            Err(error) => {
                findings.error(
                    pattern.place,
                    format!("this is no pattern: {}", error.kind()),
                );
            }
        }
    }
    set.build().unwrap_or_else(|error| {
        let place = patterns
            .first()
            .map(|pattern| pattern.place)
            .unwrap_or_default();
        findings.error(place, format!("the patterns cannot be compiled: {error}"));
        GlobSet::empty()
    })
}
