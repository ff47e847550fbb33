use super::*;

fn remote(url: &str) -> Remote {
    Remote::parse(url).unwrap()
}

#[test]
fn urls_are_read_as_git_does() {
    let told = |url: &str| {
        Remote::parse(url)
            .map(|remote| format!("{:?} {} {}", remote.transport, remote.host, remote.port()))
    };
    assert_eq!(
        told("https://me:secret@Git.Example/a.git").unwrap(),
        "Http git.example 443"
    );
    assert_eq!(
        told("http://git.example:8080/a").unwrap(),
        "Http git.example 8080"
    );
    assert_eq!(
        told("git@git.example:a/b.git").unwrap(),
        "Ssh git.example 22"
    );
    assert_eq!(
        told("ssh://git@[2001:db8::1]:2222/a").unwrap(),
        "Ssh 2001:db8::1 2222"
    );
    assert_eq!(told("git://git.example/a").unwrap(), "Git git.example 9418");
    assert_eq!(told("../a:b"), None);
    assert_eq!(told("file:///a"), None);
}

/// The places that speak of a URL; `config` is `FILE KEY VALUE` lines, `matched` what git itself matches.
#[track_caller]
fn applies(
    url: &str,
    config: &str,
    matched: Option<&str>,
    variables: &[(&str, &str)],
    expected: &[&str],
) {
    let words = config.lines().flat_map(|line| {
        let mut words = line.trim().splitn(3, ' ').map(str::to_owned);
        let mut next = || words.next().unwrap_or_default();
        [
            format!("file:{}", next()),
            format!("{}\n{}", next(), next()),
        ]
    });
    let text = words.collect::<Vec<_>>().join("\0") + "\0";
    let get = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    };
    let entries = entries(&text);
    let remote = remote(url);
    let mut found = places(&entries, matched, Some("origin"), &remote, &get);
    if remote.transport != Transport::Http {
        found = commands(
            &entries,
            &remote,
            Some("user git\nproxycommand nc %h %p\nproxyjump none\n"),
            &get,
        );
    }
    let told: Vec<_> = found.iter().map(Place::told).collect();
    assert_eq!(told, expected);
    assert!(!format!("{found:?}").contains("me:secret"), "{found:?}");
}

#[test]
fn the_place_that_applies_comes_first() {
    let url = "https://git.example/a";
    let config = "/home/.gitconfig http.proxy http://me:secret@p:1\n.git/config remote.origin.proxy http://q:2\n.git/config remote.other.proxy http://r:3";
    applies(
        url,
        config,
        Some("http://me:secret@p:1"),
        &[
            ("HTTPS_PROXY", "http://e:4"),
            ("https_proxy", "http://e:5"),
            ("HTTP_PROXY", "http://e:6"),
        ],
        &[
            "remote.origin.proxy=http://q:2 (.git/config)",
            "http.proxy=http://…@p:1 (/home/.gitconfig)",
            "https_proxy=http://e:5 (environment)",
            "HTTPS_PROXY=http://e:4 (environment)",
        ],
    );
    // Upper case is not read for http; an empty value is an answer.
    applies(
        "http://git.example/a",
        "g http.http://git.example/.proxy ",
        Some(""),
        &[("HTTP_PROXY", "http://e:6")],
        &["http.http://git.example/.proxy=(nothing: no proxy) (g)"],
    );
    applies(
        url,
        "",
        None,
        &[("ALL_PROXY", "socks5h://s:1080")],
        &["ALL_PROXY=socks5h://s:1080 (environment)"],
    );
    applies(
        "git@git.example:a",
        "",
        None,
        &[("HTTPS_PROXY", "http://e:4")],
        &["proxycommand=nc %h %p (ssh -G)"],
    );
    applies(
        "git://git.example/a",
        "g core.gitproxy tunnel for example\ng core.gitproxy other for else",
        None,
        &[],
        &["core.gitproxy=tunnel for example (g)"],
    );
}

#[test]
fn no_proxy_is_read_for_proxies_of_the_settings_too() {
    let list = |name: &str| (name == "NO_PROXY").then_some("a.test,.example");
    assert_eq!(
        exempted(&remote("https://git.example/a"), &list).as_deref(),
        Some(".example")
    );
    assert_eq!(exempted(&remote("https://git.test/a"), &list), None);
}

