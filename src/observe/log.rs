//! The log of records: formatted and written by a thread of its own, so that no request waits for a disk.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Observe, json, text};
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

/// Records in wait for the writer, beside those that it has in hand: about 10 MiB when it is full.
const QUEUE: usize = 8192;

/// The writer rests so long before it looks for more: to be woken for each record would cost more than to write it.
const REST: Duration = Duration::from_millis(5);

/// A batch is written when no record is left or this much is gathered, in bytes.
const BATCH: usize = 64 * 1024;

/// A log on its way to a file or to standard output.
#[derive(Debug)]
pub struct Log {
    desk: Arc<Desk>,
    /// Hears that the writer has ended.
    ended: Mutex<Receiver<()>>,
}

/// Where records wait for the writer.
#[derive(Debug, Default)]
struct Desk {
    pile: Mutex<Pile>,
    bell: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "a record is long, and moves under the lock")]
struct Pile {
    records: Vec<Box<Record>>,
    /// The writer waits for the bell; else it looks by itself.
    is_waited_for: bool,
    /// No more records come.
    is_closed: bool,
}

impl Desk {
    fn pile(&self) -> MutexGuard<'_, Pile> {
        self.pile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all records in place of `taken`, which is empty, and waits for some; `false` where no more come.
    #[expect(clippy::vec_box, reason = "the pile's own")]
    fn take(&self, taken: &mut Vec<Box<Record>>) -> bool {
        let mut pile = self.pile();
        while pile.records.is_empty() && !pile.is_closed {
            pile.is_waited_for = true;
            pile = self.bell.wait(pile).unwrap_or_else(PoisonError::into_inner);
        }
        pile.is_waited_for = false;
        std::mem::swap(&mut pile.records, taken);
        !taken.is_empty()
    }

    /// Rests, unless the end has come.
    fn rest(&self) {
        let pile = self.pile();
        let rested = self
            .bell
            .wait_timeout_while(pile, REST, |pile| !pile.is_closed);
        drop(rested);
    }
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
        let (ending, ended) = sync_channel(1);
        let desk = Arc::<Desk>::default();
        let of_writer = desk.clone();
        let writer = move || {
            write_all(sink, form, &of_writer);
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
            desk,
            ended: Mutex::new(ended),
        }
    }

    /// How many records were lost because the reader or the disk was slow.
    pub fn dropped(&self) -> u64 {
        self.desk.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is in the queue and ends the writer. Later records are lost, and so is what cannot be written within
    /// `limit`: a reader that is stuck does not hold the process.
    pub fn close(&self, limit: Duration) {
        self.desk.pile().is_closed = true;
        self.desk.bell.notify_one();
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
        let mut pile = self.desk.pile();
        let is_full = pile.records.len() >= QUEUE;
        if is_full || pile.is_closed {
            drop(pile);
            let before = self.desk.dropped.fetch_add(1, Ordering::Relaxed);
            if before == 0 && is_full {
                tracing::warn!("the reader of the record log is too slow: records are dropped");
            }
            return;
        }
        pile.records.push(record);
        let is_waited_for = std::mem::take(&mut pile.is_waited_for);
        drop(pile);
        if is_waited_for {
            self.desk.bell.notify_one();
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

fn write_all(mut sink: impl Write, form: Form, desk: &Desk) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut taken = Vec::new();
    let (mut failed, mut told) = (false, 0);
    while desk.take(&mut taken) {
        let mut records = taken.drain(..).peekable();
        while records.peek().is_some() {
            let mut gathered = 0;
            while batch.len() < BATCH
                && let Some(record) = records.next()
            {
                gathered += 1;
                write_one(&mut batch, form, &record);
            }
            match sink.write_all(&batch).and_then(|()| sink.flush()) {
                Ok(()) => {
                    failed = false;
                    let lost = desk.dropped.load(Ordering::Relaxed);
                    if lost > told {
                        tracing::warn!(
                            lost = lost - told,
                            "records were lost while their reader was slow"
                        );
                        told = lost;
                    }
                }
                Err(error) => {
                    desk.dropped.fetch_add(gathered, Ordering::Relaxed);
                    if !failed {
                        tracing::error!(%error, "write to the record log failed; records are lost until it works again");
                    }
                    failed = true;
                }
            }
            batch.clear();
        }
        drop(records);
        desk.rest();
    }
}

fn write_one(batch: &mut Vec<u8>, form: Form, record: &Record) {
    match form {
        Form::Json => {
            let start = batch.len();
            if let Err(error) = json::write(record, batch) {
                tracing::error!(%error, "a record could not be written as JSON");
                batch.truncate(start);
                return;
            }
        }
        Form::Text { colour } => batch.extend_from_slice(text::line(record, colour).as_bytes()),
    }
    batch.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    fn record(status: u16) -> Box<Record> {
        let start = jiff::Timestamp::UNIX_EPOCH;
        let mut record = Record::begun(start, uuid::Uuid::nil(), Ipv4Addr::LOCALHOST.into(), 1);
        record.status = Some(status);
        Box::new(record)
    }

    /// Hands on what is written, once it is let.
    struct Sink {
        held: Arc<Mutex<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _held = self.held.lock().unwrap();
            self.written.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn statuses(written: &Receiver<Vec<u8>>) -> Vec<u64> {
        let text = written.try_iter().flatten().collect::<Vec<u8>>();
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let line = |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).unwrap();
        let status = |line: serde_json::Value| line["http.response.status_code"].as_u64().unwrap();
        lines.map(line).map(status).collect()
    }

    #[test]
    fn each_record_is_written_once_and_in_the_order_of_its_thread() {
        let (written, lines) = channel();
        let log = Log::to(
            Sink {
                held: Arc::default(),
                written,
            },
            Form::Json,
        );
        std::thread::scope(|scope| {
            for first in [0, 1000, 2000] {
                let log = &log;
                scope.spawn(move || (first..first + 1000).for_each(|at| log.record(record(at))));
            }
        });
        log.close(Duration::from_secs(10));
        let statuses = statuses(&lines);
        assert_eq!((statuses.len(), log.dropped()), (3000, 0));
        for thread in 0..3 {
            let own: Vec<_> = statuses
                .iter()
                .filter(|status| **status / 1000 == thread)
                .collect();
            assert!(own.len() == 1000 && own.is_sorted(), "{own:?}");
        }
    }

    #[test]
    fn what_a_stuck_reader_has_no_room_for_is_counted_and_the_rest_is_written() {
        let (written, lines) = channel();
        let held = Arc::<Mutex<()>>::default();
        let log = Log::to(
            Sink {
                held: held.clone(),
                written,
            },
            Form::Json,
        );
        let stuck = held.lock().unwrap();
        let all = 3 * QUEUE;
        for _ in 0..all {
            log.record(record(200));
        }
        let lost = usize::try_from(log.dropped()).unwrap();
        // What the writer had in hand when it got stuck is beside the queue.
        assert!((QUEUE..=2 * QUEUE).contains(&lost), "{lost}");
        drop(stuck);
        log.close(Duration::from_secs(10));
        assert_eq!(statuses(&lines).len() + lost, all);
        log.record(record(200));
        assert_eq!(usize::try_from(log.dropped()).unwrap(), lost + 1);
    }
}
