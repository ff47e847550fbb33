//! The promises of loading, kept over whole policies.

use std::time::Duration;

use super::*;
use crate::policy::{Circuit, RouteSpec, matcher::Matcher};

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn text(text: &str) -> Source {
    Source::Text {
        name: "p.yaml".to_owned(),
        text: text.to_owned(),
    }
}

fn try_load(policy: &str, environment: &Environment) -> Result<Loaded, Report> {
    load(&text(policy), environment, &Options::serve(now()))
}

#[track_caller]
fn loaded(policy: &str) -> Loaded {
    match try_load(policy, &Environment::default()) {
        Ok(loaded) => loaded,
        Err(report) => panic!("{report}"),
    }
}

/// What is wrong with a policy, one line each: `line:column message`.
fn mistakes(policy: &str) -> Vec<String> {
    let diagnostics = match try_load(policy, &Environment::default()) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report.diagnostics,
    };
    let line = |d: &Diagnostic| {
        let place = d.place.map(|p| format!("{}:{} ", p.line, p.column));
        let word = if d.is_error() { "" } else { "warning: " };
        format!("{}{word}{}", place.unwrap_or_default(), d.message)
    };
    diagnostics.iter().map(line).collect()
}

/// The mistakes of a rule that stands in an otherwise good policy, from line 3 on.
#[track_caller]
fn check_rule(rule: &str, expected: &[&str]) {
    let policy =
        format!("version: 1\nrules:\n  - {{name: r, {rule}}}\ndefault: {{direct: true}}\n");
    let got: Vec<_> = mistakes(&policy)
        .into_iter()
        .map(|line| {
            line.split_once(' ')
                .map(|(_, text)| text.to_owned())
                .unwrap()
        })
        .collect();
    assert_eq!(got, expected, "{rule}");
}

const TEN: &str = r#"version: 1
mode: reprot
upstreams:
  corp: {url: "https://proxy.corp.example:8080"}
  spare: {url: "http://me:s3cret@spare.example:8080"}
rules:
  - name: git
    match: {domian: corp.example, port: 99999}
    via: crop
  - name: git
    match: {host: "http://a.example", sni: a.example}
    direct: true
    block: {status: 404}
defaults: {timeouts: {dns: 5 parsecs}}
"#;

const TEN_TOLD: &str = r#"p.yaml:1:1: error: the policy needs `default`
 1 | version: 1
   | ^^^^^^^
   help: say what happens where no rule decides, as in `default: {direct: true}`

p.yaml:2:7: error: `reprot` is not one of enforce, report
 2 | mode: reprot
   |       ^^^^^^
   help: did you mean `report`?

p.yaml:4:15: error: https:// upstreams are not in this version; http:// is
 4 |   corp: {url: "https://proxy.corp.example:8080"}
   |               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

p.yaml:5:16: error: credentials do not stand in a policy
 5 |   spare: {url: *************************************}
   |                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   help: write `auth: {username: {env: NAME}, password: {env: NAME}}` beside `url`

p.yaml:8:13: error: `domian` is no key of `match`
 8 |     match: {domian: corp.example, port: 99999}
   |             ^^^^^^
   help: did you mean `domain`?

p.yaml:8:41: error: `99999` is not a port from 1 to 65535 or a range such as "8000-8999"
 8 |     match: {domian: corp.example, port: 99999}
   |                                         ^^^^^

p.yaml:9:10: error: there is no upstream `crop`
 9 |     via: crop
   |          ^^^^
   help: did you mean `corp`?

p.yaml:10:11: error: a second rule is named `git`
 10 |   - name: git
    |           ^^^
    help: the first is in line 7

p.yaml:11:19: error: a host pattern is a name or an address only: leave out scheme, port and path
 11 |     match: {host: "http://a.example", sni: a.example}
    |                   ^^^^^^^^^^^^^^^^^^

p.yaml:11:39: error: `sni` is not in this version
 11 |     match: {host: "http://a.example", sni: a.example}
    |                                       ^^^

p.yaml:13:12: error: a rule does one thing, and this does `direct` and `block`
 13 |     block: {status: 404}
    |            ^^^^^^^^^^^^^
    help: take `block` out, or make it a rule of its own

p.yaml:13:21: error: a client takes 404 for the origin's word that nothing is there
 13 |     block: {status: 404}
    |                     ^^^
    help: 400 to 599 but for 404, 407 and 410; leave it out for 403

