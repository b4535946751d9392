//! Removal of what nothing leads to: blobs without a ref, refs without a blob, damaged records, empty directories, old
//! evidence. The index is compared with the files on the way.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::capacity::seconds;
use super::layout::{self, QUARANTINE};
use super::order::Short;
use super::origin::is_aside;
use super::record::{Found, Records};
use super::refs::{AccessRecord, Link, TagRecord};
use super::survey::Spares;
use super::{Inner, Store, StoreError, StoredList};
use crate::oci::Digest;

/// What is younger than this may be about to be linked, or be ahead of its blob.
const YOUNG: Duration = Duration::from_hours(1);
/// How long somebody has to look at what failed verification.
const EVIDENCE: Duration = Duration::from_hours(7 * 24);
/// Entries of the index that are compared at a time.
const STEP: usize = 1000;
/// Refs that are named of a blob that would be evicted.
const NAMES: usize = 16;

/// What was removed and repaired, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Nothing was changed: this is what would be.
    pub dry_run: bool,
    /// Blobs older than an hour to which no ref leads.
    pub blobs: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Unfinished downloads with which nobody has gone on for an hour.
    #[serde(default)]
    pub unfinished: u64,
    /// Their bytes; not among the freed ones.
    #[serde(default)]
    pub unfinished_bytes: u64,
    /// Tags and links older than an hour whose blob is not there.
    pub broken_refs: u64,
    /// Tags, links and other records that cannot be read.
    pub damaged_records: u64,
    /// Files of pins that cannot be read, from the root. Those of pins that are known are written anew; of the others
    /// nobody knows what they kept, and they stay until the pin is made again or the file is removed by hand.
    #[serde(default)]
    pub damaged_pins: Vec<PathBuf>,
    /// Empty directories below `refs/`.
    pub empty_directories: u64,
    /// Files in `quarantine/` that are older than a week.
    pub quarantined: u64,
    /// Their bytes.
    pub quarantined_bytes: u64,
    /// Indexes that were set aside.
    pub bad_indexes: u64,
    /// Blobs that the index did not know, or not rightly.
    pub index_added: u64,
    /// Blobs that the index knew and that are not there.
    pub index_removed: u64,
    /// What would be evicted next; only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict_next: Option<Vec<Victim>>,
    /// Bytes of unfinished downloads that would go before those.
    #[serde(default)]
    pub evict_unfinished_bytes: u64,
    /// How many bytes may go in all: what is neither pinned nor read or written; only where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evictable_bytes: Option<u64>,
}

/// A blob that would be evicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// The blob; none, if only a scan of the files could tell.
    pub digest: Option<Digest>,
    /// Its length.
    pub bytes: u64,
    /// When it was used last.
    pub last_used: Option<Timestamp>,
    /// Some of what leads to it, as names of images.
    pub names: Vec<String>,
    /// Some of the images of which it is a part, by name.
    #[serde(default)]
    pub images: Vec<String>,
}

/// A run.
struct Sweep<'a> {
    inner: &'a Arc<Inner>,
    now: SystemTime,
    /// Directories with nothing in them but such directories.
    empty: HashSet<PathBuf>,
    report: Collected,
}

// === impl Store ===

impl Store {
    /// Removes what nothing leads to and repairs the index, or says what would be done. With `evict`, also what would go
    /// if so many bytes had to be freed.
    pub async fn collect(&self, dry_run: bool, evict: Option<u64>) -> Result<Collected, StoreError> {
        self.collect_at(self.0.timeline.settled(), dry_run, evict).await
    }

