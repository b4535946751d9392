//! The exclusive lock on a root: one process works on a store, and whoever comes second is told who that is.
//!
//! Both the root's directory and the file `lock` in it are locked: somebody may remove the file, but not the directory
//! without all that is in it; a version of this program that knew of the file alone is seen too.

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
    /// The command that it is, which ends when its work is done; none: a daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// The lock, held until it is dropped. The kernel lets go of it when the process ends, however that happens.
#[derive(Debug)]
pub(super) struct RootLock {
    /// The file's content is rewritten in place: a rename would leave the lock on a file without a name.
    file: Mutex<File>,
    command: Option<&'static str>,
    /// None: this file system does not lock directories.
    directory: Option<File>,
}

// === impl Holder ===

impl Holder {
    /// Somebody of whom nothing is known.
    pub const UNKNOWN: Self = Self { pid: 0, socket: None, command: None };

    /// Reads who holds `root`, or held it last.
    pub fn read(root: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(root.join(LOCK)).ok()?).ok()
    }

    /// Who holds `root` at this moment; none: nobody. Looking is no holding: for a moment it keeps others from taking the
    /// lock, who try again.
    pub fn current(root: &Path) -> io::Result<Option<Self>> {
        for path in [root.to_owned(), root.join(LOCK)] {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => drop(rustix::fs::flock(&file, FlockOperation::Unlock)),
                Err(Errno::WOULDBLOCK) => return Ok(Some(Self::read(root).unwrap_or(Self::UNKNOWN))),
                // A file system that does not lock directories.
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(command) = &self.command {
            write!(f, "`ocistern {command}`, ")?;
        }
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
    /// Takes the lock for a command, or for a daemon; or says who has it.
    pub(super) fn take(disk: &Disk, command: Option<&'static str>) -> Result<Self, StoreError> {
        let locked = || {
            let holder = Holder::read(disk.path()).unwrap_or(Holder::UNKNOWN);
            StoreError::Locked { root: disk.path().to_owned(), holder }
        };
        let directory = File::open(disk.path()).map_err(|e| StoreError::io("open", disk.path(), e))?;
        let directory = match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Some(directory),
            Err(Errno::WOULDBLOCK) => return Err(locked()),
            // Some network file systems lock what is open for writing alone, and no directory is.
            Err(_) => None,
        };
        let path = Path::new(LOCK);
        let file = disk.open_or_create(path).map_err(|e| StoreError::io("open", path, e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file: Mutex::new(file), command, directory }),
            Err(Errno::WOULDBLOCK) => Err(locked()),
            Err(error) => Err(StoreError::io("lock", path, error.into())),
        }
    }

    /// Writes who holds the lock. Not being able to (full disk) costs others the information, nothing else.
    pub(super) fn announce(&self, disk: &Disk, socket: Option<&Path>) -> io::Result<()> {
        let socket = socket.filter(|_| self.command.is_none()).map(Path::to_owned);
        let holder = Holder { pid: std::process::id(), socket, command: self.command.map(str::to_owned) };
        let text = serde_json::to_vec(&holder)?;
        let file = self.file.lock();
        disk.set_len(&file, 0)?;
        disk.write_all_at(&file, &text, 0)
    }
}

impl Drop for RootLock {
    /// Gives both locks back by name. Closing alone leaves them, until it execs, with a child that is being started.
    fn drop(&mut self) {
        for file in std::iter::once(self.file.get_mut()).chain(&mut self.directory) {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let lock = RootLock::take(&disk, None).unwrap();
        lock.announce(&disk, Some(Path::new("/run/long/first.sock"))).unwrap();
        lock.announce(&disk, Some(Path::new("/run/a.sock"))).unwrap();
        let error = RootLock::take(&disk, None).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        let holder = Holder::current(root.path()).unwrap().expect("it is held");
        assert_eq!((holder.pid, holder.socket), (std::process::id(), Some(PathBuf::from("/run/a.sock"))));
        assert!(error.contains("/run/a.sock"), "{error}");
        std::fs::remove_file(root.path().join(LOCK)).unwrap();
        assert!(RootLock::take(&disk, None).is_err(), "without the file it is locked as well");
        assert!(!root.path().join(LOCK).exists(), "who is refused makes none");
        assert_eq!(Holder::current(root.path()).unwrap(), Some(Holder::UNKNOWN));
        drop(lock);
        assert_eq!(Holder::current(root.path()).unwrap(), None);
        let lock = RootLock::take(&disk, Some("verify")).unwrap();
        lock.announce(&disk, Some(Path::new("/run/a.sock"))).unwrap();
        let error = RootLock::take(&disk, None).unwrap_err().to_string();
        assert!(error.contains("`ocistern verify`, process") && !error.contains("a.sock"), "{error}");
        drop(lock);
        let lock = RootLock::take(&disk, None).unwrap();
        // What a child has between fork and exec.
        let child = (lock.file.lock().try_clone().unwrap(), lock.directory.as_ref().unwrap().try_clone().unwrap());
        drop(lock);
        drop(RootLock::take(&disk, None).unwrap());
        drop(child);
        // As versions do it that know of the file alone.
        let file = File::open(root.path().join(LOCK)).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(RootLock::take(&disk, None).is_err());
        drop(file);
        assert!(RootLock::take(&disk, None).is_ok(), "a dropped lock is free");
    }
}
