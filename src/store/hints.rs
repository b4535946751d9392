//! What the index remembers, as types: stamps, ages, freshness, and which refs lead to a blob.
//!
//! Writes are collected and applied by a thread of its own; until then they are read from the collection, so whoever
//! wrote a hint sees it. Everything here may be lost: an index that fails is dropped and opened again (sled does not
//! recover from a full disk otherwise), and one that fails again is set aside for an empty one.
//!
//! ```text
//! b ALG DIGEST          length, stamp        a ALG 16-BYTES   last use
//! f UP \0 REPO \0 TAG   its check            r ALG DIGEST PATH  a file of refs/ that names this blob
//! ```

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::check::Check;
use super::index::{Changes, Index, IndexError, Pairs};
use super::order::Short;
use super::sled_index::SledIndex;
use super::stamp::{Epoch, Stamp};
use crate::metrics::Metrics;
use crate::oci::{Algorithm, Digest, RepoName, Tag, UpstreamName};

/// How long opening may take before the index counts as bad.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Hints that wait to be written; beyond it those are dropped whose loss is bearable.
const WAITING: usize = 1 << 16;
/// How long hints are collected before they are written.
const COLLECT: Duration = Duration::from_millis(100);
/// When an index that could not even be made anew is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// An index smaller than this is never too large.
const LARGE: u64 = 256 << 20;
/// How many times its live content an index may take on disk.
const BLOAT: u64 = 8;
/// Writes between two looks at the size on disk.
const MEASURE_EVERY: usize = 50_000;
/// What an entry costs besides its key and value.
const OVERHEAD: u64 = 16;

/// Where an index comes from.
pub(super) trait Source: Send + Sync {
    /// Opens it, or makes a new one.
    fn open(&self) -> Result<Box<dyn Index>, IndexError>;
    /// Moves a bad one out of the way.
    fn set_aside(&self) -> io::Result<()>;
}

/// sled under a root.
pub(super) struct SledSource(pub(super) PathBuf);

/// The typed index.
pub(super) struct Hints {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// None while it is being opened, and when the disk does not take one. Locked for reading during each call, so
    /// that taking it out for writing means that nobody uses it.
    index: RwLock<Option<Box<dyn Index>>>,
    /// Taken before `index` or without it, never after.
    queue: Mutex<Queue>,
    /// Tells the thread of work, and others that the queue is empty or the index open.
    changed: Condvar,
    source: Box<dyn Source>,
    metrics: Metrics,
    /// Signalled when an index was begun anew and should be filled from the files.
    renewed: Notify,
    /// How often that was so.
    renewals: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: Changes,
    applying: Changes,
    /// How many hints were dropped.
    dropped: u64,
    /// A reader got an error.
    failed: bool,
    /// The first opening has ended, well or not.
    opened: bool,
    stop: bool,
}

/// What becomes of a hint when too many wait to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// It is dropped: that costs a verification or an age, or the next scan finds it again. Memory that grows with a stuck
    /// disk would cost the program.
    Bearable,
    /// It is kept: without it something would pass for what it is not. There are no more of these than tags and blobs.
    Unbearable,
}

/// What is known of a blob's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobHint {
    /// Its length.
    pub(super) len: u64,
    /// Its stamp, if it is one of this epoch.
    pub(super) stamp: Option<Stamp>,
}

/// A part of a scan, and where the next one goes on; none: that was all.
pub(super) struct Part<T> {
    /// What was found.
    pub(super) found: Vec<T>,
    /// The key to go on after.
    pub(super) next: Option<Vec<u8>>,
}

// === impl SledSource ===

impl Source for SledSource {
    fn open(&self) -> Result<Box<dyn Index>, IndexError> {
        Ok(Box::new(SledIndex::open(&self.0, OPEN_LIMIT)?))
    }

    fn set_aside(&self) -> io::Result<()> {
        SledIndex::set_aside(&self.0)
    }
}

// === impl Hints ===

