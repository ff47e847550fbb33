//! From what is written to a policy that decides. Every mistake is noted; a policy with mistakes is
//! compiled as far as it goes, so that those behind them are noted too.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, ToSpan as _};

use super::Secrets;
use super::decode::{At, Named, OneOrMany, clip, midnight};
use super::diag::{Findings, Place};
use super::env::Environment;
use super::matchers;
use super::raw;
use super::upstreams::{DIRECT, Routes};
use crate::policy::guard::{Exception, Guards, Loopback};
use crate::policy::index::Index;
use crate::policy::matcher::{Matcher, Set};
use crate::policy::{Action, Block, Circuit, Mode, Policy, Preflight, Rule, lint};
use crate::target::Host;
use crate::timeouts::Timeouts;

/// More rules than a person reads: each is asked in turn.
const MOST_RULES: usize = 10_000;

/// What a policy is compiled with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'c> {
    pub(super) environment: &'c Environment,
    /// The addresses that we listen on.
    pub(super) own: &'c [SocketAddr],
    /// The policy's folder, which paths in it start from.
    pub(super) folder: &'c Path,
    /// What becomes of secrets that cannot be had; `None` looks for none.
    pub(super) secrets: Option<Secrets>,
    pub(super) now: Timestamp,
    pub(super) hash: &'c Arc<str>,
}

/// Compiles a policy.
pub(super) fn policy(
    raw: &raw::Policy,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Policy {
    if let Some(version) = &raw.version
        && version.0 != 1
    {
        let message = format!(
            "version {} of the policy language is not in this version",
            version.0
        );
        findings
            .error(version.place, message)
            .with_help("write `version: 1`");
    }
    let report = raw
        .mode
        .as_ref()
        .is_some_and(|mode| mode.value == raw::PolicyMode::Report);
    let defaults = raw
        .defaults
        .as_ref()
        .and_then(|defaults| defaults.timeouts.as_ref());
    let timeouts = timeouts(&Timeouts::default(), defaults, findings);
    let circuit = raw
        .defaults
        .as_ref()
        .and_then(|defaults| circuit(defaults.circuit.as_ref()?, findings));
    let mut compiler = Compiler {
        routes: Routes::compile(raw.upstreams.as_ref(), context, findings),
        sets: matchers::sets(raw.sets.as_ref(), findings),
        timeouts: Arc::new(timeouts),
        names: HashMap::from([("default".to_owned(), None)]),
        context,
    };
    let mut rules = Vec::new();
    let mut places = Vec::new();
    if let Some(list) = &raw.no_proxy {
        compiler
            .names
            .insert("no_proxy".to_owned(), Some(list.place.line));
        rules.push(Rule {
            name: "no_proxy".into(),
            source: source(findings, list.place),
            matcher: Matcher::NoProxy(matchers::no_proxy(list, context, findings)),
            action: Action::Route(DIRECT),
            mode: Mode::Enforce,
            expires: None,
            timeouts: None,
            preflight: None,
        });
        places.push(list.place);
    }
    if let Some(list) = &raw.rules
        && list.len() > MOST_RULES
    {
        let message = format!("{} rules are too many: {MOST_RULES} may be", list.len());
        let help = "what is treated alike belongs into one set";
        findings
            .error(first_line(list.place), message)
            .with_help(help);
    }
    for raw in raw.rules.iter().flat_map(|rules| rules.iter()) {
        let (rule, place) = compiler.rule(raw, findings);
        rules.push(rule);
        places.push(place);
    }
    let default = compiler.default(raw.default.as_ref(), findings);
    let policy = Policy {
        hash: Arc::clone(context.hash),
        report,
        index: Index::for_many(&rules),
        guards: guards(raw.guards.as_ref(), report, context),
        rules,
        default,
        routes: compiler.routes.list,
        timeouts: compiler.timeouts,
        circuit,
        pins: pins(
            raw.dns.as_ref().and_then(|dns| dns.hosts.as_ref()),
            findings,
        ),
    };
    // What a mistake left of a rule is not worth a warning.
    let oddities = if findings.has_errors() {
        Vec::new()
    } else {
        lint::lint(&policy, context.now)
    };
    for finding in oddities {
        let place = places.get(finding.rule).copied().unwrap_or_default();
        let diagnostic = findings.warn(place, finding.message);
        diagnostic.help = finding.help;
    }
    policy
}

struct Compiler<'c> {
    routes: Routes,
    sets: Vec<Arc<Set>>,
    timeouts: Arc<Timeouts>,
    /// The names that are taken, and the lines of their rules.
    names: HashMap<String, Option<usize>>,
    context: &'c Context<'c>,
}

