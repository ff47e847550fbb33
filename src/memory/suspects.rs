//! From what one record shows, and what recent ones showed, to what is suspected. A suspect is never a cause, and is not
//! raised for what a server does by itself.

use std::borrow::Cow;
use std::net::SocketAddr;

use super::recent::{Recent, failing_addresses, failing_hop};
use crate::record::{Outcome, Record, Suspect};

/// A reset sooner than this part of the smallest round trip cannot have come from the far end.
const TOO_SOON: f64 = 0.7;
/// Round trips below this, in milliseconds, are no measure: a scheduler's whim is as long.
const MEASURABLE_MS: f64 = 5.0;

/// A server that resets what it accepts does so within this, in milliseconds.
const ACCEPT_MS: f64 = 20.0;
/// From this part of a round trip on, a reset may be the far end's.
const ALMOST_ONE: f64 = 0.9;

/// Names that a pattern must hold for before it says something of a client, an issuer or a clock.
const MANY_NAMES: usize = 3;
/// Sites that one unknown issuer must sign for before it is a pattern: a company's own authority signs for one.
const SEVERAL_SITES: usize = 2;
/// Tunnels that must die of silence before it is a pattern.
const SILENCES: usize = 3;
/// Clients that must fail at one address while others are fine.
const CLIENTS: usize = 2;
/// Successes of a minute after which refusals look like a limit.
const BUSY: usize = 20;

/// What a record leads to suspect, the surest first.
pub(super) fn judge(record: &Record, recent: &mut Recent) -> Vec<Suspect> {
    if shows_nothing(record) {
        return Vec::new();
    }
    let mut suspects: Vec<Suspect> = [
        filtering(record, recent),
        device(record),
        dns_poisoning(record),
        tls_interception(record, recent),
        missing_ca(record, recent),
        page(record),
        upstream(record),
        idle_timeout(record, recent),
        ipv6_broken(record),
        bad_node(record, recent),
        server_down(record, recent),
        clock_skew(record, recent),
        rate_limit(record, recent),
    ]
    .into_iter()
    .flatten()
    .collect();
    suspects.sort_by(|a, b| b.score.total_cmp(&a.score));
    suspects
}

/// Whether all went well and nothing else was looked at, as of most plain requests: none of the patterns fits.
fn shows_nothing(record: &Record) -> bool {
    record.outcome == Outcome::Success
        && record.tls.is_none()
        && record.notes.is_empty()
        && record
            .attempts
            .iter()
            .all(|attempt| attempt.cause.is_none())
        && replies(record) <= 1
}

fn suspect(
    name: &'static str,
    score: f64,
    evidence: impl IntoIterator<Item = Cow<'static, str>>,
) -> Suspect {
    Suspect {
        name,
        // Sums of tenths, without their last bits.
        score: (score * 100.0).round() / 100.0,
        evidence: evidence.into_iter().collect(),
    }
}

fn cause(record: &Record) -> &str {
    record.error_type.as_deref().unwrap_or_default()
}

/// Whether nobody at the far end can have seen the ClientHello: not acknowledged, or answered by a reset that outran the
/// path; and the reset was no answer to the connection.
pub(super) fn is_lost(record: &Record) -> bool {
    if record.upstream_name.is_some() {
        return false;
    }
    match cause(record) {
        "tls.client_hello_blackholed" => true,
        "tls.reset_after_client_hello" => {
            let Some(reset) = &record.reset else {
                return false;
            };
            // Where a part was acknowledged, the reset may be an answer to that part: the last write is no measure.
            let is_whole = reset.last_write_acked == Some(true);
            reset.accept_race == Some(false)
                && (is_unacked(record) || is_whole && is_too_soon(record))
        }
        _ => false,
    }
}

fn is_unacked(record: &Record) -> bool {
    let acked = record.server_tcp.as_ref().and_then(|tcp| tcp.bytes_acked);
    acked.is_some_and(|bytes| bytes <= 1)
}

