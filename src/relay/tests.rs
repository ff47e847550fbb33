//! What a relay promises, over pipes and paused time, and over real sockets where a reset is needed.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::net::pipe::Pipe;
use crate::net::socket::Socket;
use crate::net::socket::tests::pair;

/// A relay that nobody watches.
async fn carry<A, B>(near: &mut A, far: &mut B, early: Early, meter: &Meter) -> End
where
    A: Stream,
    B: Stream,
{
    relay(near, far, early, &LIMITS, meter, &mut Nobody).await
}

impl Stream for DuplexStream {
    fn socket(&self) -> Option<&Socket> {
        None
    }
}

/// Looks at nothing.
struct Nobody;

impl Watch for Nobody {
    fn is_satisfied(&self) -> bool {
        true
    }
    fn client(&mut self, _: &[u8], _: Instant) {}
    fn server(&mut self, _: &[u8], _: Instant) {}
    fn event(&mut self, _: &Reason, _: Instant) {}
    fn is_final(&self, _: &Reason) -> bool {
        false
    }
}

const LIMITS: Limits = Limits {
    idle: Duration::from_mins(5),
    half_closed_idle: Duration::from_mins(1),
    max_duration: Some(Duration::from_hours(8)),
};

/// Ends a test that hangs: longer than any wait of the tests, in paused time, and short in real time.
async fn in_time<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    timeout(limit, test).await.expect("the test hangs")
}

const PAUSED: Duration = Duration::from_hours(10);
const REAL: Duration = Duration::from_secs(10);

/// The far ends of a relay: the client's and the server's.
struct Ends {
    client: DuplexStream,
    server: DuplexStream,
}

/// A relay between two pipes, ready to run.
fn pipes(capacity: usize) -> (Ends, impl Future<Output = (End, Meter)>) {
    let (client, mut near) = duplex(capacity);
    let (server, mut far) = duplex(capacity);
    let running = async move {
        let meter = Meter::new();
        let end = carry(&mut near, &mut far, Early::default(), &meter).await;
        (end, meter)
    };
    (Ends { client, server }, running)
}

async fn read_all(stream: &mut DuplexStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(start_paused = true)]
async fn each_direction_ends_by_itself() {
    let (mut ends, running) = pipes(64);
    let talk = async {
        ends.client.write_all(b"request").await.unwrap();
        ends.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut ends.server).await, "request");
        sleep(Duration::from_secs(50)).await;
        ends.server.write_all(b"answer").await.unwrap();
        drop(ends.server);
        assert_eq!(read_all(&mut ends.client).await, "answer");
    };
    let ((end, meter), ()) = in_time(PAUSED, async { tokio::join!(running, talk) }).await;
    assert!(matches!(end.reason, Reason::ClientFin), "{end:?}");
    assert_eq!((end.client, end.server), (Close::Fin, Close::Fin));
    assert_eq!((meter.up(), meter.down()), (7, 6));
}

#[tokio::test(start_paused = true)]
async fn early_bytes_come_first() {
    let (mut client, mut near) = duplex(16);
    let (mut server, mut far) = duplex(16);
    let early = Early {
        from_client: Bytes::from_static(b"hello "),
        from_server: Bytes::from_static(b"220 mail "),
        ..Early::default()
    };
    let meter = Meter::new();
    let talk = async {
        let up = async {
            client.write_all(b"there").await.unwrap();
            client.shutdown().await.unwrap();
            read_all(&mut client).await
        };
        let down = async {
            server.write_all(b"ready").await.unwrap();
            server.shutdown().await.unwrap();
            read_all(&mut server).await
        };
        tokio::join!(up, down)
    };
    let (end, heard) = in_time(PAUSED, async {
        tokio::join!(carry(&mut near, &mut far, early, &meter), talk)
    })
    .await;
    assert_eq!(
        heard,
        ("220 mail ready".to_owned(), "hello there".to_owned())
    );
    assert_eq!((meter.up(), meter.down()), (11, 14));
    assert!(matches!(
        end.reason,
        Reason::ClientFin | Reason::ServerFin | Reason::BothFin
    ));
}

