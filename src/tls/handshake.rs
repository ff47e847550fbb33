//! A TLS handshake of our own, as a client, over an open connection; what went wrong keeps its facts.

mod watched;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS12;
use rustls::{
    CertificateError, DigitallySignedStruct, NamedGroup, PeerIncompatible, PeerMisbehaved,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::ledger::State;
use super::trust::{Judgement, Roots, Verdict, provider, server_name};
use crate::cause::Alert;
use crate::net::socket::reset_behind;
use crate::target::Host;
use crate::timeouts::Brief;

pub use watched::Watched;

/// How much of what a server said first is kept.
const FIRST_BYTES: usize = 64;

/// A handshake that was finished.
#[derive(Debug)]
pub struct Established<S> {
    /// What is said from now on is encrypted.
    pub stream: TlsStream<Watched<S>>,
    /// What the server's chain is worth: it is trusted.
    pub judgement: Judgement,
}

/// How long the server may take to end its side.
const FAREWELL: Duration = Duration::from_secs(1);

impl<S: AsyncRead + AsyncWrite + Unpin> Established<S> {
    /// Ends the connection in order: an alert `close_notify` and FIN, then what the server still sends is read for at most
    /// a second.
    /// Bytes left unread (session tickets) would make the kernel end it with a reset.
    pub async fn close(mut self) {
        let farewell = async {
            self.stream.shutdown().await?;
            tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await
        };
        if let Ok(Err(error)) = timeout(FAREWELL, farewell).await {
            tracing::debug!(%error, "end a TLS connection of our own");
        }
    }
}

/// How far a handshake had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Nothing of the ClientHello had left us.
    Nothing,
    /// The ClientHello was sent; no byte of the server had come.
    ClientHello,
    /// The server had begun to answer.
    FirstByte,
    /// The whole ServerHello had come.
    ServerHello,
    /// We had sent more behind it.
    ClientFlight,
}

impl Reached {
    /// The same in the words of a tunnel's handshake.
    pub fn state(self) -> State {
        match self {
            Self::Nothing => State::T0,
            Self::ClientHello => State::T2,
            Self::FirstByte => State::T3,
            Self::ServerHello => State::T4,
            Self::ClientFlight => State::T6,
        }
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "before our ClientHello",
            Self::ClientHello => "after our ClientHello",
            Self::FirstByte => "in the ServerHello",
            Self::ServerHello => "after the ServerHello",
            Self::ClientFlight => "after our half of the handshake",
        })
    }
}

