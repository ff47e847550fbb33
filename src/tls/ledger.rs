//! Follows the TLS handshake of an opaque tunnel: how far it came, and who said what in the clear.
//!
//! Pure: bytes and moments go in, [`Facts`] come out. At most one handshake message of each side is held at a time, and
//! nothing once the handshake is over. Lengths tell what TLS 1.3 hides (RFC 8446, section 5.2): an alert is a record of 19
//! bytes, a Finished one of 53 or 69.

mod records;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hello::{ClientHello, ServerHello};
use crate::cause::Alert;
use records::{
    ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, Messages, NotTls, Piece, Records,
};

/// A handshake that takes more bytes than this, either way, is not followed to its end.
const MOST: u64 = 256 * 1024;

/// An alert of the server's that comes later behind the client's last bytes answers to nothing: the server tires of waiting,
/// and takes its leave.
const PROMPT: Duration = Duration::from_secs(3);

/// How much of what is no TLS is kept.
const QUOTE: usize = 64;

const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const CERTIFICATE: u8 = 11;
const SERVER_HELLO_DONE: u8 = 14;

/// An encrypted alert of TLS 1.3: two bytes, its content type, the tag.
const ALERT_1_3: usize = 19;
/// An encrypted Finished of TLS 1.3, with SHA-256 and with SHA-384.
const FINISHED_1_3: [usize; 2] = [53, 69];

/// Whether these bytes are one alert and no more, as a server says it before it ends: by its type, or, where TLS 1.3 hides
/// that, by its length.
pub fn is_alert(bytes: &[u8]) -> bool {
    let [kind, 3, _, high, low, body @ ..] = bytes else {
        return false;
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    body.len() == len && (*kind == ALERT || *kind == APPLICATION_DATA && len == ALERT_1_3)
}

/// How far a handshake came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The tunnel is open.
    #[default]
    T0,
    /// The client has begun.
    T1,
    /// The ClientHello is whole.
    T2,
    /// The server has begun.
    T3,
    /// The ServerHello is whole.
    T4,
    /// The server's flight is whole, as far as can be seen.
    T5,
    /// The client has answered it.
    T6,
    /// Application data, both ways.
    T7,
}

impl State {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::T0 => "T0",
            Self::T1 => "T1",
            Self::T2 => "T2",
            Self::T3 => "T3",
            Self::T4 => "T4",
            Self::T5 => "T5",
            Self::T6 => "T6",
            Self::T7 => "T7",
        }
    }
}

/// What goes through the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Speech {
    /// Nothing yet.
    #[default]
    Silence,
    /// TLS, begun by the client.
    Tls,
    /// Something else: the client began otherwise, or the server spoke first.
    Other,
    /// The client began TLS and the server answered with something else, which begins so.
    Answered(Vec<u8>),
}

/// The client's first encrypted word behind the server's flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It finished the handshake.
    Finished,
    /// A record as long as an alert.
    AlertSized,
    /// Neither length: padded, or with a certificate of its own.
    Unclear,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub struct Facts {
    /// How far it came.
    pub state: State,
    /// What goes through.
    pub speech: Speech,
    /// The ClientHello; of two, the second one.
    pub client_hello: Option<Arc<ClientHello>>,
    /// Its length, with record headers.
    pub client_hello_bytes: usize,
    /// In how many records it came.
    pub client_hello_records: u32,
    /// The ServerHello that counts.
    pub server_hello: Option<ServerHello>,
    /// The server's certificates, leaf first, as DER (up to TLS 1.2); forgotten once data passes both ways.
    pub chain: Vec<Vec<u8>>,
    /// Whether a session was resumed (up to TLS 1.2).
    pub is_resumed: bool,
    /// The server's alert, in the clear.
    pub server_alert: Option<Alert>,
    /// The client's.
    pub client_alert: Option<Alert>,
    /// Whether the server's last record was as long as an encrypted alert of TLS 1.3, and came soon behind the client's last
    /// bytes.
    pub server_ends_alert_sized: bool,
    /// Whether the server went on behind the client's answer to its flight, as with session tickets.
    pub server_accepts: bool,
    /// Whether the server's bytes end inside a record.
    pub server_is_cut: bool,
    /// The client's first encrypted word.
    pub reply: Option<Reply>,
    /// Whether the client took its leave behind the handshake, by an encrypted alert.
    pub has_goodbye: bool,
    /// Whether the client sent application data behind the handshake.
    pub has_client_data: bool,
    /// Bytes of the server before the client's answer.
    pub server_flight_bytes: u64,
    /// From the ClientHello to the client's answer to the server's flight.
    pub took: Option<Duration>,
}

