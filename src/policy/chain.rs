//! Chains: several hops, one after another, and what lets a request go on to the next.

use std::time::Duration;

use super::RouteId;
use crate::cause::Classes;

/// Hops that are tried in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The hops, in order; at least one, none twice.
    pub hops: Vec<Hop>,
    /// Whether it ends in `off`: where no hop served, that is a refusal.
    pub is_closed: bool,
    /// How many hops one request may try; all where `None`.
    pub attempts: Option<u32>,
    /// How long all of them may take together; as [`Retry::budget`] where `None`.
    pub budget: Option<Duration>,
    /// How long a hop's dial may be silent before the next hop's begins beside it, where any failure of it leads on.
    pub hedge: Option<Duration>,
    /// How hops that failed a host are remembered.
    pub memory: Option<HopMemory>,
    /// How a tunnel ends whose hops have all failed behind the 200.
    pub on_exhausted: OnExhausted,
    /// The statuses of an answer that let a plain request go on; nothing where empty.
    pub on_status: Vec<u16>,
}

/// An element of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The way out.
    pub route: RouteId,
    /// The failures behind which the next hop is tried.
    pub next_on: Classes,
}

/// How a chain remembers which hop failed which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopMemory {
    /// For how long; then the hop is tried once more.
    pub ttl: Duration,
    /// How many failures in that time make a hop be passed over: 1 to 100.
    pub fails: u32,
}

/// How a tunnel ends whose hops have all failed behind the 200.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExhausted {
    /// With a reset: what clients' own retries look for.
    #[default]
    Rst,
    /// With a TLS alert (`internal_error`), which clients print, and a FIN.
    Alert,
    /// With a FIN.
    Fin,
}

/// From when on a tunnel keeps its hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commit {
    /// From the 200 on.
    Connect,
    /// From the first byte of the server on: until then another hop may take over the ClientHello.
    #[default]
    FirstByte,
}

impl Commit {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
        }
    }
}

/// What may be sent again over the next hop of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The methods of plain requests that may.
    pub methods: Methods,
    /// The longest body that is kept to be sent again, in bytes.
    pub replay_body: usize,
    /// How many hops one request may try.
    pub attempts: u32,
    /// How long all of them may take together.
    pub budget: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            methods: Methods::Safe,
            replay_body: 64 * 1024,
            attempts: 3,
            budget: Duration::from_secs(9),
        }
    }
}

/// Methods of plain requests (RFC 9110, section 9.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    /// None.
    None,
    /// GET, HEAD, OPTIONS, TRACE.
    Safe,
    /// The same, PUT and DELETE.
    Idempotent,
}

impl Methods {
    /// Whether a method is among them.
    pub fn contains(self, method: &http::Method) -> bool {
        match self {
            Self::None => false,
            Self::Safe => method.is_safe(),
            Self::Idempotent => method.is_idempotent(),
        }
    }

    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Safe => "safe",
            Self::Idempotent => "idempotent",
        }
    }
}
