//! What connections occupy while they are in use: places among those that a limit allows, counts of those that are open.
//!
//! A connection that is kept for later rests: it still has its place, and gives way where a new one needs it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::socket::Socket;

/// Something that a connection occupies. Given back when it is dropped.
pub trait Slot: Debug + Send + Sync {
    /// Notes that the connection over `carrier` serves nobody for now.
    fn rest(&self, carrier: &Socket);

    /// Notes that it is to serve again. Whether it may: not where it had to give way.
    fn wake(&self) -> bool;
}

/// All that one connection occupies.
#[derive(Debug, Default)]
pub struct Held(Vec<Box<dyn Slot>>);

impl Held {
    /// Occupies this as well.
    pub fn add(&mut self, slot: impl Slot + 'static) {
        self.0.push(Box::new(slot));
    }

    /// Notes that the connection over `carrier` serves nobody for now.
    pub fn rest(&self, carrier: &Socket) {
        for slot in &self.0 {
            slot.rest(carrier);
        }
    }

    /// Notes that it is to serve again. Where it may not, it is of no more use.
    #[must_use]
    pub fn wake(&self) -> bool {
        self.0.iter().all(|slot| slot.wake())
    }
}

/// The places that a limit allows.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    uses: BTreeMap<u64, Use>,
    /// How often a connection went to rest.
    rests: u64,
}

#[derive(Debug)]
enum Use {
    Busy,
    Resting {
        /// Who has rested longest has the least.
        since: u64,
        carrier: Socket,
    },
}

/// One place.
#[derive(Debug)]
pub struct Place {
    of: Arc<Places>,
    id: u64,
}

impl Places {
    /// So many places.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: Mutex::default(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place: a free one, else that of the connection that has rested longest, which ends. `None` where all are in
    /// use.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let mut taken = self.taken();
        if taken.uses.len() >= self.limit {
            let resting = taken.uses.iter().filter_map(|(id, used)| match used {
                Use::Resting { since, .. } => Some((*since, *id)),
                Use::Busy => None,
            });
            let (_, id) = resting.min()?;
            if let Some(Use::Resting { carrier, .. }) = taken.uses.remove(&id)
                && let Err(error) = carrier.end()
            {
                tracing::debug!(%error, "end a connection that gives way");
            }
        }
        let id = taken.next;
        taken.next += 1;
        taken.uses.insert(id, Use::Busy);
        Some(Place {
            of: self.clone(),
            id,
        })
    }
}

impl Slot for Place {
    fn rest(&self, carrier: &Socket) {
        let mut taken = self.of.taken();
        taken.rests += 1;
        let since = taken.rests;
        if let Some(used) = taken.uses.get_mut(&self.id) {
            *used = Use::Resting {
                since,
                carrier: carrier.clone(),
            };
        }
    }

    fn wake(&self) -> bool {
        let mut taken = self.of.taken();
        match taken.uses.get_mut(&self.id) {
            Some(used) => {
                *used = Use::Busy;
                true
            }
            None => false,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.taken().uses.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::net::socket::tests::pair;

    #[tokio::test]
    async fn who_has_rested_longest_gives_way_and_who_works_does_not() {
        let places = Arc::new(Places::new(2));
        let (one, mut far_one) = pair().await;
        let (two, mut far_two) = pair().await;
        let (first, second) = (places.take().unwrap(), places.take().unwrap());
        assert!(places.take().is_none(), "both are in use");
        second.rest(&two);
        first.rest(&one);
        assert!(second.wake(), "nobody needed its place");
        let third = places.take().unwrap();
        assert_eq!(far_one.read(&mut [0]).await.unwrap(), 0, "it was ended");
        assert!(!first.wake(), "and serves nobody any more");
        assert!(places.take().is_none());
        // Its place is the third's: it gives nothing back.
        drop(first);
        assert!(places.take().is_none());
        drop(third);
        drop(places.take().unwrap());
        second.rest(&two);
        let kept: Vec<_> = (0..2).filter_map(|_| places.take()).collect();
        assert_eq!(kept.len(), 2);
        assert_eq!(far_two.read(&mut [0]).await.unwrap(), 0);
    }
}
