//! What a refusing upstream says, made legible: fields, challenges, and the text of its error page.

use http::header::TRANSFER_ENCODING;
use http::{StatusCode, response};
use hyper::ext::ReasonPhrase;

use crate::record::FIELD;

/// So much of a body's text is kept, in characters.
const MAX_TEXT: usize = 2048;

/// So much of one field is kept, in characters.
const MAX_FIELD: usize = 256;

/// An upstream's own answer that is no 2xx: to CONNECT, or to a plain request in the origin's place.
///
/// Every text is legible: lossy UTF-8, with control and direction characters escaped, and clipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The reason phrase.
    pub reason: String,
    /// `Proxy-Status` (RFC 9209), all lines as one list.
    pub proxy_status: Option<String>,
    /// `X-Squid-Error`: a name and an error number.
    pub squid_error: Option<String>,
    /// The schemes of every challenge of `Proxy-Authenticate`, in order, each once.
    pub auth_schemes: Vec<String>,
    /// The lines of `Proxy-Authenticate` as they came, for whoever answers them.
    pub(super) challenges: Vec<String>,
    /// Whether it is the upstream's own refusal, where a plain request was asked.
    pub is_refusal: bool,
    /// Whether another request can follow on the same connection.
    pub is_reusable: bool,
    /// `Location`.
    pub location: Option<String>,
    /// The beginning of the body as text, without tags and in one line; empty if there is none.
    pub body: String,
    framing: Framing,
}

/// What an upstream says it was that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// The target's name.
    Dns,
    /// The connection to the target.
    Connect,
    /// The target was silent.
    Timeout,
    /// TLS with the target.
    Tls,
    /// There is no such target.
    NotFound,
    /// There is no way to the target now.
    Unavailable,
    /// The upstream's policy.
    Denied,
    /// The request came back to it.
    Loop,
    /// Something else that it has a word for.
    Other,
}

/// How a body is delimited, and whether it can be read as text.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Framing {
    length: Option<usize>,
    is_chunked: bool,
    /// The connection stays open behind the reply.
    is_kept: bool,
    is_coded: bool,
}

/// Whether an answer to a plain request is the upstream's own refusal: squid and we ourselves sign those that are our own.
/// `Proxy-Status` alone does not tell, since whoever stands before an origin sends it too.
pub fn is_refusal(status: StatusCode, has: impl Fn(&str) -> bool) -> bool {
    matches!(status.as_u16(), 403 | 429 | 451 | 500..) && (has("x-squid-error") || has(FIELD))
}

/// A word of an error page. Of a URL only scheme and host are kept: its path or query may hold a token.
fn without_path(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    format!("{scheme}://{host}/")
}

impl Reply {
    pub(super) fn new(status: StatusCode, head: &httparse::Response<'_, '_>) -> Self {
        let reason = head.reason.unwrap_or_default().as_bytes();
        let is_old = head.version == Some(0);
        let fields: Vec<_> = head
            .headers
            .iter()
            .map(|field| (field.name, field.value))
            .collect();
        let mut this = Self::of(status, reason, &fields);
        if is_old {
            let keeps = |name: &str| {
                let of_name = fields
                    .iter()
                    .filter(|(field, _)| field.eq_ignore_ascii_case(name));
                says(
                    "keep-alive",
                    &of_name.map(|(_, value)| *value).collect::<Vec<_>>(),
                )
            };
            this.framing.is_kept &= keeps("connection") || keeps("proxy-connection");
        }
        this
    }

    /// The reply that a head is which came by way of hyper.
    pub fn of_head(head: &response::Parts) -> Self {
        let reason = head.extensions.get::<ReasonPhrase>();
        let reason = reason.map_or(&b""[..], ReasonPhrase::as_bytes);
        let fields = head
            .headers
            .iter()
            // hyper has taken the chunks apart.
            .filter(|(name, _)| *name != TRANSFER_ENCODING)
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        Self::of(head.status, reason, &fields.collect::<Vec<_>>())
    }

