//! The store: content-addressed blobs and small records on disk. It knows no HTTP and no upstream.
//!
//! `layout` draws the tree. The files are the truth; the index (`hints`) holds what may be lost: ages, verification
//! stamps, freshness. The order of commit is: content, its links, the ref that leads to it; each published whole or
//! not at all (`writer`, `record`). The order of removal is the other way round (`evict`).
//!
//! Every method that touches the disk runs on the blocking pool.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod blob;
mod capacity;
mod carry;
mod check;
mod coverage;
mod departed;
mod disk;
mod error;
mod evict;
mod explain;
mod forget;
mod fs;
mod gated;
mod gc;
mod hints;
mod images;
mod index;
mod inventory;
mod keys;
mod known;
mod layout;
mod lists;
mod lock;
mod marks;
mod memory;
mod missed;
mod open_files;
mod order;
mod origin;
mod partial;
mod pins;
mod pipeline;
mod probe;
mod ranges;
mod real_fs;
mod record;
mod recover;
mod refs;
mod rehash;
mod remove;
mod scrub;
mod sled_index;
mod spool;
mod stamp;
mod survey;
mod suspicion;
mod sync;
mod temporary;
#[cfg(test)]
mod tests;
mod unreadable;
mod work;
mod writer;

pub use blob::{Quarantined, StoredBlob, Trust};
pub use carry::{Carried, Taken, Terms};
pub use check::TagState;
pub use coverage::{Covered, Extent, MissingPart};
pub use departed::{Departed, Departure};
pub use error::StoreError;
pub use explain::{PartKind, PartReport, Stored};
pub use gc::{Collected, Victim};
pub use inventory::{Image, Platform, RepositoryUsage, Usage};
pub use lists::{ListKind, StoredList};
pub use lock::Holder;
pub use marks::{SETTLES_WITHIN, Suspicion};
pub use missed::{Missed, MissedImage, MissedKind, Sought};
pub use partial::{Partial, PartialMark};
pub use pins::PinOf;
pub use probe::{Room, check_format, has_openat2, room};
pub use ranges::{ByteRanges, NotRanges};
pub use refs::{Access, AccessRecord, Link, LinkKind, TagRecord};
pub use rehash::{AtOnce, Before, Checked, MissingBlob, Pace, Unreadable, Verified, WrongBlob};
pub use remove::{Removed, RemovedFrom, RemovedImage};
pub use spool::{Spool, SpoolReader};
pub use work::Placed;
pub use writer::{BlobWriter, Remnant};

use capacity::Books;
use departed::Departures;
use disk::Disk;
use evict::{Evictor, Shortage};
use gated::Gated;
use hints::{Hints, SledSource, Source};
use images::Uses;
use known::Known;
use lock::RootLock;
use missed::MissedNames;
use open_files::OpenFiles;
use partial::Partials;
use pins::Pins;
use record::Records;
use stamp::{Epoch, Start};
use suspicion::Table;
use sync::GroupSync;
use unreadable::Unreadables;

use crate::clock::{Clock, Timeline};
use crate::config::{Capacity, Durability, Pin};
use crate::metrics::Metrics;
use crate::oci::UpstreamName;

/// How long opening waits for the index; after that the store works without it until it is there.
const INDEX_PATIENCE: Duration = Duration::from_millis(700);
/// How often what was published without waiting is synced.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How many of those intervals lie between two batches of the order of use.
const ORDER_EVERY: u32 = 10;
/// How many between two looks at the floor of the file system: some say only after a while what was freed.
const FLOOR_EVERY: u32 = 30;
/// How often is looked for what is too old.
const EXPIRE_EVERY: Duration = Duration::from_mins(1);
/// How many blobs without a place in the order of use are put in their places in between.
const UNPLACED: usize = 64;

/// What a store is opened with.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Its directory; made if it is missing.
    pub root: PathBuf,
    /// How much it may hold.
    pub capacity: Capacity,
    /// What a publication waits for.
    pub durability: Durability,
    /// What is never evicted, and what goes without need.
    pub keep: Keep,
    /// The URL of every upstream by name. Refs that came from another URL under the same name are set aside.
    pub origins: Vec<(UpstreamName, String)>,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
}

/// What is never evicted, and what goes although there is room.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Names whose content stays; others are made by [`Store::pin`].
    pub pins: Vec<Pin>,
    /// Content that nobody has used for longer goes.
    pub max_age: Option<Duration>,
}

