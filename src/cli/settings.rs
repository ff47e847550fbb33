//! What programs are told of a proxy: the variables that they read.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tempfile::NamedTempFile;

use crate::config::env::Environment;

/// What a program on this machine reaches without any proxy.
pub(super) const LOCAL: &str = "localhost,127.0.0.1,::1";

/// A variable of the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: &'static str,
    pub(super) value: String,
}

/// What programs are told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// The proxy's URL.
    pub(super) proxy: String,
    /// The hosts that are reached without it.
    pub(super) no_proxy: String,
    /// A private authority.
    pub(super) ca: Option<CaPaths>,
}

/// Where a private authority's certificate stands.
#[derive(Clone, Debug)]
pub(super) struct CaPaths {
    /// Alone.
    pub(super) alone: PathBuf,
    /// With all that the system trusts.
    pub(super) bundle: PathBuf,
}

/// The variables that name a proxy for plain requests, for tunnels, and for both.
const PROXIES: [&str; 6] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
];

/// The same for programs whose own settings would come before those.
const OF_PROGRAMS: [&str; 6] = [
    "npm_config_proxy",
    "npm_config_https_proxy",
    "YARN_HTTP_PROXY",
    "YARN_HTTPS_PROXY",
    "CARGO_HTTP_PROXY",
    "PIP_PROXY",
];

/// Variables that name all authorities that a program trusts.
const BUNDLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
];

/// Variables that name authorities which a program trusts beside those that it knows.
const ADDED: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

impl Told {
    /// The variables for a program and all that it starts, which now has those of `env`.
    pub(super) fn variables(&self, env: &Environment) -> Vec<Variable> {
        let variable = |name, value: &str| Variable {
            name,
            value: value.to_owned(),
        };
        let mut variables: Vec<_> = PROXIES
            .into_iter()
            .chain(OF_PROGRAMS)
            .map(|name| variable(name, &self.proxy))
            .collect();
        for name in ["no_proxy", "NO_PROXY"] {
            variables.push(variable(name, &self.no_proxy));
        }
        // Node reads the variables above from version 24 on where it is told to.
        variables.push(variable("NODE_USE_ENV_PROXY", "1"));
        if let Some(java) = self.java() {
            let before = env.get("JAVA_TOOL_OPTIONS").unwrap_or_default();
            let value = format!("{before} {java}");
            variables.push(variable("JAVA_TOOL_OPTIONS", value.trim_start()));
        }
        let bundle = self.ca.as_ref().map(|ca| ca.bundle.display().to_string());
        // What the user told one program is told to those that read another name.
        let bundle_of_user = || env.get("SSL_CERT_FILE").map(str::to_owned);
        let is_new = |name: &str| bundle.is_some() || env.get(name).is_none();
        if let Some(path) = bundle.clone().or_else(bundle_of_user) {
            let new = BUNDLES.into_iter().filter(|name| is_new(name));
            variables.extend(new.map(|name| variable(name, &path)));
            let alone = self.ca.as_ref().map(|ca| ca.alone.display().to_string());
            let alone = alone.unwrap_or(path);
            let new = ADDED.into_iter().filter(|name| is_new(name));
            variables.extend(new.map(|name| variable(name, &alone)));
        }
        variables
    }

    /// What Java's machines are told, as system properties.
    pub(super) fn java(&self) -> Option<String> {
        let uri: http::Uri = self.proxy.parse().ok()?;
        let (host, port) = (uri.host()?, uri.port_u16()?);
        let mut text = String::new();
        for scheme in ["http", "https"] {
            let _ = write!(
                text,
                "-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port} "
            );
        }
        Some(text + "-Dhttp.nonProxyHosts=localhost|127.*|[::1]")
    }
}

/// A private authority's certificate beside all that the system trusts, in a file that lives as long as this.
#[derive(Debug)]
pub(super) struct Bundle {
    alone: PathBuf,
    file: NamedTempFile,
}

impl Bundle {
    /// Of the certificate in a PEM file.
    pub(super) fn with(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("--ca: read {}", path.display()))?;
        let is_pem = String::from_utf8_lossy(&text).contains("-----BEGIN CERTIFICATE-----");
        anyhow::ensure!(
            is_pem,
            "--ca: {} holds no certificate in PEM",
            path.display()
        );
        let mut file = tempfile::Builder::new()
            .prefix("routecause-ca-")
            .suffix(".pem")
            .tempfile()
            .context("--ca: make a file for the bundle")?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        for certificate in rustls_native_certs::load_native_certs().certs {
            file.write_all(pem(&certificate).as_bytes())?;
        }
        file.flush()?;
        let alone = path
            .canonicalize()
            .with_context(|| format!("--ca: find {}", path.display()))?;
        Ok(Self { alone, file })
    }

    pub(super) fn paths(&self) -> CaPaths {
        CaPaths {
            alone: self.alone.clone(),
            bundle: self.file.path().to_owned(),
        }
    }
}

fn pem(certificate: &[u8]) -> String {
    let text = BASE64.encode(certificate);
    let mut lines = vec!["-----BEGIN CERTIFICATE-----".to_owned()];
    let chars: Vec<char> = text.chars().collect();
    lines.extend(chars.chunks(64).map(|line| line.iter().collect()));
    lines.push("-----END CERTIFICATE-----\n".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ca: Option<CaPaths>) -> Told {
        Told {
            proxy: "http://127.0.0.1:9".into(),
            no_proxy: LOCAL.into(),
            ca,
        }
    }

    fn value<'v>(variables: &'v [Variable], name: &str) -> Option<&'v str> {
        let found = variables.iter().find(|variable| variable.name == name);
        found.map(|variable| &*variable.value)
    }

    #[test]
    fn both_cases_are_set_and_what_java_had_stays() {
        let env = [("JAVA_TOOL_OPTIONS", "-Xmx1g")].into_iter().collect();
        let variables = told(None).variables(&env);
        for name in ["http_proxy", "HTTPS_PROXY", "CARGO_HTTP_PROXY"] {
            assert_eq!(value(&variables, name), Some("http://127.0.0.1:9"));
        }
        let java = value(&variables, "JAVA_TOOL_OPTIONS").unwrap();
        assert!(java.starts_with("-Xmx1g -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=9 "));
        assert_eq!(value(&variables, "SSL_CERT_FILE"), None);
    }

    #[test]
    fn an_authority_told_to_one_is_told_to_all_and_nothing_of_the_user_is_lost() {
        let env = [("SSL_CERT_FILE", "/all.pem"), ("PIP_CERT", "/pip.pem")];
        let env = env.into_iter().collect();
        let variables = told(None).variables(&env);
        assert_eq!(value(&variables, "REQUESTS_CA_BUNDLE"), Some("/all.pem"));
        assert_eq!(value(&variables, "PIP_CERT"), None);
        let ca = CaPaths {
            alone: "/alone.pem".into(),
            bundle: "/bundle.pem".into(),
        };
        let variables = told(Some(ca)).variables(&env);
        assert_eq!(value(&variables, "PIP_CERT"), Some("/bundle.pem"));
        assert_eq!(value(&variables, "NODE_EXTRA_CA_CERTS"), Some("/alone.pem"));
    }

    #[test]
    fn pem_has_lines_of_64() {
        let text = pem(&[7; 100]);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert!(text.ends_with("-----END CERTIFICATE-----\n"));
    }
}
