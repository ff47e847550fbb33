//! The `NO_PROXY` list: Go's reading of it, with the departures that only join spellings of one host.
//!
//! Source: `golang.org/x/net/http/httpproxy`. Departures: a trailing dot on one side only, `LOCALHOST` and
//! `localhost.`, `[v6]` without a port; legacy IPv4 spellings never get here, since [`crate::target`] refuses them.

pub mod clients;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Ports;
use crate::target::{Host, Target, canonical_ip};

/// A list of hosts that are reached without a proxy.
#[derive(Clone, Debug, Default)]
pub struct NoProxy {
    entries: Vec<Entry>,
    dialect: Dialect,
    lint: Vec<String>,
}

/// How entries with a leading dot are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `.d` is what lies below `d`.
    #[default]
    Go,
    /// `.d` is `d` and what lies below, as in curl.
    Curl,
}

#[derive(Clone, Debug)]
struct Entry {
    written: String,
    pattern: Pattern,
}

#[derive(Clone, Debug)]
enum Pattern {
    Everything,
    Net(IpNet),
    Ip(IpAddr, Option<u16>),
    Name {
        name: String,
        with_apex: bool,
        port: Option<u16>,
    },
}

/// Why a host is reached without a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass<'a> {
    /// An entry of the list says so.
    Entry {
        /// The entry as written.
        entry: &'a str,
        /// What kind of entry it is.
        reason: Reason,
    },
    /// Loopback hosts are, whatever the list says.
    Loopback,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `*`
    Everything,
    /// An address.
    Address,
    /// A range of addresses.
    Cidr,
    /// A name.
    Domain,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everything => "everything",
            Self::Address => "address",
            Self::Cidr => "cidr",
            Self::Domain => "domain",
        })
    }
}

impl NoProxy {
    /// Reads a comma-separated list. What is no entry never matches and leaves a line in [`Self::lint`].
    pub fn parse(list: &str, dialect: Dialect) -> Self {
        let mut this = Self {
            dialect,
            ..Self::default()
        };
        let entries = list.split(',').map(str::trim);
        let entries: Vec<_> = entries.filter(|entry| !entry.is_empty()).collect();
        for written in &entries {
            match parse_entry(written, dialect) {
                Ok(pattern) => this.entries.push(Entry {
                    written: (*written).to_owned(),
                    pattern,
                }),
                Err(problem) => this
                    .lint
                    .push(format!("{written:?} never matches: {problem}")),
            }
            if let Some(problem) = lint(written, &entries) {
                this.lint.push(format!("{written:?}: {problem}"));
            }
        }
        this
    }

    /// Whether and why a target is reached without a proxy; `None` is through it.
    ///
    /// Loopback is reported as a bypass, as in Go; whether it may be dialled is for the guards to say.
    pub fn judge(&self, target: &Target) -> Option<Bypass<'_>> {
        let is_loopback = match &target.host {
            Host::Name(name) => &**name == "localhost",
            Host::Ip(ip) => ip.is_loopback(),
        };
        if is_loopback {
            return Some(Bypass::Loopback);
        }
        self.entries.iter().find_map(|entry| {
            let reason = entry.pattern.reason_for(target)?;
            Some(Bypass::Entry {
                entry: &entry.written,
                reason,
            })
        })
    }

    /// How entries with a leading dot are read.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The entries, as written.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.written)
    }

    /// What in the list is read in other ways elsewhere, or never matches.
    pub fn lint(&self) -> &[String] {
        &self.lint
    }
}

impl Pattern {
    fn reason_for(&self, target: &Target) -> Option<Reason> {
        let port_fits = |port: &Option<u16>| port.is_none_or(|port| port == target.port);
        match (self, &target.host) {
            (Self::Everything, _) => Some(Reason::Everything),
            (Self::Net(net), Host::Ip(ip)) => net.contains(ip).then_some(Reason::Cidr),
            (Self::Ip(entry, port), Host::Ip(ip)) => {
                (entry == ip && port_fits(port)).then_some(Reason::Address)
            }
            (
                Self::Name {
                    name,
                    with_apex,
                    port,
                },
                Host::Name(host),
            ) => {
                let below = || {
                    host.strip_suffix(name.as_str())
                        .is_some_and(|rest| rest.ends_with('.'))
                };
                let fits = *with_apex && **host == **name || below();
                (fits && port_fits(port)).then_some(Reason::Domain)
            }
            _ => None,
        }
    }
}

