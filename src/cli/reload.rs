//! SIGHUP: the configuration is read again, and of it is taken over what can change while the daemon runs.

use tokio::task::spawn_blocking;

use super::filter::Filter;
use crate::config::{Config, Flags, KnownUrls};
use crate::http::respond::causes;
use crate::server::Server;

/// What the daemon was told, and what it goes by now.
pub(super) struct Reloader {
    flags: Flags,
    current: Config,
    known: KnownUrls,
    filter: Filter,
}

// === impl Reloader ===

impl Reloader {
    pub(super) fn new(flags: Flags, current: Config, filter: Filter) -> Self {
        let mut known = KnownUrls::default();
        known.learn(&current);
        Self { flags, current, known, filter }
    }

    /// Reads the configuration by the same flags and environment. One with mistakes changes nothing, but who is let in is
    /// looked at all the same.
    pub(super) async fn reload(&mut self, server: &Server) {
        server.look_at_users().await;
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
        let (next, done) = match self.current.reload(&new, &self.known) {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(%error, "this configuration takes a restart: everything stays as it was");
                return;
            }
        };
        let filter = match Filter::new(&next.log.filter) {
            Ok(filter) => filter,
            Err(error) => {
                tracing::error!(%error, "log.filter is no filter: everything stays as it was");
                return;
            }
        };
        if let Err(error) = server.reload(next.clone()).await {
            tracing::error!(error = causes(&error), "the configuration cannot be used: everything stays as it was");
            return;
        }
        super::serve::warn_of_doubts(&next);
        self.known.learn(&next);
        if self.current.log.filter != next.log.filter {
            self.filter.become_as(&filter);
        }
        self.current = next;
        let file = self.current.source.as_deref().map(|file| file.display().to_string());
        if done.applied.is_empty() {
            tracing::info!(file, "configuration read again: nothing has changed that can change without a restart");
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
