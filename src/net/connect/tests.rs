//! What it promises.

use std::pin::Pin;
use std::sync::Mutex;
use std::task::Context;

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Sleep, sleep};

use super::judge::{Evidence, Sender};
use super::*;
use crate::client::Client;
use crate::policy::guard::Guards;

const LIMITS: Limits = Limits {
    total: Duration::from_secs(10),
    per_address: Duration::from_secs(3),
    stagger: Duration::from_millis(250),
    shape: Shape {
        mss: None,
        hops: None,
    },
};

/// What an attempt of the tests does: `Err` by number after so long, at once where that is nothing; `Ok`; or silence.
#[derive(Clone, Copy)]
enum Answer {
    Yes(u64),
    No(u64, i32),
    Silence,
}
use Answer::{No, Silence, Yes};

/// An attempt of the tests: it sends a SYN each second.
struct Scripted {
    answer: Answer,
    until: Pin<Box<Sleep>>,
    started: Instant,
}

impl Scripted {
    fn begin(answer: Answer) -> Result<Self, Broken> {
        let after = match answer {
            No(0, number) => {
                let seen = Evidence {
                    at_once: true,
                    ..Evidence::default()
                };
                let source = io::Error::from_raw_os_error(number);
                return Err(Broken { source, seen });
            }
            Yes(after) | No(after, _) => Duration::from_millis(after),
            Silence => Duration::from_hours(1),
        };
        Ok(Self {
            answer,
            until: Box::pin(sleep(after)),
            started: Instant::now(),
        })
    }
}

impl Attempt for Scripted {
    type Connection = ();

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.until.as_mut().poll(cx).map(|()| match self.answer {
            No(_, number) => Err(Broken {
                source: io::Error::from_raw_os_error(number),
                seen: self.seen(),
            }),
            Yes(_) | Silence => Ok(()),
        })
    }

    fn finish(self) -> io::Result<((), u32)> {
        Ok(((), self.seen().syns.unwrap() - 1))
    }

    fn seen(&self) -> Evidence {
        let seconds = u32::try_from(self.started.elapsed().as_secs()).unwrap();
        Evidence {
            syns: Some(1 + seconds),
            ..Evidence::default()
        }
    }
}

/// Races by a script on the virtual clock; one line per attempt, then the result.
async fn play(script: &[(&str, Answer)]) -> String {
    let notes = Mutex::new(Vec::new());
    let begun = Instant::now();
    let note = |t: Try| {
        let outcome = match t.outcome {
            Outcome::Connected { retransmissions: 0 } => "connected".to_owned(),
            Outcome::Connected { retransmissions } => format!("connected after {retransmissions}"),
            Outcome::Failed(error) => name(&error),
            Outcome::Abandoned => "abandoned".to_owned(),
            Outcome::Overtaken => "overtaken".to_owned(),
        };
        let line = format!("{} {outcome} {}", t.address.ip(), t.took.as_millis());
        notes.lock().unwrap().push(line);
    };
    let addresses: Vec<SocketAddr> = script
        .iter()
        .map(|(ip, _)| SocketAddr::new(ip.parse().unwrap(), 443))
        .collect();
    let begin = |address: SocketAddr| {
        let of = |(ip, _): &&(&str, Answer)| *ip == address.ip().to_string();
        Scripted::begin(script.iter().find(of).unwrap().1)
    };
    let result = race(interleave(&addresses), &LIMITS, &note, begin).await;
    let mut lines = notes.into_inner().unwrap();
    lines.push(format!(
        "{} after {}",
        result.map_or_else(|error| name(&error), |()| "ok".to_owned()),
        begun.elapsed().as_millis()
    ));
    lines.join("; ")
}

/// The variant's name, with the count of SYNs.
fn name(error: &ConnectError) -> String {
    let text = format!("{error:?}");
    let name = text.split([' ', '{']).next().unwrap();
    if let ConnectError::TimedOut {
        syns: Some(syns), ..
    } = error
    {
        format!("{name}({syns})")
    } else {
        name.to_owned()
    }
}

