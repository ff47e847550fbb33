//! Processes beside the proxy that a test stops, kills and starts again, and what a process holds.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::origin::Origin;
use super::{Proxy, SOON, routecause};

/// A server in a process of its own, always at the same address. Dropped, it is killed.
#[derive(Debug)]
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    command: Command,
    child: Child,
}

impl Peer {
    /// Another proxy, under the policy in a file.
    pub fn proxy(policy: &Path) -> Self {
        let address = Origin::free();
        let mut command = routecause();
        command.arg("--policy").arg(policy);
        command.args(["--listen", &address.to_string(), "--admin", "off"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Self::start(address, command)
    }

    /// An origin; see `peer.py`.
    pub fn origin() -> Self {
        Self::script("origin")
    }

    /// A name server that knows every name as 127.0.0.1.
    pub fn names() -> Self {
        Self::script("names")
    }

    fn script(kind: &str) -> Self {
        let address = Origin::free();
        let mut command = Command::new("python3");
        command.arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/support/peer.py"
        ));
        command.args([kind, &address.ip().to_string(), &address.port().to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        Self::start(address, command)
    }

    fn start(address: SocketAddr, mut command: Command) -> Self {
        command.stdin(Stdio::null());
        let child = Self::spawn(&mut command);
        Self {
            address,
            command,
            child,
        }
    }

    /// Starts it, and waits until it has said that it listens.
    fn spawn(command: &mut Command) -> Child {
        let mut child = command.spawn().unwrap();
        let wait = |lines: &mut dyn Iterator<Item = std::io::Result<String>>| {
            let mut said = lines.map_while(Result::ok);
            assert!(
                said.any(|line| line == "ready" || line.contains(" listens on ")),
                "{command:?} does not listen"
            );
        };
        match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), _) => wait(&mut BufReader::new(stdout).lines()),
            (None, Some(stderr)) => {
                let mut lines = BufReader::new(stderr).lines();
                wait(&mut lines);
                // What it says later must not fill the pipe.
                std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
            }
            (None, None) => panic!("nothing of {command:?} can be read"),
        }
        child
    }

    /// It stands still: its connections stay, and the kernel goes on taking new ones for it.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// It is gone without a word, and so are its connections.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It is there again, after it was killed.
    pub fn restart(&mut self) {
        self.child = Self::spawn(&mut self.command);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has open and holds.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Memory that is there.
    pub resident_kib: usize,
}

impl Holdings {
    /// What a process holds now.
    pub fn of(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Self {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            threads: field("Threads:"),
            resident_kib: field("VmRSS:"),
        }
    }
}

impl Proxy {
    /// What it holds for good: kept connections end with their policy, so it gets this one first.
    pub fn at_rest(&self, policy: &str) -> Holdings {
        fs::write(&self.policy, policy).unwrap();
        self.signal(Signal::SIGHUP);
        let deadline = Instant::now() + SOON;
        let (mut last, mut quiet) = (Holdings::of(self.pid()), 0);
        // A reload may take a moment before it lets anything go.
        while quiet < 4 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(500));
            let now = Holdings::of(self.pid());
            quiet = if now.descriptors >= last.descriptors {
                quiet + 1
            } else {
                0
            };
            last = now;
        }
        last
    }
}
