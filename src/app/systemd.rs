//! What systemd is told, where it runs us: `Type=notify-reload`, and its watchdog.

use std::time::Duration;

use sd_notify::NotifyState;

/// Says that requests are served.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the policy is being read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "ask for the time since boot"),
    }
}

/// Says that the end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that all is well.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be said: twice in the time that the watchdog waits.
pub fn watchdog() -> Option<Duration> {
    Some(sd_notify::watchdog_enabled()? / 2).filter(|pause| !pause.is_zero())
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "tell systemd");
    }
}
