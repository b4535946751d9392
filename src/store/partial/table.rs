//! Which fills have left something, and who goes on with what.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::PartialMark;
use crate::oci::Digest;
use crate::store::capacity::Reservation;
use crate::store::gated::Gated;
use crate::store::ranges::ByteRanges;

/// How long is waited for a fill that was given up: it syncs its file.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is shorter is not worth it.
pub(in crate::store) const LEAST: u64 = 1 << 20;

/// What fills have left.
#[derive(Debug)]
pub(in crate::store) struct Partials {
    /// The lock of the books comes after it.
    table: Gated<Table>,
    /// What dead processes have left is in the table, or removed. Until then nobody writes a map.
    are_known: AtomicBool,
    /// A claim has ended.
    ended: Notify,
    least: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    /// Of which somebody has the map, and whether that is about to end.
    claimed: HashMap<Digest, bool>,
    parked: HashMap<Digest, Box<Parked>>,
}

/// The right to write the map of this digest. Nobody else has it until this is dropped.
#[derive(Debug)]
pub(in crate::store) struct Claim {
    partials: Arc<Partials>,
    digest: Digest,
    /// What was claimed is in the table again.
    is_over: bool,
}

/// What a map says.
#[derive(Debug)]
pub(in crate::store) struct Left {
    /// The file.
    pub(in crate::store) path: PathBuf,
    /// How many bytes the blob has.
    pub(in crate::store) length: u64,
    /// What of them is there.
    pub(in crate::store) present: ByteRanges,
    pub(in crate::store) mark: PartialMark,
    /// When somebody wrote to it last, in seconds.
    pub(in crate::store) touched: u32,
}

/// The same, with what the file takes.
#[derive(Debug)]
pub(in crate::store) struct Parked {
    pub(in crate::store) left: Left,
    pub(in crate::store) reservation: Reservation,
}

// === impl Partials ===

impl Default for Partials {
    fn default() -> Self {
        Self {
            table: Gated::default(),
            are_known: AtomicBool::new(false),
            ended: Notify::new(),
            least: AtomicU64::new(LEAST),
        }
    }
}

impl Partials {
    /// How many bytes a blob has at least that is gone on with, how many of it are there at least, and are new between two
    /// checkpoints.
    pub(in crate::store) fn least(&self) -> u64 {
        self.least.load(Ordering::Relaxed)
    }

    /// Files of tests are small.
    #[cfg(test)]
    pub(in crate::store) fn set_least(&self, least: u64) {
        self.least.store(least, Ordering::Relaxed);
    }

    pub(super) fn are_known(&self) -> bool {
        self.are_known.load(Ordering::Acquire)
    }

    pub(super) fn set_known(&self) {
        self.are_known.store(true, Ordering::Release);
    }

    /// The map of a digest, if nobody has it and nothing is left of it.
    pub(in crate::store) fn claim(self: &Arc<Self>, digest: &Digest) -> Option<Claim> {
        if !self.are_known() {
            return None;
        }
        let mut table = self.table.lock();
        if table.parked.contains_key(digest) || table.claimed.contains_key(digest) {
            return None;
        }
        table.claimed.insert(*digest, false);
        Some(self.claimed(*digest))
    }

    fn claimed(self: &Arc<Self>, digest: Digest) -> Claim {
        Claim { partials: self.clone(), digest, is_over: false }
    }

    /// Takes what is left of a digest.
    pub(in crate::store) fn take(self: &Arc<Self>, digest: &Digest) -> Option<(Claim, Box<Parked>)> {
        let mut table = self.table.lock();
        let mut parked = table.parked.remove(digest)?;
        table.claimed.insert(*digest, false);
        // Under the lock: what counts as parked can be found in the table.
        parked.reservation.take_up(digest);
        Some((self.claimed(*digest), parked))
    }

    /// Takes what was touched before all others, if it is such.
    pub(super) fn take_oldest(self: &Arc<Self>, is_such: impl Fn(&Left) -> bool) -> Option<(Claim, Box<Parked>)> {
        let mut table = self.table.lock();
        let such = table.parked.iter().filter(|(_, parked)| is_such(&parked.left));
        let digest =
            such.min_by_key(|(digest, parked)| (parked.left.touched, digest.hex())).map(|(digest, _)| *digest)?;
        let mut parked = table.parked.remove(&digest)?;
        table.claimed.insert(digest, false);
        parked.reservation.take_up(&digest);
        Some((self.claimed(digest), parked))
    }

    /// Nobody goes on with it for now; its file takes as much as is reserved.
    pub(in crate::store) fn put_back(&self, mut claim: Claim, mut parked: Box<Parked>) {
        let mut table = self.table.lock();
        parked.reservation.park(parked.reservation.bytes());
        claim.is_over = true;
        table.claimed.remove(&claim.digest);
        // Nobody else can have put something there.
        if let Entry::Vacant(place) = table.parked.entry(claim.digest) {
            place.insert(parked);
        }
        drop(table);
        self.ended.notify_waiters();
    }

    /// Whoever has the map of this digest gives it up, as soon as that can be.
    pub(in crate::store) fn ends(&self, digest: &Digest) {
        if let Some(is_ending) = self.table.lock().claimed.get_mut(digest) {
            *is_ending = true;
        }
    }

    /// Waits for a fill of this digest that was given up a moment ago: what it leaves is not to be missed.
    pub(in crate::store) async fn settle(&self, digest: &Digest) {
        // An explored schedule sees threads, and no tasks that wait.
        #[cfg(test)]
        crate::store::tests::gate::wait_for(|| {
            self.table.peek(|table| table.claimed.get(digest).is_none_or(|is_ending| !is_ending)).unwrap_or(false)
        });
        let until = Instant::now() + PATIENCE;
        loop {
            let ended = self.ended.notified();
            let is_ending = self.table.lock().claimed.get(digest).copied().unwrap_or(false);
            if !is_ending || timeout_at(until, ended).await.is_err() {
                return;
            }
        }
    }

    /// The files of all that is left.
    pub(super) fn paths(&self) -> Vec<(Digest, PathBuf)> {
        self.table.lock().parked.iter().map(|(digest, parked)| (*digest, parked.left.path.clone())).collect()
    }

    /// A time that is later than now was that of a wrong clock.
    pub(super) fn bound(&self, now: u32) {
        for parked in self.table.lock().parked.values_mut() {
            parked.left.touched = parked.left.touched.min(now);
        }
    }

    /// When what is left of a digest was touched.
    #[cfg(test)]
    pub(in crate::store) fn touched(&self, digest: &Digest) -> Option<u32> {
        self.table.lock().parked.get(digest).map(|parked| parked.left.touched)
    }

    /// How many bytes are parked.
    #[cfg(test)]
    pub(in crate::store) fn parked_bytes(&self) -> u64 {
        self.table.lock().parked.values().map(|parked| parked.reservation.bytes()).sum()
    }
}

// === impl Claim ===

impl Claim {
    pub(in crate::store) fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_over {
            self.partials.table.lock().claimed.remove(&self.digest);
            self.partials.ended.notify_waiters();
        }
    }
}
