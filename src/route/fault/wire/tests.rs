use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::advance;

use super::*;
use crate::cause::Alert;
use crate::net::socket::Socket;
use crate::net::socket::tests::pair;
use crate::policy::fault::{Page, When};
use crate::tls::ledger::tests::{client_hello, record};

fn fault(at: At, act: Act) -> Fault {
    Fault {
        name: "f".into(),
        by: "rule r".into(),
        at,
        act,
        direction: None,
        side: None,
        when: When::default(),
    }
}

/// A connection with a fault on it, and its far end.
async fn under(fault: Fault) -> (Meddler, Socket) {
    let (near, far) = pair().await;
    let delay = if let Act::Delay { by, .. } = fault.act {
        by
    } else {
        Duration::ZERO
    };
    let meddler = Meddler::new(
        Wire::Tcp(near),
        &[],
        Arc::new(fault),
        delay,
        Box::new(|| {}),
    );
    (meddler, far)
}

/// All that comes until the end, and how that was.
async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut heard = Vec::new();
    let end = stream.read_to_end(&mut heard).await;
    (heard, end.err().map(|error| error.kind()))
}

#[test]
fn a_head_is_told_however_it_is_cut() {
    let get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for cut in 0..get.len() {
        assert_eq!(request(&get[..cut]), Seen::Partial, "{cut}");
    }
    assert_eq!(request(get), Seen::Point(get.len()));
    assert_eq!(
        request(&[get, &b"body"[..]].concat()),
        Seen::Point(get.len())
    );
    for other in [
        &b"\x16\x03\x01"[..],
        b"get / ",
        b" GET",
        b"SSH-2.0-OpenSSH\r\n",
    ] {
        assert_eq!(request(other), Seen::Other, "{other:?}");
    }
}

#[test]
fn an_interim_answer_is_not_the_answer() {
    let hint = b"HTTP/1.1 100 Continue\r\n\r\n";
    let last = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(interim(&hint[..10]), None);
    assert_eq!(interim(hint), Some(hint.len()));
    assert_eq!(interim(last), None);
    assert_eq!(answer(last), Seen::Point(last.len()));
    let upgrade = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    assert_eq!(
        (interim(upgrade), answer(upgrade)),
        (None, Seen::Point(upgrade.len()))
    );
    assert_eq!(answer(b"ICY 200 OK\r\n"), Seen::Other);
}

#[test]
fn a_server_hello_is_told_from_other_records() {
    let hello = record(22, &[2, 0, 0, 1, 0]);
    for cut in 1..6 {
        assert_eq!(server_hello(&hello[..cut]), Seen::Partial, "{cut}");
    }
    assert_eq!(server_hello(&hello), Seen::Point(0));
    assert_eq!(server_hello(&record(21, &[2, 40])), Seen::Other);
    assert_eq!(server_hello(&record(22, &[4, 0, 0, 0])), Seen::Other);
    assert_eq!(server_hello(b"HTTP/1.1 400"), Seen::Other);
}

#[tokio::test]
async fn a_client_hello_passes_and_both_ends_are_reset() {
    let (mut near, mut far) = under(fault(At::ClientHello, Act::Reset)).await;
    let hello = client_hello("a.example");
    near.write_all(&hello).await.unwrap();
    assert_eq!(
        hear(&mut near).await,
        (vec![], Some(io::ErrorKind::ConnectionReset))
    );
    let error = near.write_all(b"more").await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    let mut heard = vec![0; hello.len()];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, hello);
    drop(near);
    assert_eq!(
        hear(&mut far).await,
        (vec![], Some(io::ErrorKind::ConnectionReset))
    );
}

