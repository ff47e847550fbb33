//! `routecause connect HOST PORT`: a tunnel through a proxy on standard input and output, as ssh's `ProxyCommand` wants it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use clap::builder::{StringValueParser, TypedValueParser as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::net::UnixStream;

use super::doctor::of_text;
use super::{ListenArg, PolicyArg, exit, serve};
use crate::cause::Kind;
use crate::client::Client;
use crate::config::env::{Environment, proxy_target, proxy_without_credentials};
use crate::config::{self, ListenAt, Listener, Options, ServerSettings};
use crate::exchange::Trail;
use crate::failure::{Failure, chain, classify};
use crate::net::resolve::Resolver;
use crate::net::upstream::socks::SocksError;
use crate::net::upstream::{self, UpstreamError};
use crate::policy::RouteSpec;
use crate::route::assemble::assemble;
use crate::route::{Conn, Dial, Plan, Purpose, health};
use crate::secret::Secret;
use crate::target::Target;

#[derive(Debug, Args)]
pub(in crate::cli) struct ConnectArgs {
    #[command(flatten)]
    pub(in crate::cli) policy: PolicyArg,
    #[command(flatten)]
    pub(in crate::cli) listen: ListenArg,
    /// The proxy: `http://host:port`, `https://`, `socks5://` (names are resolved here), `socks5h://` (and there), or
    /// `unix:PATH`. A user name and a password stand in front of the host, as in <http://me:secret@host:port>; in the variable
    /// no other user sees them. [default: where `ROUTECAUSE_LISTEN`, or the policy, has it listen]
    #[arg(long, value_name = "URL", env = "ROUTECAUSE_PROXY", hide_env_values = true, value_parser = StringValueParser::new().map(Secret::new))]
    pub(in crate::cli) proxy: Option<Secret>,
    /// The host.
    pub(in crate::cli) host: String,
    /// The port.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) port: u16,
}

/// The proxy may try several hops before it answers.
const PATIENCE: Duration = Duration::from_mins(2);

/// Everything through one proxy. A socket stands for the listener, so that no proxy is taken for one of this program's own.
const BY_PROXY: &str = "\
version: 1
server: {listen: [{address: 'unix:/nowhere'}]}
defaults: {timeouts: {proxy_reply: 2m}}
guards: {loopback: allow, link_local: allow}
upstreams: {proxy: {url: env}}
rules: []
default: {via: proxy}
";

pub(super) fn run(args: &ConnectArgs, env: &Environment) -> u8 {
    let spelled = if args.host.contains(':') && !args.host.starts_with('[') {
        format!("[{}]:{}", args.host, args.port)
    } else {
        format!("{}:{}", args.host, args.port)
    };
    let target = match Target::from_authority(&spelled) {
        Ok(target) => target,
        Err(error) => {
            say!("error: {error}");
            return exit::USAGE;
        }
    };
    let proxy = match args.proxy.clone().map_or_else(|| usual(args, env), Ok) {
        Ok(proxy) => proxy,
        Err(code) => return code,
    };
    let shown = proxy_without_credentials(proxy.reveal());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("error: {error}");
            return exit::UNAVAILABLE;
        }
    };
    let code = runtime.block_on(async {
        match open(proxy.reveal(), &target).await {
            Ok(tunnel) => match carry(tunnel.stream, &tunnel.early).await {
                Ok(()) => 0,
                Err(error) => {
                    say!("error: {error:#}");
                    exit::EGRESS_FAILED
                }
            },
            Err(Refusal { code, why }) => {
                let is_usual = args.proxy.is_none() && code == exit::UNAVAILABLE;
                let hint = if is_usual {
                    " (is `routecause serve` running?)"
                } else {
                    ""
                };
                say!("error: {target} through {shown}: {why}{hint}");
                code
            }
        }
    });
    // Whoever writes to standard input may not have ended yet.
    runtime.shutdown_background();
    code
}

/// Where the proxy of this machine listens.
fn usual(args: &ConnectArgs, env: &Environment) -> Result<Secret, u8> {
    let source = config::locate(args.policy.policy.as_deref(), env);
    let mut options = Options::check(jiff::Timestamp::now());
    options.listen.clone_from(&args.listen.listen);
    let server = match config::load(&source, env, &options) {
        Ok(loaded) => loaded.server,
        Err(report) if args.policy.policy.is_some() && options.listen.is_empty() => {
            say!("{}", report.render(false));
            return Err(exit::BAD_POLICY);
        }
        // One that nobody named may be for its proxy alone to read.
        Err(_) => ServerSettings::default(),
    };
    let listeners = serve::listeners(&options.listen, &server);
    let place = Listener::url(&listeners).or_else(|| {
        let is_plain = |it: &&Listener| it.tls.is_none() && matches!(it.address, ListenAt::Unix(_));
        let listener = listeners.iter().find(is_plain);
        listener.map(|listener| listener.address.to_string())
    });
    place.map(Secret::new).ok_or_else(|| {
        say!("error: no listener of {source} has an address to name: --proxy http://host:port");
        exit::USAGE
    })
}

