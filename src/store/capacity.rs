//! The books: how many bytes the store holds, has promised and may hold. Everything that is added or removed passes
//! here, and the gauges follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use foldhash::HashMap;
use parking_lot::MutexGuard;

mod parked;
mod queue;

pub(super) use queue::{Answer, CHUNK, Round, Ticket, Want};

use queue::Queue;

use super::fs::Space;
use super::gated::Gated;
use super::order::{Order, Short};
use crate::clock::{NEVER_SET, Timeline};
use crate::config::Capacity;
use crate::metrics::Metrics;
use crate::oci::Digest;

const GIB: u64 = 1 << 30;
/// Of the oldest blobs, how many that are in use are passed over in the search for ones to evict.
const PASSED_OVER: usize = 4096;

/// The books of one store.
#[derive(Debug)]
pub(super) struct Books {
    /// May change while the books are kept.
    capacity: AtomicU64,
    /// What must stay free on the file system.
    floor: u64,
    /// What was free on it when it was last measured.
    free: AtomicU64,
    metrics: Metrics,
    timeline: Arc<Timeline>,
    state: Gated<State>,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// The time of the last use.
    latest: u32,
    /// The latest use that an earlier run has put down. If that is later than now, this clock or that one was wrong.
    ahead: u32,
    /// Bytes of the blobs in `order`.
    stored: u64,
    /// Bytes promised to running fills.
    reserved: u64,
    /// Of those, what the file system does not count as used yet.
    unallocated: u64,
    /// What fills have taken of the file system in all.
    allocated: u64,
    /// Of `reserved`, what fills have left that nobody goes on with for now.
    parked: u64,
    /// Bytes of removed files that a reader still holds.
    lingering: u64,
    /// Bytes of files that are nobody's and could not be removed.
    left: Arc<AtomicU64>,
    /// Open files, by digest and inode. As many as there are readers.
    held: HashMap<(Digest, u64), Held>,
    /// How many read or write a blob.
    busy: HashMap<Short, usize>,
    /// Who waits for room.
    queue: Queue,
}

#[derive(Debug, Default)]
struct Held {
    readers: usize,
    /// Removed, with this length.
    removed: Option<u64>,
}

/// Bytes promised to a fill; dropping it gives them back.
#[derive(Debug)]
pub(super) struct Reservation {
    books: Arc<Books>,
    /// None while it is not known.
    digest: Option<Digest>,
    bytes: u64,
    /// How much of `bytes` the file system still counts as free.
    unallocated: u64,
    /// Nobody goes on with the fill for now.
    parked: bool,
}

/// A reader of a file. While it lives the file's bytes are in the books, also when its name is gone.
#[derive(Debug)]
pub(super) struct Hold {
    books: Arc<Books>,
    digest: Digest,
    inode: u64,
}

/// What takes the room, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// Of blobs.
    pub(super) stored: u64,
    /// Of these, and of what downloads have left, which may go: nobody reads it or writes it.
    pub(super) removable: u64,
    /// Promised to downloads and pushes.
    pub(super) promised: u64,
    /// Of removed files that somebody still reads.
    pub(super) lingering: u64,
}

/// There is not enough room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    /// How many bytes are missing; none where others wait for them.
    pub(super) missing: u64,
}

// === impl Books ===

impl Books {
    /// Empty books for a file system of this size.
    pub(super) fn new(capacity: Capacity, space: Space, metrics: Metrics, timeline: Arc<Timeline>) -> Self {
        let capacity = capacity_on(capacity, space.total);
        metrics.store_capacity_bytes.set(signed(capacity));
        let state = State {
            order: Order::new(),
            latest: 0,
            ahead: 0,
            stored: 0,
            reserved: 0,
            unallocated: 0,
            allocated: 0,
            parked: 0,
            lingering: 0,
            left: Arc::default(),
            held: HashMap::default(),
            busy: HashMap::default(),
            queue: Queue::default(),
        };
        Self {
            capacity: AtomicU64::new(capacity),
            floor: floor(space.total),
            free: AtomicU64::new(space.free),
            metrics,
            timeline,
            state: Gated::new(state),
        }
    }

