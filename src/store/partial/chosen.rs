//! What fills have left goes with what an operator removes: it has no ref that would lead there, only a mark that says where it
//! came from.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Left, PartialMark};
use crate::oci::{Digest, RepoName, UpstreamName};
use crate::store::layout::FILLS;
use crate::store::{Inner, StoreError};

/// A repository of an upstream.
pub(in crate::store) type Place = (UpstreamName, RepoName);

/// How much was removed, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct Gone {
    pub(in crate::store) downloads: u64,
    pub(in crate::store) bytes: u64,
}

// === impl PartialMark ===

impl PartialMark {
    /// Where it was asked for, if that is known.
    pub(in crate::store) fn place(&self) -> Option<Place> {
        let repository = self.repository.as_ref().or(self.public_in.as_ref())?;
        Some((self.upstream.as_ref()?.parse().ok()?, repository.parse().ok()?))
    }
}

// === impl Inner ===

impl Inner {
    /// Where what is left was asked for, as far as nobody goes on with it.
    pub(in crate::store) fn places_of_partials(&self) -> Vec<Place> {
        self.partials.select(|_, left| left.mark.place())
    }

    /// Removes what is such, unless somebody goes on with it; or says how much it is. Blocks.
    ///
    /// # Errors
    /// Something of it could not be removed, which is tried again each second; or the store is closed.
    pub(in crate::store) fn remove_partials(
        self: &Arc<Self>,
        dry_run: bool,
        is_such: impl Fn(&Digest, &Left) -> bool,
    ) -> Result<Gone, StoreError> {
        let such = self.partials.select(|digest, left| is_such(digest, left).then_some(*digest));
        let (mut gone, mut all) = (Gone::default(), true);
        for digest in such {
            self.check_open()?;
            let bytes = if dry_run {
                self.partials.bytes(&digest)
            } else {
                self.partials.take(&digest).and_then(|(claim, parked)| {
                    // Somebody may have gone on with it, and left it again.
                    if is_such(&digest, &parked.left) {
                        let bytes = parked.reservation.bytes();
                        let is_gone = self.forget_partial(claim, *parked) == bytes;
                        all &= is_gone;
                        return is_gone.then_some(bytes);
                    }
                    self.partials.put_back(claim, parked);
                    None
                })
            };
            if let Some(bytes) = bytes {
                gone.downloads += 1;
                gone.bytes += bytes;
            }
        }
        if !all {
            let error = io::Error::other("the log says why; it is tried again each second");
            return Err(StoreError::io("remove an unfinished download from", Path::new(FILLS), error));
        }
        Ok(gone)
    }
}
