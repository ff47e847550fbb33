//! From a file to a policy that decides: reads it, checks all of it, and tells every mistake at once.
//!
//! Synchronous. Touches only the file, the secrets it names, and the [`Environment`] it is handed.

mod check;
mod decode;
pub mod diag;
pub mod env;
mod matchers;
mod raw;
mod server;
mod trials;
mod upstreams;
mod yaml;

use std::fmt::{self, Write as _};
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::policy::Policy;

use decode::Decode as _;
use diag::{Findings, Place};

pub use decode::duration;
pub use diag::{Diagnostic, Report, Severity};
pub use env::Environment;
pub use server::{Listener, LogFormat, ServerSettings, is_server_name};
pub use trials::{Outcome, Trial};

/// The policy that runs where there is no file.
const EMBEDDED: &str = include_str!("../policies/default.yaml");

/// Where we listen where nothing else is said.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3128);

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
    /// The addresses that flags set to listen on; empty for those of the policy.
    pub listen: Vec<SocketAddr>,
    /// The time.
    pub now: Timestamp,
}

/// What becomes of secrets that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are errors: the policy is about to run.
    Needed,
    /// They are warnings: the policy is only looked at, maybe on another machine.
    Wanted,
}

impl Options {
    /// For a policy that is about to run: secrets are needed and tests must pass.
    pub fn serve(now: Timestamp) -> Self {
        Self {
            secrets: Secrets::Needed,
            must_pass: true,
            listen: Vec::new(),
            now,
        }
    }

    /// For a policy that is only looked at: absent secrets are warnings and tests are left to the caller.
    pub fn check(now: Timestamp) -> Self {
        Self {
            secrets: Secrets::Wanted,
            must_pass: false,
            listen: Vec::new(),
            now,
        }
    }
}

/// A policy that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// The policy. `guards.own` holds the addresses it was told to listen on.
    pub policy: Policy,
    /// Its `server` section.
    pub server: ServerSettings,
    /// Its `tests`, ready to run.
    pub trials: Vec<Trial>,
    /// What is likely not meant.
    pub warnings: Vec<Diagnostic>,
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
    let bytes = read(source).map_err(|message| alone(&name, None, message))?;
    let text = yaml::text(&bytes).map_err(|(place, message)| alone(&name, place, message))?;
    let mut findings = Findings::new(name, text);
    let loaded = assemble(source, text, environment, options, &mut findings);
    let has_errors = findings.has_errors();
    let diagnostics = findings.finish();
    match loaded {
        Some(mut loaded) if !has_errors => {
            loaded.warnings = diagnostics;
            Ok(loaded)
        }
        Some(_) | None => Err(Report { diagnostics }),
    }
}

/// The JSON Schema of a policy.
pub fn schema() -> serde_json::Value {
    raw::schema()
}

fn assemble(
    source: &Source,
    text: &str,
    environment: &Environment,
    options: &Options,
    findings: &mut Findings<'_>,
) -> Option<Loaded> {
    let root = yaml::tree(text, findings)?;
    upstreams::conceal_secrets(&root, findings);
    let raw = raw::Policy::decode(&root, findings)?;
    let folder = match source {
        Source::File(path) => path.parent().unwrap_or(Path::new("")),
        Source::Embedded | Source::Text { .. } => Path::new(""),
    };
    let server = server::check(raw.server.as_ref(), folder, findings);
    let own = match (&*options.listen, &server.listen) {
        ([], Some(listeners)) => listeners.iter().map(|l| l.address).collect(),
        ([], None) => vec![DEFAULT_LISTEN],
        (flags, _) => flags.to_vec(),
    };
    let context = check::Context {
        environment,
        own: &own,
        folder,
        secrets: Some(options.secrets),
        now: options.now,
        hash: &hash(text),
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
    })
}

fn read(source: &Source) -> Result<Vec<u8>, String> {
    let path = match source {
        Source::Embedded => return Ok(EMBEDDED.into()),
        Source::Text { text, .. } => return Ok(text.clone().into()),
        Source::File(path) => path,
    };
    let mut bytes = Vec::new();
    let limit = yaml::LARGEST as u64 + 1;
    let unreadable = |error: io::Error| format!("the policy cannot be read: {error}");
    // Asked before opening: a pipe that nobody writes to would hold us up for ever.
    let kind = std::fs::metadata(path).map_err(unreadable)?.file_type();
    if kind.is_fifo() && !path.starts_with("/dev/fd") && !path.starts_with("/proc") {
        return Err("the policy cannot be read: it is a pipe".to_owned());
    }
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    Ok(bytes)
}

fn alone(file: &Arc<str>, place: Option<Place>, message: String) -> Report {
    Report {
        diagnostics: vec![Diagnostic::new(file, place, message)],
    }
}

/// The first 12 hex digits of the text's SHA-256: enough to tell policies apart in records.
fn hash(text: &str) -> Arc<str> {
    let digest = Sha256::digest(text);
    let mut hex = String::new();
    for byte in digest.iter().take(6) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.into()
}

#[cfg(test)]
mod tests;
