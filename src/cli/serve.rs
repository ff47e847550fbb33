//! `routecause serve`

pub(super) mod args;
mod keeper;
mod telling;

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use jiff::Timestamp;
use listenfd::ListenFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::{EnvFilter, reload};

use args::ServeArgs;
use keeper::{Keeper, watch_over};

use super::{ADMIN_TOKEN, exit, wants_colour};
use crate::admin::{self, BindError, Diary, Linted, Station};
use crate::app::bound::Bound;
use crate::app::reload::Standing;
use crate::app::{AdminSettings, App, Settings, StartError, default_connections, systemd, workers};
use crate::config::env::Environment;
use crate::config::otlp::OtlpError;
use crate::config::{
    self, AdminAddress, DEFAULT_ADMIN, Limits, ListenAt, Listener, Loaded, Options, Report,
    ServerSettings, Source, TokenSource,
};
use crate::failure::chain;
use crate::net::resolve::Resolver;
use crate::observe::Observe;
use crate::observe::board::Keep as _;
use crate::policy::{Action, Policy, RouteId, RouteSpec};

/// The last records have this long to be written.
pub(super) const LAST_RECORDS: Duration = Duration::from_secs(3);

/// How long open tunnels have when nobody says otherwise.
const DRAIN: Duration = Duration::from_secs(30);

/// A policy whose files change while they are read is read again so often.
const MOST_ROUNDS: usize = 3;

/// Why `serve` ends before it has begun.
enum Refusal {
    Policy(Report),
    Start(StartError),
    Admin(BindError),
    Otlp(String),
    Other(anyhow::Error),
}

pub(super) fn run(args: &ServeArgs, env: &Environment) -> u8 {
    let diary = write_diary(env, "info");
    // Before there are threads: it takes variables out of the environment.
    let mut passed = ListenFd::from_env();
    let is_coloured = io::stderr().is_terminal() && wants_colour(env);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(serve(args, env, &mut passed, diary, is_coloured)),
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
        Err(Refusal::Start(error)) => exit_of_start(&error),
        Err(Refusal::Admin(error)) => {
            let remedy = match &error {
                BindError::Listen { .. } => "; choose another address with --admin, or --admin off",
                BindError::Open(_) | BindError::Token(_) => "",
            };
            say!("error: {}{remedy}", chain(&error));
            match &error {
                BindError::Open(_) | BindError::Token(_) => exit::BAD_POLICY,
                BindError::Listen { source, .. }
                    if source.kind() == io::ErrorKind::PermissionDenied =>
                {
                    exit::NO_PERMISSION
                }
                BindError::Listen { .. } => exit::UNAVAILABLE,
            }
        }
        Err(Refusal::Otlp(error)) => {
            say!("error: export by OTLP: {error}");
            exit::BAD_POLICY
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

/// Says why the proxy does not start.
pub(super) fn exit_of_start(error: &StartError) -> u8 {
    let remedy = match error {
        StartError::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            "; choose another address with --listen, as in --listen 127.0.0.1:3130"
        }
        StartError::Bind { .. } | StartError::Open { .. } | StartError::Tls { .. } => "",
    };
    say!("error: {}{remedy}", chain(error));
    match error {
        StartError::Open { .. } | StartError::Tls { .. } => exit::BAD_POLICY,
        StartError::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            exit::NO_PERMISSION
        }
        StartError::Bind { .. } => exit::UNAVAILABLE,
    }
}

/// The diary of the process goes to stderr; `RUST_LOG` says how much of it, else `usual`.
pub(super) fn write_diary(env: &Environment, usual: &str) -> Arc<dyn Diary> {
    let filter = filter_of(env.get("RUST_LOG").unwrap_or(usual));
    let is_coloured = io::stderr().is_terminal() && wants_colour(env);
    let diary = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(is_coloured)
        .with_target(false)
        // It would complain on the very stream that is broken, and die of it.
        .log_internal_errors(false)
        .with_env_filter(filter.or_else(|_| filter_of(usual)).unwrap_or_default())
        .with_filter_reloading();
    let handle = diary.reload_handle();
    // It is set already where a test runs the command inside its own process.
    let _ = diary.try_init();
    Arc::new(OnStderr(handle))
}

/// HTTP/2 would quote the fields of requests, passwords among them.
const HTTP_2: &str = "h2=warn";

/// What of the diary is written.
fn filter_of(words: &str) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::try_new(words)?;
    Ok(filter.add_directive(HTTP_2.parse()?))
}

/// The diary, whose filter can be changed.
struct OnStderr<S>(reload::Handle<EnvFilter, S>);

impl<S> fmt::Debug for OnStderr<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnStderr")
    }
}

