//! A file that is being written: it has a name in `fills/` until it is published, and none if it is not, unless it is kept
//! for another time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::Disk;
use super::layout::{FILLS, PART, TEMPORARY};

/// Makes names distinct within the process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A temporary file; dropping it removes it, and only it; if that fails it is removed with the next upkeep.
#[derive(Debug)]
pub(super) struct Temporary<D: AsRef<Disk>> {
    disk: D,
    path: PathBuf,
    file: Arc<File>,
    /// It was published, or is to stay.
    stays: bool,
}

// === impl Temporary ===

impl<D: AsRef<Disk>> Temporary<D> {
    /// Makes an empty one; `hint` makes the name readable.
    pub(super) fn create(disk: D, hint: &str) -> io::Result<Self> {
        Self::create_named(disk, hint, TEMPORARY, || NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The same of one that can be gone on with. No other ever had its name: a map that comes back after a power cut must
    /// not take this file for the one that it was made for.
    pub(super) fn create_part(disk: D, hint: &str) -> io::Result<Self> {
        Self::create_named(disk, hint, PART, || fastrand::u64(..))
    }

    fn create_named(disk: D, hint: &str, end: &str, number: impl Fn() -> u64) -> io::Result<Self> {
        loop {
            let path = Path::new(FILLS).join(format!("{hint}-{}-{}{end}", std::process::id(), number()));
            match disk.as_ref().create_new(&path) {
                Ok(file) => return Ok(Self::of(disk, path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One that is there.
    pub(super) fn of(disk: D, path: PathBuf, file: File) -> Self {
        Self { disk, path, file: Arc::new(file), stays: false }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it stays when this is dropped.
    pub(super) fn set_stays(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// The open file.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Writes the whole content of a small file.
    pub(super) fn write(&self, content: &[u8]) -> io::Result<()> {
        self.disk.as_ref().write_all_at(&self.file, content, 0)
    }

    /// Waits until the content is on the disk. After an error the file must not be published.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.disk.as_ref().sync_file(&self.file)
    }

    /// Gives it its final name, replacing what was there. On an error it comes back, to be tried again or dropped.
    pub(super) fn publish(mut self, to: &Path) -> Result<(), (Self, io::Error)> {
        match self.disk.as_ref().rename(&self.path, to) {
            Ok(()) => {
                self.stays = true;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}

impl<D: AsRef<Disk>> Drop for Temporary<D> {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = self.disk.as_ref().unlink(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file could not be removed; tried again soon");
            self.disk.as_ref().leave(&self.path, self.file.metadata());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_be_removed_is_removed_later() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let (fills, aside) = (root.path().join(FILLS), root.path().join("aside"));
        std::fs::create_dir(&fills).unwrap();
        let temporary = Temporary::create(&disk, "t").unwrap();
        // A directory that is a link is refused: for this time nothing in it can be removed.
        std::fs::rename(&fills, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &fills).unwrap();
        drop(temporary);
        disk.remove_left();
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 1, "it is in the way");
        std::fs::remove_file(&fills).unwrap();
        std::fs::rename(&aside, &fills).unwrap();
        disk.remove_left();
        assert_eq!(std::fs::read_dir(&fills).unwrap().count(), 0, "it is gone once it can be");
    }
}
