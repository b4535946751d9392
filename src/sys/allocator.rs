//! How the allocator is set up, and made to give back what it keeps free: jemalloc where the program is built with it, else
//! the C library's.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "mallopt, malloc_trim and a symbol of jemalloc's; each says why it is sound")
)]

/// What jemalloc reads before anything is allocated: an arena for each processor, since threads are many and short-lived; of
/// what a thread has freed only pieces of up to 16 KiB are kept for it (hyper reads into 8 KiB), and these are looked through
/// once in a megabyte that it allocates (by default sixteen times as often: every eighth request); pages with nothing in use
/// go back after 2 s, by a thread of jemalloc's own (its name is `jemalloc_bg_thd`), also while nobody allocates.
// SAFETY: jemalloc declares the symbol as `const char *` and only reads it: a pointer to a string that ends with NUL and lives
// for ever.
#[cfg(all(target_env = "gnu", feature = "jemalloc"))]
#[unsafe(export_name = "_rjem_malloc_conf")]
#[used]
static SETTINGS: &[u8; 126] =
    b"percpu_arena:percpu,lg_tcache_max:14,tcache_gc_incr_bytes:1048576,dirty_decay_ms:2000,muzzy_decay_ms:0,background_thread:true\0";

/// Sets the allocator up for buffers of bodies, which are large, many and short-lived, and for threads that are many and
/// mostly idle. To be called before there are threads.
///
/// * Few arenas: threads share what is free. By default each of up to eight for every processor keeps its own, as
///   allocators with a heap for each thread do: with some sixty threads in the blocking pool that was twice as much
///   memory as is in use.
/// * Buffers are taken from the arenas, and what is free at their ends is given back only where it is much: to map and
///   unmap each buffer costs a tenth of a cold pull in page faults.
#[cfg(all(target_env = "gnu", not(feature = "jemalloc")))]
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

/// Gives the system the pages back in which nothing is in use, wherever they lie. By itself the allocator gives back only
/// what is free at an arena's end, and one small record that lives on keeps megabytes before it. Takes milliseconds, in
/// which other threads may wait for memory: to be called now and then, on a thread that may block.
#[cfg(all(target_env = "gnu", not(feature = "jemalloc")))]
pub(crate) fn give_back() {
    // SAFETY: malloc_trim takes each arena's lock and touches only what nobody holds.
    unsafe { libc::malloc_trim(0) };
}

/// jemalloc has its settings from the start; another C library's allocator is not used: see the binary.
#[cfg(any(not(target_env = "gnu"), feature = "jemalloc"))]
pub(crate) fn set_up() {}

/// What is used in their place gives pages back by itself.
#[cfg(any(not(target_env = "gnu"), feature = "jemalloc"))]
pub(crate) fn give_back() {}

#[cfg(test)]
mod tests {
    #[cfg(all(target_env = "gnu", not(feature = "jemalloc")))]
    #[test]
    fn what_lies_between_things_in_use_goes_back() {
        const BUFFER: usize = 64 << 10;
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let mut buffers: Vec<Option<Vec<u8>>> = (0..2000).map(|_| Some(vec![1; BUFFER])).collect();
        for (n, buffer) in buffers.iter_mut().enumerate() {
            if n % 50 != 0 {
                *buffer = None;
            }
        }
        let before = resident();
        super::give_back();
        let after = resident();
        // Other tests take some meanwhile.
        assert!(after + 1000 * BUFFER < before, "{before} bytes before, {after} after");
        assert!(buffers.iter().flatten().all(|buffer| buffer.iter().all(|byte| *byte == 1)));
    }
}