/// Why a handshake of ours did not come about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The host has a name that no certificate can have.
    #[error("no certificate can name {0}")]
    Name(String),
    /// The connection was reset.
    #[error("reset {reached}")]
    Reset {
        /// How far it had come.
        reached: Reached,
        /// From our last write to it.
        since_write: Option<Duration>,
        /// The number of the error.
        #[source]
        source: io::Error,
    },
    /// The server ended the connection.
    #[error("closed {reached}")]
    Closed {
        /// How far it had come.
        reached: Reached,
    },
    /// Nothing more came.
    #[error("nothing came {reached}, for {}", Brief(*after))]
    TimedOut {
        /// How far it had come.
        reached: Reached,
        /// The limit.
        after: Duration,
    },
    /// The connection failed in another way.
    #[error("the connection failed {reached}")]
    Broken {
        /// How far it had come.
        reached: Reached,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The server ended the handshake with a reason.
    #[error("the server sent alert {} ({alert})", alert.0)]
    Alert {
        /// The reason.
        alert: Alert,
        /// How far it had come.
        reached: Reached,
    },
    /// What came is not TLS.
    #[error("the server does not speak TLS: it says {}", escaped(first))]
    NotTls {
        /// How it begins, at most 64 bytes.
        first: Vec<u8>,
    },
    /// The server's certificate is not trusted for this name.
    #[error("{}", wrong_with(.0))]
    Certificate(Box<Judgement>),
    /// No version in common.
    #[error("the server speaks neither TLS 1.2 nor 1.3")]
    Version,
    /// No cipher suite or group in common.
    #[error("the server and we have no cipher suite or group in common")]
    Cipher,
    /// The server chose a protocol that was not offered.
    #[error("the server speaks a protocol that was not offered (ALPN)")]
    Alpn,
    /// Something strips TLS 1.3.
    #[error("the ServerHello says TLS 1.2 and carries the mark of a server that can 1.3")]
    Downgrade,
    /// The server refused the encrypted ClientHello.
    #[error("the server refused the encrypted ClientHello")]
    Ech,
    /// The server breaks the protocol.
    #[error("the server breaks the protocol")]
    Protocol(#[source] rustls::Error),
    /// A defect of ours.
    #[error("our own half of the handshake failed")]
    Own(#[source] rustls::Error),
}

impl HandshakeError {
    /// How far it had come; `None` where the server had said enough to be judged.
    pub fn reached(&self) -> Option<Reached> {
        match self {
            Self::Reset { reached, .. }
            | Self::Closed { reached }
            | Self::TimedOut { reached, .. }
            | Self::Broken { reached, .. }
            | Self::Alert { reached, .. } => Some(*reached),
            Self::NotTls { .. } => Some(Reached::FirstByte),
            Self::Name(_) => Some(Reached::Nothing),
            Self::Certificate(_)
            | Self::Version
            | Self::Cipher
            | Self::Alpn
            | Self::Downgrade
            | Self::Ech
            | Self::Protocol(_)
            | Self::Own(_) => None,
        }
    }
}

/// Shakes hands as a client: `host` is the name in the ClientHello (SNI; none for an address) and the one that the
/// certificate must stand for. Offers TLS 1.2 and 1.3, and HTTP/2 and 1.1 (ALPN); resumes nothing.
///
/// Takes at most `limit`. Dropped, it leaves the connection as it is.
///
/// # Errors
/// One for each way that it can fail; what was learned before the failure is in it. A certificate that `roots` do not
/// trust is [`HandshakeError::Certificate`], one of a known interceptor that they trust is none.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    host: &Host,
    roots: &Arc<Roots>,
    limit: Duration,
) -> Result<Established<S>, HandshakeError> {
    let offer = Offer::of(&[b"h2", b"http/1.1"]);
    handshake_as(io, host, roots, &offer, limit).await
}

/// What is offered in a handshake beside what every handshake offers.
#[derive(Debug)]
pub struct Offer<'a> {
    /// The protocols (ALPN), the preferred one first.
    pub alpn: &'a [&'a [u8]],
    /// Who we are, where the server asks.
    pub identity: Option<Arc<dyn ResolvesClientCert>>,
    /// How the ClientHello looks.
    pub hello: Hello,
}

impl<'a> Offer<'a> {
    /// These protocols, from nobody in particular, as usual.
    pub fn of(alpn: &'a [&'a [u8]]) -> Self {
        Self {
            alpn,
            identity: None,
            hello: Hello::Usual,
        }
    }
}

/// How a ClientHello looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// With a key of the usual kind: one packet.
    Usual,
    /// With a post-quantum key, as browsers and newer tools have it: two packets.
    Large,
    /// As usual, of TLS 1.2 alone.
    Only12,
}

/// The same as [`handshake`], with another offer.
///
/// # Errors
/// As [`handshake`] has them.
pub async fn handshake_as<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    host: &Host,
    roots: &Arc<Roots>,
    offer: &Offer<'_>,
    limit: Duration,
) -> Result<Established<S>, HandshakeError> {
    let name = server_name(host).ok_or_else(|| HandshakeError::Name(host.to_string()))?;
    if !roots.is_loaded() {
        let roots = roots.clone();
        // Reading the system's files; where that fails, the first question reads them.
        let _ = tokio::task::spawn_blocking(move || roots.source()).await;
    }
    let verifier = Arc::new(Verifier {
        roots: roots.clone(),
        host: host.clone(),
        judgement: Mutex::new(None),
    });
    let config = config(verifier.clone(), offer).map_err(HandshakeError::Own)?;
    let facts = Arc::new(Mutex::new(Facts::default()));
    let watched = Watched::new(io, facts.clone());
    let connect = tokio_rustls::TlsConnector::from(config).connect(name, watched);
    let outcome = timeout(limit, connect).await;
    let judgement = verifier.take();
    let facts = facts.lock().unwrap_or_else(PoisonError::into_inner);
    match (outcome, judgement) {
        (Ok(Ok(mut stream)), Some(judgement)) => {
            stream.get_mut().0.forget();
            Ok(Established { stream, judgement })
        }
        (_, Some(judgement)) if !judgement.is_trusted => {
            Err(HandshakeError::Certificate(Box::new(judgement)))
        }
        (Ok(Err(error)), _) => Err(facts.explain(error)),
        // Nothing was resumed: a handshake that is over has shown a certificate.
        (Ok(Ok(_)), None) => Err(HandshakeError::Own(rustls::Error::NoCertificatesPresented)),
        (Err(_), _) => Err(HandshakeError::TimedOut {
            reached: facts.reached(),
            after: limit,
        }),
    }
}

