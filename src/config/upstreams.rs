//! Upstreams and their secrets: from URLs and references to routes.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use super::Secrets;
use super::check::Context;
use super::decode::{At, Named, clip, nearest};
use super::diag::{Findings, Place};
use super::env::{ProxyUrl, ProxyUrlError, ProxyVariables, basic, parse_proxy_url, proxies};
use super::raw::{self, SecretRef};
use super::yaml::{Node, Value};
use crate::policy::{ByScheme, Route, RouteId, RouteSpec};
use crate::secret::Secret;

/// The ways out of a policy by the names that `via` knows.
#[derive(Debug)]
pub(super) struct Routes {
    /// By [`RouteId`].
    pub(super) list: Vec<Route>,
    names: Vec<(Arc<str>, ByScheme)>,
}

/// The route of both kinds of request.
pub(super) const DIRECT: ByScheme = ByScheme {
    http: RouteId::DIRECT,
    connect: RouteId::DIRECT,
};

impl Routes {
    /// Compiles the `upstreams` section.
    pub(super) fn compile(
        raw: Option<&At<Named<raw::Upstream>>>,
        context: &Context<'_>,
        findings: &mut Findings<'_>,
    ) -> Self {
        let mut this = Self {
            list: vec![Route {
                name: "direct".into(),
                spec: RouteSpec::Direct,
            }],
            names: vec![("direct".into(), DIRECT)],
        };
        for (name, upstream) in raw.iter().flat_map(|raw| raw.iter()) {
            let is_word = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
            if matches!(name.as_str(), "direct" | "off") {
                findings.error(
                    name.place,
                    format!(
                        "`{}` is no name for an upstream: it is a route of its own",
                        name.value
                    ),
                );
            } else if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
                let message = "an upstream's name is made of a-z, 0-9, _ and -";
                findings.error(name.place, message);
            }
            // An upstream with a mistake keeps its name, so that `via` does not report it again.
            let routes = this
                .add(name, upstream, context, findings)
                .unwrap_or(DIRECT);
            this.names.push((name.value.as_str().into(), routes));
        }
        this
    }

    /// What `via` names.
    pub(super) fn find(&self, via: &At<String>, findings: &mut Findings<'_>) -> Option<ByScheme> {
        let name = via.as_str();
        let found = self.names.iter().find(|(known, _)| **known == *name);
        if let Some((_, routes)) = found {
            return Some(*routes);
        }
        if name.contains(['|', ',']) || name == "off" {
            let message = "chains are not in this version; `via` names one upstream";
            findings.error(via.place, message);
            return None;
        }
        let names = || self.names.iter().map(|(name, _)| &**name);
        let diagnostic =
            findings.error(via.place, format!("there is no upstream `{}`", clip(name)));
        match nearest(name, names()) {
            Some(near) => diagnostic.with_help(format!("did you mean `{near}`?")),
            None => diagnostic.with_help(format!(
                "`via` may name {}",
                names().collect::<Vec<_>>().join(", ")
            )),
        };
        None
    }

    fn add(
        &mut self,
        name: &At<String>,
        raw: &raw::Upstream,
        context: &Context<'_>,
        findings: &mut Findings<'_>,
    ) -> Option<ByScheme> {
        let url = raw.url.as_ref()?;
        if url.as_str() == "env" {
            if let Some(auth) = &raw.auth {
                let message = "an upstream from the environment takes its credentials from there, not from `auth`";
                findings.error(auth.place, message);
            }
            return Some(self.add_environment(name, url.place, context, findings));
        }
        let credentials = raw
            .auth
            .as_ref()
            .and_then(|auth| credentials(auth, context, findings));
        if !url.contains("://") {
            let message = format!(
                "`{}` is no URL",
                clip(url.rsplit('@').next().unwrap_or_default())
            );
            let help = "write `http://host:port`, or `env` for the proxy variables";
            findings.error(url.place, message).with_help(help);
            return None;
        }
        match parse_proxy_url(url) {
            Ok(ProxyUrl {
                userinfo: Some(_), ..
            })
            | Err(ProxyUrlError::Userinfo) => {
                let message = "credentials do not stand in a policy";
                let help =
                    "write `auth: {username: {env: NAME}, password: {env: NAME}}` beside `url`";
                findings.error(url.place, message).with_help(help);
                None
            }
            Ok(proxy) => {
                let id = self.push(name, proxy, credentials);
                Some(ByScheme {
                    http: id,
                    connect: id,
                })
            }
            Err(error) => {
                findings.error(url.place, error.to_string());
                None
            }
        }
    }

    fn add_environment(
        &mut self,
        name: &At<String>,
        place: Place,
        context: &Context<'_>,
        findings: &mut Findings<'_>,
    ) -> ByScheme {
        let ProxyVariables {
            http,
            connect,
            errors,
            warnings,
        } = proxies(context.environment, context.own);
        for error in errors {
            findings.error(place, error);
        }
        for warning in warnings {
            findings.warn(place, warning);
        }
        let mut add = |proxy: Option<ProxyUrl>| match proxy {
            None => RouteId::DIRECT,
            Some(proxy) => {
                let credentials = proxy.userinfo.as_ref().map(super::env::Userinfo::to_basic);
                self.push(name, proxy, credentials)
            }
        };
        ByScheme {
            http: add(http),
            connect: add(connect),
        }
    }

    /// One proxy is one route, so that both kinds of request share its connections.
    fn push(&mut self, name: &str, proxy: ProxyUrl, credentials: Option<Secret>) -> RouteId {
        let same = self.list.iter().position(|route| {
            *route.name == *name
                && matches!(&route.spec, RouteSpec::Upstream { proxy: at, credentials: with }
                    if *at == proxy.target && *with == credentials)
        });
        RouteId(same.unwrap_or_else(|| {
            self.list.push(Route {
                name: name.into(),
                spec: RouteSpec::Upstream {
                    proxy: proxy.target,
                    credentials,
                },
            });
            self.list.len() - 1
        }))
    }
}

