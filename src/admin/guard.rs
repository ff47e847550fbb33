//! Who may ask: against pages of other sites in the browser of whoever runs the proxy, and against everyone else where the
//! listener can be reached from other machines.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use nix::unistd::{Uid, geteuid};
use sha2::{Digest as _, Sha256};

use super::problem::Problem;
use crate::net::local::user_of;
use crate::secret::Secret;
use crate::target::canonical_ip;

/// What pages may do: everything comes from here, and nothing stands in a page but markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The two ends of a connection by which requests come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Theirs.
    pub(super) peer: SocketAddr,
    /// Ours.
    pub(super) local: SocketAddr,
}

/// What a request must show.
#[derive(Debug)]
pub struct Gate {
    /// Where the listener is; nothing for a Unix socket.
    address: Option<SocketAddr>,
    token: Option<[u8; 32]>,
    /// Whether everybody on this machine may change what is behind it.
    is_common: bool,
}

impl Gate {
    /// For a listener at an address, or at a Unix socket.
    pub fn new(address: Option<SocketAddr>, token: Option<&Secret>) -> Self {
        Self {
            address,
            token: token.map(|token| digest(token.reveal())),
            is_common: false,
        }
    }

    /// For a listener that everybody on this machine may use, and no page.
    pub fn common(address: Option<SocketAddr>) -> Self {
        Self {
            is_common: true,
            ..Self::new(address, None)
        }
    }

    /// Looks at a request's method and fields; `user` says whose it is, where anybody knows.
    fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        user: impl FnOnce() -> Option<u32>,
    ) -> Result<(), Problem> {
        self.check_host(headers)?;
        check_site(method, headers)?;
        if matches!(path, "/healthz" | "/readyz") {
            return Ok(());
        }
        if self.token.is_some() {
            return self.check_token(headers);
        }
        // The file of a Unix socket is for its owner alone.
        if self.address.is_none() || self.is_common || is_safe(method) {
            return Ok(());
        }
        check_user(user())
    }

    /// A name that was made to lead here (DNS rebinding) is none of ours. Where other machines can reach us, under names
    /// that we do not know, the token keeps such a page out.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(address) = self.address else {
            return Ok(());
        };
        if !canonical_ip(address.ip()).is_loopback() {
            return Ok(());
        }
        let host = text(headers, &HOST).unwrap_or_default();
        let port = address.port();
        let is_ours = [
            address.to_string(),
            format!("localhost:{port}"),
            format!("127.0.0.1:{port}"),
            format!("[::1]:{port}"),
        ]
        .iter()
        .any(|ours| ours.eq_ignore_ascii_case(host));
        if is_ours {
            return Ok(());
        }
        let detail = format!("ask for {address} or localhost:{port}: this is no {host:?}");
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let given = text(headers, &AUTHORIZATION).and_then(credential);
        // Digests are compared, so that the time taken says nothing of the token.
        if given.is_some_and(|given| digest(&given) == *token) {
            return Ok(());
        }
        let detail = "send the admin token, as a bearer token or as the password of any user";
        Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
    }
}

