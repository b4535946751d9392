//! How far a blob's bytes have come: what a fill, or the check of a stored file, tells its readers.
//!
//! A vanished writer is not the end of the content: a closed channel without a final state reads as
//! [`State::Failed`].

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::CacheError;
use super::bypass::Rest;
use super::front::{Front, Fronts};
use crate::store::{ByteRanges, Placed, StoredBlob};

/// A blob that is on its way into the store, or that is being checked.
#[derive(Debug)]
pub(super) struct Progress {
    /// Known as soon as upstream's head has come.
    pub(super) head: Option<Arc<Head>>,
    /// How far it is.
    pub(super) state: State,
    /// Which bytes are in the file. Before the verdict they are not verified.
    present: ByteRanges,
    /// What has come last.
    front: Front,
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
    /// Bytes come.
    Growing,
    /// All bytes, so many, are in the file and hash to the digest.
    Verified(u64),
    /// The store could not take the rest. What the file has is served; every reader fetches what follows by itself.
    Cut(Arc<Rest>),
    /// It will not become whole.
    Failed(CacheError),
}

/// How far a blob is, for somebody who reads at a position.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) state: State,
    /// The end of the bytes that follow the position without a gap and are in the file; the position where there are none.
    pub(super) run: u64,
    /// Bytes that are in the file.
    pub(super) total: u64,
}

/// The writer's side; dropping it without a final state is a failure.
#[derive(Debug)]
pub(super) struct Reporter(watch::Sender<Progress>);

/// The reader's side.
#[derive(Debug, Clone)]
pub(super) struct Watcher(watch::Receiver<Progress>);

/// A new pair, with nothing known.
pub(super) fn channel() -> (Reporter, Watcher) {
    let (sender, receiver) = watch::channel(Progress {
        head: None,
        state: State::Growing,
        present: ByteRanges::default(),
        front: Front::default(),
        guard: None,
    });
    (Reporter(sender), Watcher(receiver))
}

// === impl Reporter ===

impl Reporter {
    /// Upstream's head has come.
    pub(super) fn head(&self, head: Head) {
        self.0.send_modify(|progress| progress.head = Some(Arc::new(head)));
    }

    /// These bytes are in the file already.
    pub(super) fn present(&self, present: ByteRanges) {
        self.0.send_modify(|progress| progress.present = present);
    }

    /// What tells that more bytes are in the file; the last of them are at hand in memory, which counts there. Told too
    /// late it changes nothing.
    pub(super) fn growth(&self, fronts: &Arc<Fronts>) -> impl Fn(&[Placed]) + Send + Sync + use<> {
        let sender = self.0.clone();
        sender.send_if_modified(|progress| {
            progress.front = Front::new(Arc::clone(fronts));
            false
        });
        move |pieces| {
            sender.send_if_modified(|progress| {
                let grows = matches!(progress.state, State::Growing);
                if grows {
                    for piece in pieces {
                        progress.present.insert(piece.range());
                        progress.front.add(piece);
                    }
                }
                grows
            });
        }
    }

    /// It grows no more.
    fn end(&self, state: State) {
        self.0.send_modify(|progress| {
            progress.state = state;
            progress.front.end();
        });
    }

    /// All bytes are there and right.
    pub(super) fn verified(&self, bytes: u64) {
        self.end(State::Verified(bytes));
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
        self.end(State::Cut(Arc::new(rest)));
    }

    /// It failed.
    pub(super) fn failed(&self, error: CacheError) {
        self.end(State::Failed(error));
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
            .wait_for(|progress| !matches!(progress.state, State::Growing))
            .await
            .map_err(|_| CacheError::Stopped)?;
        match &progress.state {
            State::Verified(bytes) => Ok(*bytes),
            State::Failed(error) => Err(error.clone()),
            State::Cut(_) | State::Growing => Err(CacheError::NoSpace),
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

    /// How far it is now, for who reads at this position; marked as seen, so that [`Self::changed`] waits for news.
    pub(super) fn look(&mut self, at: u64) -> Look {
        let progress = self.0.borrow_and_update();
        let (run, total) = (progress.present.end_of_run(at), progress.present.total());
        Look { state: progress.state.clone(), run, total }
    }

    /// The bytes from `at` on, up to `end` and not more than `most`, if they are at hand: those that have come last.
    pub(super) fn at_hand(&self, at: u64, end: u64, most: u64) -> Option<Bytes> {
        self.0.borrow().front.from(at, end, most)
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
        let growth = reporter.growth(&Arc::default());
        let piece = |at, bytes: &'static [u8]| [Placed { at, bytes: Bytes::from_static(bytes) }];
        growth(&piece(0, b"01234"));
        growth(&piece(7, b"78"));
        let look = watcher.look(3);
        assert!(matches!(look.state, State::Growing));
        assert_eq!((look.run, look.total, watcher.look(5).run, watcher.look(7).run), (5, 7, 5, 9));
        reporter.failed(CacheError::NoSpace);
        growth(&piece(5, b"5"));
        let look = watcher.look(3);
        assert!(matches!(look.state, State::Failed(CacheError::NoSpace)));
        assert_eq!(look.run, 5);
        drop(reporter);
        assert!(watcher.0.has_changed().is_ok(), "who writes is still there");
        drop(growth);
        assert!(watcher.0.has_changed().is_err());
    }
}
