//! Three replicas on a swarm: their policy changes under load, one is killed, and nobody loses a tunnel that had time to end.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::docker::{
    self, BUILD, Container, asked, bridge, docker as engine, routecause_image, told,
};
use support::{debian, needs, run, run_within};

/// An update replaces three replicas, one after another, each of which is checked for its health and then drains.
const UPDATE: Duration = Duration::from_mins(3);

const REPLICAS: usize = 3;

/// Everything goes, but one name, whose refusal tells the policy's version.
fn policy(version: u8) -> String {
    format!(
        "version: 1\n\
         rules: [{{name: refused, match: {{host: refused.test}}, block: {{reason: 'by policy {version}'}}}}]\n\
         default: {{direct: true}}\n"
    )
}

#[test]
fn a_policy_changes_under_load_and_a_replica_dies_and_no_tunnel_is_lost_that_had_time() {
    if !["docker", "swarm"].into_iter().all(needs::has) || !debian::can_be_made() {
        return;
    }
    let Some(image) = routecause_image(docker::name("swarm")) else {
        return;
    };
    let client = debian::image(docker::name("swarm-client"));
    let (gateway, _) = bridge();
    let origin = echo(SocketAddr::new(gateway, 0));
    let swarm = Swarm::new(&image.0);
    swarm.deploy(1);
    swarm.wait_for_replicas();
    for told in swarm.refusals(&client.0) {
        assert!(told.contains("by policy 1"), "{told}");
    }

    // The policy's next version is a config's next version: every replica is replaced.
    let load = swarm.load(&client.0, origin);
    swarm.deploy(2);
    swarm.wait_for_update();
    let fared = end(&load);
    assert_eq!(fared["lost"], serde_json::json!([]), "{fared:#}");
    assert_eq!(fared["unserved"], serde_json::json!([]), "{fared:#}");
    assert!(fared["done"].as_u64() > Some(16), "{fared:#}");
    for told in swarm.refusals(&client.0) {
        assert!(told.contains("by policy 2"), "{told}");
    }

    // One is killed: what it carried is lost, and everybody else and the next ones are served.
    let load = swarm.load(&client.0, origin);
    let victim = swarm.replicas().remove(0);
    told(&["kill", "-s", "KILL", &victim]);
    swarm.wait_for_replicas();
    assert!(!swarm.replicas().contains(&victim));
    let fared = end(&load);
    assert_eq!(fared["unserved"], serde_json::json!([]), "{fared:#}");
    // Eight talk at a time.
    assert!(fared["lost"].as_array().unwrap().len() <= 8, "{fared:#}");
    assert!(fared["done"].as_u64() > Some(8), "{fared:#}");
}

/// Tells the clients to end: how their tunnels fared.
fn end(load: &Container) -> Value {
    told(&["kill", "-s", "TERM", &load.id]);
    serde_json::from_str(&load.says("\"done\"")).unwrap()
}

