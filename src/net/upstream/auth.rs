//! Answers an upstream that asks who we are (407): which scheme, with what, and what worked before.
//!
//! Basic is sent once it was offered, or at once where the policy says so. The scheme that worked is sent first from then
//! on, so that one request pays for the 407. What was refused is held back for a minute. Of the schemes that take the password one is tried: another would only carry
//! the same refused password on.

mod challenge;
#[cfg(feature = "kerberos")]
mod negotiate;
#[cfg(feature = "ntlm")]
mod ntlm;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Method, StatusCode};
use http_auth::{DigestClient, PasswordParams};
use tokio::time::Instant;

use self::challenge::Challenge;
use super::Reply;
use crate::config::secrets::{self, SecretError};
use crate::policy::upstream::{Auth, Credential, Login, Scheme, Source};
use crate::secret::Secret;
use crate::timeouts::Brief;

/// So many 407 are answered for one request, however they are worded.
const MAX_ANSWERS: u8 = 6;

/// For so long what an upstream refused is not sent to it again: some lock an account after a few tries.
const HELD_BACK: Duration = Duration::from_mins(1);

/// At most so often it is looked at anew meanwhile.
const REREAD: Duration = Duration::from_secs(1);

/// So often a new nonce is taken for one request: the second may be late, a third is a defect of the upstream's.
const MAX_STALE: u8 = 2;

/// Why a 407 cannot be answered. Holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The policy has no credentials for this upstream.
    #[error(
        "it asks for credentials ({}), and there are none for it",
        list(offered)
    )]
    NoCredentials {
        /// The schemes that it offers.
        offered: Vec<String>,
    },
    /// It offers no scheme that may be used.
    #[error("it offers {}; of use here: {}", list(offered), names(usable))]
    NoScheme {
        /// The schemes that it offers.
        offered: Vec<String>,
        /// What could be used: what the policy names, else what this build speaks.
        usable: Vec<Scheme>,
    },
    /// It refuses our credentials.
    #[error("it refuses our {} credentials", scheme.as_str())]
    Rejected {
        /// How they were sent.
        scheme: Scheme,
    },
    /// It refused our credentials a moment ago: they are not sent again yet, since that could lock the account.
    #[error(
        "it refused our credentials; unless they change, they are sent again by {} in {}",
        scheme.as_str(),
        Brief(*left)
    )]
    HeldBack {
        /// How they would be sent.
        scheme: Scheme,
        /// Until they are sent again.
        left: Duration,
    },
    /// The credentials cannot be read any more.
    #[error("it refuses our credentials, and no new ones can be had")]
    Secret(#[source] SecretError),
    /// It asked only after more of a request's body had gone than is kept to be sent again.
    #[error(
        "it asks for credentials after more of the request's body had gone than is kept; the next request will carry them"
    )]
    BodyGone,
    /// The scheme has nothing to answer with: no ticket, or a challenge that makes no sense.
    #[error("{} has no answer: {message}", scheme.as_str())]
    Mechanism {
        /// The scheme.
        scheme: Scheme,
        /// Why, in the words of its library.
        message: String,
    },
}

fn list(offered: &[String]) -> String {
    if offered.is_empty() {
        "no scheme".to_owned()
    } else {
        offered.join(", ")
    }
}

fn names(schemes: &[Scheme]) -> String {
    let names: Vec<_> = schemes.iter().map(|scheme| scheme.as_str()).collect();
    names.join(", ")
}

/// Who we are to one upstream, and what it took from us before. Shared by all workers.
#[derive(Debug)]
pub struct Authenticator {
    auth: Auth,
    #[cfg_attr(not(feature = "kerberos"), expect(dead_code, reason = "for Kerberos"))]
    spn: String,
    known: Mutex<Known>,
    /// When user name and password were last read again, and what came of it; held while they are.
    reading: tokio::sync::Mutex<Option<(Instant, Result<(), SecretError>)>>,
}

#[derive(Debug, Default)]
struct Known {
    login: Option<Arc<Current>>,
    worked: Option<Worked>,
    /// What the upstream refused last, and when.
    refused: Option<(Arc<Current>, Instant)>,
}

/// User name and password of the moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Current {
    username: Secret,
    password: Secret,
}

impl Current {
    /// Both.
    pub fn pair(&self) -> (Secret, Secret) {
        (self.username.clone(), self.password.clone())
    }
}

/// What is sent first.
enum Worked {
    Plain(Scheme),
    /// With its nonce and how often that was used.
    Digest(DigestClient),
}

