//! What is fed with any bytes, and what must hold whatever they are. Each target takes one input and panics where something
//! does not hold.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use listenfd::ListenFd;
use routecause::app::bound::Bound;
use routecause::app::{App, Settings};
use routecause::config::{self, Environment, ListenAt, Listener, Options, Source};
use routecause::failure::chain;
use routecause::listen::proxy_header;
use routecause::net::resolve::Resolver;
use routecause::net::upstream;
use routecause::observe::{Observe, json, text};
use routecause::policy::Policy;
use routecause::policy::no_proxy::{Dialect, NoProxy};
use routecause::record::Record;
use routecause::target::{Host, Target};
use routecause::tls::flight::Flight;
use routecause::tls::ledger::Ledger;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;
use tokio::time::Instant;

#[path = "../support/strict.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is for others, too")]
mod strict;

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(work)
}

/// A target has one form: what it prints is read as itself, and its name holds nothing that could end a line.
pub(crate) fn authority(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(host) = Host::parse(&text) {
        let printed = host.to_string();
        assert_eq!(Host::parse(&printed).as_ref(), Ok(&host), "{text:?}");
        assert!(
            printed.bytes().all(|byte| byte.is_ascii_graphic()),
            "{printed:?}"
        );
        assert!(printed.len() <= 253, "{printed:?}");
    }
    match Target::from_authority(&text) {
        Ok(target) => {
            assert_ne!(target.port, 0);
            assert_eq!(Target::from_authority(&target.to_string()), Ok(target));
        }
        Err(error) => assert!(!chain(&error).is_empty()),
    }
}

/// A list of exceptions never panics, and a suffix matches at a label's border only.
pub(crate) fn no_proxy(data: &[u8]) {
    let list = String::from_utf8_lossy(data);
    for dialect in [Dialect::Go, Dialect::Curl] {
        let list = NoProxy::parse(&list, dialect);
        for target in [
            "a.example:443",
            "10.1.2.3:80",
            "[2001:db8::1]:443",
            "localhost:1",
        ] {
            let _ = list.judge(&Target::from_authority(target).unwrap());
        }
        let _ = list.lint();
    }
}

