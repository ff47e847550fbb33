//! What is judged of one attempt, by what the kernel shows of it.

use super::*;
use crate::net::connect::judge::Sender;

/// What is judged of an attempt by its error number, its ICMP message (type, code and sender), its SYNs, and whether there
/// is a route; the variant and the message.
#[track_caller]
fn check(
    address: &str,
    number: i32,
    icmp: Option<(u8, u8, &str)>,
    syns: u32,
    has_route: bool,
    expected: &str,
) {
    let address: SocketAddr = address.parse().unwrap();
    let own = ["192.0.2.2", "2001:db8::2"];
    let icmp = icmp.map(|(r#type, code, offender)| {
        let ip = offender.parse().unwrap();
        let sender = if ip == address.ip() {
            Sender::Target
        } else if own.contains(&offender) {
            Sender::Own
        } else {
            Sender::Device
        };
        let offender = ip;
        (
            Icmp {
                r#type,
                code,
                offender,
            },
            sender,
        )
    });
    let seen = Evidence {
        icmp,
        syns: Some(syns),
        at_once: syns == 0,
        has_route,
    };
    let source = io::Error::from_raw_os_error(number);
    let error = judge(address, Duration::from_secs(5), source, &seen);
    assert_eq!(error.address(), Some(address));
    assert_eq!(error.icmp(), icmp.map(|(icmp, _)| icmp));
    let mut told = error.to_string().replace(&address.to_string(), "A");
    if let Some(source) = std::error::Error::source(&error) {
        told = format!("{told}: {source}");
    }
    assert_eq!(format!("{}: {told}", name(&error)), expected);
}

const V4: &str = "198.51.100.9:443";
const V6: &str = "[2001:db8:9::9]:443";

#[test]
fn an_icmp_message_says_who_and_why() {
    for (number, message, expected) in [
        (
            libc::ECONNREFUSED,
            (3, 3, "198.51.100.9"),
            "Refused: connect to A: the host at 198.51.100.9 says that the port is closed (ICMP 3/3)",
        ),
        (
            libc::ECONNREFUSED,
            (3, 3, "10.0.1.1"),
            "RefusedByDevice: connect to A: the device at 10.0.1.1 refuses it (ICMP 3/3)",
        ),
        (
            libc::ECONNREFUSED,
            (3, 3, "192.0.2.2"),
            "DeniedByFirewall: connect to A: this host's own firewall forbids it (ICMP 3/3 from 192.0.2.2, our own address)",
        ),
        (
            libc::ENETUNREACH,
            (3, 9, "10.0.1.1"),
            "Prohibited: connect to A: the firewall at 10.0.1.1 forbids it (ICMP 3/9)",
        ),
        (
            libc::EHOSTUNREACH,
            (3, 10, "10.0.1.1"),
            "Prohibited: connect to A: the firewall at 10.0.1.1 forbids it (ICMP 3/10)",
        ),
        (
            libc::EHOSTUNREACH,
            (3, 13, "198.51.100.9"),
            "Prohibited: connect to A: the firewall at 198.51.100.9 forbids it (ICMP 3/13)",
        ),
        (
            libc::EHOSTUNREACH,
            (3, 13, "192.0.2.2"),
            "DeniedByFirewall: connect to A: this host's own firewall forbids it (ICMP 3/13 from 192.0.2.2, our own address)",
        ),
        (
            libc::ENETUNREACH,
            (3, 0, "10.0.1.1"),
            "NetUnreachable: connect to A: the router at 10.0.1.1 has no route to that network (ICMP 3/0)",
        ),
        (
            libc::EHOSTUNREACH,
            (3, 1, "10.0.1.1"),
            "HostUnreachable: connect to A: the router at 10.0.1.1 cannot reach that host (ICMP 3/1)",
        ),
        (
            libc::EHOSTUNREACH,
            (3, 1, "192.0.2.2"),
            "NeighbourDead: connect to A: the next hop does not answer ARP (ICMP 3/1 from 192.0.2.2, our own address)",
        ),
        (
            libc::ENOPROTOOPT,
            (3, 2, "10.0.1.1"),
            "ProtoUnreachable: connect to A: the device at 10.0.1.1 says that TCP is not taken (ICMP 3/2)",
        ),
        (
            libc::EHOSTUNREACH,
            (11, 0, "10.0.1.1"),
            "TtlExceeded: connect to A: the router at 10.0.1.1 found the hop limit used up (ICMP 11/0)",
        ),
    ] {
        check(V4, number, Some(message), 1, false, expected);
    }
    for (number, message, expected) in [
        (
            libc::EACCES,
            (1, 1, "2001:db8::1"),
            "Prohibited: connect to A: the firewall at 2001:db8::1 forbids it (ICMPv6 1/1)",
        ),
        (
            libc::EACCES,
            (1, 1, "2001:db8::2"),
            "DeniedByFirewall: connect to A: this host's own firewall forbids it (ICMPv6 1/1 from 2001:db8::2, our own address)",
        ),
        (
            libc::ENETUNREACH,
            (1, 0, "2001:db8::1"),
            "NetUnreachable: connect to A: the router at 2001:db8::1 has no route to that network (ICMPv6 1/0)",
        ),
        (
            libc::EHOSTUNREACH,
            (1, 3, "2001:db8::1"),
            "HostUnreachable: connect to A: the router at 2001:db8::1 cannot reach that host (ICMPv6 1/3)",
        ),
        (
            libc::EHOSTUNREACH,
            (1, 3, "2001:db8::2"),
            "NeighbourDead: connect to A: the next hop does not answer neighbour discovery (ICMPv6 1/3 from 2001:db8::2, our own address)",
        ),
        (
            libc::ECONNREFUSED,
            (1, 4, "2001:db8::1"),
            "RefusedByDevice: connect to A: the device at 2001:db8::1 refuses it (ICMPv6 1/4)",
        ),
        (
            libc::EHOSTUNREACH,
            (3, 0, "2001:db8::1"),
            "TtlExceeded: connect to A: the router at 2001:db8::1 found the hop limit used up (ICMPv6 3/0)",
        ),
    ] {
        check(V6, number, Some(message), 1, false, expected);
    }
}

