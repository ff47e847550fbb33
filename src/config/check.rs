//! From what is written to a policy that decides. Every mistake is noted; a policy with mistakes is
//! compiled as far as it goes, so that those behind them are noted too.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::{Timestamp, ToSpan as _};

use super::Secrets;
use super::chains;
use super::clients::{self, Clients, Listeners};
use super::decode::{At, clip, midnight};
use super::defaults::{circuit, sniff, timeouts, timeouts_of_rule, triage};
use super::diag::{Findings, Place};
use super::dns::{self, NameServers};
use super::env::Environment;
use super::faults::Profiles;
use super::matchers;
use super::raw;
use super::upstreams::{DIRECT, Routes};
use crate::pac::Source;
use crate::policy::chain::{Commit, Retry};
use crate::policy::flight::SniMismatch;
use crate::policy::guard::{Exception, Guards, Loopback, is_never_admitted};
use crate::policy::index::Index;
use crate::policy::matcher::{Matcher, Set};
use crate::policy::{
    Action, Block, Close, Mode, OnDnsError, OnReload, Policy, Preflight, Rule, lint,
};
use crate::timeouts::Timeouts;

/// More rules than a person reads: each is asked in turn.
const MOST_RULES: usize = 10_000;

/// What a policy is compiled with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'c> {
    pub(super) environment: &'c Environment,
    /// The addresses that we listen on.
    pub(super) own: &'c [SocketAddr],
    /// Their names.
    pub(super) listeners: &'c Listeners,
    /// Its roles.
    pub(super) clients: &'c Clients,
    /// Its sets: they are read from files, and the same in every environment.
    pub(super) sets: &'c [Arc<Set>],
    /// Where the scripts of its PAC files come from, by where they are named; the same.
    pub(super) scripts: &'c [(Place, Source)],
    /// What becomes of secrets that cannot be had; `None` looks for none.
    pub(super) secrets: Option<Secrets>,
    pub(super) now: Timestamp,
    pub(super) hash: &'c Arc<str>,
}

