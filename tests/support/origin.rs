//! Servers on loopback that say exactly what a test wants said.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use socket2::{Domain, SockRef, Socket, Type};

use super::{SOON, wire};

/// A listener whose connections are answered by a function, each on a thread of its own.
#[derive(Debug)]
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    heard: Receiver<String>,
}

impl Origin {
    /// Serves each connection with `serve`; what that returns can be taken by [`Origin::heard`].
    pub fn serving(serve: impl Fn(TcpStream) -> String + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, heard) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(SOON)).unwrap();
                let (serve, sender) = (serve.clone(), sender.clone());
                std::thread::spawn(move || {
                    // Nobody may be waiting for it any more.
                    let _ = sender.send(serve(stream));
                });
            }
        });
        Self { address, heard }
    }

    /// Answers one request with `answer`, byte for byte, and closes. It hears the request's head.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::serving(move |stream| {
            let head = wire::read_head(&stream);
            wire::send(&stream, &answer);
            head
        })
    }

    /// What the next connection heard.
    pub fn heard(&self) -> String {
        self.heard.recv_timeout(SOON).unwrap()
    }

    /// An address on loopback that is free, for a program that binds it itself. Its port is below those that the system
    /// gives out (`ip_local_port_range`), so that nobody gets it meanwhile.
    pub fn free() -> SocketAddr {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Tests that run as processes of their own begin far from each other.
        let first = std::process::id().wrapping_mul(331);
        loop {
            let at = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let port = 10_000 + u16::try_from(at % 20_000).unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            if TcpListener::bind(address).is_ok() {
                return address;
            }
        }
    }

    /// An address on loopback where nobody listens, nor will as long as the tests run.
    pub fn nowhere() -> SocketAddr {
        let taken = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        taken.bind(&any.into()).unwrap();
        Box::leak(Box::new(taken))
            .local_addr()
            .unwrap()
            .as_socket()
            .unwrap()
    }
}

/// Listens there. A program that another test starts holds the listener that was there before until it is that program.
pub fn bind(address: SocketAddr) -> TcpListener {
    let deadline = Instant::now() + SOON;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            bound => return bound.unwrap(),
        }
    }
}

/// A listener whose connections the test takes itself, one by one.
#[derive(Debug)]
pub struct Listening {
    /// Where it listens.
    pub address: SocketAddr,
    listener: TcpListener,
}

impl Listening {
    /// Listens on a free port of 127.0.0.1.
    pub fn new() -> Self {
        Self::on("127.0.0.1:0".parse().unwrap())
    }

    /// Listens there.
    pub fn on(address: SocketAddr) -> Self {
        let listener = bind(address);
        SockRef::from(&listener)
            .set_read_timeout(Some(SOON))
            .unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, listener }
    }

    /// The next connection.
    pub fn accept(&self) -> TcpStream {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// The next connection and the head that came on it.
    pub fn hear(&self) -> (TcpStream, String) {
        let stream = self.accept();
        let head = wire::read_head(&stream);
        (stream, head)
    }

    /// Whether nobody has connected.
    pub fn is_untouched(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let accepted = self.listener.accept();
        self.listener.set_nonblocking(false).unwrap();
        matches!(accepted, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// An address that does not answer: its queue is full, so a SYN is dropped.
#[derive(Debug)]
pub struct Silent {
    /// The address.
    pub address: SocketAddr,
    _listener: Socket,
    _queued: TcpStream,
}

/// An address of loopback from which no SYN-ACK comes.
pub fn silent() -> Silent {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    // A queue of 0 takes one connection, and drops the SYN of the next.
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    Silent {
        address,
        _queued: TcpStream::connect(address).unwrap(),
        _listener: listener,
    }
}

impl Silent {
    /// How many connections to it wait for their SYN-ACK.
    pub fn dials(&self) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        // Local address, remote address, state; 02 is SYN_SENT.
        let remote = format!("0100007F:{:04X} 02 ", self.address.port());
        table.lines().filter(|line| line.contains(&remote)).count()
    }

    /// Waits until so many connections wait for their SYN-ACK.
    pub fn wait_for_dials(&self, count: usize) {
        let deadline = Instant::now() + SOON;
        while self.dials() != count {
            assert!(Instant::now() < deadline, "{} dials", self.dials());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
