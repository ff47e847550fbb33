//! Asks name servers for both families of a name, under each name of the search list.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::net::{NetError, NoRecords};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use rustls::ClientConfig;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use uuid::Uuid;

use super::Resolved;
use super::aside::Aside;
use super::error::code_of;
use super::facts::{Asked, Facts, Transport};
use super::journal::Journal;
use super::provider::Sockets;
use super::tap::Tap;
use super::told::{Told, facts_of, missed};
use super::way::Way;
use crate::policy::dns::Prefer;

/// With the addresses of one family there, the other is waited for no longer than this. RFC 8305,
/// section 3, advises 50 ms; rules judge addresses, so a little more is given to have them all.
const STRAGGLER: Duration = Duration::from_millis(250);

/// What was asked for no longer ago than this is not asked for anew.
const JUST_NOW: Duration = Duration::from_secs(1);

/// A zone is asked for a name that cannot exist no more often than this, and for no longer than that.
const ONCE_IN: Duration = Duration::from_mins(5);
const SIBLING: Duration = Duration::from_secs(1);
/// Zones whose denials are remembered.
const ZONES: usize = 256;

/// Some name servers and the search list that goes with them.
///
/// The library's own lookup of both families waits for the slower one whatever it has, tells the
/// error of A only, and of a search list the last one.
pub(super) struct Asker {
    dns: hickory_resolver::Resolver<Tap>,
    pub(super) journal: Arc<Journal>,
    /// Whom a policy names; nothing for the system's.
    pub(super) who: Option<Who>,
    /// The way to it.
    pub(super) way: Arc<Way>,
    search: Vec<Name>,
    ndots: usize,
    /// Whether a denial in a zone has an SOA record; nothing while it is asked for.
    denials: Mutex<HashMap<Name, (Instant, Option<bool>)>>,
    /// What serves while others are asked for.
    pub(super) aside: Aside,
}

/// A name server of a policy.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) name: Arc<str>,
    pub(super) transport: Transport,
    pub(super) addresses: Vec<SocketAddr>,
    /// Connections to it take a route.
    pub(super) is_led: bool,
}

/// The addresses of a name.
#[derive(Debug)]
pub(super) struct Found {
    /// IPv6 first.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) facts: Facts,
}

/// Why a name has none.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) error: NetError,
    pub(super) facts: Facts,
    /// The name, if it was denied without an SOA record.
    pub(super) unsigned: Option<Name>,
}

/// The addresses of one family, and for how long they hold.
pub(super) type Family = (Vec<IpAddr>, Option<u32>);

