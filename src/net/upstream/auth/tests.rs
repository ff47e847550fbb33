use http::StatusCode;

use super::*;

fn auth(schemes: &[Scheme], preemptive: bool) -> Auth {
    let fixed = |text: &str| Credential {
        value: Secret::new(text),
        source: Source::Fixed,
    };
    Auth {
        schemes: schemes.to_vec(),
        login: Some(Login {
            username: fixed("user"),
            password: fixed("hunter2"),
        }),
        spn: None,
        preemptive,
    }
}

fn asks(lines: &[&str]) -> Reply {
    let fields: Vec<_> = lines
        .iter()
        .map(|line| ("Proxy-Authenticate", line.as_bytes()))
        .collect();
    Reply::of(StatusCode::PROXY_AUTHENTICATION_REQUIRED, b"", &fields)
}

fn talk(with: Option<&Arc<Authenticator>>) -> Talk {
    Talk::new(with.cloned(), Method::CONNECT, "a.example:443".to_owned())
}

const BASIC: &str = "Basic dXNlcjpodW50ZXIy";
const NONCE: &str = r#"Digest realm="r", nonce="n1", qop="auth""#;
const STALE: &str = r#"Digest realm="r", nonce="n2", qop="auth", stale=true"#;

/// The parameters of an answer that matter here.
fn told(answer: &Secret) -> String {
    let text = answer.reveal();
    let (scheme, rest) = text.split_once(' ').unwrap();
    if scheme != "Digest" {
        return text.to_owned();
    }
    let of = |name: &str| {
        let start = rest.find(&format!("{name}=")).unwrap() + name.len() + 1;
        let value = rest[start..].split(',').next().unwrap();
        value.trim_matches('"').to_owned()
    };
    format!("Digest {} {} {}", of("nonce"), of("nc"), of("uri"))
}

#[tokio::test]
async fn what_is_offered_is_answered_by_our_order_of_preference() {
    use Scheme::{Basic, Digest};
    for (schemes, lines, expected) in [
        (&[Digest, Basic][..], &["Basic realm=\"x\""][..], BASIC),
        (
            &[Digest, Basic],
            &["Basic realm=\"x\"", NONCE],
            "Digest n1 00000001 a.example:443",
        ),
        (&[Basic, Digest], &[NONCE, "Basic realm=\"x\""], BASIC),
        (&[Digest, Basic], &["Negotiate, NTLM, basic"], BASIC),
        (&[Digest, Basic], &["Digest realm=\"r\"", "Basic"], BASIC),
    ] {
        let with = Arc::new(Authenticator::new(auth(schemes, false), "proxy.example"));
        let mut talk = talk(Some(&with));
        assert_eq!(talk.first().await.map(|first| told(&first)), None);
        let answer = talk.answer(&asks(lines)).await.unwrap();
        assert_eq!(told(&answer), expected, "{lines:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_answered_says_why() {
    use Scheme::{Basic, Digest};
    let both = Arc::new(Authenticator::new(auth(&[Digest, Basic], false), "h"));
    let digest = Arc::new(Authenticator::new(auth(&[Digest], false), "h"));
    for (with, lines, expected) in [
        (
            None,
            &["Basic"][..],
            "it asks for credentials (Basic), and there are none for it",
        ),
        (
            None,
            &["Kerberos5"],
            "it offers Kerberos5; of use here: Digest, Basic",
        ),
        (
            Some(&both),
            &[],
            "it offers no scheme; of use here: Digest, Basic",
        ),
        (
            Some(&both),
            &["Bearer, Hoba"],
            "it offers Bearer, Hoba; of use here: Digest, Basic",
        ),
        (
            Some(&digest),
            &["Basic"],
            "it offers Basic; of use here: Digest",
        ),
        (
            Some(&both),
            &["=,,\"", "realm=\"x\""],
            "it offers \"; of use here: Digest, Basic",
        ),
    ] {
        let error = talk(with).answer(&asks(lines)).await.unwrap_err();
        if cfg!(any(feature = "ntlm", feature = "kerberos")) && with.is_none() {
            continue;
        }
        assert_eq!(error.to_string(), expected, "{lines:?}");
    }
}

#[tokio::test]
async fn a_scheme_that_worked_is_sent_first_from_then_on() {
    let with = Arc::new(Authenticator::new(
        auth(&[Scheme::Digest, Scheme::Basic], false),
        "h",
    ));
    let mut one = talk(Some(&with));
    one.answer(&asks(&["Basic"])).await.unwrap();
    one.accepted();
    assert_eq!(told(&talk(Some(&with)).first().await.unwrap()), BASIC);

    let with = Arc::new(Authenticator::new(auth(&[Scheme::Digest], false), "h"));
    let mut one = talk(Some(&with));
    one.answer(&asks(&[NONCE])).await.unwrap();
    one.accepted();
    // The nonce is used on, and counted.
    let mut two = talk(Some(&with));
    assert_eq!(
        told(&two.first().await.unwrap()),
        "Digest n1 00000002 a.example:443"
    );
    // It is too old: a new one is taken, once more if it must be, and not for ever.
    assert_eq!(
        told(&two.answer(&asks(&[STALE])).await.unwrap()),
        "Digest n2 00000001 a.example:443"
    );
    two.answer(&asks(&[STALE])).await.unwrap();
    let error = two.answer(&asks(&[STALE])).await.unwrap_err();
    assert!(
        matches!(
            error,
            AuthError::Rejected {
                scheme: Scheme::Digest
            }
        ),
        "{error}"
    );
    // What was refused is not sent first any more.
    assert!(talk(Some(&with)).first().await.is_none());
}

#[tokio::test]
async fn refused_credentials_are_not_sent_again_by_another_scheme() {
    let with = Arc::new(Authenticator::new(
        auth(&[Scheme::Digest, Scheme::Basic], false),
        "h",
    ));
    let mut talk = talk(Some(&with));
    let both = asks(&[NONCE, "Basic"]);
    talk.answer(&both).await.unwrap();
    let error = talk.answer(&both).await.unwrap_err();
    assert_eq!(error.to_string(), "it refuses our Digest credentials");
}

#[tokio::test]
async fn a_preemptive_scheme_that_is_not_offered_gives_way_to_one_that_is() {
    let with = Arc::new(Authenticator::new(
        auth(&[Scheme::Digest, Scheme::Basic], true),
        "h",
    ));
    let mut talk = talk(Some(&with));
    assert_eq!(told(&talk.first().await.unwrap()), BASIC);
    let answer = talk.answer(&asks(&[NONCE])).await.unwrap();
    assert_eq!(told(&answer), "Digest n1 00000001 a.example:443");
}

#[tokio::test]
async fn a_changed_password_is_read_once_more() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "new").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut spec = auth(&[Scheme::Basic], true);
    spec.login.as_mut().unwrap().password.source = Source::File(path.clone());
    let with = Arc::new(Authenticator::new(spec, "h"));
    let mut talk = talk(Some(&with));
    assert_eq!(told(&talk.first().await.unwrap()), BASIC);
    let answer = talk.answer(&asks(&["Basic"])).await.unwrap();
    assert_eq!(told(&answer), "Basic dXNlcjpuZXc=");
    let error = talk.answer(&asks(&["Basic"])).await.unwrap_err();
    assert!(matches!(error, AuthError::Rejected { .. }), "{error}");
    // All other requests have the new one, too.
    assert_eq!(with.login().unwrap().password.reveal(), "new");

    std::fs::remove_file(&path).unwrap();
    with.known().refused = None;
    let mut talk = self::talk(Some(&with));
    talk.first().await.unwrap();
    let error = talk.answer(&asks(&["Basic"])).await.unwrap_err();
    assert!(matches!(error, AuthError::Secret(_)), "{error}");
    assert!(!format!("{with:?}{error:?}").contains("hunter2"));
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_held_back_for_a_minute() {
    for preemptive in [true, false] {
        let with = Arc::new(Authenticator::new(auth(&[Scheme::Basic], preemptive), "h"));
        let basic = asks(&["Basic"]);
        let mut one = talk(Some(&with));
        if preemptive {
            one.first().await.unwrap();
        } else {
            one.answer(&basic).await.unwrap();
        }
        one.answer(&basic).await.unwrap_err();
        tokio::time::advance(Duration::from_secs(12)).await;
        let mut two = talk(Some(&with));
        assert!(two.first().await.is_none());
        let error = two.answer(&basic).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "it refused our credentials; unless they change, they are sent again by Basic in 48s"
        );
        tokio::time::advance(Duration::from_secs(48)).await;
        let mut three = talk(Some(&with));
        if preemptive {
            assert_eq!(three.first().await.unwrap().reveal(), BASIC);
        } else {
            assert_eq!(three.answer(&basic).await.unwrap().reveal(), BASIC);
        }
        // The upstream came to itself.
        three.accepted();
        assert_eq!(talk(Some(&with)).first().await.unwrap().reveal(), BASIC);
    }
}

