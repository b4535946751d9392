//! Who removes what must go: one thread for all that wait, a chunk at a time, each of which is counted, told in the log and
//! given to those who wait before the next one is chosen. It ends when there is nothing to do, and within a chunk when the
//! store is stopping.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::estimate::Estimate;
use super::trouble::Trouble;
use crate::oci::{Algorithm, Digest};
use crate::store::capacity::{CHUNK, Round, seconds};
use crate::store::fs::Space;
use crate::store::gated::Gated;
use crate::store::layout;
use crate::store::order::{Claim, Short};
use crate::store::{Inner, StoreError};

/// Blobs that are too old and are removed at a time: a clock that jumps must not empty the store before anybody sees it.
const EXPIRE_AT_ONCE: usize = 1_000;
/// Blobs that go next, and whose names are looked for together where the index does not know them.
const AHEAD: usize = 16 << 10;
/// Chunks in a row of which nothing could be removed, after which it is given up for a while.
const FRUITLESS: u32 = 8;
/// Names that a line of the log has.
const NAMED: usize = 4;
/// Refs of a blob among which a name is looked for.
const REFS_OF_ONE: usize = 8;
/// The parts of an image are put down as used one after the other, and at most once a minute.
const ALIKE: u32 = 64;

/// What the evictor of a store has.
#[derive(Debug, Default)]
pub(in crate::store) struct Evictor {
    /// Held while a chunk is chosen and removed: nobody decides that nothing may go while what was chosen is going.
    names: Gated<Names>,
    /// The order of use is being read from the index: until it is there nothing goes.
    loading: AtomicBool,
    stopping: AtomicBool,
    trouble: Trouble,
}

/// Whole digests that were found in the directories, of blobs that go next.
#[derive(Debug, Default)]
struct Names {
    found: HashMap<Short, Digest>,
    /// How often the directories were listed for it.
    listings: u64,
}

/// The name of what was chosen.
enum Name {
    Known(Digest),
    /// Neither index nor directory has it.
    Gone,
    /// It could not be found out.
    Unknown,
}

/// What came of a chunk.
#[derive(Debug, Default)]
struct Chunk {
    bytes: u64,
    blobs: usize,
    /// Whether anything was removed, or found out.
    is_progress: bool,
    /// It was not gone through to its end.
    is_cut: bool,
    /// What went, as far as it has a name.
    names: Vec<String>,
    failures: usize,
    failure: Option<StoreError>,
}

/// Ends the rounds however they end.
struct Running<'a> {
    inner: &'a Inner,
    done: bool,
}

// === impl Evictor ===

impl Evictor {
    /// The order of use begins to be read from the index, or has been.
    pub(in crate::store) fn set_loading(&self, loading: bool) {
        self.loading.store(loading, Ordering::Release);
    }

    /// Nothing is evicted any more.
    pub(in crate::store) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// How often directories were listed to find what goes.
    #[cfg(test)]
    pub(in crate::store) fn listings(&self) -> u64 {
        self.names.lock().listings
    }
}

// === impl Running ===

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.inner.books.end_evicting(self.inner.is_stopping());
        }
    }
}

// === impl Inner ===

impl Inner {
    pub(in crate::store) fn is_stopping(&self) -> bool {
        self.closed.load(Ordering::SeqCst) || self.evictor.stopping.load(Ordering::Acquire)
    }

    /// Whether it is known what may go, and in which order.
    fn may_evict(&self) -> bool {
        self.pins.are_settled() && !self.evictor.loading.load(Ordering::Acquire)
    }

    /// Has what is above the capacity removed, and if `floor` what the file system's floor lacks.
    pub(in crate::store) fn trim(self: &Arc<Self>, floor: bool) {
        if floor
            && self.may_evict()
            && let Ok(space) = self.space()
        {
            self.books.want_floor(space);
        }
        self.start_evicting();
    }

    /// Starts the evictor if there is something to do, and it does not run.
    pub(in crate::store) fn start_evicting(self: &Arc<Self>) {
        if self.books.begins_evicting() {
            #[cfg(test)]
            if crate::store::tests::gate::is_here() {
                // The threads of an explored schedule are its actors'.
                return self.run_evictor(|| false);
            }
            let inner = self.clone();
            drop(self.jobs.spawn_blocking(move || inner.run_evictor(|| false)));
        }
    }

