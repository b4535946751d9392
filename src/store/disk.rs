//! Every call that the store makes to the file system: always beneath the root, never through a symbolic link.
//!
//! Paths are relative to the root. Names in them come from validated types, so a path cannot leave the root by itself;
//! a link that somebody planted inside could lead out, and is refused by the kernel (`openat2`), or where that call is
//! missing by opening one directory after the other without following links.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::StoreError;

/// Mode of files before the umask: the service's group may read.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
/// Mode of directories before the umask.
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);

/// How many files that could not be removed are remembered.
const LEFT: usize = 4096;

/// The root directory, held open: renaming or replacing it from outside does not change where the store works.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    root: OwnedFd,
    /// No `openat2` here (Linux before 5.6, or an old container runtime's filter).
    walk: bool,
    /// Files that are nobody's and could not be removed.
    left: Mutex<Vec<PathBuf>>,
}

/// Size of the file system and what is free on it for this user, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    /// All of it.
    pub(super) total: u64,
    /// What an unprivileged process may still write.
    pub(super) free: u64,
}

// === impl Disk ===

impl Disk {
    /// Opens the root, which is made (with its parents) if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE.as_raw_mode())
            .create(path)
            .map_err(|e| StoreError::io("make the directory", path, e))?;
        // The root itself may be a symbolic link: the operator named it.
        let path = path.canonicalize().map_err(|e| StoreError::io("find", path, e))?;
        let root = rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| StoreError::io("open the directory", &path, e.into()))?;
        let probe = rustix::fs::openat2(
            &root,
            ".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        );
        Ok(Self { path, root, walk: probe.is_err(), left: Mutex::default() })
    }

    /// The root's absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens for reading. A symbolic link is an error (`ELOOP`), and so is what is not a regular file.
    pub(super) fn read(&self, path: &Path) -> io::Result<File> {
        // NONBLOCK: a FIFO under this name must not hang the thread; it means nothing for regular files.
        let file = File::from(self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    /// The whole content of a small file; longer than `limit` is an error.
    pub(super) fn read_all(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.read(path)?.take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than this program writes"));
        }
        Ok(content)
    }

    /// What stands at `path` itself, a symbolic link included.
    pub(super) fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.look(path)?.metadata()
    }

    /// What stands at `path` itself, not opened for reading. While the handle lives, the file's blocks are not freed:
    /// freeing those of a large one takes a while, which nobody should have to wait for under a lock.
    pub(super) fn look(&self, path: &Path) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?))
    }

    /// Makes a new file and opens it for reading and writing; its directory must exist.
    pub(super) fn create_new(&self, path: &Path) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(parent, name, flags, FILE_MODE)?))
    }

    /// Opens for reading and writing, making the file if it is missing.
    pub(super) fn open_or_create(&self, path: &Path) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(parent, name, flags, FILE_MODE)?))
    }

    /// Makes a directory with what is missing above it. Returns the directories that got a new entry: they must be
    /// synced for the new ones to survive a power cut.
    pub(super) fn make_dirs(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        if self.resolve(path, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
            return Ok(Vec::new());
        }
        let mut changed = Vec::new();
        let mut above = PathBuf::new();
        for name in path.components() {
            let parent = self.resolve(&above, OFlags::PATH | OFlags::DIRECTORY)?;
            match rustix::fs::mkdirat(&parent, name.as_os_str(), DIR_MODE) {
                Ok(()) => changed.push(above.clone()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            above.push(name);
        }
        Ok(changed)
    }

    /// Gives a file another name, replacing what is there.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        Ok(rustix::fs::renameat(from_parent, from_name, to_parent, to_name)?)
    }

    /// Removes a file's name; `false` if there was none.
    pub(super) fn unlink(&self, path: &Path) -> io::Result<bool> {
        let unlinked =
            self.parent(path).and_then(|(parent, name)| Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?));
        match unlinked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A file that is nobody's cannot be removed now (no descriptor is free, the disk says no): it is tried again with
    /// [`Disk::remove_left`], and if that never succeeds the next start does it.
    pub(super) fn leave(&self, path: &Path) {
        let mut left = self.left.lock();
        if left.len() < LEFT {
            left.push(path.to_owned());
        }
    }

    /// Tries again to remove what could not be removed.
    pub(super) fn remove_left(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        for path in left {
            if self.unlink(&path).is_err() {
                self.leave(&path);
            }
        }
    }

    /// Removes an empty directory; `false` if it is not empty or not there.
    pub(super) fn remove_dir(&self, path: &Path) -> bool {
        self.parent(path).is_ok_and(|(parent, name)| rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok())
    }

    /// Opens a directory's list.
    pub(super) fn list(&self, path: &Path) -> io::Result<Listing> {
        Ok(Listing(Dir::new(self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)?)?))
    }

    /// Waits until the directory's entries are on the disk.
    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)?)?)
    }

    /// Waits until the content of the file at `path` is on the disk.
    pub(super) fn sync_file(&self, path: &Path) -> io::Result<()> {
        sync(&self.read(path)?)
    }

    /// Waits until the whole file system is on the disk.
    pub(super) fn sync_everything(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    /// What the file system has.
    pub(super) fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }

    /// The directory that holds `path`, and the last name in it.
    fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p std::ffi::OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        if self.walk {
            return self.walk(path, flags);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::io::retry_on_intr(|| rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve))?)
    }

    fn walk(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let mut at: Option<OwnedFd> = None;
        let mut parts = path.components().peekable();
        while let Some(part) = parts.next() {
            if !matches!(part, Component::Normal(_) | Component::CurDir) {
                return Err(Errno::XDEV.into());
            }
            let here = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let flags = if parts.peek().is_some() {
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
            } else {
                flags
            };
            at = Some(rustix::fs::openat(here, part.as_os_str(), flags, Mode::empty())?);
        }
        at.ok_or_else(|| Errno::INVAL.into())
    }
}

