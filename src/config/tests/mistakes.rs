//! What is wrong is told at once, at its place.

use super::*;

const TEN: &str = r#"version: 1
mode: reprot
upstreams:
  corp: {url: "socks4://proxy.corp.example:8080"}
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

p.yaml:4:15: error: socks4:// is no proxy's scheme: http, https, socks5 and socks5h are
 4 |   corp: {url: "socks4://proxy.corp.example:8080"}
   |               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

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

p.yaml:9:10: error: there is no route `crop`
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
            "2:19 `true` is the only value of this key",
        ),
        (
            "version: 1\ndefault: {direct: \"true\"}\n",
            "2:19 `true` is the only value of this key",
        ),
        (
            "version: 1\ndefault: {direct: false}\n",
            "2:19 `true` is the only value of this key",
        ),
        (
            "version: 1\ndefault: {block: yes}\n",
            "2:18 `true`, or what the answer says as in `{reason: …}`, belongs here",
        ),
        (
            "version: 1\ndefault: {block: false}\n",
            "2:18 `true`, or what the answer says as in `{reason: …}`, belongs here",
        ),
        (
            "version: 2\ndefault: {direct: true}\n",
            "1:10 version 2 of the policy language is not in this version",
        ),
        ("version: 1\ndefault:\n", "2:1 `default` has no value"),
        (
            "version: 1\ndefault: {direct: true}\ninspect: {}\n",
            "3:1 `inspect` is not in this version",
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
fn what_to_write_instead_is_said_where_it_is_known() {
    for (policy, expected) in [
        (
            "rules: [{name: r, match: {host: x.example, scheme: https}, direct: true}]",
            "a proxy sees an https URL as a tunnel: write `connect`",
        ),
        (
            "rules: [{name: r, match: {host: x.example, scheme: htp}, direct: true}]",
            "did you mean `http`?",
        ),
        ("rules: [{name: r, direct: yes}]", "write `true`"),
        (
            "rules: [{name: r, direct: false}]",
            "leave the key out instead",
        ),
        ("rules: [{name: r, block: no}]", "leave the key out instead"),
        (
            "tests: [{get: x.example/, expect: {rule: default}}]",
            "write `http://x.example/`",
        ),
        (
            "tests: [{get: \"x.example:8080\", expect: {rule: default}}]",
            "write `http://x.example:8080/`",
        ),
        (
            "tests: [{get: /y, expect: {rule: default}}]",
            "write `http://host/y`",
        ),
    ] {
        let policy = format!("version: 1\ndefault: {{direct: true}}\n{policy}\n");
        let report = try_load(&policy, &Environment::default()).unwrap_err();
        assert_eq!(
            report.diagnostics[0].help.as_deref(),
            Some(expected),
            "{policy}"
        );
    }
}

#[test]
fn a_file_of_users_is_shown_and_a_user_is_not() {
    for (users, is_shown) in [
        ("/nowhere/users.txt", true),
        ("\"alice:s3cret\"", false),
        ("[s3cret]", false),
        ("{alice: s3cret}", false),
    ] {
        let policy = format!(
            "version: 1\nserver: {{auth: {{users: {users}}}}}\ndefault: {{direct: true}}\n"
        );
        let report = try_load(&policy, &Environment::default()).unwrap_err();
        let excerpt = report.to_string();
        let excerpt = excerpt.lines().find(|line| line.contains(" | server:"));
        assert_eq!(excerpt.unwrap().contains(users), is_shown, "{report}");
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
            Err((place, message)) => Report {
                diagnostics: vec![Diagnostic::new(&"p.yaml".into(), place, message)],
                files: Vec::new(),
            },
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
fn a_flood_of_warnings_hides_no_mistake() {
    let rules = (0..200).map(|n| {
        format!("  - {{name: r{n}, match: {{host: h{n}.example}}, block: true, timeouts: {{dns: 1s}}}}\n")
    });
    let policy = |default: &str| {
        let rules: String = rules.clone().collect();
        format!("version: 1\nrules:\n{rules}default: {{{default}}}\n")
    };
    assert_eq!(loaded(&policy("direct: true")).warnings.len(), 100);
    let report = try_load(&policy("via: crop"), &Environment::default()).unwrap_err();
    assert!(
        report
            .diagnostics
            .iter()
            .any(|told| told.message.contains("crop"))
    );
}

#[test]
fn an_exception_that_opens_nothing_is_none() {
    let except = |ip: &str| {
        let guards = format!("guards: {{except: [{{ip: '{ip}'}}]}}");
        mistakes(&format!(
            "version: 1\n{guards}\ndefault: {{direct: true}}\n"
        ))
    };
    for ip in ["0.0.0.0/8", "240.0.0.0/4", "::/128", "ff02::/16"] {
        let told = format!("2:24 no exception opens {ip}: it is no host's address");
        assert_eq!(except(ip), [told]);
    }
    assert_eq!(except("10.0.0.0/8"), [""; 0]);
    assert_eq!(except("::/0"), [""; 0]);
}

#[test]
fn a_byte_order_mark_is_fine() {
    let loaded = loaded("\u{feff}version: 1\ndefault: {direct: true}\n");
    assert!(loaded.policy.rules.is_empty() && loaded.warnings.is_empty());
}
