//! How much is asked at a time.

#![expect(clippy::disallowed_methods, reason = "a test's tasks end with it")]

use super::*;

#[tokio::test]
async fn who_asks_for_one_name_at_the_same_time_shares_one_question() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let server = server_of(move |query, kind| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        let records: &[&[u8]] = if kind == 1 { &[&[192, 0, 2, 1]] } else { &[] };
        vec![reply(query, 0, records)]
    });
    let resolver = Arc::new(Resolver::with_servers(&[server]));
    let asking = (0..100).map(|_| {
        let resolver = resolver.clone();
        tokio::spawn(async move { resolver.resolve("name.example", SYSTEM, LIMIT).await })
    });
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap().unwrap().addresses.len(), 1);
    }
    // One for each family.
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_name_too_many_waits_and_says_so() {
    let server = server_of(|_, _| Vec::new());
    let resolver = Arc::new(Resolver::with_servers(&[server]));
    // Shorter than one try, which would make room.
    let limit = Duration::from_millis(1800);
    let asking = (0..300).map(|at| {
        let resolver = resolver.clone();
        tokio::spawn(async move {
            let name = format!("name-{at}.example");
            resolver.resolve(&name, SYSTEM, limit).await.unwrap_err()
        })
    });
    let (mut silent, mut busy) = (0, 0);
    for asked in asking.collect::<Vec<_>>() {
        let error = asked.await.unwrap();
        if let Unresolved::Busy { limit: most, after } = error.why {
            assert_eq!((most, after), (256, limit));
            busy += 1;
        } else {
            assert!(matches!(error.why, Unresolved::Timeout { .. }), "{error:?}");
            silent += 1;
        }
    }
    assert_eq!((silent, busy), (256, 44));
    // And there is room again.
    assert!(matches!(
        resolver
            .resolve("last.example", SYSTEM, limit)
            .await
            .unwrap_err()
            .why,
        Unresolved::Timeout { .. }
    ));
}
