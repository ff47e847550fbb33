//! Policies and requests of every kind, at random.

use super::*;

pub(super) const HOSTS: [&str; 6] = [
    "a.example",
    "b.a.example",
    "x.b.a.example",
    "c.example",
    "wiki",
    "10.1.2.3",
];
pub(super) const PATTERNS: [&str; 6] = [
    "a.example",
    "*.a.example",
    "c.*",
    "wiki",
    "10.1.2.3",
    "*.example",
];
pub(super) const DOMAINS: [&str; 3] = ["a.example", "example", "b.a.example"];
pub(super) const NETS: [&str; 4] = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "0.0.0.0/0"];

pub(super) fn hosts() -> impl Strategy<Value = Hosts> {
    let patterns = prop::sample::subsequence(&PATTERNS[..], 0..3);
    let domains = prop::sample::subsequence(&DOMAINS[..], 1..3);
    (patterns, domains).prop_map(|(patterns, domains)| Hosts::new(&patterns, &domains).unwrap())
}

pub(super) fn nets() -> impl Strategy<Value = Nets> {
    prop::sample::subsequence(&NETS[..], 1..3)
        .prop_map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect())
}

pub(super) fn ports() -> impl Strategy<Value = Ports> {
    let range = prop::sample::select(vec![80..=80, 443..=443, 1..=1000, 400..=500, 25..=25]);
    prop::collection::vec(range, 1..3).prop_map(Ports::from_iter)
}

pub(super) fn leaf() -> impl Strategy<Value = Matcher> {
    let sni = [
        Hosts::new(&["a.example"], &[]).unwrap(),
        Hosts::new(&["*.a.example", "c.*"], &[]).unwrap(),
        Hosts::new(&[], &["example"]).unwrap(),
    ];
    let globs = |glob| {
        let mut set = globset::GlobSetBuilder::new();
        set.add(globset::Glob::new(glob).unwrap());
        set.build().unwrap()
    };
    prop_oneof![
        3 => hosts().prop_map(Matcher::Host),
        1 => any::<bool>().prop_map(Matcher::PlainHost),
        2 => (nets(), prop::sample::select(vec![Resolve::Never, Resolve::Any, Resolve::All]))
            .prop_map(|(nets, resolve)| Matcher::Ip(nets, resolve)),
        1 => (hosts(), nets()).prop_map(|(hosts, nets)| {
            Matcher::Sets(vec![Arc::new(Set { name: "s".into(), hosts, nets, modules: Modules::default() })])
        }),
        1 => Just(Matcher::NoProxy(Arc::new(NoProxy::parse("c.example,10.0.0.0/8", Dialect::Go)))),
        2 => ports().prop_map(Matcher::Port),
        1 => prop::sample::select(vec![Scheme::Http, Scheme::Connect]).prop_map(Matcher::Scheme),
        1 => Just(Matcher::Method(vec![Method::GET, Method::CONNECT])),
        1 => Just(Matcher::Path(globs("/x*"))),
        1 => Just(Matcher::Header(HeaderName::from_static("user-agent"), globs("*bot*"))),
        1 => nets().prop_map(Matcher::Client),
        1 => Just(Matcher::User(vec!["alice".into()])),
        1 => Just(Matcher::Label(LabelPatterns::new(&["unit-*"]).unwrap())),
        1 => Just(Matcher::Listener(vec!["proxy".into()])),
        1 => nets().prop_map(|nets| Matcher::Role(vec![Arc::new(Role {
            name: "near".into(),
            matcher: Matcher::All(vec![Matcher::Client(nets)]),
        })])),
        3 => prop::sample::select(sni.to_vec()).prop_map(Matcher::Sni),
        1 => Just(Matcher::Alpn(vec!["h2".into()])),
        2 => prop::sample::subsequence(vec![Proto::Tls, Proto::Http, Proto::Ssh, Proto::Other], 1..3)
            .prop_map(Matcher::Proto),
        2 => prop::sample::subsequence(vec!["a.example", "a.example/x", "*/x"], 1..3)
            .prop_map(|patterns| Matcher::GoModule(patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect())),
        1 => Just(Matcher::HostRegex(regex::Regex::new("^(?:[ab]\\..*)$").unwrap())),
    ]
}

pub(super) fn matcher() -> impl Strategy<Value = Matcher> {
    leaf().prop_recursive(3, 12, 3, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            list.clone().prop_map(Matcher::All),
            list.prop_map(Matcher::Any),
            inner.prop_map(|inner| Matcher::Not(Box::new(inner))),
        ]
    })
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    let by = |http, connect| {
        Action::Route(ByScheme {
            http: RouteId(http),
            connect: RouteId(connect),
        })
    };
    prop::sample::select(vec![
        by(0, 0),
        by(1, 1),
        by(1, 0),
        Action::Block(Block::default()),
        Action::Continue,
    ])
}

pub(super) fn rule() -> impl Strategy<Value = Rule> {
    let mode = prop::sample::select(vec![
        Mode::Enforce,
        Mode::Enforce,
        Mode::Enforce,
        Mode::Report,
        Mode::Off,
    ]);
    let expires = prop::sample::select(vec![
        None,
        None,
        None,
        Some(Timestamp::UNIX_EPOCH),
        Some(Timestamp::MAX),
    ]);
    let sniff = prop::sample::select(vec![
        None,
        None,
        Some(Sniff::Auto),
        Some(Sniff::Always),
        Some(Sniff::Never),
    ]);
    let on_dns_error = prop::sample::select(vec![OnDnsError::Block, OnDnsError::Skip]);
    let options = (any::<bool>(), sniff, on_dns_error);
    (matcher(), action(), mode, expires, options).prop_map(
        |(matcher, action, mode, expires, (waits, sniff, on_dns_error))| Rule {
            mode,
            expires,
            timeouts: waits.then(Arc::default),
            sniff,
            on_dns_error,
            ..Rule::new("".into(), "".into(), matcher, action)
        },
    )
}