    /// The reply that a head with these fields is.
    pub fn of(status: StatusCode, reason: &[u8], fields: &[(&str, &[u8])]) -> Self {
        let values = |name: &str| -> Vec<&[u8]> {
            fields
                .iter()
                .filter(|(field, _)| field.eq_ignore_ascii_case(name))
                .map(|(_, value)| *value)
                .collect()
        };
        let joined = |name: &str| {
            let values = values(name);
            (!values.is_empty()).then(|| legible(&values.join(&b", "[..]), MAX_FIELD))
        };
        let length = values("content-length")
            .first()
            .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
        Self {
            status,
            reason: legible(reason, MAX_FIELD),
            proxy_status: joined("proxy-status"),
            squid_error: joined("x-squid-error"),
            auth_schemes: schemes(&values("proxy-authenticate")),
            challenges: values("proxy-authenticate")
                .iter()
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .collect(),
            is_refusal: is_refusal(status, |name| !values(name).is_empty()),
            is_reusable: false,
            location: joined("location"),
            body: String::new(),
            framing: Framing {
                length,
                is_chunked: !values("transfer-encoding").is_empty(),
                is_kept: !says("close", &values("connection"))
                    && !says("close", &values("proxy-connection")),
                is_coded: !values("content-encoding").is_empty(),
            },
        }
    }

    /// Its status, and the reason where it gave one, for an error text.
    pub(super) fn line(&self) -> String {
        let line = format!("{} {}", self.status.as_u16(), self.reason);
        line.trim_end().to_owned()
    }

    /// Where a redirect leads, for an error text; its query may hold a token.
    pub(super) fn redirect(&self) -> String {
        let location = self
            .location
            .as_deref()
            .filter(|_| self.status.is_redirection());
        let place = location.and_then(|location| location.split('?').next());
        place.map_or_else(String::new, |place| format!(", to {place}"))
    }

    /// How many bytes the body takes of the connection, as far as `raw`, its beginning, tells; `None` while it does not.
    pub(super) fn body_len(&self, raw: &[u8]) -> Option<usize> {
        if self.framing.is_chunked {
            chunked_len(raw)
        } else {
            self.framing.length
        }
    }

    /// Whether the connection stays open behind the body.
    pub(super) fn is_kept(&self) -> bool {
        self.framing.is_kept
    }

    /// Takes the beginning of the body as it came.
    #[must_use]
    pub fn with_body(mut self, raw: &[u8]) -> Self {
        if !self.framing.is_coded {
            let dechunked = self.framing.is_chunked.then(|| dechunk(raw));
            let text = String::from_utf8_lossy(dechunked.as_deref().unwrap_or(raw)).into_owned();
            let is_markup = text.trim_start().starts_with('<');
            let text = if is_markup { strip_tags(&text) } else { text };
            let words: Vec<_> = text.split_whitespace().collect();
            let words: Vec<_> = words.into_iter().map(without_path).collect();
            self.body = legible(words.join(" ").as_bytes(), MAX_TEXT);
        }
        self
    }

    /// Whether the upstream says in `Proxy-Status` that it failed itself, rather than what is behind it.
    ///
    /// Source: RFC 9209, section 2: the last entry of the list is that of the proxy nearest to us.
    pub fn is_of_itself(&self) -> bool {
        let list = self.proxy_status.as_deref().unwrap_or_default();
        let own = split_unquoted(list, &[',']).last().and_then(error_token);
        matches!(
            own.as_deref(),
            Some("proxy_internal_error" | "proxy_internal_response" | "proxy_configuration_error")
        )
    }

    /// What the upstream says in `Proxy-Status` or `X-Squid-Error`; `None` if it says nothing there.
    ///
    /// Of several proxies' statements the one nearest to the target counts: it saw the failure itself.
    pub fn reported(&self) -> Option<Reported> {
        let token = self.proxy_status.as_deref().and_then(error_token);
        if let Some(token) = token {
            return Some(by_token(&token));
        }
        let mut words = self.squid_error.as_deref()?.split_whitespace();
        Some(by_squid(words.next()?, words.next()))
    }
}

