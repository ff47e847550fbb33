mod answers;
mod notation;

use std::net::IpAddr;

use self::notation::{check, facts, loads};
use super::super::facts::Hop;
use super::Certainty::{Certain, Strong};
use super::*;

const RESET: &str = "tls.reset_after_client_hello";

#[test]
fn the_way_and_this_machine_come_first() {
    check(
        "fine",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok,ok target=ok cert=valid:CA h1=200 h2=200",
    );
    check(
        "clock_skew",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=tls.cert.not_yet_valid,tls.cert.not_yet_valid target=tls.cert.not_yet_valid cert=not_yet_valid:CA",
    );
    check(
        "route_down",
        Certain,
        "dns system !dns.timeout\nway direct control=dns.timeout,dns.timeout target=dns.timeout,dns.timeout",
    );
    check(
        "route_down",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.timeout\nway direct control=connect.timeout target=connect.timeout,connect.timeout\nway corp control=ok target=ok",
    );
    // Who passed lately and refuses now was reached.
    for (proven, id) in [("", "route_down"), (" proven", "unexplained")] {
        let lines = format!(
            "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.timeout\nway direct control=connect.refused target=connect.timeout,connect.timeout{proven}"
        );
        assert_eq!(judge(&facts(&lines)).id, id);
    }
    check(
        "captive_portal",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct portal=302 control=tls.cert.unknown_issuer target=tls.cert.unknown_issuer cert=unknown_issuer:Hotel",
    );
    check(
        "intermittent",
        Medium,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target=connect.timeout,ok cert=valid:CA",
    );
}

#[test]
fn upstreams_speak_for_themselves() {
    for (cause, id) in [
        ("upstream.auth_required", "upstream_auth"),
        ("upstream.auth_rejected", "upstream_auth"),
        ("upstream.auth_scheme_unsupported", "upstream_auth"),
        ("upstream.auth_unavailable", "upstream_auth"),
        ("upstream.denied", "upstream_denies"),
        ("upstream.connect_unsupported", "not_a_forward_proxy"),
        ("upstream.malformed_reply", "not_a_forward_proxy"),
        ("upstream.connect.refused", "upstream_down"),
        ("upstream.no_reply", "upstream_down"),
        ("upstream.tls.no_server_hello", "upstream_down"),
        ("upstream.tls.cert.unknown_issuer", "upstream_certificate"),
        ("upstream.tls.not_tls_reply", "not_a_forward_proxy"),
        ("upstream.rate_limited", "upstream_fails"),
        ("upstream.loop", "upstream_fails"),
        ("upstream.reported.dns", "upstream_fails"),
    ] {
        check(
            id,
            Certain,
            &format!(
                "chosen corp\ndns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct target=ok cert=valid:CA\nway corp control={cause} target={cause},{cause}"
            ),
        );
    }
    // Where the direct way was not looked at, others behind it are what is left to hold it against.
    for (control, target, id, certainty) in [
        ("ok", RESET, "fails_behind_upstream", Strong),
        (RESET, RESET, "route_down", Certain),
        (
            "ok",
            "tls.alert_from_server.internal_error",
            "unexplained",
            Medium,
        ),
    ] {
        check(
            id,
            certainty,
            &format!("chosen corp\nway corp control={control} target={target},{target}"),
        );
    }
    // It answers for others.
    let silent = "target=upstream.no_reply";
    check(
        "fails_behind_upstream",
        Strong,
        &format!(
            "plain\nchosen corp\ndns system 192.0.2.1\ntcp 192.0.2.1:80\nway direct control=ok target=connect.timeout\nway corp control=ok {silent}"
        ),
    );
    // It is the origin that does not, on the direct way as well.
    check(
        "origin_does_not_answer",
        Strong,
        &format!(
            "plain\nchosen corp\ndns system 192.0.2.1\ntcp 192.0.2.1:80\nway direct control=ok target=http.empty_reply h1=!\nway corp control=ok {silent}"
        ),
    );
    // It tells of the target, which others reach.
    check(
        "fails_behind_upstream",
        Strong,
        "chosen corp\nway direct control=ok target=ok h1=200\nway corp control=ok target=upstream.reported.dns",
    );
    // Each is told for what it is, and what to do: credentials that are refused are none that are missing.
    for (cause, part) in [
        ("rate_limited", "asked too often"),
        ("loop", "came back to it"),
        ("reported.dns", "could not reach the target"),
        ("auth_required", "gets none"),
        ("auth_rejected", "refuses the credentials that it gets"),
    ] {
        let verdict = judge(&facts(&format!(
            "chosen corp\nway direct target=ok\nway corp target=upstream.{cause}"
        )));
        assert!(verdict.sentence.contains(part), "{verdict:?}");
        assert!(verdict.fix.is_some(), "{verdict:?}");
    }
}

