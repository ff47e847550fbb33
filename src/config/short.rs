//! The short form of a fault, as on a command line: `api.lab.test: reset at client_hello first 1`.
//!
//! Its words are put in the places that a policy has for them, and checked there: both forms say the same, and what is wrong
//! with one is told in the words of the other.

use std::sync::Arc;

use super::decode::{At, Decode as _};
use super::diag::{Findings, Place, Report};
use super::faults;
use super::raw::faults as raw;
use super::yaml::{Key, Node, Value};
use crate::policy::fault::{Act, At as Point, Fault};
use crate::policy::matcher::{Hosts, Matcher};

/// How it is written.
const FORM: &str = "write HOST: DO at AT, and which connections, as in `api.lab.test: reset at client_hello first 1`";

/// A fault with the hosts that it strikes.
#[derive(Clone, Debug)]
pub struct Struck {
    /// The hosts.
    pub hosts: Hosts,
    /// The fault. Its name says what it does.
    pub fault: Fault,
}

/// Reads `HOST: DO at AT [first N|nth N|every N|p 0.3 seed 7]`.
///
/// `HOST` is what a rule's `match.host` may be. Behind `DO` stands what goes with it (`delay 2s jitter 1s`, `status 503`,
/// `alert handshake_failure`, `throttle 10KiB`, `answer 192.0.2.1`, `wrong_cert expired`), behind `AT` its measure (`bytes 64KiB`,
/// `idle 5s`), then `up`, `down` or `both`, and `client` or `server`, as `direction` and `side` in a policy. `after 5s for 10s`
/// is a `window`.
///
/// # Errors
/// Every mistake in it, with its place in `text`.
pub fn fault(text: &str) -> Result<Struck, Report> {
    let name: Arc<str> = "--fault".into();
    let mut findings = Findings::new(name, None, text);
    let struck = read(text, &mut findings);
    let has_errors = findings.has_errors();
    let diagnostics = findings.finish();
    match struck {
        Some(struck) if !has_errors => Ok(struck),
        Some(_) | None => Err(Report {
            diagnostics,
            files: Vec::new(),
        }),
    }
}

fn read(text: &str, findings: &mut Findings<'_>) -> Option<Struck> {
    // The colon of an IPv6 address has no blank behind it.
    let Some((host, rest)) = text.split_once(": ") else {
        findings
            .error(Place::START, "this names no host in front of the fault")
            .with_help(FORM);
        return None;
    };
    let host_place = place(text, host);
    let hosts = match Hosts::new(&[host.trim()], &[]) {
        Ok(hosts) => hosts,
        Err((_, error)) => {
            findings.error(host_place, error.to_string());
            return None;
        }
    };
    let words: Vec<&str> = rest.split_whitespace().collect();
    let Some(node) = Words {
        text,
        words: &words,
    }
    .fault(findings) else {
        findings
            .error(place(text, rest), "this is no fault")
            .with_help(FORM);
        return None;
    };
    let raw = At::<raw::Fault>::decode(&node, findings)?;
    let name = At {
        value: String::new(),
        place: place(text, rest),
    };
    let fault = faults::fault(&name, &raw, findings)?;
    if matches!(fault.act, Act::WrongCert(_)) && !Matcher::Host(hosts.clone()).is_of_lab() {
        let message =
            "`wrong_cert` strikes hosts of a lab alone: any other server shows its own certificate";
        let help = "name a host below lab.test";
        findings.error(host_place, message).with_help(help);
    }
    let until = words
        .iter()
        .position(|word| *word == "at")
        .unwrap_or_default();
    let measured = matches!(fault.at, Point::Bytes(_) | Point::Idle(_));
    let said = words.iter().take(until + 2 + usize::from(measured));
    let fault = Fault {
        name: said.copied().collect::<Vec<_>>().join(" ").into(),
        by: host.trim().into(),
        ..fault
    };
    Some(Struck { hosts, fault })
}

/// The words behind the host.
#[derive(Clone, Copy, Debug)]
struct Words<'t> {
    text: &'t str,
    words: &'t [&'t str],
}

