use super::notation::{check, facts};
use crate::doctor::verdict::Certainty::{Certain, Medium, Strong};
use crate::doctor::verdict::judge;

/// What an origin sends through an upstream that works is not that upstream's.
#[test]
fn an_upstream_that_serves_others_is_a_forward_proxy() {
    let corp = |plain: &str, direct: &str| {
        format!(
            "{plain}\nchosen corp\ndns system 192.0.2.1\nway direct control=ok {direct}\nway corp control=ok target=upstream.malformed_reply"
        )
    };
    for direct in ["target=ok h1=200", "target=connect.timeout"] {
        for plain in ["plain", ""] {
            check("fails_behind_upstream", Strong, &corp(plain, direct));
        }
    }
    check(
        "not_http",
        Strong,
        &corp("plain", "target=http.malformed h1=!"),
    );
}

/// A direct way that leads nowhere is no fault where the policy leads round it.
#[test]
fn what_the_policy_goes_round_is_no_verdict() {
    let begin = "dns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok";
    for (direct, trouble) in [
        (
            "dns system 192.0.2.1\ntcp 192.0.2.1:443 !connect.timeout\nway direct control=connect.timeout target=connect.timeout",
            "it does not work direct: connect.timeout",
        ),
        (
            "dns system !dns.nxdomain\ndns clean~ 192.0.2.1\nway direct control=ok target=dns.nxdomain",
            "it does not work direct: dns.nxdomain",
        ),
        (
            &format!("{begin} target=tls.reset_after_client_hello"),
            "it does not work direct: tls.reset_after_client_hello",
        ),
        // A page of a filter.
        (
            &format!("{begin} target=tls.not_tls_reply"),
            "it does not work direct: tls.not_tls_reply",
        ),
        (
            &format!("{begin} target=tls.cert.unknown_issuer cert=unknown_issuer:Box"),
            "it does not work direct: tls.cert.unknown_issuer",
        ),
        (
            &format!("{begin} target=tls.reset_after_client_hello,ok cert=valid:CA h1=200"),
            "it fails now and then direct: tls.reset_after_client_hello",
        ),
        (
            &format!("{begin} target=ok cert=valid:CA h1=403"),
            "HEAD / is answered with 403 direct",
        ),
        (
            &format!("{begin} target=ok cert=valid:Box product h1=200"),
            "a product opens TLS direct",
        ),
        (
            &format!("{begin} portal=302 target=ok cert=valid:CA h1=200"),
            "a portal answers direct: a page that answers 204 answered 302",
        ),
    ] {
        for status in ["", "h1=200"] {
            let corp = format!("way corp control=ok target=ok cert=valid:CA {status}");
            let lines = format!("chosen corp\n{direct}\n{corp}");
            check("fine", Certain, &lines);
            let verdict = judge(&facts(&lines));
            assert_eq!(verdict.counter, [trouble]);
        }
    }
    // Nor is it what is the matter with the chosen way.
    for (corp, id, certainty) in [
        ("target=ok cert=valid:CA h1=503", "origin_answers", Certain),
        (
            "target=connect.timeout,ok cert=valid:CA",
            "intermittent",
            Medium,
        ),
    ] {
        let direct =
            "tcp 192.0.2.1:443 !connect.timeout\nway direct control=ok target=connect.timeout";
        let lines = format!("chosen corp\n{direct}\nway corp control=ok {corp}");
        check(id, certainty, &lines);
    }
    // What is stays so.
    check(
        "tls_interception",
        Certain,
        &format!(
            "chosen corp\n{begin} target=ok cert=valid:CA\nway corp control=ok target=ok cert=valid:Box product h1=200"
        ),
    );
    check(
        "ip_reputation_or_waf",
        Strong,
        &format!(
            "below\nchosen corp\n{begin} target=ok cert=valid:CA h1=200\nway corp control=ok target=ok cert=valid:CA h1=403"
        ),
    );
}

