//! Which fills have left something, and who goes on with what.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::shelf::Shelf;
use super::{Map, PartialMark};
use crate::oci::Digest;
use crate::store::capacity::Reservation;
use crate::store::gated::Gated;
use crate::store::ranges::ByteRanges;

/// How long is waited for a fill that was given up, in milliseconds: it syncs its file.
const PATIENCE: u64 = 5_000;
/// What is shorter is not worth it.
pub(in crate::store) const LEAST: u64 = 1 << 20;
/// Of how many blobs something is left at most: each is two files, which a start reads and looks at before it listens.
const MOST: usize = 1024;

/// What fills have left.
#[derive(Debug)]
pub(in crate::store) struct Partials {
    /// The lock of the books comes after it.
    table: Gated<Table>,
    /// What dead processes have left is in the table, or removed. Until then nobody writes a map.
    are_known: AtomicBool,
    /// A claim has ended.
    ended: Notify,
    /// Since when it could not be found out; held while it is tried.
    pub(super) unknown_since: Gated<Option<Instant>>,
    least: AtomicU64,
    most: AtomicUsize,
    /// In milliseconds.
    patience: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    /// Of which somebody has the map.
    claimed: HashMap<Digest, Claimed>,
    parked: Shelf,
    /// What could not be removed. It counts until it is, and until then nobody has the map of its digest: the next attempt
    /// would take it for the old one.
    stuck: HashMap<Digest, Option<Stuck>>,
}

/// What somebody has.
#[derive(Debug, Default)]
struct Claimed {
    /// The file. None: there is none yet.
    path: Option<PathBuf>,
    mark: PartialMark,
    /// The map, if it is being written.
    map: Weak<Map>,
    /// That is about to end.
    is_ending: bool,
    /// It was removed by command, and is not kept when it is given back.
    is_doomed: bool,
}

/// What of a digest there was at some time.
#[derive(Debug)]
pub(in crate::store) struct Seen {
    pub(in crate::store) digest: Digest,
    /// No other of the same digest ever has this file.
    pub(super) path: PathBuf,
    pub(in crate::store) mark: PartialMark,
    /// When somebody wrote to it last, in seconds. None: somebody has it.
    pub(in crate::store) touched: Option<u32>,
    /// What its file takes, if nobody has it.
    pub(super) bytes: u64,
}