p.yaml:14:28: error: `5 parsecs` is not a duration such as 250ms, 5s, 1h or 1m30s
 14 | defaults: {timeouts: {dns: 5 parsecs}}
    |                            ^^^^^^^^^
"#;

#[test]
fn every_mistake_is_told_at_once() {
    let report = try_load(TEN, &Environment::default()).unwrap_err();
    let told = report.render(false);
    assert_eq!(told, TEN_TOLD, "{told}");
}

#[test]
fn what_is_no_yaml_is_told_by_its_place() {
    for (policy, expected) in [
        (
            "",
            "1:1 the policy is empty; it needs at least `version` and `default`",
        ),
        (
            "# only this\n",
            "1:1 the policy is empty; it needs at least `version` and `default`",
        ),
        ("- a\n", "1:1 the policy is a mapping, not a list"),
        (
            "version: 1\ndefault: {direct: true}\nversion: 1\n",
            "3:1 `version` stands here a second time",
        ),
        (
            "version: 1\ndefault: {direct: true}\n---\na: b\n",
            "3:1 a second document begins here; a policy is one",
        ),
        (
            "version: 1\ndefault: {direct: !!bool true}\n",
            "2:26 tags are not read; write the value without `!`",
        ),
        (
            "version: 1\ndefault: {direct: yes}\n",
            "2:19 `true` or `false` belongs here",
        ),
        (
            "version: 1\ndefault: {direct: \"true\"}\n",
            "2:19 `true` or `false` belongs here",
        ),
        (
            "version: 1\ndefault: {direct: false}\n",
            "2:19 `true` is the only value of this key",
        ),
        (
            "version: 2\ndefault: {direct: true}\n",
            "1:10 version 2 of the policy language is not in this version",
        ),
        ("version: 1\ndefault:\n", "2:1 `default` has no value"),
        (
            "version: 1\ndefault: {direct: true}\nchains: {}\n",
            "3:1 `chains` is not in this version",
        ),
        (
            "version: 1\ndefault: {}\n",
            "2:10 `default` says what happens: `direct: true`, `via` or `block`",
        ),
        (
            "version: 1\nrules: [{direct: true}]\ndefault: {direct: true}\n",
            "2:10 a rule needs `name`",
        ),
    ] {
        assert_eq!(mistakes(policy), [expected], "{policy}");
    }
}

#[test]
fn a_syntax_error_is_a_diagnostic_too() {
    for policy in [
        "version: 1\ndefault: {direct: true\n",
        "version: 1\n\tdefault: x\n",
        "a: 'b\n",
        "a: b: c\n",
        "version: \"\\q\"\n",
    ] {
        let told = mistakes(policy);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("this is not YAML: "), "{told:?}");
    }
}

