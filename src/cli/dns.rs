//! `routecause dns NAME`: what each name server says of a name; `routecause dns flush`: what they said is forgotten.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::ask::{complain, prepare};
use super::{AdminArgs, PolicyArg, exit, print};
use crate::config::env::Environment;
use crate::config::{self, Loaded, Options};
use crate::exchange::Trail;
use crate::failure::{Failure, chain, classify};
use crate::net::resolve::{Resolved, Resolver, Source};
use crate::policy::Policy;
use crate::policy::dns::AskId;
use crate::route::assemble::assemble;
use crate::route::{Names, health};
use crate::target::Host;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(in crate::cli) struct DnsArgs {
    #[command(subcommand)]
    pub(in crate::cli) command: Option<DnsCommand>,
    #[command(flatten)]
    pub(in crate::cli) policy: PolicyArg,
    /// Print JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
    /// The name.
    #[arg(required = true)]
    pub(in crate::cli) name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum DnsCommand {
    /// Let a running proxy forget what name servers said, so that it asks for each name anew.
    #[command(after_help = "Exit codes: 0 done, 5 the proxy's admin listener cannot be reached")]
    Flush(AdminArgs),
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told {
    schema: &'static str,
    name: String,
    /// Whom a request for it would ask.
    chosen: String,
    agree: bool,
    answers: Vec<Answer>,
}

/// What one of them says.
#[derive(Serialize)]
struct Answer {
    server: String,
    addresses: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    ms: f64,
}

pub(super) fn run(args: &DnsArgs, env: &Environment) -> u8 {
    match (&args.command, &args.name) {
        (Some(DnsCommand::Flush(admin)), _) => flush(admin, env),
        (None, Some(name)) => tell_of(name, args, env),
        (None, None) => unreachable!("a name is required where there is no command"),
    }
}

fn flush(args: &AdminArgs, env: &Environment) -> u8 {
    let asked = prepare(args, env);
    let done = asked.and_then(|(runtime, proxy)| runtime.block_on(proxy.delete("/v1/dns/cache")));
    done.map_or_else(|error| complain(&error), |()| 0)
}

fn tell_of(name: &str, args: &DnsArgs, env: &Environment) -> u8 {
    let name: Arc<str> = match Host::parse(name) {
        Ok(Host::Name(name)) => name,
        Ok(Host::Ip(ip)) => {
            say!("error: {ip} is an address already");
            return exit::USAGE;
        }
        Err(error) => {
            say!("error: {error}");
            return exit::USAGE;
        }
    };
    let source = config::locate(args.policy.policy.as_deref(), env);
    let policy = match config::load(&source, env, &Options::check(Timestamp::now())) {
        Ok(Loaded { policy, .. }) => Arc::new(policy),
        Err(report) => {
            say!("{}", report.render(false));
            return exit::BAD_POLICY;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let told = match runtime {
        Ok(runtime) => runtime.block_on(ask_all(&policy, &name)),
        Err(error) => {
            say!("error: start the runtime: {error}");
            return exit::FAILED;
        }
    };
    if args.json {
        match serde_json::to_string_pretty(&told) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
    } else {
        print(&tell(&told));
    }
    let has_answer = told.answers.iter().any(|answer| answer.cause.is_none());
    if has_answer { 0 } else { exit::FAILED }
}

async fn ask_all(policy: &Arc<Policy>, name: &Arc<str>) -> Told {
    let health = health::of_policy(policy, &[]);
    let (names, _ways) = assemble(policy, &Resolver::from_system(), &health, &[], None);
    let chosen = policy.dns.choose(name, None).0;
    let label = |at: usize| match policy.dns.asks.get(at).and_then(|ask| ask.server.as_ref()) {
        Some(server) => server.name.to_string(),
        None => "system".to_owned(),
    };
    let limit = policy.timeouts.dns;
    // What is known without them is asked of nobody.
    if let Some(pinned) = policy.pinned(name) {
        return known(name, "dns.hosts", pinned.to_vec());
    }
    let found = names.resolver().resolve(name, chosen, limit).await;
    if let Ok(Resolved {
        addresses,
        source: Source::Hosts,
        ..
    }) = found
    {
        return known(name, "/etc/hosts", addresses);
    }
    names.resolver().forget();
    let mut answers = Vec::new();
    for at in 0..policy.dns.asks.len() {
        answers.push(ask(&names, label(at), name, AskId(at), limit).await);
    }
    // Those of the system one by one: they need not agree.
    for server in system_servers() {
        let resolver = Arc::new(Resolver::with_servers(&[server]));
        let names = Names::new(policy.clone(), resolver);
        answers.push(ask(&names, server.to_string(), name, AskId::SYSTEM, limit).await);
    }
    let mut sets = answers.iter().map(|answer| {
        let mut sorted = answer.addresses.clone();
        sorted.sort();
        sorted
    });
    let first = sets.next();
    let agree = sets.all(|set| Some(&set) == first.as_ref());
    Told {
        schema: "routecause.dns/1",
        name: name.to_string(),
        chosen: label(chosen.0),
        agree,
        answers,
    }
}

/// A name that no server is asked for.
fn known(name: &Arc<str>, by: &str, addresses: Vec<IpAddr>) -> Told {
    Told {
        schema: "routecause.dns/1",
        name: name.to_string(),
        chosen: by.to_owned(),
        agree: true,
        answers: vec![Answer {
            server: by.to_owned(),
            addresses,
            cause: None,
            message: None,
            ms: 0.0,
        }],
    }
}

async fn ask(
    names: &Names,
    server: String,
    name: &Arc<str>,
    ask: AskId,
    limit: Duration,
) -> Answer {
    let begun = Instant::now();
    let host = Host::Name(name.clone());
    let inquiry = names.of_ask(ask);
    let found = inquiry.lookup(&host, limit, &Trail::default()).await;
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    match found {
        Ok(addresses) => Answer {
            server,
            addresses,
            cause: None,
            message: None,
            ms,
        },
        Err(error) => {
            let message = chain(&error);
            let cause = classify(&Failure::from(error)).id().into_owned();
            Answer {
                server,
                addresses: Vec::new(),
                cause: Some(cause),
                message: Some(message),
                ms,
            }
        }
    }
}

/// The name servers of `/etc/resolv.conf`.
pub(super) fn system_servers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        let address: IpAddr = words.next().filter(|_| is_server)?.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    });
    addresses.collect()
}

fn tell(told: &Told) -> String {
    let mut text = format!(
        "{}, of which a request would ask {}\n",
        told.name, told.chosen
    );
    let width = told
        .answers
        .iter()
        .map(|answer| answer.server.len())
        .max()
        .unwrap_or(0);
    for answer in &told.answers {
        let what = if let (Some(cause), Some(message)) = (&answer.cause, &answer.message) {
            format!("{cause}: {message}")
        } else {
            let addresses: Vec<_> = answer.addresses.iter().map(IpAddr::to_string).collect();
            addresses.join(" ")
        };
        let _ = writeln!(
            text,
            "  {:<width$}  {:>6.0} ms  {what}",
            answer.server, answer.ms
        );
    }
    if !told.agree {
        text.push_str("they do not agree\n");
    }
    text
}
