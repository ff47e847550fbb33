//! The server section.

use super::*;

#[test]
fn the_whole_server_section_is_kept() {
    let loaded = loaded(
        "version: 1
server:
  listen: [{name: proxy, address: 127.0.0.1:3128}, {name: build, address: '172.17.0.1:3128'}]
  allow_from: [172.17.0.0/16]
  admin: 127.0.0.1:3229
  admin_token: {file: token}
  history_retention: 24h
  metrics_hosts: 10
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
    assert_eq!(server.log_format, Some(LogFormat::Json));
    let admin = server.admin.as_ref().map(ToString::to_string);
    assert_eq!(admin.as_deref(), Some("127.0.0.1:3229"));
    assert_eq!(server.admin_token, Some(TokenSource::File("token".into())));
    assert_eq!(server.history_retention, Some(Duration::from_hours(24)));
    assert_eq!(server.metrics_hosts, Some(10));
    assert_eq!(server.log_file.as_deref(), Some(Path::new("records.jsonl")));
    assert_eq!(server.name.as_deref(), Some("egress-1"));
    assert_eq!(server.drain_timeout, Some(Duration::from_secs(30)));
    assert_eq!(server.limits.connections, Some(500));
    assert_eq!(loaded.policy.guards.own.len(), 2);
}

#[test]
fn a_listener_that_is_none_is_told_of_once() {
    let policy = "version: 1\nserver: {listen: ['127.0.0.1:1']}\ndefault: {direct: true}\n";
    let expected = "2:19 a listener is a mapping, not a text";
    assert_eq!(mistakes(policy), [expected]);
}

#[test]
fn what_a_build_has_not_is_told_when_the_policy_is_loaded() {
    for (key, feature, is_built_in) in [
        ("history: history.db", "history", cfg!(feature = "history")),
        (
            "otlp: {endpoint: 'http://127.0.0.1:4318'}",
            "otlp",
            cfg!(feature = "otlp"),
        ),
        ("otlp: {endpoint: off}", "otlp", true),
    ] {
        let policy = format!("version: 1\nserver: {{{key}}}\ndefault: {{direct: true}}\n");
        match try_load(&policy, &Environment::default()) {
            Ok(loaded) => {
                let is_kept = loaded.server.history.as_deref() == Some(Path::new("history.db"));
                assert!(is_built_in && is_kept == (feature == "history"), "{key}");
            }
            Err(report) => {
                let told = report.to_string();
                let help = format!("build routecause with `--features {feature}`, or leave it out");
                assert!(!is_built_in && told.contains(&help), "{told}");
            }
        }
    }
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
            "{admin: 3129}",
            "`3129` is not `off`, an address and a port such as 127.0.0.1:3129, or `unix:PATH`",
        ),
        (
            "{admin: \"unix:\"}",
            "write the path of the socket behind `unix:`",
        ),
        (
            "{admin_token: {command: [pass, admin]}}",
            "this secret comes of `env` or `file`",
        ),
        (
            "{admin_token: hunter2}",
            "a secret does not stand in a policy",
        ),
        (
            "{name: \"a b\"}",
            "the name stands in a header: letters, digits and -._ only, a letter first",
        ),
        (
            "{limits: {connections: 0}}",
            "with a limit of none nothing can be served",
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

/// Where a command's own listeners are, and the names that they have under a policy; then what is told of it.
#[track_caller]
fn stand_in(policy: &str, expected: &[(&str, &str)], told: &[&str]) {
    let places = expected
        .iter()
        .map(|(place, _)| ListenAt::parse(place).unwrap());
    let options = Options::stand_in(now(), places.collect());
    let policy = format!("version: 1\ndefault: {{direct: true}}\n{policy}\n");
    let loaded = load(&text(&policy), &Environment::default(), &options).unwrap();
    let listeners = loaded.server.listen.iter().flatten();
    let named: Vec<_> = listeners
        .map(|l| (l.address.to_string(), l.name.to_string()))
        .collect();
    let expected = expected
        .iter()
        .map(|(place, name)| (String::from(*place), String::from(*name)));
    assert_eq!(named, expected.collect::<Vec<_>>(), "{policy}");
    let warnings: Vec<_> = loaded.warnings.iter().map(|d| &*d.message).collect();
    assert_eq!(warnings, told, "{policy}");
}

#[test]
fn a_commands_own_listeners_have_the_names_that_roles_and_rules_ask_for() {
    const NOT_USED: &str = "`run` and `lab` have a proxy of their own: server.listen is not used";
    const LISTEN: &str = "server: {listen: [{name: host, address: '127.0.0.1:1'}, {name: build, address: '172.17.0.1:1'}]}\n";
    let with = |rest: &str| format!("{LISTEN}{rest}");
    let (near, far) = ("127.0.0.1:0", "172.17.0.1:0");
    stand_in("", &[(near, "proxy"), (far, "proxy-2")], &[]);
    stand_in(LISTEN, &[(near, "proxy")], &[NOT_USED]);
    for asks in [
        "clients: {roles: {r: {listener: build}}}\nrules: [{name: r, match: {client: {role: r}}, block: true}]",
        "rules: [{name: r, match: {any: [{not: {client: {listener: [build]}}}]}, block: true}]",
    ] {
        let policy = with(asks);
        stand_in(&policy, &[(near, "build"), (far, "build")], &[NOT_USED]);
    }
    let both = with(
        "rules:\n  - {name: h, match: {client: {listener: host}}, block: true}\n  - {name: b, match: {client: {listener: build}}, block: true}",
    );
    stand_in(&both, &[(near, "host"), (far, "build")], &[NOT_USED]);
    let lacks = "`run` and `lab` have a proxy of their own, and no listener is named `build`";
    stand_in(&both, &[(near, "host")], &[NOT_USED, lacks]);
    // What only this machine's clients may do is nothing for containers, whatever is asked for.
    let host = "rules: [{name: h, match: {client: {listener: host}}, direct: true}]";
    stand_in(&with(host), &[(near, "host"), (far, "build")], &[NOT_USED]);
    let lan = LISTEN.replace("[{", "[{name: lan, address: '192.0.2.1:1'}, {");
    let lan = format!("{lan}{}", host.replace("host", "lan"));
    let elsewhere = "198.51.100.1:0";
    let expected = [(near, "lan"), (far, "build"), (elsewhere, "lan")];
    stand_in(&lan, &expected, &[NOT_USED]);
    // Without one that is written there is one still.
    let asks = "rules: [{name: r, match: {client: {listener: proxy}}, block: true}]";
    stand_in(asks, &[(near, "proxy"), (far, "proxy")], &[]);
}

#[test]
fn what_a_commands_own_listeners_do_not_use_is_told_and_is_not_there() {
    let server = "server: {listen: [{address: '0.0.0.0:1'}], log_file: x, drain_timeout: 1s, name: n, limits: {connections: 5}}";
    let policy = format!("version: 1\ndefault: {{direct: true}}\n{server}\n");
    let options = Options::stand_in(now(), vec![ListenAt::parse("127.0.0.1:0").unwrap()]);
    let loaded = load(&text(&policy), &Environment::default(), &options).unwrap();
    let told: Vec<_> = loaded.warnings.iter().map(|d| d.render(false)).collect();
    let line = "p.yaml: warning: `run` and `lab` have a proxy of their own: server.listen, server.log_file, server.drain_timeout are not used\n";
    assert_eq!(told, [line]);
    let used = ServerSettings {
        listen: loaded.server.listen.clone(),
        name: Some("n".into()),
        limits: Limits {
            connections: Some(5),
            ..Limits::default()
        },
        ..ServerSettings::default()
    };
    assert_eq!(loaded.server, used);
}

#[test]
fn no_file_is_read_for_what_a_commands_own_listeners_do_not_use() {
    let policy = "version: 1
server:
  listen: [{address: '127.0.0.1:1', tls: {cert: /nowhere/c.pem, key: /nowhere/k.pem, client_ca: /nowhere/ca.pem}}]
  auth: {users: /nowhere/users}
rules: [{name: r, match: {client: {user: alice}}, direct: true}]
default: {block: true}
";
    assert_eq!(mistakes(policy).len(), 4);
    let not_used = "p.yaml: warning: `run` and `lab` have a proxy of their own: server.listen, server.auth are not used\n";
    let told = |place: &str| {
        let options = Options::stand_in(now(), vec![ListenAt::parse(place).unwrap()]);
        let loaded = load(&text(policy), &Environment::default(), &options).unwrap();
        // Its tests are of the proxy that it is written for.
        assert!(loaded.policy.proves_users);
        let told = loaded.warnings.iter().map(|d| d.render(false));
        told.collect::<Vec<_>>()
    };
    assert_eq!(told("127.0.0.1:0"), [not_used]);
    // Who is not on this machine may give any name.
    let told = told("172.17.0.1:0");
    assert_eq!((told.len(), &*told[0]), (2, not_used));
    for part in [
        "p.yaml:5:42: warning: `user` counts for clients on this machine only: no password is checked\n",
        "help: `run` and `lab` have a proxy of their own\n",
    ] {
        assert!(told[1].contains(part), "{}", told[1]);
    }
}
