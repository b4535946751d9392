//! The exclusive lock on a root: one process works on a store, and whoever comes second is told who that is.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::disk::Disk;
use super::layout::LOCK;

/// Who holds a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id; 0 if the lock file does not say.
    pub pid: u32,
    /// Where it offers the admin API.
    pub socket: Option<PathBuf>,
}

/// The lock, held until it is dropped. The kernel lets go of it when the process ends, however that happens.
#[derive(Debug)]
pub(super) struct RootLock {
    /// The file's content is rewritten in place: a rename would leave the lock on a file without a name.
    file: Mutex<File>,
}

// === impl Holder ===

impl Holder {
    /// Reads who holds `root`, or held it last.
    pub fn read(root: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(root.join(LOCK)).ok()?).ok()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str("another process")?,
            pid => write!(f, "process {pid}")?,
        }
        match &self.socket {
            Some(socket) => write!(f, " (its admin socket: {})", socket.display()),
            None => Ok(()),
        }
    }
}

// === impl RootLock ===

impl RootLock {
    /// Takes the lock, or says who has it.
    pub(super) fn take(disk: &Disk) -> Result<Self, StoreError> {
        let path = Path::new(LOCK);
        let file = disk.open_or_create(path).map_err(|e| StoreError::io("open", path, e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file: Mutex::new(file) }),
            Err(Errno::WOULDBLOCK) => {
                let holder = Holder::read(disk.path()).unwrap_or(Holder { pid: 0, socket: None });
                Err(StoreError::Locked { root: disk.path().to_owned(), holder })
            }
            Err(error) => Err(StoreError::io("lock", path, error.into())),
        }
    }

    /// Writes who holds the lock. Not being able to (full disk) costs others the information, nothing else.
    pub(super) fn announce(&self, disk: &Disk, socket: Option<&Path>) -> io::Result<()> {
        let holder = Holder { pid: std::process::id(), socket: socket.map(Path::to_owned) };
        let text = serde_json::to_vec(&holder)?;
        let file = self.file.lock();
        disk.set_len(&file, 0)?;
        disk.write_all_at(&file, &text, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let lock = RootLock::take(&disk).unwrap();
        lock.announce(&disk, Some(Path::new("/run/long/first.sock"))).unwrap();
        lock.announce(&disk, Some(Path::new("/run/a.sock"))).unwrap();
        let error = RootLock::take(&disk).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("/run/a.sock"), "{error}");
        drop(lock);
        assert!(RootLock::take(&disk).is_ok(), "a dropped lock is free");
    }
}
