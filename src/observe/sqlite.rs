//! Records kept in an SQLite file, by a thread of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params, params_from_iter};
use tokio::time::Instant;
use uuid::Uuid;

use super::board::{History, Keep};
use super::desk::{Desk, Office, Put, REST};
use super::json;
use super::kept::{Filter, Wanted};
use crate::record::Record;

/// How long records are kept when nobody says otherwise.
pub const RETENTION: Duration = Duration::from_hours(7 * 24);

/// Old records are removed so often.
const SWEEP: Duration = Duration::from_mins(1);

/// Another process that writes is waited for so long.
const BUSY: Duration = Duration::from_secs(5);

/// Rows that are looked at for one answer, where a filter admits few of them.
const MOST_ROWS: usize = 200_000;

const TABLE: &str = "
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS records (
    id TEXT PRIMARY KEY,
    ended INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    cause TEXT,
    host TEXT,
    client TEXT NOT NULL,
    record TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_ended ON records (ended);
";

/// A history in a file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    office: Office<Arc<Record>>,
}

/// A history that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("open history {}", path.display())]
pub struct OpenError {
    path: PathBuf,
    source: rusqlite::Error,
}

impl Sqlite {
    /// Opens a file, or makes it. What is older than `retention` is removed.
    pub fn open(path: &Path, retention: Duration) -> Result<Self, OpenError> {
        let open = || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY)?;
            connection.execute_batch(TABLE)?;
            Ok(connection)
        };
        let connection = open().map_err(|source| OpenError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            office: Office::open("history", move |desk| {
                write_all(connection, retention, desk);
            }),
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, String> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY)?;
            read(&connection)
        };
        open().map_err(|error| format!("read history {}: {error}", self.path.display()))
    }
}

fn write_all(mut connection: Connection, retention: Duration, desk: &Desk<Arc<Record>>) {
    let mut taken = Vec::new();
    let mut swept: Option<Instant> = None;
    let mut failed = false;
    while desk.take(&mut taken) {
        let is_due = swept.is_none_or(|at| at.elapsed() >= SWEEP);
        let written = write_batch(&mut connection, &taken, is_due.then_some(retention));
        match written {
            Ok(()) => failed = false,
            Err(error) => {
                desk.lose(taken.len() as u64);
                if !failed {
                    tracing::error!(%error, "write to the history failed; records are lost until it works again");
                }
                failed = true;
            }
        }
        if is_due {
            swept = Some(Instant::now());
        }
        taken.clear();
        desk.rest(REST);
    }
}

fn write_batch(
    connection: &mut Connection,
    records: &[Arc<Record>],
    retention: Option<Duration>,
) -> rusqlite::Result<()> {
    let batch = connection.transaction()?;
    {
        let mut insert =
            batch.prepare_cached("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)")?;
        let mut line = Vec::new();
        for record in records {
            line.clear();
            if let Err(error) = json::write(record, &mut line) {
                tracing::error!(%error, "a record could not be written as JSON");
                continue;
            }
            insert.execute(params![
                record.id.to_string(),
                record.end.as_microsecond(),
                record.outcome.as_str(),
                record.error_type.as_deref(),
                record.server_address.as_deref(),
                record.client_address.to_string(),
                String::from_utf8_lossy(&line),
            ])?;
        }
    }
    if let Some(retention) = retention {
        let before = SignedDuration::try_from(retention).ok();
        let before = before.and_then(|age| Timestamp::now().checked_sub(age).ok());
        if let Some(before) = before {
            batch.execute(
                "DELETE FROM records WHERE ended < ?",
                [before.as_microsecond()],
            )?;
        }
    }
    batch.commit()
}

/// The rows that may be what a filter looks for: what a table knows of it; the rest is looked at row by row.
fn query(filter: &Filter) -> (String, Vec<Value>) {
    let mut wheres = Vec::new();
    let mut values = Vec::new();
    if let Some(cause) = &filter.cause {
        wheres.push("(cause = ? OR substr(cause, 1, ?) = ?)");
        let start = format!("{cause}.");
        let length = i64::try_from(start.chars().count()).unwrap_or(i64::MAX);
        values.extend([cause.clone().into(), length.into(), start.into()]);
    }
    match filter.outcome {
        None => {}
        Some(Wanted::Success) => wheres.push("outcome = 'success'"),
        Some(Wanted::Failure) => wheres.push("outcome = 'failure'"),
        Some(Wanted::Unknown) => wheres.push("outcome = 'unknown'"),
        Some(Wanted::Denied) => wheres.push("cause LIKE 'policy.denied.%'"),
    }
    if let Some(since) = filter.since {
        wheres.push("ended >= ?");
        values.push(since.as_microsecond().into());
    }
    if let Some(until) = filter.until {
        wheres.push("ended < ?");
        values.push(until.as_microsecond().into());
    }
    let wheres = match &*wheres {
        [] => String::new(),
        wheres => format!(" WHERE {}", wheres.join(" AND ")),
    };
    let text = format!(
        "SELECT host, client, record FROM records{wheres} ORDER BY ended DESC LIMIT {MOST_ROWS}"
    );
    (text, values)
}