/// Follows one tunnel.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    facts: Facts,
    client: Half,
    server: Half,
    hello_at: Option<Instant>,
    /// The client's last bytes.
    client_at: Option<Instant>,
    /// Encrypted records of the server behind its hello (TLS 1.3).
    sealed: u32,
    is_over: bool,
}

/// One direction.
#[derive(Clone, Debug, Default)]
struct Half {
    records: Records,
    messages: Messages,
    bytes: u64,
    /// A ChangeCipherSpec went before: what follows is encrypted (up to TLS 1.2).
    is_sealed: bool,
    alert: Vec<u8>,
}

impl Ledger {
    /// Whether there is nothing more to learn.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// What was seen so far.
    pub fn facts(&self) -> Facts {
        let mut facts = self.facts.clone();
        facts.server_is_cut = self.server.records.is_inside();
        if facts.state == State::T4 && self.sealed > 0 && !facts.server_is_cut {
            facts.state = State::T5;
        }
        facts
    }

    /// The same, as it is noted: [`Facts::server_is_cut`] and the fifth state are not in it yet.
    pub fn facts_now(&self) -> &Facts {
        &self.facts
    }

    /// Whether a handshake is under way that the client has not finished. A client that has may end its direction and still
    /// listen.
    pub fn is_unfinished(&self) -> bool {
        let facts = &self.facts;
        !self.is_over
            && facts.speech == Speech::Tls
            && !facts.has_client_data
            && matches!(facts.reply, None | Some(Reply::AlertSized))
    }

    /// Takes bytes of the client.
    pub fn client(&mut self, mut bytes: &[u8], now: Instant) {
        if self.is_over || bytes.is_empty() {
            return;
        }
        self.client_at = Some(now);
        self.client.bytes += bytes.len() as u64;
        if self.facts.state == State::T0 {
            self.facts.speech = Speech::Tls;
            self.facts.state = State::T1;
        }
        loop {
            match self.client.records.next(&mut bytes) {
                Ok(Some(piece)) => self.client_piece(&piece, now),
                Ok(None) => break,
                Err(NotTls) => return self.give_up(),
            }
            if self.is_over {
                return;
            }
        }
        self.bound();
    }

    /// Takes bytes of the server.
    pub fn server(&mut self, mut bytes: &[u8], now: Instant) {
        if self.is_over || bytes.is_empty() {
            return;
        }
        if self.facts.state < State::T2 {
            // Who speaks first is no TLS server.
            return self.give_up();
        }
        if self.facts.state == State::T2 {
            self.facts.state = State::T3;
        }
        self.server.bytes += bytes.len() as u64;
        if self.facts.state < State::T6 {
            self.facts.server_flight_bytes += bytes.len() as u64;
        }
        let whole = bytes;
        loop {
            match self.server.records.next(&mut bytes) {
                Ok(Some(piece)) => self.server_piece(&piece, now),
                Ok(None) => break,
                Err(NotTls) if self.facts.state == State::T3 => {
                    let quote = whole.get(..QUOTE).unwrap_or(whole);
                    self.facts.speech = Speech::Answered(quote.to_vec());
                    return self.close();
                }
                Err(NotTls) => return self.give_up(),
            }
            if self.is_over {
                return;
            }
        }
        self.bound();
    }

