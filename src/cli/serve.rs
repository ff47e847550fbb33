//! `routecause serve`

use std::cell::RefCell;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{LogFormat, ServeArgs, exit, wants_colour};
use crate::app::reload::Watch;
use crate::app::{App, Bound, Settings, StartError, default_connections, workers};
use crate::config::env::Environment;
use crate::config::{self, DEFAULT_LISTEN, Loaded, Options, Report, ServerSettings, Source};
use crate::failure::chain;
use crate::net::resolve::Resolver;
use crate::observe::log::{Form, Log, form_of_stdout};
use crate::policy::{Action, Policy, RouteId, RouteSpec};

/// The last records have this long to be written.
const LAST_RECORDS: Duration = Duration::from_secs(3);

/// How long open tunnels have when nobody says otherwise.
const DRAIN: Duration = Duration::from_secs(30);

/// Why `serve` ends before it has begun.
enum Refusal {
    Policy(Report),
    Start(StartError),
    Other(anyhow::Error),
}

pub(super) fn run(args: &ServeArgs, env: &Environment) -> u8 {
    write_diary(env);
    let is_coloured = io::stderr().is_terminal() && wants_colour(env);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(serve(args, env, is_coloured)),
        Err(error) => Err(Refusal::Other(
            anyhow::Error::new(error).context("start the runtime"),
        )),
    };
    match served {
        Ok(()) => 0,
        Err(Refusal::Policy(report)) => {
            say!("{}", report.render(is_coloured));
            exit::BAD_POLICY
        }
        Err(Refusal::Start(error)) => {
            let remedy = match &error {
                StartError::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                    "; choose another address with --listen, as in --listen 127.0.0.1:3130"
                }
                StartError::Bind { .. } | StartError::Open { .. } => "",
            };
            say!("error: {}{remedy}", chain(&error));
            match &error {
                StartError::Open { .. } => exit::BAD_POLICY,
                StartError::Bind { source, .. }
                    if source.kind() == io::ErrorKind::PermissionDenied =>
                {
                    exit::NO_PERMISSION
                }
                StartError::Bind { .. } => exit::UNAVAILABLE,
            }
        }
        Err(Refusal::Other(error)) => {
            say!("error: {error:#}");
            let kind = error
                .chain()
                .find_map(|error| Some(error.downcast_ref::<io::Error>()?.kind()));
            if kind == Some(io::ErrorKind::PermissionDenied) {
                exit::NO_PERMISSION
            } else {
                exit::FAILED
            }
        }
    }
}

/// The diary of the process goes to stderr; `RUST_LOG` says how much of it.
fn write_diary(env: &Environment) {
    let filter = EnvFilter::try_new(env.get("RUST_LOG").unwrap_or("info"));
    let is_coloured = io::stderr().is_terminal() && wants_colour(env);
    let diary = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(is_coloured)
        .with_target(false)
        // It would complain on the very stream that is broken, and die of it.
        .log_internal_errors(false)
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")));
    // It is set already where a test runs the command inside its own process.
    let _ = diary.try_init();
}