impl Context<'_> {
    /// Where a listener of the policy's is; loopback where none is named.
    pub(super) fn address_of(&self, listener: Option<&str>) -> SocketAddr {
        let names = match &*self.listeners.instead {
            [] => &self.listeners.written,
            _ => &self.listeners.instead,
        };
        let named = |name: &&Arc<str>| Some(&***name) == listener;
        let at = names.iter().position(|name| named(&name));
        let address = at.and_then(|at| self.own.get(at));
        address.copied().unwrap_or(super::DEFAULT_LISTEN)
    }
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
    let defaults_sniff = raw.defaults.as_ref().and_then(|raw| raw.sniff.as_ref());
    let circuit = raw
        .defaults
        .as_ref()
        .and_then(|defaults| circuit(defaults.circuit.as_ref()?, findings));
    let triage = raw
        .defaults
        .as_ref()
        .and_then(|defaults| triage(defaults.triage.as_ref()?, findings));
    let profiles = Profiles::compile(raw.faults.as_ref(), findings);
    let mut routes = Routes::compile(raw.upstreams.as_ref(), profiles, context, findings);
    routes.add_groups(raw, findings);
    routes.add_chains(raw.chains.as_ref(), findings);
    let defaults = raw.defaults.as_ref();
    let retry = defaults.and_then(|defaults| defaults.retry.as_ref());
    let retry = retry.map_or(Retry::default(), |raw| {
        chains::retry(Retry::default(), raw, findings)
    });
    let commit = defaults.and_then(|defaults| defaults.commit.as_ref());
    let servers = NameServers::compile(raw.dns.as_deref(), &mut routes, context, findings);
    let mut compiler = Compiler {
        servers,
        routes,
        retry,
        timeouts: Arc::new(timeouts),
        names: HashMap::from([("default".to_owned(), None)]),
        context,
    };
    let mut rules = Vec::new();
    let mut places = Vec::new();
    if let Some(list) = &raw.no_proxy {
        compiler
            .names
            .insert("no_proxy".to_owned(), Some(list.place));
        rules.push(Rule::new(
            "no_proxy".into(),
            source(findings, list.place),
            Matcher::NoProxy(matchers::no_proxy(list, context, findings)),
            Action::Route(DIRECT),
        ));
        places.push(list.place);
    }
    if let Some(list) = &raw.rules
        && list.0.len() > MOST_RULES
    {
        let message = format!("{} rules are too many: {MOST_RULES} may be", list.0.len());
        let help = "what is treated alike belongs into one set";
        findings
            .error(first_line(list.place), message)
            .with_help(help);
    }
    for raw in raw.rules.iter().flat_map(|rules| rules.0.iter()) {
        let (rule, place) = compiler.rule(raw, findings);
        rules.push(rule);
        places.push(place);
    }
    let default = compiler.default(raw.default.as_ref(), findings);
    let auth = raw.server.as_ref().and_then(|server| server.auth.as_ref());
    compiler.routes.profiles.tell_unused(findings);
    let policy = Policy {
        hash: Arc::clone(context.hash),
        report,
        index: Index::for_many(&rules),
        guards: guards(raw.guards.as_ref(), report, context, findings),
        rules,
        default,
        routes: compiler.routes.list,
        timeouts: compiler.timeouts,
        commit: commit.map_or(Commit::default(), |commit| chains::commit(commit.value)),
        retry,
        errors_in_json: defaults
            .and_then(|defaults| defaults.errors.as_ref())
            .is_some_and(|errors| errors.value == raw::defaults::Errors::Json),
        circuit,
        triage,
        sniff: sniff(defaults_sniff).unwrap_or_default(),
        on_reload: match raw.on_reload.as_ref().map(|at| at.value) {
            None | Some(raw::OnReload::Keep) => OnReload::Keep,
            Some(raw::OnReload::CloseBlocked) => OnReload::CloseBlocked,
        },
        roles: context.clients.roles.clone(),
        labels: context.clients.labels,
        // As written, whoever serves it: its tests are of the proxy that it is written for.
        proves_users: auth.is_some_and(|auth| auth.users.is_some()),
        pins: dns::pins(raw.dns.as_deref(), findings),
        dns: compiler.servers.dns,
    };
    clients::warn_of_unused(raw.clients.as_ref(), &policy.rules, findings);
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
    servers: NameServers,
    timeouts: Arc<Timeouts>,
    retry: Retry,
    /// The names that are taken, and the lines of their rules.
    names: HashMap<String, Option<Place>>,
    context: &'c Context<'c>,
}

/// The actions that a rule may have, as written.
struct Actions<'r> {
    direct: Option<&'r At<raw::rules::True>>,
    via: Option<&'r At<String>>,
    fault: Option<&'r At<raw::faults::Uses>>,
    block: Option<&'r At<raw::rules::Block>>,
    r#continue: Option<&'r At<raw::rules::True>>,
    /// What it speaks of, where that is not everything.
    matcher: Option<&'r Matcher>,
    /// The keys that are written, well or not.
    has: &'r [&'static str],
}

