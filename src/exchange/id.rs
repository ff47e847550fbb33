//! Ids of records.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};

use jiff::Timestamp;
use uuid::{Builder, Uuid};

/// Where a thread's ids come from: a keyed hash of a counter, so that no request asks the kernel for chance.
struct Source {
    key: RandomState,
    drawn: Cell<u64>,
}

thread_local! {
    static SOURCE: Source = Source { key: RandomState::new(), drawn: Cell::new(0) };
}

/// Draws an id that sorts by its moment (RFC 9562, section 5.7; section 6.2, method 3). It is unique, and no secret.
pub(super) fn draw(now: Timestamp) -> Uuid {
    let since_epoch = now.as_nanosecond().unsigned_abs();
    let millis = u64::try_from(since_epoch / 1_000_000).unwrap_or(u64::MAX);
    // Of the 62 bits that are drawn, two are lost to the variant.
    let chance = SOURCE.with(|source| {
        let drawn = source.drawn.get().wrapping_add(1);
        source.drawn.set(drawn);
        source.key.hash_one(drawn)
    });
    // The 12 bits behind the milliseconds are their fraction, in steps of 244 ns.
    let fraction = (since_epoch % 1_000_000) * 4096 / 1_000_000;
    let mut rest = [0; 10];
    let (fine, drawn) = rest.split_at_mut(2);
    fine.copy_from_slice(&u16::try_from(fraction).unwrap_or(u16::MAX).to_be_bytes());
    drawn.copy_from_slice(&chance.to_be_bytes());
    Builder::from_unix_timestamp_millis(millis, &rest).into_uuid()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use jiff::SignedDuration;
    use uuid::{Variant, Version};

    use super::*;

    #[test]
    fn ids_are_unique_and_sort_by_their_moment() {
        let start = Timestamp::now();
        let after = |n: i64| draw(start + SignedDuration::from_micros(n));
        let ids: Vec<_> = (0..10_000).map(after).collect();
        assert!(ids.is_sorted());
        let same: HashSet<_> = (0..10_000).map(|_| draw(start)).collect();
        assert_eq!(same.len(), 10_000);
        let id = after(0);
        assert_eq!(id.get_version(), Some(Version::SortRand));
        assert_eq!(id.get_variant(), Variant::RFC4122);
        let (seconds, _) = id.get_timestamp().unwrap().to_unix();
        assert_eq!(i64::try_from(seconds).unwrap(), start.as_second());
    }
}