/// The actions that a rule may have, as written.
struct Actions<'r> {
    direct: Option<&'r At<raw::True>>,
    via: Option<&'r At<String>>,
    block: Option<&'r At<raw::Block>>,
    r#continue: Option<&'r At<raw::True>>,
    /// The keys that are written, well or not.
    has: &'r [&'static str],
}

impl Compiler<'_> {
    fn rule(&mut self, raw: &At<raw::Rule>, findings: &mut Findings<'_>) -> (Rule, Place) {
        let place = raw
            .name
            .as_ref()
            .map_or(first_line(raw.place), |name| name.place);
        if let Some(name) = &raw.name {
            self.take_name(name, findings);
        }
        let matcher = match &raw.r#match {
            Some(raw) => matchers::matcher(raw, &self.sets, self.context, findings),
            None => Matcher::everything(),
        };
        let actions = Actions {
            direct: raw.direct.as_ref(),
            via: raw.via.as_ref(),
            block: raw.block.as_ref(),
            r#continue: raw.r#continue.as_ref(),
            has: &raw.has,
        };
        let action = self.action(&actions, "a rule", place, findings);
        let sets_nothing = raw.timeouts.is_none() && raw.preflight.is_none();
        if let (Some(going_on), true) = (&raw.r#continue, sets_nothing) {
            let message = "a rule that goes on without `timeouts` or `preflight` does nothing";
            findings.warn(going_on.place, message);
        }
        if let (Some(preflight), Some(_)) = (&raw.preflight, &raw.block) {
            let message = "a rule that blocks grants no tunnel: its `preflight` has no effect";
            findings.warn(preflight.place, message);
        }
        if let (Some(timeouts), Some(_)) = (&raw.timeouts, &raw.block) {
            let message = "a rule that blocks waits for nothing: its `timeouts` have no effect";
            findings.warn(first_line(timeouts.place), message);
        }
        // The day that is named is the last: the rule ends when the next one begins.
        let expires = raw.expires.as_ref().and_then(|day| {
            let moment = midnight(day.0.checked_add(1.day()).ok()?);
            if moment.is_none() {
                findings.error(day.place, "this day is out of range");
            }
            moment
        });
        let timeouts = raw.timeouts.as_ref();
        let rule = Rule {
            name: raw.name.as_ref().map_or("", |name| name.as_str()).into(),
            source: source(findings, place),
            matcher,
            action,
            mode: match raw.mode.as_ref().map(|mode| mode.value) {
                None | Some(raw::RuleMode::Enforce) => Mode::Enforce,
                Some(raw::RuleMode::Report) => Mode::Report,
                Some(raw::RuleMode::Off) => Mode::Off,
            },
            expires,
            timeouts: timeouts.map(|raw| Arc::new(timeouts_of(&self.timeouts, raw, findings))),
            preflight: raw
                .preflight
                .as_ref()
                .map(|preflight| match preflight.value {
                    raw::Preflight::Tls => Preflight::Tls,
                }),
        };
        (rule, place)
    }

    fn default(&mut self, raw: Option<&At<raw::DefaultRule>>, findings: &mut Findings<'_>) -> Rule {
        let place = raw.map_or(Place::START, |raw| first_line(raw.place));
        let action = match raw {
            // That it lacks was noted where it was looked for.
            None => Action::Block(Block::default()),
            Some(raw) => {
                let actions = Actions {
                    direct: raw.direct.as_ref(),
                    via: raw.via.as_ref(),
                    block: raw.block.as_ref(),
                    r#continue: None,
                    has: &raw.has,
                };
                self.action(&actions, "`default`", place, findings)
            }
        };
        Rule {
            name: "default".into(),
            source: source(findings, place),
            matcher: Matcher::everything(),
            action,
            mode: Mode::Enforce,
            expires: None,
            timeouts: None,
            preflight: None,
        }
    }

    fn take_name(&mut self, name: &At<String>, findings: &mut Findings<'_>) {
        let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
            let message = "a rule's name is at most 64 letters, digits, - _ and .";
            findings.error(name.place, message);
        }
        if name.starts_with("guards.") || name.as_str() == "never_ports" {
            findings.error(
                name.place,
                format!("`{}` is the name of a guard", clip(name)),
            );
        }
        let taken = self.names.insert(name.value.clone(), Some(name.place.line));
        let Some(taken) = taken else { return };
        let message = format!("a second rule is named `{}`", clip(name));
        match taken {
            Some(line) => findings
                .error(name.place, message)
                .with_help(format!("the first is in line {line}")),
            None => findings.error(
                name.place,
                format!("`{}` is the name of the key at the end", name.value),
            ),
        };
    }

    fn action(
        &self,
        actions: &Actions<'_>,
        what: &str,
        place: Place,
        findings: &mut Findings<'_>,
    ) -> Action {
        let written = [
            ("direct", actions.direct.map(|at| at.place)),
            ("via", actions.via.map(|at| at.place)),
            ("block", actions.block.map(|at| at.place)),
            ("continue", actions.r#continue.map(|at| at.place)),
        ];
        let written: Vec<_> = written
            .iter()
            .filter_map(|(key, at)| Some((*key, (*at)?)))
            .collect();
        if let [_, (second, at), ..] = *written {
            let keys: Vec<_> = written.iter().map(|(key, _)| format!("`{key}`")).collect();
            let message = format!(
                "{what} does one thing, and this does {}",
                keys.join(" and ")
            );
            findings
                .error(first_line(at), message)
                .with_help(format!("take `{second}` out, or make it a rule of its own"));
        }
        if let Some(via) = actions.via {
            return Action::Route(self.routes.find(via, findings).unwrap_or(DIRECT));
        }
        if let Some(raw) = actions.block {
            return Action::Block(block(raw, findings));
        }
        if actions.r#continue.is_some() {
            return Action::Continue;
        }
        let is_action = |key: &&str| ["direct", "via", "block", "continue"].contains(key);
        if !actions.has.iter().any(is_action) {
            let message = format!("{what} says what happens: `direct: true`, `via` or `block`");
            findings.error(place, message);
        }
        Action::Route(DIRECT)
    }
}

