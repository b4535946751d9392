//! Small files: one JSON object with a version, a checksum and the data that the checksum is over.
//!
//! A record that cannot be read is absent: everything in one can be asked again. It is warned about once, not at each
//! request.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::StoreError;
use super::disk::Disk;
use super::sync::GroupSync;
use super::temporary::Temporary;
use crate::oci::{Algorithm, Digest};

/// Version of the records that this program writes.
const VERSION: u32 = 1;
/// Longest record that is read: a list of 4 MiB in base64, with room.
const LIMIT: u64 = 8 << 20;
/// How often a directory is made for a record.
const ATTEMPTS: u32 = 16;
/// How many damaged files are remembered as warned about.
const WARNED: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u32,
    checksum: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    /// Not the JSON that a record is.
    #[error("not a record")]
    Syntax(#[from] serde_json::Error),
    /// The data is not what was written.
    #[error("the checksum does not match")]
    Checksum,
    /// A later version of this program wrote it.
    #[error("record version {0} is not known")]
    Version(u32),
}

/// What stands where a record is looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<T> {
    /// Nothing.
    Nothing,
    /// Something that is no record, and never will be.
    Damaged,
    /// A record.
    Record(T),
}

/// Reads records and remembers which damaged ones were warned about.
#[derive(Debug, Default)]
pub(super) struct Records {
    warned: Mutex<HashSet<PathBuf>>,
}

/// How a record is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// At once.
    Unsynced,
    /// When its content is on the disk.
    Synced,
    /// The same, for the owner alone.
    Private,
}

// === impl Found ===

impl<T> Found<T> {
    /// The record, where there is one.
    pub(super) fn record(self) -> Option<T> {
        match self {
            Self::Record(record) => Some(record),
            Self::Nothing | Self::Damaged => None,
        }
    }
}

// === impl Records ===

impl Records {
    /// The record at `path`; none if there is none that can be used.
    pub(super) fn read<T: DeserializeOwned>(&self, disk: &Disk, path: &Path) -> Option<T> {
        match disk.read_all(path, LIMIT) {
            Ok(bytes) => match decode(&bytes) {
                Ok(value) => return Some(value),
                Err(damage) => self.warn(path, &damage),
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => self.warn(path, &error),
        }
        None
    }

    /// The same for who must not take a record that cannot be read at this moment (no file descriptor, a failing disk) for
    /// one that is not there.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn look<T: DeserializeOwned>(disk: &Disk, path: &Path) -> Result<Found<T>, StoreError> {
        match disk.read_all(path, LIMIT) {
            Ok(bytes) => Ok(decode(&bytes).map_or(Found::Damaged, Found::Record)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Found::Nothing)
            }
            Err(error) if is_no_file(&error) => Ok(Found::Damaged),
            Err(error) => Err(StoreError::io("read", path, error)),
        }
    }

    /// Publishes `value` at `path`. A new record is on the disk with the next group sync; one that replaces another is
    /// synced before it takes the name, so that a power cut leaves either the old or the new one. Blocks.
    pub(super) fn write<T: Serialize>(
        &self,
        disk: &Disk,
        group: &GroupSync,
        path: &Path,
        value: &T,
    ) -> Result<(), StoreError> {
        // That it cannot be seen now does not mean that there is none.
        let is_new = disk
            .metadata(path)
            .is_err_and(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory));
        let mode = if is_new { Mode::Unsynced } else { Mode::Synced };
        self.publish(disk, path, value, mode)?;
        group.file(path.to_owned());
        Ok(())
    }

    /// Publishes `value` at `path` when its content is on the disk. Which name is there after a power cut is another thing.
    /// Blocks.
    pub(super) fn write_synced<T: Serialize>(&self, disk: &Disk, path: &Path, value: &T) -> Result<(), StoreError> {
        self.publish(disk, path, value, Mode::Synced)
    }

    /// As [`Records::write`], and when this returns the record is on the disk. Blocks.
    pub(super) fn write_through<T: Serialize>(
        &self,
        disk: &Disk,
        group: &GroupSync,
        path: &Path,
        value: &T,
    ) -> Result<(), StoreError> {
        self.publish_through(disk, group, path, value, Mode::Synced)
    }

    /// The same, and nobody else may read it. Blocks.
    pub(super) fn write_private<T: Serialize>(
        &self,
        disk: &Disk,
        group: &GroupSync,
        path: &Path,
        value: &T,
    ) -> Result<(), StoreError> {
        self.publish_through(disk, group, path, value, Mode::Private)
    }

    fn publish_through<T: Serialize>(
        &self,
        disk: &Disk,
        group: &GroupSync,
        path: &Path,
        value: &T,
        mode: Mode,
    ) -> Result<(), StoreError> {
        self.publish(disk, path, value, mode)?;
        sync_name(disk, group, path)
    }

    /// Gives a file with the record its name.
    fn publish<T: Serialize>(&self, disk: &Disk, path: &Path, value: &T, mode: Mode) -> Result<(), StoreError> {
        let fail = |e: io::Error| StoreError::io("write", path, e);
        let bytes = encode(value).map_err(|e| fail(e.into()))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        // An emptied directory may be removed between its making and the rename, each time that somebody removes its last
        // file.
        for attempt in 1..=ATTEMPTS {
            let temporary = Temporary::create(disk, "record").map_err(fail)?;
            if mode == Mode::Private {
                // Before there is anything to read.
                disk.close_file(temporary.file()).map_err(fail)?;
            }
            temporary.write(&bytes).map_err(fail)?;
            if mode != Mode::Unsynced {
                temporary.sync().map_err(fail)?;
            }
            match disk.make_dirs(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => continue,
                other => other.map_err(fail)?,
            }
            match temporary.publish(path) {
                Ok(()) => break,
                Err((_, error)) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
                Err((_, error)) => return Err(fail(error)),
            }
        }
        self.warned.lock().remove(path);
        Ok(())
    }

    fn warn(&self, path: &Path, why: &(dyn std::error::Error + 'static)) {
        let mut warned = self.warned.lock();
        if warned.len() >= WARNED {
            warned.clear();
        }
        if warned.insert(path.to_owned()) {
            tracing::warn!(path = %path.display(), error = why, "a record cannot be read and counts as absent");
        }
    }
}

