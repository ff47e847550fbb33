//! The first use: `docker build` behind the proxy, for real. What apt, pip and curl fetch in it is recorded by name.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ipnet::IpNet;
use serde_json::{Value, json};
use support::debian;
use support::docker::{BUILD, Image, bridge, docker, routecause_image};
use support::web::{self, Ca, Web};
use support::{Proxy, check, goods, needs, routecause, run, run_within};

/// The servers of the test stand on loopback, which only loopback clients may reach unless the policy says so. What is
/// `filtered.test` is reset behind the ClientHello wherever it goes direct.
const POLICY: &str = "\
version: 1
guards: {loopback: allow}
dns: {hosts: {apt.test: [127.0.0.1], pip.test: [127.0.0.1], files.test: [127.0.0.1], filtered.test: [127.0.0.1]}}
upstreams: {second: {url: 'http://SECOND'}}
faults: {reset: {at: client_hello, do: reset}}
rules:
  - {name: packages, match: {host: [apt.test, pip.test]}, direct: true}
  - {name: files, match: {host: files.test}, direct: true}
  - {name: heals, match: {host: filtered.test}, fault: {profile: reset, hop: direct}, via: direct|second}
default: {block: {reason: 'not on the list of this build'}}
";

/// The same names, for who is asked next.
const SECOND: &str = "\
version: 1
dns: {hosts: {filtered.test: [127.0.0.1]}}
default: {direct: true}
";

#[test]
fn a_build_fetches_through_the_proxy_and_each_step_is_recorded() {
    if !is_ready() {
        return;
    }
    let scene = Scene::new("classic");
    let dockerfile = format!(
        "FROM {base}\n\
         LABEL {label}\n\
         COPY ca.pem /usr/local/share/ca-certificates/test.crt\n\
         RUN update-ca-certificates\n\
         RUN echo 'deb [trusted=yes] http://apt.test:{apt}/apt ./' > /etc/apt/sources.list\n\
         RUN apt-get -q update && apt-get -q install -y probe && test \"$(cat /usr/share/doc/probe/answer)\" = 42\n\
         RUN pip download -q --no-deps --no-cache-dir --disable-pip-version-check --dest /tmp \
             --cert /usr/local/share/ca-certificates/test.crt --index-url https://pip.test:{pip}/simple/ probe\n\
         RUN test \"$(curl -fsS http://files.test:{http}/answer)\" = 42\n\
         RUN test \"$(curl -fsS https://files.test:{https}/answer)\" = 42\n\
         RUN ! curl -fsS https://telemetry.test/ 2> /told && grep -q 403 /told\n",
        base = scene.base.0,
        label = scene.label,
        apt = scene.apt.port(),
        pip = scene.pip.port(),
        http = scene.http.port(),
        https = scene.https.port(),
    );
    scene.write(&dockerfile);
    let proxy = scene.proxy();
    let (status, stdout, stderr) = run_within(&mut scene.build("docker", "0", &proxy.url()), BUILD);
    assert!(status.success(), "{stdout}{stderr}");

    let (status, records) = proxy.stop();
    assert!(status.success());
    scene.is_all_from_containers(&records);
    let apt = scene.apt.port();
    expect(&records, "apt.test", apt, "forward", "packages");
    expect(
        &records,
        "pip.test",
        scene.pip.port(),
        "connect",
        "packages",
    );
    for (port, action) in [
        (scene.http.port(), "forward"),
        (scene.https.port(), "connect"),
    ] {
        expect(&records, "files.test", port, action, "files");
    }
    let by_apt = of(&records, "apt.test").into_iter().any(|record| {
        let agent = record["user_agent.original"].as_str().unwrap_or_default();
        agent.contains("APT") && record["http.response.status_code"] == 200
    });
    assert!(by_apt, "{records:#?}");
    is_denied_once(&records);
}