impl Hints {
    /// Starts the thread, and waits at most `patience` for the index to be open: a large one must not delay the start.
    pub(super) fn start(source: Box<dyn Source>, metrics: Metrics, patience: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            index: RwLock::new(None),
            queue: Mutex::default(),
            changed: Condvar::new(),
            source,
            metrics,
            renewed: Notify::new(),
            renewals: AtomicU64::new(0),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new().name("index".into()).spawn(move || worker.run())?;
        let mut queue = shared.queue.lock();
        if !queue.opened {
            shared.changed.wait_for(&mut queue, patience);
        }
        drop(queue);
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Waits until opening the index has ended, well or not. Blocks.
    pub(super) fn wait_open(&self) {
        let mut queue = self.shared.queue.lock();
        while !queue.opened {
            self.shared.changed.wait(&mut queue);
        }
    }

    /// Writes what waits and closes the index. Blocks.
    pub(super) fn close(&self) {
        self.shared.queue.lock().stop = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the index' thread ended in a panic");
        }
    }

    /// Waits until the index was begun anew.
    pub(super) async fn renewed(&self) {
        self.shared.renewed.notified().await;
    }

    /// How often the index was begun anew: what is not in it then may only not be in it yet.
    pub(super) fn renewals(&self) -> u64 {
        self.shared.renewals.load(Ordering::Acquire)
    }

    /// Whether there is room for many hints.
    pub(super) fn has_room(&self) -> bool {
        self.shared.queue.lock().waiting.len() < WAITING / 2
    }

    /// What is known of a blob.
    pub(super) fn blob(&self, digest: &Digest, epoch: Epoch) -> Option<BlobHint> {
        BlobHint::decode(&self.shared.get(&key(b'b', digest))?, epoch)
    }

    /// Remembers a blob, with its stamp if its content is known to be right.
    pub(super) fn set_blob(&self, digest: &Digest, len: u64, stamp: Option<(Stamp, Epoch)>) {
        let mut value = len.to_le_bytes().to_vec();
        if let Some((stamp, epoch)) = stamp {
            value.extend(stamp.encode(epoch));
        }
        self.shared.put(Loss::Bearable, [(key(b'b', digest), Some(value))]);
    }

    /// What was known of a blob's content does not hold any more.
    pub(super) fn void_blob(&self, digest: &Digest, len: u64) {
        self.shared.put(Loss::Unbearable, [(key(b'b', digest), Some(len.to_le_bytes().to_vec()))]);
    }

    /// Forgets a blob.
    pub(super) fn remove_blob(&self, digest: &Digest) {
        let gone = [(key(b'b', digest), None), (short_key(b'a', &Short::from(digest)), None)];
        self.shared.put(Loss::Bearable, gone);
    }

    /// Remembers when blobs were used.
    pub(super) fn set_used(&self, used: impl IntoIterator<Item = (Short, u32)>) {
        let used = used.into_iter().map(|(s, at)| (short_key(b'a', &s), Some(at.to_le_bytes().to_vec())));
        self.shared.put(Loss::Bearable, used);
    }

    /// When a blob was used last, if that is known.
    pub(super) fn used(&self, short: &Short) -> Option<u32> {
        let at = self.shared.get(&short_key(b'a', short))?;
        Some(u32::from_le_bytes(at.try_into().ok()?))
    }

    /// The next blobs of the index, with their last use where that is known.
    pub(super) fn blobs(
        &self,
        after: Option<&[u8]>,
        epoch: Epoch,
        limit: usize,
    ) -> Part<(Digest, BlobHint, Option<u32>)> {
        let (pairs, next) = self.shared.scan(b"b", after, limit);
        let found = pairs.into_iter().filter_map(|(key, value)| {
            let (digest, []) = split_key(&key)? else { return None };
            Some((digest, BlobHint::decode(&value, epoch)?, self.used(&Short::from(&digest))))
        });
        Part { found: found.collect(), next }
    }

    /// The next blobs of the index, in the order of their digests. None where there is no index that could say.
    pub(super) fn digests_after(&self, after: Option<&Digest>, limit: usize) -> Option<Vec<Digest>> {
        let after = after.map(|digest| key(b'b', digest));
        let (pairs, _) = self.shared.try_scan(b"b", after.as_deref(), limit)?;
        Some(pairs.iter().filter_map(|(key, _)| split_key(key).map(|(digest, _)| digest)).collect())
    }

    /// The whole digest of a blob, if the index knows it.
    pub(super) fn whole(&self, short: &Short) -> Option<Digest> {
        let (pairs, _) = self.shared.scan(&short_key(b'b', short), None, 4);
        pairs.iter().find_map(|(key, _)| split_key(key).map(|(digest, _)| digest))
    }

