//! Asking the kernel to begin writing a part of a file to the disk.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "sync_file_range; the block says why it is sound"))]

use std::fs::File;
use std::ops::Range;

/// Begins to write out what is dirty in that range, and does not wait for it. Nothing is promised by it, and nothing is
/// reported: an error of the disk is left for the next fsync(2) to tell (`SYNC_FILE_RANGE_WRITE` alone does not take it
/// away, see `sync_file_range(2)`).
#[cfg(target_os = "linux")]
pub(crate) fn begin(file: &File, range: Range<u64>) {
    use std::os::fd::AsRawFd;

    let (Ok(from), Ok(length)) = (i64::try_from(range.start), i64::try_from(range.end.saturating_sub(range.start)))
    else {
        return;
    };
    // Zero would mean: to the end of the file.
    if length > 0 {
        // SAFETY: the descriptor is open for as long as `file` is borrowed, the other arguments are numbers, and no
        // memory of this process is read or written.
        let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), from, length, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

/// Other systems write out when they like.
#[cfg(not(target_os = "linux"))]
pub(crate) fn begin(_: &File, _: Range<u64>) {}