impl<S: 'static> Diary for OnStderr<S> {
    fn filter(&self) -> String {
        let told = self.0.with_current(EnvFilter::to_string);
        let told = told.unwrap_or_default();
        // It is ours.
        let words = told.split(',').filter(|word| *word != HTTP_2);
        words.collect::<Vec<_>>().join(",")
    }

    fn set_filter(&self, filter: &str) -> Result<(), String> {
        let filter = filter_of(filter).map_err(|error| error.to_string())?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}

async fn serve(
    args: &ServeArgs,
    env: &Environment,
    passed: &mut ListenFd,
    diary: Arc<dyn Diary>,
    is_coloured: bool,
) -> Result<(), Refusal> {
    let started = Timestamp::now();
    let source = config::locate(args.policy.policy.as_deref(), env);
    let mut watched = match &source {
        Source::File(path) => vec![path.clone()],
        Source::Embedded | Source::Text { .. } => Vec::new(),
    };
    // Watched before it is read, so that no change is missed; nobody hears of it where it cannot be read either.
    let mut watch = watch_over(&watched);
    let mut loaded = load(&source, args, env).map_err(Refusal::Policy)?;
    // What it includes is known only now.
    for _ in 0..MOST_ROUNDS {
        if loaded.files == watched {
            break;
        }
        watched.clone_from(&loaded.files);
        watch = watch_over(&watched);
        loaded = load(&source, args, env).map_err(Refusal::Policy)?;
    }
    let Loaded {
        policy,
        server,
        warnings,
        ..
    } = loaded;
    for warning in &warnings {
        say!("{}", warning.render(is_coloured));
    }
    let settings = settings(args, &server, env);
    let settings = settings.map_err(|error| Refusal::Otlp(error.to_string()))?;
    let bound = Bound::bind(&settings, workers::count(), passed).map_err(Refusal::Start)?;
    let log = telling::log(args, &server, &settings, env)?;
    let admin = admin::bind(&settings.admin, env).map_err(Refusal::Admin)?;
    let board = telling::board(&log, &settings, admin.is_some(), env)?;
    let observer: Arc<dyn Observe> = match &board {
        Some(board) => board.clone(),
        None => log.clone(),
    };
    let mut signals = Signals::new()
        .map_err(|error| Refusal::Other(anyhow::Error::new(error).context("listen for signals")))?;
    let app = App::start(
        bound,
        &settings,
        admin.as_ref().and_then(|admin| admin.address().socket()),
        policy,
        &Resolver::from_system(),
        observer,
        None,
    )
    .map_err(|error| Refusal::Other(anyhow::Error::new(error).context("start the workers")))?;
    let bound = settings.listen.iter().zip(app.places());
    let listeners: Vec<_> = bound
        .map(|(listener, place)| Listener {
            address: place.clone(),
            ..listener.clone()
        })
        .collect();
    greet(&app, &source, &listeners);
    let (keeper_of, mut wishes) = mpsc::channel(1);
    let standing = Arc::<Standing>::default();
    let admin = match (admin, &board) {
        (Some(bound), Some(board)) => {
            greet_admin(bound.address());
            let station = Station {
                proxy: app.proxy().clone(),
                board: board.clone(),
                listeners,
                source: source.clone(),
                standing: standing.clone(),
                environment: env.clone(),
                keeper: keeper_of,
                diary,
                condition: app.condition().clone(),
                started,
                metrics_hosts: settings.admin.metrics_hosts,
                lint: Linted::default(),
                lab: None,
            };
            let served = bound.serve(station, Router::new());
            let served = served.map_err(|error| {
                Refusal::Other(anyhow::Error::new(error).context("start the admin listener"))
            })?;
            Some(served)
        }
        // The channel stays open, so that nobody wakes for its end.
        (Some(_) | None, _) => None,
    };
    warn_of_faults(&app.policy());
    let keeper = Keeper {
        app: &app,
        source: &source,
        args,
        env,
        settings: &settings,
        board: board.as_deref(),
        is_coloured,
        standing: &standing,
        log: &log,
    };
    systemd::ready(&format!("policy {source}"));
    keeper.keep(&mut signals, &mut wishes, watched, watch).await;
    systemd::stopping();
    app.finish(signals.end()).await;
    drop(admin);
    match &board {
        Some(board) => board.close(LAST_RECORDS),
        None => log.close(LAST_RECORDS),
    }
    Ok(())
}

fn load(source: &Source, args: &ServeArgs, env: &Environment) -> Result<Loaded, Report> {
    config::load(source, env, &options(args))
}

fn options(args: &ServeArgs) -> Options {
    let mut options = Options::serve(Timestamp::now());
    options.listen.clone_from(&args.listen);
    options
}

/// The listeners: those of flags and environment, else the policy's, else the usual one.
pub(super) fn listeners(told: &[ListenAt], server: &ServerSettings) -> Vec<Listener> {
    let told = told.iter().enumerate();
    let mut listen: Vec<_> = told
        .map(|(at, address)| Listener::plain(at, address.clone()))
        .collect();
    if listen.is_empty() {
        listen.extend(server.listen.iter().flatten().cloned());
    }
    if listen.is_empty() {
        listen.push(Listener::default());
    }
    listen
}

