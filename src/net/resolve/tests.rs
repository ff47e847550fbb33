//! What it promises.

mod played;
mod room;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::SystemTime;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};

use super::servers::TRY;
use super::*;
use crate::config;
use crate::policy::dns::Cache;
use played::{
    Answer, by_udp, name_in, reply, server, server_of, sockets, truncated, with_ede, with_soa,
};

const LIMIT: Duration = Duration::from_secs(5);
const SYSTEM: AskId = AskId::SYSTEM;

fn is_contested(resolver: &Resolver) -> bool {
    let asker = resolver.asker(SYSTEM).unwrap();
    asker
        .journal
        .is_contested(&ask::name_of("name.example").unwrap())
}

/// Waits until nobody watches for a second reply any more.
async fn watched(resolver: &Resolver) {
    let asker = resolver.asker(SYSTEM).unwrap();
    let all = u32::try_from(asker.journal.watched.available_permits().max(64)).unwrap();
    drop(asker.journal.watched.acquire_many(all).await.unwrap());
}

async fn resolve(resolver: &Resolver) -> Result<Vec<String>, ResolveError> {
    let found = resolver.resolve("name.example", SYSTEM, LIMIT).await?;
    Ok(found.addresses.iter().map(IpAddr::to_string).collect())
}

#[tokio::test]
async fn both_families_are_found_ipv6_first() {
    let resolver = server(
        |query, kind| match kind {
            28 => Some(reply(
                query,
                0,
                &[&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets()],
            )),
            _ => Some(reply(
                query,
                0,
                &[&[192, 0, 2, 1], &[192, 0, 2, 2], &[192, 0, 2, 1]],
            )),
        },
        |_, _| None,
    );
    assert_eq!(
        resolve(&resolver).await.unwrap(),
        ["2001:db8::1", "192.0.2.1", "192.0.2.2"]
    );
}

#[tokio::test]
async fn the_failure_of_one_family_leaves_the_other() {
    let resolver = server(
        |query, kind| match kind {
            28 => Some(reply(query, 2, &[])),
            _ => Some(reply(query, 0, &[&[192, 0, 2, 1]])),
        },
        |query, _| Some(reply(query, 2, &[])),
    );
    assert_eq!(resolve(&resolver).await.unwrap(), ["192.0.2.1"]);
}

#[tokio::test]
async fn the_silence_of_one_family_does_not_hold_back_the_other() {
    let resolver = server(
        |query, kind| (kind == 1).then(|| reply(query, 0, &[&[192, 0, 2, 1]])),
        |_, _| None,
    );
    let begun = Instant::now();
    assert_eq!(resolve(&resolver).await.unwrap(), ["192.0.2.1"]);
    assert!(begun.elapsed() < TRY);
}

#[tokio::test]
async fn each_response_code_is_told_apart() {
    let outcome = async |answer: Answer| resolve(&server(answer, answer)).await.unwrap_err();
    let error = outcome(|query, _| Some(reply(query, 3, &[]))).await;
    assert!(matches!(error.why, Unresolved::NxDomain), "{error:?}");
    assert_eq!(error.response_code(), Some("NXDOMAIN"));
    let error = outcome(|query, _| Some(reply(query, 0, &[]))).await;
    assert!(matches!(error.why, Unresolved::NoAddress), "{error:?}");
    let error = outcome(|query, _| Some(reply(query, 2, &[]))).await;
    assert!(
        matches!(error.why, Unresolved::ServFail { .. }),
        "{error:?}"
    );
    let error = outcome(|query, _| Some(reply(query, 5, &[]))).await;
    assert!(matches!(error.why, Unresolved::Refused { .. }), "{error:?}");
    let error = outcome(|query, _| Some(reply(query, 4, &[]))).await;
    assert!(matches!(error.why, Unresolved::Misbehaving(_)), "{error:?}");
    assert_eq!(error.response_code(), Some("NOTIMP"));
}

