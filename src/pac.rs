//! PAC: a script that names the ways out of each request, and what it says.
//!
//! Source: Netscape, "Navigator Proxy Auto-Config File Format" (1996), as browsers have it today. Unlike browsers, what is not
//! understood is an error and never `DIRECT`.

#[cfg(feature = "pac")]
mod engine;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "pac")]
pub use engine::{Engine, THREAD_STACK};

use crate::target::Target;
use crate::timeouts::Brief;

/// The largest script, in bytes.
pub const LARGEST: usize = 1024 * 1024;

/// How long one answer may take, its lookups included.
pub const LIMIT: Duration = Duration::from_secs(5);

/// So many ways are taken of one answer.
const MOST_WAYS: usize = 16;

/// Where a script comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, which was read with the policy.
    File(Script),
    /// A web server, which is asked when the first request comes, and again from time to time.
    Url {
        /// Where it has it.
        location: Arc<Location>,
        /// For how long a script is used before it is asked for again.
        every: Duration,
    },
}

/// Where a web server has a script.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    /// The URL, for people: without its query, which may hold what is not for everybody.
    pub shown: Arc<str>,
    /// Whether the server is asked by TLS.
    pub is_https: bool,
    /// The server.
    pub server: Target,
    /// The path, and the query where there is one.
    pub path: Arc<str>,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.shown)
    }
}

/// A script, as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Script {
    /// Its file, or its URL for people.
    pub place: Arc<str>,
    /// Its text.
    pub text: Arc<str>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Script({})", self.place)
    }
}

/// Why a script names no way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacError {
    /// The web server does not give it.
    #[error("it cannot be fetched: {0}")]
    Fetch(String),
    /// It is no script, or throws.
    #[error("the script fails: {0}")]
    Script(String),
    /// It has no `FindProxyForURL`.
    #[error("the script has no function FindProxyForURL")]
    NoFunction,
    /// It takes too long.
    #[error("the script gave no answer in {}", Brief(*.0))]
    Slow(Duration),
    /// It takes too much memory.
    #[error("the script takes more memory than {} MiB", .0 / 1024 / 1024)]
    Memory(usize),
    /// What it says names no ways.
    #[error("the script answered {0}")]
    Answer(String),
    /// It is asked more than it can answer.
    #[error("too many requests wait for the script")]
    Busy,
    /// This build evaluates none.
    #[error("this build evaluates no PAC files")]
    NotBuilt,
}

/// A way that a script names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// `DIRECT`.
    Direct,
    /// `PROXY host:port` or `HTTP host:port`.
    Http(Target),
    /// `HTTPS host:port`: a proxy behind TLS.
    Https(Target),
    /// `SOCKS5 host:port`, and `SOCKS`, which names no version.
    Socks(Target),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Http(proxy) => write!(f, "http://{proxy}"),
            Self::Https(proxy) => write!(f, "https://{proxy}"),
            Self::Socks(proxy) => write!(f, "socks5h://{proxy}"),
        }
    }
}

/// Whether this build evaluates scripts.
pub fn is_built_in() -> bool {
    cfg!(feature = "pac")
}

/// Reads a script as far as that goes without a request: what it is made of, and whether it has its function.
///
/// # Errors
/// What keeps it from ever answering.
pub fn check(text: &str) -> Result<(), PacError> {
    #[cfg(feature = "pac")]
    return Engine::new(text, Box::new(|_| None)).map(drop);
    #[cfg(not(feature = "pac"))]
    {
        let _ = text;
        Err(PacError::NotBuilt)
    }
}

/// The ways of an answer such as `PROXY proxy.example:8080; DIRECT`, each once, in order: at least one.
///
/// # Errors
/// [`PacError::Answer`] where it names none, or one that is not understood.
pub fn ways(answer: &str) -> Result<Vec<Way>, PacError> {
    let mut ways = Vec::new();
    for part in answer.split(';') {
        let mut words = part.split_ascii_whitespace();
        let Some(word) = words.next() else { continue };
        let wrong = |why: &str| {
            let part: String = part.trim().chars().take(80).collect();
            PacError::Answer(format!("{part:?}, {why}"))
        };
        let (place, rest) = (words.next(), words.next());
        let proxy = |port: u16| {
            let place = place.ok_or_else(|| wrong("which names no proxy"))?;
            let (host, written) = match Target::from_authority(place) {
                Ok(target) => return Ok(target),
                Err(_) => (place, port),
            };
            Target::from_authority(&format!("{host}:{written}"))
                .map_err(|error| wrong(&format!("whose proxy cannot be read: {error}")))
        };
        let way = match word.to_ascii_uppercase().as_str() {
            "DIRECT" if place.is_none() => Way::Direct,
            "PROXY" | "HTTP" => Way::Http(proxy(80)?),
            "HTTPS" => Way::Https(proxy(443)?),
            "SOCKS" | "SOCKS5" => Way::Socks(proxy(1080)?),
            "SOCKS4" => return Err(wrong("which is not spoken here")),
            _ => return Err(wrong("which is not understood")),
        };
        if rest.is_some() {
            return Err(wrong("which is not understood"));
        }
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    if ways.is_empty() {
        return Err(PacError::Answer("nothing".to_owned()));
    }
    ways.truncate(MOST_WAYS);
    Ok(ways)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: &str) -> String {
        match ways(answer) {
            Ok(ways) => ways
                .iter()
                .map(Way::to_string)
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_answer_names_ways_in_order() {
        for (answer, expected) in [
            ("DIRECT", "direct"),
            (" direct ; ", "direct"),
            (
                "PROXY a.example:8080; DIRECT",
                "http://a.example:8080 direct",
            ),
            ("proxy A.example", "http://a.example:80"),
            (
                "HTTP 192.0.2.1:1;HTTPS b",
                "http://192.0.2.1:1 https://b:443",
            ),
            (
                "SOCKS5 [2001:db8::1]:1081; SOCKS s",
                "socks5h://[2001:db8::1]:1081 socks5h://s:1080",
            ),
            ("PROXY a:1; PROXY a:1; DIRECT", "http://a:1 direct"),
        ] {
            assert_eq!(told(answer), expected, "{answer}");
        }
    }

    #[test]
    fn what_is_not_understood_is_no_way_and_never_direct() {
        for (answer, expected) in [
            ("", "the script answered nothing"),
            (" ;; ", "the script answered nothing"),
            (
                "DIRECT; QUIC a:1",
                "the script answered \"QUIC a:1\", which is not understood",
            ),
            (
                "DIRECT now",
                "the script answered \"DIRECT now\", which is not understood",
            ),
            (
                "PROXY",
                "the script answered \"PROXY\", which names no proxy",
            ),
            (
                "PROXY a:1 b:2",
                "the script answered \"PROXY a:1 b:2\", which is not understood",
            ),
            (
                "SOCKS4 a:1; DIRECT",
                "the script answered \"SOCKS4 a:1\", which is not spoken here",
            ),
        ] {
            assert_eq!(told(answer), expected, "{answer}");
        }
        for answer in [
            "PROXY a:0",
            "PROXY a:99999",
            "PROXY http://a:1",
            "PROXY :1",
            "PROXY a b",
        ] {
            assert!(ways(answer).is_err(), "{answer}");
        }
        let many: Vec<_> = (1..100).map(|port| format!("PROXY a:{port}")).collect();
        let many = many.join(";");
        assert_eq!(ways(&many).unwrap().len(), MOST_WAYS);
    }
}
