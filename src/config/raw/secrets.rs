//! Where secrets are found, as it is written.

use crate::config::decode::{At, Decode, OneOrMany, head};
use crate::config::diag::Findings;
use crate::config::written::{either, written};
use crate::config::yaml::{Node, Value};

/// Where a secret is found.
#[derive(Clone, Debug)]
pub(in crate::config) enum SecretRef {
    /// In a variable of the environment.
    Env(At<String>),
    /// In a file.
    File(At<String>),
    /// In what a program prints.
    Command(At<OneOrMany<String>>),
}

written! {
    /// Where a secret is found: exactly one of the keys.
    SecretPlace is "a secret", later [] {
        /// The variable of the environment that holds it.
        env: String,
        /// The file that holds it, relative to the policy's folder; readable by its owner only, or by its group where it is root's and we are another.
        file: String,
        /// The program, and its arguments, that prints it on its first line. No shell is involved.
        command: OneOrMany<String>,
    }
}

impl Decode for SecretRef {
    fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<Self> {
        let Value::Map(_) = &node.value else {
            // The value is not quoted: it is likely the secret itself.
            let message = "a secret does not stand in a policy";
            let help = "write `{env: NAME}`, `{file: PATH}` or `{command: [PROGRAM, ARGUMENT]}`";
            findings.error(node.place, message).with_help(help);
            return None;
        };
        let place = SecretPlace::decode(node, findings)?;
        match (place.env, place.file, place.command) {
            (Some(env), None, None) => Some(Self::Env(env)),
            (None, Some(file), None) => Some(Self::File(file)),
            (None, None, Some(command)) => Some(Self::Command(command)),
            (None, None, None) if place.has.len() == 1 => None, // and that one was told of
            _ => {
                let message = "a secret is exactly one of `env`, `file` and `command`";
                findings.error(head(node), message);
                None
            }
        }
    }
}

either! { SecretRef = {"not": {}} or SecretPlace }
