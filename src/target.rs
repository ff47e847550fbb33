//! What was asked for: a host and a port in one canonical form, made before anything looks at it.
//!
//! Rules, `NO_PROXY`, guards, dial, pool and record all see this one form, so that no spelling of a
//! name or an address slips past a rule.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::Uri;

/// The longest request target that is looked at, in bytes; longer ones are answered with 414.
pub const MAX_TARGET: usize = 16 * 1024;

/// A canonical host: a lower-case A-label name without trailing dot, or an address.
///
/// A v4-mapped IPv6 address is the IPv4 address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name in its canonical form.
    Name(Arc<str>),
    /// An address literal.
    Ip(IpAddr),
}

/// A canonical host and port. Prints as an authority: `name:443`, `192.0.2.1:80`, `[2001:db8::1]:443`.
///
/// The zone of an IPv6 literal (`%eth0`) takes no part in matching or comparing; only the dial uses it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The host in canonical form.
    pub host: Host,
    /// The port, 1 to 65535.
    pub port: u16,
    /// The zone of a scoped IPv6 literal: an interface name or index.
    pub zone: Option<Arc<str>>,
}

/// Why a request target was refused with 400. None of these reaches a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// CONNECT names no port.
    #[error("CONNECT to {0:?} names no port; write host:port")]
    MissingPort(String),
    /// The port is no number from 1 to 65535, or is spelled with a sign or over five digits.
    #[error("port {0:?} is not a number from 1 to 65535")]
    BadPort(String),
    /// There is no host before the port.
    #[error("the host is empty")]
    EmptyHost,
    /// A user name stands before the host.
    #[error("a user name in the target is refused")]
    Userinfo,
    /// The host is an address in a spelling that only some resolvers read as one.
    #[error("host {0:?} is a legacy spelling of an IPv4 address; write four decimal numbers")]
    LegacyIpv4(String),
    /// The host is neither a valid name nor an address.
    #[error("host {0:?} is neither a valid name nor an address")]
    BadHost(String),
    /// CONNECT with something else than `host:port`.
    #[error("CONNECT takes host:port, and neither a URL nor a path")]
    NotAuthority,
    /// A request for this server itself, as an origin gets it.
    #[error(
        "this is a proxy: the request line must hold the whole URL, as in GET http://host/path"
    )]
    NotAbsolute,
    /// A scheme that is not forwarded.
    #[error("scheme {0:?} is not forwarded; http goes by absolute URL, all else by CONNECT")]
    Scheme(String),
    /// The Host header names another host than the URL.
    #[error("the Host header {header:?} does not agree with the target {target}")]
    HostMismatch {
        /// The header's value.
        header: String,
        /// The request's target.
        target: String,
    },
    /// No Host header in an HTTP/1.1 request, or more than one.
    #[error("an HTTP/1.1 request needs exactly one Host header, not {0}")]
    HostCount(usize),
}

