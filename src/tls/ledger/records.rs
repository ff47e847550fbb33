//! A byte stream as TLS records, and those as handshake messages.

/// The longest record of the standard, with room for what encryption adds (RFC 8446, section 5.2).
const MAX_RECORD: usize = 16_384 + 256;

/// Kind, version, length.
const HEADER: usize = 5;

/// The longest handshake message that is kept: post-quantum hellos and long chains are far below it.
const MAX_MESSAGE: usize = 64 * 1024;

/// Content types (RFC 8446, section 5.1).
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// What begins no TLS record.
#[derive(Debug)]
pub(super) struct NotTls;

/// A piece of a record.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    /// A record begins, of so many bytes.
    Begin { kind: u8, len: usize },
    /// Bytes of its content.
    Content { kind: u8, bytes: &'a [u8] },
    /// It is whole.
    End { kind: u8, len: usize },
}

/// Splits a stream into records, keeping none of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    header: [u8; HEADER],
    /// So much of the header was read.
    begun: usize,
    /// Kind, length, and what is still to come of it.
    open: Option<(u8, usize, usize)>,
}

impl Records {
    /// Whether the stream stands inside a record.
    pub(super) fn is_inside(&self) -> bool {
        self.open.is_some() || self.begun > 0
    }

    /// Takes the next piece off `bytes`; nothing where they are used up.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, NotTls> {
        match &mut self.open {
            Some((kind, len, 0)) => {
                let (kind, len) = (*kind, *len);
                self.open = None;
                Ok(Some(Piece::End { kind, len }))
            }
            Some((kind, _, left)) => {
                if bytes.is_empty() {
                    return Ok(None);
                }
                let (content, rest) = bytes.split_at((*left).min(bytes.len()));
                *left -= content.len();
                *bytes = rest;
                let (kind, bytes) = (*kind, content);
                Ok(Some(Piece::Content { kind, bytes }))
            }
            None => self.begin(bytes),
        }
    }

    fn begin<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, NotTls> {
        while let ([first, rest @ ..], Some(slot)) = (*bytes, self.header.get_mut(self.begun)) {
            let is_possible = match self.begun {
                0 => (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(first),
                1 => *first == 3,
                _ => true,
            };
            if !is_possible {
                return Err(NotTls);
            }
            *slot = *first;
            self.begun += 1;
            *bytes = rest;
        }
        if self.begun < HEADER {
            return Ok(None);
        }
        let [kind, _, _, high, low] = self.header;
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_RECORD {
            return Err(NotTls);
        }
        self.begun = 0;
        self.open = Some((kind, len, len));
        Ok(Some(Piece::Begin { kind, len }))
    }
}

/// Puts handshake messages together from the contents of their records; those that nobody asks for are skipped.
#[derive(Clone, Debug, Default)]
pub(super) struct Messages {
    message: Vec<u8>,
    /// What is still to come of a message that is skipped.
    skip: usize,
}

impl Messages {
    /// Takes content of handshake records; tells the type of each message that is whole, and its bytes with their header
    /// where `wanted` asks for its type.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        wanted: fn(u8) -> bool,
        mut tell: impl FnMut(u8, &[u8]),
    ) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = bytes.split_at(skipped).1;
                continue;
            }
            let missing = 4_usize.saturating_sub(self.message.len());
            if missing > 0 {
                let (head, rest) = bytes.split_at(missing.min(bytes.len()));
                self.message.extend_from_slice(head);
                bytes = rest;
            }
            let [kind, a, b, c, ..] = *self.message else {
                continue;
            };
            let whole = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if whole > MAX_MESSAGE || !wanted(kind) {
                self.skip = whole - 4;
                self.message = Vec::new();
                tell(kind, &[]);
                continue;
            }
            let missing = whole - self.message.len();
            let (part, rest) = bytes.split_at(missing.min(bytes.len()));
            self.message.extend_from_slice(part);
            bytes = rest;
            if self.message.len() == whole {
                tell(kind, &self.message);
                self.message = Vec::new();
            }
        }
    }
}
