//! From a failure to what the client reads: reason phrase, `Proxy-Status`, record id, a short text.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    RETRY_AFTER, VIA,
};
use http::{Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;
use serde::Serialize;
use uuid::Uuid;

use super::headers::Via;
use crate::failure::staged::{Staged, With};
use crate::failure::{Exhausted, Failure, chain, classify};
use crate::memory::{Earlier, reminded};
use crate::net::upstream::UpstreamError;
use crate::record::FIELD;
use crate::tls::handshake::HandshakeError;

/// Names of ours in what the client reads.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `server.name`: the name in `Proxy-Status`.
    pub name: String,
    /// The name in Via: `routecause-` and 8 hex digits, drawn at start.
    pub via: Via,
}

/// A response whose body is whole.
pub type Whole = Response<Bytes>;

/// The `Proxy-Status` field (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// The field with the record's id.
pub const RECORD: HeaderName = HeaderName::from_static(FIELD);
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// A reason phrase is kept below this, since some clients cut their message there.
const MAX_REASON: usize = 120;

/// The answer to a CONNECT whose tunnel stands.
pub fn established(identity: &Identity) -> Whole {
    let mut response = Response::new(Bytes::new());
    response
        .extensions_mut()
        .insert(ReasonPhrase::from_static(b"Connection established"));
    let via = identity.via.entry(Version::HTTP_11).clone();
    response.headers_mut().insert(VIA, via);
    response
}

/// What is told of a failure, as `application/problem+json` (RFC 9457).
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    hint: &'a str,
    /// The hops of a chain, where it was one that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<Tried>,
    record: Uuid,
}

/// A hop that failed.
#[derive(Serialize)]
struct Tried {
    hop: Arc<str>,
    cause: Cow<'static, str>,
}

fn attempts(failure: &Failure) -> Vec<Tried> {
    let hops = failure.hops().into_iter().flat_map(Exhausted::hops);
    let tried = hops.map(|(hop, cause)| Tried {
        hop: hop.clone(),
        cause: cause.id(),
    });
    tried.collect()
}

/// Whether a client takes `application/problem+json`, by its Accept fields; nothing where it takes whatever comes.
pub fn wants_json(headers: &HeaderMap) -> Option<bool> {
    let accepted = headers.get_all(ACCEPT);
    let is_open = accepted.iter().all(|accept| accept == "*/*");
    let takes = |accept: &HeaderValue| {
        let accept = accept.to_str().unwrap_or_default();
        accept.contains("application/problem+json")
    };
    (!is_open).then(|| accepted.iter().any(takes))
}

/// The answer to a request that failed; `earlier` is what happened to its target before.
pub fn failure(
    failure: &Failure,
    id: Uuid,
    route: Option<&str>,
    is_json: bool,
    earlier: Option<&Earlier>,
    identity: &Identity,
) -> Whole {
    let told = failure.told();
    let cause = classify(failure).id();
    let status = failure.status().unwrap_or(StatusCode::BAD_GATEWAY);
    let message = chain(failure);
    let hint = failure.hint();
    let hint = match earlier {
        Some(earlier) => reminded(&hint, earlier).into(),
        None => hint,
    };
    let via = route
        .map(|route| format!(" via {route}"))
        .unwrap_or_default();
    let body = if is_json {
        let problem = Problem {
            r#type: "about:blank",
            title: &cause,
            status: status.as_u16(),
            detail: &message,
            hint: &hint,
            attempts: attempts(failure),
            record: id,
        };
        serde_json::to_vec(&problem).unwrap_or_default()
    } else {
        let name = &identity.name;
        let mut text = format!("{name}: {cause}{via}\n{message}\n");
        for Tried { hop, cause } in attempts(failure) {
            let _ = writeln!(text, "{hop}: {cause}");
        }
        let _ = write!(text, "hint: {hint}\nrecord: {id}\n");
        text.into_bytes()
    };
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    if let Ok(phrase) = ReasonPhrase::try_from(phrase(&format!("{cause}: {message}{via}"))) {
        response.extensions_mut().insert(phrase);
    }
    let headers = response.headers_mut();
    let content_type = if is_json {
        "application/problem+json"
    } else {
        "text/plain; charset=utf-8"
    };
    put(headers, CONTENT_TYPE, content_type);
    put(headers, NOSNIFF, "nosniff");
    put(
        headers,
        PROXY_STATUS,
        &proxy_status(failure, &message, identity),
    );
    put(headers, RECORD, &id.to_string());
    headers.insert(VIA, identity.via.entry(Version::HTTP_11).clone());
    if let Failure::Stranger(_) = told {
        let challenge = format!("Basic realm={}, charset=\"UTF-8\"", quoted(&identity.name));
        put(headers, PROXY_AUTHENTICATE, &challenge);
    }
    if let Failure::Excess(_) = told {
        put(headers, RETRY_AFTER, "1");
    }
    if status == StatusCode::NOT_IMPLEMENTED || status == StatusCode::METHOD_NOT_ALLOWED {
        put(headers, CONNECTION, "close");
    }
    response
}

