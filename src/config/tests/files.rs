//! A policy in several files, and clients that rules tell apart.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn load_of(folder: &Path) -> Result<Loaded, Report> {
    let source = Source::File(folder.join("policy.yaml"));
    load(&source, &Environment::default(), &Options::serve(now()))
}

#[track_caller]
fn good(files: &[(&str, &str)]) -> Loaded {
    let folder = folder(files);
    load_of(folder.path()).unwrap_or_else(|report| panic!("{report}"))
}

/// What is told of a policy's files, one line each, without the folder.
fn told(files: &[(&str, &str)]) -> Vec<String> {
    let folder = folder(files);
    let diagnostics = match load_of(folder.path()) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report.diagnostics,
    };
    let lead = format!("{}/", folder.path().display());
    let line = |d: &Diagnostic| {
        let help = d.help.as_ref().map(|help| format!(" ({help})"));
        format!("{d}{}", help.unwrap_or_default()).replace(&lead, "")
    };
    diagnostics.iter().map(line).collect()
}

const POLICY: &str = "\
version: 1
include: [policy.d/sets.yaml]
sets: {outside: {hosts: [a.example]}}
rules:
  - {name: first, match: {set: inside}, direct: true}
  - include: policy.d/team.yaml
  - {name: last, match: {set: outside}, block: true}
