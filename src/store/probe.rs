//! What can be said of a root without opening the store: the room that its file system gives, and whether it can be used.
//! Everything here blocks.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::StoreError;
use super::capacity::{capacity_on, floor};
use super::disk::Disk;
use super::layout;
use crate::config::Capacity;

/// The room on a file system, as a store there would count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the file system.
    pub total: u64,
    /// Bytes of it that an unprivileged process may still write.
    pub free: u64,
    /// Bytes that a store may hold.
    pub capacity: u64,
    /// Bytes that it leaves free.
    pub floor: u64,
    /// Files that can still be made; none: the file system has no such limit.
    pub free_files: Option<u64>,
}

/// The room at `path`, a directory that exists.
pub fn room(path: &Path, capacity: Capacity) -> io::Result<Room> {
    let stat = rustix::fs::statvfs(path)?;
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    Ok(Room {
        total,
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        capacity: capacity_on(capacity, total),
        floor: floor(total),
        free_files: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// Whether the directory at `root`, which exists, is a store of a version that this program understands, or can become one.
///
/// # Errors
/// [`StoreError::Version`], [`StoreError::Foreign`], or that it cannot be read.
pub fn check_format(root: &Path) -> Result<(), StoreError> {
    let disk = Disk::open(root)?;
    let checked = layout::check_version(&disk).and_then(|()| layout::check_foreign(&disk));
    checked.map_err(|error| error.within(root))
}

/// Whether the kernel resolves paths beneath a directory (`openat2`, Linux 5.6): without it each look-up takes a call for
/// each part of its path.
pub fn has_openat2(root: &Path) -> bool {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || {
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        rustix::fs::openat2(&root, ".", flags, Mode::empty(), resolve)
    };
    // Unknown to the kernel, or to what filters system calls; what else goes wrong says nothing of it.
    !matches!(open(), Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_counted_as_a_store_counts_it() {
        let directory = tempfile::tempdir().unwrap();
        let all = room(directory.path(), Capacity::Default).unwrap();
        assert!(all.free <= all.total && all.capacity == (100 << 30).min(all.total / 2), "{all:?}");
        assert!(all.floor <= all.total / 10, "{all:?}");
        assert_eq!(room(directory.path(), Capacity::Percent(10)).unwrap().capacity, all.total / 100 * 10);
        assert_eq!(room(directory.path(), Capacity::Bytes(7)).unwrap().capacity, 7);
        assert!(room(&directory.path().join("none"), Capacity::Default).is_err());
    }

    #[test]
    fn what_is_no_store_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        check_format(root).unwrap();
        std::fs::write(root.join("letter"), "").unwrap();
        assert!(matches!(check_format(root), Err(StoreError::Foreign { .. })));
        std::fs::write(root.join("VERSION"), "1\n").unwrap();
        check_format(root).unwrap();
        std::fs::write(root.join("VERSION"), "99\n").unwrap();
        assert!(matches!(check_format(root), Err(StoreError::Version { found, .. }) if found == "99"));
    }
}
