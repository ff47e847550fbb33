//! TLS with an upstream: what it takes to shake hands, and the stream inside.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::client::TlsStream;

use crate::net::inside_tls;
use crate::net::socket::Socket;
use crate::policy::upstream::{Identity, Tls, Versions};
use crate::target::Host;
use crate::tls::handshake::{Established, HandshakeError, Offer, Watched, handshake_as};
use crate::tls::trust::{Roots, provider};

const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// A stream inside TLS with an upstream.
pub type Stream = inside_tls::Stream<TlsStream<Watched<Socket>>>;

/// What it takes to shake hands with one upstream.
#[derive(Debug)]
pub struct Client {
    host: Host,
    roots: Arc<Roots>,
    identity: Option<Arc<dyn ResolvesClientCert>>,
    versions: Versions,
}

/// What a connection is for: it decides which versions of HTTP are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Plain requests, in HTTP/1.1.
    Requests,
    /// Tunnels, in what the policy says.
    Tunnels,
}

impl Client {
    /// For an upstream whose URL names `host`.
    pub fn new(tls: &Tls, host: &Host) -> Self {
        let given = |roots: &Vec<Vec<u8>>| {
            Roots::of(roots.iter().map(|der| CertificateDer::from(der.clone())))
        };
        Self {
            host: tls.server_name.clone().unwrap_or_else(|| host.clone()),
            roots: Arc::new(tls.roots.as_ref().map_or_else(Roots::of_system, given)),
            // The policy was checked with it.
            identity: tls.identity.as_ref().and_then(resolver),
            versions: tls.versions,
        }
    }

    /// The name that is asked for and that the certificate must stand for.
    pub fn server_name(&self) -> &Host {
        &self.host
    }

    /// Shakes hands; tells whether HTTP/2 was agreed.
    ///
    /// # Errors
    /// As [`handshake_as`] has them.
    pub async fn handshake(
        &self,
        socket: Socket,
        used: Use,
        limit: Duration,
    ) -> Result<(Stream, bool), HandshakeError> {
        let alpn: &[&[u8]] = match (used, self.versions) {
            (Use::Requests, _) | (Use::Tunnels, Versions::One) => &[HTTP_1],
            (Use::Tunnels, Versions::Auto) => &[HTTP_2, HTTP_1],
            (Use::Tunnels, Versions::Two) => &[HTTP_2],
        };
        let offer = Offer {
            identity: self.identity.clone(),
            ..Offer::of(alpn)
        };
        let established =
            handshake_as(socket.clone(), &self.host, &self.roots, &offer, limit).await?;
        let Established { stream, .. } = established;
        let is_http_2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
        if used == Use::Tunnels && self.versions == Versions::Two && !is_http_2 {
            return Err(HandshakeError::Alpn);
        }
        // What a tunnel carries knows its own end.
        let stream = Stream::new(stream, socket, used == Use::Tunnels);
        Ok((stream, is_http_2))
    }
}

fn resolver(identity: &Identity) -> Option<Arc<dyn ResolvesClientCert>> {
    let key = PrivateKeyDer::from_pem_slice(identity.key.reveal().as_bytes()).ok()?;
    let chain = identity.chain.iter();
    let chain = chain.map(|der| CertificateDer::from(der.clone())).collect();
    let key = CertifiedKey::from_der(chain, key, &provider()).ok()?;
    Some(Arc::new(SingleCertAndKey::from(key)))
}
