//! The check of a stored file whose verification stamp is void: the file is read and hashed once, however many ask.
//!
//! It looks to readers like a fill whose bytes are all there and whose verdict is open, so the tail is held back in the
//! same way.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::progress::{self, Head, Watcher};
use super::{Cache, CacheError};
use crate::oci::Digest;
use crate::store::{AtOnce, Checked, StoredBlob};

/// The running checks, each with the file that is checked: under the same name there may be another one by now.
#[derive(Default)]
pub(super) struct Checks {
    /// Held for look-ups only, never over an await.
    running: Mutex<HashMap<Digest, (Watcher, StoredBlob)>>,
}

/// Takes the check out of the table, however its task ends.
struct Landing {
    cache: Arc<Cache>,
    digest: Digest,
}

// === impl Landing ===

impl Drop for Landing {
    fn drop(&mut self) {
        let landed = self.cache.checks.running.lock().remove(&self.digest);
        // Closing a file takes its time; the table is not locked for it.
        drop(landed);
    }
}

// === impl Cache ===

impl Cache {
    /// Joins the check of the stored file of `digest`, or starts one of `blob`; with it, the file that it is about.
    pub(super) fn verify(self: &Arc<Self>, digest: &Digest, blob: StoredBlob) -> (Watcher, StoredBlob) {
        let mut running = self.checks.running.lock();
        if let Some(check) = running.get(digest) {
            return check.clone();
        }
        let (reporter, watcher) = progress::channel();
        running.insert(*digest, (watcher.clone(), blob.clone()));
        drop(running);
        reporter.head(Head { file: Arc::clone(&blob.file), length: Some(blob.len) });
        reporter.growth()(blob.len);
        let landing = Landing { cache: Arc::clone(self), digest: *digest };
        let (stop, checked) = (self.stop.clone(), blob.clone());
        self.tasks.spawn(async move {
            let Landing { cache, digest } = &landing;
            match stop.run_until_cancelled(cache.check(digest, &checked)).await {
                Some(Ok(())) => reporter.verified(checked.len),
                Some(Err(error)) => reporter.failed(error),
                None => reporter.failed(CacheError::Stopped),
            }
            drop(landing);
        });
        (watcher, blob)
    }

    /// Hashes the file; a right one gets a new stamp, a wrong one goes into quarantine.
    async fn check(&self, digest: &Digest, blob: &StoredBlob) -> Result<(), CacheError> {
        match self.store.check(digest, blob, &mut AtOnce).await? {
            Checked::Right => Ok(()),
            Checked::Wrong(_) => Err(CacheError::Damaged(Box::new(*digest))),
        }
    }
}