/// An open store; cheap to clone. One process at a time has a root open.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    disk: Arc<Disk>,
    durability: Durability,
    books: Arc<Books>,
    hints: Hints,
    records: Records,
    known: Known,
    open: OpenFiles,
    unreadable: Unreadables,
    group: GroupSync,
    epoch: Epoch,
    /// The disk says that the store is in use.
    is_put_down: AtomicBool,
    metrics: Metrics,
    timeline: Arc<Timeline>,
    /// Since when upstreams have their URL again that had another one: what is known of freshness from before counts
    /// for nothing.
    since: ArcSwap<HashMap<UpstreamName, SystemTime>>,
    /// Held while a name in `blobs/` is looked at and changed, so that quarantine and eviction never hit a file that
    /// was published in between. Never held over a sync, nor together with `tags`; other locks come after it.
    names: Gated<()>,
    /// Held while the file of a tag or link is looked at and changed, so that eviction never removes one that has just moved,
    /// nor one of content that somebody has come for.
    tags: Gated<()>,
    /// What writes upstream may have changed.
    suspicions: Table,
    pins: Pins,
    uses: Uses,
    departures: Departures,
    /// What was asked of sealed upstreams and is not here.
    missed: MissedNames,
    /// What fills have left that did not end.
    partials: Arc<Partials>,
    /// How often the index had been begun anew when a whole scan began that brought it all blobs.
    scanned: AtomicU64,
    /// Content that nobody has used for longer goes; none: for want of room alone.
    max_age: Mutex<Option<Duration>>,
    shortage: Shortage,
    evictor: Evictor,
    /// Marks of writes from before the store was opened belong to a process that is dead: until then upstream may still
    /// take them. By the clock that does not jump.
    settles_at: Instant,
    /// How many tags and links somebody has removed on purpose: what comes back to a blob that stays must not be one of them.
    forgotten: AtomicU64,
    /// Held while a key is read and made if it is missing.
    keys: Gated<()>,
    /// Jobs on the blocking pool that nobody awaits.
    jobs: TaskTracker,
    closed: AtomicBool,
    /// Whether the job that writes a blob hashes it, too.
    writer_hashes: AtomicBool,
    /// Last, so that it is let go of after everything else is.
    lock: RootLock,
}

/// The index of a store that is no test's.
fn sled(root: &Path) -> Box<dyn Source> {
    Box::new(SledSource(root.to_owned()))
}

// === impl Store ===

impl Store {
    /// Opens the store, and makes its directory if there is none. Blocks, but reads neither the index nor the list of
    /// blobs: that happens in [`Store::run`].
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it, [`StoreError::Version`] if another version wrote it, else
    /// what the file system said. A damaged index is no error.
    pub fn open(options: StoreOptions, metrics: Metrics) -> Result<Self, StoreError> {
        Self::open_root(options, metrics, sled, None)
    }

    /// As [`Store::open`], for the work of a command: whoever comes meanwhile is told of it.
    ///
    /// # Errors
    /// As of [`Store::open`].
    pub fn open_for(command: &'static str, options: StoreOptions, metrics: Metrics) -> Result<Self, StoreError> {
        Self::open_root(options, metrics, sled, Some(command))
    }

    #[cfg(test)]
    fn open_with(
        options: StoreOptions,
        metrics: Metrics,
        source: impl FnOnce(&Path) -> Box<dyn Source>,
    ) -> Result<Self, StoreError> {
        Self::open_root(options, metrics, source, None)
    }

    #[cfg(test)]
    fn open_on(
        disk: Arc<Disk>,
        options: StoreOptions,
        metrics: Metrics,
        source: impl FnOnce(&Path) -> Box<dyn Source>,
    ) -> Result<Self, StoreError> {
        Self::open_by(disk, options, metrics, source, None)
    }

    fn open_root(
        options: StoreOptions,
        metrics: Metrics,
        source: impl FnOnce(&Path) -> Box<dyn Source>,
        command: Option<&'static str>,
    ) -> Result<Self, StoreError> {
        let disk = Arc::new(Disk::open(&options.root)?);
        let root = disk.path().to_owned();
        Self::open_by(disk, options, metrics, source, command).map_err(|error| error.within(&root))
    }

