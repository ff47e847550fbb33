//! `routecause explain`

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use jiff::Timestamp;

use super::{AdminArgs, PolicyArg, exit, print, record};
use crate::app::explain::{Asked, Asker, Found, walk};
use crate::config::env::Environment;
use crate::config::{self, Listener, Loaded, Options};
use crate::exchange::Trail;
use crate::net::resolve::Resolver;
use crate::policy::Policy;
use crate::policy::dns::AskId;
use crate::policy::explain::{NoProxyVerdict, Outcome};
use crate::policy::flight::Flight;
use crate::policy::no_proxy::{Dialect, NoProxy};
use crate::route::assemble::assemble;
use crate::route::health;
use crate::target::Target;

#[derive(Debug, Args)]
pub(in crate::cli) struct ExplainArgs {
    #[command(flatten)]
    pub(in crate::cli) policy: PolicyArg,
    /// Print JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
    /// The client that asks; 127.0.0.1 where none is named.
    #[arg(long, value_name = "IP")]
    pub(in crate::cli) client: Option<IpAddr>,
    /// The user name that it gives, with its label where the policy's `labels` says so.
    #[arg(long, value_name = "NAME", conflicts_with = "cause")]
    pub(in crate::cli) user: Option<String>,
    /// The request's label.
    #[arg(long, value_name = "LABEL", conflicts_with = "cause")]
    pub(in crate::cli) label: Option<String>,
    /// The listener that it comes by.
    #[arg(long, value_name = "NAME", conflicts_with = "cause")]
    pub(in crate::cli) listener: Option<String>,
    /// The name in the SNI of the tunnel. Without --sni, --alpn and --proto a tunnel begins as its port lets expect: 443
    /// with TLS and the target's name, 80 with HTTP, 22 with SSH, any other with nothing.
    #[arg(long, value_name = "NAME", conflicts_with = "cause")]
    pub(in crate::cli) sni: Option<String>,
    /// A protocol that its ClientHello offers, as in h2; may be repeated.
    #[arg(long, value_name = "PROTOCOL", conflicts_with = "cause")]
    pub(in crate::cli) alpn: Vec<String>,
    /// What is spoken in it.
    #[arg(long, value_name = "PROTO", conflicts_with = "cause")]
    pub(in crate::cli) proto: Option<Proto>,
    /// Judge this list alone as well, by the same rules as `no_proxy` in a policy; with --as, in place of `NO_PROXY`.
    #[arg(long, value_name = "LIST")]
    pub(in crate::cli) no_proxy: Option<String>,
    /// Say instead what these clients would do with the URL and the proxy variables of this environment: `all`, or some of
    /// go, curl, wget, python, requests, httpx, aiohttp, ruby, node, java, rust.
    #[arg(long = "as", value_name = "CLIENT", value_delimiter = ',', conflicts_with_all = ["cause", "client", "user", "label", "listener", "sni", "alpn", "proto"])]
    pub(in crate::cli) clients: Vec<String>,
    /// What is asked for: `http://…` as a plain request, `https://…` or `host:port` as a CONNECT. Or the id of a record, as a
    /// client got it: then what became of that request, as the running proxy remembers it.
    #[arg(value_name = "URL|HOST:PORT|RECORD", required_unless_present_any = ["cause", "log"])]
    pub(in crate::cli) target: Option<String>,
    /// Say what a cause means, how it is told and what to do: an id such as `connect.timeout`, the beginning of some such
    /// as `tls`, or `all`.
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "client", "no_proxy"])]
    pub(in crate::cli) cause: Option<String>,
    /// Look for the record in this log of records, - for standard input, and ask no proxy: by its id, or how that begins;
    /// without one, the last failure.
    #[arg(long, value_name = "FILE", conflicts_with = "cause")]
    pub(in crate::cli) log: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) admin: AdminArgs,
}

impl ExplainArgs {
    /// Whether a flag says who asks, or how.
    pub(in crate::cli) fn asks_as_somebody(&self) -> bool {
        let has_text = [
            &self.user,
            &self.label,
            &self.listener,
            &self.sni,
            &self.no_proxy,
        ];
        has_text.iter().any(|text| text.is_some())
            || self.client.is_some()
            || self.proto.is_some()
            || !(self.alpn.is_empty() && self.clients.is_empty())
    }
}

