//! The last records, in memory: found by what they say, and summed up.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use ipnet::IpNet;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::{Outcome, Record};

/// Records that are kept: some 4 MiB.
pub const MOST: usize = 1000;

/// Seconds that the pulse goes back.
pub const PULSE: usize = 300;

/// Policies whose rules are counted: the one at work, and those that requests still keep.
const POLICIES: usize = 4;

/// Pairs of host and cause that are summed up.
const PAIRS: usize = 200;

/// What became of a request, as a person asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// It went well.
    Success,
    /// It failed, or was denied.
    Failure,
    /// The policy denied it.
    Denied,
    /// The connection never carried a request.
    Unknown,
}

impl Wanted {
    fn admits(self, record: &Record) -> bool {
        match self {
            Self::Success => record.outcome == Outcome::Success,
            Self::Failure => record.outcome == Outcome::Failure,
            Self::Denied => is_denied(record),
            Self::Unknown => record.outcome == Outcome::Unknown,
        }
    }
}

/// Whether the policy denied a request.
pub fn is_denied(record: &Record) -> bool {
    let cause = record.error_type.as_deref();
    cause.is_some_and(|id| id.starts_with("policy.denied."))
}

/// Which records are looked for. What is absent admits all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A cause's id, or what some begin with, as `tls`.
    pub cause: Option<String>,
    /// The host, with `*` for any part of it.
    pub host: Option<GlobMatcher>,
    /// Where the client comes from.
    pub client: Option<IpNet>,
    /// What became of it.
    pub outcome: Option<Wanted>,
    /// Ended at this moment or later.
    pub since: Option<Timestamp>,
    /// Ended before this moment.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Whether it admits a record.
    pub fn admits(&self, record: &Record) -> bool {
        let Self {
            cause,
            host,
            client,
            outcome,
            since,
            until,
        } = self;
        outcome.is_none_or(|outcome| outcome.admits(record))
            && cause.as_ref().is_none_or(|cause| {
                let id = record.error_type.as_deref().unwrap_or_default();
                let behind = id.strip_prefix(cause.as_str());
                behind.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
            && host.as_ref().is_none_or(|host| {
                let of_record = record.server_address.as_deref();
                of_record.is_some_and(|name| host.is_match(name))
            })
            && client.is_none_or(|net| net.contains(&record.client_address))
            && since.is_none_or(|since| record.end >= since)
            && until.is_none_or(|until| record.end < until)
    }
}

/// A host as it may be written in a filter: `*` stands for any part of it.
///
/// # Errors
/// What is wrong with it.
pub fn host_pattern(text: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(text).case_insensitive(true).build();
    glob.map(|glob| glob.compile_matcher())
        .map_err(|error| error.kind().to_string())
}

/// The requests of one second, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Beat {
    /// The second, since 1970.
    pub second: i64,
    /// Requests that ended.
    pub requests: u32,
    /// Those that failed, without those denied.
    pub failures: u32,
    /// Those that the policy denied.
    pub denied: u32,
}

/// What one host failed of, among the records in memory.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Trouble {
    /// The host.
    pub host: Arc<str>,
    /// The cause's id.
    pub cause: String,
    /// How often.
    pub count: usize,
    /// When it was first seen (RFC 3339, UTC).
    #[schemars(with = "String")]
    pub first: Timestamp,
    /// When it was last seen.
    #[schemars(with = "String")]
    pub last: Timestamp,
    /// The last record.
    #[schemars(with = "String")]
    pub record: Uuid,
    /// How requests for the host went by each hop: successes, and all.
    pub by_hop: Vec<ByHop>,
}

/// How requests went by a hop.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ByHop {
    /// `direct`, or the upstream's name.
    pub hop: Arc<str>,
    /// Those that went well.
    pub good: usize,
    /// All.
    pub all: usize,
}

/// What is suspected of one host, among the records in memory.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Suspected {
    /// The host.
    pub host: Arc<str>,
    /// What is suspected, as in `sni_filtering`.
    pub name: &'static str,
    /// The highest score, from 0 to 1.
    pub score: f64,
    /// How many records say so.
    pub count: usize,
    /// When it was last seen (RFC 3339, UTC).
    #[schemars(with = "String")]
    pub last: Timestamp,
    /// What the surest of them rests on.
    pub evidence: Vec<String>,
}

