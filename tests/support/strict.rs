//! A reader of HTTP/1.1 that takes nothing but what RFC 9112 lets be sent: what two readers could read in two ways is an
//! error here.

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The method, or the status.
    pub what: String,
    /// The target; empty in an answer.
    pub target: String,
    /// The fields, names in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The content.
    pub body: Vec<u8>,
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A message, and how many bytes it took.
    Whole(Box<Message>, usize),
    /// The beginning of one.
    Part,
    /// No message, whatever follows.
    Broken(String),
}

/// Why there is no message.
enum Stop {
    Part,
    Broken(String),
}

type Parsed<T> = Result<T, Stop>;

fn broken<T>(why: impl Into<String>) -> Parsed<T> {
    Err(Stop::Broken(why.into()))
}

impl Message {
    /// A field's values.
    pub fn values(&self, name: &str) -> Vec<String> {
        let named = self.fields.iter().filter(|(key, _)| key == name);
        named
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect()
    }
}

/// Reads a request.
pub fn request(bytes: &[u8]) -> Read {
    told(read_request(bytes))
}

/// Reads an answer to a request of this method; at the `end` of the connection, which may be the end of the content.
/// Interim answers are passed over.
pub fn answer(bytes: &[u8], method: &str, end: bool) -> Read {
    let mut skipped = 0;
    loop {
        match read_answer(&bytes[skipped..], method, end) {
            Ok((message, used)) if message.what.starts_with('1') => skipped += used,
            Ok((message, used)) => return Read::Whole(Box::new(message), skipped + used),
            Err(stop) => return told(Err(stop)),
        }
    }
}

fn told(parsed: Parsed<(Message, usize)>) -> Read {
    match parsed {
        Ok((message, used)) => Read::Whole(Box::new(message), used),
        Err(Stop::Part) => Read::Part,
        Err(Stop::Broken(why)) => Read::Broken(why),
    }
}

/// A place in the bytes.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    /// A line without its CRLF.
    fn line(&mut self) -> Parsed<&'b [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            return Err(Stop::Part);
        };
        match &rest[end..] {
            [b'\r', b'\n', ..] => {
                self.at += end + 2;
                Ok(&rest[..end])
            }
            [b'\r'] => Err(Stop::Part),
            _ => broken(format!(
                "a bare CR or LF behind {:?}",
                rest[..end].escape_ascii().to_string()
            )),
        }
    }

    fn take(&mut self, count: usize) -> Parsed<&'b [u8]> {
        let rest = &self.bytes[self.at..];
        if rest.len() < count {
            return Err(Stop::Part);
        }
        self.at += count;
        Ok(&rest[..count])
    }

    fn fields(&mut self) -> Parsed<Vec<(String, Vec<u8>)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':') else {
                return broken(format!("no colon in {:?}", line.escape_ascii().to_string()));
            };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
                return broken(format!("field name {:?}", name.escape_ascii().to_string()));
            }
            if !value
                .iter()
                .all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
            {
                return broken(format!(
                    "field value {:?}",
                    value.escape_ascii().to_string()
                ));
            }
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            fields.push((name, value.to_vec()));
        }
    }

    fn chunks(&mut self) -> Parsed<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() || line.len() > 16 || !line.iter().all(u8::is_ascii_hexdigit) {
                return broken(format!("chunk size {:?}", line.escape_ascii().to_string()));
            }
            let size = usize::from_str_radix(&String::from_utf8_lossy(line), 16);
            let size = size.map_err(|error| Stop::Broken(error.to_string()))?;
            if size == 0 {
                let trailers = self.fields()?;
                let forbidden = [
                    "content-length",
                    "transfer-encoding",
                    "host",
                    "authorization",
                    "te",
                    "trailer",
                ];
                return match trailers
                    .iter()
                    .find(|(name, _)| forbidden.contains(&&**name))
                {
                    Some((name, _)) => broken(format!("{name} in the trailers")),
                    None => Ok(body),
                };
            }
            body.extend_from_slice(self.take(size)?);
            if self.take(2)? != b"\r\n" {
                return broken("no CRLF behind a chunk");
            }
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// How the content is framed: one way, or none.
enum Framing {
    None,
    Length(usize),
    Chunked,
}

fn framing(fields: &[(String, Vec<u8>)]) -> Parsed<Framing> {
    let of = |wanted: &str| {
        let named = fields.iter().filter(|(name, _)| name == wanted);
        named.map(|(_, value)| &**value).collect::<Vec<_>>()
    };
    match (&*of("content-length"), &*of("transfer-encoding")) {
        ([], []) => Ok(Framing::None),
        ([length], []) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            let length = String::from_utf8_lossy(length).parse();
            Ok(Framing::Length(length.map_err(|_| Stop::Part)?))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (lengths, codings) => broken(format!(
            "{} lengths and {} codings",
            lengths.len(),
            codings.len()
        )),
    }
}

fn read_request(bytes: &[u8]) -> Parsed<(Message, usize)> {
    let mut reader = Reader { bytes, at: 0 };
    let line = String::from_utf8_lossy(reader.line()?).into_owned();
    let [method, target, "HTTP/1.1"] = *line.split(' ').collect::<Vec<_>>() else {
        return broken(format!("request line {line:?}"));
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return broken(format!("method {method:?}"));
    }
    // Letters that nobody has encoded pass as they are (curl sends them): no reader takes them for an end of anything.
    let is_visible = |byte: u8| byte.is_ascii_graphic() && byte != b'#' || !byte.is_ascii();
    if !target.starts_with('/') && target != "*" || !target.bytes().all(is_visible) {
        return broken(format!("target {target:?}"));
    }
    let fields = reader.fields()?;
    let body = match framing(&fields)? {
        Framing::None => Vec::new(),
        Framing::Length(length) => reader.take(length)?.to_vec(),
        Framing::Chunked => reader.chunks()?,
    };
    let message = Message {
        what: method.to_owned(),
        target: target.to_owned(),
        fields,
        body,
    };
    Ok((message, reader.at))
}

fn read_answer(bytes: &[u8], method: &str, end: bool) -> Parsed<(Message, usize)> {
    let mut reader = Reader { bytes, at: 0 };
    let line = reader.line()?;
    // A client of HTTP/1.0 is answered in its own version.
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "));
    let status = match rest {
        Some(rest)
            if rest.len() >= 4 && rest[..3].iter().all(u8::is_ascii_digit) && rest[3] == b' ' =>
        {
            if !rest[4..]
                .iter()
                .all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
            {
                return broken("control characters in a reason");
            }
            String::from_utf8_lossy(&rest[..3]).into_owned()
        }
        _ => return broken(format!("status line {:?}", line.escape_ascii().to_string())),
    };
    let fields = reader.fields()?;
    let has_none =
        method == "HEAD" || status.starts_with('1') || status == "204" || status == "304";
    let framing = framing(&fields)?;
    if matches!(
        (&*status, &framing),
        ("204", Framing::Length(1..) | Framing::Chunked)
    ) {
        return broken("a 204 with content");
    }
    let body = match framing {
        _ if has_none => Vec::new(),
        Framing::Length(length) => reader.take(length)?.to_vec(),
        Framing::Chunked => reader.chunks()?,
        Framing::None if end => {
            let rest = bytes.len() - reader.at;
            reader.take(rest)?.to_vec()
        }
        Framing::None => return Err(Stop::Part),
    };
    let message = Message {
        what: status,
        target: String::new(),
        fields,
        body,
    };
    Ok((message, reader.at))
}
