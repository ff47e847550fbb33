//! What the black-box tests share: the proxy as its users run it, raw connections, origins on loopback, and what a test
//! needs of its machine.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod admin;
pub mod debian;
pub mod docker;
pub mod goods;
pub mod nameserver;
pub mod needs;
pub mod netns;
pub mod origin;
pub mod process;
pub mod scene;
pub mod schema;
pub mod squid;
pub mod strict;
pub mod tls;
pub mod web;
pub mod wire;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use argon2::password_hash::PasswordHasher as _;
use argon2::{Algorithm, Argon2, Params, Version};
use serde_json::Value;
use tempfile::TempDir;

/// What must happen happens within this; a test that waits longer fails.
pub const SOON: Duration = Duration::from_secs(10);

/// The policy of most tests: straight out, whatever it is.
pub const DIRECT: &str = "version: 1\nrules: []\ndefault: {direct: true}\n";

/// A running proxy. Dropped, it is killed.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// The file that its policy stands in.
    pub policy: PathBuf,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    _folder: TempDir,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Lines>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    records: Vec<Value>,
    diary: Vec<String>,
}

/// A proxy about to start.
#[derive(Debug)]
pub struct Starting {
    command: Command,
    policy: PathBuf,
    folder: TempDir,
    listens_as_written: bool,
}

/// A line of a file of users. Few rounds: the tests check no strength.
pub fn user(name: &str, password: &str) -> String {
    let params = Params::new(64, 1, 1, None).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password_with_salt(password.as_bytes(), b"saltsaltsalt");
    format!("{name}:{}\n", hash.unwrap())
}

/// The command, with nothing of this process's proxy settings in its environment.
pub fn routecause() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_routecause"));
    for (name, _) in std::env::vars() {
        let lower = name.to_lowercase();
        if lower.ends_with("_proxy") || lower.starts_with("routecause_") || lower == "rust_log" {
            command.env_remove(&name);
        }
    }
    command
        .env_remove("XDG_CONFIG_HOME")
        .env("HOME", "/nonexistent");
    command
}

impl Proxy {
    /// A proxy under `policy`, on a free port of 127.0.0.1.
    pub fn start(policy: &str) -> Self {
        Self::under(policy).start()
    }

    /// The same, with more to say about it.
    pub fn under(policy: &str) -> Starting {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        std::fs::write(&path, policy).unwrap();
        let mut command = routecause();
        command.arg("--policy").arg(&path);
        Starting {
            command,
            policy: path,
            folder,
            listens_as_written: false,
        }
    }

    /// A proxy under the policy in a file of the test's own.
    pub fn at(policy: &Path) -> Starting {
        let mut command = routecause();
        command.arg("--policy").arg(policy);
        Starting {
            command,
            policy: policy.to_owned(),
            folder: tempfile::tempdir().unwrap(),
            listens_as_written: false,
        }
    }

    /// A lab: its first record is what it says of itself.
    pub fn lab() -> Starting {
        Self::by(&["lab", "--json"])
    }

    /// What a command of another name starts.
    pub fn by(args: &[&str]) -> Starting {
        let folder = tempfile::tempdir().unwrap();
        let mut command = routecause();
        // What it leaves behind where it is killed goes with the test.
        command.args(args).env("TMPDIR", folder.path());
        Starting {
            command,
            policy: PathBuf::new(),
            folder,
            listens_as_written: false,
        }
    }

    /// A proxy under no policy file: the embedded one.
    pub fn embedded() -> Starting {
        Starting {
            command: routecause(),
            policy: PathBuf::new(),
            folder: tempfile::tempdir().unwrap(),
            listens_as_written: false,
        }
    }

    /// Its URL, for clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Puts another file of secrets in the place of one beside the policy, whole at once.
    pub fn replace(&self, name: &str, text: &str) {
        let new = self.policy.with_file_name("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(new, self.policy.with_file_name(name)).unwrap();
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        wire::connect(self.address)
    }

    /// Waits until there are `count` records, and takes them, in the order of their ends.
    pub fn records(&self, count: usize) -> Vec<Value> {
        let mut lines = self.wait(&format!("{count} records"), |lines| {
            lines.records.len() >= count
        });
        std::mem::take(&mut lines.records)
    }

    /// The same, but takes what there is where not all come soon.
    pub fn records_up_to(&self, count: usize) -> Vec<Value> {
        let lines = self.output.lines.lock().unwrap();
        let (mut lines, _) = self
            .output
            .arrived
            .wait_timeout_while(lines, SOON, |lines| lines.records.len() < count)
            .unwrap();
        std::mem::take(&mut lines.records)
    }

    /// Waits for one record and takes it; a second one fails the test.
    pub fn record(&self) -> Value {
        let mut records = self.records(1);
        assert_eq!(records.len(), 1, "{records:#?}");
        records.remove(0)
    }

    /// Waits for a line of the diary on stderr that contains `text`.
    pub fn diary(&self, text: &str) -> String {
        let has = |lines: &Lines| lines.diary.iter().any(|line| line.contains(text));
        let lines = self.wait(&format!("{text:?} on stderr"), has);
        lines
            .diary
            .iter()
            .find(|line| line.contains(text))
            .unwrap()
            .clone()
    }

    /// Waits until `count` lines of the diary contain `text`.
    pub fn diaries(&self, text: &str, count: usize) {
        let has = |lines: &Lines| {
            let found = lines.diary.iter().filter(|line| line.contains(text));
            found.count() >= count
        };
        drop(self.wait(&format!("{count} times {text:?} on stderr"), has));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Tells it to end, and waits until it has: its exit status and the records that nobody took.
    pub fn stop(mut self) -> (ExitStatus, Vec<Value>) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.ended()
    }

    /// The same: its whole diary and the records that nobody took.
    pub fn finish(mut self) -> (String, Vec<Value>) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let (_, records) = self.ended();
        let diary = self.output.lines.lock().unwrap().diary.join("\n");
        (diary, records)
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> (ExitStatus, Vec<Value>) {
        let deadline = Instant::now() + SOON;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                None => panic!("the proxy did not end"),
            }
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (
            status,
            std::mem::take(&mut self.output.lines.lock().unwrap().records),
        )
    }