    /// The same at any time.
    pub(super) async fn collect_at(
        &self,
        now: SystemTime,
        dry_run: bool,
        evict: Option<u64>,
    ) -> Result<Collected, StoreError> {
        let work = move |inner: &Arc<Inner>| {
            // What is pinned stays whether a ref leads to it or not; while that is not known nothing is garbage.
            if !inner.pins.are_settled() {
                inner.settle_pins()?;
            }
            inner.know_partials()?;
            let mut sweep = Sweep::new(inner, now, dry_run);
            sweep.refs()?;
            sweep.blobs(true)?;
            sweep.index()?;
            sweep.evidence()?;
            sweep.unfinished()?;
            sweep.pins()?;
            inner.group.run(&inner.disk);
            let mut report = sweep.report;
            if let Some(bytes) = evict {
                let (unfinished, victims) = inner.next_victims(bytes);
                (report.evict_unfinished_bytes, report.evict_next) = (unfinished, Some(victims));
                report.evictable_bytes = Some(inner.books.taken().removable);
            }
            Ok(report)
        };
        self.blocking(work).await
    }

    /// Removes records that cannot be read and refs whose blob is not there, and repairs the index; or says what would be
    /// done.
    pub(super) async fn repair(&self, dry_run: bool) -> Result<Collected, StoreError> {
        let work = move |inner: &Arc<Inner>| {
            if !dry_run && !inner.pins.are_settled() {
                inner.settle_pins()?;
            }
            let mut sweep = Sweep::new(inner, inner.timeline.settled(), dry_run);
            sweep.refs()?;
            sweep.blobs(false)?;
            sweep.index()?;
            sweep.pins()?;
            inner.group.run(&inner.disk);
            Ok(sweep.report)
        };
        self.blocking(work).await
    }
}

// === impl Sweep ===

impl<'a> Sweep<'a> {
    fn new(inner: &'a Arc<Inner>, now: SystemTime, dry_run: bool) -> Self {
        Self { inner, now, empty: HashSet::new(), report: Collected { dry_run, ..Collected::default() } }
    }

    fn acts(&self) -> bool {
        !self.report.dry_run
    }

    /// Broken refs and damaged records go, then directories with nothing in them.
    fn refs(&mut self) -> Result<(), StoreError> {
        let inner = self.inner;
        inner.each_ref(|path, is_dir| {
            if is_dir {
                self.directory(path);
            } else if !path.strip_prefix(layout::REFS).is_ok_and(is_aside) {
                self.check_ref(path)?;
            }
            Ok(())
        })
    }

    fn check_ref(&mut self, path: &Path) -> Result<(), StoreError> {
        let inner = self.inner;
        if is_damaged(inner, path)? {
            self.damaged(path);
            return Ok(());
        }
        let Some(digest) = inner.named_by(path)? else { return Ok(()) };
        if inner.exists(&layout::blob(&digest))? {
            if self.acts() {
                inner.know_ref(&digest, path);
            }
        } else if self.is_older(path, YOUNG) {
            let removed = if self.acts() { inner.remove_broken_ref(&digest, path) } else { Ok(true) };
            if let Err(error) = &removed {
                let error = error as &dyn std::error::Error;
                tracing::warn!(path = %path.display(), error, "a ref without its blob could not be removed");
            }
            // Else its blob has come meanwhile.
            self.report.broken_refs += u64::from(removed.unwrap_or(true));
        }
        Ok(())
    }

    fn damaged(&mut self, path: &Path) {
        self.report.damaged_records += 1;
        // It may have meant what a pin keeps: without it nobody would know that something is pinned here.
        let is_pinned = match layout::parse_tag(path) {
            Some((up, repo, tag)) => self.inner.pins.keeps(&up, &repo, &tag),
            None => layout::parse_link(path).is_some_and(|digest| self.inner.books.is_pinned(&Short::from(&digest))),
        };
        if self.acts() && !is_pinned {
            remove_file(self.inner, path);
            self.inner.known.forget(path);
            self.inner.remove_empty_above(path);
        }
    }

