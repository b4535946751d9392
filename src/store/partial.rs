//! What is left of a fill that did not end, and can be gone on with.

use super::ranges::ByteRanges;
use super::{Store, StoreError};
use crate::oci::Digest;
use crate::store::BlobWriter;

/// What a fill wants to be remembered of where its bytes came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartialMark {
    /// Which upstream gave them.
    pub upstream: Option<String>,
    /// The validator that came with them.
    pub etag: Option<String>,
}

/// What is left of a fill. Who has it has it alone; dropping it leaves it for another time.
#[derive(Debug)]
pub struct Partial {
    length: u64,
    present: ByteRanges,
    mark: PartialMark,
}

// === impl Store ===

impl Store {
    /// What an earlier fill of `digest` has left, if nobody else has it.
    #[expect(clippy::unused_async, reason = "for now there is none")]
    pub async fn take_up(&self, _digest: &Digest) -> Option<Partial> {
        None
    }
}

// === impl Partial ===

impl Partial {
    /// How many bytes the blob has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What of them is in the file; never all.
    pub fn present(&self) -> &ByteRanges {
        &self.present
    }

    /// What the fill wanted to be remembered.
    pub fn mark(&self) -> &PartialMark {
        &self.mark
    }

    /// Goes on with it: promises what is missing, evicting older blobs if needed.
    ///
    /// # Errors
    /// As of [`Store::create`]; it stays then for another time.
    #[expect(clippy::unused_async, reason = "for now there is none")]
    pub async fn resume(self) -> Result<BlobWriter, StoreError> {
        Err(StoreError::Stopped)
    }

    /// Removes it.
    #[expect(clippy::unused_async, reason = "for now there is none")]
    pub async fn discard(self) {}
}
