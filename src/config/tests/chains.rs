//! Chains: every mistake with its place, and what the short form and the long one mean.

use super::*;
use crate::cause::{Class, Classes};
use crate::policy::chain::{Chain, Hop};
use crate::policy::{Action, RouteId};

const UPSTREAMS: &str =
    "upstreams: {corp: {url: \"http://p.example:1\"}, backup: {url: \"http://q.example:1\"}}\n";

/// The mistakes of a chain of `corp`, `backup` and `direct`, which stands in line 3.
#[track_caller]
fn check_chain(chain: &str, expected: &[&str]) {
    let policy = format!(
        "version: 1\n{UPSTREAMS}chains: {{out: {chain}}}\nrules: []\ndefault: {{via: out}}\n"
    );
    assert_eq!(mistakes(&policy), expected, "{chain}");
}

/// The same of a chain written as `via`, which stands in line 4.
#[track_caller]
fn check_via(via: &str, expected: &[&str]) {
    let policy = format!("version: 1\n{UPSTREAMS}rules: []\ndefault: {{via: \"{via}\"}}\n");
    assert_eq!(mistakes(&policy), expected, "{via}");
}

/// The chains that a policy's default leads to: of plain requests, and of tunnels.
#[track_caller]
fn chains(policy: &str, environment: &Environment) -> (Chain, Chain) {
    let policy = match try_load(policy, environment) {
        Ok(loaded) => loaded.policy,
        Err(report) => panic!("{report}"),
    };
    let Action::Route(routes) = policy.default.action else {
        panic!("{:?}", policy.default.action);
    };
    let chain = |id: RouteId| {
        let RouteSpec::Chain(chain) = &policy.route(id).spec else {
            panic!("{:?} is no chain", policy.route(id));
        };
        chain.clone()
    };
    (chain(routes.http), chain(routes.connect))
}

#[track_caller]
fn chain(chain: &str) -> Chain {
    let policy = format!(
        "version: 1\n{UPSTREAMS}chains: {{out: {chain}}}\nrules: []\ndefault: {{via: out}}\n"
    );
    chains(&policy, &Environment::default()).0
}

#[test]
fn a_chain_as_text_is_told_what_is_wrong_with_it() {
    for (text, message) in [
        ("corp|nowhere", "there is no hop `nowhere`"),
        ("corp|bakup", "there is no hop `bakup`"),
        ("corp|direct|corp", "`corp` stands in the chain twice"),
        (
            "corp,off|direct",
            "`off` ends a chain: what stands behind it is never tried",
        ),
        ("off", "a chain of `off` alone lets nothing out"),
        ("corp||direct", "`corp||direct` has a hop without a name"),
        ("|corp", "`|corp` has a hop without a name"),
        ("corp|", "`corp|` has a hop without a name"),
        ("corp,", "`corp,` has a hop without a name"),
    ] {
        check_via(text, &[&format!("4:16 {message}")]);
        check_chain(&format!("\"{text}\""), &[&format!("3:10 {message}")]);
    }
    let many: Vec<_> = (0..11).map(|n| format!("h{n}")).collect();
    check_via(&many.join("|"), &["4:16 11 hops are too many: 10 may be"]);
}

#[test]
fn the_nearest_hop_is_named() {
    let told = |via: &str| {
        let policy = format!("version: 1\n{UPSTREAMS}rules: []\ndefault: {{via: \"{via}\"}}\n");
        let report = try_load(&policy, &Environment::default()).unwrap_err();
        report.diagnostics[0].help.clone().unwrap_or_default()
    };
    assert_eq!(told("corp|bakup"), "did you mean `backup`?");
    assert!(told("off").contains("block"), "{}", told("off"));
}

#[test]
fn a_chain_hop_by_hop_is_told_what_is_wrong_with_it() {
    check_chain("{hops: []}", &["3:22 a chain needs a hop"]);
    check_chain(
        "{hops: [corp, nowhere]}",
        &["3:29 there is no hop `nowhere`"],
    );
    check_chain(
        "{hops: [corp, {use: corp}]}",
        &["3:35 `corp` stands in the chain twice"],
    );
    check_chain(
        "{hops: [off, corp]}",
        &["3:23 `off` ends a chain: what stands behind it is never tried"],
    );
    check_chain(
        "{hops: [{use: corp, next_on: conect}, direct]}",
        &[
            "3:44 `conect` is not one of any, any_but_denied, not_found, dns, connect, proxy_down, proxy_auth, \
             gateway, proxy_error, denied, reset, hello_timeout, not_tls, tls_alert, first_byte, status",
        ],
    );
    for (key, wrong, message) in [
        (
            "retry: {attempts: 0}",
            "0}",
            "0 is no number of hops to try",
        ),
        (
            "retry: {attempts: 11}",
            "11}",
            "11 is no number of hops to try",
        ),
        (
            "memory: {fails: 0}",
            "0}",
            "0 is no number of failures for a memory",
        ),
        (
            "memory: {ttl: 25h}",
            "25h",
            "a failure is held against a hop for a day at most",
        ),
        ("on_status: 200", "200", "200 is no status of a failure"),
        (
            "on_status: [503, 600]",
            "600",
            "600 is no status of a failure",
        ),
    ] {
        let chain = format!("{{hops: [corp, direct], {key}}}");
        let column = format!("chains: {{out: {chain}}}").find(wrong).unwrap() + 1;
        check_chain(&chain, &[&format!("3:{column} {message}")]);
    }
}