impl<'t> Words<'t> {
    /// Them as a policy would have them; `None` where something lacks.
    fn fault(mut self, findings: &mut Findings<'_>) -> Option<Node> {
        let verb = self.next()?;
        let mut with = Vec::new();
        if let Some(main) = main_of(verb)
            && let Some(word) = self.words.first().copied()
            && !["at", "every", "jitter"].contains(&word)
        {
            with.push(self.entry(main, word));
            self.next();
        }
        while let Some(key) = self.next()
            && key != "at"
        {
            let value = self.next()?;
            with.push((self.key(key, key), self.scalar(value)));
        }
        let point = self.next()?;
        let at = match point {
            "bytes" | "idle" => {
                let measure = self.next()?;
                self.map(vec![(self.key(point, point), self.scalar(measure))])
            }
            _ => self.scalar(point),
        };
        let mut fault = vec![
            (self.key("at", point), at),
            (self.key("do", verb), self.scalar(verb)),
        ];
        let (mut when, mut window) = (Vec::new(), Vec::new());
        while let Some(word) = self.next() {
            match word {
                "up" | "down" | "both" => fault.push(self.entry("direction", word)),
                "client" | "server" => fault.push(self.entry("side", word)),
                "first" | "nth" | "every" | "seed" | "p" | "after" | "for" => {
                    let value = self.next()?;
                    match word {
                        "p" => when.push((self.key("probability", word), self.scalar(value))),
                        "after" => window.push((self.key("start", word), self.scalar(value))),
                        "for" => window.push((self.key("duration", word), self.scalar(value))),
                        _ => when.push((self.key(word, word), self.scalar(value))),
                    }
                }
                _ => {
                    let message = format!("`{word}` says nothing here");
                    let help = "which connections: first N, nth N, every N, p 0.3 seed 7, after 5s, for 10s; whose bytes: up, \
                                down, both; whose end: client, server";
                    findings
                        .error(place(self.text, word), message)
                        .with_help(help);
                }
            }
        }
        if !window.is_empty() {
            when.push((self.key("window", self.text), self.map(window)));
        }
        if !with.is_empty() {
            fault.push((self.key("with", verb), self.map(with)));
        }
        if !when.is_empty() {
            fault.push((self.key("when", self.text), self.map(when)));
        }
        Some(self.map(fault))
    }

    fn next(&mut self) -> Option<&'t str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn entry(&self, key: &str, word: &str) -> (Key, Node) {
        (self.key(key, word), self.scalar(word))
    }

    fn key(&self, key: &str, word: &str) -> Key {
        Key {
            text: key.to_owned(),
            place: place(self.text, word),
        }
    }

    fn scalar(&self, word: &str) -> Node {
        // Several addresses are written with commas.
        let items: Vec<_> = word.split(',').map(|item| self.item(item)).collect();
        match <[Node; 1]>::try_from(items) {
            Ok([item]) => item,
            Err(items) => Node {
                value: Value::List(items),
                place: place(self.text, word),
            },
        }
    }

    fn item(&self, word: &str) -> Node {
        Node {
            value: Value::Scalar {
                text: word.to_owned(),
                is_plain: true,
            },
            place: place(self.text, word),
        }
    }

    fn map(&self, entries: Vec<(Key, Node)>) -> Node {
        Node {
            value: Value::Map(entries),
            place: place(self.text, self.text),
        }
    }
}

/// What stands behind a verb without a word of its own.
fn main_of(verb: &str) -> Option<&'static str> {
    match verb {
        "answer" => Some("ip"),
        "status" => Some("status"),
        "alert" => Some("alert"),
        "delay" => Some("delay"),
        "throttle" => Some("rate"),
        "truncate" | "corrupt" => Some("bytes"),
        "wrong_cert" => Some("certificate"),
        _ => None,
    }
}