#[tokio::test]
async fn many_that_are_refused_at_once_read_the_password_once() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut spec = auth(&[Scheme::Basic], true);
    let script = format!("echo run >> {}; sleep 0.2; echo new", log.display());
    let program = ["sh", "-c", &script].map(str::to_owned).to_vec();
    spec.login.as_mut().unwrap().password.source = Source::Command(program);
    let with = Arc::new(Authenticator::new(spec, "h"));
    let basic = asks(&["Basic"]);
    let mut talks: Vec<_> = (0..8).map(|_| talk(Some(&with))).collect();
    for talk in &mut talks {
        assert_eq!(talk.first().await.unwrap().reveal(), BASIC);
    }
    let refused = talks.iter_mut().map(|talk| async {
        let answer = talk.answer(&basic).await.unwrap();
        assert_eq!(told(&answer), "Basic dXNlcjpuZXc=");
    });
    futures_util::future::join_all(refused).await;
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "run\n");
}

#[tokio::test]
async fn the_answer_of_digest_is_that_of_the_rfc() {
    // RFC 7616, section 3.9.1, but for the method and the client's nonce.
    let mut spec = auth(&[Scheme::Digest], false);
    let login = spec.login.as_mut().unwrap();
    login.username.value = Secret::new("Mufasa");
    login.password.value = Secret::new("Circle of Life");
    let with = Arc::new(Authenticator::new(spec, "h"));
    for (algorithm, length) in [("MD5", 32), ("SHA-256", 64)] {
        let line = format!(
            "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm={algorithm}, \
             nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\""
        );
        let mut talk = Talk::new(
            Some(with.clone()),
            Method::GET,
            "/dir/index.html".to_owned(),
        );
        let answer = talk.answer(&asks(&[&line])).await.unwrap();
        let text = answer.reveal();
        let response = text.split("response=\"").nth(1).unwrap();
        assert_eq!(response.find('"'), Some(length), "{text}");
        assert!(
            text.contains("qop=auth,") && text.contains("opaque=\"FQhe"),
            "{text}"
        );
    }
}
