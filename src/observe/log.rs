//! The log of records: formatted and written by a thread of its own, so that no request waits for a disk.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::board::Keep;
use super::desk::{Desk, Office, Put, REST};
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

/// A batch is written when no record is left or this much is gathered, in bytes.
const BATCH: usize = 64 * 1024;

/// A log on its way to a file or to standard output.
#[derive(Debug)]
pub struct Log {
    office: Office<Held>,
    /// The file was moved away, and a new one is to be begun.
    is_moved: Arc<AtomicBool>,
}

/// A record in wait: the log's own, or one that others look at as well.
#[derive(Debug)]
enum Held {
    Own(Box<Record>),
    Shared(Arc<Record>),
}

impl Deref for Held {
    type Target = Record;

    fn deref(&self) -> &Record {
        match self {
            Self::Own(record) => record,
            Self::Shared(record) => record,
        }
    }
}

/// What the writer writes to.
enum Sink {
    /// A file, which may be moved away.
    File(PathBuf, File),
    /// Anything else.
    Other(Box<dyn Write + Send>),
}

impl Sink {
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self {
            Self::File(_, file) => file.write_all(batch),
            Self::Other(sink) => sink.write_all(batch).and_then(|()| sink.flush()),
        }
    }

    /// Begins a new file in the place of one that was moved away; the old one stays where that fails.
    fn reopen(&mut self) {
        let Self::File(path, file) = self else {
            return tracing::warn!("the record log is no file: there is nothing to reopen");
        };
        match open(path) {
            Ok(new) => {
                *file = new;
                tracing::info!(path = %path.display(), "the record log is reopened");
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "reopen the record log failed; the old one stays in use");
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
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
        let file = open(path).map_err(|source| OpenError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::begin(Sink::File(path.to_owned(), file), form))
    }

    /// Writes to standard output.
    pub fn to_stdout(form: Form) -> Self {
        Self::to(io::stdout(), form)
    }

    /// Writes to anything.
    pub fn to(sink: impl Write + Send + 'static, form: Form) -> Self {
        Self::begin(Sink::Other(Box::new(sink)), form)
    }

    fn begin(sink: Sink, form: Form) -> Self {
        let is_moved = Arc::<AtomicBool>::default();
        let told = is_moved.clone();
        let office = Office::open("records", move |desk| {
            write_all(sink, form, desk, &told);
        });
        Self { office, is_moved }
    }

    /// Goes on in a new file of the same name: whoever rotates logs has moved the old one away.
    pub fn reopen(&self) {
        self.is_moved.store(true, Ordering::Release);
        self.office.desk.nudge();
    }

    fn put(&self, record: Held) {
        if self.office.desk.put(record) == Put::FirstDropped {
            tracing::warn!("the reader of the record log is too slow: records are dropped");
        }
    }
}

impl Keep for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn keep(&self, record: Arc<Record>) {
        self.put(Held::Shared(record));
    }

    fn dropped(&self) -> u64 {
        self.office.desk.dropped()
    }

    /// Writes what is in the queue and ends the writer. Later records are lost, and so is what cannot be written within
    /// `limit`: a reader that is stuck does not hold the process.
    fn close(&self, limit: Duration) {
        if !self.office.close(limit) {
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
        self.put(Held::Own(record));
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

fn write_all(mut sink: Sink, form: Form, desk: &Desk<Held>, is_moved: &AtomicBool) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut taken = Vec::new();
    let (mut failed, mut told) = (false, 0);
    while desk.take(&mut taken) {
        if is_moved.swap(false, Ordering::Acquire) {
            sink.reopen();
        }
        let mut records = taken.drain(..).peekable();
        while records.peek().is_some() {
            let mut gathered = 0;
            while batch.len() < BATCH
                && let Some(record) = records.next()
            {
                gathered += 1;
                write_one(&mut batch, form, &record);
            }
            match sink.write(&batch) {
                Ok(()) => {
                    failed = false;
                    let lost = desk.dropped();
                    if lost > told {
                        tracing::warn!(
                            lost = lost - told,
                            "records were lost while their reader was slow"
                        );
                        told = lost;
                    }
                }
                Err(error) => {
                    desk.lose(gathered);
                    if !failed {
                        tracing::error!(%error, "write to the record log failed; records are lost until it works again");
                    }
                    failed = true;
                }
            }
            batch.clear();
        }
        drop(records);
        desk.rest(REST);
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
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::desk::QUEUE;
    use super::{Form, Keep as _, Log, Observe as _};
    use std::io::{self, Write};
    use std::sync::Arc;
    use std::time::Duration;

    use crate::record::Record;

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
