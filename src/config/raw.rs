//! A policy as it is written: every key of version 1, with the sentence that `routecause schema policy` says of it.

#![expect(
    clippy::doc_markdown,
    reason = "the sentences are the schema's descriptions, where backticks mean keys"
)]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::decode::{
    Address, At, Count, Day, Decode, Moment, Named, Net, OneOrMany, PortRange, Socket, Wait, clip,
    head, key, nearest, needed, prose, refuse_key, scalar, words, written,
};
use super::diag::Findings;
use super::yaml::{Node, Value};

/// Keys of later versions that mean nothing else anywhere in this one.
fn is_later(key: &str) -> bool {
    const LATER: &[&str] = &[
        "alpn",
        "auth_schemes",
        "bogus",
        "chains",
        "close",
        "command",
        "commit",
        "errors",
        "fault",
        "faults",
        "forward",
        "go_module",
        "groups",
        "health",
        "hedge",
        "include",
        "inspect",
        "label",
        "labels",
        "limit",
        "log",
        "memory",
        "on_dns_error",
        "on_exhausted",
        "on_reload",
        "prefer",
        "proto",
        "proxy_protocol",
        "retry",
        "roles",
        "schemes",
        "send",
        "servers",
        "sni",
        "sni_mismatch",
        "sniff",
        "spn",
        "time",
        "tls",
    ];
    LATER.contains(&key)
}