fn config(verifier: Arc<Verifier>, offer: &Offer<'_>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut provider = provider();
    if offer.hello == Hello::Large {
        let groups = &mut Arc::make_mut(&mut provider).kx_groups;
        // The first one's key is sent.
        groups.sort_by_key(|group| group.name() != NamedGroup::X25519MLKEM768);
    }
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = match offer.hello {
        Hello::Usual | Hello::Large => builder.with_safe_default_protocol_versions()?,
        Hello::Only12 => builder.with_protocol_versions(&[&TLS12])?,
    };
    let config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &offer.identity {
        Some(identity) => config.with_client_cert_resolver(identity.clone()),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = offer.alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Judges by [`Roots`], and keeps the judgement.
#[derive(Debug)]
struct Verifier {
    roots: Arc<Roots>,
    host: Host,
    judgement: Mutex<Option<Judgement>>,
}

impl Verifier {
    fn take(&self) -> Option<Judgement> {
        let mut judgement = self.judgement.lock();
        judgement
            .as_mut()
            .map_or_else(|poisoned| poisoned.get_mut().take(), |kept| kept.take())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut chain = vec![end_entity.clone()];
        chain.extend_from_slice(intermediates);
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let now = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let judgement = self.roots.judge(&chain, &self.host, now);
        let alert = refusal(judgement.verdict);
        let is_trusted = judgement.is_trusted;
        *self
            .judgement
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(judgement);
        if is_trusted {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(alert.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What the server is told of a verdict: the library makes the alert of it.
fn refusal(verdict: Verdict) -> CertificateError {
    match verdict {
        Verdict::Expired => CertificateError::Expired,
        Verdict::NotYetValid => CertificateError::NotValidYet,
        Verdict::NameMismatch => CertificateError::NotValidForName,
        Verdict::Revoked => CertificateError::Revoked,
        Verdict::WrongPurpose => CertificateError::InvalidPurpose,
        Verdict::Malformed => CertificateError::BadEncoding,
        Verdict::Valid
        | Verdict::SelfSigned
        | Verdict::UnknownIssuer
        | Verdict::IncompleteChain
        | Verdict::CaAsLeaf
        | Verdict::Weak
        | Verdict::KnownInterceptor => CertificateError::UnknownIssuer,
    }
}

/// What passed over a connection until its handshake was over.
#[derive(Debug, Default)]
struct Facts {
    /// The last write.
    wrote: Option<Instant>,
    /// Something was sent behind the server's first byte.
    answered: bool,
    received: usize,
    first: Vec<u8>,
}

impl Facts {
    fn reached(&self) -> Reached {
        let hello = match *self.first {
            // The record of a handshake, and in it the length of a ServerHello.
            [22, _, _, _, _, 2, a, b, c, ..] => Some(u32::from_be_bytes([0, a, b, c])),
            _ => None,
        };
        let has_hello = |length: u32| u32::try_from(self.received).is_ok_and(|n| n >= length + 9);
        match (self.wrote.is_some(), self.received) {
            (false, 0) => Reached::Nothing,
            (true, 0) => Reached::ClientHello,
            _ if self.answered => Reached::ClientFlight,
            _ if hello.is_some_and(has_hello) => Reached::ServerHello,
            _ => Reached::FirstByte,
        }
    }

    /// Makes an error of the library, or of the connection, one of ours.
    fn explain(&self, error: io::Error) -> HandshakeError {
        let reached = self.reached();
        if self
            .first
            .first()
            .is_some_and(|kind| !(20..=23).contains(kind))
        {
            return HandshakeError::NotTls {
                first: self.first.clone(),
            };
        }
        let tls = error.get_ref().and_then(|error| error.downcast_ref());
        if let Some(tls) = tls {
            return of_library(tls, reached);
        }
        let source = error;
        if source.kind() == io::ErrorKind::UnexpectedEof {
            HandshakeError::Closed { reached }
        } else if reset_behind(&source).is_some() {
            HandshakeError::Reset {
                reached,
                since_write: self.wrote.map(|wrote| wrote.elapsed()),
                source,
            }
        } else {
            HandshakeError::Broken { reached, source }
        }
    }
}

/// What a server refused behind our half of the handshake: in TLS 1.3 its word on our certificate comes only then.
pub fn refused_late(error: &io::Error) -> Option<HandshakeError> {
    let error = error.get_ref()?.downcast_ref()?;
    if let rustls::Error::AlertReceived(alert) = error {
        let alert = Alert(u8::from(*alert));
        return Some(HandshakeError::Alert {
            alert,
            reached: Reached::ClientFlight,
        });
    }
    None
}

fn of_library(error: &rustls::Error, reached: Reached) -> HandshakeError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's list may grow, and what is left is about what the server sent"
    )]
    match error {
        rustls::Error::AlertReceived(alert) => HandshakeError::Alert {
            alert: Alert(u8::from(*alert)),
            reached,
        },
        rustls::Error::PeerIncompatible(why) => match why {
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled => HandshakeError::Version,
            PeerIncompatible::ServerRejectedEncryptedClientHello(_) => HandshakeError::Ech,
            _ => HandshakeError::Cipher,
        },
        rustls::Error::PeerMisbehaved(why) => match why {
            PeerMisbehaved::AttemptedDowngradeToTls12WhenTls13IsSupported => {
                HandshakeError::Downgrade
            }
            PeerMisbehaved::SelectedUnofferedApplicationProtocol => HandshakeError::Alpn,
            PeerMisbehaved::SelectedUnofferedCipherSuite
            | PeerMisbehaved::SelectedUnofferedKxGroup
            | PeerMisbehaved::SelectedUnusableCipherSuiteForVersion => HandshakeError::Cipher,
            _ => HandshakeError::Protocol(error.clone()),
        },
        rustls::Error::InvalidEncryptedClientHello(_) => HandshakeError::Ech,
        rustls::Error::NoApplicationProtocol => HandshakeError::Alpn,
        rustls::Error::General(_)
        | rustls::Error::FailedToGetCurrentTime
        | rustls::Error::FailedToGetRandomBytes
        | rustls::Error::EncryptError => HandshakeError::Own(error.clone()),
        _ => HandshakeError::Protocol(error.clone()),
    }
}

fn escaped(first: &[u8]) -> String {
    let line = first.split(|byte| matches!(byte, b'\r' | b'\n')).next();
    format!("\"{}\"", line.unwrap_or_default().escape_ascii())
}

/// What is wrong with a certificate, shortest first: it stands in a reason phrase.
fn wrong_with(judgement: &Judgement) -> String {
    let Judgement {
        subject, issuer, ..
    } = judgement;
    let day = |moment: Option<Timestamp>| {
        moment.map_or_else(|| "a day that cannot be read".to_owned(), |m| m.to_string())
    };
    match judgement.verdict {
        Verdict::Valid => format!("the certificate of {subject} is valid"),
        Verdict::SelfSigned => format!("the certificate is signed by its own key: {subject}"),
        Verdict::UnknownIssuer => format!("the certificate's issuer is not trusted: {issuer}"),
        Verdict::IncompleteChain => {
            format!("the server does not send the certificate of its issuer: {issuer}")
        }
        Verdict::Expired | Verdict::NotYetValid if judgement.is_above => {
            format!("a certificate above the server's own is out of its time: {issuer}")
        }
        Verdict::Expired => format!("the certificate expired at {}", day(judgement.not_after)),
        Verdict::NotYetValid => {
            format!(
                "the certificate is valid from {} on",
                day(judgement.not_before)
            )
        }
        Verdict::NameMismatch if judgement.names.is_empty() => {
            format!("the certificate names no host: {subject}")
        }
        Verdict::NameMismatch => format!("the certificate is for {}", judgement.names.join(", ")),
        Verdict::Revoked => format!("the certificate is revoked: {subject}"),
        Verdict::WrongPurpose => format!("the certificate is not for servers: {subject}"),
        Verdict::CaAsLeaf => format!("the server's own certificate is a CA's: {subject}"),
        Verdict::Weak => format!("the certificate's signature is too weak: {subject}"),
        Verdict::Malformed if subject.is_empty() => "the certificate cannot be read".to_owned(),
        Verdict::Malformed => format!("the certificate, or its signature, is broken: {subject}"),
        Verdict::KnownInterceptor => {
            let product = judgement.interceptor.unwrap_or("a product");
            format!("the certificate is made by {product}, which opens TLS: {issuer}")
        }
    }
}

#[cfg(test)]
mod tests;
