//! A real squid, as the upstream of a test.

use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::origin::Origin;
use super::{SOON, needs};

/// The password of the user `alice`.
pub const PASSWORD: &str = "correct horse";

/// A squid of the test's own. Dropped, it is ended.
#[derive(Debug)]
pub struct Squid {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its files are.
    pub folder: TempDir,
}

impl Squid {
    /// Lets everyone pass.
    pub fn open() -> Self {
        Self::start("")
    }

    /// Asks for Basic credentials.
    pub fn guarded() -> Self {
        let helper = [
            "/usr/lib/squid/basic_ncsa_auth",
            "/usr/libexec/squid/basic_ncsa_auth",
        ];
        let helper = helper.iter().find(|path| Path::new(path).exists()).unwrap();
        Self::start(&format!(
            "auth_param basic program {helper} {{folder}}/users\n\
             auth_param basic children 1 startup=1 idle=1\n\
             acl known proxy_auth REQUIRED\n\
             http_access deny !known\n"
        ))
    }

    /// Starts one; again where somebody else took its port in between.
    pub fn start(access: &str) -> Self {
        let mut diaries = Vec::new();
        while diaries.len() < 5 {
            match Self::try_start(access) {
                Ok(squid) => return squid,
                Err(diary) => diaries.push(diary),
            }
        }
        panic!("{diaries:#?}");
    }

    /// Starts one on a port that is free now, and waits until it listens; else what it says of its failure.
    fn try_start(access: &str) -> Result<Self, String> {
        let nameserver = nameserver().unwrap_or(Ipv4Addr::LOCALHOST.into());
        let folder = tempfile::tempdir().unwrap();
        // Started as root, squid goes on as a user of its own.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let address = Origin::free();
        let path = folder.path().display();
        fs::write(
            folder.path().join("users"),
            format!("alice:{}\n", hashed(PASSWORD)),
        )
        .unwrap();
        // For the helper of Digest, which wants it at its start.
        fs::write(folder.path().join("digest"), format!("alice:{PASSWORD}\n")).unwrap();
        fs::write(
            folder.path().join("hosts"),
            "127.0.0.1 web.test denied.test\n",
        )
        .unwrap();
        let config = format!(
            "http_port {address}\n\
             visible_hostname squid.test\n\
             pid_filename {path}/squid.pid\n\
             access_log stdio:{path}/access.log\n\
             cache_log {path}/cache.log\n\
             coredump_dir {path}\n\
             hosts_file {path}/hosts\n\
             dns_nameservers {nameserver}\n\
             dns_timeout 1 second\n\
             connect_timeout 2 seconds\n\
             shutdown_lifetime 0 seconds\n\
             max_filedescriptors 1024\n\
             memory_cache_shared off\n\
             pinger_enable off\n\
             cache deny all\n\
             acl denied dstdomain denied.test\n\
             http_access deny denied\n\
             {}\
             http_access allow all\n",
            access.replace("{folder}", &path.to_string())
        );
        fs::write(folder.path().join("squid.conf"), config).unwrap();
        let child = Command::new(needs::find("squid").unwrap())
            .args(["-N", "-f"])
            .arg(folder.path().join("squid.conf"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut squid = Self {
            child,
            address,
            folder,
        };
        let deadline = Instant::now() + SOON;
        while !squid.diary().contains("Accepting HTTP Socket connections") {
            let is_running = squid.child.try_wait().unwrap().is_none();
            if !is_running || Instant::now() > deadline {
                return Err(squid.diary());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(squid)
    }

    pub fn diary(&self) -> String {
        fs::read_to_string(self.folder.path().join("cache.log")).unwrap_or_default()
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// A policy that sends everything through it.
    pub fn policy(&self, auth: &str) -> String {
        format!(
            "version: 1\n\
             upstreams: {{squid: {{url: 'http://{}'{auth}}}}}\n\
             default: {{via: squid}}\n",
            self.address
        )
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A name server that knows no name, where this process may be one: at port 53, which only root has.
fn nameserver() -> Option<IpAddr> {
    // Squid is told no port; an address of its own keeps the tests apart.
    let bind = |last| UdpSocket::bind((Ipv4Addr::new(127, 53, 0, last), 53));
    let socket = (1..255).find_map(|last| bind(last).ok())?;
    let address = socket.local_addr().ok()?.ip();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((len, peer)) = socket.recv_from(&mut query) {
            // An answer, recursion available: NXDOMAIN.
            (query[2], query[3]) = (0x81, 0x83);
            let _ = socket.send_to(&query[..len], peer);
        }
    });
    Some(address)
}

/// A password as squid's helper reads it.
fn hashed(password: &str) -> String {
    let output = Command::new("openssl")
        .args(["passwd", "-apr1", password])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
