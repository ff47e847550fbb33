//! Upstreams, as they are written.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::groups::Health;
use super::secrets::SecretRef;
use crate::config::decode::{Count, Decode, OneOrMany, Wait, clip, scalar};
use crate::config::diag::Findings;
use crate::config::written::{words, written};
use crate::config::yaml::{Node, Value};

/// An upstream, or a script that names some.
#[derive(Clone, Debug)]
pub(in crate::config) enum AnyUpstream {
    /// A proxy.
    Proxy(Box<Upstream>),
    /// A PAC file.
    Pac(PacFile),
}

impl Decode for AnyUpstream {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if let Value::Map(entries) = &node.value
            && entries.iter().any(|(key, _)| key.text == "pac")
        {
            return PacFile::decode(node, findings).map(Self::Pac);
        }
        Upstream::decode(node, findings).map(|proxy| Self::Proxy(Box::new(proxy)))
    }
}

impl JsonSchema for AnyUpstream {
    fn schema_name() -> Cow<'static, str> {
        "AnyUpstream".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let proxy = generator.subschema_for::<Upstream>();
        let pac = generator.subschema_for::<PacFile>();
        json_schema!({"anyOf": [proxy, pac]})
    }
}

written! {
    /// A script that names the ways of each request.
    PacFile is "an upstream by a PAC file", later [] {
        /// The file of the script, or its `http://` or `https://` URL. What it names is tried in turn; a proxy that is an
        /// upstream here is that one, and no other is told who we are.
        pac "write `pac: proxy.pac`": String,
        /// For how long a script of a URL is used before it is fetched again: 10s to 24h (1h).
        every: Wait,
    }
}

written! {
    /// A proxy that requests can be sent through.
    Upstream is "an upstream", later ["credentials"] {
        /// `http://host:port`, `https://`, `socks5://` (names are resolved here), `socks5h://` (and there), or `env` for the
        /// proxy variables of the environment.
        url "write `url: http://proxy.corp.example:8080`": String,
        /// The version of HTTP that tunnels are asked for in: 1, 2 (https only), or `auto` for what an https upstream chooses.
        http: HttpVersion,
        /// How plain requests go through it: `auto` in absolute form where it speaks HTTP/1.1 and is told names, else, and with
        /// `connect`, through a tunnel.
        forward: Forward,
        /// What it is told of a target: its name, or an address that was found and admitted here. `socks5` implies `ip`,
        /// `socks5h` `host`, all else defaults to `host`.
        send: Send,
        /// How TLS is spoken with an https upstream.
        tls: UpstreamTls,
        /// What the upstream asks of us.
        auth: Auth,
        /// When it counts as down.
        health: Health,
        /// The header in front of each connection that tells the upstream the client's address (none).
        proxy_protocol: ProxyProtocol,
        /// Limits of this upstream.
        limits: UpstreamLimits,
    }
}

/// `http` of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum HttpVersion {
    /// What it chooses.
    Auto,
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

impl Decode for HttpVersion {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        const CHOICE: &str = "one of auto, 1, 2";
        match scalar(node, CHOICE, findings)? {
            "auto" => Some(Self::Auto),
            "1" => Some(Self::One),
            "2" => Some(Self::Two),
            other => {
                findings.error(node.place, format!("`{}` is not {CHOICE}", clip(other)));
                None
            }
        }
    }
}

impl JsonSchema for HttpVersion {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "HttpVersion".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"enum": ["auto", 1, 2]})
    }
}

words! {
    /// How plain requests go through an upstream.
    Forward {
        /// In absolute form where that is possible.
        Auto = "auto",
        /// Through a tunnel.
        Connect = "connect",
    }
}

words! {
    /// What an upstream is told of a target.
    Send {
        /// Its name.
        Host = "host",
        /// An address that was found here.
        Ip = "ip",
    }
}

words! {
    /// The header in front of each connection.
    ProxyProtocol {
        /// None.
        None = "none",
        /// Version 1, a line of text.
        V1 = "v1",
        /// Version 2, binary.
        V2 = "v2",
    }
}

written! {
    /// How TLS is spoken with an upstream.
    UpstreamTls is "`tls`", later [] {
        /// A PEM file with the certificates that are trusted for this upstream, instead of the system's.
        ca: String,
        /// A PEM file with our own certificate and what stands between it and its root.
        cert: String,
        /// The PEM file of its private key; readable by its owner only, or by its group where it is root's and we are another.
        key: String,
        /// The name that the upstream's certificate must stand for; the host of `url` where left out.
        server_name: String,
    }
}

written! {
    /// Limits of an upstream.
    UpstreamLimits is "`limits`", later ["rate", "per_client", "requests"] {
        /// How many connections to it may be open; what would need another fails at once.
        connections: Count,
    }
}

written! {
    /// Who we are to an upstream. No secret stands in a policy.
    Auth is "`auth`", later [] {
        /// The schemes that may be used, the preferred one first (digest, basic); of these only what the upstream offers is used.
        schemes: OneOrMany<AuthScheme>,
        /// The user name.
        username: SecretRef,
        /// The password.
        password: SecretRef,
        /// The name of the upstream's service for Kerberos (HTTP/ and the host of `url`).
        spn: String,
        /// Whether the first scheme that needs no challenge is sent before the upstream has ever asked (false).
        preemptive: bool,
    }
}

words! {
    /// An authentication scheme.
    AuthScheme {
        /// Kerberos, from the ticket cache (feature `kerberos`).
        Negotiate = "negotiate",
        /// NTLM (feature `ntlm`).
        Ntlm = "ntlm",
        /// Digest.
        Digest = "digest",
        /// Basic.
        Basic = "basic",
    }
}