impl Host {
    /// Parses a host as it stands in a URL or an authority: a name, an IPv4 address, or an IPv6
    /// address with or without brackets.
    ///
    /// U-labels become A-labels (UTS 46, non-transitional); case and one trailing dot are dropped.
    ///
    /// # Errors
    /// [`TargetError::LegacyIpv4`] for spellings such as `127.1`, `0x7f.1`, `2130706433`, `010.0.0.1`;
    /// [`TargetError::EmptyHost`]; [`TargetError::BadHost`] for anything else that is no host.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        Ok(split_zone(text)?.0)
    }

    /// The host as it prints, to be kept.
    pub fn text(&self) -> Arc<str> {
        match self {
            Self::Name(name) => name.clone(),
            Self::Ip(IpAddr::V4(ip)) => dotted(*ip).into(),
            Self::Ip(ip) => ip.to_string().into(),
        }
    }

    /// The name, if it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Ip(_) => None,
        }
    }

    /// The address, if it is a literal.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::Ip(ip) => Some(*ip),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl Target {
    /// Makes a target from parts that are canonical already.
    pub fn new(host: Host, port: u16) -> Self {
        Self {
            host,
            port,
            zone: None,
        }
    }

    /// Parses `host:port`, the authority form of CONNECT (RFC 9112, section 3.2.3).
    pub fn from_authority(text: &str) -> Result<Self, TargetError> {
        let (host, port) = split_authority(text)?;
        let port = port.ok_or_else(|| TargetError::MissingPort(clip(text)))?;
        Self::from_parts(host, port)
    }

    /// Parses the target of a CONNECT request as hyper hands it over.
    pub fn from_connect(uri: &Uri) -> Result<Self, TargetError> {
        match uri.authority() {
            Some(authority) if uri.scheme().is_none() && uri.path_and_query().is_none() => {
                Self::from_authority(authority.as_str())
            }
            Some(authority) if authority.as_str().contains('@') => Err(TargetError::Userinfo),
            _ => Err(TargetError::NotAuthority),
        }
    }

    /// Parses the target of an absolute-form request (RFC 9112, section 3.2.2); the port defaults to 80.
    pub fn from_absolute(uri: &Uri) -> Result<Self, TargetError> {
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(TargetError::NotAbsolute);
        };
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(TargetError::Scheme(clip(scheme)));
        }
        let (host, port) = split_authority(authority.as_str())?;
        Self::from_parts(host, port.unwrap_or("80"))
    }

    /// Whether a Host header's value names this target, `port` being the scheme's default.
    pub fn agrees_with(&self, header: &str, default_port: u16) -> bool {
        let Ok((host, port)) = split_authority(header) else {
            return false;
        };
        let port = match port {
            Some(port) => parse_port(port),
            None => Ok(default_port),
        };
        Host::parse(host).is_ok_and(|host| host == self.host)
            && port.is_ok_and(|port| port == self.port)
    }

    /// This target as it prints, without the port where that is `default_port`, as a URL or a Host field has it.
    pub fn authority(&self, default_port: u16) -> String {
        let mut text = self.to_string();
        if self.port == default_port {
            let port = text.rfind(':');
            text.truncate(port.unwrap_or(text.len()));
        }
        text
    }

    /// Whether `text` is this target as it prints, without the port where that is `default_port`. May say no where it is:
    /// what it saves is the printing.
    pub fn is_written(&self, text: &[u8], default_port: u16) -> bool {
        let Ok(text) = std::str::from_utf8(text) else {
            return false;
        };
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let is_port = match port {
            "" => self.port == default_port && !text.ends_with(':'),
            // A leading zero or a plus sign would be read as well.
            _ => {
                port.starts_with(|c| matches!(c, '1'..='9'))
                    && self.port != default_port
                    && port.parse() == Ok(self.port)
            }
        };
        is_port
            && match &self.host {
                Host::Name(name) => host == &**name,
                // No other spelling is parsed.
                Host::Ip(IpAddr::V4(ip)) => host.parse() == Ok(*ip),
                Host::Ip(IpAddr::V6(_)) => false,
            }
    }

    fn from_parts(host: &str, port: &str) -> Result<Self, TargetError> {
        let port = parse_port(port)?;
        let (host, zone) = split_zone(host)?;
        Ok(Self { host, port, zone })
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl Eq for Target {}

impl std::hash::Hash for Target {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // In few pieces: a keyed hash takes its time for each.
        match &self.host {
            Host::Name(name) => name.hash(state),
            Host::Ip(IpAddr::V4(ip)) => state.write_u32(ip.to_bits()),
            Host::Ip(IpAddr::V6(ip)) => state.write_u128(ip.to_bits()),
        }
        state.write_u16(self.port);
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// The address itself, or the IPv4 address that a v4-mapped one holds.
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
    }
}

