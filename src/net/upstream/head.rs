//! A request that is sent, and the head of what is answered.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::{Reply, UpstreamError};

/// The longest head of an answer to a plain request, in bytes: as much as the proxy itself bears (hyper's client, by default), so
/// that what it passes on is not called too large here.
const MAX_ANSWER: usize = 8192 + 100 * 4096;

/// The most fields of a reply's head, as of the proxy's own client.
pub(super) const MAX_FIELDS: usize = 100;

/// So many interim replies (1xx) are skipped before one CONNECT's answer.
pub(super) const MAX_INTERIM: usize = 32;

/// Asks an upstream, or an origin, by a plain request whose answer has no body, and reads the head of that.
///
/// Waits at most `limit`. Whether another request may follow is in the reply's `is_reusable`.
///
/// # Errors
/// Where there was no whole head; any status is an answer.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    request: &[u8],
    limit: Duration,
) -> Result<Reply, UpstreamError> {
    let mut buffer = BytesMut::new();
    let mut reply = exchange(socket, request, &mut buffer, MAX_ANSWER, limit).await?;
    reply.is_reusable = reply.is_kept() && buffer.is_empty();
    Ok(reply)
}

/// Sends a request and takes the head of its answer, of up to `most` bytes, out of `buffer`.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    request: &[u8],
    buffer: &mut BytesMut,
    most: usize,
    limit: Duration,
) -> Result<Reply, UpstreamError> {
    let begun = Instant::now();
    let head = async {
        let sent = async {
            socket.write_all(request).await?;
            socket.flush().await
        };
        // A proxy may refuse and close before it has read: its answer is worth more than the error.
        let unsent = sent.await.err();
        read_reply(socket, buffer, most, unsent).await
    };
    let head = timeout_at(begun + limit, head).await;
    head.map_err(|_| UpstreamError::NoReply {
        after: begun.elapsed(),
    })?
}

/// Reads up to the end of the first head that is not interim and takes it out of `buffer`.
async fn read_reply<S: AsyncRead + Unpin>(
    socket: &mut S,
    buffer: &mut BytesMut,
    most: usize,
    mut unsent: Option<io::Error>,
) -> Result<Reply, UpstreamError> {
    let mut interim = 0;
    loop {
        match parse(buffer)? {
            Some((reply, len)) => {
                buffer.advance(len);
                // 101 is no interim reply: nothing else would follow.
                if !reply.status.is_informational()
                    || reply.status == StatusCode::SWITCHING_PROTOCOLS
                {
                    return Ok(reply);
                }
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(UpstreamError::HeadTooLarge);
                }
            }
            None if buffer.len() >= most => return Err(UpstreamError::HeadTooLarge),
            None => match (read_some(socket, buffer, most).await, unsent.take()) {
                (Ok(0), None) => return Err(UpstreamError::Closed),
                (Ok(0), Some(source)) | (Err(source), _) => return Err(lost(source)),
                (Ok(_), earlier) => unsent = earlier,
            },
        }
    }
}

/// Reads once, up to `max` bytes in the buffer altogether; 0 at the end.
pub(super) async fn read_some<S: AsyncRead + Unpin>(
    socket: &mut S,
    buffer: &mut BytesMut,
    max: usize,
) -> io::Result<usize> {
    let room = max.saturating_sub(buffer.len());
    buffer.reserve(room.min(4096));
    socket.read_buf(&mut buffer.limit(room)).await
}

pub(super) fn lost(source: io::Error) -> UpstreamError {
    if source.kind() == io::ErrorKind::ConnectionReset || source.raw_os_error() == Some(libc::EPIPE)
    {
        UpstreamError::Reset { source }
    } else if source.kind() == io::ErrorKind::BrokenPipe {
        // What an in-memory stream says when its other end was dropped.
        UpstreamError::Closed
    } else {
        UpstreamError::Io { source }
    }
}

/// Parses a head at the start of `bytes`: what it says and how long it is; `None` while it is partial.
fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, UpstreamError> {
    let malformed = || UpstreamError::MalformedReply {
        first: bytes
            .chunks(64)
            .next()
            .unwrap_or_default()
            .escape_ascii()
            .to_string(),
    };
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => {
            let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.ok_or_else(malformed)?;
            Ok(Some((Reply::new(status, &head), len)))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(UpstreamError::HeadTooLarge),
        Err(_) => Err(malformed()),
    }
}
