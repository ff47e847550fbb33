//! The name servers that the tests play.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::super::Resolver;

/// What a name server does with a query, by its kind (A is 1, AAAA is 28).
pub(super) type Answer = fn(query: &[u8], kind: u16) -> Option<Vec<u8>>;

/// A name server on loopback, on UDP and TCP.
pub(super) fn server(udp: Answer, tcp: Answer) -> Resolver {
    let (socket, listener) = sockets();
    let address = socket.local_addr().unwrap();
    by_udp(socket, move |query, kind| {
        udp(query, kind).into_iter().collect()
    });
    by_tcp(listener, tcp);
    Resolver::with_servers(&[address])
}

/// One on UDP alone, that answers with any number of datagrams.
pub(super) fn server_of(
    answer: impl Fn(&[u8], u16) -> Vec<Vec<u8>> + Send + 'static,
) -> SocketAddr {
    let (socket, _) = sockets();
    let address = socket.local_addr().unwrap();
    by_udp(socket, answer);
    address
}

pub(super) fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()) {
            break (socket, listener);
        }
    }
}

pub(super) fn by_udp(
    socket: UdpSocket,
    answer: impl Fn(&[u8], u16) -> Vec<Vec<u8>> + Send + 'static,
) {
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..length];
            for reply in answer(query, kind_of(query)) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
}

fn by_tcp(listener: TcpListener, answer: Answer) {
    std::thread::spawn(move || {
        // Each family has a connection of its own.
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut query).unwrap();
                    let reply = answer(&query, kind_of(&query)).unwrap_or_default();
                    let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&length[..], &reply].concat()).unwrap();
                }
            });
        }
    });
}

fn question(query: &[u8]) -> &[u8] {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap();
    &query[12..12 + name + 5]
}

fn kind_of(query: &[u8]) -> u16 {
    let question = question(query);
    u16::from_be_bytes([question[question.len() - 4], question[question.len() - 3]])
}

/// A reply with a response code and records of the kind that was asked for (RFC 1035, section 4.1).
pub(super) fn reply(query: &[u8], code: u8, records: &[&[u8]]) -> Vec<u8> {
    let count = u8::try_from(records.len()).unwrap();
    let mut reply = [
        &query[..2],
        &[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0],
        question(query),
    ]
    .concat();
    for record in records {
        let [high, low] = kind_of(query).to_be_bytes();
        let length = u8::try_from(record.len()).unwrap();
        reply.extend([0xc0, 12, high, low, 0, 1, 0, 0, 0, 60, 0, length]);
        reply.extend(*record);
    }
    reply
}

/// The same reply with an SOA record in its authority section.
pub(super) fn with_soa(mut reply: Vec<u8>) -> Vec<u8> {
    reply[9] += 1;
    reply.extend([0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 60, 0, 22]);
    reply.extend([0; 22]);
    reply
}

/// The same reply with an extended error (RFC 8914, section 2).
pub(super) fn with_ede(mut reply: Vec<u8>, code: u8, text: &str) -> Vec<u8> {
    reply[11] += 1;
    let length = u8::try_from(text.len()).unwrap() + 2;
    reply.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, length + 4]);
    reply.extend([0, 15, 0, length, 0, code]);
    reply.extend(text.as_bytes());
    reply
}

/// The same reply, truncated.
pub(super) fn truncated(mut reply: Vec<u8>) -> Vec<u8> {
    reply[2] |= 2;
    reply
}

/// The name that a query asks for.
pub(super) fn name_in(query: &[u8]) -> String {
    let question = question(query);
    let mut labels = Vec::new();
    let mut at = 0;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
        at = end;
    }
    labels.join(".")
}