#[test]
fn without_a_message_the_number_speaks_and_whether_anything_was_sent() {
    for (number, syns, has_route, expected) in [
        (
            libc::ECONNREFUSED,
            1,
            true,
            "Refused: connect to A: Connection refused (os error 111)",
        ),
        (
            libc::ECONNRESET,
            2,
            true,
            "Reset: connect to A: Connection reset by peer (os error 104)",
        ),
        (
            libc::EPIPE,
            2,
            true,
            "Reset: connect to A: Broken pipe (os error 32)",
        ),
        (
            libc::ETIMEDOUT,
            7,
            true,
            "TimedOut(7): no SYN-ACK from A in 5s (7 SYNs)",
        ),
        (
            libc::ETIMEDOUT,
            1,
            true,
            "TimedOut(1): no SYN-ACK from A in 5s (1 SYN)",
        ),
        (
            libc::ENETUNREACH,
            1,
            true,
            "NetUnreachable: connect to A: Network is unreachable (os error 101)",
        ),
        (
            libc::ENETUNREACH,
            0,
            false,
            "NoRoute: connect to A: no route from this host: Network is unreachable (os error 101)",
        ),
        (
            libc::EHOSTUNREACH,
            1,
            true,
            "HostUnreachable: connect to A: No route to host (os error 113)",
        ),
        (
            libc::EHOSTUNREACH,
            0,
            false,
            "NoRoute: connect to A: no route from this host: No route to host (os error 113)",
        ),
        (
            libc::EINVAL,
            0,
            false,
            "NoRoute: connect to A: no route from this host: Invalid argument (os error 22)",
        ),
        (
            libc::EINVAL,
            0,
            true,
            "AddressInvalid: connect to A: Invalid argument (os error 22)",
        ),
        (
            libc::ENOPROTOOPT,
            1,
            true,
            "ProtoUnreachable: connect to A: Protocol not available (os error 92)",
        ),
        (
            libc::EAFNOSUPPORT,
            0,
            false,
            "FamilyUnsupported: connect to A: Address family not supported by protocol (os error 97)",
        ),
        (
            libc::EADDRNOTAVAIL,
            0,
            false,
            "FamilyUnsupported: connect to A: Cannot assign requested address (os error 99)",
        ),
        (
            libc::EADDRNOTAVAIL,
            0,
            true,
            "NoPorts: connect to A: no local port: Cannot assign requested address (os error 99)",
        ),
        (
            libc::EACCES,
            0,
            false,
            "Denied: connect to A: this host forbids it: Permission denied (os error 13)",
        ),
        (
            libc::EPERM,
            0,
            false,
            "Denied: connect to A: this host forbids it: Operation not permitted (os error 1)",
        ),
        (
            libc::EACCES,
            1,
            true,
            "Prohibited: connect to A: Permission denied (os error 13)",
        ),
        (
            libc::EMFILE,
            0,
            false,
            "NoFds: connect to A: no file descriptor: Too many open files (os error 24)",
        ),
        (
            libc::ENFILE,
            0,
            false,
            "NoFds: connect to A: no file descriptor: Too many open files in system (os error 23)",
        ),
        (
            libc::ENOBUFS,
            0,
            false,
            "NoMemory: connect to A: no memory: No buffer space available (os error 105)",
        ),
        (
            libc::ENOMEM,
            0,
            false,
            "NoMemory: connect to A: no memory: Cannot allocate memory (os error 12)",
        ),
        (
            libc::EIO,
            1,
            true,
            "Other: connect to A: Input/output error (os error 5)",
        ),
    ] {
        for address in [V4, V6] {
            check(address, number, None, syns, has_route, expected);
        }
    }
}

