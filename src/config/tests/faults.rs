//! Faults as they are written.

use super::*;
use crate::policy::fault::{Act, At, Direction, Point, Verb};

/// What is wrong with a fault of an otherwise good policy, with its column in line 3.
#[track_caller]
fn check_fault(fault: &str, expected: &[&str]) {
    let policy = format!(
        "version: 1\nfaults:\n  f: {{{fault}}}\nrules:\n  - {{name: r, fault: f}}\n\
         default: {{direct: true}}\n"
    );
    let all = mistakes(&policy);
    let got: Vec<_> = all
        .iter()
        .map(|line| line.strip_prefix("3:").unwrap_or(line))
        .collect();
    assert_eq!(got, expected, "{fault}");
}

#[test]
fn a_fault_says_where_and_what() {
    for (fault, expected) in [
        ("at: client_hello, do: reset", &[][..]),
        (
            "at: client_helo, do: reset",
            &[
                "11 `client_helo` is not one of accept, dns, connect, upstream_reply, client_hello, server_hello, request, response",
            ],
        ),
        ("at: client_hello", &["7 a fault needs `do`"]),
        ("at: {bytes: 64KiB}, do: reset", &[]),
        (
            "at: {bytes: 64KiB, idle: 5s}, do: reset",
            &["11 `at` is exactly one of `bytes` and `idle`"],
        ),
        (
            "at: client_hello, do: nxdomain",
            &["29 `do: nxdomain` makes no sense at client_hello"],
        ),
        (
            "at: {idle: 5s}, do: delay, with: {delay: 1s}",
            &["27 `do: delay` makes no sense at idle"],
        ),
        ("at: dns, do: answer", &["20 `do: answer` needs `with.ip`"]),
        (
            "at: dns, do: nxdomain, with: {ip: 192.0.2.1}",
            &["36 `ip` does not go with `do: nxdomain`"],
        ),
        (
            "at: accept, do: status, with: {status: 200}",
            &["46 200 would be the beginning of a tunnel"],
        ),
        ("at: request, do: status, with: {status: 200}", &[]),
        (
            "at: request, do: status, with: {status: 99}",
            &["47 99 is no status of an answer"],
        ),
        (
            "at: request, do: status, with: {status: 200, headers: {Content-Length: 3}}",
            &["62 `content-length` follows from the body"],
        ),
        (
            "at: request, do: status, with: {status: 200, headers: {\"a b\": c}}",
            &["62 `a b` is no header field"],
        ),
        (
            "at: client_hello, do: alert, with: {alert: unrecognised_name}",
            &["50 there is no TLS alert `unrecognised_name`"],
        ),
        ("at: client_hello, do: alert, with: {alert: 112}", &[]),
        (
            "at: client_hello, do: delay, with: {delay: 1s, jitter: 2s}",
            &["62 the jitter is more than the delay itself"],
        ),
        (
            "at: response, do: throttle, with: {rate: 0}",
            &["48 nothing passes at 0 bytes a second"],
        ),
        (
            "at: client_hello, do: reset, direction: up",
            &["47 `reset` at client_hello has one direction"],
        ),
        ("at: {bytes: 5}, do: reset, direction: up", &[]),
        (
            "at: {bytes: 5}, do: truncate, direction: both",
            &["48 a direction is truncated; the end of both is `do: close`"],
        ),
        (
            "at: client_hello, do: hang, side: client",
            &["41 `hang` at client_hello has no sides"],
        ),
        (
            "at: accept, do: reset, side: client",
            &["36 `reset` at accept has no sides"],
        ),
        ("at: client_hello, do: reset, side: client", &[]),
        (
            "at: server_hello, do: wrong_cert",
            &["29 `do: wrong_cert` needs `with.certificate`"],
        ),
        (
            "at: client_hello, do: reset, when: {probability: 1.5}",
            &["56 `1.5` is not a probability such as 0.3, above 0 and at most 1"],
        ),
        (
            "at: client_hello, do: reset, when: {seed: 7}",
            &["49 a `seed` without a `probability` is drawn from by nobody"],
        ),
        (
            "at: client_hello, do: reset, when: {nth: 0}",
            &["48 connections are counted from 1 on"],
        ),
        (
            "at: client_hello, do: reset, when: {firts: 1}",
            &["43 `firts` is no key of `when`"],
        ),
        (
            "at: client_hello, do: not_tls, with: {body: x, reason: y}",
            &["62 this belongs to a page, which needs a `status`"],
        ),
        (
            "at: upstream_reply, do: reset",
            &["5:22 `f` strikes nothing here: only an upstream has a reply"],
        ),
    ] {
        check_fault(fault, expected);
    }
}