#[test]
fn hostile_files_fail_fast_and_clearly() {
    let nested =
        |open: &str, close: &str, n: usize| format!("a: {}{}\n", open.repeat(n), close.repeat(n));
    let laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n";
    let blocks = (0..1000).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "{}a:", " ".repeat(n));
        text
    });
    let utf16: Vec<u8> = "\u{feff}version: 1"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let started = std::time::SystemTime::now();
    for (bytes, expected) in [
        (
            laughs.as_bytes().to_vec(),
            "anchors and aliases are not read",
        ),
        (
            nested("[", "]", 100_000).into_bytes(),
            "nests deeper than 16 levels",
        ),
        (
            nested("{a: ", "}", 100_000).into_bytes(),
            "nests deeper than 16 levels",
        ),
        (blocks.into_bytes(), "nests deeper than 16 levels"),
        (
            format!("a: {}", "x".repeat(10 << 20)).into_bytes(),
            "larger than 4096 KiB",
        ),
        (
            b"version: 1\nname: a\0b\n".to_vec(),
            "p.yaml:2:8: error: a NUL byte stands here",
        ),
        (
            b"version: 1\nname: \xff\n".to_vec(),
            "p.yaml:2:7: error: this is not UTF-8",
        ),
        (utf16, "UTF-16; save it as UTF-8"),
        (
            b"a: !!python/object/apply:os.system [id]\n".to_vec(),
            "tags are not read",
        ),
        (
            b"base: {a: 1}\nx: {<<: {b: 2}}\n".to_vec(),
            "merge keys are not read",
        ),
        (b"? [a, b]\n: c\n".to_vec(), "a key is a text"),
        (
            format!("a: [{}]\n", "a,".repeat(500_000)).into_bytes(),
            "is no key of the policy",
        ),
        (
            format!("{}\n", "- ".repeat(300_000)).into_bytes(),
            "nests deeper than 16 levels",
        ),
        (
            format!("\"{}", "\\n".repeat(500_000)).into_bytes(),
            "not YAML",
        ),
        (
            format!("a: {}", "? ".repeat(300_000)).into_bytes(),
            "error: ",
        ),
        ("&a ".repeat(200_000).into_bytes(), "error: "),
        ("%YAML 1.1\n".repeat(50_000).into_bytes(), "error: "),
    ] {
        let told = match yaml::text(&bytes) {
            Err((place, message)) => alone(&"p.yaml".into(), place, message),
            Ok(text_of) => try_load(text_of, &Environment::default()).unwrap_err(),
        };
        let told = told.render(false);
        assert!(
            told.contains(expected),
            "{expected}: {}",
            told.chars().take(500).collect::<String>()
        );
        assert!(told.len() < 10_000, "{expected}: {} bytes", told.len());
    }
    let took = started.elapsed().unwrap();
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_flood_of_mistakes_is_bounded() {
    let flood = |item: &str, count: usize| {
        let hosts = vec![item; count].join(", ");
        format!("version: 1\ndefault: {{direct: true}}\nsets: {{s: {{hosts: [{hosts}]}}}}\n")
    };
    for policy in [
        flood("a/", 200_000),
        flood("u:p@h", 100_000),
        flood("{x: 1}", 50_000),
    ] {
        let report = try_load(&policy, &Environment::default()).unwrap_err();
        assert_eq!(report.diagnostics.len(), 101);
        assert!(
            report.diagnostics[100]
                .message
                .ends_with("more are not told")
        );
        assert!(report.render(false).len() < 100_000);
    }
    let rules = (0..10_001)
        .map(|n| format!("  - {{name: r{n}, match: {{host: h{n}.example}}, direct: true}}"));
    let rules: Vec<_> = rules.collect();
    let policy = format!(
        "version: 1\ndefault: {{direct: true}}\nrules:\n{}\n",
        rules.join("\n")
    );
    assert_eq!(
        mistakes(&policy),
        ["4:3 10001 rules are too many: 10000 may be"]
    );
}

#[test]
fn a_byte_order_mark_is_fine() {
    let loaded = loaded("\u{feff}version: 1\ndefault: {direct: true}\n");
    assert!(loaded.policy.rules.is_empty() && loaded.warnings.is_empty());
}

