//! Negotiate (RFC 4559): tokens of the system's Kerberos, wrapped by SPNEGO, from the ticket cache or a client keytab.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use libgssapi::context::{ClientCtx, CtxFlags};
use libgssapi::name::Name;
use libgssapi::oid::{GSS_MECH_SPNEGO, GSS_NT_HOSTBASED_SERVICE};

use crate::secret::Secret;

/// A context that may have to go on.
pub(super) struct Context(ClientCtx);

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(context)")
    }
}

/// The library writes to one ticket cache: two at once can spoil each other's tickets.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The next token for a service such as `HTTP/proxy.example`, behind the upstream's, where it has said one.
pub(super) async fn answer(
    context: Option<Context>,
    spn: &str,
    said: Option<String>,
) -> Result<(Option<Context>, Secret), String> {
    let service = spn.replacen('/', "@", 1);
    let step = move || step(context, &service, said.as_deref());
    // It may ask a KDC.
    tokio::task::spawn_blocking(step)
        .await
        .map_err(|error| error.to_string())?
}

fn step(
    context: Option<Context>,
    service: &str,
    said: Option<&str>,
) -> Result<(Option<Context>, Secret), String> {
    let said = said
        .map(|text| BASE64.decode(text))
        .transpose()
        .map_err(|_| "what the upstream says is no base64".to_owned())?;
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let told = |error: libgssapi::error::Error| error.to_string();
    let mut context = match (context, &said) {
        (Some(Context(context)), _) => context,
        (None, Some(_)) => return Err("the upstream goes on with what was not begun".to_owned()),
        (None, None) => {
            let name = Name::new(service.as_bytes(), Some(GSS_NT_HOSTBASED_SERVICE));
            let name = name.map_err(told)?;
            ClientCtx::new(None, name, CtxFlags::empty(), Some(GSS_MECH_SPNEGO))
        }
    };
    match context.step(said.as_deref(), None).map_err(told)? {
        Some(token) => {
            let answer = Secret::new(format!("Negotiate {}", BASE64.encode(&*token)));
            Ok((Some(Context(context)), answer))
        }
        None => Err("the upstream asks on behind the last token".to_owned()),
    }
}
