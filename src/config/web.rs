//! URLs of web servers that a policy names.

use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;

use super::decode::clip;
use crate::target::{Target, TargetError};

/// A place on a web server.
#[derive(Debug)]
pub(super) struct Web {
    /// Whether the server is asked by TLS.
    pub(super) is_https: bool,
    pub(super) server: Target,
    pub(super) path: Arc<str>,
    pub(super) query: Option<Arc<str>>,
}

/// Reads a URL; the port is that of its scheme where none is written.
///
/// # Errors
/// What is wrong with it, for whoever wrote it.
pub(super) fn url(written: &str, is_plain_allowed: bool) -> Result<Web, String> {
    let uri: Uri = written
        .parse()
        .map_err(|_| format!("`{}` is no URL", clip(written)))?;
    let is_https = uri.scheme() == Some(&Scheme::HTTPS);
    let is_http = uri.scheme() == Some(&Scheme::HTTP);
    let is_known = is_https || (is_http && is_plain_allowed);
    if !is_known {
        let schemes = if is_plain_allowed {
            "http:// or https://"
        } else {
            "https://"
        };
        return Err(format!("`{}` does not begin with {schemes}", clip(written)));
    }
    if written.contains('#') {
        return Err(
            "what begins with `#` is no part that a server is told: leave it out".to_owned(),
        );
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err("credentials do not stand in a policy".to_owned());
    }
    let port = if is_https { 443 } else { 80 };
    let server = match Target::from_authority(authority) {
        Err(TargetError::MissingPort(_)) => Target::from_authority(&format!("{authority}:{port}")),
        other => other,
    };
    Ok(Web {
        is_https,
        server: server.map_err(|error| error.to_string())?,
        path: uri.path().into(),
        query: uri.query().map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_server_and_what_is_asked_of_it() {
        for (written, expected) in [
            ("http://wpad/proxy.pac", "wpad:80 /proxy.pac None"),
            ("https://wpad.corp.example", "wpad.corp.example:443 / None"),
            (
                "HTTP://[2001:db8::1]:8080/a?b=c",
                "[2001:db8::1]:8080 /a Some(\"b=c\")",
            ),
            (
                "ftp://a/b",
                "`ftp://a/b` does not begin with http:// or https://",
            ),
            (
                "wpad.dat",
                "`wpad.dat` does not begin with http:// or https://",
            ),
            (
                "http://user:secret@wpad/a",
                "credentials do not stand in a policy",
            ),
            ("http:// a", "`http:// a` is no URL"),
            (
                "http://a/b#c",
                "what begins with `#` is no part that a server is told: leave it out",
            ),
        ] {
            let told = match url(written, true) {
                Ok(web) => format!("{} {} {:?}", web.server, web.path, web.query),
                Err(error) => error,
            };
            assert_eq!(told, expected, "{written}");
        }
        let error = url("http://a/b", false).unwrap_err();
        assert_eq!(error, "`http://a/b` does not begin with https://");
    }
}
