//! What of a message's head crosses a proxy, and what ends here (RFC 9110, section 7.6). Pure.

use http::header::{
    self, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version, request, response};

use crate::failure::{Failure, LoopSign, RequestError};
use crate::route::Form;
use crate::secret::Secret;
use crate::target::{Target, TargetError};

/// Our name in Via, as each version of HTTP enters it.
#[derive(Clone, Debug)]
pub struct Via {
    name: String,
    entries: [HeaderValue; 3],
}

impl Via {
    /// The entries of `name`, which is a token.
    pub fn new(name: String) -> Self {
        #[expect(clippy::expect_used, reason = "a token is a field's value")]
        let entry = |version| {
            HeaderValue::try_from(format!("{version} {name}")).expect("a token is a field's value")
        };
        let entries = [entry("1.0"), entry("1.1"), entry("2.0")];
        Self { name, entries }
    }

    /// The whole field of what came by another protocol, as in `SOCKS/5`.
    pub fn foreign(&self, protocol: &str) -> String {
        format!("{protocol} {}", self.name)
    }

    /// The entry for a message that came by `version`.
    pub fn entry(&self, version: Version) -> &HeaderValue {
        let [old, usual, new] = &self.entries;
        match version {
            Version::HTTP_10 => old,
            Version::HTTP_2 => new,
            _ => usual,
        }
    }
}

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What a proxy says of the credentials that it was given; for whoever gave them alone (RFC 9110, section 11.7.3).
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

/// Fields that `Connection` cannot name: without them the message would mean something else.
static END_TO_END: [HeaderName; 6] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    VIA,
    header::AUTHORIZATION,
    header::COOKIE,
];

/// What a request asks of its intermediaries, read before its fields are removed.
#[derive(Debug, Default)]
pub struct Wishes {
    /// The protocol to upgrade to. Never h2c, which would take the traffic out of our sight.
    pub upgrade: Option<HeaderValue>,
    /// That trailers may come.
    pub trailers: bool,
    /// That it waits for a 100 before its body.
    pub waits_for_continue: bool,
    /// That it ends here.
    pub ends_here: bool,
}

/// Checks that the Host field agrees with the target (RFC 9112, section 3.2).
pub fn check_host(
    parts: &request::Parts,
    target: &Target,
    default_port: u16,
) -> Result<(), TargetError> {
    let count = parts.headers.get_all(HOST).iter().count();
    // In HTTP/2 the authority is the host (RFC 9113, section 8.3.1).
    let may_lack = matches!(parts.version, Version::HTTP_10 | Version::HTTP_2);
    if count > 1 || count == 0 && !may_lack {
        return Err(TargetError::HostCount(count));
    }
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    match parts.headers.get(HOST) {
        None => Ok(()),
        // The target was read from the very same text.
        Some(host) if authority.is_some_and(|authority| host == authority) => Ok(()),
        Some(host)
            if host
                .to_str()
                .is_ok_and(|host| target.agrees_with(host, default_port)) =>
        {
            Ok(())
        }
        Some(host) => Err(TargetError::HostMismatch {
            header: quotable(host),
            target: target.to_string(),
        }),
    }
}

/// A Host field for an error text. What stands before an `@` may be a password.
fn quotable(host: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(host.as_bytes());
    let host = text.rsplit('@').next().unwrap_or_default();
    let mark = if host.len() < text.len() { "...@" } else { "" };
    mark.chars().chain(host.chars()).take(80).collect()
}

/// Whether our own name stands in Via.
pub fn check_loop(headers: &HeaderMap, via: &Via) -> Result<(), Failure> {
    let names_us = |value: &HeaderValue| {
        let by = |entry: &[u8]| {
            entry.trim_ascii().split(u8::is_ascii_whitespace).nth(1) == Some(via.name.as_bytes())
        };
        value.as_bytes().split(|b| *b == b',').any(by)
    };
    if headers.get_all(VIA).iter().any(names_us) {
        return Err(Failure::Loop(LoopSign::Via));
    }
    Ok(())
}

/// The Via that a request leaves with: its own entries, and ours behind them.
pub fn via_of(parts: &request::Parts, via: &Via) -> String {
    let ours = via.entry(parts.version);
    let received = parts.headers.get_all(VIA).iter();
    let entries: Vec<&str> = received
        .chain([ours])
        .filter_map(|via| via.to_str().ok())
        .collect();
    entries.join(", ")
}