#[tokio::test]
async fn a_name_with_an_underscore_is_asked_for() {
    let resolver = server(
        |query, kind| {
            (kind == 1)
                .then(|| reply(query, 0, &[&[192, 0, 2, 1]]))
                .or_else(|| Some(reply(query, 0, &[])))
        },
        |_, _| None,
    );
    let found = resolver
        .resolve("my_app.some_net", SYSTEM, LIMIT)
        .await
        .unwrap();
    assert_eq!(found.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn a_silent_server_is_a_timeout() {
    let resolver = server(|_, _| None, |_, _| None);
    let error = resolver
        .resolve("name.example", SYSTEM, Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(error.why, Unresolved::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let nobody = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = resolve(&Resolver::with_servers(&[nobody]))
        .await
        .unwrap_err();
    let Unresolved::ServerUnreachable {
        source: Some(source),
        ..
    } = &error.why
    else {
        panic!("{error:?}")
    };
    assert_eq!(source.raw_os_error(), Some(libc::ECONNREFUSED));
    assert_eq!(error.response_code(), None);
}

#[tokio::test]
async fn a_truncated_reply_is_asked_for_by_tcp() {
    let resolver = server(
        |query, _| Some(truncated(reply(query, 0, &[]))),
        |query, kind| {
            (kind == 1)
                .then(|| reply(query, 0, &[&[192, 0, 2, 9]]))
                .or_else(|| Some(reply(query, 0, &[])))
        },
    );
    assert_eq!(resolve(&resolver).await.unwrap(), ["192.0.2.9"]);
}

#[tokio::test]
async fn localhost_is_this_machine_whoever_is_asked() {
    let resolver = server(
        |query, _| Some(reply(query, 0, &[&[192, 0, 2, 1]])),
        |_, _| None,
    );
    let found = resolver
        .resolve("a.localhost", SYSTEM, LIMIT)
        .await
        .unwrap();
    assert_eq!(found.source, Source::Hosts);
    assert!(found.addresses.iter().all(IpAddr::is_loopback));
}

#[tokio::test]
async fn an_answer_is_told_with_its_server_and_its_age() {
    let server = server_of(|query, kind| {
        let records: &[&[u8]] = if kind == 1 {
            &[&[192, 0, 2, 1], &[192, 0, 2, 2]]
        } else {
            &[]
        };
        vec![with_ede(reply(query, 0, records), 3, "stale")]
    });
    let resolver = Resolver::with_servers(&[server]);
    for is_cached in [false, true] {
        let facts = resolver
            .resolve("name.example", SYSTEM, LIMIT)
            .await
            .unwrap()
            .facts;
        assert_eq!(facts.server, Some(server));
        assert_eq!(facts.transport, Some(Transport::Udp));
        assert_eq!(facts.is_cached, is_cached);
        assert!(matches!(facts.ttl, Some(59 | 60)), "{:?}", facts.ttl);
        assert_eq!(facts.response_code(), Some("NOERROR"));
        assert_eq!(
            facts.ede.unwrap().to_string(),
            "EDE 3 (Stale Answer): stale"
        );
        assert_eq!(facts.records, Some(2));
        assert_eq!(facts.question.as_deref(), Some("name.example"));
    }
}

#[tokio::test]
async fn an_extended_error_tells_more_than_the_code() {
    let why = async |code: u8, ede: u8| {
        let server = server_of(move |query, _| vec![with_ede(reply(query, code, &[]), ede, "why")]);
        resolve(&Resolver::with_servers(&[server]))
            .await
            .unwrap_err()
    };
    for ede in 6..=12 {
        let error = why(2, ede).await;
        assert!(
            matches!(error.why, Unresolved::DnssecBogus { .. }),
            "{error:?}"
        );
        assert_eq!(error.response_code(), Some("SERVFAIL"));
        assert_eq!(error.facts.ede.unwrap().code, u16::from(ede));
    }
    for (code, ede) in [(3, 15), (3, 16), (0, 17), (5, 18), (3, 4), (2, 15)] {
        let error = why(code, ede).await;
        assert!(matches!(error.why, Unresolved::Blocked { .. }), "{error:?}");
        assert_eq!(error.facts.ede.unwrap().text, "why");
    }
    let error = why(2, 22).await;
    assert!(
        matches!(error.why, Unresolved::ServFail { ede: Some(_) }),
        "{error:?}"
    );
    let error = why(5, 20).await;
    assert!(
        matches!(error.why, Unresolved::Refused { ede: Some(_) }),
        "{error:?}"
    );
}

/// Denies all names with an SOA record but for `name.example` and `other.example`; counts other questions.
fn denying(others_have_soa: bool) -> (Resolver, Arc<AtomicUsize>) {
    let count = Arc::<AtomicUsize>::default();
    let counted = count.clone();
    let server = server_of(move |query, _| {
        let denial = reply(query, 3, &[]);
        if ["name.example", "other.example"].contains(&&*name_in(query)) {
            return vec![denial];
        }
        counted.fetch_add(1, Ordering::Relaxed);
        vec![if others_have_soa {
            with_soa(denial)
        } else {
            denial
        }]
    });
    (Resolver::with_servers(&[server]), count)
}

#[tokio::test]
async fn a_denial_without_soa_is_compared_with_a_sibling_once() {
    let (resolver, siblings) = denying(true);
    for name in ["name.example", "other.example"] {
        let error = resolver.resolve(name, SYSTEM, LIMIT).await.unwrap_err();
        assert!(
            matches!(error.why, Unresolved::NxDomainUnsigned),
            "{error:?}"
        );
        assert_eq!(error.response_code(), Some("NXDOMAIN"));
    }
    assert_eq!(siblings.load(Ordering::Relaxed), 1);
    // It has its SOA record, and is believed.
    let error = resolver
        .resolve("third.example", SYSTEM, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error.why, Unresolved::NxDomain), "{error:?}");
    assert_eq!(siblings.load(Ordering::Relaxed), 1 + 2);
}

#[tokio::test]
async fn a_server_that_never_sends_soa_is_believed() {
    let (resolver, siblings) = denying(false);
    let error = resolve(&resolver).await.unwrap_err();
    assert!(matches!(error.why, Unresolved::NxDomain), "{error:?}");
    assert_eq!(siblings.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_truncated_reply_without_tcp_is_told_so() {
    let server = server_of(|query, _| vec![truncated(reply(query, 0, &[]))]);
    let error = resolve(&Resolver::with_servers(&[server]))
        .await
        .unwrap_err();
    let Unresolved::TruncatedTcpFailed {
        server: told,
        source: Some(source),
    } = &error.why
    else {
        panic!("{error:?}")
    };
    assert_eq!(*told, Some(server));
    assert_eq!(source.raw_os_error(), Some(libc::ECONNREFUSED));
}

#[tokio::test]
async fn a_reply_to_another_question_is_no_answer() {
    let server = server_of(|query, _| {
        let mut reply = reply(query, 0, &[&[192, 0, 2, 1]]);
        reply[1] ^= 1;
        vec![reply]
    });
    let error = Resolver::with_servers(&[server])
        .resolve("name.example", SYSTEM, Duration::from_millis(1500))
        .await
        .unwrap_err();
    assert!(matches!(error.why, Unresolved::Misbehaving(_)), "{error:?}");
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let server = server_of(|query, _| {
        let mut reply = reply(query, 0, &[&[192, 0, 2, 1]]);
        // More records than there are.
        reply[7] = 9;
        vec![reply]
    });
    let error = resolve(&Resolver::with_servers(&[server]))
        .await
        .unwrap_err();
    assert!(matches!(error.why, Unresolved::Misbehaving(_)), "{error:?}");
}

#[tokio::test]
async fn a_second_reply_with_other_data_is_noticed() {
    let answers = |second: [u8; 4]| {
        let server = server_of(move |query, kind| {
            if kind == 1 {
                vec![
                    reply(query, 0, &[&[192, 0, 2, 1]]),
                    reply(query, 0, &[&second]),
                ]
            } else {
                vec![reply(query, 0, &[])]
            }
        });
        Resolver::with_servers(&[server])
    };
    for (second, replies) in [([192, 0, 2, 2], 2), ([192, 0, 2, 1], 1)] {
        let resolver = answers(second);
        let found = resolver
            .resolve("name.example", SYSTEM, LIMIT)
            .await
            .unwrap();
        watched(&resolver).await;
        assert_eq!(found.facts.replies(), Some(replies));
        assert_eq!(is_contested(&resolver), replies > 1);
        let doubt = resolver.doubt("name.example", SYSTEM, &found.addresses);
        assert_eq!(doubt, (replies > 1).then_some(Doubt::Contested));
        // The memory of the first answer goes on to be doubted.
        let again = resolver
            .resolve("name.example", SYSTEM, LIMIT)
            .await
            .unwrap();
        assert_eq!(
            (again.facts.is_cached, again.facts.replies()),
            (true, Some(replies))
        );
    }
}

#[tokio::test]
async fn an_answer_by_policy_is_doubted_once_it_is_of_no_use() {
    let server = server_of(|query, kind| {
        let records: &[&[u8]] = if kind == 1 { &[&[0, 0, 0, 0]] } else { &[] };
        vec![with_ede(reply(query, 0, records), 17, "ads")]
    });
    let resolver = Resolver::with_servers(&[server]);
    let found = resolver
        .resolve("name.example", SYSTEM, LIMIT)
        .await
        .unwrap();
    let doubt = resolver.doubt("name.example", SYSTEM, &found.addresses);
    assert!(matches!(doubt, Some(Doubt::Blocked(_))), "{doubt:?}");
    assert_eq!(
        resolver.doubt("other.example", SYSTEM, &found.addresses),
        None
    );
}

#[tokio::test]
async fn a_server_that_cannot_help_leaves_it_to_the_next() {
    for code in [2, 4, 5] {
        let first = server_of(move |query, _| vec![reply(query, code, &[])]);
        let second = server_of(|query, kind| {
            let records: &[&[u8]] = if kind == 1 { &[&[192, 0, 2, 1]] } else { &[] };
            vec![reply(query, 0, records)]
        });
        let resolver = Resolver::with_servers(&[first, second]);
        let found = resolver
            .resolve("name.example", SYSTEM, LIMIT)
            .await
            .unwrap();
        assert_eq!(found.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(found.facts.server, Some(second));
        let third = server_of(move |query, _| vec![reply(query, code, &[])]);
        let error = resolve(&Resolver::with_servers(&[first, third]))
            .await
            .unwrap_err();
        let expected = ["SERVFAIL", "", "NOTIMP", "REFUSED"][usize::from(code) - 2];
        assert_eq!(error.response_code(), Some(expected), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_fails_is_told_before_one_that_is_not_there() {
    let nobody = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let failing = server_of(|query, _| vec![with_ede(reply(query, 2, &[]), 9, "")]);
    let error = resolve(&Resolver::with_servers(&[nobody, failing]))
        .await
        .unwrap_err();
    assert!(
        matches!(error.why, Unresolved::DnssecBogus { .. }),
        "{error:?}"
    );
    assert_eq!(error.facts.server, Some(failing));
}

#[tokio::test]
async fn a_server_that_takes_no_opt_record_is_asked_without() {
    let server = server_of(|query, kind| {
        if query[11] > 0 {
            return vec![reply(query, 1, &[])];
        }
        let records: &[&[u8]] = if kind == 1 { &[&[192, 0, 2, 1]] } else { &[] };
        vec![reply(query, 0, records)]
    });
    assert_eq!(
        resolve(&Resolver::with_servers(&[server])).await.unwrap(),
        ["192.0.2.1"]
    );
}

#[tokio::test]
async fn a_server_that_is_silent_at_an_opt_record_is_asked_without() {
    let server = server_of(|query, kind| {
        if query[11] > 0 {
            return Vec::new();
        }
        let records: &[&[u8]] = if kind == 1 { &[&[192, 0, 2, 1]] } else { &[] };
        vec![reply(query, 0, records)]
    });
    let resolver = Resolver::with_servers(&[server]);
    assert_eq!(resolve(&resolver).await.unwrap(), ["192.0.2.1"]);
}

#[tokio::test]
async fn a_sibling_is_not_waited_for_long() {
    let server = server_of(|query, _| {
        let is_asked_for = name_in(query) == "name.example";
        is_asked_for
            .then(|| reply(query, 3, &[]))
            .into_iter()
            .collect()
    });
    let begun = Instant::now();
    let error = resolve(&Resolver::with_servers(&[server]))
        .await
        .unwrap_err();
    assert!(matches!(error.why, Unresolved::NxDomain), "{error:?}");
    assert!(begun.elapsed() < TRY, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_name_under_a_suffix_is_told() {
    let (socket, _) = sockets();
    let server = socket.local_addr().unwrap();
    by_udp(socket, |query, kind| {
        let is_there = kind == 1 && name_in(query) == "git.corp.example";
        let records: &[&[u8]] = if is_there { &[&[10, 0, 0, 1]] } else { &[] };
        vec![reply(query, if is_there { 0 } else { 3 }, records)]
    });
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let servers = vec![NameServerConfig::new(server.ip(), true, vec![connection])];
    let search = vec!["corp.example".parse().unwrap()];
    let config = ResolverConfig::from_parts(None, search, servers);
    let asker = Maker::default()
        .build(
            config,
            ResolverOpts::default(),
            Cache::default(),
            None,
            None,
        )
        .unwrap();
    let found = asker.ask("git", Prefer::Happy, LIMIT).await.unwrap();
    assert!(found.facts.is_suffixed);
    assert_eq!(found.facts.question.as_deref(), Some("git.corp.example"));
}

#[test]
fn what_a_server_said_over_one_route_is_not_taken_for_what_it_says_over_another() {
    const A: &str = "a: {url: 'http://192.0.2.1:1'}";
    const B: &str = "b: {url: 'http://192.0.2.2:1'}";
    let policy = |upstreams: &str, via: &str| {
        let source = config::Source::Text {
            name: "policy.yaml".to_owned(),
            text: format!(
                "version: 1\nupstreams: {{{upstreams}}}\n\
                 dns: {{servers: {{inner: {{tcp: 192.0.2.53, via: {via}}}}}, default: inner}}\ndefault: {{direct: true}}\n"
            ),
        };
        let options = config::Options::check(jiff::Timestamp::UNIX_EPOCH);
        let loaded = config::load(&source, &config::Environment::default(), &options);
        Arc::new(loaded.unwrap().policy)
    };
    let first = policy(&format!("{A}, {B}"), "a");
    let before = Resolver::with_servers(&[]).under(&first);
    let asker = |resolver: &Resolver, policy: &Policy| resolver.asker(policy.dns.default).unwrap();
    for (upstreams, via, is_kept) in [
        (format!("{B}, {A}"), "a", true),
        (format!("{B}, {A}"), "b", false),
        // In the same place another.
        (B.to_owned(), "b", false),
        (A.replace("192.0.2.1", "192.0.2.3"), "a", false),
    ] {
        let next = policy(&upstreams, via);
        let after = before.under(&next);
        let is_same = Arc::ptr_eq(&asker(&before, &first), &asker(&after, &next));
        assert_eq!(is_same, is_kept, "{upstreams} via {via}");
    }
}

#[test]
fn a_file_is_read_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    std::fs::write(&path, "192.0.2.1 a.example\n").unwrap();
    let watched = Watched::new(path.to_str().unwrap(), read_hosts);
    assert_eq!(in_hosts(&watched.get(), "a.example").unwrap().len(), 1);
    std::fs::write(
        &path,
        "192.0.2.1 a.example b.example\n2001:db8::1 a.example\n",
    )
    .unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert_eq!(in_hosts(&watched.get(), "a.example").unwrap().len(), 2);
    assert_eq!(in_hosts(&watched.get(), "b.example").unwrap().len(), 1);
    assert_eq!(in_hosts(&watched.get(), "c.example"), None);
    std::fs::write(
        &path,
        "192.0.2.7\tMy_App a_b.example # web\n#192.0.2.8 d.example\nnonsense\n",
    )
    .unwrap();
    let hosts = read_hosts(&path);
    assert_eq!(
        (in_hosts(&hosts, "my_app").unwrap().len(), hosts.len()),
        (1, 2)
    );
}
