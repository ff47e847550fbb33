//! `routecause run -- CMD`: a private proxy for one command, and a report of what became of its requests.

mod child;
pub(super) mod docker;
mod go;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::settings::{self, Told};
use super::{PolicyArg, exit, learn, wants_colour};
use listenfd::ListenFd;

use crate::app::bound::Bound;
use crate::app::{App, Settings, StartError, connections_as_they_are, workers};
use crate::config::env::Environment;
use crate::config::{self, ListenAt, Loaded, Options, Report as Mistakes};
use crate::failure::chain;
use crate::net::resolve::Resolver;
use crate::observe::board::Keep as _;
use crate::observe::log::{Form, Log};
use crate::observe::report::{self, Gathering, Report};
use crate::record::seen::Seen;

#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    #[command(flatten)]
    pub(in crate::cli) policy: PolicyArg,
    /// Whether refusals are only noted, or enforced. [default: as the policy says; report with --learn]
    #[arg(long, value_name = "MODE")]
    pub(in crate::cli) mode: Option<RunMode>,
    /// Write report.json, report.md, junit.xml and records.jsonl into this folder.
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) report: Option<PathBuf>,
    /// Write an allow-list that covers what was seen into this file, which must not be there yet.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) learn: Option<PathBuf>,
    /// End with 3 where something was denied, refusals with `code: expected` aside, with 4 where something failed on its way, if the command ends with 0.
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub(in crate::cli) fail_on: Vec<FailOn>,
    /// Let the command trust this certificate (PEM) as well, by the variables that its tools read.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) ca: Option<PathBuf>,
    /// Say nothing at the end where nothing was denied and nothing failed.
    #[arg(long, short)]
    pub(in crate::cli) quiet: bool,
    /// The command, with its arguments.
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(in crate::cli) command: Vec<OsString>,
}

/// Whether refusals are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RunMode {
    /// They are only noted.
    Report,
    /// They are.
    Enforce,
}

/// What makes a run fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum FailOn {
    /// A request that the policy refused.
    Denied,
    /// A request that failed on its way.
    Failed,
}

/// Tunnels that the command has left behind have so long.
const DRAIN: Duration = Duration::from_secs(1);

/// The last records have this long to be written.
const LAST_RECORDS: Duration = Duration::from_secs(3);

/// Why the command was not run.
enum Refusal {
    Policy(Mistakes),
    Start(StartError),
    /// What was typed does not go together.
    Usage(String),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// A proxy of the command's own.
struct Private {
    app: App,
    gathering: Arc<Gathering>,
    log: Option<Arc<Log>>,
    policy: report::Policy,
    warnings: Vec<config::Diagnostic>,
}

/// What a command's run is.
struct Run<'a> {
    args: &'a RunArgs,
    env: &'a Environment,
    program: String,
    is_coloured: bool,
}

pub(super) fn run(args: &RunArgs, env: &Environment) -> u8 {
    super::serve::write_diary(env, "warn");
    let is_coloured = io::stderr().is_terminal() && wants_colour(env);
    let program = args.command.first().map_or_else(String::new, |program| {
        let name = Path::new(program).file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    });
    let run = Run {
        args,
        env,
        program,
        is_coloured,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run.through()),
        Err(error) => Err(anyhow::Error::new(error)
            .context("start the runtime")
            .into()),
    };
    ended.unwrap_or_else(|refusal| refusal.tell(is_coloured))
}

impl Refusal {
    /// Says it, and with which exit code.
    fn tell(&self, is_coloured: bool) -> u8 {
        match self {
            Self::Policy(mistakes) => {
                say!("{}", mistakes.render(is_coloured));
                exit::BAD_POLICY
            }
            Self::Start(error) => {
                say!("error: {}", chain(error));
                exit::NOT_RUN
            }
            Self::Usage(problem) => {
                say!("error: {problem}");
                exit::USAGE
            }
            Self::Other(error) => {
                say!("error: {error:#}");
                exit::NOT_RUN
            }
        }
    }
}

