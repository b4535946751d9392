//! How the C library's allocator is set up.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "mallopt; the block says why it is sound"))]

/// Sets the allocator up for buffers of bodies, which are large, many and short-lived, and for threads that are many and
/// mostly idle. To be called before there are threads.
///
/// * Few arenas: threads share what is free. By default each of up to eight for every processor keeps its own, as
///   allocators with a heap for each thread do: with some sixty threads in the blocking pool that was twice as much
///   memory as is in use.
/// * Buffers are taken from the arenas, and what is free at their ends is given back only where it is much: to map and
///   unmap each buffer costs a tenth of a cold pull in page faults.
#[cfg(target_env = "gnu")]
pub(crate) fn set_up() {
    const LARGEST_BUFFER: i32 = 8 << 20;
    const KEPT: i32 = 16 << 20;
    const GROWN_BY: i32 = 1 << 20;
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let arenas = i32::try_from(2 * processors).unwrap_or(i32::MAX).clamp(4, 16);
    for (parameter, value) in [
        (libc::M_ARENA_MAX, arenas),
        (libc::M_MMAP_THRESHOLD, LARGEST_BUFFER),
        (libc::M_TRIM_THRESHOLD, KEPT),
        (libc::M_TOP_PAD, GROWN_BY),
    ] {
        // SAFETY: mallopt takes two numbers and changes the allocator's own settings, under its own lock; no memory that
        // has been handed out is touched, and no setting changes what an allocation promises.
        let known = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(known, 1, "mallopt refuses {parameter}");
    }
}

/// Another C library's is not used: see the binary.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn set_up() {}
