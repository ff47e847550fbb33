//! Who asks: credentials held against the file of users.
//!
//! A password is held against its argon2 hash once; what was right is remembered as a keyed digest until the file changes. A
//! wrong name takes as long as a wrong password. A client that guesses waits longer for each answer, and guesses of all
//! clients together keep no more than two threads busy.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

use super::Proxy;
use crate::client::{Claim, Credentials, Given};
use crate::config::Users;
use crate::exchange::Exchange;
use crate::failure::{Failure, Stranger};
use crate::secret::Secret;
use crate::snapshot::Snapshot;
use crate::tls::trust::provider;

/// So many checks may be under way at once: each takes some 20 MiB and a thread.
const CHECKS: usize = 2;

/// So many wrong guesses of a client in a minute are answered as fast as they can be; later ones wait.
const FREE_MISSES: u32 = 10;
const MISS_MEMORY: Duration = Duration::from_mins(1);
const MISS_WAIT: Duration = Duration::from_secs(1);

/// So many clients and right passwords are remembered at once.
const MOST: usize = 10_000;

/// Holds credentials against a file of users.
pub struct Gate {
    users: Arc<Users>,
    key: [u8; 32],
    known: Mutex<HashSet<[u8; 32]>>,
    checks: Arc<Semaphore>,
    misses: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// Finds out whom a request comes from, as far as that is asked.
///
/// # Errors
/// [`Failure::Stranger`] where it must be proven, and is not.
pub(super) async fn identify(
    snapshot: &Snapshot,
    given: Given,
    tracker: &TaskTracker,
    exchange: &mut Exchange,
) -> Result<Claim, Failure> {
    let presence = exchange.presence().clone();
    let labels = snapshot.policy.labels;
    if let Some(name) = &presence.proven {
        let said = match given {
            Given::Basic(Credentials { name, .. }) => Claim::of(&name, labels),
            Given::Nothing | Given::Other => Claim::NONE,
        };
        return Ok(Claim {
            user: Some(name.clone()),
            is_proven: true,
            ..said
        });
    }
    let asked = snapshot.gate.as_ref().filter(|_| presence.asks_who);
    let (credentials, gate) = match (given, asked) {
        (Given::Basic(credentials), Some(gate)) => (credentials, gate),
        (Given::Basic(credentials), None) => return Ok(Claim::of(&credentials.name, labels)),
        (Given::Nothing, Some(_)) => return Err(Stranger::Nameless.into()),
        (Given::Other, Some(_)) => return Err(Stranger::OtherScheme.into()),
        (Given::Nothing | Given::Other, None) => return Ok(Claim::NONE),
    };
    let mut claim = Claim::of(&credentials.name, labels);
    let name = claim.user.clone().unwrap_or_default();
    let client = presence.client.ip();
    if !gate
        .knows(&name, &credentials.password, client, tracker)
        .await
    {
        exchange.claims(&claim, labels, std::iter::empty());
        return Err(Stranger::Refused.into());
    }
    claim.is_proven = true;
    Ok(claim)
}

impl Proxy {
    /// Holds credentials against the file of users, where that is asked: before there is a request.
    pub(crate) async fn check(
        &self,
        credentials: &Credentials,
        exchange: &mut Exchange,
    ) -> Result<(), Failure> {
        let snapshot = self.snapshot.load_full();
        let given = Given::Basic(Credentials {
            name: credentials.name.clone(),
            password: credentials.password.clone(),
        });
        identify(&snapshot, given, &self.tracker, exchange).await?;
        Ok(())
    }
}

impl Gate {
    /// A gate that nobody has passed yet.
    pub fn new(users: Arc<Users>) -> Self {
        let mut key = [0; 32];
        if provider().secure_random.fill(&mut key).is_err() {
            tracing::error!(
                "the system gives no chance: passwords that were right are remembered under a guessable key"
            );
        }
        Self {
            users,
            key,
            known: Mutex::default(),
            checks: Arc::new(Semaphore::new(CHECKS)),
            misses: Mutex::default(),
        }
    }

    /// Whether it stands for these users.
    pub fn is_of(&self, users: &Arc<Users>) -> bool {
        self.users == *users
    }

    /// Whether there is such a user.
    pub(super) fn has(&self, name: &str) -> bool {
        self.users.hash_of(name).is_some()
    }

    /// Whether a user has this password.
    pub(crate) async fn knows(
        &self,
        name: &str,
        password: &Secret,
        client: IpAddr,
        tracker: &TaskTracker,
    ) -> bool {
        let digest = self.digest(name, password);
        if self.is_remembered(&digest) {
            return true;
        }
        if self.misses_of(client) >= FREE_MISSES {
            sleep(MISS_WAIT).await;
        }
        // The same work for names that are there and for others.
        let own = self.users.hash_of(name);
        let stand_in = self.users.stand_in(self.chance_of(name));
        let Some(hash) = own.or(stand_in).cloned() else {
            return false;
        };
        let Ok(turn) = self.checks.clone().acquire_owned().await else {
            return false;
        };
        // Another request of the same client may have waited for the same answer.
        if self.is_remembered(&digest) {
            return true;
        }
        let password = password.clone();
        let check = tracker.spawn_blocking(move || {
            let _turn = turn;
            is_right(&password, &hash)
        });
        let knows = check.await.unwrap_or(false) && own.is_some();
        if knows {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(digest);
        } else {
            self.miss(client);
        }
        knows
    }

    fn is_remembered(&self, digest: &[u8; 32]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(digest)
    }

    fn digest(&self, name: &str, password: &Secret) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.key);
        // So that no letter can move from one to the other.
        digest.update((name.len() as u64).to_be_bytes());
        digest.update(name);
        digest.update(password.reveal());
        digest.finalize().into()
    }

    /// A number that is always the same for a name, and that nobody else knows.
    fn chance_of(&self, name: &str) -> u64 {
        let digest = self.digest(name, &Secret::new(""));
        digest
            .iter()
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn misses_of(&self, client: IpAddr) -> u32 {
        let misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        match misses.get(&client) {
            Some((count, since)) if since.elapsed() < MISS_MEMORY => *count,
            _ => 0,
        }
    }

    fn miss(&self, client: IpAddr) {
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        if misses.len() >= MOST && !misses.contains_key(&client) {
            misses.retain(|_, (_, since)| since.elapsed() < MISS_MEMORY);
            if misses.len() >= MOST {
                misses.clear();
            }
        }
        let (count, since) = misses.entry(client).or_insert((0, Instant::now()));
        if since.elapsed() >= MISS_MEMORY {
            (*count, *since) = (0, Instant::now());
        }
        *count += 1;
    }
}

/// Holds a password against a hash. How long that takes depends on the hash's parameters alone.
fn is_right(password: &Secret, hash: &Secret) -> bool {
    let checked = Argon2::default().verify_password(password.reveal().as_bytes(), hash.reveal());
    checked.is_ok()
}

#[cfg(test)]
mod tests;
