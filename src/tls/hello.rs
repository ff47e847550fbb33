//! The two hellos, read from their handshake messages (RFC 8446, sections 4.1.2 and 4.1.3).

use std::borrow::Cow;

use tls_parser::{
    NamedGroup, TlsCipherSuite, TlsExtension, TlsMessage, TlsMessageHandshake, TlsVersion,
    parse_tls_client_hello_extensions, parse_tls_message_handshake,
    parse_tls_server_hello_extensions,
};

/// The extension of Encrypted Client Hello (RFC 9849), which the parser has no name for.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// X25519MLKEM768, likewise.
const X25519_MLKEM768: u16 = 0x11ec;

/// The random of a ServerHello that asks for another ClientHello (RFC 8446, section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// The end of the random of a server that could do better than it was asked for (the same section); 0 or 1 follows.
const SENTINEL: &[u8] = b"DOWNGRD";

/// More protocols, or groups, than any client offers; a stranger may send thousands.
const MOST_OFFERED: usize = 32;
/// No name is longer.
const LONGEST_NAME: usize = 255;

const TLS_1_2: u16 = 0x0303;
const TLS_1_3: u16 = 0x0304;

/// What a client offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The name in the SNI extension; the outer one where there is ECH.
    pub server_name: Option<String>,
    /// The protocols of the ALPN extension, the first of them.
    pub alpn: Vec<String>,
    /// The versions, as numbers of the wire, without grease.
    pub versions: Vec<u16>,
    /// The groups, the first of them, without grease.
    pub groups: Vec<u16>,
    /// Whether there is an ECH extension, real or grease.
    pub ech: bool,
    /// Whether data is sent ahead of the handshake.
    pub early_data: bool,
}

impl ClientHello {
    /// Reads a whole handshake message, with its header of four bytes.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the other extensions say nothing of interest"
    )]
    pub fn read(message: &[u8]) -> Option<Self> {
        let Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) =
            parse_tls_message_handshake(message)
        else {
            return None;
        };
        let mut read = Self::default();
        let extensions = hello.ext.map(parse_tls_client_hello_extensions);
        let extensions = extensions.and_then(|parsed| Some(parsed.ok()?.1));
        for extension in extensions.unwrap_or_default() {
            match extension {
                TlsExtension::SNI(names) => {
                    let name = names.first().map(|(_, name)| *name).unwrap_or_default();
                    let name = name.get(..LONGEST_NAME).unwrap_or(name);
                    read.server_name = Some(String::from_utf8_lossy(name).into_owned());
                }
                TlsExtension::ALPN(protocols) => {
                    let protocols = protocols.iter().take(MOST_OFFERED);
                    let protocols = protocols.map(|name| String::from_utf8_lossy(name));
                    read.alpn = protocols.map(Cow::into_owned).collect();
                }
                TlsExtension::SupportedVersions(versions) => {
                    read.versions = without_grease(versions.iter().map(|version| version.0));
                }
                TlsExtension::EllipticCurves(groups) => {
                    let groups = groups.iter().take(MOST_OFFERED);
                    read.groups = without_grease(groups.map(|group| group.0));
                }
                TlsExtension::EarlyData(_) => read.early_data = true,
                TlsExtension::Unknown(kind, _) if kind.0 == ENCRYPTED_CLIENT_HELLO => {
                    read.ech = true;
                }
                _ => {}
            }
        }
        if read.versions.is_empty() {
            read.versions.push(hello.version.0);
        }
        Some(read)
    }

    /// Whether TLS 1.3 is among what it offers.
    pub fn offers_1_3(&self) -> bool {
        self.versions.contains(&TLS_1_3)
    }
}

/// What a server chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The version, as a number of the wire.
    pub version: u16,
    /// The cipher suite's number.
    pub cipher: u16,
    /// Whether it only asks for another ClientHello.
    pub is_retry: bool,
    /// Whether its random says that the server could do better.
    pub has_sentinel: bool,
    /// The protocol (ALPN), which is in the clear up to TLS 1.2.
    pub alpn: Option<String>,
}

impl ServerHello {
    /// Reads a whole handshake message, with its header of four bytes.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the other extensions say nothing of interest"
    )]
    pub fn read(message: &[u8]) -> Option<Self> {
        let Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ServerHello(hello)))) =
            parse_tls_message_handshake(message)
        else {
            return None;
        };
        let mut read = Self {
            version: hello.version.0,
            cipher: hello.cipher.0,
            is_retry: hello.random == RETRY,
            has_sentinel: hello
                .random
                .strip_suffix(&[0])
                .or_else(|| hello.random.strip_suffix(&[1]))
                .is_some_and(|random| random.ends_with(SENTINEL)),
            alpn: None,
        };
        let extensions = hello.ext.map(parse_tls_server_hello_extensions);
        let extensions = extensions.and_then(|parsed| Some(parsed.ok()?.1));
        for extension in extensions.unwrap_or_default() {
            match extension {
                TlsExtension::SupportedVersions(versions) => {
                    read.version = versions.first().map_or(read.version, |version| version.0);
                }
                TlsExtension::ALPN(protocols) => {
                    let chosen = protocols.first();
                    read.alpn = chosen.map(|name| String::from_utf8_lossy(name).into_owned());
                }
                _ => {}
            }
        }
        Some(read)
    }

    /// Whether what follows is encrypted, as from TLS 1.3 on.
    pub fn is_1_3(&self) -> bool {
        self.version > TLS_1_2
    }
}

/// A version's name: `1.3`; `0x…` for one without.
pub fn version_name(version: u16) -> Cow<'static, str> {
    match TlsVersion(version) {
        TlsVersion::Tls13 => "1.3".into(),
        TlsVersion::Tls12 => "1.2".into(),
        TlsVersion::Tls11 => "1.1".into(),
        TlsVersion::Tls10 => "1.0".into(),
        TlsVersion::Ssl30 => "ssl3".into(),
        TlsVersion(number) => format!("{number:#06x}").into(),
    }
}

/// A cipher suite's name in the IANA registry; `0x…` for one without.
pub fn cipher_name(cipher: u16) -> Cow<'static, str> {
    TlsCipherSuite::from_id(cipher).map_or_else(
        || format!("{cipher:#06x}").into(),
        |suite| suite.name.into(),
    )
}

/// A group's name in the IANA registry; `0x…` for one without.
pub fn group_name(group: u16) -> Cow<'static, str> {
    match NamedGroup(group) {
        NamedGroup::EcdhX25519 => "x25519".into(),
        NamedGroup::EcdhX448 => "x448".into(),
        NamedGroup::Secp256r1 => "secp256r1".into(),
        NamedGroup::Secp384r1 => "secp384r1".into(),
        NamedGroup::Secp521r1 => "secp521r1".into(),
        NamedGroup::Ffdhe2048 => "ffdhe2048".into(),
        NamedGroup::Ffdhe3072 => "ffdhe3072".into(),
        NamedGroup::Ffdhe4096 => "ffdhe4096".into(),
        NamedGroup(X25519_MLKEM768) => "X25519MLKEM768".into(),
        NamedGroup(number) => format!("{number:#06x}").into(),
    }
}

/// Leaves out the numbers that mean nothing (RFC 8701): two equal bytes that end in `a`.
fn without_grease(numbers: impl Iterator<Item = u16>) -> Vec<u16> {
    let is_grease = |number: u16| number & 0x0f0f == 0x0a0a && number >> 8 == number & 0xff;
    numbers.filter(|number| !is_grease(*number)).collect()
}