    /// The same, where so many bytes count beside what passes here.
    pub(super) fn with(self, left: Arc<AtomicU64>) -> Self {
        self.state.lock().left = left;
        self
    }

    /// Shows what has changed without passing here.
    pub(super) fn refresh(&self) {
        self.show(&self.state.lock());
    }

    /// What the store may hold.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// So much may be held from now on, of a file system of this size.
    pub(super) fn set_capacity(&self, capacity: Capacity, space: Space) {
        let capacity = capacity_on(capacity, space.total);
        self.capacity.store(capacity, Ordering::Relaxed);
        self.metrics.store_capacity_bytes.set(signed(capacity));
    }

    /// The file system was measured.
    pub(super) fn measured(&self, space: Space) {
        self.free.store(space.free, Ordering::Relaxed);
    }

    /// What may still be taken before something must go, as of the last measurement.
    pub(super) fn room(&self) -> u64 {
        let state = self.state.lock();
        let free = self.free.load(Ordering::Relaxed).saturating_sub(state.unallocated + self.floor);
        self.capacity().saturating_sub(state.used()).min(free)
    }

    /// What takes the room now.
    pub(super) fn taken(&self) -> Taken {
        let state = self.state.lock();
        Taken {
            stored: state.stored,
            removable: state.removable(),
            promised: state.reserved,
            lingering: state.lingering,
        }
    }

    /// What must stay free on the file system.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Promises `bytes` to a fill of `digest` (none: it is not known yet), if they fit now and nobody waits for them.
    pub(super) fn reserve(
        self: &Arc<Self>,
        digest: Option<&Digest>,
        bytes: u64,
        space: Space,
    ) -> Result<Reservation, Shortage> {
        let mut state = self.state.lock();
        self.fits(&state, bytes, space)?;
        let reservation = self.promise(&mut state, digest, bytes);
        self.show(&state);
        Ok(reservation)
    }

    fn promise(self: &Arc<Self>, state: &mut State, digest: Option<&Digest>, bytes: u64) -> Reservation {
        state.reserved += bytes;
        state.unallocated += bytes;
        if let Some(digest) = digest {
            state.begin(digest);
        }
        Reservation { books: self.clone(), digest: digest.copied(), bytes, unallocated: bytes, parked: false }
    }

    fn fits(&self, state: &State, bytes: u64, space: Space) -> Result<(), Shortage> {
        match self.lack(state, bytes, space) {
            0 if state.queue.is_empty() => Ok(()),
            missing => Err(Shortage { missing }),
        }
    }

    /// How many bytes must go before so many can be promised.
    fn lack(&self, state: &State, bytes: u64, space: Space) -> u64 {
        let over = state.used().saturating_add(bytes).saturating_sub(self.capacity());
        let short = bytes.saturating_add(state.unallocated + self.floor).saturating_sub(space.free);
        over.max(short)
    }

    /// The blobs that would go if `missing` bytes had to become free, in the order of [`Order::victims`]; none if there are
    /// not enough. Blobs that are being written again or read are passed over: removing the one is a waste, and the other
    /// frees nothing.
    pub(super) fn victims(&self, missing: u64) -> Vec<Short> {
        let (mut state, now) = self.at();
        state.order.place();
        let (mut found, mut freed, mut passed) = (Vec::new(), 0, 0);
        for (short, len) in state.order.victims(now) {
            if freed >= missing || passed >= PASSED_OVER {
                break;
            }
            if state.busy.contains_key(&short) {
                passed += 1;
            } else {
                found.push(short);
                freed += len;
            }
        }
        if freed >= missing { found } else { Vec::new() }
    }

    /// A blob is found on disk by a scan or in the index; it keeps its place in the order of use if it has one. A time in
    /// the future is kept as it is: it counts as now until the clock has come to it, or is believed.
    pub(super) fn found(&self, short: Short, len: u64, used: u32) {
        let mut state = self.state.lock();
        state.ahead = state.ahead.max(used);
        state.put(short, len, used, false);
        self.show(&state);
    }

    /// The same where it is not known when it was used: that is found out later, and until then it counts as now.
    pub(super) fn found_ageless(&self, short: Short, len: u64) {
        let (mut state, now) = self.at();
        let before = state.order.put_ageless(short, len, now).unwrap_or(0);
        state.stored = state.stored.saturating_sub(before) + len;
        self.show(&state);
    }