/// Refuses the flags of the command line that say nothing of what is asked for. The environment sets them for other
/// commands, too.
pub(super) fn refuse_unused(
    args: &ExplainArgs,
    matches: &ArgMatches,
    command: &mut clap::Command,
) -> Result<(), clap::Error> {
    let (asked, unused): (_, &[_]) = if args.cause.is_some() {
        ("--cause <ID>", &["policy", "admin", "admin_token_file"])
    } else if args.log.is_some() {
        ("--log <FILE>", &["policy", "admin", "admin_token_file"])
    } else if record::is_meant(args) {
        ("RECORD", &["policy"])
    } else if args.clients.is_empty() {
        ("URL|HOST:PORT", &["admin", "admin_token_file"])
    } else {
        ("--as <CLIENT>", &["policy", "admin", "admin_token_file"])
    };
    let is_typed = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let Some(id) = unused.iter().copied().find(is_typed) else {
        return Ok(());
    };
    let flag = command.get_arguments().find(|arg| arg.get_id() == id);
    let flag = flag.map_or_else(|| id.to_owned(), ToString::to_string);
    let words = format!("the argument '{flag}' cannot be used with '{asked}'");
    Err(command.error(ErrorKind::ArgumentConflict, words))
}

/// What is spoken in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Proto {
    /// TLS.
    Tls,
    /// HTTP without TLS.
    Http,
    /// SSH.
    Ssh,
    /// Anything else.
    Other,
}

pub(super) fn run(args: &ExplainArgs, env: &Environment) -> u8 {
    // The parser sees to it that there is one.
    let target = args.target.as_deref().unwrap_or_default();
    let asked = match Asked::parse(target) {
        Ok(asked) => asked,
        Err(error) => {
            say!("error: {target}: {error}");
            return exit::USAGE;
        }
    };
    let source = config::locate(args.policy.policy.as_deref(), env);
    let (policy, server) = match config::load(&source, env, &Options::check(Timestamp::now())) {
        Ok(Loaded { policy, server, .. }) => (Arc::new(policy), server),
        Err(report) => {
            say!("{}", report.render(false));
            return exit::BAD_POLICY;
        }
    };
    let listeners = server.listen.unwrap_or_else(|| vec![usual_listener()]);
    let wanted = args.listener.as_deref();
    let Some(listener) = (listeners.iter()).find(|l| wanted.is_none_or(|name| *name == *l.name))
    else {
        let names: Vec<_> = listeners.iter().map(|l| &*l.name).collect();
        say!("error: --listener: the listeners are {}", names.join(", "));
        return exit::USAGE;
    };
    let asker = Asker {
        address: args.client.unwrap_or(Ipv4Addr::LOCALHOST.into()),
        user: args.user.as_deref(),
        label: args.label.as_deref(),
        listener,
    };
    let mut explanation = match walk(
        &policy,
        &asked,
        &asker,
        &flight(args, &asked.target),
        |dns| look_up(&policy, &asked.target, dns),
    ) {
        Ok(explanation) => explanation,
        Err(error) => {
            say!("error: {error:#}");
            return exit::FAILED;
        }
    };
    let list = args
        .no_proxy
        .as_ref()
        .map(|list| NoProxy::parse(list, Dialect::default()));
    explanation.no_proxy = list
        .as_ref()
        .map(|list| NoProxyVerdict::of(list, &asked.target));
    for line in list.iter().flat_map(NoProxy::lint) {
        say!("warning: --no-proxy: {line}");
    }
    if args.json {
        match serde_json::to_string_pretty(&explanation) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
    } else {
        print(&explanation.to_string());
    }
    0
}

fn usual_listener() -> Listener {
    Listener::default()
}

/// What a policy decides for a client on this machine.
pub(super) fn decision(policy: &Arc<Policy>, asked: &Asked) -> anyhow::Result<Outcome> {
    let asker = Asker {
        address: Ipv4Addr::LOCALHOST.into(),
        user: None,
        label: None,
        listener: &usual_listener(),
    };
    let flight = Flight::usual(&asked.target);
    let look_up = |dns| look_up(policy, &asked.target, dns);
    Ok(walk(policy, asked, &asker, &flight, look_up)?.decision)
}

/// Looks a target's name up, as the proxy would.
fn look_up(policy: &Arc<Policy>, target: &Target, dns: Option<AskId>) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(async {
        let health = health::of_policy(policy, &[]);
        let (names, _ways) = assemble(policy, &Resolver::from_system(), &health, &[], None);
        let names = names.of_target(&target.host, dns);
        names
            .lookup(&target.host, policy.timeouts.dns, &Trail::default())
            .await
    });
    if let Err(error) = &found {
        say!("warning: {}", crate::failure::chain(error));
    }
    Ok(found)
}

/// What comes first in the tunnel: as the flags say, else what the port lets expect.
fn flight(args: &ExplainArgs, target: &Target) -> Flight {
    let is_told = args.sni.is_some() || !args.alpn.is_empty();
    match args.proto {
        None if !is_told => Flight::usual(target),
        None | Some(Proto::Tls) => {
            let name = args.sni.as_deref().or(target.host.name());
            Flight::tls(name, args.alpn.iter().map(String::as_str))
        }
        Some(Proto::Http) => Flight::Http,
        Some(Proto::Ssh) => Flight::Ssh,
        Some(Proto::Other) => Flight::Other,
    }
}
