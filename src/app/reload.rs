//! When to read the policy again: a signal, or a change of its files.
//!
//! Directories are watched, not files: an editor renames a new file into place, and Kubernetes swaps a symlink beside
//! it. What an event was is of no interest; what stands in the file is.

use std::path::{Path, PathBuf};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{Duration, Instant, timeout};

/// A file that is being written is left alone until it has been quiet this long.
const QUIET: Duration = Duration::from_millis(200);

/// What else changes beside it, a log perhaps, does not hold it up longer than this.
const LONGEST: Duration = Duration::from_secs(2);

/// Watches the directories of some files.
#[derive(Debug)]
pub struct Watch {
    // Dropped, it stops watching.
    _watcher: RecommendedWatcher,
    events: Receiver<()>,
}

impl Watch {
    /// Watches the directory of every file, and of what its symlinks lead to.
    pub fn of(files: &[PathBuf]) -> notify::Result<Self> {
        let (sender, events) = channel(1);
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let is_change = !matches!(
                    event,
                    Ok(notify::Event {
                        kind: EventKind::Access(_),
                        ..
                    })
                );
                if is_change {
                    // One event in wait is as good as many.
                    let _ = sender.try_send(());
                }
            })?;
        let mut directories: Vec<PathBuf> =
            files.iter().flat_map(|file| directories_of(file)).collect();
        directories.sort();
        directories.dedup();
        for directory in &directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(Self {
            _watcher: watcher,
            events,
        })
    }

    /// Waits for a change, and until it is over.
    pub async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let latest = Instant::now() + LONGEST;
        while Instant::now() < latest
            && matches!(timeout(QUIET, self.events.recv()).await, Ok(Some(())))
        {}
    }
}

/// The directory of a file, and those of every link that leads to it.
fn directories_of(file: &Path) -> Vec<PathBuf> {
    // Longer chains than the kernel follows are loops (path_resolution(7)).
    const MOST_LINKS: usize = 40;
    let mut directories = Vec::new();
    let mut path = file.to_owned();
    for _ in 0..MOST_LINKS {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let next = std::fs::read_link(&path).map(|to| directory.join(to));
        directories.push(directory);
        match next {
            Ok(next) => path = next,
            Err(_) => break,
        }
    }
    // A link may be in the directory's own path, as in `..data/policy.yaml`.
    if let Ok(real) = std::fs::canonicalize(file)
        && let Some(parent) = real.parent()
    {
        directories.push(parent.to_owned());
    }
    directories
}
