//! What the doctor looks at: a target and a control of the test's own, and a policy that knows them.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use serde_json::Value;

use super::web::{self, Ca, Web};
use super::{routecause, run};

/// The name of what is looked at.
pub const TARGET: &str = "files.example";
/// The name of what works.
pub const CONTROL: &str = "control.example";

/// A network with a target and a control, each at an address of its own.
#[derive(Debug)]
pub struct Scene {
    /// Where the policy is written.
    pub folder: tempfile::TempDir,
    /// Whom the doctor trusts.
    pub ca: Ca,
    /// What works.
    pub control: Web,
    /// The policy's upstreams.
    pub upstreams: String,
    /// The policy's default.
    pub rules: String,
    /// Flags for the doctor.
    pub more: Vec<String>,
    /// Its environment.
    pub variables: Vec<(String, String)>,
}

impl Scene {
    /// One whose control speaks TLS.
    pub fn new() -> Self {
        Self::beside(|ca| Web::tls(ca, &[CONTROL], |_| web::answer(200, "")))
    }

    /// One whose control speaks plain HTTP.
    pub fn plain() -> Self {
        Self::beside(|_| Web::plain(|_| web::answer(200, "")))
    }

    /// One with a control of the test's own.
    pub fn beside(control: impl FnOnce(&Ca) -> Web) -> Self {
        let ca = Ca::new();
        Self {
            folder: tempfile::tempdir().unwrap(),
            control: control(&ca),
            ca,
            upstreams: String::new(),
            rules: "default: {direct: true}".to_owned(),
            more: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// With an upstream, which the policy chooses where `is_chosen`.
    pub fn upstream(mut self, address: SocketAddr, is_chosen: bool) -> Self {
        self.upstreams = format!("upstreams: {{corp: {{url: 'http://{address}'}}}}\n");
        if is_chosen {
            self.rules = String::from("default: {via: corp}");
        }
        self
    }

    /// With a flag for the doctor.
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.more.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// The doctor's verdict of the target, where name servers say this in the policy's `dns`.
    pub fn look_with(&self, dns: &str, target: &str) -> Value {
        let mut command = self.command(target, &self.policy(dns));
        command.arg("--json");
        let (_, stdout, stderr) = run(&mut command);
        serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"))
    }

    /// Writes the policy, and says where.
    pub fn policy(&self, dns: &str) -> String {
        let path = self.folder.path().join("policy.yaml");
        let policy = format!(
            "version: 1\n{dns}{}rules: []\n{}\n",
            self.upstreams, self.rules
        );
        fs::write(&path, policy).unwrap();
        path.display().to_string()
    }

    /// The doctor's command, as it is typed.
    pub fn command(&self, target: &str, policy: &str) -> Command {
        let mut command = routecause();
        command
            .args(["doctor", target, "--policy", policy])
            .args(["--control", &format!("{CONTROL}:{}", self.control.port())])
            .args(&self.more)
            .envs(self.variables.iter().cloned())
            .env("SSL_CERT_FILE", self.ca.file())
            .env("TERM", "dumb");
        command
    }

    /// The same, with the names pinned.
    pub fn look(&self, port: u16) -> Value {
        self.look_at("https", port, "/")
    }

    /// The same of another scheme and path.
    pub fn look_at(&self, scheme: &str, port: u16, path: &str) -> Value {
        let url = format!("{scheme}://{TARGET}:{port}{path}");
        self.look_with(&pins("127.0.0.1"), &url)
    }
}

/// The policy's `dns`, with the target's addresses and the control's.
pub fn pins(target: &str) -> String {
    format!("dns: {{hosts: {{{TARGET}: [{target}], {CONTROL}: [127.0.0.1]}}}}\n")
}

/// Names by name servers of the test: `(name in the policy, address)`.
pub fn servers(list: &[(&str, SocketAddr)]) -> String {
    let (first, _) = list[0];
    let servers: Vec<_> = list
        .iter()
        .map(|(name, at)| format!("{name}: {{udp: ['{at}']}}"))
        .collect();
    format!(
        "dns: {{default: {first}, hosts: {{{CONTROL}: [127.0.0.1]}}, servers: {{{}}}}}\n",
        servers.join(", ")
    )
}

/// Whether that is the verdict.
#[track_caller]
pub fn says(told: &Value, id: &str, certainty: &str) {
    let verdict = &told["verdict"];
    assert_eq!(
        (&verdict["id"], &verdict["certainty"]),
        (&id.into(), &certainty.into()),
        "{told:#}"
    );
    assert_eq!(told["schema"], "routecause.doctor/1");
    let evidence = verdict["evidence"].as_array().unwrap();
    assert!((1..=3).contains(&evidence.len()), "{told:#}");
}

/// Serves each connection on a thread of its own.
pub fn serve(talk: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let talk = talk.clone();
            thread::spawn(move || talk(stream));
        }
    });
    port
}

/// A target with which nothing is wrong.
pub fn good(scene: &Scene) -> Web {
    Web::tls(&scene.ca, &[TARGET], |_| web::answer(200, ""))
}
