//! Other programs that are asked something: what they print, in bounded time.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// A program that only looks something up is waited for so long.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// Runs a program to its end, with nothing to read, or with `input`.
pub(super) fn run(
    mut command: Command,
    input: Option<Vec<u8>>,
    limit: Duration,
) -> anyhow::Result<Output> {
    let name = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut child = command.spawn().with_context(|| format!("run {name}"))?;
        let stdin = child.stdin.take();
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A program that ends early says itself why.
                let _ = stdin.write_all(&input).await;
            }
        };
        let both = async { tokio::join!(child.wait_with_output(), feed).0 };
        let output = timeout(limit, both).await;
        let output =
            output.with_context(|| format!("{name} has not ended within {} s", limit.as_secs()))?;
        output.with_context(|| format!("run {name}"))
    })
}

/// What a program prints that must go well.
pub(super) fn told(command: Command) -> anyhow::Result<String> {
    let name = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let output = run(command, None, SOON)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{name}: {}", stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program with its arguments.
pub(super) fn command<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}
