//! The file behind a blob that is being written: room for it, its bytes, its name. Everything here blocks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::blob::Trust;
use super::capacity::Reservation;
use super::disk::Disk;
use super::evict::Room;
use super::layout::{self, FILLS};
use super::partial::{Map, Mapped, PartialMark};
use super::ranges::ByteRanges;
use super::stamp::Stamp;
use super::temporary::Temporary;
use super::writer::Remnant;
use super::{Inner, Store, StoreError, StoredBlob};
use crate::config::Durability;
use crate::oci::{Digest, Hasher};

/// What is promised to a fill of unknown length at a time.
const STEP: u64 = 8 << 20;
/// Shorter files do not get their disk blocks in advance.
const ALLOCATE: u64 = 64 << 10;

/// The file of a blob that is being written, and the bytes promised to it.
pub(super) struct Work {
    named: Named,
    reservation: Reservation,
    /// What was ever written of the file, and so has its blocks: more than what counts of it, where it was rewound.
    taken: ByteRanges,
    /// What the disk was not told to begin with yet: so many bytes, within this range.
    unsent: (u64, Range<u64>),
}

/// The names of a file. The map goes first, whatever ends it: without it the file is nothing.
pub(super) struct Named {
    pub(super) map: Option<Mapped>,
    pub(super) temporary: Temporary<Arc<Disk>>,
}

/// Bytes, and where in the file they belong.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Where the first one belongs.
    pub at: u64,
    /// The bytes.
    pub bytes: Bytes,
}

// === impl Named ===

impl Named {
    /// Gives the file its final name. After that the map leads nowhere, and goes; before, a crash in between would cost the
    /// whole download.
    fn publish(self, to: &Path) -> Result<(), (Self, io::Error)> {
        let Self { map, temporary } = self;
        match temporary.publish(to) {
            Ok(()) => {
                drop(map);
                Ok(())
            }
            Err((temporary, error)) => Err((Self { map, temporary }, error)),
        }
    }

    fn set_stays(&mut self, stays: bool) {
        self.temporary.set_stays(stays);
        if let Some(map) = &mut self.map {
            map.set_stays(stays);
        }
    }
}

// === impl Placed ===

impl Placed {
    /// Where in the file they belong.
    pub fn range(&self) -> Range<u64> {
        self.at..self.at + self.bytes.len() as u64
    }
}

// === impl Work ===

impl Work {
    /// Makes the file, for that many bytes if they are known, of this digest if it is known; waits for room if there is
    /// none.
    pub(super) async fn begin(store: &Store, digest: Option<Digest>, length: Option<u64>) -> Result<Self, StoreError> {
        let begin = move |inner: &Arc<Inner>| match inner.ask_room(digest.as_ref(), length.unwrap_or(0))? {
            Room::Promised(promised) => Self::create(inner, promised, digest.as_ref(), length).map(Ok),
            Room::Later(waiting) => Ok(Err(waiting)),
        };
        let waiting = match store.blocking(begin).await? {
            Ok(work) => return Ok(work),
            Err(waiting) => waiting,
        };
        let promised = store.0.wait_for_room(waiting).await?;
        store.blocking(move |inner| Self::create(inner, promised, digest.as_ref(), length)).await
    }

    /// Promises so many bytes more to a fill of this digest; waits for room if there is none.
    pub(super) async fn promise(store: &Store, digest: Digest, bytes: u64) -> Result<Reservation, StoreError> {
        match store.blocking(move |inner| inner.ask_room(Some(&digest), bytes)).await? {
            Room::Promised(promised) => Ok(promised),
            Room::Later(waiting) => store.0.wait_for_room(waiting).await,
        }
    }

