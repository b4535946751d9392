//! A read-only mapping of a part of a file.
#![expect(unsafe_code, reason = "mmap, munmap and mincore; every block says why it is sound")]

use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Once};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags};
use tokio::time::Instant;

/// Pages that one mincore(2) asks about: of a megabyte.
const PAGES: usize = 257;

/// That mincore(2) is refused is said once.
static UNKNOWN: Once = Once::new();

/// A mapped range of a file, widened to whole pages.
pub(crate) struct Mapping {
    base: NonNull<c_void>,
    /// Bytes mapped.
    length: usize,
    /// Where the mapping begins in the file: `range.start`, rounded down to a page.
    offset: u64,
    /// The range that was asked for.
    range: Range<u64>,
    file: Arc<File>,
    /// When all of it was last found in memory.
    resident: Mutex<Option<Instant>>,
}

// SAFETY: the mapping is not bound to a thread, and is never written through: all access is by shared slices and by
// system calls. What else is in the struct is Send and Sync.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `range` of `file`, which need not be there yet.
    ///
    /// # Errors
    /// That the range is empty, or that address space or mappings are used up.
    pub(crate) fn new(file: Arc<File>, range: Range<u64>) -> io::Result<Self> {
        if range.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let page = rustix::param::page_size() as u64;
        let offset = range.start - range.start % page;
        // More than this no slice may have, which matters where addresses have 32 bits.
        let length = isize::try_from(range.end - offset).map_err(|_| io::ErrorKind::OutOfMemory)?.unsigned_abs();
        // SAFETY: the kernel chooses an address that nothing else has (no MAP_FIXED), so no Rust object is touched.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &*file, offset)?
        };
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, length, offset, range, file, resident: Mutex::new(None) })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The offset in the file of `bytes`, if they lie in this mapping.
    pub(crate) fn offset_of(&self, bytes: &[u8]) -> Option<u64> {
        if bytes.is_empty() {
            return None;
        }
        let within = bytes.as_ptr().addr().checked_sub(self.base.as_ptr().addr())?;
        let end = within.checked_add(bytes.len())?;
        (end <= self.length).then(|| self.offset + within as u64)
    }

    /// When the pages of `range`, which lies in what was asked for, were found in memory: now, or, of all of it, less than
    /// `fresh` ago, since many may ask for the same at the same time. None: some are not there.
    pub(crate) fn found(&self, range: &Range<u64>, fresh: Duration) -> Option<Instant> {
        let is_whole = *range == self.range;
        let known = if is_whole { *self.resident.lock() } else { None };
        if let Some(at) = known.filter(|at| at.elapsed() < fresh) {
            return Some(at);
        }
        self.is_resident(range).then(|| {
            let now = Instant::now();
            if is_whole {
                *self.resident.lock() = Some(now);
            }
            now
        })
    }

    /// Whether `range` lies in what was asked for, and all of its pages are in memory.
    pub(crate) fn is_resident(&self, range: &Range<u64>) -> bool {
        let page = rustix::param::page_size();
        let Some((first, bytes)) = self.pages(range, page) else { return false };
        let mut resident = [0_u8; PAGES];
        (0..bytes.div_ceil(page)).step_by(PAGES).all(|pages| {
            let asked = (bytes - pages * page).min(PAGES * page);
            // SAFETY: the address is a multiple of the page size within the mapping, so are all `asked` bytes after it
            // (`pages` has checked both), and the kernel writes one byte a page, at most PAGES, into `resident`.
            let answer = unsafe {
                libc::mincore(self.base.as_ptr().byte_add(first + pages * page), asked, resident.as_mut_ptr())
            };
            if answer != 0 {
                let error = io::Error::last_os_error();
                UNKNOWN.call_once(|| {
                    tracing::warn!(%error, "mincore does not say what is in memory: files are copied instead of sent by the kernel");
                });
            }
            answer == 0 && resident.iter().take(asked.div_ceil(page)).all(|flags| flags & 1 == 1)
        })
    }

    /// Whether the kernel says at all what is in memory: a filter of system calls may refuse it, as some container runtimes'
    /// do.
    pub(crate) fn can_be_asked(&self) -> io::Result<()> {
        let mut resident = 0_u8;
        // SAFETY: the mapping begins at a page, and is not empty; one byte of it is one page, for which the kernel writes one
        // byte.
        let answer = unsafe { libc::mincore(self.base.as_ptr(), 1, &raw mut resident) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Where the pages of `range` begin in the mapping, and how many bytes they are. None: it is empty, or not within
    /// what was asked for.
    fn pages(&self, range: &Range<u64>, page: usize) -> Option<(usize, usize)> {
        if range.is_empty() || range.start < self.range.start || range.end > self.range.end {
            return None;
        }
        let begin = usize::try_from(range.start - self.offset).ok()?;
        let end = usize::try_from(range.end - self.offset).ok()?;
        let first = begin - begin % page;
        Some((first, end - first))
    }

    /// The bytes of `range`, which the caller has asked [`Self::found`] about: they are in the file.
    pub(crate) fn slice(&self, range: &Range<u64>) -> &[u8] {
        let Some((first, length)) = self.pages(range, 1) else { return &[] };
        // SAFETY: `first` and `length` lie within the mapping, which lives as long as `self` and is no longer than a slice
        // may be. The bytes are initialised:
        // they were in the file when `found` said so. Nobody changes them meanwhile: who reads a blob's file that
        // grows is told of bytes when they are there, and from then on they are neither written again nor cut off, whatever is
        // written beside them, and whoever goes on with the file later. Another process with rights to the store
        // could break that; as nothing reads through the slice where the file is sent by the kernel, it would be seen
        // by sendfile(2) as a short file, and is an error there.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast::<u8>().add(first), length) }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("file", &self.file).field("range", &self.range).finish_non_exhaustive()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone, and no slice of it is left: each borrows from `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.length) } {
            tracing::warn!(%error, "a file cannot be unmapped; its address space is lost");
        }
    }
}