written! {
    /// An egress policy of Routecause: which requests leave, and by which route.
    Policy is "the policy", later ["clients"] {
        /// The version of this language: 1.
        version "write `version: 1`": Count,
        /// `report` only notes what rules and guards would block, and lets it pass.
        mode: PolicyMode,
        /// Hosts that are reached directly, before any rule: `env` for the list in NO_PROXY, or a list.
        no_proxy: NoProxyList,
        /// How the proxy runs. Flags and `ROUTECAUSE_*` variables override it.
        server: Server,
        /// What holds where a rule says nothing else.
        defaults: Defaults,
        /// Checks in front of the rules: which addresses may be reached at all.
        guards: Guards,
        /// Proxies that requests can be sent through, by name.
        upstreams: Named<Upstream>,
        /// Named sets of hosts, for `match.set`.
        sets: Named<Set>,
        /// Names and addresses.
        dns: Dns,
        /// The rules, in order: the first that matches decides.
        rules: Vec<At<Rule>>,
        /// What happens where no rule decides.
        default "say what happens where no rule decides, as in `default: {direct: true}`": DefaultRule,
        /// What this policy must decide; run at every load.
        tests: Vec<At<Test>>,
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
    /// Whether a rule acts.
    RuleMode {
        /// The rule acts.
        Enforce = "enforce",
        /// What the rule would do is noted, and the walk goes on.
        Report = "report",
        /// The rule is passed over.
        Off = "off",
    }
}

written! {
    /// How the proxy runs.
    Server is "`server`", later ["auth"] {
        /// The listeners.
        listen: Vec<Listener>,
        /// The networks whose clients may use a listener that is not on loopback.
        allow_from: OneOrMany<Net>,
        /// The admin listener: `off`; an address is not in this version.
        admin: Admin,
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
    Listener is "a listener", later ["proxy_protocol", "auth", "tls"] {
        /// Its name, as in records.
        name: String,
        /// Where it listens.
        address "write `address: 127.0.0.1:3128`": Socket,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admin;

impl Decode for Admin {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if scalar(node, "`off`", findings)? == "off" {
            return Some(Self);
        }
        let message = "an admin listener is not in this version";
        let help = "write `admin: off`, or leave it out";
        findings.error(node.place, message).with_help(help);
        None
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
        json_schema!({"const": "off"})
    }
}

written! {
    /// Limits of the whole proxy.
    Limits is "`limits`", later ["rate", "per_client", "requests"] {
        /// How many client connections may be open.
        connections: Count,
    }
}

written! {
    /// What holds where a rule says nothing else.
    Defaults is "`defaults`", later [] {
        /// How long each wait may take.
        timeouts: Timeouts,
        /// When a target that keeps failing is refused without a try; never where left out.
        circuit: Circuit,
    }
}

written! {
    /// When a target that keeps failing is refused without a try (503, `proxy.circuit_open`).
    Circuit is "`circuit`", later [] {
        /// How many failures of a target in a row open it: 1 to 1000.
        fails "write `fails: 5`": Count,
        /// The time in which they must fall, at most 1h.
        within "write `within: 30s`": Wait,
        /// How long the target is refused then, at most 1h.
        open "write `open: 1m`": Wait,
    }
}

written! {
    /// How long each wait may take. What a rule does not name is as in `defaults`.
    Timeouts is "`timeouts`", later [] {
        /// One name's lookup, all servers and tries together (5s).
        dns: Wait,
        /// The TCP connection: one duration for all addresses together (10s), or its parts.
        connect: ConnectWait,
        /// An upstream's answer to CONNECT (30s).
        proxy_reply: Wait,
        /// A TLS handshake of our own, as `preflight` makes it (3s).
        hello: Wait,
        /// The first byte of an answer after the request was sent (5m).
        first_byte: Wait,
        /// A body without progress, in either direction (5m).
        body_idle: Wait,
        /// A tunnel without a byte in either direction (1h).
        idle: Wait,
        /// A request's head (15s).
        head: Wait,
        /// A client's connection between two requests (1m).
        keepalive: Wait,
    }
}

written! {
    /// The waits of a TCP connection.
    ConnectWaits is "`connect`", later [] {
        /// All addresses together (10s).
        total: Wait,
        /// One address (3s).
        address: Wait,
        /// How long one address is tried alone before the next joins in (250ms).
        stagger: Wait,
    }
}

/// `timeouts.connect`: a duration, or its parts.
#[derive(Clone, Debug)]
pub(super) struct ConnectWait(pub(super) ConnectWaits);

impl Decode for ConnectWait {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            return ConnectWaits::decode(node, findings).map(Self);
        }
        Some(Self(ConnectWaits {
            total: Some(At::decode(node, findings)?),
            ..ConnectWaits::default()
        }))
    }
}

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
        /// Addresses that are let through all the same.
        except: OneOrMany<Except>,
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
pub(super) struct AnyOrPorts(pub(super) Option<OneOrMany<PortRange>>);

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

written! {
    /// A proxy that requests can be sent through.
    Upstream is "an upstream", later ["http", "limits", "credentials"] {
        /// `http://host:port`, or `env` for the proxy variables of the environment.
        url "write `url: http://proxy.corp.example:8080`": String,
        /// What the upstream asks of us.
        auth: Auth,
    }
}

written! {
    /// Basic credentials, by reference: no secret stands in a policy.
    Auth is "`auth`", later [] {
        /// The user name.
        username "write `username: {env: NAME}`": SecretRef,
        /// The password.
        password "write `password: {env: NAME}`": SecretRef,
    }
}

/// Where a secret is found.
#[derive(Clone, Debug)]
pub(super) enum SecretRef {
    /// In a variable of the environment.
    Env(At<String>),
    /// In a file.
    File(At<String>),
}

written! {
    /// Where a secret is found: exactly one of the keys.
    SecretPlace is "a secret", later [] {
        /// The variable of the environment that holds it.
        env: String,
        /// The file that holds it, relative to the policy's folder; readable by its owner only.
        file: String,
    }
}

impl Decode for SecretRef {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        let Value::Map(_) = &node.value else {
            // The value is not quoted: it is likely the secret itself.
            let message = "a secret does not stand in a policy";
            let help = "write `{env: NAME}` or `{file: PATH}`";
            findings.error(node.place, message).with_help(help);
            return None;
        };
        let place = SecretPlace::decode(node, findings)?;
        match (place.env, place.file) {
            (Some(env), None) => Some(Self::Env(env)),
            (None, Some(file)) => Some(Self::File(file)),
            (None, None) if place.has.len() == 1 => None, // and that one was told of
            (None, None) | (Some(_), Some(_)) => {
                let message = "a secret is exactly one of `env` and `file`";
                findings.error(head(node), message);
                None
            }
        }
    }
}

written! {
    /// A named set of hosts: what is in any of its lists is in it.
    Set is "a set", later ["file", "kind"] {
        /// Exact names and addresses, or globs; a leading `*.` spans one or more labels.
        hosts: OneOrMany<String>,
        /// Names with everything below them.
        domains: OneOrMany<String>,
        /// Addresses and ranges; they match address literals only.
        ips: OneOrMany<Net>,
    }
}

written! {
    /// Names and addresses.
    Dns is "`dns`", later ["default"] {
        /// Addresses of names that are not looked up.
        hosts: Named<OneOrMany<Address>>,
    }
}