impl Asker {
    pub(super) fn new(
        config: ResolverConfig,
        options: ResolverOpts,
        who: Option<Who>,
        tls: Option<ClientConfig>,
        room: Arc<Semaphore>,
    ) -> Result<Self, NetError> {
        let (domain, mut search, servers) = config.into_parts();
        if search.is_empty() {
            search.extend(domain);
        }
        let ndots = options.ndots;
        let journal = Arc::<Journal>::default();
        let way = Arc::new(Way::new(who.as_ref().is_some_and(|who| who.is_led)));
        let tap = Tap {
            sockets: Sockets::new(journal.clone(), way.clone()),
            journal: journal.clone(),
            is_alone: servers.len() < 2,
            room,
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut dns =
            hickory_resolver::Resolver::builder_with_config(config, tap).with_options(options);
        if let Some(tls) = tls {
            dns = dns.with_tls_config(tls);
        }
        Ok(Self {
            dns: dns.build()?,
            journal,
            who,
            way,
            search,
            ndots,
            denials: Mutex::default(),
            aside: Aside::default(),
        })
    }

    /// Forgets every answer.
    pub(super) fn forget(&self) {
        self.dns.clear_cache();
        self.aside.clear();
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        denials.clear();
    }

    /// Puts what is remembered of a name aside, so that it is asked for anew and yet serves until there is an answer; says
    /// whether it is to be asked for: not where it was just now, unless that is still going on.
    pub(super) fn set_aside(&self, name: &str, prefer: Prefer, found: Resolved) -> bool {
        let names = name_of(name).map_or_else(|_| Vec::new(), |name| self.candidates(name));
        let kinds = [RecordType::A, RecordType::AAAA];
        let mut questions: Vec<_> = names
            .into_iter()
            .flat_map(|name| kinds.map(|kind| (name.clone(), kind)))
            .collect();
        questions.retain(|(name, kind)| {
            let last = self.journal.last(name, *kind);
            last.is_none_or(|(_, asked)| asked.elapsed() >= JUST_NOW)
                || self.journal.is_asked(name, *kind)
        });
        if questions.is_empty() || !self.aside.put(name, prefer, found) {
            return false;
        }
        for (name, kind) in questions {
            self.dns.clear_lookup_cache(name, kind);
        }
        true
    }

    /// Adds whom we meant to ask, where nothing came of it.
    pub(super) fn tell(&self, error: &NetError, facts: &mut Facts) {
        let Some(who) = &self.who else { return };
        if facts.asked.is_empty() {
            let asked = |server: &SocketAddr| Asked {
                server: *server,
                transport: who.transport,
                times: 1,
            };
            facts.asked = who.addresses.iter().map(asked).collect();
        }
        if facts.server.is_none() && who.transport.is_secure() && self.is_unasked(error) {
            facts.server = who.addresses.first().copied();
            facts.transport = Some(who.transport);
        }
    }

    /// Whether an error says that no server could be asked, rather than what one said or kept to itself.
    pub(super) fn is_unasked(&self, error: &NetError) -> bool {
        let is_reached = |server: &SocketAddr| self.journal.peer(*server).is_reached;
        if let NetError::Io(_) = error {
            code_of(error).is_none()
        } else if let NetError::Timeout = error {
            !self.addresses().iter().any(is_reached)
        } else {
            matches!(error, NetError::NoConnections)
        }
    }

    /// Why a connection to one of the servers of a policy did not come about.
    pub(super) fn trouble(&self) -> Option<Arc<io::Error>> {
        let trouble = |server: &SocketAddr| self.journal.peer(*server).trouble;
        self.addresses().iter().find_map(trouble)
    }

    fn addresses(&self) -> &[SocketAddr] {
        self.who.as_ref().map_or(&[], |who| &who.addresses)
    }

    /// The addresses of the first name of the search list that has any, within `limit`.
    pub(super) async fn ask(
        &self,
        name: &str,
        prefer: Prefer,
        limit: Duration,
    ) -> Result<Found, Missed> {
        let deadline = Instant::now() + limit;
        let name = name_of(name).map_err(Missed::from)?;
        let labels = name.num_labels();
        let mut failure: Option<Missed> = None;
        for name in self.candidates(name) {
            let mut asked = self.families(&name, prefer, deadline).await;
            let facts = match &mut asked {
                Ok(found) => &mut found.facts,
                Err(missed) => &mut missed.facts,
            };
            facts.question = Some(name.to_string().trim_end_matches('.').to_owned());
            facts.is_suffixed = name.num_labels() > labels;
            let missed = match asked {
                Ok(found) => return Ok(found),
                Err(missed) => missed,
            };
            // Where no server answers, none will for the next name.
            let ends_here = code_of(&missed.error).is_none();
            if failure
                .as_ref()
                .is_none_or(|earlier| is_more_telling(&missed.error, &earlier.error))
            {
                failure = Some(missed);
            }
            if ends_here {
                break;
            }
        }
        Err(failure.unwrap_or_else(|| NetError::NoConnections.into()))
    }

    /// Whether the zone of a denied name denies others with an SOA record, as RFC 2308 asks for: a name that cannot exist
    /// is asked for, right now.
    pub(super) async fn denies_with_soa(&self, name: &Name, limit: Duration) -> bool {
        let zone = name.base_name();
        {
            let mut denials = self.denials();
            if let Some((since, denial)) = denials.get(&zone)
                && since.elapsed() < ONCE_IN
            {
                return *denial == Some(true);
            }
            if denials.len() >= ZONES {
                denials.retain(|_, (since, _)| since.elapsed() < ONCE_IN);
            }
            if denials.len() >= ZONES {
                return false;
            }
            denials.insert(zone.clone(), (Instant::now(), None));
        }
        let random = Uuid::now_v7().simple().to_string();
        let label = format!("x{}", random.get(20..).unwrap_or_default());
        let Ok(mut sibling) = zone.prepend_label(label.as_str()) else {
            return false;
        };
        sibling.set_fqdn(true);
        let open = self.journal.open(&sibling, RecordType::A);
        let asking = self.dns.lookup(sibling, RecordType::A);
        let _ = timeout(limit.min(SIBLING), asking).await;
        let reply = open.read().0.read().reply;
        let has_soa =
            reply.is_some_and(|reply| reply.code == ResponseCode::NXDomain && reply.has_soa);
        self.denials().insert(zone, (Instant::now(), Some(has_soa)));
        has_soa
    }

    fn denials(&self) -> std::sync::MutexGuard<'_, HashMap<Name, (Instant, Option<bool>)>> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name as it is and under each suffix, in the order of resolv.conf(5).
    fn candidates(&self, mut name: Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name];
        }
        let under = |suffix: &Name| name.clone().append_domain(suffix).ok();
        let mut names: Vec<_> = self.search.iter().filter_map(under).collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        name.set_fqdn(true);
        let place = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(place, name);
        names
    }

    async fn families(
        &self,
        name: &Name,
        prefer: Prefer,
        deadline: Instant,
    ) -> Result<Found, Missed> {
        let only = match prefer {
            Prefer::Happy | Prefer::V4 | Prefer::V6 => {
                return self.both_families(name, deadline).await;
            }
            Prefer::V4Only => RecordType::A,
            Prefer::V6Only => RecordType::AAAA,
        };
        let open = self.journal.open(name, only);
        let asking = timeout_at(deadline, self.one_family(name, only));
        let told = Told::new(asking.await.ok(), open.read());
        match told.got {
            Ok((addresses, ttl)) => Ok(Found {
                addresses,
                facts: facts_of(vec![told.page], ttl),
            }),
            Err(error) => Err(missed(name, error, vec![told.page])),
        }
    }

    async fn both_families(&self, name: &Name, deadline: Instant) -> Result<Found, Missed> {
        let open_v6 = self.journal.open(name, RecordType::AAAA);
        let open_v4 = self.journal.open(name, RecordType::A);
        let mut v6 = pin!(self.one_family(name, RecordType::AAAA));
        let mut v4 = pin!(self.one_family(name, RecordType::A));
        let (mut got_v6, mut got_v4) = (None, None);
        while got_v6.is_none() || got_v4.is_none() {
            let has_some = matches!(got_v6, Some(Ok(_))) || matches!(got_v4, Some(Ok(_)));
            tokio::select! {
                got = &mut v6, if got_v6.is_none() => got_v6 = Some(got),
                got = &mut v4, if got_v4.is_none() => got_v4 = Some(got),
                () = sleep(STRAGGLER), if has_some => break,
                () = sleep_until(deadline) => break,
            }
        }
        let (v6, v4) = (
            Told::new(got_v6, open_v6.read()),
            Told::new(got_v4, open_v4.read()),
        );
        match (v6.got, v4.got) {
            (Err(v6_error), Err(v4_error)) => {
                let (error, told, other) = if is_told_of_v6(&v6_error, &v4_error) {
                    (v6_error, v6.page, v4.page)
                } else {
                    (v4_error, v4.page, v6.page)
                };
                Err(missed(name, error, vec![told, other]))
            }
            (v6_got, v4_got) => {
                // What answered is told first: of A, where both did, since each host has that.
                let pages = if v4_got.is_ok() {
                    vec![v4.page, v6.page]
                } else {
                    vec![v6.page, v4.page]
                };
                let found: Vec<Family> = [v6_got, v4_got].into_iter().flatten().collect();
                let ttl = found.iter().filter_map(|(_, ttl)| *ttl).min();
                Ok(Found {
                    addresses: found.into_iter().flat_map(|(found, _)| found).collect(),
                    facts: facts_of(pages, ttl),
                })
            }
        }
    }

    async fn one_family(&self, name: &Name, kind: RecordType) -> Result<Family, NetError> {
        let lookup = match self.dns.lookup(name.clone(), kind).await {
            // Kept connections that have ended, one after another: the next is a new one.
            Err(error) if self.keeps_connections() && is_of_connection(&error) => {
                self.dns.lookup(name.clone(), kind).await?
            }
            lookup => lookup?,
        };
        let answers = lookup.answers();
        let found: Vec<_> = answers
            .iter()
            .filter_map(|record| record.data.ip_addr())
            .collect();
        if found.is_empty() {
            // An alias that leads nowhere.
            let query = Query::query(name.clone(), kind);
            return Err(NoRecords::new(query, ResponseCode::NoError).into());
        }
        Ok((found, answers.iter().map(|record| record.ttl).min()))
    }
}