#[test]
fn a_rule_says_one_thing_and_says_it_well() {
    for (rule, expected) in [
        ("match: {port: \"8000-8999\"}, direct: true", &[][..]),
        (
            "match: {host: [a.example, \"*.b.example\"], method: [GET, HEAD]}, block: true",
            &[],
        ),
        (
            "match: {host_regex: '[a-z]+\\d*\\.example'}, direct: true",
            &[],
        ),
        (
            "match: {host_regex: 'a)|(b'}, direct: true",
            &["this is no regular expression: unopened group"],
        ),
        (
            "match: {host_regex: '\\w{200}{200}'}, direct: true",
            &["the expression is too large once compiled"],
        ),
        (
            "match: {ip: 10.0.0.0/33}, direct: true",
            &["`10.0.0.0/33` is not an address or a range such as 10.0.0.0/8 or 2001:db8::/32"],
        ),
        ("match: {ip: \"::ffff:10.0.0.0/104\"}, direct: true", &[]),
        (
            "match: {host: 10.0.0.0/8}, direct: true",
            &["a host pattern is a name or an address only: leave out scheme, port and path"],
        ),
        (
            "match: {host: [127.1, \"a b\"]}, direct: true",
            &[
                "host \"127.1\" is a legacy spelling of an IPv4 address; write four decimal numbers",
                "host \"a b\" is neither a valid name nor an address",
            ],
        ),
        (
            "match: {resolve: any}, block: true",
            &["`resolve` says how `ip` is matched, and there is no `ip` beside it"],
        ),
        (
            "match: {ip: 10.0.0.0/8, resolve: any}, direct: true",
            &["warning: rule `r` lets a name through if only some of its addresses lie inside"],
        ),
        (
            "match: {ip: 10.0.0.0/8, resolve: all}, block: true",
            &["warning: rule `r` blocks a name only if all of its addresses lie inside"],
        ),
        (
            "match: {scheme: connect, path: /x}, block: true",
            &["warning: rule `r` never matches: a tunnel does not show paths and headers"],
        ),
        (
            "match: {path: x}, block: true",
            &["a path begins with `/`, so this never matches"],
        ),
        (
            "match: {method: get}, block: true",
            &["methods are written in capitals"],
        ),
        (
            "match: {set: inside}, direct: true",
            &["there is no set `inside`"],
        ),
        (
            "match: {set: []}, direct: true",
            &["the list is empty; leave the key out or name something"],
        ),
        (
            "match: {any: []}, direct: true",
            &["the list is empty: some of nothing never holds"],
        ),
        (
            "match: {header: {\"a b\": x}}, block: true",
            &["`a b` is no header name"],
        ),
        (
            "match: {client: {cidr: 192.0.2.0/24, role: ci}}, direct: true",
            &["`role` is not in this version"],
        ),
        (
            "match: {go_module: x}, direct: true",
            &["`go_module` is not in this version"],
        ),
        (
            "match: {no_proxy: \".corp.example\"}, direct: true",
            &[
                "warning: NO_PROXY entry \".corp.example\": curl, Python and .NET clients take the name without the dot as well; write both to mean both",
            ],
        ),
        (
            "match: {no_proxy: \"a b\"}, direct: true",
            &[
                "warning: NO_PROXY entry \"a b\" never matches: blanks do not separate entries; commas do",
            ],
        ),
        (
            "via: a|direct",
            &["chains are not in this version; `via` names one upstream"],
        ),
        ("via: direct", &[]),
        ("via: nowhere", &["there is no upstream `nowhere`"]),
        (
            "fault: x, direct: true",
            &["`fault` is not in this version"],
        ),
        ("dirct: true", &["`dirct` is no key of a rule"]),
        (
            "direct: true, expires: 2027-13-01",
            &["`2027-13-01` is not a day such as 2027-01-31"],
        ),
        (
            "direct: true, expires: 2020-01-31",
            &["warning: rule `r` has expired and is off"],
        ),
        (
            "continue: true",
            &["warning: a rule that goes on without `timeouts` or `preflight` does nothing"],
        ),
        ("continue: true, timeouts: {idle: 2m}", &[]),
        ("continue: true, preflight: tls", &[]),
        ("direct: true, preflight: tls", &[]),
        ("direct: true, preflight: tsl", &["`tsl` is not one of tls"]),
        (
            "direct: true, preflight: true",
            &["`true` is not one of tls"],
        ),
        (
            "block: true, preflight: tls",
            &["warning: a rule that blocks grants no tunnel: its `preflight` has no effect"],
        ),
        ("block: {status: 200}", &["200 is no status for a refusal"]),
        (
            "block: {status: 407}",
            &["a client takes 407 as the question for its password"],
        ),
        (
            "block: {reason: \"a\\nb\"}",
            &["this stands in an answer's header: one line, at most 300 characters"],
        ),
        (
            "direct: true, timeouts: {connect: {total: 2s, address: 3s}}",
            &["one address may not take longer than all together (`total`)"],
        ),
        (
            "direct: true, timeouts: {hello: 0s}",
            &["`0s` is not a duration such as 250ms, 5s, 1h or 1m30s"],
        ),
        (
            "direct: true, timeouts: {idle: 0s}",
            &["`0s` is not a duration such as 250ms, 5s, 1h or 1m30s"],
        ),
        (
            "direct: true, timeouts: {idle: -5s}",
            &["`-5s` is not a duration such as 250ms, 5s, 1h or 1m30s"],
        ),
        (
            "direct: true, timeouts: {idle: 30}",
            &["`30` is not a duration such as 250ms, 5s, 1h or 1m30s"],
        ),
    ] {
        check_rule(rule, expected);
    }
}

