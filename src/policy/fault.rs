//! Faults: interference that a policy injects on purpose, as plain data.
//!
//! What one does, and to which connections, is said here; [`crate::route::fault`] does it. Which `do` fits which `at` is
//! [`Point::acts`].

mod like;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use super::RouteSpec;
use crate::cause::Alert;

pub use like::like;

/// A fault in one place of its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its name in the policy, as in records.
    pub name: Arc<str>,
    /// Who uses it, as in `rule healing`. Each use counts for itself, so no two are alike.
    pub by: Arc<str>,
    /// Where it strikes.
    pub at: At,
    /// What happens there.
    pub act: Act,
    /// The direction that is named; see [`Fault::counts`] and [`Fault::strikes`].
    pub direction: Option<Direction>,
    /// Whose end is reset or closed.
    pub side: Option<Side>,
    /// Which of the connections it strikes.
    pub when: When,
}

impl Fault {
    /// The direction whose bytes lead to the point.
    pub fn counts(&self) -> Direction {
        let own = self.at.point().direction();
        self.direction
            .filter(|_| self.at.point() == Point::Bytes)
            .unwrap_or(own)
    }

    /// The direction that it strikes.
    pub fn strikes(&self) -> Direction {
        let own = self.at.point().direction();
        let verb = self.act.verb();
        let is_both = verb == Verb::Hang || verb == Verb::Throttle && own == Direction::Up;
        let usual = if is_both { Direction::Both } else { own };
        self.direction.unwrap_or(usual)
    }

    /// Whether it can strike a hop of this kind: only who looks a name up gets an answer, only an upstream replies, and a
    /// lab's own host is reached straight.
    pub fn fits(&self, hop: &RouteSpec) -> bool {
        match hop {
            RouteSpec::Direct => self.at.point() != Point::UpstreamReply,
            RouteSpec::Upstream(_) => !matches!(self.act.verb(), Verb::Answer | Verb::WrongCert),
            RouteSpec::Chain(_) | RouteSpec::Group(_) | RouteSpec::Pac(_) => {
                self.at.point() == Point::Accept
            }
            RouteSpec::Faulty { .. } => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.act.verb().as_str(), self.at)
    }
}

/// Where a fault strikes, with its measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A request has arrived, and nothing was done for it.
    Accept,
    /// The lookup of the hop's name.
    Dns,
    /// The TCP connection of the hop.
    Connect,
    /// The upstream's answer to CONNECT, or to a plain request.
    UpstreamReply,
    /// A whole ClientHello of the client.
    ClientHello,
    /// The first byte of the server's ServerHello.
    ServerHello,
    /// A whole head of a plain request.
    Request,
    /// A whole head of the answer to it.
    Response,
    /// So many bytes have passed.
    Bytes(u64),
    /// Nothing has passed for so long.
    Idle(Duration),
}

impl At {
    /// The point without its measure.
    pub fn point(self) -> Point {
        match self {
            Self::Accept => Point::Accept,
            Self::Dns => Point::Dns,
            Self::Connect => Point::Connect,
            Self::UpstreamReply => Point::UpstreamReply,
            Self::ClientHello => Point::ClientHello,
            Self::ServerHello => Point::ServerHello,
            Self::Request => Point::Request,
            Self::Response => Point::Response,
            Self::Bytes(_) => Point::Bytes,
            Self::Idle(_) => Point::Idle,
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.point().as_str())?;
        match self {
            Self::Bytes(count) => write!(f, " {count}"),
            Self::Idle(wait) => write!(f, " {wait:?}"),
            Self::Accept
            | Self::Dns
            | Self::Connect
            | Self::UpstreamReply
            | Self::ClientHello
            | Self::ServerHello
            | Self::Request
            | Self::Response => Ok(()),
        }
    }
}

/// Where a fault may strike, in the order of a request's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `At`")]
pub enum Point {
    Accept,
    Dns,
    Connect,
    UpstreamReply,
    ClientHello,
    ServerHello,
    Request,
    Response,
    Bytes,
    Idle,
}

/// What may happen there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Act`")]
pub enum Verb {
    Reset,
    Close,
    Hang,
    Delay,
    NxDomain,
    ServFail,
    Answer,
    Refuse,
    Status,
    Alert,
    NotTls,
    Throttle,
    Truncate,
    Corrupt,
    WrongCert,
}

