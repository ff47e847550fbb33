//! Name servers: who is asked, and what cannot be said of them.

use std::net::SocketAddr;

use super::load as load_from;
use super::*;
use crate::policy::Action;
use crate::policy::dns::{AskId, Cache, Prefer, Transport};

const HEAD: &str = "version: 1\n\
    upstreams: {corp: {url: 'http://proxy.corp.example:8080'}}\n";

/// The mistakes of a `dns` section on line 3, and of rules on line 4.
#[track_caller]
fn check(dns: &str, rules: &str, expected: &[&str]) {
    let policy = format!("{HEAD}dns: {dns}\nrules: [{rules}]\ndefault: {{direct: true}}\n");
    assert_eq!(mistakes(&policy), expected, "{dns} {rules}");
}

const WHOLE: &str = r#"version: 1
upstreams: {corp: {url: "http://proxy.corp.example:8080"}}
dns:
  default: clean
  servers:
    inner: {udp: ["192.0.2.53:5353", 192.0.2.54, "2001:db8::53"], domains: [corp.example, .LAB.example]}
    clean: {doh: "https://dns.example/dns-query{?dns}", ip: [198.51.100.53], via: corp}
    tls1: {dot: "dns.example:8853", ip: 198.51.100.54, domains: secret.example}
    tls2: {dot: 198.51.100.55}
    old: {tcp: 192.0.2.99}
  hosts: {pinned.example: [203.0.113.10]}
  bogus: [203.0.113.128/25, "2001:db8:bad::/48"]
  prefer: v4
  cache: {min_ttl: 0s, max_ttl: 10m, negative_ttl: 5s, entries: 100}
rules:
  - {name: a, match: {domain: a.example}, direct: true, dns: {server: inner}}
  - {name: b, match: {domain: b.example}, continue: true, dns: {via: direct}}
  - {name: c, match: {domain: c.example}, direct: true, dns: {server: inner, via: corp}}
  - {name: d, match: {domain: d.example}, direct: true, dns: {server: system}}
  - {name: e, match: {domain: e.example}, direct: true, dns: {via: corp}}
default: {direct: true}
"#;

const CLEAN: &str = "198.51.100.53:443 by https dns.example/dns-query";
const INNER: &str = "192.0.2.53:5353 192.0.2.54:53 [2001:db8::53]:53 by";

#[test]
fn servers_are_asked_as_they_are_written() {
    let loaded = loaded(WHOLE);
    assert_eq!(loaded.warnings, []);
    let policy = &loaded.policy;
    let dns = &policy.dns;
    let told = |id: AskId| {
        let ask = dns.ask(id);
        let Some(server) = &ask.server else {
            return "system".to_owned();
        };
        let addresses: Vec<_> = server.addresses.iter().map(SocketAddr::to_string).collect();
        let how = match &server.transport {
            Transport::Udp | Transport::Tcp => server.transport.as_str().to_owned(),
            Transport::Tls(secure) => format!("tls {}", secure.name),
            Transport::Https { secure, path } => format!("https {}{path}", secure.name),
        };
        let via = ask
            .via
            .map(|via| format!(" via {}", policy.route(via).name));
        format!(
            "{} by {how}{}",
            addresses.join(" "),
            via.unwrap_or_default()
        )
    };
    for (name, expected) in [
        ("git.corp.example", format!("{INNER} udp")),
        ("lab.example", format!("{INNER} udp")),
        (
            "secret.example",
            "198.51.100.54:8853 by tls dns.example".to_owned(),
        ),
        ("other.example", format!("{CLEAN} via corp")),
    ] {
        assert_eq!(told(dns.choose(name, None).0), expected, "{name}");
    }
    let rules: Vec<_> = policy
        .rules
        .iter()
        .map(|rule| told(rule.dns.unwrap()))
        .collect();
    assert_eq!(
        rules,
        [
            format!("{INNER} udp"),
            CLEAN.to_owned(),
            // UDP does not pass a proxy.
            format!("{INNER} tcp via corp"),
            "system".to_owned(),
            format!("{CLEAN} via corp"),
        ]
    );
    assert_eq!(
        dns.choose_for_upstream("proxy.other.example"),
        AskId::SYSTEM
    );
    assert!(matches!(policy.rules[1].action, Action::Continue));
    assert_eq!(dns.prefer, Prefer::V4);
    assert_eq!(dns.bogus.len(), 2);
    assert_eq!(
        dns.cache,
        Cache {
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_mins(10),
            negative_ttl: Duration::from_secs(5),
            entries: 100,
        }
    );
    let literal = dns.asks.iter().filter_map(|ask| ask.server.as_ref());
    let literal = literal
        .into_iter()
        .find(|server| &*server.name == "tls2")
        .unwrap();
    assert_eq!(literal.addresses, ["198.51.100.55:853".parse().unwrap()]);
}