    fn directory(&mut self, path: &Path) {
        // An upstream's own stays, as does `refs/`.
        if path.components().count() <= 2 {
            return;
        }
        let is_empty = |names: Vec<String>| names.iter().all(|name| self.empty.contains(&path.join(name)));
        let is_there = self.inner.disk.metadata(path).is_ok();
        if is_there && self.inner.names_in(path).is_ok_and(is_empty) {
            self.empty.insert(path.to_owned());
            self.report.empty_directories += 1;
            if self.acts() {
                self.inner.remove_dir_above(path);
            }
        }
    }

    /// Puts blobs into the index that it does not know. With `collect`, blobs to which nothing leads go.
    fn blobs(&mut self, collect: bool) -> Result<(), StoreError> {
        let inner = self.inner;
        let led = if collect { inner.led_to(|_| false)? } else { HashSet::new() };
        let mut garbage = Vec::new();
        inner.each_blob(|digest| {
            let path = layout::blob(digest);
            let Ok(metadata) = inner.disk.metadata(&path) else { return Ok(()) };
            let known = inner.hints.blob(digest, inner.epoch).is_some_and(|hint| hint.len == metadata.len());
            let short = Short::from(digest);
            if collect && !led.contains(&short) && !inner.books.is_pinned(&short) && self.is_older(&path, YOUNG) {
                garbage.push((*digest, metadata.len()));
            } else if !known {
                self.report.index_added += 1;
                if self.acts() {
                    match inner.know_blob(digest) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(StoreError::io("look at", &path, error));
                        }
                        _ => {}
                    }
                }
            }
            Ok(())
        })?;
        for (digest, len) in garbage {
            if !self.acts() || inner.remove_unled(&digest, Spares::PinnedAndBusy)?.is_some() {
                self.report.blobs += 1;
                self.report.freed_bytes += len;
            }
        }
        Ok(())
    }

    /// The index' blobs that have no file.
    fn index(&mut self) -> Result<(), StoreError> {
        let inner = self.inner;
        let mut after = None::<Vec<u8>>;
        loop {
            inner.check_open()?;
            let part = inner.hints.blobs(after.as_deref(), inner.epoch, STEP);
            for (digest, ..) in part.found {
                if !inner.exists(&layout::blob(&digest))? {
                    self.report.index_removed += 1;
                    if self.acts() {
                        inner.forget_if_gone(&Short::from(&digest));
                    }
                }
            }
            after = part.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    fn evidence(&mut self) -> Result<(), StoreError> {
        let inner = self.inner;
        for name in inner.names_in(Path::new(QUARANTINE))? {
            let path = Path::new(QUARANTINE).join(name);
            let Ok(metadata) = inner.disk.metadata(&path) else { continue };
            if self.is_older(&path, EVIDENCE) {
                self.report.quarantined += 1;
                self.report.quarantined_bytes += metadata.len();
                if self.acts() {
                    if metadata.is_dir() { inner.remove_tree(&path) } else { remove_file(inner, &path) }
                }
            }
        }
        for name in inner.names_in(Path::new(""))?.iter().filter(|name| name.starts_with("index.bad-")) {
            self.report.bad_indexes += 1;
            if self.acts() {
                inner.remove_tree(Path::new(name));
            }
        }
        Ok(())
    }

    /// No ref leads to what fills have left, so it goes by its age alone. What somebody has is being gone on with.
    fn unfinished(&mut self) -> Result<(), StoreError> {
        let before = self.now.checked_sub(YOUNG).map_or(0, seconds);
        let gone =
            self.inner.remove_partials(self.report.dry_run, |seen| seen.touched.is_some_and(|at| at < before))?;
        (self.report.unfinished, self.report.unfinished_bytes) = (gone.downloads, gone.bytes);
        Ok(())
    }

    fn pins(&mut self) -> Result<(), StoreError> {
        self.report.damaged_pins = self.inner.damaged_pins(self.acts())?;
        Ok(())
    }

    /// Whether nothing about the file has changed for so long. Its content may be older than its place.
    fn is_older(&self, path: &Path, age: Duration) -> bool {
        let Ok(metadata) = self.inner.disk.metadata(path) else { return false };
        let seconds = u64::try_from(metadata.ctime().max(metadata.mtime())).unwrap_or_default();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        self.now.duration_since(at).is_ok_and(|since| since > age)
    }
}

fn remove_file(inner: &Inner, path: &Path) {
    if let Err(error) = inner.disk.unlink(path) {
        tracing::warn!(path = %path.display(), %error, "could not be removed");
    } else if let Some(parent) = path.parent() {
        inner.group.directories([parent.to_owned()]);
    }
}

/// Whether this is a record that can be had again from upstream, and no record. Marks of writes are not such: without
/// one, a tag would pass for a fresh one.
fn is_damaged(inner: &Inner, path: &Path) -> Result<bool, StoreError> {
    fn damaged<T: DeserializeOwned>(inner: &Inner, path: &Path) -> Result<bool, StoreError> {
        Ok(matches!(Records::look::<T>(&inner.disk, path)?, Found::Damaged))
    }
    if layout::is_tag(path) {
        damaged::<TagRecord>(inner, path)
    } else if layout::parse_link(path).is_some() {
        damaged::<Link>(inner, path)
    } else if path.file_name().is_some_and(|name| name == "_access") {
        damaged::<AccessRecord>(inner, path)
    } else if path.parent().is_some_and(|parent| parent.ends_with("_lists")) {
        damaged::<StoredList>(inner, path)
    } else {
        Ok(false)
    }
}

// === impl Inner ===

impl Inner {
    fn remove_dir_above(&self, path: &Path) {
        if self.disk.remove_dir(path)
            && let Some(parent) = path.parent()
        {
            self.group.directories([parent.to_owned()]);
        }
    }

    /// Removes a directory of the root with all that is in it.
    pub(super) fn remove_tree(&self, path: &Path) {
        let mut next = vec![path.to_owned()];
        let mut emptied: Vec<PathBuf> = Vec::new();
        while let Some(directory) = next.pop() {
            let Ok(listing) = self.disk.list(&directory) else { continue };
            for entry in listing.flatten().collect::<Vec<_>>() {
                let path = directory.join(entry.name);
                if entry.is_dir {
                    next.push(path);
                } else {
                    remove_file(self, &path);
                }
            }
            emptied.push(directory);
        }
        for directory in emptied.iter().rev() {
            self.disk.remove_dir(directory);
        }
        self.group.directories([PathBuf::new()]);
    }

    /// What would be evicted if so many bytes had to be freed, after how many of unfinished downloads; nothing, if all that may
    /// go would not be enough.
    fn next_victims(&self, bytes: u64) -> (u64, Vec<Victim>) {
        let unfinished = self.books.parked().min(bytes);
        let victims = self.books.victims(bytes - unfinished);
        if victims.is_empty() && unfinished < bytes {
            return (0, Vec::new());
        }
        let name = |path: &PathBuf| Self::name_of_ref(path);
        let victim = |short: &Short| {
            let digest = self.hints.whole(short);
            let names = digest.map(|digest| self.hints.refs(&digest, None, NAMES).found);
            Victim {
                bytes: self.books.with_order(|order| order.get(short)).unwrap_or_default(),
                last_used: self.last_used(short),
                names: names.unwrap_or_default().iter().filter_map(name).collect(),
                images: Vec::new(),
                digest,
            }
        };
        let mut victims: Vec<Victim> = victims.iter().map(victim).collect();
        let blobs = victims.iter().filter_map(|victim| victim.digest).collect();
        // Names are for people: without them the rest is still right.
        let mut images = self.image_names(&blobs, NAMES).unwrap_or_default();
        for victim in &mut victims {
            victim.images = victim.digest.and_then(|digest| images.remove(&digest)).unwrap_or_default();
        }
        (unfinished, victims)
    }
}
