//! What is to be found out, and what keeps the looks at it in bounds.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::facts::Spoken;
use crate::client::Client;
use crate::policy::dns::AskId;
use crate::target::Target;

/// The way without an upstream.
pub(super) const DIRECT: &str = "direct";

/// What is to be found out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Host and port.
    pub target: Target,
    /// What is spoken there.
    pub spoken: Spoken,
    /// The path to ask for.
    pub path: String,
    /// Whether more is wanted than is asked for: another path, a query, or what stands below.
    pub wants_more: bool,
    /// Whether the place on the way is looked for from where a reset comes.
    pub is_located: bool,
    /// The route that the policy chooses; nothing where it refuses.
    pub chosen: Option<String>,
    /// Hosts that are known to work, with their ports.
    pub controls: Vec<Target>,
    /// A page that answers 204 where nobody is between.
    pub portal: Option<(Target, String)>,
    /// Name servers to ask one by one: those of the system.
    pub servers: Vec<SocketAddr>,
    /// What it keeps to where nobody asked for it; nothing where somebody did.
    pub bounds: Option<Bounds>,
}

/// What a look keeps to that nobody asked for: where the requests went that failed, and no further.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The ways that may be gone: those that the policy leads such requests by. Names are looked up where `direct` is one.
    pub ways: Vec<Granted>,
    /// Whose requests they were: addresses are judged for that client.
    pub client: Client,
    /// The target's addresses that may be dialled; where empty all that the guards let through.
    pub addresses: Vec<IpAddr>,
    /// Who is asked for the target's name, where a rule says so.
    pub dns: Option<AskId>,
    /// What an upstream gets as Via, by which one that leads back is known.
    pub via: String,
}

/// A way that may be gone.
#[derive(Clone, Debug)]
pub struct Granted {
    /// `direct`, or the upstream's name.
    pub route: Arc<str>,
    /// What is known to work by it, in place of [`Plan::controls`].
    pub controls: Vec<Control>,
}

/// What is known to work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Host and port.
    pub target: Target,
    /// Where it is; looked up where nothing stands here.
    pub address: Option<IpAddr>,
}

impl Plan {
    /// Whether a way may be gone.
    pub(super) fn grants(&self, route: &str) -> bool {
        let granted = |bounds: &Bounds| bounds.ways.iter().any(|way| *way.route == *route);
        self.bounds.as_ref().is_none_or(granted)
    }

    /// What is held against the target on a way.
    pub(super) fn controls_of(&self, route: &str) -> Vec<Control> {
        let unbound = || {
            let controls = self.controls.iter().cloned();
            let control = |target| Control {
                target,
                address: None,
            };
            controls.map(control).collect()
        };
        self.bounds.as_ref().map_or_else(unbound, |bounds| {
            let way = bounds.ways.iter().find(|way| *way.route == *route);
            way.map(|way| way.controls.clone()).unwrap_or_default()
        })
    }

    /// What an upstream gets as Via; empty for none.
    pub(super) fn via(&self) -> &str {
        self.bounds.as_ref().map_or("", |bounds| &bounds.via)
    }

    /// The only addresses that may be dialled for a target or a control, and who is asked for its name.
    pub(super) fn way_to(&self, target: &Target) -> (Option<Vec<IpAddr>>, Option<AskId>) {
        let Some(bounds) = &self.bounds else {
            return (None, None);
        };
        if *target == self.target {
            let addresses = &bounds.addresses;
            return (
                (!addresses.is_empty()).then(|| addresses.clone()),
                bounds.dns,
            );
        }
        let mut controls = bounds.ways.iter().flat_map(|way| &way.controls);
        let known = controls.find(|control| control.target == *target && control.address.is_some());
        let address = known.and_then(|control| control.address);
        (address.map(|address| vec![address]), None)
    }
}
