//! `routecause doctor --thorough URL`: what takes minutes.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use super::plan::plan;
use super::{Diagnosis, DoctorArgs, look};
use crate::config::env::Environment;
use crate::doctor::facts::Spoken;
use crate::doctor::looks::over;
use crate::doctor::{idle, probe};
use crate::policy::Policy;

/// So often it looks.
const LOOKS: usize = 3;

/// From one look to the next.
const BETWEEN: Duration = Duration::from_secs(10);

/// So long connections are left alone where all is well: what forgets them does so within five minutes, as a rule.
const SILENCE: Duration = Duration::from_mins(5);

/// The same as one look, more surely.
pub(super) fn diagnose(
    url: &str,
    args: &DoctorArgs,
    policy: &Arc<Policy>,
    env: &Environment,
) -> anyhow::Result<Diagnosis> {
    let mut diagnosis = super::diagnose(url, args, policy, env)?;
    let mut verdicts = vec![diagnosis.verdict.clone()];
    for at in 2..=LOOKS {
        say!("note: look {at} of {LOOKS} in {}s", BETWEEN.as_secs());
        sleep(BETWEEN);
        diagnosis = super::diagnose(url, args, policy, env)?;
        verdicts.push(diagnosis.verdict.clone());
    }
    if let Some(verdict) = over(&verdicts) {
        diagnosis.verdict = verdict;
    }
    if !diagnosis.verdict.is_fine() {
        return Ok(diagnosis);
    }
    let (plan, _) = plan(url, args, policy, env)?;
    if plan.spoken == Spoken::Other {
        return Ok(diagnosis);
    }
    say!(
        "note: connections are left alone for up to {}m",
        SILENCE.as_secs() / 60
    );
    let silences = look(env, async |resolver, progress| {
        probe::idle(policy, resolver, &plan, SILENCE, progress).await
    })?;
    let of_silence = idle::judge(&plan.target.to_string(), &silences);
    if !of_silence.is_fine() {
        diagnosis.verdict = of_silence;
    }
    Ok(diagnosis)
}