impl Compiler<'_> {
    fn rule(&mut self, raw: &At<raw::rules::Rule>, findings: &mut Findings<'_>) -> (Rule, Place) {
        let place = raw
            .name
            .as_ref()
            .map_or(first_line(raw.place), |name| name.place);
        if let Some(name) = &raw.name {
            self.take_name(name, findings);
        }
        let matcher = match &raw.r#match {
            Some(raw) => matchers::matcher(raw, self.context, findings),
            None => Matcher::everything(),
        };
        let actions = Actions {
            direct: raw.direct.as_ref(),
            via: raw.via.as_ref(),
            fault: raw.fault.as_ref(),
            block: raw.block.as_ref(),
            r#continue: raw.r#continue.as_ref(),
            matcher: Some(&matcher),
            has: &raw.has,
        };
        let by = format!(
            "rule {}",
            raw.name.as_ref().map_or("", |name| name.as_str())
        );
        let action = self.action(&actions, &by, place, findings);
        let sets_nothing = raw.timeouts.is_none()
            && raw.preflight.is_none()
            && raw.sniff.is_none()
            && raw.commit.is_none()
            && raw.retry.is_none()
            && raw.dns.is_none();
        if let (Some(going_on), true) = (&raw.r#continue, sets_nothing) {
            let message = "a rule that goes on without an option of its own does nothing";
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
        if let Some(at) = &raw.on_dns_error {
            if !raw.has.contains(&"block") {
                let message =
                    "`on_dns_error` says what a rule that blocks does, and this one does not block";
                let help = "where a lookup fails, any other rule does not match: leave it out";
                findings.error(at.place, message).with_help(help);
            } else if !matcher.looks_up() {
                let message =
                    "`on_dns_error` speaks of a lookup that fails, and this rule asks for none";
                let help = "`resolve: any` or `all`, beside `ip` in `match`, looks names up";
                findings.error(at.place, message).with_help(help);
            }
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
                None | Some(raw::rules::RuleMode::Enforce) => Mode::Enforce,
                Some(raw::rules::RuleMode::Report) => Mode::Report,
                Some(raw::rules::RuleMode::Off) => Mode::Off,
            },
            expires,
            timeouts: timeouts.map(|raw| Arc::new(timeouts_of_rule(&self.timeouts, raw, findings))),
            preflight: raw
                .preflight
                .as_ref()
                .map(|preflight| match preflight.value {
                    raw::rules::Preflight::Tls => Preflight::Tls,
                }),
            dns: raw
                .dns
                .as_ref()
                .and_then(|raw| self.servers.ask(raw, &mut self.routes, findings)),
            commit: raw.commit.as_ref().map(|at| chains::commit(at.value)),
            retry: raw
                .retry
                .as_ref()
                .map(|raw| chains::retry(self.retry, raw, findings)),
            sniff: sniff(raw.sniff.as_ref()),
            on_dns_error: match raw.on_dns_error.as_ref().map(|at| at.value) {
                None | Some(raw::rules::OnDnsError::Block) => OnDnsError::Block,
                Some(raw::rules::OnDnsError::Skip) => OnDnsError::Skip,
            },
        };
        (rule, place)
    }

    fn default(
        &mut self,
        raw: Option<&At<raw::rules::DefaultRule>>,
        findings: &mut Findings<'_>,
    ) -> Rule {
        let place = raw.map_or(Place::START, |raw| first_line(raw.place));
        let action = match raw {
            // That it lacks was noted where it was looked for.
            None => Action::Block(Block::default()),
            Some(raw) => {
                let actions = Actions {
                    direct: raw.direct.as_ref(),
                    via: raw.via.as_ref(),
                    fault: raw.fault.as_ref(),
                    block: raw.block.as_ref(),
                    r#continue: None,
                    matcher: None,
                    has: &raw.has,
                };
                self.action(&actions, "`default`", place, findings)
            }
        };
        Rule::new(
            "default".into(),
            source(findings, place),
            Matcher::everything(),
            action,
        )
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
        let taken = self.names.insert(name.value.clone(), Some(name.place));
        let Some(taken) = taken else { return };
        let message = format!("a second rule is named `{}`", clip(name));
        match taken {
            Some(first) => {
                let help = format!(
                    "the first is in {}",
                    findings.whereabouts(first, name.place)
                );
                findings.error(name.place, message).with_help(help)
            }
            None => findings.error(
                name.place,
                format!("`{}` is the name of the key at the end", name.value),
            ),
        };
    }

    fn action(
        &mut self,
        actions: &Actions<'_>,
        by: &str,
        place: Place,
        findings: &mut Findings<'_>,
    ) -> Action {
        let what = if by.starts_with("rule ") {
            "a rule"
        } else {
            by
        };
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
        let via = actions.via;
        let via = via.map(|via| self.routes.find(via, findings).unwrap_or(DIRECT));
        if let Some(uses) = actions.fault {
            for (key, at) in &written {
                if ["block", "continue"].contains(key) {
                    let message = format!("`{key}` opens no way that a fault could stand in");
                    findings.error(first_line(*at), message);
                }
            }
            let by = by.replace('`', "");
            let route = via.unwrap_or(DIRECT);
            let is_of_lab = actions.matcher.is_some_and(Matcher::is_of_lab);
            let routes = &mut self.routes;
            return Action::Route(routes.with_faults(route, uses, &by, is_of_lab, findings));
        }
        if let Some(via) = via {
            return Action::Route(via);
        }
        if let Some(raw) = actions.block {
            return Action::Block(block(raw, findings));
        }
        if actions.r#continue.is_some() {
            return Action::Continue;
        }
        let is_action = |key: &&str| ["direct", "via", "fault", "block", "continue"].contains(key);
        if !actions.has.iter().any(is_action) {
            let message = format!("{what} says what happens: `direct: true`, `via` or `block`");
            findings.error(place, message);
        }
        Action::Route(DIRECT)
    }
}