fn is_too_soon(record: &Record) -> bool {
    let min_rtt = record.server_tcp.as_ref().and_then(|tcp| tcp.min_rtt_ms);
    let ratio = record.reset.as_ref().and_then(|reset| reset.rtt_ratio);
    let resent = record
        .server_tcp
        .as_ref()
        .and_then(|tcp| tcp.retransmissions);
    min_rtt.is_some_and(|rtt| rtt >= MEASURABLE_MS)
        && ratio.is_some_and(|ratio| ratio < TOO_SOON)
        && resent == Some(0)
}

/// A ClientHello that was lost: for its name, where another name is fine at the same address; for address or port, where
/// other names are lost there too.
fn filtering(record: &Record, recent: &mut Recent) -> Option<Suspect> {
    if !is_lost(record) || is_contested(record) || server_down(record, recent).is_some() {
        return None;
    }
    let address = SocketAddr::new(record.peer_address?, record.peer_port?);
    let name = record.tls.as_ref()?.server_name.as_deref()?;
    let story = recent.address(address)?;
    let losses = story.losses(name);
    if losses < losses_needed(record)? {
        return None;
    }
    let mut evidence: Vec<Cow<'static, str>> = Vec::new();
    let mut score = 0.5;
    if is_unacked(record) {
        evidence.push("client_hello_unacked".into());
        score += 0.2;
    }
    if is_too_soon(record) {
        evidence.push("rst_faster_than_rtt".into());
        score += 0.1;
    }
    if losses > 1 {
        evidence.push(format!("lost_{losses}_times_in_a_row").into());
    }
    if let Some(ago) = story.other_was_fine(name) {
        let seconds = ago.as_secs();
        evidence.push(format!("other_sni_ok_same_ip_{seconds}s_ago").into());
        return Some(suspect("sni_filtering", score, evidence));
    }
    let others = story.others_lost(name);
    if others > 0 {
        evidence.push(format!("other_sni_lost_same_ip_{others}").into());
        return Some(suspect("port_or_ip_blocking", 0.6, evidence));
    }
    None
}

/// How often in a row a ClientHello must be lost before that says something. On a short way a genuine reset may happen to be
/// sent, as an answer to the connection, just before anything arrived: not time after time.
///
/// Nothing where no number says anything: a far end that delays its acknowledgements (RFC 1122, section 4.2.3.2), and resets
/// before that, does so each time, one round trip behind the ClientHello.
fn losses_needed(record: &Record) -> Option<usize> {
    let Some(reset) = record.reset.as_ref() else {
        return Some(1);
    };
    let tcp = record.server_tcp.as_ref();
    let min_rtt = tcp.and_then(|tcp| tcp.min_rtt_ms).unwrap_or_default();
    let sent_after = reset.after_connect_ms.zip(reset.after_ms);
    let sent_after = sent_after.map_or(0.0, |(connect, write)| connect - write);
    if min_rtt < MEASURABLE_MS {
        Some(if sent_after >= ACCEPT_MS { 1 } else { 2 })
    } else {
        let is_nearer = reset.rtt_ratio.is_some_and(|ratio| ratio < ALMOST_ONE);
        is_nearer.then_some(1)
    }
}

/// A device said itself that it forbids the connection.
fn device(record: &Record) -> Option<Suspect> {
    let cause = cause(record);
    let is_so = matches!(cause, "connect.prohibited" | "connect.refused_by_device");
    let says = cause.to_owned().into();
    is_so.then(|| suspect("port_or_ip_blocking", 0.6, [says]))
}

fn is_contested(record: &Record) -> bool {
    matches!(
        cause(record),
        "dns.double_reply" | "dns.known_forged" | "dns.bogon"
    ) || replies(record) > 1
}

/// How many answers came to the one question for the target's name.
fn replies(record: &Record) -> u32 {
    let dns = record.dns.as_ref();
    dns.and_then(|dns| dns.replies).unwrap_or(1)
}