/// What has become of it since.
pub(super) enum Since {
    /// Nobody else has it now.
    Taken(Claim, Box<Parked>),
    /// Somebody has it, perhaps with this map, and will not keep it.
    Doomed(Option<Arc<Map>>),
    /// It is not there any more, or somebody has it and may keep it.
    Untouched,
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

/// A file that is nobody's any more and is still there, with what it takes.
#[derive(Debug)]
pub(super) struct Stuck {
    pub(super) path: PathBuf,
    pub(super) reservation: Reservation,
}

// === impl Partials ===

impl Default for Partials {
    fn default() -> Self {
        Self {
            table: Gated::default(),
            are_known: AtomicBool::new(false),
            ended: Notify::new(),
            unknown_since: Gated::default(),
            least: AtomicU64::new(LEAST),
            most: AtomicUsize::new(MOST),
            patience: AtomicU64::new(PATIENCE),
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

    /// Who is waited for may wait for who waits, where one thread runs at a time.
    #[cfg(test)]
    pub(in crate::store) fn set_patience(&self, patience: Duration) {
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.patience.store(patience, Ordering::Relaxed);
    }

    /// Tests have few.
    #[cfg(test)]
    pub(in crate::store) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    pub(super) fn are_known(&self) -> bool {
        self.are_known.load(Ordering::Acquire)
    }

    pub(super) fn set_known(&self) {
        self.are_known.store(true, Ordering::Release);
    }

    /// The map of a digest, if nobody has it and nothing is left of it.
    pub(in crate::store) fn claim(self: &Arc<Self>, digest: &Digest) -> Option<Claim> {
        if self.are_known() { self.claim_found(digest) } else { None }
    }

    /// The same while it is not known yet what is left.
    pub(super) fn claim_found(self: &Arc<Self>, digest: &Digest) -> Option<Claim> {
        let mut table = self.table.lock();
        if table.parked.get(digest).is_some() || table.claimed.contains_key(digest) || table.stuck.contains_key(digest)
        {
            return None;
        }
        table.claimed.insert(*digest, Claimed::default());
        Some(self.claimed(*digest))
    }

    fn claimed(self: &Arc<Self>, digest: Digest) -> Claim {
        Claim { partials: self.clone(), digest, is_over: false }
    }

    /// Takes what is left of a digest.
    pub(in crate::store) fn take(self: &Arc<Self>, digest: &Digest) -> Option<(Claim, Box<Parked>)> {
        self.take_from(&mut self.table.lock(), digest)
    }

    /// Takes what was touched before all others; none if that was not before `before`.
    pub(super) fn take_oldest(self: &Arc<Self>, before: Option<u32>) -> Option<(Claim, Box<Parked>)> {
        let mut table = self.table.lock();
        let (touched, digest) = table.parked.oldest()?;
        if before.is_some_and(|before| touched >= before) {
            return None;
        }
        self.take_from(&mut table, &digest)
    }

    /// The same where there are more than may be.
    pub(super) fn take_surplus(self: &Arc<Self>) -> Option<(Claim, Box<Parked>)> {
        let mut table = self.table.lock();
        if table.parked.len() <= self.most.load(Ordering::Relaxed) {
            return None;
        }
        let (_, digest) = table.parked.oldest()?;
        self.take_from(&mut table, &digest)
    }

    fn take_from(self: &Arc<Self>, table: &mut Table, digest: &Digest) -> Option<(Claim, Box<Parked>)> {
        let mut parked = table.parked.take(digest)?;
        let Left { path, mark, .. } = &parked.left;
        table.claimed.insert(*digest, Claimed { path: Some(path.clone()), mark: mark.clone(), ..Claimed::default() });
        // Under the lock: what counts as parked can be found in the table.
        parked.reservation.take_up(digest);
        Some((self.claimed(*digest), parked))
    }

    /// Takes what was seen, if it is still there and nobody has it. If somebody has it, that is not kept, with `dooms`.
    pub(super) fn take_seen(self: &Arc<Self>, seen: &Seen, dooms: bool) -> Since {
        let mut table = self.table.lock();
        let is_it = |parked: &Parked| parked.left.path == seen.path;
        if table.parked.get(&seen.digest).is_some_and(is_it) {
            let taken = self.take_from(&mut table, &seen.digest);
            return taken.map_or(Since::Untouched, |(claim, parked)| Since::Taken(claim, parked));
        }
        match table.claimed.get_mut(&seen.digest) {
            Some(claimed) if dooms && claimed.path.as_ref() == Some(&seen.path) => {
                claimed.is_doomed = true;
                Since::Doomed(claimed.map.upgrade())
            }
            _ => Since::Untouched,
        }
    }

    /// Somebody writes a map for this file. Whether it is not to be kept.
    pub(super) fn has_map(&self, digest: &Digest, path: &Path, map: Weak<Map>) -> bool {
        let mut table = self.table.lock();
        let Some(claimed) = table.claimed.get_mut(digest) else { return false };
        (claimed.path, claimed.map) = (Some(path.to_owned()), map);
        claimed.is_doomed
    }

    /// What is known of this file now.
    pub(super) fn remember(&self, digest: &Digest, path: &Path, mark: &PartialMark) {
        let mut table = self.table.lock();
        if let Some(claimed) = table.claimed.get_mut(digest).filter(|claimed| claimed.path.as_deref() == Some(path)) {
            claimed.mark = mark.clone();
        }
    }

    /// Nobody goes on with it for now; its file takes as much as is reserved.
    ///
    /// # Errors
    /// It was removed by command meanwhile, and is to go.
    pub(in crate::store) fn put_back(
        &self,
        mut claim: Claim,
        mut parked: Box<Parked>,
    ) -> Result<(), (Claim, Box<Parked>)> {
        let mut table = self.table.lock();
        if let Some(claimed) = table.claimed.get_mut(&claim.digest).filter(|claimed| claimed.is_doomed) {
            claimed.is_ending = true;
            return Err((claim, parked));
        }
        parked.reservation.park(parked.reservation.bytes());
        claim.is_over = true;
        table.claimed.remove(&claim.digest);
        // Nobody else can have put something there.
        table.parked.put(claim.digest, parked);
        drop(table);
        self.ended.notify_waiters();
        Ok(())
    }

    /// Its map or its file (with what that takes) could not be removed.
    pub(super) fn set_stuck(&self, mut claim: Claim, mut stuck: Option<Stuck>) {
        let mut table = self.table.lock();
        if let Some(Stuck { reservation, .. }) = &mut stuck {
            reservation.leave();
        }
        claim.is_over = true;
        table.claimed.remove(&claim.digest);
        table.stuck.insert(claim.digest, stuck);
        drop(table);
        self.ended.notify_waiters();
    }

    /// Takes what could not be removed, to try it again.
    pub(super) fn take_stuck(self: &Arc<Self>) -> Vec<(Claim, Option<Stuck>)> {
        let mut table = self.table.lock();
        let stuck = std::mem::take(&mut table.stuck);
        table.claimed.extend(stuck.keys().map(|digest| (*digest, Claimed::default())));
        stuck.into_iter().map(|(digest, stuck)| (self.claimed(digest), stuck)).collect()
    }

    /// Whoever has the map of this digest gives it up, as soon as that can be.
    pub(in crate::store) fn ends(&self, digest: &Digest) {
        if let Some(claimed) = self.table.lock().claimed.get_mut(digest) {
            claimed.is_ending = true;
        }
    }

    /// Waits for a fill of this digest that was given up a moment ago: what it leaves is not to be missed.
    pub(in crate::store) async fn settle(&self, digest: &Digest) {
        // An explored schedule sees threads, and no tasks that wait.
        #[cfg(test)]
        crate::store::tests::gate::wait_for(|| {
            self.table.peek(|table| table.claimed.get(digest).is_none_or(|it| !it.is_ending)).unwrap_or(false)
        });
        let until = Instant::now() + Duration::from_millis(self.patience.load(Ordering::Relaxed));
        loop {
            let ended = self.ended.notified();
            let is_ending = self.table.lock().claimed.get(digest).is_some_and(|claimed| claimed.is_ending);
            if !is_ending || timeout_at(until, ended).await.is_err() {
                return;
            }
        }
    }

    /// The files of all that is left.
    pub(super) fn paths(&self) -> Vec<(Digest, PathBuf)> {
        self.table.lock().parked.iter().map(|(digest, parked)| (*digest, parked.left.path.clone())).collect()
    }

    /// All that is left, and all that somebody has with its file. It may be another the moment after: who chooses of it takes
    /// time, and others wait for the table.
    pub(super) fn look(&self) -> Vec<Seen> {
        let table = self.table.lock();
        let parked = table.parked.iter().map(|(digest, parked)| Seen::of(digest, parked));
        let claimed = table.claimed.iter().filter_map(|(digest, Claimed { path, mark, .. })| {
            Some(Seen { digest: *digest, path: path.clone()?, mark: mark.clone(), touched: None, bytes: 0 })
        });
        parked.chain(claimed).collect()
    }

    /// A time that is later than now was that of a wrong clock.
    pub(super) fn bound(&self, now: u32) {
        self.table.lock().parked.bound(now);
    }

    /// Whether nobody has the table.
    #[cfg(test)]
    pub(in crate::store) fn are_free(&self) -> bool {
        self.table.peek(|_| ()).is_some()
    }

    /// When what is left of a digest was touched.
    #[cfg(test)]
    pub(in crate::store) fn touched(&self, digest: &Digest) -> Option<u32> {
        self.table.lock().parked.get(digest).map(|parked| parked.left.touched)
    }

    /// How many bytes what is left takes, that included which could not be removed.
    #[cfg(test)]
    pub(in crate::store) fn bytes_left(&self) -> u64 {
        let table = self.table.lock();
        let parked = table.parked.iter().map(|(_, parked)| parked.reservation.bytes());
        parked.chain(table.stuck.values().flatten().map(|stuck| stuck.reservation.bytes())).sum()
    }
}

// === impl Seen ===

impl Seen {
    pub(super) fn of(digest: &Digest, parked: &Parked) -> Self {
        let Parked { left: Left { path, mark, touched, .. }, reservation } = parked;
        let (path, mark) = (path.clone(), mark.clone());
        Self { digest: *digest, path, mark, touched: Some(*touched), bytes: reservation.bytes() }
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