fn block(raw: &At<raw::rules::Block>, findings: &mut Findings<'_>) -> Block {
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
        close: match raw.close.as_ref().map(|at| at.value) {
            None | Some(raw::rules::Close::Http) => Close::Http,
            Some(raw::rules::Close::Rst) => Close::Rst,
            Some(raw::rules::Close::Alert) => Close::Alert,
        },
    }
}

fn guards(
    raw: Option<&At<raw::guards::Guards>>,
    report: bool,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Guards {
    let mut guards = Guards {
        report,
        own: context.own.to_vec(),
        ..Guards::default()
    };
    let Some(raw) = raw else { return guards };
    let blocks = |key: &Option<At<raw::guards::AllowOrBlock>>, default: bool| {
        key.as_ref()
            .map_or(default, |at| at.value == raw::guards::AllowOrBlock::Block)
    };
    guards.block_link_local = blocks(&raw.link_local, guards.block_link_local);
    guards.block_private = blocks(&raw.private, guards.block_private);
    guards.loopback = match raw.loopback.as_ref().map(|at| at.value) {
        None => guards.loopback,
        Some(raw::guards::LoopbackGuard::Auto) => Loopback::Auto,
        Some(raw::guards::LoopbackGuard::Allow) => Loopback::Allow,
        Some(raw::guards::LoopbackGuard::Block) => Loopback::Block,
    };
    guards.sni_mismatch = match raw.sni_mismatch.as_ref().map(|at| at.value) {
        None | Some(raw::guards::SniMismatch::Allow) => SniMismatch::Allow,
        Some(raw::guards::SniMismatch::Report) => SniMismatch::Report,
        Some(raw::guards::SniMismatch::Block) => SniMismatch::Block,
    };
    guards.connect_ports = raw
        .connect_ports
        .as_ref()
        .and_then(|ports| Some(matchers::ports(ports.0.as_ref()?)));
    for except in raw.except.iter().flat_map(|list| list.iter()) {
        let ports = except.port.as_ref().map(|ports| matchers::ports(ports));
        let nets = except.ip.iter().flat_map(|nets| nets.iter());
        for net in nets.clone().filter(|net| is_never_admitted(net.0)) {
            let message = format!("no exception opens {}: it is no host's address", net.0);
            findings.error(net.place, message);
        }
        guards.except.extend(nets.map(|net| Exception {
            net: net.0,
            ports: ports.clone(),
        }));
    }
    guards
}

/// Where a rule stands, as records say it.
fn source(findings: &Findings<'_>, place: Place) -> Arc<str> {
    format!("{}:{}", findings.file(place), place.line).into()
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
