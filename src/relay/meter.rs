//! Counters of one relay that anyone may read while it runs and after it was dropped.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// What has passed through a relay.
#[derive(Debug)]
pub struct Meter {
    begun: Instant,
    up: AtomicU64,
    down: AtomicU64,
    /// Nanoseconds since `begun`, plus one; 0 while there is none.
    first_server_byte: AtomicU64,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// Begins at zero, now.
    pub fn new() -> Self {
        Self::since(Instant::now())
    }

    /// Begins at zero, at a moment that is just over.
    pub fn since(begun: Instant) -> Self {
        Self {
            begun,
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            first_server_byte: AtomicU64::new(0),
        }
    }

    /// When it began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Bytes of the client that were passed on to the server.
    pub fn up(&self) -> u64 {
        self.up.load(Relaxed)
    }

    /// Bytes of the server that were passed on to the client.
    pub fn down(&self) -> u64 {
        self.down.load(Relaxed)
    }

    /// When the server's first byte was there.
    pub fn first_server_byte(&self) -> Option<Instant> {
        let after = self.first_server_byte.load(Relaxed).checked_sub(1)?;
        Some(self.begun + Duration::from_nanos(after))
    }

    pub fn moved(&self, up: u64, down: u64) {
        self.up.fetch_add(up, Relaxed);
        self.down.fetch_add(down, Relaxed);
    }

    pub(super) fn server_spoke(&self, now: Instant) {
        if self.first_server_byte.load(Relaxed) == 0 {
            self.first_server_byte.store(self.nanos(now) + 1, Relaxed);
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        // 64 bits of nanoseconds are 584 years.
        u64::try_from((now - self.begun).as_nanos()).unwrap_or(u64::MAX - 1)
    }
}