#[test]
fn names_are_compared() {
    let direct = "way direct control=ok target=dns.timeout,dns.timeout";
    check(
        "dns_poisoning",
        Certain,
        "dns system !dns.double_reply\ndns clean~ 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target=dns.double_reply,dns.double_reply",
    );
    check(
        "dns_poisoning",
        Strong,
        "dns system !dns.bogon\nway direct control=ok target=dns.bogon,dns.bogon",
    );
    check(
        "dns_poisoning",
        Strong,
        "dns system 203.0.113.9\ndns clean~ 192.0.2.1\ntcp 203.0.113.9:443 !connect.timeout\ntcp 192.0.2.1:443\nway direct control=ok target=connect.timeout,connect.timeout",
    );
    check(
        "dns_port_blocked",
        Certain,
        &format!("dns system !dns.timeout\ndns clean~ 192.0.2.1\ntcp 192.0.2.1:443\n{direct}"),
    );
    check(
        "dns_filtering",
        Strong,
        "dns system !dns.nxdomain\ndns clean~ 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target=dns.nxdomain,dns.nxdomain",
    );
    check(
        "dns_filtering",
        Certain,
        "dns system !dns.blocked_by_resolver\nway direct control=ok target=dns.blocked_by_resolver,dns.blocked_by_resolver",
    );
    check(
        "split_dns",
        Strong,
        "dns system !dns.nxdomain\ndns inner 10.1.2.3\ntcp 10.1.2.3:443\nway direct control=ok target=dns.nxdomain,dns.nxdomain",
    );
    check(
        "name_does_not_exist",
        Strong,
        "dns system !dns.nxdomain\nway direct control=ok target=dns.nxdomain,dns.nxdomain",
    );
    // An upstream that is told names needs none of these servers.
    check(
        "fails_behind_upstream",
        Strong,
        &format!(
            "dns system !dns.nxdomain\nway direct control=ok target=dns.nxdomain,dns.nxdomain\nway corp control=ok target={RESET},{RESET}"
        ),
    );
    check(
        "dns_down",
        Certain,
        &format!("dns system !dns.timeout\n{direct}"),
    );
    check(
        "dns_fails",
        Strong,
        "dns system !dns.servfail\nway direct control=ok target=dns.servfail,dns.servfail",
    );
    // Addresses that differ and serve are no fault: providers give what is near.
    check(
        "fine",
        Certain,
        "dns system 192.0.2.1\ndns clean~ 192.0.2.2\ntcp 192.0.2.1:443\ntcp 192.0.2.2:443\nway direct control=ok target=ok cert=valid:CA",
    );
}