/// The error types of RFC 9209, section 2.3.
fn by_token(token: &str) -> Reported {
    match token {
        "dns_timeout" | "dns_error" => Reported::Dns,
        "connection_refused" | "connection_terminated" | "destination_ip_unroutable" => {
            Reported::Connect
        }
        "connection_timeout"
        | "connection_read_timeout"
        | "connection_write_timeout"
        | "http_response_timeout" => Reported::Timeout,
        "tls_protocol_error" | "tls_certificate_error" | "tls_alert_received" => Reported::Tls,
        "destination_not_found" => Reported::NotFound,
        "destination_unavailable" | "connection_limit_reached" => Reported::Unavailable,
        "http_request_denied" | "destination_ip_prohibited" => Reported::Denied,
        "proxy_loop_detected" => Reported::Loop,
        _ => Reported::Other,
    }
}

/// The names of squid's error pages; behind the name stands the errno of the failure.
fn by_squid(name: &str, errno: Option<&str>) -> Reported {
    match name {
        "ERR_DNS_FAIL" => Reported::Dns,
        // ETIMEDOUT
        "ERR_CONNECT_FAIL" if errno == Some("110") => Reported::Timeout,
        "ERR_CONNECT_FAIL" | "ERR_READ_ERROR" | "ERR_WRITE_ERROR" | "ERR_ZERO_SIZE_OBJECT" => {
            Reported::Connect
        }
        "ERR_READ_TIMEOUT" | "ERR_LIFETIME_EXP" => Reported::Timeout,
        "ERR_SECURE_CONNECT_FAIL" | "ERR_SECURE_ACCEPT_FAIL" => Reported::Tls,
        "ERR_CANNOT_FORWARD" | "ERR_SHUTTING_DOWN" => Reported::Unavailable,
        "ERR_ACCESS_DENIED" | "ERR_CACHE_ACCESS_DENIED" | "ERR_FORWARDING_DENIED" => {
            Reported::Denied
        }
        _ => Reported::Other,
    }
}

/// The first `error` parameter of a `Proxy-Status` list, in lower case.
fn error_token(list: &str) -> Option<String> {
    split_unquoted(list, &[',', ';']).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        (key.trim() == "error").then(|| value.trim().trim_matches('"').to_ascii_lowercase())
    })
}

/// The scheme names in the challenges of some `Proxy-Authenticate` lines (RFC 9110, section 11.6.1).
///
/// A comma parts challenges and also the parameters of one challenge; a scheme is a word that no
/// equals sign follows.
fn schemes(lines: &[&[u8]]) -> Vec<String> {
    let mut schemes: Vec<String> = Vec::new();
    for line in lines {
        let line = String::from_utf8_lossy(line);
        for item in split_unquoted(&line, &[',']) {
            let item = item.trim();
            let end = item
                .find(|c: char| c.is_whitespace() || c == '=')
                .unwrap_or(item.len());
            let (word, rest) = item.split_at(end);
            if word.is_empty() || rest.trim_start().starts_with('=') {
                continue;
            }
            let scheme = legible(word.as_bytes(), 32);
            if !schemes.iter().any(|s| s.eq_ignore_ascii_case(&scheme)) {
                schemes.push(scheme);
            }
        }
    }
    schemes
}

/// Splits at any of `separators` that stands outside a quoted string.
pub(super) fn split_unquoted<'a>(
    text: &'a str,
    separators: &'a [char],
) -> impl Iterator<Item = &'a str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c: char| {
        let was_escaped = std::mem::replace(&mut is_escaped, false);
        match c {
            '\\' if is_quoted && !was_escaped => is_escaped = true,
            '"' if !was_escaped => is_quoted = !is_quoted,
            _ => {}
        }
        !is_quoted && separators.contains(&c)
    })
}

