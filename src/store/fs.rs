//! What the store asks of a file system, as one narrow trait: every call that changes or persists something, and those to
//! read whose failing matters.
//!
//! Paths are relative to the root, and no call follows a symbolic link. Files are real ones, also in tests: what is
//! published is sent by descriptor. Looking at an open file (`fstat`) is no call of this trait: it does not fail.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::fs::{Dir, FileType};

/// Size of the file system and what is free on it for this user, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    /// All of it.
    pub(super) total: u64,
    /// What an unprivileged process may still write.
    pub(super) free: u64,
}

/// Whether opening a file to write it may find one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Create {
    /// It must not be there.
    New,
    /// It may be there, and is opened as it is.
    IfMissing,
}

/// A file system beneath one root.
pub(super) trait Fs: fmt::Debug + Send + Sync {
    /// Opens for reading. A symbolic link is an error (`ELOOP`), and so is what is not a regular file.
    fn open(&self, path: &Path) -> io::Result<File>;
    /// Opens what stands at `path` itself, a symbolic link included, to look at it (`O_PATH`).
    fn look(&self, path: &Path) -> io::Result<File>;
    /// Whether there is a directory.
    fn is_dir(&self, path: &Path) -> bool;
    /// Opens a directory's list.
    fn list(&self, path: &Path) -> io::Result<Listing>;
    /// Opens for reading and writing; the directory must exist.
    fn create(&self, path: &Path, create: Create) -> io::Result<File>;
    /// Makes a directory.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Lets nobody but the owner into a directory.
    fn close_dir(&self, path: &Path) -> io::Result<()>;
    /// Reads; may read less than was asked for.
    fn read_at(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes; may write less than was asked for.
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<usize>;
    /// Cuts or extends.
    fn set_len(&self, file: &File, length: u64) -> io::Result<()>;
    /// Takes disk blocks for the first `length` bytes without changing the file's length.
    fn allocate(&self, file: &File, length: u64) -> io::Result<()>;
    /// Lets nobody but the owner read a file.
    fn close_file(&self, file: &File) -> io::Result<()>;
    /// Begins to bring a part of a file's content to the disk, so that [`Fs::sync_file`] takes less long. It promises
    /// nothing, and its errors are those of that call.
    fn begin_sync(&self, file: &File, range: Range<u64>);
    /// Waits until a file's content and length are on the disk.
    fn sync_file(&self, file: &File) -> io::Result<()>;
    /// Waits until a directory's entries are on the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Waits until the whole file system is on the disk.
    fn sync_everything(&self) -> io::Result<()>;
    /// What the file system has.
    fn space(&self) -> io::Result<Space>;
}

/// An open directory, read bit by bit: a directory of a million blobs is never in memory as a whole.
pub(super) struct Listing {
    directory: Dir,
    /// What the list breaks off with, after so many entries.
    #[cfg(test)]
    pub(super) breaks: Option<(usize, io::Error)>,
}

/// One entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name; names that are not UTF-8 are not the store's and are left out.
    pub(super) name: String,
    /// Whether it is a directory (not a link to one).
    pub(super) is_dir: bool,
}

// === impl Listing ===

impl Listing {
    pub(super) const fn new(directory: Dir) -> Self {
        Self {
            directory,
            #[cfg(test)]
            breaks: None,
        }
    }
}

impl Iterator for Listing {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        #[cfg(test)]
        match &mut self.breaks {
            Some((0, error)) => {
                let error = std::mem::replace(error, io::ErrorKind::UnexpectedEof.into());
                // Like the real one: after an error there is nothing more.
                return (error.kind() != io::ErrorKind::UnexpectedEof).then_some(Err(error));
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        loop {
            let entry = match self.directory.read()? {
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