impl Keep for Sqlite {
    fn name(&self) -> &'static str {
        "history"
    }

    fn keep(&self, record: Arc<Record>) {
        if self.office.desk.put(record) == Put::FirstDropped {
            tracing::warn!("the history's disk is too slow: records are dropped");
        }
    }

    fn dropped(&self) -> u64 {
        self.office.desk.dropped()
    }

    fn close(&self, limit: Duration) {
        if !self.office.close(limit) {
            tracing::error!("the last records did not come into the history");
        }
    }
}

impl History for Sqlite {
    fn find(&self, filter: &Filter, limit: usize) -> Result<Vec<String>, String> {
        let (text, values) = query(filter);
        self.read(|connection| {
            let mut statement = connection.prepare(&text)?;
            let mut rows = statement.query(params_from_iter(values))?;
            let mut found = Vec::new();
            while found.len() < limit
                && let Some(row) = rows.next()?
            {
                let host: Option<String> = row.get(0)?;
                let client: String = row.get(1)?;
                let is_host = (filter.host.as_ref())
                    .is_none_or(|glob| host.as_ref().is_some_and(|host| glob.is_match(host)));
                let is_client = (filter.client.as_ref()).is_none_or(|net| {
                    let client = client.parse::<std::net::IpAddr>();
                    client.is_ok_and(|client| net.contains(&client))
                });
                if is_host && is_client {
                    found.push(row.get(2)?);
                }
            }
            Ok(found)
        })
    }

    fn get(&self, id: Uuid) -> Result<Option<String>, String> {
        self.read(|connection| {
            let text = "SELECT record FROM records WHERE id = ?";
            let found = connection.query_row(text, [id.to_string()], |row| row.get(0));
            found.optional()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::kept::{client_pattern, host_pattern};
    use super::*;
    use crate::record::Outcome;

    const LIMIT: Duration = Duration::from_secs(10);

    fn record(at: u128, age: i64, host: &str, cause: Option<&'static str>) -> Arc<Record> {
        let end = Timestamp::now() - SignedDuration::from_secs(age);
        let client = Ipv4Addr::new(192, 0, 2, 1).into();
        let mut record = Record::begun(end, Uuid::from_u128(at), client, 1);
        record.server_address = Some(host.into());
        record.error_type = cause.map(Into::into);
        record.outcome = match cause {
            Some(_) => Outcome::Failure,
            None => Outcome::Success,
        };
        Arc::new(record)
    }

    #[test]
    fn records_outlast_the_process_and_the_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.db");
        let retention = Duration::from_hours(1);
        let history = Sqlite::open(&path, retention).unwrap();
        for (at, age, host, cause) in [
            (1, 4000, "old.example", None),
            (2, 30, "a.example", Some("connect.timeout")),
            (3, 20, "b.test", Some("policy.denied.rule")),
            (4, 10, "a.example", None),
        ] {
            history.keep(record(at, age, host, cause));
        }
        history.close(LIMIT);
        drop(history);
        let history = Sqlite::open(&path, retention).unwrap();
        let check = |filter: Filter, expected: &[u128]| {
            let found = history.find(&filter, 10).unwrap();
            let id = |line: &String| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                record["event.id"]
                    .as_str()
                    .unwrap()
                    .parse::<Uuid>()
                    .unwrap()
                    .as_u128()
            };
            assert_eq!(
                found.iter().map(id).collect::<Vec<_>>(),
                expected,
                "{filter:?}"
            );
        };
        let all = Filter::default;
        check(all(), &[4, 3, 2]);
        check(
            Filter {
                cause: Some("connect".into()),
                ..all()
            },
            &[2],
        );
        check(
            Filter {
                cause: Some("connect.time".into()),
                ..all()
            },
            &[],
        );
        check(
            Filter {
                outcome: Some(Wanted::Denied),
                ..all()
            },
            &[3],
        );
        check(
            Filter {
                host: host_pattern("*.example").ok(),
                ..all()
            },
            &[4, 2],
        );
        check(
            Filter {
                client: client_pattern("198.51.100.1").ok(),
                ..all()
            },
            &[],
        );
        let since = Timestamp::now() - SignedDuration::from_secs(15);
        check(
            Filter {
                since: Some(since),
                ..all()
            },
            &[4],
        );
        assert_eq!(history.find(&all(), 1).unwrap().len(), 1);
        assert!(
            history
                .get(Uuid::from_u128(3))
                .unwrap()
                .unwrap()
                .contains("b.test")
        );
        assert_eq!(history.get(Uuid::from_u128(1)), Ok(None));
        history.close(LIMIT);
    }
}
