//! What the policy refuses.

use std::fmt;
use std::sync::Arc;

use crate::policy::Close;

/// A refusal by policy, with what a person needs to change it.
#[derive(Debug)]
pub struct Denied {
    /// Which of the endings of `policy.denied.` it is.
    pub by: DeniedBy,
    /// The target; the client's address where that is what is refused.
    pub target: String,
    /// The rule or guard.
    pub rule: Arc<str>,
    /// Where it stands.
    pub source: Option<Arc<str>>,
    /// The reason written there.
    pub reason: Option<Arc<str>>,
    /// The status written there.
    pub status: Option<u16>,
    /// The word written there for reports.
    pub code: Option<Arc<str>>,
    /// How the client is told.
    pub close: Close,
}

/// What refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeniedBy {
    /// The default.
    Default,
    /// A rule.
    Rule,
    /// A rule by address.
    RuleIp,
    /// A rule by SNI, or by what else the first flight shows.
    RuleSni,
    /// A guard of addresses.
    GuardIp,
    /// `guards.connect_ports`.
    GuardPort,
    /// `guards.sni_mismatch`.
    GuardSni,
    /// The never-list of ports.
    NeverPort,
    /// `server.allow_from`.
    Client,
}

impl std::error::Error for Denied {}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, rule, .. } = self;
        match self.by {
            DeniedBy::Default => write!(f, "no rule allows {target}; the default blocks")?,
            DeniedBy::Rule => write!(f, "rule {rule} blocks {target}")?,
            DeniedBy::RuleIp => write!(f, "rule {rule} blocks {target} by its address")?,
            DeniedBy::RuleSni => write!(f, "rule {rule} blocks {target} by its handshake")?,
            DeniedBy::GuardSni => write!(
                f,
                "{rule} refuses a tunnel to {target} whose SNI names another host"
            )?,
            DeniedBy::GuardIp => write!(f, "{rule} refuses the address of {target}")?,
            DeniedBy::GuardPort => write!(f, "{rule} refuses the port of {target}")?,
            DeniedBy::NeverPort => write!(
                f,
                "the port of {target} is refused unless a rule names it; {rule} does not"
            )?,
            DeniedBy::Client => write!(f, "client {target} is not in {rule}")?,
        }
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

impl Denied {
    /// What to change to let it pass.
    pub(super) fn remedy(&self) -> String {
        let above = match &self.source {
            Some(source) => format!("add a rule above {source}"),
            None => "add a rule".to_owned(),
        };
        match self.by {
            DeniedBy::Default | DeniedBy::Rule | DeniedBy::RuleIp | DeniedBy::RuleSni => {
                format!("to allow it, {above}")
            }
            DeniedBy::GuardIp => "if it is meant, add the address to guards.except".to_owned(),
            DeniedBy::GuardPort => {
                "if it is meant, add the port to guards.connect_ports".to_owned()
            }
            DeniedBy::GuardSni => {
                "the client must ask for the host that it then names, or guards.sni_mismatch be `report`"
                    .to_owned()
            }
            DeniedBy::NeverPort => "to allow it, name the port in a rule's match.port".to_owned(),
            DeniedBy::Client => {
                "to allow it, add its address to --allow-from or server.allow_from".to_owned()
            }
        }
    }
}
