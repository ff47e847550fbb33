//! The commands that help a person: settings of tools, replays, name servers compared.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::{Value, json};
use support::origin::Origin;
use support::{DIRECT, Proxy, check, needs, routecause, run};
use tempfile::TempDir;

/// Refuses everything, so that whatever comes by is seen and goes no further.
const CLOSED: &str =
    "version: 1\nrules: []\ndefault: {block: {reason: 'a test asks for nothing'}}\n";

fn env(home: &TempDir, args: &[&str]) -> Command {
    let mut command = routecause();
    command.arg("env").args(args);
    // Whatever leads to files of this machine's own user.
    for name in [
        "CARGO_HOME",
        "DOCKER_CONFIG",
        "GRADLE_USER_HOME",
        "XDG_CONFIG_HOME",
        "XDG_STATE_HOME",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", home.path());
    command
}

#[test]
fn a_shell_that_reads_the_settings_asks_the_proxy() {
    if !needs::has("curl") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(CLOSED);
    let (status, settings, stderr) = run(&mut env(
        &home,
        &["--proxy", &proxy.url(), "--no-proxy", "inside.test"],
    ));
    assert!(status.success(), "{stderr}");
    assert!(
        settings.contains("export NO_PROXY='localhost,127.0.0.1,::1,inside.test,.inside.test'")
            || settings
                .contains("export NO_PROXY=localhost,127.0.0.1,::1,inside.test,.inside.test"),
        "{settings}"
    );
    let script = format!(
        "{settings}\ncurl -s -o /dev/null http://outside.test/; curl -s -m 5 http://inside.test/; true"
    );
    run(Command::new("sh").args(["-c", &script]));
    let record = proxy.record();
    check!(&record, "server.address": "outside.test");
}

/// A tool whose file was written asks the proxy; then the file is what it was.
fn round_trip(tool: &str, file: &str, before: Option<&str>, fetch: impl Fn(&mut Command)) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if let Some(before) = before {
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let proxy = Proxy::start(CLOSED);
    let write = ["--for", tool, "--proxy", &proxy.url(), "--write"];
    let (status, _, stderr) = run(&mut env(&home, &write));
    assert!(status.success(), "{stderr}");
    // A second time would forget what it was.
    let (status, _, stderr) = run(&mut env(&home, &write));
    assert_eq!(status.code(), Some(1), "{stderr}");
    let mut command = Command::new("env");
    for (name, _) in std::env::vars() {
        let lower = name.to_lowercase();
        let is_setting = ["pip_", "npm_", "git_", "cargo_http", "xdg_"];
        if lower.ends_with("_proxy") || is_setting.iter().any(|prefix| lower.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .env("HOME", home.path())
        .env("CARGO_HOME", home.path().join(".cargo"))
        .current_dir(home.path());
    // The toolchain is not in the home of the test.
    let rustup = std::env::var("RUSTUP_HOME")
        .or_else(|_| Ok::<_, std::env::VarError>(format!("{}/.rustup", std::env::var("HOME")?)));
    command.env("RUSTUP_HOME", rustup.unwrap_or_default());
    fetch(&mut command);
    run(&mut command);
    let records = proxy.records(1);
    assert_eq!(records[0]["server.address"], "files.test", "{records:#?}");
    if before.is_some() {
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let (status, _, stderr) = run(&mut env(&home, &["--for", tool, "--undo"]));
    assert!(status.success(), "{stderr}");
    assert_eq!(fs::read_to_string(&path).ok().as_deref(), before);
    let (status, _, stderr) = run(&mut env(&home, &["--for", tool, "--undo"]));
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("nothing was written"), "{stderr}");
}

#[test]
fn git_asks_the_proxy_and_its_file_is_given_back() {
    if needs::has("git") {
        for before in [
            None,
            Some("[user]\n\tname = Me"),
            Some("[http]\n\tproxy = http://old:1\n"),
        ] {
            round_trip("git", ".gitconfig", before, |command| {
                command.args(["git", "ls-remote", "https://files.test/x"]);
            });
        }
    }
}

#[test]
fn pip_asks_the_proxy_and_its_file_is_given_back() {
    if needs::has("python3") {
        round_trip(
            "pip",
            ".config/pip/pip.conf",
            Some("[global]\ntimeout = 5\nproxy = http://old:1\n"),
            |command| {
                command.args([
                    "python3",
                    "-m",
                    "pip",
                    "download",
                    "--retries",
                    "0",
                    "--no-deps",
                ]);
                command.args(["--index-url", "https://files.test/simple/", "probe"]);
            },
        );
    }
}

#[test]
fn npm_asks_the_proxy_and_its_file_is_given_back() {
    if needs::has("node") && needs::has("npm") {
        round_trip("npm", ".npmrc", Some("fund=false\n"), |command| {
            command.args([
                "npm",
                "view",
                "probe",
                "--registry",
                "https://files.test/",
                "--fetch-retries",
                "0",
            ]);
        });
    }
}

#[test]
fn cargo_asks_the_proxy_and_its_file_is_given_back() {
    if needs::has("cargo") {
        round_trip(
            "cargo",
            ".cargo/config.toml",
            Some("[net]\nretry = 0\n"),
            |command| {
                let manifest = "[package]\nname = \"a\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[lib]\npath = \"a.rs\"\n[dependencies]\nb = {git = \"https://files.test/b\"}\n";
                // Where it is to run.
                let folder = command.get_current_dir().unwrap().to_owned();
                fs::write(folder.join("Cargo.toml"), manifest).unwrap();
                fs::write(folder.join("a.rs"), "").unwrap();
                command.args([env!("CARGO"), "fetch"]);
            },
        );
    }
}

#[test]
fn apt_asks_the_proxy() {
    if !needs::has("apt-get") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(CLOSED);
    let (_, settings, _) = run(&mut env(&home, &["--for", "apt", "--proxy", &proxy.url()]));
    let path = |name: &str| home.path().join(name).display().to_string();
    fs::write(path("apt.conf"), settings).unwrap();
    fs::write(
        path("sources.list"),
        "deb [trusted=yes] http://files.test/ ./\n",
    )
    .unwrap();
    fs::create_dir_all(path("lists/partial")).unwrap();
    let option = |name: &str, value: &str| format!("{name}={value}");
    run(Command::new("apt-get")
        .args(["-c", &path("apt.conf")])
        .args([
            "-o",
            &option("Dir::Etc::sourcelist", &path("sources.list")),
            "-o",
            "Dir::Etc::sourceparts=-",
            "-o",
            &option("Dir::State::lists", &path("lists")),
            "-o",
            "Acquire::Retries=0",
            "update",
        ]));
    assert_eq!(proxy.records(1)[0]["server.address"], "files.test");
}

#[test]
fn a_file_that_was_changed_since_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".npmrc");
    assert!(
        run(&mut env(&home, &["--for", "npm", "--write"]))
            .0
            .success()
    );
    fs::write(&file, "mine=1\n").unwrap();
    let (status, _, stderr) = run(&mut env(&home, &["--for", "npm", "--undo"]));
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("was changed since"), "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine=1\n");
}