#[test]
fn a_path_is_answered_for_itself() {
    let way = |status: u16| {
        format!(
            "path /a\ndns system 192.0.2.1\ntcp 192.0.2.1:443\nway direct control=ok target=ok cert=valid:CA h1={status}"
        )
    };
    for (status, id) in [
        (200, "fine"),
        (302, "fine"),
        // Who knows no HEAD has answered.
        (405, "fine"),
        (501, "fine"),
        (403, "origin_answers"),
        (404, "origin_answers"),
        (503, "origin_answers"),
    ] {
        check(id, Certain, &way(status));
    }
    // What was asked for is a part of what is wanted.
    check("fine", Certain, &format!("below\n{}", way(404)));
    let verdict = judge(&facts(&way(200)));
    assert!(
        verdict
            .evidence
            .contains(&"HEAD /a is answered with 200".to_owned()),
        "{verdict:?}"
    );
}

#[test]
fn an_answer_in_the_clear_may_be_the_upstreams() {
    let corp = |direct: &str, status: u16| {
        format!(
            "plain\nchosen corp\npath /a\ndns system 192.0.2.1\nway direct control=ok {direct}\nway corp control=ok target=ok h1={status}"
        )
    };
    let works = "target=ok h1=200";
    for (status, id, certainty, sentence) in [
        (
            401,
            "upstream_auth",
            Medium,
            "corp or the origin behind it asks who you are (401), where it works direct",
        ),
        (
            403,
            "origin_answers",
            Medium,
            "the request is answered, and corp or the origin behind it says 403: it forbids this",
        ),
        (
            503,
            "upstream_fails",
            Strong,
            "corp answers 503 where the target works direct",
        ),
    ] {
        let lines = corp(works, status);
        check(id, certainty, &lines);
        let verdict = judge(&facts(&lines));
        assert_eq!(verdict.sentence, sentence);
        assert!(verdict.fix.is_some(), "{verdict:?}");
    }
    // It says the same by the direct way.
    check("origin_answers", Certain, &corp("target=ok h1=503", 503));
    // A gateway that reaches nothing has not shown that there is a target.
    for (cause, id, certainty) in [
        ("connect.timeout", "origin_answers", Medium),
        ("connect.refused", "server_down", Certain),
    ] {
        let lines = corp(&format!("target={cause}"), 503);
        let tcp = format!("tcp 192.0.2.1:80 !{cause}");
        check(id, certainty, &format!("{lines}\n{tcp}"));
    }
    // Nothing to hold against it.
    check(
        "origin_answers",
        Medium,
        &corp("target=connect.timeout", 500),
    );
    check(
        "origin_answers",
        Medium,
        &corp("target=connect.timeout", 401),
    );
}

#[test]
fn a_request_that_gets_no_answer_is_no_way_that_works() {
    let begin = "dns system 192.0.2.1\ntcp 192.0.2.1:80\n";
    for (cause, id, certainty) in [
        (
            "http.reset_before_response",
            "origin_does_not_answer",
            Strong,
        ),
        ("http.empty_reply", "origin_does_not_answer", Strong),
        ("http.response_timeout", "origin_does_not_answer", Medium),
        ("http.malformed", "not_http", Strong),
        ("http.header_too_large", "head_too_large", Certain),
    ] {
        let failing = format!("{begin}way direct control=ok target={cause},{cause}");
        check(id, certainty, &format!("plain\n{failing} h1=!"));
        // The same behind a handshake.
        check(id, certainty, &format!("{failing} cert=valid:CA h1=!"));
        // It is the way, and not the origin.
        let corp = "way corp control=ok target=ok h1=200";
        check(
            "blocked_on_direct_way",
            Medium,
            &format!("plain\n{failing} h1=!\n{corp}"),
        );
        check(
            "fails_behind_upstream",
            Medium,
            &format!(
                "plain\nchosen corp\n{begin}way direct control=ok target=ok h1=200\nway corp control=ok target={cause}"
            ),
        );
        // Who speaks HTTP/2 alone.
        check(
            "h1_breakage",
            Strong,
            &format!("{failing} cert=valid:CA h1=! h2=200"),
        );
    }
    check(
        "intermittent",
        Medium,
        &format!("plain\n{begin}way direct control=ok target=http.empty_reply,ok h1=200"),
    );
}
