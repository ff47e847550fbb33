//! Groups, and the health of upstreams, as they are written.

use crate::config::decode::{At, Count, Wait, scalar};
use crate::config::written::{short_or_long, words, written};

written! {
    /// Upstreams that are as good as each other.
    Group is "a group", later [] {
        /// Upstreams and `direct`.
        members "write `members: [m1, m2]`": Vec<At<Member>>,
        /// Which of them is tried first (first).
        balance: Balance,
        /// What happens where all of them are down (try_first).
        all_down: AllDown,
    }
}

short_or_long! {
    /// An element of `members`: a name, or a name with its weight.
    Member is LongMember or {"type": "string"}, |node, findings| {
        let what = "the name of an upstream, or `direct`,";
        scalar(node, what, findings).map(|_| LongMember {
            r#use: At::decode(node, findings),
            ..LongMember::default()
        })
    }
}

written! {
    /// An element of a group.
    LongMember is "a member", later [] {
        /// An upstream's name, or `direct`.
        r#use "write `use: m1`": String,
        /// Its share beside the others': 1 to 1000 (1).
        weight: Count,
    }
}

words! {
    /// Which member of a group is tried first.
    Balance {
        /// The first that is up.
        First = "first",
        /// Each in its turn, by weight.
        RoundRobin = "round_robin",
        /// The one with the fewest open connections for its weight.
        LeastConn = "least_conn",
        /// The same one for the same host, by weight.
        HashHost = "hash_host",
        /// The same one for the same client, by weight.
        HashClient = "hash_client",
        /// The one that opened connections fastest of late.
        Fastest = "fastest",
    }
}

words! {
    /// What happens where all members of a group are down.
    AllDown {
        /// They are tried all the same, the first one first.
        TryFirst = "try_first",
        /// The request fails at once (503, `upstream.all_down`).
        Fail = "fail",
    }
}

written! {
    /// When an upstream counts as down: it is passed over then where something else may serve.
    Health is "`health`", later [] {
        /// How many failures in a row it takes: 1 to 1000 (3). Only those of the upstream itself count.
        max_fails: Count,
        /// The time in which they must fall, and after which one request tries it again, at most 1h (30s).
        fail_timeout: Wait,
        /// Asks the upstream from time to time, without a request.
        probe: Probe,
    }
}

written! {
    /// A connection that is opened through an upstream only to see whether that works. It leaves no record.
    Probe is "`probe`", later [] {
        /// `host:port` of a tunnel to ask for; the upstream is only connected to where left out.
        connect: String,
        /// From one to the next: 1s to 1h.
        every "write `every: 30s`": Wait,
        /// How long one may take, no longer than `every` (3s).
        timeout: Wait,
        /// How many in a row must go well for an upstream that is down: 1 to 100 (2).
        rise: Count,
    }
}
