//! Group sync: what was published without waiting for the disk is synced together, once a second, and before a known
//! tag is moved to what may be among it.
//!
//! New small files are renamed into place at once and put down here. Losing one to a power cut is losing nothing that
//! was there before; files that replace an older version are synced before the rename, and only their names are left
//! for here.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::disk::Disk;

/// More files or directories than this are synced as one: the whole file system.
const MANY: usize = 4096;

/// What is not on the disk yet.
#[derive(Debug, Default)]
pub(super) struct GroupSync {
    dirty: Mutex<Dirty>,
    /// Held by a run: whoever relies on what was put down must wait for another run that has taken it.
    running: Mutex<()>,
}

#[derive(Debug, Default)]
struct Dirty {
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    everything: bool,
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

    /// Puts down directories that got or lost an entry.
    pub(super) fn directories(&self, paths: impl IntoIterator<Item = PathBuf>) {
        let mut dirty = self.dirty.lock();
        dirty.directories.extend(paths);
        dirty.bound();
    }

    /// Syncs all that was put down until now. Blocks.
    pub(super) fn run(&self, disk: &Disk) {
        let _running = self.running.lock();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        if dirty.everything
            && let Err(error) = disk.sync_everything()
        {
            tracing::warn!(%error, "the file system could not be synced");
        }
        for path in &dirty.files {
            match disk.sync_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => drop_file(disk, path, &error),
            }
        }
        for path in &dirty.directories {
            match disk.sync_dir(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "a directory could not be synced"),
            }
        }
    }
}

/// After a failed fsync the kernel has dropped the pages and calls them clean: a second fsync would succeed and mean
/// nothing. So the file goes.
fn drop_file(disk: &Disk, path: &Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), %error, "a file could not be synced and is dropped");
    if let Err(error) = disk.unlink(path) {
        tracing::warn!(path = %path.display(), %error, "nor could it be removed");
    }
}

// === impl Dirty ===

impl Dirty {
    fn bound(&mut self) {
        if self.files.len() + self.directories.len() > MANY {
            *self = Self { everything: true, ..Self::default() };
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
        group.run(&disk);
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