/// What a fault of the policy answers in our place, word for word but for the record's id; nothing where the connection
/// ends instead.
pub fn staged(staged: &Staged, id: Uuid) -> Option<Whole> {
    let With::Page(page) = &staged.with else {
        return None;
    };
    let mut response = Response::new(Bytes::from(page.body.clone()));
    *response.status_mut() = page.status;
    if let Ok(phrase) = ReasonPhrase::try_from(page.reason.as_bytes()) {
        response.extensions_mut().insert(phrase);
    }
    let headers = response.headers_mut();
    for (name, value) in &page.headers {
        headers.append(name, value.clone());
    }
    put(headers, RECORD, &id.to_string());
    Some(response)
}

/// Asks for the connection to be closed after an answer: what follows a refused CONNECT are the client's bytes for the
/// target, not a request.
pub fn close_after<B>(response: &mut Response<B>) {
    put(response.headers_mut(), CONNECTION, "close");
}

/// A response as bytes, for a connection that HTTP has given up on.
pub fn raw(response: &Whole) -> Vec<u8> {
    let status = response.status();
    let reason = response
        .extensions()
        .get::<ReasonPhrase>()
        .map_or(&b"-"[..], ReasonPhrase::as_bytes);
    let mut bytes = format!("HTTP/1.1 {} ", status.as_u16()).into_bytes();
    bytes.extend_from_slice(reason);
    for (name, value) in response.headers() {
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes.extend_from_slice(
        format!(
            "\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            response.body().len()
        )
        .as_bytes(),
    );
    bytes.extend_from_slice(response.body());
    bytes
}

fn proxy_status(failure: &Failure, message: &str, identity: &Identity) -> String {
    let name = &identity.name;
    let is_token = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&b));
    let mut field = if is_token { name.clone() } else { quoted(name) };
    let error = classify(failure).proxy_status();
    if let Some(error) = error {
        field.push_str("; error=");
        field.push_str(error);
    }
    let told = failure.told();
    if let Failure::Upstream {
        error: UpstreamError::Refused(reply) | UpstreamError::Unauthorized { reply, .. },
        ..
    } = told
    {
        let _ = write!(field, "; received-status={}", reply.status.as_u16());
    }
    if let Failure::Handshake(handshake) = told
        && let HandshakeError::Alert { alert, .. } = &handshake.error
    {
        let _ = write!(field, "; alert-id={}; alert-message=\"{alert}\"", alert.0);
    }
    if error == Some("dns_error") {
        let (code, info) = failure.dns_codes();
        if let Some(code) = code {
            let _ = write!(field, "; rcode={}", quoted(code));
        }
        if let Some(info) = info {
            let _ = write!(field, "; info-code={info}");
        }
    }
    let details = format!("{}: {message}", classify(failure));
    let _ = write!(field, "; details={}", quoted(&details));
    field
}

/// A string of RFC 9651: printable ASCII, quotes and backslashes escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in printable(text).chars() {
        if c == '"' || c == '\\' {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

fn phrase(text: &str) -> Vec<u8> {
    let mut text = printable(text);
    if text.len() > MAX_REASON {
        text.truncate(MAX_REASON - 3);
        text.push_str("...");
    }
    text.into_bytes()
}

fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else {
                '?'
            }
        })
        .collect()
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