#[tokio::test]
async fn a_reader_that_waits_is_woken_by_the_strike() {
    let (near, _far) = under(fault(At::ClientHello, Act::Reset)).await;
    let (mut reading, mut writing) = tokio::io::split(near);
    let write = async {
        // Behind the reader's first poll.
        tokio::task::yield_now().await;
        writing.write_all(&client_hello("a.example")).await.unwrap();
    };
    let ((_, end), ()) = tokio::join!(hear(&mut reading), write);
    assert_eq!(end, Some(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn what_is_no_client_hello_passes_untouched() {
    for said in [
        &b"SSH-2.0-x\r\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03",
    ] {
        let (mut near, mut far) = under(fault(At::ClientHello, Act::Reset)).await;
        near.write_all(said).await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(hear(&mut far).await, (said.to_vec(), None));
        far.write_all(b"answer").await.unwrap();
        drop(far);
        assert_eq!(hear(&mut near).await, (b"answer".to_vec(), None));
    }
}

#[tokio::test]
async fn another_answer_takes_the_place_of_the_servers() {
    let page = Page {
        status: http::StatusCode::FORBIDDEN,
        reason: "Forbidden".to_owned(),
        headers: Vec::new(),
        body: "blocked".to_owned(),
    };
    let hello = client_hello("a.example");
    let get = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    for (at, act, said, answer) in [
        (
            At::ClientHello,
            Act::Alert(Alert(112)),
            &hello,
            vec![21, 3, 3, 0, 2, 2, 112],
        ),
        (
            At::ClientHello,
            Act::NotTls(b"x"[..].into()),
            &hello,
            b"x".to_vec(),
        ),
        (
            At::ServerHello,
            Act::Alert(Alert(40)),
            &hello,
            vec![21, 3, 3, 0, 2, 2, 40],
        ),
        (At::Request, Act::Status(page.clone()), &get, page.bytes()),
    ] {
        let (mut near, mut far) = under(fault(at, act)).await;
        near.write_all(said).await.unwrap();
        if at == At::ServerHello {
            far.write_all(&record(22, &[2, 0, 0, 1, 0])).await.unwrap();
        }
        assert_eq!(hear(&mut near).await, (answer, None), "{at}");
        near.write_all(b"lost").await.unwrap();
        // In the server's place, so that it hears nothing but the end.
        let passed = if at == At::ServerHello {
            &said[..]
        } else {
            &[]
        };
        assert_eq!(hear(&mut far).await, (passed.to_vec(), None), "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_delay_holds_the_client_hello_and_lets_it_go() {
    let by = Duration::from_secs(2);
    let jitter = Duration::ZERO;
    let (mut near, mut far) = under(fault(At::ClientHello, Act::Delay { by, jitter })).await;
    let hello = client_hello("a.example");
    let begun = Instant::now();
    near.write_all(&hello).await.unwrap();
    let mut heard = vec![0; hello.len()];
    // Whoever waits for the answer moves what is held.
    let wait = async { near.read_u8().await.unwrap() };
    let serve = async {
        far.read_exact(&mut heard).await.unwrap();
        let took = begun.elapsed();
        far.write_all(b"!").await.unwrap();
        took
    };
    let (answer, took) = tokio::join!(wait, serve);
    assert_eq!((answer, heard), (b'!', hello));
    assert!(
        took >= by && took < by + Duration::from_millis(100),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silence_of_its_length_ends_the_connection_and_a_byte_begins_it_anew() {
    let wait = Duration::from_secs(30);
    let (mut near, mut far) = under(fault(At::Idle(wait), Act::Reset)).await;
    near.write_all(b"a").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'a');
    advance(Duration::from_secs(29)).await;
    far.write_all(b"b").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'b');
    let spoke = Instant::now();
    let (_, end) = hear(&mut near).await;
    assert_eq!(end, Some(io::ErrorKind::ConnectionReset));
    assert_eq!(spoke.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_throttle_keeps_its_rate() {
    let (mut near, mut far) = under(fault(At::Bytes(1000), Act::Throttle(10_000))).await;
    let sent: Vec<u8> = (0..21_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let begun = Instant::now();
    let send = async {
        far.write_all(&sent).await.unwrap();
        far.shutdown().await.unwrap();
    };
    let ((heard, end), ()) = tokio::join!(hear(&mut near), send);
    assert_eq!((heard, end), (sent, None));
    // The last piece needs no pause behind it.
    let took = begun.elapsed().as_secs_f64();
    assert!((1.9..2.1).contains(&took), "{took}");
}

#[tokio::test]
async fn a_hang_loses_what_it_is_told_to_and_nothing_else() {
    let mut hang = fault(At::Bytes(0), Act::Hang);
    hang.direction = Some(Direction::Down);
    let (mut near, mut far) = under(hang).await;
    far.write_all(b"lost").await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(50), near.read_u8())
            .await
            .is_err()
    );
    near.write_all(b"still heard").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(hear(&mut far).await, (b"still heard".to_vec(), None));
}

#[tokio::test]
async fn one_side_alone_is_told_where_one_is_named() {
    for (side, client, server) in [(Side::Client, true, false), (Side::Server, false, true)] {
        let reset = Fault {
            side: Some(side),
            ..fault(At::Bytes(4), Act::Reset)
        };
        let (mut near, mut far) = under(reset).await;
        far.write_all(b"four, and more").await.unwrap();
        let (heard, end) = hear(&mut near).await;
        assert_eq!(heard, b"four");
        assert_eq!(end.is_some(), client, "{side:?}");
        drop(near);
        // What it had not read would reset the connection in any case.
        let (_, end) = hear(&mut far).await;
        assert!(end.is_some() || !server, "{side:?}");
    }
}

#[tokio::test]
async fn bytes_are_flipped_where_it_is_told_and_nowhere_else() {
    let corrupt = Act::Corrupt {
        from: 3,
        every: Some(5),
    };
    let (mut near, mut far) = under(fault(At::Bytes(10), corrupt)).await;
    let sent: Vec<u8> = (0..100).collect();
    for piece in sent.chunks(7) {
        far.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    drop(far);
    let (heard, _) = hear(&mut near).await;
    let flipped: Vec<usize> = (0..100).filter(|at| heard[*at] != sent[*at]).collect();
    let expected: Vec<usize> = (13..100).step_by(5).collect();
    assert_eq!(flipped, expected);
    assert!(flipped.iter().all(|at| heard[*at] == !sent[*at]));
}

/// Sends `sent` down in pieces through a fault at so many bytes.
fn down_through(act: Act, at: u64, sent: &[u8], piece: usize) -> (Vec<u8>, Option<io::ErrorKind>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut near, mut far) = under(fault(At::Bytes(at), act)).await;
        let send = async {
            for piece in sent.chunks(piece) {
                // The other side may be gone.
                if far.write_all(piece).await.is_err() {
                    break;
                }
            }
            let _ = far.shutdown().await;
        };
        let (heard, ()) = tokio::join!(hear(&mut near), send);
        heard
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the pieces: what came before the point is what was sent, and a cut comes exactly there.
    #[test]
    fn bytes_before_the_point_are_those_that_were_sent(
        sent in proptest::collection::vec(any::<u8>(), 0..40_000),
        at in 0_u64..50_000,
        piece in 1_usize..20_000,
    ) {
        let point = usize::try_from(at).unwrap().min(sent.len());
        let is_met = sent.len() as u64 >= at;
        let (heard, end) = down_through(Act::Reset, at, &sent, piece);
        prop_assert_eq!(&heard[..], &sent[..point]);
        prop_assert_eq!(end, is_met.then_some(io::ErrorKind::ConnectionReset));
        let (heard, end) = down_through(Act::Close, at, &sent, piece);
        prop_assert_eq!((&heard[..], end), (&sent[..point], None));
        let (heard, end) = down_through(Act::Truncate(5), at, &sent, piece);
        let cut = (point + 5).min(sent.len());
        prop_assert_eq!((&heard[..], end), (&sent[..cut], None));
        let corrupt = Act::Corrupt { from: 0, every: None };
        let (heard, end) = down_through(corrupt, at, &sent, piece);
        let mut expected = sent.clone();
        if let Some(byte) = expected.get_mut(usize::try_from(at).unwrap()) {
            *byte = !*byte;
        }
        prop_assert_eq!((heard, end), (expected, None));
    }

    /// The same of what the client says, held back until it is told what it is.
    #[test]
    fn what_a_client_says_passes_whole(
        said in proptest::collection::vec(any::<u8>(), 0..5000),
        begins_as in 0_usize..3,
        piece in 1_usize..3000,
    ) {
        let begin = [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/1.1\r\n"][begins_as];
        let said = [begin, &said].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let by = Duration::from_millis(1);
        let delay = Act::Delay { by, jitter: Duration::ZERO };
        for at in [At::ClientHello, At::Request] {
            let heard = runtime.block_on(async {
                let (mut near, mut far) = under(fault(at, delay.clone())).await;
                let say = async {
                    for piece in said.chunks(piece) {
                        near.write_all(piece).await.unwrap();
                    }
                    near.shutdown().await.unwrap();
                };
                let ((), heard) = tokio::join!(say, hear(&mut far));
                heard
            });
            prop_assert_eq!(heard, (said.clone(), None));
        }
    }
}

#[tokio::test]
async fn an_interim_answer_passes_and_the_answer_behind_it_is_struck() {
    let (mut near, mut far) = under(fault(At::Response, Act::Truncate(2))).await;
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    far.write_all(interim).await.unwrap();
    let mut heard = [0; 25];
    near.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, interim);
    far.write_all(b"HTTP/1.1 200 OK\r\n\r\nbody").await.unwrap();
    let expected = b"HTTP/1.1 200 OK\r\n\r\nbo".to_vec();
    assert_eq!(hear(&mut near).await, (expected, None));
}