#[test]
fn addresses_are_told_apart() {
    // It listens on one of them only, as many do on localhost.
    check(
        "fine",
        Certain,
        "dns system ::1 127.0.0.1\ntcp [::1]:443 !connect.refused\ntcp 127.0.0.1:443\nway direct control=ok target=ok cert=valid:CA",
    );
    // Controls that nobody knows say nothing of a way by which the target answers.
    check(
        "server_certificate_problem",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=dns.nxdomain,dns.nxdomain target=tls.cert.expired,tls.cert.expired cert=expired:CA",
    );
    let timeout = "target=connect.timeout,connect.timeout";
    check(
        "server_down",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.refused\nway direct control=ok target=connect.refused,connect.refused",
    );
    // Somebody was reached by another way: it listens.
    let refused = "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.refused\nway direct control=ok target=connect.refused\n";
    check(
        "server_certificate_problem",
        Certain,
        &format!(
            "{refused}way corp control=ok target=tls.cert.unknown_issuer cert=unknown_issuer:CA"
        ),
    );
    check(
        "unexplained",
        Medium,
        &format!("{refused}way corp control=ok target={RESET},{RESET}"),
    );
    check(
        "server_down",
        Strong,
        &format!(
            "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.timeout\nway direct control=ok {timeout}\nway corp control=ok target=upstream.reported.timeout,upstream.reported.timeout"
        ),
    );
    check(
        "ip_blocking",
        Strong,
        &format!(
            "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.timeout\nway direct control=ok {timeout}\nway corp control=ok target=ok cert=valid:CA"
        ),
    );
    check(
        "ip_blocking",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.prohibited\nway direct control=ok target=connect.prohibited,connect.prohibited",
    );
    check(
        "ipv6_broken",
        Certain,
        "dns system 2001:db8::1,192.0.2.1\ntcp [2001:db8::1]:443 !connect.timeout\ntcp 192.0.2.1:443\nway direct control=ok target=ok cert=valid:CA",
    );
    check(
        "bad_address",
        Strong,
        "dns system 192.0.2.2,192.0.2.1\ntcp 192.0.2.2:443 !connect.timeout\ntcp 192.0.2.1:443\nway direct control=ok target=ok cert=valid:CA",
    );
    // Silence alone, and no second way: nobody can tell an outage from a block.
    check(
        "unexplained",
        Medium,
        &format!(
            "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.timeout\nway direct control=ok {timeout}"
        ),
    );
}

#[test]
fn handshakes_are_told_apart_by_what_differs() {
    let begin = format!(
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target={RESET},{RESET}\n"
    );
    let cells = |text: &str| format!("{begin}{}", text.replace(", ", "\n"));
    check(
        "sni_filtering",
        Certain,
        &cells(&format!(
            "cell decoy ok, cell none ok, cell elsewhere {RESET}, cell control ok"
        )),
    );
    // Unasked, the name is said at its own address alone.
    check(
        "sni_filtering",
        Medium,
        &cells("cell decoy ok, cell none ok, cell control ok"),
    );
    check(
        "sni_filtering",
        Strong,
        &cells("cell decoy ok, cell control ok, way corp control=ok target=ok cert=valid:CA"),
    );
    check(
        "server_rejects_name",
        Medium,
        &cells("cell decoy ok, cell none ok, cell elsewhere ok, cell control ok"),
    );
    check(
        "name_and_address_filtering",
        Medium,
        &cells(
            "cell decoy ok, cell elsewhere ok, cell control ok, way corp control=ok target=ok cert=valid:CA",
        ),
    );
    check(
        "port_or_ip_blocking_after_handshake",
        Strong,
        &cells(&format!(
            "cell decoy {RESET}, cell none {RESET}, cell noise {RESET}, cell control ok"
        )),
    );
    check(
        "pmtu_black_hole",
        Certain,
        &cells("cell segments ok, cell small ok, cell decoy tls.no_server_hello"),
    );
    check(
        "large_client_hello_intolerance",
        Certain,
        &cells("cell segments tls.no_server_hello, cell small ok"),
    );
    check(
        "tls13_intolerance",
        Strong,
        &cells("cell only12 ok, cell small tls.no_server_hello"),
    );
    check(
        "blocked_on_direct_way",
        Medium,
        &cells("way corp control=ok target=ok cert=valid:CA"),
    );
    // Without a control nothing is called filtering.
    check(
        "unexplained",
        Medium,
        &format!(
            "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct target={RESET},{RESET}\ncell decoy ok\ncell none ok"
        ),
    );
    let alert = "tls.alert_from_server.unrecognized_name";
    check(
        "server_configuration",
        Certain,
        &format!(
            "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target={alert},{alert}"
        ),
    );
    check(
        "tls_downgrade",
        Certain,
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target=tls.downgrade_sentinel,tls.downgrade_sentinel",
    );
}

