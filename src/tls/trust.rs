//! Which certificates are trusted here, and what is wrong with a chain that is not.
//!
//! A judgement costs signature checks: it is made where somebody asks for it, never for each connection.

mod interceptors;

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::record::quote;
use crate::target::Host;

use interceptors::product;

/// The one crypto provider.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// The certificates that a chain may end at, loaded at the first question.
#[derive(Debug, Default)]
pub struct Roots {
    loaded: OnceLock<Loaded>,
    /// Intermediates of chains that were trusted: they tell a chain that lacks one from an unknown issuer.
    seen: Mutex<Vec<Intermediate>>,
}

#[derive(Debug)]
struct Loaded {
    store: Arc<RootCertStore>,
    /// `None` where there is not one root: then nothing is trusted.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    source: Source,
}

/// Where roots come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The system's store, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name instead.
    System,
    /// The list of Mozilla as the crate webpki-roots has it, where the system has none.
    Mozilla,
    /// Named by whoever made them.
    Given,
}

impl Source {
    /// Its name, as in the diary.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Mozilla => "webpki-roots",
            Self::Given => "given",
        }
    }
}

#[derive(Debug)]
struct Intermediate {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    der: CertificateDer<'static>,
}

/// More than a site's clients meet; each is some 1.5 KiB.
const MOST_SEEN: usize = 256;

/// What a chain is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What is wrong with it, if anything.
    pub verdict: Verdict,
    /// Whether a client with these roots accepts it. [`Verdict::KnownInterceptor`] says neither.
    pub is_trusted: bool,
    /// The product that opens TLS, by the issuer's name.
    pub interceptor: Option<&'static str>,
    /// Whom the certificate is for, as in `CN=a.example`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its first moment.
    pub not_before: Option<Timestamp>,
    /// Its last moment.
    pub not_after: Option<Timestamp>,
    /// Its SHA-256, in hex.
    pub sha256: String,
    /// The names and addresses that it stands for, at most [`MOST_NAMES`].
    pub names: Vec<String>,
    /// How many certificates came.
    pub sent: usize,
    /// Whether it is a certificate above the server's own that is out of its time.
    pub is_above: bool,
}

/// What is wrong with a chain. The first that holds, in the order of what it is checked for: form, time, being a CA,
/// purpose, trust, name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Valid,
    /// Signed by its own key, and no root.
    SelfSigned,
    /// The chain ends at an issuer that is no root.
    UnknownIssuer,
    /// The same, but intermediates that were seen elsewhere lead to a root.
    IncompleteChain,
    /// A last moment is past.
    Expired,
    /// A first moment is to come.
    NotYetValid,
    /// It is for other names.
    NameMismatch,
    /// It was revoked. No revocation list is loaded, so that nothing is told so yet.
    Revoked,
    /// It is not for servers.
    WrongPurpose,
    /// The server's own certificate is that of a CA.
    CaAsLeaf,
    /// Signed by an algorithm, or a key, that is refused today.
    Weak,
    /// Not to be read, or a signature does not hold.
    Malformed,
    /// Signed by a product that opens TLS; [`Judgement::is_trusted`] tells whether its root is installed here.
    KnownInterceptor,
}

impl Verdict {
    /// `valid`, or the ending of the `tls.cert.` id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::SelfSigned => "self_signed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::IncompleteChain => "incomplete_chain",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NameMismatch => "name_mismatch",
            Self::Revoked => "revoked",
            Self::WrongPurpose => "wrong_purpose",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::Weak => "weak",
            Self::Malformed => "malformed",
            Self::KnownInterceptor => "known_interceptor",
        }
    }
}

/// A certificate may stand for thousands of names; a record needs a few.
pub const MOST_NAMES: usize = 16;

impl Roots {
    /// The roots of the system; [`Source::Mozilla`] where it has none.
    ///
    /// The loader reads `SSL_CERT_FILE` and `SSL_CERT_DIR` itself, as OpenSSL does, and only at the first question.
    pub fn of_system() -> Self {
        Self::default()
    }

    /// Exactly these. What cannot be read as a certificate is left out.
    pub fn of(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        Self {
            loaded: Loaded::new(store, Source::Given).into(),
            seen: Mutex::default(),
        }
    }

    /// Where they come from. Loads them.
    pub fn source(&self) -> Source {
        self.loaded().source
    }

    /// The roots themselves. Loads them.
    pub fn store(&self) -> Arc<RootCertStore> {
        self.loaded().store.clone()
    }

