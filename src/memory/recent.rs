//! What is kept of recent records, each kind under its own bound.

use std::borrow::{Borrow, Cow};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::triage::{Passed, Trouble, Watch};
use crate::record::{Attempt, Outcome, Record};

/// Entries of one kind; half of them may be forgotten at once.
const MOST: usize = 4096;

/// Things kept for one entry.
pub(super) const FEW: usize = 16;

/// Failures kept for one target: as many as a circuit may be set to count.
const FAILURES: usize = 1000;

/// For how long what was seen counts.
pub(super) const WINDOW: Duration = Duration::from_mins(10);

/// The same for silences, of which each takes its time.
const SILENT_WINDOW: Duration = Duration::from_hours(1);

/// What recent requests showed.
#[derive(Debug, Default)]
pub(super) struct Recent {
    targets: Bounded<(Arc<str>, u16), TargetStory>,
    addresses: Bounded<SocketAddr, AddressStory>,
    /// Names whose trusted certificates a client rejected.
    rejecters: Bounded<IpAddr, Names>,
    /// Sites by the issuer that signed for them and is not trusted here.
    issuers: Bounded<String, Names>,
    /// Names whose certificates' dates do not hold.
    pub(super) misdated: Names,
    /// By hop, silences that ended a tunnel.
    silences: Vec<(Arc<str>, Silences)>,
    /// By hop, the longest silence that a tunnel outlived.
    survived: Vec<(Arc<str>, f64, Instant)>,
    /// What is looked at unasked, where that is wanted.
    pub(super) watch: Option<Watch>,
}

/// How long they were, in milliseconds, and when they ended.
type Silences = VecDeque<(f64, Instant)>;

/// What happened to one host and port.
#[derive(Debug, Default)]
pub(super) struct TargetStory {
    /// The moments of the failures since the last success.
    failures: VecDeque<Instant>,
    last_failure: Option<Failed>,
    /// How each hop went last.
    hops: Vec<(Arc<str>, bool, Instant)>,
    addresses: Vec<Place>,
    /// Successes of the last minute.
    successes: VecDeque<Instant>,
    /// What it is watched for, where targets are.
    pub(super) trouble: Option<Box<Trouble>>,
    /// Who passed, where targets are watched; the latest last.
    pub(super) passed: VecDeque<Passed>,
}

/// One address of a target.
#[derive(Debug)]
struct Place {
    ip: IpAddr,
    /// Who failed there since it was last fine, and when last.
    failed: Vec<(IpAddr, Instant)>,
    /// When it was last fine.
    fine: Option<Instant>,
}

/// A failure.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) cause: Cow<'static, str>,
    pub(super) hop: Option<Arc<str>>,
    pub(super) at: Instant,
}

/// What happened at one address and port, by the name in the ClientHello.
#[derive(Debug, Default)]
pub(super) struct AddressStory(VecDeque<Sighting>);

/// What became of the last ClientHello of one name.
#[derive(Debug)]
struct Sighting {
    name: String,
    answer: Answer,
    at: Instant,
    /// How often in a row it was so.
    streak: usize,
}

/// What became of a ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// TLS came back.
    Fine,
    /// Nobody acknowledged it, and nothing came back but perhaps a reset.
    Lost,
    /// Neither is clear.
    Unclear,
}

/// Names, each with the moment it was seen last.
#[derive(Debug, Default)]
pub(super) struct Names(VecDeque<(String, Instant)>);

impl Names {
    fn note(&mut self, name: &str, at: Instant) {
        self.0.retain(|(known, _)| known != name);
        push(&mut self.0, (name.to_owned(), at));
    }

    /// How many were seen lately.
    pub(super) fn count(&self) -> usize {
        let lately = |(_, at): &&(String, Instant)| at.elapsed() <= WINDOW;
        self.0.iter().filter(lately).count()
    }
}

impl TargetStory {
    pub(super) fn last_failure(&self) -> Option<&Failed> {
        self.last_failure.as_ref()
    }

    pub(super) fn failures_within(&self, last: Instant, within: Duration) -> usize {
        let counted = |at: &&Instant| last.saturating_duration_since(**at) <= within;
        self.failures.iter().filter(counted).count()
    }