impl Run<'_> {
    /// Starts the proxy, runs the command, and reports.
    async fn through(&self) -> Result<u8, Refusal> {
        if let Some(file) = &self.args.learn {
            check_learn(file)?;
        }
        let mut command: Vec<OsString> = self.args.command.clone();
        let contained = docker::Contained::of(&self.program, &command);
        let bridge = match &contained {
            Some(contained) if !contained.is_on_host => Some(docker::Bridge::find().await?),
            Some(_) | None => None,
        };
        if let Some(folder) = &self.args.report {
            fs::create_dir_all(folder).map_err(|error| {
                anyhow::Error::new(error).context(format!("make {}", folder.display()))
            })?;
        }
        let private = Private::start(
            &self.args.policy,
            self.mode(),
            bridge.as_ref(),
            self.args.report.as_deref(),
            self.env,
        )?;
        for warning in &private.warnings {
            say!("{}", warning.render(self.is_coloured));
        }
        let url = |address: SocketAddr| format!("http://{address}");
        let addresses = private.app.addresses().to_vec();
        let own = addresses.first().copied().map(url).unwrap_or_default();
        if let Some(contained) = &contained {
            let reachable = addresses.last().copied().map(url).unwrap_or_default();
            contained.point_at(&reachable, &mut command);
        }
        let bundle = match &self.args.ca {
            Some(file) => Some(settings::Bundle::with(file)?),
            None => None,
        };
        let told = Told {
            proxy: own,
            no_proxy: settings::LOCAL.to_owned(),
            ca: bundle.as_ref().map(settings::Bundle::paths),
        };
        let variables = told.variables(self.env);
        let listens = self.program == "go";
        let ended = child::run(&command, &variables, listens).await;
        private.app.finish(std::future::pending()).await;
        let (code, said) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let name = self.args.command.first();
                let name = name.map(|name| name.to_string_lossy()).unwrap_or_default();
                say!("error: run {name}: {error}");
                let code = if error.kind() == io::ErrorKind::NotFound {
                    exit::NOT_FOUND
                } else if error.kind() == io::ErrorKind::PermissionDenied {
                    exit::NOT_EXECUTABLE
                } else {
                    exit::NOT_RUN
                };
                (code, VecDeque::new())
            }
        };
        self.report(private, code, &said)
    }

    fn mode(&self) -> Option<RunMode> {
        let learning = self.args.learn.is_some().then_some(RunMode::Report);
        self.args.mode.or(learning)
    }

    /// Tells and writes what became of the requests; the exit code of the whole.
    fn report(&self, private: Private, code: u8, said: &VecDeque<String>) -> Result<u8, Refusal> {
        if let Some(log) = &private.log {
            log.close(LAST_RECORDS);
        }
        let seen = private.gathering.take();
        let words = self.args.command.iter();
        let command = words.map(|word| word.to_string_lossy().into_owned());
        let mut report = Report::of(&seen, private.policy, command.collect(), code);
        for failure in go::failures(said) {
            report.tie(failure.what, failure.said, &failure.target);
        }
        let is_worth_it = report.denied + report.failed + report.would_be_denied > 0;
        if !self.args.quiet || is_worth_it {
            let width = terminal_size::terminal_size_of(io::stderr());
            let width = width.map_or(100, |(width, _)| usize::from(width.0));
            let text = report::table(&report, width, self.is_coloured);
            let _ = io::stderr().write_all(text.as_bytes());
        }
        let written = self.write(&report, &seen);
        if let (Err(refusal), true) = (&written, code != 0) {
            // The command's own code says more than ours.
            refusal.tell(self.is_coloured);
        } else {
            written?;
        }
        let fails = |what: FailOn| self.args.fail_on.contains(&what);
        Ok(match code {
            0 if fails(FailOn::Denied) && report.denied > 0 => exit::DENIED,
            0 if fails(FailOn::Failed) && report.failed > 0 => exit::EGRESS_FAILED,
            code => code,
        })
    }

    fn write(&self, report: &Report, seen: &[Seen]) -> Result<(), Refusal> {
        if let Some(folder) = &self.args.report {
            write_reports(report, folder, self.env)?;
        }
        if let Some(file) = &self.args.learn {
            learn_into(file, seen)?;
        }
        Ok(())
    }
}

