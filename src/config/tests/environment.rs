//! The proxy variables of the environment.

use super::*;

#[test]
fn the_embedded_policy_follows_the_environment() {
    let environment: Environment = [
        ("HTTP_PROXY", "http://me:s3cret@proxy.corp.example:8080"),
        ("HTTPS_PROXY", "http://other.corp.example:8080"),
        ("NO_PROXY", "corp.example"),
    ]
    .into_iter()
    .collect();
    let loaded = load(&Source::Embedded, &environment, &Options::serve(now())).unwrap();
    let routes = &loaded.policy.routes;
    let names: Vec<_> = routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["direct", "env", "env"]);
    let RouteSpec::Upstream(upstream) = &routes[1].spec else {
        panic!("{routes:?}");
    };
    assert_eq!(upstream.proxy.to_string(), "proxy.corp.example:8080");
    let auth = upstream.auth.as_ref().unwrap();
    let login = auth.login.as_ref().unwrap();
    assert_eq!(login.username.value.reveal(), "me");
    assert_eq!(login.password.value.reveal(), "s3cret");
    assert!(auth.preemptive);
    assert!(!format!("{loaded:?}").contains("s3cret"));
}

#[test]
fn an_environment_that_cannot_be_used_is_told_at_the_key() {
    let environment: Environment = [
        ("HTTPS_PROXY", "socks4://me:s3cret@h:1"),
        ("https_proxy", "x"),
    ]
    .into_iter()
    .collect();
    let report = load(&Source::Embedded, &environment, &Options::serve(now())).unwrap_err();
    let told = report.to_string();
    assert!(
        told.contains("HTTPS_PROXY of the environment: socks4:// is no proxy's scheme"),
        "{told}"
    );
    assert!(
        told.contains("warning: HTTPS_PROXY and https_proxy differ"),
        "{told}"
    );
    assert!(
        told.contains("env: {url: env}") && !told.contains("s3cret"),
        "{told}"
    );
}

#[test]
fn an_entry_that_names_our_own_listener_is_dropped_with_a_warning() {
    let environment: Environment = [("HTTPS_PROXY", "http://127.0.0.1:3128")]
        .into_iter()
        .collect();
    let loaded = load(&Source::Embedded, &environment, &Options::serve(now())).unwrap();
    assert_eq!(loaded.policy.routes.len(), 1);
    assert!(
        loaded.warnings[0]
            .message
            .contains("points back at this proxy"),
        "{:?}",
        loaded.warnings
    );
    let mut elsewhere = Options::serve(now());
    elsewhere.listen = vec![ListenAt::parse("127.0.0.1:9999").unwrap()];
    let loaded = load(&Source::Embedded, &environment, &elsewhere).unwrap();
    assert_eq!(loaded.policy.routes.len(), 2);
}
