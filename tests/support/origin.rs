//! Servers on loopback that say exactly what a test wants said.

use std::net::{SocketAddr, TcpListener, TcpStream};
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

    /// An address on loopback that was free a moment ago, for a program that binds it itself.
    pub fn free() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
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
        let listener = TcpListener::bind(address).unwrap();
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
        matches!(accepted, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
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
