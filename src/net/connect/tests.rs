//! What it promises.

mod judged;

use std::pin::Pin;
use std::sync::Mutex;
use std::task::Context;

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Sleep, sleep};

use super::judge::Evidence;
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
    play_with(script, None).await
}

/// The same, where so many milliseconds after somebody asks for more there are these.
async fn play_with(script: &[(&str, Answer)], more: Option<(u64, &[(&str, Answer)])>) -> String {
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
    let (after, others) = more.unwrap_or_default();
    let begin = |address: SocketAddr| {
        let of = |(ip, _): &&(&str, Answer)| *ip == address.ip().to_string();
        Scripted::begin(script.iter().chain(others).find(of).unwrap().1)
    };
    let find = || -> Pin<Box<dyn Future<Output = Vec<Admitted>> + Send>> {
        let others = others.iter().map(|(ip, _)| ip.parse().unwrap());
        let others = admitted(others.map(|ip| SocketAddr::new(ip, 443)));
        Box::pin(async move {
            sleep(Duration::from_millis(after)).await;
            others
        })
    };
    let find: Option<More<'_>> = more.is_some().then_some(&find);
    let result = race(interleave(&addresses), &LIMITS, &note, begin, find).await;
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
async fn others_are_asked_for_once_those_at_hand_are_of_no_use() {
    let refused = No(5, libc::ECONNREFUSED);
    for (script, more, expected) in [
        // At once where all have failed, and once only.
        (
            &[("192.0.2.1", refused), ("192.0.2.2", refused)][..],
            (30, &[("192.0.2.3", Yes(10))][..]),
            "192.0.2.1 Refused 5; 192.0.2.2 Refused 5; 192.0.2.3 connected 10; ok after 50",
        ),
        (
            &[("192.0.2.1", refused)],
            (30, &[("192.0.2.3", No(9, libc::EHOSTUNREACH))]),
            "192.0.2.1 Refused 5; 192.0.2.3 HostUnreachable 9; Refused after 44",
        ),
        (
            &[("192.0.2.1", refused)],
            (30, &[]),
            "192.0.2.1 Refused 5; Refused after 35",
        ),
        // The last address is given up where there are others, else it has all the time that is left.
        (
            &[("192.0.2.1", Silence)],
            (30, &[("192.0.2.3", Yes(10))]),
            "192.0.2.1 TimedOut(4) 3030; 192.0.2.3 connected 10; ok after 3040",
        ),
        (
            &[("192.0.2.1", Yes(3020))],
            (30, &[("192.0.2.3", Yes(10))]),
            "192.0.2.1 connected after 3 3020; ok after 3020",
        ),
        (
            &[("192.0.2.1", Yes(9000))],
            (30, &[]),
            "192.0.2.1 connected after 9 9000; ok after 9000",
        ),
        // None can be tried from here, as those of a family that this host has no way for.
        (
            &[("192.0.2.1", No(0, libc::ENETUNREACH))],
            (30, &[("192.0.2.3", Yes(10))]),
            "192.0.2.1 NoRoute 0; 192.0.2.3 connected 10; ok after 40",
        ),
        (
            &[("192.0.2.1", No(0, libc::EAFNOSUPPORT))],
            (30, &[]),
            "192.0.2.1 FamilyUnsupported 0; FamilyUnsupported after 30",
        ),
        // Nothing is, where all the time is over, or this host lacks something or forbids it.
        (
            &[("192.0.2.1", No(1, libc::EMFILE))],
            (30, &[("192.0.2.3", Yes(10))]),
            "192.0.2.1 NoFds 1; NoFds after 1",
        ),
        (
            &[("192.0.2.1", No(0, libc::EACCES))],
            (30, &[("192.0.2.3", Yes(10))]),
            "192.0.2.1 Denied 0; Denied after 0",
        ),
        (
            &[("192.0.2.1", refused)],
            (60_000, &[("192.0.2.3", Yes(10))]),
            "192.0.2.1 Refused 5; Refused after 10000",
        ),
    ] {
        assert_eq!(play_with(script, Some(more)).await, expected);
    }
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
    let race = race(
        vec![address],
        &LIMITS,
        &note,
        |_| Scripted::begin(Silence),
        None,
    );
    let left = tokio::time::timeout(Duration::from_secs(2), race).await;
    assert!(left.is_err());
    assert_eq!(*seen.lock().unwrap(), [(address, 2000, true)]);
}

fn admitted(addresses: impl Iterator<Item = SocketAddr>) -> Vec<Admitted> {
    let local: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let client = Client {
        peer: local,
        local,
        listener: "test".into(),
    };
    let admit = |a| Guards::default().admit(a, &client, |_| false).unwrap();
    addresses.map(admit).collect()
}

async fn admitted_connect(
    addresses: &[SocketAddr],
    zone: Option<&str>,
    limits: &Limits,
) -> Result<Socket, ConnectError> {
    let admitted = admitted(addresses.iter().copied());
    connect(&admitted, zone, limits, &|_| (), None).await
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
