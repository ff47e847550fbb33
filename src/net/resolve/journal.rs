//! What name servers said, by question. The library tells the records only: which server gave them, how, and what it said
//! beside them is kept here, for the lookups that wait and for those that are answered from memory later.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_resolver::proto::op::{DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::facts::{Asked, Extended, Transport};

/// As many questions as answers are remembered; the older half goes when there are more.
const PAGES: usize = 4096;
/// No lookup lasts longer: what comes later belongs to another one.
const LONGEST: Duration = Duration::from_secs(10);
/// How long a name stays contested.
const CONTESTED: Duration = Duration::from_mins(10);
/// Whom a lookup asked is told up to this many.
const ASKED: usize = 8;
/// How long a server is asked without an OPT record, once it seemed not to take one.
const PLAIN: Duration = Duration::from_mins(10);
/// Sockets that are watched for a second reply, at a time.
const WATCHED: usize = 64;

/// A name and the type of its records.
pub(super) type Question = (Name, RecordType);

/// What name servers said.
pub(super) struct Journal {
    pages: Mutex<HashMap<Question, Page>>,
    peers: Mutex<HashMap<SocketAddr, Peer>>,
    /// The room for sockets that are watched.
    pub(super) watched: Arc<Semaphore>,
}

struct Page {
    story: Arc<Story>,
    opened: Instant,
    /// The lookups that wait for it.
    readers: u32,
    /// The story is of an earlier lookup: whatever is written next begins another one.
    is_old: bool,
}

/// What is known of a name server.
#[derive(Clone, Default)]
pub(super) struct Peer {
    /// Why TCP to it failed last.
    pub(super) tcp: Option<Arc<io::Error>>,
    /// A connection to it stood when it was last tried.
    pub(super) is_reached: bool,
    /// Why the last connection to it did not come about: the library keeps it to itself.
    pub(super) trouble: Option<Arc<io::Error>>,
    /// It has answered a question with an OPT record.
    pub(super) takes_edns: bool,
    /// Since when it is asked without one.
    plain_since: Option<Instant>,
}

impl Peer {
    /// Whether it is to be asked without an OPT record.
    pub(super) fn is_plain(&self) -> bool {
        self.plain_since
            .is_some_and(|since| since.elapsed() < PLAIN)
    }

    /// From now on for a while it is, or is not.
    pub(super) fn set_plain(&mut self, is_plain: bool) {
        self.plain_since = is_plain.then(Instant::now);
    }
}

/// What was said to one question.
#[derive(Debug, Default)]
pub(super) struct Story(Mutex<Seen>);

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) asked: Vec<Asked>,
    /// The reply that counts.
    pub(super) reply: Option<Reply>,
    /// The server whose reply by UDP was truncated.
    pub(super) truncated: Option<SocketAddr>,
    /// Why a server could not be reached: the library keeps it to itself.
    pub(super) error: Option<Arc<io::Error>>,
    /// Datagrams with another id or question.
    pub(super) strays: u32,
    /// Since when the question waits for room, and how long it has waited before.
    waits: Option<Instant>,
    waited: Duration,
    /// Further replies with other data.
    others: u32,
}

/// One server's reply.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) server: SocketAddr,
    pub(super) transport: Transport,
    pub(super) code: ResponseCode,
    pub(super) ede: Option<Extended>,
    /// An SOA record stands in its authority section, as a denial has it (RFC 2308, section 3).
    pub(super) has_soa: bool,
    pub(super) is_truncated: bool,
    pub(super) records: u32,
}

/// A page that a lookup waits for.
pub(super) struct Open<'a> {
    journal: &'a Journal,
    question: Question,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            pages: Mutex::default(),
            peers: Mutex::default(),
            watched: Arc::new(Semaphore::new(WATCHED)),
        }
    }
}

impl Journal {
    /// Opens the page of a question, for a lookup that begins.
    pub(super) fn open(&self, name: &Name, kind: RecordType) -> Open<'_> {
        let question = question_of(name, kind);
        let mut pages = self.pages();
        let page = page_of(&mut pages, &question);
        page.is_old |= page.readers == 0;
        page.readers += 1;
        Open {
            journal: self,
            question,
        }
    }

    /// The story that goes on, for those who ask and hear.
    pub(super) fn story(&self, query: &Query) -> Arc<Story> {
        let question = question_of(query.name(), query.query_type());
        let mut pages = self.pages();
        let page = page_of(&mut pages, &question);
        if page.is_old || page.readers == 0 && page.opened.elapsed() > LONGEST {
            page.story = Arc::default();
            page.opened = Instant::now();
            page.is_old = false;
        }
        page.story.clone()
    }

    /// What was said last, and when the asking began.
    pub(super) fn last(&self, name: &Name, kind: RecordType) -> Option<(Arc<Story>, Instant)> {
        let pages = self.pages();
        let page = pages.get(&question_of(name, kind))?;
        Some((page.story.clone(), page.opened))
    }

    /// Whether a lookup waits for what will be said.
    pub(super) fn is_asked(&self, name: &Name, kind: RecordType) -> bool {
        let pages = self.pages();
        let page = pages.get(&question_of(name, kind));
        page.is_some_and(|page| page.readers > 0)
    }

    /// Whether different answers came for a name, of either family, in the last minutes.
    pub(super) fn is_contested(&self, name: &Name) -> bool {
        let kinds = [RecordType::A, RecordType::AAAA];
        kinds.iter().any(|kind| {
            self.last(name, *kind).is_some_and(|(story, opened)| {
                story.replies() > Some(1) && opened.elapsed() < CONTESTED
            })
        })
    }

    /// What is known of a server.
    pub(super) fn peer(&self, server: SocketAddr) -> Peer {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&server).cloned().unwrap_or_default()
    }

    /// Notes something of a server. There are as many as resolv.conf names.
    pub(super) fn note(&self, server: SocketAddr, note: impl FnOnce(&mut Peer)) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        note(peers.entry(server).or_default());
    }

    fn pages(&self) -> MutexGuard<'_, HashMap<Question, Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn question_of(name: &Name, kind: RecordType) -> Question {
    let mut name = name.clone();
    name.set_fqdn(true);
    (name, kind)
}

