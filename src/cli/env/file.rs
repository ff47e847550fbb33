//! Settings files, changed and taken back byte for byte.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::tools::Place;
use crate::config::env::Environment;

/// What a file was before we changed it, kept in the user's state folder.
#[derive(Serialize, Deserialize)]
struct Kept {
    path: PathBuf,
    /// Its bytes in base64; `None` where there was no file.
    before: Option<String>,
    /// Its permissions.
    mode: Option<u32>,
    /// What we made of it, in base64.
    after: String,
}

/// Where it is kept what a tool's file was.
fn memory(name: &str, env: &Environment) -> anyhow::Result<PathBuf> {
    let state = match env.get("XDG_STATE_HOME").map(Path::new) {
        Some(folder) if folder.is_absolute() => folder.to_owned(),
        Some(_) | None => {
            let home = env.get("HOME").context("HOME is not set")?;
            Path::new(home).join(".local/state")
        }
    };
    Ok(state.join("routecause").join(format!("env-{name}.json")))
}

/// Puts settings into a tool's file, and keeps what it was.
pub(super) fn write(
    name: &str,
    place: &Place,
    settings: &str,
    env: &Environment,
) -> anyhow::Result<()> {
    let memory = memory(name, env)?;
    anyhow::ensure!(
        !memory.exists(),
        "it is written already; take that back first: routecause env --for {name} --undo"
    );
    // A link stays one: what it leads to is changed.
    let path = match place.path.canonicalize() {
        Ok(path) => path,
        Err(_) => place.path.clone(),
    };
    let named = || path.display().to_string();
    let before = match fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(anyhow::Error::new(error).context(format!("read {}", named()))),
    };
    let mode = match &before {
        Some(_) => Some(fs::metadata(&path)?.permissions().mode() & 0o7777),
        None => None,
    };
    let text = String::from_utf8(before.clone().unwrap_or_default())
        .ok()
        .with_context(|| format!("{} is no text in UTF-8", named()))?;
    let after = place
        .edit
        .apply(&text, settings)
        .with_context(|| format!("change {}", named()))?;
    let kept = Kept {
        path: path.clone(),
        before: before.map(|bytes| BASE64.encode(bytes)),
        mode,
        after: BASE64.encode(&after),
    };
    // First what it was, so that it is never lost.
    replace(
        &memory,
        serde_json::to_string_pretty(&kept)?.as_bytes(),
        0o600,
    )?;
    replace(&path, after.as_bytes(), mode.unwrap_or(0o644)).inspect_err(|_| {
        let _ = fs::remove_file(&memory);
    })
}

/// Makes a tool's file what it was; says which.
pub(super) fn undo(name: &str, env: &Environment) -> anyhow::Result<PathBuf> {
    let memory = memory(name, env)?;
    let kept = match fs::read(&memory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            anyhow::bail!("nothing was written for {name}");
        }
        kept => kept.with_context(|| format!("read {}", memory.display()))?,
    };
    let kept: Kept =
        serde_json::from_slice(&kept).with_context(|| format!("read {}", memory.display()))?;
    let now = fs::read(&kept.path).unwrap_or_default();
    anyhow::ensure!(
        now == BASE64.decode(&kept.after)?,
        "{} was changed since; take it back by hand (what it was stands in {}, in base64)",
        kept.path.display(),
        memory.display()
    );
    match &kept.before {
        Some(before) => replace(
            &kept.path,
            &BASE64.decode(before)?,
            kept.mode.unwrap_or(0o644),
        )?,
        None => fs::remove_file(&kept.path)
            .with_context(|| format!("remove {}", kept.path.display()))?,
    }
    fs::remove_file(&memory).with_context(|| format!("remove {}", memory.display()))?;
    Ok(kept.path)
}

/// Writes a file whole or not at all.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let failed =
        |error: io::Error| anyhow::Error::new(error).context(format!("write {}", path.display()));
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
