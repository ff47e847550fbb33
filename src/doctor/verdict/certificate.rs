//! What certificates say: of the server, of who stands before it, and of the clock.

use super::Certainty::Certain;
use super::{Verdict, by, route_via};
use crate::doctor::facts::{Facts, Probe, Way};

pub(super) fn clock(facts: &Facts) -> Option<Verdict> {
    let is_time = |cause: Option<&String>| {
        let cause = cause.map(String::as_str);
        matches!(cause, Some("tls.cert.expired" | "tls.cert.not_yet_valid"))
    };
    let direct = facts.direct()?;
    let wrong: Vec<_> = direct
        .controls
        .iter()
        .filter(|probe| is_time(probe.cause.as_ref()))
        .collect();
    let all = wrong.len() == direct.controls.len() && wrong.len() >= 2;
    all.then(|| {
        Verdict::new("clock_skew", Certain, "the clock of this machine is wrong")
            .because(wrong.iter().map(|probe| {
                format!(
                    "{}: {}",
                    probe.with,
                    probe.message.as_deref().unwrap_or_default()
                )
            }))
            .mend("set the clock: timedatectl set-ntp true")
    })
}

pub(super) fn certificates(facts: &Facts) -> Option<Verdict> {
    let bad: Vec<_> = facts
        .ways
        .iter()
        .filter(|way| {
            way.certificate
                .as_ref()
                .is_some_and(|cert| !cert.is_trusted)
        })
        .collect();
    let good = facts
        .ways
        .iter()
        .find(|way| way.certificate.as_ref().is_some_and(|cert| cert.is_trusted));
    let told = |way: &&Way| {
        let cert = way.certificate.as_ref()?;
        Some(format!(
            "{}: {}, of {}, signed by {}",
            by(way),
            cert.verdict,
            cert.subject,
            cert.issuer
        ))
    };
    // A product that is trusted here is not trusted in a container.
    let opened = facts
        .ways
        .iter()
        .find_map(|way| Some((way, way.certificate.as_ref()?.interceptor?)));
    if let Some((way, product)) = opened {
        return Some(
            Verdict::new("tls_interception", Certain, format!("{product} opens TLS {}", by(way)))
                .because(told(&way))
                .because(good.iter().filter_map(told))
                .mend("let clients trust its authority: routecause run --ca FILE, or let it leave this host alone"),
        );
    }
    let first = bad.first()?;
    let cert = first.certificate.as_ref()?;
    if let Some(good) = good {
        let differs = good
            .certificate
            .as_ref()
            .is_some_and(|other| other.issuer != cert.issuer);
        let id = if differs {
            "tls_interception"
        } else {
            "bad_server_behind_one_way"
        };
        return Some(
            Verdict::new(
                id,
                Certain,
                format!("somebody shows another certificate {}", by(first)),
            )
            .because(bad.iter().filter_map(told))
            .because(told(&good))
            .mend(route_via(facts, good)),
        );
    }
    let sentence = match cert.verdict {
        "expired" => format!(
            "the server's certificate is past its time{}",
            cert.not_after
                .as_ref()
                .map(|at| format!(" since {at}"))
                .unwrap_or_default()
        ),
        "not_yet_valid" => {
            "the server's certificate is not valid yet, or this clock is slow".to_owned()
        }
        "name_mismatch" => format!("the server's certificate is not for {}", facts.host),
        "self_signed" => "the server's certificate is signed by itself".to_owned(),
        "unknown_issuer" => format!(
            "nobody here knows who signed the server's certificate: {}",
            cert.issuer
        ),
        "incomplete_chain" => "the server leaves out an intermediate certificate".to_owned(),
        other => format!("the server's certificate is of no use: {other}"),
    };
    let fix = match cert.verdict {
        "unknown_issuer" | "self_signed" => {
            "if that authority is yours, let clients trust it: SSL_CERT_FILE, routecause run --ca FILE"
        }
        _ => "those who run the server must mend it",
    };
    let verdict = Verdict::new("server_certificate_problem", Certain, sentence)
        .because(bad.iter().filter_map(told))
        .mend(fix);
    let is_stranger = |probe: &Probe| probe.failed_of("tls.cert.unknown_issuer");
    let mut controls = first.controls.iter().peekable();
    Some(if controls.peek().is_some() && controls.all(is_stranger) {
        verdict.but("nobody here knows who signed for the controls either: something opens TLS, or authorities are missing on this machine")
    } else {
        verdict
    })
}
