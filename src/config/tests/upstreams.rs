//! Upstreams and their secrets.

use super::*;

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
                let RouteSpec::Upstream(upstream) = &loaded.policy.routes[1].spec else {
                    panic!("no upstream");
                };
                let login = upstream.auth.as_ref().and_then(|auth| auth.login.as_ref());
                assert_eq!(login.unwrap().password.value.reveal(), "s3cret");
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
fn what_does_not_fit_an_upstream_is_told_at_its_key() {
    let auth = "username: {env: U}, password: {env: P}";
    for (upstream, expected) in [
        (
            "{url: 'http://h:1', http: 2}",
            "13:37 HTTP/2 is spoken with an https upstream only",
        ),
        (
            "{url: 'http://h:1', http: 3}",
            "`3` is not one of auto, 1, 2",
        ),
        (
            "{url: 'socks5://h:1', http: 1}",
            "`http` is of no meaning to a SOCKS server",
        ),
        (
            "{url: 'http://h:1', tls: {server_name: a.example}}",
            "`tls` needs an https upstream; this one is http",
        ),
        (
            "{url: 'socks5://h:1', tls: {ca: x.pem}}",
            "`tls` needs an https upstream; this one is socks5",
        ),
        (
            "{url: 'https://h:1', tls: {cert: x.pem}}",
            "a client certificate is `cert` and `key` together",
        ),
        (
            "{url: 'https://h:1', tls: {key: x.pem}}",
            "a client certificate is `cert` and `key` together",
        ),
        (
            "{url: 'https://h:1', tls: {ca: /nonexistent.pem}}",
            "the file /nonexistent.pem cannot be read",
        ),
        (
            "{url: 'https://h:1', tls: {ca: /dev/null}}",
            "the file /dev/null is no regular file",
        ),
        (
            "{url: 'https://h:1', tls: {ca: Cargo.toml}}",
            "holds no certificate",
        ),
        (
            "{url: 'https://h:1', tls: {server_name: 'a b'}}",
            "`a b` is no server's name",
        ),
        (
            "{url: 'https://h:1', tls: {server_nam: a}}",
            "`server_nam` is no key of `tls`",
        ),
        (
            "{url: 'socks5://h:1', send: host}",
            "socks5:// says otherwise",
        ),
        (
            "{url: 'socks5h://h:1', send: ip}",
            "socks5h:// says otherwise",
        ),
        (
            "{url: 'http://h:1', send: name}",
            "`name` is not one of host, ip",
        ),
        (
            "{url: 'http://h:1', forward: tunnel}",
            "`tunnel` is not one of auto, connect",
        ),
        (
            "{url: 'http://h:1', proxy_protocol: v3}",
            "`v3` is not one of none, v1, v2",
        ),
        (
            "{url: 'http://h:1', limits: {connections: 0}}",
            "with 0 connections nothing goes through",
        ),
        (
            "{url: env, tls: {ca: x.pem}}",
            "`tls` needs an upstream with a URL of its own",
        ),
        (
            "{url: env, send: ip}",
            "`send` needs an upstream with a URL of its own",
        ),
        (
            "{url: 'http://h:1', auth: {schemes: [basik], AUTH}}",
            "`basik` is not one of negotiate, ntlm, digest, basic",
        ),
        (
            "{url: 'http://h:1', auth: {schemes: [basic, basic], AUTH}}",
            "the scheme is named twice",
        ),
        (
            "{url: 'http://h:1', auth: {schemes: [basic]}}",
            "`auth` needs `username`",
        ),
        (
            "{url: 'http://h:1', auth: {username: {env: U}}}",
            "`auth` needs `password`",
        ),
        (
            "{url: 'http://h:1', auth: {schemes: [basic], spn: HTTP/h, AUTH}}",
            "`spn` is of use to the scheme negotiate alone",
        ),
        (
            "{url: 'http://h:1', auth: {spn: HTTP/h, AUTH}}",
            "`spn` is of use to the scheme negotiate alone",
        ),
        (
            "{url: 'http://h:1', auth: {schemes: [digest], preemptive: true, AUTH}}",
            "digest cannot be sent before the upstream has asked",
        ),
        (
            "{url: 'socks5://h:1', auth: {schemes: [basic], AUTH}}",
            "`schemes` is of HTTP",
        ),
        (
            "{url: 'socks5://h:1', auth: {username: {env: U}}}",
            "`auth` needs `password`",
        ),
        (
            "{url: 'http://h:1', auth: {username: {env: U, file: x}, password: {env: P}}}",
            "a secret is exactly one of `env`, `file` and `command`",
        ),
        (
            "{url: 'http://h:1', auth: {username: {env: U}, password: {command: /nonexistent}}}",
            "the program /nonexistent cannot be run",
        ),
        (
            "{url: 'http://h:1', auth: {username: {env: U}, password: {command: [sh, -c, 'exit 4']}}}",
            "the program sh failed: exit status: 4",
        ),
        (
            "{url: 'http://h:1', auth: {username: {env: C}, password: {env: P}}}",
            "the user name holds a colon",
        ),
    ] {
        let upstream = upstream.replace("AUTH", auth);
        let policy =
            format!("version: 1\ndefault: {{direct: true}}\nupstreams:\n  corp: {upstream}\n");
        let environment = [("U", "me"), ("P", "pw"), ("C", "a:b")]
            .into_iter()
            .collect();
        let report = try_load(&policy, &environment).unwrap_err();
        let expected = expected.trim_start_matches("13:37 ");
        let told: Vec<_> = report.diagnostics.iter().map(|d| &d.message).collect();
        assert!(
            told.iter().any(|told| told.contains(expected))
                && report.diagnostics[0].place.is_some(),
            "{upstream}: {told:?}"
        );
    }
    for (scheme, feature, is_built_in) in [
        ("ntlm", "ntlm", cfg!(feature = "ntlm")),
        ("negotiate", "kerberos", cfg!(feature = "kerberos")),
    ] {
        let policy = format!(
            "version: 1\ndefault: {{direct: true}}\nupstreams:\n  corp: {{url: 'http://h:1', auth: {{schemes: [{scheme}, basic], {auth}}}}}\n"
        );
        let environment = [("U", "me"), ("P", "pw")].into_iter().collect();
        match try_load(&policy, &environment) {
            Ok(_) => assert!(is_built_in, "{scheme}"),
            Err(report) => assert!(
                !is_built_in
                    && report
                        .to_string()
                        .contains(&format!("--features {feature}")),
                "{report}"
            ),
        }
    }
}