impl std::fmt::Debug for Worked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.scheme().as_str())
    }
}

impl Worked {
    fn scheme(&self) -> Scheme {
        match self {
            Self::Plain(scheme) => *scheme,
            Self::Digest(_) => Scheme::Digest,
        }
    }
}

impl Authenticator {
    /// For an upstream at `host`.
    pub fn new(auth: Auth, host: &str) -> Self {
        let current = |login: &Login| {
            Arc::new(Current {
                username: login.username.value.clone(),
                password: login.password.value.clone(),
            })
        };
        let known = Known {
            login: auth.login.as_ref().map(current),
            ..Known::default()
        };
        let spn = auth.spn.clone().unwrap_or_else(|| format!("HTTP/{host}"));
        Self {
            auth,
            spn,
            known: Mutex::new(known),
            reading: tokio::sync::Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user name and password of the moment.
    pub fn login(&self) -> Option<Arc<Current>> {
        self.known().login.clone()
    }

    /// Notes that the upstream refuses these.
    pub fn refuse(&self, login: &Arc<Current>) {
        self.known().refused = Some((login.clone(), Instant::now()));
    }

    /// For how long the user name and password of the moment are not sent, since they were refused. They are looked at anew
    /// before, now and then.
    pub async fn held_back(&self) -> Option<Duration> {
        let (login, left) = {
            let known = self.known();
            let (login, at) = known.refused.clone()?;
            let left = (at + HELD_BACK).saturating_duration_since(Instant::now());
            if left.is_zero() || known.login.as_ref() != Some(&login) {
                return None;
            }
            (login, left)
        };
        let is_renewed = self.renew(&login, REREAD).await.unwrap_or(false);
        (!is_renewed).then_some(left)
    }

    /// Reads user name and password again where they may have changed since `refused` were sent. Whether others are known
    /// now.
    ///
    /// # Errors
    /// What is wrong with their file or program now.
    pub async fn refresh(&self, refused: &Arc<Current>) -> Result<bool, SecretError> {
        self.renew(refused, Duration::ZERO).await
    }

    /// The same, unless that was done a moment ago. Whoever waits for a reading takes what it gave.
    async fn renew(&self, refused: &Arc<Current>, moment: Duration) -> Result<bool, SecretError> {
        let is_fixed = |credential: &Credential| credential.source == Source::Fixed;
        let Some(login) = &self.auth.login else {
            return Ok(false);
        };
        if is_fixed(&login.username) && is_fixed(&login.password) {
            return Ok(false);
        }
        let asked = Instant::now();
        let mut reading = self.reading.lock().await;
        if self.known().login.as_ref() != Some(refused) {
            return Ok(true);
        }
        if let Some((at, outcome)) = &*reading
            && *at + moment >= asked
        {
            return outcome.clone().map(|()| false);
        }
        let login = login.clone();
        let read = tokio::task::spawn_blocking(move || {
            Ok(Current {
                username: secrets::read(&login.username)?,
                password: secrets::read(&login.password)?,
            })
        });
        let read = read
            .await
            .unwrap_or_else(|error| Err(SecretError::from(error.to_string())));
        *reading = Some((
            Instant::now(),
            read.as_ref().map(|_| ()).map_err(Clone::clone),
        ));
        let current = read?;
        let is_new = **refused != current;
        self.known().login = Some(Arc::new(current));
        Ok(is_new)
    }

    /// The scheme that is sent before anybody asks.
    fn preset(&self) -> Option<Scheme> {
        let worked = self.known().worked.as_ref().map(Worked::scheme);
        let unasked = || {
            let mut schemes = self.auth.schemes.iter().copied();
            schemes
                .find(|scheme| *scheme != Scheme::Digest)
                .filter(|_| self.auth.preemptive)
        };
        worked.or_else(unasked)
    }

    fn remember(&self, scheme: Scheme) {
        if scheme.needs_password() {
            self.known().refused = None;
        }
        // Digest was remembered with its challenge.
        if scheme != Scheme::Digest {
            self.known().worked = Some(Worked::Plain(scheme));
        }
    }

    fn forget(&self, scheme: Scheme) {
        let mut known = self.known();
        if known.worked.as_ref().map(Worked::scheme) == Some(scheme) {
            known.worked = None;
        }
    }

    /// The answer of Digest: to a challenge, or with the nonce that is known.
    fn digest(
        &self,
        login: &Current,
        challenge: Option<&Challenge>,
        method: &str,
        uri: &str,
    ) -> Result<Secret, String> {
        let mut known = self.known();
        if let Some(challenge) = challenge {
            known.worked = Some(Worked::Digest(challenge.digest()?));
        }
        let Some(Worked::Digest(client)) = &mut known.worked else {
            return Err("there is no challenge".to_owned());
        };
        let answer = client.respond(&PasswordParams {
            username: login.username.reveal(),
            password: login.password.reveal(),
            uri,
            method,
            body: None,
        });
        answer.map(Secret::new)
    }
}

/// The value of a `Proxy-Authorization` field (RFC 7617).
fn basic(username: &Secret, password: &Secret) -> Secret {
    let pair = format!("{}:{}", username.reveal(), password.reveal());
    Secret::new(format!("Basic {}", BASE64.encode(pair)))
}

/// One request's talk with an upstream about who we are.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about what was said"
)]
pub struct Talk {
    with: Option<Arc<Authenticator>>,
    method: Method,
    uri: String,
    /// What the request that is under way carries.
    sent: Option<Scheme>,
    /// The user name and password that were said last.
    login: Option<Arc<Current>>,
    /// It was sent unasked.
    is_preset: bool,
    /// It goes on with what was begun on the same connection.
    is_bound: bool,
    rejected: Vec<Scheme>,
    /// The last that was refused for what it said.
    refused: Option<Scheme>,
    is_password_rejected: bool,
    is_fresh: bool,
    answers: u8,
    stale: u8,
    #[cfg(feature = "kerberos")]
    context: Option<negotiate::Context>,
}

