//! Tells systemd how the service is (`sd_notify`); without it, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Requests are served.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
}

/// The start takes up to so much longer.
pub(super) fn extend(time: Duration) {
    send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
}

/// The stop has begun.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
