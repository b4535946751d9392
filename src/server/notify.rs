//! Tells systemd how the service is (`sd_notify`); without it, nothing happens.

use sd_notify::NotifyState;

/// Requests are served.
pub(super) fn ready() {
    send(&[NotifyState::Ready]);
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