impl Private {
    /// A proxy on a free port of loopback, and on Docker's bridge where a container needs it.
    fn start(
        policy: &PolicyArg,
        mode: Option<RunMode>,
        bridge: Option<&docker::Bridge>,
        folder: Option<&Path>,
        env: &Environment,
    ) -> Result<Self, Refusal> {
        let gateway = bridge.map(|bridge| bridge.gateway);
        let listen = [IpAddr::V4(Ipv4Addr::LOCALHOST)].into_iter().chain(gateway);
        let listen = listen.map(|ip| ListenAt::Tcp(SocketAddr::new(ip, 0)));
        let source = config::locate(policy.policy.as_deref(), env);
        let options = Options::stand_in(Timestamp::now(), listen.collect());
        let loaded = config::load(&source, env, &options).map_err(Refusal::Policy)?;
        let Loaded {
            mut policy,
            server,
            warnings,
            ..
        } = loaded;
        let settings = Settings {
            allow_from: bridge.iter().map(|bridge| bridge.subnet).collect(),
            drain_timeout: DRAIN,
            ..Settings::of_stand_ins(server, connections_as_they_are())
        };
        let bound = Bound::bind(&settings, workers::count(), &mut ListenFd::empty());
        let bound = bound.map_err(|error| match &error {
            StartError::Bind { address, .. } if !address.socket().ip().is_loopback() => Refusal::Other(
                anyhow::Error::new(error).context(
                    "Docker's bridge is not on this machine (Docker Desktop, or a remote engine); run `routecause serve` \
                     where containers can reach it, and pass its variables yourself (`routecause env --for docker-build`)",
                ),
            ),
            StartError::Bind { .. } | StartError::Open { .. } | StartError::Tls { .. } => {
                Refusal::Start(error)
            }
        })?;
        match mode {
            Some(RunMode::Report) => policy.only_note(true),
            Some(RunMode::Enforce) => policy.only_note(false),
            None => {}
        }
        let told = report::Policy {
            source: source.to_string(),
            hash: policy.hash.to_string(),
            mode: if policy.report { "report" } else { "enforce" },
        };
        let log = match folder {
            Some(folder) => {
                let file = folder.join("records.jsonl");
                let opened = fs::File::create(&file).map_err(|error| {
                    anyhow::Error::new(error).context(format!("write {}", file.display()))
                })?;
                Some(Arc::new(Log::to(opened, Form::Json)))
            }
            None => None,
        };
        let gathering = Arc::new(Gathering::new(log.clone()));
        let resolver = Resolver::from_system();
        let observer = gathering.clone();
        let app = App::start(bound, &settings, None, policy, &resolver, observer, None)
            .map_err(|error| anyhow::Error::new(error).context("start the workers"))?;
        Ok(Self {
            app,
            gathering,
            log,
            policy: told,
            warnings,
        })
    }
}

/// Writes `report.json`, `report.md` and `junit.xml`, and adds to the summary of a CI job that has one.
fn write_reports(report: &Report, folder: &Path, env: &Environment) -> anyhow::Result<()> {
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text)
            .map_err(|error| anyhow::Error::new(error).context(format!("write {}", path.display())))
    };
    let markdown = report::markdown(report);
    write(
        folder.join("report.json"),
        &(serde_json::to_string_pretty(report)? + "\n"),
    )?;
    write(folder.join("report.md"), &markdown)?;
    write(folder.join("junit.xml"), &report::junit(report))?;
    if let Some(summary) = env.get("GITHUB_STEP_SUMMARY") {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(summary);
        let added = file.and_then(|mut file| file.write_all(markdown.as_bytes()));
        if let Err(error) = added {
            say!("warning: GITHUB_STEP_SUMMARY: write {summary}: {error}");
        }
    }
    Ok(())
}

/// Looks whether an allow-list can be written there once the command has ended.
fn check_learn(file: &Path) -> Result<(), Refusal> {
    if file.exists() {
        return Err(Refusal::Usage(format!(
            "--learn: {} is there already; name a file that is not, and compare",
            file.display()
        )));
    }
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    // A file without a name: the command sees nothing of it.
    tempfile::tempfile_in(folder).map_err(|error| {
        anyhow::Error::new(error).context(format!("--learn: write {}", file.display()))
    })?;
    Ok(())
}

/// Writes an allow-list that covers what was seen.
fn learn_into(file: &Path, seen: &[Seen]) -> Result<(), Refusal> {
    let text = learn::policy(seen, Timestamp::now());
    // Somebody may have written it meanwhile.
    let written = fs::File::create_new(file).and_then(|mut to| to.write_all(text.as_bytes()));
    written
        .map_err(|error| anyhow::Error::new(error).context(format!("write {}", file.display())))?;
    say!(
        "learned: {} (look at it, then `routecause check {0}`)",
        file.display()
    );
    Ok(())
}
