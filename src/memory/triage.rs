//! Which failing targets are to be looked at without being asked, and what the looks found.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::recent::{FEW, Recent, TargetStory, WINDOW, counts, failing_hop, push};
use super::suspects::is_rejection;
use super::{Memory, REMINDER};
use crate::policy::Triage;
use crate::record::{Action, DiagnosisKeys, Outcome, Record};
use crate::timeouts::Brief;

/// Targets that may wait for their look. What fails while these wait comes back as long as it fails.
const WAITING: usize = 4;

/// Others that are held against a target, on each way.
const CONTROLS: usize = 2;

/// What is looked at, and what waits for it.
#[derive(Debug)]
pub(super) struct Watch {
    triage: Triage,
    /// The policy under which failures and successes count.
    policy: Arc<str>,
    waiting: VecDeque<(Arc<str>, u16)>,
}

/// A target that keeps failing.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    streak: Option<Streak>,
    /// When it was last put among those that wait.
    looked_at: Option<Instant>,
    found: Option<Finding>,
}

/// What a look found.
#[derive(Debug)]
struct Finding {
    /// By which route.
    route: Arc<str>,
    diagnosis: Arc<Diagnosis>,
    at: Instant,
}

/// Like failures, with no success between.
#[derive(Debug)]
struct Streak {
    cause: Cow<'static, str>,
    request: Request,
    /// Since when the target fails by this route, of whatever cause.
    since: Instant,
    /// The hops that were tried, the latest last.
    hops: VecDeque<Arc<str>>,
    /// Those of them that refused who we are.
    refused: VecDeque<Arc<str>>,
    /// The addresses of the target that were dialled, the latest last.
    addresses: VecDeque<IpAddr>,
    moments: VecDeque<Instant>,
}

/// What was asked for, by whom, and what the policy said to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's address.
    pub client: IpAddr,
    /// The user's name.
    pub user: Option<Arc<str>>,
    /// The rule that decided.
    pub rule: Option<Arc<str>>,
    /// What it leads to.
    pub route: Arc<str>,
    /// Whether it is a plain request, rather than a tunnel.
    pub is_plain: bool,
    /// Whether TLS was spoken, as far as was seen.
    pub is_tls: bool,
}

/// How a target was last fine for a client, by a hop.
#[derive(Clone, Debug)]
pub(super) struct Passed {
    client: IpAddr,
    user: Option<Arc<str>>,
    hop: Arc<str>,
    /// Where it was, on the direct way.
    address: Option<IpAddr>,
    spoken: Manner,
    at: Instant,
}

/// What was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Plain,
    Tls,
}

/// A look that is to be taken.
#[derive(Clone, Debug)]
pub struct Due {
    /// The target's host.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// The cause of its failures.
    pub cause: Cow<'static, str>,
    /// One of the requests.
    pub request: Request,
    /// Since when the target fails by the request's route.
    pub since: Instant,
    /// The hops that such requests tried, without those that refused who we are.
    pub hops: Vec<Arc<str>>,
    /// The addresses of the target that such requests dialled.
    pub addresses: Vec<IpAddr>,
    /// The policy that they were served under.
    pub policy: Arc<str>,
    /// Where the client passed lately, by the name of the hop, the last one first.
    pub controls: BTreeMap<Arc<str>, Vec<Control>>,
}

/// Another target, which passed lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its host.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// Where it was, on the direct way.
    pub address: Option<IpAddr>,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// What is the matter: a stable id.
    pub verdict: &'static str,
    /// How sure that is.
    pub certainty: &'static str,
    /// The same in a sentence.
    pub sentence: Arc<str>,
    /// What speaks against it, or was not looked at.
    pub counter: Vec<String>,
    /// What to do.
    pub fix: Option<Arc<str>>,
}

/// A diagnosis, and its age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What was found.
    pub diagnosis: Arc<Diagnosis>,
    /// How long ago.
    pub ago: Duration,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Diagnosis {
            verdict, certainty, ..
        } = &*self.diagnosis;
        write!(f, "doctor {} ago: {verdict} ({certainty})", Brief(self.ago))
    }
}

