//! The thread that a script has to itself.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::exchange::Trail;
use crate::pac::{self, Engine, LIMIT, PacError, Script, THREAD_STACK};
use crate::route::Names;
use crate::target::Host;

/// So many requests wait for their turn.
const QUEUE: usize = 1024;

/// One lookup of a script's takes no longer.
const LOOKUP: Duration = Duration::from_secs(2);

pub(super) type Asked = SyncSender<Question>;

/// One request.
pub(super) struct Question {
    url: String,
    host: String,
    limit: Duration,
    until: Instant,
    answer: oneshot::Sender<Result<String, PacError>>,
}

/// Starts the thread. It ends with the last of those who may ask.
pub(super) fn start(script: Script, names: Names) -> Asked {
    let (asked, questions) = sync_channel(QUEUE);
    let runtime = Handle::current();
    let started = thread().spawn(move || serve(&script, &names, &runtime, &questions));
    if let Err(error) = started {
        tracing::error!(%error, "start a thread for a PAC file");
    }
    asked
}

fn thread() -> thread::Builder {
    let thread = thread::Builder::new().name("pac".to_owned());
    thread.stack_size(THREAD_STACK)
}

/// Reads a script, on a thread of its own: requests are not kept waiting, and it may take as much of the stack.
pub(super) async fn check(text: Arc<str>) -> Result<(), PacError> {
    let (answer, answered) = oneshot::channel();
    // Whoever asked may have left.
    let read = move || drop(answer.send(pac::check(&text)));
    if let Err(error) = thread().spawn(read) {
        tracing::error!(%error, "start a thread for a PAC file");
        return Err(PacError::Busy);
    }
    answered.await.unwrap_or(Err(PacError::Busy))
}

fn serve(script: &Script, names: &Names, runtime: &Handle, questions: &Receiver<Question>) {
    let mut engine = None;
    while let Ok(question) = questions.recv() {
        let left = question.until.saturating_duration_since(Instant::now());
        if left.is_zero() || question.answer.is_closed() {
            continue;
        }
        let ready = if let Some(ready) = engine.take() {
            Ok(ready)
        } else {
            let (names, runtime) = (names.clone(), runtime.clone());
            let lookup = move |name: &str| lookup(name, &names, &runtime);
            Engine::new(&script.text, Box::new(lookup))
        };
        let said = ready.and_then(|ready: Engine| {
            let said = ready.find(&question.url, &question.host, left);
            match said {
                // What was broken off may have left anything behind. It had waited as well.
                Err(PacError::Slow(_)) => Err(PacError::Slow(question.limit)),
                Err(PacError::Memory(_)) => said,
                Ok(_) | Err(_) => {
                    engine = Some(ready);
                    said
                }
            }
        });
        // The client may have left.
        let _ = question.answer.send(said);
    }
}

fn lookup(name: &str, names: &Names, runtime: &Handle) -> Option<Ipv4Addr> {
    let host = Host::parse(name).ok()?;
    let trail = Trail::default();
    let found = runtime.block_on(names.of_target(&host, None).lookup(&host, LOOKUP, &trail));
    found.ok()?.into_iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

pub(super) async fn ask(
    asked: &Asked,
    url: String,
    host: String,
    limit: Duration,
) -> Result<String, PacError> {
    let until = Instant::now() + limit;
    let (answer, answered) = oneshot::channel();
    let question = Question {
        url,
        host,
        limit,
        until,
        answer,
    };
    asked.try_send(question).map_err(|_| PacError::Busy)?;
    // The script ends by itself; this is for those that wait behind another.
    let grace = LIMIT / 10;
    match timeout_at(until + grace, answered).await {
        Ok(Ok(said)) => said,
        Ok(Err(_)) | Err(_) => Err(PacError::Slow(limit)),
    }
}
