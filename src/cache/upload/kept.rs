//! What an upload leaves on this side while it runs: a file in the store, so that it can be replayed and published.
//!
//! Nothing here fails an upload. Without room it goes on without the file: then it can be neither replayed nor kept, and
//! is only hashed. That it is what its digest says is known in any case.

use std::pin::Pin;

use bytes::Bytes;

use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::{Spool, SpoolReader, Store, StoreError, StoredBlob};

/// What is kept of an upload.
pub(super) enum Kept {
    /// Nothing has come yet.
    Nothing,
    /// All of it, in a file.
    Spool(Box<Spool>),
    /// Writing the file failed: it goes, and what came so far is hashed to its end.
    Failing(Pin<Box<dyn Future<Output = Vec<Hasher>> + Send>>),
    /// There is no room: only the sums of what has gone upstream, by the algorithms that the digest may be of.
    Hashed(Vec<Hasher>),
    /// Not even that is known any more.
    Lost,
}

// === impl Kept ===

impl Kept {
    /// Gets ready for the first bytes. `length` of all, and `algorithm` of the digest, if they are known.
    pub(super) async fn begin(&mut self, store: &Store, length: Option<u64>, algorithm: Option<Algorithm>) {
        if !matches!(self, Self::Nothing) {
            return;
        }
        *self = match store.spool(length).await {
            Ok(spool) => Self::Spool(Box::new(spool)),
            Err(error) => {
                report(&error);
                let wanted = |one: &Algorithm| algorithm.is_none_or(|algorithm| algorithm == *one);
                Self::Hashed(Algorithm::ALL.into_iter().filter(wanted).map(Hasher::new).collect())
            }
        };
    }

    /// Adds a piece. When this is dropped before it is done, the piece is not in.
    pub(super) async fn add(&mut self, piece: &Bytes) {
        if let Self::Spool(spool) = self {
            let Err(error) = spool.write(piece.clone()).await else { return };
            self.fail(&error);
        }
        self.settle().await;
        match self {
            Self::Hashed(sums) => sums.iter_mut().for_each(|sum| sum.update(piece)),
            _ => *self = Self::Lost,
        }
    }

    /// Whether all that was added can be read again.
    pub(super) const fn is_whole(&self) -> bool {
        matches!(self, Self::Nothing | Self::Spool(_))
    }

    /// The digest of all that was added; none if that cannot be told.
    pub(super) async fn digest(&mut self, algorithm: Algorithm) -> Option<Digest> {
        if let Self::Spool(spool) = self {
            match spool.digest_so_far(algorithm).await {
                Ok(digest) => return Some(digest),
                Err(error) => self.fail(&error),
            }
        }
        self.settle().await;
        match self {
            Self::Nothing => Some(Digest::of(algorithm, b"")),
            Self::Hashed(sums) => {
                let mut digests = sums.iter().map(|sum| Hasher::clone(sum).finish());
                digests.find(|digest| digest.algorithm() == algorithm)
            }
            _ => None,
        }
    }

    /// What reads all that was added; none if it is not there.
    pub(super) async fn reader(&mut self) -> Option<SpoolReader> {
        let Self::Spool(spool) = self else { return None };
        match spool.flush().await {
            Ok(_) => Some(spool.reader()),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    /// Waits until what was added is in the file, or the file is given up.
    pub(super) async fn write_out(&mut self) {
        // Who reads it is asked for because that waits.
        drop(self.reader().await);
        self.settle().await;
    }

    /// Goes on without the file.
    fn fail(&mut self, error: &StoreError) {
        report(error);
        *self = match std::mem::replace(self, Self::Lost) {
            Self::Spool(spool) => Self::Failing(Box::pin(spool.into_hashers())),
            other => other,
        };
    }

    /// Waits for the sums of what came before the file failed. When this is dropped before it is done, nothing is lost.
    async fn settle(&mut self) {
        if let Self::Failing(sums) = self {
            let sums = sums.await;
            *self = if sums.is_empty() { Self::Lost } else { Self::Hashed(sums) };
        }
    }

    /// Forgets all but the first `length` bytes: what came after them was not acknowledged and will come again. When this
    /// is dropped before it is done, nothing has changed.
    pub(super) async fn rewind(&mut self, length: u64) {
        if length == 0 {
            *self = Self::Nothing;
            return;
        }
        if let Self::Spool(spool) = self {
            match spool.rewind(length).await {
                Ok(()) => return,
                Err(error) => report(&error),
            }
        }
        *self = Self::Lost;
    }

    /// Publishes it under its digest; none if there is nothing to publish.
    pub(super) async fn publish(self, store: &Store, digest: &Digest) -> Option<StoredBlob> {
        let published = match self {
            Self::Spool(spool) => spool.finish(digest).await,
            // An empty blob never had a file.
            Self::Nothing => match store.create(digest, Some(0)).await {
                Ok(writer) => writer.finish().await,
                Err(error) => Err(error),
            },
            Self::Failing(_) | Self::Hashed(_) | Self::Lost => return None,
        };
        published.inspect_err(report).ok()
    }
}

fn report(error: &StoreError) {
    if error.is_full() {
        // The store has said once that it has no room.
        tracing::debug!("there is no room for an upload; it goes through and is not kept");
    } else {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            "an upload cannot be kept; it goes through all the same"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Capacity, Durability};
    use crate::metrics::Metrics;
    use crate::store::{Keep, StoreOptions};

    /// The last piece is accepted before anybody knows that there is no room for it.
    #[tokio::test]
    async fn the_room_of_a_file_that_failed_at_its_end_is_given_back() {
        let root = tempfile::tempdir().unwrap();
        let metrics = Metrics::new().unwrap();
        let options = StoreOptions {
            root: root.path().to_owned(),
            capacity: Capacity::Bytes(1 << 20),
            durability: Durability::Fast,
            keep: Keep::default(),
            origins: Vec::new(),
            clock: crate::clock::twin::system(),
        };
        let store = Store::open(options, metrics.clone()).unwrap();
        let mut kept = Kept::Nothing;
        kept.begin(&store, None, None).await;
        let piece = Bytes::from(vec![7; 3 << 20]);
        kept.add(&piece).await;
        assert!(kept.is_whole(), "it was accepted");
        kept.write_out().await;
        assert!(!kept.is_whole());
        assert_eq!(metrics.store_bytes.get(), 0);
        assert_eq!(kept.digest(Algorithm::Sha256).await, Some(Digest::of(Algorithm::Sha256, &piece)));
        assert_eq!(kept.digest(Algorithm::Sha512).await, Some(Digest::of(Algorithm::Sha512, &piece)));
    }
}
