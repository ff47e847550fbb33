//! A handshake that fails, and what differs where it does not.

use super::Certainty::{Certain, Medium, Strong};
use super::{Verdict, by, controls, failures, other, route_via};
use crate::doctor::facts::{Content, Facts, Probe};

pub(super) fn handshakes(facts: &Facts) -> Option<Verdict> {
    let direct = facts.direct()?;
    let failure = direct.failure().filter(|_| !direct.works())?;
    let cause = failure.cause.as_deref()?;
    if !cause.starts_with("tls.") || cause.starts_with("tls.cert.") || cause == "tls.not_tls_reply"
    {
        return None;
    }
    let end = |verdict: Verdict| match other(facts) {
        Some(way) => verdict
            .because([format!("it works {}", by(way))])
            .mend(route_via(facts, way)),
        None => verdict,
    };
    if let Some(alert) = cause.strip_prefix("tls.alert_from_server.") {
        let verdict = Verdict::new(
            "server_configuration",
            Certain,
            format!("the server refuses the handshake itself: alert {alert}"),
        )
        .because(failures(facts));
        return Some(match other(facts) {
            Some(way) => verdict.but(format!(
                "it works {}: somebody may answer in the server's place",
                by(way)
            )),
            None => verdict.mend("see what the server offers for this name"),
        });
    }
    if matches!(
        cause,
        "tls.version_mismatch" | "tls.cipher_mismatch" | "tls.alpn_refused"
    ) {
        return Some(
            Verdict::new(
                "server_configuration",
                Certain,
                "server and client have nothing in common in TLS",
            )
            .because(failures(facts)),
        );
    }
    if cause == "tls.downgrade_sentinel" {
        return Some(end(Verdict::new(
            "tls_downgrade",
            Certain,
            "something on the way strips TLS 1.3",
        )
        .because(failures(facts))));
    }
    // As large, and answered: it is not the size.
    let is_size_borne = facts.cell(Content::DecoyName) == Some(true);
    if !is_size_borne && facts.cell(Content::SmallSegments) == Some(true) {
        return Some(end(Verdict::new(
            "pmtu_black_hole",
            Certain,
            "large packets are lost on the way and nobody says so",
        )
        .because(failures(facts))
        .because(["with segments of 536 bytes the handshake goes well".to_owned()])
        .mend(
            "lower the MTU of this machine's interface, or let ICMP \"fragmentation needed\" pass",
        )));
    }
    if !is_size_borne && facts.cell(Content::Small) == Some(true) {
        return Some(end(Verdict::new(
            "large_client_hello_intolerance",
            Certain,
            "something does not bear a ClientHello of two packets",
        )
        .because(failures(facts))
        .because(["a small ClientHello, without post-quantum keys, goes well".to_owned()])
        .mend(
            "update what is on the way; until then let clients leave X25519MLKEM768 out",
        )));
    }
    if facts.cell(Content::Only12) == Some(true) {
        return Some(end(Verdict::new(
            "tls13_intolerance",
            Strong,
            "TLS 1.3 fails there, TLS 1.2 works",
        )
        .because(failures(facts))
        .because(["a ClientHello of TLS 1.2 alone goes well".to_owned()])));
    }
    let decoy = facts.cell(Content::DecoyName);
    let unnamed = facts.cell(Content::NoName);
    let noise = facts.cell(Content::Noise);
    let elsewhere = facts.cell(Content::NameElsewhere);
    let is_control_fine = facts.cell(Content::Control) == Some(true)
        || direct.controls.iter().any(Probe::is_answered);
    let passes = decoy == Some(true) || unnamed == Some(true);
    let mechanism = match cause {
        "tls.reset_after_client_hello" => "a reset behind the ClientHello",
        "tls.closed_after_client_hello" => "an end behind the ClientHello",
        _ => "silence behind the ClientHello",
    };
    if passes && elsewhere == Some(false) && is_control_fine {
        return Some(end(Verdict::new(
            "sni_filtering",
            Certain,
            format!(
                "the name {} is filtered on the way: {mechanism}",
                facts.host
            ),
        )
        .because(["the same address answers to another name, or to none".to_owned()])
        .because(["the same name fails at another server's address as well".to_owned()])
        .because(failures(facts))
        .mend("route it via an upstream whose way is free")));
    }
    if passes && elsewhere == Some(true) {
        let verdict = if let Some(way) = other(facts) {
            Verdict::new(
                "name_and_address_filtering",
                Medium,
                format!("{} is filtered at its own address: {mechanism}", facts.host),
            )
            .mend(route_via(facts, way))
        } else {
            Verdict::new("server_rejects_name", Medium, format!("the server itself seems to refuse the name {}", facts.host))
                .but("a filter that looks at name and address together looks the same: try it via an upstream")
        };
        return Some(
            verdict
                .because(["the same address answers to another name, or to none".to_owned()])
                .because(["the name passes at another server's address".to_owned()])
                .because(failures(facts)),
        );
    }
    if passes && elsewhere.is_none() && is_control_fine {
        let certainty = if other(facts).is_some() {
            Strong
        } else {
            Medium
        };
        let verdict = Verdict::new(
            "sni_filtering",
            certainty,
            format!("the name {} is filtered: {mechanism}", facts.host),
        )
        .because(["the same address answers to another name, or to none".to_owned()])
        .because(failures(facts))
        .but("the name was not said at another address: the server itself may refuse it")
        .mend("route it via an upstream whose way is free");
        return Some(end(verdict));
    }
    if decoy == Some(false) && unnamed == Some(false) && noise == Some(false) && is_control_fine {
        return Some(end(
            Verdict::new("port_or_ip_blocking_after_handshake", Strong, format!("connections to {} stand, and whatever is sent on them is stopped: it is not the name", facts.target))
                .because(["another name, no name and bytes that are no TLS fail alike".to_owned()])
                .because(controls(direct))
                .because(failures(facts)),
        ));
    }
    other(facts).map(|way| {
        Verdict::new(
            "blocked_on_direct_way",
            Medium,
            format!("the handshake fails directly and works {}", by(way)),
        )
        .because(failures(facts))
        .because(controls(direct))
        .but("the name was not told from the address: no control served for that")
        .mend(route_via(facts, way))
    })
}

pub(super) fn block_page(facts: &Facts) -> Option<Verdict> {
    let way = facts.ways.iter().find(|way| {
        !way.works()
            && way
                .failure()
                .is_some_and(|failure| failure.failed_of("tls.not_tls_reply"))
    })?;
    let failure = way.failure()?;
    let message = failure.message.clone().unwrap_or_default();
    let verdict = if message.contains("HTTP/") {
        Verdict::new(
            "block_page",
            Strong,
            format!("a page of plain HTTP comes in place of TLS, {}", by(way)),
        )
    } else {
        Verdict::new(
            "not_tls",
            Strong,
            format!("what listens at {} does not speak TLS", facts.target),
        )
        .mend("look at the port: is it https at all?")
    };
    let verdict = verdict.because([format!("{}: {message}", by(way))]);
    Some(match facts.ways.iter().find(|way| way.works()) {
        Some(works) => verdict
            .because([format!("it works {}", by(works))])
            .mend(route_via(facts, works)),
        None => verdict,
    })
}