    /// Whether they are there: a first question reads files.
    pub fn is_loaded(&self) -> bool {
        self.loaded.get().is_some()
    }

    fn loaded(&self) -> &Loaded {
        self.loaded.get_or_init(load)
    }

    /// Judges what a server sent, its own certificate first, for the name that was asked for, at a moment.
    pub fn judge(&self, chain: &[CertificateDer<'_>], name: &Host, now: Timestamp) -> Judgement {
        let Some((leaf, rest)) = chain.split_first() else {
            return Judgement::unreadable(chain);
        };
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
            return Judgement::unreadable(chain);
        };
        let outcome = self.verify(leaf, rest, name, now);
        let interceptor = interceptor(&parsed, rest);
        let verdict = match &outcome {
            Ok(()) => {
                self.remember(rest);
                interceptor.map_or(Verdict::Valid, |_| Verdict::KnownInterceptor)
            }
            Err(error) => {
                let complete = || self.completes(leaf, rest, name, now);
                let is_root = || self.is_root(&parsed);
                verdict(error, &parsed, interceptor.is_some(), is_root, complete)
            }
        };
        let moment = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp());
        Judgement {
            verdict,
            is_trusted: outcome.is_ok(),
            interceptor,
            subject: quote(&parsed.subject().to_string()),
            issuer: quote(&parsed.issuer().to_string()),
            not_before: moment(parsed.validity().not_before).ok(),
            not_after: moment(parsed.validity().not_after).ok(),
            sha256: sha256(leaf),
            names: names(&parsed),
            sent: chain.len(),
            is_above: matches!(verdict, Verdict::Expired | Verdict::NotYetValid)
                && is_in_time(&parsed, now),
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &Host,
        now: Timestamp,
    ) -> Result<(), rustls::Error> {
        let Some(verifier) = &self.loaded().verifier else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let name = server_name(name).ok_or(CertificateError::NotValidForName)?;
        let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
        let now = UnixTime::since_unix_epoch(now);
        let verified = verifier.verify_server_cert(leaf, rest, &name, &[], now);
        verified.map(|_| ())
    }

    fn is_root(&self, parsed: &X509Certificate<'_>) -> bool {
        let (subject, key) = (parsed.subject().as_raw(), parsed.public_key().raw);
        // An anchor keeps both without the tag and length in front.
        self.loaded().store.roots.iter().any(|root| {
            subject.ends_with(&root.subject) && key.ends_with(&root.subject_public_key_info)
        })
    }

    fn remember(&self, intermediates: &[CertificateDer<'_>]) {
        if intermediates.is_empty() {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for der in intermediates {
            if seen.iter().any(|known| known.der == *der) {
                continue;
            }
            let Ok((_, parsed)) = X509Certificate::from_der(der) else {
                continue;
            };
            if seen.len() == MOST_SEEN {
                seen.remove(0);
            }
            seen.push(Intermediate {
                subject: parsed.subject().as_raw().to_vec(),
                issuer: parsed.issuer().as_raw().to_vec(),
                der: der.clone().into_owned(),
            });
        }
    }

    /// Whether intermediates that were seen elsewhere lead from a chain to a root.
    fn completes(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &Host,
        now: Timestamp,
    ) -> bool {
        let mut wanted: Vec<Vec<u8>> = [leaf]
            .into_iter()
            .chain(rest)
            .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
            .map(|parsed| parsed.issuer().as_raw().to_vec())
            .collect();
        let mut chain: Vec<CertificateDer<'_>> = rest.to_vec();
        {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let mut at = 0;
            while let Some(name) = wanted.get(at).cloned() {
                for known in seen.iter().filter(|known| known.subject == name) {
                    if !chain.contains(&known.der) {
                        chain.push(known.der.clone());
                        wanted.push(known.issuer.clone());
                    }
                }
                at += 1;
            }
        }
        chain.len() > rest.len() && self.verify(leaf, &chain, name, now).is_ok()
    }
}

impl Loaded {
    fn new(store: RootCertStore, source: Source) -> Self {
        let store = Arc::new(store);
        let verifier = WebPkiServerVerifier::builder_with_provider(store.clone(), provider());
        Self {
            verifier: verifier.build().ok(),
            store,
            source,
        }
    }
}

fn load() -> Loaded {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "load the certificates that are trusted here");
    }
    let mut store = RootCertStore::empty();
    let (added, ignored) = store.add_parsable_certificates(found.certs);
    let source = if added > 0 {
        Source::System
    } else {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        Source::Mozilla
    };
    tracing::info!(
        source = source.as_str(),
        roots = store.len(),
        ignored,
        "certificates that are trusted here"
    );
    Loaded::new(store, source)
}