/// Whether one of the lines of a list has this word.
fn says(word: &str, lines: &[&[u8]]) -> bool {
    let mut words = lines.iter().flat_map(|line| line.split(|b| *b == b','));
    words.any(|said| said.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// How long a chunked body is with its last chunk and trailers; `None` where its end is not there.
fn chunked_len(raw: &[u8]) -> Option<usize> {
    let mut rest = raw;
    loop {
        let Ok(httparse::Status::Complete((start, len))) = httparse::parse_chunk_size(rest) else {
            return None;
        };
        rest = rest.get(start..)?;
        if len == 0 {
            break;
        }
        let len = usize::try_from(len).ok()?;
        rest = rest.get(len..)?.strip_prefix(b"\r\n")?;
    }
    let mut fields = [httparse::EMPTY_HEADER; 16];
    match httparse::parse_headers(rest, &mut fields) {
        Ok(httparse::Status::Complete((trailers, _))) => Some(raw.len() - rest.len() + trailers),
        Ok(httparse::Status::Partial) | Err(_) => None,
    }
}

/// The data of as many chunks as there are; the last may be cut.
fn dechunk(mut raw: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(raw.len());
    while let Ok(httparse::Status::Complete((start, len))) = httparse::parse_chunk_size(raw) {
        let Some(chunk) = raw.get(start..).filter(|_| len > 0) else {
            break;
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(chunk.len());
        let (chunk, rest) = chunk.split_at(len);
        data.extend_from_slice(chunk);
        raw = rest.strip_prefix(b"\r\n").unwrap_or(rest);
    }
    data
}

/// The text of a page: no tags, no comments, no styles and scripts, and the common entities resolved.
fn strip_tags(page: &str) -> String {
    let lower = page.to_ascii_lowercase();
    let mut text = String::with_capacity(page.len());
    let mut at = 0;
    while let Some((before, _)) = page.get(at..).and_then(|rest| rest.split_once('<')) {
        text.extend([before, " "]);
        at += before.len() + 1;
        let tag = lower.get(at..).unwrap_or_default();
        let end = match tag {
            comment if comment.starts_with("!--") => "-->",
            style if style.starts_with("style") => "</style>",
            script if script.starts_with("script") => "</script>",
            _ => ">",
        };
        at = tag.find(end).map_or(page.len(), |i| at + i + end.len());
    }
    text.push_str(page.get(at..).unwrap_or_default());
    [
        ("&nbsp;", " "),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ]
    .into_iter()
    .fold(text, |text, (entity, plain)| text.replace(entity, plain))
}

/// Makes a stranger's bytes fit to be shown: lossy UTF-8, clipped to `max` characters, with what
/// moves a cursor, ends a line or turns the direction of writing escaped.
fn legible(bytes: &[u8], max: usize) -> String {
    let mut text = String::new();
    for c in String::from_utf8_lossy(bytes).trim().chars().take(max) {
        let is_unsafe = c.is_control()
            || matches!(
                c,
                '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}'
            )
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if is_unsafe {
            text.extend(c.escape_unicode());
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(head: &str) -> Reply {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Response::new(&mut fields);
        let head = format!("HTTP/1.1 503 x\r\n{head}\r\n\r\n");
        assert!(parsed.parse(head.as_bytes()).unwrap().is_complete());
        Reply::new(StatusCode::SERVICE_UNAVAILABLE, &parsed)
    }

    #[test]
    fn every_challenge_is_listed_once() {
        for (head, expected) in [
            ("Proxy-Authenticate: Basic realm=\"a, NTLM b\"", "Basic"),
            (
                "Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate: basic realm=x",
                "Negotiate NTLM basic",
            ),
            (
                "Proxy-Authenticate: Digest realm = \"x\\\", Fake\", nonce=\"y\", Basic realm=\"z\"",
                "Digest Basic",
            ),
            (
                "Proxy-Authenticate: Negotiate YIIabc==, , Basic\r\nProxy-Authenticate: BASIC",
                "Negotiate Basic",
            ),
            ("Proxy-Authenticate:", ""),
            ("X: y", ""),
        ] {
            assert_eq!(reply(head).auth_schemes.join(" "), expected, "{head}");
        }
    }

    #[test]
    fn what_the_upstream_reports_is_read() {
        for (head, expected) in [
            ("X-Squid-Error: ERR_DNS_FAIL 0", Some(Reported::Dns)),
            (
                "X-Squid-Error: ERR_CONNECT_FAIL 111",
                Some(Reported::Connect),
            ),
            (
                "X-Squid-Error: ERR_CONNECT_FAIL 110",
                Some(Reported::Timeout),
            ),
            ("X-Squid-Error: ERR_READ_TIMEOUT 0", Some(Reported::Timeout)),
            (
                "X-Squid-Error: ERR_SECURE_CONNECT_FAIL 104",
                Some(Reported::Tls),
            ),
            ("X-Squid-Error: ERR_ACCESS_DENIED 0", Some(Reported::Denied)),
            ("X-Squid-Error: ERR_OF_OUR_OWN 0", Some(Reported::Other)),
            ("X-Squid-Error:", None),
            (
                "Proxy-Status: squid; error=dns_error; details=\"x\"",
                Some(Reported::Dns),
            ),
            (
                "Proxy-Status: far; details=\"a; error=dns_error\"; error=connection_timeout, near; error=http_request_error",
                Some(Reported::Timeout),
            ),
            (
                "Proxy-Status: far\r\nProxy-Status: near;error=\"proxy_loop_detected\"",
                Some(Reported::Loop),
            ),
            (
                "Proxy-Status: p; error=tls_certificate_error\r\nX-Squid-Error: ERR_DNS_FAIL 0",
                Some(Reported::Tls),
            ),
            ("Proxy-Status: p; received-status=503", None),
            ("Via: 1.1 a", None),
        ] {
            assert_eq!(reply(head).reported(), expected, "{head}");
        }
    }

    #[test]
    fn an_error_page_becomes_its_text() {
        let page = "<!DOCTYPE html><html><head><!-- a > b --><title>ERROR: gone</title>\r\n\
            <STYLE type=x>p { color: <red> }</Style><script>if (a<b) {}</script></head>\n\
            <body><p>Access&nbsp;to &lt;x&gt; &amp;amp; more &quot;denied&quot;</p>\u{1b}[31m\u{202e}<p";
        assert_eq!(
            reply("A: b").with_body(page.as_bytes()).body,
            "ERROR: gone Access to <x> &amp; more \"denied\" \\u{1b}[31m\\u{202e}"
        );
        let plain = |head: &str, raw: &[u8]| reply(head).with_body(raw).body;
        assert_eq!(plain("A: b", b" a < b\r\n\xff "), "a < b \u{fffd}");
        assert_eq!(
            plain("Transfer-Encoding: chunked", b"4\r\nab c\r\n5;x=y\r\nd ef"),
            "ab cd ef"
        );
        assert_eq!(plain("Transfer-Encoding: chunked", b"0\r\n\r\nrest"), "");
        assert_eq!(plain("Content-Encoding: gzip", b"\x1f\x8b"), "");
        assert_eq!(plain("A: b", &[b'x'; 9000]).len(), MAX_TEXT);
    }

    proptest::proptest! {
        #[test]
        fn no_body_breaks_the_reader(raw: Vec<u8>, page in "(<|>|!--|-->|style|/|script|[a-zé&;#\\r\\n]|\\PC){0,60}") {
            let chunked = reply("Transfer-Encoding: chunked").with_body(&raw);
            assert!(chunked.body.chars().count() <= MAX_TEXT * 8);
            let legible = reply("A: b").with_body(page.as_bytes()).body;
            assert!(!legible.chars().any(char::is_control));
        }
    }
}