impl Found {
    /// As a record tells it.
    pub(super) fn keys(&self) -> DiagnosisKeys {
        let Diagnosis {
            verdict,
            certainty,
            sentence,
            counter,
            fix,
        } = &*self.diagnosis;
        DiagnosisKeys {
            verdict,
            certainty,
            sentence: sentence.clone(),
            counter: counter.clone(),
            fix: fix.clone(),
            ago_s: self.ago.as_secs(),
        }
    }
}

impl Due {
    /// The others that are held against the target on a way.
    pub fn controls(&self, hop: &str) -> &[Control] {
        self.controls.get(hop).map_or(&[], |controls| controls)
    }
}

impl Trouble {
    /// The target is fine again.
    pub(super) fn is_over(&mut self) {
        self.streak = None;
        self.found = None;
    }
}

impl Watch {
    /// Takes a record of a target into account.
    pub(super) fn note(
        &mut self,
        (host, port): (&Arc<str>, u16),
        story: &mut TargetStory,
        record: &Record,
        now: Instant,
    ) {
        // What an older policy let pass says nothing of what this one does.
        if record.policy.as_ref() != Some(&self.policy) {
            return;
        }
        if record.outcome == Outcome::Success {
            if let Some(passed) = Passed::of(record, now) {
                let known = &mut story.passed;
                known.retain(|known| !known.is_like(&passed));
                known.push_back(passed);
                if known.len() > FEW {
                    known.pop_front();
                }
            }
            return;
        }
        if let Some(trouble) = &mut story.trouble
            && let Some(streak) = &mut trouble.streak
            && record.route.as_ref() == Some(&streak.request.route)
        {
            streak.note_refusals(record);
        }
        let Some(cause) = record.error_type.as_ref().filter(|cause| is_due(cause)) else {
            return;
        };
        let Some(request) = Request::of(record) else {
            return;
        };
        let trouble = story.trouble.get_or_insert_default();
        let fails = self.triage.fails as usize;
        let streak = Streak::go_on(&mut trouble.streak, cause.clone(), request, now);
        streak.add(record, now, fails);
        let counted = streak
            .moments
            .iter()
            .filter(|at| now.saturating_duration_since(**at) <= self.triage.within);
        let is_rested = trouble
            .looked_at
            .is_none_or(|at| now.saturating_duration_since(at) >= self.triage.every);
        if counted.count() >= fails && is_rested && self.waiting.len() < WAITING {
            trouble.looked_at = Some(now);
            self.waiting.push_back((host.clone(), port));
        }
    }
}

impl Streak {
    /// The failures before, where they were like this one.
    fn go_on<'s>(
        known: &'s mut Option<Self>,
        cause: Cow<'static, str>,
        request: Request,
        now: Instant,
    ) -> &'s mut Self {
        let before = known
            .take()
            .filter(|streak| streak.request.route == request.route);
        known.insert(match before {
            Some(streak) if streak.cause == cause => Self { request, ..streak },
            before => Self {
                cause,
                request,
                since: before.as_ref().map_or(now, |streak| streak.since),
                hops: VecDeque::new(),
                refused: before.map(|streak| streak.refused).unwrap_or_default(),
                addresses: VecDeque::new(),
                moments: VecDeque::new(),
            },
        })
    }

    fn add(&mut self, record: &Record, now: Instant, most: usize) {
        self.moments.push_back(now);
        if self.moments.len() > most {
            self.moments.pop_front();
        }
        let direct = record.attempts.iter().filter(|tried| *tried.hop == *DIRECT);
        let dialled = direct.filter_map(|tried| Some(tried.address?.ip()));
        for ip in dialled.chain(address(record)) {
            keep(&mut self.addresses, ip);
        }
        let tried = record.attempts.iter().map(|tried| &tried.hop);
        for hop in tried.chain(&record.hop) {
            keep(&mut self.hops, hop.clone());
        }
        self.note_refusals(record);
    }

    /// Notes who refused who we are: nobody is to be told that again unasked.
    fn note_refusals(&mut self, record: &Record) {
        let is_refusal = |cause: &Cow<'_, str>| cause.starts_with("upstream.auth_");
        let tried = record.attempts.iter();
        let tried = tried.filter(|tried| tried.cause.as_ref().is_some_and(is_refusal));
        let cause = record.error_type.as_ref().filter(|cause| is_refusal(cause));
        let last = cause.and_then(|cause| failing_hop(record, cause));
        for hop in tried.map(|tried| &tried.hop).chain(last) {
            keep(&mut self.refused, hop.clone());
        }
    }

    /// The hops that may be tried again.
    fn hops(&self) -> Vec<Arc<str>> {
        let hops = self.hops.iter();
        let hops = hops.filter(|hop| !self.refused.contains(hop));
        hops.cloned().collect()
    }
}