/// Fields of a request that say something to its intermediaries. Most requests have none.
static FOR_US: [HeaderName; 11] = [
    CONNECTION,
    PROXY_CONNECTION,
    KEEP_ALIVE,
    TE,
    UPGRADE,
    TRANSFER_ENCODING,
    HTTP2_SETTINGS,
    header::EXPECT,
    PROXY_AUTHENTICATE,
    PROXY_AUTHENTICATION_INFO,
    PROXY_AUTHORIZATION,
];

/// Turns a request's head into the one that leaves, whatever way it goes.
///
/// # Errors
/// [`RequestError::TransferCoding`] for any coding but a single `chunked`.
pub fn prepare(parts: &mut request::Parts, via: &Via) -> Result<Wishes, RequestError> {
    let headers = &mut parts.headers;
    let counts = parts.method == Method::OPTIONS || parts.method == Method::TRACE;
    let ends_here = counts && count_down(headers);
    let mut wishes = if headers.keys().any(|name| FOR_US.contains(name)) {
        take_wishes(headers, parts.version)?
    } else {
        Wishes::default()
    };
    wishes.ends_here = ends_here;
    if parts.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    headers.append(VIA, via.entry(parts.version).clone());
    Ok(wishes)
}

/// HTTP/2 may send a cookie in crumbs, which are one field elsewhere (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().cloned().collect();
    if crumbs.len() > 1 {
        let crumbs: Vec<_> = crumbs.iter().map(HeaderValue::as_bytes).collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(header::COOKIE, cookie);
        }
    }
}

/// Reads what is said to intermediaries, and writes of it what the next one is to hear.
fn take_wishes(headers: &mut HeaderMap, version: Version) -> Result<Wishes, RequestError> {
    let is_chunked = check_coding(headers)?;
    let wishes = Wishes {
        // HTTP/1.0 knows no upgrade (RFC 9110, section 7.8).
        upgrade: upgrade_of(headers).filter(|_| version != Version::HTTP_10),
        trailers: headers
            .get_all(TE)
            .iter()
            .any(|te| has_token(te, "trailers")),
        waits_for_continue: headers
            .get(header::EXPECT)
            .is_some_and(|expect| has_token(expect, "100-continue")),
        ends_here: false,
    };
    remove_hop_by_hop(headers);
    headers.remove(PROXY_AUTHORIZATION);
    if is_chunked {
        headers.remove(CONTENT_LENGTH);
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if wishes.trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("TE"));
    }
    if let Some(protocol) = &wishes.upgrade {
        headers.insert(UPGRADE, protocol.clone());
        headers.append(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    Ok(wishes)
}

/// Writes a prepared head's target and Host in the form that the connection's far side takes.
pub fn address(parts: &mut request::Parts, target: &Target, form: &Form) {
    let path = parts.uri.path_and_query();
    let text = path.map_or("/", PathAndQuery::as_str);
    let slash = if text.starts_with('/') { "" } else { "/" };
    let is_canonical = |host: &HeaderValue| target.is_written(host.as_bytes(), 80);
    let authority = || target.authority(80);
    let uri: Result<Uri, _> = match (form, path) {
        // What was parsed is not parsed again.
        (Form::Origin, Some(path)) if slash.is_empty() => Ok(Uri::from(path.clone())),
        (Form::Origin, _) => format!("{slash}{text}").try_into(),
        (Form::Absolute { .. }, _) => format!("http://{}{slash}{text}", authority()).try_into(),
    };
    if let Ok(uri) = uri {
        parts.uri = uri;
    }
    if !parts.headers.get(HOST).is_some_and(is_canonical)
        && let Ok(host) = HeaderValue::from_str(&authority())
    {
        parts.headers.insert(HOST, host);
    }
    parts.version = Version::HTTP_11;
}

/// Says who we are to the upstream that a request goes to; nothing where `authorization` is `None`.
pub fn authorize(parts: &mut request::Parts, authorization: Option<&Secret>) {
    parts.headers.remove(PROXY_AUTHORIZATION);
    let value = authorization.and_then(|text| HeaderValue::from_str(text.reveal()).ok());
    if let Some(mut value) = value {
        value.set_sensitive(true);
        parts.headers.insert(PROXY_AUTHORIZATION, value);
    }
}

/// Turns an answer's head into the one that the client gets. An upgrade's fields are left alone where it was asked for.
pub fn pass_back(parts: &mut response::Parts, via: &Via) {
    let upgrade = if parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
        upgrade_of(&parts.headers)
    } else {
        None
    };
    let headers = &mut parts.headers;
    if headers.contains_key(TRANSFER_ENCODING) {
        // Both together is a way to smuggle; the decoded body is framed anew for the client.
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
    }
    remove_hop_by_hop(headers);
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    headers.append(VIA, via.entry(parts.version).clone());
    parts.version = Version::HTTP_11;
}

