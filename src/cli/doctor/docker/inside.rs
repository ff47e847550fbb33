//! A container with this very program in it, made of what the program needs and nothing else: no registry is asked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use super::super::program::{command, run, told};
use crate::config::env::Environment;
use crate::doctor::docker::Inside;
use crate::doctor::facts::Probe;

/// Until the image is made, or a look from inside has ended.
const LIMIT: Duration = Duration::from_mins(2);

/// Where authorities stand that are trusted here, and so in there.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where they stand inside.
const TRUSTED: &str = "/trusted.pem";

/// The variables that Docker gives to containers, in both cases.
const VARIABLES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// An image, removed with this.
#[derive(Debug)]
pub(super) struct Container {
    image: String,
    program: String,
    /// Where its libraries are: there is no cache of the loader's in there.
    folders: String,
}

/// What the doctor says inside, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Said {
    verdict: SaidVerdict,
    facts: SaidFacts,
}

#[derive(Debug, Deserialize)]
struct SaidVerdict {
    id: String,
    sentence: String,
    evidence: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct SaidFacts {
    dns: Vec<SaidAnswer>,
    ways: Vec<SaidWay>,
}

#[derive(Debug, Deserialize)]
struct SaidAnswer {
    message: Option<String>,
}

#[derive(Debug, Deserialize)]
struct SaidWay {
    route: String,
    target: Vec<Probe>,
}

impl Container {
    /// Makes the image.
    pub(super) fn make(env: &Environment) -> anyhow::Result<Self> {
        let program = fs::read_link("/proc/self/exe").context("find this program")?;
        let maps = fs::read_to_string("/proc/self/maps")
            .context("find what this program is linked with")?;
        let mut archive = Vec::new();
        let mut folders = BTreeSet::new();
        let libraries = linked(&maps).into_iter().flat_map(|file| names(&file));
        let parts = libraries.chain(loader(&program)?).chain([program.clone()]);
        for file in parts.collect::<BTreeSet<_>>() {
            let content = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            append(&mut archive, &file.display().to_string(), &content)?;
            folders.extend(file.parent().map(|folder| folder.display().to_string()));
        }
        let bundle = env.get("SSL_CERT_FILE").into_iter().chain(BUNDLES);
        if let Some(bundle) = bundle.map(Path::new).find_map(|path| fs::read(path).ok()) {
            append(&mut archive, TRUSTED, &bundle)?;
        }
        archive.extend([0; 1024]); // two empty blocks end it
        let image = format!("routecause-doctor:{}", std::process::id());
        let output = run(
            command("docker", ["import", "-", &image]),
            Some(archive),
            LIMIT,
        )?;
        anyhow::ensure!(
            output.status.success(),
            "docker import: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self {
            image,
            folders: folders.into_iter().collect::<Vec<_>>().join(":"),
            program: program.display().to_string(),
        })
    }

    /// Whether a proxy answers a connection from inside.
    pub(super) fn reaches(&self, proxy: &str) -> anyhow::Result<Probe> {
        let said = self.run(proxy, &VARIABLES)?;
        let way = said
            .facts
            .ways
            .into_iter()
            .find(|way| way.route == "direct");
        way.and_then(|mut way| way.target.pop())
            .context("the direct way was not tried")
    }

    /// The doctor's verdict about a URL inside, with the proxies that Docker sets there.
    pub(super) fn examines(&self, url: &str) -> anyhow::Result<Inside> {
        let said = self.run(url, &[])?;
        let answers = &said.facts.dns;
        let is_found = answers.is_empty() || answers.iter().any(|answer| answer.message.is_none());
        let dns = answers.iter().find_map(|answer| answer.message.clone());
        Ok(Inside {
            url: url.to_owned(),
            id: said.verdict.id,
            sentence: said.verdict.sentence,
            evidence: said.verdict.evidence,
            dns: dns.filter(|_| !is_found),
        })
    }

