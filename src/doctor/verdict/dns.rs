//! What name servers say, and which of them is to be believed.

use std::net::{IpAddr, SocketAddr};

use super::Certainty::{Certain, Strong};
use super::{Verdict, controls, failures, rule};
use crate::doctor::facts::{Answer, Facts, Way, is_private};

/// Has a server asked for a name: one of the policy, or of this machine.
fn ask_at(server: &str, host: &str) -> String {
    if server == "system" {
        return rule(host, None, "dns: {server: system}, continue: true");
    }
    let (name, address) = match server.parse::<SocketAddr>() {
        Ok(address) => ("inside", format!("udp: [\"{address}\"], ")),
        Err(_) => (server, String::new()),
    };
    format!("dns: {{servers: {{{name}: {{{address}domains: [{host}]}}}}}}")
}

pub(super) fn answers(facts: &Facts) -> Option<Verdict> {
    if !facts.is_name {
        return None;
    }
    let told = |found: &&Answer| {
        if let (Some(cause), Some(message)) = (&found.cause, &found.message) {
            format!("{} says {cause}: {message}", found.server)
        } else {
            let addresses: Vec<_> = found.addresses.iter().map(IpAddr::to_string).collect();
            format!("{} says {}", found.server, addresses.join(" "))
        }
    };
    let failed: Vec<_> = facts
        .dns
        .iter()
        .filter(|answer| answer.cause.is_some())
        .collect();
    let found: Vec<_> = facts
        .dns
        .iter()
        .filter(|answer| answer.cause.is_none())
        .collect();
    let has = |cause: &str| {
        let of = |answer: &&&Answer| answer.cause.as_deref() == Some(cause);
        failed.iter().find(of).copied()
    };
    let encrypted = found.iter().find(|answer| answer.is_encrypted).copied();
    let direct = facts.direct()?;
    let forged = ["dns.double_reply", "dns.known_forged", "dns.bogon"]
        .into_iter()
        .find_map(|cause| Some((cause, has(cause)?)));
    if let Some((cause, answer)) = forged {
        let certainty = if cause == "dns.bogon" {
            Strong
        } else {
            Certain
        };
        let fix = match encrypted {
            Some(other) => format!("dns: {{default: {}}}", other.server),
            None => "dns: {default: clean, servers: {clean: {doh: \"https://dns.example/dns-query\", ip: [192.0.2.53]}}}".to_owned(),
        };
        return Some(
            Verdict::new(
                "dns_poisoning",
                certainty,
                format!("the answer for {} is forged on the way", facts.host),
            )
            .because([told(&answer)])
            .because(found.iter().map(told))
            .mend(fix),
        );
    }
    let plain: Vec<_> = facts
        .dns
        .iter()
        .filter(|answer| !answer.is_encrypted)
        .collect();
    let is_silent = |answer: &&Answer| {
        matches!(
            answer.cause.as_deref(),
            Some("dns.timeout" | "dns.server_unreachable")
        )
    };
    if let Some(encrypted) = encrypted
        && !plain.is_empty()
        && plain.iter().all(is_silent)
    {
        return Some(
            Verdict::new(
                "dns_port_blocked",
                Certain,
                "nobody answers on port 53, while encrypted DNS works",
            )
            .because(plain.iter().map(told))
            .because([told(&encrypted)])
            .mend(format!("dns: {{default: {}}}", encrypted.server)),
        );
    }
    if let Some(blocked) = has("dns.blocked_by_resolver") {
        return Some(
            Verdict::new(
                "dns_filtering",
                Certain,
                format!(
                    "{} refuses to tell {}, and says so",
                    blocked.server, facts.host
                ),
            )
            .because([told(&blocked)])
            .because(found.iter().map(told)),
        );
    }
    // Addresses of which the encrypted ones work and the others show a certificate that is not theirs.
    let system = found.iter().find(|answer| !answer.is_encrypted).copied();
    if let (Some(system), Some(encrypted)) = (system, encrypted)
        && !system
            .addresses
            .iter()
            .any(|ip| encrypted.addresses.contains(ip))
    {
        let state = |ips: &[IpAddr]| {
            let mut tried = facts
                .tcp
                .iter()
                .filter(|tcp| ips.contains(&tcp.address.ip()))
                .peekable();
            tried
                .peek()
                .is_some()
                .then(|| tried.any(|tcp| tcp.outcome.is_fine()))
        };
        if state(&system.addresses) == Some(false) && state(&encrypted.addresses) == Some(true) {
            return Some(
                Verdict::new(
                    "dns_poisoning",
                    Strong,
                    format!(
                        "the addresses that {} gives for {} do not serve it",
                        system.server, facts.host
                    ),
                )
                .because([told(&system), told(&encrypted)])
                .because(failures(facts))
                .mend(format!("dns: {{default: {}}}", encrypted.server)),
            );
        }
    }
    // Who serves the world by an encrypted way knows nothing of the inside.
    let inside = found
        .iter()
        .find(|answer| !answer.is_encrypted && answer.addresses.iter().all(is_private))
        .copied();
    let denied = has("dns.nxdomain").or_else(|| has("dns.no_address"));
    if let (Some(inside), Some(denied)) = (inside, denied) {
        if direct.works() {
            return None;
        }
        return Some(
            Verdict::new(
                "split_dns",
                Strong,
                format!(
                    "{} is known inside only: {} knows it, {} does not",
                    facts.host, inside.server, denied.server
                ),
            )
            .because([told(&inside), told(&denied)])
            .mend(ask_at(&inside.server, &facts.host)),
        );
    }
    if let (Some(denied), Some(encrypted)) =
        (failed.iter().find(|answer| !answer.is_encrypted), encrypted)
    {
        return Some(
            Verdict::new(
                "dns_filtering",
                Strong,
                format!(
                    "{} does not tell {}, while {} does",
                    denied.server, facts.host, encrypted.server
                ),
            )
            .because([told(denied), told(&encrypted)])
            .mend(format!("dns: {{default: {}}}", encrypted.server)),
        );
    }
    if !found.is_empty() || failed.is_empty() || facts.ways.iter().any(Way::works) {
        return None;
    }
    // Who asks an upstream needs no name server: what happens behind it is what counts.
    let behind = |way: &&Way| {
        !way.is_direct()
            && way
                .failure()
                .is_some_and(|probe| probe.failed_of("tls.") || probe.failed_of("http."))
    };
    if let Some(way) = facts.ways.iter().find(behind) {
        let verdict = Verdict::new(
            "fails_behind_upstream",
            Strong,
            format!(
                "{} takes the request to {}, and it fails there",
                way.route, facts.host
            ),
        );
        return Some(
            verdict
                .because(failures(facts))
                .because(controls(way))
                .but("nothing is known of the direct way: no name server here tells the name")
                .mend("ask those who run the upstream, or try another one"),
        );
    }
    let first = failed.first()?;
    Some(match first.cause.as_deref() {
        Some("dns.nxdomain" | "dns.nxdomain_unsigned") => Verdict::new("name_does_not_exist", Strong, format!("there is no name {}", facts.host))
            .because(failed.iter().map(told))
            .mend("look at the spelling; a name of the inside needs its name server: dns.servers with domains"),
        Some("dns.timeout" | "dns.server_unreachable") => Verdict::new("dns_down", Certain, "no name server answers")
            .because(failed.iter().map(told))
            .mend("look at /etc/resolv.conf, and whether port 53 is open"),
        _ => Verdict::new("dns_fails", Strong, format!("the name servers of {} fail", facts.host)).because(failed.iter().map(told)),
    })
}
