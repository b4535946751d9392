//! Verification stamps: what a file looked like when its content was last known to match its digest.
//!
//! A stamp holds for one epoch. An epoch lasts over clean stops; after an unclean one a new epoch begins, because the
//! kernel may have written names and times but not data, and then every stamp of the old one is void.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::layout::STATE;
use super::record::{self, Records};
use super::{StoreError, temporary::Temporary};

/// What can be seen of a file without reading it. Two that are equal, of one file system, mean that nobody wrote to
/// the file in between (short of setting the clock back and forth on purpose).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Inode: another file under the same name.
    pub(super) inode: u64,
    /// Length.
    pub(super) len: u64,
    /// Last write: seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    /// Last change of anything, which no program can set.
    pub(super) changed: (i64, i64),
}

/// The run of clean starts and stops that stamps belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Epoch(u64);

/// The beginning of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) epoch: Epoch,
    /// It is the last run's. If not, files may be in the page cache alone that a dead process wrote.
    pub(super) goes_on: bool,
    /// The disk says that the store is in use, or at least not that it was closed.
    pub(super) is_put_down: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    epoch: Epoch,
    /// The process that had the store closed it; only then does the epoch go on.
    clean: bool,
}

// === impl Stamp ===

impl Stamp {
    /// Length of a stamp with its epoch, as bytes.
    const SIZE: usize = 56;

    /// The stamp of a file as it is.
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// As bytes, for the index.
    pub(super) fn encode(&self, epoch: Epoch) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let fields = [
            epoch.0.to_le_bytes(),
            self.inode.to_le_bytes(),
            self.len.to_le_bytes(),
            self.modified.0.to_le_bytes(),
            self.modified.1.to_le_bytes(),
            self.changed.0.to_le_bytes(),
            self.changed.1.to_le_bytes(),
        ];
        bytes.copy_from_slice(fields.as_flattened());
        bytes
    }

    /// From the index; none if the bytes are not a stamp of this epoch.
    pub(super) fn decode(bytes: &[u8], epoch: Epoch) -> Option<Self> {
        let (fields, []) = bytes.as_chunks::<8>() else { return None };
        let &[of, inode, len, modified, modified_ns, changed, changed_ns] = fields else { return None };
        let signed = i64::from_le_bytes;
        (u64::from_le_bytes(of) == epoch.0).then(|| Self {
            inode: u64::from_le_bytes(inode),
            len: u64::from_le_bytes(len),
            modified: (signed(modified), signed(modified_ns)),
            changed: (signed(changed), signed(changed_ns)),
        })
    }
}

// === impl Epoch ===

impl Epoch {
    /// The epoch of a run that begins now: the last one if that ended cleanly, else a new one. Until [`Epoch::end`],
    /// the disk says that the store is in use, so a crash from here on is seen.
    ///
    /// Where even that cannot be put down, it has to be tried again ([`Epoch::put_down`]): after a crash the next start would take
    /// this one for a run that never was, and what it wrote for what is on the disk.
    pub(super) fn begin(disk: &Disk, records: &Records) -> Start {
        let last: Option<State> = records.read(disk, &path());
        let (epoch, goes_on) = match last {
            Some(State { epoch, clean: true }) => (epoch, true),
            // Random: a counter would repeat an old epoch when the file is lost.
            _ => (Self(fastrand::u64(1..)), false),
        };
        if let Err(error) = epoch.write(disk, false) {
            // A full disk is no reason not to start. Without the file the next start begins a new epoch, and removing
            // it takes no space.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the start of this run could not be put down");
            if let Err(error) = disk.unlink(&path()).and_then(|_| disk.sync_dir(Path::new(STATE))) {
                tracing::warn!(%error, "nor could the last one's end be taken back: its stamps are not used, and it is tried again each second");
                return Start { epoch: Self(fastrand::u64(1..)), goes_on: false, is_put_down: false };
            }
        }
        Start { epoch, goes_on, is_put_down: true }
    }

    /// Puts down that the store is in use.
    pub(super) fn put_down(self, disk: &Disk) -> Result<(), StoreError> {
        self.write(disk, false)
    }

    /// Puts down that the store was closed with all its data on the disk.
    pub(super) fn end(self, disk: &Disk) -> Result<(), StoreError> {
        self.write(disk, true)
    }

    fn write(self, disk: &Disk, clean: bool) -> Result<(), StoreError> {
        let path = path();
        let fail = |e: io::Error| StoreError::io("write", &path, e);
        let bytes = record::encode(&State { epoch: self, clean }).map_err(|e| fail(e.into()))?;
        let temporary = Temporary::create(disk, "epoch").map_err(fail)?;
        temporary.write(&bytes).map_err(fail)?;
        temporary.sync().map_err(fail)?;
        temporary.publish(&path).map_err(|(_, e)| fail(e))?;
        disk.sync_dir(Path::new(STATE)).map_err(fail)
    }

    #[cfg(test)]
    pub(super) const fn of_test(number: u64) -> Self {
        Self(number)
    }
}

fn path() -> PathBuf {
    Path::new(STATE).join("epoch")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_outlives_a_clean_stop_only() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        super::super::layout::prepare(&disk).unwrap();
        let records = Records::default();
        let begin = || Epoch::begin(&disk, &records);
        let first = begin().epoch;
        let Start { epoch: second, goes_on, .. } = begin();
        assert!(first != second && !goes_on, "the first run did not end cleanly");
        second.end(&disk).unwrap();
        let third = begin();
        assert_eq!((third.epoch, third.goes_on), (second, true), "a clean stop continues the epoch");
        assert_ne!(begin().epoch, second, "but only once");
        std::fs::write(root.path().join("state/epoch"), "").unwrap();
        assert_ne!(begin().epoch, second, "a lost file begins a new one");
        assert_eq!(std::fs::read_dir(root.path().join("fills")).unwrap().count(), 0, "no stray file");
    }

    #[test]
    fn a_stamp_survives_the_index_in_its_epoch() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let stamp = Stamp::of(&path.metadata().unwrap());
        let bytes = stamp.encode(Epoch::of_test(7));
        assert_eq!(Stamp::decode(&bytes, Epoch::of_test(7)), Some(stamp));
        assert_eq!(Stamp::decode(&bytes, Epoch::of_test(8)), None);
        assert_eq!(Stamp::decode(&bytes[1..], Epoch::of_test(7)), None);
        std::fs::write(&path, "y").unwrap();
        assert_ne!(Stamp::of(&path.metadata().unwrap()), stamp, "a write of equal length is seen");
    }
}