fn dns_poisoning(record: &Record) -> Option<Suspect> {
    let evidence = match cause(record).strip_prefix("dns.") {
        Some(told) if is_contested(record) => told.to_owned().into(),
        _ if is_contested(record) => "double_reply".into(),
        _ => return None,
    };
    Some(suspect("dns_poisoning", 0.9, [evidence]))
}

fn tls_interception(record: &Record, recent: &mut Recent) -> Option<Suspect> {
    let tls = record.tls.as_ref();
    let certificate = tls.and_then(|tls| tls.certificate);
    let mut evidence: Vec<Cow<'static, str>> = Vec::new();
    if certificate == Some("known_interceptor") || cause(record).ends_with(".known_interceptor") {
        evidence.push("issuer_is_an_inspection_product".into());
    }
    if certificate == Some("unknown_issuer")
        && let Some(issuer) = tls.and_then(|tls| tls.issuer.as_deref())
    {
        let sites = recent.sites_of_issuer(issuer);
        if sites >= SEVERAL_SITES {
            evidence.push(format!("same_unknown_issuer_for_{sites}_sites").into());
        }
    }
    let is_downgraded = record.notes.contains(&"tls.downgrade_sentinel")
        || cause(record) == "tls.downgrade_sentinel";
    if is_downgraded {
        evidence.push("downgrade_sentinel".into());
    }
    if is_rejection(cause(record))
        && let (Some(host), Some(port)) = (&record.server_address, record.server_port)
        && let Some(hop) = record.hop.as_deref()
        && let Some(other) = recent
            .target(host, port)
            .and_then(|target| target.fine_elsewhere(hop))
    {
        evidence.push(format!("certificate_accepted_via_{other}").into());
    }
    (!evidence.is_empty()).then(|| suspect("tls_interception", 0.8, evidence))
}

/// Whether a client did not like a certificate.
pub(super) fn is_rejection(cause: &str) -> bool {
    cause.starts_with("tls.client_rejected_certificate.")
        || cause == "tls.client_closed_after_server_flight"
}

fn missing_ca(record: &Record, recent: &mut Recent) -> Option<Suspect> {
    let is_trusted = record.tls.as_ref()?.certificate == Some("valid");
    let names = recent.names_rejected_by(record.client_address);
    (is_rejection(cause(record)) && is_trusted && names >= MANY_NAMES).then(|| {
        let evidence = format!("rejects_{names}_names_that_are_trusted_here");
        suspect("missing_ca_in_client", 0.9, [evidence.into()])
    })
}

/// A page where none was asked for.
fn page(record: &Record) -> Option<Suspect> {
    match (
        cause(record),
        record.tls.as_ref().and_then(|tls| tls.reply_status),
    ) {
        ("http.captive_portal", _) => Some(suspect("captive_portal", 0.9, ["status_511".into()])),
        ("tls.not_tls_reply", Some(511)) => {
            Some(suspect("captive_portal", 0.9, ["status_511".into()]))
        }
        ("tls.not_tls_reply", Some(status @ (300..=399 | 403 | 451))) => {
            let evidence = format!("http_{status}_to_a_client_hello");
            Some(suspect("block_page", 0.9, [evidence.into()]))
        }
        _ => None,
    }
}

fn upstream(record: &Record) -> Option<Suspect> {
    let told = cause(record).strip_prefix("upstream.")?;
    let name = match told {
        "denied" | "port_denied" => "upstream_policy",
        "auth_required" | "auth_rejected" | "auth_scheme_unsupported" | "auth_unavailable" => {
            "upstream_auth"
        }
        _ => return None,
    };
    Some(suspect(name, 1.0, [told.to_owned().into()]))
}

