//! The limits on open connections, of all clients and of each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::{Excess, Failure};

/// Connections over a limit that may be told so at once; more are closed without a word.
const REFUSALS: usize = 64;

/// So many connections may come from one address where nothing is said.
const PER_CLIENT: usize = 512;

/// Room for connections.
#[derive(Debug)]
pub struct Room {
    limit: usize,
    per_client: Option<usize>,
    free: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

impl Room {
    /// Room for `limit` connections, `per_client` of them from one address: 512 and any number from this machine where
    /// nothing is said.
    pub fn new(limit: usize, per_client: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            per_client,
            free: Arc::new(Semaphore::new(limit)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            clients: Mutex::default(),
        })
    }

    /// How many places there are.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many of them are taken.
    pub fn taken(&self) -> usize {
        self.limit.saturating_sub(self.free.available_permits())
    }

    /// A place among all connections, or among the streams that they carry.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let place = self.free.clone().try_acquire_owned();
        place.map_err(|_| Failure::Connections { limit: self.limit })
    }

    /// A place among those of its client.
    pub(super) fn enter_as(self: &Arc<Self>, client: IpAddr) -> Result<Option<Place>, Failure> {
        let usual = (!client.is_loopback()).then_some(PER_CLIENT);
        let Some(limit) = self.per_client.or(usual) else {
            return Ok(None);
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let open = clients.entry(client).or_insert(0);
        if *open >= limit {
            return Err(Excess::Client { limit }.into());
        }
        *open += 1;
        Ok(Some(Place {
            client,
            room: self.clone(),
        }))
    }

    /// Leave to answer a connection that there is no room for.
    pub(super) fn refuse(&self) -> Option<OwnedSemaphorePermit> {
        self.refusals.clone().try_acquire_owned().ok()
    }
}

/// A place among the connections of a client, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    client: IpAddr,
    room: Arc<Room>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let clients = &self.room.clients;
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = clients.get_mut(&self.client) {
            *open -= 1;
            if *open == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_places_and_gets_them_back() {
        let room = Room::new(10, Some(1));
        let client = IpAddr::from([192, 0, 2, 1]);
        let place = room.enter_as(client).unwrap();
        assert!(room.enter_as(client).is_err());
        assert!(room.enter_as(IpAddr::from([192, 0, 2, 2])).is_ok());
        drop(place);
        assert!(room.enter_as(client).is_ok());
    }

    #[test]
    fn this_machine_has_a_limit_only_where_one_is_written() {
        let here = IpAddr::from([127, 0, 0, 1]);
        assert!(Room::new(10, None).enter_as(here).unwrap().is_none());
        assert!(Room::new(10, Some(1)).enter_as(here).unwrap().is_some());
    }
}
