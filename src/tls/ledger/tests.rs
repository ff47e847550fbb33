use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;

/// A client and a server of rustls, and the ledger between them.
struct Handshake {
    client: ClientConnection,
    server: ServerConnection,
    ledger: Ledger,
}

struct Setting {
    version: &'static rustls::SupportedProtocolVersion,
    is_trusted: bool,
    alpn: &'static [&'static [u8]],
}

const FINE: Setting = Setting {
    version: &rustls::version::TLS13,
    is_trusted: true,
    alpn: &[b"h2"],
};

impl Handshake {
    fn new(setting: &Setting) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let certificate = CertificateDer::from(cert.der().to_vec());
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        if setting.is_trusted {
            roots.add(certificate.clone()).unwrap();
        }
        let mut client = ClientConfig::builder_with_protocol_versions(&[setting.version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = setting.alpn.iter().map(|name| name.to_vec()).collect();
        let mut server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        server.alpn_protocols.clone_from(&client.alpn_protocols);
        let name = ServerName::try_from("a.example").unwrap();
        Self {
            client: ClientConnection::new(Arc::new(client), name).unwrap(),
            server: ServerConnection::new(Arc::new(server)).unwrap(),
            ledger: Ledger::default(),
        }
    }

    /// Carries the client's bytes, `step` at a time.
    fn up(&mut self, step: usize) {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        for part in bytes.chunks(step) {
            self.ledger.client(part, Instant::now());
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.server.read_tls(&mut rest).unwrap();
            let _ = self.server.process_new_packets();
        }
    }

    /// Carries the server's bytes.
    fn down(&mut self, step: usize) {
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).unwrap();
        }
        for part in bytes.chunks(step) {
            self.ledger.server(part, Instant::now());
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).unwrap();
            let _ = self.client.process_new_packets();
        }
    }

    fn state(&self) -> State {
        self.ledger.facts().state
    }
}

/// What a client says first that asks for `name`.
pub(crate) fn client_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// A record of a content type.
pub(crate) fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3], &length[..], content].concat()
}

fn write(connection: &mut impl std::io::Write) {
    connection.write_all(b"hello").unwrap();
}

#[tokio::test]
async fn a_handshake_is_followed_through_its_states_however_it_is_cut() {
    for (tls, version) in [
        (&rustls::version::TLS13, 0x0304),
        (&rustls::version::TLS12, 0x0303),
    ] {
        for step in [1, 7, 100_000] {
            let mut talk = Handshake::new(&Setting {
                version: tls,
                ..FINE
            });
            assert_eq!(talk.state(), State::T0);
            talk.up(step);
            assert_eq!(talk.state(), State::T2);
            talk.down(step);
            assert_eq!(talk.state(), State::T5);
            let chain = talk.ledger.facts().chain;
            assert_eq!(chain.len(), usize::from(version == 0x0303));
            talk.up(step);
            assert_eq!(talk.state(), State::T6);
            talk.down(step);
            write(&mut talk.client.writer());
            talk.up(step);
            assert!(!talk.ledger.is_over());
            write(&mut talk.server.writer());
            talk.down(step);
            assert_eq!(talk.state(), State::T7);
            assert!(talk.ledger.is_over());
            let facts = talk.ledger.facts();
            let hello = facts.client_hello.unwrap();
            assert_eq!(hello.server_name.as_deref(), Some("a.example"));
            assert_eq!(
                (&hello.alpn, &hello.versions),
                (&vec!["h2".to_owned()], &vec![version])
            );
            assert!(!hello.groups.is_empty() && facts.client_hello_bytes > 150);
            assert_eq!(facts.server_hello.unwrap().version, version);
            assert_eq!(facts.reply, Some(Reply::Finished));
            assert!(facts.chain.is_empty(), "nobody asks for it any more");
        }
    }
}

#[tokio::test]
async fn who_rejects_a_certificate_is_seen_in_clear_or_by_a_length() {
    let reject = |version| {
        let mut talk = Handshake::new(&Setting {
            version,
            is_trusted: false,
            ..FINE
        });
        talk.up(100_000);
        talk.down(100_000);
        talk.up(100_000);
        talk.ledger.facts()
    };
    let facts = reject(&rustls::version::TLS13);
    assert_eq!(facts.reply, Some(Reply::AlertSized));
    let facts = reject(&rustls::version::TLS12);
    assert_eq!(facts.client_alert, Some(Alert(48)));
    assert!(facts.state < State::T7);
}

#[test]
fn what_is_no_tls_is_let_go_at_once() {
    let now = Instant::now();
    for client in [
        &b"SSH-2.0-x\r\n"[..],
        b"GET / HTTP/1.1\r\n",
        &[22, 9],
        &[23, 3, 3, 0, 1, 0],
    ] {
        let mut ledger = Ledger::default();
        ledger.client(client, now);
        assert!(ledger.is_over());
        assert_eq!(ledger.facts().speech, Speech::Other, "{client:?}");
    }
    let mut greeted = Ledger::default();
    greeted.server(b"220 mail.example ESMTP\r\n", now);
    assert!(greeted.is_over());
    assert_eq!(greeted.facts().speech, Speech::Other);
}

