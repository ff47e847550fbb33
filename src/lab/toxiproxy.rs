//! The HTTP API of Toxiproxy, so that its clients in many languages open listeners of the lab and put toxics on them.
//!
//! What such a listener takes goes by a CONNECT of the lab's own proxy: its names are known there, its policy and its faults hold,
//! and each connection leaves a record, which names the listener where a toxic had an effect.
//!
//! Source: the README of Shopify/toxiproxy, "HTTP API"; version 2.9.

mod link;
mod toxic;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::world::World;
use crate::admin::{self, Gate};
use crate::target::Target;
use link::{Toxics, carry};
use toxic::{Sent, Toxic};

/// Whose API it is, and whose it is.
const VERSION: &str = concat!("2.9.0+routecause.", env!("CARGO_PKG_VERSION"));

/// The proxy answers within this, longer than it may wait itself.
const ANSWER: Duration = Duration::from_mins(1);

/// A head of an answer to CONNECT is shorter.
const LONGEST_HEAD: usize = 64 * 1024;

/// What all of it works with.
#[derive(Debug)]
struct Bench {
    proxies: Mutex<BTreeMap<String, Proxy>>,
    /// The lab's own proxy.
    by: SocketAddr,
    world: Arc<World>,
    tasks: TaskTracker,
}

/// A listener and where it leads.
#[derive(Debug)]
struct Proxy {
    listen: SocketAddr,
    upstream: String,
    toxics: watch::Sender<Toxics>,
    /// It at work, where it is enabled.
    work: Option<Work>,
}

#[derive(Debug)]
struct Work {
    end: CancellationToken,
    task: JoinHandle<()>,
}

/// What a client is told of a proxy.
#[derive(Serialize)]
struct Shown<'p> {
    name: &'p str,
    listen: String,
    upstream: &'p str,
    enabled: bool,
    toxics: Vec<Arc<Toxic>>,
}

/// What a client sends of one.
#[derive(Clone, Default, Deserialize)]
struct SentProxy {
    name: Option<String>,
    listen: Option<String>,
    upstream: Option<String>,
    enabled: Option<bool>,
}

/// Why a request is refused.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": self.1, "status": self.0.as_u16()});
        answer(self.0, &body)
    }
}

pub(super) type Answer = Result<Response, Refusal>;

pub(super) fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).unwrap_or_default();
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

fn no_proxy() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "proxy not found".to_owned())
}

fn no_toxic() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "toxic not found".to_owned())
}

fn bad(why: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why.into())
}

/// Reads a body, whatever type it is said to be of.
pub(super) fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| bad(format!("bad request body: {error}")))
}

/// Serves the API until its runtime ends.
pub(super) async fn serve(
    listener: TcpListener,
    by: SocketAddr,
    world: Arc<World>,
    tasks: TaskTracker,
) {
    let gate = Arc::new(Gate::common(listener.local_addr().ok()));
    let bench = Arc::new(Bench {
        proxies: Mutex::default(),
        by,
        world,
        tasks,
    });
    let api = Router::new()
        .route("/version", get(version))
        .route("/reset", post(reset))
        .route("/populate", post(populate))
        .route("/proxies", get(list).post(create))
        .route(
            "/proxies/{proxy}",
            get(show).post(update).patch(update).delete(delete),
        )
        .route("/proxies/{proxy}/toxics", get(toxics).post(add_toxic))
        .route(
            "/proxies/{proxy}/toxics/{toxic}",
            get(show_toxic)
                .post(change_toxic)
                .patch(change_toxic)
                .delete(remove_toxic),
        )
        .layer(from_fn_with_state(gate, admin::check))
        .with_state(bench);
    if let Err(error) = axum::serve(listener, api).await {
        tracing::error!(%error, "the API of Toxiproxy");
    }
}

async fn version() -> Response {
    answer(StatusCode::OK, &serde_json::json!({"version": VERSION}))
}

async fn list(State(bench): State<Arc<Bench>>) -> Response {
    let proxies = bench.proxies.lock().await;
    let shown: BTreeMap<&str, Shown<'_>> = proxies
        .iter()
        .map(|(name, proxy)| (&**name, proxy.show(name)))
        .collect();
    answer(StatusCode::OK, &shown)
}

async fn create(State(bench): State<Arc<Bench>>, body: Bytes) -> Answer {
    let sent: SentProxy = read(&body)?;
    let mut proxies = bench.proxies.lock().await;
    let (name, proxy) = bench.make(sent, &proxies).await?;
    let answer = answer(StatusCode::CREATED, &proxy.show(&name));
    proxies.insert(name, proxy);
    Ok(answer)
}

