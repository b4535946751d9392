//! A running daemon goes on by another configuration: first everything that can fail, then everything at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::listeners::Turn;
use super::{Server, TlsError};
use crate::config::Config;
use crate::http::App;
use crate::metrics::{Metrics, Requests};
use crate::oci::UpstreamName;
use crate::store::{Keep, StoreError};
use crate::upstream::{Prepared, SetupError};

/// How long a reload waits for the files with users: the rest of it may be what the operator needs just then.
const USERS_WITHIN: Duration = Duration::from_secs(5);

/// Why everything stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A file of an upstream cannot be used.
    #[error(transparent)]
    Upstreams(#[from] SetupError),
    /// A listener cannot speak TLS.
    #[error("TLS of the listener {listener}: {source}")]
    Tls {
        /// Its address.
        listener: String,
        /// The cause.
        source: TlsError,
    },
    /// The store cannot do what it is told.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The preparation panicked.
    #[error("the preparation did not end properly")]
    Preparation,
}

/// What counts the requests of all upstreams of this configuration.
pub(super) fn requests(config: &Config, metrics: &Metrics) -> Arc<Requests> {
    Arc::new(Requests::new(metrics, config.upstreams.keys().map(UpstreamName::as_str)))
}

/// What takes time, or can fail, and changes nothing yet.
struct Ready {
    upstreams: Prepared,
    listeners: Vec<Turn>,
}

// === impl Server ===

impl Server {
    /// Looks at the files with the users of all listeners. Whoever has the configuration read again may have changed who is let
    /// in, and that holds whatever becomes of the rest.
    pub async fn look_at_users(&self) {
        let listeners = self.listeners.clone();
        // What is wrong with a file is told to who asks.
        let looking = spawn_blocking(move || listeners.look_at_users());
        if timeout(USERS_WITHIN, looking).await.is_err() {
            tracing::warn!("the disk of an htpasswd file does not answer: going on without it");
        }
    }

    /// Goes on by `next`, which [`Config::reload`] has made of the configuration that holds now. Running answers end by what
    /// they began with.
    ///
    /// # Errors
    /// Something that `next` names cannot be used: everything stays as it was.
    pub async fn reload(&self, next: Config) -> Result<(), ReloadError> {
        let Ready { upstreams, listeners } = self.prepare(&next).await?;
        let new = next.upstreams.values().filter(|upstream| self.upstreams.get(&upstream.name).is_none());
        self.store.admit(new.map(|upstream| (upstream.name.clone(), upstream.url.to_string())).collect()).await?;
        let keep = Keep { pins: next.pins.clone(), max_age: next.store.max_age };
        self.store.take_over(next.store.capacity, keep).await?;
        // From here on nothing fails. Those that are asked come before who asks them.
        let next = Arc::new(next);
        self.upstreams.take_over(upstreams, &next);
        self.cache.take_over(&next);
        let app = Arc::new(App::clone(&self.app).with(next.clone(), requests(&next, &self.metrics)));
        self.listeners.take_over(listeners, &app);
        self.admin_interface.take_over(next.clone());
        self.admin_servings.iter().for_each(|serving| serving.set_limits(&next.limits));
        *self.drain.lock() = next.limits.drain;
        self.scrub(next.store.scrub);
        *self.current.lock() = next;
        Ok(())
    }

    async fn prepare(&self, next: &Config) -> Result<Ready, ReloadError> {
        let (upstreams, listeners, next) = (self.upstreams.clone(), self.listeners.clone(), next.clone());
        let work = move || {
            let listeners = listeners.prepare(&next.listeners)?;
            Ok(Ready { upstreams: upstreams.prepare(&next)?, listeners })
        };
        spawn_blocking(work).await.map_err(|_| ReloadError::Preparation)?
    }
}
