//! One direction of a relay.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;

use super::Stream;
use crate::net::pipe::Pipe;

/// One read. TLS records are about this long, and it is what a side that does not read costs.
pub(super) const CHUNK: usize = 16 * 1024;

/// So many reads are done in a row before the task gives way to others.
const READS_PER_POLL: usize = 16;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends the thread's scratch buffer. It is taken out meanwhile, so a relay inside a relay is safe
/// (it gets its own).
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    scratch.resize(CHUNK, 0);
    let result = work(&mut scratch);
    SCRATCH.set(scratch);
    result
}

/// Which end of a way broke.
#[derive(Debug)]
pub(super) enum Broken {
    Read(io::Error),
    Write(io::Error),
}

/// Bytes from a reader to a writer, and its end behind them.
#[derive(Debug)]
pub(super) struct Way {
    /// Read and not yet written.
    rest: Bytes,
    /// The same, in the kernel; there is never both.
    pipe: Option<Pipe>,
    /// The last read was as long as it could be: what comes is worth a pipe.
    is_bulk: bool,
    stage: Stage,
    /// The end is not to be passed on.
    keeps_end: bool,
    moved: Moved,
    written: u64,
}

/// What was done with bytes, the most of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moved {
    Nothing,
    /// Only such as had been read before.
    Written,
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Flowing,
    /// The reader has ended; the rest and the end are still to be written.
    Ended,
    Done,
    /// There is nobody to write to.
    Abandoned,
}

impl Way {
    /// A way that begins with `early`.
    pub(super) fn new(early: Bytes) -> Self {
        Self {
            // Even an empty one holds on to the buffer that it was cut from.
            rest: if early.is_empty() {
                Bytes::new()
            } else {
                early
            },
            pipe: None,
            is_bulk: false,
            stage: Stage::Flowing,
            keeps_end: false,
            moved: Moved::Nothing,
            written: 0,
        }
    }

    /// Whether the reader has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended | Stage::Done)
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Abandoned)
    }

    /// Whether the writer has not taken all that was read.
    pub(super) fn is_blocked(&self) -> bool {
        !self.rest.is_empty() || self.pipe.is_some()
    }

    /// Gives the way up: there is nobody to write to.
    pub(super) fn abandon(&mut self) {
        self.rest = Bytes::new();
        self.pipe = None;
        self.stage = Stage::Abandoned;
    }

    /// From now on the reader's end is not passed on.
    pub(super) fn keep_end(&mut self) {
        self.keeps_end = true;
    }

    /// Whether bytes were read since the last [`Self::take_moved`], rather than only written that were read before.
    pub(super) fn has_read(&self) -> bool {
        self.moved == Moved::Read
    }

    /// How many bytes were written since the last call; `None` if none were even read.
    pub(super) fn take_moved(&mut self) -> Option<u64> {
        let written = std::mem::take(&mut self.written);
        let moved = std::mem::replace(&mut self.moved, Moved::Nothing);
        (moved != Moved::Nothing).then_some(written)
    }

    /// Carries what can be carried now; `Ready` when the way is done or has failed. What is told to `seen` is copied;
    /// `is_watched` says that all must be told.
    pub(super) fn poll<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        scratch: &mut [u8],
        is_watched: bool,
        seen: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..READS_PER_POLL {
            ready!(self.poll_held(cx, writer))?;
            match self.stage {
                Stage::Done | Stage::Abandoned => return Poll::Ready(Ok(())),
                Stage::Ended => {
                    if !self.keeps_end {
                        ready!(Pin::new(writer).poll_shutdown(cx)).map_err(Broken::Write)?;
                    }
                    self.stage = Stage::Done;
                    return Poll::Ready(Ok(()));
                }
                Stage::Flowing => {}
            }
            let spliced = if self.is_bulk && !is_watched {
                self.poll_splice(cx, reader, writer)
            } else {
                None
            };
            let read = spliced.unwrap_or_else(|| self.poll_copy(cx, reader, writer, scratch, seen));
            match read {
                Poll::Ready(Ok(0)) => self.stage = Stage::Ended,
                Poll::Ready(Ok(_)) => self.moved = Moved::Read,
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what was read before.
    fn poll_held<W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), Broken>> {
        while !self.rest.is_empty() {
            let result = ready!(Pin::new(&mut *writer).poll_write(cx, &self.rest));
            let n = self.wrote(result)?;
            self.rest.advance(n);
            if self.rest.is_empty() {
                self.rest = Bytes::new();
            }
        }
        while let (Some(pipe), Some(socket)) = (&mut self.pipe, writer.socket()) {
            let result = ready!(socket.poll_drain(cx, pipe));
            if pipe.held() == 0 {
                self.pipe = None;
            }
            self.wrote(result)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once into the scratch and writes what the writer takes of it.
    fn poll_copy<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        scratch: &mut [u8],
        seen: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<usize, Broken>> {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(reader).poll_read(cx, &mut buffer)).map_err(Broken::Read)?;
        self.is_bulk = buffer.remaining() == 0;
        let mut data = buffer.filled();
        let read = data.len();
        if read > 0 {
            self.moved = Moved::Read;
            seen(data);
            if let Poll::Ready(result) = Pin::new(writer).poll_write(cx, data) {
                data.advance(self.wrote(result)?);
            }
            self.rest = Bytes::copy_from_slice(data);
        }
        Poll::Ready(Ok(read))
    }

    /// Reads once into a pipe; `None` where there is none to be had, nothing to splice, or no leave to.
    fn poll_splice<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &R,
        writer: &W,
    ) -> Option<Poll<Result<usize, Broken>>> {
        let (from, _) = reader.socket().zip(writer.socket())?;
        let mut pipe = Pipe::borrow()?;
        let filled = from.poll_fill(cx, &mut pipe);
        if pipe.held() > 0 {
            self.is_bulk = pipe.held() >= CHUNK;
            self.pipe = Some(pipe);
        }
        if let Poll::Ready(Err(error)) = &filled
            && Pipe::is_refusal(error)
        {
            return None;
        }
        Some(filled.map_err(Broken::Read))
    }

    fn wrote(&mut self, result: io::Result<usize>) -> Result<usize, Broken> {
        match result {
            Ok(0) => Err(Broken::Write(io::ErrorKind::WriteZero.into())),
            Ok(n) => {
                self.moved = self.moved.max(Moved::Written);
                self.written += n as u64;
                Ok(n)
            }
            Err(error) => Err(Broken::Write(error)),
        }
    }
}