#[test]
fn rules_that_can_never_decide_are_told() {
    for (first, second, is_told) in [
        (
            "direct: true",
            "match: {host: a.example}, direct: true",
            true,
        ),
        (
            "match: {domain: corp.example}, direct: true",
            "match: {host: \"*.git.corp.example\"}, block: true",
            true,
        ),
        (
            "match: {domain: corp.example}, direct: true",
            "match: {host: git.corp.example, port: 22}, block: true",
            true,
        ),
        (
            "match: {host: \"*.corp.example\"}, direct: true",
            "match: {domain: corp.example}, block: true",
            false,
        ),
        (
            "match: {domain: corp.example, port: 443}, direct: true",
            "match: {domain: corp.example}, block: true",
            false,
        ),
        (
            "match: {port: \"1-1000\"}, direct: true",
            "match: {port: [80, 443]}, block: true",
            true,
        ),
        (
            "match: {ip: 10.0.0.0/8}, direct: true",
            "match: {ip: 10.1.0.0/16}, block: true",
            true,
        ),
        (
            "match: {ip: 10.0.0.0/8}, direct: true",
            "match: {ip: 10.1.0.0/16, resolve: any}, block: true",
            false,
        ),
        (
            "match: {set: s}, direct: true",
            "match: {host: a.s.example}, block: true",
            true,
        ),
        (
            "match: {domain: s.example}, direct: true",
            "match: {set: s}, block: true",
            false,
        ),
        (
            "match: {not: {domain: a.example}}, direct: true",
            "match: {not: {domain: example}}, block: true",
            true,
        ),
        (
            "match: {any: [{port: 80}, {port: 443}]}, direct: true",
            "match: {port: 443, host: a.example}, block: true",
            true,
        ),
        (
            "match: {port: 443}, direct: true, mode: report",
            "match: {port: 443}, block: true",
            false,
        ),
        (
            "match: {port: 443}, continue: true, timeouts: {idle: 1m}",
            "match: {port: 443}, block: true",
            false,
        ),
        (
            "match: {port: 443}, direct: true, expires: 2027-01-01",
            "match: {port: 443}, block: true",
            false,
        ),
        (
            "match: {path: /a}, block: true",
            "match: {path: /a, port: 80}, block: true",
            false,
        ),
        (
            "match: {client: {cidr: 192.0.2.0/24}}, direct: true",
            "match: {client: {cidr: 192.0.2.9}}, block: true",
            true,
        ),
    ] {
        let policy = format!(
            "version: 1\nsets: {{s: {{domains: s.example, ips: 192.0.2.0/24}}}}\nrules:\n  - {{name: one, {first}}}\n  - {{name: two, {second}}}\ndefault: {{direct: true}}\n"
        );
        let told = mistakes(&policy);
        let expected =
            "5:12 warning: rule `two` can never decide: `one` (p.yaml:4) takes all it speaks of";
        assert_eq!(
            told.iter().any(|line| line == expected),
            is_told,
            "{first} / {second}: {told:?}"
        );
    }
}

#[test]
fn the_whole_server_section_is_kept() {
    let loaded = loaded(
        "version: 1
server:
  listen: [{name: proxy, address: 127.0.0.1:3128}, {name: build, address: '172.17.0.1:3128'}]
  allow_from: [172.17.0.0/16]
  admin: off
  log_format: json
  log_file: records.jsonl
  name: egress-1
  drain_timeout: 30s
  limits: {connections: 500}
default: {direct: true}
",
    );
    let server = loaded.server;
    assert_eq!(server.listen.as_ref().map(Vec::len), Some(2));
    assert_eq!(server.allow_from.as_ref().map(Vec::len), Some(1));
    assert!(server.admin_off && server.log_format == Some(LogFormat::Json));
    assert_eq!(server.log_file.as_deref(), Some(Path::new("records.jsonl")));
    assert_eq!(server.name.as_deref(), Some("egress-1"));
    assert_eq!(server.drain_timeout, Some(Duration::from_secs(30)));
    assert_eq!(server.connections, Some(500));
    assert_eq!(loaded.policy.guards.own.len(), 2);
}

#[test]
fn the_server_section_has_its_mistakes() {
    for (server, expected) in [
        (
            "{listen: [{address: 0.0.0.0:3128}]}",
            "warning: listener 0.0.0.0:3128 is not on loopback, and `allow_from` names nobody who may use it",
        ),
        (
            "{listen: [{address: 3128}]}",
            "`3128` is not an address and a port such as 127.0.0.1:3128 or [::1]:3128",
        ),
        (
            "{listen: []}",
            "the list is empty; leave the key out or name a listener",
        ),
        (
            "{listen: [{address: 127.0.0.1:1}, {address: 127.0.0.1:1}]}",
            "127.0.0.1:1 is listened on already",
        ),
        (
            "{admin: 127.0.0.1:3129}",
            "an admin listener is not in this version",
        ),
        (
            "{name: \"a b\"}",
            "the name stands in a header: letters, digits and -._ only, a letter first",
        ),
        (
            "{limits: {connections: 0}}",
            "with no connections nothing can be served",
        ),
        ("{log_format: xml}", "`xml` is not one of json, text"),
        ("{lissen: []}", "`lissen` is no key of `server`"),
    ] {
        let told = mistakes(&format!(
            "version: 1\ndefault: {{direct: true}}\nserver: {server}\n"
        ));
        assert_eq!(told.len(), 1, "{server}: {told:?}");
        assert!(told[0].ends_with(expected), "{server}: {told:?}");
    }
}