#[test]
fn buildkit_takes_the_authority_from_a_secret_a_registry_directly_and_a_filtered_name_by_the_second_way()
 {
    if !is_ready() {
        return;
    }
    let Some(client) = buildkit() else { return };
    let scene = Scene::new("buildkit");
    // Beside the build, on the host: what `NO_PROXY` is for.
    let registry = Web::plain_on(
        SocketAddr::new(scene.gateway, 0),
        web::folder(scene.files.path()),
    );
    let dockerfile = format!(
        "FROM {base}\n\
         RUN echo 'deb [trusted=yes] https://apt.test:{apt}/apt ./' > /etc/apt/sources.list\n\
         RUN --mount=type=secret,id=ca,mode=0444 apt-get -q -o Acquire::https::CAInfo=/run/secrets/ca update \
             && apt-get -q -o Acquire::https::CAInfo=/run/secrets/ca install -y probe\n\
         RUN --mount=type=secret,id=ca pip download -q --no-deps --no-cache-dir --disable-pip-version-check --dest /tmp \
             --cert /run/secrets/ca --index-url https://pip.test:{pip}/simple/ probe\n\
         RUN --mount=type=secret,id=ca curl -fsS --cacert /run/secrets/ca https://filtered.test:{https}/answer > /healed\n\
         RUN curl -fsS http://{gateway}:{registry}/answer > /registry\n\
         RUN ! curl -fsS https://telemetry.test/ 2> /told && grep -q 403 /told\n\
         RUN test \"$(cat /healed /registry)\" = 4242 && ! env | grep -i secret && test ! -s /run/secrets/ca\n",
        base = scene.base.0,
        apt = scene.apt_tls.port(),
        pip = scene.pip.port(),
        https = scene.https.port(),
        gateway = scene.gateway,
        registry = registry.port(),
    );
    scene.write(&dockerfile);
    let proxy = scene.proxy();
    let mut build = scene.build(&client, "1", &proxy.url());
    build.args(["--progress=plain", "--secret"]);
    build.arg(format!("id=ca,src={}", scene.ca.file().display()));
    for name in ["NO_PROXY", "no_proxy"] {
        build.args(["--build-arg", &format!("{name}={}", scene.gateway)]);
    }
    let (status, stdout, stderr) = run_within(&mut build, BUILD);
    assert!(status.success(), "{stdout}{stderr}");

    let (status, records) = proxy.stop();
    assert!(status.success());
    scene.is_all_from_containers(&records);
    expect(
        &records,
        "apt.test",
        scene.apt_tls.port(),
        "connect",
        "packages",
    );
    expect(
        &records,
        "pip.test",
        scene.pip.port(),
        "connect",
        "packages",
    );
    let healed = of(&records, "filtered.test");
    assert_eq!(healed.len(), 1, "{healed:#?}");
    check!(
        healed[0],
        "event.outcome": "success",
        "egress.rule": "heals",
        "egress.route": "direct|second",
        "egress.hop": "second",
        "http.request.resend_count": 1
    );
    let attempts = healed[0]["egress.attempts"].as_array().unwrap();
    assert_eq!(attempts[0]["cause"], "tls.reset_after_client_hello");
    assert_eq!(attempts[1]["cause"], Value::Null);
    is_denied_once(&records);
    let seen = registry.seen();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert!(scene.subnet.contains(&seen[0].peer.ip()), "{seen:#?}");
    assert!(of(&records, &scene.gateway.to_string()).is_empty());
}

#[test]
fn run_gives_a_build_what_it_needs_and_its_report_names_the_step_that_failed() {
    if !is_ready() {
        return;
    }
    let scene = Scene::new("run");
    let dockerfile = format!(
        "FROM {base}\nLABEL {label}\n\
         RUN test \"$(curl -fsS http://files.test:{http}/answer)\" = 42\n\
         RUN curl -fsS https://telemetry.test/\n",
        base = scene.base.0,
        label = scene.label,
        http = scene.http.port(),
    );
    scene.write(&dockerfile);
    let policy = scene.context.path().join("policy.yaml");
    fs::write(&policy, POLICY).unwrap();
    let report = tempfile::tempdir().unwrap();
    let mut command = routecause();
    command.env("DOCKER_BUILDKIT", "0").arg("run");
    command.arg("--policy").arg(&policy);
    command.arg("--report").arg(report.path());
    command.args([
        "--",
        "docker",
        "build",
        "--no-cache",
        "--force-rm",
        "-t",
        &scene.built.0,
    ]);
    let (status, stdout, stderr) = run_within(command.arg(scene.context.path()), BUILD);
    assert!(
        !status.success() && status.code() != Some(3),
        "{stdout}{stderr}"
    );
    let told = |what: &str| assert!(stderr.contains(what), "{what} is not in: {stdout}{stderr}");
    told("1 denied");
    told("telemetry.test:443");
    told("not on the list of this build");
    told(&format!("files.test:{}", scene.http.port()));
    let records = fs::read_to_string(report.path().join("records.jsonl")).unwrap();
    let records: Vec<Value> = records
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    scene.is_all_from_containers(&records);
    expect(
        &records,
        "files.test",
        scene.http.port(),
        "forward",
        "files",
    );
    is_denied_once(&records);
}

