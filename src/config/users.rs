//! The file of users: who may use the proxy, with hashes of their passwords.

use std::collections::HashMap;
use std::sync::Arc;

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;

use super::Secrets;
use super::decode::{At, clip};
use super::diag::Findings;
use super::include;
use super::secrets::{self, keeps_private};
use crate::secret::Secret;

/// The most memory that one check of a password may take, in KiB.
const MOST_MEMORY: u32 = 256 * 1024;

/// Users by name, each with an argon2 hash in PHC form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users(HashMap<Arc<str>, Secret>);

impl Users {
    /// The hash of a user's password.
    pub fn hash_of(&self, name: &str) -> Option<&Secret> {
        self.0.get(name)
    }

    /// The hash of a user that `chance` chooses: what a name that is not there is held against, so that its check takes as
    /// long. Hashes may cost more and less: one and the same for all such names would tell them from the others.
    pub fn stand_in(&self, chance: u64) -> Option<&Secret> {
        let count = u64::try_from(self.0.len())
            .ok()
            .filter(|count| *count > 0)?;
        self.0.values().nth(usize::try_from(chance % count).ok()?)
    }
}

/// Reads the file: `name:$argon2id$...` a line, `#` before comments.
pub(super) fn read(path: &At<String>, needed: Secrets, findings: &mut Findings<'_>) -> Users {
    let file = findings.folder(path.place).join(&path.value);
    let data = std::fs::metadata(&file);
    if needed == Secrets::Wanted && data.is_err() {
        let error = format!("the file {} is not there", file.display());
        secrets::tell(error.into(), path.place, needed, findings);
        return Users::default();
    }
    if let Some(error) = data.ok().and_then(|data| keeps_private(&file, &data).err()) {
        secrets::tell(error, path.place, needed, findings);
    }
    let Some(lines) = include::lines(path, true, findings) else {
        return Users::default();
    };
    let mut users = HashMap::new();
    for line in lines {
        let Some((name, hash)) = line.split_once(':') else {
            let message = "a user is a name, a colon and an argon2 hash";
            findings.error(line.place, message);
            continue;
        };
        if name.is_empty() || name.len() > 255 || name.contains(char::is_control) {
            let message = "a user's name is 1 to 255 bytes without control characters";
            findings.error(line.place, message);
        }
        if let Err(problem) = check(hash) {
            findings
                .error(line.place, problem)
                .with_help("make one with `argon2 SALT -id -e`");
        }
        if users.insert(name.into(), Secret::new(hash)).is_some() {
            let message = format!("user `{}` stands here a second time", clip(name));
            findings.error(line.place, message);
        }
    }
    if users.is_empty() && !findings.has_errors() {
        findings.warn(path.place, "no user stands in it: nobody may use the proxy");
    }
    Users(users)
}

/// Whether a text is a hash that can be checked.
fn check(hash: &str) -> Result<(), String> {
    let parsed = PasswordHash::new(hash).map_err(|_| "this is no argon2 hash in PHC form")?;
    if !parsed.algorithm.as_str().starts_with("argon2") || parsed.hash.is_none() {
        return Err("this is no argon2 hash in PHC form".to_owned());
    }
    let params = Params::try_from(&parsed)
        .map_err(|error| format!("this hash cannot be checked: {error}"))?;
    if params.m_cost() > MOST_MEMORY {
        return Err(format!(
            "a check of this hash takes {} MiB; {} is the most",
            params.m_cost() / 1024,
            MOST_MEMORY / 1024
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diag::Place;

    #[test]
    fn no_line_of_the_file_is_shown() {
        for (bytes, expected) in [
            (&b"alice:s3cret\xff"[..], "1:13: error: this is not UTF-8"),
            (b"alice:s3cret\0\n", "1:13: error: a NUL byte stands here"),
            (b"alice:pass#s3cret\n", "1:1: error: this is no argon2 hash"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            let path = At {
                value: file.path().display().to_string(),
                place: Place::START,
            };
            let mut findings = Findings::new("p.yaml".into(), None, "");
            read(&path, Secrets::Needed, &mut findings);
            let told = findings.finish()[0].render(false);
            assert!(told.contains(expected), "{told}");
            assert!(told.contains("**") && !told.contains("s3cret"), "{told}");
        }
    }

    #[test]
    fn only_hashes_of_argon2_are_taken() {
        let salt = "c29tZXNhbHQ";
        let hash = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert_eq!(
            check(&format!("$argon2id$v=19$m=4096,t=3,p=1${salt}${hash}")),
            Ok(())
        );
        for bad in [
            "s3cret".to_owned(),
            format!("$2b$12${salt}${hash}"),
            format!("$argon2id$v=19$m=4096,t=3,p=1${salt}"),
            format!("$argon2id$v=19$m=4194304,t=3,p=1${salt}${hash}"),
        ] {
            let problem = check(&bad).unwrap_err();
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }
}