fn block(raw: &At<raw::Block>, findings: &mut Findings<'_>) -> Block {
    let raw = &raw.0;
    let status = raw.status.as_ref().and_then(|status| {
        let number = u16::try_from(status.0).unwrap_or_default();
        if matches!(number, 400..=599) && !matches!(number, 404 | 407 | 410) {
            return Some(number);
        }
        let message = match number {
            404 | 410 => {
                format!("a client takes {number} for the origin's word that nothing is there")
            }
            407 => "a client takes 407 as the question for its password".to_owned(),
            _ => format!("{} is no status for a refusal", status.0),
        };
        let help = "400 to 599 but for 404, 407 and 410; leave it out for 403";
        findings.error(status.place, message).with_help(help);
        None
    });
    for text in [&raw.reason, &raw.code].into_iter().flatten() {
        if text.contains(char::is_control) || text.chars().count() > 300 {
            let message = "this stands in an answer's header: one line, at most 300 characters";
            findings.error(text.place, message);
        }
    }
    if let Some(code) = &raw.code
        && !code
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    {
        findings.error(
            code.place,
            "a code is one word of letters, digits, - _ and .",
        );
    }
    Block {
        reason: raw
            .reason
            .as_ref()
            .map(|reason| reason.value.as_str().into()),
        status,
        code: raw.code.as_ref().map(|code| code.value.as_str().into()),
    }
}

fn guards(raw: Option<&At<raw::Guards>>, report: bool, context: &Context<'_>) -> Guards {
    let mut guards = Guards {
        report,
        own: context.own.to_vec(),
        ..Guards::default()
    };
    let Some(raw) = raw else { return guards };
    let blocks = |key: &Option<At<raw::AllowOrBlock>>, default: bool| {
        key.as_ref()
            .map_or(default, |at| at.value == raw::AllowOrBlock::Block)
    };
    guards.block_link_local = blocks(&raw.link_local, guards.block_link_local);
    guards.block_private = blocks(&raw.private, guards.block_private);
    guards.loopback = match raw.loopback.as_ref().map(|at| at.value) {
        None => guards.loopback,
        Some(raw::LoopbackGuard::Auto) => Loopback::Auto,
        Some(raw::LoopbackGuard::Allow) => Loopback::Allow,
        Some(raw::LoopbackGuard::Block) => Loopback::Block,
    };
    guards.connect_ports = raw
        .connect_ports
        .as_ref()
        .and_then(|ports| Some(matchers::ports(ports.0.as_ref()?)));
    for except in raw.except.iter().flat_map(|list| list.iter()) {
        let ports = except.port.as_ref().map(|ports| matchers::ports(ports));
        let nets = except.ip.iter().flat_map(|nets| nets.iter());
        guards.except.extend(nets.map(|net| Exception {
            net: net.0,
            ports: ports.clone(),
        }));
    }
    guards
}