impl Talk {
    /// The word in a record's notes for a 407 that was answered.
    pub const NOTE: &'static str = "upstream.asked_who";

    /// A talk for one request; `uri` is its target as it is written on the wire. Without an authenticator no 407 can be
    /// answered.
    pub fn new(with: Option<Arc<Authenticator>>, method: Method, uri: String) -> Self {
        Self {
            with,
            method,
            uri,
            sent: None,
            login: None,
            is_preset: false,
            is_bound: false,
            rejected: Vec::new(),
            refused: None,
            is_password_rejected: false,
            is_fresh: false,
            answers: 0,
            stale: 0,
            #[cfg(feature = "kerberos")]
            context: None,
        }
    }

    /// Whether a 407 may be answered.
    pub fn can_answer(&self) -> bool {
        self.with.is_some()
    }

    /// The `Proxy-Authorization` to begin with, on a connection that carried none; `None` for none.
    pub async fn first(&mut self) -> Option<Secret> {
        let with = self.with.clone()?;
        let scheme = with.preset()?;
        if scheme.needs_password() && with.held_back().await.is_some() {
            return None;
        }
        // Where nothing can be said yet, the upstream is left to ask.
        let first = self.say(scheme, None).await.ok()?;
        self.is_preset = true;
        Some(first)
    }

