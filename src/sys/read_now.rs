//! Reading what is in memory of a file, without waiting for the disk.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "preadv2 into spare capacity; the blocks say why it is sound")
)]

use std::fs::File;

/// The bytes of `file` from `offset` on, at most `length`, as far as they are in the page cache; none if the first of them
/// is not, at the end of the file, where the file system cannot say (`RWF_NOWAIT`, preadv2(2)), and on every error: who
/// reads in the ordinary way learns of that. Does not block.
#[cfg(target_os = "linux")]
pub(crate) fn read_now(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    use std::os::fd::AsRawFd;

    let at = libc::off_t::try_from(offset).ok()?;
    let mut buffer = Vec::<u8>::with_capacity(length);
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: length };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the one part is the first `length` bytes of the
    // buffer's capacity, into which the kernel writes at most so many.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, at, libc::RWF_NOWAIT) };
    let read = usize::try_from(read).ok().filter(|read| (1..=length).contains(read))?;
    // SAFETY: the kernel has written so many bytes from the start of the buffer, and its capacity is at least that.
    unsafe { buffer.set_len(read) };
    Some(buffer)
}

/// Other systems do not say what would wait.
#[cfg(not(target_os = "linux"))]
pub(crate) fn read_now(_: &File, _: u64, _: usize) -> Option<Vec<u8>> {
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_was_written_a_moment_ago_is_in_memory() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        if let Some(bytes) = read_now(&file, 2, 4) {
            assert_eq!(bytes, b"2345");
            assert_eq!(read_now(&file, 8, 100).unwrap(), b"89", "as much as there is");
        }
        assert_eq!(read_now(&file, 10, 1), None, "the end");
        assert_eq!(read_now(&file, 0, 0), None);
        assert_eq!(read_now(&file, u64::MAX, 1), None);
    }
}
