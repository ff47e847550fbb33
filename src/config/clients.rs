//! From `clients` as written to roles.

use std::sync::Arc;

use super::check::Context;
use super::decode::{At, Net, OneOrMany, clip, nearest};
use super::diag::Findings;
use super::{raw, stand_in};
use crate::client::Labels;
use crate::policy::Query;
use crate::policy::clients::{LabelPatterns, Role};
use crate::policy::matcher::{Matcher, Truth};

/// The `clients` section.
#[derive(Debug, Default)]
pub(super) struct Clients {
    pub(super) roles: Vec<Arc<Role>>,
    pub(super) labels: Labels,
}

/// What a field of a client's description says, wherever it stands.
pub(super) struct Fields<'r> {
    pub(super) cidr: Option<&'r At<OneOrMany<Net>>>,
    pub(super) user: Option<&'r At<OneOrMany<String>>>,
    pub(super) label: Option<&'r At<OneOrMany<String>>>,
    pub(super) listener: Option<&'r At<OneOrMany<String>>>,
}

impl Clients {
    /// Compiles the section. `listeners` are the names that the policy's own listeners have.
    pub(super) fn compile(
        raw: Option<&At<raw::clients::Clients>>,
        listeners: &Listeners,
        findings: &mut Findings<'_>,
    ) -> Self {
        let Some(raw) = raw else {
            return Self::default();
        };
        let labels = match raw.labels.as_ref().map(|labels| labels.value) {
            None | Some(raw::clients::Labels::None) => Labels::None,
            Some(raw::clients::Labels::UsernameSuffix) => Labels::UsernameSuffix,
        };
        let mut roles = Vec::new();
        for (name, role) in raw.roles.iter().flat_map(|roles| roles.iter()) {
            let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
                let message = "a role's name is at most 64 letters, digits, - _ and .";
                findings.error(name.place, message);
            }
            if role.has.is_empty() {
                let message = format!("role `{}` is everyone's: it has no field", clip(name));
                let help = "give it `cidr`, `user`, `label` or `listener`";
                findings.error(name.place, message).with_help(help);
            }
            let fields = Fields {
                cidr: role.cidr.as_ref(),
                user: role.user.as_ref(),
                label: role.label.as_ref(),
                listener: role.listener.as_ref(),
            };
            roles.push(Arc::new(Role {
                name: name.value.as_str().into(),
                matcher: Matcher::All(fields.compile(labels, listeners, findings)),
            }));
        }
        Self { roles, labels }
    }
}

/// The listeners that a policy may speak of.
#[derive(Debug)]
pub(super) struct Listeners {
    /// Those that it names, or the one that is there without it.
    pub(super) written: Vec<Arc<str>>,
    /// Those that are there instead.
    pub(super) instead: Vec<Arc<str>>,
    /// Whether these are a command's own, and not those of flags.
    pub(super) stand_in: bool,
    /// Whether some can be reached from other machines.
    pub(super) is_open: bool,
    /// Whether clients must say who they are, and prove it.
    pub(super) knows_users: bool,
}

impl Fields<'_> {
    /// The matchers of what is written.
    pub(super) fn compile(
        &self,
        labels: Labels,
        listeners: &Listeners,
        findings: &mut Findings<'_>,
    ) -> Vec<Matcher> {
        let mut parts = Vec::new();
        parts.extend(
            self.cidr
                .map(|nets| Matcher::Client(nets.iter().map(|net: &At<Net>| net.0).collect())),
        );
        if let Some(users) = self.user {
            if listeners.is_open && !listeners.knows_users {
                let message =
                    "`user` counts for clients on this machine only: no password is checked";
                let help = if listeners.stand_in {
                    stand_in::WHY
                } else {
                    "name a file of users: `server: {auth: {users: FILE}}`"
                };
                findings.warn(users.place, message).with_help(help);
            }
            let users = users.iter().map(|user| user.as_str().into());
            parts.push(Matcher::User(users.collect()));
        }
        if let Some(patterns) = self.label {
            if labels == Labels::None {
                let message = "no request has a label: `clients.labels` is none";
                findings
                    .warn(patterns.place, message)
                    .with_help("write `clients: {labels: username_suffix}`");
            }
            parts.extend(label_patterns(patterns, findings).map(Matcher::Label));
        }
        if let Some(names) = self.listener {
            for name in names.iter() {
                listeners.know(name, findings);
            }
            let names = names.iter().map(|name| name.as_str().into());
            parts.push(Matcher::Listener(names.collect()));
        }
        parts
    }
}

