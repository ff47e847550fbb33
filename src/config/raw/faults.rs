//! Faults as they are written.

use std::borrow::Cow;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::config::decode::{
    Address, At, Count, Decode, Named, OneOrMany, Size, Wait, clip, digits, scalar,
};
use crate::config::diag::Findings;
use crate::config::written::{either, short_or_long, words, written};
use crate::config::yaml::{Node, Value};

written! {
    /// Interference that is injected on purpose, for tests. It is at work only where a rule or a hop names it.
    Fault is "a fault", later [] {
        /// Where it strikes.
        at "say where it strikes, as in `at: client_hello`": Point,
        /// What happens there.
        r#do "say what happens there, as in `do: reset`": Verb,
        /// What goes with `do`.
        with: With,
        /// Which of the connections that come its way it strikes: those for which all of this holds. All where left out.
        when: When,
        /// Whose bytes are meant, of a point that both sides pass (down).
        direction: Direction,
        /// Of `reset` and `close`: whose end alone is meant (both).
        side: Side,
    }
}

/// `at`: a word, or a measure.
#[derive(Clone, Debug)]
pub(in crate::config) enum Point {
    /// As in `client_hello`.
    Named(PointName),
    /// As in `{bytes: 65536}`.
    Measured(Box<Measure>),
}

impl Decode for Point {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            let measure = Measure::decode(node, findings)?;
            return Some(Self::Measured(Box::new(measure)));
        }
        PointName::decode(node, findings).map(Self::Named)
    }
}

words! {
    /// Where a fault strikes.
    PointName {
        /// A request has arrived, and nothing was done for it yet.
        Accept = "accept",
        /// The lookup of the hop's name.
        Dns = "dns",
        /// The TCP connection of the hop.
        Connect = "connect",
        /// The upstream's answer to CONNECT, or to a plain request.
        UpstreamReply = "upstream_reply",
        /// The client's whole ClientHello.
        ClientHello = "client_hello",
        /// The server's ServerHello.
        ServerHello = "server_hello",
        /// The whole head of a request in plain HTTP.
        Request = "request",
        /// The whole head of the answer in plain HTTP.
        Response = "response",
    }
}

written! {
    /// A point that is measured: exactly one of the keys.
    Measure is "`at`", later [] {
        /// So many bytes have passed in `direction` (down).
        bytes: Size,
        /// Nothing has passed in either direction for so long.
        idle: Wait,
    }
}

words! {
    /// What happens where a fault strikes.
    Verb {
        /// A reset (RST) of both ends.
        Reset = "reset",
        /// An end in order (FIN) of both ends.
        Close = "close",
        /// Silence: nothing comes through any more.
        Hang = "hang",
        /// What comes is held for `with.delay`, and goes on then.
        Delay = "delay",
        /// The name does not exist.
        NxDomain = "nxdomain",
        /// The name server fails.
        ServFail = "servfail",
        /// The name has the addresses `with.ip`.
        Answer = "answer",
        /// The port is closed; of a name server: it refuses.
        Refuse = "refuse",
        /// An answer of HTTP: `with.status`, `reason`, `headers`, `body`.
        Status = "status",
        /// A fatal TLS alert in the server's place: `with.alert`.
        Alert = "alert",
        /// Something else than TLS in the server's place: `with.body`, or a page by `with.status`.
        NotTls = "not_tls",
        /// From here on `with.rate` bytes a second pass.
        Throttle = "throttle",
        /// `with.bytes` more bytes pass (1), then the direction ends.
        Truncate = "truncate",
        /// A byte is changed, `with.bytes` behind the point (0), and then every `with.every`.
        Corrupt = "corrupt",
        /// A host of the lab shows another certificate, `with.certificate`: for rules whose `host` is below `lab.test` only.
        WrongCert = "wrong_cert",
    }
}

written! {
    /// What goes with `do`.
    With is "`with`", later [] {
        /// Of `answer`: the addresses.
        ip: OneOrMany<Address>,
        /// Of `status`, and of `not_tls` for a page: the status.
        status: Count,
        /// The reason phrase; that of the status where left out.
        reason: String,
        /// The fields of the answer's head.
        headers: Named<String>,
        /// The body; of `not_tls` without a status: all that is said.
        body: String,
        /// Of `alert`: its name, as in `unrecognized_name`, or its number.
        alert: String,
        /// Of `delay`: for how long.
        delay: Wait,
        /// Of `delay`: at most so much more or less.
        jitter: Wait,
        /// Of `throttle`: bytes a second.
        rate: Size,
        /// Of `truncate` and `corrupt`: so many bytes behind the point.
        bytes: Size,
        /// Of `corrupt`: every so many bytes once more.
        every: Count,
        /// Of `wrong_cert`: what is wrong with it.
        certificate: Certificate,
    }
}