/// The fields that a TRACE may not show, even to whoever sent it (RFC 9110, section 9.3.8).
pub fn is_secret(name: &HeaderName) -> bool {
    [header::AUTHORIZATION, header::COOKIE, PROXY_AUTHORIZATION].contains(name)
}

fn check_coding(headers: &HeaderMap) -> Result<bool, RequestError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        (Some(coding), _) => {
            let text = String::from_utf8_lossy(coding.as_bytes())
                .chars()
                .take(80)
                .collect();
            Err(RequestError::TransferCoding(text))
        }
    }
}

fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .any(|value| has_token(value, "upgrade"));
    let protocol = headers.get(UPGRADE)?;
    let is_h2c = has_token(protocol, "h2c") || has_token(protocol, "h2");
    (asked && !is_h2c).then(|| protocol.clone())
}

/// Counts Max-Forwards down; true where it was 0 already (RFC 9110, section 7.6.2).
fn count_down(headers: &mut HeaderMap) -> bool {
    let left = headers
        .get(MAX_FORWARDS)
        .and_then(|left| left.to_str().ok()?.parse::<u32>().ok());
    match left {
        Some(0) => true,
        Some(left) => {
            headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            false
        }
        None => false,
    }
}

/// Fields that concern one hop, whether `Connection` names them or not.
static HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    PROXY_CONNECTION,
    KEEP_ALIVE,
    TE,
    UPGRADE,
    HTTP2_SETTINGS,
    PROXY_AUTHENTICATE,
    PROXY_AUTHENTICATION_INFO,
];

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in value.as_bytes().split(|b| *b == b',') {
            match HeaderName::from_bytes(token.trim_ascii()) {
                Ok(name) if !END_TO_END.contains(&name) => named.push(name),
                _ => {}
            }
        }
    }
    for name in named.into_iter().chain(HOP_BY_HOP.iter().cloned()) {
        headers.remove(name);
    }
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    value
        .as_bytes()
        .split(|b| *b == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Via {
        Via::new("me".to_owned())
    }

    fn request(head: &[(&str, &str)]) -> request::Parts {
        let mut builder = http::Request::builder().uri("http://a.example/x?y=1");
        for (name, value) in head {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn fields(headers: &HeaderMap) -> Vec<String> {
        let mut fields: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        fields.sort();
        fields
    }

    #[track_caller]
    fn leaves(head: &[(&str, &str)], expected: &[&str]) {
        let mut parts = request(head);
        prepare(&mut parts, &me()).unwrap();
        assert_eq!(fields(&parts.headers), expected);
    }

    #[test]
    fn hop_by_hop_fields_and_what_connection_names_end_here() {
        leaves(
            &[
                ("connection", "close, X-Private, proxy-foo"),
                ("connection", "keep-alive"),
                ("x-private", "1"),
                ("proxy-foo", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic c2VjcmV0"),
                ("te", "gzip"),
                ("x-kept", "1"),
            ],
            &["via: 1.1 me", "x-kept: 1"],
        );
    }

    #[test]
    fn connection_cannot_name_what_gives_a_message_its_meaning() {
        leaves(
            &[
                ("connection", "authorization, cookie, host, via"),
                ("authorization", "a"),
                ("cookie", "b"),
                ("host", "c"),
            ],
            &["authorization: a", "cookie: b", "host: c", "via: 1.1 me"],
        );
    }

    #[test]
    fn trailers_and_upgrades_are_asked_for_anew() {
        leaves(
            &[("te", "trailers, deflate")],
            &["connection: TE", "te: trailers", "via: 1.1 me"],
        );
        leaves(
            &[("connection", "upgrade"), ("upgrade", "websocket")],
            &["connection: Upgrade", "upgrade: websocket", "via: 1.1 me"],
        );
        leaves(&[("upgrade", "websocket")], &["via: 1.1 me"]);
        leaves(
            &[
                ("connection", "upgrade, http2-settings"),
                ("upgrade", "h2c"),
                ("http2-settings", "AAM"),
            ],
            &["via: 1.1 me"],
        );
    }

    #[test]
    fn one_framing_leaves() {
        leaves(
            &[("transfer-encoding", "Chunked")],
            &["transfer-encoding: chunked", "via: 1.1 me"],
        );
        for codings in [
            &["gzip, chunked"][..],
            &["chunked", "chunked"],
            &["chunked, chunked"],
            &[",chunked"],
            &["identity"],
        ] {
            let head: Vec<_> = codings
                .iter()
                .map(|coding| ("transfer-encoding", *coding))
                .collect();
            assert!(
                matches!(
                    prepare(&mut request(&head), &me()),
                    Err(RequestError::TransferCoding(_))
                ),
                "{codings:?}"
            );
        }
    }

    #[test]
    fn max_forwards_counts_down_for_options_and_trace() {
        let count = |method: Method, left: &str| {
            let mut parts = request(&[("max-forwards", left)]);
            parts.method = method;
            let wishes = prepare(&mut parts, &me()).unwrap();
            (
                wishes.ends_here,
                parts.headers[MAX_FORWARDS].to_str().unwrap().to_owned(),
            )
        };
        assert_eq!(count(Method::OPTIONS, "0"), (true, "0".to_owned()));
        assert_eq!(count(Method::TRACE, "3"), (false, "2".to_owned()));
        assert_eq!(count(Method::GET, "0"), (false, "0".to_owned()));
    }

    #[test]
    fn our_own_name_in_via_is_a_loop() {
        let with = |via: &str| {
            check_loop(
                &request(&[("via", via)]).headers,
                &Via::new("routecause-12345678".to_owned()),
            )
        };
        assert!(with("1.1 other, 1.0 routecause-12345678 (x)").is_err());
        assert!(with("1.1 routecause-123456789").is_ok());
        assert!(with("1.1 other").is_ok());
    }

    #[test]
    fn the_target_line_takes_the_form_of_the_way() {
        let line = |uri: &str, port: u16, form: &Form| {
            let mut parts = request(&[]);
            parts.uri = uri.parse().unwrap();
            let target = Target::from_authority(&format!("a.example:{port}")).unwrap();
            address(&mut parts, &target, form);
            format!("{} {}", parts.uri, parts.headers[HOST].to_str().unwrap())
        };
        let proxy = Form::Absolute {
            upstream: "corp".into(),
            authenticator: None,
        };
        assert_eq!(
            line("http://A.example/x?y", 80, &Form::Origin),
            "/x?y a.example"
        );
        assert_eq!(
            line("http://a.example?y", 80, &Form::Origin),
            "/?y a.example"
        );
        assert_eq!(
            line("http://a.example:8080", 8080, &Form::Origin),
            "/ a.example:8080"
        );
        assert_eq!(
            line("http://a.example/%7Ex", 80, &proxy),
            "http://a.example/%7Ex a.example"
        );
        assert_eq!(
            line("http://a.example:8080/", 8080, &proxy),
            "http://a.example:8080/ a.example:8080"
        );
    }

    #[test]
    fn only_what_we_say_of_ourselves_leaves() {
        let mut parts = request(&[("proxy-authorization", "Basic Y2xpZW50")]);
        authorize(&mut parts, Some(&Secret::new("Basic eA==")));
        assert_eq!(parts.headers[PROXY_AUTHORIZATION], "Basic eA==");
        assert!(parts.headers[PROXY_AUTHORIZATION].is_sensitive());
        authorize(&mut parts, None);
        assert!(!parts.headers.contains_key(PROXY_AUTHORIZATION));
    }

    #[test]
    fn an_answer_is_framed_anew() {
        let mut parts = http::Response::builder()
            .header("transfer-encoding", "chunked")
            .header("content-length", "3")
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("proxy-authenticate", "Basic")
            .header("proxy-authentication-info", "nextnonce=x")
            .header("etag", "e")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        pass_back(&mut parts, &me());
        assert_eq!(fields(&parts.headers), ["etag: e", "via: 1.1 me"]);
    }
}
