//! When to read the policy again: a signal, or a change of its files.
//!
//! Directories are watched, not files: an editor renames a new file into place, and Kubernetes swaps a symlink beside
//! it. What an event was is of no interest; what stands in the file is. What has none of the names that lead to the file, a
//! log beside it perhaps, is none of ours.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant, timeout};

use crate::config::{Report, Told};

/// A file that is being written is left alone until it has been quiet this long.
const QUIET: Duration = Duration::from_millis(200);

/// What else changes beside it, a log perhaps, does not hold it up longer than this.
const LONGEST: Duration = Duration::from_secs(2);

/// What somebody wants of the policy while the program runs.
#[derive(Debug)]
pub enum Wish {
    /// To be read again.
    Reload(oneshot::Sender<Answer>),
    /// To be replaced by this text, until it is read again.
    Apply {
        /// The text.
        text: String,
        /// The hash that the policy at work must have; `*` for any.
        instead_of: String,
        /// Hears what became of it.
        answer: oneshot::Sender<Answer>,
    },
}

/// What became of a wish.
pub type Answer = Result<Applied, Refused>;

/// A policy is at work.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its hash.
    pub hash: Arc<str>,
    /// How many open tunnels were cut since it refuses them; nothing where it does not want that.
    pub cut: Option<usize>,
}

/// Why a policy was not set to work. The old one stays.
#[derive(Debug)]
pub enum Refused {
    /// It has mistakes.
    Bad(Report),
    /// Another policy is at work than the one that was to be replaced.
    Stale,
    /// It needs a restart, or would open the proxy to everyone.
    Unfit(String),
}

/// Whether what stands where the policy comes from is at work.
#[derive(Debug, Default)]
pub struct Standing(Mutex<Option<Refusal>>);

/// What stands there is not at work.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When it was read.
    pub at: Timestamp,
    /// What is wrong with it.
    pub why: Vec<Told>,
}

impl Standing {
    fn refused(&self) -> MutexGuard<'_, Option<Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is not at work; nothing where it is.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refused().clone()
    }

    /// Whether it is known to be not at work for this.
    pub fn is_refused_for(&self, why: &[Told]) -> bool {
        (self.refused().as_ref()).is_some_and(|refusal| refusal.why == why)
    }

    /// It was read, and is not at work.
    pub fn refuse(&self, why: Vec<Told>) {
        let at = Timestamp::now();
        *self.refused() = Some(Refusal { at, why });
    }

    /// It was read, and is at work.
    pub fn accept(&self) {
        *self.refused() = None;
    }
}

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
        let mut directories = Vec::new();
        let mut names = HashSet::new();
        for file in files {
            let ways = ways_to(file);
            names.extend(ways.iter().flat_map(|way| names_in(way)));
            directories.extend(ways.iter().map(|way| directory_of(way)));
        }
        directories.sort();
        directories.dedup();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.is_ok_and(|event| !concerns(&event, &names)) {
                    return;
                }
                // One event in wait is as good as many.
                let _ = sender.try_send(());
            })?;
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
        quiet(&mut self.events).await;
    }
}

/// Waits until nothing has happened for a while.
async fn quiet(events: &mut Receiver<()>) {
    let latest = Instant::now() + LONGEST;
    while Instant::now() < latest && matches!(timeout(QUIET, events.recv()).await, Ok(Some(()))) {}
}

/// Whether something may have changed under one of these names. An event that names nothing may concern anything.
fn concerns(event: &notify::Event, names: &HashSet<OsString>) -> bool {
    let is_ours = |path: &PathBuf| path.file_name().is_none_or(|name| names.contains(name));
    !matches!(event.kind, EventKind::Access(_))
        && (event.paths.is_empty() || event.paths.iter().any(is_ours))
}

/// A file's path, those of every link that leads to it, and that of what they lead to.
fn ways_to(file: &Path) -> Vec<PathBuf> {
    // Longer chains than the kernel follows are loops (path_resolution(7)).
    const MOST_LINKS: usize = 40;
    let mut ways = vec![file.to_owned()];
    while ways.len() < MOST_LINKS
        && let Some(last) = ways.last()
        && let Ok(to) = std::fs::read_link(last)
    {
        ways.push(directory_of(last).join(to));
    }
    // A link may be in the directory's own path, as in `..data/policy.yaml`.
    ways.extend(std::fs::canonicalize(file));
    ways
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The names in a path, any of which may be that of a link.
fn names_in(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| {
        if let Component::Normal(name) = part {
            Some(name.to_owned())
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, ModifyKind};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_written_slowly_is_over_when_it_is_quiet_and_nothing_is_waited_for_for_ever() {
        for (pause, count, expected) in [(150, 5, 800), (150, 100, 2100), (250, 5, 200)] {
            let (sender, mut events) = channel(1);
            let begun = Instant::now();
            let write = async {
                for _ in 1..count {
                    sleep(Duration::from_millis(pause)).await;
                    sender.send(()).await.unwrap();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = quiet(&mut events) => {}
                () = write => {}
            }
            assert_eq!(
                begun.elapsed().as_millis(),
                expected,
                "{count} every {pause} ms"
            );
        }
    }

    #[test]
    fn only_the_names_that_lead_to_the_file_are_of_interest() {
        let names: HashSet<_> = names_in(Path::new("/etc/routecause/..data/policy.yaml")).collect();
        let is_told = |kind: EventKind, path: &str| {
            let event = notify::Event::new(kind);
            concerns(&event.add_path(PathBuf::from(path)), &names)
        };
        let modified = EventKind::Modify(ModifyKind::Any);
        assert!(is_told(modified, "/etc/routecause/policy.yaml"));
        assert!(is_told(modified, "/etc/routecause/..data"));
        assert!(!is_told(modified, "/etc/routecause/egress.log"));
        let opened = EventKind::Access(AccessKind::Any);
        assert!(!is_told(opened, "/etc/routecause/policy.yaml"));
        assert!(concerns(&notify::Event::new(EventKind::Other), &names));
    }
}
