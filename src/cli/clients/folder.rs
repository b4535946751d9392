//! A directory that is held open, and the files in it by their names alone: no link is followed, so nothing that somebody puts
//! beside a file leads to another directory. And files by paths that the operator has given, where links are followed.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::FileError;

/// Mode of a new file, and of a new directory.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// A directory to go on from: to search it is permission enough.
const SEARCH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A directory, to list it or to make its names durable.
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A file as it is found: a pipe is not waited for.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// No file of a client is larger, nor what lies beside it, nor a certificate: of more, nothing is taken into memory.
const LARGEST: u64 = 4 << 20;
const CREATE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);

/// A directory.
#[derive(Debug)]
pub(in crate::cli) struct Folder {
    fd: OwnedFd,
    /// Where it was opened.
    path: PathBuf,
}

/// A file that was read.
#[derive(Debug)]
pub(in crate::cli) struct Seen {
    /// What is in it.
    pub(in crate::cli) text: String,
    /// Whose it is.
    pub(in crate::cli) owner: u32,
}

// === impl Folder ===

impl Folder {
    /// The directory at a path, with links followed.
    pub(super) fn open(path: &Path) -> rustix::io::Result<Self> {
        let fd = rustix::fs::open(path, SEARCH, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// A directory in this one.
    pub(super) fn enter(&self, name: &OsStr) -> rustix::io::Result<Self> {
        let fd = rustix::fs::openat(&self.fd, name, SEARCH | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// As [`Folder::enter`]; none where there is something else, as a link is.
    pub(in crate::cli) fn inner(&self, name: &OsStr) -> Result<Option<Self>, FileError> {
        match self.enter(name) {
            Ok(inner) => Ok(Some(inner)),
            Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(error) => Err(FileError::read(&self.path.join(name), error)),
        }
    }

    /// Where it is.
    pub(in crate::cli) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells it from every other directory.
    pub(in crate::cli) fn identity(&self) -> Result<(u64, u64), FileError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|error| FileError::read(&self.path, error))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// What there is under a name.
    pub(in crate::cli) fn stat(&self, name: &OsStr) -> Result<Option<Stat>, FileError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(FileError::read(&self.path.join(name), error)),
        }
    }

    /// Where a link leads.
    pub(super) fn link_target(&self, name: &OsStr) -> Result<PathBuf, FileError> {
        let target = rustix::fs::readlinkat(&self.fd, name, Vec::new());
        let target = target.map_err(|error| FileError::read(&self.path.join(name), error))?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// The names in it, in their order.
    pub(in crate::cli) fn names(&self) -> Result<Vec<OsString>, FileError> {
        let list = || -> rustix::io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            for entry in Dir::new(rustix::fs::openat(&self.fd, ".", LIST, Mode::empty())?)? {
                let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        list().map_err(|error| FileError::read(&self.path, error))
    }

    /// What is in a file; none: it is not there.
    pub(in crate::cli) fn read(&self, name: &OsStr) -> Result<Option<String>, FileError> {
        Ok(self.look(name, LARGEST)?.map(|seen| seen.text))
    }

    /// What is in a file that has `most` bytes at most, and whose it is; none: it is not there.
    pub(in crate::cli) fn look(&self, name: &OsStr, most: u64) -> Result<Option<Seen>, FileError> {
        let wrong = |error: io::Error| FileError::read(&self.path.join(name), error);
        let fd = match rustix::fs::openat(&self.fd, name, READ, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(wrong(io::Error::new(ErrorKind::InvalidInput, "a link, where none is followed")));
            }
            Err(error) => return Err(wrong(error.into())),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| wrong(error.into()))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(wrong(io::Error::new(ErrorKind::InvalidInput, "not a regular file")));
        }
        let text = text_of(&File::from(fd), &self.path.join(name), most)?;
        Ok(Some(Seen { text, owner: stat.st_uid }))
    }

    /// Who, besides root and this user, may change which names there are in it; none: nobody.
    pub(in crate::cli) fn shared_with(&self) -> Result<Option<String>, FileError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|error| FileError::read(&self.path, error))?;
        // Of an access control list this shows what anybody in it may do at most.
        let mode = stat.st_mode & 0o7777;
        Ok(match (is_trusted(stat.st_uid), mode & 0o022) {
            (false, _) => Some(format!("{} belongs to user {}", self.path.display(), stat.st_uid)),
            (true, 0) => None,
            (true, _) => Some(format!("others may write {} (mode {mode:04o})", self.path.display())),
        })
    }

    /// Puts a file into place in one step, with the mode and the owner of the one that is there, else with this mode.
    pub(in crate::cli) fn replace(&self, name: &OsStr, bytes: &[u8], mode: Option<u32>) -> Result<(), FileError> {
        let like = self.stat(name)?;
        self.put(name, bytes, like.as_ref(), mode).map_err(|error| FileError::write(&self.path.join(name), error))
    }

    /// A second name for a file, under which it stays when another takes its place. Whether the name was free.
    pub(in crate::cli) fn keep(&self, name: &OsStr, second: &OsStr) -> Result<bool, FileError> {
        match rustix::fs::linkat(&self.fd, name, &self.fd, second, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            // A file system without such names.
            Err(_) => {
                let text = self.read(name)?.unwrap_or_default();
                let like = self.stat(name)?;
                let put = self.put(second, text.as_bytes(), like.as_ref(), None);
                put.map(|()| true).map_err(|error| FileError::write(&self.path.join(second), error))
            }
        }
    }

    /// Another name for a file, in the place of what has that name.
    pub(in crate::cli) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), FileError> {
        let renamed = rustix::fs::renameat(&self.fd, from, &self.fd, to);
        renamed.map_err(|error| FileError::write(&self.path.join(to), error))
    }

    /// Removes a file, where there is one.
    pub(in crate::cli) fn remove(&self, name: &OsStr) -> Result<(), FileError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(FileError::write(&self.path.join(name), error)),
        }
    }

    /// Makes a directory, where there is none.
    pub(super) fn make(&self, name: &OsStr) -> Result<Self, FileError> {
        let made = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => self.enter(name),
            Err(error) => Err(error),
        };
        made.map_err(|error| FileError::write(&self.path.join(name), error))
    }

    /// Removes an empty directory. Whether it is gone.
    pub(super) fn remove_directory(&self, name: &OsStr) -> bool {
        matches!(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT))
    }

    fn put(&self, name: &OsStr, bytes: &[u8], like: Option<&Stat>, mode: Option<u32>) -> io::Result<()> {
        let temporary = beside(name, ".", &format!(".ocistern-{}", std::process::id()));
        // Readable for nobody else before it is known who may.
        let file = rustix::fs::openat(&self.fd, &temporary, CREATE, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        let mut write = || -> io::Result<()> {
            file.write_all(bytes)?;
            if let Some(like) = like {
                // Only root can give files away; what is one's own already needs no giving.
                let own = rustix::fs::fstat(&file)?;
                if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid) {
                    rustix::fs::fchown(&file, Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)))?;
                }
            }
            let mode = mode.unwrap_or_else(|| like.map_or(FILE_MODE, |like| like.st_mode & 0o7777));
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            file.sync_all()?;
            Ok(rustix::fs::renameat(&self.fd, &temporary, &self.fd, name)?)
        };
        if let Err(error) = write() {
            let _ = rustix::fs::unlinkat(&self.fd, &temporary, AtFlags::empty());
            return Err(error);
        }
        // The name is on the disk when its directory is.
        Ok(rustix::fs::fsync(rustix::fs::openat(&self.fd, ".", LIST, Mode::empty())?)?)
    }
}

