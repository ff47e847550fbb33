//! The command line: what a person types, and what is printed for it. The only floor that prints and exits.

/// Tells a person something on standard error. Where nobody can be told, the work goes on.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod cause;
mod check;
mod explain;
mod schema;
mod serve;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::config::env::Environment;

/// How the program ends, for scripts.
mod exit {
    /// Checks failed.
    pub(super) const FAILED: u8 = 1;
    /// Wrong use.
    pub(super) const USAGE: u8 = 2;
    /// Cannot bind (`EX_UNAVAILABLE`).
    pub(super) const UNAVAILABLE: u8 = 69;
    /// No permission (`EX_NOPERM`).
    pub(super) const NO_PERMISSION: u8 = 77;
    /// Bad policy (`EX_CONFIG`).
    pub(super) const BAD_POLICY: u8 = 78;
}

/// A forward HTTP/CONNECT egress proxy that routes by policy and says why things fail.
///
/// Without a command it serves: it listens on 127.0.0.1:3128, takes upstream and bypass list from the environment
/// (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`) unless a policy says otherwise, and prints one record for each request.
#[derive(Debug, Parser)]
#[command(
    name = "routecause",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
#[command(
    after_help = "Exit codes: 0 fine, 1 checks failed, 2 usage, 69 cannot bind, 77 no permission, 78 bad policy"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    Serve(ServeArgs),
    /// Say what the policy decides for a URL and why, without connecting; or what a cause means.
    #[command(after_help = "\
Examples:
  routecause explain https://git.corp.example/
  routecause explain --client 172.17.0.2 registry.example:443
  routecause explain --no-proxy '.corp.example,10.0.0.0/8' http://10.1.2.3/
  routecause explain --cause tls.cert.unknown_issuer")]
    Explain(ExplainArgs),
    /// Find every mistake in a policy and run its tests.
    #[command(after_help = "\
Exit codes: 0 fine, 1 a test failed, 78 the policy has mistakes

Examples:
  routecause check policies/corporate-split.yaml
  routecause check --json")]
    Check(CheckArgs),
    /// Print the JSON Schema of a policy or of a record.
    Schema(SchemaArgs),
    #[command(flatten)]
    Later(Later),
}

/// Commands that later versions bring: named here so that they say so.
#[derive(Debug, Subcommand)]
enum Later {
    #[command(hide = true)]
    Run(Rest),
    #[command(hide = true)]
    Doctor(Rest),
    #[command(hide = true)]
    Tail(Rest),
    #[command(hide = true)]
    Top(Rest),
    #[command(hide = true)]
    Env(Rest),
    #[command(hide = true)]
    Lab(Rest),
    #[command(hide = true)]
    Learn(Rest),
    #[command(hide = true)]
    Connect(Rest),
    #[command(hide = true)]
    Status(Rest),
    #[command(hide = true)]
    Healthcheck(Rest),
    #[command(hide = true)]
    Completions(Rest),
    #[command(hide = true)]
    Man(Rest),
}

/// Whatever follows.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

