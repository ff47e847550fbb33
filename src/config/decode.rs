//! From the tree to plain structs, noting every mistake on the way instead of stopping at the first.
//!
//! [`written!`] makes a struct of keys with its decoding and its JSON Schema from one list, so that
//! what is accepted and what the schema says cannot drift apart.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, RangeInclusive};
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::diag::{Findings, Place};
use super::server::ListenAt;
use super::yaml::{Node, Value};
use crate::target::canonical_ip;

/// A value with its place. Compares and reads as the value.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What can be read from a node.
pub(super) trait Decode: Sized {
    /// Reads it; `None` where a mistake was noted that leaves nothing.
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self>;
}

impl<T: Decode> Decode for At<T> {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        Some(Self {
            value: T::decode(node, findings)?,
            place: node.place,
        })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        match &node.value {
            Value::List(items) => Some(
                items
                    .iter()
                    .filter_map(|item| T::decode(item, findings))
                    .collect(),
            ),
            Value::Scalar { .. } | Value::Map(_) => {
                findings.error(
                    node.place,
                    format!("a list belongs here, not {}", node.kind()),
                );
                None
            }
        }
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<At<T>>);

impl<T> Deref for OneOrMany<T> {
    type Target = [At<T>];

    fn deref(&self) -> &[At<T>] {
        &self.0
    }
}

impl<T: Decode> Decode for OneOrMany<T> {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        let items = match &node.value {
            Value::List(items) if items.is_empty() => {
                let message = "the list is empty; leave the key out or name something";
                findings.error(node.place, message);
                return None;
            }
            Value::List(_) => Vec::decode(node, findings)?,
            Value::Scalar { .. } | Value::Map(_) => vec![At::decode(node, findings)?],
        };
        // Half a list would match less than was meant, and hide that behind further messages.
        (!items.is_empty()).then_some(Self(items))
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})
    }
}

/// A mapping from names that the author chooses.
#[derive(Clone, Debug)]
pub(super) struct Named<T>(pub(super) Vec<(At<String>, T)>);

impl<T> Deref for Named<T> {
    type Target = [(At<String>, T)];

    fn deref(&self) -> &[(At<String>, T)] {
        &self.0
    }
}

impl<T: Decode> Decode for Named<T> {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            let message = format!("a mapping of names belongs here, not {}", node.kind());
            findings.error(node.place, message);
            return None;
        };
        let named = entries.iter().filter_map(|(key, value)| {
            let name = At {
                value: key.text.clone(),
                place: key.place,
            };
            Some((name, T::decode(value, findings)?))
        });
        Some(Self(named.collect()))
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Named{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({"type": "object", "additionalProperties": value})
    }
}

/// The text of a scalar, or a note that `what` belongs here.
pub(super) fn scalar<'n>(
    node: &'n Node,
    what: &str,
    findings: &mut Findings<'_>,
) -> Option<&'n str> {
    match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => Some(text),
        Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
            findings.error(
                node.place,
                format!("{what} belongs here, not {}", node.kind()),
            );
            None
        }
    }
}

/// The candidate that was likely meant.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name = name.to_lowercase().replace('-', "_");
    let scored = candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&name, &c.replace('-', "_")), c));
    let (distance, near) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= name.chars().count().max(3) / 3).then_some(near)
}

impl Decode for String {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        scalar(node, "a text", findings).map(str::to_owned)
    }
}

impl Decode for bool {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        match &node.value {
            Value::Scalar {
                text,
                is_plain: true,
            } if text == "true" => Some(true),
            Value::Scalar {
                text,
                is_plain: true,
            } if text == "false" => Some(false),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
                findings.error(node.place, "`true` or `false` belongs here");
                None
            }
        }
    }
}

