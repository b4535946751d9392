//! How many blobs are fetched from an upstream at once, and who is next: `max_connections`.
//!
//! What a client waits for goes before what nobody waits for, and the small before the large, so that the many small
//! blobs of images are not held up by the few large ones. Nobody waits for ever: who has waited long goes first.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Who has waited for so long goes before all others of its priority. Well before who wants a head gives up.
const LONG: Duration = Duration::from_secs(10);
/// What is taken for the size of what has not begun: less than what is left of most layers, so that these do not go before
/// it for as long as they come.
const UNKNOWN_SIZE: u64 = 8 << 20;
/// Of what nobody waits for, the one that has waited long gets one place in so many, whoever else waits. Not all: a thousand
/// blobs that are fetched ahead have all waited long, and clients would come after them.
const SHARE: u32 = 4;

/// For whom a place is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for the bytes.
    Waiting,
    /// They are fetched ahead, or to their end although nobody waits any more.
    Ahead,
}

/// Leave to fetch from an upstream; whoever has it gives it back by dropping it.
#[must_use = "the place is given back when it is dropped"]
pub struct Place(Arc<Places>);

/// The places of one upstream.
#[derive(Debug)]
pub(crate) struct Places {
    /// Held for a moment; nothing else is locked under it.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None: any number.
    limit: Option<usize>,
    held: usize,
    /// Of everybody who comes, to tell who was first.
    number: u64,
    waiting: Queue,
    ahead: Queue,
    /// Places that were given away since one was given to `ahead`.
    since_ahead: u32,
}

/// Those who wait for a place with one priority.
#[derive(Debug, Default)]
struct Queue {
    by_age: BTreeMap<u64, Waiter>,
    /// Size and number.
    by_size: BTreeSet<(u64, u64)>,
}

#[derive(Debug)]
struct Waiter {
    since: Instant,
    size: u64,
    call: oneshot::Sender<()>,
}

/// One who waits: dropped before it has its place, it leaves the queue, or gives back the place that was just meant for it.
struct Turn<'a> {
    places: &'a Arc<Places>,
    priority: Priority,
    number: u64,
    has_place: bool,
}

// === impl Places ===

impl Places {
    pub(crate) fn new(limit: Option<usize>) -> Arc<Self> {
        let state =
            State { limit, held: 0, number: 0, waiting: Queue::default(), ahead: Queue::default(), since_ahead: 0 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// From now on so many; those that are held beyond that are kept.
    pub(crate) fn set_limit(&self, limit: Option<usize>) {
        let mut state = self.state.lock();
        state.limit = limit;
        state.admit();
    }

    /// Waits for a place. `size`: bytes that are to be fetched, if that is known.
    pub(crate) async fn place(self: &Arc<Self>, priority: Priority, size: Option<u64>) -> Place {
        let (call, called) = oneshot::channel();
        let number = self
            .state
            .lock()
            .join(priority, Waiter { since: Instant::now(), size: size.unwrap_or(UNKNOWN_SIZE), call });
        let mut turn = Turn { places: self, priority, number, has_place: false };
        // It is always called: who waits is dropped from the queue by `turn` alone.
        let _ = called.await;
        turn.has_place = true;
        Place(Arc::clone(self))
    }

    /// A place, if one is free and nobody waits for it.
    pub(crate) fn try_place(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state.lock();
        if !state.has_room() {
            return None;
        }
        state.held += 1;
        Some(Place(Arc::clone(self)))
    }

    fn give_back(&self) {
        let mut state = self.state.lock();
        state.held -= 1;
        state.admit();
    }
}

// === impl State ===

impl State {
    /// Where there is room nobody waits.
    fn has_room(&self) -> bool {
        self.limit.is_none_or(|limit| self.held < limit)
    }

    fn queue(&mut self, priority: Priority) -> &mut Queue {
        match priority {
            Priority::Waiting => &mut self.waiting,
            Priority::Ahead => &mut self.ahead,
        }
    }

    fn join(&mut self, priority: Priority, waiter: Waiter) -> u64 {
        self.number += 1;
        let number = self.number;
        let queue = self.queue(priority);
        queue.by_size.insert((waiter.size, number));
        queue.by_age.insert(number, waiter);
        self.admit();
        number
    }

    /// Calls those who are next, as long as there is room.
    fn admit(&mut self) {
        while self.has_room()
            && let Some(next) = self.next(Instant::now())
        {
            self.held += 1;
            // Nobody there any more: its turn, which ends now, gives the place back.
            let _ = next.call.send(());
        }
    }

    fn next(&mut self, now: Instant) -> Option<Waiter> {
        let due = self.since_ahead + 1 >= SHARE && self.ahead.has_waited_long(now);
        if let Some(next) = if due { None } else { self.waiting.next(now) } {
            self.since_ahead = self.since_ahead.saturating_add(1);
            return Some(next);
        }
        let next = self.ahead.next(now)?;
        self.since_ahead = 0;
        Some(next)
    }
}

// === impl Queue ===

impl Queue {
    fn has_waited_long(&self, now: Instant) -> bool {
        self.by_age.first_key_value().is_some_and(|(_, waiter)| now.duration_since(waiter.since) >= LONG)
    }

    fn next(&mut self, now: Instant) -> Option<Waiter> {
        let oldest = *self.by_age.first_key_value()?.0;
        let smallest = self.by_size.first().map(|(_, number)| *number)?;
        self.remove(if self.has_waited_long(now) { oldest } else { smallest })
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.by_age.remove(&number)?;
        self.by_size.remove(&(waiter.size, number));
        Some(waiter)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.has_place {
            return;
        }
        let was_waiting = self.places.state.lock().queue(self.priority).remove(self.number).is_some();
        if !was_waiting {
            self.places.give_back();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}