/// Whether what was to be read can never be: no regular file, or one that is too long.
pub(super) fn is_no_file(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
        || Errno::from_io_error(error) == Some(Errno::LOOP)
}

/// Waits until the name of a file that was published is on the disk. If that fails it is put down for the next group
/// sync: the file is there, and somebody may find it.
fn sync_name(disk: &Disk, group: &GroupSync, path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().unwrap_or(Path::new(""));
    disk.sync_made(path).and_then(|()| disk.sync_dir(directory)).map_err(|error| {
        group.directories([directory.to_owned()]);
        StoreError::io("sync the directory", directory, error)
    })
}

/// The bytes of a record that holds `value`.
pub(super) fn encode<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let data = serde_json::value::to_raw_value(value)?;
    serde_json::to_vec(&Envelope { version: VERSION, checksum: checksum(&data), data: &data })
}

/// The value in the bytes of a record.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Damage> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes)?;
    if envelope.version != VERSION {
        return Err(Damage::Version(envelope.version));
    }
    if envelope.checksum != checksum(envelope.data) {
        return Err(Damage::Checksum);
    }
    Ok(serde_json::from_str(envelope.data.get())?)
}

/// Half of a SHA-256 over the data as it stands in the file, after its version (a bit flip in the version must not
/// make another record of it).
fn checksum(data: &RawValue) -> String {
    let hex = Digest::of(Algorithm::Sha256, format!("{VERSION}:{}", data.get()).as_bytes()).hex();
    hex.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
        size: u64,
    }

    #[test]
    fn damaged_records_are_absent_and_warned_about_once() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let records = Records::default();
        let path = Path::new("r");
        assert_eq!(records.read::<Sample>(&disk, path), None, "no file is no record and no damage");
        assert!(records.warned.lock().is_empty());
        for damaged in ["", "{}", "null", "{\"version\":1,\"checksum\":\"00\",\"data\":{\"name\":\"x\",\"size\":1}}"] {
            std::fs::write(root.path().join("r"), damaged).unwrap();
            assert_eq!(records.read::<Sample>(&disk, path), None, "{damaged:?}");
        }
        assert_eq!(records.warned.lock().len(), 1, "one path is remembered once");
    }

    #[test]
    fn a_written_record_is_read_and_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        super::super::layout::prepare(&disk).unwrap();
        let (records, group) = (Records::default(), GroupSync::default());
        let path = Path::new("refs/u/a/b/_access");
        for size in 1..4 {
            let sample = Sample { name: "n".into(), size };
            records.write(&disk, &group, path, &sample).unwrap();
            assert_eq!(records.read::<Sample>(&disk, path), Some(sample));
        }
        group.run(&disk);
        assert_eq!(std::fs::read_dir(root.path().join("fills")).unwrap().count(), 0);
        let mode = root.path().join(path).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "nobody else may read or write it");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn a_flipped_bit_is_never_another_record(name in "\\PC{0,20}", size: u64, at: prop::sample::Index, bit in 0..8u8) {
            let sample = Sample { name, size };
            let mut bytes = encode(&sample).unwrap();
            prop_assert_eq!(&decode::<Sample>(&bytes).unwrap(), &sample);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(read) = decode::<Sample>(&bytes) {
                prop_assert_eq!(read, sample);
            }
        }
    }
}
