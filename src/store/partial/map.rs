//! The map of a fill: which bytes of its file are there, put down from time to time.
//!
//! ```text
//! what is in the file is looked up → the file is synced → the map is synced → it takes its name
//! ```
//!
//! So whatever comes back after a crash, the bytes that the map claims are there. That the map names a file which is not
//! there any more, or was published, is harmless.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Claim, Left, Parked, PartialMark, held};
use crate::oci::Digest;
use crate::store::capacity::{Reservation, seconds};
use crate::store::gated::Gated;
use crate::store::layout::{self, FILLS};
use crate::store::ranges::ByteRanges;
use crate::store::{Inner, StoreError};

/// What stands in the file of a map.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) digest: Digest,
    pub(super) length: u64,
    /// The name of the file, in the same directory.
    pub(super) file: String,
    pub(super) mark: PartialMark,
    /// When this was written, in seconds.
    pub(super) touched: u32,
    pub(super) present: Vec<(u64, u64)>,
}

/// The map of a file that is being written.
pub(in crate::store) struct Map {
    inner: Arc<Inner>,
    digest: Digest,
    length: u64,
    path: PathBuf,
    /// Held while it is written, so that nothing is put down of a file that is gone.
    state: Gated<State>,
}

#[derive(Debug)]
struct State {
    /// None: it is at its end.
    claim: Option<Claim>,
    /// There is one on the disk.
    is_written: bool,
    course: Course,
    /// The file could not be synced: a later sync would succeed and mean nothing.
    has_failed: bool,
}

/// Whether what comes is put down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// From time to time.
    Runs,
    /// Not any more.
    Over,
    /// Not any more, and nothing of it is kept: it was removed by command.
    Doomed,
}

/// The map as the owner of the file has it: dropping it removes the map.
pub(in crate::store) struct Mapped {
    map: Arc<Map>,
    stays: bool,
}

// === impl Map ===

impl Map {
    /// Of a new file.
    pub(in crate::store) fn new(inner: Arc<Inner>, digest: Digest, length: u64, path: PathBuf, claim: Claim) -> Self {
        let state = State { claim: Some(claim), is_written: false, course: Course::Runs, has_failed: false };
        Self { inner, digest, length, path, state: Gated::new(state) }
    }

    /// Of a file that has one.
    pub(super) fn of_found(inner: Arc<Inner>, digest: Digest, length: u64, path: PathBuf, claim: Claim) -> Self {
        let map = Self::new(inner, digest, length, path, claim);
        map.state.lock().is_written = true;
        map
    }

    /// Puts down what is in the file. Blocks.
    pub(in crate::store) fn checkpoint(
        &self,
        file: &File,
        look: impl FnOnce() -> (ByteRanges, PartialMark),
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if state.course != Course::Runs || state.has_failed {
            return Ok(());
        }
        let (present, mark) = look();
        self.put_down(&mut state, file, &present, mark).map(drop)
    }

    /// What is in the file must have been looked up before. Returns the time that was put down.
    fn put_down(
        &self,
        state: &mut State,
        file: &File,
        present: &ByteRanges,
        mark: PartialMark,
    ) -> Result<u32, StoreError> {
        if let Err(error) = self.inner.disk.sync_file(file) {
            state.has_failed = true;
            return Err(StoreError::io("sync", &self.path, error));
        }
        let touched = seconds(self.inner.timeline.now());
        let record = Record {
            digest: self.digest,
            length: self.length,
            file: self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned(),
            mark,
            touched,
            present: present.into(),
        };
        // Also if this fails: it may have its name all the same.
        state.is_written = true;
        self.inner.records.write_synced(&self.inner.disk, &layout::map(&self.digest), &record)?;
        self.inner.group.directories([FILLS.into()]);
        Ok(touched)
    }

    /// It is at its end soon. Takes no lock that is held over a call to the disk.
    pub(in crate::store) fn ends(&self) {
        self.inner.partials.ends(&self.digest);
    }