    /// The other hops that failed lately; nothing where any hop was fine.
    pub(super) fn fails_elsewhere(&self, hop: &str) -> Option<Vec<&str>> {
        let mut lately = self.hops.iter().filter(|(_, _, at)| at.elapsed() <= WINDOW);
        if lately.clone().any(|(_, is_fine, _)| *is_fine) {
            return None;
        }
        let others: Vec<_> = lately
            .by_ref()
            .map(|(name, _, _)| &**name)
            .filter(|name| *name != hop)
            .collect();
        (!others.is_empty()).then_some(others)
    }

    /// Whether a hop was fine lately.
    pub(super) fn is_fine_by(&self, hop: &str) -> bool {
        let mut hops = self.hops.iter();
        hops.any(|(name, is_fine, at)| *is_fine && &**name == hop && at.elapsed() <= WINDOW)
    }

    /// Whether another hop was fine lately: its name.
    pub(super) fn fine_elsewhere(&self, hop: &str) -> Option<&str> {
        let fine = |(name, is_fine, at): &&(Arc<str>, bool, Instant)| {
            *is_fine && &**name != hop && at.elapsed() <= WINDOW
        };
        self.hops.iter().find(fine).map(|(name, _, _)| &**name)
    }

    /// How many clients failed lately at an address while another address of the target was fine. One of the same family:
    /// else it may be the family that fails.
    pub(super) fn fails_alone(&self, address: IpAddr) -> usize {
        let is_lately = |at: Instant| at.elapsed() <= WINDOW;
        let mut others = self
            .addresses
            .iter()
            .filter(|other| other.ip != address && other.ip.is_ipv4() == address.is_ipv4());
        if !others.any(|other| other.fine.is_some_and(is_lately)) {
            return 0;
        }
        let this = self.addresses.iter().find(|this| this.ip == address);
        this.map_or(0, |this| {
            let lately = this.failed.iter().filter(|(_, at)| is_lately(*at));
            lately.count()
        })
    }

    /// Successes of the last minute.
    pub(super) fn successes(&self) -> usize {
        let lately = |at: &&Instant| at.elapsed() <= Duration::from_mins(1);
        self.successes.iter().filter(lately).count()
    }

    fn address(&mut self, ip: IpAddr) -> Option<&mut Place> {
        if !self.addresses.iter().any(|known| known.ip == ip) {
            if self.addresses.len() >= FEW {
                self.addresses.remove(0);
            }
            self.addresses.push(Place {
                ip,
                failed: Vec::new(),
                fine: None,
            });
        }
        self.addresses.iter_mut().find(|known| known.ip == ip)
    }

    fn went(&mut self, hop: &Arc<str>, is_fine: bool, now: Instant) {
        self.hops.retain(|(known, _, _)| known != hop);
        if self.hops.len() >= FEW {
            self.hops.remove(0);
        }
        self.hops.push((hop.clone(), is_fine, now));
    }

    /// Forgets how hops went, of which `is_meant` says that they are meant, and a last failure that is one's, with those
    /// before it.
    fn forget_hops(&mut self, is_meant: impl Fn(&str) -> bool) {
        self.hops.retain(|(name, _, _)| !is_meant(name));
        let failed = self.last_failure.as_ref();
        if failed
            .and_then(|failed| failed.hop.as_deref())
            .is_some_and(is_meant)
        {
            self.last_failure = None;
            self.failures.clear();
        }
    }

