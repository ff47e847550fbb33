//! What holds where a rule says nothing else, as it is written.

use super::chains::{Commit, Retry};
use crate::config::decode::{At, Count, Wait};
use crate::config::written::{short_or_long, words, written};

written! {
    /// What holds where a rule says nothing else.
    Defaults is "`defaults`", later [] {
        /// How long each wait may take.
        timeouts: Timeouts,
        /// When a target that keeps failing is refused without a try; never where left out.
        circuit: Circuit,
        /// When a target that keeps failing is looked at by the doctor without being asked; never where left out.
        triage: Triage,
        /// The form of our own answers where the client does not ask for one (text).
        errors: Errors,
        /// From when on a tunnel keeps its hop (first_byte): until then the next hop of a chain may take over.
        commit: Commit,
        /// What may be sent again over the next hop of a chain.
        retry: Retry,
        /// Whether the first flight of a tunnel is read (auto).
        sniff: Sniff,
    }
}

words! {
    /// The form of our own answers.
    Errors {
        /// A short text.
        Text = "text",
        /// `application/problem+json` (RFC 9457).
        Json = "json",
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
    /// When a target that keeps failing is looked at by the doctor without being asked. What it finds stands in the later records
    /// of that target (`egress.diagnosis.*`).
    Triage is "`triage`", later [] {
        /// How many failures of a target in a row, all with the same cause and by the same route, are needed: 1 to 100.
        fails "write `fails: 3`": Count,
        /// The time in which they must fall, at most 1h.
        within "write `within: 5m`": Wait,
        /// How long the same target is not looked at again: 1m to 24h. What was found is told for as long, and for 10m at least,
        /// unless a success ends it.
        every "write `every: 10m`": Wait,
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
        /// A TLS handshake of our own, as `preflight` makes it; and behind the first flight of a tunnel over a chain the silence
        /// after which its next hop is tried (3s).
        hello: Wait,
        /// The first byte of an answer after the request was sent (5m).
        first_byte: Wait,
        /// A body without progress, in either direction (5m).
        body_idle: Wait,
        /// A tunnel without a byte in either direction (1h).
        idle: Wait,
        /// A tunnel from its request to its end, whatever passes in it (any).
        max_duration: Wait,
        /// The first flight of a tunnel, where a rule asks for it (300ms); in `defaults` only.
        sniff: Wait,
        /// A request's head (15s); in `defaults` only.
        head: Wait,
        /// A client's connection between two requests, and an upstream's of HTTP/2 between two tunnels (1m).
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

short_or_long! {
    /// `timeouts.connect`: a duration, or its parts.
    ConnectWait is ConnectWaits or {"type": "string", "examples": ["10s"]}, |node, findings| {
        At::decode(node, findings).map(|total| ConnectWaits {
            total: Some(total),
            ..ConnectWaits::default()
        })
    }
}

words! {
    /// Whether the first flight of a tunnel is read.
    Sniff {
        /// Where a rule that is reached, or a guard, asks for it.
        Auto = "auto",
        /// Of every tunnel.
        Always = "always",
        /// Not for rules: `sni`, `alpn` and `proto` are unknown to them.
        Never = "never",
    }
}
