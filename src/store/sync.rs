//! Group sync: what was published without waiting for the disk is synced together, once a second, and before a known
//! tag is moved to what may be among it.
//!
//! New small files are renamed into place at once and put down here. Losing one to a power cut is losing nothing that
//! was there before; files that replace an older version are synced before the rename, and only their names are left
//! for here.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::disk::Disk;
use super::gated::Gated;
use super::record::is_no_file;

/// More files or directories than this are synced as one: the whole file system.
const MANY: usize = 4096;

/// What is not on the disk yet.
#[derive(Debug, Default)]
pub(super) struct GroupSync {
    dirty: Mutex<Dirty>,
    /// Held by a run: whoever relies on what was put down must wait for another run that has taken it.
    running: Gated<()>,
    /// The last run could not sync all. It is tried again each second, and said once.
    failing: AtomicBool,
    /// A sync of the whole file system has failed in this run.
    lost: AtomicBool,
}

#[derive(Debug, Default)]
struct Dirty {
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    everything: bool,
    /// Files that could not be synced and are to go, by their inodes.
    condemned: Vec<(PathBuf, u64)>,
}

// === impl GroupSync ===

impl GroupSync {
    /// Whether a file waits for its sync.
    #[cfg(test)]
    pub(super) fn waits_for(&self, path: &Path) -> bool {
        self.dirty.lock().files.contains(path)
    }

    /// Puts down a file, and the directory it is in.
    pub(super) fn file(&self, path: PathBuf) {
        let mut dirty = self.dirty.lock();
        if let Some(parent) = path.parent() {
            dirty.directories.insert(parent.to_owned());
        }
        dirty.files.insert(path);
        dirty.bound();
    }

    /// Puts down directories that got or lost an entry. Those that were made the disk knows.
    pub(super) fn directories(&self, paths: impl IntoIterator<Item = PathBuf>) {
        let mut dirty = self.dirty.lock();
        dirty.directories.extend(paths);
        dirty.bound();
    }

    /// Puts down the whole file system.
    pub(super) fn everything(&self) {
        self.dirty.lock().everything = true;
    }

    /// Syncs all that was put down until now. Whether all of it is on the disk; what is not, and can be, is put down
    /// again. Blocks.
    pub(super) fn run(&self, disk: &Disk) -> bool {
        let _running = self.running.lock();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        for (path, inode) in dirty.condemned {
            self.condemn(disk, path, inode);
        }
        let mut is_done = true;
        if dirty.everything
            && let Err(error) = disk.sync_everything()
        {
            self.say(disk.path(), &error, "the file system could not be synced");
            self.lost.store(true, Ordering::Relaxed);
            self.dirty.lock().everything = true;
            is_done = false;
        }
        if let Err(error) = disk.sync_all_made() {
            self.say(disk.path(), &error, "new directories could not be synced");
            is_done = false;
        }
        for path in dirty.files {
            // Not opened is not synced: nothing is lost, and the next run tries again.
            let file = match disk.read(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound || is_no_file(&error) => continue,
                Err(error) => {
                    self.say(&path, &error, "a file could not be opened to be synced");
                    self.file(path);
                    is_done = false;
                    continue;
                }
            };
            if let Err(error) = disk.sync_file(&file) {
                tracing::warn!(path = %path.display(), %error, "a file could not be synced and is dropped");
                is_done = false;
                if let Ok(metadata) = file.metadata() {
                    self.condemn(disk, path, metadata.ino());
                }
            }
        }
        for path in dirty.directories {
            match disk.sync_dir(&path) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => {
                    self.say(&path, &error, "a directory could not be synced");
                    self.directories([path]);
                    is_done = false;
                }
            }
        }
        if self.failing.swap(!is_done, Ordering::Relaxed) && is_done {
            tracing::info!("what could not be synced is on the disk now, or gone");
        }
        is_done
    }

    /// Whether something may be lost of which nobody knows what it is: see [`GroupSync::condemn`], which cannot be done for a
    /// whole file system.
    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn say(&self, path: &Path, error: &io::Error, what: &str) {
        if self.failing.load(Ordering::Relaxed) {
            tracing::debug!(path = %path.display(), %error, "{what}");
        } else {
            tracing::warn!(path = %path.display(), %error, "{what}; it is tried again each second");
        }
    }

    /// After a failed fsync the kernel has dropped the pages and calls them clean: a second fsync would succeed and mean
    /// nothing. So the file goes, now or as soon as that can be, unless another has taken its place.
    fn condemn(&self, disk: &Disk, path: PathBuf, inode: u64) {
        match disk.metadata(&path) {
            Ok(found) if found.ino() == inode => {}
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) => return self.dirty.lock().condemned.push((path, inode)),
        }
        match disk.unlink(&path) {
            Ok(_) => self.directories(path.parent().map(Path::to_owned)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "it could not be removed yet");
                self.dirty.lock().condemned.push((path, inode));
            }
        }
    }
}

// === impl Dirty ===

impl Dirty {
    fn bound(&mut self) {
        if self.files.len() + self.directories.len() > MANY {
            let condemned = std::mem::take(&mut self.condemned);
            *self = Self { everything: true, condemned, ..Self::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_what_is_there_and_forgets_it() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let group = GroupSync::default();
        disk.make_dirs(Path::new("a")).unwrap();
        disk.create_new(Path::new("a/f")).unwrap();
        group.file("a/f".into());
        group.file("a/gone".into());
        group.directories([PathBuf::new(), "no/such".into()]);
        assert!(group.run(&disk));
        let dirty = group.dirty.lock();
        assert!(dirty.files.is_empty() && dirty.directories.is_empty());
        assert!(root.path().join("a/f").exists());
    }

    #[test]
    fn very_many_become_one_sync() {
        let group = GroupSync::default();
        for n in 0..=MANY {
            group.file(format!("d/{n}").into());
        }
        let dirty = group.dirty.lock();
        assert!(dirty.everything && dirty.files.len() <= MANY);
    }
}
