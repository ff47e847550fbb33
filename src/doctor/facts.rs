//! What the doctor saw. No judgement is in it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Everything that was seen of one target.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// Host and port.
    pub target: String,
    /// The host.
    pub host: String,
    /// Whether the host is a name, which is looked up.
    pub is_name: bool,
    /// What is spoken there.
    pub spoken: Spoken,
    /// The path that is asked for.
    pub path: String,
    /// Whether more is wanted of it than is asked for: another path, a query, or what stands below.
    pub wants_more: bool,
    /// The route that the policy chooses for it; nothing where it refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// What name servers said.
    pub dns: Vec<Answer>,
    /// Connections to each address, straight.
    pub tcp: Vec<Tcp>,
    /// The ways, `direct` first.
    pub ways: Vec<Way>,
    /// Handshakes with another content, straight.
    pub cells: Vec<Cell>,
    /// The way to the target hop by hop, where it was walked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<Hop>,
}

/// A hop of the way, and what a ClientHello meets that lives no longer than to there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Hop {
    /// The first is 1.
    pub number: u32,
    /// Who is there, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Whether it is the target.
    pub is_target: bool,
    /// Whether a ClientHello with the target's name that ends here is cut off.
    pub cuts_name: bool,
    /// Whether one with another name is.
    pub cuts_decoy: bool,
}

/// What is spoken at a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spoken {
    /// TLS, with HTTP in it.
    #[default]
    Tls,
    /// HTTP in the clear.
    Http,
    /// Something else: a connection is all that is asked for.
    Other,
}

impl Spoken {
    /// What is most likely spoken at a port.
    pub fn at(port: u16) -> Self {
        match port {
            443 => Self::Tls,
            80 => Self::Http,
            _ => Self::Other,
        }
    }
}

/// What one name server said.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answer {
    /// Which: `system`, a name of the policy, or an address.
    pub server: String,
    /// Whether it is asked by TLS or HTTPS, where nobody between can answer in its place.
    pub is_encrypted: bool,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A connection to one address.
#[derive(Clone, Debug, Serialize)]
pub struct Tcp {
    /// The address.
    pub address: SocketAddr,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Probe,
}

/// What came of something that was tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// With what: a name or an address.
    pub with: String,
    /// The cause of its failure; nothing where it went well.
    pub cause: Option<String>,
    /// The failure in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

impl Probe {
    /// Whether it went well.
    pub fn is_fine(&self) -> bool {
        self.cause.is_none()
    }

    /// Whether somebody at the far end has spoken: what a server says ill of itself, or of us, has come by the way all the same.
    pub fn is_answered(&self) -> bool {
        let words = ["tls.cert.", "tls.alert_from_server.", "http.malformed"];
        self.is_fine() || words.iter().any(|family| self.failed_of(family))
    }

    /// Whether it failed of a cause whose id begins so.
    pub fn failed_of(&self, family: &str) -> bool {
        let cause = self.cause.as_deref();
        cause.is_some_and(|cause| cause.starts_with(family))
    }
}

/// One way out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Way {
    /// `direct`, or the upstream's name.
    pub route: String,
    /// What is known to work elsewhere, by this way.
    pub controls: Vec<Probe>,
    /// Whether that passed by this very way lately: what refuses now was reached, and shows the way all the same.
    #[serde(skip)]
    pub is_proven: bool,
    /// The status of a page that answers 204 where nobody is between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub portal: Option<u16>,
    /// The target: name, connection, handshake, certificate, answer. Twice where it failed.
    pub target: Vec<Probe>,
    /// The certificate that it showed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// What it answered to HEAD by HTTP/1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http1: Option<Http>,
    /// The same by HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2: Option<Http>,
}

impl Way {
    /// Whether it leads straight out.
    pub fn is_direct(&self) -> bool {
        self.route == "direct"
    }

    /// Whether the target works by it, at least once.
    pub fn works(&self) -> bool {
        self.target.iter().any(Probe::is_fine)
    }

    /// Whether something else works by it; nothing where nothing else was tried.
    pub fn is_up(&self) -> Option<bool> {
        let tried = !self.controls.is_empty();
        let is_reached = |probe: &Probe| {
            probe.is_answered() || self.is_proven && probe.failed_of("connect.refused")
        };
        tried.then(|| self.controls.iter().any(is_reached))
    }

    /// What it answered to HEAD by HTTP/1.1, if it did.
    pub fn status(&self) -> Option<u16> {
        self.http1.as_ref()?.status
    }

