//! Demand: what the readers of a fill still want of it, so that bytes are fetched where somebody waits for them.
//!
//! A reader says once which part it wants, and then only moves a mark; the fill looks when readers come and go, and when
//! one of its requests upstream has ended. Nothing here decides anything: [`super::plan`] does.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::ByteRanges;

/// The end of what somebody wants of a blob whose length is not known.
pub(super) const OPEN: u64 = u64::MAX;
/// More parts than this are not told apart in the sum of what was asked for: it saves a policy from being exact, not a byte
/// from being right.
const TOLD_APART: usize = 4096;

/// What the readers of one fill want.
#[derive(Debug, Default)]
pub(super) struct Demand {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Answers that are being sent, or about to be.
    readers: usize,
    next: u64,
    /// In the order in which they came.
    wants: BTreeMap<u64, Arc<Mark>>,
    /// All that was asked for in parts.
    asked: ByteRanges,
    /// Somebody has asked for all of it.
    whole: bool,
    /// Nobody is served any more.
    shut: bool,
}

/// How far a reader is, and where it ends.
#[derive(Debug)]
struct Mark {
    at: AtomicU64,
    end: u64,
}

/// What there is at a moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// How many read.
    pub(super) readers: usize,
    /// What each of them has not read yet, in the order in which they came.
    pub(super) wants: Vec<Range<u64>>,
    /// Bytes that were asked for in parts, each once.
    pub(super) asked: u64,
    /// Somebody has asked for all of it.
    pub(super) whole: bool,
    /// Somebody has asked for something, who may have left.
    pub(super) ever: bool,
}

/// An answer whose body may not have begun. Dropping the last one of a fill tells it that nobody reads.
#[derive(Debug)]
pub(super) struct Seat(Arc<Demand>);

/// A part that is wanted until this is dropped.
#[derive(Debug)]
pub(super) struct Want {
    demand: Arc<Demand>,
    number: u64,
    mark: Arc<Mark>,
}

// === impl Demand ===

impl Demand {
    /// What is wanted now.
    pub(super) fn now(&self) -> Wanted {
        let state = self.state.lock();
        let ranges = state.wants.values().map(|mark| mark.at.load(Ordering::Relaxed)..mark.end);
        Wanted {
            readers: state.readers,
            wants: ranges.filter(|range| range.start < range.end).collect(),
            asked: state.asked.total(),
            whole: state.whole,
            ever: state.next > 0,
        }
    }

    /// Nobody is served any more who comes from here on.
    pub(super) fn shut(&self) {
        self.state.lock().shut = true;
    }

    /// The same, if nobody reads. `first` is done before anybody can know.
    pub(super) fn shut_if_unread(&self, first: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        if state.readers == 0 && !state.shut {
            first();
            state.shut = true;
        }
        state.shut
    }

    /// Whether nobody is served any more who comes now.
    pub(super) fn is_shut(&self) -> bool {
        self.state.lock().shut
    }

    /// Waits until a reader comes or goes; one who did so since the last time counts.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

// === impl Seat ===

impl Seat {
    /// Somebody reads. None: the fill is about to end without being whole.
    pub(super) fn take(demand: &Arc<Demand>) -> Option<Self> {
        let mut state = demand.state.lock();
        if state.shut {
            return None;
        }
        state.readers += 1;
        drop(state);
        demand.changed.notify_one();
        Some(Self(Arc::clone(demand)))
    }

    /// It wants this part of the blob; none: all of it.
    pub(super) fn want(&self, part: Option<&Range<u64>>) -> Want {
        let demand = Arc::clone(&self.0);
        let range = part.cloned().unwrap_or(0..OPEN);
        let mark = Arc::new(Mark { at: AtomicU64::new(range.start), end: range.end });
        let mut state = demand.state.lock();
        let number = state.next;
        state.next += 1;
        state.wants.insert(number, Arc::clone(&mark));
        if part.is_none() {
            state.whole = true;
        } else if state.asked.len() < TOLD_APART {
            state.asked.insert(range);
        }
        drop(state);
        demand.changed.notify_one();
        Want { demand, number, mark }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.state.lock().readers -= 1;
        self.0.changed.notify_one();
    }
}

// === impl Want ===

impl Want {
    /// All before `at` has been read.
    pub(super) fn reached(&self, at: u64) {
        self.mark.at.fetch_max(at, Ordering::Relaxed);
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        self.demand.state.lock().wants.remove(&self.number);
        self.demand.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_come_read_on_and_go() {
        let demand = Arc::new(Demand::default());
        assert_eq!(demand.now(), Wanted::default());
        assert!(!demand.now().ever);
        let seat = Seat::take(&demand).unwrap();
        assert!(!demand.shut_if_unread(|| unreachable!()), "somebody reads");
        demand.changed().await;
        let (first, second) = (seat.want(Some(&(100..200))), seat.want(Some(&(150..300))));
        demand.changed().await;
        let now = demand.now();
        assert_eq!((now.readers, now.asked, now.whole), (1, 200, false), "what two want counts once");
        assert_eq!(now.wants, [100..200, 150..300]);
        first.reached(180);
        first.reached(120);
        second.reached(300);
        assert_eq!(demand.now().wants, vec![180..200], "who has all of it wants nothing");
        drop(seat);
        demand.changed().await;
        drop((first, second));
        let left = demand.now();
        assert_eq!((left.readers, left.wants.len(), left.asked), (0, 0, 200), "that it was asked for stays known");
        assert!(left.ever);
        let first = || assert!(demand.state.try_lock().is_none(), "nobody can come before it is done");
        assert!(demand.shut_if_unread(first) && demand.is_shut());
        assert!(Seat::take(&demand).is_none(), "who comes then begins anew");
    }

    #[test]
    fn all_of_it_is_wanted_from_the_start_on() {
        let demand = Arc::new(Demand::default());
        let seat = Seat::take(&demand).unwrap();
        let want = seat.want(None);
        want.reached(7);
        let now = demand.now();
        assert!(now.whole);
        assert_eq!(now.wants, vec![7..OPEN]);
        drop(want);
        assert!(demand.now().whole, "also when who asked has left");
    }
}