fn parse_entry(written: &str, dialect: Dialect) -> Result<Pattern, &'static str> {
    let text = written.to_lowercase();
    if text == "*" {
        return Ok(Pattern::Everything);
    }
    if text.contains("://") {
        return Err("an entry is a host, not a URL");
    }
    if text.contains('/') {
        return parse_net(&text).ok_or("it is no address range");
    }
    if text.contains(char::is_whitespace) {
        return Err("blanks do not separate entries; commas do");
    }
    if text.contains('%') {
        return Err("an entry has no zone");
    }
    let (host, port) = split_port(&text)?;
    if let Some(inner) = host.strip_prefix('[') {
        let ip = inner.strip_suffix(']').unwrap_or_default().parse();
        let ip = ip.map_err(|_| "only an IPv6 address stands in brackets")?;
        return Ok(Pattern::Ip(canonical_ip(IpAddr::V6(ip)), port));
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Pattern::Ip(canonical_ip(ip), port));
    }
    let name = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
    let with_apex = name.is_none() || dialect == Dialect::Curl && host.starts_with('.');
    match Host::parse(name.unwrap_or(host)) {
        Ok(Host::Name(name)) if !name.contains('*') => Ok(Pattern::Name {
            name: name.to_string(),
            with_apex,
            port,
        }),
        Ok(Host::Name(_) | Host::Ip(_)) | Err(_) => Err("it is neither a name nor an address"),
    }
}

/// `a/n`: host bits are allowed, a v4-mapped range is the IPv4 range.
fn parse_net(text: &str) -> Option<Pattern> {
    let (address, bits) = text.split_once('/')?;
    let ip: IpAddr = address.parse().ok()?;
    let bits: u8 = bits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| bits.parse().ok())??;
    let net = match (canonical_ip(ip), ip) {
        (IpAddr::V4(v4), IpAddr::V6(_)) => IpNet::new(IpAddr::V4(v4), bits.checked_sub(96)?),
        (ip, _) => IpNet::new(ip, bits),
    };
    Some(Pattern::Net(net.ok()?.trunc()))
}

/// `h`, `h:p`, `v6`, `[v6]`, `[v6]:p`; an empty port is any.
fn split_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
        Some(_) | None => (text, ""),
    };
    if port.is_empty() {
        return Ok((host, None));
    }
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && Ports::from_iter([1..=u16::MAX]).contains(port) => {
            Ok((host, Some(port)))
        }
        _ => Err("its port is no number from 1 to 65535"),
    }
}