impl Point {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Accept,
        Self::Dns,
        Self::Connect,
        Self::UpstreamReply,
        Self::ClientHello,
        Self::ServerHello,
        Self::Request,
        Self::Response,
        Self::Bytes,
        Self::Idle,
    ];

    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::UpstreamReply => "upstream_reply",
            Self::ClientHello => "client_hello",
            Self::ServerHello => "server_hello",
            Self::Request => "request",
            Self::Response => "response",
            Self::Bytes => "bytes",
            Self::Idle => "idle",
        }
    }

    /// What makes sense there.
    pub fn acts(self) -> &'static [Verb] {
        use Verb::{
            Alert, Answer, Close, Corrupt, Delay, Hang, NotTls, NxDomain, Refuse, Reset, ServFail,
            Status, Throttle, Truncate, WrongCert,
        };
        match self {
            Self::Accept => &[Reset, Close, Hang, Delay, Status],
            Self::Dns => &[NxDomain, ServFail, Refuse, Answer, Hang, Delay],
            Self::Connect => &[Refuse, Reset, Hang, Delay, Status],
            Self::UpstreamReply => &[Reset, Close, Hang, Delay, Status],
            Self::ClientHello => &[
                Reset, Close, Hang, Delay, Alert, NotTls, Throttle, Corrupt, WrongCert,
            ],
            Self::ServerHello => &[
                Reset, Close, Hang, Delay, Alert, NotTls, Throttle, Truncate, Corrupt, WrongCert,
            ],
            Self::Request => &[Reset, Close, Hang, Delay, Status, Throttle, Corrupt],
            Self::Response => &[
                Reset, Close, Hang, Delay, Status, Throttle, Truncate, Corrupt,
            ],
            Self::Bytes => &[Reset, Close, Hang, Delay, Throttle, Truncate, Corrupt],
            Self::Idle => &[Reset, Close, Hang],
        }
    }

    /// Whether it lies on the connection, rather than on the way to it.
    pub fn is_on_wire(self) -> bool {
        match self {
            Self::Accept | Self::Dns | Self::Connect | Self::UpstreamReply => false,
            Self::ClientHello
            | Self::ServerHello
            | Self::Request
            | Self::Response
            | Self::Bytes
            | Self::Idle => true,
        }
    }

    /// The direction of the bytes that it is told by.
    pub fn direction(self) -> Direction {
        match self {
            Self::ClientHello | Self::Request => Direction::Up,
            Self::ServerHello | Self::Response | Self::Bytes => Direction::Down,
            Self::Accept | Self::Dns | Self::Connect | Self::UpstreamReply | Self::Idle => {
                Direction::Both
            }
        }
    }
}

impl Verb {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Close => "close",
            Self::Hang => "hang",
            Self::Delay => "delay",
            Self::NxDomain => "nxdomain",
            Self::ServFail => "servfail",
            Self::Answer => "answer",
            Self::Refuse => "refuse",
            Self::Status => "status",
            Self::Alert => "alert",
            Self::NotTls => "not_tls",
            Self::Throttle => "throttle",
            Self::Truncate => "truncate",
            Self::Corrupt => "corrupt",
            Self::WrongCert => "wrong_cert",
        }
    }
}

/// What happens where a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A reset.
    Reset,
    /// An end in order.
    Close,
    /// Silence: what is waited for does not come.
    Hang,
    /// It comes late.
    Delay {
        /// How late.
        by: Duration,
        /// At most so much earlier or later.
        jitter: Duration,
    },
    /// The name does not exist.
    NxDomain,
    /// The name server fails.
    ServFail,
    /// The name has these addresses.
    Answer(Vec<IpAddr>),
    /// The port is closed; of a name server, it refuses.
    Refuse,
    /// An answer of HTTP.
    Status(Page),
    /// A fatal TLS alert, and the end.
    Alert(Alert),
    /// Bytes that are no TLS, and the end.
    NotTls(Arc<[u8]>),
    /// So many bytes a second, at least one.
    Throttle(u64),
    /// So many bytes more, then the end of that direction.
    Truncate(u64),
    /// Bytes are changed: each bit of them is flipped.
    Corrupt {
        /// The first of them, counted from the point.
        from: u64,
        /// Every so many bytes another one; none where `None`.
        every: Option<u64>,
    },
    /// A host of the lab shows another certificate than its own.
    WrongCert(WrongCert),
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WrongCert {
    /// It stands for itself.
    SelfSigned,
    /// It is past its time.
    Expired,
    /// It is another host's.
    WrongName,
    /// An authority made it that nobody knows.
    UnknownIssuer,
    /// The one between it and the authority is not sent.
    MissingIntermediate,
}

impl WrongCert {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::SelfSigned,
        Self::Expired,
        Self::WrongName,
        Self::UnknownIssuer,
        Self::MissingIntermediate,
    ];
}

/// The hosts of a lab are the names below this one.
pub const LAB: &str = "lab.test";

/// Whether a host is one that a lab serves.
pub fn is_of_lab(name: &str) -> bool {
    let above = name.strip_suffix(LAB);
    above.is_some_and(|above| above.ends_with('.'))
}

impl Act {
    /// The verb without what goes with it.
    pub fn verb(&self) -> Verb {
        match self {
            Self::Reset => Verb::Reset,
            Self::Close => Verb::Close,
            Self::Hang => Verb::Hang,
            Self::Delay { .. } => Verb::Delay,
            Self::NxDomain => Verb::NxDomain,
            Self::ServFail => Verb::ServFail,
            Self::Answer(_) => Verb::Answer,
            Self::Refuse => Verb::Refuse,
            Self::Status(_) => Verb::Status,
            Self::Alert(_) => Verb::Alert,
            Self::NotTls(_) => Verb::NotTls,
            Self::Throttle(_) => Verb::Throttle,
            Self::Truncate(_) => Verb::Truncate,
            Self::Corrupt { .. } => Verb::Corrupt,
            Self::WrongCert(_) => Verb::WrongCert,
        }
    }
}