pub(super) fn policy() -> impl Strategy<Value = Policy> {
    (
        prop::collection::vec(rule(), 0..6),
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![
            SniMismatch::Allow,
            SniMismatch::Allow,
            SniMismatch::Report,
            SniMismatch::Block,
        ]),
        prop::sample::select(vec![Sniff::Auto, Sniff::Auto, Sniff::Never]),
    )
        .prop_map(|(mut rules, report, blocks, mismatch, sniff)| {
            for (at, rule) in rules.iter_mut().enumerate() {
                rule.name = format!("r{at}").into();
            }
            let upstream = RouteSpec::Upstream(Arc::new(Upstream::http(
                Target::from_authority("proxy.example:8080").unwrap(),
            )));
            let default = if blocks {
                Action::Block(Block::default())
            } else {
                Action::Route(ByScheme {
                    http: RouteId(1),
                    connect: RouteId(1),
                })
            };
            Policy {
                hash: "".into(),
                report,
                guards: Guards {
                    report,
                    sni_mismatch: mismatch,
                    ..Guards::default()
                },
                rules,
                index: None,
                default: Rule::new("default".into(), "".into(), Matcher::everything(), default),
                routes: vec![
                    Route {
                        name: "direct".into(),
                        spec: RouteSpec::Direct,
                    },
                    Route {
                        name: "corp".into(),
                        spec: upstream,
                    },
                ],
                timeouts: Arc::default(),
                errors_in_json: false,
                commit: Commit::default(),
                retry: Retry::default(),
                circuit: None,
                triage: None,
                sniff,
                on_reload: OnReload::default(),
                roles: Vec::new(),
                labels: Labels::None,
                proves_users: false,
                pins: Vec::new(),
                dns: Dns::default(),
            }
        })
}

/// A request with all its facts, whether or not they are asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) client: Client,
    pub(super) target: Target,
    pub(super) is_connect: bool,
    pub(super) headers: HeaderMap,
    pub(super) addresses: Option<Vec<IpAddr>>,
    pub(super) claim: Claim,
    pub(super) flight: Flight,
}

impl Asked {
    pub(super) fn query<'a>(&'a self, addresses: Option<Lookup<'a>>) -> Query<'a> {
        Query {
            client: &self.client,
            claim: &self.claim,
            scheme: if self.is_connect {
                Scheme::Connect
            } else {
                Scheme::Http
            },
            method: if self.is_connect {
                &Method::CONNECT
            } else {
                &Method::GET
            },
            target: &self.target,
            path: (!self.is_connect).then_some("/x?y"),
            headers: (!self.is_connect).then_some(&self.headers),
            is_here: None,
            addresses,
            first_flight: None,
            now: Timestamp::UNIX_EPOCH + Duration::from_secs(1),
        }
    }

    /// The query with all facts.
    pub(super) fn known(&self) -> Query<'_> {
        Query {
            first_flight: Some(&self.flight),
            ..self.query(Some(self.lookup()))
        }
    }

    pub(super) fn lookup(&self) -> Lookup<'_> {
        self.addresses
            .as_deref()
            .map_or(Lookup::Failed, Lookup::Found)
    }
}

pub(super) fn asked() -> impl Strategy<Value = Asked> {
    let address = prop::sample::select(vec!["10.1.2.3", "10.2.0.1", "192.0.2.7", "198.51.100.1"])
        .prop_map(|ip| ip.parse::<IpAddr>().unwrap());
    let addresses = prop::option::of(prop::collection::vec(address, 0..3));
    let client = prop::sample::select(vec!["127.0.0.1:9", "192.0.2.9:9", "10.1.9.9:9"]);
    let port = prop::sample::select(vec![80, 443, 25, 8080]);
    (
        prop::sample::select(&HOSTS[..]),
        port,
        client,
        any::<bool>(),
        any::<bool>(),
        addresses,
        prop::sample::select(vec!["", "alice", "bob+unit-1", "unit-2"]),
        prop::sample::select(vec![
            Flight::tls(Some("a.example"), ["h2", "http/1.1"]),
            Flight::tls(Some("b.a.example"), ["http/1.1"]),
            Flight::tls(None, []),
            Flight::Http,
            Flight::Ssh,
            Flight::Other,
            Flight::Silent,
            Flight::Unfinished,
            Flight::Hidden,
        ]),
    )
        .prop_map(
            |(host, port, client, is_connect, is_bot, addresses, user, flight)| Asked {
                client: Client {
                    peer: client.parse().unwrap(),
                    local: "127.0.0.1:3128".parse().unwrap(),
                    listener: "proxy".into(),
                },
                target: Target::new(Host::parse(host).unwrap(), port),
                is_connect,
                headers: is_bot
                    .then(|| {
                        (
                            http::header::USER_AGENT,
                            http::HeaderValue::from_static("a bot"),
                        )
                    })
                    .into_iter()
                    .collect(),
                addresses,
                claim: Claim::of(user, Labels::UsernameSuffix),
                flight,
            },
        )
}