    fn wait(
        &self,
        what: &str,
        is_there: impl Fn(&Lines) -> bool,
    ) -> std::sync::MutexGuard<'_, Lines> {
        let lines = self.output.lines.lock().unwrap();
        let (lines, timeout) = self
            .output
            .arrived
            .wait_timeout_while(lines, SOON, |lines| !is_there(lines))
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "waited in vain for {what}: {lines:#?}"
        );
        lines
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Starting {
    /// Adds a flag or argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds several.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Writes a file beside the policy.
    pub fn file(self, name: &str, text: &str) -> Self {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        self
    }

    /// Listens where the policy says, and not on the free port.
    pub fn listening_as_written(mut self) -> Self {
        self.listens_as_written = true;
        self
    }

    /// Lets another program start it, which becomes it: the proxy's command line follows its arguments.
    pub fn through(mut self, program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.arg(self.command.get_program());
        command.args(self.command.get_args());
        self.command = command;
        self
    }

    /// Starts it and waits until it listens. A `--listen` of its own comes before the free port.
    pub fn start(mut self) -> Proxy {
        if !self.listens_as_written && !self.command.get_args().any(|arg| arg == "--listen") {
            self.command.args(["--listen", "127.0.0.1:0"]);
        }
        let says_admin = self.command.get_args().any(|arg| arg == "--admin")
            || (self.command.get_envs())
                .any(|(name, value)| name == "ROUTECAUSE_ADMIN" && value.is_some());
        let is_lab = self
            .command
            .get_args()
            .next()
            .is_some_and(|arg| arg == "lab");
        if !says_admin && !is_lab {
            self.command.args(["--admin", "off"]);
        }
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let output = Arc::new(Output::default());
        let records = {
            let (output, stdout) = (output.clone(), child.stdout.take().unwrap());
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let record = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    output.lines.lock().unwrap().records.push(record);
                    output.arrived.notify_all();
                }
            })
        };
        let diary = {
            let (output, stderr) = (output.clone(), child.stderr.take().unwrap());
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    output.lines.lock().unwrap().diary.push(line);
                    output.arrived.notify_all();
                }
            })
        };
        let mut proxy = Proxy {
            child,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            policy: self.policy,
            output,
            readers: vec![records, diary],
            _folder: self.folder,
        };
        let line = proxy.diary(" listens on ");
        let address = line
            .split(" listens on ")
            .nth(1)
            .and_then(|rest| rest.split([',', ' ']).next());
        proxy.address = address.unwrap().parse().unwrap();
        proxy
    }
}

/// Runs a command to its end, within [`SOON`] tenfold: its status, what it printed, what it complained of.
pub fn run(command: &mut Command) -> (ExitStatus, String, String) {
    run_within(command, SOON * 10)
}

/// The same, for a command that may take longer.
pub fn run_within(command: &mut Command, limit: Duration) -> (ExitStatus, String, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut streams = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let stderr = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = streams.1.read_to_string(&mut text);
        text
    });
    let stdout = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = streams.0.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => {
                let _ = child.kill();
                panic!("{command:?} did not end: {}", stderr.join().unwrap());
            }
        }
    };
    (status, stdout.join().unwrap(), stderr.join().unwrap())
}

/// Compares keys of an object, such as a record, with what is expected of them.
#[allow(unused_macros, reason = "each test binary uses its part")]
macro_rules! check {
    ($object:expr, $($key:literal: $value:tt),+ $(,)?) => {
        $crate::support::compare($object, &[$(($key, serde_json::json!($value))),+])
    };
}
#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use check;

/// See [`check`].
#[track_caller]
pub fn compare(object: &Value, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        assert_eq!(&object[key], value, "{key} of {object:#}");
    }
}
