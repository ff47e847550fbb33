//! Rules, as they are written.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::chains::{Commit, Retry};
use super::defaults::{Sniff, Timeouts};
use super::dns::RuleDns;
use super::faults::Uses;
use super::matchers::Match;
use crate::config::decode::{At, Count, Day, Decode};
use crate::config::diag::Findings;
use crate::config::written::{short_or_long, words, written};
use crate::config::yaml::{Node, Value};

words! {
    /// Whether a rule acts.
    RuleMode {
        /// The rule acts.
        Enforce = "enforce",
        /// What the rule would do is noted, and the walk goes on.
        Report = "report",
        /// The rule is passed over.
        Off = "off",
    }
}

written! {
    /// A rule: what it speaks of, and exactly one of `direct`, `via`, `block`, `continue`; `fault` may add to the first two.
    Rule is "a rule", later ["at", "when"] {
        /// Its name, unique in the policy: it stands in records and answers.
        name "give it a unique name: it stands in records and answers": String,
        /// What it speaks of; everything where left out. All fields must hold.
        r#match: Match,
        /// Straight to the target.
        direct: True,
        /// Through an upstream, a group or a chain, by its name, or a chain such as `corp,backup|direct`: behind `,` the next hop
        /// is tried where the name does not exist, behind `|` after any failure but a refusal.
        via: String,
        /// Interference on that way; straight to the target where neither `direct` nor `via` stands.
        fault: Uses,
        /// Refused.
        block: Block,
        /// Sets the rule's options and goes on with the next rule.
        r#continue: True,
        /// `report` only notes what the rule would do; `off` passes it over.
        mode: RuleMode,
        /// The last day of the rule: from 00:00 UTC of the day after it is off.
        expires: Day,
        /// The waits of what the rule decides. What is not named is as in `defaults`.
        timeouts: Timeouts,
        /// What is tried before a tunnel is granted, over a connection of its own; a failure is the answer to CONNECT.
        preflight: Preflight,
        /// Who is asked for the target's name.
        dns: RuleDns,
        /// From when on a tunnel keeps its hop.
        commit: Commit,
        /// What may be sent again over the next hop of a chain.
        retry: Retry,
        /// Whether the first flight of a tunnel is read.
        sniff: Sniff,
        /// What a rule that blocks by `resolve` does where the lookup fails (block). Any other rule does not match then.
        on_dns_error: OnDnsError,
    }
}

words! {
    /// What a rule that blocks does where a lookup fails.
    OnDnsError {
        /// It blocks: a name that cannot be looked up does not slip past it.
        Block = "block",
        /// It does not match.
        Skip = "skip",
    }
}

words! {
    /// What is tried before a tunnel is granted.
    Preflight {
        /// A TLS handshake, within `timeouts.hello`.
        Tls = "tls",
    }
}

written! {
    /// What happens where no rule decides: exactly one of its keys.
    DefaultRule is "`default`", later [] {
        /// Straight to the target.
        direct: True,
        /// Through an upstream, a group or a chain, as in a rule.
        via: String,
        /// Interference on that way, as in a rule.
        fault: Uses,
        /// Refused.
        block: Block,
    }
}

/// A key that is only ever `true`.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct True;

impl Decode for True {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        only_true(node, "`true` is the only value of this key", findings)
    }
}

/// Reads `true`; anything else is a mistake of which `message` is told.
fn only_true(node: &Node, message: &str, findings: &mut Findings<'_>) -> Option<True> {
    let help = match &node.value {
        Value::Scalar {
            text,
            is_plain: true,
        } if text == "true" => return Some(True),
        Value::Scalar { text, .. } if ["false", "no", "off"].contains(&&*text.to_lowercase()) => {
            "leave the key out instead"
        }
        Value::Scalar {
            is_plain: false, ..
        } => "write `true`, without quotes",
        Value::Scalar { .. } | Value::List(_) | Value::Map(_) => "write `true`",
    };
    findings.error(node.place, message).with_help(help);
    None
}

impl JsonSchema for True {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "True".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"const": true})
    }
}

written! {
    /// A refusal.
    BlockText is "`block`", later [] {
        /// Why, for people: it stands in the answer.
        reason: String,
        /// The status: 400 to 599 but for 404, 407 and 410, which clients take for something else (403).
        status: Count,
        /// A word for records (`egress.code`). With `expected` reports tell the refusal apart, and `run --fail-on denied` lets it pass.
        code: String,
        /// How the client is told (http): by an answer, by a reset, or, where the tunnel was granted already, by an alert.
        close: Close,
    }
}

words! {
    /// How a client is told that it is refused.
    Close {
        /// By an answer; in a tunnel that was granted by an alert to TLS, and a reset to all else.
        Http = "http",
        /// By a reset.
        Rst = "rst",
        /// In a tunnel that was granted by a TLS alert, else by an answer.
        Alert = "alert",
    }
}

/// `rules`. The entries `include: FILE` are gone when it is decoded: what stands in the file stands in their place.
#[derive(Clone, Debug)]
pub(in crate::config) struct Rules(pub(in crate::config) Vec<At<Rule>>);

impl Decode for Rules {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        Vec::decode(node, findings).map(Self)
    }
}

impl JsonSchema for Rules {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Rules".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (rule, include) = (
            generator.subschema_for::<Rule>(),
            generator.subschema_for::<IncludedRules>(),
        );
        json_schema!({"type": "array", "items": {"anyOf": [rule, include]}})
    }
}

written! {
    /// The rules of another file in this place.
    IncludedRules is "an included file", later [] {
        /// A file that is a list of rules, from the folder of the file it is named in.
        include "write `include: FILE`": String,
    }
}

short_or_long! {
    /// `block`: `true`, or what the answer says.
    Block is BlockText or {"const": true}, |node, findings| {
        let message = "`true`, or what the answer says as in `{reason: …}`, belongs here";
        only_true(node, message, findings).map(|True| BlockText::default())
    }
}
