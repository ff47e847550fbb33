//! `routecause doctor`: what becomes of the request, on ways that stand.

mod support;

use std::io::Read as _;
use std::net::TcpStream;

use rustls::{ServerConnection, StreamOwned};
use serde_json::Value;
use support::origin::Origin;
use support::scene::{CONTROL, Scene, TARGET, good, pins, says, serve};
use support::web::{self, Ca, Web};
use support::{routecause, run, tls, wire};

/// The cause that the first piece of evidence names.
#[track_caller]
fn is_caused(told: &Value, cause: &str) {
    let evidence = told["verdict"]["evidence"][0].as_str().unwrap();
    assert!(evidence.contains(&format!(" {cause}: ")), "{told:#}");
}

/// What a server says on a connection.
type Talk = fn(TcpStream);

#[test]
fn a_plain_request_that_gets_no_answer_is_told_with_its_cause() {
    let talks: [(Talk, &str, &str, &str); 6] = [
        (
            |stream| {
                wire::read_head(&stream);
                wire::reset(stream);
            },
            "origin_does_not_answer",
            "strong",
            "http.reset_before_response",
        ),
        (
            |stream| {
                wire::read_head(&stream);
            },
            "origin_does_not_answer",
            "strong",
            "http.empty_reply",
        ),
        (
            |stream| {
                wire::read_head(&stream);
                wire::read_to_end(&stream);
            },
            "origin_does_not_answer",
            "medium",
            "http.response_timeout",
        ),
        (
            |stream| {
                wire::send(&stream, "220 mail.test ESMTP\r\n");
                wire::read_to_end(&stream);
            },
            "not_http",
            "strong",
            "http.malformed",
        ),
        // Nobody asked for that.
        (
            |stream| {
                wire::read_head(&stream);
                wire::send(
                    &stream,
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
                );
                wire::read_to_end(&stream);
            },
            "not_http",
            "strong",
            "http.malformed",
        ),
        (
            |stream| {
                wire::read_head(&stream);
                wire::send(
                    &stream,
                    format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(101)),
                );
                wire::read_to_end(&stream);
            },
            "head_too_large",
            "certain",
            "http.header_too_large",
        ),
    ];
    let scene = Scene::plain();
    for (talk, id, certainty, cause) in &talks {
        let told = scene.look_at("http", serve(*talk), "/");
        says(&told, id, certainty);
        is_caused(&told, cause);
        // The control was asked as the target is.
        let control = &told["facts"]["ways"][0]["controls"][0];
        assert_eq!(control["with"], CONTROL, "{told:#}");
        assert_eq!(control["cause"], Value::Null, "{told:#}");
    }
    let seen = scene.control.seen();
    assert_eq!(seen.len(), talks.len(), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.line == "HEAD /"), "{seen:?}");
}

#[test]
fn a_head_that_the_proxy_passes_on_is_not_too_large() {
    let port = serve(|stream| {
        wire::read_head(&stream);
        let field = "a".repeat(300 * 1024);
        wire::send(&stream, format!("HTTP/1.1 200 OK\r\nA: {field}\r\n\r\n"));
        wire::read_to_end(&stream);
    });
    says(
        &Scene::plain().look_at("http", port, "/"),
        "fine",
        "certain",
    );
}

#[test]
fn a_request_behind_a_handshake_is_judged_as_well() {
    let scene = Scene::new();
    let config = tls::server(&scene.ca.identity(tls::Leaf::Good, TARGET), tls::BOTH);
    let told = scene.look(serve(move |stream| tls::echo(&config, stream)));
    says(&told, "not_http", "strong");
    is_caused(&told, "http.malformed");
    // It ends, without the farewell of TLS.
    let identity = scene.ca.identity(tls::Leaf::Good, TARGET);
    let config = tls::server(&identity, tls::BOTH);
    let port = serve(move |stream| {
        let session = ServerConnection::new(config.clone()).unwrap();
        let _ = StreamOwned::new(session, stream).read(&mut [0; 4096]);
    });
    let told = scene.look(port);
    says(&told, "origin_does_not_answer", "strong");
    is_caused(&told, "http.empty_reply");
    let evidence = told["verdict"]["evidence"][0].as_str().unwrap();
    assert!(evidence.contains("close_notify"), "{told:#}");
    // It wants a certificate, and says so only behind the handshake.
    let identity = scene.ca.identity(tls::Leaf::Good, TARGET);
    let config = tls::server_for_members(&identity, &scene.ca, tls::BOTH);
    let port = serve(move |stream| {
        let _ = tls::answer_once(&config, stream);
    });
    let told = scene.look(port);
    says(&told, "server_configuration", "certain");
    is_caused(&told, "tls.alert_from_server.certificate_required");
}