/// A policy is compiled or refused, with a place for each mistake; never half of it.
pub(crate) fn policy(data: &[u8]) {
    let source = Source::Text {
        name: "fuzz.yaml".to_owned(),
        text: String::from_utf8_lossy(data).into_owned(),
    };
    let begun = std::time::Instant::now();
    match config::load(
        &source,
        &Environment::default(),
        &Options::check(Timestamp::UNIX_EPOCH),
    ) {
        Ok(loaded) => assert!(!loaded.policy.routes.is_empty()),
        Err(report) => assert!(!report.diagnostics.is_empty() && !report.to_string().is_empty()),
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

/// An upstream's reply to CONNECT: what it sends behind its head is kept whole, and what is kept is bounded.
pub(crate) fn connect_reply(data: &[u8]) {
    let target = Target::from_authority("a.example:443").unwrap();
    run(async {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs
            .write_all(data.get(..32 * 1024).unwrap_or(data))
            .await
            .unwrap();
        theirs.shutdown().await.unwrap();
        let opened = upstream::open(&mut ours, &target, None, None, Duration::from_secs(5)).await;
        if let Err(error) = opened {
            let told = chain(&error);
            assert!(!told.chars().any(char::is_control), "{told:?}");
        }
        drop(theirs);
    });
}

/// A handshake is followed in any pieces, and what is seen does not hang on where they end.
pub(crate) fn client_hello(data: &[u8]) {
    let now = Instant::now();
    let mut whole = Ledger::default();
    whole.client(data, now);
    let mut pieces = Ledger::default();
    let size = 1 + data.first().map_or(0, |byte| usize::from(*byte) % 7);
    data.chunks(size)
        .for_each(|piece| pieces.client(piece, now));
    assert_eq!(
        format!("{:?}", whole.facts().client_hello),
        format!("{:?}", pieces.facts().client_hello)
    );
    let mut flight = Flight::default();
    flight.take(data, now);
    let _ = (flight.stage(), flight.hello());
    whole.server(data, now);
    let _ = (whole.is_over(), whole.facts());
}

/// A header of the PROXY protocol is read whole or not at all, and not a byte behind it.
pub(crate) fn proxy_header(data: &[u8]) {
    run(async {
        let mut rest = data;
        let read = proxy_header::read(&mut rest).await;
        let taken = data.len() - rest.len();
        assert!(taken <= 4096 + 16, "{taken}");
        if read.is_ok() {
            assert!(data.starts_with(b"PROXY ") || data.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
            let mut again = &data[..taken];
            assert!(proxy_header::read(&mut again).await.is_ok());
        }
    });
}

/// A line of the log is one line, whatever stands in the record.
pub(crate) fn log_line(data: &[u8]) {
    let stranger = routecause::record::quote(&String::from_utf8_lossy(data));
    let here = std::net::IpAddr::from([127, 0, 0, 1]);
    let id = "01890000-0000-7000-8000-000000000000".parse().unwrap();
    let mut record = Record::begun(Timestamp::UNIX_EPOCH, id, here, 1);
    record.user_agent = Some(stranger.clone());
    record.error_message = Some(stranger.clone());
    record.user = Some(stranger.as_str().into());
    let mut line = Vec::new();
    json::write(&record, &mut line).unwrap();
    let read: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(read["user_agent.original"], *stranger);
    for line in [String::from_utf8(line).unwrap(), text::line(&record, false)] {
        assert!(
            !line
                .chars()
                .any(|c| c.is_control() || "\u{2028}\u{2029}\u{202e}".contains(c)),
            "{line:?}"
        );
    }
}

/// Any bytes as a client's connection: the origin hears nothing but whole requests of one reading, the client reads nothing
/// but answers, and the proxy goes on.
pub(crate) fn handler(data: &[u8]) {
    static PROXY: OnceLock<Whole> = OnceLock::new();
    let proxy = PROXY.get_or_init(Whole::start);
    let host = proxy.origin.to_string();
    let text = data.get(..64 * 1024).unwrap_or(data);
    // Inputs know the origin by a name of as many letters.
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(6).position(|window| window == b"{host}") {
        bytes.extend_from_slice(&rest[..at]);
        bytes.extend_from_slice(host.as_bytes());
        rest = &rest[at + 6..];
    }
    bytes.extend_from_slice(rest);
    let mut client = TcpStream::connect(proxy.address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // The proxy may have heard enough.
    let _ = client.write_all(&bytes);
    let _ = client.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    let ended = client.read_to_end(&mut answers);
    if let Err(error) = ended {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "{bytes:?}"
        );
    }
    let broken = proxy.broken.lock().unwrap();
    assert!(
        broken.is_empty(),
        "{broken:?} of {:?}",
        bytes.escape_ascii().to_string()
    );
}

/// A proxy inside this process, and an origin that reads strictly.
struct Whole {
    address: SocketAddr,
    origin: SocketAddr,
    broken: Arc<Mutex<Vec<String>>>,
    _app: App,
    _runtime: Runtime,
}

#[derive(Debug)]
struct Nobody;

impl Observe for Nobody {
    fn record(&self, record: Box<Record>) {
        assert_ne!(
            record.error_type.as_deref(),
            Some("proxy.internal"),
            "{record:?}"
        );
    }
}

fn direct() -> Policy {
    let source = Source::Text {
        name: "direct.yaml".to_owned(),
        text: "version: 1\nrules: []\ndefault: {direct: true}\n".to_owned(),
    };
    let loaded = config::load(
        &source,
        &Environment::default(),
        &Options::serve(Timestamp::UNIX_EPOCH),
    );
    loaded.unwrap_or_else(|report| panic!("{report}")).policy
}

impl Whole {
    fn start() -> Self {
        let listener = Listener::plain(0, ListenAt::parse("127.0.0.1:0").unwrap());
        let settings = Settings {
            drain_timeout: Duration::from_secs(1),
            ..Settings::of(vec![listener], 1000)
        };
        let runtime = Runtime::new().unwrap();
        let entered = runtime.enter();
        let bound = Bound::bind(&settings, NonZeroUsize::MIN, &mut ListenFd::empty()).unwrap();
        let app = App::start(
            bound,
            &settings,
            None,
            direct(),
            &Resolver::from_system(),
            Arc::new(Nobody),
            None,
        );
        let app = app.unwrap();
        drop(entered);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = listener.local_addr().unwrap();
        let broken = Arc::<Mutex<Vec<String>>>::default();
        let told = broken.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let told = told.clone();
                std::thread::spawn(move || hear(stream, &told));
            }
        });
        Self {
            address: app.addresses()[0],
            origin,
            broken,
            _app: app,
            _runtime: runtime,
        }
    }
}

/// Reads strictly, and answers.
fn hear(mut stream: TcpStream, told: &Mutex<Vec<String>>) {
    let (mut bytes, mut room) = (Vec::new(), [0; 4096]);
    loop {
        match strict::request(&bytes) {
            strict::Read::Whole(request, used) => {
                bytes.drain(..used);
                if request.target.starts_with("/smuggled") {
                    told.lock()
                        .unwrap()
                        .push("a request was smuggled".to_owned());
                }
                if stream
                    .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                    .is_err()
                {
                    return;
                }
            }
            // What comes through a tunnel is the client's own.
            strict::Read::Broken(_) if is_tunnel(&bytes) => return,
            strict::Read::Broken(why) => {
                let heard = bytes.escape_ascii().to_string();
                return told.lock().unwrap().push(format!("{why} in {heard}"));
            }
            strict::Read::Part => match stream.read(&mut room) {
                Ok(count) if count > 0 => bytes.extend_from_slice(&room[..count]),
                Ok(_) | Err(_) => return,
            },
        }
    }
}

/// Whether bytes came without the proxy's signature: no request of its own is without.
fn is_tunnel(bytes: &[u8]) -> bool {
    !bytes
        .windows(15)
        .any(|window| window == b"1.1 routecause-" || window == b"1.0 routecause-")
}