#[test]
fn an_address_of_no_host_is_told_from_one_without_a_route() {
    for address in [
        "0.0.0.0:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[ff02::1]:1",
        "[fe80::1]:1",
    ] {
        let expected = "AddressInvalid: connect to A: Network is unreachable (os error 101)";
        check(address, libc::ENETUNREACH, None, 0, false, expected);
        let expected = "AddressInvalid: connect to A: Invalid argument (os error 22)";
        check(address, libc::EINVAL, None, 0, false, expected);
    }
}

#[test]
fn what_got_furthest_is_told_and_of_equals_what_says_more() {
    let address: SocketAddr = V4.parse().unwrap();
    let by = |r#type, code, sender| {
        let offender = "10.0.1.1".parse().unwrap();
        Evidence {
            icmp: Some((
                Icmp {
                    r#type,
                    code,
                    offender,
                },
                sender,
            )),
            syns: Some(1),
            ..Evidence::default()
        }
    };
    let sent = Evidence {
        syns: Some(1),
        ..Evidence::default()
    };
    let unsent = Evidence {
        syns: Some(0),
        ..Evidence::default()
    };
    // Each says more than those behind it.
    let order = [
        (libc::ECONNRESET, sent),
        (libc::ECONNREFUSED, sent),
        (libc::EMFILE, unsent),
        (libc::EHOSTUNREACH, by(3, 13, Sender::Device)),
        (libc::EHOSTUNREACH, by(11, 0, Sender::Device)),
        (libc::EHOSTUNREACH, by(3, 1, Sender::Device)),
        (libc::ENETUNREACH, by(3, 0, Sender::Device)),
        (libc::ETIMEDOUT, sent),
        (libc::EHOSTUNREACH, by(3, 1, Sender::Own)),
        (libc::EHOSTUNREACH, by(3, 13, Sender::Own)),
        (libc::EACCES, unsent),
        (libc::ENETUNREACH, unsent),
        (libc::EAFNOSUPPORT, unsent),
    ];
    let errors = order.map(|(number, seen)| {
        let source = io::Error::from_raw_os_error(number);
        judge(address, Duration::ZERO, source, &seen)
    });
    for pair in errors.windows(2) {
        let [more, less] = pair else { unreachable!() };
        assert!(more.rank() > less.rank(), "{more:?} {less:?}");
    }
}