#[tokio::test(start_paused = true)]
async fn silence_for_the_idle_limit_ends_a_relay() {
    let started = Instant::now();
    let (mut ends, running) = pipes(64);
    let talk = async {
        sleep(Duration::from_secs(299)).await;
        ends.client.write_all(b"still here").await.unwrap();
        ends
    };
    let ((end, meter), _open) = in_time(PAUSED, async { tokio::join!(running, talk) }).await;
    assert!(
        matches!(end.reason, Reason::Idle { after } if after == LIMITS.idle),
        "{end:?}"
    );
    assert_eq!(started.elapsed().as_secs(), 299 + 300);
    assert_eq!((end.client, end.server), (Close::Local, Close::Local));
    assert_eq!(end.idle, LIMITS.idle);
    assert_eq!(meter.up(), 10);
}

#[tokio::test(start_paused = true)]
async fn silence_from_before_counts() {
    let since = Instant::now();
    sleep(Duration::from_mins(4)).await;
    let (_client, mut near) = duplex(64);
    let (_server, mut far) = duplex(64);
    let early = Early {
        sent: Some(since),
        silent_since: Some(since),
        ..Early::default()
    };
    let meter = Meter::new();
    let end = in_time(PAUSED, carry(&mut near, &mut far, early, &meter)).await;
    assert_eq!(since.elapsed(), LIMITS.idle);
    assert_eq!(end.idle, LIMITS.idle);
    assert!(end.waiting.server_to_answer);
}