/// A server that gives back what it gets.
fn echo(address: SocketAddr) -> SocketAddr {
    let listener = std::net::TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut words = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut words) {
                    if stream.write_all(&words[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// This machine as a swarm of one, with the stack on it. Dropped, it is none any more.
struct Swarm {
    stack: String,
    image: String,
    folder: tempfile::TempDir,
    had_bridge: bool,
}

impl Swarm {
    fn new(image: &str) -> Self {
        let networks = told(&["network", "ls", "--format", "{{.Name}}"]);
        told(&[
            "swarm",
            "init",
            "--advertise-addr",
            "127.0.0.1",
            "--listen-addr",
            "127.0.0.1:0",
        ]);
        Self {
            stack: docker::name("gate"),
            image: image.to_owned(),
            folder: tempfile::tempdir().unwrap(),
            had_bridge: networks.lines().any(|name| name == "docker_gwbridge"),
        }
    }

    fn service(&self) -> String {
        format!("{}_proxy", self.stack)
    }

    fn network(&self) -> String {
        format!("{}_egress", self.stack)
    }

    /// Deploys the stack as it is shipped, under a version of the policy.
    fn deploy(&self, version: u8) {
        let file: PathBuf = self.folder.path().join(format!("policy-{version}.yaml"));
        fs::write(&file, policy(version)).unwrap();
        let stack = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/swarm/stack.yaml");
        let mut deploy = engine(&["stack", "deploy", "--resolve-image", "never", "-c"]);
        deploy
            .arg(stack)
            .arg(&self.stack)
            .env("ROUTECAUSE_IMAGE", &self.image)
            .env("POLICY", &file)
            .env(
                "POLICY_VERSION",
                format!("{}-{version}", std::process::id()),
            )
            .env("UPDATE_DELAY", "1s");
        let (status, stdout, stderr) = run_within(&mut deploy, BUILD);
        assert!(status.success(), "{stdout}{stderr}");
    }

    /// The containers that run.
    fn replicas(&self) -> Vec<String> {
        let label = format!("label=com.docker.swarm.service.name={}", self.service());
        let ids = told(&["ps", "-q", "--no-trunc", "--filter", &label]);
        ids.lines().map(str::to_owned).collect()
    }

    /// Waits until all replicas are there, as the swarm counts those that are well.
    fn wait_for_replicas(&self) {
        let all = format!("{REPLICAS}/{REPLICAS}");
        self.wait("all replicas", || {
            let filter = format!("name={}", self.service());
            told(&[
                "service",
                "ls",
                "--filter",
                &filter,
                "--format",
                "{{.Replicas}}",
            ]) == all
                && self.replicas().len() == REPLICAS
        });
    }

    /// Waits until the update that has begun has ended well.
    fn wait_for_update(&self) {
        self.wait("the end of the update", || {
            let state =
                asked(&["service", "inspect", &self.service()])[0]["UpdateStatus"]["State"].take();
            assert!(state != "paused" && state != "rollback_started", "{state}");
            state == "completed"
        });
        self.wait_for_replicas();
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + UPDATE;
        while !is_so() {
            if Instant::now() > deadline {
                let tasks = told(&["service", "ps", "--no-trunc", &self.service()]);
                panic!("waited in vain for {what}: {tasks}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What each replica says to a request that the policy refuses.
    fn refusals(&self, image: &str) -> Vec<String> {
        let script = "for a in $(getent ahostsv4 proxy | cut -d' ' -f1 | sort -u); do \
                      curl -s -x http://$a:3128 http://refused.test/ | tr '\\n' ' '; echo; done";
        let told = told(&[
            "run",
            "--rm",
            "--network",
            &self.network(),
            image,
            "sh",
            "-c",
            script,
        ]);
        let told: Vec<_> = told.lines().map(str::to_owned).collect();
        assert_eq!(told.len(), REPLICAS, "{told:#?}");
        told
    }

    /// Clients on the network, once all have had a tunnel.
    fn load(&self, image: &str, origin: SocketAddr) -> Container {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/support/load.py:/load.py:ro"
        );
        let (address, port) = (origin.ip().to_string(), origin.port().to_string());
        let network = self.network();
        let mut args = vec!["--network", &network, "-v", script, image];
        args.extend(["python3", "/load.py", "proxy", "3128", &address, &port]);
        let load = Container::run(&args);
        load.says("loaded");
        load
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        run(&mut engine(&["stack", "rm", &self.stack]));
        run(&mut engine(&["swarm", "leave", "--force"]));
        let label = format!("label=com.docker.stack.namespace={}", self.stack);
        let (_, left, _) = run(&mut engine(&["ps", "-aq", "--filter", &label]));
        for container in left.lines() {
            run(&mut engine(&["rm", "-f", container]));
        }
        if !self.had_bridge {
            run(&mut engine(&["network", "rm", "docker_gwbridge"]));
        }
    }
}
