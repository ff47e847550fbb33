//! A world to test in: a proxy with an authority of its own, servers for `*.lab.test`, and faults on demand.
//!
//! Nothing of it needs a network, a name server or a privilege, and labs run beside each other. Clients reach its hosts by
//! the proxy alone, since most of them proxy no address of loopback: the names are known inside.

mod authority;
mod control;
mod deaf;
pub mod incident;
mod origin;
mod records;
mod setup;
mod toxiproxy;
mod world;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{self, Diagnostic, Report};
use crate::policy::fault::Fault;
use crate::record::Record;
use crate::route::fault::Tally;
use crate::target::TargetError;

use authority::CERTIFICATE;
use setup::Begun;
use world::World;

pub use authority::AuthorityError;
pub use setup::Setup;

/// All that a client may trust in a lab: its authority and those of the system, for variables that replace a list.
const BUNDLE: &str = "bundle.pem";

/// What must come is waited for this long.
const SOON: Duration = Duration::from_secs(10);

/// A lab, at work until it is dropped.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use routecause::lab::Lab;
///
/// let lab = Lab::start().await?;
/// let resets = lab.fault("api.lab.test: reset at client_hello first 2")?;
///
/// // The client under test, told of the proxy and of the authority.
/// let client = reqwest::Client::builder()
///     .proxy(reqwest::Proxy::all(lab.proxy_url())?)
///     .tls_certs_only([reqwest::Certificate::from_pem(lab.ca_pem().as_bytes())?])
///     .build()?;
/// let fetch = || async { client.get("https://api.lab.test/").send().await?.text().await };
///
/// assert!(fetch().await.is_err());
/// assert!(fetch().await.is_err());
/// assert_eq!(fetch().await?, "GET / of api.lab.test by https\n");
///
/// assert_eq!(resets.hits(), 2);
/// let records = lab.records_when(2).await;
/// assert_eq!(records[0].error_type.as_deref(), Some("tls.reset_after_client_hello"));
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug)]
pub struct Lab {
    begun: Begun,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The policy has mistakes.
    #[error("{0}")]
    Policy(Report),
    /// The authority cannot be had.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Its folder cannot be written.
    #[error("write to {path}")]
    Folder {
        /// The folder or the file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The proxy does not start.
    #[error(transparent)]
    Proxy(#[from] crate::app::StartError),
    /// The servers do not start.
    #[error("start the lab")]
    Io(#[from] io::Error),
}

/// A fault that is no fault: every mistake in it, with its place.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// Every mistake in it.
    #[error("{0}")]
    Report(#[from] Report),
    /// It names no target.
    #[error("{0}: {1}")]
    Target(String, TargetError),
}

impl FaultError {
    /// The mistakes, as a person reads them.
    pub fn render(&self, is_coloured: bool) -> String {
        match self {
            Self::Report(report) => report.render(is_coloured),
            Self::Target(..) => format!("error: {self}\n"),
        }
    }
}

impl Lab {
    /// A lab as most tests need it.
    pub async fn start() -> Result<Self, StartError> {
        Setup::default().start().await
    }

    /// What a lab is to be made of.
    pub fn setup() -> Setup {
        Setup::default()
    }

    /// Where the proxy listens.
    pub fn proxy_address(&self) -> SocketAddr {
        self.begun.proxy
    }

    /// Its URL, as clients are told of it.
    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.begun.proxy)
    }

    /// Where its faults are listed, added and ended, and its records read, over HTTP.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.begun.control)
    }

    /// Where the API of Toxiproxy is served, where that was asked for.
    pub fn toxiproxy_url(&self) -> Option<String> {
        Some(format!("http://{}", self.begun.toxiproxy?))
    }

    /// The certificate that clients are to trust.
    pub fn ca_pem(&self) -> &str {
        self.begun.authority.pem()
    }

    /// The same, in a file.
    pub fn ca_file(&self) -> PathBuf {
        self.begun.folder.path().join(CERTIFICATE)
    }

    /// It and the authorities that the system trusts, in a file: for variables that name all that is trusted.
    pub fn bundle_file(&self) -> PathBuf {
        self.begun.folder.path().join(BUNDLE)
    }

    /// What the policy says that is likely not meant.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.begun.warnings
    }

    /// The variables by which clients learn of the proxy and of the authority.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let (url, bundle) = (self.proxy_url(), self.bundle_file().display().to_string());
        let proxy = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
        let trust = [
            "SSL_CERT_FILE",
            "CURL_CA_BUNDLE",
            "REQUESTS_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "PIP_CERT",
            "CARGO_HTTP_CAINFO",
        ];
        let proxy = proxy.into_iter().map(|name| (name, url.clone()));
        let trust = trust.into_iter().map(|name| (name, bundle.clone()));
        let none = ["no_proxy", "NO_PROXY"]
            .into_iter()
            .map(|name| (name, String::new()));
        let node = [
            ("NODE_EXTRA_CA_CERTS", self.ca_file().display().to_string()),
            ("NODE_USE_ENV_PROXY", "1".to_owned()),
        ];
        proxy.chain(none).chain(trust).chain(node).collect()
    }

    /// Puts a fault to work, in the form of [`config::fault`], until it is removed or the lab ends. It strikes the hosts that
    /// it names on every hop that reaches them, behind what the policy's own faults do.
    ///
    /// # Errors
    /// Every mistake in the text, with its place.
    pub fn fault(&self, text: &str) -> Result<Injected, FaultError> {
        let struck = config::fault(text)?;
        Ok(self.injected(self.begun.world.add(struck)))
    }

    /// The faults at work but for those of the policy, in the order of their coming.
    pub fn faults(&self) -> Vec<Injected> {
        let at_work = self.begun.world.list().into_iter();
        at_work.map(|one| self.injected(one)).collect()
    }

    fn injected(&self, (number, tally): (u64, Arc<Tally>)) -> Injected {
        Injected {
            number,
            tally,
            world: self.begun.world.clone(),
        }
    }

    /// Ends all faults but those of the policy.
    pub fn clear_faults(&self) {
        self.begun.world.clear();
    }

    /// The records of the requests that have ended, in that order: the last 10,000 of them.
    pub fn records(&self) -> Vec<Record> {
        self.begun.kept.records()
    }

    /// The same once there are `count`: a record comes behind the last byte that the client sees. After ten seconds what there
    /// is.
    pub async fn records_when(&self, count: usize) -> Vec<Record> {
        self.begun.kept.wait(count, SOON).await
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the lab's thread died");
        }
    }
}

/// A fault at work in a lab. It stays so where this is dropped.
#[derive(Debug)]
pub struct Injected {
    number: u64,
    tally: Arc<Tally>,
    world: Arc<World>,
}

impl Injected {
    /// What it does.
    pub fn fault(&self) -> &Fault {
        self.tally.fault()
    }

    /// How many connections came its way.
    pub fn met(&self) -> u64 {
        self.tally.met()
    }

    /// How many of them it struck.
    pub fn hits(&self) -> u64 {
        self.tally.hits()
    }

    /// Ends it. What it strikes already goes on to its end.
    pub fn remove(self) {
        self.world.remove(self.number);
    }
}