/// Where a piece of a text stands in it; the whole of it where it is none.
fn place(text: &str, piece: &str) -> Place {
    let offset = (piece.as_ptr() as usize).checked_sub(text.as_ptr() as usize);
    let before = offset.and_then(|offset| text.get(..offset));
    let column = 1 + before.unwrap_or_default().chars().count();
    Place {
        column,
        end_column: column + piece.chars().count().max(1),
        ..Place::START
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::fault::{Chance, Direction, Side, When, Window, WrongCert};
    use crate::target::Host;

    #[track_caller]
    fn check(text: &str, at: Point, act: &Act, when: &When) -> Fault {
        let struck = fault(text).unwrap_or_else(|report| panic!("{report}"));
        let fault = struck.fault;
        assert_eq!(
            (fault.at, &fault.act, &fault.when),
            (at, act, when),
            "{text}"
        );
        fault
    }

    #[test]
    fn a_line_says_what_a_policy_says() {
        let always = When::default();
        let first = |count| When {
            first: Some(count),
            ..When::default()
        };
        let fault = check(
            "api.lab.test: reset at client_hello first 1",
            Point::ClientHello,
            &Act::Reset,
            &first(1),
        );
        assert_eq!(&*fault.name, "reset at client_hello");
        assert_eq!(&*fault.by, "api.lab.test");
        let delay = Act::Delay {
            by: Duration::from_secs(2),
            jitter: Duration::from_secs(1),
        };
        check(
            "*.lab.test: delay 2s jitter 1s at connect",
            Point::Connect,
            &delay,
            &always,
        );
        let fault = check(
            "a.example: reset at bytes 64KiB up client every 3",
            Point::Bytes(65536),
            &Act::Reset,
            &When {
                every: Some(3),
                ..When::default()
            },
        );
        assert_eq!(fault.direction, Some(Direction::Up));
        assert_eq!(fault.side, Some(Side::Client));
        check(
            "a.example: close at idle 5s p 0.3 seed 7",
            Point::Idle(Duration::from_secs(5)),
            &Act::Close,
            &When {
                chance: Some(Chance {
                    per_million: 300_000,
                    seed: 7,
                }),
                ..When::default()
            },
        );
        check(
            "a.example: corrupt every 10 at server_hello after 1s for 2s",
            Point::ServerHello,
            &Act::Corrupt {
                from: 0,
                every: Some(10),
            },
            &When {
                window: Some(Window {
                    start: Duration::from_secs(1),
                    duration: Some(Duration::from_secs(2)),
                }),
                ..When::default()
            },
        );
        check(
            "a.example: answer 192.0.2.1,192.0.2.2 at dns",
            Point::Dns,
            &Act::Answer(vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()]),
            &always,
        );
        check(
            "api.lab.test: wrong_cert expired at server_hello",
            Point::ServerHello,
            &Act::WrongCert(WrongCert::Expired),
            &always,
        );
    }

    #[test]
    fn it_strikes_the_hosts_that_a_rule_would_match() {
        let holds = |text: &str, host: &str| {
            let hosts = fault(&format!("{text}: reset at connect")).unwrap().hosts;
            hosts.contain(&Host::parse(host).unwrap())
        };
        assert!(holds("api.lab.test", "API.lab.test"));
        assert!(holds("*.lab.test", "a.b.lab.test"));
        assert!(!holds("*.lab.test", "lab.test"));
        assert!(holds("[2001:db8::1]", "2001:db8::1"));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let said = |text: &str| fault(text).unwrap_err().to_string();
        for (text, column, message) in [
            (
                "api.lab.test reset",
                1,
                "this names no host in front of the fault",
            ),
            ("api.lab.test: reset", 15, "this is no fault"),
            (
                "api.lab.test: resett at client_hello",
                15,
                "`resett` is not one of",
            ),
            ("api.lab.test: reset at hello", 24, "`hello` is not one of"),
            (
                "api.lab.test: alert at client_hello",
                15,
                "`do: alert` needs `with.alert`",
            ),
            (
                "api.lab.test: refuse at response",
                15,
                "`do: refuse` makes no sense at response",
            ),
            (
                "api.lab.test: reset at connect sometimes",
                32,
                "`sometimes` says nothing here",
            ),
            (
                "api.lab.test: reset at connect first none",
                38,
                "`none` is not",
            ),
            ("https://x: reset at connect", 1, "a host pattern is a name"),
            (
                "a.example: wrong_cert expired at server_hello",
                1,
                "`wrong_cert` strikes hosts of a lab alone",
            ),
        ] {
            let said = said(text);
            let place = format!("--fault:1:{column}: error: ");
            assert!(
                said.contains(&place) && said.contains(message),
                "{text}\n{said}"
            );
        }
    }
}
