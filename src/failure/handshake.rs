//! How a TLS handshake of our own failed, and what its packets say of that. The same ids as for a client's own.

use std::time::Duration;

use super::chain;
use super::tunnel::{Forensics, is_blackholed, side_of_reset};
use crate::cause::{Alert, Cause, Kind};
use crate::net::tcp_info::TcpInfo;
use crate::tls::handshake::{HandshakeError, Reached};
use crate::tls::trust::Verdict;

/// A handshake that did not come about, with all that was seen of it.
#[derive(Debug)]
pub struct Handshake {
    /// Whom with: host and port of the target, or of an upstream.
    pub server: String,
    /// The name in our ClientHello; `None` for an address.
    pub server_name: Option<String>,
    /// How it failed.
    pub error: HandshakeError,
    /// Its connection at that moment; `None` where the kernel does not tell.
    pub tcp: Option<TcpInfo>,
    /// From the connection to that moment.
    pub since_connect: Duration,
    /// Whether the far end of the connection is the server itself. Where it is an upstream, packets tell of the way to that
    /// one only.
    pub is_end_to_end: bool,
}

impl Handshake {
    pub(super) fn message(&self) -> String {
        format!("handshake with {}: {}", self.server, chain(&self.error))
    }

    /// From our last write to the reset; `None` where there was none.
    pub fn since_write(&self) -> Option<Duration> {
        if let HandshakeError::Reset { since_write, .. } = &self.error {
            *since_write
        } else {
            None
        }
    }

    /// What is known of the reset; `None` where there was none, or the kernel does not tell.
    pub fn reset(&self) -> Option<Forensics> {
        let HandshakeError::Reset { since_write, .. } = &self.error else {
            return None;
        };
        Some(Forensics::of(self.tcp?, *since_write, self.since_connect))
    }
}

/// Names the cause of a handshake of ours that did not come about.
pub(super) fn classify(handshake: &Handshake) -> Cause {
    let kind = match &handshake.error {
        HandshakeError::Name(_) => Kind::ClientBadTarget,
        HandshakeError::Reset { reached, .. } | HandshakeError::Broken { reached, .. } => {
            match reached {
                Reached::Nothing => Kind::TlsResetBeforeClientHello,
                Reached::ClientHello => {
                    let side = side_of_reset(handshake.reset(), handshake.is_end_to_end);
                    return Cause::from(Kind::TlsResetAfterClientHello).by(side);
                }
                Reached::FirstByte | Reached::ServerHello | Reached::ClientFlight => {
                    Kind::TlsResetDuringServerFlight
                }
            }
        }
        HandshakeError::Closed { reached } => match reached {
            Reached::Nothing => Kind::TlsResetBeforeClientHello,
            Reached::ClientHello => Kind::TlsClosedAfterClientHello,
            Reached::FirstByte | Reached::ServerHello | Reached::ClientFlight => {
                Kind::TlsResetDuringServerFlight
            }
        },
        HandshakeError::TimedOut { reached, .. } => match reached {
            Reached::Nothing | Reached::ClientHello
                if handshake.is_end_to_end && handshake.tcp.is_some_and(is_blackholed) =>
            {
                Kind::TlsClientHelloBlackholed
            }
            Reached::Nothing | Reached::ClientHello => Kind::TlsNoServerHello,
            Reached::FirstByte | Reached::ServerHello => Kind::TlsServerFlightStalled,
            Reached::ClientFlight => Kind::TlsHandshakeTimeout,
        },
        HandshakeError::Alert { alert, .. } => match alert {
            Alert(121) => Kind::TlsEchRejected,
            Alert(_) => Kind::TlsAlertFromServer(*alert),
        },
        HandshakeError::NotTls { .. } | HandshakeError::Protocol(_) => Kind::TlsNotTlsReply,
        HandshakeError::Certificate(judgement) => {
            of_verdict(judgement.verdict).unwrap_or(Kind::ProxyInternal)
        }
        HandshakeError::Version => Kind::TlsVersionMismatch,
        HandshakeError::Cipher => Kind::TlsCipherMismatch,
        HandshakeError::Alpn => Kind::TlsAlpnRefused,
        HandshakeError::Downgrade => Kind::TlsDowngradeSentinel,
        HandshakeError::Ech => Kind::TlsEchRejected,
        HandshakeError::Own(_) => Kind::ProxyInternal,
    };
    kind.into()
}

/// Names what a verdict on a certificate amounts to; nothing where it is valid.
fn of_verdict(verdict: Verdict) -> Option<Kind> {
    Some(match verdict {
        Verdict::Valid => return None,
        Verdict::SelfSigned => Kind::TlsCertSelfSigned,
        Verdict::UnknownIssuer => Kind::TlsCertUnknownIssuer,
        Verdict::IncompleteChain => Kind::TlsCertIncompleteChain,
        Verdict::Expired => Kind::TlsCertExpired,
        Verdict::NotYetValid => Kind::TlsCertNotYetValid,
        Verdict::NameMismatch => Kind::TlsCertNameMismatch,
        Verdict::Revoked => Kind::TlsCertRevoked,
        Verdict::WrongPurpose => Kind::TlsCertWrongPurpose,
        Verdict::CaAsLeaf => Kind::TlsCertCaAsLeaf,
        Verdict::Weak => Kind::TlsCertWeak,
        Verdict::Malformed => Kind::TlsCertMalformed,
        Verdict::KnownInterceptor => Kind::TlsCertKnownInterceptor,
    })
}
