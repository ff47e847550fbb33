//! What is to be looked at for a URL: the target, the hosts that are held against it, and the policy's word on it.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use anyhow::Context as _;

use super::super::dns;
use super::super::explain::decision;
use super::DoctorArgs;
use crate::app::explain::{AskError, Asked};
use crate::config::env::{Environment, without_credentials};
use crate::doctor::Plan;
use crate::doctor::facts::Spoken;
use crate::policy::Policy;
use crate::policy::explain::{Does, Outcome};
use crate::target::Target;

/// Hosts that answer to anybody, where nobody names others.
const CONTROLS: [&str; 2] = ["example.com", "www.iana.org"];

/// A rule, or the default.
pub(super) struct Rule {
    pub(super) name: String,
    /// `FILE:LINE`; a guard stands nowhere.
    pub(super) source: Option<String>,
}

impl From<Outcome> for Rule {
    fn from(outcome: Outcome) -> Self {
        Self {
            name: outcome.rule,
            source: outcome.source,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

/// What is to be looked at, and the rule that decides about it.
pub(super) fn plan(
    url: &str,
    args: &DoctorArgs,
    policy: &Arc<Policy>,
    env: &Environment,
) -> anyhow::Result<(Plan, Option<Rule>)> {
    let asked = asked(url)?;
    let spoken = match asked.target.port {
        _ if asked.is_plain() => Spoken::Http,
        _ if url.contains("://") => Spoken::Tls,
        port => Spoken::at(port),
    };
    let controls = controls(args, env, spoken)?;
    let portal = portal(args)?;
    // They may hold a token, and are asked of nobody who is not to be.
    let path = if args.full_url {
        path_of(url)
    } else {
        "/".to_owned()
    };
    let (chosen, rule) = match decision(policy, &asked) {
        Ok(outcome) if outcome.action == Does::Block => (None, Some(outcome.into())),
        Ok(outcome) => {
            // Of a chain the first hop is looked at.
            let first = outcome.hops.first().map(|hop| hop.hop.clone());
            let chosen = first.or_else(|| outcome.route.clone());
            (chosen, Some(outcome.into()))
        }
        Err(error) => {
            say!("warning: {error:#}");
            (Some("direct".to_owned()), None)
        }
    };
    let plan = Plan {
        spoken,
        wants_more: path != path_of(url),
        path,
        is_located: args.locate || args.thorough,
        target: asked.target,
        chosen,
        controls,
        portal,
        servers: dns::system_servers(),
        bounds: None,
    };
    Ok((plan, rule))
}

/// The same of a place below which something is wanted.
pub(super) fn plan_below(
    url: &str,
    args: &DoctorArgs,
    policy: &Arc<Policy>,
    env: &Environment,
) -> anyhow::Result<(Plan, Option<Rule>)> {
    let (plan, rule) = plan(url, args, policy, env)?;
    let plan = Plan {
        wants_more: true,
        ..plan
    };
    Ok((plan, rule))
}

/// Says which hosts are asked that nobody named, before they are.
///
/// # Errors
/// Where what is to be asked beside the target cannot be read, so that nobody is asked at all.
pub(super) fn announce_controls(args: &DoctorArgs, env: &Environment) -> anyhow::Result<()> {
    controls(args, env, Spoken::default())?;
    portal(args)?;
    if has_usual_controls(args, env) {
        say!(
            "note: {} are asked as well, to tell blocking from an outage; --control HOST names others, --no-control none",
            CONTROLS.join(" and ")
        );
    }
    Ok(())
}

/// What a URL asks for. A user name and a password are the server's, and nothing of theirs is looked at.
pub(super) fn asked(url: &str) -> Result<Asked, AskError> {
    Asked::parse(&without_user(url))
}

/// A URL as if nobody had a name.
pub(super) fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    format!("{scheme}://{host}{path}")
}

/// What a URL says behind its host, as a request may hold it: the path, and the query where it has one.
pub(super) fn path_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let whole = rest.split('#').next().unwrap_or(rest);
    let behind = whole.find(['/', '?']).and_then(|at| whole.get(at..));
    let behind = behind.unwrap_or("/");
    let mut written = String::new();
    if !behind.starts_with('/') {
        written.push('/');
    }
    // A blank, or a line end, would make something else of the request.
    for byte in behind.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%?".contains(&byte) {
            written.push(byte.into());
        } else {
            let _ = write!(written, "%{byte:02X}");
        }
    }
    written
}

/// Whether hosts are asked that nobody named. In a job of CI nobody is there to be told.
fn has_usual_controls(args: &DoctorArgs, env: &Environment) -> bool {
    args.control.is_empty() && !args.no_control && env.get("CI").is_none()
}

/// A page that answers 204 where nobody is between.
fn portal(args: &DoctorArgs) -> anyhow::Result<Option<(Target, String)>> {
    match args.portal.as_deref().map(Asked::parse) {
        Some(Ok(portal)) if portal.is_plain() => {
            let path = portal.path.unwrap_or_else(|| "/".to_owned());
            Ok(Some((portal.target, path)))
        }
        Some(_) => anyhow::bail!("--portal: write a URL of plain http"),
        None => Ok(None),
    }
}

/// The hosts that are held against the target, and are asked as it is.
fn controls(args: &DoctorArgs, env: &Environment, spoken: Spoken) -> anyhow::Result<Vec<Target>> {
    let port = if spoken == Spoken::Http { 80 } else { 443 };
    let named: Vec<String> = if has_usual_controls(args, env) {
        CONTROLS.map(str::to_owned).to_vec()
    } else if args.no_control {
        Vec::new()
    } else {
        args.control.clone()
    };
    let parse = |text: &String| {
        let found = Target::from_authority(text)
            .or_else(|_| Target::from_authority(&format!("{text}:{port}")));
        found.with_context(|| format!("--control {}", without_credentials(text)))
    };
    named.iter().map(parse).collect()
}
