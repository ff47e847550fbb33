//! From a file to a policy that decides: reads it, checks all of it, and tells every mistake at once.
//!
//! Synchronous. Touches only the file, the secrets it names, and the [`Environment`] it is handed.

mod chains;
mod check;
mod clients;
mod decode;
mod defaults;
pub mod diag;
mod dns;
pub mod env;
mod faults;
mod groups;
mod include;
mod matchers;
pub mod otlp;
mod raw;
pub mod secrets;
mod server;
mod short;
mod stand_in;
mod trials;
mod upstreams;
mod users;
mod web;
mod written;
mod yaml;

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::policy::Policy;

use clients::{Clients, Listeners};
use decode::Decode as _;
use diag::{Findings, Place};

pub use decode::{duration, nearest};
pub use diag::{Diagnostic, Report, Severity, Told};
pub use env::Environment;
pub use server::{
    AdminAddress, Limits, ListenAt, Listener, LogFormat, ServerSettings, Tls, TokenSource,
    is_server_name, listener_name,
};
pub use short::{Struck, fault};
pub use trials::{Outcome, Trial};
pub use users::Users;

/// The policy that runs where there is no file.
const EMBEDDED: &str = include_str!("../policies/default.yaml");

/// Where we listen where nothing else is said.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3128);

/// Where the admin listener is where nothing else is said.
pub const DEFAULT_ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3129);

/// Where a policy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The policy inside the binary.
    Embedded,
    /// A text at hand.
    Text {
        /// What diagnostics call it.
        name: String,
        /// The text.
        text: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Embedded => f.write_str("default.yaml (embedded)"),
            Self::Text { name, .. } => f.write_str(name),
        }
    }
}

/// How a policy is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// What becomes of secrets that cannot be had.
    pub secrets: Secrets,
    /// Whether failed `tests:` are errors; if not, [`Loaded::trials`] are for the caller to run.
    pub must_pass: bool,
    /// The addresses to listen on instead of those of the policy; empty for the latter.
    pub listen: Vec<ListenAt>,
    /// Whether those are of a command that has a proxy of its own: they stand in for the policy's listeners by their names, and
    /// what else `server` says of these is not used.
    pub stands_in: bool,
    /// The time.
    pub now: Timestamp,
}

/// What becomes of the secrets that a policy names, where they cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are errors: the policy is about to run.
    Needed,
    /// They are warnings: the policy is only looked at, maybe on another machine.
    Wanted,
    /// None is fetched, and each is an error: it is not sure who gave the policy, and whoever names a secret may send it
    /// anywhere, or run a program for it.
    Withheld,
}

impl Options {
    /// For a policy that is about to run: secrets are needed and tests must pass.
    pub fn serve(now: Timestamp) -> Self {
        Self {
            secrets: Secrets::Needed,
            must_pass: true,
            listen: Vec::new(),
            stands_in: false,
            now,
        }
    }

    /// For a policy that is about to run behind a command's own listeners.
    pub fn stand_in(now: Timestamp, listen: Vec<ListenAt>) -> Self {
        Self {
            listen,
            stands_in: true,
            ..Self::serve(now)
        }
    }

    /// For a policy that is only looked at: absent secrets are warnings and tests are left to the caller.
    pub fn check(now: Timestamp) -> Self {
        Self {
            secrets: Secrets::Wanted,
            must_pass: false,
            listen: Vec::new(),
            stands_in: false,
            now,
        }
    }
}

/// A policy that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// The policy. `guards.own` holds the addresses it was told to listen on.
    pub policy: Policy,
    /// Its `server` section; where listeners stand in for those of it, these and what holds for them.
    pub server: ServerSettings,
    /// Its `tests`, ready to run.
    pub trials: Vec<Trial>,
    /// What is likely not meant.
    pub warnings: Vec<Diagnostic>,
    /// The files that it was read from.
    pub files: Vec<PathBuf>,
}

/// Finds the policy: the flag, `$ROUTECAUSE_POLICY`, the user's, the machine's, the embedded one.
///
/// What the flag or the variable names is taken whether or not it is there, so that a typo does
/// not silently run another policy.
pub fn locate(flag: Option<&Path>, environment: &Environment) -> Source {
    if let Some(path) = flag {
        return Source::File(path.to_owned());
    }
    if let Some(path) = environment.get("ROUTECAUSE_POLICY") {
        return Source::File(path.into());
    }
    let home = || Some(Path::new(environment.get("HOME")?).join(".config"));
    let user = match environment.get("XDG_CONFIG_HOME").map(Path::new) {
        Some(folder) if folder.is_absolute() => Some(folder.to_owned()),
        Some(_) | None => home(),
    };
    let places = [user, Some("/etc".into())];
    for folder in places.into_iter().flatten() {
        let path = folder.join("routecause/policy.yaml");
        // What cannot be looked at may be there: loading it tells.
        if path.symlink_metadata().is_ok() || path.try_exists().is_err() {
            return Source::File(path);
        }
    }
    Source::Embedded
}

