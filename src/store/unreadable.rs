//! Stored blobs of which a read has failed. That is no proof that they are wrong: they stay where they are until a right
//! copy takes their place, or a later read finds them whole (ADR 0018).

use std::collections::HashMap;

use parking_lot::Mutex;

use super::blob::StoredBlob;
use super::layout;
use super::stamp::Stamp;
use super::{Inner, Store, StoreError};
use crate::oci::Digest;

/// How many are remembered. One that is forgotten is read once more before it is fetched anew.
const REMEMBERED: usize = 4096;

/// Which files could not be read; in memory alone.
#[derive(Debug, Default)]
pub(super) struct Unreadables(Mutex<HashMap<Digest, Stamp>>);

// === impl Unreadables ===

impl Unreadables {
    /// Whether a read of the file that looks so has failed, and none was whole since.
    pub(super) fn has(&self, digest: &Digest, seen: Stamp) -> bool {
        self.0.lock().get(digest) == Some(&seen)
    }

    /// The file was read whole.
    pub(super) fn forget(&self, digest: &Digest) {
        self.0.lock().remove(digest);
    }

    fn note(&self, digest: &Digest, seen: Stamp) {
        let mut files = self.0.lock();
        if files.len() >= REMEMBERED {
            files.clear();
        }
        files.insert(*digest, seen);
    }
}

// === impl Store ===

impl Store {
    /// A read through `blob` has failed: nothing is known of its content, and nothing becomes of the file.
    pub(super) async fn note_unreadable(&self, digest: &Digest, blob: &StoredBlob) -> Result<(), StoreError> {
        let (digest, seen, len) = (*digest, blob.seen, blob.len);
        self.blocking(move |inner| {
            inner.note_unreadable(&digest, seen, len);
            Ok(())
        })
        .await
    }
}

// === impl Inner ===

impl Inner {
    fn note_unreadable(&self, digest: &Digest, seen: Stamp, len: u64) {
        self.unreadable.note(digest, seen);
        // Under the lock, so that the stamp of a copy that takes its place stands.
        let _names = self.names.lock();
        let is_another = self.disk.metadata(&layout::blob(digest)).is_ok_and(|now| Stamp::of(&now) != seen);
        if !is_another {
            self.hints.void_blob(digest, len);
            self.open.forget(digest);
        }
    }
}
