//! Name servers of a test's own: on loopback by UDP and TCP, with a reply for each query, and whole ones by TLS and HTTP.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_server::Server;
use hickory_server::proto::rr::rdata::SOA;
use hickory_server::proto::rr::{Name, RData, Record};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use tokio::runtime::Runtime;

use super::web::Ca;

/// The type of an IPv4 address's record.
pub const A: u16 = 1;
/// The type of an IPv6 address's record.
pub const AAAA: u16 = 28;

/// A query, as it came.
#[derive(Debug)]
pub struct Query<'a> {
    bytes: &'a [u8],
    /// The name, in lower case.
    pub name: String,
    /// The type of the records.
    pub kind: u16,
}

impl<'a> Query<'a> {
    /// Reads one.
    pub fn read(bytes: &'a [u8]) -> Self {
        let mut labels = Vec::new();
        let mut at = 12;
        while bytes[at] != 0 {
            let end = at + 1 + usize::from(bytes[at]);
            labels.push(String::from_utf8_lossy(&bytes[at + 1..end]).to_lowercase());
            at = end;
        }
        Self {
            bytes: &bytes[..at + 5],
            name: labels.join("."),
            kind: u16::from_be_bytes([bytes[at + 1], bytes[at + 2]]),
        }
    }

    /// A reply without records (RFC 1035, section 4.1).
    pub fn code(&self, code: u8) -> Reply {
        let flags = [0x81, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0];
        Reply([&self.bytes[..2], &flags, &self.bytes[12..]].concat())
    }

    /// A reply with these addresses, as far as they are of the family that is asked for.
    pub fn addresses(&self, addresses: &[IpAddr]) -> Reply {
        let mut reply = self.code(0);
        for address in addresses {
            let (kind, octets) = match address {
                IpAddr::V4(v4) => (A, v4.octets().to_vec()),
                IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
            };
            if kind == self.kind {
                reply.record(7, kind, &octets);
            }
        }
        reply
    }

    /// A reply with one.
    pub fn address(&self, address: &str) -> Reply {
        self.addresses(&[address.parse().unwrap()])
    }
}

/// A reply that is being written.
#[derive(Debug)]
pub struct Reply(pub Vec<u8>);

impl Reply {
    /// Adds a record of the question's name; `count` is the place of its section's count.
    pub fn record(&mut self, count: usize, kind: u16, data: &[u8]) {
        self.0[count] += 1;
        let [high, low] = kind.to_be_bytes();
        let length = u8::try_from(data.len()).unwrap();
        self.0
            .extend([0xc0, 12, high, low, 0, 1, 0, 0, 0, 60, 0, length]);
        self.0.extend(data);
    }

    /// With the SOA record of a denial (RFC 2308, section 3).
    pub fn soa(mut self) -> Self {
        self.record(9, 6, &[0; 22]);
        self
    }

    /// With an extended error (RFC 8914, section 2).
    pub fn ede(mut self, code: u8, text: &str) -> Self {
        self.0[11] += 1;
        let length = u8::try_from(text.len()).unwrap() + 2;
        self.0
            .extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, length + 4]);
        self.0.extend([0, 15, 0, length, 0, code]);
        self.0.extend(text.as_bytes());
        self
    }

    /// Cut short.
    pub fn truncated(mut self) -> Self {
        self.0[2] |= 2;
        self
    }

    /// It alone.
    pub fn one(self) -> Vec<Self> {
        vec![self]
    }
}

/// A name server on loopback, on UDP and TCP.
#[derive(Debug)]
pub struct NameServer {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<(String, u16)>>>,
}

impl NameServer {
    /// Replies to each query with what `answer` says, if anything.
    pub fn answering(
        answer: impl Fn(&Query<'_>) -> Option<Reply> + Clone + Send + 'static,
    ) -> Self {
        let (socket, listener) = loop {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()) {
                break (socket, listener);
            }
        };
        let address = socket.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (noted, by_tcp) = (seen.clone(), answer.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let query = Query::read(&buffer[..length]);
                noted.lock().unwrap().push((query.name.clone(), query.kind));
                if let Some(reply) = answer(&query) {
                    let _ = socket.send_to(&reply.0, from);
                }
            }
        });
        let noted = seen.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (noted, answer) = (noted.clone(), by_tcp.clone());
                std::thread::spawn(move || {
                    let mut length = [0; 2];
                    while stream.read_exact(&mut length).is_ok() {
                        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                        stream.read_exact(&mut query).unwrap();
                        let query = Query::read(&query);
                        noted.lock().unwrap().push((query.name.clone(), query.kind));
                        let Some(mut reply) = answer(&query) else {
                            return;
                        };
                        reply.0[2] &= !2;
                        let length = u16::try_from(reply.0.len()).unwrap().to_be_bytes();
                        let _ = stream.write_all(&[&length[..], &reply.0].concat());
                    }
                });
            }
        });
        Self { address, seen }
    }

    /// Gives every name this address.
    pub fn giving(address: &'static str) -> Self {
        Self::answering(move |query| Some(query.address(address)))
    }

    /// The names and types that it was asked for, in the order of their arrival.
    pub fn seen(&self) -> Vec<(String, u16)> {
        self.seen.lock().unwrap().clone()
    }
}

/// A whole name server on loopback that shows a certificate. Dropped, it is gone.
#[derive(Debug)]
pub struct SecureServer {
    /// Where it listens.
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl SecureServer {
    /// By TLS under `name`; it knows every `*.example` as 127.0.0.1.
    pub fn dot(ca: &Ca, name: &str) -> Self {
        Self::start(ca, name, b"dot", |server, listener, tls| {
            let limit = Duration::from_secs(5);
            server
                .register_tls_listener_with_tls_config(listener, limit, tls)
                .unwrap();
        })
    }

    /// The same by HTTP/2, at `/dns-query`.
    pub fn doh(ca: &Ca, name: &str) -> Self {
        Self::start(ca, name, b"h2", |server, listener, tls| {
            let limit = Duration::from_secs(5);
            let path = "/dns-query".to_owned();
            server
                .register_https_listener_with_tls_config(listener, limit, tls, None, path)
                .unwrap();
        })
    }

    fn start(
        ca: &Ca,
        name: &str,
        protocol: &[u8],
        register: impl FnOnce(&mut Server<Catalog>, tokio::net::TcpListener, Arc<rustls::ServerConfig>),
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut tls = ca.server(&[name]);
        tls.alpn_protocols = vec![protocol.to_vec()];
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut server = Server::new(catalog());
            register(&mut server, listener, Arc::new(tls));
            tokio::spawn(async move { server.block_until_done().await });
            address
        });
        Self {
            address,
            runtime: Some(runtime),
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for SecureServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Every `*.example` is 127.0.0.1, for a minute.
fn catalog() -> Catalog {
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let zone = name("example.");
    let mut records =
        InMemoryZoneHandler::<hickory_server::net::runtime::TokioRuntimeProvider>::empty(
            zone.clone(),
            ZoneType::Primary,
            AxfrPolicy::Deny,
        );
    let soa = SOA::new(
        name("ns.example."),
        name("admin.example."),
        1,
        60,
        60,
        60,
        60,
    );
    records.upsert_mut(Record::from_rdata(zone.clone(), 60, RData::SOA(soa)), 0);
    let data = RData::A(std::net::Ipv4Addr::LOCALHOST.into());
    records.upsert_mut(Record::from_rdata(name("*.example."), 60, data), 0);
    let mut catalog = Catalog::new();
    catalog.upsert(zone.into(), vec![Arc::new(records)]);
    catalog
}