/// Types that are read from one scalar by a function that says what is wrong.
macro_rules! scalars {
    ($($(#[$attr:meta])* $name:ident($inner:ty) = $what:literal, $schema:tt, $parse:expr;)+) => {$(
        $(#[$attr])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(super) struct $name(pub(super) $inner);

        impl Decode for $name {
            fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
                let text = scalar(node, $what, findings)?;
                let parse: fn(&str) -> Option<$inner> = $parse;
                if let Some(value) = parse(text) {
                    return Some(Self(value));
                }
                findings.error(node.place, format!("`{}` is not {}", clip(text), $what));
                None
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool { true }
            fn schema_name() -> Cow<'static, str> { stringify!($name).into() }
            fn json_schema(_: &mut SchemaGenerator) -> Schema { json_schema!($schema) }
        }
    )+};
}

scalars! {
    /// A whole number.
    Count(u64) = "a whole number", {"type": "integer", "minimum": 0},
        |text| digits(text)?.parse().ok();
    /// A number of bytes.
    Size(u64) = "a size such as 512, 64KiB or 1MiB",
        {"type": ["string", "integer"], "pattern": "^[0-9]+(KiB|MiB)?$", "examples": ["64KiB", "1MiB"]},
        size;
    /// How long to wait.
    Wait(Duration) = "a duration such as 250ms, 5s, 1h or 1m30s",
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", "examples": ["250ms", "5s", "1m30s"]},
        duration;
    /// For how long an answer is remembered.
    Ttl(Duration) = "a duration such as 0s, 30s or 1h, a week at most",
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", "examples": ["0s", "30s", "1h"]},
        |text| match text {
            "0s" => Some(Duration::ZERO),
            text => duration(text).filter(|ttl| *ttl <= Duration::from_hours(7 * 24)),
        };
    /// A port, or a range of them.
    PortRange(RangeInclusive<u16>) = "a port from 1 to 65535 or a range such as \"8000-8999\"",
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?$"}]},
        port_range;
    /// An address, or a range of them.
    Net(IpNet) = "an address or a range such as 10.0.0.0/8 or 2001:db8::/32",
        {"type": "string", "examples": ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]},
        net;
    /// An address.
    Address(IpAddr) = "an IP address",
        {"type": "string", "examples": ["192.0.2.1", "2001:db8::1"]},
        |text| Some(canonical_ip(text.parse().ok()?));
    /// Where to listen.
    ListenAddress(ListenAt) = "an address and a port such as 127.0.0.1:3128 or [::1]:3128",
        {"type": "string", "examples": ["127.0.0.1:3128", "[::1]:3128", "unix:/run/routecause.sock", "systemd"]},
        ListenAt::parse;
    /// Where a name server is asked.
    ServerAddress(SocketAddr) = "an address such as 192.0.2.53, 192.0.2.53:53 or [2001:db8::53]:53",
        {"type": "string", "examples": ["192.0.2.53", "192.0.2.53:53", "[2001:db8::53]:53"]},
        |text| match text.parse::<IpAddr>() {
            Ok(ip) => Some(SocketAddr::new(canonical_ip(ip), 53)),
            Err(_) => text.parse().ok().filter(|address: &SocketAddr| address.port() > 0),
        };
    /// A day.
    Day(jiff::civil::Date) = "a day such as 2027-01-31",
        {"type": "string", "format": "date"},
        |text| (text.len() == 10).then(|| text.parse().ok())?;
    /// A moment.
    Moment(jiff::Timestamp) = "a day such as 2027-01-31 or a moment such as 2027-01-31T12:00:00Z",
        {"type": "string", "examples": ["2027-01-31", "2027-01-31T12:00:00Z"]},
        |text| match text.parse::<jiff::Timestamp>() {
            Ok(moment) => Some(moment),
            Err(_) => midnight(text.parse().ok()?),
        };
}

/// The beginning of a day, UTC.
pub(super) fn midnight(day: jiff::civil::Date) -> Option<jiff::Timestamp> {
    let moment = day.at(0, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(moment.timestamp())
}

/// The text where it is digits and nothing else.
pub(super) fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

/// `512`, `64KiB`, `1MiB`.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match (text.strip_suffix("KiB"), text.strip_suffix("MiB")) {
        (Some(number), _) => (number, 1024),
        (None, Some(number)) => (number, 1024 * 1024),
        (None, None) => (text, 1),
    };
    digits(number)?.parse::<u64>().ok()?.checked_mul(unit)
}

/// `250ms`, `5s`, `1h`, `1m30s`: more than nothing, at most a year.
pub fn duration(text: &str) -> Option<Duration> {
    if text.contains(char::is_whitespace) || !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let duration = Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok()?;
    let year = Duration::from_hours(365 * 24);
    (!duration.is_zero() && duration <= year).then_some(duration)
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| digits(text.trim())?.parse::<u16>().ok();
    let (from, to) = (port(from)?, port(to)?);
    (from > 0 && from <= to).then_some(from..=to)
}

/// Host bits are allowed; a v4-mapped range is the IPv4 range.
pub(super) fn net(text: &str) -> Option<IpNet> {
    let Some((address, bits)) = text.split_once('/') else {
        return Some(IpNet::from(canonical_ip(text.parse().ok()?)));
    };
    let ip: IpAddr = address.parse().ok()?;
    let bits: u8 = digits(bits)?.parse().ok()?;
    let mapped = canonical_ip(ip);
    let bits = if mapped == ip {
        bits
    } else {
        bits.checked_sub(96)?
    };
    Some(IpNet::new(mapped, bits).ok()?.trunc())
}

/// Messages quote at most this much.
pub(super) fn clip(text: &str) -> String {
    let clipped: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    if clipped.len() < text.len() {
        clipped + "…"
    } else {
        clipped
    }
}

/// Where a mapping begins: its whole extent under carets helps nobody.
pub(super) fn head(node: &Node) -> Place {
    let place = match &node.value {
        Value::Map(entries) => entries.first().map_or(node.place, |(key, _)| key.place),
        Value::Scalar { .. } | Value::List(_) => node.place,
    };
    Place {
        end_line: place.line,
        end_column: if place.end_line == place.line {
            place.end_column
        } else {
            place.column + 1
        },
        ..place
    }
}