    fn client_piece(&mut self, piece: &Piece<'_>, now: Instant) {
        match *piece {
            Piece::Begin { kind, len } => {
                if self.facts.state < State::T2 {
                    if kind != HANDSHAKE {
                        return self.give_up();
                    }
                    self.facts.client_hello_bytes += 5 + len;
                    self.facts.client_hello_records += 1;
                }
            }
            Piece::Content { kind, bytes } if !self.client.is_sealed => match kind {
                HANDSHAKE => self.client_messages(bytes, now),
                ALERT => self.client.alert.extend(bytes.iter().take(2)),
                _ => {}
            },
            Piece::Content { .. } => {}
            Piece::End { kind, len } => self.client_record(kind, len, now),
        }
    }

    fn client_messages(&mut self, bytes: &[u8], now: Instant) {
        let facts = &mut self.facts;
        let mut is_hello = true;
        let mut answers = false;
        self.client.messages.feed(
            bytes,
            |kind| kind == CLIENT_HELLO,
            |kind, message| {
                // What comes behind a wrong message counts for nothing, wherever the bytes are cut.
                if !is_hello {
                } else if kind == CLIENT_HELLO {
                    facts.client_hello = ClientHello::read(message).map(Arc::new);
                    is_hello = facts.client_hello.is_some();
                    facts.state = facts.state.max(State::T2);
                } else if facts.state < State::T2 {
                    is_hello = false;
                } else {
                    answers = facts.server_hello.is_some();
                }
            },
        );
        if !is_hello {
            return self.give_up();
        }
        if self.facts.state == State::T2 && self.hello_at.is_none() {
            self.hello_at = Some(now);
        }
        if answers {
            self.answer(now);
        }
    }

    /// The client's answer to the server's flight has begun.
    fn answer(&mut self, now: Instant) {
        if self.facts.state < State::T6 {
            self.facts.state = State::T6;
            self.facts.took = self.hello_at.map(|hello_at| now - hello_at);
        }
    }

    fn client_record(&mut self, kind: u8, len: usize, now: Instant) {
        let Some(hello) = &self.facts.server_hello else {
            // An alert that came too early, or early data.
            if kind == ALERT {
                self.client_alert();
            }
            return;
        };
        let is_1_3 = hello.is_1_3();
        match kind {
            CHANGE_CIPHER_SPEC if !is_1_3 => {
                self.client.is_sealed = true;
                self.answer(now);
            }
            ALERT if self.client.is_sealed => self.facts.has_goodbye = true,
            ALERT => self.client_alert(),
            HANDSHAKE if self.client.is_sealed => {
                self.facts.reply.get_or_insert(Reply::Finished);
            }
            APPLICATION_DATA if is_1_3 => {
                self.answer(now);
                let early = self
                    .facts
                    .client_hello
                    .as_ref()
                    .is_some_and(|hello| hello.early_data);
                match self.facts.reply {
                    None if early => self.facts.reply = Some(Reply::Unclear),
                    None if len == ALERT_1_3 => self.facts.reply = Some(Reply::AlertSized),
                    None if FINISHED_1_3.contains(&len) => {
                        self.facts.reply = Some(Reply::Finished);
                    }
                    None => self.facts.reply = Some(Reply::Unclear),
                    Some(Reply::Finished) if len == ALERT_1_3 => self.facts.has_goodbye = true,
                    Some(Reply::AlertSized) => {}
                    Some(Reply::Finished | Reply::Unclear) => self.facts.has_client_data = true,
                }
            }
            APPLICATION_DATA => self.facts.has_client_data = true,
            _ => {}
        }
    }

    fn client_alert(&mut self) {
        if let [_, number] = *std::mem::take(&mut self.client.alert) {
            self.facts.client_alert.get_or_insert(Alert(number));
        }
    }

