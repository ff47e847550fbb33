//! What clients make of proxy variables and `NO_PROXY`: each reads them in its own way.
//!
//! One function for each client, from its source: Go 1.25 (`httpproxy`), curl 8, Wget 1.21 to 1.25, Python 3.11 to 3.14
//! (`urllib`), requests 2.34, httpx 0.28, aiohttp 3.14, Ruby's `uri` 1.1, undici 7 (`fetch` of Node 24), Java 17 to 25,
//! hyper-util 0.1 (reqwest). They are compared with the real ones in `tests/no_proxy.rs`.

mod curl;
mod go;
mod java;
mod node;
mod python;
mod ruby;
mod rust;
mod wget;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::target::Host;

/// A client whose reading is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Go's `net/http`, and all that is written in it.
    Go,
    /// curl and libcurl, so git, cargo, R and PHP.
    Curl,
    /// Wget.
    Wget,
    /// Python's `urllib`.
    Python,
    /// Python's requests, so pip.
    Requests,
    /// Python's httpx.
    Httpx,
    /// Python's aiohttp, with `trust_env`.
    Aiohttp,
    /// Ruby's `URI#find_proxy`, so `open-uri` and `RubyGems`.
    Ruby,
    /// Node's `fetch`.
    Node,
    /// Java's `ProxySelector`.
    Java,
    /// Rust's hyper-util, so reqwest.
    Rust,
}

impl Program {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 11] = [
        Self::Go,
        Self::Curl,
        Self::Wget,
        Self::Python,
        Self::Requests,
        Self::Httpx,
        Self::Aiohttp,
        Self::Ruby,
        Self::Node,
        Self::Java,
        Self::Rust,
    ];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Curl => "curl",
            Self::Wget => "wget",
            Self::Python => "python",
            Self::Requests => "requests",
            Self::Httpx => "httpx",
            Self::Aiohttp => "aiohttp",
            Self::Ruby => "ruby",
            Self::Node => "node",
            Self::Java => "java",
            Self::Rust => "rust",
        }
    }

    /// What it does with a URL where these variables are set.
    pub fn way(self, variables: Variables<'_>, url: &Url) -> Way {
        match self {
            Self::Go => go::way(variables, url),
            Self::Curl => curl::way(variables, url),
            Self::Wget => wget::way(variables, url),
            Self::Python => python::urllib(variables, url),
            Self::Requests => python::requests(variables, url),
            Self::Httpx => python::httpx(variables, url),
            Self::Aiohttp => python::aiohttp(variables, url),
            Self::Ruby => ruby::way(variables, url),
            Self::Node => node::way(variables, url),
            Self::Java => java::way(variables, url),
            Self::Rust => rust::way(variables, url),
        }
    }
}

/// The variables of an environment: `Some("")` is set to nothing.
pub type Variables<'v> = &'v dyn Fn(&str) -> Option<&'v str>;

/// A URL as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Whether it is `https`.
    pub is_tls: bool,
    /// The host as written, in lower case, an IPv6 address without brackets.
    pub host: String,
    /// The port, where it is written.
    pub port: Option<u16>,
}

/// What a client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It goes straight to the host.
    Direct(Why),
    /// It asks the proxy that this variable names.
    Proxy(&'static str),
    /// It raises an error.
    Fails(&'static str),
}

/// Why a client asks no proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// None of the variables that it reads names a proxy for this scheme.
    Unset,
    /// This entry exempts the host.
    Entry(String),
    /// The host is this machine.
    Loopback,
    /// It does not read the variables as things stand.
    Deaf(&'static str),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(Why::Unset) => f.write_str("no variable that it reads names a proxy"),
            Self::Direct(Why::Entry(entry)) => write!(f, "by {entry:?}"),
            Self::Direct(Why::Loopback) => f.write_str("loopback is always direct"),
            Self::Direct(Why::Deaf(why)) => f.write_str(why),
            Self::Proxy(variable) => write!(f, "by {variable}"),
            Self::Fails(why) => f.write_str(why),
        }
    }
}

impl Way {
    /// The word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Proxy(_) => "proxy",
            Self::Fails(_) => "error",
        }
    }
}

impl Url {
    /// Reads `http://host[:port]/…` or `https://…`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next()?;
        let authority = authority.rsplit('@').next()?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
            Some(_) | None => (authority, ""),
        };
        let port = match port {
            "" => None,
            port => Some(port.parse().ok().filter(|port| *port > 0)?),
        };
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match inner {
            Some(inner) => inner
                .parse::<Ipv6Addr>()
                .ok()
                .map(|_| inner.to_lowercase())?,
            None if host.is_empty() || host.contains(':') => return None,
            // Clients ask for the A-label.
            None if !host.is_ascii() => Host::parse(host).ok()?.to_string(),
            None => host.to_lowercase(),
        };
        Some(Self { is_tls, host, port })
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    fn is_v6(&self) -> bool {
        self.host.contains(':')
    }

    /// The host as it stands in a URL.
    fn bracketed(&self) -> String {
        if self.is_v6() {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        }
    }

    /// The host with the one spelling of an address.
    fn normal(&self) -> String {
        self.ip()
            .map_or_else(|| self.host.clone(), |ip| ip.to_string())
    }

    fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(if self.is_tls { 443 } else { 80 })
    }
}

/// The first variable of some that is set, to something or nothing.
fn set<'v>(variables: Variables<'v>, names: &[&'static str]) -> Option<(&'static str, &'v str)> {
    names
        .iter()
        .find_map(|name| Some((*name, variables(name)?)))
}

