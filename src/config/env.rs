//! The environment: the only reader of it, and what the proxy variables in it say.
//!
//! Precedence is Go's (`golang.org/x/net/http/httpproxy`): upper case first, an empty variable
//! hides nothing, `HTTP_PROXY` is ignored under CGI, where a client's `Proxy:` header can set it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use percent_encoding::percent_decode_str;

use crate::secret::Secret;
use crate::target::{Host, Target, TargetError, canonical_ip, leads_to};

/// A snapshot of environment variables.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl std::fmt::Debug for Environment {
    /// Names only: values hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// Takes the variables of this process; those that are not UTF-8 are left out.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn of_process() -> Self {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(utf8).collect())
    }

    /// Whether a variable is set to nothing, which counts as unset.
    pub fn is_blank(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(String::is_empty)
    }

    /// A variable as it is set, to something or nothing.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    /// The first of some variables that is set and not empty, with its name.
    fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &str)> {
        names
            .iter()
            .find_map(|name| Some((*name, self.get(name)?.trim())))
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter().map(|(k, v)| (k.into(), v.into()));
        Self(pairs.collect())
    }
}

/// A proxy as written in a URL.
#[derive(Clone, Debug)]
pub(super) struct ProxyUrl {
    /// What it speaks.
    pub(super) scheme: UrlScheme,
    /// Where it listens.
    pub(super) target: Target,
    /// User name and password, if the URL holds any.
    pub(super) userinfo: Option<Userinfo>,
}

/// The scheme of a proxy's URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UrlScheme {
    /// HTTP/1.1 in the clear.
    Http,
    /// HTTP behind TLS.
    Https,
    /// SOCKS 5 that is told addresses.
    Socks5,
    /// SOCKS 5 that is told names.
    Socks5h,
}

impl UrlScheme {
    const ALL: [Self; 4] = [Self::Http, Self::Https, Self::Socks5, Self::Socks5h];

    /// As it is written.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
            Self::Socks5h => "socks5h",
        }
    }

    /// Whether it is one of SOCKS.
    pub(super) fn is_socks(self) -> bool {
        matches!(self, Self::Socks5 | Self::Socks5h)
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Socks5 | Self::Socks5h => 1080,
        }
    }
}

/// What stands before the `@` of a URL, decoded.
#[derive(Clone, Debug)]
pub(super) struct Userinfo {
    /// The user name.
    pub(super) username: String,
    /// The password; empty where there is none.
    pub(super) password: Secret,
}

/// Why a URL names no proxy. No variant holds what may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProxyUrlError {
    /// A kind of proxy that this version does not speak to.
    #[error("{0}:// is no proxy's scheme: http, https, socks5 and socks5h are")]
    Scheme(String),
    /// The host or port is none.
    #[error("{0}")]
    Target(TargetError),
    /// There is something behind the host.
    #[error("a proxy's URL ends behind its port")]
    Path,
    /// The user name or password is not UTF-8 once decoded, or holds a control character.
    #[error("its user name or password cannot be sent")]
    Userinfo,
}

/// Reads `[scheme://][user[:password]@]host[:port][/]`; the scheme defaults to http, the port to the scheme's.
pub(super) fn parse_proxy_url(text: &str) -> Result<ProxyUrl, ProxyUrlError> {
    let known = |scheme: &str| {
        let mut all = UrlScheme::ALL.into_iter();
        all.find(|known| scheme.eq_ignore_ascii_case(known.as_str()))
    };
    let parts = text.split_once("://");
    let (scheme, rest) = match parts.map(|(scheme, rest)| (scheme, known(scheme), rest)) {
        None => (UrlScheme::Http, text),
        Some((_, Some(scheme), rest)) => (scheme, rest),
        Some((scheme, None, _)) => {
            let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
            let scheme: String = scheme.chars().filter(|c| is_scheme(*c)).take(20).collect();
            return Err(ProxyUrlError::Scheme(scheme.to_lowercase()));
        }
    };
    // A password may hold an `@` or a `/` that nobody escaped: only the last `@` ends it.
    let (userinfo, rest) = match rest.rsplit_once('@') {
        Some((userinfo, rest)) => (Some(parse_userinfo(userinfo)?), rest),
        None => (None, rest),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(ProxyUrlError::Path);
    }
    let target = match Target::from_authority(authority) {
        Err(TargetError::MissingPort(_)) => {
            Target::from_authority(&format!("{authority}:{}", scheme.port()))
        }
        other => other,
    };
    Ok(ProxyUrl {
        scheme,
        target: target.map_err(ProxyUrlError::Target)?,
        userinfo,
    })
}