#[test]
fn every_tool_has_settings_and_says_what_it_cannot_say() {
    let home = tempfile::tempdir().unwrap();
    for tool in [
        "sh",
        "fish",
        "powershell",
        "docker-build",
        "docker-client",
        "docker-daemon",
        "buildx",
        "compose",
        "systemd",
        "git",
        "ssh",
        "apt",
        "pip",
        "npm",
        "cargo",
        "go",
        "maven",
        "gradle",
        "jvm",
        "gitlab",
        "github",
        "kubernetes",
    ] {
        let (status, stdout, stderr) = run(&mut env(
            &home,
            &[
                "--for",
                tool,
                "--json",
                "--no-proxy",
                "2001:db8::/32,corp.example",
            ],
        ));
        assert!(status.success(), "{tool}: {stderr}");
        let told: Value = serde_json::from_str(&stdout).unwrap();
        check!(&told, "schema": "routecause.env/1", "for": tool);
        let settings = told["settings"].as_str().unwrap();
        assert!(settings.contains("3128"), "{tool}: {settings}");
    }
    let (_, stdout, _) = run(&mut env(&home, &["--for", "docker-build"]));
    assert!(stdout.starts_with("--add-host host.docker.internal:host-gateway --build-arg http_proxy=http://host.docker.internal:3128 "), "{stdout}");
    let (_, stdout, _) = run(&mut env(
        &home,
        &["--for", "gradle", "--no-proxy", "corp.example,10.0.0.0/8"],
    ));
    assert!(stdout.contains("systemProp.http.nonProxyHosts=localhost|127.0.0.1|[::1]|corp.example|*.corp.example|10.*\n"), "{stdout}");
    let (status, _, stderr) = run(&mut env(&home, &["--for", "go", "--write"]));
    assert_eq!(status.code(), Some(2), "{stderr}");
    let tls = ["--proxy", "https://proxy.corp.example:3129"];
    let (_, stdout, _) = run(&mut env(&home, &[&["--for", "pip"][..], &tls].concat()));
    assert_eq!(
        stdout,
        "[global]\nproxy = https://proxy.corp.example:3129\n"
    );
    let (status, _, stderr) = run(&mut env(&home, &[&["--for", "jvm"][..], &tls].concat()));
    assert_eq!(status.code(), Some(2), "{stderr}");
    // What the variable says is what `serve` does, whatever its policy says.
    let policy = home.path().join("policy.yaml").display().to_string();
    let listen = "version: 1\nserver: {listen: [{address: '127.0.0.1:3199'}]}\nrules: []\ndefault: {direct: true}\n";
    fs::write(&policy, listen).unwrap();
    for (listen, port) in [("127.0.0.1:8080", 8080), (":8080", 8080), ("", 3199)] {
        let mut command = env(&home, &["--policy", &policy, "--for", "pip"]);
        let (_, stdout, stderr) = run(command.env("ROUTECAUSE_LISTEN", listen));
        let expected = format!("[global]\nproxy = http://127.0.0.1:{port}\n");
        assert_eq!(stdout, expected, "{stderr}");
    }
    // A socket in the file system has no URL.
    let policy = home.path().join("policy.yaml").display().to_string();
    let listen = "version: 1\nserver: {listen: [{address: 'unix:/run/a.sock'}]}\nrules: []\ndefault: {direct: true}\n";
    fs::write(&policy, listen).unwrap();
    let (status, _, stderr) = run(&mut env(&home, &["--policy", &policy]));
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--proxy http://host:port"), "{stderr}");
}