/// Loads a policy whole, or tells all that keeps it from being used.
///
/// # Errors
/// Every mistake in it, each with its place; warnings are among them.
pub fn load(
    source: &Source,
    environment: &Environment,
    options: &Options,
) -> Result<Loaded, Report> {
    let name: Arc<str> = source.to_string().into();
    let path = match source {
        Source::File(path) => Some(path.clone()),
        Source::Embedded | Source::Text { .. } => None,
    };
    let alone = |place: Option<Place>, message: String| Report {
        diagnostics: vec![Diagnostic::new(&name, place, message)],
        files: path.iter().cloned().collect(),
    };
    let bytes = read(source).map_err(|message| alone(None, message))?;
    let text = yaml::text(&bytes).map_err(|(place, message)| alone(place, message))?;
    let mut findings = Findings::new(name.clone(), path.clone(), text);
    let loaded = assemble(text, environment, options, &mut findings);
    let has_errors = findings.has_errors();
    let files = findings.paths();
    let diagnostics = findings.finish();
    match loaded {
        Some(mut loaded) if !has_errors => {
            (loaded.warnings, loaded.files) = (diagnostics, files);
            Ok(loaded)
        }
        Some(_) | None => Err(Report { diagnostics, files }),
    }
}

/// The JSON Schema of a policy.
pub fn schema() -> serde_json::Value {
    raw::schema()
}

fn assemble(
    text: &str,
    environment: &Environment,
    options: &Options,
    findings: &mut Findings<'_>,
) -> Option<Loaded> {
    let mut root = yaml::tree(text, 0, findings)?;
    upstreams::conceal_secrets(&root, findings);
    let broken = findings.has_errors();
    include::expand(&mut root, findings);
    let lacks_files = findings.has_errors() && !broken;
    let raw = raw::Policy::decode(&root, findings)?;
    if lacks_files {
        // Names that stand in what is missing would be told of as unknown, one by one.
        return None;
    }
    let mut server = server::check(raw.server.as_ref(), options, findings);
    let own: Vec<SocketAddr> = match (&*options.listen, &server.listen) {
        ([], Some(listeners)) => listeners.iter().map(|l| l.address.socket()).collect(),
        ([], None) => vec![DEFAULT_LISTEN],
        (flags, _) => flags.iter().map(ListenAt::socket).collect(),
    };
    let written = server.listen.iter().flatten().map(|l| l.name.clone());
    let mut listeners = Listeners {
        written: written.collect(),
        instead: (0..options.listen.len()).map(listener_name).collect(),
        stand_in: options.stands_in,
        is_open: own.iter().any(|address| !address.ip().is_loopback()),
        knows_users: server.users.is_some(),
    };
    if listeners.written.is_empty() {
        listeners.written.push(listener_name(0));
    }
    if options.stands_in {
        server = stand_in::of(&options.listen, server, &raw, findings);
        let named = server.listen.iter().flatten().map(|l| l.name.clone());
        listeners.instead = named.collect();
    }
    let sets = matchers::sets(raw.sets.as_ref(), findings);
    let scripts = upstreams::pac::sources(raw.upstreams.as_ref(), findings);
    let context = check::Context {
        environment,
        own: &own,
        listeners: &listeners,
        clients: &Clients::compile(raw.clients.as_ref(), &listeners, findings),
        sets: &sets,
        scripts: &scripts,
        secrets: Some(options.secrets),
        now: options.now,
        hash: &hash(findings.texts()),
    };
    let policy = check::policy(&raw, &context, findings);
    let mut trials = Vec::new();
    if !findings.has_errors() {
        trials = trials::check(&raw, &context, findings);
    }
    if options.must_pass && !findings.has_errors() {
        let failures = trials
            .iter()
            .filter_map(|trial| trial.run(options.now).failure);
        failures.for_each(|failure| findings.add(failure));
    }
    Some(Loaded {
        policy,
        server,
        trials,
        warnings: Vec::new(),
        files: Vec::new(),
    })
}

fn read(source: &Source) -> Result<Vec<u8>, String> {
    let bytes = match source {
        Source::Embedded => Ok(EMBEDDED.into()),
        Source::Text { text, .. } if text.len() > yaml::LARGEST => {
            Err(include::too_large(yaml::LARGEST))
        }
        Source::Text { text, .. } => Ok(text.clone().into()),
        Source::File(path) => include::read(path, yaml::LARGEST),
    };
    bytes.map_err(|problem| format!("the policy {problem}"))
}

/// The first 12 hex digits of the SHA-256 of all files: enough to tell policies apart in records. Of a policy in one file it is
/// that file's.
fn hash<'t>(texts: impl Iterator<Item = &'t str>) -> Arc<str> {
    let mut whole = Sha256::new();
    for (at, text) in texts.enumerate() {
        if at > 0 {
            // So that no line can move from one file to the next unnoticed.
            whole.update((text.len() as u64).to_be_bytes());
        }
        whole.update(text);
    }
    let digest = whole.finalize();
    let mut hex = String::new();
    for byte in digest.iter().take(6) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.into()
}

#[cfg(test)]
mod tests;