    fn note(&mut self, record: &Record, now: Instant) {
        let is_fine = record.outcome == Outcome::Success;
        let peer = record
            .peer_address
            .filter(|_| record.upstream_name.is_none());
        for hop in failing_hops(record) {
            self.went(hop, false, now);
        }
        if let (true, Some(hop)) = (is_fine, &record.hop) {
            self.went(hop, true, now);
        }
        if is_fine {
            if let Some(trouble) = &mut self.trouble {
                trouble.is_over();
            }
            self.failures.clear();
            self.last_failure = None;
            self.successes.push_back(now);
            if self.successes.len() > 2 * FEW {
                self.successes.pop_front();
            }
            if let Some(place) = peer.and_then(|peer| self.address(peer)) {
                place.failed.clear();
                place.fine = Some(now);
            }
        } else if let Some(cause) = record.error_type.as_ref().filter(|cause| counts(cause)) {
            self.last_failure = Some(Failed {
                cause: cause.clone(),
                hop: failing_hop(record, cause).cloned(),
                at: now,
            });
            self.failures.push_back(now);
            if self.failures.len() > FAILURES {
                self.failures.pop_front();
            }
        }
        for ip in failing_addresses(record) {
            if let Some(place) = self.address(ip) {
                place
                    .failed
                    .retain(|(client, _)| *client != record.client_address);
                if place.failed.len() >= FEW {
                    place.failed.remove(0);
                }
                place.failed.push((record.client_address, now));
            }
        }
    }
}

/// The addresses of the target that did not do what was asked of them.
pub(super) fn failing_addresses(record: &Record) -> Vec<IpAddr> {
    if record.upstream_name.is_some() {
        return Vec::new();
    }
    let is_failure = |cause: &str| cause.starts_with("connect.") && counts(cause);
    let tried = record.attempts.iter().filter(|attempt| {
        let cause = attempt.cause.as_deref();
        cause.is_some_and(is_failure)
    });
    let mut failing: Vec<_> = tried
        .filter_map(|attempt| Some(attempt.address?.ip()))
        .collect();
    let is_peers = |cause: &str| cause.starts_with("tls.reset") || cause.starts_with("tls.no_");
    if record.error_type.as_deref().is_some_and(is_peers) {
        failing.extend(record.peer_address);
    }
    failing
}

/// The hops by which the target was not reached, or failed.
fn failing_hops(record: &Record) -> impl Iterator<Item = &Arc<str>> {
    let attempts = record.attempts.iter();
    let tried_in_vain = attempts.filter(|attempt| {
        let stood = |other: &Attempt| other.hop == attempt.hop && other.cause.is_none();
        attempt.cause.as_deref().is_some_and(counts) && !record.attempts.iter().any(stood)
    });
    let cause = record.error_type.as_ref().filter(|cause| counts(cause));
    let last = cause.and_then(|cause| failing_hop(record, cause));
    tried_in_vain.map(|attempt| &attempt.hop).chain(last)
}

/// The hop whose cause is told of a request: one that was tried in vain, else the one used last.
pub(super) fn failing_hop<'r>(record: &'r Record, cause: &str) -> Option<&'r Arc<str>> {
    let mut attempts = record.attempts.iter();
    let told = attempts.find(|attempt| attempt.cause.as_deref() == Some(cause));
    told.map(|attempt| &attempt.hop).or(record.hop.as_ref())
}

/// Whether a cause says something of the target, rather than of the client, the policy, an upstream or ourselves: of an
/// upstream, what it reports of the target and cannot mean of itself. What ends a tunnel that carried data says nothing of
/// the next one, and a host without a family, or an address that was overtaken, has tried nothing.
pub(super) fn counts(cause: &str) -> bool {
    let family = cause.split('.').next().unwrap_or_default();
    match family {
        "connect" => !matches!(cause, "connect.overtaken" | "connect.family_unsupported"),
        "upstream" => matches!(
            cause.strip_prefix("upstream.reported."),
            Some("dns" | "not_found" | "connect" | "timeout" | "tls")
        ),
        "tls" => cause == "tls.client_hello_blackholed" || !cause.starts_with("tls.client_"),
        "http" => !cause.starts_with("http.status."),
        _ => family == "dns",
    }
}

impl AddressStory {
    fn note(&mut self, name: &str, answer: Answer, at: Instant) {
        let before = self.0.iter().position(|seen| seen.name == name);
        let before = before.and_then(|place| self.0.remove(place));
        let goes_on = before.filter(|seen| seen.answer == answer && seen.at.elapsed() <= WINDOW);
        let sighting = Sighting {
            name: name.to_owned(),
            answer,
            at,
            streak: goes_on.map_or(1, |seen| seen.streak + 1),
        };
        push(&mut self.0, sighting);
    }