#[test]
fn ssh_goes_by_every_kind_of_proxy_and_no_password_stands_in_its_file() {
    let home = tempfile::tempdir().unwrap();
    for (proxy, expected) in [
        (
            "http://p.test:3128",
            "connect --proxy http://p.test:3128 %h %p\n",
        ),
        (
            "https://p.test:3129/",
            "connect --proxy https://p.test:3129 %h %p\n",
        ),
        (
            "socks5h://[::1]:1080",
            "connect --proxy socks5h://[::1]:1080 %h %p\n",
        ),
        ("socks5://me:s3/cr@t@p.test:1080", "connect %h %p\n"),
    ] {
        let (status, stdout, stderr) = run(&mut env(&home, &["--for", "ssh", "--proxy", proxy]));
        assert!(status.success(), "{stderr}");
        assert!(stdout.ends_with(expected), "{proxy}: {stdout}");
        let note = "ROUTECAUSE_PROXY=socks5://USER:PASSWORD@p.test:1080";
        assert_eq!(stderr.contains(note), proxy.contains('@'), "{stderr}");
        assert!(!(stdout + &stderr).contains("s3"));
    }
    // A listener that asks is told by name as well.
    let policy = home.path().join("policy.yaml").display().to_string();
    fs::write(home.path().join("users.txt"), "alice:$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q\n").unwrap();
    fs::set_permissions(
        home.path().join("users.txt"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    fs::write(
        &policy,
        format!("{DIRECT}server: {{auth: {{users: users.txt}}}}\n"),
    )
    .unwrap();
    let (_, stdout, stderr) = run(&mut env(&home, &["--for", "ssh", "--policy", &policy]));
    assert!(stdout.ends_with("connect %h %p\n"), "{stdout}{stderr}");
    assert!(
        stderr.contains("ROUTECAUSE_PROXY=http://USER:PASSWORD@127.0.0.1:3128"),
        "{stderr}"
    );
    // Others are told nothing that they cannot use.
    for proxy in ["socks5://p.test:1080", "http://me:s3cret@p.test:1"] {
        let (status, _, stderr) = run(&mut env(&home, &["--proxy", proxy]));
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

#[test]
fn recorded_requests_are_decided_again_and_only_what_changes_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let record = |host: &str, route: Option<&str>, cause: Option<&str>| {
        json!({
            "schema": "routecause.record/1", "event.id": format!("id-{host}"),
            "event.outcome": if cause.is_some() { "failure" } else { "success" },
            "event.action": "connect", "client.address": "127.0.0.1",
            "server.address": host, "server.port": 443, "egress.route": route, "error.type": cause,
            "egress.rule": "old",
        })
        .to_string()
    };
    let lines = [
        record("same.test", Some("direct"), None),
        record("now-denied.test", Some("direct"), None),
        record("now-denied.test", Some("direct"), None),
        record("now-let.test", None, Some("policy.denied.default")),
        record("moved.test", Some("direct"), None),
        record("noise.test", Some("direct"), None),
        "{\"not\": \"a record\"}".to_owned(),
    ];
    fs::write(path("records.jsonl"), lines.join("\n")).unwrap();
    fs::write(path("new.yaml"), "version: 1\nupstreams: {corp: {url: 'http://127.0.0.1:9'}}\nrules:\n  - {name: no, match: {host: now-denied.test}, block: true}\n  - {name: there, match: {host: moved.test}, via: corp}\n  - {name: noise, match: {host: noise.test}, block: {code: expected}}\ndefault: {direct: true}\n").unwrap();
    let mut command = routecause();
    command.args([
        "check",
        &path("new.yaml"),
        "--against",
        &path("records.jsonl"),
    ]);
    let (status, stdout, stderr) = run(&mut command);
    assert!(status.success(), "{stderr}");
    assert!(stderr.contains("1 lines are no records"), "{stderr}");
    assert!(
        stdout.contains("5 of 6 recorded requests would go otherwise"),
        "{stdout}"
    );
    assert!(stdout.contains("direct → denied  2×  by no ("), "{stdout}");
    assert!(
        stdout.contains("denied → direct  1×  by default ("),
        "{stdout}"
    );
    assert!(stdout.contains("direct → corp  1×  by there ("), "{stdout}");
    assert!(
        stdout.contains("direct → denied  1×, expected  by noise ("),
        "{stdout}"
    );
    assert!(!stdout.contains("same.test"), "{stdout}");
    let (_, stdout, _) = run(command.arg("--json"));
    let told: Value = serde_json::from_str(&stdout).unwrap();
    check!(&told, "schema": "routecause.replay/1", "requests": 6, "changed": 5);
    let changes = told["changes"].as_array().unwrap();
    let expected = changes.iter().filter(|change| change["expected"] == true);
    let expected: Vec<_> = expected.map(|change| &change["target"]).collect();
    assert_eq!(expected, ["noise.test:443"]);
}

#[test]
fn each_name_server_says_what_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("p.yaml").display().to_string();
    let gone = Origin::nowhere();
    fs::write(&policy, format!("version: 1\ndns: {{default: far, servers: {{far: {{tcp: ['{gone}']}}}}, hosts: {{pinned.test: [192.0.2.7]}}}}\nrules: []\ndefault: {{direct: true}}\n")).unwrap();
    let mut command = routecause();
    command.args(["dns", "--policy", &policy, "--json", "pinned.test"]);
    let (status, stdout, stderr) = run(&mut command);
    assert!(status.success(), "{stderr}");
    let told: Value = serde_json::from_str(&stdout).unwrap();
    check!(&told, "schema": "routecause.dns/1", "chosen": "dns.hosts");
    assert_eq!(told["answers"][0]["addresses"], json!(["192.0.2.7"]));
    // Nobody is said to have answered who was not asked.
    assert_eq!(told["answers"].as_array().unwrap().len(), 1, "{told:#}");
    let (status, stdout, _) =
        run(routecause().args(["dns", "--policy", &policy, "--json", "localhost"]));
    assert!(status.success(), "{stdout}");
    let told: Value = serde_json::from_str(&stdout).unwrap();
    check!(&told, "chosen": "/etc/hosts");
    let (status, stdout, _) =
        run(routecause().args(["dns", "--policy", &policy, "--json", "files.test"]));
    assert!(!status.success(), "{stdout}");
    let told: Value = serde_json::from_str(&stdout).unwrap();
    check!(&told, "chosen": "far");
    assert_eq!(
        run(routecause().args(["dns", "127.0.0.1"])).0.code(),
        Some(2)
    );
}

#[test]
fn completions_and_the_manual_are_there() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, stdout, _) = run(routecause().args(["completions", shell]));
        assert!(status.success() && stdout.contains("explain"), "{shell}");
    }
    let (status, stdout, _) = run(routecause().arg("man"));
    assert!(
        status.success() && stdout.contains(".TH routecause"),
        "{stdout}"
    );
    let folder = tempfile::tempdir().unwrap();
    let (status, _, stderr) = run(routecause().arg("man").arg(folder.path()));
    assert!(status.success(), "{stderr}");
    assert!(folder.path().join("routecause-explain.1").exists());
}
