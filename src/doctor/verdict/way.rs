//! A way as a whole: is it up, is a portal or an upstream in it, does it work.

use super::Certainty::{Certain, Medium, Strong};
use super::{Verdict, by, controls, failures, of_credentials, route_via, rule};
use crate::doctor::facts::{Facts, Hop, Probe, Way};

pub(super) fn route_down(facts: &Facts) -> Option<Verdict> {
    let chosen = facts.chosen.as_deref().unwrap_or("direct");
    let way = facts.ways.iter().find(|way| way.route == chosen);
    let way = way.or_else(|| facts.direct())?;
    if way.is_up() != Some(false) || way.works() || way.portal.is_some_and(|status| status != 204) {
        return None;
    }
    // What an upstream says of itself is told better below.
    if way
        .failure()
        .is_some_and(|failure| failure.failed_of("upstream."))
    {
        return None;
    }
    let first = way.controls.first()?;
    // The target itself shows that there is a way: the controls were badly chosen, or are filtered.
    let is_early = first.failed_of("dns.") || first.failed_of("connect.");
    let has_answered = |failure: &Probe| {
        ["connect.refused", "tls.", "http."]
            .iter()
            .any(|family| failure.failed_of(family))
    };
    if is_early && way.failure().is_some_and(has_answered) {
        return None;
    }
    let layer = first
        .cause
        .as_deref()
        .and_then(|cause| cause.split('.').next());
    let layer = match layer {
        Some("dns") => "no name is found",
        Some("connect") => "no connection comes about",
        Some("tls") => "no handshake comes about",
        _ => "nothing answers",
    };
    let verdict = Verdict::new(
        "route_down",
        Certain,
        format!("nothing works {}: {layer}", by(way)),
    )
    .because(way.controls.iter().map(|probe| {
        format!(
            "control {}: {}: {}",
            probe.with,
            probe.cause.as_deref().unwrap_or_default(),
            probe.message.as_deref().unwrap_or_default()
        )
    }));
    let up = facts.ways.iter().find(|other| other.is_up() == Some(true));
    Some(match up {
        Some(up) => verdict.mend(route_via(facts, up)),
        None => {
            verdict.mend("look at the network of this machine first: cable, VPN, gateway, firewall")
        }
    })
}

pub(super) fn captive_portal(facts: &Facts) -> Option<Verdict> {
    let way = facts
        .ways
        .iter()
        .find(|way| way.portal.is_some_and(|status| status != 204))?;
    let status = way.portal?;
    Some(
        Verdict::new(
            "captive_portal",
            Certain,
            format!(
                "a portal answers in place of servers, {}: log in to the network first",
                by(way)
            ),
        )
        .because([format!("a page that answers 204 answered {status}")])
        .because(failures(facts))
        .mend("open any http:// page in a browser and log in"),
    )
}