#[test]
fn run_gives_a_container_what_it_needs() {
    if !is_ready() {
        return;
    }
    let scene = Scene::new("container");
    let policy = scene.context.path().join("policy.yaml");
    fs::write(&policy, POLICY).unwrap();
    let report = tempfile::tempdir().unwrap();
    let mut command = routecause();
    command.arg("run").arg("--policy").arg(&policy);
    command.arg("--report").arg(report.path());
    command.args(["--", "docker", "run", "--rm", &scene.base.0, "curl", "-fsS"]);
    let url = format!("http://files.test:{}/answer", scene.http.port());
    let (status, stdout, stderr) = run_within(command.arg(url), BUILD);
    assert!(status.success() && stdout == "42", "{stdout}{stderr}");
    let records = fs::read_to_string(report.path().join("records.jsonl")).unwrap();
    let records = [serde_json::from_str::<Value>(records.trim()).unwrap()];
    scene.is_all_from_containers(&records);
    expect(
        &records,
        "files.test",
        scene.http.port(),
        "forward",
        "files",
    );
}

#[test]
fn compose_builds_by_the_proxy_and_an_application_has_no_other_way_out() {
    if !is_ready() || !needs::has("netns") {
        return;
    }
    let (Some(compose), Some(image)) = (
        compose(),
        routecause_image(support::docker::name("compose")),
    ) else {
        return;
    };
    let base = debian::image(support::docker::name("base-compose"));
    let (gateway, _) = bridge();
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join("answer"), "42").unwrap();
    let web = Web::plain_on(SocketAddr::new(gateway, 0), web::folder(files.path()));
    let policy = fs::read_to_string("deploy/compose/policy.yaml").unwrap();
    let policy = policy.replace(
        "rules:\n",
        &format!(
            "dns: {{hosts: {{files.test: ['{gateway}']}}}}\nrules:\n  - {{name: test, match: {{host: files.test}}, direct: true}}\n"
        ),
    );
    fs::write(files.path().join("policy.yaml"), policy).unwrap();
    let url = format!("http://files.test:{}/answer", web.port());
    let beyond = Beyond::new();
    let around = format!("http://{}/", Beyond::ADDRESS);
    // It can be reached from a network that is not shut.
    let curl = [
        "run",
        "--rm",
        "--network=bridge",
        &base.0,
        "curl",
        "-fsS",
        "-m",
        "5",
        &around,
    ];
    assert!(support::docker::told(&curl).contains("Directory listing"));
    let app = files.path().join("app");
    fs::create_dir(&app).unwrap();
    let dockerfile = format!(
        "FROM {}\nRUN test \"$(curl -fsS {url})\" = 42\n\
         CMD echo \"by the proxy $(curl -fsS {url})\"; curl -sS http://telemetry.test/ | head -n 1; \
         curl -sS -m 5 --noproxy '*' {around} || echo no way around\n",
        base.0
    );
    fs::write(app.join("Dockerfile"), dockerfile).unwrap();
    let project = Compose {
        program: compose,
        settings: vec![
            ("COMPOSE_PROJECT_NAME", support::docker::name("compose")),
            ("ROUTECAUSE_IMAGE", image.0.clone()),
            (
                "POLICY",
                files.path().join("policy.yaml").display().to_string(),
            ),
            ("APP", app.display().to_string()),
            (
                "PROXY_PORT",
                support::origin::Origin::free().port().to_string(),
            ),
        ],
    };
    // Whoever runs in there is to read it.
    fs::set_permissions(
        files.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    project.does(&["up", "-d", "egress"]);
    project.does(&["build", "--no-cache", "app"]);
    let printed = project.does(&["run", "--rm", "-T", "app"]);
    let lines: Vec<_> = printed.lines().map(str::trim_end).collect();
    let expected = [
        "by the proxy 42",
        "routecause: policy.denied.default",
        "no way around",
    ];
    assert_eq!(lines, expected);
    let records = project.does(&["logs", "--no-color", "egress"]);
    let records: Vec<Value> = records
        .lines()
        .filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok())
        .collect();
    assert_eq!(of(&records, "files.test").len(), 2, "{records:#?}");
    is_denied_once(&records);
    drop(beyond);
}

