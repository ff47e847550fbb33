//! TLS that goes wrong on purpose: servers that misbehave, clients that refuse, certificates nobody should trust.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection,
    StreamOwned, SupportedProtocolVersion,
};

use super::origin::Origin;
use super::web::Ca;
use super::wire;

/// What a server shows: its chain and its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

/// What is right or wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Nothing is wrong.
    Good,
    /// It stands for itself.
    SelfSigned,
    /// It was valid until 2021.
    Expired,
    /// It is valid from 2090 on.
    NotYetValid,
    /// It is for `other.invalid`.
    WrongName,
    /// Its issuer is an intermediate authority that the server does not send.
    MissingIntermediate,
    /// It stands for itself, and is an authority: what `openssl req -x509` makes.
    Authority,
}

impl Identity {
    /// The configuration of a client that trusts `ca` and shows this identity.
    pub fn member(&self, ca: &Ca, alpn: &[&[u8]]) -> ClientConfig {
        let (chain, key) = parts(self);
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(ca.roots())
            .with_client_auth_cert(chain, key);
        let mut config = config.unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    /// The chain as PEM.
    pub fn chain_pem(&self) -> String {
        use base64::Engine as _;
        let pem = |der: &CertificateDer<'_>| {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            let lines: Vec<_> = text
                .as_bytes()
                .chunks(64)
                .map(|l| String::from_utf8_lossy(l))
                .collect();
            format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                lines.join("\n")
            )
        };
        self.chain.iter().map(pem).collect()
    }

    /// The key as PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

impl Ca {
    /// A certificate for `name`.
    pub fn identity(&self, leaf: Leaf, name: &str) -> Identity {
        let name = if leaf == Leaf::WrongName {
            "other.invalid"
        } else {
            name
        };
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, name);
        match leaf {
            Leaf::Expired => {
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
            }
            Leaf::NotYetValid => params.not_before = date_time_ymd(2090, 1, 1),
            Leaf::Authority => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Leaf::Good | Leaf::SelfSigned | Leaf::WrongName | Leaf::MissingIntermediate => {}
        }
        let key = KeyPair::generate().unwrap();
        let chain = match leaf {
            Leaf::SelfSigned | Leaf::Authority => vec![params.self_signed(&key).unwrap()],
            Leaf::MissingIntermediate => {
                let mut middle = CertificateParams::new(Vec::new()).unwrap();
                middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                middle.key_usages = vec![KeyUsagePurpose::KeyCertSign];
                let name = "routecause intermediate";
                middle.distinguished_name.push(DnType::CommonName, name);
                let middle_key = KeyPair::generate().unwrap();
                let middle = CertifiedIssuer::signed_by(middle, middle_key, &self.issuer).unwrap();
                vec![params.signed_by(&key, &middle).unwrap()]
            }
            Leaf::Good | Leaf::Expired | Leaf::NotYetValid | Leaf::WrongName => {
                let leaf = params.signed_by(&key, &self.issuer).unwrap();
                return Identity {
                    chain: vec![leaf.der().clone(), self.issuer.der().clone()],
                    key,
                };
            }
        };
        let chain = chain.iter().map(|one| one.der().clone()).collect();
        Identity { chain, key }
    }

    /// A good certificate for several names.
    pub fn identity_for(&self, names: &[&str]) -> Identity {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            chain: vec![leaf.der().clone(), self.issuer.der().clone()],
            key,
        }
    }

    /// A store of it alone.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }
}

/// Versions of TLS.
pub type Versions = &'static [&'static SupportedProtocolVersion];
/// TLS 1.2 only.
pub const ONLY_12: Versions = &[&TLS12];
/// TLS 1.3 only.
pub const ONLY_13: Versions = &[&TLS13];
/// TLS 1.2 and 1.3.
pub const BOTH: Versions = &[&TLS12, &TLS13];

/// A client's whole opinion.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The name that it asks for.
    pub name: &'a str,
    /// The only authority that it trusts.
    pub trusts: &'a Ca,
    /// What it speaks.
    pub versions: Versions,
}

impl Ca {
    /// The configuration of a client that trusts it and shows nothing.
    pub fn client(&self, alpn: &[&[u8]]) -> ClientConfig {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }
}

