//! The tests of a policy.

use super::*;

const WITH_TESTS: &str = r#"version: 1
no_proxy: env
upstreams: {env: {url: env}, corp: {url: "http://proxy.corp.example:8080"}}
dns: {hosts: {pinned.example: [10.1.2.3]}}
rules:
  - {name: inside, match: {ip: 10.0.0.0/8, resolve: all}, direct: true}
  - {name: trial, match: {domain: trial.example}, direct: true, mode: report}
  - {name: old, match: {domain: old.example}, via: corp, expires: 2026-12-31}
  - {name: robots, match: {header: {user-agent: "*bot*"}}, block: {reason: no robots, status: 451, code: expected}}
default: {via: env}
tests:
  - {connect: "10.1.2.3:443", expect: {rule: inside}}
  - {connect: "pinned.example:443", expect: {rule: inside, action: direct}}
  - {connect: "a.example:443", addresses: [10.0.0.1, 192.0.2.1], expect: {rule: default, route: direct}}
  - {connect: "a.example:443", addresses: 10.0.0.1, expect: {rule: inside}}
  - {connect: "trial.example:443", expect: {rule: default, would: trial}}
  - {connect: "old.example:443", now: 2026-12-31T23:59:59Z, expect: {rule: old, action: via, route: corp}}
  - {connect: "old.example:443", now: 2027-01-01, expect: {rule: default}}
  - {get: "http://a.example/x", headers: {User-Agent: a bot}, expect: {rule: robots, action: block, reason: no robots, status: 451, code: expected}}
  - {get: "http://a.example/x", method: POST, expect: {rule: default, action: direct}}
  - {connect: "a.example:443", env: {https_proxy: "http://h:1"}, expect: {action: via, route: env}}
  - {connect: "a.example:443", env: {https_proxy: "http://h:1", no_proxy: a.example}, expect: {rule: no_proxy, action: direct}}
  - {connect: "localhost:443", client: 192.0.2.9, expect: {rule: guards.loopback}}
  - {connect: "127.0.0.1:443", client: {cidr: 192.0.2.0/24}, expect: {rule: guards.loopback, action: block, status: 403}}
  - {connect: "a.example:443", addresses: 169.254.169.254, expect: {rule: guards.link_local, action: block}}
  - {connect: "a.example:25", expect: {rule: default, action: block}}
"#;

#[test]
fn tests_of_a_policy_see_an_environment_of_their_own() {
    let environment: Environment = [("HTTPS_PROXY", "http://real.example:1")]
        .into_iter()
        .collect();
    let loaded = try_load(WITH_TESTS, &environment).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(loaded.trials.len(), 15);
}

#[test]
fn a_failed_test_keeps_a_policy_from_running_and_says_why() {
    let policy = r#"version: 1
rules:
  - {name: web, match: {port: 80}, direct: true}
default: {block: {reason: closed}}
tests:
  - {connect: "a.example:443", expect: {rule: web, action: direct}}
"#;
    let report = try_load(policy, &Environment::default()).unwrap_err();
    assert_eq!(
        report.render(false),
        r#"p.yaml:6:15: error: test CONNECT a.example:443: rule is default, expected web; action is block, expected direct
 6 |   - {connect: "a.example:443", expect: {rule: web, action: direct}}
   |               ^^^^^^^^^^^^^^^
   help: `web` was passed over: port 443 is not 80
         `default` (p.yaml:4) decided
"#
    );
    let loaded = load(
        &text(policy),
        &Environment::default(),
        &Options::check(now()),
    )
    .unwrap();
    assert!(!loaded.trials[0].run(now()).passed());
}

#[test]
fn tests_have_their_mistakes() {
    for (test, expected) in [
        (
            "{expect: {rule: default}}",
            "a test asks for one thing: `connect: host:port` or `get: http://…`",
        ),
        (
            "{connect: a.example, expect: {rule: default}}",
            "CONNECT to \"a.example\" names no port; write host:port",
        ),
        (
            "{get: \"https://a.example/\", expect: {rule: default}}",
            "a proxy sees an https URL as a tunnel",
        ),
        (
            "{get: a.example/x, expect: {rule: default}}",
            "`a.example/x` is no URL",
        ),
        (
            "{get: \"http://a b/\", expect: {rule: default}}",
            "`http://a b/` is no URL: invalid uri character",
        ),
        (
            "{connect: \"a.example:443\", method: GET, expect: {rule: default}}",
            "a tunnel shows neither method nor headers; ask with `get`",
        ),
        (
            "{connect: \"a.example:443\", expect: {rule: defualt}}",
            "there is no rule `defualt`",
        ),
        (
            "{connect: \"a.example:443\", expect: {}}",
            "this expects nothing, so it always passes",
        ),
        ("{connect: \"a.example:443\"}", "a test needs `expect`"),
        (
            "{connect: \"a.example:443\", env: {HTTPS_PROXY: \"socks4://h:1\"}, expect: {rule: default}}",
            "HTTPS_PROXY of the environment: socks4:// is no proxy's scheme: http, https, socks5 and socks5h are",
        ),
    ] {
        let policy = format!(
            "version: 1\nupstreams: {{env: {{url: env}}}}\ndefault: {{direct: true}}\ntests:\n  - {test}\n"
        );
        let told = mistakes(&policy);
        assert_eq!(told.len(), 1, "{test}: {told:?}");
        assert!(told[0].ends_with(expected), "{test}: {told:?}");
    }
}
