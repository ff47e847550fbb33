//! What a lab is made of, and how it begins.

use std::io;
use std::iter;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use listenfd::ListenFd;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::authority::{Authority, CERTIFICATE, NAME, Shown};
use super::incident::Incident;
use super::origin::Origin;
use super::records::Records;
use super::world::{ADDRESS, Guest, World};
use super::{BUNDLE, FaultError, Lab, StartError, control, deaf, toxiproxy};
use crate::admin::Admin;
use crate::app::bound::Bound;
use crate::app::{App, Settings, default_connections};
use crate::config::{
    self, Diagnostic, Environment, ListenAt, Listener, Loaded, Options, Source, Struck,
};
use crate::net::resolve::Resolver;
use crate::observe::Observe;
use crate::observe::board::Board;
use crate::policy::Policy;
use crate::policy::fault::{LAB, WrongCert};
use crate::policy::matcher::Hosts;
use crate::target::{Host, Target};
use crate::tls::trust::Roots;

/// The policy that a lab runs where it is given no other.
const POLICY: &str = include_str!("../../policies/lab.yaml");

/// What a lab is made of, where it is to be another than the usual one.
#[derive(Debug, Default)]
pub struct Setup {
    folder: Option<PathBuf>,
    policy: Option<Source>,
    environment: Environment,
    listen: Option<SocketAddr>,
    toxiproxy: Option<SocketAddr>,
    observer: Option<Arc<dyn Observe>>,
    faults: Vec<Struck>,
    incident: Option<Incident>,
}

/// Where the lab's files are.
#[derive(Debug)]
pub(super) enum Folder {
    /// Somebody's own.
    Given(PathBuf),
    /// Gone with the lab.
    Own(TempDir),
}

impl Folder {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Own(folder) => folder.path(),
        }
    }
}

impl Setup {
    /// Keeps its files in a folder, which is made where it is not there. An authority whose `ca.pem` and `ca.key` stand in it
    /// is used; else `ca.pem` is written there, but not over one of somebody else. A folder that is gone with the lab, where none is named.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Runs this policy, with its faults. Of its `server` the name and the limits are used.
    #[must_use]
    pub fn policy(mut self, policy: Source) -> Self {
        self.policy = Some(policy);
        self
    }

    /// The variables that the policy may speak of; none where not given.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Listens there; on a free port of 127.0.0.1 where not given.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Serves the HTTP API of Toxiproxy there, for its clients.
    #[must_use]
    pub fn toxiproxy(mut self, address: SocketAddr) -> Self {
        self.toxiproxy = Some(address);
        self
    }

    /// Passes the records on.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observe>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Begins with a fault, in the form of [`config::fault`].
    pub fn fault(mut self, text: &str) -> Result<Self, FaultError> {
        self.faults.push(config::fault(text)?);
        Ok(self)
    }

    /// Brings an incident about: whoever asks for its target meets it.
    ///
    /// # Errors
    /// [`FaultError`] where a fault of it is none.
    pub fn incident(mut self, incident: Incident) -> Result<Self, FaultError> {
        let target = Target::from_authority(&incident.target);
        let host = target.map(|target| target.host.text());
        let host = host.map_err(|error| FaultError::Target(incident.target.clone(), error))?;
        let hosts = Hosts::new(&[&*host], &[]).unwrap_or_default();
        for fault in &incident.faults {
            // What strikes hosts of the lab strikes its guest as well.
            let struck = config::fault(&format!("guest.{LAB}: {fault}"))?;
            self.faults.push(Struck {
                hosts: hosts.clone(),
                ..struck
            });
        }
        self.incident = Some(incident);
        Ok(self)
    }

    /// Starts the lab.
    ///
    /// # Errors
    /// As [`StartError`] says; nothing is left behind then.
    pub async fn start(self) -> Result<Lab, StartError> {
        let (sender, started) = oneshot::channel();
        let end = CancellationToken::new();
        let until = end.clone();
        // It has a runtime of its own, so that it serves a test whose own one has a single thread, and blocks it.
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(run(self, until, sender)),
                Err(error) => drop(sender.send(Err(error.into()))),
            }
        };
        let thread = std::thread::Builder::new()
            .name("lab".to_owned())
            .spawn(run)?;
        let begun = started
            .await
            .map_err(|_| io::Error::other("the lab's thread ended"))??;
        Ok(Lab {
            begun,
            end,
            thread: Some(thread),
        })
    }
}

/// What a lab that has begun is known by.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) proxy: SocketAddr,
    pub(super) authority: Arc<Authority>,
    pub(super) folder: Folder,
    pub(super) world: Arc<World>,
    pub(super) kept: Arc<Records>,
    pub(super) warnings: Vec<Diagnostic>,
    pub(super) control: SocketAddr,
    pub(super) toxiproxy: Option<SocketAddr>,
}

/// Runs a lab until its end.
async fn run(
    setup: Setup,
    end: CancellationToken,
    started: oneshot::Sender<Result<Begun, StartError>>,
) {
    let tasks = TaskTracker::new();
    let (app, admin) = match begin(setup, &tasks).await {
        Ok((app, admin, begun)) => {
            // Nobody waits for it any more, where its test was cancelled: the end has come then.
            if started.send(Ok(begun)).is_err() {
                end.cancel();
            }
            (app, admin)
        }
        Err(error) => return drop(started.send(Err(error))),
    };
    end.cancelled().await;
    app.finish(std::future::ready(())).await;
    drop(admin);
}