    /// What the fill wants to be known of it. Takes no such lock either.
    pub(in crate::store) fn remember(&self, mark: &PartialMark) {
        self.inner.partials.remember(&self.digest, &self.path, mark);
    }

    /// It was removed by command: nothing is put down any more, and a restart does not find it. Whether that is so: else it
    /// goes with the file. Blocks.
    pub(super) fn doom(&self) -> bool {
        let mut state = self.state.lock();
        state.course = Course::Doomed;
        // Without the claim it is somebody else's.
        if state.claim.is_none() || !state.is_written {
            return true;
        }
        let removed = self.inner.disk.unlink(&layout::map(&self.digest));
        self.inner.group.directories([FILLS.into()]);
        state.is_written = removed.is_err();
        if let Err(error) = &removed {
            tracing::warn!(digest = %self.digest, %error, "the map of a removed download could not be removed; it goes when that ends");
        }
        removed.is_ok()
    }

    /// From here on nothing is put down, and the map there is stays until the file has another name.
    ///
    /// # Errors
    /// That the file could not be synced before: it must not be published.
    pub(in crate::store) fn end(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.course = Course::Over;
        if state.has_failed {
            let error = io::Error::other("it could not be synced before, and what was written may be lost");
            return Err(StoreError::io("sync", &self.path, error));
        }
        Ok(())
    }

    /// Puts down for the last time what is in the file, gives the rest of its blocks back, and the whole to who comes next.
    /// False if it is not to be kept. Blocks.
    pub(in crate::store) fn park(
        &self,
        file: &File,
        present: ByteRanges,
        mark: PartialMark,
        reservation: &mut Option<Reservation>,
    ) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        if state.course == Course::Doomed {
            return Ok(false);
        }
        if state.course != Course::Runs || state.has_failed {
            return Err(StoreError::Stopped);
        }
        state.course = Course::Over;
        // Also where it is as long already: blocks that were taken for what comes after go by that.
        self.inner.disk.set_len(file, present.end()).map_err(|e| StoreError::io("cut", &self.path, e))?;
        let touched = self.put_down(&mut state, file, &present, mark.clone())?;
        let taken = state.claim.take().zip(reservation.take());
        let Some((claim, mut kept)) = taken else { return Err(StoreError::Stopped) };
        let bytes = file.metadata().map_or(present.end(), |found| held(&found, &present));
        kept.keep_only(bytes);
        let (total, of) = (present.total(), self.length);
        let left = Left { path: self.path.clone(), length: self.length, present, mark, touched };
        if let Err((claim, parked)) = self.inner.partials.put_back(claim, Box::new(Parked { left, reservation: kept }))
        {
            (state.claim, *reservation) = (Some(claim), Some(parked.reservation));
            return Ok(false);
        }
        // Whoever takes it up has the map from here on.
        state.is_written = false;
        tracing::debug!(digest = %self.digest, bytes = total, of, "an unfinished download stays, to be gone on with");
        Ok(true)
    }

    /// Removes it. What could not be removed is harmless without its file, and goes later.
    fn remove(&self) {
        let mut state = self.state.lock();
        state.course = Course::Over;
        if let Some(claim) = state.claim.take()
            && std::mem::take(&mut state.is_written)
        {
            self.inner.remove_part(claim, None);
        }
    }
}

// === impl Mapped ===

impl Mapped {
    pub(in crate::store) fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// Whether it stays when this is dropped.
    pub(in crate::store) fn set_stays(&mut self, stays: bool) {
        self.stays = stays;
    }
}

impl From<Map> for Mapped {
    fn from(map: Map) -> Self {
        let map = Arc::new(map);
        if map.inner.partials.has_map(&map.digest, &map.path, Arc::downgrade(&map)) {
            // A failure is told, and it goes with the file.
            let _ = map.doom();
        }
        Self { map, stays: false }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if !self.stays {
            self.map.remove();
        }
    }
}
