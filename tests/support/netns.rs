//! A network of the test's own: client, router and server, each a network namespace.
//!
//! ```text
//! client ─────────────── router ─────────────── server
//! 10.1.0.2               10.1.0.1    10.2.0.1   10.2.0.2, and every address of 10.3.0.0/16
//! 2001:db8:1::2          2001:db8:1::1          2001:db8:2::2, and every address of 2001:db8:3::/64
//!                        2001:db8:2::1
//! ```
//!
//! In each namespace the interface is called after what it leads to. Nothing of the machine's own network is touched.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use serde_json::Value;

use super::{Starting, needs, run};

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// The client's address.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// The router's address that faces the client.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The router's address that faces the client.
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// On the client's own link, and nobody.
pub const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 99);
/// On the server's link, and nobody: the router finds no neighbour there.
pub const NOBODY_BEHIND: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 99);

/// The hardware addresses from left to right: the router in user space sends to the outer ones.
const MACS: [&str; 4] = [
    "02:00:00:00:01:02",
    "02:00:00:00:01:01",
    "02:00:00:00:02:01",
    "02:00:00:00:02:02",
];

/// How many this process has made.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Three namespaces in a row. Dropped, they are gone.
#[derive(Debug)]
pub struct Net {
    /// Where the proxy runs.
    pub client: Space,
    /// Where the firewall is; it forwards, by the kernel, as long as no [`Router`] does.
    pub router: Space,
    /// Where the origins are. Every address that [`Net::address`] gives is here.
    pub server: Space,
    given: AtomicU32,
}

/// A network namespace.
#[derive(Debug)]
pub struct Space {
    /// Its name, for `ip netns`.
    pub name: String,
}

impl Net {
    /// Makes it; none where the machine cannot.
    pub fn new() -> Option<Self> {
        if !needs::has("netns") || !needs::has("iptables") || !needs::has("python3") {
            return None;
        }
        remove_leftovers();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let space = |role| Space {
            name: format!("rc-{}-{count}-{role}", std::process::id()),
        };
        // Before the first command, so that whatever fails is tidied up.
        let net = Self {
            client: space("client"),
            router: space("router"),
            server: space("server"),
            given: AtomicU32::new(0),
        };
        let script = include_str!("netns.sh");
        let mut command = Command::new("sh");
        command.args(["-euc", script, "netns.sh"]);
        command.args([&net.client.name, &net.router.name, &net.server.name]);
        command.args(MACS).env("PATH", path());
        succeed(&mut command);
        Some(net)
    }

    /// An address of the server's that nobody else was given.
    pub fn address(&self) -> IpAddr {
        let [.., high, low] = self.next().to_be_bytes();
        Ipv4Addr::new(10, 3, high, low).into()
    }

    /// The same, of IPv6.
    pub fn address6(&self) -> IpAddr {
        let [.., high, low] = self.next().to_be_bytes();
        let last = u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, last).into()
    }

    /// A router in user space takes over until it is dropped: so long one way, and what its rules say. See `router.py`.
    pub fn slowed(&self, one_way: Duration) -> Router<'_> {
        self.router.sysctl("net.ipv4.ip_forward", "0");
        self.router.sysctl("net.ipv6.conf.all.forwarding", "0");
        let mut child = self
            .router
            .command("python3")
            .args(["-c", include_str!("router.py")])
            .arg(one_way.as_millis().to_string())
            .args([MACS[0], MACS[3]])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let talk = Mutex::new((child.stdin.take().unwrap(), lines));
        let router = Router {
            net: self,
            child,
            talk,
        };
        heard(&mut router.talk.lock().unwrap().1, "ready");
        router
    }

    fn next(&self) -> u32 {
        self.given.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in [&self.client, &self.router, &self.server] {
            space.remove();
        }
    }
}