#[test]
fn a_chain_is_no_hop_and_has_a_name_of_its_own() {
    let told = |chains: &str| {
        mistakes(&format!(
            "version: 1\n{UPSTREAMS}chains: {chains}\nrules: []\ndefault: {{via: \"out|direct\"}}\n"
        ))
    };
    assert_eq!(
        told("{out: \"corp|direct\"}"),
        ["5:16 `out` is a chain: a hop is none"]
    );
    assert_eq!(
        told("{corp: \"backup|direct\", out: \"corp\"}")[0],
        "3:10 `corp` is an upstream or a group already"
    );
    assert_eq!(
        told("{direct: \"corp|backup\", out: corp}")[0],
        "3:10 `direct` is no name for a chain: it is a route of its own"
    );
}

#[test]
fn a_body_of_any_size_is_not_kept() {
    let policy = |size: &str| {
        format!(
            "version: 1\nrules: []\ndefault: {{direct: true}}\ndefaults: {{retry: {{replay_body: {size}}}}}\n"
        )
    };
    assert_eq!(
        mistakes(&policy("17MiB")),
        ["4:33 a body is kept in memory until it was answered: 16MiB at most"]
    );
    assert_eq!(loaded(&policy("16MiB")).policy.retry.replay_body, 16 << 20);
    assert_eq!(loaded(&policy("0")).policy.retry.replay_body, 0);
}

#[test]
fn the_short_form_and_the_long_one_mean_the_same() {
    let pairs = [
        (
            "\"corp|direct\"",
            "{hops: [corp, {use: direct, next_on: not_found}]}",
        ),
        (
            "\" corp , backup | direct \"",
            "{hops: [{use: corp, next_on: not_found}, {use: backup, next_on: any_but_denied}, \
             {use: direct, next_on: not_found}]}",
        ),
        ("\"corp|off\"", "{hops: [corp, off]}"),
    ];
    for (short, long) in pairs {
        assert_eq!(chain(short), chain(long), "{short}");
    }
    let open = chain("{hops: [{use: corp, next_on: [denied, status]}, direct]}");
    let hop = open.hops[0];
    for class in Class::ALL {
        let is_named = matches!(class, Class::Denied | Class::Status);
        assert_eq!(hop.next_on.contains(*class), is_named, "{class:?}");
    }
    let any = chain("{hops: [{use: corp, next_on: any}, direct]}");
    assert_eq!(any.hops[0].next_on, Classes::ANY);
}

#[test]
fn an_upstream_of_the_environment_that_is_absent_is_no_second_direct() {
    let policy =
        "version: 1\nupstreams: {env: {url: env}}\nrules: []\ndefault: {via: \"env|direct\"}\n";
    let hops = |chain: &Chain| chain.hops.iter().map(|hop| hop.route.0).collect::<Vec<_>>();
    let (plain, tunnel) = chains(policy, &Environment::default());
    assert_eq!((hops(&plain), hops(&tunnel)), (vec![0], vec![0]));
    let only: Environment = [("https_proxy", "http://p.example:1")]
        .into_iter()
        .collect();
    let (plain, tunnel) = chains(policy, &only);
    assert_eq!((hops(&plain), hops(&tunnel)), (vec![0], vec![1, 0]));
    let first = Hop {
        route: RouteId(1),
        next_on: Classes::PIPE,
    };
    assert_eq!(tunnel.hops[0], first);
}

