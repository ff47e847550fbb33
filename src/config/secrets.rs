//! Where secrets are read: from files and from what programs print. Never logged, in part or whole.

use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tokio::time::Instant;

use super::Secrets;
use super::diag::{Findings, Place};
use crate::policy::upstream::{Credential, Source};
use crate::secret::Secret;
use crate::timeouts::Brief;

/// No secret is longer than the header that carries it.
const LONGEST: u64 = 16 * 1024;

/// How long a program may take to print one.
const PROGRAM_LIMIT: Duration = Duration::from_secs(10);

/// How often a program that has printed its secret is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);

/// Why a secret cannot be had. Holds nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", help.as_ref().map(|help| format!(": {help}")).unwrap_or_default())]
pub struct SecretError {
    /// What is wrong, with the name of the file or program.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl From<String> for SecretError {
    fn from(message: String) -> Self {
        Self {
            message,
            help: None,
        }
    }
}

/// Reads a secret once more where it came from. Blocks: reads a file, or waits for a program for at most 10 s.
///
/// # Errors
/// What is wrong there now.
pub fn read(credential: &Credential) -> Result<Secret, SecretError> {
    match &credential.source {
        Source::Fixed => Ok(credential.value.clone()),
        Source::File(path) => of_file(path),
        Source::Command(line) => of_program(line),
    }
}

/// Reads a file that holds a secret on its one line.
pub(super) fn of_file(path: &Path) -> Result<Secret, SecretError> {
    let told = |problem: &str| SecretError::from(format!("the file {} {problem}", path.display()));
    let io = |error: std::io::Error| told(&format!("cannot be read: {error}"));
    // Asked before opening: a pipe would hold us up.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(told("is no regular file"));
    }
    let file = std::fs::File::open(path).map_err(io)?;
    keeps_private(path, &file.metadata().map_err(io)?)?;
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(io)?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(told("is empty"));
    }
    if secret.contains(char::is_control) {
        return Err(told("holds more than one line, or a control character"));
    }
    Ok(Secret::new(secret))
}

/// Refuses a file that others than who runs us may read or write. A file of root's may be read by its group, where we are
/// another: so Kubernetes, Swarm and systemd hand secrets over.
///
/// # Errors
/// That others may.
pub(super) fn keeps_private(path: &Path, data: &Metadata) -> Result<(), SecretError> {
    let is_handed = data.uid() == 0 && !nix::unistd::geteuid().is_root();
    let mode = data.mode() & 0o777;
    if mode & others(is_handed) == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(SecretError {
        message: format!("the file {path} is open to others (mode {mode:03o})"),
        help: Some(if is_handed {
            format!("chmod 440 {path}, and chgrp it to a group of ours")
        } else {
            format!("chmod 600 {path}")
        }),
    })
}

/// What may not be set in the mode of a file of secrets.
fn others(is_handed: bool) -> u32 {
    if is_handed { 0o037 } else { 0o077 }
}

/// Notes that what `serve` needs cannot be had: a warning where the policy is only looked at.
pub(super) fn tell(
    error: SecretError,
    place: Place,
    secrets: Secrets,
    findings: &mut Findings<'_>,
) {
    let refuses = "`serve` refuses to start without it";
    match (secrets, error.help) {
        (Secrets::Needed | Secrets::Withheld, help) => {
            findings.error(place, error.message).help = help;
        }
        (Secrets::Wanted, Some(help)) => {
            let help = format!("{help}: {refuses}");
            findings.warn(place, error.message).with_help(help);
        }
        (Secrets::Wanted, None) => {
            findings.warn(place, error.message).with_help(refuses);
        }
    }
}

/// Runs a program, without a shell, for the first line that it prints.
pub(super) fn of_program(line: &[String]) -> Result<Secret, SecretError> {
    within(line, PROGRAM_LIMIT)
}

fn within(line: &[String], limit: Duration) -> Result<Secret, SecretError> {
    let (program, args) = line
        .split_first()
        .ok_or_else(|| SecretError::from("there is no program to run".to_owned()))?;
    let told = |problem: &str| SecretError::from(format!("the program {program} {problem}"));
    let deadline = Instant::now() + limit;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it complains of may quote what it knows.
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| told(&format!("cannot be run: {error}")))?;
    let (sender, printed) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let outcome = stdout.take(LONGEST).read_to_end(&mut text).map(|_| text);
            // Nobody waits any more behind the limit.
            let _ = sender.send(outcome);
        });
    }
    let too_slow = || told(&format!("did not end in {}", Brief(limit)));
    let Ok(printed) = printed.recv_timeout(limit) else {
        end(&mut child);
        return Err(too_slow());
    };
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(None) | Err(_) => {
                end(&mut child);
                return Err(too_slow());
            }
        }
    };
    if !status.success() {
        return Err(told(&format!("failed: {status}")));
    }
    let printed = printed.map_err(|error| told(&format!("cannot be read: {error}")))?;
    let text = String::from_utf8(printed).map_err(|_| told("prints no text"))?;
    match text.lines().next() {
        None | Some("") => Err(told("prints nothing")),
        Some(line) if line.contains(char::is_control) => Err(told("prints a control character")),
        Some(line) => Ok(Secret::new(line)),
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<String> {
        ["sh", "-c", text].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_program_gives_the_first_line_that_it_prints() {
        let secret = within(&line("printf 's3cret\\r\\nmore\\n'"), PROGRAM_LIMIT);
        assert_eq!(secret.unwrap().reveal(), "s3cret");
    }

    #[test]
    fn a_file_that_others_may_read_is_told_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(file.path(), open).unwrap();
        let path = file.path().display();
        assert_eq!(
            of_file(file.path()).unwrap_err().to_string(),
            format!("the file {path} is open to others (mode 644): chmod 600 {path}")
        );
    }

    #[test]
    fn the_group_may_read_what_root_hands_over_and_nobody_else() {
        for (mode, own, handed) in [
            (0o400, true, true),
            (0o600, true, true),
            (0o440, false, true),
            (0o640, false, true),
            (0o444, false, false),
            (0o460, false, false),
            (0o450, false, false),
            (0o604, false, false),
        ] {
            let fits = |is_handed| mode & others(is_handed) == 0;
            assert_eq!((fits(false), fits(true)), (own, handed), "{mode:o}");
        }
    }

    #[test]
    fn what_a_program_does_wrong_is_told_without_what_it_printed() {
        for (text, expected) in [
            (
                "echo s3cret; exit 3",
                "the program sh failed: exit status: 3",
            ),
            ("true", "the program sh prints nothing"),
            ("echo; echo s3cret", "the program sh prints nothing"),
            (
                "printf 's3\\tcret'",
                "the program sh prints a control character",
            ),
            ("printf '\\377'", "the program sh prints no text"),
            (
                "echo s3cret; exec >&-; sleep 60",
                "the program sh did not end in 300ms",
            ),
            ("sleep 60", "the program sh did not end in 300ms"),
        ] {
            // The others end by themselves.
            let limit = if text.contains("sleep") {
                Duration::from_millis(300)
            } else {
                PROGRAM_LIMIT
            };
            let error = within(&line(text), limit).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
        let error = of_program(&["/nonexistent/program".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("cannot be run"), "{error}");
    }
}
