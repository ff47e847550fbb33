//! No script is evaluated in this build; a policy that names one is refused before.

use std::sync::Arc;
use std::time::Duration;

use crate::pac::{PacError, Script};
use crate::route::Names;

#[derive(Clone, Debug)]
pub(super) struct Asked;

pub(super) fn start(_: Script, _: Names) -> Asked {
    Asked
}

#[expect(clippy::unused_async, reason = "a script is waited for")]
pub(super) async fn ask(_: &Asked, _: String, _: String, _: Duration) -> Result<String, PacError> {
    Err(PacError::NotBuilt)
}

#[expect(clippy::unused_async, reason = "a script is waited for")]
pub(super) async fn check(_: Arc<str>) -> Result<(), PacError> {
    Err(PacError::NotBuilt)
}
