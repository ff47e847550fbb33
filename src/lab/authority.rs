//! The lab's authority: the certificates of its hosts, and those that are wrong on purpose.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::policy::fault::{LAB, WrongCert};
use crate::tls::trust::provider;

/// Its certificate, in the lab's folder.
pub(super) const CERTIFICATE: &str = "ca.pem";

/// Its key there: only where somebody has put it there. Ours stays in memory.
const KEY: &str = "ca.key";

/// What those are named that are drawn here.
pub(super) const NAME: &str = "routecause lab";

/// Certificates that are kept; a test asks for a few names.
const MOST_KEPT: usize = 1000;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// What stands in the folder cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// It is no authority.
    #[error("{path} is no certificate of an authority with its key")]
    Bad {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: rcgen::Error,
    },
    /// A certificate without its key is somebody's: it is neither used nor written over.
    #[error(
        "{key} is missing, the key of {certificate}: put it there, or take the certificate away"
    )]
    NoKey {
        /// Where the key belongs.
        key: String,
        /// The certificate.
        certificate: String,
    },
    /// A certificate cannot be made.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Who signs.
#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one of that name. Its key is in memory alone.
    pub(super) fn draw(name: &str) -> Result<Self, AuthorityError> {
        let (params, key) = (authority(name)?, KeyPair::generate()?);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// The one whose certificate and key stand in a folder; `None` where neither does, or the certificate that another lab
    /// left there.
    pub(super) fn of_folder(folder: &Path) -> Result<Option<Self>, AuthorityError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|source| AuthorityError::Read {
                path: path.display().to_string(),
                source,
            })
        };
        let key = match read(KEY) {
            Ok(key) => key,
            Err(AuthorityError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return match read(CERTIFICATE) {
                    Ok(pem) if !is_of_lab(&pem) => Err(AuthorityError::NoKey {
                        key: folder.join(KEY).display().to_string(),
                        certificate: folder.join(CERTIFICATE).display().to_string(),
                    }),
                    Err(AuthorityError::Read { source, .. })
                        if source.kind() == io::ErrorKind::NotFound =>
                    {
                        Ok(None)
                    }
                    Ok(_) => Ok(None),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        let pem = read(CERTIFICATE)?;
        let bad = |name: &str| {
            let path = folder.join(name).display().to_string();
            move |source| AuthorityError::Bad { path, source }
        };
        let key = KeyPair::from_pem(&key).map_err(bad(KEY))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(bad(CERTIFICATE))?;
        Ok(Some(Self { issuer, pem }))
    }

    /// Its certificate.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// The same, for those who check.
    pub(super) fn root(&self) -> Option<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).ok()
    }

    /// A certificate for `name`, perhaps with something wrong, and its key.
    fn certify(
        &self,
        name: &str,
        wrong: Option<WrongCert>,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), AuthorityError> {
        let is_of_another = wrong == Some(WrongCert::WrongName);
        let name = if is_of_another { "other.invalid" } else { name };
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        // Python asks for it since 3.13.
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name.push(DnType::CommonName, name);
        if wrong == Some(WrongCert::Expired) {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = match wrong {
            None | Some(WrongCert::Expired | WrongCert::WrongName) => {
                params.signed_by(&key, &self.issuer)?
            }
            Some(WrongCert::SelfSigned) => params.self_signed(&key)?,
            Some(WrongCert::UnknownIssuer) => {
                let stranger = authority("routecause lab: an authority that nobody knows")?;
                params.signed_by(&key, &Issuer::new(stranger, KeyPair::generate()?))?
            }
            Some(WrongCert::MissingIntermediate) => {
                let middle = authority("routecause lab: an intermediate that is not sent")?;
                let middle =
                    CertifiedIssuer::signed_by(middle, KeyPair::generate()?, &self.issuer)?;
                params.signed_by(&key, &middle)?
            }
        };
        Ok((vec![certificate.der().clone()], key))
    }
}

/// Whether a certificate is one whose key was never written.
fn is_of_lab(pem: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
        return false;
    };
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else {
        return false;
    };
    let mut names = parsed.subject().iter_common_name();
    names.any(|name| name.as_str() == Ok(NAME))
}

fn authority(name: &str) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// What a server of the lab shows: a certificate for whatever name it is asked by.
#[derive(Debug)]
pub(super) struct Shown {
    authority: Arc<Authority>,
    wrong: Option<WrongCert>,
    kept: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Shown {
    pub(super) fn new(authority: Arc<Authority>, wrong: Option<WrongCert>) -> Self {
        Self {
            authority,
            wrong,
            kept: Mutex::default(),
        }
    }

    fn show(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(name) {
            return Some(known.clone());
        }
        let made = self.authority.certify(name, self.wrong);
        let (chain, key) = made
            .inspect_err(|error| tracing::error!(%error, name, "certify a host of the lab"))
            .ok()?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = CertifiedKey::from_der(chain, key, &provider());
        let key = key
            .inspect_err(|error| tracing::error!(%error, name, "use a certificate of the lab"))
            .ok()?;
        let key = Arc::new(key);
        if kept.len() < MOST_KEPT {
            kept.insert(name.to_owned(), key.clone());
        }
        Some(key)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or(LAB);
        self.show(name)
    }
}