    /// Goes through the rounds until nothing is left to do, or `enough`, also within a round; then another thread goes on.
    pub(in crate::store) fn run_evictor(self: &Arc<Self>, mut enough: impl FnMut() -> bool) {
        let mut running = Running { inner: self, done: false };
        let (mut estimate, mut fruitless) = (Estimate::default(), 0);
        while !self.is_stopping() {
            if enough() {
                running.done = true;
                self.books.pause_evicting();
                return self.start_evicting();
            }
            if self.evictor.trouble.is_due() {
                self.books.retry_stuck();
            }
            let mut names = self.evictor.names.lock();
            // Before the measurement: what is taken in between must not pass for free.
            let allocated = self.books.allocated();
            let space = match self.space() {
                Ok(space) => Space { free: estimate.free(space.free, allocated), ..space },
                Err(error) => {
                    tracing::warn!(error = &error as &dyn Error, "nothing can be evicted");
                    return;
                }
            };
            if self.evictor.trouble.rests() {
                // Who finds room has it; all others are told that nothing may go.
                self.books.round(space, false);
                return;
            }
            let may_evict = self.may_evict();
            match self.books.round(space, may_evict) {
                // Who has found out meanwhile what may go has seen somebody at work, and leaves it to him.
                Round::Done if !may_evict && self.may_evict() && self.books.begins_evicting() => {}
                Round::Done => {
                    running.done = true;
                    return;
                }
                Round::Forget(bytes) => {
                    let freed = self.forget_partials(bytes, &mut enough);
                    estimate.freed(freed);
                    self.books.freed(freed);
                }
                Round::Remove(claims) => {
                    let chunk = self.remove_chunk(&claims, &mut names, &mut enough);
                    estimate.freed(chunk.bytes);
                    self.books.freed(chunk.bytes);
                    self.tell(&chunk, None);
                    fruitless = if chunk.is_progress || chunk.is_cut { 0 } else { fruitless + 1 };
                    if fruitless >= FRUITLESS {
                        self.evictor.trouble.is_of_all();
                        return;
                    }
                }
            }
        }
    }

    /// Removes what nobody has used for longer than the age limit, a part at a time. Blocks.
    pub(in crate::store) fn expire(&self) {
        let Some(max_age) = (*self.max_age.lock()).filter(|_| self.may_evict()) else { return };
        let since =
            seconds(self.timeline.settled()).saturating_sub(u32::try_from(max_age.as_secs()).unwrap_or(u32::MAX));
        let mut left = EXPIRE_AT_ONCE;
        if self.evictor.trouble.is_due() {
            self.books.retry_stuck();
        }
        while left > 0 && !self.is_stopping() && !self.evictor.trouble.rests() {
            let mut names = self.evictor.names.lock();
            let claims = self.books.claim_unused(since, left.min(CHUNK));
            let chunk = self.remove_chunk(&claims, &mut names, &mut || false);
            self.tell(&chunk, Some(max_age));
            if claims.is_empty() {
                return;
            }
            left -= claims.len();
        }
    }

    fn tell(&self, chunk: &Chunk, max_age: Option<Duration>) {
        let Chunk { bytes, blobs, failures, .. } = *chunk;
        let what = chunk.names.join(", ");
        if blobs > 0 {
            self.metrics.evicted_bytes.inc_by(bytes);
            self.metrics.evicted_blobs.inc_by(blobs as u64);
            match max_age {
                None => tracing::info!(bytes, blobs, what, "evicted the least recently used blobs"),
                Some(max_age) => {
                    tracing::info!(bytes, blobs, what, ?max_age, "removed blobs that nobody has used for long");
                }
            }
        }
        match &chunk.failure {
            Some(error) if self.evictor.trouble.begins() => tracing::warn!(
                blobs = failures,
                error = error as &dyn Error,
                "blobs cannot be removed, and stay as they are: it is tried again now and then, and not said each time"
            ),
            Some(error) => tracing::debug!(blobs = failures, error = error as &dyn Error, "blobs cannot be removed"),
            None if blobs > 0 && self.evictor.trouble.is_over() => tracing::info!("blobs can be removed again"),
            None => {}
        }
    }

    /// Removes what was chosen, except what is used since, and manifests whose image has a younger part.
    /// What is left when the store is stopping, or at `enough`, stays.
    fn remove_chunk(&self, claims: &[Claim], names: &mut Names, enough: &mut dyn FnMut() -> bool) -> Chunk {
        let mut chunk = Chunk::default();
        let mut is_cut = || self.is_stopping() || enough();
        let found = self.names_of(claims, names, &mut is_cut);
        for (claim, name) in claims.iter().zip(found) {
            chunk.is_cut = chunk.is_cut || is_cut();
            if chunk.is_cut {
                self.books.release(&claim.short);
                continue;
            }
            let digest = match name {
                Name::Known(digest) => digest,
                Name::Gone => {
                    self.forget_gone(claim);
                    chunk.is_progress = true;
                    continue;
                }
                Name::Unknown => {
                    self.books.release(&claim.short);
                    continue;
                }
            };
            if claim.may_be_manifest
                && let Some(used) = self.younger_part(&digest, claim)
            {
                self.books.postpone(&claim.short, used);
                chunk.is_progress = true;
                continue;
            }
            let name = if chunk.names.len() < NAMED { self.name_of(&digest) } else { None };
            match self.remove_claimed(&digest, claim) {
                Ok(Some(bytes)) => {
                    chunk.bytes += bytes;
                    chunk.blobs += 1;
                    chunk.is_progress = true;
                    if let Some(name) = name.filter(|name| !chunk.names.contains(name)) {
                        chunk.names.push(name);
                    }
                }
                Ok(None) => {
                    self.books.release(&claim.short);
                    chunk.is_progress = true;
                }
                Err(error) => {
                    // Others have their turn.
                    self.books.set_stuck(&claim.short);
                    chunk.failures += 1;
                    chunk.failure.get_or_insert(error);
                }
            }
        }
        chunk
    }