/// A server behind this machine, to which what leaves a container is forwarded.
struct Beyond {
    space: String,
    server: Child,
}

impl Beyond {
    /// Of the range for documents (RFC 5737).
    const ADDRESS: &str = "198.51.100.2";

    fn new() -> Self {
        let id = std::process::id();
        let (space, near, far) = (
            format!("rc-beyond-{id}"),
            format!("rcb{id}"),
            format!("rcf{id}"),
        );
        let script = format!(
            "set -e
             ip netns add {space}
             ip link add {near} type veth peer name {far} netns {space}
             ip addr add 198.51.100.1/30 dev {near}
             ip link set {near} up
             ip -n {space} addr add {}/30 dev {far}
             ip -n {space} link set {far} up
             ip -n {space} link set lo up",
            Self::ADDRESS
        );
        goods::succeed(Command::new("sh").args(["-c", &script]));
        let mut server = Command::new("ip")
            .args([
                "netns",
                "exec",
                &space,
                "python3",
                "-u",
                "-m",
                "http.server",
                "80",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("Serving"), "{line}");
        Self { space, server }
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        run(Command::new("ip").args(["netns", "del", &self.space]));
    }
}

/// A project of compose, which goes when the test does.
struct Compose {
    program: Vec<&'static str>,
    settings: Vec<(&'static str, String)>,
}

impl Compose {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program[0]);
        command
            .args(&self.program[1..])
            .args(["-f", "deploy/compose/compose.yaml"])
            .args(args);
        command
            .env("DOCKER_BUILDKIT", "0")
            .env("COMPOSE_DOCKER_CLI_BUILD", "0");
        for (name, value) in &self.settings {
            command.env(name, value);
        }
        command
    }

    #[track_caller]
    fn does(&self, args: &[&str]) -> String {
        let (status, stdout, stderr) = run_within(&mut self.command(args), BUILD);
        assert!(status.success(), "{args:?}: {stdout}{stderr}");
        stdout
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let down = [
            "down",
            "--volumes",
            "--remove-orphans",
            "--rmi",
            "local",
            "--timeout",
            "1",
        ];
        run_within(&mut self.command(&down), BUILD);
    }
}

/// Compose: a plugin of the client's, or a program.
fn compose() -> Option<Vec<&'static str>> {
    let (status, ..) = run(Command::new("docker").args(["compose", "version"]));
    if status.success() {
        return Some(vec!["docker", "compose"]);
    }
    needs::has("docker-compose").then(|| vec!["docker-compose"])
}

/// Servers, an image and a folder for one build.
struct Scene {
    gateway: IpAddr,
    subnet: IpNet,
    files: tempfile::TempDir,
    context: tempfile::TempDir,
    ca: Ca,
    apt: Web,
    apt_tls: Web,
    pip: Web,
    http: Web,
    https: Web,
    second: Proxy,
    label: String,
    base: Image,
    built: Image,
}

impl Scene {
    fn new(name: &str) -> Self {
        let (gateway, subnet) = bridge();
        let files = tempfile::tempdir().unwrap();
        goods::apt_repository(files.path());
        goods::python_index(files.path());
        fs::write(files.path().join("answer"), "42").unwrap();
        let ca = Ca::new();
        let serve = || web::folder(files.path());
        let base = debian::image(support::docker::name(&format!("base-{name}")));
        Self {
            gateway,
            subnet,
            context: tempfile::tempdir().unwrap(),
            apt: Web::plain(serve()),
            apt_tls: Web::tls(&ca, &["apt.test"], serve()),
            pip: Web::tls(&ca, &["pip.test"], serve()),
            http: Web::plain(serve()),
            https: Web::tls(&ca, &["files.test", "filtered.test"], serve()),
            second: Proxy::start(SECOND),
            label: format!("routecause.test={name}-{}", std::process::id()),
            base,
            built: Image(support::docker::name(&format!("built-{name}"))),
            files,
            ca,
        }
    }