/// Whether a connection to an address arrives at a listener of this machine on the same port. The unspecified address leads to
/// loopback (Linux), and a listener there hears what comes to any.
pub fn leads_to(ip: IpAddr, listener: IpAddr) -> bool {
    let ip = match canonical_ip(ip) {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    let listener = canonical_ip(listener);
    ip == listener || ip.is_loopback() && listener.is_unspecified()
}

/// An IPv4 address as it prints: each request for one needs that, and a formatter takes its time.
fn dotted(ip: Ipv4Addr) -> String {
    let digit = |value: u8| char::from(b'0' + value % 10);
    let mut text = String::with_capacity("255.255.255.255".len());
    for octet in ip.octets() {
        if !text.is_empty() {
            text.push('.');
        }
        if octet >= 100 {
            text.push(digit(octet / 100));
        }
        if octet >= 10 {
            text.push(digit(octet / 10));
        }
        text.push(digit(octet));
    }
    text
}

/// Splits `host:port`, `[v6]:port`, `host`, `[v6]`. A bare IPv6 address has no port.
fn split_authority(text: &str) -> Result<(&str, Option<&str>), TargetError> {
    if text.contains('@') {
        return Err(TargetError::Userinfo);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (_, behind) = rest
            .split_once(']')
            .ok_or_else(|| TargetError::BadHost(clip(text)))?;
        let host = &text[..text.len() - behind.len()];
        return match behind.strip_prefix(':') {
            Some("") => Ok((host, None)),
            Some(port) => Ok((host, Some(port))),
            None if behind.is_empty() => Ok((host, None)),
            None => Err(TargetError::BadHost(clip(text))),
        };
    }
    match text.rsplit_once(':') {
        Some((host, _)) if host.contains(':') && text.parse::<Ipv6Addr>().is_ok() => {
            Ok((text, None))
        }
        // A colon without a port is the default port (RFC 3986, section 3.2.3).
        Some((host, "")) if !host.contains(':') => Ok((host, None)),
        Some((host, port)) if !host.contains(':') => Ok((host, Some(port))),
        Some((host, _)) => Err(TargetError::BadHost(clip(host))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, TargetError> {
    // `u16::from_str` takes a leading plus sign, which other readers of the same line do not.
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(TargetError::BadPort(clip(text))),
    }
}

/// Canonicalises a host and keeps the zone of an IPv6 literal apart (RFC 6874: `%25` in a URL, `%` elsewhere).
fn split_zone(text: &str) -> Result<(Host, Option<Arc<str>>), TargetError> {
    let bad = || TargetError::BadHost(clip(text));
    let inner = match text.strip_prefix('[') {
        Some(rest) => Some(rest.strip_suffix(']').ok_or_else(bad)?),
        None if text.contains(':') => Some(text),
        None => None,
    };
    let Some(inner) = inner else {
        return Ok((parse_name(text)?, None));
    };
    let (address, zone) = match inner.split_once('%') {
        Some((address, zone)) => (address, Some(zone.strip_prefix("25").unwrap_or(zone))),
        None => (inner, None),
    };
    let ip: Ipv6Addr = address.parse().map_err(|_| bad())?;
    let zone = match zone {
        None => None,
        Some(zone) if is_zone(zone) => Some(Arc::from(zone)),
        Some(_) => return Err(bad()),
    };
    let ip = canonical_ip(IpAddr::V6(ip));
    if ip.is_ipv4() && zone.is_some() {
        return Err(bad());
    }
    Ok((Host::Ip(ip), zone))
}

/// Interface names are at most 15 bytes (IFNAMSIZ); dots are refused so that no zone looks like a name.
fn is_zone(zone: &str) -> bool {
    (1..=15).contains(&zone.len())
        && zone
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn parse_name(text: &str) -> Result<Host, TargetError> {
    let bad = || TargetError::BadHost(clip(text));
    // A name fails at its first letter.
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(IpAddr::V4(ip)));
    }
    if text.is_empty() || text == "." {
        return Err(TargetError::EmptyHost);
    }
    let plain = text
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'));
    // A search for a text prepares itself for longer ones than these.
    let has_a_label = || text.as_bytes().windows(4).any(|four| four == b"xn--");
    let ascii = if plain && !has_a_label() {
        None
    } else {
        // What IDNA maps to a dot or a digit (full-width forms) is judged below, as what it becomes.
        Some(
            idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::EMPTY)
                .map_err(|_| bad())?,
        )
    };
    let ascii = ascii.as_deref().unwrap_or(text);
    let name = ascii.strip_suffix('.').unwrap_or(ascii);
    if name.is_empty() {
        return Err(TargetError::EmptyHost);
    }
    if ends_in_number(name) {
        return match name.parse::<Ipv4Addr>() {
            Ok(ip) => Ok(Host::Ip(IpAddr::V4(ip))),
            Err(_) => Err(TargetError::LegacyIpv4(clip(text))),
        };
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    // 253 octets is the longest name that DNS can carry (RFC 1035, section 2.3.4).
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(bad());
    }
    Ok(Host::Name(Arc::from(name)))
}

/// Whether resolvers may take the name for an IPv4 address (WHATWG URL, "ends in a number").
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// Error texts quote at most this much of what a stranger sent.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
