//! A small Debian with apt, pip and curl, for images that builds start from and clients run in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::docker::{BUILD, Image, docker};
use super::{needs, run_within};

/// It is made once for a build folder; a machine that cannot make it within this cannot run the test.
const BOOTSTRAP: Duration = Duration::from_mins(10);

/// Whether it can be made here, which takes root.
pub fn can_be_made() -> bool {
    let is_root = || nix::unistd::geteuid().is_root() || needs::lacks("root");
    ["debootstrap", "tar"].into_iter().all(needs::has) && is_root()
}

/// It, as an image of this name.
pub fn image(name: String) -> Image {
    let image = Image(name);
    let mut import = docker(&["import"]);
    let (status, _, stderr) = run_within(import.arg(base()).arg(&image.0), BUILD);
    assert!(status.success(), "{stderr}");
    image
}

/// Its files, from where this machine gets its own packages; made once.
fn base() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (mirror, suite) = mirror();
    let archive = cache.join(format!("base-{suite}.tar"));
    // Other tests want it, too, perhaps in processes of their own.
    let lock = fs::File::create(archive.with_extension("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    if archive.exists() {
        return archive;
    }
    let root = tempfile::tempdir_in(cache).unwrap();
    let mut bootstrap = Command::new("debootstrap");
    bootstrap
        .args([
            "--variant=minbase",
            "--include=ca-certificates,curl,python3-pip",
            &suite,
        ])
        .arg(root.path())
        .arg(&mirror);
    let (status, stdout, stderr) = run_within(&mut bootstrap, BOOTSTRAP);
    assert!(status.success(), "{stdout}{stderr}");
    let unfinished = archive.with_extension("unfinished");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&unfinished).arg("-C").arg(root.path());
    let left_out = [
        "./var/cache/apt/archives/*.deb",
        "./var/lib/apt/lists/*",
        "./usr/share/doc/*",
        "./usr/share/locale/*",
    ];
    tar.args(left_out.map(|pattern| format!("--exclude={pattern}")))
        .arg(".");
    let (status, _, stderr) = run_within(&mut tar, BUILD);
    assert!(status.success(), "{stderr}");
    fs::rename(unfinished, &archive).unwrap();
    archive
}

/// The mirror and suite of this machine's own system, as its apt is configured.
fn mirror() -> (String, String) {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite
        .expect("the system has a code name")
        .trim_matches('"')
        .to_owned();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten();
    files.extend(parts.map_while(Result::ok).map(|entry| entry.path()));
    for file in files {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mirror = if text.contains("URIs:") {
            of_stanzas(&text, &suite)
        } else {
            of_lines(&text, &suite)
        };
        if let Some(mirror) = mirror {
            return (mirror, suite);
        }
    }
    panic!("no source of {suite} in /etc/apt");
}

/// From `Types: deb`, `URIs: …`, `Suites: …`.
fn of_stanzas(text: &str, suite: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let words = |key: &str| {
            let line = stanza.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let is_it = words("Suites:").iter().any(|word| word == suite);
        if is_it {
            words("URIs:").into_iter().next()
        } else {
            None
        }
    })
}

/// From `deb [options] URI suite components`.
fn of_lines(text: &str, suite: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let words = line.strip_prefix("deb ")?;
        let words = words
            .rsplit(']')
            .next()?
            .split_whitespace()
            .collect::<Vec<_>>();
        (words.get(1) == Some(&suite)).then(|| words[0].to_owned())
    })
}
