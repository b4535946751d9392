//! What is left of a fill that did not end, and can be gone on with: its file, and a map of what of it is there.
//!
//! A map (`map`) is written when the bytes that it claims are on the disk, so it never claims others. What fills have left
//! counts as promised, and waits in a table (`table`) until somebody goes on with it, room is needed or it is too old.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;

mod chosen;
mod map;
mod shelf;
mod start;
mod table;

pub(super) use chosen::{Gone, Place};
pub(super) use map::{Map, Mapped};
pub(super) use start::remove_temporary;
pub(super) use table::{Claim, LEAST, Left, Parked, Partials, Seen};

use start::Finds;
use table::Stuck;

use super::capacity::{CHUNK, Reservation, seconds};
use super::layout::{self, FILLS};
use super::pipeline::{Begun, Pipeline};
use super::ranges::ByteRanges;
use super::temporary::Temporary;
use super::work::{Named, Work};
use super::{BlobWriter, Inner, Store, StoreError};
use crate::oci::Digest;

/// What nobody has gone on with for longer goes.
const TOO_OLD: Duration = Duration::from_hours(7 * 24);

/// How long what can be read waits for what cannot: no map is written meanwhile.
const UNREADABLE_FOR: Duration = Duration::from_secs(30);

/// By so much more than its bytes a file may take: file systems round up.
const ROUNDING: u64 = 128 << 10;

/// What a fill wants to be remembered of where its bytes came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialMark {
    /// Which upstream gave them.
    pub upstream: Option<String>,
    /// The validator that came with them.
    pub etag: Option<String>,
    /// The repository in which they were asked for last.
    pub repository: Option<String>,
    /// The repository in which it gave them to everybody; none: to who may have them.
    pub public_in: Option<String>,
    /// Upstream has said another length since. Not for the next process.
    #[serde(skip)]
    pub is_doubted: bool,
}

/// What is left of a fill. Who has it has it alone; dropping it leaves it for another time.
pub struct Partial {
    store: Store,
    digest: Digest,
    length: u64,
    present: ByteRanges,
    mark: PartialMark,
    runtime: Handle,
    /// None: it was gone on with, or removed.
    taken: Option<(Claim, Box<Parked>)>,
}

// === impl Store ===

impl Store {
    /// What an earlier fill of `digest` has left, if nobody else has it. Of one that was given up a moment ago that is
    /// waited for.
    pub async fn take_up(&self, digest: &Digest) -> Option<Partial> {
        if self.0.closed.load(Ordering::SeqCst) {
            return None;
        }
        self.0.partials.settle(digest).await;
        let (claim, parked) = self.0.partials.take(digest)?;
        let Left { length, present, mark, .. } = &parked.left;
        let (length, present, mark) = (*length, present.clone(), mark.clone());
        let taken = Some((claim, parked));
        Some(Partial { store: self.clone(), digest: *digest, length, present, mark, runtime: Handle::current(), taken })
    }
}

// === impl Partial ===

impl Partial {
    /// How many bytes the blob has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What of them is in the file; perhaps all, and it was never published.
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
    /// As of [`Store::create`]; it stays then for another time, unless its file is not there any more.
    pub async fn resume(mut self) -> Result<BlobWriter, StoreError> {
        let store = self.store.clone();
        if store.0.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Stopped);
        }
        let there = self.taken.as_ref().map_or(0, |(_, parked)| parked.reservation.bytes());
        let promised = Work::promise(&store, self.digest, self.length.saturating_sub(there)).await?;
        let (digest, present) = (self.digest, std::mem::take(&mut self.present));
        let Some((claim, parked)) = self.taken.take() else { return Err(StoreError::Stopped) };
        // The writer is made there too: should nobody wait for it any more, dropping it leaves the file for another time.
        let go_on = move |inner: &Arc<Inner>| inner.go_on(digest, claim, parked, present, promised);
        store.blocking(go_on).await
    }

    /// Leaves it, doubted.
    pub fn doubt(mut self) {
        if let Some((_, parked)) = &mut self.taken {
            parked.left.mark.is_doubted = true;
        }
    }

    /// Removes it.
    pub async fn discard(mut self) {
        let Some((claim, parked)) = self.taken.take() else { return };
        let discard = move |inner: &Arc<Inner>| {
            inner.forget_partial(claim, *parked);
            Ok(())
        };
        // That the store is stopping is no matter: what is left then is found at the next start.
        let _ = self.store.blocking(discard).await;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let Some((claim, parked)) = self.taken.take() else { return };
        if let Err((claim, parked)) = self.store.0.partials.put_back(claim, parked) {
            let inner = self.store.0.clone();
            // Removing files blocks, and this may be an async worker.
            let forget = move || inner.forget_partial(claim, *parked);
            drop(self.store.0.jobs.spawn_blocking_on(forget, &self.runtime));
        }
    }
}

