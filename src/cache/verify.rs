//! The check of a stored file whose verification stamp is void: the file is read and hashed once, however many ask.
//!
//! It looks to readers like a fill whose bytes are all there and whose verdict is open, so the tail is held back in the
//! same way.

use std::sync::Arc;

use super::progress::{self, Head, Watcher};
use super::{Cache, CacheError};
use crate::oci::{Digest, Hasher};
use crate::store::StoredBlob;

/// Bytes hashed at once on the blocking pool.
const STEP: usize = 1024 * 1024;

// === impl Cache ===

impl Cache {
    /// Joins the check of the stored `blob`, or starts one.
    pub(super) fn verify(self: &Arc<Self>, digest: &Digest, blob: StoredBlob) -> Watcher {
        let mut running = self.checks.lock();
        if let Some(watcher) = running.get(digest) {
            return watcher.clone();
        }
        let (reporter, watcher) = progress::channel();
        running.insert(*digest, watcher.clone());
        drop(running);
        reporter.head(Head { file: Arc::clone(&blob.file), length: Some(blob.len) });
        reporter.grown(blob.len);
        let (cache, digest) = (Arc::clone(self), *digest);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            match stop.run_until_cancelled(cache.check(&digest, &blob)).await {
                Some(Ok(())) => reporter.verified(blob.len),
                Some(Err(error)) => reporter.failed(error),
                None => reporter.failed(CacheError::Stopped),
            }
            cache.checks.lock().remove(&digest);
        });
        watcher
    }

    /// Hashes the file; a right one gets a new stamp, a wrong one goes into quarantine.
    async fn check(&self, digest: &Digest, blob: &StoredBlob) -> Result<(), CacheError> {
        let mut hasher = Hasher::new(digest.algorithm());
        let mut at = 0;
        while at < blob.len {
            let file = Arc::clone(&blob.file);
            let step = tokio::task::spawn_blocking(move || {
                let bytes = super::body::read_at(&file, at, STEP)?;
                hasher.update(&bytes);
                Ok::<_, std::io::Error>((hasher, bytes.len() as u64))
            });
            let read;
            (hasher, read) = match step.await {
                Ok(Ok(step)) => step,
                Ok(Err(error)) => {
                    tracing::error!(%digest, %error, "a stored blob cannot be read; it is set aside");
                    self.store.quarantine(digest, blob).await?;
                    return Err(CacheError::Damaged(Box::new(*digest)));
                }
                Err(_) => return Err(CacheError::Stopped),
            };
            if read == 0 {
                break;
            }
            at += read;
        }
        if hasher.finish() == *digest {
            // A stamp that cannot be written costs another check next time, nothing else.
            if let Err(error) = self.store.mark_verified(digest, blob).await {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a verification stamp was not kept");
            }
            Ok(())
        } else {
            self.store.quarantine(digest, blob).await?;
            Err(CacheError::Damaged(Box::new(*digest)))
        }
    }
}