/// What is valid here and read otherwise by tools that people use.
fn lint(written: &str, entries: &[&str]) -> Option<&'static str> {
    if written.contains("://") {
        return None;
    }
    if written.contains('/') && written.contains(':') {
        return Some("httpx clients raise an error on an IPv6 range");
    }
    if written.contains('/') {
        return Some("wget, urllib, httpx and Node clients do not know ranges and go to the proxy");
    }
    let apex = written.strip_prefix('.')?;
    if entries.contains(&apex) {
        return None;
    }
    Some(
        "curl, Python and .NET clients take the name without the dot as well; write both to mean both",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a list exempts a target as a client writes it: `host` at port 443, or `host:port`.
    /// What is no target is refused with 400 before any list is asked, so it is not exempted.
    fn bypasses(list: &str, target: &str) -> bool {
        let has_port = target.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        let authority = if has_port {
            target.to_owned()
        } else {
            format!("{target}:443")
        };
        let Ok(target) = Target::from_authority(&authority) else {
            return false;
        };
        NoProxy::parse(list, Dialect::Go).judge(&target).is_some()
    }

    /// One row of the table of measured implementations: the list, the target, and our column.
    #[track_caller]
    fn check(list: &str, target: &str, expected: bool) {
        assert_eq!(bypasses(list, target), expected, "{list:?} ∋ {target:?}");
    }

    #[test]
    fn a_bare_name_is_itself_and_all_below() {
        check("x.com", "x.com", true);
        check("x.com", "a.x.com", true);
        check("x.com", "a.b.x.com", true);
        check("x.com", "notx.com", false);
        check("x.com", "x.com.evil.example", false);
        check("com", "x.com", true);
    }

    #[test]
    fn a_leading_dot_or_star_leaves_the_apex_out() {
        check(".x.com", "a.x.com", true);
        check(".x.com", "x.com", false);
        check(".x.com", "foox.com", false);
        check("*.x.com", "a.x.com", true);
        check("*.x.com", "a.b.x.com", true);
        check("*.x.com", "x.com", false);
        check("*x.com", "foox.com", false); // no inner wildcards
        check("a.*.com", "a.x.com", false);
        check("a?.com", "ab.com", false);
        let curl = NoProxy::parse(".x.com", Dialect::Curl);
        let target = Target::from_authority("x.com:443").unwrap();
        assert!(curl.judge(&target).is_some());
    }

    #[test]
    fn a_star_is_everything_wherever_it_stands() {
        check("*", "x.com", true);
        check("*", "192.0.2.1", true);
        check("*", "[2001:db8::1]", true);
        check("a.com,*", "x.com", true);
        check("*,a.com", "192.0.2.1", true);
        check("*:443", "x.com", false);
    }

    #[test]
    fn commas_separate_and_blanks_do_not() {
        check("a.com b.com", "a.com", false);
        check("a.com b.com", "b.com", false);
        check(" a.com , b.com ,, ", "b.com", true);
        check("", "a.com", false);
        check(",,", "a.com", false);
        assert_eq!(NoProxy::parse("a.com b.com", Dialect::Go).lint().len(), 1);
    }

    #[test]
    fn ports_compare_as_numbers_with_the_port_that_is_asked_for() {
        check("x.com:443", "x.com", true);
        check("x.com:443", "x.com:8080", false);
        check("x.com:8080", "x.com:8080", true);
        check("x.com:8080", "a.x.com:8080", true);
        check(".x.com:8080", "a.x.com:8080", true);
        check("x.com:0443", "x.com:443", true);
        check("x.com:", "x.com:8080", true);
        check("x.com:http", "x.com:80", false);
        check("x.com:0", "x.com:80", false);
        check("192.0.2.1:443", "192.0.2.1:443", true);
        check("192.0.2.1:443", "192.0.2.1:80", false);
    }

    #[test]
    fn addresses_and_ranges_match_literals_in_every_spelling() {
        check("192.0.2.0/24", "192.0.2.200", true);
        check("192.0.2.99/24", "192.0.2.200", true); // host bits
        check("192.0.2.0/24", "192.0.3.1", false);
        check("0.0.0.0/0", "192.0.2.1", true);
        check("0.0.0.0/0", "[2001:db8::1]", false);
        check("2001:db8::/32", "[2001:db8::1]", true);
        check("2001:db8::/32", "[2001:db9::1]", false);
        check("2001:db8::1", "[2001:DB8:0:0::1]", true);
        check("[2001:db8::1]", "[2001:db8::1]", true);
        check("[2001:db8::1]:443", "[2001:db8::1]:443", true);
        check("[2001:db8::1]:443", "[2001:db8::1]:80", false);
        check("192.0.2.1", "[::ffff:192.0.2.1]", true);
        check("::ffff:192.0.2.1", "192.0.2.1", true);
        check("::ffff:192.0.2.0/120", "192.0.2.9", true);
        check("192.0.2.0/24", "[::ffff:192.0.2.9]", true);
        check("192.0.2.0/24:443", "192.0.2.1", false);
        check("192.0.2.0/255.255.255.0", "192.0.2.1", false);
        check("[192.0.2.1]", "192.0.2.1", false);
        check("192.0.2.0/24", "x.com", false); // names are not looked up
    }

    #[test]
    fn a_zone_is_ignored_and_cannot_pose_as_a_name() {
        check("fe80::1", "[fe80::1%25eth0]", true);
        check("fe80::/10", "[fe80::1%25eth0]", true);
        check("x.com", "[fe80::1%25.x.com]", false);
        check("fe80::1%eth0", "[fe80::1%25eth0]", false);
    }

    #[test]
    fn a_suffix_is_nothing_to_an_address() {
        check("0.0.1", "10.0.0.1", false);
        check(".0.0.1", "10.0.0.1", false);
        check("1", "10.0.0.1", false);
        for host in ["127.1", "2130706433", "0x7f.1", "010.0.0.1"] {
            check("*", host, false); // refused before
            check(host, "127.0.0.1", true); // by loopback, not by the entry
            check(host, "10.0.0.1", false);
        }
    }

    #[test]
    fn case_trailing_dots_and_scripts_do_not_matter() {
        check("X.Com", "x.cOM", true);
        check("x.com.", "x.com", true);
        check("x.com", "x.com.", true);
        check(".x.com.", "a.x.com", true);
        check("bücher.example", "xn--bcher-kva.example", true);
        check("xn--bcher-kva.example", "BÜCHER.example", true);
    }

    #[test]
    fn loopback_needs_no_entry() {
        for host in [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ] {
            check("", host, true);
        }
        check("", "localhost.example", false);
        check("", "0.0.0.0", false);
    }

    #[test]
    fn the_entry_and_its_kind_are_told() {
        let list = NoProxy::parse("10.0.0.0/8, .Corp.example:443, 192.0.2.1", Dialect::Go);
        let of = |target: &str| match list.judge(&Target::from_authority(target).unwrap()) {
            None => "-".to_owned(),
            Some(Bypass::Loopback) => "loopback".to_owned(),
            Some(Bypass::Entry { entry, reason }) => format!("{entry} {reason}"),
        };
        assert_eq!(of("10.1.2.3:80"), "10.0.0.0/8 cidr");
        assert_eq!(of("git.corp.example:443"), ".Corp.example:443 domain");
        assert_eq!(of("192.0.2.1:1"), "192.0.2.1 address");
        assert_eq!(of("[::1]:1"), "loopback");
        assert_eq!(of("corp.example:443"), "-");
    }

    #[test]
    fn what_others_read_otherwise_is_told() {
        for (list, expected) in [
            ("x.com,.x.com", 0),
            (".x.com", 1),
            ("10.0.0.0/8", 1),
            ("2001:db8::/32", 1),
            ("https://x.com", 1),
            ("x.com/path", 2),
            ("10.0.0.0/8:443", 2),
            ("*x.com", 1),
            ("a.*.com", 1),
            ("a b", 1),
            ("fe80::1%eth0", 1),
            ("x.com:99999", 1),
            ("*,x.com,192.0.2.1,[::1]:80", 0),
        ] {
            let lint = NoProxy::parse(list, Dialect::Go).lint().to_vec();
            assert_eq!(lint.len(), expected, "{list}: {lint:?}");
        }
    }
}