#[test]
fn what_is_private_and_may_get_out_is_warned_of() {
    let warned = |rule: &str| {
        mistakes(&format!(
            "version: 1\n{UPSTREAMS}sets: {{intranet: {{hosts: [git.example]}}, ads: {{hosts: [ads.example]}}}}\n\
             rules:\n  - {{name: r, {rule}}}\ndefault: {{direct: true}}\n"
        ))
    };
    let out = |next: &str| {
        vec![format!(
            "5:12 warning: rule `r` speaks of what is private, and an outage sends it on to `{next}`"
        )]
    };
    for matcher in [
        "ip: [10.0.0.0/8, \"fd00::/8\"]",
        "plain_host: true",
        "domain: corp.internal",
        "domain: [a.lan, b.local]",
        "host: \"*.corp\"",
        "domain: home.arpa",
        "set: intranet",
        "domain: x.intranet, port: 443",
    ] {
        let rule = format!("match: {{{matcher}}}, via: \"corp|direct\"");
        assert_eq!(warned(&rule), out("direct"), "{matcher}");
        let held = format!("match: {{{matcher}}}, via: \"corp,direct\"");
        assert_eq!(warned(&held), [""; 0], "{matcher}");
        let closed = format!("match: {{{matcher}}}, via: \"corp|off\"");
        assert_eq!(warned(&closed), [""; 0], "{matcher}");
    }
    for matcher in [
        "ip: [10.0.0.0/8, 192.0.2.0/24]",
        "domain: example.com",
        "set: ads",
        "port: 443",
        "not: {domain: a.lan}",
    ] {
        let rule = format!("match: {{{matcher}}}, via: \"corp|direct\"");
        assert_eq!(warned(&rule), [""; 0], "{matcher}");
    }
    let second = "match: {plain_host: true}, via: \"direct,corp|backup\"";
    assert_eq!(warned(second), out("backup"));
}

#[test]
fn settings_of_a_chain_without_an_effect_are_warned_of() {
    let warned = |chain: &str, rule: &str| {
        let told = mistakes(&format!(
            "version: 1\n{UPSTREAMS}chains: {{out: {chain}}}\nrules:\n\
             \x20 - {{name: r, match: {{domain: a.example}}, via: out{rule}}}\ndefault: {{direct: true}}\n"
        ));
        told.iter()
            .map(|line| line.strip_prefix("5:12 warning: ").unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let takes_over = "{hops: [{use: corp, next_on: [connect, reset]}, direct]}";
    assert_eq!(
        warned(takes_over, ", commit: connect"),
        [
            "the chain of `r` names failures of a handshake, and `commit: connect` keeps a tunnel on its hop"
        ]
    );
    assert_eq!(warned(takes_over, ""), [""; 0]);
    assert_eq!(warned("\"corp|direct\"", ", commit: connect"), [""; 0]);
    let first_byte = "{hops: [{use: corp, next_on: first_byte}, direct]}";
    assert_eq!(
        warned(first_byte, ", retry: {methods: none}"),
        ["the chain of `r` names `first_byte`, and `retry.methods: none` sends nothing again"]
    );
    assert_eq!(warned(first_byte, ""), [""; 0]);
    assert_eq!(
        warned("{hops: [corp], memory: {ttl: 1m}, hedge: 1s}", ""),
        [
            "`memory` has no effect in the chain of `r`: it has one hop",
            "`hedge` has no effect in the chain of `r`: it has one hop"
        ]
    );
    assert_eq!(
        warned(
            "{hops: [{use: corp, next_on: not_found}, direct], hedge: 1s}",
            ""
        ),
        ["`hedge` has no effect in the chain of `r`: no hop leads on after any failure"]
    );
    assert_eq!(
        warned("{hops: [corp, direct], on_status: 503}", ""),
        ["`on_status` has no effect in the chain of `r`: no hop has `status` in its `next_on`"]
    );
    let listed = "{hops: [{use: corp, next_on: [connect, status]}, direct], on_status: 503}";
    assert_eq!(warned(listed, ""), [""; 0]);
    assert_eq!(
        warned("{hops: [corp, backup, direct], retry: {budget: 8s}}", ""),
        ["3 hops of `r` with a `hello` of 3s each do not fit into the budget of 8s"]
    );
    assert_eq!(
        warned(
            "{hops: [corp, backup, direct], retry: {attempts: 2, budget: 8s}}",
            ""
        ),
        [""; 0]
    );
}

#[test]
fn a_test_expects_a_chain_by_its_text_or_its_name() {
    let told = |expect: &str| {
        let policy = format!(
            "version: 1\n{UPSTREAMS}chains: {{out: \"corp|direct\"}}\nrules:\n\
             \x20 - {{name: short, match: {{domain: a.example}}, via: \"corp | direct\"}}\ndefault: {{via: out}}\n\
             tests:\n  - {expect}\n"
        );
        let checked = Options::check(now());
        let loaded = load(&text(&policy), &Environment::default(), &checked).unwrap();
        let outcome = loaded.trials[0].run(now());
        outcome.failure.map(|failure| failure.message)
    };
    let short =
        "connect: \"a.example:443\", expect: {rule: short, route: \"corp|direct\", action: via}";
    assert_eq!(told(&format!("{{{short}}}")), None);
    let named = "connect: \"b.example:443\", expect: {rule: default, route: out, action: via}";
    assert_eq!(told(&format!("{{{named}}}")), None);
    let wrong = "connect: \"b.example:443\", expect: {route: direct}";
    assert_eq!(
        told(&format!("{{{wrong}}}")).as_deref(),
        Some("test CONNECT b.example:443: route is out, expected direct")
    );
}