default: {direct: true}
tests:
  - {connect: \"git.corp.example:443\", expect: {rule: first}}
  - {connect: \"team.example:443\", expect: {rule: team}}
  - {connect: \"a.example:443\", expect: {rule: last}}
";

const SETS: &str =
    "sets:\n  inside: {domains: [corp.example]}\n  listed: {file: hosts.txt, kind: hosts}\n";
const TEAM: &str = "- {name: team, match: {set: listed}, block: true}\n";
const HOSTS: &str = "# the team's\nteam.example  # all of it\n\n  *.team.example\n";

#[test]
fn named_things_and_rules_come_from_other_files() {
    let loaded = good(&[
        ("policy.yaml", POLICY),
        ("policy.d/sets.yaml", SETS),
        ("policy.d/team.yaml", TEAM),
        ("policy.d/hosts.txt", HOSTS),
    ]);
    let names: Vec<_> = loaded.policy.rules.iter().map(|r| &*r.name).collect();
    assert_eq!(names, ["first", "team", "last"]);
    assert!(
        loaded.policy.rules[1]
            .source
            .ends_with("policy.d/team.yaml:1")
    );
    let files: Vec<_> = loaded
        .files
        .iter()
        .map(|f| f.file_name().unwrap())
        .collect();
    assert_eq!(
        files,
        ["policy.yaml", "sets.yaml", "team.yaml", "hosts.txt"]
    );
}

#[test]
fn the_hash_is_that_of_all_files() {
    let files = |hosts| {
        good(&[
            ("policy.yaml", POLICY),
            ("policy.d/sets.yaml", SETS),
            ("policy.d/team.yaml", TEAM),
            ("policy.d/hosts.txt", hosts),
        ])
        .policy
        .hash
    };
    assert_eq!(files(HOSTS), files(HOSTS));
    assert_ne!(files(HOSTS), files(&format!("{HOSTS}b.example\n")));
    let alone = "version: 1\nrules: []\ndefault: {direct: true}\n";
    assert_eq!(
        good(&[("policy.yaml", alone)]).policy.hash,
        loaded(alone).policy.hash
    );
}

#[test]
fn a_mistake_is_told_in_the_file_where_it_stands() {
    let with = |sets: &str, team: &str, hosts: &str| {
        told(&[
            ("policy.yaml", POLICY),
            ("policy.d/sets.yaml", sets),
            ("policy.d/team.yaml", team),
            ("policy.d/hosts.txt", hosts),
        ])
    };
    assert_eq!(
        with(
            SETS,
            "- {name: first, match: {set: lsted}, dirct: true}\n",
            HOSTS
        ),
        [
            "policy.d/team.yaml:1:10: error: a second rule is named `first` (the first is in policy.yaml:5)",
            "policy.d/team.yaml:1:30: error: there is no set `lsted` (did you mean `listed`?)",
            "policy.d/team.yaml:1:38: error: `dirct` is no key of a rule (did you mean `direct`?)",
        ]
    );
    assert_eq!(
        with(&format!("{SETS}rules: []\n"), TEAM, HOSTS),
        [
            "policy.d/sets.yaml:4:1: error: `rules` does not stand in an included file (its keys are include, clients, chains, faults, groups, sets, upstreams)"
        ]
    );
    assert_eq!(
        with(
            &format!("{SETS}  outside: {{hosts: b.example}}\n"),
            TEAM,
            HOSTS
        ),
        [
            "policy.d/sets.yaml:4:3: error: `outside` is named a second time (the first is in policy.yaml:3)"
        ]
    );
    assert_eq!(
        with(SETS, "name: team\n", HOSTS)[0],
        "policy.d/team.yaml:1:1: error: a file of rules is a list, not a mapping (a file of named things is included at the top, as `include: [FILE]`)"
    );
    assert_eq!(
        with("- a\n", TEAM, HOSTS)[0],
        "policy.d/sets.yaml:1:1: error: a file of named things is a mapping, not a list (a file of rules is included in `rules`, as `- include: FILE`)"
    );
    assert_eq!(
        with(
            SETS,
            TEAM,
            "good.example\n0.0.0.0 ads.example\nhttp://c.example\n"
        ),
        [
            "policy.d/hosts.txt:2:1: error: host \"0.0.0.0 ads.example\" is neither a valid name nor an address",
            "policy.d/hosts.txt:3:1: error: a host pattern is a name or an address only: leave out scheme, port and path",
        ]
    );
    assert_eq!(
        with(SETS, TEAM, "# nothing\n")[1],
        "policy.d/sets.yaml:3:18: warning: nothing stands in `hosts.txt`"
    );
    assert_eq!(with("a: [\n", TEAM, HOSTS).len(), 1);
}

#[test]
fn a_secret_in_an_included_file_is_not_shown() {
    let folder = folder(&[
        (
            "policy.yaml",
            "version: 1\ninclude: more.yaml\nrules: []\ndefault: {via: corp}\n",
        ),
        (
            "more.yaml",
            "upstreams:\n  corp: {url: \"http://p.example:1\", auth: {username: {env: A}, password: hunter2}}\n",
        ),
    ]);
    let report = load_of(folder.path()).unwrap_err().render(false);
    assert!(
        report.contains("more.yaml:2") && !report.contains("hunter2"),
        "{report}"
    );
}

#[test]
fn files_that_are_absent_or_go_in_circles_are_told_and_watched() {
    let policy = |include: &str| {
        format!("version: 1\ninclude: {include}\nrules: []\ndefault: {{direct: true}}\n")
    };
    let files = |include: &str, more: &[(&str, &str)]| {
        let policy = policy(include);
        told(&[&[("policy.yaml", &*policy)], more].concat())
    };
    assert_eq!(
        files("none.yaml", &[]),
        [
            "policy.yaml:2:10: error: `none.yaml` cannot be read: No such file or directory (os error 2)"
        ]
    );
    assert_eq!(
        files("policy.yaml", &[]),
        ["policy.yaml:2:10: error: the policy includes itself"]
    );
    assert_eq!(
        files(
            "[a.yaml, ./a.yaml]",
            &[("a.yaml", "sets: {a: {hosts: a}}\n")]
        ),
        ["policy.yaml:2:19: error: `./a.yaml` is included a second time (the first is in line 2)"]
    );
    assert_eq!(
        files(
            "a.yaml",
            &[
                ("a.yaml", "include: b.yaml\n"),
                ("b.yaml", "include: [a.yaml]\n")
            ]
        ),
        ["b.yaml:1:11: error: files include each other: a.yaml, b.yaml, a.yaml"]
    );
    let folder = folder(&[("policy.yaml", &policy("gone/none.yaml"))]);
    let watched = load_of(folder.path()).unwrap_err().files;
    let expected: [PathBuf; 2] = ["policy.yaml", "gone/none.yaml"].map(|f| folder.path().join(f));
    assert_eq!(watched, expected);
}

#[test]
fn a_set_of_a_hundred_thousand_names_loads_fast() {
    let list = |kind: &str, entry: fn(u32) -> String| {
        let lines: Vec<_> = (0..100_000).map(entry).collect();
        let policy = format!(
            "version: 1\nsets: {{big: {{file: list.txt, kind: {kind}}}}}\nrules:\n  - {{name: big, match: {{set: big}}, block: true}}\ndefault: {{direct: true}}\n\
             tests:\n  - {{connect: \"{}:443\", expect: {{rule: big}}}}\n  - {{connect: \"other.test:443\", env: {{A: b}}, expect: {{rule: default}}}}\n",
            lines[77_777].split('/').next().unwrap()
        );
        let begun = tokio::time::Instant::now();
        good(&[("policy.yaml", &policy), ("list.txt", &lines.join("\n"))]);
        begun.elapsed()
    };
    for (kind, entry) in [
        (
            "domains",
            (|n| format!("host-{n}.ads.example")) as fn(u32) -> String,
        ),
        ("ips", |n| {
            format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255)
        }),
    ] {
        let took = list(kind, entry);
        // A build without optimisation, on a machine that others use too.
        assert!(took < Duration::from_secs(15), "{kind}: {took:?}");
    }
}

#[test]
fn roles_labels_users_and_listeners_tell_clients_apart() {
    let loaded = loaded(
        "version: 1
server: {listen: [{name: host, address: '127.0.0.1:3128'}, {name: build, address: '127.0.0.2:3128'}]}
clients:
  labels: username_suffix
  roles:
    ci: {cidr: [192.0.2.0/24]}
    docker: {listener: build}
    alice: {user: [alice]}
    unit: {label: [\"unit-*\"]}
    both: {cidr: 192.0.2.0/24, label: \"unit-*\"}
rules:
  - {name: both, match: {client: {role: both}}, block: true}
  - {name: units, match: {client: {role: [unit]}}, block: true}
  - {name: release, match: {client: {label: [\"release-*\"]}}, direct: true}
  - {name: ci, match: {client: {role: ci}}, direct: true}
  - {name: docker, match: {client: {role: docker}}, direct: true}
  - {name: alice, match: {client: {role: alice}}, direct: true}
  - {name: bob, match: {client: {user: bob, listener: host}}, direct: true}
default: {block: true}
tests:
  - {connect: 'a.example:443', client: {role: [ci]}, expect: {rule: ci, client: {role: ci}}}
  - {connect: 'a.example:443', client: {role: [unit, ci]}, expect: {rule: both, client: {role: [both, unit]}}}
  - {connect: 'a.example:443', client: {label: unit-1}, expect: {rule: units}}
  - {connect: 'a.example:443', client: {user: carol+unit-1}, expect: {rule: units, client: {user: carol, label: unit-1}}}
  - {connect: 'a.example:443', client: {user: release-7}, expect: {rule: release}}
  - {connect: 'a.example:443', client: {listener: build}, expect: {rule: docker}}
  - {connect: 'a.example:443', client: {role: docker}, expect: {rule: docker}}
  - {connect: 'a.example:443', client: {user: alice}, expect: {rule: alice}}
  - {connect: 'a.example:443', client: {user: bob}, expect: {rule: bob}}
  - {connect: 'a.example:443', client: {user: bob, listener: build}, expect: {rule: docker}}
  # No password is checked: from elsewhere a name is worth nothing.
  - {connect: 'a.example:443', client: {user: alice, cidr: 198.51.100.1}, expect: {rule: default}}
  - {connect: 'a.example:443', client: 192.0.2.1, expect: {rule: ci}}
",
    );
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.trials.len(), 12);
}

#[test]
fn what_is_wrong_with_clients_is_told() {
    let with = |clients: &str, rule: &str| {
        mistakes(&format!(
            "version: 1\nclients: {clients}\nrules:\n  - {{name: r, {rule}}}\ndefault: {{direct: true}}\n"
        ))
    };
    assert_eq!(
        with("{roles: {ci: {cidr: 192.0.2.0/24}}}", "direct: true"),
        ["2:19 warning: role `ci` is never used"]
    );
    assert_eq!(
        with(
            "{roles: {ci: {}}}",
            "match: {client: {role: ic}}, direct: true"
        ),
        [
            "2:19 role `ci` is everyone's: it has no field",
            "2:19 warning: role `ci` is never used",
            "4:38 there is no role `ic`",
        ]
    );
    assert_eq!(
        with("{labels: username}", "direct: true"),
        ["2:19 `username` is not one of none, username_suffix"]
    );
    assert_eq!(
        with("{users: {file: x}}", "direct: true"),
        ["2:11 `users` is not in this version"]
    );
    let open = mistakes(
        "version: 1\nserver: {listen: [{address: '0.0.0.0:3128'}], allow_from: 10.0.0.0/8}\nrules:\n  - {name: r, match: {client: {user: alice}}, direct: true}\ndefault: {direct: true}\n",
    );
    assert_eq!(
        open,
        ["4:38 warning: `user` counts for clients on this machine only: no password is checked"]
    );
    let test = mistakes(
        "version: 1\nclients: {roles: {far: {cidr: 192.0.2.0/24, user: alice}}}\nrules:\n  - {name: r, match: {client: {role: far}}, direct: true}\ndefault: {direct: true}\ntests:\n  - {connect: 'a.example:1', client: {role: far}, expect: {rule: r}}\n",
    );
    assert_eq!(
        test,
        ["7:45 the client of this test does not have role `far`"]
    );
}

#[test]
fn rules_speak_of_the_first_flight() {
    let loaded = loaded(
        "version: 1
guards: {sni_mismatch: block}
sets: {read: {domains: [vcs.example]}, private: {go_modules: [git.corp.example, code.example/team/*]}}
rules:
  - {name: private, match: {set: private}, direct: true}
  - {name: ads, match: {sni: ['*.ads.example', ads.example]}, block: true}
  - {name: plain, match: {set: read, not: {proto: [tls]}}, block: {reason: 'TLS only'}}
  - {name: h2, match: {set: read, alpn: h2}, direct: true}
  - {name: read, match: {set: read, proto: tls}, direct: true}
default: {block: {reason: 'not on the list'}}
tests:
  - {connect: 'vcs.example:443', expect: {rule: read, action: direct}}
  - {connect: 'vcs.example:443', alpn: [h2, http/1.1], expect: {rule: h2}}
  - {connect: 'vcs.example:443', sni: other.example, expect: {rule: guards.sni_mismatch, action: block, status: 403}}
  - {connect: 'vcs.example:443', sni: x.ads.example, expect: {rule: ads, action: block}}
  - {connect: 'vcs.example:22', expect: {rule: plain}}
  - {connect: 'vcs.example:8443', proto: tls, expect: {rule: read}}
  - {connect: 'vcs.example:8443', expect: {rule: plain}}
  - {connect: '192.0.2.1:443', sni: ads.example, expect: {rule: ads}}
  - {connect: 'git.corp.example:443', expect: {rule: private}}
  - {connect: 'code.example:443', expect: {rule: default}}
  - {get: 'http://mirror.example/code.example/team/!lib/@v/list', expect: {rule: private}}
  - {get: 'http://code.example/team/lib?go-get=1', expect: {rule: private}}
  - {get: 'http://mirror.example/code.example/other/@latest', expect: {rule: default}}
  - {get: 'http://vcs.example/', expect: {rule: plain}}
",
    );
    let told: Vec<_> = loaded.warnings.iter().map(|w| &*w.message).collect();
    assert_eq!(
        told,
        [
            "rule `private`: a tunnel shows its host only, so `code.example/team/*` is unknown there and does not match"
        ]
    );
}

#[test]
fn a_rule_on_flights_that_are_never_read_is_told_of() {
    let told = |defaults: &str, rules: &str| -> Vec<String> {
        let policy = format!(
            "version: 1\ndefaults: {{{defaults}}}\nrules:\n{rules}default: {{direct: true}}\ntests:\n  - {{connect: 'a.example:443', expect: {{rule: default}}}}\n"
        );
        let warnings = loaded(&policy).warnings;
        warnings.iter().map(|w| w.message.clone()).collect()
    };
    let unknown = |by: &str| {
        [format!(
            "rule `r` never matches a tunnel: {by} leaves `sni`, `alpn` and `proto` unknown"
        )]
    };
    assert_eq!(
        told(
            "sniff: never",
            "  - {name: r, match: {proto: tls}, block: true}\n"
        ),
        unknown("`defaults.sniff: never`")
    );
    assert_eq!(
        told(
            "",
            "  - {name: r, match: {proto: tls}, block: true, sniff: never}\n"
        ),
        unknown("its own `sniff: never`")
    );
    assert_eq!(
        told(
            "",
            "  - {name: off, continue: true, sniff: never}\n  - {name: r, match: {sni: a.example}, block: true}\n"
        ),
        unknown("the `sniff: never` of `off`")
    );
    assert_eq!(
        told(
            "sniff: never",
            "  - {name: r, match: {sni: b.example}, block: true, sniff: auto}\n"
        ),
        Vec::<String>::new()
    );
}