    /// When a tag was last found to be up to date.
    pub(super) fn check(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<Check> {
        Check::decode(&self.shared.get(&tag_key(up, repo, tag))?)
    }

    /// Remembers when a tag was found to be up to date; `None` forgets it.
    pub(super) fn set_check(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag, check: Option<&Check>) {
        // Without it, an answer to an earlier question would bring back what was forgotten.
        self.shared.put(Loss::Unbearable, [(tag_key(up, repo, tag), check.map(Check::encode))]);
    }

    /// Remembers that a file of `refs/` names this blob, or forgets it.
    pub(super) fn set_ref(&self, digest: &Digest, path: &Path, there: bool) {
        let Some(path) = path.to_str() else { return };
        let mut key = key(b'r', digest);
        key.extend(path.bytes());
        self.shared.put(Loss::Bearable, [(key, there.then(Vec::new))]);
    }

    /// Whether this file of `refs/` is known to name this blob.
    pub(super) fn has_ref(&self, digest: &Digest, path: &Path) -> bool {
        let mut key = key(b'r', digest);
        key.extend(path.to_str().unwrap_or_default().bytes());
        self.shared.get(&key).is_some()
    }

    /// The next files of `refs/` that name this blob.
    pub(super) fn refs(&self, digest: &Digest, after: Option<&[u8]>, limit: usize) -> Part<PathBuf> {
        let (pairs, next) = self.shared.scan(&key(b'r', digest), after, limit);
        let path = |key: &[u8]| Some(PathBuf::from(std::str::from_utf8(split_key(key)?.1).ok()?));
        Part { found: pairs.iter().filter_map(|(key, _)| path(key)).collect(), next }
    }

    /// The next files of `refs/`, with the blobs that they name.
    pub(super) fn all_refs(&self, after: Option<&[u8]>, limit: usize) -> Part<(Digest, PathBuf)> {
        let (pairs, next) = self.shared.scan(b"r", after, limit);
        let named = |key: &[u8]| {
            let (digest, path) = split_key(key)?;
            Some((digest, PathBuf::from(std::str::from_utf8(path).ok()?)))
        };
        Part { found: pairs.iter().filter_map(|(key, _)| named(key)).collect(), next }
    }

    /// Waits until everything that was put down is written.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        let mut queue = self.shared.queue.lock();
        while !(queue.waiting.is_empty() && queue.applying.is_empty() && queue.opened && !queue.failed) {
            self.shared.changed.notify_all();
            self.shared.changed.wait_for(&mut queue, Duration::from_millis(5));
        }
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.close();
    }
}

// === impl BlobHint ===

impl BlobHint {
    fn decode(value: &[u8], epoch: Epoch) -> Option<Self> {
        let (len, stamp) = value.split_first_chunk()?;
        Some(Self { len: u64::from_le_bytes(*len), stamp: Stamp::decode(stamp, epoch) })
    }
}

// === keys ===

fn algorithm_byte(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    }
}

fn key(kind: u8, digest: &Digest) -> Vec<u8> {
    [&[kind, algorithm_byte(digest.algorithm())], digest.as_bytes()].concat()
}

fn short_key(kind: u8, short: &Short) -> Vec<u8> {
    [&[kind, algorithm_byte(short.algorithm())][..], short.prefix()].concat()
}