/// A page of another site may lead a person here, and no more.
fn check_site(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let forbidden = |detail: &str| Err(Problem::new(StatusCode::FORBIDDEN, detail));
    if let Some(origin) = text(headers, &ORIGIN) {
        let host = text(headers, &HOST).unwrap_or_default();
        let of_origin = origin.split_once("://").map(|(_, host)| host);
        if of_origin.is_none_or(|of_origin| !of_origin.eq_ignore_ascii_case(host)) {
            return forbidden("the request comes of a page of another site");
        }
    }
    let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match field("sec-fetch-site") {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) if is_safe(method) && field("sec-fetch-mode") == Some("navigate") => Ok(()),
        Some(_) => forbidden("the request comes of a page of another site"),
    }
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Without a token, what changes something, or reads files that a policy names, is for whoever could do so anyway: who may
/// write the policy may name programs in it, and those run as us.
fn check_user(user: Option<u32>) -> Result<(), Problem> {
    let own = geteuid();
    if user.is_some_and(|user| Uid::from_raw(user) == own || Uid::from_raw(user).is_root()) {
        return Ok(());
    }
    let detail = format!(
        "without an admin token this is for the user who runs the proxy (uid {own}) and root: set --admin-token-file, or \
         put the listener at a socket with --admin unix:PATH"
    );
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

fn text<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// What a request gives as the token: as a bearer token (RFC 6750), or as the password of any user, which browsers ask for.
fn credential(field: &str) -> Option<String> {
    let (scheme, rest) = field.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
    Some(pair.split_once(':')?.1.to_owned())
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// Stands in front of everything that listens for a person of this machine.
pub async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let user = || {
        let Ends { peer, local } = request.extensions().get::<Ends>().copied()?;
        let user = user_of(peer, local)
            .inspect_err(|error| tracing::warn!(%error, "find out who asks the admin listener"));
        user.ok().flatten()
    };
    let (method, path) = (request.method(), request.uri().path());
    let admitted = gate.admit(method, path, request.headers(), user);
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let is_refused = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    if is_refused {
        let asks = HeaderValue::from_static(
            "Bearer realm=\"routecause\", Basic realm=\"routecause\", charset=\"UTF-8\"",
        );
        headers.insert(WWW_AUTHENTICATE, asks);
    }
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let no_store = HeaderValue::from_static("no-store");
    headers.entry(CACHE_CONTROL).or_insert(no_store);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields are written `name: value`, one a line.
    fn ask(gate: &Gate, method: &Method, path: &str, fields: &str) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in fields
            .lines()
            .filter_map(|line| line.trim().split_once(": "))
        {
            let name: http::HeaderName = name.parse().unwrap();
            headers.insert(name, value.parse().unwrap());
        }
        let admitted = gate.admit(method, path, &headers, || Some(geteuid().as_raw()));
        admitted.map_or_else(
            |problem| problem.into_response().status().as_u16(),
            |()| 200,
        )
    }

    #[test]
    fn a_page_of_another_site_gets_nothing() {
        let gate = Gate::new("127.0.0.1:3129".parse().ok(), None);
        let own = "host: 127.0.0.1:3129";
        for (method, fields, expected) in [
            (Method::GET, "host: 127.0.0.1:3129", 200),
            (Method::GET, "host: LOCALHOST:3129", 200),
            (Method::GET, "host: [::1]:3129", 200),
            (Method::GET, "host: localhost", 421),
            (Method::GET, "host: localhost:3128", 421),
            (Method::GET, "host: attacker.example:3129", 421),
            (Method::GET, "host: 127.0.0.1.attacker.example:3129", 421),
            (Method::GET, "accept: */*", 421),
            (Method::GET, "origin: http://127.0.0.1:3129", 200),
            (Method::GET, "origin: http://localhost:3129", 403),
            (Method::GET, "origin: https://attacker.example", 403),
            (Method::GET, "origin: null", 403),
            (Method::POST, "origin: http://127.0.0.1:3129", 200),
            (Method::POST, "origin: http://127.0.0.1:8080", 403),
            (Method::DELETE, "origin: null", 403),
            (Method::GET, "sec-fetch-site: none", 200),
            (Method::GET, "sec-fetch-site: same-origin", 200),
            (
                Method::GET,
                "sec-fetch-site: cross-site\nsec-fetch-mode: navigate",
                200,
            ),
            (
                Method::GET,
                "sec-fetch-site: cross-site\nsec-fetch-mode: no-cors",
                403,
            ),
            (
                Method::GET,
                "sec-fetch-site: same-site\nsec-fetch-mode: cors",
                403,
            ),
            (
                Method::POST,
                "sec-fetch-site: cross-site\nsec-fetch-mode: navigate",
                403,
            ),
            (Method::PUT, "sec-fetch-site: same-site", 403),
            (Method::PUT, "sec-fetch-site: same-origin", 200),
            // What is no browser says nothing of all that.
            (Method::POST, "user-agent: curl/8.5.0", 200),
        ] {
            let has_host = fields.starts_with("host:") || fields.starts_with("accept:");
            let fields = if has_host {
                fields.to_owned()
            } else {
                format!("{own}\n{fields}")
            };
            assert_eq!(
                ask(&gate, &method, "/v1/records", &fields),
                expected,
                "{method} {fields}"
            );
        }
    }

    #[test]
    fn a_token_is_asked_for_wherever_there_is_one() {
        let gate = Gate::new(
            "192.0.2.1:3129".parse().ok(),
            Some(&Secret::new("open sesame")),
        );
        // The password of `me:open sesame`, and of `me:sesame`.
        for (path, fields, expected) in [
            ("/v1/records", "host: proxy.example", 401),
            ("/v1/records", "authorization: Bearer open sesame", 200),
            ("/v1/records", "authorization: bearer open sesame ", 200),
            ("/v1/records", "authorization: Bearer open", 401),
            (
                "/v1/records",
                "authorization: Basic bWU6b3BlbiBzZXNhbWU=",
                200,
            ),
            ("/v1/records", "authorization: Basic bWU6c2VzYW1l", 401),
            ("/v1/records", "authorization: Basic !", 401),
            ("/metrics", "host: proxy.example", 401),
            ("/healthz", "host: proxy.example", 200),
            ("/readyz", "host: proxy.example", 200),
        ] {
            assert_eq!(
                ask(&gate, &Method::GET, path, fields),
                expected,
                "{path} {fields}"
            );
        }
        let told = format!("{gate:?}");
        assert!(!told.contains("sesame"), "{told}");
    }
}