impl Asker {
    fn keeps_connections(&self) -> bool {
        let who = self.who.as_ref();
        who.is_some_and(|who| !matches!(who.transport, Transport::Udp))
    }
}

/// Whether nobody was heard, for another reason than silence.
fn is_of_connection(error: &NetError) -> bool {
    code_of(error).is_none() && !matches!(error, NetError::Timeout)
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker")
            .field("search", &self.search)
            .finish_non_exhaustive()
    }
}

impl Missed {
    /// Whether a server says that the name has no addresses: silence, or a server that cannot say, leaves that open.
    pub(super) fn is_denial(&self) -> bool {
        let code = code_of(&self.error);
        matches!(code, Some(ResponseCode::NXDomain | ResponseCode::NoError))
    }
}

impl From<NetError> for Missed {
    fn from(error: NetError) -> Self {
        Self {
            error,
            facts: Facts::default(),
            unsigned: None,
        }
    }
}

/// A name for a query. Every label of a canonical host may be asked for; the library's own reading of text refuses an
/// underscore inside a label, as container names have it.
pub(super) fn name_of(name: &str) -> Result<Name, NetError> {
    let labels = name.split('.').map(str::as_bytes);
    let mut name = Name::from_labels(labels)?;
    name.set_fqdn(false);
    Ok(name)
}