/// Lets this process and what it starts from now on go before the other work of the machine, where that is allowed: what
/// is measured is a path, not who else builds something.
pub fn be_punctual() {
    let this = std::process::id().to_string();
    let _ = run(Command::new("chrt")
        .args(["--all-tasks", "--rr", "--pid", "1", &this])
        .env("PATH", path()));
}

/// The router in user space.
#[derive(Debug)]
pub struct Router<'a> {
    net: &'a Net,
    child: Child,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Router<'_> {
    /// Adds a rule, which holds from now on.
    pub fn rule(&self, rule: &Value) {
        let mut talk = self.talk.lock().unwrap();
        writeln!(talk.0, "{rule}").unwrap();
        heard(&mut talk.1, "taken");
    }
}

impl Drop for Router<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.net.router.sysctl("net.ipv4.ip_forward", "1");
        self.net.router.sysctl("net.ipv6.conf.all.forwarding", "1");
    }
}

/// Waits for the router's next word.
fn heard(lines: &mut impl BufRead, word: &str) {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), word, "the router in user space has ended");
}

impl Space {
    /// Does some work on a thread in the namespace. Sockets made there stay in it, wherever they go; so do threads.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let there = thread::scope(|scope| {
            let there = scope.spawn(|| {
                let namespace = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            there.join()
        });
        there.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A command that will run in it. It becomes the program itself: a process id stays.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(needs::find("ip").unwrap());
        command
            .args(["netns", "exec", &self.name, program])
            .env("PATH", path());
        command
    }

    /// Runs a command line in it, split at blanks, which must go well; what it printed.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        succeed(self.command(words.next().unwrap()).args(words))
    }

    /// Runs iptables in it, as in `-A FORWARD -p tcp --dport 443 -j DROP`. A rule that looks for a text does so by `--algo kmp`:
    /// `bm` does not find what lies across two of the kernel's buffers (`lib/ts_bm.c`), as one name in a hundred does.
    #[track_caller]
    pub fn iptables(&self, rule: &str) {
        self.run(&format!("iptables -w {rule}"));
    }

    /// The same for IPv6.
    #[track_caller]
    pub fn ip6tables(&self, rule: &str) {
        self.run(&format!("ip6tables -w {rule}"));
    }

    /// Sets a kernel's variable of it, as in `net.ipv4.ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        self.within(|| fs::write(file, value).unwrap());
    }

    /// What `/etc/resolv.conf` says to programs that start in it from now on.
    pub fn resolv_conf(&self, text: &str) {
        fs::create_dir_all(self.etc()).unwrap();
        fs::write(self.etc().join("resolv.conf"), text).unwrap();
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    /// Kills whatever runs in it.
    fn end_all(&self) {
        let list = Command::new("ip")
            .args(["netns", "pids", &self.name])
            .env("PATH", path())
            .output();
        let list = String::from_utf8(list.map(|list| list.stdout).unwrap_or_default());
        for pid in list.unwrap_or_default().lines() {
            if let Ok(pid) = pid.parse() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Whatever is missing of it is gone already.
    fn remove(&self) {
        let _ = fs::remove_dir_all(self.etc());
        if Path::new("/run/netns").join(&self.name).exists() {
            let _ = run(Command::new("ip")
                .args(["netns", "delete", &self.name])
                .env("PATH", path()));
        }
    }
}

impl Starting {
    /// Lets it run in a namespace: its listener is there, so connect from there ([`Space::within`]).
    pub fn inside(mut self, space: &Space) -> Self {
        let program = self.command.get_program().to_str().unwrap().to_owned();
        let mut command = space.command(&program);
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(self.command.get_args());
        self.command = command;
        self
    }
}

/// Namespaces of a process that was killed before it could tidy up.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.map_while(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let owner = name
            .strip_prefix("rc-")
            .and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.and_then(|owner| owner.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new("/proc").join(owner.to_string()).exists() {
            let space = Space { name };
            space.end_all();
            space.remove();
        }
    }
}

/// Programs of the system are not everywhere in the path of whoever runs tests.
fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let (status, stdout, stderr) = run(command);
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout
}