/// The first variable of some that is set to something.
fn filled<'v>(variables: Variables<'v>, names: &[&'static str]) -> Option<(&'static str, &'v str)> {
    let value = |name: &&'static str| variables(name).filter(|value| !value.is_empty());
    names.iter().find_map(|name| Some((*name, value(name)?)))
}

fn by(entry: &str) -> Way {
    Way::Direct(Why::Entry(entry.trim().to_owned()))
}

/// Whether `name` is `domain`, or below it.
fn is_at_or_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each client does with a list, where a proxy is set by every name: `d` direct, `p` proxy, `e` error, in the order
    /// of [`Program::ALL`].
    fn row(list: &str, url: &str) -> String {
        let java = format!("-Dhttp.proxyHost=p -Dhttps.proxyHost=p -Dhttp.nonProxyHosts={list}");
        let lookup = |name: &str| match name {
            "NO_PROXY" | "no_proxy" => Some(list),
            "NODE_USE_ENV_PROXY" => Some("1"),
            "JAVA_TOOL_OPTIONS" => Some(&*java),
            "HTTP_PROXY" | "http_proxy" | "HTTPS_PROXY" | "https_proxy" => Some("http://p:1"),
            _ => None,
        };
        let url = Url::parse(url).unwrap();
        let letter = |program: Program| match program.way(&lookup, &url) {
            Way::Direct(_) => 'd',
            Way::Proxy(_) => 'p',
            Way::Fails(_) => 'e',
        };
        Program::ALL.into_iter().map(letter).collect()
    }

    #[test]
    fn each_reads_a_list_in_its_own_way() {
        // go curl wget python requests httpx aiohttp ruby node java rust
        for (list, url, expected) in [
            ("x.com", "https://x.com/", "ddddddddddd"),
            ("x.com", "https://a.x.com/", "dddddddddpd"),
            ("x.com", "https://notx.com/", "ppppppppppp"),
            (".x.com", "https://a.x.com/", "dddddddddpd"),
            (".x.com", "https://x.com/", "pdpddpdpdpd"),
            ("*.x.com", "https://a.b.x.com/", "dpppppppddp"),
            ("*", "https://x.com/", "ddpddddpddd"),
            ("*", "https://10.0.0.1/", "ddpddddpddp"),
            ("a.com,*", "https://x.com/", "dppppdpp"),
            ("10.0.0.0/8", "https://10.1.2.3/", "ddppdppdppd"),
            ("2001:db8::/32", "https://[2001:db8::1]/", "ddpppeppppd"),
            ("[2001:db8::1]", "https://[2001:db8::1]/", "pppdpeppddp"),
            ("x.com:443", "https://x.com/", "dppppppddpp"),
            ("x.com:8080", "https://x.com:8080/", "dppdddpddpp"),
            ("0.0.1", "https://10.0.0.1/", "ppdddddddpp"),
            ("x.com.", "https://x.com/", "pdppppppppp"),
            ("", "https://localhost/", "dppppppdppp"),
        ] {
            let got = row(list, url);
            assert!(
                got.starts_with(expected),
                "{list} {url}: {got}, not {expected}"
            );
        }
    }

    #[test]
    fn the_variables_have_their_order() {
        let way = |program: Program, variables: &[(&str, &'static str)], url: &str| {
            let lookup = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| *value)
            };
            program.way(&lookup, &Url::parse(url).unwrap())
        };
        let (http, https) = ("http://x.com/", "https://x.com/");
        let upper = &[("HTTP_PROXY", "u"), ("HTTPS_PROXY", "u")][..];
        assert_eq!(way(Program::Curl, upper, http), Way::Direct(Why::Unset));
        assert_eq!(way(Program::Curl, upper, https), Way::Proxy("HTTPS_PROXY"));
        assert_eq!(way(Program::Wget, upper, https), Way::Direct(Why::Unset));
        let both = &[("HTTPS_PROXY", "u"), ("https_proxy", "l")][..];
        assert_eq!(way(Program::Go, both, https), Way::Proxy("HTTPS_PROXY"));
        assert_eq!(way(Program::Python, both, https), Way::Proxy("https_proxy"));
        let empty = &[("HTTPS_PROXY", "u"), ("https_proxy", "")][..];
        assert_eq!(way(Program::Go, empty, https), Way::Proxy("HTTPS_PROXY"));
        assert_eq!(way(Program::Ruby, empty, https), Way::Direct(Why::Unset));
        let all = &[("ALL_PROXY", "a")][..];
        for (program, is_read) in [
            (Program::Go, false),
            (Program::Curl, true),
            (Program::Requests, true),
            (Program::Aiohttp, false),
            (Program::Rust, true),
        ] {
            let is_proxy = matches!(way(program, all, https), Way::Proxy(_));
            assert_eq!(is_proxy, is_read, "{program:?}");
        }
        let cgi = &[("HTTP_PROXY", "u"), ("REQUEST_METHOD", "GET")][..];
        assert!(matches!(way(Program::Go, cgi, http), Way::Fails(_)));
        assert_eq!(way(Program::Python, cgi, http), Way::Direct(Why::Unset));
    }

    #[test]
    fn urls_are_read_as_written() {
        let url = Url::parse("https://u:p@[2001:DB8::1]:8443/x").unwrap();
        assert_eq!(
            (&*url.host, url.port, url.is_tls),
            ("2001:db8::1", Some(8443), true)
        );
        assert_eq!(Url::parse("http://X.com.").unwrap().host, "x.com.");
        for text in [
            "x.com",
            "ftp://x.com/",
            "http://",
            "http://x:0/",
            "http://[x]/",
            "http://a:b:c/",
        ] {
            assert!(Url::parse(text).is_none(), "{text}");
        }
    }
}