/// Which failure is told of a name whose two families both failed. NXDOMAIN holds for all types of a name;
/// beside "no such record" it is only a server's way to say that.
fn is_told_of_v6(v6: &NetError, v4: &NetError) -> bool {
    match (code_of(v4), code_of(v6)) {
        (Some(ResponseCode::NoError), Some(ResponseCode::NXDomain)) => false,
        (Some(ResponseCode::NXDomain), Some(ResponseCode::NoError)) => true,
        (Some(ResponseCode::NXDomain), _) => false,
        (_, Some(ResponseCode::NXDomain)) => true,
        _ => is_more_telling(v6, v4),
    }
}

/// A server's failure before silence, that before a missing address, that before a missing name;
/// the earlier one where they are alike.
fn is_more_telling(later: &NetError, earlier: &NetError) -> bool {
    let rank = |error: &NetError| match (code_of(error), error) {
        (Some(ResponseCode::NXDomain), _) => 0,
        (Some(ResponseCode::NoError), _) => 1,
        (None, NetError::Timeout | NetError::NoConnections | NetError::Io(_)) => 2,
        _ => 3,
    };
    rank(later) > rank(earlier)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    #[tokio::test]
    async fn the_search_list_is_walked_in_its_order() {
        let order = |ndots, search: &[&str], name: &str| {
            let search = search.iter().map(|s| Name::from_str(s).unwrap()).collect();
            let config = ResolverConfig::from_parts(None, search, Vec::new());
            let mut options = ResolverOpts::default();
            options.ndots = ndots;
            let room = Arc::new(Semaphore::new(1));
            let asker = Asker::new(config, options, None, None, room).unwrap();
            let names = asker.candidates(Name::from_ascii(name).unwrap());
            let names: Vec<_> = names.iter().map(Name::to_string).collect();
            names.join(" ")
        };
        let usual = &["corp.example.", "x.example."];
        assert_eq!(
            order(1, usual, "git"),
            "git.corp.example. git.x.example. git."
        );
        assert_eq!(
            order(1, usual, "a.b"),
            "a.b. a.b.corp.example. a.b.x.example."
        );
        assert_eq!(order(1, usual, "a.b."), "a.b.");
        assert_eq!(order(5, &["svc."], "a.b.c"), "a.b.c.svc. a.b.c.");
    }

    #[test]
    fn of_two_failures_the_more_telling_is_told() {
        let none = |code| NetError::from(NoRecords::new(Query::new(), code));
        let (missing, empty) = (
            || none(ResponseCode::NXDomain),
            || none(ResponseCode::NoError),
        );
        let failed = || none(ResponseCode::ServFail);
        for (v4, v6, expected) in [
            (missing(), empty(), ResponseCode::NoError),
            (empty(), missing(), ResponseCode::NoError),
            (empty(), failed(), ResponseCode::ServFail),
            (failed(), missing(), ResponseCode::NXDomain),
            (NetError::Timeout, failed(), ResponseCode::ServFail),
        ] {
            let told = if is_told_of_v6(&v6, &v4) { v6 } else { v4 };
            assert_eq!(code_of(&told), Some(expected));
        }
        assert!(is_told_of_v6(&NetError::Timeout, &empty()));
        assert!(!is_more_telling(&missing(), &failed()));
    }
}