    /// Whether the request that is under way says who we are.
    pub fn has_said(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether what is to be sent next makes sense only on the connection that carried the last reply.
    pub fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// Whether what let the request pass holds for the connection: no later request on it says who we are.
    pub fn is_of_connection(&self) -> bool {
        self.sent == Some(Scheme::Ntlm)
    }

    /// Notes that the upstream let the request pass, or refused it for another reason.
    pub fn accepted(&self) {
        if let (Some(with), Some(scheme)) = (&self.with, self.sent) {
            with.remember(scheme);
        }
    }

    /// The `Proxy-Authorization` to ask again with.
    ///
    /// # Errors
    /// Why there is none: the 407 is final.
    pub async fn answer(&mut self, reply: &Reply) -> Result<Secret, AuthError> {
        let offered = reply.auth_schemes.clone();
        let Some(with) = self.with.clone() else {
            let usable = Scheme::built_in();
            let is_usable = |name: &String| is_one_of(name, &usable);
            return Err(if offered.iter().any(is_usable) {
                AuthError::NoCredentials { offered }
            } else {
                AuthError::NoScheme { offered, usable }
            });
        };
        let challenges = Challenge::parse(&reply.challenges);
        let find = |scheme: Scheme| {
            challenges
                .iter()
                .find(|challenge| challenge.is_usable(scheme))
        };
        let sent = self.sent.take();
        let is_preset = std::mem::take(&mut self.is_preset);
        self.is_bound = false;
        self.answers += 1;
        if let Some(scheme) = sent {
            if self.answers > MAX_ANSWERS {
                with.forget(scheme);
                return Err(AuthError::Rejected { scheme });
            }
            let again = find(scheme);
            if let Some(challenge) = again {
                let goes_on = match scheme {
                    Scheme::Digest => {
                        self.stale += 1;
                        (challenge.is_stale() || is_preset) && self.stale <= MAX_STALE
                    }
                    Scheme::Ntlm | Scheme::Negotiate => challenge.token().is_some(),
                    Scheme::Basic => false,
                };
                if goes_on {
                    self.is_bound = matches!(scheme, Scheme::Ntlm | Scheme::Negotiate);
                    return self.say(scheme, Some(challenge)).await;
                }
            }
            with.forget(scheme);
            // Refused for what it says, not for its scheme. Tinyproxy asks by 407 and refuses by 401.
            let is_refused = again.is_some() || reply.status == StatusCode::UNAUTHORIZED;
            if is_refused {
                self.refused = Some(scheme);
            }
            if let (true, Some(login)) = (is_refused, &self.login)
                && scheme.needs_password()
            {
                with.refuse(login);
                if !std::mem::replace(&mut self.is_fresh, true)
                    && with.refresh(login).await.map_err(AuthError::Secret)?
                {
                    return self.say(scheme, again).await;
                }
                self.is_password_rejected = true;
            }
            self.rejected.push(scheme);
        }
        let (mut unable, mut held_back) = (None, None);
        for scheme in with.auth.schemes.iter().copied() {
            let is_spent = self.rejected.contains(&scheme)
                || scheme.needs_password() && self.is_password_rejected;
            let Some(challenge) = find(scheme).filter(|_| !is_spent) else {
                continue;
            };
            if scheme.needs_password()
                && let Some(left) = with.held_back().await
            {
                held_back = Some(AuthError::HeldBack { scheme, left });
                continue;
            }
            match self.say(scheme, Some(challenge)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => unable = Some(error),
            }
        }
        Err(match (unable.or(held_back), self.refused) {
            (Some(error), _) => error,
            (None, Some(scheme)) => AuthError::Rejected { scheme },
            (None, None) => AuthError::NoScheme {
                offered,
                usable: with.auth.schemes.clone(),
            },
        })
    }

    /// Begins again on a new connection, because the one that carried the exchange was closed under it.
    pub async fn again(&mut self) -> Result<Option<Secret>, AuthError> {
        self.answers += 1;
        self.is_bound = false;
        match self.sent.take() {
            Some(scheme) if self.answers > MAX_ANSWERS => Err(AuthError::Rejected { scheme }),
            Some(scheme) => self.say(scheme, None).await.map(Some),
            None => Ok(self.first().await),
        }
    }

    #[cfg_attr(
        not(feature = "kerberos"),
        expect(clippy::unused_async, reason = "Kerberos may ask a KDC")
    )]
    async fn say(
        &mut self,
        scheme: Scheme,
        challenge: Option<&Challenge>,
    ) -> Result<Secret, AuthError> {
        if scheme.needs_password() {
            self.login = self.with.as_ref().and_then(|with| with.login());
        }
        let no_password = || "there is no password".to_owned();
        let login = self.login.as_ref().ok_or_else(no_password);
        let said = match (&self.with, scheme) {
            (None, _) => Err("the policy has no credentials".to_owned()),
            (Some(_), Scheme::Basic) => login.map(|login| basic(&login.username, &login.password)),
            (Some(with), Scheme::Digest) => login
                .and_then(|login| with.digest(login, challenge, self.method.as_str(), &self.uri)),
            #[cfg(feature = "ntlm")]
            (Some(_), Scheme::Ntlm) => {
                let token = challenge.and_then(Challenge::token);
                login.and_then(|login| ntlm::answer(token, &login.username, &login.password))
            }
            #[cfg(not(feature = "ntlm"))]
            (Some(_), Scheme::Ntlm) => Err("this build does not speak it".to_owned()),
            #[cfg(feature = "kerberos")]
            (Some(with), Scheme::Negotiate) => {
                let token = challenge.and_then(Challenge::token).map(str::to_owned);
                let context = self.context.take().filter(|_| token.is_some());
                let said = negotiate::answer(context, &with.spn, token).await;
                said.map(|(context, answer)| {
                    self.context = context;
                    answer
                })
            }
            #[cfg(not(feature = "kerberos"))]
            (Some(_), Scheme::Negotiate) => Err("this build does not speak it".to_owned()),
        };
        let said = said.map_err(|message| AuthError::Mechanism { scheme, message })?;
        self.sent = Some(scheme);
        Ok(said)
    }
}

fn is_one_of(name: &str, schemes: &[Scheme]) -> bool {
    let mut names = schemes.iter().map(|scheme| scheme.as_str());
    names.any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
