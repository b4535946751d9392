//! sled 0.34.7 as an index, with the procedure that survives what it does on a crash, a power cut, rot or a full disk.
//!
//! Read in its source and measured (docs/adr has the account):
//! - a `snap.N.generating` left by a crash is taken for the newest snapshot, and opening fails for ever: removed first;
//! - opening damaged files may panic, hang or fail: done on a thread of its own, with a time-out, and then the
//!   directory is set aside and an empty index begun;
//! - after ENOSPC every write fails until the handle is dropped: the owner drops it and opens again;
//! - it gives its lock up by closing the file alone, and opening fails where the lock is not free at that moment: a
//!   child of this process keeps it for the instant between fork and exec. It is waited for.

use std::any::Any;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::index::{Changes, Index, IndexError, Pairs};
use super::layout::INDEX;

/// Memory for pages; sled's own default is 1 GiB.
const CACHE: u64 = 32 << 20;

/// An open sled database.
pub(super) struct SledIndex {
    db: sled::Db,
}

/// Opening ended in a panic.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
struct Panicked(String);

/// Opening did not end.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct Hung(Duration);

// === impl SledIndex ===

impl SledIndex {
    /// Opens the index under `root`. Blocks, but never longer than `limit`; never panics.
    pub(super) fn open(root: &Path, limit: Duration) -> Result<Self, IndexError> {
        let path = root.join(INDEX);
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| open(&path))).unwrap_or_else(|panic| {
                Err(IndexError { action: "open", source: Box::new(Panicked(panic_text(&*panic))) })
            });
            // Nobody listens after the time-out; then the database is closed again here.
            let _ = sender.send(outcome);
        };
        let thread = std::thread::Builder::new().name("index-open".into()).spawn(work);
        thread.map_err(|e| IndexError { action: "open", source: Box::new(e) })?;
        receiver.recv_timeout(limit).unwrap_or_else(|why| {
            let source: Box<dyn std::error::Error + Send + Sync> = match why {
                RecvTimeoutError::Timeout => Box::new(Hung(limit)),
                RecvTimeoutError::Disconnected => Box::new(Panicked("the opening thread is gone".into())),
            };
            Err(IndexError { action: "open", source })
        })
    }

    /// Moves the index under `root` out of the way, as `index.bad-N`; of those only the newest is kept.
    pub(super) fn set_aside(root: &Path) -> io::Result<()> {
        let mut last = 0;
        for entry in std::fs::read_dir(root)?.flatten() {
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|n| n.strip_prefix("index.bad-")?.parse::<u64>().ok()) else {
                continue;
            };
            last = last.max(number);
            remove(&entry.path())?;
        }
        match std::fs::rename(root.join(INDEX), root.join(format!("index.bad-{}", last + 1))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => remove(&root.join(INDEX)),
            _ => Ok(()),
        }
    }
}

fn open(path: &Path) -> Result<SledIndex, IndexError> {
    let fail = |source| IndexError { action: "open", source };
    remove_half_snapshots(path).map_err(|e| fail(e.into()))?;
    // sled would make it readable to all. What else stands there is for sled to complain about.
    let _ = std::fs::DirBuilder::new().mode(0o750).create(path);
    wait_for_lock(path);
    let config = sled::Config::new().path(path).cache_capacity(CACHE).mode(sled::Mode::LowSpace);
    let db = config.open().map_err(|e| fail(source(e)))?;
    Ok(SledIndex { db })
}

/// Waits until nobody has sled's lock, within the time that opening may take. Nobody but a child that has yet to exec can
/// have it: the root's own lock is taken before. A lock that cannot be asked for is for sled to complain about.
fn wait_for_lock(path: &Path) {
    // What stands there may be damaged in any way: a pipe would have to wait for somebody who writes.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path.join("db"), flags, Mode::empty()) else { return };
    while rustix::fs::flock(&file, FlockOperation::LockExclusive) == Err(rustix::io::Errno::INTR) {}
    // Given back by name: closing alone would again leave it with a child.
    let _ = rustix::fs::flock(&file, FlockOperation::Unlock);
}

fn remove_half_snapshots(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let half =
            name.to_str().is_some_and(|n| n.starts_with("snap.") && !n.bytes().skip(5).all(|b| b.is_ascii_hexdigit()));
        if half {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &PathBuf) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// sled's error without its wrapping: what the system said can be told from damage.
fn source(error: sled::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        sled::Error::Io(error) => Box::new(error),
        other => Box::new(other),
    }
}

/// Runs one call; a panic inside sled is an error like another.
fn call<T>(action: &'static str, f: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(IndexError { action, source: source(error) }),
        Err(panic) => Err(IndexError { action, source: Box::new(Panicked(panic_text(&*panic))) }),
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        call("read", || Ok(self.db.get(key)?.map(|value| value.to_vec())))
    }

    fn apply(&self, changes: &Changes) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        call("write", || self.db.apply_batch(batch))
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Pairs, IndexError> {
        call("scan", || {
            let from = after.unwrap_or(prefix).to_vec();
            let mut found = Vec::new();
            for pair in self.db.range(from..) {
                let (key, value) = pair?;
                if after.is_some_and(|after| &key[..] <= after) {
                    continue;
                }
                if found.len() == limit || !key.starts_with(prefix) {
                    break;
                }
                found.push((key.to_vec(), value.to_vec()));
            }
            Ok(found)
        })
    }

    fn size_on_disk(&self) -> Result<u64, IndexError> {
        call("measure", || self.db.size_on_disk())
    }

    fn flush(&self) -> Result<(), IndexError> {
        call("flush", || self.db.flush().map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::MemoryIndex;
    use super::super::index::suite::{agree, behaves, changes, steps};
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn sled_behaves() {
        let root = tempfile::tempdir().unwrap();
        behaves(&SledIndex::open(root.path(), LIMIT).unwrap());
    }

    #[test]
    fn a_left_over_half_snapshot_does_no_harm() {
        let root = tempfile::tempdir().unwrap();
        let index = SledIndex::open(root.path(), LIMIT).unwrap();
        index.apply(&changes(&[("k", Some("v"))])).unwrap();
        drop(index);
        for name in ["snap.1.generating", "snap.FFFFFFFFFFFFFFFF.generating"] {
            std::fs::write(root.path().join("index").join(name), "").unwrap();
        }
        let index = SledIndex::open(root.path(), LIMIT).unwrap();
        assert_eq!(index.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    }

    #[test]
    fn a_child_that_has_the_lock_for_a_moment_does_no_harm() {
        let root = tempfile::tempdir().unwrap();
        drop(SledIndex::open(root.path(), LIMIT).unwrap());
        let child = std::fs::File::open(root.path().join("index/db")).unwrap();
        // A child of another test may have it for a moment.
        rustix::fs::flock(&child, FlockOperation::LockExclusive).unwrap();
        let (sender, opened) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(SledIndex::open(root.path(), LIMIT).map(drop)));
            assert!(opened.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
            drop(child);
            opened.recv().unwrap().unwrap();
        });
    }

    #[test]
    fn only_the_newest_bad_index_is_kept() {
        let root = tempfile::tempdir().unwrap();
        for n in 1..=3 {
            std::fs::create_dir(root.path().join("index")).unwrap();
            SledIndex::set_aside(root.path()).unwrap();
            let names: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names, [format!("index.bad-{n}").as_str()]);
        }
        SledIndex::set_aside(root.path()).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn sled_and_memory_agree(steps in steps()) {
            let root = tempfile::tempdir().unwrap();
            agree(&SledIndex::open(root.path(), LIMIT).unwrap(), &MemoryIndex::default(), &steps);
        }
    }
}
