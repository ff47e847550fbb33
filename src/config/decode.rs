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

/// Notes a key that is not accepted where it stands; gives the one that was likely meant, so that
/// nothing is said of that one lacking.
pub(super) fn refuse_key(
    key: &super::yaml::Key,
    what: &str,
    keys: &[&'static str],
    is_reserved: bool,
    findings: &mut Findings<'_>,
) -> Option<&'static str> {
    let name = &key.text;
    if is_reserved {
        findings.error(key.place, format!("`{name}` is not in this version"));
        return None;
    }
    let message = format!("`{name}` is no key of {what}");
    let near = nearest(name, keys.iter().copied());
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("its keys are {}", keys.join(", ")),
    };
    findings.error(key.place, message).with_help(help);
    near
}

/// The candidate that was likely meant.
pub(super) fn nearest<'c>(
    name: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
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
    /// How long to wait.
    Wait(Duration) = "a duration such as 250ms, 5s, 1h or 1m30s",
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", "examples": ["250ms", "5s", "1m30s"]},
        duration;
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
    /// An address and a port to listen on.
    Socket(SocketAddr) = "an address and a port such as 127.0.0.1:3128 or [::1]:3128",
        {"type": "string", "examples": ["127.0.0.1:3128", "[::1]:3128"]},
        |text| text.parse().ok();
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

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
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

/// A struct of keys: its fields are all optional, whatever is needed and lacks is noted here.
///
/// `=` behind a field means that it must be there.
macro_rules! written {
    (
        $(#[doc = $about:literal])+
        $name:ident is $what:literal, later [$($later:literal),*] {
            $($(#[doc = $doc:literal])+ $field:ident $($must:literal)? : $type:ty,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default)]
        pub(super) struct $name {
            $($(#[doc = $doc])+ pub(super) $field: Option<At<$type>>,)+
            /// The keys that are written, well or not.
            pub(super) has: Vec<&'static str>,
        }

        impl Decode for $name {
            fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
                const KEYS: &[&str] = &[$(key(stringify!($field))),+];
                const LATER: &[&str] = &[$($later),*];
                let Value::Map(entries) = &node.value else {
                    let message = format!("{} is a mapping, not {}", $what, node.kind());
                    let help = format!("its keys are {}", KEYS.join(", "));
                    findings.error(node.place, message).with_help(help);
                    return None;
                };
                let mut this = Self::default();
                for (name, value) in entries {
                    let Some(known) = KEYS.iter().find(|known| **known == name.text) else {
                        let is_reserved =
                            LATER.contains(&name.text.as_str()) || is_later(&name.text);
                        this.has.extend(refuse_key(name, $what, KEYS, is_reserved, findings));
                        continue;
                    };
                    this.has.push(*known);
                    if value.is_null() {
                        let message = format!("`{known}` has no value");
                        findings.error(name.place, message).with_help("leave it out, or say what it is");
                        continue;
                    }
                    $(if *known == key(stringify!($field)) {
                        this.$field = At::decode(value, findings);
                    })+
                }
                $($(
                    if !this.has.contains(&key(stringify!($field))) {
                        let message = format!("{} needs `{}`", $what, key(stringify!($field)));
                        findings.error(head(node), message).with_help($must);
                    }
                )?)+
                Some(this)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let mut properties = serde_json::Map::new();
                let required: Vec<&str> = vec![$($(needed($must, key(stringify!($field))),)?)+];
                $(
                    let mut value = generator.subschema_for::<$type>();
                    let doc = prose(&[$($doc),+]);
                    value.insert("description".to_owned(), doc.into());
                    properties.insert(key(stringify!($field)).to_owned(), value.into());
                )+
                json_schema!({
                    "type": "object",
                    "description": prose(&[$($about),+]),
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                })
            }
        }
    };
}

/// A choice of words.
macro_rules! words {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum $name {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Decode for $name {
            fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
                const WORDS: &[&str] = &[$($word),+];
                let choice = || format!("one of {}", WORDS.join(", "));
                match scalar(node, &choice(), findings)? {
                    $($word => Some(Self::$variant),)+
                    other => {
                        let message = format!("`{}` is not {}", clip(other), choice());
                        let diagnostic = findings.error(node.place, message);
                        if let Some(near) = nearest(other, WORDS.iter().copied()) {
                            diagnostic.with_help(format!("did you mean `{near}`?"));
                        }
                        None
                    }
                }
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"oneOf": [$({"const": $word, "description": prose(&[$($doc),+])}),+]})
            }
        }
    };
}

pub(super) use {words, written};

/// A key that must be there; what to do where it lacks is for the decoding.
pub(super) fn needed(_help: &str, key: &'static str) -> &'static str {
    key
}

/// The lines of a doc comment as one text.
pub(super) fn prose(lines: &[&str]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// The key of a field: its name without the mark of a raw identifier.
pub(super) const fn key(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
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