/// Whether a user is root or the one who runs this.
pub(in crate::cli) fn is_trusted(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

/// All of a file, if it is not larger than this. It is read one byte further at most, whatever its size is said to be.
fn text_of(file: &File, path: &Path, most: u64) -> Result<String, FileError> {
    let mut text = String::new();
    let read = file.take(most + 1).read_to_string(&mut text);
    // What is cut within a character is no text.
    if text.len() as u64 > most || (read.is_err() && file.metadata().is_ok_and(|metadata| metadata.len() > most)) {
        return Err(FileError::Large { path: path.to_owned(), most });
    }
    read.map_err(|error| FileError::read(path, error))?;
    Ok(text)
}

/// The name of what lies beside a file.
pub(in crate::cli) fn beside(name: &OsStr, prefix: &str, suffix: &str) -> OsString {
    let mut beside = OsString::from(prefix);
    beside.push(name);
    beside.push(suffix);
    beside
}

// --- by paths of the operator's ------------------------------------------------------------------------------------------

/// What is in a file; none: it is not there.
pub(in crate::cli) fn read(path: &Path) -> Result<Option<String>, FileError> {
    match File::open(path) {
        Ok(file) => text_of(&file, path, LARGEST).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::read(path, error)),
    }
}

/// As [`Folder::replace`].
pub(in crate::cli) fn replace(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<(), FileError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = Folder::open(directory).map_err(|error| FileError::write(directory, error))?;
    folder.replace(path.file_name().unwrap_or_default(), bytes, mode)
}

/// Makes a directory and those above it, where they are missing.
pub(in crate::cli) fn make_directories(directory: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    made.map_err(|error| FileError::write(directory, error))
}