/// A tunnel, and what came behind the answer.
struct Tunnel {
    stream: Box<dyn Io>,
    early: Bytes,
    /// What a session of HTTP/2 lives in.
    _way: Option<Arc<dyn Dial>>,
}

trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Why there is no tunnel, and how the program ends.
struct Refusal {
    code: u8,
    why: String,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let cause = classify(&failure);
        let mut why = format!("{}: {}", cause.id(), chain(&failure));
        if cause.kind == Kind::UpstreamAuthRequired {
            why.push_str("; ROUTECAUSE_PROXY=http://USER:PASSWORD@HOST:PORT says who asks");
        }
        let is_there = if let Failure::Upstream { error, .. } = &failure {
            is_answer(error)
        } else {
            !matches!(failure, Failure::Reach { .. })
        };
        let is_denied = cause.kind == Kind::UpstreamDenied || matches!(failure, Failure::Denied(_));
        let code = match (is_there, is_denied) {
            (false, _) => exit::UNAVAILABLE,
            (true, true) => exit::DENIED,
            (true, false) => exit::EGRESS_FAILED,
        };
        Self { code, why }
    }
}

/// Whether a proxy said something about the target, or about who asks.
fn is_answer(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Refused(_) | UpstreamError::Unauthorized { .. } => true,
        UpstreamError::Socks(error) => !matches!(error, SocksError::Malformed { .. }),
        UpstreamError::Stream { .. }
        | UpstreamError::GoAway { .. }
        | UpstreamError::Full { .. }
        | UpstreamError::NoReply { .. }
        | UpstreamError::Closed
        | UpstreamError::Reset { .. }
        | UpstreamError::MalformedReply { .. }
        | UpstreamError::HeadTooLarge
        | UpstreamError::Io { .. } => false,
    }
}

/// Asks the proxy for a tunnel.
async fn open(proxy: &str, target: &Target) -> Result<Tunnel, Refusal> {
    match proxy.strip_prefix("unix:") {
        Some(path) => open_at(Path::new(path), target).await,
        None => open_by(proxy, target).await,
    }
}

/// By HTTP, at a socket in the file system.
async fn open_at(path: &Path, target: &Target) -> Result<Tunnel, Refusal> {
    let unreached = |error: io::Error| Refusal {
        code: exit::UNAVAILABLE,
        why: format!("connect: {error}"),
    };
    let mut stream = UnixStream::connect(path).await.map_err(unreached)?;
    let opened = upstream::open(&mut stream, target, None, None, PATIENCE).await;
    let opened = opened.map_err(|error| Failure::Upstream {
        upstream: "proxy".into(),
        passes_443: false,
        error,
    })?;
    Ok(Tunnel {
        stream: Box::new(stream),
        early: opened.early,
        _way: None,
    })
}

/// As through an upstream of a policy.
async fn open_by(url: &str, target: &Target) -> Result<Tunnel, Refusal> {
    let unusable = |why: String| Refusal {
        code: exit::USAGE,
        why,
    };
    proxy_target(url).map_err(unusable)?;
    let env = [("HTTPS_PROXY", url)].into_iter().collect();
    let policy = of_text(BY_PROXY, &env).map_err(|error| unusable(error.to_string()))?;
    let health = health::of_policy(&policy, &[]);
    let (_, built) = assemble(&policy, &Resolver::from_system(), &health, &[], None);
    let mut ways = policy.routes.iter().zip(built.routes);
    let way = ways.find(|(route, _)| matches!(route.spec, RouteSpec::Upstream(_)));
    let (_, way) = way.ok_or_else(|| unusable("it is no proxy".to_owned()))?;
    let client = Client::ourselves("connect");
    let plan = Plan::new(&policy, client, target.clone(), Purpose::Tunnel);
    let Conn { wire, early, .. } = way.dial(&plan, &Trail::default()).await?;
    Ok(Tunnel {
        stream: Box::new(wire),
        early,
        _way: Some(way),
    })
}

/// Carries bytes between the tunnel and standard input and output, until the far side ends.
async fn carry(stream: impl Io, early: &[u8]) -> anyhow::Result<()> {
    let (mut from, mut to) = split(stream);
    let up = async {
        let _ = copy(&mut tokio::io::stdin(), &mut to).await;
        let _ = to.shutdown().await;
        std::future::pending().await
    };
    tokio::select! {
        carried = down(&mut from, early) => carried,
        never = up => never,
    }
}

async fn down(from: &mut (impl AsyncRead + Unpin), early: &[u8]) -> anyhow::Result<()> {
    let mut out = tokio::io::stdout();
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = early;
    loop {
        let written = async {
            out.write_all(bytes).await?;
            out.flush().await
        };
        match written.await {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("write to standard output")?,
        }
        let read = from
            .read(&mut buffer)
            .await
            .context("read from the tunnel")?;
        if read == 0 {
            return Ok(());
        }
        bytes = buffer.get(..read).unwrap_or_default();
    }
}
