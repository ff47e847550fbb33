//! What is known of a lookup beside its addresses.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use super::journal::Story;
use crate::policy::dns;
use crate::record::quote;

/// What is known of a lookup beside its addresses. All of it is missing where no name server was asked.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The name that was asked for, without its last dot: that of a search suffix, where one was needed.
    pub question: Option<String>,
    /// Whether that name is the asked one under a suffix of the search list.
    pub is_suffixed: bool,
    /// The server whose reply counts.
    pub server: Option<SocketAddr>,
    /// How that reply came.
    pub transport: Option<Transport>,
    /// Whether it was remembered, from an earlier lookup.
    pub is_cached: bool,
    /// For how many seconds the answer holds.
    pub ttl: Option<u32>,
    /// The response code.
    pub code: Option<ResponseCode>,
    /// What the server says of its reply.
    pub ede: Option<Extended>,
    /// The records in the answers, of both families.
    pub records: Option<u32>,
    /// Whom the lookup asked.
    pub asked: Vec<Asked>,
    /// How long a question had to wait for room.
    pub(super) waited: Duration,
    /// Late replies are counted there.
    pub(super) stories: Vec<Arc<Story>>,
}

/// How a reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By UDP.
    Udp,
    /// By TCP.
    Tcp,
    /// By TLS (RFC 7858).
    Tls,
    /// By HTTP/2 over TLS (RFC 8484).
    Https,
}

/// A server that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which.
    pub server: SocketAddr,
    /// How.
    pub transport: Transport,
    /// How often.
    pub times: u32,
}

/// An extended DNS error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extended {
    /// The INFO-CODE.
    pub code: u16,
    /// The EXTRA-TEXT, for people; a stranger wrote it.
    pub text: String,
}

impl Facts {
    /// How many different replies came for one question, until now: 2 where somebody else answers as well.
    pub fn replies(&self) -> Option<u32> {
        let replies = self.stories.iter().filter_map(|story| story.replies());
        replies.max()
    }

    /// The name of the response code (RFC 6895, section 2.3).
    pub fn response_code(&self) -> Option<&'static str> {
        self.code.map(name_of)
    }
}

impl Transport {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
        }
    }
}

impl Transport {
    /// Whether the server shows who it is.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Tls | Self::Https)
    }
}

impl From<&dns::Transport> for Transport {
    fn from(written: &dns::Transport) -> Self {
        match written {
            dns::Transport::Udp => Self::Udp,
            dns::Transport::Tcp => Self::Tcp,
            dns::Transport::Tls(_) => Self::Tls,
            dns::Transport::Https { .. } => Self::Https,
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.server, self.transport.as_str())?;
        if self.times > 1 {
            write!(f, ", {} times", self.times)?;
        }
        Ok(())
    }
}

/// The names of the registry, from 0.
const NAMES: [&str; 25] = [
    "Other",
    "Unsupported DNSKEY Algorithm",
    "Unsupported DS Digest Type",
    "Stale Answer",
    "Forged Answer",
    "DNSSEC Indeterminate",
    "DNSSEC Bogus",
    "Signature Expired",
    "Signature Not Yet Valid",
    "DNSKEY Missing",
    "RRSIGs Missing",
    "No Zone Key Bit Set",
    "NSEC Missing",
    "Cached Error",
    "Not Ready",
    "Blocked",
    "Censored",
    "Filtered",
    "Prohibited",
    "Stale NXDOMAIN Answer",
    "Not Authoritative",
    "Not Supported",
    "No Reachable Authority",
    "Network Error",
    "Invalid Data",
];

/// An EXTRA-TEXT is for people: this much tells them enough.
const LONGEST_TEXT: usize = 256;

impl Extended {
    /// Reads the option's data (RFC 8914, section 2).
    pub(super) fn read(option: &EdnsOption) -> Option<Self> {
        let EdnsOption::Unknown(_, data) = option else {
            return None;
        };
        let (code, text) = data.split_first_chunk::<2>()?;
        let text = String::from_utf8_lossy(text.get(..LONGEST_TEXT).unwrap_or(text));
        Some(Self {
            code: u16::from_be_bytes(*code),
            // Some servers end it as C does.
            text: text.trim_end_matches('\0').to_owned(),
        })
    }

    /// The option's number in an OPT record.
    pub(super) const OPTION: EdnsCode = EdnsCode::Unknown(15);

    /// Whether it says that signatures do not hold.
    pub fn is_of_dnssec(&self) -> bool {
        matches!(self.code, 6..=12)
    }

    /// Whether it says that somebody's policy made the reply.
    pub fn is_of_policy(&self) -> bool {
        matches!(self.code, 4 | 15..=18)
    }
}

impl fmt::Display for Extended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EDE {}", self.code)?;
        if let Some(name) = NAMES.get(usize::from(self.code)) {
            write!(f, " ({name})")?;
        }
        if !self.text.is_empty() {
            write!(f, ": {}", quote(&self.text))?;
        }
        Ok(())
    }
}

fn name_of(code: ResponseCode) -> &'static str {
    match u16::from(code) {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        16 => "BADVERS",
        23 => "BADCOOKIE",
        _ => code.to_str(),
    }
}
