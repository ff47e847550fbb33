//! What a client says first in a tunnel, kept whole until somebody has answered it.
//!
//! Pure: bytes and moments go in.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::hello::ClientHello;
use super::ledger::{Ledger, Speech, State};
use crate::cause::Class;

/// A first flight that is longer is nobody's ClientHello, and is not kept.
pub const LONGEST: usize = 64 * 1024;

/// The client's first bytes.
#[derive(Debug, Default)]
pub struct Flight {
    bytes: BytesMut,
    ledger: Ledger,
}

/// How far a first flight has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing came yet.
    Silence,
    /// It may still become a ClientHello.
    Partial,
    /// One whole ClientHello without early data, and nothing behind it: sent again, it asks for nothing twice.
    Hello,
    /// Anything else: what it asks for cannot be told, so it goes out once at most.
    Opaque,
}

impl Flight {
    /// Takes the client's next bytes.
    pub fn take(&mut self, bytes: &[u8], now: Instant) {
        self.ledger.client(bytes, now);
        self.bytes.extend_from_slice(bytes);
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        if self.bytes.is_empty() {
            return Stage::Silence;
        }
        let facts = self.ledger.facts_now();
        if self.ledger.is_over() || facts.speech != Speech::Tls || self.bytes.len() > LONGEST {
            return Stage::Opaque;
        }
        match (facts.state, &facts.client_hello) {
            (State::T2, Some(hello))
                if !hello.early_data && facts.client_hello_bytes == self.bytes.len() =>
            {
                Stage::Hello
            }
            (State::T0 | State::T1, _) => Stage::Partial,
            _ => Stage::Opaque,
        }
    }

    /// The ClientHello, once it is whole.
    pub fn hello(&self) -> Option<&Arc<ClientHello>> {
        self.ledger.facts_now().client_hello.as_ref()
    }

    /// What is wrong with a server's first bytes behind it, where that can be told from them: they are no TLS, or a fatal
    /// alert.
    pub fn fault_of(&self, answer: &[u8], now: Instant) -> Option<Class> {
        let mut ledger = self.ledger.clone();
        ledger.server(answer, now);
        let facts = ledger.facts_now();
        // Its level (RFC 5246, section 7.2): a mere warning may stand before a ServerHello.
        let is_fatal = matches!(answer, [21, 3, _, _, _, 2, ..]);
        if matches!(facts.speech, Speech::Answered(_)) {
            Some(Class::NotTls)
        } else if facts.server_alert.is_some() && facts.server_hello.is_none() && is_fatal {
            Some(Class::TlsAlert)
        } else {
            None
        }
    }

    /// All bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes, to be sent.
    pub fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ledger::tests::{client_hello, record};

    fn flight(pieces: &[&[u8]]) -> Flight {
        let mut flight = Flight::default();
        for piece in pieces {
            flight.take(piece, Instant::now());
        }
        flight
    }

    #[test]
    fn one_whole_client_hello_is_told_however_it_is_cut() {
        let hello = client_hello("a.example");
        assert_eq!(flight(&[]).stage(), Stage::Silence);
        for cut in 1..hello.len() {
            let (head, tail) = hello.split_at(cut);
            assert_eq!(flight(&[head]).stage(), Stage::Partial, "{cut}");
            let whole = flight(&[head, tail]);
            assert_eq!(whole.stage(), Stage::Hello, "{cut}");
            assert_eq!(
                whole.hello().unwrap().server_name.as_deref(),
                Some("a.example")
            );
            assert_eq!(whole.into_bytes(), hello);
        }
    }

    #[test]
    fn a_byte_behind_it_makes_it_opaque() {
        let hello = client_hello("a.example");
        assert_eq!(flight(&[&hello, b"\x17"]).stage(), Stage::Opaque);
        let data = record(23, b"early data");
        assert_eq!(flight(&[&hello, &data]).stage(), Stage::Opaque);
        assert_eq!(flight(&[&hello, &hello]).stage(), Stage::Opaque);
    }

    #[test]
    fn what_speaks_against_an_answer_is_told_from_its_first_bytes() {
        let told = |answer: &[u8]| {
            let flight = flight(&[&client_hello("a.example")]);
            flight.fault_of(answer, Instant::now())
        };
        for page in [&b"HTTP/1.1 403"[..], b"<", &[22, 1], &[24, 3, 3], &[0x80]] {
            assert_eq!(told(page), Some(Class::NotTls), "{page:?}");
        }
        assert_eq!(told(&record(21, &[2, 112])), Some(Class::TlsAlert));
        // The beginning of a record, a mere warning, an alert that is cut.
        for fine in [
            &[22][..],
            &[22, 3, 3, 0, 90, 2],
            &[21],
            &[21, 3, 3, 0, 2, 2],
        ] {
            assert_eq!(told(fine), None, "{fine:?}");
        }
        assert_eq!(told(&record(21, &[1, 112])), None);
    }

    #[test]
    fn what_is_no_tls_is_opaque_from_its_first_byte() {
        for first in [&b"G"[..], b"SSH-2.0-x\r\n", b"\x05", b"\x00"] {
            assert_eq!(flight(&[first]).stage(), Stage::Opaque, "{first:?}");
        }
        // A record of a handshake that begins with something else.
        let finished = record(22, &[20, 0, 0, 1, 7]);
        assert_eq!(flight(&[&finished]).stage(), Stage::Opaque);
    }
}
