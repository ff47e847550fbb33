//! The admin listener: bound before the proxy serves, served by a thread of its own.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net as unix;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::guard::Ends;
use super::{Gate, Station, router};
use crate::app::AdminSettings;
use crate::config::{AdminAddress, Environment};
use crate::net::local;
use crate::target::canonical_ip;

/// Connections that may be open: a dashboard takes a few, and nobody can take the process's descriptors here.
const CONNECTIONS: usize = 64;

/// A socket in the file system is for its owner alone.
const FOR_OWNER: u32 = 0o600;

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(10);

/// After an error of `accept` that concerns more than one connection.
const REST: Duration = Duration::from_millis(100);

/// How long a connection may take for which the spare descriptor was given up: others wait for it.
const TURN: Duration = Duration::from_secs(1);

/// Why there is no admin listener.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be listened on.
    #[error("admin listener {address}")]
    Listen {
        /// The address.
        address: AdminAddress,
        /// The kernel's error.
        source: io::Error,
    },
    /// Other machines can reach it, and nothing is asked of them.
    #[error(
        "admin listener {0} can be reached from other machines: set a token, by --admin-token-file, \
         ROUTECAUSE_ADMIN_TOKEN or server.admin_token in the policy"
    )]
    Open(SocketAddr),
    /// The token cannot be had.
    #[error("the admin token: {0}")]
    Token(String),
}

/// A listener that is not served yet.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    gate: Arc<Gate>,
    address: AdminAddress,
}

#[derive(Debug)]
enum Listener {
    Tcp(std::net::TcpListener),
    Unix(unix::UnixListener, Socket),
}

/// The file of a Unix socket, removed when this is dropped.
#[derive(Debug)]
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds the admin listener; nothing where there is to be none, or where the default address is taken: a second proxy on a
/// machine runs without.
pub fn bind(settings: &AdminSettings, env: &Environment) -> Result<Option<Bound>, BindError> {
    let token = settings.token.as_ref().map(|source| source.read(env));
    let token = token.transpose();
    let token = token.map_err(|error| BindError::Token(error.to_string()))?;
    let told = |source: io::Error| BindError::Listen {
        address: settings.address.clone(),
        source,
    };
    let (listener, at, address) = match &settings.address {
        AdminAddress::Off => return Ok(None),
        AdminAddress::Tcp(address) => {
            if !canonical_ip(address.ip()).is_loopback() && token.is_none() {
                return Err(BindError::Open(*address));
            }
            let listener = match std::net::TcpListener::bind(address) {
                Ok(listener) => listener,
                Err(error) if settings.is_default && error.kind() == io::ErrorKind::AddrInUse => {
                    tracing::warn!(
                        "{address} is taken, perhaps by another routecause: no metrics, API and dashboard here; \
                         choose another address with --admin"
                    );
                    return Ok(None);
                }
                Err(error) => return Err(told(error)),
            };
            listener.set_nonblocking(true).map_err(told)?;
            let at = listener.local_addr().map_err(told)?;
            (Listener::Tcp(listener), Some(at), AdminAddress::Tcp(at))
        }
        AdminAddress::Unix(path) => {
            let listener = local::listen(path, FOR_OWNER).map_err(told)?;
            let listener = Listener::Unix(listener, Socket(path.clone()));
            (listener, None, settings.address.clone())
        }
    };
    Ok(Some(Bound {
        listener,
        gate: Arc::new(Gate::new(at, token.as_ref())),
        address,
    }))
}

/// The admin listener, served. Dropped, it ends.
#[derive(Debug)]
pub struct Admin {
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin thread panicked");
        }
    }
}

impl Bound {
    /// Where it is, with the port that the kernel chose.
    pub fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Serves it, in a thread of its own; what stands in `first` comes before what we have there.
    pub fn serve(self, station: Station, first: Router) -> io::Result<Admin> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let router = router(Arc::new(station), self.gate, first);
        let inside = runtime.enter();
        let (listener, socket) = match self.listener {
            Listener::Tcp(listener) => (Listening::Tcp(listener.try_into()?), None),
            Listener::Unix(listener, socket) => {
                (Listening::Unix(listener.try_into()?), Some(socket))
            }
        };
        drop(inside);
        let end = CancellationToken::new();
        let of_thread = end.clone();
        let run = move || {
            let served = accept(listener, router);
            runtime.block_on(of_thread.run_until_cancelled(served));
            // Nobody waits for a reader of the stream.
            runtime.shutdown_background();
            drop(socket);
        };
        let thread = std::thread::Builder::new().name("admin".to_owned());
        Ok(Admin {
            end,
            thread: Some(thread.spawn(run)?),
        })
    }
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Listening {
    /// The next connection, and its ends where it has addresses.
    async fn accept(&self) -> io::Result<(Box<dyn Io>, Option<Ends>)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?;
                (Box::new(stream), Some(Ends { peer, local }))
            }
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), None),
        })
    }
}

async fn accept(listener: Listening, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    let mut spare = None;
    loop {
        // Where none is left, whoever asks whether we live is still to hear it.
        spare = spare.or_else(|| File::open("/dev/null").ok());
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let mut accepted = listener.accept().await;
        let is_last = accepted.as_ref().is_err_and(is_full) && spare.take().is_some();
        if is_last {
            // The kernel looks for a descriptor before it looks for a connection: there may be none.
            match timeout(Duration::ZERO, listener.accept()).await {
                Ok(again) => accepted = again,
                Err(_) => continue,
            }
        }
        let (stream, ends) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accept an admin connection");
                sleep(REST).await;
                continue;
            }
        };
        let served = serve(stream, ends, router.clone(), !is_last);
        if is_last {
            let _ = timeout(TURN, served).await;
            continue;
        }
        tasks.spawn(async move {
            served.await;
            drop(place);
        });
    }
}

/// Whether no descriptor is left, of the process or of the machine.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

async fn serve(stream: Box<dyn Io>, ends: Option<Ends>, router: Router, keep_alive: bool) {
    let router = match ends {
        Some(ends) => router.layer(Extension(ends)),
        None => router,
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(keep_alive)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended");
    }
}