pub(super) fn upstream(facts: &Facts) -> Option<Verdict> {
    let chosen = facts.chosen.as_deref()?;
    let way = facts
        .ways
        .iter()
        .find(|way| way.route == chosen && !way.is_direct())?;
    let failure = way.failure().filter(|_| !way.works())?;
    let cause = failure.cause.as_deref()?;
    let rest = cause.strip_prefix("upstream.")?;
    let name = &way.route;
    let serves_others = way.is_up() == Some(true);
    // The direct way shows that it is the origin.
    let is_origins = facts
        .direct()
        .and_then(Way::failure)
        .is_some_and(|failure| failure.failed_of("http."));
    let verdict = match rest.split('.').next()? {
        "auth_rejected" => {
            Verdict::new("upstream_auth", Certain, format!("{name} refuses the credentials that it gets"))
                .mend(of_credentials(name))
        }
        "auth_scheme_unsupported" => {
            Verdict::new("upstream_auth", Certain, format!("{name} wants who we are told in a way that may not be used"))
                .mend(format!("look at upstreams.{name}.auth.schemes, and at what {name} offers"))
        }
        "auth_unavailable" => {
            Verdict::new("upstream_auth", Certain, format!("the credentials for {name} cannot be had"))
                .mend(format!("look at the file, the program or the ticket (klist) that upstreams.{name}.auth names"))
        }
        "auth_required" => {
            Verdict::new("upstream_auth", Certain, format!("{name} wants credentials, and gets none"))
                .mend(format!("upstreams: {{{name}: {{auth: {{username: {{env: PROXY_USER}}, password: {{env: PROXY_PASSWORD}}}}}}}}"))
        }
        "denied" | "port_denied" => {
            Verdict::new("upstream_denies", Certain, format!("{name} refuses this target by its own rules"))
                .mend(format!("ask those who run {name} to allow {}", facts.target))
        }
        // Of its reply to a plain request the bytes may be the origin's.
        "no_reply" | "closed" | "reset" | "malformed_reply" if serves_others && is_origins => {
            return None;
        }
        "reported" if serves_others && !facts.direct().is_some_and(Way::works) => return None,
        "no_reply" | "closed" | "reset" | "malformed_reply" | "reported" if serves_others => Verdict::new(
            "fails_behind_upstream",
            Strong,
            format!("{name} works for others, and not for {}", facts.target),
        )
        .because(controls(way))
        .mend("ask those who run the upstream, or try another one"),
        "connect_unsupported" | "redirected" | "malformed_reply" => Verdict::new(
            "not_a_forward_proxy",
            Certain,
            format!("what listens where {name} should be is no forward proxy"),
        )
        .mend(format!("look at upstreams.{name}.url: host, port, http or https")),
        "tls" if rest.starts_with("tls.cert.") => Verdict::new(
            "upstream_certificate",
            Certain,
            format!("{name} is there, and shows a certificate that is not trusted here"),
        )
        .mend(format!(
            "if it is the right one, name its authority: upstreams.{name}.tls.ca; else look at upstreams.{name}.url, and ask those who run {name}"
        )),
        "tls" if rest == "tls.not_tls_reply" => Verdict::new(
            "not_a_forward_proxy",
            Certain,
            format!("what listens where {name} should be does not speak TLS"),
        )
        .mend(format!("look at upstreams.{name}.url: port, and http:// in place of https://")),
        "dns" | "connect" | "tls" | "no_reply" | "closed" | "reset" => Verdict::new(
            "upstream_down",
            Certain,
            format!("{name} itself cannot be reached, or does not answer"),
        )
        .mend(format!("look at upstreams.{name}.url, and whether {name} runs")),
        "rate_limited" => {
            Verdict::new("upstream_fails", Certain, format!("{name} says that it was asked too often"))
                .mend(format!("wait, or ask those who run {name} for a higher limit"))
        }
        "loop" => {
            Verdict::new("upstream_fails", Certain, format!("{name} says that the request came back to it"))
                .mend(format!("look at the proxies that {name} uses itself: one of them leads back"))
        }
        _ => Verdict::new("upstream_fails", Certain, format!("{name} could not reach the target"))
            .mend(format!("see what {name}'s own log says of it, or try another way")),
    };
    let verdict = verdict.because(failures(facts));
    let works = facts.ways.iter().find(|other| facts.reaches(other));
    Some(match works {
        Some(works) => verdict.but(format!("the target works {}", by(works))),
        None => verdict,
    })
}

/// Who passes by an upstream where the target does not, and the direct way was not to be looked at.
pub(super) fn behind_upstream(facts: &Facts) -> Option<Verdict> {
    let chosen = facts.chosen.as_deref()?;
    let way = facts.ways.iter().find(|way| way.route == chosen)?;
    let failure = way.failure().filter(|_| !way.works())?;
    let is_silent = failure.failed_of("tls.") && !failure.is_answered();
    if facts.direct().is_some() || !is_silent || way.is_up() != Some(true) {
        return None;
    }
    let name = &way.route;
    let verdict = Verdict::new(
        "fails_behind_upstream",
        Strong,
        format!("{name} works for others, and not for {}", facts.target),
    );
    let verdict = verdict
        .because(failures(facts))
        .because(controls(way))
        .but("the direct way was not looked at: the policy does not lead there")
        .mend("ask those who run the upstream, or try another one");
    Some(verdict)
}

/// It fails alike on every way.
pub(super) fn everywhere(facts: &Facts) -> Option<Verdict> {
    let is_served = |way: &Way| {
        let has_spoken = |failure: &Probe| failure.failed_of("tls.") || failure.failed_of("http.");
        facts.reaches(way) || way.certificate.is_some() || way.failure().is_some_and(has_spoken)
    };
    if facts.ways.iter().any(is_served) {
        return None;
    }
    let direct = facts.direct()?;
    let failure = direct.failure()?;
    let cause = failure.cause.as_deref()?;
    if cause == "connect.refused" {
        return Some(
            Verdict::new(
                "server_down",
                Certain,
                format!("{} says itself that nothing listens there", facts.target),
            )
            .because(failures(facts))
            .because(controls(direct))
            .mend("look at the port, and whether the service runs"),
        );
    }
    let others: Vec<_> = facts
        .ways
        .iter()
        .filter(|way| !way.is_direct() && way.is_up() != Some(false))
        .collect();
    let is_alike = !others.is_empty()
        && others.iter().all(|way| {
            let of = |probe: &Probe| {
                probe.failed_of("upstream.reported.") || probe.failed_of("connect.")
            };
            way.failure().is_some_and(of)
        });
    (cause.starts_with("connect.") && is_alike).then(|| {
        Verdict::new(
            "server_down",
            Strong,
            format!("{} does not answer on any way", facts.target),
        )
        .because(failures(facts))
        .because(controls(direct))
        .mend("wait, or ask those who run it")
    })
}

