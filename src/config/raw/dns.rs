//! Names and addresses, as they are written.

use crate::config::decode::{Address, At, Count, Named, Net, OneOrMany, ServerAddress, Ttl};
use crate::config::written::{words, written};

written! {
    /// Names and addresses: who is asked, and what is made of the answers.
    Dns is "`dns`", later [] {
        /// Who is asked for names that no server's `domains` name: `system` (resolv.conf), or a server's name.
        default: String,
        /// Name servers, by name.
        servers: Named<At<NameServer>>,
        /// Addresses of names that are not looked up; `*.name` is every name below.
        hosts: Named<OneOrMany<Address>>,
        /// Addresses and ranges of forged answers: a lookup that gives one of them has failed.
        bogus: OneOrMany<Net>,
        /// Which families are looked up, and which is tried first (happy).
        prefer: Prefer,
        /// For how long answers are remembered.
        cache: DnsCache,
    }
}

written! {
    /// A name server: exactly one of `udp`, `tcp`, `dot`, `doh`.
    NameServer is "a name server", later ["doq", "bootstrap"] {
        /// Addresses that are asked by UDP, and by TCP where an answer is truncated; port 53 where none is written.
        udp: OneOrMany<ServerAddress>,
        /// Addresses that are asked by TCP alone; port 53 where none is written.
        tcp: OneOrMany<ServerAddress>,
        /// Name and port of a server that is asked by TLS, as in `dns.example:853`; port 853 where none is written.
        dot: String,
        /// The URL of a server that is asked by HTTP/2, as in `https://dns.example/dns-query`.
        doh: String,
        /// The addresses of a `dot` or `doh` server: its own name is not looked up.
        ip: OneOrMany<Address>,
        /// The file, relative to the policy's folder, of the certificates (PEM) that a `dot` or `doh` server's must be
        /// signed by; those that the system trusts where left out.
        ca: String,
        /// The upstream, by its name, that connections to the server go through. Not for `udp`. Names of upstreams are
        /// never asked of such a server, but of the system's.
        via: String,
        /// The names that this server is asked for, with everything below them. The longest that fits counts.
        domains: OneOrMany<String>,
    }
}

words! {
    /// Which families of addresses are looked up, and which is tried first.
    Prefer {
        /// Both; IPv6 first, IPv4 a moment later.
        Happy = "happy",
        /// Both; IPv4 first.
        V4 = "v4",
        /// Both; IPv6 first.
        V6 = "v6",
        /// IPv4 alone.
        V4Only = "v4_only",
        /// IPv6 alone.
        V6Only = "v6_only",
    }
}

written! {
    /// For how long answers are remembered. A reload keeps what is remembered, unless this or the server is changed.
    DnsCache is "`cache`", later [] {
        /// At least so long, whatever an answer says (0s).
        min_ttl: Ttl,
        /// At most so long, whatever an answer says (1h).
        max_ttl: Ttl,
        /// At most so long, that a name or its addresses do not exist (5m).
        negative_ttl: Ttl,
        /// How many answers of one server: an address family of a name is one (4096). 0 remembers none.
        entries: Count,
    }
}

written! {
    /// Who is asked for the names that a rule speaks of: for `resolve`, and where it sends straight to the target.
    RuleDns is "`dns`", later [] {
        /// A server of `dns.servers`, by its name, or `system`; `dns.default` where left out.
        server: String,
        /// The upstream, by its name, that connections to the server go through, or `direct`. A `udp` server is asked by
        /// TCP then.
        via: String,
    }
}