    /// How often in a row the ClientHello of a name was lost at this address.
    pub(super) fn losses(&self, name: &str) -> usize {
        let mut seen = self.0.iter();
        let lost = seen.find(|seen| seen.name == name && seen.answer == Answer::Lost);
        lost.map_or(0, |seen| seen.streak)
    }

    /// How long ago another name was answered at this address.
    pub(super) fn other_was_fine(&self, name: &str) -> Option<Duration> {
        let fine = self.others(name, Answer::Fine);
        fine.map(|seen| seen.at.elapsed()).min()
    }

    /// How many other names were lost at this address.
    pub(super) fn others_lost(&self, name: &str) -> usize {
        self.others(name, Answer::Lost).count()
    }

    fn others(&self, name: &str, answer: Answer) -> impl Iterator<Item = &Sighting> {
        self.0.iter().filter(move |seen| {
            seen.name != name && seen.answer == answer && seen.at.elapsed() <= WINDOW
        })
    }
}

impl Recent {
    /// What happened to a target lately.
    pub(super) fn target(&mut self, host: &str, port: u16) -> Option<&TargetStory> {
        self.targets
            .get(&(Arc::from(host), port))
            .map(|story| &*story)
    }

    /// The same, to be changed.
    pub(super) fn target_mut(&mut self, host: &Arc<str>, port: u16) -> Option<&mut TargetStory> {
        self.targets.get(&(host.clone(), port))
    }

    /// All of whom something is known.
    pub(super) fn stories(&mut self) -> impl Iterator<Item = (&(Arc<str>, u16), &mut TargetStory)> {
        self.targets.iter()
    }

    /// What happened at an address lately.
    pub(super) fn address(&mut self, address: SocketAddr) -> Option<&AddressStory> {
        self.addresses.get(&address).map(|story| &*story)
    }

    /// The silences that ended tunnels by this hop lately, in milliseconds.
    pub(super) fn silences(&self, hop: &str) -> impl Iterator<Item = f64> + Clone {
        let known = self.silences.iter().find(|(known, _)| **known == *hop);
        let lately = |(_, at): &&(f64, Instant)| at.elapsed() <= SILENT_WINDOW;
        let silences = known.into_iter().flat_map(|(_, silences)| silences);
        silences.filter(lately).map(|(ms, _)| *ms)
    }

    fn dies(&mut self, hop: &Arc<str>, ms: f64, now: Instant) {
        let known = self.silences.iter().position(|(known, _)| known == hop);
        let known = known.map(|place| self.silences.remove(place));
        let (hop, mut silences) = known.unwrap_or_else(|| (hop.clone(), Silences::new()));
        push(&mut silences, (ms, now));
        if self.silences.len() >= FEW {
            self.silences.remove(0);
        }
        self.silences.push((hop, silences));
    }

    /// The longest silence that a tunnel by this hop outlived lately, in milliseconds.
    pub(super) fn survived(&self, hop: &str) -> f64 {
        let known = self.survived.iter().find(|(known, ..)| **known == *hop);
        let lately = known.filter(|(_, _, at)| at.elapsed() <= SILENT_WINDOW);
        lately.map_or(0.0, |(_, ms, _)| *ms)
    }

    fn survives(&mut self, hop: &Arc<str>, ms: f64, now: Instant) {
        if self.survived(hop) > ms {
            return;
        }
        self.survived.retain(|(known, ..)| known != hop);
        if self.survived.len() >= FEW {
            self.survived.remove(0);
        }
        self.survived.push((hop.clone(), ms, now));
    }

    /// For how many sites lately this issuer, which is not trusted here, signed.
    pub(super) fn sites_of_issuer(&mut self, issuer: &str) -> usize {
        self.issuers.get(issuer).map_or(0, |names| names.count())
    }

    /// How many names with a trusted certificate a client rejected lately.
    pub(super) fn names_rejected_by(&mut self, client: IpAddr) -> usize {
        self.rejecters.get(&client).map_or(0, |names| names.count())
    }

    /// Forgets how hops went, of which `is_meant` says that they are meant by their names.
    pub(super) fn forget_hops(&mut self, is_meant: impl Fn(&str) -> bool) {
        for (_, target) in self.targets.iter() {
            target.forget_hops(&is_meant);
        }
    }