    fn server_piece(&mut self, piece: &Piece<'_>, now: Instant) {
        match *piece {
            Piece::Begin { .. } => {}
            Piece::Content { kind, bytes } if !self.server.is_sealed => match kind {
                HANDSHAKE => self.server_messages(bytes),
                ALERT => self.server.alert.extend(bytes.iter().take(2)),
                _ => {}
            },
            Piece::Content { .. } => {}
            Piece::End { kind, len } => self.server_record(kind, len, now),
        }
    }

    fn server_messages(&mut self, bytes: &[u8]) {
        let facts = &mut self.facts;
        let mut is_readable = true;
        self.server.messages.feed(
            bytes,
            |kind| kind == SERVER_HELLO || kind == CERTIFICATE,
            |kind, message| match kind {
                SERVER_HELLO => match ServerHello::read(message) {
                    Some(hello) if hello.is_retry => {}
                    Some(hello) => {
                        // An alert before it was a mere warning, as of a name that is not known (RFC 6066, section 3).
                        facts.server_alert = None;
                        facts.server_hello = Some(hello);
                        facts.state = facts.state.max(State::T4);
                    }
                    None => is_readable = false,
                },
                CERTIFICATE => facts.chain = certificates(message),
                SERVER_HELLO_DONE => facts.state = facts.state.max(State::T5),
                _ => {}
            },
        );
        if !is_readable {
            self.give_up();
        }
    }

    fn server_record(&mut self, kind: u8, len: usize, now: Instant) {
        self.facts.server_ends_alert_sized = false;
        let Some(hello) = &self.facts.server_hello else {
            if kind == ALERT {
                self.server_alert();
            }
            return;
        };
        let is_1_3 = hello.is_1_3();
        let is_behind_data = self.facts.has_client_data;
        match kind {
            ALERT if !self.server.is_sealed => self.server_alert(),
            CHANGE_CIPHER_SPEC if !is_1_3 => {
                self.server.is_sealed = true;
                self.facts.is_resumed |= self.facts.state == State::T4;
            }
            HANDSHAKE if self.server.is_sealed && self.facts.is_resumed => {
                self.facts.state = self.facts.state.max(State::T5);
            }
            APPLICATION_DATA if is_1_3 && len == ALERT_1_3 => {
                self.sealed += 1;
                let is_prompt = self.client_at.is_some_and(|at| now - at <= PROMPT);
                self.facts.server_ends_alert_sized = is_prompt;
            }
            APPLICATION_DATA => {
                self.sealed += 1;
                self.facts.server_accepts |= self.facts.reply.is_some();
                if is_behind_data {
                    self.facts.state = State::T7;
                    self.facts.chain = Vec::new();
                    self.close();
                }
            }
            _ => {}
        }
    }

    fn server_alert(&mut self) {
        if let [_, number] = *std::mem::take(&mut self.server.alert) {
            self.facts.server_alert.get_or_insert(Alert(number));
        }
    }

    /// What goes through is no TLS that can be followed.
    fn give_up(&mut self) {
        if self.facts.state < State::T4 {
            self.facts = Facts {
                speech: Speech::Other,
                ..Facts::default()
            };
        }
        self.close();
    }

    /// Follows no further, and lets go of what is half there.
    fn close(&mut self) {
        self.is_over = true;
        for half in [&mut self.client, &mut self.server] {
            half.messages = Messages::default();
        }
    }

    fn bound(&mut self) {
        if self.client.bytes > MOST || self.server.bytes > MOST {
            self.close();
        }
    }
}

/// The certificates of a Certificate message up to TLS 1.2 (RFC 5246, section 7.4.2): header, length of all, and each with
/// its length.
fn certificates(message: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = message.get(7..).unwrap_or_default();
    let mut chain = Vec::new();
    while let [a, b, c, tail @ ..] = rest {
        let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((certificate, behind)) = tail.split_at_checked(len) else {
            break;
        };
        chain.push(certificate.to_vec());
        rest = behind;
    }
    chain
}

#[cfg(test)]
pub(crate) mod tests;
