//! What rules speak of, as it is written.

use crate::config::decode::{At, Decode, Named, Net, OneOrMany, PortRange, scalar};
use crate::config::diag::Findings;
use crate::config::written::{short_or_long, words, written};
use crate::config::yaml::Node;

written! {
    /// A named set of hosts: what is in any of its lists is in it.
    Set is "a set", later [] {
        /// Exact names and addresses, or globs; a leading `*.` spans one or more labels.
        hosts: OneOrMany<String>,
        /// Names with everything below them.
        domains: OneOrMany<String>,
        /// Addresses and ranges; they match address literals only.
        ips: OneOrMany<Net>,
        /// Go modules, as in GOPRIVATE.
        go_modules: OneOrMany<String>,
        /// A file of more, one a line, `#` before comments, from the folder of the file it is named in.
        file: String,
        /// What the lines of the file are.
        kind: SetKind,
    }
}

words! {
    /// What the lines of a set's file are.
    SetKind {
        /// Exact names and addresses, or globs.
        Hosts = "hosts",
        /// Names with everything below them.
        Domains = "domains",
        /// Addresses and ranges.
        Ips = "ips",
        /// Patterns of Go modules.
        GoModules = "go_modules",
    }
}

written! {
    /// What a rule speaks of. All fields must hold; entries of one list are alternatives.
    Match is "`match`", later ["cert"] {
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
        /// Hosts that a NO_PROXY list exempts: `env`, or a text with commas such as `a.example,b.example`.
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
        /// Host patterns for the name in the tunnel's SNI.
        sni: OneOrMany<String>,
        /// Protocols that the tunnel's ClientHello offers, as in `h2`.
        alpn: OneOrMany<String>,
        /// What is spoken in the tunnel, by its first flight.
        proto: OneOrMany<Proto>,
        /// Go modules, as in GOPRIVATE: `path.Match` on leading elements. A tunnel shows its host only.
        go_module: OneOrMany<String>,
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
    Scheme but ["https" => "a proxy sees an https URL as a tunnel: write `connect`"] {
        /// By CONNECT.
        Connect = "connect",
        /// By absolute URL.
        Http = "http",
    }
}

words! {
    /// What is spoken in a tunnel.
    Proto {
        /// TLS.
        Tls = "tls",
        /// HTTP without TLS.
        Http = "http",
        /// SSH.
        Ssh = "ssh",
        /// Anything else, and nothing within `timeouts.sniff`.
        Other = "other",
    }
}

written! {
    /// Who asks.
    ClientMatch is "`client`", later ["cert", "uid"] {
        /// The client's address lies in one of these.
        cidr: OneOrMany<Net>,
        /// The user name that the client gives; it counts from this machine only, unless it is proved, as by `server.auth`.
        user: OneOrMany<String>,
        /// The client has one of these roles.
        role: OneOrMany<String>,
        /// Globs for the request's label. A label is what the client says, and proves nothing.
        label: OneOrMany<String>,
        /// The client came by one of these listeners.
        listener: OneOrMany<String>,
    }
}

short_or_long! {
    /// `no_proxy`: `env`, a text with commas, or one with its dialect.
    NoProxyList is NoProxyText or {"type": "string"}, |node, findings| {
        let what = "`env`, or a text with commas as in `a.example,b.example`,";
        scalar(node, what, findings).map(|_| NoProxyText {
            list: At::decode(node, findings),
            ..NoProxyText::default()
        })
    }
}

written! {
    /// A NO_PROXY list.
    NoProxyText is "`no_proxy`", later [] {
        /// `env` for the variable, or the list itself, a text with commas.
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
