//! The index: hints in a key-value store behind one narrow trait, with an in-memory twin.
//!
//! Nothing in an index is needed for an answer to be right. What it holds may be old, partial or gone; whoever reads
//! it checks against the files.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;

#[cfg(test)]
use parking_lot::RwLock;

use super::error::is_full;

/// Keys with their new values; `None` removes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
/// Keys with their values, in order.
pub(super) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// An index failed. What it said is only for the log: the answer is always to set it aside.
#[derive(Debug, thiserror::Error)]
#[error("the index failed to {action}: {source}")]
pub(super) struct IndexError {
    /// What was tried, as a verb.
    pub(super) action: &'static str,
    /// What it said.
    #[source]
    pub(super) source: Box<dyn Error + Send + Sync>,
}

impl IndexError {
    /// Whether the system lacked something: room on the disk, file descriptors, memory. It says nothing about the index
    /// itself, which may be as good as ever.
    pub(super) fn is_shortage(&self) -> bool {
        let short_of = |error: &io::Error| {
            let errno = rustix::io::Errno::from_io_error(error);
            matches!(errno, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM))
        };
        self.source.downcast_ref::<io::Error>().is_some_and(|error| is_full(error) || short_of(error))
    }
}

/// An ordered map of bytes that may forget. Every call may block on the disk.
pub(super) trait Index: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;
    /// Sets and removes keys.
    fn apply(&self, changes: &Changes) -> Result<(), IndexError>;
    /// Up to `limit` pairs whose key starts with `prefix` and is greater than `after`, in order.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Pairs, IndexError>;
    /// Bytes on disk; 0 where there are none.
    fn size_on_disk(&self) -> Result<u64, IndexError>;
    /// Writes out what is buffered. Not for the path of a request.
    fn flush(&self) -> Result<(), IndexError>;
}

/// The twin in memory: what the tests hold every other index against.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct MemoryIndex {
    pairs: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

// === impl MemoryIndex ===

#[cfg(test)]
impl Index for MemoryIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.pairs.read().get(key).cloned())
    }

    fn apply(&self, changes: &Changes) -> Result<(), IndexError> {
        let mut pairs = self.pairs.write();
        for (key, value) in changes {
            match value {
                Some(value) => pairs.insert(key.clone(), value.clone()),
                None => pairs.remove(key),
            };
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Pairs, IndexError> {
        let pairs = self.pairs.read();
        let from = after.unwrap_or(prefix).to_vec();
        Ok(pairs
            .range(from..)
            .skip_while(|(key, _)| after.is_some_and(|after| key.as_slice() <= after))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn size_on_disk(&self) -> Result<u64, IndexError> {
        Ok(0)
    }

    fn flush(&self) -> Result<(), IndexError> {
        Ok(())
    }
}

/// Tests that every index passes.
#[cfg(test)]
pub(super) mod suite {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn changes(list: &[(&str, Option<&str>)]) -> Changes {
        list.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.map(|v| v.as_bytes().to_vec()))).collect()
    }

    pub(crate) fn behaves(index: &dyn Index) {
        index.apply(&changes(&[("a1", Some("x")), ("a2", Some("y")), ("b", Some("z")), ("none", None)])).unwrap();
        assert_eq!(index.get(b"a1").unwrap().as_deref(), Some(&b"x"[..]));
        assert_eq!(index.get(b"none").unwrap(), None);
        let keys = |prefix: &[u8], after: Option<&[u8]>, limit| {
            let found = index.scan(prefix, after, limit).unwrap();
            found.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(keys(b"a", None, 9), ["a1", "a2"], "only what starts with the prefix");
        assert_eq!(keys(b"a", Some(b"a1"), 9), ["a2"], "what stands after a key");
        assert_eq!(keys(b"a", Some(b"a2"), 9), [""; 0]);
        assert_eq!(keys(b"", None, 2), ["a1", "a2"], "no more than the limit");
        index.apply(&changes(&[("a1", None), ("a2", Some("w"))])).unwrap();
        assert_eq!(index.get(b"a1").unwrap(), None);
        assert_eq!(index.get(b"a2").unwrap().as_deref(), Some(&b"w"[..]));
        index.flush().unwrap();
        index.size_on_disk().unwrap();
    }

    /// A step of the differential test.
    pub(crate) fn steps() -> impl Strategy<Value = Vec<(u8, u8, Option<u8>)>> {
        proptest::collection::vec((any::<u8>(), 0..8u8, proptest::option::of(any::<u8>())), 1..40)
    }

    /// Both indexes give the same answers after the same changes.
    pub(crate) fn agree(left: &dyn Index, right: &dyn Index, steps: &[(u8, u8, Option<u8>)]) {
        for &(batch, key, value) in steps {
            let mut changes = Changes::new();
            for n in 0..=batch % 3 {
                changes.insert(vec![key % 2, key, n], value.map(|v| vec![v; usize::from(n)]));
            }
            left.apply(&changes).unwrap();
            right.apply(&changes).unwrap();
            let prefix = [key % 2];
            let limit = usize::from(batch % 7);
            assert_eq!(left.get(&[key % 2, key, 0]).unwrap(), right.get(&[key % 2, key, 0]).unwrap());
            for after in [None, Some(&[key % 2, key, 0][..])] {
                assert_eq!(left.scan(&prefix, after, limit).unwrap(), right.scan(&prefix, after, limit).unwrap());
            }
        }
    }

    #[test]
    fn memory_behaves() {
        behaves(&MemoryIndex::default());
    }
}