    /// Runs the doctor in there; some variables are set to nothing.
    fn run(&self, subject: &str, cleared: &[&str]) -> anyhow::Result<Said> {
        let mut docker = command(
            "docker",
            ["run", "--rm", "--network", "bridge", "-e", "HOME=/"],
        );
        docker.args(["-e", &format!("SSL_CERT_FILE={TRUSTED}")]);
        docker.args(["-e", &format!("LD_LIBRARY_PATH={}", self.folders)]);
        for name in cleared {
            docker.args(["-e", &format!("{name}=")]);
        }
        docker.args([
            &self.image,
            &self.program,
            "doctor",
            "--json",
            "--no-control",
            subject,
        ]);
        let output = run(docker, None, LIMIT)?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "docker run: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = told(command("docker", ["image", "rm", "-f", &self.image])) {
            say!("warning: remove the image {}: {error:#}", self.image);
        }
    }
}

/// The libraries that a process has loaded.
fn linked(maps: &str) -> BTreeSet<PathBuf> {
    let files = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5));
    let is_library = |file: &&str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        file.starts_with('/') && name.split('.').any(|part| part == "so")
    };
    files.filter(is_library).map(PathBuf::from).collect()
}

/// A library by its own name, and by those of links to it beside it: a program asks for one of them.
fn names(library: &Path) -> Vec<PathBuf> {
    let mut names = vec![library.to_owned()];
    let beside = library
        .parent()
        .and_then(|folder| fs::read_dir(folder).ok());
    let links = beside.into_iter().flatten().filter_map(Result::ok);
    let links = links.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    names.extend(
        links
            .map(|entry| entry.path())
            .filter(|path| fs::canonicalize(path).is_ok_and(|file| file == library)),
    );
    names
}

/// The loader that a program asks for; none where it is linked with nothing.
fn loader(program: &Path) -> anyhow::Result<Option<PathBuf>> {
    let content = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    // Its name stands near the beginning (PT_INTERP): a path, and a zero behind it.
    let head = content.get(..8192).unwrap_or(&content);
    let at = ["/lib64/ld-", "/lib/ld-"].iter().find_map(|start| {
        head.windows(start.len())
            .position(|window| window == start.as_bytes())
    });
    let path = at.and_then(|at| head.get(at..)?.split(|byte| *byte == 0).next());
    let path = path.map(std::str::from_utf8).transpose()?;
    Ok(path.map(PathBuf::from))
}

/// Appends a file to an archive of tar (POSIX ustar), as an executable of root's.
fn append(archive: &mut Vec<u8>, path: &str, content: &[u8]) -> anyhow::Result<()> {
    let path = path.trim_start_matches('/');
    let (prefix, name) = match path.len() {
        ..=100 => ("", path),
        _ => path.rsplit_once('/').unwrap_or(("", path)),
    };
    anyhow::ensure!(
        prefix.len() <= 155 && name.len() <= 100,
        "/{path} is too long a path for an archive"
    );
    let mut head = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| {
        if let Some(room) = head.get_mut(at..at + text.len()) {
            room.copy_from_slice(text);
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(room) = head.get_mut(148..156) {
        room.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive.extend(head);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_read_by_tar() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("/{}/{}", "d".repeat(90), "f".repeat(60));
        let mut archive = Vec::new();
        append(&mut archive, "/bin/a", b"one").unwrap();
        append(&mut archive, &long, &[7; 513]).unwrap();
        archive.extend([0; 1024]);
        assert!(append(&mut Vec::new(), &"x".repeat(300), b"").is_err());
        let mut tar = command("tar", ["-x", "-C"]);
        tar.arg(folder.path());
        let output = run(tar, Some(archive), LIMIT).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(fs::read(folder.path().join("bin/a")).unwrap(), b"one");
        assert_eq!(fs::read(folder.path().join(&long[1..])).unwrap(), [7; 513]);
    }

    #[test]
    fn libraries_are_found_among_what_is_mapped() {
        let maps = "\
7f00-7f01 r--p 00000000 08:01 1    /usr/lib/libc.so.6
7f01-7f02 r-xp 00000000 08:01 1    /usr/lib/libc.so.6
7f02-7f03 r--p 00000000 08:01 2    /usr/bin/routecause
7f03-7f04 rw-p 00000000 00:00 0    [heap]
7f04-7f05 rw-p 00000000 00:00 0
7f05-7f06 r--p 00000000 08:01 3    /lib64/ld-linux-x86-64.so.2
";
        let found: Vec<_> = linked(maps).into_iter().collect();
        assert_eq!(
            found,
            [
                PathBuf::from("/lib64/ld-linux-x86-64.so.2"),
                PathBuf::from("/usr/lib/libc.so.6")
            ]
        );
    }
}
