//! Sockets for the resolver that notice when there is no name server, and when somebody else answers as well.
//!
//! The UDP ones are connected: only the server that was asked can answer, and the kernel tells that nobody listens there
//! (`ECONNREFUSED`, from the ICMP message), where an unconnected socket would wait for the whole limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, Spawn as _, TokioRuntimeProvider, TokioTime,
};
use hickory_resolver::proto::op::{Message, ResponseCode};
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::facts::Transport;
use super::journal::{Journal, Story};
use super::way::{Line, Way};

/// A future on the heap.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A socket that has its answer is watched for another one for this long. Who injects answers has to be faster than the
/// server, whose own then comes a round trip later at most.
const WATCH: Duration = Duration::from_millis(300);

/// Tokio's runtime with sockets of ours.
#[derive(Clone)]
pub(super) struct Sockets {
    tokio: TokioRuntimeProvider,
    journal: Arc<Journal>,
    pub(super) way: Arc<Way>,
}

impl Sockets {
    pub(super) fn new(journal: Arc<Journal>, way: Arc<Way>) -> Self {
        Self {
            tokio: TokioRuntimeProvider::default(),
            journal,
            way,
        }
    }
}

impl RuntimeProvider for Sockets {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Timer = TokioTime;
    type Udp = Connected;
    type Tcp = AsyncIoTokioAsStd<Line>;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Boxed<io::Result<Self::Tcp>> {
        let plain = self.tokio.connect_tcp(server, local, limit);
        let (journal, way) = (self.journal.clone(), self.way.clone());
        Box::pin(async move {
            let connected = match way.tunnel() {
                Ok(None) => plain.await.map(|stream| Line::Plain(stream.0)),
                Ok(Some(tunnel)) => tunnel.open(server).await.map(Line::inside),
                Err(error) => Err(error),
            };
            match connected.map(AsyncIoTokioAsStd) {
                Ok(stream) => {
                    journal.note(server, |peer| peer.tcp = None);
                    Ok(stream)
                }
                Err(error) => {
                    let kept = match error.raw_os_error() {
                        Some(code) => io::Error::from_raw_os_error(code),
                        None => io::Error::new(error.kind(), error.to_string()),
                    };
                    journal.note(server, |peer| peer.tcp = Some(Arc::new(kept)));
                    Err(error)
                }
            }
        })
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Boxed<io::Result<Self::Udp>> {
        let sockets = self.clone();
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            let socket = Arc::new(socket);
            let error = Mutex::new(error_on(socket.clone()));
            Ok(Connected {
                socket,
                error,
                server,
                sockets,
                question: Mutex::default(),
            })
        })
    }
}

/// A connected UDP socket, for one question.
pub(super) struct Connected {
    socket: Arc<UdpSocket>,
    /// Tokio wakes a reader for data only: an error alone has to be waited for apart.
    error: Mutex<Boxed<io::Result<Ready>>>,
    server: SocketAddr,
    sockets: Sockets,
    question: Mutex<Option<Question>>,
}

/// What was asked, as bytes, and the first answer to it.
struct Question {
    id: [u8; 2],
    /// Name, type and class.
    entry: Vec<u8>,
    answer: Option<Vec<u8>>,
    story: Arc<Story>,
}

fn error_on(socket: Arc<UdpSocket>) -> Boxed<io::Result<Ready>> {
    Box::pin(async move { socket.ready(Interest::ERROR).await })
}

impl DnsUdpSocket for Connected {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buf = ReadBuf::new(buf);
        if let Poll::Ready(received) = self.socket.poll_recv_from(cx, &mut buf) {
            let mut question = self.question.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(question), Ok(_)) = (&mut *question, &received) {
                question.hears(buf.filled());
            }
            return Poll::Ready(received.map(|from| (buf.filled().len(), from)));
        }
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if error.as_mut().poll(cx).is_ready() {
            *error = error_on(self.socket.clone());
            if let Some(error) = self.socket.take_error()? {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Pending
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        _: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        let sent = self.socket.poll_send(cx, buf);
        if let Poll::Ready(Ok(_)) = sent {
            let asked = Question::read(buf, &self.sockets.journal);
            if let Some(question) = &asked {
                question.story.asks(self.server, Transport::Udp);
            }
            *self.question.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        }
        sent
    }
}

/// The length of a message's header (RFC 1035, section 4.1.1): the question follows.
const HEADER: usize = 12;

impl Question {
    fn read(query: &[u8], journal: &Journal) -> Option<Self> {
        let message = Message::from_vec(query).ok()?;
        let id = *query.first_chunk()?;
        let name = query.get(HEADER..)?;
        let length = name.iter().position(|byte| *byte == 0)? + 5;
        Some(Self {
            id,
            entry: name.get(..length)?.to_vec(),
            answer: None,
            story: journal.story(message.queries.first()?),
        })
    }

    fn is_answered_by(&self, reply: &[u8]) -> bool {
        let entry = reply.get(HEADER..HEADER + self.entry.len());
        reply.starts_with(&self.id)
            && entry.is_some_and(|entry| entry.eq_ignore_ascii_case(&self.entry))
    }

    fn hears(&mut self, reply: &[u8]) {
        if !self.is_answered_by(reply) {
            self.story.strays();
        } else if self.answer.is_none() {
            self.answer = Some(reply.to_vec());
        }
    }
}

impl Drop for Connected {
    /// The library takes the first answer and drops the socket; a second one is still to come where answers are injected.
    fn drop(&mut self) {
        let question = self
            .question
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(question) = question.take_if(|question| question.answer.is_some()) else {
            return;
        };
        let Ok(room) = self.sockets.journal.watched.clone().try_acquire_owned() else {
            return;
        };
        if Handle::try_current().is_err() {
            return;
        }
        let socket = self.socket.clone();
        self.sockets.create_handle().spawn_bg(async move {
            let _ = timeout(WATCH, watch(&socket, &question)).await;
            drop(room);
        });
    }
}

/// Waits for an answer that says something else than the first.
async fn watch(socket: &UdpSocket, question: &Question) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let reply = buffer.get(..length).unwrap_or_default();
        let first = question.answer.as_deref().unwrap_or_default();
        if question.is_answered_by(reply) && differ(first, reply) {
            question.story.hears_another();
            return Ok(());
        }
    }
}

/// Whether two replies say different things. What is truncated says too little, and a network may well deliver one twice.
fn differ(first: &[u8], second: &[u8]) -> bool {
    let read = |reply: &[u8]| -> Option<(ResponseCode, Vec<String>)> {
        let message = Message::from_vec(reply).ok()?;
        let answers = message.answers.iter();
        let mut answers: Vec<_> = answers.map(|record| record.data.to_string()).collect();
        answers.sort_unstable();
        (!message.metadata.truncation).then_some((message.metadata.response_code, answers))
    };
    read(first).zip(read(second)).is_some_and(|(a, b)| a != b)
}
