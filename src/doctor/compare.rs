//! Mirrors side by side: what each gives for the same thing, and which to take. Pure.

use serde::Serialize;

use super::Verdict;
use super::verdict::Certainty::{Certain, Medium, Strong};

/// What one mirror gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Mirror {
    /// Its URL.
    pub url: String,
    /// The way that the policy chooses.
    pub route: String,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The status of its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Where it leads to instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Its `ETag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Its `Last-Modified`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
    /// How long the content is: as announced, or as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// The content's SHA-256, where it came whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Until the connection stood, TLS and all, in milliseconds.
    pub connect_ms: f64,
    /// From then to the first byte of the answer.
    pub first_byte_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

impl Mirror {
    /// Whether it gives what was asked for.
    pub fn works(&self) -> bool {
        self.failure.is_none()
            && self
                .status
                .is_some_and(|status| (200..300).contains(&status))
    }

    /// Whether two give the same, as far as can be told: by digest, else by length.
    fn agrees(&self, other: &Self) -> bool {
        match (&self.sha256, &other.sha256) {
            (Some(own), Some(its)) => own == its,
            _ => self.length.is_none() || other.length.is_none() || self.length == other.length,
        }
    }

    /// What it gave, for people.
    pub fn told(&self) -> String {
        if let Some(failure) = &self.failure {
            return format!("{failure} ({})", self.route);
        }
        let mut parts = vec![format!("status {}", self.status.unwrap_or_default())];
        parts.extend(
            self.location
                .as_ref()
                .map(|location| format!("to {location}")),
        );
        parts.extend(self.length.map(|length| format!("{length} bytes")));
        parts.extend(
            self.sha256
                .as_ref()
                .map(|digest| format!("sha256 {}…", digest.get(..12).unwrap_or(digest))),
        );
        parts.extend(self.etag.as_ref().map(|etag| format!("etag {etag}")));
        parts.extend(
            self.modified
                .as_ref()
                .map(|modified| format!("of {modified}")),
        );
        let times = format!(
            "connected in {:.0} ms, first byte {:.0} ms later, all in {:.0} ms",
            self.connect_ms, self.first_byte_ms, self.total_ms
        );
        parts.push(times);
        format!("{} ({})", parts.join(", "), self.route)
    }
}

/// Says what differs, and which to take.
pub fn judge(mirrors: &[Mirror]) -> Verdict {
    let told = |mirror: &Mirror| format!("{}: {}", mirror.url, mirror.told());
    let (working, failing): (Vec<_>, Vec<_>) = mirrors.iter().partition(|mirror| mirror.works());
    let take = |mirror: &Mirror| format!("take {}", mirror.url);
    let quickest = |of: &[&Mirror]| {
        of.iter()
            .min_by(|one, two| one.total_ms.total_cmp(&two.total_ms))
            .map(|found| (*found).clone())
    };
    let Some(first) = working.first() else {
        return Verdict::new("no_mirror_works", Certain, "none of them gives it")
            .because(failing.iter().map(|mirror| told(mirror)))
            .mend("routecause doctor URL tells of one of them why");
    };
    if working.iter().any(|mirror| !first.agrees(mirror)) {
        let mut camps: Vec<Vec<&Mirror>> = Vec::new();
        for mirror in &working {
            match camps
                .iter_mut()
                .find(|camp| camp.first().is_some_and(|first| first.agrees(mirror)))
            {
                Some(camp) => camp.push(mirror),
                None => camps.push(vec![mirror]),
            }
        }
        camps.sort_by_key(|camp| std::cmp::Reverse(camp.len()));
        let most = camps.first().map_or(0, Vec::len);
        let is_majority = camps.iter().filter(|camp| camp.len() == most).count() == 1;
        let verdict = Verdict::new(
            "mirrors_differ",
            Certain,
            format!(
                "they do not give the same: {} kinds of content of {} mirrors",
                camps.len(),
                working.len()
            ),
        )
        .because(camps.iter().filter_map(|camp| Some(told(camp.first()?))));
        return match camps.first().and_then(|camp| quickest(camp)) {
            Some(best) if is_majority => verdict.mend(format!(
                "{}: {most} agree; look at the others' age",
                take(&best)
            )),
            _ => verdict.mend(
                "no majority: take the one whose content you can check by a digest or a signature",
            ),
        };
    }
    let Some(best) = quickest(&working) else {
        return Verdict::new("unexplained", Medium, "nothing was compared");
    };
    if !failing.is_empty() {
        return Verdict::new(
            "some_mirrors_fail",
            Certain,
            format!("{} of {} give it", working.len(), mirrors.len()),
        )
        .because(failing.iter().map(|mirror| told(mirror)))
        .mend(take(&best));
    }
    let is_known = working.iter().all(|mirror| mirror.sha256.is_some());
    let certainty = if is_known { Certain } else { Strong };
    let verdict = Verdict::new(
        "fine",
        certainty,
        format!("they give the same; {} is the quickest", best.url),
    )
    .because(working.iter().map(|mirror| told(mirror)))
    .mend(take(&best));
    if is_known {
        verdict
    } else {
        verdict.but("the content was too large to compare: lengths alone were")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mirrors by `NAME STATUS LENGTH DIGEST MS` lines; `-` is unknown.
    #[track_caller]
    fn check(lines: &str, id: &str, fix: &str) {
        let mirror = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let known = |at: usize| Some(words[at]).filter(|word| *word != "-");
            Mirror {
                url: words[0].to_owned(),
                status: known(1).map(|word| word.parse().unwrap()),
                failure: known(1).is_none().then(|| "connect.timeout".to_owned()),
                length: known(2).map(|word| word.parse().unwrap()),
                sha256: known(3).map(str::to_owned),
                total_ms: words[4].parse().unwrap(),
                ..Mirror::default()
            }
        };
        let mirrors: Vec<_> = lines.split('/').map(mirror).collect();
        let verdict = judge(&mirrors);
        assert_eq!(verdict.id, id, "{verdict:?}");
        assert!(verdict.fix.as_deref().unwrap().contains(fix), "{verdict:?}");
    }

    #[test]
    fn the_quickest_of_those_that_agree_is_taken() {
        check("a 200 5 x 30 / b 200 5 x 10", "fine", "take b");
        check("a 200 5 - 30 / b 200 5 x 10", "fine", "take b");
        check("a 200 5 x 30 / b - - - 10", "some_mirrors_fail", "take a");
        check("a 404 - - 1 / b - - - 1", "no_mirror_works", "doctor URL");
        check(
            "a 200 5 x 5 / b 200 5 y 1 / c 200 5 x 9",
            "mirrors_differ",
            "take a: 2 agree",
        );
        check("a 200 5 x 5 / b 200 6 - 1", "mirrors_differ", "no majority");
    }
}