fn page_of<'a>(pages: &'a mut HashMap<Question, Page>, question: &Question) -> &'a mut Page {
    if pages.len() >= PAGES && !pages.contains_key(question) {
        let mut ages: Vec<Instant> = pages.values().map(|page| page.opened).collect();
        let (_, middle, _) = ages.select_nth_unstable(PAGES / 2);
        let middle = *middle;
        pages.retain(|_, page| page.readers > 0 || page.opened > middle);
    }
    pages.entry(question.clone()).or_insert_with(|| Page {
        story: Arc::default(),
        opened: Instant::now(),
        readers: 0,
        is_old: false,
    })
}

impl Open<'_> {
    /// The story of this lookup, and whether it is an earlier one's, as for an answer from memory.
    pub(super) fn read(&self) -> (Arc<Story>, bool) {
        let mut pages = self.journal.pages();
        let page = page_of(&mut pages, &self.question);
        (page.story.clone(), page.is_old)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(page) = self.journal.pages().get_mut(&self.question) {
            page.readers = page.readers.saturating_sub(1);
        }
    }
}

impl Story {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is seen until now.
    pub(super) fn read(&self) -> Seen {
        self.seen().clone()
    }

    /// How many different replies came; nothing before the first.
    pub(super) fn replies(&self) -> Option<u32> {
        let seen = self.seen();
        seen.reply.is_some().then(|| seen.others + 1)
    }

    /// Notes that a server is asked.
    pub(super) fn asks(&self, server: SocketAddr, transport: Transport) {
        let mut seen = self.seen();
        let known = seen
            .asked
            .iter_mut()
            .find(|asked| (asked.server, asked.transport) == (server, transport));
        if let Some(asked) = known {
            asked.times += 1;
        } else if seen.asked.len() < ASKED {
            seen.asked.push(Asked {
                server,
                transport,
                times: 1,
            });
        }
    }

    /// Notes a reply. A good one counts before a failure, and of failures one that says why.
    pub(super) fn hears(&self, reply: Reply) {
        let mut seen = self.seen();
        if reply.is_truncated && reply.transport == Transport::Udp {
            seen.truncated = Some(reply.server);
        }
        let worth = |reply: &Reply| {
            let is_good = !reply.is_truncated && !is_unhelpful(reply.code);
            (is_good, !reply.is_truncated, reply.ede.is_some())
        };
        if seen
            .reply
            .as_ref()
            .is_none_or(|earlier| worth(&reply) >= worth(earlier))
        {
            seen.reply = Some(reply);
        }
    }

    /// Notes that a server cannot be reached.
    pub(super) fn fails(&self, error: &Arc<io::Error>) {
        self.seen().error = Some(error.clone());
    }

    /// Notes whether the question waits for room.
    pub(super) fn queues(&self, is_queued: bool) {
        let mut seen = self.seen();
        seen.waited = seen.waited();
        seen.waits = is_queued.then(Instant::now);
    }

    /// Notes a datagram that answers something else.
    pub(super) fn strays(&self) {
        self.seen().strays += 1;
    }

    /// Notes a further reply with other data.
    pub(super) fn hears_another(&self) {
        self.seen().others += 1;
    }
}

impl Seen {
    /// How long the question has waited for room.
    pub(super) fn waited(&self) -> Duration {
        self.waited + self.waits.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Reply {
    pub(super) fn of(server: SocketAddr, transport: Transport, response: &DnsResponse) -> Self {
        let options = response.edns.as_ref();
        let ede = options.and_then(|edns| edns.option(Extended::OPTION));
        Self {
            server,
            transport,
            code: response.metadata.response_code,
            ede: ede.and_then(Extended::read),
            has_soa: response.soa().is_some(),
            is_truncated: response.metadata.truncation,
            records: u32::try_from(response.answers.len()).unwrap_or(u32::MAX),
        }
    }
}

/// The codes at which resolv.conf(5) clients go on to the next server.
pub(super) fn is_unhelpful(code: ResponseCode) -> bool {
    matches!(
        code,
        ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused
    )
}