/// The last records, the pulse, and how often each rule decided.
#[derive(Debug, Default)]
pub struct Kept {
    records: VecDeque<Arc<Record>>,
    pulse: VecDeque<Beat>,
    /// By the hash of each policy.
    hits: VecDeque<(Arc<str>, Hits)>,
}

/// How often each rule decided.
type Hits = HashMap<Arc<str>, u64>;

impl Kept {
    /// Keeps one more, and forgets the oldest where there are too many.
    pub fn push(&mut self, record: Arc<Record>) {
        self.beat(&record);
        self.hit(&record);
        if self.records.len() >= MOST {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    fn beat(&mut self, record: &Record) {
        if record.outcome == Outcome::Unknown {
            return;
        }
        let second = record.end.as_second();
        // Records of several threads may come a little late.
        let at = self.pulse.iter().rposition(|beat| beat.second <= second);
        let at = match at {
            Some(at) if self.pulse.get(at).is_some_and(|beat| beat.second == second) => at,
            at => {
                let at = at.map_or(0, |at| at + 1);
                let beat = Beat {
                    second,
                    ..Beat::default()
                };
                self.pulse.insert(at, beat);
                at
            }
        };
        if let Some(beat) = self.pulse.get_mut(at) {
            beat.requests += 1;
            if is_denied(record) {
                beat.denied += 1;
            } else if record.outcome == Outcome::Failure {
                beat.failures += 1;
            }
        }
        if self.pulse.len() > PULSE {
            let away = |beat: Option<&Beat>| beat.map(|beat| beat.second.abs_diff(second));
            // A clock that was set back leaves seconds that are to come.
            if away(self.pulse.back()) > away(self.pulse.front()) {
                self.pulse.pop_back();
            } else {
                self.pulse.pop_front();
            }
        }
    }

    fn hit(&mut self, record: &Record) {
        let (Some(policy), Some(rule)) = (&record.policy, &record.rule) else {
            return;
        };
        let known = self.hits.iter().position(|(hash, _)| hash == policy);
        let at = known.unwrap_or_else(|| {
            if self.hits.len() >= POLICIES {
                self.hits.pop_front();
            }
            self.hits.push_back((policy.clone(), HashMap::new()));
            self.hits.len() - 1
        });
        if let Some((_, hits)) = self.hits.get_mut(at) {
            *hits.entry(rule.clone()).or_default() += 1;
        }
    }

    /// How often each rule of a policy decided.
    pub fn hits(&self, policy: &str) -> HashMap<Arc<str>, u64> {
        let hits = self.hits.iter().find(|(hash, _)| &**hash == policy);
        hits.map(|(_, hits)| hits.clone()).unwrap_or_default()
    }

    /// Those that a filter admits, the newest first, at most `limit`.
    pub fn find(&self, filter: &Filter, limit: usize) -> Vec<Arc<Record>> {
        let newest = self.records.iter().rev();
        newest
            .filter(|record| filter.admits(record))
            .take(limit)
            .cloned()
            .collect()
    }

    /// The one with this id.
    pub fn get(&self, id: Uuid) -> Option<Arc<Record>> {
        self.records.iter().rfind(|r| r.id == id).cloned()
    }

    /// The seconds before `now` in which a request ended, the oldest first.
    pub fn pulse(&self, now: Timestamp) -> Vec<Beat> {
        let now = now.as_second();
        let lately = |beat: &&Beat| beat.second.abs_diff(now) < PULSE as u64;
        self.pulse.iter().filter(lately).copied().collect()
    }

    /// What failed, by host and cause, the most frequent first.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut troubles: HashMap<(Arc<str>, &str), Trouble> = HashMap::new();
        let mut hops: HashMap<Arc<str>, Vec<ByHop>> = HashMap::new();
        for record in &self.records {
            let Some(host) = &record.server_address else {
                continue;
            };
            if let Some(hop) = &record.hop {
                let of_host = hops.entry(host.clone()).or_default();
                let at = of_host.iter().position(|by| by.hop == *hop);
                let at = at.unwrap_or_else(|| {
                    of_host.push(ByHop {
                        hop: hop.clone(),
                        good: 0,
                        all: 0,
                    });
                    of_host.len() - 1
                });
                if let Some(by) = of_host.get_mut(at) {
                    by.all += 1;
                    by.good += usize::from(record.outcome == Outcome::Success);
                }
            }
            let Some(cause) = &record.error_type else {
                continue;
            };
            let trouble = troubles
                .entry((host.clone(), cause))
                .or_insert_with(|| Trouble {
                    host: host.clone(),
                    cause: cause.to_string(),
                    count: 0,
                    first: record.end,
                    last: record.end,
                    record: record.id,
                    by_hop: Vec::new(),
                });
            trouble.count += 1;
            trouble.first = trouble.first.min(record.end);
            if record.end >= trouble.last {
                (trouble.last, trouble.record) = (record.end, record.id);
            }
        }
        let mut troubles: Vec<_> = troubles.into_values().collect();
        troubles.sort_by_key(|trouble| Reverse((trouble.count, trouble.last)));
        troubles.truncate(PAIRS);
        for trouble in &mut troubles {
            trouble.by_hop = hops.get(&trouble.host).cloned().unwrap_or_default();
        }
        troubles
    }

    /// The hosts with most failures, and how many each has.
    pub fn worst_hosts(&self, count: usize) -> Vec<(String, usize)> {
        let mut hosts: HashMap<&str, usize> = HashMap::new();
        let failed = |record: &&Arc<Record>| record.outcome == Outcome::Failure;
        for record in self.records.iter().filter(failed) {
            if let Some(host) = &record.server_address {
                *hosts.entry(host).or_default() += 1;
            }
        }
        let mut hosts: Vec<_> = hosts.into_iter().map(|(h, n)| (h.to_owned(), n)).collect();
        hosts.sort_by(|a, b| (b.1, &a.0).cmp(&(a.1, &b.0)));
        hosts.truncate(count);
        hosts
    }

    /// What is suspected, by host; of one host where it is named. The surest first.
    pub fn suspects(&self, host: Option<&str>) -> Vec<Suspected> {
        let mut suspected: HashMap<(&str, &str), Suspected> = HashMap::new();
        for record in &self.records {
            let Some(name) = &record.server_address else {
                continue;
            };
            if host.is_some_and(|host| !host.eq_ignore_ascii_case(name)) {
                continue;
            }
            for suspect in &record.suspects {
                let entry = suspected
                    .entry((name, suspect.name))
                    .or_insert_with(|| Suspected {
                        host: name.clone(),
                        name: suspect.name,
                        score: 0.0,
                        count: 0,
                        last: record.end,
                        evidence: Vec::new(),
                    });
                entry.count += 1;
                entry.last = entry.last.max(record.end);
                if suspect.score >= entry.score {
                    entry.score = suspect.score;
                    entry.evidence = suspect.evidence.iter().map(ToString::to_string).collect();
                }
            }
        }
        let mut suspected: Vec<_> = suspected.into_values().collect();
        suspected.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.host.cmp(&b.host)));
        suspected.truncate(PAIRS);
        suspected
    }
}

