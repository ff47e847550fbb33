//! `tls` of an upstream: the files it names, read and checked.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::super::Secrets;
use super::super::check::Context;
use super::super::decode::{At, clip};
use super::super::diag::Findings;
use super::super::include;
use super::super::raw;
use super::super::secrets::{self, SecretError, keeps_private};
use crate::policy::upstream::{Identity, Tls, Versions};
use crate::secret::Secret;
use crate::target::Host;

/// More than any chain or list of roots takes, in bytes.
const LONGEST: usize = 4 * 1024 * 1024;

/// Compiles `tls`; nothing of it is needed.
pub(super) fn compile(
    tls: Option<&At<raw::upstreams::UpstreamTls>>,
    versions: Versions,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Tls {
    let mut compiled = Tls {
        versions,
        ..Tls::default()
    };
    let Some(tls) = tls else {
        return compiled;
    };
    if let Some(ca) = &tls.ca {
        compiled.roots = certificates(ca, context.secrets, findings);
    }
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            compiled.identity = identity(cert, key, context.secrets, findings);
        }
        (Some(alone), None) | (None, Some(alone))
            if tls.has.contains(&"cert") != tls.has.contains(&"key") =>
        {
            let message = "a client certificate is `cert` and `key` together";
            findings.error(alone.place, message);
        }
        _ => {}
    }
    if let Some(name) = &tls.server_name {
        match Host::parse(name) {
            Ok(host) => compiled.server_name = Some(host),
            Err(error) => {
                let message = format!("`{}` is no server's name: {error}", clip(name));
                findings.error(name.place, message);
            }
        }
    }
    compiled
}

/// Reads a certificate and its key.
pub(in crate::config) fn identity(
    cert: &At<String>,
    key: &At<String>,
    secrets: Option<Secrets>,
    findings: &mut Findings<'_>,
) -> Option<Identity> {
    let chain = certificates(cert, secrets, findings);
    let key = key_of(key, secrets, findings);
    let (chain, key) = chain.zip(key)?;
    match are_a_pair(&chain, &key) {
        Ok(()) => Some(Identity { chain, key }),
        Err(problem) => {
            findings.error(cert.place, problem);
            None
        }
    }
}

/// Whether certificate and key belong together.
fn are_a_pair(chain: &[Vec<u8>], key: &Secret) -> Result<(), String> {
    let unusable =
        |error: &dyn std::fmt::Display| format!("the certificate cannot be used: {error}");
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let der = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes())
        .map_err(|_| "the certificate's key cannot be read".to_owned())?;
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone()));
    rustls::sign::CertifiedKey::from_der(chain.collect(), der, &provider)
        .map(drop)
        .map_err(|error| unusable(&error))
}

/// Reads a file of certificates.
pub(in crate::config) fn certificates(
    at: &At<String>,
    secrets: Option<Secrets>,
    findings: &mut Findings<'_>,
) -> Option<Vec<Vec<u8>>> {
    had(at, secrets, findings, |path| {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
        let found = found.map_err(|error| told(path, &format!("is no PEM: {error}")))?;
        // What nobody could trust or show is none.
        let (usable, _) = RootCertStore::empty().add_parsable_certificates(found.iter().cloned());
        if usable == 0 {
            return Err(told(path, "holds no certificate (PEM)"));
        }
        Ok(found.iter().map(|der| der.to_vec()).collect())
    })
}

fn key_of(
    at: &At<String>,
    secrets: Option<Secrets>,
    findings: &mut Findings<'_>,
) -> Option<Secret> {
    had(at, secrets, findings, |path| {
        let text = read(path)?;
        let io = |error: std::io::Error| told(path, &format!("cannot be read: {error}"));
        keeps_private(path, &std::fs::metadata(path).map_err(io)?)?;
        let none = || told(path, "holds no private key");
        PrivateKeyDer::from_pem_slice(&text).map_err(|_| none())?;
        Ok(Secret::new(String::from_utf8(text).map_err(|_| none())?))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, SecretError> {
    let io = |error: std::io::Error| told(path, &format!("cannot be read: {error}"));
    // Asked before opening: a pipe would hold us up.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(told(path, "is no regular file"));
    }
    include::read(path, LONGEST).map_err(|problem| told(path, &problem))
}

fn told(path: &Path, problem: &str) -> SecretError {
    format!("the file {} {problem}", path.display()).into()
}

/// What a file holds; nothing is read where files are not looked at.
fn had<T>(
    at: &At<String>,
    secrets: Option<Secrets>,
    findings: &mut Findings<'_>,
    look: impl Fn(&Path) -> Result<T, SecretError>,
) -> Option<T> {
    let needed = secrets?;
    let found = look(&findings.folder(at.place).join(&at.value));
    let tell = |error| secrets::tell(error, at.place, needed, findings);
    found.map_err(tell).ok()
}