impl Judgement {
    fn unreadable(chain: &[CertificateDer<'_>]) -> Self {
        Self {
            verdict: Verdict::Malformed,
            is_trusted: false,
            interceptor: None,
            subject: String::new(),
            issuer: String::new(),
            not_before: None,
            not_after: None,
            sha256: chain.first().map(|leaf| sha256(leaf)).unwrap_or_default(),
            names: Vec::new(),
            sent: chain.len(),
            is_above: false,
        }
    }
}

fn is_in_time(parsed: &X509Certificate<'_>, now: Timestamp) -> bool {
    let (from, to) = (parsed.validity().not_before, parsed.validity().not_after);
    (from.timestamp()..=to.timestamp()).contains(&now.as_second())
}

/// A host as rustls names it; `None` for a name that no certificate can have.
pub fn server_name(host: &Host) -> Option<ServerName<'static>> {
    match host {
        Host::Ip(ip) => Some(ServerName::IpAddress((*ip).into())),
        Host::Name(name) => ServerName::try_from(name.to_string()).ok(),
    }
}

/// Names what is wrong, from the certificate itself where the library's word misleads: of a CA's certificate it only says
/// that it is one, be it self-signed or not.
fn verdict(
    error: &rustls::Error,
    parsed: &X509Certificate<'_>,
    is_interceptor: bool,
    is_root: impl Fn() -> bool,
    completes: impl Fn() -> bool,
) -> Verdict {
    let rustls::Error::InvalidCertificate(error) = error else {
        return Verdict::Malformed;
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's list may grow, and what is left is about form"
    )]
    #[expect(deprecated, reason = "the library still makes it")]
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Verdict::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Verdict::NotYetValid
        }
        CertificateError::Revoked => Verdict::Revoked,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Verdict::NameMismatch
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Verdict::WrongPurpose
        }
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            Verdict::Weak
        }
        CertificateError::UnknownIssuer if is_interceptor => Verdict::KnownInterceptor,
        CertificateError::UnknownIssuer if is_self_signed(parsed) => Verdict::SelfSigned,
        CertificateError::UnknownIssuer if completes() => Verdict::IncompleteChain,
        CertificateError::UnknownIssuer => Verdict::UnknownIssuer,
        CertificateError::Other(_) if parsed.is_ca() => {
            if is_interceptor {
                Verdict::KnownInterceptor
            } else if is_self_signed(parsed) && !is_root() {
                Verdict::SelfSigned
            } else {
                Verdict::CaAsLeaf
            }
        }
        _ => Verdict::Malformed,
    }
}

/// Whether a certificate's signature holds by its own key.
fn is_self_signed(parsed: &X509Certificate<'_>) -> bool {
    if parsed.subject().as_raw() != parsed.issuer().as_raw() {
        return false;
    }
    let oid = parsed.signature_algorithm.algorithm.as_bytes();
    // Behind a tag and a length of a byte each.
    let signs_so = |id: &[u8]| id.get(2..).is_some_and(|id| id.starts_with(oid));
    let key = &parsed.public_key().subject_public_key.data;
    let signature = &parsed.signature_value.data;
    let signed = parsed.tbs_certificate.as_ref();
    let algorithms = provider().signature_verification_algorithms.all;
    algorithms
        .iter()
        .filter(|algorithm| signs_so(&algorithm.signature_alg_id()))
        .any(|algorithm| algorithm.verify_signature(key, signed, signature).is_ok())
}

fn interceptor(leaf: &X509Certificate<'_>, rest: &[CertificateDer<'_>]) -> Option<&'static str> {
    let above = rest.iter().find_map(|der| {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        product(parsed.issuer())
    });
    product(leaf.issuer()).or(above)
}

fn names(parsed: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let names = alternatives.value.general_names.iter();
    names
        .filter_map(|name| {
            if let GeneralName::DNSName(name) = name {
                Some(quote(name))
            } else if let GeneralName::IPAddress(octets) = name {
                address(octets)
            } else {
                None
            }
        })
        .take(MOST_NAMES)
        .collect()
}

fn address(octets: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(octets).map(std::net::IpAddr::from);
    let v6 = <[u8; 16]>::try_from(octets).map(std::net::IpAddr::from);
    Some(v4.or(v6).ok()?.to_string())
}

fn sha256(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

/// A digest as people write it.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
pub(super) mod tests;