/// Keeps a thing among the latest, once.
fn keep<T: PartialEq>(list: &mut VecDeque<T>, item: T) {
    list.retain(|known| *known != item);
    push(list, item);
}

/// The hop that leads straight to the target.
const DIRECT: &str = "direct";

/// Where the target was, on the direct way.
fn address(record: &Record) -> Option<IpAddr> {
    let is_direct = record.hop.as_deref() == Some(DIRECT) && record.upstream_name.is_none();
    record.peer_address.filter(|_| is_direct)
}

impl Request {
    fn of(record: &Record) -> Option<Self> {
        Some(Self {
            client: record.client_address,
            user: record.user.clone(),
            rule: record.rule.clone(),
            route: record.route.clone()?,
            is_plain: record.action? == Action::Forward,
            is_tls: record.tls.is_some(),
        })
    }
}

impl Passed {
    fn of(record: &Record, at: Instant) -> Option<Self> {
        let tls = record.tls.as_ref();
        let spoken = match record.action? {
            Action::Forward => Manner::Plain,
            Action::Connect if tls.is_some_and(|tls| tls.server_flight_bytes.is_some()) => {
                Manner::Tls
            }
            Action::Connect => return None,
        };
        Some(Self {
            client: record.client_address,
            user: record.user.clone(),
            hop: record.hop.clone()?,
            address: address(record),
            spoken,
            at,
        })
    }

    /// Whether another one takes its place.
    fn is_like(&self, other: &Self) -> bool {
        let of = |passed: &Self| (passed.client, passed.spoken);
        of(self) == of(other) && self.user == other.user && self.hop == other.hop
    }

    /// Whether it was the client of a request that passed.
    fn is_of(&self, request: &Request) -> bool {
        self.client == request.client && self.user == request.user
    }
}

/// Whether a look can say something of a cause: not of what client, policy or we ourselves did, nor of what an upstream or
/// a server says clearly. Who refuses a password is not to be asked again.
fn is_due(cause: &str) -> bool {
    let (family, rest) = cause.split_once('.').unwrap_or((cause, ""));
    match family {
        "upstream" => {
            let is_said = [
                "auth_",
                "denied",
                "port_denied",
                "rate_limited",
                "loop",
                "pac_failed",
                "circuit_open",
                "drained",
                "all_down",
            ];
            !is_said.iter().any(|said| rest.starts_with(said))
        }
        "tunnel" => matches!(rest, "reset_by_server" | "no_ack" | "icmp"),
        _ => counts(cause) || is_rejection(cause),
    }
}

/// Whether who fails of a cause is told what was found before: where a look can say something of it, where the client did not
/// wait for that, or the target failed too often to be tried.
fn is_told(cause: &str) -> bool {
    is_due(cause) || cause.starts_with("client.gave_up.") || cause == "proxy.circuit_open"
}

impl Recent {
    /// Begins anew: of what was so under another policy nothing is left to look at, or to tell.
    fn watch(&mut self, triage: Option<Triage>, policy: Arc<str>) {
        for (_, story) in self.stories() {
            story.trouble = None;
            story.passed.clear();
        }
        self.watch = triage.map(|triage| Watch {
            triage,
            policy,
            waiting: VecDeque::new(),
        });
    }

    /// Whether a target waits for its look.
    pub(super) fn some_wait(&self) -> bool {
        let watch = self.watch.as_ref();
        watch.is_some_and(|watch| !watch.waiting.is_empty())
    }

    /// What the last look at a target found by a route, if it still counts, and says something of a cause.
    pub(super) fn found(
        &mut self,
        (host, port): (&str, u16),
        route: Option<&str>,
        cause: &str,
    ) -> Option<Found> {
        let every = self.watch.as_ref()?.triage.every;
        let trouble = self.target(host, port)?.trouble.as_ref()?;
        let finding = trouble.found.as_ref()?;
        let ago = finding.at.elapsed();
        let is_meant = Some(&*finding.route) == route && is_told(cause);
        (is_meant && ago <= every.max(REMINDER)).then(|| Found {
            diagnosis: finding.diagnosis.clone(),
            ago,
        })
    }

