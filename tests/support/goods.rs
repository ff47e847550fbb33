//! What package managers fetch, made on the spot: each a `probe` 1.0.0 in the form of its trade.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::run;

/// A folder with a simple index (PEP 503) of one wheel, below `simple/`.
pub fn python_index(root: &Path) {
    let folder = root.join("simple/probe");
    fs::create_dir_all(&folder).unwrap();
    let name = "probe-1.0.0-py3-none-any.whl";
    let script = "\
import sys, zipfile
info = 'probe-1.0.0.dist-info/'
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    wheel.writestr('probe.py', 'ANSWER = 42\\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: probe\\nVersion: 1.0.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')
";
    let wheel = folder.join(name);
    succeed(Command::new("python3").args(["-c", script]).arg(&wheel));
    let page = format!(
        "<!DOCTYPE html><html><body><a href=\"{name}#sha256={}\">{name}</a></body></html>\n",
        sha256(&wheel)
    );
    fs::write(folder.join("index.html"), page).unwrap();
}

/// A folder with an apt repository of one package, flat, below `apt/`.
pub fn apt_repository(root: &Path) {
    let tree = tempfile::tempdir().unwrap();
    let debian = tree.path().join("DEBIAN");
    let docs = tree.path().join("usr/share/doc/probe");
    fs::create_dir_all(&debian).unwrap();
    fs::create_dir_all(&docs).unwrap();
    let control = "Package: probe\nVersion: 1.0.0\nArchitecture: all\nMaintainer: test <test@files.test>\n\
                   Description: a package of one file\n";
    fs::write(debian.join("control"), control).unwrap();
    fs::write(docs.join("answer"), "42\n").unwrap();
    let repository = root.join("apt");
    fs::create_dir_all(&repository).unwrap();
    let package = repository.join("probe.deb");
    succeed(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .arg(tree.path())
            .arg(&package),
    );
    let size = fs::metadata(&package).unwrap().len();
    let index = format!(
        "{control}Filename: ./probe.deb\nSize: {size}\nSHA256: {}\n\n",
        sha256(&package)
    );
    fs::write(repository.join("Packages"), index).unwrap();
    let index = repository.join("Packages");
    let release = format!(
        "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {} {} Packages\n",
        sha256(&index),
        fs::metadata(&index).unwrap().len()
    );
    fs::write(repository.join("Release"), release).unwrap();
}

/// A folder with a sparse registry of one crate, below `crates/`, that is served at `base`.
pub fn cargo_registry(root: &Path, base: &str) {
    let tree = tempfile::tempdir().unwrap();
    let source = tree.path().join("probe-1.0.0/src");
    fs::create_dir_all(&source).unwrap();
    let manifest = "[package]\nname = \"probe\"\nversion = \"1.0.0\"\nedition = \"2021\"\n";
    fs::write(tree.path().join("probe-1.0.0/Cargo.toml"), manifest).unwrap();
    fs::write(source.join("lib.rs"), "pub const ANSWER: u8 = 42;\n").unwrap();
    let registry = root.join("crates");
    fs::create_dir_all(registry.join("pr/ob")).unwrap();
    let package = registry.join("probe.crate");
    tar(tree.path(), "probe-1.0.0", &package);
    let config = json!({"dl": format!("{base}/crates/{{crate}}.crate")});
    fs::write(registry.join("config.json"), config.to_string()).unwrap();
    let entry = json!({
        "name": "probe", "vers": "1.0.0", "deps": [], "cksum": sha256(&package), "features": {}, "yanked": false,
    });
    fs::write(registry.join("pr/ob/probe"), format!("{entry}\n")).unwrap();
}

/// A folder with an npm registry of one package, below `npm/`, that is served at `base`.
pub fn npm_registry(root: &Path, base: &str) {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("package")).unwrap();
    let manifest = json!({"name": "probe", "version": "1.0.0"});
    fs::write(
        tree.path().join("package/package.json"),
        manifest.to_string(),
    )
    .unwrap();
    let registry = root.join("npm");
    fs::create_dir_all(registry.join("probe")).unwrap();
    tar(tree.path(), "package", &registry.join("probe.tgz"));
    let version = json!({
        "name": "probe", "version": "1.0.0", "dist": {"tarball": format!("{base}/npm/probe.tgz")},
    });
    let index =
        json!({"name": "probe", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}});
    fs::write(registry.join("probe/index.html"), index.to_string()).unwrap();
}

/// A folder with a module proxy of one module, `probe.test/answer` v1.0.0, below `go/`.
pub fn go_module(root: &Path) {
    let folder = root.join("go/probe.test/answer/@v");
    fs::create_dir_all(&folder).unwrap();
    let manifest = "module probe.test/answer\n";
    fs::write(folder.join("list"), "v1.0.0\n").unwrap();
    fs::write(folder.join("v1.0.0.mod"), manifest).unwrap();
    let info = json!({"Version": "v1.0.0", "Time": "2026-01-01T00:00:00Z"});
    fs::write(folder.join("v1.0.0.info"), info.to_string()).unwrap();
    let script = "\
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as module:
    module.writestr('probe.test/answer@v1.0.0/go.mod', sys.argv[2])
    module.writestr('probe.test/answer@v1.0.0/answer', '42\\n')
";
    let archive = folder.join("v1.0.0.zip");
    succeed(
        Command::new("python3")
            .args(["-c", script])
            .arg(&archive)
            .arg(manifest),
    );
}

/// A bare repository of one commit at `root/name`, ready to be served as files or by git's own program.
pub fn git_repository(root: &Path, name: &str) -> PathBuf {
    let work = tempfile::tempdir().unwrap();
    let repository = root.join(name);
    git(work.path(), &["init", "-q", "-b", "main"]);
    fs::write(work.path().join("answer"), "42\n").unwrap();
    git(work.path(), &["add", "."]);
    git(work.path(), &["commit", "-qm", "the answer"]);
    let to = repository.to_str().unwrap();
    git(work.path(), &["clone", "-q", "--bare", ".", to]);
    git(&repository, &["update-server-info"]);
    git(&repository, &["config", "http.receivepack", "true"]);
    repository
}

/// Runs git in a folder, as somebody with a name and no configuration.
pub fn git(folder: &Path, args: &[&str]) -> String {
    succeed(
        Command::new("git")
            .current_dir(folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .args(["-c", "user.name=test", "-c", "user.email=test@files.test"])
            .args(args),
    )
}

/// Runs a command that must go well; what it printed.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let (status, stdout, stderr) = run(command);
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout
}

fn tar(folder: &Path, name: &str, to: &Path) {
    succeed(
        Command::new("tar")
            .arg("-czf")
            .arg(to)
            .arg("-C")
            .arg(folder)
            .arg(name),
    );
}

fn sha256(file: &Path) -> String {
    let digest = Sha256::digest(fs::read(file).unwrap());
    digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
