//! The container image: what it says of itself, and that it serves as it is meant to run: without a writable file, without a
//! capability, as nobody.

mod support;

use std::net::SocketAddr;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::docker::{self, Container, asked, bridge, routecause_image, told};
use support::origin::Listening;
use support::{run, wire};

/// The proxy as careful people run it.
const CAREFUL: [&str; 6] = [
    "--read-only",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--network=bridge",
];

#[test]
fn the_image_is_one_file_for_nobody_and_says_what_it_is() {
    let Some(image) = routecause_image(docker::name("labels")) else {
        return;
    };
    let found = asked(&["image", "inspect", &image.0])[0].take();
    let config = &found["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/routecause"]));
    assert_eq!(
        config["Healthcheck"]["Test"],
        serde_json::json!(["CMD", "/routecause", "healthcheck", "--live"])
    );
    let labels = &config["Labels"];
    assert_eq!(labels["org.opencontainers.image.title"], "routecause");
    assert_eq!(labels["org.opencontainers.image.version"], "test");
    assert_eq!(
        labels["org.opencontainers.image.licenses"],
        env!("CARGO_PKG_LICENSE")
    );
    // What is in it: the binary and its policy, and what the Engine lays over every container.
    let container = told(&["create", &image.0]);
    let list = format!("docker export {container} | tar -t");
    let (status, stdout, stderr) = run(Command::new("sh").args(["-c", &list]));
    told(&["rm", &container]);
    assert!(status.success(), "{stderr}");
    let files: Vec<_> = stdout
        .lines()
        .filter(|line| !line.ends_with('/') && !line.starts_with("dev/"))
        .filter(|line| !["etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"].contains(line))
        .filter(|&line| line != ".dockerenv")
        .collect();
    assert_eq!(files, ["etc/routecause/policy.yaml", "routecause"]);
}

#[test]
fn the_image_serves_under_its_own_policy_and_drains() {
    let Some(image) = routecause_image(docker::name("serves")) else {
        return;
    };
    let args = [&CAREFUL[..], &[&image.0]].concat();
    let container = Container::run(&args);
    container.says(" listens on 0.0.0.0:3128");
    let pid = container.inspect()["State"]["Pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |key: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(key));
        found.unwrap().split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(line("Uid:"), ["65532"; 4]);
    assert_eq!(line("CapEff:"), ["0000000000000000"]);
    assert_eq!(line("NoNewPrivs:"), ["1"]);

    let (gateway, _) = bridge();
    let origin = Listening::on(SocketAddr::new(gateway, 0));
    let proxy = container.address();
    let client = wire::connect(proxy);
    wire::send(
        &client,
        format!(
            "GET http://{0}/answer HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
            origin.address
        ),
    );
    let (asked, heard) = origin.hear();
    assert!(heard.starts_with("GET /answer HTTP/1.1\r\n"), "{heard}");
    wire::send(&asked, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42");
    assert!(wire::read_text(&client).ends_with("\r\n\r\n42"));
    let record = container.record();
    support::check!(&record, "event.outcome": "success", "egress.route": "direct", "egress.rule": "default");

    // SIGTERM, as `docker stop` sends it: nobody new, and the tunnel that is open has its time.
    let tunnel = wire::connect(proxy);
    wire::send(
        &tunnel,
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address),
    );
    let far = origin.accept();
    assert_eq!(wire::status(&wire::read_head(&tunnel)), 200);
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGTERM).unwrap();
    container.says("drain");
    wire::send(&tunnel, "up");
    assert_eq!(wire::read_exact(&far, 2), b"up");
    wire::send(&far, "down");
    assert_eq!(wire::read_exact(&tunnel, 4), b"down");
    drop((tunnel, far));
    assert_eq!(container.exit_code(), 0);
    let record = container.record();
    support::check!(&record, "event.action": "connect", "event.outcome": "success", "source.bytes": 2, "destination.bytes": 4);
}

#[test]
fn the_image_takes_a_policy_that_is_mounted_and_says_what_is_wrong_with_it() {
    let Some(image) = routecause_image(docker::name("policy")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // Whoever runs in there is to read it.
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mount = format!("{}:/etc/routecause:ro", folder.path().display());
    let check = || {
        let args = [
            "run",
            "--rm",
            "--read-only",
            "-v",
            &mount,
            &image.0,
            "check",
        ];
        run(&mut docker::docker(&args))
    };
    let policy = folder.path().join("policy.yaml");
    std::fs::write(&policy, "version: 1\ndefault: {direkt: true}\n").unwrap();
    let (status, stdout, stderr) = check();
    assert_eq!(status.code(), Some(78), "{stdout}{stderr}");
    assert!(stderr.contains("policy.yaml:2"), "{stdout}{stderr}");
    assert!(stderr.contains("direct"), "{stdout}{stderr}");
    std::fs::write(&policy, "version: 1\ndefault: {block: {reason: nothing}}\n").unwrap();
    let (status, stdout, stderr) = check();
    assert!(status.success(), "{stdout}{stderr}");
}
