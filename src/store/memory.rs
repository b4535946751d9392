//! What was read from the disk a moment ago, in memory, until somebody changes it there.
//!
//! Who reads asks before, and what was read is kept only if nobody has changed anything of the same shelf since; who
//! changes something tells when it is done, before anybody may rely on it. So what is remembered is never older than the
//! last change that was told. Bounded: from a full shelf goes what nobody has asked for again.

use std::hash::{BuildHasher, Hash};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use parking_lot::Mutex;

/// Parts with a lock of their own: that many workers hardly ever wait for each other.
const SHELVES: usize = 16;

/// The memory.
#[derive(Debug)]
pub(super) struct Memory<K, V> {
    shelves: [Mutex<Shelf<K, V>>; SHELVES],
    hasher: RandomState,
    /// Most entries of a shelf.
    most: usize,
}

#[derive(Debug)]
struct Shelf<K, V> {
    entries: HashTable<Entry<K, V>>,
    /// How often something of it was changed.
    changes: u64,
}

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    state: State,
}

/// What has become of an entry since the shelf was last looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was put there.
    New,
    /// It was asked for.
    Used,
    /// Nothing.
    Idle,
}

/// That nothing had been changed by then: to be taken before something is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before(u64);

// === impl Memory ===

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    /// Of at most about so many entries.
    pub(super) fn new(most: usize) -> Self {
        let empty = || Mutex::new(Shelf { entries: HashTable::new(), changes: 0 });
        Self { shelves: std::array::from_fn(|_| empty()), hasher: RandomState::default(), most: most.div_ceil(SHELVES) }
    }

    /// The shelf of a key, and its hash.
    fn place(&self, key: &K) -> (&Mutex<Shelf<K, V>>, u64) {
        let hash = self.hasher.hash_one(key);
        let [first, ..] = &self.shelves;
        // Not by the bits that the table goes by.
        let number = usize::try_from((hash >> 32) % SHELVES as u64).unwrap_or_default();
        (self.shelves.get(number).unwrap_or(first), hash)
    }

    /// What is remembered.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let (place, hash) = self.place(key);
        let mut held = place.lock();
        let entry = held.entries.find_mut(hash, |entry| entry.key == *key)?;
        entry.state = State::Used;
        Some(entry.value.clone())
    }

    /// To be taken before what is to be remembered is read.
    pub(super) fn before(&self, key: &K) -> Before {
        Before(self.place(key).0.lock().changes)
    }

    /// Remembers what was read, unless it may have been changed since.
    pub(super) fn keep(&self, before: Before, key: K, value: V) {
        let (place, hash) = self.place(&key);
        let mut held = place.lock();
        if held.changes != before.0 || self.most == 0 {
            return;
        }
        // To end a value may take time, and others wait for the shelf: what goes does so after the lock.
        let gone = held.take(hash, &key);
        let room = if held.entries.len() >= self.most { held.make_room(self.most) } else { Vec::new() };
        let entry = Entry { key, value, state: State::New };
        held.entries.insert_unique(hash, entry, |entry| self.hasher.hash_one(&entry.key));
        drop(held);
        drop((gone, room));
    }

    /// It has been changed.
    pub(super) fn forget(&self, key: &K) {
        let (place, hash) = self.place(key);
        let mut held = place.lock();
        held.changes += 1;
        let gone = held.take(hash, key);
        drop(held);
        drop(gone);
    }

    /// All may have been changed.
    pub(super) fn clear(&self) {
        for place in &self.shelves {
            let mut held = place.lock();
            held.changes += 1;
            let gone = std::mem::take(&mut held.entries);
            drop(held);
            drop(gone);
        }
    }

    /// Forgets what nobody has asked for since the last sweep.
    pub(super) fn sweep(&self) {
        for place in &self.shelves {
            let mut held = place.lock();
            let idle = |entry: &mut Entry<K, V>| std::mem::replace(&mut entry.state, State::Idle) == State::Idle;
            let gone: Vec<_> = held.entries.extract_if(idle).collect();
            drop(held);
            drop(gone);
        }
    }
}

// === impl Shelf ===

impl<K: Eq, V> Shelf<K, V> {
    fn take(&mut self, hash: u64, key: &K) -> Option<Entry<K, V>> {
        Some(self.entries.find_entry(hash, |entry| entry.key == *key).ok()?.remove().0)
    }

    /// Takes out what nobody has asked for again, however many pass by once; all, where that is next to nothing: what is asked
    /// for all the time is back at once.
    fn make_room(&mut self, most: usize) -> Vec<Entry<K, V>> {
        let once = |entry: &mut Entry<K, V>| std::mem::replace(&mut entry.state, State::Idle) != State::Used;
        let mut gone: Vec<_> = self.entries.extract_if(once).collect();
        if self.entries.len() > most / 8 * 7 {
            gone.extend(self.entries.drain());
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_since_it_was_read_is_not_kept() {
        let memory = Memory::new(100);
        let before = memory.before(&1);
        memory.keep(before, 1, "a");
        assert_eq!(memory.get(&1), Some("a"));
        memory.forget(&1);
        assert_eq!(memory.get(&1), None);
        memory.keep(before, 1, "a");
        assert_eq!(memory.get(&1), None, "it was read before the change");
        memory.keep(memory.before(&1), 1, "b");
        assert_eq!(memory.get(&1), Some("b"));
        let before = memory.before(&2);
        memory.clear();
        memory.keep(before, 2, "c");
        assert_eq!((memory.get(&1), memory.get(&2)), (None, None));
    }

    #[test]
    fn two_sweeps_forget_what_nobody_asks_for() {
        let memory = Memory::new(100);
        for key in [1, 2] {
            memory.keep(memory.before(&key), key, key);
        }
        memory.sweep();
        assert_eq!(memory.get(&1), Some(1), "it has just been kept");
        memory.sweep();
        assert_eq!((memory.get(&1), memory.get(&2)), (Some(1), None));
    }

    #[test]
    fn what_is_asked_for_again_stays_when_many_others_pass_by() {
        let memory = Memory::new(1600);
        for key in 0..400 {
            memory.keep(memory.before(&key), key, ());
        }
        for key in 400..4_000 {
            memory.keep(memory.before(&key), key, ());
            for popular in 0..400 {
                assert_eq!(memory.get(&popular), Some(()), "while {key} came");
            }
        }
    }

    #[test]
    fn it_is_bounded() {
        let memory = Memory::new(160);
        for key in 0..10_000 {
            memory.keep(memory.before(&key), key, ());
            assert_eq!(memory.get(&key), Some(()));
        }
        let kept: usize = memory.shelves.iter().map(|shelf| shelf.lock().entries.len()).sum();
        assert!((1..=160).contains(&kept), "{kept}");
    }
}
