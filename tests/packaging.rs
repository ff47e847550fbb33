//! What stands in `deploy/`, judged by the tools that it is for.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::docker::{target, told};
use support::{needs, routecause, run};

/// The Kubernetes releases whose schemas the chart's documents must fit: the oldest that it is for, and one of today.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A unit as it stands in the repository, but with the program of the tests.
fn unit(name: &str, folder: &Path) -> PathBuf {
    let text = fs::read_to_string(root().join("deploy/systemd").join(name)).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/routecause "), "{text}");
    let path = folder.join(Path::new(name).file_name().unwrap());
    fs::write(
        &path,
        text.replace("/usr/bin/routecause", env!("CARGO_BIN_EXE_routecause")),
    )
    .unwrap();
    path
}

#[test]
fn systemd_takes_the_units() {
    if !needs::has("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, manager) in [
        ("routecause.service", "--system"),
        ("user/routecause.service", "--user"),
    ] {
        let mut verify = Command::new("systemd-analyze");
        verify.args([manager, "verify", "--man=no"]);
        verify.env("XDG_RUNTIME_DIR", folder.path());
        verify.arg(unit(name, folder.path()));
        if manager == "--system" {
            verify.arg(root().join("deploy/systemd/routecause.socket"));
        }
        let (status, stdout, stderr) = run(&mut verify);
        assert!(
            status.success() && stderr.is_empty(),
            "{name}: {stdout}{stderr}"
        );
    }
}

