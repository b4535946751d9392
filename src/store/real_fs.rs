//! The real file system: always beneath the root, never through a symbolic link.
//!
//! Names in paths come from validated types, so a path cannot leave the root by itself; a link that somebody planted
//! inside could lead out, and is refused by the kernel (`openat2`), or where that call is missing by opening one
//! directory after the other without following links.

use std::fs::{File, Permissions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FallocateFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::StoreError;
use super::fs::{Create, Fs, Listing, Space};

/// Mode of files before the umask: the service's group may read.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
/// Mode of directories before the umask.
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);

/// The root directory, held open: renaming or replacing it from outside does not change where the store works.
#[derive(Debug)]
pub(super) struct RealFs {
    root: OwnedFd,
    /// No `openat2` here (Linux before 5.6, or an old container runtime's filter).
    walk: bool,
}

// === impl RealFs ===

impl RealFs {
    /// Opens the root, which is made (with its parents) if it is missing. Also its absolute path.
    pub(super) fn open(path: &Path) -> Result<(Self, PathBuf), StoreError> {
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
        Ok((Self { root, walk: probe.is_err() }, path))
    }

    /// As on a kernel without `openat2`.
    #[cfg(test)]
    pub(super) fn walking(self) -> Self {
        Self { walk: true, ..self }
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

impl Fs for RealFs {
    fn open(&self, path: &Path) -> io::Result<File> {
        // NONBLOCK: a FIFO under this name must not hang the thread; it means nothing for regular files.
        let file = File::from(self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    fn look(&self, path: &Path) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?))
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    fn list(&self, path: &Path) -> io::Result<Listing> {
        Ok(Listing::new(Dir::new(self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)?)?))
    }

    fn create(&self, path: &Path, create: Create) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = if create == Create::New { flags | OFlags::EXCL } else { flags };
        Ok(File::from(rustix::fs::openat(parent, name, flags, FILE_MODE)?))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::mkdirat(parent, name, DIR_MODE)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        Ok(rustix::fs::renameat(from_parent, from_name, to_parent, to_name)?)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }

    fn close_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::fchmod(self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)?, Mode::RWXU)?)
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        file.read_at(buffer, at)
    }

    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
        file.write_at(bytes, at)
    }

    fn set_len(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, length)?)
    }

    fn close_file(&self, file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(0o600))
    }

    fn begin_sync(&self, file: &File, range: Range<u64>) {
        crate::sys::write_out::begin(file, range);
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)?)?)
    }

    fn sync_everything(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }
}
