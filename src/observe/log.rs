//! The log of records: formatted and written by a thread of its own, so that no request waits for a disk.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::ops::Deref;
use std::os::unix::fs::FileExt as _;
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
    /// Writes all, or says how many bytes were written before it failed.
    fn write(&mut self, batch: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while let Some(rest) = batch.get(written..).filter(|rest| !rest.is_empty()) {
            match self.sink().write(rest) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        self.sink().flush().map_err(|error| (written, error))
    }

    /// Whether what it holds ends in the middle of a line, as a full disk leaves a file. What cannot be read is taken to be
    /// whole.
    fn is_torn(&self) -> bool {
        match self {
            Self::File(path, file) => ends_torn(path, file).unwrap_or(false),
            Self::Other(_) => false,
        }
    }

    fn sink(&mut self) -> &mut dyn Write {
        match self {
            Self::File(_, file) => file,
            Self::Other(sink) => sink,
        }
    }

    /// Begins a new file in the place of one that was moved away; the old one stays where that fails. Whether there is one.
    fn reopen(&mut self) -> bool {
        let Self::File(path, file) = self else {
            tracing::warn!("the record log is no file: there is nothing to reopen");
            return false;
        };
        match open(path) {
            Ok(new) => {
                *file = new;
                tracing::info!(path = %path.display(), "the record log is reopened");
                true
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "reopen the record log failed; the old one stays in use");
                false
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn ends_torn(path: &Path, file: &File) -> io::Result<bool> {
    // A pipe has no end, and would hold us up.
    let data = file.metadata()?;
    if !data.is_file() || data.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, data.len() - 1)?;
    Ok(last != *b"\n")
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
    // Whether a line was begun and not ended; how many were lost to a write since one went well, and how many are told.
    let (mut is_torn, mut failed, mut told) = (sink.is_torn(), None, 0);
    while desk.take(&mut taken) {
        if is_moved.swap(false, Ordering::Acquire) && sink.reopen() {
            is_torn = sink.is_torn();
        }
        let mut records = taken.drain(..).peekable();
        while records.peek().is_some() {
            if is_torn {
                batch.push(b'\n');
            }
            let start = batch.len();
            while batch.len() < BATCH
                && let Some(record) = records.next()
            {
                write_one(&mut batch, form, &record);
            }
            match sink.write(&batch) {
                Ok(()) => {
                    is_torn = false;
                    if let Some(lost) = failed.take() {
                        tracing::warn!(lost, "the record log works again");
                    }
                    let lost = desk.dropped();
                    if lost > told {
                        tracing::warn!(
                            lost = lost - told,
                            "records were lost while their reader was slow"
                        );
                        told = lost;
                    }
                }
                Err((written, error)) => {
                    let (done, rest) = batch.split_at(written);
                    is_torn = done.last().map_or(is_torn, |last| *last != b'\n');
                    let rest = rest
                        .get(start.saturating_sub(written)..)
                        .unwrap_or_default();
                    let lost = lines(rest);
                    desk.lose(lost);
                    told += lost;
                    if failed.is_none() {
                        tracing::error!(%error, "write to the record log failed; records are lost until it works again");
                    }
                    *failed.get_or_insert(0) += lost;
                }
            }
            batch.clear();
        }
        drop(records);
        desk.rest(REST);
    }
}

fn lines(text: &[u8]) -> u64 {
    text.iter().map(|byte| u64::from(*byte == b'\n')).sum()
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
    fn a_torn_line_is_ended_before_the_next_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("egress.log");
        std::fs::write(&path, "{\"torn\": ").unwrap();
        for status in [200, 201] {
            let log = Log::to_file(&path, Form::Json).unwrap();
            log.record(record(status));
            log.close(Duration::from_secs(10));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "{\"torn\": ");
        assert!(
            lines[1].contains(":200,") && lines[2].contains(":201,"),
            "{text}"
        );

        let log = Log::to_file(&path, Form::Json).unwrap();
        std::fs::write(&path, "torn again").unwrap();
        log.reopen();
        log.record(record(202));
        log.close(Duration::from_secs(10));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("torn again\n{"), "{text}");
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

    /// Takes part of the first line, and fails; takes whole lines from then on.
    struct Full {
        calls: usize,
        failed: Sender<()>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls == 2 {
                self.failed.send(()).unwrap();
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = if self.calls == 1 { 20 } else { bytes.len() };
            self.text.lock().unwrap().extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_a_full_disk_tore_is_lost_alone() {
        let (failed, failure) = channel();
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let full = Full {
            calls: 0,
            failed,
            text: text.clone(),
        };
        let log = Log::to(full, Form::Json);
        log.record(record(201));
        failure.recv().unwrap();
        log.record(record(202));
        log.record(record(203));
        log.close(Duration::from_secs(10));
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), log.dropped()), (3, 1), "{text}");
        assert_eq!(lines[0].len(), 20);
        let whole = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
        assert_eq!(lines.iter().filter(|line| whole(line)).count(), 2);
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