impl Listeners {
    fn know(&self, name: &At<String>, findings: &mut Findings<'_>) {
        let is = |known: &Arc<str>| **known == **name;
        if self.instead.iter().any(is) || self.instead.is_empty() && self.written.iter().any(is) {
            return;
        }
        if self.written.iter().any(is) {
            let why = if self.stand_in {
                stand_in::WHY
            } else {
                "flags say where to listen"
            };
            let message = format!("{why}, and no listener is named `{}`", clip(name));
            findings.warn(name.place, message);
            return;
        }
        let names = || self.written.iter().map(|name| &**name);
        let message = format!("there is no listener `{}`", clip(name));
        let diagnostic = findings.error(name.place, message);
        diagnostic.with_help(match nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "the listeners are {}",
                names().collect::<Vec<_>>().join(", ")
            ),
        });
    }
}

fn label_patterns(
    patterns: &OneOrMany<String>,
    findings: &mut Findings<'_>,
) -> Option<LabelPatterns> {
    let texts: Vec<&str> = patterns.iter().map(|pattern| pattern.as_str()).collect();
    match LabelPatterns::new(&texts) {
        Ok(patterns) => Some(patterns),
        Err((at, problem)) => {
            let place = patterns.get(at).map(|pattern| pattern.place);
            let message = format!("this is no pattern: {problem}");
            findings.error(place.unwrap_or_default(), message);
            None
        }
    }
}

/// Compiles `match.client`.
pub(super) fn of_match(
    raw: &At<raw::matchers::ClientMatch>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Vec<Matcher> {
    if raw.has.is_empty() {
        let message = "this speaks of every client";
        let help = "its keys are cidr, user, role, label, listener; leave it out to mean everyone";
        findings.error(raw.place, message).with_help(help);
    }
    let fields = Fields {
        cidr: raw.cidr.as_ref(),
        user: raw.user.as_ref(),
        label: raw.label.as_ref(),
        listener: raw.listener.as_ref(),
    };
    let mut parts = fields.compile(context.clients.labels, context.listeners, findings);
    if let Some(names) = &raw.role {
        let roles = names
            .iter()
            .filter_map(|name| role(name, context.clients, findings));
        parts.push(Matcher::Role(roles.collect()));
    }
    parts
}

/// Finds a role by its name.
pub(super) fn role(
    name: &At<String>,
    clients: &Clients,
    findings: &mut Findings<'_>,
) -> Option<Arc<Role>> {
    if let Some(role) = clients.roles.iter().find(|role| *role.name == **name) {
        return Some(role.clone());
    }
    let names = || clients.roles.iter().map(|role| &*role.name);
    let diagnostic = findings.error(name.place, format!("there is no role `{}`", clip(name)));
    if let Some(near) = nearest(name, names()) {
        diagnostic.with_help(format!("did you mean `{near}`?"));
    } else if clients.roles.is_empty() {
        diagnostic.with_help("roles are named under `clients.roles` at the top");
    } else {
        let names: Vec<_> = names().collect();
        diagnostic.with_help(format!("the roles are {}", names.join(", ")));
    }
    None
}

/// Warns of roles that no rule speaks of. Those of included files may serve other policies.
pub(super) fn warn_of_unused(
    raw: Option<&At<raw::clients::Clients>>,
    rules: &[crate::policy::Rule],
    findings: &mut Findings<'_>,
) {
    let roles = raw.and_then(|raw| raw.roles.as_ref());
    for (name, _) in roles.iter().flat_map(|roles| roles.iter()) {
        let is_used = rules.iter().any(|rule| rule.matcher.names_role(name));
        if !is_used && name.place.file == 0 {
            let message = format!("role `{}` is never used", clip(name));
            findings.warn(name.place, message);
        }
    }
}

/// Whether the client of a query has a role.
pub(super) fn has_role(role: &Role, query: &Query<'_>) -> bool {
    role.matcher.judge(query) == Truth::True
}