    /// A blob was opened and is used now. False if it is not in the books: it may have been removed since.
    pub(super) fn used(&self, digest: &Digest, len: u64) -> bool {
        let short = Short::from(digest);
        let (mut state, now) = self.at();
        let is_known = state.order.contains(&short);
        if is_known {
            state.put(short, len, now, true);
            self.show(&state);
        }
        is_known
    }

    /// The same of one that is not in the books, and cannot be removed just now.
    pub(super) fn used_first(&self, digest: &Digest, len: u64) {
        let (mut state, now) = self.at();
        state.put(Short::from(digest), len, now, true);
        self.show(&state);
    }

    /// A blob that is known is used now, without its file being opened. False if it is not known.
    pub(super) fn touch(&self, digest: &Digest) -> bool {
        let short = Short::from(digest);
        let (mut state, now) = self.at();
        state.order.touch(&short, now)
    }

    /// The blobs of these that are known are used now, in this order.
    pub(super) fn touch_all<'d>(&self, digests: impl IntoIterator<Item = &'d Digest>) {
        let (mut state, now) = self.at();
        for short in digests.into_iter().map(Short::from) {
            state.order.touch(&short, now);
        }
    }

    /// A file of a blob lost its name (removed, replaced or put into quarantine).
    pub(super) fn unlinked(&self, digest: &Digest, inode: u64, len: u64) {
        let mut state = self.state.lock();
        if let Some(held) = state.held.get_mut(&(*digest, inode))
            && held.removed.is_none()
        {
            held.removed = Some(len);
            state.lingering += len;
        }
        self.show(&state);
    }

    /// Whether somebody reads or writes this blob.
    pub(super) fn is_busy(&self, digest: &Digest) -> bool {
        self.state.lock().busy.contains_key(&Short::from(digest))
    }

    /// Looks at the clock: each jump is to be noticed before something goes for its age.
    pub(super) fn look_at_clock(&self) {
        drop(self.at());
    }

    /// Whether this blob never goes.
    pub(super) fn is_pinned(&self, short: &Short) -> bool {
        self.state.lock().order.is_pinned(short)
    }

    /// Whether this blob is in the books.
    pub(super) fn knows(&self, short: &Short) -> bool {
        self.state.lock().order.contains(short)
    }

    /// There is no file for this blob any more.
    pub(super) fn forget(&self, short: &Short) {
        let mut state = self.state.lock();
        if let Some(len) = state.order.remove(short) {
            state.stored = state.stored.saturating_sub(len);
        }
        state.queue.stuck.remove(short);
        self.show(&state);
    }

    /// How many bytes fills have taken of the file system so far.
    pub(super) fn allocated(&self) -> u64 {
        self.state.lock().allocated
    }

    /// A tag names this blob, or no longer does.
    pub(super) fn set_tagged(&self, digest: &Digest, tagged: bool) {
        self.state.lock().order.set_tagged(&Short::from(digest), tagged);
    }

    /// Counts a reader of an open file.
    pub(super) fn hold(self: &Arc<Self>, digest: &Digest, inode: u64) -> Hold {
        let mut state = self.state.lock();
        state.held.entry((*digest, inode)).or_default().readers += 1;
        state.begin(digest);
        Hold { books: self.clone(), digest: *digest, inode }
    }

    /// Runs with the order of use, for the scan and for writing it out.
    pub(super) fn with_order<T>(&self, f: impl FnOnce(&mut Order) -> T) -> T {
        f(&mut self.state.lock().order)
    }

    /// All bytes that the store answers for: blobs, promises, removed files that are still read, and what could not be removed.
    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> u64 {
        self.state.lock().used()
    }

    /// The state, and the time for the order of use: never one before the last use that is known, or what is used now
    /// would be the first to go.
    fn at(&self) -> (MutexGuard<'_, State>, u32) {
        let mut state = self.state.lock();
        let now = seconds(self.timeline.now());
        if now < state.latest {
            // The clock was set back. What was used meanwhile would pass for used just now until it is there again.
            let latest = state.latest;
            state.order.bound(now, latest);
        }
        if (1..NEVER_SET).contains(&state.latest) && now >= NEVER_SET {
            // What was used since the start would pass for half a century old.
            state.order.raise(NEVER_SET, now);
        }
        state.latest = now;
        if state.ahead > now && self.timeline.is_believed() {
            // The clock of an earlier run was wrong, and not this one.
            state.order.bound(now, u32::MAX);
            state.ahead = now;
        }
        let now = now.max(state.ahead);
        (state, now)
    }

    fn show(&self, state: &State) {
        self.metrics.store_bytes.set(signed(state.used()));
        self.metrics.store_blobs.set(signed(state.order.len() as u64));
    }
}

