//! Files that say who is who: read again when they change.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::target::Host;

/// What the hosts file says.
pub(super) type Hosts = HashMap<Arc<str>, Vec<IpAddr>>;

/// What a file says, read again when the file changes.
pub(super) struct Watched<T> {
    pub(super) path: PathBuf,
    read: Box<dyn Fn(&Path) -> T + Send + Sync>,
    last: Mutex<(Option<SystemTime>, Arc<T>)>,
}

impl<T> Watched<T> {
    pub(super) fn new(path: &str, read: impl Fn(&Path) -> T + Send + Sync + 'static) -> Self {
        let path = PathBuf::from(path);
        let last = Mutex::new((changed(&path), Arc::new(read(&path))));
        Self {
            path,
            read: Box::new(read),
            last,
        }
    }

    pub(super) fn get(&self) -> Arc<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = changed(&self.path);
        if changed != last.0 {
            *last = (changed, Arc::new((self.read)(&self.path)));
        }
        last.1.clone()
    }
}

impl<T> std::fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

/// hosts(5): an address and its names a line; `#` begins a comment. Names are canonical, as targets are.
pub(super) fn read_hosts(path: &Path) -> Hosts {
    let text = std::fs::read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "the hosts file is not read");
        Vec::new()
    });
    let mut hosts = Hosts::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let mut words = line.split('#').next().unwrap_or(line).split_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        for name in words {
            if let Ok(Host::Name(name)) = Host::parse(name) {
                hosts.entry(name).or_default().push(ip);
            }
        }
    }
    hosts
}