fn parse_userinfo(text: &str) -> Result<Userinfo, ProxyUrlError> {
    let (username, password) = text.split_once(':').unwrap_or((text, ""));
    let decode = |text: &str| {
        let text = percent_decode_str(text).decode_utf8();
        let text = text.map_err(|_| ProxyUrlError::Userinfo)?.into_owned();
        if text.contains(char::is_control) {
            return Err(ProxyUrlError::Userinfo);
        }
        Ok(text)
    };
    let username = decode(username)?;
    if username.contains(':') {
        return Err(ProxyUrlError::Userinfo); // it would end there for the upstream (RFC 7617)
    }
    Ok(Userinfo {
        username,
        password: Secret::new(decode(password)?),
    })
}

/// What the proxy variables say.
#[derive(Clone, Debug, Default)]
pub(super) struct ProxyVariables {
    /// The proxy for plain requests.
    pub(super) http: Option<ProxyUrl>,
    /// The proxy for tunnels.
    pub(super) connect: Option<ProxyUrl>,
    /// Variables that cannot be used.
    pub(super) errors: Vec<String>,
    /// What is likely not meant.
    pub(super) warnings: Vec<String>,
}

/// Reads `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY` in both cases. An entry that names one of the
/// listeners in `own` would have us ask ourselves: it is left out.
pub(super) fn proxies(environment: &Environment, own: &[SocketAddr]) -> ProxyVariables {
    let mut found = ProxyVariables::default();
    let is_cgi = environment.get("REQUEST_METHOD").is_some();
    let all = ["ALL_PROXY", "all_proxy"];
    for names in [
        ["HTTP_PROXY", "http_proxy"],
        ["HTTPS_PROXY", "https_proxy"],
        all,
    ] {
        found.warnings.extend(difference(environment, names));
    }
    let mut http = vec!["http_proxy"];
    if !is_cgi {
        http.insert(0, "HTTP_PROXY");
    } else if environment.get("HTTP_PROXY").is_some() {
        let warning = "HTTP_PROXY is ignored: REQUEST_METHOD is set, so a client's Proxy header may have set it";
        found.warnings.push(warning.to_owned());
    }
    http.extend(all);
    found.http = found.read(environment, &http, own);
    found.connect = found.read(
        environment,
        &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        own,
    );
    found.errors.dedup();
    found.warnings.dedup();
    found
}

impl ProxyVariables {
    fn read(
        &mut self,
        environment: &Environment,
        names: &[&str],
        own: &[SocketAddr],
    ) -> Option<ProxyUrl> {
        let (name, value) = environment.first(names)?;
        match parse_proxy_url(value) {
            Ok(proxy) if own.iter().any(|own| is_own(&proxy.target, *own)) => {
                self.warnings.push(format!(
                    "{name} points back at this proxy ({}); it is left out",
                    proxy.target
                ));
                None
            }
            Ok(proxy) => Some(proxy),
            Err(error) => {
                self.errors
                    .push(format!("{name} of the environment: {error}"));
                None
            }
        }
    }
}

/// Whether a value can stand for a proxy, and whether it leads to one of our own listeners.
///
/// # Errors
/// What is wrong with it, without what may be a secret.
pub fn is_usable_proxy(value: &str, own: SocketAddr) -> Result<bool, String> {
    Ok(is_own(&proxy_target(value)?, own))
}

/// Where the proxy of a value listens.
///
/// # Errors
/// What is wrong with it, without what may be a secret.
pub fn proxy_target(value: &str) -> Result<Target, String> {
    let proxy = parse_proxy_url(value.trim()).map_err(|error| error.to_string())?;
    Ok(proxy.target)
}

/// The URL of something that is asked for, without its credentials. That of a proxy is for [`proxy_without_credentials`].
pub fn without_credentials(value: &str) -> String {
    match value.split_once("://") {
        // Behind a host an `@` is part of the path.
        Some((_, rest)) if is_host(rest.split(['/', '?', '#']).next()) => value.to_owned(),
        _ => proxy_without_credentials(value),
    }
}

/// A proxy's URL without its credentials, whatever they hold: it has no path that is worth showing.
pub fn proxy_without_credentials(value: &str) -> String {
    let (scheme, rest) = match value.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), value),
    };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}…@{host}"),
        None => format!("{scheme}{rest}"),
    }
}

/// Whether this is a host, with its port or without, and not the first half of credentials that hold a slash.
fn is_host(authority: Option<&str>) -> bool {
    authority.is_some_and(|authority| {
        let port = authority.rsplit_once(':').map(|(_, port)| port);
        !authority.contains('@') && port.is_none_or(|port| port.parse::<u16>().is_ok())
    })
}

/// The list of hosts that are reached without a proxy, and a warning where its two names differ.
pub fn no_proxy(environment: &Environment) -> (&str, Option<String>) {
    let names = ["NO_PROXY", "no_proxy"];
    let list = environment.first(&names).map_or("", |(_, list)| list);
    (list, difference(environment, names))
}

