//! Parts of files as [`Bytes`]: who writes them to a plain socket can have the kernel send the file instead, without
//! copying (ADR 0008).
//!
//! A body that is served from a file yields slices of a mapping of that file. Nobody reads them: the connection's
//! stream recognises them by their address, and calls sendfile(2) with the file and the offset. Should anybody read
//! them all the same, the bytes are those of the file.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::sys::mapping::Mapping;

/// How long what was found in memory is taken to be there: longer than it takes to send it to all but slow clients.
const FRESH: Duration = Duration::from_secs(1);
/// The same of what another answer has looked for, so that half of that time is left to send it.
const LATELY: Duration = Duration::from_millis(500);

/// The parts of files that are on their way to one connection. One for each connection; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Outlet(Arc<Mutex<Vec<Weak<Handed>>>>);

/// A range of a file that can be handed to an [`Outlet`]'s connection. It costs address space, not memory.
#[derive(Debug)]
pub struct Part(Arc<Handed>);

/// What an outlet knows of a part.
struct Handed {
    /// Others may hand out the same.
    mapping: Arc<Mapping>,
    /// Is told that the file could not be read.
    unreadable: Box<dyn Fn() + Send + Sync>,
    /// When pages were last found in memory for somebody to send them.
    looked: Mutex<Instant>,
}

/// Where bytes are in a file.
#[derive(Debug)]
pub struct Place {
    /// Offset in the file.
    pub offset: u64,
    part: Arc<Handed>,
}

/// A slice of a part, as the owner of [`Bytes`].
struct Slice {
    part: Arc<Handed>,
    range: Range<u64>,
}

// === impl Outlet ===

impl Outlet {
    /// Prepares the bytes of `range` of `file`, which need not be there yet. `unreadable` is called when the file cannot
    /// be read while it is sent, which may be long after the part was dropped; it must not block.
    ///
    /// # Errors
    /// That the range is empty, or that address space or mappings are used up.
    pub fn part(
        &self,
        file: &Arc<File>,
        range: Range<u64>,
        unreadable: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Part> {
        Ok(self.part_of(Arc::new(Mapping::new(Arc::clone(file), range)?), unreadable))
    }

    /// The same of a mapping that others may hand out too.
    pub(crate) fn part_of(&self, mapping: Arc<Mapping>, unreadable: impl Fn() + Send + Sync + 'static) -> Part {
        let part = Handed { mapping, unreadable: Box::new(unreadable), looked: Mutex::new(Instant::now()) };
        let part = Arc::new(part);
        let mut parts = self.0.lock();
        parts.retain(|part| part.strong_count() > 0);
        parts.push(Arc::downgrade(&part));
        drop(parts);
        Part(part)
    }

    /// The file that these bytes stand for; none: they are nothing but bytes.
    pub fn find(&self, bytes: &[u8]) -> Option<Place> {
        self.0.lock().iter().find_map(|part| {
            let part = part.upgrade()?;
            let offset = part.mapping.offset_of(bytes)?;
            Some(Place { offset, part })
        })
    }
}

// === impl Part ===

impl Part {
    /// The bytes of `range` of the file, all of which are in it by now, if none of them has to be fetched from the
    /// disk: sending those would block. None too where `range` is not within the part.
    pub fn bytes(&self, range: Range<u64>) -> Option<Bytes> {
        let found = self.0.mapping.found(&range, LATELY)?;
        *self.0.looked.lock() = found;
        Some(Bytes::from_owner(Slice { part: Arc::clone(&self.0), range }))
    }
}

// === impl Place ===

impl Place {
    /// The file.
    pub fn file(&self) -> &Arc<File> {
        self.part.mapping.file()
    }

    /// Whether it is so long since the bytes were found in memory that they may have left it.
    pub fn is_stale(&self) -> bool {
        self.part.looked.lock().elapsed() > FRESH
    }

    /// Whether so many bytes from here on are in memory.
    pub fn is_resident(&self, length: usize) -> bool {
        self.part.mapping.is_resident(&(self.offset..self.offset + length as u64))
    }

    /// Tells whoever prepared the part that the file could not be read.
    pub fn unreadable(&self) {
        (self.part.unreadable)();
    }
}

// === impl Handed ===

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handed").field("mapping", &self.mapping).finish_non_exhaustive()
    }
}

// === impl Slice ===

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self.part.mapping.slice(&self.range)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    #[test]
    fn bytes_are_found_by_their_address_while_they_live() {
        let content: Vec<u8> = (0..=255).cycle().take(20_000).collect();
        let (outlet, other) = (Outlet::default(), Outlet::default());
        let part = outlet.part(&file(&content), 5_000..20_000, || ()).unwrap();
        let bytes = part.bytes(6_000..7_000).unwrap();
        assert_eq!(outlet.find(&bytes).unwrap().offset, 6_000);
        assert_eq!(outlet.find(&bytes[10..]).unwrap().offset, 6_010);
        assert!(other.find(&bytes).is_none(), "another connection's");
        assert!(outlet.find(&content).is_none(), "the same content, but not of the file");
        assert_eq!(bytes, content[6_000..7_000], "who reads them reads the file");
        drop(part);
        assert!(outlet.find(&bytes).is_some(), "bytes keep their part");
        drop(bytes);
        assert!(outlet.part(&file(&content), 0..1, || ()).unwrap().bytes(0..1).is_some());
        assert_eq!(outlet.0.lock().len(), 1, "what is gone is forgotten");
    }

    #[test]
    fn what_is_outside_is_refused() {
        let outlet = Outlet::default();
        let file = file(&[7; 9_000]);
        assert!(outlet.part(&file, 3..3, || ()).is_err());
        let part = outlet.part(&file, 4_096..8_192, || ()).unwrap();
        for range in [0..4_096, 4_095..4_097, 8_191..8_193, 8_192..9_000, 5_000..5_000] {
            assert!(part.bytes(range.clone()).is_none(), "{range:?}");
        }
        assert_eq!(part.bytes(8_191..8_192).unwrap(), [7][..]);
    }

    #[test]
    fn a_part_may_be_ahead_of_the_file() {
        let file = file(&[1; 10]);
        let outlet = Outlet::default();
        let part = outlet.part(&file, 0..1 << 30, || ()).unwrap();
        assert!(part.bytes(1 << 20..2 << 20).is_none(), "nothing there to be sent");
        (&*file).write_all(&[2; 10]).unwrap();
        assert_eq!(part.bytes(5..15).unwrap(), [[1; 5], [2; 5]].concat());
    }

    #[test]
    fn that_a_file_is_unreadable_is_told() {
        let (outlet, told) = (Outlet::default(), Arc::new(AtomicBool::new(false)));
        let tell = Arc::clone(&told);
        let part = outlet.part(&file(b"content"), 0..7, move || tell.store(true, Ordering::Relaxed)).unwrap();
        let bytes = part.bytes(0..7).unwrap();
        drop(part);
        assert!(!told.load(Ordering::Relaxed));
        outlet.find(&bytes).unwrap().unreadable();
        assert!(told.load(Ordering::Relaxed));
    }
}
