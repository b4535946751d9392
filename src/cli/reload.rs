//! SIGHUP: the configuration is read again, and of it is taken over what can change while the daemon runs.

use tokio::task::spawn_blocking;

use crate::config::{Config, Flags};
use crate::server::Server;

/// What the daemon was told, and what it goes by now.
pub(super) struct Reloader {
    flags: Flags,
    current: Config,
}

// === impl Reloader ===

impl Reloader {
    pub(super) fn new(flags: Flags, current: Config) -> Self {
        Self { flags, current }
    }

    /// Reads the configuration by the same flags and environment. One with mistakes changes nothing.
    pub(super) async fn reload(&mut self, server: &Server) {
        let flags = self.flags.clone();
        let loaded = spawn_blocking(move || Config::load(&flags, |name| std::env::var(name).ok())).await;
        let new = match loaded {
            Ok(Ok(new)) => new,
            Ok(Err(mistakes)) => {
                tracing::error!(%mistakes, "the configuration has mistakes: everything stays as it was");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "the configuration could not be read again");
                return;
            }
        };
        let done = self.current.reload(&new);
        server.set_limits(&self.current);
        let file = new.source.as_deref().map(|file| file.display().to_string());
        if done.applied.is_empty() {
            tracing::info!(file, "configuration read again: no limit of transfers has changed");
        } else {
            tracing::info!(file, changed = done.applied.join(", "), "configuration read again: these hold from now on");
        }
        if !done.pending.is_empty() {
            tracing::warn!(
                keys = done.pending.join(", "),
                "what else has changed in the configuration needs a restart"
            );
        }
    }
}
