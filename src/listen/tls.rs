//! TLS with clients: a listener's certificate, and who they are by theirs.

use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::Tls;
use crate::failure::{FirstBytes, HeadError};
use crate::net::inside_tls::Stream;
use crate::net::socket::Socket;
use crate::net::wire::Wire;
use crate::record::quote;
use crate::tls::trust::provider;

const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 22;

/// A handshake that went well.
#[derive(Debug)]
pub(super) struct Shaken {
    pub(super) wire: Wire,
    /// The client's name, by its certificate.
    pub(super) name: Option<Arc<str>>,
    pub(super) is_http2: bool,
}

/// What it takes to shake hands with clients.
///
/// # Errors
/// What is wrong with certificate, key or authorities.
pub fn config(tls: &Tls) -> Result<Arc<ServerConfig>, rustls::Error> {
    let general = |error: &dyn std::fmt::Display| rustls::Error::General(error.to_string());
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for der in authorities {
                roots.add(CertificateDer::from(der.clone()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.build().map_err(|error| general(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = tls.identity.chain.iter();
    let chain = chain.map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::from_pem_slice(tls.identity.key.reveal().as_bytes())
        .map_err(|error| general(&error))?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
    Ok(Arc::new(config))
}

/// Shakes hands with a client.
///
/// # Errors
/// What speaks no TLS, and has lost no byte yet, as [`HeadError::PlainToTls`].
pub(super) async fn accept(config: Arc<ServerConfig>, socket: Socket) -> Result<Shaken, HeadError> {
    let mut first = [0; 16];
    let seen = match socket.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(HeadError::Empty),
        Ok(count) => first.get(..count).unwrap_or_default(),
    };
    if seen.first() != Some(&HANDSHAKE) {
        return Err(HeadError::PlainToTls(FirstBytes(seen.to_vec())));
    }
    let stream = TlsAcceptor::from(config)
        .accept(socket.clone())
        .await
        .map_err(told)?;
    let (_, session) = stream.get_ref();
    let name = session
        .peer_certificates()
        .and_then(|chain| name_of(chain.first()?));
    if session.peer_certificates().is_some() && name.is_none() {
        return Err(HeadError::Certificate(io::Error::other("it names nobody")));
    }
    let is_http2 = session.alpn_protocol() == Some(HTTP_2);
    // Many clients end their TCP without a last word of TLS; what is inside knows its own end.
    let stream = Stream::new(stream, socket.clone(), true);
    let wire = Wire::inside(stream, socket);
    Ok(Shaken {
        wire,
        name,
        is_http2,
    })
}

fn told(error: io::Error) -> HeadError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::NoCertificatesPresented) => HeadError::NoCertificate,
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::BadSignature
            | CertificateError::Revoked,
        )) => HeadError::Certificate(error),
        Some(_) | None => HeadError::Handshake(error),
    }
}

/// The name that a certificate stands for: the first of its alternative names, else its common name.
fn name_of(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "other kinds of names are no text"
    )]
    let alternative = names.filter_map(|name| match name {
        GeneralName::RFC822Name(name) | GeneralName::DNSName(name) | GeneralName::URI(name) => {
            Some(*name)
        }
        _ => None,
    });
    let mut common = certificate.subject().iter_common_name();
    let name = alternative
        .chain(common.next().and_then(|name| name.as_str().ok()))
        .find(|name| !name.is_empty())?;
    Some(quote(name).into())
}
