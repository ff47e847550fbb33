//! What it promises.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

/// What a name server does with a query, by its kind (A is 1, AAAA is 28).
type Answer = fn(query: &[u8], kind: u16) -> Option<Vec<u8>>;

/// A name server on loopback, on UDP and TCP; `over_tcp` tells its answers which it is asked by.
fn server(udp: Answer, tcp: Answer) -> Resolver {
    let (socket, listener) = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()) {
            break (socket, listener);
        }
    };
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..length];
            if let Some(reply) = udp(query, kind_of(query)) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut query).unwrap();
                let reply = tcp(&query, kind_of(&query)).unwrap_or_default();
                let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length[..], &reply].concat()).unwrap();
            }
        }
    });
    Resolver::with_servers(&[address])
}

fn question(query: &[u8]) -> &[u8] {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap();
    &query[12..12 + name + 5]
}

fn kind_of(query: &[u8]) -> u16 {
    let question = question(query);
    u16::from_be_bytes([question[question.len() - 4], question[question.len() - 3]])
}

/// A reply with a response code and records of the kind that was asked for (RFC 1035, section 4.1).
fn reply(query: &[u8], code: u8, records: &[&[u8]]) -> Vec<u8> {
    let count = u8::try_from(records.len()).unwrap();
    let mut reply = [
        &query[..2],
        &[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0],
        question(query),
    ]
    .concat();
    for record in records {
        let [high, low] = kind_of(query).to_be_bytes();
        let length = u8::try_from(record.len()).unwrap();
        reply.extend([0xc0, 12, high, low, 0, 1, 0, 0, 0, 60, 0, length]);
        reply.extend(*record);
    }
    reply
}

async fn resolve(resolver: &Resolver) -> Result<Vec<String>, ResolveError> {
    let found = resolver.resolve("name.example", LIMIT).await?;
    Ok(found.addresses.iter().map(IpAddr::to_string).collect())
}

#[tokio::test]
async fn both_families_are_found_ipv6_first() {
    let resolver = server(
        |query, kind| match kind {
            28 => Some(reply(
                query,
                0,
                &[&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets()],
            )),
            _ => Some(reply(
                query,
                0,
                &[&[192, 0, 2, 1], &[192, 0, 2, 2], &[192, 0, 2, 1]],
            )),
        },
        |_, _| None,
    );
    assert_eq!(
        resolve(&resolver).await.unwrap(),
        ["2001:db8::1", "192.0.2.1", "192.0.2.2"]
    );
}

#[tokio::test]
async fn the_failure_of_one_family_leaves_the_other() {
    let resolver = server(
        |query, kind| match kind {
            28 => Some(reply(query, 2, &[])),
            _ => Some(reply(query, 0, &[&[192, 0, 2, 1]])),
        },
        |query, _| Some(reply(query, 2, &[])),
    );
    assert_eq!(resolve(&resolver).await.unwrap(), ["192.0.2.1"]);
}

#[tokio::test]
async fn the_silence_of_one_family_does_not_hold_back_the_other() {
    let resolver = server(
        |query, kind| (kind == 1).then(|| reply(query, 0, &[&[192, 0, 2, 1]])),
        |_, _| None,
    );
    let begun = tokio::time::Instant::now();
    assert_eq!(resolve(&resolver).await.unwrap(), ["192.0.2.1"]);
    assert!(begun.elapsed() < TRY);
}

#[tokio::test]
async fn each_response_code_is_told_apart() {
    let outcome = async |answer: Answer| resolve(&server(answer, answer)).await.unwrap_err();
    let error = outcome(|query, _| Some(reply(query, 3, &[]))).await;
    assert!(matches!(error, ResolveError::NxDomain { .. }), "{error:?}");
    assert_eq!(error.response_code().as_deref(), Some("NXDOMAIN"));
    let error = outcome(|query, _| Some(reply(query, 0, &[]))).await;
    assert!(matches!(error, ResolveError::NoAddress { .. }), "{error:?}");
    let error = outcome(|query, _| Some(reply(query, 2, &[]))).await;
    assert!(matches!(error, ResolveError::ServFail { .. }), "{error:?}");
    let error = outcome(|query, _| Some(reply(query, 5, &[]))).await;
    assert!(matches!(error, ResolveError::Refused { .. }), "{error:?}");
    let error = outcome(|query, _| Some(reply(query, 4, &[]))).await;
    assert!(
        matches!(error, ResolveError::Misbehaving { .. }),
        "{error:?}"
    );
    assert_eq!(error.response_code().as_deref(), Some("Not Implemented"));
}

#[tokio::test]
async fn a_name_with_an_underscore_is_asked_for() {
    let resolver = server(
        |query, kind| {
            (kind == 1)
                .then(|| reply(query, 0, &[&[192, 0, 2, 1]]))
                .or_else(|| Some(reply(query, 0, &[])))
        },
        |_, _| None,
    );
    let found = resolver.resolve("my_app.some_net", LIMIT).await.unwrap();
    assert_eq!(found.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn a_silent_server_is_a_timeout() {
    let resolver = server(|_, _| None, |_, _| None);
    let error = resolver
        .resolve("name.example", Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(error, ResolveError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let nobody = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = resolve(&Resolver::with_servers(&[nobody]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ResolveError::ServerUnreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_truncated_reply_is_asked_for_by_tcp() {
    let resolver = server(
        |query, _| {
            let mut reply = reply(query, 0, &[]);
            reply[2] |= 2;
            Some(reply)
        },
        |query, kind| {
            (kind == 1)
                .then(|| reply(query, 0, &[&[192, 0, 2, 9]]))
                .or_else(|| Some(reply(query, 0, &[])))
        },
    );
    assert_eq!(resolve(&resolver).await.unwrap(), ["192.0.2.9"]);
}

#[tokio::test]
async fn localhost_is_this_machine_whoever_is_asked() {
    let resolver = server(
        |query, _| Some(reply(query, 0, &[&[192, 0, 2, 1]])),
        |_, _| None,
    );
    let found = resolver.resolve("a.localhost", LIMIT).await.unwrap();
    assert_eq!(found.source, Source::Hosts);
    assert!(found.addresses.iter().all(IpAddr::is_loopback));
}

#[test]
fn a_file_is_read_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    std::fs::write(&path, "192.0.2.1 a.example\n").unwrap();
    let watched = Watched::new(path.to_str().unwrap(), read_hosts);
    assert_eq!(in_hosts(&watched.get(), "a.example").unwrap().len(), 1);
    std::fs::write(
        &path,
        "192.0.2.1 a.example b.example\n2001:db8::1 a.example\n",
    )
    .unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert_eq!(in_hosts(&watched.get(), "a.example").unwrap().len(), 2);
    assert_eq!(in_hosts(&watched.get(), "b.example").unwrap().len(), 1);
    assert_eq!(in_hosts(&watched.get(), "c.example"), None);
    std::fs::write(
        &path,
        "192.0.2.7\tMy_App a_b.example # web\n#192.0.2.8 d.example\nnonsense\n",
    )
    .unwrap();
    let hosts = read_hosts(&path);
    assert_eq!(
        (in_hosts(&hosts, "my_app").unwrap().len(), hosts.len()),
        (1, 2)
    );
}