    fn write(&self, dockerfile: &str) {
        let folder = self.context.path();
        fs::copy(self.ca.file(), folder.join("ca.pem")).unwrap();
        fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
    }

    /// On the bridge, for containers.
    fn proxy(&self) -> Proxy {
        let second = self.second.address.to_string();
        Proxy::under(&POLICY.replace("SECOND", &second))
            .arg("--listen")
            .arg(&format!("{}:0", self.gateway))
            .arg("--allow-from")
            .arg(&self.subnet.to_string())
            .start()
    }

    fn build(&self, client: &str, buildkit: &str, proxy: &str) -> Command {
        let mut build = Command::new(client);
        build.env("DOCKER_BUILDKIT", buildkit);
        build.args(["build", "--no-cache", "--force-rm", "-t", &self.built.0]);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            build.args(["--build-arg", &format!("{name}={proxy}")]);
        }
        build.arg(self.context.path());
        build
    }

    fn is_all_from_containers(&self, records: &[Value]) {
        for record in records {
            let client: IpAddr = record["client.address"].as_str().unwrap().parse().unwrap();
            assert!(
                self.subnet.contains(&client) && client != self.gateway,
                "{record:#}"
            );
        }
    }
}

impl Drop for Scene {
    /// What the classic builder left of its steps.
    fn drop(&mut self) {
        let label = format!("label={}", self.label);
        run(&mut docker(&[
            "container",
            "prune",
            "-f",
            "--filter",
            &label,
        ]));
        run(&mut docker(&["image", "prune", "-f", "--filter", &label]));
    }
}

/// The records of a host.
fn of<'r>(records: &'r [Value], host: &str) -> Vec<&'r Value> {
    let is_of = |record: &&Value| record["server.address"] == host;
    records.iter().filter(is_of).collect()
}

/// Looks for a request that went well. Among what apt asks for is also what is not there.
#[track_caller]
fn expect(records: &[Value], host: &str, port: u16, action: &str, rule: &str) {
    let passed = json!({
        "server.port": port,
        "event.action": action,
        "event.outcome": "success",
        "egress.rule": rule,
        "egress.route": "direct",
    });
    let is_it = |record: &&Value| {
        let mut expected = passed.as_object().unwrap().iter();
        expected.all(|(key, value)| &record[key] == value)
    };
    let found = of(records, host).into_iter().find(is_it);
    let record = found.unwrap_or_else(|| panic!("no {passed} of {host} in {records:#?}"));
    assert!(
        record["destination.bytes"].as_u64().unwrap() > 0,
        "{record:#}"
    );
}

#[track_caller]
fn is_denied_once(records: &[Value]) {
    let denied = of(records, "telemetry.test");
    assert_eq!(denied.len(), 1, "{denied:#?}");
    check!(denied[0], "error.type": "policy.denied.default", "http.response.status_code": 403);
}

/// Whether the test can run here.
fn is_ready() -> bool {
    let programs = ["docker", "dpkg-deb", "python3"];
    programs.into_iter().all(needs::has) && debian::can_be_made()
}

/// A client of Docker's that can speak to the newer builder: by the plugin, or an older one, which has it built in.
fn buildkit() -> Option<String> {
    let (status, ..) = run(Command::new("docker").args(["buildx", "version"]));
    if status.success() {
        return Some("docker".to_owned());
    }
    let has_it = |client: &&str| {
        Path::new(client).exists() && {
            let (_, version, _) = run(Command::new(client).arg("--version"));
            version.starts_with("Docker version 20.")
        }
    };
    let found = ["/usr/bin/docker", "/usr/local/bin/docker"]
        .into_iter()
        .find(has_it);
    if found.is_none() {
        let _ = needs::lacks("buildkit");
    }
    found.map(str::to_owned)
}