fn idle_timeout(record: &Record, recent: &Recent) -> Option<Suspect> {
    if !cause(record).ends_with("_after_idle") {
        return None;
    }
    // A timer lets none live that was silent for longer: what died sooner than others live died of something else.
    let hop = record.hop.as_deref().unwrap_or_default();
    let survived = recent.survived(hop);
    let silences = recent.silences(hop).filter(|ms| *ms > survived);
    let count = silences.clone().count();
    if count < SILENCES || record.idle_before_ms.is_none_or(|ms| ms <= survived) {
        return None;
    }
    let shortest = silences.fold(f64::INFINITY, f64::min);
    let mut evidence: Vec<Cow<'static, str>> = vec![
        format!("{count}_tunnels_died_of_silence").into(),
        format!("shortest_silence_{:.0}s", shortest / 1000.0).into(),
    ];
    if survived > 0.0 {
        evidence.push(format!("longest_silence_survived_{:.0}s", survived / 1000.0).into());
    }
    Some(suspect("idle_timeout_middlebox", 0.8, evidence))
}

/// All of one family failed and the other connected. A host without IPv6 is no failure of IPv6, and where a server answers
/// by a reset it is the server that does not listen.
fn ipv6_broken(record: &Record) -> Option<Suspect> {
    let of = |family: &'static str| {
        let attempts = record.attempts.iter();
        attempts.filter(move |attempt| attempt.family == Some(family))
    };
    let failed = |cause: &str| {
        let told = cause.strip_prefix("upstream.").unwrap_or(cause);
        told.starts_with("connect.")
            && !matches!(
                told,
                "connect.overtaken"
                    | "connect.family_unsupported"
                    | "connect.refused"
                    | "connect.reset"
            )
    };
    let v6: Vec<_> = of("ipv6").collect();
    let all_fail = v6
        .iter()
        .all(|attempt| attempt.cause.as_deref().is_some_and(failed));
    let v4_is_fine = of("ipv4").any(|attempt| attempt.cause.is_none() && !attempt.reused);
    (!v6.is_empty() && all_fail && v4_is_fine).then(|| {
        let causes = v6.iter().filter_map(|attempt| attempt.cause.clone());
        suspect("ipv6_broken", 1.0, causes.take(3))
    })
}

fn bad_node(record: &Record, recent: &mut Recent) -> Option<Suspect> {
    let (host, port) = (record.server_address.as_deref()?, record.server_port?);
    let target = recent.target(host, port)?;
    let worst = failing_addresses(record).into_iter().find_map(|ip| {
        let clients = target.fails_alone(ip);
        (clients >= CLIENTS).then_some((ip, clients))
    });
    worst.map(|(ip, clients)| {
        let evidence = format!("{ip}_fails_for_{clients}_clients_others_are_fine");
        suspect("bad_cdn_node", 0.8, [evidence.into()])
    })
}

fn server_down(record: &Record, recent: &mut Recent) -> Option<Suspect> {
    let is_so = [
        "connect.",
        "tls.reset",
        "tls.closed",
        "tls.no_",
        "tls.client_hello_",
    ]
    .iter()
    .any(|family| cause(record).starts_with(family));
    let (host, port) = (record.server_address.as_deref()?, record.server_port?);
    let hop = failing_hop(record, cause(record))?;
    let target = recent.target(host, port)?;
    let others = target.fails_elsewhere(hop).filter(|_| is_so)?;
    let evidence = others
        .iter()
        .map(|other| format!("fails_via_{other}").into());
    Some(suspect("server_down", 0.9, evidence))
}

fn clock_skew(record: &Record, recent: &Recent) -> Option<Suspect> {
    let certificate = record.tls.as_ref()?.certificate?;
    let names = recent.misdated.count();
    let is_so = matches!(certificate, "expired" | "not_yet_valid") && names >= MANY_NAMES;
    is_so.then(|| {
        let evidence = format!("dates_fail_for_{names}_names");
        suspect("clock_skew", 1.0, [evidence.into()])
    })
}

fn rate_limit(record: &Record, recent: &mut Recent) -> Option<Suspect> {
    let status = cause(record).strip_prefix("http.status.")?;
    let (host, port) = (record.server_address.as_deref()?, record.server_port?);
    let successes = recent.target(host, port)?.successes();
    (matches!(status, "403" | "429" | "503") && successes >= BUSY).then(|| {
        let evidence = format!("{successes}_successes_in_the_minute_before");
        suspect("waf_or_rate_limit", 0.6, [evidence.into()])
    })
}