    fn create(
        inner: &Arc<Inner>,
        mut reservation: Reservation,
        digest: Option<&Digest>,
        length: Option<u64>,
    ) -> Result<Self, StoreError> {
        let hint = digest.map_or_else(|| "upload".to_owned(), |digest| digest.hex().chars().take(16).collect());
        let directory = Path::new(FILLS);
        // Another fill of the same may have the map, or have left one: then this one is as good as its end.
        let goes_on = length.filter(|length| *length >= inner.partials.least()).zip(digest);
        let claim = goes_on.and_then(|(length, digest)| Some((length, *digest, inner.partials.claim(digest)?)));
        let make = if claim.is_some() { Temporary::create_part } else { Temporary::create };
        let create = || match make(inner.disk.clone(), &hint) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                inner.disk.make_dirs(directory)?;
                make(inner.disk.clone(), &hint)
            }
            other => other,
        };
        // Failing to make a file means that inodes are used up: one blob less is enough.
        let temporary = inner.with_room(1, create).map_err(|e| StoreError::io("make a file in", directory, e))?;
        if let Some(length) = length.filter(|length| *length >= ALLOCATE) {
            let allocate = || inner.disk.allocate(temporary.file(), length);
            if inner.with_room(length, allocate).map_err(|e| StoreError::io("allocate a file in", directory, e))? {
                reservation.allocated(length);
            }
        }
        let map = claim.map(|(length, digest, claim)| {
            Map::new(inner.clone(), digest, length, temporary.path().to_owned(), claim).into()
        });
        Ok(Self::go_on(Named { map, temporary }, reservation, ByteRanges::default()))
    }

    /// Goes on with a file that has these bytes.
    pub(super) fn go_on(named: Named, reservation: Reservation, present: ByteRanges) -> Self {
        Self { named, reservation, taken: present, unsent: (0, 0..0) }
    }

    pub(super) fn file(&self) -> &Arc<File> {
        self.named.temporary.file()
    }

    /// The map of what is there, if it is put down.
    pub(super) fn map(&self) -> Option<&Arc<Map>> {
        self.named.map.as_ref().map(Mapped::map)
    }

    /// Whether file and map stay when this is dropped.
    pub(super) fn set_stays(&mut self, stays: bool) {
        self.named.set_stays(stays);
    }

    /// Leaves what is there to who takes it up. If that fails or it is not to be kept, nothing stays.
    pub(super) fn park(self, present: ByteRanges, mark: PartialMark) -> Result<(), StoreError> {
        let Self { named, reservation, .. } = self;
        let mut reservation = Some(reservation);
        // Goes before the other: what cannot be removed counts by then.
        let mut named = named;
        let Some(mapped) = &named.map else { return Err(StoreError::Stopped) };
        let stays = mapped.map().park(named.temporary.file(), present, mark, &mut reservation)?;
        named.set_stays(stays);
        Ok(())
    }

    /// Only the first bytes count; what is written next takes the place of those after them.
    pub(super) fn rewind(&mut self, length: u64) {
        // What comes there now is new to the disk.
        let (bytes, range) = &mut self.unsent;
        *range = range.start.min(length)..range.end.min(length);
        *bytes = (*bytes).min(range.end - range.start);
    }

    /// Writes the chunks. Those that are not in the file whole, because of an error, are taken from the list.
    pub(super) fn write(
        &mut self,
        inner: &Arc<Inner>,
        chunks: &mut Vec<Placed>,
    ) -> (Vec<Placed>, Result<(), StoreError>) {
        let mut whole = 0;
        let outcome = self.write_each(inner, chunks, &mut whole);
        (chunks.split_off(whole), outcome)
    }

    fn write_each(&mut self, inner: &Arc<Inner>, chunks: &[Placed], whole: &mut usize) -> Result<(), StoreError> {
        let end = chunks.iter().map(|chunk| chunk.range().end).max().unwrap_or(0);
        if end > self.reservation.bytes() {
            let more = end - self.reservation.bytes();
            // A large step first; near the limit what is needed now must do.
            inner.reserve_more(&mut self.reservation, more.max(STEP), more)?;
        }
        for chunk in chunks {
            let (range, bytes) = (chunk.range(), chunk.bytes.len() as u64);
            let write = || inner.disk.write_all_at(self.named.temporary.file(), &chunk.bytes, chunk.at);
            inner.with_room(bytes, write).map_err(|e| StoreError::io("write to", Path::new(FILLS), e))?;
            let fresh = self.taken.gaps(range.clone()).iter().map(|gap| gap.end - gap.start).sum();
            self.reservation.allocated(fresh);
            let (unsent, within) = &mut self.unsent;
            *within =
                if *unsent == 0 { range.clone() } else { within.start.min(range.start)..within.end.max(range.end) };
            *unsent += bytes;
            self.taken.insert(range);
            *whole += 1;
        }
        Ok(())
    }

    /// Of what was written since the last time the range that holds it, if it is so much.
    pub(super) fn take_unsent(&mut self, least: u64) -> Option<Range<u64>> {
        let (bytes, range) = &mut self.unsent;
        (*bytes >= least).then(|| {
            *bytes = 0;
            range.clone()
        })
    }

    /// Ends the writing where it failed; so much, from the start, was written and is in the hash.
    pub(super) fn into_remnant(self, written: u64, hasher: Hasher) -> Remnant {
        let Self { named, mut reservation, taken, .. } = self;
        drop(named);
        reservation.keep_only(taken.total());
        Remnant { written, hasher, _reservation: reservation }
    }

    /// Gives the file its name. Its content, so many bytes, was verified.
    pub(super) fn publish(self, inner: &Arc<Inner>, digest: &Digest, written: u64) -> Result<StoredBlob, StoreError> {
        let Self { named, reservation, .. } = self;
        let file = named.temporary.file().clone();
        if let Some(map) = &named.map {
            // From here on nobody else syncs the file: each error of that is told only once.
            map.map().end()?;
        }
        let (path, directory) = (layout::blob(digest), layout::blob_dir(digest.algorithm()));
        if file.metadata().is_ok_and(|found| found.len() > written) {
            // Before it has a name: later it may be mapped, and then it must not shrink.
            inner.disk.set_len(&file, written).map_err(|e| StoreError::io("cut a file in", Path::new(FILLS), e))?;
        }
        if inner.durability == Durability::Strict {
            named.temporary.sync().map_err(|e| StoreError::io("sync", &path, e))?;
        }
        let names = inner.names.lock();
        if let Some(existing) = inner.verified_file(digest, written) {
            let (file, stamp) = existing;
            let blob = inner.stored_blob(digest, file, stamp, Trust::Verified);
            drop(names);
            drop(named);
            inner.forget_partial_of(digest);
            inner.sync_names(digest);
            return Ok(blob);
        }
        // A directory would not be replaced, and a link is evidence too.
        let aside = inner.set_aside(digest, |found| !found.is_file())?;
        let replaced = inner.disk.metadata(&path).ok();
        match named.publish(&path) {
            Ok(()) => {}
            Err((unpublished, error)) if error.kind() == io::ErrorKind::NotFound => {
                inner.disk.make_dirs(&directory).map_err(|e| StoreError::io("make", &directory, e))?;
                unpublished.publish(&path).map_err(|(_, e)| StoreError::io("publish", &path, e))?;
            }
            Err((_, error)) => return Err(StoreError::io("publish", &path, error)),
        }
        if let Some(replaced) = replaced {
            inner.unlinked(digest, replaced.ino(), replaced.len());
        }
        // Before anything else can fail: the name is there, so its bytes count.
        reservation.stored(digest, written);
        inner.shortage.kept(written);
        inner.use_image_of(digest);
        // Renaming changes the times, so the stamp is taken now.
        let stamp = match file.metadata() {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) => {
                inner.hints.set_blob(digest, written, None);
                return Err(StoreError::io("look at", &path, error));
            }
        };
        let blob = inner.stored_blob(digest, file, stamp, Trust::Verified);
        // Under the lock: the last stamp must be that of the last file.
        inner.hints.set_blob(digest, written, Some((stamp, inner.epoch)));
        drop(names);
        if let Some(aside) = aside {
            inner.quarantined(digest, &aside);
        }
        inner.forget_partial_of(digest);
        inner.pin_with_parts(digest, &blob);
        inner.sync_names(digest);
        Ok(blob)
    }
}

// === impl Inner ===

impl Inner {
    /// With strict durability, waits until what has a name beside `digest` keeps it.
    fn sync_names(&self, digest: &Digest) {
        let directory = layout::blob_dir(digest.algorithm());
        if self.durability == Durability::Strict
            && let Err(error) = self.disk.sync_made(&directory).and_then(|()| self.disk.sync_dir(&directory))
        {
            // The name may or may not survive until the next group sync; the content is whole and right in either case.
            tracing::warn!(%digest, %error, "a directory could not be synced");
            self.group.directories([directory]);
        }
    }

    /// The file that is already there under this digest, if it is known to be right.
    fn verified_file(&self, digest: &Digest, len: u64) -> Option<(Arc<File>, Stamp)> {
        let known = self.hints.blob(digest, self.epoch)?.stamp?;
        let file = self.disk.read(&layout::blob(digest)).ok()?;
        let stamp = Stamp::of(&file.metadata().ok()?);
        (stamp == known && stamp.len == len).then(|| (Arc::new(file), stamp))
    }
}
