//! Answers that are asked for anew, and serve until there are others.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Resolved;
use crate::policy::dns::Prefer;

/// As many names as are kept at once.
const NAMES: usize = 1024;

/// Answers by name, for as long as they hold.
#[derive(Default)]
pub(super) struct Aside(Mutex<HashMap<String, Kept>>);

struct Kept {
    found: Resolved,
    prefer: Prefer,
    until: Instant,
}

impl Aside {
    /// Puts an answer aside; says whether there is room, and it holds at all.
    pub(super) fn put(&self, name: &str, prefer: Prefer, found: Resolved) -> bool {
        let Some(ttl) = found.facts.ttl.filter(|ttl| *ttl > 0) else {
            return false;
        };
        let now = Instant::now();
        let mut kept = self.kept();
        if kept.len() >= NAMES {
            kept.retain(|_, kept| kept.until > now);
        }
        if kept.len() >= NAMES && !kept.contains_key(name) {
            return false;
        }
        let until = now + Duration::from_secs(ttl.into());
        let this = Kept {
            found,
            prefer,
            until,
        };
        kept.insert(name.to_owned(), this);
        true
    }

    /// The answer for a name, if one is put aside and still holds.
    pub(super) fn get(&self, name: &str, prefer: Prefer) -> Option<Resolved> {
        let kept = self.kept();
        let kept = kept.get(name).filter(|kept| kept.prefer == prefer)?;
        let left = kept.until.checked_duration_since(Instant::now())?;
        let mut found = kept.found.clone();
        // What is left of a second is one: it holds still.
        let left = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        found.facts.ttl = u32::try_from(left).ok();
        (left > 0).then_some(found)
    }

    /// There is another.
    pub(super) fn drop_of(&self, name: &str) {
        self.kept().remove(name);
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.kept().clear();
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::net::resolve::{Facts, Source};

    fn found(ttl: Option<u32>) -> Resolved {
        let facts = Facts {
            ttl,
            ..Facts::default()
        };
        Resolved {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            source: Source::Dns,
            facts,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_serves_for_as_long_as_it_held() {
        let aside = Aside::default();
        let left = |prefer| aside.get("a.example", prefer).map(|found| found.facts.ttl);
        for nothing in [None, Some(0)] {
            assert!(!aside.put("a.example", Prefer::Happy, found(nothing)));
        }
        assert!(aside.put("a.example", Prefer::Happy, found(Some(60))));
        assert_eq!(left(Prefer::V4Only), None);
        advance(Duration::from_millis(20_500)).await;
        assert_eq!(left(Prefer::Happy), Some(Some(40)));
        advance(Duration::from_secs(40)).await;
        assert_eq!(left(Prefer::Happy), None);
        // Those that hold no more make room for others.
        for number in 0..NAMES {
            assert!(aside.put(&number.to_string(), Prefer::Happy, found(Some(60))));
        }
        assert!(!aside.put("one.more.example", Prefer::Happy, found(Some(60))));
        advance(Duration::from_mins(1)).await;
        assert!(aside.put("one.more.example", Prefer::Happy, found(Some(60))));
    }
}