    /// What was chosen has no file: it went by other ways, unless it was published since the directories were listed.
    fn forget_gone(&self, claim: &Claim) {
        let _names = self.names.lock();
        if self.books.may_go(claim) {
            self.books.forget(&claim.short);
        } else {
            self.books.release(&claim.short);
        }
    }

    /// The name of an image, or the repository of a blob.
    fn name_of(&self, digest: &Digest) -> Option<String> {
        let refs = self.hints.refs(digest, None, REFS_OF_ONE).found;
        let tag = refs.iter().find(|path| layout::is_tag(path)).or(refs.first())?;
        let name = Self::name_of_ref(tag)?;
        Some(name.split('@').next().unwrap_or(&name).to_owned())
    }

    /// When the youngest stored part of this manifest's image was used, if that is later than the manifest was, and no
    /// other image accounts for it: a pull may take long, lazy readers ask for no manifest, and a lost index leaves
    /// only the times of the files. Without its manifest that part would lead nowhere.
    fn younger_part(&self, digest: &Digest, claim: &Claim) -> Option<u32> {
        let mut parts = self.parts_of(digest);
        parts.retain(|part| part != digest);
        if parts.is_empty() {
            return None;
        }
        let used_of = |digest: &Digest| self.books.with_order(|order| order.used(&Short::from(digest)));
        let younger = |part: &Digest| used_of(part).filter(|used| *used > claim.used);
        let is_of_another = |part: &Digest, used: u32| {
            self.uses.image_of(part).is_some_and(|image| {
                image != *digest
                    && !parts.contains(&image)
                    && used_of(&image).is_some_and(|at| at.saturating_add(ALIKE) >= used)
            })
        };
        parts.iter().filter_map(|part| younger(part).filter(|used| !is_of_another(part, *used))).max()
    }

    /// The whole digests. Without an index they are only in the names of the files; the directories are listed once for
    /// this chunk and many that come after it.
    fn names_of(&self, claims: &[Claim], names: &mut Names, is_cut: &mut dyn FnMut() -> bool) -> Vec<Name> {
        let known = |short: &Short, names: &Names| self.hints.whole(short).or_else(|| names.found.get(short).copied());
        let mut whole: Vec<Option<Digest>> = claims.iter().map(|claim| known(&claim.short, names)).collect();
        let mut is_all = true;
        if whole.iter().any(Option::is_none) {
            let missing = claims.iter().zip(&whole).filter(|(_, found)| found.is_none());
            let missing: Vec<Short> = missing.map(|(claim, _)| claim.short).collect();
            is_all = self.find_in_directories(missing, names, is_cut);
            for (found, claim) in whole.iter_mut().zip(claims) {
                *found = found.or_else(|| names.found.get(&claim.short).copied());
            }
        }
        let name = |found| match found {
            Some(digest) => Name::Known(digest),
            None if is_all => Name::Gone,
            None => Name::Unknown,
        };
        whole.into_iter().map(name).collect()
    }

    /// Finds these, and what would go next. Whether everything was looked at.
    fn find_in_directories(&self, missing: Vec<Short>, names: &mut Names, is_cut: &mut dyn FnMut() -> bool) -> bool {
        names.listings += 1;
        names.found.clear();
        let mut missing: HashSet<Short> = missing.into_iter().collect();
        let ahead: HashSet<Short> = self.books.ahead(AHEAD).into_iter().collect();
        for algorithm in Algorithm::ALL {
            let listing = match self.disk.list(&layout::blob_dir(algorithm)) {
                Ok(listing) => listing,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => return false,
            };
            for entry in listing {
                let Ok(entry) = entry else { return false };
                if is_cut() {
                    return false;
                }
                let Ok(digest) = Digest::from_parts(algorithm, &entry.name) else { continue };
                let short = Short::from(&digest);
                if missing.remove(&short) || ahead.contains(&short) {
                    names.found.insert(short, digest);
                }
            }
        }
        true
    }
}
