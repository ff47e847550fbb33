//! The command line: what a person types, and what is printed for it. The only floor that prints and exits.

/// Tells a person something on standard error. Where nobody can be told, the work goes on.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod ask;
mod cause;
mod check;
mod clients;
mod connect;
mod dns;
mod doctor;
mod env;
mod explain;
mod lab;
mod learn;
mod pages;
mod parse;
mod record;
mod replay;
mod run;
mod schema;
mod serve;
mod settings;
mod status;
mod tail;
mod top;
mod variables;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::env::Environment;
use crate::config::{AdminAddress, ListenAt};

/// The variable that holds the admin token.
const ADMIN_TOKEN: &str = "ROUTECAUSE_ADMIN_TOKEN";

/// How the program ends, for scripts.
mod exit {
    /// Checks failed.
    pub(super) const FAILED: u8 = 1;
    /// Wrong use.
    pub(super) const USAGE: u8 = 2;
    /// The policy refused something, and `--fail-on` names that.
    pub(super) const DENIED: u8 = 3;
    /// Something failed on its way, and `--fail-on` names that.
    pub(super) const EGRESS_FAILED: u8 = 4;
    /// The admin listener of a proxy cannot be reached.
    pub(super) const UNREACHABLE: u8 = 5;
    /// Cannot bind (`EX_UNAVAILABLE`).
    pub(super) const UNAVAILABLE: u8 = 69;
    /// No permission (`EX_NOPERM`).
    pub(super) const NO_PERMISSION: u8 = 77;
    /// Bad policy (`EX_CONFIG`).
    pub(super) const BAD_POLICY: u8 = 78;
    /// The command could not be run, for a reason of ours (as `env` has it).
    pub(super) const NOT_RUN: u8 = 125;
    /// The command is no program.
    pub(super) const NOT_EXECUTABLE: u8 = 126;
    /// There is no such command.
    pub(super) const NOT_FOUND: u8 = 127;
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
#[command(after_help = "\
Exit codes: 0 fine, 1 checks failed, 2 usage, 3 denied, 4 egress failed, 5 admin unreachable,
69 cannot bind, 77 no permission, 78 bad policy")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::args::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    Serve(serve::args::ServeArgs),
    /// Say what the policy decides for a URL and why, without connecting; what became of a request, by its record; or what a
    /// cause means.
    #[command(after_help = "\
Exit codes: 0 it is told, 1 there is no such record, or it cannot be read, 2 usage, 5 the proxy's admin listener cannot be
reached, 78 the policy has mistakes

Examples:
  routecause explain https://git.corp.example/
  routecause explain --client 172.17.0.2 registry.example:443
  routecause explain --no-proxy '.corp.example,10.0.0.0/8' http://10.1.2.3/
  routecause explain --as curl,go,requests https://git.corp.example/
  routecause explain 01a1fa62-0136-755e-805d-de0e87a5c589
  routecause explain 01a1fa62-0136-755e-805d-de0e87a5c589 --log records.jsonl
  routecause explain --log - < records.jsonl
  routecause explain --cause tls.cert.unknown_issuer")]
    Explain(explain::ExplainArgs),
    /// Find every mistake in a policy and run its tests.
    #[command(after_help = "\
Exit codes: 0 fine, 1 a test failed, 78 the policy has mistakes

Examples:
  routecause check policies/corporate-split.yaml
  routecause check new.yaml --against records.jsonl
  routecause check --json")]
    Check(check::CheckArgs),
    /// Run a command behind a proxy of its own, and report what became of its requests.
    #[command(after_help = "\
Exit codes: the command's own, 128+N where signal N ended it; 3 or 4 by --fail-on where it ends with 0; 78 bad policy;
125 it could not be run, 126 it is no program, 127 there is none

Examples:
  routecause run -- curl -sS https://files.example/
  routecause run -- go mod download
  routecause run --policy ci.yaml --report out/ --fail-on denied -- make build
  routecause run --learn ci.yaml -- docker build .")]
    Run(run::RunArgs),
    /// Print the settings that a tool reads to use the proxy, or write them into its file and take them back.
    #[command(after_help = "\
Examples:
  eval \"$(routecause env)\"
  routecause env --for npm --write
  routecause env --for npm --undo
  docker build $(routecause env --for docker-build) .")]
    Env(env::EnvArgs),
    /// Find out why a URL does not work: probes by every way, controls beside them, and one verdict.
    #[command(after_help = "\
Exit codes: 0 it works, 1 it does not

It asks the target's host and the controls, at most some forty connections, with nothing of yours in them: HEAD / only, or the
URL's own path and query with --full-url.
Controls are example.com and www.iana.org where none are named, which it says before it asks, and none where CI is set.

Examples:
  routecause doctor https://files.example/
  routecause doctor --policy corp.yaml --control mirror.corp.example https://files.example/
  routecause doctor go
  routecause doctor docker https://files.example/
  routecause doctor git origin
  routecause doctor --compare https://a.example/f.tar.gz https://b.example/f.tar.gz
  routecause doctor --locate https://files.example/
  routecause doctor --idle 10m https://files.example/
  routecause doctor --thorough https://files.example/
  routecause doctor env
  routecause doctor env --pid 4711")]
    Doctor(doctor::DoctorArgs),
    /// Open a tunnel through a running proxy on standard input and output, as ssh's `ProxyCommand` wants it.
    #[command(after_help = "\
Exit codes: 0 the far side ended, 3 denied by the policy, 4 failed on its way, 69 no proxy there, 78 bad policy

Examples, in ~/.ssh/config:
  ProxyCommand routecause connect %h %p
  ProxyCommand routecause connect --proxy https://proxy.corp.example:3129 %h %p")]
    Connect(connect::ConnectArgs),
    /// Ask every name server that the policy and the system name, and tell what each says; or let a running proxy forget what
    /// they said.
    Dns(dns::DnsArgs),
    /// Print an allow-list that covers the requests in record logs.
    #[command(after_help = "\
Examples:
  routecause learn records.jsonl > policy.yaml
  routecause learn week-*.jsonl")]
    Learn(learn::LearnArgs),
    /// Run a world to test in: a proxy on a free port with an authority of its own, servers for *.lab.test, and faults on
    /// demand.
    #[command(after_help = "\
Examples:
  routecause lab --fault 'api.lab.test: reset at client_hello first 2'
  routecause lab --fault '*.lab.test: delay 2s at connect' --fault 'a.lab.test: status 503 at request'
  routecause lab --policy policies/flaky-network.yaml --json")]
    Lab(lab::LabArgs),
    /// Print the JSON Schema of a policy or of a record.
    Schema(schema::SchemaArgs),
    /// Follow the records of a running proxy.
    #[command(after_help = "\
Exit codes: 0 fine, 5 the proxy's admin listener cannot be reached

Examples:
  routecause tail --failed
  routecause tail --cause tls --host '*.example'
  routecause tail --json | jq '.\"egress.hint\"'")]
    Tail(tail::TailArgs),
    /// Watch a running proxy: who fails, by host, cause or upstream.
    Top(top::TopArgs),
    /// Say how a running proxy is.
    Status(status::StatusArgs),
    /// Ask whether a running proxy takes requests: 0 if it does, 1 if it is ending, full or hanging, 5 if it cannot be
    /// reached.
    Healthcheck(status::CheckArgs),
    /// Print what a shell needs to complete these commands.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual's page, or write one for each command into a folder.
    Man {
        /// The folder.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

/// Which policy.
#[derive(Clone, Debug, Args)]
struct PolicyArg {
    /// The policy file. Without it: `$XDG_CONFIG_HOME/routecause/policy.yaml`, `/etc/routecause/policy.yaml`, or the
    /// embedded one.
    #[arg(long, value_name = "FILE", env = "ROUTECAUSE_POLICY")]
    policy: Option<PathBuf>,
}

/// Where the proxy listens, as the variable tells `serve`.
#[derive(Clone, Debug, Args)]
struct ListenArg {
    /// Where the proxy listens.
    #[arg(long, hide = true, value_name = "ADDRESS", env = "ROUTECAUSE_LISTEN", value_delimiter = ',', value_parser = parse::listen_address)]
    listen: Vec<ListenAt>,
}

/// Which proxy.
#[derive(Debug, Args)]
struct AdminArgs {
    /// Its admin listener: an address, or `unix:PATH`.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ROUTECAUSE_ADMIN",
        default_value = "127.0.0.1:3129"
    )]
    admin: AdminAddress,
    /// The file with the admin token, where it asks for one. The token itself may stand in `ROUTECAUSE_ADMIN_TOKEN`.
    #[arg(long, value_name = "FILE", env = "ROUTECAUSE_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
}

