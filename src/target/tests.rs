use super::*;

#[track_caller]
fn canonical(text: &str, expected: &str) {
    assert_eq!(
        Target::from_authority(text)
            .map(|t| t.to_string())
            .as_deref(),
        Ok(expected),
        "{text}"
    );
}

#[track_caller]
fn refused(text: &str, expected: fn(&TargetError) -> bool) {
    let error = Target::from_authority(text).expect_err(text);
    assert!(expected(&error), "{text}: {error:?}");
}

#[test]
fn every_spelling_of_a_name_is_one_name() {
    canonical("Example.COM:443", "example.com:443");
    canonical("example.com.:443", "example.com:443");
    canonical("bücher.example:443", "xn--bcher-kva.example:443");
    canonical("xn--bcher-kva.example:443", "xn--bcher-kva.example:443");
    canonical("ｅｘａｍｐｌｅ.com:443", "example.com:443");
    canonical("_srv.under_score.example:80", "_srv.under_score.example:80");
}

#[test]
fn every_spelling_of_an_address_is_one_address() {
    canonical("[2001:DB8:0:0::1]:443", "[2001:db8::1]:443");
    canonical("[::ffff:192.0.2.1]:80", "192.0.2.1:80");
    canonical("192.0.2.1:80", "192.0.2.1:80");
    canonical("１９２.0.2.1:80", "192.0.2.1:80");
}

#[test]
fn a_zone_is_kept_apart() {
    let target = Target::from_authority("[fe80::1%25eth0]:80").unwrap();
    assert_eq!(
        (target.to_string().as_str(), target.zone.as_deref()),
        ("[fe80::1]:80", Some("eth0"))
    );
    refused("[fe80::1%25.x.com]:80", |e| {
        matches!(e, TargetError::BadHost(_))
    });
}

#[test]
fn legacy_ipv4_spellings_are_refused() {
    for host in [
        "127.1",
        "2130706433",
        "0x7f.1",
        "010.0.0.1",
        "0x7f000001",
        "1.2.3.4.5",
        "0177.0.0.1",
        "a.0x1",
        "127.0.0.1..",
    ] {
        let text = format!("{host}:80");
        assert!(
            matches!(
                Target::from_authority(&text),
                Err(TargetError::LegacyIpv4(_) | TargetError::BadHost(_))
            ),
            "{text}"
        );
    }
}

#[test]
fn ports_are_one_to_five_digits() {
    for port in ["+443", "0", "65536", "000443", "4 43", "443x", "-1"] {
        refused(&format!("a.example:{port}"), |e| {
            matches!(e, TargetError::BadPort(_))
        });
    }
    refused("a.example", |e| matches!(e, TargetError::MissingPort(_)));
    refused("a.example:", |e| matches!(e, TargetError::MissingPort(_)));
    refused("[2001:db8::1]", |e| {
        matches!(e, TargetError::MissingPort(_))
    });
    refused("2001:db8::1", |e| matches!(e, TargetError::MissingPort(_)));
}

#[test]
fn what_is_no_host_is_refused() {
    for host in [
        "a..b",
        "-".repeat(64).as_str(),
        "a b",
        "a/b",
        "a%2eb",
        "xn--\u{0}",
        "[::1",
        "[::1]x",
        "a\\b",
        "xn--a-ecp.ru",
    ] {
        let text = format!("{host}:80");
        assert!(Target::from_authority(&text).is_err(), "{text:?}");
    }
    refused("user@a.example:80", |e| matches!(e, TargetError::Userinfo));
    refused(":80", |e| matches!(e, TargetError::EmptyHost));
    refused(".:80", |e| matches!(e, TargetError::EmptyHost));
}

#[test]
fn absolute_form_is_http_only() {
    let target = |uri: &str| Target::from_absolute(&uri.parse().unwrap()).map(|t| t.to_string());
    assert_eq!(
        target("http://A.example/x?y").as_deref(),
        Ok("a.example:80")
    );
    assert_eq!(target("http://a.example:/").as_deref(), Ok("a.example:80"));
    assert_eq!(
        target("http://a.example:8080").as_deref(),
        Ok("a.example:8080")
    );
    assert_eq!(
        target("https://a.example/"),
        Err(TargetError::Scheme("https".into()))
    );
    assert_eq!(target("/path"), Err(TargetError::NotAbsolute));
    assert_eq!(target("http://u:p@a.example/"), Err(TargetError::Userinfo));
}

#[test]
fn connect_takes_an_authority_only() {
    let target = |uri: &str| Target::from_connect(&uri.parse().unwrap());
    assert!(matches!(
        target("http://a.example:443/"),
        Err(TargetError::NotAuthority)
    ));
    assert!(matches!(target("/x"), Err(TargetError::NotAuthority)));
    assert_eq!(
        target("http://user:secret@a.example:443/"),
        Err(TargetError::Userinfo)
    );
    assert!(target("a.example:443").is_ok());
}

#[test]
fn the_host_header_agrees_or_not() {
    let target = Target::from_authority("a.example:80").unwrap();
    assert!(target.agrees_with("A.example.", 80));
    assert!(target.agrees_with("a.example:80", 80));
    assert!(!target.agrees_with("a.example:81", 80));
    assert!(!target.agrees_with("b.example", 80));
    assert!(!target.agrees_with("", 80));
}

use proptest::prelude::*;

proptest! {
    #[test]
    fn the_canonical_form_is_its_own_canonical_form(text in "\\PC{0,40}", port in 1_u16..) {
        if let Ok(target) = Target::from_authority(&format!("{text}:{port}")) {
            let again = Target::from_authority(&target.to_string());
            prop_assert_eq!(again, Ok(target));
        }
    }

    #[test]
    fn nothing_that_a_stranger_writes_panics(text in "\\PC{0,80}|[0-9a-fx.:%@\\[\\]-]{0,60}") {
        let _ = Target::from_authority(&text);
        let _ = Host::parse(&text);
        let target = Target::new(Host::Name("a.example".into()), 80);
        target.agrees_with(&text, 80);
    }

    #[test]
    fn case_and_a_trailing_dot_change_nothing(name in "[a-z][a-z0-9-]{0,20}(\\.[a-z][a-z0-9-]{0,20}){0,3}") {
        // An error quotes what was written, so only what is accepted compares.
        let canonical = Host::parse(&name).ok();
        prop_assert_eq!(&Host::parse(&name.to_uppercase()).ok(), &canonical);
        prop_assert_eq!(&Host::parse(&format!("{name}.")).ok(), &canonical);
    }
}

#[test]
fn only_what_prints_the_same_is_written() {
    let is_written = |target: &str, text: &str| {
        let target = Target::from_authority(target).unwrap();
        target.is_written(text.as_bytes(), 80)
    };
    for target in ["a.example:80", "192.0.2.1:80"] {
        let bare = target.trim_end_matches(":80");
        assert!(is_written(target, bare), "{target}");
        assert!(!is_written(target, target));
        assert!(!is_written(target, &format!("{bare}:")));
        assert!(!is_written(
            target,
            &bare.to_uppercase().replace("192", "0192")
        ));
    }
    for target in ["a.example:8080", "192.0.2.1:8080"] {
        assert!(is_written(target, target));
        assert!(!is_written(target, &target.replace("8080", "08080")));
        assert!(!is_written(target, &target.replace("8080", "+8080")));
        assert!(!is_written(target, target.trim_end_matches(":8080")));
    }
    assert!(!is_written("a.example:8080", "a.example.:8080"));
    assert!(!is_written("[2001:db8::1]:8080", "[2001:DB8::1]:8080"));
}
