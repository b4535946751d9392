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
        reporter.present((0..blob.len).into());
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

    /// Hashes the file; a right one gets a new stamp, a wrong one goes into quarantine, and one that cannot be read stays.
    async fn check(&self, digest: &Digest, blob: &StoredBlob) -> Result<(), CacheError> {
        match self.store.check(digest, blob, &mut AtOnce).await? {
            Checked::Right => Ok(()),
            Checked::Wrong(_) => Err(CacheError::Damaged(Box::new(*digest))),
            Checked::Unreadable(_) => Err(CacheError::Unreadable(Box::new(*digest))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures_util::TryStreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::super::blob::BlobSource;
    use super::super::tests::{cache_of, party, target};
    use super::*;
    use crate::oci::{Algorithm, Via};
    use crate::store::{Link, Trust};

    /// Answers every question with this content; how many there were.
    async fn upstream(content: &'static [u8]) -> (String, Arc<AtomicUsize>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                count.fetch_add(1, Ordering::SeqCst);
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", content.len());
                client.write_all(head.as_bytes()).await.unwrap();
                client.write_all(content).await.unwrap();
            }
        });
        (url, asked, task)
    }

    async fn content_of(cache: &Arc<Cache>, digest: &Digest) -> Vec<u8> {
        let blob = cache.blob(&target(), digest, super::super::supply::Part::Whole, party()).await.unwrap();
        let BlobSource::Content(content) = blob.source else { panic!("it is kept") };
        content.read(None, None).try_collect::<Vec<Bytes>>().await.unwrap().concat()
    }

    /// A bad sector, once in the middle of an answer: the next pulls do not run into it while upstream is there, and where
    /// upstream is not, the file is read once more. Nothing is destroyed before its place is taken.
    #[tokio::test]
    async fn what_could_not_be_read_is_fetched_anew_or_read_once_more() {
        const CONTENT: &[u8] = &[7; 100_000];
        let (url, asked, mut task) = upstream(CONTENT).await;
        let (cache, root) = cache_of(&url);
        let (store, digest) = (&cache.store, Digest::of(Algorithm::Sha256, CONTENT));
        let mut writer = store.create(&digest, None).await.unwrap();
        writer.write(Bytes::from_static(CONTENT)).await.unwrap();
        writer.finish().await.unwrap();
        let now = cache.generations.asking();
        cache.heard(&target(), &now, Ok(Via::Anonymous)).await;
        let link = Link::blob(Via::Anonymous, CONTENT.len() as u64);
        cache.keep_link(&target(), &digest, link, &now).await;
        assert_eq!(content_of(&cache, &digest).await, CONTENT);
        assert_eq!(asked.load(Ordering::SeqCst), 0, "a hit");

        let fails = async || {
            let mut blob = store.blob(&digest).await.unwrap().unwrap();
            // What is open to be written only cannot be read.
            blob.file = Arc::new(std::fs::File::create(root.path().join("unreadable")).unwrap());
            let checked = store.check(&digest, &blob, &mut AtOnce).await.unwrap();
            assert!(matches!(checked, Checked::Unreadable(_)), "{checked:?}");
            assert_eq!(store.blob(&digest).await.unwrap().unwrap().trust, Trust::Unreadable);
        };
        fails().await;
        assert_eq!(content_of(&cache, &digest).await, CONTENT);
        cache.tasks.close();
        cache.tasks.wait().await;
        cache.tasks.reopen();
        assert_eq!(asked.load(Ordering::SeqCst), 1, "it was fetched anew");
        assert_eq!(store.blob(&digest).await.unwrap().unwrap().trust, Trust::Verified, "the new one is in its place");

        fails().await;
        task.shutdown().await;
        assert_eq!(content_of(&cache, &digest).await, CONTENT, "without upstream it is read once more");
        assert_eq!(store.blob(&digest).await.unwrap().unwrap().trust, Trust::Verified, "and was found whole");
    }
}