async fn serve(args: &ServeArgs, env: &Environment, is_coloured: bool) -> Result<(), Refusal> {
    let source = config::locate(args.policy.policy.as_deref(), env);
    let watched = match &source {
        Source::File(path) => vec![path.clone()],
        Source::Embedded | Source::Text { .. } => Vec::new(),
    };
    // Watched before it is read, so that no change is missed; nobody hears of it where it cannot be read either.
    let watch = Watch::of(&watched);
    let Loaded {
        policy,
        server,
        warnings,
        ..
    } = load(&source, args, env).map_err(Refusal::Policy)?;
    for warning in &warnings {
        say!("{}", warning.render(is_coloured));
    }
    let settings = settings(args, &server);
    let bound = Bound::bind(&settings, workers::count()).map_err(Refusal::Start)?;
    let form = form(args, &server, settings.log_file.is_some(), env);
    let log = match &settings.log_file {
        Some(path) => Log::to_file(path, form).map_err(|error| Refusal::Other(error.into()))?,
        None => Log::to_stdout(form),
    };
    let log = Arc::new(log);
    let mut signals = Signals::new()
        .map_err(|error| Refusal::Other(anyhow::Error::new(error).context("listen for signals")))?;
    let app = App::start(
        bound,
        &settings,
        policy,
        Resolver::from_system(),
        log.clone(),
    )
    .map_err(|error| Refusal::Other(anyhow::Error::new(error).context("start the workers")))?;
    greet(&app, &source);
    let keeper = Keeper {
        app: &app,
        source: &source,
        args,
        env,
        settings: &settings,
        is_coloured,
        complaint: RefCell::default(),
    };
    keeper.keep(&mut signals, &watched, watch).await;
    app.finish(signals.end()).await;
    log.close(LAST_RECORDS);
    Ok(())
}

fn load(source: &Source, args: &ServeArgs, env: &Environment) -> Result<Loaded, Report> {
    let mut options = Options::serve(Timestamp::now());
    options.listen.clone_from(&args.listen);
    config::load(source, env, &options)
}

/// Flags and environment first, then the policy's `server` key, then the defaults.
fn settings(args: &ServeArgs, server: &ServerSettings) -> Settings {
    let flags = args
        .listen
        .iter()
        .enumerate()
        .map(|(at, address)| (name_of(at), *address));
    let written = server
        .listen
        .iter()
        .flatten()
        .map(|listener| (listener.name.clone(), listener.address));
    let mut listen: Vec<(Arc<str>, SocketAddr)> = flags.collect();
    if listen.is_empty() {
        listen = written.collect();
    }
    if listen.is_empty() {
        listen.push((name_of(0), DEFAULT_LISTEN));
    }
    let allow_from = match (args.allow_from.as_slice(), &server.allow_from) {
        ([], Some(written)) => written.clone(),
        (flags, _) => flags.to_vec(),
    };
    let name = args
        .name
        .clone()
        .or_else(|| server.name.as_deref().map(str::to_owned));
    Settings {
        listen,
        allow_from,
        name: name.unwrap_or_else(|| "routecause".to_owned()),
        drain_timeout: args.drain_timeout.or(server.drain_timeout).unwrap_or(DRAIN),
        connections: args
            .limits
            .or(server.connections)
            .unwrap_or_else(default_connections),
        log_format: server.log_format,
        log_file: args.log_file.clone().or_else(|| server.log_file.clone()),
    }
}

fn name_of(at: usize) -> Arc<str> {
    if at == 0 {
        "proxy".into()
    } else {
        format!("proxy-{}", at + 1).into()
    }
}

fn form(args: &ServeArgs, server: &ServerSettings, is_file: bool, env: &Environment) -> Form {
    let written = server.log_format.map(|format| match format {
        config::LogFormat::Json => LogFormat::Json,
        config::LogFormat::Text => LogFormat::Text,
    });
    let on_stdout = form_of_stdout(!wants_colour(env));
    match (args.log_format.or(written), on_stdout) {
        (Some(LogFormat::Json), _) => Form::Json,
        (Some(LogFormat::Text), Form::Text { colour }) if !is_file => Form::Text { colour },
        (Some(LogFormat::Text), _) => Form::Text { colour: false },
        (None, _) if is_file => Form::Json,
        (None, on_stdout) => on_stdout,
    }
}

/// What happens to requests that no rule speaks of.
fn default_way(policy: &Policy) -> String {
    let Action::Route(routes) = &policy.default.action else {
        return "requests are refused".to_owned();
    };
    let way = |id: RouteId| match &policy.route(id).spec {
        RouteSpec::Direct => "direct".to_owned(),
        RouteSpec::Upstream { proxy, .. } => format!("through {proxy}"),
    };
    match (way(routes.http), way(routes.connect)) {
        (http, connect) if http == connect => http,
        (http, connect) => format!("{http} for plain requests, {connect} for tunnels"),
    }
}

