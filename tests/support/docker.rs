//! A Docker Engine for a test: its command, its bridge, containers and images that go when the test does.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;

use super::{SOON, needs, run, run_within};

/// Importing an image, and a build of one.
pub const BUILD: Duration = Duration::from_mins(5);

/// Docker's command, with its classic builder: the newer one is a part that not every client has.
pub fn docker(args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.env("DOCKER_BUILDKIT", "0").args(args);
    command
}

/// Runs Docker's command, which must go well; what it printed, without the last line's end.
#[track_caller]
pub fn told(args: &[&str]) -> String {
    let (status, stdout, stderr) = run_within(&mut docker(args), BUILD);
    assert!(status.success(), "docker {args:?}: {stdout}{stderr}");
    stdout.trim_end().to_owned()
}

/// Runs Docker's command, which prints JSON.
#[track_caller]
pub fn asked(args: &[&str]) -> Value {
    serde_json::from_str(&told(args)).unwrap()
}

/// The host's address on Docker's default bridge, and the network of its containers.
pub fn bridge() -> (IpAddr, IpNet) {
    let networks = asked(&["network", "inspect", "bridge"]);
    let config = &networks[0]["IPAM"]["Config"][0];
    let subnet: IpNet = config["Subnet"].as_str().unwrap().parse().unwrap();
    // Where no container ever ran the gateway may be left out: it is the first address.
    let gateway = config["Gateway"]
        .as_str()
        .map(|gateway| gateway.parse().unwrap());
    (
        gateway.unwrap_or_else(|| subnet.hosts().next().unwrap()),
        subnet,
    )
}

/// A name of the test's own for a thing of the Engine's.
pub fn name(what: &str) -> String {
    format!("routecause-test-{what}-{}", std::process::id())
}

/// An image that is removed with this.
#[derive(Debug)]
pub struct Image(pub String);

impl Drop for Image {
    fn drop(&mut self) {
        run(&mut docker(&["image", "rm", "-f", &self.0]));
    }
}

/// The image of `deploy/Dockerfile.prebuilt`. `None` where there is no Engine or no binary for it.
pub fn routecause_image(name: String) -> Option<Image> {
    if !needs::has("docker") {
        return None;
    }
    let binary = static_binary()?;
    let context = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["policies", "target/static"] {
        std::fs::create_dir_all(context.path().join(folder)).unwrap();
    }
    std::fs::copy(binary, context.path().join("target/static/routecause")).unwrap();
    let policy = "policies/container.yaml";
    std::fs::copy(root.join(policy), context.path().join(policy)).unwrap();
    let mut build = docker(&["build", "-q", "--build-arg", "VERSION=test", "-t", &name]);
    build
        .arg("-f")
        .arg(root.join("deploy/Dockerfile.prebuilt"))
        .arg(context.path());
    let (status, stdout, stderr) = run_within(&mut build, BUILD);
    assert!(status.success(), "{stdout}{stderr}");
    Some(Image(name))
}

/// What `deploy/static` made, if it is not older than the binary that the other tests run.
pub fn static_binary() -> Option<PathBuf> {
    let tested = Path::new(env!("CARGO_BIN_EXE_routecause"));
    let made_at = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    let binary = target().join("static/routecause");
    if made_at(&binary) >= made_at(tested) {
        return Some(binary);
    }
    let _ = needs::lacks("static binary");
    None
}

/// Cargo's folder for what it builds.
pub fn target() -> &'static Path {
    let tested = Path::new(env!("CARGO_BIN_EXE_routecause"));
    tested.ancestors().nth(2).unwrap()
}

/// A container that runs until this is dropped, which removes it.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    follower: Child,
    lines: mpsc::Receiver<String>,
}

impl Container {
    /// Starts one by `docker run -d` and what follows it.
    #[track_caller]
    pub fn run(args: &[&str]) -> Self {
        let id = told(&[&["run", "-d"], args].concat());
        let mut follower = Command::new("sh")
            .args(["-c", "exec docker logs -f \"$0\" 2>&1", &id])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = follower.stdout.take().unwrap();
        let (to, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = to.send(line);
            }
        });
        Self {
            id,
            follower,
            lines,
        }
    }

    /// What the Engine knows of it.
    pub fn inspect(&self) -> Value {
        asked(&["inspect", &self.id])[0].take()
    }

    /// The port 3128 of its address on the bridge.
    pub fn address(&self) -> SocketAddr {
        let found = self.inspect();
        let address = found["NetworkSettings"]["IPAddress"].as_str().unwrap();
        SocketAddr::new(address.parse().unwrap(), 3128)
    }

    /// Waits for a line of its output that contains `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        let mut heard = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => heard.push(line),
                Err(error) => panic!("waited in vain for {text:?}: {error}: {heard:#?}"),
            }
        }
    }

    /// Waits for its next record.
    #[track_caller]
    pub fn record(&self) -> Value {
        serde_json::from_str(&self.says("\"routecause.record/")).unwrap()
    }

    /// Waits until it has ended: its exit code.
    pub fn exit_code(&self) -> i32 {
        told(&["wait", &self.id]).parse().unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        run(&mut docker(&["rm", "-f", "-v", &self.id]));
        let _ = self.follower.kill();
        let _ = self.follower.wait();
    }
}
