//! The challenges of some `Proxy-Authenticate` lines (RFC 9110, section 11.6.1).

use http_auth::{ChallengeRef, DigestClient, parse_challenges};

use super::super::reply::split_unquoted;
use crate::policy::upstream::Scheme;

/// One challenge: its scheme, and what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    scheme: String,
    rest: String,
}

impl Challenge {
    /// Takes lines apart. A comma parts challenges and also the parameters of one challenge; a challenge begins with a
    /// word that no equals sign follows.
    pub(super) fn parse(lines: &[String]) -> Vec<Self> {
        let mut challenges: Vec<Self> = Vec::new();
        for line in lines {
            // What stands before the first challenge of a line belongs to none.
            let mut is_open = false;
            for item in split_unquoted(line, &[',']).map(str::trim) {
                let end = item.find(|c: char| c.is_whitespace() || c == '=');
                let (word, rest) = item.split_at(end.unwrap_or(item.len()));
                if word.is_empty() {
                    continue;
                }
                if !rest.trim_start().starts_with('=') {
                    is_open = true;
                    challenges.push(Self {
                        scheme: word.to_owned(),
                        rest: rest.trim().to_owned(),
                    });
                } else if let Some(open) = challenges.last_mut().filter(|_| is_open) {
                    if !open.rest.is_empty() {
                        open.rest.push_str(", ");
                    }
                    open.rest.push_str(item);
                }
            }
        }
        challenges
    }

    /// Whether it is one of this scheme that can be answered.
    pub(super) fn is_usable(&self, scheme: Scheme) -> bool {
        self.scheme.eq_ignore_ascii_case(scheme.as_str())
            && (scheme != Scheme::Digest || self.digest().is_ok())
    }

    /// What answers a challenge of Digest.
    pub(super) fn digest(&self) -> Result<DigestClient, String> {
        self.read(|challenge| DigestClient::try_from(challenge))
    }

    /// Whether only the nonce was too old (RFC 7616, section 3.3).
    pub(super) fn is_stale(&self) -> bool {
        self.digest().is_ok_and(|digest| digest.stale())
    }

    /// What NTLM and Negotiate say behind their names.
    pub(super) fn token(&self) -> Option<&str> {
        (!self.rest.is_empty()).then_some(self.rest.as_str())
    }

    fn read<T>(
        &self,
        of: impl FnOnce(&ChallengeRef<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let text = format!("{} {}", self.scheme, self.rest);
        let parsed = parse_challenges(&text).map_err(|error| error.to_string())?;
        of(parsed.first().ok_or("it is empty")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(lines: &[&str]) -> Vec<String> {
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        let challenges = Challenge::parse(&lines);
        challenges
            .iter()
            .map(|challenge| format!("{}|{}", challenge.scheme, challenge.rest))
            .collect()
    }

    #[test]
    fn challenges_are_told_apart_on_one_line_and_on_several() {
        for (lines, expected) in [
            (&["Basic realm=\"a, b\""][..], &["Basic|realm=\"a, b\""][..]),
            (
                &["Negotiate, NTLM TlRMTVNTUAAC==, Basic realm=x, charset=\"UTF-8\""],
                &[
                    "Negotiate|",
                    "NTLM|TlRMTVNTUAAC==",
                    "Basic|realm=x, charset=\"UTF-8\"",
                ],
            ),
            (
                &[
                    "Digest realm=\"r\", nonce = \"n\",qop=\"auth,auth-int\"",
                    "Basic",
                ],
                &[
                    "Digest|realm=\"r\", nonce = \"n\", qop=\"auth,auth-int\"",
                    "Basic|",
                ],
            ),
            (&["", ",,", "realm=\"x\"", "=", "\"Basic"], &["\"Basic|"]),
            (&["Basic", "realm=\"x\""], &["Basic|"]),
        ] {
            assert_eq!(parsed(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_digest_that_cannot_be_answered_is_no_offer() {
        for (line, is_usable) in [
            ("Digest realm=\"r\", nonce=\"n\", qop=\"auth\"", true),
            (
                "digest realm=\"r\", nonce=\"n\", qop=\"auth\", algorithm=SHA-256",
                true,
            ),
            ("Digest realm=\"r\", nonce=\"n\"", true),
            ("Digest realm=\"r\"", false),
            (
                "Digest realm=\"r\", nonce=\"n\", qop=\"auth\", algorithm=ROT13",
                false,
            ),
            ("Digest", false),
        ] {
            let challenges = Challenge::parse(&[line.to_owned()]);
            assert_eq!(challenges[0].is_usable(Scheme::Digest), is_usable, "{line}");
        }
    }
}
