//! A lock that tests of schedules see: before it is taken they may let others go first.

use parking_lot::{Mutex, MutexGuard};

/// The lock.
#[derive(Debug, Default)]
pub(super) struct Gated<T>(Mutex<T>);

// === impl Gated ===

impl<T> Gated<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes the lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(test)]
        super::tests::gate::wait_for(|| !self.0.is_locked());
        self.0.lock()
    }

    /// Looks behind the lock, if nobody has it.
    #[cfg(test)]
    pub(super) fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.try_lock().map(|value| look(&value))
    }
}