    fn open_by(
        disk: Arc<Disk>,
        options: StoreOptions,
        metrics: Metrics,
        source: impl FnOnce(&Path) -> Box<dyn Source>,
        command: Option<&'static str>,
    ) -> Result<Self, StoreError> {
        let StoreOptions { capacity, durability, keep, origins, clock, .. } = options;
        let timeline = Arc::new(Timeline::new(clock));
        // Before the lock, which makes a file.
        layout::check_foreign(&disk)?;
        let lock = RootLock::take(&disk, command)?;
        // At once: what the last holder wrote is not true any more.
        let socket = disk.path().join("ocistern.sock");
        if let Err(error) = lock.announce(&disk, Some(&socket)) {
            tracing::warn!(%error, "the lock file could not be written");
        }
        layout::prepare(&disk)?;
        partial::remove_temporary(&disk);
        let records = Records::default();
        let group = GroupSync::default();
        let pins = Pins::new(keep.pins, Inner::read_pins(&records, &disk, &group));
        let missed = MissedNames::read(&disk);
        let Start { epoch, goes_on, is_put_down } = Epoch::begin(&disk, &records);
        let space = disk.space().map_err(|e| StoreError::io("measure the file system of", disk.path(), e))?;
        let hints = Hints::start(source(disk.path()), metrics.clone(), INDEX_PATIENCE)
            .map_err(|e| StoreError::io("start the index of", disk.path(), e))?;
        let inner = Inner {
            durability,
            books: Arc::new(Books::new(capacity, space, metrics.clone(), timeline.clone()).with(disk.left_bytes())),
            hints,
            records,
            known: Known::default(),
            open: OpenFiles::new(),
            unreadable: Unreadables::default(),
            group,
            epoch,
            is_put_down: is_put_down.into(),
            metrics,
            since: ArcSwap::default(),
            names: Gated::default(),
            tags: Gated::default(),
            suspicions: Table::new(timeline.clone()),
            pins,
            uses: Uses::default(),
            departures: Departures::default(),
            missed,
            partials: Arc::default(),
            scanned: AtomicU64::new(0),
            max_age: Mutex::new(keep.max_age),
            shortage: Shortage::default(),
            evictor: Evictor::default(),
            settles_at: Instant::now() + SETTLES_WITHIN,
            forgotten: AtomicU64::new(0),
            keys: Gated::default(),
            jobs: TaskTracker::new(),
            closed: AtomicBool::new(false),
            writer_hashes: AtomicBool::new(pipeline::is_for_one_job()),
            lock,
            disk,
            timeline,
        };
        inner.check_origins(&origins)?;
        inner.find_partials(command.is_some());
        inner.books.refresh();
        inner.group.run(&inner.disk);
        if !goes_on {
            // What a killed process wrote last may be in the page cache alone, and nobody else knows of it. Not waited for
            // here: it may take long.
            inner.group.everything();
        }
        Ok(Self(Arc::new(inner)))
    }

    /// The root's absolute path.
    pub fn root(&self) -> &Path {
        self.0.disk.path()
    }

