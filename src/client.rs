//! Who asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::secret::Secret;
use crate::target::canonical_ip;

/// The client of one connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The address the connection came from.
    pub peer: SocketAddr,
    /// The address of ours that it reached.
    pub local: SocketAddr,
    /// The name of the listener that took it.
    pub listener: Arc<str>,
}

impl Client {
    /// This process, which asks in its own name; `what_for` stands in the place of a listener's name.
    pub fn ourselves(what_for: &str) -> Self {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            peer: here,
            local: here,
            listener: what_for.into(),
        }
    }

    /// The client's address, a v4-mapped one as IPv4.
    pub fn ip(&self) -> IpAddr {
        canonical_ip(self.peer.ip())
    }

    /// Whether the client is on this machine: a loopback client on a loopback listener.
    pub fn is_loopback(&self) -> bool {
        self.ip().is_loopback() && canonical_ip(self.local.ip()).is_loopback()
    }
}

/// Whom a request says it comes from, by the user name of its proxy credentials.
///
/// A claim: the label always, and the user unless it was proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The user.
    pub user: Option<Arc<str>>,
    /// The label, as one job of many has it.
    pub label: Option<Arc<str>>,
    /// Whether the user was proven: by a password, a certificate, or the kernel.
    pub is_proven: bool,
    /// Whether the request gave a name, whatever that claims: where labels come from decides what it means.
    pub is_given: bool,
}

/// What a request gives to say who it is.
#[derive(Debug)]
pub enum Given {
    /// Nothing.
    Nothing,
    /// Credentials of a scheme that is not spoken.
    Other,
    /// A user name and a password.
    Basic(Credentials),
}

/// A user name and a password.
#[derive(Debug)]
pub struct Credentials {
    /// The user name, with its label where there are such.
    pub name: String,
    /// The password.
    pub password: Secret,
}

/// Where a request's label comes from (`clients.labels`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Labels {
    /// Nowhere: there are none.
    #[default]
    None,
    /// What stands behind the last `+` of the user name; the whole name where there is none.
    UsernameSuffix,
}

/// The longest user name that is looked at, in bytes: what SOCKS5 can hold (RFC 1929, section 2).
const LONGEST_NAME: usize = 255;

impl Claim {
    /// A request that names nobody.
    pub const NONE: Self = Self {
        user: None,
        label: None,
        is_proven: false,
        is_given: false,
    };

    /// What a user name claims. An empty one, one with control characters, or one over 255 bytes claims nothing.
    pub fn of(name: &str, labels: Labels) -> Self {
        if name.len() > LONGEST_NAME || name.contains(char::is_control) {
            return Self {
                is_given: true,
                ..Self::NONE
            };
        }
        let (user, label) = match (labels, name.rsplit_once('+')) {
            (Labels::None, _) => (name, ""),
            (Labels::UsernameSuffix, Some((user, label))) => (user, label),
            (Labels::UsernameSuffix, None) => (name, name),
        };
        let written = |text: &str| (!text.is_empty()).then(|| text.into());
        Self {
            user: written(user),
            label: written(label),
            is_proven: false,
            is_given: true,
        }
    }
}

impl Given {
    /// Reads a field of credentials: those of Basic (RFC 7617), or that there are others.
    pub fn of_field(field: Option<&[u8]>) -> Self {
        match field {
            None => Self::Nothing,
            Some(field) => basic(field).map_or(Self::Other, Self::Basic),
        }
    }
}

fn basic(field: &[u8]) -> Option<Credentials> {
    let (scheme, rest) = field.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let pair = String::from_utf8(BASE64.decode(rest.trim_ascii()).ok()?).ok()?;
    let (name, password) = pair.split_once(':')?;
    Some(Credentials {
        name: name.to_owned(),
        password: Secret::new(password),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, labels: Labels, user: Option<&str>, label: Option<&str>) {
        let claim = Claim::of(name, labels);
        assert_eq!(
            (claim.user.as_deref(), claim.label.as_deref()),
            (user, label),
            "{name:?}"
        );
    }

    #[test]
    fn a_label_is_what_stands_behind_the_last_plus() {
        let suffix = Labels::UsernameSuffix;
        check("alice+job42", suffix, Some("alice"), Some("job42"));
        check("a+b+job42", suffix, Some("a+b"), Some("job42"));
        check("job42", suffix, Some("job42"), Some("job42"));
        check("+job42", suffix, None, Some("job42"));
        check("alice+", suffix, Some("alice"), None);
        check("alice+job42", Labels::None, Some("alice+job42"), None);
        check("", suffix, None, None);
    }

    #[test]
    fn a_name_that_could_forge_a_line_claims_nothing() {
        check("a\nb", Labels::None, None, None);
        check("a\u{1b}[2J", Labels::UsernameSuffix, None, None);
        check(&"x".repeat(256), Labels::None, None, None);
    }

    #[test]
    fn basic_credentials_are_read_and_others_are_told() {
        let read = |field: &str| match Given::of_field(Some(field.as_bytes())) {
            Given::Basic(Credentials { name, password }) => {
                Some((name, password.reveal().to_owned()))
            }
            Given::Nothing | Given::Other => None,
        };
        let pair = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(read("Basic YWxpY2U6czNjcmV0"), pair("alice", "s3cret"));
        assert_eq!(read("basic  am9iNDI6 "), pair("job42", ""));
        // A password may hold colons.
        assert_eq!(read("Basic YTpiOmM="), pair("a", "b:c"));
        for other in [
            "",
            "Basic",
            "Basic !",
            "Bearer YTpi",
            "Basic YWxpY2U=",
            "Basic /zo=",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        assert!(matches!(Given::of_field(None), Given::Nothing));
    }
}
