//! The header of the PROXY protocol, in which a balancer says for whom it connects.
//!
//! Source: the PROXY protocol, versions 1 and 2.

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::failure::HeadError;

/// The signature of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header of version 1, with its CRLF.
const LONGEST_1: usize = 107;

/// More than all extensions of version 2 take, in bytes.
const LONGEST_2: usize = 4096;

/// Reads the header, and not a byte beyond it; the client that it names, or none where the balancer speaks for itself.
///
/// # Errors
/// [`HeadError::ProxyHeader`] where it is none; [`HeadError::Empty`] where nothing came.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, HeadError> {
    let mut header = vec![0; SIGNATURE.len()];
    match stream.read_exact(&mut header).await {
        Ok(_) => {}
        Err(_) if header.iter().all(|byte| *byte == 0) => return Err(HeadError::Empty),
        Err(_) => return Err(CUT),
    }
    if header == SIGNATURE {
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await.map_err(|_| CUT)?;
        header.extend_from_slice(&rest);
        let [.., high, low] = rest;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > LONGEST_2 {
            return Err(HeadError::ProxyHeader("is over 4 KiB"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.map_err(|_| CUT)?;
        header.extend_from_slice(&body);
    } else if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") {
            if header.len() >= LONGEST_1 {
                return Err(HeadError::ProxyHeader("is over 107 bytes"));
            }
            header.push(stream.read_u8().await.map_err(|_| CUT)?);
        }
    } else {
        return Err(HeadError::ProxyHeader("is missing"));
    }
    source(&header)
}

const CUT: HeadError = HeadError::ProxyHeader("is cut");

fn source(header: &[u8]) -> Result<Option<SocketAddr>, HeadError> {
    const WRONG: HeadError = HeadError::ProxyHeader("cannot be read");
    match HeaderResult::parse(header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Tcp4(of) => Some((of.source_address, of.source_port).into()),
            v1::Addresses::Tcp6(of) => Some((of.source_address, of.source_port).into()),
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) => match (header.command, header.addresses) {
            (v2::Command::Local, _) => Ok(None),
            (v2::Command::Proxy, v2::Addresses::IPv4(of)) => {
                Ok(Some((of.source_address, of.source_port).into()))
            }
            (v2::Command::Proxy, v2::Addresses::IPv6(of)) => {
                Ok(Some((of.source_address, of.source_port).into()))
            }
            (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => Ok(None),
        },
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(WRONG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(bytes: &[u8]) -> (String, Vec<u8>) {
        let mut stream = bytes;
        let told = match read(&mut stream).await {
            Ok(source) => format!("{source:?}"),
            Err(error) => error.to_string(),
        };
        (told, stream.to_vec())
    }

    #[tokio::test]
    async fn both_versions_are_read_and_nothing_behind_them() {
        for (header, expected) in [
            (
                &b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"[..],
                "Some(192.0.2.1:1234)",
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 1234 80\r\n",
                "Some([2001:db8::1]:1234)",
            ),
            (b"PROXY UNKNOWN\r\n", "None"),
            (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x04\xd2\0\x50",
                "Some(192.0.2.1:1234)",
            ),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "None"),
        ] {
            let with_more = [header, b"GET"].concat();
            let (told, rest) = told(&with_more).await;
            assert_eq!(
                (&*told, &*rest),
                (expected, &b"GET"[..]),
                "{}",
                header.escape_ascii()
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], "is missing"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1234", "is cut"),
            (
                b"PROXY TCP4 192.0.2.999 192.0.2.2 1234 80\r\n",
                "cannot be read",
            ),
            (
                b"PROXY TCP9 192.0.2.1 192.0.2.2 1234 80\r\n",
                "cannot be read",
            ),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "is over 4 KiB"),
            (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04\0\0\0\0",
                "cannot be read",
            ),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0", "cannot be read"),
        ] {
            let (told, _) = told(bytes).await;
            assert!(
                told.ends_with(expected),
                "{told} of {}",
                bytes.escape_ascii()
            );
        }
        let long = [b"PROXY TCP4 ", &[b'1'; 200][..]].concat();
        assert!(told(&long).await.0.ends_with("is over 107 bytes"));
        assert_eq!(told(b"").await.0, HeadError::Empty.to_string());
    }
}
