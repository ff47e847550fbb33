//! What a policy says of an upstream: how it is reached, asked and told who we are.

use std::path::PathBuf;

use super::health::Health;
use crate::secret::Secret;
use crate::target::{Host, Target};

/// An upstream, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it listens.
    pub proxy: Target,
    /// What it speaks.
    pub protocol: Protocol,
    /// How plain requests go through it.
    pub forward: Forward,
    /// What it is told of a target.
    pub send: Send,
    /// What it may ask of us.
    pub auth: Option<Auth>,
    /// The header that tells it who the client is.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many connections to it may be open.
    pub connections: Option<usize>,
    /// When it counts as down.
    pub health: Health,
}

impl Upstream {
    /// An HTTP/1.1 proxy that is asked in the clear, by name, and without credentials.
    pub fn http(proxy: Target) -> Self {
        Self {
            proxy,
            protocol: Protocol::Http,
            forward: Forward::Absolute,
            send: Send::Host,
            auth: None,
            proxy_protocol: None,
            connections: None,
            health: Health::default(),
        }
    }

    /// The same behind TLS, by the system's roots.
    pub fn https(proxy: Target) -> Self {
        Self {
            protocol: Protocol::Https(Box::default()),
            ..Self::http(proxy)
        }
    }

    /// The scheme of its URL. Of the two for SOCKS, `socks5h` is where the proxy resolves names.
    pub fn scheme(&self) -> &'static str {
        match (&self.protocol, self.send) {
            (Protocol::Http, _) => "http",
            (Protocol::Https(_), _) => "https",
            (Protocol::Socks5, Send::Ip) => "socks5",
            (Protocol::Socks5, Send::Host) => "socks5h",
        }
    }
}

/// What an upstream speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 in the clear.
    Http,
    /// HTTP behind TLS.
    Https(Box<Tls>),
    /// SOCKS version 5 (RFC 1928).
    Socks5,
}

/// How TLS is spoken with an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The certificates, as DER, that its chain may end at; the system's where `None`.
    pub roots: Option<Vec<Vec<u8>>>,
    /// Who we are.
    pub identity: Option<Identity>,
    /// The name that its certificate must stand for, where it is not the host of its URL.
    pub server_name: Option<Host>,
    /// The versions of HTTP that tunnels are asked for in.
    pub versions: Versions,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The chain as DER, our own certificate first.
    pub chain: Vec<Vec<u8>>,
    /// The private key as PEM.
    pub key: Secret,
}

/// Which versions of HTTP tunnels are asked for in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// What the upstream chooses (ALPN).
    #[default]
    Auto,
    /// HTTP/1.1 only.
    One,
    /// HTTP/2 only.
    Two,
}

/// How plain requests go through an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// In absolute form (RFC 9112, section 3.2.2).
    Absolute,
    /// Through a tunnel, as to the origin itself.
    Tunnel,
}

/// What an upstream is told of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// Its name: the upstream resolves it.
    Host,
    /// An address that was found and admitted here.
    Ip,
}

/// The version of the PROXY protocol's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// How an upstream is told who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The schemes that may be used, the preferred one first; not empty.
    pub schemes: Vec<Scheme>,
    /// User name and password; `None` where all schemes do without.
    pub login: Option<Login>,
    /// The name of the upstream's service for Kerberos; `HTTP/` and its host where `None`.
    pub spn: Option<String>,
    /// Whether the first of the schemes that needs no challenge is sent before it is asked for.
    pub preemptive: bool,
}

/// User name and password, each with where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user name.
    pub username: Credential,
    /// The password.
    pub password: Credential,
}

/// A secret and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What it was when the policy was loaded.
    pub value: Secret,
    /// Where it may have changed since.
    pub source: Source,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From where it cannot change: the environment.
    Fixed,
    /// A file.
    File(PathBuf),
    /// The first line that a program prints; its name, then its arguments.
    Command(Vec<String>),
}

/// An authentication scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Kerberos by way of SPNEGO (RFC 4559).
    Negotiate,
    /// NTLM.
    Ntlm,
    /// Digest (RFC 7616).
    Digest,
    /// Basic (RFC 7617).
    Basic,
}

impl Scheme {
    /// Its name, as upstreams write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Negotiate => "Negotiate",
            Self::Ntlm => "NTLM",
            Self::Digest => "Digest",
            Self::Basic => "Basic",
        }
    }

    /// Whether this build speaks it.
    pub fn is_built_in(self) -> bool {
        match self {
            Self::Negotiate => cfg!(feature = "kerberos"),
            Self::Ntlm => cfg!(feature = "ntlm"),
            Self::Digest | Self::Basic => true,
        }
    }

    /// The schemes that this build speaks, the safest first.
    pub fn built_in() -> Vec<Self> {
        let all = [Self::Negotiate, Self::Ntlm, Self::Digest, Self::Basic];
        all.into_iter()
            .filter(|scheme| scheme.is_built_in())
            .collect()
    }

    /// Whether it is used with a user name and a password.
    pub fn needs_password(self) -> bool {
        self != Self::Negotiate
    }
}