    /// The first failure of the target.
    pub fn failure(&self) -> Option<&Probe> {
        self.target.iter().find(|probe| !probe.is_fine())
    }
}

/// A certificate that was shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Certificate {
    /// `valid`, or what is wrong with it.
    pub verdict: &'static str,
    /// Whether a client of this machine accepts it.
    pub is_trusted: bool,
    /// Whom it is for.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its SHA-256.
    pub sha256: String,
    /// Its last moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// The product that opens TLS, by the issuer's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interceptor: Option<&'static str>,
}

/// What was answered to a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Http {
    /// The status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Http {
    /// An answer.
    pub fn of(status: u16) -> Self {
        Self {
            status: Some(status),
            failure: None,
        }
    }

    /// None, for this reason.
    pub fn failed(failure: String) -> Self {
        Self {
            status: None,
            failure: Some(failure),
        }
    }
}

/// A handshake with another content than the target's own.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// What is in it.
    pub content: Content,
    /// What came of it. Any word of the server is success: it may well refuse a name that is not its own.
    #[serde(flatten)]
    pub outcome: Probe,
}

/// What a handshake of the matrix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Another name, at the target's address.
    DecoyName,
    /// No name, at the target's address.
    NoName,
    /// Bytes that are no TLS, at the target's address.
    Noise,
    /// The target's name, at a control's address.
    NameElsewhere,
    /// The control's own name, at its address, before and after the rest.
    Control,
    /// A small ClientHello.
    Small,
    /// TLS 1.2 alone.
    Only12,
    /// Small segments.
    SmallSegments,
}

impl Content {
    /// What it is, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DecoyName => "another name at its address",
            Self::NoName => "no name at its address",
            Self::Noise => "bytes that are no TLS",
            Self::NameElsewhere => "its name at another address",
            Self::Control => "the control",
            Self::Small => "a small ClientHello",
            Self::Only12 => "TLS 1.2 alone",
            Self::SmallSegments => "small segments",
        }
    }
}

impl Facts {
    /// The direct way.
    pub fn direct(&self) -> Option<&Way> {
        self.ways.iter().find(|way| way.is_direct())
    }

    /// What concerns the way that the policy chooses, where that one serves: of the others those that work, to hold against it
    /// where something is the matter with it.
    pub fn of_chosen(&self) -> Option<Self> {
        let chosen = self.chosen.as_deref()?;
        let way = self.ways.iter().find(|way| way.route == chosen)?;
        let is_served = |way: &Way| way.status().is_none_or(|status| status < 400);
        let is_through = way.status().is_none_or(|status| self.is_through(status));
        let is_elsewhere = || {
            let mut others = self.ways.iter().filter(|way| way.status().is_some());
            others.any(is_served)
        };
        let is_fine = is_served(way) || is_through && !is_elsewhere();
        let is_fine = is_fine && way.failure().is_none();
        if !self.reaches(way) {
            return None;
        }
        let mut alone = self.clone();
        let is_of_use = |other: &Way| other.route == chosen || !is_fine && other.works();
        alone.ways.retain(is_of_use);
        if !way.is_direct() {
            // Of these nothing is on its way.
            alone.dns.clear();
            alone.tcp.clear();
            alone.cells.clear();
        }
        Some(alone)
    }

    /// Whether an answer shows that what is wanted may well be served: who knows no HEAD has answered, and so has who serves other
    /// paths than `/` alone, or was not asked for all that is wanted.
    pub fn is_through(&self, status: u16) -> bool {
        let is_of_root = status == 404 && self.path == "/";
        status < 400 || matches!(status, 405 | 501) || is_of_root || self.wants_more && status < 500
    }

    /// Whether the target itself is known to serve by a way: in the clear a 5xx may be the upstream's own word, of a target that it
    /// never reached.
    pub fn reaches(&self, way: &Way) -> bool {
        let is_unsure = self.spoken == Spoken::Http && !way.is_direct();
        way.works() && !(is_unsure && way.status().is_some_and(|status| status >= 500))
    }

    /// What came of a content: fine where any try was; nothing where none was made.
    pub fn cell(&self, content: Content) -> Option<bool> {
        let mut tries = self
            .cells
            .iter()
            .filter(|cell| cell.content == content)
            .peekable();
        tries.peek()?;
        Some(tries.any(|cell| cell.outcome.is_fine()))
    }
}

/// Whether an address is of the inside.
pub(super) fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}
