//! A policy as it is written: every key of version 1, with the sentence that `routecause schema policy` says of it.

#![expect(
    clippy::doc_markdown,
    reason = "the sentences are the schema's descriptions, where backticks mean keys"
)]

pub(super) mod chains;
pub(super) mod clients;
pub(super) mod defaults;
pub(super) mod dns;
pub(super) mod faults;
pub(super) mod groups;
pub(super) mod guards;
pub(super) mod matchers;
pub(super) mod otlp;
pub(super) mod rules;
pub(super) mod secrets;
pub(super) mod server;
pub(super) mod trials;
pub(super) mod upstreams;

use self::matchers::{NoProxyList, Set};
use super::decode::{At, Count, Named, OneOrMany};
use super::written::{words, written};

written! {
    /// An egress policy of Routecause: which requests leave, and by which route.
    Policy is "the policy", later [] {
        /// The version of this language: 1.
        version "write `version: 1`": Count,
        /// Files with more `chains`, `clients`, `faults`, `groups`, `sets` and `upstreams`, from the folder of the file they are named in.
        include: OneOrMany<String>,
        /// `report` only notes what rules and guards would block, and lets it pass.
        mode: PolicyMode,
        /// What becomes of the tunnels that are open when this policy takes effect in the place of another (keep).
        on_reload: OnReload,
        /// Hosts that are reached directly, before any rule: `env` for the list in NO_PROXY, or a text with commas
        /// such as `a.example,b.example`.
        no_proxy: NoProxyList,
        /// How the proxy runs. Flags and `ROUTECAUSE_*` variables override it.
        server: server::Server,
        /// What holds where a rule says nothing else.
        defaults: defaults::Defaults,
        /// Checks in front of the rules: which addresses may be reached at all.
        guards: guards::Guards,
        /// Kinds of clients, and what tells them apart.
        clients: clients::Clients,
        /// Proxies that requests can be sent through, by name.
        upstreams: Named<upstreams::AnyUpstream>,
        /// Groups of upstreams of which one serves, by name.
        groups: Named<groups::Group>,
        /// Chains of upstreams and `direct`, by name: `corp,backup|direct`, or hop by hop.
        chains: Named<chains::Chain>,
        /// Interference for tests, by name. A policy without this injects none.
        faults: Named<At<faults::Fault>>,
        /// Named sets of hosts, for `match.set`.
        sets: Named<Set>,
        /// Names and addresses.
        dns: dns::Dns,
        /// The rules, in order: the first that matches decides.
        rules: rules::Rules,
        /// What happens where no rule decides.
        default "say what happens where no rule decides, as in `default: {direct: true}`": rules::DefaultRule,
        /// What this policy must decide; run at every load.
        tests: Vec<At<trials::Test>>,
    }
}

words! {
    /// Whether a policy acts.
    PolicyMode {
        /// Blocks are enforced.
        Enforce = "enforce",
        /// Blocks are only noted.
        Report = "report",
    }
}

words! {
    /// What becomes of open tunnels when a policy takes effect.
    OnReload {
        /// They go on under the policy that they began with.
        Keep = "keep",
        /// Those that the new policy refuses are cut.
        CloseBlocked = "close_blocked",
    }
}

/// The JSON Schema of a policy.
pub(super) fn schema() -> serde_json::Value {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Policy>();
    schema.insert("title".to_owned(), "routecause.policy/1".into());
    schema.into()
}