impl Client<'_> {
    fn connection(&self) -> ClientConnection {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(self.trusts.roots())
            .with_no_client_auth();
        let name = ServerName::try_from(self.name.to_owned()).unwrap();
        ClientConnection::new(Arc::new(config), name).unwrap()
    }

    /// What it says first.
    pub fn hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.connection().write_tls(&mut hello).unwrap();
        hello
    }

    /// Says hello, and listens to whatever comes, until that ends.
    pub fn greet(&self, stream: &TcpStream) {
        // It may have been reset already.
        let _ = (&*stream).write_all(&self.hello());
        listen(stream);
    }

    /// Says something, hears it again, and takes its leave.
    ///
    /// # Errors
    /// What the certificate is refused for, or what became of the connection.
    pub fn talk(&self, stream: TcpStream) -> io::Result<()> {
        let mut tls = StreamOwned::new(self.connection(), stream);
        exchange(&mut tls)?;
        tls.conn.send_close_notify();
        tls.flush()?;
        tls.sock.shutdown(Shutdown::Write)?;
        listen(&tls.sock);
        Ok(())
    }

    /// The same, without the leave: the session as it stands.
    ///
    /// # Errors
    /// As [`Client::talk`].
    pub fn stay(&self, stream: TcpStream) -> io::Result<Session> {
        let mut tls = StreamOwned::new(self.connection(), stream);
        exchange(&mut tls)?;
        Ok(tls)
    }

    /// Shakes hands to the end, says nothing, and ends the connection.
    pub fn only_shake_hands(&self, mut stream: TcpStream) {
        let mut tls = self.connection();
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut stream).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        listen(&stream);
    }

    /// Shakes hands to the end, says that it is over, and lets the server end the connection.
    pub fn only_take_leave(&self, mut stream: TcpStream) {
        let mut tls = self.connection();
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut stream).unwrap();
        }
        tls.send_close_notify();
        while tls.wants_write() {
            tls.write_tls(&mut stream).unwrap();
        }
        listen(&stream);
    }

    /// Shakes hands and listens, whether it is let in or not.
    pub fn knock(&self, mut stream: TcpStream) {
        let mut tls = self.connection();
        while (tls.is_handshaking() || tls.wants_write()) && tls.complete_io(&mut stream).is_ok() {}
        listen(&stream);
    }

    /// Says hello, hears everything that the server says before it waits, and answers nothing.
    pub fn hear_flight(&self, mut stream: &TcpStream) {
        let mut tls = self.connection();
        tls.write_tls(&mut stream).unwrap();
        let is_heard = |tls: &ClientConnection| match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => !tls.is_handshaking(),
            Some(_) => tls.wants_write(),
            None => false,
        };
        while !is_heard(&tls) {
            assert_ne!(tls.read_tls(&mut stream).unwrap(), 0);
            tls.process_new_packets().unwrap();
        }
    }
}

/// A client's session that stands.
pub type Session = StreamOwned<ClientConnection, TcpStream>;

fn exchange(tls: &mut Session) -> io::Result<()> {
    tls.write_all(b"ping")?;
    let mut answer = [0; 4];
    tls.read_exact(&mut answer)?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// Reads until there is no more, however that ends.
pub fn listen(mut stream: &TcpStream) {
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}

/// Waits so long for the end of the connection, and leaves.
pub fn leave_after(stream: &TcpStream, patience: Duration) {
    stream.set_read_timeout(Some(patience)).unwrap();
    listen(stream);
}

/// A server with an identity.
pub fn server(identity: &Identity, versions: Versions) -> Arc<ServerConfig> {
    let (chain, key) = parts(identity);
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

/// A server that asks for a client certificate of `ca`'s.
pub fn server_for_members(identity: &Identity, ca: &Ca, versions: Versions) -> Arc<ServerConfig> {
    let (chain, key) = parts(identity);
    let roots = Arc::new(ca.roots());
    let members =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(members.unwrap())
        .with_single_cert(chain, key);
    Arc::new(config.unwrap())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn parts(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivatePkcs8KeyDer::from(identity.key.serialize_der());
    (identity.chain.clone(), PrivateKeyDer::from(key))
}

/// A session, seen from its server.
pub type Served = StreamOwned<ServerConnection, TcpStream>;

/// An upstream behind TLS: each connection is served by `serve`, which is given the first head.
pub fn upstream(
    config: Arc<ServerConfig>,
    serve: impl Fn(String, &mut Served) + Clone + Send + 'static,
) -> Origin {
    Origin::serving(move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(tls.read(&mut byte), Ok(1)) {
                while tls.conn.wants_write() && tls.conn.write_tls(&mut tls.sock).is_ok() {}
                let _ = tls.sock.shutdown(Shutdown::Write);
                // What is unread at a close would make it a reset.
                listen(&tls.sock);
                return "no head".to_owned();
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        serve(head.clone(), &mut tls);
        tls.conn.send_close_notify();
        let _ = tls.flush();
        let _ = tls.sock.shutdown(Shutdown::Write);
        listen(&tls.sock);
        format!("{} {head}", tls.conn.server_name().unwrap_or("-"))
    })
}

/// Says everything again, until the client has taken its leave or something is wrong.
pub fn echo(config: &Arc<ServerConfig>, stream: TcpStream) {
    let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = tls.read(&mut buffer) {
        if tls.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // An alert of the server's own may still be due.
    while tls.conn.wants_write() && tls.conn.write_tls(&mut tls.sock).is_ok() {}
    let _ = tls.sock.shutdown(Shutdown::Write);
    // What is unread at a close would make it a reset.
    listen(&tls.sock);
}

/// A session that stands on the server's side: one exchange is over.
pub fn answer_once(config: &Arc<ServerConfig>, stream: TcpStream) -> Served {
    let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
    let mut buffer = [0; 4];
    tls.read_exact(&mut buffer).unwrap();
    tls.write_all(&buffer).unwrap();
    tls
}

/// Reads one record, with its header; none where the connection ends before it does.
pub fn read_record(mut stream: &TcpStream) -> Option<Vec<u8>> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).ok()?;
    let length = u16::from_be_bytes([record[3], record[4]]);
    record.resize(5 + usize::from(length), 0);
    stream.read_exact(&mut record[5..]).ok()?;
    Some(record)
}

/// What a server says to this ClientHello before it waits.
fn flight(config: &Arc<ServerConfig>, hello: &[u8]) -> Vec<u8> {
    let mut tls = ServerConnection::new(config.clone()).unwrap();
    tls.read_tls(&mut &*hello).unwrap();
    tls.process_new_packets().unwrap();
    let mut flight = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut flight).unwrap();
    }
    flight
}

