//! Which fault fails as a cause does.

use crate::cause::{Cause, Kind, Phase};

/// What was observed, what brings it about, and where.
const LIKE: &[(Kind, &str, &str)] = &[
    (Kind::DnsNxdomain, "nxdomain", "dns"),
    (Kind::DnsServfail, "servfail", "dns"),
    (Kind::DnsRefused, "refuse", "dns"),
    (Kind::DnsTimeout, "hang", "dns"),
    (Kind::ConnectRefused, "refuse", "connect"),
    (Kind::ConnectReset, "reset", "connect"),
    (Kind::ConnectTimeout, "hang", "connect"),
    (Kind::TlsResetAfterClientHello, "reset", "client_hello"),
    (Kind::TlsClosedAfterClientHello, "close", "client_hello"),
    (Kind::TlsClientHelloBlackholed, "hang", "client_hello"),
    (Kind::TlsNotTlsReply, "not_tls", "client_hello"),
    (Kind::TlsNoServerHello, "hang", "server_hello"),
    (Kind::TlsResetDuringServerFlight, "reset", "server_hello"),
    (Kind::HttpResetBeforeResponse, "reset", "request"),
    (Kind::HttpEmptyReply, "close", "request"),
    (Kind::HttpResponseTimeout, "hang", "request"),
    (Kind::UpstreamNoReply, "hang", "upstream_reply"),
    (Kind::UpstreamClosed, "close", "upstream_reply"),
    (Kind::UpstreamReset, "reset", "upstream_reply"),
];

/// The `do` and the `at` of a fault that fails as a cause does; nothing where none does, or where more must be known.
pub fn like(cause: Cause) -> Option<(&'static str, &'static str)> {
    // No fault strikes the name or the handshake of an upstream.
    if cause.reaching_upstream && Cause::from(cause.kind).phase() != Some(Phase::Connect) {
        return None;
    }
    let known = LIKE.iter().find(|(kind, _, _)| *kind == cause.kind);
    known.map(|(_, what, at)| (*what, *at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_one() {
        for (kind, what, at) in LIKE {
            let cause = Cause::from(*kind);
            assert_eq!(like(cause), Some((*what, *at)));
            let text = format!("a.test: {what} at {at}");
            if let Err(report) = crate::config::fault(&text) {
                panic!("{}: {}", cause.id(), report.render(false));
            }
        }
    }

    #[test]
    fn what_befalls_an_upstream_is_brought_about_at_its_connection_alone() {
        let of = |id: &str| like(Cause::parse(id).unwrap());
        assert_eq!(of("upstream.connect.refused"), Some(("refuse", "connect")));
        assert_eq!(of("upstream.dns.nxdomain"), None);
        assert_eq!(of("upstream.tls.reset_after_client_hello"), None);
        assert_eq!(of("policy.denied.rule"), None);
    }
}