#[tokio::test(start_paused = true)]
async fn either_direction_keeps_the_other_alive() {
    let (mut ends, running) = pipes(64);
    let talk = async {
        for _ in 0..10 {
            sleep(Duration::from_secs(290)).await;
            ends.server.write_all(b"x").await.unwrap();
        }
        drop(ends.server);
        assert_eq!(read_all(&mut ends.client).await, "xxxxxxxxxx");
        drop(ends.client);
    };
    let ((end, _), ()) = in_time(PAUSED, async { tokio::join!(running, talk) }).await;
    assert!(matches!(end.reason, Reason::ServerFin), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silence_that_the_server_spoke_after_is_survived() {
    let (mut ends, running) = pipes(64);
    let talk = async {
        let mut word = [0];
        sleep(Duration::from_secs(40)).await;
        ends.client.write_all(b"?").await.unwrap();
        ends.server.read_exact(&mut word).await.unwrap();
        ends.server.write_all(b"!").await.unwrap();
        ends.client.read_exact(&mut word).await.unwrap();
        sleep(Duration::from_secs(90)).await;
        ends.server.write_all(b"!").await.unwrap();
        ends.client.read_exact(&mut word).await.unwrap();
        // Nobody answers this one.
        sleep(Duration::from_secs(200)).await;
        ends.client.write_all(b"?").await.unwrap();
        ends.server.read_exact(&mut word).await.unwrap();
        drop(ends);
    };
    let ((end, _), ()) = in_time(PAUSED, async { tokio::join!(running, talk) }).await;
    assert_eq!(end.idle_survived, Duration::from_secs(90));
    assert_eq!(end.idle_before, Duration::from_secs(200));
}

#[tokio::test(start_paused = true)]
async fn a_silence_while_the_client_does_not_read_is_none_of_the_server() {
    let (mut ends, running) = pipes(64);
    let talk = async {
        let mut word = [0];
        sleep(Duration::from_secs(20)).await;
        // One pipe is filled, and a part of it waits behind that.
        ends.server.write_all(&[1; 64]).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        ends.server.write_all(&[2; 32]).await.unwrap();
        sleep(Duration::from_secs(200)).await;
        // What the client asks meanwhile ends no silence of the server either.
        ends.client.write_all(b"?").await.unwrap();
        ends.server.read_exact(&mut word).await.unwrap();
        let mut taken = [0; 96];
        ends.client.read_exact(&mut taken).await.unwrap();
        // From here on both are heard.
        sleep(Duration::from_secs(30)).await;
        ends.server.write_all(b"!").await.unwrap();
        ends.client.read_exact(&mut word).await.unwrap();
        drop(ends);
    };
    let ((end, meter), ()) = in_time(PAUSED, async { tokio::join!(running, talk) }).await;
    assert_eq!(end.idle_survived, Duration::from_secs(30));
    assert_eq!(meter.down(), 97);
}

#[tokio::test(start_paused = true)]
async fn a_busy_relay_ends_at_its_longest_duration() {
    let started = Instant::now();
    let (mut ends, running) = pipes(64);
    let talk = async {
        let mut word = [0];
        while ends.client.write_all(b"x").await.is_ok() {
            ends.server.read_exact(&mut word).await.unwrap();
            sleep(Duration::from_mins(4)).await;
        }
    };
    let talk = timeout(Duration::from_hours(9), talk);
    let ((end, meter), talked) = in_time(PAUSED, async { tokio::join!(running, talk) }).await;
    assert!(talked.is_ok(), "it goes on");
    let limit = LIMITS.max_duration.unwrap();
    assert!(
        matches!(end.reason, Reason::Expired { after } if after == limit),
        "{end:?}"
    );
    assert_eq!(end.idle, Duration::from_mins(4));
    assert_eq!((end.client, end.server), (Close::Local, Close::Local));
    // One each four minutes, the first at once and the last when it is over.
    assert_eq!(meter.up(), 8 * 60 / 4);
    assert!(started.elapsed() < limit + Duration::from_mins(8));
}

#[tokio::test(start_paused = true)]
async fn after_one_fin_the_limit_is_the_shorter_one() {
    let started = Instant::now();
    let (mut ends, running) = pipes(64);
    let talk = async {
        sleep(Duration::from_secs(10)).await;
        ends.client.shutdown().await.unwrap();
        ends
    };
    let ((end, _), _open) = in_time(PAUSED, async { tokio::join!(running, talk) }).await;
    assert!(
        matches!(end.reason, Reason::Idle { after } if after == LIMITS.half_closed_idle),
        "{end:?}"
    );
    assert_eq!(started.elapsed().as_secs(), 10 + 60);
    assert_eq!((end.client, end.server), (Close::Fin, Close::Local));
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_read_holds_the_other_back() {
    let (mut ends, running) = pipes(1024);
    let mut written = 0;
    let talk = async {
        loop {
            tokio::select! {
                biased;
                count = ends.server.write(&[7; 512]) => written += count.unwrap(),
                () = sleep(Duration::from_secs(1)) => break,
            }
        }
        // Two pipes and one chunk in between: nothing more is taken in.
        assert!(written <= 2 * 1024 + way::CHUNK, "{written}");
        drop(ends.server);
        let mut all = Vec::new();
        ends.client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), written);
        drop(ends.client);
    };
    in_time(PAUSED, async { tokio::join!(running, talk) }).await;
}

/// Two ends of a connection over loopback.
async fn connection() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a peer of the test's own")]
    let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
    (far.unwrap(), Socket::new(near.unwrap().0).unwrap())
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

#[tokio::test]
async fn who_reset_the_tunnel_is_told() {
    for is_client in [true, false] {
        let (client, mut near) = connection().await;
        let (server, mut far) = connection().await;
        let meter = Meter::new();
        let talk = async {
            let (gone, left) = if is_client {
                (client, server)
            } else {
                (server, client)
            };
            reset(gone);
            left
        };
        let (end, _) = in_time(REAL, async {
            tokio::join!(carry(&mut near, &mut far, Early::default(), &meter), talk)
        })
        .await;
        let told = (
            matches!(end.reason, Reason::ClientReset(_)),
            matches!(end.reason, Reason::ServerReset(_)),
        );
        assert_eq!(told, (is_client, !is_client), "{end:?}");
    }
}

#[tokio::test]
async fn what_a_server_said_before_its_reset_still_arrives() {
    let (mut client, mut near) = connection().await;
    let (mut server, mut far) = connection().await;
    let meter = Meter::new();
    let talk = async {
        server.write_all(b"alert").await.unwrap();
        let mut heard = [0; 5];
        client.read_exact(&mut heard).await.unwrap();
        reset(server);
        heard
    };
    let (end, heard) = in_time(REAL, async {
        tokio::join!(carry(&mut near, &mut far, Early::default(), &meter), talk)
    })
    .await;
    assert_eq!(&heard, b"alert");
    assert!(matches!(end.reason, Reason::ServerReset(_)), "{end:?}");
    assert_eq!((end.server, meter.down()), (Close::Rst, 5));
}

/// Counts what it is told, and wants to be told all or nothing.
struct Count {
    is_satisfied: bool,
    seen: usize,
}

impl Watch for Count {
    fn is_satisfied(&self) -> bool {
        self.is_satisfied
    }
    fn client(&mut self, bytes: &[u8], _: Instant) {
        self.seen += bytes.len();
    }
    fn server(&mut self, bytes: &[u8], _: Instant) {
        self.seen += bytes.len();
    }
    fn event(&mut self, _: &Reason, _: Instant) {}
    fn is_final(&self, _: &Reason) -> bool {
        false
    }
}

const SIZE: usize = 4 << 20;

/// Carries [`SIZE`] bytes each way at once; how many the watch was told.
async fn carry_megabytes(is_satisfied: bool) -> usize {
    let (client, mut near) = connection().await;
    let (server, mut far) = connection().await;
    let meter = Meter::new();
    let mut count = Count {
        is_satisfied,
        seen: 0,
    };
    let side = async |stream: TcpStream, seed: u8| {
        let sent: Vec<u8> = (0..SIZE)
            .map(|at| u8::try_from(at % 251).unwrap().wrapping_add(seed))
            .collect();
        let (mut read, mut write) = stream.into_split();
        let mut heard = Vec::new();
        let (wrote, _) = tokio::join!(
            async {
                write.write_all(&sent).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut heard)
        );
        wrote.unwrap();
        (sent, heard)
    };
    let early = Early::default();
    let (end, (from_client, to_client), (from_server, to_server)) = in_time(REAL, async {
        tokio::join!(
            relay(&mut near, &mut far, early, &LIMITS, &meter, &mut count),
            side(client, 1),
            side(server, 2)
        )
    })
    .await;
    assert!(from_client == to_server && from_server == to_client);
    assert_eq!((meter.up(), meter.down()), (SIZE as u64, SIZE as u64));
    assert_eq!((end.client, end.server), (Close::Fin, Close::Fin));
    count.seen
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once_unharmed() {
    assert_eq!(carry_megabytes(false).await, 2 * SIZE);
    assert!(carry_megabytes(true).await < SIZE, "nothing was spliced");
    // Where no pipe is left they are copied. Not a test of its own: the pipes are the whole process's.
    let _all: Vec<_> = std::iter::from_fn(Pipe::borrow).collect();
    carry_megabytes(true).await;
}

/// A tunnel through which the server pours until `stop` of its bytes have come to the client.
async fn pour(stop: usize, idle: Duration) -> (TcpStream, TcpStream, JoinSet<(End, Meter)>) {
    let (mut client, mut near) = connection().await;
    let (mut server, mut far) = connection().await;
    let limits = Limits { idle, ..LIMITS };
    let mut running = JoinSet::new();
    running.spawn(async move {
        let meter = Meter::new();
        let early = Early::default();
        let end = relay(&mut near, &mut far, early, &limits, &meter, &mut Nobody).await;
        (end, meter)
    });
    let mut heard = vec![0; stop];
    let pouring = async {
        loop {
            server.write_all(&[7; 16 << 10]).await.unwrap();
        }
    };
    tokio::select! {
        read = client.read_exact(&mut heard) => drop(read.unwrap()),
        () = pouring => {}
    }
    (client, server, running)
}

#[tokio::test]
async fn a_client_that_stops_reading_bulk_is_what_is_waited_for() {
    let (client, mut server, mut running) = pour(SIZE, Duration::from_secs(1)).await;
    let stuck = timeout(Duration::from_millis(500), async {
        loop {
            server.write_all(&[7; 16 << 10]).await.unwrap();
        }
    });
    assert!(stuck.await.is_err());
    let (end, meter) = in_time(REAL, running.join_next()).await.unwrap().unwrap();
    assert!(matches!(end.reason, Reason::Idle { .. }), "{end:?}");
    assert!(end.waiting.client_to_read && !end.waiting.server_to_answer);
    assert!(meter.down() >= SIZE as u64);
    drop(client);
}

#[tokio::test]
async fn who_reset_bulk_is_told() {
    for is_client in [true, false] {
        let (mut client, server, mut running) = pour(SIZE, LIMITS.idle).await;
        let other = if is_client {
            reset(client);
            server
        } else {
            reset(server);
            let mut rest = Vec::new();
            // What came before the reset, which the relay's owner would pass on.
            drop(timeout(Duration::from_millis(200), client.read_to_end(&mut rest)).await);
            client
        };
        let (end, _) = in_time(REAL, running.join_next()).await.unwrap().unwrap();
        let told = (
            matches!(end.reason, Reason::ClientReset(_)),
            matches!(end.reason, Reason::ServerReset(_)),
        );
        assert_eq!(told, (is_client, !is_client), "{end:?}");
        drop(other);
    }
}

#[tokio::test]
async fn a_tunnel_that_rests_has_no_pipe() {
    let (mut client, server, mut running) = pour(SIZE, LIMITS.idle).await;
    let mut rest = vec![0; 64 << 10];
    in_time(REAL, async {
        // Other tests may have some.
        while Pipe::lent() > 0 {
            let read = timeout(Duration::from_millis(20), client.read(&mut rest)).await;
            assert!(!matches!(read, Ok(Ok(0) | Err(_))));
        }
    })
    .await;
    assert!(running.try_join_next().is_none());
    drop((client, server));
}

#[tokio::test]
async fn a_dropped_relay_leaves_its_counts() {
    let (mut client, mut near) = duplex(64);
    let (mut server, mut far) = duplex(64);
    let meter = Meter::new();
    let run = carry(&mut near, &mut far, Early::default(), &meter);
    let talk = async {
        client.write_all(b"abc").await.unwrap();
        let mut heard = [0; 3];
        server.read_exact(&mut heard).await.unwrap();
    };
    tokio::select! {
        _ = run => panic!("it ended"),
        () = talk => {}
    }
    assert_eq!((meter.up(), meter.down()), (3, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_keep_their_order_however_they_are_cut(
        up in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..8),
        down in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..8),
        capacity in 1_usize..300,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (ends, running) = pipes(capacity);
            let side = async |stream: DuplexStream, chunks: &Vec<Vec<u8>>| {
                let (mut read, mut write) = tokio::io::split(stream);
                let mut heard = Vec::new();
                let (heard_all, ()) = tokio::join!(read.read_to_end(&mut heard), async {
                    for chunk in chunks {
                        write.write_all(chunk).await.unwrap();
                    }
                    write.shutdown().await.unwrap();
                });
                heard_all.unwrap();
                heard
            };
            let ((_, meter), to_client, to_server) =
                tokio::join!(running, side(ends.client, &up), side(ends.server, &down));
            assert_eq!((to_server, to_client), (up.concat(), down.concat()));
            assert_eq!(meter.up(), up.concat().len() as u64);
        });
    }
}

#[tokio::test]
async fn what_the_server_said_before_its_reset_arrives_without_a_fin() {
    let (mut client, near) = pair().await;
    let (far, mut server) = pair().await;
    let mut held = near.clone();
    client.write_all(b"never read").await.unwrap();
    server.write_all(b"alert").await.unwrap();
    // The server's reset is here before the relay begins: its first write meets it.
    server.reset_on_close().unwrap();
    drop(server);
    far.reset().await;
    let (mut near, mut far) = (near, far);
    let meter = Meter::new();
    let end = carry(&mut near, &mut far, Early::default(), &meter).await;
    assert!(matches!(end.reason, Reason::ServerReset(_)), "{end:?}");
    assert_eq!((end.client, end.server), (Close::Local, Close::Rst));
    let mut five = [0; 5];
    client.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"alert");
    // No end was passed on: the caller may still make it a reset.
    held.write_all(b"!").await.unwrap();
    held.reset_on_close().unwrap();
    drop((near, held));
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
