//! The list of causes: the only one. The record, the answer, `routecause explain --cause` and docs/causes.md are read from it.
//!
//! A row: the kind, its id, the side behind it where no evidence says otherwise, the status where an answer is still
//! possible, how sure it is, the error type of `Proxy-Status`, how it is told, and what to do.

use super::causes;

causes! {
    ClientClosedBeforeRequest: "client.closed_before_request", Client, None, Certain, None,
        "the connection ended without a byte",
        "a health check or a connection opened ahead of need";
    ClientRequestTimeout: "client.request_timeout", Client, Some(408), Certain, Some("http_request_error"),
        "head or body of the request stopped arriving for the time limit",
        "the request did not arrive whole in time: mend the client or raise defaults.timeouts.head";
    ClientMalformedRequest: "client.malformed_request", Client, Some(400), Certain, Some("http_request_error"),
        "what arrived cannot be read as a request of HTTP/1.1 or SOCKS5, or cannot be forwarded safely",
        "the first bytes tell what the client speaks: this listener speaks HTTP/1.1 and SOCKS5";
    ClientTlsToPlainPort: "client.tls_to_plain_port", Client, None, Certain, Some("http_request_error"),
        "the first bytes are a TLS handshake",
        "the proxy variable must start with http://, since this listener does not speak TLS";
    ClientSocksToHttpPort: "client.socks_to_http_port", Client, None, Certain, Some("http_request_error"),
        "the first byte is a SOCKS4 greeting",
        "the proxy variable says socks4; this listener speaks HTTP and SOCKS5: write http:// or socks5h://";
    ClientH2Preface: "client.h2_preface", Client, Some(505), Certain, Some("http_request_error"),
        "the first bytes are the preface of HTTP/2",
        "this listener speaks HTTP/1.1 only";
    ClientBadTarget: "client.bad_target", Client, Some(400), Certain, Some("http_request_error"),
        "the target has no port, no host, a wrong scheme, a user name, or is too long",
        "no policy can let this pass: the client must ask in another way";
    ClientHeaderTooLarge: "client.header_too_large", Client, Some(431), Certain, Some("http_request_error"),
        "the head is longer, or has more fields, than the limit",
        "the request's head is over the limit of 64 KiB or 100 fields";
    ClientPlainToTlsPort: "client.plain_to_tls_port", Client, Some(400), Certain, Some("http_request_error"),
        "the first byte is that of no TLS handshake, on a listener that speaks TLS",
        "the proxy variable must start with https://, since this listener speaks TLS";
    ClientTlsFailed: "client.tls_failed", Client, None, Certain, Some("http_request_error"),
        "the TLS handshake with a listener of this proxy failed",
        "the message names what the client and this listener do not agree on, or what the client finds wrong with its certificate";
    ClientAuthRequired: "client.auth_required", Client, Some(407), Certain, Some("http_request_error"),
        "no credentials for this proxy, where server.auth wants some; or no client certificate, where the listener does",
        "put user and password into the proxy variable, as in http://user:password@proxy:3128";
    ClientAuthFailed: "client.auth_failed", Client, Some(407), Certain, Some("http_request_error"),
        "there is no such user, or the password is another; or no authority of the listener signed the client's certificate",
        "look at user and password in the proxy variable, and at the file that server.auth names";
    ClientGaveUpDns: "client.gave_up.dns", Client, Some(499), Certain, None,
        "the client closed or reset its connection while the name was looked up",
        "the client left while the name was looked up: its timer is shorter than defaults.timeouts.dns";
    ClientGaveUpConnect: "client.gave_up.connect", Client, Some(499), Certain, None,
        "the client closed or reset its connection while the TCP connection was opened",
        "the client left while the connection was opened: its timer is shorter than defaults.timeouts.connect";
    ClientGaveUpUpstream: "client.gave_up.upstream", Client, Some(499), Certain, None,
        "the client closed or reset its connection while an upstream was waited for",
        "the client left while the upstream proxy had not answered: the upstream is slow or the client's timer short";
    ClientGaveUpTls: "client.gave_up.tls", Client, Some(499), Certain, None,
        "the client closed or reset a tunnel before its TLS handshake was over, within 3 s of the last byte",
        "the client left in the middle of the handshake: its timer is short, or it was stopped";
    ClientGaveUpResponse: "client.gave_up.response", Client, Some(499), Certain, None,
        "the client closed or reset its connection before a plain request's answer was whole",
        "the client left before the answer was whole: the origin is slow or the client's timer short";
    ClientReset: "client.reset", Client, None, Certain, None,
        "a RST from the client in an open tunnel",
        "the client broke off, or was stopped: look at its side";
    ClientWriteTimeout: "client.write_timeout", Client, None, Certain, None,
        "the client took no byte of the answer for the time limit",
        "the client did not read for defaults.timeouts.body_idle: it is paused, or its disk is full";

    PolicyDeniedDefault: "policy.denied.default", Proxy, Some(403), Certain, Some("http_request_denied"),
        "no rule matched, and the default blocks",
        "no rule allows this target: add a rule above the default";
    PolicyDeniedRule: "policy.denied.rule", Proxy, Some(403), Certain, Some("http_request_denied"),
        "a rule that blocks matched, or the client is not in server.allow_from",
        "a rule blocks this target: change that rule or put one above it";
    PolicyDeniedIp: "policy.denied.ip", Proxy, Some(403), Certain, Some("destination_ip_prohibited"),
        "an address guard, or a rule by address, refuses every address of the target",
        "the address is in a range that is refused: add it to guards.except if it is meant";
    PolicyDeniedPort: "policy.denied.port", Proxy, Some(403), Certain, Some("http_request_denied"),
        "the port is on the never-list, or not in guards.connect_ports",
        "the port is refused: a rule whose match names the port opens it";
    PolicyDeniedSni: "policy.denied.sni", Proxy, Some(403), Certain, Some("http_request_denied"),
        "a rule by SNI, ALPN or protocol blocks, or SNI names another host than the target (guards.sni_mismatch)",
        "what comes first in the tunnel is refused, though its target is not: the message names the rule";

    PolicyNoRoute: "policy.no_route", Proxy, Some(403), Certain, Some("destination_not_found"),
        "a chain ended by off: none of its hops could serve the request, and nothing else may",
        "the message names what each hop failed of: mend one of them, or take off out of the chain";

    ProxyLoop: "proxy.loop", Proxy, Some(508), Certain, Some("proxy_loop_detected"),
        "our own name stands in Via, or the target is one of our listeners",
        "the request came back to this proxy: a proxy variable, NO_PROXY or a rule points at ourselves";
    ProxyLimitConnections: "proxy.limit.connections", Proxy, Some(503), Certain, Some("connection_limit_reached"),
        "as many connections are open as the limit allows",
        "raise server.limits.connections or --limits, and ulimit -n with it";
    ProxyLimitClient: "proxy.limit.client", Proxy, Some(429), Certain, Some("connection_limit_reached"),
        "as many connections of one client's address are open as the limit allows",
        "raise server.limits.per_client, or look at what that client does";
    ProxyLimitTarget: "proxy.limit.target", Proxy, Some(503), Certain, Some("connection_limit_reached"),
        "as many requests to one target are under way as the limit allows",
        "raise server.limits.per_target, or look who asks so much of it";
    ProxyLimitRate: "proxy.limit.rate", Proxy, Some(429), Certain, Some("http_request_error"),
        "one client's address began more requests in a second than the limit allows",
        "raise server.limits.rate, or let the client wait";
    ProxyLimitLookups: "proxy.limit.lookups", Proxy, Some(503), Certain, Some("proxy_internal_error"),
        "256 names were being looked up, and no room came up within the time limit",
        "the name servers are too slow for so many names: look at egress.timing.dns_ms, and ask faster ones";
    ProxyLimitUpstream: "proxy.limit.upstream", Proxy, Some(503), Certain, Some("connection_limit_reached"),
        "as many connections to the upstream are open as its limits.connections allows",
        "raise limits.connections of the upstream, or look who keeps so many tunnels open";
    ProxyResourceFd: "proxy.resource.fd", Proxy, Some(503), Certain, Some("proxy_internal_error"),
        "EMFILE or ENFILE",
        "no file descriptor is left: raise ulimit -n";
    ProxyResourcePorts: "proxy.resource.ports", Proxy, Some(503), Certain, Some("proxy_internal_error"),
        "EADDRNOTAVAIL at connect, and nothing left this host",
        "no local port is left: widen net.ipv4.ip_local_port_range";
    ProxyResourceMemory: "proxy.resource.memory", Proxy, Some(503), Certain, Some("proxy_internal_error"),
        "ENOBUFS or ENOMEM",
        "the kernel has no memory for another socket";
    ProxyCircuitOpen: "proxy.circuit_open", Proxy, Some(503), Certain, Some("destination_unavailable"),
        "the target failed as often as defaults.circuit allows: refused without a try",
        "the message names the failure that is remembered; defaults.circuit.open says for how long";
    ProxyEgressDeniedFirewall: "proxy.egress_denied.firewall", Proxy, Some(502), Certain, Some("destination_ip_unroutable"),
        "an ICMP refusal in the error queue whose sender is our own address",
        "a firewall rule of this host (OUTPUT chain) rejects the connection";
    ProxyEgressDeniedLsm: "proxy.egress_denied.lsm", Proxy, Some(502), Strong, Some("destination_ip_unroutable"),
        "EACCES or EPERM, with nothing sent and an empty error queue",
        "this host's kernel forbids the connection: look for SELinux, Landlock or cgroup rules, or a prohibit route";
    ProxyNoRoute: "proxy.no_route_to_network", Proxy, Some(502), Certain, Some("destination_ip_unroutable"),
        "the kernel said unreachable without sending anything",
        "this host, or its network namespace, has no route to that network";
    ProxyInternal: "proxy.internal", Proxy, Some(500), Certain, Some("proxy_internal_error"),
        "a panic, or an error that nothing here expects",
        "a defect in the proxy: please report it with this record";
    ProxyShutdown: "proxy.shutdown", Proxy, Some(503), Certain, Some("proxy_internal_response"),
        "the process was told to end before the request was served",
        "ask again once it runs, or ask another instance";

    DnsTimeout: "dns.timeout", Network, Some(504), Certain, Some("dns_timeout"),
        "no name server answered within the time limit",
        "no name server answered: it is down, or port 53 is filtered: ask another one by TLS or HTTP (dns.servers)";
    DnsServerUnreachable: "dns.server_unreachable", Network, Some(502), Certain, Some("dns_error"),
        "every name server's port is closed or unreachable, or none is configured",
        "no name server can be reached: look at /etc/resolv.conf, or dns.servers";
    DnsNxdomain: "dns.nxdomain", Network, Some(502), Certain, Some("dns_error"),
        "response code NXDOMAIN",
        "the name does not exist: check its spelling; an internal name needs the internal resolver";
    DnsNxdomainUnsigned: "dns.nxdomain_unsigned", Network, Some(502), Strong, Some("dns_error"),
        "NXDOMAIN without the SOA record that a sibling name's denial has",
        "the denial looks forged: compare with another resolver";
    DnsNoAddress: "dns.no_address", Network, Some(502), Certain, Some("dns_error"),
        "response code NOERROR with neither A nor AAAA record",
        "the name exists all the same: check its spelling; an internal name needs the internal resolver";
    DnsServfail: "dns.servfail", Network, Some(502), Certain, Some("dns_error"),
        "response code SERVFAIL, without an extended error that says more",
        "the name server failed: try another one";
    DnsDnssecBogus: "dns.dnssec_bogus", Network, Some(502), Certain, Some("dns_error"),
        "SERVFAIL with an extended error of DNSSEC (6 to 12)",
        "the zone's signatures do not hold: the zone is broken, or a clock is wrong";
    DnsBlockedByResolver: "dns.blocked_by_resolver", Network, Some(502), Certain, Some("dns_error"),
        "an extended error 4 or 15 to 18: forged, blocked, censored, filtered, prohibited",
        "the name server blocks this name by its own policy: ask its owner";
    DnsRefused: "dns.refused", Network, Some(502), Certain, Some("dns_error"),
        "response code REFUSED",
        "this host may not ask that name server: ask another one (dns.servers)";
    DnsServerMisbehaving: "dns.server_misbehaving", Network, Some(502), Certain, Some("dns_error"),
        "a malformed reply, or a response code that makes no sense",
        "the name server, or a device before it, is broken: ask another one (dns.servers)";
    DnsTruncatedTcpFailed: "dns.truncated_tcp_failed", Network, Some(502), Certain, Some("dns_error"),
        "a truncated answer by UDP, and the question by TCP failed",
        "TCP port 53 is filtered on the way to the name server";
    DnsBogon: "dns.bogon", Network, Some(502), Strong, Some("destination_ip_prohibited"),
        "a name server gave only addresses of no public host, and they cannot be used",
        "the name server rewrites answers: pin the name, use another one, or let an upstream resolve";
    DnsDoubleReply: "dns.double_reply", Network, Some(502), Strong, Some("dns_error"),
        "two answers with different data came for one question, and the addresses of the first failed",
        "answers are injected on the way: let an upstream resolve, or pin the name";
    DnsKnownForged: "dns.known_forged", Network, Some(502), Strong, Some("dns_error"),
        "an address of dns.bogus; or an AAAA record in 2001::/32, where no public server is, and it cannot be used",
        "the answer is forged: ask another name server (DoH), let an upstream resolve, or pin the name";
    DnsDohBlocked: "dns.doh_blocked", Network, Some(502), Certain, Some("dns_error"),
        "a name server that is asked by TLS or HTTP cannot be: no connection, another certificate, an HTTP status but 2xx",
        "it says nothing of the name: try another such server, or reach this one through an upstream (via)";

    ConnectTimeout: "connect.timeout", Network, Some(504), Certain, Some("connection_timeout"),
        "SYNs were sent and nothing came back within the time limit",
        "the address is filtered or down: try it via an upstream";
    ConnectRefused: "connect.refused", Origin, Some(502), Certain, Some("connection_refused"),
        "ECONNREFUSED by a RST: no ICMP message in the error queue, or one of the target itself",
        "nothing listens there, or a firewall answers with a reset";
    ConnectRefusedByDevice: "connect.refused_by_device", Network, Some(502), Certain, Some("connection_refused"),
        "ICMP 3/3 from an address that is not the target's",
        "the device named in the message refuses on behalf of the target: open it there or go via an upstream";
    ConnectProhibited: "connect.prohibited", Network, Some(502), Certain, Some("destination_ip_unroutable"),
        "ICMP 3/9, 3/10, 3/13 (IPv6 1/1) from a router",
        "the firewall named in the message forbids it: open it there or go via an upstream";
    ConnectReset: "connect.reset", Network, Some(502), Certain, Some("connection_terminated"),
        "ECONNRESET while the connection was opened",
        "a firewall, or an overloaded server, breaks it off: try it via an upstream";
    ConnectUnreachableNet: "connect.unreachable.net", Network, Some(502), Certain, Some("destination_ip_unroutable"),
        "ICMP 3/0 (IPv6 1/0) from a router",
        "check the address and the VPN, or go via an upstream that reaches it";
    ConnectUnreachableHost: "connect.unreachable.host", Network, Some(502), Certain, Some("destination_ip_unroutable"),
        "ICMP 3/1 (IPv6 1/3) from a router",
        "the host is off, or the address is wrong";
    ConnectUnreachableProto: "connect.unreachable.proto", Network, Some(502), Certain, Some("destination_ip_unroutable"),
        "ICMP 3/2",
        "the host does not take TCP";
    ConnectTtlExceeded: "connect.ttl_exceeded", Network, Some(502), Certain, Some("destination_ip_unroutable"),
        "ICMP 11/0 (IPv6 3/0)",
        "packets go in circles at the router named in the message";
    ConnectNeighbourDead: "connect.neighbour_dead", Network, Some(502), Certain, Some("destination_ip_unroutable"),
        "EHOSTUNREACH whose ICMP message comes from our own address: nobody answered ARP or ND",
        "the gateway, or a host on this network, does not answer: it is off, or the address is wrong";
    ConnectOvertaken: "connect.overtaken", Network, None, Certain, None,
        "another address of the name connected first (in attempts only)",
        "another address of the name answered first: this one was slower, or silent";
    ConnectAddressInvalid: "connect.address_invalid", Network, Some(502), Certain, Some("destination_ip_prohibited"),
        "EINVAL, or an address of no host",
        "the address is none to connect to";
    ConnectFamilyUnsupported: "connect.family_unsupported", Network, Some(502), Certain, Some("destination_ip_unroutable"),
        "EAFNOSUPPORT, or this host has no address of that family",
        "this host does not speak that address family";

    UpstreamAuthRequired: "upstream.auth_required", Upstream, Some(502), Certain, Some("http_request_error"),
        "407, or a SOCKS server that wants a login, and the policy has none",
        "the upstream proxy wants credentials: set auth for it in the policy";
    UpstreamAuthRejected: "upstream.auth_rejected", Upstream, Some(502), Certain, Some("http_request_error"),
        "407, or 401 to CONNECT, behind our credentials, or a SOCKS server that refuses them; they are held back for a minute then",
        "the upstream proxy refused our credentials: wrong or expired password";
    UpstreamAuthSchemeUnsupported: "upstream.auth_scheme_unsupported", Upstream, Some(502), Certain, Some("http_request_error"),
        "407 without a scheme that the policy lists and this build speaks",
        "the upstream proxy offers only authentication schemes that may not be used: add one to auth.schemes";
    UpstreamAuthUnavailable: "upstream.auth_unavailable", Upstream, Some(502), Certain, Some("http_request_error"),
        "407, and a file or program gives no credentials, or there is no Kerberos ticket",
        "our credentials for the upstream proxy cannot be had: look at the file, the program, or klist";
    UpstreamDenied: "upstream.denied", Upstream, Some(403), Certain, Some("http_request_denied"),
        "403 or 451, SOCKS reply 2, or a Proxy-Status or X-Squid-Error that says denied",
        "the upstream proxy's policy forbids it: ask its owner for the host, or route it another way";
    UpstreamPortDenied: "upstream.port_denied", Upstream, Some(403), Strong, Some("http_request_denied"),
        "403 for a port other than 443, while 443 of the same host passed lately",
        "the upstream proxy allows CONNECT to port 443 only";
    UpstreamConnectUnsupported: "upstream.connect_unsupported", Upstream, Some(502), Certain, Some("http_upgrade_failed"),
        "400, 405 or 501 to CONNECT, or SOCKS reply 7",
        "the upstream does not know CONNECT: is it a mirror or a reverse proxy?";
    UpstreamReportedDns: "upstream.reported.dns", Upstream, Some(502), Strong, Some("dns_error"),
        "the upstream's Proxy-Status or X-Squid-Error names a DNS error",
        "the upstream proxy could not resolve the target";
    UpstreamReportedNotFound: "upstream.reported.not_found", Upstream, Some(502), Strong, Some("destination_not_found"),
        "404 or 410 to CONNECT, or a Proxy-Status of destination_not_found",
        "the upstream proxy says that there is no such target";
    UpstreamReportedConnect: "upstream.reported.connect", Upstream, Some(502), Strong, Some("connection_refused"),
        "the same names a connection that failed; SOCKS replies 3 to 5",
        "the upstream proxy could not connect to the target";
    UpstreamReportedTimeout: "upstream.reported.timeout", Upstream, Some(504), Strong, Some("connection_timeout"),
        "the same names a timeout, or the status is 504; SOCKS reply 6",
        "the upstream proxy waited in vain for the target";
    UpstreamReportedTls: "upstream.reported.tls", Upstream, Some(502), Strong, Some("tls_protocol_error"),
        "the same names a TLS error",
        "the upstream proxy failed to shake hands with the target";
    UpstreamReportedUnavailable: "upstream.reported.unavailable", Upstream, Some(503), Strong, Some("destination_unavailable"),
        "the same names an unavailable target, or the status is 502 or 503",
        "the upstream proxy says that the target, or itself, is unavailable";
    UpstreamReportedOther: "upstream.reported.other", Upstream, Some(502), Strong, Some("proxy_internal_error"),
        "any other failing status or SOCKS reply",
        "the upstream proxy answered CONNECT with an error of its own";
    UpstreamRateLimited: "upstream.rate_limited", Upstream, Some(503), Certain, Some("http_request_error"),
        "429",
        "the upstream proxy limits our rate";
    UpstreamRedirected: "upstream.redirected", Upstream, Some(502), Certain, Some("http_protocol_error"),
        "3xx to a CONNECT",
        "the upstream proxy redirects: a login portal stands in front of it";
    UpstreamNoReply: "upstream.no_reply", Upstream, Some(504), Certain, Some("http_response_timeout"),
        "CONNECT was sent and no status came within the time limit",
        "the upstream proxy took the request and did not answer: its own timeouts are longer than ours";
    UpstreamClosed: "upstream.closed", Upstream, Some(502), Certain, Some("connection_terminated"),
        "the end of the connection before a status",
        "the upstream proxy closed without an answer: a TLS-only port, or our address is not allowed";
    UpstreamReset: "upstream.reset", Upstream, Some(502), Certain, Some("connection_terminated"),
        "a RST before a status",
        "the upstream proxy reset the connection: a TLS-only port, or our address is not allowed";
    UpstreamMalformedReply: "upstream.malformed_reply", Upstream, Some(502), Certain, Some("http_protocol_error"),
        "what came is no HTTP, or no SOCKS 5, or its head is over the limit",
        "the upstream does not answer in HTTP: its scheme or port is wrong";
    UpstreamLoop: "upstream.loop", Upstream, Some(508), Certain, Some("proxy_loop_detected"),
        "508",
        "the upstream proxy found a loop: it sends requests back to us";
    UpstreamPacFailed: "upstream.pac_failed", Upstream, Some(502), Certain, Some("proxy_configuration_error"),
        "the script of a PAC file cannot be fetched, throws, takes too long or too much, or names no way that is understood",
        "the message says what is wrong with the script: mend it, or route the host without it";
    UpstreamCircuitOpen: "upstream.circuit_open", Upstream, Some(503), Certain, Some("destination_unavailable"),
        "the upstream failed as often in a row as its health allows: passed over without a try",
        "the message names the last failure and says when the upstream is tried again: look at the upstream, or at its health in the policy";
    UpstreamDrained: "upstream.drained", Proxy, Some(503), Certain, Some("destination_unavailable"),
        "somebody who runs the proxy took the upstream out of use: passed over without a try",
        "enable the upstream again through the admin API";
    UpstreamAllDown: "upstream.all_down", Upstream, Some(503), Certain, Some("destination_unavailable"),
        "no member of a group that was tried could be reached, or the circuits of all are open",
        "the message names what each member failed of: mend one of them, or add one that works";

    TlsClientSilent: "tls.client_silent", Client, None, Certain, None,
        "neither side sent a byte behind the 200 until the end",
        "the client hangs, or waits for a greeting (ssh, smtp) that does not come";
    TlsClientHelloIncomplete: "tls.client_hello_incomplete", Client, None, Certain, None,
        "the client stopped in the middle of its ClientHello",
        "the client broke off: look at its side";
    TlsResetBeforeClientHello: "tls.reset_before_client_hello", Unknown, Some(502), Certain, Some("connection_terminated"),
        "RST or FIN from the server's side within 3 s, before a byte of the client went out",
        "the address or port is reset at once: a block by port, or an overloaded balancer";
    TlsResetAfterClientHello: "tls.reset_after_client_hello", Unknown, Some(502), Certain, Some("connection_terminated"),
        "RST behind a whole ClientHello, and no byte of the server",
        "where nobody acknowledged the ClientHello, or the reset outran the path, something on the way filters by name: route it via an upstream; else the server itself refuses";
    TlsClosedAfterClientHello: "tls.closed_after_client_hello", Unknown, Some(502), Certain, Some("connection_terminated"),
        "FIN behind a whole ClientHello, and no byte of the server",
        "the server, or a device, refuses this name without an alert";
    TlsClientHelloBlackholed: "tls.client_hello_blackholed", Network, Some(504), Certain, Some("connection_write_timeout"),
        "the ClientHello was sent again and again and nobody acknowledged it",
        "something on the way drops it: it filters by content, or the ClientHello is too big for the path";
    TlsNoServerHello: "tls.no_server_hello", Unknown, Some(504), Certain, Some("connection_read_timeout"),
        "the ClientHello was acknowledged and no answer came",
        "the server is busy, its reply is dropped, or the way back loses big packets";
    TlsServerFlightStalled: "tls.server_flight_stalled", Unknown, Some(504), Certain, Some("connection_read_timeout"),
        "the server's handshake began to arrive and stopped",
        "the path loses big packets (path MTU): lower the MTU here, or clamp the MSS on a router of the way";
    TlsResetDuringServerFlight: "tls.reset_during_server_flight", Unknown, Some(502), Certain, Some("connection_terminated"),
        "RST, or FIN between two TLS records, after the server's first byte and before the client's next flight; in a handshake of our own, RST or FIN until its end",
        "a filter by certificate (TLS 1.2), or the server crashed";
    TlsEncryptedAlertFromServer: "tls.encrypted_alert_from_server", Origin, Some(502), Strong, Some("tls_alert_received"),
        "TLS 1.3: within 3 s of the client's last bytes a record of an alert's length from the server, then its end, before any data",
        "often the server demands a client certificate";
    TlsNotTlsReply: "tls.not_tls_reply", Unknown, Some(502), Certain, Some("tls_protocol_error"),
        "the server's first byte is of no TLS record; in a handshake of our own also what breaks the protocol further on",
        "plain HTTP on that port, a block page, or a captive portal: the message quotes it";
    TlsClientRejectedInferred: "tls.client_rejected_certificate.inferred", Client, None, Strong, Some("tls_certificate_error"),
        "TLS 1.3: the client's first record behind the server's handshake has an alert's length",
        "the client does not trust the certificate: install the CA in the client; if it fails only via one route, that route intercepts TLS";
    TlsClientClosedAfterServerFlight: "tls.client_closed_after_server_flight", Client, None, Strong, Some("connection_terminated"),
        "the client ended without a word behind the server's whole handshake",
        "probably it does not trust the certificate: install the CA in the client";
    TlsClientClosedBeforeRequest: "tls.client_closed_before_request", Client, None, Weak, None,
        "the client finished the handshake and ended without sending data",
        "it looks at the certificate last and may not trust it (git, Node), a check of name or pin failed, or it was a probe";
    TlsCertSelfSigned: "tls.cert.self_signed", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate is signed by its own key, and not trusted here",
        "install the certificate as a CA where it is meant";
    TlsCertUnknownIssuer: "tls.cert.unknown_issuer", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the chain ends at an issuer that is not trusted here",
        "a private or an intercepting CA: the message names it; install it where it is meant";
    TlsCertIncompleteChain: "tls.cert.incomplete_chain", Origin, Some(502), Strong, Some("tls_certificate_error"),
        "the server sent its certificate alone, and its issuer is an intermediate seen elsewhere",
        "the server does not send its intermediate certificate: its owner must add it";
    TlsCertExpired: "tls.cert.expired", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate's last day is past",
        "the owner must renew it; where many hosts fail so, look at the clock";
    TlsCertNotYetValid: "tls.cert.not_yet_valid", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate's first day is still to come",
        "look at the clock of this host first";
    TlsCertNameMismatch: "tls.cert.name_mismatch", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate does not name the host that was asked for",
        "a wrong address (DNS?), a wrong name, or a block page's host";
    TlsCertRevoked: "tls.cert.revoked", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate is revoked",
        "its owner must replace it";
    TlsCertWrongPurpose: "tls.cert.wrong_purpose", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate is not for servers",
        "its owner must replace it";
    TlsCertCaAsLeaf: "tls.cert.ca_as_leaf", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the server's own certificate is a CA's",
        "made by openssl req -x509: make one without CA:TRUE";
    TlsCertWeak: "tls.cert.weak", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate is signed by an algorithm that is refused today",
        "its owner must replace it";
    TlsCertMalformed: "tls.cert.malformed", Origin, Some(502), Certain, Some("tls_certificate_error"),
        "the certificate cannot be read, or its signature does not hold",
        "its owner must replace it; a device may have changed it";
    TlsCertKnownInterceptor: "tls.cert.known_interceptor", Network, Some(502), Strong, Some("tls_certificate_error"),
        "the issuer's name is that of a product that opens TLS",
        "corporate inspection: install its root in clients, or exempt this host there";
    TlsVersionMismatch: "tls.version_mismatch", Origin, Some(502), Certain, Some("tls_protocol_error"),
        "no TLS version that both sides speak",
        "the server is too old, or too new, for TLS 1.2 and 1.3";
    TlsCipherMismatch: "tls.cipher_mismatch", Origin, Some(502), Certain, Some("tls_protocol_error"),
        "no cipher suite or group that both sides speak",
        "the server's settings are too old or too narrow";
    TlsAlpnRefused: "tls.alpn_refused", Origin, Some(502), Certain, Some("tls_protocol_error"),
        "the server speaks none of the protocols that were offered",
        "the port is for another protocol";
    TlsDowngradeSentinel: "tls.downgrade_sentinel", Unknown, Some(502), Certain, Some("tls_protocol_error"),
        "a ServerHello below TLS 1.3 that carries the mark of a server that can 1.3, to a client that offered it",
        "something on the path strips TLS 1.3";
    TlsEchRejected: "tls.ech_rejected", Origin, Some(502), Certain, Some("tls_alert_received"),
        "alert 121 (ech_required)",
        "the ECH keys in DNS are out of date";
    TlsHandshakeTimeout: "tls.handshake_timeout", Unknown, Some(504), Certain, Some("connection_read_timeout"),
        "the handshake stood still until a limit, in a state that no other id names",
        "the record's egress.tls.state tells how far it came";

    HttpResponseTimeout: "http.response_timeout", Origin, Some(504), Certain, Some("http_response_timeout"),
        "the request was sent and no answer came within the time limit",
        "the origin is slow, or hangs: look there, or raise timeouts.first_byte for this rule";
    HttpEmptyReply: "http.empty_reply", Origin, Some(502), Certain, Some("http_response_incomplete"),
        "the end of a fresh connection before the first byte of an answer",
        "the origin, or a balancer in front of it, gave the request up: look at its log";
    HttpResetBeforeResponse: "http.reset_before_response", Origin, Some(502), Certain, Some("connection_terminated"),
        "a RST before an answer",
        "the origin, or a device in front of it, refuses the request: if it depends on the URL, something filters by it";
    HttpResetInBody: "http.reset_in_body", Origin, None, Certain, Some("connection_terminated"),
        "a RST in the middle of an answer",
        "what arrived is not whole: ask again; if it always breaks off at the same place, something on the way filters";
    HttpIncompleteBody: "http.incomplete_body", Origin, None, Certain, Some("http_response_incomplete"),
        "the connection ended before the stated length or the last chunk",
        "what arrived is not whole: ask again; if it comes back, look at the origin's log";
    HttpBodyStalled: "http.body_stalled", Origin, None, Certain, Some("connection_read_timeout"),
        "no byte of an answer's body for the time limit",
        "the origin hangs, or the path broke: where it may pause so long, raise timeouts.body_idle for this rule";
    HttpMalformed: "http.malformed", Origin, Some(502), Certain, Some("http_protocol_error"),
        "the answer cannot be read as HTTP, or may not be passed on",
        "something else is spoken there: look at scheme and port of the URL";
    HttpHeaderTooLarge: "http.header_too_large", Origin, Some(502), Certain, Some("http_response_header_section_size"),
        "the head of the answer is over the limit",
        "the origin sends too many fields, or too long ones, such as cookies: it must send less";
    HttpCaptivePortal: "http.captive_portal", Network, Some(511), Certain, Some("http_protocol_error"),
        "511 (network authentication required)",
        "log in to the network first";
    HttpReusedConnectionClosed: "http.reused_connection_closed", Origin, Some(502), Certain, Some("connection_terminated"),
        "a kept connection ended before the first byte of an answer",
        "a kept connection was closed by its server: the request was sent again";

    TunnelResetByServer: "tunnel.reset_by_server", Origin, None, Certain, Some("connection_terminated"),
        "a RST from the server's side in an open tunnel",
        "the server, or a device in front of it, broke off: look at its log, and whether it depends on the route";
    TunnelResetAfterIdle: "tunnel.reset_after_idle", Unknown, None, Strong, Some("connection_terminated"),
        "RST on our first bytes after 30 s or more of silence, with those bytes unacknowledged",
        "a device or the server forgot the idle connection: keepalives must come more often than egress.idle_ms";
    TunnelBlackholedAfterIdle: "tunnel.blackholed_after_idle", Network, None, Strong, Some("connection_write_timeout"),
        "ETIMEDOUT with unacknowledged bytes, after 30 s or more of silence",
        "after a silence nothing was acknowledged any more: a device forgot the connection";
    TunnelNoAck: "tunnel.no_ack", Unknown, None, Certain, Some("connection_write_timeout"),
        "unacknowledged bytes until the kernel or the idle limit gave up, without a silence before",
        "what was sent was never acknowledged: the path broke";
    TunnelPeerWindowZero: "tunnel.peer_window_zero", Origin, None, Certain, Some("connection_write_timeout"),
        "the idle limit passed while the server's receive window was closed",
        "the server does not read: it hangs, or is overloaded";
    TunnelServerSilent: "tunnel.server_silent", Unknown, None, Certain, Some("connection_read_timeout"),
        "the idle limit passed while the server owed an answer to bytes that it had acknowledged",
        "a slow application, or its reply is dropped: raise timeouts.idle for this rule";
    TunnelClientNotReading: "tunnel.client_not_reading", Client, None, Certain, None,
        "the idle limit passed while the client took none of the bytes that waited for it",
        "the client is paused, or its disk is full";
    TunnelTruncated: "tunnel.truncated", Origin, None, Certain, Some("http_response_incomplete"),
        "the server's FIN came inside a TLS record of the handshake",
        "the server, or a device, cut the connection";
    TunnelIcmp: "tunnel.icmp", Unknown, None, Certain, Some("destination_ip_unroutable"),
        "an ICMP error in an established connection",
        "the network reported the server unreachable in the middle of the tunnel";
    TunnelIdleTimeout: "tunnel.idle_timeout", Proxy, None, Certain, None,
        "the idle limit passed, and nothing says that either side was waited for",
        "no byte passed for defaults.timeouts.idle, or for a minute once one side had ended: raise timeouts.idle for this rule";
    TunnelMaxDuration: "tunnel.max_duration", Proxy, None, Certain, None,
        "the tunnel was open for as long as the policy lets it be",
        "the client must ask anew, or timeouts.max_duration be raised for this rule";
    TunnelShutdown: "tunnel.shutdown", Proxy, None, Certain, None,
        "the process ended, or its drain limit passed, while the tunnel was open",
        "ask again; server.drain_timeout says how long open tunnels may go on";
    TunnelKilled: "tunnel.killed", Proxy, None, Certain, None,
        "the tunnel was cut through the admin API",
        "who runs the proxy did it on purpose: ask there";
    TunnelPolicyChanged: "tunnel.policy_changed", Proxy, None, Certain, None,
        "a policy that took effect while the tunnel was open refuses it, and says `on_reload: close_blocked`",
        "the new policy must let it out, or say `on_reload: keep`: asked for again, it is refused with the same rule";

    CloseClientFin: "close.client_fin", Client, None, Certain, None,
        "the client's FIN came first",
        "the client ended the tunnel";
    CloseServerFin: "close.server_fin", Origin, None, Certain, None,
        "the server ended in order, and the client had all that it said",
        "the server ended the tunnel";
    CloseBoth: "close.both", Unknown, None, Certain, None,
        "both FINs came at once",
        "both sides ended the tunnel";
}
