//! A test whose threads take turns runs faster where they share a processor: none has to be woken on another one.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Processors that are shared out; on more the scheduler has room enough.
const SHARED_OUT: usize = 16;

static TAKEN: [AtomicBool; SHARED_OUT] = [const { AtomicBool::new(false) }; SHARED_OUT];

/// This thread, and those that it makes, have a processor that no other such test has; until it is dropped, on the same
/// thread.
#[derive(Debug)]
pub(super) struct OneCpu {
    number: usize,
    before: CpuSet,
}

impl OneCpu {
    /// None where none is left.
    pub(super) fn take() -> Option<Self> {
        let before = sched_getaffinity(None).ok()?;
        let take = |number: &usize| before.is_set(*number) && !TAKEN[*number].swap(true, Ordering::SeqCst);
        let number = (0..SHARED_OUT).find(take)?;
        let mut only = CpuSet::new();
        only.set(number);
        let own = Self { number, before };
        sched_setaffinity(None, &only).ok()?;
        Some(own)
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.before);
        TAKEN[self.number].store(false, Ordering::SeqCst);
    }
}