written! {
    /// A rule: what it speaks of, and exactly one of `direct`, `via`, `block`, `continue`.
    Rule is "a rule", later ["dns", "at", "when"] {
        /// Its name, unique in the policy: it stands in records and answers.
        name "give it a unique name: it stands in records and answers": String,
        /// What it speaks of; everything where left out. All fields must hold.
        r#match: Match,
        /// Straight to the target.
        direct: True,
        /// Through an upstream, by its name.
        via: String,
        /// Refused.
        block: Block,
        /// Sets the rule's timeouts and preflight and goes on with the next rule.
        r#continue: True,
        /// `report` only notes what the rule would do; `off` passes it over.
        mode: RuleMode,
        /// The last day of the rule: from 00:00 UTC of the day after it is off.
        expires: Day,
        /// The waits of what the rule decides. What is not named is as in `defaults`.
        timeouts: Timeouts,
        /// What is tried before a tunnel is granted, over a connection of its own; a failure is the answer to CONNECT.
        preflight: Preflight,
    }
}

words! {
    /// What is tried before a tunnel is granted.
    Preflight {
        /// A TLS handshake, within `timeouts.hello`.
        Tls = "tls",
    }
}

written! {
    /// What happens where no rule decides: exactly one of its keys.
    DefaultRule is "`default`", later [] {
        /// Straight to the target.
        direct: True,
        /// Through an upstream, by its name.
        via: String,
        /// Refused.
        block: Block,
    }
}

/// A key that is only ever `true`.
#[derive(Clone, Copy, Debug)]
pub(super) struct True;

impl Decode for True {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if bool::decode(node, findings)? {
            return Some(Self);
        }
        let message = "`true` is the only value of this key";
        findings
            .error(node.place, message)
            .with_help("leave the key out instead");
        None
    }
}

impl JsonSchema for True {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "True".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"const": true})
    }
}

written! {
    /// A refusal.
    BlockText is "`block`", later [] {
        /// Why, for people: it stands in the answer.
        reason: String,
        /// The status: 400 to 599 but for 404, 407 and 410, which clients take for something else (403).
        status: Count,
        /// A word for reports, as in `expected`.
        code: String,
    }
}

/// `block`: `true`, or what the answer says.
#[derive(Clone, Debug, Default)]
pub(super) struct Block(pub(super) BlockText);

impl Decode for Block {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            return BlockText::decode(node, findings).map(Self);
        }
        True::decode(node, findings).map(|True| Self::default())
    }
}

written! {
    /// What a rule speaks of. All fields must hold; entries of one list are alternatives.
    Match is "`match`", later ["sni", "user", "role", "cert"] {
        /// Exact names and addresses, or globs: a leading `*.` spans one or more labels, any other
        /// `*` and `?` stay inside a label, `**` crosses labels.
        host: OneOrMany<String>,
        /// Names with everything below them.
        domain: OneOrMany<String>,
        /// Regular expressions for the whole name in its lower-case ASCII form.
        host_regex: OneOrMany<String>,
        /// Whether the host is a name without a dot.
        plain_host: bool,
        /// Addresses and ranges. They match address literals, and names only as `resolve` says.
        ip: OneOrMany<Net>,
        /// Whether `ip` looks names up.
        resolve: Resolve,
        /// Named sets.
        set: OneOrMany<String>,
        /// Hosts that a NO_PROXY list exempts: `env`, or a list.
        no_proxy: NoProxyList,
        /// Ports and ranges.
        port: OneOrMany<PortRange>,
        /// How it is asked for.
        scheme: Scheme,
        /// Methods; CONNECT for a tunnel.
        method: OneOrMany<String>,
        /// Globs for the path of a plain request: `*` stays inside a segment, `**` crosses segments.
        path: OneOrMany<String>,
        /// Globs for header fields of a plain request, by name.
        header: Named<OneOrMany<String>>,
        /// Who asks.
        client: ClientMatch,
        /// Some of these hold.
        any: Vec<At<Match>>,
        /// All of these hold.
        all: Vec<At<Match>>,
        /// This does not hold.
        not: Box<Match>,
    }
}

impl<T: Decode> Decode for Box<T> {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        T::decode(node, findings).map(Self::new)
    }
}

words! {
    /// Whether `ip` looks names up.
    Resolve {
        /// Address literals only.
        Never = "never",
        /// Some address of the name lies inside: for rules that block.
        Any = "any",
        /// Every address of the name lies inside: for rules that go direct.
        All = "all",
    }
}