#[test]
fn certificates_and_answers_are_told_apart() {
    let begin = "dns system 192.0.2.1\ntcp 192.0.2.1:443\n";
    for verdict in [
        "expired",
        "name_mismatch",
        "self_signed",
        "unknown_issuer",
        "incomplete_chain",
    ] {
        check(
            "server_certificate_problem",
            Certain,
            &format!(
                "{begin}way direct control=ok target=tls.cert.{verdict},tls.cert.{verdict} cert={verdict}:CA"
            ),
        );
    }
    check(
        "tls_interception",
        Certain,
        &format!(
            "{begin}way direct control=ok target=tls.cert.unknown_issuer,tls.cert.unknown_issuer cert=unknown_issuer:Box\nway corp control=ok target=ok cert=valid:CA"
        ),
    );
    check(
        "tls_interception",
        Certain,
        &format!("{begin}way direct control=ok target=ok cert=valid:Box product"),
    );
    check(
        "not_tls",
        Strong,
        &format!("{begin}way direct control=ok target=tls.not_tls_reply,tls.not_tls_reply"),
    );
    check(
        "h2_breakage",
        Strong,
        &format!("{begin}way direct control=ok target=ok cert=valid:CA h1=200 h2=!"),
    );
    check(
        "origin_answers",
        Certain,
        &format!("{begin}way direct control=ok target=ok cert=valid:CA h1=503"),
    );
    check(
        "ip_reputation_or_waf",
        Strong,
        &format!(
            "{begin}way direct control=ok target=ok cert=valid:CA h1=403\nway corp control=ok target=ok cert=valid:CA h1=200"
        ),
    );
    // HEAD / is not everybody's.
    check(
        "fine",
        Certain,
        &format!("{begin}way direct control=ok target=ok cert=valid:CA h1=404"),
    );
    for (status, id) in [
        (400, "fine"),
        (401, "fine"),
        (403, "fine"),
        (500, "origin_answers"),
    ] {
        let way = format!("way direct control=ok target=ok cert=valid:CA h1={status}");
        check(id, Certain, &format!("below\n{begin}{way}"));
        check("origin_answers", Certain, &format!("{begin}{way}"));
    }
    let verdict = judge(&facts(&format!(
        "below\n{begin}way direct control=ok target=ok cert=valid:CA h1=403"
    )));
    assert!(
        verdict.counter[0].contains("HEAD / is answered with 403"),
        "{verdict:?}"
    );
}

#[test]
fn a_control_that_says_anything_shows_that_its_way_works() {
    let begin = "dns system 192.0.2.1\ntcp 192.0.2.1:443\n";
    for answer in [
        "tls.cert.expired",
        "tls.cert.unknown_issuer",
        "tls.alert_from_server.unrecognized_name",
        "http.malformed",
    ] {
        check(
            "unexplained",
            Medium,
            &format!("{begin}way direct control={answer} target={RESET},{RESET}"),
        );
        check(
            "fine",
            Certain,
            &format!("{begin}way direct control={answer} target=ok cert=valid:CA"),
        );
    }
    check(
        "route_down",
        Certain,
        &format!("{begin}way direct control={RESET} target={RESET},{RESET}"),
    );
    let opened = "tls.cert.unknown_issuer";
    let verdict = judge(&facts(&format!(
        "{begin}way direct control={opened},{opened} target={opened} cert=unknown_issuer:Box"
    )));
    assert_eq!(verdict.id, "server_certificate_problem");
    assert!(
        verdict
            .counter
            .iter()
            .any(|counter| counter.contains("something opens TLS")),
        "{verdict:?}"
    );
}