#[test]
fn the_embedded_policy_follows_the_environment() {
    let environment: Environment = [
        ("HTTP_PROXY", "http://me:s3cret@proxy.corp.example:8080"),
        ("HTTPS_PROXY", "http://other.corp.example:8080"),
        ("NO_PROXY", "corp.example"),
    ]
    .into_iter()
    .collect();
    let loaded = load(&Source::Embedded, &environment, &Options::serve(now())).unwrap();
    let routes = &loaded.policy.routes;
    let names: Vec<_> = routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["direct", "env", "env"]);
    let RouteSpec::Upstream { proxy, credentials } = &routes[1].spec else {
        panic!("{routes:?}");
    };
    assert_eq!(proxy.to_string(), "proxy.corp.example:8080");
    assert_eq!(credentials.as_ref().unwrap().reveal(), "Basic bWU6czNjcmV0");
    assert!(!format!("{loaded:?}").contains("s3cret"));
}

#[test]
fn an_environment_that_cannot_be_used_is_told_at_the_key() {
    let environment: Environment = [
        ("HTTPS_PROXY", "socks5://me:s3cret@h:1"),
        ("https_proxy", "x"),
    ]
    .into_iter()
    .collect();
    let report = load(&Source::Embedded, &environment, &Options::serve(now())).unwrap_err();
    let told = report.to_string();
    assert!(
        told.contains(
            "HTTPS_PROXY of the environment: socks5:// upstreams are not in this version"
        ),
        "{told}"
    );
    assert!(
        told.contains("warning: HTTPS_PROXY and https_proxy differ"),
        "{told}"
    );
    assert!(
        told.contains("env: {url: env}") && !told.contains("s3cret"),
        "{told}"
    );
}

#[test]
fn an_entry_that_names_our_own_listener_is_dropped_with_a_warning() {
    let environment: Environment = [("HTTPS_PROXY", "http://127.0.0.1:3128")]
        .into_iter()
        .collect();
    let loaded = load(&Source::Embedded, &environment, &Options::serve(now())).unwrap();
    assert_eq!(loaded.policy.routes.len(), 1);
    assert!(
        loaded.warnings[0]
            .message
            .contains("points back at this proxy"),
        "{:?}",
        loaded.warnings
    );
    let mut elsewhere = Options::serve(now());
    elsewhere.listen = vec!["127.0.0.1:9999".parse().unwrap()];
    let loaded = load(&Source::Embedded, &environment, &elsewhere).unwrap();
    assert_eq!(loaded.policy.routes.len(), 2);
}

