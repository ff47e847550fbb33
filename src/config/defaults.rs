//! What holds where a rule or an upstream says nothing else: times, the circuit, the triage, how long a client's first word is waited for.

use std::time::Duration;

use super::decode::{At, Wait};
use super::diag::Findings;
use super::raw;
use crate::policy::flight::Sniff;
use crate::policy::{Circuit, Triage};
use crate::timeouts::Timeouts;

pub(super) fn timeouts(
    base: &Timeouts,
    raw: Option<&At<raw::defaults::Timeouts>>,
    findings: &mut Findings<'_>,
) -> Timeouts {
    match raw {
        Some(raw) => timeouts_of(base, raw, findings),
        None => base.clone(),
    }
}

fn timeouts_of(
    base: &Timeouts,
    raw: &raw::defaults::Timeouts,
    findings: &mut Findings<'_>,
) -> Timeouts {
    let or = |at: &Option<At<Wait>>, base| at.as_ref().map_or(base, |at| at.0);
    let connect = raw.connect.as_ref().map(|connect| &connect.0);
    let part = |of: fn(&raw::defaults::ConnectWaits) -> &Option<At<Wait>>, base| {
        connect.map_or(base, |connect| or(of(connect), base))
    };
    let total = part(|c| &c.total, base.connect);
    let address = part(|c| &c.address, base.connect_address);
    if let Some(at) = connect.and_then(|connect| connect.address.as_ref())
        && address > total
    {
        findings.error(
            at.place,
            "one address may not take longer than all together (`total`)",
        );
    }
    Timeouts {
        dns: or(&raw.dns, base.dns),
        connect: total,
        connect_address: address.min(total),
        connect_stagger: part(|c| &c.stagger, base.connect_stagger),
        proxy_reply: or(&raw.proxy_reply, base.proxy_reply),
        hello: or(&raw.hello, base.hello),
        first_byte: or(&raw.first_byte, base.first_byte),
        body_idle: or(&raw.body_idle, base.body_idle),
        idle: or(&raw.idle, base.idle),
        max_duration: raw
            .max_duration
            .as_ref()
            .map(|at| at.0)
            .or(base.max_duration),
        sniff: or(&raw.sniff, base.sniff),
        head: or(&raw.head, base.head),
        keepalive: or(&raw.keepalive, base.keepalive),
    }
}

/// What a rule says of times.
pub(super) fn timeouts_of_rule(
    base: &Timeouts,
    raw: &raw::defaults::Timeouts,
    findings: &mut Findings<'_>,
) -> Timeouts {
    for (key, at) in [("head", &raw.head), ("sniff", &raw.sniff)] {
        if let Some(at) = at {
            let message = format!("`{key}` is waited for before any rule has decided");
            let help = format!("write `{key}` in `defaults.timeouts`");
            findings.error(at.place, message).with_help(help);
        }
    }
    timeouts_of(base, raw, findings)
}

/// The longest time in which failures are counted, or for which a target is refused: a person who waits for more than
/// this thinks that the target is down.
const LONGEST_CIRCUIT: Duration = Duration::from_hours(1);

pub(super) fn circuit(
    raw: &At<raw::defaults::Circuit>,
    findings: &mut Findings<'_>,
) -> Option<Circuit> {
    let fails = raw.fails.as_ref()?;
    let number = u32::try_from(fails.0)
        .ok()
        .filter(|n| (1..=1000).contains(n));
    if number.is_none() {
        let message = format!("{} is no number of failures for a circuit", fails.0);
        findings.error(fails.place, message).with_help("1 to 1000");
    }
    let (within, open) = (raw.within.as_ref()?, raw.open.as_ref()?);
    for wait in [within, open] {
        if wait.0 > LONGEST_CIRCUIT {
            let message = "a circuit counts, and stays open, for an hour at most";
            findings
                .error(wait.place, message)
                .with_help("write `1h` or less");
        }
    }
    Some(Circuit {
        fails: number?,
        within: within.0,
        open: open.0,
    })
}

/// The longest time in which failures are counted that are looked into, and between one look and the next the shortest and
/// the longest.
const LONGEST_COUNT: Duration = Duration::from_hours(1);
const BETWEEN_LOOKS: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(24));

pub(super) fn triage(
    raw: &At<raw::defaults::Triage>,
    findings: &mut Findings<'_>,
) -> Option<Triage> {
    let (fails, within, every) = (
        raw.fails.as_ref()?,
        raw.within.as_ref()?,
        raw.every.as_ref()?,
    );
    let number = u32::try_from(fails.0)
        .ok()
        .filter(|n| (1..=100).contains(n));
    if number.is_none() {
        let message = format!("{} is no number of failures for a look", fails.0);
        findings.error(fails.place, message).with_help("1 to 100");
    }
    if within.0 > LONGEST_COUNT {
        let message = "failures are counted for an hour at most";
        findings
            .error(within.place, message)
            .with_help("write `1h` or less");
    }
    let (shortest, longest) = BETWEEN_LOOKS;
    if !(shortest..=longest).contains(&every.0) {
        let message = "a target is looked at once a minute at most, and once a day at least";
        findings.error(every.place, message).with_help("1m to 24h");
    }
    Some(Triage {
        fails: number?,
        within: within.0,
        every: every.0,
    })
}

pub(super) fn sniff(raw: Option<&At<raw::defaults::Sniff>>) -> Option<Sniff> {
    Some(match raw?.value {
        raw::defaults::Sniff::Auto => Sniff::Auto,
        raw::defaults::Sniff::Always => Sniff::Always,
        raw::defaults::Sniff::Never => Sniff::Never,
    })
}