pub(super) fn intermittent(facts: &Facts) -> Option<Verdict> {
    let way = facts
        .ways
        .iter()
        .find(|way| way.works() && way.failure().is_some())?;
    let verdict = Verdict::new(
        "intermittent",
        Medium,
        format!("it fails now and then, {}", by(way)),
    )
    .because(failures(facts));
    let is_other = |other: &&Way| other.route != way.route && other.works();
    Some(match facts.ways.iter().find(is_other) {
        Some(other) => {
            let chain = format!("via: \"{}|{}\"", way.route, other.route);
            verdict.mend(rule(&facts.host, None, &chain))
        }
        None => {
            verdict.mend("let clients try again: curl --retry 3, pip --retries, npm fetch-retries")
        }
    })
}

pub(super) fn fine(facts: &Facts) -> Option<Verdict> {
    let chosen = facts.chosen.as_deref().unwrap_or("direct");
    let way = facts
        .ways
        .iter()
        .find(|way| way.route == chosen && way.works());
    let way = way.or_else(|| facts.ways.iter().find(|way| way.works()))?;
    let mut verdict = Verdict::new(
        "fine",
        Certain,
        format!("{} works {}", facts.target, by(way)),
    );
    if let Some(cert) = &way.certificate {
        verdict = verdict.because([format!(
            "its certificate is {}, signed by {}",
            cert.verdict, cert.issuer
        )]);
    }
    if let Some(status) = way.status() {
        let told = format!("HEAD {} is answered with {status}", facts.path);
        verdict = if status < 400 {
            verdict.because([told])
        } else {
            verdict.but(format!("{told}; nothing else was asked for"))
        };
    }
    for other in facts.ways.iter().filter(|other| other.route != way.route) {
        if let Some(trouble) = trouble(facts, other) {
            verdict = verdict.but(trouble);
        }
    }
    Some(verdict)
}

/// What is the matter with a way beside the one that works.
fn trouble(facts: &Facts, way: &Way) -> Option<String> {
    let by = by(way);
    if let Some(failure) = way.failure() {
        let cause = failure.cause.as_deref().unwrap_or_default();
        return Some(if way.works() {
            format!("it fails now and then {by}: {cause}")
        } else {
            format!("it does not work {by}: {cause}")
        });
    }
    if let Some(status) = way.portal.filter(|status| *status != 204) {
        return Some(format!(
            "a portal answers {by}: a page that answers 204 answered {status}"
        ));
    }
    if let Some(product) = way.certificate.as_ref().and_then(|cert| cert.interceptor) {
        return Some(format!("{product} opens TLS {by}"));
    }
    let status = way.status().filter(|status| *status >= 400)?;
    Some(format!(
        "HEAD {} is answered with {status} {by}",
        facts.path
    ))
}

/// From where on the way something cuts off what is said to the target; nothing where that was not looked for.
pub(super) fn place(facts: &Facts) -> Option<String> {
    let told = |hop: &Hop| match hop.address {
        Some(address) if hop.is_target => {
            format!("the target itself ({address}, hop {})", hop.number)
        }
        Some(address) => format!("{address} (hop {})", hop.number),
        None => format!("hop {}, which does not say who it is,", hop.number),
    };
    let last = facts.hops.last()?;
    let Some(at) = facts.hops.iter().position(|hop| hop.cuts_name) else {
        return Some(format!(
            "of {} hops none answers with an end: what drops in silence cannot be placed",
            last.number
        ));
    };
    let hop = facts.hops.get(at)?;
    if hop.cuts_decoy {
        return Some(format!("every name is cut off, at {}", told(hop)));
    }
    let before = at.checked_sub(1).and_then(|before| facts.hops.get(before));
    let before = before.map_or_else(|| "this machine".to_owned(), told);
    Some(format!("it is cut off between {before} and {}", told(hop)))
}