impl AsRef<Self> for Disk {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// An open directory, read bit by bit: a directory of a million blobs is never in memory as a whole.
pub(super) struct Listing(Dir);

/// One entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name; names that are not UTF-8 are not the store's and are left out.
    pub(super) name: String,
    /// Whether it is a directory (not a link to one).
    pub(super) is_dir: bool,
}

impl Iterator for Listing {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.0.read()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            return Some(Ok(Entry { name: name.to_owned(), is_dir: entry.file_type() == FileType::Directory }));
        }
    }
}

/// Waits until the file's content, and its length, are on the disk.
pub(super) fn sync(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Takes disk blocks for the first `length` bytes without changing the file's length. File systems that cannot do
/// it are no error: the reservation in the books still holds.
pub(super) fn allocate(file: &File, length: u64) -> io::Result<bool> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, length) {
        Ok(()) => Ok(true),
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(path: &Path) -> [Disk; 2] {
        let mut walking = Disk::open(path).unwrap();
        walking.walk = true;
        [Disk::open(path).unwrap(), walking]
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("dir")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), root.path().join("file")).unwrap();
        for disk in disks(root.path()) {
            assert!(disk.read(Path::new("file")).is_err(), "a link is not opened");
            assert!(disk.read(Path::new("dir/secret")).is_err(), "nor a file behind a linked directory");
            assert!(disk.create_new(Path::new("dir/new")).is_err(), "nothing is made behind a link");
            assert!(disk.make_dirs(Path::new("dir/sub")).is_err());
            assert!(disk.read(Path::new("../secret")).is_err(), "nor is the root left upwards");
            assert!(disk.metadata(Path::new("file")).unwrap().is_symlink(), "the link itself can be seen");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was made outside");
    }

    #[test]
    fn made_directories_name_the_parents_to_sync() {
        let root = tempfile::tempdir().unwrap();
        for (disk, top) in disks(root.path()).iter().zip(["a", "b"]) {
            let deep = PathBuf::from(top).join("x/y");
            let changed = disk.make_dirs(&deep).unwrap();
            assert_eq!(changed, [PathBuf::new(), top.into(), PathBuf::from(top).join("x")]);
            assert!(disk.make_dirs(&deep).unwrap().is_empty(), "an old directory needs no sync");
            for path in changed {
                disk.sync_dir(&path).unwrap();
            }
        }
    }

    #[test]
    fn files_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        for disk in disks(root.path()) {
            let file = disk.create_new(Path::new("f")).unwrap();
            assert!(disk.create_new(Path::new("f")).is_err(), "a new file is new");
            allocate(&file, 1 << 16).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 0, "reserving blocks leaves the length");
            disk.rename(Path::new("f"), Path::new("g")).unwrap();
            assert!(disk.unlink(Path::new("g")).unwrap());
            assert!(!disk.unlink(Path::new("g")).unwrap(), "nothing to remove is no error");
            assert!(!disk.unlink(Path::new("no/such")).unwrap());
            assert!(disk.space().unwrap().total > 0);
        }
    }
}
