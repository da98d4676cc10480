//! What systemd is told: that the broker is ready, reloads, stops. Where nobody listens nothing happens.

use sd_notify::NotifyState;

/// The broker serves; `status` is what `systemctl status` shows.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload that systemd asked for begins; [`ready`] ends it, however it went. Without the time systemd
/// would wait for its own timeout.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("systemd is not told of the reload: {error}"),
    }
}

/// The broker stops.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("systemd is not told: {error}");
    }
}