/// An answer of HTTP that is given word for word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The status.
    pub status: StatusCode,
    /// The reason phrase.
    pub reason: String,
    /// The fields beside those of the body's length and the connection's end.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: String,
}

impl Page {
    /// It as bytes of HTTP/1.1 that end the connection.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            format!("HTTP/1.1 {} {}\r\n", self.status.as_u16(), self.reason).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let end = format!(
            "content-length: {}\r\nconnection: close\r\n\r\n{}",
            self.body.len(),
            self.body
        );
        bytes.extend_from_slice(end.as_bytes());
        bytes
    }
}

/// A direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
    /// Either.
    Both,
}

impl Direction {
    /// Whether it holds bytes of the client.
    pub fn is_up(self) -> bool {
        self != Self::Down
    }

    /// Whether it holds bytes of the server.
    pub fn is_down(self) -> bool {
        self != Self::Up
    }
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// The server's.
    Server,
}

/// Which connections a fault strikes: those for which all of it holds. It counts the connections that come its way under
/// one policy, from 1 on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// The first so many.
    pub first: Option<u64>,
    /// The one of this number.
    pub nth: Option<u64>,
    /// Each whose number can be divided by this.
    pub every: Option<u64>,
    /// So many in a million, drawn one after another from a generator.
    pub chance: Option<Chance>,
    /// Those of a time, counted from when the policy was loaded.
    pub window: Option<Window>,
}

/// A probability, and what its draws come of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chance {
    /// How many in a million.
    pub per_million: u32,
    /// The seed: the same one draws the same.
    pub seed: u64,
}

/// A time, counted from when the policy was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it begins.
    pub start: Duration,
    /// How long it is; without an end where `None`.
    pub duration: Option<Duration>,
}

impl When {
    /// Whether the connection of this number, so long behind the load, is struck; `draw` is its number of a million.
    pub fn holds(&self, number: u64, draw: u32, since_load: Duration) -> bool {
        let is_open = |window: Window| {
            since_load
                .checked_sub(window.start)
                .is_some_and(|into| window.duration.is_none_or(|duration| into < duration))
        };
        self.first.is_none_or(|first| number <= first)
            && self.nth.is_none_or(|nth| number == nth)
            && self.every.is_none_or(|every| number.is_multiple_of(every))
            && self.chance.is_none_or(|chance| draw < chance.per_million)
            && self.window.is_none_or(is_open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of twelve connections that are struck.
    fn struck(when: &When) -> Vec<u64> {
        let holds = |number: &u64| when.holds(*number, 0, Duration::ZERO);
        (1..=12).filter(holds).collect()
    }

    #[test]
    fn all_of_when_holds() {
        let always = When::default();
        assert_eq!(struck(&always).len(), 12);
        let first = Some(4);
        assert_eq!(
            struck(&When {
                first,
                ..always.clone()
            }),
            [1, 2, 3, 4]
        );
        let nth = Some(3);
        assert_eq!(
            struck(&When {
                nth,
                ..always.clone()
            }),
            [3]
        );
        let every = Some(5);
        assert_eq!(
            struck(&When {
                every,
                ..always.clone()
            }),
            [5, 10]
        );
        let (first, every) = (Some(6), Some(2));
        assert_eq!(
            struck(&When {
                first,
                every,
                ..always
            }),
            [2, 4, 6]
        );
    }

    #[test]
    fn a_window_has_its_start_and_not_its_end() {
        let seconds = Duration::from_secs;
        let window = |duration: Option<u64>| When {
            window: Some(Window {
                start: seconds(5),
                duration: duration.map(seconds),
            }),
            ..When::default()
        };
        let holds = |when: &When, at: u64| when.holds(1, 0, seconds(at));
        let open = [4, 5, 7, 8].map(|at| holds(&window(Some(3)), at));
        assert_eq!(open, [false, true, true, false]);
        let open = [4, 5, 99999].map(|at| holds(&window(None), at));
        assert_eq!(open, [false, true, true]);
    }

    #[test]
    fn a_chance_is_held_against_the_draw() {
        let chance = Some(Chance {
            per_million: 300_000,
            seed: 7,
        });
        let when = When {
            chance,
            ..When::default()
        };
        let holds = |draw: u32| when.holds(1, draw, Duration::ZERO);
        assert!(holds(0) && holds(299_999) && !holds(300_000));
    }

    #[test]
    fn a_page_ends_the_connection() {
        let page = Page {
            status: StatusCode::FORBIDDEN,
            reason: "Blocked here".to_owned(),
            headers: vec![(
                HeaderName::from_static("x-filter"),
                HeaderValue::from_static("on"),
            )],
            body: "no".to_owned(),
        };
        assert_eq!(
            String::from_utf8(page.bytes()).unwrap(),
            "HTTP/1.1 403 Blocked here\r\nx-filter: on\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
        );
    }
}