const WITH_SECRETS: &str = "version: 1
upstreams:
  corp: {url: http://proxy.corp.example:8080, auth: {username: {env: CORP_USER}, password: {file: FILE}}}
default: {via: corp}
";

#[test]
fn secrets_are_needed_to_run_and_wanted_to_check() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = std::env::temp_dir().join(format!("routecause-secrets-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("policy.yaml");
    std::fs::write(&path, WITH_SECRETS.replace("FILE", "secret")).unwrap();
    let secret = folder.join("secret");
    let source = Source::File(path);
    let with = |environment: &Environment, options: &Options| load(&source, environment, options);
    let user: Environment = [("CORP_USER", "me")].into_iter().collect();
    let told = |report: &Report| {
        report
            .diagnostics
            .iter()
            .map(|d| d.message.clone())
            .collect::<Vec<_>>()
    };

    let report = with(&Environment::default(), &Options::serve(now())).unwrap_err();
    assert_eq!(told(&report).len(), 2, "{report}");
    assert!(
        told(&report)[0].contains("the variable CORP_USER is not set"),
        "{report}"
    );
    assert!(told(&report)[1].contains("cannot be read"), "{report}");
    let checked = with(&Environment::default(), &Options::check(now())).unwrap();
    assert_eq!(checked.warnings.len(), 2);

    for (content, mode, problem) in [
        (
            &b"s3cret\n"[..],
            0o644,
            Some("is open to others (mode 644)"),
        ),
        (b"s3cret\n", 0o640, Some("is open to others (mode 640)")),
        (b"s3cret\n", 0o601, Some("is open to others (mode 601)")),
        (b"", 0o600, Some("is empty")),
        (
            b"a\nb\n",
            0o600,
            Some("holds more than one line, or a control character"),
        ),
        (b"s3cret\n", 0o600, None),
        (b"s3cret\r\n", 0o400, None),
        (b"s3cret", 0o600, None),
    ] {
        let _ = std::fs::remove_file(&secret);
        std::fs::write(&secret, content).unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        match (with(&user, &Options::serve(now())), problem) {
            (Ok(loaded), None) => {
                let RouteSpec::Upstream { credentials, .. } = &loaded.policy.routes[1].spec else {
                    panic!("no upstream");
                };
                assert_eq!(credentials.as_ref().unwrap().reveal(), "Basic bWU6czNjcmV0");
            }
            (Err(report), Some(problem)) => {
                assert!(told(&report)[0].ends_with(problem), "{report}");
                assert!(!report.to_string().contains("s3cret"));
            }
            (result, problem) => panic!("{problem:?}: {result:?}"),
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_secret_in_the_policy_is_refused_and_not_shown() {
    for upstream in [
        "{url: http://h:1, auth: {username: me, password: s3cret}}",
        "{url: http://h:1, auth: {username: {env: U}, pasword: s3cret}}",
        "{url: http://h:1, auth: {username: {env: U}, password: {file: [s3cret]}}}",
        "{url: 'http://me:s3cret@h:1'}",
        "{url: 'me:s3cret@h:1'}",
        "{url: 'https://me:s3cret@h:1/'}",
        "{url: http://h:1, auth: s3cret}",
        "{url: http://h:1, password: s3cret, auth: {username: {env: U}, password: |\n   s3cret\n   s3cret\n}}",
        "{url: http://me:s3cret@h:1, auth: [",
    ] {
        let policy =
            format!("version: 1\ndefault: {{direct: true}}\nupstreams:\n  corp: {upstream}\n");
        let report = try_load(&policy, &Environment::default()).unwrap_err();
        assert!(!report.to_string().contains("s3cret"), "{report}");
    }
}

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
            "{connect: \"a.example:443\", env: {HTTPS_PROXY: \"https://h:1\"}, expect: {rule: default}}",
            "HTTPS_PROXY of the environment: https:// upstreams are not in this version; http:// is",
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

#[test]
fn timeouts_are_layered() {
    let loaded = loaded(
        "version: 1\ndefaults: {timeouts: {connect: 20s, idle: 2h}}\nrules: [{name: r, timeouts: {connect: {address: 1s}}, direct: true}]\ndefault: {direct: true}\n",
    );
    let rule = loaded.policy.rules[0].timeouts.as_ref().unwrap();
    assert_eq!(loaded.policy.timeouts.connect, Duration::from_secs(20));
    assert_eq!(rule.connect, Duration::from_secs(20));
    assert_eq!(rule.connect_address, Duration::from_secs(1));
    assert_eq!(rule.idle, Duration::from_hours(2));
}

#[test]
fn a_circuit_is_off_unless_it_is_set() {
    assert_eq!(
        loaded("version: 1\nrules: []\ndefault: {direct: true}\n")
            .policy
            .circuit,
        None
    );
    let policy = |circuit: &str| {
        format!(
            "version: 1\ndefaults: {{circuit: {circuit}}}\nrules: []\ndefault: {{direct: true}}\n"
        )
    };
    let set = loaded(&policy("{fails: 3, within: 30s, open: 1h}"))
        .policy
        .circuit;
    let expected = Circuit {
        fails: 3,
        within: Duration::from_secs(30),
        open: Duration::from_hours(1),
    };
    assert_eq!(set, Some(expected));
    for (circuit, expected) in [
        ("{fails: 3, within: 30s}", "2:22 `circuit` needs `open`"),
        (
            "{fails: 0, within: 30s, open: 1m}",
            "2:29 0 is no number of failures for a circuit",
        ),
        (
            "{fails: 1001, within: 30s, open: 1m}",
            "2:29 1001 is no number of failures for a circuit",
        ),
        (
            "{fails: 3, within: 61m, open: 1m}",
            "2:40 a circuit counts, and stays open, for an hour at most",
        ),
        (
            "{fails: 3, within: 1m, open: 2h}",
            "2:50 a circuit counts, and stays open, for an hour at most",
        ),
        (
            "{fails: 3, within: 0s, open: 1m}",
            "2:40 `0s` is not a duration such as 250ms, 5s, 1h or 1m30s",
        ),
        (
            "{fials: 3, within: 1m, open: 1m}",
            "2:22 `fials` is no key of `circuit`",
        ),
        ("true", "2:21 `circuit` is a mapping, not a text"),
    ] {
        assert_eq!(mistakes(&policy(circuit)), [expected], "{circuit}");
    }
}

#[test]
fn the_no_proxy_key_is_the_first_rule() {
    let loaded = loaded(
        "version: 1\nno_proxy: {list: .corp.example, dialect: curl}\nrules: [{name: r, match: {port: 80}, direct: true}]\ndefault: {direct: true}\n",
    );
    let rule = &loaded.policy.rules[0];
    assert_eq!((&*rule.name, &*rule.source), ("no_proxy", "p.yaml:2"));
    assert!(
        matches!(&rule.matcher, Matcher::NoProxy(list) if list.dialect() == crate::policy::no_proxy::Dialect::Curl)
    );
}

#[test]
fn a_policy_is_known_by_its_text() {
    let one = loaded("version: 1\ndefault: {direct: true}\n").policy.hash;
    let two = loaded("version: 1\ndefault: {direct: true}\n# other\n")
        .policy
        .hash;
    assert!(one.len() == 12 && one != two);
    assert_eq!(&*hash("abc"), "ba7816bf8f01"); // the example of FIPS 180-2
}

#[test]
fn the_policy_is_looked_for_in_order() {
    let folder = std::env::temp_dir().join(format!("routecause-locate-{}", std::process::id()));
    let user = folder.join("routecause/policy.yaml");
    std::fs::create_dir_all(user.parent().unwrap()).unwrap();
    let environment = |named: &str| -> Environment {
        [
            ("XDG_CONFIG_HOME", folder.to_str().unwrap()),
            ("ROUTECAUSE_POLICY", named),
        ]
        .into_iter()
        .collect()
    };
    assert_ne!(locate(None, &environment("")), Source::File(user.clone()));
    std::fs::write(&user, "").unwrap();
    assert_eq!(locate(None, &environment("")), Source::File(user));
    assert_eq!(
        locate(None, &environment("/nowhere/p.yaml")),
        Source::File("/nowhere/p.yaml".into())
    );
    assert_eq!(
        locate(Some(Path::new("f")), &environment("/nowhere/p.yaml")),
        Source::File("f".into())
    );
    let report = load(
        &Source::File("/nowhere/p.yaml".into()),
        &environment(""),
        &Options::serve(now()),
    )
    .unwrap_err();
    assert!(
        report
            .to_string()
            .starts_with("/nowhere/p.yaml: error: the policy cannot be read: No such file"),
        "{report}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn every_policy_of_ours_loads_without_a_word_and_passes_its_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        // They name secrets that are not here, as on any other machine.
        let loaded = load(
            &Source::File(path.clone()),
            &Environment::default(),
            &Options::check(now()),
        )
        .unwrap_or_else(|report| panic!("{report}"));
        let told: Vec<_> = loaded
            .warnings
            .iter()
            .filter(|w| !w.message.contains("is not set"))
            .map(|w| w.render(false))
            .collect();
        assert!(told.is_empty(), "{}", told.join("\n"));
        assert!(!loaded.trials.is_empty(), "{}", path.display());
        for trial in &loaded.trials {
            let outcome = trial.run(now());
            assert!(
                outcome.passed(),
                "{}",
                outcome.failure.unwrap().render(false)
            );
        }
        count += 1;
    }
    assert!(count >= 5, "{count} policies");
}

/// Every key of every mapping that the decoder takes, by the name of its schema.
#[test]
fn the_schema_tells_every_key_in_a_sentence() {
    let schema = schema();
    assert_eq!(schema["title"], "routecause.policy/1");
    let mut mappings: Vec<&serde_json::Value> = vec![&schema];
    mappings.extend(schema["$defs"].as_object().unwrap().values());
    let mut keys = 0;
    for mapping in mappings {
        let Some(properties) = mapping.get("properties").and_then(|p| p.as_object()) else {
            continue;
        };
        assert_eq!(mapping["additionalProperties"], false, "{mapping}");
        for (key, value) in properties {
            let description = value["description"].as_str().unwrap_or_default();
            assert!(
                description.ends_with(['.', ')', '`', ':']) || description.len() > 10,
                "{key}: {value}"
            );
            keys += 1;
        }
    }
    assert!(keys > 70, "{keys}");
    for key in ["version", "rules", "default", "tests"] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
    assert_eq!(
        schema["required"],
        serde_json::json!(["version", "default"])
    );
}
