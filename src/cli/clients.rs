//! `routecause explain URL --as CLIENT`: what clients would do with this environment.

use serde::Serialize;
use std::fmt::Write as _;

use super::explain::ExplainArgs;
use super::{exit, print};
use crate::config::env::{Environment, no_proxy};
use crate::policy::no_proxy::clients::{Program, Url, Way, Why};
use crate::policy::no_proxy::{Dialect, NoProxy};

/// Where a list is tried and nothing names a proxy.
const SUPPOSED: &str = "http://proxy.invalid:3128";

/// What `--json` prints.
#[derive(Serialize)]
struct Clients {
    schema: &'static str,
    url: String,
    no_proxy: String,
    agree: bool,
    #[serde(rename = "clients")]
    told: Vec<Told>,
}

/// What one client does.
#[derive(Serialize)]
struct Told {
    client: &'static str,
    way: &'static str,
    why: String,
}

pub(super) fn run(args: &ExplainArgs, env: &Environment) -> u8 {
    let target = args.target.as_deref().unwrap_or_default();
    let Some(url) = Url::parse(target) else {
        say!("error: {target}: write the URL that the clients fetch, as in https://host/");
        return exit::USAGE;
    };
    let mut programs: Vec<Program> = Vec::new();
    for name in &args.clients {
        let known = Program::ALL
            .iter()
            .filter(|program| program.as_str() == name || name == "all");
        let known: Vec<_> = known.copied().collect();
        if known.is_empty() {
            let names = Program::ALL.map(Program::as_str);
            say!(
                "error: --as {name}: write all, or some of {}",
                names.join(", ")
            );
            return exit::USAGE;
        }
        programs.extend(known);
    }
    let names = [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ];
    let is_supposed = args.no_proxy.is_some() && names.iter().all(|name| env.get(name).is_none());
    let (list, difference) = match &args.no_proxy {
        Some(list) => (list.as_str(), None),
        None => no_proxy(env),
    };
    let java = format!("-Dhttp.proxyHost=p -Dhttps.proxyHost=p -Dhttp.nonProxyHosts={list}");
    let lookup = |name: &str| match (name, &args.no_proxy) {
        ("NO_PROXY" | "no_proxy", Some(list)) => Some(list.as_str()),
        ("NODE_USE_ENV_PROXY", _) if is_supposed => Some("1"),
        ("JAVA_TOOL_OPTIONS", _) if is_supposed => Some(java.as_str()),
        (name, _) if is_supposed && names.contains(&name) => Some(SUPPOSED),
        (name, _) => env.raw(name),
    };
    let ways: Vec<(Program, Way)> = programs
        .into_iter()
        .map(|program| (program, program.way(&lookup, &url)))
        .collect();
    // Who hears nothing of proxies has no opinion.
    let mut words = ways
        .iter()
        .filter(|(_, way)| !matches!(way, Way::Direct(Why::Deaf(_))))
        .map(|(_, way)| way.as_str());
    let first = words.next();
    let agree = words.all(|word| Some(word) == first);
    if let Some(line) = difference {
        say!("warning: {line}");
    }
    for line in NoProxy::parse(list, Dialect::default()).lint() {
        say!("warning: NO_PROXY: {line}");
    }
    if args.json {
        let told = ways.iter().map(|(program, way)| Told {
            client: program.as_str(),
            way: way.as_str(),
            why: way.to_string(),
        });
        let clients = Clients {
            schema: "routecause.clients/1",
            url: target.to_owned(),
            no_proxy: list.to_owned(),
            agree,
            told: told.collect(),
        };
        match serde_json::to_string_pretty(&clients) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
        return 0;
    }
    let mut text = format!("{target} with NO_PROXY={list:?}");
    text.push_str(if is_supposed {
        ", as if a proxy were set:\n"
    } else {
        " and the proxy variables of this environment:\n"
    });
    for (program, way) in &ways {
        let _ = writeln!(text, "  {:<9} {:<6}  {way}", program.as_str(), way.as_str());
    }
    if !agree {
        text.push_str("they do not agree: let all of them ask routecause, and write the exception into its policy\n");
    }
    print(&text);
    0
}