/// What a store may hold on a file system of `total` bytes.
pub(super) fn capacity_on(capacity: Capacity, total: u64) -> u64 {
    match capacity {
        Capacity::Bytes(bytes) => bytes,
        Capacity::Percent(percent) => total / 100 * u64::from(percent.min(100)),
        Capacity::Default => (100 * GIB).min(total / 2),
    }
}

/// The share of the file system that stays free: 5 %, at least 1 GiB, but never more than a tenth of a small one.
pub(super) fn floor(total: u64) -> u64 {
    (total / 20).max(GIB).min(total / 10)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Seconds since 1970; times out of range go to its ends.
pub(super) fn seconds(time: SystemTime) -> u32 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX))
}

// === impl State ===

impl State {
    fn used(&self) -> u64 {
        self.stored + self.reserved + self.lingering + self.left.load(Ordering::Relaxed)
    }

    /// Somebody reads or writes the blob.
    fn begin(&mut self, digest: &Digest) {
        *self.busy.entry(Short::from(digest)).or_default() += 1;
    }

    /// One fewer does.
    fn end(&mut self, digest: &Digest) {
        let short = Short::from(digest);
        if let Some(count) = self.busy.get_mut(&short) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(&short);
            }
        }
    }

    /// Bytes of all that may go: what is read or written may not, and what is stuck cannot; what fills have left may.
    fn removable(&self) -> u64 {
        let stuck = self.queue.stuck.iter().filter(|short| !self.busy.contains_key(short));
        let stays: u64 = self.busy.keys().chain(stuck).map(|short| self.order.removable_len(short)).sum();
        self.order.removable().saturating_sub(stays) + self.parked
    }

    fn put(&mut self, short: Short, len: u64, used: u32, touch: bool) {
        let before = self.order.put(short, len, used, touch).unwrap_or(0);
        self.stored = self.stored.saturating_sub(before) + len;
    }
}

// === impl Reservation ===

impl Reservation {
    /// How much is promised.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Promises more to the same fill, if it fits.
    pub(super) fn grow(&mut self, more: u64, space: Space) -> Result<(), Shortage> {
        let mut state = self.books.state.lock();
        self.books.fits(&state, more, space)?;
        state.reserved += more;
        state.unallocated += more;
        self.bytes += more;
        self.unallocated += more;
        self.books.show(&state);
        Ok(())
    }

    /// Takes over what was promised in addition.
    pub(super) fn add(&mut self, mut more: Self) {
        self.bytes += std::mem::take(&mut more.bytes);
        self.unallocated += std::mem::take(&mut more.unallocated);
    }

    /// The file system has taken so many more bytes off its free ones.
    pub(super) fn allocated(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unallocated);
        self.unallocated -= bytes;
        let mut state = self.books.state.lock();
        state.unallocated -= bytes;
        state.allocated += bytes;
    }

    /// The fill ends without being published, and its file, of this length, is read on: the rest is given back.
    pub(super) fn keep_only(&mut self, bytes: u64) {
        let mut state = self.books.state.lock();
        let back = self.bytes.saturating_sub(bytes);
        state.reserved -= back;
        self.bytes -= back;
        state.unallocated -= std::mem::take(&mut self.unallocated);
        self.books.show(&state);
    }

    /// The fill is published under this digest with this length: from promised to stored, in one step.
    pub(super) fn stored(mut self, digest: &Digest, len: u64) {
        let (mut state, now) = self.books.at();
        state.put(Short::from(digest), len, now, true);
        state.reserved -= std::mem::take(&mut self.bytes);
        state.unallocated -= std::mem::take(&mut self.unallocated);
        // Ends this borrow: dropping `self` takes the lock again, to end the fill and to show the sum.
        drop(state);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.books.state.lock();
        state.reserved -= self.bytes;
        state.unallocated -= self.unallocated;
        if self.parked {
            state.parked -= self.bytes;
        }
        if let Some(digest) = &self.digest {
            state.end(digest);
        }
        self.books.show(&state);
    }
}

