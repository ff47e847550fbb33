//! The log of records: formatted and written by a thread of its own, so that no request waits for a disk.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Observe, text};
use crate::record::Record;

/// How a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON object a line.
    Json,
    /// One line for people, in colour or not.
    Text {
        /// Whether to colour it.
        colour: bool,
    },
}

/// Records in wait for the writer: about 10 MiB when it is full.
const QUEUE: usize = 8192;

/// A batch is written when the queue is empty or this much is gathered, in bytes.
const BATCH: usize = 64 * 1024;

/// A log on its way to a file or to standard output.
#[derive(Debug)]
pub struct Log {
    sender: Mutex<Option<SyncSender<Box<Record>>>>,
    dropped: Arc<AtomicU64>,
    /// Hears that the writer has ended.
    ended: Mutex<Receiver<()>>,
}

/// A log file that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("open log file {}", path.display())]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

impl Log {
    /// Writes to a file, appending to it.
    pub fn to_file(path: &Path, form: Form) -> Result<Self, OpenError> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| OpenError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::to(file, form))
    }

    /// Writes to standard output.
    pub fn to_stdout(form: Form) -> Self {
        Self::to(io::stdout(), form)
    }

    /// Writes to anything.
    pub fn to(sink: impl Write + Send + 'static, form: Form) -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        let (ending, ended) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = dropped.clone();
        let writer = move || {
            write_all(sink, form, &receiver, &counter);
            // Nobody may be waiting for it any more.
            let _ = ending.send(());
        };
        if let Err(error) = std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(writer)
        {
            tracing::error!(%error, "no thread for the record log");
        }
        Self {
            sender: Mutex::new(Some(sender)),
            dropped,
            ended: Mutex::new(ended),
        }
    }

    /// How many records were lost because the reader or the disk was slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is in the queue and ends the writer. Later records are lost, and so is what cannot be written within
    /// `limit`: a reader that is stuck does not hold the process.
    pub fn close(&self, limit: Duration) {
        self.sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the reader of the record log is stuck: the last records are lost");
        }
        let lost = self.dropped();
        if lost > 0 {
            tracing::warn!(lost, "records were lost in all");
        }
    }
}

impl Observe for Log {
    fn record(&self, record: Box<Record>) {
        let sender = self
            .sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let sent = sender.map(|sender| sender.try_send(record));
        if !matches!(sent, Some(Ok(()))) {
            let before = self.dropped.fetch_add(1, Ordering::Relaxed);
            if before == 0 && matches!(sent, Some(Err(TrySendError::Full(_)))) {
                tracing::warn!("the reader of the record log is too slow: records are dropped");
            }
        }
    }
}

/// Whether standard output is read by a person, and whether that person wants colour.
pub fn form_of_stdout(no_colour: bool) -> Form {
    if io::stdout().is_terminal() {
        Form::Text { colour: !no_colour }
    } else {
        Form::Json
    }
}

fn write_all(
    mut sink: impl Write,
    form: Form,
    records: &Receiver<Box<Record>>,
    dropped: &AtomicU64,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let (mut failed, mut told) = (false, 0);
    while let Ok(record) = records.recv() {
        let mut gathered = 1;
        write_one(&mut batch, form, &record);
        while batch.len() < BATCH
            && let Ok(record) = records.try_recv()
        {
            gathered += 1;
            write_one(&mut batch, form, &record);
        }
        match sink.write_all(&batch).and_then(|()| sink.flush()) {
            Ok(()) => {
                failed = false;
                let lost = dropped.load(Ordering::Relaxed);
                if lost > told {
                    tracing::warn!(
                        lost = lost - told,
                        "records were lost while their reader was slow"
                    );
                    told = lost;
                }
            }
            Err(error) => {
                dropped.fetch_add(gathered, Ordering::Relaxed);
                if !failed {
                    tracing::error!(%error, "write to the record log failed; records are lost until it works again");
                }
                failed = true;
            }
        }
        batch.clear();
    }
}

fn write_one(batch: &mut Vec<u8>, form: Form, record: &Record) {
    match form {
        Form::Json => {
            let start = batch.len();
            if let Err(error) = serde_json::to_writer(&mut *batch, record) {
                tracing::error!(%error, "a record could not be written as JSON");
                batch.truncate(start);
                return;
            }
        }
        Form::Text { colour } => batch.extend_from_slice(text::line(record, colour).as_bytes()),
    }
    batch.push(b'\n');
}