/// An address or a network, as it may be written in a filter.
///
/// # Errors
/// What to write.
pub fn client_pattern(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse()
        .ok()
        .or_else(single)
        .ok_or_else(|| "write an address or a range, as in 172.17.0.0/16".to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn record(at: i64, host: &str, hop: &str, cause: Option<&'static str>) -> Arc<Record> {
        let end = Timestamp::from_second(at).unwrap();
        let client = Ipv4Addr::new(192, 0, 2, 1).into();
        let id = Uuid::from_u128(u128::try_from(at).unwrap());
        let mut record = Record::begun(end, id, client, 1);
        record.server_address = Some(host.into());
        record.hop = Some(hop.into());
        record.rule = Some("inside".into());
        record.policy = Some("abc".into());
        record.error_type = cause.map(Into::into);
        record.outcome = match cause {
            Some(_) => Outcome::Failure,
            None => Outcome::Success,
        };
        Arc::new(record)
    }

    fn some() -> Kept {
        let mut kept = Kept::default();
        for (at, host, hop, cause) in [
            (10, "a.example", "direct", None),
            (10, "a.example", "corp", Some("connect.timeout")),
            (11, "b.example", "direct", Some("tls.alert_from_server.x")),
            (13, "a.example", "direct", Some("connect.timeout")),
            (12, "c.test", "direct", Some("policy.denied.rule")),
        ] {
            kept.push(record(at, host, hop, cause));
        }
        kept
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "each is written in its place"
    )]
    #[track_caller]
    fn check(filter: Filter, expected: &[i64]) {
        let found = some().find(&filter, 10);
        let seconds: Vec<_> = found.iter().map(|record| record.end.as_second()).collect();
        assert_eq!(seconds, expected, "{filter:?}");
    }

    #[test]
    fn records_are_found_by_what_they_say() {
        let all = Filter::default;
        check(all(), &[12, 13, 11, 10, 10]);
        let cause = |cause: &str| Some(cause.to_owned());
        check(
            Filter {
                cause: cause("connect"),
                ..all()
            },
            &[13, 10],
        );
        check(
            Filter {
                cause: cause("connect.time"),
                ..all()
            },
            &[],
        );
        check(
            Filter {
                cause: cause("tls.alert_from_server"),
                ..all()
            },
            &[11],
        );
        let host = |host: &str| Some(host_pattern(host).unwrap());
        check(
            Filter {
                host: host("*.EXAMPLE"),
                ..all()
            },
            &[13, 11, 10, 10],
        );
        check(
            Filter {
                host: host("c.test"),
                ..all()
            },
            &[12],
        );
        let outcome = |outcome| Filter {
            outcome: Some(outcome),
            ..all()
        };
        check(outcome(Wanted::Denied), &[12]);
        check(outcome(Wanted::Failure), &[12, 13, 11, 10]);
        check(outcome(Wanted::Success), &[10]);
        let client = |text: &str| Some(client_pattern(text).unwrap());
        check(
            Filter {
                client: client("192.0.2.0/24"),
                ..all()
            },
            &[12, 13, 11, 10, 10],
        );
        check(
            Filter {
                client: client("192.0.2.2"),
                ..all()
            },
            &[],
        );
        let since = Timestamp::from_second(12).ok();
        check(Filter { since, ..all() }, &[12, 13]);
        check(
            Filter {
                until: since,
                ..all()
            },
            &[11, 10, 10],
        );
        assert!(client_pattern("nonsense").is_err() && host_pattern("a[").is_err());
    }

    #[test]
    fn what_failed_is_summed_up_by_host_and_cause() {
        let troubles = some().troubles();
        let first = &troubles[0];
        assert_eq!(
            (&*first.host, first.cause.as_str()),
            ("a.example", "connect.timeout")
        );
        assert_eq!((first.count, first.record), (2, Uuid::from_u128(13)));
        assert_eq!((first.first.as_second(), first.last.as_second()), (10, 13));
        let by: Vec<_> = first
            .by_hop
            .iter()
            .map(|by| (&*by.hop, by.good, by.all))
            .collect();
        assert_eq!(by, [("direct", 1, 2), ("corp", 0, 1)]);
        assert_eq!(troubles.len(), 3);
        assert_eq!(some().worst_hosts(1), [("a.example".to_owned(), 2)]);
    }

    #[test]
    fn the_pulse_counts_each_second_once_and_in_order() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pulse = some().pulse(at(13));
        let beats: Vec<_> = pulse
            .iter()
            .map(|b| (b.second, b.requests, b.failures, b.denied))
            .collect();
        assert_eq!(
            beats,
            [(10, 2, 1, 0), (11, 1, 1, 0), (12, 1, 0, 1), (13, 1, 1, 0)]
        );
        assert_eq!(some().hits("abc").get("inside"), Some(&5));
        // Of what is long ago nothing is left, however little came since.
        assert_eq!(some().pulse(at(12 + 300)).len(), 1);
        assert_eq!(some().pulse(at(86_400)).len(), 0);
    }

    #[test]
    fn the_pulse_goes_on_behind_a_clock_that_was_set_back() {
        let mut kept = Kept::default();
        for second in (10_000..10_400).chain(100..200) {
            kept.push(record(second, "a.example", "direct", None));
        }
        let now = Timestamp::from_second(199).unwrap();
        assert_eq!(kept.pulse(now).len(), 100);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = Kept::default();
        for at in 0..3 * i64::try_from(MOST).unwrap() {
            kept.push(record(
                at,
                &format!("h{at}.example"),
                "direct",
                Some("dns.nxdomain"),
            ));
        }
        assert_eq!(kept.find(&Filter::default(), usize::MAX).len(), MOST);
        let now = Timestamp::from_second(2999).unwrap();
        assert_eq!(
            (kept.pulse(now).len(), kept.troubles().len()),
            (PULSE, PAIRS)
        );
        assert!(kept.get(Uuid::from_u128(1)).is_none());
        assert!(kept.get(Uuid::from_u128(2999)).is_some());
    }
}
