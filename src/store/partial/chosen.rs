//! What fills have left goes with what an operator removes: it has no ref that would lead there, only a mark that says where it
//! came from.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::table::Since;
use super::{PartialMark, Seen};
use crate::oci::{RepoName, UpstreamName};
use crate::store::layout::FILLS;
use crate::store::{Inner, StoreError};

/// A repository of an upstream.
pub(in crate::store) type Place = (UpstreamName, RepoName);

/// How much was removed, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct Gone {
    pub(in crate::store) downloads: u64,
    pub(in crate::store) bytes: u64,
    /// So many more are not kept when those who have them give them back.
    pub(in crate::store) doomed: u64,
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
    /// Where what is there was asked for, and what somebody goes on with.
    pub(in crate::store) fn places_of_partials(&self) -> Vec<Place> {
        self.partials.look().iter().filter_map(|seen| seen.mark.place()).collect()
    }

    /// Removes what is such, or says how much it is. Whoever has such a one goes on with it undisturbed, and what is left of it
    /// then goes. Blocks.
    ///
    /// # Errors
    /// Something of it could not be removed, which is tried again; or the store is closed.
    pub(in crate::store) fn remove_partials(
        self: &Arc<Self>,
        dry_run: bool,
        is_such: impl Fn(&Seen) -> bool,
    ) -> Result<Gone, StoreError> {
        let mut such = self.partials.look();
        such.retain(&is_such);
        let (mut gone, mut all) = (Gone::default(), true);
        for mut seen in such {
            self.check_open()?;
            if dry_run {
                gone.add(seen.touched.map(|_| seen.bytes));
                gone.doomed += u64::from(seen.touched.is_none());
                continue;
            }
            // Somebody may have it by now.
            seen.touched = None;
            match self.partials.take_seen(&seen, is_such(&seen)) {
                Since::Taken(claim, parked) if is_such(&Seen::of(&seen.digest, &parked)) => {
                    let bytes = parked.reservation.bytes();
                    let is_gone = self.forget_partial(claim, *parked) == bytes;
                    all &= is_gone;
                    gone.add(is_gone.then_some(bytes));
                }
                // Somebody has gone on with it, and left it again.
                Since::Taken(claim, parked) => self.give_back(claim, parked),
                Since::Doomed(map) => {
                    all &= map.is_none_or(|map| map.doom());
                    gone.doomed += 1;
                }
                Since::Untouched => {}
            }
        }
        if !all {
            let error = io::Error::other("the log says why; it is tried again each second");
            return Err(StoreError::io("remove an unfinished download from", Path::new(FILLS), error));
        }
        Ok(gone)
    }
}

// === impl Gone ===

impl Gone {
    fn add(&mut self, bytes: Option<u64>) {
        self.downloads += u64::from(bytes.is_some());
        self.bytes += bytes.unwrap_or(0);
    }
}
