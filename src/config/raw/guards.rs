//! Guards, as they are written.

use crate::config::decode::{Decode, Net, OneOrMany, PortRange};
use crate::config::diag::Findings;
use crate::config::written::{either, words, written};
use crate::config::yaml::{Node, Value};

written! {
    /// Checks in front of the rules; no rule overrides them, only `except` does.
    Guards is "`guards`", later [] {
        /// Loopback addresses: `auto` (for clients on this machine), `allow`, `block`.
        loopback: LoopbackGuard,
        /// Link-local and cloud-metadata addresses and names (block).
        link_local: AllowOrBlock,
        /// Private, carrier-grade NAT and unique-local addresses (allow).
        private: AllowOrBlock,
        /// The ports that CONNECT may name (any).
        connect_ports: AnyOrPorts,
        /// Tunnels whose SNI is another name than their target (allow).
        sni_mismatch: SniMismatch,
        /// Addresses that are let through all the same.
        except: OneOrMany<Except>,
    }
}

words! {
    /// What to do with a tunnel whose SNI is another name than its target.
    SniMismatch {
        /// It passes.
        Allow = "allow",
        /// It passes, and the record names the guard.
        Report = "report",
        /// It is refused.
        Block = "block",
    }
}

words! {
    /// What to do with loopback targets.
    LoopbackGuard {
        /// Allowed for clients on this machine.
        Auto = "auto",
        /// Allowed for all.
        Allow = "allow",
        /// Refused for all.
        Block = "block",
    }
}

words! {
    /// Let through, or refused.
    AllowOrBlock {
        /// Let through.
        Allow = "allow",
        /// Refused.
        Block = "block",
    }
}

/// `guards.connect_ports`: `any`, or ports.
#[derive(Clone, Debug)]
pub(in crate::config) struct AnyOrPorts(pub(in crate::config) Option<OneOrMany<PortRange>>);

impl Decode for AnyOrPorts {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, .. } if text == "any" => Some(Self(None)),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
                OneOrMany::decode(node, findings).map(|ports| Self(Some(ports)))
            }
        }
    }
}

written! {
    /// An exception from the guards.
    Except is "an exception", later [] {
        /// The addresses.
        ip "write `ip: 192.0.2.1`": OneOrMany<Net>,
        /// The ports; any where left out.
        port: OneOrMany<PortRange>,
    }
}

either! { AnyOrPorts = {"const": "any"} or OneOrMany<PortRange> }
