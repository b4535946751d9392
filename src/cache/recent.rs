//! A bounded memory of what happened a moment ago: negative answers, failed checks, tags seen by HEAD.

use std::hash::Hash;
use std::time::Duration;

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Remembers values for a fixed time, at most so many of them.
pub(super) struct Recent<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
    lifetime: Duration,
    capacity: usize,
}

// === impl Recent ===

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// An empty memory of `capacity` entries that each last for `lifetime`.
    pub(super) fn new(lifetime: Duration, capacity: usize) -> Self {
        Self { entries: Mutex::default(), lifetime, capacity }
    }

    /// What was remembered under `key`, if it is recent.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock();
        let (since, value) = entries.get(key)?;
        (since.elapsed() < self.lifetime).then(|| value.clone())
    }

    /// Remembers. When full, what has expired makes room, and if nothing has, the whole memory is dropped: it only
    /// ever saves a question.
    pub(super) fn insert(&self, key: K, value: V) {
        let mut entries = self.entries.lock();
        if entries.len() >= self.capacity {
            entries.retain(|_, (since, _)| since.elapsed() < self.lifetime);
            if entries.len() >= self.capacity {
                entries.clear();
            }
        }
        entries.insert(key, (Instant::now(), value));
    }

    /// Forgets.
    pub(super) fn remove(&self, key: &K) {
        self.entries.lock().remove(key);
    }

    /// Forgets every entry that `unwanted` accepts.
    pub(super) fn forget(&self, unwanted: impl Fn(&K) -> bool) {
        self.entries.lock().retain(|key, _| !unwanted(key));
    }

    /// Takes out every recent entry that `wanted` accepts.
    pub(super) fn take(&self, wanted: impl Fn(&K, &V) -> bool) -> Vec<(K, V)> {
        let mut entries = self.entries.lock();
        entries
            .extract_if(|key, (since, value)| since.elapsed() < self.lifetime && wanted(key, value))
            .map(|(key, (_, value))| (key, value))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn forgets_in_time_and_stays_bounded() {
        let recent = Recent::new(Duration::from_secs(1), 2);
        recent.insert(1, 'a');
        assert_eq!(recent.get(&1), Some('a'));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(recent.get(&1), None, "a second is over");
        for key in 0..100 {
            recent.insert(key, 'b');
            assert!(recent.entries.lock().len() <= 2, "never more than its capacity");
        }
    }
}