#[track_caller]
fn says(
    url: &str,
    place: Option<(&str, &str)>,
    said: Option<&str>,
    network: Option<&str>,
    id: &str,
    part: &str,
) {
    let mut seen = Seen {
        url: url.to_owned(),
        remote: remote(url),
        places: place
            .map(|(name, value)| Place::new("f", name, value))
            .into_iter()
            .collect(),
        exempted: None,
        unused: None,
        said: said.map(str::to_owned),
    };
    if seen.remote.transport == Transport::Ssh && place.is_none() {
        seen.unused = Some(Place::new("environment", "https_proxy", "http://e:4"));
    }
    let network = network.map(|id| {
        Verdict::new(
            if id == "fine" { "fine" } else { "ip_blocking" },
            Certain,
            "nothing answers",
        )
    });
    let verdict = judge(&seen, network.as_ref());
    assert_eq!(verdict.id, id, "{verdict:?}");
    assert!(
        format!("{verdict:?}").contains(part),
        "{part} is not in {verdict:?}"
    );
}

#[test]
fn what_git_says_and_what_the_network_says_make_one_verdict() {
    let url = "https://git.example/a";
    let proxy = Some(("http.proxy", "http://p:1"));
    says(
        url,
        proxy,
        None,
        Some("fine"),
        "fine",
        "git goes by http.proxy=http://p:1",
    );
    says(
        url,
        Some(("http.proxy", "htp://p")),
        Some("fatal: unsupported proxy"),
        None,
        "proxy_unusable",
        "htp://",
    );
    says(
        url,
        None,
        Some("fatal: could not read Username for 'https://git.example': terminal prompts disabled"),
        Some("fine"),
        "git_credentials",
        "goes straight",
    );
    says(
        url,
        proxy,
        Some("fatal: repository 'https://git.example/a/' not found"),
        Some("fine"),
        "repository_missing",
        "rights",
    );
    says(
        url,
        proxy,
        Some("fatal: unable to access: Could not resolve host: not found"),
        Some("bad"),
        "ip_blocking",
        "git goes by http.proxy",
    );
    says(
        url,
        proxy,
        Some("fatal: strange"),
        Some("fine"),
        "unexplained",
        "GIT_TRACE",
    );
    says(
        "git@git.example:a",
        None,
        Some("ssh: connect to host: timed out"),
        Some("bad"),
        "goes_around_proxy",
        "ProxyCommand routecause connect --proxy http://e:4",
    );
    says(
        "git@git.example:a",
        None,
        Some("Host key verification failed."),
        Some("fine"),
        "ssh_host_key",
        "compare the key",
    );
}

#[test]
fn a_host_that_was_not_reached_has_said_nothing_of_a_repository() {
    let url = "https://git.example/a";
    // What is not found is no repository.
    says(
        "git@git.example:a",
        Some(("proxycommand", "nc %h %p")),
        Some("ssh: nc: not found\nfatal: Could not read from remote repository."),
        Some("fine"),
        "unexplained",
        "git says: ssh: nc: not found",
    );
    says(
        url,
        None,
        Some("fatal: repository 'https://git.example/a/' not found"),
        Some("bad"),
        "ip_blocking",
        "nothing answers",
    );
    for said in [
        "remote: Repository not found.\nfatal: repository 'https://git.example/a/' not found",
        "ERROR: Repository not found.\nfatal: Could not read from remote repository.\n\nPlease make sure",
        "fatal: '/a' does not appear to be a git repository\nfatal: Could not read from remote repository.",
        "fatal: remote error: access denied or repository not exported: /a",
    ] {
        says(
            url,
            None,
            Some(said),
            Some("fine"),
            "repository_missing",
            "",
        );
    }
}

#[test]
fn of_what_git_says_the_reason_is_quoted() {
    let wishes = "fatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.\n";
    for (said, expected) in [
        (
            "ssh: Could not resolve hostname a: Name or service not known",
            "ssh: Could not resolve hostname a: Name or service not known",
        ),
        (
            "git@a: Permission denied (publickey).",
            "git@a: Permission denied (publickey).",
        ),
    ] {
        assert_eq!(reason(&format!("{said}\n{wishes}")), expected);
    }
    assert_eq!(reason("warning: a\nfatal: b\nhint: c"), "fatal: b");
    assert_eq!(reason(""), "");
}