    /// The next target that waits, if it still fails.
    fn due(&mut self) -> Option<Due> {
        loop {
            let watch = self.watch.as_mut()?;
            let (host, port) = watch.waiting.pop_front()?;
            let policy = watch.policy.clone();
            let Some(trouble) = self
                .target_mut(&host, port)
                .and_then(|story| story.trouble.as_mut())
            else {
                continue;
            };
            let Some(streak) = &trouble.streak else {
                trouble.looked_at = None;
                continue;
            };
            let mut due = Due {
                host,
                port,
                cause: streak.cause.clone(),
                request: streak.request.clone(),
                since: streak.since,
                hops: streak.hops(),
                addresses: streak.addresses.iter().copied().collect(),
                policy,
                controls: BTreeMap::new(),
            };
            due.controls = self.controls(&due);
            return Some(due);
        }
    }

    /// Where the client passed lately, by each hop: those first where it did last.
    fn controls(&mut self, due: &Due) -> BTreeMap<Arc<str>, Vec<Control>> {
        let spoken = if due.request.is_plain {
            Manner::Plain
        } else {
            Manner::Tls
        };
        let mut passed: Vec<_> = self
            .stories()
            .filter(|((host, _), _)| *host != due.host)
            .flat_map(|(target, story)| story.passed.iter().map(move |passed| (target, passed)))
            .filter(|(_, passed)| passed.is_of(&due.request) && passed.spoken == spoken)
            .filter(|(_, passed)| passed.at.elapsed() <= WINDOW)
            .collect();
        passed.sort_by_key(|(_, passed)| Reverse(passed.at));
        let mut controls: BTreeMap<Arc<str>, Vec<Control>> = BTreeMap::new();
        for ((host, port), passed) in passed {
            let by_hop = controls.entry(passed.hop.clone()).or_default();
            if by_hop.len() < CONTROLS {
                by_hop.push(Control {
                    host: host.clone(),
                    port: *port,
                    address: passed.address,
                });
            }
        }
        controls
    }

    /// Keeps what a look found; not where all is well meanwhile, or another policy is at work.
    fn keep(&mut self, due: &Due, diagnosis: Diagnosis) {
        if self.watch.as_ref().map(|watch| &watch.policy) != Some(&due.policy) {
            return;
        }
        let story = self.target_mut(&due.host, due.port);
        if let Some(trouble) = story.and_then(|story| story.trouble.as_mut())
            && let Some(streak) = &trouble.streak
            && streak.request.route == due.request.route
            && streak.since == due.since
        {
            trouble.found = Some(Finding {
                route: due.request.route.clone(),
                diagnosis: Arc::new(diagnosis),
                at: Instant::now(),
            });
        }
    }
}

impl Memory {
    /// Watches targets under this policy from now on, or none.
    pub fn watch(&self, triage: Option<Triage>, policy: Arc<str>) {
        self.recent().watch(triage, policy);
    }

    /// Waits until a target is to be looked at. One asks.
    pub async fn due(&self) -> Due {
        loop {
            if let Some(due) = self.recent().due() {
                return due;
            }
            self.some_wait.notified().await;
        }
    }

    /// Keeps what a look found, for the records that follow.
    pub fn keep(&self, due: &Due, diagnosis: Diagnosis) {
        let verdict = diagnosis.verdict;
        self.recent().keep(due, diagnosis);
        *self.taken().entry(verdict).or_default() += 1;
    }

    /// How many looks were taken, by verdict.
    pub fn looks(&self) -> Vec<(&'static str, u64)> {
        let taken = self.taken();
        taken
            .iter()
            .map(|(verdict, count)| (*verdict, *count))
            .collect()
    }
}

/// Adds to a record what was found before.
pub(super) fn tell(record: &mut Record, found: &Found) {
    for hint in [&mut record.hint, &mut record.reason].into_iter().flatten() {
        *hint = format!("{hint}; {found}").into();
    }
    record.diagnosis = Some(Box::new(found.keys()));
}