words! {
    /// What is wrong with a certificate.
    Certificate {
        /// It stands for itself.
        SelfSigned = "self_signed",
        /// It is past its time.
        Expired = "expired",
        /// It is another host's.
        WrongName = "wrong_name",
        /// An authority made it that nobody knows.
        UnknownIssuer = "unknown_issuer",
        /// The one between it and the authority is not sent.
        MissingIntermediate = "missing_intermediate",
    }
}

written! {
    /// Which connections a fault strikes. It counts those that come its way since the policy was loaded, from 1 on.
    When is "`when`", later [] {
        /// The first so many.
        first: Count,
        /// The one of this number.
        nth: Count,
        /// Each whose number can be divided by this.
        every: Count,
        /// Each with this probability, above 0 and at most 1.
        probability: Probability,
        /// What the draws of `probability` come of: the same seed and order of requests give the same run (0).
        seed: Count,
        /// Those of a time.
        window: Window,
    }
}

written! {
    /// A time, counted from when the policy was loaded.
    Window is "`window`", later [] {
        /// When it begins (at once).
        start: Wait,
        /// How long it is (without an end).
        duration: Wait,
    }
}

words! {
    /// A direction of bytes.
    Direction {
        /// From the client to the server.
        Up = "up",
        /// From the server to the client.
        Down = "down",
        /// Either.
        Both = "both",
    }
}

words! {
    /// An end of a connection.
    Side {
        /// The client's.
        Client = "client",
        /// The server's.
        Server = "server",
    }
}

/// A probability, as so many in a million.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Probability(pub(in crate::config) u32);

impl Decode for Probability {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        let what = "a probability such as 0.3, above 0 and at most 1";
        let text = scalar(node, what, findings)?;
        let per_million = millionths(text);
        if per_million.is_none() {
            findings.error(node.place, format!("`{}` is not {what}", clip(text)));
        }
        per_million.map(Self)
    }
}

/// `0.3` as so many in a million; finer than that is none.
pub(in crate::config) fn millionths(text: &str) -> Option<u32> {
    const ALL: u32 = 1_000_000;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let whole: u32 = digits(whole)?.parse().ok()?;
    let part = match part {
        "" if text.contains('.') => return None,
        "" => 0,
        part if part.len() <= 6 => format!("{:0<6}", digits(part)?).parse().ok()?,
        _ => return None,
    };
    let all = whole.checked_mul(ALL)?.checked_add(part)?;
    (1..=ALL).contains(&all).then_some(all)
}

impl JsonSchema for Probability {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Probability".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0.000_001, "maximum": 1, "examples": [0.3]})
    }
}

/// `fault`: a profile by its name, with the hop that it strikes, or several.
#[derive(Clone, Debug)]
pub(in crate::config) struct Uses(OneOrMany<Use>);

impl Deref for Uses {
    type Target = [At<Use>];

    fn deref(&self) -> &[At<Use>] {
        &self.0
    }
}

impl Decode for Uses {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        OneOrMany::decode(node, findings).map(Self)
    }
}

impl JsonSchema for Uses {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Uses".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        OneOrMany::<Use>::json_schema(generator)
    }
}

short_or_long! {
    /// A profile by its name, perhaps for one hop.
    Use is LongUse or {"type": "string"}, |node, findings| {
        let what = "a fault's name, or `{profile: NAME, hop: HOP}`,";
        scalar(node, what, findings).map(|_| LongUse {
            profile: At::decode(node, findings),
            ..LongUse::default()
        })
    }
}

written! {
    /// A fault, and the hop that it strikes.
    LongUse is "`fault`", later [] {
        /// The fault's name.
        profile "write `profile: NAME`": String,
        /// The hop that it strikes: `direct`, or an upstream; every hop that it can strike where left out.
        hop: String,
    }
}

either! { Point = PointName or Measure }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probability_is_above_nothing_and_at_most_one() {
        for (text, number) in [
            ("0.3", Some(300_000)),
            ("1", Some(1_000_000)),
            ("1.0", Some(1_000_000)),
            ("0.000001", Some(1)),
            ("0", None),
            ("0.0000001", None),
            ("1.1", None),
            ("-0.5", None),
            ("30%", None),
            (".5", None),
            ("1.", None),
        ] {
            assert_eq!(millionths(text), number, "{text}");
        }
    }
}
