//! Records exported by OTLP, as spans and as logs, by a thread of their own.
//!
//! Source: OpenTelemetry protocol specification, OTLP/HTTP with binary protobuf.

mod collector;
mod message;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use self::collector::{Collector, SendError};
use self::message::Scene;
use super::board::Keep;
use super::desk::{Desk, Office, Put};
use crate::config::Environment;
use crate::config::otlp::Otlp;
use crate::record::Record;

pub use self::collector::HeaderError;

/// Records in one message, at most.
const BATCH: usize = 512;

/// More records are waited for so long; short, so that a busy proxy does not fill the queue meanwhile.
const GATHER: Duration = Duration::from_millis(200);

/// What is sent again waits so long before each further try.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Records on their way to a collector.
#[derive(Debug)]
pub struct Exporter {
    office: Office<Arc<Record>>,
}

impl Exporter {
    /// Starts to export.
    ///
    /// # Errors
    /// A header field whose value cannot be had.
    pub fn start(otlp: &Otlp, environment: &Environment) -> Result<Self, HeaderError> {
        let collector = |url: &Option<http::Uri>| {
            let url = url.as_ref();
            url.map(|url| Collector::new(url, otlp, environment))
                .transpose()
        };
        let line = Line {
            traces: collector(&otlp.traces)?,
            logs: collector(&otlp.logs)?,
            scene: Scene::new(&otlp.resource),
            is_failing: false,
        };
        Ok(Self {
            office: Office::open("otlp", move |desk| export_all(line, desk)),
        })
    }
}

impl Keep for Exporter {
    fn name(&self) -> &'static str {
        "otlp"
    }

    fn keep(&self, record: Arc<Record>) {
        if self.office.desk.put(record) == Put::FirstDropped {
            tracing::warn!(
                "the OTLP collector is too slow: records are dropped on their way there"
            );
        }
    }

    fn dropped(&self) -> u64 {
        self.office.desk.dropped()
    }

    fn close(&self, limit: Duration) {
        if !self.office.close(limit) {
            tracing::error!(
                "the OTLP collector does not answer: the last records are not exported"
            );
        }
    }
}

fn export_all(mut line: Line, desk: &Desk<Arc<Record>>) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no runtime: nothing is exported by OTLP"),
    };
    let mut taken = Vec::new();
    while desk.take(&mut taken) {
        for batch in taken.chunks(BATCH) {
            line.export(batch, desk, &runtime);
        }
        taken.clear();
        desk.rest(GATHER);
    }
}

/// The way to the collectors.
struct Line {
    traces: Option<Collector>,
    logs: Option<Collector>,
    scene: Scene,
    /// It was told already.
    is_failing: bool,
}

impl Line {
    fn export(&mut self, records: &[Arc<Record>], desk: &Desk<Arc<Record>>, runtime: &Runtime) {
        let mut lost = 0;
        let mut failed = None;
        let mut send = |collector: &mut Collector, message: Option<Vec<u8>>| {
            let Some(message) = message else { return };
            match persist(collector, message, desk, runtime) {
                Ok(rejected) => lost = lost.max(rejected),
                Err(error) => {
                    lost = records.len() as u64;
                    failed = Some(format!("{}: {error}", collector.url()));
                }
            }
        };
        if let Some(collector) = &mut self.traces {
            send(collector, self.scene.traces(records));
        }
        if let Some(collector) = &mut self.logs {
            send(collector, Some(self.scene.logs(records)));
        }
        if lost > 0 {
            desk.lose(lost);
        }
        match failed {
            Some(error) if !self.is_failing => {
                tracing::error!(
                    "export by OTLP to {error}; records are lost there until it works again"
                );
                self.is_failing = true;
            }
            None if self.is_failing => {
                tracing::info!("the export by OTLP works again");
                self.is_failing = false;
            }
            Some(_) | None => {}
        }
    }
}

/// Sends a message, again where that may help; says how much of it was rejected.
fn persist(
    collector: &mut Collector,
    message: Vec<u8>,
    desk: &Desk<Arc<Record>>,
    runtime: &Runtime,
) -> Result<u64, SendError> {
    let message = bytes::Bytes::from(message);
    for pause in PAUSES {
        match runtime.block_on(collector.send(message.clone())) {
            Err(error) if error.may_pass() && !desk.is_closed() => desk.rest(pause),
            sent => return sent,
        }
    }
    runtime.block_on(collector.send(message))
}
