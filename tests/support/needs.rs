//! What a test needs of its machine, found out when it runs.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Whether the machine has what a test needs. Where it has not, the test says so and is skipped; with the need's name in
/// `ROUTECAUSE_TEST_REQUIRE`, that is a failure.
#[must_use]
pub fn has(need: &str) -> bool {
    let is_there = match need {
        "docker" => succeeds("docker", &["info"]),
        // Root of a container may not make one.
        "netns" => is_installed("ip") && succeeds("unshare", &["--net", "--mount", "true"]),
        // Since Linux 5.8, and not where parts of /proc are covered.
        "proc-subset" => {
            let mount = [
                "--mount",
                "mount",
                "-t",
                "proc",
                "-o",
                "subset=pid",
                "proc",
                "/proc",
            ];
            succeeds("unshare", &mount)
        }
        // What reads charts and manifests: see .ci/run.
        "judges" => super::docker::target().join("judges/bin/python").exists(),
        // A test makes one of its own, which a machine that is in one already cannot.
        "swarm" => says(
            "docker",
            &["info", "--format", "{{.Swarm.LocalNodeState}}"],
            "inactive",
        ),
        "squid" => is_installed("squid"),
        "network" => own_address().is_some(),
        // A module of Python's.
        module if module.starts_with("python-") => {
            let module = module.trim_start_matches("python-");
            succeeds("python3", &["-c", &format!("import {module}")])
        }
        program => is_installed(program),
    };
    is_there || lacks(need)
}

/// Whether Python has a module; `need` is what it is called where it is required.
#[must_use]
pub fn has_python(module: &str, need: &str) -> bool {
    is_installed("python3") && succeeds("python3", &["-c", &format!("import {module}")])
        || lacks(need)
}

/// Says that a need is not met: `false`, or a failure where it is required.
#[must_use]
pub fn lacks(need: &str) -> bool {
    let required = std::env::var("ROUTECAUSE_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|required| required.trim() == need),
        "{need} is required and is not here"
    );
    // Not by `println!`, which a test that passes keeps to itself.
    let _ = writeln!(std::io::stderr(), "skipped: needs {need}");
    false
}

/// Whether a program can be found, in the places of the system's own programs as well.
pub fn is_installed(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// An address of this machine beside loopback.
pub fn own_address() -> Option<std::net::Ipv4Addr> {
    let table = std::fs::read_to_string("/proc/net/fib_trie").ok()?;
    let lines: Vec<_> = table.lines().collect();
    let local = lines.windows(2).filter_map(|pair| {
        let address = pair[0].trim().strip_prefix("|-- ")?;
        let is_host = pair[1].trim() == "/32 host LOCAL";
        is_host.then(|| address.parse().ok()).flatten()
    });
    local
        .into_iter()
        .find(|address: &std::net::Ipv4Addr| !address.is_loopback())
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn says(program: &str, args: &[&str], word: &str) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == word)
}