/// As systemd does it, at the first connection.
#[test]
fn the_socket_is_taken_from_systemd() {
    if !needs::has("systemd-socket-activate") {
        return;
    }
    let unit = fs::read_to_string(root().join("deploy/systemd/routecause.socket")).unwrap();
    assert!(unit.contains("\nListenStream=127.0.0.1:3128\n"), "{unit}");
    let told = unit
        .lines()
        .find_map(|line| line.split_once("echo ")?.1.split_once(" >>"));
    let (variable, _) = told.unwrap();
    let address = support::origin::Origin::free();
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    fs::write(&policy, support::DIRECT).unwrap();
    let mut activate = Command::new("systemd-socket-activate");
    activate
        .args(["--listen", &address.to_string(), "--setenv", variable])
        .arg(env!("CARGO_BIN_EXE_routecause"))
        .args(["serve", "--admin", "off", "--policy"])
        .arg(&policy)
        .env("PATH", std::env::var("PATH").unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = activate.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(lines.any(|line| line.contains("Listening on")));
    let origin = support::origin::Origin::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let client = support::wire::connect(address);
    let request = format!(
        "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
        origin.address
    );
    support::wire::send(&client, request);
    let answer = support::wire::read_head(&client);
    // It has become the proxy.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let status = child.wait().unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    assert!(status.success(), "{status}");
}

#[test]
fn the_service_of_the_machine_is_exposed_to_little() {
    if !needs::has("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut security = Command::new("systemd-analyze");
    // In tenths; above it the command fails. What is left is what a proxy is for: sockets.
    security.args(["security", "--offline=true", "--threshold=13", "--no-pager"]);
    let (status, stdout, stderr) = run(security.arg(unit("routecause.service", folder.path())));
    assert!(status.success(), "{stdout}{stderr}");
}

/// What the chart makes of values.
struct Rendered {
    documents: Vec<Value>,
    unknown: Value,
    notes: String,
}

impl Rendered {
    /// The document of a kind and name.
    #[track_caller]
    fn of(&self, kind: &str, name: &str) -> &Value {
        let is_it =
            |document: &&Value| document["kind"] == kind && document["metadata"]["name"] == name;
        let found = self.documents.iter().find(is_it);
        found.unwrap_or_else(|| panic!("no {kind} {name} in {:#?}", self.documents))
    }

    fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self
            .documents
            .iter()
            .map(|document| document["kind"].as_str().unwrap())
            .collect();
        kinds.sort_unstable();
        kinds
    }
}

fn render(values: &Value) -> Result<Rendered, String> {
    let mut child = Command::new(target().join("judges/bin/python"))
        .arg(root().join("tests/support/chart.py"))
        .arg(root().join("deploy/helm/routecause"))
        .args(KUBERNETES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(values.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let mut told: Value = serde_json::from_slice(&output.stdout).unwrap();
    Ok(Rendered {
        documents: serde_json::from_value(told["documents"].take()).unwrap(),
        unknown: told["unknown"].take(),
        notes: told["notes"].as_str().unwrap().to_owned(),
    })
}

#[test]
fn the_chart_says_how_a_gateway_runs_drains_and_spreads() {
    if !needs::has("judges") {
        return;
    }
    let rendered = render(&json!({})).unwrap();
    assert_eq!(rendered.unknown, json!([]));
    assert_eq!(
        rendered.kinds(),
        [
            "ConfigMap",
            "Deployment",
            "HorizontalPodAutoscaler",
            "PodDisruptionBudget",
            "Service",
            "ServiceAccount"
        ]
    );
    let deployment = rendered.of("Deployment", "gate-routecause");
    assert_eq!(deployment["spec"]["replicas"], Value::Null);
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(
        container["image"],
        concat!("routecause:", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(container["lifecycle"]["preStop"]["sleep"]["seconds"], 5);
    assert_eq!(pod["terminationGracePeriodSeconds"], 5 + 120 + 10);
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(
        container["securityContext"]["capabilities"],
        json!({"drop": ["ALL"]})
    );
    assert_eq!(
        pod["topologySpreadConstraints"].as_array().unwrap().len(),
        2
    );
    let variable = |name: &str| {
        let env = container["env"].as_array().unwrap();
        env.iter()
            .find(|variable| variable["name"] == name)
            .unwrap()["value"]
            .as_str()
            .unwrap()
    };
    assert_eq!(variable("ROUTECAUSE_DRAIN_TIMEOUT"), "120s");
    // A folder: a file by itself (subPath) would never change.
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert!(
        mounts.iter().all(|mount| mount["subPath"].is_null()),
        "{mounts:?}"
    );
    assert!(
        rendered
            .notes
            .contains("http://gate-routecause.egress.svc:3128")
    );

    // The policy of the chart, with what the pod says beside it, is one that starts.
    let policy = rendered.of("ConfigMap", "gate-routecause-policy");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    fs::write(&file, policy["data"]["policy.yaml"].as_str().unwrap()).unwrap();
    let (status, stdout, stderr) = run(routecause().arg("check").arg(&file));
    assert!(status.success(), "{stdout}{stderr}");
}

#[test]
fn the_chart_shuts_namespaces_but_for_names_and_the_gateway() {
    if !needs::has("judges") {
        return;
    }
    let rendered = render(&json!({
        "policy": "version: 1\ndefault: {block: {reason: \"it's shut\"}}\n",
        "admin": {"tokenSecret": "admin"},
        "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
        "networkPolicy": {"from": {"egress": "gate"}, "enforce": ["build", "ci"]},
        "autoscaling": {"enabled": false},
        "replicas": 4,
        "secrets": ["corp"],
        "envFromSecrets": ["corp-login"],
        "env": {"HTTPS_PROXY": "http://proxy.corp.example:8080"},
        "caBundle": "corp-ca",
    }))
    .unwrap();
    // Its form is the Prometheus operator's, not Kubernetes' own.
    assert_eq!(rendered.unknown, json!(["ServiceMonitor"]));
    let own = json!({"app.kubernetes.io/name": "routecause", "app.kubernetes.io/instance": "gate"});
    let shut: Vec<_> = rendered
        .documents
        .iter()
        .filter(|document| document["metadata"]["name"] == "gate-routecause-egress")
        .collect();
    assert_eq!(shut.len(), 2);
    for (policy, namespace) in shut.iter().zip(["build", "ci"]) {
        assert_eq!(policy["metadata"]["namespace"], namespace);
        let spec = &policy["spec"];
        assert_eq!(spec["podSelector"], json!({}));
        assert_eq!(spec["policyTypes"], json!(["Egress"]));
        let ways = spec["egress"].as_array().unwrap();
        assert_eq!(ways.len(), 2);
        assert_eq!(
            ways[0]["ports"],
            json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}])
        );
        assert_eq!(ways[1]["ports"], json!([{"protocol": "TCP", "port": 3128}]));
        assert_eq!(ways[1]["to"][0]["podSelector"]["matchLabels"], own);
        assert_eq!(
            ways[1]["to"][0]["namespaceSelector"]["matchLabels"],
            json!({"kubernetes.io/metadata.name": "egress"})
        );
    }
    let clients = rendered.of("NetworkPolicy", "gate-routecause-clients");
    assert_eq!(
        clients["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"],
        json!({"egress": "gate"})
    );
    let told = rendered.of("ConfigMap", "gate-routecause-env");
    assert_eq!(
        told["data"]["https_proxy"],
        "http://gate-routecause.egress.svc:3128"
    );
    let monitor = rendered.of("ServiceMonitor", "gate-routecause");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(
        monitor["spec"]["endpoints"][0]["authorization"]["credentials"],
        json!({"name": "admin", "key": "token"})
    );
    let deployment = rendered.of("Deployment", "gate-routecause");
    assert_eq!(deployment["spec"]["replicas"], 4);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container["readinessProbe"]["httpGet"],
        json!({"path": "/readyz", "port": "admin"})
    );
    let policy = rendered.of("ConfigMap", "gate-routecause-policy");
    assert!(
        policy["data"]["policy.yaml"]
            .as_str()
            .unwrap()
            .contains("\"it's shut\"")
    );
}

#[test]
fn the_chart_refuses_what_it_does_not_know_and_what_cannot_work() {
    if !needs::has("judges") {
        return;
    }
    let refused = |values: Value, word: &str| {
        let told = render(&values)
            .err()
            .unwrap_or_else(|| panic!("{values} is taken"));
        assert!(told.contains(word), "{told}");
    };
    refused(json!({"replica": 3}), "replica");
    refused(json!({"allowFrom": []}), "allowFrom");
    refused(json!({"allowFrom": ["everyone"]}), "allowFrom");
    refused(
        json!({"serviceMonitor": {"enabled": true}}),
        "needs admin.tokenSecret",
    );
}

#[test]
fn the_swarm_takes_both_forms_of_the_stack() {
    if !needs::has("docker") {
        return;
    }
    let stack = |files: &[&str]| {
        let mut args = vec!["stack", "config"];
        for file in files {
            args.extend(["-c", file]);
        }
        told(&args)
    };
    let plain = stack(&["deploy/swarm/stack.yaml"]);
    assert!(
        plain.contains("endpoint_mode: dnsrr") && !plain.contains("published"),
        "{plain}"
    );
    let ingress = stack(&["deploy/swarm/stack.yaml", "deploy/swarm/stack-ingress.yaml"]);
    assert!(
        ingress.contains("endpoint_mode: vip") && ingress.contains("published: 3128"),
        "{ingress}"
    );
    assert!(ingress.contains("order: start-first"), "{ingress}");
}

#[test]
fn the_policies_beside_them_pass_their_tests() {
    for policy in ["deploy/compose/policy.yaml", "policies/container.yaml"] {
        let (status, stdout, stderr) = run(routecause().arg("check").arg(root().join(policy)));
        assert!(
            status.success() && stdout.contains("tests passed"),
            "{stdout}{stderr}"
        );
    }
}

/// A policy that refuses one name, and a folder with the program in it.
fn job() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let policy = "version: 1\nrules: [{name: no, match: {host: telemetry.test}, block: {}}]\ndefault: {direct: true}\n";
    fs::write(folder.path().join("egress.yaml"), policy).unwrap();
    std::os::unix::fs::symlink(
        env!("CARGO_BIN_EXE_routecause"),
        folder.path().join("routecause"),
    )
    .unwrap();
    folder
}

