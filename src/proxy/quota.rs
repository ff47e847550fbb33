//! How much one client may ask for, and one target be asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Excess;

/// So many clients are remembered at once; with more, those that ask now begin anew.
const MOST_CLIENTS: usize = 10_000;

const SECOND: Duration = Duration::from_secs(1);

/// How many requests are under way to each host and port.
type Targets = HashMap<(Box<str>, u16), usize>;

/// The limits on requests, and what is under way.
#[derive(Debug, Default)]
pub struct Quotas {
    rate: Option<usize>,
    per_target: Option<usize>,
    /// Until when a client's requests have used up its rate.
    spent: Mutex<HashMap<IpAddr, Instant>>,
    /// How many requests are under way to each target.
    targets: Arc<Mutex<Targets>>,
}

impl Quotas {
    /// At most `rate` requests of a client in a second, and `per_target` to a target at once.
    pub fn new(rate: Option<usize>, per_target: Option<usize>) -> Self {
        Self {
            rate,
            per_target,
            ..Self::default()
        }
    }

    /// Counts a request of a client.
    pub(super) fn begin(&self, client: IpAddr) -> Result<(), Excess> {
        let Some(limit) = self.rate else {
            return Ok(());
        };
        let now = Instant::now();
        let one = SECOND / u32::try_from(limit).unwrap_or(u32::MAX);
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() >= MOST_CLIENTS && !spent.contains_key(&client) {
            spent.retain(|_, until| *until > now);
            if spent.len() >= MOST_CLIENTS {
                spent.clear();
            }
        }
        let until = spent.entry(client).or_insert(now);
        let next = (*until).max(now) + one;
        // The steps are rounded: together they may miss the second by a little.
        if next > now + SECOND + one / 2 {
            return Err(Excess::Rate { limit });
        }
        *until = next;
        Ok(())
    }

    /// Takes a place among the requests to a target; nothing where they are not limited.
    pub(super) fn take(&self, host: &str, port: u16) -> Result<Option<Place>, Excess> {
        let Some(limit) = self.per_target else {
            return Ok(None);
        };
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let target: (Box<str>, u16) = (host.into(), port);
        let open = targets.entry(target.clone()).or_insert(0);
        if *open >= limit {
            let target = format!("{host}:{port}");
            return Err(Excess::Target { target, limit });
        }
        *open += 1;
        Ok(Some(Place {
            target,
            targets: self.targets.clone(),
        }))
    }
}

/// A place among the requests to a target, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    target: (Box<str>, u16),
    targets: Arc<Mutex<Targets>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = targets.get_mut(&self.target) {
            *open -= 1;
            if *open == 0 {
                targets.remove(&self.target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_may_begin_so_many_requests_in_a_second() {
        let quotas = Quotas::new(Some(3), None);
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        for _ in 0..3 {
            assert_eq!(quotas.begin(one), Ok(()));
        }
        assert_eq!(quotas.begin(one), Err(Excess::Rate { limit: 3 }));
        assert_eq!(quotas.begin(other), Ok(()));
        advance(Duration::from_millis(334)).await;
        assert_eq!(quotas.begin(one), Ok(()));
        assert!(quotas.begin(one).is_err());
        advance(Duration::from_mins(1)).await;
        assert_eq!((0..9).filter(|_| quotas.begin(one).is_ok()).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_clients_is_bounded() {
        let quotas = Quotas::new(Some(1), None);
        for at in 0..3 * u32::try_from(MOST_CLIENTS).unwrap() {
            assert_eq!(quotas.begin(IpAddr::from(at.to_be_bytes())), Ok(()));
        }
        assert!(quotas.spent.lock().unwrap().len() <= MOST_CLIENTS);
    }

    #[test]
    fn a_target_has_so_many_places_and_gets_them_back() {
        let quotas = Quotas::new(None, Some(2));
        let first = quotas.take("a.example", 443).unwrap();
        let _second = quotas.take("a.example", 443).unwrap();
        assert!(quotas.take("a.example", 443).is_err());
        assert!(quotas.take("a.example", 80).is_ok());
        drop(first);
        assert!(quotas.take("a.example", 443).is_ok());
        assert!(Quotas::default().take("a.example", 443).unwrap().is_none());
    }
}
