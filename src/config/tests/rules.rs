//! Rules.

use super::*;

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
            &["there is no role `ci`"],
        ),
        (
            "match: {client: {cert: x}}, direct: true",
            &["`cert` is not in this version"],
        ),
        (
            "match: {client: {}}, direct: true",
            &["this speaks of every client"],
        ),
        (
            "match: {client: {listener: build}}, direct: true",
            &["there is no listener `build`"],
        ),
        ("match: {client: {listener: proxy}}, direct: true", &[]),
        (
            "match: {client: {label: \"unit-*\"}}, direct: true",
            &["warning: no request has a label: `clients.labels` is none"],
        ),
        (
            "match: {client: {label: \"[\"}}, direct: true",
            &[
                "warning: no request has a label: `clients.labels` is none",
                "this is no pattern: unclosed character class; missing ']'",
            ],
        ),
        ("match: {client: {user: alice}}, direct: true", &[]),
        (
            "match: {go_module: \"git.corp.example, code.example/team/*\"}, direct: true",
            &[
                "warning: rule `r`: a tunnel shows its host only, so `code.example/team/*` is unknown there and does not match",
            ],
        ),
        (
            "match: {go_module: [code.example/team], scheme: http}, direct: true",
            &[],
        ),
        (
            "match: {go_module: \"https://a.example\"}, direct: true",
            &[
                "`https://a.example`: a module pattern begins with a host, as in git.corp.example/team/*",
            ],
        ),
        ("match: {sni: a.example}, direct: true", &[]),
        (
            "match: {not: {any: [{alpn: h2}, {proto: tls}]}}, direct: true",
            &[],
        ),
        ("direct: true, sniff: always, timeouts: {idle: 1s}", &[]),
        (
            "direct: true, timeouts: {sniff: 1s, head: 1s}",
            &[
                "`sniff` is waited for before any rule has decided",
                "`head` is waited for before any rule has decided",
            ],
        ),
        (
            "match: {proto: [tls, quic]}, direct: true",
            &["`quic` is not one of tls, http, ssh, other"],
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
            "match: {no_proxy: [a.example, b.example]}, direct: true",
            &["`env`, or a text with commas as in `a.example,b.example`, belongs here, not a list"],
        ),
        ("via: a|direct", &["there is no hop `a`"]),
        ("via: direct", &[]),
        ("via: nowhere", &["there is no route `nowhere`"]),
        ("fault: x, direct: true", &["there is no fault `x`"]),
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
            &["warning: a rule that goes on without an option of its own does nothing"],
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
        (
            "match: {ip: 10.0.0.0/8, resolve: any}, block: true, on_dns_error: skip",
            &[],
        ),
        (
            "match: {not: {any: [{port: 80}, {ip: 10.0.0.0/8, resolve: any}]}}, block: {status: 451}, on_dns_error: block",
            &[],
        ),
        (
            "match: {ip: 10.0.0.0/8, resolve: all}, direct: true, on_dns_error: skip",
            &["`on_dns_error` says what a rule that blocks does, and this one does not block"],
        ),
        (
            "match: {ip: 10.0.0.0/8, resolve: all}, continue: true, sniff: always, on_dns_error: block",
            &["`on_dns_error` says what a rule that blocks does, and this one does not block"],
        ),
        (
            "match: {ip: 10.0.0.0/8}, block: true, on_dns_error: skip",
            &["`on_dns_error` speaks of a lookup that fails, and this rule asks for none"],
        ),
        (
            "block: true, on_dns_error: skip",
            &["`on_dns_error` speaks of a lookup that fails, and this rule asks for none"],
        ),
        (
            "match: {ip: 10.0.0.0/8, resolve: any}, block: true, on_dns_error: allow",
            &["`allow` is not one of block, skip"],
        ),
        (
            "match: {ip: 10.0.0.0/8, resolve: any, on_dns_error: skip}, block: true",
            &["`on_dns_error` is no key of `match`"],
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