/// Reads one byte, and resets.
pub fn resets_after_a_byte(stream: TcpStream) {
    wire::read_exact(&stream, 1);
    wire::reset(stream);
}

/// Reads the ClientHello, waits, and resets.
pub fn resets_after_the_hello(stream: TcpStream, wait: Duration) {
    let _ = read_record(&stream);
    std::thread::sleep(wait);
    wire::reset(stream);
}

/// Reads the ClientHello, and takes its leave.
pub fn closes_after_the_hello(stream: TcpStream) {
    let _ = read_record(&stream);
    drop(stream);
}

/// Closes while the ClientHello lies unread, which is a reset.
pub fn closes_without_reading(stream: TcpStream) {
    let mut byte = [0];
    let _ = stream.peek(&mut byte);
    drop(stream);
}

/// Reads the ClientHello, says something, and takes its leave.
pub fn says(mut stream: &TcpStream, bytes: &[u8]) {
    let _ = read_record(stream);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    listen(stream);
}

/// A fatal alert, in the clear.
pub fn alert(number: u8) -> Vec<u8> {
    vec![0x15, 3, 3, 0, 2, 2, number]
}

/// Says so much of what it should have said; what is left of the connection then.
pub fn says_part(config: &Arc<ServerConfig>, stream: TcpStream, part: f32) -> TcpStream {
    let hello = read_record(&stream).unwrap();
    let flight = flight(config, &hello);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "some of a few thousand bytes"
    )]
    let count = (flight.len() as f32 * part) as usize;
    wire::send(&stream, &flight[..count]);
    stream
}

/// A ServerHello of TLS 1.2 whose random says that the server could have had 1.3 (RFC 8446, section 4.1.3).
pub fn downgraded_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([0x5a; 24]);
    body.extend(b"DOWNGRD\x01");
    // No session id, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, no compression, an empty renegotiation_info.
    body.extend([0, 0xc0, 0x2f, 0, 0, 5, 0xff, 1, 0, 1, 0]);
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![0x16, 3, 3, 0, length + 4, 2, 0, 0, length];
    record.extend(body);
    record
}

/// A ClientHello of TLS 1.3 for `name`, so many bytes long with its header: what is missing is padding.
pub fn long_hello(name: &str, length: usize) -> Vec<u8> {
    let extension = |kind: u16, body: &[u8]| {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend(u16_of(body.len()));
        bytes.extend(body);
        bytes
    };
    let mut server_name = u16_of(name.len() + 3).to_vec();
    server_name.push(0);
    server_name.extend(u16_of(name.len()));
    server_name.extend(name.as_bytes());
    let mut share = vec![0, 36, 0, 29, 0, 32];
    share.extend([9; 32]);
    let mut extensions = extension(0, &server_name);
    extensions.extend(extension(43, &[2, 3, 4]));
    extensions.extend(extension(10, &[0, 2, 0, 29]));
    extensions.extend(extension(13, &[0, 2, 4, 3]));
    extensions.extend(extension(51, &share));
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    // Headers of the record, the message, the extensions and the padding.
    let padding = length.saturating_sub(5 + 4 + body.len() + 2 + extensions.len() + 4);
    extensions.extend(extension(21, &vec![0; padding]));
    body.extend(u16_of(extensions.len()));
    body.extend(extensions);
    let mut hello = vec![0x16, 3, 1];
    hello.extend(u16_of(body.len() + 4));
    hello.extend([1, 0]);
    hello.extend(u16_of(body.len()));
    hello.extend(body);
    hello
}

fn u16_of(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap().to_be_bytes()
}
