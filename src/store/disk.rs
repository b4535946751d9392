//! The store's one way to its files: what it asks of the file system, put together from the calls that there are.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::StoreError;
use super::fs::{Create, Fs, Listing, Space};
use super::real_fs::RealFs;

/// How many files that could not be removed are remembered.
const LEFT: usize = 4096;
/// What is read of a small file at a time.
const READ: usize = 4096;

/// The files beneath a root. Paths are relative to it.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    fs: Box<dyn Fs>,
    /// Files that are nobody's and could not be removed, with what each takes.
    left: Mutex<Vec<(PathBuf, u64)>>,
    /// What all of them take, those too that are not remembered.
    left_bytes: Arc<AtomicU64>,
    made: Mutex<Made>,
}

/// Directories that were made and are not known to be on the disk.
#[derive(Debug, Default)]
struct Made {
    /// Those in which one was made, with the number of the last.
    above: BTreeMap<PathBuf, u64>,
    count: u64,
}

// === impl Disk ===

impl Disk {
    /// Opens the root, which is made (with its parents) if it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let (fs, path) = RealFs::open(path)?;
        Ok(Self::over(Box::new(fs), path))
    }

    /// Over a file system whose root is at this absolute path.
    pub(super) fn over(fs: Box<dyn Fs>, path: PathBuf) -> Self {
        Self { path, fs, left: Mutex::default(), left_bytes: Arc::default(), made: Mutex::default() }
    }

    /// The root's absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens for reading. A symbolic link is an error (`ELOOP`), and so is what is not a regular file.
    pub(super) fn read(&self, path: &Path) -> io::Result<File> {
        self.fs.open(path)
    }

    /// The whole content of a small file; longer than `limit` is an error.
    pub(super) fn read_all(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.fs.open(path)?;
        let mut content = Vec::new();
        loop {
            let at = content.len();
            content.resize(at + READ.max(at), 0);
            let read = self.read_at(&file, &mut content[at..], at as u64)?;
            content.truncate(at + read);
            if content.len() as u64 > limit {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than this program writes"));
            }
            if read == 0 {
                return Ok(content);
            }
        }
    }

    /// Reads from an open file, perhaps less than was asked for.
    pub(super) fn read_at(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        loop {
            match self.fs.read_at(file, buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Fills the buffer.
    pub(super) fn read_exact_at(&self, file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let read = self.read_at(file, buffer, at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = &mut buffer[read..];
            at += read as u64;
        }
        Ok(())
    }

    /// Writes all of it.
    pub(super) fn write_all_at(&self, file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.fs.write_at(file, bytes, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    at += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What stands at `path` itself, a symbolic link included.
    pub(super) fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.look(path)?.metadata()
    }

    /// What stands at `path` itself, not opened for reading. While the handle lives, the file's blocks are not freed:
    /// freeing those of a large one takes a while, which nobody should have to wait for under a lock.
    pub(super) fn look(&self, path: &Path) -> io::Result<File> {
        self.fs.look(path)
    }

    /// Makes a new file and opens it for reading and writing; its directory must exist.
    pub(super) fn create_new(&self, path: &Path) -> io::Result<File> {
        self.fs.create(path, Create::New)
    }

    /// Opens for reading and writing, making the file if it is missing.
    pub(super) fn open_or_create(&self, path: &Path) -> io::Result<File> {
        self.fs.create(path, Create::IfMissing)
    }

    /// Makes a directory with what is missing above it. Until [`Disk::sync_made`], a power cut may take it away again.
    pub(super) fn make_dirs(&self, path: &Path) -> io::Result<()> {
        if self.fs.is_dir(path) {
            return Ok(());
        }
        let mut above = PathBuf::new();
        for name in path.components() {
            let directory = above.join(name);
            match self.fs.make_dir(&directory) {
                Ok(()) => {
                    let mut made = self.made.lock();
                    made.count += 1;
                    let count = made.count;
                    made.above.insert(above, count);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            above = directory;
        }
        Ok(())
    }

    /// Waits until the directories above `path` that were made, by whomever, are on the disk.
    pub(super) fn sync_made(&self, path: &Path) -> io::Result<()> {
        let made: Vec<(PathBuf, u64)> = {
            let made = self.made.lock();
            made.above.iter().filter(|(at, _)| path.starts_with(at)).map(|(at, n)| (at.clone(), *n)).collect()
        };
        self.sync_each(made)
    }

    /// The same of all.
    pub(super) fn sync_all_made(&self) -> io::Result<()> {
        let made = self.made.lock().above.iter().map(|(at, n)| (at.clone(), *n)).collect();
        self.sync_each(made)
    }

    fn sync_each(&self, made: Vec<(PathBuf, u64)>) -> io::Result<()> {
        for (directory, count) in made {
            match self.fs.sync_dir(&directory) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Err(error);
                }
                _ => {}
            }
            let mut made = self.made.lock();
            // Not if another was made in it meanwhile.
            if made.above.get(&directory) == Some(&count) {
                made.above.remove(&directory);
            }
        }
        Ok(())
    }

    /// Lets nobody but the owner into a directory.
    pub(super) fn close_dir(&self, path: &Path) -> io::Result<()> {
        self.fs.close_dir(path)
    }

    /// Lets nobody but the owner read a file.
    pub(super) fn close_file(&self, file: &File) -> io::Result<()> {
        self.fs.close_file(file)
    }

    /// Cuts or extends a file.
    pub(super) fn set_len(&self, file: &File, length: u64) -> io::Result<()> {
        self.fs.set_len(file, length)
    }

    /// Takes disk blocks for the first `length` bytes without changing the file's length. File systems that cannot do
    /// it are no error: the reservation in the books still holds.
    pub(super) fn allocate(&self, file: &File, length: u64) -> io::Result<bool> {
        match self.fs.allocate(file, length) {
            Ok(()) => Ok(true),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOSPC | Errno::DQUOT)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Gives a file another name, replacing what is there.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fs.rename(from, to)
    }

    /// Removes a file's name; `false` if there was none.
    pub(super) fn unlink(&self, path: &Path) -> io::Result<bool> {
        match self.fs.unlink(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a file's name can be removed, without doing it: a directory, an attribute or a read-only file system may say
    /// no. There may be no such file.
    pub(super) fn can_unlink(&self, path: &Path) -> io::Result<()> {
        if self.metadata(path).is_ok_and(|found| found.is_dir()) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // As a directory: what is none is refused for that after all else was looked at.
        match self.fs.remove_dir(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => Ok(()),
            outcome => outcome,
        }
    }

    /// A file that is nobody's cannot be removed now (no descriptor is free, the disk says no): it is tried again with
    /// [`Disk::remove_left`], and if that never succeeds the next start does it. Until then it counts; `found` is what can be
    /// seen of it.
    pub(super) fn leave(&self, path: &Path, found: io::Result<Metadata>) {
        self.leave_bytes(path.to_owned(), found.map_or(0, |found| taken(&found)));
    }

    fn leave_bytes(&self, path: PathBuf, bytes: u64) {
        self.left_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut left = self.left.lock();
        // What is more waits for the next start, and counts until then.
        if left.len() < LEFT {
            left.push((path, bytes));
        }
    }

    /// What the files take that are left; it changes with them.
    pub(super) fn left_bytes(&self) -> Arc<AtomicU64> {
        self.left_bytes.clone()
    }

    /// Tries again to remove what could not be removed.
    pub(super) fn remove_left(&self) {
        let left = std::mem::take(&mut *self.left.lock());
        for (path, bytes) in left {
            let removed = self.unlink(&path);
            if removed.is_err() {
                // It may be that it could not be looked at before.
                let found = self.metadata(&path);
                self.leave_bytes(path, found.map_or(bytes, |found| taken(&found)));
            }
            // Last: in between it counts twice, and not for nothing.
            self.left_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Removes an empty directory; `false` if it is not empty or not there.
    pub(super) fn remove_dir(&self, path: &Path) -> bool {
        self.fs.remove_dir(path).is_ok()
    }

    /// Opens a directory's list.
    pub(super) fn list(&self, path: &Path) -> io::Result<Listing> {
        self.fs.list(path)
    }

    /// Waits until the directory's entries are on the disk.
    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.fs.sync_dir(path)
    }

    /// Begins to bring a part of a file's content to the disk, so that [`Disk::sync_file`] takes less long; promises nothing.
    pub(super) fn begin_sync(&self, file: &File, range: Range<u64>) {
        self.fs.begin_sync(file, range);
    }

    /// Waits until the file's content, and its length, are on the disk.
    pub(super) fn sync_file(&self, file: &File) -> io::Result<()> {
        self.fs.sync_file(file)
    }

    /// Waits until the whole file system is on the disk.
    pub(super) fn sync_everything(&self) -> io::Result<()> {
        self.fs.sync_everything()
    }

    /// What the file system has.
    pub(super) fn space(&self) -> io::Result<Space> {
        self.fs.space()
    }
}

/// What the file system has given for a file.
fn taken(found: &Metadata) -> u64 {
    found.blocks().saturating_mul(512)
}

impl AsRef<Self> for Disk {
    fn as_ref(&self) -> &Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(path: &Path) -> [Disk; 2] {
        let (walking, root) = RealFs::open(path).unwrap();
        [Disk::open(path).unwrap(), Disk::over(Box::new(walking.walking()), root)]
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
    fn made_directories_are_remembered_until_they_are_synced() {
        let root = tempfile::tempdir().unwrap();
        for (disk, top) in disks(root.path()).iter().zip(["a", "b"]) {
            let deep = PathBuf::from(top).join("x/y");
            disk.make_dirs(&deep).unwrap();
            let made = || disk.made.lock().above.keys().cloned().collect::<Vec<_>>();
            assert_eq!(made(), [PathBuf::new(), top.into(), PathBuf::from(top).join("x")]);
            disk.sync_made(&PathBuf::from(top).join("other")).unwrap();
            assert_eq!(made(), [PathBuf::from(top).join("x")], "what lies elsewhere waits");
            disk.make_dirs(&deep).unwrap();
            disk.sync_all_made().unwrap();
            assert!(made().is_empty(), "an old directory needs no sync");
        }
    }

    #[test]
    fn what_is_left_counts_until_it_is_gone_however_much_it_is() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let bytes = disk.left_bytes();
        let in_the_way = root.path().join("d");
        std::fs::create_dir(&in_the_way).unwrap();
        std::fs::write(root.path().join("f"), [1; 9000]).unwrap();
        let takes = taken(&disk.metadata(Path::new("f")).unwrap());
        assert!(takes >= 9000);
        for path in ["d", "f", "gone"].map(Path::new) {
            disk.leave(path, disk.metadata(path));
        }
        let directory = taken(&disk.metadata(Path::new("d")).unwrap());
        assert_eq!(bytes.load(Ordering::Relaxed), takes + directory);
        disk.remove_left();
        assert_eq!(bytes.load(Ordering::Relaxed), directory, "a directory is not unlinked");
        // What could not be looked at before is looked at again.
        std::fs::remove_dir(&in_the_way).unwrap();
        disk.remove_left();
        disk.leave(Path::new("d"), disk.metadata(Path::new("d")));
        std::fs::create_dir(&in_the_way).unwrap();
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
        disk.remove_left();
        assert_eq!(bytes.load(Ordering::Relaxed), directory);
        std::fs::remove_dir(&in_the_way).unwrap();
        disk.remove_left();
        for _ in 0..LEFT + 3 {
            disk.leave_bytes("gone".into(), 10);
        }
        assert_eq!((bytes.load(Ordering::Relaxed), disk.left.lock().len()), (10 * (LEFT as u64 + 3), LEFT));
        disk.remove_left();
        assert_eq!(bytes.load(Ordering::Relaxed), 30, "of these nobody knows the names");
    }

    #[test]
    fn files_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        for disk in disks(root.path()) {
            let file = disk.create_new(Path::new("f")).unwrap();
            assert!(disk.create_new(Path::new("f")).is_err(), "a new file is new");
            disk.allocate(&file, 1 << 16).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 0, "reserving blocks leaves the length");
            disk.rename(Path::new("f"), Path::new("g")).unwrap();
            assert!(disk.unlink(Path::new("g")).unwrap());
            assert!(!disk.unlink(Path::new("g")).unwrap(), "nothing to remove is no error");
            assert!(!disk.unlink(Path::new("no/such")).unwrap());
            assert!(disk.space().unwrap().total > 0);
        }
    }
}
