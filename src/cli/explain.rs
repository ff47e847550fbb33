//! `routecause explain`

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, Method, Uri};
use jiff::Timestamp;

use super::{ExplainArgs, exit, print};
use crate::client::Client;
use crate::config::env::Environment;
use crate::config::{self, Loaded, Options};
use crate::exchange::Trail;
use crate::net::resolve::Resolver;
use crate::policy::explain::{Explanation, NoProxyVerdict, explain};
use crate::policy::no_proxy::{Dialect, NoProxy};
use crate::policy::{Lookup, Policy, Query, Scheme};
use crate::route::Names;
use crate::target::Target;

/// What is asked for.
struct Asked {
    scheme: Scheme,
    method: Method,
    target: Target,
    path: Option<String>,
}

pub(super) fn run(args: &ExplainArgs, env: &Environment) -> u8 {
    // The parser sees to it that there is one.
    let target = args.target.as_deref().unwrap_or_default();
    let asked = match Asked::parse(target) {
        Ok(asked) => asked,
        Err(error) => {
            say!("error: {target}: {error}");
            return exit::USAGE;
        }
    };
    let source = config::locate(args.policy.policy.as_deref(), env);
    let policy = match config::load(&source, env, &Options::check(Timestamp::now())) {
        Ok(Loaded { policy, .. }) => Arc::new(policy),
        Err(report) => {
            say!("{}", report.render(false));
            return exit::BAD_POLICY;
        }
    };
    let mut explanation = match walk(&policy, &asked, args.client) {
        Ok(explanation) => explanation,
        Err(error) => {
            say!("error: {error:#}");
            return exit::FAILED;
        }
    };
    let list = args
        .no_proxy
        .as_ref()
        .map(|list| NoProxy::parse(list, Dialect::default()));
    explanation.no_proxy = list
        .as_ref()
        .map(|list| NoProxyVerdict::of(list, &asked.target));
    for line in list.iter().flat_map(NoProxy::lint) {
        say!("warning: --no-proxy: {line}");
    }
    if args.json {
        match serde_json::to_string_pretty(&explanation) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => say!("error: {error}"),
        }
    } else {
        print(&explanation.to_string());
    }
    0
}

impl Asked {
    /// `http://…` is a plain request; `https://…` and `host:port` are a CONNECT.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let target = Target::from_authority(text)?;
            return Ok(Self {
                scheme: Scheme::Connect,
                method: Method::CONNECT,
                target,
                path: None,
            });
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {
                let target = with_port(authority, 80)?;
                let uri: Option<Uri> = rest
                    .get(authority.len()..)
                    .and_then(|path| path.parse().ok());
                let path = uri.and_then(|uri| Some(uri.path_and_query()?.as_str().to_owned()));
                let path = Some(path.unwrap_or_else(|| "/".to_owned()));
                Ok(Self {
                    scheme: Scheme::Http,
                    method: Method::GET,
                    target,
                    path,
                })
            }
            "https" => {
                let target = with_port(authority, 443)?;
                Ok(Self {
                    scheme: Scheme::Connect,
                    method: Method::CONNECT,
                    target,
                    path: None,
                })
            }
            other => anyhow::bail!(
                "scheme {other:?} is not asked of a proxy; write http://…, https://… or host:port"
            ),
        }
    }
}

fn with_port(authority: &str, default: u16) -> anyhow::Result<Target> {
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let spelled = if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:{default}")
    };
    Ok(Target::from_authority(&spelled)?)
}

/// Walks as the proxy would, looking the name up where a rule asks for it.
fn walk(policy: &Arc<Policy>, asked: &Asked, client: IpAddr) -> anyhow::Result<Explanation> {
    let client = Client {
        peer: SocketAddr::new(client, 0),
        local: policy
            .guards
            .own
            .first()
            .copied()
            .unwrap_or(config::DEFAULT_LISTEN),
        listener: "proxy".into(),
    };
    let is_plain = asked.scheme == Scheme::Http;
    let headers = HeaderMap::new();
    let mut query = Query {
        client: &client,
        scheme: asked.scheme,
        method: &asked.method,
        target: &asked.target,
        path: asked.path.as_deref(),
        headers: is_plain.then_some(&headers),
        addresses: None,
        now: Timestamp::now(),
    };
    if let Ok(explanation) = explain(policy, &query) {
        return Ok(explanation);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(async {
        let names = Names::new(policy.clone(), Arc::new(Resolver::from_system()));
        names
            .lookup(&asked.target.host, policy.timeouts.dns, &Trail::default())
            .await
    });
    query.addresses = Some(match &found {
        Ok(addresses) => Lookup::Found(addresses),
        Err(error) => {
            say!("warning: {}", crate::failure::chain(error));
            Lookup::Failed
        }
    });
    explain(policy, &query).map_err(|needs| anyhow::anyhow!("the walk asks for {needs:?} twice"))
}