#[test]
fn the_root_is_asked_for_unless_the_whole_url_is_to_be() {
    let mut scene = Scene::plain();
    let target = Web::plain(|request| {
        web::answer(
            match request.uri().path() {
                "/gone" => 404,
                "/closed" => 403,
                "/get-only" => 405,
                _ => 200,
            },
            "",
        )
    });
    let looks = [
        ("", "/", "fine"),
        ("?token=s3cret", "/?token=s3cret", "fine"),
        (
            "/a/b%20c?token=s3cret#part",
            "/a/b%20c?token=s3cret",
            "fine",
        ),
        ("/a b?c d", "/a%20b?c%20d", "fine"),
        ("/get-only", "/get-only", "fine"),
        ("/gone", "/gone", "origin_answers"),
        ("/closed?a", "/closed?a", "origin_answers"),
    ];
    for (path, _, _) in looks {
        let told = scene.look_at("http", target.port(), path);
        says(&told, "fine", "certain");
        assert_eq!(target.seen().last().unwrap().line, "HEAD /");
        assert_eq!(told["facts"]["path"], "/");
        assert_eq!(told["facts"]["wants_more"], !path.is_empty());
        assert!(!told.to_string().contains("s3cret"), "{told:#}");
    }
    scene.more.push("--full-url".to_owned());
    for (path, asked, id) in looks {
        let told = scene.look_at("http", target.port(), path);
        assert_eq!(told["verdict"]["id"], id, "{path}: {told:#}");
        assert_eq!(target.seen().last().unwrap().line, format!("HEAD {asked}"));
        assert_eq!(told["facts"]["path"], asked);
        assert_eq!(told["facts"]["wants_more"], false);
    }
    // Of a server that refuses its root nothing is known of what is wanted.
    let closed = Web::plain(|_| web::answer(403, ""));
    let scene = Scene::plain();
    for (path, id) in [("/", "origin_answers"), ("/a", "fine")] {
        let told = scene.look_at("http", closed.port(), path);
        assert_eq!(told["verdict"]["id"], id, "{path}: {told:#}");
    }
    // The same inside TLS.
    let mut scene = Scene::new();
    let target = good(&scene);
    for asked in ["/", "/a?b"] {
        scene.look_at("https", target.port(), "/a?b");
        let seen = target.seen();
        let line = format!("HEAD {asked}");
        assert_eq!(seen.last().unwrap().line, line, "{seen:?}");
        scene.more.push("--full-url".to_owned());
    }
}

#[test]
fn a_control_with_a_bad_certificate_shows_that_its_way_works() {
    let scene = Scene::beside(|_| Web::tls(&Ca::new(), &[CONTROL], |_| web::answer(200, "")));
    let told = scene.look(serve(|stream| {
        tls::read_record(&stream);
        wire::reset(stream);
    }));
    says(&told, "unexplained", "medium");
    let target = good(&scene);
    says(&scene.look(target.port()), "fine", "certain");
}

#[test]
fn a_control_that_a_guard_refuses_says_nothing_of_the_way() {
    let dns = format!("dns: {{hosts: {{{TARGET}: [127.0.0.1], {CONTROL}: [169.254.169.254]}}}}\n");
    let port = serve(|stream| {
        tls::read_record(&stream);
        wire::reset(stream);
    });
    let told = Scene::new().look_with(&dns, &format!("https://{TARGET}:{port}/"));
    says(&told, "unexplained", "medium");
    let controls = &told["facts"]["ways"][0]["controls"];
    assert_eq!(controls.as_array().unwrap().len(), 0, "{told:#}");
}