async fn begin(setup: Setup, tasks: &TaskTracker) -> Result<(App, Admin, Begun), StartError> {
    let folder = match setup.folder {
        Some(path) => {
            std::fs::create_dir_all(&path).map_err(|source| unwritable(&path, source))?;
            Folder::Given(path)
        }
        None => Folder::Own(
            tempfile::Builder::new()
                .prefix("routecause-lab-")
                .tempdir()?,
        ),
    };
    let authority = if let Some(known) = Authority::of_folder(folder.path())? {
        known
    } else {
        let authority = Authority::draw(NAME)?;
        write(folder.path(), CERTIFICATE, authority.pem())?;
        authority
    };
    let of_system = rustls_native_certs::load_native_certs().certs;
    let more: String = of_system.iter().map(|der| pem(der)).collect();
    write(folder.path(), BUNDLE, &(authority.pem().to_owned() + &more))?;
    let roots = Roots::of(authority.root().into_iter().chain(of_system));
    let authority = Arc::new(authority);

    let source = setup.policy.unwrap_or(Source::Text {
        name: "lab.yaml (embedded)".to_owned(),
        text: POLICY.to_owned(),
    });
    let listen = setup
        .listen
        .unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
    let options = Options::stand_in(Timestamp::now(), vec![ListenAt::Tcp(listen)]);
    let loaded = config::load(&source, &setup.environment, &options);
    let Loaded {
        mut policy,
        server,
        warnings,
        ..
    } = loaded.map_err(StartError::Policy)?;
    // A test that is over waits for no tunnel: `drain_timeout` is none.
    let settings = Settings::of_stand_ins(server, default_connections());
    policy.pin(format!("*.{LAB}").into(), vec![ADDRESS]);

    let bytes = setup
        .incident
        .as_ref()
        .map_or(0, |incident| incident.answer_bytes);
    let servers = serve_hosts(&authority, bytes, tasks).await?;
    let guest = match &setup.incident {
        Some(incident) => Some(receive(incident, &authority, &mut policy, tasks)?),
        None => None,
    };
    let world = Arc::new(World::new(servers, guest));
    for struck in setup.faults {
        world.add(struck);
    }
    let board = Arc::new(Board::new(Vec::new(), None));
    let shown: Arc<dyn Observe> = board.clone();
    let then = iter::once(shown).chain(setup.observer);
    let kept = Arc::new(Records::new(then.collect()));
    let (bound, control) = control::bind(&setup.environment)?;
    let app = start_proxy(&settings, control, policy, roots, &world, &kept)?;
    let proxy = app.addresses().first().copied().unwrap_or(listen);
    let listeners = settings.listen.into_iter().zip(app.places());
    let scene = control::Scene {
        listeners: listeners
            .map(|(listener, place)| Listener {
                address: place.clone(),
                ..listener
            })
            .collect(),
        world: world.clone(),
        board,
        source,
        environment: setup.environment,
    };
    let admin = control::serve(bound, &app, scene)?;
    let mut toxiproxy = None;
    if let Some(address) = setup.toxiproxy {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| crate::app::StartError::Bind {
            address: ListenAt::Tcp(address),
            source,
        })?;
        toxiproxy = Some(listener.local_addr()?);
        let api = toxiproxy::serve(listener, proxy, world.clone(), tasks.clone());
        tasks.spawn(api);
    }
    let begun = Begun {
        proxy,
        authority,
        folder,
        world,
        kept,
        warnings,
        control,
        toxiproxy,
    };
    Ok((app, admin, begun))
}

/// Starts a server for each kind of certificate.
async fn serve_hosts(
    authority: &Arc<Authority>,
    answer_bytes: u64,
    tasks: &TaskTracker,
) -> Result<Vec<(Option<WrongCert>, SocketAddr)>, StartError> {
    let kinds = WrongCert::ALL.iter().copied().map(Some);
    let mut servers = Vec::new();
    for kind in kinds.chain([None]) {
        let listener = TcpListener::bind((ADDRESS, 0)).await?;
        servers.push((kind, listener.local_addr()?));
        let shown = Shown::new(authority.clone(), kind);
        let origin = Origin::new(listener, shown, answer_bytes, tasks.clone());
        tasks.spawn(origin.map_err(io::Error::other)?.run());
    }
    Ok(servers)
}

/// Serves the target of an incident.
fn receive(
    incident: &Incident,
    authority: &Arc<Authority>,
    policy: &mut Policy,
    tasks: &TaskTracker,
) -> Result<Guest, StartError> {
    let target = Target::from_authority(&incident.target).map_err(io::Error::other)?;
    if let Host::Name(name) = &target.host {
        policy.pin(name.clone(), vec![ADDRESS]);
    }
    let mut server = None;
    if !incident.acknowledges {
        let listener = deaf::listen(ADDRESS)?;
        server = Some(listener.local_addr()?);
        let shown = Shown::new(authority.clone(), None);
        let origin = Origin::new(listener, shown, 0, tasks.clone());
        tasks.spawn(origin.map_err(io::Error::other)?.run());
    }
    Ok(Guest {
        host: target.host,
        server,
    })
}

fn start_proxy(
    settings: &Settings,
    control: SocketAddr,
    policy: Policy,
    roots: Roots,
    world: &Arc<World>,
    kept: &Arc<Records>,
) -> Result<App, StartError> {
    // Requests of one worker come one after another: runs repeat themselves.
    let bound = Bound::bind(settings, NonZeroUsize::MIN, &mut ListenFd::empty())?;
    let app = App::start(
        bound,
        settings,
        Some(control),
        policy,
        &Resolver::from_system().trusting(roots),
        kept.clone(),
        Some(world.clone()),
    )?;
    Ok(app)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), StartError> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(|source| unwritable(&path, source))
}

fn unwritable(path: &Path, source: io::Error) -> StartError {
    StartError::Folder {
        path: path.display().to_string(),
        source,
    }
}

/// A certificate as text (RFC 7468, section 5.1).
fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}