#[test]
fn families_take_turns_and_the_first_leads() {
    let order = |ips: &[&str]| {
        let list: Vec<_> = ips
            .iter()
            .map(|ip| SocketAddr::new(ip.parse().unwrap(), 1))
            .collect();
        let order = interleave(&list);
        order.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        order(&["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"]),
        ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"]
    );
    assert_eq!(
        order(&["1.1.1.1", "2.2.2.2", "::1"]),
        ["1.1.1.1", "::1", "2.2.2.2"]
    );
    assert_eq!(order(&["1.1.1.1"; 99]).len(), MAX_ADDRESSES);
    assert!(order(&[]).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_next_address_joins_in_after_the_stagger() {
    assert_eq!(
        play(&[("::1", Silence), ("::2", Silence), ("1.1.1.1", Yes(100))]).await,
        "::1 overtaken 350; 1.1.1.1 connected 100; ok after 350"
    );
    assert_eq!(
        play(&[("::1", Yes(400)), ("1.1.1.1", Yes(200))]).await,
        "1.1.1.1 overtaken 150; ::1 connected 400; ok after 400"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_starts_the_next_address_at_once() {
    assert_eq!(
        play(&[("::1", No(0, libc::ENETUNREACH)), ("1.1.1.1", Yes(20))]).await,
        "::1 NoRoute 0; 1.1.1.1 connected 20; ok after 20"
    );
    assert_eq!(
        play(&[
            ("::1", No(50, libc::ECONNREFUSED)),
            ("1.1.1.1", No(30, libc::EHOSTUNREACH)),
        ])
        .await,
        "::1 Refused 50; 1.1.1.1 HostUnreachable 30; Refused after 80"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_address_is_given_up_while_others_remain() {
    assert_eq!(
        play(&[("::1", Silence), ("1.1.1.1", Yes(4000))]).await,
        "::1 TimedOut(4) 3000; 1.1.1.1 connected after 4 4000; ok after 4250"
    );
    assert_eq!(
        play(&[("::1", Silence)]).await,
        "::1 TimedOut(11) 10000; TimedOut(11) after 10000"
    );
    assert_eq!(
        play(&[("::1", Silence), ("1.1.1.1", Silence)]).await,
        "::1 TimedOut(4) 3000; 1.1.1.1 TimedOut(10) 9750; TimedOut(4) after 10000"
    );
}

#[tokio::test(start_paused = true)]
async fn the_failure_that_got_furthest_is_reported() {
    for (a, b, expected) in [
        (Silence, No(9, libc::ECONNREFUSED), "Refused"),
        (Silence, No(9, libc::EHOSTUNREACH), "HostUnreachable"),
        (Silence, No(0, libc::ENETUNREACH), "TimedOut"),
        (
            No(0, libc::ENETUNREACH),
            No(9, libc::ENOPROTOOPT),
            "ProtoUnreachable",
        ),
        (
            No(0, libc::EAFNOSUPPORT),
            No(0, libc::ENETUNREACH),
            "NoRoute",
        ),
        (No(0, libc::EMFILE), Silence, "NoFds"),
    ] {
        let told = play(&[("::1", a), ("1.1.1.1", b)]).await;
        let last = told.rsplit("; ").next().unwrap();
        assert!(last.starts_with(expected), "{told}");
    }
    assert_eq!(play(&[]).await, "NoAddresses after 0");
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_is_told_when_the_caller_leaves() {
    let seen = Mutex::new(Vec::new());
    let note = |t: Try| {
        let abandoned = matches!(t.outcome, Outcome::Abandoned);
        seen.lock()
            .unwrap()
            .push((t.address, t.took.as_millis(), abandoned));
    };
    let address: SocketAddr = "192.0.2.1:443".parse().unwrap();
    let race = race(vec![address], &LIMITS, &note, |_| Scripted::begin(Silence));
    let left = tokio::time::timeout(Duration::from_secs(2), race).await;
    assert!(left.is_err());
    assert_eq!(*seen.lock().unwrap(), [(address, 2000, true)]);
}

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

async fn admitted_connect(
    addresses: &[SocketAddr],
    zone: Option<&str>,
    limits: &Limits,
) -> Result<Socket, ConnectError> {
    let local: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let client = Client {
        peer: local,
        local,
        listener: "test".into(),
    };
    let admit = |a: &SocketAddr| Guards::default().admit(*a, &client).unwrap();
    let admitted: Vec<_> = addresses.iter().map(admit).collect();
    connect(&admitted, zone, limits, &|_| ()).await
}

/// An address where nothing listens, and nobody else will while the socket is held.
fn closed_port() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

#[tokio::test]
async fn a_closed_port_refuses_and_the_next_address_serves() {
    let (closed, _held) = closed_port();
    let error = admitted_connect(&[closed], None, &LIMITS)
        .await
        .unwrap_err();
    assert!(matches!(&error, ConnectError::Refused { address, .. } if *address == closed));
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("refused"), "{source}");

    let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = (open.local_addr().unwrap(), open);
    let v6 = SocketAddr::new("::1".parse().unwrap(), closed.port());
    let socket = admitted_connect(&[v6, closed, open.0], Some("1"), &LIMITS).await;
    assert_eq!(socket.unwrap().peer(), open.0);
}

#[tokio::test]
async fn a_full_backlog_is_silence() {
    let listener = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM.nonblocking(),
        None,
    )
    .unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let limits = Limits {
        total: Duration::from_millis(200),
        ..LIMITS
    };
    let mut held = Vec::new();
    let error = loop {
        match admitted_connect(&[address], None, &limits).await {
            Ok(socket) => held.push(socket),
            Err(error) => break error,
        }
        assert!(held.len() < 10);
    };
    assert!(
        matches!(error, ConnectError::TimedOut { syns: Some(1), .. }),
        "{error:?}"
    );
}

#[test]
fn a_zone_is_an_index_or_an_interface() {
    let v6: SocketAddr = "[fe80::1]:1".parse().unwrap();
    let scope = |zone| match scoped(v6, Some(zone)) {
        Ok(SocketAddr::V6(v6)) => Some(v6.scope_id()),
        Ok(SocketAddr::V4(_)) | Err(_) => None,
    };
    assert_eq!(scope("7"), Some(7));
    assert_eq!(scope("lo"), Some(1));
    assert_eq!(scope("no-such-one"), None);
    assert_eq!(scope("../x"), None);
    let v4: SocketAddr = "192.0.2.1:1".parse().unwrap();
    assert_eq!(scoped(v4, Some("lo")).unwrap(), v4);
}