/// Which policy.
#[derive(Clone, Debug, Args)]
struct PolicyArg {
    /// The policy file. Without it: `$XDG_CONFIG_HOME/routecause/policy.yaml`, `/etc/routecause/policy.yaml`, or the
    /// embedded one.
    #[arg(long, value_name = "FILE", env = "ROUTECAUSE_POLICY")]
    policy: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    policy: PolicyArg,
    /// Listen here; may be repeated. An address that other machines can reach needs --allow-from.
    /// [default: 127.0.0.1:3128]
    #[arg(long, value_name = "ADDRESS", env = "ROUTECAUSE_LISTEN", value_delimiter = ',', value_parser = listen_address)]
    listen: Vec<SocketAddr>,
    /// Who may use the proxy beside clients on this machine, as in 172.17.0.0/16; may be repeated.
    #[arg(long, value_name = "CIDR", env = "ROUTECAUSE_ALLOW_FROM", value_delimiter = ',', value_parser = network)]
    allow_from: Vec<IpNet>,
    /// Where the admin API listens: `off` is all that this version knows.
    #[arg(long, value_name = "ADDRESS|off", env = "ROUTECAUSE_ADMIN", value_parser = admin_off)]
    admin: Option<String>,
    /// How records are written. [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", env = "ROUTECAUSE_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// Where records are written, appending; standard output without it.
    #[arg(long, value_name = "FILE", env = "ROUTECAUSE_LOG_FILE")]
    log_file: Option<PathBuf>,
    /// The name in Proxy-Status. [default: routecause]
    #[arg(long, value_name = "NAME", env = "ROUTECAUSE_NAME", value_parser = server_name)]
    name: Option<String>,
    /// Limits of the whole process, as in connections=5000. [default: connections=10000, fewer where the limit of open
    /// files is low]
    #[arg(long, value_name = "NAME=NUMBER", env = "ROUTECAUSE_LIMITS", value_parser = limits)]
    limits: Option<usize>,
    /// How long open tunnels have when the process is told to end, as in 30s. [default: 30s]
    #[arg(long, value_name = "DURATION", env = "ROUTECAUSE_DRAIN_TIMEOUT", value_parser = duration)]
    drain_timeout: Option<std::time::Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One line for people.
    Text,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    #[command(flatten)]
    policy: PolicyArg,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The client that asks.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    client: IpAddr,
    /// Judge this list alone as well, by the same rules as `no_proxy` in a policy.
    #[arg(long, value_name = "LIST")]
    no_proxy: Option<String>,
    /// What is asked for: `http://…` as a plain request, `https://…` or `host:port` as a CONNECT.
    #[arg(value_name = "URL|HOST:PORT", required_unless_present = "cause")]
    target: Option<String>,
    /// Say what a cause means, how it is told and what to do: an id such as `connect.timeout`, the beginning of some such
    /// as `tls`, or `all`.
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "client", "no_proxy"])]
    cause: Option<String>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The policy file; without it, the one that `serve` would run.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as `serve` takes it.
    #[arg(
        long = "policy",
        value_name = "FILE",
        env = "ROUTECAUSE_POLICY",
        conflicts_with = "file",
        hide = true
    )]
    policy: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SchemaArgs {
    /// Of what.
    of: SchemaOf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchemaOf {
    /// The policy file.
    Policy,
    /// The record of a request.
    Record,
}

/// Runs what was typed.
pub fn main() -> ExitCode {
    let env = Environment::of_process();
    let command = without_empty(Cli::command(), &env);
    let parsed = command
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let Cli { command, serve } = match parsed {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let code = match command.unwrap_or(Command::Serve(serve)) {
        Command::Serve(args) => serve::run(&args, &env),
        Command::Explain(args) => match &args.cause {
            Some(cause) => cause::run(cause, args.json),
            None => explain::run(&args, &env),
        },
        Command::Check(args) => check::run(&args, &env),
        Command::Schema(args) => schema::run(args.of),
        Command::Later(_) => {
            let name = std::env::args_os().nth(1).unwrap_or_default();
            say!(
                "error: `routecause {}` is not in this version",
                name.to_string_lossy()
            );
            exit::USAGE
        }
    };
    ExitCode::from(code)
}

/// The command without the variables that are empty: they count as unset, as deployment tools write them.
fn without_empty(command: clap::Command, env: &Environment) -> clap::Command {
    let is_empty = |arg: &clap::Arg| {
        let variable = arg.get_env().and_then(|name| name.to_str());
        variable.is_some_and(|name| env.is_blank(name))
    };
    let forget = |arg: clap::Arg| if is_empty(&arg) { arg.env(None) } else { arg };
    command
        .mut_args(forget)
        .mut_subcommands(|subcommand| without_empty(subcommand, env))
}

/// Whether a terminal may be coloured: `NO_COLOR` and a dumb terminal say no.
fn wants_colour(env: &Environment) -> bool {
    env.get("NO_COLOR").is_none() && env.get("TERM") != Some("dumb")
}

/// Prints to standard output. Whoever reads it may have seen enough, as `head` has.
fn print(text: &str) {
    if let Err(error) = io::stdout().write_all(text.as_bytes())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        say!("error: write to standard output: {error}");
    }
}

/// What `--help` prints.
pub fn help() -> String {
    Cli::command().render_long_help().to_string()
}

/// `host:port` with an address, or `:port` for every address.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let spelled = if text.starts_with(':') {
        format!("[::]{text}")
    } else {
        text.to_owned()
    };
    spelled
        .parse()
        .map_err(|_| "write an address and a port, as in 127.0.0.1:3128 or [::1]:3128".to_owned())
}

fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse()
        .ok()
        .or_else(single)
        .ok_or_else(|| "write a range of addresses, as in 172.17.0.0/16".to_owned())
}

fn admin_off(text: &str) -> Result<String, String> {
    if text == "off" {
        Ok(text.to_owned())
    } else {
        Err("an admin address is not in this version; write off".to_owned())
    }
}

fn limits(text: &str) -> Result<usize, String> {
    let (name, number) = text
        .split_once('=')
        .ok_or("write a name and a number, as in connections=5000")?;
    match (name.trim(), number.trim().parse()) {
        ("connections", Ok(number)) if number > 0 => Ok(number),
        ("connections", _) => Err(format!("{number:?} is no number of connections")),
        (name, _) => Err(format!(
            "limit {name:?} is not in this version; connections is"
        )),
    }
}

fn server_name(text: &str) -> Result<String, String> {
    if crate::config::is_server_name(text) {
        Ok(text.to_owned())
    } else {
        Err("it stands in a header: letters, digits and -._ only, a letter first".to_owned())
    }
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::duration(text)
        .ok_or_else(|| "write a duration, as in 250ms, 30s or 1m30s".to_owned())
}