fn difference(environment: &Environment, names: [&str; 2]) -> Option<String> {
    let [upper, lower] = names;
    let differ = environment.get(upper)?.trim() != environment.get(lower)?.trim();
    differ.then(|| {
        format!("{upper} and {lower} differ; {upper} is used, most other tools use {lower}")
    })
}

/// Whether a proxy is one of our own listeners.
pub(super) fn is_own(proxy: &Target, own: SocketAddr) -> bool {
    let listener = canonical_ip(own.ip());
    if proxy.port != own.port() {
        return false;
    }
    match &proxy.host {
        Host::Name(name) => {
            let is_near = &**name == "localhost" || name.ends_with(".localhost");
            is_near && (listener.is_loopback() || listener.is_unspecified())
        }
        // A listener on 127.0.0.1 is not reached at 127.0.0.2 or ::1, but a wildcard one is.
        Host::Ip(ip) => leads_to(*ip, listener),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(proxy: Option<&ProxyUrl>) -> String {
        match proxy {
            None => "-".to_owned(),
            Some(proxy) => {
                let user = proxy.userinfo.as_ref();
                let user = user.map(|u| format!("{}:{}@", u.username, u.password.reveal()));
                let scheme = match proxy.scheme {
                    UrlScheme::Http => "",
                    UrlScheme::Https => "https://",
                    UrlScheme::Socks5 => "socks5://",
                    UrlScheme::Socks5h => "socks5h://",
                };
                format!("{scheme}{}{}", user.unwrap_or_default(), proxy.target)
            }
        }
    }

    /// `A=x B=y` and what comes of it: the proxies for http and CONNECT, and the count of errors and warnings.
    #[track_caller]
    fn check(variables: &str, expected: &str) {
        let pairs = variables
            .split_whitespace()
            .filter_map(|v| v.split_once('='));
        let environment: Environment = pairs.collect();
        let own = [
            "127.0.0.1:3128".parse().unwrap(),
            "[::]:3199".parse().unwrap(),
        ];
        let found = proxies(&environment, &own);
        let got = format!(
            "{} {} {}e {}w",
            show(found.http.as_ref()),
            show(found.connect.as_ref()),
            found.errors.len(),
            found.warnings.len()
        );
        assert_eq!(got, expected, "{variables}: {found:?}");
    }

    #[test]
    fn credentials_are_left_out_and_paths_are_not() {
        for (value, expected) in [
            ("http://me:secret@p:1", "http://…@p:1"),
            ("me:secret@p:1", "…@p:1"),
            ("https://token@git.example/a", "https://…@git.example/a"),
            ("http://me:sec/ret@p:1", "http://…@p:1"),
            ("http://me:s@cret@p:1", "http://…@p:1"),
            ("https://npm.example/@a/b", "https://npm.example/@a/b"),
            (
                "https://go.example:8443/a/@v/list",
                "https://go.example:8443/a/@v/list",
            ),
        ] {
            assert_eq!(without_credentials(value), expected);
        }
    }

    #[test]
    fn no_part_of_a_proxys_credentials_is_taken_for_its_host() {
        for (value, expected) in [
            ("http://p:1/", "http://p:1/"),
            ("http://me:secret@p:1", "http://…@p:1"),
            ("http://me:12/34secret@p:3128", "http://…@p:3128"),
            ("http://token/secret@p:3128", "http://…@p:3128"),
            ("http://me:7?secret@p:1", "http://…@p:1"),
            ("me:7/secret@p:1", "…@p:1"),
        ] {
            assert_eq!(proxy_without_credentials(value), expected);
        }
    }

    #[test]
    fn precedence_is_that_of_go() {
        for (variables, expected) in [
            ("", "- - 0e 0w"),
            ("HTTP_PROXY=http://a:1", "a:1 - 0e 0w"),
            ("http_proxy=http://a:1", "a:1 - 0e 0w"),
            ("HTTPS_PROXY=http://a:1", "- a:1 0e 0w"),
            ("https_proxy=http://a:1", "- a:1 0e 0w"),
            ("HTTP_PROXY=http://a:1 http_proxy=http://b:1", "a:1 - 0e 1w"),
            ("HTTP_PROXY=http://a:1 http_proxy=http://a:1", "a:1 - 0e 0w"),
            ("HTTP_PROXY= http_proxy=http://b:1", "b:1 - 0e 0w"),
            (
                "HTTPS_PROXY= https_proxy= ALL_PROXY=http://c:1",
                "c:1 c:1 0e 0w",
            ),
            (
                "ALL_PROXY=http://c:1 HTTPS_PROXY=http://a:1",
                "c:1 a:1 0e 0w",
            ),
            ("all_proxy=http://c:1", "c:1 c:1 0e 0w"),
            ("ALL_PROXY=http://c:1 all_proxy=http://d:1", "c:1 c:1 0e 1w"),
            ("HTTP_PROXY=http://a:1 REQUEST_METHOD=GET", "- - 0e 1w"),
            ("http_proxy=http://a:1 REQUEST_METHOD=GET", "a:1 - 0e 0w"),
            ("HTTPS_PROXY=http://a:1 REQUEST_METHOD=GET", "- a:1 0e 0w"),
        ] {
            check(variables, expected);
        }
    }

    #[test]
    fn values_are_read_as_tools_write_them() {
        for (variables, expected) in [
            (
                "HTTP_PROXY=proxy.corp.example:8080",
                "proxy.corp.example:8080 - 0e 0w",
            ),
            (
                "HTTP_PROXY=proxy.corp.example",
                "proxy.corp.example:80 - 0e 0w",
            ),
            (
                "HTTP_PROXY=http://proxy.corp.example/",
                "proxy.corp.example:80 - 0e 0w",
            ),
            (
                "HTTP_PROXY=HTTP://Proxy.Corp.Example.:1/",
                "proxy.corp.example:1 - 0e 0w",
            ),
            (
                "HTTP_PROXY=http://[2001:db8::1]",
                "[2001:db8::1]:80 - 0e 0w",
            ),
            ("HTTP_PROXY=http://me:s%40cret@h:1", "me:s@cret@h:1 - 0e 0w"),
            (
                "HTTP_PROXY=http://me:p@ss/word@h:1",
                "me:p@ss/word@h:1 - 0e 0w",
            ),
            ("HTTP_PROXY=http://me@h:1", "me:@h:1 - 0e 0w"),
            ("HTTP_PROXY=https://h:1", "https://h:1 - 0e 0w"),
            ("HTTP_PROXY=https://h", "https://h:443 - 0e 0w"),
            (
                "ALL_PROXY=socks5://h",
                "socks5://h:1080 socks5://h:1080 0e 0w",
            ),
            ("HTTP_PROXY=SOCKS5H://h:1", "socks5h://h:1 - 0e 0w"),
            ("HTTP_PROXY=socks4://h:1", "- - 1e 0w"),
            ("HTTP_PROXY=http://h:1/path", "- - 1e 0w"),
            ("HTTP_PROXY=http://h:99999", "- - 1e 0w"),
            ("HTTP_PROXY=http://127.1:80", "- - 1e 0w"),
            ("HTTP_PROXY=http://me:%00@h:1", "- - 1e 0w"),
        ] {
            check(variables, expected);
        }
    }

    #[test]
    fn an_entry_that_points_back_at_us_is_left_out() {
        for (value, is_left_out) in [
            ("http://127.0.0.1:3128", true),
            ("localhost:3128", true),
            ("http://me:pw@localhost.:3128", true),
            ("http://127.0.0.1:3129", false),
            ("http://127.0.0.2:3128", false),
            ("http://[::1]:3199", true),
            ("http://127.0.0.1:3199", true),
            ("http://0.0.0.0:3199", true),
            ("http://0.0.0.0:3128", true),
            ("http://[::]:3128", false),
            ("http://192.0.2.1:3128", false),
        ] {
            let environment = [("HTTPS_PROXY", value)].into_iter().collect();
            let own = [
                "127.0.0.1:3128".parse().unwrap(),
                "[::]:3199".parse().unwrap(),
            ];
            let found = proxies(&environment, &own);
            assert_eq!(found.connect.is_none(), is_left_out, "{value}");
            assert_eq!(found.warnings.len(), usize::from(is_left_out), "{value}");
        }
    }

    #[test]
    fn no_message_holds_a_password() {
        for value in [
            "https://me:s3cret@h:1",
            "http://me:s3cret@h:99999",
            "http://me:s3cret@127.0.0.1:3128",
            "me:s3cret@a b",
        ] {
            let environment = [("HTTPS_PROXY", value)].into_iter().collect();
            let found = proxies(&environment, &["127.0.0.1:3128".parse().unwrap()]);
            assert!(
                !format!("{found:?}{environment:?}").contains("s3cret"),
                "{value}: {found:?}"
            );
        }
    }

    #[test]
    fn the_bypass_list_follows_the_same_precedence() {
        let of = |pairs: &[(&str, &str)]| {
            let environment: Environment = pairs.iter().copied().collect();
            let (list, warning) = no_proxy(&environment);
            (list.to_owned(), warning.is_some())
        };
        assert_eq!(
            of(&[("NO_PROXY", "a"), ("no_proxy", "b")]),
            ("a".to_owned(), true)
        );
        assert_eq!(
            of(&[("NO_PROXY", ""), ("no_proxy", "b")]),
            ("b".to_owned(), false)
        );
        assert_eq!(of(&[]), (String::new(), false));
    }
}
