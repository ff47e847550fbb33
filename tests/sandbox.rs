//! The proxy where the kernel does not let it do all that it may do elsewhere.

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use support::{DIRECT, Proxy, wire};

/// More than any buffer on the way.
const BULK: usize = 16 << 20;

/// A proxy to which a filter of system calls, as a container's, answers splice(2) with an error.
fn proxy_without_splice(errno: i32) -> Proxy {
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_splice, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    // A filter is its thread's, and that of the processes that it starts.
    let starting = std::thread::spawn(move || {
        apply_filter(&filter).unwrap();
        Proxy::start(DIRECT)
    });
    starting.join().unwrap()
}

#[test]
fn bulk_passes_where_splice_is_refused() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let proxy = proxy_without_splice(errno);
        let origin = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = origin.local_addr().unwrap();
        let sending = std::thread::spawn(move || {
            let (mut stream, _) = origin.accept().unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
            stream.write_all(&vec![7; BULK]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut client = proxy.connect();
        wire::send(
            &client,
            format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
        );
        assert!(wire::read_head(&client).starts_with("HTTP/1.1 200 "));
        client.write_all(b"bulk!").unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        assert!(received.len() == BULK && received.iter().all(|byte| *byte == 7));
        drop(client);
        proxy.diary("splice(2) is not allowed here");
        let record = &proxy.records(1)[0];
        assert_eq!(record["event.outcome"], "success", "{record}");
        assert_eq!(record["destination.bytes"], BULK);
    }
}