#[test]
fn what_cannot_be_asked_is_a_mistake() {
    for (dns, expected) in [
        ("{default: inner}", "3:16 there is no name server `inner`"),
        ("{servers: {s: {}}}", "3:17 name server `s` has no address"),
        (
            "{servers: {s: {udp: 192.0.2.1, doh: 'https://192.0.2.1/dns-query'}}}",
            "3:17 name server `s` is asked in one way, and this has `udp` and `doh`",
        ),
        (
            "{servers: {s: {doh: 'https://dns.example/dns-query'}}}",
            "3:26 the address of `dns.example` is not looked up",
        ),
        (
            "{servers: {s: {dot: dns.example}}}",
            "3:26 the address of `dns.example` is not looked up",
        ),
        (
            "{servers: {s: {doh: 'http://dns.example/dns-query', ip: 192.0.2.1}}}",
            "3:26 `http://dns.example/dns-query` does not begin with https://",
        ),
        (
            "{servers: {s: {doh: 'https://dns.example', ip: 192.0.2.1}}}",
            "3:26 the URL is a host and a path, without a query",
        ),
        (
            "{servers: {s: {doh: 'https://dns.example/q?a=b', ip: 192.0.2.1}}}",
            "3:26 the URL is a host and a path, without a query",
        ),
        (
            "{servers: {s: {doh: 'a b', ip: 192.0.2.1}}}",
            "3:26 `a b` is no URL",
        ),
        (
            "{servers: {s: {doh: 'https://me:secret@dns.example/q', ip: 192.0.2.1}}}",
            "3:26 credentials do not stand in a policy",
        ),
        (
            "{servers: {s: {udp: dns.example}}}",
            "3:26 `dns.example` is not an address such as 192.0.2.53, 192.0.2.53:53 or [2001:db8::53]:53",
        ),
        (
            "{servers: {s: {udp: 192.0.2.1, ip: 192.0.2.1}}}",
            "3:41 `ip` is for `dot` and `doh` servers",
        ),
        (
            "{servers: {s: {udp: 192.0.2.1, ca: ca.pem}}}",
            "3:41 `ca` is for `dot` and `doh` servers",
        ),
        (
            "{servers: {s: {udp: 192.0.2.1, via: corp}}}",
            "3:42 UDP does not pass through an upstream",
        ),
        (
            "{servers: {s: {tcp: 192.0.2.1, via: crop}}}",
            "3:42 there is no route `crop`",
        ),
        (
            "{servers: {system: {udp: 192.0.2.1}}}",
            "3:17 `system` is the name of the system's name servers",
        ),
        (
            "{servers: {S 1: {udp: 192.0.2.1}}}",
            "3:17 a name server's name is made of a-z, 0-9, _ and -",
        ),
        (
            "{servers: {a: {udp: 192.0.2.1, domains: x.example}, b: {udp: 192.0.2.2, domains: X.example}}}",
            "3:87 `x.example` has its name server already",
        ),
        (
            "{servers: {a: {udp: 192.0.2.1, domains: 192.0.2.0}}}",
            "3:46 an address is not looked up; a domain belongs here",
        ),
        (
            "{servers: {a: {udp: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4, 1.1.1.5, 1.1.1.6, 1.1.1.7, 1.1.1.8, 1.1.1.9]}}}",
            "3:26 9 addresses are too many: 8 may be",
        ),
        (
            "{servers: {a: {dot: dns.example, ip: 192.0.2.1, ca: missing.pem}}}",
            "3:58 the file missing.pem cannot be read: No such file or directory (os error 2)",
        ),
        (
            "{bogus: [203.0.113.0/33]}",
            "3:15 `203.0.113.0/33` is not an address or a range such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "{prefer: v5}",
            "3:15 `v5` is not one of happy, v4, v6, v4_only, v6_only",
        ),
        (
            "{cache: {min_ttl: 1h, max_ttl: 1m}}",
            "3:24 `min_ttl` may not be longer than `max_ttl`",
        ),
        (
            "{cache: {max_ttl: 30d}}",
            "3:24 `30d` is not a duration such as 0s, 30s or 1h, a week at most",
        ),
        (
            "{cache: {entries: 100000000}}",
            "3:24 100000000 answers are too many to remember",
        ),
        ("{server: {}}", "3:7 `server` is no key of `dns`"),
        (
            "{servers: {s: {upd: 192.0.2.1}}}",
            "3:21 `upd` is no key of a name server",
        ),
    ] {
        check(dns, "", &[expected]);
    }
}

