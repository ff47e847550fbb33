//! `auth`: which schemes, and the secrets they take.

use super::super::Secrets;
use super::super::check::Context;
use super::super::decode::{At, clip};
use super::super::diag::Findings;
use super::super::env::Userinfo;
use super::super::raw::{self, secrets::SecretRef};
use super::super::secrets::{self, SecretError};
use crate::policy::upstream::{Auth, Credential, Login, Scheme, Source};
use crate::secret::Secret;

/// What is used where no scheme is named.
const USUAL: [Scheme; 2] = [Scheme::Digest, Scheme::Basic];

/// Compiles what an HTTP proxy may ask of us.
pub(super) fn of_http(
    auth: &At<raw::upstreams::Auth>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Auth> {
    let schemes = schemes(auth, findings);
    let names_schemes = auth.schemes.is_some();
    let has_negotiate = schemes.contains(&Scheme::Negotiate);
    let needs_password = schemes.iter().any(|scheme| scheme.needs_password());
    if let Some(spn) = &auth.spn {
        if !has_negotiate {
            let message = "`spn` is of use to the scheme negotiate alone";
            findings
                .error(spn.place, message)
                .with_help("write `schemes: [negotiate, ...]`, or leave `spn` out");
        } else if !is_spn(spn) {
            let message = format!("`{}` is no service name", clip(spn));
            findings
                .error(spn.place, message)
                .with_help("write `spn: HTTP/proxy.corp.example`");
        }
    }
    if let Some(preemptive) = &auth.preemptive
        && preemptive.value
        && schemes.iter().all(|scheme| *scheme == Scheme::Digest)
        && !schemes.is_empty()
    {
        let message = "digest cannot be sent before the upstream has asked: it answers a challenge";
        findings.error(preemptive.place, message);
    }
    for secret in [&auth.username, &auth.password].into_iter().flatten() {
        if names_schemes && !needs_password && !schemes.is_empty() {
            let message =
                "negotiate takes its ticket from the cache, not a user name and a password";
            findings.error(secret.place, message);
        }
    }
    let login = if needs_password {
        needs_both(auth, findings);
        login(auth, context, findings)
    } else {
        None
    };
    if let (Some(login), Some(at)) = (&login, &auth.username)
        && schemes.contains(&Scheme::Basic)
        && login.username.value.reveal().contains(':')
    {
        let message = "the user name holds a colon, which Basic credentials cannot carry";
        findings.error(at.place, message);
        return None;
    }
    (!schemes.is_empty()).then(|| Auth {
        schemes,
        login,
        spn: auth.spn.as_ref().map(|spn| spn.value.clone()),
        preemptive: auth.preemptive.as_ref().is_some_and(|at| at.value),
    })
}

/// Compiles the user name and password for a SOCKS server (RFC 1929).
pub(super) fn of_socks(
    auth: &At<raw::upstreams::Auth>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Auth> {
    let told = [
        ("schemes", auth.schemes.as_ref().map(|at| at.place)),
        ("spn", auth.spn.as_ref().map(|at| at.place)),
        ("preemptive", auth.preemptive.as_ref().map(|at| at.place)),
    ];
    for (key, place) in told {
        if let Some(place) = place {
            let message = format!("`{key}` is of HTTP: SOCKS knows a user name and a password");
            findings.error(place, message);
        }
    }
    needs_both(auth, findings);
    let login = login(auth, context, findings);
    if let Some(login) = &login {
        for (credential, at) in [
            (&login.username, &auth.username),
            (&login.password, &auth.password),
        ] {
            if !(1..=255).contains(&credential.value.reveal().len()) {
                let place = at.as_ref().map_or(auth.place, |at| at.place);
                findings.error(place, "SOCKS carries 1 to 255 bytes of it");
            }
        }
    }
    Some(plain(login?))
}

/// The credentials of a URL in the environment. Who writes them there has them sent at once, as other tools do.
pub(super) fn of_url(userinfo: &Userinfo) -> Auth {
    let fixed = |value: Secret| Credential {
        value,
        source: Source::Fixed,
    };
    Auth {
        preemptive: true,
        ..plain(Login {
            username: fixed(Secret::new(userinfo.username.as_str())),
            password: fixed(userinfo.password.clone()),
        })
    }
}

fn plain(login: Login) -> Auth {
    Auth {
        schemes: USUAL.to_vec(),
        login: Some(login),
        spn: None,
        preemptive: false,
    }
}

fn schemes(auth: &At<raw::upstreams::Auth>, findings: &mut Findings<'_>) -> Vec<Scheme> {
    let Some(named) = &auth.schemes else {
        return USUAL.to_vec();
    };
    let mut schemes = Vec::new();
    for named in named.iter() {
        let (scheme, feature) = match named.value {
            raw::upstreams::AuthScheme::Negotiate => (Scheme::Negotiate, Some("kerberos")),
            raw::upstreams::AuthScheme::Ntlm => (Scheme::Ntlm, Some("ntlm")),
            raw::upstreams::AuthScheme::Digest => (Scheme::Digest, None),
            raw::upstreams::AuthScheme::Basic => (Scheme::Basic, None),
        };
        if let Some(feature) = feature.filter(|_| !scheme.is_built_in()) {
            let name = scheme.as_str().to_lowercase();
            let message = format!("this build does not speak {name}");
            let help = format!("build routecause with `--features {feature}`, or leave {name} out");
            findings.error(named.place, message).with_help(help);
        } else if schemes.contains(&scheme) {
            findings.error(named.place, "the scheme is named twice");
        } else {
            schemes.push(scheme);
        }
    }
    schemes
}

fn is_spn(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        !part.is_empty() && part.chars().all(is_plain)
    };
    text.split_once('/')
        .is_some_and(|(service, host)| is_part(service) && is_part(host))
}

fn needs_both(auth: &At<raw::upstreams::Auth>, findings: &mut Findings<'_>) {
    for (key, is_there) in [
        ("username", auth.has.contains(&"username")),
        ("password", auth.has.contains(&"password")),
    ] {
        if !is_there {
            let message = format!("`auth` needs `{key}`");
            let help = format!("write `{key}: {{env: NAME}}`");
            findings.error(auth.place, message).with_help(help);
        }
    }
}

fn login(
    auth: &At<raw::upstreams::Auth>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Login> {
    // Both are read, so that both mistakes are told.
    let [username, password] = [&auth.username, &auth.password].map(|at| {
        let at = at.as_ref()?;
        fetch(at, context, findings)
    });
    Some(Login {
        username: username?,
        password: password?,
    })
}

/// Fetches a secret, or notes why it cannot be had. Programs run only where the policy is about to.
fn fetch(
    at: &At<SecretRef>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Option<Credential> {
    let needed = context.secrets?;
    if needed == Secrets::Withheld {
        let message = "no secret is fetched for a policy that comes over HTTP without a token";
        let help =
            "set --admin-token-file, or put the admin listener at a socket with --admin unix:PATH";
        findings.error(at.place, message).with_help(help);
        return None;
    }
    let (found, source) = match &at.value {
        SecretRef::Env(name) => (of_variable(name, context), Source::Fixed),
        SecretRef::File(path) => {
            let path = findings.folder(path.place).join(&path.value);
            (secrets::of_file(&path), Source::File(path))
        }
        SecretRef::Command(line) => {
            let mut line: Vec<String> = line.iter().map(|part| part.value.clone()).collect();
            if let Some(program) = line.first_mut().filter(|program| program.contains('/')) {
                *program = findings
                    .folder(at.place)
                    .join(&*program)
                    .display()
                    .to_string();
            }
            let found = match needed {
                Secrets::Needed => secrets::of_program(&line),
                Secrets::Wanted | Secrets::Withheld => {
                    is_program(&line, context).map(|()| Secret::new(String::new()))
                }
            };
            (found, Source::Command(line))
        }
    };
    match found {
        Ok(value) => Some(Credential { value, source }),
        Err(error) => {
            secrets::tell(error, at.place, needed, findings);
            None
        }
    }
}

fn of_variable(name: &str, context: &Context<'_>) -> Result<Secret, SecretError> {
    let problem = match context.environment.get(name) {
        Some(value) if !value.contains(char::is_control) => return Ok(Secret::new(value)),
        Some(_) => "holds a control character",
        None => "is not set",
    };
    Err(format!("the variable {} {problem}", clip(name)).into())
}

/// Whether the program is there to be run.
fn is_program(line: &[String], context: &Context<'_>) -> Result<(), SecretError> {
    let program = line.first().map_or("", String::as_str);
    let is_file = |path: &std::path::Path| path.is_file();
    let is_there = if program.contains('/') {
        is_file(std::path::Path::new(program))
    } else {
        let path = context.environment.get("PATH").unwrap_or_default();
        std::env::split_paths(path).any(|folder| is_file(&folder.join(program)))
    };
    if is_there {
        Ok(())
    } else {
        Err(format!("the program {} is not there", clip(program)).into())
    }
}