fn credentials(
    auth: &At<raw::Auth>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Secret> {
    // Both are read, so that both mistakes are told.
    let username = auth
        .username
        .as_ref()
        .and_then(|at| reveal(at, context, findings));
    let password = auth
        .password
        .as_ref()
        .and_then(|at| reveal(at, context, findings));
    let (username, password) = (username?, password?);
    if username.reveal().contains(':') {
        let place = auth.username.as_ref().map_or(auth.place, |at| at.place);
        let message = "the user name holds a colon, which Basic credentials cannot carry";
        findings.error(place, message);
        return None;
    }
    Some(basic(username.reveal(), password.reveal()))
}

/// Fetches a secret, or notes why it cannot be had.
fn reveal(
    at: &At<SecretRef>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Secret> {
    let needed = context.secrets?;
    let (message, help) = match &at.value {
        SecretRef::Env(name) => match context.environment.get(name) {
            Some(value) if !value.contains(char::is_control) => return Some(Secret::new(value)),
            Some(_) => (
                format!("the variable {} holds a control character", clip(name)),
                None,
            ),
            None => (format!("the variable {} is not set", clip(name)), None),
        },
        SecretRef::File(path) => {
            let path = context.folder.join(&path.value);
            match read_secret(&path) {
                Ok(secret) => return Some(secret),
                Err((problem, help)) => (format!("the file {} {problem}", path.display()), help),
            }
        }
    };
    let diagnostic = match needed {
        Secrets::Needed => findings.error(at.place, message),
        Secrets::Wanted => findings.warn(at.place, message),
    };
    let refuses =
        (needed == Secrets::Wanted).then(|| "`serve` refuses to start without it".to_owned());
    diagnostic.help = help.or(refuses);
    None
}

/// Reads a file that holds a secret on its one line.
fn read_secret(path: &std::path::Path) -> Result<Secret, (String, Option<String>)> {
    let io = |error: std::io::Error| (format!("cannot be read: {error}"), None);
    // Asked before opening: a pipe would hold us up.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(("is no regular file".to_owned(), None));
    }
    let file = std::fs::File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let help = format!("chmod 600 {}", path.display());
        return Err((format!("is open to others (mode {mode:03o})"), Some(help)));
    }
    let mut text = String::new();
    // No secret is longer than the header that carries it.
    file.take(16 * 1024).read_to_string(&mut text).map_err(io)?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(("is empty".to_owned(), None));
    }
    if secret.contains(char::is_control) {
        return Err((
            "holds more than one line, or a control character".to_owned(),
            None,
        ));
    }
    Ok(Secret::new(secret))
}

/// Keeps what looks like a secret written into the file by mistake out of every message: all
/// scalars below `auth` and below keys such as `password`, but for the names of variables and files.
pub(super) fn conceal_secrets(node: &Node, findings: &mut Findings<'_>) {
    conceal(node, false, findings);
}

fn conceal(node: &Node, is_secret: bool, findings: &mut Findings<'_>) {
    match &node.value {
        Value::Scalar { text, .. } => {
            if is_secret || text.contains(':') && text.contains('@') {
                findings.conceal(node.place);
            }
        }
        Value::List(items) => items
            .iter()
            .for_each(|item| conceal(item, is_secret, findings)),
        Value::Map(entries) => {
            for (key, value) in entries {
                let name = key.text.to_lowercase();
                let is_reference = is_secret
                    && matches!(name.as_str(), "env" | "file")
                    && matches!(value.value, Value::Scalar { .. });
                let names_secret = ["auth", "pass", "secret", "token", "credential"]
                    .iter()
                    .any(|word| name.contains(word));
                let is_secret = !is_reference && (is_secret || names_secret);
                conceal(value, is_secret, findings);
            }
        }
    }
}
