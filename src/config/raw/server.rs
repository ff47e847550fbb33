//! How the proxy runs, as it is written.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::otlp::Otlp;
use super::secrets::SecretRef;
use crate::config::decode::{Count, Decode, ListenAddress, Net, OneOrMany, Wait, scalar};
use crate::config::diag::Findings;
use crate::config::server::AdminAddress;
use crate::config::written::{words, written};
use crate::config::yaml::Node;

written! {
    /// How the proxy runs.
    Server is "`server`", later [] {
        /// The listeners.
        listen: Vec<Listener>,
        /// The networks whose clients may use a listener that is not on loopback.
        allow_from: OneOrMany<Net>,
        /// Clients must say who they are, and prove it.
        auth: ServerAuth,
        /// Where metrics, the admin API and the dashboard are: an address and a port, `unix:PATH`, or `off`.
        admin: Admin,
        /// The token that the admin listener asks for; needed where other machines can reach it.
        admin_token: SecretRef,
        /// The SQLite file that records are kept in as well, relative to the policy's folder.
        history: String,
        /// How long it keeps them.
        history_retention: Wait,
        /// How many of the hosts that failed most of late are named in the metrics; none where left out.
        metrics_hosts: Count,
        /// Where records and spans are exported to by OTLP.
        otlp: Otlp,
        /// The form of records.
        log_format: LogFormat,
        /// The file that records go to instead of stdout, relative to the policy's folder.
        log_file: String,
        /// The name in Proxy-Status.
        name: String,
        /// How long open tunnels may finish when the proxy stops.
        drain_timeout: Wait,
        /// Limits of the whole proxy.
        limits: Limits,
    }
}

written! {
    /// A listener.
    Listener is "a listener", later [] {
        /// Its name, as in records.
        name: String,
        /// Where it listens: an address and a port, `unix:` and a path, or `systemd` for a socket that it passes.
        address "write `address: 127.0.0.1:3128`": ListenAddress,
        /// TLS with its clients: their proxy variable begins with `https://`.
        tls: ListenerTls,
        /// The networks of balancers, which say in the PROXY protocol (v1 or v2) for whom they connect.
        proxy_protocol: OneOrMany<Net>,
        /// Whether its clients must say who they are (true, where `server.auth` is set).
        auth: bool,
    }
}

written! {
    /// TLS with clients.
    ListenerTls is "`tls`", later [] {
        /// The file of the certificate and its issuers (PEM), relative to the policy's folder.
        cert "write `cert: FILE`": String,
        /// The file of its private key (PEM), relative to the policy's folder.
        key "write `key: FILE`": String,
        /// The file of the authorities (PEM) one of which must have signed a client's certificate. With it every client
        /// shows one, and its name counts as a user that is proven.
        client_ca: String,
    }
}

written! {
    /// Who clients are.
    ServerAuth is "`auth`", later ["realm", "schemes"] {
        /// The file of users, relative to the policy's folder: a name, a colon and an argon2 hash a line.
        users "write `users: FILE`": String,
    }
}

words! {
    /// The form of records.
    LogFormat {
        /// One JSON object a line.
        Json = "json",
        /// One line for people.
        Text = "text",
    }
}

/// `server.admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) struct Admin(pub(in crate::config) AdminAddress);

impl Decode for Admin {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        let text = scalar(
            node,
            "`off`, an address and a port, or `unix:PATH`",
            findings,
        )?;
        match text.parse() {
            Ok(address) => Some(Self(address)),
            Err(message) => {
                findings.error(node.place, message);
                None
            }
        }
    }
}

impl JsonSchema for Admin {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Admin".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "examples": ["127.0.0.1:3129", "unix:/run/routecause/admin.sock", "off"]
        })
    }
}

written! {
    /// Limits of the whole proxy.
    Limits is "`limits`", later ["requests"] {
        /// How many client connections may be open.
        connections: Count,
        /// How many of them may come from one address (512). Clients on this machine have no such limit.
        per_client: Count,
        /// How many requests to one target may be under way, tunnels among them; any number where left out.
        per_target: Count,
        /// How many requests one client address may begin in a second; any number where left out. As many may come at
        /// once.
        rate: Count,
    }
}