#[test]
fn a_rule_asks_whom_there_is() {
    let servers = "{servers: {inner: {udp: 192.0.2.53}}}";
    for (rule, expected) in [
        ("dns: {server: iner}", "4:75 there is no name server `iner`"),
        (
            "dns: {}",
            "4:66 `dns` says who is asked: `server`, `via`, or both",
        ),
        (
            "dns: {via: corp}",
            "4:72 the system's name servers are not asked through an upstream",
        ),
        (
            "dns: {server: inner, via: crop}",
            "4:87 there is no route `crop`",
        ),
        ("dns: inner", "4:66 `dns` is a mapping, not a text"),
    ] {
        let rule = format!("{{name: r, match: {{domain: a.example}}, direct: true, {rule}}}");
        check(servers, &rule, &[expected]);
    }
    // A server with a mistake is told of once.
    check(
        "{default: s, servers: {s: {udp: nonsense, domains: a.example}}}",
        "{name: r, direct: true, dns: {server: s}}",
        &[
            "3:38 `nonsense` is not an address such as 192.0.2.53, 192.0.2.53:53 or [2001:db8::53]:53",
        ],
    );
}

#[test]
fn a_rule_that_looks_nothing_up_has_no_use_for_a_server() {
    let servers = "{servers: {inner: {udp: 192.0.2.53}}}";
    let warning = "warning: this rule looks no name up: its `dns` has no effect";
    for (rule, warns) in [
        ("via: corp, dns: {server: inner}", true),
        ("block: true, dns: {server: inner}", true),
        ("direct: true, dns: {server: inner}", false),
        (
            "match: {ip: 10.0.0.0/8, resolve: any}, block: true, dns: {server: inner}",
            false,
        ),
        (
            "match: {ip: 10.0.0.0/8, resolve: all}, via: corp, dns: {server: inner}",
            false,
        ),
    ] {
        let policy = format!(
            "{HEAD}dns: {servers}\nrules: [{{name: r, {rule}}}]\ndefault: {{block: true}}\n"
        );
        let told = mistakes(&policy);
        assert_eq!(
            told.iter().any(|line| line.ends_with(warning)),
            warns,
            "{rule}: {told:?}"
        );
    }
}

#[test]
fn a_private_authority_is_read_with_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(Vec::new())
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let path = folder.path().join("policy.yaml");
    let load = |pem: &str| {
        std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
        let dns = "{servers: {s: {dot: dns.example, ip: 192.0.2.1, ca: ca.pem}}}";
        let policy = format!("version: 1\ndns: {dns}\nrules: []\ndefault: {{direct: true}}\n");
        std::fs::write(&path, policy).unwrap();
        let source = Source::File(path.clone());
        load_from(&source, &Environment::default(), &Options::serve(now()))
    };
    let loaded = load(&ca.pem()).unwrap();
    let server = loaded.policy.dns.asks[1].server.clone().unwrap();
    let Transport::Tls(secure) = &server.transport else {
        panic!("{server:?}");
    };
    assert_eq!(&**secure.roots.as_ref().unwrap(), [ca.der().clone()]);
    for pem in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let report = load(pem).unwrap_err().to_string();
        assert!(report.contains("holds no certificate (PEM)"), "{report}");
    }
}

#[test]
fn a_pin_may_stand_for_all_names_below() {
    let text = "version: 1\nrules: []\ndefault: {direct: true}\n\
        dns: {hosts: {\"*.a.example\": 192.0.2.1, b.a.example: 192.0.2.2, \"*.c.a.example\": 192.0.2.3}}\n";
    let source = Source::Text {
        name: "policy.yaml".to_owned(),
        text: text.to_owned(),
    };
    let options = Options::check(Timestamp::UNIX_EPOCH);
    let policy = load(&source, &Environment::default(), &options)
        .unwrap()
        .policy;
    let last = |name: &str| match policy.pinned(name)? {
        [std::net::IpAddr::V4(ip)] => Some(ip.octets()[3]),
        _ => None,
    };
    for (name, expected) in [
        ("x.a.example", Some(1)),
        ("x.y.a.example", Some(1)),
        ("b.a.example", Some(2)),
        ("x.b.a.example", Some(1)),
        ("x.c.a.example", Some(3)),
        ("c.a.example", Some(1)),
        ("a.example", None),
        ("xa.example", None),
    ] {
        assert_eq!(last(name), expected, "{name}");
    }
}
