//! A log, and the record that is looked for in it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;

use super::super::learn;
use crate::failure::chain;
use crate::record::Outcome;
use crate::record::seen::Seen;

/// A record, and what stands beside it.
pub(super) struct Found {
    pub(super) record: Value,
    pub(super) seen: Seen,
    /// The requests of the log to the same target, itself among them.
    pub(super) target: Option<Tally>,
}

/// How requests to one target went; what faults of the policy struck is left out.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    pub(super) passed: u64,
    /// How often by which cause.
    pub(super) failed: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, seen: &Seen) {
        match &seen.cause {
            None => self.passed += 1,
            Some(cause) => *self.failed.entry(cause.clone()).or_default() += 1,
        }
    }
}

/// Finds the last record whose id begins so, or the last failure.
pub(super) fn find(log: &Path, wanted: Option<&str>) -> anyhow::Result<Found> {
    let name = if log == Path::new("-") {
        "standard input".to_owned()
    } else {
        log.display().to_string()
    };
    let wanted = wanted.map(str::to_ascii_lowercase);
    let wanted = wanted.as_deref();
    let told = wanted.map(|id| format!("\"event.id\":\"{id}"));
    let (mut records, mut strange) = (0_u64, 0_u64);
    let (mut found, mut first, mut broken) = (None, None, None);
    let mut tallies: HashMap<String, Tally> = HashMap::new();
    learn::each(log, |number, line, read| {
        let seen = match read {
            Ok(seen) => seen,
            Err(error) => {
                let is_it = (told.as_ref())
                    .is_some_and(|told| String::from_utf8_lossy(line).contains(told));
                if is_it {
                    broken = Some(format!("{name}:{number}: {}", chain(&error)));
                }
                strange += 1;
                first.get_or_insert((number, error));
                return;
            }
        };
        records += 1;
        if let Some(target) = seen.target().filter(|_| seen.faults.is_empty()) {
            tallies.entry(target).or_default().add(&seen);
        }
        let is_it = match wanted {
            Some(id) => seen.id.starts_with(id),
            None => seen.outcome == Outcome::Failure,
        };
        if is_it {
            found = Some((line.to_vec(), seen));
        }
    })?;
    if let (None, Some(broken)) = (&found, broken) {
        bail!("{broken}");
    }
    if let Some((number, error)) = first {
        let more = match strange {
            1 => String::new(),
            count => format!(", as are {} more", count - 1),
        };
        say!("warning: {name}:{number}: {error}: the line is left out{more}");
    }
    let Some((line, seen)) = found else {
        match wanted {
            _ if records == 0 => bail!("there is no record in {name}"),
            Some(id) => bail!("no record {id} is among the {records} of {name}"),
            None => bail!("none of the {records} records of {name} failed: give an id"),
        }
    };
    let target = seen.target().and_then(|target| tallies.remove(&target));
    Ok(Found {
        record: serde_json::from_slice(&line)?,
        seen,
        target,
    })
}
