//! Connections that were silent for a while: which of them lived, and what cuts the others. Pure.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::Verdict;
use super::verdict::Certainty::{Certain, Medium, Strong};
use crate::timeouts::Brief;

/// A proxy of ours probes silent connections so often.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// A connection that was left alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Silence {
    /// For so long, in seconds, or until its end.
    pub seconds: f64,
    /// What became of it.
    pub end: End,
    /// Where it ended, if that was not the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Arc<str>>,
    /// The failure in words, where it never stood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It answered afterwards.
    Alive,
    /// The server ended it in order, while nobody spoke.
    Closed,
    /// It was reset, while nobody spoke or as soon as somebody did.
    Reset,
    /// What was sent afterwards was never answered.
    Silent,
    /// It never stood.
    Failed,
}

/// Says what cuts them, and when.
pub fn judge(target: &str, silences: &[Silence]) -> Verdict {
    let upstream = silences.iter().find_map(|one| one.upstream.as_deref());
    let far = upstream.unwrap_or(target);
    let mut silences = silences.to_vec();
    silences.sort_by(|one, two| one.seconds.total_cmp(&two.seconds));
    let brief = |seconds: f64| {
        let tenths = Duration::from_secs_f64((seconds * 10.0).round() / 10.0);
        Brief(tenths).to_string()
    };
    let told = |silence: &Silence| {
        let what = match silence.end {
            End::Alive => "answered afterwards",
            End::Closed => "was ended by the server",
            End::Reset => "was reset",
            End::Silent => "was dead: nothing answered, nothing said so",
            End::Failed => "never stood",
        };
        format!("silent for {}: it {what}", brief(silence.seconds))
    };
    let alive = |below: f64| {
        silences
            .iter()
            .rev()
            .find(|one| one.end == End::Alive && one.seconds <= below)
    };
    let stood: Vec<_> = silences
        .iter()
        .filter(|one| one.end != End::Failed)
        .collect();
    let Some(longest) = stood.last() else {
        let messages = silences.iter().filter_map(|one| one.message.clone());
        return Verdict::new(
            "never_stood",
            Certain,
            format!("{far} answers nothing, even at once: there was nothing to leave alone"),
        )
        .because(messages.take(1))
        .mend(format!("see why first: routecause doctor {target}"));
    };
    let Some(cut) = stood.iter().find(|one| one.end != End::Alive) else {
        return Verdict::new(
            "fine",
            Certain,
            format!(
                "connections to {far} bear a silence of {}",
                brief(longest.seconds)
            ),
        )
        .because([told(longest)])
        .but("longer ones were not tried");
    };
    let lived = alive(cut.seconds);
    let since = lived.map_or(0.0, |one| one.seconds);
    if cut.end == End::Closed {
        return Verdict::new(
            "server_closes_idle",
            Strong,
            format!(
                "{far} itself ends connections that are silent for {}",
                brief(cut.seconds)
            ),
        )
        .because(lived.into_iter().chain([*cut]).map(told))
        .but("what cuts later than the server cannot be seen")
        .mend("that is its right: open a new connection, or speak sooner");
    }
    let span = match lived {
        Some(lived) => format!(
            "between {} and {}",
            brief(lived.seconds),
            brief(cut.seconds)
        ),
        None => format!("{} or less", brief(cut.seconds)),
    };
    let is_contested = stood
        .iter()
        .any(|one| one.end == End::Alive && one.seconds > cut.seconds);
    let how = if cut.end == End::Reset {
        "by a reset"
    } else {
        "without a word"
    };
    let fix = if Duration::from_secs_f64(since) >= KEEPALIVE {
        format!(
            "go by routecause, which probes silent connections every {}; else let clients probe sooner than every {}",
            Brief(KEEPALIVE),
            brief(since)
        )
    } else {
        format!(
            "let clients say something more often than every {}: TCP keepalive, ServerAliveInterval of ssh, pings of HTTP/2",
            brief(since.max(1.0))
        )
    };
    let verdict = Verdict::new(
        "idle_timeout",
        if is_contested { Medium } else { Strong },
        format!("something cuts connections that are silent for {span}, {how}"),
    )
    .because(lived.into_iter().chain([*cut]).map(told))
    .mend(fix);
    if is_contested {
        verdict.but("one that was silent for longer lived")
    } else {
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ends: &[(f64, End)], id: &str, part: &str) {
        let silences: Vec<_> = ends
            .iter()
            .map(|(seconds, end)| Silence {
                seconds: *seconds,
                end: *end,
                upstream: None,
                message: (*end == End::Failed).then(|| "connect.timeout".to_owned()),
            })
            .collect();
        let verdict = judge("a.example:443", &silences);
        assert_eq!(verdict.id, id, "{verdict:?}");
        assert!(
            format!("{verdict:?}").contains(part),
            "{part} is not in {verdict:?}"
        );
        assert!(!verdict.evidence.is_empty());
    }

    #[test]
    fn the_limit_lies_between_what_lived_and_what_did_not() {
        use End::{Alive, Closed, Failed, Reset, Silent};
        check(&[(30.0, Alive), (60.0, Alive)], "fine", "a silence of 60s");
        check(
            &[(60.0, Silent), (30.0, Alive), (45.0, Alive)],
            "idle_timeout",
            "between 45s and 60s, without a word",
        );
        check(
            &[(60.0, Alive), (120.0, Reset), (180.0, Reset)],
            "idle_timeout",
            "probes silent connections every 60s",
        );
        check(
            &[(10.0, Reset)],
            "idle_timeout",
            "silent for 10s or less, by a reset",
        );
        check(
            &[(10.0, Alive), (15.2, Closed)],
            "server_closes_idle",
            "silent for 15.2s",
        );
        check(&[(10.0, Silent), (20.0, Alive)], "idle_timeout", "lived");
        check(&[(10.0, Failed)], "never_stood", "connect.timeout");
    }
}
