//! `routecause lab`

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::serve::{LAST_RECORDS, Signals, exit_of_start, write_diary};
use super::{exit, parse, print, quoted, wants_colour};
use crate::config::Source;
use crate::config::env::Environment;
use crate::failure::chain;
use crate::lab::incident::Incident;
use crate::lab::{Lab, Setup, StartError};
use crate::observe::board::Keep as _;
use crate::observe::log::{Form, Log, form_of_stdout};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(in crate::cli) struct LabArgs {
    #[command(subcommand)]
    pub(in crate::cli) command: Option<LabCommand>,
    #[command(flatten)]
    pub(in crate::cli) world: WorldArgs,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum LabCommand {
    /// Write a file that brings a failure of the log about again, without the network and without what was said.
    #[command(after_help = "\
Examples:
  routecause lab record 01a1fee0 --log egress.log > reset.json
  tail -1 egress.log | routecause lab record - --output reset.json")]
    Record(RecordArgs),
    /// Run a lab in which whoever asks for the target of such a file meets the same failure.
    #[command(after_help = "\
Example:
  routecause lab replay reset.json")]
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RecordArgs {
    /// The record's id, or how it begins; - for the last failure.
    #[arg(value_name = "RECORD-ID|-")]
    pub(in crate::cli) id: String,
    /// The log, as JSON lines; standard input without it.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) log: Option<PathBuf>,
    /// Where it is written; standard output without it.
    #[arg(long, short, value_name = "FILE")]
    pub(in crate::cli) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReplayArgs {
    /// What `lab record` wrote.
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) world: WorldArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct WorldArgs {
    /// Interference: HOST: DO at AT, and which connections it strikes, as first N, nth N, every N or p 0.3 seed 7; may be
    /// repeated. The words are those of `faults` in a policy.
    #[arg(long, value_name = "HOST: DO at AT")]
    pub(in crate::cli) fault: Vec<String>,
    /// The policy, with its faults; everything goes straight out without it.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) policy: Option<PathBuf>,
    /// Where ca.pem and bundle.pem are written; an authority that stands there (ca.pem and ca.key) is used. [default: a folder
    /// that is gone with the lab]
    #[arg(long, value_name = "FOLDER")]
    pub(in crate::cli) dir: Option<PathBuf>,
    /// Listen here. [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", value_parser = parse::loopback_address)]
    pub(in crate::cli) listen: Option<SocketAddr>,
    /// Serve the HTTP API of Toxiproxy here, for its clients, as on 127.0.0.1:8474.
    #[arg(long, value_name = "ADDRESS", value_parser = parse::loopback_address)]
    pub(in crate::cli) toxiproxy: Option<SocketAddr>,
    /// Print one JSON object that says where everything is, then the records as JSON.
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(super) fn run(args: &LabArgs, env: &Environment) -> u8 {
    match &args.command {
        None => start(&args.world, None, env),
        Some(LabCommand::Record(args)) => match record(args) {
            Ok(()) => 0,
            Err(error) => {
                say!("error: {error:#}");
                exit::FAILED
            }
        },
        Some(LabCommand::Replay(args)) => match read(&args.file) {
            Ok(incident) => start(&args.world, Some(incident), env),
            Err(error) => {
                say!("error: {error:#}");
                exit::USAGE
            }
        },
    }
}

fn read(file: &Path) -> anyhow::Result<Incident> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Incident::parse(&text).with_context(|| file.display().to_string())
}

/// Writes a failure of the log as a file.
fn record(args: &RecordArgs) -> anyhow::Result<()> {
    let log = match &args.log {
        Some(file) => {
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
        }
        None => std::io::read_to_string(std::io::stdin()).context("read standard input")?,
    };
    let id = Some(args.id.as_str()).filter(|id| *id != "-");
    let incident = Incident::of_log(&log, id)?;
    let Some(file) = &args.output else {
        print(&incident.text());
        return Ok(());
    };
    std::fs::write(file, incident.text()).with_context(|| format!("write {}", file.display()))
}

fn start(args: &WorldArgs, incident: Option<Incident>, env: &Environment) -> u8 {
    write_diary(env, "error");
    let is_coloured = std::io::stderr().is_terminal() && wants_colour(env);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(serve(args, incident, env, is_coloured)),
        Err(error) => Err(StartError::Io(error)),
    };
    match ended {
        Ok(code) => code,
        Err(StartError::Policy(report)) => {
            say!("{}", report.render(is_coloured));
            exit::BAD_POLICY
        }
        Err(StartError::Proxy(error)) => exit_of_start(&error),
        Err(error) => {
            say!("error: {}", chain(&error));
            exit::FAILED
        }
    }
}

async fn serve(
    args: &WorldArgs,
    incident: Option<Incident>,
    env: &Environment,
    is_coloured: bool,
) -> Result<u8, StartError> {
    let form = match form_of_stdout(!wants_colour(env)) {
        _ if args.json => Form::Json,
        Form::Text { colour } => Form::Text { colour },
        Form::Json => Form::Text { colour: false },
    };
    let log = Arc::new(Log::to_stdout(form));
    let mut setup = Setup::default()
        .environment(env.clone())
        .observer(log.clone());
    if let Some(folder) = &args.dir {
        // What is printed of it is pasted into shells that stand elsewhere.
        setup = setup.folder(std::path::absolute(folder).unwrap_or_else(|_| folder.clone()));
    }
    if let Some(file) = &args.policy {
        setup = setup.policy(Source::File(file.clone()));
    }
    if let Some(address) = args.listen {
        setup = setup.listen(address);
    }
    if let Some(address) = args.toxiproxy {
        setup = setup.toxiproxy(address);
    }
    let target = incident.as_ref().map(url_of);
    let mut begun = Ok(setup);
    for fault in &args.fault {
        begun = begun.and_then(|setup| setup.fault(fault));
    }
    if let Some(incident) = incident {
        begun = begun.and_then(|setup| setup.incident(incident));
    }
    let setup = match begun {
        Ok(setup) => setup,
        Err(error) => {
            say!("{}", error.render(is_coloured));
            return Ok(exit::USAGE);
        }
    };
    // Before it begins: who reads its first line may end it at once.
    let mut signals = Signals::new()?;
    let lab = setup.start().await?;
    for warning in lab.warnings() {
        say!("{}", warning.render(is_coloured));
    }
    greet(&lab, target.as_deref(), args.json);
    // There is nothing to read again.
    signals.end_or_hangup().await;
    drop(lab);
    log.close(LAST_RECORDS);
    Ok(0)
}

/// What whoever started it needs to know.
#[derive(Debug, Serialize)]
struct Greeting {
    schema: &'static str,
    proxy_url: String,
    admin_url: String,
    toxiproxy_url: Option<String>,
    ca_file: String,
    bundle_file: String,
    environment: serde_json::Map<String, serde_json::Value>,
}

/// What is asked for in an incident.
fn url_of(incident: &Incident) -> String {
    let scheme = if incident.action == "connect" {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{}/", incident.target)
}

/// Says where everything is. `target` is what an incident happens to.
fn greet(lab: &Lab, target: Option<&str>, is_json: bool) {
    say!(
        "routecause {} lab listens on {}, *.lab.test answers over http and https; Ctrl-C ends it",
        env!("CARGO_PKG_VERSION"),
        lab.proxy_address()
    );
    if is_json {
        let environment = lab.environment().into_iter();
        let greeting = Greeting {
            schema: "routecause.lab/1",
            proxy_url: lab.proxy_url(),
            admin_url: lab.admin_url(),
            toxiproxy_url: lab.toxiproxy_url(),
            ca_file: lab.ca_file().display().to_string(),
            bundle_file: lab.bundle_file().display().to_string(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect(),
        };
        match serde_json::to_string(&greeting) {
            Ok(line) => print(&(line + "\n")),
            Err(error) => say!("error: {error}"),
        }
        return;
    }
    let mut text = String::new();
    let mut line = String::new();
    for (name, value) in lab.environment() {
        let setting = format!(" {name}={}", quoted(&value));
        if !line.is_empty() && line.len() + setting.len() > WIDTH {
            let _ = writeln!(text, "export{line}");
            line.clear();
        }
        line.push_str(&setting);
    }
    let url = target.unwrap_or("https://api.lab.test/guide");
    let _ = writeln!(text, "export{line}\n\ncurl {url}\n");
    print(&text);
}

/// Lines of settings are about as long.
const WIDTH: usize = 110;