/// Says where it listens, under which policy, and what to paste into a shell.
fn greet(app: &App, source: &Source) {
    let addresses: Vec<String> = app.addresses().iter().map(SocketAddr::to_string).collect();
    say!(
        "routecause {} listens on {}, policy {source}: by default {}",
        env!("CARGO_PKG_VERSION"),
        addresses.join(" and "),
        default_way(&app.policy())
    );
    if let Some(address) = app.addresses().first() {
        let host = match address.ip() {
            ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            std::net::IpAddr::V4(ip) => ip.to_string(),
        };
        let url = format!("http://{host}:{}", address.port());
        say!("export http_proxy={url} https_proxy={url} HTTP_PROXY={url} HTTPS_PROXY={url}");
    }
}

/// The signals that the process takes.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits until the process is told to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Keeps the policy at work up to date with its file.
struct Keeper<'a> {
    app: &'a App,
    source: &'a Source,
    args: &'a ServeArgs,
    env: &'a Environment,
    settings: &'a Settings,
    is_coloured: bool,
    /// What was said of the policy's mistakes last.
    complaint: RefCell<Option<String>>,
}

impl Keeper<'_> {
    /// Reloads on SIGHUP and on change, until the process is told to end.
    async fn keep(&self, signals: &mut Signals, files: &[PathBuf], watch: notify::Result<Watch>) {
        let mut watch = usable(watch);
        loop {
            let changed = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let is_asked = tokio::select! {
                _ = signals.hangup.recv() => true,
                () = changed => false,
                _ = signals.terminate.recv() => return,
                _ = signals.interrupt.recv() => return,
            };
            // A symlink may lead to other directories now; and watched before it is read, as at the start.
            watch = usable(Watch::of(files));
            self.reload(is_asked);
        }
    }

    /// Reads the policy again. A bad one changes nothing; `is_asked` reloads even what has not changed.
    fn reload(&self, is_asked: bool) {
        let loaded = match load(self.source, self.args, self.env) {
            Ok(loaded) => loaded,
            Err(report) => {
                let told = report.to_string();
                if !is_asked && self.complaint.borrow().as_deref() == Some(&told) {
                    // Something beside the policy changed; the policy is as bad as it was.
                    return;
                }
                self.complaint.replace(Some(told));
                say!("{}", report.render(self.is_coloured));
                tracing::error!(policy = %self.source, "reload failed: the policy is bad, the old one stays at work");
                return;
            }
        };
        self.complaint.take();
        let current = self.app.policy();
        // The text may be the same and a secret another.
        let is_same = loaded.policy.hash == current.hash && loaded.policy.routes == current.routes;
        if is_same && !is_asked {
            return;
        }
        for warning in &loaded.warnings {
            say!("{}", warning.render(self.is_coloured));
        }
        let settings = settings(self.args, &loaded.server);
        let fixed = Settings {
            allow_from: self.settings.allow_from.clone(),
            ..settings.clone()
        };
        if fixed != *self.settings {
            tracing::error!(
                policy = %self.source,
                "reload refused: under `server` only allow_from can change while the proxy runs; restart it for the rest"
            );
            return;
        }
        if let Some(address) = self.app.exposed(&settings) {
            tracing::error!(policy = %self.source, "reload refused: {}", StartError::Open { address });
            return;
        }
        let hash = loaded.policy.hash.clone();
        self.app.replace(loaded.policy, &settings);
        tracing::info!(policy = %self.source, hash = &*hash, "reloaded");
    }
}

fn usable(watch: notify::Result<Watch>) -> Option<Watch> {
    let complain = |error: &notify::Error| {
        tracing::warn!(%error, "the policy is not watched; send SIGHUP to reload it");
    };
    watch.inspect_err(complain).ok()
}