words! {
    /// How it is asked for.
    Scheme {
        /// By CONNECT.
        Connect = "connect",
        /// By absolute URL.
        Http = "http",
    }
}

written! {
    /// Who asks.
    ClientMatch is "`client`", later ["user", "role", "cert", "listener", "uid"] {
        /// The client's address lies in one of these.
        cidr "write `cidr: 192.0.2.0/24`": OneOrMany<Net>,
    }
}

/// `no_proxy`: `env`, a list, or a list with its dialect.
#[derive(Clone, Debug)]
pub(super) struct NoProxyList(pub(super) NoProxyText);

written! {
    /// A NO_PROXY list.
    NoProxyText is "`no_proxy`", later [] {
        /// `env` for the variable, or the list itself, with commas.
        list "write `list: env`": String,
        /// Whether `.d` is what lies below `d` (go), or `d` as well (curl).
        dialect: Dialect,
    }
}

words! {
    /// How entries with a leading dot are read.
    Dialect {
        /// `.d` is what lies below `d`.
        Go = "go",
        /// `.d` is `d` and what lies below.
        Curl = "curl",
    }
}

impl Decode for NoProxyList {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            return NoProxyText::decode(node, findings).map(Self);
        }
        let what = "`env`, or a list with commas,";
        scalar(node, what, findings)?;
        Some(Self(NoProxyText {
            list: At::decode(node, findings),
            ..NoProxyText::default()
        }))
    }
}

written! {
    /// What the policy must decide for one request.
    Test is "a test", later [] {
        /// The target of a tunnel: `host:port`.
        connect: String,
        /// The URL of a plain request: `http://host/path`.
        get: String,
        /// The method of the plain request (GET).
        method: String,
        /// The header fields of the plain request.
        headers: Named<String>,
        /// Who asks: an address, or `cidr` for the first address of a range (127.0.0.1).
        client: TestClient,
        /// What the target's name resolves to in this test. Without it lookups fail.
        addresses: OneOrMany<Address>,
        /// The proxy environment of this test; empty where left out.
        env: Named<String>,
        /// The time of this test; now where left out.
        now: Moment,
        /// What must come of it.
        expect "say what must come of it, as in `expect: {action: direct}`": Expect,
    }
}

written! {
    /// What must come of a test.
    Expect is "`expect`", later [] {
        /// The rule that decides: its name, `default`, or the guard's name.
        rule: String,
        /// What happens.
        action: ExpectAction,
        /// The route: `direct`, or the upstream's name.
        route: String,
        /// The rule or guard in report mode that would have decided otherwise.
        would: String,
        /// The reason of the block.
        reason: String,
        /// The status of the block.
        status: Count,
        /// The code of the block.
        code: String,
    }
}

words! {
    /// What happens to a request.
    ExpectAction {
        /// It goes straight to the target.
        Direct = "direct",
        /// It goes through an upstream.
        Via = "via",
        /// It is refused.
        Block = "block",
    }
}

/// `tests[].client`: an address, or a range whose first address is meant.
#[derive(Clone, Debug)]
pub(super) struct TestClient(pub(super) ipnet::IpNet);

impl Decode for TestClient {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            let nets = ClientMatch::decode(node, findings)?.cidr?;
            return nets.first().map(|net| Self(net.0));
        }
        Net::decode(node, findings).map(|net| Self(net.0))
    }
}

/// Schemas of what is written in a short and a long form.
macro_rules! short_or_long {
    ($($name:ident = $short:tt or $long:ty;)+) => {$(
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let long = generator.subschema_for::<$long>();
                json_schema!({"anyOf": [$short, long]})
            }
        }
    )+};
}

short_or_long! {
    ConnectWait = {"type": "string", "examples": ["10s"]} or ConnectWaits;
    AnyOrPorts = {"const": "any"} or OneOrMany<PortRange>;
    SecretRef = {"not": {}} or SecretPlace;
    Block = {"const": true} or BlockText;
    NoProxyList = {"type": "string"} or NoProxyText;
    TestClient = {"type": "string", "examples": ["192.0.2.9"]} or ClientMatch;
}

/// The JSON Schema of a policy.
pub(super) fn schema() -> serde_json::Value {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Policy>();
    schema.insert("title".to_owned(), "routecause.policy/1".into());
    schema.into()
}