/// Flags and environment first, then the policy's `server` key, then the defaults.
fn settings(
    args: &ServeArgs,
    server: &ServerSettings,
    env: &Environment,
) -> Result<Settings, OtlpError> {
    let allow_from = match (args.allow_from.as_slice(), &server.allow_from) {
        ([], Some(written)) => written.clone(),
        (flags, _) => flags.to_vec(),
    };
    let name = args
        .name
        .clone()
        .or_else(|| server.name.as_deref().map(str::to_owned));
    let given = args.limits.iter().copied();
    let limits = given.fold(Limits::default(), Limits::or).or(server.limits);
    Ok(Settings {
        listen: listeners(&args.listen, server),
        allow_from,
        name: name.unwrap_or_else(|| "routecause".to_owned()),
        drain_timeout: args.drain_timeout.or(server.drain_timeout).unwrap_or(DRAIN),
        users: server.users.clone(),
        limits: Limits {
            connections: Some(limits.connections.unwrap_or_else(default_connections)),
            ..limits
        },
        log_format: server.log_format,
        log_file: args.log_file.clone().or_else(|| server.log_file.clone()),
        admin: admin_settings(args, server, env),
        otlp: telling::otlp(args, server, env)?,
    })
}

fn admin_settings(args: &ServeArgs, server: &ServerSettings, env: &Environment) -> AdminSettings {
    let address = args.admin.clone().or_else(|| server.admin.clone());
    let of_flag = args.admin_token_file.clone().map(TokenSource::File);
    let of_env = || {
        let is_set = env.get(ADMIN_TOKEN).is_some_and(|token| !token.is_empty());
        is_set.then(|| TokenSource::Env(ADMIN_TOKEN.to_owned()))
    };
    let token = of_flag.or_else(of_env);
    AdminSettings {
        is_default: address.is_none(),
        address: address.unwrap_or(AdminAddress::Tcp(DEFAULT_ADMIN)),
        token: token.or_else(|| server.admin_token.clone()),
        history: args.history.clone().or_else(|| server.history.clone()),
        history_retention: args.history_retention.or(server.history_retention),
        metrics_hosts: args.metrics_hosts.or(server.metrics_hosts).unwrap_or(0),
    }
}

/// What happens to requests that no rule speaks of.
fn default_way(policy: &Policy) -> String {
    let noted = if policy.report {
        "; mode report: refusals are only noted"
    } else {
        ""
    };
    let Action::Route(routes) = &policy.default.action else {
        let way = if policy.report {
            "direct"
        } else {
            "requests are refused"
        };
        return format!("{way}{noted}");
    };
    let way = |id: RouteId| match &policy.without_faults(id).spec {
        RouteSpec::Direct => "direct".to_owned(),
        RouteSpec::Chain(_)
        | RouteSpec::Group(_)
        | RouteSpec::Pac(_)
        | RouteSpec::Faulty { .. } => {
            format!("by {}", policy.route(id).name)
        }
        RouteSpec::Upstream(upstream) => format!("through {}", upstream.proxy),
    };
    match (way(routes.http), way(routes.connect)) {
        (http, connect) if http == connect => format!("{http}{noted}"),
        (http, connect) => format!("{http} for plain requests, {connect} for tunnels{noted}"),
    }
}

/// Says that what goes wrong may be meant to.
fn warn_of_faults(policy: &Policy) {
    let faults = policy.faults();
    if !faults.is_empty() {
        tracing::warn!(faults = faults.join(", "), "this policy injects faults");
    }
}

/// Says where it listens, under which policy, and what to paste into a shell.
fn greet(app: &App, source: &Source, listeners: &[Listener]) {
    let addresses: Vec<String> = app.places().iter().map(ListenAt::to_string).collect();
    say!(
        "routecause {} listens on {}, policy {source}: by default {}",
        env!("CARGO_PKG_VERSION"),
        addresses.join(" and "),
        default_way(&app.policy())
    );
    if let Some(url) = Listener::url(listeners) {
        say!("export http_proxy={url} https_proxy={url} HTTP_PROXY={url} HTTPS_PROXY={url}");
    }
}

/// Says where a person looks.
fn greet_admin(address: &AdminAddress) {
    match address {
        AdminAddress::Tcp(address) => say!("dashboard, API and metrics: http://{address}/"),
        AdminAddress::Unix(path) => say!("API and metrics: unix:{}", path.display()),
        AdminAddress::Off => {}
    }
}

/// The signals that the process takes.
pub(super) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reopen: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits until the process is told to end.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The same, or until its terminal is gone.
    pub(super) async fn end_or_hangup(&mut self) {
        tokio::select! {
            _ = self.hangup.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
