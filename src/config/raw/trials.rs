//! What a policy must decide, as it is written.

use super::matchers::Proto;
use crate::config::decode::{Address, At, Count, Moment, Named, Net, OneOrMany};
use crate::config::written::{short_or_long, words, written};

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
        /// Who asks: an address, or what is known of the client (127.0.0.1).
        client: TestClient,
        /// The name in the tunnel's SNI. Without `sni`, `alpn` and `proto` a tunnel begins as its port lets expect: 443
        /// with TLS and the target's name, 80 with HTTP, 22 with SSH, any other with nothing.
        sni: String,
        /// The protocols that its ClientHello offers.
        alpn: OneOrMany<String>,
        /// What is spoken in it.
        proto: Proto,
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
        /// The faults on its way, or `none`.
        fault: OneOrMany<String>,
        /// As whom the client is known.
        client: ExpectClient,
    }
}

written! {
    /// As whom a client must be known.
    ExpectClient is "`expect.client`", later [] {
        /// The user name, without a label.
        user: String,
        /// The label.
        label: String,
        /// Roles that it has.
        role: OneOrMany<String>,
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

written! {
    /// What is known of a test's client. What is left out follows from its roles.
    TestClientText is "`client`", later ["cert", "uid"] {
        /// Its address: the first of the range (127.0.0.1).
        cidr: Net,
        /// The user name as it gives it, with its label where `labels` says so.
        user: String,
        /// Roles that it has.
        role: OneOrMany<String>,
        /// The request's label.
        label: String,
        /// The listener that it came by.
        listener: String,
    }
}

short_or_long! {
    /// `tests[].client`: an address, or what is known of the client.
    TestClient is TestClientText or {"type": "string", "examples": ["192.0.2.9"]}, |node, findings| {
        At::decode(node, findings).map(|cidr| TestClientText {
            cidr: Some(cidr),
            ..TestClientText::default()
        })
    }
}