#[test]
fn what_fits_a_point_loads_and_nothing_else_does() {
    let with = |verb: Verb| match verb {
        Verb::Answer => "with: {ip: 192.0.2.1}",
        Verb::Status => "with: {status: 503}",
        Verb::Alert => "with: {alert: 40}",
        Verb::Delay => "with: {delay: 1s}",
        Verb::Throttle => "with: {rate: 1KiB}",
        Verb::WrongCert => "with: {certificate: expired}",
        Verb::Reset
        | Verb::Close
        | Verb::Hang
        | Verb::NxDomain
        | Verb::ServFail
        | Verb::Refuse
        | Verb::NotTls
        | Verb::Truncate
        | Verb::Corrupt => "when: {}",
    };
    let verbs = [
        Verb::Reset,
        Verb::Close,
        Verb::Hang,
        Verb::Delay,
        Verb::NxDomain,
        Verb::ServFail,
        Verb::Answer,
        Verb::Refuse,
        Verb::Status,
        Verb::Alert,
        Verb::NotTls,
        Verb::Throttle,
        Verb::Truncate,
        Verb::Corrupt,
        Verb::WrongCert,
    ];
    for point in Point::ALL {
        for verb in verbs {
            let at = match point {
                Point::Bytes => "{bytes: 10}".to_owned(),
                Point::Idle => "{idle: 10s}".to_owned(),
                Point::Accept
                | Point::Dns
                | Point::Connect
                | Point::UpstreamReply
                | Point::ClientHello
                | Point::ServerHello
                | Point::Request
                | Point::Response => point.as_str().to_owned(),
            };
            // The answer of a name server is for who asks it, the reply for who waits for it; a lab has no upstream.
            let way = if matches!(verb, Verb::Answer | Verb::WrongCert) {
                "direct: true"
            } else {
                "via: u"
            };
            let text = format!(
                "version: 1\nupstreams: {{u: {{url: \"http://192.0.2.1:3128\"}}}}\n\
                 faults: {{f: {{at: {at}, do: {}, {}}}}}\n\
                 rules: [{{name: r, match: {{host: a.lab.test}}, fault: f, {way}}}]\ndefault: {{direct: true}}\n",
                verb.as_str(),
                with(verb)
            );
            let is_good = try_load(&text, &Environment::default()).is_ok();
            assert_eq!(is_good, point.acts().contains(&verb), "{text}");
        }
    }
}

#[test]
fn who_uses_a_fault_is_checked() {
    let head = "version: 1\nupstreams: {u: {url: \"http://192.0.2.1:3128\"}, v: {url: \"http://192.0.2.2:3128\"}}\n\
                faults: {f: {at: client_hello, do: reset}, a: {at: accept, do: reset}}\n";
    for (rest, expected) in [
        (
            "rules: [{name: r, fault: [f, a], via: u}]\ndefault: {direct: true}",
            &[][..],
        ),
        ("rules: []\ndefault: {direct: true, fault: [f, a]}", &[]),
        (
            "rules: [{name: r, fault: [f, a, g], via: u}]\ndefault: {direct: true}",
            &["4:33 there is no fault `g`"],
        ),
        (
            "rules: [{name: r, fault: [f, a], block: true}]\ndefault: {direct: true}",
            &["4:41 `block` opens no way that a fault could stand in"],
        ),
        (
            "rules: [{name: r, fault: [{profile: f, hop: v}, a], via: u}]\ndefault: {direct: true}",
            &["4:45 `v` is no hop of this route"],
        ),
        (
            "rules: [{name: r, fault: [f, {profile: a, hop: u}], via: u}]\ndefault: {direct: true}",
            &["4:48 `accept` comes before any hop"],
        ),
        (
            "rules: []\nchains: {c: {hops: [{use: u, fault: [f, a]}, direct]}}\ndefault: {via: c}",
            &[],
        ),
        (
            "rules: [{name: r, fault: f}]\ndefault: {direct: true}",
            &["warning: nothing uses the fault `a`"],
        ),
    ] {
        let text = format!("{head}{rest}\n");
        let got: Vec<_> = mistakes(&text)
            .iter()
            .map(|line| match line.split_once(" warning") {
                Some((_, rest)) => format!("warning{rest}"),
                None => line.clone(),
            })
            .collect();
        assert_eq!(got, expected, "{rest}");
    }
}

#[test]
fn a_fault_stands_in_front_of_what_it_strikes_and_keeps_its_name() {
    let loaded = loaded(
        "version: 1\nupstreams: {u: {url: \"http://192.0.2.1:3128\"}}\n\
         faults:\n  f: {at: client_hello, do: reset}\n  g: {at: {bytes: 10}, do: hang, direction: up}\n\
         rules:\n  - {name: one, match: {port: 1443}, fault: {profile: f, hop: u}, via: \"direct|u\"}\n\
         \x20 - {name: all, match: {port: 2443}, fault: [f, g], via: \"direct|u\"}\n\
         default: {direct: true}\n",
    );
    let policy = loaded.policy;
    let faults = |at: usize| {
        let crate::policy::Action::Route(routes) = &policy.rules[at].action else {
            panic!("{:?}", policy.rules[at]);
        };
        assert_eq!(&*policy.route(routes.connect).name, "direct|u");
        let faults = policy.faults_of(routes.connect);
        let told = faults
            .iter()
            .map(|(hop, fault)| format!("{} on {} for {}", fault.name, hop.unwrap(), fault.by));
        told.collect::<Vec<_>>()
    };
    assert_eq!(faults(0), ["f on u for rule one"]);
    let all = faults(1);
    assert_eq!(
        all,
        [
            "g on direct for rule all (2)",
            "f on direct for rule all",
            "g on u for rule all (2)",
            "f on u for rule all"
        ]
    );
    assert_eq!(policy.faults(), ["f", "g"]);
    let RouteSpec::Faulty { fault, .. } = &policy
        .routes
        .iter()
        .find(|route| matches!(&route.spec, RouteSpec::Faulty { fault, .. } if *fault.name == *"g"))
        .unwrap()
        .spec
    else {
        panic!("{:?}", policy.routes);
    };
    assert_eq!((fault.at, &fault.act), (At::Bytes(10), &Act::Hang));
    assert_eq!(
        (fault.counts(), fault.strikes()),
        (Direction::Up, Direction::Up)
    );
}