    /// Takes a record into account.
    pub(super) fn note(&mut self, record: &Record) {
        let (Some(host), Some(port)) = (&record.server_address, record.server_port) else {
            return;
        };
        let now = Instant::now();
        let story = self.targets.entry((host.clone(), port));
        story.note(record, now);
        if let Some(watch) = &mut self.watch {
            watch.note((host, port), story, record, now);
        }
        let cause = record.error_type.as_deref().unwrap_or_default();
        if cause.ends_with("_after_idle")
            && let (Some(silence), Some(hop)) = (record.idle_before_ms, &record.hop)
        {
            self.dies(hop, silence, now);
        }
        if let (Some(silence), Some(hop)) = (record.idle_survived_ms, &record.hop) {
            self.survives(hop, silence, now);
        }
        let Some(tls) = &record.tls else { return };
        if record.upstream_name.is_none()
            && let (Some(ip), Some(port)) = (record.peer_address, record.peer_port)
            && let Some(name) = &tls.server_name
        {
            let story = self.addresses.entry(SocketAddr::new(ip, port));
            story.note(name, answer(record), now);
        }
        match tls.certificate {
            Some("unknown_issuer") => {
                if let Some(issuer) = &tls.issuer {
                    let sites = self.issuers.entry(issuer.clone());
                    sites.note(site(host), now);
                }
            }
            Some("expired" | "not_yet_valid") => self.misdated.note(host, now),
            Some("valid") if super::suspects::is_rejection(cause) => {
                let names = self.rejecters.entry(record.client_address);
                names.note(host, now);
            }
            _ => {}
        }
    }
}

/// What became of a record's ClientHello.
fn answer(record: &Record) -> Answer {
    let tls = record.tls.as_ref();
    if tls.is_some_and(|tls| tls.server_flight_bytes.is_some()) {
        Answer::Fine
    } else if super::suspects::is_lost(record) {
        Answer::Lost
    } else {
        Answer::Unclear
    }
}

/// What names of one owner have in common, roughly: their last two labels. An address is alone.
fn site(host: &str) -> &str {
    if host.parse::<IpAddr>().is_ok() {
        return host;
    }
    let mut dots = host.trim_end_matches('.').rmatch_indices('.');
    let at = dots.nth(1).map_or(0, |(at, _)| at + 1);
    host.get(at..).unwrap_or(host)
}

/// Adds to what is kept, in place of the oldest where it is full.
pub(super) fn push<T>(list: &mut VecDeque<T>, item: T) {
    list.push_back(item);
    if list.len() > FEW {
        list.pop_front();
    }
}

/// A map that forgets: entries live in two generations, and the older one goes when the younger is full.
#[derive(Debug)]
struct Bounded<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }
}

impl<K, V> Bounded<K, V> {
    fn iter(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.young.iter_mut().chain(self.old.iter_mut())
    }
}

impl<K: Hash + Eq, V: Default> Bounded<K, V> {
    fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match self.young.get_mut(key) {
            Some(value) => Some(value),
            None => self.old.get_mut(key),
        }
    }

    fn entry(&mut self, key: K) -> &mut V {
        let kept = self.old.remove(&key);
        if self.young.len() >= MOST / 2 && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young
            .entry(key)
            .or_insert_with(|| kept.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_forgets_the_older_half() {
        let mut map = Bounded::<usize, usize>::default();
        for key in 0..MOST * 3 {
            *map.entry(key) = key;
            *map.entry(7) += 1;
        }
        assert!(map.young.len() + map.old.len() <= MOST + 2);
        assert!(map.get(&(MOST * 3 - 1)).is_some() && map.get(&8).is_none());
        assert_eq!(map.get(&7).copied(), Some(7 + MOST * 3 - 7));
    }

    #[test]
    fn what_is_met_again_in_a_full_map_is_kept() {
        let mut map = Bounded::<usize, usize>::default();
        for key in 0..MOST {
            *map.entry(key) = key;
        }
        assert_eq!((map.young.len(), *map.entry(1)), (MOST / 2, 1));
    }
}