/// Runs what was typed.
pub fn main() -> ExitCode {
    let env = Environment::of_process();
    let command = without_empty(Cli::command(), &env);
    let parsed = command
        .try_get_matches()
        .and_then(|matches| parsed(&matches));
    let Cli { command, serve } = match parsed {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let code = match command.unwrap_or(Command::Serve(serve)) {
        Command::Serve(args) => serve::run(&args, &env),
        Command::Explain(args) => match &args.cause {
            Some(cause) => cause::run(cause, args.json),
            None if record::is_meant(&args) => record::run(&args, &env),
            None if !args.clients.is_empty() => clients::run(&args, &env),
            None => explain::run(&args, &env),
        },
        Command::Check(args) => check::run(&args, &env),
        Command::Run(args) => run::run(&args, &env),
        Command::Env(args) => env::run(&args, &env),
        Command::Learn(args) => learn::run(&args),
        Command::Doctor(args) => doctor::run(&args, &env),
        Command::Connect(args) => connect::run(&args, &env),
        Command::Dns(args) => dns::run(&args, &env),
        Command::Completions { shell } => pages::completions(shell, Cli::command()),
        Command::Man { folder } => pages::man(folder.as_deref(), Cli::command()),
        Command::Schema(args) => schema::run(args.of),
        Command::Lab(args) => lab::run(&args, &env),
        Command::Tail(args) => tail::run(&args, &env),
        Command::Top(args) => top::run(&args, &env),
        Command::Status(args) => status::run(&args, &env),
        Command::Healthcheck(args) => status::check(&args, &env),
    };
    match code {
        0 if UNTOLD.load(Relaxed) => exit::FAILED.into(),
        code => code.into(),
    }
}

/// What was typed, if it goes together.
fn parsed(matches: &ArgMatches) -> Result<Cli, clap::Error> {
    let cli = Cli::from_arg_matches(matches)?;
    if let (Some(Command::Explain(args)), Some((name, matches))) =
        (&cli.command, matches.subcommand())
    {
        let mut command = Cli::command();
        command.build();
        if let Some(explain) = command.find_subcommand_mut(name) {
            explain::refuse_unused(args, matches, explain)?;
        }
    }
    Ok(cli)
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

/// Whether something could not be printed. Nothing that prints ends well then.
static UNTOLD: AtomicBool = AtomicBool::new(false);

/// Prints to standard output. Whoever reads it may have seen enough, as `head` has.
fn print(text: &str) {
    let mut out = io::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        say!("error: write to standard output: {error}");
        UNTOLD.store(true, Relaxed);
    }
}

/// What `--help` prints.
pub fn help() -> String {
    Cli::command().render_long_help().to_string()
}

/// A value as a shell takes it.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:.-_@%+=,…".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}