    /// What it has seen of its clock.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.0.timeline
    }

    /// How many bytes it may still take before something must go: by its capacity, and by what the file system has left
    /// above what stays free there, measured at most half a minute ago: the disk is not asked now, it may hang.
    pub fn room(&self) -> u64 {
        self.0.books.room()
    }

    /// From now on this much may be held, and this is kept; what is too much goes within seconds.
    pub async fn take_over(&self, capacity: Capacity, keep: Keep) -> Result<(), StoreError> {
        let work = move |inner: &Arc<Inner>| {
            let space = inner.space()?;
            *inner.max_age.lock() = keep.max_age;
            // Before the room becomes less: what is pinned anew must not go for that.
            inner.set_configured_pins(keep.pins);
            inner.books.set_capacity(capacity, space);
            Ok(())
        };
        self.blocking(work).await
    }

    /// Upstreams that were not there when the store was opened: as then, refs of another URL under the same name are set
    /// aside. An upstream may not change its URL while the store is open, since what is known of it is in memory too.
    pub async fn admit(&self, origins: Vec<(UpstreamName, String)>) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.check_origins(&origins)).await
    }

    /// Says in the lock file where the admin socket is, when that is not `ROOT/ocistern.sock`.
    pub async fn announce_socket(&self, socket: PathBuf) -> Result<(), StoreError> {
        let announce = move |inner: &Arc<Inner>| {
            inner
                .lock
                .announce(&inner.disk, Some(&socket))
                .map_err(|e| StoreError::io("write", Path::new(layout::LOCK), e))
        };
        self.blocking(announce).await
    }

    /// Background upkeep until `stop`: group sync each second, the order of use in batches, what is above the capacity or
    /// below the floor, and after the start a scan that finds the blobs which the index does not know.
    pub async fn run(&self, stop: CancellationToken) {
        let stopped = async {
            stop.cancelled().await;
            self.0.evictor.stop();
        };
        tokio::join!(self.keep_pins(&stop), self.upkeep(&stop), self.expire(&stop), self.recover(&stop), stopped);
    }

    async fn upkeep(&self, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval(SYNC_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u32;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            count = count.wrapping_add(1);
            let order = count.is_multiple_of(ORDER_EVERY);
            let floor = count.is_multiple_of(FLOOR_EVERY);
            let work = move |inner: &Arc<Inner>| {
                // So that no jump of the clock goes unnoticed.
                inner.timeline.settled();
                inner.books.look_at_clock();
                inner.open.sweep();
                inner.put_down_start();
                inner.sync_published();
                inner.find_partials(false);
                inner.remove_left();
                inner.remove_stuck_partials();
                inner.forget_surplus_partials();
                if order {
                    inner.keep_missed();
                    inner.write_order();
                    inner.forget_lost_partials();
                }
                inner.trim(floor);
                Ok(())
            };
            if self.blocking(work).await.is_err() {
                return;
            }
        }
    }

    /// Removes what is too old, and forgets what nobody asks for, now and then. A job of its own: it may wait for the evictor, and no sync waits for it.
    async fn expire(&self, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval_at(Instant::now() + EXPIRE_EVERY, EXPIRE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let work = |inner: &Arc<Inner>| {
                inner.books.look_at_clock();
                inner.books.with_order(|order| order.place_from(UNPLACED));
                inner.known.sweep();
                inner.expire();
                inner.expire_partials();
                Ok(())
            };
            if self.blocking(work).await.is_err() {
                return;
            }
        }
    }

    /// Writes out what is in memory and marks the stop as clean. Fills that still run are lost; what those leave that were
    /// given up before is put down. Further calls do nothing.
    pub async fn close(&self) {
        if self.0.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.0.jobs.close();
        self.0.jobs.wait().await;
        let outcome = self.blocking(|inner| inner.shut()).await;
        if let Err(error) = outcome {
            tracing::warn!(error = &error as &dyn std::error::Error, "the store could not be closed cleanly");
        }
    }

    /// Runs `work` on the blocking pool.
    async fn blocking<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Inner>) -> Result<T, StoreError> + Send + 'static,
    {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or(Err(StoreError::Stopped));
        done.map_err(|error| error.within(self.root()))
    }
}

// === impl Inner ===

impl Inner {
    /// Puts down that the store is in use, if that could not be done at the start. Blocks.
    fn put_down_start(&self) {
        if self.is_put_down.load(Ordering::Relaxed) {
            return;
        }
        match self.epoch.put_down(&self.disk) {
            Ok(()) => {
                self.is_put_down.store(true, Ordering::Relaxed);
                tracing::info!("the start of this run is put down now");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "the start of this run could not be put down");
            }
        }
    }

    /// Syncs what was published without waiting, and lets it be known when all of it is on the disk. Blocks.
    fn sync_published(&self) {
        let began = self.timeline.now();
        if self.group.run(&self.disk) && !self.group.has_lost() {
            let since = began.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.metrics.store_synced.set(since.as_secs_f64());
        }
    }

    /// Tries again to remove what is nobody's. Blocks.
    fn remove_left(&self) {
        self.disk.remove_left();
        self.books.refresh();
    }

    /// Ages that the index does not take now stay in memory.
    fn write_order(&self) {
        if !self.hints.has_room() {
            return;
        }
        let touched = self.books.with_order(order::Order::take_touched);
        self.hints.set_used(touched);
    }

    fn shut(&self) -> Result<(), StoreError> {
        self.open.clear();
        self.keep_missed();
        let synced = self.group.run(&self.disk);
        self.remove_left();
        self.remove_stuck_partials();
        self.write_order();
        self.hints.close();
        if !synced || self.group.has_lost() {
            // Then the next run verifies all anew.
            return Err(StoreError::io("sync", self.disk.path(), std::io::Error::other("the log says why")));
        }
        if self.durability == Durability::Fast {
            // Nothing was synced one by one; without this a power cut after the stop would pass for a clean stop.
            self.disk.sync_everything().map_err(|e| StoreError::io("sync", self.disk.path(), e))?;
        }
        self.epoch.end(&self.disk)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.disk.path()).finish_non_exhaustive()
    }
}
