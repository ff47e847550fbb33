//! Chains, and what may be sent again, as they are written.

use super::faults::Uses;
use crate::config::decode::{At, Count, Decode, OneOrMany, Size, Wait, scalar};
use crate::config::diag::Findings;
use crate::config::written::{either, short_or_long, words, written};
use crate::config::yaml::{Node, Value};

/// A chain: its short form, or what it is made of.
#[derive(Clone, Debug)]
pub(in crate::config) enum Chain {
    /// As in `corp,backup|direct`.
    Text(String),
    /// Hop by hop.
    Long(Box<LongChain>),
}

impl Decode for Chain {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            return LongChain::decode(node, findings).map(|long| Self::Long(Box::new(long)));
        }
        let what = "a chain such as `corp|direct`, or its `hops`,";
        scalar(node, what, findings).map(|text| Self::Text(text.to_owned()))
    }
}

written! {
    /// Hops that are tried in turn.
    LongChain is "a chain", later [] {
        /// Upstreams, groups and `direct`, in order; `off` at the end says that nothing else may serve.
        hops "write `hops: [corp, direct]`": Vec<At<Hop>>,
        /// How many hops one request may try, and how long all of them may take together.
        retry: ChainRetry,
        /// How long a hop's connection may take before the next hop's is opened beside it.
        hedge: Wait,
        /// Hops that failed a host are passed over for that host for a while.
        memory: HopMemory,
        /// How a tunnel ends whose hops have all failed behind the 200 (rst).
        on_exhausted: OnExhausted,
        /// Statuses of an answer, 400 to 599, that count as the failure `status` of a plain request.
        on_status: OneOrMany<Count>,
    }
}

short_or_long! {
    /// An element of `hops`: a name, or a name with what lets a request go on.
    Hop is LongHop or {"type": "string"}, |node, findings| {
        let what = "the name of an upstream or a group, `direct` or `off`,";
        scalar(node, what, findings).map(|_| LongHop {
            r#use: At::decode(node, findings),
            ..LongHop::default()
        })
    }
}

written! {
    /// An element of a chain.
    LongHop is "a hop", later [] {
        /// The name of an upstream or a group, `direct`, or `off`.
        r#use "write `use: corp`": String,
        /// The failures behind which the next hop is tried (any_but_denied).
        next_on: OneOrMany<NextOn>,
        /// Interference on this hop.
        fault: Uses,
    }
}

words! {
    /// What lets a request go on to the next hop.
    NextOn {
        /// Whatever failed.
        Any = "any",
        /// Whatever failed but a refusal, an alert or a status: what `|` means.
        AnyButDenied = "any_but_denied",
        /// The name does not exist: what `,` means.
        NotFound = "not_found",
        /// The name could not be looked up, or its answer is not to be trusted.
        Dns = "dns",
        /// The target could not be connected to.
        Connect = "connect",
        /// The upstream could not be reached, or ended before it answered.
        ProxyDown = "proxy_down",
        /// The upstream did not take the credentials.
        ProxyAuth = "proxy_auth",
        /// The upstream answered that it could not reach the target (502, 503, 504).
        Gateway = "gateway",
        /// The upstream answered with another error.
        ProxyError = "proxy_error",
        /// The upstream, or a guard, refuses.
        Denied = "denied",
        /// A reset or an end before the server's first byte.
        Reset = "reset",
        /// No byte behind the ClientHello in `timeouts.hello`.
        HelloTimeout = "hello_timeout",
        /// The server's first byte is of no TLS record.
        NotTls = "not_tls",
        /// The server's first record is an alert.
        TlsAlert = "tls_alert",
        /// A plain request without a first byte of its answer in time.
        FirstByte = "first_byte",
        /// The answer's status is in `on_status`.
        Status = "status",
    }
}

written! {
    /// How far a chain goes for one request.
    ChainRetry is "`retry`", later [] {
        /// How many hops one request may try: 1 to 10.
        attempts: Count,
        /// How long all of them may take together.
        budget: Wait,
    }
}

written! {
    /// How hops that failed a host are remembered.
    HopMemory is "`memory`", later [] {
        /// For how long (10m); then the hop is tried once more.
        ttl: Wait,
        /// How many failures in that time it takes: 1 to 100 (1).
        fails: Count,
    }
}

words! {
    /// How a tunnel ends whose hops have all failed behind the 200.
    OnExhausted {
        /// With a reset.
        Rst = "rst",
        /// With a TLS alert and a FIN.
        Alert = "alert",
        /// With a FIN.
        Fin = "fin",
    }
}

words! {
    /// From when on a tunnel keeps its hop.
    Commit {
        /// From the 200 on.
        Connect = "connect",
        /// From the server's first byte on.
        FirstByte = "first_byte",
    }
}

written! {
    /// What may be sent again over the next hop of a chain.
    Retry is "`retry`", later [] {
        /// Plain requests by these methods (safe).
        methods: Methods,
        /// The longest body that is kept to be sent again, up to 16MiB (64KiB).
        replay_body: Size,
        /// How many hops one request may try: 1 to 10 (3).
        attempts: Count,
        /// How long all of them may take together (9s).
        budget: Wait,
    }
}

words! {
    /// Methods of plain requests that may be sent again.
    Methods {
        /// None.
        None = "none",
        /// GET, HEAD, OPTIONS, TRACE.
        Safe = "safe",
        /// The same, PUT and DELETE.
        Idempotent = "idempotent",
    }
}

either! { Chain = {"type": "string", "examples": ["corp,backup|direct"]} or LongChain }