#[test]
fn a_file_of_which_no_certificate_is_usable_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (pem, problem) in [
        (garbage, "holds no certificate (PEM)"),
        (&garbage.repeat(100_000), "is larger than 4096 KiB"),
    ] {
        std::fs::write(&ca, pem).unwrap();
        let upstream = format!("{{url: 'https://h:1', tls: {{ca: '{}'}}}}", ca.display());
        let policy =
            format!("version: 1\nupstreams: {{corp: {upstream}}}\ndefault: {{via: corp}}\n");
        let report = try_load(&policy, &Environment::default()).unwrap_err();
        assert!(report.to_string().contains(problem), "{report}");
    }
}

#[test]
fn a_build_without_pac_says_so() {
    let policy = "version: 1\nupstreams: {office: {pac: missing.pac}}\ndefault: {via: office}\n";
    let report = try_load(policy, &Environment::default()).unwrap_err();
    let told = report.to_string();
    let expected = if cfg!(feature = "pac") {
        "cannot be read"
    } else {
        "build routecause with `--features pac`"
    };
    assert!(told.contains(expected), "{told}");
    assert_eq!(report.diagnostics.len(), 1, "{told}");
}

#[test]
fn an_upstream_is_what_its_keys_say() {
    use crate::policy::upstream::{Forward, Protocol, Send, Versions};
    let of = |upstream: &str| {
        let policy =
            format!("version: 1\ndefault: {{direct: true}}\nupstreams:\n  corp: {upstream}\n");
        let loaded = try_load(&policy, &Environment::default()).unwrap();
        let RouteSpec::Upstream(upstream) = &loaded.policy.routes[1].spec else {
            panic!("no upstream");
        };
        Arc::clone(upstream)
    };
    for (upstream, scheme, target, forward, send) in [
        (
            "{url: 'http://h'}",
            "http",
            "h:80",
            Forward::Absolute,
            Send::Host,
        ),
        (
            "{url: 'http://h:1', forward: connect}",
            "http",
            "h:1",
            Forward::Tunnel,
            Send::Host,
        ),
        (
            "{url: 'http://h:1', send: ip}",
            "http",
            "h:1",
            Forward::Tunnel,
            Send::Ip,
        ),
        (
            "{url: 'https://h'}",
            "https",
            "h:443",
            Forward::Absolute,
            Send::Host,
        ),
        (
            "{url: 'https://h', http: 2}",
            "https",
            "h:443",
            Forward::Tunnel,
            Send::Host,
        ),
        (
            "{url: 'socks5://h'}",
            "socks5",
            "h:1080",
            Forward::Tunnel,
            Send::Ip,
        ),
        (
            "{url: 'socks5h://h'}",
            "socks5h",
            "h:1080",
            Forward::Tunnel,
            Send::Host,
        ),
    ] {
        let of = of(upstream);
        assert_eq!(
            (
                of.scheme(),
                of.proxy.to_string().as_str(),
                of.forward,
                of.send
            ),
            (scheme, target, forward, send),
            "{upstream}"
        );
    }
    let two =
        of("{url: 'https://h', http: 2, tls: {server_name: p.example}, limits: {connections: 9}}");
    let Protocol::Https(tls) = &two.protocol else {
        panic!("{two:?}");
    };
    assert_eq!((tls.versions, two.connections), (Versions::Two, Some(9)));
    assert_eq!(tls.server_name.as_ref().unwrap().to_string(), "p.example");
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

#[test]
fn an_upstream_that_is_our_own_listener_is_told() {
    for (listen, url, is_told) in [
        ("", "http://127.0.0.1:3128", true),
        ("", "socks5h://localhost:3128", true),
        ("", "http://127.0.0.1:3129", false),
        (
            "server: {listen: [{address: \"127.0.0.1:8080\"}]}\n",
            "http://127.0.0.1:8080",
            true,
        ),
        (
            "server: {listen: [{address: \"127.0.0.1:8080\"}]}\n",
            "http://127.0.0.1:3128",
            false,
        ),
    ] {
        let policy = format!(
            "version: 1\n{listen}upstreams: {{corp: {{url: \"{url}\"}}}}\ndefault: {{via: corp}}\n"
        );
        let told = mistakes(&policy);
        assert_eq!(told.len(), usize::from(is_told), "{policy}: {told:?}");
        let text = "warning: `corp` leads back to this proxy: ";
        assert!(told.iter().all(|line| line.contains(text)), "{told:?}");
    }
}