/// Makes several proxies. One that is there already stays as it is, unless it leads elsewhere.
async fn populate(State(bench): State<Arc<Bench>>, body: Bytes) -> Answer {
    let all: Vec<SentProxy> = read(&body)?;
    let mut proxies = bench.proxies.lock().await;
    let mut names = Vec::new();
    for sent in all {
        let name = sent.name.clone().unwrap_or_default();
        if let Some(known) = proxies.get(&name) {
            let listen = known.listen.to_string();
            if sent.upstream.as_ref() == Some(&known.upstream)
                && sent.listen.as_deref().is_none_or(|wanted| wanted == listen)
            {
                names.push(name);
                continue;
            }
            if let Some(mut known) = proxies.remove(&name) {
                known.disable().await;
            }
        }
        let (name, proxy) = bench.make(sent, &proxies).await?;
        proxies.insert(name.clone(), proxy);
        names.push(name);
    }
    let shown = names
        .iter()
        .filter_map(|name| Some(proxies.get(name)?.show(name)));
    let shown = serde_json::json!({"proxies": shown.collect::<Vec<_>>()});
    Ok(answer(StatusCode::CREATED, &shown))
}

/// Enables every proxy and removes every toxic.
async fn reset(State(bench): State<Arc<Bench>>) -> Answer {
    let mut proxies = bench.proxies.lock().await;
    for (name, proxy) in proxies.iter_mut() {
        proxy.toxics.send_replace(Toxics::default());
        bench.enable(name, proxy).await?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn show(State(bench): State<Arc<Bench>>, Path(name): Path<String>) -> Answer {
    let proxies = bench.proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(no_proxy)?;
    Ok(answer(StatusCode::OK, &proxy.show(&name)))
}

async fn update(State(bench): State<Arc<Bench>>, Path(name): Path<String>, body: Bytes) -> Answer {
    let sent: SentProxy = read(&body)?;
    let mut proxies = bench.proxies.lock().await;
    let proxy = proxies.get_mut(&name).ok_or_else(no_proxy)?;
    let listen = match &sent.listen {
        Some(listen) => address(listen)?,
        None => proxy.listen,
    };
    let upstream = match sent.upstream {
        Some(upstream) => target(&upstream)?,
        None => proxy.upstream.clone(),
    };
    let wanted = sent.enabled.unwrap_or(proxy.work.is_some());
    if !wanted || listen != proxy.listen || upstream != proxy.upstream {
        proxy.disable().await;
        (proxy.listen, proxy.upstream) = (listen, upstream);
    }
    if wanted {
        bench.enable(&name, proxy).await?;
    }
    Ok(answer(StatusCode::OK, &proxy.show(&name)))
}

async fn delete(State(bench): State<Arc<Bench>>, Path(name): Path<String>) -> Answer {
    let mut proxies = bench.proxies.lock().await;
    proxies.remove(&name).ok_or_else(no_proxy)?.disable().await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn toxics(State(bench): State<Arc<Bench>>, Path(name): Path<String>) -> Answer {
    let proxies = bench.proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(no_proxy)?;
    Ok(answer(StatusCode::OK, &proxy.show(&name).toxics))
}

async fn add_toxic(
    State(bench): State<Arc<Bench>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    let toxic = read::<Sent>(&body)?.begin().map_err(bad)?;
    let proxies = bench.proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(no_proxy)?;
    let mut toxics = proxy.toxics();
    if toxics.iter().any(|known| known.name == toxic.name) {
        let why = "toxic already exists".to_owned();
        return Err(Refusal(StatusCode::CONFLICT, why));
    }
    let answer = answer(StatusCode::OK, &toxic);
    toxics.push(Arc::new(toxic));
    proxy.toxics.send_replace(Arc::new(toxics));
    Ok(answer)
}

async fn show_toxic(
    State(bench): State<Arc<Bench>>,
    Path((name, toxic)): Path<(String, String)>,
) -> Answer {
    let proxies = bench.proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(no_proxy)?;
    let toxics = proxy.toxics();
    let toxic = toxics.iter().find(|known| known.name == toxic);
    Ok(answer(StatusCode::OK, toxic.ok_or_else(no_toxic)?))
}

async fn change_toxic(
    State(bench): State<Arc<Bench>>,
    Path((name, toxic)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let sent: Sent = read(&body)?;
    let proxies = bench.proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(no_proxy)?;
    let mut toxics = proxy.toxics();
    let known = toxics.iter_mut().find(|known| known.name == toxic);
    let known = known.ok_or_else(no_toxic)?;
    *known = Arc::new(sent.change(known).map_err(bad)?);
    let answer = answer(StatusCode::OK, known);
    proxy.toxics.send_replace(Arc::new(toxics));
    Ok(answer)
}

async fn remove_toxic(
    State(bench): State<Arc<Bench>>,
    Path((name, toxic)): Path<(String, String)>,
) -> Answer {
    let proxies = bench.proxies.lock().await;
    let proxy = proxies.get(&name).ok_or_else(no_proxy)?;
    let mut toxics = proxy.toxics();
    let at = toxics.iter().position(|known| known.name == toxic);
    toxics.remove(at.ok_or_else(no_toxic)?);
    proxy.toxics.send_replace(Arc::new(toxics));
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// An address to listen on: this machine's alone, since nobody says who may use it.
fn address(text: &str) -> Result<SocketAddr, Refusal> {
    let spelled = match text.strip_prefix("localhost:") {
        Some(port) => format!("{}:{port}", Ipv4Addr::LOCALHOST),
        None => text.to_owned(),
    };
    let address: Option<SocketAddr> = spelled.parse().ok();
    address
        .filter(|address| address.ip().is_loopback())
        .ok_or_else(|| {
            bad(format!(
                "listen is no address of loopback: {text:?}, write 127.0.0.1:0"
            ))
        })
}

/// `host:port`, as a CONNECT names it.
fn target(text: &str) -> Result<String, Refusal> {
    let target = Target::from_authority(text);
    let target = target.map_err(|error| bad(format!("upstream is no target: {error}")))?;
    Ok(target.to_string())
}

impl Proxy {
    fn toxics(&self) -> Vec<Arc<Toxic>> {
        self.toxics.borrow().to_vec()
    }

    fn show<'p>(&'p self, name: &'p str) -> Shown<'p> {
        Shown {
            name,
            listen: self.listen.to_string(),
            upstream: &self.upstream,
            enabled: self.work.is_some(),
            toxics: self.toxics(),
        }
    }

    /// Ends its listener and its connections.
    async fn disable(&mut self) {
        if let Some(work) = self.work.take() {
            work.end.cancel();
            if let Err(error) = work.task.await {
                tracing::error!(%error, "a listener of Toxiproxy's API");
            }
        }
    }
}

impl Bench {
    async fn make(
        &self,
        sent: SentProxy,
        known: &BTreeMap<String, Proxy>,
    ) -> Result<(String, Proxy), Refusal> {
        let missing = |field: &str| bad(format!("missing required field: {field}"));
        let named = sent.name.filter(|name| !name.is_empty());
        let name = named.ok_or_else(|| missing("name"))?;
        let upstream = sent.upstream.filter(|upstream| !upstream.is_empty());
        let upstream = target(&upstream.ok_or_else(|| missing("upstream"))?)?;
        if known.contains_key(&name) {
            let why = "proxy already exists".to_owned();
            return Err(Refusal(StatusCode::CONFLICT, why));
        }
        let mut proxy = Proxy {
            listen: address(sent.listen.as_deref().unwrap_or("127.0.0.1:0"))?,
            upstream,
            toxics: watch::Sender::default(),
            work: None,
        };
        if sent.enabled.unwrap_or(true) {
            self.enable(&name, &mut proxy).await?;
        }
        Ok((name, proxy))
    }

    /// Puts a proxy to work, unless it is. A port that was chosen once is kept.
    async fn enable(&self, name: &str, proxy: &mut Proxy) -> Result<(), Refusal> {
        if proxy.work.is_some() {
            return Ok(());
        }
        let listener = TcpListener::bind(proxy.listen).await;
        let failed = |error: io::Error| {
            let why = format!("listen on {}: {error}", proxy.listen);
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, why)
        };
        let listener = listener.map_err(failed)?;
        proxy.listen = listener.local_addr().map_err(failed)?;
        let end = CancellationToken::new();
        let served = Served {
            name: format!("toxiproxy {name}").into(),
            upstream: proxy.upstream.clone(),
            toxics: proxy.toxics.subscribe(),
            by: self.by,
            world: self.world.clone(),
        };
        let run = accept(listener, Arc::new(served), end.clone());
        let task = self.tasks.spawn(run);
        proxy.work = Some(Work { end, task });
        Ok(())
    }
}

/// What each connection of a proxy needs.
struct Served {
    /// What its records are marked with.
    name: Arc<str>,
    upstream: String,
    toxics: watch::Receiver<Toxics>,
    by: SocketAddr,
    world: Arc<World>,
}

/// Takes connections until the end, and ends them with it.
async fn accept(listener: TcpListener, served: Arc<Served>, end: CancellationToken) {
    let open = TaskTracker::new();
    while let Some(accepted) = end.run_until_cancelled(listener.accept()).await {
        let client = match accepted {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "accept for Toxiproxy's API");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (served, end) = (served.clone(), end.clone());
        open.spawn(async move {
            if let Some(Err(error)) = end.run_until_cancelled(served.lead(client)).await {
                tracing::debug!(%error, "a connection of Toxiproxy's API");
            }
        });
    }
    drop(listener);
    open.close();
    open.wait().await;
}

impl Served {
    /// Leads a connection to the upstream, by the lab's proxy.
    async fn lead(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?;
        let leg = self.world.leg(socket.local_addr()?, self.name.clone());
        let mut server = socket.connect(self.by).await?;
        server.set_nodelay(true)?;
        let asked = timeout(ANSWER, connect(&mut server, &self.upstream)).await?;
        asked?;
        carry(client, server, self.toxics.clone(), &|| leg.strike()).await
    }
}

/// Asks for a tunnel.
async fn connect(server: &mut TcpStream, upstream: &str) -> io::Result<()> {
    let ask = format!("CONNECT {upstream} HTTP/1.1\r\nhost: {upstream}\r\n\r\n");
    server.write_all(ask.as_bytes()).await?;
    let mut head = Vec::new();
    // What lies behind the head is the tunnel's.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == LONGEST_HEAD {
            return Err(io::Error::other("the head of the answer has no end"));
        }
        head.push(server.read_u8().await?);
    }
    if head.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(io::Error::other(String::from_utf8_lossy(line).into_owned()))
}
