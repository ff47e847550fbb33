//! Macros for what is written in a policy: mappings with their keys, choices of words, long and short forms.

use super::decode::nearest;
use super::diag::Findings;
use super::yaml::Key;

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
        pub(in crate::config) struct $name {
            $($(#[doc = $doc])+ pub(in crate::config) $field: Option<$crate::config::decode::At<$type>>,)+
            /// The keys that are written, well or not.
            pub(in crate::config) has: Vec<&'static str>,
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::yaml::Node,
                findings: &mut $crate::config::diag::Findings<'_>,
            ) -> Option<Self> {
                use $crate::config::written::{is_later, key, refuse_key};
                const KEYS: &[&str] = &[$(key(stringify!($field))),+];
                const LATER: &[&str] = &[$($later),*];
                let $crate::config::yaml::Value::Map(entries) = &node.value else {
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
                        this.has.push(refuse_key(name, $what, KEYS, is_reserved, findings));
                        continue;
                    };
                    this.has.push(*known);
                    if value.is_null() {
                        let message = format!("`{known}` has no value");
                        findings.error(name.place, message).with_help("leave it out, or say what it is");
                        continue;
                    }
                    $(if *known == key(stringify!($field)) {
                        this.$field = <$crate::config::decode::At<$type> as $crate::config::decode::Decode>::decode(value, findings);
                    })+
                }
                $($(
                    if !this.has.contains(&key(stringify!($field))) {
                        let message = format!("{} needs `{}`", $what, key(stringify!($field)));
                        findings.error($crate::config::decode::head(node), message).with_help($must);
                    }
                )?)+
                Some(this)
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                use $crate::config::written::{key, prose};
                let mut properties = serde_json::Map::new();
                let required: Vec<&str> = vec![$($($crate::config::written::needed($must, key(stringify!($field))),)?)+];
                $(
                    let mut value = generator.subschema_for::<$type>();
                    let doc = prose(&[$($doc),+]);
                    value.insert("description".to_owned(), doc.into());
                    properties.insert(key(stringify!($field)).to_owned(), value.into());
                )+
                ::schemars::json_schema!({
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

/// A choice of words. `but` names words that are none, and what to write instead.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        $name:ident $(but [$($wrong:literal => $right:literal),+])? { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(in crate::config) enum $name {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::yaml::Node,
                findings: &mut $crate::config::diag::Findings<'_>,
            ) -> Option<Self> {
                use $crate::config::decode::{clip, nearest, scalar};
                const WORDS: &[&str] = &[$($word),+];
                const WRONG: &[(&str, &str)] = &[$($(($wrong, $right)),+)?];
                let choice = || format!("one of {}", WORDS.join(", "));
                match scalar(node, &choice(), findings)? {
                    $($word => Some(Self::$variant),)+
                    other => {
                        let message = format!("`{}` is not {}", clip(other), choice());
                        let diagnostic = findings.error(node.place, message);
                        let wrong = WRONG.iter().find(|(wrong, _)| *wrong == other);
                        if let Some((_, right)) = wrong {
                            diagnostic.with_help(*right);
                        } else if let Some(near) = nearest(other, WORDS.iter().copied()) {
                            diagnostic.with_help(format!("did you mean `{near}`?"));
                        }
                        None
                    }
                }
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                ::schemars::json_schema!({"oneOf": [$({"const": $word, "description": $crate::config::written::prose(&[$($doc),+])}),+]})
            }
        }
    };
}

/// A long form that has a short one as well, of which the expression makes the long one.
macro_rules! short_or_long {
    (
        $(#[doc = $about:literal])+
        $name:ident is $long:ident or $short:tt, |$node:ident, $findings:ident| $read:expr
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default)]
        pub(in crate::config) struct $name(pub(in crate::config) $long);

        impl $crate::config::decode::Decode for $name {
            fn decode(
                $node: &$crate::config::yaml::Node,
                $findings: &mut $crate::config::diag::Findings<'_>,
            ) -> Option<Self> {
                if let $crate::config::yaml::Value::Map(_) = &$node.value {
                    return <$long as $crate::config::decode::Decode>::decode($node, $findings).map(Self);
                }
                $read.map(Self)
            }
        }

        $crate::config::written::either! { $name = $short or $long }
    };
}

/// The schema of what is written in one of two forms; the first is a type, or a schema in braces.
macro_rules! either {
    ($name:ident = {$($short:tt)*} or $long:ty) => {
        $crate::config::written::either! { $name, _ => ::schemars::json_schema!({$($short)*}), $long }
    };
    ($name:ident = $short:ident or $long:ty) => {
        $crate::config::written::either! { $name, g => g.subschema_for::<$short>(), $long }
    };
    ($name:ident, $generator:pat => $short:expr, $long:ty) => {
        impl ::schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                let $generator = &mut *generator;
                let short = $short;
                let long = generator.subschema_for::<$long>();
                ::schemars::json_schema!({"anyOf": [short, long]})
            }
        }
    };
}

pub(super) use {either, short_or_long, words, written};

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

/// Notes a key that is not accepted where it stands; gives the one that was likely meant, so that
/// nothing is said of that one lacking, or of an empty mapping.
pub(super) fn refuse_key(
    key: &Key,
    what: &str,
    keys: &[&'static str],
    is_reserved: bool,
    findings: &mut Findings<'_>,
) -> &'static str {
    let name = &key.text;
    if is_reserved {
        findings.error(key.place, format!("`{name}` is not in this version"));
        return "";
    }
    let message = format!("`{name}` is no key of {what}");
    let near = nearest(name, keys.iter().copied());
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("its keys are {}", keys.join(", ")),
    };
    findings.error(key.place, message).with_help(help);
    near.unwrap_or_default()
}

/// Keys of later versions that mean nothing else anywhere in this one.
pub(super) fn is_later(key: &str) -> bool {
    const LATER: &[&str] = &["auth_schemes", "inspect", "limit", "log", "time"];
    LATER.contains(&key)
}