// === impl Hold ===

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.books.state.lock();
        let key = (self.digest, self.inode);
        state.end(&self.digest);
        let Some(held) = state.held.get_mut(&key) else { return };
        held.readers -= 1;
        if held.readers == 0 {
            let removed = held.removed;
            state.held.remove(&key);
            state.lingering -= removed.unwrap_or(0);
            self.books.show(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::order::Claim;
    use super::*;
    use crate::clock::Clock;
    use crate::clock::twin::{Twin, system};
    use crate::oci::Algorithm;

    pub(super) const SPACE: Space = Space { total: 100 * GIB, free: 90 * GIB };

    pub(super) fn books(capacity: u64) -> Arc<Books> {
        books_by(capacity, system())
    }

    fn books_by(capacity: u64, clock: Arc<dyn Clock>) -> Arc<Books> {
        let timeline = Arc::new(Timeline::new(clock));
        Arc::new(Books::new(Capacity::Bytes(capacity), SPACE, Metrics::new().unwrap(), timeline))
    }

    pub(super) fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    #[test]
    fn capacity_follows_the_configuration() {
        let timeline = Arc::new(Timeline::new(system()));
        let metrics = Metrics::new().unwrap();
        let capacity = |c, total| Books::new(c, Space { total, free: 0 }, metrics.clone(), timeline.clone()).capacity();
        assert_eq!(capacity(Capacity::Percent(30), 1000 * GIB), 300 * GIB);
        assert_eq!(capacity(Capacity::Default, 1000 * GIB), 100 * GIB);
        assert_eq!(capacity(Capacity::Default, 100 * GIB), 50 * GIB);
        assert_eq!(capacity(Capacity::Bytes(7), 1), 7);
    }

    #[test]
    fn the_floor_suits_the_file_system() {
        assert_eq!(floor(1000 * GIB), 50 * GIB);
        assert_eq!(floor(16 * GIB), GIB);
        assert_eq!(floor(GIB), GIB / 10);
    }

    #[test]
    fn a_promise_counts_until_it_is_dropped_or_stored() {
        let books = books(100);
        let first = books.reserve(Some(&digest(1)), 60, SPACE).unwrap();
        assert_eq!(books.reserve(Some(&digest(2)), 60, SPACE).unwrap_err(), Shortage { missing: 20 });
        drop(first);
        assert_eq!(books.used_bytes(), 0);
        books.reserve(Some(&digest(2)), 60, SPACE).unwrap().stored(&digest(2), 50);
        assert_eq!(books.used_bytes(), 50);
        assert_eq!((books.metrics.store_bytes.get(), books.metrics.store_blobs.get()), (50, 1));
        books.forget(&Short::from(&digest(2)));
        assert_eq!((books.metrics.store_bytes.get(), books.metrics.store_blobs.get()), (0, 0));
    }

    #[test]
    fn a_full_file_system_leaves_its_floor_free() {
        let books = books(1000 * GIB);
        let space = Space { total: 100 * GIB, free: 5 * GIB + 100 };
        assert!(books.reserve(Some(&digest(1)), 101, space).is_err());
        let mut reservation = books.reserve(Some(&digest(1)), 60, space).unwrap();
        assert!(books.reserve(Some(&digest(2)), 60, space).is_err(), "what is promised is as good as gone");
        reservation.allocated(60);
        assert!(books.reserve(Some(&digest(2)), 60, space).is_ok(), "what is allocated is off the free bytes already");
    }

    #[test]
    fn room_is_what_both_the_capacity_and_the_file_system_leave() {
        let books = books(1000);
        assert_eq!(books.room(), 1000);
        let mut reservation = books.reserve(Some(&digest(1)), 60, SPACE).unwrap();
        assert_eq!(books.room(), 940, "what is promised is as good as taken");
        books.measured(Space { total: 100 * GIB, free: 5 * GIB + 100 });
        assert_eq!(books.room(), 40, "on the file system, too, whose floor stays free");
        reservation.allocated(60);
        books.measured(Space { total: 100 * GIB, free: 5 * GIB + 40 });
        assert_eq!(books.room(), 40, "what is allocated is off the free bytes already");
        books.measured(Space { total: 100 * GIB, free: GIB });
        assert_eq!(books.room(), 0);
    }

    #[test]
    fn a_removed_file_counts_until_its_last_reader_closes_it() {
        let books = books(100);
        books.used_first(&digest(1), 40);
        let holds = [books.hold(&digest(1), 7), books.hold(&digest(1), 7)];
        books.unlinked(&digest(1), 7, 40);
        books.forget(&Short::from(&digest(1)));
        assert_eq!(books.used_bytes(), 40);
        let [first, second] = holds;
        drop(first);
        assert_eq!(books.used_bytes(), 40);
        drop(second);
        assert_eq!(books.used_bytes(), 0);
    }

    #[test]
    fn an_age_in_the_future_keeps_nothing_for_ever() {
        let books = books(100);
        books.found(Short::from(&digest(1)), 10, u32::MAX);
        books.used_first(&digest(2), 10);
        books.with_order(Order::place);
        assert_eq!(books.victims(10), [Short::from(&digest(1))]);
    }

    #[test]
    fn what_is_read_or_written_is_no_victim() {
        let books = books(100);
        for n in 0..4 {
            books.used_first(&digest(n), 10);
        }
        let _reader = books.hold(&digest(0), 1);
        let _fill = books.reserve(Some(&digest(1)), 10, SPACE).unwrap();
        assert_eq!(books.victims(11), [2, 3].map(|n| Short::from(&digest(n))));
        assert_eq!(books.victims(10), [2].map(|n| Short::from(&digest(n))), "no more than needed");
        assert!(books.victims(21).is_empty(), "nothing goes if it would not be enough");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_wrong_does_not_decide_who_goes() {
        let clock = Twin::new();
        let books = books_by(100, clock.clone());
        let year = Duration::from_hours(365 * 24);
        clock.forward(year);
        books.used_first(&digest(1), 10);
        clock.back(year);
        books.used_first(&digest(2), 10);
        tokio::time::advance(Duration::from_hours(1)).await;
        books.used_first(&digest(3), 10);
        let unused_for = |time: Duration| {
            let claims = books.claim_unused(seconds(clock.now() - time), 10);
            let release = |claim: Claim| {
                books.release(&claim.short);
                claim.short
            };
            claims.into_iter().map(release).collect::<Vec<_>>()
        };
        assert_eq!(unused_for(Duration::from_mins(30)), [1, 2].map(|n| Short::from(&digest(n))));
        assert!(unused_for(Duration::from_mins(90)).is_empty());
        assert_eq!(books.victims(30), [1, 2, 3].map(|n| Short::from(&digest(n))), "by use, whatever the clock said");
    }

    #[tokio::test(start_paused = true)]
    async fn an_age_in_the_future_is_wrong_when_the_clock_is_believed() {
        let clock = Twin::new();
        let books = books_by(100, clock.clone());
        books.found(Short::from(&digest(1)), 10, u32::MAX);
        books.used_first(&digest(2), 10);
        tokio::time::advance(Duration::from_hours(1)).await;
        books.used_first(&digest(3), 10);
        let used = |n| books.with_order(|order| order.used(&Short::from(&digest(n)))).unwrap();
        assert_eq!([1, 2, 3].map(used), [seconds(clock.now()); 3], "from then on it grows old");
        assert_eq!(books.victims(30), [1, 2, 3].map(|n| Short::from(&digest(n))), "by use, whatever the clock said");
    }

    #[test]
    fn after_2106_the_order_of_use_stays() {
        let clock = Twin::new();
        let books = books_by(100, clock.clone());
        clock.set(UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) + 1_000_000));
        for n in 1..4 {
            books.used_first(&digest(n), 10);
        }
        books.used_first(&digest(1), 10);
        assert_eq!(books.victims(30), [2, 3, 1].map(|n| Short::from(&digest(n))));
    }
}
