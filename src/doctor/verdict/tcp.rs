//! Which addresses of the target answer.

use super::Certainty::{Certain, Strong};
use super::{Verdict, by, controls, other, route_via, yaml};
use crate::doctor::facts::{Facts, Tcp};

pub(super) fn addresses(facts: &Facts) -> Option<Verdict> {
    let direct = facts.direct()?;
    let (fine, failed): (Vec<_>, Vec<_>) = facts.tcp.iter().partition(|tcp| tcp.outcome.is_fine());
    let told = |tcp: &&Tcp| {
        format!(
            "{}: {}",
            tcp.address,
            tcp.outcome
                .message
                .as_deref()
                .or(tcp.outcome.cause.as_deref())
                .unwrap_or("connected")
        )
    };
    if failed.is_empty() {
        return None;
    }
    if fine.is_empty() {
        let prohibited = failed.iter().find(|tcp| {
            ["connect.prohibited", "connect.refused_by_device"]
                .iter()
                .any(|cause| tcp.outcome.failed_of(cause))
        });
        if let Some(prohibited) = prohibited {
            let verdict = Verdict::new(
                "ip_blocking",
                Certain,
                format!(
                    "a firewall on the way forbids {}, and says so",
                    facts.target
                ),
            )
            .because([told(prohibited)])
            .because(controls(direct));
            return Some(match other(facts) {
                Some(way) => verdict
                    .because([format!("it works {}", by(way))])
                    .mend(route_via(facts, way)),
                None => {
                    verdict.mend("ask those who run that firewall, or route it via an upstream")
                }
            });
        }
        return other(facts).map(|way| {
            Verdict::new(
                "ip_blocking",
                Strong,
                format!(
                    "{} is reached {}, and by no address directly",
                    facts.target,
                    by(way)
                ),
            )
            .because(failed.iter().map(told))
            .because(controls(direct))
            .mend(route_via(facts, way))
        });
    }
    if failed.iter().all(|tcp| tcp.address.is_ipv6())
        && fine.iter().all(|tcp| tcp.address.is_ipv4())
    {
        // Whoever refuses was reached: a server that listens on one of a name's addresses only.
        if failed
            .iter()
            .all(|tcp| tcp.outcome.failed_of("connect.refused"))
        {
            return None;
        }
        return Some(
            Verdict::new("ipv6_broken", Certain, "IPv6 does not work here, IPv4 does")
                .because(failed.iter().map(told))
                .because(fine.iter().map(told))
                .mend("dns: {prefer: v4_only}"),
        );
    }
    Some(
        Verdict::new(
            "bad_address",
            Strong,
            format!("some addresses of {} do not answer", facts.host),
        )
        .because(failed.iter().map(told))
        .because(fine.iter().map(told))
        .mend(format!(
            "dns: {{hosts: {{{}: [{}]}}}}",
            facts.host,
            yaml(&fine.first()?.address.ip().to_string())
        )),
    )
}
