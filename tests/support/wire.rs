//! Raw bytes over loopback.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::SOON;

/// Connects; whatever is waited for on the connection comes soon or fails the test.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Writes bytes.
pub fn send(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

/// Reads up to and with the blank line behind a head.
pub fn read_head(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            other => panic!("{other:?} behind {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).unwrap()
}

/// Reads so many bytes.
pub fn read_exact(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads to the end of the peer's direction.
pub fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Reads to the end, as text.
pub fn read_text(stream: &TcpStream) -> String {
    String::from_utf8_lossy(&read_to_end(stream)).into_owned()
}

/// Ends our direction.
pub fn finish(stream: &TcpStream) {
    stream.shutdown(std::net::Shutdown::Write).unwrap();
}

/// Ends the connection with a reset.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// Waits for the end of the peer's direction, by FIN or by RST.
pub fn read_or_reset(mut stream: &TcpStream) {
    let mut room = [0; 4096];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether the next thing on the connection is a reset.
pub fn is_reset(mut stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Reads one byte; none where the connection ends.
fn next(mut stream: &TcpStream) -> Option<u8> {
    let mut byte = [0];
    (stream.read(&mut byte).unwrap() == 1).then_some(byte[0])
}

/// Reads one line, without its end.
pub fn read_line(stream: &TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(
            next(stream).unwrap_or_else(|| panic!("the end behind {:?}", line.escape_ascii())),
        );
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).unwrap()
}

/// Reads one chunk: its content, which is empty for the last one, whose trailers are left unread.
pub fn read_chunk(stream: &TcpStream) -> Vec<u8> {
    let size = usize::from_str_radix(&read_line(stream), 16).unwrap();
    let chunk = read_exact(stream, size);
    if size > 0 {
        assert_eq!(read_exact(stream, 2), b"\r\n");
    }
    chunk
}

/// Reads a chunked body with its trailers: the content as text, and the trailer lines.
pub fn read_chunked(stream: &TcpStream) -> (String, Vec<String>) {
    let mut body = Vec::new();
    loop {
        let chunk = read_chunk(stream);
        if chunk.is_empty() {
            break;
        }
        body.extend(chunk);
    }
    let lines = std::iter::repeat_with(|| read_line(stream));
    let trailers = lines.take_while(|line| !line.is_empty()).collect();
    (String::from_utf8(body).unwrap(), trailers)
}

/// A whole answer: its head, and the body that the head announces.
pub fn read_answer(stream: &TcpStream) -> (String, String) {
    let head = read_head(stream);
    let body = match field(&head, "content-length") {
        _ if matches!(status(&head), 204 | 304) => Vec::new(),
        Some(length) => read_exact(stream, length.parse().unwrap()),
        None if field(&head, "transfer-encoding").is_some() => {
            return (head, read_chunked(stream).0);
        }
        None => read_to_end(stream),
    };
    (head, String::from_utf8(body).unwrap())
}

/// The status of an answer's head.
pub fn status(head: &str) -> u16 {
    head[9..12].parse().unwrap()
}

/// A field of a head; the first, where there are several.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    fields(head, name).into_iter().next()
}

/// Every field of that name.
pub fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let named = |line: &'a str| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    };
    head.lines().skip(1).filter_map(named).collect()
}

/// Whether the peer ends its direction next, without another byte.
pub fn is_fin(mut stream: &TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}