/// A ledger that has seen a ClientHello.
fn greeted() -> Ledger {
    let mut talk = Handshake::new(&FINE);
    talk.up(100_000);
    talk.ledger
}

#[test]
fn an_answer_that_is_no_tls_is_quoted() {
    let mut ledger = greeted();
    ledger.server(
        b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/login\r\nContent-Length: 0",
        Instant::now(),
    );
    let facts = ledger.facts();
    let Speech::Answered(quote) = facts.speech else {
        panic!("{facts:?}")
    };
    assert!(quote.starts_with(b"HTTP/1.1 302 Found") && quote.len() == QUOTE);
}

#[test]
fn a_servers_alert_has_its_number() {
    let mut ledger = greeted();
    ledger.server(&[21, 3, 3], Instant::now());
    ledger.server(&[0, 2, 2], Instant::now());
    assert!(ledger.facts().server_is_cut);
    ledger.server(&[112], Instant::now());
    let facts = ledger.facts();
    assert_eq!(
        (facts.server_alert, facts.server_is_cut),
        (Some(Alert(112)), false)
    );
}

#[test]
fn an_alert_that_the_server_goes_on_behind_was_a_warning() {
    let mut talk = Handshake::new(&Setting {
        version: &rustls::version::TLS12,
        ..FINE
    });
    talk.up(100_000);
    let warning = [21, 3, 3, 0, 2, 1, 112];
    talk.ledger.server(&warning, Instant::now());
    assert_eq!(talk.ledger.facts().server_alert, Some(Alert(112)));
    talk.down(100_000);
    assert_eq!(talk.ledger.facts().server_alert, None);
    let fatal = [21, 3, 3, 0, 2, 2, 40];
    talk.ledger.server(&fatal, Instant::now());
    assert_eq!(talk.ledger.facts().server_alert, Some(Alert(40)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_tires_of_waiting_sends_no_alert() {
    for (wait, expected) in [(1, true), (4, false)] {
        let mut talk = Handshake::new(&FINE);
        talk.up(100_000);
        talk.down(100_000);
        talk.up(100_000);
        tokio::time::sleep(Duration::from_secs(wait)).await;
        let mut alert = vec![23, 3, 3, 0, 19];
        alert.extend([0; 19]);
        talk.ledger.server(&alert, Instant::now());
        let facts = talk.ledger.facts();
        assert_eq!(facts.server_ends_alert_sized, expected);
        assert!(!talk.ledger.is_unfinished(), "the client has finished");
    }
}

/// A ClientHello with an ALPN extension of so many protocols, and a name as long.
fn lavish_hello(count: u16) -> Vec<u8> {
    let extension = |kind: u16, list: Vec<u8>| {
        let len = u16::try_from(list.len()).unwrap();
        [
            kind.to_be_bytes().to_vec(),
            len.to_be_bytes().to_vec(),
            list,
        ]
        .concat()
    };
    let name = vec![b'a'; count.into()];
    let name = [vec![0], count.to_be_bytes().to_vec(), name].concat();
    let names = [(count + 3).to_be_bytes().to_vec(), name].concat();
    let protocols = [1, b'x'].repeat(count.into());
    let protocols = [(2 * count).to_be_bytes().to_vec(), protocols].concat();
    let extensions = [extension(0, names), extension(16, protocols)].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut hello = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    hello[0] = CLIENT_HELLO;
    hello.extend(body);
    hello
}

#[test]
fn of_a_lavish_hello_little_is_kept() {
    let hello = ClientHello::read(&lavish_hello(2000)).unwrap();
    assert_eq!(hello.alpn.len(), 32);
    assert_eq!(hello.server_name.map(|name| name.len()), Some(255));
}

proptest! {
    #[test]
    fn no_bytes_of_strangers_panic_or_pile_up(
        parts in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..40),
        starts_well in any::<bool>(),
    ) {
        let mut ledger = if starts_well { greeted() } else { Ledger::default() };
        for (is_client, bytes) in parts {
            if is_client {
                ledger.client(&bytes, Instant::now());
            } else {
                ledger.server(&bytes, Instant::now());
            }
        }
        let facts = ledger.facts();
        prop_assert!(facts.chain.len() < 100);
    }
}

#[test]
fn one_whole_alert_is_told_from_anything_else() {
    let sealed = |kind: u8, len: u8| [&[kind, 3, 3, 0, len][..], &vec![7; len.into()]].concat();
    for (bytes, expected) in [
        (vec![21, 3, 3, 0, 2, 1, 0], true),
        (sealed(21, 26), true),
        (sealed(23, 19), true),
        (sealed(23, 40), false),
        (sealed(22, 19), false),
        ([sealed(23, 19), sealed(23, 19)].concat(), false),
        (sealed(23, 19)[..20].to_vec(), false),
        (b"the end of an answer".to_vec(), false),
        (Vec::new(), false),
    ] {
        assert_eq!(is_alert(&bytes), expected, "{bytes:?}");
    }
}