// === impl Inner ===

impl Inner {
    fn go_on(
        self: &Arc<Self>,
        digest: Digest,
        claim: Claim,
        parked: Box<Parked>,
        present: ByteRanges,
        promised: Reservation,
    ) -> Result<BlobWriter, StoreError> {
        let (file, promised) = match self.open_part(&parked.left, promised) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                let gone = StoreError::io("go on with", &parked.left.path, io::ErrorKind::NotFound.into());
                self.forget_partial(claim, *parked);
                return Err(gone);
            }
            Err(error) => {
                self.give_back(claim, parked);
                return Err(error);
            }
        };
        let Parked { left: Left { path, length, mark, .. }, mut reservation, .. } = *parked;
        reservation.add(promised);
        tracing::info!(%digest, bytes = present.total(), of = length, "an unfinished download is gone on with");
        let map = Map::of_found(self.clone(), digest, length, path.clone(), claim);
        let temporary = Temporary::of(self.disk.clone(), path, file);
        let named = Named { map: Some(Mapped::from(map)), temporary };
        let work = Work::go_on(named, reservation, present.clone());
        let begun = Begun { length: Some(length), present, mark };
        let pipeline = Pipeline::start(self.clone(), work, digest.algorithm(), begun);
        Ok(BlobWriter::new(pipeline, digest))
    }

    /// Opens the file and takes blocks for what is missing of it; none if it is not what the map says.
    fn open_part(
        self: &Arc<Self>,
        left: &Left,
        mut promised: Reservation,
    ) -> Result<Option<(File, Reservation)>, StoreError> {
        let Left { path, length, present, .. } = left;
        let fail = |error| StoreError::io("go on with", path, error);
        // Looked at first: opening would make it.
        match self.disk.metadata(path) {
            Ok(found) if fits(&found, left) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        }
        let file = self.disk.open_or_create(path).map_err(fail)?;
        if !file.metadata().is_ok_and(|found| fits(&found, left)) {
            return Ok(None);
        }
        let missing = promised.bytes();
        match self.with_room(missing, || self.disk.allocate(&file, *length)) {
            Ok(true) => promised.allocated(missing),
            Ok(false) => {}
            Err(error) => {
                // What it got of them is given back.
                let _ = self.disk.set_len(&file, present.end());
                return Err(fail(error));
            }
        }
        Ok(Some((file, promised)))
    }

    /// At the start: finds out what dead processes have left, or tries it again where that could not be found out. The latest is
    /// taken over first, as far as there is room for it; for a command, which may not know the daemon's capacity, all of it.
    /// Blocks.
    pub(super) fn find_partials(&self, for_command: bool) {
        // Two at a time would remove what the other has found.
        let mut unknown_since = self.partials.unknown_since.lock();
        if self.partials.are_known() {
            return;
        }
        let is_late = unknown_since.is_some_and(|since| since.elapsed() >= UNREADABLE_FOR);
        let Finds { mut found, stuck } = match start::find(&self.disk, is_late, || self.is_stopping()) {
            Ok(finds) => finds,
            Err(error) if unknown_since.is_none() => {
                *unknown_since = Some(Instant::now());
                tracing::warn!(%error, "it cannot be found out now which downloads can be gone on with; it is tried again each second");
                return;
            }
            Err(_) => return,
        };
        for claim in stuck.iter().filter_map(|digest| self.partials.claim_found(digest)) {
            self.partials.set_stuck(claim, None);
        }
        let now = seconds(self.timeline.now());
        found.sort_by_key(|(_, left, _)| std::cmp::Reverse(left.touched.min(now)));
        let (mut count, mut sum) = (0_usize, 0);
        for (digest, left, bytes) in found {
            let Some(claim) = self.partials.claim_found(&digest) else { continue };
            // Published since by another fill, or by one that died before it could remove this.
            let is_stored = self.disk.metadata(&layout::blob(&digest)).is_ok_and(|blob| blob.len() == left.length);
            let adopted = if is_stored { None } else { self.books.adopt(bytes, !for_command) };
            let Some(reservation) = adopted else {
                if !is_stored {
                    tracing::info!(%digest, bytes, "an unfinished download has no room any more and is removed");
                }
                self.forget_partial(claim, Parked { left, reservation: self.books.count(bytes) });
                continue;
            };
            (count, sum) = (count + 1, sum + bytes);
            self.give_back(claim, Box::new(Parked { left, reservation }));
        }
        // Last: else who begins in between would write over a map that was found.
        self.partials.set_known();
        if count > 0 {
            tracing::info!(downloads = count, bytes = sum, "unfinished downloads can be gone on with");
        }
    }

    /// The same for who must know. Blocks.
    ///
    /// # Errors
    /// It cannot be found out now.
    pub(super) fn know_partials(&self) -> Result<(), StoreError> {
        // All of them: whoever is above the capacity by that makes room as ever.
        self.find_partials(true);
        if self.partials.are_known() {
            return Ok(());
        }
        Err(StoreError::io("find unfinished downloads in", Path::new(FILLS), io::Error::other("the log says why")))
    }

    /// What somebody has removed from the directory is not there any more, and counts for nothing. Blocks.
    pub(super) fn forget_lost_partials(&self) {
        let is_lost = |digest: &Digest, path: &Path| {
            let is_gone = |path: &Path| self.disk.metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
            is_gone(path) || is_gone(&layout::map(digest))
        };
        for (digest, path) in self.partials.paths() {
            if self.is_stopping() {
                return;
            }
            // Looked at again when nobody else can have it: it may have been gone on with meanwhile.
            if is_lost(&digest, &path)
                && let Some((claim, parked)) = self.partials.take(&digest)
            {
                if is_lost(&digest, &parked.left.path) {
                    tracing::info!(%digest, "the file of an unfinished download was removed by somebody else");
                    self.forget_partial(claim, *parked);
                } else {
                    self.give_back(claim, parked);
                }
            }
        }
    }

    /// Removes what fills have left, the oldest first, until so many bytes are free, or `enough`; not very many at a time.
    /// Returns how many bytes are. Blocks.
    pub(super) fn forget_partials(&self, bytes: u64, enough: &mut dyn FnMut() -> bool) -> u64 {
        let (mut count, mut freed) = (0_usize, 0);
        while freed < bytes
            && count < CHUNK
            && !self.is_stopping()
            && !enough()
            && let Some((claim, parked)) = self.partials.take_oldest(None)
        {
            freed += self.forget_partial(claim, *parked);
            count += 1;
        }
        if count > 0 {
            tracing::info!(downloads = count, bytes = freed, "unfinished downloads were removed to make room");
        }
        freed
    }

    /// Removes what nobody has gone on with for long. Blocks.
    pub(super) fn expire_partials(&self) {
        let now = seconds(self.timeline.settled());
        self.partials.bound(now);
        let since = now.saturating_sub(u32::try_from(TOO_OLD.as_secs()).unwrap_or(u32::MAX));
        while !self.is_stopping()
            && let Some((claim, parked)) = self.partials.take_oldest(Some(since))
        {
            let digest = *claim.digest();
            let bytes = self.forget_partial(claim, *parked);
            tracing::info!(%digest, bytes, "an unfinished download that nobody has gone on with for long was removed");
        }
    }

    /// Removes the oldest where more fills have left something than may. Blocks.
    pub(super) fn forget_surplus_partials(&self) {
        while !self.is_stopping()
            && let Some((claim, parked)) = self.partials.take_surplus()
        {
            let digest = *claim.digest();
            let bytes = self.forget_partial(claim, *parked);
            tracing::info!(%digest, bytes, "there are too many unfinished downloads; the oldest was removed");
        }
    }

    /// Tries again to remove what could not be removed. Blocks.
    pub(super) fn remove_stuck_partials(&self) {
        for (claim, file) in self.partials.take_stuck() {
            // That it failed was said the first time.
            let _ = self.try_remove(claim, file);
        }
    }

    /// The blob is there: what another fill has left of it is of no use any more. Blocks.
    pub(super) fn forget_partial_of(&self, digest: &Digest) {
        if let Some((claim, parked)) = self.partials.take(digest) {
            self.forget_partial(claim, *parked);
        }
    }

    /// Leaves it to who comes next, unless it is not to be kept. Blocks.
    fn give_back(&self, claim: Claim, parked: Box<Parked>) {
        if let Err((claim, parked)) = self.partials.put_back(claim, parked) {
            self.forget_partial(claim, *parked);
        }
    }

    /// Removes what a fill has left; returns how many bytes are free by that.
    fn forget_partial(&self, claim: Claim, parked: Parked) -> u64 {
        let Parked { left: Left { path, .. }, reservation } = parked;
        let bytes = reservation.bytes();
        if self.remove_part(claim, Some(Stuck { path, reservation })) { bytes } else { 0 }
    }

    /// Removes a map, and its file if there is one. Whether they are gone: what is not counts on, and is removed later.
    fn remove_part(&self, claim: Claim, file: Option<Stuck>) -> bool {
        let digest = *claim.digest();
        let removed = self.try_remove(claim, file);
        if let Err(error) = &removed {
            tracing::warn!(%digest, %error, "an unfinished download could not be removed; tried again soon");
        }
        removed.is_ok()
    }

    fn try_remove(&self, claim: Claim, file: Option<Stuck>) -> io::Result<()> {
        // The map first: without it the file is nothing.
        let map = self.disk.unlink(&layout::map(claim.digest()));
        let unlinked = file.as_ref().map_or(Ok(false), |file| self.disk.unlink(&file.path));
        self.group.directories([FILLS.into()]);
        let file = file.filter(|_| unlinked.is_err());
        let removed = unlinked.and(map);
        match removed {
            // Only now: another fill of the same may write a map from here on.
            Ok(_) => drop(claim),
            Err(_) => self.partials.set_stuck(claim, file),
        }
        removed.map(drop)
    }
}

/// Whether it is a file that can have what the map says.
fn fits(found: &Metadata, left: &Left) -> bool {
    found.is_file() && found.len() >= left.present.end()
}

/// What the file system has given for the file. Blocks that were taken in advance have none of its bytes, and count all the
/// same.
fn held(found: &Metadata, present: &ByteRanges) -> u64 {
    let taken = found.blocks().saturating_mul(512);
    if has_more(found, present) { taken } else { taken.clamp(present.total(), present.end()) }
}

/// Whether it has blocks behind what is there: who was killed did not come to give them back.
fn has_more(found: &Metadata, present: &ByteRanges) -> bool {
    found.blocks().saturating_mul(512) > present.end().saturating_add(ROUNDING)
}

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partial")
            .field("digest", &self.digest)
            .field("length", &self.length)
            .field("present", &self.present.total())
            .finish_non_exhaustive()
    }
}