/// A YAML file, by what its readers would use.
fn yaml(path: &str) -> Value {
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let mut python = Command::new(target().join("judges/bin/python"));
    let (status, stdout, stderr) = run(python.args(["-c", script]).arg(root().join(path)));
    assert!(status.success(), "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

const REFUSED: &str = "curl -s http://telemetry.test/ > told; grep -q policy.denied.rule told";

#[test]
fn the_action_runs_its_command_behind_the_proxy_and_fails_where_it_is_told_to() {
    if !needs::has("judges") || !needs::has("curl") {
        return;
    }
    let action = yaml("deploy/ci/action.yml");
    let step = &action["runs"]["steps"][0];
    let job = job();
    let step_run = |fail_on: &str| {
        let mut bash = Command::new("bash");
        // As the runner starts it.
        bash.args([
            "--noprofile",
            "--norc",
            "-eo",
            "pipefail",
            "-c",
            step["run"].as_str().unwrap(),
        ]);
        bash.current_dir(job.path())
            .env("GITHUB_STEP_SUMMARY", job.path().join("summary.md"));
        let given = json!({"run": REFUSED, "policy": "egress.yaml", "fail-on": fail_on,
                           "routecause": env!("CARGO_BIN_EXE_routecause")});
        for (name, expression) in step["env"].as_object().unwrap() {
            let expression = expression.as_str().unwrap();
            let input = expression
                .strip_prefix("${{ inputs.")
                .and_then(|rest| rest.strip_suffix(" }}"))
                .unwrap();
            let value = given
                .get(input)
                .unwrap_or(&action["inputs"][input]["default"]);
            bash.env(name, value.as_str().unwrap());
        }
        run(&mut bash)
    };
    let (status, stdout, stderr) = step_run("");
    assert!(status.success(), "{stdout}{stderr}");
    let (status, stdout, stderr) = step_run("denied");
    assert_eq!(status.code(), Some(3), "{stdout}{stderr}");
    let summary = fs::read_to_string(job.path().join("summary.md")).unwrap();
    assert!(summary.contains("telemetry.test"), "{summary}");
    assert!(job.path().join("routecause-report/records.jsonl").exists());
}

#[test]
fn the_gitlab_job_runs_its_command_behind_the_proxy_and_keeps_the_report() {
    if !needs::has("judges") || !needs::has("curl") {
        return;
    }
    let template = yaml("deploy/ci/gitlab.yml")[".behind-routecause"].take();
    let job = job();
    let script = template["script"][0].as_str().unwrap();
    let mut bash = Command::new("bash");
    bash.args(["-ec", script]).current_dir(job.path());
    for (name, value) in template["variables"].as_object().unwrap() {
        bash.env(name, value.as_str().unwrap());
    }
    bash.env("COMMAND", REFUSED).env("POLICY", "egress.yaml");
    let path = std::env::var("PATH").unwrap();
    bash.env("PATH", format!("{}:{path}", job.path().display()));
    let (status, stdout, stderr) = run(&mut bash);
    assert_eq!(status.code(), Some(3), "{stdout}{stderr}");
    let junit = template["artifacts"]["reports"]["junit"].as_str().unwrap();
    let junit = fs::read_to_string(job.path().join(junit)).unwrap();
    assert!(junit.contains("telemetry.test"), "{junit}");
}

#[test]
fn the_package_brings_the_program_its_units_and_its_policies() {
    if !needs::has("judges")
        || !needs::has("dpkg-deb")
        || support::docker::static_binary().is_none()
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The judge does not know this edition, and needs not: nothing is built. What it names is where it was.
    let checkout = folder.path().join("checkout");
    fs::create_dir(&checkout).unwrap();
    for entry in fs::read_dir(root()).unwrap().map(Result::unwrap) {
        std::os::unix::fs::symlink(entry.path(), checkout.join(entry.file_name())).unwrap();
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    fs::remove_file(checkout.join("Cargo.toml")).unwrap();
    fs::write(
        checkout.join("Cargo.toml"),
        manifest.replace("edition = \"2024\"", "edition = \"2021\""),
    )
    .unwrap();
    let mut build = Command::new(target().join("judges/bin/cargo-deb"));
    build.args([
        "deb",
        "--fast",
        "--no-build",
        "--no-strip",
        "--manifest-path",
    ]);
    build
        .arg(checkout.join("Cargo.toml"))
        .env_remove("CARGO_TARGET_DIR");
    let package = folder.path().join("routecause.deb");
    let (status, stdout, stderr) =
        support::run_within(build.arg("--output").arg(&package), support::docker::BUILD);
    assert!(status.success(), "{stdout}{stderr}");
    let tree = folder.path().join("tree");
    let (status, _, stderr) = run(Command::new("dpkg-deb").arg("-R").arg(&package).arg(&tree));
    assert!(status.success(), "{stderr}");
    let control = fs::read_to_string(tree.join("DEBIAN/control")).unwrap();
    let version = concat!("Version: ", env!("CARGO_PKG_VERSION"));
    assert!(
        control.contains("Package: routecause\n") && control.contains(version),
        "{control}"
    );
    for file in [
        "usr/lib/systemd/system/routecause.service",
        "usr/lib/systemd/system/routecause.socket",
        "usr/lib/systemd/user/routecause.service",
        "usr/share/bash-completion/completions/routecause",
        "usr/share/man/man1/routecause.1.gz",
        "usr/share/man/man1/routecause-run.1.gz",
        "usr/share/doc/routecause/README.md",
        "usr/share/doc/routecause/copyright",
    ] {
        assert!(tree.join(file).is_file(), "{file} is missing");
    }
    // What it brings works by itself: the program, and the policies with what they include.
    let program = tree.join("usr/bin/routecause");
    let policies = tree.join("usr/share/doc/routecause/policies");
    for policy in ["default.yaml", "docker-build.yaml", "ci-egress.yaml"] {
        let mut check = Command::new(&program);
        check.env_clear().arg("check").arg(policies.join(policy));
        let (status, stdout, stderr) = run(&mut check);
        assert!(status.success(), "{policy}: {stdout}{stderr}");
    }
}