/// With an upstream that the policy chooses.
fn behind(mut scene: Scene, url: &str, credentials: Option<(&str, &str)>) -> Scene {
    let mut auth = "";
    if let Some((user, password)) = credentials {
        auth = ", auth: {username: {env: CORP_USER}, password: {env: CORP_PASSWORD}}";
        let variables = [("CORP_USER", user), ("CORP_PASSWORD", password)];
        scene
            .variables
            .extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    scene.upstreams = format!("upstreams: {{corp: {{url: '{url}'{auth}}}}}\n");
    scene.rules = String::from("default: {via: corp}");
    scene
}

#[test]
fn a_plain_request_goes_through_an_upstream_as_the_proxy_sends_it() {
    let target = Web::plain(|_| web::answer(200, ""));
    let upstream = Origin::serving(|stream| {
        let mut heard = wire::read_head(&stream);
        if wire::field(&heard, "proxy-authorization").is_none() {
            wire::send(
                &stream,
                "HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 9\r\n\r\n",
            );
            heard += &wire::read_head(&stream);
        }
        wire::send(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        heard
    });
    let url = format!("http://{}", upstream.address);
    let scene = behind(Scene::plain(), &url, Some(("me", "pa55w0rd")));
    let told = scene.look_at("http", target.port(), "/a");
    says(&told, "fine", "certain");
    // Who we are is said on the connection that was asked first, and from then on at once.
    for (name, port, path, count) in [
        (CONTROL, scene.control.port(), "/", 2),
        (TARGET, target.port(), "/", 1),
    ] {
        let heard = upstream.heard();
        let asked = format!("HEAD http://{name}:{port}{path} HTTP/1.1\r\n");
        assert_eq!(heard.matches(&asked).count(), count, "{heard}");
        assert!(heard.contains("Proxy-Authorization: Basic "), "{heard}");
    }
    // What it says in the origin's place it signs; else it may be the origin's.
    for (answer, id, certainty) in [
        (
            "403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0",
            "upstream_denies",
            "certain",
        ),
        (
            "429 Too Many\r\nProxy-Status: corp; error=http_request_error\r\nX-Squid-Error: ERR_BUSY 0",
            "upstream_fails",
            "certain",
        ),
        ("502 Bad Gateway", "upstream_fails", "strong"),
        ("403 Forbidden", "origin_answers", "medium"),
    ] {
        let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
        let upstream = Origin::answering(answer);
        let scene = Scene::plain().upstream(upstream.address, true);
        let told = scene.look_at("http", target.port(), "/a");
        says(&told, id, certainty);
    }
}

#[test]
fn credentials_that_an_upstream_refuses_are_not_called_missing() {
    let upstream = Origin::serving(|stream| {
        let head = wire::read_head(&stream);
        wire::send(
            &stream,
            "HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
        head
    });
    for (scene, scheme) in [(Scene::plain(), "http"), (Scene::new(), "https")] {
        let target = match scheme {
            "http" => Web::plain(|_| web::answer(200, "")),
            _ => good(&scene),
        };
        let url = format!("http://{}", upstream.address);
        let scene = behind(scene, &url, Some(("me", "pa55w0rd")));
        let told = scene.look_at(scheme, target.port(), "/");
        says(&told, "upstream_auth", "certain");
        is_caused(&told, "upstream.auth_rejected");
        assert_eq!(
            told["verdict"]["sentence"],
            "corp refuses the credentials that it gets"
        );
        assert!(!told.to_string().contains("pa55w0rd"), "{told:#}");
        let scene = behind(scene, &url, None);
        let told = scene.look_at(scheme, target.port(), "/");
        says(&told, "upstream_auth", "certain");
        is_caused(&told, "upstream.auth_required");
    }
}

#[test]
fn an_upstream_that_nobody_trusts_is_not_called_down() {
    let target = Web::plain(|_| web::answer(200, ""));
    let stranger = Ca::named("somebody else");
    let upstream = Web::tls(&stranger, &["localhost"], |_| web::answer(200, ""));
    let url = format!("https://localhost:{}", upstream.port());
    let scene = behind(Scene::plain(), &url, None);
    let told = scene.look_at("http", target.port(), "/");
    says(&told, "upstream_certificate", "certain");
    is_caused(&told, "upstream.tls.cert.unknown_issuer");
    // A proxy of plain HTTP is one with another scheme.
    let plain = serve(|stream| {
        tls::read_record(&stream);
        wire::send(&stream, "HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let url = format!("https://localhost:{plain}");
    let scene = behind(Scene::plain(), &url, None);
    let told = scene.look_at("http", target.port(), "/");
    says(&told, "not_a_forward_proxy", "certain");
}

#[test]
fn the_command_to_look_again_forgets_nothing() {
    let target = Web::plain(|_| web::answer(204, ""));
    let scene = Scene::plain();
    let policy = scene.policy(&pins("127.0.0.1"));
    let url = format!("http://me:s3cret@{TARGET}:{}/a?b=1&c", target.port());
    let portal = format!("http://127.0.0.1:{}/204", target.port());
    let whole = url.replace("me:s3cret", "…");
    let root = format!("http://…@{TARGET}:{}/", target.port());
    for (shown, flag) in [(root, ""), (format!("'{whole}'"), " --full-url")] {
        let (status, stdout, stderr) = run(routecause()
            .args(["doctor", &url, "--no-control"])
            .args([
                "--locate", "--portal", &portal, "--json", "--policy", &policy,
            ])
            .args(flag.split_whitespace()));
        assert!(status.success(), "{stdout}{stderr}");
        let told: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            told["recheck"],
            format!(
                "routecause doctor {shown}{flag} --locate --no-control --json --portal {portal} --policy {policy}"
            )
        );
    }
}

#[test]
fn nobody_is_said_to_be_asked_where_nobody_is() {
    for args in [
        &["ftp://files.example/"][..],
        &["http://files.example:99999/"],
        &[
            "http://files.example/",
            "--portal",
            "https://portal.example/",
        ],
        &[
            "http://files.example/",
            "--policy",
            "/nonexistent/policy.yaml",
        ],
    ] {
        let (status, stdout, stderr) = run(routecause().arg("doctor").args(args).env_remove("CI"));
        assert!(!status.success() && stdout.is_empty(), "{args:?}: {stdout}");
        assert!(!stderr.contains("asked as well"), "{args:?}: {stderr}");
    }
}

#[test]
fn the_proxy_that_variables_name_is_tried() {
    let proxy = Web::plain(|_| web::answer(200, ""));
    let look = |proxy: &str| {
        let mut command = routecause();
        command.args(["doctor", "env"]);
        for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"] {
            command.env(name, proxy);
        }
        run(&mut command)
    };
    let (status, stdout, stderr) = look(&format!("http://me:s3cret@{}", proxy.address));
    assert!(status.success(), "{stdout}{stderr}");
    assert!(
        stdout.contains(&format!(
            "{} takes connections\nnothing is wrong",
            proxy.address
        )),
        "{stdout}"
    );
    assert!(!stdout.contains("s3cret"), "{stdout}");
    // The doctor's own guards stand before nobody else's proxy.
    let (_, stdout, _) = look("http://[fe80::1]:3128");
    assert!(
        stdout.contains("[fe80::1]:3128 cannot be reached from this machine: connect."),
        "{stdout}"
    );
    let nowhere = Origin::nowhere();
    let (status, stdout, _) = look(&format!("http://me:s3cret@{nowhere}"));
    assert_eq!(status.code(), Some(1), "{stdout}");
    assert!(
        stdout.contains(&format!(
            "{nowhere} cannot be reached from this machine: connect.refused: "
        )),
        "{stdout}"
    );
    assert!(!stdout.contains("s3cret"), "{stdout}");
}