fn pins(
    raw: Option<&At<Named<OneOrMany<super::decode::Address>>>>,
    findings: &mut Findings<'_>,
) -> Vec<(Arc<str>, Vec<IpAddr>)> {
    let mut pins: Vec<(Arc<str>, Vec<IpAddr>)> = Vec::new();
    for (name, addresses) in raw.iter().flat_map(|raw| raw.iter()) {
        match Host::parse(name) {
            Ok(Host::Name(host)) => {
                if pins.iter().any(|(pinned, _)| *pinned == host) {
                    findings.error(name.place, format!("`{host}` has its addresses already"));
                }
                pins.push((host, addresses.iter().map(|address| address.0).collect()));
            }
            Ok(Host::Ip(_)) => {
                findings.error(name.place, "an address needs no other; a name belongs here");
            }
            Err(error) => {
                findings.error(name.place, error.to_string());
            }
        }
    }
    pins.sort();
    pins
}

fn timeouts(
    base: &Timeouts,
    raw: Option<&At<raw::Timeouts>>,
    findings: &mut Findings<'_>,
) -> Timeouts {
    match raw {
        Some(raw) => timeouts_of(base, raw, findings),
        None => base.clone(),
    }
}

fn timeouts_of(base: &Timeouts, raw: &raw::Timeouts, findings: &mut Findings<'_>) -> Timeouts {
    let or = |at: &Option<At<super::decode::Wait>>, base| at.as_ref().map_or(base, |at| at.0);
    let connect = raw.connect.as_ref().map(|connect| &connect.0);
    let part = |of: fn(&raw::ConnectWaits) -> &Option<At<super::decode::Wait>>, base| {
        connect.map_or(base, |connect| or(of(connect), base))
    };
    let total = part(|c| &c.total, base.connect);
    let address = part(|c| &c.address, base.connect_address);
    if let Some(at) = connect.and_then(|connect| connect.address.as_ref())
        && address > total
    {
        findings.error(
            at.place,
            "one address may not take longer than all together (`total`)",
        );
    }
    Timeouts {
        dns: or(&raw.dns, base.dns),
        connect: total,
        connect_address: address.min(total),
        connect_stagger: part(|c| &c.stagger, base.connect_stagger),
        proxy_reply: or(&raw.proxy_reply, base.proxy_reply),
        hello: or(&raw.hello, base.hello),
        first_byte: or(&raw.first_byte, base.first_byte),
        body_idle: or(&raw.body_idle, base.body_idle),
        idle: or(&raw.idle, base.idle),
        head: or(&raw.head, base.head),
        keepalive: or(&raw.keepalive, base.keepalive),
    }
}

/// The longest time in which failures are counted, or for which a target is refused: a person who waits for more than
/// this thinks that the target is down.
const LONGEST_CIRCUIT: Duration = Duration::from_hours(1);

fn circuit(raw: &At<raw::Circuit>, findings: &mut Findings<'_>) -> Option<Circuit> {
    let fails = raw.fails.as_ref()?;
    let number = u32::try_from(fails.0)
        .ok()
        .filter(|n| (1..=1000).contains(n));
    if number.is_none() {
        let message = format!("{} is no number of failures for a circuit", fails.0);
        findings.error(fails.place, message).with_help("1 to 1000");
    }
    let (within, open) = (raw.within.as_ref()?, raw.open.as_ref()?);
    for wait in [within, open] {
        if wait.0 > LONGEST_CIRCUIT {
            let message = "a circuit counts, and stays open, for an hour at most";
            findings
                .error(wait.place, message)
                .with_help("write `1h` or less");
        }
    }
    Some(Circuit {
        fails: number?,
        within: within.0,
        open: open.0,
    })
}

/// Where a rule stands, as records say it.
fn source(findings: &Findings<'_>, place: Place) -> Arc<str> {
    format!("{}:{}", findings.file(), place.line).into()
}

/// The beginning of something that may span lines.
fn first_line(place: Place) -> Place {
    if place.end_line == place.line {
        return place;
    }
    Place {
        end_line: place.line,
        end_column: place.column + 1,
        ..place
    }
}
