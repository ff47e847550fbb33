//! NTLM: the first and the third of the three messages (MS-NLMP), with a response of version 2.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ntlmclient::{Credentials, Flags, Message, NegotiateMessage, OsVersion, TargetInfoEntry};

use crate::secret::Secret;

/// What to say behind what the upstream said; the first message where it said nothing. The user name may name its domain,
/// as in `CORP\me`.
pub(super) fn answer(
    said: Option<&str>,
    username: &Secret,
    password: &Secret,
) -> Result<Secret, String> {
    let message = match said {
        None => Message::Negotiate(NegotiateMessage {
            flags: Flags::NEGOTIATE_UNICODE | Flags::REQUEST_TARGET | Flags::NEGOTIATE_NTLM,
            supplied_domain: String::new(),
            supplied_workstation: String::new(),
            os_version: OsVersion::default(),
        }),
        Some(said) => third(said, username.reveal(), password.reveal())?,
    };
    let bytes = message.to_bytes().map_err(|error| error.to_string())?;
    Ok(Secret::new(format!("NTLM {}", BASE64.encode(bytes))))
}

fn third(said: &str, username: &str, password: &str) -> Result<Message, String> {
    let bytes = BASE64
        .decode(said)
        .map_err(|_| "what the upstream says is no base64".to_owned())?;
    let message = Message::try_from(with_info(bytes).as_slice())
        .map_err(|error| format!("the upstream's message cannot be read: {error}"))?;
    let Message::Challenge(challenge) = message else {
        return Err("the upstream's message is no challenge".to_owned());
    };
    let (domain, username) = username.split_once('\\').unwrap_or(("", username));
    let credentials = Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
        domain: domain.to_owned(),
    };
    let info: Vec<u8> = challenge
        .target_information
        .iter()
        .flat_map(TargetInfoEntry::to_bytes)
        .collect();
    let response = ntlmclient::respond_challenge_ntlm_v2(
        challenge.challenge,
        &info,
        ntlmclient::get_ntlm_time(),
        &credentials,
    );
    let flags = Flags::NEGOTIATE_UNICODE | Flags::NEGOTIATE_NTLM;
    Ok(response.to_message(&credentials, "", flags))
}

/// A challenge in the form that has room for information about the target. The older one ends before that, and only the
/// name of the domain, which is of no use here, stands behind it.
fn with_info(mut message: Vec<u8>) -> Vec<u8> {
    const NAME: std::ops::Range<usize> = 12..20;
    const FLAGS: std::ops::Range<usize> = 20..24;
    const OLD: usize = 32;
    // The library wants the version of the operating system, too.
    const NEW: usize = 56;
    let flags = message.get(FLAGS).and_then(|flags| flags.try_into().ok());
    let has_info = flags.is_some_and(|flags| {
        let flags = Flags::from_bits_truncate(u32::from_le_bytes(flags));
        flags.contains(Flags::NEGOTIATE_TARGET_INFO)
    });
    if !has_info && message.len() >= OLD {
        message.truncate(OLD);
        message.resize(NEW, 0);
        if let Some(name) = message.get_mut(NAME) {
            name.fill(0);
        }
    }
    message
}