#[test]
fn a_page_of_a_filter_is_known_by_its_http() {
    let mut facts = facts(
        "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target=tls.not_tls_reply,tls.not_tls_reply\nway corp control=ok target=ok cert=valid:CA",
    );
    facts.ways[0].target[0].message = Some("it says HTTP/1.1 302 Found".to_owned());
    let verdict = judge(&facts);
    assert_eq!(verdict.id, "block_page");
    assert_eq!(
        verdict.fix.as_deref(),
        Some("- {name: files.example, match: {domain: files.example}, via: corp}")
    );
}

#[test]
fn fixes_name_what_a_policy_can_hold() {
    let of = |host: &str, lines: &str| {
        let verdict = judge(&Facts {
            host: host.to_owned(),
            ..facts(lines)
        });
        let fix = verdict.fix.unwrap_or_default();
        assert!(fix.contains(": {"), "{} {fix}", verdict.id);
        loads(&fix);
        fix
    };
    let by_corp = "way direct control=ok target=connect.timeout\ntcp 192.0.2.1:443 !connect.timeout\nway corp control=ok target=ok cert=valid:CA";
    assert_eq!(
        of("203.0.113.7", by_corp),
        "- {name: 203.0.113.7, match: {host: 203.0.113.7}, via: corp}"
    );
    assert_eq!(
        of("2001:db8::1", by_corp),
        "- {name: 2001-db8--1, match: {host: \"2001:db8::1\"}, via: corp}"
    );
    of(&format!("{}.example", "a".repeat(63)), by_corp);
    for server in ["inner", "system", "192.0.2.53:53", "[2001:db8::53]:53"] {
        let lines = format!(
            "dns other !dns.nxdomain\ndns {server} 10.1.2.3\ntcp 10.1.2.3:443\nway direct control=ok target=dns.nxdomain"
        );
        of("files.example", &lines);
    }
    of(
        "files.example",
        "way direct control=ok target=connect.timeout,ok\nway corp target=ok",
    );
    of(
        "files.example",
        "dns system 2001:db8::1\ntcp 192.0.2.2:443 !connect.timeout\ntcp [2001:db8::1]:443\nway direct control=ok target=ok",
    );
    loads(&rule("2001:db8::1", Some(8443), "direct: true"));
}

#[test]
fn what_was_not_looked_at_is_said() {
    let verdict = judge(&facts(
        "dns system !dns.nxdomain\nway direct target=dns.nxdomain,dns.nxdomain",
    ));
    assert!(
        verdict
            .counter
            .iter()
            .any(|counter| counter.contains("no control")),
        "{verdict:#?}"
    );
}

#[track_caller]
fn is_placed(hops: Vec<Hop>, part: &str) {
    let facts = Facts {
        hops,
        ..facts("way direct control=ok target=tls.reset_after_client_hello")
    };
    let verdict = judge(&facts);
    assert!(verdict.evidence[0].contains(part), "{verdict:?}");
}

#[test]
fn the_place_of_a_reset_is_told_by_its_neighbours() {
    let hop = |number: u8, cuts_name: bool| Hop {
        number: number.into(),
        address: (number != 2).then(|| IpAddr::from([10, 0, 0, number])),
        is_target: number == 4,
        cuts_name,
        cuts_decoy: false,
    };
    is_placed(
        vec![hop(1, false), hop(2, false), hop(3, true)],
        "between hop 2, which does not say who it is, and 10.0.0.3 (hop 3)",
    );
    is_placed(
        vec![hop(1, true)],
        "between this machine and 10.0.0.1 (hop 1)",
    );
    is_placed(
        vec![hop(3, false), hop(4, true)],
        "10.0.0.3 (hop 3) and the target itself (10.0.0.4, hop 4)",
    );
    is_placed(vec![hop(1, false), hop(4, false)], "cannot be placed");
    let every = Hop {
        cuts_decoy: true,
        ..hop(1, true)
    };
    is_placed(vec![every], "every name");
}
