//! How far a blob's bytes have come: what a fill, or the check of a stored file, tells its readers.
//!
//! A vanished writer is not the end of the content: a closed channel without a final state reads as
//! [`State::Failed`].

use std::fs::File;
use std::sync::Arc;

use tokio::sync::watch;

use super::CacheError;
use super::bypass::Rest;
use crate::store::StoredBlob;

/// A blob that is on its way into the store, or that is being checked.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    /// Known as soon as upstream's head has come.
    pub(super) head: Option<Arc<Head>>,
    /// How far it is.
    pub(super) state: State,
    /// The file's guard, so that the bytes of one that is published, and then removed while somebody reads it, stay in
    /// the store's account.
    guard: Option<StoredBlob>,
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
    /// The store could not take the rest. What the file has is served; every reader fetches what follows by itself.
    Cut(Arc<Rest>),
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
    let (sender, receiver) = watch::channel(Progress { head: None, state: State::Growing(0), guard: None });
    (Reporter(sender), Watcher(receiver))
}

// === impl Reporter ===

impl Reporter {
    /// Upstream's head has come.
    pub(super) fn head(&self, head: Head) {
        self.0.send_modify(|progress| progress.head = Some(Arc::new(head)));
    }

    /// What tells that so many bytes are in the file. Told too late it changes nothing.
    pub(super) fn growth(&self) -> impl Fn(u64) + Send + Sync + use<> {
        let sender = self.0.clone();
        move |bytes| {
            sender.send_if_modified(|progress| {
                let grows = matches!(progress.state, State::Growing(_));
                if grows {
                    progress.state = State::Growing(bytes);
                }
                grows
            });
        }
    }

    /// All bytes are there and right.
    pub(super) fn verified(&self, bytes: u64) {
        self.0.send_modify(|progress| progress.state = State::Verified(bytes));
    }

    /// The file is published. This changes nothing for readers, so it wakes none.
    pub(super) fn guarded(&self, guard: StoredBlob) {
        self.0.send_if_modified(|progress| {
            progress.guard = Some(guard);
            false
        });
    }

    /// The store could not take the rest.
    pub(super) fn cut(&self, rest: Rest) {
        self.0.send_modify(|progress| progress.state = State::Cut(Arc::new(rest)));
    }

    /// It failed.
    pub(super) fn failed(&self, error: CacheError) {
        self.0.send_modify(|progress| progress.state = State::Failed(error));
    }
}

// === impl Watcher ===

impl Watcher {
    /// Waits for upstream's head. What has failed since is an error too: whoever comes then has sent no head yet.
    pub(super) async fn head(&mut self) -> Result<Arc<Head>, CacheError> {
        let progress = self
            .0
            .wait_for(|progress| progress.head.is_some() || matches!(progress.state, State::Failed(_)))
            .await
            .map_err(|_| CacheError::Stopped)?;
        match (&progress.state, &progress.head) {
            (State::Failed(error), _) => Err(error.clone()),
            (_, Some(head)) => Ok(Arc::clone(head)),
            (_, None) => Err(CacheError::Stopped),
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
            State::Cut(_) | State::Growing(_) => Err(CacheError::NoSpace),
        }
    }

    /// The state now.
    pub(super) fn state(&self) -> State {
        self.0.borrow().state.clone()
    }

    /// Whether it will not become whole.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.0.borrow().state, State::Failed(_))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { file: Arc::new(tempfile::tempfile().unwrap()), length: Some(3) }
    }

    #[tokio::test]
    async fn who_comes_after_the_failure_is_told_before_a_head_is_sent() {
        let (reporter, watcher) = channel();
        reporter.head(head());
        assert_eq!(watcher.clone().head().await.unwrap().length, Some(3));
        reporter.failed(CacheError::NoSpace);
        assert!(matches!(watcher.clone().head().await, Err(CacheError::NoSpace)));
    }

    #[tokio::test]
    async fn a_vanished_writer_is_a_failure() {
        let (reporter, mut watcher) = channel();
        drop(reporter);
        assert!(matches!(watcher.head().await, Err(CacheError::Stopped)));
        assert!(matches!(watcher.verdict().await, Err(CacheError::Stopped)));
        assert!(matches!(watcher.changed().await, Err(CacheError::Stopped)));
    }

    #[tokio::test]
    async fn growth_that_is_told_too_late_changes_nothing() {
        let (reporter, mut watcher) = channel();
        let growth = reporter.growth();
        growth(5);
        assert!(matches!(watcher.next_state(), State::Growing(5)));
        reporter.failed(CacheError::NoSpace);
        growth(6);
        assert!(matches!(watcher.next_state(), State::Failed(CacheError::NoSpace)));
        drop(reporter);
        assert!(watcher.0.has_changed().is_ok(), "who writes is still there");
        drop(growth);
        assert!(watcher.0.has_changed().is_err());
    }
}
