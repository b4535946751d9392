//! How far a blob's bytes have come: what a fill, or the check of a stored file, tells its readers.
//!
//! A vanished writer is not the end of the content: a closed channel without a final state reads as
//! [`State::Failed`].

use std::fs::File;
use std::sync::Arc;

use tokio::sync::watch;

use super::CacheError;

/// A blob that is on its way into the store, or that is being checked.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    /// Known as soon as upstream's head has come.
    pub(super) head: Option<Arc<Head>>,
    /// How far it is.
    pub(super) state: State,
}

/// What is known from upstream's head.
#[derive(Debug)]
pub(super) struct Head {
    /// The growing file; readers read at their own offsets.
    pub(super) file: Arc<File>,
    /// Bytes of the blob, if upstream said so.
    pub(super) length: Option<u64>,
}

/// How far a blob is.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// So many bytes, from the start, are in the file. They are not verified.
    Growing(u64),
    /// All bytes, so many, are in the file and hash to the digest.
    Verified(u64),
    /// It will not become whole.
    Failed(CacheError),
}

/// The writer's side; dropping it without a final state is a failure.
#[derive(Debug)]
pub(super) struct Reporter(watch::Sender<Progress>);

/// The reader's side.
#[derive(Debug, Clone)]
pub(super) struct Watcher(watch::Receiver<Progress>);

/// A new pair, with nothing known.
pub(super) fn channel() -> (Reporter, Watcher) {
    let (sender, receiver) = watch::channel(Progress { head: None, state: State::Growing(0) });
    (Reporter(sender), Watcher(receiver))
}

// === impl Reporter ===

impl Reporter {
    /// Upstream's head has come.
    pub(super) fn head(&self, head: Head) {
        self.0.send_modify(|progress| progress.head = Some(Arc::new(head)));
    }

    /// So many bytes are in the file.
    pub(super) fn grown(&self, bytes: u64) {
        self.0.send_modify(|progress| progress.state = State::Growing(bytes));
    }

    /// All bytes are there and right.
    pub(super) fn verified(&self, bytes: u64) {
        self.0.send_modify(|progress| progress.state = State::Verified(bytes));
    }

    /// It failed.
    pub(super) fn failed(&self, error: CacheError) {
        self.0.send_modify(|progress| progress.state = State::Failed(error));
    }
}

// === impl Watcher ===

impl Watcher {
    /// Waits for upstream's head.
    pub(super) async fn head(&mut self) -> Result<Arc<Head>, CacheError> {
        let progress = self
            .0
            .wait_for(|progress| progress.head.is_some() || matches!(progress.state, State::Failed(_)))
            .await
            .map_err(|_| CacheError::Stopped)?;
        match (&progress.head, &progress.state) {
            (Some(head), _) => Ok(Arc::clone(head)),
            (None, State::Failed(error)) => Err(error.clone()),
            (None, _) => Err(CacheError::Stopped),
        }
    }

    /// Waits until the verdict is known: verified, with the length, or failed.
    pub(super) async fn verdict(&mut self) -> Result<u64, CacheError> {
        let progress = self
            .0
            .wait_for(|progress| !matches!(progress.state, State::Growing(_)))
            .await
            .map_err(|_| CacheError::Stopped)?;
        match &progress.state {
            State::Verified(bytes) => Ok(*bytes),
            State::Failed(error) => Err(error.clone()),
            State::Growing(_) => Err(CacheError::Stopped),
        }
    }

    /// The state now.
    pub(super) fn state(&self) -> State {
        self.0.borrow().state.clone()
    }

    /// The state now, marked as seen, so that [`Self::changed`] waits for a newer one.
    pub(super) fn next_state(&mut self) -> State {
        self.0.borrow_and_update().state.clone()
    }

    /// Waits for another state than the last one seen.
    pub(super) async fn changed(&mut self) -> Result<(), CacheError> {
        self.0.changed().await.map_err(|_| CacheError::Stopped)
    }
}
