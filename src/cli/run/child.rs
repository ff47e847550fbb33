//! The command that runs: its signals, what it says, how it ends.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr, Command};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::time::timeout;

use super::super::settings::Variable;

/// So many lines of what it says are kept.
const MOST_LINES: usize = 2000;

/// The longest line that is kept, in bytes.
const LONGEST_LINE: usize = 4096;

/// What it said last is read for so long after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs a command with these variables. What it writes on standard error is passed on, and kept where `listens`.
///
/// Its exit code, 128 and the signal's number where a signal ended it.
pub(super) async fn run(
    command: &[OsString],
    variables: &[Variable],
    listens: bool,
) -> io::Result<(u8, VecDeque<String>)> {
    let (program, args) = command.split_first().ok_or(io::ErrorKind::NotFound)?;
    let mut spawned = Command::new(program);
    spawned.args(args);
    for variable in variables {
        spawned.env(variable.name, &variable.value);
    }
    if listens {
        spawned.stderr(Stdio::piped());
    }
    let mut signals = Signals::new()?;
    let mut child = spawned.spawn()?;
    let mut said = VecDeque::new();
    let stderr = child.stderr.take();
    let hearing = async {
        if let Some(stderr) = stderr {
            hear(stderr, &mut said).await;
        }
    };
    let ending = async {
        loop {
            tokio::select! {
                ended = child.wait() => return ended,
                signal = signals.next() => pass_on(&child, &signal),
            }
        }
    };
    let status = {
        let (mut ending, mut hearing) = (pin!(ending), pin!(hearing));
        tokio::select! {
            status = &mut ending => {
                // What it left behind may hold its standard error for long.
                let _ = timeout(LAST_WORDS, hearing).await;
                status?
            }
            () = &mut hearing => ending.await?,
        }
    };
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        (None, None) => u8::MAX,
    };
    Ok((code, said))
}

/// Passes on what a command says, and keeps the last lines of it.
async fn hear(mut stderr: ChildStderr, said: &mut VecDeque<String>) {
    let mut out = tokio::io::stderr();
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    loop {
        let read = match stderr.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => buffer.get(..read).unwrap_or_default(),
        };
        // Nobody may be reading any more; the command need not know.
        let _ = out.write_all(read).await;
        let _ = out.flush().await;
        for byte in read {
            if *byte == b'\n' {
                keep(&mut line, said);
            } else if line.len() < LONGEST_LINE {
                line.push(*byte);
            }
        }
    }
    keep(&mut line, said);
}

fn keep(line: &mut Vec<u8>, said: &mut VecDeque<String>) {
    if line.is_empty() {
        return;
    }
    if said.len() == MOST_LINES {
        said.pop_front();
    }
    said.push_back(String::from_utf8_lossy(line).into_owned());
    line.clear();
}

/// The signals that are passed on.
struct Signals {
    /// What a terminal sends to us it sends to the command as well.
    of_terminal: [(Signal, Stream); 2],
    others: [(Signal, Stream); 4],
}

/// A signal, and whether a terminal may have sent it to the command too.
struct Caught {
    signal: Signal,
    may_be_of_terminal: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let stream = |of: Signal, kind| Ok::<_, io::Error>((of, signal(kind)?));
        Ok(Self {
            of_terminal: [
                stream(Signal::SIGINT, SignalKind::interrupt())?,
                stream(Signal::SIGQUIT, SignalKind::quit())?,
            ],
            others: [
                stream(Signal::SIGTERM, SignalKind::terminate())?,
                stream(Signal::SIGHUP, SignalKind::hangup())?,
                stream(Signal::SIGUSR1, SignalKind::user_defined1())?,
                stream(Signal::SIGUSR2, SignalKind::user_defined2())?,
            ],
        })
    }

    async fn next(&mut self) -> Caught {
        let [interrupt, quit] = &mut self.of_terminal;
        let [terminate, hangup, first, second] = &mut self.others;
        let caught = |signal, may_be_of_terminal| Caught {
            signal,
            may_be_of_terminal,
        };
        tokio::select! {
            _ = interrupt.1.recv() => caught(interrupt.0, true),
            _ = quit.1.recv() => caught(quit.0, true),
            _ = terminate.1.recv() => caught(terminate.0, false),
            _ = hangup.1.recv() => caught(hangup.0, false),
            _ = first.1.recv() => caught(first.0, false),
            _ = second.1.recv() => caught(second.0, false),
        }
    }
}

/// Sends the command a signal that we got, unless its terminal did.
fn pass_on(child: &Child, caught: &Caught) {
    if caught.may_be_of_terminal && is_in_foreground() {
        return;
    }
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(id) = id {
        // It may have ended this moment.
        let _ = kill(Pid::from_raw(id), caught.signal);
    }
}

/// Whether we are what the terminal runs: then it sends its signals to us and to the command.
fn is_in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}