fn tag_key(up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Vec<u8> {
    format!("f{up}\0{repo}\0{tag}").into_bytes()
}

/// The digest in a key, and what follows it.
fn split_key(key: &[u8]) -> Option<(Digest, &[u8])> {
    let [_, algorithm, rest @ ..] = key else { return None };
    let algorithm = Algorithm::ALL.into_iter().find(|a| algorithm_byte(*a) == *algorithm)?;
    let (bytes, rest) = rest.split_at_checked(algorithm.size())?;
    let mut hex = String::with_capacity(2 * bytes.len());
    bytes.iter().try_for_each(|byte| write!(hex, "{byte:02x}")).ok()?;
    Some((Digest::from_parts(algorithm, &hex).ok()?, rest))
}

// === impl Shared ===

impl Shared {
    fn put(&self, loss: Loss, changes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) {
        let mut queue = self.queue.lock();
        let idle = queue.waiting.is_empty();
        for (key, value) in changes {
            if loss == Loss::Unbearable || queue.waiting.len() < WAITING || queue.waiting.contains_key(&key) {
                queue.waiting.insert(key, value);
            } else {
                queue.dropped += 1;
            }
        }
        if idle {
            self.changed.notify_all();
        }
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        {
            let queue = self.queue.lock();
            if let Some(change) = queue.waiting.get(key).or_else(|| queue.applying.get(key)) {
                return change.clone();
            }
        }
        self.read(|index| index.get(key)).flatten()
    }

    /// Up to about `limit` pairs, and after which key to go on.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> (Pairs, Option<Vec<u8>>) {
        let found = self.read(|index| index.scan(prefix, after, limit)).unwrap_or_default();
        self.merge(found, prefix, after, limit)
    }

    /// The same; none where there is no index that could say.
    fn try_scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Option<(Pairs, Option<Vec<u8>>)> {
        let found = self.read(|index| index.scan(prefix, after, limit))?;
        Some(self.merge(found, prefix, after, limit))
    }

    /// What the index says, with what waits to be written to it.
    fn merge(&self, pairs: Pairs, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> (Pairs, Option<Vec<u8>>) {
        let next = if pairs.len() == limit { pairs.last().map(|(key, _)| key.clone()) } else { None };
        let mut merged: std::collections::BTreeMap<_, _> = pairs.into_iter().collect();
        let queue = self.queue.lock();
        for changes in [&queue.applying, &queue.waiting] {
            let from = after.unwrap_or(prefix).to_vec();
            let here = |key: &[u8]| {
                key.starts_with(prefix)
                    && next.as_deref().is_none_or(|next| key <= next)
                    && after.is_none_or(|a| key > a)
            };
            for (key, value) in changes.range(from..).take_while(|(key, _)| key.starts_with(prefix)) {
                match value {
                    Some(value) if here(key) => drop(merged.insert(key.clone(), value.clone())),
                    Some(_) => {}
                    None => drop(merged.remove(key)),
                }
            }
        }
        (merged.into_iter().collect(), next)
    }

    fn read<T>(&self, f: impl FnOnce(&dyn Index) -> Result<T, IndexError>) -> Option<T> {
        let result = f(self.index.read().as_deref()?);
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let mut queue = self.queue.lock();
                if !queue.failed {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the index cannot be read");
                }
                queue.failed = true;
                self.changed.notify_all();
                None
            }
        }
    }

    fn run(&self) {
        if let Err(error) = self.open() {
            self.renew(&error);
        }
        self.queue.lock().opened = true;
        self.changed.notify_all();
        let mut written = MEASURE_EVERY;
        let mut reopened = false;
        let mut retry = Instant::now();
        let mut dropping = false;
        loop {
            let mut queue = self.queue.lock();
            if !queue.stop && queue.waiting.is_empty() && !queue.failed {
                self.changed.wait_for(&mut queue, RETRY);
            }
            if !queue.stop && !queue.waiting.is_empty() && queue.waiting.len() < WAITING / 2 {
                // Not woken by more of the same: `put` signals only when the queue was empty.
                self.changed.wait_for(&mut queue, COLLECT);
            }
            let stop = queue.stop;
            let failed = std::mem::take(&mut queue.failed);
            let dropped = std::mem::take(&mut queue.dropped);
            queue.applying = std::mem::take(&mut queue.waiting);
            // Only this thread changes `applying`, so the copy is what readers see.
            let batch = queue.applying.clone();
            drop(queue);
            if dropped > 0 && !dropping {
                tracing::warn!(
                    hints = dropped,
                    "the index does not keep up: ages and verification stamps are lost, which costs order and time"
                );
            }
            dropping = dropped > 0;
            written += batch.len();
            if failed {
                // Opening again helps against a passing error. If reading fails once more, the content is damaged.
                let source = "reading failed again".into();
                let outcome = if reopened { Err(IndexError { action: "be read", source }) } else { self.open() };
                if let Err(error) = outcome {
                    self.renew(&error);
                }
                reopened = !reopened;
            }
            if self.index.read().is_some() {
                self.write(&batch);
            } else if Instant::now() >= retry && !stop {
                // What is put down in the meantime is lost; the scan that follows brings back what matters.
                retry = Instant::now() + RETRY;
                match self.open() {
                    Ok(()) => self.tell_renewed(),
                    Err(error) => self.renew(&error),
                }
            }
            self.queue.lock().applying = Changes::new();
            self.changed.notify_all();
            if written >= MEASURE_EVERY && !stop {
                written = 0;
                self.measure();
            }
            if stop {
                return self.finish();
            }
        }
    }

    /// Applies a batch. What fails is opened again, and if it still fails set aside.
    fn write(&self, batch: &Changes) {
        let apply = || match self.index.read().as_deref() {
            Some(index) if !batch.is_empty() => index.apply(batch),
            _ => Ok(()),
        };
        let Err(error) = apply() else { return };
        tracing::warn!(error = &error as &dyn std::error::Error, "the index is opened again");
        if let Err(error) = self.open().and_then(|()| apply()) {
            self.renew(&error);
            // What this batch said is lost if that fails as well; the scan of the files brings back what matters.
            if let Err(error) = apply() {
                tracing::warn!(error = &error as &dyn std::error::Error, "nor can the new index be written");
                self.drop_index();
            }
        }
    }

    /// Drops the index that is open, if any, and opens it.
    fn open(&self) -> Result<(), IndexError> {
        // First: two handles on one directory exclude each other.
        self.drop_index();
        let index = self.source.open()?;
        *self.index.write() = Some(index);
        Ok(())
    }

    /// Closing and opening may take seconds: meanwhile readers find no index, instead of waiting for one.
    fn drop_index(&self) {
        let index = self.index.write().take();
        drop(index);
    }

    /// Sets the index aside and begins an empty one. Where only room on the disk, file descriptors or memory are
    /// missing it is left alone until there are some.
    fn renew(&self, why: &IndexError) {
        if why.is_shortage() {
            tracing::warn!(
                error = why as &dyn std::error::Error,
                "there is no index for now; it is opened again when the system has what it lacks"
            );
            self.drop_index();
            return;
        }
        tracing::warn!(
            error = why as &dyn std::error::Error,
            "the index is set aside and begun anew; only the order of eviction and verification stamps are lost"
        );
        self.metrics.index_rebuilds.inc();
        self.drop_index();
        let outcome = self.source.set_aside().map_err(|e| IndexError { action: "set aside", source: e.into() });
        match outcome.and_then(|()| self.source.open()) {
            Ok(new) => *self.index.write() = Some(new),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "there is no index for now");
            }
        }
        self.tell_renewed();
    }

    fn tell_renewed(&self) {
        self.renewals.fetch_add(1, Ordering::AcqRel);
        self.renewed.notify_one();
    }

    /// sled never gives back what overwritten values took; an index that grew out of all proportion is begun anew.
    fn measure(&self) {
        let Some(size) = self.read(|index| index.size_on_disk()).filter(|size| *size > LARGE) else { return };
        let (mut live, mut after) = (0_u64, None::<Vec<u8>>);
        loop {
            let Some(pairs) = self.read(|index| index.scan(b"", after.as_deref(), 1024)) else { return };
            let Some((last, _)) = pairs.last() else { break };
            after = Some(last.clone());
            live += pairs.iter().map(|(k, v)| (k.len() + v.len()) as u64 + OVERHEAD).sum::<u64>();
        }
        if size > live.saturating_mul(BLOAT) {
            let why = format!("{size} bytes on disk for {live} bytes of content");
            self.renew(&IndexError { action: "stay small", source: why.into() });
        }
    }

    fn finish(&self) {
        let index = self.index.write().take();
        if let Some(Err(error)) = index.as_ref().map(|index| index.flush()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the index could not be written out");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use std::sync::atomic::AtomicU32;

    use super::super::index::MemoryIndex;
    use super::*;

    const EPOCH: Epoch = Epoch::of_test(3);
    const PATIENCE: Duration = Duration::from_secs(20);

    /// What the next calls do.
    #[derive(Default)]
    struct Faults {
        opens: AtomicU32,
        set_aside: AtomicU32,
        /// So many of the next calls fail.
        open: AtomicU32,
        read: AtomicU32,
        write: AtomicU32,
        /// Writing fails until the index is opened again, as sled does after ENOSPC.
        sticky: AtomicU32,
        size: AtomicU32,
        /// Failing to open means that the system lacks this.
        shortage: Option<rustix::io::Errno>,
        /// Opening waits for it.
        gate: Mutex<()>,
    }

    /// An index in memory that fails when told to; its content survives opening it again.
    struct Faulty(Arc<Faults>, Arc<Mutex<Arc<MemoryIndex>>>);

    impl Faults {
        fn fails(count: &AtomicU32) -> Result<(), IndexError> {
            let fails = count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            if fails { Err(IndexError { action: "work", source: "told to fail".into() }) } else { Ok(()) }
        }
    }

    impl Source for Faulty {
        fn open(&self) -> Result<Box<dyn Index>, IndexError> {
            self.0.opens.fetch_add(1, Ordering::SeqCst);
            drop(self.0.gate.lock());
            self.0.sticky.store(0, Ordering::SeqCst);
            if let Err(error) = Faults::fails(&self.0.open) {
                let shortage = self.0.shortage.map(|errno| io::Error::from(errno).into());
                return Err(shortage.map_or(error, |source| IndexError { action: "open", source }));
            }
            let index = self.1.lock().clone();
            Ok(Box::new(FaultyIndex(self.0.clone(), index)))
        }

        fn set_aside(&self) -> io::Result<()> {
            self.0.set_aside.fetch_add(1, Ordering::SeqCst);
            *self.1.lock() = Arc::default();
            Ok(())
        }
    }

    struct FaultyIndex(Arc<Faults>, Arc<MemoryIndex>);

    impl Index for FaultyIndex {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
            Faults::fails(&self.0.read)?;
            self.1.get(key)
        }

        fn apply(&self, changes: &Changes) -> Result<(), IndexError> {
            Faults::fails(&self.0.write)?;
            Faults::fails(&self.0.sticky)?;
            self.1.apply(changes)
        }

        fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Pairs, IndexError> {
            Faults::fails(&self.0.read)?;
            self.1.scan(prefix, after, limit)
        }

        fn size_on_disk(&self) -> Result<u64, IndexError> {
            Ok(u64::from(self.0.size.load(Ordering::SeqCst)))
        }

        fn flush(&self) -> Result<(), IndexError> {
            Ok(())
        }
    }

    fn hints(faults: &Arc<Faults>) -> (Hints, Metrics) {
        let metrics = Metrics::new().unwrap();
        let source = Faulty(faults.clone(), Arc::default());
        (Hints::start(Box::new(source), metrics.clone(), PATIENCE).unwrap(), metrics)
    }

    fn digest(n: u8) -> Digest {
        let algorithm = if n.is_multiple_of(2) { Algorithm::Sha256 } else { Algorithm::Sha512 };
        Digest::of(algorithm, &[n])
    }

    #[test]
    fn nobody_waits_for_an_index_that_is_being_opened_again() {
        let faults = Arc::<Faults>::default();
        let (hints, _) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        let gate = faults.gate.lock();
        faults.read.store(1, Ordering::SeqCst);
        assert_eq!(hints.blob(&digest(1), EPOCH), None, "reading fails");
        while faults.opens.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        assert_eq!(hints.blob(&digest(1), EPOCH), None, "it is being opened");
        drop(gate);
        let begun = Instant::now();
        while hints.blob(&digest(1), EPOCH).is_none() {
            assert!(begun.elapsed() < PATIENCE, "it is never open");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_hint_is_read_before_and_after_it_is_written() {
        let (hints, _) = hints(&Arc::default());
        for n in 0..6 {
            hints.set_blob(&digest(n), u64::from(n), None);
            hints.set_used([(Short::from(&digest(n)), u32::from(n))]);
        }
        let (up, repo) = ("u".parse().unwrap(), "r".parse().unwrap());
        let tags = ["a", "b"].map(|t| t.parse::<Tag>().unwrap());
        let past = UNIX_EPOCH + Duration::from_millis(1_234);
        let check = Check { at: past, moment: past, mark: None, since: Some(past) };
        hints.set_check(&up, &repo, &tags[0], Some(&check));
        hints.set_check(&up, &repo, &tags[1], Some(&check));
        hints.set_check(&up, &repo, &tags[1], None);
        hints.set_ref(&digest(1), Path::new("refs/u/r/_tags/a"), true);
        for settled in [false, true] {
            if settled {
                hints.settle();
            }
            assert_eq!(hints.blob(&digest(3), EPOCH), Some(BlobHint { len: 3, stamp: None }));
            assert_eq!(hints.whole(&Short::from(&digest(4))), Some(digest(4)));
            assert_eq!(hints.check(&up, &repo, &tags[0]), Some(check));
            assert_eq!(hints.check(&up, &repo, &tags[1]), None);
            assert_eq!(hints.refs(&digest(1), None, 9).found, [PathBuf::from("refs/u/r/_tags/a")]);
            assert!(hints.refs(&digest(2), None, 9).found.is_empty());
            let (mut found, mut after) = (Vec::new(), None::<Vec<u8>>);
            loop {
                let chunk = hints.blobs(after.as_deref(), EPOCH, 2);
                found.extend(chunk.found.into_iter().map(|(digest, hint, used)| (hint.len, used, digest)));
                after = chunk.next;
                if after.is_none() {
                    break;
                }
            }
            found.sort_by_key(|f| f.0);
            let expected: Vec<_> = (0..6).map(|n| (u64::from(n), Some(u32::from(n)), digest(n))).collect();
            assert_eq!(found, expected);
        }
        hints.remove_blob(&digest(3));
        assert_eq!(hints.blob(&digest(3), EPOCH), None);
        assert_eq!(hints.whole(&Short::from(&digest(3))), None, "a removal is seen before it is written");
    }

    #[test]
    fn an_index_that_does_not_open_is_set_aside_and_counted() {
        let faults = Arc::new(Faults { open: 1.into(), ..Faults::default() });
        let (hints, metrics) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        assert!(hints.blob(&digest(1), EPOCH).is_some());
        assert_eq!((faults.set_aside.load(Ordering::SeqCst), metrics.index_rebuilds.get()), (1, 1));
    }

    #[test]
    fn a_write_that_fails_is_repeated_after_opening_again() {
        let faults = Arc::new(Faults::default());
        let (hints, metrics) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        faults.sticky.store(u32::MAX, Ordering::SeqCst);
        hints.set_blob(&digest(2), 2, None);
        hints.settle();
        assert!(hints.blob(&digest(1), EPOCH).is_some() && hints.blob(&digest(2), EPOCH).is_some());
        assert_eq!((faults.opens.load(Ordering::SeqCst), metrics.index_rebuilds.get()), (2, 0), "nothing is lost");
    }

    #[test]
    fn a_write_that_fails_again_begins_a_new_index() {
        let faults = Arc::new(Faults::default());
        let (hints, metrics) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        faults.write.store(2, Ordering::SeqCst);
        hints.set_blob(&digest(2), 2, None);
        hints.settle();
        assert_eq!(hints.blob(&digest(1), EPOCH), None, "the old one is gone");
        assert!(hints.blob(&digest(2), EPOCH).is_some(), "what was being written is in the new one");
        assert_eq!(metrics.index_rebuilds.get(), 1);
    }

    #[test]
    fn a_full_disk_or_a_lack_of_descriptors_does_not_cost_the_index() {
        use rustix::io::Errno;
        for lack in [Errno::NOSPC, Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            let faults = Arc::new(Faults { open: 1.into(), shortage: Some(lack), ..Faults::default() });
            let (hints, metrics) = hints(&faults);
            hints.set_blob(&digest(1), 1, None);
            hints.settle();
            assert!(hints.shared.index.read().is_some(), "{lack}: it is tried again");
            assert_eq!((faults.set_aside.load(Ordering::SeqCst), metrics.index_rebuilds.get()), (0, 0), "{lack}");
        }
    }

    #[test]
    fn a_failed_read_is_absent_and_a_second_one_begins_a_new_index() {
        let faults = Arc::new(Faults::default());
        let (hints, metrics) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        for rebuilds in [0, 1] {
            faults.read.store(1, Ordering::SeqCst);
            assert_eq!(hints.blob(&digest(1), EPOCH), None);
            hints.settle();
            assert_eq!(metrics.index_rebuilds.get(), rebuilds);
            assert_eq!(hints.blob(&digest(1), EPOCH).is_some(), rebuilds == 0);
        }
    }

    #[test]
    fn without_any_index_hints_are_forgotten_and_nothing_waits() {
        let faults = Arc::new(Faults { open: u32::MAX.into(), ..Faults::default() });
        let (hints, _) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        assert_eq!(hints.blob(&digest(1), EPOCH), None);
        let opens = faults.opens.load(Ordering::SeqCst);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        assert!(faults.opens.load(Ordering::SeqCst) <= opens + 2, "a hopeless index is not tried at each write");
    }

    #[test]
    fn an_index_out_of_all_proportion_is_begun_anew() {
        let faults = Arc::new(Faults { size: (300 << 20).into(), ..Faults::default() });
        let (hints, metrics) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        hints.close();
        assert_eq!(metrics.index_rebuilds.get(), 1);
    }

    #[test]
    fn what_waits_is_bounded() {
        let faults = Arc::new(Faults::default());
        let (hints, _) = hints(&faults);
        let index = hints.shared.index.write();
        hints.set_used((0..200_000_u32).map(|n| (Short::from(&Digest::of(Algorithm::Sha256, &n.to_le_bytes())), n)));
        let queue = hints.shared.queue.lock();
        assert!(queue.waiting.len() <= WAITING);
        drop((queue, index));
    }

    /// What is put down while the index does not keep up is dropped, but never what would make something pass for what it
    /// is not.
    #[test]
    fn what_must_not_be_lost_is_kept_however_much_waits() {
        let faults = Arc::new(Faults::default());
        let (hints, _) = hints(&faults);
        let (up, repo, tag) = ("u".parse().unwrap(), "r".parse().unwrap(), "t".parse::<Tag>().unwrap());
        let check = Check { at: UNIX_EPOCH, moment: UNIX_EPOCH, mark: None, since: None };
        let stamp = Stamp { inode: 1, len: 7, modified: (1, 2), changed: (3, 4) };
        hints.set_blob(&digest(1), 7, Some((stamp, EPOCH)));
        hints.settle();
        let ages = |from: u32| {
            (from..from + 100_000).map(|n| (Short::from(&Digest::of(Algorithm::Sha256, &n.to_le_bytes())), n))
        };
        let is_taken = || !hints.shared.queue.lock().applying.is_empty();
        let hold = || {
            let index = hints.shared.index.write();
            hints.set_used(ages(0));
            let taken = (0..100_000).any(|_| {
                std::thread::yield_now();
                is_taken()
            });
            if taken {
                return Some(index);
            }
            // It was on its way with nothing when the index was taken from it, and waits for that.
            drop(index);
            hints.settle();
            None
        };
        let index = (0..100).find_map(|_| hold()).unwrap();
        hints.set_used(ages(100_000));
        assert!(!hints.has_room(), "who has more ages keeps them");
        hints.set_blob(&digest(2), 1, None);
        hints.void_blob(&digest(1), 7);
        hints.set_check(&up, &repo, &tag, Some(&check));
        let queue = hints.shared.queue.lock();
        assert!(queue.dropped > 30_000, "it is counted: {}", queue.dropped);
        drop((queue, index));
        assert_eq!(hints.check(&up, &repo, &tag), Some(check), "a tag that was forgotten");
        assert_eq!(hints.blob(&digest(1), EPOCH).unwrap().stamp, None, "a stamp that holds no more");
        assert_eq!(hints.blob(&digest(2), EPOCH), None, "dropped");
    }

    #[test]
    fn no_index_is_not_an_empty_one() {
        let faults = Arc::new(Faults::default());
        let (hints, _) = hints(&faults);
        hints.set_blob(&digest(1), 1, None);
        hints.settle();
        assert_eq!(hints.digests_after(None, 9), Some(vec![digest(1)]));
        faults.read.store(1, Ordering::SeqCst);
        assert_eq!(hints.digests_after(None, 9), None, "it cannot be read");
        hints.settle();
        assert_eq!((hints.digests_after(None, 9), hints.renewals()), (Some(vec![digest(1)]), 0));
        faults.write.store(2, Ordering::SeqCst);
        hints.set_blob(&digest(2), 2, None);
        hints.settle();
        assert_eq!((hints.digests_after(None, 9), hints.renewals()), (Some(vec![digest(2)]), 1), "it is a new one");
    }
}
